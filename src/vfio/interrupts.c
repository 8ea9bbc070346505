/* SPDX-License-Identifier: Apache-2.0
 *
 * MSI and MSI-X of a passed-through function, see function.h. INTx is in intx.c.
 *
 * Two things are kept apart. A vector is *armed* when VFIO signals its eventfd: that is a property
 * of the device, set with VFIO_DEVICE_SET_IRQS when the guest first lets the vector through, and it
 * stays until the guest switches MSI or MSI-X off, however often it masks the vector in between and
 * whoever's process it is. A vector is *open* when this process delivers its signals to the guest:
 * that is a property of the process (kvm/irq.h), and follows the guest's mask bits. Signals of an
 * armed vector that is not open stay in the eventfd, which is the pending bit.
 *
 * Only the callbacks of MSI and MSI-X, and a reset, change what is armed. Adopting a device and
 * applying state never do.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/log.h"
#include "base/trace.h"
#include "base/util.h"
#include "vfio/function.h"

static bool is_armed(const struct vfio_pci *device, unsigned vector)
{
    return device->state.armed[vector / 8] & (1u << (vector % 8));
}

static void mark_armed(struct vfio_pci *device, unsigned vector)
{
    trace(vfio_irq_arm, device->device.id, vector);
    device->state.armed[vector / 8] |= (uint8_t)(1u << (vector % 8));
}

static unsigned irq_index(enum vfio_armed armed)
{
    return armed == VFIO_ARMED_MSI ? VFIO_PCI_MSI_IRQ_INDEX : VFIO_PCI_MSIX_IRQ_INDEX;
}

/* Tells VFIO to signal the eventfds of [start, start + count). @param real false to switch the
 * index on without any eventfd. @return 0; positive when only so many are to be had; -errno */
static int set_eventfds(struct vfio_pci *device, enum vfio_armed armed, unsigned start,
                        unsigned count, bool real)
{
    int32_t eventfds[PCI_MSIX_VECTORS_MAX];

    for (unsigned i = 0; i < count; i++)
        eventfds[i] = real ? device->vectors[start + i].eventfd : -1;
    return vfio_device_set_irqs(&device->device, irq_index(armed), VFIO_IRQ_SET_ACTION_TRIGGER,
                                start, eventfds, count);
}

static void warn(const struct vfio_pci *device, const char *what, int code)
{
    log_guest("device '%s' (%s): %s: %s", device->device.id, device->device.host, what,
              strerror(code));
}

/* Arms the first vectors of an index that is off: as many as the host has to give. */
static void arm_block(struct vfio_pci *device, enum vfio_armed armed, unsigned count)
{
    int result = set_eventfds(device, armed, 0, count, true);

    if (result > 0 && (unsigned)result < count) {
        log_guest("device '%s' (%s): the host has %d of %u interrupt vectors for it",
                  device->device.id, device->device.host, result, count);
        count = (unsigned)result;
        result = set_eventfds(device, armed, 0, count, true);
    }
    if (result != 0) {
        warn(device, "cannot enable interrupts", result < 0 ? -result : ENOSPC);
        return;
    }
    device->state.armed_index = (uint8_t)armed;
    for (unsigned i = 0; i < count; i++)
        mark_armed(device, i);
}

/* Switches MSI-X on with no vector yet. */
static void arm_none(struct vfio_pci *device)
{
    int result = set_eventfds(device, VFIO_ARMED_MSIX, 0, 1, false);

    if (result != 0) {
        warn(device, "cannot enable MSI-X", result < 0 ? -result : ENOSPC);
        return;
    }
    device->state.armed_index = VFIO_ARMED_MSIX;
}

static void arm_one(struct vfio_pci *device, unsigned vector)
{
    int result = set_eventfds(device, VFIO_ARMED_MSIX, vector, 1, true);

    if (result != 0) {
        warn(device, "cannot enable an interrupt vector", result < 0 ? -result : ENOSPC);
        return;
    }
    mark_armed(device, vector);
}

void vfio_vectors_disarm(struct vfio_pci *device)
{
    int result;

    if (device->state.armed_index != VFIO_ARMED_MSI && device->state.armed_index != VFIO_ARMED_MSIX)
        return;
    result = set_eventfds(device, device->state.armed_index, 0, 0, false);
    if (result != 0)
        warn(device, "cannot disable interrupts", -result);
    trace(vfio_irq_disarm, device->device.id, irq_index(device->state.armed_index));
    device->state.armed_index = VFIO_ARMED_NONE;
    memset(device->state.armed, 0, sizeof(device->state.armed));
    /* What nobody fetched must not greet the guest when it enables interrupts again. */
    for (unsigned i = 0; i < device->vector_count; i++)
        kvm_irq_clear(device->vectors[i].irq);
}

/* Makes the delivery of one vector what it should be; does nothing when it is that already. */
static int set_delivery(struct vfio_pci *device, unsigned index, bool open,
                        const struct msi_message *message, struct error *error)
{
    struct vfio_vector *vector = &device->vectors[index];
    int result;

    if (!open) {
        if (vector->open) {
            trace(vfio_irq_mask, device->device.id, index);
            kvm_irq_mask(vector->irq);
        }
        vector->open = false;
        return 0;
    }
    if (vector->open && vector->message.address == message->address &&
        vector->message.data == message->data)
        return 0;
    result = kvm_irq_unmask(vector->irq, message, error);
    if (result < 0)
        return result;
    trace(vfio_irq_unmask, device->device.id, index);
    vector->open = true;
    vector->message = *message;
    return 0;
}

/* The guest lets a vector through. */
static void unmask(struct vfio_pci *device, enum vfio_armed armed, unsigned vector,
                   const struct msi_message *message)
{
    struct error error = {0};

    if (device->state.armed_index != armed)
        return; /* could not be armed, or the other kind is on, which has been said already */
    if (set_delivery(device, vector, true, message, &error) < 0)
        log_guest("device '%s': vector %u: %s", device->device.id, vector, error.message);
    if (!is_armed(device, vector) && armed == VFIO_ARMED_MSIX && device->device.msix_dynamic)
        arm_one(device, vector);
}

static void mask(struct vfio_pci *device, enum vfio_armed armed, unsigned vector)
{
    struct error error = {0};

    if (device->state.armed_index == armed)
        set_delivery(device, vector, false, NULL, &error);
}

static bool pending(struct vfio_pci *device, enum vfio_armed armed, unsigned vector)
{
    return device->state.armed_index == armed && kvm_irq_pending(device->vectors[vector].irq);
}

/* Whether an index can be switched on: only one of MSI and MSI-X can be. INTx makes way. */
static bool may_arm(struct vfio_pci *device)
{
    vfio_intx_disable(device);
    if (device->state.armed_index == VFIO_ARMED_NONE)
        return true;
    log_guest("%s: MSI and MSI-X enabled at the same time", device->device.id);
    return false;
}

/* The guest has switched MSI or MSI-X off. */
static void disable(struct vfio_pci *device, enum vfio_armed armed)
{
    if (device->state.armed_index == armed)
        vfio_vectors_disarm(device);
    vfio_intx_enable(device);
}

static void msi_enable(void *opaque, bool enabled)
{
    struct vfio_pci *device = opaque;

    if (!enabled)
        disable(device, VFIO_ARMED_MSI);
    else if (may_arm(device))
        arm_block(device, VFIO_ARMED_MSI, pci_msi_count(&device->msi));
}

static void msi_unmask(void *opaque, unsigned vector, const struct msi_message *message)
{
    unmask(opaque, VFIO_ARMED_MSI, vector, message);
}

static void msi_mask(void *opaque, unsigned vector)
{
    mask(opaque, VFIO_ARMED_MSI, vector);
}

static bool msi_pending(void *opaque, unsigned vector)
{
    return pending(opaque, VFIO_ARMED_MSI, vector);
}

const struct pci_vector_ops vfio_msi_ops = {
    .enable = msi_enable, .unmask = msi_unmask, .mask = msi_mask, .pending = msi_pending};

static void msix_enable(void *opaque, bool enabled)
{
    struct vfio_pci *device = opaque;

    if (!enabled)
        disable(device, VFIO_ARMED_MSIX);
    else if (!may_arm(device))
        return;
    else if (device->device.msix_dynamic)
        arm_none(device);
    else
        arm_block(device, VFIO_ARMED_MSIX, device->msix.count);
}

static void msix_unmask(void *opaque, unsigned vector, const struct msi_message *message)
{
    unmask(opaque, VFIO_ARMED_MSIX, vector, message);
}

static void msix_mask(void *opaque, unsigned vector)
{
    mask(opaque, VFIO_ARMED_MSIX, vector);
}

static bool msix_pending(void *opaque, unsigned vector)
{
    return pending(opaque, VFIO_ARMED_MSIX, vector);
}

const struct pci_vector_ops vfio_msix_ops = {
    .enable = msix_enable, .unmask = msix_unmask, .mask = msix_mask, .pending = msix_pending};

int vfio_vectors_apply(struct vfio_pci *device, struct error *error)
{
    const struct vfio_pci_state *state = &device->state;

    for (unsigned i = 0; i < device->vector_count; i++) {
        struct msi_message message = {0};
        bool open = false;
        int result;

        if (state->armed_index == VFIO_ARMED_MSI && i < PCI_MSI_VECTORS_MAX) {
            open = pci_msi_is_open(&device->msi, i);
            message = pci_msi_message(&device->msi, i);
        } else if (state->armed_index == VFIO_ARMED_MSIX && i < device->msix.count) {
            open = pci_msix_is_open(&device->msix, i);
            message = pci_msix_message(&device->msix, i);
        }
        result = set_delivery(device, i, open, &message, error);
        if (result < 0)
            return error_prefix(error, "device '%s': vector %u: ", device->device.id, i);
    }
    return 0;
}

void vfio_vectors_reset(struct vfio_pci *device)
{
    struct error ignored = {0};

    for (unsigned i = 0; i < device->vector_count; i++)
        set_delivery(device, i, false, NULL, &ignored);
    vfio_vectors_disarm(device);
}

/* Allocates the vectors, none of them with an eventfd yet. */
static void allocate(struct vfio_pci *device)
{
    unsigned msi = device->config.msi != 0 ? pci_msi_capacity(&device->msi) : 0;
    unsigned msix = device->config.msix != 0 ? device->msix.count : 0;

    device->vector_count = MAX(msi, msix);
    device->vectors = xcalloc(MAX(device->vector_count, 1u), sizeof(*device->vectors));
    for (unsigned i = 0; i < device->vector_count; i++)
        device->vectors[i].eventfd = -1;
}

static int register_vector(struct vfio_pci *device, unsigned index, struct error *error)
{
    struct vfio_vector *vector = &device->vectors[index];

    if (kvm_irq_create(device->parents.vm, vector->eventfd, &vector->irq, error) < 0)
        return vfio_device_error(&device->device, error);
    return 0;
}

int vfio_vectors_create(struct vfio_pci *device, struct error *error)
{
    allocate(device);
    for (unsigned i = 0; i < device->vector_count; i++) {
        int result;

        device->vectors[i].eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (device->vectors[i].eventfd < 0) {
            error_set_errno(error, errno,
                            "cannot make an eventfd for each of %u vectors: raise the limit on "
                            "open files (ulimit -n)",
                            device->vector_count);
            return vfio_device_error(&device->device, error);
        }
        result = register_vector(device, i, error);
        if (result < 0)
            return result;
    }
    return 0;
}

int vfio_vectors_adopt(struct vfio_pci *device, struct fdset *fds, struct error *error)
{
    allocate(device);
    for (unsigned i = 0; i < device->vector_count; i++) {
        int result = fdset_take(fds, FDSET_EVENTFD, error, "vfio/%s/irq/%u", device->device.id, i);

        if (result < 0)
            return result;
        device->vectors[i].eventfd = result;
        result = register_vector(device, i, error);
        if (result < 0)
            return result;
    }
    return 0;
}

void vfio_vectors_destroy(struct vfio_pci *device)
{
    for (unsigned i = 0; i < device->vector_count; i++) {
        if (device->vectors[i].irq != NULL)
            kvm_irq_destroy(device->vectors[i].irq);
        close_fd(device->vectors[i].eventfd);
    }
    free(device->vectors);
    device->vectors = NULL;
    device->vector_count = 0;
}
