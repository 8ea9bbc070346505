/* SPDX-License-Identifier: Apache-2.0
 *
 * ACPI tables of a baton-1.0 machine: RSDP, XSDT, FADT, FACS, MADT, MCFG and a DSDT (dsdt.asl,
 * compiled by iasl when baton is built; CPU count, the 64-bit window and the routes of INTx are
 * in an SSDT).
 */
#pragma once

#include "boot/boot.h"

/** Writes the tables. @param rsdp out: guest-physical address of the RSDP */
int acpi_write_tables(const struct boot_config *config, uint64_t *rsdp, struct error *error);
