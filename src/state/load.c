/* SPDX-License-Identifier: Apache-2.0
 *
 * Loading: see state.h. The input is hostile and is read once, from front to back; no length or
 * count that it declares is used before it was compared with the room there is. Errors are named
 * from the inside out: each level puts its own name in front. The thread that loads owns it all.
 */
#include "state/state.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/util.h"
#include "state/section.h"

/* What is the same for all fields of one section. */
struct loader {
    struct cursor *cursor;
    const struct state_type *type;
    uint32_t version; /* of the section */
};

static int load_fields(struct loader *loader, const struct state_field *fields, uint8_t *base,
                       unsigned depth, struct error *error);

static void put_uint(uint8_t *member, size_t size, uint64_t value)
{
    assert(size == 1 || size == 2 || size == 4 || size == 8);
    memcpy(member, &value, size); /* little-endian: x86-64 only */
}

static int load_bool(struct loader *loader, uint8_t *member, struct error *error)
{
    struct item item;
    int ret = item_expect(loader->cursor, ITEM_BOOL, &item, error);

    if (ret < 0)
        return ret;
    *member = item.value != 0;
    return 0;
}

static int load_uint(struct loader *loader, const struct state_field *field, uint8_t *member,
                     struct error *error)
{
    uint64_t fits = UINT64_MAX >> (64 - 8 * field->size);
    uint64_t maximum = MIN(field->maximum, fits);
    struct item item;
    int ret = item_expect(loader->cursor, ITEM_UINT, &item, error);

    if (ret < 0)
        return ret;
    if (item.value < field->minimum || item.value > maximum)
        return error_set(error, EINVAL, "%" PRIu64 " is not between %" PRIu64 " and %" PRIu64,
                         item.value, field->minimum, maximum);
    put_uint(member, field->size, item.value);
    return 0;
}

static int load_string(struct loader *loader, const struct state_field *field, uint8_t *member,
                       struct error *error)
{
    struct item item;
    int ret = item_expect(loader->cursor, ITEM_TEXT, &item, error);

    if (ret < 0)
        return ret;
    if (item.length >= field->size)
        return error_set(error, EINVAL, "text of %zu bytes, at most %zu fit", item.length,
                         field->size - 1);
    memcpy(member, item.bytes, item.length);
    member[item.length] = '\0';
    return 0;
}

static int load_bytes(struct loader *loader, const struct state_field *field, uint8_t *member,
                      struct error *error)
{
    struct item item;
    int ret = item_expect(loader->cursor, ITEM_BYTES, &item, error);

    if (ret < 0)
        return ret;
    if (item.length != field->size)
        return error_set(error, EINVAL, "%zu bytes where %zu belong", item.length, field->size);
    memcpy(member, item.bytes, item.length);
    return 0;
}

static int load_blob(struct loader *loader, const struct state_field *field, uint8_t *base,
                     struct error *error)
{
    struct item item;
    int ret = item_expect(loader->cursor, ITEM_BYTES, &item, error);

    if (ret < 0)
        return ret;
    if (item.length > field->capacity * field->size || item.length % field->size != 0)
        return error_set(error, EINVAL, "%zu bytes, where at most %zu times %zu fit", item.length,
                         field->capacity, field->size);
    if (item.length > 0)
        memcpy(base + field->offset, item.bytes, item.length);
    put_uint(base + field->length_offset, sizeof(uint32_t), item.length / field->size);
    return 0;
}

static int load_array(struct loader *loader, const struct state_field *field, uint8_t *base,
                      unsigned depth, struct error *error)
{
    struct item item;
    int ret = item_expect(loader->cursor, ITEM_ARRAY, &item, error);

    if (ret < 0)
        return ret;
    if (item.value > field->capacity)
        return error_set(error, EINVAL, "%" PRIu64 " elements, at most %zu fit", item.value,
                         field->capacity);
    for (uint64_t i = 0; i < item.value; i++) {
        uint8_t *element = base + field->offset + i * field->size;

        if (load_fields(loader, field->fields, element, depth + 1, error) < 0)
            return error_prefix(error, "element %" PRIu64 ": ", i);
    }
    put_uint(base + field->length_offset, sizeof(uint32_t), item.value);
    return 0;
}

/* How an older version wrote what is packed now. */
static bool is_array_next(struct cursor cursor)
{
    struct error ignored;
    struct item item;

    return item_read(&cursor, &item, &ignored) == 0 && item.kind == ITEM_ARRAY;
}

static int load_value(struct loader *loader, const struct state_field *field, uint8_t *base,
                      unsigned depth, struct error *error)
{
    uint8_t *member = base + field->offset;

    switch (field->kind) {
    case STATE_KIND_BOOL:
        return load_bool(loader, member, error);
    case STATE_KIND_UINT:
        return load_uint(loader, field, member, error);
    case STATE_KIND_STRING:
        return load_string(loader, field, member, error);
    case STATE_KIND_BYTES:
        return load_bytes(loader, field, member, error);
    case STATE_KIND_BLOB:
        if (field->fields && is_array_next(*loader->cursor))
            return load_array(loader, field, base, depth, error);
        return load_blob(loader, field, base, error);
    case STATE_KIND_ARRAY:
        return load_array(loader, field, base, depth, error);
    }
    assert(!"no such kind of field");
    return -EINVAL;
}

/* Gives a field that the section lacks its fallback, if its version entitles it to lack it. */
static int default_field(const struct loader *loader, const struct state_field *field,
                         uint8_t *base, struct error *error)
{
    if (field->since <= loader->version)
        return error_set(error, loader->version > loader->type->version ? ENOTSUP : EINVAL,
                         "field '%s' is missing, which version %u has since version %u",
                         field->name, loader->version, field->since);
    if (field->kind == STATE_KIND_UINT || field->kind == STATE_KIND_BOOL)
        put_uint(base + field->offset, field->size, field->fallback);
    return 0; /* all else is zero: scratch began as zeros */
}

/* Fields usually come in our order, so the search begins after the last one found. */
static const struct state_field *find_field(const struct state_field *fields, size_t count,
                                            size_t hint, const struct item *key)
{
    for (size_t i = 0; i < count; i++) {
        const struct state_field *field = &fields[(hint + i) % count];

        if (strlen(field->name) == key->length && memcmp(field->name, key->bytes, key->length) == 0)
            return field;
    }
    return NULL;
}

/* One map of fields while it is read. */
struct field_map {
    const struct state_field *fields;
    size_t count;
    uint8_t *base;  /* the struct that the offsets are in */
    unsigned depth; /* how many arrays and maps are open around the values */
    size_t hint;    /* where the next field probably is */
    bool seen[STATE_FIELDS_MAX];
};

static int load_field(struct loader *loader, struct field_map *map, struct error *error)
{
    const struct state_field *field;
    struct item key;
    size_t index;

    if (item_expect_name(loader->cursor, &key, error) < 0)
        return -error->code;
    field = find_field(map->fields, map->count, map->hint, &key);
    if (field == NULL) {
        if (item_skip(loader->cursor, map->depth, error) < 0)
            return error_prefix(error, "field '%.*s': ", (int)key.length, (const char *)key.bytes);
        return 0;
    }
    index = (size_t)(field - map->fields);
    if (map->seen[index])
        return error_set(error, EINVAL, "field '%s' is there twice", field->name);
    map->seen[index] = true;
    map->hint = index + 1;
    if (load_value(loader, field, map->base, map->depth, error) < 0)
        return error_prefix(error, "field '%s': ", field->name);
    return 0;
}

/* Loads a map of fields. @param depth how many arrays and maps are open around it */
static int load_fields(struct loader *loader, const struct state_field *fields, uint8_t *base,
                       unsigned depth, struct error *error)
{
    struct field_map map = {.fields = fields, .base = base, .depth = depth + 1};
    struct item head;

    while (fields[map.count].name)
        map.count++;
    assert(map.count <= STATE_FIELDS_MAX && depth < STATE_DEPTH_MAX);
    if (item_expect(loader->cursor, ITEM_MAP, &head, error) < 0)
        return -error->code;
    for (uint64_t i = 0; i < head.value; i++) {
        if (load_field(loader, &map, error) < 0)
            return -error->code;
    }
    for (size_t i = 0; i < map.count; i++) {
        if (!map.seen[i] && default_field(loader, &fields[i], base, error) < 0)
            return -error->code;
    }
    return 0;
}

static int check_version(const struct state_type *type, const struct section *section,
                         struct error *error)
{
    if (section->min_reader > type->version)
        return error_set(error, ENOTSUP,
                         "version %u needs a reader of version %u or newer, this build has "
                         "version %u: use a newer baton",
                         section->version, section->min_reader, type->version);
    if (section->version < type->min_version)
        return error_set(error, ENOTSUP,
                         "version %u is too old, this build reads version %u or newer: update in "
                         "steps",
                         section->version, type->min_version);
    return 0;
}

static int load_section(struct cursor *cursor, const struct section *section,
                        struct state_target *target, struct error *error)
{
    struct loader loader = {.cursor = cursor, .type = target->type, .version = section->version};

    if (target->loaded)
        return error_set(error, EINVAL, "is there twice");
    if (check_version(target->type, section, error) < 0)
        return -error->code;
    memset(target->scratch, 0, target->type->size);
    if (load_fields(&loader, target->type->fields, target->scratch, SECTION_DEPTH, error) < 0)
        return -error->code;
    target->loaded = true;
    target->decoded = true;
    return 0;
}

/* Which target a section is for. Sections usually come in the order of the targets. */
static struct state_target *find_target(struct state_target *targets, size_t count, size_t hint,
                                        const struct section *section)
{
    for (size_t i = 0; i < count; i++) {
        struct state_target *target = &targets[(hint + i) % count];

        if (strcmp(target->id, section->id) == 0)
            return strcmp(target->type->name, section->type) == 0 ? target : NULL;
    }
    return NULL;
}

/* Whether the next section is the one that this target was loaded from the last time. */
static bool is_as_before(const struct cursor *cursor, const struct state_target *target)
{
    return !target->loaded && target->former_length > 0 &&
           cursor->length - cursor->position >= target->former_length &&
           memcmp(cursor->bytes + cursor->position, target->former, target->former_length) == 0;
}

/* Keeps the section that has just been read, for the next time. A peer that has changed it since
 * then will get what it was decoded to, which has been checked. */
static void remember(struct state_target *target, const struct cursor *cursor, size_t start)
{
    size_t length = cursor->position - start;

    target->former_length = length <= target->former_capacity ? length : 0;
    if (target->former_length > 0)
        memcpy(target->former, cursor->bytes + start, length);
}

/* @param start where the section begins */
static int take_section(struct cursor *cursor, size_t start, const struct section *section,
                        struct state_target *targets, size_t count, size_t *hint,
                        struct error *error)
{
    struct state_target *target = find_target(targets, count, *hint, section);

    if (target) {
        *hint = (size_t)(target - targets) + 1;
        if (load_section(cursor, section, target, error) < 0)
            return -error->code;
        remember(target, cursor, start);
        return 0;
    }
    if (section->required)
        return error_set(error, ENOTSUP, "is required and has no counterpart in this process");
    return item_skip(cursor, SECTION_DEPTH, error);
}

static int decode(struct cursor *cursor, struct state_target *targets, size_t count,
                  struct error *error)
{
    struct section section;
    size_t hint = 0;
    int ret = section_stream_begin(cursor, error);

    for (uint64_t i = 0; ret == 0; i++) {
        size_t start = cursor->position;

        if (hint < count && is_as_before(cursor, &targets[hint])) {
            cursor->position += targets[hint].former_length;
            targets[hint++].loaded = true;
            continue;
        }
        ret = section_next(cursor, i, &section, error);
        if (ret <= 0)
            return ret;
        ret = take_section(cursor, start, &section, targets, count, &hint, error);
        if (ret < 0)
            return error_prefix(error, "section '%s' (%s v%u): ", section.id, section.type,
                                section.version);
    }
    return ret;
}

static int check_targets(const struct state_target *targets, size_t count, struct error *error)
{
    for (size_t i = 0; i < count; i++) {
        const struct state_target *target = &targets[i];

        if (!target->loaded && !target->optional)
            return error_set(error, ENOENT, "section '%s' (%s) is missing", target->id,
                             target->type->name);
        if (!target->decoded || target->type->check == NULL)
            continue;
        if (target->type->check(target->scratch, error) < 0)
            return error_prefix(error, "section '%s' (%s): ", target->id, target->type->name);
    }
    return 0;
}

void *state_make_scratch(struct state_target *targets, size_t count)
{
    size_t total = 0;
    uint8_t *block;

    for (size_t i = 0; i < count; i++) {
        assert(targets[i].type != NULL);
        total += align_up(targets[i].type->size, 16) + align_up(targets[i].former_capacity, 16);
    }
    block = xcalloc(1, total);
    for (size_t i = 0, used = 0; i < count; i++) {
        targets[i].scratch = block + used;
        used += align_up(targets[i].type->size, 16);
        targets[i].former = block + used;
        used += align_up(targets[i].former_capacity, 16);
    }
    return block;
}

int state_load(const void *bytes, size_t length, struct state_target *targets, size_t count,
               struct error *error)
{
    struct cursor cursor = {.bytes = bytes, .length = length};
    int ret;

    for (size_t i = 0; i < count; i++) {
        targets[i].loaded = false;
        targets[i].decoded = false;
    }
    ret = decode(&cursor, targets, count, error);
    if (ret == 0)
        ret = check_targets(targets, count, error);
    for (size_t i = 0; i < count; i++) {
        if (ret < 0) {
            targets[i].loaded = false;
            targets[i].former_length = 0;
        } else if (targets[i].decoded) {
            memcpy(targets[i].object, targets[i].scratch, targets[i].type->size);
        }
    }
    return ret;
}
