/* SPDX-License-Identifier: Apache-2.0
 *
 * What a hand-over carries of a passed-through function: tables and checks. The state comes from
 * another process and is checked as hostile input; what only the device at hand can tell (how many
 * vectors it has) is checked by vfio_pci_apply_state().
 */
#include <errno.h>
#include <linux/pci_regs.h>

#include "base/util.h"
#include "vfio/function.h"

#define FIELD(member)           STATE_UINT(struct vfio_pci_state, member, 1)
#define RANGE(member, maximum_) STATE_UINT_RANGE(struct vfio_pci_state, member, 1, 0, maximum_, 0)

static const struct state_field state_fields[] = {
    FIELD(command),
    FIELD(interrupt_line),
    RANGE(power, VFIO_POWER_D3),
    RANGE(mapped, (1u << PCI_BARS_ALL) - 1),
    FIELD(bars.registers[0]),
    FIELD(bars.registers[1]),
    FIELD(bars.registers[2]),
    FIELD(bars.registers[3]),
    FIELD(bars.registers[4]),
    FIELD(bars.registers[5]),
    FIELD(bars.registers[6]),
    FIELD(msi.control),
    FIELD(msi.address),
    FIELD(msi.data),
    FIELD(msi.mask),
    FIELD(msix.control),
    STATE_PACKED(struct vfio_pci_state, msix.entries, msix.count, pci_msix_entry_fields, 1),
    RANGE(armed_index, VFIO_ARMED_INTX),
    STATE_BYTES(struct vfio_pci_state, armed, 1),
    STATE_BOOL(struct vfio_pci_state, unmask_by_access, 2),
    STATE_END,
};

/* Whether any vector from @p first on is armed. */
static bool any_armed(const struct vfio_pci_state *state, unsigned first)
{
    unsigned byte = first / 8;

    if (first % 8 != 0 && state->armed[byte++] >> (first % 8) != 0)
        return true;
    while (byte < sizeof(state->armed)) {
        if (state->armed[byte++] != 0)
            return true;
    }
    return false;
}

static int state_check(const void *object, struct error *error)
{
    const struct vfio_pci_state *state = object;
    int result = pci_msi_check(&state->msi, error);

    if (result == 0)
        result = pci_msix_check(&state->msix, error);
    if (result < 0)
        return result;
    if (state->armed_index == VFIO_ARMED_NONE && any_armed(state, 0))
        return error_set(error, EINVAL, "vectors are armed while interrupts are off");
    if (state->armed_index == VFIO_ARMED_INTX &&
        ((state->msi.control & PCI_MSI_FLAGS_ENABLE) ||
         (state->msix.control & PCI_MSIX_FLAGS_ENABLE) || any_armed(state, 0)))
        return error_set(error, EINVAL, "INTx is armed while MSI or MSI-X is on");
    if (state->armed_index == VFIO_ARMED_MSI &&
        (!(state->msi.control & PCI_MSI_FLAGS_ENABLE) || any_armed(state, PCI_MSI_VECTORS_MAX)))
        return error_set(error, EINVAL, "armed vectors do not agree with MSI");
    if (state->armed_index == VFIO_ARMED_MSIX &&
        (!(state->msix.control & PCI_MSIX_FLAGS_ENABLE) || any_armed(state, state->msix.count)))
        return error_set(error, EINVAL, "armed vectors do not agree with MSI-X");
    return 0;
}

const struct state_type vfio_pci_state_type = {
    .name = "vfio-pci",
    .version = 3,
    .min_version = 1,
    .min_reader = 3, /* msix.entries became a byte string */
    .size = sizeof(struct vfio_pci_state),
    .fields = state_fields,
    .check = state_check,
};

static const struct state_field facts_fields[] = {
    STATE_UINT(struct vfio_pci_facts, devid, 1),
    STATE_UINT(struct vfio_pci_facts, group, 2),
    STATE_UINT(struct vfio_pci_facts, hwpt, 3),
    STATE_UINT_RANGE(struct vfio_pci_facts, vector_count, 1, 0, PCI_MSIX_VECTORS_MAX, 0),
    STATE_UINT_RANGE(struct vfio_pci_facts, rom_size, 4, 0, VFIO_ROM_UNKNOWN, VFIO_ROM_UNKNOWN),
    STATE_END,
};

const struct state_type vfio_pci_facts_type = {
    .name = "vfio-pci-facts",
    .version = 4,
    .min_version = 1,
    .size = sizeof(struct vfio_pci_facts),
    .fields = facts_fields,
};
