/* SPDX-License-Identifier: Apache-2.0
 *
 * MSI-X (PCI 3.0, 6.8.2): capability, vector table and pending bits as the guest sees them, over
 * callbacks that deliver. Used by functions with the machine's lock held.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "pci/vectors.h"
#include "state/state.h"

#define PCI_MSIX_VECTORS_MAX 2048u
#define PCI_MSIX_ENTRY_BYTES 16u
#define PCI_MSIX_CAP_BYTES   12u

struct pci_msix_entry {
    uint64_t address;
    uint32_t data;
    uint32_t control; /**< bit 0: masked */
};
_Static_assert(sizeof(struct pci_msix_entry) == PCI_MSIX_ENTRY_BYTES, "it is handed over packed");
extern const struct state_field pci_msix_entry_fields[];

/** Part of the owner's state. */
struct pci_msix_state {
    uint16_t control; /**< PCI_MSIX_FLAGS_ENABLE and _MASKALL */
    uint32_t count;   /**< entries in use; 0 when the function has no MSI-X */
    struct pci_msix_entry entries[PCI_MSIX_VECTORS_MAX];
};

struct pci_msix {
    struct pci_msix_state *state;
    const struct pci_vector_ops *ops;
    void *opaque;
    unsigned count; /**< vectors that the function has */
};

/** Every vector masked, MSI-X off. @param state borrowed @param count 1 to 2048 */
void pci_msix_init(struct pci_msix *msix, struct pci_msix_state *state, unsigned count,
                   const struct pci_vector_ops *ops, void *opaque);

/** The message control register: offset 2 of the capability. Only its top two bits change. */
uint16_t pci_msix_control(const struct pci_msix *msix);
void pci_msix_write_control(struct pci_msix *msix, uint16_t value);

/** Accesses to the table. Offset from its start; aligned 4 and 8 are what the specification
 * allows, other reads get their bytes, other writes are dropped. */
uint64_t pci_msix_table_read(const struct pci_msix *msix, uint64_t offset, unsigned size);
void pci_msix_table_write(struct pci_msix *msix, uint64_t offset, unsigned size, uint64_t value);

/** The pending bit array. Read-only. */
uint64_t pci_msix_pba_read(const struct pci_msix *msix, uint64_t offset, unsigned size);

/** @return whether a vector is delivered: MSI-X on, neither it nor the function masked */
bool pci_msix_is_open(const struct pci_msix *msix, unsigned vector);

/** @return what a vector sends */
struct msi_message pci_msix_message(const struct pci_msix *msix, unsigned vector);

/** Guest reset, when the owner has already stopped delivery: calls nothing back. */
void pci_msix_reset(struct pci_msix *msix);

/** For the owner's check of its state. */
int pci_msix_check(const struct pci_msix_state *state, struct error *error);
