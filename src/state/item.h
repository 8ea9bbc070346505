/* SPDX-License-Identifier: Apache-2.0
 *
 * One CBOR item after another, as far as our format has them. Everything that a stream could do
 * wrong below the level of sections and fields is found here: truncation, indefinite lengths,
 * kinds that we never write, bad text, counts that the rest of the input cannot hold, deep nesting.
 *
 * Private to state/: load.c and dump.c read through this. A cursor belongs to one thread.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum item_kind {
    ITEM_REFUSED, /**< valid CBOR, but nothing that our format has */
    ITEM_UINT,
    ITEM_BOOL,
    ITEM_TEXT,
    ITEM_BYTES,
    ITEM_ARRAY,
    ITEM_MAP,
};

struct item {
    enum item_kind kind;
    uint64_t value;       /**< UINT, BOOL; ARRAY: elements; MAP: pairs */
    const uint8_t *bytes; /**< TEXT, BYTES: points into the input */
    size_t length;        /**< TEXT, BYTES */
    const char *refused;  /**< REFUSED: what it is */
};

/** Where we are in the input. */
struct cursor {
    const uint8_t *bytes;
    size_t length;
    size_t position;
};

/**
 * Reads one item: a whole one, or only the head of an array or a map, whose elements follow. A
 * count is already known to fit into the bytes that are left, text to be UTF-8 without NUL.
 * @return 0 or -EINVAL
 */
int item_read(struct cursor *cursor, struct item *item, struct error *error);

/** Reads one item that must be of this kind. @return as item_read() */
int item_expect(struct cursor *cursor, enum item_kind kind, struct item *item, struct error *error);

/** Reads text that must be a name: an id, a type name, a key. @return as item_read() */
int item_expect_name(struct cursor *cursor, struct item *item, struct error *error);

/**
 * Skips one item with everything in it. Needs no stack of its own per level and no memory.
 * @param depth how many arrays and maps are open around it
 */
int item_skip(struct cursor *cursor, unsigned depth, struct error *error);
