/* SPDX-License-Identifier: Apache-2.0
 *
 * A 16550A UART (National Semiconductor PC16550D data sheet, 1995). Made by machine/; called by
 * the port bus on vCPU threads and by its character back end on the main thread, always with the
 * machine's lock held.
 *
 * Time does not pass on this line: a byte written is sent at once, so the transmitter is only ever
 * busy while the back end takes nothing; and the "character timeout" of the receive FIFO comes at
 * once, so received bytes below the trigger level are reported without a timer. Word length, parity
 * and the divisor are stored, and have no effect on the bytes. On a PC the OUT2 pin gates the
 * interrupt; here, as in other virtual machines, it does not.
 */
#include "devices/serial.h"

#include <errno.h>
#include <string.h>

#include "base/util.h"

#define PORTS     8u
#define FIFO_SIZE 16u

enum {                     /* registers, table II */
       REG_DATA = 0,       /* RBR, THR; with DLAB the divisor's low byte */
       REG_INTERRUPTS = 1, /* IER; with DLAB the divisor's high byte */
       REG_IDENT_FIFO = 2, /* IIR when read, FCR when written */
       REG_LINE = 3,       /* LCR */
       REG_MODEM = 4,      /* MCR */
       REG_LINE_STATUS = 5,
       REG_MODEM_STATUS = 6,
       REG_SCRATCH = 7,
};

enum { IER_RECEIVED = 1, IER_SENT = 2, IER_LINE = 4, IER_MODEM = 8, IER_ALL = 0x0f };
enum { IIR_NONE = 1, IIR_MODEM = 0, IIR_SENT = 2, IIR_RECEIVED = 4, IIR_LINE = 6 };
enum { IIR_TIMEOUT = 0x0c, IIR_FIFOS = 0xc0 };
enum { FCR_ENABLE = 1, FCR_RESET_RX = 2, FCR_RESET_TX = 4, FCR_KEPT = 0xc9 };
enum { LCR_DLAB = 0x80 };
enum { MCR_DTR = 1, MCR_RTS = 2, MCR_OUT1 = 4, MCR_OUT2 = 8, MCR_LOOP = 0x10, MCR_ALL = 0x1f };
enum { LSR_READY = 1, LSR_OVERRUN = 2, LSR_ERRORS = 0x1e, LSR_THRE = 0x20, LSR_IDLE = 0x40 };
enum { MSR_DCTS = 1, MSR_DDSR = 2, MSR_TERI = 4, MSR_DDCD = 8, MSR_DELTAS = 0x0f };
enum { MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RI = 0x40, MSR_DCD = 0x80 };

/* What the back end's end of the cable asserts: it is always there and ready. */
#define LINES_CONNECTED (MSR_CTS | MSR_DSR | MSR_DCD)
#define DIVISOR_9600    12u

struct serial_state {
    uint8_t ier, fcr, lcr, mcr, scratch;
    uint8_t errors; /* the error bits of LSR, until it is read */
    uint8_t msr;
    uint16_t divisor;
    bool sent; /* a "transmitter empty" interrupt is due: it goes when IIR is read */
    uint8_t rx[FIFO_SIZE];
    uint32_t rx_count;
    uint8_t tx[FIFO_SIZE]; /* what the back end has not taken yet */
    uint32_t tx_count;
};

struct serial {
    struct serial_state state;
    struct bus *pio;
    struct bus_range range;
    struct kvm_vm *vm;
    unsigned irq;
    bool level; /* of the interrupt line, so that KVM is only called when it changes */
    struct chardev *chardev;
};

static const struct state_field serial_fields[] = {
    STATE_UINT_RANGE(struct serial_state, ier, 1, 0, IER_ALL, 0),
    STATE_UINT_RANGE(struct serial_state, fcr, 1, 0, FCR_KEPT, 0),
    STATE_UINT_RANGE(struct serial_state, lcr, 1, 0, UINT8_MAX, 0),
    STATE_UINT_RANGE(struct serial_state, mcr, 1, 0, MCR_ALL, 0),
    STATE_UINT_RANGE(struct serial_state, scratch, 1, 0, UINT8_MAX, 0),
    STATE_UINT_RANGE(struct serial_state, errors, 1, 0, LSR_ERRORS, 0),
    STATE_UINT_RANGE(struct serial_state, msr, 1, 0, UINT8_MAX, 0),
    STATE_UINT_RANGE(struct serial_state, divisor, 1, 0, UINT16_MAX, 0),
    STATE_BOOL(struct serial_state, sent, 1),
    STATE_BLOB(struct serial_state, rx, rx_count, 1),
    STATE_BLOB(struct serial_state, tx, tx_count, 1),
    STATE_END,
};

/* Bytes that a FIFO can hold: without FIFO mode it is a single register. */
static uint32_t fifo_size(const struct serial_state *state)
{
    return state->fcr & FCR_ENABLE ? FIFO_SIZE : 1;
}

static int serial_check(const void *object, struct error *error)
{
    const struct serial_state *state = object;

    if (state->rx_count > fifo_size(state) || state->tx_count > fifo_size(state))
        return error_set(error, EINVAL, "serial: %u and %u bytes in FIFOs of %u", state->rx_count,
                         state->tx_count, fifo_size(state));
    if ((state->fcr & ~FCR_KEPT) || (state->errors & ~LSR_ERRORS))
        return error_set(error, EINVAL, "serial: reserved bits are set");
    return 0;
}

const struct state_type serial_state_type = {
    .name = "serial",
    .version = 1,
    .min_version = 1,
    .size = sizeof(struct serial_state),
    .fields = serial_fields,
    .check = serial_check,
};

/* Bytes in the receive FIFO at which "received" is reported. */
static uint32_t trigger_level(const struct serial_state *state)
{
    static const uint8_t levels[] = {1, 4, 8, 14};

    return state->fcr & FCR_ENABLE ? levels[state->fcr >> 6] : 1;
}

/* @return the interrupt of highest priority that is due, as in IIR: table IV */
static uint8_t interrupt_source(const struct serial_state *state)
{
    if ((state->ier & IER_LINE) && state->errors)
        return IIR_LINE;
    if ((state->ier & IER_RECEIVED) && state->rx_count >= trigger_level(state))
        return IIR_RECEIVED;
    if ((state->ier & IER_RECEIVED) && state->rx_count > 0)
        return IIR_TIMEOUT;
    if ((state->ier & IER_SENT) && state->sent)
        return IIR_SENT;
    if ((state->ier & IER_MODEM) && (state->msr & MSR_DELTAS))
        return IIR_MODEM;
    return IIR_NONE;
}

static void drive_irq(struct serial *serial)
{
    serial->level = interrupt_source(&serial->state) != IIR_NONE;
    kvm_vm_set_irq(serial->vm, serial->irq, serial->level);
}

static void update_irq(struct serial *serial)
{
    if (serial->level != (interrupt_source(&serial->state) != IIR_NONE))
        drive_irq(serial);
}

/* Puts a byte that came from the line (or the loop) where the guest finds it. */
static void push_rx(struct serial_state *state, uint8_t byte)
{
    if (state->rx_count < fifo_size(state)) {
        state->rx[state->rx_count++] = byte;
        return;
    }
    state->errors |= LSR_OVERRUN;
    if (!(state->fcr & FCR_ENABLE))
        state->rx[0] = byte; /* the holding register is overwritten, a full FIFO is not */
}

/* Removes the first bytes of a FIFO. */
static void drop(uint8_t *fifo, uint32_t *count, uint32_t dropped)
{
    *count -= dropped;
    memmove(fifo, fifo + dropped, *count);
}

/* Offers what waits for the back end. */
static void send_tx(struct serial *serial)
{
    struct serial_state *state = &serial->state;

    if (state->tx_count == 0)
        return;
    drop(state->tx, &state->tx_count,
         (uint32_t)chardev_write(serial->chardev, state->tx, state->tx_count));
    if (state->tx_count == 0)
        state->sent = true;
}

static void write_data(struct serial *serial, uint8_t byte)
{
    struct serial_state *state = &serial->state;

    /* The interrupt goes away and comes back: a guest that answers it without reading IIR needs
     * the new edge. */
    state->sent = false;
    update_irq(serial);
    if (state->mcr & MCR_LOOP) {
        push_rx(state, byte);
        state->sent = true;
        return;
    }
    if (state->tx_count == fifo_size(state)) {
        /* Written although THRE was clear: the last byte is overwritten, or does not fit. */
        if (!(state->fcr & FCR_ENABLE))
            state->tx[0] = byte;
        return;
    }
    state->tx[state->tx_count++] = byte;
    send_tx(serial);
}

static uint8_t read_data(struct serial *serial)
{
    struct serial_state *state = &serial->state;
    uint8_t byte = state->rx[0]; /* an empty FIFO repeats the last byte */

    if (state->rx_count == 0)
        return byte;
    drop(state->rx, &state->rx_count, 1);
    if (!(state->mcr & MCR_LOOP))
        chardev_resume_input(serial->chardev);
    return byte;
}

static void write_interrupts(struct serial_state *state, uint8_t value)
{
    value &= IER_ALL;
    /* Enabling "transmitter empty" while it is empty raises it: 8.6.5, and how Linux starts. */
    if ((value & ~state->ier & IER_SENT) && state->tx_count == 0)
        state->sent = true;
    state->ier = value;
}

static uint8_t read_ident(struct serial_state *state)
{
    uint8_t source = interrupt_source(state);

    if (source == IIR_SENT)
        state->sent = false;
    return source | (state->fcr & FCR_ENABLE ? IIR_FIFOS : 0);
}

static void write_fifo_control(struct serial *serial, uint8_t value)
{
    struct serial_state *state = &serial->state;
    bool toggled = (value ^ state->fcr) & FCR_ENABLE;

    /* The other bits are not programmed unless bit 0 is written as one, too. */
    state->fcr = value & FCR_ENABLE ? value & FCR_KEPT : 0;
    if (toggled)
        value |= FCR_RESET_RX | FCR_RESET_TX;
    else if (!(value & FCR_ENABLE))
        return;
    if (value & FCR_RESET_RX) {
        state->rx_count = 0;
        chardev_resume_input(serial->chardev);
    }
    if ((value & FCR_RESET_TX) && state->tx_count > 0) {
        state->tx_count = 0;
        state->sent = true;
    }
}

/* The modem inputs have these levels now: notes what has changed. */
static void set_modem_lines(struct serial_state *state, uint8_t lines)
{
    uint8_t before = state->msr & ~MSR_DELTAS, changed = before ^ lines;
    uint8_t deltas = state->msr & MSR_DELTAS;

    if (changed & MSR_CTS)
        deltas |= MSR_DCTS;
    if (changed & MSR_DSR)
        deltas |= MSR_DDSR;
    if (changed & before & MSR_RI)
        deltas |= MSR_TERI; /* trailing edge only */
    if (changed & MSR_DCD)
        deltas |= MSR_DDCD;
    state->msr = lines | deltas;
}

static uint8_t modem_lines(const struct serial_state *state)
{
    uint8_t mcr = state->mcr;

    if (!(mcr & MCR_LOOP))
        return LINES_CONNECTED;
    return (mcr & MCR_RTS ? MSR_CTS : 0) | (mcr & MCR_DTR ? MSR_DSR : 0) |
           (mcr & MCR_OUT1 ? MSR_RI : 0) | (mcr & MCR_OUT2 ? MSR_DCD : 0);
}

static void write_modem(struct serial *serial, uint8_t value)
{
    bool left_loop = serial->state.mcr & ~value & MCR_LOOP;

    serial->state.mcr = value & MCR_ALL;
    set_modem_lines(&serial->state, modem_lines(&serial->state));
    if (left_loop)
        chardev_resume_input(serial->chardev);
}

static uint8_t read_line_status(struct serial_state *state)
{
    uint8_t value = state->errors;

    if (state->rx_count > 0)
        value |= LSR_READY;
    if (state->tx_count == 0)
        value |= LSR_THRE | LSR_IDLE;
    state->errors = 0;
    return value;
}

static uint8_t read_modem_status(struct serial_state *state)
{
    uint8_t value = state->msr;

    state->msr &= ~MSR_DELTAS;
    return value;
}

static uint8_t read_register(struct serial *serial, unsigned reg)
{
    struct serial_state *state = &serial->state;
    bool dlab = state->lcr & LCR_DLAB;

    switch (reg) {
    case REG_DATA:
        return dlab ? state->divisor & 0xff : read_data(serial);
    case REG_INTERRUPTS:
        return dlab ? state->divisor >> 8 : state->ier;
    case REG_IDENT_FIFO:
        return read_ident(state);
    case REG_LINE:
        return state->lcr;
    case REG_MODEM:
        return state->mcr;
    case REG_LINE_STATUS:
        return read_line_status(state);
    case REG_MODEM_STATUS:
        return read_modem_status(state);
    default:
        return state->scratch;
    }
}

static void write_register(struct serial *serial, unsigned reg, uint8_t value)
{
    struct serial_state *state = &serial->state;
    bool dlab = state->lcr & LCR_DLAB;

    switch (reg) {
    case REG_DATA:
        if (dlab)
            state->divisor = (state->divisor & 0xff00) | value;
        else
            write_data(serial, value);
        break;
    case REG_INTERRUPTS:
        if (dlab)
            state->divisor = (uint16_t)((state->divisor & 0xff) | value << 8);
        else
            write_interrupts(state, value);
        break;
    case REG_IDENT_FIFO:
        write_fifo_control(serial, value);
        break;
    case REG_LINE:
        state->lcr = value;
        break;
    case REG_MODEM:
        write_modem(serial, value);
        break;
    case REG_SCRATCH:
        state->scratch = value;
        break;
    default: /* the status registers are for the factory's tests */
        break;
    }
}

/* The device has 8-bit registers: wider accesses are several, low address first. */
static uint64_t serial_read(void *opaque, uint64_t offset, unsigned size)
{
    struct serial *serial = opaque;
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)read_register(serial, (unsigned)offset + i) << i * 8;
    update_irq(serial);
    return value;
}

static void serial_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct serial *serial = opaque;

    for (unsigned i = 0; i < size; i++)
        write_register(serial, (unsigned)offset + i, (uint8_t)(value >> i * 8));
    update_irq(serial);
}

static size_t can_receive(void *opaque)
{
    const struct serial *serial = opaque;
    const struct serial_state *state = &serial->state;

    /* In the loop the receiver is not on the line: bytes wait in the back end until it is. */
    return state->mcr & MCR_LOOP ? 0 : fifo_size(state) - MIN(state->rx_count, fifo_size(state));
}

static void receive(void *opaque, const uint8_t *bytes, size_t count)
{
    struct serial *serial = opaque;

    for (size_t i = 0; i < count; i++)
        push_rx(&serial->state, bytes[i]);
    update_irq(serial);
}

static void writable(void *opaque)
{
    struct serial *serial = opaque;

    send_tx(serial);
    update_irq(serial);
}

static const struct bus_ops serial_bus_ops = {.read = serial_read, .write = serial_write};
static const struct chardev_ops serial_chardev_ops = {
    .can_receive = can_receive, .receive = receive, .writable = writable};

/* Register values after power-on. */
static void serial_clear(struct serial *serial)
{
    serial->state = (struct serial_state){.msr = LINES_CONNECTED, .divisor = DIVISOR_9600};
}

int serial_create(struct serial **result, struct bus *pio, struct kvm_vm *vm, uint16_t port,
                  unsigned irq, struct chardev *chardev, struct error *error)
{
    struct serial *serial = xcalloc(1, sizeof(*serial));

    *serial = (struct serial){
        .pio = pio,
        .range = {.name = "serial",
                  .base = port,
                  .size = PORTS,
                  .ops = &serial_bus_ops,
                  .opaque = serial},
        .vm = vm,
        .irq = irq,
        .chardev = chardev,
    };
    serial_clear(serial);
    if (bus_add(pio, &serial->range, error) < 0) {
        free(serial);
        return -error->code;
    }
    chardev_attach(chardev, &serial_chardev_ops, serial);
    *result = serial;
    return 0;
}

void serial_destroy(struct serial *serial)
{
    chardev_attach(serial->chardev, NULL, NULL);
    bus_remove(serial->pio, &serial->range);
    free(serial);
}

void serial_reset(struct serial *serial)
{
    serial_clear(serial);
    chardev_resume_input(serial->chardev);
    drive_irq(serial);
}

void *serial_state(struct serial *serial)
{
    return &serial->state;
}

void serial_apply_state(struct serial *serial)
{
    send_tx(serial);
    chardev_resume_input(serial->chardev);
    drive_irq(serial);
}
