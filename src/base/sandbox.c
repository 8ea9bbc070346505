/* SPDX-License-Identifier: Apache-2.0
 *
 * See sandbox.h. Tables become programs of the kernel's filter language through libseccomp, when
 * the process starts and has one thread. Called by main.c, and by each thread for itself.
 *
 * The file-scope state is written before there is a second thread, but for the count of refusals.
 */
#include "base/sandbox.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/ucontext.h>
#include <unistd.h>

#include "base/log.h"
#include "base/sandbox_rules.h"
#include "base/util.h"

#ifndef __has_feature
#define __has_feature(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||                               \
    __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) ||                         \
    __has_feature(memory_sanitizer) || __has_feature(undefined_behavior_sanitizer)
#define SANITIZED true
#else
#define SANITIZED false
#endif

#define REFUSALS_LOGGED 32u

static struct sock_fprog programs[SANDBOX_ROLES]; /* empty: there is no sandbox */
static unsigned refusals;

/* --- from tables to programs --------------------------------------------------------------- */

static int add_rule(scmp_filter_ctx context, const struct sandbox_rule *rule)
{
    bool own_process = rule->call == SCMP_SYS(tgkill);
    struct scmp_arg_cmp compare = {
        .arg = rule->argument,
        .op = SCMP_CMP_MASKED_EQ,
        .datum_a = rule->mask,
        .datum_b = own_process ? (uint32_t)getpid() : rule->value,
    };

    return rule->mask ? seccomp_rule_add_array(context, SCMP_ACT_ALLOW, rule->call, 1, &compare)
                      : seccomp_rule_add_array(context, SCMP_ACT_ALLOW, rule->call, 0, NULL);
}

static int add_list(scmp_filter_ctx context, const struct sandbox_list *list)
{
    for (unsigned i = 0; i < SANDBOX_GROUPS_MAX; i++) {
        for (size_t k = 0; k < list->groups[i].count; k++) {
            int ret = add_rule(context, &list->groups[i].rules[k]);

            if (ret < 0)
                return ret;
        }
    }
    return 0;
}

/* @return 0 or -errno */
static int fill(scmp_filter_ctx context, enum sandbox_role role)
{
    int ret = seccomp_attr_set(context, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);

    /* Its flags are in memory, where a filter cannot look: glibc takes clone() when it is absent.
     */
    if (ret == 0)
        ret = seccomp_rule_add_array(context, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0, NULL);
    /* The only call in a guest's fast path, and the kernel remembers the verdict for those whose
     * arguments are not compared: it is looked for first. */
    if (ret == 0)
        ret = seccomp_syscall_priority(context, SCMP_SYS(ioctl), UINT8_MAX);
    for (size_t i = 0; ret == 0 && i < sandbox_deadly_count; i++)
        ret = seccomp_rule_add_array(context, SCMP_ACT_KILL_PROCESS, sandbox_deadly[i], 0, NULL);
    return ret < 0 ? ret : add_list(context, &sandbox_lists[role]);
}

/* libseccomp before 2.6 writes a program to a descriptor only. */
static int read_program(struct sock_fprog *program, int fd)
{
    off_t size = lseek(fd, 0, SEEK_END);

    if (size <= 0 || size / (off_t)sizeof(struct sock_filter) > BPF_MAXINSNS)
        return -E2BIG;
    program->filter = xcalloc(1, (size_t)size);
    program->len = (unsigned short)((size_t)size / sizeof(struct sock_filter));
    return pread(fd, program->filter, (size_t)size, 0) == size ? 0 : -EIO;
}

static int compile(enum sandbox_role role, struct error *error)
{
    scmp_filter_ctx context = seccomp_init(SCMP_ACT_TRAP);
    CLEANUP_CLOSE int fd = memfd_create("sandbox", MFD_CLOEXEC);
    int ret;

    if (context == NULL || fd < 0)
        ret = -ENOMEM;
    else
        ret = fill(context, role);
    if (ret == 0)
        ret = seccomp_export_bpf(context, fd);
    if (ret == 0)
        ret = read_program(&programs[role], fd);
    if (context != NULL)
        seccomp_release(context);
    return ret < 0 ? error_set_errno(error, -ret, "-sandbox: cannot make filter %d", (int)role) : 0;
}

/* --- calls that are not on the list -------------------------------------------------------- */

/* Runs in place of the call, in the thread that made it. The caller gets EPERM; whoever reads the
 * log learns what it was. */
static void on_refused(int signal, siginfo_t *info, void *opaque)
{
    greg_t *registers = ((ucontext_t *)opaque)->uc_mcontext.gregs;
    int saved = errno;
    char thread[16] = "";

    (void)signal;
    if (__atomic_fetch_add(&refusals, 1, __ATOMIC_RELAXED) < REFUSALS_LOGGED) {
        prctl(PR_GET_NAME, thread);
        log_error("sandbox: thread '%s' was refused system call %d (arguments 0x%llx, 0x%llx, "
                  "0x%llx)",
                  thread, info->si_syscall, (unsigned long long)registers[REG_RDI],
                  (unsigned long long)registers[REG_RSI], (unsigned long long)registers[REG_RDX]);
    }
    registers[REG_RAX] = -EPERM;
    errno = saved;
}

static int handle_refusals(struct error *error)
{
    struct sigaction action = {.sa_sigaction = on_refused, .sa_flags = SA_SIGINFO};

    sigemptyset(&action.sa_mask);
    if (sigaction(SIGSYS, &action, NULL) < 0)
        return error_set_errno(error, errno, "-sandbox: cannot handle SIGSYS");
    return 0;
}

/* --- installing ---------------------------------------------------------------------------- */

static int install(enum sandbox_role role)
{
    sigset_t refused;

    /* A thread that blocks it would be killed for a call that is to fail. */
    sigemptyset(&refused);
    sigaddset(&refused, SIGSYS);
    pthread_sigmask(SIG_UNBLOCK, &refused, NULL);
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &programs[role]) == 0 ? 0 : -errno;
}

bool sandbox_is_built_in(void)
{
    return !SANITIZED;
}

int sandbox_start(struct error *error)
{
    int ret = 0;

    if (!sandbox_is_built_in())
        return 0;
    for (unsigned role = 0; ret == 0 && role < SANDBOX_ROLES; role++)
        ret = compile(role, error);
    if (ret == 0)
        ret = handle_refusals(error);
    if (ret < 0)
        return ret;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return error_set_errno(error, errno, "-sandbox: cannot give up new privileges");
    ret = install(SANDBOX_MAIN);
    if (ret < 0)
        return error_set_errno(
            error, -ret,
            "-sandbox: this kernel takes no filter of system calls: use a kernel "
            "with CONFIG_SECCOMP_FILTER, or -sandbox off");
    return 0;
}

void sandbox_enter(enum sandbox_role role)
{
    int ret = programs[role].len ? install(role) : 0;

    if (ret < 0)
        log_error("sandbox: a thread keeps the main thread's filter: %s", strerror(-ret));
}
