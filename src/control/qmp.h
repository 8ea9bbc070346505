/* SPDX-License-Identifier: Apache-2.0
 *
 * A QMP server: listening unix sockets, clients, the protocol (greeting, negotiation, commands,
 * events). It knows no command; those come in a table. QEMU's qmp-spec says what goes over the
 * wire.
 *
 * Everything happens on the main thread, on its event loop, and never blocks: a client that does
 * not read what it is sent is disconnected when QMP_OUTPUT_MAX bytes wait for it.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <systemd/sd-event.h>

#include "base/error.h"
#include "base/fdset.h"

#define QMP_OUTPUT_MAX    (4u << 20)
#define QMP_CLIENTS_MAX   64u
#define QMP_LISTENERS_MAX 8u
#define QMP_ARGUMENTS_MAX 4

struct qmp_server;

enum qmp_type { QMP_STRING, QMP_BOOL, QMP_INTEGER, QMP_ARRAY, QMP_OBJECT };

struct qmp_argument {
    const char *name; /**< NULL ends the list */
    enum qmp_type type;
    bool required;
};

/**
 * Executes a command.
 * @param arguments an object that fits the command's table of arguments; borrowed
 * @param result    what "return" holds; left alone for {}
 * @return 0, or negative with the error for the client
 */
typedef int qmp_command_fn(void *opaque, const json_t *arguments, json_t **result,
                           struct error *error);

struct qmp_command {
    const char *name;
    qmp_command_fn *execute;
    struct qmp_argument arguments[QMP_ARGUMENTS_MAX + 1];
};

/** Called when the last client has left. */
typedef void qmp_idle_fn(void *opaque);

/**
 * Makes a server without sockets. "qmp_capabilities" and "query-commands" are its own.
 * @param loop, commands borrowed for the server's life
 * @param opaque for the commands and for @p idle, which may be NULL
 */
int qmp_create(struct qmp_server **server, sd_event *loop, const struct qmp_command *commands,
               size_t count, qmp_idle_fn *idle, void *opaque, struct error *error);

/** Disconnects everybody, after an attempt to send what waits, and closes the listeners. */
void qmp_destroy(struct qmp_server *server);

/**
 * Binds a socket (mode 0600) and accepts clients. A socket at that path that nobody serves is
 * replaced.
 * @param arriving this process takes a guest over: a path that is being served is then no error,
 *                 but one of which qmp_adopt() must find the socket
 * @return 0; -EADDRINUSE with an error that names the process that serves it
 */
int qmp_listen(struct qmp_server *server, const char *path, bool arriving, struct error *error);

/** @return the greeting, a new reference; its "version" is what query-version returns */
json_t *qmp_greeting(void);

/** Sends an event to every client that has negotiated. @param data stolen; NULL for none */
void qmp_emit(struct qmp_server *server, const char *event, json_t *data);

/** @return how many clients are connected. */
unsigned qmp_client_count(const struct qmp_server *server);

/** Offers the listening sockets to another process, as "qmp/N/listen". */
int qmp_describe(const struct qmp_server *server, struct fdset *fds, struct error *error);

/**
 * Takes listening sockets of another process out of a set. Nothing is accepted before
 * qmp_activate(), and qmp_destroy() leaves their paths alone until then.
 * @param only_own keep only those whose paths were given to qmp_listen() here, and those whose
 *                 paths end with @p keep; the others' paths are removed by qmp_activate()
 * @param keep     may be NULL
 * @return 0; -EADDRINUSE when a path that qmp_listen() left to the other process is not among
 *         them; -EINVAL when a descriptor is no listening unix socket
 */
int qmp_adopt(struct qmp_server *server, struct fdset *fds, bool only_own, const char *keep,
              struct error *error);

/** The guest runs here now: accepts clients on adopted sockets. */
void qmp_activate(struct qmp_server *server);

/** The guest runs elsewhere: closes the listeners and leaves their paths alone. Clients stay. */
void qmp_release(struct qmp_server *server);

/**
 * Connects to a unix socket without waiting.
 * @param pid out, when not NULL: the process that listens
 * @return a non-blocking descriptor; -ECONNREFUSED when nobody serves it, -ENOENT, ...
 */
int qmp_connect(const char *path, pid_t *pid);
