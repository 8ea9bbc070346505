/* SPDX-License-Identifier: Apache-2.0
 *
 * The lists of system calls by role, as tables. Made into filters by sandbox.c, gone through by
 * tests/unit/test_sandbox.c. Constant.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/sandbox.h"

/** A system call that is let through if (argument & mask) == value. Arguments are compared in 32
 * bits: all that are compared here are ints to the kernel. */
struct sandbox_rule {
    int call;          /**< SCMP_SYS(name) */
    unsigned argument; /**< which, from 0 */
    uint32_t mask;     /**< 0: any arguments */
    uint32_t value;
};

/** Rules that belong together. */
struct sandbox_group {
    const struct sandbox_rule *rules;
    size_t count;
};

#define SANDBOX_GROUPS_MAX 8

/** What a role may call: groups up to the first without rules. */
struct sandbox_list {
    struct sandbox_group groups[SANDBOX_GROUPS_MAX];
};

extern const struct sandbox_list sandbox_lists[SANDBOX_ROLES];

/** What ends the process, whichever thread calls it: nothing but a program that was taken over
 * does. */
extern const int sandbox_deadly[];
extern const size_t sandbox_deadly_count;
