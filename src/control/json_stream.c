/* SPDX-License-Identifier: Apache-2.0
 *
 * See json_stream.h. The scanner looks at brackets, strings and control characters only; whether
 * a balanced text is JSON is jansson's question.
 */
#include "control/json_stream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define CAPACITY_MIN 512

/* One call of json_stream_feed(). */
struct feed {
    struct json_stream *stream;
    json_stream_fn *deliver;
    void *opaque;
};

static void report(const struct feed *feed, const char *problem)
{
    feed->deliver(feed->opaque, NULL, problem);
}

/* Forgets the value under way. A large buffer is not kept for a client that was large once. */
static void reset(struct json_stream *stream, enum json_stream_state state)
{
    if (stream->capacity > 64 * CAPACITY_MIN) {
        free(stream->buffer);
        stream->buffer = NULL;
        stream->capacity = 0;
    }
    stream->used = 0;
    stream->depth = 0;
    stream->arrays = 0;
    stream->skipping = false;
    stream->state = state;
}

/* Reports a problem whose value can still be followed to its end. */
static void skip_value(const struct feed *feed, const char *problem)
{
    struct json_stream *stream = feed->stream;

    if (!stream->skipping)
        report(feed, problem);
    stream->skipping = true;
    stream->used = 0;
}

/* Reports a problem after which only garbage can be expected. */
static void discard(const struct feed *feed, enum json_stream_state next, const char *problem)
{
    bool reported = feed->stream->skipping;

    reset(feed->stream, next);
    if (!reported)
        report(feed, problem);
}

static void append(const struct feed *feed, char c)
{
    struct json_stream *stream = feed->stream;

    if (stream->skipping)
        return;
    if (stream->used == JSON_STREAM_VALUE_MAX) {
        skip_value(feed, "JSON value is longer than 1 MiB");
        return;
    }
    if (stream->used == stream->capacity) {
        size_t capacity = MAX(2 * stream->capacity, (size_t)CAPACITY_MIN);
        char *buffer = realloc(stream->buffer, capacity);

        if (buffer == NULL) {
            skip_value(feed, "no memory for a JSON value of this length");
            return;
        }
        stream->buffer = buffer;
        stream->capacity = capacity;
    }
    stream->buffer[stream->used++] = c;
}

/* The last bracket is closed: parses and delivers. */
static void finish_value(const struct feed *feed)
{
    struct json_stream *stream = feed->stream;
    char problem[JSON_ERROR_TEXT_LENGTH + 64];
    json_error_t error;
    json_t *value;

    if (stream->skipping) {
        reset(stream, JSON_STREAM_BETWEEN);
        return;
    }
    value = json_loadb(stream->buffer, stream->used, JSON_REJECT_DUPLICATES, &error);
    reset(stream, JSON_STREAM_BETWEEN);
    if (value == NULL) {
        snprintf(problem, sizeof(problem), "malformed JSON at byte %d: %s", error.position,
                 error.text);
        report(feed, problem);
        return;
    }
    feed->deliver(feed->opaque, value, NULL);
    json_decref(value);
}

static void open_bracket(const struct feed *feed, char c)
{
    struct json_stream *stream = feed->stream;

    stream->state = JSON_STREAM_VALUE;
    append(feed, c);
    if (stream->depth == JSON_STREAM_DEPTH_MAX)
        skip_value(feed, "JSON value is nested more than 64 deep");
    if (stream->depth < JSON_STREAM_DEPTH_MAX) {
        uint64_t bit = UINT64_C(1) << stream->depth;

        stream->arrays = c == '[' ? stream->arrays | bit : stream->arrays & ~bit;
    }
    /* A count that wraps would take four thousand million brackets in one value. */
    stream->depth++;
}

static void close_bracket(const struct feed *feed, char c)
{
    struct json_stream *stream = feed->stream;

    stream->depth--;
    if (stream->depth < JSON_STREAM_DEPTH_MAX &&
        ((stream->arrays >> stream->depth) & 1) != (c == ']')) {
        discard(feed, JSON_STREAM_DISCARD, "malformed JSON: brackets do not match");
        return;
    }
    append(feed, c);
    if (stream->depth == 0)
        finish_value(feed);
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static void scan_between(const struct feed *feed, char c)
{
    if (c == '{' || c == '[')
        open_bracket(feed, c);
    else if (!is_blank(c))
        discard(feed, JSON_STREAM_DISCARD, "malformed JSON: expected an object");
}

static void scan_value(const struct feed *feed, char c)
{
    if (c == '{' || c == '[') {
        open_bracket(feed, c);
    } else if (c == '}' || c == ']') {
        close_bracket(feed, c);
    } else {
        append(feed, c);
        if (c == '"')
            feed->stream->state = JSON_STREAM_STRING;
    }
}

static void scan_string(const struct feed *feed, char c)
{
    append(feed, c);
    if (c == '\\')
        feed->stream->state = JSON_STREAM_ESCAPE;
    else if (c == '"')
        feed->stream->state = JSON_STREAM_VALUE;
}

/* Control characters (blanks between tokens aside) and 0xff occur nowhere in JSON, so they end
 * whatever is under way. 0xff is how a client says "forget what I sent". */
static bool scan_control(const struct feed *feed, unsigned char c)
{
    struct json_stream *stream = feed->stream;
    bool in_string = stream->state == JSON_STREAM_STRING || stream->state == JSON_STREAM_ESCAPE;

    if (c != 0xff && (c >= 0x20 || (is_blank((char)c) && !in_string)))
        return false;
    if (stream->state == JSON_STREAM_DISCARD)
        reset(stream, JSON_STREAM_BETWEEN);
    else if (in_string)
        discard(feed, JSON_STREAM_BETWEEN, "malformed JSON: control character in a string");
    else
        discard(feed, JSON_STREAM_BETWEEN, "malformed JSON: control character");
    return true;
}

static void scan(const struct feed *feed, char c)
{
    struct json_stream *stream = feed->stream;

    if (scan_control(feed, (unsigned char)c))
        return;
    switch (stream->state) {
    case JSON_STREAM_BETWEEN:
        scan_between(feed, c);
        break;
    case JSON_STREAM_VALUE:
        scan_value(feed, c);
        break;
    case JSON_STREAM_STRING:
        scan_string(feed, c);
        break;
    case JSON_STREAM_ESCAPE:
        append(feed, c);
        stream->state = JSON_STREAM_STRING;
        break;
    case JSON_STREAM_DISCARD:
        if (c == '\n' || c == '\r')
            reset(stream, JSON_STREAM_BETWEEN);
        else if (c == '{')
            open_bracket(feed, c);
        break;
    }
}

void json_stream_feed(struct json_stream *stream, const char *bytes, size_t count,
                      json_stream_fn *deliver, void *opaque)
{
    const struct feed feed = {.stream = stream, .deliver = deliver, .opaque = opaque};

    for (size_t i = 0; i < count; i++)
        scan(&feed, bytes[i]);
}

void json_stream_clear(struct json_stream *stream)
{
    free(stream->buffer);
    *stream = (struct json_stream){.state = JSON_STREAM_BETWEEN};
}
