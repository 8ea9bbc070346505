/* SPDX-License-Identifier: Apache-2.0
 *
 * Loads every golden stream with the tables of this build; see README.md for the rules.
 *
 *     test_golden [--write | --strict] [TYPE]    with a type, only that one is written or missed
 *
 * Besides, every type in the registry has its table verified and makes a round trip. One thread.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/util.h"
#include "golden_registry.h"
#include "sample_state.h"
#include "state/state.h"

#define ROOM     MIB
#define ID       "golden"
#define ELEMENTS 3 /* of arrays and blobs that hold more: enough to see the order */

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

struct buffer {
    uint8_t *bytes;
    size_t length;
};

static int save(const struct state_type *type, const void *object, struct buffer *buffer,
                struct error *error)
{
    struct state_writer writer;

    state_writer_init(&writer, buffer->bytes, ROOM);
    state_write(&writer, ID, type, object, true);
    return state_writer_finish(&writer, &buffer->length, error);
}

static int load(const struct state_type *type, void *object, const struct buffer *buffer,
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
    CLEANUP_FREE uint8_t *first_bytes = xcalloc(1, ROOM);
    CLEANUP_FREE uint8_t *second_bytes = xcalloc(1, ROOM);
    struct buffer first = {.bytes = first_bytes}, second = {.bytes = second_bytes};

    if (save(type, object, &first, error) < 0 || load(type, copy, &first, error) < 0 ||
        save(type, copy, &second, error) < 0)
        return -error->code;
    if (first.length != second.length || memcmp(first.bytes, second.bytes, first.length) != 0)
        return error_set(error, EINVAL, "does not survive being saved and loaded");
    return 0;
}

/* --- files --- */

static int read_file(const char *path, struct buffer *buffer, struct error *error)
{
    FILE *file = fopen(path, "rbe");

    if (file == NULL)
        return error_set_errno(error, errno, "cannot open");
    buffer->length = fread(buffer->bytes, 1, ROOM, file);
    fclose(file);
    return 0;
}

static int check_file(const struct state_type *type, const char *path)
{
    CLEANUP_FREE void *object = xcalloc(1, type->size);
    CLEANUP_FREE uint8_t *bytes = xcalloc(1, ROOM);
    struct buffer buffer = {.bytes = bytes};
    struct error error = {0};

    if (read_file(path, &buffer, &error) < 0 || load(type, object, &buffer, &error) < 0 ||
        round_trip(type, object, &error) < 0) {
        printf("FAILED %s: %s\n", path, error.message);
        return 1;
    }
    printf("ok %s\n", path);
    return 0;
}

static bool is_state_file(const char *name)
{
    size_t length = strlen(name);

    return length > 6 && strcmp(name + length - 6, ".state") == 0;
}

static int check_directory(const char *directory, const char *name)
{
    const struct golden_type *entry = find_type(name);
    char path[4096];
    struct dirent *file;
    int failures = 0;
    DIR *dir;

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    dir = opendir(path);
    if (dir == NULL)
        return 0; /* a file */
    while ((file = readdir(dir))) {
        if (!is_state_file(file->d_name))
            continue;
        snprintf(path, sizeof(path), "%s/%s/%s", directory, name, file->d_name);
        if (entry == NULL) {
            printf("FAILED %s: no such type in the registry\n", path);
            failures++;
            continue;
        }
        failures += check_file(entry->type, path);
    }
    closedir(dir);
    return failures;
}

static int check_all_files(const char *directory)
{
    struct dirent *file;
    int failures = 0;
    DIR *dir = opendir(directory);

    if (dir == NULL) {
        printf("FAILED %s: %s\n", directory, strerror(errno));
        return 1;
    }
    while ((file = readdir(dir))) {
        if (file->d_name[0] != '.')
            failures += check_directory(directory, file->d_name);
    }
    closedir(dir);
    return failures;
}

static int write_file(const char *path, const struct buffer *buffer)
{
    FILE *file = fopen(path, "wbxe");

    if (file == NULL || fwrite(buffer->bytes, 1, buffer->length, file) != buffer->length ||
        fclose(file) != 0) {
        printf("FAILED %s: cannot write: %s\n", path, strerror(errno));
        return 1;
    }
    printf("wrote %s\n", path);
    return 0;
}

/* --- one type of the registry --- */

struct options {
    const char *directory;
    const char *only; /* the type to write; NULL for all */
    bool write, strict;
};

static int check_current_file(const struct options *options, const struct state_type *type,
                              const void *object)
{
    CLEANUP_FREE uint8_t *bytes = xcalloc(1, ROOM);
    struct buffer buffer = {.bytes = bytes};
    struct error error = {0};
    char path[4096];
    int length;

    if (options->only && strcmp(options->only, type->name) != 0)
        return 0;
    length = snprintf(path, sizeof(path), "%s/%s", options->directory, type->name);
    if (options->write)
        mkdir(path, 0777);
    snprintf(path + length, sizeof(path) - (size_t)length, "/v%u.state", type->version);
    if (access(path, F_OK) == 0)
        return 0;
    if (options->write)
        return save(type, object, &buffer, &error) < 0 || write_file(path, &buffer);
    printf("%s%s: version %u has no golden stream yet\n", options->strict ? "FAILED " : "",
           type->name, type->version);
    return options->strict;
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
    return check_current_file(options, type, object);
}

int main(int argc, char **argv)
{
    struct options options = {.directory = GOLDEN_DIRECTORY};
    int failures = 0;

    for (int i = 1; i < argc; i++) {
        options.write |= strcmp(argv[i], "--write") == 0;
        options.strict |= strcmp(argv[i], "--strict") == 0;
        if (argv[i][0] != '-')
            options.only = argv[i];
    }
    for (size_t i = 0; i < ARRAY_SIZE(own_types); i++)
        failures += check_type(&options, &own_types[i]);
    for (size_t i = 0; i < golden_type_count; i++)
        failures += check_type(&options, &golden_types[i]);
    failures += check_all_files(options.directory);
    printf("%d failures\n", failures);
    return failures != 0;
}
