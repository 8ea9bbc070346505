/* SPDX-License-Identifier: Apache-2.0
 *
 * Bytes in, complete JSON values out: the input side of a QMP connection.
 *
 * A small scanner finds where a value ends; jansson parses it. What is malformed is reported once
 * and skipped: up to the value's own end where its brackets still tell it, else up to the next
 * line, control character, 0xff byte or "{". Main thread, one stream per client; hostile input.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JSON_STREAM_VALUE_MAX (1u << 20)
#define JSON_STREAM_DEPTH_MAX 64u

enum json_stream_state {
    JSON_STREAM_BETWEEN, /**< outside of any value */
    JSON_STREAM_VALUE,   /**< inside an object or array */
    JSON_STREAM_STRING,  /**< inside a string of one */
    JSON_STREAM_ESCAPE,  /**< after a backslash in it */
    JSON_STREAM_DISCARD, /**< after garbage, looking for a place to go on */
};

/** Zero-initialised is ready for use. */
struct json_stream {
    enum json_stream_state state;
    bool skipping;   /**< the value is already reported as bad: only its end is of interest */
    uint32_t depth;  /**< open brackets */
    uint64_t arrays; /**< bit n: the n-th open bracket is a "[" */
    char *buffer;
    size_t used;
    size_t capacity;
};

/**
 * Receives one value or one problem.
 * @param value   borrowed, an object or array; NULL for a problem
 * @param problem what is wrong with the input, else NULL
 */
typedef void json_stream_fn(void *opaque, json_t *value, const char *problem);

/** Takes bytes and calls @p deliver for each value that they complete and each problem in them. */
void json_stream_feed(struct json_stream *stream, const char *bytes, size_t count,
                      json_stream_fn *deliver, void *opaque);

/** Frees what is buffered; the stream is then as new. */
void json_stream_clear(struct json_stream *stream);
