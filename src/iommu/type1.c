/* SPDX-License-Identifier: Apache-2.0
 *
 * The back end for VFIO's legacy containers: one container, and the IOMMU groups in it. Called
 * through the table of operations only. The interface is that of linux/vfio.h (Type1 IOMMU).
 *
 * A container gets its IOMMU with its first group, so that is when memory is mapped. Memory is
 * mapped by address, but pinned: what the kernel remembers the address for is to pin more (which
 * happens for mediated devices only) and to know whose pages they are. So the address may be of no
 * process for a while (VFIO_DMA_UNMAP_FLAG_VADDR), and then of another one
 * (VFIO_DMA_MAP_FLAG_VADDR, exactly the mapping's iova and size), while devices do DMA.
 *
 * What is known of the kernel (Linux 5.12 and later) and used here:
 *
 *  - any process that has the container may do either, whoever mapped;
 *  - giving up an address that nobody has fails with EINVAL and changes nothing, and so does
 *    setting one where somebody has it. So every mapping's state is kept (iommu->ours), and taking
 *    back first gives up whatever a process that has died may have set;
 *  - setting an address makes the caller the mapping's owner (6.3 and its stable predecessors): its
 *    pages count as locked memory (VmLck) of the caller, within its limit unless it has
 *    CAP_IPC_LOCK at that moment, and no longer as the former owner's if that still lives. The two
 *    counters belong to two processes: nothing counts twice;
 *  - for a mapping of the caller's own, giving up and setting again charges nothing, which makes it
 *    a probe with the real calls;
 *  - the owner's address space is held as a structure, not as memory: an owner that has died does
 *    no harm, to DMA or to whoever takes over;
 *  - while an address is nobody's, no group can be added; with a mediated device in the container
 *    the kernel refuses it all, and says so by not having VFIO_UPDATE_VADDR.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/trace.h"
#include "base/util.h"
#include "iommu/locked.h"
#include "iommu/ops.h"
#include "iommu/sysfs.h"
#include "iommu/uapi_compat.h"

#define CONTAINER_DEVICE "/dev/vfio/vfio"

/* --- container ------------------------------------------------------------------------------- */

static bool has_extension(const struct iommu *iommu, unsigned long extension)
{
    return ioctl(iommu->fd, VFIO_CHECK_EXTENSION, extension) > 0;
}

static int type1_create(struct iommu *iommu, struct error *error)
{
    iommu->fd = open(CONTAINER_DEVICE, O_RDWR | O_CLOEXEC);
    if (iommu->fd < 0 && (errno == ENOENT || errno == ENODEV || errno == ENXIO))
        return error_set(error, errno,
                         CONTAINER_DEVICE " is not there: the kernel needs CONFIG_VFIO_CONTAINER "
                                          "(load the module vfio), or give the device iommufd=");
    if (iommu->fd < 0 && (errno == EACCES || errno == EPERM))
        return error_set(error, errno,
                         "no permission to open " CONTAINER_DEVICE
                         ": give this user read and write access to it");
    if (iommu->fd < 0)
        return error_set_errno(error, errno, "cannot open " CONTAINER_DEVICE);
    if (ioctl(iommu->fd, VFIO_GET_API_VERSION) != VFIO_API_VERSION)
        return error_set(error, ENOTSUP, CONTAINER_DEVICE " has an unknown version");
    if (!has_extension(iommu, VFIO_TYPE1v2_IOMMU))
        return error_set(error, ENOTSUP,
                         "this kernel has no Type1 IOMMU for containers: it needs "
                         "CONFIG_VFIO_IOMMU_TYPE1 (load the module vfio_iommu_type1)");
    return 0;
}

static int take_group(struct iommu *iommu, unsigned index, struct fdset *fds, struct error *error)
{
    struct vfio_group_status status = {.argsz = sizeof(status)};
    uint32_t number = iommu->facts.groups[index].number;

    iommu->group_fds[index] = fdset_take(fds, FDSET_ANY, error, "iommu/group/%" PRIu32, number);
    if (iommu->group_fds[index] < 0)
        return iommu->group_fds[index];
    if (ioctl(iommu->group_fds[index], VFIO_GROUP_GET_STATUS, &status) != 0 ||
        !(status.flags & VFIO_GROUP_FLAGS_CONTAINER_SET))
        return error_set(error, EINVAL,
                         "the descriptor handed over as group %" PRIu32 " is no group in a "
                         "container",
                         number);
    return 0;
}

static int type1_adopt(struct iommu *iommu, struct fdset *fds, struct error *error)
{
    int result = 0;

    for (unsigned i = 0; i < iommu->facts.group_count; i++)
        iommu->group_fds[i] = -1;
    iommu->fd = fdset_take(fds, FDSET_ANY, error, "iommu/container/%u", iommu->index);
    if (iommu->fd < 0)
        return iommu->fd;
    if (ioctl(iommu->fd, VFIO_GET_API_VERSION) != VFIO_API_VERSION)
        return error_set(error, EINVAL, "the descriptor handed over is no VFIO container");
    for (unsigned i = 0; result == 0 && i < iommu->facts.group_count; i++)
        result = take_group(iommu, i, fds, error);
    return result;
}

static int type1_describe(const struct iommu *iommu, struct fdset *fds, struct error *error)
{
    int result = fdset_add_copy(fds, iommu->fd, error, "iommu/container/%u", iommu->index);

    for (unsigned i = 0; result == 0 && i < iommu->facts.group_count; i++)
        result = fdset_add_copy(fds, iommu->group_fds[i], error, "iommu/group/%" PRIu32,
                                iommu->facts.groups[i].number);
    return result;
}

static void type1_destroy(struct iommu *iommu, bool leave)
{
    (void)leave;       /* closing takes apart what nobody else has */
    if (iommu->fd < 0) /* groups come after the container */
        return;
    for (unsigned i = 0; i < iommu->facts.group_count; i++)
        close_fd(iommu->group_fds[i]);
    close_fd(iommu->fd);
}

/* --- mappings -------------------------------------------------------------------------------- */

static int type1_map(struct iommu *iommu, const struct iommu_mapping *mapping, void *host,
                     struct error *error)
{
    struct vfio_iommu_type1_dma_map map = {
        .argsz = sizeof(map),
        .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        .vaddr = (uintptr_t)host,
        .iova = mapping->iova,
        .size = mapping->size,
    };

    if (ioctl(iommu->fd, VFIO_IOMMU_MAP_DMA, &map) != 0)
        return iommu_map_error(mapping, errno, error);
    iommu->ours[iommu->facts.mapping_count] = true;
    return 0;
}

/* Where this process has what a mapping maps; there, since the manifest has been checked. */
static void *host_address(const struct iommu *iommu, const struct iommu_mapping *mapping)
{
    for (unsigned i = 0; i < iommu->memory->region_count; i++) {
        if (iommu->memory->regions[i].mapping.iova == mapping->iova)
            return iommu->memory->regions[i].host;
    }
    assert(!"a mapping of guest memory");
    return NULL;
}

/* --- groups and devices ---------------------------------------------------------------------- */

static int open_error(const struct iommu_device *device, const char *path, int code,
                      struct error *error)
{
    switch (code) {
    case ENOENT:
        return sysfs_explain(device->sysfs,
                             "offers no group for it: the kernel needs CONFIG_VFIO_GROUP, and /dev "
                             "must be this host's; or give the device iommufd=",
                             error);
    case EBUSY:
        return error_set(error, code,
                         "its IOMMU group (%s) is in use by another process, or through iommufd",
                         path);
    case EACCES:
    case EPERM:
        return error_set(error, code,
                         "no permission to open %s: give this user read and write access", path);
    default:
        return error_set_errno(error, code, "cannot open %s", path);
    }
}

static int open_group(const struct iommu_device *device, struct error *error)
{
    struct vfio_group_status status = {.argsz = sizeof(status)};
    CLEANUP_CLOSE int fd = -1;
    char path[32];

    snprintf(path, sizeof(path), "/dev/vfio/%" PRIu32, device->group);
    for (unsigned tries = 0; (fd = open(path, O_RDWR | O_CLOEXEC)) < 0; tries++) {
        int code = errno;

        if (code != EBUSY || !iommu_wait_released(tries))
            return open_error(device, path, code, error);
    }
    if (ioctl(fd, VFIO_GROUP_GET_STATUS, &status) != 0)
        return error_set_errno(error, errno, "cannot ask for the status of %s", path);
    if (!(status.flags & VFIO_GROUP_FLAGS_VIABLE))
        return error_set(error, EPERM,
                         "another device of its IOMMU group %" PRIu32 " is bound to a host driver: "
                         "bind all of /sys/kernel/iommu_groups/%" PRIu32 "/devices to vfio-pci",
                         device->group, device->group);
    return STEAL_FD(fd);
}

/* The first group makes the container one with an IOMMU. */
static int set_iommu(struct iommu *iommu, struct error *error)
{
    if (ioctl(iommu->fd, VFIO_SET_IOMMU, (unsigned long)VFIO_TYPE1v2_IOMMU) == 0)
        return iommu_map_memory(iommu, error);
    if (errno == EPERM)
        return error_set(error, EPERM,
                         "the host cannot isolate its interrupts (no interrupt remapping)");
    return error_set_errno(error, errno, "cannot give its container an IOMMU");
}

static int add_group(struct iommu *iommu, const struct iommu_device *device, struct error *error)
{
    struct iommu_facts *facts = &iommu->facts;
    CLEANUP_CLOSE int fd = open_group(device, error);

    if (fd < 0)
        return fd;
    if (facts->group_count == IOMMU_GROUPS_MAX)
        return error_set(error, ENOSPC, "more than %d IOMMU groups in a container",
                         IOMMU_GROUPS_MAX);
    if (ioctl(fd, VFIO_GROUP_SET_CONTAINER, &iommu->fd) != 0)
        return error_set_errno(
            error, errno, "cannot put its IOMMU group %" PRIu32 " into a container", device->group);
    if (facts->group_count == 0) {
        int result = set_iommu(iommu, error);

        if (result < 0)
            return result; /* closing the group takes it out again */
    }
    iommu->group_fds[facts->group_count] = STEAL_FD(fd);
    facts->groups[facts->group_count++].number = device->group;
    trace(vfio_add_group, device->group, iommu_label(iommu, (char[IOMMU_LABEL_SIZE]){0}));
    return 0;
}

/* @return the descriptor of a group of this container, or -1 */
static int group_fd(const struct iommu *iommu, uint32_t number)
{
    for (unsigned i = 0; i < iommu->facts.group_count; i++) {
        if (iommu->facts.groups[i].number == number)
            return iommu->group_fds[i];
    }
    return -1;
}

static int get_device(struct iommu *iommu, struct iommu_device *device, struct error *error)
{
    device->kvm_fd = group_fd(iommu, device->group);
    device->fd = ioctl(device->kvm_fd, VFIO_GROUP_GET_DEVICE_FD, sysfs_name(device->sysfs));
    if (device->fd >= 0)
        return 0;
    if (errno == ENODEV)
        return sysfs_explain(device->sysfs, "does not offer it in its IOMMU group", error);
    return error_set_errno(error, errno, "cannot get it from its IOMMU group %" PRIu32,
                           device->group);
}

static int type1_attach(struct iommu *iommu, struct iommu_device *device,
                        enum iommu_hwpt_choice choice, struct error *error)
{
    int result = 0;

    (void)choice; /* a container's page tables are the kernel's affair */
    if (group_fd(iommu, device->group) < 0)
        result = add_group(iommu, device, error);
    return result < 0 ? result : get_device(iommu, device, error);
}

/* A descriptor from a group is nameless. Newer kernels say in fdinfo whose it is. */
static int check_identity(const struct iommu_device *device, struct error *error)
{
    const char *name = sysfs_name(device->sysfs);
    char path[48], line[512];
    const char *said = NULL;
    bool failed = false;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", device->fd);
    file = fopen(path, "re");
    if (file == NULL && !sysfs_is_hidden(errno))
        return error_set_errno(error, errno, "cannot examine the descriptor handed over");
    while (file != NULL && said == NULL && fgets(line, sizeof(line), file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "vfio-device-syspath:", strlen("vfio-device-syspath:")) == 0)
            said = sysfs_name(line);
    }
    if (file != NULL) {
        failed = said == NULL && !feof(file);
        fclose(file);
    }
    if (failed)
        return error_set(error, EIO, "cannot read whose the descriptor handed over is");
    if (said != NULL && strcmp(said, name) != 0)
        return error_set(error, EINVAL, "the descriptor handed over belongs to %.64s, not to %s",
                         said, name);
    return 0;
}

static int type1_adopt_device(struct iommu *iommu, struct iommu_device *device, struct error *error)
{
    struct vfio_device_info info = {.argsz = sizeof(info)};

    if (ioctl(device->fd, VFIO_DEVICE_GET_INFO, &info) != 0)
        return error_set(error, EINVAL, "the descriptor handed over is no VFIO device");
    device->kvm_fd = group_fd(iommu, device->group);
    return check_identity(device, error);
}

/* --- ownership ------------------------------------------------------------------------------- */

/* @return 0; -EINVAL when nobody's address is there to be given up */
static int give_up(const struct iommu *iommu, uint64_t iova, uint64_t size)
{
    struct vfio_iommu_type1_dma_unmap unmap = {
        .argsz = sizeof(unmap),
        .flags = VFIO_DMA_UNMAP_FLAG_VADDR,
        .iova = iova,
        .size = size,
    };

    return ioctl(iommu->fd, VFIO_IOMMU_UNMAP_DMA, &unmap) == 0 ? 0 : -errno;
}

static int set_address(const struct iommu *iommu, uint64_t iova, uint64_t size, void *host)
{
    struct vfio_iommu_type1_dma_map map = {
        .argsz = sizeof(map),
        .flags = VFIO_DMA_MAP_FLAG_VADDR,
        .vaddr = (uintptr_t)host,
        .iova = iova,
        .size = size,
    };

    return ioctl(iommu->fd, VFIO_IOMMU_MAP_DMA, &map) == 0 ? 0 : -errno;
}

/* The same for a mapping of the manifest. */
static int give_up_memory(const struct iommu *iommu, unsigned index)
{
    const struct iommu_mapping *mapping = &iommu->facts.mappings[index];

    return give_up(iommu, mapping->iova, mapping->size);
}

static int set_memory(const struct iommu *iommu, unsigned index)
{
    const struct iommu_mapping *mapping = &iommu->facts.mappings[index];

    return set_address(iommu, mapping->iova, mapping->size, host_address(iommu, mapping));
}

static int ownership_error(uint64_t iova, int code, struct error *error)
{
    switch (code) {
    case EBUSY:
        error_set(error, code,
                  "there is a mediated device in it, with which the kernel moves no mappings");
        return error_add_remedy(error, "give the device iommufd=");
    case ENOMEM:
        error_set(error, code,
                  "the limit on locked memory is too low to take over the mapping at 0x%" PRIx64,
                  iova);
        return error_add_remedy(error, "raise it (ulimit -l) for this process");
    default:
        return error_set_errno(error, code,
                               "cannot move the mapping at 0x%" PRIx64 " to another process", iova);
    }
}

/* What an earlier undo could not take back may or may not be somebody's. */
static int type1_release(struct iommu *iommu, struct error *error)
{
    for (unsigned i = 0; i < iommu->facts.mapping_count; i++) {
        int result = give_up_memory(iommu, i);

        if (result < 0 && (result != -EINVAL || iommu->ours[i]))
            return ownership_error(iommu->facts.mappings[i].iova, -result, error);
        iommu->ours[i] = false;
    }
    return 0;
}

static int type1_take(struct iommu *iommu, struct error *error)
{
    for (unsigned i = 0; i < iommu->facts.mapping_count; i++) {
        int result = iommu->ours[i] ? 0 : set_memory(iommu, i);

        if (result < 0)
            return ownership_error(iommu->facts.mappings[i].iova, -result, error);
        iommu->ours[i] = true;
    }
    return 0;
}

static int type1_take_back(struct iommu *iommu, struct error *error)
{
    int first = 0;

    for (unsigned i = 0; i < iommu->facts.mapping_count; i++) {
        int result;

        if (iommu->ours[i])
            continue;
        (void)give_up_memory(iommu,
                             i); /* the other's, if it had come so far; its own error is the next */
        result = set_memory(iommu, i);
        iommu->ours[i] = result == 0;
        if (result < 0 && first == 0)
            first = ownership_error(iommu->facts.mappings[i].iova, -result, error);
    }
    return first;
}

/* Whether /dev/vfio/vfio is iommufd's emulation: asked by a call that only an iommufd knows, and
 * that a reserved field makes harmless. */
static bool is_emulated(const struct iommu *iommu)
{
    struct uapi_ioas_change_process change = {.size = sizeof(change), .reserved = 1};

    return ioctl(iommu->fd, UAPI_IOAS_CHANGE_PROCESS, &change) != 0 && errno == EOPNOTSUPP;
}

static int explain_no_update(const struct iommu *iommu, struct error *error)
{
    if (is_emulated(iommu)) {
        error_set(error, ENOTSUP,
                  "containers of this kernel are iommufd's emulation, which moves no mappings");
        return error_add_remedy(error, "give the device iommufd=");
    }
    if (has_extension(iommu, VFIO_UNMAP_ALL)) /* as old as the other */
        return ownership_error(0, EBUSY, error);
    error_set(error, ENOTSUP, "this kernel cannot move DMA mappings to another process");
    return error_add_remedy(error, "Linux 5.12 or later is needed, with CONFIG_VFIO_CONTAINER");
}

static int type1_check(struct iommu *iommu, struct error *error)
{
    return has_extension(iommu, VFIO_UPDATE_VADDR) ? 0 : explain_no_update(iommu, error);
}

/* The owner gives its mappings up for a moment and takes them back: the kernel's own checks. */
static int type1_probe(struct iommu *iommu, struct error *error)
{
    struct error ignored;
    int result = type1_check(iommu, error);

    if (result < 0 || !iommu->owner)
        return result;
    result = type1_release(iommu, error);
    if (result == 0)
        return type1_take_back(iommu, error);
    type1_take_back(iommu, &ignored);
    return result;
}

/* --- peers ----------------------------------------------------------------------------------- */

static int type1_map_peer(struct iommu *iommu, const struct iommu_peer *peer, struct error *error)
{
    struct vfio_iommu_type1_dma_map map = {
        .argsz = sizeof(map),
        .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        .vaddr = (uintptr_t)peer->host,
        .iova = peer->iova,
        .size = peer->size,
    };

    if (ioctl(iommu->fd, VFIO_IOMMU_MAP_DMA, &map) == 0)
        return 0;
    return error_set_errno(
        error, errno, "cannot map a device's memory at 0x%" PRIx64 " for the others", peer->iova);
}

/* The address is the former process's, who mapped it or took it; or nobody's, if that failed. */
static int type1_take_peer(struct iommu *iommu, const struct iommu_peer *peer, struct error *error)
{
    int result = give_up(iommu, peer->iova, peer->size);

    if (result == 0 || result == -EINVAL)
        result = set_address(iommu, peer->iova, peer->size, peer->host);
    return result < 0 ? ownership_error(peer->iova, -result, error) : 0;
}

static int type1_unmap_peer(struct iommu *iommu, const struct iommu_peer_mapping *mapping,
                            struct error *error)
{
    struct vfio_iommu_type1_dma_unmap unmap = {
        .argsz = sizeof(unmap), .iova = mapping->iova, .size = mapping->size};

    if (ioctl(iommu->fd, VFIO_IOMMU_UNMAP_DMA, &unmap) == 0)
        return 0;
    return error_set_errno(error, errno, "cannot unmap a device's memory at 0x%" PRIx64,
                           mapping->iova);
}

/* The kernel asks for the capability when ownership moves, not when memory was mapped. */
static struct iommu_charge type1_charge(const struct iommu *iommu)
{
    struct iommu_charge charge = {.held = may_lock_memory() ? 0 : iommu_mapped_size(iommu)};

    return charge;
}

const struct iommu_ops iommu_type1_ops = {
    .create = type1_create,
    .adopt = type1_adopt,
    .describe = type1_describe,
    .destroy = type1_destroy,
    .map = type1_map,
    .attach = type1_attach,
    .adopt_device = type1_adopt_device,
    .release = type1_release,
    .take = type1_take,
    .take_back = type1_take_back,
    .probe = type1_probe,
    .check = type1_check,
    .map_peer = type1_map_peer,
    .take_peer = type1_take_peer,
    .unmap_peer = type1_unmap_peer,
    .charge = type1_charge,
};
