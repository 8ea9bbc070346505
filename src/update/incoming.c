/* SPDX-License-Identifier: Apache-2.0
 *
 * The incoming side's frame: waits for the process that runs the guest, then answers its requests,
 * stage by stage, until the guest runs here or the other side gives up. Main thread. See update.h.
 */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "update/stages.h"

/* How long the outgoing side may be busy with its own part of a stage. Longer than any of its
 * limits: it decides, this side only must not wait for ever. */
#define REQUEST_LIMIT_MS 120000
#define REPLY_LIMIT_MS   5000

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

static int carry_out(struct update_incoming *incoming, int fd, struct error *error)
{
    const struct stage *stage = stage_find(incoming->wire.request.stage);
    int ret = take_memory(incoming, fd, error);

    if (ret < 0)
        return ret;
    if (!stage || !stage->incoming)
        return error_set(error, EPROTO, "this baton (%s) knows no stage '%s'", BATON_VERSION,
                         incoming->wire.request.stage);
    return stage->incoming(incoming, error);
}

static int handle_go(struct update_incoming *incoming, struct error *error)
{
    uint64_t start = clock_ns();
    struct error ignored;

    if (!incoming->loaded)
        return error_set(error, EPROTO, "the go came before the state");
    incoming_go(incoming);
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
    bool go;
    int fd, ret, result;

    ret = wire_receive_request(&incoming->wire, &go, &fd, REQUEST_LIMIT_MS, error);
    if (ret < 0)
        return ret;
    if (go)
        return handle_go(incoming, error);
    start = clock_ns();
    memset(&incoming->wire.reply, 0, sizeof(incoming->wire.reply));
    result = carry_out(incoming, fd, &why);
    ret = answer(incoming, result, start, &why, error);
    if (result < 0) {
        *error = why;
        return error_prefix(error, "stage '%s': ", incoming->wire.request.stage);
    }
    *finished = stage_find(incoming->wire.request.stage)->incoming == incoming_finish;
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
    incoming->report.generation = machine_generation(incoming->machine);
    close_breakdown(&incoming->report);
    report(incoming, UPDATE_COMPLETED);
}

static void close_wire(struct update_incoming *incoming)
{
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
    if (ret < 0) {
        log_warning("%s", incoming->error.message);
        return 0; /* a stranger was turned away; the right one may still come */
    }
    report(incoming, UPDATE_ACTIVE);
    ret = take_over(incoming, &incoming->error);
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
    /* Not before: a vCPU that is late marks it on its way into the guest. */
    wire_memory_destroy(&incoming->memory);
    fdset_clear(&incoming->fds);
    sd_event_unref(incoming->loop);
    free(incoming);
    return result;
}
