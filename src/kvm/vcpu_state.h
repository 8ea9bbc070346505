/* SPDX-License-Identifier: Apache-2.0
 *
 * The state of a vCPU: every register that a hand-over carries, as KVM's own UAPI structures in
 * sized byte strings. Used on the vCPU's thread.
 */
#pragma once

#include <linux/kvm.h>
#include <stdint.h>

#include "base/error.h"
#include "kvm/vm.h"
#include "state/state.h"

#define KVM_VCPU_MSRS_MAX   512
#define KVM_VCPU_XSAVE_MAX  16384
#define KVM_VCPU_NESTED_MAX 12288

struct kvm_vcpu_state {
    uint32_t mp_state;
    uint64_t tsc_offset; /**< guest TSC minus host TSC: same host, so it stays */
    uint8_t regs[sizeof(struct kvm_regs)];
    uint8_t sregs[sizeof(struct kvm_sregs2)];
    uint8_t xcrs[sizeof(struct kvm_xcrs)];
    uint8_t debugregs[sizeof(struct kvm_debugregs)];
    uint8_t events[sizeof(struct kvm_vcpu_events)];
    uint8_t lapic[sizeof(struct kvm_lapic_state)];
    uint32_t xsave_length;
    uint8_t xsave[KVM_VCPU_XSAVE_MAX];
    uint32_t nested_length; /**< 0 when the guest does not run guests of its own */
    uint8_t nested[KVM_VCPU_NESTED_MAX];
    uint32_t msrs_length;
    /** struct kvm_msrs with its entries, as KVM_GET_MSRS and KVM_SET_MSRS take it. */
    uint8_t msrs[sizeof(struct kvm_msrs) + KVM_VCPU_MSRS_MAX * sizeof(struct kvm_msr_entry)]
        __attribute__((aligned(8)));
};
extern const struct state_type kvm_vcpu_state_type;

/** Which MSRs this host's KVM keeps for a vCPU, and sizes of what varies. Found out once. */
struct kvm_vcpu_msrs {
    uint32_t count;
    uint32_t indices[KVM_VCPU_MSRS_MAX];
    uint32_t xsave_size;
    uint32_t nested_size;
};

/**
 * Has the processor see all memory as write-back, as firmware leaves it behind, which guests here
 * do not have: without it KVM may give them uncached memory, and they use no PAT. For a vCPU that
 * has not run yet. Intel SDM volume 3, "Memory Type Range Registers".
 */
int kvm_vcpu_enable_caches(int vcpu_fd, struct error *error);

/** Finds out which MSRs can be read and written. */
int kvm_vcpu_find_msrs(struct kvm_vcpu_msrs *msrs, const struct kvm_vm *vm, int vcpu_fd,
                       struct error *error);

/** Reads all state. Allocates nothing. */
int kvm_vcpu_get_state(int vcpu_fd, const struct kvm_vcpu_msrs *msrs, struct kvm_vcpu_state *state,
                       struct error *error);

/**
 * Takes a vCPU out of what a guest's own hypervisor had made of it (VMXON, a nested guest), before
 * another state is written: with VMX on, KVM refuses registers with CR4.VMXE clear.
 * @param initial the state of a vCPU that has never run
 */
int kvm_vcpu_leave_nested(int vcpu_fd, const struct kvm_vcpu_state *initial, struct error *error);

/** Writes all state. Allocates nothing. */
int kvm_vcpu_set_state(int vcpu_fd, const struct kvm_vcpu_state *state, struct error *error);
