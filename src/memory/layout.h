/* SPDX-License-Identifier: Apache-2.0
 *
 * The memory and port map of a baton-1.0 machine: every address that a guest can find built in.
 * It is part of what the machine version promises, so it never changes for baton-1.0.
 */
#pragma once

#include "base/util.h"

/* RAM, in a memfd from offset 0: first what fits below the hole, then the rest from 4 GiB. */
#define LAYOUT_RAM_BELOW_4G_MAX (3 * GIB) /* 0xc0000000 */
#define LAYOUT_RAM_ABOVE_4G     (4 * GIB)

/* PCI windows. The 64-bit one depends on the processor's address width, see machine/. */
#define LAYOUT_MMIO32_BASE UINT64_C(0xc0000000)
#define LAYOUT_MMIO32_SIZE UINT64_C(0x20000000)
#define LAYOUT_ECAM_BASE   UINT64_C(0xe0000000) /* PCI Express 6.0, 7.2.2 */
#define LAYOUT_ECAM_SIZE   UINT64_C(0x00100000) /* bus 0 */
#define LAYOUT_PCI_IO_BASE 0xc000u
#define LAYOUT_PCI_IO_SIZE 0x2000u

/* Interrupt controllers, in the kernel. */
#define LAYOUT_IOAPIC_BASE  UINT64_C(0xfec00000)
#define LAYOUT_LAPIC_BASE   UINT64_C(0xfee00000)
#define LAYOUT_KVM_TSS_BASE UINT64_C(0xfeffd000) /* three pages that KVM needs on Intel */

/* ACPI tables: RSDP and tables in the BIOS area, reserved in e820. */
#define LAYOUT_ACPI_BASE UINT64_C(0x000e0000)
#define LAYOUT_ACPI_SIZE UINT64_C(0x00020000)

/* Fixed devices: ports and IOAPIC inputs. */
#define LAYOUT_COM1_PORT        0x3f8u
#define LAYOUT_COM1_IRQ         4u
#define LAYOUT_PM1_EVENT_PORT   0x600u /* status and enable, 2 bytes each */
#define LAYOUT_PM1_CONTROL_PORT 0x604u
#define LAYOUT_PM_TIMER_PORT    0x608u
#define LAYOUT_RESET_PORT       0xcf9u
#define LAYOUT_RESET_VALUE      0x06u
#define LAYOUT_SCI_IRQ          9u
#define LAYOUT_S5_SLEEP_TYPE    5u /* SLP_TYPa of \_S5 */
#define LAYOUT_PCI_ADDRESS_PORT 0xcf8u
#define LAYOUT_PCI_DATA_PORT    0xcfcu

/* INTx: devices share eight inputs of the IOAPIC, by number and pin, so that neighbours do not. */
#define LAYOUT_PCI_GSI_BASE  16u
#define LAYOUT_PCI_GSI_COUNT 8u

/* The input of a device on bus 0. @param pin 0 to 3: INTA to INTD */
static inline unsigned layout_pci_gsi(unsigned device, unsigned pin)
{
    return LAYOUT_PCI_GSI_BASE + (device + pin) % LAYOUT_PCI_GSI_COUNT;
}
