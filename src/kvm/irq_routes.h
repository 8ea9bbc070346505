/* SPDX-License-Identifier: Apache-2.0
 *
 * A VM's table of interrupt routes: the inputs of PIC and IOAPIC, and one route for each message,
 * by its index. The kernel is told of changes when they are committed. For kvm/irq.c; the holder of
 * the machine's lock.
 */
#pragma once

#include <stdbool.h>

#include "base/error.h"
#include "kvm/irq.h"

#define IRQ_PIC_PINS    16u
#define IRQ_IOAPIC_PINS 24u
#define IRQ_ROUTES_MAX  4096u /* KVM_MAX_IRQ_ROUTES, <linux/kvm_host.h> */
/** Messages that have room beside the inputs. */
#define IRQ_MESSAGES_MAX (IRQ_ROUTES_MAX - IRQ_PIC_PINS - IRQ_IOAPIC_PINS)

struct kvm_irq_routing;

struct kvm_irq_routes {
    struct kvm_irq_routing *table; /**< inputs, then messages */
    unsigned messages;             /**< routes of messages, also those that are not in use */
    bool stale;                    /**< the kernel has not been told of the last changes */
};

/** The default routes, not committed. */
void kvm_irq_routes_init(struct kvm_irq_routes *routes);
void kvm_irq_routes_destroy(struct kvm_irq_routes *routes);

/** @return the GSI whose route leads to a message; follows those of the IOAPIC's inputs */
unsigned kvm_irq_routes_gsi(unsigned index);

/** Sets the route of a message. @param index at most one above those so far, below
 * IRQ_MESSAGES_MAX */
void kvm_irq_routes_set(struct kvm_irq_routes *routes, unsigned index,
                        const struct msi_message *message);

/** KVM_SET_GSI_ROUTING, where something has changed. @return 0; negative errno: tried again at the
 * next call */
int kvm_irq_routes_commit(struct kvm_irq_routes *routes, int vm_fd, struct error *error);
