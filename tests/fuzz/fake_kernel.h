/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernel under a machine that is handed over: KVM, an iommufd, containers with their groups,
 * and the device of fake_device.h, of which all devices are. It defines ioctl(), fstat() and
 * open(), and aborts when something is done that must not be. KVM's own descriptors are empty
 * files.
 */
#pragma once

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/util.h"
#include "kvm/vm.h"

#define FAKE_RAM_SIZE (4 * MIB) /* of the guest */
#define FAKE_VECTORS  4u        /* of a device */

/** What can be handed over. Which of them a descriptor is, its inode says. */
enum fake_object {
    FAKE_RAM,
    FAKE_FILE,
    FAKE_IOMMUFD,
    FAKE_CONTAINER,
    FAKE_GROUP,
    FAKE_DEVICE,
    FAKE_OBJECTS,
};

struct fake_kernel {
    int objects[FAKE_OBJECTS];
    ino_t inodes[FAKE_OBJECTS];
    bool live; /**< the guest is this process's: it may change what it was handed */
    struct kvm_userspace_memory_region slots[KVM_SLOTS_MAX]; /**< of the only VM */
};
extern struct fake_kernel fake_kernel;

/** Makes it anew, with another process's guest. @param kind of the devices, see fake_device.h */
void fake_kernel_make(uint8_t kind);
