/* SPDX-License-Identifier: Apache-2.0
 *
 * Where running guests are found by name: RUNTIME/NAME/qmp.sock, where RUNTIME is
 * $BATON_RUNTIME_DIR, else $XDG_RUNTIME_DIR/baton, else /run/baton (root only). Directories have
 * mode 0700. Also the pid file of -pidfile. Any thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

#define RUNTIME_PATH_SIZE 1024
#define RUNTIME_QMP       "qmp.sock"
#define RUNTIME_CPR       "cpr." /* of an update: with its process id behind */

/** Writes the path of RUNTIME. @return 0; -ENOENT when none of the variables is set */
int runtime_directory(char path[RUNTIME_PATH_SIZE], struct error *error);

/**
 * Writes the path of a guest's directory or of a file in it.
 * @param file NULL for the directory
 * @return 0; -EINVAL when @p name cannot be a guest's name; -ENAMETOOLONG
 */
int runtime_path(char path[RUNTIME_PATH_SIZE], const char *name, const char *file,
                 struct error *error);

/** Makes a guest's directory, and RUNTIME, where they do not exist. @return 0; -EPERM when one
 * that exists is not this user's alone */
int runtime_create(const char *name, struct error *error);

/** Removes a guest's directory, with what updates have left there that were killed together with
 * their new processes. One that holds anything else stays. */
void runtime_remove(const char *name);

/** Writes this process's id, atomically. */
int runtime_write_pidfile(const char *path, struct error *error);

/** Removes the pid file if it holds this process's id. */
void runtime_remove_pidfile(const char *path);
