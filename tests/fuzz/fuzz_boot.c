/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: any bytes as a kernel image. What must hold: loading ends, a failure comes with a
 * message, and after a success the entry point is in RAM and what boot/ itself put into low memory
 * is still there.
 */
#include <string.h>
#include <sys/mman.h>

#include "base/util.h"
#include "boot/boot.h"
#include "fuzz.h"
#include "memory/layout.h"

#define RAM_SIZE (20 * MIB) /* the kernels of the corpus go to 16 MiB */
#define CMDLINE  "fuzz"

static void check_loaded(const struct ram *ram, const struct boot_entry *entry)
{
    const uint32_t *gdt = ram_pointer(ram, entry->sregs.gdt.base, entry->sregs.gdt.limit + 1);
    const char *cmdline = ram_pointer(ram, 0x20000, sizeof(CMDLINE));

    assert(ram_pointer(ram, entry->regs.rip, 1) != NULL && entry->regs.rip >= MIB);
    assert(gdt != NULL && gdt[0] == 0 && gdt[4] != 0);
    assert(memcmp(ram_pointer(ram, LAYOUT_ACPI_BASE, 8), "RSD PTR ", 8) == 0);
    assert(memcmp(cmdline, CMDLINE, sizeof(CMDLINE)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP_CLOSE int kernel = memfd_create("kernel", MFD_CLOEXEC);
    struct ram ram;
    struct error error = {0};
    struct boot_entry entry = {0};
    int result = ram_create(&ram, "fuzz", RAM_SIZE, 0, false, &error);
    struct boot_config config = {.ram = &ram,
                                 .kernel_fd = kernel,
                                 .kernel = "kernel",
                                 .initrd_fd = kernel, /* as good as any */
                                 .initrd = "initrd",
                                 .cmdline = CMDLINE,
                                 .cpus = 1};

    assert(kernel >= 0 && result == 0 && write(kernel, data, size) == (ssize_t)size);
    if (boot_load(&config, &entry, &error) == 0)
        check_loaded(&ram, &entry);
    else
        assert(error.code > 0 && error.message[0] != '\0');
    ram_destroy(&ram);
    return 0;
}
