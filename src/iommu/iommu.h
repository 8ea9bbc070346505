/* SPDX-License-Identifier: Apache-2.0
 *
 * The DMA address spaces of a guest. An address space maps all of guest memory at its
 * guest-physical addresses, for the passed-through devices that are attached to it. There are two
 * back ends behind one table of operations, and nobody outside iommu/ needs to know which is at
 * work: iommufd.c (an IOAS of a /dev/iommu context) and type1.c (a legacy container with the IOMMU
 * groups in it).
 *
 * A set holds the address spaces of one guest: where a device goes is its choice by name, and
 * address spaces that it names and that are not there yet are made. Used by machine/ and vfio/
 * while the machine is built and by the thread of a hand-over; the machine's lock is held.
 *
 * Who owns an address space. What ties its mappings to a process is the accounting of pinned pages
 * and, in a container, the address at which that process has the memory. DMA depends on neither:
 * pages stay pinned and translated, whoever owns them. So ownership moves while the guest runs:
 * the outgoing process releases it, the incoming one takes it, and when the hand-over fails, the
 * outgoing one takes it back, whatever the other may have taken before it died.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/blocker.h"
#include "base/error.h"
#include "base/fdset.h"
#include "state/state.h"

struct iommu_set;

#define IOMMU_ID_SIZE      64
#define IOMMU_MAPPINGS_MAX 16
#define IOMMU_GROUPS_MAX   32
#define IOMMU_HWPTS_MAX    32 /* in an IOAS: one for every device */
#define IOMMU_SPACES_MAX   40 /* as many as iommufd objects and devices */

/** One DMA mapping, exact to the byte. */
struct iommu_mapping {
    uint64_t iova;
    uint64_t size;
    uint64_t offset; /**< in the RAM memfd */
};

/** Guest memory, as every address space maps it. */
struct iommu_memory {
    int fd; /**< the memfd, borrowed */
    unsigned region_count;
    struct {
        struct iommu_mapping mapping;
        void *host; /**< where this process has it */
    } regions[IOMMU_MAPPINGS_MAX];
};

enum iommu_backend { IOMMU_BACKEND_IOMMUFD, IOMMU_BACKEND_TYPE1 };

/** An IOMMU group in a container, by the number of /dev/vfio/NUMBER. */
struct iommu_group {
    uint32_t number;
};

/** A hardware page table of an IOAS, allocated for a device. */
struct iommu_hwpt {
    uint32_t id;
    bool dirty_tracking; /**< the IOMMU can tell which pages were written through it */
    bool shared;         /**< also for other devices of the IOAS, if it suits them */
};

/** What an adopting process must know: the manifest of one address space. */
struct iommu_facts {
    uint8_t backend;          /**< enum iommu_backend */
    char id[IOMMU_ID_SIZE];   /**< of "-object iommufd,id=", or the container's name or "" */
    char ioas[IOMMU_ID_SIZE]; /**< iommufd: name of the IOAS; "" is the object's first */
    uint32_t ioas_id;         /**< iommufd: the kernel's id of it */
    bool accounted;     /**< iommufd: pinned pages count against RLIMIT_MEMLOCK: the process that
                             mapped them had no CAP_IPC_LOCK. The kernel decides it then, for ever */
    uint32_t owner_uid; /**< real user of the process that describes */
    uint32_t mapping_count;
    struct iommu_mapping mappings[IOMMU_MAPPINGS_MAX];
    uint32_t group_count; /**< container */
    struct iommu_group groups[IOMMU_GROUPS_MAX];
    uint32_t hwpt_count; /**< iommufd */
    struct iommu_hwpt hwpts[IOMMU_HWPTS_MAX];
};
extern const struct state_type iommu_facts_type;

/** iommufd: which hardware page table of the IOAS a device is attached to. */
enum iommu_hwpt_choice {
    IOMMU_HWPT_SHARED, /**< one that another device has allocated, or else a new one; for a device
                          that has none (a mediated one), or a kernel that cannot, as IOAS */
    IOMMU_HWPT_OWN,    /**< a new one, for no other device */
    IOMMU_HWPT_IOAS,   /**< the IOAS itself: the kernel finds or makes one ("auto domain") */
};

/** Which address space a device wants; names are borrowed. */
struct iommu_choice {
    const char *iommufd;   /**< id of the object; "": a legacy container */
    const char *ioas;      /**< name of an IOAS in it; "": its first */
    const char *container; /**< name of a container; "": one that all share who name none */
    enum iommu_hwpt_choice hwpt;
};

/** A device on its way into an address space. */
struct iommu_device {
    const char *sysfs; /**< its directory, "/sys/bus/pci/devices/0000:01:00.0"; NULL: not known,
                            there is but a descriptor */
    int fd;            /**< the VFIO device, the caller's: in for adopt; out for attach, and in: one
                            that has been opened, iommufd only, or -1 */
    uint32_t devid;    /**< out of attach: iommufd's id of it */
    uint32_t hwpt;  /**< iommufd: id of its hardware page table, 0 when it is attached to the IOAS;
                       out of attach, in for adopt */
    uint32_t group; /**< container: number of its IOMMU group; out of attach, in for adopt */
    unsigned space; /**< out: which of the address spaces it is in */
    int kvm_fd;     /**< out, borrowed: what KVM's VFIO device is to be told of */
};

/** @return what people call a back end that this baton was built with; NULL for one that it lacks,
 * whose address spaces it can neither make nor adopt (-ENOTSUP, with an error that says so) */
const char *iommu_built_in(enum iommu_backend backend);

/** Makes an empty set. @param memory copied */
void iommu_set_create(struct iommu_set **set, const struct iommu_memory *memory);

/**
 * Opens /dev/iommu and makes the first IOAS, with guest memory.
 * @param id of the -object
 * @param fd /dev/iommu, opened before, which belongs to the set from then on, also on failure; or
 *           negative
 */
int iommu_set_add_iommufd(struct iommu_set *set, const char *id, int fd, struct error *error);

/**
 * Takes over the address spaces of another process, "iommu/..." from @p fds; no ioctl changes them.
 * They must map exactly @p memory.
 * @param set out; on failure there is none
 */
int iommu_set_adopt(struct iommu_set **set, const struct iommu_memory *memory,
                    const struct iommu_facts *facts, uint32_t count, struct fdset *fds,
                    struct error *error);

/** Fills in facts and offers descriptors, each object's once. @param count out */
int iommu_set_describe(const struct iommu_set *set, struct iommu_facts facts[IOMMU_SPACES_MAX],
                       uint32_t *count, struct fdset *fds, struct error *error);

/** After the devices have been closed. Objects of the kernel are destroyed if the set is live. */
void iommu_set_destroy(struct iommu_set *set);

/**
 * Opens a device, unless it is open, and attaches it to the address space of its choice. An IOMMU
 * group goes into the first container of the name that takes it; if none does, a further one is
 * made.
 * @return 0; on failure device->fd has been closed and is -1. The error does not name the device
 */
int iommu_set_attach(struct iommu_set *set, const struct iommu_choice *choice,
                     struct iommu_device *device, struct error *error);

/** For a device that was attached by another process: checks that device->fd is the device, as far
 * as the kernel lets one know. Changes nothing. */
int iommu_set_adopt_device(struct iommu_set *set, const struct iommu_choice *choice,
                           struct iommu_device *device, struct error *error);

/**
 * Whether this process has the guest, and with it the objects of the kernel: only then are they
 * changed. A set that was created is live, one that was adopted is not before the guest is this
 * process's; one whose guest has gone to another process no longer is.
 */
void iommu_set_set_live(struct iommu_set *set, bool live);

/* --- peers: see peers.c ---------------------------------------------------------------------- */

#define IOMMU_PEERS_MAX 128

/** A stretch of a device's memory (its BAR) that the guest has mapped, where it can be read and
 * written: what other devices may reach, "peer-to-peer". Whole pages. */
struct iommu_peer {
    uint64_t iova; /**< the guest-physical address */
    uint64_t size;
    int fd;          /**< the VFIO device, borrowed as long as it is mapped */
    unsigned region; /**< VFIO_PCI_BAR0_REGION_INDEX and so on */
    uint64_t offset; /**< in the region */
    void *host;      /**< where this process has it */
    unsigned space;  /**< its own address space, see struct iommu_device */
};

/** Where the kernel has mapped such a stretch. */
struct iommu_peer_mapping {
    uint64_t iova;
    uint64_t size;
    uint64_t spaces; /**< address spaces by index, a bit each */
};

/** What a hand-over carries: the guest moves BARs while it runs, so this is state, not facts. */
struct iommu_peers_state {
    uint32_t count;
    struct iommu_peer_mapping mappings[IOMMU_PEERS_MAX];
};
extern const struct state_type iommu_peers_state_type;
_Static_assert(IOMMU_SPACES_MAX <= 64, "a bit each in iommu_peer_mapping");

/**
 * The guest has mapped a stretch of a device's memory, which overlaps no other: maps it in every
 * address space that has another device. Where the kernel does not offer that, peers cannot reach
 * it: one warning, no error.
 */
void iommu_set_map_peer(struct iommu_set *set, const struct iommu_peer *peer);

/** The guest has unmapped it. Does nothing for one that was not mapped. */
void iommu_set_unmap_peer(struct iommu_set *set, uint64_t iova, uint64_t size);

/** After the guest has come here: makes the mappings of peers this process's own. */
void iommu_set_settle_peers(struct iommu_set *set);

/** State, and what must be done after it has been loaded. */
struct iommu_peers_state *iommu_set_peers_state(struct iommu_set *set);
int iommu_set_apply_peers(struct iommu_set *set, struct error *error);

/* --- ownership ------------------------------------------------------------------------------- */

/** Gives up the ownership, so that another process can take it. On failure part of it may have been
 * given up: take back. */
int iommu_set_release_ownership(struct iommu_set *set, struct error *error);

/** Makes the calling process the owner of what another one has released. */
int iommu_set_take_ownership(struct iommu_set *set, struct error *error);

/**
 * Makes the calling process the owner again after it has released some or all, whether the other
 * process has taken it, in whole or in part, or not. That one must take nothing any more. Goes on
 * after a failure and reports the first: what could not be taken back is still mapped for DMA, and
 * can be handed over another time.
 */
int iommu_set_take_back_ownership(struct iommu_set *set, struct error *error);

/**
 * Tells whether ownership could move, while the guest runs and without effect. The two sides can
 * check different things, so a rehearsal asks both: the owner goes through the kernel's own checks
 * of every mapping, a process that has adopted asks whether the kernel knows the calls, and both
 * whether their limits on locked memory leave room for taking over and for taking back.
 */
int iommu_set_probe_ownership(struct iommu_set *set, struct error *error);

/**
 * Adds what keeps mappings from moving to another process, for each address space: what
 * iommu_set_probe_ownership() finds on the owner's side, as far as that can be asked without giving
 * a mapping up even for a moment. No hand-over may be under way.
 */
void iommu_set_blockers(struct iommu_set *set, struct blocker_list *list);
