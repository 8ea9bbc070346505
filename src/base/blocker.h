/* SPDX-License-Identifier: Apache-2.0
 *
 * What makes a hand-over impossible, told while the guest runs: a list of objects with reasons and
 * remedies. Each layer adds what it knows of its own objects; machine/ collects, control/ shows.
 * A list belongs to one caller.
 */
#pragma once

#include "base/error.h"

#define BLOCKER_OBJECT_SIZE 96
#define BLOCKER_LINE_SIZE   (BLOCKER_OBJECT_SIZE + 2 * ERROR_MESSAGE_SIZE + 8)

/** One condition. Strings for people, without full stop. */
struct blocker {
    char object[BLOCKER_OBJECT_SIZE]; /**< "iommufd 'iommufd0'" */
    char reason[ERROR_MESSAGE_SIZE];
    char remedy[ERROR_MESSAGE_SIZE]; /**< what to do about it; "" when nothing can be done */
};

/** Zero-initialised means none. */
struct blocker_list {
    struct blocker *blockers; /**< owned */
    unsigned count;
};

/** Adds a condition. @param remedy "" when nothing can be done about it */
void blocker_add(struct blocker_list *list, const char *object, const char *reason,
                 const char *remedy);

/**
 * Adds what a probe found, in its own words: the error's reason, and its remedy where
 * error_add_remedy() told them apart. A message that begins with the object and ": ", as put there
 * by error_prefix(), does not name it twice.
 */
void blocker_add_error(struct blocker_list *list, const char *object, const struct error *error);

/** Writes one blocker as one line: "OBJECT: REASON: REMEDY". @return @p line */
const char *blocker_describe(const struct blocker *blocker, char line[BLOCKER_LINE_SIZE]);

/** Sets an error that names all of a list that is not empty, as far as they fit. @return -code */
int blocker_error(const struct blocker_list *list, int code, struct error *error);

/** Frees what the list owns and empties it. */
void blocker_list_clear(struct blocker_list *list);
