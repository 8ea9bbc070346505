/* SPDX-License-Identifier: Apache-2.0
 *
 * Limits on locked memory, as far as one process can know them. Private to iommu/.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

/** @return whether this process may lock memory without limit: the kernel's own test when it pins
 * pages. Needs no /proc, so it works in any container. */
bool may_lock_memory(void);

/**
 * Compares what taking over mappings needs with RLIMIT_MEMLOCK. What else is locked is not known.
 * @param needed bytes
 * @return 0; -ENOMEM with an error that says what to raise
 */
int check_locked_limit(uint64_t needed, struct error *error);
