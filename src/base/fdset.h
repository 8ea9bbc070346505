/* SPDX-License-Identifier: Apache-2.0
 *
 * A set of named file descriptors: what an outgoing process offers and an incoming one adopts.
 *
 * Names are paths like "ram/mem", "vfio/nvme0/device" or "vfio/nvme0/msix/3". A name stands for
 * one kernel object and occurs once. The set owns its descriptors. One thread at a time.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

#define FDSET_NAME_SIZE 96

struct fdset_entry {
    char name[FDSET_NAME_SIZE];
    int fd;
};

/** Zero-initialised means empty. */
struct fdset {
    struct fdset_entry *entries;
    size_t count;
    size_t capacity;
};

/**
 * Adds a duplicate (close-on-exec) of a descriptor that the caller keeps.
 * @param fd borrowed
 * @param name_format printf format of the name
 * @return 0; -EEXIST when the name is taken; -ENAMETOOLONG; -EMFILE when no descriptors are left
 */
int fdset_add_copy(struct fdset *set, int fd, struct error *error, const char *name_format, ...)
    __attribute__((format(printf, 4, 5)));

/** Adds a descriptor and takes ownership of it, also on failure. @return as fdset_add_copy() */
int fdset_add(struct fdset *set, int fd, const char *name, struct error *error);

/** What a descriptor must be for whoever takes it. */
enum fdset_kind {
    FDSET_ANY,     /**< the caller looks at it itself */
    FDSET_EVENTFD, /**< where the kernel does not tell (no /proc), it is taken for one */
    FDSET_FILE,    /**< a regular file */
};

/**
 * Takes a descriptor out of the set; the caller owns it then. One of another kind is closed.
 * @return the descriptor; -ENOENT or -EINVAL with an error that names what is missing, or wrong
 */
int fdset_take(struct fdset *set, enum fdset_kind kind, struct error *error,
               const char *name_format, ...) __attribute__((format(printf, 4, 5)));

/** @return whether a descriptor of that name is in the set. */
bool fdset_contains(const struct fdset *set, const char *name);

/**
 * Checks that no two names beginning with @p prefix stand for the same kernel object (kcmp(2)).
 * Where the kernel has no kcmp, or does not allow it, there is nothing to check with.
 * @return 0; -EEXIST with an error that gives both names
 */
int fdset_check_distinct(const struct fdset *set, const char *prefix, struct error *error);

/** Closes everything that is left and empties the set. */
void fdset_clear(struct fdset *set);
