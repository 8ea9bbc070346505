/* SPDX-License-Identifier: Apache-2.0
 *
 * What makes a hand-over of a machine impossible, known while the guest runs: a loop over the
 * parts, each of which knows its own conditions, and the conditions of the machine as a whole.
 * Called by update/ on the main thread.
 */
#include "base/util.h"
#include "machine/internal.h"

void machine_blockers(struct machine *machine, struct blocker_list *list)
{
    pthread_mutex_lock(&machine->lock);
    for (unsigned i = 0; i < machine_part_count; i++) {
        const struct machine_part *part = machine_parts[i];

        for (unsigned j = 0; part->blockers && j < part->count(machine); j++)
            part->blockers(machine, j, list);
    }
    pthread_mutex_unlock(&machine->lock);
}

/* A guest that is dead here would be no more alive there. */
void machine_own_blockers(const struct machine *machine, unsigned index, struct blocker_list *list)
{
    (void)index;
    if (machine_status(machine) == MACHINE_SHUTDOWN)
        blocker_add(list, "guest", "it has powered off", "");
    if (machine_status(machine) == MACHINE_INTERNAL_ERROR)
        blocker_add(list, "guest", "it cannot go on (status 'internal-error')",
                    "end this process with quit and start the guest anew");
}
