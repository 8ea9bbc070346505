/* SPDX-License-Identifier: Apache-2.0
 *
 * What the host's sysfs says of a device that is to be passed through. Private to iommu/. Reads
 * only. @param sysfs of each function: the device's directory, see struct iommu_device.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/** @return the host's name of the device, "0000:01:00.0": the last part of the path; for NULL, a
 * description */
const char *sysfs_name(const char *sysfs);

/** Finds "vfioN", the name of the VFIO character device (Linux 6.6). @return 0; -ENODEV, -EBUSY
 * when there is none; another negative errno when that could not be found out */
int sysfs_cdev(const char *sysfs, char *name, size_t size, struct error *error);

/** Reads the device number of the character device. @return 0; -ENOENT or -EACCES when it is not to
 * be had; another negative errno */
int sysfs_cdev_number(const char *sysfs, dev_t *number);

/** @return whether a file that could not be opened, errno @p code, is one that this host does not
 * show */
bool sysfs_is_hidden(int code);

/** Finds the number of the device's IOMMU group. @return 0; -ENODEV, -EBUSY when it has none */
int sysfs_group(const char *sysfs, uint32_t *number, struct error *error);

/**
 * Says why a device cannot be had through VFIO: it is not there, has no driver, or the host's own.
 * @param otherwise what to say when its driver is VFIO's
 */
int sysfs_explain(const char *sysfs, const char *otherwise, struct error *error);
