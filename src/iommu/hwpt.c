/* SPDX-License-Identifier: Apache-2.0
 *
 * See hwpt.h. Called by the iommufd back end while a machine is built, adopted or taken down.
 */
#include "iommu/hwpt.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/log.h"
#include "base/trace.h"
#include "base/util.h"
#include "iommu/sysfs.h"
#include "iommu/uapi_compat.h"

static int attach_error(int code, struct error *error)
{
    switch (code) {
    case EADDRINUSE:
        return error_set(error, code,
                         "this host's firmware reserves addresses for the device where the guest "
                         "has memory");
    case ENOMEM:
        return error_set(error, code,
                         "cannot pin guest memory: raise the limit on locked memory (ulimit -l) or "
                         "free memory");
    default:
        return error_set_errno(error, code, "cannot attach it to the IO address space");
    }
}

/* @param pt an IOAS or a page table of it */
static int attach(const struct iommu_device *device, uint32_t pt)
{
    struct uapi_vfio_attach_iommufd_pt attach = {.argsz = sizeof(attach), .pt_id = pt};

    return ioctl(device->fd, UAPI_VFIO_ATTACH_IOMMUFD_PT, &attach) == 0 ? 0 : -errno;
}

/* Whether the device's IOMMU can tell which pages were written. */
static bool can_track(const struct iommu *iommu, const struct iommu_device *device)
{
    struct uapi_hw_info info = {.size = sizeof(info), .dev_id = device->devid};

    return ioctl(iommu->fd, UAPI_GET_HW_INFO, &info) == 0 &&
           info.out_capabilities & UAPI_HW_CAP_DIRTY_TRACKING;
}

static void destroy(const struct iommu *iommu, uint32_t id)
{
    struct uapi_iommu_destroy destroy = {.size = sizeof(destroy), .id = id};

    trace(iommu_hwpt_destroy, iommu->facts.id, id);
    if (ioctl(iommu->fd, UAPI_IOMMU_DESTROY, &destroy) != 0)
        log_warning("iommufd '%s': cannot destroy hardware page table %" PRIu32 ": %s",
                    iommu->facts.id, id, strerror(errno));
}

/* Another device's may not suit (another IOMMU, other abilities); a mediated device takes none. */
static int attach_to_shared(const struct iommu *iommu, struct iommu_device *device)
{
    for (uint32_t i = 0; i < iommu->facts.hwpt_count; i++) {
        const struct iommu_hwpt *hwpt = &iommu->facts.hwpts[i];
        int result = hwpt->shared ? attach(device, hwpt->id) : -EINVAL;

        if (result == 0)
            device->hwpt = hwpt->id;
        if (result != -EINVAL && result != -ENOENT)
            return result;
    }
    return -ENOENT;
}

static int attach_to_new(struct iommu *iommu, struct iommu_device *device, bool shared)
{
    struct iommu_facts *facts = &iommu->facts;
    bool track = can_track(iommu, device);
    struct uapi_hwpt_alloc alloc = {
        .size = sizeof(alloc),
        .flags = track ? UAPI_HWPT_ALLOC_DIRTY_TRACKING : 0,
        .dev_id = device->devid,
        .pt_id = facts->ioas_id,
    };
    int result;

    if (facts->hwpt_count == IOMMU_HWPTS_MAX)
        return -ENOSPC;
    if (ioctl(iommu->fd, UAPI_HWPT_ALLOC, &alloc) != 0)
        return -errno;
    trace(iommu_hwpt_alloc, iommu->facts.id, alloc.out_hwpt_id, track);
    result = attach(device, alloc.out_hwpt_id);
    if (result < 0) {
        destroy(iommu, alloc.out_hwpt_id);
        return result;
    }
    device->hwpt = alloc.out_hwpt_id;
    facts->hwpts[facts->hwpt_count++] =
        (struct iommu_hwpt){.id = alloc.out_hwpt_id, .dirty_tracking = track, .shared = shared};
    return 0;
}

/* What the kernel says of a device that can have no page table allocated: a mediated one, which no
 * IOMMU translates for, has no id of that kind (ENOENT); an IOMMU's driver or the kernel that has
 * not learned it (Linux before 6.6) says the other two. */
static bool is_unsupported(int result)
{
    return result == -ENOENT || result == -EOPNOTSUPP || result == -ENOTTY;
}

int hwpt_attach(struct iommu *iommu, struct iommu_device *device, enum iommu_hwpt_choice choice,
                struct error *error)
{
    int result = -ENOENT;

    device->hwpt = 0;
    if (choice == IOMMU_HWPT_SHARED)
        result = attach_to_shared(iommu, device);
    if (choice != IOMMU_HWPT_IOAS && result == -ENOENT)
        result = attach_to_new(iommu, device, choice == IOMMU_HWPT_SHARED);
    if (choice == IOMMU_HWPT_OWN && is_unsupported(result))
        return error_set(error, -result,
                         "a hardware page table of its own cannot be had for it, with this device, "
                         "IOMMU or kernel (Linux 6.6 is needed): leave out hwpt=own");
    if (choice != IOMMU_HWPT_OWN && is_unsupported(result))
        result = attach(device, iommu->facts.ioas_id);
    if (result < 0)
        return attach_error(-result, error);
    trace(vfio_attach, sysfs_name(device->sysfs), iommu->facts.id, device->hwpt);
    return 0;
}

bool hwpt_is_known(const struct iommu *iommu, uint32_t id)
{
    for (uint32_t i = 0; i < iommu->facts.hwpt_count; i++) {
        if (iommu->facts.hwpts[i].id == id)
            return true;
    }
    return false;
}

/* Asks for the written pages of no page at all, which fails with EINVAL, or EOPNOTSUPP before Linux
 * 6.7 had the call. ENOENT is for an id that is not a page table's. */
static int check(const struct iommu *iommu, uint32_t id, struct error *error)
{
    struct uapi_hwpt_get_dirty query = {.size = sizeof(query),
                                        .hwpt_id = id,
                                        .flags = UAPI_HWPT_GET_DIRTY_NO_CLEAR,
                                        .page_size = PAGE_SIZE};

    if (ioctl(iommu->fd, UAPI_HWPT_GET_DIRTY, &query) == 0 || errno == EINVAL ||
        errno == EOPNOTSUPP || errno == ENOTTY)
        return 0;
    if (errno == ENOENT)
        return error_set(error, EINVAL,
                         "there is no hardware page table %" PRIu32 ", as was handed over", id);
    return error_set_errno(error, errno, "cannot ask for hardware page table %" PRIu32, id);
}

int hwpt_check_all(const struct iommu *iommu, struct error *error)
{
    for (uint32_t i = 0; i < iommu->facts.hwpt_count; i++) {
        int result = check(iommu, iommu->facts.hwpts[i].id, error);

        if (result < 0)
            return result;
    }
    return 0;
}

void hwpt_destroy_all(struct iommu *iommu)
{
    while (iommu->facts.hwpt_count > 0)
        destroy(iommu, iommu->facts.hwpts[--iommu->facts.hwpt_count].id);
}
