/* SPDX-License-Identifier: Apache-2.0
 *
 * Which text may stand in a stream. Used by both writer and reader, so that they agree.
 * Private to state/. Pure functions.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/** @return whether it can be an id, a type name or a key: printable ASCII, neither empty nor long
 */
bool state_name_valid(const void *bytes, size_t length);

/** @return whether it is UTF-8 as RFC 3629 has it (no surrogates, nothing overlong) without NUL */
bool state_text_valid(const void *bytes, size_t length);
