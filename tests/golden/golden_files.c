/* SPDX-License-Identifier: Apache-2.0
 *
 * See golden_files.h. Used by test_golden.c and test_definitions.c. One thread.
 */
#include "golden_files.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"

#define ROW       32 /* bytes in a line */
#define SEPARATOR " = "

/* --- objects as text: lines of PATH = VALUE -------------------------------------------------- */

static void print_fields(FILE *out, const char *parent, const struct state_field *fields,
                         const uint8_t *base);

static void print_text(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text; text++) {
        if (*text >= 0x20 && *text < 0x7f && *text != '"' && *text != '\\')
            fputc(*text, out);
        else
            fprintf(out, "\\x%02x", (unsigned char)*text);
    }
    fputs("\"\n", out);
}

static void print_bytes(FILE *out, const char *path, const uint8_t *bytes, size_t length)
{
    fprintf(out, "%zu bytes\n", length);
    for (size_t at = 0; at < length; at++) {
        if (at % ROW == 0)
            fprintf(out, "%s+0x%zx" SEPARATOR, path, at);
        fprintf(out, "%02x%c", bytes[at], at % ROW == ROW - 1 || at + 1 == length ? '\n' : ' ');
    }
}

static void print_elements(FILE *out, const char *path, const struct state_field *field,
                           const uint8_t *first, uint32_t count)
{
    fprintf(out, "%" PRIu32 " elements\n", count);
    for (uint32_t i = 0; i < count; i++) {
        char element[GOLDEN_PATH_SIZE + 16];

        snprintf(element, sizeof(element), "%s[%" PRIu32 "].", path, i);
        print_fields(out, element, field->fields, first + i * field->size);
    }
}

static void print_value(FILE *out, const char *path, const struct state_field *field,
                        const uint8_t *base)
{
    const uint8_t *member = base + field->offset;
    uint64_t value = 0;
    uint32_t length;

    fprintf(out, "%s" SEPARATOR, path);
    switch (field->kind) {
    case STATE_KIND_BOOL:
        fprintf(out, "%s\n", *member ? "true" : "false");
        break;
    case STATE_KIND_UINT:
        memcpy(&value, member, field->size);
        fprintf(out, "%" PRIu64 " (0x%" PRIx64 ")\n", value, value);
        break;
    case STATE_KIND_STRING:
        print_text(out, (const char *)member);
        break;
    case STATE_KIND_BYTES:
        print_bytes(out, path, member, field->size);
        break;
    case STATE_KIND_BLOB:
    case STATE_KIND_ARRAY:
        memcpy(&length, base + field->length_offset, sizeof(length));
        if (field->fields)
            print_elements(out, path, field, member, length);
        else
            print_bytes(out, path, member, length);
        break;
    }
}

/* @param parent what stands in front of the names: "", or an element with its dot */
static void print_fields(FILE *out, const char *parent, const struct state_field *fields,
                         const uint8_t *base)
{
    for (; fields->name; fields++) {
        char path[GOLDEN_PATH_SIZE];

        snprintf(path, sizeof(path), "%s%s", parent, fields->name);
        print_value(out, path, fields, base);
    }
}

/* @return text, to be freed */
static char *print_object(const struct state_field *fields, const void *object)
{
    size_t size;
    char *text;
    FILE *out = open_memstream(&text, &size);

    assert(out);
    print_fields(out, "", fields, object);
    fclose(out);
    return text;
}

/* --- comparing ---------------------------------------------------------------------------------
 */

static const char *next_line(const char *line)
{
    line += strcspn(line, "\n");
    return line + (*line == '\n');
}

static int line_length(const char *line)
{
    return (int)strcspn(line, "\n");
}

/* Up to its separator; all of a line that has none. */
static int path_length(const char *line)
{
    const char *separator = strstr(line, SEPARATOR);

    return separator && separator < next_line(line) ? (int)(separator - line) : line_length(line);
}

/* @return the line of a text with the same path as @p wanted, or NULL */
static const char *find_line(const char *text, const char *wanted)
{
    for (; *text; text = next_line(text)) {
        if (path_length(text) == path_length(wanted) &&
            strncmp(text, wanted, (size_t)path_length(wanted)) == 0)
            return text;
    }
    return NULL;
}

/* Whether everything that is recorded is still there, and is as it was. */
static int check_recorded(const char *path, const char *recorded, const char *present)
{
    int failures = 0;

    for (; *recorded; recorded = next_line(recorded)) {
        const char *line = find_line(present, recorded);

        if (line && line_length(line) == line_length(recorded) &&
            strncmp(line, recorded, (size_t)line_length(line)) == 0)
            continue;
        printf("FAILED %s: recorded is '%.*s', ", path, line_length(recorded), recorded);
        if (line)
            printf("loaded is '%.*s'\n", line_length(line), line);
        else
            printf("nothing of that name is loaded\n");
        failures = 1;
    }
    return failures;
}

/* Misses, or writes, a record of what has none: all of a new stream, new fields of an old one. */
static int check_unrecorded(const char *path, const char *recorded, const char *present, bool write)
{
    FILE *file = NULL;

    for (; *present; present = next_line(present)) {
        if (find_line(recorded, present))
            continue;
        if (!write) {
            printf("FAILED %s: no value is recorded for '%.*s'\n", path, path_length(present),
                   present);
            return 1;
        }
        if (file == NULL)
            file = fopen(path, "ae");
        if (file == NULL || fprintf(file, "%.*s\n", line_length(present), present) < 0) {
            printf("FAILED %s: cannot write: %s\n", path, strerror(errno));
            return 1;
        }
    }
    if (file == NULL)
        return 0;
    printf("wrote %s\n", path);
    return fclose(file) != 0;
}

int golden_check_values(const char *stream, const struct state_field *fields, const void *object,
                        bool write)
{
    CLEANUP_FREE char *present = print_object(fields, object);
    CLEANUP_FREE uint8_t *recorded = xcalloc(1, GOLDEN_ROOM + 1);
    struct golden_buffer buffer = {.bytes = recorded};
    struct error no_record_yet;
    char path[GOLDEN_PATH_SIZE];
    int failures;

    snprintf(path, sizeof(path), "%.*s.values", (int)(strrchr(stream, '.') - stream), stream);
    golden_read(path, &buffer, &no_record_yet);
    failures = check_recorded(path, (const char *)recorded, present);
    if (failures == 0)
        failures = check_unrecorded(path, (const char *)recorded, present, write);
    return failures;
}

/* --- files -------------------------------------------------------------------------------------
 */

int golden_read(const char *path, struct golden_buffer *buffer, struct error *error)
{
    FILE *file = fopen(path, "rbe");

    if (file == NULL)
        return error_set_errno(error, errno, "cannot open");
    buffer->length = fread(buffer->bytes, 1, GOLDEN_ROOM, file);
    fclose(file);
    return 0;
}

int golden_write(const char *path, const struct golden_buffer *buffer)
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
