/* SPDX-License-Identifier: Apache-2.0
 *
 * Writes the ACPI tables (ACPI 6.5, chapter 5) into the BIOS area of guest memory. Called by
 * boot.c while the vCPUs are stopped.
 *
 * Tables are built one after the other in a local buffer, each at its final address, and copied at
 * the end. What depends on the configuration (processors, 64-bit window), and the long table of
 * interrupt routes, is an SSDT that is assembled here byte by byte; everything else of the name
 * space is dsdt.asl.
 */
#include "boot/acpi.h"

#include <errno.h>
#include <string.h>

#include "boot/dsdt.h"
#include "memory/layout.h"

#define OEM_ID           "BATON "
#define OEM_TABLE_ID     "BATON10 "
#define CREATOR_ID       "BATN"
#define TABLE_ALIGNMENT  16u
#define FACS_ALIGNMENT   64u
#define CPUS_MAX         128u /* what the SSDT has room for; from 255, x2APIC would be needed */
#define PCI_DEVICES      32u  /* on bus 0 */
#define PCI_PINS         4u
#define ISA_IRQ_PIT      0u
#define IOAPIC_INPUT_PIT 2u
#define INTI_LEVEL_HIGH  0x000du /* MPS INTI flags: active high, level-triggered */

/* FADT: IA-PC boot architecture flags, table 5.10, and fixed feature flags, table 5.9. */
#define BOOT_LEGACY_DEVICES (1u << 0) /* COM1 */
#define BOOT_NO_VGA         (1u << 2)
#define BOOT_NO_CMOS_RTC    (1u << 5)
#define FADT_WBINVD         (1u << 0)
#define FADT_PROC_C1        (1u << 2)
#define FADT_SLP_BUTTON     (1u << 5) /* set: no fixed sleep button */
#define FADT_FIX_RTC        (1u << 6) /* set: no RTC wake status in PM1 */
#define FADT_TMR_VAL_EXT    (1u << 8) /* the PM timer has 32 bits, see devices/power.c */
#define FADT_RESET_REG_SUP  (1u << 10)

struct acpi_header {
    char signature[4];
    uint32_t length;
    uint8_t revision;
    uint8_t checksum;
    char oem_id[6];
    char oem_table_id[8];
    uint32_t oem_revision;
    char creator_id[4];
    uint32_t creator_revision;
} __attribute__((packed));

struct acpi_rsdp {
    char signature[8];
    uint8_t checksum; /* of the first 20 bytes */
    char oem_id[6];
    uint8_t revision;
    uint32_t rsdt;
    uint32_t length;
    uint64_t xsdt;
    uint8_t extended_checksum;
    uint8_t reserved[3];
} __attribute__((packed));

enum { GAS_IO = 1, GAS_BYTE = 1, GAS_WORD = 2, GAS_DWORD = 3 };

struct acpi_gas {
    uint8_t space, bits, bit_offset, access;
    uint64_t address;
} __attribute__((packed));

struct acpi_fadt {
    struct acpi_header header;
    uint32_t facs, dsdt;
    uint8_t reserved1, profile;
    uint16_t sci;
    uint32_t smi_command;
    uint8_t acpi_enable, acpi_disable, s4bios, pstate;
    uint32_t pm1a_event, pm1b_event, pm1a_control, pm1b_control, pm2_control, pm_timer, gpe0, gpe1;
    uint8_t pm1_event_length, pm1_control_length, pm2_control_length, pm_timer_length;
    uint8_t gpe0_length, gpe1_length, gpe1_base, cst;
    uint16_t c2_latency, c3_latency, flush_size, flush_stride;
    uint8_t duty_offset, duty_width, day_alarm, month_alarm, century;
    uint16_t boot_flags;
    uint8_t reserved2;
    uint32_t flags;
    struct acpi_gas reset;
    uint8_t reset_value;
    uint16_t arm_flags;
    uint8_t minor_revision;
    uint64_t x_facs, x_dsdt;
    struct acpi_gas x_pm1a_event, x_pm1b_event, x_pm1a_control, x_pm1b_control, x_pm2_control;
    struct acpi_gas x_pm_timer, x_gpe0, x_gpe1, sleep_control, sleep_status;
    char hypervisor[8];
} __attribute__((packed));
static_assert(sizeof(struct acpi_fadt) == 276, "ACPI 6.5, table 5.9");

struct acpi_facs {
    char signature[4];
    uint32_t length;
    uint8_t content[24]; /* hardware signature, waking vector, global lock, flags: all zero */
    uint8_t version;
    uint8_t reserved[31];
} __attribute__((packed));
static_assert(sizeof(struct acpi_facs) == 64, "ACPI 6.5, table 5.14");

struct acpi_madt {
    struct acpi_header header;
    uint32_t local_apic;
    uint32_t flags;
} __attribute__((packed));

struct madt_local_apic {
    uint8_t type, length, processor_uid, apic_id;
    uint32_t flags;
} __attribute__((packed));

struct madt_ioapic {
    uint8_t type, length, id, reserved;
    uint32_t address, gsi_base;
} __attribute__((packed));

struct madt_override {
    uint8_t type, length, bus, source;
    uint32_t gsi;
    uint16_t flags;
} __attribute__((packed));

struct madt_nmi {
    uint8_t type, length, processor_uid;
    uint16_t flags;
    uint8_t lint;
} __attribute__((packed));

struct acpi_mcfg {
    struct acpi_header header;
    uint8_t reserved[8];
    uint64_t base;
    uint16_t segment;
    uint8_t first_bus, last_bus;
    uint32_t reserved2;
} __attribute__((packed));

/* The BIOS area under construction. Offsets in it are addresses less LAYOUT_ACPI_BASE. */
struct area {
    uint8_t bytes[16 * KIB];
    size_t used;
};

static void *area_append(struct area *area, size_t size)
{
    void *place = area->bytes + area->used;

    assert(range_fits(area->used, size, sizeof(area->bytes)));
    area->used += size;
    return place;
}

static void area_align(struct area *area, size_t to)
{
    area->used = align_up(area->used, to);
}

static uint64_t area_address(const struct area *area, const void *place)
{
    return LAYOUT_ACPI_BASE + (uint64_t)((const uint8_t *)place - area->bytes);
}

/* @return the byte that makes the sum of all bytes zero */
static uint8_t checksum(const void *bytes, size_t size)
{
    const uint8_t *at = bytes;
    uint8_t sum = 0;

    for (size_t i = 0; i < size; i++)
        sum += at[i];
    return -sum;
}

/* Completes the table that begins at place and ends where the area does. */
static void finish_table(struct area *area, void *place, const char *signature, uint8_t revision)
{
    struct acpi_header *header = place;

    memcpy(header->signature, signature, sizeof(header->signature));
    header->length = (uint32_t)(area->bytes + area->used - (uint8_t *)place);
    header->revision = revision;
    header->checksum = 0;
    memcpy(header->oem_id, OEM_ID, sizeof(header->oem_id));
    memcpy(header->oem_table_id, OEM_TABLE_ID, sizeof(header->oem_table_id));
    header->oem_revision = 1;
    /* Also for the DSDT: the machine must not depend on the version of iasl. */
    memcpy(header->creator_id, CREATOR_ID, sizeof(header->creator_id));
    header->creator_revision = 1;
    header->checksum = checksum(place, header->length);
}

/* Begins a table. */
static void *start_table(struct area *area, size_t size)
{
    area_align(area, TABLE_ALIGNMENT);
    return area_append(area, size);
}

static uint64_t write_facs(struct area *area)
{
    struct acpi_facs *facs;

    area_align(area, FACS_ALIGNMENT);
    facs = area_append(area, sizeof(*facs));
    memcpy(facs->signature, "FACS", sizeof(facs->signature));
    facs->length = sizeof(*facs);
    facs->version = 2;
    return area_address(area, facs);
}

static uint64_t write_dsdt(struct area *area)
{
    void *dsdt = start_table(area, sizeof(dsdt_aml));

    memcpy(dsdt, dsdt_aml, sizeof(dsdt_aml));
    finish_table(area, dsdt, "DSDT", dsdt_aml[offsetof(struct acpi_header, revision)]);
    return area_address(area, dsdt);
}

static struct acpi_gas io_register(uint16_t port, uint8_t bytes, uint8_t access)
{
    return (struct acpi_gas){
        .space = GAS_IO, .bits = (uint8_t)(bytes * 8), .access = access, .address = port};
}

static uint64_t write_fadt(struct area *area, uint64_t facs, uint64_t dsdt)
{
    struct acpi_fadt *fadt = start_table(area, sizeof(*fadt));

    fadt->facs = (uint32_t)facs;
    fadt->dsdt = (uint32_t)dsdt;
    fadt->x_dsdt = dsdt;
    fadt->sci = LAYOUT_SCI_IRQ;
    /* No SMI command port: always in ACPI mode. */
    fadt->pm1a_event = LAYOUT_PM1_EVENT_PORT;
    fadt->pm1_event_length = 4;
    fadt->x_pm1a_event = io_register(LAYOUT_PM1_EVENT_PORT, 4, GAS_WORD);
    fadt->pm1a_control = LAYOUT_PM1_CONTROL_PORT;
    fadt->pm1_control_length = 2;
    fadt->x_pm1a_control = io_register(LAYOUT_PM1_CONTROL_PORT, 2, GAS_WORD);
    fadt->pm_timer = LAYOUT_PM_TIMER_PORT;
    fadt->pm_timer_length = 4;
    fadt->x_pm_timer = io_register(LAYOUT_PM_TIMER_PORT, 4, GAS_DWORD);
    fadt->c2_latency = 101;  /* more than 100: no C2 */
    fadt->c3_latency = 1001; /* more than 1000: no C3 */
    fadt->boot_flags = BOOT_LEGACY_DEVICES | BOOT_NO_VGA | BOOT_NO_CMOS_RTC;
    fadt->flags = FADT_WBINVD | FADT_PROC_C1 | FADT_SLP_BUTTON | FADT_FIX_RTC | FADT_TMR_VAL_EXT |
                  FADT_RESET_REG_SUP;
    fadt->reset = io_register(LAYOUT_RESET_PORT, 1, GAS_BYTE);
    fadt->reset_value = LAYOUT_RESET_VALUE;
    memcpy(fadt->hypervisor, "BATON\0\0", sizeof(fadt->hypervisor));
    finish_table(area, fadt, "FACP", 6);
    return area_address(area, fadt);
}

static uint64_t write_madt(struct area *area, unsigned cpus)
{
    struct acpi_madt *madt = start_table(area, sizeof(*madt));

    madt->local_apic = (uint32_t)LAYOUT_LAPIC_BASE;
    madt->flags = 1; /* PCAT_COMPAT: there are 8259s to be masked */
    for (unsigned i = 0; i < cpus; i++)
        *(struct madt_local_apic *)area_append(area, sizeof(struct madt_local_apic)) =
            (struct madt_local_apic){.type = 0,
                                     .length = sizeof(struct madt_local_apic),
                                     .processor_uid = (uint8_t)i,
                                     .apic_id = (uint8_t)i,
                                     .flags = 1 /* enabled */};
    *(struct madt_ioapic *)area_append(area, sizeof(struct madt_ioapic)) = (struct madt_ioapic){
        .type = 1, .length = sizeof(struct madt_ioapic), .address = (uint32_t)LAYOUT_IOAPIC_BASE};
    *(struct madt_override *)area_append(area, sizeof(struct madt_override)) =
        (struct madt_override){.type = 2,
                               .length = sizeof(struct madt_override),
                               .source = ISA_IRQ_PIT,
                               .gsi = IOAPIC_INPUT_PIT};
    *(struct madt_override *)area_append(area, sizeof(struct madt_override)) =
        (struct madt_override){.type = 2,
                               .length = sizeof(struct madt_override),
                               .source = LAYOUT_SCI_IRQ,
                               .gsi = LAYOUT_SCI_IRQ,
                               .flags = INTI_LEVEL_HIGH};
    *(struct madt_nmi *)area_append(area, sizeof(struct madt_nmi)) = (struct madt_nmi){
        .type = 4, .length = sizeof(struct madt_nmi), .processor_uid = 0xff /* all */, .lint = 1};
    finish_table(area, madt, "APIC", 5);
    return area_address(area, madt);
}

static uint64_t write_mcfg(struct area *area)
{
    struct acpi_mcfg *mcfg = start_table(area, sizeof(*mcfg));

    mcfg->base = LAYOUT_ECAM_BASE;
    mcfg->last_bus = (uint8_t)(LAYOUT_ECAM_SIZE / MIB - 1);
    finish_table(area, mcfg, "MCFG", 1);
    return area_address(area, mcfg);
}

/* AML, ACPI 6.5 chapter 20. */
enum {
    AML_ZERO = 0x00,
    AML_NAME = 0x08,
    AML_BYTE = 0x0a,
    AML_DWORD = 0x0c,
    AML_STRING = 0x0d,
    AML_QWORD = 0x0e,
    AML_SCOPE = 0x10,
    AML_PACKAGE = 0x12,
    AML_EXTENDED = 0x5b,
    AML_DEVICE = 0x82,
};

static void aml_bytes(struct area *area, const void *bytes, size_t size)
{
    memcpy(area_append(area, size), bytes, size);
}

static void aml_byte(struct area *area, uint8_t byte)
{
    aml_bytes(area, &byte, 1);
}

static void aml_name(struct area *area, const char name[4])
{
    aml_byte(area, AML_NAME);
    aml_bytes(area, name, 4);
}

static void aml_name_qword(struct area *area, const char name[4], uint64_t value)
{
    aml_name(area, name);
    aml_byte(area, AML_QWORD);
    aml_bytes(area, &value, sizeof(value));
}

/* Begins a package whose length is filled in by aml_end(): always in the two-byte form. */
static uint8_t *aml_begin(struct area *area)
{
    return area_append(area, 2);
}

static void aml_end(const struct area *area, uint8_t *package)
{
    size_t length = (size_t)(area->bytes + area->used - package);

    assert(length < 0x1000);
    package[0] = (uint8_t)(1u << 6 | (length & 0xf));
    package[1] = (uint8_t)(length >> 4);
}

static void aml_processor(struct area *area, unsigned uid)
{
    static const char digits[] = "0123456789ABCDEF";
    const char name[4] = {'C', '0', digits[uid / 16], digits[uid % 16]};
    uint8_t *device;

    aml_byte(area, AML_EXTENDED);
    aml_byte(area, AML_DEVICE);
    device = aml_begin(area);
    aml_bytes(area, name, sizeof(name));
    aml_name(area, "_HID");
    aml_byte(area, AML_STRING);
    aml_bytes(area, "ACPI0007", sizeof("ACPI0007"));
    aml_name(area, "_UID");
    aml_byte(area, AML_BYTE);
    aml_byte(area, (uint8_t)uid);
    aml_end(area, device);
}

/* One mapping of _PRT (ACPI 6.5, 6.2.13): any function of a device, a pin, no link device, a GSI.
 */
static void aml_route(struct area *area, unsigned device, unsigned pin)
{
    const uint32_t address = device << 16 | 0xffff;
    uint8_t *package;

    aml_byte(area, AML_PACKAGE);
    package = aml_begin(area);
    aml_byte(area, 4);
    aml_byte(area, AML_DWORD);
    aml_bytes(area, &address, sizeof(address));
    aml_byte(area, AML_BYTE);
    aml_byte(area, (uint8_t)pin);
    aml_byte(area, AML_ZERO);
    aml_byte(area, AML_BYTE);
    aml_byte(area, (uint8_t)layout_pci_gsi(device, pin));
    aml_end(area, package);
}

/* Where the interrupt pins of bus 0 go, whether there is a device or not. Device 0 is the bridge.
 */
static void aml_routes(struct area *area)
{
    uint8_t *scope, *table;

    aml_byte(area, AML_SCOPE);
    scope = aml_begin(area);
    aml_bytes(area, "\\\x2e_SB_PCI0", 10); /* root, a path of two */
    aml_name(area, "_PRT");
    aml_byte(area, AML_PACKAGE);
    table = aml_begin(area);
    aml_byte(area, (PCI_DEVICES - 1) * PCI_PINS);
    for (unsigned device = 1; device < PCI_DEVICES; device++) {
        for (unsigned pin = 0; pin < PCI_PINS; pin++)
            aml_route(area, device, pin);
    }
    aml_end(area, table);
    aml_end(area, scope);
}

static uint64_t write_ssdt(struct area *area, const struct boot_config *config)
{
    void *ssdt = start_table(area, sizeof(struct acpi_header));
    uint8_t *scope;

    aml_byte(area, AML_SCOPE);
    scope = aml_begin(area);
    aml_bytes(area, "\\_SB_", 5);
    aml_name_qword(area, "M64B", config->mmio64_base);
    aml_name_qword(area, "M64L", config->mmio64_size);
    for (unsigned i = 0; i < config->cpus; i++)
        aml_processor(area, i);
    aml_end(area, scope);
    aml_routes(area);
    finish_table(area, ssdt, "SSDT", 2);
    return area_address(area, ssdt);
}

static uint64_t write_xsdt(struct area *area, const uint64_t *tables, size_t size)
{
    void *xsdt = start_table(area, sizeof(struct acpi_header));

    memcpy(area_append(area, size), tables, size);
    finish_table(area, xsdt, "XSDT", 1);
    return area_address(area, xsdt);
}

static void fill_rsdp(struct acpi_rsdp *rsdp, uint64_t xsdt)
{
    memcpy(rsdp->signature, "RSD PTR ", sizeof(rsdp->signature));
    memcpy(rsdp->oem_id, OEM_ID, sizeof(rsdp->oem_id));
    rsdp->revision = 2;
    rsdp->length = sizeof(*rsdp);
    rsdp->xsdt = xsdt;
    rsdp->checksum = checksum(rsdp, offsetof(struct acpi_rsdp, length));
    rsdp->extended_checksum = checksum(rsdp, sizeof(*rsdp));
}

int acpi_write_tables(const struct boot_config *config, uint64_t *rsdp, struct error *error)
{
    struct area area = {.used = 0};
    void *memory = ram_pointer(config->ram, LAYOUT_ACPI_BASE, LAYOUT_ACPI_SIZE);
    void *pointer = area_append(&area, sizeof(struct acpi_rsdp)); /* first, where BIOSes have it */
    uint64_t tables[4], facs, dsdt;

    if (memory == NULL)
        return error_set(error, EFBIG, "the guest needs more than 1 MiB of memory (-m)");
    assert(config->cpus > 0 && config->cpus <= CPUS_MAX);
    facs = write_facs(&area);
    dsdt = write_dsdt(&area);
    tables[0] = write_fadt(&area, facs, dsdt);
    tables[1] = write_madt(&area, config->cpus);
    tables[2] = write_mcfg(&area);
    tables[3] = write_ssdt(&area, config);
    fill_rsdp(pointer, write_xsdt(&area, tables, sizeof(tables)));
    memset(memory, 0, LAYOUT_ACPI_SIZE);
    memcpy(memory, area.bytes, area.used);
    *rsdp = area_address(&area, pointer);
    return 0;
}
