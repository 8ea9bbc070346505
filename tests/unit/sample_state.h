/* SPDX-License-Identifier: Apache-2.0
 *
 * A type of state that has every kind of field, in two versions, for tests. Used by test_state.c,
 * the golden streams and the fuzzer. Include it in one file of a program only.
 */
#pragma once

#include <errno.h>
#include <string.h>

#include "state/state.h"

struct sample_slot {
    uint8_t level;
    uint32_t key_length;
    uint8_t key[6];
};

struct sample_queue {
    uint16_t size;
    bool ready;
    uint8_t ring[12];
    uint32_t slot_count;
    struct sample_slot slots[3];
};

struct sample {
    bool on;
    uint8_t small;
    uint16_t ranged;
    uint32_t wide;
    uint64_t big;
    char name[16];
    uint8_t regs[24];
    uint32_t blob_length;
    uint8_t blob[32];
    uint32_t queue_count;
    struct sample_queue queues[4];
    /* since version 2 */
    bool turbo;
    uint32_t limit;
    char label[8];
    uint32_t extra_length;
    uint8_t extra[4];
};

#define SAMPLE_LIMIT_FALLBACK 64

static const struct state_field sample_slot_fields[] = {
    STATE_UINT(struct sample_slot, level, 1),
    STATE_BLOB(struct sample_slot, key, key_length, 1),
    STATE_END,
};

static const struct state_field sample_queue_fields[] = {
    STATE_UINT_RANGE(struct sample_queue, size, 1, 1, 256, 1),
    STATE_BOOL(struct sample_queue, ready, 1),
    STATE_BYTES(struct sample_queue, ring, 1),
    STATE_ARRAY(struct sample_queue, slots, slot_count, sample_slot_fields, 1),
    STATE_END,
};

#define SAMPLE_FIELDS_1                                                                            \
    STATE_BOOL(struct sample, on, 1), STATE_UINT(struct sample, small, 1),                         \
        STATE_UINT_RANGE(struct sample, ranged, 1, 1, 1000, 7),                                    \
        STATE_UINT(struct sample, wide, 1), STATE_UINT(struct sample, big, 1),                     \
        STATE_STRING(struct sample, name, 1), STATE_BYTES(struct sample, regs, 1),                 \
        STATE_BLOB(struct sample, blob, blob_length, 1),                                           \
        STATE_ARRAY(struct sample, queues, queue_count, sample_queue_fields, 1)

static const struct state_field sample_fields_1[] = {
    SAMPLE_FIELDS_1,
    STATE_END,
};

static const struct state_field sample_fields_2[] = {
    SAMPLE_FIELDS_1,
    STATE_BOOL(struct sample, turbo, 2),
    STATE_UINT_RANGE(struct sample, limit, 2, 0, 4096, SAMPLE_LIMIT_FALLBACK),
    STATE_STRING(struct sample, label, 2),
    STATE_BLOB(struct sample, extra, extra_length, 2),
    STATE_END,
};

static inline int sample_check(const void *object, struct error *error)
{
    const struct sample *sample = object;

    if (sample->small == 13)
        return error_set(error, EINVAL, "13 is bad luck");
    return 0;
}

static const struct state_type sample_type_1 __attribute__((unused)) = {
    .name = "sample",
    .version = 1,
    .min_version = 1,
    .size = sizeof(struct sample),
    .fields = sample_fields_1,
    .check = sample_check,
};

static const struct state_type sample_type_2 __attribute__((unused)) = {
    .name = "sample",
    .version = 2,
    .min_version = 1,
    .size = sizeof(struct sample),
    .fields = sample_fields_2,
    .check = sample_check,
};

/* Every member at a value of its own. The padding is zero, so that memcmp() can compare. */
static inline void sample_fill(struct sample *sample)
{
    memset(sample, 0, sizeof(*sample));
    sample->on = true;
    sample->small = 200;
    sample->ranged = 1000;
    sample->wide = 0x12345678;
    sample->big = UINT64_MAX;
    strcpy(sample->name, "fifteen-b\xc3\xbctes!");
    for (uint8_t i = 0; i < sizeof(sample->regs); i++)
        sample->regs[i] = (uint8_t)(0xf0 + i);
    sample->blob_length = 5;
    memcpy(sample->blob, "\0\1\2\3\4", 5);
    sample->queue_count = 3;
    for (uint8_t i = 0; i < 3; i++) {
        sample->queues[i].size = (uint16_t)(254 + i);
        sample->queues[i].ready = i == 1;
        memset(sample->queues[i].ring, 0x30 + i, sizeof(sample->queues[i].ring));
        sample->queues[i].slot_count = i;
        for (uint8_t k = 0; k < i; k++) {
            sample->queues[i].slots[k].level = (uint8_t)(10 * i + k);
            sample->queues[i].slots[k].key_length = 6;
            memset(sample->queues[i].slots[k].key, k, 6);
        }
    }
    sample->turbo = true;
    sample->limit = 4096;
    strcpy(sample->label, "v2");
    sample->extra_length = 4;
    memset(sample->extra, 0xee, 4);
}

/* What is left of a sample when a reader or a writer of version 1 was in between. */
static inline void sample_forget_2(struct sample *sample, uint32_t limit)
{
    sample->turbo = false;
    sample->limit = limit;
    memset(sample->label, 0, sizeof(sample->label));
    sample->extra_length = 0;
    memset(sample->extra, 0, sizeof(sample->extra));
}
