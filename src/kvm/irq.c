/* SPDX-License-Identifier: Apache-2.0
 *
 * See irq.h. The list of interrupts and the routing table belong to the holder of the machine's
 * lock. The proxy thread shares with it only what proxy_lock protects: the gate, and of each
 * interrupt its message and whether it is proxied.
 */
#include "kvm/irq.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#include "base/log.h"
#include "base/sandbox.h"
#include "base/trace.h"
#include "base/util.h"
#include "kvm/irq_routes.h"
#include "kvm/vm.h"

#define PROXY_BATCH 32

struct kvm_irq {
    struct kvm_vm *vm;
    int eventfd;
    unsigned index; /* in kvm_irqs.irqs */
    unsigned gsi;   /* of a message: its route's */
    bool is_level;
    bool masked;
    bool in_kernel;             /* an irqfd is assigned */
    bool proxied;               /* registered with the proxy; under proxy_lock */
    struct msi_message message; /* under proxy_lock */

    /* Of a level interrupt only. */
    int resample;
    bool unheard;    /* nobody listens to the resample eventfd */
    int pin;         /* eventfd that the proxy raises the line with */
    bool pin_driven; /* its irqfd is assigned */
};

struct kvm_irqs {
    struct kvm_irq **irqs; /* IRQ_MESSAGES_MAX, by index; NULL where free */
    enum kvm_irq_delivery delivery;
    /* Neither a change of delivery nor its undoing has worked: an interrupt may have no listener.
     */
    bool incomplete;

    struct kvm_irq_routes routes; /* of messages by the same index */

    pthread_t proxy_thread;
    pthread_mutex_t proxy_lock;
    pthread_cond_t gate_changed;
    bool gate_open;
    bool proxy_ends;
    int epoll;
    int wake; /* eventfd: makes the proxy thread look at proxy_ends */
};

/* --- the proxy ----------------------------------------------------------------------------- */

static void signal_eventfd(int fd)
{
    const uint64_t one = 1;

    (void)!write(fd, &one, sizeof(one)); /* fails only when it is signalled already */
}

/* The vector of a message that KVM refuses is the guest's mistake; it loses that interrupt, as it
 * would on real hardware. */
static void inject_message(const struct kvm_irq *irq)
{
    struct kvm_msi msi = {.address_lo = (uint32_t)irq->message.address,
                          .address_hi = (uint32_t)(irq->message.address >> 32),
                          .data = irq->message.data};

    if (ioctl(irq->vm->fd, KVM_SIGNAL_MSI, &msi) < 0)
        log_guest("interrupt message 0x%jx/0x%x was refused: %s", (uintmax_t)irq->message.address,
                  irq->message.data, strerror(errno));
}

static void inject(const struct kvm_irq *irq)
{
    uint64_t count;

    if (read(irq->eventfd, &count, sizeof(count)) != sizeof(count))
        return; /* somebody else took the signal */
    if (irq->is_level)
        signal_eventfd(irq->pin);
    else
        inject_message(irq);
}

static void proxy_events(struct kvm_irqs *irqs, const struct epoll_event *events, int count)
{
    for (int i = 0; i < count; i++) {
        struct kvm_irq *irq;

        if (events[i].data.u64 == UINT64_MAX)
            continue; /* the wake-up */
        irq = irqs->irqs[events[i].data.u64];
        if (irq && irq->proxied)
            inject(irq);
    }
}

static void *proxy_main(void *opaque)
{
    struct kvm_irqs *irqs = opaque;
    struct epoll_event events[PROXY_BATCH];

    sandbox_enter(SANDBOX_IRQ_PROXY);
    pthread_mutex_lock(&irqs->proxy_lock);
    while (!irqs->proxy_ends) {
        int count;

        if (!irqs->gate_open) {
            pthread_cond_wait(&irqs->gate_changed, &irqs->proxy_lock);
            continue;
        }
        pthread_mutex_unlock(&irqs->proxy_lock);
        count = epoll_wait(irqs->epoll, events, PROXY_BATCH, -1);
        pthread_mutex_lock(&irqs->proxy_lock);
        if (irqs->gate_open && count > 0)
            proxy_events(irqs, events, count);
    }
    pthread_mutex_unlock(&irqs->proxy_lock);
    return NULL;
}

static void set_gate(struct kvm_irqs *irqs, bool open)
{
    pthread_mutex_lock(&irqs->proxy_lock);
    irqs->gate_open = open;
    pthread_cond_signal(&irqs->gate_changed);
    pthread_mutex_unlock(&irqs->proxy_lock);
}

static int attach_proxy(struct kvm_irq *irq, struct error *error)
{
    struct kvm_irqs *irqs = irq->vm->irqs;
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = irq->index};

    if (irq->proxied)
        return 0;
    /* EEXIST: the last detach_proxy() could not let go of it. */
    if (epoll_ctl(irqs->epoll, EPOLL_CTL_ADD, irq->eventfd, &event) < 0 && errno != EEXIST)
        return error_set_errno(error, errno, "cannot watch interrupt %u", irq->index);
    pthread_mutex_lock(&irqs->proxy_lock);
    irq->proxied = true;
    pthread_mutex_unlock(&irqs->proxy_lock);
    return 0;
}

static void detach_proxy(struct kvm_irq *irq)
{
    struct kvm_irqs *irqs = irq->vm->irqs;

    if (!irq->proxied)
        return;
    epoll_ctl(irqs->epoll, EPOLL_CTL_DEL, irq->eventfd, NULL);
    pthread_mutex_lock(&irqs->proxy_lock);
    irq->proxied = false;
    pthread_mutex_unlock(&irqs->proxy_lock);
}

/* --- irqfds -------------------------------------------------------------------------------- */

static int assign_irqfd(const struct kvm_irq *irq, int eventfd, struct error *error)
{
    struct kvm_irqfd irqfd = {.fd = (unsigned)eventfd, .gsi = irq->gsi};

    if (irq->is_level) {
        irqfd.flags = KVM_IRQFD_FLAG_RESAMPLE;
        irqfd.resamplefd = (unsigned)irq->resample;
    }
    if (ioctl(irq->vm->fd, KVM_IRQFD, &irqfd) < 0)
        return error_set_errno(error, errno, "KVM_IRQFD for interrupt %u failed", irq->index);
    trace(kvm_irqfd_assign, irq->gsi, eventfd);
    return 0;
}

static int deassign_irqfd(const struct kvm_irq *irq, int eventfd, struct error *error)
{
    struct kvm_irqfd irqfd = {
        .fd = (unsigned)eventfd, .gsi = irq->gsi, .flags = KVM_IRQFD_FLAG_DEASSIGN};

    if (ioctl(irq->vm->fd, KVM_IRQFD, &irqfd) < 0)
        return error_set_errno(error, errno, "KVM does not let go of interrupt %u", irq->index);
    trace(kvm_irqfd_deassign, irq->gsi, eventfd);
    return 0;
}

static int attach_kernel(struct kvm_irq *irq, struct error *error)
{
    int ret;

    if (irq->in_kernel)
        return 0;
    ret = kvm_irq_routes_commit(&irq->vm->irqs->routes, irq->vm->fd, error);
    if (ret == 0)
        ret = assign_irqfd(irq, irq->eventfd, error);
    irq->in_kernel = ret == 0;
    return ret;
}

/* An irqfd that stays would swallow what the next listener waits for. */
static int detach_kernel(struct kvm_irq *irq, struct error *error)
{
    int ret = irq->in_kernel ? deassign_irqfd(irq, irq->eventfd, error) : 0;

    if (ret == 0)
        irq->in_kernel = false;
    return ret;
}

/* A level interrupt's pin; nothing for a message. */
static int attach_pin(struct kvm_irq *irq, struct error *error)
{
    int ret;

    if (!irq->is_level || irq->pin_driven)
        return 0;
    ret = assign_irqfd(irq, irq->pin, error);
    irq->pin_driven = ret == 0;
    return ret;
}

/* One that stays does no harm: nobody else has the pin. */
static void detach_pin(struct kvm_irq *irq)
{
    struct error ignored;

    if (irq->pin_driven && deassign_irqfd(irq, irq->pin, &ignored) == 0)
        irq->pin_driven = false;
}

static void detach(struct kvm_irq *irq)
{
    struct error error;

    if (detach_kernel(irq, &error) < 0)
        log_error("%s", error.message);
    detach_proxy(irq);
    detach_pin(irq);
}

/* Makes the listener of one interrupt be what mask and mode of delivery demand. A line has an irqfd
 * at any time in between. */
static int attach(struct kvm_irq *irq, enum kvm_irq_delivery delivery, struct error *error)
{
    int ret;

    if (irq->masked) {
        detach(irq);
        return 0;
    }
    if (delivery == KVM_IRQ_KERNEL) {
        detach_proxy(irq);
        ret = attach_kernel(irq, error);
        if (ret == 0)
            detach_pin(irq);
        return ret;
    }
    ret = attach_pin(irq, error);
    if (ret < 0)
        return ret;
    ret = detach_kernel(irq, error);
    return ret < 0 ? ret : attach_proxy(irq, error);
}

/* As many as can be: one that fails must not cost the others their listener. @return 0 or the first
 * failure */
static int attach_all(struct kvm_irqs *irqs, enum kvm_irq_delivery delivery, struct error *error)
{
    struct error ignored;
    int result = 0;

    for (unsigned i = 0; i < IRQ_MESSAGES_MAX; i++) {
        if (irqs->irqs[i]) {
            int ret = attach(irqs->irqs[i], delivery, result == 0 ? error : &ignored);

            result = result == 0 ? ret : result;
        }
    }
    return result;
}

void kvm_irqs_resample(struct kvm_vm *vm)
{
    struct kvm_irqs *irqs = vm->irqs;

    for (unsigned i = 0; i < IRQ_MESSAGES_MAX; i++) {
        const struct kvm_irq *irq = irqs->irqs[i];

        if (!irq || !irq->is_level || irq->masked)
            continue;
        trace(kvm_irq_resample, irq->gsi);
        signal_eventfd(irq->unheard ? irq->eventfd : irq->resample);
    }
}

int kvm_irqs_set_delivery(struct kvm_vm *vm, enum kvm_irq_delivery delivery, struct error *error)
{
    struct kvm_irqs *irqs = vm->irqs;
    enum kvm_irq_delivery old = irqs->delivery;
    struct error ignored;
    int ret = 0;

    if (delivery == KVM_IRQ_HELD)
        set_gate(irqs, false);
    if (irqs->incomplete || (delivery == KVM_IRQ_KERNEL) != (old == KVM_IRQ_KERNEL)) {
        ret = attach_all(irqs, delivery, error);
        irqs->incomplete = ret < 0 && attach_all(irqs, old, &ignored) < 0;
    }
    if (ret < 0)
        delivery = old;
    irqs->delivery = delivery;
    set_gate(irqs, delivery == KVM_IRQ_PROXY);
    if (old == KVM_IRQ_HELD && delivery != KVM_IRQ_HELD)
        kvm_irqs_resample(vm);
    trace(kvm_irq_delivery, (int)delivery, ret);
    return ret;
}

enum kvm_irq_delivery kvm_irqs_delivery(const struct kvm_vm *vm)
{
    return vm->irqs->delivery;
}

/* --- life ---------------------------------------------------------------------------------- */

static int open_proxy(struct kvm_irqs *irqs, struct error *error)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = UINT64_MAX};
    sigset_t all, old;
    int ret;

    irqs->epoll = epoll_create1(EPOLL_CLOEXEC);
    irqs->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (irqs->epoll < 0 || irqs->wake < 0 ||
        epoll_ctl(irqs->epoll, EPOLL_CTL_ADD, irqs->wake, &event) < 0)
        return error_set_errno(error, errno, "cannot set up the interrupt proxy");
    /* Signals are the main thread's. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    ret = pthread_create(&irqs->proxy_thread, NULL, proxy_main, irqs);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (ret != 0)
        return error_set_errno(error, ret, "cannot start the interrupt proxy");
    pthread_setname_np(irqs->proxy_thread, "irq-proxy");
    return 0;
}

static void free_irqs(struct kvm_irqs *irqs)
{
    close_fd(irqs->epoll);
    close_fd(irqs->wake);
    pthread_cond_destroy(&irqs->gate_changed);
    pthread_mutex_destroy(&irqs->proxy_lock);
    kvm_irq_routes_destroy(&irqs->routes);
    free(irqs->irqs);
    free(irqs);
}

int kvm_irqs_create(struct kvm_vm *vm, struct error *error)
{
    struct kvm_irqs *irqs = xcalloc(1, sizeof(*irqs));
    int ret;

    irqs->epoll = -1;
    irqs->wake = -1;
    irqs->delivery = KVM_IRQ_HELD;
    irqs->irqs = xcalloc(IRQ_MESSAGES_MAX, sizeof(struct kvm_irq *));
    kvm_irq_routes_init(&irqs->routes);
    pthread_mutex_init(&irqs->proxy_lock, NULL);
    pthread_cond_init(&irqs->gate_changed, NULL);
    ret = open_proxy(irqs, error);
    if (ret < 0) {
        free_irqs(irqs);
        return ret;
    }
    vm->irqs = irqs;
    return kvm_irq_routes_commit(&irqs->routes, vm->fd, error);
}

void kvm_irqs_destroy(struct kvm_vm *vm)
{
    struct kvm_irqs *irqs = vm->irqs;

    if (!irqs)
        return;
    pthread_mutex_lock(&irqs->proxy_lock);
    irqs->proxy_ends = true;
    pthread_cond_signal(&irqs->gate_changed);
    pthread_mutex_unlock(&irqs->proxy_lock);
    signal_eventfd(irqs->wake);
    pthread_join(irqs->proxy_thread, NULL);
    free_irqs(irqs);
    vm->irqs = NULL;
}

static int reserve_index(struct kvm_irqs *irqs)
{
    const struct msi_message nothing = {0};

    for (unsigned i = 0; i < IRQ_MESSAGES_MAX; i++) {
        if (irqs->irqs[i])
            continue;
        kvm_irq_routes_set(&irqs->routes, i, &nothing);
        return (int)i;
    }
    return -1;
}

/* Puts an interrupt that has its descriptors into the table. */
static int add_irq(struct kvm_vm *vm, const struct kvm_irq *model, struct kvm_irq **irq,
                   struct error *error)
{
    struct kvm_irqs *irqs = vm->irqs;
    int index = reserve_index(irqs);

    if (index < 0)
        return error_set(error, ENOSPC,
                         "all %u interrupt routes of the VM are in use: pass through fewer "
                         "devices, or devices with fewer vectors",
                         IRQ_MESSAGES_MAX);
    *irq = xcalloc(1, sizeof(**irq));
    **irq = *model;
    (*irq)->vm = vm;
    (*irq)->index = (unsigned)index;
    (*irq)->masked = true;
    if (!model->is_level)
        (*irq)->gsi = kvm_irq_routes_gsi((*irq)->index);
    pthread_mutex_lock(&irqs->proxy_lock);
    irqs->irqs[index] = *irq;
    pthread_mutex_unlock(&irqs->proxy_lock);
    return 0;
}

int kvm_irq_create(struct kvm_vm *vm, int eventfd, struct kvm_irq **irq, struct error *error)
{
    const struct kvm_irq model = {.eventfd = eventfd, .resample = -1, .pin = -1};

    return add_irq(vm, &model, irq, error);
}

/* It takes a place in the table, whose route it leaves unused. */
int kvm_irq_create_level(struct kvm_vm *vm, unsigned gsi, int trigger, int resample,
                         struct kvm_irq **irq, struct error *error)
{
    struct kvm_irq model = {.eventfd = trigger, .gsi = gsi, .is_level = true, .resample = resample};
    int ret;

    assert(gsi >= IRQ_PIC_PINS && gsi < IRQ_IOAPIC_PINS);
    model.pin = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (model.pin < 0)
        return error_set_errno(error, errno, "cannot make an eventfd");
    ret = add_irq(vm, &model, irq, error);
    if (ret < 0)
        close_fd(model.pin);
    return ret;
}

void kvm_irq_set_unheard(struct kvm_irq *irq, bool unheard)
{
    assert(irq->is_level);
    irq->unheard = unheard;
}

void kvm_irq_destroy(struct kvm_irq *irq)
{
    struct kvm_irqs *irqs;

    if (!irq)
        return;
    irqs = irq->vm->irqs;
    kvm_irq_mask(irq);
    pthread_mutex_lock(&irqs->proxy_lock);
    irqs->irqs[irq->index] = NULL;
    pthread_mutex_unlock(&irqs->proxy_lock);
    close_fd(irq->pin);
    free(irq);
}

static bool same_message(const struct msi_message *a, const struct msi_message *b)
{
    return a->address == b->address && a->data == b->data;
}

static int set_message(struct kvm_irq *irq, const struct msi_message *message, struct error *error)
{
    struct kvm_irqs *irqs = irq->vm->irqs;

    if (same_message(&irq->message, message) && !irqs->routes.stale)
        return 0;
    pthread_mutex_lock(&irqs->proxy_lock);
    irq->message = *message;
    pthread_mutex_unlock(&irqs->proxy_lock);
    kvm_irq_routes_set(&irqs->routes, irq->index, message);
    return irq->in_kernel ? kvm_irq_routes_commit(&irqs->routes, irq->vm->fd, error) : 0;
}

int kvm_irq_unmask(struct kvm_irq *irq, const struct msi_message *message, struct error *error)
{
    int ret = 0;

    assert(irq->is_level == (message == NULL));
    if (message)
        ret = set_message(irq, message, error);
    if (ret < 0)
        return ret;
    irq->masked = false;
    return attach(irq, irq->vm->irqs->delivery, error);
}

void kvm_irq_mask(struct kvm_irq *irq)
{
    irq->masked = true;
    detach(irq);
}

bool kvm_irq_pending(const struct kvm_irq *irq)
{
    struct pollfd poll_fd = {.fd = irq->eventfd, .events = POLLIN};

    return irq->masked && poll(&poll_fd, 1, 0) == 1;
}

void kvm_irq_clear(struct kvm_irq *irq)
{
    uint64_t count;

    /* Empty already is as good. */
    (void)!read(irq->eventfd, &count, sizeof(count));
}
