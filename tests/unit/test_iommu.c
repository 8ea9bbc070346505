/* SPDX-License-Identifier: Apache-2.0
 *
 * Unit tests of iommu/ that every build has, whichever back ends are in it: what facts must be, and
 * what happens to those of a back end that is missing. The others are test_iommu_type1.c and
 * test_iommu_iommufd.c.
 */
#include "iommu_fixture.h"

#include <errno.h>
#include <string.h>

#include "base/util.h"

/* --- facts --- */

static void facts_check(void **state)
{
    struct iommu_facts facts = {.id = "io", .mapping_count = 2};
    struct error error = {0};

    (void)state;
    facts.mappings[0] = (struct iommu_mapping){.iova = 0, .size = 0x10000};
    facts.mappings[1] = (struct iommu_mapping){.iova = 0x10000, .size = 0x1000, .offset = 0x10000};
    assert_int_equal(iommu_facts_type.check(&facts, &error), 0);
    facts.mappings[1].iova = 0xf000; /* overlaps */
    assert_int_equal(iommu_facts_type.check(&facts, &error), -EINVAL);
    facts.mappings[1].iova = 0x10800; /* not a page */
    assert_int_equal(iommu_facts_type.check(&facts, &error), -EINVAL);
    facts.mappings[1].iova = UINT64_MAX - 0xfff; /* wraps */
    facts.mappings[1].size = 0x2000;
    assert_int_equal(iommu_facts_type.check(&facts, &error), -EINVAL);
    facts.mapping_count = 1;
    facts.id[0] = '\0';
    assert_int_equal(iommu_facts_type.check(&facts, &error), -EINVAL);
    facts.backend = IOMMU_BACKEND_TYPE1; /* needs no name, but a group */
    assert_int_equal(iommu_facts_type.check(&facts, &error), -EINVAL);
    facts.group_count = 2;
    facts.groups[0].number = 7;
    facts.groups[1].number = 8;
    assert_int_equal(iommu_facts_type.check(&facts, &error), 0);
    facts.groups[1].number = 7;
    assert_int_equal(iommu_facts_type.check(&facts, &error), -EINVAL);
}

/* --- back ends that are there, and those that are not --- */

/* @param result of asking for a back end; what is missing has opened nothing and names its option
 */
static void assert_built(enum iommu_backend backend, int result, const struct error *error,
                         const char *option)
{
    if (iommu_built_in(backend) != NULL) {
        assert_int_equal(result, 0);
        assert_string_not_equal(record.log, "");
        return;
    }
    assert_int_equal(result, -ENOTSUP);
    assert_non_null(strstr(error->message, "was built without"));
    assert_non_null(strstr(error->message, option));
    assert_string_equal(record.log, "");
}

static void asking_for_each(void **state)
{
    struct fixture *fixture = *state;
    struct error error = {0};
    int result = attach(fixture, "a", &common, &error);

    assert_built(IOMMU_BACKEND_TYPE1, result, &error, "-Dvfio_container=enabled");
    forget();
    result = iommu_set_add_iommufd(fixture->set, "io", -1, &error);
    assert_built(IOMMU_BACKEND_IOMMUFD, result, &error, "-Diommufd=enabled");
    forget();
    result = iommu_set_add_iommufd(fixture->set, "passed", new_fd(), &error); /* the set's now */
    assert_built(IOMMU_BACKEND_IOMMUFD, result, &error, "-Diommufd=enabled");
}

/* What is there asks for the descriptors; what is missing says so, whatever comes with the facts.
 */
static void adopting_each(void **state)
{
    static const struct {
        struct iommu_facts facts;
        const char *missing, *descriptor;
    } table[] = {
        {{.backend = IOMMU_BACKEND_IOMMUFD, .id = "io"},
         "iommufd 'io': this baton (" BATON_VERSION ") was built without iommufd: the guest needs "
         "one built with -Diommufd=enabled",
         "iommu/io"},
        {{.backend = IOMMU_BACKEND_TYPE1, .id = "c", .group_count = 1, .groups = {{7}}},
         "container 'c': this baton (" BATON_VERSION ") was built without legacy containers: the "
         "guest needs one built with -Dvfio_container=enabled",
         "iommu/container/0"},
    };
    struct fixture *fixture = *state;

    fixture->memory.region_count = 0;
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        bool built = iommu_built_in(table[i].facts.backend) != NULL;
        struct iommu_set *adopted;
        struct error error = {0};
        struct fdset fds = {0};
        int result = iommu_set_adopt(&adopted, &fixture->memory, &table[i].facts, 1, &fds, &error);

        assert_int_equal(result, built ? -ENOENT : -ENOTSUP);
        if (built)
            assert_non_null(strstr(error.message, table[i].descriptor));
        else
            assert_string_equal(error.message, table[i].missing);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(facts_check),
        IOMMU_TEST(asking_for_each),
        IOMMU_TEST(adopting_each),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
