/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: any bytes as a state stream, into an object of every state type that baton has (the
 * list is tests/golden/golden_registry.c; an object's id is the name of its type), into readers of
 * both versions of the sample type, and into the dump. What must hold: a load that fails changes
 * nothing; one that succeeds gives objects that pass their checks and come out the same after being
 * saved and loaded again, and once more by those who remember what their sections were.
 */
#include <string.h>

#include "base/util.h"
#include "fuzz.h"
#include "golden/golden_registry.h"
#include "sample_state.h"

#define TARGETS_MAX 32u
#define ROOM        (4 * MIB)
#define FORMER_ROOM (64 * KIB)
#define UNTOUCHED   0x5a

/* Which objects were loaded and refused. The loader's code is the same for all of them, so that
 * libFuzzer would see no difference; what counts something new here, it keeps. */
static uint8_t outcomes[2][TARGETS_MAX] __attribute__((section("__libfuzzer_extra_counters")));

struct objects {
    struct state_target targets[TARGETS_MAX];
    size_t count;
};

static void add_target(struct objects *objects, const char *id, const struct state_type *type)
{
    struct state_target *target = &objects->targets[objects->count++];

    assert(objects->count <= TARGETS_MAX);
    *target = (struct state_target){.id = id,
                                    .type = type,
                                    .object = malloc(type->size),
                                    .scratch = malloc(type->size),
                                    .optional = true,
                                    .former = malloc(FORMER_ROOM),
                                    .former_capacity = FORMER_ROOM};
    assert(target->object && target->scratch && target->former);
    memset(target->object, UNTOUCHED, type->size);
}

/* One object of each type. */
static void make_objects(struct objects *objects)
{
    add_target(objects, "a", &sample_type_2);
    add_target(objects, "b", &sample_type_1);
    for (size_t i = 0; i < golden_type_count; i++)
        add_target(objects, golden_types[i].type->name, golden_types[i].type);
}

/* Makes objects that were loaded as they were before. */
static void clear(struct objects *objects)
{
    for (size_t i = 0; i < objects->count; i++) {
        objects->targets[i].former_length = 0;
        if (objects->targets[i].loaded)
            memset(objects->targets[i].object, UNTOUCHED, objects->targets[i].type->size);
    }
}

static void check_unchanged(const struct state_target *target)
{
    const uint8_t *bytes = target->object;

    /* all equal the first: each equals the next */
    assert(bytes[0] == UNTOUCHED && memcmp(bytes, bytes + 1, target->type->size - 1) == 0);
}

/* Saves what was loaded, and loads that. */
static void check_again(const struct objects *objects, struct objects *again)
{
    static uint8_t bytes[ROOM];
    struct state_writer writer;
    struct error error = {0};
    size_t length;
    int ret;

    state_writer_init(&writer, bytes, sizeof(bytes));
    for (size_t i = 0; i < objects->count; i++) {
        const struct state_target *target = &objects->targets[i];

        if (target->loaded)
            state_write(&writer, target->id, target->type, target->object, true);
    }
    ret = state_writer_finish(&writer, &length, &error);
    assert(ret == 0);
    for (unsigned times = 0; times < 2; times++) {
        ret = state_load(bytes, length, again->targets, again->count, &error);
        assert(ret == 0);
    }
    for (size_t i = 0; i < objects->count; i++) {
        assert(again->targets[i].loaded == objects->targets[i].loaded);
        assert(!again->targets[i].loaded ||
               memcmp(again->targets[i].object, objects->targets[i].object,
                      objects->targets[i].type->size) == 0);
    }
    clear(again);
}

/* A refusal begins with the section that it is about. */
static void count_outcomes(const struct objects *objects, const struct error *error)
{
    static const char section[] = "section '";
    const char *id = error->message + sizeof(section) - 1;

    for (size_t i = 0; i < objects->count; i++) {
        const struct state_target *target = &objects->targets[i];

        if (target->loaded)
            outcomes[0][i] = 1;
        else if (error->code && strncmp(error->message, section, sizeof(section) - 1) == 0 &&
                 strncmp(id, target->id, strlen(target->id)) == 0)
            outcomes[1][i] = 1;
    }
}

static void check_line(void *opaque, const char *line)
{
    (void)opaque;
    for (; *line; line++)
        assert(*line >= 0x20 && *line < 0x7f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct objects objects, again;
    struct error error = {0};
    int ret;

    if (objects.count == 0) {
        make_objects(&objects);
        make_objects(&again);
    }
    ret = state_load(data, size, objects.targets, objects.count, &error);
    assert(ret == 0 || (ret == -error.code && error.message[0]));
    count_outcomes(&objects, &error);
    for (size_t i = 0; i < objects.count; i++) {
        const struct state_target *target = &objects.targets[i];

        if (!target->loaded)
            check_unchanged(target);
        else
            assert(ret == 0 &&
                   (!target->type->check || target->type->check(target->object, &error) == 0));
    }
    if (ret == 0)
        check_again(&objects, &again);
    clear(&objects);
    ret = state_dump(data, size, check_line, NULL, &error);
    assert(ret == 0 || ret == -error.code);
    return 0;
}
