/* SPDX-License-Identifier: Apache-2.0
 *
 * What a hand-over does with a machine; used by update/ only. The outgoing side calls these on the
 * thread of the hand-over while the main thread lives on, the incoming side on its main thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <systemd/sd-event.h>

#include "base/blocker.h"
#include "base/error.h"
#include "base/fdset.h"
#include "iommu/iommu.h"
#include "kvm/cpuid.h"
#include "kvm/irq.h"
#include "machine/config.h"
#include "machine/machine.h"
#include "state/state.h"
#include "vfio/pci.h"

/** What every part must know to be adopted, beyond the definition. */
struct machine_facts {
    struct kvm_cpuid_table cpuid;
    uint32_t space_count;
    struct iommu_facts
        spaces[IOMMU_SPACES_MAX]; /**< first those of the iommufd objects, in order */
    struct vfio_pci_facts devices[CONFIG_DEVICES_MAX];
};

/* --- blockers ------------------------------------------------------------------------------ */

/**
 * Adds everything that is known to make a hand-over of this machine impossible. The guest may run,
 * and no hand-over may be under way: some parts ask the kernel as the owner of their objects.
 */
void machine_blockers(struct machine *machine, struct blocker_list *list);

/* --- descriptions -------------------------------------------------------------------------- */

/** Collects facts and descriptors of every part. The guest may run. */
int machine_describe(struct machine *machine, struct machine_facts *facts, struct fdset *fds,
                     struct error *error);

/** Tables of what has no home in a lower folder; for the golden streams. */
extern const struct state_type machine_state_type, machine_definition_type;

/** Writes definition, or facts, as a stream of state sections. */
int machine_write_definition(const struct config *config, void *bytes, size_t capacity,
                             size_t *length, struct error *error);
int machine_write_facts(const struct config *config, const struct machine_facts *facts, void *bytes,
                        size_t capacity, size_t *length, struct error *error);

/** Reads them back; hostile input. */
int machine_read_definition(struct config *config, const void *bytes, size_t length,
                            struct error *error);
int machine_read_facts(const struct config *config, struct machine_facts *facts, const void *bytes,
                       size_t length, struct error *error);

/**
 * Builds a machine out of what another process has described, in MACHINE_INMIGRATE, interrupts
 * held.
 * @param config the definition
 * @param given  this process's command line: a console that it names takes the place of the
 *               definition's, unless it is the same one, which stays open as it is
 */
int machine_adopt(struct machine **machine, const struct config *config, const struct config *given,
                  const struct machine_facts *facts, struct fdset *fds, sd_event *loop,
                  struct error *error);

/* --- state --------------------------------------------------------------------------------- */

/** @return bytes that the state of this machine never exceeds. */
size_t machine_state_capacity(const struct config *config);

/** Reads the state of all parts and writes it as a stream. The guest may run (a rehearsal). */
int machine_save(struct machine *machine, void *bytes, size_t capacity, size_t *length,
                 struct error *error);

/** Loads a stream into all parts. All or nothing as far as checks go. The guest does not run. */
int machine_load(struct machine *machine, const void *bytes, size_t length, struct error *error);

/* --- the guest's life ---------------------------------------------------------------------- */

/**
 * Outgoing: stops the guest for the switch. From here to machine_undo_pause() or
 * machine_handed_over() whoever else wants to change its life is refused.
 * @param limit_ms the guest goes on if it takes longer to stop; a reset that is under way is waited
 *                 for in any case
 * @return 0; -ESHUTDOWN when the guest has powered off or failed meanwhile; -ETIMEDOUT
 */
int machine_pause_for_switch(struct machine *machine, unsigned limit_ms, struct error *error);

/** Outgoing: the guest goes on here as before. */
void machine_undo_pause(struct machine *machine);

/** Outgoing: the guest runs elsewhere now; MACHINE_POSTMIGRATE. */
void machine_handed_over(struct machine *machine);

/**
 * Incoming: does what can be done for the guest's first steps here, see kvm/warm_up.h.
 * @return bytes of guest memory, BARs among them, that it will not have to wait for
 */
uint64_t machine_warm_up(struct machine *machine, unsigned limit_ms);

/**
 * Incoming: lets the guest run, or be paused, as it was.
 * @param enters called on a vCPU's thread before the guest's first instruction here, and whenever a
 *               vCPU enters the guest after a pause; on several threads at once
 * @param opaque for it; valid as long as the machine
 */
void machine_run_adopted(struct machine *machine, void (*enters)(void *opaque), void *opaque);

/** Times of each vCPU: latest exit from and entry into the guest, CLOCK_MONOTONIC ns. */
void machine_vcpu_times(const struct machine *machine, unsigned index, uint64_t *last_exit_ns,
                        uint64_t *first_entry_ns);

/** The event loop, borrowed. */
sd_event *machine_loop(const struct machine *machine);

/** @return how many hand-overs the guest has behind it */
uint32_t machine_generation(const struct machine *machine);

/** @return whether the guest was running when its state was last saved or loaded */
bool machine_was_running(const struct machine *machine);

/** Changes how interrupts of passed-through devices reach the guest, see kvm/irq.h. */
int machine_set_delivery(struct machine *machine, enum kvm_irq_delivery delivery,
                         struct error *error);

/** Ownership of all DMA mappings, see iommu/iommu.h: the outgoing side releases it, the incoming
 * one takes it, the outgoing one takes it back when the hand-over is undone. Probing tells either
 * side whether that would work. The guest may run. */
int machine_release_ownership(struct machine *machine, struct error *error);
int machine_take_ownership(struct machine *machine, struct error *error);
int machine_take_back_ownership(struct machine *machine, struct error *error);
int machine_probe_ownership(struct machine *machine, struct error *error);

/** Incoming, after the go: see iommu_set_settle_peers(). */
void machine_settle_peers(struct machine *machine);

/** Input of the console: off while the guest changes hands. */
void machine_set_console_active(struct machine *machine, bool active);

/** Destroys it. @param handed_over its devices and descriptors live on in another process */
void machine_release(struct machine *machine, bool handed_over);
