/* SPDX-License-Identifier: Apache-2.0
 *
 * Unit tests of a machine's definition as a peer sends it: a stream that holds words of the command
 * line.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "machine/handover.h"
#include "state/state.h"

#define WORDS_MAX 8

/* The table of machine/handover.c, with less room. */
struct definition {
    uint32_t count;
    struct word {
        char text[256];
    } options[WORDS_MAX];
};

static const struct state_field word_fields[] = {
    STATE_STRING(struct word, text, 1),
    STATE_END,
};

static const struct state_field definition_fields[] = {
    STATE_ARRAY(struct definition, options, count, word_fields, 1),
    STATE_END,
};

static const struct state_type definition_type = {
    .name = "definition",
    .version = 1,
    .min_version = 1,
    .size = sizeof(struct definition),
    .fields = definition_fields,
};

/* Sends words, which end with NULL, to a process that reads them. */
static int send_words(const char *const *words, struct config *config, struct error *error)
{
    CLEANUP_FREE uint8_t *bytes = xcalloc(1, 64 * KIB);
    struct definition definition = {0};
    struct state_writer writer;
    size_t length;

    for (; words[definition.count]; definition.count++)
        snprintf(definition.options[definition.count].text, sizeof(struct word), "%s",
                 words[definition.count]);
    state_writer_init(&writer, bytes, 64 * KIB);
    state_write(&writer, "definition", &definition_type, &definition, true);
    assert_int_equal(state_writer_finish(&writer, &length, error), 0);
    return machine_read_definition(config, bytes, length, error);
}

static void test_read(void **state)
{
    const char *const words[] = {"-m", "size=512M", "-smp", "cpus=2", "-kernel", "vmlinuz", NULL};
    struct config config;
    struct error error = {0};

    assert_int_equal(send_words(words, &config, &error), 0);
    assert_int_equal(config.cpus, 2);
    assert_int_equal(config.memory_size, 512 * MIB);
}

/* What follows such an option is not read, and nothing is checked: no definition of a guest. */
static void test_help(void **state)
{
    const char *const asking[][4] = {
        {"-help", NULL}, {"-version", NULL}, {"-trace", "help", NULL}, {"-S", "-help", NULL}};

    for (size_t i = 0; i < ARRAY_SIZE(asking); i++) {
        struct config config;
        struct error error = {0};

        assert_int_equal(send_words(asking[i], &config, &error), -EINVAL);
        assert_string_equal(error.message, "the running guest's definition: it asks for help");
    }
}

static void test_unknown(void **state)
{
    const char *const words[] = {"-frobnicate", NULL};
    struct config config;
    struct error error = {0};

    assert_int_equal(send_words(words, &config, &error), -EINVAL);
    assert_non_null(strstr(error.message, "frobnicate"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_unknown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
