/* SPDX-License-Identifier: Apache-2.0
 *
 * The incoming side's frame: waits for the process that runs the guest, then answers its requests,
 * stage by stage, until the guest runs here or the other side gives up. Main thread. See update.h.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "base/log.h"
#include "base/trace.h"
#include "base/util.h"
#include "update/stages.h"

/* On top of what the outgoing side may take by the table: it decides when something takes too long,
 * this side only must not wait for ever. */
#define REQUEST_SLACK_MS 2000
#define REPLY_LIMIT_MS   5000

/* After the go there is one request left, which comes at once. The main loop waits for it. */
#define FINISH_LIMIT_MS 3000

/* How soon a wait notices a signal. */
#define SIGNAL_POLL_MS 200

static int answer(struct update_incoming *incoming, int result, uint64_t start_ns,
                  const struct error *why, struct error *error)
{
    struct wire_reply *reply = &incoming->wire.reply;

    reply->work_ns = clock_ns() - start_ns;
    if (result < 0) {
        reply->code = (uint32_t)-result;
        memcpy(reply->message, why->message, sizeof(reply->message));
    }
    return wire_send_reply(&incoming->wire, REPLY_LIMIT_MS, error);
}

/* A descriptor that comes with a request is the shared memory. */
static int take_memory(struct update_incoming *incoming, int fd, struct error *error)
{
    if (fd < 0)
        return 0;
    if (incoming->memory.shared) {
        close_fd(fd);
        return error_set(error, EPROTO, "the shared memory came twice");
    }
    return wire_memory_adopt(&incoming->memory, fd, error);
}

/* The stages come in the order of the table, each once: they build upon one another. */
static const struct stage *next_stage(struct update_incoming *incoming, struct error *error)
{
    const struct stage *stage = stage_find(incoming->wire.request.stage);

    if (!stage || !stage->incoming) {
        error_set(error, EPROTO, "this baton (%s) knows no stage '%s'", BATON_VERSION,
                  incoming->wire.request.stage);
        return NULL;
    }
    while (incoming->due < stage_count && !stages[incoming->due].incoming)
        incoming->due++;
    if (stage != &stages[incoming->due]) {
        error_set(error, EPROTO, "it is not the turn of stage '%s'", stage->name);
        return NULL;
    }
    incoming->due++;
    return stage;
}

static int carry_out(struct update_incoming *incoming, int fd, struct error *error)
{
    int ret = take_memory(incoming, fd, error);
    const struct stage *stage;

    if (ret < 0)
        return ret;
    stage = next_stage(incoming, error);
    return stage ? stage->incoming(incoming, error) : -error->code;
}

/* Whether a signal that ends this process waits for the main loop to take it. Until the guest is
 * claimed here, such a signal is about the hand-over; afterwards it would end the guest. */
static bool told_to_end(void)
{
    sigset_t pending;

    return sigpending(&pending) == 0 &&
           (sigismember(&pending, SIGTERM) == 1 || sigismember(&pending, SIGINT) == 1 ||
            sigismember(&pending, SIGHUP) == 1);
}

static int will_end(struct error *error)
{
    return error_set(error, ECANCELED, "this process was told to end");
}

/* How long the outgoing side may be busy with its own part of stages before it asks for something
 * or sends the go. */
static unsigned request_limit_ms(const struct update_incoming *incoming)
{
    unsigned limit_ms = REQUEST_SLACK_MS;

    if (incoming->runs)
        return FINISH_LIMIT_MS;
    for (unsigned i = incoming->due; i < stage_count; i++) {
        limit_ms += stages[i].limit_ms;
        if (stages[i].incoming || stages[i].outgoing == outgoing_go)
            break;
    }
    return limit_ms;
}

/* The next request, or the go. */
static int receive(struct update_incoming *incoming, bool *go, int *fd, struct error *error)
{
    unsigned limit_ms = request_limit_ms(incoming);
    uint64_t deadline = clock_ns() + limit_ms * UINT64_C(1000000);
    int ret;

    do {
        if (!incoming->runs && told_to_end())
            return will_end(error);
        ret = wire_receive_request(&incoming->wire, go, fd, SIGNAL_POLL_MS, error);
    } while (ret == -ETIMEDOUT && clock_ns() < deadline);
    if (ret == -ETIMEDOUT)
        return error_set(error, ETIMEDOUT, "the running process asked for nothing within %u ms",
                         limit_ms);
    return ret;
}

static int handle_go(struct update_incoming *incoming, struct error *error)
{
    uint64_t start = clock_ns();
    struct error ignored;
    int ret;

    if (!incoming->loaded || incoming->runs)
        return error_set(error, EPROTO, "it is not the turn of the go");
    if (told_to_end())
        return will_end(error);
    trace(update_go, "incoming");
    ret = incoming_go(incoming, error);
    if (ret < 0)
        return ret;
    memset(&incoming->wire.reply, 0, sizeof(incoming->wire.reply));
    /* Nobody to tell is no reason to stop: the guest runs. */
    answer(incoming, 0, start, NULL, &ignored);
    return 0;
}

/* One request. @return 0; negative when the hand-over has failed on this side */
static int handle_request(struct update_incoming *incoming, bool *finished, struct error *error)
{
    struct error why = {0};
    uint64_t start;
    bool go = false;
    int fd = -1, ret, result;

    ret = receive(incoming, &go, &fd, error);
    if (ret < 0)
        return ret;
    if (go)
        return handle_go(incoming, error);
    start = clock_ns();
    memset(&incoming->wire.reply, 0, sizeof(incoming->wire.reply));
    trace(update_stage_begin, "incoming", incoming->wire.request.stage);
    result = carry_out(incoming, fd, &why);
    trace(update_stage_end, "incoming", incoming->wire.request.stage, result);
    ret = answer(incoming, result, start, &why, error);
    if (result < 0) {
        *error = why;
        return error_prefix(error, "stage '%s': ", incoming->wire.request.stage);
    }
    *finished =
        incoming->over || stage_find(incoming->wire.request.stage)->incoming == incoming_finish;
    return ret;
}

static int take_over(struct update_incoming *incoming, struct error *error)
{
    bool finished = false;
    int ret = 0;

    while (ret == 0 && !finished)
        ret = handle_request(incoming, &finished, error);
    if (incoming->runs && !finished) {
        log_warning("the former process ended early: %s", error->message);
        incoming_settle(incoming);
    }
    return incoming->runs ? 0 : ret;
}

static void report(struct update_incoming *incoming, enum update_status status)
{
    trace(update_conclude, "incoming", update_status_name(status));
    incoming->report.status = status;
    incoming->progress(incoming->opaque, &incoming->report);
}

/* The breakdown came with the request for the last stage, which was under way then. */
static void close_breakdown(struct update_report *breakdown)
{
    uint64_t now = clock_ns();

    if (breakdown->stage_count == 0)
        return;
    breakdown->stages[breakdown->stage_count - 1].end_ns = now;
    breakdown->total_ns = now - breakdown->stages[0].start_ns;
}

static void conclude(struct update_incoming *incoming, int result)
{
    incoming->result = result;
    if (result < 0) {
        memcpy(incoming->report.error, incoming->error.message, sizeof(incoming->report.error));
        report(incoming, UPDATE_FAILED);
        sd_event_exit(incoming->loop, 1);
        return;
    }
    if (incoming->over) {
        log_info("the rehearsal went well: the guest stays where it is, this process ends");
        incoming->report.dry_run = true;
        report(incoming, UPDATE_REHEARSED);
        sd_event_exit(incoming->loop, 0);
        return;
    }
    incoming->report.generation = machine_generation(incoming->machine);
    close_breakdown(&incoming->report);
    report(incoming, UPDATE_COMPLETED);
}

static void close_wire(struct update_incoming *incoming)
{
    if (incoming->wire.channel && channel_peer_dies(incoming->wire.channel, 0))
        trace(update_peer_death, "incoming", (int)channel_peer_pid(incoming->wire.channel));
    if (incoming->wire.channel)
        channel_close(incoming->wire.channel);
    incoming->wire.channel = NULL;
    channel_listener_close(incoming->listener);
    incoming->listener = NULL;
    incoming->source = sd_event_source_disable_unref(incoming->source);
}

static int on_connection(sd_event_source *source, int fd, uint32_t revents, void *opaque)
{
    struct update_incoming *incoming = opaque;
    int ret;

    (void)source;
    (void)fd;
    (void)revents;
    ret = channel_accept(incoming->listener, &incoming->wire.channel, 0, &incoming->error);
    if (ret == -ETIMEDOUT)
        return 0; /* a stranger was turned away; the right one may still come */
    if (ret == 0) {
        report(incoming, UPDATE_ACTIVE);
        ret = take_over(incoming, &incoming->error);
    }
    close_wire(incoming);
    conclude(incoming, ret);
    return 0;
}

int update_incoming_start(struct update_incoming **result, const struct config *given,
                          sd_event *loop, update_adopt_fn *adopt, update_progress_fn *progress,
                          void *opaque, struct error *error)
{
    struct update_incoming *incoming = xcalloc(1, sizeof(*incoming));
    int ret;

    incoming->given = given;
    incoming->loop = sd_event_ref(loop);
    incoming->adopt = adopt;
    incoming->progress = progress;
    incoming->opaque = opaque;
    incoming->memory.fd = -1;
    incoming->report.incoming = true;
    *result = incoming;
    ret = channel_listen(&incoming->listener, given->incoming_cpr, error);
    if (ret == 0) {
        ret = sd_event_add_io(loop, &incoming->source, channel_listener_fd(incoming->listener),
                              EPOLLIN, on_connection, incoming);
        if (ret < 0)
            ret = error_set_errno(error, -ret, "cannot watch '%s'", given->incoming_cpr);
    }
    if (ret < 0) {
        struct error ignored;

        update_incoming_finish(incoming, &ignored);
    }
    return ret;
}

int update_incoming_finish(struct update_incoming *incoming, struct error *error)
{
    int result = incoming->result;

    if (result < 0)
        *error = incoming->error;
    close_wire(incoming);
    if (incoming->runs)
        machine_destroy(incoming->machine);
    else if (incoming->machine)
        machine_release(incoming->machine, true);
    wire_memory_destroy(&incoming->memory);
    fdset_clear(&incoming->fds);
    sd_event_unref(incoming->loop);
    free(incoming);
    return result;
}
