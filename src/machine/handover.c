/* SPDX-License-Identifier: Apache-2.0
 *
 * See handover.h: describing, adopting, saving and loading a whole machine, as loops over the
 * table of parts.
 */
#include "machine/handover.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "kvm/warm_up.h"
#include "machine/internal.h"

#define DEFINITION_STRING_SIZE (CONFIG_CMDLINE_SIZE + 64)
#define SECTION_OVERHEAD       512 /* id, names of fields: generous */

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

/* Gives every target scratch memory out of one block, which the caller frees; and memory for its
 * former section where it says how much. */
static void *give_scratch(struct state_target *targets, size_t count)
{
    size_t total = 0;
    uint8_t *block;

    for (size_t i = 0; i < count; i++) {
        assert(targets[i].type != NULL);
        total += align_up(targets[i].type->size, 16) + align_up(targets[i].former_capacity, 16);
    }
    block = xcalloc(1, total);
    for (size_t i = 0, used = 0; i < count; i++) {
        targets[i].scratch = block + used;
        used += align_up(targets[i].type->size, 16);
        targets[i].former = block + used;
        used += align_up(targets[i].former_capacity, 16);
    }
    return block;
}

int machine_read_facts(const struct config *config, struct machine_facts *facts, const void *bytes,
                       size_t length, struct error *error)
{
    struct state_target targets[FACTS_MAX];
    char ids[FACTS_MAX][MACHINE_STATE_ID_SIZE];
    unsigned spaces = config->iommu_count + config->device_count;
    size_t count = list_facts(config, facts, spaces, targets, ids);
    void *scratch = give_scratch(targets, count);
    int ret = state_load(bytes, length, targets, count, error);

    free(scratch);
    facts->space_count = 0;
    for (unsigned i = 0; ret == 0 && i < spaces && targets[1 + i].loaded; i++)
        facts->space_count++;
    return ret;
}

/* --- describe and adopt -------------------------------------------------------------------- */

int machine_describe(struct machine *machine, struct machine_facts *facts, struct fdset *fds,
                     struct error *error)
{
    int ret = 0;

    pthread_mutex_lock(&machine->lock);
    for (unsigned i = 0; ret == 0 && i < machine_part_count; i++) {
        const struct machine_part *part = machine_parts[i];

        for (unsigned j = 0; ret == 0 && part->describe && j < part->count(machine); j++)
            ret = part->describe(machine, j, facts, fds, error);
    }
    pthread_mutex_unlock(&machine->lock);
    return ret;
}

static int adopt_parts(struct machine *machine, const struct machine_source *source,
                       struct error *error)
{
    for (unsigned i = 0; i < machine_part_count; i++) {
        const struct machine_part *part = machine_parts[i];

        for (unsigned j = 0; part->adopt && j < part->count(machine); j++) {
            int ret = part->adopt(machine, j, source, error);

            if (ret < 0)
                return ret;
        }
    }
    return 0;
}

/* A terminal of this process's own is another one than the former process's, by whatever name. */
static void choose_console(struct machine *machine, const struct config *given)
{
    machine->console_given = given->given[CONFIG_OPTION_SERIAL] &&
                             (strncmp(given->serial, "stdio", strlen("stdio")) == 0 ||
                              strcmp(given->serial, machine->config.serial) != 0);
    if (machine->console_given)
        memcpy(machine->config.serial, given->serial, sizeof(given->serial));
}

int machine_adopt(struct machine **result, const struct config *config, const struct config *given,
                  const struct machine_facts *facts, struct fdset *fds, sd_event *loop,
                  struct error *error)
{
    const struct machine_source source = {.facts = facts, .fds = fds};
    struct machine *machine;
    int ret = machine_new(&machine, config, loop, error);

    if (ret < 0)
        return ret;
    machine->status = MACHINE_INMIGRATE;
    choose_console(machine, given);
    ret = adopt_parts(machine, &source, error);
    if (ret < 0) {
        machine_release(machine, true);
        return ret;
    }
    machine_make_targets(machine);
    machine_set_console_active(machine, false); /* also one that was opened here */
    *result = machine;
    return 0;
}

/* --- state --------------------------------------------------------------------------------- */

static size_t count_sections(const struct machine *machine)
{
    size_t count = 0;

    for (unsigned i = 0; i < machine_part_count; i++) {
        if (machine_parts[i]->state_type)
            count += machine_parts[i]->count(machine);
    }
    return count;
}

static void name_section(const struct machine *machine, const struct machine_part *part,
                         unsigned index, char id[MACHINE_STATE_ID_SIZE])
{
    if (part->id)
        snprintf(id, MACHINE_STATE_ID_SIZE, "%s/%s", part->name, part->id(machine, index));
    else
        snprintf(id, MACHINE_STATE_ID_SIZE, "%s/%u", part->name, index);
}

void machine_make_targets(struct machine *machine)
{
    size_t next = 0;

    machine->target_count = count_sections(machine);
    machine->targets = xcalloc(machine->target_count, sizeof(*machine->targets));
    machine->target_ids = xcalloc(machine->target_count, sizeof(*machine->target_ids));
    for (unsigned i = 0; i < machine_part_count; i++) {
        const struct machine_part *part = machine_parts[i];

        for (unsigned j = 0; part->state_type && j < part->count(machine); j++, next++) {
            name_section(machine, part, j, machine->target_ids[next]);
            machine->targets[next] = (struct state_target){
                .id = machine->target_ids[next],
                .type = part->state_type,
                .object = part->state(machine, j),
                .optional = part->is_default != NULL,
                .former_capacity = part->settled ? part->state_type->size + SECTION_OVERHEAD : 0};
        }
    }
    machine->target_scratch = give_scratch(machine->targets, machine->target_count);
}

/* Encoding adds a little to every element of an array (its keys): twice the size is ample for the
 * arrays that there are, and what does not fit is an error in the rehearsal. */
size_t machine_state_capacity(const struct config *config)
{
    size_t capacity = 64 * KIB;

    capacity += config->cpus * (3 * kvm_vcpu_state_type.size + SECTION_OVERHEAD);
    capacity += 4 * iommu_peers_state_type.size;
    capacity += config->device_count * (4 * vfio_pci_state_type.size + SECTION_OVERHEAD);
    return align_up(capacity, PAGE_SIZE);
}

static int save_parts(struct machine *machine, struct error *error)
{
    for (unsigned i = 0; i < machine_part_count; i++) {
        int ret = machine_parts[i]->save ? machine_parts[i]->save(machine, error) : 0;

        if (ret < 0)
            return ret;
    }
    return 0;
}

static void write_parts(struct machine *machine, struct state_writer *writer)
{
    size_t next = 0;

    for (unsigned i = 0; i < machine_part_count; i++) {
        const struct machine_part *part = machine_parts[i];
        bool required = !part->is_default || !part->is_default(machine);

        for (unsigned j = 0; part->state_type && j < part->count(machine); j++, next++)
            state_write(writer, machine->targets[next].id, part->state_type,
                        machine->targets[next].object, required);
    }
}

static int save_locked(struct machine *machine, void *bytes, size_t capacity, size_t *length,
                       struct error *error)
{
    struct state_writer writer;
    int ret = save_parts(machine, error);

    if (ret < 0)
        return ret;
    state_writer_init(&writer, bytes, capacity);
    pthread_mutex_lock(&machine->lock);
    write_parts(machine, &writer);
    pthread_mutex_unlock(&machine->lock);
    return state_writer_finish(&writer, length, error);
}

/* With life held: a reset on the main thread would use the vCPUs' threads and states, too. */
int machine_save(struct machine *machine, void *bytes, size_t capacity, size_t *length,
                 struct error *error)
{
    int ret;

    *length = 0;
    pthread_mutex_lock(&machine->life);
    ret = save_locked(machine, bytes, capacity, length, error);
    pthread_mutex_unlock(&machine->life);
    return ret;
}

static int apply_parts(struct machine *machine, struct error *error)
{
    for (unsigned i = 0; i < machine_part_count; i++) {
        int ret = machine_parts[i]->apply ? machine_parts[i]->apply(machine, error) : 0;

        if (ret < 0)
            return ret;
    }
    return 0;
}

int machine_load(struct machine *machine, const void *bytes, size_t length, struct error *error)
{
    int ret;

    pthread_mutex_lock(&machine->lock);
    ret = state_load(bytes, length, machine->targets, machine->target_count, error);
    if (ret == 0)
        ret = apply_parts(machine, error);
    pthread_mutex_unlock(&machine->lock);
    return ret;
}

/* --- the guest's life ---------------------------------------------------------------------- */

static int pause_locked(struct machine *machine, unsigned limit_ms, struct error *error)
{
    uint64_t deadline = clock_ns() + limit_ms * UINT64_C(1000000);
    int ret;

    if (!machine_is_alive(machine))
        return error_set(error, ESHUTDOWN, "the guest is in state '%s'",
                         machine_status_name(machine->status));
    machine->status_before_pause = machine->status;
    machine->state.running = machine->status == MACHINE_RUNNING;
    ret = kvm_vcpus_stop_and_save(machine->vcpus, machine->vcpu_count, &machine->vm_state,
                                  &machine->rendezvous, deadline);
    if (ret == 0) {
        machine_set_status(machine, MACHINE_FINISH_MIGRATE);
        return 0;
    }
    if (machine->state.running)
        machine_run_vcpus(machine);
    return error_set(error, -ret,
                     "a vCPU could not be paused in time: one of its accesses to a "
                     "device takes too long");
}

int machine_pause_for_switch(struct machine *machine, unsigned limit_ms, struct error *error)
{
    int ret;

    pthread_mutex_lock(&machine->life);
    ret = pause_locked(machine, limit_ms, error);
    pthread_mutex_unlock(&machine->life);
    return ret;
}

void machine_undo_pause(struct machine *machine)
{
    struct error ignored;

    pthread_mutex_lock(&machine->life);
    kvm_vcpus_wait(machine->vcpus, machine->vcpu_count, &ignored);
    if (machine->state.running)
        machine_run_vcpus(machine);
    machine_set_status(machine, machine->status_before_pause);
    pthread_mutex_unlock(&machine->life);
    /* Requests that came in the meantime were left for later. */
    machine_post_request(machine, 0);
}

/* From the go on it is this process, or no longer, that changes address spaces. */
static void set_spaces_live(struct machine *machine, bool live)
{
    pthread_mutex_lock(&machine->lock);
    iommu_set_set_live(machine->spaces, live);
    pthread_mutex_unlock(&machine->lock);
}

void machine_handed_over(struct machine *machine)
{
    pthread_mutex_lock(&machine->life);
    machine_set_status(machine, MACHINE_POSTMIGRATE);
    set_spaces_live(machine, false);
    pthread_mutex_unlock(&machine->life);
    if (machine->state.running)
        machine_post_event(machine, MACHINE_EVENT_STOP);
}

uint64_t machine_warm_up(struct machine *machine, unsigned limit_ms)
{
    uint64_t deadline = clock_ns() + limit_ms * UINT64_C(1000000);

    return kvm_vcpus_warm_up(machine->vcpus, machine->vcpu_count, ram_is_allocated(&machine->ram),
                             deadline);
}

void machine_run_adopted(struct machine *machine, void (*enters)(void *opaque), void *opaque)
{
    machine->enters = enters;
    machine->enters_opaque = opaque;
    machine->state.generation++;
    set_spaces_live(machine, true);
    if (machine->state.running) {
        machine_run_vcpus(machine);
        machine_post_event(machine, MACHINE_EVENT_RESUME);
    }
    machine_set_status(machine, machine->state.running ? MACHINE_RUNNING : MACHINE_PAUSED);
    /* What the guest asked for over there is done here. */
    machine_post_request(machine, 0);
}

void machine_vcpu_times(const struct machine *machine, unsigned index, uint64_t *last_exit_ns,
                        uint64_t *first_entry_ns)
{
    const struct kvm_vcpu *vcpu = &machine->vcpus[index];

    *last_exit_ns = __atomic_load_n(&vcpu->last_exit_ns, __ATOMIC_SEQ_CST);
    *first_entry_ns = __atomic_load_n(&vcpu->first_entry_ns, __ATOMIC_SEQ_CST);
}

sd_event *machine_loop(const struct machine *machine)
{
    return machine->loop;
}

uint32_t machine_generation(const struct machine *machine)
{
    return machine->state.generation;
}

bool machine_was_running(const struct machine *machine)
{
    return machine->state.running;
}

int machine_set_delivery(struct machine *machine, enum kvm_irq_delivery delivery,
                         struct error *error)
{
    int ret;

    pthread_mutex_lock(&machine->lock);
    ret = kvm_irqs_set_delivery(&machine->vm, delivery, error);
    pthread_mutex_unlock(&machine->lock);
    return ret;
}

/* One of iommu_set_..._ownership(), with the lock. */
static int with_spaces(struct machine *machine, int (*step)(struct iommu_set *, struct error *),
                       struct error *error)
{
    int ret;

    pthread_mutex_lock(&machine->lock);
    ret = step(machine->spaces, error);
    pthread_mutex_unlock(&machine->lock);
    return ret;
}

int machine_release_ownership(struct machine *machine, struct error *error)
{
    return with_spaces(machine, iommu_set_release_ownership, error);
}

int machine_take_ownership(struct machine *machine, struct error *error)
{
    return with_spaces(machine, iommu_set_take_ownership, error);
}

int machine_take_back_ownership(struct machine *machine, struct error *error)
{
    return with_spaces(machine, iommu_set_take_back_ownership, error);
}

void machine_settle_peers(struct machine *machine)
{
    pthread_mutex_lock(&machine->lock);
    iommu_set_settle_peers(machine->spaces);
    pthread_mutex_unlock(&machine->lock);
}

int machine_probe_ownership(struct machine *machine, struct error *error)
{
    return with_spaces(machine, iommu_set_probe_ownership, error);
}

void machine_set_console_active(struct machine *machine, bool active)
{
    pthread_mutex_lock(&machine->lock);
    chardev_set_active(machine->console, active);
    pthread_mutex_unlock(&machine->lock);
}
