/* SPDX-License-Identifier: Apache-2.0
 *
 * A virtual machine: everything it is made of, in build order, and its life (run, pause, reset,
 * power off).
 *
 * Threads: the main thread (event loop: sockets, console input), one thread per vCPU, the proxy
 * thread of kvm/irq.c, and while a hand-over is under way the thread of update/. machine_lock()
 * protects all device state.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <systemd/sd-event.h>

#include "base/error.h"
#include "base/fdset.h"
#include "machine/config.h"

struct machine;

/** QEMU's RunState, the part of it that baton has; see machine_status_name(). */
enum machine_status {
    MACHINE_PRELAUNCH, /**< built, waiting for cont (-S) */
    MACHINE_INMIGRATE, /**< waiting for, or taking part in, a hand-over as the incoming side */
    MACHINE_RUNNING,
    MACHINE_PAUSED,
    MACHINE_FINISH_MIGRATE, /**< outgoing side, guest stopped for the switch */
    MACHINE_POSTMIGRATE,    /**< the guest runs in another process */
    MACHINE_SHUTDOWN,       /**< the guest has powered off */
    MACHINE_INTERNAL_ERROR, /**< KVM could not go on; the guest is stopped */
};

/** @return QEMU's name for it ("running", "inmigrate", "finish-migrate", ...). */
const char *machine_status_name(enum machine_status status);

enum machine_event {
    MACHINE_EVENT_STOP,
    MACHINE_EVENT_RESUME,
    MACHINE_EVENT_RESET_GUEST,    /**< RESET, reason guest-reset */
    MACHINE_EVENT_RESET_HOST,     /**< RESET, reason host-qmp-system-reset */
    MACHINE_EVENT_SHUTDOWN_GUEST, /**< SHUTDOWN, reason guest-shutdown */
    MACHINE_EVENT_SHUTDOWN_HOST,  /**< SHUTDOWN, reason host-qmp-quit or host-signal */
    MACHINE_EVENT_POWERDOWN,
    MACHINE_EVENT_DEVICE_ERROR,   /**< VFIO: an error that cannot be corrected; a STOP follows */
    MACHINE_EVENT_DEVICE_REQUEST, /**< VFIO: the host wants the device back */
};

/**
 * Called on the main thread, in order, without the lock.
 * @param device of MACHINE_EVENT_DEVICE_...: its index in the configuration; else 0
 */
typedef void machine_event_fn(void *opaque, enum machine_event event, unsigned device);

/** Builds a machine from its definition, paused in MACHINE_PRELAUNCH. @param loop borrowed */
int machine_create(struct machine **machine, const struct config *config, sd_event *loop,
                   struct error *error);
void machine_destroy(struct machine *machine);

/** In MACHINE_POSTMIGRATE: lets go of everything that now belongs to another process; what remains
 * is the definition and the status. */
void machine_let_go(struct machine *machine);

void machine_set_event_handler(struct machine *machine, machine_event_fn *handler, void *opaque);

const struct config *machine_config(const struct machine *machine);
enum machine_status machine_status(const struct machine *machine);

/** QMP cont: lets the vCPUs run. @return 0; -EBUSY in a state that does not allow it, named */
int machine_run(struct machine *machine, struct error *error);

/** QMP stop: returns when no vCPU runs guest code. */
int machine_stop(struct machine *machine, struct error *error);

/** QMP system_reset. Asynchronous: happens on the main thread soon after. */
int machine_reset(struct machine *machine, struct error *error);

/** QMP system_powerdown: presses the ACPI power button. */
int machine_powerdown(struct machine *machine, struct error *error);

/** QMP quit or a signal: ends the event loop with exit code 0. */
void machine_quit(struct machine *machine);
