/* SPDX-License-Identifier: Apache-2.0
 *
 * The hand-over of a running guest from this process to another one: what control/ needs of it.
 * The stages and their order are in stages.h; docs/hand-over.md tells the story.
 *
 * Each side runs its hand-over on a thread of its own; these calls are made on the main thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <systemd/sd-event.h>

#include "base/error.h"
#include "machine/machine.h"

/** QEMU's MigrationStatus, the part of it that baton has. */
enum update_status {
    UPDATE_NONE,
    UPDATE_SETUP,      /**< preparation: the guest runs */
    UPDATE_ACTIVE,     /**< from quiesce on */
    UPDATE_DEVICE,     /**< the guest is stopped */
    UPDATE_CANCELLING,
    UPDATE_CANCELLED,  /**< undone on request; the guest runs here */
    UPDATE_FAILED,     /**< undone after a failure; the guest runs here */
    UPDATE_COMPLETED,
};
const char *update_status_name(enum update_status status);

#define UPDATE_STAGES_MAX 16
#define UPDATE_VCPUS_MAX  CONFIG_CPUS_MAX

/** Times of one stage, CLOCK_MONOTONIC of this host, comparable between the two processes. */
struct update_stage_time {
    const char *name;
    uint64_t start_ns;    /**< when the outgoing side began the stage */
    uint64_t end_ns;      /**< when it had the other side's answer */
    uint64_t incoming_ns; /**< of that, work of the incoming side */
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
    uint64_t blackout_ns; /**< from the first vCPU's exit to the last one's entry; 0 while unknown */
    uint64_t total_ns;
};

/** Called on the main thread after each stage and at the end. */
typedef void update_progress_fn(void *opaque, const struct update_report *report);

struct update;

/**
 * Starts handing the guest over to the process that listens at @p path. Returns at once.
 * @return 0; -EBUSY when a hand-over is under way, -EINVAL when the guest cannot be handed over now
 */
int update_start(struct update **update, struct machine *machine, const char *path,
                 const struct fdset *extra, update_progress_fn *progress, void *opaque,
                 struct error *error);

/** Asks for the hand-over to be undone. @return -EBUSY when it is past its commit point */
int update_cancel(struct update *update, struct error *error);

/** A copy of the report as it is now. */
void update_report(struct update *update, struct update_report *report);
void update_destroy(struct update *update);

/* The incoming side: a whole process's life, started by main.c when -incoming was given. */

/**
 * Called on the main thread when everything is prepared and before the commit point: what is above
 * update/ takes its descriptors out of the set. A failure ends the hand-over and leaves the guest
 * where it is.
 * @param machine adopted, in MACHINE_INMIGRATE
 * @param fds     what nothing below has taken
 */
typedef int update_adopt_fn(void *opaque, struct machine *machine, struct fdset *fds,
                            struct error *error);

struct update_incoming;

/**
 * Listens on given->incoming_cpr and takes over the guest that arrives there. Returns at once. When
 * the hand-over fails, @p progress says so (UPDATE_FAILED) and the event loop ends; when it
 * succeeds, the loop runs on until the guest ends.
 * @param given what the command line held, compared with what arrives; borrowed until _finish()
 */
int update_incoming_start(struct update_incoming **incoming, const struct config *given,
                          sd_event *loop, update_adopt_fn *adopt, update_progress_fn *progress,
                          void *opaque, struct error *error);

/**
 * After the event loop: gives up a hand-over that is not past its commit point, destroys the
 * machine and frees everything.
 * @return 0 when the guest ran here to its end, or nobody sent one; negative with the reason for
 *         which the hand-over failed
 */
int update_incoming_finish(struct update_incoming *incoming, struct error *error);
