/* SPDX-License-Identifier: Apache-2.0
 *
 * The stages of a hand-over, as one table for both sides. The outgoing side drives: for each stage
 * it does its own part, asks the incoming side for its part, and waits for the answer, all within
 * the stage's time limit. If anything fails before the guest has run in the incoming process, the
 * undo functions of all stages that were begun are called, first to last, and the guest goes on as
 * if nothing had happened.
 *
 * For the files of this folder only.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/fdset.h"
#include "machine/handover.h"
#include "update/update.h"
#include "update/wire.h"

/** The outgoing side's hand-over; its functions run on its thread. */
struct outgoing {
    struct machine *machine;
    const char *path;
    const struct fdset *extra;
    struct update *update;
    struct wire wire;
    struct wire_memory memory;
    struct machine_facts facts;
    struct fdset fds;     /**< what describe sends */
    int request_fd;       /**< goes with the next request, or -1; borrowed */
    uint64_t deadline_ns; /**< of the stage under way, CLOCK_MONOTONIC */
    bool dry_run;         /**< ends after the last stage that is marked as part of a rehearsal */
    struct update_prediction measured; /**< what a dry run has found so far */
    bool paused;                       /**< machine_pause_for_switch() is in force */
    bool unanswered; /**< the incoming side has been asked for something and may be at it */
};

/** The incoming side's hand-over; its functions run on the event loop's thread. */
struct update_incoming {
    const struct config *given;
    sd_event *loop;
    update_adopt_fn *adopt;
    update_progress_fn *progress;
    void *opaque;
    struct channel_listener *listener;
    sd_event_source *source;
    struct wire wire;
    struct wire_memory memory;
    struct config config; /**< the guest's definition, with the host side that is ours */
    struct machine_facts facts;
    struct fdset fds;
    struct machine *machine;
    struct update_report report;
    unsigned due; /**< index of the first stage that has not been carried out */
    bool loaded;  /**< by the switch: the go may come */
    bool runs;    /**< the guest runs here */
    bool over;    /**< a dry run has come to its end, which was a good one */
    int result;   /**< 0, or why it failed: see error */
    struct error error;
};

struct stage {
    const char *name;
    /** The outgoing side's own part, before it asks the other. NULL: none. */
    int (*outgoing)(struct outgoing *outgoing, struct error *error);
    /** The incoming side's part. NULL: the other side is not asked. */
    int (*incoming)(struct update_incoming *incoming, struct error *error);
    /** The outgoing side, after the request has been sent: what belongs to it. NULL: none. */
    int (*follow_up)(struct outgoing *outgoing, struct error *error);
    /** The outgoing side, with the answer in wire.reply. NULL: none. */
    int (*answered)(struct outgoing *outgoing, struct error *error);
    /** Puts back what this stage changed; also called when the stage itself failed half-way. */
    void (*undo_outgoing)(struct outgoing *outgoing);
    enum update_status status; /**< what query-migrate says meanwhile */
    bool rehearsal;            /**< part of a dry run: changes nothing that would need an undo */
    /** The guest stands still, or takes its first steps: nobody is told before the next stage that
     * is not quiet, or the end. */
    bool quiet;
    unsigned limit_ms;
};

extern const struct stage stages[];
extern const unsigned stage_count;

/** @return the row of that name, or NULL */
const struct stage *stage_find(const char *name);

/* The outgoing side's parts, in outgoing_stages.c. */
int outgoing_hello(struct outgoing *outgoing, struct error *error);
int outgoing_describe(struct outgoing *outgoing, struct error *error);
int outgoing_rehearse(struct outgoing *outgoing, struct error *error);
int outgoing_quiesce(struct outgoing *outgoing, struct error *error);
int outgoing_pause(struct outgoing *outgoing, struct error *error);
int outgoing_switch(struct outgoing *outgoing, struct error *error);
int outgoing_go(struct outgoing *outgoing, struct error *error);
int outgoing_run(struct outgoing *outgoing, struct error *error);
int outgoing_finish(struct outgoing *outgoing, struct error *error);
int outgoing_send_descriptors(struct outgoing *outgoing, struct error *error);
int outgoing_hello_answered(struct outgoing *outgoing, struct error *error);
int outgoing_rehearse_answered(struct outgoing *outgoing, struct error *error);
int outgoing_finish_answered(struct outgoing *outgoing, struct error *error);
void outgoing_undo_quiesce(struct outgoing *outgoing);
void outgoing_undo_pause(struct outgoing *outgoing);

/** Receives the answer to what was asked last, within the stage's time. */
int outgoing_receive_reply(struct outgoing *outgoing, struct error *error);

/** Milliseconds left of the stage under way. */
int outgoing_time_left(const struct outgoing *outgoing);

/* The incoming side's parts, in incoming_stages.c. */
int incoming_hello(struct update_incoming *incoming, struct error *error);
int incoming_describe(struct update_incoming *incoming, struct error *error);
int incoming_prepare(struct update_incoming *incoming, struct error *error);
int incoming_rehearse(struct update_incoming *incoming, struct error *error);
int incoming_quiesce(struct update_incoming *incoming, struct error *error);
int incoming_switch(struct update_incoming *incoming, struct error *error);
int incoming_finish(struct update_incoming *incoming, struct error *error);

/** The answer to the go: the guest runs here from now on, unless it has been taken back. */
int incoming_go(struct update_incoming *incoming, struct error *error);

/** Incoming side: interrupts by the kernel again, console on, times collected. */
void incoming_settle(struct update_incoming *incoming);

/* What the thread of the outgoing side tells update.c, which owns the report and the lock. */
void update_stage_begins(struct update *update, const struct stage *stage);
void update_stage_ends(struct update *update, uint64_t incoming_ns, uint64_t bytes);
void update_channel_opened(struct update *update, struct channel *channel);
bool update_is_cancelled(struct update *update);
/** A dry run has measured what a blackout consists of. */
void update_predict(struct update *update, const struct update_prediction *measured);
/** The last moment for a cancel. @return false when one came before */
bool update_commits(struct update *update);
/** Copies the breakdown so far into a request. */
void update_fill_breakdown(struct update *update, struct wire_request *request);
/** Takes in when the vCPUs left here and entered there. */
void update_guest_left(struct update *update, const struct wire_request *request,
                       const struct wire_reply *reply);

/** Runs all stages, or undoes them; @return 0, or why the guest is still here. */
int outgoing_hand_over(struct outgoing *outgoing, struct error *error);

/** Blackout of a hand-over: from the first exit of any vCPU to the last entry of any. */
void update_compute_blackout(struct update_report *report);
