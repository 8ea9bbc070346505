/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of what a machine is made of, in build order. Each row adapts one lower folder to the
 * same few operations, so that building, adopting, saving, resetting and taking down a machine are
 * loops. To add a device: write it in its folder, add its rows here.
 *
 * create, adopt and destroy run on the main thread; the rest on whoever holds machine->life.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/log.h"
#include "base/util.h"
#include "boot/boot.h"
#include "machine/internal.h"
#include "memory/layout.h"

static unsigned one(const struct machine *machine)
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

static const struct state_type machine_state_type = {
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

static int files_adopt(struct machine *machine, unsigned index,
                       const struct machine_source *source, struct error *error)
{
    (void)index;
    machine->kernel_fd = fdset_take(source->fds, error, "boot/kernel");
    if (machine->kernel_fd < 0)
        return machine->kernel_fd;
    if (!machine->config.initrd[0])
        return 0;
    machine->initrd_fd = fdset_take(source->fds, error, "boot/initrd");
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

/* --- ram ----------------------------------------------------------------------------------- */

static const char *ram_name(const struct machine *machine)
{
    return machine->config.memory_backend[0] ? machine->config.memory_backend : "baton.ram";
}

static int ram_part_create(struct machine *machine, unsigned index, struct error *error)
{
    const struct config *config = &machine->config;

    (void)index;
    return ram_create(&machine->ram, ram_name(machine), config->memory_size, config->hugetlb_size,
                      config->prealloc, error);
}

static int ram_part_adopt(struct machine *machine, unsigned index,
                          const struct machine_source *source, struct error *error)
{
    int fd = fdset_take(source->fds, error, "ram/0");

    (void)index;
    if (fd < 0)
        return fd;
    return ram_adopt(&machine->ram, fd, machine->config.memory_size,
                     machine->config.hugetlb_size, error);
}

static int ram_part_describe(struct machine *machine, unsigned index, struct machine_facts *facts,
                             struct fdset *fds, struct error *error)
{
    (void)index;
    (void)facts;
    return fdset_add_copy(fds, machine->ram.fd, error, "ram/0");
}

static void ram_part_destroy(struct machine *machine, unsigned index, bool handed_over)
{
    (void)index;
    (void)handed_over;
    ram_destroy(&machine->ram);
}

/* --- vm: a new one in every process -------------------------------------------------------- */

/* The 64-bit window for BARs is the third quarter of the physical address space: far above any
 * RAM, and below the ranges at the top that AMD's HyperTransport reserves. */
static void place_mmio64(struct machine *machine)
{
    unsigned bits = kvm_cpuid_physical_bits(&machine->cpuid);

    machine->mmio64_base = UINT64_C(1) << (bits - 1);
    machine->mmio64_size = UINT64_C(1) << (bits - 2);
}

static int map_ram(struct machine *machine, struct error *error)
{
    for (unsigned i = 0; i < machine->ram.region_count; i++) {
        const struct ram_region *region = &machine->ram.regions[i];
        int ret = kvm_vm_map(&machine->vm, region->gpa, region->size, region->host, false,
                             &machine->ram_slots[i], error);

        if (ret < 0)
            return ret;
    }
    return 0;
}

/* After this, CPUID is in place. */
static int vm_finish(struct machine *machine, struct error *error)
{
    place_mmio64(machine);
    if (machine->ram.size > machine->mmio64_base - LAYOUT_RAM_ABOVE_4G)
        return error_set(error, EINVAL,
                         "-m: this processor's %u address bits leave room for %ju MiB of memory",
                         kvm_cpuid_physical_bits(&machine->cpuid),
                         (uintmax_t)((machine->mmio64_base - LAYOUT_RAM_ABOVE_4G) / MIB));
    return map_ram(machine, error);
}

static int vm_create(struct machine *machine, unsigned index, struct error *error)
{
    int ret = kvm_vm_create(&machine->vm, error);

    (void)index;
    if (ret == 0)
        ret = kvm_cpuid_read_host(&machine->cpuid, &machine->vm, machine->config.cpus, error);
    return ret < 0 ? ret : vm_finish(machine, error);
}

static int vm_adopt(struct machine *machine, unsigned index, const struct machine_source *source,
                    struct error *error)
{
    int ret = kvm_vm_create(&machine->vm, error);

    (void)index;
    machine->cpuid = source->facts->cpuid;
    return ret < 0 ? ret : vm_finish(machine, error);
}

static int vm_describe(struct machine *machine, unsigned index, struct machine_facts *facts,
                       struct fdset *fds, struct error *error)
{
    (void)index;
    (void)fds;
    (void)error;
    facts->cpuid = machine->cpuid;
    return 0;
}

static void vm_destroy(struct machine *machine, unsigned index, bool handed_over)
{
    (void)index;
    (void)handed_over;
    kvm_vm_destroy(&machine->vm);
}

static int vm_reset(struct machine *machine, unsigned index, struct error *error)
{
    (void)index;
    return kvm_vm_reset(&machine->vm, error);
}

static void *vm_state(struct machine *machine, unsigned index)
{
    (void)index;
    return &machine->vm_state;
}

static int vm_save(struct machine *machine, struct error *error)
{
    return kvm_vm_save(&machine->vm, &machine->vm_state, error);
}

static int vm_apply(struct machine *machine, struct error *error)
{
    return kvm_vm_load(&machine->vm, &machine->vm_state, error);
}

/* --- vcpus --------------------------------------------------------------------------------- */

static unsigned vcpu_count(const struct machine *machine)
{
    return machine->config.cpus;
}

/* vCPU threads ask; the main thread acts. */
static void on_triple_fault(void *opaque)
{
    machine_post_request(opaque, MACHINE_REQUEST_RESET);
}

static void on_failed(void *opaque, unsigned index, const char *reason)
{
    (void)index;
    log_error("%s; the guest is stopped", reason);
    machine_post_request(opaque, MACHINE_REQUEST_FAIL);
}

static const struct kvm_vcpu_ops vcpu_ops = {
    .triple_fault = on_triple_fault,
    .failed = on_failed,
};

static int vcpu_create(struct machine *machine, unsigned index, struct error *error)
{
    int ret = kvm_vcpu_create(&machine->vcpus[index], &machine->vm, index, &machine->cpuid,
                              machine->mmio, machine->pio, &vcpu_ops, machine, error);

    if (ret == 0)
        machine->vcpu_count = index + 1;
    return ret;
}

static int vcpu_adopt(struct machine *machine, unsigned index, const struct machine_source *source,
                      struct error *error)
{
    (void)source;
    return vcpu_create(machine, index, error);
}

static void vcpu_destroy(struct machine *machine, unsigned index, bool handed_over)
{
    (void)handed_over;
    if (index < machine->vcpu_count)
        kvm_vcpu_destroy(&machine->vcpus[index]);
}

static void *vcpu_state(struct machine *machine, unsigned index)
{
    return machine->vcpus[index].state;
}

static int vcpus_save(struct machine *machine, struct error *error)
{
    return kvm_vcpus_call(machine->vcpus, machine->vcpu_count, kvm_vcpu_save_task, NULL, error);
}

static int vcpus_apply(struct machine *machine, struct error *error)
{
    return kvm_vcpus_call(machine->vcpus, machine->vcpu_count, kvm_vcpu_load_task, NULL, error);
}

/* All of them at the first one's turn: they reset in parallel. */
static int vcpu_reset(struct machine *machine, unsigned index, struct error *error)
{
    if (index != 0)
        return 0;
    return kvm_vcpus_call(machine->vcpus, machine->vcpu_count, kvm_vcpu_reset_task, NULL, error);
}

/* --- clock --------------------------------------------------------------------------------- */

static void *clock_state(struct machine *machine, unsigned index)
{
    (void)index;
    return &machine->clock_state;
}

static int clock_save(struct machine *machine, struct error *error)
{
    return kvm_clock_save(&machine->vm, &machine->clock_state, error);
}

static int clock_apply(struct machine *machine, struct error *error)
{
    return kvm_clock_load(&machine->vm, &machine->clock_state, error);
}

/* --- PCI host bridge ----------------------------------------------------------------------- */

static int pci_create(struct machine *machine, unsigned index, struct error *error)
{
    (void)index;
    return pci_host_create(&machine->pci, machine->mmio, machine->pio, error);
}

static int pci_adopt(struct machine *machine, unsigned index, const struct machine_source *source,
                     struct error *error)
{
    (void)source;
    return pci_create(machine, index, error);
}

static void pci_destroy(struct machine *machine, unsigned index, bool handed_over)
{
    (void)index;
    (void)handed_over;
    if (machine->pci)
        pci_host_destroy(machine->pci);
}

static int pci_reset(struct machine *machine, unsigned index, struct error *error)
{
    (void)index;
    (void)error;
    pci_host_reset(machine->pci);
    return 0;
}

static void *pci_state(struct machine *machine, unsigned index)
{
    (void)index;
    return pci_host_state(machine->pci);
}

/* --- console: back end and serial port ----------------------------------------------------- */

static int console_create(struct machine *machine, unsigned index, struct error *error)
{
    (void)index;
    return chardev_create(&machine->console, "serial0", machine->config.serial, machine->loop,
                          &machine->lock, error);
}

/* A console that was named on this process's command line is opened; otherwise the old one's
 * descriptors are taken over, so that whoever is connected stays connected. */
static int console_adopt(struct machine *machine, unsigned index,
                         const struct machine_source *source, struct error *error)
{
    if (machine->console_given)
        return console_create(machine, index, error);
    return chardev_adopt(&machine->console, "serial0", machine->config.serial, machine->loop,
                         &machine->lock, source->fds, error);
}

static int console_describe(struct machine *machine, unsigned index, struct machine_facts *facts,
                            struct fdset *fds, struct error *error)
{
    (void)index;
    (void)facts;
    return chardev_describe(machine->console, fds, error);
}

static void console_destroy(struct machine *machine, unsigned index, bool handed_over)
{
    (void)index;
    if (machine->console)
        chardev_destroy(machine->console, handed_over);
}

static int serial_part_create(struct machine *machine, unsigned index, struct error *error)
{
    (void)index;
    return serial_create(&machine->serial, machine->pio, &machine->vm, LAYOUT_COM1_PORT,
                         LAYOUT_COM1_IRQ, machine->console, error);
}

static int serial_part_adopt(struct machine *machine, unsigned index,
                             const struct machine_source *source, struct error *error)
{
    (void)source;
    return serial_part_create(machine, index, error);
}

static void serial_part_destroy(struct machine *machine, unsigned index, bool handed_over)
{
    (void)index;
    (void)handed_over;
    if (machine->serial)
        serial_destroy(machine->serial);
}

static int serial_part_reset(struct machine *machine, unsigned index, struct error *error)
{
    (void)index;
    (void)error;
    serial_reset(machine->serial);
    return 0;
}

static void *serial_part_state(struct machine *machine, unsigned index)
{
    (void)index;
    return serial_state(machine->serial);
}

static int serial_part_apply(struct machine *machine, struct error *error)
{
    (void)error;
    serial_apply_state(machine->serial);
    return 0;
}

/* --- power --------------------------------------------------------------------------------- */

static void on_guest_shutdown(void *opaque)
{
    machine_post_request(opaque, MACHINE_REQUEST_SHUTDOWN);
}

static void on_guest_reset(void *opaque)
{
    machine_post_request(opaque, MACHINE_REQUEST_RESET);
}

static const struct power_ops power_ops = {
    .shutdown = on_guest_shutdown,
    .reset = on_guest_reset,
};

static int power_part_create(struct machine *machine, unsigned index, struct error *error)
{
    (void)index;
    return power_create(&machine->power, machine->pio, &machine->vm, &power_ops, machine, error);
}

static int power_part_adopt(struct machine *machine, unsigned index,
                            const struct machine_source *source, struct error *error)
{
    (void)source;
    return power_part_create(machine, index, error);
}

static void power_part_destroy(struct machine *machine, unsigned index, bool handed_over)
{
    (void)index;
    (void)handed_over;
    if (machine->power)
        power_destroy(machine->power);
}

static int power_part_reset(struct machine *machine, unsigned index, struct error *error)
{
    (void)index;
    (void)error;
    power_reset(machine->power);
    return 0;
}

static void *power_part_state(struct machine *machine, unsigned index)
{
    (void)index;
    return power_state(machine->power);
}

static int power_part_apply(struct machine *machine, struct error *error)
{
    (void)error;
    power_apply_state(machine->power);
    return 0;
}

/* --- iommufds ------------------------------------------------------------------------------ */

static unsigned iommu_count(const struct machine *machine)
{
    return machine->config.iommu_count;
}

/* All of guest RAM is reachable by DMA, at its guest-physical address. */
static int iommu_part_create(struct machine *machine, unsigned index, struct error *error)
{
    int ret = iommu_create(&machine->iommus[index], machine->config.iommus[index].id, error);

    for (unsigned i = 0; ret == 0 && i < machine->ram.region_count; i++) {
        const struct ram_region *region = &machine->ram.regions[i];

        ret = iommu_map_file(machine->iommus[index], region->gpa, region->size, machine->ram.fd,
                             region->offset, error);
    }
    return ret;
}

static int iommu_part_adopt(struct machine *machine, unsigned index,
                            const struct machine_source *source, struct error *error)
{
    return iommu_adopt(&machine->iommus[index], &source->facts->iommus[index], source->fds, error);
}

static int iommu_part_describe(struct machine *machine, unsigned index,
                               struct machine_facts *facts, struct fdset *fds,
                               struct error *error)
{
    return iommu_describe(machine->iommus[index], &facts->iommus[index], fds, error);
}

static void iommu_part_destroy(struct machine *machine, unsigned index, bool handed_over)
{
    (void)handed_over;
    if (machine->iommus[index])
        iommu_destroy(machine->iommus[index]);
}

/* --- passed-through devices ---------------------------------------------------------------- */

static unsigned vfio_count(const struct machine *machine)
{
    return machine->config.device_count;
}

static void vfio_prepare(const struct machine *machine, unsigned index,
                         struct vfio_pci_config *own, struct vfio_pci_parents *parents)
{
    const struct config_vfio_pci *config = &machine->config.devices[index];

    *own = (struct vfio_pci_config){.devfn = config->devfn};
    snprintf(own->id, sizeof(own->id), "%s", config->id);
    snprintf(own->host, sizeof(own->host), "%s", config->host);
    *parents = (struct vfio_pci_parents){.vm = (struct kvm_vm *)&machine->vm,
                                         .mmio = machine->mmio,
                                         .pio = machine->pio,
                                         .pci = machine->pci};
    for (unsigned i = 0; i < machine->config.iommu_count; i++) {
        if (strcmp(machine->config.iommus[i].id, config->iommufd) == 0)
            parents->iommu = machine->iommus[i];
    }
    assert(parents->iommu != NULL); /* config_parse() has checked the reference */
}

static int vfio_create(struct machine *machine, unsigned index, struct error *error)
{
    struct vfio_pci_config config;
    struct vfio_pci_parents parents;

    vfio_prepare(machine, index, &config, &parents);
    return vfio_pci_create(&machine->devices[index], &config, &parents, error);
}

static int vfio_adopt(struct machine *machine, unsigned index, const struct machine_source *source,
                      struct error *error)
{
    struct vfio_pci_config config;
    struct vfio_pci_parents parents;

    vfio_prepare(machine, index, &config, &parents);
    return vfio_pci_adopt(&machine->devices[index], &config, &parents,
                          &source->facts->devices[index], source->fds, error);
}

static int vfio_describe(struct machine *machine, unsigned index, struct machine_facts *facts,
                         struct fdset *fds, struct error *error)
{
    return vfio_pci_describe(machine->devices[index], &facts->devices[index], fds, error);
}

static void vfio_destroy(struct machine *machine, unsigned index, bool handed_over)
{
    if (machine->devices[index])
        vfio_pci_destroy(machine->devices[index], handed_over);
}

static int vfio_reset(struct machine *machine, unsigned index, struct error *error)
{
    (void)error;
    vfio_pci_reset(machine->devices[index]);
    return 0;
}

static const char *vfio_id(const struct machine *machine, unsigned index)
{
    return machine->config.devices[index].id;
}

static void *vfio_state(struct machine *machine, unsigned index)
{
    return vfio_pci_state(machine->devices[index]);
}

static int vfio_save(struct machine *machine, struct error *error)
{
    int ret = 0;

    pthread_mutex_lock(&machine->lock);
    for (unsigned i = 0; ret == 0 && i < machine->config.device_count; i++)
        ret = vfio_pci_save_state(machine->devices[i], error);
    pthread_mutex_unlock(&machine->lock);
    return ret;
}

static int vfio_apply(struct machine *machine, struct error *error)
{
    for (unsigned i = 0; i < machine->config.device_count; i++) {
        int ret = vfio_pci_apply_state(machine->devices[i], error);

        if (ret < 0)
            return ret;
    }
    return 0;
}

/* --- the table ----------------------------------------------------------------------------- */

/* State is applied in this order as well: interrupt controllers before the local APICs (loading
 * an IOAPIC injects what is pending in it, which the APICs' own state then overwrites), TSC offsets
 * before the clock, and devices, which may raise lines, last. */
const struct machine_part machine_parts[] = {
    {.name = "machine",
     .count = one,
     .state_type = &machine_state_type,
     .state = machine_state_of,
     .save = machine_save_own,
     .apply = machine_apply_own},
    {.name = "boot",
     .count = one,
     .create = files_create,
     .adopt = files_adopt,
     .describe = files_describe,
     .destroy = files_destroy},
    {.name = "ram",
     .count = one,
     .create = ram_part_create,
     .adopt = ram_part_adopt,
     .describe = ram_part_describe,
     .destroy = ram_part_destroy},
    {.name = "vm",
     .count = one,
     .create = vm_create,
     .adopt = vm_adopt,
     .describe = vm_describe,
     .destroy = vm_destroy,
     .reset = vm_reset,
     .state_type = &kvm_vm_state_type,
     .state = vm_state,
     .save = vm_save,
     .apply = vm_apply},
    {.name = "vcpu",
     .count = vcpu_count,
     .create = vcpu_create,
     .adopt = vcpu_adopt,
     .destroy = vcpu_destroy,
     .reset = vcpu_reset,
     .state_type = &kvm_vcpu_state_type,
     .state = vcpu_state,
     .save = vcpus_save,
     .apply = vcpus_apply},
    {.name = "clock",
     .count = one,
     .state_type = &kvm_clock_state_type,
     .state = clock_state,
     .save = clock_save,
     .apply = clock_apply},
    {.name = "pci",
     .count = one,
     .create = pci_create,
     .adopt = pci_adopt,
     .destroy = pci_destroy,
     .reset = pci_reset,
     .state_type = &pci_host_state_type,
     .state = pci_state},
    {.name = "console",
     .count = one,
     .create = console_create,
     .adopt = console_adopt,
     .describe = console_describe,
     .destroy = console_destroy},
    {.name = "serial",
     .count = one,
     .create = serial_part_create,
     .adopt = serial_part_adopt,
     .destroy = serial_part_destroy,
     .reset = serial_part_reset,
     .state_type = &serial_state_type,
     .state = serial_part_state,
     .apply = serial_part_apply},
    {.name = "power",
     .count = one,
     .create = power_part_create,
     .adopt = power_part_adopt,
     .destroy = power_part_destroy,
     .reset = power_part_reset,
     .state_type = &power_state_type,
     .state = power_part_state,
     .apply = power_part_apply},
    {.name = "iommufd",
     .count = iommu_count,
     .create = iommu_part_create,
     .adopt = iommu_part_adopt,
     .describe = iommu_part_describe,
     .destroy = iommu_part_destroy},
    {.name = "vfio-pci",
     .count = vfio_count,
     .create = vfio_create,
     .adopt = vfio_adopt,
     .describe = vfio_describe,
     .destroy = vfio_destroy,
     .reset = vfio_reset,
     .id = vfio_id,
     .state_type = &vfio_pci_state_type,
     .state = vfio_state,
     .save = vfio_save,
     .apply = vfio_apply},
};

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
