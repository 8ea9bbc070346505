/* SPDX-License-Identifier: Apache-2.0
 *
 * One DMA address space for passed-through devices, behind one table of operations. iommufd.c is
 * the only back end so far; a legacy container (type1.c) fits behind the same calls.
 * Used while the machine is built and by the thread of a hand-over; the machine's lock is held.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/fdset.h"
#include "state/state.h"

struct iommu;

#define IOMMU_ID_SIZE      64
#define IOMMU_MAPPINGS_MAX 16

/** One DMA mapping, exact to the byte. */
struct iommu_mapping {
    uint64_t iova;
    uint64_t size;
    uint64_t offset; /**< in the RAM memfd */
};

/** What an adopting process must know: the manifest of one address space. */
struct iommu_facts {
    char id[IOMMU_ID_SIZE];
    uint32_t ioas_id;
    bool accounted;     /**< pinned pages count against RLIMIT_MEMLOCK: the process that mapped them
                             had no CAP_IPC_LOCK. The kernel decides it then, for ever. */
    uint32_t owner_uid; /**< real user of the process that describes */
    uint32_t mapping_count;
    struct iommu_mapping mappings[IOMMU_MAPPINGS_MAX];
};
extern const struct state_type iommu_facts_type;

/** Opens /dev/iommu and allocates an IOAS. @param id of the "-object iommufd,id=..." */
int iommu_create(struct iommu **iommu, const char *id, struct error *error);

/** Takes over an address space: "iommu/ID" from @p fds and the facts; no ioctl changes it. */
int iommu_adopt(struct iommu **iommu, const struct iommu_facts *facts, struct fdset *fds,
                struct error *error);

/** Fills in the facts and offers the descriptor. */
int iommu_describe(const struct iommu *iommu, struct iommu_facts *facts, struct fdset *fds,
                   struct error *error);

void iommu_destroy(struct iommu *iommu);

/** Maps part of a memfd for DMA, readable and writable (IOMMU_IOAS_MAP_FILE, Linux 6.13). */
int iommu_map_file(struct iommu *iommu, uint64_t iova, uint64_t size, int fd, uint64_t offset,
                   struct error *error);

/**
 * Binds a VFIO device descriptor to the iommufd and attaches it.
 * @param device name for messages
 * @param devid  out: iommufd's id
 */
int iommu_attach(struct iommu *iommu, int device_fd, const char *device, uint32_t *devid,
                 struct error *error);

/**
 * Moves the ownership (locked-memory accounting) of all mappings to the calling process. Harmless
 * when it has it already, so it also takes it back when a hand-over is undone.
 */
int iommu_take_ownership(struct iommu *iommu, struct error *error);

/**
 * Tells whether iommu_take_ownership() would work, without doing it. The two sides can check
 * different things, so a rehearsal asks both: the owner, whether every mapping is by file; a
 * process that has adopted, whether the kernel knows the call; and both, whether their limits on
 * locked memory have room, for taking over and for taking back.
 */
int iommu_probe_ownership(struct iommu *iommu, struct error *error);
