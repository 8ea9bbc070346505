/* SPDX-License-Identifier: Apache-2.0
 *
 * Unit tests of kvm/irq.c: who listens to each interrupt in each mode of delivery, and what is left
 * when a call of a change fails. The proxy thread and the eventfds are real. ioctl() is a fake that
 * knows which irqfds KVM would have; epoll_ctl() keeps a record of what the proxy watches.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <linux/kvm.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"
#include "kvm/irq.h"
#include "kvm/vm.h"

#define VM_FD       1000
#define SHARED_GSI  18u
#define OTHER_GSI   19u
#define FDS_MAX     64
#define PATIENCE_MS 10000
#define MOMENT_US   20000

/* --- the fake ------------------------------------------------------------------------------- */

struct irqfd {
    bool assigned;
    unsigned gsi;
    int resample;
};

static struct {
    struct irqfd irqfds[FDS_MAX]; /* by eventfd */
    bool watched[FDS_MAX];        /* the proxy's epoll has it */
    unsigned calls;               /* ioctls and epoll_ctls so far */
    unsigned fail;                /* which of them has ENOMEM; 0: none */
    bool for_good;                /* and all after it */
    unsigned assigns;
    unsigned fail_assigns; /* from which on no irqfd is assigned any more; 0: none */
    bool lines_open;
    unsigned messages; /* atomic: sent by the proxy thread */
    uint32_t message_data;
} fake;

static bool fails(void)
{
    errno = ENOMEM;
    fake.calls++;
    return fake.calls == fake.fail || (fake.for_good && fake.calls > fake.fail);
}

static bool has_irqfd(unsigned gsi)
{
    for (int fd = 0; fd < FDS_MAX; fd++) {
        if (fake.irqfds[fd].assigned && fake.irqfds[fd].gsi == gsi)
            return true;
    }
    return false;
}

/* KVM lowers a line when the last irqfd of its GSI goes. If the guest has it masked, its interrupt
 * is forgotten, and VFIO waits for the end of that for ever. */
static int fake_irqfd(const struct kvm_irqfd *irqfd)
{
    struct irqfd *mine = &fake.irqfds[irqfd->fd];
    bool assign = !(irqfd->flags & KVM_IRQFD_FLAG_DEASSIGN);

    if (assign && ++fake.assigns >= fake.fail_assigns && fake.fail_assigns) {
        errno = ENOMEM;
        return -1;
    }
    assert_in_range(irqfd->fd, 0, FDS_MAX - 1);
    assert_int_equal(mine->assigned, !assign); /* KVM has EBUSY for a second time */
    mine->assigned = assign;
    mine->gsi = irqfd->gsi;
    mine->resample = irqfd->flags & KVM_IRQFD_FLAG_RESAMPLE ? (int)irqfd->resamplefd : -1;
    assert_true(!fake.lines_open || (has_irqfd(SHARED_GSI) && has_irqfd(OTHER_GSI)));
    return 0;
}

/* These override the C library's. */
int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    void *argument;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    if (request == KVM_SIGNAL_MSI) {
        fake.message_data = ((struct kvm_msi *)argument)->data;
        __atomic_add_fetch(&fake.messages, 1, __ATOMIC_SEQ_CST);
        return 1;
    }
    assert_int_equal(fd, VM_FD);
    if (fails())
        return -1;
    if (request == KVM_IRQFD)
        return fake_irqfd(argument);
    assert_int_equal(request, KVM_SET_GSI_ROUTING);
    return 0;
}

int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    int ret = fails() ? -1 : (int)syscall(SYS_epoll_ctl, epoll, operation, fd, event);

    if (ret == 0)
        fake.watched[fd] = operation == EPOLL_CTL_ADD;
    return ret;
}

/* --- a VM with some of everything ----------------------------------------------------------- */

/* In the order of the table: what comes first has changed already when a later one fails. */
static const struct source {
    unsigned gsi; /* of a line; 0: a message */
    bool masked;
} sources[] = {{SHARED_GSI, false}, {0, false},          {0, true},
               {OTHER_GSI, false},  {SHARED_GSI, false}, {OTHER_GSI, true}};
#define SOURCES      ARRAY_SIZE(sources)
#define LINE         0u
#define MESSAGE      1u
#define FIRST_VECTOR 0x40u

static struct kvm_vm vm;
static struct kvm_irq *irqs[SOURCES];
static int trigger[SOURCES], resample[SOURCES];
static unsigned fds_before;

static unsigned count_fds(void)
{
    DIR *directory = opendir("/proc/self/fd");
    unsigned count = 0;

    assert_non_null(directory);
    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

static void create(unsigned i)
{
    struct error error = {0};
    int ret;

    trigger[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    resample[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ret = sources[i].gsi
              ? kvm_irq_create_level(&vm, sources[i].gsi, trigger[i], resample[i], &irqs[i], &error)
              : kvm_irq_create(&vm, trigger[i], &irqs[i], &error);
    assert_int_equal(ret, 0);
}

static void unmask_all(void)
{
    struct error error = {0};

    for (unsigned i = 0; i < SOURCES; i++) {
        const struct msi_message message = {.address = 0xfee00000, .data = FIRST_VECTOR + i};

        if (!sources[i].masked)
            assert_int_equal(kvm_irq_unmask(irqs[i], sources[i].gsi ? NULL : &message, &error), 0);
    }
    fake.lines_open = true;
}

static void mask_all(void)
{
    fake.lines_open = false;
    for (unsigned i = 0; i < SOURCES; i++)
        kvm_irq_mask(irqs[i]);
}

static int set_delivery(enum kvm_irq_delivery delivery)
{
    struct error error = {0};
    int ret = kvm_irqs_set_delivery(&vm, delivery, &error);

    if (ret < 0)
        assert_int_equal(ret, -error.code);
    return ret;
}

static void check_nobody_listens(void)
{
    for (int fd = 0; fd < FDS_MAX; fd++)
        assert_false(fake.irqfds[fd].assigned || fake.watched[fd]);
}

static int setup(void **state)
{
    struct error error = {0};

    (void)state;
    memset(&fake, 0, sizeof(fake));
    fds_before = count_fds();
    vm = (struct kvm_vm){.fd = VM_FD};
    assert_int_equal(kvm_irqs_create(&vm, &error), 0);
    memset(fake.watched, 0, sizeof(fake.watched)); /* its wake-up */
    for (unsigned i = 0; i < SOURCES; i++)
        create(i);
    unmask_all();
    return set_delivery(KVM_IRQ_KERNEL);
}

static int teardown(void **state)
{
    (void)state;
    fake.lines_open = false;
    for (unsigned i = 0; i < SOURCES; i++)
        kvm_irq_destroy(irqs[i]);
    check_nobody_listens();
    kvm_irqs_destroy(&vm);
    for (unsigned i = 0; i < SOURCES; i++) {
        close(trigger[i]);
        close(resample[i]);
    }
    assert_int_equal(count_fds(), fds_before);
    return 0;
}

static uint64_t take(int fd)
{
    uint64_t count = 0;

    return read(fd, &count, sizeof(count)) == sizeof(count) ? count : 0;
}

static void signal_once(int fd)
{
    const uint64_t one = 1;

    assert_int_equal(write(fd, &one, sizeof(one)), sizeof(one));
}

/* The eventfd with which the proxy raises a line, -1 if it cannot. */
static int find_pin(unsigned i)
{
    for (int fd = 0; fd < FDS_MAX; fd++) {
        if (fake.irqfds[fd].assigned && fake.irqfds[fd].resample == resample[i] && fd != trigger[i])
            return fd;
    }
    return -1;
}

/* --- tests ---------------------------------------------------------------------------------- */

/* Every open interrupt has the listener of a mode and no other, a masked one has none. What a call
 * that failed has left does no harm in KERNEL: nobody signals a pin, and the proxy's gate is shut.
 */
static void check_listeners(enum kvm_irq_delivery delivery, bool something_failed)
{
    bool kernel = delivery == KVM_IRQ_KERNEL;

    assert_int_equal(kvm_irqs_delivery(&vm), delivery);
    for (unsigned i = 0; i < SOURCES; i++) {
        const struct irqfd *irqfd = &fake.irqfds[trigger[i]];
        bool open = !sources[i].masked, line = sources[i].gsi != 0;

        assert_int_equal(irqfd->assigned, open && kernel);
        if (irqfd->assigned && line)
            assert_true(irqfd->gsi == sources[i].gsi && irqfd->resample == resample[i]);
        if (kernel && something_failed)
            continue;
        assert_int_equal(fake.watched[trigger[i]], open && !kernel);
        assert_int_equal(find_pin(i) != -1, open && !kernel && line);
    }
}

static void check_resampled(bool resampled)
{
    for (unsigned i = 0; i < SOURCES; i++)
        assert_int_equal(take(resample[i]), resampled && sources[i].gsi && !sources[i].masked);
}

static void change(enum kvm_irq_delivery delivery, bool resamples)
{
    assert_int_equal(set_delivery(delivery), 0);
    check_listeners(delivery, false);
    check_resampled(resamples);
}

/* What a process does that has adopted a guest, and whose update is undone before the pause, and
 * after it. */
static void there_and_back(void **state)
{
    (void)state;
    check_listeners(KVM_IRQ_KERNEL, false);
    check_resampled(true);
    change(KVM_IRQ_PROXY, false);
    change(KVM_IRQ_KERNEL, false);
    change(KVM_IRQ_PROXY, false);
    fake.calls = 0;
    change(KVM_IRQ_HELD, false);
    assert_int_equal(fake.calls, 0);
    change(KVM_IRQ_KERNEL, true);
}

static void signals_find_their_listener(void **state)
{
    struct pollfd pin = {.events = POLLIN};

    (void)state;
    change(KVM_IRQ_PROXY, true);
    pin.fd = find_pin(LINE);
    signal_once(trigger[LINE]);
    assert_int_equal(poll(&pin, 1, PATIENCE_MS), 1);
    assert_int_equal(take(pin.fd), 1);
    signal_once(trigger[MESSAGE]);
    for (unsigned i = 0; i < PATIENCE_MS && !__atomic_load_n(&fake.messages, __ATOMIC_SEQ_CST); i++)
        usleep(1000);
    assert_int_equal(fake.messages, 1);
    assert_int_equal(fake.message_data, FIRST_VECTOR + MESSAGE);

    change(KVM_IRQ_HELD, false);
    signal_once(trigger[LINE]);
    signal_once(trigger[MESSAGE]);
    usleep(MOMENT_US);
    change(KVM_IRQ_KERNEL, true);
    usleep(MOMENT_US);
    assert_int_equal(take(trigger[LINE]), 1); /* left for its irqfd */
    assert_int_equal(take(trigger[MESSAGE]), 1);
    assert_int_equal(fake.messages, 1);
}

static void masked_in_each_mode(void **state)
{
    static const enum kvm_irq_delivery modes[] = {KVM_IRQ_KERNEL, KVM_IRQ_PROXY, KVM_IRQ_HELD};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
        assert_int_equal(set_delivery(modes[i]), 0);
        mask_all();
        check_nobody_listens();
        signal_once(trigger[MESSAGE]);
        assert_true(kvm_irq_pending(irqs[MESSAGE]) && !kvm_irq_pending(irqs[LINE]));
        kvm_irq_clear(irqs[MESSAGE]);
        unmask_all();
        check_listeners(modes[i], false);
    }
}

static void fail_call(unsigned number)
{
    fake.calls = 0;
    fake.fail = number;
}

/* One call of a change fails, the first, the second, and so on: either the change is made without
 * it, or all is as it was, and the next try succeeds. */
static void fail_each_call(enum kvm_irq_delivery from, enum kvm_irq_delivery to)
{
    unsigned failed = 0;

    for (unsigned number = 1;; number++) {
        int ret;

        assert_int_equal(set_delivery(from), 0);
        check_listeners(from, true);
        for (unsigned i = 0; i < SOURCES; i++)
            take(resample[i]);
        fail_call(number);
        ret = set_delivery(to);
        if (fake.calls < number)
            break;
        fail_call(0);
        assert_true(ret == 0 || ret == -ENOMEM);
        check_listeners(ret == 0 ? to : from, true);
        if (ret != 0) {
            failed++;
            check_resampled(false);
            assert_int_equal(set_delivery(to), 0);
            check_listeners(to, true);
        }
        check_resampled(from == KVM_IRQ_HELD);
    }
    fail_call(0);
    check_listeners(to, false);
    assert_true(failed > 0);
}

static void each_call_fails(void **state)
{
    (void)state;
    fail_each_call(KVM_IRQ_KERNEL, KVM_IRQ_PROXY);
    fail_each_call(KVM_IRQ_KERNEL, KVM_IRQ_HELD);
    fail_each_call(KVM_IRQ_PROXY, KVM_IRQ_KERNEL);
    fail_each_call(KVM_IRQ_HELD, KVM_IRQ_KERNEL);
}

static void fail_assigns(unsigned from)
{
    fake.assigns = 0;
    fake.fail_assigns = from;
}

/* The way out of HELD when KERNEL cannot be had: what has come in the meantime is delivered. */
static void proxy_instead_of_kernel(void **state)
{
    struct pollfd pin = {.events = POLLIN};

    (void)state;
    check_resampled(true);
    change(KVM_IRQ_HELD, false);
    signal_once(trigger[LINE]);
    fail_assigns(1);
    assert_int_equal(set_delivery(KVM_IRQ_KERNEL), -ENOMEM);
    fail_assigns(0);
    check_listeners(KVM_IRQ_HELD, false);
    check_resampled(false);
    pin.fd = find_pin(LINE);
    change(KVM_IRQ_PROXY, true);
    assert_int_equal(poll(&pin, 1, PATIENCE_MS), 1);
}

/* Neither a change nor its undoing works: who has lost the listener gets it back as soon as it can
 * be had, although the mode is the same. */
static void nothing_can_be_had(void **state)
{
    unsigned number = 0;
    int ret;

    (void)state;
    change(KVM_IRQ_PROXY, true);
    do {
        fail_call(++number);
        fake.for_good = true;
        ret = set_delivery(KVM_IRQ_KERNEL);
        fake.for_good = false;
        fail_call(0);
        assert_int_equal(set_delivery(KVM_IRQ_PROXY), 0);
        check_listeners(KVM_IRQ_PROXY, true);
    } while (ret < 0);
    assert_true(number > SOURCES);
}

/* A route that the kernel has not taken is no route. */
static void route_refused(void **state)
{
    const struct msi_message message = {.address = 0xfee00000, .data = 0x80};
    struct error error = {0};

    (void)state;
    fail_call(1);
    assert_int_equal(kvm_irq_unmask(irqs[MESSAGE], &message, &error), -ENOMEM);
    fail_call(0);
    assert_int_equal(kvm_irq_unmask(irqs[MESSAGE], &message, &error), 0);
    assert_int_equal(fake.calls, 1);
    assert_int_equal(kvm_irq_unmask(irqs[MESSAGE], &message, &error), 0);
    assert_int_equal(fake.calls, 1);
}

/* Whoever cannot be asked is raised. */
static void nobody_hears(void **state)
{
    (void)state;
    check_resampled(true);
    kvm_irq_set_unheard(irqs[LINE], true);
    change(KVM_IRQ_HELD, false);
    assert_int_equal(set_delivery(KVM_IRQ_KERNEL), 0);
    assert_int_equal(take(trigger[LINE]), 1);
    assert_int_equal(take(resample[LINE]), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(there_and_back, setup, teardown),
        cmocka_unit_test_setup_teardown(signals_find_their_listener, setup, teardown),
        cmocka_unit_test_setup_teardown(masked_in_each_mode, setup, teardown),
        cmocka_unit_test_setup_teardown(each_call_fails, setup, teardown),
        cmocka_unit_test_setup_teardown(proxy_instead_of_kernel, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_can_be_had, setup, teardown),
        cmocka_unit_test_setup_teardown(route_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(nobody_hears, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
