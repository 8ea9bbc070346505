/* SPDX-License-Identifier: Apache-2.0
 *
 * See irq_routes.h.
 */
#include "kvm/irq_routes.h"

#include <errno.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "base/util.h"

#define FIRST_MSI_GSI IRQ_IOAPIC_PINS

static void add_input(struct kvm_irq_routing *table, unsigned gsi, unsigned chip, unsigned pin)
{
    table->entries[table->nr++] = (struct kvm_irq_routing_entry){
        .gsi = gsi,
        .type = KVM_IRQ_ROUTING_IRQCHIP,
        .u.irqchip = {.irqchip = chip, .pin = pin},
    };
}

/* PIC and IOAPIC inputs as on a PC: input 0 of the IOAPIC is not connected and the timer (GSI 0)
 * arrives at its input 2, which is what the MADT's override says. */
void kvm_irq_routes_init(struct kvm_irq_routes *routes)
{
    struct kvm_irq_routing *table =
        xcalloc(1, sizeof(*table) + IRQ_ROUTES_MAX * sizeof(struct kvm_irq_routing_entry));

    for (unsigned i = 0; i < IRQ_PIC_PINS; i++) {
        if (i != 2)
            add_input(table, i, i < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE, i % 8);
    }
    for (unsigned i = 0; i < IRQ_IOAPIC_PINS; i++) {
        if (i != 2)
            add_input(table, i, KVM_IRQCHIP_IOAPIC, i == 0 ? 2 : i);
    }
    *routes = (struct kvm_irq_routes){.table = table, .stale = true};
}

void kvm_irq_routes_destroy(struct kvm_irq_routes *routes)
{
    free(routes->table);
}

unsigned kvm_irq_routes_gsi(unsigned index)
{
    return FIRST_MSI_GSI + index;
}

void kvm_irq_routes_set(struct kvm_irq_routes *routes, unsigned index,
                        const struct msi_message *message)
{
    struct kvm_irq_routing *table = routes->table;

    assert(index <= routes->messages && index < IRQ_MESSAGES_MAX);
    if (index == routes->messages) {
        table->nr++;
        routes->messages++;
    }
    table->entries[table->nr - routes->messages + index] = (struct kvm_irq_routing_entry){
        .gsi = kvm_irq_routes_gsi(index),
        .type = KVM_IRQ_ROUTING_MSI,
        .u.msi = {.address_lo = (uint32_t)message->address,
                  .address_hi = (uint32_t)(message->address >> 32),
                  .data = message->data},
    };
    routes->stale = true;
}

int kvm_irq_routes_commit(struct kvm_irq_routes *routes, int vm_fd, struct error *error)
{
    if (!routes->stale)
        return 0;
    if (ioctl(vm_fd, KVM_SET_GSI_ROUTING, routes->table) < 0)
        return error_set_errno(error, errno, "KVM_SET_GSI_ROUTING of %u routes failed",
                               routes->table->nr);
    routes->stale = false;
    return 0;
}
