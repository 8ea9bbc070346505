/* SPDX-License-Identifier: Apache-2.0
 *
 * A passed-through function as VFIO shows it: a memfd whose bytes are its regions, and answers to
 * the ioctls of a device, which refuse what the kernel would. Whoever includes this has the
 * ioctl() that hands them on. One device at a time.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DEVICE_INTX        0x01u
#define DEVICE_NO_MMAP     0x02u /* as mediated devices */
#define DEVICE_NO_RESAMPLE 0x04u /* the same */
#define DEVICE_NO_RESIZE   0x08u
#define DEVICE_SCARCE      0x10u /* the host has but one vector */
#define DEVICE_P2P         0x20u
#define DEVICE_SPARSE      0x40u
#define DEVICE_SHORT       0x80u /* 256 bytes of configuration space */

#define FAKE_DEVICE_UNARMED UINT32_MAX

struct fake_device {
    unsigned kind; /**< DEVICE_... */
    unsigned msi_vectors, msix_vectors;
    int fd;         /**< the memfd */
    bool lied_to;   /**< by a peer: what is armed may not be what the state says */
    unsigned armed; /**< index of interrupts, or FAKE_DEVICE_UNARMED */
};
extern struct fake_device fake_device;

struct fake_region {
    uint64_t offset; /**< in the memfd */
    uint64_t size;
    uint32_t flags;
};
/** By VFIO's index. */
extern const struct fake_region fake_regions[];

/**
 * Makes it anew: nothing is armed, and the regions are zeros, but for a configuration space with
 * everything that baton knows of, and some things that it hides.
 */
void fake_device_make(unsigned kind, unsigned msi_vectors, unsigned msix_vectors);

/** Writes four bytes of configuration space. */
void fake_device_put(unsigned offset, uint32_t value);

/** @return as ioctl(); -1 with ENOTTY for what is no ioctl of a VFIO device */
int fake_device_ioctl(unsigned long request, void *argument);
