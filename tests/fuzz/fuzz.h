/* SPDX-License-Identifier: Apache-2.0
 *
 * The interface between a fuzz target (fuzz_NAME.c) and what runs it: libFuzzer or replay_main.c.
 * A target aborts when something that must hold does not.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/** Feeds one input to the code under test. @return 0 */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
