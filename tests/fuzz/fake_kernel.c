/* SPDX-License-Identifier: Apache-2.0
 *
 * See fake_kernel.h. Used by the target adopt. ioctl() is called on the vCPUs' threads, too, one at
 * a time as far as it remembers anything.
 */
#include "fake_kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/vfio.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fake_device.h"
#include "iommu/uapi_compat.h"

#define VCPU_ROOM (3 * PAGE_SIZE) /* struct kvm_run */

struct fake_kernel fake_kernel;

static int new_file(size_t size, unsigned flags)
{
    int fd = memfd_create("object", MFD_CLOEXEC | flags);

    assert(fd >= 0);
    if (ftruncate(fd, (off_t)size) < 0)
        abort();
    return fd;
}

static ino_t inode_of(int fd)
{
    struct stat status = {0};

    return syscall(SYS_fstat, fd, &status) == 0 ? status.st_ino : 0;
}

static bool is_object(int fd, enum fake_object object)
{
    return inode_of(fd) == fake_kernel.inodes[object];
}

/* A device is a memfd here, and a character device to those who look. */
int fstat(int fd, struct stat *status)
{
    int result = (int)syscall(SYS_fstat, fd, status);

    if (result == 0 && fake_kernel.inodes[FAKE_DEVICE] != 0 &&
        status->st_ino == fake_kernel.inodes[FAKE_DEVICE])
        status->st_mode = S_IFCHR;
    return result;
}

int open(const char *path, int flags, ...)
{
    va_list arguments;
    mode_t mode;

    if (strcmp(path, "/dev/kvm") == 0)
        return new_file(0, 0);
    va_start(arguments, flags);
    mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

static int refuse(int code)
{
    errno = code;
    return -1;
}

static int set_memory(const struct kvm_userspace_memory_region *region)
{
    assert(region->slot < KVM_SLOTS_MAX);
    for (unsigned i = 0; region->memory_size != 0 && i < KVM_SLOTS_MAX; i++) {
        const struct kvm_userspace_memory_region *other = &fake_kernel.slots[i];

        if (other->memory_size != 0 && ranges_overlap(region->guest_phys_addr, region->memory_size,
                                                      other->guest_phys_addr, other->memory_size))
            return refuse(EEXIST);
    }
    fake_kernel.slots[region->slot] = *region;
    return 0;
}

/* As much of CPUID and MSRs as somebody looks at. */
static int get_indices(struct kvm_msr_list *list)
{
    assert(list->nmsrs >= 1);
    list->nmsrs = 1;
    list->indices[0] = 0x6e0; /* the TSC deadline */
    return 0;
}

static int check_extension(unsigned long extension)
{
    switch (extension) {
    case KVM_CAP_XSAVE2:
        return sizeof(struct kvm_xsave);
    case KVM_CAP_NESTED_STATE:
        return 0;
    default:
        return 1;
    }
}

/* KVM takes any state, which is its own affair, and gives zeros. */
static int kvm_ioctl(unsigned long request, void *argument)
{
    switch (request) {
    case KVM_GET_API_VERSION:
        return KVM_API_VERSION;
    case KVM_CHECK_EXTENSION:
        return check_extension((unsigned long)argument);
    case KVM_CREATE_VM:
        memset(fake_kernel.slots, 0, sizeof(fake_kernel.slots));
        return new_file(0, 0);
    case KVM_GET_VCPU_MMAP_SIZE:
        return VCPU_ROOM;
    case KVM_CREATE_VCPU:
        return new_file(VCPU_ROOM, 0);
    case KVM_CREATE_DEVICE:
        ((struct kvm_create_device *)argument)->fd = (uint32_t)new_file(0, 0);
        return 0;
    case KVM_SET_USER_MEMORY_REGION:
        return set_memory(argument);
    case KVM_GET_MSR_INDEX_LIST:
        return get_indices(argument);
    case KVM_GET_MSRS:
    case KVM_SET_MSRS:
        return (int)((struct kvm_msrs *)argument)->nmsrs;
    case KVM_RUN:
        abort();
    default:
        if (_IOC_DIR(request) & _IOC_READ)
            memset(argument, 0, _IOC_SIZE(request));
        return 0;
    }
}

/* The guest's memory is where the peer has mapped it, and all else is not there. */
static void check_dma(uint64_t iova, uint64_t size, bool memory)
{
    assert(is_aligned(iova, PAGE_SIZE) && is_aligned(size, PAGE_SIZE) && size != 0);
    assert(memory ? iova == 0 && size == FAKE_RAM_SIZE : iova >= FAKE_RAM_SIZE && fake_kernel.live);
}

static int iommufd_ioctl(unsigned long request, void *argument)
{
    const struct uapi_ioas_change_process *change = argument;
    const struct uapi_ioas_map_file *map = argument;
    const struct uapi_ioas_unmap *unmap = argument;

    switch (request) {
    case UAPI_IOAS_CHANGE_PROCESS:
        return change->reserved ? refuse(EOPNOTSUPP) : 0;
    case UAPI_HWPT_GET_DIRTY:
        return refuse(EINVAL);
    case UAPI_IOAS_MAP_FILE:
        check_dma(map->iova, map->length, false);
        return 0;
    case UAPI_IOAS_UNMAP:
        check_dma(unmap->iova, unmap->length, false);
        return 0;
    case UAPI_IOMMU_DESTROY:
        return 0;
    default:
        return refuse(ENOTTY);
    }
}

static int container_ioctl(unsigned long request, void *argument)
{
    const struct vfio_iommu_type1_dma_map *map = argument;
    const struct vfio_iommu_type1_dma_unmap *unmap = argument;

    switch (request) {
    case VFIO_GET_API_VERSION:
        return VFIO_API_VERSION;
    case VFIO_CHECK_EXTENSION:
        return 1;
    case UAPI_IOAS_CHANGE_PROCESS:
        return refuse(ENOTTY);
    case VFIO_IOMMU_MAP_DMA:
        check_dma(map->iova, map->size, map->iova == 0);
        return 0;
    case VFIO_IOMMU_UNMAP_DMA:
        check_dma(unmap->iova, unmap->size, unmap->iova == 0);
        return 0;
    default:
        return refuse(ENOTTY);
    }
}

static int device_ioctl(unsigned long request, void *argument)
{
    if (request == UAPI_VFIO_DEVICE_FEATURE)
        return new_file(0, 0); /* a dma-buf */
    return fake_device_ioctl(request, argument);
}

/* Whatever the descriptor is said to be: what another process has made is not made again, and left
 * alone as long as the guest is there. */
static void check_allowed(unsigned long request)
{
    switch (request) {
    case UAPI_IOAS_ALLOC:
    case UAPI_IOAS_COPY:
    case UAPI_HWPT_ALLOC:
    case UAPI_VFIO_BIND_IOMMUFD:
    case UAPI_VFIO_ATTACH_IOMMUFD_PT:
    case VFIO_SET_IOMMU:
    case VFIO_GROUP_SET_CONTAINER:
    case VFIO_GROUP_GET_DEVICE_FD:
        abort();
    case UAPI_IOMMU_DESTROY:
    case VFIO_DEVICE_SET_IRQS:
    case VFIO_DEVICE_RESET:
        assert(fake_kernel.live);
        break;
    default:
        break;
    }
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    void *argument;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    if (_IOC_TYPE(request) == KVMIO)
        return kvm_ioctl(request, argument);
    check_allowed(request);
    if (is_object(fd, FAKE_DEVICE))
        return device_ioctl(request, argument);
    if (is_object(fd, FAKE_IOMMUFD))
        return iommufd_ioctl(request, argument);
    if (is_object(fd, FAKE_CONTAINER))
        return container_ioctl(request, argument);
    if (!is_object(fd, FAKE_GROUP) || request != VFIO_GROUP_GET_STATUS)
        return refuse(ENOTTY); /* a lie */
    ((struct vfio_group_status *)argument)->flags =
        VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_CONTAINER_SET;
    return 0;
}

void fake_kernel_make(uint8_t kind)
{
    fake_device_make(kind, FAKE_VECTORS, 1);
    fake_device.lied_to = true;
    fake_kernel.live = false;
    if (fake_kernel.inodes[FAKE_RAM] != 0)
        return;
    fake_kernel.objects[FAKE_RAM] = new_file(FAKE_RAM_SIZE, MFD_ALLOW_SEALING);
    fcntl(fake_kernel.objects[FAKE_RAM], F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    for (enum fake_object i = FAKE_FILE; i < FAKE_DEVICE; i++)
        fake_kernel.objects[i] = new_file(0, 0);
    fake_kernel.objects[FAKE_DEVICE] = fake_device.fd;
    for (enum fake_object i = 0; i < FAKE_OBJECTS; i++)
        fake_kernel.inodes[i] = inode_of(fake_kernel.objects[i]);
}
