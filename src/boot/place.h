/* SPDX-License-Identifier: Apache-2.0
 *
 * Where boot/ puts things in low guest memory. Private to this folder: once the kernel runs, all
 * of it but the ACPI tables is the kernel's to overwrite.
 */
#pragma once

#include "base/util.h"

#define PLACE_BIOS_DATA      UINT64_C(0x400)
#define PLACE_BIOS_DATA_SIZE UINT64_C(0x100)
#define PLACE_GDT            UINT64_C(0x500)
#define PLACE_PVH_INFO       UINT64_C(0x6000) /* one page: start info, module, memory map */
#define PLACE_ZERO_PAGE      UINT64_C(0x7000) /* struct boot_params */
#define PLACE_PAGE_TABLES    UINT64_C(0x9000) /* six pages: 4 GiB in pages of 2 MiB */
#define PLACE_CMDLINE        UINT64_C(0x20000)
#define PLACE_CMDLINE_SIZE   UINT64_C(0x10000)
#define PLACE_EBDA           UINT64_C(0x9fc00) /* conventional memory ends here */
#define PLACE_HIGH_MEMORY    MIB               /* kernels go here or above */
