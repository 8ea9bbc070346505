/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernel's side of a passed-through function: asking what it has, mapping and accessing its
 * regions. An address space of iommu/ has opened it. Knows nothing of a guest. Private to vfio/;
 * used with the machine's lock held or while the machine is built.
 */
#pragma once

#include <linux/vfio.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "vfio/pci.h"

#define VFIO_AREAS_MAX 16u

/** A stretch of a region that is mapped into this process. */
struct vfio_area {
    uint64_t offset; /**< in the region */
    uint64_t size;
    void *host;    /**< NULL until vfio_region_mmap() */
    unsigned slot; /**< memory slot while the guest sees it */
    bool in_guest;
};

struct vfio_region {
    uint64_t size; /**< 0: the function does not have it */
    uint64_t file_offset;
    uint32_t flags; /**< VFIO_REGION_INFO_FLAG_... */
    unsigned area_count;
    struct vfio_area areas[VFIO_AREAS_MAX];
};

struct vfio_device {
    char id[VFIO_ID_SIZE];
    char host[VFIO_HOST_SIZE];
    int fd;
    bool can_reset;
    bool msix_dynamic; /**< vectors can be armed one by one (VFIO without NORESIZE) */
    unsigned msi_vectors;
    unsigned msix_vectors;
    bool has_intx;    /**< level-triggered, with AUTOMASKED */
    bool has_error;   /**< can tell of errors that cannot be corrected (PCI Express only) */
    bool has_request; /**< can tell that the host wants it back */
    struct vfio_region regions[VFIO_PCI_NUM_REGIONS];
};

/** Fills in what the function has, but for its ROM. Issues GET ioctls only, which leave the device
 * alone; it must be attached. */
int vfio_device_query(struct vfio_device *device, struct error *error);

/**
 * Fills in the ROM's region. To answer, the kernel switches the function's ROM decoder on and off,
 * and its memory decoder as well if it is off, so this is not for a device at work: an adopting
 * process is told the size and asks when the guest reads the ROM, which does the same.
 */
int vfio_device_query_rom(struct vfio_device *device, struct error *error);

/** Resets the function, if it can be reset. */
void vfio_device_reset(struct vfio_device *device);

/**
 * VFIO_DEVICE_SET_IRQS with eventfds; -1 for none.
 * @param index VFIO_PCI_..._IRQ_INDEX
 * @param action VFIO_IRQ_SET_ACTION_TRIGGER: what the kernel signals; _UNMASK: what it listens to
 * @param count 0 switches the whole index off
 * @return 0; positive when only so many can be had; -errno
 */
int vfio_device_set_irqs(const struct vfio_device *device, unsigned index, uint32_t action,
                         unsigned start, const int32_t *eventfds, unsigned count);

/** Unmasks INTx, which the kernel masked when it signalled it. @return 0; -errno */
int vfio_device_unmask_intx(const struct vfio_device *device);

/** Takes [offset, offset + size), widened to pages, out of what will be mapped of a region. */
void vfio_region_exclude(struct vfio_region *region, uint64_t offset, uint64_t size);

/** Maps every area of a region. */
int vfio_region_mmap(struct vfio_device *device, unsigned index, struct error *error);
void vfio_region_munmap(struct vfio_region *region);

/** The same as vfio_region_read(), for who must know. @return 0, -errno of a read that failed */
int vfio_region_fetch(const struct vfio_device *device, unsigned index, uint64_t offset,
                      unsigned size, uint64_t *value);

/** Access by system call, 1 to 8 bytes. Reads are all ones and writes vanish where there is
 * nothing, or while the function does not decode. */
uint64_t vfio_region_read(const struct vfio_device *device, unsigned index, uint64_t offset,
                          unsigned size);
void vfio_region_write(const struct vfio_device *device, unsigned index, uint64_t offset,
                       unsigned size, uint64_t value);

/** Puts "device 'ID' (HOST): " in front of an error. */
int vfio_device_error(const struct vfio_device *device, struct error *error);
