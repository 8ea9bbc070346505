/* SPDX-License-Identifier: Apache-2.0
 *
 * Base address registers, see bars.h. Called by functions' configuration space with the machine's
 * lock held.
 */
#include "pci/bars.h"

#include <assert.h>
#include <inttypes.h>
#include <linux/pci_regs.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "memory/layout.h"
#include "pci/registers.h"

/* From the interrupt controllers up to 4 GiB memory is the processor's own: a BAR there would be
 * shadowed, or shadow them. A 32-bit BAR that is being sized by all-ones ends up here, too. */
#define RESERVED_BASE LAYOUT_IOAPIC_BASE
#define RESERVED_END  (4 * GIB)

static bool is_memory(const struct pci_bar *bar)
{
    return bar->kind == PCI_BAR_MEM32 || bar->kind == PCI_BAR_MEM64;
}

void pci_bars_init(struct pci_bars *bars, const char *name, struct pci_bars_state *state,
                   const struct pci_bars_ops *ops, void *opaque)
{
    memset(bars, 0, sizeof(*bars));
    bars->name = name;
    bars->state = state;
    bars->ops = ops;
    bars->opaque = opaque;
}

void pci_bars_define(struct pci_bars *bars, unsigned index, enum pci_bar_kind kind, uint64_t size,
                     bool prefetchable)
{
    struct pci_bar *bar = &bars->bars[index];

    assert(index < PCI_BARS_ALL && bar->kind == PCI_BAR_NONE);
    assert(is_power_of_two(size) && size >= (kind == PCI_BAR_IO ? 4 : 16));
    assert(kind == PCI_BAR_MEM64 || size <= 2 * GIB);
    assert(index != PCI_BAR_ROM || (kind == PCI_BAR_MEM32 && size >= 2 * KIB));

    bar->kind = kind;
    bar->size = size;
    bar->prefetchable = prefetchable;
    if (kind == PCI_BAR_MEM64) {
        assert(index + 1 < PCI_BAR_COUNT && bars->bars[index + 1].kind == PCI_BAR_NONE);
        bars->bars[index + 1].kind = PCI_BAR_UPPER;
    }
}

bool pci_bars_owns(unsigned offset)
{
    return (offset >= PCI_BASE_ADDRESS_0 && offset < PCI_BASE_ADDRESS_5 + 4) ||
           (offset >= PCI_ROM_ADDRESS && offset < PCI_ROM_ADDRESS + 4);
}

static unsigned index_of(unsigned offset)
{
    return offset >= PCI_ROM_ADDRESS ? PCI_BAR_ROM : (offset - PCI_BASE_ADDRESS_0) / 4;
}

/* Bits of a register that the guest can set. */
static uint32_t writable_bits(const struct pci_bars *bars, unsigned index)
{
    const struct pci_bar *bar = &bars->bars[index];

    switch (bar->kind) {
    case PCI_BAR_NONE:
        return 0;
    case PCI_BAR_UPPER:
        return (uint32_t)(~(bars->bars[index - 1].size - 1) >> 32);
    case PCI_BAR_IO:
        return (uint32_t) ~(bar->size - 1) & PCI_BASE_ADDRESS_IO_MASK;
    case PCI_BAR_MEM32:
    case PCI_BAR_MEM64:
        break;
    }
    if (index == PCI_BAR_ROM)
        return ((uint32_t) ~(bar->size - 1) & PCI_ROM_ADDRESS_MASK) | PCI_ROM_ADDRESS_ENABLE;
    return (uint32_t) ~(bar->size - 1) & PCI_BASE_ADDRESS_MEM_MASK;
}

/* Bits of a register that say what it is. */
static uint32_t constant_bits(const struct pci_bars *bars, unsigned index)
{
    const struct pci_bar *bar = &bars->bars[index];
    uint32_t bits = 0;

    if (bar->kind == PCI_BAR_IO)
        return PCI_BASE_ADDRESS_SPACE_IO;
    if (!is_memory(bar) || index == PCI_BAR_ROM)
        return 0;
    if (bar->kind == PCI_BAR_MEM64)
        bits |= PCI_BASE_ADDRESS_MEM_TYPE_64;
    if (bar->prefetchable)
        bits |= PCI_BASE_ADDRESS_MEM_PREFETCH;
    return bits;
}

/* A register's value. State may come from another process, so what it cannot hold is left out. */
static uint32_t register_value(const struct pci_bars *bars, unsigned index)
{
    return (bars->state->registers[index] & writable_bits(bars, index)) |
           constant_bits(bars, index);
}

uint32_t pci_bars_read(const struct pci_bars *bars, unsigned offset, unsigned size)
{
    return register_part(register_value(bars, index_of(offset)), offset & 3, size);
}

void pci_bars_write(struct pci_bars *bars, unsigned offset, unsigned size, uint32_t value)
{
    unsigned index = index_of(offset);
    uint32_t *target = &bars->state->registers[index];

    *target = register_merge(*target, offset & 3, size, value) & writable_bits(bars, index);
}

/* Where the registers say that a BAR is. */
static uint64_t programmed_address(const struct pci_bars *bars, unsigned index)
{
    uint64_t address = register_value(bars, index);

    if (bars->bars[index].kind == PCI_BAR_MEM64)
        address |= (uint64_t)register_value(bars, index + 1) << 32;
    return address & ~(bars->bars[index].size - 1);
}

/* Whether the guest has switched on the decoding of a BAR. */
static bool is_decoded(const struct pci_bars *bars, unsigned index, uint16_t command)
{
    const struct pci_bar *bar = &bars->bars[index];

    if (bar->kind == PCI_BAR_IO)
        return command & PCI_COMMAND_IO;
    if (!is_memory(bar) || !(command & PCI_COMMAND_MEMORY))
        return false;
    return index != PCI_BAR_ROM || (register_value(bars, index) & PCI_ROM_ADDRESS_ENABLE);
}

/* Whether a BAR may be at an address as far as the machine's fixed parts are concerned. Address 0
 * is what a BAR holds that nobody has given a place yet. */
static bool is_usable(const struct pci_bar *bar, uint64_t address)
{
    uint64_t last = address + (bar->size - 1);

    if (address == 0)
        return false;
    if (bar->kind == PCI_BAR_IO)
        return last <= UINT16_MAX;
    if (last < address || last == UINT64_MAX)
        return false;
    return last < RESERVED_BASE || address >= RESERVED_END;
}

static void refuse(struct pci_bars *bars, unsigned index, uint64_t address)
{
    struct pci_bar *bar = &bars->bars[index];

    if (address == bar->refused)
        return;
    bar->refused = address;
    if (address != 0)
        log_guest("%s: BAR %u does not fit at 0x%" PRIx64 ", left unmapped", bars->name, index,
                  address);
}

static void map_bar(struct pci_bars *bars, unsigned index, uint64_t address)
{
    struct pci_bar *bar = &bars->bars[index];

    if (!is_usable(bar, address) || bars->ops->map(bars->opaque, index, address) < 0) {
        refuse(bars, index, address);
        return;
    }
    bar->mapped = true;
    bar->address = address;
    bar->refused = 0;
}

void pci_bars_update(struct pci_bars *bars, uint16_t command)
{
    for (unsigned i = 0; i < PCI_BARS_ALL; i++) {
        struct pci_bar *bar = &bars->bars[i];

        if (!bar->mapped)
            continue;
        if (is_decoded(bars, i, command) && programmed_address(bars, i) == bar->address)
            continue;
        bars->ops->unmap(bars->opaque, i);
        bar->mapped = false;
    }
    for (unsigned i = 0; i < PCI_BARS_ALL; i++) {
        if (!bars->bars[i].mapped && is_decoded(bars, i, command))
            map_bar(bars, i, programmed_address(bars, i));
    }
}

void pci_bars_reset(struct pci_bars *bars)
{
    pci_bars_update(bars, 0);
    memset(bars->state, 0, sizeof(*bars->state));
}
