/* SPDX-License-Identifier: Apache-2.0
 *
 * Parts of a machine: memory, the virtual machine itself, its vCPUs and its clock. See
 * machine_parts[] for their order and internal.h for what each function is.
 */
#include <errno.h>

#include "base/log.h"
#include "base/util.h"
#include "machine/internal.h"
#include "memory/layout.h"

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
    int fd = fdset_take(source->fds, FDSET_ANY, error, "ram/0");

    (void)index;
    if (fd < 0)
        return fd;
    return ram_adopt(&machine->ram, fd, machine->config.memory_size, machine->config.hugetlb_size,
                     error);
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

const struct machine_part machine_part_ram = {
    .name = "ram",
    .count = machine_one,
    .create = ram_part_create,
    .adopt = ram_part_adopt,
    .describe = ram_part_describe,
    .destroy = ram_part_destroy,
};

/* --- vm: a new one in every process -------------------------------------------------------- */

#define PHYSICAL_BITS_MIN 36u
#define PHYSICAL_BITS_MAX 52u /* architectural */

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

/* After this, CPUID is in place. It may come from another process. */
static int vm_finish(struct machine *machine, struct error *error)
{
    unsigned bits = kvm_cpuid_physical_bits(&machine->cpuid);

    if (bits < PHYSICAL_BITS_MIN || bits > PHYSICAL_BITS_MAX)
        return error_set(error, ENOTSUP, "a processor with %u physical address bits", bits);
    place_mmio64(machine);
    if (machine->ram.size > machine->mmio64_base - LAYOUT_RAM_ABOVE_4G)
        return error_set(error, EINVAL,
                         "-m: this processor's %u address bits leave room for %ju MiB of memory",
                         bits, (uintmax_t)((machine->mmio64_base - LAYOUT_RAM_ABOVE_4G) / MIB));
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

/* When the guest has stopped for the switch, it has been saved already. */
static int vm_save(struct machine *machine, struct error *error)
{
    if (machine->status == MACHINE_FINISH_MIGRATE)
        return 0;
    return kvm_vm_save(&machine->vm, &machine->vm_state, error);
}

const struct machine_part machine_part_vm = {
    .name = "vm",
    .count = machine_one,
    .create = vm_create,
    .adopt = vm_adopt,
    .describe = vm_describe,
    .destroy = vm_destroy,
    .reset = vm_reset,
    .state_type = &kvm_vm_state_type,
    .state = vm_state,
    .save = vm_save,
};

/* --- vcpus --------------------------------------------------------------------------------- */

static unsigned vcpu_count(const struct machine *machine)
{
    return machine->config.cpus;
}

/* vCPU threads ask; the main thread acts. */
static void on_triple_fault(void *opaque)
{
    log_guest("a processor has shut itself down (triple fault): reset");
    machine_post_request(opaque, MACHINE_REQUEST_RESET);
}

static void on_failed(void *opaque, unsigned index, const char *reason)
{
    (void)index;
    log_error("%s; the guest is stopped", reason);
    machine_post_request(opaque, MACHINE_REQUEST_FAIL);
}

static void on_enter(void *opaque)
{
    const struct machine *machine = opaque;

    if (machine->enters)
        machine->enters(machine->enters_opaque);
}

static const struct kvm_vcpu_ops vcpu_ops = {
    .enters = on_enter,
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

/* When the guest has stopped for the switch, they are at it already. */
static int vcpus_save(struct machine *machine, struct error *error)
{
    if (machine->status == MACHINE_FINISH_MIGRATE)
        return kvm_vcpus_wait(machine->vcpus, machine->vcpu_count, error);
    return kvm_vcpus_call(machine->vcpus, machine->vcpu_count, kvm_vcpu_save_task, NULL, error);
}

/* The VM's controllers come after the local APICs, the other way round than when they are saved:
 * loading an IOAPIC injects what is pending in it, which a local APIC's own state would overwrite.
 */
static int vcpus_apply(struct machine *machine, struct error *error)
{
    int ret = kvm_vcpus_load(machine->vcpus, machine->vcpu_count, error);

    return ret < 0 ? ret : kvm_vm_load(&machine->vm, &machine->vm_state, error);
}

/* All of them at the first one's turn: they reset in parallel. */
static int vcpu_reset(struct machine *machine, unsigned index, struct error *error)
{
    if (index != 0)
        return 0;
    return kvm_vcpus_call(machine->vcpus, machine->vcpu_count, kvm_vcpu_reset_task, NULL, error);
}

const struct machine_part machine_part_vcpu = {
    .name = "vcpu",
    .count = vcpu_count,
    .create = vcpu_create,
    .adopt = vcpu_adopt,
    .destroy = vcpu_destroy,
    .reset = vcpu_reset,
    .state_type = &kvm_vcpu_state_type,
    .state = vcpu_state,
    .save = vcpus_save,
    .apply = vcpus_apply,
};

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

const struct machine_part machine_part_clock = {
    .name = "clock",
    .count = machine_one,
    .state_type = &kvm_clock_state_type,
    .state = clock_state,
    .save = clock_save,
    .apply = clock_apply,
};
