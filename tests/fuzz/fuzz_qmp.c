/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: what a hostile client sends to the QMP server. The first byte is the size of the
 * pieces in which the rest arrives.
 *
 * What must hold: every answer is a JSON object with either "return" or "error", an error has
 * class and description, and afterwards a new client is served.
 */
#include <jansson.h>
#include <string.h>
#include <sys/socket.h>

#include "base/log.h"
#include "base/util.h"
#include "control/qmp.h"
#include "fuzz.h"

static int command_echo(void *opaque, const json_t *arguments, json_t **result, struct error *error)
{
    *result = json_deep_copy(arguments);
    return 0;
}

static int command_fail(void *opaque, const json_t *arguments, json_t **result, struct error *error)
{
    const char *text = json_string_value(json_object_get(arguments, "text"));

    return error_set(error, 1, "%s", text ? text : "");
}

static const struct qmp_command commands[] = {
    {"echo", command_echo, {{"text", QMP_STRING, true}, {"list", QMP_ARRAY, false}}},
    {"fail", command_fail, {{"text", QMP_STRING, false}}},
};

static void run_loop(sd_event *loop)
{
    while (sd_event_run(loop, 0) > 0)
        ;
}

static void check_message(const json_t *message)
{
    const json_t *error = json_object_get(message, "error");

    assert(json_is_object(message));
    if (json_object_get(message, "QMP"))
        return;
    assert((error != NULL) != (json_object_get(message, "return") != NULL));
    assert(error == NULL || (json_is_string(json_object_get(error, "class")) &&
                             json_is_string(json_object_get(error, "desc"))));
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
    ret = qmp_attach(server, pair[0], &error);
    assert(ret == 0);
    run_loop(loop);
    return pair[1];
}

static void send_pieces(int fd, sd_event *loop, const uint8_t *data, size_t size)
{
    size_t piece = size > 0 ? (size_t)data[0] + 1 : 0;

    for (size_t at = 1; at < size; at += piece) {
        if (send(fd, data + at, MIN(piece, size - at), MSG_NOSIGNAL) <= 0)
            break;
        run_loop(loop);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char hello[] = "{\"execute\":\"qmp_capabilities\"}";
    struct qmp_server *server;
    struct error error = {0};
    sd_event *loop = NULL;
    int fd, ret;

    log_configure(LOG_LEVEL_ERROR, NULL);
    ret = sd_event_new(&loop);
    assert(ret >= 0);
    ret = qmp_create(&server, loop, commands, ARRAY_SIZE(commands), NULL, NULL, &error);
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
    return 0;
}
