/* SPDX-License-Identifier: Apache-2.0
 *
 * A KVM virtual machine: the VM descriptor, memory slots, in-kernel irqchip and its state.
 *
 * KVM objects cannot be handed over (their ioctls fail with EIO from another address space), so the
 * incoming process always makes a new VM and loads the state of the old one into it.
 * Slots are changed with the machine's lock held.
 */
#pragma once

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "state/state.h"

#define KVM_SLOTS_MAX 256u

/** Interrupt controllers and timer of a VM, as a hand-over carries them. */
struct kvm_vm_state {
    uint8_t pic_primary[sizeof(struct kvm_irqchip)];
    uint8_t pic_secondary[sizeof(struct kvm_irqchip)];
    uint8_t ioapic[sizeof(struct kvm_irqchip)];
    uint8_t pit[sizeof(struct kvm_pit_state2)];
};
extern const struct state_type kvm_vm_state_type;

/** kvmclock. */
struct kvm_clock_state {
    uint8_t data[sizeof(struct kvm_clock_data)];
    uint64_t boottime_ns; /**< CLOCK_BOOTTIME when it was read */
};
extern const struct state_type kvm_clock_state_type;

/** A stretch of guest-physical addresses that is memory. */
struct kvm_slot {
    uint64_t gpa;
    uint64_t size; /**< 0: the slot is free */
};

struct kvm_vm {
    int kvm_fd;
    int fd;
    int vfio_fd; /**< KVM's VFIO device, see kvm/vfio.h; -1 while there is none */
    unsigned vcpu_mmap_size;
    struct kvm_slot slots[KVM_SLOTS_MAX];
    struct kvm_irqs *irqs;       /**< message-signalled interrupts, see kvm/irq.h */
    struct kvm_vm_state initial; /**< as the kernel made it, for a guest reset */
};

/** Opens /dev/kvm, checks what baton needs, makes a VM with an in-kernel irqchip and PIT. */
int kvm_vm_create(struct kvm_vm *vm, struct error *error);
void kvm_vm_destroy(struct kvm_vm *vm);

/**
 * Makes host memory appear at a guest-physical address.
 * @param gpa, size, host page-aligned
 * @param slot out: names the mapping for kvm_vm_unmap()
 */
int kvm_vm_map(struct kvm_vm *vm, uint64_t gpa, uint64_t size, void *host, bool readonly,
               unsigned *slot, struct error *error);
void kvm_vm_unmap(struct kvm_vm *vm, unsigned slot);

/** @return the value of KVM_CHECK_EXTENSION, 0 when the kernel does not have it; negative errno
 * when it cannot say */
int kvm_vm_check(const struct kvm_vm *vm, unsigned capability, struct error *error);

/** Sets the level of an input of the in-kernel interrupt controllers. @param gsi 0 to 23 */
void kvm_vm_set_irq(struct kvm_vm *vm, unsigned gsi, bool level);

/** Reads the controllers of a VM whose vCPUs are stopped (or, for a rehearsal, running), before the
 * vCPUs' local APICs are read: see kvm_vcpus_stop_and_save(). */
int kvm_vm_save(struct kvm_vm *vm, struct kvm_vm_state *state, struct error *error);
/** Writes them, after the vCPUs' local APICs have been written: what is pending in the IOAPIC goes
 * to those. In a reset, where nothing is, it does not matter. */
int kvm_vm_load(struct kvm_vm *vm, const struct kvm_vm_state *state, struct error *error);
/** Puts them back to what they were when the VM was made. */
int kvm_vm_reset(struct kvm_vm *vm, struct error *error);

int kvm_clock_save(struct kvm_vm *vm, struct kvm_clock_state *state, struct error *error);
/** Writes the clock, after the vCPUs' TSC offsets. It goes on from where it would be by now: the
 * guest sees stolen time, not a stopped clock. */
int kvm_clock_load(struct kvm_vm *vm, const struct kvm_clock_state *state, struct error *error);
