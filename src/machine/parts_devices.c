/* SPDX-License-Identifier: Apache-2.0
 *
 * Parts of a machine: the devices. See machine_parts[] for their order and internal.h for what each
 * function is.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "machine/internal.h"
#include "memory/layout.h"

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

const struct machine_part machine_part_pci = {
    .name = "pci",
    .count = machine_one,
    .create = pci_create,
    .adopt = pci_adopt,
    .destroy = pci_destroy,
    .reset = pci_reset,
    .state_type = &pci_host_state_type,
    .state = pci_state,
};

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
    if (machine->console && machine->status == MACHINE_INMIGRATE)
        chardev_discard(machine->console);
    else if (machine->console)
        chardev_destroy(machine->console, handed_over);
}

static int console_apply(struct machine *machine, struct error *error)
{
    (void)error;
    chardev_apply(machine->console);
    return 0;
}

static void *console_state(struct machine *machine, unsigned index)
{
    (void)index;
    return chardev_state(machine->console);
}

const struct machine_part machine_part_console = {
    .name = "console",
    .count = machine_one,
    .create = console_create,
    .adopt = console_adopt,
    .describe = console_describe,
    .destroy = console_destroy,
    .state_type = &chardev_state_type,
    .state = console_state,
    .apply = console_apply,
};

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

const struct machine_part machine_part_serial = {
    .name = "serial",
    .count = machine_one,
    .create = serial_part_create,
    .adopt = serial_part_adopt,
    .destroy = serial_part_destroy,
    .reset = serial_part_reset,
    .state_type = &serial_state_type,
    .state = serial_part_state,
    .apply = serial_part_apply,
};

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

const struct machine_part machine_part_power = {
    .name = "power",
    .count = machine_one,
    .create = power_part_create,
    .adopt = power_part_adopt,
    .destroy = power_part_destroy,
    .reset = power_part_reset,
    .state_type = &power_state_type,
    .state = power_part_state,
    .apply = power_part_apply,
};

/* --- address spaces for DMA ---------------------------------------------------------------- */

/* All of guest RAM is reachable by DMA, at its guest-physical address. */
static struct iommu_memory memory_for_dma(const struct machine *machine)
{
    struct iommu_memory memory = {.fd = machine->ram.fd, .region_count = machine->ram.region_count};

    for (unsigned i = 0; i < machine->ram.region_count; i++) {
        const struct ram_region *region = &machine->ram.regions[i];

        memory.regions[i].mapping = (struct iommu_mapping){
            .iova = region->gpa, .size = region->size, .offset = region->offset};
        memory.regions[i].host = region->host;
    }
    return memory;
}

/* Those of the iommufd objects; devices make the others as they need them. */
static int iommu_part_create(struct machine *machine, unsigned index, struct error *error)
{
    const struct iommu_memory memory = memory_for_dma(machine);
    int ret = 0;

    (void)index;
    iommu_set_create(&machine->spaces, &memory);
    for (unsigned i = 0; ret == 0 && i < machine->config.iommu_count; i++)
        ret = iommu_set_add_iommufd(machine->spaces, machine->config.iommus[i].id,
                                    machine->config.iommus[i].fd, error);
    return ret;
}

static int iommu_part_adopt(struct machine *machine, unsigned index,
                            const struct machine_source *source, struct error *error)
{
    const struct iommu_memory memory = memory_for_dma(machine);

    (void)index;
    return iommu_set_adopt(&machine->spaces, &memory, source->facts->spaces,
                           source->facts->space_count, source->fds, error);
}

static int iommu_part_describe(struct machine *machine, unsigned index, struct machine_facts *facts,
                               struct fdset *fds, struct error *error)
{
    (void)index;
    return iommu_set_describe(machine->spaces, facts->spaces, &facts->space_count, fds, error);
}

static void iommu_part_blockers(const struct machine *machine, unsigned index,
                                struct blocker_list *list)
{
    (void)index;
    iommu_set_blockers(machine->spaces, list);
}

static void iommu_part_destroy(struct machine *machine, unsigned index, bool handed_over)
{
    (void)index;
    (void)handed_over;
    iommu_set_destroy(machine->spaces);
}

static void *iommu_part_state(struct machine *machine, unsigned index)
{
    (void)index;
    return iommu_set_peers_state(machine->spaces);
}

static bool iommu_part_is_default(const struct machine *machine)
{
    return iommu_set_peers_state(machine->spaces)->count == 0;
}

static int iommu_part_apply(struct machine *machine, struct error *error)
{
    return iommu_set_apply_peers(machine->spaces, error);
}

const struct machine_part machine_part_iommu = {
    .name = "iommu",
    .count = machine_one,
    .create = iommu_part_create,
    .adopt = iommu_part_adopt,
    .describe = iommu_part_describe,
    .blockers = iommu_part_blockers,
    .destroy = iommu_part_destroy,
    .state_type = &iommu_peers_state_type,
    .is_default = iommu_part_is_default,
    .state = iommu_part_state,
    .apply = iommu_part_apply,
};

/* --- passed-through devices ---------------------------------------------------------------- */

static unsigned vfio_count(const struct machine *machine)
{
    return machine->config.device_count;
}

/* @param sysfs where the path of its directory has room */
static void vfio_prepare(const struct machine *machine, unsigned index,
                         char sysfs[CONFIG_SYSFS_SIZE], struct vfio_pci_config *own,
                         struct vfio_pci_parents *parents)
{
    const struct config_vfio_pci *config = &machine->config.devices[index];

    if (config->sysfsdev[0])
        memcpy(sysfs, config->sysfsdev, CONFIG_SYSFS_SIZE);
    else
        snprintf(sysfs, CONFIG_SYSFS_SIZE, "/sys/bus/pci/devices/%s", config->host);
    *own = (struct vfio_pci_config){.sysfs = config->fd == CONFIG_FD_NONE ? sysfs : NULL,
                                    .fd = MAX(config->fd, -1),
                                    .devfn = config->devfn,
                                    .space = {.iommufd = config->iommufd,
                                              .ioas = config->ioas,
                                              .container = config->container,
                                              .hwpt = config->hwpt},
                                    .p2p = config->p2p};
    snprintf(own->id, sizeof(own->id), "%s", config->id);
    *parents = (struct vfio_pci_parents){.vm = (struct kvm_vm *)&machine->vm,
                                         .mmio = machine->mmio,
                                         .pio = machine->pio,
                                         .pci = machine->pci,
                                         .spaces = machine->spaces};
}

static int vfio_create(struct machine *machine, unsigned index, struct error *error)
{
    char sysfs[CONFIG_SYSFS_SIZE];
    struct vfio_pci_config config;
    struct vfio_pci_parents parents;
    int ret;

    vfio_prepare(machine, index, sysfs, &config, &parents);
    ret = vfio_pci_create(&machine->devices[index], &config, &parents, error);
    return ret < 0 ? ret : machine_watch_device(machine, index, error);
}

static int vfio_adopt(struct machine *machine, unsigned index, const struct machine_source *source,
                      struct error *error)
{
    char sysfs[CONFIG_SYSFS_SIZE];
    struct vfio_pci_config config;
    struct vfio_pci_parents parents;
    int ret;

    vfio_prepare(machine, index, sysfs, &config, &parents);
    ret = vfio_pci_adopt(&machine->devices[index], &config, &parents,
                         &source->facts->devices[index], source->fds, error);
    return ret < 0 ? ret : machine_watch_device(machine, index, error);
}

static int vfio_describe(struct machine *machine, unsigned index, struct machine_facts *facts,
                         struct fdset *fds, struct error *error)
{
    return vfio_pci_describe(machine->devices[index], &facts->devices[index], fds, error);
}

static void vfio_blockers(const struct machine *machine, unsigned index, struct blocker_list *list)
{
    const struct config_vfio_pci *config = &machine->config.devices[index];
    char object[sizeof("device ''") + CONFIG_ID_SIZE];

    snprintf(object, sizeof(object), "device '%s'", config->id);
    if (!config_is_named(config))
        blocker_add(list, object,
                    "it was passed by descriptor and has no name that another process could find "
                    "it by",
                    "start the guest with an id= for it");
}

static void vfio_destroy(struct machine *machine, unsigned index, bool handed_over)
{
    machine_unwatch_device(machine, index);
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

static int vfio_apply(struct machine *machine, struct error *error)
{
    for (unsigned i = 0; i < machine->config.device_count; i++) {
        int ret = vfio_pci_apply_state(machine->devices[i], error);

        if (ret < 0)
            return ret;
    }
    return 0;
}

const struct machine_part machine_part_vfio_pci = {
    .name = "vfio-pci",
    .count = vfio_count,
    .create = vfio_create,
    .adopt = vfio_adopt,
    .describe = vfio_describe,
    .blockers = vfio_blockers,
    .destroy = vfio_destroy,
    .reset = vfio_reset,
    .id = vfio_id,
    .state_type = &vfio_pci_state_type,
    .state = vfio_state,
    .settled = true,
    .apply = vfio_apply,
};
