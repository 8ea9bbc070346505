/* SPDX-License-Identifier: Apache-2.0
 *
 * Unit tests of boot/: kernels made up here, sound ones and hostile ones, are loaded into real
 * guest RAM, and what a kernel would find there is checked; so are the ACPI tables.
 */
#include <asm/bootparam.h>
#include <elf.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "boot/acpi.h"
#include "boot/boot.h"
#include "boot/e820.h"
#include "memory/layout.h"

#define RAM_SIZE      (64 * MIB)
#define SETUP_SECTORS 2u
#define PAYLOAD_AT    ((SETUP_SECTORS + 1) * 512)
#define PAYLOAD_SIZE  2048u
#define BZIMAGE_SIZE  (PAYLOAD_AT + PAYLOAD_SIZE)
#define PREFERRED     UINT64_C(0x1000000)
#define INIT_SIZE     0x200000u
#define ZERO_PAGE     UINT64_C(0x7000)
#define HDR(member)   (offsetof(struct boot_params, hdr) + offsetof(struct setup_header, member))

struct fixture {
    struct ram ram;
    struct boot_config config;
    struct boot_entry entry;
    struct error error;
};

static int make_file(const void *bytes, size_t size)
{
    int fd = memfd_create("image", MFD_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, size), size);
    return fd;
}

static void setup_ram(struct fixture *fixture, uint64_t size)
{
    memset(fixture, 0, sizeof(*fixture));
    assert_int_equal(ram_create(&fixture->ram, "test", size, 0, false, &fixture->error), 0);
    fixture->config = (struct boot_config){.ram = &fixture->ram,
                                           .kernel = "kernel.img",
                                           .kernel_fd = -1,
                                           .initrd_fd = -1,
                                           .initrd = "initrd.img",
                                           .cmdline = "console=ttyS0",
                                           .cpus = 3,
                                           .mmio64_base = UINT64_C(0x800000000),
                                           .mmio64_size = UINT64_C(0x400000000)};
}

static void teardown(struct fixture *fixture)
{
    close_fd(fixture->config.kernel_fd);
    close_fd(fixture->config.initrd_fd);
    ram_destroy(&fixture->ram);
}

static int load(struct fixture *fixture, const void *image, size_t size)
{
    close_fd(fixture->config.kernel_fd);
    fixture->config.kernel_fd = make_file(image, size);
    memset(&fixture->error, 0, sizeof(fixture->error));
    memset(&fixture->entry, 0xee, sizeof(fixture->entry)); /* what is not set shows */
    return boot_load(&fixture->config, &fixture->entry, &fixture->error);
}

static uint8_t *guest(struct fixture *fixture, uint64_t gpa)
{
    uint8_t *pointer = ram_pointer(&fixture->ram, gpa, 1);

    assert_non_null(pointer);
    return pointer;
}

/* ---- bzImage ---- */

static void make_bzimage(uint8_t image[BZIMAGE_SIZE])
{
    struct setup_header header = {
        .setup_sects = SETUP_SECTORS,
        .boot_flag = 0xaa55,
        .jump = 0x6aeb, /* the header ends at 0x202 + 0x6a */
        .header = 0x53726448,
        .version = 0x020f,
        .loadflags = LOADED_HIGH,
        .initrd_addr_max = 0x7fffffff,
        .kernel_alignment = 0x200000,
        .relocatable_kernel = 1,
        .xloadflags = XLF_KERNEL_64,
        .cmdline_size = 2047,
        .setup_data = 0x1234,
        .pref_address = PREFERRED,
        .init_size = INIT_SIZE,
    };

    memset(image, 0xcc, BZIMAGE_SIZE);
    memcpy(image + offsetof(struct boot_params, hdr), &header, sizeof(header));
    for (unsigned i = 0; i < PAYLOAD_SIZE; i++)
        image[PAYLOAD_AT + i] = (uint8_t)(i * 7);
}

static void assert_long_mode(const struct boot_entry *entry, struct fixture *fixture)
{
    uint64_t *pml4 = (uint64_t *)guest(fixture, entry->sregs.cr3);
    uint64_t *pdpt = (uint64_t *)guest(fixture, align_down(pml4[0], PAGE_SIZE));

    assert_int_equal(entry->sregs.cr0 & 0x80000001, 0x80000001);
    assert_int_equal(entry->sregs.cr4, 0x20);
    assert_int_equal(entry->sregs.efer, 0x500);
    assert_int_equal(entry->sregs.cs.l, 1);
    assert_int_equal(entry->sregs.cs.db, 0);
    assert_int_equal(entry->sregs.cs.selector, 0x10);
    assert_int_equal(entry->sregs.ss.selector, 0x18);
    assert_int_equal(entry->regs.rflags, 2);
    for (uint64_t i = 0; i < 4; i++) {
        uint64_t *directory = (uint64_t *)guest(fixture, align_down(pdpt[i], PAGE_SIZE));

        assert_int_equal(pdpt[i] & 3, 3);
        for (uint64_t j = 0; j < 512; j++)
            assert_int_equal(directory[j], (i * GIB + j * 2 * MIB) | 0x83);
    }
}

static void test_bzimage(void **state)
{
    static uint8_t image[BZIMAGE_SIZE];
    const char initrd[] = "initial ramdisk";
    struct fixture fixture;
    struct boot_params params;
    uint64_t base;

    (void)state;
    setup_ram(&fixture, RAM_SIZE);
    make_bzimage(image);
    fixture.config.initrd_fd = make_file(initrd, sizeof(initrd));
    memset(guest(&fixture, 0), 0xff, MIB); /* another kernel was here before */
    assert_int_equal(load(&fixture, image, sizeof(image)), 0);

    assert_int_equal(fixture.entry.regs.rip, PREFERRED + 0x200);
    assert_int_equal(fixture.entry.regs.rsi, ZERO_PAGE);
    assert_memory_equal(guest(&fixture, PREFERRED), image + PAYLOAD_AT, PAYLOAD_SIZE);
    assert_long_mode(&fixture.entry, &fixture);

    memcpy(&params, guest(&fixture, ZERO_PAGE), sizeof(params));
    assert_int_equal(params.sentinel, 0);
    assert_int_equal(params.screen_info.orig_video_isVGA, 0);
    assert_int_equal(params.hdr.type_of_loader, 0xff);
    assert_int_equal(params.hdr.setup_data, 0);
    assert_int_equal(params.hdr.code32_start, PREFERRED);
    assert_int_equal(params.hdr.init_size, INIT_SIZE);
    assert_int_equal(params.edd_mbr_sig_buffer[0], 0); /* nothing beyond the header's end */
    assert_int_equal(((uint8_t *)&params)[0x26c], 0);
    assert_int_equal(params.acpi_rsdp_addr, LAYOUT_ACPI_BASE);
    assert_string_equal((char *)guest(&fixture, params.hdr.cmd_line_ptr), "console=ttyS0");
    base = params.hdr.ramdisk_image;
    assert_int_equal(base, RAM_SIZE - PAGE_SIZE);
    assert_int_equal(params.hdr.ramdisk_size, sizeof(initrd));
    assert_memory_equal(guest(&fixture, base), initrd, sizeof(initrd));
    assert_true(params.e820_entries >= 4);
    assert_int_equal(params.e820_table[0].addr, 0);
    assert_int_equal(params.e820_table[0].type, 1);
    teardown(&fixture);
}

static void test_bzimage_placement(void **state)
{
    static uint8_t image[BZIMAGE_SIZE];
    struct fixture fixture;
    uint64_t preferred = UINT64_C(0xffffffffffe00000);

    (void)state;
    setup_ram(&fixture, 4 * MIB);
    make_bzimage(image); /* prefers 16 MiB: there are only four */
    assert_int_equal(load(&fixture, image, sizeof(image)), 0);
    assert_int_equal(fixture.entry.regs.rip, 0x200000 + 0x200);

    image[HDR(relocatable_kernel)] = 0;
    assert_int_equal(load(&fixture, image, sizeof(image)), -EFBIG);
    assert_non_null(strstr(fixture.error.message, "kernel.img"));
    memcpy(image + HDR(pref_address), &preferred, sizeof(preferred)); /* wraps around */
    assert_int_equal(load(&fixture, image, sizeof(image)), -EFBIG);
    preferred = 0x7000; /* over the zero page */
    memcpy(image + HDR(pref_address), &preferred, sizeof(preferred));
    assert_int_equal(load(&fixture, image, sizeof(image)), -EFBIG);
    teardown(&fixture);
}

static void test_bzimage_truncated(void **state)
{
    static uint8_t image[BZIMAGE_SIZE];
    struct fixture fixture;

    (void)state;
    setup_ram(&fixture, RAM_SIZE);
    make_bzimage(image);
    for (size_t size = 0; size <= PAYLOAD_AT + 0x200; size++) {
        assert_true(load(&fixture, image, size) < 0);
        assert_true(fixture.error.message[0] != '\0');
    }
    assert_int_equal(load(&fixture, image, PAYLOAD_AT + 0x201), 0);
    teardown(&fixture);
}

static void test_bzimage_hostile(void **state)
{
    static const struct {
        size_t offset;
        unsigned size;
        uint64_t value;
        int result;
    } cases[] = {
        {HDR(boot_flag), 2, 0, -ENOEXEC},
        {HDR(header), 4, 0, -ENOEXEC},
        {HDR(version), 2, 0x20b, -ENOEXEC},
        {HDR(loadflags), 1, 0, -ENOEXEC},
        {HDR(xloadflags), 2, 0, -ENOEXEC},
        {HDR(kernel_alignment), 4, 0, -EINVAL},
        {HDR(kernel_alignment), 4, 0x300000, -EINVAL},
        {HDR(kernel_alignment), 4, 0x80000000, 0}, /* not used: the preferred address is free */
        {HDR(setup_sects), 1, 0, 0},               /* means four, and there are that many */
        {HDR(setup_sects), 1, 255, -EINVAL},
        {HDR(init_size), 4, 0xffffffff, -EFBIG},
        {HDR(init_size), 4, 0, 0},
        {HDR(cmdline_size), 4, 12, -EFBIG},
        {HDR(cmdline_size), 4, 13, 0},
        {HDR(cmdline_size), 4, 0xffffffff, 0},
        {0x201, 1, 0, -ENOEXEC},   /* a header that ends before its magic */
        {0x201, 1, 0x61, -EINVAL}, /* a byte short of init_size' end */
        {0x201, 1, 0x62, 0},
        {0x201, 1, 0xff, 0}, /* longer than there is room for */
    };
    static uint8_t image[BZIMAGE_SIZE];
    struct fixture fixture;

    (void)state;
    setup_ram(&fixture, RAM_SIZE);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        make_bzimage(image);
        memcpy(image + cases[i].offset, &cases[i].value, cases[i].size);
        print_message("case %zu\n", i);
        assert_int_equal(load(&fixture, image, sizeof(image)), cases[i].result);
    }
    teardown(&fixture);
}

static void test_initrd_limits(void **state)
{
    static uint8_t image[BZIMAGE_SIZE];
    const uint64_t free_size = RAM_SIZE - PREFERRED - INIT_SIZE;
    const uint32_t low = (uint32_t)(PREFERRED + INIT_SIZE + 2 * PAGE_SIZE) - 1;
    struct fixture fixture;

    (void)state;
    setup_ram(&fixture, RAM_SIZE);
    make_bzimage(image);
    fixture.config.initrd_fd = make_file("", 0);
    assert_int_equal(load(&fixture, image, sizeof(image)), 0); /* empty: as none */
    assert_int_equal(ftruncate(fixture.config.initrd_fd, (off_t)free_size), 0);
    assert_int_equal(load(&fixture, image, sizeof(image)), 0);
    assert_int_equal(ftruncate(fixture.config.initrd_fd, (off_t)free_size + 1), 0);
    assert_int_equal(load(&fixture, image, sizeof(image)), -EFBIG);
    assert_non_null(strstr(fixture.error.message, "initrd.img"));
    assert_int_equal(ftruncate(fixture.config.initrd_fd, INT64_MAX), 0);
    assert_int_equal(load(&fixture, image, sizeof(image)), -EFBIG);

    assert_int_equal(ftruncate(fixture.config.initrd_fd, 2 * (off_t)PAGE_SIZE), 0);
    memcpy(image + HDR(initrd_addr_max), &low, sizeof(low));
    assert_int_equal(load(&fixture, image, sizeof(image)), 0);
    assert_int_equal(ftruncate(fixture.config.initrd_fd, 2 * (off_t)PAGE_SIZE + 1), 0);
    assert_int_equal(load(&fixture, image, sizeof(image)), -EFBIG);
    memset(image + HDR(initrd_addr_max), 0, 4);
    assert_int_equal(load(&fixture, image, sizeof(image)), -EFBIG);
    teardown(&fixture);
}

static void test_not_a_file(void **state)
{
    struct fixture fixture;
    int ends[2];

    (void)state;
    setup_ram(&fixture, RAM_SIZE);
    assert_int_equal(pipe(ends), 0);
    fixture.config.kernel_fd = ends[0];
    assert_int_equal(boot_load(&fixture.config, &fixture.entry, &fixture.error), -EINVAL);
    assert_non_null(strstr(fixture.error.message, "kernel.img"));
    close(ends[1]);
    teardown(&fixture);
}

/* ---- PVH ---- */

#define ELF_ADDRESS   UINT64_C(0x1000000)
#define ELF_TEXT_AT   0x400u
#define ELF_TEXT_SIZE 0x100u
#define ELF_TEXT_MEM  0x3000u
#define ELF_NOTE_AT   0x200u
#define ELF_SIZE      (ELF_TEXT_AT + ELF_TEXT_SIZE)
#define PHDR64(i, member)                                                                          \
    (sizeof(Elf64_Ehdr) + (i) * sizeof(Elf64_Phdr) + offsetof(Elf64_Phdr, member))

/* Another vendor's note, then the entry point. @return length */
static uint32_t make_notes(uint8_t *at, uint64_t entry, uint32_t entry_size)
{
    const Elf32_Nhdr other = {.n_namesz = 6, .n_descsz = 3, .n_type = 18};
    const Elf32_Nhdr note = {.n_namesz = 4, .n_descsz = entry_size, .n_type = 18};

    memcpy(at, &other, sizeof(other));
    memcpy(at + 12, "Xenon", 6);
    memcpy(at + 12 + 8 + 4, &note, sizeof(note));
    memcpy(at + 36, "Xen", 4);
    memcpy(at + 40, &entry, entry_size);
    return 40 + entry_size;
}

static void make_elf64(uint8_t image[ELF_SIZE])
{
    Elf64_Ehdr header = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
                         .e_type = ET_EXEC,
                         .e_machine = EM_X86_64,
                         .e_version = EV_CURRENT,
                         .e_phoff = sizeof(Elf64_Ehdr),
                         .e_phentsize = sizeof(Elf64_Phdr),
                         .e_phnum = 2};
    Elf64_Phdr load_segment = {.p_type = PT_LOAD,
                               .p_offset = ELF_TEXT_AT,
                               .p_paddr = ELF_ADDRESS,
                               .p_vaddr = UINT64_C(0xffffffff81000000),
                               .p_filesz = ELF_TEXT_SIZE,
                               .p_memsz = ELF_TEXT_MEM,
                               .p_align = PAGE_SIZE};
    Elf64_Phdr note = {.p_type = PT_NOTE, .p_offset = ELF_NOTE_AT, .p_align = 4};

    memset(image, 0, ELF_SIZE);
    note.p_filesz = note.p_memsz = make_notes(image + ELF_NOTE_AT, ELF_ADDRESS + 0x40, 8);
    memcpy(image, &header, sizeof(header));
    memcpy(image + PHDR64(0, p_type), &load_segment, sizeof(load_segment));
    memcpy(image + PHDR64(1, p_type), &note, sizeof(note));
    memset(image + ELF_TEXT_AT, 0xab, ELF_TEXT_SIZE);
}

static void make_elf32(uint8_t image[ELF_SIZE])
{
    Elf32_Ehdr header = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS32, ELFDATA2LSB, EV_CURRENT},
                         .e_type = ET_EXEC,
                         .e_machine = EM_386,
                         .e_version = EV_CURRENT,
                         .e_phoff = sizeof(Elf32_Ehdr),
                         .e_phentsize = sizeof(Elf32_Phdr),
                         .e_phnum = 2};
    Elf32_Phdr headers[2] = {{.p_type = PT_LOAD,
                              .p_offset = ELF_TEXT_AT,
                              .p_paddr = ELF_ADDRESS,
                              .p_filesz = ELF_TEXT_SIZE,
                              .p_memsz = ELF_TEXT_MEM},
                             {.p_type = PT_NOTE, .p_offset = ELF_NOTE_AT, .p_align = 4}};

    memset(image, 0, ELF_SIZE);
    headers[1].p_filesz = make_notes(image + ELF_NOTE_AT, ELF_ADDRESS + 0x40, 4);
    memcpy(image, &header, sizeof(header));
    memcpy(image + sizeof(header), headers, sizeof(headers));
    memset(image + ELF_TEXT_AT, 0xab, ELF_TEXT_SIZE);
}

/* hvm_start_info, read as the guest does. */
struct start_info {
    uint32_t magic, version, flags, modules;
    uint64_t module_list, cmdline, rsdp, memory_map;
    uint32_t memory_map_entries, reserved;
};

static void check_pvh(struct fixture *fixture, const char *initrd, size_t initrd_size)
{
    const struct boot_entry *entry = &fixture->entry;
    struct start_info info;
    uint64_t module[2], region[2];

    assert_int_equal(entry->regs.rip, ELF_ADDRESS + 0x40);
    assert_int_equal(entry->sregs.cr0 & ~UINT64_C(0x10), 1);
    assert_int_equal(entry->sregs.cr4, 0);
    assert_int_equal(entry->sregs.efer, 0);
    assert_int_equal(entry->regs.rflags, 2);
    assert_int_equal(entry->sregs.cs.db, 1);
    assert_int_equal(entry->sregs.cs.l, 0);
    assert_int_equal(entry->sregs.ds.limit, 0xffffffff);
    assert_int_equal(entry->sregs.tr.type, 0xb);
    assert_int_equal(entry->sregs.tr.limit, 0x67);
    assert_int_equal(guest(fixture, ELF_ADDRESS)[ELF_TEXT_SIZE - 1], 0xab);
    for (unsigned i = ELF_TEXT_SIZE; i < ELF_TEXT_MEM; i++)
        assert_int_equal(guest(fixture, ELF_ADDRESS)[i], 0);
    assert_int_equal(guest(fixture, ELF_ADDRESS)[ELF_TEXT_MEM], 0xff);

    memcpy(&info, guest(fixture, entry->regs.rbx), sizeof(info));
    assert_int_equal(info.magic, 0x336ec578);
    assert_int_equal(info.version, 1);
    assert_int_equal(info.rsdp, LAYOUT_ACPI_BASE);
    assert_string_equal((char *)guest(fixture, info.cmdline), "console=ttyS0");
    assert_true(info.memory_map_entries >= 4);
    memcpy(region, guest(fixture, info.memory_map + 3 * 24), sizeof(region));
    assert_int_equal(region[0], MIB);
    assert_int_equal(region[1], RAM_SIZE - MIB);
    assert_int_equal(info.modules, 1);
    memcpy(module, guest(fixture, info.module_list), sizeof(module));
    assert_int_equal(module[1], initrd_size);
    assert_memory_equal(guest(fixture, module[0]), initrd, initrd_size);
}

static void test_pvh(void **state)
{
    static uint8_t image[ELF_SIZE];
    const char initrd[] = "initial ramdisk";

    (void)state;
    for (unsigned bits = 32; bits <= 64; bits += 32) {
        struct fixture fixture;

        setup_ram(&fixture, RAM_SIZE);
        fixture.config.initrd_fd = make_file(initrd, sizeof(initrd));
        memset(guest(&fixture, ELF_ADDRESS), 0xff, 2 * ELF_TEXT_MEM);
        if (bits == 32)
            make_elf32(image);
        else
            make_elf64(image);
        assert_int_equal(load(&fixture, image, sizeof(image)), 0);
        check_pvh(&fixture, initrd, sizeof(initrd));
        teardown(&fixture);
    }
}

static void test_pvh_truncated(void **state)
{
    static uint8_t image[ELF_SIZE];
    struct fixture fixture;

    (void)state;
    setup_ram(&fixture, RAM_SIZE);
    for (unsigned bits = 32; bits <= 64; bits += 32) {
        if (bits == 32)
            make_elf32(image);
        else
            make_elf64(image);
        for (size_t size = 0; size < sizeof(image); size++)
            assert_true(load(&fixture, image, size) < 0);
        assert_int_equal(load(&fixture, image, sizeof(image)), 0);
    }
    teardown(&fixture);
}

static void test_pvh_hostile(void **state)
{
    static const struct {
        size_t offset;
        unsigned size;
        uint64_t value;
        int result;
    } cases[] = {
        {EI_CLASS, 1, 3, -ENOEXEC},
        {EI_DATA, 1, ELFDATA2MSB, -ENOEXEC},
        {offsetof(Elf64_Ehdr, e_machine), 2, EM_AARCH64, -ENOEXEC},
        {offsetof(Elf64_Ehdr, e_type), 2, ET_REL, -ENOEXEC},
        {offsetof(Elf64_Ehdr, e_phnum), 2, 0, -EINVAL},
        {offsetof(Elf64_Ehdr, e_phnum), 2, 0xffff, -EINVAL},
        {offsetof(Elf64_Ehdr, e_phentsize), 2, 1, -EINVAL},
        {offsetof(Elf64_Ehdr, e_phoff), 8, UINT64_MAX, -EINVAL},
        {offsetof(Elf64_Ehdr, e_phoff), 8, UINT64_MAX - 63, -EINVAL},
        {PHDR64(0, p_offset), 8, UINT64_MAX - 0x7f, -EINVAL},
        {PHDR64(0, p_filesz), 8, UINT64_MAX, -EINVAL},
        {PHDR64(0, p_filesz), 8, ELF_TEXT_MEM + 1, -EINVAL},
        {PHDR64(0, p_memsz), 8, ELF_TEXT_SIZE - 1, -EINVAL},
        {PHDR64(0, p_memsz), 8, UINT64_MAX, -EFBIG},
        {PHDR64(0, p_memsz), 8, UINT64_MAX - ELF_ADDRESS + 1, -EFBIG},
        {PHDR64(0, p_memsz), 8, RAM_SIZE - ELF_ADDRESS, 0},
        {PHDR64(0, p_memsz), 8, RAM_SIZE - ELF_ADDRESS + 1, -EFBIG},
        {PHDR64(0, p_memsz), 8, 0, -EINVAL},
        {PHDR64(0, p_paddr), 8, 0, -EINVAL},
        {PHDR64(0, p_paddr), 8, MIB - 1, -EINVAL},
        {PHDR64(0, p_paddr), 8, UINT64_MAX - 0xff, -EFBIG},
        {PHDR64(0, p_paddr), 8, ELF_ADDRESS + 0x41, -EINVAL}, /* the entry is before it */
        {PHDR64(0, p_type), 4, PT_NULL, -EINVAL},
        {PHDR64(1, p_type), 4, PT_NULL, -ENOEXEC},
        {PHDR64(1, p_filesz), 8, UINT64_MAX, -EINVAL},
        {PHDR64(1, p_filesz), 8, 47, -ENOEXEC}, /* the last note is cut */
        {PHDR64(1, p_offset), 8, UINT64_MAX - 8, -EINVAL},
        {PHDR64(1, p_align), 8, UINT64_MAX, 0}, /* only 8 means something */
        {ELF_NOTE_AT, 4, 0xffffffff, -ENOEXEC},
        {ELF_NOTE_AT + 4, 4, 0xffffffff, -ENOEXEC},
        {ELF_NOTE_AT + 28, 4, 5, -ENOEXEC}, /* a descriptor of neither 4 nor 8 bytes */
        {ELF_NOTE_AT + 40, 8, UINT64_MAX, -EINVAL},
        {ELF_NOTE_AT + 40, 8, ELF_ADDRESS + ELF_TEXT_MEM, -EINVAL},
    };
    static uint8_t image[ELF_SIZE];
    struct fixture fixture;

    (void)state;
    setup_ram(&fixture, RAM_SIZE);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        make_elf64(image);
        memcpy(image + cases[i].offset, &cases[i].value, cases[i].size);
        print_message("case %zu\n", i);
        assert_int_equal(load(&fixture, image, sizeof(image)), cases[i].result);
    }
    teardown(&fixture);
}

/* ---- memory map ---- */

static void test_e820(void **state)
{
    const struct ram ram = {.region_count = 2,
                            .regions = {{.gpa = 0, .size = LAYOUT_RAM_BELOW_4G_MAX},
                                        {.gpa = LAYOUT_RAM_ABOVE_4G, .size = 5 * GIB}}};
    struct e820_entry entries[E820_ENTRIES_MAX];
    unsigned count = e820_build(&ram, entries);
    uint64_t ram_bytes = 0;

    (void)state;
    for (unsigned i = 0; i < count; i++) {
        if (i > 0)
            assert_true(entries[i].address >= entries[i - 1].address + entries[i - 1].size);
        if (entries[i].type == E820_RAM)
            ram_bytes += entries[i].size;
    }
    assert_int_equal(ram_bytes, 8 * GIB - 0x400 - 0x60000);
    assert_int_equal(entries[count - 1].address, 4 * GIB);
    assert_int_equal(entries[count - 1].size, 5 * GIB);
}

/* ---- ACPI ---- */

struct table {
    char signature[4];
    uint32_t length;
    uint8_t revision, checksum;
    char ids[26];
} __attribute__((packed));

static uint8_t sum(const void *bytes, size_t size)
{
    uint8_t total = 0;

    for (size_t i = 0; i < size; i++)
        total += ((const uint8_t *)bytes)[i];
    return total;
}

static const struct table *table_at(struct fixture *fixture, uint64_t gpa, const char *signature)
{
    const struct table *table = (const struct table *)guest(fixture, gpa);

    assert_true(gpa >= LAYOUT_ACPI_BASE);
    assert_true(range_fits(gpa, table->length, LAYOUT_ACPI_BASE + LAYOUT_ACPI_SIZE));
    assert_memory_equal(table->signature, signature, 4);
    if (strcmp(signature, "FACS") != 0)
        assert_int_equal(sum(table, table->length), 0);
    return table;
}

static const struct table *find_table(struct fixture *fixture, const char *signature)
{
    const uint8_t *rsdp = guest(fixture, LAYOUT_ACPI_BASE);
    const struct table *xsdt;
    uint64_t address;

    memcpy(&address, rsdp + 24, 8);
    xsdt = table_at(fixture, address, "XSDT");
    for (unsigned i = 0; i < (xsdt->length - sizeof(*xsdt)) / 8; i++) {
        memcpy(&address, (const uint8_t *)(xsdt + 1) + i * 8, 8);
        if (memcmp(guest(fixture, address), signature, 4) == 0)
            return table_at(fixture, address, signature);
    }
    fail_msg("no table %s", signature);
    return NULL;
}

static uint64_t field(const struct table *table, size_t offset, unsigned size)
{
    uint64_t value = 0;

    assert_true(range_fits(offset, size, table->length));
    memcpy(&value, (const uint8_t *)table + offset, size);
    return value;
}

static void setup_acpi(struct fixture *fixture)
{
    uint64_t rsdp;

    setup_ram(fixture, RAM_SIZE);
    memset(guest(fixture, 0), 0xff, MIB);
    assert_int_equal(acpi_write_tables(&fixture->config, &rsdp, &fixture->error), 0);
    assert_int_equal(rsdp, LAYOUT_ACPI_BASE);
}

static void test_acpi_fixed(void **state)
{
    const struct table *fadt;
    struct fixture fixture;

    (void)state;
    setup_acpi(&fixture);
    assert_memory_equal(guest(&fixture, LAYOUT_ACPI_BASE), "RSD PTR ", 8);
    assert_int_equal(sum(guest(&fixture, LAYOUT_ACPI_BASE), 20), 0);
    assert_int_equal(sum(guest(&fixture, LAYOUT_ACPI_BASE), 36), 0);

    fadt = find_table(&fixture, "FACP");
    assert_int_equal(fadt->length, 276);
    assert_int_equal(field(fadt, 46, 2), LAYOUT_SCI_IRQ);
    assert_int_equal(field(fadt, 48, 4), 0);
    assert_int_equal(field(fadt, 56, 4), LAYOUT_PM1_EVENT_PORT);
    assert_int_equal(field(fadt, 64, 4), LAYOUT_PM1_CONTROL_PORT);
    assert_int_equal(field(fadt, 76, 4), LAYOUT_PM_TIMER_PORT);
    assert_int_equal(field(fadt, 88, 4), 0x04000204); /* lengths: event, control, PM2, timer */
    assert_int_equal(field(fadt, 109, 2), 0x25);      /* legacy devices, no VGA, no RTC */
    assert_int_equal(field(fadt, 112, 4) & 0x570, 0x560);
    assert_int_equal(field(fadt, 120, 8), LAYOUT_RESET_PORT);
    assert_int_equal(field(fadt, 128, 1), LAYOUT_RESET_VALUE);
    assert_int_equal(field(fadt, 152, 8), LAYOUT_PM1_EVENT_PORT);
    assert_int_equal(field(fadt, 36, 4) % 64, 0);
    table_at(&fixture, field(fadt, 36, 4), "FACS");
    table_at(&fixture, field(fadt, 140, 8), "DSDT");
    assert_int_equal(field(fadt, 40, 4), field(fadt, 140, 8));
    teardown(&fixture);
}

static void test_acpi_madt_mcfg(void **state)
{
    const struct table *madt, *mcfg;
    struct fixture fixture;
    unsigned counts[16] = {0}, seen = 0;

    (void)state;
    setup_acpi(&fixture);
    madt = find_table(&fixture, "APIC");
    assert_int_equal(field(madt, 36, 4), LAYOUT_LAPIC_BASE);
    for (size_t at = 44; at < madt->length; at += field(madt, at + 1, 1)) {
        uint64_t type = field(madt, at, 1);

        assert_true(type < ARRAY_SIZE(counts) && field(madt, at + 1, 1) >= 6);
        counts[type]++;
        if (type == 0)
            seen |= 1u << field(madt, at + 3, 1);
        if (type == 1)
            assert_int_equal(field(madt, at + 4, 8), LAYOUT_IOAPIC_BASE);
        if (type == 2 && field(madt, at + 3, 1) == 0)
            assert_int_equal(field(madt, at + 4, 4), 2);
        if (type == 2 && field(madt, at + 3, 1) == LAYOUT_SCI_IRQ)
            assert_int_equal(field(madt, at + 8, 2), 0xd);
    }
    assert_int_equal(seen, 7);
    assert_int_equal(counts[0], 3);
    assert_int_equal(counts[1], 1);
    assert_int_equal(counts[2], 2);
    assert_int_equal(counts[4], 1);

    mcfg = find_table(&fixture, "MCFG");
    assert_int_equal(mcfg->length, 60);
    assert_int_equal(field(mcfg, 44, 8), LAYOUT_ECAM_BASE);
    assert_int_equal(field(mcfg, 52, 4), 0);
    teardown(&fixture);
}

static bool contains(const struct table *table, const void *bytes, size_t size)
{
    return memmem(table, table->length, bytes, size) != NULL;
}

/* The numbers in dsdt.asl are those of layout.h. */
static void test_acpi_dsdt(void **state)
{
    const uint32_t ecam[] = {(uint32_t)LAYOUT_ECAM_BASE, (uint32_t)LAYOUT_ECAM_SIZE};
    const uint32_t mmio[] = {0, (uint32_t)LAYOUT_MMIO32_BASE,
                             (uint32_t)(LAYOUT_MMIO32_BASE + LAYOUT_MMIO32_SIZE - 1), 0,
                             (uint32_t)LAYOUT_MMIO32_SIZE};
    const uint16_t io[] = {0, LAYOUT_PCI_IO_BASE, LAYOUT_PCI_IO_BASE + LAYOUT_PCI_IO_SIZE - 1, 0,
                           LAYOUT_PCI_IO_SIZE};
    const uint16_t pm[] = {LAYOUT_PM1_EVENT_PORT, LAYOUT_PM1_EVENT_PORT},
                   com[] = {LAYOUT_COM1_PORT, LAYOUT_COM1_PORT};
    const uint8_t irq[] = {0x22, (uint8_t)(1u << LAYOUT_COM1_IRQ), 0};
    const uint8_t sleep[] = {'_', 'S', '5', '_', 0x12, 8, 4, 0x0a, LAYOUT_S5_SLEEP_TYPE};
    const struct table *dsdt;
    struct fixture fixture;

    (void)state;
    setup_acpi(&fixture);
    dsdt = table_at(&fixture, field(find_table(&fixture, "FACP"), 140, 8), "DSDT");
    assert_true(contains(dsdt, ecam, sizeof(ecam)));
    assert_true(contains(dsdt, mmio, sizeof(mmio)));
    assert_true(contains(dsdt, io, sizeof(io)));
    assert_true(contains(dsdt, pm, sizeof(pm)));
    assert_true(contains(dsdt, com, sizeof(com)));
    assert_true(contains(dsdt, irq, sizeof(irq)));
    assert_true(contains(dsdt, sleep, sizeof(sleep)));
    teardown(&fixture);
}

/* INTx of every slot and pin is routed, as layout_pci_gsi() says, without a link device. */
static void test_acpi_routes(void **state)
{
    struct fixture fixture;

    (void)state;
    setup_acpi(&fixture);
    for (unsigned device = 1; device < 32; device++) {
        for (unsigned pin = 0; pin < 4; pin++) {
            const uint8_t route[] = {4,
                                     0x0c,
                                     0xff,
                                     0xff,
                                     (uint8_t)device,
                                     0,
                                     0x0a,
                                     (uint8_t)pin,
                                     0,
                                     0x0a,
                                     (uint8_t)layout_pci_gsi(device, pin)};

            assert_in_range(layout_pci_gsi(device, pin), 16, 23);
            assert_true(contains(find_table(&fixture, "SSDT"), route, sizeof(route)));
        }
    }
    teardown(&fixture);
}

static void save_table(const char *directory, const char *name, const struct table *table)
{
    char path[128];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s.aml", directory, name);
    file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(table, 1, table->length, file), table->length);
    fclose(file);
}

/* Runs iasl and looks for a line of the disassembly. */
static bool shell(const char *directory, const char *command)
{
    char line[512];

    snprintf(line, sizeof(line), "cd %s && { %s; } >>log 2>&1", directory, command);
    return system(line) == 0;
}

/* The set of tables makes sense to somebody else's parser. */
static void test_acpi_disassembles(void **state)
{
    char directory[] = "/tmp/baton-acpi-XXXXXX";
    struct fixture fixture;
    uint64_t rsdp;

    (void)state;
    if (system("command -v iasl >/dev/null 2>&1") != 0)
        skip();
    setup_acpi(&fixture);
    fixture.config.cpus = 32;
    assert_int_equal(acpi_write_tables(&fixture.config, &rsdp, &fixture.error), 0);
    assert_non_null(mkdtemp(directory));
    save_table(directory, "ssdt", find_table(&fixture, "SSDT"));
    save_table(directory, "facp", find_table(&fixture, "FACP"));
    save_table(directory, "apic", find_table(&fixture, "APIC"));
    save_table(directory, "mcfg", find_table(&fixture, "MCFG"));
    save_table(directory, "dsdt",
               table_at(&fixture, field(find_table(&fixture, "FACP"), 140, 8), "DSDT"));
    assert_true(shell(directory, "iasl -e ssdt.aml -d dsdt.aml"));
    assert_true(shell(directory, "iasl -d ssdt.aml facp.aml apic.aml mcfg.aml"));
    assert_true(shell(directory, "test $(grep -c 'ACPI0007' ssdt.dsl) = 32"));
    assert_true(shell(directory, "grep -q 'Device (C01F)' ssdt.dsl"));
    assert_true(shell(directory, "grep -q 'Name (_PRT, Package (0x7C)' ssdt.dsl"));
    assert_true(shell(directory, "grep -q 'Name (M64L, 0x0000000400000000)' ssdt.dsl"));
    assert_true(shell(directory, "! grep -i -E 'invalid|unknown|error|incorrect' *.dsl"));
    assert_true(shell(directory, "iasl -p again ssdt.dsl"));
    assert_true(shell(directory, "rm -f *.aml *.dsl log; cd / && rmdir \"$OLDPWD\""));
    teardown(&fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bzimage),
        cmocka_unit_test(test_bzimage_placement),
        cmocka_unit_test(test_bzimage_truncated),
        cmocka_unit_test(test_bzimage_hostile),
        cmocka_unit_test(test_initrd_limits),
        cmocka_unit_test(test_not_a_file),
        cmocka_unit_test(test_pvh),
        cmocka_unit_test(test_pvh_truncated),
        cmocka_unit_test(test_pvh_hostile),
        cmocka_unit_test(test_e820),
        cmocka_unit_test(test_acpi_fixed),
        cmocka_unit_test(test_acpi_madt_mcfg),
        cmocka_unit_test(test_acpi_dsdt),
        cmocka_unit_test(test_acpi_routes),
        cmocka_unit_test(test_acpi_disassembles),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
