/* SPDX-License-Identifier: Apache-2.0
 *
 * The VFIO device of a PCI function, see device.h: asking the kernel what it has. Called while a
 * machine is built, and for a guest's reset.
 */
#include "vfio/device.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/log.h"
#include "base/trace.h"
#include "base/util.h"

int vfio_device_error(const struct vfio_device *device, struct error *error)
{
    return error_prefix(error, "device '%s' (%s): ", device->id, device->host);
}

/* Adds an area of a region that may be mapped, if it is whole pages. */
static void add_area(struct vfio_region *region, uint64_t offset, uint64_t size)
{
    uint64_t start = align_up(offset, PAGE_SIZE);
    uint64_t end = align_down(offset + size, PAGE_SIZE);

    if (start >= end || region->area_count == VFIO_AREAS_MAX)
        return; /* what is not mapped is trapped */
    region->areas[region->area_count++] = (struct vfio_area){.offset = start, .size = end - start};
}

/* Reads the areas that the sparse-mmap capability lists. @return whether there is one */
static bool read_sparse(struct vfio_region *region, const struct vfio_region_info *info)
{
    const struct vfio_region_info_cap_sparse_mmap *sparse;
    const struct vfio_info_cap_header *header;
    uint32_t at = info->cap_offset;

    for (unsigned i = 0; at != 0 && i < 16; i++, at = header->next) {
        if (!range_fits(at, sizeof(*sparse), info->argsz))
            return false;
        header = (const void *)((const char *)info + at);
        if (header->id != VFIO_REGION_INFO_CAP_SPARSE_MMAP)
            continue;
        sparse = (const void *)header;
        if (!range_fits(at + sizeof(*sparse), sparse->nr_areas * sizeof(sparse->areas[0]),
                        info->argsz))
            return false;
        for (uint32_t k = 0; k < sparse->nr_areas; k++) {
            if (range_fits(sparse->areas[k].offset, sparse->areas[k].size, region->size))
                add_area(region, sparse->areas[k].offset, sparse->areas[k].size);
        }
        return true;
    }
    return false;
}

static void set_areas(struct vfio_region *region, const struct vfio_region_info *info)
{
    if (!(region->flags & VFIO_REGION_INFO_FLAG_MMAP))
        return;
    if ((region->flags & VFIO_REGION_INFO_FLAG_CAPS) && read_sparse(region, info))
        return;
    /* a region below a page can be mapped when the kernel has reserved the rest of its page */
    add_area(region, 0, align_up(region->size, PAGE_SIZE));
}

static int query_region(struct vfio_device *device, unsigned index, struct error *error)
{
    struct vfio_region *region = &device->regions[index];
    CLEANUP_FREE struct vfio_region_info *info = xcalloc(1, 4096);

    info->argsz = 4096;
    info->index = index;
    if (ioctl(device->fd, VFIO_DEVICE_GET_REGION_INFO, info) != 0) {
        if (errno == EINVAL && index == VFIO_PCI_VGA_REGION_INDEX)
            return 0;
        return error_set_errno(error, errno, "cannot ask for region %u", index);
    }
    if (info->argsz > 4096) { /* more capabilities than any device has: take them as none */
        info->argsz = sizeof(*info);
        info->cap_offset = 0;
    }
    region->size = info->size;
    region->file_offset = info->offset;
    region->flags = info->flags;
    if (index <= VFIO_PCI_BAR5_REGION_INDEX && region->size != 0)
        set_areas(region, info);
    return 0;
}

static int query_interrupts(struct vfio_device *device, unsigned index, unsigned *count,
                            uint32_t *flags, struct error *error)
{
    struct vfio_irq_info info = {.argsz = sizeof(info), .index = index};

    /* mediated devices refuse to speak of what they have not */
    if (ioctl(device->fd, VFIO_DEVICE_GET_IRQ_INFO, &info) != 0 && errno != EINVAL)
        return error_set_errno(error, errno, "cannot ask for interrupts");
    *count = info.flags & VFIO_IRQ_INFO_EVENTFD ? info.count : 0;
    *flags = info.flags;
    return 0;
}

/* Whether there is an interrupt of a kind that not every function or kernel has. */
static int query_optional(struct vfio_device *device, unsigned index, uint32_t wanted, bool *there,
                          struct error *error)
{
    unsigned count = 0;
    uint32_t flags = 0;
    int result = query_interrupts(device, index, &count, &flags, error);

    *there = result == 0 && count != 0 && (flags & wanted) == wanted;
    return result;
}

static int query_all_interrupts(struct vfio_device *device, struct error *error)
{
    const uint32_t level =
        VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED;
    uint32_t flags;
    int result =
        query_interrupts(device, VFIO_PCI_MSI_IRQ_INDEX, &device->msi_vectors, &flags, error);

    if (result == 0)
        result =
            query_interrupts(device, VFIO_PCI_MSIX_IRQ_INDEX, &device->msix_vectors, &flags, error);
    device->msix_dynamic = result == 0 && !(flags & VFIO_IRQ_INFO_NORESIZE);
    if (result == 0)
        result = query_optional(device, VFIO_PCI_INTX_IRQ_INDEX, level, &device->has_intx, error);
    if (result == 0)
        result = query_optional(device, VFIO_PCI_ERR_IRQ_INDEX, VFIO_IRQ_INFO_EVENTFD,
                                &device->has_error, error);
    if (result == 0)
        result = query_optional(device, VFIO_PCI_REQ_IRQ_INDEX, VFIO_IRQ_INFO_EVENTFD,
                                &device->has_request, error);
    return result;
}

static int query(struct vfio_device *device, struct error *error)
{
    struct vfio_device_info info = {.argsz = sizeof(info)};
    int result;

    if (ioctl(device->fd, VFIO_DEVICE_GET_INFO, &info) != 0)
        return error_set_errno(error, errno, "cannot ask what it is");
    if (!(info.flags & VFIO_DEVICE_FLAGS_PCI) || info.num_regions <= VFIO_PCI_CONFIG_REGION_INDEX ||
        info.num_irqs <= VFIO_PCI_MSIX_IRQ_INDEX)
        return error_set(error, ENOTSUP, "it is no PCI device of VFIO");
    device->can_reset = info.flags & VFIO_DEVICE_FLAGS_RESET;

    for (unsigned i = 0; i < MIN(info.num_regions, (uint32_t)VFIO_PCI_NUM_REGIONS); i++) {
        result = i == VFIO_PCI_ROM_REGION_INDEX ? 0 : query_region(device, i, error);
        if (result < 0)
            return result;
    }
    return query_all_interrupts(device, error);
}

int vfio_device_query(struct vfio_device *device, struct error *error)
{
    return query(device, error) < 0 ? vfio_device_error(device, error) : 0;
}

int vfio_device_query_rom(struct vfio_device *device, struct error *error)
{
    if (query_region(device, VFIO_PCI_ROM_REGION_INDEX, error) < 0)
        return vfio_device_error(device, error);
    return 0;
}

#define IRQS_MAX 2048u /* PCI's limit for MSI-X */

int vfio_device_set_irqs(const struct vfio_device *device, unsigned index, uint32_t action,
                         unsigned start, const int32_t *eventfds, unsigned count)
{
    uint8_t buffer[sizeof(struct vfio_irq_set) + IRQS_MAX * sizeof(int32_t)]
        __attribute__((aligned(8)));
    struct vfio_irq_set *set = (struct vfio_irq_set *)buffer;
    int result;

    assert(count <= IRQS_MAX);
    *set = (struct vfio_irq_set){
        .argsz = (uint32_t)(sizeof(*set) + count * sizeof(int32_t)),
        .flags = action | (count == 0 ? VFIO_IRQ_SET_DATA_NONE : VFIO_IRQ_SET_DATA_EVENTFD),
        .index = index,
        .start = start,
        .count = count,
    };
    if (count != 0)
        memcpy(set->data, eventfds, count * sizeof(int32_t));
    result = ioctl(device->fd, VFIO_DEVICE_SET_IRQS, set);
    result = result < 0 ? -errno : result;
    trace(vfio_set_irqs, device->id, index, start, count, result);
    return result;
}

int vfio_device_unmask_intx(const struct vfio_device *device)
{
    struct vfio_irq_set set = {
        .argsz = sizeof(set),
        .flags = VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_DATA_NONE,
        .index = VFIO_PCI_INTX_IRQ_INDEX,
        .count = 1,
    };

    return ioctl(device->fd, VFIO_DEVICE_SET_IRQS, &set) == 0 ? 0 : -errno;
}

void vfio_device_reset(struct vfio_device *device)
{
    int result;

    if (!device->can_reset)
        return;
    result = ioctl(device->fd, VFIO_DEVICE_RESET);
    trace(vfio_reset, device->id, result == 0 ? 0 : -errno);
    if (result != 0)
        log_warning("device '%s' (%s): cannot reset it: %s", device->id, device->host,
                    strerror(errno));
}
