/* SPDX-License-Identifier: Apache-2.0
 *
 * See sandbox_rules.h. A new system call or ioctl goes into the group of the narrowest role that
 * makes it, and so into the main thread's, which has them all.
 */
#include "base/sandbox_rules.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <linux/vfio.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <termios.h>

#include "base/uapi_ioctls.h"
#include "base/util.h"

/* What glibc 2.42 asks of a terminal; struct termios2 is in a header that <termios.h> excludes. */
#define UAPI_TCGETS2 _IOC(_IOC_READ, 'T', 0x2a, 44)
#define UAPI_TCSETS2 _IOC(_IOC_WRITE, 'T', 0x2b, 44)

/* Rows of the tables. */
#define ANY(name)                   SCMP_SYS(name), 0, 0, 0
#define EQUALS(name, index, number) SCMP_SYS(name), index, UINT32_MAX, (uint32_t)(number)
#define WITHOUT(name, index, flag)  SCMP_SYS(name), index, flag, 0
#define WITH(name, index, flag)     SCMP_SYS(name), index, flag, flag
#define IOCTL(request)              EQUALS(ioctl, 1, request)

#define GROUP(table)                                                                               \
    {                                                                                              \
        table, ARRAY_SIZE(table)                                                                   \
    }

/* Every thread: memory that cannot be executed, locks, time, its own end, a line in the log. */
static const struct sandbox_rule every_thread[] = {
    {ANY(read)},
    {ANY(write)},
    {ANY(writev)}, /* what an assertion says */
    {ANY(close)},
    {ANY(futex)},
    {ANY(brk)},
    {WITHOUT(mmap, 2, PROT_EXEC)},
    {WITHOUT(mprotect, 2, PROT_EXEC)},
    {ANY(munmap)},
    {ANY(mremap)},
    {ANY(madvise)},
    {ANY(clock_gettime)},
    {ANY(clock_nanosleep)},
    {ANY(nanosleep)},
    {ANY(gettimeofday)},
    {ANY(getpid)},
    {ANY(gettid)},
    {ANY(getuid)},
    {ANY(geteuid)},
    {ANY(getrandom)},
    {ANY(rt_sigaction)},
    {ANY(rt_sigprocmask)},
    {ANY(rt_sigreturn)},
    {ANY(restart_syscall)},
    {ANY(rseq)},
    {ANY(set_robust_list)},
    {ANY(sched_getaffinity)},
    {ANY(sched_yield)},
    {EQUALS(prctl, 0, PR_GET_NAME)},
    {ANY(exit)},
    {ANY(exit_group)},
};

/* A signal to this process: kicks of vCPUs, abort(). Number 0 is replaced by the process's id. */
static const struct sandbox_rule own_signals[] = {
    {EQUALS(tgkill, 0, 0)},
};

/* The devices that a guest sees, emulated or passed through: what an access of a vCPU, a guest's
 * reset or a hand-over does to them. */
static const struct sandbox_rule devices[] = {
    {ANY(pread64)},
    {ANY(pwrite64)},
    {ANY(sendto)},
    {ANY(poll)},
    {ANY(ppoll)},
    {ANY(fstat)},
    {ANY(newfstatat)},
    {ANY(eventfd2)},
    {ANY(epoll_ctl)},
    {EQUALS(fcntl, 1, F_GETFL)},
    {EQUALS(fcntl, 1, F_DUPFD_CLOEXEC)},
    {IOCTL(KVM_IRQFD)},
    {IOCTL(KVM_IRQ_LINE)},
    {IOCTL(KVM_SIGNAL_MSI)},
    {IOCTL(KVM_SET_GSI_ROUTING)},
    {IOCTL(KVM_SET_USER_MEMORY_REGION)},
    {IOCTL(VFIO_DEVICE_GET_REGION_INFO)}, /* at a guest's first look at a ROM */
    {IOCTL(VFIO_DEVICE_SET_IRQS)},
    {IOCTL(UAPI_VFIO_DEVICE_FEATURE)},
    {IOCTL(VFIO_IOMMU_MAP_DMA)},
    {IOCTL(VFIO_IOMMU_UNMAP_DMA)},
    {IOCTL(UAPI_IOAS_MAP_FILE)},
    {IOCTL(UAPI_IOAS_UNMAP)},
};

/* A vCPU's registers are its own thread's. The last one to stop reads the interrupt controllers. */
static const struct sandbox_rule vcpu[] = {
    {IOCTL(KVM_RUN)},
    {IOCTL(KVM_GET_REGS)},
    {IOCTL(KVM_SET_REGS)},
    {IOCTL(KVM_GET_SREGS)},
    {IOCTL(KVM_SET_SREGS)},
    {IOCTL(KVM_GET_SREGS2)},
    {IOCTL(KVM_SET_SREGS2)},
    {IOCTL(KVM_GET_MSRS)},
    {IOCTL(KVM_SET_MSRS)},
    {IOCTL(KVM_GET_XSAVE)},
    {IOCTL(KVM_GET_XSAVE2)},
    {IOCTL(KVM_SET_XSAVE)},
    {IOCTL(KVM_GET_XCRS)},
    {IOCTL(KVM_SET_XCRS)},
    {IOCTL(KVM_GET_LAPIC)},
    {IOCTL(KVM_SET_LAPIC)},
    {IOCTL(KVM_GET_IRQCHIP)},
    {IOCTL(KVM_GET_PIT2)},
    {IOCTL(KVM_GET_MP_STATE)},
    {IOCTL(KVM_SET_MP_STATE)},
    {IOCTL(KVM_GET_VCPU_EVENTS)},
    {IOCTL(KVM_SET_VCPU_EVENTS)},
    {IOCTL(KVM_GET_DEBUGREGS)},
    {IOCTL(KVM_SET_DEBUGREGS)},
    {IOCTL(KVM_GET_NESTED_STATE)},
    {IOCTL(KVM_SET_NESTED_STATE)},
    {IOCTL(KVM_GET_DEVICE_ATTR)},
    {IOCTL(KVM_SET_DEVICE_ATTR)},
    {IOCTL(UAPI_KVM_PRE_FAULT_MEMORY)},
};

/* Waits for interrupts and injects them. */
static const struct sandbox_rule irq_proxy[] = {
    {ANY(epoll_wait)},
    {ANY(epoll_pwait)},
    {IOCTL(KVM_IRQ_LINE)},
    {IOCTL(KVM_SIGNAL_MSI)},
};

/* The channel to another process, and what moves the guest there and back. */
static const struct sandbox_rule hand_over[] = {
    {EQUALS(socket, 0, AF_UNIX)},
    {ANY(connect)},
    {ANY(getsockopt)},
    {ANY(setsockopt)},
    {ANY(sendmsg)},
    {ANY(recvmsg)},
    {ANY(recvfrom)},
    {ANY(pidfd_open)},
    {EQUALS(pidfd_send_signal, 1, SIGKILL)},
    {ANY(memfd_create)},
    {ANY(ftruncate)},
    {ANY(kcmp)},
    {ANY(capget)},
    {EQUALS(prlimit64, 0, 0)}, /* its own */
    {ANY(timerfd_settime)},
    {EQUALS(fcntl, 1, F_GETFD)},
    {EQUALS(fcntl, 1, F_SETFL)},
    {EQUALS(fcntl, 1, F_ADD_SEALS)},
    {EQUALS(fcntl, 1, F_GET_SEALS)},
    {IOCTL(KVM_GET_CLOCK)},
    {IOCTL(KVM_SET_CLOCK)},
    {IOCTL(KVM_GET_IRQCHIP)},
    {IOCTL(KVM_SET_IRQCHIP)},
    {IOCTL(KVM_GET_PIT2)},
    {IOCTL(KVM_SET_PIT2)},
    {IOCTL(VFIO_CHECK_EXTENSION)},
    {IOCTL(UAPI_IOAS_CHANGE_PROCESS)},
};

/* The main thread's own: files, sockets that others connect to, the event loop, threads. */
static const struct sandbox_rule process[] = {
    {ANY(open)},
    {ANY(openat)},
    {ANY(access)},
    {ANY(faccessat)},
    {ANY(faccessat2)},
    {ANY(stat)},
    {ANY(lstat)},
    {ANY(statx)},
    {ANY(statfs)},
    {ANY(fstatfs)},
    {ANY(lseek)},
    {ANY(readv)},
    {ANY(getdents64)},
    {ANY(getcwd)},
    {ANY(readlink)},
    {ANY(readlinkat)},
    {ANY(mkdir)},
    {ANY(mkdirat)},
    {ANY(rmdir)},
    {ANY(unlink)},
    {ANY(unlinkat)},
    {ANY(rename)},
    {ANY(renameat)},
    {ANY(renameat2)},
    {ANY(fchmod)},
    {ANY(fallocate)},
    {ANY(flock)},
    {ANY(umask)},
    {ANY(dup2)},
    {ANY(dup3)},
    {EQUALS(fcntl, 1, F_SETFD)},
    {EQUALS(fcntl, 1, F_DUPFD)},
    {ANY(bind)},
    {ANY(listen)},
    {ANY(accept4)},
    {ANY(shutdown)},
    {ANY(getsockname)},
    {ANY(getpeername)},
    {ANY(epoll_create1)},
    {ANY(epoll_pwait2)},
    {ANY(timerfd_create)},
    {ANY(signalfd4)},
    {ANY(rt_sigpending)},
    {ANY(rt_sigtimedwait)},
    {ANY(sigaltstack)},
    {ANY(getppid)},
    {ANY(getgid)},
    {ANY(getegid)},
    {ANY(uname)},
    {ANY(sysinfo)},
    /* A thread, and no process: its function is ours, so it begins with sandbox_enter(). */
    {WITH(clone, 0, CLONE_THREAD)},
    {EQUALS(seccomp, 0, SECCOMP_SET_MODE_FILTER)},
    {EQUALS(prctl, 0, PR_SET_NAME)},
    {EQUALS(prctl, 0, PR_SET_NO_NEW_PRIVS)},
    /* Terminals and sockets. */
    {IOCTL(TCGETS)},
    {IOCTL(TCSETS)},
    {IOCTL(TCSETSW)},
    {IOCTL(TCSETSF)},
    {IOCTL(UAPI_TCGETS2)},
    {IOCTL(UAPI_TCSETS2)},
    {IOCTL(TIOCGPTN)},
    {IOCTL(TIOCSPTLCK)},
    {IOCTL(FIONREAD)},
};

/* Making a machine, and resetting one. */
static const struct sandbox_rule machine[] = {
    {IOCTL(KVM_GET_API_VERSION)},
    {IOCTL(KVM_CHECK_EXTENSION)},
    {IOCTL(KVM_CREATE_VM)},
    {IOCTL(KVM_GET_VCPU_MMAP_SIZE)},
    {IOCTL(KVM_GET_SUPPORTED_CPUID)},
    {IOCTL(KVM_GET_MSR_INDEX_LIST)},
    {IOCTL(KVM_SET_TSS_ADDR)},
    {IOCTL(KVM_SET_IDENTITY_MAP_ADDR)},
    {IOCTL(KVM_CREATE_IRQCHIP)},
    {IOCTL(KVM_CREATE_PIT2)},
    {IOCTL(KVM_CREATE_DEVICE)},
    {IOCTL(KVM_CREATE_VCPU)},
    {IOCTL(KVM_SET_CPUID2)},
    {IOCTL(KVM_SET_TSC_KHZ)},
    {IOCTL(VFIO_GET_API_VERSION)},
    {IOCTL(VFIO_SET_IOMMU)},
    {IOCTL(VFIO_GROUP_GET_STATUS)},
    {IOCTL(VFIO_GROUP_SET_CONTAINER)},
    {IOCTL(VFIO_GROUP_UNSET_CONTAINER)},
    {IOCTL(VFIO_GROUP_GET_DEVICE_FD)},
    {IOCTL(VFIO_IOMMU_GET_INFO)},
    {IOCTL(VFIO_DEVICE_GET_INFO)},
    {IOCTL(VFIO_DEVICE_GET_IRQ_INFO)},
    {IOCTL(VFIO_DEVICE_RESET)},
    {IOCTL(UAPI_VFIO_BIND_IOMMUFD)},
    {IOCTL(UAPI_VFIO_ATTACH_IOMMUFD_PT)},
    {IOCTL(UAPI_IOMMU_DESTROY)},
    {IOCTL(UAPI_IOAS_ALLOC)},
    {IOCTL(UAPI_IOAS_COPY)},
    {IOCTL(UAPI_HWPT_ALLOC)},
    {IOCTL(UAPI_HWPT_GET_DIRTY)},
    {IOCTL(UAPI_GET_HW_INFO)},
};

const struct sandbox_list sandbox_lists[SANDBOX_ROLES] = {
    [SANDBOX_MAIN] = {{GROUP(every_thread), GROUP(own_signals), GROUP(vcpu), GROUP(devices),
                       GROUP(irq_proxy), GROUP(hand_over), GROUP(process), GROUP(machine)}},
    [SANDBOX_VCPU] = {{GROUP(every_thread), GROUP(own_signals), GROUP(vcpu), GROUP(devices)}},
    [SANDBOX_IRQ_PROXY] = {{GROUP(every_thread), GROUP(own_signals), GROUP(irq_proxy)}},
    [SANDBOX_HAND_OVER] = {{GROUP(every_thread), GROUP(own_signals), GROUP(devices),
                            GROUP(hand_over)}},
};

const int sandbox_deadly[] = {
    /* other programs, other processes' memory */
    SCMP_SYS(execve),
    SCMP_SYS(execveat),
    SCMP_SYS(fork),
    SCMP_SYS(vfork),
    SCMP_SYS(ptrace),
    SCMP_SYS(process_vm_readv),
    SCMP_SYS(process_vm_writev),
    /* the kernel's inside */
    SCMP_SYS(init_module),
    SCMP_SYS(finit_module),
    SCMP_SYS(delete_module),
    SCMP_SYS(kexec_load),
    SCMP_SYS(kexec_file_load),
    SCMP_SYS(bpf),
    SCMP_SYS(perf_event_open),
    SCMP_SYS(iopl),
    SCMP_SYS(ioperm),
    /* another user, another view of the host */
    SCMP_SYS(setuid),
    SCMP_SYS(setgid),
    SCMP_SYS(setresuid),
    SCMP_SYS(setresgid),
    SCMP_SYS(capset),
    SCMP_SYS(unshare),
    SCMP_SYS(setns),
    SCMP_SYS(chroot),
    SCMP_SYS(pivot_root),
    SCMP_SYS(mount),
    SCMP_SYS(umount2),
    SCMP_SYS(open_by_handle_at),
    SCMP_SYS(reboot),
    SCMP_SYS(add_key),
    SCMP_SYS(request_key),
    SCMP_SYS(keyctl),
};

const size_t sandbox_deadly_count = ARRAY_SIZE(sandbox_deadly);
