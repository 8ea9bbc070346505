/* SPDX-License-Identifier: Apache-2.0
 *
 * ACPI fixed hardware (ACPI 6.5, section 4.8): PM1 event and control blocks with power button and
 * SCI, PM timer, and the reset register (ports: memory/layout.h). Callbacks run with the machine's
 * lock held.
 */
#pragma once

#include "base/error.h"
#include "kvm/vm.h"
#include "memory/bus.h"
#include "state/state.h"

struct power;

/** What the guest asked for; called on a vCPU thread with the machine's lock held. */
struct power_ops {
    void (*shutdown)(void *opaque);
    void (*reset)(void *opaque);
};

int power_create(struct power **power, struct bus *pio, struct kvm_vm *vm,
                 const struct power_ops *ops, void *opaque, struct error *error);
void power_destroy(struct power *power);
void power_reset(struct power *power);

/** Presses the power button (QMP system_powerdown). */
void power_press_button(struct power *power);

extern const struct state_type power_state_type;
void *power_state(struct power *power);
void power_apply_state(struct power *power);
