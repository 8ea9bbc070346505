/* SPDX-License-Identifier: Apache-2.0
 *
 * The iommufd back end of iommu.h: one IOAS in a /dev/iommu context. Called through the table of
 * operations only.
 *
 * Who owns the mappings
 *
 * RAM is mapped by file (IOMMU_IOAS_MAP_FILE), so the kernel holds pages of the memfd and no
 * address of any process; what ties a mapping to a process is only the accounting of its pinned
 * pages. IOMMU_IOAS_CHANGE_PROCESS moves that to the caller, for every IOAS of the context, all or
 * nothing:
 *
 *  - it fails with EINVAL, before it changes anything, when any mapping is not by file (by address,
 *    or a dma-buf). baton makes no such mapping: BARs are not mapped for peer-to-peer;
 *  - pages mapped by a process with CAP_IPC_LOCK are not accounted, then or ever;
 *  - others count against the user's total and the RLIMIT_MEMLOCK of the new process, and the new
 *    charge is made before the old one is given back: while it moves between two processes of one
 *    user, everything counts twice;
 *  - called by the process that owns everything already it charges nothing and replaces each
 *    reference to the process by the same one.
 *
 * So a process that lacks CAP_IPC_LOCK needs a limit of twice the guest's memory, the new one to
 * take the mappings and the old one to take them back when the hand-over is undone.
 *
 * The last point makes it a probe for the owner: the real code runs, over the real mappings, with
 * no effect. For a process that does not own them it would be the real thing, so that one asks with
 * a reserved field set: a kernel that knows the call says EOPNOTSUPP, one that does not ENOTTY.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"
#include "iommu/ops.h"
#include "iommu/uapi_compat.h"

#define IOMMU_DEVICE "/dev/iommu"

/* The kernel's own test when it pins pages. Without /proc: works in any container. */
static bool may_lock_memory(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {0};

    if (syscall(SYS_capget, &header, data) != 0)
        return false;
    return data[CAP_TO_INDEX(CAP_IPC_LOCK)].effective & CAP_TO_MASK(CAP_IPC_LOCK);
}

static int iommufd_create(struct iommu *iommu, struct error *error)
{
    struct uapi_ioas_alloc alloc = {.size = sizeof(alloc)};

    iommu->fd = open(IOMMU_DEVICE, O_RDWR | O_CLOEXEC);
    if (iommu->fd < 0 && (errno == ENOENT || errno == ENODEV || errno == ENXIO))
        return error_set(error, errno,
                         IOMMU_DEVICE " is not there: the kernel needs CONFIG_IOMMUFD (Linux 6.6; "
                                      "load the module iommufd)");
    if (iommu->fd < 0 && (errno == EACCES || errno == EPERM))
        return error_set(error, errno,
                         "no permission to open " IOMMU_DEVICE
                         ": give this user read and write access to it");
    if (iommu->fd < 0)
        return error_set_errno(error, errno, "cannot open " IOMMU_DEVICE);
    if (ioctl(iommu->fd, UAPI_IOAS_ALLOC, &alloc) != 0)
        return error_set_errno(error, errno, "cannot make an IO address space");
    iommu->facts.ioas_id = alloc.out_ioas_id;
    return 0;
}

static int map_error(const struct iommu_mapping *mapping, int code, struct error *error)
{
    uint64_t mib = mapping->size / MIB;

    switch (code) {
    case ENOTTY:
    case EOPNOTSUPP:
        return error_set(error, code,
                         "this kernel cannot map a file for DMA: Linux 6.13 or later is needed");
    case ENOMEM:
        return error_set(error, code,
                         "cannot pin %" PRIu64 " MiB of guest memory for DMA: raise the limit on "
                         "locked memory (ulimit -l) or free memory",
                         mib);
    case EINVAL:
        return error_set(error, code,
                         "cannot map %" PRIu64 " MiB at 0x%" PRIx64 " for DMA: addresses in it are "
                         "reserved by this host's IOMMU for a device, or beyond its reach",
                         mib, mapping->iova);
    default:
        return error_set_errno(error, code, "cannot map %" PRIu64 " MiB at 0x%" PRIx64 " for DMA",
                               mib, mapping->iova);
    }
}

static int iommufd_map_file(struct iommu *iommu, const struct iommu_mapping *mapping, int fd,
                            struct error *error)
{
    struct uapi_ioas_map_file map = {
        .size = sizeof(map),
        .flags = UAPI_IOAS_MAP_FIXED_IOVA | UAPI_IOAS_MAP_READABLE | UAPI_IOAS_MAP_WRITEABLE,
        .ioas_id = iommu->facts.ioas_id,
        .fd = fd,
        .start = mapping->offset,
        .length = mapping->size,
        .iova = mapping->iova,
    };

    if (ioctl(iommu->fd, UAPI_IOAS_MAP_FILE, &map) != 0)
        return map_error(mapping, errno, error);
    if (!may_lock_memory())
        iommu->facts.accounted = true;
    return 0;
}

static int bind_error(const char *device, int code, struct error *error)
{
    switch (code) {
    case ENOTTY:
        return error_set(error, code,
                         "device '%s': this kernel cannot bind it to iommufd: it needs "
                         "CONFIG_VFIO_DEVICE_CDEV (Linux 6.6)",
                         device);
    case EBUSY:
        return error_set(error, code,
                         "device '%s': it is in use by another process, or another device of its "
                         "IOMMU group is bound to a host driver",
                         device);
    case EPERM:
        return error_set(error, code,
                         "device '%s': the host cannot isolate its interrupts (no interrupt "
                         "remapping), or another device of its IOMMU group has another owner",
                         device);
    default:
        return error_set_errno(error, code, "device '%s': cannot bind it", device);
    }
}

static int attach_error(const char *device, int code, struct error *error)
{
    switch (code) {
    case EADDRINUSE:
        return error_set(
            error, code,
            "device '%s': this host's firmware reserves addresses for the device where "
            "the guest has memory",
            device);
    case ENOMEM:
        return error_set(error, code,
                         "device '%s': cannot pin guest memory: raise the limit on locked memory "
                         "(ulimit -l) or free memory",
                         device);
    default:
        return error_set_errno(error, code, "device '%s': cannot attach it", device);
    }
}

static int iommufd_attach(struct iommu *iommu, int device_fd, const char *device, uint32_t *devid,
                          struct error *error)
{
    struct uapi_vfio_bind_iommufd bind = {.argsz = sizeof(bind), .iommufd = iommu->fd};
    struct uapi_vfio_attach_iommufd_pt attach = {
        .argsz = sizeof(attach),
        .pt_id = iommu->facts.ioas_id,
    };

    if (ioctl(device_fd, UAPI_VFIO_BIND_IOMMUFD, &bind) != 0)
        return bind_error(device, errno, error);
    if (ioctl(device_fd, UAPI_VFIO_ATTACH_IOMMUFD_PT, &attach) != 0)
        return attach_error(device, errno, error);
    *devid = bind.out_devid;
    return 0;
}

static int ownership_error(int code, struct error *error)
{
    switch (code) {
    case EINVAL:
        return error_set(error, code,
                         "a mapping is not by file (by address, or of another device's memory), so "
                         "the kernel cannot move the mappings to another process");
    case ENOTTY:
        return error_set(error, code,
                         "this kernel cannot move DMA mappings to another process: Linux 6.13 or "
                         "later is needed");
    case ENOMEM:
        return error_set(error, code,
                         "the limit on locked memory is too low to take over the mappings, which "
                         "count twice while they move: raise it (ulimit -l) for this process");
    default:
        return error_set_errno(error, code, "cannot move the mappings to another process");
    }
}

static int iommufd_take_ownership(struct iommu *iommu, struct error *error)
{
    struct uapi_ioas_change_process change = {.size = sizeof(change)};

    if (ioctl(iommu->fd, UAPI_IOAS_CHANGE_PROCESS, &change) != 0)
        return ownership_error(errno, error);
    return 0;
}

/* Whether the limit on locked memory leaves room for the mappings, as far as one can know: what
 * else the user has locked is the kernel's secret. */
static int check_memory_limit(const struct iommu *iommu, struct error *error)
{
    const struct iommu_facts *facts = &iommu->facts;
    uint64_t total = 0;
    struct rlimit limit;

    if (!facts->accounted || getrlimit(RLIMIT_MEMLOCK, &limit) != 0)
        return 0;
    for (uint32_t i = 0; i < facts->mapping_count; i++)
        total += facts->mappings[i].size;
    if (iommu->owner || facts->owner_uid == (uint32_t)getuid())
        total *= 2;
    if (limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= total)
        return 0;
    return error_set(error, ENOMEM,
                     "the limit on locked memory is %" PRIu64
                     " KiB, taking over the mappings needs "
                     "%" PRIu64 " KiB: raise it (ulimit -l) for this process",
                     (uint64_t)limit.rlim_cur / KIB, total / KIB);
}

static int iommufd_probe_ownership(struct iommu *iommu, struct error *error)
{
    struct uapi_ioas_change_process change = {.size = sizeof(change)};

    if (iommu->owner) { /* changes nothing for the owner, who may have to take them back later */
        int result = iommufd_take_ownership(iommu, error);

        return result < 0 ? result : check_memory_limit(iommu, error);
    }
    change.reserved = 1;
    if (ioctl(iommu->fd, UAPI_IOAS_CHANGE_PROCESS, &change) == 0)
        return error_set(error, EPROTO, "this kernel ignores a reserved field");
    if (errno != EOPNOTSUPP)
        return ownership_error(errno, error);
    return check_memory_limit(iommu, error);
}

const struct iommu_ops iommufd_ops = {
    .create = iommufd_create,
    .map_file = iommufd_map_file,
    .attach = iommufd_attach,
    .take_ownership = iommufd_take_ownership,
    .probe_ownership = iommufd_probe_ownership,
};
