/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: what a hostile guest's process answers to "baton update" and "baton list". The first
 * byte chooses the command and its options; the bytes up to the first NUL arrive on the first
 * connection, the rest on those after it, and then the other end says no more. The new process,
 * paths and waiting are fakes.
 *
 * What must hold: the command ends, with one of its exit statuses, no descriptor is left, and
 * nothing goes to the terminal that would be obeyed there.
 */
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "base/util.h"
#include "control/cli.h"
#include "control/cli_update.h"
#include "control/qmp.h"
#include "fuzz.h"

#define OPTION_DRY_RUN 0x01u
#define OPTION_VERBOSE 0x02u
#define COMMAND_LIST   0x04u

/* The other end. Of this thread: libFuzzer has others, which wait in earnest. */
static _Thread_local struct {
    bool running;
    const char *first, *rest; /* what it says */
    size_t first_length, rest_length;
    pid_t pid;      /* changes with each connection, as after a hand-over */
    int sockets[2]; /* the ends of the last two connections; -1: none */
    uint64_t slept_ns;
} other;

/* --- fakes --------------------------------------------------------------------------------- */

int nanosleep(const struct timespec *time, struct timespec *left)
{
    if (!other.running)
        return (int)syscall(SYS_nanosleep, time, left);
    other.slept_ns += SECOND_NS;
    return 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    long result = syscall(SYS_clock_gettime, clock, now);

    if (other.running)
        now->tv_sec += (time_t)(other.slept_ns / SECOND_NS);
    return (int)result;
}

int sigprocmask(int how, const sigset_t *set, sigset_t *old)
{
    (void)how, (void)set, (void)old;
    return 0; /* whoever runs this may want to end it */
}

int qmp_connect(const char *path, pid_t *pid)
{
    const char *text = other.pid == 0 ? other.first : other.rest;
    size_t length = other.pid == 0 ? other.first_length : other.rest_length;
    int ends[2], result;

    (void)path;
    result = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends);
    assert(result == 0);
    (void)!send(ends[1], text, length, MSG_NOSIGNAL);
    shutdown(ends[1], SHUT_WR);
    close_fd(other.sockets[other.pid % 2]);
    other.sockets[other.pid % 2] = ends[1];
    *pid = ++other.pid;
    return ends[0];
}

int runtime_path(char path[RUNTIME_PATH_SIZE], const char *name, const char *file,
                 struct error *error)
{
    (void)error;
    return snprintf(path, RUNTIME_PATH_SIZE, "/%s/%s", name, file) < 0;
}

int runtime_directory(char path[RUNTIME_PATH_SIZE], struct error *error)
{
    (void)error;
    return snprintf(path, RUNTIME_PATH_SIZE, "/run/baton") < 0;
}

/* The guests of the runtime directory. */
int scandir(const char *directory, struct dirent ***entries,
            int (*wanted)(const struct dirent *entry),
            int (*compare)(const struct dirent **a, const struct dirent **b))
{
    (void)directory, (void)compare;
    *entries = xcalloc(2, sizeof(**entries));
    for (int i = 0; i < 2; i++) {
        (*entries)[i] = xcalloc(1, sizeof(***entries));
        snprintf((*entries)[i]->d_name, sizeof((*entries)[i]->d_name), "guest%d", i);
        assert(wanted((*entries)[i]));
    }
    return 2;
}

int session_start_child(struct session *session, struct error *error)
{
    (void)session, (void)error;
    return 0;
}

int session_wait_for_child(struct session *session, struct error *error)
{
    (void)session, (void)error;
    return 0;
}

void session_await_child(struct session *session)
{
    (void)session;
}

void session_kill_child(struct session *session)
{
    (void)session;
}

bool session_dismiss_child(struct session *session)
{
    (void)session;
    return false;
}

bool session_take_signal(const struct session *session)
{
    (void)session;
    return false;
}

/* --- the target ---------------------------------------------------------------------------- */

static void update(uint8_t options)
{
    char words[][12] = {"update", "guest", "--dry-run", "--verbose"};
    char *argv[5] = {words[0], words[1]};
    int argc = 1, status;

    if (options & OPTION_DRY_RUN)
        argv[++argc] = words[2];
    if (options & OPTION_VERBOSE)
        argv[++argc] = words[3];
    optind = 0; /* getopt is to begin anew */
    other.running = true;
    status = cli_update(argc, argv + 1);
    other.running = false;
    assert(status == EXIT_SUCCESS || status == EXIT_FAILURE);
}

static void list(void)
{
    int status;

    other.running = true;
    status = cli_list(0, NULL);
    other.running = false;
    assert(status == EXIT_SUCCESS);
}

/* Neither C0 nor C1, which UTF-8 has as 0xc2 and its own byte. */
static void check_printed(const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)text[i], next = i + 1 < size ? (uint8_t)text[i + 1] : 0;

        assert(byte == '\n' || (byte >= 0x20 && byte != 0x7f));
        assert(byte != 0xc2 || next < 0x80 || next >= 0xa0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    FILE *out = stdout, *err = stderr, *terminal;
    const char *text = (const char *)data;
    unsigned before = fuzz_count_descriptors();
    size_t printed_size;
    char *printed;

    if (size == 0)
        return 0;
    memset(&other, 0, sizeof(other));
    other.sockets[0] = other.sockets[1] = -1;
    other.first = text + 1;
    other.first_length = strnlen(other.first, size - 1);
    other.rest = other.first + MIN(other.first_length + 1, size - 1);
    other.rest_length = (size_t)(text + size - other.rest);
    terminal = open_memstream(&printed, &printed_size);
    assert(terminal != NULL);
    stdout = stderr = terminal;
    if (data[0] & COMMAND_LIST)
        list();
    else
        update(data[0]);
    stdout = out;
    stderr = err;
    fclose(terminal);
    check_printed(printed, printed_size);
    free(printed);
    close_fd(other.sockets[0]);
    close_fd(other.sockets[1]);
    assert(fuzz_count_descriptors() == before);
    return 0;
}
