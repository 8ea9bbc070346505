/* SPDX-License-Identifier: Apache-2.0
 *
 * See vcpu.h. A vCPU's thread is always in one of three places: waiting for something to do, in
 * the exit loop, or carrying out a task. What others want of it is written under vcpu->lock; a
 * thread in the exit loop is made to look by a kick.
 */
#include "kvm/vcpu.h"

#include <errno.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/log.h"
#include "base/sandbox.h"
#include "base/util.h"

#define DELIVERY_ERRORS_MAX 8u
#define KICK_SIGNAL         SIGUSR1

/* --- kicks --------------------------------------------------------------------------------- */

static void on_kick(int signal)
{
    /* Its only purpose is to make KVM_RUN return. */
    (void)signal;
}

int kvm_vcpu_init_signals(struct error *error)
{
    struct sigaction action = {.sa_handler = on_kick};

    sigemptyset(&action.sa_mask);
    if (sigaction(KICK_SIGNAL, &action, NULL) < 0)
        return error_set_errno(error, errno, "cannot install the vCPU signal handler");
    return 0;
}

/* immediate_exit covers a signal that arrives before the thread has entered KVM_RUN. */
static void kick(struct kvm_vcpu *vcpu)
{
    __atomic_store_n(&vcpu->kicked, 1, __ATOMIC_SEQ_CST);
    __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    pthread_kill(vcpu->thread, KICK_SIGNAL);
}

static bool is_kicked(const struct kvm_vcpu *vcpu)
{
    return __atomic_load_n(&vcpu->kicked, __ATOMIC_SEQ_CST) != 0;
}

/* --- the exit loop ------------------------------------------------------------------------- */

static void handle_io(struct kvm_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;

    for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
        if (run->io.direction == KVM_EXIT_IO_OUT)
            bus_write(vcpu->pio, run->io.port, data, run->io.size);
        else
            bus_read(vcpu->pio, run->io.port, data, run->io.size);
    }
}

static void handle_mmio(struct kvm_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;

    if (run->mmio.is_write)
        bus_write(vcpu->mmio, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
    else
        bus_read(vcpu->mmio, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
}

/* Leaves the exit loop until somebody lets this vCPU run again. */
static void stay_out(struct kvm_vcpu *vcpu)
{
    pthread_mutex_lock(&vcpu->lock);
    vcpu->may_run = false;
    pthread_mutex_unlock(&vcpu->lock);
    __atomic_store_n(&vcpu->kicked, 1, __ATOMIC_SEQ_CST);
}

/* KVM has given up on this vCPU: it stops, and the operator is told. */
static void fail(struct kvm_vcpu *vcpu, const char *what, uint64_t detail)
{
    char reason[128];

    snprintf(reason, sizeof(reason), "vCPU %u: %s (0x%jx)", vcpu->index, what, (uintmax_t)detail);
    stay_out(vcpu);
    vcpu->ops->failed(vcpu->opaque, vcpu->index, reason);
}

/* What KVM adds to an internal error: among it the exit reason and a guest-physical address. */
static void log_internal_error(const struct kvm_vcpu *vcpu)
{
    const struct kvm_run *run = vcpu->run;

    for (uint32_t i = 0; i < run->internal.ndata && i < ARRAY_SIZE(run->internal.data); i++)
        log_error("vCPU %u: KVM internal error: data[%u] = 0x%llx", vcpu->index, i,
                  (unsigned long long)run->internal.data[i]);
}

/* Emulated AMD processors leave the kind of an exception that the guest took long ago in
 * EXITINTINFO (QEMU's TCG clears the valid bit only), and KVM then takes the MMIO access that comes
 * next for one in the middle of a delivery. Nothing has been done of it, so that entering again is
 * right; where a delivery really needs MMIO, it fails again at once. */
static void handle_internal_error(struct kvm_vcpu *vcpu)
{
    const struct kvm_run *run = vcpu->run;

    if (run->internal.suberror == KVM_INTERNAL_ERROR_DELIVERY_EV &&
        ++vcpu->delivery_errors < DELIVERY_ERRORS_MAX)
        return;
    log_internal_error(vcpu);
    fail(vcpu, "KVM internal error", run->internal.suberror);
}

static void handle_exit(struct kvm_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;

    if (run->exit_reason != KVM_EXIT_INTERNAL_ERROR)
        vcpu->delivery_errors = 0;
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        handle_io(vcpu);
        break;
    case KVM_EXIT_MMIO:
        handle_mmio(vcpu);
        break;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
        break;
    case KVM_EXIT_SHUTDOWN:
        stay_out(vcpu); /* AMD: KVM has reset it, and would run it from where no firmware is */
        vcpu->ops->triple_fault(vcpu->opaque);
        break;
    case KVM_EXIT_FAIL_ENTRY:
        fail(vcpu, "the processor refused to enter the guest",
             run->fail_entry.hardware_entry_failure_reason);
        break;
    case KVM_EXIT_INTERNAL_ERROR:
        handle_internal_error(vcpu);
        break;
    default:
        fail(vcpu, "unexpected KVM exit reason", run->exit_reason);
        break;
    }
}

/* One entry into the guest. @return whether there is an exit to handle */
static bool enter_guest(struct kvm_vcpu *vcpu)
{
    int ret = ioctl(vcpu->fd, KVM_RUN, 0);

    __atomic_store_n(&vcpu->last_exit_ns, clock_ns(), __ATOMIC_SEQ_CST);
    if (ret == 0)
        return true;
    /* EAGAIN: an application processor that has just been started. */
    if (errno != EINTR && errno != EAGAIN)
        fail(vcpu, "KVM_RUN failed", (uint64_t)errno);
    return false;
}

/* An exit that wants an answer (a read) is complete only when KVM has taken the answer, which the
 * next KVM_RUN does first of all; with immediate_exit it does nothing else. */
static void complete_exit(struct kvm_vcpu *vcpu)
{
    __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    while (ioctl(vcpu->fd, KVM_RUN, 0) == 0)
        handle_exit(vcpu);
}

static void run_guest(struct kvm_vcpu *vcpu)
{
    vcpu->ops->enters(vcpu->opaque);
    __atomic_store_n(&vcpu->first_entry_ns, clock_ns(), __ATOMIC_SEQ_CST);
    while (!is_kicked(vcpu)) {
        if (enter_guest(vcpu))
            handle_exit(vcpu);
    }
    complete_exit(vcpu);
}

/* --- the thread ---------------------------------------------------------------------------- */

static void carry_out_task(struct kvm_vcpu *vcpu)
{
    kvm_vcpu_task *task = vcpu->task;
    struct error error = {0};
    int result;

    pthread_mutex_unlock(&vcpu->lock);
    result = task(vcpu, vcpu->task_argument, &error);
    pthread_mutex_lock(&vcpu->lock);
    vcpu->task = NULL;
    vcpu->task_result = result;
    vcpu->task_error = error;
    pthread_cond_broadcast(&vcpu->changed);
}

static void go_into_guest(struct kvm_vcpu *vcpu)
{
    vcpu->in_guest = true;
    __atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&vcpu->kicked, 0, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&vcpu->lock);
    run_guest(vcpu);
    pthread_mutex_lock(&vcpu->lock);
    vcpu->in_guest = false;
    if (!vcpu->task) /* otherwise it has not come to rest */
        pthread_cond_broadcast(&vcpu->changed);
}

static void *vcpu_main(void *opaque)
{
    struct kvm_vcpu *vcpu = opaque;

    sandbox_enter(SANDBOX_VCPU);
    pthread_mutex_lock(&vcpu->lock);
    while (!vcpu->ends) {
        if (vcpu->task)
            carry_out_task(vcpu);
        else if (vcpu->may_run)
            go_into_guest(vcpu);
        else
            pthread_cond_wait(&vcpu->changed, &vcpu->lock);
    }
    pthread_mutex_unlock(&vcpu->lock);
    return NULL;
}

/* --- life ---------------------------------------------------------------------------------- */

static int start_thread(struct kvm_vcpu *vcpu, struct error *error)
{
    sigset_t blocked, old;
    char name[16];
    int ret;

    /* Signals are the main thread's, but for the kick. */
    sigfillset(&blocked);
    sigdelset(&blocked, KICK_SIGNAL);
    pthread_sigmask(SIG_SETMASK, &blocked, &old);
    ret = pthread_create(&vcpu->thread, NULL, vcpu_main, vcpu);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (ret != 0)
        return error_set_errno(error, ret, "cannot start the thread of vCPU %u", vcpu->index);
    vcpu->thread_started = true;
    snprintf(name, sizeof(name), "vcpu/%u", vcpu->index);
    pthread_setname_np(vcpu->thread, name);
    return 0;
}

static int open_vcpu(struct kvm_vcpu *vcpu, const struct kvm_cpuid_table *cpuid,
                     struct error *error)
{
    void *run;
    int ret;

    vcpu->fd = ioctl(vcpu->vm->fd, KVM_CREATE_VCPU, (unsigned long)vcpu->index);
    if (vcpu->fd < 0)
        return error_set_errno(error, errno, "KVM_CREATE_VCPU %u failed", vcpu->index);
    run = mmap(NULL, vcpu->vm->vcpu_mmap_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    if (run == MAP_FAILED)
        return error_set_errno(error, errno, "cannot map vCPU %u", vcpu->index);
    vcpu->run = run;
    ret = kvm_cpuid_apply(cpuid, vcpu->fd, vcpu->index, error);
    if (ret == 0)
        ret = kvm_vcpu_enable_caches(vcpu->fd, error);
    if (ret == 0)
        ret = kvm_vcpu_find_msrs(&vcpu->msrs, vcpu->vm, vcpu->fd, error);
    if (ret == 0)
        ret = kvm_vcpu_get_state(vcpu->fd, &vcpu->msrs, vcpu->initial, error);
    return ret;
}

int kvm_vcpu_create(struct kvm_vcpu *vcpu, struct kvm_vm *vm, unsigned index,
                    const struct kvm_cpuid_table *cpuid, struct bus *mmio, struct bus *pio,
                    const struct kvm_vcpu_ops *ops, void *opaque, struct error *error)
{
    int ret;

    *vcpu = (struct kvm_vcpu){
        .vm = vm, .index = index, .fd = -1, .mmio = mmio, .pio = pio, .ops = ops, .opaque = opaque};
    vcpu->initial = xcalloc(1, sizeof(*vcpu->initial));
    vcpu->state = xcalloc(1, sizeof(*vcpu->state));
    pthread_mutex_init(&vcpu->lock, NULL);
    pthread_cond_init(&vcpu->changed, NULL);
    ret = open_vcpu(vcpu, cpuid, error);
    if (ret == 0)
        ret = start_thread(vcpu, error);
    if (ret < 0)
        kvm_vcpu_destroy(vcpu);
    return ret;
}

static void end_thread(struct kvm_vcpu *vcpu)
{
    pthread_mutex_lock(&vcpu->lock);
    vcpu->ends = true;
    vcpu->may_run = false;
    if (vcpu->in_guest)
        kick(vcpu);
    pthread_cond_broadcast(&vcpu->changed);
    pthread_mutex_unlock(&vcpu->lock);
    pthread_join(vcpu->thread, NULL);
    vcpu->thread_started = false;
}

void kvm_vcpu_destroy(struct kvm_vcpu *vcpu)
{
    if (vcpu->thread_started)
        end_thread(vcpu);
    if (vcpu->run)
        munmap(vcpu->run, vcpu->vm->vcpu_mmap_size);
    close_fd(vcpu->fd);
    pthread_cond_destroy(&vcpu->changed);
    pthread_mutex_destroy(&vcpu->lock);
    free(vcpu->initial);
    free(vcpu->state);
    *vcpu = (struct kvm_vcpu){.fd = -1};
}

/* --- what others ask of vCPUs -------------------------------------------------------------- */

void kvm_vcpus_run(struct kvm_vcpu *vcpus, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        pthread_mutex_lock(&vcpus[i].lock);
        vcpus[i].may_run = true;
        pthread_cond_broadcast(&vcpus[i].changed);
        pthread_mutex_unlock(&vcpus[i].lock);
    }
}

void kvm_vcpus_pause(struct kvm_vcpu *vcpus, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        pthread_mutex_lock(&vcpus[i].lock);
        vcpus[i].may_run = false;
        if (vcpus[i].in_guest)
            kick(&vcpus[i]);
        pthread_mutex_unlock(&vcpus[i].lock);
    }
    for (unsigned i = 0; i < count; i++) {
        pthread_mutex_lock(&vcpus[i].lock);
        while (vcpus[i].in_guest || vcpus[i].task)
            pthread_cond_wait(&vcpus[i].changed, &vcpus[i].lock);
        pthread_mutex_unlock(&vcpus[i].lock);
    }
}

/* @param stops the vCPU stays out of the guest afterwards */
static void post_task(struct kvm_vcpu *vcpu, kvm_vcpu_task *task, void *argument, bool stops)
{
    pthread_mutex_lock(&vcpu->lock);
    assert(vcpu->task == NULL);
    vcpu->task = task;
    vcpu->task_argument = argument;
    if (stops)
        vcpu->may_run = false;
    if (vcpu->in_guest)
        kick(vcpu);
    else
        pthread_cond_broadcast(&vcpu->changed);
    pthread_mutex_unlock(&vcpu->lock);
}

static int wait_task(struct kvm_vcpu *vcpu, struct error *error)
{
    int result;

    pthread_mutex_lock(&vcpu->lock);
    while (vcpu->task)
        pthread_cond_wait(&vcpu->changed, &vcpu->lock);
    result = vcpu->task_result;
    if (result < 0)
        *error = vcpu->task_error;
    pthread_mutex_unlock(&vcpu->lock);
    return result;
}

int kvm_vcpus_wait(struct kvm_vcpu *vcpus, unsigned count, struct error *error)
{
    struct error own;
    int ret = 0;

    for (unsigned i = 0; i < count; i++) {
        int result = wait_task(&vcpus[i], &own);

        if (result < 0 && ret == 0) {
            ret = result;
            *error = own;
            error_prefix(error, "vCPU %u: ", i);
        }
    }
    return ret;
}

int kvm_vcpus_call(struct kvm_vcpu *vcpus, unsigned count, kvm_vcpu_task *task, void *argument,
                   struct error *error)
{
    for (unsigned i = 0; i < count; i++)
        post_task(&vcpus[i], task, argument, false);
    return kvm_vcpus_wait(vcpus, count, error);
}

static int write_state(struct kvm_vcpu *vcpu, const struct kvm_vcpu_state *state,
                       struct error *error)
{
    int ret = kvm_vcpu_leave_nested(vcpu->fd, vcpu->initial, error);

    return ret < 0 ? ret : kvm_vcpu_set_state(vcpu->fd, state, error);
}

static int load(struct kvm_vcpu *vcpu, void *argument, struct error *error)
{
    (void)argument;
    return write_state(vcpu, vcpu->state, error);
}

int kvm_vcpus_load(struct kvm_vcpu *vcpus, unsigned count, struct error *error)
{
    for (unsigned i = 1; i < count; i++)
        post_task(&vcpus[i], load, NULL, false);
    assert(!vcpus[0].in_guest && !vcpus[0].may_run && !vcpus[0].task);
    vcpus[0].task_result = load(&vcpus[0], NULL, &vcpus[0].task_error);
    return kvm_vcpus_wait(vcpus, count, error);
}

/* --- stopping for a hand-over -------------------------------------------------------------- */

void kvm_rendezvous_init(struct kvm_rendezvous *rendezvous)
{
    pthread_mutex_init(&rendezvous->lock, NULL);
    pthread_cond_init(&rendezvous->changed, NULL);
}

void kvm_rendezvous_destroy(struct kvm_rendezvous *rendezvous)
{
    pthread_cond_destroy(&rendezvous->changed);
    pthread_mutex_destroy(&rendezvous->lock);
}

/* Until the last one is out of the guest, it can still change the others' state: it may send them
 * an interrupt. And the VM's interrupt controllers must have been read before any local APIC is:
 * see kvm_vcpus_stop_and_save(). The last one does that: it is the only one that need not wait.
 * @return 1 when all have met, 0 when they will not, or a negative errno */
static int meet(struct kvm_vcpu *vcpu, struct kvm_rendezvous *rendezvous, struct error *error)
{
    int ret = 0;

    pthread_mutex_lock(&rendezvous->lock);
    if (rendezvous->missing == 1 && !rendezvous->given_up)
        ret = kvm_vm_save(vcpu->vm, rendezvous->vm_state, error);
    if (--rendezvous->missing == 0)
        pthread_cond_broadcast(&rendezvous->changed);
    while (rendezvous->missing > 0 && !rendezvous->given_up)
        pthread_cond_wait(&rendezvous->changed, &rendezvous->lock);
    if (ret == 0)
        ret = !rendezvous->given_up;
    pthread_mutex_unlock(&rendezvous->lock);
    return ret;
}

static int meet_and_save(struct kvm_vcpu *vcpu, void *argument, struct error *error)
{
    int ret = meet(vcpu, argument, error);

    return ret > 0 ? kvm_vcpu_save_task(vcpu, NULL, error) : ret;
}

/* @return whether all have met in time; if not, nobody waits for the others any more */
static bool wait_met(struct kvm_rendezvous *rendezvous, uint64_t deadline_ns)
{
    const struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / 1000000000u),
                                      .tv_nsec = (long)(deadline_ns % 1000000000u)};
    int ret = 0;

    pthread_mutex_lock(&rendezvous->lock);
    while (rendezvous->missing > 0 && ret == 0)
        ret = pthread_cond_clockwait(&rendezvous->changed, &rendezvous->lock, CLOCK_MONOTONIC,
                                     &deadline);
    rendezvous->given_up = rendezvous->missing > 0;
    pthread_cond_broadcast(&rendezvous->changed);
    pthread_mutex_unlock(&rendezvous->lock);
    return !rendezvous->given_up;
}

/* Takes the task back from a vCPU that has not begun it, since it has not left the guest. */
static void call_off_task(struct kvm_vcpu *vcpu)
{
    pthread_mutex_lock(&vcpu->lock);
    if (vcpu->in_guest)
        vcpu->task = NULL;
    pthread_mutex_unlock(&vcpu->lock);
}

int kvm_vcpus_stop_and_save(struct kvm_vcpu *vcpus, unsigned count, struct kvm_vm_state *vm_state,
                            struct kvm_rendezvous *rendezvous, uint64_t deadline_ns)
{
    struct error ignored;

    rendezvous->vm_state = vm_state;
    rendezvous->missing = count;
    rendezvous->given_up = false;
    for (unsigned i = 0; i < count; i++)
        post_task(&vcpus[i], meet_and_save, rendezvous, true);
    if (wait_met(rendezvous, deadline_ns))
        return 0;
    for (unsigned i = 0; i < count; i++)
        call_off_task(&vcpus[i]);
    kvm_vcpus_wait(vcpus, count, &ignored);
    return -ETIMEDOUT;
}

/* --- tasks --------------------------------------------------------------------------------- */

int kvm_vcpu_save_task(struct kvm_vcpu *vcpu, void *argument, struct error *error)
{
    (void)argument;
    return kvm_vcpu_get_state(vcpu->fd, &vcpu->msrs, vcpu->state, error);
}

/* The TSC goes on: a reset of a processor does not stop the host's. */
int kvm_vcpu_reset_task(struct kvm_vcpu *vcpu, void *argument, struct error *error)
{
    int ret = kvm_vcpu_save_task(vcpu, argument, error);

    if (ret < 0)
        return ret;
    vcpu->initial->tsc_offset = vcpu->state->tsc_offset;
    return write_state(vcpu, vcpu->initial, error);
}
