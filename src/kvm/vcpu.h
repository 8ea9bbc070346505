/* SPDX-License-Identifier: Apache-2.0
 *
 * A vCPU: its thread, its exit loop, and a way to have work done by that thread.
 *
 * Only the vCPU's own thread issues its ioctls once it is started, but for kvm_vcpus_load(). Others
 * pause it, give it a task (save, reset), and let it run again. Callers that pause or call must not
 * hold the machine's lock: the vCPU may be waiting for it in the middle of an exit.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "kvm/cpuid.h"
#include "kvm/vcpu_state.h"
#include "kvm/vm.h"
#include "memory/bus.h"

struct kvm_vcpu;

/** Called on the vCPU's thread, without the machine's lock. */
struct kvm_vcpu_ops {
    /** It has been let run, and is about to enter the guest. */
    void (*enters)(void *opaque);
    /** The guest shut its processor down (triple fault), which stays paused: asks for a reset. */
    void (*triple_fault)(void *opaque);
    /** KVM cannot go on; the vCPU stops. @param reason for the operator */
    void (*failed)(void *opaque, unsigned index, const char *reason);
};

/** Work for a vCPU's thread. @return 0 or a negative errno with an error */
typedef int kvm_vcpu_task(struct kvm_vcpu *vcpu, void *argument, struct error *error);

struct kvm_vcpu {
    struct kvm_vm *vm;
    unsigned index; /**< also its APIC id */
    int fd;
    struct kvm_run *run; /**< shared with the kernel */
    struct bus *mmio, *pio;
    const struct kvm_vcpu_ops *ops;
    void *opaque;
    struct kvm_vcpu_msrs msrs;      /**< which MSRs its state consists of */
    struct kvm_vcpu_state *initial; /**< as the kernel made it, for a guest reset */
    struct kvm_vcpu_state *state;   /**< where save and load have their copy */

    pthread_t thread;
    bool thread_started;
    pthread_mutex_t lock; /**< of what follows */
    pthread_cond_t changed;
    bool may_run;  /**< wanted: run guest code */
    bool ends;     /**< wanted: end the thread */
    bool in_guest; /**< is in the exit loop */
    kvm_vcpu_task *task;
    void *task_argument;
    int task_result;
    struct error task_error;

    unsigned delivery_errors; /**< in a row; the vCPU's thread only */
    uint32_t kicked;          /**< atomic: leave the exit loop soon */
    uint64_t first_entry_ns;  /**< atomic: of the latest stretch in the guest; 0 before the first */
    uint64_t last_exit_ns;    /**< atomic: when the guest last stopped */
};

/** Makes a vCPU, not yet running. @param ops, mmio, pio borrowed */
int kvm_vcpu_create(struct kvm_vcpu *vcpu, struct kvm_vm *vm, unsigned index,
                    const struct kvm_cpuid_table *cpuid, struct bus *mmio, struct bus *pio,
                    const struct kvm_vcpu_ops *ops, void *opaque, struct error *error);
/** Ends its thread. */
void kvm_vcpu_destroy(struct kvm_vcpu *vcpu);

/** Installs the handler of the signal that interrupts KVM_RUN. Once per process, before any vCPU.
 */
int kvm_vcpu_init_signals(struct error *error);

/** Lets vCPUs run guest code. */
void kvm_vcpus_run(struct kvm_vcpu *vcpus, unsigned count);

/** Stops them, all at once; returns when none runs guest code and no exit is half done. */
void kvm_vcpus_pause(struct kvm_vcpu *vcpus, unsigned count);

/**
 * Has every vCPU's thread carry out a task, in parallel, and waits for all. A running vCPU is
 * interrupted for it and goes on afterwards.
 * @return 0, or the first failure (by index)
 */
int kvm_vcpus_call(struct kvm_vcpu *vcpus, unsigned count, kvm_vcpu_task *task, void *argument,
                   struct error *error);

/** Waits until no vCPU has a task any more. @return 0, or the first failure (by index) */
int kvm_vcpus_wait(struct kvm_vcpu *vcpus, unsigned count, struct error *error);

/** Where the threads of vCPUs that stop for a hand-over wait for one another. */
struct kvm_rendezvous {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct kvm_vm_state *vm_state; /**< for the last one to fill in */
    unsigned missing;              /**< vCPUs that may be in the guest still */
    bool given_up;                 /**< one of them takes too long: the others need not wait */
};

void kvm_rendezvous_init(struct kvm_rendezvous *rendezvous);
void kvm_rendezvous_destroy(struct kvm_rendezvous *rendezvous);

/**
 * Stops all vCPUs; each one's thread goes straight on to saving its state, as soon as no other runs
 * guest code either and the state of the VM's interrupt controllers has been saved. Returns when
 * that is so: kvm_vcpus_wait() waits for the vCPUs' states.
 *
 * In this order, since the kernel may change both meanwhile: it raises a line from a work queue,
 * some time after the line's eventfd was signalled. An IOAPIC that was read after a local APIC
 * could then wait for the end of an interrupt that the latter does not have, and never raise that
 * line again. The other way round, the local APIC has an interrupt that the IOAPIC knows nothing
 * of, whose end does no harm.
 * @param vm_state    where kvm_vm_save() puts it
 * @param rendezvous  used until then
 * @param deadline_ns CLOCK_MONOTONIC; a vCPU can be stuck in a host's device
 * @return 0, or -ETIMEDOUT: nobody saves anything, all are still wanted paused. That something
 * could not be saved, kvm_vcpus_wait() returns
 */
int kvm_vcpus_stop_and_save(struct kvm_vcpu *vcpus, unsigned count, struct kvm_vm_state *vm_state,
                            struct kvm_rendezvous *rendezvous, uint64_t deadline_ns);

/**
 * Loads the state of every vCPU, in parallel. The first one's part is the caller's own, which takes
 * less time than waking a thread up would. None of them runs, or is let run meanwhile.
 */
int kvm_vcpus_load(struct kvm_vcpu *vcpus, unsigned count, struct error *error);

/** Tasks: read the state into vcpu->state; write the state after power-on. */
kvm_vcpu_task kvm_vcpu_save_task, kvm_vcpu_reset_task;
