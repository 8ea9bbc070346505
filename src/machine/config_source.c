/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a passed-through device comes from (host=, sysfsdev=, fd=), what it is called without id=,
 * and the descriptors that baton inherits. See config_parser.h and config.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "machine/config_parser.h"
#include "machine/properties.h"

/* What the host's names of devices are made of. */
#define NAME_CHARACTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._:"

/* Reads [DDDD:]BB:DD.F and writes the full form, in lower case. */
static int read_host_address(struct parser *parser, struct config_vfio_pci *device,
                             const char *text)
{
    unsigned domain = 0, bus, slot, function;
    int used = 0;
    int fields = sscanf(text, "%4x:%2x:%2x.%1x%n", &domain, &bus, &slot, &function, &used);

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

/* A directory of sysfs, without a slash at its end: the last part is the device's name. */
static int read_directory(struct parser *parser, struct config_vfio_pci *device,
                          struct properties *p)
{
    int ret =
        properties_string(p, "sysfsdev", device->sysfsdev, sizeof(device->sysfsdev), parser->error);
    size_t length = strlen(device->sysfsdev);

    if (ret < 0)
        return ret;
    while (length > 0 && device->sysfsdev[length - 1] == '/')
        device->sysfsdev[--length] = '\0';
    if (device->sysfsdev[0] != '/')
        return error_set(parser->error, EINVAL,
                         "-device: vfio-pci '%s': sysfsdev= must be a directory such as "
                         "/sys/bus/mdev/devices/UUID",
                         device->id);
    return 0;
}

int config_read_fd(struct parser *parser, struct properties *p, int *fd)
{
    const char *text = properties_get(p, "fd");
    unsigned number = 0;
    int ret;

    *fd = CONFIG_FD_NONE;
    if (text == NULL)
        return 0;
    if (strcmp(text, CONFIG_FD_HANDED_OVER_TEXT) == 0) {
        *fd = CONFIG_FD_HANDED_OVER;
        return 0;
    }
    ret = properties_unsigned(p, "fd", &number, parser->error);
    if (ret < 0)
        return ret;
    if (number <= STDERR_FILENO || number > INT32_MAX)
        return error_set(parser->error, EINVAL,
                         "%s: fd= must be the number of a descriptor that baton inherits, from 3, "
                         "not %s",
                         p->option, text);
    *fd = (int)number;
    return 0;
}

/* Exactly one of the three. */
static int check_sources(struct parser *parser, struct properties *p, const char *id)
{
    static const char *const keys[] = {"host", "sysfsdev", "fd"};
    const char *first = NULL;

    for (unsigned i = 0; i < ARRAY_SIZE(keys); i++) {
        if (properties_get(p, keys[i]) == NULL)
            continue;
        if (first != NULL)
            return error_set(parser->error, EINVAL,
                             "-device: vfio-pci '%s': %s= and %s= exclude each other", id, first,
                             keys[i]);
        first = keys[i];
    }
    if (first == NULL)
        return error_set(parser->error, EINVAL,
                         "-device: vfio-pci '%s' needs host=, a PCI address such as 0000:01:00.0, "
                         "or sysfsdev= or fd=",
                         id);
    return 0;
}

int config_read_source(struct parser *parser, struct properties *p, struct config_vfio_pci *device)
{
    int ret = check_sources(parser, p, device->id);

    if (ret == 0 && properties_get(p, "host"))
        ret = read_host_address(parser, device, properties_get(p, "host"));
    if (ret == 0 && properties_get(p, "sysfsdev"))
        ret = read_directory(parser, device, p);
    if (ret == 0)
        ret = config_read_fd(parser, p, &device->fd);
    if (ret < 0 || device->id[0])
        return ret;
    config_implied_id(device, device->id);
    if (device->id[0] == '\0')
        return error_set(parser->error, EINVAL,
                         "-device: vfio-pci: property 'id' is missing: there is nothing else to "
                         "name the device after");
    return 0;
}

const char *config_source_name(const struct config_vfio_pci *device)
{
    const char *slash = strrchr(device->sysfsdev, '/');

    return slash != NULL ? slash + 1 : device->host;
}

void config_implied_id(const struct config_vfio_pci *device, char id[CONFIG_ID_SIZE])
{
    const char *name = config_source_name(device);

    id[0] = '\0';
    if (device->fd >= 0)
        snprintf(id, CONFIG_ID_SIZE, "fd:%d", device->fd);
    else if (strlen(name) < CONFIG_ID_SIZE && name[strspn(name, NAME_CHARACTERS)] == '\0')
        strcpy(id, name);
}

bool config_has_implied_id(const struct config_vfio_pci *device)
{
    char implied[CONFIG_ID_SIZE];

    config_implied_id(device, implied);
    return strcmp(implied, device->id) == 0;
}

bool config_is_named(const struct config_vfio_pci *device)
{
    return device->fd == CONFIG_FD_NONE || !config_has_implied_id(device);
}

/* --- inherited descriptors ----------------------------------------------------------------- */

static int claim(const struct config *config, int fd, const char *what, const char *id,
                 struct error *error)
{
    if (fd == CONFIG_FD_NONE)
        return 0;
    if (config->incoming) {
        close_fd(fd);
        return 0;
    }
    if (fd == CONFIG_FD_HANDED_OVER)
        return error_set(error, EBADF,
                         "%s '%s': fd=" CONFIG_FD_HANDED_OVER_TEXT
                         " is for guests that are taken over (-incoming)",
                         what, id);
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return error_set(error, EBADF,
                         "%s '%s': descriptor %d is not open: whoever starts baton must open it "
                         "and let it be inherited (no close-on-exec)",
                         what, id, fd);
    return 0;
}

int config_claim_descriptors(const struct config *config, struct error *error)
{
    int ret = 0;

    for (unsigned i = 0; ret == 0 && i < config->iommu_count; i++)
        ret = claim(config, config->iommus[i].fd, "-object iommufd", config->iommus[i].id, error);
    for (unsigned i = 0; ret == 0 && i < config->device_count; i++)
        ret =
            claim(config, config->devices[i].fd, "-device vfio-pci", config->devices[i].id, error);
    return ret;
}
