/* SPDX-License-Identifier: Apache-2.0
 *
 * The host's side of a character back end: descriptors, how they are opened, handed over and used.
 * Private to chardev.c, which adds threads, buffers and the event loop.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <termios.h>

#include "base/error.h"
#include "base/fdset.h"

#define BACKEND_PATH_SIZE 1024

enum backend_kind { BACKEND_NULL, BACKEND_STDIO, BACKEND_PTY, BACKEND_FILE, BACKEND_UNIX };

struct backend {
    enum backend_kind kind;
    char path[BACKEND_PATH_SIZE]; /**< FILE, UNIX */
    bool wait;                    /**< UNIX: creation waits for a client */
    bool signals;                 /**< STDIO: the terminal's ^C and ^Z keep their meaning */
    int in, out;                  /**< separate descriptors, maybe of one object; -1: none */
    int listener;                 /**< UNIX; else -1 */
    bool is_socket;               /**< out is written with send() */
    bool may_block;               /**< out shares its file description with other programs */
};

/** Reads "-serial SPEC". @return -EINVAL with what was expected */
int backend_parse(struct backend *backend, const char *spec, struct error *error);

/**
 * Opens what the parsed spec names.
 * @param name for log lines
 * @param terminal out: the mode of the terminal before it was changed
 * @param changed out: whether it was
 */
int backend_open(struct backend *backend, const char *name, struct termios *terminal, bool *changed,
                 struct error *error);

/** Takes descriptors that backend_describe() added. */
int backend_adopt(struct backend *backend, const char *name, struct fdset *fds,
                  struct error *error);
int backend_describe(const struct backend *backend, const char *name, struct fdset *fds,
                     struct error *error);

/** Accepts a client. @return 0, or -EAGAIN when there is none */
int backend_accept(struct backend *backend, struct error *error);

/** Closes input and output, not the listener. */
void backend_disconnect(struct backend *backend);

/** Whether somebody has a pty's other end open. */
bool backend_pty_open(const struct backend *backend);

/** Never waits. @return bytes, 0 at the end of input, or -errno (-EAGAIN: nothing there) */
ssize_t backend_read(const struct backend *backend, void *bytes, size_t size);

/** Never waits. @return bytes taken, maybe fewer, or -errno (-EAGAIN: none) */
ssize_t backend_write(const struct backend *backend, const void *bytes, size_t size);

/** Closes everything. @param unlink_path also removes a socket's path */
void backend_close(struct backend *backend, bool unlink_path);
