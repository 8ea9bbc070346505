/* SPDX-License-Identifier: Apache-2.0
 *
 * See bus.h. Ranges are few (tens) and change rarely: a sorted array, searched by halves.
 */
#include "memory/bus.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

struct bus {
    pthread_mutex_t *lock;
    uint64_t limit;
    struct bus_range **ranges; /* sorted by base, disjoint */
    size_t count;
    size_t capacity;
};

struct bus *bus_create(pthread_mutex_t *lock, uint64_t limit)
{
    struct bus *bus = xcalloc(1, sizeof(*bus));

    bus->lock = lock;
    bus->limit = limit;
    return bus;
}

void bus_destroy(struct bus *bus)
{
    if (!bus)
        return;
    free(bus->ranges);
    free(bus);
}

/* The index of the first range that ends after @p address. */
static size_t lower_bound(const struct bus *bus, uint64_t address)
{
    size_t low = 0, high = bus->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct bus_range *range = bus->ranges[middle];

        if (range->base + (range->size - 1) < address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct bus_range *find(const struct bus *bus, uint64_t address)
{
    size_t index = lower_bound(bus, address);

    if (index == bus->count || bus->ranges[index]->base > address)
        return NULL;
    return bus->ranges[index];
}

int bus_add(struct bus *bus, struct bus_range *range, struct error *error)
{
    size_t index = lower_bound(bus, range->base);

    assert(range->size != 0);
    if (!range_fits(range->base, range->size, bus->limit))
        return error_set(error, ERANGE, "'%s' at 0x%jx does not fit the address space", range->name,
                         (uintmax_t)range->base);
    if (index < bus->count && ranges_overlap(range->base, range->size, bus->ranges[index]->base,
                                             bus->ranges[index]->size))
        return error_set(error, EBUSY, "'%s' at 0x%jx overlaps '%s' at 0x%jx", range->name,
                         (uintmax_t)range->base, bus->ranges[index]->name,
                         (uintmax_t)bus->ranges[index]->base);
    if (bus->count == bus->capacity) {
        bus->capacity = bus->capacity ? 2 * bus->capacity : 64;
        bus->ranges = reallocarray(bus->ranges, bus->capacity, sizeof(*bus->ranges));
        assert(bus->ranges != NULL);
    }
    memmove(&bus->ranges[index + 1], &bus->ranges[index],
            (bus->count - index) * sizeof(*bus->ranges));
    bus->ranges[index] = range;
    bus->count++;
    return 0;
}

void bus_remove(struct bus *bus, struct bus_range *range)
{
    size_t index = lower_bound(bus, range->base);

    assert(index < bus->count && bus->ranges[index] == range);
    memmove(&bus->ranges[index], &bus->ranges[index + 1],
            (bus->count - index - 1) * sizeof(*bus->ranges));
    bus->count--;
}

/* One access that lies within one range, or in none. */
static uint64_t read_one(struct bus *bus, uint64_t address, unsigned size)
{
    struct bus_range *range = find(bus, address);

    if (!range || !range->ops->read)
        return UINT64_MAX;
    return range->ops->read(range->opaque, address - range->base, size);
}

static void write_one(struct bus *bus, uint64_t address, unsigned size, uint64_t value)
{
    struct bus_range *range = find(bus, address);

    if (range && range->ops->write)
        range->ops->write(range->opaque, address - range->base, size, value);
}

/* Whether an access goes to one device as it is, or must be split because it crosses an edge. */
static bool undivided(const struct bus *bus, uint64_t address, unsigned size)
{
    size_t index = lower_bound(bus, address);
    const struct bus_range *range;

    if (index == bus->count)
        return true;
    range = bus->ranges[index];
    if (range->base > address)
        return range->base - address >= size;
    return range->whole_access || range_fits(address - range->base, size, range->size);
}

void bus_read(struct bus *bus, uint64_t address, void *data, unsigned size)
{
    uint64_t value = 0;

    assert(size >= 1 && size <= sizeof(value));
    pthread_mutex_lock(bus->lock);
    if (undivided(bus, address, size)) {
        value = read_one(bus, address, size);
    } else {
        for (unsigned i = 0; i < size; i++)
            value |= (read_one(bus, address + i, 1) & 0xff) << (8 * i);
    }
    pthread_mutex_unlock(bus->lock);
    memcpy(data, &value, size);
}

void bus_write(struct bus *bus, uint64_t address, const void *data, unsigned size)
{
    uint64_t value = 0;

    assert(size >= 1 && size <= sizeof(value));
    memcpy(&value, data, size);
    pthread_mutex_lock(bus->lock);
    if (undivided(bus, address, size)) {
        write_one(bus, address, size, value);
    } else {
        for (unsigned i = 0; i < size; i++)
            write_one(bus, address + i, 1, (value >> (8 * i)) & 0xff);
    }
    pthread_mutex_unlock(bus->lock);
}
