/* SPDX-License-Identifier: Apache-2.0
 *
 * The files of golden streams, and of the values that each holds, as text beside it: see README.md.
 * Failures are printed.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/util.h"
#include "state/state.h"

#define GOLDEN_ROOM      MIB /* of a stream */
#define GOLDEN_PATH_SIZE 4096

struct golden_buffer {
    uint8_t *bytes; /**< GOLDEN_ROOM */
    size_t length;
};

/** Reads a stream. @return 0 or -errno */
int golden_read(const char *path, struct golden_buffer *buffer, struct error *error);

/** Writes a stream to a file that must not exist yet. @return failures: 0 or 1 */
int golden_write(const char *path, const struct golden_buffer *buffer);

/**
 * Compares an object with the values that are recorded for the stream it comes from, in the file
 * that has ".values" where the stream's name has its last part.
 * @param stream path of the stream
 * @param fields what the object is made of
 * @param write  whether values without a record get one; what is recorded never changes
 * @return failures: 0 or 1
 */
int golden_check_values(const char *stream, const struct state_field *fields, const void *object,
                        bool write);
