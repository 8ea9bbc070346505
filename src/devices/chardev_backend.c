/* SPDX-License-Identifier: Apache-2.0
 *
 * Opens, hands over and uses the descriptors of a character back end. Called by chardev.c: opening
 * and accepting on the main thread, writing on any thread with the machine's lock held.
 *
 * Standard input and output are shared with the shell and other programs, so O_NONBLOCK must not
 * be set on them. Where it can be, the terminal or pipe is opened once more, which gives a file
 * description of our own; where it cannot, each write is one byte after poll() said there is room.
 */
#include "devices/chardev_backend.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/log.h"
#include "base/unix_socket.h"
#include "base/util.h"

/* ---- options ---- */

/* Reads one ",KEY[=on|off]" of a spec. @return 1 when it was KEY, 0 when not, -EINVAL bad value */
static int parse_switch(const char *option, const char *key, bool *value)
{
    size_t length = strlen(key);

    if (strncmp(option, key, length) != 0 || (option[length] != '\0' && option[length] != '='))
        return 0;
    if (option[length] == '\0' || strcmp(option + length, "=on") == 0)
        *value = true;
    else if (strcmp(option + length, "=off") == 0)
        *value = false;
    else
        return -EINVAL;
    return 1;
}

static int parse_unix(struct backend *backend, char *text, struct error *error)
{
    char *rest = text, *path = strsep(&rest, ","), *option;
    struct sockaddr_un address;
    bool server = false, no_wait = false;

    while ((option = strsep(&rest, ",")) != NULL) {
        int known = parse_switch(option, "server", &server);

        known = known ? known : parse_switch(option, "wait", &backend->wait);
        known = known ? known : parse_switch(option, "nowait", &no_wait);
        if (known != 1)
            return error_set(error, EINVAL,
                             "serial 'unix:%s': unknown option or value '%s' (known: server=on, "
                             "wait=on|off)",
                             path, option);
    }
    if (no_wait)
        backend->wait = false;
    if (!server)
        return error_set(error, EINVAL, "serial 'unix:%s': only server=on is supported", path);
    if (*path == '\0' || strlen(path) >= sizeof(address.sun_path))
        return error_set(error, EINVAL, "serial 'unix:%s': the path must have 1 to %zu characters",
                         path, sizeof(address.sun_path) - 1);
    strcpy(backend->path, path);
    return 0;
}

static int parse_stdio(struct backend *backend, const char *options, struct error *error)
{
    backend->signals = true;
    if (*options == '\0')
        return 0;
    if (parse_switch(options + 1, "signal", &backend->signals) != 1)
        return error_set(error, EINVAL,
                         "serial 'stdio': unknown option or value '%s' (known: "
                         "signal=on|off)",
                         options + 1);
    return 0;
}

int backend_parse(struct backend *backend, const char *spec, struct error *error)
{
    char text[BACKEND_PATH_SIZE];

    *backend = (struct backend){.in = -1, .out = -1, .listener = -1};
    if (strlen(spec) >= sizeof(text))
        return error_set(error, EINVAL, "the serial option is longer than %zu characters",
                         sizeof(text) - 1);
    strcpy(text, spec);
    if (strcmp(text, "none") == 0 || strcmp(text, "null") == 0) {
        backend->kind = BACKEND_NULL;
        return 0;
    }
    if (strncmp(text, "stdio", 5) == 0 && (text[5] == '\0' || text[5] == ',')) {
        backend->kind = BACKEND_STDIO;
        return parse_stdio(backend, text + 5, error);
    }
    if (strcmp(text, "pty") == 0) {
        backend->kind = BACKEND_PTY;
        return 0;
    }
    if (strncmp(text, "file:", 5) == 0 && text[5] != '\0') {
        backend->kind = BACKEND_FILE;
        strcpy(backend->path, text + 5);
        return 0;
    }
    if (strncmp(text, "unix:", 5) == 0) {
        backend->kind = BACKEND_UNIX;
        return parse_unix(backend, text + 5, error);
    }
    return error_set(error, EINVAL,
                     "serial '%s': expected stdio, pty, file:PATH, unix:PATH,server=on, null or "
                     "none",
                     spec);
}

/* ---- opening ---- */

/* Whether a descriptor can make write() wait. Regular files and devices like /dev/null do not. */
static int can_block(int fd, bool *answer, struct error *error)
{
    struct stat status;
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fstat(fd, &status) < 0)
        return error_set_errno(error, errno, "serial: cannot examine descriptor %d", fd);
    *answer = !(flags & O_NONBLOCK) && !S_ISREG(status.st_mode);
    return 0;
}

/* A descriptor for one direction of standard input or output that does not wait, if possible. */
static int reopen(int fd, int mode, struct error *error)
{
    char path[32];
    struct stat status;
    int copy;

    if (fstat(fd, &status) == 0 && (S_ISFIFO(status.st_mode) || isatty(fd))) {
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        copy = open(path, mode | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (copy >= 0)
            return copy;
    }
    copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return copy >= 0 ? copy : error_set_errno(error, errno, "serial 'stdio': no descriptor %d", fd);
}

/* Characters as they are typed, no echo: the guest's terminal driver does all of that. */
static void set_raw(int fd, bool signals, struct termios *before, bool *changed)
{
    struct termios raw;

    if (!isatty(fd) || tcgetattr(fd, before) < 0)
        return;
    raw = *before;
    raw.c_iflag &= ~(tcflag_t)(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
    raw.c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ICANON | IEXTEN);
    if (!signals)
        raw.c_lflag &= ~(tcflag_t)ISIG;
    raw.c_cflag = (raw.c_cflag & ~(tcflag_t)(CSIZE | PARENB)) | CS8;
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    *changed = tcsetattr(fd, TCSANOW, &raw) == 0;
}

static int open_stdio(struct backend *backend, struct termios *terminal, bool *changed,
                      struct error *error)
{
    backend->in = reopen(STDIN_FILENO, O_RDONLY, error);
    if (backend->in < 0)
        return -error->code;
    backend->out = reopen(STDOUT_FILENO, O_WRONLY, error);
    if (backend->out < 0)
        return -error->code;
    set_raw(backend->in, backend->signals, terminal, changed);
    return 0;
}

/* Gives input and output a descriptor each, so that each can have its own event source. */
static int use_for_both(struct backend *backend, int fd, struct error *error)
{
    backend->in = fd;
    backend->out = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (backend->out < 0) {
        error_set_errno(error, errno, "serial: cannot duplicate a descriptor");
        close_fd(STEAL_FD(backend->in));
        return -error->code;
    }
    return 0;
}

static int open_pty(struct backend *backend, const char *name, struct error *error)
{
    CLEANUP_CLOSE int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    CLEANUP_CLOSE int other = -1;
    struct termios mode;
    char path[64];

    if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0 ||
        ptsname_r(master, path, sizeof(path)) != 0 ||
        fcntl(master, F_SETFL, O_RDWR | O_NONBLOCK) < 0)
        return error_set_errno(error, errno, "serial 'pty': cannot make a pseudo-terminal");
    /* Opened and closed once, the other end counts as hung up until somebody opens it. */
    other = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (other < 0 || tcgetattr(other, &mode) < 0)
        return error_set_errno(error, errno, "serial 'pty': cannot open %s", path);
    cfmakeraw(&mode);
    if (tcsetattr(other, TCSANOW, &mode) < 0)
        return error_set_errno(error, errno, "serial 'pty': cannot set up %s", path);
    log_info("char device redirected to %s (label %s)", path, name);
    return use_for_both(backend, STEAL_FD(master), error);
}

static int open_file(struct backend *backend, struct error *error)
{
    backend->out = open(backend->path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (backend->out < 0)
        return error_set_errno(error, errno, "serial: cannot open '%s'", backend->path);
    return 0;
}

static int wait_for_client(struct backend *backend, struct error *error)
{
    struct pollfd poll_fd = {.fd = backend->listener, .events = POLLIN};
    sigset_t none; /* signals for the event loop are blocked, but must be able to end this */
    int result = -EAGAIN;

    sigemptyset(&none);
    log_info("waiting for a connection on: unix:%s", backend->path);
    while (result == -EAGAIN) {
        if (ppoll(&poll_fd, 1, NULL, &none) < 0)
            return error_set_errno(error, errno, "waiting for a client of '%s'", backend->path);
        result = backend_accept(backend, error);
    }
    return result;
}

static int open_unix(struct backend *backend, struct error *error)
{
    backend->listener = unix_listen(backend->path, SOCK_STREAM, 1, error);
    if (backend->listener < 0)
        return error_prefix(error, "serial 'unix:%s': ", backend->path);
    return backend->wait ? wait_for_client(backend, error) : 0;
}

/* What follows from the descriptors, however they were come by. */
static int look_at_output(struct backend *backend, struct error *error)
{
    backend->is_socket = backend->kind == BACKEND_UNIX;
    backend->may_block = false;
    return backend->out < 0 ? 0 : can_block(backend->out, &backend->may_block, error);
}

int backend_open(struct backend *backend, const char *name, struct termios *terminal, bool *changed,
                 struct error *error)
{
    int result = 0;

    switch (backend->kind) {
    case BACKEND_NULL:
        break;
    case BACKEND_STDIO:
        result = open_stdio(backend, terminal, changed, error);
        break;
    case BACKEND_PTY:
        result = open_pty(backend, name, error);
        break;
    case BACKEND_FILE:
        result = open_file(backend, error);
        break;
    case BACKEND_UNIX:
        result = open_unix(backend, error);
        break;
    }
    return result < 0 ? result : look_at_output(backend, error);
}

/* ---- handing over ---- */

static int take(struct fdset *fds, const char *name, const char *what, bool required, int *fd,
                struct error *error)
{
    char full[FDSET_NAME_SIZE];

    *fd = -1;
    snprintf(full, sizeof(full), "chardev/%s/%s", name, what);
    if (!required && !fdset_contains(fds, full))
        return 0;
    *fd = fdset_take(fds, FDSET_ANY, error, "%s", full);
    return *fd < 0 ? *fd : 0;
}

static int take_both(struct backend *backend, const char *name, const char *what, bool required,
                     struct fdset *fds, struct error *error)
{
    int fd;

    if (take(fds, name, what, required, &fd, error) < 0)
        return -error->code;
    return fd < 0 ? 0 : use_for_both(backend, fd, error);
}

int backend_adopt(struct backend *backend, const char *name, struct fdset *fds, struct error *error)
{
    int result = 0;

    switch (backend->kind) {
    case BACKEND_NULL:
        break;
    case BACKEND_STDIO: /* either may have reached its end */
        result = take(fds, name, "in", false, &backend->in, error);
        if (result == 0)
            result = take(fds, name, "out", false, &backend->out, error);
        break;
    case BACKEND_PTY:
        result = take_both(backend, name, "pty", true, fds, error);
        break;
    case BACKEND_FILE:
        result = take(fds, name, "file", true, &backend->out, error);
        break;
    case BACKEND_UNIX:
        result = take(fds, name, "listener", true, &backend->listener, error);
        if (result == 0)
            result = take_both(backend, name, "client", false, fds, error);
        break;
    }
    return result < 0 ? result : look_at_output(backend, error);
}

static int give(struct fdset *fds, const char *name, const char *what, int fd, struct error *error)
{
    return fd < 0 ? 0 : fdset_add_copy(fds, fd, error, "chardev/%s/%s", name, what);
}

int backend_describe(const struct backend *backend, const char *name, struct fdset *fds,
                     struct error *error)
{
    switch (backend->kind) {
    case BACKEND_NULL:
        return 0;
    case BACKEND_STDIO:
        if (give(fds, name, "in", backend->in, error) < 0)
            return -error->code;
        return give(fds, name, "out", backend->out, error);
    case BACKEND_PTY:
        return give(fds, name, "pty", backend->in, error);
    case BACKEND_FILE:
        return give(fds, name, "file", backend->out, error);
    case BACKEND_UNIX:
        if (give(fds, name, "listener", backend->listener, error) < 0)
            return -error->code;
        return give(fds, name, "client", backend->in, error);
    }
    return 0;
}

/* ---- using ---- */

int backend_accept(struct backend *backend, struct error *error)
{
    int client = accept4(backend->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (client < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED))
        return -EAGAIN;
    if (client < 0)
        return error_set_errno(error, errno, "cannot accept a client of '%s'", backend->path);
    if (use_for_both(backend, client, error) < 0)
        return -error->code;
    if (look_at_output(backend, error) < 0) {
        backend_disconnect(backend);
        return -error->code;
    }
    return 0;
}

void backend_disconnect(struct backend *backend)
{
    close_fd(STEAL_FD(backend->in));
    close_fd(STEAL_FD(backend->out));
}

bool backend_pty_open(const struct backend *backend)
{
    struct pollfd poll_fd = {.fd = backend->in, .events = POLLOUT};

    return poll(&poll_fd, 1, 0) >= 0 && !(poll_fd.revents & POLLHUP);
}

static bool ready(int fd, short events)
{
    struct pollfd poll_fd = {.fd = fd, .events = events};

    return poll(&poll_fd, 1, 0) > 0;
}

ssize_t backend_read(const struct backend *backend, void *bytes, size_t size)
{
    ssize_t got;

    if (!ready(backend->in, POLLIN))
        return -EAGAIN;
    got = read(backend->in, bytes, size);
    if (got >= 0)
        return got;
    return errno == EINTR ? -EAGAIN : -errno;
}

ssize_t backend_write(const struct backend *backend, const void *bytes, size_t size)
{
    ssize_t done;

    if (backend->may_block) {
        if (!ready(backend->out, POLLOUT))
            return -EAGAIN;
        size = MIN(size, (size_t)1);
    }
    done = backend->is_socket ? send(backend->out, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT)
                              : write(backend->out, bytes, size);
    if (done >= 0)
        return done;
    return errno == EINTR ? -EAGAIN : -errno;
}

void backend_close(struct backend *backend, bool unlink_path)
{
    backend_disconnect(backend);
    if (unlink_path && backend->listener >= 0)
        unlink(backend->path);
    close_fd(STEAL_FD(backend->listener));
}
