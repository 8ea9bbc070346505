/* SPDX-License-Identifier: Apache-2.0
 *
 * Saving: see state.h. Runs while the guest is stopped, so it allocates nothing and makes no
 * system call. Every count is known before its elements are written, so nothing is patched later.
 * The thread that saves owns the writer.
 */
#include "state/state.h"

#include <cbor.h>
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "state/text.h"

static void write_fields(struct state_writer *writer, const struct state_type *type,
                         const struct state_field *fields, const uint8_t *base);

/* libcbor's encoders return how many bytes they wrote, 0 when there was no room. */
static void advance(struct state_writer *writer, size_t written)
{
    if (written == 0)
        writer->overflow = true;
    writer->used += written;
}

static uint8_t *room(const struct state_writer *writer, size_t *left)
{
    *left = writer->overflow ? 0 : writer->capacity - writer->used;
    return writer->bytes + writer->used;
}

static void put_uint(struct state_writer *writer, uint64_t value)
{
    size_t left;
    uint8_t *at = room(writer, &left);

    advance(writer, cbor_encode_uint(value, at, left));
}

static void put_bool(struct state_writer *writer, bool value)
{
    size_t left;
    uint8_t *at = room(writer, &left);

    advance(writer, cbor_encode_bool(value, at, left));
}

static void put_map(struct state_writer *writer, size_t pairs)
{
    size_t left;
    uint8_t *at = room(writer, &left);

    advance(writer, cbor_encode_map_start(pairs, at, left));
}

static void put_array(struct state_writer *writer, size_t count)
{
    size_t left;
    uint8_t *at = room(writer, &left);

    advance(writer, cbor_encode_array_start(count, at, left));
}

/* What follows the head of a text or byte string. */
static void put_content(struct state_writer *writer, const void *bytes, size_t length)
{
    size_t left;
    uint8_t *at = room(writer, &left);

    if (length > left) {
        writer->overflow = true;
        return;
    }
    if (length > 0)
        memcpy(at, bytes, length);
    writer->used += length;
}

static void put_bytes(struct state_writer *writer, const void *bytes, size_t length)
{
    size_t left;
    uint8_t *at = room(writer, &left);

    advance(writer, cbor_encode_bytestring_start(length, at, left));
    put_content(writer, bytes, length);
}

static void put_text(struct state_writer *writer, const char *text, size_t length)
{
    size_t left;
    uint8_t *at = room(writer, &left);

    advance(writer, cbor_encode_string_start(length, at, left));
    put_content(writer, text, length);
}

static void put_key(struct state_writer *writer, const char *name)
{
    put_text(writer, name, strlen(name));
}

static uint64_t get_uint(const uint8_t *member, size_t size)
{
    uint64_t value = 0;

    assert(size == 1 || size == 2 || size == 4 || size == 8);
    memcpy(&value, member, size); /* little-endian: x86-64 only */
    return value;
}

static uint32_t get_length(const struct state_field *field, const uint8_t *base)
{
    uint32_t length;

    memcpy(&length, base + field->length_offset, sizeof(length));
    assert(length <= field->capacity);
    return length;
}

static void write_string(struct state_writer *writer, const struct state_type *type,
                         const struct state_field *field, const char *text)
{
    size_t length = strnlen(text, field->size);

    assert(length < field->size);
    if (!state_text_valid(text, length) && writer->invalid_type == NULL) {
        writer->invalid_type = type;
        writer->invalid_field = field;
    }
    put_text(writer, text, length);
}

static void write_array(struct state_writer *writer, const struct state_type *type,
                        const struct state_field *field, const uint8_t *base)
{
    uint32_t count = get_length(field, base);

    put_array(writer, count);
    for (uint32_t i = 0; i < count; i++)
        write_fields(writer, type, field->fields, base + field->offset + i * field->size);
}

static void write_value(struct state_writer *writer, const struct state_type *type,
                        const struct state_field *field, const uint8_t *base)
{
    const uint8_t *member = base + field->offset;

    switch (field->kind) {
    case STATE_KIND_BOOL:
        put_bool(writer, *member != 0);
        break;
    case STATE_KIND_UINT:
        put_uint(writer, get_uint(member, field->size));
        break;
    case STATE_KIND_STRING:
        write_string(writer, type, field, (const char *)member);
        break;
    case STATE_KIND_BYTES:
        put_bytes(writer, member, field->size);
        break;
    case STATE_KIND_BLOB:
        put_bytes(writer, member, get_length(field, base) * field->size);
        break;
    case STATE_KIND_ARRAY:
        write_array(writer, type, field, base);
        break;
    }
}

static void write_fields(struct state_writer *writer, const struct state_type *type,
                         const struct state_field *fields, const uint8_t *base)
{
    size_t count = 0;

    while (fields[count].name)
        count++;
    put_map(writer, count);
    for (size_t i = 0; i < count; i++) {
        put_key(writer, fields[i].name);
        write_value(writer, type, &fields[i], base);
    }
}

void state_writer_init(struct state_writer *writer, void *bytes, size_t capacity)
{
    *writer = (struct state_writer){.bytes = bytes, .capacity = capacity};
    put_array(writer, 2);
    put_key(writer, "baton-state");
    put_uint(writer, STATE_FORMAT_VERSION);
}

void state_write(struct state_writer *writer, const char *id, const struct state_type *type,
                 const void *object, bool required)
{
    bool has_min_reader = type->min_reader > 1;

    if (!state_name_valid(id, strlen(id)))
        writer->invalid_id = id;
    put_map(writer, has_min_reader ? 6 : 5);
    put_key(writer, "id");
    put_key(writer, id);
    put_key(writer, "type");
    put_key(writer, type->name);
    put_key(writer, "version");
    put_uint(writer, type->version);
    if (has_min_reader) {
        put_key(writer, "min_reader");
        put_uint(writer, type->min_reader);
    }
    put_key(writer, "required");
    put_bool(writer, required);
    put_key(writer, "fields");
    write_fields(writer, type, type->fields, object);
    writer->sections++;
}

int state_writer_finish(struct state_writer *writer, size_t *length, struct error *error)
{
    put_uint(writer, writer->sections);
    if (writer->overflow)
        return error_set(error, ENOSPC, "the state does not fit into %zu bytes", writer->capacity);
    if (writer->invalid_id)
        return error_set(error, EINVAL,
                         "'%s' cannot name a section of state: not 1 to %u characters of ASCII",
                         writer->invalid_id, STATE_NAME_MAX);
    if (writer->invalid_type)
        return error_set(error, EINVAL, "state of type '%s': field '%s' is not UTF-8",
                         writer->invalid_type->name, writer->invalid_field->name);
    *length = writer->used;
    return 0;
}
