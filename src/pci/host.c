/* SPDX-License-Identifier: Apache-2.0
 *
 * The PCIe host bridge, see host.h. Its callbacks run on vCPU threads with the machine's lock
 * held; functions come and go while the machine is built and taken apart.
 */
#include "pci/host.h"

#include <assert.h>
#include <errno.h>
#include <linux/pci_regs.h>
#include <stddef.h>

#include "base/util.h"
#include "memory/layout.h"
#include "pci/registers.h"

#define FUNCTIONS_MAX 256u

#define ADDRESS_ENABLE   0x80000000u
#define ADDRESS_WRITABLE 0x80fffffcu /* enable, bus, device, function, register */

/* QEMU's generic PCIe host bridge: every guest knows it and expects nothing of it. */
#define BRIDGE_VENDOR    0x1b36u
#define BRIDGE_DEVICE    0x0008u
#define BRIDGE_CLASS     0x06000000u /* host bridge, revision 0 */
#define BRIDGE_SUBSYSTEM 0x11001af4u

struct pci_host {
    struct pci_host_state state;
    struct bus *mmio;
    struct bus *pio;
    struct bus_range ecam;
    struct bus_range address_port;
    struct bus_range data_port;
    struct pci_function bridge;
    struct pci_function *functions[FUNCTIONS_MAX];
};

static const struct state_field host_fields[] = {
    STATE_UINT(struct pci_host_state, config_address, 1),
    STATE_END,
};

static int host_check(const void *object, struct error *error)
{
    const struct pci_host_state *state = object;

    if (state->config_address & ~ADDRESS_WRITABLE)
        return error_set(error, EINVAL, "PCI address register 0x%x has bits that do not exist",
                         state->config_address);
    return 0;
}

const struct state_type pci_host_state_type = {
    .name = "pci-host",
    .version = 1,
    .min_version = 1,
    .size = sizeof(struct pci_host_state),
    .fields = host_fields,
    .check = host_check,
};

static uint32_t bridge_read(void *opaque, unsigned offset, unsigned size)
{
    uint32_t value = 0;

    switch (offset & ~3u) {
    case PCI_VENDOR_ID:
        value = BRIDGE_VENDOR | BRIDGE_DEVICE << 16;
        break;
    case PCI_CLASS_REVISION:
        value = BRIDGE_CLASS;
        break;
    case PCI_SUBSYSTEM_VENDOR_ID:
        value = BRIDGE_SUBSYSTEM;
        break;
    }
    return register_part(value, offset & 3, size);
}

static void bridge_write(void *opaque, unsigned offset, unsigned size, uint32_t value)
{
    /* nothing in it can be changed */
}

static const struct pci_config_ops bridge_ops = {.read = bridge_read, .write = bridge_write};

/* Whether a device has functions besides 0; only then does a guest look for them. */
static bool is_multifunction(const struct pci_host *host, unsigned devfn)
{
    for (unsigned i = 1; i < 8; i++) {
        if (host->functions[devfn + i] != NULL)
            return true;
    }
    return false;
}

/* An access that stays within a dword. */
static uint32_t function_read(struct pci_host *host, unsigned devfn, unsigned offset, unsigned size)
{
    struct pci_function *function = host->functions[devfn];
    uint32_t value;

    if (function == NULL)
        return (uint32_t)access_mask(size);
    value = function->ops->read(function->opaque, offset, size);
    if (offset <= PCI_HEADER_TYPE && offset + size > PCI_HEADER_TYPE && devfn % 8 == 0 &&
        is_multifunction(host, devfn))
        value |= 0x80u << (8 * (PCI_HEADER_TYPE - offset));
    return value & (uint32_t)access_mask(size);
}

static void function_write(struct pci_host *host, unsigned devfn, unsigned offset, unsigned size,
                           uint32_t value)
{
    struct pci_function *function = host->functions[devfn];

    if (function != NULL)
        function->ops->write(function->opaque, offset, size, value);
}

/* The largest aligned access that starts at an address and needs no more than is left. */
static unsigned piece_size(uint64_t address, unsigned left)
{
    unsigned size = 4;

    while (size > left || !is_aligned(address, size))
        size /= 2;
    return size;
}

/* ECAM: function and register are the address. */
static uint64_t ecam_read(void *opaque, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    unsigned piece;

    assert(size <= sizeof(value));
    for (unsigned done = 0; done < size; done += piece) {
        uint64_t at = offset + done;

        piece = piece_size(at, size - done);
        value |= (uint64_t)function_read(opaque, (unsigned)(at / PCI_CONFIG_SIZE) % FUNCTIONS_MAX,
                                         (unsigned)(at % PCI_CONFIG_SIZE), piece)
                 << (8 * done);
    }
    return value;
}

static void ecam_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    unsigned piece;

    for (unsigned done = 0; done < size; done += piece) {
        uint64_t at = offset + done;

        piece = piece_size(at, size - done);
        function_write(opaque, (unsigned)(at / PCI_CONFIG_SIZE) % FUNCTIONS_MAX,
                       (unsigned)(at % PCI_CONFIG_SIZE), piece,
                       (uint32_t)((value >> (8 * done)) & access_mask(piece)));
    }
}

static const struct bus_ops ecam_ops = {.read = ecam_read, .write = ecam_write};

/* Port 0xcf8 is 32 bits wide; narrower accesses are not for the bridge. */
static uint64_t address_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pci_host *host = opaque;

    return size == 4 ? host->state.config_address : access_mask(size);
}

static void address_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_host *host = opaque;

    if (size == 4)
        host->state.config_address = (uint32_t)value & ADDRESS_WRITABLE;
}

static const struct bus_ops address_ops = {.read = address_read, .write = address_write};

/* Turns an access to the data port into one to a function of bus 0. @return false when it goes
 * nowhere */
static bool data_target(const struct pci_host *host, uint64_t port, unsigned *devfn,
                        unsigned *offset)
{
    uint32_t address = host->state.config_address;

    if (!(address & ADDRESS_ENABLE) || ((address >> 16) & 0xff) != 0)
        return false;
    *devfn = (address >> 8) & 0xff;
    *offset = (address & 0xfc) | (unsigned)(port & 3);
    return true;
}

static uint64_t data_read(void *opaque, uint64_t port, unsigned size)
{
    struct pci_host *host = opaque;
    unsigned devfn, offset, piece;
    uint64_t value = 0;

    if (!data_target(host, port, &devfn, &offset))
        return access_mask(size);
    assert(size <= sizeof(value));
    for (unsigned done = 0; done < size; done += piece) {
        piece = piece_size(offset + done, size - done);
        value |= (uint64_t)function_read(host, devfn, offset + done, piece) << (8 * done);
    }
    return value;
}

static void data_write(void *opaque, uint64_t port, unsigned size, uint64_t value)
{
    struct pci_host *host = opaque;
    unsigned devfn, offset, piece;

    if (!data_target(host, port, &devfn, &offset))
        return;
    for (unsigned done = 0; done < size; done += piece) {
        piece = piece_size(offset + done, size - done);
        function_write(host, devfn, offset + done, piece,
                       (uint32_t)((value >> (8 * done)) & access_mask(piece)));
    }
}

static const struct bus_ops data_ops = {.read = data_read, .write = data_write};

/* Claims ECAM and the ports; gives back what it got when one is taken. */
static int claim(struct pci_host *host, struct error *error)
{
    int result;

    host->ecam = (struct bus_range){.name = "PCI ECAM",
                                    .base = LAYOUT_ECAM_BASE,
                                    .size = LAYOUT_ECAM_SIZE,
                                    .ops = &ecam_ops,
                                    .opaque = host};
    host->address_port = (struct bus_range){.name = "PCI address port",
                                            .base = LAYOUT_PCI_ADDRESS_PORT,
                                            .size = 1,
                                            .whole_access = true,
                                            .ops = &address_ops,
                                            .opaque = host};
    host->data_port = (struct bus_range){.name = "PCI data port",
                                         .base = LAYOUT_PCI_DATA_PORT,
                                         .size = 4,
                                         .ops = &data_ops,
                                         .opaque = host};
    result = bus_add(host->mmio, &host->ecam, error);
    if (result < 0)
        return result;
    result = bus_add(host->pio, &host->address_port, error);
    if (result < 0)
        goto remove_ecam;
    result = bus_add(host->pio, &host->data_port, error);
    if (result < 0)
        goto remove_address;
    return 0;

remove_address:
    bus_remove(host->pio, &host->address_port);
remove_ecam:
    bus_remove(host->mmio, &host->ecam);
    return result;
}

int pci_host_create(struct pci_host **host, struct bus *mmio, struct bus *pio, struct error *error)
{
    struct pci_host *new = xcalloc(1, sizeof(*new));
    int result;

    new->mmio = mmio;
    new->pio = pio;
    new->bridge = (struct pci_function){.name = "host bridge", .ops = &bridge_ops, .opaque = new};
    new->functions[0] = &new->bridge;
    result = claim(new, error);
    if (result < 0) {
        free(new);
        return result;
    }
    *host = new;
    return 0;
}

void pci_host_destroy(struct pci_host *host)
{
    if (host == NULL)
        return;
    bus_remove(host->pio, &host->data_port);
    bus_remove(host->pio, &host->address_port);
    bus_remove(host->mmio, &host->ecam);
    free(host);
}

int pci_host_add(struct pci_host *host, struct pci_function *function, struct error *error)
{
    struct pci_function *other = host->functions[function->devfn];

    if (other != NULL)
        return error_set(error, EBUSY, "device '%s': PCI address %02x.%x is taken by '%s'",
                         function->name, function->devfn >> 3, function->devfn & 7, other->name);
    host->functions[function->devfn] = function;
    return 0;
}

void pci_host_remove(struct pci_host *host, struct pci_function *function)
{
    assert(host->functions[function->devfn] == function);
    host->functions[function->devfn] = NULL;
}

void pci_host_reset(struct pci_host *host)
{
    host->state.config_address = 0;
}

struct pci_host_state *pci_host_state(struct pci_host *host)
{
    return &host->state;
}
