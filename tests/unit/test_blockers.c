/* SPDX-License-Identifier: Apache-2.0
 *
 * What makes a hand-over impossible: the list (base/blocker.h), the loop over the parts of a
 * machine (the table is the test's own), and the conditions of the guest and of iommu/.
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
#include <sys/resource.h>
#include <unistd.h>

#include "base/blocker.h"
#include "base/util.h"
#include "iommu/iommu.h"
#include "machine/internal.h"

static void list_and_lines(void **state)
{
    struct blocker_list list = {0};
    char line[BLOCKER_LINE_SIZE];

    blocker_add(&list, "ram 'ram0'", "it cannot be shared", "use share=on");
    blocker_add(&list, "guest", "it has powered off", "");
    assert_int_equal(list.count, 2);
    assert_string_equal(blocker_describe(&list.blockers[0], line),
                        "ram 'ram0': it cannot be shared: use share=on");
    assert_string_equal(blocker_describe(&list.blockers[1], line), "guest: it has powered off");
    blocker_list_clear(&list);
    assert_int_equal(list.count, 0);
    assert_null(list.blockers);
}

/* A probe's error is taken apart where it says how. */
static void from_errors(void **state)
{
    struct blocker_list list = {0};
    struct error error = {0};

    error_set(&error, ENOTTY, "the kernel: it is too old");
    assert_int_equal(error_add_remedy(&error, "Linux %d is needed", 7), -ENOTTY);
    assert_string_equal(error.message, "the kernel: it is too old: Linux 7 is needed");
    error_prefix(&error, "iommufd '%s': ", "i");
    blocker_add_error(&list, "iommufd 'i'", &error);
    assert_string_equal(list.blockers[0].object, "iommufd 'i'");
    assert_string_equal(list.blockers[0].reason, "the kernel: it is too old");
    assert_string_equal(list.blockers[0].remedy, "Linux 7 is needed");

    error_set_errno(&error, EINVAL, "cannot move it");
    blocker_add_error(&list, "iommufd 'i'", &error);
    assert_string_equal(list.blockers[1].reason, "cannot move it: Invalid argument");
    assert_string_equal(list.blockers[1].remedy, "");
    blocker_list_clear(&list);
}

static void long_ones(void **state)
{
    char text[2 * ERROR_MESSAGE_SIZE], line[BLOCKER_LINE_SIZE];
    struct blocker_list list = {0};
    struct error error = {0};

    memset(text, 'x', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    error_set(&error, EIO, "%s", text);
    error_add_remedy(&error, "%s", text);
    error_prefix(&error, "%s: ", text);
    blocker_add_error(&list, text, &error);
    blocker_add(&list, text, text, text);
    assert_int_equal(strlen(list.blockers[1].object), BLOCKER_OBJECT_SIZE - 1);
    assert_true(strlen(blocker_describe(&list.blockers[1], line)) < BLOCKER_LINE_SIZE);
    assert_int_equal(blocker_error(&list, EBUSY, &error), -EBUSY);
    assert_int_equal(strlen(error.message), ERROR_MESSAGE_SIZE - 1);
    blocker_list_clear(&list);
}

/* They are sent as JSON. */
static void no_text(void **state)
{
    struct blocker_list list = {0};

    (void)state;
    blocker_add(&list, "device '\xff'", "'\xc3' and \xc3\xa4", "\xc3");
    assert_string_equal(list.blockers[0].object, "device '?'");
    assert_string_equal(list.blockers[0].reason, "'?' and \xc3\xa4");
    assert_string_equal(list.blockers[0].remedy, "?");
    blocker_list_clear(&list);
}

static void all_in_one_error(void **state)
{
    struct blocker_list list = {0};
    struct error error = {0};

    blocker_add(&list, "a", "b", "c");
    blocker_add(&list, "d", "e", "");
    assert_int_equal(blocker_error(&list, ENOTSUP, &error), -ENOTSUP);
    assert_string_equal(error.message, "a: b: c; d: e");
    blocker_list_clear(&list);
}

/* --- the machine --------------------------------------------------------------------------- */

enum machine_status machine_status(const struct machine *machine)
{
    return machine->status;
}

static unsigned one(const struct machine *machine)
{
    return 1;
}

static unsigned three(const struct machine *machine)
{
    return 3;
}

/* The one in the middle stands in the way. */
static void middle(const struct machine *machine, unsigned index, struct blocker_list *list)
{
    assert_int_not_equal(pthread_mutex_trylock((pthread_mutex_t *)&machine->lock), 0);
    if (index == 1)
        blocker_add(list, "device 'b'", "it has no name", "give it an id");
}

static const struct machine_part own = {
    .name = "own", .count = one, .blockers = machine_own_blockers};
static const struct machine_part silent = {.name = "silent", .count = three};
static const struct machine_part devices = {.name = "devices", .count = three, .blockers = middle};
const struct machine_part *const machine_parts[] = {&own, &silent, &devices};
const unsigned machine_part_count = ARRAY_SIZE(machine_parts);

static void every_part_is_asked(void **state)
{
    struct machine *machine = xcalloc(1, sizeof(*machine));
    struct blocker_list list = {0};

    pthread_mutex_init(&machine->lock, NULL);
    machine->status = MACHINE_RUNNING;
    machine_blockers(machine, &list);
    assert_int_equal(list.count, 1);
    assert_string_equal(list.blockers[0].object, "device 'b'");
    assert_string_equal(list.blockers[0].remedy, "give it an id");
    assert_int_equal(pthread_mutex_trylock(&machine->lock), 0);
    pthread_mutex_unlock(&machine->lock);
    blocker_list_clear(&list);
    free(machine);
}

static void states_of_the_guest(void **state)
{
    static const struct {
        enum machine_status status;
        const char *reason; /* NULL: none */
    } table[] = {
        {MACHINE_PRELAUNCH, NULL},
        {MACHINE_RUNNING, NULL},
        {MACHINE_PAUSED, NULL},
        {MACHINE_SHUTDOWN, "powered off"},
        {MACHINE_INTERNAL_ERROR, "internal-error"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        struct machine *machine = xcalloc(1, sizeof(*machine));
        struct blocker_list list = {0};

        machine->status = table[i].status;
        machine_own_blockers(machine, 0, &list);
        assert_int_equal(list.count, table[i].reason != NULL);
        if (table[i].reason)
            assert_non_null(strstr(list.blockers[0].reason, table[i].reason));
        blocker_list_clear(&list);
        free(machine);
    }
}

/* --- DMA address spaces -------------------------------------------------------------------- */

static int ioctl_errno; /* what the kernel answers; 0: it does as it is asked */

int ioctl(int fd, unsigned long request, ...)
{
    errno = ioctl_errno;
    return ioctl_errno ? -1 : 0;
}

/* An address space that this process owns. @param accounted its pages count against the limit */
static struct iommu_set *owned(bool accounted)
{
    const struct iommu_memory memory = {
        .fd = -1, .region_count = 1, .regions = {{.mapping = {.size = 64 * MIB}}}};
    const struct iommu_facts facts = {
        .id = "io0", .accounted = accounted, .mapping_count = 1, .mappings = {{.size = 64 * MIB}}};
    struct fdset fds = {0};
    struct iommu_set *set;
    struct error error;

    ioctl_errno = 0;
    assert_int_equal(fdset_add_copy(&fds, STDERR_FILENO, &error, "iommu/io0"), 0);
    assert_int_equal(iommu_set_adopt(&set, &memory, &facts, 1, &fds, &error), 0);
    assert_int_equal(iommu_set_take_ownership(set, &error), 0);
    fdset_clear(&fds);
    return set;
}

/* What the kernel's answers mean to the operator. */
static void kernel_refuses(void **state)
{
    static const struct {
        int code;
        const char *reason, *remedy; /* NULL: none, "": nothing can be done */
    } table[] = {
        {0, NULL, NULL},
        {ENOTTY, "cannot move DMA mappings", "Linux 6.13"},
        {EINVAL, NULL, NULL}, /* devices' memory is mapped: the accounting stays where it is */
        {ENOMEM, "limit on locked memory", "ulimit -l"},
        {EIO, "Input/output error", ""},
    };

    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        struct iommu_set *set = owned(false);
        struct blocker_list list = {0};

        ioctl_errno = table[i].code;
        iommu_set_blockers(set, &list);
        assert_int_equal(list.count, table[i].reason != NULL);
        if (table[i].reason) {
            assert_string_equal(list.blockers[0].object, "iommufd 'io0'");
            assert_non_null(strstr(list.blockers[0].reason, table[i].reason));
            assert_int_equal(list.blockers[0].remedy[0] == '\0', table[i].remedy[0] == '\0');
            assert_non_null(strstr(list.blockers[0].remedy, table[i].remedy));
        }
        blocker_list_clear(&list);
        iommu_set_destroy(set);
    }
}

/* Room for the mappings twice, for the process that may have to take them back. */
static void limit_on_locked_memory(void **state)
{
    struct rlimit old, limit;
    struct iommu_set *free_of_charge = owned(false), *accounted = owned(true);
    struct blocker_list list = {0};

    assert_int_equal(getrlimit(RLIMIT_MEMLOCK, &old), 0);
    limit = (struct rlimit){.rlim_cur = 1 * MIB, .rlim_max = old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
    /* nobody is charged for mappings of a privileged process */
    iommu_set_blockers(free_of_charge, &list);
    assert_int_equal(list.count, 0);
    iommu_set_blockers(accounted, &list);
    assert_int_equal(list.count, 1);
    assert_string_equal(list.blockers[0].object, "guest memory");
    assert_string_equal(list.blockers[0].reason,
                        "the limit on locked memory is 1024 KiB, taking over the mappings needs "
                        "131072 KiB");
    assert_non_null(strstr(list.blockers[0].remedy, "prlimit"));
    assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &old), 0);
    blocker_list_clear(&list);
    iommu_set_destroy(free_of_charge);
    iommu_set_destroy(accounted);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(list_and_lines),
        cmocka_unit_test(from_errors),
        cmocka_unit_test(long_ones),
        cmocka_unit_test(no_text),
        cmocka_unit_test(all_in_one_error),
        cmocka_unit_test(every_part_is_asked),
        cmocka_unit_test(states_of_the_guest),
        cmocka_unit_test(kernel_refuses),
        cmocka_unit_test(limit_on_locked_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
