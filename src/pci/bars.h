/* SPDX-License-Identifier: Apache-2.0
 *
 * Base address registers of a function (PCI 3.0, 6.2.5) as the guest sees them: sizing, decoding by
 * the command register, and telling the owner where a BAR appears and when it is gone again.
 *
 * The registers live in the owner's state; everything else can be rebuilt from them. Used by
 * functions (vfio/, later virtio/) with the machine's lock held.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define PCI_BAR_COUNT 6u
#define PCI_BAR_ROM   6u /* index of the expansion ROM, as in VFIO's regions */
#define PCI_BARS_ALL  7u

enum pci_bar_kind {
    PCI_BAR_NONE, /**< not implemented: reads zero */
    PCI_BAR_IO,
    PCI_BAR_MEM32, /**< also the ROM */
    PCI_BAR_MEM64, /**< takes the next register as well */
    PCI_BAR_UPPER, /**< upper half of the 64-bit BAR before it */
};

/** What the guest has written; part of the owner's state. */
struct pci_bars_state {
    uint32_t registers[PCI_BARS_ALL];
};

struct pci_bars_ops {
    /**
     * A BAR appears at an address. @return 0; negative when it cannot be there because something
     * else is: it stays unmapped until the guest moves something
     */
    int (*map)(void *opaque, unsigned bar, uint64_t address);
    /** It is gone. Only for what map() has accepted. */
    void (*unmap)(void *opaque, unsigned bar);
};

struct pci_bar {
    enum pci_bar_kind kind;
    bool prefetchable;
    uint64_t size; /**< power of two */
    bool mapped;
    uint64_t address; /**< while mapped */
    uint64_t refused; /**< last address that was no good, so that the log has it once; 0 none */
};

struct pci_bars {
    const char *name; /**< for log lines, borrowed */
    struct pci_bar bars[PCI_BARS_ALL];
    struct pci_bars_state *state;
    const struct pci_bars_ops *ops;
    void *opaque;
};

/** Starts with no BAR at all. @param state borrowed, the live registers */
void pci_bars_init(struct pci_bars *bars, const char *name, struct pci_bars_state *state,
                   const struct pci_bars_ops *ops, void *opaque);

/**
 * Implements a BAR. A 64-bit one needs the register after it.
 * @param size power of two: at least 4 for I/O, 16 for memory, 2 KiB for the ROM
 */
void pci_bars_define(struct pci_bars *bars, unsigned index, enum pci_bar_kind kind, uint64_t size,
                     bool prefetchable);

/** @return whether a configuration offset is one of the registers (0x10 to 0x27, 0x30 to 0x33) */
bool pci_bars_owns(unsigned offset);

/** A guest's access within the registers; update must follow a write. */
uint32_t pci_bars_read(const struct pci_bars *bars, unsigned offset, unsigned size);
void pci_bars_write(struct pci_bars *bars, unsigned offset, unsigned size, uint32_t value);

/**
 * Makes what is mapped follow the registers and the command register; does nothing where they
 * agree. BARs are unmapped before others are mapped, so that they can swap places.
 * @param command PCI_COMMAND: which kinds of BAR are decoded
 */
void pci_bars_update(struct pci_bars *bars, uint16_t command);

/** Guest reset: registers zero, nothing mapped. */
void pci_bars_reset(struct pci_bars *bars);
