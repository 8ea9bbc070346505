/* SPDX-License-Identifier: Apache-2.0
 *
 * The memory map that the guest is told, in the form of BIOS call E820h (ACPI 6.5, section 15).
 * Used by both kinds of kernel.
 */
#pragma once

#include "memory/ram.h"

enum e820_type { E820_RAM = 1, E820_RESERVED = 2 };

struct e820_entry {
    uint64_t address;
    uint64_t size;
    enum e820_type type;
};

#define E820_ENTRIES_MAX 8

/**
 * Lists the guest's memory in ascending order.
 * @return number of entries written
 */
unsigned e820_build(const struct ram *ram, struct e820_entry entries[E820_ENTRIES_MAX]);
