/* SPDX-License-Identifier: Apache-2.0
 *
 * MSI (PCI 3.0, 6.8.1): the capability as the guest sees it, with 32-bit or 64-bit addresses,
 * several messages and masking per vector where the function has it, over callbacks that deliver.
 * Used by functions with the machine's lock held.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "pci/vectors.h"

#define PCI_MSI_VECTORS_MAX 32u

/** Part of the owner's state. */
struct pci_msi_state {
    uint16_t control; /**< what the guest can set: enable, number of messages */
    uint64_t address;
    uint16_t data;
    uint32_t mask;
};

struct pci_msi {
    struct pci_msi_state *state;
    const struct pci_vector_ops *ops;
    void *opaque;
    uint16_t features; /**< read-only part of message control */
};

/** @param state borrowed @param control message control of the function: what it can do */
void pci_msi_init(struct pci_msi *msi, struct pci_msi_state *state, uint16_t control,
                  const struct pci_vector_ops *ops, void *opaque);

/** @return bytes of the capability, its ID and pointer included */
unsigned pci_msi_size(const struct pci_msi *msi);
/** @return vectors that the function can have */
unsigned pci_msi_capacity(const struct pci_msi *msi);
/** @return vectors that the guest has enabled; 0 while MSI is off */
unsigned pci_msi_count(const struct pci_msi *msi);

/** Accesses to the capability from offset 2 on; the bytes before it are the caller's. */
uint32_t pci_msi_read(const struct pci_msi *msi, unsigned offset, unsigned size);
void pci_msi_write(struct pci_msi *msi, unsigned offset, unsigned size, uint32_t value);

/** @return whether a vector is delivered */
bool pci_msi_is_open(const struct pci_msi *msi, unsigned vector);
/** @return what a vector sends */
struct msi_message pci_msi_message(const struct pci_msi *msi, unsigned vector);

/** Guest reset, when the owner has already stopped delivery: calls nothing back. */
void pci_msi_reset(struct pci_msi *msi);

/** For the owner's check of its state. */
int pci_msi_check(const struct pci_msi_state *state, struct error *error);
