/* SPDX-License-Identifier: Apache-2.0
 *
 * An address bus: port I/O or memory-mapped I/O, dispatched to whoever claims the range.
 *
 * Accesses come from vCPU threads (kvm/) and take the machine's lock around the device's callback;
 * ranges are added and removed under the same lock (a device does so inside a callback, for
 * example when the guest moves a BAR). Unclaimed reads are all ones, unclaimed writes vanish.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct bus;

/** What a device does with accesses to its range. Size is 1, 2, 4 or 8 and never straddles the
 * range's end (such accesses are split into bytes); addresses need not be aligned. */
struct bus_ops {
    uint64_t (*read)(void *opaque, uint64_t offset, unsigned size);
    void (*write)(void *opaque, uint64_t offset, unsigned size, uint64_t value);
};

/** A claimed range; memory of the device that claims it. */
struct bus_range {
    const char *name;
    uint64_t base;
    uint64_t size; /**< bytes, not 0 */
    /** Accesses that start here are passed on whole even when they go beyond the end: port 0xcf8
     * is 32 bits wide, and yet port 0xcf9 is another device. */
    bool whole_access;
    const struct bus_ops *ops;
    void *opaque;
};

/**
 * @param lock  the machine's lock, borrowed: held around every callback
 * @param limit addresses are below it: 0x10000 for ports, UINT64_MAX for memory
 */
struct bus *bus_create(pthread_mutex_t *lock, uint64_t limit);
void bus_destroy(struct bus *bus);

/** Claims a range. The lock is held. @return 0, or -EBUSY when it overlaps another (named) */
int bus_add(struct bus *bus, struct bus_range *range, struct error *error);

/** Gives a range back. The lock is held. */
void bus_remove(struct bus *bus, struct bus_range *range);

/** Carries out a guest's access. Takes the lock. Data is little endian. */
void bus_read(struct bus *bus, uint64_t address, void *data, unsigned size);
void bus_write(struct bus *bus, uint64_t address, const void *data, unsigned size);
