/* SPDX-License-Identifier: Apache-2.0
 *
 * The outgoing side's frame: runs the stages of the table one after the other, and undoes them
 * when one fails. Runs on the thread of the hand-over.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>

#include "base/log.h"
#include "base/trace.h"
#include "base/util.h"
#include "update/stages.h"

#define PEER_DEATH_MS 1000

/* Nothing more can be sent: a peer that has left may have said why before. */
static int last_words(struct outgoing *outgoing, struct error *error)
{
    struct error words;

    if (outgoing_receive_reply(outgoing, &words) < 0 && outgoing->wire.reply.code != 0)
        *error = words;
    return -error->code;
}

/* Asks the incoming side for its part and waits for the answer. */
static int ask(struct outgoing *outgoing, const struct stage *stage, struct error *error)
{
    uint64_t start = clock_ns();
    int ret = wire_send_request(&outgoing->wire, outgoing->request_fd, outgoing_time_left(outgoing),
                                error);

    outgoing->unanswered = ret == 0;
    if (ret == 0 && stage->follow_up)
        ret = stage->follow_up(outgoing, error);
    if (ret == 0)
        ret = outgoing_receive_reply(outgoing, error);
    else if (ret == -EPIPE)
        ret = last_words(outgoing, error);
    outgoing->measured.trip_ns = clock_ns() - start;
    outgoing->measured.trip_ns -= MIN(outgoing->measured.trip_ns, outgoing->wire.reply.work_ns);
    if (ret == 0 && stage->answered)
        ret = stage->answered(outgoing, error);
    return ret;
}

/* What has gone over the channel so far. */
static uint64_t bytes_so_far(const struct outgoing *outgoing)
{
    return outgoing->wire.channel ? channel_bytes(outgoing->wire.channel) : 0;
}

/* What a request refers to. */
static uint64_t bytes_shared(const struct wire_request *request)
{
    return request->definition_length + request->facts_length + request->state_length;
}

static int run_stage(struct outgoing *outgoing, const struct stage *stage, struct error *error)
{
    struct wire_request *request = &outgoing->wire.request;
    uint64_t before = bytes_so_far(outgoing);
    int ret = 0;

    outgoing->deadline_ns = clock_ns() + stage->limit_ms * UINT64_C(1000000);
    outgoing->request_fd = -1;
    outgoing->wire.reply.work_ns = 0;
    memset(request, 0, sizeof(*request));
    strcpy(request->stage, stage->name); /* names of the table fit */
    request->dry_run = outgoing->dry_run;
    trace(update_stage_begin, "outgoing", stage->name);
    update_stage_begins(outgoing->update, stage);
    if (stage->outgoing)
        ret = stage->outgoing(outgoing, error);
    if (ret == 0 && stage->incoming)
        ret = ask(outgoing, stage, error);
    trace(update_stage_end, "outgoing", stage->name, ret);
    if (ret < 0)
        return error_prefix(error, "stage '%s': ", stage->name);
    update_stage_ends(outgoing->update, outgoing->wire.reply.work_ns,
                      bytes_so_far(outgoing) - before + bytes_shared(request));
    return 0;
}

/* A peer that was asked for something and has not answered may be at it still, or wake up later and
 * take what is ours again. Only when it is dead can that be ruled out. @return whether it had to be
 * killed, which is to be said when the guest goes on: who reads the log may be slow */
static bool get_rid_of_peer(struct outgoing *outgoing)
{
    const struct channel *channel = outgoing->wire.channel;

    if (channel_peer_dies(channel, 0))
        return false;
    trace(update_peer_kill, (int)channel_peer_pid(channel));
    syscall(SYS_pidfd_send_signal, channel_peer_pidfd(channel), SIGKILL, NULL, 0);
    channel_peer_dies(channel, PEER_DEATH_MS);
    return true;
}

/* First to last, and not the other way round: mappings and interrupts are back in place before the
 * guest goes on. Before anything was changed, a peer that is not stuck sees for itself that nobody
 * wants its answer any more; one that has not even said hello has nothing of ours. */
static void undo(struct outgoing *outgoing, unsigned begun, int reason)
{
    const struct channel *channel = outgoing->wire.channel;
    bool changed = false, killed = false;

    for (unsigned i = 0; i < begun; i++)
        changed |= stages[i].undo_outgoing != NULL;
    if (outgoing->unanswered && (changed || (reason == -ETIMEDOUT && begun > 1)))
        killed = get_rid_of_peer(outgoing);
    for (unsigned i = 0; i < begun; i++) {
        if (!stages[i].undo_outgoing)
            continue;
        trace(update_undo, stages[i].name);
        stages[i].undo_outgoing(outgoing);
    }
    if (killed)
        log_warning("process %d had not answered and was killed%s", (int)channel_peer_pid(channel),
                    channel_peer_dies(channel, 0) ? "" : ", but does not die");
}

static void close_wire(struct outgoing *outgoing)
{
    update_channel_opened(outgoing->update, NULL);
    if (outgoing->wire.channel && channel_peer_dies(outgoing->wire.channel, 0))
        trace(update_peer_death, "outgoing", (int)channel_peer_pid(outgoing->wire.channel));
    if (outgoing->wire.channel)
        channel_close(outgoing->wire.channel);
    wire_memory_destroy(&outgoing->memory);
    fdset_clear(&outgoing->fds);
}

int outgoing_hand_over(struct outgoing *outgoing, struct error *error)
{
    int ret = 0;

    outgoing->memory.fd = -1;
    for (unsigned i = 0; ret == 0 && i < stage_count; i++) {
        if (outgoing->dry_run && !stages[i].rehearsal)
            break; /* what has been done so far is undone by letting go of it */
        ret = run_stage(outgoing, &stages[i], error);
        if (ret == 0)
            continue;
        if (stages[i].outgoing == outgoing_finish) {
            log_warning("the guest runs in the new process, but: %s", error->message);
            ret = 0;
            break;
        }
        undo(outgoing, i + 1, ret);
    }
    close_wire(outgoing);
    return ret;
}
