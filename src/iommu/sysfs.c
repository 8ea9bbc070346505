/* SPDX-License-Identifier: Apache-2.0
 *
 * See sysfs.h. Called while a machine is built, by the back ends.
 */
#include "iommu/sysfs.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/util.h"

#define PATH_SIZE 320

const char *sysfs_name(const char *sysfs)
{
    const char *slash = sysfs != NULL ? strrchr(sysfs, '/') : NULL;

    if (sysfs == NULL)
        return "passed by descriptor";
    return slash != NULL ? slash + 1 : sysfs;
}

/* The last part of what a link of the device points to. @param name PATH_MAX bytes */
static bool read_link(const char *sysfs, const char *link, char *name)
{
    char path[PATH_SIZE];
    const char *last;
    ssize_t length;

    snprintf(path, sizeof(path), "%s/%s", sysfs, link);
    length = readlink(path, name, PATH_MAX - 1);
    name[MAX(length, 0)] = '\0';
    last = sysfs_name(name);
    memmove(name, last, strlen(last) + 1);
    return length > 0;
}

int sysfs_explain(const char *sysfs, const char *otherwise, struct error *error)
{
    const char *name = sysfs_name(sysfs);
    char driver[PATH_MAX], bus[PATH_MAX];

    if (access(sysfs, F_OK) != 0)
        return error_set(error, ENODEV, "there is no such device on this host");
    if (!read_link(sysfs, "driver", driver))
        return error_set(error, ENODEV,
                         "no driver is bound to it: bind it to vfio-pci (driverctl set-override %s "
                         "vfio-pci)",
                         name);
    /* other buses (mdev) have drivers of their own that are VFIO's */
    if (strstr(driver, "vfio") == NULL && read_link(sysfs, "subsystem", bus) &&
        strcmp(bus, "pci") == 0)
        return error_set(error, EBUSY,
                         "the host's driver '%.64s' has it: bind it to vfio-pci (driverctl "
                         "set-override %s vfio-pci)",
                         driver, name);
    return error_set(error, ENODEV, "driver '%.64s' %s", driver, otherwise);
}

static int explain_missing(const char *sysfs, struct error *error)
{
    return sysfs_explain(sysfs,
                         "offers no character device for it: the kernel needs "
                         "CONFIG_VFIO_DEVICE_CDEV (Linux 6.6)",
                         error);
}

/* @return 0; -ENOENT when there is none; or another negative errno */
static int find_cdev(const char *sysfs, char *name, size_t size)
{
    char path[PATH_SIZE];
    struct dirent *entry;
    DIR *directory;
    int result;

    name[0] = '\0';
    snprintf(path, sizeof(path), "%s/vfio-dev", sysfs);
    directory = opendir(path);
    if (directory == NULL)
        return -errno;
    errno = 0;
    while ((entry = readdir(directory)) != NULL) {
        if (strncmp(entry->d_name, "vfio", 4) == 0 && strlen(entry->d_name) < size)
            snprintf(name, size, "%s", entry->d_name);
    }
    result = -errno;
    closedir(directory);
    return result == 0 && name[0] == '\0' ? -ENOENT : result;
}

int sysfs_cdev(const char *sysfs, char *name, size_t size, struct error *error)
{
    int result = find_cdev(sysfs, name, size);

    if (result < 0 && sysfs_is_hidden(-result))
        return explain_missing(sysfs, error);
    if (result < 0)
        return error_set_errno(error, -result, "cannot look for its character device");
    return 0;
}

bool sysfs_is_hidden(int code)
{
    return code == ENOENT || code == EACCES;
}

int sysfs_cdev_number(const char *sysfs, dev_t *number)
{
    unsigned major_number, minor_number;
    char name[32], path[PATH_SIZE];
    int fields, result = find_cdev(sysfs, name, sizeof(name));
    FILE *file;

    if (result < 0)
        return result;
    snprintf(path, sizeof(path), "%s/vfio-dev/%s/dev", sysfs, name);
    file = fopen(path, "re");
    if (file == NULL)
        return -errno;
    fields = fscanf(file, "%u:%u", &major_number, &minor_number);
    fclose(file);
    if (fields != 2)
        return -EIO;
    *number = makedev(major_number, minor_number);
    return 0;
}

int sysfs_group(const char *sysfs, uint32_t *number, struct error *error)
{
    char name[PATH_MAX];
    char *end;

    if (!read_link(sysfs, "iommu_group", name))
        return sysfs_explain(sysfs,
                             "has it, but it is in no IOMMU group: switch the host's IOMMU on (in "
                             "the firmware, and intel_iommu=on on the kernel's command line)",
                             error);
    *number = (uint32_t)strtoul(name, &end, 10);
    if (*end != '\0')
        return error_set(error, EINVAL, "its IOMMU group has the strange name '%.64s'", name);
    return 0;
}
