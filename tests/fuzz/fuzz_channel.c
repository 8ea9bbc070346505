/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: packets from a hostile peer, with descriptors, into channel_receive(). The input is
 * a list of packets: one byte of flags, one byte with the number of descriptors, two with the
 * length, then the bytes. With a flag, the first 20 bytes are overwritten by a good header, from
 * which a mask in the input then takes bits away: otherwise almost nothing would pass the magic.
 *
 * What must hold: a message that is received is what its header says, its descriptors are open and
 * close-on-exec; and no descriptor is left when all is closed.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/util.h"
#include "channel/channel.h"
#include "fuzz.h"

#define MAGIC          0x4e544142u
#define PACKET_MAX     40000u
#define KERNEL_FDS_MAX 253u

#define FLAG_HEADER   0x01 /* put a good header in front */
#define FLAG_BITFLIP  0x02 /* then spoil a byte of it: position and mask follow */
#define FLAG_SHUTDOWN 0x04 /* and end the stream */
#define FLAG_REPEAT   0x08 /* a sequence number that is not due */

/* Nobody else is at work here, so that waiting would change nothing and take long. */
int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask)
{
    (void)timeout, (void)mask;
    return poll(fds, count, 0);
}

struct input {
    const uint8_t *data;
    size_t left;
};

static uint8_t take(struct input *input)
{
    if (input->left == 0)
        return 0;
    input->left--;
    return *input->data++;
}

struct hostile {
    int socket;
    uint32_t sequence;
    uint8_t packet[PACKET_MAX];
};

static void put_header(struct hostile *hostile, uint8_t flags, size_t length, uint32_t fd_count,
                       struct input *input)
{
    uint32_t header[5] = {MAGIC, 1, hostile->sequence, (uint32_t)(length - sizeof(header)),
                          fd_count};

    if (length < sizeof(header))
        return;
    if (flags & FLAG_REPEAT)
        header[2]--;
    if (flags & FLAG_BITFLIP) {
        size_t position = take(input) % sizeof(header);

        ((uint8_t *)header)[position] ^= take(input);
    }
    memcpy(hostile->packet, header, sizeof(header));
}

static void send_packet(const struct hostile *hostile, size_t length, uint32_t fd_count)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(KERNEL_FDS_MAX * sizeof(int))];
    } control = {.align = {.cmsg_level = SOL_SOCKET,
                           .cmsg_type = SCM_RIGHTS,
                           .cmsg_len = CMSG_LEN(fd_count * sizeof(int))}};
    struct iovec part = {.iov_base = (void *)hostile->packet, .iov_len = length};
    struct msghdr packet = {.msg_iov = &part, .msg_iovlen = 1};

    if (fd_count > 0) {
        packet.msg_control = &control;
        packet.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        for (uint32_t i = 0; i < fd_count; i++)
            memcpy(CMSG_DATA(&control.align) + i * sizeof(int), &(int){STDIN_FILENO}, sizeof(int));
    }
    (void)!sendmsg(hostile->socket, &packet, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Builds and sends one packet of the input. */
static void attack(struct hostile *hostile, struct input *input)
{
    uint8_t flags = take(input);
    uint32_t fd_count = MIN((uint32_t)take(input), KERNEL_FDS_MAX);
    size_t length = (take(input) | (size_t)take(input) << 8) % (PACKET_MAX + 1);
    size_t given = MIN(length, input->left);

    memset(hostile->packet, 0, length);
    memcpy(hostile->packet, input->data, given);
    if (flags & FLAG_HEADER)
        put_header(hostile, flags, length, fd_count, input);
    else {
        input->data += given;
        input->left -= given;
    }
    send_packet(hostile, length, fd_count);
    if (flags & FLAG_SHUTDOWN)
        shutdown(hostile->socket, SHUT_WR);
}

/* @return whether it makes sense to go on */
static bool receive(struct channel *channel, struct hostile *hostile,
                    struct channel_message *message)
{
    struct error error = {0};
    int ret = channel_receive(channel, message, 0, &error);

    if (ret < 0) {
        assert(ret == -error.code && error.message[0] && message->fd_count == 0);
        return ret == -EPROTO || ret == -ETIMEDOUT;
    }
    assert(message->type != 0 && message->sequence == hostile->sequence);
    assert(message->length <= CHANNEL_PAYLOAD_MAX && message->fd_count <= CHANNEL_FDS_MAX);
    for (uint32_t i = 0; i < message->fd_count; i++)
        assert(fcntl(message->fds[i], F_GETFD) == FD_CLOEXEC);
    channel_message_close(message);
    hostile->sequence++;
    return true;
}

static void run(struct input *input, struct hostile *hostile, struct channel_message *message)
{
    struct error error = {0};
    struct channel *channel;
    int ends[2];

    assert(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    hostile->socket = ends[1];
    assert(channel_from_socket(&channel, ends[0], &error) == 0);
    do {
        attack(hostile, input);
    } while (receive(channel, hostile, message) && input->left > 0);
    close(hostile->socket);
    while (receive(channel, hostile, message))
        ;
    channel_close(channel);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hostile *hostile = xcalloc(1, sizeof(*hostile));
    struct channel_message *message = xcalloc(1, sizeof(*message));
    struct input input = {.data = data, .left = size};
    unsigned before = fuzz_count_descriptors();

    run(&input, hostile, message);
    assert(fuzz_count_descriptors() == before);
    free(message);
    free(hostile);
    return 0;
}
