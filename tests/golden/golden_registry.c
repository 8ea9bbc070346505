/* SPDX-License-Identifier: Apache-2.0
 *
 * The list of state types. Used by test_golden.c.
 */
#include "golden_registry.h"

#include "base/util.h"
#include "devices/chardev.h"
#include "devices/power.h"
#include "devices/serial.h"
#include "iommu/iommu.h"
#include "kvm/cpuid.h"
#include "kvm/vcpu_state.h"
#include "kvm/vm.h"
#include "machine/handover.h"
#include "pci/host.h"
#include "update/wire.h"
#include "vfio/pci.h"

/* struct kvm_msrs with two entries: count, padding, then index, reserved and value of each. */
static const uint32_t msrs[] = {2, 0, 0xc0000080, 0, 0xd01, 0, 0x277, 0, 0x07040600, 0x00070406};
static const struct golden_override vcpu[] = {
    {"xsave", 4096}, {"nested", 0}, {"msrs", sizeof(msrs), .content = msrs}, {0}};
static const struct golden_override cpuid[] = {{"entries", 3 * sizeof(struct kvm_cpuid_entry2)},
                                               {0}};
static const struct golden_override pci_host[] = {{"config_address", 0x80001234}, {0}};
static const struct golden_override iommu[] = {
    {"backend", 1}, {"iova", 0, 0x100000}, {"size", 0x10000}, {"offset", 0x1000, 0x1000}, {0}};
static const struct golden_override peers[] = {
    {"iova", 0x1000000, 0x100000}, {"size", 0x10000}, {0}};
static const struct golden_override vfio[] = {{"msi.control", 1},
                                              {"msi.address", 0xfee01000},
                                              {"msix.control", 0x8000},
                                              {"address", 0xfee00000, 0x1000},
                                              {"armed_index", 2},
                                              {"armed", 0},
                                              {0}};
static const struct golden_override serial[] = {{"fcr", 0x81}, {"errors", 0x02}, {0}};
static const struct golden_override power[] = {
    {"status", 0x100}, {"enable", 0x20}, {"control", 0x1c00}, {0}};

const struct golden_type golden_types[] = {
    {&kvm_vm_state_type, NULL},       {&kvm_clock_state_type, NULL},
    {&kvm_cpuid_type, cpuid},         {&kvm_vcpu_state_type, vcpu},
    {&pci_host_state_type, pci_host}, {&iommu_facts_type, iommu},
    {&vfio_pci_facts_type, NULL},     {&vfio_pci_state_type, vfio},
    {&serial_state_type, serial},     {&chardev_state_type, NULL},
    {&power_state_type, power},       {&machine_state_type, NULL},
    {&machine_definition_type, NULL}, {&wire_request_type, NULL},
    {&iommu_peers_state_type, peers}, {&wire_reply_type, NULL},
    {&wire_batch_type, NULL},
};
const size_t golden_type_count = ARRAY_SIZE(golden_types);
