/* SPDX-License-Identifier: Apache-2.0
 *
 * Unix sockets with a path in the file system: of channels, of QMP, of the console. Any thread.
 */
#pragma once

#include <sys/un.h>

#include "base/error.h"

/** Fills in an address. @return 0; -ENAMETOOLONG; -EINVAL for an empty path */
int unix_address(struct sockaddr_un *address, const char *path, struct error *error);

/**
 * Makes a listening socket, mode 0600. A socket at that path that nobody has bound any more is
 * replaced.
 * @param type SOCK_STREAM, ...
 * @return a non-blocking descriptor; -EADDRINUSE when somebody listens there, or something else is
 *         there. The message does not name the path: that is for the caller, who knows what for
 */
int unix_listen(const char *path, int type, int backlog, struct error *error);

/** Removes a socket that nobody has bound any more. Anything else is left alone. */
void unix_remove_stale(const char *path);
