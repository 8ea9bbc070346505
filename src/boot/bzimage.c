/* SPDX-License-Identifier: Apache-2.0
 *
 * Linux bzImage by the 64-bit entry point of the x86 boot protocol
 * (Documentation/arch/x86/boot.rst, version 2.12 or later). Called by boot.c.
 *
 * The setup code of 16-bit mode is skipped: its header is copied into a "zero page" of boot
 * parameters, the rest of the image is put where it says, and the first vCPU starts in long mode
 * on identity page tables. Nothing in the header is believed before it has been checked.
 */
#include <asm/bootparam.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/util.h"
#include "boot/e820.h"
#include "boot/loader.h"
#include "boot/place.h"

#define SECTOR_SIZE       512u
#define HEADER_OFFSET     offsetof(struct boot_params, hdr)
#define HEADER_MAGIC      0x53726448u /* "HdrS" */
#define BOOT_FLAG         0xaa55u
#define PROTOCOL_MINIMUM  0x020cu
#define LOADER_UNKNOWN    0xffu
#define SETUP_SECTS_UNSET 4u /* what a setup_sects of 0 means */
#define ENTRY_64          0x200u
/* The header may be longer than the struct that we were compiled with, but not than this. */
#define HEADER_END_MAX offsetof(struct boot_params, edd_mbr_sig_buffer)
#define HEADER_END_MIN                                                                             \
    (HEADER_OFFSET + offsetof(struct setup_header, init_size) +                                    \
     sizeof(((struct setup_header *)0)->init_size))

/* Control register bits, Intel SDM volume 3, 2.5. */
#define CR0_PE   (UINT64_C(1) << 0)
#define CR0_ET   (UINT64_C(1) << 4)
#define CR0_PG   (UINT64_C(1) << 31)
#define CR4_PAE  (UINT64_C(1) << 5)
#define EFER_LME (UINT64_C(1) << 8)
#define EFER_LMA (UINT64_C(1) << 10)

#define RFLAGS_RESERVED UINT64_C(2)

#define PAGE_PRESENT  UINT64_C(1)
#define PAGE_WRITABLE UINT64_C(2)
#define PAGE_LARGE    UINT64_C(0x80)

/* Where the image's protected-mode part is, and where it goes. */
struct placement {
    uint64_t file_offset;
    uint64_t file_size;
    uint64_t address;
    uint64_t footprint; /* memory that the kernel uses from address on before it reads e820 */
};

static int check_header(const struct loader *loader, const struct setup_header *header,
                        struct error *error)
{
    const char *path = loader->kernel.path;

    if (header->boot_flag != BOOT_FLAG || header->header != HEADER_MAGIC)
        return error_set(error, ENOEXEC, "'%s' is neither a bzImage nor an ELF with a PVH note",
                         path);
    if (header->version < PROTOCOL_MINIMUM)
        return error_set(error, ENOEXEC,
                         "'%s' speaks boot protocol %u.%02u; 2.12 (Linux 3.8) is the oldest that "
                         "works",
                         path, header->version >> 8, header->version & 0xffu);
    if (!(header->loadflags & LOADED_HIGH) || !(header->xloadflags & XLF_KERNEL_64))
        return error_set(error, ENOEXEC, "'%s' has no 64-bit entry point", path);
    if (header->relocatable_kernel && !is_power_of_two(header->kernel_alignment))
        return error_set(error, EINVAL, "'%s' has an invalid kernel_alignment of 0x%x", path,
                         header->kernel_alignment);
    return 0;
}

/* Reads the header into a clean zero page, cut at the end that it declares. */
static int read_header(const struct loader *loader, struct boot_params *params, struct error *error)
{
    uint8_t sector[HEADER_END_MAX];
    struct setup_header *header = &params->hdr;
    uint64_t end;

    memset(params, 0, sizeof(*params));
    if (loader->kernel.size < sizeof(sector))
        return error_set(error, ENOEXEC, "'%s' is too short to be a kernel", loader->kernel.path);
    if (image_read(&loader->kernel, 0, sector, sizeof(sector), error) < 0)
        return -error->code;
    /* The displacement of the jump instruction before the magic tells where the header ends. */
    end = MIN(UINT64_C(0x202) + sector[0x201], (uint64_t)sizeof(sector));
    memcpy(header, sector + HEADER_OFFSET, MIN(end - HEADER_OFFSET, sizeof(*header)));
    if (check_header(loader, header, error) < 0)
        return -error->code;
    if (end < HEADER_END_MIN)
        return error_set(error, EINVAL, "'%s' has a setup header of only 0x%" PRIx64 " bytes",
                         loader->kernel.path, end - HEADER_OFFSET);
    memcpy((uint8_t *)params + HEADER_OFFSET, sector + HEADER_OFFSET, end - HEADER_OFFSET);
    return 0;
}

static int place_kernel(const struct loader *loader, const struct setup_header *header,
                        struct placement *placement, struct error *error)
{
    unsigned sectors = header->setup_sects != 0 ? header->setup_sects : SETUP_SECTS_UNSET;
    uint64_t preferred = header->pref_address, end = loader->ram_end;

    placement->file_offset = (uint64_t)(sectors + 1) * SECTOR_SIZE;
    if (loader->kernel.size <= placement->file_offset + ENTRY_64)
        return error_set(error, EINVAL, "'%s' is truncated: no code after %u setup sectors",
                         loader->kernel.path, sectors);
    placement->file_size = loader->kernel.size - placement->file_offset;
    placement->footprint = MAX(placement->file_size, (uint64_t)header->init_size);

    placement->address = preferred;
    if (preferred >= PLACE_HIGH_MEMORY && range_fits(preferred, placement->footprint, end))
        return 0;
    placement->address = align_up(PLACE_HIGH_MEMORY, header->kernel_alignment);
    if (header->relocatable_kernel && range_fits(placement->address, placement->footprint, end))
        return 0;
    return error_set(error, EFBIG,
                     "kernel '%s' needs %" PRIu64 " bytes at 0x%" PRIx64 " and does not fit: give "
                     "the guest more memory (-m)",
                     loader->kernel.path, placement->footprint, preferred);
}

static void fill_params(const struct loader *loader, const struct placement *placement,
                        struct boot_params *params)
{
    struct e820_entry entries[E820_ENTRIES_MAX];
    unsigned count = e820_build(loader->config->ram, entries);

    params->hdr.type_of_loader = LOADER_UNKNOWN;
    params->hdr.code32_start = (uint32_t)placement->address;
    params->hdr.cmd_line_ptr = (uint32_t)PLACE_CMDLINE;
    params->hdr.ramdisk_image = (uint32_t)loader->initrd_base;
    params->hdr.ramdisk_size = (uint32_t)loader->initrd_size;
    params->hdr.setup_data = 0;
    params->acpi_rsdp_addr = loader->rsdp;
    params->e820_entries = (uint8_t)count;
    for (unsigned i = 0; i < count; i++)
        params->e820_table[i] = (struct boot_e820_entry){
            .addr = entries[i].address, .size = entries[i].size, .type = entries[i].type};
}

/* Maps the first 4 GiB to themselves. @return the top table */
static uint64_t write_page_tables(const struct loader *loader)
{
    enum { ENTRIES = 512, DIRECTORIES = 4 };
    uint64_t(*tables)[ENTRIES] =
        loader_low(loader, PLACE_PAGE_TABLES, (2 + DIRECTORIES) * PAGE_SIZE);
    const uint64_t flags = PAGE_PRESENT | PAGE_WRITABLE;

    memset(tables, 0, (2 + DIRECTORIES) * PAGE_SIZE);
    tables[0][0] = (PLACE_PAGE_TABLES + PAGE_SIZE) | flags;
    for (unsigned i = 0; i < DIRECTORIES; i++) {
        tables[1][i] = (PLACE_PAGE_TABLES + (2 + i) * PAGE_SIZE) | flags;
        for (unsigned j = 0; j < ENTRIES; j++)
            tables[2 + i][j] = (i * GIB + j * 2 * MIB) | flags | PAGE_LARGE;
    }
    return PLACE_PAGE_TABLES;
}

static void set_entry(const struct loader *loader, uint64_t kernel, struct boot_entry *entry)
{
    loader_set_segments(loader, &entry->sregs, true);
    entry->sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    entry->sregs.cr2 = 0;
    entry->sregs.cr3 = write_page_tables(loader);
    entry->sregs.cr4 = CR4_PAE;
    entry->sregs.efer = EFER_LME | EFER_LMA;
    entry->regs = (struct kvm_regs){
        .rip = kernel + ENTRY_64, .rsi = PLACE_ZERO_PAGE, .rflags = RFLAGS_RESERVED};
}

int bzimage_load(struct loader *loader, struct boot_entry *entry, struct error *error)
{
    /* Made here and copied at the end: devices may still write to guest memory. */
    struct boot_params params;
    struct placement placement = {0};

    if (read_header(loader, &params, error) < 0 ||
        place_kernel(loader, &params.hdr, &placement, error) < 0 ||
        image_read(&loader->kernel, placement.file_offset,
                   ram_pointer(loader->config->ram, placement.address, placement.file_size),
                   placement.file_size, error) < 0 ||
        loader_place_initrd(loader, placement.address + placement.footprint,
                            (uint64_t)params.hdr.initrd_addr_max + 1, error) < 0 ||
        loader_write_cmdline(loader, params.hdr.cmdline_size, error) < 0)
        return -error->code;
    fill_params(loader, &placement, &params);
    memcpy(loader_low(loader, PLACE_ZERO_PAGE, sizeof(params)), &params, sizeof(params));
    set_entry(loader, placement.address, entry);
    return 0;
}
