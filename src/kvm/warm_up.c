/* SPDX-License-Identifier: Apache-2.0
 *
 * See warm_up.h. The VM's memory is taken as one stretch, slot after slot, and handed out in chunks
 * to whichever thread has time.
 */
#include "kvm/warm_up.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "base/uapi_ioctls.h"
#include "base/util.h"

#define CHUNK                         (8 * MIB) /* takes some milliseconds, page by page */
#define UAPI_KVM_CAP_PRE_FAULT_MEMORY 236

/* struct kvm_pre_fault_memory. */
struct uapi_pre_fault_memory {
    uint64_t gpa;
    uint64_t size;
    uint64_t flags;
    uint64_t padding[5];
};
_Static_assert(sizeof(struct uapi_pre_fault_memory) == 64, "the kernel's");

struct warm_up {
    struct kvm_slot slots[KVM_SLOTS_MAX];
    unsigned slot_count;
    uint64_t size; /* of all slots; 0: no memory is to be mapped */
    uint64_t deadline_ns;
    _Atomic uint64_t next;   /* where the next chunk begins */
    _Atomic uint64_t mapped; /* bytes */
};

static int compare_sizes(const void *left, const void *right)
{
    const struct kvm_slot *a = left, *b = right;

    return (a->size > b->size) - (a->size < b->size);
}

static void take_slots(struct warm_up *warm_up, const struct kvm_vm *vm)
{
    for (unsigned i = 0; i < KVM_SLOTS_MAX; i++) {
        if (vm->slots[i].size == 0)
            continue;
        warm_up->slots[warm_up->slot_count++] = vm->slots[i];
        warm_up->size += vm->slots[i].size;
    }
    qsort(warm_up->slots, warm_up->slot_count, sizeof(warm_up->slots[0]), compare_sizes);
}

/* With immediate_exit, KVM_RUN does what it has to do once per VM and once per thread, and nothing
 * of the guest. It fails with EINTR, and any other failure will be seen when the guest runs. */
static void enter_once(struct kvm_vcpu *vcpu)
{
    __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    ioctl(vcpu->fd, KVM_RUN, 0);
}

/* The kernel may map less than it was asked for, and goes on with the rest when asked again. */
static void map_range(struct warm_up *warm_up, int vcpu_fd, uint64_t gpa, uint64_t size)
{
    struct uapi_pre_fault_memory range = {.gpa = gpa, .size = size};
    int ret;

    do {
        ret = ioctl(vcpu_fd, UAPI_KVM_PRE_FAULT_MEMORY, &range);
    } while ((ret == 0 || errno == EINTR || errno == EAGAIN) && range.size > 0 &&
             clock_ns() < warm_up->deadline_ns);
    atomic_fetch_add(&warm_up->mapped, size - range.size);
}

/* A chunk may reach over the end of a slot, or over several. */
static void map_chunk(struct warm_up *warm_up, int vcpu_fd, uint64_t start)
{
    uint64_t base = 0; /* of a slot, in the one stretch */

    for (unsigned i = 0; i < warm_up->slot_count; base += warm_up->slots[i++].size) {
        const struct kvm_slot *slot = &warm_up->slots[i];
        uint64_t from = MAX(start, base), to = MIN(start + CHUNK, base + slot->size);

        if (from < to)
            map_range(warm_up, vcpu_fd, slot->gpa + (from - base), to - from);
    }
}

static int warm_up_vcpu(struct kvm_vcpu *vcpu, void *argument, struct error *error)
{
    struct warm_up *warm_up = argument;
    uint64_t start;

    (void)error;
    enter_once(vcpu);
    start = atomic_fetch_add(&warm_up->next, CHUNK);
    while (start < warm_up->size && clock_ns() < warm_up->deadline_ns) {
        map_chunk(warm_up, vcpu->fd, start);
        start = atomic_fetch_add(&warm_up->next, CHUNK);
    }
    return 0;
}

uint64_t kvm_vcpus_warm_up(struct kvm_vcpu *vcpus, unsigned count, bool memory,
                           uint64_t deadline_ns)
{
    struct warm_up warm_up = {.deadline_ns = deadline_ns};
    struct error ignored;

    if (memory && kvm_vm_check(vcpus[0].vm, UAPI_KVM_CAP_PRE_FAULT_MEMORY, &ignored) > 0)
        take_slots(&warm_up, vcpus[0].vm);
    kvm_vcpus_call(vcpus, count, warm_up_vcpu, &warm_up, &ignored);
    return atomic_load(&warm_up.mapped);
}
