/* SPDX-License-Identifier: Apache-2.0
 *
 * Filters of system calls (seccomp): what a thread may ask of the kernel, by its role. What they
 * are for, and what becomes of a call that is not on the list: docs/threat-model.md. The lists:
 * sandbox_rules.c.
 *
 * Filters are inherited by threads and can only be narrowed: the list of the main thread holds
 * whatever any role needs. All are compiled when the process starts; what a thread does when it
 * begins is one system call.
 */
#pragma once

#include <stdbool.h>

#include "base/error.h"

/** As in docs/architecture.md, "Threads". */
enum sandbox_role {
    SANDBOX_MAIN,
    SANDBOX_VCPU,
    SANDBOX_IRQ_PROXY,
    SANDBOX_HAND_OVER,
    SANDBOX_ROLES,
};

/** @return false in a build with sanitizers: they make calls of their own that are on no list */
bool sandbox_is_built_in(void);

/**
 * Compiles the filters, installs that of the main thread, and gives up new privileges for good.
 * Called by the main thread before there is another one, once at most. Where it is not built in it
 * does nothing: "baton version" says which builds are such.
 * @return 0; -errno when the kernel has no filters or libseccomp refuses a list
 */
int sandbox_start(struct error *error);

/**
 * Narrows the calling thread to its role, for good. First thing in a thread; does nothing when
 * sandbox_start() was not called. If the kernel refuses, which only a lack of memory makes it do,
 * the thread keeps the main thread's filter, and a line in the log says so.
 */
void sandbox_enter(enum sandbox_role role);
