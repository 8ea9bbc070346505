/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of what a machine is made of, in build order. Each part adapts one lower folder to the
 * same few operations, so that building, adopting, saving, resetting and taking down a machine are
 * loops. To add a device: write it in its folder, add a part to parts_devices.c and a line here.
 *
 * Also here: the parts that are nothing but the machine's own, and booting.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>

#include "base/util.h"
#include "boot/boot.h"
#include "machine/internal.h"

unsigned machine_one(const struct machine *machine)
{
    (void)machine;
    return 1;
}

/* --- machine: what belongs to no part ------------------------------------------------------ */

static const struct state_field machine_fields[] = {
    STATE_BOOL(struct machine_state, running, 1),
    STATE_UINT_RANGE(struct machine_state, requests, 1, 0, MACHINE_REQUESTS_ALL, 0),
    STATE_UINT(struct machine_state, generation, 1),
    STATE_END,
};

const struct state_type machine_state_type = {
    .name = "machine",
    .version = 1,
    .min_version = 1,
    .size = sizeof(struct machine_state),
    .fields = machine_fields,
};

static void *machine_state_of(struct machine *machine, unsigned index)
{
    (void)index;
    return &machine->state;
}

static int machine_save_own(struct machine *machine, struct error *error)
{
    (void)error;
    machine->state.requests = atomic_load(&machine->requests);
    /* In the switch it is known from before the pause. */
    if (machine_status(machine) != MACHINE_FINISH_MIGRATE)
        machine->state.running = machine_status(machine) == MACHINE_RUNNING;
    return 0;
}

static int machine_apply_own(struct machine *machine, struct error *error)
{
    (void)error;
    atomic_store(&machine->requests, machine->state.requests);
    return 0;
}

const struct machine_part machine_part_own = {
    .name = "machine",
    .count = machine_one,
    .blockers = machine_own_blockers,
    .state_type = &machine_state_type,
    .state = machine_state_of,
    .save = machine_save_own,
    .apply = machine_apply_own,
};

/* --- files: kernel and initrd, needed again at every guest reset --------------------------- */

static int open_file(const char *what, const char *path, int *fd, struct error *error)
{
    *fd = -1;
    if (!path[0])
        return 0;
    *fd = open(path, O_RDONLY | O_CLOEXEC);
    if (*fd < 0)
        return error_set_errno(error, errno, "cannot open %s '%s'", what, path);
    return 0;
}

static int files_create(struct machine *machine, unsigned index, struct error *error)
{
    int ret = open_file("kernel", machine->config.kernel, &machine->kernel_fd, error);

    (void)index;
    return ret < 0 ? ret : open_file("initrd", machine->config.initrd, &machine->initrd_fd, error);
}

static int files_adopt(struct machine *machine, unsigned index, const struct machine_source *source,
                       struct error *error)
{
    (void)index;
    machine->kernel_fd = fdset_take(source->fds, FDSET_FILE, error, "boot/kernel");
    if (machine->kernel_fd < 0)
        return machine->kernel_fd;
    if (!machine->config.initrd[0])
        return 0;
    machine->initrd_fd = fdset_take(source->fds, FDSET_FILE, error, "boot/initrd");
    return MIN(machine->initrd_fd, 0);
}

static int files_describe(struct machine *machine, unsigned index, struct machine_facts *facts,
                          struct fdset *fds, struct error *error)
{
    int ret = fdset_add_copy(fds, machine->kernel_fd, error, "boot/kernel");

    (void)index;
    (void)facts;
    if (ret == 0 && machine->initrd_fd >= 0)
        ret = fdset_add_copy(fds, machine->initrd_fd, error, "boot/initrd");
    return ret;
}

static void files_destroy(struct machine *machine, unsigned index, bool handed_over)
{
    (void)index;
    (void)handed_over;
    close_fd(machine->kernel_fd);
    close_fd(machine->initrd_fd);
}

const struct machine_part machine_part_files = {
    .name = "boot",
    .count = machine_one,
    .create = files_create,
    .adopt = files_adopt,
    .describe = files_describe,
    .destroy = files_destroy,
};

/* --- the table ----------------------------------------------------------------------------- */

/* State is applied in this order as well: vCPUs and then the VM's interrupt controllers (see
 * vcpus_apply()), TSC offsets before the clock, and devices, which may raise lines, last. */
/* clang-format off */
const struct machine_part *const machine_parts[] = {
    &machine_part_own,
    &machine_part_files,
    &machine_part_ram,
    &machine_part_vm,
    &machine_part_vcpu,
    &machine_part_clock,
    &machine_part_pci,
    &machine_part_console,
    &machine_part_serial,
    &machine_part_power,
    &machine_part_iommu,
    &machine_part_vfio_pci,
};
/* clang-format on */

const unsigned machine_part_count = ARRAY_SIZE(machine_parts);

/* --- boot ---------------------------------------------------------------------------------- */

static int set_entry(struct kvm_vcpu *vcpu, void *argument, struct error *error)
{
    const struct boot_entry *entry = argument;

    if (vcpu->index != 0)
        return 0; /* the others wait for the boot processor to start them */
    if (ioctl(vcpu->fd, KVM_SET_SREGS, &entry->sregs) < 0 ||
        ioctl(vcpu->fd, KVM_SET_REGS, &entry->regs) < 0)
        return error_set_errno(error, errno, "cannot set the registers to start with");
    return 0;
}

static int get_sregs(struct kvm_vcpu *vcpu, void *argument, struct error *error)
{
    struct boot_entry *entry = argument;

    if (vcpu->index == 0 && ioctl(vcpu->fd, KVM_GET_SREGS, &entry->sregs) < 0)
        return error_set_errno(error, errno, "KVM_GET_SREGS failed");
    return 0;
}

int machine_boot(struct machine *machine, struct error *error)
{
    const struct boot_config config = {
        .ram = &machine->ram,
        .kernel_fd = machine->kernel_fd,
        .kernel = machine->config.kernel,
        .initrd_fd = machine->initrd_fd,
        .initrd = machine->config.initrd,
        .cmdline = machine->config.append,
        .cpus = machine->config.cpus,
        .mmio64_base = machine->mmio64_base,
        .mmio64_size = machine->mmio64_size,
    };
    struct boot_entry entry = {0};
    int ret = kvm_vcpus_call(machine->vcpus, machine->vcpu_count, get_sregs, &entry, error);

    if (ret == 0)
        ret = boot_load(&config, &entry, error);
    if (ret == 0)
        ret = kvm_vcpus_call(machine->vcpus, machine->vcpu_count, set_entry, &entry, error);
    return ret;
}
