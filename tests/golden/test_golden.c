/* SPDX-License-Identifier: Apache-2.0
 *
 * Loads every golden stream with the tables of this build; see README.md for the rules.
 *
 *     test_golden [--write] [TYPE]    with a type, only that one is written or missed
 *
 * What is loaded is compared with the values that were recorded when the stream was made.
 * Every stream is spoilt as well, by cutting it off at every byte and by flipping every bit: what
 * does not load says why and changes nothing. Besides, every type in the registry has its table
 * verified, makes a round trip, and is read as later versions might write it. One thread.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/util.h"
#include "golden_files.h"
#include "golden_registry.h"
#include "sample_state.h"
#include "state/state.h"

#define ID       "golden"
#define ELEMENTS 3 /* of arrays and blobs that hold more: enough to see the order */

#define FIELDS_MAX 256  /* of a type, those of elements included */
#define UNTOUCHED  0xa5 /* what is in an object before it is loaded */

/* --- made-up objects --- */

struct filler {
    const struct golden_override *overrides;
    uint64_t element; /* of the innermost array */
};

static void fill_fields(struct filler *filler, const struct state_field *fields, uint8_t *base,
                        unsigned seed);

static const struct golden_override *find_override(const struct filler *filler, const char *field)
{
    for (const struct golden_override *at = filler->overrides; at && at->field; at++) {
        if (strcmp(at->field, field) == 0)
            return at;
    }
    return NULL;
}

static uint64_t make_up_uint(const struct state_field *field, unsigned seed)
{
    uint64_t maximum = MIN(field->maximum, UINT64_MAX >> (64 - 8 * field->size));
    uint64_t span = maximum - field->minimum;
    uint64_t value = UINT64_C(0x9e3779b97f4a7c15) * (seed + 1);

    return field->minimum + (span == UINT64_MAX ? value : value % (span + 1));
}

/* The value of an integer, the length of a blob or an array, the first byte of bytes. */
static uint64_t make_up(const struct filler *filler, const struct state_field *field, unsigned seed)
{
    const struct golden_override *override = find_override(filler, field->name);

    if (override)
        return override->value + filler->element * override->step;
    if (field->kind == STATE_KIND_UINT)
        return make_up_uint(field, seed);
    if (field->kind == STATE_KIND_BOOL)
        return seed % 2 == 0;
    if (field->kind == STATE_KIND_BYTES)
        return seed;
    return MIN(field->capacity, (size_t)ELEMENTS);
}

static void fill_bytes(const struct filler *filler, const struct state_field *field,
                       uint8_t *member, size_t length, unsigned seed)
{
    const struct golden_override *override = find_override(filler, field->name);
    bool constant = field->kind == STATE_KIND_BYTES && override;
    uint64_t first = field->kind == STATE_KIND_BYTES ? make_up(filler, field, seed) : seed;

    if (override && override->content) {
        memcpy(member, override->content, length);
        return;
    }
    for (size_t i = 0; i < length; i++)
        member[i] = (uint8_t)(first + (constant ? 0 : i * 5));
}

static void fill_elements(struct filler *filler, const struct state_field *field, uint8_t *base,
                          uint32_t count, unsigned seed)
{
    struct filler inner = *filler;

    for (inner.element = 0; inner.element < count; inner.element++)
        fill_fields(&inner, field->fields, base + field->offset + inner.element * field->size,
                    seed + 16 * ((unsigned)inner.element + 1));
}

static void fill_value(struct filler *filler, const struct state_field *field, uint8_t *base,
                       unsigned seed)
{
    uint64_t value = make_up(filler, field, seed);
    uint8_t *member = base + field->offset;
    uint32_t length = (uint32_t)value;

    switch (field->kind) {
    case STATE_KIND_BOOL:
    case STATE_KIND_UINT:
        memcpy(member, &value, field->size);
        break;
    case STATE_KIND_STRING:
        snprintf((char *)member, field->size, "text-%u", seed);
        break;
    case STATE_KIND_BYTES:
        fill_bytes(filler, field, member, field->size, seed);
        break;
    case STATE_KIND_BLOB:
        memcpy(base + field->length_offset, &length, sizeof(length));
        if (field->fields)
            fill_elements(filler, field, base, length, seed);
        else
            fill_bytes(filler, field, member, length, seed);
        break;
    case STATE_KIND_ARRAY:
        memcpy(base + field->length_offset, &length, sizeof(length));
        fill_elements(filler, field, base, length, seed);
        break;
    }
}

static void fill_fields(struct filler *filler, const struct state_field *fields, uint8_t *base,
                        unsigned seed)
{
    for (; fields->name; fields++)
        fill_value(filler, fields, base, seed++);
}

/* --- the registry --- */

static const struct golden_type own_types[] = {
    {&sample_type_2, NULL},
};

static const struct golden_type *find_type(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(own_types); i++) {
        if (strcmp(own_types[i].type->name, name) == 0)
            return &own_types[i];
    }
    for (size_t i = 0; i < golden_type_count; i++) {
        if (strcmp(golden_types[i].type->name, name) == 0)
            return &golden_types[i];
    }
    return NULL;
}

/* --- streams --- */

static int save(const struct state_type *type, const void *object, struct golden_buffer *buffer,
                struct error *error)
{
    struct state_writer writer;

    state_writer_init(&writer, buffer->bytes, GOLDEN_ROOM);
    state_write(&writer, ID, type, object, true);
    return state_writer_finish(&writer, &buffer->length, error);
}

static int load(const struct state_type *type, void *object, const struct golden_buffer *buffer,
                struct error *error)
{
    CLEANUP_FREE void *scratch = xcalloc(1, type->size);
    struct state_target target = {.id = ID, .type = type, .object = object, .scratch = scratch};

    return state_load(buffer->bytes, buffer->length, &target, 1, error);
}

/* Saves an object, loads that into another and saves that: the two streams must be the same. */
static int round_trip(const struct state_type *type, const void *object, struct error *error)
{
    CLEANUP_FREE void *copy = xcalloc(1, type->size);
    CLEANUP_FREE uint8_t *first_bytes = xcalloc(1, GOLDEN_ROOM);
    CLEANUP_FREE uint8_t *second_bytes = xcalloc(1, GOLDEN_ROOM);
    struct golden_buffer first = {.bytes = first_bytes}, second = {.bytes = second_bytes};

    if (save(type, object, &first, error) < 0 || load(type, copy, &first, error) < 0 ||
        save(type, copy, &second, error) < 0)
        return -error->code;
    if (first.length != second.length || memcmp(first.bytes, second.bytes, first.length) != 0)
        return error_set(error, EINVAL, "does not survive being saved and loaded");
    return 0;
}

/* --- spoilt streams --- */

/* An object to load into, and what it must still be after a load that fails. */
struct victim {
    const struct state_type *type;
    uint8_t *object, *before;
};

static struct victim make_victim(const struct state_type *type)
{
    struct victim victim = {type, malloc(type->size), malloc(type->size)};

    assert(victim.object && victim.before);
    memset(victim.object, UNTOUCHED, type->size);
    memset(victim.before, UNTOUCHED, type->size);
    return victim;
}

static void free_victim(struct victim *victim)
{
    free(victim->object);
    free(victim->before);
}

/* @return whether loading fails as it should: with a message that has @p name in it, if not NULL,
 *         and without effect */
static bool is_refused(struct victim *victim, const struct golden_buffer *buffer, const char *name)
{
    struct error error = {0};

    return load(victim->type, victim->object, buffer, &error) == -error.code && error.code > 0 &&
           error.message[0] != '\0' && (name == NULL || strstr(error.message, name)) &&
           memcmp(victim->object, victim->before, victim->type->size) == 0;
}

static int check_truncated(struct victim *victim, const struct golden_buffer *buffer)
{
    struct golden_buffer cut = *buffer;
    int failures = 0;

    for (cut.length = 0; cut.length < buffer->length; cut.length++) {
        if (is_refused(victim, &cut, NULL))
            continue;
        printf("FAILED %s: cut off after %zu bytes\n", victim->type->name, cut.length);
        failures++;
    }
    return failures;
}

/* Flips bits of a byte. What still loads is another object, whose values survive like any other's;
 * that is looked at once for each byte, since it takes longer than all the rest. */
static bool survives_flip(struct victim *victim, const struct golden_buffer *buffer, size_t at,
                          uint8_t bits)
{
    struct error error = {0};
    bool good;

    buffer->bytes[at] ^= bits;
    if (load(victim->type, victim->object, buffer, &error) == 0) {
        good = bits != 0xff || round_trip(victim->type, victim->object, &error) == 0;
        memcpy(victim->object, victim->before, victim->type->size);
    } else {
        good = is_refused(victim, buffer, NULL);
    }
    buffer->bytes[at] ^= bits;
    return good;
}

static int check_flipped(struct victim *victim, const struct golden_buffer *buffer)
{
    int failures = 0;

    for (size_t at = 0; at < buffer->length; at++) {
        bool good = survives_flip(victim, buffer, at, 0xff);

        for (unsigned bit = 0; bit < 8; bit++)
            good &= survives_flip(victim, buffer, at, (uint8_t)(1u << bit));
        if (good)
            continue;
        printf("FAILED %s: byte %zu flipped\n", victim->type->name, at);
        failures++;
    }
    return failures;
}

static int check_spoilt(const struct state_type *type, const struct golden_buffer *buffer)
{
    struct victim victim = make_victim(type);
    int failures = check_truncated(&victim, buffer) + check_flipped(&victim, buffer);

    free_victim(&victim);
    return failures;
}

/* --- tables of other versions --- */

/* A type as another version has it. */
struct variant {
    struct state_type type;
    struct state_field fields[FIELDS_MAX];
    size_t used;
};

/* Takes over the fields that a version had. @param without one that is left out; may be NULL */
static const struct state_field *take_fields(struct variant *variant,
                                             const struct state_field *fields, uint32_t version,
                                             const struct state_field *without)
{
    struct state_field *taken = &variant->fields[variant->used];
    size_t count = 0;

    for (const struct state_field *at = fields; at->name; at++) {
        if (at->since <= version && at != without)
            taken[count++] = *at;
        assert(variant->used + count < FIELDS_MAX - 1);
    }
    taken[count] = (struct state_field){.name = NULL};
    variant->used += count + 2; /* one more may be added at the end */
    for (size_t i = 0; i < count; i++) {
        if (taken[i].fields)
            taken[i].fields = take_fields(variant, taken[i].fields, version, without);
    }
    return taken;
}

static void make_variant(struct variant *variant, const struct state_type *type, uint32_t version,
                         const struct state_field *without)
{
    *variant = (struct variant){.type = *type};
    variant->type.version = version;
    variant->type.fields = take_fields(variant, type->fields, version, without);
}

/* A field that no version has yet, behind the members of any type. */
struct future {
    uint32_t count;
    struct future_element {
        uint64_t number;
        char text[8];
    } elements[2];
};

static const struct state_field future_fields[] = {
    STATE_UINT(struct future_element, number, 1),
    STATE_STRING(struct future_element, text, 1),
    STATE_END,
};

/* The next version of a type, with one more field. */
static void make_next(struct variant *variant, const struct state_type *type)
{
    size_t count = 0;

    make_variant(variant, type, type->version, NULL);
    while (variant->fields[count].name)
        count++;
    variant->fields[count] = (struct state_field)STATE_ARRAY(struct future, elements, count,
                                                             future_fields, type->version + 1);
    variant->fields[count].name = "from-the-future";
    variant->fields[count].offset += type->size;
    variant->fields[count].length_offset += type->size;
    variant->fields[count + 1] = (struct state_field){.name = NULL};
    variant->type.version++;
    variant->type.size += sizeof(struct future);
}

/* Whether a stream gives the very object that it was made from. */
static bool loads_as(const struct state_type *type, const struct golden_buffer *buffer,
                     const struct golden_buffer *expected)
{
    CLEANUP_FREE void *object = xcalloc(1, type->size);
    CLEANUP_FREE uint8_t *bytes = xcalloc(1, GOLDEN_ROOM);
    struct golden_buffer again = {.bytes = bytes};
    struct error error = {0};

    return load(type, object, buffer, &error) == 0 && save(type, object, &again, &error) == 0 &&
           again.length == expected->length &&
           memcmp(again.bytes, expected->bytes, again.length) == 0;
}

/* A newer version with a field more: skipped, or refused if it says that it must not be. */
static int check_next_version(struct victim *victim, const void *object,
                              const struct golden_buffer *present, struct golden_buffer *room)
{
    const struct state_type *type = victim->type;
    CLEANUP_FREE uint8_t *larger = xcalloc(1, type->size + sizeof(struct future));
    const struct future future = {.count = 2, .elements = {{1, "one"}, {2, "two"}}};
    struct variant variant;
    struct error error = {0};
    int failures = 0;

    make_next(&variant, type);
    memcpy(larger, object, type->size);
    memcpy(larger + type->size, &future, sizeof(future));
    if (save(&variant.type, larger, room, &error) < 0 || !loads_as(type, room, present)) {
        printf("FAILED %s: a field of the next version is not skipped\n", type->name);
        failures++;
    }
    variant.type.min_reader = variant.type.version;
    if (save(&variant.type, larger, room, &error) < 0 || !is_refused(victim, room, type->name)) {
        printf("FAILED %s: a version that needs a newer reader is not refused\n", type->name);
        failures++;
    }
    return failures;
}

static int check_missing_fields(struct victim *victim, const void *object,
                                struct golden_buffer *room)
{
    const struct state_type *type = victim->type;
    struct variant variant;
    int failures = 0;

    for (const struct state_field *field = type->fields; field->name; field++) {
        struct error error = {0};

        make_variant(&variant, type, type->version, field);
        if (save(&variant.type, object, room, &error) == 0 && is_refused(victim, room, field->name))
            continue;
        printf("FAILED %s: loads without its field '%s'\n", type->name, field->name);
        failures++;
    }
    return failures;
}

static int check_foreign_section(struct victim *victim, const void *object,
                                 const struct golden_buffer *present, struct golden_buffer *room,
                                 bool required)
{
    static const struct future_element foreign = {.text = "text"};
    static const struct state_type foreign_type = {.name = "unheard-of",
                                                   .version = 1,
                                                   .min_version = 1,
                                                   .size = sizeof(foreign),
                                                   .fields = future_fields};
    struct state_writer writer;
    struct error error = {0};

    state_writer_init(&writer, room->bytes, GOLDEN_ROOM);
    state_write(&writer, "foreign", &foreign_type, &foreign, required);
    state_write(&writer, ID, victim->type, object, true);
    if (state_writer_finish(&writer, &room->length, &error) == 0 &&
        (required ? is_refused(victim, room, "foreign") : loads_as(victim->type, room, present)))
        return 0;
    printf("FAILED %s: a foreign section that is %srequired\n", victim->type->name,
           required ? "" : "not ");
    return 1;
}

/* What other versions may send. @param present what this one has written of @p object */
static int check_skew(const struct state_type *type, const void *object)
{
    CLEANUP_FREE uint8_t *present_bytes = xcalloc(1, GOLDEN_ROOM);
    CLEANUP_FREE uint8_t *room_bytes = xcalloc(1, GOLDEN_ROOM);
    struct golden_buffer present = {.bytes = present_bytes}, room = {.bytes = room_bytes};
    struct victim victim = make_victim(type);
    struct error error = {0};
    int failures = save(type, object, &present, &error) < 0;

    failures += check_next_version(&victim, object, &present, &room);
    failures += check_missing_fields(&victim, object, &room);
    failures += check_foreign_section(&victim, object, &present, &room, false);
    failures += check_foreign_section(&victim, object, &present, &room, true);
    free_victim(&victim);
    return failures;
}

/* --- files --- */

struct options {
    const char *directory;
    const char *only; /* the type to write; NULL for all */
    bool write;
};

/* Whether a type is to be written or missed. */
static bool is_wanted(const struct options *options, const struct state_type *type)
{
    return options->only == NULL || strcmp(options->only, type->name) == 0;
}

static int check_file(const struct options *options, const struct state_type *type,
                      const char *path)
{
    CLEANUP_FREE void *object = xcalloc(1, type->size);
    CLEANUP_FREE uint8_t *bytes = xcalloc(1, GOLDEN_ROOM);
    struct golden_buffer buffer = {.bytes = bytes};
    struct error error = {0};

    if (golden_read(path, &buffer, &error) < 0 || load(type, object, &buffer, &error) < 0 ||
        round_trip(type, object, &error) < 0) {
        printf("FAILED %s: %s\n", path, error.message);
        return 1;
    }
    if (golden_check_values(path, type->fields, object,
                            options->write && is_wanted(options, type)) != 0)
        return 1;
    printf("ok %s\n", path);
    return check_spoilt(type, &buffer);
}

static bool is_state_file(const char *name)
{
    size_t length = strlen(name);

    return length > 6 && strcmp(name + length - 6, ".state") == 0;
}

static int check_directory(const struct options *options, const char *name)
{
    const struct golden_type *entry = find_type(name);
    char path[4096];
    struct dirent *file;
    int failures = 0;
    DIR *dir;

    snprintf(path, sizeof(path), "%s/%s", options->directory, name);
    dir = opendir(path);
    if (dir == NULL)
        return 0; /* a file */
    while ((file = readdir(dir))) {
        if (!is_state_file(file->d_name))
            continue;
        snprintf(path, sizeof(path), "%s/%s/%s", options->directory, name, file->d_name);
        if (entry == NULL) {
            printf("FAILED %s: no such type in the registry\n", path);
            failures++;
            continue;
        }
        failures += check_file(options, entry->type, path);
    }
    closedir(dir);
    return failures;
}

static int check_all_files(const struct options *options)
{
    struct dirent *file;
    int failures = 0;
    DIR *dir = opendir(options->directory);

    if (dir == NULL) {
        printf("FAILED %s: %s\n", options->directory, strerror(errno));
        return 1;
    }
    while ((file = readdir(dir))) {
        if (file->d_name[0] != '.')
            failures += check_directory(options, file->d_name);
    }
    closedir(dir);
    return failures;
}

/* --- one type of the registry --- */

/* Writes an object as a version of its type did: with the fields that it had. */
static int write_version(const char *path, const struct state_type *type, uint32_t version,
                         const void *object)
{
    CLEANUP_FREE uint8_t *bytes = xcalloc(1, GOLDEN_ROOM);
    struct golden_buffer buffer = {.bytes = bytes};
    struct error error = {0};
    struct variant variant;

    make_variant(&variant, type, version, NULL);
    return save(&variant.type, object, &buffer, &error) < 0 || golden_write(path, &buffer);
}

/* Misses, or writes, the stream of every version that this build reads. */
static int check_versions(const struct options *options, const struct state_type *type,
                          const void *object)
{
    char path[4096];
    int failures = 0;

    if (!is_wanted(options, type))
        return 0;
    snprintf(path, sizeof(path), "%s/%s", options->directory, type->name);
    if (options->write)
        mkdir(path, 0777);
    for (uint32_t version = type->min_version; version <= type->version; version++) {
        snprintf(path, sizeof(path), "%s/%s/v%u.state", options->directory, type->name, version);
        if (access(path, F_OK) == 0)
            continue;
        if (options->write) {
            failures += write_version(path, type, version, object);
            continue;
        }
        printf("FAILED %s: version %u has no golden stream: test_golden --write\n", type->name,
               version);
        failures++;
    }
    return failures;
}

static int check_type(const struct options *options, const struct golden_type *entry)
{
    const struct state_type *type = entry->type;
    CLEANUP_FREE void *object = xcalloc(1, type->size);
    struct filler filler = {.overrides = entry->overrides};
    struct error error = {0};

    if (state_type_verify(type, &error) < 0) {
        printf("FAILED %s\n", error.message);
        return 1;
    }
    fill_fields(&filler, type->fields, object, 1);
    if (round_trip(type, object, &error) < 0) {
        printf("FAILED %s: %s\n", type->name, error.message);
        return 1;
    }
    return check_versions(options, type, object) + check_skew(type, object);
}

int main(int argc, char **argv)
{
    struct options options = {.directory = GOLDEN_DIRECTORY};
    int failures = 0;

    for (int i = 1; i < argc; i++) {
        options.write |= strcmp(argv[i], "--write") == 0;
        if (argv[i][0] != '-')
            options.only = argv[i];
    }
    for (size_t i = 0; i < ARRAY_SIZE(own_types); i++)
        failures += check_type(&options, &own_types[i]);
    for (size_t i = 0; i < golden_type_count; i++)
        failures += check_type(&options, &golden_types[i]);
    failures += check_all_files(&options);
    printf("%d failures\n", failures);
    return failures != 0;
}
