/* SPDX-License-Identifier: Apache-2.0
 *
 * floor: how long a guest must stand still at least while it moves from one KVM VM to another, with
 * no monitor around: the vCPUs are kicked out, all their state and the interrupt controllers' is
 * read, irqfds move, everything is written into a second VM that was prepared before, and the vCPUs
 * enter that. Run by bench/bench beside the monitors that it is the floor of; the state that is
 * moved is what src/kvm knows as such.
 *
 *   floor [--vcpus N] [--vectors N] [--count N]     prints a JSON object
 *
 * Each vCPU has one thread, which runs it in either VM. "blackout" is what the monitors call so:
 * from the first vCPU's exit to the last one's entry.
 */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/util.h"
#include "kvm/vcpu_state.h"
#include "kvm/vm.h"

#define VCPUS_MAX    16
#define VECTORS_MAX  256
#define COUNT_MAX    10000
#define FIRST_GSI    24u
#define CODE_ADDRESS 0x1000u
#define SETTLE_NS    20000000 /* between two moves: the guest runs in between */

/* Real mode, and no device: add word [0x2000], 1; jmp to the beginning. */
static const uint8_t guest_code[] = {0x83, 0x06, 0x00, 0x20, 0x01, 0xeb, 0xf9};

/* One of the two VMs. */
struct side {
    struct kvm_vm vm;
    int vcpus[VCPUS_MAX];
    struct kvm_run *runs[VCPUS_MAX];
};

/* When a step of a move was over, CLOCK_MONOTONIC. */
struct times {
    uint64_t kicked, out[VCPUS_MAX], saved[VCPUS_MAX], chips_saved, irqfds_moved, chips_loaded,
        in[VCPUS_MAX];
};

static unsigned vcpu_count = 1, vector_count = 8, move_count = 20;
static struct side sides[2];
static int eventfds[VECTORS_MAX];
static struct kvm_vcpu_msrs msrs;
static struct kvm_vcpu_state *states[VCPUS_MAX];
static struct kvm_vm_state vm_state;
static struct kvm_clock_state clock_state;
static struct times times;
static pthread_t threads[VCPUS_MAX];
static pthread_barrier_t all_out, chips_moved, all_in;
static atomic_bool leave, ends;
static unsigned current; /* side; changed by the first vCPU's thread, between the barriers */

static void fail(const char *what)
{
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(EXIT_FAILURE);
}

static void check(int result, const struct error *error)
{
    if (result == 0)
        return;
    fprintf(stderr, "floor: %s\n", error->message);
    exit(EXIT_FAILURE);
}

/* --- preparation --------------------------------------------------------------------------- */

static void set_routes(struct side *side)
{
    struct kvm_irq_routing *routing =
        calloc(1, sizeof(*routing) + VECTORS_MAX * sizeof(routing->entries[0]));

    if (!routing)
        fail("routes");
    for (unsigned i = 0; i < vector_count; i++)
        routing->entries[routing->nr++] = (struct kvm_irq_routing_entry){
            .gsi = FIRST_GSI + i,
            .type = KVM_IRQ_ROUTING_MSI,
            .u.msi = {.address_lo = 0xfee00000, .data = 0x40 + i % 0x80},
        };
    if (ioctl(side->vm.fd, KVM_SET_GSI_ROUTING, routing) < 0)
        fail("KVM_SET_GSI_ROUTING");
    free(routing);
}

static void set_entry(int vcpu)
{
    struct kvm_mp_state runnable = {.mp_state = KVM_MP_STATE_RUNNABLE};
    struct kvm_regs regs = {.rip = CODE_ADDRESS, .rflags = 2};
    struct kvm_sregs sregs;

    if (ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
        fail("KVM_GET_SREGS");
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0 || ioctl(vcpu, KVM_SET_REGS, &regs) < 0 ||
        ioctl(vcpu, KVM_SET_MP_STATE, &runnable) < 0)
        fail("registers");
}

static void prepare_side(struct side *side, void *memory)
{
    struct error error;
    unsigned slot;

    check(kvm_vm_create(&side->vm, &error), &error);
    check(kvm_vm_map(&side->vm, 0, 64 * KIB, memory, false, &slot, &error), &error);
    set_routes(side);
    for (unsigned i = 0; i < vcpu_count; i++) {
        side->vcpus[i] = ioctl(side->vm.fd, KVM_CREATE_VCPU, (unsigned long)i);
        if (side->vcpus[i] < 0)
            fail("KVM_CREATE_VCPU");
        side->runs[i] = mmap(NULL, side->vm.vcpu_mmap_size, PROT_READ | PROT_WRITE, MAP_SHARED,
                             side->vcpus[i], 0);
        if (side->runs[i] == MAP_FAILED)
            fail("mmap of a vCPU");
        set_entry(side->vcpus[i]);
    }
}

static void move_irqfds(int from, int to)
{
    for (unsigned i = 0; i < vector_count; i++) {
        struct kvm_irqfd irqfd = {.fd = (unsigned)eventfds[i], .gsi = FIRST_GSI + i};

        if (to >= 0 && from < 0 && ioctl(to, KVM_IRQFD, &irqfd) < 0)
            fail("KVM_IRQFD");
        if (from < 0)
            continue;
        irqfd.flags = KVM_IRQFD_FLAG_DEASSIGN;
        if (ioctl(from, KVM_IRQFD, &irqfd) < 0)
            fail("KVM_IRQFD, deassign");
        irqfd.flags = 0;
        if (ioctl(to, KVM_IRQFD, &irqfd) < 0)
            fail("KVM_IRQFD, assign");
    }
}

static void prepare(void)
{
    struct error error;
    uint8_t *memory =
        mmap(NULL, 64 * KIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        fail("memory");
    memcpy(memory + CODE_ADDRESS, guest_code, sizeof(guest_code));
    prepare_side(&sides[0], memory);
    prepare_side(&sides[1], memory);
    check(kvm_vcpu_find_msrs(&msrs, &sides[0].vm, sides[0].vcpus[0], &error), &error);
    for (unsigned i = 0; i < vcpu_count; i++) {
        states[i] = calloc(1, sizeof(*states[i]));
        if (!states[i])
            fail("memory");
    }
    for (unsigned i = 0; i < vector_count; i++) {
        eventfds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (eventfds[i] < 0)
            fail("eventfd");
    }
    move_irqfds(-1, sides[0].vm.fd);
    pthread_barrier_init(&all_out, NULL, vcpu_count);
    pthread_barrier_init(&chips_moved, NULL, vcpu_count);
    pthread_barrier_init(&all_in, NULL, vcpu_count + 1);
}

/* --- a move -------------------------------------------------------------------------------- */

static void on_kick(int number)
{
    (void)number;
}

/* What belongs to the whole VM, once no vCPU runs any more. */
static void move_chips(struct side *from, struct side *to)
{
    struct error error;

    check(kvm_vm_save(&from->vm, &vm_state, &error), &error);
    check(kvm_clock_save(&from->vm, &clock_state, &error), &error);
    times.chips_saved = clock_ns();
    move_irqfds(from->vm.fd, to->vm.fd);
    times.irqfds_moved = clock_ns();
    check(kvm_vm_load(&to->vm, &vm_state, &error), &error);
    check(kvm_clock_load(&to->vm, &clock_state, &error), &error);
    times.chips_loaded = clock_ns();
}

static void run_until_kicked(const struct side *side, unsigned index)
{
    while (!atomic_load(&leave)) {
        if (ioctl(side->vcpus[index], KVM_RUN, 0) == 0 &&
            side->runs[index]->exit_reason != KVM_EXIT_INTR) {
            fprintf(stderr, "floor: exit reason %u\n", side->runs[index]->exit_reason);
            exit(EXIT_FAILURE);
        }
    }
}

static void move_vcpu(unsigned index)
{
    struct side *from = &sides[current], *to = &sides[!current];
    struct error error;

    times.out[index] = clock_ns();
    check(kvm_vcpu_get_state(from->vcpus[index], &msrs, states[index], &error), &error);
    times.saved[index] = clock_ns();
    pthread_barrier_wait(&all_out);
    if (index == 0) {
        move_chips(from, to);
        current = !current;
        atomic_store(&leave, false);
    }
    pthread_barrier_wait(&chips_moved);
    check(kvm_vcpu_set_state(to->vcpus[index], states[index], &error), &error);
    to->runs[index]->immediate_exit = 0;
    times.in[index] = clock_ns();
}

static void *vcpu_main(void *argument)
{
    unsigned index = (unsigned)(uintptr_t)argument;

    for (;;) {
        run_until_kicked(&sides[current], index);
        if (atomic_load(&ends))
            return NULL;
        move_vcpu(index);
        pthread_barrier_wait(&all_in);
    }
}

static void kick_all(void)
{
    struct side *side = &sides[current];

    times.kicked = clock_ns();
    atomic_store(&leave, true);
    for (unsigned i = 0; i < vcpu_count; i++) {
        side->runs[i]->immediate_exit = 1;
        pthread_kill(threads[i], SIGUSR1);
    }
}

/* --- the report ---------------------------------------------------------------------------- */

static uint64_t first_of(const uint64_t *values)
{
    uint64_t first = values[0];

    for (unsigned i = 1; i < vcpu_count; i++)
        first = MIN(first, values[i]);
    return first;
}

static uint64_t last_of(const uint64_t *values)
{
    uint64_t last = values[0];

    for (unsigned i = 1; i < vcpu_count; i++)
        last = MAX(last, values[i]);
    return last;
}

static void print_move(bool first)
{
    uint64_t out = first_of(times.out), saved = last_of(times.saved), in = last_of(times.in);

    printf("%s\n    {\"blackout_ns\": %ju, \"kick_ns\": %ju, \"save_ns\": %ju, "
           "\"chips_save_ns\": %ju, \"irqfds_ns\": %ju, \"chips_load_ns\": %ju, \"load_ns\": %ju}",
           first ? "" : ",", (uintmax_t)(in - out), (uintmax_t)(last_of(times.out) - times.kicked),
           (uintmax_t)(saved - out), (uintmax_t)(times.chips_saved - saved),
           (uintmax_t)(times.irqfds_moved - times.chips_saved),
           (uintmax_t)(times.chips_loaded - times.irqfds_moved),
           (uintmax_t)(in - times.chips_loaded));
}

static unsigned number(const char *option, const char *text, unsigned maximum)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);

    if (*text < '0' || *text > '9' || *end || value > maximum) {
        fprintf(stderr, "floor: --%s: '%s' is not a number up to %u\n", option, text, maximum);
        exit(2);
    }
    return (unsigned)value;
}

static void parse(int argc, char **argv)
{
    static const struct option options[] = {{"vcpus", required_argument, NULL, 'c'},
                                            {"vectors", required_argument, NULL, 'v'},
                                            {"count", required_argument, NULL, 'n'},
                                            {NULL, 0, NULL, 0}};
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'c')
            vcpu_count = number("vcpus", optarg, VCPUS_MAX);
        else if (option == 'v')
            vector_count = number("vectors", optarg, VECTORS_MAX);
        else if (option == 'n')
            move_count = number("count", optarg, COUNT_MAX);
        else
            exit(2);
    }
    if (vcpu_count == 0 || move_count == 0 || optind != argc) {
        fprintf(stderr, "usage: floor [--vcpus N] [--vectors N] [--count N]\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = on_kick};

    parse(argc, argv);
    sigaction(SIGUSR1, &action, NULL);
    prepare();
    for (unsigned i = 0; i < vcpu_count; i++) {
        if (pthread_create(&threads[i], NULL, vcpu_main, (void *)(uintptr_t)i) != 0)
            fail("thread");
    }
    printf("{\"vcpus\": %u, \"vectors\": %u, \"moves\": [", vcpu_count, vector_count);
    for (unsigned i = 0; i < move_count; i++) {
        nanosleep(&(struct timespec){.tv_nsec = SETTLE_NS}, NULL);
        kick_all();
        pthread_barrier_wait(&all_in);
        print_move(i == 0);
    }
    printf("\n]}\n");
    atomic_store(&ends, true);
    kick_all();
    for (unsigned i = 0; i < vcpu_count; i++)
        pthread_join(threads[i], NULL);
    return EXIT_SUCCESS;
}
