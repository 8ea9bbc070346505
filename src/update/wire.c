/* SPDX-License-Identifier: Apache-2.0
 *
 * See wire.h.
 */
#include "update/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/util.h"

#define MEMORY_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* Descriptors whose names surely fit one payload. */
#define BATCH_MAX 240u
_Static_assert(BATCH_MAX <= CHANNEL_FDS_MAX, "more descriptors than a message takes");
_Static_assert(BATCH_MAX *(FDSET_NAME_SIZE + 32) < CHANNEL_PAYLOAD_MAX, "names do not fit");

/* --- tables -------------------------------------------------------------------------------- */

static const struct state_field stage_fields[] = {
    STATE_STRING(struct wire_stage, name, 1),
    STATE_UINT(struct wire_stage, start_ns, 1),
    STATE_UINT(struct wire_stage, end_ns, 1),
    STATE_UINT(struct wire_stage, incoming_ns, 1),
    STATE_UINT(struct wire_stage, bytes, 3), /* of messages, and of what they refer to */
    STATE_END,
};

static const struct state_field vcpu_fields[] = {
    STATE_UINT(struct wire_vcpu, ns, 1),
    STATE_END,
};

static const struct state_field request_fields[] = {
    STATE_STRING(struct wire_request, stage, 1),
    STATE_STRING(struct wire_request, version, 1),
    STATE_UINT(struct wire_request, protocol, 1),
    STATE_UINT(struct wire_request, protocol_min, 1),
    STATE_UINT_RANGE(struct wire_request, definition_length, 1, 0, WIRE_DESCRIPTION_SIZE, 0),
    STATE_UINT_RANGE(struct wire_request, facts_length, 1, 0, WIRE_DESCRIPTION_SIZE, 0),
    STATE_UINT(struct wire_request, fd_count, 1),
    STATE_UINT(struct wire_request, state_length, 1),
    STATE_BOOL(struct wire_request, dry_run, 2),
    STATE_ARRAY(struct wire_request, stages, stage_count, stage_fields, 1),
    STATE_ARRAY(struct wire_request, vcpus, vcpu_count, vcpu_fields, 1),
    STATE_END,
};

const struct state_type wire_request_type = {
    .name = "request",
    .version = 3,
    .min_version = 1,
    .size = sizeof(struct wire_request),
    .fields = request_fields,
};

static const struct state_field reply_fields[] = {
    STATE_UINT_RANGE(struct wire_reply, code, 1, 0, 4095, 0),
    STATE_STRING(struct wire_reply, message, 1),
    STATE_STRING(struct wire_reply, version, 1),
    STATE_UINT(struct wire_reply, protocol, 1),
    STATE_UINT(struct wire_reply, work_ns, 1),
    STATE_UINT(struct wire_reply, load_ns, 2),
    STATE_ARRAY(struct wire_reply, vcpus, vcpu_count, vcpu_fields, 1),
    STATE_END,
};

const struct state_type wire_reply_type = {
    .name = "reply",
    .version = 2,
    .min_version = 1,
    .size = sizeof(struct wire_reply),
    .fields = reply_fields,
};

struct batch_name {
    char name[FDSET_NAME_SIZE];
};

struct batch {
    uint32_t count;
    struct batch_name names[CHANNEL_FDS_MAX];
};

static const struct state_field batch_name_fields[] = {
    STATE_STRING(struct batch_name, name, 1),
    STATE_END,
};

static const struct state_field batch_fields[] = {
    STATE_ARRAY(struct batch, names, count, batch_name_fields, 1),
    STATE_END,
};

const struct state_type wire_batch_type = {
    .name = "descriptors",
    .version = 1,
    .min_version = 1,
    .size = sizeof(struct batch),
    .fields = batch_fields,
};

/* --- shared memory ------------------------------------------------------------------------- */

static int map_memory(struct wire_memory *memory, struct error *error)
{
    void *mapping =
        mmap(NULL, memory->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memory->fd, 0);

    if (mapping == MAP_FAILED)
        return error_set_errno(error, errno, "cannot map %zu bytes shared with the other process",
                               memory->size);
    memory->shared = mapping;
    return 0;
}

int wire_memory_create(struct wire_memory *memory, size_t state_capacity, struct error *error)
{
    int ret;

    *memory = (struct wire_memory){.fd = -1, .size = WIRE_STATE_OFFSET + state_capacity};
    memory->fd = memfd_create("baton-hand-over", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (memory->fd < 0 || ftruncate(memory->fd, (off_t)memory->size) < 0 ||
        fcntl(memory->fd, F_ADD_SEALS, MEMORY_SEALS) < 0)
        ret = error_set_errno(error, errno, "cannot make a memfd of %zu bytes", memory->size);
    else
        ret = map_memory(memory, error);
    if (ret < 0)
        wire_memory_destroy(memory);
    return ret;
}

int wire_memory_adopt(struct wire_memory *memory, int fd, struct error *error)
{
    struct stat status;
    int ret;

    *memory = (struct wire_memory){.fd = fd};
    if (fcntl(fd, F_GET_SEALS) != MEMORY_SEALS || fstat(fd, &status) < 0 ||
        status.st_size <= (off_t)WIRE_STATE_OFFSET || status.st_size > (off_t)WIRE_MEMORY_MAX) {
        ret = error_set(error, EPROTO, "the shared memory of the hand-over is not as expected");
    } else {
        memory->size = (size_t)status.st_size;
        ret = map_memory(memory, error);
    }
    if (ret < 0)
        wire_memory_destroy(memory);
    return ret;
}

void wire_memory_destroy(struct wire_memory *memory)
{
    if (memory->shared)
        munmap(memory->shared, memory->size);
    close_fd(memory->fd);
    *memory = (struct wire_memory){.fd = -1};
}

/* --- messages ------------------------------------------------------------------------------ */

static int encode(struct wire *wire, enum wire_type type, const struct state_type *state_type,
                  const void *object, struct error *error)
{
    struct state_writer writer;
    size_t length;
    int ret;

    state_writer_init(&writer, wire->message.payload, CHANNEL_PAYLOAD_MAX);
    state_write(&writer, state_type->name, state_type, object, true);
    ret = state_writer_finish(&writer, &length, error);
    if (ret < 0)
        return ret;
    wire->message.type = type;
    wire->message.length = (uint32_t)length;
    wire->message.fd_count = 0;
    return 0;
}

static int decode(struct wire *wire, const struct state_type *type, void *object, void *scratch,
                  struct error *error)
{
    struct state_target target = {
        .id = type->name, .type = type, .object = object, .scratch = scratch};

    return state_load(wire->message.payload, wire->message.length, &target, 1, error);
}

static int unexpected(struct wire *wire, struct error *error)
{
    channel_message_close(&wire->message);
    return error_set(error, EPROTO, "unexpected message of type %u", wire->message.type);
}

int wire_send_request(struct wire *wire, int fd, int timeout_ms, struct error *error)
{
    int ret = encode(wire, WIRE_REQUEST, &wire_request_type, &wire->request, error);

    if (ret < 0)
        return ret;
    if (fd >= 0) {
        wire->message.fds[0] = fd;
        wire->message.fd_count = 1;
    }
    return channel_send(wire->channel, &wire->message, timeout_ms, error);
}

int wire_send_go(struct wire *wire, int timeout_ms, struct error *error)
{
    wire->message.type = WIRE_GO;
    wire->message.length = 0;
    wire->message.fd_count = 0;
    return channel_send(wire->channel, &wire->message, timeout_ms, error);
}

int wire_send_reply(struct wire *wire, int timeout_ms, struct error *error)
{
    int ret = encode(wire, WIRE_REPLY, &wire_reply_type, &wire->reply, error);

    return ret < 0 ? ret : channel_send(wire->channel, &wire->message, timeout_ms, error);
}

int wire_receive_request(struct wire *wire, bool *go, int *fd, int timeout_ms, struct error *error)
{
    int ret = channel_receive(wire->channel, &wire->message, timeout_ms, error);

    *go = false;
    *fd = -1;
    if (ret < 0)
        return ret;
    if (wire->message.type == WIRE_GO && wire->message.fd_count == 0) {
        *go = true;
        return 0;
    }
    if (wire->message.type != WIRE_REQUEST || wire->message.fd_count > 1)
        return unexpected(wire, error);
    ret = decode(wire, &wire_request_type, &wire->request, &wire->scratch.request, error);
    if (ret < 0) {
        channel_message_close(&wire->message);
        return ret;
    }
    if (wire->message.fd_count == 1)
        *fd = STEAL_FD(wire->message.fds[0]);
    return 0;
}

int wire_receive_reply(struct wire *wire, int timeout_ms, struct error *error)
{
    int ret = channel_receive(wire->channel, &wire->message, timeout_ms, error);

    wire->reply.code = 0;
    if (ret < 0)
        return ret;
    if (wire->message.type != WIRE_REPLY || wire->message.fd_count != 0)
        return unexpected(wire, error);
    ret = decode(wire, &wire_reply_type, &wire->reply, &wire->scratch.reply, error);
    if (ret < 0)
        return ret;
    if (wire->reply.code)
        return error_set(error, (int)wire->reply.code, "the new process says: %s",
                         wire->reply.message);
    return 0;
}

int wire_send_descriptors(struct wire *wire, const struct fdset *fds, int timeout_ms,
                          struct error *error)
{
    CLEANUP_FREE struct batch *batch = xcalloc(1, sizeof(*batch));

    for (size_t sent = 0; sent < fds->count; sent += batch->count) {
        int ret;

        batch->count = (uint32_t)MIN(fds->count - sent, (size_t)BATCH_MAX);
        for (uint32_t i = 0; i < batch->count; i++)
            snprintf(batch->names[i].name, FDSET_NAME_SIZE, "%s", fds->entries[sent + i].name);
        ret = encode(wire, WIRE_DESCRIPTORS, &wire_batch_type, batch, error);
        if (ret < 0)
            return ret;
        for (uint32_t i = 0; i < batch->count; i++)
            wire->message.fds[i] = fds->entries[sent + i].fd;
        wire->message.fd_count = batch->count;
        ret = channel_send(wire->channel, &wire->message, timeout_ms, error);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* Moves one batch's descriptors into the set. */
static int take_batch(struct wire *wire, const struct batch *batch, struct fdset *fds,
                      struct error *error)
{
    if (batch->count == 0 || batch->count != wire->message.fd_count)
        return error_set(error, EPROTO, "%u names came with %u descriptors", batch->count,
                         wire->message.fd_count);
    for (uint32_t i = 0; i < batch->count; i++) {
        int ret = fdset_add(fds, STEAL_FD(wire->message.fds[i]), batch->names[i].name, error);

        if (ret < 0)
            return ret;
    }
    return 0;
}

static int receive_batch(struct wire *wire, struct fdset *fds, int timeout_ms, struct error *error)
{
    CLEANUP_FREE struct batch *batch = xcalloc(2, sizeof(*batch));
    int ret = channel_receive(wire->channel, &wire->message, timeout_ms, error);

    if (ret < 0)
        return ret;
    if (wire->message.type != WIRE_DESCRIPTORS)
        return unexpected(wire, error);
    ret = decode(wire, &wire_batch_type, batch, batch + 1, error);
    if (ret == 0)
        ret = take_batch(wire, batch, fds, error);
    channel_message_close(&wire->message);
    return ret;
}

int wire_receive_descriptors(struct wire *wire, struct fdset *fds, uint32_t count, int timeout_ms,
                             struct error *error)
{
    while (fds->count < count) {
        int ret = receive_batch(wire, fds, timeout_ms, error);

        if (ret < 0)
            return ret;
    }
    if (fds->count != count)
        return error_set(error, EPROTO, "%u descriptors were announced, %zu came", count,
                         fds->count);
    return 0;
}
