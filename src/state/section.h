/* SPDX-License-Identifier: Apache-2.0
 *
 * The outer shape of a stream: its header, the heads of its sections, its end. See state.h for the
 * format. Private to state/: load.c and dump.c walk a stream through this.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "state/item.h"
#include "state/state.h"

/** How many arrays and maps are open around a section's "fields", and around one of its values. */
#define SECTION_DEPTH       1u
#define SECTION_FIELD_DEPTH 2u

struct section {
    char id[STATE_NAME_MAX + 1];
    char type[STATE_NAME_MAX + 1];
    uint32_t version;
    uint32_t min_reader; /**< 1 when the section does not say */
    bool required;
};

/**
 * Reads the stream's header.
 * @return 0; -EINVAL no stream of ours; -ENOTSUP a format from the future
 */
int section_stream_begin(struct cursor *cursor, struct error *error);

/**
 * Reads the head of the next section, up to where its "fields" map begins; or the end of the
 * stream, where nothing may follow.
 * @param count how many sections there were so far: the end must agree
 * @return 1 a section; 0 the end; -EINVAL malformed; -ENOTSUP a key that must be understood
 */
int section_next(struct cursor *cursor, uint64_t count, struct section *section,
                 struct error *error);
