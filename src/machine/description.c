/* SPDX-License-Identifier: Apache-2.0
 *
 * See handover.h: what a process must know before it can build a machine for a guest that runs
 * elsewhere. The definition is the guest's command line, facts are what only its process knows.
 * Called in *describe*, by update/; no machine is there yet on the incoming side.
 */
#include "machine/handover.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "machine/internal.h"

#define DEFINITION_STRING_SIZE (CONFIG_CMDLINE_SIZE + 64)

/* --- the definition: the command line in canonical form ------------------------------------ */

struct definition_option {
    char text[DEFINITION_STRING_SIZE];
};

struct definition {
    uint32_t count;
    struct definition_option options[CONFIG_OPTIONS_MAX];
};

static const struct state_field option_fields[] = {
    STATE_STRING(struct definition_option, text, 1),
    STATE_END,
};

static const struct state_field definition_fields[] = {
    STATE_ARRAY(struct definition, options, count, option_fields, 1),
    STATE_END,
};

const struct state_type machine_definition_type = {
    .name = "definition",
    .version = 1,
    .min_version = 1,
    .size = sizeof(struct definition),
    .fields = definition_fields,
};

static int fill_definition(struct definition *definition, char **strings, size_t count,
                           struct error *error)
{
    if (count > CONFIG_OPTIONS_MAX)
        return error_set(error, E2BIG, "the definition has %zu words, %u can be handed over", count,
                         CONFIG_OPTIONS_MAX);
    for (size_t i = 0; i < count; i++) {
        if (strlen(strings[i]) >= DEFINITION_STRING_SIZE)
            return error_set(error, E2BIG, "option '%.40s...' is too long to be handed over",
                             strings[i]);
        snprintf(definition->options[i].text, DEFINITION_STRING_SIZE, "%s", strings[i]);
    }
    definition->count = (uint32_t)count;
    return 0;
}

int machine_write_definition(const struct config *config, void *bytes, size_t capacity,
                             size_t *length, struct error *error)
{
    CLEANUP_FREE struct definition *definition = xcalloc(1, sizeof(*definition));
    struct state_writer writer;
    char **strings;
    size_t count;
    int ret = config_to_options(config, &strings, &count, error);

    if (ret < 0)
        return ret;
    ret = fill_definition(definition, strings, count, error);
    config_free_options(strings, count);
    if (ret < 0)
        return ret;
    state_writer_init(&writer, bytes, capacity);
    state_write(&writer, "definition", &machine_definition_type, definition, true);
    return state_writer_finish(&writer, length, error);
}

int machine_read_definition(struct config *config, const void *bytes, size_t length,
                            struct error *error)
{
    CLEANUP_FREE struct definition *definition = xcalloc(1, sizeof(*definition));
    CLEANUP_FREE struct definition *scratch = xcalloc(1, sizeof(*scratch));
    struct state_target target = {.id = "definition",
                                  .type = &machine_definition_type,
                                  .object = definition,
                                  .scratch = scratch};
    const char *argv[CONFIG_OPTIONS_MAX];
    int ret = state_load(bytes, length, &target, 1, error);

    if (ret < 0)
        return ret;
    for (uint32_t i = 0; i < definition->count; i++)
        argv[i] = definition->options[i].text;
    ret = config_parse(config, (int)definition->count, argv, error);
    /* after such an option nothing was read, and nothing checked */
    if (ret == 0 && (config->help || config->version || config->trace_help))
        ret = error_set(error, EINVAL, "it asks for help");
    if (ret < 0)
        error_prefix(error, "the running guest's definition: ");
    return ret;
}

/* --- facts --------------------------------------------------------------------------------- */

#define FACTS_MAX (1 + IOMMU_SPACES_MAX + CONFIG_DEVICES_MAX)

/* An address space's section: those of iommufd objects are named after them. There can be one more
 * for every device (another IOAS, a container), and which it is stands in it. */
static void name_space(const struct config *config, unsigned index, char id[MACHINE_STATE_ID_SIZE])
{
    if (index < config->iommu_count)
        snprintf(id, MACHINE_STATE_ID_SIZE, "iommufd/%s", config->iommus[index].id);
    else
        snprintf(id, MACHINE_STATE_ID_SIZE, "space/%u", index);
}

/* The sections of a facts stream, in order, for writing and for reading.
 * @param spaces address spaces that there are, or can be: those after the iommufd objects' own need
 *               not be there */
static size_t list_facts(const struct config *config, struct machine_facts *facts, unsigned spaces,
                         struct state_target targets[FACTS_MAX],
                         char ids[FACTS_MAX][MACHINE_STATE_ID_SIZE])
{
    size_t count = 0;

    snprintf(ids[count], MACHINE_STATE_ID_SIZE, "cpuid");
    targets[count++] = (struct state_target){.type = &kvm_cpuid_type, .object = &facts->cpuid};
    for (unsigned i = 0; i < spaces; i++) {
        name_space(config, i, ids[count]);
        targets[count++] = (struct state_target){.type = &iommu_facts_type,
                                                 .object = &facts->spaces[i],
                                                 .optional = i >= config->iommu_count};
    }
    for (unsigned i = 0; i < config->device_count; i++) {
        snprintf(ids[count], MACHINE_STATE_ID_SIZE, "vfio-pci/%s", config->devices[i].id);
        targets[count++] =
            (struct state_target){.type = &vfio_pci_facts_type, .object = &facts->devices[i]};
    }
    for (size_t i = 0; i < count; i++)
        targets[i].id = ids[i];
    return count;
}

int machine_write_facts(const struct config *config, const struct machine_facts *facts, void *bytes,
                        size_t capacity, size_t *length, struct error *error)
{
    struct state_target targets[FACTS_MAX];
    char ids[FACTS_MAX][MACHINE_STATE_ID_SIZE];
    size_t count =
        list_facts(config, (struct machine_facts *)facts, facts->space_count, targets, ids);
    struct state_writer writer;

    state_writer_init(&writer, bytes, capacity);
    for (size_t i = 0; i < count; i++)
        state_write(&writer, targets[i].id, targets[i].type, targets[i].object, true);
    return state_writer_finish(&writer, length, error);
}

int machine_read_facts(const struct config *config, struct machine_facts *facts, const void *bytes,
                       size_t length, struct error *error)
{
    struct state_target targets[FACTS_MAX];
    char ids[FACTS_MAX][MACHINE_STATE_ID_SIZE];
    unsigned spaces = config->iommu_count + config->device_count;
    size_t count = list_facts(config, facts, spaces, targets, ids);
    void *scratch = state_make_scratch(targets, count);
    int ret = state_load(bytes, length, targets, count, error);

    free(scratch);
    facts->space_count = 0;
    for (unsigned i = 0; ret == 0 && i < spaces && targets[1 + i].loaded; i++)
        facts->space_count++;
    return ret;
}
