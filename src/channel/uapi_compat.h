/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernel interfaces newer than the headers of the oldest system that we build on.
 * Private to channel/.
 */
#pragma once

#include <sys/socket.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5, all architectures with the generic numbers */
#endif
