/* SPDX-License-Identifier: Apache-2.0
 *
 * What VFIO tells the host's side of a device, see pci.h: errors and the request to give it back.
 * An eventfd each, armed once when the device is opened and handed over armed. Who listens to them,
 * on the main thread, is the machine's affair (machine/notices.c).
 */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "vfio/function.h"

static const struct {
    unsigned index;
    const char *name; /* in a hand-over: "vfio/ID/NAME" */
} kinds[VFIO_NOTIFIERS] = {
    [VFIO_NOTIFIER_ERROR] = {VFIO_PCI_ERR_IRQ_INDEX, "error"},
    [VFIO_NOTIFIER_REQUEST] = {VFIO_PCI_REQ_IRQ_INDEX, "request"},
};

static bool is_there(const struct vfio_pci *device, unsigned notifier)
{
    return notifier == VFIO_NOTIFIER_ERROR ? device->device.has_error : device->device.has_request;
}

/* A device without notifiers works; its operator does without the messages. */
static void arm(struct vfio_pci *device, unsigned notifier, int eventfd)
{
    const int32_t eventfds[1] = {eventfd};
    int result = vfio_device_set_irqs(&device->device, kinds[notifier].index,
                                      VFIO_IRQ_SET_ACTION_TRIGGER, 0, eventfds, 1);

    if (result < 0)
        log_warning("device '%s' (%s): cannot set its %s notifier: %s", device->device.id,
                    device->device.host, kinds[notifier].name, strerror(-result));
}

int vfio_notifiers_create(struct vfio_pci *device, struct error *error)
{
    for (unsigned i = 0; i < VFIO_NOTIFIERS; i++) {
        if (!is_there(device, i))
            continue;
        device->notifiers[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (device->notifiers[i] < 0) {
            error_set_errno(error, errno, "cannot make an eventfd");
            return vfio_device_error(&device->device, error);
        }
        arm(device, i, device->notifiers[i]);
    }
    return 0;
}

int vfio_notifiers_adopt(struct vfio_pci *device, struct fdset *fds, struct error *error)
{
    for (unsigned i = 0; i < VFIO_NOTIFIERS; i++) {
        if (!is_there(device, i))
            continue;
        device->notifiers[i] =
            fdset_take(fds, FDSET_EVENTFD, error, "vfio/%s/%s", device->device.id, kinds[i].name);
        if (device->notifiers[i] < 0)
            return device->notifiers[i];
    }
    return 0;
}

int vfio_notifiers_describe(const struct vfio_pci *device, struct fdset *fds, struct error *error)
{
    int result = 0;

    for (unsigned i = 0; i < VFIO_NOTIFIERS && result == 0; i++) {
        if (device->notifiers[i] >= 0)
            result = fdset_add_copy(fds, device->notifiers[i], error, "vfio/%s/%s",
                                    device->device.id, kinds[i].name);
    }
    return result;
}

void vfio_notifiers_disarm(struct vfio_pci *device)
{
    for (unsigned i = 0; i < VFIO_NOTIFIERS; i++) {
        if (device->notifiers[i] >= 0)
            arm(device, i, -1);
    }
}

void vfio_notifiers_destroy(struct vfio_pci *device)
{
    for (unsigned i = 0; i < VFIO_NOTIFIERS; i++) {
        close_fd(device->notifiers[i]);
        device->notifiers[i] = -1;
    }
}

int vfio_pci_notifier(const struct vfio_pci *device, enum vfio_notifier notifier)
{
    return device->notifiers[notifier];
}
