/* SPDX-License-Identifier: Apache-2.0
 *
 * The listening side of connection set-up, and connecting. Called by the thread that waits.
 *
 * Theory of operation. A path in the file system outlives the process that bound it, so a path that
 * is taken may be stale and must then be replaced, without ever unlinking a socket that lives.
 *
 * - Whether somebody is there is asked by connecting a socket of another type: the kernel answers
 *   EPROTOTYPE when a socket is bound there and ECONNREFUSED when none is. A real connection would
 *   use up the one that the listener waits for.
 * - Between asking and unlinking, another process could have done the same and bound its own. So
 *   whoever asks holds a lock on the directory (flock, which leaves no file behind). The first
 *   bind() needs no lock: it fails when the path exists, and only lock holders unlink.
 * - A listener removes its path before it closes its socket: until then nobody finds it stale.
 *
 * The mode of a new socket file is that of the socket's own inode, less the umask. fchmod() on the
 * socket before bind() therefore gives the file its mode from birth, whereas umask() is shared with
 * the other threads and chmod() afterwards comes too late.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/util.h"
#include "channel/internal.h"

#define BACKLOG           4
#define DIRECTORY_LOCK_MS 2000
#define RETRY_NS          5000000
#define SOCKET_TYPE       (SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK)

struct channel_listener {
    int fd;
    struct sockaddr_un address;
    dev_t device; /* of the path when it was bound */
    ino_t inode;
};

static void sleep_ns(long nanoseconds)
{
    struct timespec wait = {.tv_nsec = nanoseconds};

    nanosleep(&wait, NULL);
}

/* @return a locked descriptor of the directory that the path is in; closing it unlocks */
static int lock_directory(const char *path, struct error *error)
{
    char directory[sizeof(((struct sockaddr_un *)0)->sun_path) + 2];
    uint64_t deadline = deadline_after(DIRECTORY_LOCK_MS);
    const char *slash = strrchr(path, '/');
    CLEANUP_CLOSE int fd = -1;

    if (slash)
        snprintf(directory, sizeof(directory), "%.*s", (int)(slash - path + 1), path);
    else
        snprintf(directory, sizeof(directory), ".");
    fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return error_set_errno(error, errno, "channel '%s': cannot open its directory", path);
    while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return error_set_errno(error, errno, "channel '%s': cannot lock its directory", path);
        if (clock_ns() >= deadline)
            return error_set(error, EBUSY,
                             "channel '%s': another process keeps its directory locked: use "
                             "another directory",
                             path);
        sleep_ns(RETRY_NS);
    }
    return STEAL_FD(fd);
}

/* @return 0 when the path is a socket of ours that nobody has bound any more */
static int check_stale(const struct sockaddr_un *address, struct error *error)
{
    const char *path = address->sun_path;
    CLEANUP_CLOSE int probe = -1;
    struct stat status;

    if (lstat(path, &status) < 0)
        return error_set_errno(error, errno, "channel '%s'", path);
    if (!S_ISSOCK(status.st_mode))
        return error_set(error, EADDRINUSE,
                         "channel '%s': the path exists and is no socket: use another one", path);
    if (status.st_uid != geteuid())
        return error_set(error, EADDRINUSE,
                         "channel '%s': the socket there belongs to user %u: use another path",
                         path, status.st_uid);
    probe = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (probe < 0)
        return fail_errno(error, errno, "cannot open a socket");
    if (connect(probe, (const struct sockaddr *)address, sizeof(*address)) == 0 ||
        errno != ECONNREFUSED)
        return error_set(error, EADDRINUSE,
                         "channel '%s': another process listens there: stop it or use another path",
                         path);
    return 0;
}

/* The path is taken: takes it over if nobody is there. */
static int replace_stale(int fd, const struct sockaddr_un *address, struct error *error)
{
    const char *path = address->sun_path;
    CLEANUP_CLOSE int lock = lock_directory(path, error);

    if (lock < 0)
        return lock;
    /* Whoever held the lock before us may have removed it. */
    if (bind(fd, (const struct sockaddr *)address, sizeof(*address)) == 0)
        return 0;
    if (errno == EADDRINUSE) {
        if (check_stale(address, error) < 0)
            return -error->code;
        if (unlink(path) < 0 && errno != ENOENT)
            return error_set_errno(error, errno, "channel '%s': cannot remove the stale socket",
                                   path);
        if (bind(fd, (const struct sockaddr *)address, sizeof(*address)) == 0)
            return 0;
    }
    return error_set_errno(error, errno, "channel '%s': cannot bind", path);
}

static int bind_path(struct channel_listener *listener, struct error *error)
{
    const char *path = listener->address.sun_path;
    struct stat status;

    if (fchmod(listener->fd, S_IRUSR | S_IWUSR) < 0)
        return error_set_errno(error, errno, "channel '%s': cannot set its mode", path);
    if (bind(listener->fd, (struct sockaddr *)&listener->address, sizeof(listener->address)) < 0) {
        if (errno != EADDRINUSE)
            return error_set_errno(error, errno, "channel '%s': cannot bind", path);
        if (replace_stale(listener->fd, &listener->address, error) < 0)
            return -error->code;
    }
    if (lstat(path, &status) < 0 || !S_ISSOCK(status.st_mode))
        return error_set(error, EADDRINUSE,
                         "channel '%s': the path was changed while the socket was bound", path);
    listener->device = status.st_dev;
    listener->inode = status.st_ino;
    if (listen(listener->fd, BACKLOG) < 0)
        return error_set_errno(error, errno, "channel '%s': cannot listen", path);
    return 0;
}

int channel_listen(struct channel_listener **listener, const char *path, struct error *error)
{
    struct sockaddr_un address;
    struct channel_listener *new;
    int ret = make_address(&address, path, error);

    if (ret < 0)
        return ret;
    new = xcalloc(1, sizeof(*new));
    new->address = address;
    new->fd = socket(AF_UNIX, SOCKET_TYPE, 0);
    if (new->fd < 0)
        ret = fail_errno(error, errno, "cannot open a socket");
    else
        ret = bind_path(new, error);
    if (ret < 0) {
        channel_listener_close(new);
        return ret;
    }
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
    /* Path first, see the top. An inode of 0 was never bound. */
    if (listener->inode != 0 && lstat(listener->address.sun_path, &status) == 0 &&
        status.st_dev == listener->device && status.st_ino == listener->inode)
        unlink(listener->address.sun_path);
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
                             listener->address.sun_path, timeout_ms);
        ret = accept_one(listener, channel, error);
        if (ret < 0)
            return error_prefix(error, "channel '%s': ", listener->address.sun_path);
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
    CLEANUP_CLOSE int fd = -1;
    int ret = make_address(&address, path, error);

    if (ret < 0)
        return ret;
    fd = socket(AF_UNIX, SOCKET_TYPE, 0);
    if (fd < 0)
        return fail_errno(error, errno, "cannot open a socket");
    /* EAGAIN: the listener's queue is full, and poll() would not tell when it no longer is. */
    while (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        if ((errno != EAGAIN && errno != EINTR) || clock_ns() >= deadline)
            return connect_error(path, errno, timeout_ms, error);
        sleep_ns(RETRY_NS);
    }
    ret = channel_from_socket(channel, STEAL_FD(fd), error);
    return ret < 0 ? error_prefix(error, "channel '%s': ", path) : 0;
}
