/* SPDX-License-Identifier: Apache-2.0
 *
 * "baton update" with processes of the test's own: a server that answers QMP as a script says, in
 * the place of the process that runs the guest, and this very program as the new process, which
 * listens on its channel and does no more.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/util.h"
#include "channel/channel.h"
#include "control/cli.h"
#include "control/qmp.h"
#include "control/runtime.h"

#define PATIENCE_S  60u
#define CLIENTS_MAX 4u

#define MIGRATION(status) "{\"event\":\"MIGRATION\",\"data\":{\"status\":\"" status "\"}}"
#define REFUSAL(text)     "{\"error\":{\"class\":\"GenericError\",\"desc\":\"" text "\"}}"
#define DONE              "{\"return\":{}}"

/* What the server does that is not what every server does. */
struct script {
    const char *before;  /* comes ahead of the answer to migrate */
    const char *refusal; /* is the answer to migrate */
    const char *after;   /* comes after that answer, when `refuses` others have been refused */
    unsigned refuses;
    const char *late; /* comes 13 seconds after migrate_cancel, which was refused */
    bool moves;       /* another process serves the socket when `after` or `late` comes */
    const char *status;
};

/* What the server tells. */
struct seen {
    atomic_uint migrates;
    char paths[CLIENTS_MAX][RUNTIME_PATH_SIZE]; /* where the guest was to be sent */
    _Atomic pid_t receiver;                     /* who listened there, when it was accepted */
    _Atomic pid_t next;                         /* who serves the socket now */
};

struct fixture {
    char directory[64];
    struct seen *seen;
    pid_t server;
};

static unsigned speed; /* of time, in this test */

int clock_gettime(clockid_t clock, struct timespec *now)
{
    long result = syscall(SYS_clock_gettime, clock, now);
    uint64_t ns = ((uint64_t)now->tv_sec * 1000000000u + (uint64_t)now->tv_nsec) * MAX(speed, 1u);

    if (clock == CLOCK_MONOTONIC)
        *now = (struct timespec){(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    return (int)result;
}

/* --- the new process ----------------------------------------------------------------------- */

/* Listens when as many new processes as CHILDREN says have come so far. */
static int be_child(const char *incoming)
{
    json_t *channel = json_loads(incoming, 0, NULL);
    const char *path = json_string_value(json_object_get(json_object_get(channel, "addr"), "path"));
    unsigned others = (unsigned)atoi(getenv("CHILDREN"));
    struct channel_listener *listener;
    char pattern[RUNTIME_PATH_SIZE];
    struct error error;
    glob_t found;

    alarm(PATIENCE_S);
    snprintf(pattern, sizeof(pattern), "%s/child.%d", getenv("BATON_RUNTIME_DIR"), (int)getpid());
    close(open(pattern, O_WRONLY | O_CREAT, 0600));
    snprintf(pattern, sizeof(pattern), "%s/child.*", getenv("BATON_RUNTIME_DIR"));
    while (glob(pattern, 0, NULL, &found) == 0 && found.gl_pathc < others) {
        globfree(&found);
        poll(NULL, 0, 5);
    }
    if (channel_listen(&listener, path, &error) < 0)
        return 1;
    pause();
    return 0;
}

/* --- the server ---------------------------------------------------------------------------- */

struct server {
    const struct script *script;
    struct seen *seen;
    struct pollfd fds[CLIENTS_MAX + 1]; /* the first one listens */
    unsigned refused;
    bool migrating;
    uint64_t late_at; /* 0: not asked for */
};

static void serve(struct server *server);

static void send_text(int fd, const char *text)
{
    if (text)
        (void)!send(fd, text, strlen(text), MSG_NOSIGNAL);
}

static void serve_elsewhere(const struct server *server)
{
    static const struct script none = {.status = "running"};
    struct server next = {.script = &none, .seen = server->seen, .fds = {server->fds[0]}};
    pid_t pid = fork();

    if (pid != 0) {
        atomic_store(&server->seen->next, pid);
        return;
    }
    alarm(PATIENCE_S);
    listen(next.fds[0].fd, 4);
    serve(&next);
}

/* Sends what ends the hand-over to everybody. */
static void conclude(struct server *server, const char *text)
{
    if (text && server->script->moves)
        serve_elsewhere(server);
    for (unsigned i = 1; i <= CLIENTS_MAX; i++)
        send_text(server->fds[i].fd, text);
}

/* Who listens at a path; connected to it for good. */
static pid_t connect_to(const char *path)
{
    struct channel *channel;
    struct error error;

    return channel_connect(&channel, path, 1000, &error) == 0 ? channel_peer_pid(channel) : -1;
}

static void migrate(struct server *server, int fd, const json_t *arguments)
{
    const json_t *channel = json_array_get(json_object_get(arguments, "channels"), 0);
    const char *path = json_string_value(json_object_get(json_object_get(channel, "addr"), "path"));

    strcpy(server->seen->paths[atomic_fetch_add(&server->seen->migrates, 1)], path);
    if (server->script->refusal || server->migrating) {
        send_text(fd, server->script->refusal ?: REFUSAL("one is under way already"));
        server->refused++;
    } else {
        server->migrating = true;
        atomic_store(&server->seen->receiver, connect_to(path));
        send_text(fd, server->script->before);
        send_text(fd, DONE);
    }
    if (server->migrating && server->refused == server->script->refuses)
        conclude(server, server->script->after);
}

static void answer(struct server *server, int fd, json_t *request)
{
    const char *command = json_string_value(json_object_get(request, "execute"));
    char status[64];

    if (strcmp(command, "migrate") == 0) {
        migrate(server, fd, json_object_get(request, "arguments"));
    } else if (strcmp(command, "migrate_cancel") == 0) {
        send_text(fd, REFUSAL("past its commit point"));
        server->late_at = clock_ns() + 13 * UINT64_C(1000000000);
    } else if (strcmp(command, "query-status") == 0) {
        snprintf(status, sizeof(status), "{\"return\":{\"status\":\"%s\"}}",
                 server->script->status);
        send_text(fd, status);
    } else {
        send_text(fd, DONE);
    }
    json_decref(request);
}

static void greet(struct server *server)
{
    for (unsigned i = 1; i <= CLIENTS_MAX; i++) {
        if (server->fds[i].fd >= 0)
            continue;
        server->fds[i].fd = accept4(server->fds[0].fd, NULL, NULL, SOCK_CLOEXEC);
        send_text(server->fds[i].fd, "{\"QMP\":{\"version\":{\"package\":\"baton-1\"}}}");
        return;
    }
}

static _Noreturn void serve(struct server *server)
{
    char text[4096];

    for (unsigned i = 0; i <= CLIENTS_MAX; i++) {
        server->fds[i].events = POLLIN;
        if (i > 0)
            server->fds[i].fd = -1;
    }
    for (;;) {
        poll(server->fds, ARRAY_SIZE(server->fds), 10);
        if (server->late_at && clock_ns() >= server->late_at) {
            server->late_at = 0;
            conclude(server, server->script->late);
        }
        for (unsigned i = 1; i <= CLIENTS_MAX; i++) {
            ssize_t length;

            if (server->fds[i].fd < 0 || server->fds[i].revents == 0)
                continue;
            length = recv(server->fds[i].fd, text, sizeof(text), 0);
            if (length > 0)
                answer(server, server->fds[i].fd, json_loadb(text, (size_t)length, 0, NULL));
            else
                close_fd(STEAL_FD(server->fds[i].fd));
        }
        if (server->fds[0].revents)
            greet(server);
    }
}

static void start_server(struct fixture *fixture, const struct script *script)
{
    struct server server = {.script = script, .seen = fixture->seen};
    struct qmp_server *listener;
    struct fdset fds = {0};
    char path[RUNTIME_PATH_SIZE];
    struct error error = {0};

    assert_int_equal(runtime_create("web1", &error), 0);
    assert_int_equal(runtime_path(path, "web1", RUNTIME_QMP, &error), 0);
    fixture->server = fork();
    assert_true(fixture->server >= 0);
    if (fixture->server > 0) {
        while (access(path, F_OK) < 0)
            poll(NULL, 0, 5);
        return;
    }
    alarm(PATIENCE_S);
    if (qmp_create(&listener, NULL, NULL, 0, NULL, NULL, &error) < 0)
        _exit(1);
    qmp_listen(listener, path, false, &error);
    if (qmp_describe(listener, &fds, &error) < 0)
        _exit(1);
    server.fds[0].fd = fdset_take(&fds, FDSET_ANY, &error, "qmp/0/listen");
    serve(&server);
}

/* --- the command --------------------------------------------------------------------------- */

struct command {
    pid_t pid;
    char output[96]; /* path */
    char text[4096];
    int status;
};

static void start_update(const struct fixture *fixture, struct command *command, char *option,
                         char *value)
{
    char *argv[] = {"update", "web1", option, value, NULL};
    int argc = 1 + (option != NULL) + (value != NULL);

    snprintf(command->output, sizeof(command->output), "%s/output.XXXXXX", fixture->directory);
    close(mkstemp(command->output));
    command->pid = fork();
    assert_true(command->pid >= 0);
    if (command->pid > 0)
        return;
    alarm(PATIENCE_S);
    if (freopen(command->output, "w", stdout) == NULL || dup2(STDOUT_FILENO, STDERR_FILENO) < 0)
        _exit(99);
    command->status = cli_update(argc, argv + 1);
    fflush(stdout);
    _exit(command->status);
}

static void finish_update(struct command *command)
{
    int fd, status;
    ssize_t length;

    assert_int_equal(waitpid(command->pid, &status, 0), command->pid);
    assert_true(WIFEXITED(status));
    command->status = WEXITSTATUS(status);
    fd = open(command->output, O_RDONLY | O_CLOEXEC);
    length = read(fd, command->text, sizeof(command->text) - 1);
    close(fd);
    command->text[MAX(length, (ssize_t)0)] = '\0';
    unlink(command->output);
}

static void check_output(const struct command *command, int status, const char *said,
                         const char *unsaid)
{
    if (command->status != status || strstr(command->text, said) == NULL ||
        (unsaid && strstr(command->text, unsaid) != NULL))
        fail_msg("status %d, not %d, or no '%s', or '%s' in: %s", command->status, status, said,
                 unsaid ? unsaid : "", command->text);
}

/* One update. */
static struct command update(struct fixture *fixture, const struct script *script, char *option,
                             char *value)
{
    struct command command;

    start_server(fixture, script);
    start_update(fixture, &command, option, value);
    finish_update(&command);
    return command;
}

/* One that is told to end when the hand-over has begun, by which it is cancelled, too late. */
static struct command interrupted_update(struct fixture *fixture, const struct script *script)
{
    struct command command;

    start_server(fixture, script);
    start_update(fixture, &command, "--timeout", "600");
    while (atomic_load(&fixture->seen->migrates) == 0)
        poll(NULL, 0, 5);
    kill(command.pid, SIGTERM);
    finish_update(&command);
    return command;
}

/* Whether the new process that the guest was sent to lives. */
static bool receiver_lives(const struct fixture *fixture)
{
    pid_t receiver = atomic_load(&fixture->seen->receiver);

    assert_true(receiver > 0);
    return waitpid(receiver, NULL, WNOHANG) == 0;
}

static int setup(void **state)
{
    struct fixture *fixture = xcalloc(1, sizeof(*fixture));

    strcpy(fixture->directory, "/tmp/test_cli_update.XXXXXX");
    if (mkdtemp(fixture->directory) == NULL)
        return -1;
    setenv("BATON_RUNTIME_DIR", fixture->directory, 1);
    setenv("CHILDREN", "1", 1);
    speed = 1;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    fixture->seen = mmap(NULL, sizeof(*fixture->seen), PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    *state = fixture;
    return fixture->seen == MAP_FAILED ? -1 : 0;
}

static void remove_all(const char *directory, const char *pattern)
{
    char path[RUNTIME_PATH_SIZE];
    glob_t found;

    snprintf(path, sizeof(path), "%s/%s", directory, pattern);
    if (glob(path, 0, NULL, &found) != 0)
        return;
    for (size_t i = 0; i < found.gl_pathc; i++)
        remove(found.gl_pathv[i]);
    globfree(&found);
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    const pid_t pids[] = {fixture->server, fixture->seen->next, fixture->seen->receiver};

    for (size_t i = 0; i < ARRAY_SIZE(pids); i++) {
        if (pids[i] > 0)
            kill(pids[i], SIGKILL);
    }
    while (waitpid(-1, NULL, 0) > 0)
        ;
    remove_all(fixture->directory, "web1/*");
    remove_all(fixture->directory, "*");
    rmdir(fixture->directory);
    munmap(fixture->seen, sizeof(*fixture->seen));
    free(fixture);
    return 0;
}

static void completed(void **state)
{
    static const struct script script = {.after = MIGRATION("completed"), .moves = true};
    struct command command = update(*state, &script, NULL, NULL);

    check_output(&command, EXIT_SUCCESS, "guest 'web1' runs in process", "where it was");
    assert_true(receiver_lives(*state));
}

/* What another client's hand-over or rehearsal came to says nothing about this one. */
static void others_ended_before(void **state)
{
    static const char *const ends[] = {MIGRATION("rehearsed"), MIGRATION("completed"),
                                       MIGRATION("failed"), MIGRATION("cancelled")};

    for (size_t i = 0; i < ARRAY_SIZE(ends); i++) {
        const struct script script = {
            .before = ends[i], .after = MIGRATION("completed"), .moves = true};
        struct command command;
        void *other;

        assert_int_equal(setup(&other), 0);
        command = update(other, &script, NULL, NULL);
        check_output(&command, EXIT_SUCCESS, "guest 'web1' runs in process", "predicted");
        assert_true(receiver_lives(other));
        teardown(&other);
    }
}

static void another_ended_after(void **state)
{
    static const struct script script = {.after = MIGRATION("failed") MIGRATION("rehearsed")
                                             MIGRATION("completed"),
                                         .status = "running"};
    struct command command = update(*state, &script, NULL, NULL);

    check_output(&command, EXIT_FAILURE, "the guest is where it was", "completed");
    assert_false(receiver_lives(*state));
}

static void rehearsed(void **state)
{
    static const struct script script = {.before = MIGRATION("failed"),
                                         .after = MIGRATION("rehearsed")};
    struct command command;

    speed = 10; /* it is waited for the new process, which does not end by itself */
    command = update(*state, &script, "--dry-run", NULL);
    check_output(&command, EXIT_SUCCESS, "an update would work", NULL);
    assert_false(receiver_lives(*state));
}

/* Two at the same time: the one that comes second ends no process but its own. */
static void two_updates(void **state)
{
    static const struct script script = {
        .refuses = 1, .after = MIGRATION("completed"), .moves = true, .status = "postmigrate"};
    struct fixture *fixture = *state;
    struct command commands[2];
    unsigned winner;

    setenv("CHILDREN", "2", 1);
    start_server(fixture, &script);
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
        start_update(fixture, &commands[i], NULL, NULL);
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
        finish_update(&commands[i]);
    winner = commands[1].status == EXIT_SUCCESS;
    check_output(&commands[winner], EXIT_SUCCESS, "guest 'web1' runs in process", NULL);
    check_output(&commands[!winner], EXIT_FAILURE, "one is under way already", "where it was");
    assert_int_equal(atomic_load(&fixture->seen->migrates), 2);
    assert_string_not_equal(fixture->seen->paths[0], fixture->seen->paths[1]);
    assert_true(receiver_lives(fixture));
    assert_int_equal(access(fixture->seen->paths[1], F_OK), -1);
}

/* A hand-over whose end comes long after it was to be cancelled. */
static void completed_late(void **state)
{
    static const struct script script = {
        .late = MIGRATION("completed"), .moves = true, .status = "postmigrate"};
    struct command command;

    speed = 5;
    command = interrupted_update(*state, &script);
    check_output(&command, EXIT_SUCCESS, "guest 'web1' runs in process", "where it was");
    assert_true(receiver_lives(*state));
}

/* One whose end does not come: what is said is what is known. */
static void never_ended(void **state)
{
    static const struct {
        const char *status, *said;
    } table[] = {{"postmigrate", "the guest has left process"},
                 {"finish-migrate", "says of the guest 'finish-migrate'"}};

    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        const struct script script = {.status = table[i].status};
        struct command command;
        void *other;

        assert_int_equal(setup(&other), 0);
        speed = 10;
        command = interrupted_update(other, &script);
        check_output(&command, EXIT_FAILURE, table[i].said, "where it was");
        check_output(&command, EXIT_FAILURE, "may have been handed over", NULL);
        assert_true(receiver_lives(other));
        teardown(&other);
    }
}

static void refused(void **state)
{
    static const struct {
        const char *refusal, *status, *said, *unsaid;
    } table[] = {
        {REFUSAL("one is under way"), "running", "guest is where it was", "left"},
        {REFUSAL("it runs elsewhere"), "postmigrate", "has left process", "where it was"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        const struct script script = {.refusal = table[i].refusal, .status = table[i].status};
        struct command command;
        void *other;

        assert_int_equal(setup(&other), 0);
        command = update(other, &script, NULL, NULL);
        check_output(&command, EXIT_FAILURE, "was not handed over", table[i].unsaid);
        check_output(&command, EXIT_FAILURE, table[i].said, NULL);
        teardown(&other);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(completed),   TEST(others_ended_before), TEST(another_ended_after), TEST(rehearsed),
        TEST(two_updates), TEST(completed_late),      TEST(never_ended),         TEST(refused),
    };

    if (argc == 4 && strcmp(argv[1], "run") == 0)
        return be_child(argv[3]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
