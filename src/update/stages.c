/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of stages; docs/hand-over.md explains each. The time limits are how long the guest's
 * operator waits in the worst case before the hand-over is given up, not how long a stage takes.
 */
#include "update/stages.h"

#include <string.h>

#include "base/util.h"

const struct stage stages[] = {
    {.name = "hello",
     .outgoing = outgoing_hello,
     .incoming = incoming_hello,
     .answered = outgoing_hello_answered,
     .status = UPDATE_SETUP,
     .rehearsal = true,
     .limit_ms = 10000},
    {.name = "describe",
     .outgoing = outgoing_describe,
     .follow_up = outgoing_send_descriptors,
     .incoming = incoming_describe,
     .status = UPDATE_SETUP,
     .rehearsal = true,
     .limit_ms = 10000},
    {.name = "prepare",
     .incoming = incoming_prepare,
     .status = UPDATE_SETUP,
     .rehearsal = true,
     .limit_ms = 60000},
    {.name = "rehearse",
     .outgoing = outgoing_rehearse,
     .incoming = incoming_rehearse,
     .answered = outgoing_rehearse_answered,
     .status = UPDATE_SETUP,
     .rehearsal = true,
     .limit_ms = 20000},
    {.name = "quiesce",
     .outgoing = outgoing_quiesce,
     .incoming = incoming_quiesce,
     .undo_outgoing = outgoing_undo_quiesce,
     .status = UPDATE_ACTIVE,
     .limit_ms = 10000},
    {.name = "pause",
     .outgoing = outgoing_pause,
     .undo_outgoing = outgoing_undo_pause,
     .status = UPDATE_DEVICE,
     .quiet = true,
     .limit_ms = 2000},
    {.name = "switch",
     .outgoing = outgoing_switch,
     .incoming = incoming_switch,
     .status = UPDATE_DEVICE,
     .quiet = true,
     .limit_ms = 3000},
    {.name = "go",
     .outgoing = outgoing_go,
     .status = UPDATE_DEVICE,
     .quiet = true,
     .limit_ms = 1000},
    {.name = "run",
     .outgoing = outgoing_run,
     .status = UPDATE_DEVICE,
     .quiet = true,
     .limit_ms = 3000},
    {.name = "finish",
     .outgoing = outgoing_finish,
     .incoming = incoming_finish,
     .answered = outgoing_finish_answered,
     .status = UPDATE_DEVICE,
     .quiet = true,
     .limit_ms = 10000},
};

const unsigned stage_count = ARRAY_SIZE(stages);

const struct stage *stage_find(const char *name)
{
    for (unsigned i = 0; i < stage_count; i++) {
        if (strcmp(stages[i].name, name) == 0)
            return &stages[i];
    }
    return NULL;
}
