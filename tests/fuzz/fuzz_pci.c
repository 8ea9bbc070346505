/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: a guest's accesses to the registers of a function on bus 0 that has every kind of
 * BAR, MSI and MSI-X, by ECAM, by ports and in its MSI-X table. The input is a list of accesses of
 * 14 bytes: what, log2 of the size, offset (4 bytes, cut to what there is), value (8 bytes).
 *
 * What must hold: the function sees only accesses within a dword; BARs are mapped aligned, once,
 * and never over the interrupt controllers; vectors are let through only while their capability is
 * on; and all is unmapped and masked in the end.
 */
#include <assert.h>
#include <linux/pci_regs.h>
#include <pthread.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "fuzz.h"
#include "memory/bus.h"
#include "memory/layout.h"
#include "pci/bars.h"
#include "pci/host.h"
#include "pci/msi.h"
#include "pci/msix.h"

#define ACCESS_BYTES 14
#define DEVFN        (5u << 3)
#define MSIX_AT      0x40u
#define MSI_AT       0x60u
#define VECTORS      70u
#define TABLE_BYTES  4096u

struct vectors {
    bool enabled;
    unsigned count;
    bool open[VECTORS];
};

struct device {
    uint16_t command;
    struct pci_bars_state bars_state;
    struct pci_bars bars;
    bool mapped[PCI_BARS_ALL];
    struct pci_msi_state msi_state;
    struct pci_msi msi;
    struct vectors msi_vectors;
    struct pci_msix_state msix_state;
    struct pci_msix msix;
    struct vectors msix_vectors;
};

static int map(void *opaque, unsigned bar, uint64_t address)
{
    struct device *device = opaque;
    uint64_t size = device->bars.bars[bar].size;

    assert(!device->mapped[bar] && address != 0 && is_aligned(address, size));
    assert(address + (size - 1) > address);
    if (device->bars.bars[bar].kind == PCI_BAR_IO)
        assert(address + size <= 0x10000);
    else
        assert(address >= 4 * GIB || address + size <= LAYOUT_IOAPIC_BASE);
    if (address & 0x100000) /* some other device has these */
        return -1;
    device->mapped[bar] = true;
    return 0;
}

static void unmap(void *opaque, unsigned bar)
{
    struct device *device = opaque;

    assert(device->mapped[bar]);
    device->mapped[bar] = false;
}

static const struct pci_bars_ops bars_ops = {.map = map, .unmap = unmap};

static void enable(void *opaque, bool enabled)
{
    struct vectors *vectors = opaque;

    assert(vectors->enabled != enabled);
    for (unsigned i = 0; i < VECTORS; i++)
        assert(!vectors->open[i]);
    vectors->enabled = enabled;
}

static void unmask(void *opaque, unsigned vector, const struct msi_message *message)
{
    struct vectors *vectors = opaque;

    assert(vectors->enabled && vector < vectors->count && is_aligned(message->address, 4));
    vectors->open[vector] = true;
}

static void mask(void *opaque, unsigned vector)
{
    struct vectors *vectors = opaque;

    assert(vector < vectors->count && vectors->open[vector]);
    vectors->open[vector] = false;
}

static bool pending(void *opaque, unsigned vector)
{
    struct vectors *vectors = opaque;

    assert(vector < vectors->count && !vectors->open[vector]);
    return vector % 3 == 0;
}

static const struct pci_vector_ops vector_ops = {
    .enable = enable, .unmask = unmask, .mask = mask, .pending = pending};

static void check_access(unsigned offset, unsigned size)
{
    assert((size == 1 || size == 2 || size == 4) && offset % 4 + size <= 4);
    assert(offset + size <= PCI_CONFIG_SIZE);
}

static uint32_t config_read(void *opaque, unsigned offset, unsigned size)
{
    const struct device *device = opaque;

    check_access(offset, size);
    if (pci_bars_owns(offset))
        return pci_bars_read(&device->bars, offset, size);
    if (offset >= MSI_AT && offset < MSI_AT + pci_msi_size(&device->msi))
        return pci_msi_read(&device->msi, offset - MSI_AT, size);
    if (offset == MSIX_AT)
        return pci_msix_control(&device->msix);
    return 0;
}

static void config_write(void *opaque, unsigned offset, unsigned size, uint32_t value)
{
    struct device *device = opaque;

    check_access(offset, size);
    if (offset == PCI_COMMAND)
        device->command = (uint16_t)value;
    else if (pci_bars_owns(offset))
        pci_bars_write(&device->bars, offset, size, value);
    else if (offset >= MSI_AT && offset < MSI_AT + pci_msi_size(&device->msi))
        pci_msi_write(&device->msi, offset - MSI_AT, size, value);
    else if (offset == MSIX_AT)
        pci_msix_write_control(&device->msix, (uint16_t)value);
    pci_bars_update(&device->bars, device->command);
}

static const struct pci_config_ops config_ops = {.read = config_read, .write = config_write};

static void init_device(struct device *device, unsigned variant)
{
    memset(device, 0, sizeof(*device));
    pci_bars_init(&device->bars, "fuzz", &device->bars_state, &bars_ops, device);
    pci_bars_define(&device->bars, 0, PCI_BAR_MEM64, variant & 4 ? 16 : 8 * GIB, true);
    pci_bars_define(&device->bars, 2, PCI_BAR_IO, 32, false);
    pci_bars_define(&device->bars, 3, PCI_BAR_MEM32, 4096, false);
    pci_bars_define(&device->bars, 4, PCI_BAR_MEM32, 2 * GIB, true);
    pci_bars_define(&device->bars, PCI_BAR_ROM, PCI_BAR_MEM32, 2 * KIB, false);
    pci_msi_init(&device->msi, &device->msi_state, (uint16_t)(variant << 7 | 0xff0e), &vector_ops,
                 &device->msi_vectors);
    device->msi_vectors.count = pci_msi_capacity(&device->msi);
    pci_msix_init(&device->msix, &device->msix_state, VECTORS, &vector_ops, &device->msix_vectors);
    device->msix_vectors.count = VECTORS;
}

struct access {
    uint8_t what;
    unsigned size;
    uint32_t offset;
    uint64_t value;
};

static void carry_out(struct device *device, struct bus *mmio, struct bus *pio,
                      const struct access *access)
{
    uint64_t ecam = LAYOUT_ECAM_BASE + access->offset % LAYOUT_ECAM_SIZE;
    uint64_t own = LAYOUT_ECAM_BASE + DEVFN * PCI_CONFIG_SIZE + access->offset % 0x80;
    unsigned table = access->offset % TABLE_BYTES;
    uint64_t value = access->value;

    switch (access->what % 8) {
    case 0:
        bus_write(mmio, ecam, &value, access->size);
        break;
    case 1:
        bus_read(mmio, ecam, &value, access->size);
        break;
    case 2:
        bus_write(mmio, own, &value, access->size);
        break;
    case 3:
        bus_read(mmio, own, &value, access->size);
        break;
    case 4:
        bus_write(pio, 0xcf0 + access->offset % 16, &value, MIN(access->size, 4u));
        break;
    case 5:
        bus_read(pio, 0xcf0 + access->offset % 16, &value, MIN(access->size, 4u));
        break;
    case 6:
        pci_msix_table_write(&device->msix, table, access->size, value);
        break;
    case 7:
        pci_msix_table_read(&device->msix, table, access->size);
        pci_msix_pba_read(&device->msix, table, access->size);
        break;
    }
}

static void check_end(struct device *device)
{
    for (unsigned i = 0; i < VECTORS; i++)
        assert(device->msix_vectors.open[i] == pci_msix_is_open(&device->msix, i));
    for (unsigned i = 0; i < device->msi_vectors.count; i++)
        assert(device->msi_vectors.open[i] == pci_msi_is_open(&device->msi, i));
    pci_msix_write_control(&device->msix, 0);
    pci_msi_write(&device->msi, 2, 2, 0);
    assert(!device->msix_vectors.enabled && !device->msi_vectors.enabled);
    pci_bars_reset(&device->bars);
    for (unsigned i = 0; i < PCI_BARS_ALL; i++)
        assert(!device->mapped[i]);
}

static void run(struct device *device, struct bus *mmio, struct bus *pio, const uint8_t *data,
                size_t size)
{
    for (; size >= ACCESS_BYTES; data += ACCESS_BYTES, size -= ACCESS_BYTES) {
        struct access access = {.what = data[0], .size = 1u << (data[1] % 4)};

        memcpy(&access.offset, data + 2, sizeof(access.offset));
        memcpy(&access.value, data + 6, sizeof(access.value));
        carry_out(device, mmio, pio, &access);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct device *device = xcalloc(1, sizeof(*device));
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct bus *mmio = bus_create(&lock, UINT64_MAX);
    struct bus *pio = bus_create(&lock, 0x10000);
    struct pci_function function = {
        .name = "fuzz", .devfn = DEVFN, .ops = &config_ops, .opaque = device};
    struct error error = {0};
    struct pci_host *host = NULL;

    log_configure(LOG_LEVEL_ERROR, NULL);
    init_device(device, size > 0 ? data[0] % 8 : 0);
    if (pci_host_create(&host, mmio, pio, &error) < 0 || pci_host_add(host, &function, &error) < 0)
        abort();
    if (size > 0)
        run(device, mmio, pio, data + 1, size - 1);
    check_end(device);
    pci_host_remove(host, &function);
    pci_host_destroy(host);
    bus_destroy(mmio);
    bus_destroy(pio);
    free(device);
    return 0;
}
