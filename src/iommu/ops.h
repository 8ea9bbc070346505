/* SPDX-License-Identifier: Apache-2.0
 *
 * Between set.c, space.c and the back ends: the table of operations and what they work on. Private
 * to iommu/. Errors set by a back end name what failed; space.c puts the address space in front.
 */
#pragma once

#include "iommu/iommu.h"

/** One address space. */
struct iommu {
    const struct iommu_ops *ops;
    const struct iommu_memory *memory;
    unsigned index;       /**< in the set, the same in every process */
    struct iommu *parent; /**< iommufd: the first IOAS of the same object; NULL: this is it */
    int fd;               /**< iommufd context (the parent's, if there is one) or container */
    int group_fds[IOMMU_GROUPS_MAX]; /**< container: in the order of facts.groups */
    bool ours[IOMMU_MAPPINGS_MAX];   /**< container: the kernel has our address of the mapping */
    bool owner; /**< mappings are accounted to this process, as far as it knows */
    unsigned device_count;
    unsigned peer_count; /**< mappings of peers, of the whole context when this is an iommufd */
    struct iommu_facts facts;
};

/** What an address space counts against the limit on locked memory of its owner, in bytes. */
struct iommu_charge {
    uint64_t held;   /**< for as long as it is owned */
    uint64_t moving; /**< in addition, while it moves between processes */
};

/** A back end. Each function is called with facts.id and facts.ioas filled in. */
struct iommu_ops {
    /** Opens and configures what can be without a device. */
    int (*create)(struct iommu *iommu, struct error *error);
    /** Takes descriptors; facts are complete. */
    int (*adopt)(struct iommu *iommu, struct fdset *fds, struct error *error);
    int (*describe)(const struct iommu *iommu, struct fdset *fds, struct error *error);
    /** @param leave another process has the guest: no object of the kernel is destroyed */
    void (*destroy)(struct iommu *iommu, bool leave);
    /** One mapping, readable and writable. @param host where this process has the memory */
    int (*map)(struct iommu *iommu, const struct iommu_mapping *mapping, void *host,
               struct error *error);
    /** See iommu_set_attach(), iommu_set_adopt_device(). */
    int (*attach)(struct iommu *iommu, struct iommu_device *device, enum iommu_hwpt_choice choice,
                  struct error *error);
    int (*adopt_device)(struct iommu *iommu, struct iommu_device *device, struct error *error);
    /** See iommu_set_release_ownership() and so on. */
    int (*release)(struct iommu *iommu, struct error *error);
    int (*take)(struct iommu *iommu, struct error *error);
    int (*take_back)(struct iommu *iommu, struct error *error);
    int (*probe)(struct iommu *iommu, struct error *error);
    /** What of probe() leaves the mappings alone even for a moment: somebody looks, as often as he
     * likes, without wanting to hand over. */
    int (*check)(struct iommu *iommu, struct error *error);
    /** One stretch of another device's memory: makes it reachable; makes this process the one whose
     * address it is known by; takes it away. */
    int (*map_peer)(struct iommu *iommu, const struct iommu_peer *peer, struct error *error);
    int (*take_peer)(struct iommu *iommu, const struct iommu_peer *peer, struct error *error);
    int (*unmap_peer)(struct iommu *iommu, const struct iommu_peer_mapping *mapping,
                      struct error *error);
    /** What this process would be charged. Each back end has a counter of its own in the kernel. */
    struct iommu_charge (*charge)(const struct iommu *iommu);
};

/** See iommu.h. */
struct iommu_set {
    struct iommu_memory memory;
    unsigned count;
    struct iommu *spaces[IOMMU_SPACES_MAX];
    bool live;                      /**< see iommu_set_set_live() */
    struct iommu_peers_state peers; /**< what the kernel has mapped */
    unsigned wanted_count;          /**< what the guest has mapped, as this process knows it */
    struct iommu_wanted {
        struct iommu_peer peer;
        uint64_t foreign; /**< address spaces in which it is another process's, a bit each */
    } wanted[IOMMU_PEERS_MAX];
    bool warned;
};

/**
 * For who finds a device or a group in use: the kernel lets go of what a process had some time
 * after its end, and whoever starts a guest anew because its process has ended may be faster than
 * that. Waits a moment. @param tries how often it was tried before
 * @return whether to try again; false after a second or so
 */
bool iommu_wait_released(unsigned tries);

/* As far as they were built: reached through iommu_backend_ops(). */
extern const struct iommu_ops iommu_iommufd_ops, iommu_type1_ops;

/** @return the operations of a back end; where this baton was built without it, of one whose create
 * and adopt fail with -ENOTSUP and an error that names the option of the build */
const struct iommu_ops *iommu_backend_ops(enum iommu_backend backend);

/** @return an address space without anything in it, for its back end's create or adopt */
struct iommu *iommu_new(enum iommu_backend backend, const struct iommu_memory *memory,
                        unsigned index);

/** Also one that is half made. @param leave see struct iommu_ops */
void iommu_destroy(struct iommu *iommu, bool leave);

/** Maps all of guest memory and records it. A back end calls it when mapping has become possible.
 */
int iommu_map_memory(struct iommu *iommu, struct error *error);

/** Says why guest memory could not be mapped. @param code the kernel's errno */
int iommu_map_error(const struct iommu_mapping *mapping, int code, struct error *error);

/** Checks that the facts are those of an address space that maps guest memory and nothing else. */
int iommu_check_mappings(const struct iommu *iommu, struct error *error);

#define IOMMU_LABEL_SIZE (2 * IOMMU_ID_SIZE + 24)

/** Writes what people call it: "iommufd 'ID'" or "container 'NAME'". @return @p label */
const char *iommu_label(const struct iommu *iommu, char label[IOMMU_LABEL_SIZE]);

/** Puts its label in front of an error. */
int iommu_name_error(const struct iommu *iommu, struct error *error);

/** @return bytes that its mappings cover */
uint64_t iommu_mapped_size(const struct iommu *iommu);
