/* SPDX-License-Identifier: Apache-2.0
 *
 * What KVM leaves for the time when a guest runs for the first time in a VM, done before: the VM's
 * own kernel thread and, page by page, its second-stage page tables. A guest that has changed hands
 * would otherwise be let in at once and yet not get on for a while, with an exit at every page that
 * it touches.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "kvm/vcpu.h"

/**
 * Has the vCPUs' threads do it, in parallel, until all is done or the time is over. Only speed
 * depends on it: what fails is left to the guest's first steps, as the page tables are where the
 * kernel cannot fill them (KVM_PRE_FAULT_MEMORY: Linux 6.11). To fill this process's own tables
 * instead has been tried, and the guest noticed nothing of it.
 * @param vcpus       at least one; they do not run guest code, nor are let run meanwhile
 * @param memory      also fill page tables, for all that the VM has slots for, the smallest first:
 *                    BARs. Memory that has not been touched before is allocated by it.
 * @param deadline_ns CLOCK_MONOTONIC
 * @return bytes that are mapped now
 */
uint64_t kvm_vcpus_warm_up(struct kvm_vcpu *vcpus, unsigned count, bool memory,
                           uint64_t deadline_ns);
