/* SPDX-License-Identifier: Apache-2.0
 *
 * See properties.h. JSON is rewritten as key=value text first, so that one parser, and one set of
 * checks, serves both spellings.
 */
#include "machine/properties.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"

#define JSON_DEPTH_MAX 4

bool properties_escape(char *out, size_t size, const char *value)
{
    size_t used = 0;

    for (; *value; value++) {
        if (used + 2 >= size)
            return false;
        out[used++] = *value;
        if (*value == ',')
            out[used++] = ',';
    }
    out[used] = '\0';
    return true;
}

static int add(struct properties *properties, const char *key, const char *value,
               struct error *error)
{
    for (unsigned i = 0; i < properties->count; i++) {
        if (strcmp(properties->items[i].key, key) == 0)
            return error_set(error, EINVAL, "%s: property '%s' is given twice", properties->option,
                             key);
    }
    if (properties->count == PROPERTIES_MAX)
        return error_set(error, EINVAL, "%s: more than %d properties", properties->option,
                         PROPERTIES_MAX);
    properties->items[properties->count++] = (struct property){.key = key, .value = value};
    return 0;
}

/* Ends a value at the next single comma, halving the doubled ones in place.
 * Returns where the next part starts, or NULL at the end of the text. */
static char *cut_value(char *text)
{
    char *out = text;

    for (; *text; text++) {
        if (*text == ',') {
            if (text[1] != ',') {
                *out = '\0';
                return text + 1;
            }
            text++;
        }
        *out++ = *text;
    }
    *out = '\0';
    return NULL;
}

/* Parses properties->text in place. */
static int parse_text(struct properties *properties, const char *implied, struct error *error)
{
    char *part = properties->text;
    bool first = true;
    int ret;

    while (part != NULL) {
        char *key = part, *value;
        size_t length = strcspn(part, "=,");

        if (part[length] == '=') {
            if (length == 0)
                return error_set(error, EINVAL, "%s: a property without a name at '%s'",
                                 properties->option, part);
            key[length] = '\0';
            value = part + length + 1;
            part = cut_value(value);
            ret = add(properties, key, value, error);
        } else if (first && implied) {
            part = cut_value(key);
            ret = add(properties, implied, key, error);
        } else {
            part = part[length] == ',' ? part + length + 1 : NULL;
            if (length == 0)
                return error_set(error, EINVAL,
                                 "%s: an empty property (a comma inside a value "
                                 "is written ',,')",
                                 properties->option);
            key[length] = '\0';
            ret = add(properties, key, "on", error);
        }
        if (ret < 0)
            return ret;
        first = false;
    }
    return 0;
}

/* A member's value as text; objects are handled by the caller. */
static int json_scalar(const struct properties *properties, const char *key, json_t *value,
                       FILE *out, struct error *error)
{
    const char *text;

    switch (json_typeof(value)) {
    case JSON_STRING:
        for (text = json_string_value(value); *text; text++) {
            fputc(*text, out);
            if (*text == ',')
                fputc(',', out);
        }
        return 0;
    case JSON_INTEGER:
        fprintf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        return 0;
    case JSON_TRUE:
    case JSON_FALSE:
        fputs(json_is_true(value) ? "on" : "off", out);
        return 0;
    default:
        return error_set(error, EINVAL,
                         "%s: property '%s' must be a string, a whole number or "
                         "true or false",
                         properties->option, key);
    }
}

static int json_members(const struct properties *properties, const char *prefix, json_t *object,
                        int depth, FILE *out, struct error *error)
{
    const char *member;
    json_t *value;
    int ret;

    if (depth > JSON_DEPTH_MAX)
        return error_set(error, EINVAL, "%s: JSON is nested too deeply", properties->option);
    json_object_foreach(object, member, value)
    {
        char key[128];

        if (member[0] == '\0' || strpbrk(member, "=,") != NULL ||
            (size_t)snprintf(key, sizeof(key), "%s%s", prefix, member) >= sizeof(key) - 1)
            return error_set(error, EINVAL, "%s: '%s' cannot be the name of a property",
                             properties->option, member);
        if (json_is_object(value)) {
            strcat(key, ".");
            ret = json_members(properties, key, value, depth + 1, out, error);
        } else {
            if (ftell(out) > 0)
                fputc(',', out);
            fprintf(out, "%s=", key);
            ret = json_scalar(properties, key, value, out, error);
        }
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* Rewrites a JSON object as key=value text, which the caller frees. */
static int json_to_text(const struct properties *properties, const char *json, char **text,
                        struct error *error)
{
    json_error_t problem;
    json_t *object = json_loads(json, JSON_REJECT_DUPLICATES, &problem);
    size_t size;
    FILE *out;
    int ret;

    if (object == NULL)
        return error_set(error, EINVAL, "%s: malformed JSON at column %d: %s", properties->option,
                         problem.column, problem.text);
    out = open_memstream(text, &size);
    assert(out != NULL);
    ret = json_is_object(object)
              ? json_members(properties, "", object, 1, out, error)
              : error_set(error, EINVAL, "%s: expected a JSON object", properties->option);
    fclose(out);
    json_decref(object);
    if (ret < 0) {
        free(*text);
        *text = NULL;
    }
    return ret;
}

int properties_parse(struct properties *properties, const char *option, const char *text,
                     const char *implied, struct error *error)
{
    int ret;

    *properties = (struct properties){.option = option};
    if (text[0] == '{') {
        ret = json_to_text(properties, text, &properties->text, error);
        if (ret < 0)
            return ret;
        implied = NULL;
    } else {
        properties->text = strdup(text);
        assert(properties->text != NULL);
    }
    if (properties->text[0] == '\0')
        ret = error_set(error, EINVAL, "%s: the value is empty", option);
    else
        ret = parse_text(properties, implied, error);
    if (ret < 0)
        properties_clear(properties);
    return ret;
}

void properties_clear(struct properties *properties)
{
    free(properties->text);
    *properties = (struct properties){.option = properties->option};
}

const char *properties_get(struct properties *properties, const char *key)
{
    for (unsigned i = 0; i < properties->count; i++) {
        if (strcmp(properties->items[i].key, key) == 0) {
            properties->items[i].used = true;
            return properties->items[i].value;
        }
    }
    return NULL;
}

int properties_string(struct properties *properties, const char *key, char *value, size_t size,
                      struct error *error)
{
    const char *text = properties_get(properties, key);

    if (text == NULL)
        return 0;
    if (text[0] == '\0')
        return error_set(error, EINVAL, "%s: property '%s' is empty", properties->option, key);
    if (strlen(text) >= size)
        return error_set(error, EINVAL, "%s: property '%s' is longer than %zu characters",
                         properties->option, key, size - 1);
    strcpy(value, text);
    return 0;
}

int properties_bool(struct properties *properties, const char *key, bool *value,
                    struct error *error)
{
    static const char *const words[] = {"off", "on", "no", "yes", "false", "true", "n", "y"};
    const char *text = properties_get(properties, key);

    if (text == NULL)
        return 0;
    for (unsigned i = 0; i < ARRAY_SIZE(words); i++) {
        if (strcmp(text, words[i]) == 0) {
            *value = i & 1;
            return 0;
        }
    }
    return error_set(error, EINVAL, "%s: property '%s' must be on or off, not '%s'",
                     properties->option, key, text);
}

/* The factor of a size suffix, 0 when it is none. */
static uint64_t suffix_factor(const char *suffix, uint64_t unit)
{
    static const char letters[] = "BKMGT";
    const char *letter;

    if (suffix[0] == '\0')
        return unit;
    letter = strchr(letters, toupper((unsigned char)suffix[0]));
    if (letter == NULL || suffix[1] != '\0')
        return 0;
    return UINT64_C(1) << (10 * (letter - letters));
}

int properties_size(struct properties *properties, const char *key, uint64_t unit, uint64_t *value,
                    struct error *error)
{
    const char *text = properties_get(properties, key);
    uint64_t number, factor;
    char *end;

    if (text == NULL)
        return 0;
    errno = 0;
    number = strtoull(text, &end, 10);
    factor = suffix_factor(end, unit);
    /* strtoull takes signs and leading blanks, which no size has. */
    if (!isdigit((unsigned char)text[0]) || factor == 0)
        return error_set(error, EINVAL,
                         "%s: property '%s' must be a number with an optional "
                         "suffix K, M, G or T, not '%s'",
                         properties->option, key, text);
    if (errno == ERANGE || __builtin_mul_overflow(number, factor, value))
        return error_set(error, EINVAL, "%s: property '%s' is too large: '%s'", properties->option,
                         key, text);
    return 0;
}

int properties_unsigned(struct properties *properties, const char *key, unsigned *value,
                        struct error *error)
{
    const char *text = properties_get(properties, key);
    unsigned long number;
    char *end;

    if (text == NULL)
        return 0;
    errno = 0;
    number = strtoul(text, &end, 10);
    if (!isdigit((unsigned char)text[0]) || *end != '\0' || errno == ERANGE || number > UINT32_MAX)
        return error_set(error, EINVAL, "%s: property '%s' must be a number, not '%s'",
                         properties->option, key, text);
    *value = (unsigned)number;
    return 0;
}

int properties_finish(struct properties *properties, struct error *error)
{
    for (unsigned i = 0; i < properties->count; i++) {
        if (!properties->items[i].used)
            return error_set(error, EINVAL, "%s: baton has no property '%s' here",
                             properties->option, properties->items[i].key);
    }
    return 0;
}
