/* SPDX-License-Identifier: Apache-2.0
 *
 * Unit tests of iommu/: which address spaces get a device's memory, and what a hand-over does with
 * it. The back ends here only write down what they are asked to do.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* cmocka needs those above */
#include <cmocka.h>

#include "base/util.h"
#include "iommu/ops.h"

#define SPACES 3

static char steps[8192];
static int refuse; /* what mapping fails with */

static void step(const char *what, const struct iommu *iommu, uint64_t iova, uint64_t size)
{
    size_t used = strlen(steps);

    snprintf(steps + used, sizeof(steps) - used, " %s%u:%x+%x", what, iommu->index, (unsigned)iova,
             (unsigned)size);
}

static int map_peer(struct iommu *iommu, const struct iommu_peer *peer, struct error *error)
{
    step("map", iommu, peer->iova, peer->size);
    return refuse ? error_set(error, refuse, "refused") : 0;
}

static int take_peer(struct iommu *iommu, const struct iommu_peer *peer, struct error *error)
{
    (void)error;
    step("take", iommu, peer->iova, peer->size);
    return 0;
}

static int unmap_peer(struct iommu *iommu, const struct iommu_peer_mapping *mapping,
                      struct error *error)
{
    (void)error;
    step("unmap", iommu, mapping->iova, mapping->size);
    return 0;
}

static void destroy(struct iommu *iommu, bool leave)
{
    (void)iommu;
    (void)leave;
}

static const struct iommu_ops ops = {
    .map_peer = map_peer, .take_peer = take_peer, .unmap_peer = unmap_peer, .destroy = destroy};

/* Three address spaces: two devices in the first, one in the second, none in the third. */
static struct iommu_set *make_set(bool live)
{
    static const unsigned devices[SPACES] = {2, 1, 0};
    static const struct iommu_memory memory = {.region_count = 1,
                                               .regions = {{.mapping = {.size = 0x100000}}}};
    struct iommu_set *set;

    iommu_set_create(&set, &memory);
    for (unsigned i = 0; i < SPACES; i++) {
        set->spaces[i] = iommu_new(IOMMU_BACKEND_TYPE1, &set->memory, i);
        set->spaces[i]->ops = &ops;
        set->spaces[i]->device_count = devices[i];
    }
    set->count = SPACES;
    iommu_set_set_live(set, live);
    steps[0] = '\0';
    refuse = 0;
    return set;
}

static struct iommu_peer peer_at(uint64_t iova, unsigned space)
{
    return (struct iommu_peer){.iova = iova, .size = 0x1000, .space = space};
}

static void expect(const char *expected)
{
    assert_string_equal(steps, expected);
    steps[0] = '\0';
}

static void own_space_needs_another_device(void **state)
{
    struct iommu_set *set = make_set(true);
    struct iommu_peer first = peer_at(0xc0000000, 0), second = peer_at(0xc0001000, 1);

    (void)state;
    iommu_set_map_peer(set, &first);
    expect(" map0:c0000000+1000 map1:c0000000+1000");
    iommu_set_map_peer(set, &second);
    expect(" map0:c0001000+1000");
    assert_int_equal(set->spaces[0]->peer_count, 2);
    iommu_set_unmap_peer(set, 0xc0000000, 0x1000);
    expect(" unmap0:c0000000+1000 unmap1:c0000000+1000");
    iommu_set_unmap_peer(set, 0xc0000000, 0x1000); /* is no longer there */
    expect("");
    assert_int_equal(set->spaces[0]->peer_count, 1);
    assert_int_equal(set->spaces[1]->peer_count, 0);
    iommu_set_destroy(set);
}

static void what_fails_is_not_recorded(void **state)
{
    struct iommu_set *set = make_set(true);
    struct iommu_peer peer = peer_at(0xc0000000, 1);

    (void)state;
    refuse = EOPNOTSUPP;
    iommu_set_map_peer(set, &peer);
    expect(" map0:c0000000+1000");
    assert_int_equal(iommu_set_peers_state(set)->count, 0);
    iommu_set_unmap_peer(set, peer.iova, peer.size);
    expect("");
    iommu_set_destroy(set);
}

/* Gives one set's state to another, as a hand-over does. */
static void load(struct iommu_set *to, struct iommu_set *from)
{
    struct error error = {0};

    assert_int_equal(iommu_peers_state_type.check(iommu_set_peers_state(from), &error), 0);
    *iommu_set_peers_state(to) = *iommu_set_peers_state(from);
    assert_int_equal(iommu_set_apply_peers(to, &error), 0);
}

/* The guest moves a BAR between the rehearsal and the pause, to where another one was. */
static void hand_over_changes_nothing_before_the_go(void **state)
{
    struct iommu_set *old = make_set(true), *new = make_set(false);
    struct iommu_peer a = peer_at(0xc0000000, 0), b = peer_at(0xc0001000, 1);

    (void)state;
    iommu_set_map_peer(old, &a);
    iommu_set_map_peer(old, &b);
    steps[0] = '\0';
    load(new, old);
    iommu_set_map_peer(new, &a);
    iommu_set_map_peer(new, &b);
    expect("");

    iommu_set_unmap_peer(old, a.iova, a.size);
    iommu_set_unmap_peer(old, b.iova, b.size);
    a.iova = 0xc0001000;
    iommu_set_map_peer(old, &a);
    steps[0] = '\0';
    load(new, old);
    iommu_set_unmap_peer(new, 0xc0000000, 0x1000);
    iommu_set_unmap_peer(new, 0xc0001000, 0x1000);
    iommu_set_map_peer(new, &a);
    expect("");

    iommu_set_set_live(old, false);
    iommu_set_set_live(new, true);
    iommu_set_unmap_peer(old, a.iova, a.size); /* taken apart */
    expect("");
    iommu_set_settle_peers(new);
    expect(" take0:c0001000+1000 take1:c0001000+1000");
    iommu_set_settle_peers(new);
    expect("");
    iommu_set_unmap_peer(new, a.iova, a.size);
    expect(" unmap0:c0001000+1000 unmap1:c0001000+1000");
    iommu_set_destroy(old);
    iommu_set_destroy(new);
}

/* From the go on the guest may do anything, before the address spaces are settled. */
static void moved_before_it_is_settled(void **state)
{
    struct iommu_set *old = make_set(true), *new = make_set(false);
    struct iommu_peer a = peer_at(0xc0000000, 1), b = peer_at(0xc0002000, 1);

    (void)state;
    iommu_set_map_peer(old, &a);
    load(new, old);
    iommu_set_map_peer(new, &a);
    iommu_set_set_live(new, true);
    steps[0] = '\0';
    iommu_set_unmap_peer(new, a.iova, a.size);
    iommu_set_map_peer(new, &b);
    expect(" unmap0:c0000000+1000 map0:c0002000+1000");
    iommu_set_settle_peers(new);
    expect("");
    iommu_set_destroy(old);
    iommu_set_destroy(new);
}

static void settling_maps_what_is_missing(void **state)
{
    struct iommu_set *old = make_set(true), *new = make_set(false);
    struct iommu_peer a = peer_at(0xc0000000, 1), b = peer_at(0xc0002000, 1);

    (void)state;
    iommu_set_map_peer(old, &b);
    load(new, old);
    iommu_set_map_peer(new, &a);
    iommu_set_set_live(new, true);
    steps[0] = '\0';
    iommu_set_settle_peers(new);
    expect(" unmap0:c0002000+1000 map0:c0000000+1000");
    iommu_set_destroy(old);
    iommu_set_destroy(new);
}

/* A state that claims as many mappings as there can be, none of them the guest's: what that maps
 * before they are settled waits for it. */
static void full_of_what_nobody_wants(void **state)
{
    struct iommu_set *set = make_set(false);
    struct iommu_peers_state *peers = iommu_set_peers_state(set);
    struct iommu_peer peer = peer_at(0xc0000000, 0);
    struct error error = {0};

    (void)state;
    for (unsigned i = 0; i < IOMMU_PEERS_MAX; i++)
        peers->mappings[i] = (struct iommu_peer_mapping){
            .iova = 0xd0000000 + i * 0x1000, .size = 0x1000, .spaces = 1};
    peers->count = IOMMU_PEERS_MAX;
    assert_int_equal(iommu_set_apply_peers(set, &error), 0);
    iommu_set_set_live(set, true);
    iommu_set_map_peer(set, &peer);
    expect("");
    iommu_set_settle_peers(set);
    assert_non_null(strstr(steps, " map0:c0000000+1000 map1:c0000000+1000"));
    assert_int_equal(peers->count, 1);
    iommu_set_destroy(set);
}

static void refuse_state(const struct iommu_peer_mapping *mapping, uint32_t count)
{
    struct iommu_peers_state hostile = {.count = count};
    struct iommu_set *set = make_set(false);
    struct error error = {0};
    int result;

    memcpy(hostile.mappings, mapping, count * sizeof(*mapping));
    result = iommu_peers_state_type.check(&hostile, &error);
    if (result == 0) {
        *iommu_set_peers_state(set) = hostile;
        result = iommu_set_apply_peers(set, &error);
    }
    assert_int_equal(result, -EINVAL);
    iommu_set_set_live(set, true);
    iommu_set_settle_peers(set);
    expect("");
    iommu_set_destroy(set);
}

static void hostile_states(void **state)
{
    const struct iommu_peer_mapping crooked = {.iova = 0xc0000800, .size = 0x1000, .spaces = 1};
    const struct iommu_peer_mapping empty = {.iova = 0xc0000000, .spaces = 1};
    const struct iommu_peer_mapping wraps = {
        .iova = -UINT64_C(0x1000), .size = 0x2000, .spaces = 1};
    const struct iommu_peer_mapping memory = {.iova = 0xff000, .size = 0x2000, .spaces = 1};
    const struct iommu_peer_mapping nowhere = {.iova = 0xc0000000, .size = 0x1000, .spaces = 8};
    const struct iommu_peer_mapping twice[] = {
        {.iova = 0xc0000000, .size = 0x2000, .spaces = 1},
        {.iova = 0xc0001000, .size = 0x2000, .spaces = 1},
    };

    (void)state;
    refuse_state(&crooked, 1);
    refuse_state(&empty, 1);
    refuse_state(&wraps, 1);
    refuse_state(&memory, 1);
    refuse_state(&nowhere, 1);
    refuse_state(twice, 2);
}

static void facts_of_page_tables(void **state)
{
    struct iommu_facts facts = {.id = "i", .hwpt_count = 2, .hwpts = {{.id = 4}, {.id = 5}}};
    struct error error = {0};

    (void)state;
    assert_int_equal(iommu_facts_type.check(&facts, &error), 0);
    facts.hwpts[1].id = 4;
    assert_int_equal(iommu_facts_type.check(&facts, &error), -EINVAL);
    assert_non_null(strstr(error.message, "4 is there twice"));
    facts.hwpts[1].id = 0;
    assert_int_equal(iommu_facts_type.check(&facts, &error), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(own_space_needs_another_device),
        cmocka_unit_test(what_fails_is_not_recorded),
        cmocka_unit_test(hand_over_changes_nothing_before_the_go),
        cmocka_unit_test(moved_before_it_is_settled),
        cmocka_unit_test(full_of_what_nobody_wants),
        cmocka_unit_test(settling_maps_what_is_missing),
        cmocka_unit_test(hostile_states),
        cmocka_unit_test(facts_of_page_tables),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
