/* SPDX-License-Identifier: Apache-2.0
 *
 * See utf8.h.
 */
#include "base/utf8.h"

#include <stdint.h>
#include <string.h>

/* The bounds of the second byte are what keeps out overlong forms, surrogates and everything above
 * U+10FFFF. */
size_t utf8_length(const void *bytes, size_t left)
{
    const uint8_t *at = bytes;
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

void utf8_repair(char *text)
{
    size_t left = strlen(text);

    while (left > 0) {
        size_t length = utf8_length(text, left);

        if (length == 0) {
            *text = '?';
            length = 1;
        }
        text += length;
        left -= length;
    }
}
