/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: any bytes as what a guest, a terminal and a peer do to a UART, two bytes a step.
 * KVM's interrupt line and the character back end are fakes. What must hold: the state is always
 * one that a peer would accept, no more comes out than went in, and nothing is left of the
 * interrupt when all sources are off.
 */
#include <string.h>

#include "base/util.h"
#include "devices/serial.h"
#include "fuzz.h"
#include "twisted_state.h"

#define PORT 0x3f8u

struct chardev {
    const struct chardev_ops *ops;
    void *opaque;
    size_t room, written, sent;
};

struct fixture {
    struct kvm_vm vm; /* first: kvm_vm_set_irq() finds the fixture by it */
    struct chardev chardev;
    pthread_mutex_t lock;
    struct bus *bus;
    struct serial *serial;
    bool level;
};

void kvm_vm_set_irq(struct kvm_vm *vm, unsigned gsi, bool level)
{
    assert(gsi == 4);
    ((struct fixture *)vm)->level = level;
}

void chardev_attach(struct chardev *chardev, const struct chardev_ops *ops, void *opaque)
{
    chardev->ops = ops;
    chardev->opaque = opaque;
}

size_t chardev_write(struct chardev *chardev, const uint8_t *bytes, size_t count)
{
    (void)bytes;
    count = MIN(count, chardev->room);
    chardev->room -= count;
    chardev->sent += count;
    return count;
}

void chardev_resume_input(struct chardev *chardev)
{
    (void)chardev;
}

/* One step: the upper half of the first byte says what, the lower where. */
static void step(struct fixture *fixture, uint8_t what, uint8_t value)
{
    struct chardev *chardev = &fixture->chardev;
    uint8_t bytes[4] = {value, value, value, value};
    uint64_t port = PORT + (what & 7);

    switch (what >> 4) {
    case 0:
        chardev->room = value & 31;
        chardev->ops->writable(chardev->opaque);
        break;
    case 1:
        chardev->ops->receive(chardev->opaque, bytes,
                              MIN(chardev->ops->can_receive(chardev->opaque), sizeof(bytes)));
        break;
    case 2: /* a register, all of which are in front of the FIFOs */
        load_twisted(&serial_state_type, serial_state(fixture->serial), what & 15, &value, 1);
        serial_apply_state(fixture->serial);
        break;
    case 3:
        serial_reset(fixture->serial);
        break;
    case 4:
    case 5:
    case 6:
        bus_read(fixture->bus, port, bytes, what & 8 ? 4 : 1);
        break;
    default:
        bus_write(fixture->bus, port, bytes, what & 8 ? 4 : 1);
        chardev->written += 4;
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fixture fixture = {.lock = PTHREAD_MUTEX_INITIALIZER, .chardev = {.room = 8}};
    struct error error = {0};
    uint8_t off = 0;
    int result;

    fixture.bus = bus_create(&fixture.lock, 0x10000);
    result =
        serial_create(&fixture.serial, fixture.bus, &fixture.vm, PORT, 4, &fixture.chardev, &error);
    assert(result == 0);
    for (size_t i = 0; i + 1 < size; i += 2) {
        step(&fixture, data[i], data[i + 1]);
        assert(serial_state_type.check(serial_state(fixture.serial), &error) == 0);
        assert(fixture.chardev.sent <= fixture.chardev.written);
    }
    bus_write(fixture.bus, PORT + 3, &off, 1); /* no DLAB */
    bus_write(fixture.bus, PORT + 1, &off, 1);
    assert(!fixture.level);
    serial_destroy(fixture.serial);
    bus_destroy(fixture.bus);
    return 0;
}
