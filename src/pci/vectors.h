/* SPDX-License-Identifier: Apache-2.0
 *
 * What MSI and MSI-X ask of the device whose interrupts they are. Called by msi.c and msix.c with
 * the machine's lock held, from a guest's access to a register.
 */
#pragma once

#include <stdbool.h>

#include "kvm/irq.h"

struct pci_vector_ops {
    /** The guest has switched the capability on or off. On: before any unmask. Off: after all
     * vectors have been masked. */
    void (*enable)(void *opaque, bool enabled);
    /** The vector may be delivered from now on with this message; again when the message changes
     * while it is unmasked. A signal that is pending is delivered at once. */
    void (*unmask)(void *opaque, unsigned vector, const struct msi_message *message);
    /** The vector must not be delivered; signals stay pending. */
    void (*mask)(void *opaque, unsigned vector);
    /** @return whether a masked vector has been signalled */
    bool (*pending)(void *opaque, unsigned vector);
};
