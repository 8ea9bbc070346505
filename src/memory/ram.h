/* SPDX-License-Identifier: Apache-2.0
 *
 * Guest RAM: one sealed memfd, mapped once, seen by the guest below and above the 32-bit hole.
 *
 * create makes and sizes the memfd, adopt maps one that another process made. The regions' layout
 * is a function of the size alone, so both processes arrive at the same one. Immutable once made.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define RAM_REGIONS_MAX 2

/** A stretch of guest-physical addresses that is RAM. */
struct ram_region {
    uint64_t gpa;
    uint64_t size;
    uint64_t offset; /**< in the memfd */
    uint8_t *host;   /**< where it is mapped here */
};

struct ram {
    int fd;
    uint64_t size;      /**< bytes, multiple of the page size in use */
    uint64_t page_size; /**< 4 KiB, or the huge page size */
    uint8_t *host;
    struct ram_region regions[RAM_REGIONS_MAX];
    unsigned region_count;
};

/**
 * Makes the guest's memory.
 * @param name      for /proc and messages
 * @param size      bytes; multiple of the page size
 * @param hugetlb_size bytes of a huge page (2 MiB, 1 GiB), or 0 for ordinary pages
 * @param prealloc  touch every page now
 */
int ram_create(struct ram *ram, const char *name, uint64_t size, uint64_t hugetlb_size,
               bool prealloc, struct error *error);

/**
 * Maps memory that another process made. Checks type, size and seals.
 * @param fd taken over, also on failure
 */
int ram_adopt(struct ram *ram, int fd, uint64_t size, uint64_t hugetlb_size, struct error *error);

void ram_destroy(struct ram *ram);

/** @return whether all of it has been allocated, as memory that devices may reach is: to touch a
 * page takes no more of the host's memory */
bool ram_is_allocated(const struct ram *ram);

/** @return where [gpa, gpa + size) is mapped, or NULL when it is not all in one region */
void *ram_pointer(const struct ram *ram, uint64_t gpa, uint64_t size);
