/* SPDX-License-Identifier: Apache-2.0
 *
 * Unit tests of the back end for legacy containers, with the fake kernel of iommu_fixture.h.
 */
#include "iommu_fixture.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"

#define FIRST "open vfio/vfio;open vfio/7;join;iommu;map 0;map 1;"

/* --- containers --- */

static void shared_container(void **state)
{
    struct fixture *fixture = *state;
    struct iommu_facts *facts = xcalloc(IOMMU_SPACES_MAX, sizeof(*facts));
    struct error error = {0};
    struct fdset fds = {0};
    uint32_t count;

    attach_ok(fixture, "a", &common);
    attach_ok(fixture, "b", &common);
    attach_ok(fixture, "c", &common);
    assert_string_equal(record.log, FIRST "device a;device b;open vfio/8;join;device c;");
    assert_int_equal(iommu_set_describe(fixture->set, facts, &count, &fds, &error), 0);
    assert_int_equal(count, 1);
    assert_int_equal(facts->group_count, 2);
    assert_int_equal(fds.count, 3);
    assert_true(fdset_contains(&fds, "iommu/container/0"));
    assert_true(fdset_contains(&fds, "iommu/group/7"));
    assert_true(fdset_contains(&fds, "iommu/group/8"));
    fdset_clear(&fds);
    free(facts);
}

static void further_container(void **state)
{
    struct fixture *fixture = *state;

    attach_ok(fixture, "a", &common);
    forget();
    record.fail = "join;";
    record.code = EINVAL;
    record.map[0] = record.map[1] = UNMAPPED; /* the fake knows the mappings of one container */
    attach_ok(fixture, "c", &common);
    assert_string_equal(record.log,
                        "open vfio/8;join;open vfio/vfio;open vfio/8;join;iommu;map 0;map 1;"
                        "device c;");
}

static void named_containers(void **state)
{
    struct fixture *fixture = *state;
    struct error error = {0};

    attach_ok(fixture, "a", &common);
    forget();
    assert_int_equal(attach(fixture, "b", &other, &error), -EBUSY);
    assert_non_null(strstr(error.message, "'other'"));
    assert_string_equal(record.log, "");
    record.map[0] = record.map[1] = UNMAPPED;
    attach_ok(fixture, "c", &other);
    assert_string_equal(record.log, "open vfio/vfio;open vfio/8;join;iommu;map 0;map 1;device c;");
}

/* Whose process ended a moment ago may still be in the kernel's hands. */
static void in_use_for_a_moment(void **state)
{
    record.fail = "open vfio/7;";
    record.times = 2;
    record.code = EBUSY;
    attach_ok(*state, "a", &common);
    assert_string_equal(
        record.log,
        "open vfio/vfio;open vfio/7;open vfio/7;open vfio/7;join;iommu;map 0;map 1;device a;");
}

/* Each call fails in turn; nothing stays open, and the same device can be attached then. */
static void each_call_fails(void **state)
{
    static const struct {
        const char *call;
        int code;
        const char *message;
    } table[] = {
        {"open vfio/vfio;", ENOENT, "CONFIG_VFIO_CONTAINER"},
        {"open vfio/vfio;", EACCES, "permission"},
        {"open vfio/7;", EBUSY, "in use"},
        {"open vfio/7;", EPERM, "permission"},
        {"join;", EINVAL, "group 7"},
        {"iommu;", EPERM, "interrupt"},
        {"map 0;", ENOMEM, "limit on locked memory"},
        {"map 1;", EINVAL, "reserved"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        struct fixture *fixture;
        struct error error = {0};
        void *own;

        iommu_fixture_setup(&own);
        fixture = own;
        record.fail = table[i].call;
        record.times = table[i].code == EBUSY ? UINT_MAX : 1; /* it is tried again, for a while */
        record.code = table[i].code;
        assert_int_equal(attach(fixture, "a", &common, &error), -table[i].code);
        assert_non_null(strstr(error.message, table[i].message));
        record.fail = NULL;
        forget();
        record.map[0] = record.map[1] = UNMAPPED; /* gone with the container */
        attach_ok(fixture, "a", &common);
        assert_string_equal(record.log, FIRST "device a;");
        iommu_fixture_teardown(&own);
    }
    (void)state;
}

/* The group is in: there is no point in looking for another container. */
static void device_fails(void **state)
{
    struct fixture *fixture = *state;
    struct error error = {0};

    attach_ok(fixture, "c", &common);
    forget();
    record.fail = "device a;";
    record.code = EBUSY;
    assert_int_equal(attach(fixture, "a", &common, &error), -EBUSY);
    assert_string_equal(record.log, "open vfio/7;join;device a;");
    attach_ok(fixture, "a", &common);
}

static void strange_group(void **state)
{
    struct error error = {0};

    assert_int_equal(attach(*state, "d", &common, &error), -EINVAL);
    assert_non_null(strstr(error.message, "odd"));
    assert_int_equal(attach(*state, "e", &common, &error), -ENODEV);
}

/* --- ownership --- */

static void assert_whose(enum whose first, enum whose second)
{
    assert_int_equal(record.map[0], first);
    assert_int_equal(record.map[1], second);
}

/* Wherever the other process has got to when it dies. */
static void taken_back_from_anywhere(void **state)
{
    static const enum whose table[][REGIONS] = {
        {NOBODY, NOBODY}, {OTHERS, NOBODY}, {NOBODY, OTHERS}, {OTHERS, OTHERS}};
    struct fixture *fixture = *state;
    struct error error = {0};

    attach_ok(fixture, "a", &common);
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        assert_int_equal(iommu_set_release_ownership(fixture->set, &error), 0);
        assert_whose(NOBODY, NOBODY);
        memcpy(record.map, table[i], sizeof(record.map));
        assert_int_equal(iommu_set_take_back_ownership(fixture->set, &error), 0);
        assert_whose(OURS, OURS);
    }
    forget();
    assert_int_equal(iommu_set_take_back_ownership(fixture->set, &error), 0);
    assert_string_equal(record.log, ""); /* what is ours is left alone */
}

static void release_fails_half_way(void **state)
{
    struct fixture *fixture = *state;
    struct error error = {0};

    attach_ok(fixture, "a", &common);
    forget();
    record.fail = "give 1;";
    record.code = EBUSY;
    assert_int_equal(iommu_set_release_ownership(fixture->set, &error), -EBUSY);
    assert_non_null(strstr(error.message, "mediated"));
    assert_whose(NOBODY, OURS);
    assert_int_equal(iommu_set_take_back_ownership(fixture->set, &error), 0);
    assert_whose(OURS, OURS);
    assert_string_equal(record.log, "give 0;give 1;give 0;set 0;");
}

/* What cannot be taken back is no obstacle: the rest is, and it can be released again. */
static void take_back_fails(void **state)
{
    struct fixture *fixture = *state;
    struct error error = {0};

    attach_ok(fixture, "a", &common);
    assert_int_equal(iommu_set_release_ownership(fixture->set, &error), 0);
    record.fail = "set 0;";
    record.code = ENOMEM;
    assert_int_equal(iommu_set_take_back_ownership(fixture->set, &error), -ENOMEM);
    assert_non_null(strstr(error.message, "limit on locked memory"));
    assert_whose(NOBODY, OURS);
    assert_int_equal(iommu_set_release_ownership(fixture->set, &error), 0);
    assert_whose(NOBODY, NOBODY);
    assert_int_equal(iommu_set_take_back_ownership(fixture->set, &error), 0);
    assert_whose(OURS, OURS);
}

static void probe_of_the_owner(void **state)
{
    struct fixture *fixture = *state;
    struct error error = {0};

    attach_ok(fixture, "a", &common);
    forget();
    assert_int_equal(iommu_set_probe_ownership(fixture->set, &error), 0);
    assert_string_equal(record.log, "give 0;give 1;give 0;set 0;give 1;set 1;");
    assert_whose(OURS, OURS);
    record.fail = "give 1;";
    record.code = EBUSY;
    assert_int_equal(iommu_set_probe_ownership(fixture->set, &error), -EBUSY);
    assert_whose(OURS, OURS);
    record.no_update = true;
    assert_int_equal(iommu_set_probe_ownership(fixture->set, &error), -ENOTSUP);
    assert_non_null(strstr(error.message, "emulation"));
    record.no_iommufd = true;
    assert_int_equal(iommu_set_probe_ownership(fixture->set, &error), -EBUSY);
    assert_non_null(strstr(error.message, "mediated"));
    record.no_unmap_all = true;
    assert_int_equal(iommu_set_probe_ownership(fixture->set, &error), -ENOTSUP);
    assert_non_null(strstr(error.message, "5.12"));
}

/* To look is not to touch: no mapping is given up, however often a client asks. */
static void blockers_of_the_owner(void **state)
{
    struct fixture *fixture = *state;
    struct blocker_list list = {0};

    attach_ok(fixture, "a", &common);
    forget();
    iommu_set_blockers(fixture->set, &list);
    assert_int_equal(list.count, 0);
    record.no_update = true;
    record.no_iommufd = true;
    iommu_set_blockers(fixture->set, &list);
    assert_int_equal(list.count, 1);
    assert_non_null(strstr(list.blockers[0].reason, "mediated"));
    assert_string_equal(list.blockers[0].remedy, "give the device iommufd=");
    record.no_unmap_all = true;
    iommu_set_blockers(fixture->set, &list);
    assert_int_equal(list.count, 2);
    assert_non_null(strstr(list.blockers[1].remedy, "5.12"));
    assert_string_equal(record.log, "known;known;");
    assert_whose(OURS, OURS);
    blocker_list_clear(&list);
}

/* --- adopting --- */

/* An adopting process changes nothing, takes what was released, and needs every descriptor. */
static void adopted_containers(void **state)
{
    static const char *const names[] = {"iommu/container/0", "iommu/group/7", "iommu/container/1",
                                        "iommu/group/8"};
    struct fixture *fixture = *state;
    struct iommu_device device = {.sysfs = "/no/such/device"};
    struct iommu_set *adopted;
    struct error error = {0};
    struct fdset fds = {0};

    attach_ok(fixture, "a", &common);
    record.map[0] = record.map[1] = UNMAPPED;
    attach_ok(fixture, "c", &other);
    assert_int_equal(adopt(fixture, &adopted, &fds, NULL, &error), 0);
    assert_int_equal(fds.count, 0);
    device.fd = 0;
    device.group = 8;
    assert_int_equal(iommu_set_adopt_device(adopted, &other, &device, &error), 0);
    assert_true(device.kvm_fd >= 0);
    device.group = 9;
    assert_int_equal(iommu_set_adopt_device(adopted, &other, &device, &error), -EINVAL);
    assert_int_equal(iommu_set_probe_ownership(adopted, &error), 0);
    assert_string_equal(record.log, "");
    iommu_set_destroy(adopted);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        assert_int_equal(adopt(fixture, &adopted, &fds, names[i], &error), -ENOENT);
        assert_non_null(strstr(error.message, names[i]));
        fdset_clear(&fds);
    }
}

static void adopted_takes_what_is_released(void **state)
{
    struct fixture *fixture = *state;
    struct iommu_set *adopted;
    struct error error = {0};
    struct fdset fds = {0};

    attach_ok(fixture, "a", &common);
    assert_int_equal(adopt(fixture, &adopted, &fds, NULL, &error), 0);
    assert_int_equal(iommu_set_take_ownership(adopted, &error), -EINVAL); /* not released yet */
    assert_int_equal(iommu_set_release_ownership(fixture->set, &error), 0);
    assert_int_equal(iommu_set_take_ownership(adopted, &error), 0);
    assert_whose(OURS, OURS);
    iommu_set_destroy(adopted);
    fdset_clear(&fds);
    assert_whose(OURS, OURS);
}

static void adopts_only_guest_memory(void **state)
{
    struct fixture *fixture = *state;
    struct iommu_set *adopted;
    struct error error = {0};
    struct fdset fds = {0};

    attach_ok(fixture, "a", &common);
    fixture->memory.regions[1].mapping.size += 0x1000;
    assert_int_equal(adopt(fixture, &adopted, &fds, NULL, &error), -EINVAL);
    assert_non_null(strstr(error.message, "not mapped"));
    fdset_clear(&fds);
    fixture->memory.region_count = 1;
    assert_int_equal(adopt(fixture, &adopted, &fds, NULL, &error), -EINVAL);
    fdset_clear(&fds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        IOMMU_TEST(shared_container),
        IOMMU_TEST(further_container),
        IOMMU_TEST(named_containers),
        IOMMU_TEST(in_use_for_a_moment),
        IOMMU_TEST(each_call_fails),
        IOMMU_TEST(device_fails),
        IOMMU_TEST(strange_group),
        IOMMU_TEST(taken_back_from_anywhere),
        IOMMU_TEST(release_fails_half_way),
        IOMMU_TEST(take_back_fails),
        IOMMU_TEST(probe_of_the_owner),
        IOMMU_TEST(blockers_of_the_owner),
        IOMMU_TEST(adopted_containers),
        IOMMU_TEST(adopted_takes_what_is_released),
        IOMMU_TEST(adopts_only_guest_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
