/* SPDX-License-Identifier: Apache-2.0
 *
 * See blocker.h. Any thread; a list belongs to one caller. Never used while the guest is stopped.
 */
#include "base/blocker.h"

#include <stdio.h>
#include <string.h>

#include "base/utf8.h"
#include "base/util.h"

static struct blocker *append(struct blocker_list *list, const char *object)
{
    struct blocker *grown = reallocarray(list->blockers, list->count + 1u, sizeof(*list->blockers));

    assert(grown != NULL);
    list->blockers = grown;
    grown += list->count++;
    *grown = (struct blocker){0};
    snprintf(grown->object, sizeof(grown->object), "%s", object);
    utf8_repair(grown->object);
    return grown;
}

void blocker_add(struct blocker_list *list, const char *object, const char *reason,
                 const char *remedy)
{
    struct blocker *blocker = append(list, object);

    snprintf(blocker->reason, sizeof(blocker->reason), "%s", reason);
    snprintf(blocker->remedy, sizeof(blocker->remedy), "%s", remedy);
    utf8_repair(blocker->reason);
    utf8_repair(blocker->remedy);
}

void blocker_add_error(struct blocker_list *list, const char *object, const struct error *error)
{
    struct blocker *blocker = append(list, object);
    const char *reason = error->message;
    size_t named = strlen(object), length;

    if (strncmp(reason, object, named) == 0 && strncmp(reason + named, ": ", 2) == 0)
        reason += named + 2;
    length = strlen(reason);
    if (error->remedy) {
        const char *remedy = error->message + error->remedy;

        snprintf(blocker->remedy, sizeof(blocker->remedy), "%s", remedy);
        length = remedy > reason + 2 ? (size_t)(remedy - reason) - 2 : 0; /* without the ": " */
    }
    snprintf(blocker->reason, sizeof(blocker->reason), "%.*s", (int)length, reason);
}

const char *blocker_describe(const struct blocker *blocker, char line[BLOCKER_LINE_SIZE])
{
    snprintf(line, BLOCKER_LINE_SIZE, "%s: %s%s%s", blocker->object, blocker->reason,
             blocker->remedy[0] ? ": " : "", blocker->remedy);
    return line;
}

int blocker_error(const struct blocker_list *list, int code, struct error *error)
{
    char line[BLOCKER_LINE_SIZE];
    unsigned i = list->count;

    assert(i > 0);
    error_set(error, code, "%s", blocker_describe(&list->blockers[--i], line));
    while (i-- > 0)
        error_prefix(error, "%s; ", blocker_describe(&list->blockers[i], line));
    return -code;
}

void blocker_list_clear(struct blocker_list *list)
{
    free(list->blockers);
    *list = (struct blocker_list){0};
}
