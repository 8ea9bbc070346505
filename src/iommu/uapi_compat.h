/* SPDX-License-Identifier: Apache-2.0
 *
 * What iommu/ uses of the kernel's interface to iommufd (Linux 6.2 to 6.13), of VFIO's to bind a
 * device to it (6.6) and to get at a device's memory as a dma-buf (6.19). Headers of build hosts
 * can be older than the kernel that baton runs on, and half of this may be there and half not, so
 * the names are our own and always the ones used. Layouts are the kernel's; the numbers of these
 * calls are in base/uapi_ioctls.h.
 */
#pragma once

#include <linux/types.h>

#include "base/uapi_ioctls.h"

/* iommufd: every struct starts with its own size; unknown sizes are padded by the kernel. */
struct uapi_ioas_alloc {
    __u32 size;
    __u32 flags;
    __u32 out_ioas_id;
};

#define UAPI_IOAS_MAP_FIXED_IOVA (1u << 0)
#define UAPI_IOAS_MAP_WRITEABLE  (1u << 1)
#define UAPI_IOAS_MAP_READABLE   (1u << 2)

struct uapi_ioas_map_file {
    __u32 size;
    __u32 flags;
    __u32 ioas_id;
    __s32 fd;
    __aligned_u64 start;
    __aligned_u64 length;
    __aligned_u64 iova;
};

struct uapi_ioas_copy {
    __u32 size;
    __u32 flags; /* as for mapping */
    __u32 dst_ioas_id;
    __u32 src_ioas_id;
    __aligned_u64 length;
    __aligned_u64 dst_iova;
    __aligned_u64 src_iova;
};

struct uapi_ioas_unmap {
    __u32 size;
    __u32 ioas_id;
    __aligned_u64 iova;
    __aligned_u64 length;
};

struct uapi_ioas_change_process {
    __u32 size;
    __u32 reserved;
};

struct uapi_iommu_destroy {
    __u32 size;
    __u32 id;
};

#define UAPI_HWPT_ALLOC_DIRTY_TRACKING (1u << 1)

struct uapi_hwpt_alloc { /* as of Linux 6.6; what later ones have added is zero */
    __u32 size;
    __u32 flags;
    __u32 dev_id;
    __u32 pt_id;
    __u32 out_hwpt_id;
    __u32 reserved;
    __u32 data_type;
    __u32 data_len;
    __aligned_u64 data_uptr;
};

#define UAPI_HW_CAP_DIRTY_TRACKING (UINT64_C(1) << 0)

struct uapi_hw_info {
    __u32 size;
    __u32 flags;
    __u32 dev_id;
    __u32 data_len;
    __aligned_u64 data_uptr;
    __u32 out_data_type;
    __u32 reserved;
    __aligned_u64 out_capabilities;
};

#define UAPI_HWPT_GET_DIRTY_NO_CLEAR 1u

struct uapi_hwpt_get_dirty {
    __u32 size;
    __u32 hwpt_id;
    __u32 flags;
    __u32 reserved;
    __aligned_u64 iova;
    __aligned_u64 length;
    __aligned_u64 page_size;
    __aligned_u64 data;
};

/* VFIO: every struct starts with argsz. */
struct uapi_vfio_bind_iommufd {
    __u32 argsz;
    __u32 flags;
    __s32 iommufd;
    __u32 out_devid;
};

struct uapi_vfio_attach_iommufd_pt {
    __u32 argsz;
    __u32 flags;
    __u32 pt_id;
};

#define UAPI_VFIO_FEATURE_GET     (1u << 16)
#define UAPI_VFIO_FEATURE_DMA_BUF 11u /* Linux 6.19 */

struct uapi_vfio_dma_buf { /* a struct vfio_device_feature with one range of a region */
    __u32 argsz;
    __u32 feature;
    __u32 region_index;
    __u32 open_flags;
    __u32 flags;
    __u32 nr_ranges;
    __aligned_u64 offset;
    __aligned_u64 length;
};

_Static_assert(sizeof(struct uapi_ioas_alloc) == 12, "kernel layout");
_Static_assert(sizeof(struct uapi_ioas_map_file) == 40, "kernel layout");
_Static_assert(sizeof(struct uapi_ioas_copy) == 40, "kernel layout");
_Static_assert(sizeof(struct uapi_ioas_change_process) == 8, "kernel layout");
_Static_assert(sizeof(struct uapi_ioas_unmap) == 24, "kernel layout");
_Static_assert(sizeof(struct uapi_iommu_destroy) == 8, "kernel layout");
_Static_assert(sizeof(struct uapi_hwpt_alloc) == 40, "kernel layout");
_Static_assert(sizeof(struct uapi_hw_info) == 40, "kernel layout");
_Static_assert(sizeof(struct uapi_hwpt_get_dirty) == 48, "kernel layout");
_Static_assert(sizeof(struct uapi_vfio_dma_buf) == 40, "kernel layout");
_Static_assert(sizeof(struct uapi_vfio_bind_iommufd) == 16, "kernel layout");
_Static_assert(sizeof(struct uapi_vfio_attach_iommufd_pt) == 12, "kernel layout");
