/* SPDX-License-Identifier: Apache-2.0
 *
 * The address spaces of a guest, see iommu.h: finding or making the one that a device wants, and
 * what is done to all of them. Called while a machine is built and by the thread of a hand-over.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/trace.h"
#include "base/util.h"
#include "iommu/locked.h"
#include "iommu/ops.h"
#include "iommu/sysfs.h"

void iommu_set_create(struct iommu_set **set, const struct iommu_memory *memory)
{
    *set = xcalloc(1, sizeof(**set));
    (*set)->memory = *memory;
    (*set)->live = true;
}

/* Those that borrow from another one come after it. */
void iommu_set_destroy(struct iommu_set *set)
{
    if (set == NULL)
        return;
    while (set->count > 0)
        iommu_destroy(set->spaces[--set->count], !set->live);
    free(set);
}

/* --- finding and making ---------------------------------------------------------------------- */

static struct iommu *find_iommufd(const struct iommu_set *set, const char *id, const char *ioas)
{
    for (unsigned i = 0; i < set->count; i++) {
        const struct iommu_facts *facts = &set->spaces[i]->facts;

        if (facts->backend == IOMMU_BACKEND_IOMMUFD && strcmp(facts->id, id) == 0 &&
            strcmp(facts->ioas, ioas) == 0)
            return set->spaces[i];
    }
    return NULL;
}

static bool has_group(const struct iommu *space, uint32_t group)
{
    for (uint32_t i = 0; i < space->facts.group_count; i++) {
        if (space->facts.groups[i].number == group)
            return true;
    }
    return false;
}

static struct iommu *find_group(const struct iommu_set *set, uint32_t group)
{
    for (unsigned i = 0; i < set->count; i++) {
        if (has_group(set->spaces[i], group))
            return set->spaces[i];
    }
    return NULL;
}

/* An address space that is not in the set yet. */
static struct iommu *prepare(struct iommu_set *set, enum iommu_backend backend, const char *id,
                             const char *ioas)
{
    struct iommu *new = iommu_new(backend, &set->memory, set->count);

    snprintf(new->facts.id, sizeof(new->facts.id), "%s", id);
    snprintf(new->facts.ioas, sizeof(new->facts.ioas), "%s", ioas);
    if (ioas[0])
        new->parent = find_iommufd(set, id, "");
    new->owner = true;
    return new;
}

static int add(struct iommu_set *set, struct iommu *new, struct error *error)
{
    int result;

    if (set->count == IOMMU_SPACES_MAX)
        result = error_set(error, ENOSPC, "more than %d address spaces", IOMMU_SPACES_MAX);
    else
        result = new->ops->create(new, error);
    if (result < 0) {
        iommu_name_error(new, error);
        iommu_destroy(new, false);
        return result;
    }
    set->spaces[set->count++] = new;
    return 0;
}

int iommu_set_add_iommufd(struct iommu_set *set, const char *id, int fd, struct error *error)
{
    struct iommu *new = prepare(set, IOMMU_BACKEND_IOMMUFD, id, "");

    new->fd = MAX(fd, -1);
    return add(set, new, error);
}

/* --- devices --------------------------------------------------------------------------------- */

static void count_device(struct iommu *space, struct iommu_device *device)
{
    device->space = space->index;
    space->device_count++;
}

static int attach(struct iommu *space, const struct iommu_choice *choice,
                  struct iommu_device *device, struct error *error)
{
    int result = space->ops->attach(space, device, choice->hwpt, error);

    if (result == 0)
        count_device(space, device);
    return result;
}

static int attach_to_iommufd(struct iommu_set *set, const struct iommu_choice *choice,
                             struct iommu_device *device, struct error *error)
{
    struct iommu *space = find_iommufd(set, choice->iommufd, choice->ioas);

    if (space == NULL) {
        int result =
            add(set, prepare(set, IOMMU_BACKEND_IOMMUFD, choice->iommufd, choice->ioas), error);

        if (result < 0) {
            close_fd(device->fd);
            device->fd = -1;
            return result;
        }
        space = set->spaces[set->count - 1];
    }
    return attach(space, choice, device, error);
}

/* The group of another device of the guest: both must want the same container. */
static int attach_to_group(struct iommu *space, const struct iommu_choice *choice,
                           struct iommu_device *device, struct error *error)
{
    if (strcmp(space->facts.id, choice->container) != 0)
        return error_set(error, EBUSY,
                         "its IOMMU group %" PRIu32 " is in container '%s' already, not in '%s': "
                         "devices of one group must have the same container=",
                         device->group, space->facts.id, choice->container);
    return attach(space, choice, device, error);
}

/* What one container does not take, for lack of a domain that suits all its groups, another may.
 * A failure after the group is in is no reason to look further. */
static int attach_to_container(struct iommu_set *set, const struct iommu_choice *choice,
                               struct iommu_device *device, struct error *error)
{
    int result = sysfs_group(device->sysfs, &device->group, error);
    struct iommu *space;

    if (result < 0)
        return result;
    space = find_group(set, device->group);
    if (space != NULL)
        return attach_to_group(space, choice, device, error);
    for (unsigned i = 0; i < set->count; i++) {
        space = set->spaces[i];
        if (space->facts.backend != IOMMU_BACKEND_TYPE1 ||
            strcmp(space->facts.id, choice->container) != 0)
            continue;
        result = attach(space, choice, device, error);
        if (result == 0 || has_group(space, device->group))
            return result;
        log_info("%s needs another container: %s", sysfs_name(device->sysfs), error->message);
    }
    result = add(set, prepare(set, IOMMU_BACKEND_TYPE1, choice->container, ""), error);
    if (result < 0)
        return result;
    space = set->spaces[set->count - 1];
    result = attach(space, choice, device, error);
    if (result < 0 && space->facts.group_count == 0)
        iommu_destroy(set->spaces[--set->count], false);
    return result;
}

int iommu_set_attach(struct iommu_set *set, const struct iommu_choice *choice,
                     struct iommu_device *device, struct error *error)
{
    if (choice->iommufd[0])
        return attach_to_iommufd(set, choice, device, error);
    assert(device->sysfs != NULL && device->fd < 0);
    return attach_to_container(set, choice, device, error);
}

int iommu_set_adopt_device(struct iommu_set *set, const struct iommu_choice *choice,
                           struct iommu_device *device, struct error *error)
{
    struct iommu *space;
    int result;

    if (choice->iommufd[0])
        space = find_iommufd(set, choice->iommufd, choice->ioas);
    else
        space = find_group(set, device->group);
    if (space == NULL)
        return error_set(error, EINVAL, "the address space that it is in was not handed over");
    result = space->ops->adopt_device(space, device, error);
    if (result == 0)
        count_device(space, device);
    return result;
}

/* --- hand-over ------------------------------------------------------------------------------- */

/* Facts are hostile, but have been checked one by one. */
static int check_place(const struct iommu_set *set, const struct iommu *new, struct error *error)
{
    const struct iommu_facts *facts = &new->facts;

    if (facts->backend == IOMMU_BACKEND_IOMMUFD && find_iommufd(set, facts->id, facts->ioas))
        return error_set(error, EINVAL, "it is there twice");
    if (facts->ioas[0] && new->parent == NULL)
        return error_set(error, EINVAL, "the object that it belongs to is missing");
    for (uint32_t i = 0; i < facts->group_count; i++) {
        if (find_group(set, facts->groups[i].number))
            return error_set(error, EINVAL, "IOMMU group %" PRIu32 " is in two containers",
                             facts->groups[i].number);
    }
    return iommu_check_mappings(new, error);
}

static int adopt_space(struct iommu_set *set, const struct iommu_facts *facts, struct fdset *fds,
                       struct error *error)
{
    struct iommu *new = prepare(set, facts->backend, facts->id, facts->ioas);
    int result;

    new->facts = *facts;
    new->owner = false;
    result = check_place(set, new, error);
    if (result == 0)
        result = new->ops->adopt(new, fds, error);
    if (result < 0) {
        iommu_name_error(new, error);
        iommu_destroy(new, true);
        return result;
    }
    set->spaces[set->count++] = new;
    return 0;
}

int iommu_set_adopt(struct iommu_set **set, const struct iommu_memory *memory,
                    const struct iommu_facts *facts, uint32_t count, struct fdset *fds,
                    struct error *error)
{
    struct iommu_set *new;

    iommu_set_create(&new, memory);
    new->live = false;
    for (uint32_t i = 0; i < MIN(count, (uint32_t)IOMMU_SPACES_MAX); i++) {
        int result = iommu_facts_type.check(&facts[i], error);

        if (result == 0)
            result = adopt_space(new, &facts[i], fds, error);
        if (result < 0) {
            iommu_set_destroy(new);
            return result;
        }
    }
    *set = new;
    return 0;
}

void iommu_set_set_live(struct iommu_set *set, bool live)
{
    set->live = live;
}

int iommu_set_describe(const struct iommu_set *set, struct iommu_facts facts[IOMMU_SPACES_MAX],
                       uint32_t *count, struct fdset *fds, struct error *error)
{
    for (unsigned i = 0; i < set->count; i++) {
        const struct iommu *space = set->spaces[i];
        int result = space->ops->describe(space, fds, error);

        if (result < 0)
            return result;
        facts[i] = space->facts;
        facts[i].owner_uid = (uint32_t)getuid();
    }
    *count = set->count;
    return 0;
}

/* --- ownership ------------------------------------------------------------------------------- */

int iommu_set_release_ownership(struct iommu_set *set, struct error *error)
{
    for (unsigned i = 0; i < set->count; i++) {
        struct iommu *space = set->spaces[i];
        int result = space->ops->release(space, error);

        trace(iommu_release_ownership, iommu_label(space, (char[IOMMU_LABEL_SIZE]){0}), result);
        if (result < 0)
            return iommu_name_error(space, error);
        space->owner = false;
    }
    return 0;
}

int iommu_set_take_ownership(struct iommu_set *set, struct error *error)
{
    for (unsigned i = 0; i < set->count; i++) {
        struct iommu *space = set->spaces[i];
        int result = space->ops->take(space, error);

        trace(iommu_take_ownership, iommu_label(space, (char[IOMMU_LABEL_SIZE]){0}), result);
        if (result < 0)
            return iommu_name_error(space, error);
        space->owner = true;
    }
    return 0;
}

int iommu_set_take_back_ownership(struct iommu_set *set, struct error *error)
{
    struct error own;
    int first = 0;

    for (unsigned i = 0; i < set->count; i++) {
        struct iommu *space = set->spaces[i];
        int result = space->ops->take_back(space, &own);

        trace(iommu_take_back_ownership, iommu_label(space, (char[IOMMU_LABEL_SIZE]){0}), result);
        space->owner = result == 0;
        if (result == 0)
            continue;
        iommu_name_error(space, &own);
        if (first == 0)
            *error = own;
        first = -error->code;
    }
    return first;
}

static int probe(struct iommu *space, struct error *error)
{
    int result = space->ops->probe(space, error);

    trace(iommu_probe_ownership, iommu_label(space, (char[IOMMU_LABEL_SIZE]){0}), result);
    return result < 0 ? iommu_name_error(space, error) : 0;
}

/* Each back end has its own counter, and at one moment one address space moves. */
static int check_limits(const struct iommu_set *set, enum iommu_backend backend,
                        struct error *error)
{
    uint64_t held = 0, moving = 0;

    for (unsigned i = 0; i < set->count; i++) {
        const struct iommu *space = set->spaces[i];
        struct iommu_charge charge;

        if (space->facts.backend != backend)
            continue;
        charge = space->ops->charge(space);
        held += charge.held;
        moving = MAX(moving, charge.moving);
    }
    return check_locked_limit(held + moving, error);
}

static int check_both_limits(const struct iommu_set *set, struct error *error)
{
    int result = check_limits(set, IOMMU_BACKEND_IOMMUFD, error);

    return result < 0 ? result : check_limits(set, IOMMU_BACKEND_TYPE1, error);
}

int iommu_set_probe_ownership(struct iommu_set *set, struct error *error)
{
    int result = 0;

    for (unsigned i = 0; result == 0 && i < set->count; i++)
        result = probe(set->spaces[i], error);
    return result < 0 ? result : check_both_limits(set, error);
}

void iommu_set_blockers(struct iommu_set *set, struct blocker_list *list)
{
    for (unsigned i = 0; i < set->count; i++) {
        char label[IOMMU_LABEL_SIZE];
        struct error error = {0};

        if (set->spaces[i]->ops->check(set->spaces[i], &error) < 0)
            blocker_add_error(list, iommu_label(set->spaces[i], label), &error);
    }
    if (set->count != 0) {
        struct error error = {0};

        if (check_both_limits(set, &error) < 0)
            blocker_add_error(list, "guest memory", &error);
    }
}
