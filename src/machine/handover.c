/* SPDX-License-Identifier: Apache-2.0
 *
 * See handover.h: describing, adopting, saving and loading a whole machine, as loops over the
 * table of parts; and the guest's life in a hand-over. Called by update/, on the thread of the
 * hand-over or, in an incoming process, on the main thread.
 */
#include "machine/handover.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "kvm/warm_up.h"
#include "machine/internal.h"

#define SECTION_OVERHEAD 512 /* id, names of fields: generous */

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
    machine->target_scratch = state_make_scratch(machine->targets, machine->target_count);
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
