/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: any bytes as a state stream, into readers of both versions of the sample type and
 * into the dump. What must hold: a load that fails changes nothing; one that succeeds gives an
 * object that passes its check and comes out the same after being saved and loaded again.
 */
#include <stdio.h>

#include "base/util.h"
#include "fuzz.h"
#include "sample_state.h"

#define TARGETS 2

struct run {
    struct sample objects[TARGETS], scratch[TARGETS];
    struct state_target targets[TARGETS];
    struct error error;
};

static void prepare(struct run *run)
{
    static const struct state_type *const types[] = {&sample_type_2, &sample_type_1};
    static const char *const ids[] = {"a", "b"};

    memset(run, 0x5a, sizeof(*run));
    for (size_t i = 0; i < TARGETS; i++)
        run->targets[i] = (struct state_target){.id = ids[i],
                                                .type = types[i],
                                                .object = &run->objects[i],
                                                .scratch = &run->scratch[i],
                                                .optional = true};
    run->error = (struct error){0};
}

static void check_unchanged(const struct run *run, size_t i)
{
    const uint8_t *bytes = (const uint8_t *)&run->objects[i];

    for (size_t k = 0; k < sizeof(run->objects[i]); k++)
        assert(bytes[k] == 0x5a);
}

static void check_again(const struct run *run)
{
    struct state_writer writer;
    uint8_t bytes[4096];
    size_t length;
    struct run again;

    prepare(&again);
    state_writer_init(&writer, bytes, sizeof(bytes));
    for (size_t i = 0; i < TARGETS; i++) {
        if (run->targets[i].loaded)
            state_write(&writer, run->targets[i].id, run->targets[i].type, &run->objects[i], true);
    }
    assert(state_writer_finish(&writer, &length, &again.error) == 0);
    assert(state_load(bytes, length, again.targets, TARGETS, &again.error) == 0);
    for (size_t i = 0; i < TARGETS; i++) {
        assert(again.targets[i].loaded == run->targets[i].loaded);
        assert(memcmp(&again.objects[i], &run->objects[i], sizeof(again.objects[i])) == 0);
    }
}

static void check_line(void *opaque, const char *line)
{
    for (; *line; line++)
        assert(*line >= 0x20 && *line < 0x7f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error error = {0};
    struct run run;
    int ret;

    prepare(&run);
    ret = state_load(data, size, run.targets, TARGETS, &run.error);
    assert(ret == 0 || (ret == -run.error.code && run.error.message[0]));
    for (size_t i = 0; i < TARGETS; i++) {
        if (!run.targets[i].loaded)
            check_unchanged(&run, i);
        else
            assert(ret == 0 && sample_check(&run.objects[i], &error) == 0);
    }
    if (ret == 0)
        check_again(&run);
    ret = state_dump(data, size, check_line, NULL, &error);
    assert(ret == 0 || ret == -error.code);
    return 0;
}
