/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernel's side of a passed-through function: opening the VFIO character device, asking what it
 * has, mapping and accessing its regions. Knows nothing of a guest. Private to vfio/; used with the
 * machine's lock held or while the machine is built.
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
    struct vfio_region regions[VFIO_PCI_NUM_REGIONS];
};

/** Opens the character device of a host address; the errors say what is wrong with the host. */
int vfio_device_open(struct vfio_device *device, struct error *error);

/** Checks that an adopted descriptor is the character device of the host address. */
int vfio_device_check_identity(const struct vfio_device *device, struct error *error);

/** Fills in what the function has. Issues GET ioctls only; the device must be bound. */
int vfio_device_query(struct vfio_device *device, struct error *error);

/** Resets the function, if it can be reset. */
void vfio_device_reset(struct vfio_device *device);

/** Takes [offset, offset + size), widened to pages, out of what will be mapped of a region. */
void vfio_region_exclude(struct vfio_region *region, uint64_t offset, uint64_t size);

/** Maps every area of a region. */
int vfio_region_mmap(struct vfio_device *device, unsigned index, struct error *error);
void vfio_region_munmap(struct vfio_region *region);

/** Access by system call, 1 to 8 bytes. Reads are all ones and writes vanish where there is
 * nothing, or while the function does not decode. */
uint64_t vfio_region_read(const struct vfio_device *device, unsigned index, uint64_t offset,
                          unsigned size);
void vfio_region_write(const struct vfio_device *device, unsigned index, uint64_t offset,
                       unsigned size, uint64_t value);

/** Puts "device 'ID' (HOST): " in front of an error. */
int vfio_device_error(const struct vfio_device *device, struct error *error);
