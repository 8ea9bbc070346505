/* SPDX-License-Identifier: Apache-2.0
 *
 * See vcpu_state.h. The order of the writes matters to KVM; where it does, a comment says why.
 */
#include "kvm/vcpu_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/util.h"

/* MSR indices, Intel SDM volume 4 and Linux's Documentation/virt/kvm/x86/msr.rst. */
#define MSR_TSC                0x00000010u
#define MSR_TSC_DEADLINE       0x000006e0u
#define MSR_KVM_WALL_CLOCK     0x00000011u
#define MSR_KVM_WALL_CLOCK_NEW 0x4b564d00u
#define MSR_MTRR_DEF_TYPE      0x000002ffu

/* Memory type range registers (Intel SDM volume 3, "MTRRs"), of which KVM's list says nothing:
 * eight variable ranges of two registers each, the fixed ones, and the default. */
static const uint32_t mtrrs[] = {
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206,
    0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d,
    0x20e, 0x20f, 0x250, 0x258, 0x259, 0x268, 0x269,
    0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, MSR_MTRR_DEF_TYPE,
};

#define MTRR_ENABLE     (1u << 11)
#define MTRR_WRITE_BACK 6u

static const struct state_field vcpu_fields[] = {
    STATE_UINT_RANGE(struct kvm_vcpu_state, mp_state, 1, 0, KVM_MP_STATE_AP_RESET_HOLD, 0),
    STATE_UINT(struct kvm_vcpu_state, tsc_offset, 1),
    STATE_BYTES(struct kvm_vcpu_state, regs, 1),
    STATE_BYTES(struct kvm_vcpu_state, sregs, 1),
    STATE_BYTES(struct kvm_vcpu_state, xcrs, 1),
    STATE_BYTES(struct kvm_vcpu_state, debugregs, 1),
    STATE_BYTES(struct kvm_vcpu_state, events, 1),
    STATE_BYTES(struct kvm_vcpu_state, lapic, 1),
    STATE_BLOB(struct kvm_vcpu_state, xsave, xsave_length, 1),
    STATE_BLOB(struct kvm_vcpu_state, nested, nested_length, 1),
    STATE_BLOB(struct kvm_vcpu_state, msrs, msrs_length, 1),
    STATE_END,
};

static struct kvm_msrs *msrs_of(const struct kvm_vcpu_state *state)
{
    return (struct kvm_msrs *)state->msrs;
}

static uint32_t msrs_size(uint32_t count)
{
    return (uint32_t)(sizeof(struct kvm_msrs) + count * sizeof(struct kvm_msr_entry));
}

static int check_vcpu(const void *object, struct error *error)
{
    const struct kvm_vcpu_state *state = object;

    if (state->xsave_length < sizeof(struct kvm_xsave))
        return error_set(error, EINVAL, "xsave area of %u bytes is too short", state->xsave_length);
    if (state->msrs_length < sizeof(struct kvm_msrs) || msrs_of(state)->nmsrs > KVM_VCPU_MSRS_MAX ||
        state->msrs_length != msrs_size(msrs_of(state)->nmsrs))
        return error_set(error, EINVAL, "%u bytes of MSRs are not what their count says",
                         state->msrs_length);
    if (state->nested_length && state->nested_length < sizeof(struct kvm_nested_state))
        return error_set(error, EINVAL, "nested state of %u bytes is too short",
                         state->nested_length);
    return 0;
}

const struct state_type kvm_vcpu_state_type = {
    .name = "vcpu",
    .version = 1,
    .min_version = 1,
    .size = sizeof(struct kvm_vcpu_state),
    .fields = vcpu_fields,
    .check = check_vcpu,
};

/* KVM's variable-length arguments. */
union one_msr_argument {
    struct kvm_msrs head;
    uint8_t room[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)];
};

union msr_list_argument {
    struct kvm_msr_list head;
    uint8_t room[sizeof(struct kvm_msr_list) + KVM_VCPU_MSRS_MAX * sizeof(uint32_t)];
};

/* The TSC follows from its offset. Writing a wall clock MSR makes KVM write to guest memory at
 * once, which a rehearsal must not; guests write it anew whenever they want to know the time. */
static bool left_out(uint32_t index)
{
    return index == MSR_TSC || index == MSR_KVM_WALL_CLOCK || index == MSR_KVM_WALL_CLOCK_NEW;
}

/* The list that KVM gives contains MSRs that this processor or CPUID does not have: KVM takes none
 * of those. A call that fails is something else. @return 1 or 0; -1 with errno set */
static int readable_and_writable(int vcpu_fd, uint32_t index)
{
    union one_msr_argument one = {.room = {0}};
    int done;

    one.head.nmsrs = 1;
    one.head.entries[0].index = index;
    done = ioctl(vcpu_fd, KVM_GET_MSRS, &one);
    return done == 1 ? ioctl(vcpu_fd, KVM_SET_MSRS, &one) : done;
}

static int add_msrs(struct kvm_vcpu_msrs *msrs, int vcpu_fd, const uint32_t *indices,
                    uint32_t count, struct error *error)
{
    for (uint32_t i = 0; i < count; i++) {
        int usable = left_out(indices[i]) ? 0 : readable_and_writable(vcpu_fd, indices[i]);

        if (usable < 0)
            return error_set_errno(error, errno, "cannot ask KVM for MSR 0x%x", indices[i]);
        if (usable && msrs->count == KVM_VCPU_MSRS_MAX)
            return error_set(error, ENOTSUP, "this processor has more than %u MSRs",
                             KVM_VCPU_MSRS_MAX);
        if (usable)
            msrs->indices[msrs->count++] = indices[i];
    }
    return 0;
}

static int find_msrs(struct kvm_vcpu_msrs *msrs, const struct kvm_vm *vm, int vcpu_fd,
                     struct error *error)
{
    CLEANUP_FREE union msr_list_argument *list = xcalloc(1, sizeof(*list));
    int ret;

    list->head.nmsrs = KVM_VCPU_MSRS_MAX;
    if (ioctl(vm->kvm_fd, KVM_GET_MSR_INDEX_LIST, list) < 0)
        return error_set_errno(error, errno, "KVM_GET_MSR_INDEX_LIST failed");
    msrs->count = 0;
    ret = add_msrs(msrs, vcpu_fd, list->head.indices, list->head.nmsrs, error);
    return ret < 0 ? ret : add_msrs(msrs, vcpu_fd, mtrrs, ARRAY_SIZE(mtrrs), error);
}

int kvm_vcpu_find_msrs(struct kvm_vcpu_msrs *msrs, const struct kvm_vm *vm, int vcpu_fd,
                       struct error *error)
{
    int xsave = kvm_vm_check(vm, KVM_CAP_XSAVE2, error);
    int nested = kvm_vm_check(vm, KVM_CAP_NESTED_STATE, error);
    int ret;

    if (xsave < 0 || nested < 0)
        return -error->code;
    ret = find_msrs(msrs, vm, vcpu_fd, error);
    if (ret < 0)
        return ret;
    msrs->xsave_size = MAX((uint32_t)xsave, (uint32_t)sizeof(struct kvm_xsave));
    msrs->nested_size = (uint32_t)nested;
    if (msrs->xsave_size > KVM_VCPU_XSAVE_MAX || msrs->nested_size > KVM_VCPU_NESTED_MAX)
        return error_set(error, ENOTSUP,
                         "this processor's xsave area (%u bytes) or nested state (%u bytes) is "
                         "larger than this version of baton can hand over",
                         msrs->xsave_size, msrs->nested_size);
    return 0;
}

int kvm_vcpu_enable_caches(int vcpu_fd, struct error *error)
{
    union one_msr_argument one = {.room = {0}};

    one.head.nmsrs = 1;
    one.head.entries[0].index = MSR_MTRR_DEF_TYPE;
    one.head.entries[0].data = MTRR_ENABLE | MTRR_WRITE_BACK;
    /* One that KVM does not take is one that the processor does not have. */
    if (ioctl(vcpu_fd, KVM_SET_MSRS, &one) < 0)
        return error_set_errno(error, errno, "KVM_SET_MSRS of the MTRRs failed");
    return 0;
}

static int tsc_offset(int vcpu_fd, unsigned long request, uint64_t *offset, struct error *error)
{
    struct kvm_device_attr attribute = {
        .group = KVM_VCPU_TSC_CTRL,
        .attr = KVM_VCPU_TSC_OFFSET,
        .addr = (uintptr_t)offset,
    };

    if (ioctl(vcpu_fd, request, &attribute) < 0)
        return error_set_errno(error, errno, "KVM_VCPU_TSC_OFFSET failed");
    return 0;
}

static int get_msrs(int vcpu_fd, const struct kvm_vcpu_msrs *msrs, struct kvm_vcpu_state *state,
                    struct error *error)
{
    struct kvm_msrs *argument = msrs_of(state);
    int done;

    argument->nmsrs = msrs->count;
    argument->pad = 0;
    for (uint32_t i = 0; i < msrs->count; i++)
        argument->entries[i] = (struct kvm_msr_entry){.index = msrs->indices[i]};
    done = ioctl(vcpu_fd, KVM_GET_MSRS, argument);
    if (done < 0)
        return error_set_errno(error, errno, "KVM_GET_MSRS failed");
    if (done != (int)msrs->count)
        return error_set(error, EIO, "KVM_GET_MSRS stopped at MSR 0x%x", msrs->indices[done]);
    state->msrs_length = msrs_size(msrs->count);
    return 0;
}

static int set_msrs(int vcpu_fd, const struct kvm_vcpu_state *state, struct error *error)
{
    const struct kvm_msrs *argument = msrs_of(state);
    int done = ioctl(vcpu_fd, KVM_SET_MSRS, argument);

    if (done < 0)
        return error_set_errno(error, errno, "KVM_SET_MSRS failed");
    if (done != (int)argument->nmsrs)
        return error_set(error, EIO, "KVM_SET_MSRS stopped at MSR 0x%x",
                         argument->entries[done].index);
    return 0;
}

/* Once more, after the local APIC: the write that loads the APIC cancels its timer. */
static int set_deadline(int vcpu_fd, const struct kvm_vcpu_state *state, struct error *error)
{
    const struct kvm_msrs *msrs = msrs_of(state);
    union one_msr_argument one = {.room = {0}};

    for (uint32_t i = 0; i < msrs->nmsrs; i++) {
        if (msrs->entries[i].index != MSR_TSC_DEADLINE)
            continue;
        one.head.nmsrs = 1;
        one.head.entries[0] = msrs->entries[i];
        if (ioctl(vcpu_fd, KVM_SET_MSRS, &one) != 1)
            return error_set(error, EIO, "KVM_SET_MSRS of the TSC deadline failed");
    }
    return 0;
}

/* Plain get and set ioctls with a fixed structure. */
struct register_set {
    unsigned long get, set;
    size_t offset;
    const char *name;
};

#define REGISTER_SET(get_, set_, member)                                                           \
    {                                                                                              \
        .get = (get_), .set = (set_), .offset = offsetof(struct kvm_vcpu_state, member),           \
        .name = #member                                                                            \
    }

/* In the order of writing: the APIC's mode is part of sregs, so the APIC itself comes later. */
static const struct register_set register_sets[] = {
    REGISTER_SET(KVM_GET_XCRS, KVM_SET_XCRS, xcrs),
    REGISTER_SET(KVM_GET_SREGS2, KVM_SET_SREGS2, sregs),
    REGISTER_SET(KVM_GET_REGS, KVM_SET_REGS, regs),
    REGISTER_SET(KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, debugregs),
};

static int get_registers(int vcpu_fd, const struct register_set *set, struct kvm_vcpu_state *state,
                         struct error *error)
{
    if (ioctl(vcpu_fd, set->get, (uint8_t *)state + set->offset) < 0)
        return error_set_errno(error, errno, "cannot read %s", set->name);
    return 0;
}

static int set_registers(int vcpu_fd, const struct register_set *set,
                         const struct kvm_vcpu_state *state, struct error *error)
{
    if (ioctl(vcpu_fd, set->set, (const uint8_t *)state + set->offset) < 0)
        return error_set_errno(error, errno, "cannot write %s", set->name);
    return 0;
}

static int get_xsave(int vcpu_fd, const struct kvm_vcpu_msrs *msrs, struct kvm_vcpu_state *state,
                     struct error *error)
{
    bool large = msrs->xsave_size > sizeof(struct kvm_xsave);

    if (ioctl(vcpu_fd, large ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, state->xsave) < 0)
        return error_set_errno(error, errno, "KVM_GET_XSAVE failed");
    state->xsave_length = msrs->xsave_size;
    return 0;
}

static int get_nested(int vcpu_fd, const struct kvm_vcpu_msrs *msrs, struct kvm_vcpu_state *state,
                      struct error *error)
{
    struct kvm_nested_state header = {.size = msrs->nested_size};

    state->nested_length = 0;
    if (msrs->nested_size == 0)
        return 0;
    memcpy(state->nested, &header, sizeof(header));
    if (ioctl(vcpu_fd, KVM_GET_NESTED_STATE, state->nested) < 0)
        return error_set_errno(error, errno, "KVM_GET_NESTED_STATE failed");
    memcpy(&header, state->nested, sizeof(header));
    state->nested_length = header.size;
    return 0;
}

static int set_nested(int vcpu_fd, const struct kvm_vcpu_state *state, struct error *error)
{
    struct kvm_nested_state header;

    if (state->nested_length == 0)
        return 0;
    memcpy(&header, state->nested, sizeof(header));
    if (header.size > state->nested_length)
        return error_set(error, EINVAL, "nested state claims %u bytes, has %u", header.size,
                         state->nested_length);
    if (ioctl(vcpu_fd, KVM_SET_NESTED_STATE, state->nested) < 0)
        return error_set_errno(error, errno, "KVM_SET_NESTED_STATE failed");
    return 0;
}

int kvm_vcpu_leave_nested(int vcpu_fd, const struct kvm_vcpu_state *initial, struct error *error)
{
    return set_nested(vcpu_fd, initial, error);
}

static int get_lapic_and_events(int vcpu_fd, struct kvm_vcpu_state *state, struct error *error)
{
    struct kvm_mp_state mp_state;

    /* Before the events: reading it makes KVM take note of a pending INIT or SIPI. */
    if (ioctl(vcpu_fd, KVM_GET_MP_STATE, &mp_state) < 0)
        return error_set_errno(error, errno, "KVM_GET_MP_STATE failed");
    state->mp_state = mp_state.mp_state;
    if (ioctl(vcpu_fd, KVM_GET_LAPIC, state->lapic) < 0)
        return error_set_errno(error, errno, "KVM_GET_LAPIC failed");
    if (ioctl(vcpu_fd, KVM_GET_VCPU_EVENTS, state->events) < 0)
        return error_set_errno(error, errno, "KVM_GET_VCPU_EVENTS failed");
    return 0;
}

/* Last: other writes may change what is pending. */
static int set_lapic_and_events(int vcpu_fd, const struct kvm_vcpu_state *state,
                                struct error *error)
{
    struct kvm_mp_state mp_state = {.mp_state = state->mp_state};
    struct kvm_vcpu_events events;
    int ret;

    if (ioctl(vcpu_fd, KVM_SET_LAPIC, state->lapic) < 0)
        return error_set_errno(error, errno, "KVM_SET_LAPIC failed");
    ret = set_deadline(vcpu_fd, state, error);
    if (ret < 0)
        return ret;
    if (ioctl(vcpu_fd, KVM_SET_MP_STATE, &mp_state) < 0)
        return error_set_errno(error, errno, "KVM_SET_MP_STATE failed");
    memcpy(&events, state->events, sizeof(events));
    events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
    if (state->mp_state == KVM_MP_STATE_SIPI_RECEIVED)
        events.flags |= KVM_VCPUEVENT_VALID_SIPI_VECTOR;
    if (ioctl(vcpu_fd, KVM_SET_VCPU_EVENTS, &events) < 0)
        return error_set_errno(error, errno, "KVM_SET_VCPU_EVENTS failed");
    return 0;
}

int kvm_vcpu_get_state(int vcpu_fd, const struct kvm_vcpu_msrs *msrs, struct kvm_vcpu_state *state,
                       struct error *error)
{
    int ret = get_lapic_and_events(vcpu_fd, state, error);

    for (size_t i = 0; ret == 0 && i < ARRAY_SIZE(register_sets); i++)
        ret = get_registers(vcpu_fd, &register_sets[i], state, error);
    if (ret == 0)
        ret = get_xsave(vcpu_fd, msrs, state, error);
    if (ret == 0)
        ret = get_msrs(vcpu_fd, msrs, state, error);
    if (ret == 0)
        ret = tsc_offset(vcpu_fd, KVM_GET_DEVICE_ATTR, &state->tsc_offset, error);
    if (ret == 0)
        ret = get_nested(vcpu_fd, msrs, state, error);
    return ret;
}

int kvm_vcpu_set_state(int vcpu_fd, const struct kvm_vcpu_state *state, struct error *error)
{
    uint64_t offset = state->tsc_offset;
    int ret = tsc_offset(vcpu_fd, KVM_SET_DEVICE_ATTR, &offset, error);

    for (size_t i = 0; ret == 0 && i < ARRAY_SIZE(register_sets); i++)
        ret = set_registers(vcpu_fd, &register_sets[i], state, error);
    if (ret == 0 && ioctl(vcpu_fd, KVM_SET_XSAVE, state->xsave) < 0)
        ret = error_set_errno(error, errno, "KVM_SET_XSAVE failed");
    if (ret == 0)
        ret = set_msrs(vcpu_fd, state, error);
    if (ret == 0)
        ret = set_nested(vcpu_fd, state, error);
    if (ret == 0)
        ret = set_lapic_and_events(vcpu_fd, state, error);
    return ret;
}
