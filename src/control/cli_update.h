/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of "baton update" share: cli_update.c, the procedure and what it prints, and
 * cli_update_child.c, the new process. One thread.
 */
#pragma once

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "control/client.h"
#include "control/runtime.h"

#define SECOND_NS UINT64_C(1000000000)

enum outcome {
    OUTCOME_NONE,
    OUTCOME_WELL, /* completed, or with dry_run rehearsed */
    OUTCOME_FAILED,
    OUTCOME_CANCELLED
};

/* One update. */
struct session {
    const char *name;
    char binary[PATH_MAX];
    bool verbose;
    bool dry_run;
    char **traces; /* patterns of what the new process is told to trace; those of argv */
    unsigned trace_count;
    uint64_t deadline;
    char qmp_path[RUNTIME_PATH_SIZE];
    char cpr_path[RUNTIME_PATH_SIZE]; /* where the new process of this update listens */
    struct client client;             /* of the present process */
    int signal_fd;
    pid_t child;
    bool child_ended; /* and was reaped */
    bool interrupted; /* a signal asked for an end, and was passed on */
    bool started;     /* "migrate" was accepted: what events say from then on is about this update,
                         up to its outcome */
    enum outcome outcome;
};

/** Starts the new process. @return when it has become baton; negative when it could not */
int session_start_child(struct session *session, struct error *error);

/** Waits until the new process listens, it ends, time is up or a signal comes. */
int session_wait_for_child(struct session *session, struct error *error);

/** Waits a moment for the new process to end by itself, as after a rehearsal, then kills it. */
void session_await_child(struct session *session);

/** Ends the new process, if there still is one. The guest is certainly not in it. */
void session_kill_child(struct session *session);

/**
 * Ends a new process that nobody has connected to yet: the one connection that it waits for comes,
 * and says nothing that it understands. A process that is past that does not notice, wherever the
 * guest is.
 * @return whether the new process has ended
 */
bool session_dismiss_child(struct session *session);

/** @return whether a signal asked for an end since the last call */
bool session_take_signal(const struct session *session);
