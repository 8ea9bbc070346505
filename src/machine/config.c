/* SPDX-License-Identifier: Apache-2.0
 *
 * See config.h. One table of options; one function per option that has parts. What concerns
 * several options (ids that must exist, slots, the memory's size) is checked when all are read.
 * Called on the main thread, and by the thread of a hand-over for what a peer sent.
 */
#include "machine/config.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/un.h>

#include "base/util.h"
#include "machine/properties.h"

#define MEMORY_SIZE_DEFAULT (512 * MIB)
#define MEMORY_SIZE_MAX     (UINT64_C(16) << 40) /* keeps all later sums far from overflow */
#define DEVFN_UNASSIGNED    0                    /* 00.0 is the host bridge */

/* A command line while it is being read. */
struct parser {
    struct config *config;
    struct error *error;
    bool has_backend;
    char backend_id[CONFIG_ID_SIZE];
    uint64_t backend_size;
    bool nographic;
    bool main_channel;
};

struct option {
    const char *name;
    const char *argument; /* for help; NULL when the option has none */
    int (*read)(struct parser *parser, const char *value);
    const char *help;
};

/* QEMU's rule for ids: a letter, then letters, digits and -._ */
static int check_id(struct error *error, const char *option, const char *id)
{
    if (id[0] == '\0')
        return error_set(error, EINVAL, "%s: property 'id' is missing", option);
    for (const char *c = id; *c; c++) {
        if (!isalpha((unsigned char)*c) &&
            (c == id || (!isdigit((unsigned char)*c) && strchr("-._", *c) == NULL)))
            return error_set(error, EINVAL,
                             "%s: id '%s' must be a letter, followed by letters, "
                             "digits, '-', '.' or '_'",
                             option, id);
    }
    return 0;
}

/* Copies the value of an option without parts. */
static int copy(struct parser *parser, const char *option, char *to, size_t size, const char *value)
{
    if (value[0] == '\0')
        return error_set(parser->error, EINVAL, "%s: the value is empty", option);
    if (strlen(value) >= size)
        return error_set(parser->error, EINVAL, "%s: longer than %zu characters", option, size - 1);
    strcpy(to, value);
    return 0;
}

static int read_name(struct parser *parser, const char *value)
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

static int read_machine(struct parser *parser, const char *value)
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

static int read_accel(struct parser *parser, const char *value)
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

static int read_enable_kvm(struct parser *parser, const char *value)
{
    return 0;
}

static int read_cpu(struct parser *parser, const char *value)
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

static int read_memory(struct parser *parser, const char *value)
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

static int read_smp(struct parser *parser, const char *value)
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

static int read_iommufd(struct parser *parser, const char *id)
{
    struct config *config = parser->config;

    if (config->iommu_count == CONFIG_IOMMUS_MAX)
        return error_set(parser->error, EINVAL, "-object: more than %d iommufd objects",
                         CONFIG_IOMMUS_MAX);
    strcpy(config->iommus[config->iommu_count++].id, id);
    config->given[CONFIG_OPTION_OBJECT] = true;
    return 0;
}

static const struct config_iommu *find_iommu(const struct config *config, const char *id)
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
        ret = check_id(parser->error, "-object", id);
    if (ret == 0 && (find_iommu(parser->config, id) || strcmp(parser->backend_id, id) == 0))
        ret = error_set(parser->error, EINVAL, "-object: two objects have the id '%s'", id);
    return ret;
}

static int read_object(struct parser *parser, const char *value)
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
        ret = type[0] == 'm' ? read_memory_backend(parser, &p, id) : read_iommufd(parser, id);
    if (ret == 0)
        ret = properties_finish(&p, parser->error);
    properties_clear(&p);
    return ret;
}

/* Reads [DDDD:]BB:DD.F and writes the full form, in lower case. */
static int read_host_address(struct parser *parser, struct config_vfio_pci *device,
                             const char *text)
{
    unsigned domain = 0, bus, slot, function;
    int used = 0, fields;

    if (text == NULL)
        return error_set(parser->error, EINVAL,
                         "-device: vfio-pci '%s' needs host=, a PCI address "
                         "such as 0000:01:00.0",
                         device->id);
    fields = sscanf(text, "%4x:%2x:%2x.%1x%n", &domain, &bus, &slot, &function, &used);
    if (fields != 4) {
        domain = 0;
        fields = 1 + sscanf(text, "%2x:%2x.%1x%n", &bus, &slot, &function, &used);
    }
    /* scanf takes blanks, signs and 0x, which no address has. */
    if (fields != 4 || text[used] != '\0' || slot > 31 || function > 7 ||
        text[strspn(text, "0123456789abcdefABCDEF:.")] != '\0')
        return error_set(parser->error, EINVAL,
                         "-device: vfio-pci '%s': host= must be a PCI "
                         "address such as 0000:01:00.0, not '%s'",
                         device->id, text);
    snprintf(device->host, sizeof(device->host), "%04x:%02x:%02x.%x", domain & 0xffff, bus & 0xff,
             slot & 0x1f, function & 7);
    return 0;
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

static int read_vfio_pci(struct parser *parser, struct properties *p,
                         struct config_vfio_pci *device)
{
    int ret = properties_string(p, "id", device->id, sizeof(device->id), parser->error);

    if (ret == 0)
        ret = check_id(parser->error, "-device vfio-pci", device->id);
    if (ret == 0)
        ret = read_host_address(parser, device, properties_get(p, "host"));
    if (ret == 0)
        ret = properties_string(p, "iommufd", device->iommufd, sizeof(device->iommufd),
                                parser->error);
    if (ret == 0 && device->iommufd[0] == '\0')
        ret = error_set(parser->error, EINVAL,
                        "-device: vfio-pci '%s' needs iommufd=ID and "
                        "-object iommufd,id=ID: legacy containers are not available yet",
                        device->id);
    if (ret == 0)
        ret = read_slot(parser, device, properties_get(p, "addr"));
    return ret;
}

static int read_device(struct parser *parser, const char *value)
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

static int read_kernel(struct parser *parser, const char *value)
{
    parser->config->given[CONFIG_OPTION_KERNEL] = true;
    return copy(parser, "-kernel", parser->config->kernel, CONFIG_PATH_SIZE, value);
}

static int read_initrd(struct parser *parser, const char *value)
{
    parser->config->given[CONFIG_OPTION_INITRD] = true;
    return copy(parser, "-initrd", parser->config->initrd, CONFIG_PATH_SIZE, value);
}

static int read_append(struct parser *parser, const char *value)
{
    struct config *config = parser->config;

    config->given[CONFIG_OPTION_APPEND] = true;
    if (value[0] == '\0') {
        config->append[0] = '\0';
        return 0;
    }
    return copy(parser, "-append", config->append, sizeof(config->append), value);
}

static int read_serial(struct parser *parser, const char *value)
{
    struct config *config = parser->config;

    if (config->given[CONFIG_OPTION_SERIAL])
        return error_set(parser->error, EINVAL,
                         "-serial: baton has one serial port, and it was "
                         "given '%s' before '%s'",
                         config->serial, value);
    config->given[CONFIG_OPTION_SERIAL] = true;
    return copy(parser, "-serial", config->serial, sizeof(config->serial), value);
}

static int read_nographic(struct parser *parser, const char *value)
{
    parser->nographic = true;
    return 0;
}

static int read_display(struct parser *parser, const char *value)
{
    if (strcmp(value, "none") == 0)
        return 0;
    return error_set(parser->error, EINVAL, "-display: baton has no display '%s', only 'none'",
                     value);
}

static int read_nodefaults(struct parser *parser, const char *value)
{
    return 0;
}

/* server=on, or "server"; wait=off, or "nowait", or nothing. */
static int read_qmp_flags(struct parser *parser, struct properties *p)
{
    bool server = false, wait = false, nowait = false;
    int ret = properties_bool(p, "server", &server, parser->error);

    if (ret == 0)
        ret = properties_bool(p, "wait", &wait, parser->error);
    if (ret == 0)
        ret = properties_bool(p, "nowait", &nowait, parser->error);
    if (ret == 0)
        ret = properties_finish(p, parser->error);
    if (ret < 0)
        return ret;
    if (!server)
        return error_set(parser->error, EINVAL,
                         "-qmp: add ',server=on': baton listens, it does "
                         "not connect");
    if (wait && !nowait)
        return error_set(parser->error, EINVAL,
                         "-qmp: wait=on is not available: use wait=off, and "
                         "-S to hold the guest until a client says cont");
    return 0;
}

static int read_qmp(struct parser *parser, const char *value)
{
    struct config *config = parser->config;
    struct properties p;
    const char *address;
    int ret;

    if (config->qmp_count == CONFIG_QMP_MAX)
        return error_set(parser->error, EINVAL, "-qmp: more than %d sockets", CONFIG_QMP_MAX);
    ret = properties_parse(&p, "-qmp", value, "address", parser->error);
    if (ret < 0)
        return ret;
    address = properties_get(&p, "address");
    if (address == NULL || strncmp(address, "unix:", 5) != 0)
        ret = error_set(parser->error, EINVAL,
                        "-qmp: expected unix:PATH,server=on,wait=off, not "
                        "'%s'",
                        value);
    else
        ret = copy(parser, "-qmp", config->qmp[config->qmp_count++], CONFIG_PATH_SIZE, address + 5);
    if (ret == 0)
        ret = read_qmp_flags(parser, &p);
    properties_clear(&p);
    config->given[CONFIG_OPTION_QMP] = true;
    return ret;
}

static int read_pidfile(struct parser *parser, const char *value)
{
    parser->config->given[CONFIG_OPTION_PIDFILE] = true;
    return copy(parser, "-pidfile", parser->config->pidfile, CONFIG_PATH_SIZE, value);
}

static int read_start_paused(struct parser *parser, const char *value)
{
    parser->config->start_paused = true;
    return 0;
}

static int expect(struct parser *parser, struct properties *p, const char *key, const char *value)
{
    const char *text = properties_get(p, key);

    if (text != NULL && strcmp(text, value) == 0)
        return 0;
    return error_set(parser->error, EINVAL, "-incoming: the cpr channel needs %s '%s'%s%s%s", key,
                     value, text ? ", not '" : "", text ? text : "", text ? "'" : "");
}

static int read_cpr_channel(struct parser *parser, struct properties *p)
{
    struct config *config = parser->config;
    int ret = expect(parser, p, "addr.transport", "socket");

    if (ret == 0)
        ret = expect(parser, p, "addr.type", "unix");
    if (ret < 0)
        return ret;
    if (config->incoming_cpr[0])
        return error_set(parser->error, EINVAL, "-incoming: a second cpr channel");
    if (properties_get(p, "addr.path") == NULL)
        return error_set(parser->error, EINVAL, "-incoming: the cpr channel needs addr.path");
    ret = properties_string(p, "addr.path", config->incoming_cpr,
                            sizeof(((struct sockaddr_un *)0)->sun_path), parser->error);
    return ret < 0 ? ret : properties_finish(p, parser->error);
}

/* The main channel carries QEMU's device state. baton needs one channel for everything. */
static int read_main_channel(struct parser *parser, const char *value)
{
    if (parser->main_channel)
        return error_set(parser->error, EINVAL, "-incoming: a second main channel '%s'", value);
    parser->main_channel = true;
    return 0;
}

static bool is_main_uri(const char *value)
{
    static const char *const prefixes[] = {"tcp:", "unix:", "fd:", "vsock:"};

    for (unsigned i = 0; i < ARRAY_SIZE(prefixes); i++) {
        if (strncmp(value, prefixes[i], strlen(prefixes[i])) == 0)
            return true;
    }
    return strcmp(value, "defer") == 0;
}

static int read_incoming(struct parser *parser, const char *value)
{
    struct properties p;
    const char *type;
    int ret;

    parser->config->incoming = true;
    if (is_main_uri(value))
        return read_main_channel(parser, value);
    ret = properties_parse(&p, "-incoming", value, NULL, parser->error);
    if (ret < 0)
        return ret;
    type = properties_get(&p, "channel-type");
    if (type != NULL && strcmp(type, "cpr") == 0)
        ret = read_cpr_channel(parser, &p);
    else if (type != NULL && strcmp(type, "main") == 0)
        ret = read_main_channel(parser, value);
    else
        ret = error_set(parser->error, EINVAL,
                        "-incoming: expected a channel of type cpr or main, "
                        "or tcp:, unix: or defer for the main channel, not '%s'",
                        value);
    properties_clear(&p);
    return ret;
}

static int read_help(struct parser *parser, const char *value)
{
    parser->config->help = true;
    return 0;
}

static int read_version(struct parser *parser, const char *value)
{
    parser->config->version = true;
    return 0;
}

static const struct option options[] = {
    {"name", "NAME", read_name, "name of the guest; 'baton update' and 'baton list' use it"},
    {"machine", "[type=]" CONFIG_MACHINE_VERSION "[,memory-backend=ID]", read_machine,
     "version of the machine that the guest sees, and its memory"},
    {"M", "TYPE", read_machine, NULL},
    {"accel", "kvm", read_accel, "accepted: there is no other"},
    {"enable-kvm", NULL, read_enable_kvm, "accepted: it always is"},
    {"cpu", "host", read_cpu, "accepted: there is no other"},
    {"m", "[size=]SIZE", read_memory, "memory, in MiB or with suffix K, M, G; default 512M"},
    {"smp", "[cpus=]N", read_smp, "virtual processors; default 1"},
    {"object", "memory-backend-memfd,id=ID,size=SIZE[,hugetlb=on[,hugetlbsize=2M]][,prealloc=on]",
     read_object, "memory, for -machine memory-backend=ID"},
    {"object", "iommufd,id=ID", read_object, "an address space for devices"},
    {"device", "vfio-pci,id=ID,host=ADDRESS,iommufd=ID[,addr=SLOT]", read_device,
     "passes a PCI device of the host to the guest"},
    {"kernel", "FILE", read_kernel, "bzImage or PVH ELF to boot; needed unless -incoming"},
    {"initrd", "FILE", read_initrd, "initial RAM disk"},
    {"append", "TEXT", read_append, "kernel command line"},
    {"serial", "SPEC", read_serial,
     "stdio, pty, file:PATH, unix:PATH,server=on, null or none (default)"},
    {"nographic", NULL, read_nographic, "-serial stdio, unless -serial is given"},
    {"display", "none", read_display, "accepted: there is no other"},
    {"nodefaults", NULL, read_nodefaults, "accepted: there are no defaults to leave out"},
    {"qmp", "unix:PATH,server=on,wait=off", read_qmp, "control socket; several are possible"},
    {"pidfile", "FILE", read_pidfile, "holds the id of the process that runs the guest"},
    {"S", NULL, read_start_paused, "do not start the guest before QMP says cont"},
    {"incoming",
     "'{\"channel-type\":\"cpr\",\"addr\":{\"transport\":\"socket\",\"type\":\"unix\","
     "\"path\":PATH}}'",
     read_incoming, "take a guest over from another process"},
    {"incoming", "tcp:HOST:PORT | unix:PATH | defer", read_incoming,
     "QEMU's main channel: accepted, not used"},
    {"version", NULL, read_version, "print the version"},
    {"help", NULL, read_help, "print this"},
    {"h", NULL, read_help, NULL},
};

void config_print_help(FILE *out)
{
    for (unsigned i = 0; i < ARRAY_SIZE(options); i++) {
        if (options[i].help == NULL)
            continue;
        fprintf(out, "  -%s%s%s\n        %s\n", options[i].name, options[i].argument ? " " : "",
                options[i].argument ? options[i].argument : "", options[i].help);
    }
}

static const struct option *find_option(const char *argument)
{
    if (argument[0] != '-')
        return NULL;
    argument += argument[1] == '-' ? 2 : 1;
    for (unsigned i = 0; i < ARRAY_SIZE(options); i++) {
        if (strcmp(options[i].name, argument) == 0)
            return &options[i];
    }
    return NULL;
}

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
    if (strcmp(a->host, b->host) == 0)
        return error_set(error, EINVAL, "-device: '%s' and '%s' are the same host device %s", a->id,
                         b->id, a->host);
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

        if (find_iommu(config, device->iommufd) == NULL)
            return error_set(parser->error, EINVAL,
                             "-device: '%s' names iommufd '%s', which does "
                             "not exist: add -object iommufd,id=%s",
                             device->id, device->iommufd, device->iommufd);
        for (unsigned j = 0; ret == 0 && j < i; j++)
            ret = check_device_pair(&config->devices[j], device, parser->error);
    }
    return ret;
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
static int finish(struct parser *parser)
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
        ret = check_qmp(parser);
    if (ret == 0)
        ret = check_boot(parser);
    if (ret == 0)
        assign_slots(config);
    return ret;
}

int config_parse(struct config *config, int argc, const char *const *argv, struct error *error)
{
    struct parser parser = {.config = config, .error = error};
    int ret;

    *config = (struct config){.memory_size = MEMORY_SIZE_DEFAULT, .cpus = 1};
    strcpy(config->machine, CONFIG_MACHINE_VERSION);
    strcpy(config->serial, "none");
    for (int i = 0; i < argc; i++) {
        const struct option *option = find_option(argv[i]);
        const char *value = NULL;

        if (option == NULL)
            return error_set(error, EINVAL, "baton has no option '%s' (see baton run -help)",
                             argv[i]);
        if (option->argument != NULL) {
            if (i + 1 == argc)
                return error_set(error, EINVAL, "-%s: the value is missing", option->name);
            value = argv[++i];
        }
        ret = option->read(&parser, value);
        if (ret < 0)
            return ret;
        if (config->help || config->version)
            return 0;
    }
    return finish(&parser);
}
