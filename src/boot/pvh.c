/* SPDX-License-Identifier: Apache-2.0
 *
 * ELF kernels with a PVH entry point (Xen's docs/misc/pvh.pandoc and public/arch-x86/hvm/
 * start_info.h): an uncompressed vmlinux, 64 or 32 bits. Called by boot.c.
 *
 * Both ELF classes are first turned into one form; then all numbers in the image are checked
 * against the file and the guest's RAM before anything is written.
 */
#include <elf.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/util.h"
#include "boot/e820.h"
#include "boot/loader.h"
#include "boot/place.h"

#define SEGMENTS_MAX 64u /* program headers; Linux has five */
#define NOTES_MAX    (64 * KIB)
#define NOTE_NAME    "Xen" /* with its zero: 4 bytes */
#define NOTE_ENTRY   18u   /* XEN_ELFNOTE_PHYS32_ENTRY */
#define START_MAGIC  0x336ec578u
#define CMDLINE_MAX  (PLACE_CMDLINE_SIZE - 1)
#define CR0_PE       UINT64_C(1)
#define CR0_ET       (UINT64_C(1) << 4) /* hard-wired, reads as one */

#define RFLAGS_RESERVED UINT64_C(2)

/* A program header of either class. */
struct segment {
    uint32_t type;
    uint64_t offset, address, file_size, memory_size, alignment;
};

struct elf {
    struct segment segments[SEGMENTS_MAX];
    unsigned count;
    uint64_t end;   /* first address after all that is loaded */
    uint64_t entry; /* of the PVH note */
};

/* Structures of start_info.h, as the guest reads them. */
struct start_info {
    uint32_t magic, version, flags, module_count;
    uint64_t modules, cmdline, rsdp, memory_map;
    uint32_t memory_map_count, reserved;
};

struct start_module {
    uint64_t address, size, cmdline, reserved;
};

struct start_memory {
    uint64_t address, size;
    uint32_t type, reserved;
};

/* What is written at PLACE_PVH_INFO. */
struct start_page {
    struct start_info info;
    struct start_module module;
    struct start_memory memory[E820_ENTRIES_MAX];
};

/* Reads the program headers of one class into the common form. */
#define READ_SEGMENTS(CLASS)                                                                       \
    static int read_segments_##CLASS(const struct image *image, struct elf *elf,                   \
                                     struct error *error)                                          \
    {                                                                                              \
        CLASS##_Phdr headers[SEGMENTS_MAX];                                                        \
        CLASS##_Ehdr header;                                                                       \
                                                                                                   \
        if (image_read(image, 0, &header, sizeof(header), error) < 0)                              \
            return -error->code;                                                                   \
        if (header.e_phentsize != sizeof(headers[0]) || header.e_phnum == 0 ||                     \
            header.e_phnum > SEGMENTS_MAX)                                                         \
            return error_set(error, EINVAL, "ELF '%s' has %u program headers of %u bytes",         \
                             image->path, header.e_phnum, header.e_phentsize);                     \
        elf->count = header.e_phnum;                                                               \
        if (image_read(image, header.e_phoff, headers, elf->count * sizeof(headers[0]), error) <   \
            0)                                                                                     \
            return -error->code;                                                                   \
        for (unsigned i = 0; i < elf->count; i++)                                                  \
            elf->segments[i] =                                                                     \
                (struct segment){headers[i].p_type,   headers[i].p_offset, headers[i].p_paddr,     \
                                 headers[i].p_filesz, headers[i].p_memsz,  headers[i].p_align};    \
        return 0;                                                                                  \
    }

READ_SEGMENTS(Elf64)
READ_SEGMENTS(Elf32)

static int read_headers(const struct image *image, struct elf *elf, struct error *error)
{
    Elf32_Ehdr header; /* the two classes begin alike */
    bool is64;

    if (image_read(image, 0, &header, sizeof(header), error) < 0)
        return -error->code;
    is64 = header.e_ident[EI_CLASS] == ELFCLASS64;
    if (header.e_ident[EI_DATA] != ELFDATA2LSB ||
        (!is64 && header.e_ident[EI_CLASS] != ELFCLASS32) ||
        (header.e_machine != EM_X86_64 && header.e_machine != EM_386))
        return error_set(error, ENOEXEC, "ELF '%s' is not for x86", image->path);
    if (header.e_type != ET_EXEC && header.e_type != ET_DYN)
        return error_set(error, ENOEXEC, "ELF '%s' is not executable", image->path);
    return is64 ? read_segments_Elf64(image, elf, error) : read_segments_Elf32(image, elf, error);
}

/* Looks for the entry point among the notes of one segment. @return whether it was there */
static bool find_entry(const uint8_t *notes, uint64_t size, uint64_t alignment, uint64_t *entry)
{
    uint64_t at = 0;

    while (range_fits(at, sizeof(Elf32_Nhdr), size)) {
        Elf32_Nhdr note; /* the same in both classes */
        uint64_t name, content;

        memcpy(&note, notes + at, sizeof(note));
        name = at + sizeof(note);
        content = align_up(name + note.n_namesz, alignment);
        if (!range_fits(content, note.n_descsz, size))
            return false;
        if (note.n_type == NOTE_ENTRY && note.n_namesz == sizeof(NOTE_NAME) &&
            memcmp(notes + name, NOTE_NAME, sizeof(NOTE_NAME)) == 0 &&
            (note.n_descsz == 4 || note.n_descsz == 8)) {
            *entry = 0;
            memcpy(entry, notes + content, note.n_descsz);
            return true;
        }
        at = align_up(content + note.n_descsz, alignment);
    }
    return false;
}

static int read_entry(const struct image *image, struct elf *elf, struct error *error)
{
    for (unsigned i = 0; i < elf->count; i++) {
        const struct segment *segment = &elf->segments[i];
        CLEANUP_FREE uint8_t *notes = NULL;

        if (segment->type != PT_NOTE || segment->file_size == 0)
            continue;
        if (segment->file_size > NOTES_MAX)
            return error_set(error, EINVAL, "ELF '%s' has %" PRIu64 " bytes of notes", image->path,
                             segment->file_size);
        notes = xcalloc(1, segment->file_size);
        if (image_read(image, segment->offset, notes, segment->file_size, error) < 0)
            return -error->code;
        if (find_entry(notes, segment->file_size, segment->alignment == 8 ? 8 : 4, &elf->entry))
            return 0;
    }
    return error_set(error, ENOEXEC,
                     "ELF '%s' has no PVH entry point (Linux: build with CONFIG_PVH)", image->path);
}

/* Every loadable segment must lie in the file and in RAM, above what boot/ itself puts low. */
static int check_segments(const struct loader *loader, struct elf *elf, struct error *error)
{
    const char *path = loader->kernel.path;
    bool entry_loaded = false;

    for (unsigned i = 0; i < elf->count; i++) {
        const struct segment *segment = &elf->segments[i];

        if (segment->type != PT_LOAD || segment->memory_size == 0)
            continue;
        if (segment->file_size > segment->memory_size ||
            !range_fits(segment->offset, segment->file_size, loader->kernel.size))
            return error_set(error, EINVAL, "ELF '%s' is truncated: segment %u is not in it", path,
                             i);
        if (segment->address < PLACE_HIGH_MEMORY)
            return error_set(error, EINVAL,
                             "ELF '%s' wants to be loaded at 0x%" PRIx64 ", below 1 MiB", path,
                             segment->address);
        if (!range_fits(segment->address, segment->memory_size, loader->ram_end))
            return error_set(error, EFBIG,
                             "kernel '%s' needs %" PRIu64 " bytes at 0x%" PRIx64
                             " and does not fit: give the guest more memory (-m)",
                             path, segment->memory_size, segment->address);
        elf->end = MAX(elf->end, segment->address + segment->memory_size);
        entry_loaded |=
            elf->entry >= segment->address && elf->entry - segment->address < segment->memory_size;
    }
    if (!entry_loaded)
        return error_set(error, EINVAL,
                         "ELF '%s' has its PVH entry point at 0x%" PRIx64
                         ", where nothing is loaded",
                         path, elf->entry);
    return 0;
}

static int load_segments(const struct loader *loader, const struct elf *elf, struct error *error)
{
    for (unsigned i = 0; i < elf->count; i++) {
        const struct segment *segment = &elf->segments[i];
        uint8_t *memory;

        if (segment->type != PT_LOAD || segment->memory_size == 0)
            continue;
        memory = ram_pointer(loader->config->ram, segment->address, segment->memory_size);
        if (image_read(&loader->kernel, segment->offset, memory, segment->file_size, error) < 0)
            return -error->code;
        memset(memory + segment->file_size, 0, segment->memory_size - segment->file_size);
    }
    return 0;
}

static void write_start_page(const struct loader *loader)
{
    struct start_page *page = loader_low(loader, PLACE_PVH_INFO, PAGE_SIZE);
    struct e820_entry entries[E820_ENTRIES_MAX];
    unsigned count = e820_build(loader->config->ram, entries);

    memset(page, 0, PAGE_SIZE);
    page->info = (struct start_info){
        .magic = START_MAGIC,
        .version = 1,
        .module_count = loader->initrd_size != 0,
        .modules =
            loader->initrd_size != 0 ? PLACE_PVH_INFO + offsetof(struct start_page, module) : 0,
        .cmdline = PLACE_CMDLINE,
        .rsdp = loader->rsdp,
        .memory_map = PLACE_PVH_INFO + offsetof(struct start_page, memory),
        .memory_map_count = count,
    };
    page->module =
        (struct start_module){.address = loader->initrd_base, .size = loader->initrd_size};
    for (unsigned i = 0; i < count; i++)
        page->memory[i] = (struct start_memory){
            .address = entries[i].address, .size = entries[i].size, .type = entries[i].type};
}

static void set_entry(const struct loader *loader, uint64_t address, struct boot_entry *entry)
{
    loader_set_segments(loader, &entry->sregs, false);
    entry->sregs.cr0 = CR0_PE | CR0_ET;
    entry->sregs.cr2 = entry->sregs.cr3 = entry->sregs.cr4 = 0;
    entry->sregs.efer = 0;
    entry->regs =
        (struct kvm_regs){.rip = address, .rbx = PLACE_PVH_INFO, .rflags = RFLAGS_RESERVED};
}

int pvh_load(struct loader *loader, struct boot_entry *entry, struct error *error)
{
    struct elf elf = {.count = 0};

    if (read_headers(&loader->kernel, &elf, error) < 0 ||
        read_entry(&loader->kernel, &elf, error) < 0 || check_segments(loader, &elf, error) < 0 ||
        load_segments(loader, &elf, error) < 0 ||
        loader_place_initrd(loader, elf.end, loader->ram_end, error) < 0 ||
        loader_write_cmdline(loader, CMDLINE_MAX, error) < 0)
        return -error->code;
    write_start_page(loader);
    set_entry(loader, elf.entry, entry);
    return 0;
}
