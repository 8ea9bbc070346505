/* SPDX-License-Identifier: Apache-2.0
 *
 * A passed-through function as the guest sees it: its state, and what config.c, interrupts.c,
 * intx.c, notifiers.c, pci.c and state.c offer each other. Private to vfio/; the machine's lock is
 * held.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/util.h"
#include "kvm/irq.h"
#include "pci/bars.h"
#include "pci/host.h"
#include "pci/msi.h"
#include "pci/msix.h"
#include "vfio/device.h"
#include "vfio/pci.h"

/** Which of the function's interrupts VFIO signals. */
enum vfio_armed { VFIO_ARMED_NONE, VFIO_ARMED_MSI, VFIO_ARMED_MSIX, VFIO_ARMED_INTX };

#define VFIO_POWER_D3 3u
#define VFIO_ROM_MAX  (16 * MIB) /* PCI 3.0, 6.2.5.2 */

/** What a hand-over carries. The emulated registers are these fields, not copies of them. */
struct vfio_pci_state {
    uint16_t command; /**< as the guest wrote it; VFIO has it too, but not for virtual functions */
    uint8_t interrupt_line;
    uint8_t power;  /**< D0 to D3: BARs are not decoded in D3 */
    uint8_t mapped; /**< BARs that the guest can reach, a bit each */
    struct pci_bars_state bars;
    struct pci_msi_state msi;
    struct pci_msix_state msix;
    uint8_t armed_index;                     /**< enum vfio_armed */
    uint8_t armed[PCI_MSIX_VECTORS_MAX / 8]; /**< of MSI and MSI-X: a bit per vector */
    bool unmask_by_access;                   /**< INTx: see vfio_intx_unmask() */
};

/** A vector: its eventfd is armed in VFIO, its kvm_irq delivers to the guest. */
struct vfio_vector {
    int eventfd;
    struct kvm_irq *irq;
    bool open; /**< what the irq has been told */
    struct msi_message message;
};

/** INTx: VFIO signals the trigger, then masks the device until the resample eventfd is signalled.
 */
struct vfio_intx {
    int trigger, resample; /**< -1: the function has no INTx */
    struct kvm_irq *irq;
    bool open; /**< what the irq has been told */
};

/** What the guest reads where configuration space is neither passed through nor state. */
struct vfio_config {
    unsigned size;          /**< 256 or 4096 */
    int unreadable;         /**< errno, when a read failed while it was examined */
    unsigned pm, msi, msix; /**< offsets of capabilities; 0: not there */
    unsigned pin;           /**< 1 to 4: INTA to INTD; 0: no INTx */
    unsigned msix_table_bar, msix_pba_bar;
    uint64_t msix_table_offset, msix_pba_offset;
    uint8_t value[PCI_CONFIG_SIZE]; /**< constant bits */
    uint8_t mask[PCI_CONFIG_SIZE];  /**< bits that come from value, or from state */
};

struct vfio_bar {
    struct vfio_pci *owner;
    unsigned index;
    struct bus_range range;
};

struct vfio_pci {
    struct vfio_pci_parents parents;
    struct vfio_device device;
    uint32_t devid; /**< see struct vfio_pci_facts */
    uint32_t group;
    uint32_t hwpt;
    unsigned space; /**< see struct iommu_device */
    bool p2p;       /**< the guest's other devices may reach its BARs */
    int kvm_fd;     /**< what KVM has been told of, borrowed; -1: nothing */
    struct vfio_pci_state state;
    struct vfio_config config;
    struct pci_function function;
    bool on_bus;
    struct pci_bars bars;
    struct vfio_bar places[PCI_BARS_ALL];
    struct pci_msi msi;
    struct pci_msix msix;
    struct vfio_vector *vectors;
    unsigned vector_count;
    uint8_t *rom; /**< what the device's ROM holds; NULL until the guest has read it */
    size_t rom_size;
    struct vfio_intx intx;
    int notifiers[VFIO_NOTIFIERS]; /**< eventfds, -1 where VFIO has none */
};

/**
 * What create and adopt have in common before there are vectors: asks the kernel, maps BARs and
 * changes nothing. The device is open and attached.
 */
int vfio_pci_examine(struct vfio_pci *device, struct error *error);

/**
 * Reads the function's configuration space, for those who work out what of it the guest sees. All
 * ones where there is nothing, and where it fails, which vfio_config_check() then tells.
 */
uint32_t vfio_config_examine(struct vfio_pci *device, unsigned offset, unsigned size);

/** @return 0, or an error when any vfio_config_examine() has failed */
int vfio_config_check(struct vfio_pci *device, struct error *error);

/** Reads the function's configuration space and works out what of it the guest sees. */
int vfio_config_init(struct vfio_pci *device, struct error *error);
extern const struct pci_config_ops vfio_config_ops;

/** @return the command register as far as BARs are concerned: nothing is decoded in D3 */
uint16_t vfio_config_decoding(const struct vfio_pci *device);

/** Puts the function into D0 with decoding and bus mastering off, before a reset. */
void vfio_config_quiet(struct vfio_pci *device);

/**
 * The guest reads its expansion ROM (PCI 3.0 section 6.3).
 * @param size 1 to 8 @return all ones where the device has nothing
 */
uint64_t vfio_rom_read(struct vfio_pci *device, uint64_t offset, unsigned size);

/** Makes eventfds, for create. */
int vfio_vectors_create(struct vfio_pci *device, struct error *error);
/** Takes the eventfds of another process, for adopt. */
int vfio_vectors_adopt(struct vfio_pci *device, struct fdset *fds, struct error *error);
void vfio_vectors_destroy(struct vfio_pci *device);

/** Stops the signals of MSI or MSI-X at the source. Does nothing when neither is armed. */
void vfio_vectors_disarm(struct vfio_pci *device);

/** The same, and stops delivery, for a reset. */
void vfio_vectors_reset(struct vfio_pci *device);

/** Makes delivery of every vector follow the state. Touches only this process's side. */
int vfio_vectors_apply(struct vfio_pci *device, struct error *error);

extern const struct pci_vector_ops vfio_msi_ops;
extern const struct pci_vector_ops vfio_msix_ops;

/** INTx, from intx.c: each does nothing for a function that has none. */
int vfio_intx_create(struct vfio_pci *device, struct error *error);
int vfio_intx_adopt(struct vfio_pci *device, struct fdset *fds, struct error *error);
int vfio_intx_describe(const struct vfio_pci *device, struct fdset *fds, struct error *error);
void vfio_intx_destroy(struct vfio_pci *device);

/** Arms INTx and opens its delivery, unless the guest has MSI or MSI-X on. */
void vfio_intx_enable(struct vfio_pci *device);
/** Stops delivery and signals; does nothing when INTx is not armed. */
void vfio_intx_disable(struct vfio_pci *device);
/**
 * For a device whose VFIO driver cannot listen to the resample eventfd (mediated ones): unmasks
 * INTx before each of the guest's accesses to the device's registers, all of which are trapped.
 * Does nothing for others.
 */
void vfio_intx_unmask(struct vfio_pci *device);
/** Makes delivery follow the state. Touches only this process's side. */
int vfio_intx_apply(struct vfio_pci *device, struct error *error);

/** The eventfds behind vfio_pci_notifier(), from notifiers.c. create also arms them. */
int vfio_notifiers_create(struct vfio_pci *device, struct error *error);
int vfio_notifiers_adopt(struct vfio_pci *device, struct fdset *fds, struct error *error);
int vfio_notifiers_describe(const struct vfio_pci *device, struct fdset *fds, struct error *error);
void vfio_notifiers_disarm(struct vfio_pci *device);
void vfio_notifiers_destroy(struct vfio_pci *device);
