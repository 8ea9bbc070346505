/* SPDX-License-Identifier: Apache-2.0
 *
 * What VFIO tells of a passed-through device besides its interrupts (vfio/notifiers.c): that it has
 * met an error that cannot be corrected, and that the host wants it back. Main thread.
 *
 * The eventfds are shared with the other process of a hand-over. Only the process in which the
 * guest is alive reads them, under the lock of its life, so that a notice is acted upon once: what
 * the outgoing process has read before the pause has become a request, which travels with the
 * guest; what comes later stays in the eventfd until the guest is alive again, here or there. The
 * watch is edge-triggered, since what is left unread must not wake the loop for ever, and whoever
 * brings the guest to life wakes the main thread, which looks at all of them (machine.c).
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/trace.h"
#include "base/util.h"
#include "machine/internal.h"

/* The kernel asks every ten seconds; many at once say no more than one. */
#define REQUEST_INTERVAL_NS UINT64_C(1000000000)

static bool is_signalled(const struct machine *machine, unsigned index, enum vfio_notifier notifier)
{
    int fd = vfio_pci_notifier(machine->devices[index], notifier);
    uint64_t count;

    return fd >= 0 && read(fd, &count, sizeof(count)) == sizeof(count);
}

/* As QEMU does: nobody knows what the device has done to the guest's memory, and its owner may want
 * to look. */
static void on_error(struct machine *machine, unsigned index)
{
    const struct config_vfio_pci *config = &machine->config.devices[index];

    trace(vfio_error, config->id);
    log_error("device '%s' (%s) has met an error that cannot be corrected (the host's kernel log "
              "has details); the guest is stopped",
              config->id, config->host);
    machine_post_device_event(machine, MACHINE_EVENT_DEVICE_ERROR, index);
    machine_post_request(machine, MACHINE_REQUEST_FAIL);
}

static void on_request(struct machine *machine, unsigned index)
{
    const struct config_vfio_pci *config = &machine->config.devices[index];
    struct machine_watch *watch = &machine->watches[index];
    uint64_t now = clock_ns();

    trace(vfio_request, config->id);
    if (watch->last_request_ns != 0 && now - watch->last_request_ns < REQUEST_INTERVAL_NS)
        return;
    watch->last_request_ns = now;
    log_warning("the host wants device '%s' (%s) back; it gets it when the guest ends, since baton "
                "cannot unplug a device",
                config->id, config->host);
    machine_post_device_event(machine, MACHINE_EVENT_DEVICE_REQUEST, index);
}

void machine_read_notices(struct machine *machine)
{
    if (!machine_is_alive(machine))
        return;
    for (unsigned i = 0; i < machine->config.device_count; i++) {
        if (machine->devices[i] == NULL)
            continue;
        if (is_signalled(machine, i, VFIO_NOTIFIER_ERROR))
            on_error(machine, i);
        if (is_signalled(machine, i, VFIO_NOTIFIER_REQUEST))
            on_request(machine, i);
    }
}

static int on_notice(sd_event_source *source, int fd, uint32_t revents, void *opaque)
{
    struct machine *machine = opaque;

    (void)source;
    (void)fd;
    (void)revents;
    pthread_mutex_lock(&machine->life);
    machine_read_notices(machine);
    pthread_mutex_unlock(&machine->life);
    return 0;
}

int machine_watch_device(struct machine *machine, unsigned index, struct error *error)
{
    struct machine_watch *watch = &machine->watches[index];

    for (unsigned i = 0; i < VFIO_NOTIFIERS; i++) {
        int fd = vfio_pci_notifier(machine->devices[index], i);
        int ret;

        if (fd < 0)
            continue;
        ret = sd_event_add_io(machine->loop, &watch->sources[i], fd, EPOLLIN | EPOLLET, on_notice,
                              machine);
        if (ret < 0)
            return error_set_errno(error, -ret, "cannot watch an eventfd");
    }
    return 0;
}

void machine_unwatch_device(struct machine *machine, unsigned index)
{
    for (unsigned i = 0; i < VFIO_NOTIFIERS; i++)
        machine->watches[index].sources[i] =
            sd_event_source_disable_unref(machine->watches[index].sources[i]);
}
