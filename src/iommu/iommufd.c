/* SPDX-License-Identifier: Apache-2.0
 *
 * The iommufd back end: one IOAS in a /dev/iommu context. Called through the table of operations
 * only.
 *
 * The first IOAS of an iommufd object maps guest memory and owns the descriptor. Further ones of
 * the object borrow it and share the mappings of the first (IOMMU_IOAS_COPY): pages are pinned and
 * accounted once per context, however many address spaces it has.
 *
 * Who owns the mappings
 *
 * RAM is mapped by file (IOMMU_IOAS_MAP_FILE), so the kernel holds pages of the memfd and no
 * address of any process; what ties a mapping to a process is only the accounting of its pinned
 * pages. IOMMU_IOAS_CHANGE_PROCESS moves that to the caller, for every IOAS of the context, all or
 * nothing:
 *
 *  - it fails with EINVAL, before it changes anything, when any mapping is not by memfd. The only
 *    ones that baton makes are of devices' memory, by dma-buf, for peer-to-peer (peers.c): see
 * below;
 *  - pages mapped by a process with CAP_IPC_LOCK are not accounted, then or ever;
 *  - others count against the user's total and the RLIMIT_MEMLOCK of the new process, and the new
 *    charge is made before the old one is given back: while it moves between two processes of one
 *    user, everything counts twice;
 *  - called by the process that owns everything already it charges nothing and replaces each
 *    reference to the process by the same one.
 *
 * So a process that lacks CAP_IPC_LOCK needs a limit of twice the guest's memory, the new one to
 * take the mappings and the old one to take them back when the hand-over is undone. There is
 * nothing to release: the new owner takes from the old one, who takes back in the same way.
 *
 * With devices' memory mapped, the accounting stays where it is, and that is all that stays. Taking
 * the mappings out for the moment of the change would make a peer's DMA fail, while the charge is a
 * number: the kernel holds references to user and process that were charged, for as long as the
 * pages are pinned, so that nothing dangles when that process has ended. The user's total, which
 * limits are checked against, remains right; VmPin, which shows in /proc, remains the former
 * process's, and that of the new one is 0. Where CAP_IPC_LOCK was there, no limit knows of it.
 * When the devices' memory is gone, the next hand-over moves the accounting. The guest can map a
 * BAR at any moment, so EINVAL is taken as this answer, whenever it comes.
 *
 * The last point of the list makes it a probe for the owner: the real code runs, over the real
 * mappings, with no effect. For a process that does not own them it would be the real thing, so
 * that one asks with a reserved field set: a kernel that knows the call says EOPNOTSUPP, one that
 * does not ENOTTY.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/trace.h"
#include "base/util.h"
#include "iommu/hwpt.h"
#include "iommu/locked.h"
#include "iommu/ops.h"
#include "iommu/sysfs.h"
#include "iommu/uapi_compat.h"

#define IOMMU_DEVICE "/dev/iommu"

static int open_context(struct iommu *iommu, struct error *error)
{
    iommu->fd = open(IOMMU_DEVICE, O_RDWR | O_CLOEXEC);
    if (iommu->fd >= 0)
        return 0;
    if (errno == ENOENT || errno == ENODEV || errno == ENXIO)
        return error_set(error, errno,
                         IOMMU_DEVICE " is not there: the kernel needs CONFIG_IOMMUFD (Linux 6.6; "
                                      "load the module iommufd)");
    if (errno == EACCES || errno == EPERM)
        return error_set(error, errno,
                         "no permission to open " IOMMU_DEVICE
                         ": give this user read and write access to it");
    return error_set_errno(error, errno, "cannot open " IOMMU_DEVICE);
}

static int iommufd_create(struct iommu *iommu, struct error *error)
{
    struct uapi_ioas_alloc alloc = {.size = sizeof(alloc)};

    if (iommu->parent != NULL)
        iommu->fd = iommu->parent->fd;
    else if (iommu->fd < 0 && open_context(iommu, error) < 0)
        return -error->code;
    if (ioctl(iommu->fd, UAPI_IOAS_ALLOC, &alloc) != 0)
        return errno == ENOTTY
                   ? error_set(error, ENOTTY, "the descriptor passed is not of " IOMMU_DEVICE)
                   : error_set_errno(error, errno, "cannot make an IO address space");
    iommu->facts.ioas_id = alloc.out_ioas_id;
    return iommu_map_memory(iommu, error);
}

static int iommufd_adopt(struct iommu *iommu, struct fdset *fds, struct error *error)
{
    iommu->fd = iommu->parent != NULL
                    ? iommu->parent->fd
                    : fdset_take(fds, FDSET_ANY, error, "iommu/%s", iommu->facts.id);
    return iommu->fd < 0 ? iommu->fd : hwpt_check_all(iommu, error);
}

static int iommufd_describe(const struct iommu *iommu, struct fdset *fds, struct error *error)
{
    if (iommu->parent != NULL)
        return 0;
    return fdset_add_copy(fds, iommu->fd, error, "iommu/%s", iommu->facts.id);
}

static void iommufd_destroy(struct iommu *iommu, bool leave)
{
    if (!leave)
        hwpt_destroy_all(iommu);
    if (iommu->parent == NULL)
        close_fd(iommu->fd);
}

static int map_error(const struct iommu_mapping *mapping, int code, struct error *error)
{
    if (code == ENOTTY || code == EOPNOTSUPP)
        return error_set(error, code,
                         "this kernel cannot map a file for DMA: Linux 6.13 or later is needed");
    return iommu_map_error(mapping, code, error);
}

static int map_file(struct iommu *iommu, const struct iommu_mapping *mapping)
{
    struct uapi_ioas_map_file map = {
        .size = sizeof(map),
        .flags = UAPI_IOAS_MAP_FIXED_IOVA | UAPI_IOAS_MAP_READABLE | UAPI_IOAS_MAP_WRITEABLE,
        .ioas_id = iommu->facts.ioas_id,
        .fd = iommu->memory->fd,
        .start = mapping->offset,
        .length = mapping->size,
        .iova = mapping->iova,
    };

    return ioctl(iommu->fd, UAPI_IOAS_MAP_FILE, &map);
}

static int copy_mapping(struct iommu *iommu, const struct iommu_mapping *mapping)
{
    struct uapi_ioas_copy copy = {
        .size = sizeof(copy),
        .flags = UAPI_IOAS_MAP_FIXED_IOVA | UAPI_IOAS_MAP_READABLE | UAPI_IOAS_MAP_WRITEABLE,
        .dst_ioas_id = iommu->facts.ioas_id,
        .src_ioas_id = iommu->parent->facts.ioas_id,
        .length = mapping->size,
        .dst_iova = mapping->iova,
        .src_iova = mapping->iova,
    };

    return ioctl(iommu->fd, UAPI_IOAS_COPY, &copy);
}

static int iommufd_map(struct iommu *iommu, const struct iommu_mapping *mapping, void *host,
                       struct error *error)
{
    int result = iommu->parent ? copy_mapping(iommu, mapping) : map_file(iommu, mapping);

    (void)host;
    if (result != 0)
        return map_error(mapping, errno, error);
    if (!may_lock_memory())
        iommu->facts.accounted = true;
    return 0;
}

static int open_device(struct iommu_device *device, struct error *error)
{
    char name[32], path[64];
    int result = sysfs_cdev(device->sysfs, name, sizeof(name), error);

    if (result < 0)
        return result;
    snprintf(path, sizeof(path), "/dev/vfio/devices/%s", name);
    device->fd = open(path, O_RDWR | O_CLOEXEC);
    if (device->fd >= 0)
        return 0;
    if (errno == EACCES || errno == EPERM)
        return error_set(error, errno,
                         "no permission to open %s: give this user read and write access", path);
    if (errno == ENOENT)
        return error_set(error, errno,
                         "%s is missing: the kernel needs CONFIG_VFIO_DEVICE_CDEV (Linux 6.6), and "
                         "/dev must be this host's",
                         path);
    return error_set_errno(error, errno, "cannot open %s", path);
}

/* What can be wrong with a descriptor that somebody else has opened. */
static int passed_error(int code, struct error *error)
{
    switch (code) {
    case ENOTTY:
        return error_set(error, code,
                         "the descriptor passed is not of /dev/vfio/devices/vfioN (Linux 6.6)");
    case EINVAL:
        return error_set(error, code,
                         "the descriptor passed has been bound before, or comes from a group: it "
                         "must be of /dev/vfio/devices/vfioN, opened and nothing else");
    default:
        return 0;
    }
}

static int bind_error(const struct iommu_device *device, int code, struct error *error)
{
    if (device->sysfs == NULL && passed_error(code, error) < 0)
        return -code;
    switch (code) {
    case ENOTTY:
        return error_set(error, code,
                         "this kernel cannot bind it to iommufd: it needs CONFIG_VFIO_DEVICE_CDEV "
                         "(Linux 6.6)");
    case EINVAL:
        return error_set(error, code,
                         "it is in use by another process: end that, or see who has it open (fuser "
                         "/dev/vfio/devices/*); a descriptor that was passed must not be bound");
    case EBUSY:
        return error_set(error, code,
                         "it is in use by another process, or another device of its IOMMU group is "
                         "bound to a host driver");
    case EPERM:
        return error_set(error, code,
                         "the host cannot isolate its interrupts (no interrupt remapping), or "
                         "another device of its IOMMU group has another owner");
    default:
        return error_set_errno(error, code, "cannot bind it to iommufd");
    }
}

/* EINVAL: another descriptor of the device is bound, if it is not this one. */
static int bind_device(const struct iommu_device *device, struct uapi_vfio_bind_iommufd *bind,
                       struct error *error)
{
    for (unsigned tries = 0; ioctl(device->fd, UAPI_VFIO_BIND_IOMMUFD, bind) != 0; tries++) {
        int code = errno;

        if (code != EINVAL || device->sysfs == NULL || !iommu_wait_released(tries))
            return bind_error(device, code, error);
    }
    return 0;
}

static int bind_and_attach(struct iommu *iommu, struct iommu_device *device,
                           enum iommu_hwpt_choice choice, struct error *error)
{
    struct uapi_vfio_bind_iommufd bind = {.argsz = sizeof(bind), .iommufd = iommu->fd};
    int result = bind_device(device, &bind, error);

    if (result < 0)
        return result;
    trace(vfio_bind, sysfs_name(device->sysfs), iommu->facts.id, bind.out_devid);
    device->devid = bind.out_devid;
    result = hwpt_attach(iommu, device, choice, error);
    device->kvm_fd = device->fd;
    return result;
}

static int iommufd_attach(struct iommu *iommu, struct iommu_device *device,
                          enum iommu_hwpt_choice choice, struct error *error)
{
    int result = device->fd >= 0 ? 0 : open_device(device, error);

    if (result == 0)
        result = bind_and_attach(iommu, device, choice, error);
    if (result < 0) {
        close_fd(device->fd);
        device->fd = -1;
    }
    return result;
}

static int iommufd_adopt_device(struct iommu *iommu, struct iommu_device *device,
                                struct error *error)
{
    struct stat status;
    dev_t expected = 0;
    int result;

    if (fstat(device->fd, &status) != 0)
        return error_set_errno(error, errno, "cannot examine the descriptor handed over");
    if (!S_ISCHR(status.st_mode))
        return error_set(error, EINVAL, "the descriptor handed over is no VFIO device");
    /* without sysfs there is nothing to compare with, and the descriptor still says what it is */
    result = device->sysfs != NULL ? sysfs_cdev_number(device->sysfs, &expected) : -ENOENT;
    if (result < 0 && !sysfs_is_hidden(-result))
        return error_set_errno(error, -result, "cannot look up the device number of %s",
                               sysfs_name(device->sysfs));
    if (result == 0 && status.st_rdev != expected)
        return error_set(error, EINVAL,
                         "the descriptor handed over belongs to another device than %s",
                         sysfs_name(device->sysfs));
    if (device->hwpt != 0 && !hwpt_is_known(iommu, device->hwpt))
        return error_set(error, EINVAL,
                         "the hardware page table %" PRIu32
                         " that it is attached to was not handed over",
                         device->hwpt);
    device->kvm_fd = device->fd;
    return 0;
}

static int ownership_error(int code, struct error *error)
{
    switch (code) {
    case ENOTTY:
        error_set(error, code, "this kernel cannot move DMA mappings to another process");
        return error_add_remedy(error, "Linux 6.13 or later is needed");
    case ENOMEM:
        error_set(error, code,
                  "the limit on locked memory is too low to take over the mappings, which count "
                  "twice while they move");
        return error_add_remedy(error, "raise it (ulimit -l) for this process");
    default:
        return error_set_errno(error, code, "cannot move the mappings to another process");
    }
}

static int iommufd_release(struct iommu *iommu, struct error *error)
{
    (void)iommu;
    (void)error;
    return 0;
}

/* Moves all address spaces of the context at once; for the others of the context it is a repetition
 * without effect. @return 0; -EINVAL with memory of devices in it: nothing has moved */
static int change_process(const struct iommu *iommu)
{
    struct uapi_ioas_change_process change = {.size = sizeof(change)};

    return ioctl(iommu->fd, UAPI_IOAS_CHANGE_PROCESS, &change) == 0 ? 0 : -errno;
}

static int iommufd_take(struct iommu *iommu, struct error *error)
{
    int result = change_process(iommu);

    if (result == -EINVAL && iommu->parent == NULL)
        log_info("iommufd '%s': devices reach each other's memory, so the kernel leaves the "
                 "accounting of guest memory with the process that mapped it (p2p=off moves it)",
                 iommu->facts.id);
    return result == 0 || result == -EINVAL ? 0 : ownership_error(-result, error);
}

static int iommufd_take_back(struct iommu *iommu, struct error *error)
{
    int result = change_process(iommu);

    return result == 0 || result == -EINVAL ? 0 : ownership_error(-result, error);
}

/* For the owner the change has no effect, but to bring home at last what had to stay behind. */
static int iommufd_probe(struct iommu *iommu, struct error *error)
{
    struct uapi_ioas_change_process change = {.size = sizeof(change)};

    if (iommu->owner)
        return iommufd_take_back(iommu, error);
    change.reserved = 1;
    if (ioctl(iommu->fd, UAPI_IOAS_CHANGE_PROCESS, &change) == 0)
        return error_set(error, EPROTO, "this kernel ignores a reserved field");
    return errno == EOPNOTSUPP ? 0 : ownership_error(errno, error);
}

/* --- peers ----------------------------------------------------------------------------------- */

static int peer_error(const struct iommu_peer *peer, int code, struct error *error)
{
    if (code == ENOTTY || code == EOPNOTSUPP)
        return error_set(error, code,
                         "this kernel offers no dma-buf of a device's memory: Linux 6.19 with "
                         "CONFIG_VFIO_PCI_DMABUF is needed, or p2p=off");
    return error_set_errno(
        error, code, "cannot map a device's memory at 0x%" PRIx64 " for the others", peer->iova);
}

/* The mapping holds the dma-buf. It is good as long as the function decodes: what is mapped again
 * when the guest has switched decoding off and on is a new one. */
static int iommufd_map_peer(struct iommu *iommu, const struct iommu_peer *peer, struct error *error)
{
    struct uapi_vfio_dma_buf export = {
        .argsz = sizeof(export),
        .feature = UAPI_VFIO_FEATURE_GET | UAPI_VFIO_FEATURE_DMA_BUF,
        .region_index = peer->region,
        .open_flags = O_RDWR | O_CLOEXEC,
        .nr_ranges = 1,
        .offset = peer->offset,
        .length = peer->size,
    };
    CLEANUP_CLOSE int buffer = ioctl(peer->fd, UAPI_VFIO_DEVICE_FEATURE, &export);
    struct uapi_ioas_map_file map = {
        .size = sizeof(map),
        .flags = UAPI_IOAS_MAP_FIXED_IOVA | UAPI_IOAS_MAP_READABLE | UAPI_IOAS_MAP_WRITEABLE,
        .ioas_id = iommu->facts.ioas_id,
        .fd = buffer,
        .length = peer->size,
        .iova = peer->iova,
    };

    if (buffer < 0 || ioctl(iommu->fd, UAPI_IOAS_MAP_FILE, &map) != 0)
        return peer_error(peer, errno, error);
    return 0;
}

/* No address of any process is in it. */
static int iommufd_take_peer(struct iommu *iommu, const struct iommu_peer *peer,
                             struct error *error)
{
    (void)iommu;
    (void)peer;
    (void)error;
    return 0;
}

static int iommufd_unmap_peer(struct iommu *iommu, const struct iommu_peer_mapping *mapping,
                              struct error *error)
{
    struct uapi_ioas_unmap unmap = {
        .size = sizeof(unmap),
        .ioas_id = iommu->facts.ioas_id,
        .iova = mapping->iova,
        .length = mapping->size,
    };

    if (ioctl(iommu->fd, UAPI_IOAS_UNMAP, &unmap) == 0)
        return 0;
    return error_set_errno(error, errno, "cannot unmap a device's memory at 0x%" PRIx64,
                           mapping->iova);
}

static struct iommu_charge iommufd_charge(const struct iommu *iommu)
{
    struct iommu_charge charge = {0};

    if (iommu->parent != NULL || !iommu->facts.accounted)
        return charge;
    charge.held = iommu_mapped_size(iommu);
    if (iommu->peer_count != 0) /* nothing moves */
        return charge;
    if (iommu->owner || iommu->facts.owner_uid == (uint32_t)getuid())
        charge.moving = charge.held;
    return charge;
}

const struct iommu_ops iommu_iommufd_ops = {
    .create = iommufd_create,
    .adopt = iommufd_adopt,
    .describe = iommufd_describe,
    .destroy = iommufd_destroy,
    .map = iommufd_map,
    .attach = iommufd_attach,
    .adopt_device = iommufd_adopt_device,
    .release = iommufd_release,
    .take = iommufd_take,
    .take_back = iommufd_take_back,
    .probe = iommufd_probe,
    .check = iommufd_probe,
    .map_peer = iommufd_map_peer,
    .take_peer = iommufd_take_peer,
    .unmap_peer = iommufd_unmap_peer,
    .charge = iommufd_charge,
};
