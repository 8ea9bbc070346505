/* SPDX-License-Identifier: Apache-2.0
 *
 * See text.h. Called from any thread.
 */
#include "state/text.h"

#include <stdint.h>

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

/* How many bytes the character at the start takes; 0 when it is none. The bounds of the second
 * byte are what keeps out overlong forms, surrogates and everything above U+10FFFF. */
static size_t character_length(const uint8_t *at, size_t left)
{
    uint8_t low = 0x80, high = 0xbf;
    size_t length;

    if (at[0] < 0x80)
        return at[0] != 0;
    if (at[0] < 0xc2 || at[0] > 0xf4)
        return 0;
    length = at[0] < 0xe0 ? 2 : at[0] < 0xf0 ? 3 : 4;
    if (length > left)
        return 0;
    if (at[0] == 0xe0)
        low = 0xa0;
    if (at[0] == 0xed)
        high = 0x9f;
    if (at[0] == 0xf0)
        low = 0x90;
    if (at[0] == 0xf4)
        high = 0x8f;
    if (at[1] < low || at[1] > high)
        return 0;
    for (size_t i = 2; i < length; i++) {
        if ((at[i] & 0xc0) != 0x80)
            return 0;
    }
    return length;
}

bool state_text_valid(const void *bytes, size_t length)
{
    const uint8_t *at = bytes;

    while (length > 0) {
        size_t step = character_length(at, length);

        if (step == 0)
            return false;
        at += step;
        length -= step;
    }
    return true;
}
