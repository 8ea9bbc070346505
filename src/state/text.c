/* SPDX-License-Identifier: Apache-2.0
 *
 * See text.h. Called from any thread.
 */
#include "state/text.h"

#include <stdint.h>

#include "base/utf8.h"
#include "state/state.h"

bool state_name_valid(const void *bytes, size_t length)
{
    const uint8_t *at = bytes;

    if (length == 0 || length > STATE_NAME_MAX)
        return false;
    for (size_t i = 0; i < length; i++) {
        if (at[i] < 0x20 || at[i] > 0x7e)
            return false;
    }
    return true;
}

bool state_text_valid(const void *bytes, size_t length)
{
    const uint8_t *at = bytes;

    while (length > 0) {
        size_t step = utf8_length(at, length);

        if (step == 0)
            return false;
        at += step;
        length -= step;
    }
    return true;
}
