/* SPDX-License-Identifier: Apache-2.0
 *
 * What the two kinds of kernel have in common: reading images, placing the initrd and the command
 * line, the descriptor table. Private to boot/; one thread, vCPUs stopped.
 */
#pragma once

#include "boot/boot.h"

/** A file that is being loaded. */
struct image {
    int fd;           /**< borrowed */
    const char *path; /**< for messages */
    uint64_t size;    /**< when it was opened: it may shrink under us, which reads notice */
};

/** One boot_load(). */
struct loader {
    const struct boot_config *config;
    struct image kernel;
    uint64_t ram_end; /**< of the RAM below 4 GiB, which starts at 0 */
    uint64_t rsdp;
    uint64_t initrd_base, initrd_size; /**< size 0: none */
};

/** Looks at a file. @return 0; -EINVAL not a regular file */
int image_open(struct image *image, int fd, const char *path, struct error *error);

/** Reads bytes that must be there. @return 0; -EINVAL when the file ends before */
int image_read(const struct image *image, uint64_t offset, void *bytes, uint64_t size,
               struct error *error);

/**
 * Puts the initrd as high as it can be.
 * @param floor first address after the kernel
 * @param limit first address that the kernel does not accept for it
 */
int loader_place_initrd(struct loader *loader, uint64_t floor, uint64_t limit, struct error *error);

/** Writes the command line. @param maximum length that the kernel takes, without the zero */
int loader_write_cmdline(const struct loader *loader, uint64_t maximum, struct error *error);

/** @return guest memory at a fixed low place, which boot_load() has checked to exist. */
void *loader_low(const struct loader *loader, uint64_t address, uint64_t size);

/** Flat code and data segments and a task segment. */
enum loader_selector {
    LOADER_SELECTOR_CODE = 0x10,
    LOADER_SELECTOR_DATA = 0x18,
    LOADER_SELECTOR_TASK = 0x20,
};

/**
 * Writes a descriptor table and loads all segment registers from it.
 * @param long_mode 64-bit code segment; otherwise 32-bit
 */
void loader_set_segments(const struct loader *loader, struct kvm_sregs *sregs, bool long_mode);

/** A Linux bzImage. @return -ENOEXEC when it is none */
int bzimage_load(struct loader *loader, struct boot_entry *entry, struct error *error);

/** An ELF with a PVH note. */
int pvh_load(struct loader *loader, struct boot_entry *entry, struct error *error);
