/* SPDX-License-Identifier: Apache-2.0
 *
 * INTx of a passed-through function, see function.h. How a level gets from the device to the guest
 * and survives a hand-over is at the head of kvm/irq.h; here is only who switches it on and off.
 *
 * VFIO arms one of INTx, MSI and MSI-X at a time. As on real hardware, where the function itself
 * sends no INTx while MSI or MSI-X is enabled, INTx is armed whenever the guest has neither on:
 * from a reset on, and again when it switches MSI or MSI-X off. INTx disable (PCI_COMMAND) and
 * interrupt status (PCI_STATUS) are VFIO's configuration space and need nothing here.
 *
 * Drivers of mediated devices may be unable to listen to the resample eventfd. If all accesses to
 * the registers of such a device are trapped, each unmasks INTx first, as a handler's first access
 * comes after the interrupt and what the device has to say next is said then: a device in software
 * changes by being accessed, so that no assertion falls into the time while it is masked.
 *
 * Both eventfds are handed over. The trigger stays armed and VFIO goes on listening to the resample
 * eventfd, whoever's process that is: adopting issues no SET_IRQS.
 */
#include <errno.h>
#include <linux/pci_regs.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/log.h"
#include "base/trace.h"
#include "base/util.h"
#include "memory/layout.h"
#include "vfio/function.h"

static int set_irqs(struct vfio_pci *device, uint32_t action, int eventfd, unsigned count)
{
    const int32_t eventfds[1] = {eventfd};

    return vfio_device_set_irqs(&device->device, VFIO_PCI_INTX_IRQ_INDEX, action, 0, eventfds,
                                count);
}

static bool guest_uses_messages(const struct vfio_pci *device)
{
    return (device->state.msi.control & PCI_MSI_FLAGS_ENABLE) ||
           (device->state.msix.control & PCI_MSIX_FLAGS_ENABLE);
}

/* Whether the guest reaches no register without this process. */
static bool is_trapped(const struct vfio_pci *device)
{
    for (unsigned i = 0; i < PCI_BAR_COUNT; i++) {
        if (device->device.regions[i].area_count != 0)
            return false;
    }
    return true;
}

/* VFIO unmasks by itself when the resample eventfd is signalled; what was signalled before it
 * listens, it finds. */
static int arm(struct vfio_pci *device)
{
    int result = set_irqs(device, VFIO_IRQ_SET_ACTION_TRIGGER, device->intx.trigger, 1);

    if (result < 0)
        return result;
    result = set_irqs(device, VFIO_IRQ_SET_ACTION_UNMASK, device->intx.resample, 1);
    device->state.unmask_by_access = result == -ENOTTY && is_trapped(device);
    kvm_irq_set_unheard(device->intx.irq, device->state.unmask_by_access);
    if (device->state.unmask_by_access)
        return 0;
    if (result < 0)
        set_irqs(device, VFIO_IRQ_SET_ACTION_TRIGGER, -1, 0);
    return result;
}

static int set_delivery(struct vfio_pci *device, bool open, struct error *error)
{
    struct vfio_intx *intx = &device->intx;

    if (intx->open == open)
        return 0;
    if (open) {
        int result = kvm_irq_unmask(intx->irq, NULL, error);

        if (result < 0)
            return vfio_device_error(&device->device, error);
    } else {
        kvm_irq_mask(intx->irq);
    }
    intx->open = open;
    return 0;
}

void vfio_intx_enable(struct vfio_pci *device)
{
    struct error error = {0};
    int result;

    if (device->config.pin == 0 || device->state.armed_index != VFIO_ARMED_NONE ||
        guest_uses_messages(device))
        return;
    if (set_delivery(device, true, &error) < 0) {
        log_guest("INTx: %s", error.message);
        return;
    }
    result = arm(device);
    trace(vfio_intx_enable, device->device.id, result);
    if (result == 0) {
        device->state.armed_index = VFIO_ARMED_INTX;
        return;
    }
    set_delivery(device, false, &error);
    /* A device that cannot mask INTx by itself needs a line of the host's for itself. */
    log_guest("device '%s' (%s): cannot enable INTx: %s%s", device->device.id, device->device.host,
              strerror(-result),
              result == -EBUSY ? " (another device of the host shares its line)" : "");
}

void vfio_intx_disable(struct vfio_pci *device)
{
    struct error ignored = {0};
    int result;

    if (device->state.armed_index != VFIO_ARMED_INTX)
        return;
    set_delivery(device, false, &ignored);
    result = set_irqs(device, VFIO_IRQ_SET_ACTION_TRIGGER, -1, 0);
    trace(vfio_intx_disable, device->device.id, result);
    if (result < 0)
        log_guest("device '%s' (%s): cannot disable INTx: %s", device->device.id,
                  device->device.host, strerror(-result));
    device->state.armed_index = VFIO_ARMED_NONE;
    kvm_irq_clear(device->intx.irq);
}

void vfio_intx_unmask(struct vfio_pci *device)
{
    int result;

    if (device->state.armed_index != VFIO_ARMED_INTX || !device->state.unmask_by_access)
        return;
    result = vfio_device_unmask_intx(&device->device);
    if (result < 0)
        log_guest("%s: cannot unmask INTx: %s", device->device.id, strerror(-result));
}

int vfio_intx_apply(struct vfio_pci *device, struct error *error)
{
    if (device->config.pin == 0)
        return 0;
    kvm_irq_set_unheard(device->intx.irq, device->state.unmask_by_access);
    return set_delivery(device, device->state.armed_index == VFIO_ARMED_INTX, error);
}

static int register_irq(struct vfio_pci *device, struct error *error)
{
    unsigned gsi = layout_pci_gsi(device->function.devfn >> 3, device->config.pin - 1);

    if (kvm_irq_create_level(device->parents.vm, gsi, device->intx.trigger, device->intx.resample,
                             &device->intx.irq, error) < 0)
        return vfio_device_error(&device->device, error);
    return 0;
}

int vfio_intx_create(struct vfio_pci *device, struct error *error)
{
    if (device->config.pin == 0)
        return 0;
    device->intx.trigger = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    device->intx.resample = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (device->intx.trigger < 0 || device->intx.resample < 0) {
        error_set_errno(error, errno, "cannot make the eventfds of INTx");
        return vfio_device_error(&device->device, error);
    }
    return register_irq(device, error);
}

int vfio_intx_adopt(struct vfio_pci *device, struct fdset *fds, struct error *error)
{
    if (device->config.pin == 0)
        return 0;
    device->intx.trigger =
        fdset_take(fds, FDSET_EVENTFD, error, "vfio/%s/intx/trigger", device->device.id);
    if (device->intx.trigger < 0)
        return device->intx.trigger;
    device->intx.resample =
        fdset_take(fds, FDSET_EVENTFD, error, "vfio/%s/intx/resample", device->device.id);
    if (device->intx.resample < 0)
        return device->intx.resample;
    return register_irq(device, error);
}

int vfio_intx_describe(const struct vfio_pci *device, struct fdset *fds, struct error *error)
{
    const char *id = device->device.id;
    int result;

    if (device->config.pin == 0)
        return 0;
    result = fdset_add_copy(fds, device->intx.trigger, error, "vfio/%s/intx/trigger", id);
    if (result == 0)
        result = fdset_add_copy(fds, device->intx.resample, error, "vfio/%s/intx/resample", id);
    return result;
}

void vfio_intx_destroy(struct vfio_pci *device)
{
    kvm_irq_destroy(device->intx.irq);
    close_fd(device->intx.trigger);
    close_fd(device->intx.resample);
    device->intx = (struct vfio_intx){.trigger = -1, .resample = -1};
}
