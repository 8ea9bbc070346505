/* SPDX-License-Identifier: Apache-2.0
 *
 * Hardware page tables of an IOAS. Private to iommu/, for the iommufd back end.
 *
 * A hardware page table (hwpt) is the IOMMU's translation of an IOAS for the devices attached to
 * it. Attached to the IOAS, a device gets one that the kernel finds or makes ("auto domain"), of
 * which nobody outside the kernel knows. One that is allocated has an id, can be asked which pages
 * were written through it where the IOMMU can tell, and lives until it is destroyed: after the last
 * device has left it, before its IOAS.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "iommu/ops.h"

/**
 * Attaches a device, which has been bound, as it wishes; records a new page table in the facts.
 * @param device devid in, hwpt out: 0 when it is attached to the IOAS
 */
int hwpt_attach(struct iommu *iommu, struct iommu_device *device, enum iommu_hwpt_choice choice,
                struct error *error);

/** Checks that the facts' page tables are there, without effect on them. */
int hwpt_check_all(const struct iommu *iommu, struct error *error);

/** @return whether a page table is in the facts */
bool hwpt_is_known(const struct iommu *iommu, uint32_t id);

/** Destroys all of them; the devices have been closed. */
void hwpt_destroy_all(struct iommu *iommu);
