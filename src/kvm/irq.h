/* SPDX-License-Identifier: Apache-2.0
 *
 * Message-signalled interrupts that a device raises through an eventfd.
 *
 * A VFIO device signals an eventfd per vector for as long as it is armed, whoever listens. This
 * file decides who does, for all interrupts of a VM at once:
 *
 *   HELD    nobody: signals are latched in the eventfds, none is lost
 *   PROXY   a thread of this process reads the eventfd and injects the message with KVM_SIGNAL_MSI
 *   KERNEL  an irqfd: the kernel injects, no exit to user space
 *
 * A masked interrupt is one that nobody listens to whatever the mode: its pending bit is whether
 * the eventfd is readable. Attaching a listener to a signalled eventfd delivers at once.
 *
 * HELD is PROXY with the proxy's gate shut, so going from one to the other costs one lock however
 * many interrupts there are: it is what happens while the guest is stopped in a hand-over. The
 * moves to and from KERNEL cost tens of microseconds each and happen while the guest runs.
 *
 * Callers hold the machine's lock; the proxy thread takes only a lock of its own.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct kvm_vm;
struct kvm_irq;

/** An MSI message, PCI 3.0 section 6.8.1. */
struct msi_message {
    uint64_t address;
    uint32_t data;
};

enum kvm_irq_delivery { KVM_IRQ_HELD, KVM_IRQ_PROXY, KVM_IRQ_KERNEL };

struct kvm_irqs;

/** Makes the interrupts of a VM: the default routes and the proxy thread. For kvm/vm.c. */
int kvm_irqs_create(struct kvm_vm *vm, struct error *error);
/** Ends the proxy thread. Every interrupt has been destroyed. */
void kvm_irqs_destroy(struct kvm_vm *vm);

/**
 * Registers an interrupt, masked. Reserves a GSI route.
 * @param eventfd borrowed; must outlive the interrupt
 */
int kvm_irq_create(struct kvm_vm *vm, int eventfd, struct kvm_irq **irq, struct error *error);
void kvm_irq_destroy(struct kvm_irq *irq);

/** Sets the message and lets the interrupt through, in the VM's current mode of delivery. */
int kvm_irq_unmask(struct kvm_irq *irq, const struct msi_message *message, struct error *error);

/** Stops delivery; later signals stay pending in the eventfd. */
void kvm_irq_mask(struct kvm_irq *irq);

/** @return whether a masked interrupt has been signalled. */
bool kvm_irq_pending(const struct kvm_irq *irq);

/** Forgets a pending signal (device reset). */
void kvm_irq_clear(struct kvm_irq *irq);

/**
 * Changes the mode of delivery of every interrupt of a VM. A new VM starts with KVM_IRQ_HELD.
 * Interrupts that arrive during the change are latched and delivered by the new listener.
 * On failure the old mode is back in force.
 */
int kvm_irqs_set_delivery(struct kvm_vm *vm, enum kvm_irq_delivery delivery, struct error *error);
enum kvm_irq_delivery kvm_irqs_delivery(const struct kvm_vm *vm);
