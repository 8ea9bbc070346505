/* SPDX-License-Identifier: Apache-2.0
 *
 * The VFIO character device of a PCI function, see device.h: finding and opening it, and asking
 * the kernel what it has. Called while a machine is built, and for a guest's reset.
 */
#include "vfio/device.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"

#define PATH_SIZE 320

int vfio_device_error(const struct vfio_device *device, struct error *error)
{
    return error_prefix(error, "device '%s' (%s): ", device->id, device->host);
}

/* Which driver has the function: "" for none. @param name PATH_MAX bytes */
static void driver_of(const struct vfio_device *device, char *name)
{
    char path[PATH_SIZE];
    const char *slash;
    ssize_t length;

    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/driver", device->host);
    length = readlink(path, name, PATH_MAX - 1);
    name[MAX(length, 0)] = '\0';
    slash = strrchr(name, '/');
    if (slash != NULL)
        memmove(name, slash + 1, strlen(slash));
}

/* Says why a function has no VFIO character device. */
static int explain_missing(const struct vfio_device *device, struct error *error)
{
    char path[PATH_SIZE], driver[PATH_MAX];

    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s", device->host);
    if (access(path, F_OK) != 0)
        return error_set(error, ENODEV, "there is no such PCI device on this host");
    driver_of(device, driver);
    if (driver[0] == '\0')
        return error_set(error, ENODEV,
                         "no driver is bound to it: bind it to vfio-pci (driverctl set-override %s "
                         "vfio-pci)",
                         device->host);
    if (strstr(driver, "vfio") == NULL)
        return error_set(error, EBUSY,
                         "the host's driver '%.64s' has it: bind it to vfio-pci (driverctl "
                         "set-override %s vfio-pci)",
                         driver, device->host);
    return error_set(error, ENODEV,
                     "driver '%.64s' offers no character device for it: the kernel needs "
                     "CONFIG_VFIO_DEVICE_CDEV (Linux 6.6)",
                     driver);
}

/* Finds "vfioN", the name of the function's character device. */
static int find_cdev(const struct vfio_device *device, char *name, size_t size, struct error *error)
{
    char path[PATH_SIZE];
    struct dirent *entry;
    DIR *directory;

    name[0] = '\0';
    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", device->host);
    directory = opendir(path);
    if (directory == NULL)
        return explain_missing(device, error);
    while ((entry = readdir(directory)) != NULL) {
        if (strncmp(entry->d_name, "vfio", 4) == 0 && strlen(entry->d_name) < size)
            snprintf(name, size, "%s", entry->d_name);
    }
    closedir(directory);
    return name[0] != '\0' ? 0 : explain_missing(device, error);
}

int vfio_device_open(struct vfio_device *device, struct error *error)
{
    char name[32], path[PATH_SIZE];

    if (find_cdev(device, name, sizeof(name), error) < 0)
        return vfio_device_error(device, error);
    snprintf(path, sizeof(path), "/dev/vfio/devices/%s", name);
    device->fd = open(path, O_RDWR | O_CLOEXEC);
    if (device->fd >= 0)
        return 0;

    if (errno == EACCES || errno == EPERM)
        error_set(error, errno, "no permission to open %s: give this user read and write access",
                  path);
    else if (errno == ENOENT)
        error_set(error, errno,
                  "%s is missing: the kernel needs CONFIG_VFIO_DEVICE_CDEV (Linux 6.6), and /dev "
                  "must be this host's",
                  path);
    else
        error_set_errno(error, errno, "cannot open %s", path);
    return vfio_device_error(device, error);
}

/* Reads the device number of the function's character device from sysfs. */
static int expected_number(const struct vfio_device *device, dev_t *number)
{
    unsigned major_number, minor_number;
    char name[32], path[PATH_SIZE];
    struct error ignored = {0};
    FILE *file;
    int fields;

    if (find_cdev(device, name, sizeof(name), &ignored) < 0)
        return -ENOENT;
    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev/%s/dev", device->host, name);
    file = fopen(path, "re");
    if (file == NULL)
        return -errno;
    fields = fscanf(file, "%u:%u", &major_number, &minor_number);
    fclose(file);
    if (fields != 2)
        return -ENOENT;
    *number = makedev(major_number, minor_number);
    return 0;
}

int vfio_device_check_identity(const struct vfio_device *device, struct error *error)
{
    struct stat status;
    dev_t expected = 0;

    if (fstat(device->fd, &status) != 0)
        return error_set_errno(error, errno, "cannot examine the descriptor handed over");
    if (!S_ISCHR(status.st_mode))
        return error_set(error, EINVAL, "the descriptor handed over is no VFIO device");
    /* without sysfs there is nothing to compare with, and the descriptor still says what it is */
    if (expected_number(device, &expected) == 0 && status.st_rdev != expected)
        return error_set(error, EINVAL,
                         "the descriptor handed over belongs to another device than %s",
                         device->host);
    return 0;
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

    if (ioctl(device->fd, VFIO_DEVICE_GET_IRQ_INFO, &info) != 0)
        return error_set_errno(error, errno, "cannot ask for interrupts");
    *count = info.flags & VFIO_IRQ_INFO_EVENTFD ? info.count : 0;
    *flags = info.flags;
    return 0;
}

static int query(struct vfio_device *device, struct error *error)
{
    struct vfio_device_info info = {.argsz = sizeof(info)};
    uint32_t flags;
    int result;

    if (ioctl(device->fd, VFIO_DEVICE_GET_INFO, &info) != 0)
        return error_set_errno(error, errno, "cannot ask what it is");
    if (!(info.flags & VFIO_DEVICE_FLAGS_PCI) || info.num_regions <= VFIO_PCI_CONFIG_REGION_INDEX ||
        info.num_irqs <= VFIO_PCI_MSIX_IRQ_INDEX)
        return error_set(error, ENOTSUP, "it is no PCI device of VFIO");
    device->can_reset = info.flags & VFIO_DEVICE_FLAGS_RESET;

    for (unsigned i = 0; i < MIN(info.num_regions, (uint32_t)VFIO_PCI_NUM_REGIONS); i++) {
        result = query_region(device, i, error);
        if (result < 0)
            return result;
    }
    result = query_interrupts(device, VFIO_PCI_MSI_IRQ_INDEX, &device->msi_vectors, &flags, error);
    if (result < 0)
        return result;
    result =
        query_interrupts(device, VFIO_PCI_MSIX_IRQ_INDEX, &device->msix_vectors, &flags, error);
    device->msix_dynamic = !(flags & VFIO_IRQ_INFO_NORESIZE);
    return result;
}

int vfio_device_query(struct vfio_device *device, struct error *error)
{
    return query(device, error) < 0 ? vfio_device_error(device, error) : 0;
}

void vfio_device_reset(struct vfio_device *device)
{
    if (!device->can_reset)
        return;
    if (ioctl(device->fd, VFIO_DEVICE_RESET) != 0)
        log_warning("device '%s' (%s): cannot reset it: %s", device->id, device->host,
                    strerror(errno));
}
