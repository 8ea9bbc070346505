/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: a machine's definition as a peer process sends it. The input is a list of options,
 * each ended by a NUL.
 *
 * What must hold: whatever is accepted can be written as options, reads back to the same
 * definition, and does not differ from itself; its paths can be made absolute. Of its serial port's
 * specification, what is accepted has the path that its kind needs and no descriptors, and only
 * kinds that can do without are adopted from a peer that sends none.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "base/util.h"
#include "devices/chardev_backend.h"
#include "fuzz.h"
#include "machine/config.h"

#define WORDS_MAX 256
#define DIRECTORY "/run/baton"

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

static void check_parsed(const struct backend *backend)
{
    bool has_path = backend->kind == BACKEND_FILE || backend->kind == BACKEND_UNIX;
    size_t length = strnlen(backend->path, sizeof(backend->path));

    assert(has_path ? length > 0 && length < sizeof(backend->path) : length == 0);
    assert(backend->kind != BACKEND_UNIX || length < sizeof(((struct sockaddr_un *)0)->sun_path));
    assert(backend->in == -1 && backend->out == -1 && backend->listener == -1);
}

static void check_serial(const char *spec)
{
    struct backend backend;
    struct error error = {0};
    struct fdset none = {0};
    bool can_do_without;
    int ret = backend_parse(&backend, spec, &error);

    if (ret < 0) {
        assert(ret == -error.code && error.message[0] != '\0');
        return;
    }
    check_parsed(&backend);
    can_do_without = backend.kind == BACKEND_NULL || backend.kind == BACKEND_STDIO;
    ret = backend_adopt(&backend, "fuzz", &none, &error);
    assert((ret == 0) == can_do_without);
    backend_close(&backend, false);
}

static void check_absolute(struct config config)
{
    struct error error = {0};
    int ret = config_make_paths_absolute(&config, DIRECTORY, &error);

    assert(ret == 0 || ret == -ENAMETOOLONG);
    if (ret < 0)
        return;
    assert(strchr("/", config.kernel[0]) && strchr("/", config.initrd[0]));
    assert(strchr("/", config.pidfile[0]));
    for (unsigned i = 0; i < config.qmp_count; i++)
        assert(config.qmp[i][0] == '/');
    check_serial(config.serial);
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
    if (ret == 0 && !config.help && !config.version && !config.trace_help) {
        check_round_trip(&config);
        check_serial(config.serial);
        check_absolute(config);
    }
    free(text);
    return 0;
}
