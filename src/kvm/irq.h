/* SPDX-License-Identifier: Apache-2.0
 *
 * Interrupts that a device raises through an eventfd: messages (MSI, MSI-X) and levels (INTx).
 *
 * A VFIO device signals an eventfd per vector for as long as it is armed, whoever listens. This
 * file decides who does, for all interrupts of a VM at once:
 *
 *   HELD    nobody: signals are latched in the eventfds, none is lost
 *   PROXY   a thread of this process reads the eventfd and injects
 *   KERNEL  an irqfd: the kernel injects, no exit to user space
 *
 * A masked interrupt is one that nobody listens to whatever the mode: its pending bit is whether
 * the eventfd is readable. Attaching a listener to a signalled eventfd delivers at once.
 *
 * HELD is PROXY with the proxy's gate shut, so going from one to the other costs one lock however
 * many interrupts there are: it is what happens while the guest is stopped in a hand-over. The
 * moves to and from KERNEL cost tens of microseconds each and happen while the guest runs.
 *
 * Levels. VFIO masks INTx when it has signalled its eventfd (AUTOMASKED) and waits until the
 * resample eventfd is signalled: then it unmasks and, if the device asserts the line still, masks
 * and signals once more. KVM signals the resample eventfd by itself when the guest ends an
 * interrupt (EOI) whose irqfd was assigned with KVM_IRQFD_FLAG_RESAMPLE, after it has lowered the
 * line. So in KERNEL mode the circle is closed in the kernel.
 *
 * The same holds in PROXY mode, which only puts a thread in front: each level interrupt has a
 * *pin*, an eventfd of this process's own with an irqfd of its own, and the thread passes signals
 * on to it. The EOI is the kernel's affair as before. The pin's irqfd is assigned before the
 * device's is deassigned and the other way round, since KVM lowers the line when the last irqfd of
 * a GSI goes: in a process that hands over, the line keeps its level and a guest in the middle of
 * its handler finds nothing changed.
 *
 * What a new VM lacks is the level: its IOAPIC is loaded with the guest's pending (IRR) and
 * not-yet-ended (remote IRR) bits, but nothing drives its lines. Therefore whoever leaves HELD
 * signals the resample eventfd of every open level interrupt once, as a spurious EOI would. VFIO
 * answers with the truth:
 *
 *   device silent, VFIO unmasked    nothing happens
 *   device silent, VFIO masked      unmasked: the next assertion signals
 *   device asserts, VFIO masked     signalled again: the new listener raises the line
 *   the guest has INTx disabled     nothing; the guest's enabling it asks VFIO the same question
 *
 * With the guest between delivery and EOI at the switch, the raised line stays behind the
 * remote IRR bit until the guest's EOI in the new VM; that lowers it, signals the same resample
 * eventfd, and VFIO raises it again if the device has more to say. A line that is masked in the
 * IOAPIC waits there in the same way. Nothing about this is recorded or handed over: asking again
 * is always right for a level, and costs at worst one interrupt that the guest's handler finds
 * nothing to do for. Where nobody listens to the resample eventfd, the line is raised unasked, see
 * kvm_irq_set_unheard(). A guest reset, which clears the IOAPIC, asks in the same way.
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
 * Registers a message-signalled interrupt, masked. Reserves a GSI route.
 * @param eventfd borrowed; must outlive the interrupt
 */
int kvm_irq_create(struct kvm_vm *vm, int eventfd, struct kvm_irq **irq, struct error *error);

/**
 * Registers a level interrupt, masked.
 * @param gsi input of the IOAPIC, above those of the PIC; several interrupts may share it
 * @param trigger, resample eventfds, borrowed; the device signals the first and is then silent
 *        until the second is signalled
 */
int kvm_irq_create_level(struct kvm_vm *vm, unsigned gsi, int trigger, int resample,
                         struct kvm_irq **irq, struct error *error);

/**
 * Says whether a level interrupt's resample eventfd is signalled in vain, since the device's driver
 * cannot listen to it. The device cannot be asked then whether it asserts its line, so that
 * kvm_irqs_resample() raises that in any case: the guest's handler finds out.
 */
void kvm_irq_set_unheard(struct kvm_irq *irq, bool unheard);

void kvm_irq_destroy(struct kvm_irq *irq);

/**
 * Lets an interrupt through, in the VM's current mode of delivery.
 * @param message what it sends; NULL for a level interrupt
 */
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
 * On failure the old mode is back in force, for every interrupt for which the kernel allows that;
 * the next change tries again for the others.
 */
int kvm_irqs_set_delivery(struct kvm_vm *vm, enum kvm_irq_delivery delivery, struct error *error);
enum kvm_irq_delivery kvm_irqs_delivery(const struct kvm_vm *vm);

/** Has every open level interrupt raised again whose device asserts it: its line in the IOAPIC may
 * have been lost. For kvm/vm.c, after a reset. */
void kvm_irqs_resample(struct kvm_vm *vm);
