/* SPDX-License-Identifier: Apache-2.0
 *
 * Options that describe what the guest sees: name, machine, processors, memory, devices, kernel.
 * See config_parser.h.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "machine/config_parser.h"
#include "machine/properties.h"

int option_name(struct parser *parser, const char *value)
{
    struct config *config = parser->config;
    struct properties p;
    int ret = properties_parse(&p, "-name", value, "guest", parser->error);

    if (ret < 0)
        return ret;
    ret = properties_string(&p, "guest", config->name, sizeof(config->name), parser->error);
    if (ret == 0)
        ret = properties_finish(&p, parser->error);
    properties_clear(&p);
    /* It becomes the name of a directory. */
    for (const char *c = config->name; ret == 0 && *c; c++) {
        if (!isalnum((unsigned char)*c) && (c == config->name || strchr("-_.:+@", *c) == NULL))
            ret = error_set(parser->error, EINVAL,
                            "-name: '%s' must start with a letter or digit "
                            "and hold only those and - _ . : + @",
                            config->name);
    }
    config->given[CONFIG_OPTION_NAME] = true;
    return ret;
}

static int read_machine_type(struct parser *parser, const char *type)
{
    struct config *config = parser->config;

    if (type == NULL)
        return 0;
    if (strcmp(type, "baton") != 0 && strcmp(type, CONFIG_MACHINE_VERSION) != 0)
        return error_set(parser->error, EINVAL,
                         "-machine: baton has no machine type '%s'; leave "
                         "it out or use '%s'",
                         type, CONFIG_MACHINE_VERSION);
    strcpy(config->machine, CONFIG_MACHINE_VERSION);
    config->given[CONFIG_OPTION_MACHINE] = true;
    return 0;
}

static int check_accelerator(struct parser *parser, const char *option, const char *name)
{
    if (name == NULL || strcmp(name, "kvm") == 0)
        return 0;
    return error_set(parser->error, EINVAL, "%s: baton has no accelerator '%s', only 'kvm'", option,
                     name);
}

int option_machine(struct parser *parser, const char *value)
{
    struct config *config = parser->config;
    struct properties p;
    bool aux_ram_share; /* baton's memory can always be shared: accepted for QEMU's procedure */
    int ret = properties_parse(&p, "-machine", value, "type", parser->error);

    if (ret < 0)
        return ret;
    ret = read_machine_type(parser, properties_get(&p, "type"));
    if (ret == 0)
        ret = check_accelerator(parser, "-machine", properties_get(&p, "accel"));
    if (ret == 0)
        ret = properties_bool(&p, "aux-ram-share", &aux_ram_share, parser->error);
    if (ret == 0)
        ret = properties_string(&p, "memory-backend", config->memory_backend,
                                sizeof(config->memory_backend), parser->error);
    if (ret == 0)
        ret = properties_finish(&p, parser->error);
    if (config->memory_backend[0])
        config->given[CONFIG_OPTION_MEMORY_BACKEND] = true;
    properties_clear(&p);
    return ret;
}

int option_accel(struct parser *parser, const char *value)
{
    struct properties p;
    int ret = properties_parse(&p, "-accel", value, "accel", parser->error);

    if (ret < 0)
        return ret;
    ret = check_accelerator(parser, "-accel", properties_get(&p, "accel"));
    if (ret == 0)
        ret = properties_finish(&p, parser->error);
    properties_clear(&p);
    return ret;
}

int option_enable_kvm(struct parser *parser, const char *value)
{
    return 0;
}

int option_cpu(struct parser *parser, const char *value)
{
    struct properties p;
    const char *model;
    int ret = properties_parse(&p, "-cpu", value, "model", parser->error);

    if (ret < 0)
        return ret;
    model = properties_get(&p, "model");
    if (model == NULL || strcmp(model, "host") != 0)
        ret = error_set(parser->error, EINVAL,
                        "-cpu: baton has no processor model '%s': the guest "
                        "sees the host's; leave it out or use 'host'",
                        model ? model : value);
    else
        ret = properties_finish(&p, parser->error);
    properties_clear(&p);
    return ret;
}

int option_memory(struct parser *parser, const char *value)
{
    struct config *config = parser->config;
    struct properties p;
    int ret = properties_parse(&p, "-m", value, "size", parser->error);

    if (ret < 0)
        return ret;
    ret = properties_size(&p, "size", MIB, &config->memory_size, parser->error);
    if (ret == 0)
        ret = properties_finish(&p, parser->error);
    properties_clear(&p);
    config->given[CONFIG_OPTION_MEMORY] = true;
    return ret;
}

int option_smp(struct parser *parser, const char *value)
{
    struct config *config = parser->config;
    struct properties p;
    int ret = properties_parse(&p, "-smp", value, "cpus", parser->error);

    if (ret < 0)
        return ret;
    ret = properties_unsigned(&p, "cpus", &config->cpus, parser->error);
    if (ret == 0)
        ret = properties_finish(&p, parser->error);
    if (ret == 0 && (config->cpus < 1 || config->cpus > CONFIG_CPUS_MAX))
        ret = error_set(parser->error, EINVAL, "-smp: 1 to %d processors, not %u", CONFIG_CPUS_MAX,
                        config->cpus);
    properties_clear(&p);
    config->given[CONFIG_OPTION_SMP] = true;
    return ret;
}

/* -object memory-backend-memfd,...: hugetlb and hugetlbsize. */
static int read_huge_pages(struct parser *parser, struct properties *p)
{
    struct config *config = parser->config;
    bool hugetlb = false;
    uint64_t size = 0;
    int ret = properties_bool(p, "hugetlb", &hugetlb, parser->error);

    if (ret == 0)
        ret = properties_size(p, "hugetlbsize", 1, &size, parser->error);
    if (ret < 0)
        return ret;
    if (size != 0 && !hugetlb)
        return error_set(parser->error, EINVAL, "-object: hugetlbsize= needs hugetlb=on");
    if (size != 0 && size != 2 * MIB && size != GIB)
        return error_set(parser->error, EINVAL, "-object: hugetlbsize= must be 2M or 1G");
    config->hugetlb_size = hugetlb ? (size ? size : 2 * MIB) : 0;
    return 0;
}

/* A property that may be given but has one value only. */
static int require_on(struct parser *parser, struct properties *p, const char *key,
                      const char *reason)
{
    bool value = true;
    int ret = properties_bool(p, key, &value, parser->error);

    if (ret == 0 && !value)
        ret = error_set(parser->error, EINVAL, "%s: %s=off is not possible: %s", p->option, key,
                        reason);
    return ret;
}

static int read_memory_backend(struct parser *parser, struct properties *p, const char *id)
{
    struct config *config = parser->config;
    int ret;

    if (parser->has_backend)
        return error_set(parser->error, EINVAL,
                         "-object: memory backend '%s' in addition to '%s': "
                         "a machine has one",
                         id, parser->backend_id);
    strcpy(parser->backend_id, id);
    parser->has_backend = true;
    config->given[CONFIG_OPTION_MEMORY_BACKEND] = true;
    if (properties_get(p, "size") == NULL)
        return error_set(parser->error, EINVAL, "-object: memory backend '%s' needs size=", id);
    ret = properties_size(p, "size", 1, &parser->backend_size, parser->error);
    if (ret == 0)
        ret = require_on(parser, p, "share", "the process that takes over maps the same memory");
    if (ret == 0)
        ret = require_on(parser, p, "seal", "no process may change the memory's size");
    if (ret == 0)
        ret = properties_bool(p, "prealloc", &config->prealloc, parser->error);
    if (ret == 0)
        ret = read_huge_pages(parser, p);
    return ret;
}

static int read_iommufd(struct parser *parser, struct properties *p, const char *id)
{
    struct config *config = parser->config;
    struct config_iommu *iommu = &config->iommus[config->iommu_count];

    if (config->iommu_count == CONFIG_IOMMUS_MAX)
        return error_set(parser->error, EINVAL, "-object: more than %d iommufd objects",
                         CONFIG_IOMMUS_MAX);
    strcpy(iommu->id, id);
    config->iommu_count++;
    config->given[CONFIG_OPTION_OBJECT] = true;
    return config_read_fd(parser, p, &iommu->fd);
}

const struct config_iommu *config_find_iommu(const struct config *config, const char *id)
{
    for (unsigned i = 0; i < config->iommu_count; i++) {
        if (strcmp(config->iommus[i].id, id) == 0)
            return &config->iommus[i];
    }
    return NULL;
}

static int read_object_id(struct parser *parser, struct properties *p, char id[CONFIG_ID_SIZE])
{
    int ret = properties_string(p, "id", id, CONFIG_ID_SIZE, parser->error);

    if (ret == 0)
        ret = config_check_id(parser->error, "-object", id);
    if (ret == 0 && (config_find_iommu(parser->config, id) || strcmp(parser->backend_id, id) == 0))
        ret = error_set(parser->error, EINVAL, "-object: two objects have the id '%s'", id);
    return ret;
}

int option_object(struct parser *parser, const char *value)
{
    char id[CONFIG_ID_SIZE] = "";
    struct properties p;
    const char *type;
    int ret = properties_parse(&p, "-object", value, "qom-type", parser->error);

    if (ret < 0)
        return ret;
    type = properties_get(&p, "qom-type");
    ret = read_object_id(parser, &p, id);
    if (type == NULL)
        ret = error_set(parser->error, EINVAL, "-object: the type (qom-type) is missing");
    else if (strcmp(type, "memory-backend-memfd") != 0 && strcmp(type, "iommufd") != 0)
        ret = error_set(parser->error, EINVAL,
                        "-object: baton has no object '%s', only "
                        "memory-backend-memfd and iommufd",
                        type);
    else if (ret == 0)
        ret = type[0] == 'm' ? read_memory_backend(parser, &p, id) : read_iommufd(parser, &p, id);
    if (ret == 0)
        ret = properties_finish(&p, parser->error);
    properties_clear(&p);
    return ret;
}

/* Reads "DD" or "DD.F", hexadecimal. */
static int read_slot(struct parser *parser, struct config_vfio_pci *device, const char *text)
{
    unsigned long slot, function = 0;
    char *end;

    if (text == NULL)
        return 0;
    slot = strtoul(text, &end, 16);
    if (*end == '.' && isdigit((unsigned char)end[1]))
        function = strtoul(end + 1, &end, 10);
    if (!isxdigit((unsigned char)text[0]) || *end != '\0' || slot < 1 || slot > 31)
        return error_set(parser->error, EINVAL,
                         "-device: '%s': addr= must be a slot from 1 to 1f "
                         "(hexadecimal), not '%s'",
                         device->id, text);
    if (function != 0)
        return error_set(parser->error, EINVAL,
                         "-device: '%s': addr=%s: each device is function 0 "
                         "of its slot; use addr=%lx",
                         device->id, text, slot);
    device->devfn = (uint8_t)(slot << 3);
    return 0;
}

/* Names of an IOAS and of a container follow the rule for ids. */
static int read_space_name(struct parser *parser, struct properties *p, const char *key,
                           char name[CONFIG_ID_SIZE])
{
    char option[32];
    int ret = properties_string(p, key, name, CONFIG_ID_SIZE, parser->error);

    snprintf(option, sizeof(option), "-device: %s=", key);
    if (ret == 0 && name[0])
        ret = config_check_id(parser->error, option, name);
    return ret;
}

/* Which address space the device is in: QEMU's iommufd=, or a legacy container without; the names
 * of several in one object, and of several containers, are baton's own. */
static int read_space(struct parser *parser, struct properties *p, struct config_vfio_pci *device)
{
    int ret =
        properties_string(p, "iommufd", device->iommufd, sizeof(device->iommufd), parser->error);

    if (ret == 0)
        ret = read_space_name(parser, p, "ioas", device->ioas);
    if (ret == 0)
        ret = read_space_name(parser, p, "container", device->container);
    if (ret == 0 && device->ioas[0] && !device->iommufd[0])
        ret = error_set(parser->error, EINVAL,
                        "-device: vfio-pci '%s': ioas= is an address space of an iommufd: it needs "
                        "iommufd=ID",
                        device->id);
    if (ret == 0 && device->container[0] && device->iommufd[0])
        ret = error_set(parser->error, EINVAL,
                        "-device: vfio-pci '%s': container= and iommufd= exclude each other",
                        device->id);
    if (ret == 0 && device->fd != CONFIG_FD_NONE && !device->iommufd[0])
        ret = error_set(parser->error, EINVAL,
                        "-device: vfio-pci '%s': fd= needs iommufd=ID: a legacy container opens "
                        "its devices itself",
                        device->id);
    return ret;
}

static const char *const hwpt_names[] = {
    [IOMMU_HWPT_SHARED] = "shared",
    [IOMMU_HWPT_OWN] = "own",
    [IOMMU_HWPT_IOAS] = "ioas",
};

const char *config_hwpt_name(enum iommu_hwpt_choice hwpt)
{
    return hwpt_names[hwpt];
}

static int read_hwpt(struct parser *parser, struct config_vfio_pci *device, const char *text)
{
    if (text == NULL)
        return 0;
    if (!device->iommufd[0])
        return error_set(parser->error, EINVAL,
                         "-device: vfio-pci '%s': hwpt= is about an iommufd: it needs iommufd=ID",
                         device->id);
    for (unsigned i = 0; i < ARRAY_SIZE(hwpt_names); i++) {
        if (strcmp(text, hwpt_names[i]) == 0) {
            device->hwpt = i;
            return 0;
        }
    }
    return error_set(parser->error, EINVAL,
                     "-device: vfio-pci '%s': hwpt= must be shared, own or ioas, not '%s'",
                     device->id, text);
}

static int read_vfio_pci(struct parser *parser, struct properties *p,
                         struct config_vfio_pci *device)
{
    int ret = properties_string(p, "id", device->id, sizeof(device->id), parser->error);

    if (ret == 0 && device->id[0])
        ret = config_check_id(parser->error, "-device vfio-pci", device->id);
    if (ret == 0)
        ret = config_read_source(parser, p, device);
    if (ret == 0)
        ret = read_space(parser, p, device);
    if (ret == 0)
        ret = read_hwpt(parser, device, properties_get(p, "hwpt"));
    device->p2p = true;
    if (ret == 0)
        ret = properties_bool(p, "p2p", &device->p2p, parser->error);
    if (ret == 0)
        ret = read_slot(parser, device, properties_get(p, "addr"));
    return ret;
}

int option_device(struct parser *parser, const char *value)
{
    struct config *config = parser->config;
    struct properties p;
    const char *driver;
    int ret = properties_parse(&p, "-device", value, "driver", parser->error);

    if (ret < 0)
        return ret;
    driver = properties_get(&p, "driver");
    if (driver == NULL)
        ret = error_set(parser->error, EINVAL, "-device: the driver is missing");
    else if (strcmp(driver, "vfio-pci") != 0)
        ret = error_set(parser->error, EINVAL, "-device: baton has no device '%s', only vfio-pci",
                        driver);
    else if (config->device_count == CONFIG_DEVICES_MAX)
        ret = error_set(parser->error, EINVAL, "-device: more than %d devices", CONFIG_DEVICES_MAX);
    else
        ret = read_vfio_pci(parser, &p, &config->devices[config->device_count++]);
    if (ret == 0)
        ret = properties_finish(&p, parser->error);
    properties_clear(&p);
    config->given[CONFIG_OPTION_DEVICE] = true;
    return ret;
}

int option_kernel(struct parser *parser, const char *value)
{
    parser->config->given[CONFIG_OPTION_KERNEL] = true;
    return config_copy(parser, "-kernel", parser->config->kernel, CONFIG_PATH_SIZE, value);
}

int option_initrd(struct parser *parser, const char *value)
{
    parser->config->given[CONFIG_OPTION_INITRD] = true;
    return config_copy(parser, "-initrd", parser->config->initrd, CONFIG_PATH_SIZE, value);
}

int option_append(struct parser *parser, const char *value)
{
    struct config *config = parser->config;

    config->given[CONFIG_OPTION_APPEND] = true;
    if (value[0] == '\0') {
        config->append[0] = '\0';
        return 0;
    }
    return config_copy(parser, "-append", config->append, sizeof(config->append), value);
}
