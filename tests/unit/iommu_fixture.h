/* SPDX-License-Identifier: Apache-2.0
 *
 * What the unit tests of iommu/ share: open() and ioctl() are fakes that keep a record and remember
 * whose address each mapping has. What the kernel really does is the system tests' business; here
 * are the order of calls, what is undone when one fails, and every place at which ownership can be
 * when a hand-over fails.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/fdset.h"
#include "iommu/iommu.h"

#define REGIONS 2u

enum whose { UNMAPPED, NOBODY, OURS, OTHERS };

struct record {
    char log[4096];          /* what was called, in order */
    const char *fail;        /* the call that fails ... */
    unsigned skip;           /* ... after as many that do not */
    unsigned times;          /* ... so many times (0: once) */
    int code;                /* ... and how */
    enum whose map[REGIONS]; /* of the container */
    bool no_update, no_unmap_all, no_iommufd;
    uint32_t ioases;
};

extern struct record record;

struct fixture {
    char directory[64]; /* stands for sysfs: DEVICE/iommu_group is a link to a number */
    struct iommu_memory memory;
    struct iommu_set *set;
    unsigned files; /* open descriptors at the beginning */
};

/** Devices a and b are in IOMMU group 7, c is in 8, d in one with a strange name. */
int iommu_fixture_setup(void **state);

/** Fails when a descriptor is still open. */
int iommu_fixture_teardown(void **state);

#define IOMMU_TEST(name)                                                                           \
    cmocka_unit_test_setup_teardown(name, iommu_fixture_setup, iommu_fixture_teardown)

/** Choices of a legacy container: the one without a name, and another. */
extern const struct iommu_choice common, other;

/** Attaches and closes the device again, whose descriptor is the caller's. @return 0 or -errno */
int attach(struct fixture *fixture, const char *name, const struct iommu_choice *choice,
           struct error *error);

/** The same, where it must work. */
void attach_ok(struct fixture *fixture, const char *name, const struct iommu_choice *choice);

/** @return a descriptor that stands for any object of the kernel's; the caller's */
int new_fd(void);

/** Empties the record of calls. */
void forget(void);

/**
 * Hands over what a set has to another one, with an empty record.
 * @param fds     in: empty; out: what was not taken
 * @param missing name of a descriptor that gets lost; NULL: none
 * @return of iommu_set_adopt()
 */
int adopt(struct fixture *fixture, struct iommu_set **adopted, struct fdset *fds,
          const char *missing, struct error *error);
