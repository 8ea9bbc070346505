/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: what either side of a hand-over makes of the other's messages. The channel is a fake
 * that delivers messages of the input (its framing is the target `channel`): a byte says who
 * receives, one what type it says it is, one how many descriptors come with it, two how long it is,
 * then come its bytes.
 *
 * What must hold: a failure has a message; what is accepted is within its bounds; and every
 * descriptor is owned by somebody who closes it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/util.h"
#include "fuzz.h"
#include "update/wire.h"

#define HEADER_BYTES 5u

struct channel {
    const uint8_t *data;
    size_t left;
};

int channel_send(struct channel *channel, struct channel_message *message, int timeout_ms,
                 struct error *error)
{
    (void)channel, (void)message, (void)timeout_ms, (void)error;
    abort(); /* nobody here sends anything */
}

int channel_receive(struct channel *channel, struct channel_message *message, int timeout_ms,
                    struct error *error)
{
    const uint8_t *header = channel->data;

    (void)timeout_ms;
    message->fd_count = 0;
    if (channel->left < HEADER_BYTES)
        return error_set(error, EPIPE, "the input is over");
    message->type = header[1];
    channel->data += HEADER_BYTES;
    channel->left -= HEADER_BYTES;
    message->length = MIN((uint32_t)header[3] | (uint32_t)header[4] << 8, CHANNEL_PAYLOAD_MAX);
    message->length = (uint32_t)MIN((size_t)message->length, channel->left);
    memcpy(message->payload, channel->data, message->length);
    channel->data += message->length;
    channel->left -= message->length;
    for (; message->fd_count < MIN((uint32_t)header[2], CHANNEL_FDS_MAX); message->fd_count++)
        message->fds[message->fd_count] = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0);
    return 0;
}

void channel_message_close(struct channel_message *message)
{
    for (uint32_t i = 0; i < message->fd_count; i++)
        close_fd(message->fds[i]);
    message->fd_count = 0;
}

static int receive_request(struct wire *wire, struct error *error)
{
    const struct wire_request *request = &wire->request;
    bool go;
    int fd, ret = wire_receive_request(wire, &go, &fd, 0, error);

    assert(ret == 0 || fd == -1);
    if (ret < 0 || go)
        return ret;
    assert(memchr(request->stage, '\0', sizeof(request->stage)));
    assert(memchr(request->version, '\0', sizeof(request->version)));
    assert(request->definition_length <= WIRE_DESCRIPTION_SIZE);
    assert(request->facts_length <= WIRE_DESCRIPTION_SIZE);
    assert(request->stage_count <= UPDATE_STAGES_MAX && request->vcpu_count <= UPDATE_VCPUS_MAX);
    close_fd(fd);
    return 0;
}

static int receive_reply(struct wire *wire, struct error *error)
{
    const struct wire_reply *reply = &wire->reply;
    int ret = wire_receive_reply(wire, 0, error);

    if (ret == 0)
        assert(reply->code == 0 && reply->vcpu_count <= UPDATE_VCPUS_MAX);
    return ret;
}

static int receive_descriptors(struct wire *wire, uint32_t count, struct error *error)
{
    struct fdset fds = {0};
    int ret = wire_receive_descriptors(wire, &fds, count, 0, error);

    assert(ret < 0 || fds.count == count);
    for (size_t i = 0; i < fds.count; i++)
        assert(fcntl(fds.entries[i].fd, F_GETFD) == FD_CLOEXEC);
    fdset_clear(&fds);
    return ret;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct channel channel = {.data = data, .left = size};
    struct wire *wire = xcalloc(1, sizeof(*wire));
    unsigned before = fuzz_count_descriptors();

    wire->channel = &channel;
    while (channel.left >= HEADER_BYTES) {
        uint8_t receiver = channel.data[0];
        struct error error = {0};
        int ret;

        if (receiver % 3 == 0)
            ret = receive_request(wire, &error);
        else if (receiver % 3 == 1)
            ret = receive_reply(wire, &error);
        else
            ret = receive_descriptors(wire, 1 + receiver / 3, &error);
        assert(ret == 0 || (ret == -error.code && error.message[0] != '\0'));
        channel_message_close(&wire->message);
        assert(fuzz_count_descriptors() == before);
    }
    free(wire);
    return 0;
}
