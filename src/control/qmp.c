/* SPDX-License-Identifier: Apache-2.0
 *
 * See qmp.h: the server, the sockets it listens on, and their way from one process to the next.
 * Main thread.
 *
 * A listening socket outlives the process that made it: the incoming process adopts it, so a
 * client that connects during the blackout waits in its queue and is served by whoever runs the
 * guest then. Who that is, the kernel tells clients (SO_PEERCRED), because qmp_activate() says
 * listen() once more. Only the process that runs the guest removes a socket's path.
 */
#include "control/qmp.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "base/log.h"
#include "base/unix_socket.h"
#include "base/util.h"
#include "control/qmp_internal.h"

#define BACKLOG 16

void qmp_enter(struct qmp_server *server)
{
    server->nesting++;
}

void qmp_leave(struct qmp_server *server)
{
    struct qmp_client **link = &server->clients;
    bool left = false;

    assert(server->nesting > 0);
    if (--server->nesting > 0)
        return;
    while (*link) {
        struct qmp_client *client = *link;

        if (!client->dead) {
            link = &client->next;
            continue;
        }
        *link = client->next;
        qmp_client_destroy(client);
        server->client_count--;
        left = true;
    }
    if (left && server->client_count == 0 && server->idle)
        server->idle(server->opaque);
}

int qmp_create(struct qmp_server **out, sd_event *loop, const struct qmp_command *commands,
               size_t count, qmp_idle_fn *idle, void *opaque, struct error *error)
{
    struct qmp_server *server = xcalloc(1, sizeof(*server));

    server->loop = loop;
    server->commands = commands;
    server->command_count = count;
    server->idle = idle;
    server->opaque = opaque;
    server->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (server->reserve_fd < 0) {
        int code = errno;

        free(server);
        return error_set_errno(error, code, "cannot open /dev/null");
    }
    *out = server;
    return 0;
}

static void close_listener(struct qmp_listener *listener, bool remove_path)
{
    sd_event_source_disable_unref(listener->source);
    close_fd(listener->fd);
    if (remove_path)
        unlink(listener->path);
}

void qmp_destroy(struct qmp_server *server)
{
    if (server == NULL)
        return;
    assert(server->nesting == 0);
    for (unsigned i = 0; i < server->listener_count; i++)
        close_listener(&server->listeners[i], server->listeners[i].owned);
    while (server->clients) {
        struct qmp_client *client = server->clients;

        server->clients = client->next;
        qmp_client_destroy(client);
    }
    close_fd(server->reserve_fd);
    free(server);
}

/* Turns one client away when no descriptors are left: otherwise its connection would stay in the
 * queue and wake the loop for ever. */
static void turn_away(struct qmp_server *server, int listen_fd)
{
    log_warning("no file descriptor is left for a QMP client: turned away");
    close_fd(server->reserve_fd);
    close_fd(accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC));
    server->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static int on_connection(sd_event_source *source, int fd, uint32_t events, void *opaque)
{
    struct qmp_server *server = opaque;
    struct error error = {0};
    int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (client < 0) {
        if (errno == EMFILE || errno == ENFILE)
            turn_away(server, fd);
        return 0;
    }
    if (qmp_client_create(server, client, &error) < 0)
        log_warning("%s", error.message);
    return 0;
}

int qmp_connect(const char *path, pid_t *pid)
{
    struct ucred peer = {0};
    socklen_t size = sizeof(peer);
    struct sockaddr_un address;
    struct error ignored;
    int ret = unix_address(&address, path, &ignored);
    int fd;

    if (ret < 0)
        return ret;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0) {
        ret = -errno;
        close_fd(fd);
        return ret;
    }
    if (pid)
        *pid = peer.pid;
    return fd;
}

/* Whether a process serves the socket at @path. A full queue means that one does. */
static bool is_served(const char *path, pid_t *pid)
{
    int fd;

    *pid = 0;
    fd = qmp_connect(path, pid);
    close_fd(fd);
    return fd >= 0 || fd == -EAGAIN;
}

static struct qmp_listener *add_listener(struct qmp_server *server, int fd, const char *path)
{
    struct qmp_listener *listener = &server->listeners[server->listener_count++];

    *listener = (struct qmp_listener){.fd = fd};
    snprintf(listener->path, sizeof(listener->path), "%s", path);
    return listener;
}

static int start_listener(struct qmp_server *server, struct qmp_listener *listener,
                          struct error *error)
{
    int ret = sd_event_add_io(server->loop, &listener->source, listener->fd, EPOLLIN, on_connection,
                              server);

    listener->owned = true;
    if (ret < 0)
        return error_set_errno(error, -ret, "cannot wait for clients of QMP socket '%s'",
                               listener->path);
    return 0;
}

int qmp_listen(struct qmp_server *server, const char *path, bool arriving, struct error *error)
{
    pid_t pid;
    int fd;

    if (server->listener_count + server->expected_count >= QMP_LISTENERS_MAX)
        return error_set(error, EMFILE, "QMP socket '%s': more than %u sockets", path,
                         QMP_LISTENERS_MAX);
    fd = unix_listen(path, SOCK_STREAM, BACKLOG, error);
    if (fd == -EADDRINUSE && is_served(path, &pid)) {
        if (!arriving)
            return error_set(error, EADDRINUSE,
                             "QMP socket '%s' is in use by process %d: end it, "
                             "or use another path",
                             path, (int)pid);
        strcpy(server->expected[server->expected_count++], path);
        return 0;
    }
    if (fd < 0)
        return error_prefix(error, "QMP socket '%s': ", path);
    return start_listener(server, add_listener(server, fd, path), error);
}

void qmp_emit(struct qmp_server *server, const char *event, json_t *data)
{
    struct timespec now;
    json_t *message;

    clock_gettime(CLOCK_REALTIME, &now);
    message = json_pack("{s:{s:I,s:I},s:s}", "timestamp", "seconds", (json_int_t)now.tv_sec,
                        "microseconds", (json_int_t)(now.tv_nsec / 1000), "event", event);
    assert(message != NULL);
    if (data)
        json_object_set_new(message, "data", data);
    qmp_enter(server);
    for (struct qmp_client *client = server->clients; client; client = client->next) {
        if (client->negotiated)
            qmp_client_send(client, message);
    }
    qmp_leave(server);
    json_decref(message);
}

unsigned qmp_client_count(const struct qmp_server *server)
{
    return server->client_count;
}

int qmp_describe(const struct qmp_server *server, struct fdset *fds, struct error *error)
{
    for (unsigned i = 0; i < server->listener_count; i++) {
        int ret = fdset_add_copy(fds, server->listeners[i].fd, error, "qmp/%u/listen", i);

        if (ret < 0)
            return ret;
    }
    return 0;
}

/* Whether a descriptor is a listening stream socket with a path, and which. */
static bool listening_path(int fd, struct sockaddr_un *address)
{
    socklen_t length = sizeof(*address) - 1; /* so that it ends with a NUL */
    socklen_t size = sizeof(int);
    int listening = 0, type = 0;

    memset(address, 0, sizeof(*address));
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) < 0 || !listening ||
        getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0 || type != SOCK_STREAM ||
        getsockname(fd, (struct sockaddr *)address, &length) < 0)
        return false;
    return address->sun_family == AF_UNIX && address->sun_path[0] == '/';
}

static bool take_expected(struct qmp_server *server, const char *path)
{
    for (unsigned i = 0; i < server->expected_count; i++) {
        if (strcmp(server->expected[i], path) == 0) {
            server->expected_count--;
            memmove(server->expected[i], server->expected[server->expected_count],
                    sizeof(server->expected[i]));
            return true;
        }
    }
    return false;
}

static bool ends_with(const char *path, const char *end)
{
    size_t length = strlen(path), end_length = end ? strlen(end) : 0;

    return end_length > 0 && length >= end_length && strcmp(path + length - end_length, end) == 0;
}

static int adopt_listener(struct qmp_server *server, int fd, bool only_own, const char *keep,
                          struct error *error)
{
    struct qmp_listener *listener;
    struct sockaddr_un address;
    bool expected;

    if (!listening_path(fd, &address)) {
        close_fd(fd);
        return error_set(error, EINVAL, "a descriptor that came as a QMP socket is none");
    }
    if (server->listener_count == QMP_LISTENERS_MAX) {
        close_fd(fd);
        return error_set(error, EMFILE, "QMP socket '%s': more than %u sockets", address.sun_path,
                         QMP_LISTENERS_MAX);
    }
    expected = take_expected(server, address.sun_path);
    listener = add_listener(server, fd, address.sun_path);
    listener->retire = only_own && !expected && !ends_with(address.sun_path, keep);
    return 0;
}

int qmp_adopt(struct qmp_server *server, struct fdset *fds, bool only_own, const char *keep,
              struct error *error)
{
    for (unsigned i = 0; i < QMP_LISTENERS_MAX; i++) {
        char name[FDSET_NAME_SIZE];
        int fd, ret;

        snprintf(name, sizeof(name), "qmp/%u/listen", i);
        if (!fdset_contains(fds, name))
            break;
        fd = fdset_take(fds, FDSET_ANY, error, "%s", name);
        ret = fd < 0 ? fd : adopt_listener(server, fd, only_own, keep, error);
        if (ret < 0)
            return ret;
    }
    if (server->expected_count > 0)
        return error_set(error, EADDRINUSE,
                         "QMP socket '%s' is in use by a process other than "
                         "the one that runs the guest: use another path",
                         server->expected[0]);
    return 0;
}

void qmp_activate(struct qmp_server *server)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < server->listener_count; i++) {
        struct qmp_listener *listener = &server->listeners[i];
        struct error error;

        if (listener->retire) {
            close_listener(listener, true);
            continue;
        }
        if (listener->source == NULL) {
            /* Already listening; said again, it makes this process the one that clients see. */
            if (listen(listener->fd, BACKLOG) < 0)
                log_error("QMP socket '%s' will not answer: %s", listener->path, strerror(errno));
            else if (start_listener(server, listener, &error) < 0)
                log_error("QMP socket '%s' will not answer: %s", listener->path, error.message);
        }
        server->listeners[kept++] = *listener;
    }
    server->listener_count = kept;
}

void qmp_release(struct qmp_server *server)
{
    for (unsigned i = 0; i < server->listener_count; i++)
        close_listener(&server->listeners[i], false);
    server->listener_count = 0;
}
