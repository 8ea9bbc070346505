/* SPDX-License-Identifier: Apache-2.0
 *
 * What control/ sees of a hand-over on the outgoing side: start, cancel, report. The hand-over has
 * a thread of its own; this file is where it meets the main thread. See update.h.
 */
#include "update/update.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/log.h"
#include "base/sandbox.h"
#include "base/trace.h"
#include "base/util.h"
#include "update/stages.h"

struct update {
    struct outgoing outgoing;
    char path[CONFIG_PATH_SIZE];
    struct fdset extra;
    update_progress_fn *progress;
    void *opaque;
    pthread_t thread;
    int wake; /* eventfd: the report has changed */
    sd_event_source *source;

    pthread_mutex_t lock; /* of what follows */
    struct update_report report;
    struct channel *channel;
    bool cancelled;
    bool committed;
    bool ended;
};

const char *update_status_name(enum update_status status)
{
    static const char *const names[] = {
        [UPDATE_NONE] = "none",
        [UPDATE_SETUP] = "setup",
        [UPDATE_ACTIVE] = "active",
        [UPDATE_DEVICE] = "device",
        [UPDATE_CANCELLING] = "cancelling",
        [UPDATE_CANCELLED] = "cancelled",
        [UPDATE_FAILED] = "failed",
        [UPDATE_COMPLETED] = "completed",
        [UPDATE_REHEARSED] = "rehearsed",
    };

    return names[status];
}

bool update_is_under_way(enum update_status status)
{
    switch (status) {
    case UPDATE_SETUP:
    case UPDATE_ACTIVE:
    case UPDATE_DEVICE:
    case UPDATE_CANCELLING:
        return true;
    default:
        return false;
    }
}

void update_compute_blackout(struct update_report *report)
{
    uint64_t first_exit = UINT64_MAX, last_entry = 0;

    for (uint32_t i = 0; i < report->vcpu_count; i++) {
        if (report->vcpu_out_ns[i])
            first_exit = MIN(first_exit, report->vcpu_out_ns[i]);
        last_entry = MAX(last_entry, report->vcpu_in_ns[i]);
    }
    report->blackout_ns = last_entry > first_exit ? last_entry - first_exit : 0;
}

/* --- what the thread tells ----------------------------------------------------------------- */

static void changed(struct update *update)
{
    const uint64_t one = 1;

    (void)!write(update->wake, &one, sizeof(one)); /* fails only when it is signalled already */
}

/* This also makes the end of the stage before known. The main thread has much to do then, and so
 * has whoever listens to its events, on processors that the guest may need. */
void update_stage_begins(struct update *update, const struct stage *stage)
{
    struct update_report *report = &update->report;

    pthread_mutex_lock(&update->lock);
    if (report->status != UPDATE_CANCELLING)
        report->status = stage->status;
    report->stages[report->stage_count++] =
        (struct update_stage_time){.name = stage->name, .start_ns = clock_ns()};
    pthread_mutex_unlock(&update->lock);
    if (!stage->quiet)
        changed(update);
}

void update_stage_ends(struct update *update, uint64_t incoming_ns, uint64_t bytes)
{
    struct update_report *report = &update->report;
    struct update_stage_time *stage;

    pthread_mutex_lock(&update->lock);
    stage = &report->stages[report->stage_count - 1];
    stage->end_ns = clock_ns();
    /* Its answer to the go may have been begun before the stage that waits for it. */
    stage->incoming_ns = MIN(incoming_ns, stage->end_ns - stage->start_ns);
    stage->bytes = bytes;
    pthread_mutex_unlock(&update->lock);
}

void update_channel_opened(struct update *update, struct channel *channel)
{
    pthread_mutex_lock(&update->lock);
    update->channel = channel;
    if (channel && update->cancelled)
        channel_cancel(channel);
    pthread_mutex_unlock(&update->lock);
}

bool update_is_cancelled(struct update *update)
{
    bool cancelled;

    pthread_mutex_lock(&update->lock);
    cancelled = update->cancelled;
    pthread_mutex_unlock(&update->lock);
    return cancelled;
}

bool update_commits(struct update *update)
{
    pthread_mutex_lock(&update->lock);
    update->committed = !update->cancelled;
    pthread_mutex_unlock(&update->lock);
    return update->committed;
}

void update_fill_breakdown(struct update *update, struct wire_request *request)
{
    const struct update_report *report = &update->report;

    pthread_mutex_lock(&update->lock);
    request->stage_count = report->stage_count;
    for (uint32_t i = 0; i < report->stage_count; i++) {
        const struct update_stage_time *stage = &report->stages[i];

        snprintf(request->stages[i].name, WIRE_NAME_SIZE, "%s", stage->name);
        request->stages[i].start_ns = stage->start_ns;
        request->stages[i].end_ns = stage->end_ns;
        request->stages[i].incoming_ns = stage->incoming_ns;
        request->stages[i].bytes = stage->bytes;
    }
    pthread_mutex_unlock(&update->lock);
}

void update_guest_left(struct update *update, const struct wire_request *request,
                       const struct wire_reply *reply)
{
    struct update_report *report = &update->report;

    pthread_mutex_lock(&update->lock);
    report->vcpu_count = MIN(request->vcpu_count, reply->vcpu_count);
    for (uint32_t i = 0; i < report->vcpu_count; i++) {
        report->vcpu_out_ns[i] = request->vcpus[i].ns;
        report->vcpu_in_ns[i] = reply->vcpus[i].ns;
    }
    if (machine_was_running(update->outgoing.machine))
        update_compute_blackout(report);
    pthread_mutex_unlock(&update->lock);
}

/* Two round trips: one for the switch; the go, and the vCPUs' threads that wake up at either end of
 * the stop, are put at another. */
void update_predict(struct update *update, const struct update_prediction *measured)
{
    struct update_prediction *prediction = &update->report.prediction;

    pthread_mutex_lock(&update->lock);
    *prediction = *measured;
    if (machine_was_running(update->outgoing.machine))
        prediction->blackout_ns = measured->save_ns + measured->load_ns + 2 * measured->trip_ns;
    pthread_mutex_unlock(&update->lock);
    trace(update_predict, prediction->save_ns, prediction->load_ns, prediction->trip_ns,
          prediction->blackout_ns);
}

/* --- the thread ---------------------------------------------------------------------------- */

static void conclude(struct update *update, int result, const struct error *error)
{
    const char *what = update->outgoing.dry_run ? "rehearsal" : "hand-over";
    struct update_report *report = &update->report;
    enum update_status status;

    pthread_mutex_lock(&update->lock);
    update->ended = true;
    report->total_ns = clock_ns() - report->stages[0].start_ns;
    if (result == 0) {
        report->status = update->outgoing.dry_run ? UPDATE_REHEARSED : UPDATE_COMPLETED;
    } else {
        report->status = update->cancelled ? UPDATE_CANCELLED : UPDATE_FAILED;
        snprintf(report->error, sizeof(report->error), "%s", error->message);
    }
    status = report->status;
    pthread_mutex_unlock(&update->lock);
    if (result < 0)
        log_warning("%s %s: %s; the guest goes on here", what, update_status_name(status),
                    error->message);
    trace(update_conclude, "outgoing", update_status_name(status));
    changed(update);
}

static void *hand_over_main(void *opaque)
{
    struct update *update = opaque;
    struct error error = {0};
    int result;

    sandbox_enter(SANDBOX_HAND_OVER);
    result = outgoing_hand_over(&update->outgoing, &error);
    conclude(update, result, &error);
    return NULL;
}

static int start_thread(struct update *update, struct error *error)
{
    sigset_t all, old;
    int ret;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    ret = pthread_create(&update->thread, NULL, hand_over_main, update);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (ret != 0)
        return error_set_errno(error, ret, "cannot start the thread of the hand-over");
    pthread_setname_np(update->thread, "hand-over");
    return 0;
}

/* --- the main thread ----------------------------------------------------------------------- */

static int on_changed(sd_event_source *source, int fd, uint32_t revents, void *opaque)
{
    struct update *update = opaque;
    struct update_report report;
    uint64_t count;

    (void)source;
    (void)revents;
    (void)!read(fd, &count, sizeof(count));
    update_report(update, &report);
    update->progress(update->opaque, &report); /* may destroy the update */
    return 0;
}

static int copy_extra(struct update *update, const struct fdset *extra, struct error *error)
{
    for (size_t i = 0; i < extra->count; i++) {
        int ret = fdset_add_copy(&update->extra, extra->entries[i].fd, error, "%s",
                                 extra->entries[i].name);

        if (ret < 0)
            return ret;
    }
    return 0;
}

static int watch(struct update *update, sd_event *loop, struct error *error)
{
    int ret;

    update->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (update->wake < 0)
        return error_set_errno(error, errno, "cannot make an eventfd");
    ret = sd_event_add_io(loop, &update->source, update->wake, EPOLLIN, on_changed, update);
    if (ret < 0)
        return error_set_errno(error, -ret, "cannot watch an eventfd");
    return 0;
}

static void free_update(struct update *update)
{
    sd_event_source_disable_unref(update->source);
    close_fd(update->wake);
    fdset_clear(&update->extra);
    pthread_mutex_destroy(&update->lock);
    free(update);
}

void update_blockers(struct machine *machine, const struct update_report *last,
                     struct blocker_list *list)
{
    if (update_is_under_way(last->status))
        blocker_add(list, "guest",
                    last->dry_run ? "a rehearsal is under way already"
                                  : "a hand-over is under way already",
                    "wait for its end, or end it with migrate_cancel");
    else
        machine_blockers(machine, list);
}

static int refuse_blocked(struct machine *machine, struct error *error)
{
    struct blocker_list list = {0};
    int ret = 0;

    machine_blockers(machine, &list);
    if (list.count > 0) {
        ret = blocker_error(&list, ENOTSUP, error);
        trace(update_blocked, error->message);
    }
    blocker_list_clear(&list);
    return ret;
}

static struct update *new_update(struct machine *machine, const char *path, bool dry_run)
{
    struct update *update = xcalloc(1, sizeof(*update));

    pthread_mutex_init(&update->lock, NULL);
    snprintf(update->path, sizeof(update->path), "%s", path);
    update->wake = -1;
    update->report.status = UPDATE_SETUP;
    update->report.dry_run = dry_run;
    update->report.generation = machine_generation(machine) + !dry_run;
    update->outgoing.machine = machine;
    update->outgoing.update = update;
    update->outgoing.path = update->path;
    update->outgoing.extra = &update->extra;
    update->outgoing.dry_run = dry_run;
    return update;
}

int update_start(struct update **result, struct machine *machine, const char *path,
                 const struct fdset *extra, bool dry_run, update_progress_fn *progress,
                 void *opaque, struct error *error)
{
    struct update *update;
    int ret = refuse_blocked(machine, error);

    if (ret < 0)
        return ret;
    update = new_update(machine, path, dry_run);
    update->progress = progress;
    update->opaque = opaque;
    ret = copy_extra(update, extra, error);
    if (ret == 0)
        ret = watch(update, machine_loop(machine), error);
    if (ret == 0)
        ret = start_thread(update, error);
    if (ret < 0)
        free_update(update);
    else
        *result = update;
    return ret;
}

int update_cancel(struct update *update, struct error *error)
{
    int ret = 0;

    pthread_mutex_lock(&update->lock);
    if (update->committed) {
        ret = error_set(error, EBUSY, "the hand-over is past its commit point");
    } else if (!update->ended) {
        update->cancelled = true;
        update->report.status = UPDATE_CANCELLING;
        if (update->channel)
            channel_cancel(update->channel);
    }
    pthread_mutex_unlock(&update->lock);
    return ret;
}

void update_report(struct update *update, struct update_report *report)
{
    pthread_mutex_lock(&update->lock);
    *report = update->report;
    pthread_mutex_unlock(&update->lock);
}

void update_destroy(struct update *update)
{
    struct error ignored;

    if (!update)
        return;
    update_cancel(update, &ignored);
    pthread_join(update->thread, NULL);
    free_update(update);
}
