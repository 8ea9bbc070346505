/* SPDX-License-Identifier: Apache-2.0
 *
 * The new process of a "baton update": see cli_update.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

#include "base/util.h"
#include "channel/channel.h"
#include "control/cli_update.h"

#define END_TIMEOUT_NS (5 * SECOND_NS)

/* Reaps the new process when it has ended; it may have been killed, and its socket's path be left.
 * @param options WNOHANG, or 0 to wait until it has */
static bool child_ended(struct session *session, int options)
{
    pid_t pid = 0;

    if (session->child <= 0 || session->child_ended)
        return session->child_ended;
    do
        pid = waitpid(session->child, NULL, options);
    while (pid < 0 && errno == EINTR);
    if (pid == session->child) {
        session->child_ended = true;
        unlink(session->cpr_path);
    }
    return session->child_ended;
}

void session_kill_child(struct session *session)
{
    if (session->child <= 0 || child_ended(session, WNOHANG))
        return;
    kill(session->child, SIGKILL);
    child_ended(session, 0);
}

/* The new process's command line. The list is the caller's to free, its words are borrowed. */
static char **child_words(const struct session *session, char *incoming)
{
    static char name[] = "baton", run[] = "run", option[] = "-incoming", trace[] = "-trace";
    char **words = xcalloc(5 + 2 * session->trace_count, sizeof(*words));
    size_t count = 0;

    words[count++] = name;
    words[count++] = run;
    words[count++] = option;
    words[count++] = incoming;
    for (unsigned i = 0; i < session->trace_count; i++) {
        words[count++] = trace;
        words[count++] = session->traces[i];
    }
    return words;
}

/* In the new process: becomes baton run, in a session of its own. Does not return. */
static void exec_child(const struct session *session, char **words, int report_fd)
{
    int null_fd = open("/dev/null", O_RDWR);
    sigset_t none;
    int code;

    setsid();
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    dup2(null_fd, STDIN_FILENO);
    dup2(null_fd, STDOUT_FILENO);
    if (null_fd > STDERR_FILENO)
        close(null_fd);
    execv(session->binary, words);
    code = errno;
    (void)!write(report_fd, &code, sizeof(code));
    _exit(127);
}

/* Starts the new process; returns when it has become baton, or could not. */
int session_start_child(struct session *session, struct error *error)
{
    CLEANUP_CLOSE int write_end = -1;
    CLEANUP_CLOSE int read_end = -1;
    CLEANUP_FREE char *incoming = NULL;
    CLEANUP_FREE char **words = NULL;
    json_t *channel = json_pack("{s:s,s:{s:s,s:s,s:s}}", "channel-type", "cpr", "addr", "transport",
                                "socket", "type", "unix", "path", session->cpr_path);
    int ends[2], code = 0;

    if (channel == NULL)
        return error_set(error, EINVAL, "the path '%s' is not UTF-8", session->cpr_path);
    incoming = json_dumps(channel, JSON_COMPACT);
    json_decref(channel);
    words = child_words(session, incoming);
    unlink(session->cpr_path); /* of an update that was killed and had the same process id */
    if (pipe2(ends, O_CLOEXEC) < 0)
        return error_set_errno(error, errno, "cannot make a pipe");
    read_end = ends[0];
    write_end = ends[1];
    session->child = fork();
    if (session->child < 0)
        return error_set_errno(error, errno, "cannot start a process");
    if (session->child == 0)
        exec_child(session, words, write_end);
    close_fd(STEAL_FD(write_end));
    if (read(read_end, &code, sizeof(code)) == sizeof(code))
        return error_set_errno(error, code, "cannot execute '%s'", session->binary);
    return 0;
}

/* Whether a process listens at a path. Asked of the kernel, since a connection made to find out
 * would be the one connection that the new process waits for. */
static bool is_listening(const char *path)
{
    CLEANUP_FREE char *line = NULL;
    FILE *sockets = NULL;
    size_t size = 0;
    bool found = false;

    /* A socket whose path was removed still has it in the table. */
    if (access(path, F_OK) == 0)
        sockets = fopen("/proc/net/unix", "re");
    if (sockets == NULL)
        return false;
    while (!found && getline(&line, &size, sockets) > 0) {
        unsigned flags;
        int used = 0;

        line[strcspn(line, "\n")] = '\0';
        /* Num: RefCount Protocol Flags Type St Inode Path */
        if (sscanf(line, "%*s %*s %*s %x %*s %*s %*s %n", &flags, &used) == 1 && used > 0)
            found = (flags & 0x10000) != 0 && strcmp(line + used, path) == 0; /* SO_ACCEPTCON */
    }
    fclose(sockets);
    return found;
}

bool session_take_signal(const struct session *session)
{
    struct signalfd_siginfo info;

    return read(session->signal_fd, &info, sizeof(info)) == sizeof(info);
}

int session_wait_for_child(struct session *session, struct error *error)
{
    while (!is_listening(session->cpr_path)) {
        const struct timespec pause = {.tv_nsec = 2000000};

        if (child_ended(session, WNOHANG))
            return error_set(error, ECHILD,
                             "the new process ended before it could take over "
                             "(its messages are above)");
        if (clock_ns() > session->deadline)
            return error_set(error, ETIMEDOUT, "the new process was not ready in time");
        if (session_take_signal(session))
            return error_set(error, EINTR, "interrupted");
        nanosleep(&pause, NULL);
    }
    return 0;
}

static bool ends_soon(struct session *session)
{
    uint64_t deadline = clock_ns() + END_TIMEOUT_NS;

    while (!child_ended(session, WNOHANG) && clock_ns() < deadline) {
        const struct timespec pause = {.tv_nsec = 2000000};

        nanosleep(&pause, NULL);
    }
    return session->child_ended;
}

/* The new process ends by itself after a rehearsal. One that does not is of no use. */
void session_await_child(struct session *session)
{
    if (!ends_soon(session))
        session_kill_child(session);
}

bool session_dismiss_child(struct session *session)
{
    struct channel_message nonsense = {.type = UINT32_MAX};
    struct channel *channel;
    struct error ignored = {0};

    /* A connection that is closed without a word would not count as the one. */
    if (channel_connect(&channel, session->cpr_path, 0, &ignored) == 0) {
        channel_send(channel, &nonsense, 0, &ignored);
        channel_close(channel);
    }
    return ends_soon(session);
}
