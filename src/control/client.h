/* SPDX-License-Identifier: Apache-2.0
 *
 * The other end of a QMP socket, for the command-line client: one call after another, with time
 * limits. One thread. The server is a process of the same user, but its answers are checked.
 */
#pragma once

#include <jansson.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "control/json_stream.h"

#define CLIENT_VERSION_SIZE 64

struct client {
    int fd;
    pid_t pid;                         /**< the process that serves the socket */
    char version[CLIENT_VERSION_SIZE]; /**< its version of baton, as the greeting says */
    struct json_stream input;
    json_t *messages; /**< array: received and not yet looked at */
    bool broken;      /**< something that is not JSON came */
};

/**
 * Connects, and negotiates.
 * @param deadline_ns CLOCK_MONOTONIC; also in the other calls
 * @return 0; -ENOENT or -ECONNREFUSED when nobody serves @p path; -ETIMEDOUT; -EPROTO
 */
int client_open(struct client *client, const char *path, uint64_t deadline_ns, struct error *error);
void client_close(struct client *client);

/** Receives an event. @param data borrowed */
typedef void client_event_fn(void *opaque, const char *event, const json_t *data);

/**
 * Executes a command. Events that arrive meanwhile go to @p handler.
 * @param arguments stolen; NULL for none
 * @param result    out, when not NULL: what "return" holds, a new reference
 * @param handler   may be NULL
 * @return 0; -EREMOTEIO when the server answers with an error, which is then in @p error;
 *         -EPIPE when it went away; -ETIMEDOUT
 */
int client_execute(struct client *client, const char *command, json_t *arguments, json_t **result,
                   client_event_fn *handler, void *opaque, uint64_t deadline_ns,
                   struct error *error);

/** Hands the events that are there already to @p handler, without waiting; to be called when
 * client->fd is readable. @return 0; -EPIPE when the server went away; -EPROTO */
int client_dispatch(struct client *client, client_event_fn *handler, void *opaque,
                    struct error *error);

/** Asks for the guest's status. @param status out: QEMU's word for it */
int client_query_status(struct client *client, char *status, size_t size, uint64_t deadline_ns,
                        struct error *error);
