/* SPDX-License-Identifier: Apache-2.0
 *
 * See item.h. libcbor's streaming decoder reports each item through a callback; ours only note
 * what they were given. It neither allocates nor keeps state between items.
 */
#include "state/item.h"

#include <cbor.h>
#include <errno.h>
#include <inttypes.h>

#include "state/state.h"
#include "state/text.h"

static void on_uint8(void *context, uint8_t value)
{
    *(struct item *)context = (struct item){.kind = ITEM_UINT, .value = value};
}

static void on_uint16(void *context, uint16_t value)
{
    *(struct item *)context = (struct item){.kind = ITEM_UINT, .value = value};
}

static void on_uint32(void *context, uint32_t value)
{
    *(struct item *)context = (struct item){.kind = ITEM_UINT, .value = value};
}

static void on_uint64(void *context, uint64_t value)
{
    *(struct item *)context = (struct item){.kind = ITEM_UINT, .value = value};
}

static void on_bool(void *context, bool value)
{
    *(struct item *)context = (struct item){.kind = ITEM_BOOL, .value = value};
}

/* libcbor 0.8 passes lengths as size_t, 0.10 as uint64_t: one type on x86-64, which is all we have.
 */
static void on_text(void *context, cbor_data bytes, size_t length)
{
    *(struct item *)context = (struct item){.kind = ITEM_TEXT, .bytes = bytes, .length = length};
}

static void on_bytes(void *context, cbor_data bytes, size_t length)
{
    *(struct item *)context = (struct item){.kind = ITEM_BYTES, .bytes = bytes, .length = length};
}

static void on_array(void *context, size_t count)
{
    *(struct item *)context = (struct item){.kind = ITEM_ARRAY, .value = count};
}

static void on_map(void *context, size_t count)
{
    *(struct item *)context = (struct item){.kind = ITEM_MAP, .value = count};
}

static void refuse(void *context, const char *what)
{
    *(struct item *)context = (struct item){.kind = ITEM_REFUSED, .refused = what};
}

static void on_negative8(void *context, uint8_t value)
{
    refuse(context, "a negative number");
}

static void on_negative16(void *context, uint16_t value)
{
    refuse(context, "a negative number");
}

static void on_negative32(void *context, uint32_t value)
{
    refuse(context, "a negative number");
}

static void on_negative64(void *context, uint64_t value)
{
    refuse(context, "a negative number");
}

static void on_indefinite(void *context)
{
    refuse(context, "an indefinite length");
}

static void on_tag(void *context, uint64_t value)
{
    refuse(context, "a tag");
}

static void on_float(void *context, float value)
{
    refuse(context, "a floating-point number");
}

static void on_double(void *context, double value)
{
    refuse(context, "a floating-point number");
}

static void on_null(void *context)
{
    refuse(context, "null");
}

static const struct cbor_callbacks callbacks = {
    .uint8 = on_uint8,
    .uint16 = on_uint16,
    .uint32 = on_uint32,
    .uint64 = on_uint64,
    .negint8 = on_negative8,
    .negint16 = on_negative16,
    .negint32 = on_negative32,
    .negint64 = on_negative64,
    .byte_string_start = on_indefinite,
    .byte_string = on_bytes,
    .string = on_text,
    .string_start = on_indefinite,
    .indef_array_start = on_indefinite,
    .array_start = on_array,
    .indef_map_start = on_indefinite,
    .map_start = on_map,
    .tag = on_tag,
    .float2 = on_float,
    .float4 = on_float,
    .float8 = on_double,
    .undefined = on_null,
    .null = on_null,
    .boolean = on_bool,
    .indef_break = on_indefinite,
};

static const char *kind_name(enum item_kind kind)
{
    static const char *const names[] = {
        [ITEM_REFUSED] = "something else",
        [ITEM_UINT] = "an unsigned integer",
        [ITEM_BOOL] = "a boolean",
        [ITEM_TEXT] = "text",
        [ITEM_BYTES] = "a byte string",
        [ITEM_ARRAY] = "an array",
        [ITEM_MAP] = "a map",
    };

    return names[kind];
}

/* What can be wrong with an item that libcbor has decoded. */
static int item_check(const struct cursor *cursor, const struct item *item, size_t start,
                      struct error *error)
{
    uint64_t left = cursor->length - cursor->position;

    switch (item->kind) {
    case ITEM_REFUSED:
        return error_set(error, EINVAL, "%s at byte %zu, which this format does not have",
                         item->refused, start);
    case ITEM_TEXT:
        if (!state_text_valid(item->bytes, item->length))
            return error_set(error, EINVAL, "text at byte %zu is not UTF-8 without NUL", start);
        return 0;
    case ITEM_ARRAY: /* an element takes a byte at least, a pair two */
    case ITEM_MAP:
        if (item->value > (item->kind == ITEM_MAP ? left / 2 : left))
            return error_set(error, EINVAL, "truncated: %s of %" PRIu64 " at byte %zu",
                             kind_name(item->kind), item->value, start);
        return 0;
    default:
        return 0;
    }
}

int item_read(struct cursor *cursor, struct item *item, struct error *error)
{
    size_t start = cursor->position;
    struct cbor_decoder_result result;

    *item = (struct item){.kind = ITEM_REFUSED, .refused = "an item of no known kind"};
    if (start >= cursor->length)
        return error_set(error, EINVAL, "truncated after %zu bytes", start);
    result = cbor_stream_decode(cursor->bytes + start, cursor->length - start, &callbacks, item);
    if (result.status == CBOR_DECODER_NEDATA)
        return error_set(error, EINVAL, "truncated: the item at byte %zu is cut off", start);
    if (result.status != CBOR_DECODER_FINISHED)
        return error_set(error, EINVAL, "byte %zu begins no CBOR item", start);
    cursor->position += result.read;
    return item_check(cursor, item, start, error);
}

int item_expect(struct cursor *cursor, enum item_kind kind, struct item *item, struct error *error)
{
    size_t start = cursor->position;
    int ret = item_read(cursor, item, error);

    if (ret < 0)
        return ret;
    if (item->kind != kind)
        return error_set(error, EINVAL, "%s at byte %zu where %s belongs", kind_name(item->kind),
                         start, kind_name(kind));
    return 0;
}

int item_expect_name(struct cursor *cursor, struct item *item, struct error *error)
{
    size_t start = cursor->position;
    int ret = item_expect(cursor, ITEM_TEXT, item, error);

    if (ret < 0)
        return ret;
    if (!state_name_valid(item->bytes, item->length))
        return error_set(error, EINVAL,
                         "the name at byte %zu is not 1 to %u characters of printable ASCII", start,
                         STATE_NAME_MAX);
    return 0;
}

/* One open array or map while skipping: how many items are still to come. */
struct level {
    uint64_t left;
    bool map;
};

int item_skip(struct cursor *cursor, unsigned depth, struct error *error)
{
    struct level levels[STATE_DEPTH_MAX + 1] = {{.left = 1}};
    unsigned open = 0;

    while (true) {
        struct level *level = &levels[open];
        struct item item;
        bool key;
        int ret;

        if (level->left == 0) {
            if (open == 0)
                return 0;
            open--;
            continue;
        }
        key = level->map && level->left % 2 == 0;
        level->left--;
        ret = key ? item_expect_name(cursor, &item, error) : item_read(cursor, &item, error);
        if (ret < 0)
            return ret;
        if (item.kind != ITEM_ARRAY && item.kind != ITEM_MAP)
            continue;
        if (depth + open >= STATE_DEPTH_MAX)
            return error_set(error, EINVAL, "nested more than %u deep", STATE_DEPTH_MAX);
        open++;
        levels[open].map = item.kind == ITEM_MAP;
        levels[open].left = item.kind == ITEM_MAP ? 2 * item.value : item.value;
    }
}
