/* SPDX-License-Identifier: Apache-2.0
 *
 * Numbers of the ioctls of iommufd, VFIO and KVM that headers of build hosts may lack, under names
 * of our own. Used by iommu/ (iommu/uapi_compat.h has the structures), by kvm/warm_up.c, and by the
 * list of what a thread may call (sandbox_rules.c). Numbers are the kernel's.
 */
#pragma once

#include <linux/ioctl.h>
#include <linux/kvm.h>
#include <linux/vfio.h>

/* iommufd, Linux 6.2 unless said. */
#define UAPI_IOMMUFD_TYPE        ';'
#define UAPI_IOMMU_DESTROY       _IO(UAPI_IOMMUFD_TYPE, 0x80)
#define UAPI_IOAS_ALLOC          _IO(UAPI_IOMMUFD_TYPE, 0x81)
#define UAPI_IOAS_COPY           _IO(UAPI_IOMMUFD_TYPE, 0x83)
#define UAPI_IOAS_UNMAP          _IO(UAPI_IOMMUFD_TYPE, 0x86)
#define UAPI_HWPT_ALLOC          _IO(UAPI_IOMMUFD_TYPE, 0x89) /* Linux 6.6 */
#define UAPI_GET_HW_INFO         _IO(UAPI_IOMMUFD_TYPE, 0x8a) /* Linux 6.6 */
#define UAPI_HWPT_GET_DIRTY      _IO(UAPI_IOMMUFD_TYPE, 0x8c) /* Linux 6.7 */
#define UAPI_IOAS_MAP_FILE       _IO(UAPI_IOMMUFD_TYPE, 0x8f) /* Linux 6.13 */
#define UAPI_IOAS_CHANGE_PROCESS _IO(UAPI_IOMMUFD_TYPE, 0x92) /* Linux 6.13 */

/* VFIO. */
#define UAPI_VFIO_DEVICE_FEATURE    _IO(VFIO_TYPE, VFIO_BASE + 17)
#define UAPI_VFIO_BIND_IOMMUFD      _IO(VFIO_TYPE, VFIO_BASE + 18) /* Linux 6.6 */
#define UAPI_VFIO_ATTACH_IOMMUFD_PT _IO(VFIO_TYPE, VFIO_BASE + 19) /* Linux 6.6 */

/* KVM. The structure has 64 bytes. */
#define UAPI_KVM_PRE_FAULT_MEMORY _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0xd5, 64) /* Linux 6.11 */
