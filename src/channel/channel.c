/* SPDX-License-Identifier: Apache-2.0
 *
 * Messages: see channel.h. A packet is a header, the payload, and descriptors as SCM_RIGHTS; the
 * kernel keeps packet boundaries, so a message is received whole or not at all. One thread at a
 * time, except channel_cancel().
 *
 * Order of events in a wait: cancelled, then data, then the peer's death or its closed socket. What
 * a peer sent before it died counts.
 */
#include "channel/channel.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/util.h"
#include "channel/internal.h"

#define MAGIC            0x4e544142u /* "BATN" */
#define KERNEL_FDS_MAX   253         /* SCM_MAX_FD: more never arrive in one packet */
#define SEND_BUFFER      (1 << 20)
#define REFS_PATIENCE_MS 1000
#define REFS_RETRY_NS    1000000u
#define DEATH_GRACE_MS   50

/* In front of every payload. Both ends are on one host: no byte order to mind. */
struct header {
    uint32_t magic;
    uint32_t type;
    uint32_t sequence;
    uint32_t length;
    uint32_t fd_count;
};

/* Room for the descriptors of one packet, aligned as the kernel wants it. */
union control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(KERNEL_FDS_MAX * sizeof(int))];
};

/* What a packet brought besides bytes. */
struct arrived {
    int fds[KERNEL_FDS_MAX];
    uint32_t fd_count;
};

static int check_type(int socket, struct error *error)
{
    int domain = 0, type = 0;
    socklen_t size = sizeof(int);

    if (getsockopt(socket, SOL_SOCKET, SO_DOMAIN, &domain, &size) < 0 ||
        getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &size) < 0)
        return error_set_errno(error, errno, "not a socket");
    if (domain != AF_UNIX || type != SOCK_SEQPACKET)
        return error_set(error, EPROTOTYPE, "a channel needs a unix socket of type SOCK_SEQPACKET");
    return 0;
}

int channel_from_socket(struct channel **channel, int socket, struct error *error)
{
    int buffer = SEND_BUFFER, ret;
    CLEANUP_CLOSE int fd = socket, cancel = -1;
    struct channel *new;
    struct peer peer;

    ret = check_type(fd, error);
    if (ret < 0)
        return ret;
    cancel = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (cancel < 0)
        return fail_errno(error, errno, "cannot open an eventfd");
    ret = peer_identify(fd, &peer, error);
    if (ret < 0)
        return ret;
    /* Best effort, and capped by net.core.wmem_max: what matters is that one message fits, which
     * send reports if it does not. */
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
    new = xcalloc(1, sizeof(*new));
    new->socket = STEAL_FD(fd);
    new->cancel = STEAL_FD(cancel);
    new->peer_pid = peer.pid;
    new->peer_pidfd = peer.pidfd;
    *channel = new;
    return 0;
}

void channel_close(struct channel *channel)
{
    if (channel == NULL)
        return;
    close_fd(channel->socket);
    close_fd(channel->cancel);
    close_fd(channel->peer_pidfd);
    free(channel);
}

void channel_cancel(struct channel *channel)
{
    uint64_t one = 1;

    atomic_store(&channel->cancelled, true);
    /* Nobody reads it, so it stays readable; should its counter ever be full, it is so already. */
    (void)!write(channel->cancel, &one, sizeof(one));
}

uint64_t channel_bytes(const struct channel *channel)
{
    return channel->bytes;
}

int channel_peer_pidfd(const struct channel *channel)
{
    return channel->peer_pidfd;
}

pid_t channel_peer_pid(const struct channel *channel)
{
    return channel->peer_pid;
}

bool channel_peer_dies(const struct channel *channel, unsigned timeout_ms)
{
    struct pollfd state = {.fd = channel->peer_pidfd, .events = POLLIN};

    return poll_until(&state, 1, deadline_after(timeout_ms)) > 0;
}

/* A process that ends closes its sockets a moment before its pidfd tells: worth a short wait, since
 * a crash and a farewell are different stories for the operator. */
static int peer_gone(const struct channel *channel, struct error *error)
{
    if (channel_peer_dies(channel, DEATH_GRACE_MS))
        return error_set(error, EPIPE, "the other process (%d) has ended", (int)channel->peer_pid);
    return error_set(error, EPIPE, "the other process (%d) has closed the channel",
                     (int)channel->peer_pid);
}

/* What a wait ended with, besides an error. */
#define WAIT_READY 1
#define WAIT_DEAD  2

/*
 * Waits for the socket, the peer's death, cancellation or the deadline.
 * @param events what to wait for at the socket; 0 only looks at the rest
 * @return WAIT_READY; WAIT_DEAD when the peer has ended and the socket was not ready just before;
 *         0 when the time is over; -ECANCELED
 */
static int wait_for(const struct channel *channel, short events, uint64_t deadline,
                    struct error *error)
{
    struct pollfd fds[] = {
        {.fd = channel->cancel, .events = POLLIN},
        {.fd = events ? channel->socket : -1, .events = events},
        {.fd = channel->peer_pidfd, .events = POLLIN},
    };

    if (poll_until(fds, ARRAY_SIZE(fds), deadline) < 0)
        return error_set_errno(error, errno, "cannot wait for the other process");
    if (fds[0].revents)
        return error_set(error, ECANCELED, "cancelled");
    if (fds[1].revents)
        return WAIT_READY;
    return fds[2].revents ? WAIT_DEAD : 0;
}

/* Attaches descriptors to a packet. */
static void put_fds(struct msghdr *packet, union control *control, const int *fds, uint32_t count)
{
    struct cmsghdr *head;

    memset(control, 0, sizeof(*control));
    packet->msg_control = control->bytes;
    packet->msg_controllen = CMSG_SPACE(count * sizeof(int));
    head = CMSG_FIRSTHDR(packet);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(head), fds, count * sizeof(int));
}

/* One attempt. @return 0 or a negative errno */
static int try_send(const struct channel *channel, const struct channel_message *message)
{
    struct header header = {.magic = MAGIC,
                            .type = message->type,
                            .sequence = message->sequence,
                            .length = message->length,
                            .fd_count = message->fd_count};
    struct iovec parts[] = {
        {.iov_base = &header, .iov_len = sizeof(header)},
        {.iov_base = (void *)message->payload, .iov_len = message->length},
    };
    struct msghdr packet = {.msg_iov = parts, .msg_iovlen = ARRAY_SIZE(parts)};
    union control control;

    if (message->fd_count > 0)
        put_fds(&packet, &control, message->fds, message->fd_count);
    if (sendmsg(channel->socket, &packet, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        return -errno;
    return 0;
}

static int send_error(const struct channel *channel, int code, struct error *error)
{
    switch (code) {
    case EPIPE:
    case ECONNRESET:
    case ENOTCONN:
        return peer_gone(channel, error);
    case ETOOMANYREFS:
        return error_set(error, code,
                         "more descriptors are on their way to the other process than this user "
                         "may have open: raise the limit of open files (ulimit -n, or "
                         "LimitNOFILE= of the unit)");
    case EMSGSIZE:
        return error_set(error, code,
                         "a message of %u bytes does not fit into a socket: raise "
                         "net.core.wmem_max",
                         CHANNEL_PAYLOAD_MAX);
    default:
        return fail_errno(error, code, "cannot send to the other process");
    }
}

/*
 * Waits until another attempt makes sense.
 * @param code        why the last one failed
 * @param refs_until  ETOOMANYREFS is worth waiting for until then: the limit counts what the peer
 *                    has not received yet, and nothing tells when it did
 * @return 0 to try again, or a negative errno
 */
static int wait_to_retry(const struct channel *channel, int code, uint64_t deadline,
                         uint64_t refs_until, struct error *error)
{
    bool refs = code == ETOOMANYREFS;
    uint64_t until = refs ? clock_ns() + REFS_RETRY_NS : deadline;
    int ret;

    if (code == EINTR)
        return 0;
    if ((code != EAGAIN && !refs) || (refs && until > MIN(deadline, refs_until)))
        return send_error(channel, code, error);
    ret = wait_for(channel, refs ? 0 : POLLOUT, until, error);
    if (ret < 0)
        return ret;
    if (ret == WAIT_DEAD)
        return peer_gone(channel, error);
    if (ret == 0 && !refs)
        return error_set(error, ETIMEDOUT, "the other process (%d) took no message in time",
                         (int)channel->peer_pid);
    return 0;
}

int channel_send(struct channel *channel, struct channel_message *message, int timeout_ms,
                 struct error *error)
{
    uint64_t deadline = deadline_after(timeout_ms);
    uint64_t refs_until = deadline_after(REFS_PATIENCE_MS);
    int ret;

    assert(message->type != 0 && message->length <= CHANNEL_PAYLOAD_MAX &&
           message->fd_count <= CHANNEL_FDS_MAX);
    if (atomic_load(&channel->cancelled))
        return error_set(error, ECANCELED, "cancelled");
    message->sequence = channel->send_sequence;
    while ((ret = try_send(channel, message)) < 0) {
        ret = wait_to_retry(channel, -ret, deadline, refs_until, error);
        if (ret < 0)
            return ret;
    }
    channel->send_sequence++;
    channel->bytes += sizeof(struct header) + message->length;
    return 0;
}

static void close_fds(int *fds, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        close_fd(fds[i]);
        fds[i] = -1;
    }
}

/* Collects every descriptor that came with a packet, so that none can be lost. */
static void take_fds(struct msghdr *packet, struct arrived *arrived)
{
    arrived->fd_count = 0;
    for (struct cmsghdr *head = CMSG_FIRSTHDR(packet); head; head = CMSG_NXTHDR(packet, head)) {
        size_t count;

        if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
            continue;
        count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        /* The buffer that the kernel filled holds no more than this. */
        assert(count <= KERNEL_FDS_MAX - arrived->fd_count);
        memcpy(arrived->fds + arrived->fd_count, CMSG_DATA(head), count * sizeof(int));
        arrived->fd_count += (uint32_t)count;
    }
}

/* An empty packet and the end of the connection look alike to recvmsg(). */
static int empty_packet(const struct channel *channel, const struct arrived *arrived,
                        struct error *error)
{
    struct pollfd state = {.fd = channel->socket, .events = POLLRDHUP};

    if (arrived->fd_count == 0 && poll_until(&state, 1, 0) > 0 &&
        (state.revents & (POLLHUP | POLLRDHUP)))
        return peer_gone(channel, error);
    return error_set(error, EPROTO, "the other process sent an empty packet");
}

static int check_header(const struct channel *channel, const struct header *header, size_t received,
                        struct error *error)
{
    if (received < sizeof(*header) || header->magic != MAGIC || header->type == 0)
        return error_set(error, EPROTO, "the other process sent something that is no message");
    if (header->length != received - sizeof(*header))
        return error_set(error, EPROTO,
                         "message %u declares %" PRIu32 " bytes of payload and has %zu",
                         header->sequence, header->length, received - sizeof(*header));
    if (header->sequence != channel->receive_sequence)
        return error_set(error, EPROTO, "message %" PRIu32 " arrived where %" PRIu32 " was due",
                         header->sequence, channel->receive_sequence);
    if (header->fd_count > CHANNEL_FDS_MAX)
        return error_set(error, EPROTO, "message %" PRIu32 " declares %" PRIu32 " descriptors",
                         header->sequence, header->fd_count);
    return 0;
}

/* @param flags MSG_TRUNC and MSG_CTRUNC as the kernel set them */
static int check_packet(const struct channel *channel, const struct header *header, size_t received,
                        const struct arrived *arrived, int flags, struct error *error)
{
    int ret;

    if (received == 0)
        return empty_packet(channel, arrived, error);
    if (flags & MSG_TRUNC)
        return error_set(error, EPROTO, "the other process sent a packet that is too long");
    ret = check_header(channel, header, received, error);
    if (ret < 0)
        return ret;
    /* There was room for all that one packet can carry, so it was the limit that cut it short. */
    if (flags & MSG_CTRUNC)
        return error_set(error, EMFILE,
                         "only %u of %u descriptors of message %u could be received: raise this "
                         "process's limit of open files (ulimit -n, or LimitNOFILE= of its unit)",
                         arrived->fd_count, header->fd_count, header->sequence);
    if (header->fd_count != arrived->fd_count)
        return error_set(error, EPROTO, "message %u declares %u descriptors and has %u",
                         header->sequence, header->fd_count, arrived->fd_count);
    return 0;
}

/* One attempt. @return 1 received; 0 nothing there; a negative errno */
static int try_receive(struct channel *channel, struct channel_message *message,
                       struct error *error)
{
    struct header header = {0};
    struct iovec parts[] = {
        {.iov_base = &header, .iov_len = sizeof(header)},
        {.iov_base = message->payload, .iov_len = sizeof(message->payload)},
    };
    union control control;
    struct msghdr packet = {.msg_iov = parts,
                            .msg_iovlen = ARRAY_SIZE(parts),
                            .msg_control = control.bytes,
                            .msg_controllen = sizeof(control.bytes)};
    struct arrived arrived;
    ssize_t received;
    int ret;

    do {
        received = recvmsg(channel->socket, &packet, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        /* ECONNRESET: the peer left without reading all that we sent. It is reported once, ahead
         * of what the peer itself sent. */
    } while (received < 0 && (errno == EINTR || errno == ECONNRESET));
    if (received < 0 && errno == EAGAIN)
        return 0;
    if (received < 0 && errno == ENOTCONN)
        return peer_gone(channel, error);
    if (received < 0)
        return fail_errno(error, errno, "cannot receive from the other process");
    take_fds(&packet, &arrived);
    ret = check_packet(channel, &header, (size_t)received, &arrived, packet.msg_flags, error);
    if (ret < 0) {
        close_fds(arrived.fds, arrived.fd_count);
        return ret;
    }
    message->type = header.type;
    message->sequence = header.sequence;
    message->length = header.length;
    message->fd_count = header.fd_count;
    memcpy(message->fds, arrived.fds, header.fd_count * sizeof(int));
    channel->receive_sequence++;
    channel->bytes += sizeof(header) + header.length;
    return 1;
}

int channel_receive(struct channel *channel, struct channel_message *message, int timeout_ms,
                    struct error *error)
{
    uint64_t deadline = deadline_after(timeout_ms);

    message->type = 0;
    message->length = 0;
    message->fd_count = 0;
    while (true) {
        int wait = wait_for(channel, POLLIN, deadline, error);
        int ret;

        if (wait < 0)
            return wait;
        /* Also when the peer has died: it may have sent between the two looks of one poll(). */
        ret = try_receive(channel, message, error);
        if (ret != 0)
            return ret < 0 ? ret : 0;
        if (wait == WAIT_DEAD)
            return peer_gone(channel, error);
        if (wait == 0)
            return error_set(error, ETIMEDOUT, "the other process (%d) sent nothing within %d ms",
                             (int)channel->peer_pid, timeout_ms);
    }
}

void channel_message_close(struct channel_message *message)
{
    close_fds(message->fds, message->fd_count);
    message->fd_count = 0;
}
