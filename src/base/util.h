/* SPDX-License-Identifier: Apache-2.0
 *
 * Small things that every folder needs: cleanup attributes, checked arithmetic, clocks.
 */
#pragma once

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))

#define container_of(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

#define MIN(a, b)                                                                                  \
    ({                                                                                             \
        __typeof__(a) min_a_ = (a);                                                                \
        __typeof__(b) min_b_ = (b);                                                                \
        min_a_ < min_b_ ? min_a_ : min_b_;                                                         \
    })
#define MAX(a, b)                                                                                  \
    ({                                                                                             \
        __typeof__(a) max_a_ = (a);                                                                \
        __typeof__(b) max_b_ = (b);                                                                \
        max_a_ > max_b_ ? max_a_ : max_b_;                                                         \
    })

#define KIB (UINT64_C(1) << 10)
#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

#define PAGE_SIZE UINT64_C(4096) /* x86-64 only */

/* Closes a descriptor unless it is negative. Keeps errno. */
static inline void close_fd(int fd)
{
    if (fd >= 0)
        close(fd);
}

static inline void cleanup_close_(const int *fd)
{
    close_fd(*fd);
}

static inline void cleanup_free_(void *pointer)
{
    free(*(void **)pointer);
}

/* Variables that clean up after themselves when they go out of scope. */
#define CLEANUP_CLOSE __attribute__((cleanup(cleanup_close_)))
#define CLEANUP_FREE  __attribute__((cleanup(cleanup_free_)))

/* Takes the value out of a cleanup variable, so that the caller keeps it. */
#define STEAL_FD(fd)                                                                               \
    ({                                                                                             \
        int stolen_fd_ = (fd);                                                                     \
        (fd) = -1;                                                                                 \
        stolen_fd_;                                                                                \
    })
#define STEAL_POINTER(pointer)                                                                     \
    ({                                                                                             \
        __typeof__(pointer) stolen_ = (pointer);                                                   \
        (pointer) = NULL;                                                                          \
        stolen_;                                                                                   \
    })

/* Rounds to a multiple of a power of two. */
static inline uint64_t align_down(uint64_t value, uint64_t to)
{
    return value & ~(to - 1);
}

static inline uint64_t align_up(uint64_t value, uint64_t to)
{
    return align_down(value + to - 1, to);
}

static inline bool is_aligned(uint64_t value, uint64_t to)
{
    return (value & (to - 1)) == 0;
}

static inline bool is_power_of_two(uint64_t value)
{
    return value != 0 && (value & (value - 1)) == 0;
}

/* True when [start, start + length) lies within [0, limit), without overflow. */
static inline bool range_fits(uint64_t start, uint64_t length, uint64_t limit)
{
    return start <= limit && length <= limit - start;
}

/* True when the two ranges share a byte. Neither may wrap around. */
static inline bool ranges_overlap(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
    return a < b + b_size && b < a + a_size;
}

/* CLOCK_MONOTONIC in nanoseconds: the clock of every time stamp of a hand-over. */
static inline uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* CLOCK_BOOTTIME in nanoseconds: goes on while the host sleeps. */
static inline uint64_t clock_boottime_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Memory that a monitor cannot run without: fails by assertion, so callers need no error path.
 * For sizes that the operator, the guest or a peer chooses, use calloc and report the failure. */
static inline void *xcalloc(size_t count, size_t size)
{
    void *pointer = calloc(count, size);

    assert(pointer != NULL);
    return pointer;
}
