/* SPDX-License-Identifier: Apache-2.0
 *
 * Unit tests of the iommufd back end, with the fake kernel of iommu_fixture.h.
 */
#include "iommu_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/util.h"
#include "iommu/sysfs.h"

static void several_ioases(void **state)
{
    struct fixture *fixture = *state;
    const struct iommu_choice second = {.iommufd = "io", .ioas = "second", .container = ""};
    struct iommu_set *adopted;
    struct error error = {0};
    struct fdset fds = {0};

    assert_int_equal(iommu_set_add_iommufd(fixture->set, "io", -1, &error), 0);
    assert_int_equal(iommu_set_add_iommufd(fixture->set, "alone", -1, &error), 0);
    assert_string_equal(record.log, "open iommu;alloc;file 0;file 1;"
                                    "open iommu;alloc;file 0;file 1;");
    forget();
    assert_int_equal(attach(fixture, "a", &second, &error), -ENODEV); /* no device, but an IOAS */
    assert_string_equal(record.log, "alloc;copy 0;copy 1;");
    assert_int_equal(adopt(fixture, &adopted, &fds, NULL, &error), 0);
    assert_int_equal(fds.count, 0);
    assert_int_equal(iommu_set_probe_ownership(adopted, &error), 0);
    assert_string_equal(record.log, "known;known;known;");
    forget();
    assert_int_equal(iommu_set_take_ownership(adopted, &error), 0);
    assert_string_equal(record.log, "own;own;own;");
    iommu_set_destroy(adopted);
    fdset_clear(&fds);
}

/* Descriptors that somebody else has opened: nothing is opened, and whatever happens, they are the
 * set's. */
static void passed_descriptors(void **state)
{
    static const struct {
        const char *call;
        int code;
        const char *reason;
    } failures[] = {
        {"bind;", EINVAL, "bound before"},
        {"bind;", ENOTTY, "not of /dev/vfio/devices/"},
        {"bind;", EBUSY, "in use"},
        {"attach;", ENOMEM, "locked memory"},
    };
    const struct iommu_choice first = {
        .iommufd = "io", .ioas = "", .container = "", .hwpt = IOMMU_HWPT_IOAS};
    struct fixture *fixture = *state;
    struct iommu_device device = {.fd = new_fd()};
    int context = new_fd();
    struct error error = {0};

    assert_int_equal(iommu_set_add_iommufd(fixture->set, "io", context, &error), 0);
    assert_string_equal(record.log, "alloc;file 0;file 1;");
    forget();
    assert_int_equal(iommu_set_attach(fixture->set, &first, &device, &error), 0);
    assert_string_equal(record.log, "bind;attach;");
    assert_int_equal(device.kvm_fd, device.fd);
    close(device.fd);

    for (size_t i = 0; i < ARRAY_SIZE(failures); i++) {
        int fd = new_fd();

        forget();
        device = (struct iommu_device){.fd = fd};
        record.fail = failures[i].call;
        record.skip = 0;
        record.code = failures[i].code;
        assert_int_equal(iommu_set_attach(fixture->set, &first, &device, &error),
                         -failures[i].code);
        assert_non_null(strstr(error.message, failures[i].reason));
        assert_int_equal(device.fd, -1);
        assert_int_equal(fcntl(fd, F_GETFD), -1);
    }

    context = new_fd();
    forget();
    record.fail = "alloc;";
    record.skip = 0;
    record.code = ENOTTY;
    assert_int_equal(iommu_set_add_iommufd(fixture->set, "j", context, &error), -ENOTTY);
    assert_non_null(strstr(error.message, "iommufd 'j'"));
    assert_non_null(strstr(error.message, "not of /dev/iommu"));
    assert_int_equal(fcntl(context, F_GETFD), -1);
}

/* Whose process ended a moment ago may still be in the kernel's hands. */
static void in_use_for_a_moment(void **state)
{
    const struct iommu_choice choice = {
        .iommufd = "io", .ioas = "", .container = "", .hwpt = IOMMU_HWPT_IOAS};
    struct fixture *fixture = *state;
    struct iommu_device device = {.fd = new_fd(), .sysfs = "/nowhere"};
    struct error error = {0};

    assert_int_equal(iommu_set_add_iommufd(fixture->set, "io", new_fd(), &error), 0);
    forget();
    record.fail = "bind;";
    record.times = 2;
    record.code = EINVAL;
    assert_int_equal(iommu_set_attach(fixture->set, &choice, &device, &error), 0);
    assert_string_equal(record.log, "bind;bind;bind;attach;");

    forget();
    record.fail = "bind;";
    record.times = UINT_MAX;
    assert_int_equal(iommu_set_attach(fixture->set, &choice, &device, &error), -EINVAL);
    assert_non_null(strstr(error.message, "in use"));
}

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

/* What a host does not show cannot be compared; anything else that goes wrong must not pass for
 * that. */
static void device_numbers(void **state)
{
    struct fixture *fixture = *state;
    char device[96], number[128];
    dev_t found = 0;

    snprintf(device, sizeof(device), "%s/vfio-dev", fixture->directory);
    assert_int_equal(sysfs_cdev_number(fixture->directory, &found), -ENOENT);
    write_file(device, "");
    assert_int_equal(sysfs_cdev_number(fixture->directory, &found), -ENOTDIR);
    unlink(device);

    mkdir(device, 0700);
    assert_int_equal(sysfs_cdev_number(fixture->directory, &found), -ENOENT);
    snprintf(device, sizeof(device), "%s/vfio-dev/vfio7", fixture->directory);
    mkdir(device, 0700);
    snprintf(number, sizeof(number), "%s/dev", device);
    write_file(number, "nonsense");
    assert_int_equal(sysfs_cdev_number(fixture->directory, &found), -EIO);
    write_file(number, "243:7\n");
    assert_int_equal(sysfs_cdev_number(fixture->directory, &found), 0);
    assert_true(found == makedev(243, 7));
    unlink(number);
    rmdir(device);
    *strrchr(device, '/') = '\0';
    rmdir(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        IOMMU_TEST(passed_descriptors),
        IOMMU_TEST(in_use_for_a_moment),
        IOMMU_TEST(device_numbers),
        IOMMU_TEST(several_ioases),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
