/* SPDX-License-Identifier: Apache-2.0
 *
 * DMA address spaces, see iommu.h: what is the same for every back end, that is, keeping the
 * manifest. Called while a machine is built and by the thread of a hand-over.
 */
#include "iommu/iommu.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "iommu/ops.h"

static const struct state_field mapping_fields[] = {
    STATE_UINT(struct iommu_mapping, iova, 1),
    STATE_UINT(struct iommu_mapping, size, 1),
    STATE_UINT(struct iommu_mapping, offset, 1),
    STATE_END,
};

static const struct state_field facts_fields[] = {
    STATE_STRING(struct iommu_facts, id, 1),
    STATE_UINT(struct iommu_facts, ioas_id, 1),
    STATE_BOOL(struct iommu_facts, accounted, 1),
    STATE_UINT(struct iommu_facts, owner_uid, 1),
    STATE_ARRAY(struct iommu_facts, mappings, mapping_count, mapping_fields, 1),
    STATE_END,
};

static int check_mapping(const struct iommu_mapping *mapping, struct error *error)
{
    if (mapping->size == 0 || !is_aligned(mapping->size, PAGE_SIZE) ||
        !is_aligned(mapping->iova, PAGE_SIZE) || !is_aligned(mapping->offset, PAGE_SIZE))
        return error_set(error, EINVAL, "mapping at 0x%" PRIx64 " is not made of whole pages",
                         mapping->iova);
    if (!range_fits(mapping->iova, mapping->size, UINT64_MAX) ||
        !range_fits(mapping->offset, mapping->size, INT64_MAX))
        return error_set(error, EINVAL, "mapping at 0x%" PRIx64 " is too long", mapping->iova);
    return 0;
}

static int facts_check(const void *object, struct error *error)
{
    const struct iommu_facts *facts = object;

    if (facts->id[0] == '\0')
        return error_set(error, EINVAL, "iommufd without an id");
    for (uint32_t i = 0; i < facts->mapping_count; i++) {
        const struct iommu_mapping *mapping = &facts->mappings[i];
        int result = check_mapping(mapping, error);

        if (result < 0)
            return result;
        for (uint32_t k = 0; k < i; k++) {
            if (ranges_overlap(mapping->iova, mapping->size, facts->mappings[k].iova,
                               facts->mappings[k].size))
                return error_set(error, EINVAL, "mapping at 0x%" PRIx64 " overlaps another",
                                 mapping->iova);
        }
    }
    return 0;
}

const struct state_type iommu_facts_type = {
    .name = "iommu",
    .version = 1,
    .min_version = 1,
    .size = sizeof(struct iommu_facts),
    .fields = facts_fields,
    .check = facts_check,
};

static int name_error(const struct iommu *iommu, struct error *error)
{
    return error_prefix(error, "iommufd '%s': ", iommu->facts.id);
}

int iommu_create(struct iommu **iommu, const char *id, struct error *error)
{
    struct iommu *new = xcalloc(1, sizeof(*new));

    new->ops = &iommufd_ops;
    new->fd = -1;
    new->owner = true;
    snprintf(new->facts.id, sizeof(new->facts.id), "%s", id);
    if (new->ops->create(new, error) < 0) {
        int result = name_error(new, error);

        iommu_destroy(new);
        return result;
    }
    *iommu = new;
    return 0;
}

int iommu_adopt(struct iommu **iommu, const struct iommu_facts *facts, struct fdset *fds,
                struct error *error)
{
    int result = facts_check(facts, error);
    struct iommu *new;
    int fd;

    if (result < 0)
        return error_prefix(error, "iommufd '%.*s': ", IOMMU_ID_SIZE, facts->id);
    fd = fdset_take(fds, error, "iommu/%s", facts->id);
    if (fd < 0)
        return fd;
    new = xcalloc(1, sizeof(*new));
    new->ops = &iommufd_ops;
    new->fd = fd;
    new->owner = false;
    new->facts = *facts;
    *iommu = new;
    return 0;
}

int iommu_describe(const struct iommu *iommu, struct iommu_facts *facts, struct fdset *fds,
                   struct error *error)
{
    *facts = iommu->facts;
    facts->owner_uid = (uint32_t)getuid();
    return fdset_add_copy(fds, iommu->fd, error, "iommu/%s", iommu->facts.id);
}

void iommu_destroy(struct iommu *iommu)
{
    if (iommu == NULL)
        return;
    close_fd(iommu->fd);
    free(iommu);
}

int iommu_map_file(struct iommu *iommu, uint64_t iova, uint64_t size, int fd, uint64_t offset,
                   struct error *error)
{
    struct iommu_facts *facts = &iommu->facts;
    struct iommu_mapping mapping = {.iova = iova, .size = size, .offset = offset};

    if (facts->mapping_count == IOMMU_MAPPINGS_MAX)
        return error_set(error, ENOSPC, "iommufd '%s': more than %d mappings", facts->id,
                         IOMMU_MAPPINGS_MAX);
    if (iommu->ops->map_file(iommu, &mapping, fd, error) < 0)
        return name_error(iommu, error);
    facts->mappings[facts->mapping_count++] = mapping;
    return 0;
}

int iommu_attach(struct iommu *iommu, int device_fd, const char *device, uint32_t *devid,
                 struct error *error)
{
    if (iommu->ops->attach(iommu, device_fd, device, devid, error) < 0)
        return name_error(iommu, error);
    return 0;
}

int iommu_take_ownership(struct iommu *iommu, struct error *error)
{
    if (iommu->ops->take_ownership(iommu, error) < 0)
        return name_error(iommu, error);
    iommu->owner = true;
    return 0;
}

int iommu_probe_ownership(struct iommu *iommu, struct error *error)
{
    if (iommu->ops->probe_ownership(iommu, error) < 0)
        return name_error(iommu, error);
    return 0;
}
