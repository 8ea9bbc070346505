/* SPDX-License-Identifier: Apache-2.0
 *
 * KVM's side of passed-through devices, see vfio.h. The interface is KVM_DEV_TYPE_VFIO of
 * linux/kvm.h. Called while a machine is built or taken down, with the machine's lock held.
 */
#include "kvm/vfio.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/log.h"
#include "base/util.h"

static int create(struct kvm_vm *vm, struct error *error)
{
    struct kvm_create_device device = {.type = KVM_DEV_TYPE_VFIO};

    if (vm->vfio_fd >= 0)
        return 0;
    if (ioctl(vm->fd, KVM_CREATE_DEVICE, &device) < 0)
        return error_set_errno(error, errno, "KVM cannot be told of passed-through devices");
    vm->vfio_fd = (int)device.fd;
    return 0;
}

/* GROUP is the older name of FILE (Linux 6.2), with the same numbers. */
static int set_file(struct kvm_vm *vm, unsigned long attribute, int fd)
{
    __s32 file = fd;
    struct kvm_device_attr attr = {
        .group = KVM_DEV_VFIO_GROUP,
        .attr = attribute,
        .addr = (uintptr_t)&file,
    };

    return ioctl(vm->vfio_fd, KVM_SET_DEVICE_ATTR, &attr) < 0 ? -errno : 0;
}

int kvm_vfio_add(struct kvm_vm *vm, int fd, struct error *error)
{
    int result = create(vm, error);

    if (result == 0)
        result = set_file(vm, KVM_DEV_VFIO_GROUP_ADD, fd);
    if (result == 0 || result == -EEXIST || vm->vfio_fd < 0)
        return result == -EEXIST ? 0 : result;
    return error_set_errno(error, -result, "KVM cannot be told of the device");
}

void kvm_vfio_remove(struct kvm_vm *vm, int fd)
{
    int result = set_file(vm, KVM_DEV_VFIO_GROUP_DEL, fd);

    if (result < 0 && result != -ENOENT)
        log_warning("KVM does not let go of a passed-through device: %s", strerror(-result));
}
