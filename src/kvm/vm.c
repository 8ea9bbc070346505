/* SPDX-License-Identifier: Apache-2.0
 *
 * See vm.h. Made by the main thread or the thread of a hand-over; slots change under the machine's
 * lock.
 */
#include "kvm/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/util.h"
#include "kvm/irq.h"
#include "memory/layout.h"

static const struct state_field vm_fields[] = {
    STATE_BYTES(struct kvm_vm_state, pic_primary, 1),
    STATE_BYTES(struct kvm_vm_state, pic_secondary, 1),
    STATE_BYTES(struct kvm_vm_state, ioapic, 1),
    STATE_BYTES(struct kvm_vm_state, pit, 1),
    STATE_END,
};

const struct state_type kvm_vm_state_type = {
    .name = "kvm-vm",
    .version = 1,
    .min_version = 1,
    .size = sizeof(struct kvm_vm_state),
    .fields = vm_fields,
};

static const struct state_field clock_fields[] = {
    STATE_BYTES(struct kvm_clock_state, data, 1),
    STATE_UINT(struct kvm_clock_state, boottime_ns, 1),
    STATE_END,
};

const struct state_type kvm_clock_state_type = {
    .name = "kvm-clock",
    .version = 1,
    .min_version = 1,
    .size = sizeof(struct kvm_clock_state),
    .fields = clock_fields,
};

/* What baton cannot do without, and since when Linux has it. */
static const struct {
    unsigned capability;
    const char *name;
} required[] = {
    {KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"},
    {KVM_CAP_PIT2, "KVM_CAP_PIT2"},
    {KVM_CAP_PIT_STATE2, "KVM_CAP_PIT_STATE2"},
    {KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
    {KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING"},
    {KVM_CAP_IRQFD, "KVM_CAP_IRQFD"},
    {KVM_CAP_IRQFD_RESAMPLE, "KVM_CAP_IRQFD_RESAMPLE"},
    {KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI"},
    {KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK"},
    {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT (Linux 4.13)"},
    {KVM_CAP_SREGS2, "KVM_CAP_SREGS2 (Linux 5.14)"},
    {KVM_CAP_VCPU_ATTRIBUTES, "KVM_CAP_VCPU_ATTRIBUTES"},
};

int kvm_vm_check(const struct kvm_vm *vm, unsigned capability, struct error *error)
{
    int value = ioctl(vm->fd, KVM_CHECK_EXTENSION, (unsigned long)capability);

    if (value < 0)
        return error_set_errno(error, errno, "KVM_CHECK_EXTENSION %u failed", capability);
    return value;
}

static int open_kvm(struct kvm_vm *vm, struct error *error)
{
    int version;

    vm->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (vm->kvm_fd < 0 && (errno == ENOENT || errno == ENODEV || errno == ENXIO))
        return error_set(error, errno,
                         "/dev/kvm is not there: switch virtualisation on in the firmware, and "
                         "load the module kvm_intel or kvm_amd");
    if (vm->kvm_fd < 0 && (errno == EACCES || errno == EPERM))
        return error_set(error, errno,
                         "no permission to open /dev/kvm: give this user read and write access to "
                         "it (group kvm)");
    if (vm->kvm_fd < 0)
        return error_set_errno(error, errno, "cannot open /dev/kvm");
    version = ioctl(vm->kvm_fd, KVM_GET_API_VERSION, 0);
    if (version != KVM_API_VERSION)
        return error_set(error, ENOTSUP, "/dev/kvm has API version %d, expected %d", version,
                         KVM_API_VERSION);
    return 0;
}

/* The TSC of a VM has the frequency that the host had measured when KVM was loaded, but a host
 * measures again, better, some seconds into its life. If the processor cannot scale TSCs, KVM then
 * refuses the vCPUs that frequency without a word and takes their TSC for zero: what a guest sets
 * its timer to, by its TSC, is as many seconds late as the host has been running. Zero stands for
 * the frequency as known now. A kernel without this call for VMs has nothing else to offer. */
static int set_tsc_frequency(const struct kvm_vm *vm, struct error *error)
{
    if (ioctl(vm->fd, KVM_SET_TSC_KHZ, 0) < 0 && errno != EINVAL && errno != ENOTTY)
        return error_set_errno(error, errno, "KVM_SET_TSC_KHZ failed");
    return 0;
}

static int check_required(const struct kvm_vm *vm, struct error *error)
{
    int value;

    for (size_t i = 0; i < ARRAY_SIZE(required); i++) {
        value = kvm_vm_check(vm, required[i].capability, error);
        if (value < 0)
            return value;
        if (value == 0)
            return error_set(error, ENOTSUP, "this kernel's KVM lacks %s", required[i].name);
    }
    return 0;
}

static int create_vm(struct kvm_vm *vm, struct error *error)
{
    int ret, size;

    vm->fd = ioctl(vm->kvm_fd, KVM_CREATE_VM, 0);
    if (vm->fd < 0)
        return error_set_errno(error, errno, "KVM_CREATE_VM failed");
    ret = check_required(vm, error);
    if (ret < 0)
        return ret;
    size = ioctl(vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (size < (int)sizeof(struct kvm_run))
        return error_set(error, ENOTSUP, "KVM_GET_VCPU_MMAP_SIZE returned %d", size);
    vm->vcpu_mmap_size = (unsigned)size;
    return set_tsc_frequency(vm, error);
}

static int create_irqchip(struct kvm_vm *vm, struct error *error)
{
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
    __u64 identity_map = LAYOUT_KVM_TSS_BASE - PAGE_SIZE;

    if (ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map) < 0)
        return error_set_errno(error, errno, "KVM_SET_IDENTITY_MAP_ADDR failed");
    if (ioctl(vm->fd, KVM_SET_TSS_ADDR, (unsigned long)LAYOUT_KVM_TSS_BASE) < 0)
        return error_set_errno(error, errno, "KVM_SET_TSS_ADDR failed");
    if (ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0) < 0)
        return error_set_errno(error, errno, "KVM_CREATE_IRQCHIP failed");
    if (ioctl(vm->fd, KVM_CREATE_PIT2, &pit) < 0)
        return error_set_errno(error, errno, "KVM_CREATE_PIT2 failed");
    return 0;
}

int kvm_vm_create(struct kvm_vm *vm, struct error *error)
{
    int ret;

    *vm = (struct kvm_vm){.kvm_fd = -1, .fd = -1, .vfio_fd = -1};
    ret = open_kvm(vm, error);
    if (ret == 0)
        ret = create_vm(vm, error);
    if (ret == 0)
        ret = create_irqchip(vm, error);
    if (ret == 0)
        ret = kvm_irqs_create(vm, error);
    if (ret == 0)
        ret = kvm_vm_save(vm, &vm->initial, error);
    if (ret < 0)
        kvm_vm_destroy(vm);
    return ret;
}

void kvm_vm_destroy(struct kvm_vm *vm)
{
    kvm_irqs_destroy(vm);
    close_fd(vm->vfio_fd);
    close_fd(vm->fd);
    close_fd(vm->kvm_fd);
    vm->vfio_fd = -1;
    vm->fd = -1;
    vm->kvm_fd = -1;
}

static int free_slot(const struct kvm_vm *vm)
{
    for (unsigned i = 0; i < KVM_SLOTS_MAX; i++) {
        if (vm->slots[i].size == 0)
            return (int)i;
    }
    return -1;
}

int kvm_vm_map(struct kvm_vm *vm, uint64_t gpa, uint64_t size, void *host, bool readonly,
               unsigned *slot, struct error *error)
{
    int free = free_slot(vm);
    struct kvm_userspace_memory_region region = {
        .flags = readonly ? KVM_MEM_READONLY : 0,
        .guest_phys_addr = gpa,
        .memory_size = size,
        .userspace_addr = (uintptr_t)host,
    };

    assert(is_aligned(gpa | size | (uintptr_t)host, PAGE_SIZE) && size != 0);
    if (free < 0)
        return error_set(error, ENOSPC, "no KVM memory slot is left (%u are in use)",
                         KVM_SLOTS_MAX);
    region.slot = (unsigned)free;
    if (ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region) < 0)
        return error_set_errno(error, errno, "KVM cannot map 0x%jx bytes at 0x%jx", (uintmax_t)size,
                               (uintmax_t)gpa);
    vm->slots[free] = (struct kvm_slot){.gpa = gpa, .size = size};
    *slot = (unsigned)free;
    return 0;
}

void kvm_vm_unmap(struct kvm_vm *vm, unsigned slot)
{
    struct kvm_userspace_memory_region region = {.slot = slot};
    int ret;

    assert(slot < KVM_SLOTS_MAX && vm->slots[slot].size != 0);
    ret = ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region);
    assert(ret == 0); /* takes a few bytes of the kernel's, and no more can go wrong */
    vm->slots[slot].size = 0;
}

void kvm_vm_set_irq(struct kvm_vm *vm, unsigned gsi, bool level)
{
    struct kvm_irq_level line = {.irq = gsi, .level = level};
    int ret = ioctl(vm->fd, KVM_IRQ_LINE, &line);

    assert(ret == 0);
}

/* --- state --------------------------------------------------------------------------------- */

/* Without a copy on the stack: in the blackout a vCPU's thread comes here, whose stack has not been
 * that deep before and would have to grow. */
static int get_chip(struct kvm_vm *vm, uint32_t id, uint8_t *bytes, struct error *error)
{
    memset(bytes, 0, sizeof(struct kvm_irqchip));
    memcpy(bytes + offsetof(struct kvm_irqchip, chip_id), &id, sizeof(id));
    if (ioctl(vm->fd, KVM_GET_IRQCHIP, bytes) < 0)
        return error_set_errno(error, errno, "KVM_GET_IRQCHIP %u failed", id);
    return 0;
}

static int set_chip(struct kvm_vm *vm, unsigned id, const uint8_t *bytes, struct error *error)
{
    struct kvm_irqchip chip;

    memcpy(&chip, bytes, sizeof(chip));
    chip.chip_id = id; /* whatever the bytes say */
    if (ioctl(vm->fd, KVM_SET_IRQCHIP, &chip) < 0)
        return error_set_errno(error, errno, "KVM_SET_IRQCHIP %u failed", id);
    return 0;
}

int kvm_clock_save(struct kvm_vm *vm, struct kvm_clock_state *state, struct error *error)
{
    struct kvm_clock_data clock = {0};

    state->boottime_ns = clock_boottime_ns();
    if (ioctl(vm->fd, KVM_GET_CLOCK, &clock) < 0)
        return error_set_errno(error, errno, "KVM_GET_CLOCK failed");
    memcpy(state->data, &clock, sizeof(clock));
    return 0;
}

/* With KVM_CLOCK_REALTIME the kernel itself adds the time that has passed since the clock was
 * read; without (an unstable TSC), we do. */
int kvm_clock_load(struct kvm_vm *vm, const struct kvm_clock_state *state, struct error *error)
{
    struct kvm_clock_data clock;

    memcpy(&clock, state->data, sizeof(clock));
    if (clock.flags & KVM_CLOCK_REALTIME) {
        clock.flags = KVM_CLOCK_REALTIME;
    } else {
        uint64_t now = clock_boottime_ns();

        clock.flags = 0;
        if (now > state->boottime_ns)
            clock.clock += now - state->boottime_ns;
    }
    if (ioctl(vm->fd, KVM_SET_CLOCK, &clock) < 0)
        return error_set_errno(error, errno, "KVM_SET_CLOCK failed");
    return 0;
}

int kvm_vm_save(struct kvm_vm *vm, struct kvm_vm_state *state, struct error *error)
{
    int ret = get_chip(vm, KVM_IRQCHIP_PIC_MASTER, state->pic_primary, error);

    if (ret == 0)
        ret = get_chip(vm, KVM_IRQCHIP_PIC_SLAVE, state->pic_secondary, error);
    if (ret == 0)
        ret = get_chip(vm, KVM_IRQCHIP_IOAPIC, state->ioapic, error);
    if (ret < 0)
        return ret;
    memset(state->pit, 0, sizeof(state->pit));
    if (ioctl(vm->fd, KVM_GET_PIT2, state->pit) < 0)
        return error_set_errno(error, errno, "KVM_GET_PIT2 failed");
    return 0;
}

/* The PIT comes first: loading it may raise its line, which the saved controllers then overwrite.
 */
int kvm_vm_load(struct kvm_vm *vm, const struct kvm_vm_state *state, struct error *error)
{
    struct kvm_pit_state2 pit;
    int ret;

    memcpy(&pit, state->pit, sizeof(pit));
    if (ioctl(vm->fd, KVM_SET_PIT2, &pit) < 0)
        return error_set_errno(error, errno, "KVM_SET_PIT2 failed");
    ret = set_chip(vm, KVM_IRQCHIP_PIC_MASTER, state->pic_primary, error);
    if (ret == 0)
        ret = set_chip(vm, KVM_IRQCHIP_PIC_SLAVE, state->pic_secondary, error);
    if (ret == 0)
        ret = set_chip(vm, KVM_IRQCHIP_IOAPIC, state->ioapic, error);
    return ret;
}

int kvm_vm_reset(struct kvm_vm *vm, struct error *error)
{
    int ret = kvm_vm_load(vm, &vm->initial, error);

    kvm_irqs_resample(vm);
    return ret;
}
