/* SPDX-License-Identifier: Apache-2.0
 *
 * Unit tests of pci/: the host bridge over real buses, BARs, MSI and MSI-X over recording
 * callbacks. Callbacks check the rules that their owners rely on (no second map, no unmap of what
 * is not mapped, nothing overlapping), so the random walks at the end test more than crashes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <linux/pci_regs.h>
#include <pthread.h>
#include <string.h>

#include "base/util.h"
#include "memory/bus.h"
#include "memory/layout.h"
#include "pci/bars.h"
#include "pci/host.h"
#include "pci/msi.h"
#include "pci/msix.h"
#include "state/state.h"

/* --- a small repeatable source of random numbers --- */

static uint32_t next_random(uint64_t *seed)
{
    *seed = *seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(*seed >> 33);
}

/* --- the host bridge --- */

struct host_fixture {
    pthread_mutex_t lock;
    struct bus *mmio, *pio;
    struct pci_host *host;
};

static void host_setup(struct host_fixture *f)
{
    struct error error = {0};

    pthread_mutex_init(&f->lock, NULL);
    f->mmio = bus_create(&f->lock, UINT64_MAX);
    f->pio = bus_create(&f->lock, 0x10000);
    pthread_mutex_lock(&f->lock);
    assert_int_equal(pci_host_create(&f->host, f->mmio, f->pio, &error), 0);
    pthread_mutex_unlock(&f->lock);
}

static void host_teardown(struct host_fixture *f)
{
    pthread_mutex_lock(&f->lock);
    pci_host_destroy(f->host);
    pthread_mutex_unlock(&f->lock);
    bus_destroy(f->mmio);
    bus_destroy(f->pio);
    pthread_mutex_destroy(&f->lock);
}

static uint64_t load(struct bus *bus, uint64_t address, unsigned size)
{
    uint64_t value = 0;

    bus_read(bus, address, &value, size);
    return value;
}

static void store(struct bus *bus, uint64_t address, unsigned size, uint64_t value)
{
    bus_write(bus, address, &value, size);
}

/* A function that is plain memory. */
static uint32_t plain_read(void *opaque, unsigned offset, unsigned size)
{
    uint8_t *bytes = opaque;
    uint32_t value = 0;

    assert_true(size == 1 || size == 2 || size == 4);
    assert_true(offset % 4 + size <= 4);
    assert_true(offset + size <= PCI_CONFIG_SIZE);
    memcpy(&value, bytes + offset, size);
    return value;
}

static void plain_write(void *opaque, unsigned offset, unsigned size, uint32_t value)
{
    uint8_t *bytes = opaque;

    assert_true(offset % 4 + size <= 4);
    assert_true(offset + size <= PCI_CONFIG_SIZE);
    memcpy(bytes + offset, &value, size);
}

static const struct pci_config_ops plain_ops = {.read = plain_read, .write = plain_write};

static void test_host_identity(void **state)
{
    struct host_fixture f;

    host_setup(&f);
    assert_int_equal(load(f.mmio, LAYOUT_ECAM_BASE, 4), 0x00081b36);
    assert_int_equal(load(f.mmio, LAYOUT_ECAM_BASE + PCI_CLASS_DEVICE, 2), 0x0600);
    store(f.mmio, LAYOUT_ECAM_BASE, 4, 0);
    assert_int_equal(load(f.mmio, LAYOUT_ECAM_BASE, 4), 0x00081b36);
    host_teardown(&f);
}

static void test_host_absent_functions(void **state)
{
    struct host_fixture f;

    host_setup(&f);
    for (unsigned devfn = 1; devfn < 256; devfn++) {
        assert_int_equal(load(f.mmio, LAYOUT_ECAM_BASE + devfn * 4096, 4), 0xffffffff);
        store(f.mmio, LAYOUT_ECAM_BASE + devfn * 4096 + 4, 2, 7);
    }
    assert_int_equal(load(f.mmio, LAYOUT_ECAM_BASE + 8 * 4096, 1), 0xff);
    assert_int_equal(load(f.mmio, LAYOUT_ECAM_BASE + 8 * 4096 + 2, 2), 0xffff);
    assert_true(load(f.mmio, LAYOUT_ECAM_BASE + 8 * 4096, 8) == UINT64_MAX);
    host_teardown(&f);
}

static void test_host_ecam_sizes(void **state)
{
    static uint8_t bytes[PCI_CONFIG_SIZE];
    struct pci_function function = {
        .name = "plain", .devfn = 3 << 3, .ops = &plain_ops, .opaque = bytes};
    uint64_t base = LAYOUT_ECAM_BASE + (3 << 15);
    struct error error = {0};
    struct host_fixture f;

    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 7 + i / 256);
    bytes[PCI_HEADER_TYPE] = 0;
    host_setup(&f);
    assert_int_equal(pci_host_add(f.host, &function, &error), 0);
    for (unsigned size = 1; size <= 8; size *= 2) {
        for (unsigned offset = 0; offset + size <= PCI_CONFIG_SIZE; offset += 3) {
            uint64_t expected = 0;

            memcpy(&expected, bytes + offset, size);
            assert_true(load(f.mmio, base + offset, size) == expected);
        }
    }
    store(f.mmio, base + 0xfff, 4, 0x11223344); /* goes over into the next function */
    assert_int_equal(bytes[0xfff], 0x44);
    store(f.mmio, base + 0x101, 8, UINT64_C(0x8877665544332211));
    assert_true(load(f.mmio, base + 0x101, 8) == UINT64_C(0x8877665544332211));
    pci_host_remove(f.host, &function);
    assert_int_equal(load(f.mmio, base, 4), 0xffffffff);
    host_teardown(&f);
}

static void test_host_ports(void **state)
{
    static uint8_t bytes[PCI_CONFIG_SIZE];
    struct pci_function function = {
        .name = "plain", .devfn = 2 << 3 | 1, .ops = &plain_ops, .opaque = bytes};
    struct error error = {0};
    struct host_fixture f;

    host_setup(&f);
    memset(bytes, 0, sizeof(bytes));
    pci_host_add(f.host, &function, &error);
    bytes[0x41] = 0x99;
    store(f.pio, 0xcf8, 4, 0x80001141 | 0x7f000000);
    assert_int_equal(load(f.pio, 0xcf8, 4), 0x80001140);
    assert_int_equal(load(f.pio, 0xcfd, 1), 0x99);
    assert_int_equal(load(f.pio, 0xcfc, 4), 0x9900);
    store(f.pio, 0xcfe, 2, 0xabcd);
    assert_int_equal(bytes[0x42], 0xcd);
    assert_int_equal(bytes[0x43], 0xab);

    store(f.pio, 0xcf8, 1, 0x55); /* narrow accesses do not reach the register */
    store(f.pio, 0xcf8, 2, 0x5555);
    assert_int_equal(load(f.pio, 0xcf8, 4), 0x80001140);
    assert_int_equal(load(f.pio, 0xcf8, 1), 0xff);
    assert_int_equal(load(f.pio, 0xcf9, 1), 0xff); /* somebody else's */

    store(f.pio, 0xcf8, 4, 0x00001140); /* not enabled */
    assert_int_equal(load(f.pio, 0xcfc, 4), 0xffffffff);
    store(f.pio, 0xcf8, 4, 0x80011140); /* another bus */
    assert_int_equal(load(f.pio, 0xcfc, 4), 0xffffffff);
    store(f.pio, 0xcfc, 4, 0);
    assert_int_equal(bytes[0x41], 0x99);

    pci_host_reset(f.host);
    assert_int_equal(load(f.pio, 0xcf8, 4), 0);
    pci_host_remove(f.host, &function);
    host_teardown(&f);
}

/* The reset register is inside the address port's four bytes. */
static uint64_t never_read(void *opaque, uint64_t offset, unsigned size)
{
    assert_int_equal(size, 1);
    return 0x5a;
}

static void never_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    assert_int_equal(size, 1);
}

static void test_host_lives_with_reset_port(void **state)
{
    static const struct bus_ops ops = {.read = never_read, .write = never_write};
    struct bus_range reset = {.name = "reset", .base = LAYOUT_RESET_PORT, .size = 1, .ops = &ops};
    struct error error = {0};
    struct host_fixture f;

    host_setup(&f);
    pthread_mutex_lock(&f.lock);
    assert_int_equal(bus_add(f.pio, &reset, &error), 0);
    pthread_mutex_unlock(&f.lock);
    store(f.pio, 0xcf8, 4, 0x80000000);
    assert_int_equal(load(f.pio, 0xcf8, 4), 0x80000000);
    assert_int_equal(load(f.pio, 0xcf9, 1), 0x5a);
    pthread_mutex_lock(&f.lock);
    bus_remove(f.pio, &reset);
    pthread_mutex_unlock(&f.lock);
    host_teardown(&f);
}

static void test_host_slots(void **state)
{
    static uint8_t bytes[PCI_CONFIG_SIZE];
    struct pci_function a = {.name = "aaa", .devfn = 8, .ops = &plain_ops, .opaque = bytes};
    struct pci_function b = {.name = "bbb", .devfn = 8, .ops = &plain_ops, .opaque = bytes};
    struct pci_function c = {.name = "ccc", .devfn = 10, .ops = &plain_ops, .opaque = bytes};
    uint64_t base = LAYOUT_ECAM_BASE + 8 * 4096;
    struct error error = {0};
    struct host_fixture f;

    host_setup(&f);
    memset(bytes, 0, sizeof(bytes));
    assert_int_equal(pci_host_add(f.host, &a, &error), 0);
    assert_int_equal(pci_host_add(f.host, &b, &error), -EBUSY);
    assert_non_null(strstr(error.message, "aaa"));
    assert_non_null(strstr(error.message, "bbb"));
    assert_non_null(strstr(error.message, "01.0"));

    assert_int_equal(load(f.mmio, base + PCI_HEADER_TYPE, 1), 0);
    assert_int_equal(pci_host_add(f.host, &c, &error), 0);
    assert_int_equal(load(f.mmio, base + PCI_HEADER_TYPE, 1), 0x80);
    assert_int_equal(load(f.mmio, base + 0x0c, 4), 0x00800000);
    assert_int_equal(load(f.mmio, base + 0x0d, 1), 0);
    assert_int_equal(load(f.mmio, base + 2 * 4096 + PCI_HEADER_TYPE, 1), 0);
    pci_host_remove(f.host, &c);
    assert_int_equal(load(f.mmio, base + PCI_HEADER_TYPE, 1), 0);
    pci_host_remove(f.host, &a);
    host_teardown(&f);
}

static void test_host_state_check(void **state)
{
    struct pci_host_state good = {.config_address = 0x80fffffc};
    struct pci_host_state bad = {.config_address = 0x80000001};
    struct error error = {0};

    assert_int_equal(pci_host_state_type.check(&good, &error), 0);
    assert_int_equal(pci_host_state_type.check(&bad, &error), -EINVAL);
}

/* --- BARs --- */

struct bar_fixture {
    struct pci_bars_state state;
    struct pci_bars bars;
    bool mapped[PCI_BARS_ALL];
    uint64_t address[PCI_BARS_ALL];
    unsigned maps, unmaps;
    uint64_t taken; /* an address that map refuses */
};

static int record_map(void *opaque, unsigned bar, uint64_t address)
{
    struct bar_fixture *f = opaque;
    uint64_t size = f->bars.bars[bar].size;

    assert_false(f->mapped[bar]);
    assert_true(address != 0 && is_aligned(address, size));
    assert_true(address + size - 1 > address);
    if (f->bars.bars[bar].kind == PCI_BAR_IO)
        assert_true(address + size <= 0x10000);
    else
        assert_false(ranges_overlap(address, size, LAYOUT_IOAPIC_BASE, 0x1400000));
    if (address == f->taken)
        return -EBUSY;
    f->mapped[bar] = true;
    f->address[bar] = address;
    f->maps++;
    return 0;
}

static void record_unmap(void *opaque, unsigned bar)
{
    struct bar_fixture *f = opaque;

    assert_true(f->mapped[bar]);
    f->mapped[bar] = false;
    f->unmaps++;
}

static const struct pci_bars_ops record_ops = {.map = record_map, .unmap = record_unmap};

/* 0: 32-bit 64 KiB; 1: I/O 32; 2-3: 64-bit prefetchable 8 GiB; 4: 32-bit 16; 5: none; ROM 2 KiB */
static void bars_setup(struct bar_fixture *f)
{
    memset(f, 0, sizeof(*f));
    pci_bars_init(&f->bars, "test", &f->state, &record_ops, f);
    pci_bars_define(&f->bars, 0, PCI_BAR_MEM32, 64 * KIB, false);
    pci_bars_define(&f->bars, 1, PCI_BAR_IO, 32, false);
    pci_bars_define(&f->bars, 2, PCI_BAR_MEM64, 8 * GIB, true);
    pci_bars_define(&f->bars, 4, PCI_BAR_MEM32, 16, false);
    pci_bars_define(&f->bars, PCI_BAR_ROM, PCI_BAR_MEM32, 2 * KIB, false);
}

static void write_bar(struct bar_fixture *f, unsigned index, uint32_t value, uint16_t command)
{
    pci_bars_write(&f->bars, index == 6 ? 0x30 : 0x10 + 4 * index, 4, value);
    pci_bars_update(&f->bars, command);
}

static uint32_t read_bar(struct bar_fixture *f, unsigned index)
{
    return pci_bars_read(&f->bars, index == 6 ? 0x30 : 0x10 + 4 * index, 4);
}

static void test_bars_sizing(void **state)
{
    static const uint32_t expected[] = {0xffff0000, 0xffffffe1, 0x0000000c, 0xfffffffe,
                                        0xfffffff0, 0x00000000, 0xfffff801};
    struct bar_fixture f;

    bars_setup(&f);
    assert_int_equal(read_bar(&f, 1), 1);
    assert_int_equal(read_bar(&f, 2), 0xc);
    for (unsigned i = 0; i < PCI_BARS_ALL; i++) {
        write_bar(&f, i, 0xffffffff, 0);
        assert_int_equal(read_bar(&f, i), expected[i]);
    }
    assert_int_equal(f.maps, 0);
    assert_false(pci_bars_owns(0x0f));
    assert_true(pci_bars_owns(0x10) && pci_bars_owns(0x27) && pci_bars_owns(0x30));
    assert_false(pci_bars_owns(0x28) || pci_bars_owns(0x34));
}

static void test_bars_bytewise(void **state)
{
    struct bar_fixture f;

    bars_setup(&f);
    pci_bars_write(&f.bars, 0x13, 1, 0xc1);
    pci_bars_write(&f.bars, 0x12, 1, 0x23);
    pci_bars_write(&f.bars, 0x10, 2, 0xffff);
    assert_int_equal(read_bar(&f, 0), 0xc1230000);
    assert_int_equal(pci_bars_read(&f.bars, 0x12, 2), 0xc123);
    assert_int_equal(pci_bars_read(&f.bars, 0x13, 1), 0xc1);
}

static void test_bars_decode(void **state)
{
    struct bar_fixture f;

    bars_setup(&f);
    write_bar(&f, 0, 0xc0010000, 0);
    write_bar(&f, 1, 0xc020, 0);
    assert_int_equal(f.maps, 0);
    pci_bars_update(&f.bars, PCI_COMMAND_IO);
    assert_true(f.mapped[1] && !f.mapped[0]);
    assert_true(f.address[1] == 0xc020);
    pci_bars_update(&f.bars, PCI_COMMAND_IO | PCI_COMMAND_MEMORY);
    assert_true(f.mapped[0] && f.address[0] == 0xc0010000);
    assert_int_equal(f.maps, 2);
    pci_bars_update(&f.bars, PCI_COMMAND_IO | PCI_COMMAND_MEMORY);
    assert_int_equal(f.maps, 2);
    assert_int_equal(f.unmaps, 0);
    pci_bars_update(&f.bars, PCI_COMMAND_MEMORY);
    assert_true(!f.mapped[1] && f.mapped[0]);

    write_bar(&f, 0, 0xc0020000, PCI_COMMAND_MEMORY); /* moved while decoded */
    assert_true(f.mapped[0] && f.address[0] == 0xc0020000);
    assert_int_equal(f.unmaps, 2);
    pci_bars_reset(&f.bars);
    assert_false(f.mapped[0]);
    assert_int_equal(read_bar(&f, 0), 0);
}

static void test_bars_64bit(void **state)
{
    struct bar_fixture f;

    bars_setup(&f);
    write_bar(&f, 2, 0x00000000, PCI_COMMAND_MEMORY);
    assert_false(f.mapped[2]); /* zero is no address */
    write_bar(&f, 3, 0x00000020, PCI_COMMAND_MEMORY);
    assert_true(f.mapped[2]);
    assert_true(f.address[2] == UINT64_C(0x2000000000));
    assert_int_equal(read_bar(&f, 3), 0x20);
    write_bar(&f, 3, 0x00000021, PCI_COMMAND_MEMORY); /* below its size: same place */
    assert_true(f.address[2] == UINT64_C(0x2000000000));
    assert_int_equal(f.unmaps, 0);
    write_bar(&f, 3, 0xffffffff, PCI_COMMAND_MEMORY); /* up to the very end: nowhere */
    assert_false(f.mapped[2]);
}

static void test_bars_rom(void **state)
{
    struct bar_fixture f;

    bars_setup(&f);
    write_bar(&f, 6, 0xc0100000, PCI_COMMAND_MEMORY);
    assert_false(f.mapped[6]);
    write_bar(&f, 6, 0xc0100001, 0);
    assert_false(f.mapped[6]);
    pci_bars_update(&f.bars, PCI_COMMAND_MEMORY);
    assert_true(f.mapped[6] && f.address[6] == 0xc0100000);
}

static void test_bars_refused(void **state)
{
    struct bar_fixture f;

    bars_setup(&f);
    write_bar(&f, 0, 0xfee00000, PCI_COMMAND_MEMORY); /* the local APIC */
    write_bar(&f, 4, 0xfec00000, PCI_COMMAND_MEMORY); /* the IOAPIC */
    write_bar(&f, 0, 0xffffffff, PCI_COMMAND_MEMORY); /* sizing while decoded */
    write_bar(&f, 1, 0xffff0001, PCI_COMMAND_IO);     /* port above 64 Ki */
    assert_int_equal(f.maps, 0);

    f.taken = 0xc0000000; /* another device; tried again when something moves */
    write_bar(&f, 0, 0xc0000000, PCI_COMMAND_MEMORY);
    assert_false(f.mapped[0]);
    f.taken = 0;
    pci_bars_update(&f.bars, PCI_COMMAND_MEMORY);
    assert_true(f.mapped[0]);
}

/* State from another process can hold anything. */
static void test_bars_hostile_state(void **state)
{
    struct bar_fixture f;

    bars_setup(&f);
    memset(&f.state, 0xff, sizeof(f.state));
    pci_bars_update(&f.bars, 0xffff);
    assert_int_equal(read_bar(&f, 5), 0);
    assert_int_equal(read_bar(&f, 0), 0xffff0000);
    assert_int_equal(read_bar(&f, 2), 0xc);
}

static void test_bars_random(void **state)
{
    uint64_t seed = 42;
    struct bar_fixture f;

    bars_setup(&f);
    for (unsigned i = 0; i < 200000; i++) {
        unsigned size = 1u << next_random(&seed) % 3;
        unsigned offset = (0x10 + next_random(&seed) % 0x24) & ~(size - 1);
        uint32_t value = next_random(&seed) * 2u + next_random(&seed) % 2;

        f.taken = next_random(&seed) % 4 ? 0 : 0xc0000000;
        if (!pci_bars_owns(offset))
            continue;
        pci_bars_read(&f.bars, offset, size);
        pci_bars_write(&f.bars, offset, size, value);
        pci_bars_update(&f.bars, (uint16_t)next_random(&seed) | 2);
    }
    assert_true(f.maps > 1000);
    pci_bars_update(&f.bars, 0);
    assert_int_equal(f.maps, f.unmaps);
}

/* --- MSI-X and MSI --- */

struct vector_fixture {
    bool enabled;
    bool open[PCI_MSIX_VECTORS_MAX];
    bool pending[PCI_MSIX_VECTORS_MAX];
    struct msi_message message[PCI_MSIX_VECTORS_MAX];
    unsigned delivered; /* pending signals that got through at unmask */
    unsigned unmasks, count;
};

static void on_enable(void *opaque, bool enabled)
{
    struct vector_fixture *f = opaque;

    assert_true(f->enabled != enabled);
    for (unsigned i = 0; i < PCI_MSIX_VECTORS_MAX; i++)
        assert_false(f->open[i]);
    f->enabled = enabled;
}

static void on_unmask(void *opaque, unsigned vector, const struct msi_message *message)
{
    struct vector_fixture *f = opaque;

    assert_true(f->enabled);
    assert_true(vector < f->count);
    assert_false(f->open[vector] &&
                 memcmp(&f->message[vector].address, &message->address, 8) == 0 &&
                 f->message[vector].data == message->data);
    f->open[vector] = true;
    f->message[vector] = *message;
    f->unmasks++;
    f->delivered += f->pending[vector];
    f->pending[vector] = false;
}

static void on_mask(void *opaque, unsigned vector)
{
    struct vector_fixture *f = opaque;

    assert_true(vector < f->count);
    assert_true(f->open[vector]);
    f->open[vector] = false;
}

static bool on_pending(void *opaque, unsigned vector)
{
    struct vector_fixture *f = opaque;

    assert_true(vector < f->count);
    return f->pending[vector];
}

static const struct pci_vector_ops vector_ops = {
    .enable = on_enable, .unmask = on_unmask, .mask = on_mask, .pending = on_pending};

struct msix_fixture {
    struct vector_fixture vectors;
    struct pci_msix_state state;
    struct pci_msix msix;
};

static void msix_setup(struct msix_fixture *f, unsigned count)
{
    memset(f, 0, sizeof(*f));
    f->vectors.count = count;
    pci_msix_init(&f->msix, &f->state, count, &vector_ops, &f->vectors);
}

static void set_entry(struct msix_fixture *f, unsigned vector, uint64_t address, uint32_t data,
                      uint32_t control)
{
    pci_msix_table_write(&f->msix, vector * 16, 4, (uint32_t)address);
    pci_msix_table_write(&f->msix, vector * 16 + 4, 4, address >> 32);
    pci_msix_table_write(&f->msix, vector * 16 + 8, 4, data);
    pci_msix_table_write(&f->msix, vector * 16 + 12, 4, control);
}

static void test_msix_table(void **state)
{
    static struct msix_fixture f;

    msix_setup(&f, 5);
    assert_int_equal(pci_msix_control(&f.msix), 4);
    assert_int_equal(pci_msix_table_read(&f.msix, 12, 4), 1); /* masked at first */
    set_entry(&f, 4, UINT64_C(0x1122334455667788) | 3, 0xcafe, 0xfffffffe);
    assert_true(pci_msix_table_read(&f.msix, 64, 8) == UINT64_C(0x1122334455667788));
    assert_int_equal(pci_msix_table_read(&f.msix, 72, 4), 0xcafe);
    assert_int_equal(pci_msix_table_read(&f.msix, 76, 4), 0);
    assert_int_equal(pci_msix_table_read(&f.msix, 65, 1), 0x77);
    assert_int_equal(pci_msix_table_read(&f.msix, 66, 4), 0x33445566);

    pci_msix_table_write(&f.msix, 64, 1, 0); /* what the specification does not allow */
    pci_msix_table_write(&f.msix, 65, 4, 0);
    pci_msix_table_write(&f.msix, 68, 8, 0);
    assert_true(pci_msix_table_read(&f.msix, 64, 8) == UINT64_C(0x1122334455667788));

    pci_msix_table_write(&f.msix, 80, 4, 1); /* outside */
    pci_msix_table_write(&f.msix, UINT64_C(1) << 36, 4, 1);
    assert_int_equal(pci_msix_table_read(&f.msix, 80, 8), 0);
    assert_int_equal(pci_msix_table_read(&f.msix, UINT64_C(1) << 36, 8), 0);
    assert_int_equal(f.vectors.unmasks, 0); /* MSI-X is off */
}

static void test_msix_masks(void **state)
{
    static struct msix_fixture f;

    msix_setup(&f, 8);
    set_entry(&f, 3, 0xfee01000, 0x41, 0);
    pci_msix_write_control(&f.msix, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL | 0x7ff);
    assert_int_equal(pci_msix_control(&f.msix), 0xc007);
    assert_true(f.vectors.enabled && !f.vectors.open[3]);
    pci_msix_write_control(&f.msix, PCI_MSIX_FLAGS_ENABLE);
    assert_true(f.vectors.open[3] && !f.vectors.open[2]);
    assert_true(f.vectors.message[3].address == 0xfee01000 && f.vectors.message[3].data == 0x41);
    assert_int_equal(f.vectors.unmasks, 1);

    pci_msix_table_write(&f.msix, 3 * 16 + 8, 4, 0x41); /* the same again: nothing to say */
    assert_int_equal(f.vectors.unmasks, 1);
    pci_msix_table_write(&f.msix, 3 * 16 + 8, 4, 0x42);
    assert_int_equal(f.vectors.message[3].data, 0x42);
    pci_msix_table_write(&f.msix, 3 * 16 + 8, 8, (UINT64_C(1) << 32) | 0x43);
    assert_false(f.vectors.open[3]);
    pci_msix_table_write(&f.msix, 3 * 16 + 12, 4, 0);
    assert_true(f.vectors.open[3] && f.vectors.message[3].data == 0x43);

    pci_msix_write_control(&f.msix, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    assert_false(f.vectors.open[3]);
    pci_msix_write_control(&f.msix, PCI_MSIX_FLAGS_ENABLE);
    assert_true(f.vectors.open[3]);
    pci_msix_write_control(&f.msix, 0);
    assert_true(!f.vectors.open[3] && !f.vectors.enabled);
}

static void test_msix_pending(void **state)
{
    static struct msix_fixture f;

    msix_setup(&f, 70);
    pci_msix_write_control(&f.msix, PCI_MSIX_FLAGS_ENABLE);
    f.vectors.pending[1] = f.vectors.pending[33] = f.vectors.pending[69] = true;
    assert_int_equal(pci_msix_pba_read(&f.msix, 0, 4), 2);
    assert_int_equal(pci_msix_pba_read(&f.msix, 4, 4), 2);
    assert_true(pci_msix_pba_read(&f.msix, 0, 8) == UINT64_C(0x200000002));
    assert_int_equal(pci_msix_pba_read(&f.msix, 8, 8), 1 << 5);
    assert_int_equal(pci_msix_pba_read(&f.msix, 8, 1), 1 << 5);
    assert_int_equal(pci_msix_pba_read(&f.msix, 3, 2), 0x0200);
    assert_int_equal(pci_msix_pba_read(&f.msix, 16, 8), 0);
    assert_int_equal(pci_msix_pba_read(&f.msix, UINT64_C(1) << 61, 8), 0);

    set_entry(&f, 33, 0xfee00000, 1, 0); /* unmasking delivers what is pending */
    assert_int_equal(f.vectors.delivered, 1);
    assert_int_equal(pci_msix_pba_read(&f.msix, 4, 4), 0);
    f.vectors.pending[33] = true; /* a vector that is let through is never pending */
    assert_int_equal(pci_msix_pba_read(&f.msix, 4, 4), 0);
}

static void test_msix_state(void **state)
{
    static struct msix_fixture f;
    struct error error = {0};

    msix_setup(&f, 4);
    assert_int_equal(pci_msix_check(&f.state, &error), 0);
    f.state.control = 1;
    assert_int_equal(pci_msix_check(&f.state, &error), -EINVAL);
    f.state.control = PCI_MSIX_FLAGS_ENABLE;
    f.state.entries[2].address = 2;
    assert_int_equal(pci_msix_check(&f.state, &error), -EINVAL);
    pci_msix_reset(&f.msix);
    assert_int_equal(pci_msix_check(&f.state, &error), 0);
    assert_int_equal(f.state.count, 4);
    assert_int_equal(f.state.entries[3].control, 1);
    assert_int_equal(f.state.entries[4].control, 0);
}

static void test_msix_random(void **state)
{
    static struct msix_fixture f;
    uint64_t seed = 7;

    msix_setup(&f, 67);
    for (unsigned i = 0; i < 100000; i++) {
        unsigned size = 1u << next_random(&seed) % 4;
        uint64_t offset = next_random(&seed) % 1200;
        uint64_t value = next_random(&seed) % 3 ? next_random(&seed) : 0;

        f.vectors.pending[next_random(&seed) % 67] = true;
        if (next_random(&seed) % 50 == 0)
            pci_msix_write_control(&f.msix, (uint16_t)(next_random(&seed) << 3));
        else if (next_random(&seed) % 4)
            pci_msix_table_write(&f.msix, offset & ~(uint64_t)(size - 1), size, value);
        else
            pci_msix_table_write(&f.msix, offset, size, value);
        pci_msix_table_read(&f.msix, offset, size);
        pci_msix_pba_read(&f.msix, offset, size);
        for (unsigned v = 0; v < 67; v += 11)
            assert_int_equal(f.vectors.open[v], pci_msix_is_open(&f.msix, v));
    }
    assert_true(f.vectors.unmasks > 100);
}

struct msi_fixture {
    struct vector_fixture vectors;
    struct pci_msi_state state;
    struct pci_msi msi;
};

static void msi_setup(struct msi_fixture *f, uint16_t control)
{
    memset(f, 0, sizeof(*f));
    pci_msi_init(&f->msi, &f->state, control, &vector_ops, &f->vectors);
    f->vectors.count = pci_msi_capacity(&f->msi);
}

static void test_msi_layouts(void **state)
{
    static const struct {
        uint16_t control;
        unsigned size, data;
    } layouts[] = {
        {0, 10, 8},
        {PCI_MSI_FLAGS_64BIT, 14, 12},
        {PCI_MSI_FLAGS_MASKBIT, 20, 8},
        {PCI_MSI_FLAGS_64BIT | PCI_MSI_FLAGS_MASKBIT, 24, 12},
    };
    static struct msi_fixture f;

    for (unsigned i = 0; i < ARRAY_SIZE(layouts); i++) {
        msi_setup(&f, layouts[i].control | 0xfe01); /* the rest is not passed on */
        assert_int_equal(pci_msi_size(&f.msi), layouts[i].size);
        assert_int_equal(pci_msi_read(&f.msi, 2, 2), layouts[i].control);
        pci_msi_write(&f.msi, layouts[i].data, 4, 0xffff1234);
        assert_int_equal(pci_msi_read(&f.msi, layouts[i].data, 4), 0x1234);
        pci_msi_write(&f.msi, 4, 4, 0xfee00fff);
        assert_int_equal(pci_msi_read(&f.msi, 4, 4), 0xfee00ffc);
        assert_int_equal(pci_msi_read(&f.msi, 5, 1), 0x0f);
    }
    msi_setup(&f, 7 << 1); /* reserved number of vectors */
    assert_int_equal(pci_msi_capacity(&f.msi), 32);
}

static void test_msi_vectors(void **state)
{
    static struct msi_fixture f;
    struct error error = {0};

    msi_setup(&f, 3 << 1 | PCI_MSI_FLAGS_64BIT); /* eight */
    pci_msi_write(&f.msi, 4, 4, 0xfee00000);
    pci_msi_write(&f.msi, 8, 4, 1);
    pci_msi_write(&f.msi, 12, 2, 0x47);
    assert_int_equal(pci_msi_count(&f.msi), 0);
    pci_msi_write(&f.msi, 2, 2, PCI_MSI_FLAGS_ENABLE | 2 << 4); /* four of them */
    assert_int_equal(pci_msi_count(&f.msi), 4);
    assert_true(f.vectors.open[3] && !f.vectors.open[4]);
    assert_true(f.vectors.message[2].address == UINT64_C(0x1fee00000));
    assert_int_equal(f.vectors.message[2].data, 0x46);
    pci_msi_write(&f.msi, 12, 2, 0x50); /* the same message for all but the data */
    assert_int_equal(f.vectors.message[1].data, 0x51);
    pci_msi_write(&f.msi, 2, 2, PCI_MSI_FLAGS_ENABLE | 7 << 4); /* more than there are */
    assert_int_equal(pci_msi_count(&f.msi), 8);
    assert_int_equal(pci_msi_check(&f.state, &error), 0); /* and nothing that a peer would refuse */
    pci_msi_write(&f.msi, 2, 1, 0);
    assert_false(f.vectors.enabled || f.vectors.open[0]);
}

static void test_msi_masks(void **state)
{
    static struct msi_fixture f;

    msi_setup(&f, 1 << 1 | PCI_MSI_FLAGS_MASKBIT); /* two, 32-bit */
    pci_msi_write(&f.msi, 12, 4, 0xffffffff);
    assert_int_equal(pci_msi_read(&f.msi, 12, 4), 3);
    pci_msi_write(&f.msi, 2, 2, PCI_MSI_FLAGS_ENABLE | 1 << 4);
    assert_false(f.vectors.open[0] || f.vectors.open[1]);
    f.vectors.pending[1] = true;
    assert_int_equal(pci_msi_read(&f.msi, 16, 4), 2);
    pci_msi_write(&f.msi, 16, 4, 0xff); /* read-only */
    pci_msi_write(&f.msi, 12, 1, 1);
    assert_true(!f.vectors.open[0] && f.vectors.open[1]);
    assert_int_equal(f.vectors.delivered, 1);
    assert_int_equal(pci_msi_read(&f.msi, 16, 4), 0);
}

static void test_msi_state(void **state)
{
    struct pci_msi_state msi = {.control = PCI_MSI_FLAGS_ENABLE | 5 << 4, .address = 0xfee00000};
    struct error error = {0};

    assert_int_equal(pci_msi_check(&msi, &error), 0);
    msi.control = 6 << 4;
    assert_int_equal(pci_msi_check(&msi, &error), -EINVAL);
    msi.control = PCI_MSI_FLAGS_64BIT;
    assert_int_equal(pci_msi_check(&msi, &error), -EINVAL);
    msi.control = 0;
    msi.address = 1;
    assert_int_equal(pci_msi_check(&msi, &error), -EINVAL);
}

static void test_msi_random(void **state)
{
    static struct msi_fixture f;
    uint64_t seed = 99;

    for (unsigned features = 0; features < 4; features++) {
        msi_setup(&f, (uint16_t)(features << 7 | 4 << 1));
        for (unsigned i = 0; i < 50000; i++) {
            unsigned size = 1u << next_random(&seed) % 3;
            unsigned offset = (next_random(&seed) % 24) & ~(size - 1);

            pci_msi_write(&f.msi, offset, size, next_random(&seed));
            pci_msi_read(&f.msi, offset, size);
            for (unsigned v = 0; v < 16; v++)
                assert_int_equal(f.vectors.open[v], pci_msi_is_open(&f.msi, v));
        }
    }
    assert_true(f.vectors.unmasks > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_host_identity),
        cmocka_unit_test(test_host_absent_functions),
        cmocka_unit_test(test_host_ecam_sizes),
        cmocka_unit_test(test_host_ports),
        cmocka_unit_test(test_host_lives_with_reset_port),
        cmocka_unit_test(test_host_slots),
        cmocka_unit_test(test_host_state_check),
        cmocka_unit_test(test_bars_sizing),
        cmocka_unit_test(test_bars_bytewise),
        cmocka_unit_test(test_bars_decode),
        cmocka_unit_test(test_bars_64bit),
        cmocka_unit_test(test_bars_rom),
        cmocka_unit_test(test_bars_refused),
        cmocka_unit_test(test_bars_hostile_state),
        cmocka_unit_test(test_bars_random),
        cmocka_unit_test(test_msix_table),
        cmocka_unit_test(test_msix_masks),
        cmocka_unit_test(test_msix_pending),
        cmocka_unit_test(test_msix_state),
        cmocka_unit_test(test_msix_random),
        cmocka_unit_test(test_msi_layouts),
        cmocka_unit_test(test_msi_vectors),
        cmocka_unit_test(test_msi_masks),
        cmocka_unit_test(test_msi_state),
        cmocka_unit_test(test_msi_random),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
