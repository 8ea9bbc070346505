/* SPDX-License-Identifier: Apache-2.0
 *
 * The listening side of connection set-up, and connecting. Called by the thread that waits.
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/unix_socket.h"
#include "base/util.h"
#include "channel/internal.h"

#define BACKLOG  4
#define RETRY_NS 5000000

struct channel_listener {
    int fd;
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    dev_t device; /* of the path when it was bound */
    ino_t inode;
};

int channel_listen(struct channel_listener **listener, const char *path, struct error *error)
{
    int fd = unix_listen(path, SOCK_SEQPACKET, BACKLOG, error);
    struct channel_listener *new;
    struct stat status;

    if (fd < 0)
        return error_prefix(error, "channel '%s': ", path);
    if (lstat(path, &status) < 0) {
        close_fd(fd);
        return error_set(error, EADDRINUSE,
                         "channel '%s': the path was changed while the socket was bound", path);
    }
    new = xcalloc(1, sizeof(*new));
    new->fd = fd;
    strcpy(new->path, path);
    new->device = status.st_dev;
    new->inode = status.st_ino;
    *listener = new;
    return 0;
}

int channel_listener_fd(const struct channel_listener *listener)
{
    return listener->fd;
}

void channel_listener_close(struct channel_listener *listener)
{
    struct stat status;

    if (listener == NULL)
        return;
    /* Path first, so that nobody finds it stale. */
    if (lstat(listener->path, &status) == 0 && status.st_dev == listener->device &&
        status.st_ino == listener->inode)
        unlink(listener->path);
    close_fd(listener->fd);
    free(listener);
}

/* A connection that was closed before it said anything: not worth the one that we wait for. */
static bool is_abandoned(int fd)
{
    struct pollfd state = {.fd = fd};
    int queued = 0;

    if (poll_until(&state, 1, 0) <= 0 || !(state.revents & POLLHUP))
        return false;
    return ioctl(fd, FIONREAD, &queued) == 0 && queued == 0;
}

/* Takes the next connection, if it is one for us. @return 1; 0 turned away or none there */
static int accept_one(struct channel_listener *listener, struct channel **channel,
                      struct error *error)
{
    int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    int ret;

    if (fd < 0) {
        if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
            return 0;
        return fail_errno(error, errno, "cannot accept a connection");
    }
    if (is_abandoned(fd)) {
        close_fd(fd);
        return 0;
    }
    ret = channel_from_socket(channel, fd, error);
    if (ret == -EACCES || ret == -EPIPE) {
        log_warning("a connection was turned away: %s", error->message);
        *error = (struct error){0};
        return 0;
    }
    return ret < 0 ? ret : 1;
}

int channel_accept(struct channel_listener *listener, struct channel **channel, int timeout_ms,
                   struct error *error)
{
    uint64_t deadline = deadline_after(timeout_ms);

    while (true) {
        struct pollfd state = {.fd = listener->fd, .events = POLLIN};
        int ret = poll_until(&state, 1, deadline);

        if (ret < 0)
            return error_set_errno(error, errno, "cannot wait for a connection");
        if (ret == 0)
            return error_set(error, ETIMEDOUT, "channel '%s': nobody connected within %d ms",
                             listener->path, timeout_ms);
        ret = accept_one(listener, channel, error);
        if (ret < 0)
            return error_prefix(error, "channel '%s': ", listener->path);
        if (ret > 0)
            return 0;
    }
}

static int connect_error(const char *path, int code, int timeout_ms, struct error *error)
{
    switch (code) {
    case ENOENT:
    case ECONNREFUSED:
        return error_set(error, code,
                         "channel '%s': nobody listens there: start the incoming process first",
                         path);
    case EACCES:
    case EPERM:
        return error_set(error, code,
                         "channel '%s': permission denied: both processes must run as one user",
                         path);
    case EPROTOTYPE:
        return error_set(error, code, "channel '%s': what listens there is no channel of baton",
                         path);
    case EAGAIN:
        return error_set(error, ETIMEDOUT,
                         "channel '%s': the process that listens there did not accept within %d ms",
                         path, timeout_ms);
    default:
        return error_set_errno(error, code, "channel '%s': cannot connect", path);
    }
}

int channel_connect(struct channel **channel, const char *path, int timeout_ms, struct error *error)
{
    uint64_t deadline = deadline_after(timeout_ms);
    struct sockaddr_un address;
    const struct timespec pause = {.tv_nsec = RETRY_NS};
    CLEANUP_CLOSE int fd = -1;
    int ret = unix_address(&address, path, error);

    if (ret < 0)
        return error_prefix(error, "channel '%s': ", path);
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return fail_errno(error, errno, "cannot open a socket");
    /* EAGAIN: the listener's queue is full, and poll() would not tell when it no longer is. */
    while (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        if ((errno != EAGAIN && errno != EINTR) || clock_ns() >= deadline)
            return connect_error(path, errno, timeout_ms, error);
        nanosleep(&pause, NULL);
    }
    ret = channel_from_socket(channel, STEAL_FD(fd), error);
    return ret < 0 ? error_prefix(error, "channel '%s': ", path) : 0;
}
