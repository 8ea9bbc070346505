/* SPDX-License-Identifier: Apache-2.0
 *
 * A passed-through PCI function, see pci.h: its two constructors, its BARs in the guest, reset and
 * hand-over. Callbacks run on vCPU threads; everything runs with the machine's lock held.
 *
 * A BAR in the guest is one range of the bus, as large as the BAR, so that collisions are found in
 * one place; on top of it lie memory slots for every stretch that can be mapped. Hardware gives
 * slots precedence, so only what has none (the MSI-X table, stretches that the kernel will not map)
 * ever arrives at the range's callbacks.
 *
 * Memory BARs below a page that can be mapped are shown to the guest as one page. The guest then
 * gives them a page of their own, and a slot can never cover a neighbour's registers.
 */
#include "vfio/pci.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/pci_regs.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/log.h"
#include "base/trace.h"
#include "base/util.h"
#include "kvm/vfio.h"
#include "vfio/function.h"

/* Whether an offset of a BAR belongs to a table of the MSI-X capability. */
static bool in_table(const struct vfio_pci *device, unsigned bar, uint64_t offset,
                     unsigned table_bar, uint64_t table_offset, uint64_t table_size)
{
    return device->config.msix != 0 && bar == table_bar && offset >= table_offset &&
           offset - table_offset < table_size;
}

static bool in_msix_table(const struct vfio_pci *device, unsigned bar, uint64_t offset)
{
    return in_table(device, bar, offset, device->config.msix_table_bar,
                    device->config.msix_table_offset,
                    (uint64_t)device->msix.count * PCI_MSIX_ENTRY_BYTES);
}

static bool in_msix_pba(const struct vfio_pci *device, unsigned bar, uint64_t offset)
{
    return in_table(device, bar, offset, device->config.msix_pba_bar,
                    device->config.msix_pba_offset, align_up(device->msix.count, 64) / 8);
}

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct vfio_bar *place = opaque;
    struct vfio_pci *device = place->owner;

    if (place->index == PCI_BAR_ROM)
        return vfio_rom_read(device, offset, size);
    if (in_msix_table(device, place->index, offset))
        return pci_msix_table_read(&device->msix, offset - device->config.msix_table_offset, size);
    if (in_msix_pba(device, place->index, offset))
        return pci_msix_pba_read(&device->msix, offset - device->config.msix_pba_offset, size);
    vfio_intx_unmask(device);
    return vfio_region_read(&device->device, place->index, offset, size);
}

static void bar_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    const struct vfio_bar *place = opaque;
    struct vfio_pci *device = place->owner;

    if (in_msix_table(device, place->index, offset)) {
        pci_msix_table_write(&device->msix, offset - device->config.msix_table_offset, size, value);
    } else if (!in_msix_pba(device, place->index, offset) && place->index != PCI_BAR_ROM) {
        vfio_intx_unmask(device);
        vfio_region_write(&device->device, place->index, offset, size, value);
    }
}

static const struct bus_ops bar_ops = {.read = bar_read, .write = bar_write};

static struct bus *bus_of(const struct vfio_pci *device, unsigned bar)
{
    return device->bars.bars[bar].kind == PCI_BAR_IO ? device->parents.pio : device->parents.mmio;
}

static void remove_slots(struct vfio_pci *device, unsigned bar)
{
    struct vfio_region *region = &device->device.regions[bar];

    for (unsigned i = 0; i < region->area_count; i++) {
        if (region->areas[i].in_guest)
            kvm_vm_unmap(device->parents.vm, region->areas[i].slot);
        region->areas[i].in_guest = false;
    }
}

/* Puts a memory slot over every mapped stretch of a BAR. A stretch for which there is no slot left
 * is trapped, which is slow but right; one where memory is already is refused. */
static int add_slots(struct vfio_pci *device, unsigned bar, uint64_t address)
{
    struct vfio_region *region = &device->device.regions[bar];
    bool readonly = !(region->flags & VFIO_REGION_INFO_FLAG_WRITE);

    for (unsigned i = 0; i < region->area_count; i++) {
        struct vfio_area *area = &region->areas[i];
        struct error error = {0};
        int result = kvm_vm_map(device->parents.vm, address + area->offset, area->size, area->host,
                                readonly, &area->slot, &error);

        area->in_guest = result == 0;
        if (result == 0)
            continue;
        if (result != -ENOSPC) {
            remove_slots(device, bar);
            return result;
        }
        log_guest("device '%s': BAR %u is trapped: %s", device->device.id, bar, error.message);
    }
    return 0;
}

/* Lets the guest's other devices reach the mapped stretches of a BAR. One below a page, which has
 * a page to itself, is left out: the kernel gives only what is the BAR's. */
static void add_peers(struct vfio_pci *device, unsigned bar, uint64_t address)
{
    const struct vfio_region *region = &device->device.regions[bar];
    const uint32_t both = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;

    if (!device->p2p || (region->flags & both) != both)
        return;
    for (unsigned i = 0; i < region->area_count; i++) {
        const struct vfio_area *area = &region->areas[i];
        const struct iommu_peer peer = {.iova = address + area->offset,
                                        .size = area->size,
                                        .fd = device->device.fd,
                                        .region = bar,
                                        .offset = area->offset,
                                        .host = area->host,
                                        .space = device->space};

        if (range_fits(area->offset, area->size, region->size))
            iommu_set_map_peer(device->parents.spaces, &peer);
    }
}

static void remove_peers(struct vfio_pci *device, unsigned bar)
{
    const struct vfio_region *region = &device->device.regions[bar];
    uint64_t address = device->places[bar].range.base;

    for (unsigned i = 0; device->p2p && i < region->area_count; i++)
        iommu_set_unmap_peer(device->parents.spaces, address + region->areas[i].offset,
                             region->areas[i].size);
}

static int map_bar(void *opaque, unsigned bar, uint64_t address)
{
    struct vfio_pci *device = opaque;
    struct bus_range *range = &device->places[bar].range;
    struct error error = {0};
    int result;

    *range = (struct bus_range){
        .name = device->device.id,
        .base = address,
        .size = device->bars.bars[bar].size,
        .ops = &bar_ops,
        .opaque = &device->places[bar],
    };
    result = bus_add(bus_of(device, bar), range, &error);
    if (result < 0)
        return result;
    result = add_slots(device, bar, address);
    if (result < 0) {
        bus_remove(bus_of(device, bar), range);
        return result;
    }
    add_peers(device, bar, address);
    device->state.mapped |= (uint8_t)(1u << bar);
    return 0;
}

static void unmap_bar(void *opaque, unsigned bar)
{
    struct vfio_pci *device = opaque;

    device->state.mapped &= (uint8_t) ~(1u << bar);
    remove_peers(device, bar);
    remove_slots(device, bar);
    bus_remove(bus_of(device, bar), &device->places[bar].range);
}

static const struct pci_bars_ops bars_ops = {.map = map_bar, .unmap = unmap_bar};

/* What a BAR looks like to the guest; the low bits of the register say what kind it is. */
static void define_bar(struct vfio_pci *device, unsigned index)
{
    const struct vfio_region *region = &device->device.regions[index];
    uint32_t value = vfio_config_examine(device, PCI_BASE_ADDRESS_0 + 4 * index, 4);
    enum pci_bar_kind kind = PCI_BAR_MEM32;
    uint64_t size = 16;

    if (value & PCI_BASE_ADDRESS_SPACE_IO) {
        kind = PCI_BAR_IO;
        size = 4;
    } else if ((value & PCI_BASE_ADDRESS_MEM_TYPE_MASK) == PCI_BASE_ADDRESS_MEM_TYPE_64) {
        kind = PCI_BAR_MEM64;
    }
    while (size < region->size && size < UINT64_C(1) << 62)
        size *= 2;
    if (kind != PCI_BAR_IO && region->area_count != 0)
        size = MAX(size, PAGE_SIZE);
    if ((kind == PCI_BAR_MEM64 && index == PCI_BAR_COUNT - 1) ||
        (kind == PCI_BAR_MEM32 && size > 2 * GIB) || (kind == PCI_BAR_IO && size > 256)) {
        log_warning("device '%s' (%s): BAR %u makes no sense, left out", device->device.id,
                    device->device.host, index);
        return;
    }
    pci_bars_define(&device->bars, index, kind, size, value & PCI_BASE_ADDRESS_MEM_PREFETCH);
}

static void define_rom(struct vfio_pci *device)
{
    uint64_t size = 2 * KIB;
    uint64_t wanted = device->device.regions[VFIO_PCI_ROM_REGION_INDEX].size;

    if (wanted == 0 || wanted > VFIO_ROM_MAX)
        return;
    while (size < wanted)
        size *= 2;
    pci_bars_define(&device->bars, PCI_BAR_ROM, PCI_BAR_MEM32, size, false);
}

/* Keeps the pages of the MSI-X table and pending bits out of what is mapped. */
static void keep_msix_trapped(struct vfio_pci *device)
{
    const struct vfio_config *config = &device->config;

    if (config->msix == 0)
        return;
    vfio_region_exclude(&device->device.regions[config->msix_table_bar], config->msix_table_offset,
                        (uint64_t)device->msix.count * PCI_MSIX_ENTRY_BYTES);
    vfio_region_exclude(&device->device.regions[config->msix_pba_bar], config->msix_pba_offset,
                        align_up(device->msix.count, 64) / 8);
}

static int init_bars(struct vfio_pci *device, struct error *error)
{
    keep_msix_trapped(device);
    pci_bars_init(&device->bars, device->device.id, &device->state.bars, &bars_ops, device);
    for (unsigned i = 0; i < PCI_BARS_ALL; i++)
        device->places[i] = (struct vfio_bar){.owner = device, .index = i};
    for (unsigned i = 0; i < PCI_BAR_COUNT; i++) {
        int result;

        if (device->device.regions[i].size == 0 || device->bars.bars[i].kind != PCI_BAR_NONE)
            continue;
        define_bar(device, i);
        if (device->bars.bars[i].kind == PCI_BAR_NONE || device->bars.bars[i].kind == PCI_BAR_IO)
            device->device.regions[i].area_count = 0;
        result = vfio_region_mmap(&device->device, i, error);
        if (result < 0)
            return result;
    }
    define_rom(device);
    return vfio_config_check(device, error);
}

int vfio_pci_examine(struct vfio_pci *device, struct error *error)
{
    int result = vfio_device_query(&device->device, error);

    if (result == 0)
        result = vfio_config_init(device, error);
    if (result == 0)
        result = init_bars(device, error);
    return result;
}

static int join_bus(struct vfio_pci *device, struct error *error)
{
    int result = pci_host_add(device->parents.pci, &device->function, error);

    device->on_bus = result == 0;
    return result;
}

static struct vfio_pci *allocate(const struct vfio_pci_config *config,
                                 const struct vfio_pci_parents *parents)
{
    struct vfio_pci *device = xcalloc(1, sizeof(*device));

    device->parents = *parents;
    device->device.fd = -1;
    device->kvm_fd = -1;
    device->p2p = config->p2p;
    device->intx = (struct vfio_intx){.trigger = -1, .resample = -1};
    for (unsigned i = 0; i < VFIO_NOTIFIERS; i++)
        device->notifiers[i] = -1;
    snprintf(device->device.id, sizeof(device->device.id), "%s", config->id);
    snprintf(device->device.host, sizeof(device->device.host), "%s",
             config->sysfs != NULL ? basename(config->sysfs) : "passed by descriptor");
    device->function = (struct pci_function){
        .name = device->device.id,
        .devfn = config->devfn,
        .ops = &vfio_config_ops,
        .opaque = device,
    };
    return device;
}

/* Both constructors: an address space has the device, and KVM is told of it. */
static int settle(struct vfio_pci *device, const struct iommu_device *attached, struct error *error)
{
    int result;

    device->device.fd = attached->fd;
    device->devid = attached->devid;
    device->group = attached->group;
    device->hwpt = attached->hwpt;
    device->space = attached->space;
    result = kvm_vfio_add(device->parents.vm, attached->kvm_fd, error);
    if (result < 0)
        return vfio_device_error(&device->device, error);
    device->kvm_fd = attached->kvm_fd;
    return 0;
}

static int open_and_attach(struct vfio_pci *device, const struct vfio_pci_config *config,
                           struct error *error)
{
    struct iommu_device wanted = {.sysfs = config->sysfs, .fd = config->fd};

    if (iommu_set_attach(device->parents.spaces, &config->space, &wanted, error) < 0)
        return vfio_device_error(&device->device, error);
    trace(vfio_open, device->device.id, device->device.host, wanted.fd);
    return settle(device, &wanted, error);
}

int vfio_pci_create(struct vfio_pci **device, const struct vfio_pci_config *config,
                    const struct vfio_pci_parents *parents, struct error *error)
{
    struct vfio_pci *new = allocate(config, parents);
    int result = open_and_attach(new, config, error);

    if (result == 0)
        result = vfio_device_query_rom(&new->device, error);
    if (result == 0)
        result = vfio_pci_examine(new, error);
    if (result == 0)
        result = vfio_vectors_create(new, error);
    if (result == 0)
        result = vfio_intx_create(new, error);
    if (result == 0)
        result = vfio_notifiers_create(new, error);
    if (result == 0)
        result = join_bus(new, error);
    if (result < 0) {
        vfio_pci_destroy(new, false);
        return result;
    }
    vfio_pci_reset(new);
    *device = new;
    return 0;
}

/* Takes the device that another process has attached. */
static int adopt_device(struct vfio_pci *device, const struct vfio_pci_config *config,
                        const struct vfio_pci_facts *facts, struct fdset *fds, struct error *error)
{
    struct iommu_device attached = {
        .sysfs = config->sysfs, .devid = facts->devid, .group = facts->group, .hwpt = facts->hwpt};

    attached.fd = fdset_take(fds, FDSET_ANY, error, "vfio/%s/device", device->device.id);
    if (attached.fd < 0)
        return attached.fd;
    device->device.fd = attached.fd;
    trace(vfio_adopt, device->device.id, device->device.host, attached.fd);
    if (iommu_set_adopt_device(device->parents.spaces, &config->space, &attached, error) < 0)
        return vfio_device_error(&device->device, error);
    return settle(device, &attached, error);
}

/* Takes the descriptors and compares what they are with what the facts say. */
static int adopt_descriptors(struct vfio_pci *device, const struct vfio_pci_config *config,
                             const struct vfio_pci_facts *facts, struct fdset *fds,
                             struct error *error)
{
    int result = adopt_device(device, config, facts, fds, error);

    device->device.regions[VFIO_PCI_ROM_REGION_INDEX].size = facts->rom_size;
    if (result == 0 && facts->rom_size == VFIO_ROM_UNKNOWN)
        result = vfio_device_query_rom(&device->device, error);
    if (result == 0)
        result = vfio_pci_examine(device, error);
    if (result == 0)
        result = vfio_vectors_adopt(device, fds, error);
    if (result == 0)
        result = vfio_intx_adopt(device, fds, error);
    if (result == 0)
        result = vfio_notifiers_adopt(device, fds, error);
    if (result == 0 && device->vector_count != facts->vector_count) {
        error_set(error, EINVAL, "%" PRIu32 " interrupt vectors were handed over, it has %u",
                  facts->vector_count, device->vector_count);
        return vfio_device_error(&device->device, error);
    }
    return result;
}

int vfio_pci_adopt(struct vfio_pci **device, const struct vfio_pci_config *config,
                   const struct vfio_pci_parents *parents, const struct vfio_pci_facts *facts,
                   struct fdset *fds, struct error *error)
{
    struct vfio_pci *new = allocate(config, parents);
    int result = adopt_descriptors(new, config, facts, fds, error);

    if (result == 0)
        result = join_bus(new, error);
    if (result < 0) {
        vfio_pci_destroy(new, true);
        return result;
    }
    *device = new;
    return 0;
}

int vfio_pci_describe(const struct vfio_pci *device, struct vfio_pci_facts *facts,
                      struct fdset *fds, struct error *error)
{
    const char *id = device->device.id;
    int result = fdset_add_copy(fds, device->device.fd, error, "vfio/%s/device", id);

    for (unsigned i = 0; i < device->vector_count && result == 0; i++)
        result = fdset_add_copy(fds, device->vectors[i].eventfd, error, "vfio/%s/irq/%u", id, i);
    if (result == 0)
        result = vfio_intx_describe(device, fds, error);
    if (result == 0)
        result = vfio_notifiers_describe(device, fds, error);
    *facts = (struct vfio_pci_facts){
        .devid = device->devid,
        .group = device->group,
        .hwpt = device->hwpt,
        .vector_count = device->vector_count,
        .rom_size = device->device.regions[VFIO_PCI_ROM_REGION_INDEX].size,
    };
    return result;
}

void vfio_pci_reset(struct vfio_pci *device)
{
    pci_bars_reset(&device->bars);
    vfio_vectors_reset(device);
    vfio_intx_disable(device);
    vfio_config_quiet(device);
    vfio_device_reset(&device->device);
    if (device->config.msi != 0)
        pci_msi_reset(&device->msi);
    if (device->config.msix != 0)
        pci_msix_reset(&device->msix);
    device->state.interrupt_line = 0;
    vfio_intx_enable(device);
}

void vfio_pci_destroy(struct vfio_pci *device, bool leave_running)
{
    if (device == NULL)
        return;
    if (device->on_bus)
        pci_host_remove(device->parents.pci, &device->function);
    pci_bars_update(&device->bars, 0);
    if (!leave_running && device->device.fd >= 0) {
        vfio_vectors_disarm(device);
        vfio_intx_disable(device);
        vfio_notifiers_disarm(device);
    }
    vfio_vectors_destroy(device);
    vfio_intx_destroy(device);
    vfio_notifiers_destroy(device);
    for (unsigned i = 0; i < PCI_BAR_COUNT; i++)
        vfio_region_munmap(&device->device.regions[i]);
    if (device->kvm_fd >= 0)
        kvm_vfio_remove(device->parents.vm, device->kvm_fd);
    close_fd(device->device.fd);
    free(device->rom);
    free(device);
}

void *vfio_pci_state(struct vfio_pci *device)
{
    return &device->state;
}

/* The BARs that the guest can reach, a bit each. */
static uint8_t mapped_bars(const struct vfio_pci *device)
{
    uint8_t bits = 0;

    for (unsigned i = 0; i < PCI_BARS_ALL; i++) {
        if (device->bars.bars[i].mapped)
            bits |= (uint8_t)(1u << i);
    }
    return bits;
}

int vfio_pci_apply_state(struct vfio_pci *device, struct error *error)
{
    unsigned count = device->config.msix != 0 ? device->msix.count : 0;
    uint8_t mapped_there = device->state.mapped, missing;
    int result;

    if (device->state.msix.count != count) {
        error_set(error, EINVAL, "the state has %" PRIu32 " MSI-X vectors, the device %u",
                  device->state.msix.count, count);
        device->state.msix.count = count;
        return vfio_device_error(&device->device, error);
    }
    if (device->state.armed_index == VFIO_ARMED_MSI && device->config.msi == 0) {
        error_set(error, EINVAL, "the state has MSI switched on, the device has none");
        return vfio_device_error(&device->device, error);
    }
    if (device->state.armed_index == VFIO_ARMED_INTX && device->config.pin == 0) {
        error_set(error, EINVAL, "the state has INTx switched on, the device has none");
        return vfio_device_error(&device->device, error);
    }
    pci_bars_update(&device->bars, vfio_config_decoding(device));
    /* a BAR that collides is the guest's affair, but one that did not in the other process and does
     * here would be lost by the hand-over */
    device->state.mapped = mapped_bars(device);
    missing = mapped_there & (uint8_t)~device->state.mapped;
    if (missing != 0) {
        error_set(error, EBUSY, "BAR %d cannot be mapped where the guest has it", ffs(missing) - 1);
        return vfio_device_error(&device->device, error);
    }
    result = vfio_vectors_apply(device, error);
    return result < 0 ? result : vfio_intx_apply(device, error);
}
