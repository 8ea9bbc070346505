/* SPDX-License-Identifier: Apache-2.0
 *
 * ACPI fixed hardware: PM1 event and control registers, PM timer, reset register. Made by
 * machine/; called by the port bus on vCPU threads, and by QMP for the button, always with the
 * machine's lock held.
 *
 * The machine is always in ACPI mode (the FADT names no SMI command port), so SCI_EN reads as one.
 * The PM timer runs on CLOCK_BOOTTIME, as kvmclock does, and does not stop when the guest is
 * paused; a hand-over carries the moment at which it was zero. TMR_STS is computed when the guest
 * looks, so the timer never raises an SCI by itself (Linux and other known guests do not enable
 * it).
 */
#include "devices/power.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/util.h"
#include "memory/layout.h"

#define PM_TIMER_HZ UINT64_C(3579545)
#define SECOND_NS   UINT64_C(1000000000)

/* One block of ports; offsets of its registers. */
#define REGISTER_STATUS  0u
#define REGISTER_ENABLE  2u
#define REGISTER_CONTROL 4u
#define REGISTER_TIMER   8u
#define BLOCK_SIZE       12u
static_assert(LAYOUT_PM1_CONTROL_PORT == LAYOUT_PM1_EVENT_PORT + REGISTER_CONTROL, "one block");
static_assert(LAYOUT_PM_TIMER_PORT == LAYOUT_PM1_EVENT_PORT + REGISTER_TIMER, "one block");

/* ACPI 6.5, tables 4.11 to 4.13. */
#define EVENT_TIMER  (1u << 0)
#define EVENT_GLOBAL (1u << 5)
#define EVENT_BUTTON (1u << 8)
#define EVENTS       (EVENT_TIMER | EVENT_GLOBAL | EVENT_BUTTON)

#define CONTROL_SCI_ENABLE       (1u << 0)
#define CONTROL_BUS_MASTER       (1u << 1)
#define CONTROL_SLEEP_TYPE_SHIFT 10
#define CONTROL_SLEEP_TYPE       (7u << CONTROL_SLEEP_TYPE_SHIFT)
#define CONTROL_SLEEP_ENABLE     (1u << 13) /* write-only */
#define CONTROL_KEPT             (CONTROL_BUS_MASTER | CONTROL_SLEEP_TYPE)

#define RESET_CPU (1u << 2) /* of the reset register: do it */

struct power_state {
    uint16_t status;
    uint16_t enable;
    uint16_t control;
    uint8_t reset;         /* what reads back from the reset register */
    uint64_t timer_base;   /* CLOCK_BOOTTIME nanoseconds at which the PM timer was zero */
    uint64_t timer_halves; /* how often bit 31 of the timer had changed when last looked at */
};

struct power {
    struct power_state state;
    struct kvm_vm *vm;
    struct bus *pio;
    struct bus_range block, reset;
    const struct power_ops *ops;
    void *opaque;
};

static const struct state_field power_fields[] = {
    STATE_UINT_RANGE(struct power_state, status, 1, 0, EVENTS, 0),
    STATE_UINT_RANGE(struct power_state, enable, 1, 0, EVENTS, 0),
    STATE_UINT_RANGE(struct power_state, control, 1, 0, CONTROL_KEPT, 0),
    STATE_UINT_RANGE(struct power_state, reset, 1, 0, UINT8_MAX, 0),
    STATE_UINT(struct power_state, timer_base, 1),
    STATE_UINT(struct power_state, timer_halves, 1),
    STATE_END,
};

static int power_check(const void *object, struct error *error)
{
    const struct power_state *state = object;

    if ((state->status & ~EVENTS) || (state->enable & ~EVENTS) || (state->control & ~CONTROL_KEPT))
        return error_set(error, EINVAL, "power: reserved bits are set in a PM1 register");
    return 0;
}

const struct state_type power_state_type = {
    .name = "power",
    .version = 1,
    .min_version = 1,
    .size = sizeof(struct power_state),
    .fields = power_fields,
    .check = power_check,
};

/* Ticks since the timer was zero, in two steps so that nothing overflows. */
static uint64_t timer_ticks(const struct power *power)
{
    uint64_t passed = clock_boottime_ns() - power->state.timer_base;

    return passed / SECOND_NS * PM_TIMER_HZ + passed % SECOND_NS * PM_TIMER_HZ / SECOND_NS;
}

static void update_timer_status(struct power *power)
{
    uint64_t halves = timer_ticks(power) >> 31;

    if (halves != power->state.timer_halves)
        power->state.status |= EVENT_TIMER;
    power->state.timer_halves = halves;
}

static void update_sci(struct power *power)
{
    kvm_vm_set_irq(power->vm, LAYOUT_SCI_IRQ, (power->state.status & power->state.enable) != 0);
}

static uint64_t block_read(void *opaque, uint64_t offset, unsigned size)
{
    struct power *power = opaque;
    uint8_t bytes[BLOCK_SIZE + 8] = {0}; /* an access ends within the block; room to be safe */
    uint16_t control = power->state.control | CONTROL_SCI_ENABLE;
    uint32_t ticks = (uint32_t)timer_ticks(power);
    uint64_t value = 0;

    update_timer_status(power);
    memcpy(bytes + REGISTER_STATUS, &power->state.status, 2);
    memcpy(bytes + REGISTER_ENABLE, &power->state.enable, 2);
    memcpy(bytes + REGISTER_CONTROL, &control, 2);
    memcpy(bytes + REGISTER_TIMER, &ticks, 4);
    memcpy(&value, bytes + offset, size);
    return value;
}

/* Finds the part of an access that falls on a 16-bit register.
 * @param bits out: the bits written, in place; the others are zero
 * @return mask of the bits that are written */
static uint16_t written(uint64_t offset, unsigned size, uint64_t value, unsigned reg,
                        uint16_t *bits)
{
    uint16_t mask = 0;

    *bits = 0;
    for (unsigned i = 0; i < size; i++) {
        uint64_t at = offset + i;

        if (at != reg && at != reg + 1)
            continue;
        mask |= (uint16_t)(0xffu << (at - reg) * 8);
        *bits |= (uint16_t)((value >> i * 8 & 0xff) << (at - reg) * 8);
    }
    return mask;
}

static void write_control(struct power *power, uint16_t mask, uint16_t bits)
{
    unsigned type;

    power->state.control = (power->state.control & ~mask) | (bits & CONTROL_KEPT);
    if (!(bits & CONTROL_SLEEP_ENABLE))
        return;
    type = (power->state.control & CONTROL_SLEEP_TYPE) >> CONTROL_SLEEP_TYPE_SHIFT;
    if (type == LAYOUT_S5_SLEEP_TYPE)
        power->ops->shutdown(power->opaque);
    else
        log_guest("power: the guest asked for a sleep type that does not exist: %u", type);
}

static void block_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct power *power = opaque;
    uint16_t bits, mask;

    if (written(offset, size, value, REGISTER_STATUS, &bits)) {
        update_timer_status(power);
        power->state.status &= ~bits;
    }
    mask = written(offset, size, value, REGISTER_ENABLE, &bits);
    if (mask) {
        update_timer_status(power);
        power->state.enable = (power->state.enable & ~mask) | (bits & EVENTS);
    }
    update_sci(power);
    mask = written(offset, size, value, REGISTER_CONTROL, &bits);
    if (mask)
        write_control(power, mask, bits);
}

static uint64_t reset_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct power *power = opaque;

    (void)offset, (void)size;
    return power->state.reset;
}

static void reset_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct power *power = opaque;

    (void)offset, (void)size;
    power->state.reset = (uint8_t)(value & ~RESET_CPU);
    if (value & RESET_CPU)
        power->ops->reset(power->opaque);
}

static const struct bus_ops block_ops = {.read = block_read, .write = block_write};
static const struct bus_ops reset_ops = {.read = reset_read, .write = reset_write};

/* Register values after power-on; the timer starts at zero. */
static void power_clear(struct power *power)
{
    power->state = (struct power_state){.timer_base = clock_boottime_ns()};
}

int power_create(struct power **result, struct bus *pio, struct kvm_vm *vm,
                 const struct power_ops *ops, void *opaque, struct error *error)
{
    struct power *power = xcalloc(1, sizeof(*power));

    *power = (struct power){
        .vm = vm,
        .pio = pio,
        .block = {.name = "acpi-pm",
                  .base = LAYOUT_PM1_EVENT_PORT,
                  .size = BLOCK_SIZE,
                  .ops = &block_ops,
                  .opaque = power},
        .reset = {.name = "reset",
                  .base = LAYOUT_RESET_PORT,
                  .size = 1,
                  .ops = &reset_ops,
                  .opaque = power},
        .ops = ops,
        .opaque = opaque,
    };
    power_clear(power);
    if (bus_add(pio, &power->block, error) < 0)
        goto fail;
    if (bus_add(pio, &power->reset, error) < 0) {
        bus_remove(pio, &power->block);
        goto fail;
    }
    *result = power;
    return 0;
fail:
    free(power);
    return -error->code;
}

void power_destroy(struct power *power)
{
    bus_remove(power->pio, &power->reset);
    bus_remove(power->pio, &power->block);
    free(power);
}

void power_reset(struct power *power)
{
    power_clear(power);
    update_sci(power);
}

void power_press_button(struct power *power)
{
    power->state.status |= EVENT_BUTTON;
    update_sci(power);
}

void *power_state(struct power *power)
{
    return &power->state;
}

void power_apply_state(struct power *power)
{
    update_sci(power);
}
