/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: what a hostile client sends to the QMP server, with baton's own commands behind it.
 * The machine and the hand-over are fakes. The first byte is the size of the pieces in which the
 * rest arrives; the second says how the guest is, and how a hand-over that is started ends.
 *
 * What must hold: every answer is a JSON object with either "return" or "error", an error has
 * class and description, and afterwards a new client is served. A guest that is elsewhere is left
 * alone, one hand-over is under way at a time, it has a path to go to, and one that has failed says
 * why.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/log.h"
#include "base/trace.h"
#include "base/util.h"
#include "control/control_internal.h"
#include "control/qmp_internal.h"
#include "fuzz.h"

#define GUEST_STATUS      0x07u /* enum machine_status */
#define GUEST_HANDED_OVER 0x08u /* or, while it arrives: there is no machine yet */
#define GUEST_BLOCKED     0x10u
#define UPDATE_ENDS       0xe0u /* in one of endings[] */

struct machine {
    enum machine_status status;
    bool blocked;
};

struct update {
    struct update_report report;
    enum update_status ends;
};

static struct {
    struct machine machine;
    struct control control;
    enum update_status update_ends;
    unsigned updates; /* that there are */
} guest;

/* --- the machine --------------------------------------------------------------------------- */

const char *machine_status_name(enum machine_status status)
{
    static const char *const names[] = {"prelaunch", "inmigrate",      "running",
                                        "paused",    "finish-migrate", "postmigrate",
                                        "shutdown",  "internal-error"};

    return names[status];
}

enum machine_status machine_status(const struct machine *machine)
{
    return machine->status;
}

/* Each of the calls that change the guest's life. */
static int change(struct machine *machine, enum machine_status status)
{
    assert(machine == &guest.machine && !guest.control.handed_over);
    assert(machine->status != MACHINE_INMIGRATE && machine->status != MACHINE_POSTMIGRATE);
    machine->status = status;
    return 0;
}

int machine_run(struct machine *machine, struct error *error)
{
    (void)error;
    return change(machine, MACHINE_RUNNING);
}

int machine_stop(struct machine *machine, struct error *error)
{
    (void)error;
    return change(machine, MACHINE_PAUSED);
}

int machine_reset(struct machine *machine, struct error *error)
{
    (void)error;
    return change(machine, machine->status);
}

int machine_powerdown(struct machine *machine, struct error *error)
{
    change(machine, machine->status);
    return error_set(error, EBUSY, "cannot power down a guest in state '%s'",
                     machine_status_name(machine->status));
}

/* --- the hand-over: each time somebody looks, it has come further -------------------------- */

const char *update_status_name(enum update_status status)
{
    static const char *const names[] = {"none",   "setup",      "active",
                                        "device", "cancelling", "cancelled",
                                        "failed", "completed",  "rehearsed"};

    return names[status];
}

bool update_is_under_way(enum update_status status)
{
    return status >= UPDATE_SETUP && status <= UPDATE_CANCELLING;
}

int update_start(struct update **update, struct machine *machine, const char *path,
                 const struct fdset *extra, bool dry_run, update_progress_fn *progress,
                 void *opaque, struct error *error)
{
    struct error why;
    struct update_report *report;

    (void)extra, (void)opaque;
    change(machine, machine->status);
    assert(path[0] != '\0' && *update == NULL && guest.updates == 0 && progress != NULL);
    if (machine->blocked)
        return error_set(error, ENOTSUP, "device 'a': it has no name");
    guest.updates++;
    *update = xcalloc(1, sizeof(**update));
    (*update)->ends = dry_run ? UPDATE_REHEARSED : guest.update_ends;
    report = &(*update)->report;
    report->status = UPDATE_SETUP;
    report->dry_run = dry_run;
    report->stage_count = 1;
    report->stages[0] = (struct update_stage_time){.name = "hello", .end_ns = UINT64_MAX};
    report->vcpu_count = 2;
    error_set(&why, ECONNREFUSED, "hello: nobody listens at '%s'", path);
    snprintf(report->error, sizeof(report->error), "%s", why.message);
    return 0;
}

void update_report(struct update *update, struct update_report *report)
{
    static const enum update_status next[] = {[UPDATE_SETUP] = UPDATE_ACTIVE,
                                              [UPDATE_ACTIVE] = UPDATE_DEVICE,
                                              [UPDATE_CANCELLING] = UPDATE_CANCELLED};

    *report = update->report;
    if (report->status == UPDATE_DEVICE)
        update->report.status = update->ends;
    else if (update_is_under_way(report->status))
        update->report.status = next[report->status];
}

int update_cancel(struct update *update, struct error *error)
{
    assert(guest.updates == 1);
    if (update->report.status == UPDATE_DEVICE)
        return error_set(error, EBUSY, "it is past its commit point");
    if (update_is_under_way(update->report.status))
        update->report.status = UPDATE_CANCELLING;
    return 0;
}

void update_destroy(struct update *update)
{
    guest.updates -= update != NULL;
    free(update);
}

void update_blockers(struct machine *machine, const struct update_report *last,
                     struct blocker_list *list)
{
    change(machine, machine->status);
    if (update_is_under_way(last->status))
        blocker_add(list, "guest", "a hand-over is under way", "wait for its end");
    else if (machine->blocked)
        blocker_add(list, "device 'a'", "it has no name", "give it an id");
}

/* --- what else commands call of control/ --------------------------------------------------- */

void control_quit(struct control *control)
{
    assert(control == &guest.control);
}

int control_describe(const struct control *control, struct fdset *fds, struct error *error)
{
    assert(control == &guest.control && fds->count == 0);
    (void)error;
    return 0;
}

void control_progress(void *opaque, const struct update_report *report)
{
    struct control *control = opaque;

    control->report = *report;
    if (!update_is_under_way(report->status))
        update_destroy(STEAL_POINTER(control->update));
}

/* --- the target ---------------------------------------------------------------------------- */

static void make_guest(uint8_t how)
{
    static const enum update_status endings[] = {UPDATE_COMPLETED, UPDATE_FAILED, UPDATE_CANCELLED,
                                                 UPDATE_DEVICE};

    memset(&guest, 0, sizeof(guest));
    guest.machine.status = how & GUEST_STATUS;
    guest.machine.blocked = how & GUEST_BLOCKED;
    guest.update_ends = endings[(how & UPDATE_ENDS) / 0x20 % ARRAY_SIZE(endings)];
    strcpy(guest.control.name, "web1");
    if (!(how & GUEST_HANDED_OVER) || guest.machine.status != MACHINE_INMIGRATE)
        guest.control.machine = &guest.machine;
    guest.control.handed_over = (how & GUEST_HANDED_OVER) && guest.control.machine;
}

static void forget_guest(void)
{
    struct error ignored;

    update_destroy(guest.control.update);
    assert(guest.updates == 0);
    trace_switch("*", false, &ignored);
}

static void run_loop(sd_event *loop)
{
    while (sd_event_run(loop, 0) > 0)
        ;
}

static void check_message(const json_t *message)
{
    const json_t *error = json_object_get(message, "error");
    const json_t *result = json_object_get(message, "return");
    const char *status = json_string_value(json_object_get(result, "status"));

    assert(json_is_object(message));
    if (json_object_get(message, "QMP"))
        return;
    assert((error != NULL) != (result != NULL));
    assert(error == NULL || (json_is_string(json_object_get(error, "class")) &&
                             json_is_string(json_object_get(error, "desc"))));
    if (status && strcmp(status, "failed") == 0)
        assert(json_is_string(json_object_get(result, "error-desc")));
}

/* Checks what the server has sent; lines are whole, since the loop has run. */
static void check_answers(int fd)
{
    static const size_t size = QMP_OUTPUT_MAX;
    char *bytes = malloc(size), *line = bytes;
    size_t used = 0;
    ssize_t count;

    while (used < size && (count = recv(fd, bytes + used, size - used, MSG_DONTWAIT)) > 0)
        used += (size_t)count;
    while (line < bytes + used) {
        char *end = memchr(line, '\n', (size_t)(bytes + used - line));
        json_t *message;

        if (end == NULL)
            break; /* the socket was full: the rest waits in the server */
        message = json_loadb(line, (size_t)(end - line), JSON_REJECT_DUPLICATES, NULL);
        assert(message != NULL);
        check_message(message);
        json_decref(message);
        line = end + 1;
    }
    free(bytes);
}

static int attach(struct qmp_server *server, sd_event *loop)
{
    struct error error = {0};
    int pair[2], ret;

    ret = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair);
    assert(ret == 0);
    ret = qmp_client_create(server, pair[0], &error);
    assert(ret == 0);
    run_loop(loop);
    return pair[1];
}

static void send_pieces(int fd, sd_event *loop, const uint8_t *data, size_t size)
{
    size_t piece = size > 0 ? (size_t)data[0] + 1 : 0;

    for (size_t at = 2; at < size; at += piece) {
        if (send(fd, data + at, MIN(piece, size - at), MSG_NOSIGNAL) <= 0)
            break;
        run_loop(loop);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char hello[] = "{\"execute\":\"qmp_capabilities\"}";
    const struct qmp_command *commands;
    struct qmp_server *server;
    struct error error = {0};
    sd_event *loop = NULL;
    size_t count;
    int fd, ret;

    log_configure(LOG_LEVEL_ERROR, NULL);
    make_guest(size > 1 ? data[1] : 0);
    ret = sd_event_new(&loop);
    assert(ret >= 0);
    commands = control_commands(&count);
    ret = qmp_create(&server, loop, commands, count, NULL, &guest.control, &error);
    assert(ret == 0);
    fd = attach(server, loop);
    ret = (int)send(fd, hello, sizeof(hello) - 1, MSG_NOSIGNAL);
    assert(ret == sizeof(hello) - 1);
    run_loop(loop);
    send_pieces(fd, loop, data, size);
    check_answers(fd);
    close(fd);
    run_loop(loop);
    assert(qmp_client_count(server) == 0);
    fd = attach(server, loop);
    check_answers(fd);
    assert(qmp_client_count(server) == 1);
    close(fd);
    qmp_destroy(server);
    sd_event_unref(loop);
    forget_guest();
    return 0;
}
