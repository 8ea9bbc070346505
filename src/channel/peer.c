/* SPDX-License-Identifier: Apache-2.0
 *
 * Who is at the other end of a socket, and helpers that all of channel/ needs. Called by the thread
 * that sets the connection up.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>

#include "base/util.h"
#include "channel/internal.h"
#include "channel/uapi_compat.h"

uint64_t deadline_after(int timeout_ms)
{
    if (timeout_ms < 0)
        return UINT64_MAX;
    return clock_ns() + (uint64_t)timeout_ms * 1000000u;
}

int poll_until(struct pollfd *fds, nfds_t count, uint64_t deadline)
{
    while (true) {
        uint64_t now = clock_ns();
        uint64_t left = deadline > now ? deadline - now : 0;
        struct timespec wait = {.tv_sec = (time_t)(left / 1000000000u),
                                .tv_nsec = (long)(left % 1000000000u)};
        int ready = ppoll(fds, count, deadline == UINT64_MAX ? NULL : &wait, NULL);

        if (ready >= 0 || errno != EINTR)
            return ready;
    }
}

int fail_errno(struct error *error, int code, const char *what)
{
    if (code == EMFILE)
        return error_set(error, code,
                         "%s: this process has no descriptors left: raise its limit of open files "
                         "(ulimit -n, or LimitNOFILE= of its unit)",
                         what);
    if (code == ENFILE)
        return error_set(error, code, "%s: the host has no descriptors left: raise fs.file-max",
                         what);
    return error_set_errno(error, code, "%s", what);
}

/* The kernel took these when the peer connected, or called listen(): the peer cannot lie. */
static int check_user(int socket, pid_t *pid, struct error *error)
{
    struct ucred credentials;
    socklen_t size = sizeof(credentials);

    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0)
        return error_set_errno(error, errno, "cannot tell who is at the other end of the channel");
    if (credentials.uid != geteuid() && credentials.uid != 0)
        return error_set(error, EACCES,
                         "process %d at the other end of the channel belongs to user %u: only user "
                         "%u and root may take part",
                         (int)credentials.pid, credentials.uid, geteuid());
    *pid = credentials.pid;
    return 0;
}

/* Before Linux 6.5: by number. The number could be another process's by now, but not while the
 * socket still has its other end, which the process that connected would have closed by dying. */
static int open_pidfd_by_number(int socket, pid_t pid)
{
    struct pollfd hung_up = {.fd = socket};
    int pidfd = pidfd_open(pid, 0);

    if (pidfd < 0)
        return -errno;
    if (poll_until(&hung_up, 1, 0) > 0 && (hung_up.revents & POLLHUP)) {
        close_fd(pidfd);
        return -ESRCH;
    }
    return pidfd;
}

static int open_pidfd(int socket, pid_t pid)
{
    int pidfd = -1;
    socklen_t size = sizeof(pidfd);

    if (getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) == 0)
        return pidfd;
    if (errno != ENOPROTOOPT)
        return -errno;
    return open_pidfd_by_number(socket, pid);
}

int peer_identify(int socket, struct peer *peer, struct error *error)
{
    int ret = check_user(socket, &peer->pid, error);

    if (ret < 0)
        return ret;
    peer->pidfd = open_pidfd(socket, peer->pid);
    /* Which of the two depends on the kernel; both mean that it has ended and was reaped. */
    if (peer->pidfd == -ESRCH || peer->pidfd == -EINVAL || peer->pidfd == -ENODATA)
        return error_set(error, EPIPE, "process %d at the other end of the channel has ended",
                         (int)peer->pid);
    if (peer->pidfd < 0)
        return fail_errno(error, -peer->pidfd, "cannot watch the peer of a channel");
    return 0;
}
