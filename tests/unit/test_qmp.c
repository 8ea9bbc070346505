/* SPDX-License-Identifier: Apache-2.0
 *
 * The QMP server with a table of commands of the test's own: what goes over the wire, hostile
 * clients, and listening sockets that change processes.
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
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "base/unix_socket.h"
#include "base/util.h"
#include "control/qmp_internal.h"

struct fixture {
    sd_event *loop;
    struct qmp_server *server;
    unsigned idle_calls;
    unsigned quits;
    char directory[64];
};

static int command_echo(void *opaque, const json_t *arguments, json_t **result, struct error *error)
{
    *result = json_deep_copy(arguments);
    return 0;
}

static int command_fail(void *opaque, const json_t *arguments, json_t **result, struct error *error)
{
    return error_set(error, EIO, "it failed: \xff");
}

static int command_nothing(void *opaque, const json_t *arguments, json_t **result,
                           struct error *error)
{
    struct fixture *fixture = opaque;

    fixture->quits++;
    return 0;
}

static int command_event(void *opaque, const json_t *arguments, json_t **result,
                         struct error *error)
{
    struct fixture *fixture = opaque;

    qmp_emit(fixture->server, "STOP", NULL);
    qmp_emit(fixture->server, "RESET", json_pack("{s:b}", "guest", 1));
    return 0;
}

static int command_big(void *opaque, const json_t *arguments, json_t **result, struct error *error)
{
    char *text = calloc(1, 100001);

    memset(text, 'x', 100000);
    *result = json_pack("{s:s}", "text", text);
    free(text);
    return 0;
}

static const struct qmp_command commands[] = {
    {"echo",
     command_echo,
     {{"text", QMP_STRING, true},
      {"flag", QMP_BOOL},
      {"list", QMP_ARRAY},
      {"number", QMP_INTEGER}}},
    {"fail", command_fail, {{0}}},
    {"nothing", command_nothing, {{0}}},
    {"event", command_event, {{0}}},
    {"big", command_big, {{0}}},
};

static void on_idle(void *opaque)
{
    struct fixture *fixture = opaque;

    fixture->idle_calls++;
}

static struct qmp_server *new_server(struct fixture *fixture)
{
    struct qmp_server *server;
    struct error error = {0};

    assert_int_equal(qmp_create(&server, fixture->loop, commands, ARRAY_SIZE(commands), on_idle,
                                fixture, &error),
                     0);
    return server;
}

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));

    strcpy(fixture->directory, "/tmp/test_qmp.XXXXXX");
    assert_non_null(mkdtemp(fixture->directory));
    assert_true(sd_event_new(&fixture->loop) >= 0);
    fixture->server = new_server(fixture);
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;

    qmp_destroy(fixture->server);
    sd_event_unref(fixture->loop);
    assert_int_equal(rmdir(fixture->directory), 0); /* nobody left a socket behind */
    free(fixture);
    return 0;
}

/* Lets the loop do everything that it can do now. */
static void run_loop(struct fixture *fixture)
{
    while (sd_event_run(fixture->loop, 0) > 0)
        ;
}

/* A connected client; everything that was sent to it so far is not read. */
static int attach(struct fixture *fixture)
{
    struct error error = {0};
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(qmp_client_create(fixture->server, pair[0], &error), 0);
    run_loop(fixture);
    return pair[1];
}

static void say(struct fixture *fixture, int fd, const char *text, size_t length)
{
    while (length > 0) {
        ssize_t sent = send(fd, text, length, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (sent > 0) {
            text += sent;
            length -= (size_t)sent;
        } else if (errno != EAGAIN) {
            return; /* disconnected: the caller looks at that */
        }
        run_loop(fixture);
    }
    run_loop(fixture);
}

/* The next message to a client; NULL when there is none or the connection is closed. */
static json_t *hear(struct fixture *fixture, int fd)
{
    char line[200000];
    size_t used = 0;
    json_t *message;

    run_loop(fixture);
    while (used < sizeof(line) - 1) {
        ssize_t count = recv(fd, line + used, 1, MSG_DONTWAIT);

        if (count < 0 && errno == EAGAIN && used > 0) {
            run_loop(fixture);
            continue;
        }
        if (count <= 0)
            return NULL;
        if (line[used++] == '\n')
            break;
    }
    assert_int_equal(line[used - 2], '\r');
    message = json_loadb(line, used, JSON_REJECT_DUPLICATES, NULL);
    assert_true(json_is_object(message));
    return message;
}

/* The next message must be this one, members in any order. */
static void expect(struct fixture *fixture, int fd, const char *json)
{
    json_t *message = hear(fixture, fd), *expected = json_loads(json, 0, NULL);

    assert_non_null(message);
    assert_non_null(expected);
    json_object_del(message, "timestamp");
    if (!json_equal(message, expected)) {
        char *text = json_dumps(message, 0);

        fail_msg("'%s' instead of '%s'", text, json);
    }
    json_decref(message);
    json_decref(expected);
}

/* The next message must be an error of a class whose description holds a text. */
static json_t *expect_error(struct fixture *fixture, int fd, const char *error_class,
                            const char *text)
{
    json_t *message = hear(fixture, fd), *object;

    assert_non_null(message);
    object = json_object_get(message, "error");
    assert_non_null(object);
    assert_int_equal(json_object_size(object), 2);
    assert_string_equal(json_string_value(json_object_get(object, "class")), error_class);
    if (strstr(json_string_value(json_object_get(object, "desc")), text) == NULL)
        fail_msg("'%s' lacks '%s'", json_string_value(json_object_get(object, "desc")), text);
    return message;
}

static void check_error(struct fixture *fixture, int fd, const char *error_class, const char *text)
{
    json_decref(expect_error(fixture, fd, error_class, text));
}

static void request(struct fixture *fixture, int fd, const char *text)
{
    say(fixture, fd, text, strlen(text));
}

/* A client that has negotiated. */
static int client(struct fixture *fixture)
{
    int fd = attach(fixture);

    json_decref(hear(fixture, fd));
    request(fixture, fd, "{\"execute\":\"qmp_capabilities\"}");
    expect(fixture, fd, "{\"return\":{}}");
    return fd;
}

static void greeting(void **state)
{
    struct fixture *fixture = *state;
    int fd = attach(fixture);
    json_t *message = hear(fixture, fd), *qmp, *version;

    qmp = json_object_get(message, "QMP");
    assert_true(json_is_array(json_object_get(qmp, "capabilities")));
    version = json_object_get(qmp, "version");
    assert_true(json_is_integer(json_object_get(json_object_get(version, "qemu"), "major")));
    assert_true(json_is_integer(json_object_get(json_object_get(version, "qemu"), "minor")));
    assert_true(json_is_integer(json_object_get(json_object_get(version, "qemu"), "micro")));
    assert_string_equal(json_string_value(json_object_get(version, "package")),
                        "baton-" BATON_VERSION);
    json_decref(message);
    close(fd);
}

static void negotiation(void **state)
{
    struct fixture *fixture = *state;
    int fd = attach(fixture);
    json_t *message;

    json_decref(hear(fixture, fd));
    request(fixture, fd, "{\"execute\":\"nothing\",\"id\":7}");
    message = expect_error(fixture, fd, "CommandNotFound", "qmp_capabilities");
    assert_int_equal(json_integer_value(json_object_get(message, "id")), 7);
    json_decref(message);
    assert_int_equal(fixture->quits, 0);
    qmp_emit(fixture->server, "STOP", NULL);
    assert_null(hear(fixture, fd)); /* no events before negotiation */
    request(fixture, fd, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}");
    check_error(fixture, fd, "GenericError", "oob");
    request(fixture, fd, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[7]}}");
    check_error(fixture, fd, "GenericError", "not available");
    request(fixture, fd, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"x\":1}}");
    check_error(fixture, fd, "GenericError", "'x'");
    request(fixture, fd, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[]}}");
    expect(fixture, fd, "{\"return\":{}}");
    request(fixture, fd, "{\"execute\":\"qmp_capabilities\"}");
    check_error(fixture, fd, "CommandNotFound", "already complete");
    close(fd);
}

static void answers(void **state)
{
    struct fixture *fixture = *state;
    int fd = client(fixture);

    request(fixture, fd, "{\"execute\":\"nothing\"}");
    expect(fixture, fd, "{\"return\":{}}");
    request(fixture, fd,
            "{\"execute\":\"echo\",\"arguments\":{\"text\":\"\xc3\xa4\"},\"id\":null}");
    expect(fixture, fd, "{\"return\":{\"text\":\"\xc3\xa4\"},\"id\":null}");
    request(fixture, fd,
            "{\"id\":{\"a\":[1]},\"execute\":\"echo\",\"arguments\":"
            "{\"text\":\"\",\"flag\":true,\"list\":[],\"number\":-1}}");
    expect(fixture, fd,
           "{\"return\":{\"text\":\"\",\"flag\":true,\"list\":[],\"number\":-1},"
           "\"id\":{\"a\":[1]}}");
    request(fixture, fd, "{\"execute\":\"query-commands\"}");
    expect(fixture, fd,
           "{\"return\":[{\"name\":\"qmp_capabilities\"},{\"name\":\"query-commands\"},"
           "{\"name\":\"echo\"},{\"name\":\"fail\"},{\"name\":\"nothing\"},{\"name\":\"event\"},"
           "{\"name\":\"big\"}]}");
    request(fixture, fd, "{\"execute\":\"fail\",\"id\":\"x\"}");
    check_error(fixture, fd, "GenericError", "it failed: ?"); /* and not a dead process */
    close(fd);
}

static void wrong_requests(void **state)
{
    struct fixture *fixture = *state;
    int fd = client(fixture);
    static const struct {
        const char *request, *error_class, *text;
    } table[] = {
        {"[]", "GenericError", "must be a JSON object"},
        {"{}", "GenericError", "'execute'"},
        {"{\"execute\":1}", "GenericError", "'execute'"},
        {"{\"execute\":\"nothing\",\"arguments\":[]}", "GenericError", "'arguments'"},
        {"{\"execute\":\"nothing\",\"extra\":1}", "GenericError", "'extra'"},
        {"{\"exec-oob\":\"nothing\"}", "GenericError", "exec-oob"},
        {"{\"execute\":\"no-such\"}", "CommandNotFound", "no-such"},
        {"{\"execute\":\"\"}", "CommandNotFound", "''"},
        {"{\"execute\":\"nothing\",\"arguments\":{\"x\":1}}", "GenericError", "'x'"},
        {"{\"execute\":\"query-commands\",\"arguments\":{\"x\":1}}", "GenericError", "'x'"},
        {"{\"execute\":\"echo\"}", "GenericError", "'text' is missing"},
        {"{\"execute\":\"echo\",\"arguments\":{\"text\":1}}", "GenericError", "'text' must be a"},
        {"{\"execute\":\"echo\",\"arguments\":{\"text\":\"\",\"flag\":1}}", "GenericError",
         "'flag' must be true or false"},
        {"{\"execute\":\"echo\",\"arguments\":{\"text\":\"\",\"number\":1.5}}", "GenericError",
         "'number'"},
        {"{\"execute\":\"echo\",\"arguments\":{\"text\":\"\",\"list\":{}}}", "GenericError",
         "'list'"},
        {"{\"execute\":\"echo\",\"arguments\":{\"text\":\"%s%n\",\"%s%n\":1}}", "GenericError",
         "'%s%n'"},
        {"rubbish\n", "GenericError", "JSON"},
        {"{\"execute\":}", "GenericError", "JSON"},
        {"{\"execute\":\"nothing\xff", "GenericError", "JSON"},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(table); i++) {
        request(fixture, fd, table[i].request);
        check_error(fixture, fd, table[i].error_class, table[i].text);
    }
    /* After all that the connection is as good as new. */
    request(fixture, fd, "{\"execute\":\"nothing\",\"id\":1}");
    expect(fixture, fd, "{\"return\":{},\"id\":1}");
    assert_int_equal(fixture->quits, 1);
    close(fd);
}

static void long_unknown_name(void **state)
{
    struct fixture *fixture = *state;
    int fd = client(fixture);
    char text[5000];

    /* Characters of two bytes, so that a cut may fall within one. */
    for (unsigned odd = 0; odd < 2; odd++) {
        size_t used = (size_t)snprintf(text, sizeof(text), "{\"execute\":\"%s", odd ? "x" : "");

        while (used < 4000) {
            text[used++] = '\xc3';
            text[used++] = '\xa4';
        }
        strcpy(text + used, "\"}");
        request(fixture, fd, text);
        check_error(fixture, fd, "CommandNotFound", odd ? "'x\u00e4" : "'\u00e4");
    }
    close(fd);
}

static void interleaved(void **state)
{
    struct fixture *fixture = *state;
    int a = client(fixture), b = client(fixture);

    /* Half a request each, the rest in the other order; several in one go. */
    request(fixture, a, "{\"execute\":\"ec");
    request(fixture, b, "{\"execute\":\"echo\",\"arguments\":{\"te");
    request(fixture, a,
            "ho\",\"arguments\":{\"text\":\"a\"},\"id\":1}{\"execute\":\"nothing\","
            "\"id\":2} {\"execute\":\"no-such\"}\n\n{\"execute\":\"nothing\",\"id\":3}");
    expect(fixture, a, "{\"return\":{\"text\":\"a\"},\"id\":1}");
    expect(fixture, a, "{\"return\":{},\"id\":2}");
    check_error(fixture, a, "CommandNotFound", "no-such");
    expect(fixture, a, "{\"return\":{},\"id\":3}");
    assert_null(hear(fixture, b));
    request(fixture, b, "xt\":\"b\"}}");
    expect(fixture, b, "{\"return\":{\"text\":\"b\"}}");
    close(a);
    close(b);
}

static void events(void **state)
{
    struct fixture *fixture = *state;
    int a = client(fixture), b = client(fixture);
    json_t *message, *timestamp;

    request(fixture, a, "{\"execute\":\"event\",\"id\":1}");
    message = hear(fixture, a);
    timestamp = json_object_get(message, "timestamp");
    assert_true(json_integer_value(json_object_get(timestamp, "seconds")) > 1000000000);
    assert_in_range(json_integer_value(json_object_get(timestamp, "microseconds")), 0, 999999);
    assert_string_equal(json_string_value(json_object_get(message, "event")), "STOP");
    assert_null(json_object_get(message, "data"));
    json_decref(message);
    expect(fixture, a, "{\"event\":\"RESET\",\"data\":{\"guest\":true}}");
    expect(fixture, a, "{\"return\":{},\"id\":1}");
    expect(fixture, b, "{\"event\":\"STOP\"}");
    expect(fixture, b, "{\"event\":\"RESET\",\"data\":{\"guest\":true}}");
    assert_null(hear(fixture, b));
    close(a);
    close(b);
}

static void oversized(void **state)
{
    struct fixture *fixture = *state;
    int fd = client(fixture);
    size_t length = 3u << 20;
    char *text = malloc(length);

    memset(text, 'x', length);
    memcpy(text, "{\"execute\":\"", 12);
    memcpy(text + length - 2, "\"}", 2);
    say(fixture, fd, text, length);
    check_error(fixture, fd, "GenericError", "1 MiB");
    request(fixture, fd, "{\"execute\":\"nothing\"}");
    expect(fixture, fd, "{\"return\":{}}");
    assert_null(hear(fixture, fd));
    free(text);
    close(fd);
}

/* A slow client gets everything; one that never reads is disconnected, and only that one. */
static void unread_output(void **state)
{
    struct fixture *fixture = *state;
    int slow = client(fixture), never = client(fixture);

    for (unsigned i = 0; i < 30; i++)
        request(fixture, slow, "{\"execute\":\"big\"}");
    for (unsigned i = 0; i < 30; i++) {
        json_t *message = hear(fixture, slow);

        assert_int_equal(
            json_string_length(json_object_get(json_object_get(message, "return"), "text")),
            100000);
        json_decref(message);
    }
    assert_int_equal(qmp_client_count(fixture->server), 2);
    for (unsigned i = 0; i < 60; i++)
        request(fixture, never, "{\"execute\":\"big\"}");
    assert_int_equal(qmp_client_count(fixture->server), 1);
    request(fixture, slow, "{\"execute\":\"nothing\"}");
    expect(fixture, slow, "{\"return\":{}}");
    close(slow);
    close(never);
}

/* The same for a client that only listens to events. */
static void unread_events(void **state)
{
    struct fixture *fixture = *state;
    int deaf = client(fixture), other = client(fixture);
    unsigned heard = 0;
    char text[5000];

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    for (unsigned i = 0; i < 100000 && qmp_client_count(fixture->server) == 2; i++) {
        json_t *message;

        qmp_emit(fixture->server, "LONG", json_pack("{s:s}", "text", text));
        message = hear(fixture, other);
        heard += message != NULL;
        json_decref(message);
    }
    assert_int_equal(qmp_client_count(fixture->server), 1);
    assert_true(heard > 800);
    close(deaf);
    close(other);
}

static void idle(void **state)
{
    struct fixture *fixture = *state;
    int a = client(fixture), b = client(fixture);

    assert_int_equal(qmp_client_count(fixture->server), 2);
    close(a);
    run_loop(fixture);
    assert_int_equal(fixture->idle_calls, 0);
    /* What was said before hanging up still counts. */
    say(fixture, b, "{\"execute\":\"nothing\"}", 21);
    shutdown(b, SHUT_WR);
    run_loop(fixture);
    expect(fixture, b, "{\"return\":{}}");
    assert_int_equal(fixture->idle_calls, 1);
    assert_int_equal(qmp_client_count(fixture->server), 0);
    close(b);
}

static void too_many_clients(void **state)
{
    struct fixture *fixture = *state;
    int fds[QMP_CLIENTS_MAX], pair[2];
    struct error error = {0};

    for (unsigned i = 0; i < QMP_CLIENTS_MAX; i++)
        fds[i] = attach(fixture);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(qmp_client_create(fixture->server, pair[0], &error), -EMFILE);
    assert_null(hear(fixture, pair[1])); /* closed */
    close(pair[1]);
    for (unsigned i = 0; i < QMP_CLIENTS_MAX; i++)
        close(fds[i]);
    run_loop(fixture);
    assert_int_equal(qmp_client_count(fixture->server), 0);
}

static char *path_in(const struct fixture *fixture, const char *name, char path[128])
{
    snprintf(path, 128, "%s/%s", fixture->directory, name);
    return path;
}

static void listening(void **state)
{
    struct fixture *fixture = *state;
    char path[128], other[128], file[128], message[16];
    struct qmp_server *second = new_server(fixture);
    struct sockaddr_un address;
    struct error error = {0};
    struct stat status;
    pid_t pid;
    int fd;

    path_in(fixture, "a", path);
    assert_int_equal(qmp_listen(fixture->server, path, false, &error), 0);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0600);
    fd = qmp_connect(path, &pid);
    assert_true(fd >= 0);
    assert_int_equal(pid, getpid());
    json_decref(hear(fixture, fd));
    close(fd);
    /* In use: said by whom, and left alone. */
    assert_int_equal(qmp_listen(second, path, false, &error), -EADDRINUSE);
    snprintf(message, sizeof(message), "%d", (int)getpid());
    assert_non_null(strstr(error.message, message));
    assert_non_null(strstr(error.message, path));
    /* A stale socket is replaced, a file is not. */
    path_in(fixture, "b", other);
    assert_int_equal(qmp_listen(second, other, false, &error), 0);
    qmp_release(second);
    assert_int_equal(access(other, F_OK), 0);
    assert_int_equal(qmp_connect(other, NULL), -ECONNREFUSED);
    assert_int_equal(qmp_listen(second, other, false, &error), 0);
    /* One that is bound is somebody's, though he does not listen yet. */
    path_in(fixture, "c", file);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(unix_address(&address, file, &error), 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(qmp_listen(second, file, false, &error), -EADDRINUSE);
    assert_int_equal(unlink(file), 0);
    close(fd);
    path_in(fixture, "file", file);
    close(open(file, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    assert_int_equal(qmp_listen(second, file, false, &error), -EADDRINUSE);
    assert_int_equal(unlink(file), 0);
    assert_int_equal(qmp_listen(second, path_in(fixture, "no/such", file), false, &error), -ENOENT);
    qmp_destroy(second);
    assert_int_equal(access(other, F_OK), -1);
}

static void long_path(void **state)
{
    struct fixture *fixture = *state;
    struct error error = {0};
    char path[200];

    memset(path, 'x', sizeof(path));
    path[108] = '\0';
    assert_int_equal(qmp_listen(fixture->server, path, false, &error), -ENAMETOOLONG);
    assert_non_null(strstr(error.message, "107"));
    assert_int_equal(qmp_connect(path, NULL), -ENAMETOOLONG);
}

/* A child process that adopts the listeners and answers one client. */
static void serve_in_child(struct fixture *fixture, struct fdset *fds)
{
    struct qmp_server *server = new_server(fixture);
    struct error error = {0};

    if (qmp_adopt(server, fds, false, NULL, &error) < 0)
        _exit(1);
    qmp_activate(server);
    while (qmp_client_count(server) == 0)
        sd_event_run(fixture->loop, 100000);
    while (qmp_client_count(server) > 0)
        sd_event_run(fixture->loop, 100000);
    qmp_destroy(server);
    _exit(0);
}

/* A connection made before the hand-over and not accepted is served by the new process. */
static void hand_over(void **state)
{
    struct fixture *fixture = *state;
    struct error error = {0};
    struct fdset fds = {0};
    char path[128], byte;
    int early, late, status;
    pid_t child, pid;

    path_in(fixture, "q", path);
    assert_int_equal(qmp_listen(fixture->server, path, false, &error), 0);
    assert_int_equal(qmp_describe(fixture->server, &fds, &error), 0);
    assert_true(fdset_contains(&fds, "qmp/0/listen"));
    early = qmp_connect(path, &pid); /* waits in the queue: the loop does not run */
    assert_true(early >= 0);
    assert_int_equal(pid, getpid());
    child = fork();
    if (child == 0) {
        sd_event *loop;

        close(early);        /* the client is the parent */
        sd_event_new(&loop); /* an event loop belongs to the process that made it */
        fixture->loop = loop;
        serve_in_child(fixture, &fds);
    }
    qmp_release(fixture->server);
    fdset_clear(&fds);
    assert_int_equal(fcntl(early, F_SETFL, 0), 0);
    assert_int_equal(recv(early, &byte, 1, 0), 1);
    late = qmp_connect(path, &pid);
    assert_true(late >= 0);
    assert_int_equal(pid, child);
    close(late);
    close(early);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(access(path, F_OK), -1); /* the path was the child's to remove */
}

/* An incoming process that fails before it is activated leaves no trace. */
static void adopt_and_fail(void **state)
{
    struct fixture *fixture = *state;
    struct qmp_server *incoming = new_server(fixture);
    struct error error = {0};
    struct fdset fds = {0};
    char path[128];
    int fd;

    path_in(fixture, "q", path);
    assert_int_equal(qmp_listen(fixture->server, path, false, &error), 0);
    assert_int_equal(qmp_listen(incoming, path, true, &error), 0); /* it will arrive */
    assert_int_equal(qmp_describe(fixture->server, &fds, &error), 0);
    assert_int_equal(qmp_adopt(incoming, &fds, true, NULL, &error), 0);
    qmp_destroy(incoming);
    fdset_clear(&fds);
    fd = qmp_connect(path, NULL);
    assert_true(fd >= 0);
    json_decref(hear(fixture, fd));
    close(fd);
}

/* -qmp given anew: what is not among it goes, except the one in the runtime directory. */
static void adopt_only_own(void **state)
{
    struct fixture *fixture = *state;
    struct qmp_server *incoming = new_server(fixture);
    struct error error = {0};
    struct fdset fds = {0};
    char kept[128], gone[128], named[128], added[128];

    assert_int_equal(qmp_listen(fixture->server, path_in(fixture, "kept", kept), false, &error), 0);
    assert_int_equal(qmp_listen(fixture->server, path_in(fixture, "gone", gone), false, &error), 0);
    assert_int_equal(qmp_listen(fixture->server, path_in(fixture, "n.sock", named), false, &error),
                     0);
    assert_int_equal(qmp_listen(incoming, kept, true, &error), 0);
    assert_int_equal(qmp_listen(incoming, path_in(fixture, "added", added), true, &error), 0);
    assert_int_equal(qmp_describe(fixture->server, &fds, &error), 0);
    assert_int_equal(qmp_adopt(incoming, &fds, true, "/n.sock", &error), 0);
    assert_int_equal(access(gone, F_OK), 0); /* not before the guest runs here */
    qmp_release(fixture->server);
    qmp_activate(incoming);
    assert_int_equal(access(gone, F_OK), -1);
    assert_int_equal(access(kept, F_OK), 0);
    assert_int_equal(access(named, F_OK), 0);
    assert_int_equal(access(added, F_OK), 0);
    qmp_destroy(incoming);
    assert_int_equal(access(kept, F_OK), -1);
    fdset_clear(&fds);
}

static void adopt_wrong(void **state)
{
    struct fixture *fixture = *state;
    struct error error = {0};
    struct fdset fds = {0};
    char path[128];
    int pair[2];

    /* Somebody else's path: it does not arrive. */
    struct qmp_server *incoming = new_server(fixture);

    path_in(fixture, "q", path);
    assert_int_equal(qmp_listen(fixture->server, path, false, &error), 0);
    assert_int_equal(qmp_listen(incoming, path, true, &error), 0);
    assert_int_equal(qmp_adopt(incoming, &fds, false, NULL, &error), -EADDRINUSE);
    assert_non_null(strstr(error.message, path));
    qmp_destroy(incoming);
    /* Descriptors that are no listening sockets. */
    incoming = new_server(fixture);
    assert_int_equal(
        fdset_add(&fds, open("/dev/null", O_RDONLY | O_CLOEXEC), "qmp/0/listen", &error), 0);
    assert_int_equal(qmp_adopt(incoming, &fds, false, NULL, &error), -EINVAL);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(fdset_add(&fds, pair[0], "qmp/0/listen", &error), 0);
    assert_int_equal(qmp_adopt(incoming, &fds, false, NULL, &error), -EINVAL);
    close(pair[1]);
    qmp_destroy(incoming);
    fdset_clear(&fds);
}

/* No descriptors left: the client is turned away, and the loop comes to rest. */
static void no_descriptors(void **state)
{
    struct fixture *fixture = *state;
    struct error error = {0};
    struct rlimit before, limit;
    char path[128], byte;
    int fd;

    path_in(fixture, "q", path);
    assert_int_equal(qmp_listen(fixture->server, path, false, &error), 0);
    fd = qmp_connect(path, NULL);
    getrlimit(RLIMIT_NOFILE, &before);
    limit = before;
    limit.rlim_cur = (rlim_t)fd + 1;
    setrlimit(RLIMIT_NOFILE, &limit);
    run_loop(fixture);
    setrlimit(RLIMIT_NOFILE, &before);
    assert_int_equal(recv(fd, &byte, 1, MSG_DONTWAIT), 0);
    close(fd);
    fd = qmp_connect(path, NULL);
    json_decref(hear(fixture, fd));
    close(fd);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(greeting),          TEST(negotiation),   TEST(answers),        TEST(wrong_requests),
        TEST(long_unknown_name), TEST(interleaved),   TEST(events),         TEST(oversized),
        TEST(unread_output),     TEST(unread_events), TEST(idle),           TEST(too_many_clients),
        TEST(listening),         TEST(long_path),     TEST(hand_over),      TEST(adopt_and_fail),
        TEST(adopt_only_own),    TEST(adopt_wrong),   TEST(no_descriptors),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
