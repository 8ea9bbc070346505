/* SPDX-License-Identifier: Apache-2.0
 *
 * See section.h.
 */
#include "state/section.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/util.h"

#define MAGIC "baton-state"

int section_stream_begin(struct cursor *cursor, struct error *error)
{
    struct item item;

    if (item_expect(cursor, ITEM_ARRAY, &item, error) < 0 || item.value != 2 ||
        item_expect(cursor, ITEM_TEXT, &item, error) < 0 || item.length != strlen(MAGIC) ||
        memcmp(item.bytes, MAGIC, item.length) != 0)
        return error_set(error, EINVAL, "not a state stream: it does not begin with '%s'", MAGIC);
    if (item_expect(cursor, ITEM_UINT, &item, error) < 0)
        return error_prefix(error, "state stream header: ");
    if (item.value > STATE_FORMAT_VERSION)
        return error_set(error, ENOTSUP,
                         "the state stream has format %" PRIu64 ", this build reads format %u",
                         item.value, STATE_FORMAT_VERSION);
    if (item.value == 0)
        return error_set(error, EINVAL, "the state stream has format 0, which does not exist");
    return 0;
}

static int read_name(struct cursor *cursor, char name[STATE_NAME_MAX + 1], struct error *error)
{
    struct item item;
    int ret = item_expect_name(cursor, &item, error);

    if (ret < 0)
        return ret;
    memcpy(name, item.bytes, item.length);
    name[item.length] = '\0';
    return 0;
}

static int read_version(struct cursor *cursor, uint32_t *version, struct error *error)
{
    struct item item;
    int ret = item_expect(cursor, ITEM_UINT, &item, error);

    if (ret < 0)
        return ret;
    if (item.value == 0 || item.value > UINT32_MAX)
        return error_set(error, EINVAL, "%" PRIu64 " is no version", item.value);
    *version = (uint32_t)item.value;
    return 0;
}

static int read_bool(struct cursor *cursor, bool *value, struct error *error)
{
    struct item item;
    int ret = item_expect(cursor, ITEM_BOOL, &item, error);

    if (ret < 0)
        return ret;
    *value = item.value;
    return 0;
}

/* The keys of a section. All but KEY_MIN_READER must be there. */
enum key { KEY_ID, KEY_TYPE, KEY_VERSION, KEY_MIN_READER, KEY_REQUIRED, KEY_FIELDS, KEY_UNKNOWN };

static const char *const key_names[] = {
    [KEY_ID] = "id",
    [KEY_TYPE] = "type",
    [KEY_VERSION] = "version",
    [KEY_MIN_READER] = "min_reader",
    [KEY_REQUIRED] = "required",
    [KEY_FIELDS] = "fields",
};

static enum key find_key(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(key_names); i++) {
        if (strcmp(name, key_names[i]) == 0)
            return (enum key)i;
    }
    return KEY_UNKNOWN;
}

static int read_key_value(struct cursor *cursor, enum key key, const char *name,
                          struct section *section, struct error *error)
{
    switch (key) {
    case KEY_ID:
        return read_name(cursor, section->id, error);
    case KEY_TYPE:
        return read_name(cursor, section->type, error);
    case KEY_VERSION:
        return read_version(cursor, &section->version, error);
    case KEY_MIN_READER:
        return read_version(cursor, &section->min_reader, error);
    case KEY_REQUIRED:
        return read_bool(cursor, &section->required, error);
    case KEY_FIELDS: /* the caller's */
        return 0;
    case KEY_UNKNOWN:
        break;
    }
    if (name[0] == '!')
        return error_set(error, ENOTSUP, "this build must understand it and does not");
    return item_skip(cursor, SECTION_DEPTH, error);
}

/* Puts in front of an error which section it is about, by number until its id is known. */
static int name_section(const struct section *section, uint64_t number, struct error *error)
{
    if (section->id[0])
        return error_prefix(error, "section '%s': ", section->id);
    return error_prefix(error, "section number %" PRIu64 ": ", number);
}

static int read_head(struct cursor *cursor, uint64_t pairs, struct section *section,
                     struct error *error)
{
    unsigned seen = 0;

    for (uint64_t i = 0; i < pairs; i++) {
        char name[STATE_NAME_MAX + 1];
        enum key key;

        if (read_name(cursor, name, error) < 0)
            return -error->code;
        key = find_key(name);
        if (key != KEY_UNKNOWN && (seen & (1u << key)))
            return error_set(error, EINVAL, "key '%s' is there twice", name);
        seen |= 1u << key;
        if (key == KEY_FIELDS && i != pairs - 1)
            return error_set(error, EINVAL, "key 'fields' is not the last one");
        if (read_key_value(cursor, key, name, section, error) < 0)
            return error_prefix(error, "key '%s': ", name);
    }
    for (enum key key = KEY_ID; key <= KEY_FIELDS; key++) {
        if (key != KEY_MIN_READER && !(seen & (1u << key)))
            return error_set(error, EINVAL, "key '%s' is missing", key_names[key]);
    }
    if (section->min_reader > section->version)
        return error_set(error, EINVAL, "version %u asks for a reader of version %u",
                         section->version, section->min_reader);
    return 0;
}

static int check_end(const struct cursor *cursor, uint64_t declared, uint64_t count,
                     struct error *error)
{
    if (declared != count)
        return error_set(error, EINVAL,
                         "the state stream ends after %" PRIu64
                         " sections and says it has %" PRIu64,
                         count, declared);
    if (cursor->position != cursor->length)
        return error_set(error, EINVAL, "%zu bytes follow the end of the state stream",
                         cursor->length - cursor->position);
    return 0;
}

int section_next(struct cursor *cursor, uint64_t count, struct section *section,
                 struct error *error)
{
    struct item item;

    *section = (struct section){.min_reader = 1};
    if (item_read(cursor, &item, error) < 0)
        return name_section(section, count + 1, error);
    if (item.kind == ITEM_UINT)
        return check_end(cursor, item.value, count, error);
    if (item.kind != ITEM_MAP) {
        error_set(error, EINVAL, "neither a section nor the end of the stream");
        return name_section(section, count + 1, error);
    }
    if (read_head(cursor, item.value, section, error) < 0)
        return name_section(section, count + 1, error);
    return 1;
}
