/* SPDX-License-Identifier: Apache-2.0
 *
 * See client.h.
 */
#include "control/client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/util.h"
#include "control/qmp.h"

/* What a terminal obeys: C0, DEL, and C1, which is two bytes of UTF-8. @return how many */
static size_t control_length(const char *text)
{
    uint8_t first = (uint8_t)text[0], second = first ? (uint8_t)text[1] : 0;

    if (first == 0xc2 && second >= 0x80 && second < 0xa0)
        return 2;
    return first < 0x20 || first == 0x7f;
}

static void make_text_printable(json_t *string)
{
    CLEANUP_FREE char *text = strdup(json_string_value(string));
    bool changed = false;

    for (char *at = text; *at;) {
        size_t length = control_length(at);

        memset(at, '?', length);
        changed |= length > 0;
        at += MAX(length, (size_t)1);
    }
    if (changed)
        json_string_set(string, text);
}

/* Much of what the process says is shown to the operator; it shall not write on the terminal what
 * it likes. Not deep: json_stream sees to that. */
static void make_printable(json_t *value)
{
    const char *key;
    json_t *member;
    size_t i;

    if (json_is_string(value))
        make_text_printable(value);
    json_array_foreach(value, i, member) make_printable(member);
    json_object_foreach(value, key, member) make_printable(member);
}

static void on_value(void *opaque, json_t *value, const char *problem)
{
    struct client *client = opaque;

    if (value == NULL || !json_is_object(value)) {
        client->broken = true;
        return;
    }
    make_printable(value);
    json_array_append(client->messages, value);
}

/* Reads what is there. @return 0, or when there is nothing; -EPIPE; -EPROTO */
static int receive(struct client *client, struct error *error)
{
    char bytes[4096];
    ssize_t count = recv(client->fd, bytes, sizeof(bytes), MSG_DONTWAIT);

    if (count < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (count <= 0)
        return error_set(error, EPIPE, "process %d closed its control socket", (int)client->pid);
    json_stream_feed(&client->input, bytes, (size_t)count, on_value, client);
    if (client->broken)
        return error_set(error, EPROTO, "process %d does not speak QMP", (int)client->pid);
    return 0;
}

/* Waits until something can be read. */
static int wait_readable(struct client *client, uint64_t deadline_ns, struct error *error)
{
    struct pollfd poll_fd = {.fd = client->fd, .events = POLLIN};
    uint64_t now = clock_ns();

    if (now >= deadline_ns)
        return error_set(error, ETIMEDOUT, "process %d does not answer on its control socket",
                         (int)client->pid);
    if (poll(&poll_fd, 1, (int)MIN((deadline_ns - now) / 1000000 + 1, UINT64_C(1000000))) < 0 &&
        errno != EINTR)
        return error_set_errno(error, errno, "cannot wait for process %d", (int)client->pid);
    return receive(client, error);
}

/* Takes the oldest message; NULL when there is none. */
static json_t *next_message(struct client *client)
{
    json_t *message = json_incref(json_array_get(client->messages, 0));

    if (message)
        json_array_remove(client->messages, 0);
    return message;
}

static void handle_event(const json_t *message, client_event_fn *handler, void *opaque)
{
    const char *event = json_string_value(json_object_get(message, "event"));

    if (event && handler)
        handler(opaque, event, json_object_get(message, "data"));
}

int client_dispatch(struct client *client, client_event_fn *handler, void *opaque,
                    struct error *error)
{
    int ret = receive(client, error);
    json_t *message;

    while ((message = next_message(client)) != NULL) {
        handle_event(message, handler, opaque);
        json_decref(message);
    }
    return ret;
}

/* Looks at one message. @return 1 when it was not the answer */
static int take_answer(const json_t *message, json_t **result, struct error *error)
{
    json_t *value = json_object_get(message, "return");
    const char *description;

    if (value) {
        if (result)
            *result = json_incref(value);
        return 0;
    }
    value = json_object_get(message, "error");
    if (value == NULL)
        return 1;
    description = json_string_value(json_object_get(value, "desc"));
    return error_set(error, EREMOTEIO, "%s", description ? description : "no reason was given");
}

static int send_all(struct client *client, const json_t *message, struct error *error)
{
    char *text = json_dumps(message, JSON_COMPACT);
    size_t length = strlen(text);
    ssize_t sent = send(client->fd, text, length, MSG_NOSIGNAL);

    free(text);
    /* Commands are far smaller than a socket's buffer, so a short write means a server that has
     * stopped reading. */
    if (sent != (ssize_t)length)
        return error_set(error, EPIPE, "process %d does not read its control socket",
                         (int)client->pid);
    return 0;
}

int client_execute(struct client *client, const char *command, json_t *arguments, json_t **result,
                   client_event_fn *handler, void *opaque, uint64_t deadline_ns,
                   struct error *error)
{
    json_t *request = json_pack("{s:s}", "execute", command);
    int ret;

    if (arguments)
        json_object_set_new(request, "arguments", arguments);
    ret = send_all(client, request, error);
    json_decref(request);
    while (ret == 0) {
        json_t *message = next_message(client);

        if (message == NULL) {
            ret = wait_readable(client, deadline_ns, error);
            continue;
        }
        handle_event(message, handler, opaque);
        ret = take_answer(message, result, error);
        json_decref(message);
        if (ret <= 0)
            return ret;
        ret = 0;
    }
    return ret;
}

/* Reads the greeting. */
static int greet(struct client *client, uint64_t deadline_ns, struct error *error)
{
    const char *package;
    json_t *message;
    int ret = 0;

    while ((message = next_message(client)) == NULL) {
        ret = wait_readable(client, deadline_ns, error);
        if (ret < 0)
            return ret;
    }
    package = json_string_value(
        json_object_get(json_object_get(json_object_get(message, "QMP"), "version"), "package"));
    if (package == NULL || strncmp(package, "baton-", 6) != 0)
        ret = error_set(error, EPROTO, "process %d is not baton", (int)client->pid);
    else
        snprintf(client->version, sizeof(client->version), "%s", package + 6);
    json_decref(message);
    return ret;
}

int client_open(struct client *client, const char *path, uint64_t deadline_ns, struct error *error)
{
    int ret;

    *client = (struct client){.fd = -1};
    client->fd = qmp_connect(path, &client->pid);
    if (client->fd < 0)
        return error_set_errno(error, -client->fd, "cannot connect to '%s'", path);
    client->messages = json_array();
    ret = greet(client, deadline_ns, error);
    if (ret == 0)
        ret =
            client_execute(client, "qmp_capabilities", NULL, NULL, NULL, NULL, deadline_ns, error);
    if (ret < 0)
        client_close(client);
    return ret;
}

void client_close(struct client *client)
{
    close_fd(client->fd);
    json_stream_clear(&client->input);
    json_decref(client->messages);
    client->messages = NULL;
    client->fd = -1;
}

int client_query_status(struct client *client, char *status, size_t size, uint64_t deadline_ns,
                        struct error *error)
{
    json_t *result = NULL;
    const char *word;
    int ret = client_execute(client, "query-status", NULL, &result, NULL, NULL, deadline_ns, error);

    if (ret < 0)
        return ret;
    word = json_string_value(json_object_get(result, "status"));
    snprintf(status, size, "%s", word ? word : "unknown");
    json_decref(result);
    return 0;
}
