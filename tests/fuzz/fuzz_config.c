/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: a machine's definition as a peer process sends it. The input is a list of options,
 * each ended by a NUL.
 *
 * What must hold: whatever is accepted can be written as options, reads back to the same
 * definition, and does not differ from itself.
 */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "fuzz.h"
#include "machine/config.h"

#define WORDS_MAX 256

/* A definition survives the way to text and back. */
static void check_round_trip(const struct config *config)
{
    static const char *const channel[] = {"-incoming", "channel-type=cpr,addr.transport=socket,"
                                                       "addr.type=unix,addr.path=x"};
    const char *words[CONFIG_OPTIONS_MAX + ARRAY_SIZE(channel)];
    struct config again;
    struct error error = {0};
    char **strings;
    size_t count;
    int ret;

    ret = config_to_options(config, &strings, &count, &error);
    assert(ret == 0 && count <= CONFIG_OPTIONS_MAX);
    memcpy(words, strings, count * sizeof(*strings));
    memcpy(words + count, channel, sizeof(channel)); /* there need not be a kernel */
    ret = config_parse(&again, (int)(count + ARRAY_SIZE(channel)), words, &error);
    assert(ret == 0);
    config_free_options(strings, count);
    assert(config_compare(config, &again, &error) == 0);
    assert(config_compare(&again, config, &error) == 0);
    assert(strcmp(config->serial, again.serial) == 0);
    assert(config->qmp_count == again.qmp_count);
    for (unsigned i = 0; i < config->qmp_count; i++)
        assert(strcmp(config->qmp[i], again.qmp[i]) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *words[WORDS_MAX];
    struct config config;
    struct error error = {0};
    char *text = malloc(size + 1);
    int count = 0, ret;

    memcpy(text, data, size);
    text[size] = '\0';
    for (size_t at = 0; at < size && count < WORDS_MAX; at += strlen(text + at) + 1)
        words[count++] = text + at;
    ret = config_parse(&config, count, words, &error);
    assert((ret == 0) == (error.code == 0));
    assert(ret == 0 || error.message[0] != '\0');
    if (ret == 0 && !config.help && !config.version && !config.trace_help)
        check_round_trip(&config);
    free(text);
    return 0;
}
