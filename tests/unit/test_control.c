/* SPDX-License-Identifier: Apache-2.0
 *
 * Commands, events and the life of the control socket, with a machine and a hand-over of the
 * test's own: the functions of machine/ and update/ that control/ calls are defined here.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/unix_socket.h"
#include "base/util.h"
#include "control/control.h"
#include "control/qmp.h"
#include "control/runtime.h"

struct machine {
    struct config config;
    enum machine_status status;
    machine_event_fn *handler;
    void *opaque;
    sd_event *loop;
    unsigned resets, powerdowns;
    const char *blocker; /* reason, or NULL */
    bool let_go;
};

struct update {
    struct update_report report;
    struct fixture *fixture;
    char path[128];
    unsigned descriptors;
    bool cancelled;
    bool fails_after_look; /* its thread ends it just after it was looked at */
};

struct fixture {
    sd_event *loop;
    struct machine machine;
    struct control *control;
    struct update *update; /* borrowed */
    char directory[64];
    int fd;
};

static struct fixture *fixture_of(struct machine *machine)
{
    return container_of(machine, struct fixture, machine);
}

const char *machine_status_name(enum machine_status status)
{
    static const char *const names[] = {
        [MACHINE_PRELAUNCH] = "prelaunch",
        [MACHINE_INMIGRATE] = "inmigrate",
        [MACHINE_RUNNING] = "running",
        [MACHINE_PAUSED] = "paused",
        [MACHINE_FINISH_MIGRATE] = "finish-migrate",
        [MACHINE_POSTMIGRATE] = "postmigrate",
        [MACHINE_SHUTDOWN] = "shutdown",
        [MACHINE_INTERNAL_ERROR] = "internal-error",
    };

    return names[status];
}

void machine_set_event_handler(struct machine *machine, machine_event_fn *handler, void *opaque)
{
    machine->handler = handler;
    machine->opaque = opaque;
}

const struct config *machine_config(const struct machine *machine)
{
    return &machine->config;
}

enum machine_status machine_status(const struct machine *machine)
{
    return machine->status;
}

static void happen(struct machine *machine, enum machine_event event)
{
    machine->handler(machine->opaque, event, 0);
}

void machine_let_go(struct machine *machine)
{
    machine->let_go = true;
}

int machine_run(struct machine *machine, struct error *error)
{
    machine->status = MACHINE_RUNNING;
    happen(machine, MACHINE_EVENT_RESUME);
    return 0;
}

int machine_stop(struct machine *machine, struct error *error)
{
    if (machine->status == MACHINE_SHUTDOWN)
        return error_set(error, EBUSY, "the guest has powered off");
    machine->status = MACHINE_PAUSED;
    happen(machine, MACHINE_EVENT_STOP);
    return 0;
}

int machine_reset(struct machine *machine, struct error *error)
{
    machine->resets++;
    happen(machine, MACHINE_EVENT_RESET_HOST);
    return 0;
}

int machine_powerdown(struct machine *machine, struct error *error)
{
    machine->powerdowns++;
    happen(machine, MACHINE_EVENT_POWERDOWN);
    return 0;
}

void machine_quit(struct machine *machine)
{
    happen(machine, MACHINE_EVENT_SHUTDOWN_HOST);
    sd_event_exit(machine->loop, 0);
}

const char *update_status_name(enum update_status status)
{
    static const char *const names[] = {"none",   "setup",      "active",
                                        "device", "cancelling", "cancelled",
                                        "failed", "completed",  "rehearsed"};

    return names[status];
}

bool update_is_under_way(enum update_status status)
{
    return status == UPDATE_SETUP || status == UPDATE_ACTIVE || status == UPDATE_DEVICE;
}

void update_blockers(struct machine *machine, const struct update_report *last,
                     struct blocker_list *list)
{
    if (update_is_under_way(last->status))
        blocker_add(list, "guest", "one is under way", "wait");
    else if (machine->blocker)
        blocker_add(list, "device 'a'", machine->blocker, "");
}

int update_start(struct update **update, struct machine *machine, const char *path,
                 const struct fdset *extra, bool dry_run, update_progress_fn *progress,
                 void *opaque, struct error *error)
{
    if (strcmp(path, "/refuse") == 0)
        return error_set(error, EINVAL, "refused");
    *update = calloc(1, sizeof(**update));
    (*update)->fixture = fixture_of(machine);
    (*update)->report.status = UPDATE_SETUP;
    (*update)->report.dry_run = dry_run;
    (*update)->descriptors = (unsigned)extra->count;
    snprintf((*update)->path, sizeof((*update)->path), "%s", path);
    fixture_of(machine)->update = *update;
    return 0;
}

int update_cancel(struct update *update, struct error *error)
{
    if (update->report.status == UPDATE_DEVICE)
        return error_set(error, EBUSY, "past the commit point");
    update->cancelled = true;
    return 0;
}

void update_report(struct update *update, struct update_report *report)
{
    *report = update->report;
    if (update->fails_after_look)
        update->report.status = UPDATE_FAILED;
}

void update_destroy(struct update *update)
{
    update->fixture->update = NULL;
    free(update);
}

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));

    strcpy(fixture->directory, "/tmp/test_control.XXXXXX");
    assert_non_null(mkdtemp(fixture->directory));
    setenv("BATON_RUNTIME_DIR", fixture->directory, 1);
    assert_true(sd_event_new(&fixture->loop) >= 0);
    fixture->machine.loop = fixture->loop;
    fixture->machine.config.cpus = 1;
    strcpy(fixture->machine.config.name, "web1");
    fixture->fd = -1;
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;

    close_fd(fixture->fd);
    if (fixture->control)
        control_destroy(fixture->control);
    sd_event_unref(fixture->loop);
    assert_int_equal(rmdir(fixture->directory), 0);
    free(fixture);
    return 0;
}

static void run_loop(struct fixture *fixture)
{
    while (sd_event_get_state(fixture->loop) != SD_EVENT_FINISHED &&
           sd_event_run(fixture->loop, 0) > 0)
        ;
}

static bool has_ended(const struct fixture *fixture)
{
    return sd_event_get_state(fixture->loop) == SD_EVENT_FINISHED;
}

static json_t *hear(struct fixture *fixture)
{
    char line[8192];
    size_t used = 0;

    run_loop(fixture);
    while (used < sizeof(line) && recv(fixture->fd, line + used, 1, MSG_DONTWAIT) == 1) {
        if (line[used++] == '\n')
            return json_loadb(line, used, 0, NULL);
    }
    return NULL;
}

static void expect(struct fixture *fixture, const char *json)
{
    json_t *message = hear(fixture), *expected = json_loads(json, 0, NULL);
    char *text;

    assert_non_null(expected);
    json_object_del(message, "timestamp");
    text = message ? json_dumps(message, 0) : strdup("nothing");
    if (!json_equal(message, expected))
        fail_msg("'%s' instead of '%s'", text, json);
    free(text);
    json_decref(message);
    json_decref(expected);
}

static void say(struct fixture *fixture, const char *text)
{
    assert_int_equal(send(fixture->fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

/* A command and its answer. */
static void check(struct fixture *fixture, const char *request, const char *answer)
{
    say(fixture, request);
    expect(fixture, answer);
}

static void check_error(struct fixture *fixture, const char *request, const char *text)
{
    json_t *message;

    say(fixture, request);
    message = hear(fixture);
    const char *desc =
        json_string_value(json_object_get(json_object_get(message, "error"), "desc"));

    if (desc == NULL || strstr(desc, text) == NULL)
        fail_msg("%s: '%s' lacks '%s'", request, desc ? desc : "no error", text);
    json_decref(message);
}

static char *own_path(char path[RUNTIME_PATH_SIZE])
{
    struct error error = {0};

    assert_int_equal(runtime_path(path, "web1", RUNTIME_QMP, &error), 0);
    return path;
}

static void start_client(struct fixture *fixture, const char *path)
{
    fixture->fd = qmp_connect(path, NULL);
    assert_true(fixture->fd >= 0);
    json_decref(hear(fixture));
    check(fixture, "{\"execute\":\"qmp_capabilities\"}", "{\"return\":{}}");
}

/* A control with a machine, and a client. */
static void start(struct fixture *fixture)
{
    char path[RUNTIME_PATH_SIZE];
    struct error error = {0};

    assert_int_equal(
        control_create(&fixture->control, &fixture->machine.config, fixture->loop, &error), 0);
    assert_int_equal(control_attach(fixture->control, &fixture->machine, &error), 0);
    start_client(fixture, own_path(path));
}

static void queries(void **state)
{
    struct fixture *fixture = *state;
    json_t *message;

    start(fixture);
    check(fixture, "{\"execute\":\"query-name\"}", "{\"return\":{\"name\":\"web1\"}}");
    check(fixture, "{\"execute\":\"query-status\"}",
          "{\"return\":{\"status\":\"prelaunch\",\"running\":false}}");
    say(fixture, "{\"execute\":\"query-version\"}");
    message = hear(fixture);
    assert_string_equal(
        json_string_value(json_object_get(json_object_get(message, "return"), "package")),
        "baton-" BATON_VERSION);
    json_decref(message);
    check(fixture, "{\"execute\":\"query-migrate\"}", "{\"return\":{}}");
    check(fixture, "{\"execute\":\"query-migrate-parameters\"}",
          "{\"return\":{\"mode\":\"normal\"}}");
    check(fixture, "{\"execute\":\"query-migrate-capabilities\"}",
          "{\"return\":[{\"capability\":\"events\",\"state\":false}]}");
}

static void machine_commands(void **state)
{
    struct fixture *fixture = *state;

    start(fixture);
    check(fixture, "{\"execute\":\"cont\"}", "{\"event\":\"RESUME\"}");
    expect(fixture, "{\"return\":{}}");
    check(fixture, "{\"execute\":\"query-status\"}",
          "{\"return\":{\"status\":\"running\",\"running\":true}}");
    check(fixture, "{\"execute\":\"stop\"}", "{\"event\":\"STOP\"}");
    expect(fixture, "{\"return\":{}}");
    check(fixture, "{\"execute\":\"system_powerdown\"}", "{\"event\":\"POWERDOWN\"}");
    expect(fixture, "{\"return\":{}}");
    check(fixture, "{\"execute\":\"system_reset\"}",
          "{\"event\":\"RESET\",\"data\":{\"guest\":false,\"reason\":\"host-qmp-system-reset\"}}");
    expect(fixture, "{\"return\":{}}");
    assert_int_equal(fixture->machine.resets, 1);
    assert_int_equal(fixture->machine.powerdowns, 1);
    happen(&fixture->machine, MACHINE_EVENT_RESET_GUEST);
    expect(fixture, "{\"event\":\"RESET\",\"data\":{\"guest\":true,\"reason\":\"guest-reset\"}}");
    happen(&fixture->machine, MACHINE_EVENT_SHUTDOWN_GUEST);
    expect(fixture,
           "{\"event\":\"SHUTDOWN\",\"data\":{\"guest\":true,\"reason\":\"guest-shutdown\"}}");
    fixture->machine.status = MACHINE_SHUTDOWN;
    check_error(fixture, "{\"execute\":\"stop\"}", "powered off");
}

static void quit_command(void **state)
{
    struct fixture *fixture = *state;

    start(fixture);
    check(fixture, "{\"execute\":\"quit\"}",
          "{\"event\":\"SHUTDOWN\",\"data\":{\"guest\":false,\"reason\":\"host-qmp-quit\"}}");
    expect(fixture, "{\"return\":{}}");
    assert_true(has_ended(fixture));
}

static void quit_signal(void **state)
{
    struct fixture *fixture = *state;

    start(fixture);
    control_signal(fixture->control);
    expect(fixture,
           "{\"event\":\"SHUTDOWN\",\"data\":{\"guest\":false,\"reason\":\"host-signal\"}}");
    assert_true(has_ended(fixture));
}

static void migration_settings(void **state)
{
    struct fixture *fixture = *state;

    start(fixture);
    check_error(fixture,
                "{\"execute\":\"migrate-set-parameters\",\"arguments\":{\"mode\":\"cpr-exec\"}}",
                "cpr-exec");
    check_error(fixture,
                "{\"execute\":\"migrate-set-parameters\",\"arguments\":{\"max-bandwidth\":1}}",
                "max-bandwidth");
    check(fixture,
          "{\"execute\":\"migrate-set-parameters\",\"arguments\":{\"mode\":\"cpr-transfer\"}}",
          "{\"return\":{}}");
    check(fixture, "{\"execute\":\"query-migrate-parameters\"}",
          "{\"return\":{\"mode\":\"cpr-transfer\"}}");
#define SET "{\"execute\":\"migrate-set-capabilities\",\"arguments\":{\"capabilities\":"
    check_error(fixture,
                SET "[{\"capability\":\"events\",\"state\":true},"
                    "{\"capability\":\"multifd\",\"state\":true}]}}",
                "multifd");
    check(fixture, "{\"execute\":\"query-migrate-capabilities\"}",
          "{\"return\":[{\"capability\":\"events\",\"state\":false}]}"); /* all or nothing */
    check_error(fixture, SET "[{\"capability\":\"events\",\"state\":1}]}}", "state");
    check_error(fixture, SET "[7]}}", "capabilities");
    check_error(fixture, SET "[{\"capability\":\"events\",\"state\":true,\"x\":1}]}}",
                "capabilities");
    check(fixture, SET "[{\"capability\":\"events\",\"state\":true}]}}", "{\"return\":{}}");
    check(fixture, "{\"execute\":\"query-migrate-capabilities\"}",
          "{\"return\":[{\"capability\":\"events\",\"state\":true}]}");
}

#define MIGRATE "{\"execute\":\"migrate\",\"arguments\":"
#define MAIN                                                                                       \
    "{\"channel-type\":\"main\",\"addr\":{\"transport\":\"socket\",\"type\":\"inet\","             \
    "\"host\":\"0\",\"port\":\"44444\"}}"
#define CPR(path)                                                                                  \
    "{\"channel-type\":\"cpr\",\"addr\":{\"transport\":\"socket\",\"type\":\"unix\",\"path\":"     \
    "\"" path "\"}}"

static void prepare_migration(struct fixture *fixture)
{
    start(fixture);
    fixture->machine.status = MACHINE_RUNNING;
    check(fixture,
          "{\"execute\":\"migrate-set-parameters\",\"arguments\":{\"mode\":\"cpr-transfer\"}}",
          "{\"return\":{}}");
    check(fixture, SET "[{\"capability\":\"events\",\"state\":true}]}}", "{\"return\":{}}");
}

static void migrate_refused(void **state)
{
    struct fixture *fixture = *state;

    start(fixture);
    check_error(fixture, MIGRATE "{\"channels\":[" CPR("c") "]}}", "'mode'");
    check_error(fixture, MIGRATE "{\"uri\":\"tcp:0:1\"}}", "'uri'");
    close_fd(STEAL_FD(fixture->fd));
    control_destroy(STEAL_POINTER(fixture->control));
    prepare_migration(fixture);
    check_error(fixture, "{\"execute\":\"migrate\"}", "'cpr'");
    check_error(fixture, MIGRATE "{\"channels\":[]}}", "'cpr'");
    check_error(fixture, MIGRATE "{\"channels\":[" MAIN "]}}", "'cpr'");
    check_error(fixture, MIGRATE "{\"channels\":[7]}}", "member 0");
    check_error(fixture, MIGRATE "{\"channels\":[{\"channel-type\":\"cpr\"}]}}", "addr");
    check_error(fixture, MIGRATE "{\"channels\":[{\"channel-type\":\"cpr\",\"addr\":7}]}}", "addr");
    check_error(fixture, MIGRATE "{\"channels\":[" CPR("") "]}}", "path");
    check_error(fixture, MIGRATE "{\"channels\":[" CPR("a") "," CPR("b") "]}}", "two channels");
    check_error(fixture, MIGRATE "{\"channels\":[" CPR("a") "],\"resume\":true}}", "resume");
    check_error(fixture, MIGRATE "{\"channels\":[" CPR("/refuse") "]}}", "refused");
    check(fixture, "{\"execute\":\"query-migrate\"}", "{\"return\":{}}");
    assert_null(fixture->update);
}

/* One step of the other side of the seam. */
static void progress(struct fixture *fixture, enum update_status status, uint32_t stages)
{
    struct update_report *report = &fixture->update->report;

    report->status = status;
    report->stage_count = stages;
    for (uint32_t i = 0; i < stages; i++)
        report->stages[i] = (struct update_stage_time){"hello", 100 + i, 200 + i, 10, 30};
    control_progress(fixture->control, report);
}

static void migrate_completed(void **state)
{
    struct fixture *fixture = *state;
    char path[RUNTIME_PATH_SIZE];

    prepare_migration(fixture);
    check(fixture, MIGRATE "{\"channels\":[" MAIN "," CPR("cpr.sock") "]}}", "{\"return\":{}}");
    assert_string_equal(fixture->update->path, "cpr.sock");
    assert_int_equal(fixture->update->descriptors, 2); /* the listening socket, the log */
    check_error(fixture, MIGRATE "{\"channels\":[" CPR("a") "]}}", "under way");
    progress(fixture, UPDATE_SETUP, 0);
    expect(fixture, "{\"event\":\"MIGRATION\",\"data\":{\"status\":\"setup\"}}");
    progress(fixture, UPDATE_SETUP, 1);
    expect(fixture, "{\"event\":\"BATON_UPDATE_STAGE\",\"data\":{\"name\":\"hello\","
                    "\"start-ns\":100,\"end-ns\":200,\"incoming-ns\":10,\"bytes\":30}}");
    progress(fixture, UPDATE_ACTIVE, 2);
    expect(fixture, "{\"event\":\"BATON_UPDATE_STAGE\",\"data\":{\"name\":\"hello\","
                    "\"start-ns\":101,\"end-ns\":201,\"incoming-ns\":10,\"bytes\":30}}");
    expect(fixture, "{\"event\":\"MIGRATION\",\"data\":{\"status\":\"active\"}}");
    fixture->update->report.blackout_ns = 400001;
    fixture->update->report.total_ns = 12000000;
    fixture->update->report.vcpu_count = 1;
    fixture->update->report.vcpu_out_ns[0] = 5;
    fixture->update->report.vcpu_in_ns[0] = 6;
    fixture->machine.status = MACHINE_POSTMIGRATE;
    assert_false(fixture->machine.let_go);
    progress(fixture, UPDATE_COMPLETED, 2);
    assert_true(fixture->machine.let_go);
    assert_null(fixture->update); /* nor does it hold anything else that the other one has now */
    expect(fixture, "{\"event\":\"MIGRATION\",\"data\":{\"status\":\"completed\"}}");
    /* The client is served on; nobody new is, and the path is not ours any more. */
    assert_false(has_ended(fixture));
    assert_int_equal(qmp_connect(own_path(path), NULL), -ECONNREFUSED);
    check(fixture, "{\"execute\":\"query-status\"}",
          "{\"return\":{\"status\":\"postmigrate\",\"running\":false}}");
    check(fixture, "{\"execute\":\"query-migrate\"}",
          "{\"return\":{\"status\":\"completed\",\"total-time\":12,\"downtime\":1,\"baton\":{"
          "\"incoming\":false,\"generation\":0,\"blackout-ns\":400001,\"total-ns\":12000000,"
          "\"stages\":[{\"name\":\"hello\",\"start-ns\":100,\"end-ns\":200,\"incoming-ns\":10,"
          "\"bytes\":30},"
          "{\"name\":\"hello\",\"start-ns\":101,\"end-ns\":201,\"incoming-ns\":10,\"bytes\":30}],"
          "\"vcpus\":[{\"out-ns\":5,\"in-ns\":6}]}}}");
    check_error(fixture, "{\"execute\":\"cont\"}", "another process");
    check_error(fixture, "{\"execute\":\"system_reset\"}", "another process");
    check_error(fixture, MIGRATE "{\"channels\":[" CPR("a") "]}}", "another process");
    close_fd(STEAL_FD(fixture->fd));
    run_loop(fixture);
    assert_true(has_ended(fixture));
    control_destroy(STEAL_POINTER(fixture->control));
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(unlink(path), 0);
    *strrchr(path, '/') = '\0';
    assert_int_equal(rmdir(path), 0);
}

static void migrate_completed_quit(void **state)
{
    struct fixture *fixture = *state;
    char path[RUNTIME_PATH_SIZE];

    prepare_migration(fixture);
    check(fixture, MIGRATE "{\"channels\":[" CPR("c") "]}}", "{\"return\":{}}");
    progress(fixture, UPDATE_COMPLETED, 0);
    expect(fixture, "{\"event\":\"MIGRATION\",\"data\":{\"status\":\"completed\"}}");
    say(fixture, "{\"execute\":\"quit\"}");
    run_loop(fixture);
    assert_true(has_ended(fixture));
    assert_int_equal(unlink(own_path(path)), 0);
    *strrchr(path, '/') = '\0';
    assert_int_equal(rmdir(path), 0);
}

/* The loop was ended while the hand-over was past its commit point: paths are the other's. */
static void migrate_completed_unseen(void **state)
{
    struct fixture *fixture = *state;
    char path[RUNTIME_PATH_SIZE];

    prepare_migration(fixture);
    check(fixture, MIGRATE "{\"channels\":[" CPR("c") "]}}", "{\"return\":{}}");
    fixture->machine.status = MACHINE_POSTMIGRATE;
    control_detach(fixture->control);
    control_destroy(STEAL_POINTER(fixture->control));
    assert_false(fixture->machine.let_go);
    assert_int_equal(unlink(own_path(path)), 0);
    *strrchr(path, '/') = '\0';
    assert_int_equal(rmdir(path), 0);
}

static void migrate_failed(void **state)
{
    struct fixture *fixture = *state;

    prepare_migration(fixture);
    check(fixture, "{\"execute\":\"migrate_cancel\"}", "{\"return\":{}}");
    check(fixture, MIGRATE "{\"channels\":[" CPR("c") "]}}", "{\"return\":{}}");
    strcpy(fixture->update->report.error, "prepare: 'nvme0' is missing");
    progress(fixture, UPDATE_FAILED, 0);
    assert_null(fixture->update);
    expect(fixture, "{\"event\":\"MIGRATION\",\"data\":{\"status\":\"failed\"}}");
    check(fixture, "{\"execute\":\"query-migrate\"}",
          "{\"return\":{\"status\":\"failed\",\"total-time\":0,\"error-desc\":"
          "\"prepare: 'nvme0' is missing\",\"baton\":{\"incoming\":false,\"generation\":0,"
          "\"blackout-ns\":0,\"total-ns\":0,\"stages\":[],\"vcpus\":[]}}}");
    check(fixture, "{\"execute\":\"query-status\"}",
          "{\"return\":{\"status\":\"running\",\"running\":true}}");
    /* And another try. */
    check(fixture, MIGRATE "{\"channels\":[" CPR("d") "]}}", "{\"return\":{}}");
    assert_string_equal(fixture->update->path, "d");
    check(fixture, "{\"execute\":\"migrate_cancel\"}", "{\"return\":{}}");
    assert_true(fixture->update->cancelled);
    fixture->update->report.status = UPDATE_DEVICE;
    check_error(fixture, "{\"execute\":\"migrate_cancel\"}", "commit point");
}

/* The thread of a hand-over ends it between two steps of a command: one look at it decides. */
static void migrate_again(void **state)
{
    struct fixture *fixture = *state;

    prepare_migration(fixture);
    check(fixture, MIGRATE "{\"channels\":[" CPR("c") "]}}", "{\"return\":{}}");
    fixture->update->fails_after_look = true;
    check_error(fixture, MIGRATE "{\"channels\":[" CPR("d") "]}}", "under way");
    assert_string_equal(fixture->update->path, "c");
    /* It has ended now, and whoever waits for that is told before the next one begins. */
    check(fixture, MIGRATE "{\"channels\":[" CPR("d") "]}}",
          "{\"event\":\"MIGRATION\",\"data\":{\"status\":\"failed\"}}");
    expect(fixture, "{\"return\":{}}");
    assert_string_equal(fixture->update->path, "d");
    fixture->update->report.status = UPDATE_FAILED;
}

#define PREDICTION "{\"blackout-ns\":1000001,\"save-ns\":1,\"load-ns\":2,\"trip-ns\":3}"

static void migrate_rehearsed(void **state)
{
    struct fixture *fixture = *state;

    prepare_migration(fixture);
    check_error(fixture, MIGRATE "{\"channels\":[" CPR("c") "],\"dry-run\":1}}", "dry-run");
    check(fixture, MIGRATE "{\"channels\":[" CPR("c") "],\"dry-run\":true}}", "{\"return\":{}}");
    assert_true(fixture->update->report.dry_run);
    fixture->update->report.prediction = (struct update_prediction){1, 2, 3, 1000001};
    progress(fixture, UPDATE_REHEARSED, 0);
    expect(fixture, "{\"event\":\"MIGRATION\",\"data\":{\"status\":\"rehearsed\"}}");
    check(fixture, "{\"execute\":\"query-migrate\"}",
          "{\"return\":{\"status\":\"rehearsed\",\"total-time\":0,\"expected-downtime\":2,"
          "\"baton\":{\"incoming\":false,\"generation\":0,\"blackout-ns\":0,\"total-ns\":0,"
          "\"stages\":[],\"vcpus\":[],\"dry-run\":true,\"prediction\":" PREDICTION "}}}");
    check(fixture, "{\"execute\":\"query-status\"}",
          "{\"return\":{\"status\":\"running\",\"running\":true}}");
    /* The real one. */
    check(fixture, MIGRATE "{\"channels\":[" CPR("d") "],\"dry-run\":false}}", "{\"return\":{}}");
    assert_false(fixture->update->report.dry_run);
}

/* A message that was cut within a character, or quotes a name that is not UTF-8. */
static void blockers_are_listed(void **state)
{
    struct fixture *fixture = *state;

    prepare_migration(fixture);
    check(fixture, "{\"execute\":\"query-migrate\"}", "{\"return\":{}}");
    fixture->machine.blocker = "it is old";
    check(fixture, "{\"execute\":\"query-migrate\"}",
          "{\"return\":{\"blocked-reasons\":[\"device 'a': it is old\"],\"baton\":{\"blockers\":["
          "{\"object\":\"device 'a'\",\"reason\":\"it is old\",\"remedy\":\"\"}]}}}");
    fixture->machine.blocker = NULL;
    check(fixture, MIGRATE "{\"channels\":[" CPR("c") "]}}", "{\"return\":{}}");
    check(fixture, "{\"execute\":\"query-migrate\"}",
          "{\"return\":{\"status\":\"setup\",\"total-time\":0,\"blocked-reasons\":["
          "\"guest: one is under way: wait\"],\"baton\":{\"incoming\":false,\"generation\":0,"
          "\"blackout-ns\":0,\"total-ns\":0,\"stages\":[],\"vcpus\":[],\"blockers\":[{\"object\":"
          "\"guest\",\"reason\":\"one is under way\",\"remedy\":\"wait\"}]}}}");
    /* The guest is elsewhere: what it was blocked by is not asked any more. */
    fixture->machine.blocker = "it is old";
    fixture->machine.status = MACHINE_POSTMIGRATE;
    fixture->update->report.status = UPDATE_COMPLETED;
    check(fixture, "{\"execute\":\"query-migrate\"}",
          "{\"return\":{\"status\":\"completed\",\"total-time\":0,\"downtime\":0,\"baton\":{"
          "\"incoming\":false,\"generation\":0,\"blackout-ns\":0,\"total-ns\":0,\"stages\":[],"
          "\"vcpus\":[]}}}");
    fixture->machine.status = MACHINE_RUNNING;
    fixture->update->report.status = UPDATE_FAILED;
}

static void trace_events(void **state)
{
    struct fixture *fixture = *state;

    start(fixture);
#define TRACE_GET(name)                                                                            \
    "{\"execute\":\"trace-event-get-state\",\"arguments\":{\"name\":\"" name "\"}}"
#define TRACE_SET(name, rest)                                                                      \
    "{\"execute\":\"trace-event-set-state\",\"arguments\":{\"name\":\"" name "\"" rest "}}"
    check(fixture, TRACE_GET("vfio_open"),
          "{\"return\":[{\"name\":\"vfio_open\",\"state\":\"disabled\"}]}");
    check(fixture, TRACE_SET("vfio_o*", ",\"enable\":true,\"ignore-unavailable\":true"),
          "{\"return\":{}}");
    check(fixture, TRACE_GET("vfio_open"),
          "{\"return\":[{\"name\":\"vfio_open\",\"state\":\"enabled\"}]}");
    check(fixture, TRACE_SET("*", ",\"enable\":false"), "{\"return\":{}}");
    check(fixture, TRACE_GET("vfio_ope?"),
          "{\"return\":[{\"name\":\"vfio_open\",\"state\":\"disabled\"}]}");
    check(fixture, TRACE_GET("no_such_*"), "{\"return\":[]}");
    check_error(fixture, TRACE_GET("no_such"), "unknown event");
    check_error(fixture, TRACE_SET("no_such", ",\"enable\":true"), "unknown event");
    check_error(fixture, TRACE_SET("*", ""), "enable");
}

static void in_use(void **state)
{
    struct fixture *fixture = *state;
    struct control *second;
    struct error error = {0};
    char pid[16];

    start(fixture);
    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    assert_int_equal(control_create(&second, &fixture->machine.config, fixture->loop, &error),
                     -EADDRINUSE);
    assert_non_null(strstr(error.message, "'web1'"));
    assert_non_null(strstr(error.message, pid));
    /* Nothing of the first one was taken away. */
    check(fixture, "{\"execute\":\"query-name\"}", "{\"return\":{\"name\":\"web1\"}}");
    close_fd(STEAL_FD(fixture->fd));
    start_client(fixture, own_path((char[RUNTIME_PATH_SIZE]){""}));
}

static void runtime_checks(void **state)
{
    struct fixture *fixture = *state;
    char path[RUNTIME_PATH_SIZE];
    struct error error = {0};
    struct stat status;

    assert_int_equal(runtime_create("web1", &error), 0);
    assert_int_equal(runtime_path(path, "web1", NULL, &error), 0);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0700);
    assert_int_equal(chmod(path, 0777), 0);
    assert_int_equal(runtime_create("web1", &error), -EPERM); /* others could put a socket there */
    runtime_remove("web1");
    assert_int_equal(symlink("/tmp", path), 0);
    assert_int_equal(runtime_create("web1", &error), -EPERM);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(runtime_path(path, "../x", NULL, &error), -EINVAL);
    assert_int_equal(runtime_path(path, "..", NULL, &error), -EINVAL);
    assert_int_equal(runtime_path(path, "", NULL, &error), -EINVAL);
    setenv("BATON_RUNTIME_DIR", "relative", 1);
    assert_int_equal(runtime_directory(path, &error), -EINVAL);
    unsetenv("BATON_RUNTIME_DIR");
    setenv("XDG_RUNTIME_DIR", "/user", 1);
    assert_int_equal(runtime_directory(path, &error), 0);
    assert_string_equal(path, "/user/baton");
    unsetenv("XDG_RUNTIME_DIR");
    assert_int_equal(runtime_directory(path, &error), geteuid() == 0 ? 0 : -ENOENT);
    setenv("BATON_RUNTIME_DIR", fixture->directory, 1);
}

/* What is left of updates does not keep the directory; what somebody listens on does. */
static void runtime_leftovers(void **state)
{
    char stale[RUNTIME_PATH_SIZE], directory[RUNTIME_PATH_SIZE];
    struct error error = {0};
    int fd;

    assert_int_equal(runtime_create("web1", &error), 0);
    assert_int_equal(runtime_path(directory, "web1", NULL, &error), 0);
    assert_int_equal(runtime_path(stale, "web1", "cpr.1", &error), 0);
    fd = unix_listen(stale, SOCK_SEQPACKET, 1, &error);
    assert_true(fd >= 0);
    runtime_remove("web1");
    assert_int_equal(access(stale, F_OK), 0);
    close(fd);
    runtime_remove("web1");
    assert_int_equal(access(directory, F_OK), -1);
}

static void pidfile(void **state)
{
    struct fixture *fixture = *state;
    char path[128], text[32] = "";
    int fd;

    snprintf(path, sizeof(path), "%s/pid", fixture->directory);
    strcpy(fixture->machine.config.pidfile, path);
    start(fixture);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_true(read(fd, text, sizeof(text) - 1) > 0);
    close(fd);
    assert_int_equal(atoi(text), getpid());
    control_destroy(STEAL_POINTER(fixture->control));
    assert_int_equal(access(path, F_OK), -1);
    /* Another process's is left alone. */
    fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(write(fd, "1\n", 2), 2);
    close(fd);
    runtime_remove_pidfile(path);
    assert_int_equal(unlink(path), 0);
}

/* Both sides, in one process: what the incoming one answers, and when it takes over. */
static void incoming_side(void **state)
{
    struct fixture *fixture = *state;
    struct config given = {.incoming = true, .qmp_count = 1};
    struct update_report report = {.incoming = true, .status = UPDATE_SETUP};
    struct control *incoming;
    struct machine machine = {.status = MACHINE_INMIGRATE, .loop = fixture->loop};
    struct fdset fds = {0};
    struct error error = {0};
    char path[RUNTIME_PATH_SIZE], saved[RUNTIME_PATH_SIZE];
    int listener;

    start(fixture);
    close_fd(STEAL_FD(fixture->fd));
    machine.config = fixture->machine.config;
    snprintf(given.qmp[0], sizeof(given.qmp[0]), "%s/extra", fixture->directory);
    given.given[CONFIG_OPTION_QMP] = true;
    assert_int_equal(control_create(&incoming, &given, fixture->loop, &error), 0);
    start_client(fixture, given.qmp[0]);
    check(fixture, "{\"execute\":\"query-status\"}",
          "{\"return\":{\"status\":\"inmigrate\",\"running\":false}}");
    check(fixture, "{\"execute\":\"query-name\"}", "{\"return\":{}}");
    check_error(fixture, "{\"execute\":\"cont\"}", "inmigrate");
    /* The named socket arrives. */
    own_path(path);
    listener = qmp_connect(path, NULL);
    assert_true(listener >= 0);
    close(listener);
    strcpy(saved, path);
    {
        struct qmp_server *server;

        /* A stand-in for the outgoing process's server, which is private to its control. */
        control_destroy(STEAL_POINTER(fixture->control));
        assert_int_equal(runtime_create("web1", &error), 0);
        assert_int_equal(qmp_create(&server, fixture->loop, NULL, 0, NULL, NULL, &error), 0);
        assert_int_equal(qmp_listen(server, path, false, &error), 0);
        assert_int_equal(qmp_describe(server, &fds, &error), 0);
        qmp_release(server);
        qmp_destroy(server);
    }
    assert_int_equal(control_adopt(incoming, &machine, &fds, &error), 0);
    assert_int_equal(fds.count, 0);
    check(fixture, "{\"execute\":\"query-name\"}", "{\"return\":{\"name\":\"web1\"}}");
    check_error(fixture, "{\"execute\":\"stop\"}", "inmigrate");
    control_progress(incoming, &report);
    machine.status = MACHINE_RUNNING;
    report.status = UPDATE_COMPLETED;
    control_progress(incoming, &report);
    close_fd(STEAL_FD(fixture->fd));
    start_client(fixture, saved); /* kept, though -qmp did not name it */
    check(fixture, "{\"execute\":\"query-status\"}",
          "{\"return\":{\"status\":\"running\",\"running\":true}}");
    fdset_clear(&fds);
    control_destroy(incoming);
    assert_int_equal(access(saved, F_OK), -1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(queries),
        TEST(machine_commands),
        TEST(quit_command),
        TEST(quit_signal),
        TEST(migration_settings),
        TEST(migrate_refused),
        TEST(migrate_completed),
        TEST(migrate_completed_quit),
        TEST(migrate_completed_unseen),
        TEST(migrate_failed),
        TEST(migrate_again),
        TEST(migrate_rehearsed),
        TEST(blockers_are_listed),
        TEST(trace_events),
        TEST(in_use),
        TEST(runtime_checks),
        TEST(runtime_leftovers),
        TEST(pidfile),
        TEST(incoming_side),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
