/* SPDX-License-Identifier: Apache-2.0
 *
 * Messages with descriptors between the two processes of a hand-over, over a SOCK_SEQPACKET unix
 * socket. A message is one packet: a fixed header, at most CHANNEL_PAYLOAD_MAX bytes and at most
 * CHANNEL_FDS_MAX descriptors. Every wait has a time limit and also ends when the peer dies, when
 * it closes the socket, or when the caller cancels. What arrives is hostile until proven otherwise.
 *
 * One thread at a time; only channel_cancel() may be called from any thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

#define CHANNEL_PAYLOAD_MAX 32768u
#define CHANNEL_FDS_MAX     250u /* the kernel's SCM_MAX_FD is 253 */

struct channel;
struct channel_listener;

struct channel_message {
    uint32_t type;     /**< meaning is the caller's; never 0 */
    uint32_t sequence; /**< filled in by send, checked by receive: 0, 1, 2 ... per direction */
    uint32_t length;   /**< bytes of payload */
    uint32_t fd_count;
    uint8_t payload[CHANNEL_PAYLOAD_MAX];
    int fds[CHANNEL_FDS_MAX]; /**< receive: owned by the caller, close-on-exec; send: borrowed */
};

/**
 * Binds a listening socket, mode 0600. A stale socket at that path (nobody listens) is replaced.
 * @param path file-system path of at most 107 bytes
 * @return 0; -EADDRINUSE when somebody listens there, or something else than a socket is there
 */
int channel_listen(struct channel_listener **listener, const char *path, struct error *error);

/** The listening descriptor, borrowed, for an event loop. */
int channel_listener_fd(const struct channel_listener *listener);

/**
 * Waits for one connection from a process of the same user or root; others are turned away.
 * @param timeout_ms how long to wait; -1 for ever
 */
int channel_accept(struct channel_listener *listener, struct channel **channel, int timeout_ms,
                   struct error *error);

/** Closes the socket and removes its path, if it is still the one that was bound. NULL is fine. */
void channel_listener_close(struct channel_listener *listener);

/** Connects to a listening peer and checks by kernel credentials that it is the same user or root.
 */
int channel_connect(struct channel **channel, const char *path, int timeout_ms,
                    struct error *error);

/**
 * Makes a channel of a connected SOCK_SEQPACKET unix socket (one end of a socketpair, a socket that
 * a supervisor passed). Checks the peer as channel_accept() does.
 * @param socket taken over, also on failure
 */
int channel_from_socket(struct channel **channel, int socket, struct error *error);

/**
 * Sends one message. Failures leave nothing half-sent.
 * @return 0; -ETIMEDOUT; -EPIPE peer gone; -ECANCELED; -ETOOMANYREFS more descriptors are on their
 *         way than RLIMIT_NOFILE allows, and the peer did not take them for a while
 */
int channel_send(struct channel *channel, struct channel_message *message, int timeout_ms,
                 struct error *error);

/**
 * Receives one message. On failure no descriptor leaks. What a peer sent before it died or closed
 * its end is received first.
 * @return 0; -ETIMEDOUT; -EPIPE peer gone; -ECANCELED; -EPROTO not a message of ours; -EMFILE no
 *         room for the descriptors (the message is lost)
 */
int channel_receive(struct channel *channel, struct channel_message *message, int timeout_ms,
                    struct error *error);

/** Closes the descriptors of a received message that nobody took (fds[i] >= 0). */
void channel_message_close(struct channel_message *message);

/** Makes every wait of this channel, now and later, end with -ECANCELED. Any thread. */
void channel_cancel(struct channel *channel);

/** @return bytes of all messages that were sent and received so far, with their heads. */
uint64_t channel_bytes(const struct channel *channel);

/** @return a pidfd of the peer (borrowed), from SO_PEERPIDFD or pidfd_open(). */
int channel_peer_pidfd(const struct channel *channel);

/** @return the peer's process id, as the kernel says. */
pid_t channel_peer_pid(const struct channel *channel);

/** @return whether the peer's process has ended, or does within @p timeout_ms. */
bool channel_peer_dies(const struct channel *channel, unsigned timeout_ms);

/** Closes the connection. NULL is fine. */
void channel_close(struct channel *channel);
