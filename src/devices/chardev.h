/* SPDX-License-Identifier: Apache-2.0
 *
 * Character back ends: where a serial port's bytes come from and go to on the host.
 *
 * "stdio[,signal=off]", "pty", "file:PATH", "unix:PATH,server=on[,wait=on|off]", "null", and
 * "none". Input and connections are handled on the main thread (sd-event); output may come from
 * any thread with the machine's lock held. A back end without a reader drops output; a slow one
 * makes the UART wait.
 *
 * In a hand-over: chardev_set_active(false) in the pause freezes both directions (what the guest
 * still writes is kept), chardev_state() carries what was not written yet, and the new process
 * calls chardev_set_active(true). An undo is chardev_set_active(true) in the old one.
 * The program must ignore SIGPIPE.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <systemd/sd-event.h>

#include "base/error.h"
#include "base/fdset.h"
#include "state/state.h"

struct chardev;

/** Called on the main thread with the machine's lock held. */
struct chardev_ops {
    /** How many bytes the front end can take now; 0 stops reading until chardev_resume_input(). */
    size_t (*can_receive)(void *opaque);
    void (*receive)(void *opaque, const uint8_t *bytes, size_t count);
    /** Output that had been refused can be tried again. */
    void (*writable)(void *opaque);
};

/**
 * Checks the syntax of "-serial SPEC" and opens nothing.
 * @return 0, or -EINVAL with an error that says what was expected
 */
int chardev_check_spec(const char *spec, struct error *error);

/**
 * Opens a back end, active. Main thread, as adopt and destroy.
 * @param name  of the descriptors that describe and adopt use: "chardev/NAME/..."
 * @param spec  as in "-serial SPEC", QEMU's syntax
 * @param loop  borrowed; @param lock the machine's lock, borrowed, not held by the caller
 */
int chardev_create(struct chardev **chardev, const char *name, const char *spec, sd_event *loop,
                   pthread_mutex_t *lock, struct error *error);

/** Continues with the descriptors of another process: a connected client stays connected. The
 * result is inactive until chardev_set_active(). */
int chardev_adopt(struct chardev **chardev, const char *name, const char *spec, sd_event *loop,
                  pthread_mutex_t *lock, struct fdset *fds, struct error *error);

/** Main thread, or any thread with the lock held. A client that connects later is not in it. */
int chardev_describe(const struct chardev *chardev, struct fdset *fds, struct error *error);

/** @param ops NULL: no front end, output has no source and input waits */
void chardev_attach(struct chardev *chardev, const struct chardev_ops *ops, void *opaque);

/** Stops or restarts input and output; a hand-over stops it in the pause and starts it in the new
 * process. Any thread; nothing moves after this returned and the lock was taken once. */
void chardev_set_active(struct chardev *chardev, bool active);

/** Writes bytes. @return how many were taken; the rest when writable() is called. Lock held. */
size_t chardev_write(struct chardev *chardev, const uint8_t *bytes, size_t count);

/** The front end has room again. Any thread, lock held. */
void chardev_resume_input(struct chardev *chardev);

/** Waits until taken output has been written, for at most this long. Lock held.
 * @return whether nothing is left */
bool chardev_drain(struct chardev *chardev, unsigned timeout_ms);

/** Taken output that was not written yet, and the terminal's original mode. */
extern const struct state_type chardev_state_type;
void *chardev_state(struct chardev *chardev);

/** After a state was loaded: a terminal that was opened here is not the one which that tells of. */
void chardev_apply(struct chardev *chardev);

/** Destroys one that was made for a guest which has not come. What was adopted stays as it is for
 * its owner; what was opened here is put back. */
void chardev_discard(struct chardev *chardev);

/**
 * Closes; output that is left gets a moment to be written. Main thread, lock not held.
 * @param handed_over the descriptors live on in another process: terminal modes stay, socket
 *        paths are not removed, output that is left is the other's to write
 */
void chardev_destroy(struct chardev *chardev, bool handed_over);
