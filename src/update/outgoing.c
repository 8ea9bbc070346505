/* SPDX-License-Identifier: Apache-2.0
 *
 * The outgoing side's frame: runs the stages of the table one after the other, and undoes them
 * when one fails. Runs on the thread of the hand-over.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>

#include "base/log.h"
#include "base/util.h"
#include "update/stages.h"

/* Asks the incoming side for its part and waits for the answer. */
static int ask(struct outgoing *outgoing, const struct stage *stage, struct error *error)
{
    int ret = wire_send_request(&outgoing->wire, outgoing->request_fd,
                                outgoing_time_left(outgoing), error);

    if (ret == 0 && stage->follow_up)
        ret = stage->follow_up(outgoing, error);
    if (ret == 0)
        ret = wire_receive_reply(&outgoing->wire, outgoing_time_left(outgoing), error);
    if (ret == 0 && stage->answered)
        ret = stage->answered(outgoing, error);
    return ret;
}

static int run_stage(struct outgoing *outgoing, const struct stage *stage, struct error *error)
{
    struct wire_request *request = &outgoing->wire.request;
    int ret = 0;

    outgoing->deadline_ns = clock_ns() + stage->limit_ms * UINT64_C(1000000);
    outgoing->request_fd = -1;
    outgoing->wire.reply.work_ns = 0;
    memset(request, 0, sizeof(*request));
    strcpy(request->stage, stage->name); /* names of the table fit */
    update_stage_begins(outgoing->update, stage);
    if (stage->outgoing)
        ret = stage->outgoing(outgoing, error);
    if (ret == 0 && stage->incoming)
        ret = ask(outgoing, stage, error);
    if (ret < 0)
        return error_prefix(error, "stage '%s': ", stage->name);
    update_stage_ends(outgoing->update, outgoing->wire.reply.work_ns);
    return 0;
}

/* A peer that hangs must not wake up later and touch what is no longer its business. */
static void get_rid_of_peer(struct outgoing *outgoing, int reason)
{
    struct channel *channel = outgoing->wire.channel;

    if (!channel || channel_peer_dead(channel))
        return;
    if (reason == -ETIMEDOUT) {
        log_warning("process %d did not answer in time and is killed",
                    (int)channel_peer_pid(channel));
        syscall(SYS_pidfd_send_signal, channel_peer_pidfd(channel), SIGKILL, NULL, 0);
    }
}

/* First to last, and not the other way round: mappings and interrupts are back in place before the
 * guest goes on. */
static void undo(struct outgoing *outgoing, unsigned begun, int reason)
{
    get_rid_of_peer(outgoing, reason);
    for (unsigned i = 0; i < begun; i++) {
        if (stages[i].undo_outgoing)
            stages[i].undo_outgoing(outgoing);
    }
}

static void close_wire(struct outgoing *outgoing)
{
    update_channel_opened(outgoing->update, NULL);
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
