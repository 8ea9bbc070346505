/* SPDX-License-Identifier: Apache-2.0
 *
 * UTF-8 as RFC 3629 has it: no surrogates, nothing overlong. Pure functions, any thread.
 */
#pragma once

#include <stddef.h>

/** @return how many of @p left bytes, 1 at least, the first character takes; 0 when it is none, or
 *          NUL */
size_t utf8_length(const void *bytes, size_t left);

/** Puts a question mark in the place of every byte that is no part of a character: where a text was
 * cut, or never was UTF-8. */
void utf8_repair(char *text);
