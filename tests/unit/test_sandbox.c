/* SPDX-License-Identifier: Apache-2.0
 *
 * Filters of system calls (base/sandbox.h): each role, in a process of its own, makes calls that
 * are on its list and calls that are not, and the kernel does what docs/threat-model.md says.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/sandbox.h"
#include "base/sandbox_rules.h"
#include "base/util.h"

#define WRONG_EXIT 100 /* statuses below are values of errno */

static const char *const role_names[SANDBOX_ROLES] = {"main", "vcpu", "irq-proxy", "hand-over"};

struct attempt {
    enum sandbox_role role;
    const struct sandbox_rule *rule; /* the call to make, with the argument that it wants */
};

/* --- one call in one role, in a child ------------------------------------------------------ */

static long make_call(const struct sandbox_rule *rule)
{
    long arguments[6] = {-1, -1, -1, -1, -1, -1};

    if (rule->mask)
        arguments[rule->argument] = (long)rule->value;
    return syscall(rule->call, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4],
                   arguments[5]);
}

static void *thread_main(void *opaque)
{
    const struct attempt *attempt = opaque;

    sandbox_enter(attempt->role);
    _exit(make_call(attempt->rule) < 0 ? errno : 0);
}

static void child(const struct attempt *attempt, int log_fd)
{
    struct error error = {0};
    pthread_t thread;

    dup2(log_fd, STDERR_FILENO);
    if (sandbox_start(&error) < 0)
        _exit(WRONG_EXIT);
    if (attempt->role == SANDBOX_MAIN)
        _exit(make_call(attempt->rule) < 0 ? errno : 0);
    if (pthread_create(&thread, NULL, thread_main, (void *)attempt) != 0)
        _exit(WRONG_EXIT + 1);
    pthread_join(thread, NULL);
    _exit(WRONG_EXIT + 2);
}

/* @return what waitpid() said of a process that made one call */
static int try(enum sandbox_role role, const struct sandbox_rule *rule, char *log, size_t size)
{
    const struct attempt attempt = {.role = role, .rule = rule};
    CLEANUP_CLOSE int log_fd = memfd_create("log", MFD_CLOEXEC);
    pid_t pid = fork();
    ssize_t length;
    int status;

    assert_true(pid >= 0);
    if (pid == 0)
        child(&attempt, log_fd);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    length = pread(log_fd, log, size - 1, 0);
    log[MAX(length, 0)] = '\0';
    return status;
}

static void is_refused(enum sandbox_role role, const struct sandbox_rule *rule)
{
    char log[512], expected[64];
    int status = try(role, rule, log, sizeof(log));

    if (!WIFEXITED(status) || WEXITSTATUS(status) != EPERM)
        fail_msg("%s, system call %d: status 0x%x, log: %s", role_names[role], rule->call, status,
                 log);
    snprintf(expected, sizeof(expected), "was refused system call %d ", rule->call);
    assert_non_null(strstr(log, expected));
}

static void is_deadly(enum sandbox_role role, int call)
{
    const struct sandbox_rule rule = {.call = call};
    char log[512];
    int status = try(role, &rule, log, sizeof(log));

    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSYS)
        fail_msg("%s, system call %d: status 0x%x, log: %s", role_names[role], call, status, log);
}

/* With arguments that mean nothing, a call that gets through fails for another reason. */
static void is_let_through(enum sandbox_role role, const struct sandbox_rule *rule)
{
    char log[512];
    int status = try(role, rule, log, sizeof(log));

    if (!WIFEXITED(status) || WEXITSTATUS(status) >= WRONG_EXIT || log[0] != '\0')
        fail_msg("%s, system call %d: status 0x%x, log: %s", role_names[role], rule->call, status,
                 log);
}

/* --- tests --------------------------------------------------------------------------------- */

static void deadly(void **state)
{
    const int at_least[] = {SCMP_SYS(execve), SCMP_SYS(execveat), SCMP_SYS(fork), SCMP_SYS(vfork),
                            SCMP_SYS(ptrace), SCMP_SYS(setuid),   SCMP_SYS(mount)};

    for (unsigned role = 0; role < SANDBOX_ROLES; role++) {
        for (size_t i = 0; i < sandbox_deadly_count; i++)
            is_deadly(role, sandbox_deadly[i]);
        for (size_t i = 0; i < ARRAY_SIZE(at_least); i++)
            is_deadly(role, at_least[i]);
    }
}

/* What baton never does, and what only other roles do. */
static void refused(void **state)
{
    const struct sandbox_rule everywhere[] = {
        {SCMP_SYS(socket), 0, UINT32_MAX, AF_INET},
        {SCMP_SYS(socket), 0, UINT32_MAX, AF_NETLINK},
        {SCMP_SYS(ioctl), 1, UINT32_MAX, 0x89a0 /* SIOCBRADDBR */},
        {SCMP_SYS(ioctl), 1, UINT32_MAX, 0x5412 /* TIOCSTI */},
        {SCMP_SYS(mmap), 2, UINT32_MAX, PROT_READ | PROT_EXEC},
        {SCMP_SYS(mprotect), 2, UINT32_MAX, PROT_READ | PROT_WRITE | PROT_EXEC},
        {SCMP_SYS(clone), 0, UINT32_MAX, SIGCHLD},
        {SCMP_SYS(tgkill), 0, UINT32_MAX, 1},
        {SCMP_SYS(pidfd_send_signal), 1, UINT32_MAX, SIGSTOP},
        {SCMP_SYS(prlimit64), 0, UINT32_MAX, 1},
        {SCMP_SYS(fcntl), 1, UINT32_MAX, F_SETOWN},
        {SCMP_SYS(prctl), 0, UINT32_MAX, PR_SET_DUMPABLE},
        {.call = SCMP_SYS(kill)},
        {.call = SCMP_SYS(tkill)},
        {.call = SCMP_SYS(personality)},
        {.call = SCMP_SYS(io_uring_setup)},
        {.call = SCMP_SYS(userfaultfd)},
        {.call = SCMP_SYS(chown)},
        {.call = SCMP_SYS(symlink)},
        {.call = SCMP_SYS(clock_settime)},
        {.call = 100000 /* what a later kernel may have */},
    };
    const struct sandbox_rule threads[] = {
        {.call = SCMP_SYS(openat)},
        {.call = SCMP_SYS(open)},
        {.call = SCMP_SYS(unlink)},
        {.call = SCMP_SYS(accept4)},
        {.call = SCMP_SYS(bind)},
        {.call = SCMP_SYS(seccomp)},
        {SCMP_SYS(clone), 0, UINT32_MAX, 0x10000 /* CLONE_THREAD */},
        {SCMP_SYS(ioctl), 1, UINT32_MAX, KVM_CREATE_VM},
    };
    const struct sandbox_rule run = {SCMP_SYS(ioctl), 1, UINT32_MAX, KVM_RUN};
    const struct sandbox_rule connect_to = {.call = SCMP_SYS(connect)};
    const struct sandbox_rule write_at = {.call = SCMP_SYS(pwrite64)};

    for (unsigned role = 0; role < SANDBOX_ROLES; role++) {
        for (unsigned i = 0; i < ARRAY_SIZE(everywhere); i++)
            is_refused(role, &everywhere[i]);
        for (unsigned i = 0; role != SANDBOX_MAIN && i < ARRAY_SIZE(threads); i++)
            is_refused(role, &threads[i]);
    }
    is_refused(SANDBOX_IRQ_PROXY, &run);
    is_refused(SANDBOX_HAND_OVER, &run);
    is_refused(SANDBOX_IRQ_PROXY, &connect_to);
    is_refused(SANDBOX_VCPU, &connect_to);
    is_refused(SANDBOX_IRQ_PROXY, &write_at);
}

/* All ioctls of a list, in its role and in the main thread, which must have what its threads need.
 */
static void let_through(void **state)
{
    for (unsigned role = 0; role < SANDBOX_ROLES; role++) {
        for (unsigned i = 0; i < SANDBOX_GROUPS_MAX; i++) {
            const struct sandbox_group *group = &sandbox_lists[role].groups[i];

            for (size_t k = 0; k < group->count; k++) {
                if (group->rules[k].call != SCMP_SYS(ioctl))
                    continue;
                is_let_through(role, &group->rules[k]);
                is_let_through(SANDBOX_MAIN, &group->rules[k]);
            }
        }
    }
}

/* A call by the numbers of 32-bit programs, where 11 is execve and 1 is exit. */
static void other_architecture(void **state)
{
    pid_t pid = fork();
    int status;

    assert_true(pid >= 0);
    if (pid == 0) {
        struct error error = {0};

        if (sandbox_start(&error) < 0)
            _exit(WRONG_EXIT);
        __asm__ volatile("int $0x80" ::"a"(1), "b"(0) : "memory");
        _exit(WRONG_EXIT + 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
}

/* Bits that the kernel does not look at make no difference: they are no way around a comparison. */
static void upper_half(void **state)
{
    pid_t pid = fork();
    int status;

    assert_true(pid >= 0);
    if (pid == 0) {
        struct error error = {0};
        bool right;

        (void)!freopen("/dev/null", "w", stderr);
        if (sandbox_start(&error) < 0)
            _exit(WRONG_EXIT);
        right = syscall(SYS_ioctl, -1, (1L << 32) | 0x5412, 0) < 0 && errno == EPERM &&
                syscall(SYS_ioctl, -1, (1L << 32) | KVM_RUN, 0) < 0 && errno == EBADF &&
                syscall(SYS_socket, (1L << 32) | AF_INET, SOCK_STREAM, 0) < 0 && errno == EPERM;
        _exit(right ? 0 : WRONG_EXIT + 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void *enter_and_assert(void *opaque)
{
    sandbox_enter(*(const enum sandbox_role *)opaque);
    assert(!"two and two");
    return NULL;
}

/* Our own mistakes end the process as they do without a filter: saying which. */
static void assertions(void **state)
{
    for (enum sandbox_role role = 0; role < SANDBOX_ROLES; role++) {
        CLEANUP_CLOSE int log_fd = memfd_create("log", MFD_CLOEXEC);
        pid_t pid = fork();
        char log[512] = "";
        int status;

        assert_true(pid >= 0);
        if (pid == 0) {
            struct error error = {0};
            pthread_t thread;

            dup2(log_fd, STDERR_FILENO);
            if (sandbox_start(&error) == 0 &&
                pthread_create(&thread, NULL, enter_and_assert, &role) == 0)
                pthread_join(thread, NULL);
            _exit(WRONG_EXIT);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(pread(log_fd, log, sizeof(log) - 1, 0) > 0);
        assert_non_null(strstr(log, "two and two"));
        assert_null(strstr(log, "refused"));
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    }
}

static void *enter_and_open(void *opaque)
{
    sandbox_enter(SANDBOX_VCPU);
    return (void *)(intptr_t)open("/dev/null", O_RDONLY | O_CLOEXEC);
}

/* -sandbox off: a thread that enters its role goes unfiltered. */
static void off(void **state)
{
    pthread_t thread;
    void *result;

    assert_int_equal(pthread_create(&thread, NULL, enter_and_open, NULL), 0);
    pthread_join(thread, &result);
    assert_true((intptr_t)result >= 0);
    close_fd((int)(intptr_t)result);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(off),        cmocka_unit_test(deadly),
        cmocka_unit_test(refused),    cmocka_unit_test(let_through),
        cmocka_unit_test(upper_half), cmocka_unit_test(other_architecture),
        cmocka_unit_test(assertions),
    };

    if (!sandbox_is_built_in()) {
        puts("1..0 # SKIP a build with sanitizers filters nothing");
        return 0;
    }
    return cmocka_run_group_tests_name("sandbox", tests, NULL, NULL);
}
