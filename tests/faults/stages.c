/* SPDX-License-Identifier: Apache-2.0
 *
 * Prints the table of stages, a line for each: its name, its time limit in milliseconds, and which
 * sides have a part in it. For tests/system/faults.py, which makes the fault matrix from it.
 */
#include <stdio.h>

#include "update/stages.h"

int main(void)
{
    for (unsigned i = 0; i < stage_count; i++)
        printf("%s %u%s%s\n", stages[i].name, stages[i].limit_ms,
               stages[i].outgoing ? " outgoing" : "", stages[i].incoming ? " incoming" : "");
    return 0;
}
