/* SPDX-License-Identifier: Apache-2.0
 *
 * One address space, see ops.h: what is the same for every back end, that is, keeping the manifest
 * and checking one that comes from another process. Called by set.c and the back ends.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base/trace.h"
#include "base/util.h"
#include "iommu/ops.h"

#define RELEASE_WAIT_MS 20
#define RELEASE_TRIES   50u

static const struct state_field mapping_fields[] = {
    STATE_UINT(struct iommu_mapping, iova, 1),
    STATE_UINT(struct iommu_mapping, size, 1),
    STATE_UINT(struct iommu_mapping, offset, 1),
    STATE_END,
};

static const struct state_field group_fields[] = {
    STATE_UINT(struct iommu_group, number, 2),
    STATE_END,
};

static const struct state_field hwpt_fields[] = {
    STATE_UINT(struct iommu_hwpt, id, 3),
    STATE_BOOL(struct iommu_hwpt, dirty_tracking, 3),
    STATE_BOOL(struct iommu_hwpt, shared, 3),
    STATE_END,
};

static const struct state_field facts_fields[] = {
    STATE_UINT_RANGE(struct iommu_facts, backend, 2, 0, IOMMU_BACKEND_TYPE1, IOMMU_BACKEND_IOMMUFD),
    STATE_STRING(struct iommu_facts, id, 1),
    STATE_STRING(struct iommu_facts, ioas, 2),
    STATE_UINT(struct iommu_facts, ioas_id, 1),
    STATE_BOOL(struct iommu_facts, accounted, 1),
    STATE_UINT(struct iommu_facts, owner_uid, 1),
    STATE_ARRAY(struct iommu_facts, mappings, mapping_count, mapping_fields, 1),
    STATE_ARRAY(struct iommu_facts, groups, group_count, group_fields, 2),
    STATE_ARRAY(struct iommu_facts, hwpts, hwpt_count, hwpt_fields, 3),
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

static int check_groups(const struct iommu_facts *facts, struct error *error)
{
    if ((facts->group_count != 0) != (facts->backend == IOMMU_BACKEND_TYPE1))
        return error_set(error, EINVAL, "%" PRIu32 " IOMMU groups make no sense here",
                         facts->group_count);
    for (uint32_t i = 0; i < facts->group_count; i++) {
        for (uint32_t k = 0; k < i; k++) {
            if (facts->groups[i].number == facts->groups[k].number)
                return error_set(error, EINVAL, "IOMMU group %" PRIu32 " is there twice",
                                 facts->groups[i].number);
        }
    }
    return 0;
}

static int check_hwpts(const struct iommu_facts *facts, struct error *error)
{
    for (uint32_t i = 0; i < facts->hwpt_count; i++) {
        if (facts->hwpts[i].id == 0)
            return error_set(error, EINVAL, "a hardware page table has no id");
        for (uint32_t k = 0; k < i; k++) {
            if (facts->hwpts[i].id == facts->hwpts[k].id)
                return error_set(error, EINVAL, "hardware page table %" PRIu32 " is there twice",
                                 facts->hwpts[i].id);
        }
    }
    return 0;
}

static int facts_check(const void *object, struct error *error)
{
    const struct iommu_facts *facts = object;
    int result;

    if (facts->backend == IOMMU_BACKEND_IOMMUFD && facts->id[0] == '\0')
        return error_set(error, EINVAL, "iommufd without an id");
    for (uint32_t i = 0; i < facts->mapping_count; i++) {
        const struct iommu_mapping *mapping = &facts->mappings[i];

        result = check_mapping(mapping, error);
        if (result < 0)
            return result;
        for (uint32_t k = 0; k < i; k++) {
            if (ranges_overlap(mapping->iova, mapping->size, facts->mappings[k].iova,
                               facts->mappings[k].size))
                return error_set(error, EINVAL, "mapping at 0x%" PRIx64 " overlaps another",
                                 mapping->iova);
        }
    }
    result = check_groups(facts, error);
    return result < 0 ? result : check_hwpts(facts, error);
}

const struct state_type iommu_facts_type = {
    .name = "iommu",
    .version = 3,
    .min_version = 1,
    .size = sizeof(struct iommu_facts),
    .fields = facts_fields,
    .check = facts_check,
};

struct iommu *iommu_new(enum iommu_backend backend, const struct iommu_memory *memory,
                        unsigned index)
{
    struct iommu *new = xcalloc(1, sizeof(*new));

    new->ops = iommu_backend_ops(backend);
    new->memory = memory;
    new->index = index;
    new->fd = -1;
    new->facts.backend = backend;
    return new;
}

void iommu_destroy(struct iommu *iommu, bool leave)
{
    if (iommu == NULL)
        return;
    iommu->ops->destroy(iommu, leave);
    free(iommu);
}

const char *iommu_label(const struct iommu *iommu, char label[IOMMU_LABEL_SIZE])
{
    const struct iommu_facts *facts = &iommu->facts;

    if (facts->backend == IOMMU_BACKEND_TYPE1 && facts->id[0])
        snprintf(label, IOMMU_LABEL_SIZE, "container '%s'", facts->id);
    else if (facts->backend == IOMMU_BACKEND_TYPE1)
        snprintf(label, IOMMU_LABEL_SIZE, "VFIO container");
    else if (facts->ioas[0])
        snprintf(label, IOMMU_LABEL_SIZE, "iommufd '%s', ioas '%s'", facts->id, facts->ioas);
    else
        snprintf(label, IOMMU_LABEL_SIZE, "iommufd '%s'", facts->id);
    return label;
}

int iommu_name_error(const struct iommu *iommu, struct error *error)
{
    char label[IOMMU_LABEL_SIZE];

    return error_prefix(error, "%s: ", iommu_label(iommu, label));
}

int iommu_map_error(const struct iommu_mapping *mapping, int code, struct error *error)
{
    uint64_t mib = mapping->size / MIB;

    switch (code) {
    case ENOMEM:
        return error_set(error, code,
                         "cannot pin %" PRIu64 " MiB of guest memory for DMA: raise the limit on "
                         "locked memory (ulimit -l) or free memory",
                         mib);
    case EINVAL:
    case EEXIST:
        return error_set(error, code,
                         "cannot map %" PRIu64 " MiB at 0x%" PRIx64 " for DMA: addresses in it are "
                         "reserved by this host's IOMMU for a device, or beyond its reach",
                         mib, mapping->iova);
    default:
        return error_set_errno(error, code, "cannot map %" PRIu64 " MiB at 0x%" PRIx64 " for DMA",
                               mib, mapping->iova);
    }
}

int iommu_map_memory(struct iommu *iommu, struct error *error)
{
    struct iommu_facts *facts = &iommu->facts;

    for (unsigned i = 0; i < iommu->memory->region_count; i++) {
        const struct iommu_mapping *mapping = &iommu->memory->regions[i].mapping;
        int result = iommu->ops->map(iommu, mapping, iommu->memory->regions[i].host, error);

        trace(iommu_map, iommu_label(iommu, (char[IOMMU_LABEL_SIZE]){0}), mapping->iova,
              mapping->size, mapping->offset, result);
        if (result < 0)
            return result;
        facts->mappings[facts->mapping_count++] = *mapping;
    }
    return 0;
}

static bool is_mapped(const struct iommu_facts *facts, const struct iommu_mapping *wanted)
{
    for (uint32_t i = 0; i < facts->mapping_count; i++) {
        const struct iommu_mapping *mapping = &facts->mappings[i];

        if (mapping->iova == wanted->iova && mapping->size == wanted->size &&
            mapping->offset == wanted->offset)
            return true;
    }
    return false;
}

/* The mappings that the devices use now must be those that this process would have made. */
int iommu_check_mappings(const struct iommu *iommu, struct error *error)
{
    const struct iommu_memory *memory = iommu->memory;

    if (iommu->facts.mapping_count != memory->region_count)
        return error_set(error, EINVAL, "there are %" PRIu32 " DMA mappings, expected %u",
                         iommu->facts.mapping_count, memory->region_count);
    for (unsigned i = 0; i < memory->region_count; i++) {
        const struct iommu_mapping *wanted = &memory->regions[i].mapping;

        if (!is_mapped(&iommu->facts, wanted))
            return error_set(error, EINVAL,
                             "0x%" PRIx64 " bytes of guest memory at 0x%" PRIx64
                             " are not mapped for DMA",
                             wanted->size, wanted->iova);
    }
    return 0;
}

uint64_t iommu_mapped_size(const struct iommu *iommu)
{
    uint64_t total = 0;

    for (uint32_t i = 0; i < iommu->facts.mapping_count; i++)
        total += iommu->facts.mappings[i].size;
    return total;
}

bool iommu_wait_released(unsigned tries)
{
    if (tries == RELEASE_TRIES)
        return false;
    poll(NULL, 0, RELEASE_WAIT_MS);
    return true;
}
