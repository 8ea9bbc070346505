/* SPDX-License-Identifier: Apache-2.0
 *
 * What connection set-up (listen.c, peer.c) and the messages (channel.c) share.
 * Private to channel/.
 */
#pragma once

#include <poll.h>
#include <stdatomic.h>
#include <stdint.h>

#include "channel/channel.h"

struct channel {
    int socket;
    int cancel;            /**< eventfd: readable for good once cancelled */
    atomic_bool cancelled; /**< the same, for who does not wait */
    int peer_pidfd;
    pid_t peer_pid;
    uint32_t send_sequence;
    uint32_t receive_sequence;
    uint64_t bytes; /**< both directions */
};

/** Who is at the other end, as the kernel says. */
struct peer {
    pid_t pid;
    int pidfd; /**< owned */
};

/** @return the CLOCK_MONOTONIC time that @p timeout_ms ends at; UINT64_MAX for -1 */
uint64_t deadline_after(int timeout_ms);

/**
 * poll() until an absolute time; interruptions by signals do not count.
 * @return as poll(): how many are ready, 0 when the time is over
 */
int poll_until(struct pollfd *fds, nfds_t count, uint64_t deadline);

/**
 * Records a failed system call, with a remedy where there is one that the errno gives away.
 * @return -code
 */
int fail_errno(struct error *error, int code, const char *what) __attribute__((nonnull));

/**
 * Finds out who the peer of a connected socket is.
 * @return 0; -EACCES a user that we do not talk to; -EPIPE it is gone already; others
 */
int peer_identify(int socket, struct peer *peer, struct error *error);
