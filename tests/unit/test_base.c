/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of src/base: error objects, the set of descriptors, small helpers, the limit on log lines.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "base/error.h"
#include "base/fdset.h"
#include "base/log.h"
#include "base/util.h"

static void test_error_set(void **state)
{
    struct error error = {0};

    assert_int_equal(error_set(&error, EINVAL, "device '%s' is %d", "nvme0", 7), -EINVAL);
    assert_int_equal(error.code, EINVAL);
    assert_string_equal(error.message, "device 'nvme0' is 7");
}

static void test_error_set_errno(void **state)
{
    struct error error = {0};

    assert_int_equal(error_set_errno(&error, ENOENT, "cannot open '%s'", "x"), -ENOENT);
    assert_string_equal(error.message, "cannot open 'x': No such file or directory");
}

static void test_error_prefix(void **state)
{
    struct error error = {0};

    error_set(&error, EBUSY, "it is 100%% busy");
    assert_int_equal(error_prefix(&error, "device '%s': ", "a%sb"), -EBUSY);
    assert_string_equal(error.message, "device 'a%sb': it is 100% busy");
}

/* Messages are cut, not overrun, and end with a zero. */
static void test_error_long(void **state)
{
    struct {
        struct error error;
        char guard[16];
    } room = {0};
    char text[2 * ERROR_MESSAGE_SIZE];

    memset(text, 'x', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    memset(room.guard, 0x5a, sizeof(room.guard));
    error_set(&room.error, EIO, "%s", text);
    assert_int_equal(strlen(room.error.message), ERROR_MESSAGE_SIZE - 1);
    error_set_errno(&room.error, EIO, "%s", text);
    assert_int_equal(strlen(room.error.message), ERROR_MESSAGE_SIZE - 1);
    error_prefix(&room.error, "%s", text);
    assert_int_equal(strlen(room.error.message), ERROR_MESSAGE_SIZE - 1);
    error_prefix(&room.error, "short: ");
    assert_int_equal(strncmp(room.error.message, "short: xxx", 10), 0);
    for (size_t i = 0; i < sizeof(room.guard); i++)
        assert_int_equal(room.guard[i], 0x5a);
}

/* Whatever it quotes and wherever it is cut, a message is UTF-8. */
static void test_error_text(void **state)
{
    char text[2 * ERROR_MESSAGE_SIZE] = "";
    struct error error = {0};

    for (size_t i = 0; i < sizeof(text) - 3; i += 3)
        memcpy(text + i, "\u20ac", 4);
    error_set(&error, EIO, "'%.5s' and '%s'", text, "\xff");
    assert_string_equal(error.message, "'\u20ac?\?' and '?'");
    error_add_remedy(&error, "%.4s", text);
    assert_string_equal(error.message + error.remedy, "\u20ac?");
    for (int cut = 0; cut < 3; cut++) {
        static const char *const ends[] = {"\u20ac?", "\u20ac", "\u20ac?\?"};

        error_set(&error, EIO, "%s", text + 3);
        error_prefix(&error, "%.*s", cut, "ab");
        assert_int_equal(strlen(error.message), ERROR_MESSAGE_SIZE - 1);
        assert_string_equal(error.message + ERROR_MESSAGE_SIZE - 1 - strlen(ends[cut]), ends[cut]);
        error_set_errno(&error, EIO, "%s", text + cut);
        assert_null(strchr(error.message + ERROR_MESSAGE_SIZE - 3, '\xe2'));
    }
}

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

static int open_null(void)
{
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

    assert_true(fd >= 0);
    return fd;
}

static void test_fdset_order_and_take(void **state)
{
    static const char *const names[] = {"m", "a", "z", "a/1", "b", "a/10", "a/2"};
    int fds[ARRAY_SIZE(names)];
    struct fdset set = {0};
    struct error error = {0};

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        fds[i] = open_null();
        assert_int_equal(fdset_add(&set, fds[i], names[i], &error), 0);
    }
    for (size_t i = 1; i < set.count; i++)
        assert_true(strcmp(set.entries[i - 1].name, set.entries[i].name) < 0);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        assert_true(fdset_contains(&set, names[i]));
        assert_int_equal(fdset_take(&set, FDSET_ANY, &error, "%s", names[i]), fds[i]);
        assert_false(fdset_contains(&set, names[i]));
        close(fds[i]);
    }
    assert_int_equal(set.count, 0);
    fdset_clear(&set);
}

static void test_fdset_missing(void **state)
{
    struct fdset set = {0};
    struct error error = {0};

    assert_int_equal(fdset_take(&set, FDSET_ANY, &error, "vfio/%s/device", "nvme0"), -ENOENT);
    assert_non_null(strstr(error.message, "'vfio/nvme0/device'"));
    assert_false(fdset_contains(&set, ""));
}

/* A descriptor of the wrong kind is closed, and named. */
static void test_fdset_kinds(void **state)
{
    struct fdset set = {0};
    struct error error = {0};
    int event = eventfd(0, EFD_CLOEXEC), file = memfd_create("file", MFD_CLOEXEC);

    assert_int_equal(fdset_add_copy(&set, event, &error, "irq/0"), 0);
    assert_int_equal(fdset_add_copy(&set, file, &error, "irq/1"), 0);
    assert_int_equal(fdset_add_copy(&set, file, &error, "kernel"), 0);
    assert_int_equal(fdset_add_copy(&set, event, &error, "initrd"), 0);
    close(fdset_take(&set, FDSET_EVENTFD, &error, "irq/%u", 0));
    assert_int_equal(fdset_take(&set, FDSET_EVENTFD, &error, "irq/%u", 1), -EINVAL);
    assert_string_equal(error.message, "descriptor 'irq/1' of the hand-over is not an eventfd");
    assert_int_equal(fdset_take(&set, FDSET_EVENTFD, &error, "irq/%u", 1), -ENOENT);
    close(fdset_take(&set, FDSET_FILE, &error, "kernel"));
    assert_int_equal(fdset_take(&set, FDSET_FILE, &error, "initrd"), -EINVAL);
    assert_non_null(strstr(error.message, "'initrd' of the hand-over is not a regular file"));
    assert_int_equal(set.count, 0);
    fdset_clear(&set);
    close(event);
    close(file);
}

/* A refused descriptor was handed over all the same: it must be closed. */
static void test_fdset_twice(void **state)
{
    int first = open_null(), second = open_null();
    struct fdset set = {0};
    struct error error = {0};

    assert_int_equal(fdset_add(&set, first, "one", &error), 0);
    assert_int_equal(fdset_add(&set, second, "one", &error), -EEXIST);
    assert_non_null(strstr(error.message, "'one'"));
    assert_false(is_open(second));
    assert_true(is_open(first));
    assert_int_equal(set.count, 1);
    fdset_clear(&set);
    assert_false(is_open(first));
}

static void test_fdset_copy(void **state)
{
    int fd = open("/dev/null", O_RDWR), copy;
    struct fdset set = {0};
    struct error error = {0};

    assert_int_equal(fdset_add_copy(&set, fd, &error, "ram/%s", "mem"), 0);
    assert_int_equal(fdset_add_copy(&set, fd, &error, "ram/mem"), -EEXIST);
    copy = set.entries[0].fd;
    assert_int_not_equal(copy, fd);
    assert_true(fcntl(copy, F_GETFD) & FD_CLOEXEC);
    fdset_clear(&set);
    assert_true(is_open(fd));
    assert_false(is_open(copy));
    close(fd);
}

static void test_fdset_long_name(void **state)
{
    char name[FDSET_NAME_SIZE + 1];
    int fd = open_null();
    struct fdset set = {0};
    struct error error = {0};

    memset(name, 'n', sizeof(name));
    name[FDSET_NAME_SIZE] = '\0';
    assert_int_equal(fdset_add_copy(&set, fd, &error, "%s", name), -ENAMETOOLONG);
    assert_true(is_open(fd));
    assert_int_equal(fdset_take(&set, FDSET_ANY, &error, "%s", name), -ENAMETOOLONG);
    assert_int_equal(fdset_add(&set, fd, name, &error), -ENAMETOOLONG);
    assert_false(is_open(fd));
    fd = open_null();
    name[FDSET_NAME_SIZE - 1] = '\0';
    assert_int_equal(fdset_add(&set, fd, name, &error), 0);
    assert_true(fdset_contains(&set, name));
    fdset_clear(&set);
}

static void test_fdset_no_descriptors_left(void **state)
{
    struct rlimit limit, none;
    int fd = open_null();
    struct fdset set = {0};
    struct error error = {0};

    getrlimit(RLIMIT_NOFILE, &limit);
    none = (struct rlimit){.rlim_cur = 3, .rlim_max = limit.rlim_max};
    setrlimit(RLIMIT_NOFILE, &none);
    assert_true(fdset_add_copy(&set, fd, &error, "x") < 0);
    setrlimit(RLIMIT_NOFILE, &limit);
    assert_int_equal(set.count, 0);
    close(fd);
}

static void test_fdset_many(void **state)
{
    struct fdset set = {0};
    struct error error = {0};
    char name[32];

    for (int i = 0; i < 300; i++) {
        snprintf(name, sizeof(name), "msix/%d", (i * 7) % 300);
        assert_int_equal(fdset_add(&set, -1, name, &error), 0);
    }
    for (int i = 0; i < 300; i++) {
        snprintf(name, sizeof(name), "msix/%d", i);
        assert_true(fdset_contains(&set, name));
    }
    fdset_clear(&set);
}

/* The same file twice under two names; where the kernel has no kcmp, it cannot be seen. */
static void test_fdset_distinct(void **state)
{
    struct fdset set = {0};
    struct error error = {0};
    int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    bool can_tell = syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, zero, zero) == 0;

    assert_int_equal(fdset_add_copy(&set, zero, &error, "vfio/a"), 0);
    assert_int_equal(fdset_add(&set, open("/dev/zero", O_RDONLY | O_CLOEXEC), "vfio/b", &error), 0);
    assert_int_equal(fdset_add_copy(&set, zero, &error, "control/stderr"), 0);
    assert_int_equal(fdset_check_distinct(&set, "vfio/", &error), 0);
    assert_int_equal(fdset_add_copy(&set, zero, &error, "vfio/c"), 0);
    if (can_tell) {
        assert_int_equal(fdset_check_distinct(&set, "vfio/", &error), -EEXIST);
        assert_non_null(strstr(error.message, "'vfio/a'"));
        assert_non_null(strstr(error.message, "'vfio/c'"));
    } else {
        assert_int_equal(fdset_check_distinct(&set, "vfio/", &error), 0);
    }
    fdset_clear(&set);
    close(zero);
}

static void test_ranges(void **state)
{
    assert_true(range_fits(0, 0, 0));
    assert_true(range_fits(4, 4, 8));
    assert_false(range_fits(4, 5, 8));
    assert_false(range_fits(9, 0, 8));
    assert_false(range_fits(1, UINT64_MAX, UINT64_MAX));
    assert_false(range_fits(UINT64_MAX, 2, 8));
    assert_true(ranges_overlap(0, 2, 1, 1));
    assert_false(ranges_overlap(0, 2, 2, 1));
    assert_false(ranges_overlap(2, 1, 0, 2));
    assert_true(ranges_overlap(0, 10, 4, 1));
}

static void test_alignment(void **state)
{
    assert_int_equal(align_up(1, 4096), 4096);
    assert_int_equal(align_up(4096, 4096), 4096);
    assert_int_equal(align_down(4097, 4096), 4096);
    assert_true(is_aligned(8192, 4096));
    assert_false(is_aligned(8193, 4096));
    assert_true(is_power_of_two(UINT64_C(1) << 63));
    assert_false(is_power_of_two(0));
    assert_false(is_power_of_two(6));
}

static void test_steal_and_cleanup(void **state)
{
    int fd = open_null(), kept;

    {
        CLEANUP_CLOSE int mine = fd;

        kept = STEAL_FD(mine);
        assert_int_equal(mine, -1);
    }
    assert_true(is_open(kept));
    {
        CLEANUP_CLOSE int mine = kept;

        assert_true(is_open(mine));
    }
    assert_false(is_open(kept));
}

/* Standard error as a pipe while lines are written. */
struct capture {
    int saved, read_end;
    char text[65536];
};

static void capture_begin(struct capture *capture)
{
    int ends[2];

    assert_int_equal(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    capture->saved = dup(STDERR_FILENO);
    dup2(ends[1], STDERR_FILENO);
    close(ends[1]);
    capture->read_end = ends[0];
}

static void capture_end(struct capture *capture)
{
    ssize_t length;

    dup2(capture->saved, STDERR_FILENO);
    close(capture->saved);
    length = read(capture->read_end, capture->text, sizeof(capture->text) - 1);
    capture->text[length > 0 ? length : 0] = '\0';
    close(capture->read_end);
}

static unsigned count_of(const char *text, const char *word)
{
    unsigned count = 0;

    for (const char *at = text; (at = strstr(at, word)); at += strlen(word))
        count++;
    return count;
}

static void test_log_levels_and_name(void **state)
{
    struct capture capture = {0};

    capture_begin(&capture);
    log_configure(LOG_LEVEL_WARNING, "vm0");
    log_warning("one %d", 1);
    log_info("two");
    log_configure(LOG_LEVEL_INFO, NULL);
    log_info("three");
    log_debug("four");
    capture_end(&capture);
    assert_string_equal(capture.text, "baton[vm0]: one 1\nbaton: three\n");
}

static void test_log_long_line(void **state)
{
    struct capture capture = {0};
    char text[5000];

    memset(text, 'y', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    capture_begin(&capture);
    log_error("%s", text);
    capture_end(&capture);
    assert_int_equal(count_of(capture.text, "\n"), 1);
    assert_true(strlen(capture.text) > 500 && strlen(capture.text) <= 1024);
    assert_int_equal(capture.text[strlen(capture.text) - 1], '\n');
}

/* Waits for the next second of the clock that the limit counts by. */
static void next_second(void)
{
    uint64_t left = 1000000000u - clock_ns() % 1000000000u;
    struct timespec wait = {.tv_nsec = (long)(left % 1000000000u)};

    nanosleep(&wait, NULL);
}

static void test_log_guest_is_limited(void **state)
{
    struct capture capture = {0};

    capture_begin(&capture);
    next_second();
    for (int i = 0; i < 1000; i++)
        log_guest("guest line %d", i);
    next_second();
    log_guest("guest line again");
    capture_end(&capture);
    assert_non_null(strstr(capture.text, "guest line 9\n"));
    assert_null(strstr(capture.text, "guest line 10\n"));
    assert_int_equal(count_of(capture.text, "guest line"), 11);
    assert_non_null(strstr(capture.text, "990 similar lines"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_error_set),
        cmocka_unit_test(test_error_set_errno),
        cmocka_unit_test(test_error_prefix),
        cmocka_unit_test(test_error_long),
        cmocka_unit_test(test_error_text),
        cmocka_unit_test(test_fdset_order_and_take),
        cmocka_unit_test(test_fdset_missing),
        cmocka_unit_test(test_fdset_kinds),
        cmocka_unit_test(test_fdset_twice),
        cmocka_unit_test(test_fdset_copy),
        cmocka_unit_test(test_fdset_long_name),
        cmocka_unit_test(test_fdset_no_descriptors_left),
        cmocka_unit_test(test_fdset_many),
        cmocka_unit_test(test_fdset_distinct),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_alignment),
        cmocka_unit_test(test_steal_and_cleanup),
        cmocka_unit_test(test_log_levels_and_name),
        cmocka_unit_test(test_log_long_line),
        cmocka_unit_test(test_log_guest_is_limited),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
