/* SPDX-License-Identifier: Apache-2.0
 *
 * Unit tests of iommu/hwpt.c: which hardware page table a device gets, and what is done when the
 * kernel refuses. ioctl() is a fake that keeps a record; what the kernel really does is the system
 * tests' business.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/util.h"
#include "iommu/hwpt.h"
#include "iommu/uapi_compat.h"

#define IOAS 7u

/* The fake: devices have descriptors of 100 and up, and attach only to page tables of their own
 * IOMMU, which is their number. */
static struct {
    char log[512];
    uint32_t next_id;
    int made_for[64]; /* device, by id of a page table */
    bool tracks;
    int alloc_code, attach_code;
    uint32_t gone;  /* a page table that is not there */
    int dirty_code; /* of the question for written pages, if not EINVAL */
} fake;

static void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void note(const char *format, ...)
{
    size_t used = strlen(fake.log);
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(fake.log + used, sizeof(fake.log) - used, format, arguments);
    va_end(arguments);
}

static int answer(int code)
{
    errno = code;
    return code == 0 ? 0 : -1;
}

static int fake_attach(int fd, uint32_t pt)
{
    note(" attach%u", pt);
    if (pt != IOAS && fake.made_for[pt] % 10 != fd % 10)
        return answer(EINVAL);
    return answer(pt == IOAS ? 0 : fake.attach_code);
}

static int fake_alloc(struct uapi_hwpt_alloc *alloc)
{
    note(" alloc%s", alloc->flags & UAPI_HWPT_ALLOC_DIRTY_TRACKING ? "+dirty" : "");
    assert_int_equal(alloc->pt_id, IOAS);
    if (fake.alloc_code != 0)
        return answer(fake.alloc_code);
    alloc->out_hwpt_id = fake.next_id++;
    fake.made_for[alloc->out_hwpt_id] = (int)alloc->dev_id;
    return 0;
}

/* Overrides the C library's. */
int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    void *argument;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    switch (request) {
    case UAPI_VFIO_ATTACH_IOMMUFD_PT:
        return fake_attach(fd, ((struct uapi_vfio_attach_iommufd_pt *)argument)->pt_id);
    case UAPI_HWPT_ALLOC:
        return fake_alloc(argument);
    case UAPI_GET_HW_INFO:
        ((struct uapi_hw_info *)argument)->out_capabilities =
            fake.tracks ? UAPI_HW_CAP_DIRTY_TRACKING : 0;
        return 0;
    case UAPI_IOMMU_DESTROY:
        note(" destroy%u", ((struct uapi_iommu_destroy *)argument)->id);
        return 0;
    case UAPI_HWPT_GET_DIRTY:
        if (((struct uapi_hwpt_get_dirty *)argument)->hwpt_id == fake.gone)
            return answer(ENOENT);
        return answer(fake.dirty_code ? fake.dirty_code : EINVAL);
    default:
        fail_msg("ioctl 0x%lx", request);
        return -1;
    }
}

static struct iommu iommu;

static int setup(void **state)
{
    (void)state;
    memset(&fake, 0, sizeof(fake));
    fake.next_id = 10;
    iommu = (struct iommu){.facts = {.id = "i", .ioas_id = IOAS}};
    return 0;
}

/* @param number device; its last digit is the number of its IOMMU
 * @return what hwpt_attach() does; 0: the id in @p hwpt */
static int attach(int number, enum iommu_hwpt_choice choice, uint32_t *hwpt)
{
    struct iommu_device device = {.sysfs = "x", .fd = 100 + number, .devid = (uint32_t)number};
    struct error error = {0};
    int result = hwpt_attach(&iommu, &device, choice, &error);

    *hwpt = device.hwpt;
    if (result < 0)
        assert_int_equal(result, -error.code);
    return result;
}

static void expect(const char *log)
{
    assert_string_equal(fake.log, log);
    fake.log[0] = '\0';
}

static void shared_where_it_suits(void **state)
{
    uint32_t first, second, third, fourth;

    (void)state;
    assert_int_equal(attach(11, IOMMU_HWPT_SHARED, &first), 0);
    expect(" alloc attach10");
    assert_int_equal(attach(21, IOMMU_HWPT_SHARED, &second), 0);
    expect(" attach10");
    assert_int_equal(attach(12, IOMMU_HWPT_SHARED, &third), 0); /* behind another IOMMU */
    expect(" attach10 alloc attach11");
    assert_int_equal(attach(22, IOMMU_HWPT_SHARED, &fourth), 0);
    expect(" attach10 attach11");
    assert_int_equal(first, second);
    assert_int_equal(third, fourth);
    assert_int_equal(iommu.facts.hwpt_count, 2);
    hwpt_destroy_all(&iommu);
    expect(" destroy11 destroy10");
}

static void own_is_for_no_other(void **state)
{
    uint32_t own, other, third;

    (void)state;
    fake.tracks = true;
    assert_int_equal(attach(11, IOMMU_HWPT_OWN, &own), 0);
    assert_int_equal(attach(21, IOMMU_HWPT_SHARED, &other), 0);
    assert_int_equal(attach(31, IOMMU_HWPT_OWN, &third), 0);
    expect(" alloc+dirty attach10 alloc+dirty attach11 alloc+dirty attach12");
    assert_true(own != other && other != third);
    assert_true(iommu.facts.hwpts[0].dirty_tracking && !iommu.facts.hwpts[0].shared);
    assert_true(iommu.facts.hwpts[1].shared);
}

static void the_kernels(void **state)
{
    uint32_t hwpt = 1;

    (void)state;
    assert_int_equal(attach(11, IOMMU_HWPT_IOAS, &hwpt), 0);
    expect(" attach7");
    assert_int_equal(hwpt, 0);
    assert_int_equal(iommu.facts.hwpt_count, 0);
}

static void where_none_can_be_allocated(void **state)
{
    static const int codes[] = {ENOENT, EOPNOTSUPP, ENOTTY};
    uint32_t hwpt;

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(codes); i++) {
        fake.alloc_code = codes[i];
        assert_int_equal(attach(11, IOMMU_HWPT_SHARED, &hwpt), 0);
        expect(" alloc attach7");
        assert_int_equal(hwpt, 0);
        assert_int_equal(attach(11, IOMMU_HWPT_OWN, &hwpt), -codes[i]);
        expect(" alloc");
    }
    fake.alloc_code = ENOMEM;
    assert_int_equal(attach(11, IOMMU_HWPT_SHARED, &hwpt), -ENOMEM);
    expect(" alloc");
    assert_int_equal(iommu.facts.hwpt_count, 0);
}

static void failed_attachment_leaves_nothing(void **state)
{
    uint32_t hwpt;

    (void)state;
    fake.attach_code = EADDRINUSE;
    assert_int_equal(attach(11, IOMMU_HWPT_SHARED, &hwpt), -EADDRINUSE);
    expect(" alloc attach10 destroy10");
    assert_int_equal(iommu.facts.hwpt_count, 0);
    assert_int_equal(hwpt, 0);
}

static void adopted_ones_are_there(void **state)
{
    struct error error = {0};

    (void)state;
    iommu.facts.hwpt_count = 2;
    iommu.facts.hwpts[0].id = 20;
    iommu.facts.hwpts[1].id = 21;
    assert_int_equal(hwpt_check_all(&iommu, &error), 0);
    assert_true(hwpt_is_known(&iommu, 21));
    assert_false(hwpt_is_known(&iommu, 22));
    fake.dirty_code = EOPNOTSUPP;
    assert_int_equal(hwpt_check_all(&iommu, &error), 0);
    fake.dirty_code = ENOMEM;
    assert_int_equal(hwpt_check_all(&iommu, &error), -ENOMEM);
    fake.gone = 21;
    fake.dirty_code = 0;
    assert_int_equal(hwpt_check_all(&iommu, &error), -EINVAL);
    assert_non_null(strstr(error.message, "21"));
    expect("");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(shared_where_it_suits, setup),
        cmocka_unit_test_setup(own_is_for_no_other, setup),
        cmocka_unit_test_setup(the_kernels, setup),
        cmocka_unit_test_setup(where_none_can_be_allocated, setup),
        cmocka_unit_test_setup(failed_attachment_leaves_nothing, setup),
        cmocka_unit_test_setup(adopted_ones_are_there, setup),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
