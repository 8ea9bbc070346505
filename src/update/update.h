/* SPDX-License-Identifier: Apache-2.0
 *
 * The hand-over of a running guest from this process to another one: what control/ needs of it.
 * The stages and their order are in stages.h; docs/hand-over.md tells the story.
 *
 * The outgoing side runs its hand-over on a thread of its own, the incoming side on its main
 * thread; these calls are made on the main thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <systemd/sd-event.h>

#include "base/blocker.h"
#include "base/error.h"
#include "machine/machine.h"

/** QEMU's MigrationStatus, the part of it that baton has. */
enum update_status {
    UPDATE_NONE,
    UPDATE_SETUP,  /**< preparation: the guest runs */
    UPDATE_ACTIVE, /**< from quiesce on */
    UPDATE_DEVICE, /**< the guest is stopped */
    UPDATE_CANCELLING,
    UPDATE_CANCELLED, /**< undone on request; the guest runs here */
    UPDATE_FAILED,    /**< undone after a failure; the guest runs here */
    UPDATE_COMPLETED,
    UPDATE_REHEARSED, /**< a dry run went well and was thrown away; the guest runs where it did. Not
                           QEMU's: seen by those who asked for a dry run only */
};
const char *update_status_name(enum update_status status);

/** @return whether a hand-over of this status was started and has not ended */
bool update_is_under_way(enum update_status status);

#define UPDATE_STAGES_MAX 16
#define UPDATE_VCPUS_MAX  CONFIG_CPUS_MAX

/** Times of one stage, CLOCK_MONOTONIC of this host, comparable between the two processes. */
struct update_stage_time {
    const char *name;
    uint64_t start_ns;    /**< when the outgoing side began the stage */
    uint64_t end_ns;      /**< when it had the other side's answer */
    uint64_t incoming_ns; /**< of that, work of the incoming side */
    uint64_t bytes;       /**< of messages, and of what they refer to in shared memory */
};

/** What a dry run measured, and the blackout that it predicts; docs/hand-over.md has the formula.
 */
struct update_prediction {
    uint64_t save_ns;     /**< saving all state here, with the guest running */
    uint64_t load_ns;     /**< loading it there */
    uint64_t trip_ns;     /**< a message there and one back, less what was done about it */
    uint64_t blackout_ns; /**< 0 when the guest is paused: a real one would say the same */
};

/** A hand-over so far, or the last one. Both sides have it in the end. */
struct update_report {
    enum update_status status;
    char error[ERROR_MESSAGE_SIZE]; /**< of FAILED: stage, object, reason */
    bool incoming;                  /**< this process is, or was, the incoming side */
    uint32_t generation;            /**< how many hand-overs this guest has behind it */
    uint32_t stage_count;
    struct update_stage_time stages[UPDATE_STAGES_MAX];
    uint32_t vcpu_count;
    uint64_t vcpu_out_ns[UPDATE_VCPUS_MAX]; /**< last exit from KVM_RUN in the outgoing process */
    uint64_t vcpu_in_ns[UPDATE_VCPUS_MAX];  /**< first entry into KVM_RUN in the incoming one */
    uint64_t
        blackout_ns; /**< from the first vCPU's exit to the last one's entry; 0 while unknown */
    uint64_t total_ns;
    bool dry_run;
    struct update_prediction prediction; /**< of REHEARSED, on the outgoing side */
};

/** Called on the main thread after each stage and at the end; then it may call update_destroy(). */
typedef void update_progress_fn(void *opaque, const struct update_report *report);

struct update;

/**
 * Adds everything that is known to make a hand-over impossible now, with reasons and remedies.
 * Main thread. Changes nothing.
 * @param last of the last hand-over that was started here: one that is under way is the only
 *             blocker that is listed then, since the others cannot be asked for meanwhile
 */
void update_blockers(struct machine *machine, const struct update_report *last,
                     struct blocker_list *list);

/**
 * Outgoing side: starts handing the guest over to the process that listens at @p path (a unix
 * socket; it need not exist yet, but must soon). Returns at once. The machine must stay until
 * update_destroy().
 * @param extra   descriptors of the caller's that travel along (QMP sockets); copied
 * @param dry_run end, with UPDATE_REHEARSED, after the last stage that leaves the guest alone
 * @return 0; -ENOTSUP with the reasons when the machine has blockers; another negative errno when
 *         not even a thread can be had
 */
int update_start(struct update **update, struct machine *machine, const char *path,
                 const struct fdset *extra, bool dry_run, update_progress_fn *progress,
                 void *opaque, struct error *error);

/** Asks for the hand-over to be undone. @return -EBUSY when it is past its commit point */
int update_cancel(struct update *update, struct error *error);

/** A copy of the report as it is now. */
void update_report(struct update *update, struct update_report *report);

/** Cancels what can still be cancelled, waits for the end, frees. */
void update_destroy(struct update *update);

struct update_incoming;

/**
 * Called on the incoming side when the machine has been built and before anything is committed.
 * @param machine belongs to the hand-over; valid until update_incoming_finish()
 * @param extra   the descriptors that no part of the machine took; what is left is closed
 */
typedef int update_adopt_fn(void *opaque, struct machine *machine, struct fdset *extra,
                            struct error *error);

/**
 * Incoming side: listens at given->incoming_cpr and takes the guest over from whoever connects.
 * Everything happens on the event loop's thread; once a process has connected, the loop rests until
 * the guest runs here, or the hand-over has failed or was a rehearsal, in which cases the loop is
 * ended.
 * @param given this process's command line; borrowed until update_incoming_finish()
 */
int update_incoming_start(struct update_incoming **incoming, const struct config *given,
                          sd_event *loop, update_adopt_fn *adopt, update_progress_fn *progress,
                          void *opaque, struct error *error);

/**
 * After the event loop: destroys the machine, if there is one.
 * @return 0, or the reason why the hand-over failed
 */
int update_incoming_finish(struct update_incoming *incoming, struct error *error);
