/* SPDX-License-Identifier: Apache-2.0
 *
 * The incoming side's part of each stage. Runs on the event loop's thread. Nothing here needs an
 * undo: until the go, this process can be thrown away at any moment.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/trace.h"
#include "base/util.h"
#include "update/stages.h"

#define DESCRIPTORS_LIMIT_MS 10000
#define ENTRY_LIMIT_NS       UINT64_C(200000000)
#define WARM_UP_LIMIT_MS     100

int incoming_hello(struct update_incoming *incoming, struct error *error)
{
    const struct wire_request *request = &incoming->wire.request;
    struct wire_reply *reply = &incoming->wire.reply;

    snprintf(reply->version, sizeof(reply->version), "%s", BATON_VERSION);
    if (request->protocol < WIRE_PROTOCOL_MIN || request->protocol_min > WIRE_PROTOCOL)
        return error_set(
            error, EPROTO,
            "this baton (%s) speaks hand-over protocols %u to %u, the running one (%s) "
            "%u to %u: update by way of a version in between",
            BATON_VERSION, WIRE_PROTOCOL_MIN, WIRE_PROTOCOL, request->version,
            request->protocol_min, request->protocol);
    reply->protocol = MIN(request->protocol, WIRE_PROTOCOL);
    return 0;
}

/* The host side of a definition: what was given here replaces what the running guest has. The
 * console is the machine's affair, which may have it from the former process. */
static void choose_host_side(struct config *config, const struct config *given)
{
    if (given->given[CONFIG_OPTION_QMP]) {
        memcpy(config->qmp, given->qmp, sizeof(config->qmp));
        config->qmp_count = given->qmp_count;
    }
    if (given->given[CONFIG_OPTION_PIDFILE])
        memcpy(config->pidfile, given->pidfile, sizeof(config->pidfile));
}

static int read_description(struct update_incoming *incoming, struct error *error)
{
    const struct wire_request *request = &incoming->wire.request;
    const uint8_t *description = wire_description(&incoming->memory);
    int ret;

    if (request->definition_length > WIRE_DESCRIPTION_SIZE ||
        request->facts_length > WIRE_DESCRIPTION_SIZE - request->definition_length)
        return error_set(error, EPROTO, "the description does not fit its place");
    ret =
        machine_read_definition(&incoming->config, description, request->definition_length, error);
    if (ret == 0)
        ret = config_compare(&incoming->config, incoming->given, error);
    if (ret == 0)
        ret = machine_read_facts(&incoming->config, &incoming->facts,
                                 description + request->definition_length, request->facts_length,
                                 error);
    if (ret == 0)
        choose_host_side(&incoming->config, incoming->given);
    return ret;
}

/* What is handed over once must be one object each. The console and the log may well be the same
 * terminal. */
static int check_identities(const struct fdset *fds, struct error *error)
{
    static const char *const prefixes[] = {"ram/", "iommu/", "vfio/"};

    for (size_t i = 0; i < ARRAY_SIZE(prefixes); i++) {
        int ret = fdset_check_distinct(fds, prefixes[i], error);

        if (ret < 0)
            return ret;
    }
    return 0;
}

int incoming_describe(struct update_incoming *incoming, struct error *error)
{
    int ret =
        wire_receive_descriptors(&incoming->wire, &incoming->fds, incoming->wire.request.fd_count,
                                 DESCRIPTORS_LIMIT_MS, error);

    if (ret < 0)
        return ret;
    if (!incoming->memory.shared)
        return error_set(error, EPROTO, "the shared memory is missing");
    ret = check_identities(&incoming->fds, error);
    return ret < 0 ? ret : read_description(incoming, error);
}

int incoming_prepare(struct update_incoming *incoming, struct error *error)
{
    int ret = machine_adopt(&incoming->machine, &incoming->config, incoming->given,
                            &incoming->facts, &incoming->fds, incoming->loop, error);

    if (ret == 0)
        ret = incoming->adopt(incoming->opaque, incoming->machine, &incoming->fds, error);
    for (size_t i = 0; ret == 0 && i < incoming->fds.count; i++)
        log_info("descriptor '%s' is not needed here", incoming->fds.entries[i].name);
    fdset_clear(&incoming->fds);
    return ret;
}

static int load(struct update_incoming *incoming, struct error *error)
{
    uint64_t length = incoming->wire.request.state_length;

    if (!incoming->machine || length > wire_state_capacity(&incoming->memory))
        return error_set(error, EPROTO, "state came before its time or is too long");
    return machine_load(incoming->machine, wire_state(&incoming->memory), length, error);
}

static void warm_up(struct update_incoming *incoming)
{
    uint64_t start = clock_ns();
    uint64_t mapped = machine_warm_up(incoming->machine, WARM_UP_LIMIT_MS);

    trace(update_warm_up, mapped, clock_ns() - start);
}

/* As the switch would: the second time. */
static int measure_load(struct update_incoming *incoming, struct error *error)
{
    uint64_t start = clock_ns();
    int ret = load(incoming, error);

    incoming->wire.reply.load_ns = clock_ns() - start;
    incoming->over = ret == 0;
    return ret;
}

/* A full load into this process's VM and devices, none of which runs: what would fail in the
 * switch fails here, and whatever can be made ready has been made ready by it. Only then has the VM
 * all its memory, BARs included. */
int incoming_rehearse(struct update_incoming *incoming, struct error *error)
{
    int ret = load(incoming, error);

    if (ret == 0)
        ret = machine_probe_ownership(incoming->machine, error);
    if (ret < 0)
        return ret;
    if (incoming->wire.request.dry_run)
        return measure_load(incoming, error);
    warm_up(incoming);
    return 0;
}

int incoming_quiesce(struct update_incoming *incoming, struct error *error)
{
    if (!incoming->machine)
        return error_set(error, EPROTO, "there is no machine yet");
    return machine_take_ownership(incoming->machine, error);
}

int incoming_switch(struct update_incoming *incoming, struct error *error)
{
    int ret = load(incoming, error);

    incoming->loaded = ret == 0;
    return ret;
}

static void guest_runs(void *opaque)
{
    const struct update_incoming *incoming = opaque;

    wire_runs(&incoming->memory);
}

/* Nothing may fail once the guest is claimed; what does is reported and lived with. Should this
 * process die, the guest is not lost with it before one of its vCPUs has entered, or an interrupt
 * has been taken from an eventfd. */
int incoming_go(struct update_incoming *incoming, struct error *error)
{
    bool won = wire_claim(&incoming->memory, WIRE_CLAIMED);
    struct error ignored;

    trace(update_claim, "incoming", won);
    if (!won)
        return error_set(error, ECANCELED, "the go came too late, the guest has been taken back");
    machine_run_adopted(incoming->machine, guest_runs, incoming);
    wire_runs(&incoming->memory);
    if (machine_set_delivery(incoming->machine, KVM_IRQ_PROXY, &ignored) < 0)
        log_error("%s", ignored.message);
    incoming->runs = true;
    return 0;
}

/* When each vCPU went in. The threads may still be on their way. */
static void collect_entries(struct update_incoming *incoming)
{
    struct update_report *report = &incoming->report;
    uint64_t deadline = clock_ns() + ENTRY_LIMIT_NS;
    uint64_t unused;

    report->vcpu_count = incoming->config.cpus;
    for (unsigned i = 0; i < report->vcpu_count; i++) {
        do {
            machine_vcpu_times(incoming->machine, i, &unused, &report->vcpu_in_ns[i]);
        } while (machine_was_running(incoming->machine) && report->vcpu_in_ns[i] == 0 &&
                 clock_ns() < deadline && poll(NULL, 0, 1) == 0);
    }
}

static void take_breakdown(struct update_incoming *incoming)
{
    const struct wire_request *request = &incoming->wire.request;
    struct update_report *report = &incoming->report;

    report->stage_count = 0;
    for (uint32_t i = 0; i < request->stage_count; i++) {
        const struct stage *stage = stage_find(request->stages[i].name);

        if (stage) /* the other version may know stages that this one does not */
            report->stages[report->stage_count++] =
                (struct update_stage_time){.name = stage->name,
                                           .start_ns = request->stages[i].start_ns,
                                           .end_ns = request->stages[i].end_ns,
                                           .incoming_ns = request->stages[i].incoming_ns,
                                           .bytes = request->stages[i].bytes};
    }
    for (uint32_t i = 0; i < MIN(request->vcpu_count, report->vcpu_count); i++)
        report->vcpu_out_ns[i] = request->vcpus[i].ns;
}

void incoming_settle(struct update_incoming *incoming)
{
    struct error error;

    if (machine_set_delivery(incoming->machine, KVM_IRQ_KERNEL, &error) < 0)
        log_error("%s; interrupts go through a thread of this process", error.message);
    machine_set_console_active(incoming->machine, true);
    machine_settle_peers(incoming->machine);
    collect_entries(incoming);
}

int incoming_finish(struct update_incoming *incoming, struct error *error)
{
    struct wire_reply *reply = &incoming->wire.reply;
    struct update_report *report = &incoming->report;

    if (!incoming->runs)
        return error_set(error, EPROTO, "finish came before the go");
    incoming_settle(incoming);
    take_breakdown(incoming);
    reply->vcpu_count = report->vcpu_count;
    for (uint32_t i = 0; i < report->vcpu_count; i++)
        reply->vcpus[i].ns = report->vcpu_in_ns[i];
    if (machine_was_running(incoming->machine))
        update_compute_blackout(report);
    return 0;
}
