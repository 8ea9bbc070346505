/* SPDX-License-Identifier: Apache-2.0
 *
 * What concerns more than one option, checked when all have been read. See config_parser.h.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/util.h"
#include "machine/config_parser.h"

#define MEMORY_SIZE_MAX (UINT64_C(16) << 40) /* keeps all later sums far from overflow */

/* The implied backend takes its size from -m; a named one has a size, and -m must agree. */
static int settle_memory(struct parser *parser)
{
    struct config *config = parser->config;
    uint64_t page = config->hugetlb_size ? config->hugetlb_size : PAGE_SIZE;

    if (parser->has_backend && strcmp(config->memory_backend, parser->backend_id) != 0)
        return error_set(parser->error, EINVAL,
                         "-object: memory backend '%s' is not used: add "
                         "-machine memory-backend=%s",
                         parser->backend_id, parser->backend_id);
    if (config->memory_backend[0] && !parser->has_backend)
        return error_set(parser->error, EINVAL,
                         "-machine: memory-backend=%s needs -object "
                         "memory-backend-memfd,id=%s,size=SIZE",
                         config->memory_backend, config->memory_backend);
    if (parser->has_backend) {
        if (config->given[CONFIG_OPTION_MEMORY] && config->memory_size != parser->backend_size)
            return error_set(parser->error, EINVAL,
                             "-m gives %" PRIu64 " bytes, but memory "
                             "backend '%s' has %" PRIu64 ": leave -m out or make them agree",
                             config->memory_size, parser->backend_id, parser->backend_size);
        config->memory_size = parser->backend_size;
        config->given[CONFIG_OPTION_MEMORY] = true;
    }
    if (config->memory_size == 0 || !is_aligned(config->memory_size, page))
        return error_set(parser->error, EINVAL,
                         "%s: the memory's size, %" PRIu64 " bytes, must be "
                         "a multiple of its page size, %" PRIu64,
                         parser->has_backend ? "-object" : "-m", config->memory_size, page);
    if (config->memory_size > MEMORY_SIZE_MAX)
        return error_set(parser->error, EINVAL, "-m: more than 16 TiB of memory");
    return 0;
}

static int check_device_pair(const struct config_vfio_pci *a, const struct config_vfio_pci *b,
                             struct error *error)
{
    if (strcmp(a->id, b->id) == 0)
        return error_set(error, EINVAL, "-device: two devices have the id '%s'", a->id);
    if (config_source_name(a)[0] && strcmp(config_source_name(a), config_source_name(b)) == 0)
        return error_set(error, EINVAL, "-device: '%s' and '%s' are the same host device %s", a->id,
                         b->id, config_source_name(a));
    if (a->devfn != DEVFN_UNASSIGNED && a->devfn == b->devfn)
        return error_set(error, EINVAL, "-device: '%s' and '%s' are both in slot %02x", a->id,
                         b->id, a->devfn >> 3);
    return 0;
}

static int check_devices(struct parser *parser)
{
    const struct config *config = parser->config;
    int ret = 0;

    for (unsigned i = 0; ret == 0 && i < config->device_count; i++) {
        const struct config_vfio_pci *device = &config->devices[i];

        if (device->iommufd[0] && config_find_iommu(config, device->iommufd) == NULL)
            return error_set(parser->error, EINVAL,
                             "-device: '%s' names iommufd '%s', which does "
                             "not exist: add -object iommufd,id=%s",
                             device->id, device->iommufd, device->iommufd);
        for (unsigned j = 0; ret == 0 && j < i; j++)
            ret = check_device_pair(&config->devices[j], device, parser->error);
    }
    return ret;
}

/* @return how many objects and devices are to have a descriptor */
static unsigned count_uses(const struct config *config, int fd)
{
    unsigned count = 0;

    for (unsigned i = 0; i < config->iommu_count; i++)
        count += config->iommus[i].fd == fd;
    for (unsigned i = 0; i < config->device_count; i++)
        count += config->devices[i].fd == fd;
    return count;
}

/* Each inherited descriptor is one object's. */
static int check_descriptors(struct parser *parser)
{
    const struct config *config = parser->config;

    for (unsigned i = 0; i < config->iommu_count + config->device_count; i++) {
        int fd = i < config->iommu_count ? config->iommus[i].fd
                                         : config->devices[i - config->iommu_count].fd;

        if (fd >= 0 && count_uses(config, fd) > 1)
            return error_set(parser->error, EINVAL, "fd=%d is given twice", fd);
    }
    return 0;
}

/* Gives slots to devices without addr=, in order, from 01.0. There is one for each of them. */
static void assign_slots(struct config *config)
{
    uint32_t taken = 1;

    for (unsigned i = 0; i < config->device_count; i++)
        taken |= UINT32_C(1) << (config->devices[i].devfn >> 3);
    for (unsigned i = 0; i < config->device_count; i++) {
        if (config->devices[i].devfn == DEVFN_UNASSIGNED) {
            int slot = __builtin_ctz(~taken);

            taken |= UINT32_C(1) << slot;
            config->devices[i].devfn = (uint8_t)(slot << 3);
        }
    }
}

static int check_boot(struct parser *parser)
{
    const struct config *config = parser->config;

    if (config->incoming) {
        if (config->incoming_cpr[0])
            return 0;
        return error_set(parser->error, EINVAL,
                         "-incoming: a cpr channel is needed: add -incoming "
                         "'{\"channel-type\":\"cpr\",\"addr\":{\"transport\":\"socket\","
                         "\"type\":\"unix\",\"path\":\"PATH\"}}'");
    }
    if (config->kernel[0] == '\0')
        return error_set(parser->error, EINVAL,
                         "-kernel is missing (and this is not an -incoming "
                         "process, which needs none)");
    return 0;
}

static int check_qmp(struct parser *parser)
{
    const struct config *config = parser->config;

    for (unsigned i = 0; i < config->qmp_count; i++) {
        for (unsigned j = 0; j < i; j++) {
            if (strcmp(config->qmp[i], config->qmp[j]) == 0)
                return error_set(parser->error, EINVAL, "-qmp: socket '%s' is given twice",
                                 config->qmp[i]);
        }
    }
    return 0;
}

/* What concerns more than one option. */
int config_settle(struct parser *parser)
{
    struct config *config = parser->config;
    int ret;

    if (parser->nographic && !config->given[CONFIG_OPTION_SERIAL]) {
        strcpy(config->serial, "stdio");
        config->given[CONFIG_OPTION_SERIAL] = true;
    }
    ret = settle_memory(parser);
    if (ret == 0)
        ret = check_devices(parser);
    if (ret == 0)
        ret = check_descriptors(parser);
    if (ret == 0)
        ret = check_qmp(parser);
    if (ret == 0)
        ret = check_boot(parser);
    if (ret == 0)
        assign_slots(config);
    return ret;
}
