/* SPDX-License-Identifier: Apache-2.0
 *
 * The scanner of QMP input: values come out whole however the bytes arrive, and garbage is
 * reported once and does not swallow what follows.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "control/json_stream.h"

/* What came out: one character per delivery and the values as text. */
struct log {
    char kinds[256]; /* 'v' value, '!' problem */
    unsigned count;
    char last_value[256];
    char last_problem[256];
};

static void record(void *opaque, json_t *value, const char *problem)
{
    struct log *log = opaque;

    assert_true((value == NULL) != (problem == NULL));
    if (log->count + 1 < sizeof(log->kinds))
        log->kinds[log->count] = value ? 'v' : '!';
    log->count++;
    if (value) {
        char *text = json_dumps(value, JSON_COMPACT);

        snprintf(log->last_value, sizeof(log->last_value), "%s", text);
        free(text);
    } else {
        snprintf(log->last_problem, sizeof(log->last_problem), "%s", problem);
    }
}

/* Feeds a text whole, and byte by byte: the outcome must be the same. */
static void feed(const char *text, size_t length, const char *kinds, struct log *log)
{
    struct json_stream stream = {0};
    struct log single = {0};

    *log = (struct log){0};
    json_stream_feed(&stream, text, length, record, log);
    json_stream_clear(&stream);
    for (size_t i = 0; i < length; i++)
        json_stream_feed(&stream, text + i, 1, record, &single);
    json_stream_clear(&stream);
    if (strcmp(log->kinds, kinds) != 0)
        fail_msg("'%.*s': '%s' instead of '%s'", (int)MIN(length, (size_t)200), text, log->kinds,
                 kinds);
    assert_memory_equal(log, &single, sizeof(single));
}

static void expect(const char *text, const char *kinds, struct log *log)
{
    feed(text, strlen(text), kinds, log);
}

static void values(void **state)
{
    struct log log;

    expect("", "", &log);
    expect(" \t\r\n", "", &log);
    expect("{}", "v", &log);
    expect("{}{}[]", "vvv", &log);
    expect("{\"a\":[{\"b\":[]}]}\r\n[1]", "vv", &log);
    expect("{\"a\":\"}]\\\"{\\\\\"}", "v", &log);
    assert_string_equal(log.last_value, "{\"a\":\"}]\\\"{\\\\\"}");
    expect("{\n \"a\" :\t1 }", "v", &log);
    expect("{\"a\":\"\xc3\xa4\"}", "v", &log);
    expect("{\"a\"", "", &log);
    expect("{\"a\":\"", "", &log);
}

static void balanced_but_wrong(void **state)
{
    struct log log;

    expect("{\"a\":nonsense}{}", "!v", &log);
    expect("{a}{}", "!v", &log);
    expect("{,}[,]{\"a\":1}", "!!v", &log);
    expect("{\"a\":1,\"a\":2}{}", "!v", &log);
    expect("{\"a\":\"\\u0000\"}{}", "!v", &log);
    expect("{\"a\":99999999999999999999}{}", "!v", &log);
    expect("{\"a\":\"\xc3\"}{}", "!v", &log);         /* cut UTF-8 */
    expect("{\"a\":\"\xed\xa0\x80\"}{}", "!v", &log); /* a surrogate */
    assert_non_null(strstr(log.last_problem, "malformed JSON"));
}

static void garbage(void **state)
{
    struct log log;

    expect("hello\n{}", "!v", &log);
    expect("hello world, how are you?\n{}", "!v", &log);
    expect("hello {\"a\":1}", "!v", &log);
    expect("1 2 3 \"x\"\n{}", "!v", &log);
    expect("}]}]\n{}", "!v", &log);
    expect("{]}\n{}", "!v", &log);
    expect("[}\n{}", "!v", &log);
    expect("{\"a\":[}\n{}", "!v", &log);
    assert_non_null(strstr(log.last_problem, "brackets"));
    expect("hello\rworld\n{}", "!!v", &log);
}

static void control_characters(void **state)
{
    struct log log;

    feed("\0{}", 3, "!v", &log);
    expect("\x01{}", "!v", &log);
    expect("\xff{}", "!v", &log);
    expect("{\"a\":\xff{}", "!v", &log);    /* a client gives up and starts anew */
    expect("{\"a\":\"x\xff{}", "!v", &log); /* also within a string */
    expect("{\"a\":\"x\\\xff{}", "!v", &log);
    expect("{\"a\":\"x\n{}", "!v", &log); /* a string never spans lines */
    expect("{\"a\":\"x\t\"}\n{}", "!!v", &log);
    feed("{\"a\":\0 1}\n{}", 12, "!!v", &log);
    expect("garbage\x1b{}", "!v", &log);
    expect("\xff\xff\xff", "!!!", &log);
}

static void depth(void **state)
{
    char text[3 * JSON_STREAM_DEPTH_MAX];
    struct log log;

    memset(text, '[', JSON_STREAM_DEPTH_MAX);
    memset(text + JSON_STREAM_DEPTH_MAX, ']', JSON_STREAM_DEPTH_MAX);
    feed(text, 2 * JSON_STREAM_DEPTH_MAX, "v", &log);
    /* One more is refused, and followed to its end: what comes next is served. */
    memset(text, '[', JSON_STREAM_DEPTH_MAX + 1);
    memset(text + JSON_STREAM_DEPTH_MAX + 1, ']', JSON_STREAM_DEPTH_MAX + 1);
    memcpy(text + 2 * JSON_STREAM_DEPTH_MAX + 2, "{}", 2);
    feed(text, 2 * JSON_STREAM_DEPTH_MAX + 4, "!v", &log);
    assert_non_null(strstr(log.last_problem, "64 deep"));
}

static void many_brackets(void **state)
{
    size_t length = 3u << 20;
    char *text = malloc(length);
    struct json_stream stream = {0};
    struct log log = {0};

    memset(text, '[', length);
    json_stream_feed(&stream, text, length, record, &log);
    assert_int_equal(log.count, 1);
    memset(text, ']', length);
    json_stream_feed(&stream, text, length, record, &log);
    json_stream_feed(&stream, "{}", 2, record, &log);
    assert_string_equal(log.kinds, "!v");
    json_stream_clear(&stream);
    free(text);
}

static void size_limit(void **state)
{
    size_t length = JSON_STREAM_VALUE_MAX + 1;
    char *text = malloc(length + 2);
    struct log log;

    memset(text, 'x', length);
    memcpy(text, "[\"", 2);
    memcpy(text + length - 3, "\"]", 2);
    feed(text, length - 1, "v", &log); /* exactly the limit */
    memset(text, 'x', length);
    memcpy(text, "[\"", 2);
    memcpy(text + length - 2, "\"]{}", 4);
    feed(text, length + 2, "!v", &log);
    assert_non_null(strstr(log.last_problem, "1 MiB"));
    free(text);
}

/* What is kept for a client is bounded, whatever it sends. */
static void memory_bound(void **state)
{
    struct json_stream stream = {0};
    struct log log = {0};
    char text[4096];

    memset(text, 'x', sizeof(text));
    json_stream_feed(&stream, "[\"", 2, record, &log);
    for (unsigned i = 0; i < 2048; i++)
        json_stream_feed(&stream, text, sizeof(text), record, &log);
    assert_int_equal(log.count, 1);
    assert_true(stream.capacity <= 2 * JSON_STREAM_VALUE_MAX);
    json_stream_feed(&stream, "\"]{}", 4, record, &log);
    assert_string_equal(log.kinds, "!v");
    assert_true(stream.capacity <= 65536);
    json_stream_clear(&stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values),     cmocka_unit_test(balanced_but_wrong),
        cmocka_unit_test(garbage),    cmocka_unit_test(control_characters),
        cmocka_unit_test(depth),      cmocka_unit_test(many_brackets),
        cmocka_unit_test(size_limit), cmocka_unit_test(memory_bound),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
