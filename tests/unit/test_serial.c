/* SPDX-License-Identifier: Apache-2.0
 *
 * Unit tests of devices/serial.c: a driver's view of the registers. KVM's interrupt line and the
 * character back end are fakes defined here.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/util.h"
#include "devices/serial.h"

#define PORT 0x3f8u
#define IRQ  4u

enum { RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR };

/* ---- fakes ---- */

struct chardev {
    const struct chardev_ops *ops;
    void *opaque;
    uint8_t out[64];
    size_t count, room; /* written; how many more are taken */
    unsigned resumed;
};

struct fixture {
    struct kvm_vm vm; /* first: kvm_vm_set_irq() finds the fixture by it */
    struct chardev chardev;
    pthread_mutex_t lock;
    struct bus *bus;
    struct serial *serial;
    bool level;
    unsigned edges;
};

void kvm_vm_set_irq(struct kvm_vm *vm, unsigned gsi, bool level)
{
    struct fixture *fixture = (struct fixture *)vm;

    assert_int_equal(gsi, IRQ);
    fixture->edges += level && !fixture->level;
    fixture->level = level;
}

void chardev_attach(struct chardev *chardev, const struct chardev_ops *ops, void *opaque)
{
    chardev->ops = ops;
    chardev->opaque = opaque;
}

size_t chardev_write(struct chardev *chardev, const uint8_t *bytes, size_t count)
{
    count = MIN(count, chardev->room);
    assert_true(chardev->count + count <= sizeof(chardev->out));
    memcpy(chardev->out + chardev->count, bytes, count);
    chardev->count += count;
    chardev->room -= count;
    return count;
}

void chardev_resume_input(struct chardev *chardev)
{
    chardev->resumed++;
}

/* ---- helpers ---- */

static int setup(void **state)
{
    struct fixture *fixture = xcalloc(1, sizeof(*fixture));
    struct error error = {0};

    pthread_mutex_init(&fixture->lock, NULL);
    fixture->bus = bus_create(&fixture->lock, 0x10000);
    fixture->chardev.room = sizeof(fixture->chardev.out);
    *state = fixture;
    return serial_create(&fixture->serial, fixture->bus, &fixture->vm, PORT, IRQ, &fixture->chardev,
                         &error);
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;

    serial_destroy(fixture->serial);
    assert_null(fixture->chardev.ops);
    bus_destroy(fixture->bus);
    free(fixture);
    return 0;
}

static uint8_t in(struct fixture *fixture, unsigned reg)
{
    uint8_t value;

    bus_read(fixture->bus, PORT + reg, &value, 1);
    return value;
}

static void out(struct fixture *fixture, unsigned reg, uint8_t value)
{
    bus_write(fixture->bus, PORT + reg, &value, 1);
}

static void feed(struct fixture *fixture, const char *text, size_t count)
{
    fixture->chardev.ops->receive(fixture->chardev.opaque, (const uint8_t *)text, count);
}

static size_t room(struct fixture *fixture)
{
    return fixture->chardev.ops->can_receive(fixture->chardev.opaque);
}

/* ---- tests ---- */

static void test_after_reset(void **state)
{
    struct fixture *fixture = *state;

    assert_int_equal(in(fixture, IER), 0);
    assert_int_equal(in(fixture, IIR), 0x01);
    assert_int_equal(in(fixture, LCR), 0);
    assert_int_equal(in(fixture, MCR), 0);
    assert_int_equal(in(fixture, LSR), 0x60);
    assert_int_equal(in(fixture, MSR), 0xb0);
    assert_false(fixture->level);
}

/* The steps by which Linux tells a 16550A from its relatives (8250_port.c, autoconfig). */
static void test_linux_probe(void **state)
{
    struct fixture *fixture = *state;
    uint8_t iir;

    out(fixture, IER, 0);
    assert_int_equal(in(fixture, IER) & 0x0f, 0);
    out(fixture, IER, 0xff);
    assert_int_equal(in(fixture, IER), 0x0f); /* no bits of an XScale or a 16750 */
    out(fixture, IER, 0);
    out(fixture, MCR, 0x1a); /* loop, OUT2, RTS */
    assert_int_equal(in(fixture, MSR) & 0xf0, 0x90);
    out(fixture, MCR, 0);
    out(fixture, LCR, 0xbf); /* on a 16650 this opens the EFR at the FIFO register */
    out(fixture, IIR, 0);
    out(fixture, LCR, 0);
    out(fixture, IIR, 1);
    iir = in(fixture, IIR);
    assert_int_equal(iir >> 6, 3);
    out(fixture, LCR, 0x80);
    assert_int_not_equal(in(fixture, IIR), 0); /* no EFR */
    out(fixture, IIR, 0x21);                   /* a 16750 would turn 64-byte FIFOs on */
    assert_int_equal(in(fixture, IIR) >> 5, 6);
    out(fixture, LCR, 0);

    /* Its test for lost "transmitter empty" interrupts. */
    for (unsigned i = 0; i < 2; i++) {
        out(fixture, IER, 2);
        assert_true(fixture->level);
        assert_int_equal(in(fixture, LSR) & 0x40, 0x40);
        assert_int_equal(in(fixture, IIR), 0xc2);
        assert_false(fixture->level);
        out(fixture, IER, 0);
    }
}

static void test_divisor_and_scratch(void **state)
{
    struct fixture *fixture = *state;

    out(fixture, LCR, 0x83);
    out(fixture, RBR, 0x34);
    out(fixture, IER, 0x12);
    assert_int_equal(in(fixture, RBR), 0x34);
    assert_int_equal(in(fixture, IER), 0x12);
    out(fixture, LCR, 0x03);
    assert_int_equal(in(fixture, IER), 0);
    assert_int_equal(fixture->chardev.count, 0);
    out(fixture, SCR, 0xa5);
    assert_int_equal(in(fixture, SCR), 0xa5);
    out(fixture, LSR, 0xff); /* read-only */
    out(fixture, MSR, 0xff);
    assert_int_equal(in(fixture, LSR), 0x60);
    assert_int_equal(in(fixture, MSR), 0xb0);
}

static void test_wide_access(void **state)
{
    struct fixture *fixture = *state;
    uint16_t value = 0x4241;

    out(fixture, LCR, 0x80);
    bus_write(fixture->bus, PORT, &value, 2); /* both halves of the divisor */
    assert_int_equal(in(fixture, RBR), 0x41);
    assert_int_equal(in(fixture, IER), 0x42);
}

static void test_transmit(void **state)
{
    struct fixture *fixture = *state;
    unsigned edges;

    out(fixture, RBR, 'a');
    assert_int_equal(fixture->chardev.count, 1);
    assert_false(fixture->level);
    out(fixture, IER, 2);
    assert_int_equal(in(fixture, IIR), 0x02);
    assert_int_equal(in(fixture, IIR), 0x01); /* reading it has cleared it */
    out(fixture, RBR, 'b');
    assert_true(fixture->level);
    edges = fixture->edges;
    out(fixture, RBR, 'c'); /* without reading IIR: there is an edge all the same */
    assert_int_equal(fixture->edges, edges + 1);
    assert_memory_equal(fixture->chardev.out, "abc", 3);
}

static void test_slow_back_end(void **state)
{
    struct fixture *fixture = *state;

    fixture->chardev.room = 0;
    out(fixture, IIR, 1);
    out(fixture, IER, 2);
    (void)in(fixture, IIR);
    for (unsigned i = 0; i < 17; i++) /* the last one finds the FIFO full */
        out(fixture, RBR, (uint8_t)('A' + i));
    assert_int_equal(in(fixture, LSR), 0x00);
    assert_false(fixture->level);

    fixture->chardev.room = 10;
    fixture->chardev.ops->writable(fixture->chardev.opaque);
    assert_int_equal(in(fixture, LSR), 0x00);
    fixture->chardev.room = 10;
    fixture->chardev.ops->writable(fixture->chardev.opaque);
    assert_int_equal(in(fixture, LSR), 0x60);
    assert_int_equal(in(fixture, IIR), 0xc2);
    assert_int_equal(fixture->chardev.count, 16);
    assert_memory_equal(fixture->chardev.out, "ABCDEFGHIJKLMNOP", 16);
}

static void test_transmit_reset(void **state)
{
    struct fixture *fixture = *state;

    fixture->chardev.room = 0;
    out(fixture, IIR, 1);
    out(fixture, RBR, 'x');
    assert_int_equal(in(fixture, LSR), 0x00);
    out(fixture, IIR, 5); /* clear the transmit FIFO */
    assert_int_equal(in(fixture, LSR), 0x60);
    fixture->chardev.room = 5;
    fixture->chardev.ops->writable(fixture->chardev.opaque);
    assert_int_equal(fixture->chardev.count, 0);
}

static void test_receive_without_fifo(void **state)
{
    struct fixture *fixture = *state;

    assert_int_equal(room(fixture), 1);
    feed(fixture, "a", 1);
    assert_int_equal(room(fixture), 0);
    assert_false(fixture->level);
    out(fixture, IER, 5);
    assert_int_equal(in(fixture, IIR), 0x04);
    feed(fixture, "b", 1); /* overruns */
    assert_int_equal(in(fixture, IIR), 0x06);
    assert_int_equal(in(fixture, LSR), 0x63);
    assert_int_equal(in(fixture, LSR), 0x61);
    assert_int_equal(in(fixture, RBR), 'b');
    assert_int_equal(in(fixture, LSR), 0x60);
    assert_false(fixture->level);
    assert_true(fixture->chardev.resumed > 0);
}

static void test_receive_with_fifo(void **state)
{
    struct fixture *fixture = *state;

    out(fixture, IIR, 0x81); /* trigger at eight */
    out(fixture, IER, 5);
    assert_int_equal(room(fixture), 16);
    feed(fixture, "1234567", 7);
    assert_true(fixture->level);
    assert_int_equal(in(fixture, IIR), 0xcc); /* timeout */
    feed(fixture, "89abcdef0", 9);
    assert_int_equal(in(fixture, IIR), 0xc4);
    feed(fixture, "!", 1); /* overruns: the FIFO stays as it is */
    assert_int_equal(in(fixture, IIR), 0xc6);
    assert_int_equal(in(fixture, LSR), 0x63);
    for (const char *c = "123456789abcdef0"; *c; c++) {
        assert_true(fixture->level);
        assert_int_equal(in(fixture, RBR), *c);
    }
    assert_false(fixture->level);
    assert_int_equal(in(fixture, IIR), 0xc1);
    (void)in(fixture, RBR); /* empty: nothing breaks */
    feed(fixture, "xyz", 3);
    out(fixture, IIR, 0x83); /* clear the receive FIFO */
    assert_int_equal(in(fixture, LSR), 0x60);
    feed(fixture, "xyz", 3);
    out(fixture, IIR, 0); /* so does leaving FIFO mode */
    assert_int_equal(in(fixture, LSR), 0x60);
    assert_int_equal(in(fixture, IIR), 0x01);
}

static void test_loopback(void **state)
{
    struct fixture *fixture = *state;

    out(fixture, IIR, 1);
    (void)in(fixture, MSR);
    out(fixture, IER, 0x08);
    out(fixture, MCR, 0x1f);
    assert_int_equal(in(fixture, IIR), 0xc1);
    assert_int_equal(in(fixture, MSR), 0xf0); /* RI rose, the rest stayed: no deltas */
    out(fixture, MCR, 0x10);
    assert_true(fixture->level);
    assert_int_equal(in(fixture, IIR), 0xc0);
    assert_int_equal(in(fixture, MSR), 0x0f);
    assert_int_equal(in(fixture, MSR), 0x00);
    assert_false(fixture->level);

    assert_int_equal(room(fixture), 0);
    for (unsigned i = 0; i < 17; i++)
        out(fixture, RBR, (uint8_t)i);
    assert_int_equal(fixture->chardev.count, 0);
    assert_int_equal(in(fixture, LSR), 0x63);
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(in(fixture, RBR), i);
    fixture->chardev.resumed = 0;
    out(fixture, MCR, 0);
    assert_int_equal(fixture->chardev.resumed, 1);
    assert_int_equal(room(fixture), 16);
    assert_int_equal(in(fixture, MSR), 0xbb);
}

static void test_state_round_trip(void **state)
{
    struct fixture *fixture = *state;
    uint8_t bytes[4096], *scratch = xcalloc(1, serial_state_type.size);
    struct state_writer writer;
    struct error error = {0};
    struct state_target target = {.id = "serial",
                                  .type = &serial_state_type,
                                  .object = serial_state(fixture->serial),
                                  .scratch = scratch};
    size_t length;

    out(fixture, IIR, 1);
    out(fixture, IER, 1);
    fixture->chardev.room = 0;
    out(fixture, RBR, 'T');
    feed(fixture, "R", 1);
    state_writer_init(&writer, bytes, sizeof(bytes));
    state_write(&writer, "serial", &serial_state_type, serial_state(fixture->serial), true);
    assert_int_equal(state_writer_finish(&writer, &length, &error), 0);

    serial_reset(fixture->serial);
    assert_false(fixture->level);
    assert_int_equal(in(fixture, LSR), 0x60);
    assert_int_equal(state_load(bytes, length, &target, 1, &error), 0);
    fixture->chardev.room = 1;
    serial_apply_state(fixture->serial);
    assert_true(fixture->level);
    assert_int_equal(in(fixture, RBR), 'R');
    assert_int_equal(fixture->chardev.out[0], 'T');
    free(scratch);
}

/* A peer that says there are two bytes in a register of one. */
static void test_state_hostile(void **state)
{
    struct fixture *fixture = *state;
    uint8_t *object = xcalloc(1, serial_state_type.size);
    struct error error = {0};

    out(fixture, IIR, 1);
    feed(fixture, "RR", 2);
    memcpy(object, serial_state(fixture->serial), serial_state_type.size);
    assert_int_equal(serial_state_type.check(object, &error), 0);
    for (size_t i = 0; serial_state_type.fields[i].name != NULL; i++) {
        if (strcmp(serial_state_type.fields[i].name, "fcr") == 0)
            object[serial_state_type.fields[i].offset] = 0;
    }
    assert_int_equal(serial_state_type.check(object, &error), -EINVAL);
    free(object);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_after_reset, setup, teardown),
        cmocka_unit_test_setup_teardown(test_linux_probe, setup, teardown),
        cmocka_unit_test_setup_teardown(test_divisor_and_scratch, setup, teardown),
        cmocka_unit_test_setup_teardown(test_wide_access, setup, teardown),
        cmocka_unit_test_setup_teardown(test_transmit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slow_back_end, setup, teardown),
        cmocka_unit_test_setup_teardown(test_transmit_reset, setup, teardown),
        cmocka_unit_test_setup_teardown(test_receive_without_fifo, setup, teardown),
        cmocka_unit_test_setup_teardown(test_receive_with_fifo, setup, teardown),
        cmocka_unit_test_setup_teardown(test_loopback, setup, teardown),
        cmocka_unit_test_setup_teardown(test_state_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_state_hostile, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
