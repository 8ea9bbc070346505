/* SPDX-License-Identifier: Apache-2.0
 *
 * Streams for people: see state.h. Knows no table, so it prints streams of any version. What it
 * prints can go to a terminal: text is escaped, lines are bounded.
 */
#include "state/state.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "state/section.h"

#define PATH_SIZE   512 /* names at every level, so a deep one may be cut; it is for people */
#define TEXT_SHOWN  128
#define BYTES_SHOWN 32

struct dumper {
    struct cursor cursor;
    void (*print)(void *opaque, const char *line);
    void *opaque;
    char path[PATH_SIZE];
};

static int dump_value(struct dumper *dumper, unsigned depth, struct error *error);

static void print_value(const struct dumper *dumper, const char *value)
{
    char line[PATH_SIZE + 4 * TEXT_SHOWN + 16];

    snprintf(line, sizeof(line), "%s: %s", dumper->path, value);
    dumper->print(dumper->opaque, line);
}

static void print_text(const struct dumper *dumper, const struct item *item)
{
    char value[4 * TEXT_SHOWN + 8];
    size_t used = 0, shown = MIN(item->length, (size_t)TEXT_SHOWN);

    value[used++] = '"';
    for (size_t i = 0; i < shown; i++) {
        uint8_t byte = item->bytes[i];

        if (byte >= 0x20 && byte < 0x7f && byte != '"' && byte != '\\')
            value[used++] = (char)byte;
        else
            used += (size_t)snprintf(value + used, 5, "\\x%02x", byte);
    }
    snprintf(value + used, sizeof(value) - used, "\"%s", shown < item->length ? "..." : "");
    print_value(dumper, value);
}

static void print_bytes(const struct dumper *dumper, const struct item *item)
{
    char value[3 * BYTES_SHOWN + 48];
    size_t shown = MIN(item->length, (size_t)BYTES_SHOWN);
    size_t used = (size_t)snprintf(value, sizeof(value), "%zu bytes", item->length);

    for (size_t i = 0; i < shown; i++)
        used += (size_t)snprintf(value + used, sizeof(value) - used, " %02x", item->bytes[i]);
    if (shown < item->length)
        snprintf(value + used, sizeof(value) - used, " ...");
    print_value(dumper, value);
}

/* Appends to the path. @return the length to cut it back to */
static size_t path_push(struct dumper *dumper, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static size_t path_push(struct dumper *dumper, const char *format, ...)
{
    size_t length = strlen(dumper->path);
    va_list args;

    va_start(args, format);
    vsnprintf(dumper->path + length, sizeof(dumper->path) - length, format, args);
    va_end(args);
    return length;
}

static int dump_map(struct dumper *dumper, uint64_t pairs, unsigned depth, struct error *error)
{
    for (uint64_t i = 0; i < pairs; i++) {
        struct item key;
        size_t length;
        int ret = item_expect_name(&dumper->cursor, &key, error);

        if (ret < 0)
            return ret;
        length = path_push(dumper, " / %.*s", (int)key.length, (const char *)key.bytes);
        ret = dump_value(dumper, depth, error);
        dumper->path[length] = '\0';
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int dump_array(struct dumper *dumper, uint64_t count, unsigned depth, struct error *error)
{
    char value[48];

    snprintf(value, sizeof(value), "%" PRIu64 " elements", count);
    print_value(dumper, value);
    for (uint64_t i = 0; i < count; i++) {
        size_t length = path_push(dumper, "[%" PRIu64 "]", i);
        int ret = dump_value(dumper, depth, error);

        dumper->path[length] = '\0';
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* @param depth how many arrays and maps are open around the value */
static int dump_value(struct dumper *dumper, unsigned depth, struct error *error)
{
    char value[48];
    struct item item;
    int ret = item_read(&dumper->cursor, &item, error);

    if (ret < 0)
        return ret;
    if ((item.kind == ITEM_ARRAY || item.kind == ITEM_MAP) && depth >= STATE_DEPTH_MAX)
        return error_set(error, EINVAL, "nested more than %u deep", STATE_DEPTH_MAX);
    switch (item.kind) {
    case ITEM_UINT:
        snprintf(value, sizeof(value), "%" PRIu64 " (0x%" PRIx64 ")", item.value, item.value);
        print_value(dumper, value);
        return 0;
    case ITEM_BOOL:
        print_value(dumper, item.value ? "true" : "false");
        return 0;
    case ITEM_TEXT:
        print_text(dumper, &item);
        return 0;
    case ITEM_BYTES:
        print_bytes(dumper, &item);
        return 0;
    case ITEM_ARRAY:
        return dump_array(dumper, item.value, depth + 1, error);
    case ITEM_MAP:
        return dump_map(dumper, item.value, depth + 1, error);
    case ITEM_REFUSED: /* item_read() has refused it */
        break;
    }
    assert(!"an item without a kind");
    return -EINVAL;
}

static int dump_section(struct dumper *dumper, const struct section *section, struct error *error)
{
    char value[64];

    dumper->path[0] = '\0';
    path_push(dumper, "%s (%s v%u)", section->id, section->type, section->version);
    snprintf(value, sizeof(value), "%s, for readers from version %u",
             section->required ? "required" : "optional", section->min_reader);
    print_value(dumper, value);
    if (dump_value(dumper, SECTION_DEPTH, error) < 0)
        return error_prefix(error, "section '%s': ", section->id);
    return 0;
}

int state_dump(const void *bytes, size_t length, void (*print)(void *opaque, const char *line),
               void *opaque, struct error *error)
{
    struct dumper dumper = {
        .cursor = {.bytes = bytes, .length = length}, .print = print, .opaque = opaque};
    struct section section;
    uint64_t count = 0;
    int ret = section_stream_begin(&dumper.cursor, error);

    if (ret < 0)
        return ret;
    while ((ret = section_next(&dumper.cursor, count, &section, error)) > 0) {
        if (dump_section(&dumper, &section, error) < 0)
            return -error->code;
        count++;
    }
    return ret;
}
