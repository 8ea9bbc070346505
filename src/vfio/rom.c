/* SPDX-License-Identifier: Apache-2.0
 *
 * The expansion ROM of a passed-through function, see function.h. The kernel switches the device's
 * ROM decoder on and off around every read of it, and a guest reads a dword at a time; so the ROM,
 * which does not change, is read as a whole when the guest first looks at it, and the guest reads
 * the copy. Called on vCPU threads with the machine's lock held.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "pci/registers.h"
#include "vfio/function.h"

/* Reads all of it. Nothing is kept when the device gives nothing: the guest may not have switched
 * memory decoding on yet, without which the kernel reads no ROM. A process that has adopted the
 * device does not know where in its descriptor the ROM is, and asks. */
static void fetch(struct vfio_pci *device)
{
    const struct vfio_region *region = &device->device.regions[VFIO_PCI_ROM_REGION_INDEX];
    struct error error = {0};
    uint8_t *bytes;
    size_t used = 0;
    ssize_t got;

    if (vfio_device_query_rom(&device->device, &error) < 0 || region->size > VFIO_ROM_MAX) {
        log_guest("%s: its ROM cannot be read: %s", device->device.id, error.message);
        return;
    }
    bytes = xcalloc(1, MAX(region->size, 1u));

    do {
        got = pread(device->device.fd, bytes + used, region->size - used,
                    (off_t)(region->file_offset + used));
        used += (size_t)MAX(got, 0);
    } while (got > 0 && used < region->size);
    if (used == 0) {
        free(bytes);
        return;
    }
    device->rom = bytes;
    device->rom_size = used;
}

uint64_t vfio_rom_read(struct vfio_pci *device, uint64_t offset, unsigned size)
{
    uint64_t value = 0;

    if (device->rom == NULL)
        fetch(device);
    if (device->rom == NULL || !range_fits(offset, size, device->rom_size))
        return access_mask(size);
    memcpy(&value, device->rom + offset, size);
    return value;
}
