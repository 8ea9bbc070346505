/* SPDX-License-Identifier: Apache-2.0
 *
 * Trace events (base/trace.h): switching by pattern, what a line looks like, and that nothing is
 * evaluated while an event is off. That list, code and documentation agree is checked by
 * tests/trace-events.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/trace.h"
#include "base/util.h"

static unsigned evaluated;

static const char *evaluate(void)
{
    evaluated++;
    return "hello";
}

static int setup(void **state)
{
    struct error error;

    return trace_switch("*", false, &error);
}

static unsigned count_on(void)
{
    unsigned count = 0;

    for (unsigned i = 0; i < TRACE_EVENT_COUNT; i++)
        count += trace_is_on(i);
    return count;
}

static void patterns(void **state)
{
    struct error error = {0};
    unsigned vfio = 0;

    for (unsigned i = 0; i < TRACE_EVENT_COUNT; i++)
        vfio += strncmp(trace_name(i), "vfio_", 5) == 0;
    assert_int_equal(trace_switch("vfio_*", true, &error), 0);
    assert_true(vfio > 1);
    assert_int_equal(count_on(), vfio);
    assert_int_equal(trace_switch("vfio_open", false, &error), 0);
    assert_int_equal(count_on(), vfio - 1);
    assert_false(trace_is_on(TRACE_vfio_open));
    assert_int_equal(trace_switch("*", true, &error), 0);
    assert_int_equal(count_on(), TRACE_EVENT_COUNT);
    assert_int_equal(trace_switch("nothing_*", false, &error), 0); /* matches none */
    assert_int_equal(count_on(), TRACE_EVENT_COUNT);
    assert_int_equal(trace_switch("VFIO_OPEN", false, &error), -ENOENT);
    assert_string_equal(error.message, "unknown event \"VFIO_OPEN\"");
    assert_int_equal(trace_switch("", false, &error), -ENOENT);
    assert_int_equal(count_on(), TRACE_EVENT_COUNT);
}

static void names_differ(void **state)
{
    for (unsigned i = 0; i < TRACE_EVENT_COUNT; i++) {
        for (unsigned k = 0; k < i; k++)
            assert_string_not_equal(trace_name(i), trace_name(k));
    }
}

static void lines(void **state)
{
    char path[] = "/tmp/test_trace.XXXXXX", line[256] = "", expected[64];
    int fd = mkstemp(path), pid;
    unsigned long seconds, ns;
    struct error error = {0};
    int used = 0;

    assert_true(fd >= 0);
    assert_int_equal(trace_open_log("/nowhere/at/all", &error), -ENOENT);
    assert_non_null(strstr(error.message, "-D: cannot open '/nowhere/at/all'"));
    assert_int_equal(trace_open_log(path, &error), 0);

    evaluated = 0;
    trace(update_stage_begin, "outgoing", evaluate());
    assert_int_equal(evaluated, 0);
    assert_int_equal(read(fd, line, sizeof(line)), 0);

    assert_int_equal(trace_switch("update_stage_begin", true, &error), 0);
    errno = EXDEV;
    trace(update_stage_begin, "outgoing", evaluate());
    assert_int_equal(errno, EXDEV);
    assert_int_equal(evaluated, 1);
    trace(update_stage_end, "outgoing", evaluate(), 0);
    assert_int_equal(evaluated, 1);
    assert_true(read(fd, line, sizeof(line) - 1) > 0);
    assert_int_equal(sscanf(line, "%d@%lu.%9lu:%n", &pid, &seconds, &ns, &used), 3);
    assert_int_equal(pid, getpid());
    assert_true(seconds * UINT64_C(1000000000) + ns <= clock_ns());
    snprintf(expected, sizeof(expected), "update_stage_begin side=outgoing stage=hello\n");
    assert_string_equal(line + used, expected);
    close(fd);
    unlink(path);
}

/* Hostile names (they come over the channel) do not break a line's bounds. */
static void long_lines(void **state)
{
    char path[] = "/tmp/test_trace.XXXXXX", text[4096], line[4096] = "";
    int fd = mkstemp(path);
    struct error error = {0};

    memset(text, 'y', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    assert_int_equal(trace_open_log(path, &error), 0);
    assert_int_equal(trace_switch("update_undo", true, &error), 0);
    trace(update_undo, text);
    assert_true(read(fd, line, sizeof(line) - 1) > 500);
    assert_true(strlen(line) <= 1024);
    assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
    close(fd);
    unlink(path);
}

#define TEST(name) cmocka_unit_test_setup(name, setup)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(patterns),
        TEST(names_differ),
        TEST(lines),
        TEST(long_lines),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
