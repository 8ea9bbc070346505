/* SPDX-License-Identifier: Apache-2.0
 *
 * Configuration space of a passed-through function. Called by the host bridge with the machine's
 * lock held, and while a machine is built.
 *
 * Most of it is the kernel's: VFIO's configuration region already virtualises what must not reach
 * the hardware. Three kinds of bits are ours:
 *
 *  - constants (config.value under config.mask): capability chains with holes where something is
 *    hidden, the device's place on bus 0, the interrupt pin. They are worked out from the device
 *    alone, so both processes of a hand-over arrive at the same ones;
 *  - registers in the function's state: BARs, MSI, MSI-X, interrupt line and the command register's
 *    decoding bits. The mask covers them and the value is zero there, so that a read is the
 *    constants or'ed with the state;
 *  - side effects: BARs leave the guest before the kernel stops decoding and come back after it has
 *    started, since touching a mapped BAR in between would be a fault of this process.
 *
 * Capabilities are shown by list, not hidden by list: one that nobody has thought about stays away.
 */
#include <assert.h>
#include <errno.h>
#include <linux/pci_regs.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "pci/registers.h"
#include "vfio/function.h"

#define DECODE_BITS (PCI_COMMAND_IO | PCI_COMMAND_MEMORY)

#define STANDARD_CAPS_MAX 48 /* (256 - 64) / 4: more would be a loop */
#define EXTENDED_CAPS_MAX 960

/* Express, version 1: no second set of link registers. */
#define LINK_BYTES 8

static uint32_t device_read(const struct vfio_pci *device, unsigned offset, unsigned size)
{
    return (uint32_t)vfio_region_read(&device->device, VFIO_PCI_CONFIG_REGION_INDEX, offset, size);
}

uint32_t vfio_config_examine(struct vfio_pci *device, unsigned offset, unsigned size)
{
    uint64_t value;
    int result =
        vfio_region_fetch(&device->device, VFIO_PCI_CONFIG_REGION_INDEX, offset, size, &value);

    if (result < 0)
        device->config.unreadable = -result;
    return (uint32_t)value;
}

int vfio_config_check(struct vfio_pci *device, struct error *error)
{
    if (device->config.unreadable == 0)
        return 0;
    error_set_errno(error, device->config.unreadable, "cannot read its configuration space");
    return vfio_device_error(&device->device, error);
}

static void device_write(const struct vfio_pci *device, unsigned offset, unsigned size,
                         uint32_t value)
{
    vfio_region_write(&device->device, VFIO_PCI_CONFIG_REGION_INDEX, offset, size, value);
}

/* Makes bytes constant. */
static void fix(struct vfio_config *config, unsigned offset, unsigned size, uint32_t value)
{
    for (unsigned i = 0; i < size; i++) {
        config->mask[offset + i] = 0xff;
        config->value[offset + i] = (uint8_t)(value >> (8 * i));
    }
}

static void fix_zero(struct vfio_config *config, unsigned offset, unsigned size)
{
    memset(&config->mask[offset], 0xff, size);
    memset(&config->value[offset], 0, size);
}

/* The header: what is state, and what a guest must not see. */
static void fix_header(struct vfio_config *config)
{
    config->mask[PCI_COMMAND] = DECODE_BITS;
    fix_zero(config, PCI_HEADER_TYPE, 1); /* the host bridge knows about other functions */
    fix_zero(config, PCI_BIST, 1);        /* would stop the device for seconds */
    fix_zero(config, PCI_BASE_ADDRESS_0, 4 * PCI_BAR_COUNT);
    fix_zero(config, PCI_ROM_ADDRESS, 4);
    fix_zero(config, PCI_INTERRUPT_LINE, 1);
}

/* The interrupt pin, where VFIO offers INTx. */
static void fix_pin(struct vfio_pci *device)
{
    uint32_t pin = vfio_config_examine(device, PCI_INTERRUPT_PIN, 1);

    if (device->device.has_intx && pin >= 1 && pin <= 4)
        device->config.pin = pin;
    fix(&device->config, PCI_INTERRUPT_PIN, 1, device->config.pin);
}

/* PCI Express: on bus 0 there is no link above the device, so it is an integrated endpoint and has
 * no link registers (PCI Express 6.0, 7.5.3). @return whether to show it */
static bool show_express(struct vfio_pci *device, unsigned at)
{
    struct vfio_config *config = &device->config;
    uint32_t flags = vfio_config_examine(device, at + PCI_EXP_FLAGS, 2);
    unsigned type = (flags & PCI_EXP_FLAGS_TYPE) >> 4;
    unsigned version = MAX(flags & PCI_EXP_FLAGS_VERS, 1u); /* some virtual functions say 0 */

    if (type != PCI_EXP_TYPE_ENDPOINT && type != PCI_EXP_TYPE_RC_END)
        return false; /* a legacy endpoint has no business on bus 0: plain PCI then */
    flags &= ~(uint32_t)(PCI_EXP_FLAGS_TYPE | PCI_EXP_FLAGS_SLOT | PCI_EXP_FLAGS_VERS);
    fix(config, at + PCI_EXP_FLAGS, 2, flags | PCI_EXP_TYPE_RC_END << 4 | version);
    if (type == PCI_EXP_TYPE_RC_END)
        return true;
    fix_zero(config, at + PCI_EXP_LNKCAP, LINK_BYTES);
    if (version >= 2)
        fix_zero(config, at + PCI_EXP_LNKCAP2, LINK_BYTES);
    return true;
}

static bool show_msi(struct vfio_pci *device, unsigned at)
{
    if (device->device.msi_vectors == 0 || device->config.msi != 0)
        return false;
    pci_msi_init(&device->msi, &device->state.msi,
                 (uint16_t)vfio_config_examine(device, at + PCI_MSI_FLAGS, 2), &vfio_msi_ops,
                 device);
    if (at + pci_msi_size(&device->msi) > 256)
        return false;
    fix_zero(&device->config, at, pci_msi_size(&device->msi));
    device->config.msi = at;
    return true;
}

/* Whether the MSI-X table or pending bits lie within the BAR that the capability names. */
static bool fits_bar(const struct vfio_pci *device, unsigned bar, uint64_t offset, uint64_t size)
{
    return bar < PCI_BAR_COUNT && range_fits(offset, size, device->device.regions[bar].size);
}

static bool show_msix(struct vfio_pci *device, unsigned at)
{
    struct vfio_config *config = &device->config;
    uint32_t table = vfio_config_examine(device, at + PCI_MSIX_TABLE, 4);
    uint32_t pba = vfio_config_examine(device, at + PCI_MSIX_PBA, 4);
    unsigned count = device->device.msix_vectors;

    if (count == 0 || count > PCI_MSIX_VECTORS_MAX || config->msix != 0 ||
        at + PCI_MSIX_CAP_BYTES > 256)
        return false;
    config->msix_table_bar = table & PCI_MSIX_TABLE_BIR;
    config->msix_table_offset = table & PCI_MSIX_TABLE_OFFSET;
    config->msix_pba_bar = pba & PCI_MSIX_PBA_BIR;
    config->msix_pba_offset = pba & PCI_MSIX_PBA_OFFSET;
    if (!fits_bar(device, config->msix_table_bar, config->msix_table_offset,
                  (uint64_t)count * PCI_MSIX_ENTRY_BYTES) ||
        !fits_bar(device, config->msix_pba_bar, config->msix_pba_offset, align_up(count, 64) / 8)) {
        log_warning("device '%s' (%s): its MSI-X table is outside its BARs, left out",
                    device->device.id, device->device.host);
        return false;
    }
    pci_msix_init(&device->msix, &device->state.msix, count, &vfio_msix_ops, device);
    fix_zero(config, at, 4);
    fix(config, at + PCI_MSIX_TABLE, 4, table);
    fix(config, at + PCI_MSIX_PBA, 4, pba);
    config->msix = at;
    return true;
}

/* @return whether a capability is shown */
static bool show_standard(struct vfio_pci *device, unsigned id, unsigned at)
{
    switch (id) {
    case PCI_CAP_ID_PM:
        device->config.pm = at;
        return true;
    case PCI_CAP_ID_MSI:
        return show_msi(device, at);
    case PCI_CAP_ID_MSIX:
        return show_msix(device, at);
    case PCI_CAP_ID_EXP:
        return show_express(device, at);
    case PCI_CAP_ID_VPD:
    case PCI_CAP_ID_PCIX:
    case PCI_CAP_ID_VNDR:
    case PCI_CAP_ID_SSVID:
    case PCI_CAP_ID_SATA:
    case PCI_CAP_ID_AF:
        return true;
    default:
        return false;
    }
}

/* Rebuilds the chain of standard capabilities. @return whether the device is PCI Express still */
static bool build_standard(struct vfio_pci *device)
{
    struct vfio_config *config = &device->config;
    unsigned at = vfio_config_examine(device, PCI_CAPABILITY_LIST, 1) & ~3u;
    unsigned link = PCI_CAPABILITY_LIST;
    bool express = false;

    fix_zero(config, link, 1);
    for (unsigned i = 0; i < STANDARD_CAPS_MAX && at >= PCI_STD_HEADER_SIZEOF && at < 256; i++) {
        unsigned id = vfio_config_examine(device, at, 1);
        unsigned next = vfio_config_examine(device, at + 1, 1) & ~3u;

        if (show_standard(device, id, at)) {
            fix(config, link, 1, at);
            fix(config, at, 2, id);
            link = at + 1;
            express |= id == PCI_CAP_ID_EXP;
        } else {
            fix_zero(config, at, 2);
        }
        at = next;
    }
    return express;
}

/* Extended capabilities that mean the same to a guest as to the host. Left out with reason: ARI,
 * SR-IOV, Resizable BAR (the host's to decide), ATS, PRI, PASID (need a virtual IOMMU), and all
 * that is about a link. */
static bool show_extended(unsigned id)
{
    switch (id) {
    case PCI_EXT_CAP_ID_ERR:
    case PCI_EXT_CAP_ID_DSN:
    case PCI_EXT_CAP_ID_PWR:
    case PCI_EXT_CAP_ID_VNDR:
    case PCI_EXT_CAP_ID_DPA:
    case PCI_EXT_CAP_ID_DVSEC:
        return true;
    default:
        return false;
    }
}

/* Rebuilds the chain of extended capabilities. It must start at 0x100: when what is there is hidden
 * its place is taken by a null capability (ID 0), which guests skip. */
static void build_extended(struct vfio_pci *device)
{
    struct vfio_config *config = &device->config;
    unsigned at = PCI_CFG_SPACE_SIZE, link = 0;

    for (unsigned i = 0; i < EXTENDED_CAPS_MAX && at >= PCI_CFG_SPACE_SIZE; i++) {
        uint32_t header = vfio_config_examine(device, at, 4);
        unsigned next = PCI_EXT_CAP_NEXT(header);

        if (header == 0 || header == UINT32_MAX)
            break;
        if (show_extended(PCI_EXT_CAP_ID(header))) {
            fix(config, at, 4, header & 0x000fffff);
            if (link != 0) {
                uint32_t before;

                memcpy(&before, &config->value[link], sizeof(before));
                fix(config, link, 4, before | at << 20);
            }
            link = at;
        } else {
            fix_zero(config, at, 4);
            if (at == PCI_CFG_SPACE_SIZE)
                link = at;
        }
        at = next;
    }
}

/* A mediated device may offer less than 256 bytes: the rest reads as zero. */
static void fix_tail(struct vfio_config *config, uint64_t size)
{
    unsigned end = (unsigned)MIN(align_down(size, 4), (uint64_t)PCI_CFG_SPACE_SIZE);

    fix_zero(config, end, PCI_CFG_SPACE_SIZE - end);
}

int vfio_config_init(struct vfio_pci *device, struct error *error)
{
    struct vfio_config *config = &device->config;
    uint64_t size = device->device.regions[VFIO_PCI_CONFIG_REGION_INDEX].size;

    if (size < PCI_STD_HEADER_SIZEOF)
        return error_set(error, ENOTSUP, "device '%s' (%s): it has no configuration space",
                         device->device.id, device->device.host);
    if ((vfio_config_examine(device, PCI_HEADER_TYPE, 1) & 0x7f) != PCI_HEADER_TYPE_NORMAL)
        return error_set(error, ENOTSUP, "device '%s' (%s): it is a bridge, not an endpoint",
                         device->device.id, device->device.host);
    config->size = size >= PCI_CONFIG_SIZE ? PCI_CONFIG_SIZE : PCI_CFG_SPACE_SIZE;
    fix_header(config);
    fix_tail(config, size);
    fix_pin(device);
    fix_tail(config, size);
    if (build_standard(device) && config->size == PCI_CONFIG_SIZE)
        build_extended(device);
    else
        config->size = PCI_CFG_SPACE_SIZE; /* a plain PCI function has no more */
    return vfio_config_check(device, error);
}

uint16_t vfio_config_decoding(const struct vfio_pci *device)
{
    return device->state.power == VFIO_POWER_D3 ? 0 : device->state.command & DECODE_BITS;
}

/* How many bytes of an access lie in a register of @p length bytes that starts at @p start. */
static bool touches(unsigned offset, unsigned size, unsigned start, unsigned length)
{
    return start != 0 && ranges_overlap(offset, size, start, length);
}

/* The part of a read that comes from state; offset and size stay within a dword. */
static uint32_t read_state(const struct vfio_pci *device, unsigned offset, unsigned size)
{
    const struct vfio_config *config = &device->config;
    unsigned byte = offset & 3;

    if (pci_bars_owns(offset))
        return pci_bars_read(&device->bars, offset, size);
    if (touches(offset, size, config->msi, pci_msi_size(&device->msi)))
        return pci_msi_read(&device->msi, offset - config->msi, size);
    if (touches(offset, size, config->msix, 4))
        return register_part((uint32_t)pci_msix_control(&device->msix) << 16, byte, size);
    if ((offset & ~3u) == PCI_COMMAND)
        return register_part(device->state.command & DECODE_BITS, byte, size);
    if ((offset & ~3u) == PCI_INTERRUPT_LINE)
        return register_part(device->state.interrupt_line, byte, size);
    return 0;
}

/* Whether every byte of an access is ours. */
static bool is_covered(const struct vfio_config *config, unsigned offset, unsigned size)
{
    for (unsigned i = 0; i < size; i++) {
        if (config->mask[offset + i] != 0xff)
            return false;
    }
    return true;
}

static uint32_t config_read(void *opaque, unsigned offset, unsigned size)
{
    struct vfio_pci *device = opaque;
    const struct vfio_config *config = &device->config;
    uint32_t value = 0, mask = 0, fixed = 0;

    if (offset + size > config->size)
        return (uint32_t)access_mask(size);
    memcpy(&mask, &config->mask[offset], size);
    memcpy(&fixed, &config->value[offset], size);
    if (!is_covered(config, offset, size))
        value = device_read(device, offset, size);
    return (value & ~mask) | fixed | read_state(device, offset, size);
}

/* Passes a write on to VFIO, without the bytes that are ours. */
static void pass_on(struct vfio_pci *device, unsigned offset, unsigned size, uint32_t value)
{
    const struct vfio_config *config = &device->config;
    bool whole = true;

    for (unsigned i = 0; i < size; i++)
        whole &= config->mask[offset + i] != 0xff;
    if (whole) {
        device_write(device, offset, size, value);
        return;
    }
    for (unsigned i = 0; i < size; i++) {
        if (config->mask[offset + i] != 0xff)
            device_write(device, offset + i, 1, register_part(value, i, 1));
    }
}

/* The command register. What is switched off leaves the guest before the kernel stops decoding,
 * what is switched on comes after it has started. */
static void write_command(struct vfio_pci *device, unsigned offset, unsigned size, uint32_t value)
{
    uint16_t old = device->state.command;
    uint16_t new = (uint16_t)register_merge(old, offset & 3, size, value);

    device->state.command = old & new;
    pci_bars_update(&device->bars, vfio_config_decoding(device));
    pass_on(device, offset, size, value);
    device->state.command = new;
    pci_bars_update(&device->bars, vfio_config_decoding(device));
}

/* Power management control: in D3 the kernel lets nobody touch the BARs. What state the device is
 * in after a write is what it says itself: it may not have all of them. */
static void write_power(struct vfio_pci *device, unsigned offset, unsigned size, uint32_t value)
{
    unsigned control = device->config.pm + PCI_PM_CTRL;

    if (offset == control && (value & PCI_PM_CTRL_STATE_MASK) == VFIO_POWER_D3) {
        device->state.power = VFIO_POWER_D3;
        pci_bars_update(&device->bars, 0);
    }
    pass_on(device, offset, size, value);
    device->state.power = device_read(device, control, 2) & PCI_PM_CTRL_STATE_MASK;
    pci_bars_update(&device->bars, vfio_config_decoding(device));
}

static void write_msix(struct vfio_pci *device, unsigned offset, unsigned size, uint32_t value)
{
    uint32_t dword = (uint32_t)pci_msix_control(&device->msix) << 16;

    dword = register_merge(dword, offset & 3, size, value);
    pci_msix_write_control(&device->msix, (uint16_t)(dword >> 16));
}

static void config_write(void *opaque, unsigned offset, unsigned size, uint32_t value)
{
    struct vfio_pci *device = opaque;
    const struct vfio_config *config = &device->config;

    if (offset + size > config->size)
        return;
    if (pci_bars_owns(offset)) {
        pci_bars_write(&device->bars, offset, size, value);
        pci_bars_update(&device->bars, vfio_config_decoding(device));
    } else if (touches(offset, size, config->msi, pci_msi_size(&device->msi))) {
        pci_msi_write(&device->msi, offset - config->msi, size, value);
    } else if (touches(offset, size, config->msix, 4)) {
        write_msix(device, offset, size, value);
    } else if (touches(offset, size, PCI_COMMAND, 2)) {
        write_command(device, offset, size, value);
    } else if (touches(offset, size, config->pm == 0 ? 0 : config->pm + PCI_PM_CTRL, 2)) {
        write_power(device, offset, size, value);
    } else {
        if (offset == PCI_INTERRUPT_LINE)
            device->state.interrupt_line = (uint8_t)value;
        pass_on(device, offset, size, value);
    }
}

const struct pci_config_ops vfio_config_ops = {.read = config_read, .write = config_write};

void vfio_config_quiet(struct vfio_pci *device)
{
    unsigned control = device->config.pm + PCI_PM_CTRL;

    if (device->config.pm != 0) {
        uint32_t value = device_read(device, control, 2);

        if (value & PCI_PM_CTRL_STATE_MASK)
            device_write(device, control, 2, value & ~(uint32_t)PCI_PM_CTRL_STATE_MASK);
    }
    device_write(device, PCI_COMMAND, 2, 0);
    device->state.power = 0;
    device->state.command = 0;
}
