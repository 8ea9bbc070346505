/* SPDX-License-Identifier: Apache-2.0
 *
 * Small helpers for registers that are read and written in parts. Used inside pci/ and vfio/; pure.
 */
#pragma once

#include <stdint.h>

/* All ones, as wide as an access of 1, 2, 4 or 8 bytes. */
static inline uint64_t access_mask(unsigned size)
{
    return size >= 8 ? UINT64_MAX : (UINT64_C(1) << (8 * size)) - 1;
}

/* The part of a register that a read sees which starts @p byte bytes into it. */
static inline uint32_t register_part(uint32_t value, unsigned byte, unsigned size)
{
    return (uint32_t)((value >> (8 * byte)) & access_mask(size));
}

/* A register after a write of @p size bytes, @p byte bytes into it. */
static inline uint32_t register_merge(uint32_t old, unsigned byte, unsigned size, uint32_t value)
{
    uint32_t mask = (uint32_t)(access_mask(size) << (8 * byte));

    return (old & ~mask) | ((value << (8 * byte)) & mask);
}
