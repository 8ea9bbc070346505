/* SPDX-License-Identifier: Apache-2.0
 *
 * MSI, see msi.h. Called by functions' configuration space with the machine's lock held.
 */
#include "pci/msi.h"

#include <assert.h>
#include <errno.h>
#include <linux/pci_regs.h>
#include <string.h>

#include "base/util.h"
#include "pci/registers.h"

#define CONTROL_WRITABLE (PCI_MSI_FLAGS_ENABLE | PCI_MSI_FLAGS_QSIZE)
#define CONTROL_FEATURES (PCI_MSI_FLAGS_QMASK | PCI_MSI_FLAGS_64BIT | PCI_MSI_FLAGS_MASKBIT)

void pci_msi_init(struct pci_msi *msi, struct pci_msi_state *state, uint16_t control,
                  const struct pci_vector_ops *ops, void *opaque)
{
    *msi = (struct pci_msi){.state = state, .ops = ops, .opaque = opaque};
    msi->features = control & CONTROL_FEATURES;
    if ((msi->features & PCI_MSI_FLAGS_QMASK) > (5 << 1)) /* 6 and 7 are reserved */
        msi->features = (uint16_t)((msi->features & ~PCI_MSI_FLAGS_QMASK) | (5 << 1));
    pci_msi_reset(msi);
}

void pci_msi_reset(struct pci_msi *msi)
{
    memset(msi->state, 0, sizeof(*msi->state));
}

static bool is_64bit(const struct pci_msi *msi)
{
    return msi->features & PCI_MSI_FLAGS_64BIT;
}

static bool has_masks(const struct pci_msi *msi)
{
    return msi->features & PCI_MSI_FLAGS_MASKBIT;
}

unsigned pci_msi_size(const struct pci_msi *msi)
{
    if (has_masks(msi))
        return is_64bit(msi) ? 24 : 20;
    return is_64bit(msi) ? 14 : 10;
}

unsigned pci_msi_capacity(const struct pci_msi *msi)
{
    return 1u << ((msi->features & PCI_MSI_FLAGS_QMASK) >> 1);
}

/* Vectors that a control value enables: asking for more than there are gets what there is. */
static unsigned enabled_count(const struct pci_msi *msi, uint16_t control)
{
    if (!(control & PCI_MSI_FLAGS_ENABLE))
        return 0;
    return MIN(1u << ((control & PCI_MSI_FLAGS_QSIZE) >> 4), pci_msi_capacity(msi));
}

unsigned pci_msi_count(const struct pci_msi *msi)
{
    return enabled_count(msi, msi->state->control);
}

static bool state_is_open(const struct pci_msi *msi, const struct pci_msi_state *state,
                          unsigned vector)
{
    if (vector >= enabled_count(msi, state->control))
        return false;
    return !has_masks(msi) || !(state->mask & (1u << vector));
}

bool pci_msi_is_open(const struct pci_msi *msi, unsigned vector)
{
    return state_is_open(msi, msi->state, vector);
}

static struct msi_message state_message(const struct pci_msi *msi,
                                        const struct pci_msi_state *state, unsigned vector)
{
    unsigned count = MAX(enabled_count(msi, state->control), 1u);

    /* the function puts the number of the vector into the low bits of the data */
    return (struct msi_message){
        .address = is_64bit(msi) ? state->address : (uint32_t)state->address,
        .data = (state->data & ~(count - 1)) | (vector & (count - 1)),
    };
}

struct msi_message pci_msi_message(const struct pci_msi *msi, unsigned vector)
{
    return state_message(msi, msi->state, vector);
}

static uint32_t pending_bits(const struct pci_msi *msi)
{
    uint32_t bits = 0;

    for (unsigned i = 0; i < pci_msi_count(msi); i++) {
        if (!pci_msi_is_open(msi, i) && msi->ops->pending(msi->opaque, i))
            bits |= 1u << i;
    }
    return bits;
}

/* Where the registers after the address are. */
static unsigned data_offset(const struct pci_msi *msi)
{
    return is_64bit(msi) ? PCI_MSI_DATA_64 : PCI_MSI_DATA_32;
}

static unsigned mask_offset(const struct pci_msi *msi)
{
    return is_64bit(msi) ? PCI_MSI_MASK_64 : PCI_MSI_MASK_32;
}

static uint32_t read_dword(const struct pci_msi *msi, unsigned offset)
{
    const struct pci_msi_state *state = msi->state;

    if (offset == 0)
        return (uint32_t)((state->control & CONTROL_WRITABLE) | msi->features) << 16;
    if (offset == PCI_MSI_ADDRESS_LO)
        return (uint32_t)state->address;
    if (is_64bit(msi) && offset == PCI_MSI_ADDRESS_HI)
        return (uint32_t)(state->address >> 32);
    if (offset == data_offset(msi))
        return state->data;
    if (has_masks(msi) && offset == mask_offset(msi))
        return state->mask;
    if (has_masks(msi) && offset == mask_offset(msi) + 4)
        return pending_bits(msi);
    return 0;
}

uint32_t pci_msi_read(const struct pci_msi *msi, unsigned offset, unsigned size)
{
    return register_part(read_dword(msi, align_down(offset, 4)), offset & 3, size);
}

/* What the guest sets of message control. As a number of messages, 6 and 7 are reserved. */
static uint16_t writable_control(uint16_t value)
{
    uint16_t messages = MIN(value & PCI_MSI_FLAGS_QSIZE, 5 << 4);

    return (uint16_t)((value & PCI_MSI_FLAGS_ENABLE) | messages);
}

static void write_dword(struct pci_msi *msi, unsigned offset, uint32_t value)
{
    struct pci_msi_state *state = msi->state;
    uint64_t vectors = UINT64_C(1) << pci_msi_capacity(msi);

    if (offset == 0)
        state->control = writable_control((uint16_t)(value >> 16));
    else if (offset == PCI_MSI_ADDRESS_LO)
        state->address = (state->address & ~UINT64_C(0xffffffff)) | (value & ~3u);
    else if (is_64bit(msi) && offset == PCI_MSI_ADDRESS_HI)
        state->address = (state->address & 0xffffffff) | ((uint64_t)value << 32);
    else if (offset == data_offset(msi))
        state->data = (uint16_t)value;
    else if (has_masks(msi) && offset == mask_offset(msi))
        state->mask = value & (uint32_t)(vectors - 1);
}

/* Tells the owner what has changed between two states: closed vectors first, then the switch
 * itself, then opened vectors and those that send something else now. */
static void announce(struct pci_msi *msi, const struct pci_msi_state *old)
{
    bool was_on = old->control & PCI_MSI_FLAGS_ENABLE;
    bool is_on = msi->state->control & PCI_MSI_FLAGS_ENABLE;
    unsigned capacity = pci_msi_capacity(msi);

    for (unsigned i = 0; i < capacity; i++) {
        if (state_is_open(msi, old, i) && !pci_msi_is_open(msi, i))
            msi->ops->mask(msi->opaque, i);
    }
    if (was_on != is_on)
        msi->ops->enable(msi->opaque, is_on);
    for (unsigned i = 0; i < capacity; i++) {
        struct msi_message before = state_message(msi, old, i);
        struct msi_message after = pci_msi_message(msi, i);

        if (pci_msi_is_open(msi, i) &&
            (!state_is_open(msi, old, i) || before.address != after.address ||
             before.data != after.data))
            msi->ops->unmask(msi->opaque, i, &after);
    }
}

void pci_msi_write(struct pci_msi *msi, unsigned offset, unsigned size, uint32_t value)
{
    struct pci_msi_state old = *msi->state;
    unsigned dword = (unsigned)align_down(offset, 4);

    write_dword(msi, dword, register_merge(read_dword(msi, dword), offset & 3, size, value));
    announce(msi, &old);
}

int pci_msi_check(const struct pci_msi_state *state, struct error *error)
{
    if (state->control & ~CONTROL_WRITABLE)
        return error_set(error, EINVAL, "MSI control 0x%x has bits that do not exist",
                         state->control);
    if ((state->control & PCI_MSI_FLAGS_QSIZE) >> 4 > 5)
        return error_set(error, EINVAL, "MSI control 0x%x enables too many messages",
                         state->control);
    if (state->address & 3)
        return error_set(error, EINVAL, "MSI address is not aligned");
    return 0;
}
