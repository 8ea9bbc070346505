/* SPDX-License-Identifier: Apache-2.0
 *
 * A 16550A UART at an ISA port. Registers as in the National Semiconductor PC16550D data sheet.
 * Callbacks run with the machine's lock held.
 */
#pragma once

#include "base/error.h"
#include "devices/chardev.h"
#include "kvm/vm.h"
#include "memory/bus.h"
#include "state/state.h"

struct serial;

/** @param chardev borrowed */
int serial_create(struct serial **serial, struct bus *pio, struct kvm_vm *vm, uint16_t port,
                  unsigned irq, struct chardev *chardev, struct error *error);
void serial_destroy(struct serial *serial);
void serial_reset(struct serial *serial);

extern const struct state_type serial_state_type;
void *serial_state(struct serial *serial);
/** After a load: line levels and back end follow the registers. */
void serial_apply_state(struct serial *serial);
