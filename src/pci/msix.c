/* SPDX-License-Identifier: Apache-2.0
 *
 * MSI-X, see msix.h. Called by functions' configuration space and BARs with the machine's lock
 * held.
 */
#include "pci/msix.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/pci_regs.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "pci/registers.h"

#define CONTROL_WRITABLE (PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL)

const struct state_field pci_msix_entry_fields[] = {
    STATE_UINT(struct pci_msix_entry, address, 1),
    STATE_UINT(struct pci_msix_entry, data, 1),
    STATE_UINT_RANGE(struct pci_msix_entry, control, 1, 0, PCI_MSIX_ENTRY_CTRL_MASKBIT, 0),
    STATE_END,
};

void pci_msix_init(struct pci_msix *msix, struct pci_msix_state *state, unsigned count,
                   const struct pci_vector_ops *ops, void *opaque)
{
    assert(count >= 1 && count <= PCI_MSIX_VECTORS_MAX);
    *msix = (struct pci_msix){.state = state, .ops = ops, .opaque = opaque, .count = count};
    pci_msix_reset(msix);
}

void pci_msix_reset(struct pci_msix *msix)
{
    memset(msix->state, 0, sizeof(*msix->state));
    msix->state->count = msix->count;
    for (unsigned i = 0; i < msix->count; i++)
        msix->state->entries[i].control = PCI_MSIX_ENTRY_CTRL_MASKBIT;
}

bool pci_msix_is_open(const struct pci_msix *msix, unsigned vector)
{
    return (msix->state->control & CONTROL_WRITABLE) == PCI_MSIX_FLAGS_ENABLE &&
           !(msix->state->entries[vector].control & PCI_MSIX_ENTRY_CTRL_MASKBIT);
}

struct msi_message pci_msix_message(const struct pci_msix *msix, unsigned vector)
{
    const struct pci_msix_entry *entry = &msix->state->entries[vector];

    return (struct msi_message){.address = entry->address, .data = entry->data};
}

uint16_t pci_msix_control(const struct pci_msix *msix)
{
    return (uint16_t)((msix->state->control & CONTROL_WRITABLE) | (msix->count - 1));
}

static void deliver(struct pci_msix *msix, unsigned vector)
{
    struct msi_message message = pci_msix_message(msix, vector);

    msix->ops->unmask(msix->opaque, vector, &message);
}

/* Tells the owner about every vector that has just been closed, or opened. */
static void announce(struct pci_msix *msix, uint16_t old_control, bool open)
{
    uint16_t new_control = msix->state->control;

    for (unsigned i = 0; i < msix->count; i++) {
        bool before, after;

        msix->state->control = old_control;
        before = pci_msix_is_open(msix, i);
        msix->state->control = new_control;
        after = pci_msix_is_open(msix, i);
        if (before && !after && !open)
            msix->ops->mask(msix->opaque, i);
        if (!before && after && open)
            deliver(msix, i);
    }
}

void pci_msix_write_control(struct pci_msix *msix, uint16_t value)
{
    uint16_t old = msix->state->control;
    uint16_t new = value &CONTROL_WRITABLE;

    msix->state->control = new;
    announce(msix, old, false);
    if ((old ^ new) & PCI_MSIX_FLAGS_ENABLE)
        msix->ops->enable(msix->opaque, new &PCI_MSIX_FLAGS_ENABLE);
    announce(msix, old, true);
}

static uint32_t table_dword(const struct pci_msix *msix, uint64_t offset)
{
    uint64_t vector = offset / PCI_MSIX_ENTRY_BYTES;
    const struct pci_msix_entry *entry;

    if (vector >= msix->count)
        return 0;
    entry = &msix->state->entries[vector];
    switch (offset % PCI_MSIX_ENTRY_BYTES) {
    case PCI_MSIX_ENTRY_LOWER_ADDR:
        return (uint32_t)entry->address;
    case PCI_MSIX_ENTRY_UPPER_ADDR:
        return (uint32_t)(entry->address >> 32);
    case PCI_MSIX_ENTRY_DATA:
        return entry->data;
    default:
        return entry->control & PCI_MSIX_ENTRY_CTRL_MASKBIT;
    }
}

/* Puts together what an access of any size and alignment sees of an array of dwords. */
static uint64_t read_dwords(const struct pci_msix *msix, uint64_t offset, unsigned size,
                            uint32_t (*dword)(const struct pci_msix *, uint64_t))
{
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++) {
        uint64_t at = offset + i;
        uint64_t byte = register_part(dword(msix, align_down(at, 4)), at & 3, 1);

        value |= byte << (8 * i);
    }
    return value;
}

uint64_t pci_msix_table_read(const struct pci_msix *msix, uint64_t offset, unsigned size)
{
    return read_dwords(msix, offset, size, table_dword);
}

static void write_dword(struct pci_msix *msix, uint64_t offset, uint32_t value)
{
    unsigned vector = (unsigned)(offset / PCI_MSIX_ENTRY_BYTES);
    struct pci_msix_entry *entry = &msix->state->entries[vector];

    switch (offset % PCI_MSIX_ENTRY_BYTES) {
    case PCI_MSIX_ENTRY_LOWER_ADDR: /* the two lowest bits are always zero */
        entry->address = (entry->address & ~UINT64_C(0xffffffff)) | (value & ~3u);
        break;
    case PCI_MSIX_ENTRY_UPPER_ADDR:
        entry->address = (entry->address & 0xffffffff) | ((uint64_t)value << 32);
        break;
    case PCI_MSIX_ENTRY_DATA:
        entry->data = value;
        break;
    default:
        entry->control = value & PCI_MSIX_ENTRY_CTRL_MASKBIT;
        break;
    }
}

void pci_msix_table_write(struct pci_msix *msix, uint64_t offset, unsigned size, uint64_t value)
{
    unsigned vector = (unsigned)(offset / PCI_MSIX_ENTRY_BYTES);
    struct msi_message old, new;
    bool was_open, is_open;

    if ((size != 4 && size != 8) || !is_aligned(offset, size)) {
        log_guest("MSI-X table: write of %u bytes at 0x%" PRIx64 " ignored", size, offset);
        return;
    }
    if (offset / PCI_MSIX_ENTRY_BYTES >= msix->count)
        return;

    was_open = pci_msix_is_open(msix, vector);
    old = pci_msix_message(msix, vector);
    write_dword(msix, offset, (uint32_t)value);
    if (size == 8)
        write_dword(msix, offset + 4, (uint32_t)(value >> 32));
    is_open = pci_msix_is_open(msix, vector);
    new = pci_msix_message(msix, vector);

    if (was_open && !is_open)
        msix->ops->mask(msix->opaque, vector);
    else if (is_open && (!was_open || old.address != new.address || old.data != new.data))
        deliver(msix, vector);
}

/* A vector that is delivered is never pending for longer than it takes to deliver it. */
static uint32_t pba_dword(const struct pci_msix *msix, uint64_t offset)
{
    uint32_t bits = 0;

    for (unsigned i = 0; i < 32; i++) {
        uint64_t vector = offset * 8 + i;

        if (vector >= msix->count)
            break;
        if (!pci_msix_is_open(msix, (unsigned)vector) &&
            msix->ops->pending(msix->opaque, (unsigned)vector))
            bits |= 1u << i;
    }
    return bits;
}

uint64_t pci_msix_pba_read(const struct pci_msix *msix, uint64_t offset, unsigned size)
{
    if (offset >= PCI_MSIX_VECTORS_MAX / 8)
        return 0;
    if (size == 8 && is_aligned(offset, 4)) /* the usual sizes ask each vector once */
        return pba_dword(msix, offset) | ((uint64_t)pba_dword(msix, offset + 4) << 32);
    if (size == 4 && is_aligned(offset, 4))
        return pba_dword(msix, offset);
    return read_dwords(msix, offset, size, pba_dword);
}

int pci_msix_check(const struct pci_msix_state *state, struct error *error)
{
    if (state->control & ~CONTROL_WRITABLE)
        return error_set(error, EINVAL, "MSI-X control 0x%x has bits that do not exist",
                         state->control);
    for (uint32_t i = 0; i < state->count; i++) {
        if (state->entries[i].address & 3)
            return error_set(error, EINVAL, "MSI-X vector %" PRIu32 ": address not aligned", i);
        if (state->entries[i].control & ~PCI_MSIX_ENTRY_CTRL_MASKBIT)
            return error_set(error, EINVAL, "MSI-X vector %" PRIu32 ": bits that do not exist", i);
    }
    return 0;
}
