/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of src/state: round trips, other versions, and everything that a hostile stream can do.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cbor.h>
#include <cmocka.h>

#include "base/util.h"
#include "sample_state.h"
#include "state/text.h"

#define ROOM 4096

/* A stream of bytes, and a loader of one sample from it. */
struct stream {
    uint8_t bytes[ROOM];
    size_t length;
};

struct world {
    struct sample object, scratch, before;
    struct state_target target;
    struct error error;
};

static void world_init(struct world *world, const struct state_type *type)
{
    memset(world, 0, sizeof(*world));
    memset(&world->object, 0xa5, sizeof(world->object));
    world->before = world->object;
    world->target = (struct state_target){
        .id = "sample/0", .type = type, .object = &world->object, .scratch = &world->scratch};
}

static int world_load(struct world *world, const struct stream *stream)
{
    /* At the end of an allocation of its own, where a sanitizer sees a byte too many. */
    uint8_t *bytes = malloc(stream->length + !stream->length);
    int ret;

    memcpy(bytes, stream->bytes, stream->length);
    ret = state_load(bytes, stream->length, &world->target, 1, &world->error);
    free(bytes);
    if (ret < 0) {
        assert_int_equal(world->error.code, -ret);
        assert_memory_equal(&world->object, &world->before, sizeof(world->object));
        assert_false(world->target.loaded);
    }
    return ret;
}

static void save(struct stream *stream, const struct state_type *type, const void *object)
{
    struct state_writer writer;
    struct error error = {0};

    state_writer_init(&writer, stream->bytes, sizeof(stream->bytes));
    state_write(&writer, "sample/0", type, object, true);
    assert_int_equal(state_writer_finish(&writer, &stream->length, &error), 0);
}

/* Expects a load to fail, with every one of the words in the message. */
static void refuses_(const struct stream *stream, const struct state_type *type, int code,
                     const char *const *words)
{
    struct world world;
    int ret;

    world_init(&world, type);
    ret = world_load(&world, stream);
    if (ret != -code)
        print_message("%d: %s\n", ret, world.error.message);
    assert_int_equal(ret, -code);
    for (; *words; words++) {
        if (strstr(world.error.message, *words) == NULL)
            fail_msg("'%s' is not in: %s", *words, world.error.message);
    }
}
#define refuses(stream, type, code, ...)                                                           \
    refuses_(stream, type, code, (const char *const[]){__VA_ARGS__, NULL})

/* --- building streams by hand --- */

static void begin(struct stream *stream)
{
    static const uint8_t header[] = {0x82, 0x6b, 'b', 'a', 't', 'o', 'n',
                                     '-',  's',  't', 'a', 't', 'e', 1};

    memcpy(stream->bytes, header, sizeof(header));
    stream->length = sizeof(header);
}

#define AT(stream)   ((stream)->bytes + (stream)->length)
#define LEFT(stream) (sizeof((stream)->bytes) - (stream)->length)

static void add_uint(struct stream *stream, uint64_t value)
{
    stream->length += cbor_encode_uint(value, AT(stream), LEFT(stream));
}

static void add_bool(struct stream *stream, bool value)
{
    stream->length += cbor_encode_bool(value, AT(stream), LEFT(stream));
}

static void add_map(struct stream *stream, size_t pairs)
{
    stream->length += cbor_encode_map_start(pairs, AT(stream), LEFT(stream));
}

static void add_array(struct stream *stream, size_t count)
{
    stream->length += cbor_encode_array_start(count, AT(stream), LEFT(stream));
}

static void add_raw(struct stream *stream, const void *bytes, size_t length)
{
    assert_true(length <= LEFT(stream));
    memcpy(AT(stream), bytes, length);
    stream->length += length;
}

static void add_text_n(struct stream *stream, const char *text, size_t length)
{
    stream->length += cbor_encode_string_start(length, AT(stream), LEFT(stream));
    add_raw(stream, text, length);
}

static void add_text(struct stream *stream, const char *text)
{
    add_text_n(stream, text, strlen(text));
}

static void add_bytes(struct stream *stream, const void *bytes, size_t length)
{
    stream->length += cbor_encode_bytestring_start(length, AT(stream), LEFT(stream));
    add_raw(stream, bytes, length);
}

/* A section up to and without its fields. */
static void add_head(struct stream *stream, const char *id, const char *type, uint64_t version,
                     bool required)
{
    add_map(stream, 5);
    add_text(stream, "id");
    add_text(stream, id);
    add_text(stream, "type");
    add_text(stream, type);
    add_text(stream, "version");
    add_uint(stream, version);
    add_text(stream, "required");
    add_bool(stream, required);
    add_text(stream, "fields");
}

/* --- a small type for hand-made sections --- */

struct tiny {
    uint8_t number;
    char text[4];
    uint32_t blob_length;
    uint8_t blob[3];
    uint32_t list_count;
    struct {
        bool flag;
    } list[2];
};

struct tiny_element {
    bool flag;
};

static const struct state_field tiny_element_fields[] = {
    STATE_BOOL(struct tiny_element, flag, 1),
    STATE_END,
};

static const struct state_field tiny_fields[] = {
    STATE_UINT_RANGE(struct tiny, number, 2, 3, 300, 5),
    STATE_STRING(struct tiny, text, 2),
    STATE_BLOB(struct tiny, blob, blob_length, 2),
    STATE_ARRAY(struct tiny, list, list_count, tiny_element_fields, 2),
    STATE_END,
};

/* Reads versions 1 to 2; a section of version 1 may lack every field. */
static const struct state_type tiny_type = {
    .name = "tiny",
    .version = 2,
    .min_version = 1,
    .size = sizeof(struct tiny),
    .fields = tiny_fields,
};

static const struct state_type tiny_type_3 = {
    .name = "tiny",
    .version = 3,
    .min_version = 3,
    .size = sizeof(struct tiny),
    .fields = tiny_fields,
};

/* Begins a stream with a section of version 1 of the tiny type that has so many fields. */
static void begin_tiny(struct stream *stream, size_t fields)
{
    begin(stream);
    add_head(stream, "sample/0", "tiny", 1, true);
    add_map(stream, fields);
}

static void end(struct stream *stream)
{
    add_uint(stream, 1);
}

/* --- arrays that became packed --- */

struct pairs {
    uint32_t count;
    struct {
        uint16_t left, right;
    } pairs[3];
};

struct pair {
    uint16_t left, right;
};

static const struct state_field pair_fields[] = {
    STATE_UINT(struct pair, left, 1),
    STATE_UINT(struct pair, right, 1),
    STATE_END,
};

static const struct state_field loose_fields[] = {
    STATE_ARRAY(struct pairs, pairs, count, pair_fields, 1),
    STATE_END,
};

static const struct state_field packed_fields[] = {
    STATE_PACKED(struct pairs, pairs, count, pair_fields, 1),
    STATE_END,
};

static const struct state_type loose_type = {
    .name = "pairs",
    .version = 1,
    .min_version = 1,
    .size = sizeof(struct pairs),
    .fields = loose_fields,
};

static const struct state_type packed_type = {
    .name = "pairs",
    .version = 2,
    .min_version = 1,
    .min_reader = 2,
    .size = sizeof(struct pairs),
    .fields = packed_fields,
};

static void loads_pairs(const struct stream *stream, const struct pairs *expected)
{
    struct pairs object = {0}, scratch;
    struct state_target target = {
        .id = "sample/0", .type = &packed_type, .object = &object, .scratch = &scratch};
    struct error error;

    assert_int_equal(state_load(stream->bytes, stream->length, &target, 1, &error), 0);
    assert_memory_equal(&object, expected, sizeof(object));
}

static void test_packed(void **state)
{
    const struct pairs pairs = {.count = 2, .pairs = {{1, 0xfffe}, {3, 4}}};
    struct stream stream;

    save(&stream, &packed_type, &pairs);
    loads_pairs(&stream, &pairs);
    refuses(&stream, &loose_type, ENOTSUP, "sample/0", "reader of version 2");
    save(&stream, &loose_type, &pairs);
    loads_pairs(&stream, &pairs);
}

static void test_packed_refused(void **state)
{
    static const uint8_t bytes[16];
    static const size_t lengths[] = {3, 13, 16};

    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        struct stream stream;

        begin(&stream);
        add_head(&stream, "sample/0", "pairs", 2, true);
        add_map(&stream, 1);
        add_text(&stream, "pairs");
        add_bytes(&stream, bytes, lengths[i]);
        end(&stream);
        refuses(&stream, &packed_type, EINVAL, "'pairs'", "3 times 4");
    }
}

/* --- round trips and versions --- */

static void test_round_trip(void **state)
{
    struct sample sample;
    struct stream stream;
    struct world world;

    sample_fill(&sample);
    save(&stream, &sample_type_2, &sample);
    world_init(&world, &sample_type_2);
    assert_int_equal(world_load(&world, &stream), 0);
    assert_true(world.target.loaded);
    assert_memory_equal(&world.object, &sample, sizeof(sample));
}

static void test_round_trip_empty(void **state)
{
    struct sample sample = {.ranged = 1};
    struct stream stream;
    struct world world;

    save(&stream, &sample_type_2, &sample);
    world_init(&world, &sample_type_2);
    assert_int_equal(world_load(&world, &stream), 0);
    assert_memory_equal(&world.object, &sample, sizeof(sample));
}

static void test_upgrade(void **state)
{
    struct sample sample;
    struct stream stream;
    struct world world;

    sample_fill(&sample);
    save(&stream, &sample_type_1, &sample);
    world_init(&world, &sample_type_2);
    assert_int_equal(world_load(&world, &stream), 0);
    sample_forget_2(&sample, SAMPLE_LIMIT_FALLBACK);
    assert_memory_equal(&world.object, &sample, sizeof(sample));
}

static void test_downgrade(void **state)
{
    struct sample sample;
    struct stream stream;
    struct world world;

    sample_fill(&sample);
    save(&stream, &sample_type_2, &sample);
    world_init(&world, &sample_type_1);
    assert_int_equal(world_load(&world, &stream), 0);
    sample_forget_2(&sample, 0);
    assert_memory_equal(&world.object, &sample, sizeof(sample));
}

static void test_min_reader(void **state)
{
    struct state_type strict = sample_type_2;
    struct sample sample;
    struct stream stream;
    struct world world;

    strict.min_reader = 2;
    sample_fill(&sample);
    save(&stream, &strict, &sample);
    refuses(&stream, &sample_type_1, ENOTSUP, "sample/0", "version 2", "version 1", "newer baton");
    world_init(&world, &sample_type_2);
    assert_int_equal(world_load(&world, &stream), 0);
}

static void test_version_too_old(void **state)
{
    struct stream stream;

    begin_tiny(&stream, 0);
    end(&stream);
    refuses(&stream, &tiny_type_3, ENOTSUP, "sample/0", "version 1", "version 3", "too old");
}

static void test_newer_section_lacks_a_field(void **state)
{
    struct stream stream;

    begin(&stream);
    add_head(&stream, "sample/0", "tiny", 7, true);
    add_map(&stream, 0);
    end(&stream);
    refuses(&stream, &tiny_type, ENOTSUP, "sample/0", "'number'", "version 7");
}

static void test_section_lacks_a_field(void **state)
{
    struct stream stream;

    begin(&stream);
    add_head(&stream, "sample/0", "tiny", 2, true);
    add_map(&stream, 1);
    add_text(&stream, "number");
    add_uint(&stream, 4);
    end(&stream);
    refuses(&stream, &tiny_type, EINVAL, "sample/0", "'text'", "missing");
}

static void test_fallbacks(void **state)
{
    struct tiny object, scratch;
    struct state_target target = {
        .id = "sample/0", .type = &tiny_type, .object = &object, .scratch = &scratch};
    struct error error = {0};
    struct stream stream;

    memset(&object, 0xff, sizeof(object));
    memset(&scratch, 0xff, sizeof(scratch));
    begin_tiny(&stream, 0);
    end(&stream);
    assert_int_equal(state_load(stream.bytes, stream.length, &target, 1, &error), 0);
    assert_int_equal(object.number, 5);
    assert_string_equal(object.text, "");
    assert_int_equal(object.blob_length, 0);
    assert_int_equal(object.list_count, 0);
}

static void add_nested_junk(struct stream *stream)
{
    add_map(stream, 2);
    add_text(stream, "a");
    add_array(stream, 3);
    add_array(stream, 0);
    add_bytes(stream, "xyz", 3);
    add_map(stream, 1);
    add_text(stream, "number");
    add_uint(stream, UINT64_MAX);
    add_text(stream, "b");
    add_map(stream, 0);
}

static void test_unknown_is_skipped(void **state)
{
    struct tiny object = {0}, scratch;
    struct state_target target = {
        .id = "sample/0", .type = &tiny_type, .object = &object, .scratch = &scratch};
    struct error error = {0};
    struct stream stream;

    begin(&stream);
    add_head(&stream, "unheard-of", "gadget", 9, false);
    add_nested_junk(&stream);
    add_map(&stream, 6);
    add_text(&stream, "mood"); /* an unknown key of a section */
    add_nested_junk(&stream);
    add_text(&stream, "id");
    add_text(&stream, "sample/0");
    add_text(&stream, "required");
    add_bool(&stream, true);
    add_text(&stream, "version");
    add_uint(&stream, 1);
    add_text(&stream, "type");
    add_text(&stream, "tiny");
    add_text(&stream, "fields");
    add_map(&stream, 3);
    add_text(&stream, "before");
    add_nested_junk(&stream);
    add_text(&stream, "number");
    add_uint(&stream, 77);
    add_text(&stream, "after");
    add_nested_junk(&stream);
    add_uint(&stream, 2);
    assert_int_equal(state_load(stream.bytes, stream.length, &target, 1, &error), 0);
    assert_int_equal(object.number, 77);
}

static void test_key_that_must_be_understood(void **state)
{
    struct stream stream;

    begin(&stream);
    add_map(&stream, 2);
    add_text(&stream, "id");
    add_text(&stream, "sample/0");
    add_text(&stream, "!sealed");
    add_bool(&stream, true);
    end(&stream);
    refuses(&stream, &tiny_type, ENOTSUP, "sample/0", "!sealed");
}

static void test_required_section_unknown(void **state)
{
    struct stream stream;

    begin(&stream);
    add_head(&stream, "gadget/3", "gadget", 1, true);
    add_map(&stream, 0);
    end(&stream);
    refuses(&stream, &tiny_type, ENOTSUP, "gadget/3", "required");
}

static void test_type_differs(void **state)
{
    struct stream stream;

    begin(&stream);
    add_head(&stream, "sample/0", "gadget", 1, true);
    add_map(&stream, 0);
    end(&stream);
    refuses(&stream, &tiny_type, ENOTSUP, "sample/0", "gadget");
}

static void test_section_missing(void **state)
{
    struct stream stream;

    begin(&stream);
    add_uint(&stream, 0);
    refuses(&stream, &tiny_type, ENOENT, "sample/0", "missing");
}

static void test_optional_target_is_left_alone(void **state)
{
    struct stream stream;
    struct world world;

    begin(&stream);
    add_uint(&stream, 0);
    world_init(&world, &sample_type_2);
    world.target.optional = true;
    world.target.loaded = true;
    assert_int_equal(world_load(&world, &stream), 0);
    assert_false(world.target.loaded);
    assert_memory_equal(&world.object, &world.before, sizeof(world.object));
}

static void test_check_refuses(void **state)
{
    struct sample sample;
    struct stream stream;

    sample_fill(&sample);
    sample.small = 13;
    save(&stream, &sample_type_2, &sample);
    refuses(&stream, &sample_type_2, EINVAL, "sample/0", "bad luck");
}

/* The first of two objects is fine, the second is not: neither may change. */
static void test_load_is_atomic(void **state)
{
    struct sample good, bad, objects[2], before[2], scratch[2];
    struct state_target targets[2];
    struct state_writer writer;
    struct error error = {0};
    uint8_t bytes[ROOM];
    size_t length;

    sample_fill(&good);
    sample_fill(&bad);
    bad.small = 13;
    memset(objects, 0x11, sizeof(objects));
    memcpy(before, objects, sizeof(before));
    for (int i = 0; i < 2; i++)
        targets[i] = (struct state_target){.id = i ? "b" : "a",
                                           .type = &sample_type_2,
                                           .object = &objects[i],
                                           .scratch = &scratch[i]};
    state_writer_init(&writer, bytes, sizeof(bytes));
    state_write(&writer, "a", &sample_type_2, &good, true);
    state_write(&writer, "b", &sample_type_2, &bad, true);
    assert_int_equal(state_writer_finish(&writer, &length, &error), 0);
    assert_int_equal(state_load(bytes, length, targets, 2, &error), -EINVAL);
    assert_non_null(strstr(error.message, "'b'"));
    assert_memory_equal(objects, before, sizeof(objects));
    assert_false(targets[0].loaded);
}

/* Loads a sample, changes the object, and loads the same again. */
static void load_twice(struct world *world, uint8_t *former, size_t capacity, struct sample *sample,
                       struct stream *stream)
{
    world_init(world, &sample_type_2);
    world->target.former = former;
    world->target.former_capacity = capacity;
    sample_fill(sample);
    save(stream, &sample_type_2, sample);
    assert_int_equal(world_load(world, stream), 0);
    world->object.small ^= 1;
    assert_int_equal(world_load(world, stream), 0);
}

/* A section that comes again as it was is not decoded: the object is left alone. Any other is. */
static void test_section_comes_again(void **state)
{
    uint8_t former[ROOM];
    struct sample sample;
    struct stream stream, other, wrong;
    struct world world;

    load_twice(&world, former, sizeof(former), &sample, &stream);
    assert_true(world.target.loaded);
    assert_int_equal(world.object.small, sample.small ^ 1);

    sample.wide ^= 1;
    save(&other, &sample_type_2, &sample);
    assert_int_equal(world_load(&world, &other), 0);
    assert_memory_equal(&world.object, &sample, sizeof(sample));

    /* What was decoded last has not been loaded. */
    world.before = world.object;
    wrong = stream;
    wrong.bytes[wrong.length++] = 0;
    assert_int_equal(world_load(&world, &wrong), -EINVAL);
    sample.wide ^= 1;
    assert_int_equal(world_load(&world, &stream), 0);
    assert_memory_equal(&world.object, &sample, sizeof(sample));
}

/* Where there is no room to remember it, it is decoded each time. */
static void test_long_section_comes_again(void **state)
{
    uint8_t former[16];
    struct sample sample;
    struct stream stream;
    struct world world;

    load_twice(&world, former, sizeof(former), &sample, &stream);
    assert_int_equal(world.object.small, sample.small);
}

/* --- streams that are wrong --- */

static void test_not_a_stream(void **state)
{
    struct stream stream = {.length = 0};

    refuses(&stream, &tiny_type, EINVAL, "not a state stream");
    add_text(&stream, "baton-state");
    refuses(&stream, &tiny_type, EINVAL, "not a state stream");
    begin(&stream);
    stream.bytes[4] ^= 1;
    refuses(&stream, &tiny_type, EINVAL, "not a state stream");
}

static void test_format_from_the_future(void **state)
{
    struct stream stream;

    begin(&stream);
    stream.bytes[stream.length - 1] = 9;
    refuses(&stream, &tiny_type, ENOTSUP, "format 9", "format 1");
    stream.bytes[stream.length - 1] = 0;
    refuses(&stream, &tiny_type, EINVAL, "format 0");
}

static void test_end_of_stream(void **state)
{
    struct stream stream;

    begin_tiny(&stream, 0);
    refuses(&stream, &tiny_type, EINVAL, "truncated");
    end(&stream);
    add_uint(&stream, 1);
    refuses(&stream, &tiny_type, EINVAL, "1 bytes follow");
    begin_tiny(&stream, 0);
    add_uint(&stream, 2);
    refuses(&stream, &tiny_type, EINVAL, "after 1 sections", "it has 2");
    begin(&stream);
    add_text(&stream, "odd");
    refuses(&stream, &tiny_type, EINVAL, "section number 1", "neither");
}

static void test_section_heads(void **state)
{
    struct stream stream;

    begin(&stream);
    add_map(&stream, 1);
    add_text(&stream, "id");
    add_text(&stream, "sample/0");
    end(&stream);
    refuses(&stream, &tiny_type, EINVAL, "sample/0", "'type' is missing");

    begin(&stream);
    add_map(&stream, 2);
    add_text(&stream, "id");
    add_text(&stream, "sample/0");
    add_text(&stream, "id");
    add_text(&stream, "sample/1");
    end(&stream);
    refuses(&stream, &tiny_type, EINVAL, "sample/0", "'id' is there twice");

    begin(&stream);
    add_map(&stream, 2);
    add_text(&stream, "fields");
    add_map(&stream, 0);
    add_text(&stream, "id");
    add_text(&stream, "sample/0");
    end(&stream);
    refuses(&stream, &tiny_type, EINVAL, "number 1", "not the last");

    begin(&stream);
    add_head(&stream, "sample/0", "tiny", 0, true);
    add_map(&stream, 0);
    end(&stream);
    refuses(&stream, &tiny_type, EINVAL, "sample/0", "'version'", "0 is no version");

    begin(&stream);
    add_head(&stream, "sample/0", "tiny", UINT64_C(1) << 32, true);
    add_map(&stream, 0);
    end(&stream);
    refuses(&stream, &tiny_type, EINVAL, "sample/0", "'version'");

    begin(&stream);
    add_head(&stream, "esc\x1b[2J", "tiny", 1, true);
    add_map(&stream, 0);
    end(&stream);
    refuses(&stream, &tiny_type, EINVAL, "number 1", "'id'", "printable");
}

static void test_min_reader_above_version(void **state)
{
    struct stream stream;

    begin(&stream);
    add_map(&stream, 6);
    add_text(&stream, "min_reader");
    add_uint(&stream, 2);
    add_text(&stream, "id");
    add_text(&stream, "sample/0");
    add_text(&stream, "type");
    add_text(&stream, "tiny");
    add_text(&stream, "version");
    add_uint(&stream, 1);
    add_text(&stream, "required");
    add_bool(&stream, true);
    add_text(&stream, "fields");
    add_map(&stream, 0);
    end(&stream);
    refuses(&stream, &tiny_type, EINVAL, "sample/0", "reader of version 2");
}

static void test_duplicates(void **state)
{
    struct stream stream;

    begin_tiny(&stream, 0);
    add_head(&stream, "sample/0", "tiny", 1, true);
    add_map(&stream, 0);
    add_uint(&stream, 2);
    refuses(&stream, &tiny_type, EINVAL, "sample/0", "there twice");

    begin_tiny(&stream, 2);
    add_text(&stream, "number");
    add_uint(&stream, 4);
    add_text(&stream, "number");
    add_uint(&stream, 4);
    end(&stream);
    refuses(&stream, &tiny_type, EINVAL, "sample/0", "'number' is there twice");
}

/* One field of the tiny type, given as raw CBOR. */
static void refuses_value(const char *field, const void *raw, size_t length, const char *why)
{
    struct stream stream;
    char name[32];

    snprintf(name, sizeof(name), "field '%s'", field);
    begin_tiny(&stream, 1);
    add_text(&stream, field);
    add_raw(&stream, raw, length);
    end(&stream);
    refuses(&stream, &tiny_type, EINVAL, "section 'sample/0'", name, why);
}
#define refuses_literal(field, literal, why) refuses_value(field, literal, sizeof(literal) - 1, why)

static void test_values(void **state)
{
    refuses_literal("number", "\x02", "2 is not between 3 and 255");
    refuses_literal("number", "\x19\x01\x00", "256 is not between 3 and 255");
    refuses_literal("number", "\x1b\xff\xff\xff\xff\xff\xff\xff\xff", "18446744073709551615");
    refuses_literal("number", "\x24", "negative");
    refuses_literal("number", "\x38\xff", "negative");
    refuses_literal("number", "\x39\xff\xff", "negative");
    refuses_literal("number", "\x3a\xff\xff\xff\xff", "negative");
    refuses_literal("number", "\x3b\xff\xff\xff\xff\xff\xff\xff\xff", "negative");
    refuses_literal("number", "\xf5", "a boolean");
    refuses_literal("number", "\x61x", "text");
    refuses_literal("number", "\xf6", "null");
    refuses_literal("number", "\xf7", "null");
    refuses_literal("number", "\xf9\x3c\x00", "floating-point");
    refuses_literal("number", "\xfa\x3f\x80\x00\x00", "floating-point");
    refuses_literal("number", "\xfb\x3f\xf0\x00\x00\x00\x00\x00\x00", "floating-point");
    refuses_literal("number", "\xc1\x05", "a tag");
    refuses_literal("number", "\xff", "indefinite");
    refuses_literal("number", "\x1c", "no CBOR item");
    refuses_literal("text",
                    "\x64"
                    "four",
                    "at most 3");
    refuses_literal("text", "\x62\xc3\x28", "UTF-8");
    refuses_literal("text",
                    "\x62"
                    "a\0",
                    "UTF-8 without NUL");
    refuses_literal("text", "\x7f\x61x\xff", "indefinite");
    refuses_literal("text", "\x41x", "a byte string");
    refuses_literal("blob",
                    "\x44"
                    "four",
                    "at most 3");
    refuses_literal("blob", "\x5f\x41x\xff", "indefinite");
    refuses_literal("blob", "\x5b\xff\xff\xff\xff\xff\xff\xff\xff", "cut off");
    refuses_literal("list", "\x83\xa0\xa0\xa0", "3 elements, at most 2");
    refuses_literal("list", "\x9f\xff", "indefinite");
    refuses_literal("list", "\xbf\xff", "indefinite");
    refuses_literal("list", "\x9b\xff\xff\xff\xff\xff\xff\xff\xff", "truncated");
    refuses_literal("list", "\x81\x05", "element 0");
    refuses_literal("list",
                    "\x82\xa1\x64"
                    "flag\xf5\xa1\x64"
                    "flag\x01",
                    "element 1: field 'flag'");
    refuses_literal("unknown", "\x9f\xff", "indefinite");
    refuses_literal("unknown", "\xbb\x7f\xff\xff\xff\xff\xff\xff\xff", "truncated");
    refuses_literal("unknown", "\xa1\x01\x02", "text belongs");
}

static void test_bytes_of_wrong_length(void **state)
{
    struct sample sample;
    struct stream stream;
    uint8_t *at;

    sample_fill(&sample);
    save(&stream, &sample_type_2, &sample);
    /* "regs" then a string of 24 bytes: make it 23 and the last one an item of its own. */
    at = memmem(stream.bytes, stream.length, "\x64regs\x58\x18", 7);
    assert_non_null(at);
    at[6] = 23;
    refuses(&stream, &sample_type_2, EINVAL, "'regs'", "23 bytes where 24 belong");
}

static void nest(struct stream *stream, unsigned levels)
{
    begin_tiny(stream, 1);
    add_text(stream, "deep");
    for (unsigned i = 0; i < levels; i++)
        add_array(stream, 1);
    add_uint(stream, 0);
    end(stream);
}

static void test_nesting(void **state)
{
    struct tiny object = {0}, scratch;
    struct state_target target = {
        .id = "sample/0", .type = &tiny_type, .object = &object, .scratch = &scratch};
    struct error error = {0};
    struct stream stream;

    /* Two levels are the section and its fields. */
    nest(&stream, STATE_DEPTH_MAX - 2);
    assert_int_equal(state_load(stream.bytes, stream.length, &target, 1, &error), 0);
    nest(&stream, STATE_DEPTH_MAX - 1);
    refuses(&stream, &tiny_type, EINVAL, "sample/0", "'deep'", "16 deep");
    nest(&stream, 2000);
    refuses(&stream, &tiny_type, EINVAL, "sample/0", "'deep'", "16 deep");
}

static void ignore_line(void *opaque, const char *line)
{
}

static void test_every_truncation(void **state)
{
    struct sample sample;
    struct stream stream;
    size_t whole;

    sample_fill(&sample);
    save(&stream, &sample_type_2, &sample);
    whole = stream.length;
    for (stream.length = 0; stream.length < whole; stream.length++) {
        struct error error = {0};
        struct world world;

        world_init(&world, &sample_type_2);
        assert_int_equal(world_load(&world, &stream), -EINVAL);
        assert_int_equal(state_dump(stream.bytes, stream.length, ignore_line, NULL, &error),
                         -EINVAL);
    }
}

/* What may be in an object after a load that succeeded. */
static void assert_sane(const struct sample *sample)
{
    assert_true(sample->ranged >= 1 && sample->ranged <= 1000);
    assert_true(sample->limit <= 4096);
    assert_true(strnlen(sample->name, sizeof(sample->name)) < sizeof(sample->name));
    assert_true(strnlen(sample->label, sizeof(sample->label)) < sizeof(sample->label));
    assert_true(sample->blob_length <= sizeof(sample->blob));
    assert_true(sample->queue_count <= ARRAY_SIZE(sample->queues));
    assert_int_not_equal(sample->small, 13);
}

static void test_every_flip(void **state)
{
    struct sample sample;
    struct stream stream;
    unsigned refused = 0;

    sample_fill(&sample);
    save(&stream, &sample_type_2, &sample);
    for (size_t i = 0; i < 256 * stream.length; i++) {
        uint8_t *byte = &stream.bytes[i / 256], original = *byte;
        struct error error = {0};
        struct world world;

        *byte ^= (uint8_t)(i % 256);
        world_init(&world, &sample_type_2);
        if (world_load(&world, &stream) < 0)
            refused++;
        else
            assert_sane(&world.object);
        state_dump(stream.bytes, stream.length, ignore_line, NULL, &error);
        *byte = original;
    }
    /* Most of the stream is names and lengths, where every change shows. */
    assert_true(refused > 100 * stream.length);
}

/* --- writing --- */

static void test_writer_has_no_room(void **state)
{
    struct sample sample;
    struct stream stream;

    sample_fill(&sample);
    save(&stream, &sample_type_2, &sample);
    for (size_t room = 0; room < stream.length; room++) {
        uint8_t *bytes = malloc(room + !room);
        struct state_writer writer;
        struct error error = {0};
        size_t length = 0;

        state_writer_init(&writer, bytes, room);
        state_write(&writer, "sample/0", &sample_type_2, &sample, true);
        assert_int_equal(state_writer_finish(&writer, &length, &error), -ENOSPC);
        free(bytes);
    }
}

static void test_writer_refuses_bad_text(void **state)
{
    struct state_writer writer;
    struct error error = {0};
    struct sample sample;
    uint8_t bytes[ROOM];
    size_t length;

    sample_fill(&sample);
    state_writer_init(&writer, bytes, sizeof(bytes));
    state_write(&writer, "new\nline", &sample_type_2, &sample, true);
    assert_int_equal(state_writer_finish(&writer, &length, &error), -EINVAL);
    strcpy(sample.label, "\xff");
    state_writer_init(&writer, bytes, sizeof(bytes));
    state_write(&writer, "sample/0", &sample_type_2, &sample, true);
    assert_int_equal(state_writer_finish(&writer, &length, &error), -EINVAL);
    assert_non_null(strstr(error.message, "'label'"));
}

/* --- text --- */

static void test_text(void **state)
{
    static const char *const good[] = {"",
                                       "plain",
                                       "\x7f",
                                       "\xc2\x80",
                                       "\xdf\xbf",
                                       "\xe0\xa0\x80",
                                       "\xed\x9f\xbf",
                                       "\xee\x80\x80",
                                       "\xf0\x90\x80\x80",
                                       "\xf4\x8f\xbf\xbf"};
    static const char *const bad[] = {
        "\x80",         "\xc0\x80",     "\xc1\xbf",         "\xc2",
        "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80",
        "\xf5\x80",     "a\xe2\x82",    "\xe2\x82x",        "\xff",
        "\xc2\xc2"};

    for (size_t i = 0; i < ARRAY_SIZE(good); i++)
        assert_true(state_text_valid(good[i], strlen(good[i])));
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_false(state_text_valid(bad[i], strlen(bad[i])));
    assert_false(state_text_valid("a\0b", 3));
    assert_true(state_name_valid("vfio/nvme 0", 11));
    assert_false(state_name_valid("", 0));
    assert_false(state_name_valid("\xc3\xbc", 2));
}

/* --- dump --- */

struct lines {
    char text[8192];
};

static void keep_line(void *opaque, const char *line)
{
    struct lines *lines = opaque;
    size_t used = strlen(lines->text);

    snprintf(lines->text + used, sizeof(lines->text) - used, "%s\n", line);
}

static void test_dump(void **state)
{
    struct lines lines = {{0}};
    struct error error = {0};
    struct sample sample;
    struct stream stream;

    sample_fill(&sample);
    strcpy(sample.name, "a\"\x1b[1m");
    save(&stream, &sample_type_2, &sample);
    assert_int_equal(state_dump(stream.bytes, stream.length, keep_line, &lines, &error), 0);
    assert_non_null(strstr(lines.text, "sample/0 (sample v2): required"));
    assert_non_null(strstr(lines.text, "sample/0 (sample v2) / regs: 24 bytes f0 f1"));
    assert_non_null(strstr(lines.text, "/ queues: 3 elements"));
    assert_non_null(strstr(lines.text, "/ queues[2] / slots[1] / level: 21 (0x15)"));
    assert_non_null(strstr(lines.text, "/ name: \"a\\x22\\x1b[1m\""));
    assert_non_null(strstr(lines.text, "/ turbo: true"));
    assert_null(strchr(lines.text, '\x1b'));
}

static void test_dump_long_values(void **state)
{
    char text[1000];
    struct lines lines = {{0}};
    struct error error = {0};
    struct stream stream;

    memset(text, '\\', sizeof(text));
    begin_tiny(&stream, 2);
    add_text(&stream, "long");
    add_text_n(&stream, text, sizeof(text));
    add_text_n(&stream, text, STATE_NAME_MAX);
    add_bytes(&stream, text, sizeof(text));
    end(&stream);
    assert_int_equal(state_dump(stream.bytes, stream.length, keep_line, &lines, &error), 0);
    assert_non_null(strstr(lines.text, "1000 bytes 5c"));
    nest(&stream, 100);
    assert_int_equal(state_dump(stream.bytes, stream.length, keep_line, &lines, &error), -EINVAL);
}

/* --- tables --- */

static void verify_fails(const struct state_field *fields, const char *why)
{
    struct state_type type = {.name = "broken",
                              .version = 2,
                              .min_version = 1,
                              .size = sizeof(struct tiny),
                              .fields = fields};
    struct error error = {0};

    assert_int_equal(state_type_verify(&type, &error), -EINVAL);
    if (strstr(error.message, why) == NULL)
        fail_msg("'%s' is not in: %s", why, error.message);
}

static void test_verify(void **state)
{
    static const struct state_field twice[] = {STATE_UINT(struct tiny, number, 1),
                                               STATE_UINT(struct tiny, number, 1), STATE_END};
    static const struct state_field future[] = {STATE_UINT(struct tiny, number, 3), STATE_END};
    static const struct state_field fallback[] = {STATE_UINT_RANGE(struct tiny, number, 1, 1, 9, 0),
                                                  STATE_END};
    static const struct state_field bounds[] = {STATE_UINT_RANGE(struct tiny, number, 1, 1, 256, 1),
                                                STATE_END};
    static const struct state_field odd[] = {STATE_UINT(struct tiny, blob, 1), STATE_END};
    static const struct state_field overlap[] = {STATE_UINT(struct tiny, blob_length, 1),
                                                 STATE_BLOB(struct tiny, blob, blob_length, 1),
                                                 STATE_END};
    struct state_type outside = sample_type_2;
    struct error error = {0};

    assert_int_equal(state_type_verify(&sample_type_1, &error), 0);
    assert_int_equal(state_type_verify(&sample_type_2, &error), 0);
    verify_fails(twice, "there twice");
    verify_fails(future, "since-version");
    verify_fails(fallback, "fallback");
    verify_fails(bounds, "bounds");
    verify_fails(odd, "no integer");
    verify_fails(overlap, "overlap");
    outside.size = 8;
    assert_int_equal(state_type_verify(&outside, &error), -EINVAL);
    assert_non_null(strstr(error.message, "outside"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_packed),
        cmocka_unit_test(test_packed_refused),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_round_trip_empty),
        cmocka_unit_test(test_upgrade),
        cmocka_unit_test(test_downgrade),
        cmocka_unit_test(test_min_reader),
        cmocka_unit_test(test_version_too_old),
        cmocka_unit_test(test_newer_section_lacks_a_field),
        cmocka_unit_test(test_section_lacks_a_field),
        cmocka_unit_test(test_fallbacks),
        cmocka_unit_test(test_unknown_is_skipped),
        cmocka_unit_test(test_key_that_must_be_understood),
        cmocka_unit_test(test_required_section_unknown),
        cmocka_unit_test(test_type_differs),
        cmocka_unit_test(test_section_missing),
        cmocka_unit_test(test_optional_target_is_left_alone),
        cmocka_unit_test(test_check_refuses),
        cmocka_unit_test(test_load_is_atomic),
        cmocka_unit_test(test_section_comes_again),
        cmocka_unit_test(test_long_section_comes_again),
        cmocka_unit_test(test_not_a_stream),
        cmocka_unit_test(test_format_from_the_future),
        cmocka_unit_test(test_end_of_stream),
        cmocka_unit_test(test_section_heads),
        cmocka_unit_test(test_min_reader_above_version),
        cmocka_unit_test(test_duplicates),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_bytes_of_wrong_length),
        cmocka_unit_test(test_nesting),
        cmocka_unit_test(test_every_truncation),
        cmocka_unit_test(test_every_flip),
        cmocka_unit_test(test_writer_has_no_room),
        cmocka_unit_test(test_writer_refuses_bad_text),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_dump),
        cmocka_unit_test(test_dump_long_values),
        cmocka_unit_test(test_verify),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
