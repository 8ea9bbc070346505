/* SPDX-License-Identifier: Apache-2.0
 *
 * Direct boot: puts a kernel (bzImage, or an ELF with a PVH note), initrd and command line, the
 * e820 map and ACPI tables into guest memory, and says how the first vCPU must start.
 * Runs when the machine is built and at every guest reset, with the vCPUs stopped. Images are
 * hostile input.
 */
#pragma once

#include <linux/kvm.h>
#include <stdint.h>

#include "base/error.h"
#include "memory/ram.h"

struct boot_config {
    const struct ram *ram;
    int kernel_fd;      /**< borrowed; read with pread() from 0 */
    const char *kernel; /**< path, for messages */
    int initrd_fd;      /**< borrowed, or -1 */
    const char *initrd;
    const char *cmdline;
    unsigned cpus;                     /**< APIC ids are 0 .. cpus - 1 */
    uint64_t mmio64_base, mmio64_size; /**< 64-bit PCI window, for the host bridge's _CRS */
};

/** Registers of the boot processor at its first instruction; the others wait for INIT/SIPI. */
struct boot_entry {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
};

/**
 * Fills guest memory.
 * @param entry in: sregs as KVM_GET_SREGS returned them after reset; out: what to set
 * @return 0; -ENOEXEC neither bzImage nor PVH ELF; -EFBIG does not fit; -EINVAL malformed
 */
int boot_load(const struct boot_config *config, struct boot_entry *entry, struct error *error);
