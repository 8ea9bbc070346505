/* SPDX-License-Identifier: Apache-2.0
 *
 * A library for LD_PRELOAD that makes system calls of a hand-over fail, one at a time, in the
 * program as it is shipped: baton itself has no code for this. What a stage is, it learns from
 * baton's own trace lines, which it sees being written (run baton with -trace 'update_*'); what
 * shall go wrong, from the file $BATON_FAULTS, which it maps (see inject.h). It makes no system
 * call itself, so that a filter for those does not notice it.
 *
 * A call belongs to a stage if the thread makes it that carries out the stage, or if it is an ioctl
 * of another thread (vCPUs save and load their own state) of a kind that has nothing to do with the
 * guest's running.
 *
 * Calls are functions of the C library. Whether all are here that the program uses and that can
 * fail, the test wrapped-calls finds out.
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <termios.h>
#include <unistd.h>

#include "inject.h"

static struct fault_page *page;

/* Which stage this process is in. The thread that carries it out says so; others read it, and may
 * be at it still when the next one has begun: one that is over is not written over soon. */
struct place {
    char side[FAULT_NAME_SIZE], stage[FAULT_NAME_SIZE];
};
static struct place places[64];
static const struct place *_Atomic current = &places[0];
static _Atomic bool in_stage;
static _Thread_local bool is_mine;

__attribute__((constructor)) static void map_page(void)
{
    const char *path = getenv("BATON_FAULTS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *mapping;

    if (fd < 0)
        return;
    /* All of it at once: page faults are counted, too, and must be baton's. */
    mapping = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    close(fd);
    if (mapping != MAP_FAILED)
        page = mapping;
}

/* --- stages -------------------------------------------------------------------------------- */

static void begin(const char *who, const char *what)
{
    size_t next = (size_t)(current + 1 - places) % (sizeof(places) / sizeof(places[0]));

    snprintf(places[next].side, FAULT_NAME_SIZE, "%s", who);
    snprintf(places[next].stage, FAULT_NAME_SIZE, "%s", what);
    current = &places[next];
    is_mine = true;
    in_stage = true;
}

/* @param goes_on other threads are at it still */
static void end(bool goes_on)
{
    is_mine = false;
    in_stage = goes_on;
}

/* A trace line, such as "12@34.5:update_stage_begin side=incoming stage=prepare". To a stage of the
 * incoming side belong its answer and the wait for what comes next; its part of "go" is between
 * that event and the next stage. The incoming side's lines of update_go and update_claim count as
 * calls: they stand for what is left to do before the guest is claimed, and before it runs.
 * @return whether it was a line that does not count */
static bool read_trace(const char *text, size_t length)
{
    char line[128], event[32], who[FAULT_NAME_SIZE], what[FAULT_NAME_SIZE];

    if (!page || length >= sizeof(line))
        return false;
    memcpy(line, text, length);
    line[length] = '\0';
    if (sscanf(line, "%*d@%*d.%*d:%31s", event) != 1 || strncmp(event, "update_", 7) != 0)
        return false;
    if (strcmp(event, "update_go") == 0 && strstr(line, "side=incoming")) {
        begin("incoming", "go");
        return false;
    }
    if (strcmp(event, "update_claim") == 0 && strstr(line, "side=incoming"))
        return false;
    if (strcmp(event, "update_stage_begin") == 0 &&
        sscanf(line, "%*s side=%15s stage=%15s", who, what) == 2)
        begin(who, what);
    else if (strcmp(event, "update_conclude") == 0 || strcmp(event, "update_undo") == 0)
        end(false);
    else if (strcmp(event, "update_stage_end") == 0 && strstr(line, "side=outgoing"))
        end(strcmp(current->stage, "pause") == 0); /* vCPUs save their states */
    return true;
}

/* --- calls --------------------------------------------------------------------------------- */

/* What vCPUs do from the pause on, however far the stages have come by then, is one thing. */
static const char *stage_of_call(const struct place *here)
{
    bool late =
        !is_mine && strcmp(here->side, "outgoing") == 0 && strcmp(here->stage, "switch") == 0;

    return late ? "pause" : here->stage;
}

static bool is_same_kind(const struct fault_call *call, const struct place *here, const char *name,
                         uint64_t request)
{
    return call->request == request && strcmp(call->call, name) == 0 &&
           strcmp(call->stage, stage_of_call(here)) == 0 && strcmp(call->side, here->side) == 0;
}

/* The log is emptied before each update, and each side goes through a stage once in one. */
static uint32_t log_call(const struct place *here, const char *name, uint64_t request)
{
    uint32_t place = atomic_fetch_add(&page->logged, 1), number = 1;
    struct fault_call *call;

    if (place >= FAULT_LOG_SIZE)
        return 0;
    call = &page->log[place];
    for (uint32_t i = 0; i < place; i++)
        number += is_same_kind(&page->log[i], here, name, request);
    strcpy(call->side, here->side);
    strcpy(call->stage, stage_of_call(here));
    call->request = request;
    call->number = number;
    call->pid = (uint32_t)getpid();
    snprintf(call->call, sizeof(call->call), "%s", name);
    return number;
}

/* What the guest causes is not the stage's. */
static bool is_of_the_guest(uint64_t request)
{
    return request == KVM_RUN || request == KVM_IRQ_LINE || request == KVM_SIGNAL_MSI;
}

/* Every wrapped call comes through here. @return whether it must fail, with errno set */
static bool fault(const char *name, uint64_t request)
{
    const struct place *here = current;
    uint32_t number;

    if (!page || !in_stage ||
        (!is_mine && (strcmp(name, "ioctl") != 0 || is_of_the_guest(request))))
        return false;
    number = log_call(here, name, request);
    if (page->action == FAULT_NONE || page->plan.number != number ||
        !is_same_kind(&page->plan, here, name, request) || atomic_fetch_add(&page->reached, 1) != 0)
        return false;
    while (page->action == FAULT_HOLD && page->reached != 0)
        ;
    if (page->action != FAULT_ERROR)
        return false;
    errno = page->error;
    return true;
}

#define WRAP(type, failed, name, parameters, arguments)                                            \
    type name parameters;                                                                          \
    type name parameters                                                                           \
    {                                                                                              \
        static type(*real) parameters;                                                             \
                                                                                                   \
        if (!real)                                                                                 \
            *(void **)&real = dlsym(RTLD_NEXT, #name);                                             \
        return fault(#name, 0) ? (failed) : real arguments;                                        \
    }

WRAP(int, -1, close, (int fd), (fd))
WRAP(ssize_t, -1, read, (int fd, void *data, size_t size), (fd, data, size))
WRAP(ssize_t, -1, pread64, (int fd, void *data, size_t size, off64_t offset),
     (fd, data, size, offset))
WRAP(ssize_t, -1, pwrite64, (int fd, const void *data, size_t size, off64_t offset),
     (fd, data, size, offset))
WRAP(ssize_t, -1, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags))
WRAP(ssize_t, -1, recvmsg, (int fd, struct msghdr *message, int flags), (fd, message, flags))
WRAP(ssize_t, -1, send, (int fd, const void *data, size_t size, int flags), (fd, data, size, flags))
WRAP(ssize_t, -1, recv, (int fd, void *data, size_t size, int flags), (fd, data, size, flags))
WRAP(int, -1, poll, (struct pollfd * fds, nfds_t count, int timeout), (fds, count, timeout))
WRAP(int, -1, ppoll,
     (struct pollfd * fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask),
     (fds, count, timeout, mask))
WRAP(void *, MAP_FAILED, mmap64,
     (void *address, size_t size, int protection, int flags, int fd, off64_t offset),
     (address, size, protection, flags, fd, offset))
WRAP(int, -1, munmap, (void *address, size_t size), (address, size))
WRAP(int, -1, madvise, (void *address, size_t size, int advice), (address, size, advice))
WRAP(int, -1, mlock, (const void *address, size_t size), (address, size))
WRAP(int, -1, eventfd, (unsigned int value, int flags), (value, flags))
WRAP(int, -1, memfd_create, (const char *name, unsigned int flags), (name, flags))
WRAP(int, -1, ftruncate64, (int fd, off64_t size), (fd, size))
WRAP(int, -1, fstat64, (int fd, struct stat64 *status), (fd, status))
WRAP(int, -1, lstat64, (const char *path, struct stat64 *status), (path, status))
WRAP(int, -1, access, (const char *path, int mode), (path, mode))
WRAP(ssize_t, -1, readlink, (const char *path, char *target, size_t size), (path, target, size))
WRAP(int, -1, socket, (int domain, int type, int protocol), (domain, type, protocol))
WRAP(int, -1, bind, (int fd, const struct sockaddr *address, socklen_t size), (fd, address, size))
WRAP(int, -1, connect, (int fd, const struct sockaddr *address, socklen_t size),
     (fd, address, size))
WRAP(int, -1, listen, (int fd, int backlog), (fd, backlog))
WRAP(int, -1, accept4, (int fd, struct sockaddr *address, socklen_t *size, int flags),
     (fd, address, size, flags))
WRAP(int, -1, getsockopt, (int fd, int level, int name, void *value, socklen_t *size),
     (fd, level, name, value, size))
WRAP(int, -1, setsockopt, (int fd, int level, int name, const void *value, socklen_t size),
     (fd, level, name, value, size))
WRAP(int, -1, getsockname, (int fd, struct sockaddr *address, socklen_t *size), (fd, address, size))
WRAP(int, -1, unlink, (const char *path), (path))
WRAP(int, -1, rename, (const char *from, const char *to), (from, to))
WRAP(int, -1, mkdir, (const char *path, mode_t mode), (path, mode))
WRAP(int, -1, rmdir, (const char *path), (path))
WRAP(char *, NULL, getcwd, (char *path, size_t size), (path, size))
WRAP(DIR *, NULL, opendir, (const char *path), (path))
WRAP(struct dirent64 *, NULL, readdir64, (DIR * directory), (directory))
WRAP(int, -1, fchmod, (int fd, mode_t mode), (fd, mode))
WRAP(int, -1, flock, (int fd, int operation), (fd, operation))
WRAP(int, -1, dup2, (int fd, int number), (fd, number))
WRAP(off64_t, -1, lseek64, (int fd, off64_t offset, int whence), (fd, offset, whence))
WRAP(int, -1, pipe2, (int fds[2], int flags), (fds, flags))
WRAP(int, -1, pidfd_open, (pid_t pid, unsigned int flags), (pid, flags))
WRAP(int, -1, epoll_create1, (int flags), (flags))
WRAP(int, -1, epoll_ctl, (int epoll, int operation, int fd, struct epoll_event *event),
     (epoll, operation, fd, event))
WRAP(int, -1, epoll_wait, (int epoll, struct epoll_event *events, int size, int timeout),
     (epoll, events, size, timeout))
WRAP(int, -1, signalfd, (int fd, const sigset_t *mask, int flags), (fd, mask, flags))
WRAP(int, -1, timerfd_create, (int clock, int flags), (clock, flags))
WRAP(int, -1, timerfd_settime,
     (int fd, int flags, const struct itimerspec *value, struct itimerspec *former),
     (fd, flags, value, former))
WRAP(int, -1, getrlimit64, (__rlimit_resource_t resource, struct rlimit64 *limit),
     (resource, limit))
WRAP(int, -1, setrlimit64, (__rlimit_resource_t resource, const struct rlimit64 *limit),
     (resource, limit))
WRAP(int, -1, posix_openpt, (int flags), (flags))
WRAP(int, -1, grantpt, (int fd), (fd))
WRAP(int, -1, unlockpt, (int fd), (fd))
WRAP(int, -1, tcgetattr, (int fd, struct termios *settings), (fd, settings))
WRAP(int, -1, tcsetattr, (int fd, int actions, const struct termios *settings),
     (fd, actions, settings))
WRAP(FILE *, NULL, fopen64, (const char *path, const char *mode), (path, mode))
WRAP(char *, NULL, fgets, (char *line, int size, FILE *file), (line, size, file))
/* These return their errors. */
WRAP(int, errno, ptsname_r, (int fd, char *name, size_t size), (fd, name, size))
WRAP(int, errno, pthread_create,
     (pthread_t * thread, const pthread_attr_t *attributes, void *(*run)(void *), void *opaque),
     (thread, attributes, run, opaque))

/* Those below have arguments that only some calls have: they are passed on as a list, or as what
 * such an argument can be at most. */

int fscanf(FILE *file, const char *format, ...)
{
    va_list list;
    int fields;

    if (fault("fscanf", 0))
        return EOF;
    va_start(list, format);
    fields = vfscanf(file, format, list);
    va_end(list);
    return fields;
}

int dprintf(int fd, const char *format, ...)
{
    va_list list;
    int length;

    if (fault("dprintf", 0))
        return -1;
    va_start(list, format);
    length = vdprintf(fd, format, list);
    va_end(list);
    return length;
}

int ioctl(int fd, unsigned long request, ...)
{
    static int (*real)(int, unsigned long, void *);
    va_list list;
    void *argument;

    va_start(list, request);
    argument = va_arg(list, void *);
    va_end(list);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "ioctl");
    return fault("ioctl", (uint32_t)request) ? -1 : real(fd, request, argument);
}

int open64(const char *path, int flags, ...)
{
    static int (*real)(const char *, int, mode_t);
    va_list list;
    mode_t mode;

    va_start(list, flags);
    mode = va_arg(list, mode_t);
    va_end(list);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "open64");
    return fault("open64", 0) ? -1 : real(path, flags, mode);
}

int fcntl64(int fd, int command, ...)
{
    static int (*real)(int, int, void *);
    va_list list;
    void *argument;

    va_start(list, command);
    argument = va_arg(list, void *);
    va_end(list);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "fcntl64");
    return fault("fcntl64", (uint32_t)command) ? -1 : real(fd, command, argument);
}

long syscall(long number, ...)
{
    static long (*real)(long, long, long, long, long, long, long);
    long arguments[6];
    va_list list;

    va_start(list, number);
    for (unsigned i = 0; i < 6; i++)
        arguments[i] = va_arg(list, long);
    va_end(list);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "syscall");
    if (fault("syscall", (uint64_t)number))
        return -1;
    return real(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4],
                arguments[5]);
}

ssize_t write(int fd, const void *data, size_t size)
{
    static ssize_t (*real)(int, const void *, size_t);

    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "write");
    if (read_trace(data, size))
        return real(fd, data, size);
    return fault("write", 0) ? -1 : real(fd, data, size);
}
