/* SPDX-License-Identifier: Apache-2.0
 *
 * See qmp_internal.h: one connection, its buffers and its event source. Main thread. A client may
 * die in the middle of anything (a full buffer while an event is sent to all of them), so it is
 * only marked then, and freed when the outermost caller leaves.
 */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "base/log.h"
#include "base/util.h"
#include "control/qmp_internal.h"

#define READ_SIZE 16384

static void kill_client(struct qmp_client *client)
{
    client->dead = true;
    if (client->source)
        sd_event_source_set_enabled(client->source, SD_EVENT_OFF);
}

static void watch(struct qmp_client *client)
{
    bool waiting = client->output_start < client->output_end;

    sd_event_source_set_io_events(client->source, EPOLLIN | (waiting ? EPOLLOUT : 0u));
}

/* Sends as much as the socket takes. */
static void flush(struct qmp_client *client)
{
    while (client->output_start < client->output_end) {
        ssize_t sent = send(client->fd, client->output + client->output_start,
                            client->output_end - client->output_start, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN)
            return;
        if (sent < 0) {
            kill_client(client);
            return;
        }
        client->output_start += (size_t)sent;
    }
    client->output_start = client->output_end = 0;
    if (client->output_capacity > 4 * READ_SIZE) {
        free(client->output);
        client->output = NULL;
        client->output_capacity = 0;
    }
}

/* Makes room for @count more bytes. False when that is too much for a client to leave unread. */
static bool reserve(struct qmp_client *client, size_t count)
{
    size_t waiting = client->output_end - client->output_start;
    size_t capacity = MAX(client->output_capacity, (size_t)1024);
    char *output;

    if (count > QMP_OUTPUT_MAX - waiting)
        return false;
    if (waiting > 0)
        memmove(client->output, client->output + client->output_start, waiting);
    client->output_start = 0;
    client->output_end = waiting;
    /* Half of it stays free, so that a slow reader does not make every message move all. */
    while (capacity < 2 * (waiting + count))
        capacity *= 2;
    output = realloc(client->output, capacity);
    if (output == NULL)
        return false;
    client->output = output;
    client->output_capacity = capacity;
    return true;
}

void qmp_client_send(struct qmp_client *client, const json_t *message)
{
    char *text;
    size_t length;

    if (client->dead)
        return;
    text = json_dumps(message, JSON_ENSURE_ASCII);
    assert(text != NULL);
    length = strlen(text);
    if (client->output_capacity - client->output_end < length + 2 && !reserve(client, length + 2)) {
        log_warning("a QMP client does not read what it is sent: disconnected");
        kill_client(client);
    } else {
        memcpy(client->output + client->output_end, text, length);
        memcpy(client->output + client->output_end + length, "\r\n", 2);
        client->output_end += length + 2;
        flush(client);
        watch(client);
    }
    free(text);
}

static void receive(struct qmp_client *client)
{
    char bytes[READ_SIZE];
    ssize_t count = recv(client->fd, bytes, sizeof(bytes), MSG_DONTWAIT);

    if (count > 0)
        json_stream_feed(&client->input, bytes, (size_t)count, qmp_input, client);
    else if (count == 0 || (errno != EAGAIN && errno != EINTR))
        kill_client(client);
}

static int on_client(sd_event_source *source, int fd, uint32_t events, void *opaque)
{
    struct qmp_client *client = opaque;
    struct qmp_server *server = client->server;

    qmp_enter(server);
    if (events & EPOLLOUT) {
        flush(client);
        if (!client->dead)
            watch(client);
    }
    if (!client->dead && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        receive(client);
    qmp_leave(server);
    return 0;
}

int qmp_client_create(struct qmp_server *server, int fd, struct error *error)
{
    struct qmp_client *client;
    json_t *greeting;
    int ret;

    if (server->client_count == QMP_CLIENTS_MAX) {
        close_fd(fd);
        return error_set(error, EMFILE, "a QMP client was turned away: %u are connected",
                         QMP_CLIENTS_MAX);
    }
    client = calloc(1, sizeof(*client));
    if (client == NULL) {
        close_fd(fd);
        return error_set_errno(error, ENOMEM, "cannot serve another QMP client");
    }
    client->server = server;
    client->fd = fd;
    ret = sd_event_add_io(server->loop, &client->source, fd, EPOLLIN, on_client, client);
    if (ret < 0) {
        qmp_client_destroy(client);
        return error_set_errno(error, -ret, "cannot serve another QMP client");
    }
    qmp_enter(server);
    client->next = server->clients;
    server->clients = client;
    server->client_count++;
    greeting = qmp_greeting();
    qmp_client_send(client, greeting);
    json_decref(greeting);
    qmp_leave(server);
    return 0;
}

void qmp_client_destroy(struct qmp_client *client)
{
    client->source = sd_event_source_disable_unref(client->source);
    flush(client);
    close_fd(client->fd);
    json_stream_clear(&client->input);
    free(client->output);
    free(client);
}
