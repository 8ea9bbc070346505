/* SPDX-License-Identifier: Apache-2.0
 *
 * The page that inject.c, in a baton under test, and tests/system/faults.py share: which system
 * call is to go wrong, and which ones there were. faults.py has the same layout in the words of
 * Python's struct.
 */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#define FAULT_NAME_SIZE 16
#define FAULT_LOG_SIZE  8192

/** A system call by its place: the n-th of its kind that a side makes in a stage. */
struct fault_call {
    char side[FAULT_NAME_SIZE];  /**< "outgoing", "incoming" */
    char stage[FAULT_NAME_SIZE]; /**< of the table in src/update/stages.c */
    char call[FAULT_NAME_SIZE];  /**< the C library's function */
    uint64_t request;            /**< ioctl: which; other calls: 0 */
    uint32_t number;             /**< of those that are the same in all of the above, from 1 */
    uint32_t pid;
};

enum fault_action {
    FAULT_NONE = 0,
    FAULT_ERROR = 1, /**< the call is not made and returns an error */
    FAULT_HOLD = 2,  /**< the call is not made as long as the action is this, and until reached is 0
                        again: time for whoever sends a signal, or looks */
};

struct fault_page {
    _Atomic uint32_t action; /**< enum fault_action. Set last, when the rest of the plan is there */
    int32_t error;           /**< errno for FAULT_ERROR */
    struct fault_call plan;
    _Atomic uint32_t
        reached; /**< how often the planned call was made: then once, ever after none is harmed */
    _Atomic uint32_t
        logged; /**< calls that were made in stages, also those that the log has no room for */
    struct fault_call log[FAULT_LOG_SIZE];
};
