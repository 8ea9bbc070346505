/* SPDX-License-Identifier: Apache-2.0
 *
 * See cpuid.h. Leaves as in Intel SDM volume 2 "CPUID" and AMD APM volume 3 appendix E.
 */
#include "kvm/cpuid.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/util.h"

#define LEAF_FEATURES        0x00000001u
#define LEAF_CACHES          0x00000004u
#define LEAF_TOPOLOGY        0x0000000bu
#define LEAF_TOPOLOGY_V2     0x0000001fu
#define LEAF_BRAND_FIRST     0x80000002u
#define LEAF_BRAND_LAST      0x80000004u
#define LEAF_ADDRESS_SIZES   0x80000008u
#define LEAF_AMD_TOPOLOGY    0x8000001eu
#define LEAF_AMD_TOPOLOGY_V2 0x80000026u

#define FEATURES_ECX_X2APIC       (1u << 21)
#define FEATURES_ECX_TSC_DEADLINE (1u << 24)
#define FEATURES_ECX_HYPERVISOR   (1u << 31)
#define FEATURES_EDX_HTT          (1u << 28)

#define TOPOLOGY_LEVEL_SMT  (1u << 8)
#define TOPOLOGY_LEVEL_CORE (2u << 8)

static const struct state_field cpuid_fields[] = {
    STATE_BLOB(struct kvm_cpuid_table, entries, length, 1),
    STATE_END,
};

static int check_cpuid(const void *object, struct error *error)
{
    const struct kvm_cpuid_table *cpuid = object;

    if (cpuid->length == 0 || cpuid->length % sizeof(struct kvm_cpuid_entry2) != 0)
        return error_set(error, EINVAL, "CPUID table of %u bytes is not a whole number of entries",
                         cpuid->length);
    return 0;
}

const struct state_type kvm_cpuid_type = {
    .name = "cpuid",
    .version = 1,
    .min_version = 1,
    .size = sizeof(struct kvm_cpuid_table),
    .fields = cpuid_fields,
    .check = check_cpuid,
};

/* Room for KVM's variable-length argument. */
union cpuid_argument {
    struct kvm_cpuid2 head;
    uint8_t
        room[sizeof(struct kvm_cpuid2) + KVM_CPUID_ENTRIES_MAX * sizeof(struct kvm_cpuid_entry2)];
};

static unsigned bits_for(unsigned count)
{
    unsigned bits = 0;

    while ((1u << bits) < count)
        bits++;
    return bits;
}

/* What depends on the number of vCPUs but not on which one it is. */
static void set_topology(struct kvm_cpuid_entry2 *entry, unsigned cpus)
{
    switch (entry->function) {
    case LEAF_FEATURES:
        entry->ebx = (entry->ebx & 0xff00ffffu) | MIN(cpus, 255u) << 16;
        entry->edx = (entry->edx & ~FEATURES_EDX_HTT) | (cpus > 1 ? FEATURES_EDX_HTT : 0);
        entry->ecx |= FEATURES_ECX_X2APIC | FEATURES_ECX_TSC_DEADLINE | FEATURES_ECX_HYPERVISOR;
        break;
    case LEAF_CACHES:
        /* Cores in the package, less one; a cache that threads shared is now a core's own. */
        entry->eax = (entry->eax & 0x03ffffffu) | (MIN(cpus, 64u) - 1) << 26;
        break;
    case LEAF_TOPOLOGY:
    case LEAF_TOPOLOGY_V2:
        entry->eax = entry->index == 1 ? bits_for(cpus) : 0;
        entry->ebx = entry->index == 0 ? 1 : entry->index == 1 ? cpus : 0;
        entry->ecx = entry->index | (entry->index == 0   ? TOPOLOGY_LEVEL_SMT
                                     : entry->index == 1 ? TOPOLOGY_LEVEL_CORE
                                                         : 0);
        break;
    case LEAF_ADDRESS_SIZES:
        entry->ecx = (entry->ecx & 0xffff0000u) | bits_for(cpus) << 12 | (cpus - 1);
        break;
    case LEAF_AMD_TOPOLOGY:
    case LEAF_AMD_TOPOLOGY_V2:
        entry->eax = entry->ebx = entry->ecx = entry->edx = 0;
        break;
    default:
        break;
    }
}

/* What tells one vCPU from another. */
static void set_identity(struct kvm_cpuid_entry2 *entry, unsigned index)
{
    switch (entry->function) {
    case LEAF_FEATURES:
        entry->ebx = (entry->ebx & 0x00ffffffu) | index << 24;
        break;
    case LEAF_TOPOLOGY:
    case LEAF_TOPOLOGY_V2:
        entry->edx = index;
        break;
    case LEAF_AMD_TOPOLOGY:
        entry->eax = index;
        entry->ebx = index;
        break;
    default:
        break;
    }
}

/* The processor's name, which KVM leaves to us. */
static void set_brand(struct kvm_cpuid_entry2 *entry)
{
    if (entry->function < LEAF_BRAND_FIRST || entry->function > LEAF_BRAND_LAST)
        return;
    /* The compiler's <cpuid.h> is hidden by ours. */
    __asm__("cpuid"
            : "=a"(entry->eax), "=b"(entry->ebx), "=c"(entry->ecx), "=d"(entry->edx)
            : "a"(entry->function), "c"(0));
}

int kvm_cpuid_read_host(struct kvm_cpuid_table *cpuid, const struct kvm_vm *vm, unsigned cpus,
                        struct error *error)
{
    CLEANUP_FREE union cpuid_argument *host = xcalloc(1, sizeof(*host));

    host->head.nent = KVM_CPUID_ENTRIES_MAX;
    if (ioctl(vm->kvm_fd, KVM_GET_SUPPORTED_CPUID, host) < 0)
        return error_set_errno(error, errno, "KVM_GET_SUPPORTED_CPUID failed");
    for (unsigned i = 0; i < host->head.nent; i++) {
        set_brand(&host->head.entries[i]);
        set_topology(&host->head.entries[i], cpus);
    }
    cpuid->length = host->head.nent * (uint32_t)sizeof(struct kvm_cpuid_entry2);
    memcpy(cpuid->entries, host->head.entries, cpuid->length);
    return 0;
}

int kvm_cpuid_apply(const struct kvm_cpuid_table *cpuid, int vcpu_fd, unsigned index,
                    struct error *error)
{
    CLEANUP_FREE union cpuid_argument *own = xcalloc(1, sizeof(*own));

    own->head.nent = cpuid->length / (uint32_t)sizeof(struct kvm_cpuid_entry2);
    memcpy(own->head.entries, cpuid->entries, cpuid->length);
    for (unsigned i = 0; i < own->head.nent; i++)
        set_identity(&own->head.entries[i], index);
    if (ioctl(vcpu_fd, KVM_SET_CPUID2, own) < 0)
        return error_set_errno(error, errno, "vCPU %u: KVM_SET_CPUID2 failed", index);
    return 0;
}

unsigned kvm_cpuid_physical_bits(const struct kvm_cpuid_table *cpuid)
{
    struct kvm_cpuid_entry2 entry;

    for (uint32_t at = 0; at + sizeof(entry) <= cpuid->length; at += (uint32_t)sizeof(entry)) {
        memcpy(&entry, cpuid->entries + at, sizeof(entry));
        if (entry.function == LEAF_ADDRESS_SIZES)
            return entry.eax & 0xff;
    }
    return 36; /* what a processor without that leaf has */
}
