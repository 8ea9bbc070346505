/* SPDX-License-Identifier: Apache-2.0
 *
 * Direct boot: chooses the loader by the image's first bytes, and holds what both loaders share.
 * Called by machine/ when a guest is built or reset, vCPUs stopped; one thread.
 */
#include "boot/boot.h"

#include <elf.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "base/util.h"
#include "boot/acpi.h"
#include "boot/loader.h"
#include "boot/place.h"

int image_open(struct image *image, int fd, const char *path, struct error *error)
{
    struct stat status;

    if (fstat(fd, &status) < 0)
        return error_set_errno(error, errno, "cannot look at '%s'", path);
    if (!S_ISREG(status.st_mode))
        return error_set(error, EINVAL, "'%s' is not a regular file", path);
    *image = (struct image){.fd = fd, .path = path, .size = (uint64_t)status.st_size};
    return 0;
}

int image_read(const struct image *image, uint64_t offset, void *bytes, uint64_t size,
               struct error *error)
{
    uint8_t *at = bytes;

    if (!range_fits(offset, size, image->size))
        return error_set(error, EINVAL,
                         "'%s' is truncated: %" PRIu64 " bytes at %" PRIu64 " are not in it",
                         image->path, size, offset);
    while (size > 0) {
        ssize_t got = pread(image->fd, at, MIN(size, UINT64_C(1) << 30), (off_t)offset);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_set_errno(error, errno, "cannot read '%s'", image->path);
        if (got == 0)
            return error_set(error, EINVAL, "'%s' was cut while it was being read", image->path);
        at += got;
        offset += (uint64_t)got;
        size -= (uint64_t)got;
    }
    return 0;
}

void *loader_low(const struct loader *loader, uint64_t address, uint64_t size)
{
    void *pointer = ram_pointer(loader->config->ram, address, size);

    assert(pointer != NULL && address + size <= PLACE_HIGH_MEMORY);
    return pointer;
}

int loader_place_initrd(struct loader *loader, uint64_t floor, uint64_t limit, struct error *error)
{
    const struct boot_config *config = loader->config;
    struct image image = {0};

    if (config->initrd_fd < 0)
        return 0;
    if (image_open(&image, config->initrd_fd, config->initrd, error) < 0)
        return -error->code;
    if (image.size == 0)
        return 0;
    limit = align_down(MIN(limit, loader->ram_end), PAGE_SIZE);
    floor = align_up(floor, PAGE_SIZE);
    if (floor > limit || image.size > limit - floor)
        return error_set(error, EFBIG,
                         "initrd '%s' (%" PRIu64 " bytes) does not fit between the kernel and "
                         "0x%" PRIx64 ": give the guest more memory (-m)",
                         image.path, image.size, limit);
    loader->initrd_base = align_down(limit - image.size, PAGE_SIZE);
    loader->initrd_size = image.size;
    return image_read(&image, 0, ram_pointer(config->ram, loader->initrd_base, image.size),
                      image.size, error);
}

int loader_write_cmdline(const struct loader *loader, uint64_t maximum, struct error *error)
{
    const char *text = loader->config->cmdline != NULL ? loader->config->cmdline : "";
    size_t length = strlen(text);

    maximum = MIN(maximum, PLACE_CMDLINE_SIZE - 1);
    if (length > maximum)
        return error_set(error, EFBIG,
                         "kernel command line of %zu bytes: '%s' takes %" PRIu64 " at most", length,
                         loader->kernel.path, maximum);
    memcpy(loader_low(loader, PLACE_CMDLINE, length + 1), text, length + 1);
    return 0;
}

/* Segment descriptor, Intel SDM volume 3, 3.4.5. */
static uint64_t descriptor(const struct kvm_segment *segment)
{
    uint64_t limit = segment->g ? segment->limit >> 12 : segment->limit;

    return (limit & 0xffff) | (segment->base & 0xffffff) << 16 | (uint64_t)segment->type << 40 |
           (uint64_t)segment->s << 44 | (uint64_t)segment->dpl << 45 |
           (uint64_t)segment->present << 47 | (limit >> 16 & 0xf) << 48 |
           (uint64_t)segment->l << 53 | (uint64_t)segment->db << 54 | (uint64_t)segment->g << 55 |
           (segment->base >> 24 & 0xff) << 56;
}

void loader_set_segments(const struct loader *loader, struct kvm_sregs *sregs, bool long_mode)
{
    const struct kvm_segment code = {.limit = UINT32_MAX,
                                     .selector = LOADER_SELECTOR_CODE,
                                     .type = 0xb /* execute, read */,
                                     .present = 1,
                                     .s = 1,
                                     .g = 1,
                                     .l = long_mode,
                                     .db = !long_mode};
    const struct kvm_segment data = {.limit = UINT32_MAX,
                                     .selector = LOADER_SELECTOR_DATA,
                                     .type = 0x3 /* read, write */,
                                     .present = 1,
                                     .s = 1,
                                     .g = 1,
                                     .db = 1};
    const struct kvm_segment task = {
        .limit = 0x67, .selector = LOADER_SELECTOR_TASK, .type = 0xb /* busy */, .present = 1};
    /* A task descriptor of long mode takes two slots, so the table ends with an empty one. */
    const uint64_t table[] = {0, 0, descriptor(&code), descriptor(&data), descriptor(&task), 0};

    memcpy(loader_low(loader, PLACE_GDT, sizeof(table)), table, sizeof(table));
    sregs->cs = code;
    sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
    sregs->tr = task;
    sregs->ldt = (struct kvm_segment){.type = 0x2, .unusable = 1};
    sregs->gdt = (struct kvm_dtable){.base = PLACE_GDT, .limit = sizeof(table) - 1};
    sregs->idt = (struct kvm_dtable){.base = 0, .limit = 0};
}

static int load_kernel(struct loader *loader, struct boot_entry *entry, struct error *error)
{
    uint8_t magic[SELFMAG] = {0};

    if (loader->kernel.size >= SELFMAG &&
        image_read(&loader->kernel, 0, magic, sizeof(magic), error) < 0)
        return -error->code;
    if (memcmp(magic, ELFMAG, SELFMAG) == 0)
        return pvh_load(loader, entry, error);
    return bzimage_load(loader, entry, error);
}

int boot_load(const struct boot_config *config, struct boot_entry *entry, struct error *error)
{
    struct loader loader = {.config = config};

    assert(config->ram->region_count > 0 && config->ram->regions[0].gpa == 0);
    loader.ram_end = config->ram->regions[0].size;
    if (loader.ram_end <= PLACE_HIGH_MEMORY)
        return error_set(error, EFBIG, "the guest needs more than 1 MiB of memory (-m)");
    if (image_open(&loader.kernel, config->kernel_fd, config->kernel, error) < 0 ||
        acpi_write_tables(config, &loader.rsdp, error) < 0)
        return -error->code;

    /* A guest that has run before left something here, and Linux looks for an EBDA pointer. */
    memset(loader_low(&loader, PLACE_BIOS_DATA, PLACE_BIOS_DATA_SIZE), 0, PLACE_BIOS_DATA_SIZE);
    return load_kernel(&loader, entry, error);
}
