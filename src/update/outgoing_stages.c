/* SPDX-License-Identifier: Apache-2.0
 *
 * The outgoing side's part of each stage, and what it takes to undo it. Runs on the thread of the
 * hand-over; the main thread and the vCPUs live on meanwhile.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/trace.h"
#include "base/util.h"
#include "update/stages.h"

#define CONNECT_RETRY_MS 5

int outgoing_time_left(const struct outgoing *outgoing)
{
    uint64_t now = clock_ns();

    return now >= outgoing->deadline_ns ? 0 : (int)((outgoing->deadline_ns - now) / 1000000 + 1);
}

int outgoing_receive_reply(struct outgoing *outgoing, struct error *error)
{
    int ret = wire_receive_reply(&outgoing->wire, outgoing_time_left(outgoing), error);

    if (ret == 0 || outgoing->wire.reply.code != 0)
        outgoing->unanswered = false;
    return ret;
}

/* --- hello --------------------------------------------------------------------------------- */

/* The new process may still be on its way to its socket. */
static int connect_patiently(struct outgoing *outgoing, struct error *error)
{
    for (;;) {
        int ret = channel_connect(&outgoing->wire.channel, outgoing->path,
                                  outgoing_time_left(outgoing), error);

        if ((ret != -ENOENT && ret != -ECONNREFUSED) || outgoing_time_left(outgoing) == 0 ||
            update_is_cancelled(outgoing->update))
            return ret;
        poll(NULL, 0, CONNECT_RETRY_MS);
    }
}

int outgoing_hello(struct outgoing *outgoing, struct error *error)
{
    struct wire_request *request = &outgoing->wire.request;
    int ret = connect_patiently(outgoing, error);

    if (ret < 0)
        return ret;
    update_channel_opened(outgoing->update, outgoing->wire.channel);
    snprintf(request->version, sizeof(request->version), "%s", BATON_VERSION);
    request->protocol = WIRE_PROTOCOL;
    request->protocol_min = WIRE_PROTOCOL_MIN;
    return 0;
}

int outgoing_hello_answered(struct outgoing *outgoing, struct error *error)
{
    const struct wire_reply *reply = &outgoing->wire.reply;

    if (reply->protocol < WIRE_PROTOCOL_MIN || reply->protocol > WIRE_PROTOCOL)
        return error_set(error, EPROTO, "the new process (baton %s) speaks protocol %u, not %u",
                         reply->version, reply->protocol, WIRE_PROTOCOL);
    log_info("handing over to process %d, baton %s", (int)channel_peer_pid(outgoing->wire.channel),
             reply->version);
    return 0;
}

/* --- describe ------------------------------------------------------------------------------ */

static int collect_descriptors(struct outgoing *outgoing, struct error *error)
{
    int ret = machine_describe(outgoing->machine, &outgoing->facts, &outgoing->fds, error);

    for (size_t i = 0; ret == 0 && i < outgoing->extra->count; i++)
        ret = fdset_add_copy(&outgoing->fds, outgoing->extra->entries[i].fd, error, "%s",
                             outgoing->extra->entries[i].name);
    outgoing->wire.request.fd_count = (uint32_t)outgoing->fds.count;
    return ret;
}

static int write_description(struct outgoing *outgoing, struct error *error)
{
    struct wire_request *request = &outgoing->wire.request;
    const struct config *config = machine_config(outgoing->machine);
    uint8_t *description = wire_description(&outgoing->memory);
    size_t definition = 0, facts = 0;
    int ret =
        machine_write_definition(config, description, WIRE_DESCRIPTION_SIZE, &definition, error);

    if (ret == 0)
        ret = machine_write_facts(config, &outgoing->facts, description + definition,
                                  WIRE_DESCRIPTION_SIZE - definition, &facts, error);
    if (ret < 0)
        return ret;
    request->definition_length = definition;
    request->facts_length = facts;
    return 0;
}

int outgoing_describe(struct outgoing *outgoing, struct error *error)
{
    size_t capacity = machine_state_capacity(machine_config(outgoing->machine));
    int ret = wire_memory_create(&outgoing->memory, capacity, error);

    if (ret == 0)
        ret = collect_descriptors(outgoing, error);
    if (ret == 0)
        ret = write_description(outgoing, error);
    outgoing->request_fd = outgoing->memory.fd;
    return ret;
}

/* Batches follow the request that announced how many descriptors there are. */
int outgoing_send_descriptors(struct outgoing *outgoing, struct error *error)
{
    int ret =
        wire_send_descriptors(&outgoing->wire, &outgoing->fds, outgoing_time_left(outgoing), error);

    fdset_clear(&outgoing->fds);
    return ret;
}

/* --- rehearse and switch ------------------------------------------------------------------- */

static int save(struct outgoing *outgoing, struct error *error)
{
    size_t length;
    int ret = machine_save(outgoing->machine, wire_state(&outgoing->memory),
                           wire_state_capacity(&outgoing->memory), &length, error);

    outgoing->wire.request.state_length = length;
    return ret;
}

/* In the switch it is not the first time either. */
static int save_again(struct outgoing *outgoing, struct error *error)
{
    uint64_t start = clock_ns();
    int ret = save(outgoing, error);

    outgoing->measured.save_ns = clock_ns() - start;
    return ret;
}

int outgoing_rehearse(struct outgoing *outgoing, struct error *error)
{
    int ret = machine_probe_ownership(outgoing->machine, error);

    if (ret == 0)
        ret = save(outgoing, error);
    if (ret == 0 && outgoing->dry_run)
        ret = save_again(outgoing, error);
    return ret;
}

int outgoing_rehearse_answered(struct outgoing *outgoing, struct error *error)
{
    const struct wire_reply *reply = &outgoing->wire.reply;

    (void)error;
    /* A version that knows of no dry run has not told apart what it did. */
    outgoing->measured.load_ns = reply->load_ns ? reply->load_ns : reply->work_ns;
    if (outgoing->dry_run)
        update_predict(outgoing->update, &outgoing->measured);
    return 0;
}

int outgoing_switch(struct outgoing *outgoing, struct error *error)
{
    return save(outgoing, error);
}

/* --- quiesce ------------------------------------------------------------------------------- */

/* From here to the end of the incoming side's part, the mappings may be nobody's. */
int outgoing_quiesce(struct outgoing *outgoing, struct error *error)
{
    int ret = machine_set_delivery(outgoing->machine, KVM_IRQ_PROXY, error);

    return ret < 0 ? ret : machine_release_ownership(outgoing->machine, error);
}

/* What goes wrong here concerns accounting or speed, never the guest: it goes on. */
void outgoing_undo_quiesce(struct outgoing *outgoing)
{
    struct error error;

    if (machine_take_back_ownership(outgoing->machine, &error) < 0)
        log_error("undo: %s", error.message);
    if (machine_set_delivery(outgoing->machine, KVM_IRQ_KERNEL, &error) < 0) {
        log_error("undo: %s; interrupts go through a thread of this process from now on",
                  error.message);
        if (machine_set_delivery(outgoing->machine, KVM_IRQ_PROXY, &error) < 0)
            log_error("undo: %s", error.message);
    }
}

/* --- pause --------------------------------------------------------------------------------- */

/* Devices and console fall silent first, while the guest runs: each vCPU saves its state as soon as
 * it has stopped, and nothing may change that any more. */
int outgoing_pause(struct outgoing *outgoing, struct error *error)
{
    int ret = machine_set_delivery(outgoing->machine, KVM_IRQ_HELD, error);

    if (ret < 0)
        return ret;
    machine_set_console_active(outgoing->machine, false);
    ret =
        machine_pause_for_switch(outgoing->machine, (unsigned)outgoing_time_left(outgoing), error);
    outgoing->paused = ret == 0;
    return ret;
}

void outgoing_undo_pause(struct outgoing *outgoing)
{
    machine_set_console_active(outgoing->machine, true);
    if (outgoing->paused)
        machine_undo_pause(outgoing->machine);
    outgoing->paused = false;
}

/* --- go, run, finish ----------------------------------------------------------------------- */

/* The commit point. A go that could not be sent has not been received. */
int outgoing_go(struct outgoing *outgoing, struct error *error)
{
    int ret;

    if (!update_commits(outgoing->update))
        return error_set(error, ECANCELED, "cancelled");
    trace(update_go, "outgoing");
    ret = wire_send_go(&outgoing->wire, outgoing_time_left(outgoing), error);
    outgoing->unanswered = ret == 0;
    return ret;
}

/* A process that has claimed the guest and died before it ran there. Only its death rules out that
 * it will, so one that is silent is not taken anything from. */
static bool inherit(struct outgoing *outgoing)
{
    return wire_is_claimed(&outgoing->memory) &&
           channel_peer_dies(outgoing->wire.channel, (unsigned)outgoing_time_left(outgoing)) &&
           wire_inherit(&outgoing->memory);
}

/* The go is out. If the guest has begun to run in the new process, it lives or dies there, whatever
 * the answer; if that has not claimed it, it never will, however late it wakes up. */
int outgoing_run(struct outgoing *outgoing, struct error *error)
{
    int ret = outgoing_receive_reply(outgoing, error);
    bool won = wire_claim(&outgoing->memory, WIRE_TAKEN_BACK) || (ret < 0 && inherit(outgoing));

    trace(update_claim, "outgoing", won);
    if (!won)
        return 0;
    if (ret == 0)
        return error_set(error, EPROTO,
                         "the new process said that it runs the guest, but does not");
    return ret;
}

int outgoing_finish(struct outgoing *outgoing, struct error *error)
{
    struct wire_request *request = &outgoing->wire.request;
    const struct config *config = machine_config(outgoing->machine);

    (void)error;
    machine_handed_over(outgoing->machine);
    outgoing->paused = false;
    update_fill_breakdown(outgoing->update, request);
    request->vcpu_count = config->cpus;
    for (unsigned i = 0; i < config->cpus; i++) {
        uint64_t entry;

        machine_vcpu_times(outgoing->machine, i, &request->vcpus[i].ns, &entry);
    }
    return 0;
}

int outgoing_finish_answered(struct outgoing *outgoing, struct error *error)
{
    (void)error;
    update_guest_left(outgoing->update, &outgoing->wire.request, &outgoing->wire.reply);
    return 0;
}
