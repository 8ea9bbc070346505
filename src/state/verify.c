/* SPDX-License-Identifier: Apache-2.0
 *
 * Checks of tables, for tests: see state_type_verify() in state.h. What writer.c and load.c take
 * for granted about a table is what is checked here.
 */
#include "state/state.h"

#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "state/section.h"
#include "state/text.h"

static int verify_fields(const struct state_type *type, const struct state_field *fields,
                         size_t size, unsigned depth, struct error *error);

/* How many bytes of the struct the member takes. */
static size_t extent(const struct state_field *field)
{
    if (field->kind == STATE_KIND_BLOB || field->kind == STATE_KIND_ARRAY)
        return field->size * field->capacity;
    return field->size;
}

static bool has_length(const struct state_field *field)
{
    return field->kind == STATE_KIND_BLOB || field->kind == STATE_KIND_ARRAY;
}

static bool fields_overlap(const struct state_field *a, const struct state_field *b)
{
    return ranges_overlap(a->offset, extent(a), b->offset, extent(b)) ||
           (has_length(a) &&
            ranges_overlap(a->length_offset, sizeof(uint32_t), b->offset, extent(b))) ||
           (has_length(b) &&
            ranges_overlap(b->length_offset, sizeof(uint32_t), a->offset, extent(a))) ||
           (has_length(a) && has_length(b) && a->length_offset == b->length_offset);
}

static const char *uint_mistake(const struct state_field *field)
{
    uint64_t fits;

    if (field->size != 1 && field->size != 2 && field->size != 4 && field->size != 8)
        return "is no integer of 1, 2, 4 or 8 bytes";
    fits = UINT64_MAX >> (64 - 8 * field->size);
    if (field->minimum > field->maximum || (field->maximum != UINT64_MAX && field->maximum > fits))
        return "has bounds that do not fit its member";
    if (field->fallback < field->minimum || field->fallback > field->maximum ||
        field->fallback > fits)
        return "has a fallback out of its bounds";
    return NULL;
}

/* @param size of the struct that the field is in */
static const char *field_mistake(const struct state_type *type, const struct state_field *field,
                                 size_t size)
{
    if (!state_name_valid(field->name, strlen(field->name)))
        return "has a name that is not printable ASCII";
    if (field->since == 0 || field->since > type->version)
        return "has a since-version that is 0 or above the type's";
    if (extent(field) == 0 || !range_fits(field->offset, extent(field), size))
        return "lies outside the struct";
    if (has_length(field) && !range_fits(field->length_offset, sizeof(uint32_t), size))
        return "has a length outside the struct";
    if (has_length(field) &&
        ranges_overlap(field->offset, extent(field), field->length_offset, sizeof(uint32_t)))
        return "overlaps its length";
    if (field->kind == STATE_KIND_BOOL && (field->size != sizeof(bool) || field->fallback > 1))
        return "is no bool";
    if (field->kind == STATE_KIND_ARRAY && field->fields == NULL)
        return "has no fields for its elements";
    return field->kind == STATE_KIND_UINT ? uint_mistake(field) : NULL;
}

static int verify_field(const struct state_type *type, const struct state_field *fields,
                        size_t index, size_t size, unsigned depth, struct error *error)
{
    const struct state_field *field = &fields[index];
    const char *mistake = field_mistake(type, field, size);

    if (mistake)
        return error_set(error, EINVAL, "type '%s': field '%s' %s", type->name, field->name,
                         mistake);
    for (size_t i = 0; i < index; i++) {
        if (strcmp(fields[i].name, field->name) == 0)
            return error_set(error, EINVAL, "type '%s': field '%s' is there twice", type->name,
                             field->name);
        if (fields_overlap(&fields[i], field))
            return error_set(error, EINVAL, "type '%s': fields '%s' and '%s' overlap", type->name,
                             fields[i].name, field->name);
    }
    if (field->fields)
        return verify_fields(type, field->fields, field->size, depth + 1, error);
    return 0;
}

/* @param depth how many arrays and maps are open around the map of these fields */
static int verify_fields(const struct state_type *type, const struct state_field *fields,
                         size_t size, unsigned depth, struct error *error)
{
    if (depth >= STATE_DEPTH_MAX)
        return error_set(error, EINVAL, "type '%s' is nested too deep", type->name);
    for (size_t i = 0; fields[i].name; i++) {
        int ret;

        if (i >= STATE_FIELDS_MAX)
            return error_set(error, EINVAL, "type '%s' has more than %u fields", type->name,
                             STATE_FIELDS_MAX);
        ret = verify_field(type, fields, i, size, depth + 1, error);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int state_type_verify(const struct state_type *type, struct error *error)
{
    if (!state_name_valid(type->name, strlen(type->name)))
        return error_set(error, EINVAL, "type '%s': its name is not printable ASCII", type->name);
    if (type->min_version == 0 || type->min_version > type->version ||
        type->min_reader > type->version)
        return error_set(error, EINVAL,
                         "type '%s': version %u, min_version %u and min_reader %u do not fit "
                         "together",
                         type->name, type->version, type->min_version, type->min_reader);
    return verify_fields(type, type->fields, type->size, SECTION_DEPTH, error);
}
