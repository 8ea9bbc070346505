/* SPDX-License-Identifier: Apache-2.0
 *
 * Between iommu.c and its back ends: the table of operations and what they work on. Private to
 * iommu/. Errors set here name what failed; iommu.c puts the address space in front.
 */
#pragma once

#include "iommu/iommu.h"

struct iommu {
    const struct iommu_ops *ops;
    int fd;
    bool owner; /**< mappings are accounted to this process, as far as it knows */
    struct iommu_facts facts;
};

struct iommu_ops {
    int (*create)(struct iommu *iommu, struct error *error);
    int (*map_file)(struct iommu *iommu, const struct iommu_mapping *mapping, int fd,
                    struct error *error);
    int (*attach)(struct iommu *iommu, int device_fd, const char *device, uint32_t *devid,
                  struct error *error);
    int (*take_ownership)(struct iommu *iommu, struct error *error);
    int (*probe_ownership)(struct iommu *iommu, struct error *error);
};

extern const struct iommu_ops iommufd_ops;
