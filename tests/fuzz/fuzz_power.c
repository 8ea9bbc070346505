/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: what a guest does to the power registers, and what a peer says about them. The
 * input is a list of steps of 10 bytes: what, port, value (8 bytes). KVM's interrupt line is a
 * fake.
 *
 * What must hold: the state is always one that a peer would accept; the line follows it; and the
 * guest is switched off or reset only by a write that says so.
 */
#include <string.h>

#include "base/log.h"
#include "devices/power.h"
#include "fuzz.h"
#include "memory/layout.h"
#include "twisted_state.h"

#define STEP_BYTES 10u

struct fixture {
    struct kvm_vm vm; /* first: kvm_vm_set_irq() finds the fixture by it */
    pthread_mutex_t lock;
    struct bus *bus;
    struct power *power;
    bool level, writing;
};

void kvm_vm_set_irq(struct kvm_vm *vm, unsigned gsi, bool level)
{
    assert(gsi == LAYOUT_SCI_IRQ);
    ((struct fixture *)vm)->level = level;
}

static void on_request(void *opaque)
{
    assert(((const struct fixture *)opaque)->writing);
}

static const struct power_ops ops = {.shutdown = on_request, .reset = on_request};

/* A port in or around the registers. */
static uint64_t port_of(uint8_t byte)
{
    return byte & 0x80 ? LAYOUT_RESET_PORT - 8u + byte % 16
                       : LAYOUT_PM1_EVENT_PORT - 8u + byte % 32;
}

static void step(struct fixture *fixture, uint8_t what, uint8_t port, uint64_t value)
{
    unsigned size = 1u << (what >> 4) % 4;

    switch (what % 8) {
    case 0:
        power_press_button(fixture->power);
        break;
    case 1:
        power_reset(fixture->power);
        break;
    case 2:
        load_twisted(&power_state_type, power_state(fixture->power), port % power_state_type.size,
                     &value, size);
        power_apply_state(fixture->power);
        break;
    case 3:
    case 4:
        bus_read(fixture->bus, port_of(port), &value, size);
        break;
    default:
        fixture->writing = true;
        bus_write(fixture->bus, port_of(port), &value, size);
        fixture->writing = false;
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fixture fixture = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct error error = {0};
    uint64_t value;
    int result;

    log_configure(LOG_LEVEL_ERROR, NULL);
    fixture.bus = bus_create(&fixture.lock, 0x10000);
    result = power_create(&fixture.power, fixture.bus, &fixture.vm, &ops, &fixture, &error);
    assert(result == 0);
    for (; size >= STEP_BYTES; data += STEP_BYTES, size -= STEP_BYTES) {
        memcpy(&value, data + 2, sizeof(value));
        step(&fixture, data[0], data[1], value);
        assert(power_state_type.check(power_state(fixture.power), &error) == 0);
    }
    power_reset(fixture.power);
    assert(!fixture.level);
    power_destroy(fixture.power);
    bus_destroy(fixture.bus);
    return 0;
}
