/* SPDX-License-Identifier: Apache-2.0
 *
 * What goes over the channel of a hand-over. The outgoing side asks, one stage at a time; the
 * incoming side answers. Payloads are state streams (field-named, skippable), so versions that
 * differ understand one another; large things lie in one memfd that both processes map.
 *
 * One thread at a time on each side.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/fdset.h"
#include "channel/channel.h"
#include "state/state.h"
#include "update/update.h"

/* Bumped when the order or meaning of stages changes. Both sides must share one. */
#define WIRE_PROTOCOL     1u
#define WIRE_PROTOCOL_MIN 1u

#define WIRE_NAME_SIZE    32
#define WIRE_VERSION_SIZE 64

enum wire_type {
    WIRE_REQUEST = 1,     /**< struct wire_request; with the first descriptor: struct wire_shared */
    WIRE_DESCRIPTORS = 2, /**< names and descriptors, a batch */
    WIRE_REPLY = 3,       /**< struct wire_reply */
    WIRE_GO = 4,          /**< no payload: the commit point; answered by a reply when it runs */
};

/** One stage's times, as the outgoing process tells them at the end. */
struct wire_stage {
    char name[WIRE_NAME_SIZE];
    uint64_t start_ns, end_ns, incoming_ns, bytes;
};

struct wire_vcpu {
    uint64_t ns;
};

/** Asks the incoming side for its part of a stage. What a stage does not need is zero. */
struct wire_request {
    char stage[WIRE_NAME_SIZE];
    char version[WIRE_VERSION_SIZE]; /**< hello: of the outgoing baton */
    uint32_t protocol, protocol_min; /**< hello */
    uint64_t definition_length;      /**< describe: in the shared memory */
    uint64_t facts_length;           /**< describe: likewise, behind the definition */
    uint32_t fd_count;               /**< describe: descriptors in the batches that follow */
    uint64_t state_length;           /**< rehearse, switch */
    bool dry_run;         /**< after rehearse nothing more comes, and that is as it should be */
    uint32_t stage_count; /**< finish: the breakdown so far */
    struct wire_stage stages[UPDATE_STAGES_MAX];
    uint32_t vcpu_count; /**< finish: last exits from the guest */
    struct wire_vcpu vcpus[UPDATE_VCPUS_MAX];
};

struct wire_reply {
    uint32_t code; /**< 0, or a positive errno */
    char message[ERROR_MESSAGE_SIZE];
    char version[WIRE_VERSION_SIZE]; /**< hello: of the incoming baton */
    uint32_t protocol;               /**< hello: chosen */
    uint64_t work_ns;                /**< what the incoming side spent on the stage */
    uint64_t load_ns;    /**< rehearse of a dry run: how long loading takes that is not the first */
    uint32_t vcpu_count; /**< finish: first entries into the guest */
    struct wire_vcpu vcpus[UPDATE_VCPUS_MAX];
};

/** Tables of the messages; for the golden streams. */
extern const struct state_type wire_request_type, wire_reply_type, wire_batch_type;

/* --- shared memory ------------------------------------------------------------------------- */

/** Whose the guest is once the go is out: whoever claims it first, for ever. */
enum wire_claim {
    WIRE_UNCLAIMED = 0,
    WIRE_RUNS = 1,       /**< incoming side, just before the guest's first instruction there */
    WIRE_TAKEN_BACK = 2, /**< outgoing side, which has waited long enough */
    WIRE_CLAIMED = 3,    /**< incoming side; the guest has not done anything there yet */
};

/** Head of the memfd that both map; the rest is described by offsets from its start. */
struct wire_shared {
    _Atomic uint32_t claim; /**< enum wire_claim */
};

#define WIRE_DESCRIPTION_OFFSET 4096u
#define WIRE_DESCRIPTION_SIZE   (256u * 1024u)
#define WIRE_STATE_OFFSET       (WIRE_DESCRIPTION_OFFSET + WIRE_DESCRIPTION_SIZE)
#define WIRE_MEMORY_MAX         (256u * 1024u * 1024u) /* far above any machine's state */

struct wire_memory {
    int fd;
    size_t size;
    struct wire_shared *shared; /**< the whole mapping */
};

/** Makes it, sealed and populated, with room for @p state_capacity bytes of state. */
int wire_memory_create(struct wire_memory *memory, size_t state_capacity, struct error *error);
/** Maps the peer's. @param fd taken over, also on failure */
int wire_memory_adopt(struct wire_memory *memory, int fd, struct error *error);
void wire_memory_destroy(struct wire_memory *memory);

/** @return whether the guest is the caller's now; false: the other side was first */
static inline bool wire_claim(const struct wire_memory *memory, enum wire_claim claim)
{
    uint32_t unclaimed = WIRE_UNCLAIMED;

    return atomic_compare_exchange_strong(&memory->shared->claim, &unclaimed, (uint32_t)claim);
}

/** Incoming side: from now on the guest, or an interrupt of its devices, may be lost with us. */
static inline void wire_runs(const struct wire_memory *memory)
{
    atomic_store(&memory->shared->claim, (uint32_t)WIRE_RUNS);
}

/** @return whether the incoming side has the guest, which has not done anything there so far */
static inline bool wire_is_claimed(const struct wire_memory *memory)
{
    return atomic_load(&memory->shared->claim) == WIRE_CLAIMED;
}

/** Outgoing side: the incoming process is dead. @return whether it died before the guest ran there,
 * so that it is the caller's now */
static inline bool wire_inherit(const struct wire_memory *memory)
{
    uint32_t claimed = WIRE_CLAIMED;

    return atomic_compare_exchange_strong(&memory->shared->claim, &claimed,
                                          (uint32_t)WIRE_TAKEN_BACK);
}

static inline void *wire_description(const struct wire_memory *memory)
{
    return (uint8_t *)memory->shared + WIRE_DESCRIPTION_OFFSET;
}

static inline void *wire_state(const struct wire_memory *memory)
{
    return (uint8_t *)memory->shared + WIRE_STATE_OFFSET;
}

static inline size_t wire_state_capacity(const struct wire_memory *memory)
{
    return memory->size - WIRE_STATE_OFFSET;
}

/* --- messages ------------------------------------------------------------------------------ */

/** One side's end, with all the memory that its messages need. */
struct wire {
    struct channel *channel;
    struct channel_message message;
    struct wire_request request;
    struct wire_reply reply;
    union {
        struct wire_request request;
        struct wire_reply reply;
    } scratch;
};

/** Sends wire->request, with a descriptor if @p fd is not negative (borrowed). */
int wire_send_request(struct wire *wire, int fd, int timeout_ms, struct error *error);

/** Sends the go. */
int wire_send_go(struct wire *wire, int timeout_ms, struct error *error);

/** Sends wire->reply. */
int wire_send_reply(struct wire *wire, int timeout_ms, struct error *error);

/**
 * Incoming side: receives a request into wire->request, or the go.
 * @param go out: it was the go
 * @param fd out: the descriptor that came along, owned by the caller, or -1
 */
int wire_receive_request(struct wire *wire, bool *go, int *fd, int timeout_ms, struct error *error);

/**
 * Outgoing side: receives a reply into wire->reply. A reply that reports a failure is returned as
 * that failure; wire->reply.code is 0 when there was none.
 */
int wire_receive_reply(struct wire *wire, int timeout_ms, struct error *error);

/** Sends every descriptor of a set, in batches. */
int wire_send_descriptors(struct wire *wire, const struct fdset *fds, int timeout_ms,
                          struct error *error);

/** Receives @p count descriptors into an empty set; names that occur twice are refused. */
int wire_receive_descriptors(struct wire *wire, struct fdset *fds, uint32_t count, int timeout_ms,
                             struct error *error);
