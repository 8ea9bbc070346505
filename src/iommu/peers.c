/* SPDX-License-Identifier: Apache-2.0
 *
 * Peer-to-peer: the memory of passed-through devices in the address spaces of the guest's other
 * devices, at its guest-physical address, so that one device can do DMA into another. Called by
 * vfio/ when the guest maps a BAR or takes it away, and in a hand-over; the machine's lock is held.
 *
 * What the guest has mapped ("wanted") is known in this process only: by descriptor, and by the
 * address at which this process has it. What the kernel has mapped is the state that a hand-over
 * carries. As long as the set is live, the second follows the first at once.
 *
 * Across a hand-over. The kernel keeps these mappings as it keeps those of memory, and DMA goes on.
 * But unlike memory, the guest may map, move and unmap a BAR at any moment while it runs, so that
 * what was written down in describe may be wrong at the pause. Therefore:
 *
 *  - The outgoing process, which runs the guest, makes all changes up to the pause, before and
 * after the ownership of memory has moved: neither back end minds who makes or removes a mapping.
 *  - The incoming process learns in the switch, when nothing can change any more, what the kernel
 *    has: exact to the byte, and which address spaces have it. Loading makes its devices map their
 *    BARs (kvm slots, wanted), but the set is not live and the kernel is not told anything: neither
 *    in the rehearsal, when the guest runs elsewhere, nor in the switch.
 *  - From the go on its set is live: what the guest changes now is changed here.
 *  - In a legacy container, a mapping remembers an address, which is the former process's up to
 *    now. Nothing needs it: the translation was made when the BAR was mapped, and BARs are neither
 *    pinned nor accounted. So it is not moved before the go, where each change might have to be
 *    undone, and races with the guest, but after it (iommu_set_settle_peers()): given up and set
 *    again for every mapping, by the one process that still makes changes.
 *  - Then also what is wanted but not mapped is tried: the former process may have been a version
 *    or on terms that did not map it.
 *
 * If the hand-over fails before the go, there is nothing to undo.
 *
 * Who pays. IOMMU_IOAS_CHANGE_PROCESS, which moves the accounting of pinned memory, is refused by
 * the kernel for a whole context while any dma-buf is mapped in it (iommufd.c says what follows).
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/log.h"
#include "base/trace.h"
#include "base/util.h"
#include "iommu/ops.h"

static const struct state_field mapping_fields[] = {
    STATE_UINT(struct iommu_peer_mapping, iova, 1),
    STATE_UINT(struct iommu_peer_mapping, size, 1),
    STATE_UINT(struct iommu_peer_mapping, spaces, 1),
    STATE_END,
};

static const struct state_field state_fields[] = {
    STATE_ARRAY(struct iommu_peers_state, mappings, count, mapping_fields, 1),
    STATE_END,
};

static int state_check(const void *object, struct error *error)
{
    const struct iommu_peers_state *state = object;

    for (uint32_t i = 0; i < state->count; i++) {
        const struct iommu_peer_mapping *mapping = &state->mappings[i];

        if (mapping->size == 0 || !is_aligned(mapping->size, PAGE_SIZE) ||
            !is_aligned(mapping->iova, PAGE_SIZE) ||
            !range_fits(mapping->iova, mapping->size, UINT64_MAX))
            return error_set(error, EINVAL, "peer mapping at 0x%" PRIx64 " makes no sense",
                             mapping->iova);
        for (uint32_t k = 0; k < i; k++) {
            if (ranges_overlap(mapping->iova, mapping->size, state->mappings[k].iova,
                               state->mappings[k].size))
                return error_set(error, EINVAL, "peer mapping at 0x%" PRIx64 " overlaps another",
                                 mapping->iova);
        }
    }
    return 0;
}

const struct state_type iommu_peers_state_type = {
    .name = "iommu-peers",
    .version = 1,
    .min_version = 1,
    .size = sizeof(struct iommu_peers_state),
    .fields = state_fields,
    .check = state_check,
};

/* --- what the kernel has --------------------------------------------------------------------- */

static struct iommu_peer_mapping *find_mapping(struct iommu_set *set, uint64_t iova, uint64_t size)
{
    for (uint32_t i = 0; i < set->peers.count; i++) {
        struct iommu_peer_mapping *mapping = &set->peers.mappings[i];

        if (mapping->iova == iova && mapping->size == size)
            return mapping;
    }
    return NULL;
}

static bool is_in(const struct iommu_peer_mapping *mapping, unsigned space)
{
    return mapping != NULL && mapping->spaces >> space & 1;
}

/* Mappings count per context. */
static unsigned *peer_count(struct iommu *space)
{
    return space->parent != NULL ? &space->parent->peer_count : &space->peer_count;
}

static void record(struct iommu_set *set, const struct iommu_peer *peer, unsigned space)
{
    struct iommu_peer_mapping *mapping = find_mapping(set, peer->iova, peer->size);

    if (mapping == NULL) {
        assert(set->peers.count < IOMMU_PEERS_MAX);
        mapping = &set->peers.mappings[set->peers.count++];
        *mapping = (struct iommu_peer_mapping){.iova = peer->iova, .size = peer->size};
    }
    mapping->spaces |= UINT64_C(1) << space;
    ++*peer_count(set->spaces[space]);
}

/* One warning for a set: what fails for one stretch fails for most. */
static void warn(struct iommu_set *set, unsigned space, const char *what, struct error *error)
{
    iommu_name_error(set->spaces[space], error);
    if (!set->warned)
        log_warning("%s%s", what, error->message);
    set->warned = true;
}

/* The list can be full only of what a state claims is mapped and nobody here wants. That goes when
 * the mappings are settled, and the rest is tried again then. */
static bool has_room(struct iommu_set *set, const struct iommu_peer *peer)
{
    return set->peers.count < IOMMU_PEERS_MAX || find_mapping(set, peer->iova, peer->size) != NULL;
}

static void map_in(struct iommu_set *set, const struct iommu_peer *peer, unsigned space)
{
    struct iommu *iommu = set->spaces[space];
    struct error error;
    int result;

    if (!has_room(set, peer))
        return;
    result = iommu->ops->map_peer(iommu, peer, &error);
    trace(iommu_map_peer, iommu->facts.id, peer->iova, peer->size, result);
    if (result == 0)
        record(set, peer, space);
    else
        warn(set, space, "devices cannot reach each other's memory: ", &error);
}

/* A device needs no way to its own memory. */
static bool has_peers(const struct iommu *space, const struct iommu_peer *peer)
{
    return space->device_count > (space->index == peer->space ? 1u : 0u);
}

static void unmap_everywhere(struct iommu_set *set, struct iommu_peer_mapping *mapping)
{
    for (unsigned i = 0; i < set->count; i++) {
        struct iommu *iommu = set->spaces[i];
        struct error error;
        int result;

        if (!is_in(mapping, i))
            continue;
        result = iommu->ops->unmap_peer(iommu, mapping, &error);
        trace(iommu_unmap_peer, iommu->facts.id, mapping->iova, mapping->size, result);
        if (result < 0)
            warn(set, i, "", &error);
        --*peer_count(set->spaces[i]);
    }
    *mapping = set->peers.mappings[--set->peers.count];
}

/* --- what the guest has ---------------------------------------------------------------------- */

static struct iommu_wanted *find_wanted(struct iommu_set *set, uint64_t iova, uint64_t size)
{
    for (unsigned i = 0; i < set->wanted_count; i++) {
        if (set->wanted[i].peer.iova == iova && set->wanted[i].peer.size == size)
            return &set->wanted[i];
    }
    return NULL;
}

void iommu_set_map_peer(struct iommu_set *set, const struct iommu_peer *peer)
{
    if (set->wanted_count == IOMMU_PEERS_MAX) {
        log_guest("more than %d stretches of devices' memory: devices cannot reach the last one",
                  IOMMU_PEERS_MAX);
        return;
    }
    set->wanted[set->wanted_count++] =
        (struct iommu_wanted){.peer = *peer, .foreign = set->live ? 0 : UINT64_MAX};
    for (unsigned i = 0; set->live && i < set->count; i++) {
        if (has_peers(set->spaces[i], peer))
            map_in(set, peer, i);
    }
}

void iommu_set_unmap_peer(struct iommu_set *set, uint64_t iova, uint64_t size)
{
    struct iommu_wanted *wanted = find_wanted(set, iova, size);
    struct iommu_peer_mapping *mapping = find_mapping(set, iova, size);

    if (wanted == NULL)
        return;
    *wanted = set->wanted[--set->wanted_count];
    if (set->live && mapping != NULL)
        unmap_everywhere(set, mapping);
}

/* --- hand-over ------------------------------------------------------------------------------- */

struct iommu_peers_state *iommu_set_peers_state(struct iommu_set *set)
{
    return &set->peers;
}

static bool overlaps_memory(const struct iommu_set *set, const struct iommu_peer_mapping *mapping)
{
    for (unsigned i = 0; i < set->memory.region_count; i++) {
        const struct iommu_mapping *memory = &set->memory.regions[i].mapping;

        if (ranges_overlap(mapping->iova, mapping->size, memory->iova, memory->size))
            return true;
    }
    return false;
}

int iommu_set_apply_peers(struct iommu_set *set, struct error *error)
{
    for (unsigned i = 0; i < set->count; i++)
        set->spaces[i]->peer_count = 0;
    for (uint32_t i = 0; i < set->peers.count; i++) {
        const struct iommu_peer_mapping *mapping = &set->peers.mappings[i];

        if (mapping->spaces >> set->count != 0 || overlaps_memory(set, mapping)) {
            set->peers.count = 0;
            return error_set(error, EINVAL,
                             "the state has a device's memory at 0x%" PRIx64
                             " in an address space where it cannot be",
                             mapping->iova);
        }
        for (unsigned k = 0; k < set->count; k++)
            *peer_count(set->spaces[k]) += is_in(mapping, k);
    }
    return 0;
}

static void settle(struct iommu_set *set, struct iommu_wanted *wanted, unsigned space)
{
    struct iommu *iommu = set->spaces[space];
    const struct iommu_peer *peer = &wanted->peer;
    struct error error;
    int result;

    if (!is_in(find_mapping(set, peer->iova, peer->size), space)) {
        if (has_peers(iommu, peer))
            map_in(set, peer, space);
        return;
    }
    if (!(wanted->foreign >> space & 1))
        return;
    result = iommu->ops->take_peer(iommu, peer, &error);
    trace(iommu_take_peer, iommu->facts.id, peer->iova, peer->size, result);
    if (result < 0)
        warn(set, space, "", &error);
}

/* What is mapped and not wanted here (with p2p=off, from a process that was of another mind) goes.
 */
void iommu_set_settle_peers(struct iommu_set *set)
{
    for (uint32_t i = set->peers.count; i-- > 0;) {
        struct iommu_peer_mapping *mapping = &set->peers.mappings[i];

        if (find_wanted(set, mapping->iova, mapping->size) == NULL)
            unmap_everywhere(set, mapping);
    }
    for (unsigned i = 0; i < set->wanted_count; i++) {
        for (unsigned k = 0; k < set->count; k++)
            settle(set, &set->wanted[i], k);
        set->wanted[i].foreign = 0;
    }
}
