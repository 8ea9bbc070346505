/* SPDX-License-Identifier: Apache-2.0
 *
 * Tells KVM which devices are passed through to a VM. KVM needs to know where a device's DMA may
 * bypass the processors' caches (the guest's memory types count then), which VMs can reach MMIO
 * (some processors' buffers must be cleared before those are entered), and to set up what lets the
 * hardware deliver interrupts to vCPUs directly.
 *
 * Each process of a guest tells its own VM. KVM does not take part in DMA, and remembers the device
 * in neither direction: telling a second VM while the first one still knows is harmless.
 */
#pragma once

#include "base/error.h"
#include "kvm/vm.h"

/**
 * Adds a device, after it has been opened: a device that is opened when KVM has been told of it
 * would keep this VM's innards for as long as it is open, in whatever process that is.
 * @param fd VFIO's: the device's, or its group's when it is in a legacy container. Twice is once
 */
int kvm_vfio_add(struct kvm_vm *vm, int fd, struct error *error);

/** Removes what was added, before the descriptor is closed. Twice is once. */
void kvm_vfio_remove(struct kvm_vm *vm, int fd);
