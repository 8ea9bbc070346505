/* SPDX-License-Identifier: Apache-2.0
 *
 * Which state types baton has, for the golden streams. Add a line to golden_registry.c for a new
 * one.
 */
#pragma once

#include <stddef.h>

#include "state/state.h"

/**
 * A value for a field, by name and at any depth, where the made-up one would not pass the type's
 * check. Of an integer or bool the value, of a blob or array the length, of bytes each of them.
 */
struct golden_override {
    const char *field;
    uint64_t value;
    uint64_t step;       /**< added per element of an array that the field is in */
    const void *content; /**< of a blob: its bytes, where made-up ones will not do; or NULL */
};

struct golden_type {
    const struct state_type *type;
    const struct golden_override *overrides; /**< ends with a NULL name; may be NULL */
};

extern const struct golden_type golden_types[];
extern const size_t golden_type_count;
