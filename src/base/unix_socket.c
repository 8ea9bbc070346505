/* SPDX-License-Identifier: Apache-2.0
 *
 * See unix_socket.h.
 *
 * Theory of operation. A path in the file system outlives the process that bound it, so a path that
 * is taken may be stale and must then be replaced, without ever unlinking a socket that lives.
 *
 * - Whether somebody is there is asked by connecting a socket of another type: the kernel answers
 *   EPROTOTYPE when a socket is bound there and ECONNREFUSED when none is. A real connection would
 *   use up the one that a channel's listener waits for.
 * - Between asking and unlinking, another process could have done the same and bound its own. So
 *   whoever asks holds a lock on the directory (flock, which leaves no file behind). The first
 *   bind() needs no lock: it fails when the path exists, and only lock holders unlink what is not
 *   theirs.
 * - A listener removes its path before it closes its socket: until then nobody finds it stale.
 *
 * The mode of a new socket file is that of the socket's own inode, less the umask. fchmod() on the
 * socket before bind() therefore gives the file its mode from birth, whereas umask() is shared with
 * the other threads and chmod() afterwards comes too late.
 */
#include "base/unix_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/util.h"

#define DIRECTORY_LOCK_NS UINT64_C(2000000000)
#define RETRY_NS          5000000

int unix_address(struct sockaddr_un *address, const char *path, struct error *error)
{
    size_t length = strlen(path);

    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    /* An empty path would ask the kernel for a name in the abstract name space, where file
     * permissions mean nothing. */
    if (length == 0)
        return error_set(error, EINVAL, "the path of a socket cannot be empty");
    if (length >= sizeof(address->sun_path))
        return error_set(error, ENAMETOOLONG,
                         "the path has %zu bytes, a socket's has at most %zu: use a shorter one",
                         length, sizeof(address->sun_path) - 1);
    memcpy(address->sun_path, path, length);
    return 0;
}

/* @return a locked descriptor of the directory that the path is in; closing it unlocks */
static int lock_directory(const char *path, struct error *error)
{
    char directory[sizeof(((struct sockaddr_un *)0)->sun_path) + 2];
    uint64_t deadline = clock_ns() + DIRECTORY_LOCK_NS;
    const char *slash = strrchr(path, '/');
    CLEANUP_CLOSE int fd = -1;

    if (slash)
        snprintf(directory, sizeof(directory), "%.*s", (int)(slash - path + 1), path);
    else
        snprintf(directory, sizeof(directory), ".");
    fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return error_set_errno(error, errno, "cannot open its directory");
    while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        const struct timespec pause = {.tv_nsec = RETRY_NS};

        if (errno != EWOULDBLOCK && errno != EINTR)
            return error_set_errno(error, errno, "cannot lock its directory");
        if (clock_ns() >= deadline)
            return error_set(error, EBUSY,
                             "another process keeps its directory locked: use another directory");
        nanosleep(&pause, NULL);
    }
    return STEAL_FD(fd);
}

/* @return 0 when the path is a socket of ours that nobody has bound any more */
static int check_stale(const struct sockaddr_un *address, struct error *error)
{
    CLEANUP_CLOSE int probe = -1;
    struct stat status;

    if (lstat(address->sun_path, &status) < 0)
        return error_set_errno(error, errno, "cannot look at it");
    if (!S_ISSOCK(status.st_mode))
        return error_set(error, EADDRINUSE, "the path exists and is no socket: use another one");
    if (status.st_uid != geteuid())
        return error_set(error, EADDRINUSE,
                         "the socket there belongs to user %u: remove it or use another path",
                         status.st_uid);
    probe = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (probe < 0)
        return error_set_errno(error, errno, "cannot make a socket");
    if (connect(probe, (const struct sockaddr *)address, sizeof(*address)) == 0 ||
        errno != ECONNREFUSED)
        return error_set(error, EADDRINUSE,
                         "another process listens there: stop it or use another path");
    return 0;
}

/* The path is taken: takes it over if nobody is there. */
static int replace_stale(int fd, const struct sockaddr_un *address, struct error *error)
{
    CLEANUP_CLOSE int lock = lock_directory(address->sun_path, error);

    if (lock < 0)
        return lock;
    /* Whoever held the lock before us may have removed it. */
    if (bind(fd, (const struct sockaddr *)address, sizeof(*address)) == 0)
        return 0;
    if (errno == EADDRINUSE) {
        if (check_stale(address, error) < 0)
            return -error->code;
        if (unlink(address->sun_path) < 0 && errno != ENOENT)
            return error_set_errno(error, errno, "cannot remove the stale socket");
        if (bind(fd, (const struct sockaddr *)address, sizeof(*address)) == 0)
            return 0;
    }
    return error_set_errno(error, errno, "cannot bind");
}

void unix_remove_stale(const char *path)
{
    struct sockaddr_un address;
    struct error ignored;
    CLEANUP_CLOSE int lock = lock_directory(path, &ignored);

    if (lock >= 0 && unix_address(&address, path, &ignored) == 0 &&
        check_stale(&address, &ignored) == 0)
        unlink(path);
}

int unix_listen(const char *path, int type, int backlog, struct error *error)
{
    CLEANUP_CLOSE int fd = -1;
    struct sockaddr_un address;
    int ret = unix_address(&address, path, error);

    if (ret < 0)
        return ret;
    fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || fchmod(fd, S_IRUSR | S_IWUSR) < 0)
        return error_set_errno(error, errno, "cannot make a socket");
    if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0) {
        if (errno != EADDRINUSE)
            return error_set_errno(error, errno, "cannot bind");
        ret = replace_stale(fd, &address, error);
        if (ret < 0)
            return ret;
    }
    if (listen(fd, backlog) < 0) {
        error_set_errno(error, errno, "cannot listen");
        unlink(path);
        return -error->code;
    }
    return STEAL_FD(fd);
}
