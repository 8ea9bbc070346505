/* SPDX-License-Identifier: Apache-2.0
 *
 * See fake_device.h. Used by the targets vfio and adopt. One thread.
 */
#include "fake_device.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/util.h"
#include "pci/host.h"

#define CONFIG_AT   0x100000u /* where configuration space is in the memfd */
#define DEVICE_SIZE (CONFIG_AT + PCI_CONFIG_SIZE)

struct fake_device fake_device;

#define ACCESS (VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE)

const struct fake_region fake_regions[VFIO_PCI_NUM_REGIONS] = {
    [0] = {0, 0x4000, ACCESS | VFIO_REGION_INFO_FLAG_MMAP},
    [2] = {0x10000, 256, ACCESS | VFIO_REGION_INFO_FLAG_MMAP},
    [3] = {0x20000, 256, ACCESS},
    [4] = {0x30000, 32, ACCESS},
    [5] = {0x40000, 0x1000, VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_MMAP},
    [VFIO_PCI_ROM_REGION_INDEX] = {0x50000, 0x1800, VFIO_REGION_INFO_FLAG_READ},
    [VFIO_PCI_CONFIG_REGION_INDEX] = {CONFIG_AT, PCI_CONFIG_SIZE, ACCESS},
};

/* All but the pages of the MSI-X table. */
static void put_sparse(struct vfio_region_info *info)
{
    struct vfio_region_info_cap_sparse_mmap *sparse = (void *)(info + 1);

    info->flags |= VFIO_REGION_INFO_FLAG_CAPS;
    info->cap_offset = sizeof(*info);
    sparse->header.id = VFIO_REGION_INFO_CAP_SPARSE_MMAP;
    sparse->nr_areas = 2;
    sparse->areas[0] = (struct vfio_region_sparse_mmap_area){.offset = 0, .size = 0x2000};
    sparse->areas[1] = (struct vfio_region_sparse_mmap_area){.offset = 0x3000, .size = 0x1000};
}

static int get_region(struct vfio_region_info *info)
{
    const struct fake_region *region = &fake_regions[info->index];

    info->offset = region->offset;
    info->size = region->size;
    info->flags = region->flags;
    if (fake_device.kind & DEVICE_NO_MMAP)
        info->flags &= ~(uint32_t)VFIO_REGION_INFO_FLAG_MMAP;
    if (info->index == VFIO_PCI_CONFIG_REGION_INDEX && (fake_device.kind & DEVICE_SHORT))
        info->size = PCI_CFG_SPACE_SIZE;
    if (info->index == 0 && (fake_device.kind & DEVICE_SPARSE))
        put_sparse(info);
    return 0;
}

static unsigned irq_count(unsigned index)
{
    switch (index) {
    case VFIO_PCI_MSI_IRQ_INDEX:
        return fake_device.msi_vectors;
    case VFIO_PCI_MSIX_IRQ_INDEX:
        return fake_device.msix_vectors;
    default:
        return (fake_device.kind & DEVICE_INTX) ? 1 : 0;
    }
}

static int get_irq(struct vfio_irq_info *info)
{
    info->count = irq_count(info->index);
    info->flags = VFIO_IRQ_INFO_EVENTFD;
    if (info->index == VFIO_PCI_INTX_IRQ_INDEX)
        info->flags |= VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED;
    if (fake_device.kind & DEVICE_NO_RESIZE)
        info->flags |= VFIO_IRQ_INFO_NORESIZE;
    return 0;
}

/* What the kernel refuses is a mistake of ours, unless a peer has lied about what is armed. */
static int refuse(int code)
{
    assert(fake_device.lied_to);
    errno = code;
    return -1;
}

static int unmask_intx(const struct vfio_irq_set *set)
{
    if (set->index != VFIO_PCI_INTX_IRQ_INDEX || fake_device.armed != set->index)
        return refuse(EINVAL);
    if ((fake_device.kind & DEVICE_NO_RESAMPLE) && (set->flags & VFIO_IRQ_SET_DATA_EVENTFD)) {
        errno = ENOTTY;
        return -1;
    }
    return 0;
}

static int set_irqs(const struct vfio_irq_set *set)
{
    if (set->flags & VFIO_IRQ_SET_ACTION_UNMASK)
        return unmask_intx(set);
    if (set->index == VFIO_PCI_ERR_IRQ_INDEX || set->index == VFIO_PCI_REQ_IRQ_INDEX)
        return 0;
    if (fake_device.armed != FAKE_DEVICE_UNARMED && fake_device.armed != set->index)
        return refuse(EINVAL);
    if (set->count == 0) {
        if (fake_device.armed != set->index)
            return refuse(EINVAL);
        fake_device.armed = FAKE_DEVICE_UNARMED;
        return 0;
    }
    if (!range_fits(set->start, set->count, irq_count(set->index))) {
        errno = EINVAL; /* the device's capability promises more */
        return -1;
    }
    if ((fake_device.kind & DEVICE_SCARCE) && set->start + set->count > 1)
        return 1;
    fake_device.armed = set->index;
    return 0;
}

int fake_device_ioctl(unsigned long request, void *argument)
{
    switch (request) {
    case VFIO_DEVICE_GET_INFO:
        *(struct vfio_device_info *)argument =
            (struct vfio_device_info){.flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET,
                                      .num_regions = VFIO_PCI_NUM_REGIONS,
                                      .num_irqs = VFIO_PCI_NUM_IRQS};
        return 0;
    case VFIO_DEVICE_GET_REGION_INFO:
        return get_region(argument);
    case VFIO_DEVICE_GET_IRQ_INFO:
        return get_irq(argument);
    case VFIO_DEVICE_SET_IRQS:
        return set_irqs(argument);
    case VFIO_DEVICE_RESET:
        return 0;
    default:
        errno = ENOTTY;
        return -1;
    }
}

struct config_dword {
    unsigned offset;
    uint32_t value;
};

/* It hides: EA, SR-IOV. */
static const struct config_dword sound_config[] = {
    {PCI_VENDOR_ID, 0x12345678},
    {PCI_COMMAND, PCI_STATUS_CAP_LIST << 16},
    {PCI_BASE_ADDRESS_0, PCI_BASE_ADDRESS_MEM_TYPE_64},
    {PCI_BASE_ADDRESS_4, PCI_BASE_ADDRESS_SPACE_IO},
    {PCI_CAPABILITY_LIST, 0x40},
    {PCI_INTERRUPT_LINE, 1 << 8},
    {0x40, PCI_CAP_ID_EA | 0x50 << 8},
    {0x50, PCI_CAP_ID_PM | 0x60 << 8},
    {0x60, PCI_CAP_ID_MSIX | 0x80 << 8},
    {0x64, 0x2000},
    {0x68, 0x3000},
    {0x80, PCI_CAP_ID_EXP | 0xc0 << 8 | 2 << 16},
    {0xc0, PCI_CAP_ID_MSI | (PCI_MSI_FLAGS_64BIT | PCI_MSI_FLAGS_MASKBIT | 2 << 1) << 16},
    {0x100, PCI_EXT_CAP_ID_SRIOV | 1 << 16 | 0x140u << 20},
    {0x140, PCI_EXT_CAP_ID_ERR | 2 << 16 | 0x1c0u << 20},
    {0x1c0, PCI_EXT_CAP_ID_DSN | 1 << 16},
};

void fake_device_put(unsigned offset, uint32_t value)
{
    ssize_t written = pwrite(fake_device.fd, &value, sizeof(value), CONFIG_AT + offset);

    assert(written == sizeof(value));
}

void fake_device_make(unsigned kind, unsigned msi_vectors, unsigned msix_vectors)
{
    int fd = fake_device.fd;

    if (fd <= 0) {
        fd = memfd_create("device", MFD_CLOEXEC);
        assert(fd >= 0);
    }
    fake_device = (struct fake_device){.kind = kind,
                                       .msi_vectors = msi_vectors,
                                       .msix_vectors = msix_vectors,
                                       .fd = fd,
                                       .armed = FAKE_DEVICE_UNARMED};
    if (ftruncate(fd, CONFIG_AT) < 0 || ftruncate(fd, DEVICE_SIZE) < 0)
        abort();
    for (size_t i = 0; i < ARRAY_SIZE(sound_config); i++)
        fake_device_put(sound_config[i].offset, sound_config[i].value);
}
