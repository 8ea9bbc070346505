/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: a whole machine that a hostile peer hands over: its facts, its descriptors and its
 * state, again and again as in rehearsal and switch. All of machine/ and below is the real code;
 * the kernel is fake_kernel.h's.
 *
 * The input: a byte that says what the guest has, one that says what kind of devices these are
 * (fake_device.h), one with the number of lies before the machine is adopted, then lies of 14
 * bytes: what about, log2 of the size, which field and where in it (4 bytes), value (8 bytes).
 * Those after that number are about the state, which is loaded after each of them, unless more are
 * to come first.
 *
 * What must hold: whatever the peer says, nothing of what it has handed over is changed before the
 * guest is this process's, but for who owns the mappings; the IOMMU maps nothing over the guest's
 * memory; a refusal says why, and who does not lie is not refused; a machine that was adopted
 * describes itself as the peer did; and in the end no descriptor is left.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/log.h"
#include "base/util.h"
#include "fake_kernel.h"
#include "fuzz.h"
#include "machine/internal.h"

#define GUEST_DEVICES  0x0fu /* a bit for each of devices[] */
#define GUEST_TWO_CPUS 0x10u
#define GUEST_CONSOLE  0x60u /* one of consoles[] */

#define LIE_BYTES   14u
#define MORE_LIES   0x80u /* before the state is loaded */
#define STREAM_ROOM MIB

/* --- the peer, as it is before it lies ----------------------------------------------------- */

struct peer {
    struct config config;
    struct machine_facts facts;
    struct fdset fds;
    bool lies;
};

static const struct {
    const char *option;
    const char *container, *ioas; /* NULL: the other back end's */
    uint32_t hwpt, group;
} devices[] = {
    {"vfio-pci,host=ffff:1f:1f.0,id=a,iommufd=io", .ioas = "", .hwpt = 11},
    {"vfio-pci,host=ffff:1f:1f.1,id=b,iommufd=io,ioas=second,hwpt=own", .ioas = "second",
     .hwpt = 12},
    {"vfio-pci,host=ffff:1f:1f.2,id=c", .container = "", .group = 7},
    {"vfio-pci,host=ffff:1f:1f.3,id=d,container=other,p2p=off", .container = "other", .group = 8},
};

static const char *const consoles[] = {"none", "stdio", "pty", "unix:/nowhere/console,server=on"};

static void define_guest(struct config *config, uint8_t what)
{
    const char *words[32] = {"-m",      "4M", "-kernel", "k",     "-object", "iommufd,id=io",
                             "-serial", "",   "-smp",    "cpus=1"};
    struct error error = {0};
    int count = 10, result;

    words[7] = consoles[(what & GUEST_CONSOLE) / 0x20];
    if (what & GUEST_TWO_CPUS)
        words[9] = "cpus=2";
    for (size_t i = 0; i < ARRAY_SIZE(devices); i++) {
        if (!(what & 1u << i))
            continue;
        words[count++] = "-device";
        words[count++] = devices[i].option;
    }
    result = config_parse(config, count, words, &error);
    assert(result == 0);
}

static void give(struct peer *peer, int fd, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void give(struct peer *peer, int fd, const char *format, ...)
{
    char name[FDSET_NAME_SIZE];
    struct error error = {0};
    va_list arguments;
    int result;

    va_start(arguments, format);
    vsnprintf(name, sizeof(name), format, arguments);
    va_end(arguments);
    result = fdset_add(&peer->fds, fcntl(fd, F_DUPFD_CLOEXEC, 0), name, &error);
    assert(result == 0);
}

static struct iommu_facts *add_space(struct peer *peer, enum iommu_backend backend, const char *id,
                                     const char *ioas)
{
    struct iommu_facts *facts = &peer->facts.spaces[peer->facts.space_count++];

    facts->backend = (uint8_t)backend;
    facts->ioas_id = peer->facts.space_count;
    snprintf(facts->id, sizeof(facts->id), "%s", id);
    snprintf(facts->ioas, sizeof(facts->ioas), "%s", ioas);
    facts->mapping_count = 1;
    facts->mappings[0].size = FAKE_RAM_SIZE;
    return facts;
}

static void describe_space(struct peer *peer, size_t device)
{
    struct iommu_facts *facts;

    if (devices[device].ioas) {
        facts = devices[device].ioas[0]
                    ? add_space(peer, IOMMU_BACKEND_IOMMUFD, "io", devices[device].ioas)
                    : &peer->facts.spaces[0];
        facts->hwpts[facts->hwpt_count++] = (struct iommu_hwpt){.id = devices[device].hwpt};
        return;
    }
    give(peer, fake_kernel.objects[FAKE_CONTAINER], "iommu/container/%u", peer->facts.space_count);
    give(peer, fake_kernel.objects[FAKE_GROUP], "iommu/group/%u", devices[device].group);
    facts = add_space(peer, IOMMU_BACKEND_TYPE1, devices[device].container, "");
    facts->groups[facts->group_count++].number = devices[device].group;
}

static void describe_device(struct peer *peer, unsigned index, size_t device)
{
    static const char *const others[] = {"intx/trigger", "intx/resample", "error", "request"};
    const char *id = peer->config.devices[index].id;
    CLEANUP_CLOSE int signal = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    peer->facts.devices[index] = (struct vfio_pci_facts){.devid = 30 + index,
                                                         .group = devices[device].group,
                                                         .hwpt = devices[device].hwpt,
                                                         .vector_count = FAKE_VECTORS,
                                                         .rom_size = 0x1800};
    describe_space(peer, device);
    give(peer, fake_kernel.objects[FAKE_DEVICE], "vfio/%s/device", id);
    for (unsigned i = 0; i < FAKE_VECTORS; i++)
        give(peer, signal, "vfio/%s/irq/%u", id, i);
    for (size_t i = 0; i < ARRAY_SIZE(others); i++)
        give(peer, signal, "vfio/%s/%s", id, others[i]);
}

static void describe_cpuid(struct kvm_cpuid_table *table)
{
    const struct kvm_cpuid_entry2 entries[] = {{.function = 1},
                                               {.function = 0x80000008, .eax = 40}};

    memcpy(table->entries, entries, sizeof(entries));
    table->length = sizeof(entries);
}

static void make_peer(struct peer *peer, uint8_t what)
{
    static const char *const consoles_fds[] = {"in", "out", "pty", "listener", "client"};
    CLEANUP_CLOSE int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
    unsigned index = 0;

    memset(peer, 0, sizeof(*peer));
    define_guest(&peer->config, what);
    describe_cpuid(&peer->facts.cpuid);
    give(peer, fake_kernel.objects[FAKE_RAM], "ram/0");
    give(peer, fake_kernel.objects[FAKE_FILE], "boot/kernel");
    give(peer, fake_kernel.objects[FAKE_IOMMUFD], "iommu/io");
    for (size_t i = 0; i < ARRAY_SIZE(consoles_fds); i++)
        give(peer, nothing, "chardev/serial0/%s", consoles_fds[i]);
    add_space(peer, IOMMU_BACKEND_IOMMUFD, "io", "");
    for (size_t i = 0; i < ARRAY_SIZE(devices); i++) {
        if (what & 1u << i)
            describe_device(peer, index++, i);
    }
}

/* --- lies ---------------------------------------------------------------------------------- */

struct lie {
    uint8_t what;
    unsigned size; /* 1, 2, 4 or 8 */
    uint32_t offset;
    uint64_t value;
};

static struct lie read_lie(const uint8_t *data)
{
    struct lie lie = {.what = data[0], .size = 1u << (data[1] % 4)};

    memcpy(&lie.offset, data + 2, sizeof(lie.offset));
    memcpy(&lie.value, data + 6, sizeof(lie.value));
    return lie;
}

/* The low byte of the offset chooses the field, the rest where in it; of what has a count, that
 * comes first. Nobody can say a count that does not fit: the stream would be none. */
static void twist(const struct state_type *type, void *object, const struct lie *lie)
{
    uint32_t fields = 0, at = lie->offset >> 8, count;
    const struct state_field *field;
    size_t size;

    while (type->fields[fields].name)
        fields++;
    field = &type->fields[(lie->offset & 0xff) % fields];
    if (field->capacity != 0 && at-- == 0) {
        count = (uint32_t)(lie->value % (field->capacity + 1));
        memcpy((uint8_t *)object + field->length_offset, &count, sizeof(count));
        return;
    }
    size = field->size * MAX(field->capacity, (size_t)1) - (field->kind == STATE_KIND_STRING);
    at %= size;
    memcpy((uint8_t *)object + field->offset + at, &lie->value, MIN((size_t)lie->size, size - at));
}

/* Two descriptors change places; or one is something else, or gets lost. */
static void twist_descriptors(struct peer *peer, const struct lie *lie)
{
    struct fdset_entry *entry = &peer->fds.entries[lie->offset % peer->fds.count];
    struct fdset_entry *other = &peer->fds.entries[lie->value % peer->fds.count];
    int fd = entry->fd;

    if (lie->size == 1) {
        entry->fd = other->fd;
        other->fd = fd;
    } else if (lie->size == 2) {
        dup3(fake_kernel.objects[lie->value % FAKE_OBJECTS], fd, O_CLOEXEC);
    } else {
        snprintf(entry->name, sizeof(entry->name), "lost/%u", (unsigned)fd);
    }
}

static void tell(struct peer *peer, const struct lie *lie)
{
    struct machine_facts *facts = &peer->facts;

    peer->lies = true;
    switch (lie->what % 5) {
    case 0:
        twist(&iommu_facts_type, &facts->spaces[lie->what / 5 % IOMMU_SPACES_MAX], lie);
        break;
    case 1:
        twist(&vfio_pci_facts_type, &facts->devices[lie->what / 5 % CONFIG_DEVICES_MAX], lie);
        break;
    case 2:
        twist(&kvm_cpuid_type, &facts->cpuid, lie);
        break;
    case 3:
        twist_descriptors(peer, lie);
        break;
    case 4:
        facts->space_count = lie->offset % (IOMMU_SPACES_MAX + 1);
        break;
    }
}

/* --- the machine --------------------------------------------------------------------------- */

static void check_error(int result, const struct error *error)
{
    assert(result == 0 || (result == -error->code && error->message[0] != '\0'));
}

/* @return whether the reader has taken what the peer says */
static bool send_facts(const struct peer *peer, struct machine_facts *facts)
{
    static uint8_t stream[STREAM_ROOM];
    struct error error = {0};
    size_t length;
    int result =
        machine_write_facts(&peer->config, &peer->facts, stream, sizeof(stream), &length, &error);

    if (result < 0)
        return false; /* what is no text, no peer sends */
    result = machine_read_facts(&peer->config, facts, stream, length, &error);
    check_error(result, &error);
    return result == 0;
}

/* What is handed over on is what was handed over, but for whose it is; and each address space maps
 * the guest's memory. */
static void check_description(struct machine *machine, const struct machine_facts *facts)
{
    static const struct iommu_mapping memory = {.size = FAKE_RAM_SIZE};
    static struct machine_facts again;
    struct error error = {0};
    struct fdset fds = {0};
    int result;

    memset(&again, 0, sizeof(again));
    result = machine_describe(machine, &again, &fds, &error);
    assert(result == 0 && again.space_count == facts->space_count);
    for (uint32_t i = 0; i < again.space_count; i++) {
        assert(again.spaces[i].mapping_count == 1 &&
               memcmp(&again.spaces[i].mappings[0], &memory, sizeof(memory)) == 0);
        again.spaces[i].owner_uid = facts->spaces[i].owner_uid;
        assert(memcmp(&again.spaces[i], &facts->spaces[i], sizeof(again.spaces[i])) == 0);
    }
    assert(memcmp(&again.cpuid, &facts->cpuid, sizeof(again.cpuid)) == 0);
    fdset_clear(&fds);
}

/* What the peer says of the machine's state: a copy of each object that state is loaded into. */
static void **copy_state(const struct machine *machine)
{
    void **objects = xcalloc(machine->target_count, sizeof(*objects));

    for (size_t i = 0; i < machine->target_count; i++) {
        objects[i] = xcalloc(1, machine->targets[i].type->size);
        memcpy(objects[i], machine->targets[i].object, machine->targets[i].type->size);
    }
    return objects;
}

static void free_state(const struct machine *machine, void **objects)
{
    for (size_t i = 0; i < machine->target_count; i++)
        free(objects[i]);
    free(objects);
}

/* @return whether this process would go on */
static bool load(struct machine *machine, void **objects)
{
    static uint8_t stream[STREAM_ROOM];
    struct state_writer writer;
    struct error error = {0};
    size_t length;
    int result;

    state_writer_init(&writer, stream, sizeof(stream));
    for (size_t i = 0; i < machine->target_count; i++)
        state_write(&writer, machine->targets[i].id, machine->targets[i].type, objects[i], true);
    if (state_writer_finish(&writer, &length, &error) < 0)
        return false;
    result = machine_load(machine, stream, length, &error);
    check_error(result, &error);
    return result == 0;
}

/* Everything from the ownership of the mappings on, but that the guest does not run. */
static void take_over(struct machine *machine)
{
    struct error error = {0};
    int result = machine_probe_ownership(machine, &error);

    if (result == 0)
        result = machine_take_ownership(machine, &error);
    check_error(result, &error);
    if (result < 0)
        return;
    fake_kernel.live = true;
    iommu_set_set_live(machine->spaces, true);
    result = machine_set_delivery(machine, KVM_IRQ_PROXY, &error);
    check_error(result, &error);
    result = machine_set_delivery(machine, KVM_IRQ_KERNEL, &error);
    check_error(result, &error);
    machine_settle_peers(machine);
}

static bool load_all(struct machine *machine, const uint8_t *data, size_t size)
{
    void **objects = copy_state(machine);
    bool good = load(machine, objects);

    assert(good);
    for (; good && size >= LIE_BYTES; data += LIE_BYTES, size -= LIE_BYTES) {
        struct lie lie = read_lie(data);
        size_t index = lie.what % 0x80 % machine->target_count;

        twist(machine->targets[index].type, objects[index], &lie);
        if (!(lie.what & MORE_LIES))
            good = load(machine, objects);
    }
    free_state(machine, objects);
    return good;
}

static void run(struct machine *machine, const struct machine_facts *facts, const uint8_t *data,
                size_t size)
{
    size_t capacity = machine_state_capacity(&machine->config), length;
    CLEANUP_FREE uint8_t *stream = xcalloc(1, capacity);
    struct error error = {0};
    int result = machine_save(machine, stream, capacity, &length, &error);

    assert(result == 0);
    if (load_all(machine, data, size))
        take_over(machine);
    check_description(machine, facts);
    machine_release(machine, !fake_kernel.live);
}

static bool has_both_back_ends(void)
{
    return iommu_built_in(IOMMU_BACKEND_IOMMUFD) && iommu_built_in(IOMMU_BACKEND_TYPE1);
}

static void adopt(struct peer *peer, const uint8_t *data, size_t size)
{
    static struct machine_facts facts;
    const struct config given = {.incoming = true};
    struct error error = {0};
    struct machine *machine;
    sd_event *loop = NULL;
    int result;

    memset(&facts, 0, sizeof(facts));
    if (!send_facts(peer, &facts)) {
        assert(peer->lies);
        return;
    }
    result = sd_event_new(&loop);
    assert(result >= 0);
    result = machine_adopt(&machine, &peer->config, &given, &facts, &peer->fds, loop, &error);
    check_error(result, &error);
    assert(result == 0 || peer->lies || !has_both_back_ends());
    if (result == 0)
        run(machine, &facts, data, size);
    sd_event_unref(loop);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct peer peer;
    size_t lies, at = 3;
    unsigned before;

    if (size < at)
        return 0;
    log_configure(LOG_LEVEL_ERROR, NULL);
    fake_kernel_make(data[1]);
    before = fuzz_count_descriptors();
    make_peer(&peer, data[0]);
    for (lies = data[2]; lies > 0 && size - at >= LIE_BYTES; lies--, at += LIE_BYTES) {
        struct lie lie = read_lie(data + at);

        tell(&peer, &lie);
    }
    adopt(&peer, data + at, size - at);
    fdset_clear(&peer.fds);
    assert(fuzz_count_descriptors() == before);
    return 0;
}
