/* SPDX-License-Identifier: Apache-2.0
 *
 * What control.c (life) and commands.c (QMP commands) share. Main thread.
 */
#pragma once

#include "control/control.h"
#include "control/qmp.h"
#include "control/runtime.h"

struct control {
    sd_event *loop; /**< borrowed */
    struct qmp_server *qmp;
    struct machine *machine; /**< borrowed; NULL on the incoming side until it has one */
    struct update *update;   /**< the hand-over that QMP's migrate started here, or the last one */
    struct update_report report; /**< as control_progress() saw it last */
    char name[CONFIG_ID_SIZE];
    char pidfile[RUNTIME_PATH_SIZE];
    bool own_qmp_only;     /**< incoming: -qmp was given, so sockets it does not name are left */
    bool inherit_log;      /**< incoming: nothing was given, so messages go where they went */
    int log_fd;            /**< incoming: the other process's standard error, or -1 */
    bool cpr_transfer;     /**< migration parameter "mode" */
    bool migration_events; /**< migration capability "events" */
    bool here;             /**< the guest is this process's: paths and pid file are ours */
    bool handed_over;      /**< the guest was here and runs in another process now */
    bool by_signal;
};

/** Ends this process as "quit" does. */
void control_quit(struct control *control);

/** Offers the sockets and the log to the other process. */
int control_describe(const struct control *control, struct fdset *fds, struct error *error);

/** @return the table of commands for qmp_create() and how many there are; opaque is a control */
const struct qmp_command *control_commands(size_t *count);
