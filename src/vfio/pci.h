/* SPDX-License-Identifier: Apache-2.0
 *
 * A passed-through PCI function: the kernel's vfio-pci device as the guest sees it.
 *
 * create opens, attaches and resets; adopt takes an open device with its armed eventfds and
 * touches nothing. All else is one path. Everything runs with the machine's lock held.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/fdset.h"
#include "iommu/iommu.h"
#include "kvm/vm.h"
#include "memory/bus.h"
#include "pci/host.h"
#include "state/state.h"

struct vfio_pci;

#define VFIO_ID_SIZE   64
#define VFIO_HOST_SIZE 64 /* "0000:01:00.0", or a UUID */

struct vfio_pci_config {
    char id[VFIO_ID_SIZE];
    const char *sysfs; /**< its directory in the host's sysfs, borrowed; NULL: there is but fd */
    int fd;        /**< create: VFIO's character device, opened, which the device takes over also on
                        failure; or -1 */
    uint8_t devfn; /**< where the guest sees it on bus 0 */
    struct iommu_choice space; /**< its address space; names are borrowed */
    bool p2p;                  /**< the guest's other devices may reach its BARs by DMA */
};

/** What a device hangs on; all borrowed. */
struct vfio_pci_parents {
    struct kvm_vm *vm;
    struct bus *mmio;
    struct bus *pio;
    struct pci_host *pci;
    struct iommu_set *spaces;
};

/** What an adopting process must know besides the configuration; POD, see state.c for its table. */
struct vfio_pci_facts {
    uint32_t devid;        /**< iommufd's id of the device */
    uint32_t group;        /**< in a legacy container: number of its IOMMU group */
    uint32_t hwpt;         /**< iommufd: id of its hardware page table; 0: attached to the IOAS */
    uint32_t vector_count; /**< eventfds handed over: "vfio/ID/irq/0" and so on */
    uint64_t rom_size;     /**< of the ROM's BAR, which is not asked for again; see device.h */
};
#define VFIO_ROM_UNKNOWN UINT64_MAX /* an older version has not said */
extern const struct state_type vfio_pci_facts_type;

int vfio_pci_create(struct vfio_pci **device, const struct vfio_pci_config *config,
                    const struct vfio_pci_parents *parents, struct error *error);

/** Takes "vfio/ID/..." from @p fds; its address space has been adopted. No SET_IRQS, no reset, no
 * bind, no attach. */
int vfio_pci_adopt(struct vfio_pci **device, const struct vfio_pci_config *config,
                   const struct vfio_pci_parents *parents, const struct vfio_pci_facts *facts,
                   struct fdset *fds, struct error *error);

/** Fills in the facts and offers the descriptors: the device and all its eventfds. */
int vfio_pci_describe(const struct vfio_pci *device, struct vfio_pci_facts *facts,
                      struct fdset *fds, struct error *error);

/** Guest reset: disarms interrupts, resets the function, forgets what the guest configured. */
void vfio_pci_reset(struct vfio_pci *device);

/**
 * Releases this process's hold. With @p leave_running the device is left exactly as it is (it has
 * been handed over); without, its interrupts are disarmed first.
 */
void vfio_pci_destroy(struct vfio_pci *device, bool leave_running);

/** What VFIO tells the host's side of a device, each through an eventfd. */
enum vfio_notifier {
    VFIO_NOTIFIER_ERROR,   /**< it has met an error that cannot be corrected */
    VFIO_NOTIFIER_REQUEST, /**< the host wants it back; repeated as long as it does */
    VFIO_NOTIFIERS,
};

/**
 * @return the eventfd of a notifier, owned by the device; -1 when VFIO has none. Armed from create
 *         to destroy, in whatever process: who reads it, and when, is up to the caller
 */
int vfio_pci_notifier(const struct vfio_pci *device, enum vfio_notifier notifier);

/**
 * State: what the guest configured (command, BARs, MSI, MSI-X table) and which vectors are armed.
 * The object returned by vfio_pci_state() is up to date at any time, under the machine's lock: the
 * emulated registers are the state, and what is mapped and armed is recorded as it changes. What
 * VFIO virtualises lives in the kernel and stays there. After the object has been loaded with new
 * content, vfio_pci_apply_state() makes the rest of this process follow (BARs mapped, interrupts
 * routed, masked or not), changing only what differs and never the device itself.
 */
extern const struct state_type vfio_pci_state_type;
void *vfio_pci_state(struct vfio_pci *device);
int vfio_pci_apply_state(struct vfio_pci *device, struct error *error);
