/* SPDX-License-Identifier: Apache-2.0
 *
 * The inside of a machine, for the files of this folder only.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <systemd/sd-event.h>

#include "base/blocker.h"
#include "devices/chardev.h"
#include "devices/power.h"
#include "devices/serial.h"
#include "iommu/iommu.h"
#include "kvm/irq.h"
#include "kvm/vcpu.h"
#include "kvm/vm.h"
#include "machine/handover.h"
#include "machine/machine.h"
#include "memory/bus.h"
#include "memory/ram.h"
#include "pci/host.h"
#include "vfio/pci.h"

#define MACHINE_EVENTS_MAX    64
#define MACHINE_STATE_ID_SIZE 80

/** What the guest or a vCPU asked for and the main thread has not done yet; bits of
 * machine_state.requests. */
enum machine_request {
    MACHINE_REQUEST_RESET = 1 << 0,
    MACHINE_REQUEST_HOST_RESET = 1 << 1,
    MACHINE_REQUEST_SHUTDOWN = 1 << 2,
    MACHINE_REQUEST_FAIL = 1 << 3,
};
#define MACHINE_REQUESTS_ALL 0xfu

struct machine_queued_event {
    enum machine_event event;
    unsigned device;
};

/** Whoever listens to what VFIO tells of a device, see notices.c. */
struct machine_watch {
    sd_event_source *sources[VFIO_NOTIFIERS];
    uint64_t last_request_ns; /**< when it was last passed on that the host wants the device back */
};

/** State of the machine as a whole that a hand-over carries. */
struct machine_state {
    bool running;
    uint32_t requests;
    uint32_t generation; /**< hand-overs that the guest has behind it */
};

struct machine {
    struct config config;
    sd_event *loop;
    pthread_mutex_t lock; /**< of all device state */
    /** Of the guest's life: whoever pauses, resets or resumes it, or has work for the vCPUs'
     * threads. Taken before lock. A hand-over that has paused the guest does not hold it: the
     * status keeps others off. */
    pthread_mutex_t life;
    enum machine_status status;              /**< under life; read anywhere */
    enum machine_status status_before_pause; /**< of a hand-over */

    struct ram ram;
    unsigned ram_slots[RAM_REGIONS_MAX];
    int kernel_fd, initrd_fd;
    struct kvm_vm vm;
    struct kvm_cpuid_table cpuid;
    uint64_t mmio64_base, mmio64_size;
    struct bus *mmio, *pio;
    struct kvm_vcpu *vcpus;
    unsigned vcpu_count; /**< made so far */
    struct kvm_rendezvous rendezvous;
    void (*enters)(void *opaque); /**< adopted: see machine_run_adopted() */
    void *enters_opaque;
    struct pci_host *pci;
    struct chardev *console;
    struct serial *serial;
    struct power *power;
    struct iommu_set *spaces; /**< address spaces for DMA */
    struct vfio_pci *devices[CONFIG_DEVICES_MAX];
    struct machine_watch watches[CONFIG_DEVICES_MAX];

    /* State that has no home in a part; filled in when it is saved or loaded. */
    struct machine_state state;
    struct kvm_vm_state vm_state;
    struct kvm_clock_state clock_state;
    struct state_target *targets; /**< what a state stream is loaded into, with scratch memory */
    size_t target_count;
    char (*target_ids)[MACHINE_STATE_ID_SIZE];
    void *target_scratch;
    bool taken_apart;   /**< its parts have been destroyed */
    bool console_given; /**< adopt: this process brings a console of its own */

    _Atomic uint32_t requests; /**< enum machine_request */
    int wake;                  /**< eventfd: the main thread has something to do */
    sd_event_source *wake_source;
    pthread_mutex_t events_lock;
    struct machine_queued_event events[MACHINE_EVENTS_MAX];
    unsigned event_count;
    machine_event_fn *event_handler;
    void *event_opaque;
};

/** What a part of a machine can need to be adopted. */
struct machine_source {
    const struct machine_facts *facts;
    struct fdset *fds;
};

/**
 * One part, of which machine_parts[] has all in build order, also the order in the state stream.
 * create, adopt and destroy are called on the main thread without the lock, reset with it.
 * A part that a machine can have several of is called once per index; one that a hand-over does
 * not carry has no describe or state.
 */
struct machine_part {
    const char *name;
    unsigned (*count)(const struct machine *machine);
    int (*create)(struct machine *machine, unsigned index, struct error *error);
    int (*adopt)(struct machine *machine, unsigned index, const struct machine_source *source,
                 struct error *error);
    void (*destroy)(struct machine *machine, unsigned index, bool handed_over);
    /** Facts and descriptors for adopt. */
    int (*describe)(struct machine *machine, unsigned index, struct machine_facts *facts,
                    struct fdset *fds, struct error *error);
    /** Adds what keeps this part from being handed over, as far as that shows while the guest runs:
     * a kernel that lacks a feature, an object without a name, ... Asked every time somebody looks,
     * with the lock held, never during a hand-over: changes nothing and does not wait. NULL: there
     * is no such condition. */
    void (*blockers)(const struct machine *machine, unsigned index, struct blocker_list *list);
    /** Back to power-on, vCPUs paused. */
    int (*reset)(struct machine *machine, unsigned index, struct error *error);

    const struct state_type *state_type;
    /** For a part that older versions do not know: whether its state is what they stand for, so
     * that they can do without it; theirs have none. NULL: every version knows the part. */
    bool (*is_default)(const struct machine *machine);
    /** Tells several of a kind apart in a stream, e.g. "nvme0"; NULL: by index, if several. */
    const char *(*id)(const struct machine *machine, unsigned index);
    void *(*state)(struct machine *machine, unsigned index);
    /** While the guest runs elsewhere, nothing but loading changes state(): what is as it was when
     * the switch was rehearsed is not loaded again in the blackout. */
    bool settled;
    /** Brings state() up to date before it is written (without the lock: vCPUs may wait for it),
     * and the part up to date after it has been loaded (with the lock); for all indices at once.
     * Either may be NULL. */
    int (*save)(struct machine *machine, struct error *error);
    int (*apply)(struct machine *machine, struct error *error);
};

/** Every part, in build order. */
extern const struct machine_part *const machine_parts[];
extern const unsigned machine_part_count;

extern const struct machine_part machine_part_own, machine_part_files, machine_part_ram,
    machine_part_vm, machine_part_vcpu, machine_part_clock, machine_part_pci, machine_part_console,
    machine_part_serial, machine_part_power, machine_part_iommu, machine_part_vfio_pci;

/** The blockers operation of machine_part_own: states of the guest that cannot be handed over. */
void machine_own_blockers(const struct machine *machine, unsigned index, struct blocker_list *list);

/** The count of a part that every machine has exactly once. */
unsigned machine_one(const struct machine *machine);

/**
 * Lets the vCPUs run. A guest that has asked for a reset, or the like, waits for the main thread to
 * see to it: what its vCPUs would do meanwhile is not defined. Life is held, or no other thread is.
 */
void machine_run_vcpus(struct machine *machine);

/** Life is held, or no other thread is. */
void machine_set_status(struct machine *machine, enum machine_status status);

/** @return whether the guest is here and can go on, be reset or be handed over. Life is held. */
static inline bool machine_is_alive(const struct machine *machine)
{
    return machine->status == MACHINE_RUNNING || machine->status == MACHINE_PAUSED ||
           machine->status == MACHINE_PRELAUNCH;
}

/** Makes the table of what a state stream is loaded into. The machine is complete. */
void machine_make_targets(struct machine *machine);

/** Loads the kernel into guest memory and sets the boot processor's registers. */
int machine_boot(struct machine *machine, struct error *error);

/** Queues an event for the main thread. Any thread. */
void machine_post_event(struct machine *machine, enum machine_event event);

/** The same for an event of a passed-through device. */
void machine_post_device_event(struct machine *machine, enum machine_event event, unsigned device);

/** Begins and ends listening to what VFIO tells of a device. Main thread. */
int machine_watch_device(struct machine *machine, unsigned index, struct error *error);
void machine_unwatch_device(struct machine *machine, unsigned index);

/** Acts on what VFIO has told of the devices, if the guest is alive in this process. Main thread,
 * life held. */
void machine_read_notices(struct machine *machine);

/** Asks the main thread for something. Any thread. */
void machine_post_request(struct machine *machine, enum machine_request request);

/** Makes the parts' common frame: locks, buses, the wake-up of the main thread. */
int machine_new(struct machine **machine, const struct config *config, sd_event *loop,
                struct error *error);
