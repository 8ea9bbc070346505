/* SPDX-License-Identifier: Apache-2.0
 *
 * State as a hostile peer would hand it over: for targets that are about what a device does with
 * state that the loader has taken.
 */
#pragma once

#include <stdbool.h>
#include <string.h>

#include "base/util.h"
#include "state/state.h"

#define TWISTED_STATE_ROOM (256 * KIB)

/**
 * Writes @p count bytes over a copy of an object's state, no counts or lengths among them, and
 * loads what comes of it into the object.
 * @return whether the loader has taken it; if not, the object is as before
 */
static inline bool load_twisted(const struct state_type *type, void *object, size_t offset,
                                const void *bytes, size_t count)
{
    CLEANUP_FREE uint8_t *twisted = xcalloc(1, type->size);
    CLEANUP_FREE uint8_t *scratch = xcalloc(1, type->size);
    CLEANUP_FREE uint8_t *stream = malloc(TWISTED_STATE_ROOM);
    struct state_target target = {
        .id = type->name, .type = type, .object = object, .scratch = scratch};
    struct state_writer writer;
    struct error error = {0};
    size_t length;

    memcpy(twisted, object, type->size);
    memcpy(twisted + offset, bytes, MIN(count, type->size - offset));
    state_writer_init(&writer, stream, TWISTED_STATE_ROOM);
    state_write(&writer, type->name, type, twisted, true);
    if (state_writer_finish(&writer, &length, &error) < 0)
        return false;
    return state_load(stream, length, &target, 1, &error) == 0;
}
