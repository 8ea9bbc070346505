/* SPDX-License-Identifier: Apache-2.0
 *
 * See config.h: a definition written as options, compared with another one, and made independent
 * of the working directory. Called on the main thread and by the thread of a hand-over.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#include "base/util.h"
#include "machine/config_parser.h"

#define VALUE_SIZE                                                                                 \
    (2 * CONFIG_CMDLINE_SIZE + 256) /* the longest string, every character doubled                 \
                                     */

/* A list of strings under construction. */
struct writer {
    char **strings;
    size_t count;
};

static void put(struct writer *writer, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void put(struct writer *writer, const char *format, ...)
{
    va_list args;
    int length;

    assert(writer->count < CONFIG_OPTIONS_MAX);
    va_start(args, format);
    length = vasprintf(&writer->strings[writer->count], format, args);
    va_end(args);
    assert(length >= 0);
    writer->count++;
}

/* An option with its value as it is; nothing when the value is empty. */
static void put_plain(struct writer *writer, const char *option, const char *value)
{
    if (value[0]) {
        put(writer, "%s", option);
        put(writer, "%s", value);
    }
}

static void put_memory(struct writer *writer, const struct config *config)
{
    if (config->memory_backend[0] == '\0') {
        put(writer, "-m");
        put(writer, "size=%" PRIu64 "K", config->memory_size / KIB);
        return;
    }
    put(writer, "-object");
    put(writer, "memory-backend-memfd,id=%s,size=%" PRIu64 "K,share=on,prealloc=%s",
        config->memory_backend, config->memory_size / KIB, config->prealloc ? "on" : "off");
    if (config->hugetlb_size) {
        char *plain = writer->strings[writer->count - 1];

        writer->count--;
        put(writer, "%s,hugetlb=on,hugetlbsize=%" PRIu64 "M", plain, config->hugetlb_size / MIB);
        free(plain);
    }
}

/* Appends ",KEY=VALUE", or nothing for an empty value. */
static void append(char *text, size_t size, const char *key, const char *value)
{
    char escaped[2 * CONFIG_SYSFS_SIZE];
    size_t used = strlen(text), length;
    bool fits = properties_escape(escaped, sizeof(escaped), value);

    assert(fits);
    if (value[0] == '\0')
        return;
    length = (size_t)snprintf(text + used, size - used, ",%s=%s", key, escaped);
    assert(length < size - used);
}

/* A number is written only where there is no name, and then it never leaves this process. */
static void append_fd(char *text, size_t size, int fd, bool named)
{
    char number[16];

    if (fd == CONFIG_FD_NONE)
        return;
    snprintf(number, sizeof(number), "%d", fd);
    append(text, size, "fd", named ? CONFIG_FD_HANDED_OVER_TEXT : number);
}

static void put_device(struct writer *writer, const struct config_vfio_pci *device)
{
    char text[CONFIG_CMDLINE_SIZE] = "vfio-pci";

    append(text, sizeof(text), "id", config_has_implied_id(device) ? "" : device->id);
    append(text, sizeof(text), "host", device->host);
    append(text, sizeof(text), "sysfsdev", device->sysfsdev);
    append_fd(text, sizeof(text), device->fd, config_is_named(device));
    append(text, sizeof(text), "iommufd", device->iommufd);
    append(text, sizeof(text), "ioas", device->ioas);
    append(text, sizeof(text), "container", device->container);
    append(text, sizeof(text), "hwpt",
           device->hwpt != IOMMU_HWPT_SHARED ? config_hwpt_name(device->hwpt) : "");
    append(text, sizeof(text), "p2p", device->p2p ? "" : "off");
    put(writer, "-device");
    put(writer, "%s,addr=%02x.%x", text, device->devfn >> 3, device->devfn & 7u);
}

static void put_iommu(struct writer *writer, const struct config_iommu *iommu)
{
    char text[CONFIG_CMDLINE_SIZE] = "iommufd";

    append(text, sizeof(text), "id", iommu->id);
    append_fd(text, sizeof(text), iommu->fd, true);
    put(writer, "-object");
    put(writer, "%s", text);
}

static void put_devices(struct writer *writer, const struct config *config)
{
    for (unsigned i = 0; i < config->iommu_count; i++)
        put_iommu(writer, &config->iommus[i]);
    for (unsigned i = 0; i < config->device_count; i++)
        put_device(writer, &config->devices[i]);
}

static void put_host_side(struct writer *writer, const struct config *config)
{
    char escaped[VALUE_SIZE];

    put_plain(writer, "-serial", config->serial);
    for (unsigned i = 0; i < config->qmp_count; i++) {
        bool fits = properties_escape(escaped, sizeof(escaped), config->qmp[i]);

        assert(fits);
        put(writer, "-qmp");
        put(writer, "unix:%s,server=on,wait=off", escaped);
    }
    put_plain(writer, "-pidfile", config->pidfile);
}

int config_to_options(const struct config *config, char ***strings, size_t *count,
                      struct error *error)
{
    struct writer writer = {.strings = calloc(CONFIG_OPTIONS_MAX, sizeof(char *))};

    if (writer.strings == NULL)
        return error_set_errno(error, ENOMEM, "cannot write the machine's definition");
    put_plain(&writer, "-name", config->name);
    put(&writer, "-machine");
    put(&writer, "type=%s%s%s", config->machine,
        config->memory_backend[0] ? ",memory-backend=" : "", config->memory_backend);
    put_memory(&writer, config);
    put(&writer, "-smp");
    put(&writer, "cpus=%u", config->cpus);
    put_devices(&writer, config);
    put_plain(&writer, "-kernel", config->kernel);
    put_plain(&writer, "-initrd", config->initrd);
    put_plain(&writer, "-append", config->append);
    put_host_side(&writer, config);
    *strings = writer.strings;
    *count = writer.count;
    return 0;
}

void config_free_options(char **strings, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(strings[i]);
    free(strings);
}

static int compare_strings(const char *option, const char *running, const char *given,
                           struct error *error)
{
    if (strcmp(running, given) == 0)
        return 0;
    return error_set(error, EINVAL,
                     "%s differs: the running guest has '%.160s', this process was "
                     "given '%.160s'",
                     option, running, given);
}

static int compare_numbers(const char *option, uint64_t running, uint64_t given,
                           struct error *error)
{
    if (running == given)
        return 0;
    return error_set(error, EINVAL,
                     "%s differs: the running guest has %" PRIu64 ", this process "
                     "was given %" PRIu64,
                     option, running, given);
}

static int compare_backend(const struct config *running, const struct config *given,
                           struct error *error)
{
    int ret = compare_strings("-machine memory-backend=", running->memory_backend,
                              given->memory_backend, error);

    if (ret == 0)
        ret = compare_numbers("-object memory-backend-memfd hugetlbsize= (bytes)",
                              running->hugetlb_size, given->hugetlb_size, error);
    if (ret == 0)
        ret = compare_strings(
            "-object memory-backend-memfd prealloc=", running->prealloc ? "on" : "off",
            given->prealloc ? "on" : "off", error);
    return ret;
}

/* Whose descriptor it is, not its number, which is another in each process. */
static int compare_fds(int running, int given, struct error *error)
{
    static const char *const how[] = {"opened by baton", "passed by descriptor"};

    return compare_strings("fd=", how[running != CONFIG_FD_NONE], how[given != CONFIG_FD_NONE],
                           error);
}

/* The order of objects means nothing. */
static int compare_iommus(const struct config *running, const struct config *given,
                          struct error *error)
{
    for (unsigned i = 0; i < given->iommu_count; i++) {
        const struct config_iommu *own = &given->iommus[i];
        const struct config_iommu *other = config_find_iommu(running, own->id);

        if (other == NULL)
            return error_set(error, EINVAL,
                             "-object iommufd,id=%s: the running guest has none of "
                             "that id",
                             own->id);
        if (compare_fds(other->fd, own->fd, error) < 0)
            return error_prefix(error, "-object iommufd,id=%s: ", own->id);
    }
    for (unsigned i = 0; i < running->iommu_count; i++) {
        if (config_find_iommu(given, running->iommus[i].id) == NULL)
            return error_set(error, EINVAL,
                             "-object iommufd,id=%s is missing: the running guest "
                             "has it",
                             running->iommus[i].id);
    }
    return 0;
}

/* By id; what was given without one is found by the host's name of it. */
static bool is_same_device(const struct config_vfio_pci *running,
                           const struct config_vfio_pci *given)
{
    const char *name = config_source_name(given);

    return strcmp(running->id, given->id) == 0 || (name[0] && config_has_implied_id(given) &&
                                                   strcmp(config_source_name(running), name) == 0);
}

static int compare_device(const struct config_vfio_pci *running,
                          const struct config_vfio_pci *given, struct error *error)
{
    const char *const strings[][3] = {
        {"host=", running->host, given->host},
        {"sysfsdev=", running->sysfsdev, given->sysfsdev},
        {"iommufd=", running->iommufd, given->iommufd},
        {"ioas=", running->ioas, given->ioas},
        {"container=", running->container, given->container},
        {"hwpt=", config_hwpt_name(running->hwpt), config_hwpt_name(given->hwpt)},
        {"p2p=", running->p2p ? "on" : "off", given->p2p ? "on" : "off"},
    };
    int ret = compare_fds(running->fd, given->fd, error);

    for (unsigned i = 0; ret == 0 && i < ARRAY_SIZE(strings); i++)
        ret = compare_strings(strings[i][0], strings[i][1], strings[i][2], error);
    if (ret == 0 && running->devfn != given->devfn)
        ret = error_set(error, EINVAL,
                        "addr= differs: the running guest has it in slot %02x, this "
                        "process was given %02x",
                        running->devfn >> 3, given->devfn >> 3);
    return ret < 0 ? error_prefix(error, "-device vfio-pci,id=%s: ", given->id) : 0;
}

/* @return the guest's device that was given, or NULL */
static const struct config_vfio_pci *find_running(const struct config *running,
                                                  const struct config_vfio_pci *given)
{
    for (unsigned i = 0; i < running->device_count; i++) {
        if (is_same_device(&running->devices[i], given))
            return &running->devices[i];
    }
    return NULL;
}

static bool was_given(const struct config *given, const struct config_vfio_pci *running)
{
    for (unsigned i = 0; i < given->device_count; i++) {
        if (is_same_device(running, &given->devices[i]))
            return true;
    }
    return false;
}

/* The order of devices shows in their slots only. */
static int compare_devices(const struct config *running, const struct config *given,
                           struct error *error)
{
    for (unsigned i = 0; i < running->device_count; i++) {
        if (!was_given(given, &running->devices[i]))
            return error_set(error, EINVAL,
                             "-device vfio-pci,id=%s is missing: the running guest "
                             "has it",
                             running->devices[i].id);
    }
    for (unsigned i = 0; i < given->device_count; i++) {
        const struct config_vfio_pci *other = find_running(running, &given->devices[i]);
        int ret;

        if (other == NULL)
            return error_set(error, EINVAL,
                             "-device vfio-pci,id=%s: the running guest has no such "
                             "device",
                             given->devices[i].id);
        ret = compare_device(other, &given->devices[i], error);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int compare_hardware(const struct config *running, const struct config *given,
                            struct error *error)
{
    int ret = 0;

    if (given->given[CONFIG_OPTION_MACHINE])
        ret = compare_strings("-machine type=", running->machine, given->machine, error);
    if (ret == 0 && given->given[CONFIG_OPTION_MEMORY])
        ret = compare_numbers("-m (bytes)", running->memory_size, given->memory_size, error);
    if (ret == 0 && given->given[CONFIG_OPTION_MEMORY_BACKEND])
        ret = compare_backend(running, given, error);
    if (ret == 0 && given->given[CONFIG_OPTION_SMP])
        ret = compare_numbers("-smp", running->cpus, given->cpus, error);
    if (ret == 0 && given->given[CONFIG_OPTION_OBJECT])
        ret = compare_iommus(running, given, error);
    if (ret == 0 && given->given[CONFIG_OPTION_DEVICE])
        ret = compare_devices(running, given, error);
    return ret;
}

int config_compare(const struct config *running, const struct config *given, struct error *error)
{
    int ret = 0;

    if (given->given[CONFIG_OPTION_NAME])
        ret = compare_strings("-name", running->name, given->name, error);
    if (ret == 0)
        ret = compare_hardware(running, given, error);
    if (ret == 0 && given->given[CONFIG_OPTION_KERNEL])
        ret = compare_strings("-kernel", running->kernel, given->kernel, error);
    if (ret == 0 && given->given[CONFIG_OPTION_INITRD])
        ret = compare_strings("-initrd", running->initrd, given->initrd, error);
    if (ret == 0 && given->given[CONFIG_OPTION_APPEND])
        ret = compare_strings("-append", running->append, given->append, error);
    return ret;
}

/* Puts the directory in front of a relative path that begins at @p path, inside a buffer. */
static int make_absolute(char *buffer, size_t size, char *path, const char *directory,
                         struct error *error)
{
    size_t room = size - (size_t)(path - buffer);
    char relative[CONFIG_PATH_SIZE];

    if (path[0] == '\0' || path[0] == '/')
        return 0;
    snprintf(relative, sizeof(relative), "%s", path);
    if ((size_t)snprintf(path, room, "%s/%s", directory, relative) >= room)
        return error_set(error, ENAMETOOLONG, "path '%s/%s' is too long", directory, relative);
    return 0;
}

int config_make_paths_absolute(struct config *config, const char *directory, struct error *error)
{
    char *const plain[] = {config->kernel, config->initrd, config->pidfile};
    int ret = 0;

    for (unsigned i = 0; ret == 0 && i < ARRAY_SIZE(plain); i++)
        ret = make_absolute(plain[i], CONFIG_PATH_SIZE, plain[i], directory, error);
    for (unsigned i = 0; ret == 0 && i < config->qmp_count; i++)
        ret = make_absolute(config->qmp[i], CONFIG_PATH_SIZE, config->qmp[i], directory, error);
    if (ret == 0 &&
        (strncmp(config->serial, "file:", 5) == 0 || strncmp(config->serial, "unix:", 5) == 0))
        ret = make_absolute(config->serial, sizeof(config->serial), config->serial + 5, directory,
                            error);
    return ret;
}
