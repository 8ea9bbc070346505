/* SPDX-License-Identifier: Apache-2.0
 *
 * What the three files of the QMP server share: qmp.c (sockets that listen), qmp_client.c
 * (connections and their buffers) and qmp_protocol.c (what the messages mean). Main thread.
 */
#pragma once

#include <sys/un.h>

#include "control/json_stream.h"
#include "control/qmp.h"

struct qmp_client {
    struct qmp_server *server;
    struct qmp_client *next;
    int fd;
    sd_event_source *source;
    struct json_stream input;
    bool negotiated; /**< qmp_capabilities was said: commands and events flow */
    bool dead;       /**< to be freed when no caller can be holding it any more */
    char *output;    /**< bytes that the socket did not take yet */
    size_t output_start;
    size_t output_end;
    size_t output_capacity;
};

struct qmp_listener {
    int fd;
    sd_event_source *source; /**< NULL while adopted but not activated */
    bool owned;              /**< the path is ours to remove */
    bool retire;             /**< adopted, but not wanted once the guest runs here */
    char path[sizeof(((struct sockaddr_un *)0)->sun_path) + 1];
};

struct qmp_server {
    sd_event *loop; /**< borrowed */
    const struct qmp_command *commands;
    size_t command_count;
    qmp_idle_fn *idle;
    void *opaque;
    struct qmp_listener listeners[QMP_LISTENERS_MAX];
    unsigned listener_count;
    char expected[QMP_LISTENERS_MAX][sizeof(((struct sockaddr_un *)0)->sun_path)];
    unsigned expected_count; /**< paths that the other process serves and will hand over */
    struct qmp_client *clients;
    unsigned client_count;
    unsigned nesting; /**< calls under way that walk the list of clients */
    int reserve_fd;   /**< given up to turn a client away when no descriptors are left */
};

/** Makes a client of a connected socket and greets it.
 * @param fd taken over, also on failure. @return 0; -EMFILE when QMP_CLIENTS_MAX are connected */
int qmp_client_create(struct qmp_server *server, int fd, struct error *error);

/** Sends a message, now or when the socket takes it. @param message borrowed */
void qmp_client_send(struct qmp_client *client, const json_t *message);

/** Tries once to send what waits, and frees the client; the list is the caller's to mend. */
void qmp_client_destroy(struct qmp_client *client);

/** Brackets everything that walks the list of clients; the outermost leave frees the dead. */
void qmp_enter(struct qmp_server *server);
void qmp_leave(struct qmp_server *server);

/** Answers one value, or one problem, of a client's input. A json_stream_fn. */
void qmp_input(void *client, json_t *value, const char *problem);
