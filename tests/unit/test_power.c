/* SPDX-License-Identifier: Apache-2.0
 *
 * Unit tests of devices/power.c: PM1 registers, SCI, PM timer, reset register. KVM's interrupt
 * line is a fake defined here.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/util.h"
#include "devices/power.h"
#include "memory/layout.h"

#define STATUS  (LAYOUT_PM1_EVENT_PORT)
#define ENABLE  (LAYOUT_PM1_EVENT_PORT + 2)
#define CONTROL (LAYOUT_PM1_CONTROL_PORT)
#define BUTTON  0x100u
#define TIMER   0x001u

struct fixture {
    struct kvm_vm vm; /* first: kvm_vm_set_irq() finds the fixture by it */
    pthread_mutex_t lock;
    struct bus *bus;
    struct power *power;
    bool level;
    unsigned shutdowns, resets;
};

void kvm_vm_set_irq(struct kvm_vm *vm, unsigned gsi, bool level)
{
    assert_int_equal(gsi, LAYOUT_SCI_IRQ);
    ((struct fixture *)vm)->level = level;
}

static void count_shutdown(void *opaque)
{
    ((struct fixture *)opaque)->shutdowns++;
}

static void count_reset(void *opaque)
{
    ((struct fixture *)opaque)->resets++;
}

static const struct power_ops ops = {.shutdown = count_shutdown, .reset = count_reset};

static int setup(void **state)
{
    struct fixture *fixture = xcalloc(1, sizeof(*fixture));
    struct error error = {0};

    pthread_mutex_init(&fixture->lock, NULL);
    fixture->bus = bus_create(&fixture->lock, 0x10000);
    *state = fixture;
    return power_create(&fixture->power, fixture->bus, &fixture->vm, &ops, fixture, &error);
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;

    power_destroy(fixture->power);
    bus_destroy(fixture->bus);
    free(fixture);
    return 0;
}

static uint32_t in(struct fixture *fixture, uint16_t port, unsigned size)
{
    uint32_t value = 0;

    bus_read(fixture->bus, port, &value, size);
    return value;
}

static void out(struct fixture *fixture, uint16_t port, unsigned size, uint32_t value)
{
    bus_write(fixture->bus, port, &value, size);
}

static void test_after_reset(void **state)
{
    struct fixture *fixture = *state;

    assert_int_equal(in(fixture, STATUS, 2), 0);
    assert_int_equal(in(fixture, ENABLE, 2), 0);
    assert_int_equal(in(fixture, CONTROL, 2), 1); /* SCI_EN */
}

static void test_button(void **state)
{
    struct fixture *fixture = *state;

    out(fixture, ENABLE, 2, 0xffff);
    assert_int_equal(in(fixture, ENABLE, 2), 0x121); /* only what there is */
    out(fixture, ENABLE, 2, BUTTON);
    power_press_button(fixture->power);
    assert_true(fixture->level);
    assert_int_equal(in(fixture, STATUS, 2), BUTTON);
    out(fixture, STATUS, 2, 0x20); /* another bit */
    assert_true(fixture->level);
    out(fixture, STATUS, 2, BUTTON);
    assert_false(fixture->level);
    assert_int_equal(in(fixture, STATUS, 2), 0);
}

static void test_button_before_enable(void **state)
{
    struct fixture *fixture = *state;

    power_press_button(fixture->power);
    assert_false(fixture->level);
    out(fixture, ENABLE + 1, 1, BUTTON >> 8); /* half of the register */
    assert_true(fixture->level);
    out(fixture, STATUS + 1, 1, BUTTON >> 8);
    assert_false(fixture->level);
    assert_int_equal(in(fixture, STATUS, 4), BUTTON << 16);
}

static void test_status_and_enable_at_once(void **state)
{
    struct fixture *fixture = *state;

    power_press_button(fixture->power);
    out(fixture, STATUS, 4, BUTTON << 16);
    assert_true(fixture->level);
    out(fixture, STATUS, 4, BUTTON);
    assert_false(fixture->level);
    assert_int_equal(in(fixture, ENABLE, 2), 0);
}

static void test_soft_off(void **state)
{
    struct fixture *fixture = *state;

    out(fixture, CONTROL, 2, LAYOUT_S5_SLEEP_TYPE << 10);
    assert_int_equal(fixture->shutdowns, 0);
    assert_int_equal(in(fixture, CONTROL, 2), LAYOUT_S5_SLEEP_TYPE << 10 | 1);
    out(fixture, CONTROL, 2, 3 << 10 | 1 << 13);
    assert_int_equal(fixture->shutdowns, 0);
    out(fixture, CONTROL, 2, LAYOUT_S5_SLEEP_TYPE << 10 | 1 << 13);
    assert_int_equal(fixture->shutdowns, 1);
    assert_int_equal(in(fixture, CONTROL, 2) & 1 << 13, 0);
    out(fixture, CONTROL + 1, 1, LAYOUT_S5_SLEEP_TYPE << 2 | 1 << 5);
    assert_int_equal(fixture->shutdowns, 2);
}

static void test_reset_register(void **state)
{
    struct fixture *fixture = *state;

    out(fixture, LAYOUT_RESET_PORT, 1, 0x02); /* what Linux' "cf9" reboot does */
    assert_int_equal(in(fixture, LAYOUT_RESET_PORT, 1), 0x02);
    assert_int_equal(fixture->resets, 0);
    out(fixture, LAYOUT_RESET_PORT, 1, LAYOUT_RESET_VALUE);
    assert_int_equal(fixture->resets, 1);
}

static void test_timer_rate(void **state)
{
    struct fixture *fixture = *state;
    uint64_t begin = clock_ns(), passed;
    uint32_t first = in(fixture, LAYOUT_PM_TIMER_PORT, 4), ticks;

    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    ticks = in(fixture, LAYOUT_PM_TIMER_PORT, 4) - first;
    passed = clock_ns() - begin;
    assert_true(ticks >= 20 * 3579);
    assert_true(ticks <= passed * 3580 / 1000000 + 10);
}

/* The field of the saved state that says when the timer was zero. */
static uint64_t *timer_base(struct fixture *fixture)
{
    const struct state_field *fields = power_state_type.fields;

    for (size_t i = 0; fields[i].name != NULL; i++) {
        if (strcmp(fields[i].name, "timer_base") == 0)
            return (uint64_t *)((char *)power_state(fixture->power) + fields[i].offset);
    }
    fail();
    return NULL;
}

static void test_timer_carry(void **state)
{
    struct fixture *fixture = *state;
    uint64_t half_ns = (UINT64_C(1) << 31) * 1000000000 / 3579545;

    out(fixture, ENABLE, 2, TIMER);
    *timer_base(fixture) -= half_ns;
    assert_true(in(fixture, LAYOUT_PM_TIMER_PORT, 4) >> 31);
    assert_int_equal(in(fixture, STATUS, 2), TIMER);
    out(fixture, STATUS, 2, TIMER);
    assert_int_equal(in(fixture, STATUS, 2), 0);
    *timer_base(fixture) -= 2 * half_ns; /* twice unseen: bit 31 is as before, but has changed */
    assert_int_equal(in(fixture, STATUS, 2), TIMER);
    *timer_base(fixture) -= 400 * 86400 * UINT64_C(1000000000); /* a year of uptime */
    (void)in(fixture, LAYOUT_PM_TIMER_PORT, 4);
    assert_false(in(fixture, LAYOUT_PM_TIMER_PORT, 1) & ~0xff);
}

static void test_state_round_trip(void **state)
{
    struct fixture *fixture = *state;
    uint8_t bytes[4096], *scratch = xcalloc(1, power_state_type.size);
    struct state_writer writer;
    struct error error = {0};
    struct state_target target = {.id = "power",
                                  .type = &power_state_type,
                                  .object = power_state(fixture->power),
                                  .scratch = scratch};
    uint64_t base;
    size_t length;

    out(fixture, ENABLE, 2, BUTTON);
    power_press_button(fixture->power);
    base = *timer_base(fixture);
    state_writer_init(&writer, bytes, sizeof(bytes));
    state_write(&writer, "power", &power_state_type, power_state(fixture->power), true);
    assert_int_equal(state_writer_finish(&writer, &length, &error), 0);
    power_reset(fixture->power);
    assert_false(fixture->level);
    assert_int_equal(in(fixture, STATUS, 4), 0);
    assert_int_equal(state_load(bytes, length, &target, 1, &error), 0);
    power_apply_state(fixture->power);
    assert_true(fixture->level);
    assert_int_equal(in(fixture, STATUS, 4), BUTTON << 16 | BUTTON);
    assert_int_equal(*timer_base(fixture), base);

    memset(scratch, 0xff, power_state_type.size);
    assert_int_equal(power_state_type.check(scratch, &error), -EINVAL);
    free(scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_after_reset, setup, teardown),
        cmocka_unit_test_setup_teardown(test_button, setup, teardown),
        cmocka_unit_test_setup_teardown(test_button_before_enable, setup, teardown),
        cmocka_unit_test_setup_teardown(test_status_and_enable_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_soft_off, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reset_register, setup, teardown),
        cmocka_unit_test_setup_teardown(test_timer_rate, setup, teardown),
        cmocka_unit_test_setup_teardown(test_timer_carry, setup, teardown),
        cmocka_unit_test_setup_teardown(test_state_round_trip, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
