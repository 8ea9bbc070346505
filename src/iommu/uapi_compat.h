/* SPDX-License-Identifier: Apache-2.0
 *
 * What iommu/ uses of the kernel's interface to iommufd (Linux 6.2 to 6.13) and of VFIO's to bind a
 * device to it (6.6). Headers of build hosts can be older than the kernel that baton runs on, and
 * half of this may be there and half not, so the names are our own and always the ones used.
 * Layouts and numbers are the kernel's.
 */
#pragma once

#include <linux/ioctl.h>
#include <linux/types.h>
#include <linux/vfio.h>

/* iommufd: every struct starts with its own size; unknown sizes are padded by the kernel. */
#define UAPI_IOMMUFD_TYPE        ';'
#define UAPI_IOAS_ALLOC          _IO(UAPI_IOMMUFD_TYPE, 0x81)
#define UAPI_IOAS_MAP_FILE       _IO(UAPI_IOMMUFD_TYPE, 0x8f) /* Linux 6.13 */
#define UAPI_IOAS_CHANGE_PROCESS _IO(UAPI_IOMMUFD_TYPE, 0x92) /* Linux 6.13 */

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

struct uapi_ioas_change_process {
    __u32 size;
    __u32 reserved;
};

/* VFIO: every struct starts with argsz. */
#define UAPI_VFIO_BIND_IOMMUFD      _IO(VFIO_TYPE, VFIO_BASE + 18)
#define UAPI_VFIO_ATTACH_IOMMUFD_PT _IO(VFIO_TYPE, VFIO_BASE + 19)

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

_Static_assert(sizeof(struct uapi_ioas_alloc) == 12, "kernel layout");
_Static_assert(sizeof(struct uapi_ioas_map_file) == 40, "kernel layout");
_Static_assert(sizeof(struct uapi_ioas_change_process) == 8, "kernel layout");
_Static_assert(sizeof(struct uapi_vfio_bind_iommufd) == 16, "kernel layout");
_Static_assert(sizeof(struct uapi_vfio_attach_iommufd_pt) == 12, "kernel layout");
