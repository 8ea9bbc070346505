/* SPDX-License-Identifier: Apache-2.0
 *
 * Builds the guest's memory map. Called by bzimage.c and pvh.c while the vCPUs are stopped.
 *
 * RAM lies under the whole first mebibyte, but the guest is told of the holes that a PC has there:
 * the end of conventional memory, the VGA window (not listed at all) and the BIOS area, which
 * holds the ACPI tables. ECAM is listed as reserved because Linux trusts the MCFG table only when
 * something else says so, too.
 */
#include "boot/e820.h"

#include "boot/place.h"
#include "memory/layout.h"

static void add(struct e820_entry *entries, unsigned *count, uint64_t start, uint64_t end,
                enum e820_type type)
{
    if (start >= end)
        return;
    assert(*count < E820_ENTRIES_MAX);
    entries[(*count)++] = (struct e820_entry){start, end - start, type};
}

unsigned e820_build(const struct ram *ram, struct e820_entry entries[E820_ENTRIES_MAX])
{
    uint64_t acpi_end = LAYOUT_ACPI_BASE + LAYOUT_ACPI_SIZE;
    unsigned count = 0;

    add(entries, &count, 0, PLACE_EBDA, E820_RAM);
    add(entries, &count, PLACE_EBDA, 0xa0000, E820_RESERVED);
    add(entries, &count, LAYOUT_ACPI_BASE, acpi_end, E820_RESERVED);
    add(entries, &count, acpi_end, ram->regions[0].size, E820_RAM);
    add(entries, &count, LAYOUT_ECAM_BASE, LAYOUT_ECAM_BASE + LAYOUT_ECAM_SIZE, E820_RESERVED);
    add(entries, &count, LAYOUT_KVM_TSS_BASE, LAYOUT_KVM_TSS_BASE + 3 * PAGE_SIZE, E820_RESERVED);
    for (unsigned i = 1; i < ram->region_count; i++)
        add(entries, &count, ram->regions[i].gpa, ram->regions[i].gpa + ram->regions[i].size,
            E820_RAM);
    return count;
}
