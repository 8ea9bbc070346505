/* SPDX-License-Identifier: Apache-2.0
 *
 * Regions of a VFIO device, see device.h: mapping them, and access by system call to what is not
 * mapped. Mapped while a machine is built; accessed on vCPU threads with the machine's lock held.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "base/trace.h"
#include "base/util.h"
#include "pci/registers.h"
#include "vfio/device.h"

void vfio_region_exclude(struct vfio_region *region, uint64_t offset, uint64_t size)
{
    uint64_t start = align_down(offset, PAGE_SIZE);
    uint64_t end = align_up(offset + size, PAGE_SIZE);
    struct vfio_area old[VFIO_AREAS_MAX];
    unsigned count = region->area_count;

    memcpy(old, region->areas, sizeof(old));
    region->area_count = 0;
    for (unsigned i = 0; i < count; i++) {
        uint64_t area_end = old[i].offset + old[i].size;
        uint64_t before_end = MIN(area_end, start), after_start = MAX(old[i].offset, end);

        assert(old[i].host == NULL);
        if (old[i].offset < before_end && region->area_count < VFIO_AREAS_MAX)
            region->areas[region->area_count++] =
                (struct vfio_area){.offset = old[i].offset, .size = before_end - old[i].offset};
        if (after_start < area_end && region->area_count < VFIO_AREAS_MAX)
            region->areas[region->area_count++] =
                (struct vfio_area){.offset = after_start, .size = area_end - after_start};
    }
}

int vfio_region_mmap(struct vfio_device *device, unsigned index, struct error *error)
{
    struct vfio_region *region = &device->regions[index];
    int protection = (region->flags & VFIO_REGION_INFO_FLAG_READ ? PROT_READ : 0) |
                     (region->flags & VFIO_REGION_INFO_FLAG_WRITE ? PROT_WRITE : 0);

    for (unsigned i = 0; i < region->area_count; i++) {
        struct vfio_area *area = &region->areas[i];
        void *host = mmap(NULL, area->size, protection, MAP_SHARED, device->fd,
                          (off_t)(region->file_offset + area->offset));

        if (host == MAP_FAILED) {
            error_set_errno(error, errno, "cannot map BAR %u at 0x%" PRIx64, index, area->offset);
            return vfio_device_error(device, error);
        }
        trace(vfio_region_map, device->id, index, area->offset, area->size);
        area->host = host;
    }
    return 0;
}

void vfio_region_munmap(struct vfio_region *region)
{
    for (unsigned i = 0; i < region->area_count; i++) {
        struct vfio_area *area = &region->areas[i];

        assert(!area->in_guest);
        if (area->host == NULL)
            continue;
        trace(vfio_region_unmap, region->file_offset + area->offset, area->size);
        munmap(area->host, area->size);
        area->host = NULL;
    }
}

int vfio_region_fetch(const struct vfio_device *device, unsigned index, uint64_t offset,
                      unsigned size, uint64_t *value)
{
    const struct vfio_region *region = &device->regions[index];
    ssize_t got;

    *value = access_mask(size);
    if (!range_fits(offset, size, region->size))
        return 0;
    got = pread(device->fd, value, size, (off_t)(region->file_offset + offset));
    if (got == (ssize_t)size)
        return 0;
    *value = access_mask(size);
    return got < 0 ? -errno : -EIO;
}

uint64_t vfio_region_read(const struct vfio_device *device, unsigned index, uint64_t offset,
                          unsigned size)
{
    uint64_t value;

    vfio_region_fetch(device, index, offset, size, &value);
    return value;
}

void vfio_region_write(const struct vfio_device *device, unsigned index, uint64_t offset,
                       unsigned size, uint64_t value)
{
    const struct vfio_region *region = &device->regions[index];

    if (!range_fits(offset, size, region->size) ||
        pwrite(device->fd, &value, size, (off_t)(region->file_offset + offset)) != (ssize_t)size)
        log_guest("%s: write of %u bytes to 0x%" PRIx64 " of region %u has no effect", device->id,
                  size, offset, index);
}
