/* SPDX-License-Identifier: Apache-2.0
 *
 * The interface between a fuzz target (fuzz_NAME.c) and what runs it: libFuzzer or replay_main.c.
 * A target aborts when something that must hold does not.
 */
#pragma once

#include <poll.h>
#include <stddef.h>
#include <stdint.h>

/** Feeds one input to the code under test. @return 0 */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FUZZ_DESCRIPTORS_MAX 256 /* more than any target ever has */

/** @return how many descriptors are open. */
static inline unsigned fuzz_count_descriptors(void)
{
    struct pollfd files[FUZZ_DESCRIPTORS_MAX];
    unsigned count = 0;

    for (int i = 0; i < FUZZ_DESCRIPTORS_MAX; i++)
        files[i] = (struct pollfd){.fd = i};
    if (poll(files, FUZZ_DESCRIPTORS_MAX, 0) < 0)
        return 0; /* the limit is below that number: nothing to compare */
    for (int i = 0; i < FUZZ_DESCRIPTORS_MAX; i++)
        count += !(files[i].revents & POLLNVAL);
    return count;
}
