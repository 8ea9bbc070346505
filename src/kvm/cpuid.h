/* SPDX-License-Identifier: Apache-2.0
 *
 * The CPUID that a guest sees: the host's, with the topology of this machine (one socket, one
 * thread per core). Built once when a machine is created; the table travels with a hand-over, so
 * that the incoming process presents exactly the same processor.
 */
#pragma once

#include <linux/kvm.h>
#include <stdint.h>

#include "base/error.h"
#include "kvm/vm.h"
#include "state/state.h"

#define KVM_CPUID_ENTRIES_MAX 256

/** Facts: the table common to all vCPUs, before each one's APIC id is put in. */
struct kvm_cpuid_table {
    uint32_t length; /**< bytes used in entries */
    uint8_t entries[KVM_CPUID_ENTRIES_MAX * sizeof(struct kvm_cpuid_entry2)];
};
extern const struct state_type kvm_cpuid_type;

/** Reads what this host supports. @param cpus number of vCPUs */
int kvm_cpuid_read_host(struct kvm_cpuid_table *cpuid, const struct kvm_vm *vm, unsigned cpus,
                        struct error *error);

/** Sets the table of one vCPU, before it first runs. @param index also its APIC id */
int kvm_cpuid_apply(const struct kvm_cpuid_table *cpuid, int vcpu_fd, unsigned index,
                    struct error *error);

/** @return MAXPHYADDR, the number of physical address bits */
unsigned kvm_cpuid_physical_bits(const struct kvm_cpuid_table *cpuid);
