/* SPDX-License-Identifier: Apache-2.0
 *
 * The PCIe host bridge: bus 0 with up to 32 devices, reached by ECAM (PCI Express 6.0, 7.2.2) and
 * by ports 0xcf8/0xcfc. Callbacks run with the machine's lock held.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "memory/bus.h"
#include "state/state.h"

#define PCI_CONFIG_SIZE 4096u

struct pci_host;

/** What a function does with configuration accesses. Size is 1, 2 or 4; never straddles a dword. */
struct pci_config_ops {
    uint32_t (*read)(void *opaque, unsigned offset, unsigned size);
    void (*write)(void *opaque, unsigned offset, unsigned size, uint32_t value);
};

/** A function on bus 0; memory of the device. */
struct pci_function {
    const char *name; /**< for messages, e.g. "nvme0" */
    uint8_t devfn;    /**< device << 3 | function */
    const struct pci_config_ops *ops;
    void *opaque;
};

/** Makes the host bridge (its own function is 00:00.0) and claims ECAM and the two ports. */
int pci_host_create(struct pci_host **host, struct bus *mmio, struct bus *pio, struct error *error);
void pci_host_destroy(struct pci_host *host);

/** Puts a function on the bus. @return 0, or -EBUSY when the slot is taken (by whom is named) */
int pci_host_add(struct pci_host *host, struct pci_function *function, struct error *error);
void pci_host_remove(struct pci_host *host, struct pci_function *function);

/** Guest reset. */
void pci_host_reset(struct pci_host *host);

struct pci_host_state {
    uint32_t config_address; /**< port 0xcf8 */
};
extern const struct state_type pci_host_state_type;
/** The live state, for saving and loading in place. */
struct pci_host_state *pci_host_state(struct pci_host *host);
