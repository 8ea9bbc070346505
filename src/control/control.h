/* SPDX-License-Identifier: Apache-2.0
 *
 * What an operator has of a machine: its QMP sockets (those of -qmp, and one under its name in the
 * runtime directory), the commands, the events, the pid file, and the place of this process in a
 * hand-over. Used by main.c. Main thread.
 *
 * The incoming side has a control before it has a machine: its own sockets answer "inmigrate".
 * The outgoing side keeps serving the clients that are connected after its guest has gone
 * ("postmigrate"), and ends the event loop when the last one leaves.
 */
#pragma once

#include <systemd/sd-event.h>

#include "base/error.h"
#include "base/fdset.h"
#include "machine/config.h"
#include "machine/machine.h"
#include "update/update.h"

struct control;

/**
 * Makes the sockets. With config->incoming, nothing of another process is touched: a path that it
 * serves is expected to arrive with control_adopt().
 * @param config borrowed for the call
 * @return 0; -EADDRINUSE when the name or a path is in use, by which process, and what to do
 */
int control_create(struct control **control, const struct config *config, sd_event *loop,
                   struct error *error);

/** Removes the sockets and the pid file, unless the guest runs elsewhere now. */
void control_destroy(struct control *control);

/** A machine that was created here: commands and events are about it from now on.
 * @param machine borrowed until control_detach(). @return an error of -pidfile */
int control_attach(struct control *control, struct machine *machine, struct error *error);

/** The machine is about to be destroyed: the last hand-over and all references to it end. The
 * sockets stay until control_destroy(), for what still has to be sent. */
void control_detach(struct control *control);

/**
 * The update_adopt_fn of the incoming side, before the commit point: takes the sockets that the
 * other process made out of the set, and refers to the machine. Nothing changes for any client yet;
 * the report of status UPDATE_COMPLETED (see control_progress()) makes it effective.
 * @param machine borrowed until control_detach(); its configuration names the guest
 */
int control_adopt(void *control, struct machine *machine, struct fdset *fds, struct error *error);

/** The update_progress_fn of both sides: events, and what a finished hand-over entails here. */
void control_progress(void *control, const struct update_report *report);

/** A signal asked this process to end: as QMP's quit, with another reason in the event. */
void control_signal(struct control *control);
