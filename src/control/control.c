/* SPDX-License-Identifier: Apache-2.0
 *
 * See control.h. Main thread.
 */
#include "control/control.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "control/control_internal.h"

#define LOG_FD_NAME "control/stderr"

/* After a hand-over this process is there for its clients only. */
static void on_idle(void *opaque)
{
    struct control *control = opaque;

    if (control->handed_over)
        sd_event_exit(control->loop, 0);
}

/* RUNTIME/NAME/qmp.sock. */
static int listen_by_name(struct control *control, struct error *error)
{
    char path[RUNTIME_PATH_SIZE];
    int ret = runtime_create(control->name, error);

    if (ret == 0)
        ret = runtime_path(path, control->name, RUNTIME_QMP, error);
    if (ret < 0)
        return ret;
    ret = qmp_listen(control->qmp, path, false, error);
    if (ret == -EADDRINUSE) {
        pid_t pid = 0;

        close_fd(qmp_connect(path, &pid));
        return error_set(error, EADDRINUSE,
                         "-name: a guest '%s' runs already, in process %d: use "
                         "another name, or end that one",
                         control->name, (int)pid);
    }
    return ret;
}

static int make_sockets(struct control *control, const struct config *config, struct error *error)
{
    size_t count;
    const struct qmp_command *commands = control_commands(&count);
    int ret = qmp_create(&control->qmp, control->loop, commands, count, on_idle, control, error);

    if (ret == 0 && control->name[0] && !config->incoming)
        ret = listen_by_name(control, error);
    for (unsigned i = 0; ret == 0 && i < config->qmp_count; i++)
        ret = qmp_listen(control->qmp, config->qmp[i], config->incoming, error);
    return ret;
}

/* Whether the command line holds nothing but where the guest comes from. */
static bool is_bare(const struct config *config)
{
    for (unsigned i = 0; i < ARRAY_SIZE(config->given); i++) {
        if (config->given[i])
            return false;
    }
    return true;
}

int control_create(struct control **out, const struct config *config, sd_event *loop,
                   struct error *error)
{
    struct control *control = xcalloc(1, sizeof(*control));
    int ret;

    control->loop = loop;
    control->log_fd = -1;
    control->here = !config->incoming;
    control->own_qmp_only = config->given[CONFIG_OPTION_QMP];
    control->inherit_log = config->incoming && is_bare(config);
    snprintf(control->name, sizeof(control->name), "%s", config->name);
    snprintf(control->pidfile, sizeof(control->pidfile), "%s", config->pidfile);
    ret = make_sockets(control, config, error);
    if (ret < 0) {
        control_destroy(control);
        return ret;
    }
    *out = control;
    return 0;
}

/* Outgoing side: the guest runs in the other process, to which paths and pid file belong now. */
static void give_up_guest(struct control *control)
{
    control->handed_over = true;
    qmp_release(control->qmp);
}

/* The report is all that is left of a hand-over that has ended: its copies of descriptors are
 * closed now, so that a listening socket is nobody's but his who serves it. */
static void forget_update(struct control *control)
{
    if (control->update)
        update_destroy(STEAL_POINTER(control->update));
}

void control_detach(struct control *control)
{
    forget_update(control);
    /* A hand-over that was past its commit point when the loop was ended. */
    if (control->machine && !control->handed_over &&
        machine_status(control->machine) == MACHINE_POSTMIGRATE)
        give_up_guest(control);
    if (control->machine)
        machine_set_event_handler(STEAL_POINTER(control->machine), NULL, NULL);
}

void control_destroy(struct control *control)
{
    bool owner;

    if (control == NULL)
        return;
    control_detach(control);
    owner = control->here && !control->handed_over;
    qmp_destroy(control->qmp);
    if (owner && control->pidfile[0])
        runtime_remove_pidfile(control->pidfile);
    if (owner && control->name[0])
        runtime_remove(control->name);
    close_fd(control->log_fd);
    free(control);
}

static json_t *describe_device(const struct control *control, unsigned device)
{
    const struct config_vfio_pci *config = &machine_config(control->machine)->devices[device];

    return json_pack("{s:s,s:s}", "device", config->id, "host", config->host);
}

static void on_machine_event(void *opaque, enum machine_event event, unsigned device)
{
    static const struct {
        const char *name;
        const char *reason; /* NULL for events without data */
        bool guest;
    } table[] = {
        [MACHINE_EVENT_STOP] = {"STOP", NULL, false},
        [MACHINE_EVENT_RESUME] = {"RESUME", NULL, false},
        [MACHINE_EVENT_RESET_GUEST] = {"RESET", "guest-reset", true},
        [MACHINE_EVENT_RESET_HOST] = {"RESET", "host-qmp-system-reset", false},
        [MACHINE_EVENT_SHUTDOWN_GUEST] = {"SHUTDOWN", "guest-shutdown", true},
        [MACHINE_EVENT_SHUTDOWN_HOST] = {"SHUTDOWN", "host-qmp-quit", false},
        [MACHINE_EVENT_POWERDOWN] = {"POWERDOWN", NULL, false},
        [MACHINE_EVENT_DEVICE_ERROR] = {"BATON_DEVICE_ERROR", NULL, false},
        [MACHINE_EVENT_DEVICE_REQUEST] = {"BATON_DEVICE_REQUEST", NULL, false},
    };
    struct control *control = opaque;
    const char *reason = table[event].reason;
    json_t *data = NULL;

    if (event == MACHINE_EVENT_SHUTDOWN_HOST && control->by_signal)
        reason = "host-signal";
    if (reason)
        data = json_pack("{s:b,s:s}", "guest", (int)table[event].guest, "reason", reason);
    else if (event == MACHINE_EVENT_DEVICE_ERROR || event == MACHINE_EVENT_DEVICE_REQUEST)
        data = describe_device(control, device);
    qmp_emit(control->qmp, table[event].name, data);
}

static void refer_to(struct control *control, struct machine *machine)
{
    control->machine = machine;
    machine_set_event_handler(machine, on_machine_event, control);
}

int control_attach(struct control *control, struct machine *machine, struct error *error)
{
    refer_to(control, machine);
    return control->pidfile[0] ? runtime_write_pidfile(control->pidfile, error) : 0;
}

int control_describe(const struct control *control, struct fdset *fds, struct error *error)
{
    int ret = qmp_describe(control->qmp, fds, error);

    if (ret == 0 && fcntl(STDERR_FILENO, F_GETFD) >= 0)
        ret = fdset_add_copy(fds, STDERR_FILENO, error, LOG_FD_NAME);
    return ret;
}

/* The log's descriptor is optional: the other process may have had none. */
static int adopt_log(struct control *control, struct fdset *fds, struct error *error)
{
    if (!fdset_contains(fds, LOG_FD_NAME))
        return 0;
    close_fd(control->log_fd);
    control->log_fd = fdset_take(fds, FDSET_ANY, error, LOG_FD_NAME);
    return MIN(control->log_fd, 0);
}

int control_adopt(void *opaque, struct machine *machine, struct fdset *fds, struct error *error)
{
    const struct config *config = machine_config(machine);
    struct control *control = opaque;
    char named[CONFIG_ID_SIZE + sizeof(RUNTIME_QMP) + 2] = "";
    int ret;

    snprintf(control->name, sizeof(control->name), "%s", config->name);
    log_configure(LOG_LEVEL_INFO, config->name[0] ? config->name : NULL);
    if (control->pidfile[0] == '\0')
        snprintf(control->pidfile, sizeof(control->pidfile), "%s", config->pidfile);
    /* Told by its end: this process may have been given another runtime directory. */
    if (control->name[0])
        snprintf(named, sizeof(named), "/%s/" RUNTIME_QMP, control->name);
    ret = qmp_adopt(control->qmp, fds, control->own_qmp_only, named, error);
    if (ret == 0)
        ret = adopt_log(control, fds, error);
    if (ret < 0)
        return ret;
    refer_to(control, machine);
    return 0;
}

/* Incoming side: the guest runs here. */
static void take_over(struct control *control)
{
    struct error error = {0};

    control->here = true;
    qmp_activate(control->qmp);
    if (control->pidfile[0] && runtime_write_pidfile(control->pidfile, &error) < 0)
        log_warning("%s", error.message);
    if (control->inherit_log && control->log_fd >= 0) {
        log_info("messages go from here on where those of the former process went");
        dup2(control->log_fd, STDERR_FILENO);
    }
    close_fd(STEAL_FD(control->log_fd));
}

static void leave(struct control *control)
{
    give_up_guest(control);
    machine_let_go(control->machine);
    if (qmp_client_count(control->qmp) == 0)
        sd_event_exit(control->loop, 0);
}

static void emit_stages(struct control *control, const struct update_report *report)
{
    for (uint32_t i = 0; i < MIN(report->stage_count, (uint32_t)UPDATE_STAGES_MAX); i++) {
        const struct update_stage_time *stage = &report->stages[i];
        bool known = i < control->report.stage_count && control->report.stages[i].end_ns != 0;

        if (stage->end_ns == 0 || known)
            continue;
        qmp_emit(control->qmp, "BATON_UPDATE_STAGE",
                 json_pack("{s:s,s:I,s:I,s:I,s:I}", "name", stage->name, "start-ns",
                           (json_int_t)stage->start_ns, "end-ns", (json_int_t)stage->end_ns,
                           "incoming-ns", (json_int_t)stage->incoming_ns, "bytes",
                           (json_int_t)stage->bytes));
    }
}

void control_progress(void *opaque, const struct update_report *report)
{
    struct control *control = opaque;
    enum update_status before = control->report.status;

    emit_stages(control, report);
    control->report = *report;
    if (report->status == before)
        return;
    if (control->migration_events)
        qmp_emit(control->qmp, "MIGRATION",
                 json_pack("{s:s}", "status", update_status_name(report->status)));
    if (report->status == UPDATE_COMPLETED && report->incoming)
        take_over(control);
    else if (report->status == UPDATE_COMPLETED)
        leave(control);
    if (!update_is_under_way(report->status))
        forget_update(control);
}

void control_quit(struct control *control)
{
    if (control->machine && !control->handed_over) {
        machine_quit(control->machine);
        return;
    }
    on_machine_event(control, MACHINE_EVENT_SHUTDOWN_HOST, 0);
    sd_event_exit(control->loop, 0);
}

void control_signal(struct control *control)
{
    control->by_signal = true;
    control_quit(control);
}
