/* SPDX-License-Identifier: Apache-2.0
 *
 * The QMP commands: QEMU's names and shapes for what baton has. Each gets arguments that fit its
 * row of the table at the end. Main thread, from the QMP server.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/trace.h"
#include "base/util.h"
#include "control/control_internal.h"

/* The machine, for commands that change what the guest does; NULL, with the error set, while the
 * guest is somewhere else. */
static struct machine *guest(const struct control *control, struct error *error)
{
    enum machine_status status = MACHINE_INMIGRATE;

    if (control->handed_over)
        status = MACHINE_POSTMIGRATE;
    else if (control->machine)
        status = machine_status(control->machine);
    if (status == MACHINE_INMIGRATE)
        error_set(error, EBUSY, "the guest is not here yet (status 'inmigrate')");
    else if (status == MACHINE_POSTMIGRATE)
        error_set(error, EBUSY, "the guest runs in another process now (status 'postmigrate')");
    else
        return control->machine;
    return NULL;
}

static int query_version(void *opaque, const json_t *arguments, json_t **result,
                         struct error *error)
{
    json_t *greeting = qmp_greeting();

    *result = json_incref(json_object_get(json_object_get(greeting, "QMP"), "version"));
    json_decref(greeting);
    return 0;
}

static int query_status(void *opaque, const json_t *arguments, json_t **result, struct error *error)
{
    const struct control *control = opaque;
    enum machine_status status = MACHINE_INMIGRATE;

    if (control->handed_over)
        status = MACHINE_POSTMIGRATE;
    else if (control->machine)
        status = machine_status(control->machine);
    *result = json_pack("{s:s,s:b}", "status", machine_status_name(status), "running",
                        status == MACHINE_RUNNING);
    return 0;
}

static int query_name(void *opaque, const json_t *arguments, json_t **result, struct error *error)
{
    const struct control *control = opaque;

    if (control->name[0])
        *result = json_pack("{s:s}", "name", control->name);
    return 0;
}

static int stop(void *opaque, const json_t *arguments, json_t **result, struct error *error)
{
    struct machine *machine = guest(opaque, error);

    return machine ? machine_stop(machine, error) : -error->code;
}

static int cont(void *opaque, const json_t *arguments, json_t **result, struct error *error)
{
    struct machine *machine = guest(opaque, error);

    return machine ? machine_run(machine, error) : -error->code;
}

static int quit(void *opaque, const json_t *arguments, json_t **result, struct error *error)
{
    control_quit(opaque);
    return 0;
}

static int system_powerdown(void *opaque, const json_t *arguments, json_t **result,
                            struct error *error)
{
    struct machine *machine = guest(opaque, error);

    return machine ? machine_powerdown(machine, error) : -error->code;
}

static int system_reset(void *opaque, const json_t *arguments, json_t **result, struct error *error)
{
    struct machine *machine = guest(opaque, error);

    return machine ? machine_reset(machine, error) : -error->code;
}

static int set_parameters(void *opaque, const json_t *arguments, json_t **result,
                          struct error *error)
{
    struct control *control = opaque;
    const char *mode = json_string_value(json_object_get(arguments, "mode"));

    if (mode == NULL)
        return 0;
    if (strcmp(mode, "normal") != 0 && strcmp(mode, "cpr-transfer") != 0)
        return error_set(error, EINVAL,
                         "parameter 'mode' does not accept '%.100s': baton has "
                         "'normal' and 'cpr-transfer'",
                         mode);
    control->cpr_transfer = strcmp(mode, "cpr-transfer") == 0;
    return 0;
}

static int query_parameters(void *opaque, const json_t *arguments, json_t **result,
                            struct error *error)
{
    const struct control *control = opaque;

    *result = json_pack("{s:s}", "mode", control->cpr_transfer ? "cpr-transfer" : "normal");
    return 0;
}

/* One element of migrate-set-capabilities. */
static int check_capability(const json_t *element, struct error *error)
{
    const char *name = json_string_value(json_object_get(element, "capability"));
    const json_t *state = json_object_get(element, "state");

    if (name == NULL || !json_is_boolean(state) || json_object_size(element) != 2)
        return error_set(error, EINVAL,
                         "parameter 'capabilities' must hold objects with "
                         "'capability', a string, and 'state', true or false");
    if (strcmp(name, "events") != 0)
        return error_set(error, EINVAL,
                         "migration capability '%.100s' is unknown: baton has "
                         "'events'",
                         name);
    return 0;
}

static int set_capabilities(void *opaque, const json_t *arguments, json_t **result,
                            struct error *error)
{
    const json_t *list = json_object_get(arguments, "capabilities");
    struct control *control = opaque;
    json_t *element;
    size_t i;

    /* All or nothing. */
    json_array_foreach(list, i, element)
    {
        int ret = check_capability(element, error);

        if (ret < 0)
            return ret;
    }
    json_array_foreach(list, i, element) control->migration_events =
        json_is_true(json_object_get(element, "state"));
    return 0;
}

static int query_capabilities(void *opaque, const json_t *arguments, json_t **result,
                              struct error *error)
{
    const struct control *control = opaque;

    *result =
        json_pack("[{s:s,s:b}]", "capability", "events", "state", (int)control->migration_events);
    return 0;
}

static bool has_string(const json_t *object, const char *key, const char *value)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text != NULL && strcmp(text, value) == 0;
}

/* The cpr channel's path. */
static int parse_cpr(const json_t *channel, const char **path, struct error *error)
{
    const json_t *address = json_object_get(channel, "addr");

    if (*path != NULL)
        return error_set(error, EINVAL, "migrate: two channels of type 'cpr'");
    *path = json_string_value(json_object_get(address, "path"));
    if (!has_string(address, "transport", "socket") || !has_string(address, "type", "unix") ||
        *path == NULL || (*path)[0] == '\0')
        return error_set(error, EINVAL,
                         "migrate: the cpr channel's 'addr' must have transport "
                         "'socket', type 'unix' and a path");
    return 0;
}

/* Finds the cpr channel. The main channel is QEMU's for device state; baton needs none. */
static int parse_channels(const json_t *channels, const char **path, struct error *error)
{
    json_t *channel;
    size_t i;

    json_array_foreach(channels, i, channel)
    {
        int ret = 0;

        if (has_string(channel, "channel-type", "cpr"))
            ret = parse_cpr(channel, path, error);
        else if (!has_string(channel, "channel-type", "main"))
            ret = error_set(error, EINVAL,
                            "migrate: member %zu of 'channels' has neither type "
                            "'main' nor 'cpr'",
                            i);
        if (ret < 0)
            return ret;
    }
    if (*path == NULL)
        return error_set(error, EINVAL, "migrate: 'channels' needs a channel of type 'cpr'");
    return 0;
}

/* The one before has ended, or another is refused. One look decides, since its thread may end it at
 * any moment; whoever waits for that hears of it before the next one begins. */
static int end_previous(struct control *control, struct error *error)
{
    struct blocker_list list = {0};
    struct update_report report;
    int ret;

    update_report(control->update, &report);
    if (!update_is_under_way(report.status)) {
        control_progress(control, &report);
        return 0;
    }
    update_blockers(control->machine, &report, &list);
    ret = blocker_error(&list, EBUSY, error);
    blocker_list_clear(&list);
    return ret;
}

static int start_update(struct control *control, const char *path, bool dry_run,
                        struct error *error)
{
    struct fdset fds = {0};
    struct machine *machine;
    int ret = control->update ? end_previous(control, error) : 0;

    if (ret < 0)
        return error_prefix(error, "migrate: ");
    machine = guest(control, error);
    if (machine == NULL)
        return -error->code;
    control->report = (struct update_report){.status = UPDATE_NONE};
    ret = control_describe(control, &fds, error);
    if (ret == 0)
        ret = update_start(&control->update, machine, path, &fds, dry_run, control_progress,
                           control, error);
    fdset_clear(&fds);
    return ret;
}

static int migrate(void *opaque, const json_t *arguments, json_t **result, struct error *error)
{
    struct control *control = opaque;
    const char *path = NULL;
    int ret;

    if (json_object_get(arguments, "uri"))
        return error_set(error, EINVAL,
                         "migrate: 'uri' cannot carry descriptors: give 'channels' "
                         "with one of type 'cpr'");
    if (!control->cpr_transfer)
        return error_set(error, EINVAL,
                         "migrate: baton hands a guest over on the same host only: "
                         "set parameter 'mode' to 'cpr-transfer' first");
    ret = parse_channels(json_object_get(arguments, "channels"), &path, error);
    if (ret < 0)
        return ret;
    return start_update(control, path, json_is_true(json_object_get(arguments, "dry-run")), error);
}

static int migrate_cancel(void *opaque, const json_t *arguments, json_t **result,
                          struct error *error)
{
    struct control *control = opaque;
    struct update_report report;

    /* As in QEMU, nothing to cancel is no error. */
    if (control->update == NULL)
        return 0;
    update_report(control->update, &report);
    return update_is_under_way(report.status) ? update_cancel(control->update, error) : 0;
}

static json_int_t round_up_ms(uint64_t ns)
{
    return (json_int_t)((ns + 999999) / 1000000);
}

static json_t *prediction_details(const struct update_prediction *prediction)
{
    return json_pack("{s:I,s:I,s:I,s:I}", "blackout-ns", (json_int_t)prediction->blackout_ns,
                     "save-ns", (json_int_t)prediction->save_ns, "load-ns",
                     (json_int_t)prediction->load_ns, "trip-ns", (json_int_t)prediction->trip_ns);
}

/* What QEMU has no words for. */
static json_t *report_details(const struct update_report *report)
{
    json_t *stages = json_array(), *vcpus = json_array(), *details;

    for (uint32_t i = 0; i < MIN(report->stage_count, (uint32_t)UPDATE_STAGES_MAX); i++) {
        const struct update_stage_time *stage = &report->stages[i];

        json_array_append_new(stages, json_pack("{s:s,s:I,s:I,s:I,s:I}", "name", stage->name,
                                                "start-ns", (json_int_t)stage->start_ns, "end-ns",
                                                (json_int_t)stage->end_ns, "incoming-ns",
                                                (json_int_t)stage->incoming_ns, "bytes",
                                                (json_int_t)stage->bytes));
    }
    for (uint32_t i = 0; i < MIN(report->vcpu_count, (uint32_t)UPDATE_VCPUS_MAX); i++)
        json_array_append_new(vcpus,
                              json_pack("{s:I,s:I}", "out-ns", (json_int_t)report->vcpu_out_ns[i],
                                        "in-ns", (json_int_t)report->vcpu_in_ns[i]));
    details =
        json_pack("{s:b,s:i,s:I,s:I,s:o,s:o}", "incoming", (int)report->incoming, "generation",
                  (int)report->generation, "blackout-ns", (json_int_t)report->blackout_ns,
                  "total-ns", (json_int_t)report->total_ns, "stages", stages, "vcpus", vcpus);
    if (report->dry_run)
        json_object_set_new(details, "dry-run", json_true());
    if (report->status == UPDATE_REHEARSED)
        json_object_set_new(details, "prediction", prediction_details(&report->prediction));
    return details;
}

/* The last hand-over, or the one under way: what QEMU says of a migration. */
static json_t *describe_report(const struct update_report *report)
{
    json_t *result = json_pack("{s:s,s:I}", "status", update_status_name(report->status),
                               "total-time", round_up_ms(report->total_ns));

    if (report->status == UPDATE_COMPLETED)
        json_object_set_new(result, "downtime", json_integer(round_up_ms(report->blackout_ns)));
    if (report->status == UPDATE_REHEARSED)
        json_object_set_new(result, "expected-downtime",
                            json_integer(round_up_ms(report->prediction.blackout_ns)));
    if (report->status == UPDATE_FAILED)
        json_object_set_new(result, "error-desc", json_string(report->error));
    json_object_set_new(result, "baton", report_details(report));
    return result;
}

/* Adds what makes a hand-over impossible now: for QEMU's clients as lines, and taken apart. */
static void add_blockers(json_t *result, const struct blocker_list *list)
{
    json_t *lines = json_array(), *parts = json_array();
    char line[BLOCKER_LINE_SIZE];

    for (unsigned i = 0; i < list->count; i++) {
        const struct blocker *blocker = &list->blockers[i];

        json_array_append_new(lines, json_string(blocker_describe(blocker, line)));
        json_array_append_new(parts, json_pack("{s:s,s:s,s:s}", "object", blocker->object, "reason",
                                               blocker->reason, "remedy", blocker->remedy));
    }
    json_object_set_new(result, "blocked-reasons", lines);
    if (json_object_get(result, "baton") == NULL)
        json_object_set_new(result, "baton", json_object());
    json_object_set_new(json_object_get(result, "baton"), "blockers", parts);
}

static int query_migrate(void *opaque, const json_t *arguments, json_t **result,
                         struct error *error)
{
    struct control *control = opaque;
    struct update_report report = control->report;
    struct blocker_list list = {0};
    struct error elsewhere;
    struct machine *machine = guest(control, &elsewhere);

    if (control->update)
        update_report(control->update, &report);
    if (report.status != UPDATE_NONE)
        *result = describe_report(&report);
    if (machine)
        update_blockers(machine, &report, &list);
    if (list.count > 0) {
        if (*result == NULL)
            *result = json_object();
        add_blockers(*result, &list);
    }
    blocker_list_clear(&list);
    return 0;
}

/* --- trace events -------------------------------------------------------------------------- */

static int trace_get_state(void *opaque, const json_t *arguments, json_t **result,
                           struct error *error)
{
    const char *pattern = json_string_value(json_object_get(arguments, "name"));
    int ret = trace_check(pattern, error);

    if (ret < 0)
        return ret;
    *result = json_array();
    for (unsigned i = 0; i < TRACE_EVENT_COUNT; i++) {
        if (trace_matches(i, pattern))
            json_array_append_new(*result, json_pack("{s:s,s:s}", "name", trace_name(i), "state",
                                                     trace_is_on(i) ? "enabled" : "disabled"));
    }
    return 0;
}

static int trace_set_state(void *opaque, const json_t *arguments, json_t **result,
                           struct error *error)
{
    return trace_switch(json_string_value(json_object_get(arguments, "name")),
                        json_is_true(json_object_get(arguments, "enable")), error);
}

const struct qmp_command *control_commands(size_t *count)
{
    static const struct qmp_command commands[] = {
        {"query-version", query_version, {{0}}},
        {"query-status", query_status, {{0}}},
        {"query-name", query_name, {{0}}},
        {"stop", stop, {{0}}},
        {"cont", cont, {{0}}},
        {"quit", quit, {{0}}},
        {"system_powerdown", system_powerdown, {{0}}},
        {"system_reset", system_reset, {{0}}},
        {"migrate-set-parameters", set_parameters, {{"mode", QMP_STRING, false}}},
        {"query-migrate-parameters", query_parameters, {{0}}},
        {"migrate-set-capabilities", set_capabilities, {{"capabilities", QMP_ARRAY, true}}},
        {"query-migrate-capabilities", query_capabilities, {{0}}},
        /* "detach" is QEMU's, which ignores it too: the command always returns at once. */
        {"migrate",
         migrate,
         {{"channels", QMP_ARRAY, false},
          {"uri", QMP_STRING, false},
          {"detach", QMP_BOOL, false},
          {"dry-run", QMP_BOOL, false}}},
        {"query-migrate", query_migrate, {{0}}},
        {"migrate_cancel", migrate_cancel, {{0}}},
        {"trace-event-get-state", trace_get_state, {{"name", QMP_STRING, true}}},
        /* "ignore-unavailable" is QEMU's: here every event is available. */
        {"trace-event-set-state",
         trace_set_state,
         {{"name", QMP_STRING, true},
          {"enable", QMP_BOOL, true},
          {"ignore-unavailable", QMP_BOOL, false}}},
    };

    *count = ARRAY_SIZE(commands);
    return commands;
}
