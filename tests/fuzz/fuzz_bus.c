/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: accesses to a bus on which ranges come and go, next to a model that knows the owner
 * of every address. The first byte chooses the low or the high end of the address space; then come
 * steps of 4 bytes: what, which range or log2 of the size, address, length or data.
 *
 * What must hold: ranges never overlap; every byte of an access arrives at its owner, once, or at
 * the one device that takes accesses whole; nothing but those goes beyond the end of its range; and
 * what belongs to nobody reads as ones.
 */
#include <string.h>

#include "base/util.h"
#include "fuzz.h"
#include "memory/bus.h"

#define STEP_BYTES 4u
#define RANGES     8u
#define WINDOW     264u /* addresses of the model: a byte's worth, and the longest access */

struct device {
    struct bus_range range;
    bool added;
    uint8_t written[512]; /* what arrived, by offset */
    unsigned arrived;     /* bytes of this access */
};

struct model {
    pthread_mutex_t lock;
    struct bus *bus;
    uint64_t base, limit; /* of the window, of the bus */
    struct device devices[RANGES];
    struct device *owners[WINDOW];
};

/* What a device reads as, at an offset. */
static uint8_t content(const struct device *device, uint64_t offset)
{
    return (uint8_t)(device->range.base * 31 + offset * 7);
}

static void check_access(const struct device *device, uint64_t offset, unsigned size)
{
    assert(size == 1 || size == 2 || size == 4 || size == 8);
    assert(offset < device->range.size);
    assert(device->range.whole_access || range_fits(offset, size, device->range.size));
}

static uint64_t device_read(void *opaque, uint64_t offset, unsigned size)
{
    struct device *device = opaque;
    uint64_t value = 0;

    check_access(device, offset, size);
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)content(device, offset + i) << (8 * i);
    device->arrived += size;
    return value;
}

static void device_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct device *device = opaque;

    check_access(device, offset, size);
    for (unsigned i = 0; i < size; i++)
        device->written[offset + i] = (uint8_t)(value >> (8 * i));
    device->arrived += size;
}

static const struct bus_ops device_ops = {.read = device_read, .write = device_write};

static bool is_free(const struct model *model, size_t at, size_t size)
{
    for (size_t i = 0; i < size && at + i < WINDOW; i++) {
        if (model->owners[at + i])
            return false;
    }
    return true;
}

static void add(struct model *model, struct device *device, size_t at, uint8_t length, bool whole)
{
    size_t size = length + 1u;
    struct error error = {0};
    bool fits = range_fits(model->base + at, size, model->limit);
    int result;

    if (device->added)
        return;
    device->range = (struct bus_range){.name = "fuzz",
                                       .base = model->base + at,
                                       .size = size,
                                       .whole_access = whole,
                                       .ops = &device_ops,
                                       .opaque = device};
    result = bus_add(model->bus, &device->range, &error);
    assert((result == 0) == (fits && is_free(model, at, size)));
    assert(result == 0 || (result == -error.code && error.message[0] != '\0'));
    device->added = result == 0;
    for (size_t i = at; device->added && i < at + size && i < WINDOW; i++)
        model->owners[i] = device;
}

static void drop(struct model *model, struct device *device)
{
    if (!device->added)
        return;
    bus_remove(model->bus, &device->range);
    device->added = false;
    for (size_t i = 0; i < WINDOW; i++) {
        if (model->owners[i] == device)
            model->owners[i] = NULL;
    }
}

/* Who gets byte @p i of an access. */
static struct device *receiver(const struct model *model, size_t at, unsigned i)
{
    struct device *first = model->owners[at];

    return first && first->range.whole_access ? first : model->owners[at + i];
}

static void check_arrived(struct model *model, size_t at, unsigned size)
{
    for (unsigned i = 0; i < size; i++) {
        struct device *device = receiver(model, at, i);

        if (device)
            device->arrived--;
    }
    for (size_t i = 0; i < RANGES; i++)
        assert(model->devices[i].arrived == 0);
}

static void read_all(struct model *model, size_t at, unsigned size)
{
    uint8_t bytes[8];

    bus_read(model->bus, model->base + at, bytes, size);
    for (unsigned i = 0; i < size; i++) {
        const struct device *device = receiver(model, at, i);
        uint64_t address = model->base + at + i;

        assert(bytes[i] == (device ? content(device, address - device->range.base) : 0xff));
    }
    check_arrived(model, at, size);
}

static void write_all(struct model *model, size_t at, unsigned size, uint8_t data)
{
    uint8_t bytes[8];

    for (unsigned i = 0; i < size; i++)
        bytes[i] = (uint8_t)(data + i);
    bus_write(model->bus, model->base + at, bytes, size);
    for (unsigned i = 0; i < size; i++) {
        const struct device *device = receiver(model, at, i);
        uint64_t address = model->base + at + i;

        assert(device == NULL || device->written[address - device->range.base] == bytes[i]);
    }
    check_arrived(model, at, size);
}

static void step(struct model *model, const uint8_t *bytes)
{
    struct device *device = &model->devices[bytes[1] % RANGES];
    unsigned size = 1u << (bytes[1] % 4);

    switch (bytes[0] % 4) {
    case 0:
        add(model, device, bytes[2], bytes[3], bytes[0] & 4);
        break;
    case 1:
        drop(model, device);
        break;
    case 2:
        read_all(model, bytes[2], size);
        break;
    case 3:
        write_all(model, bytes[2], size, bytes[3]);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bool high = size > 0 && (data[0] & 1);
    struct model *model = xcalloc(1, sizeof(*model));

    model->limit = high ? UINT64_MAX : 0x100;
    model->base = high ? UINT64_MAX - WINDOW : 0;
    pthread_mutex_init(&model->lock, NULL);
    model->bus = bus_create(&model->lock, model->limit);
    for (size_t at = 1; at + STEP_BYTES <= size; at += STEP_BYTES)
        step(model, data + at);
    for (size_t i = 0; i < RANGES; i++)
        drop(model, &model->devices[i]);
    bus_destroy(model->bus);
    free(model);
    return 0;
}
