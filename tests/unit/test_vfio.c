/* SPDX-License-Identifier: Apache-2.0
 *
 * Unit tests of vfio/ without VFIO: the device is a memfd whose bytes are its regions, and ioctl()
 * and the functions of kvm/ are fakes that keep a record. What the kernel really does is the system
 * tests' business; here are the things a real device never does, and the order of calls.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/util.h"
#include "kvm/vfio.h"
#include "memory/bus.h"
#include "memory/layout.h"
#include "pci/registers.h"
#include "vfio/function.h"

#define VECTORS   5u
#define CONFIG_AT 0x100000u /* where regions are in the memfd */
#define BAR0_SIZE 0x4000u
#define TABLE_AT  0x2000u
#define PBA_AT    0x3000u
#define GUEST_BAR UINT64_C(0xc0004000)

struct kvm_irq {
    bool open, level, unheard;
    int eventfd;
    struct msi_message message;
};

/* --- what the fakes record --- */

struct record {
    char log[4096]; /* "arm 0+1 -1;" "unmask 0;" ... in order */
    int fail_set_irqs;
    int fail_irq_info[VFIO_PCI_NUM_IRQS]; /* errno, by index */
    unsigned slots, maps, ioctls, rom_queries;
    int fail_map;
    bool noresize;
    bool intx;                 /* the function offers it, and so it does errors and requests */
    bool no_mmap, no_resample; /* as with mediated devices */
};

static struct record record;

static void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void note(const char *format, ...)
{
    size_t used = strlen(record.log);
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(record.log + used, sizeof(record.log) - used, format, arguments);
    va_end(arguments);
}

static void forget(void)
{
    record.log[0] = '\0';
    record.ioctls = 0;
    record.maps = 0;
}

static int fake_region(struct vfio_region_info *info)
{
    switch (info->index) {
    case 0:
        info->flags =
            VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE | VFIO_REGION_INFO_FLAG_MMAP;
        info->size = BAR0_SIZE;
        info->offset = 0;
        break;
    case 2: /* below a page, mappable */
        info->flags =
            VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE | VFIO_REGION_INFO_FLAG_MMAP;
        info->size = 256;
        info->offset = 0x10000;
        break;
    case 3: /* below a page, not mappable */
        info->flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
        info->size = 256;
        info->offset = 0x20000;
        break;
    case VFIO_PCI_ROM_REGION_INDEX:
        record.rom_queries++;
        info->size = 16;
        info->offset = CONFIG_AT + 0x10000;
        break;
    case VFIO_PCI_CONFIG_REGION_INDEX:
        info->flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
        info->size = 4096;
        info->offset = CONFIG_AT;
        break;
    default:
        info->size = 0;
        break;
    }
    if (record.no_mmap)
        info->flags &= ~(uint32_t)VFIO_REGION_INFO_FLAG_MMAP;
    return 0;
}

static int fake_intx(const struct vfio_irq_set *set)
{
    bool unmask = set->flags & VFIO_IRQ_SET_ACTION_UNMASK;

    if (unmask && record.no_resample && (set->flags & VFIO_IRQ_SET_DATA_EVENTFD)) {
        errno = ENOTTY;
        return -1;
    }
    if (unmask)
        note("intx %s;", set->flags & VFIO_IRQ_SET_DATA_EVENTFD ? "resample" : "unmask");
    else
        note("intx %s;", set->flags & VFIO_IRQ_SET_DATA_NONE ? "off" : "on");
    return 0;
}

static int fake_set_irqs(const struct vfio_irq_set *set)
{
    int32_t fd = 0;

    if (record.fail_set_irqs) {
        errno = record.fail_set_irqs;
        return -1;
    }
    if (set->index == VFIO_PCI_ERR_IRQ_INDEX || set->index == VFIO_PCI_REQ_IRQ_INDEX) {
        memcpy(&fd, set->data, sizeof(fd));
        note("%s %s;", set->index == VFIO_PCI_ERR_IRQ_INDEX ? "error" : "request",
             fd == -1 ? "off" : "on");
        return 0;
    }
    if (set->index == VFIO_PCI_INTX_IRQ_INDEX)
        return fake_intx(set);
    if (set->flags & VFIO_IRQ_SET_DATA_NONE) {
        note("disarm;");
        return 0;
    }
    memcpy(&fd, set->data, sizeof(fd));
    note("arm %u+%u%s;", set->start, set->count, fd == -1 ? " none" : "");
    return 0;
}

int ioctl(int fd, unsigned long request, ...)
{
    struct vfio_device_info *device;
    struct vfio_irq_info *irq;
    va_list arguments;
    void *argument;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    record.ioctls++;
    switch (request) {
    case VFIO_DEVICE_GET_INFO:
        device = argument;
        device->flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
        device->num_regions = VFIO_PCI_NUM_REGIONS;
        device->num_irqs = VFIO_PCI_NUM_IRQS;
        return 0;
    case VFIO_DEVICE_GET_REGION_INFO:
        return fake_region(argument);
    case VFIO_DEVICE_GET_IRQ_INFO:
        irq = argument;
        if (record.fail_irq_info[irq->index]) {
            errno = record.fail_irq_info[irq->index];
            return -1;
        }
        if (record.intx && irq->index != VFIO_PCI_MSIX_IRQ_INDEX &&
            irq->index != VFIO_PCI_MSI_IRQ_INDEX) {
            irq->flags = VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED;
            irq->count = 1;
            return 0;
        }
        irq->flags = VFIO_IRQ_INFO_EVENTFD | (record.noresize ? VFIO_IRQ_INFO_NORESIZE : 0);
        irq->count = irq->index == VFIO_PCI_MSIX_IRQ_INDEX  ? VECTORS
                     : irq->index == VFIO_PCI_MSI_IRQ_INDEX ? 2
                                                            : 0;
        return 0;
    case VFIO_DEVICE_SET_IRQS:
        return fake_set_irqs(argument);
    case VFIO_DEVICE_RESET:
        note("reset;");
        return 0;
    default:
        errno = ENOTTY;
        return -1;
    }
}

int kvm_irq_create(struct kvm_vm *vm, int eventfd, struct kvm_irq **irq, struct error *error)
{
    *irq = xcalloc(1, sizeof(**irq));
    (*irq)->eventfd = eventfd;
    return 0;
}

int kvm_irq_create_level(struct kvm_vm *vm, unsigned gsi, int trigger, int resample,
                         struct kvm_irq **irq, struct error *error)
{
    kvm_irq_create(vm, trigger, irq, error);
    (*irq)->level = true;
    note("level %u;", gsi);
    return 0;
}

void kvm_irq_set_unheard(struct kvm_irq *irq, bool unheard)
{
    irq->unheard = unheard;
}

void kvm_irq_destroy(struct kvm_irq *irq)
{
    free(irq);
}

int kvm_irq_unmask(struct kvm_irq *irq, const struct msi_message *message, struct error *error)
{
    irq->open = true;
    assert_int_equal(irq->level, message == NULL);
    if (irq->level) {
        note("open;");
        return 0;
    }
    irq->message = *message;
    note("unmask %x;", message->data);
    return 0;
}

void kvm_irq_mask(struct kvm_irq *irq)
{
    irq->open = false;
    if (irq->level)
        note("close;");
    else
        note("mask %x;", irq->message.data);
}

bool kvm_irq_pending(const struct kvm_irq *irq)
{
    uint64_t count;

    if (read(irq->eventfd, &count, sizeof(count)) != sizeof(count))
        return false;
    assert_int_equal(write(irq->eventfd, &count, sizeof(count)), sizeof(count));
    return true;
}

void kvm_irq_clear(struct kvm_irq *irq)
{
    uint64_t count;

    (void)!read(irq->eventfd, &count, sizeof(count));
}

int kvm_vm_map(struct kvm_vm *vm, uint64_t gpa, uint64_t size, void *host, bool readonly,
               unsigned *slot, struct error *error)
{
    assert_true(is_aligned(gpa, PAGE_SIZE) && is_aligned(size, PAGE_SIZE) && size != 0);
    assert_non_null(host);
    if (record.fail_map)
        return error_set(error, record.fail_map, "no");
    *slot = ++record.slots;
    record.maps++;
    return 0;
}

void kvm_vm_unmap(struct kvm_vm *vm, unsigned slot)
{
    record.slots--;
}

int kvm_vfio_add(struct kvm_vm *vm, int fd, struct error *error)
{
    note("known;");
    return 0;
}

void kvm_vfio_remove(struct kvm_vm *vm, int fd)
{
    note("forgotten;");
}

/* --- the device --- */

static void put(int fd, unsigned offset, unsigned size, uint32_t value)
{
    assert_int_equal(pwrite(fd, &value, size, CONFIG_AT + offset), size);
}

static uint32_t get(int fd, unsigned offset, unsigned size)
{
    uint32_t value = 0;

    assert_int_equal(pread(fd, &value, size, CONFIG_AT + offset), size);
    return value;
}

/* A capability of some kind: ID, next, and a body. */
static void put_cap(int fd, unsigned at, unsigned id, unsigned next)
{
    put(fd, at, 1, id);
    put(fd, at + 1, 1, next);
}

static int make_device(void)
{
    int fd = memfd_create("device", MFD_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, CONFIG_AT + 4096), 0);
    put(fd, PCI_VENDOR_ID, 4, 0x12345678);
    put(fd, PCI_STATUS, 2, PCI_STATUS_CAP_LIST);
    put(fd, PCI_HEADER_TYPE, 1, 0x80);
    put(fd, PCI_BASE_ADDRESS_0, 4, PCI_BASE_ADDRESS_MEM_TYPE_64);
    put(fd, PCI_INTERRUPT_PIN, 1, 1);
    put(fd, PCI_CAPABILITY_LIST, 1, 0x40);
    put_cap(fd, 0x40, PCI_CAP_ID_EA, 0x50); /* hidden */
    put_cap(fd, 0x50, PCI_CAP_ID_PM, 0x60);
    put_cap(fd, 0x60, PCI_CAP_ID_MSIX, 0x70);
    put(fd, 0x62, 2, VECTORS - 1);
    put(fd, 0x64, 4, TABLE_AT);
    put(fd, 0x68, 4, PBA_AT);
    put_cap(fd, 0x70, PCI_CAP_ID_HT, 0x80); /* hidden */
    put_cap(fd, 0x80, PCI_CAP_ID_EXP, 0xc0);
    put(fd, 0x82, 2, 2 | PCI_EXP_TYPE_ENDPOINT << 4);
    put(fd, 0x8c, 4, 0x00010043); /* link */
    put_cap(fd, 0xc0, PCI_CAP_ID_MSI, 0);
    put(fd, 0xc2, 2, PCI_MSI_FLAGS_64BIT | 1 << 1);
    put(fd, 0x100, 4, PCI_EXT_CAP_ID_SRIOV | 1 << 16 | 0x140u << 20); /* hidden, the first */
    put(fd, 0x140, 4, PCI_EXT_CAP_ID_ERR | 2 << 16 | 0x180u << 20);
    put(fd, 0x180, 4, PCI_EXT_CAP_ID_ARI | 1 << 16 | 0x1c0u << 20); /* hidden */
    put(fd, 0x1c0, 4, PCI_EXT_CAP_ID_DSN | 1 << 16 | 0x200u << 20);
    put(fd, 0x200, 4, PCI_EXT_CAP_ID_ATS | 1 << 16); /* hidden, the last */
    return fd;
}

struct fixture {
    pthread_mutex_t lock;
    struct bus *mmio, *pio;
    struct pci_host *host;
    struct vfio_pci *device;
    int fd;
};

static const struct vfio_pci_config device_config = {
    .id = "dev",
    .sysfs = "/sys/bus/pci/devices/ffff:1f:1f.7",
    .fd = -1,
    .devfn = 8,
    .space = {.iommufd = "io", .ioas = "", .container = ""}};

/* Adopts the address space that the device is said to be in. */
static struct iommu_set *adopt_spaces(void)
{
    const struct iommu_facts facts = {.id = "io"};
    struct iommu_memory none = {0};
    struct error error = {0};
    struct fdset fds = {0};
    struct iommu_set *set;

    assert_int_equal(fdset_add_copy(&fds, 0, &error, "iommu/io"), 0);
    assert_int_equal(iommu_set_adopt(&set, &none, &facts, 1, &fds, &error), 0);
    fdset_clear(&fds);
    return set;
}

/* Adopts from a set of descriptors; eventfds are real. */
static int adopt(struct fixture *f, int fd, unsigned vectors, struct error *error)
{
    struct iommu_set *spaces = adopt_spaces();
    struct vfio_pci_parents parents = {
        .mmio = f->mmio, .pio = f->pio, .pci = f->host, .spaces = spaces};
    struct vfio_pci_facts facts = {.devid = 3, .vector_count = vectors};
    struct fdset fds = {0};
    int result;

    fdset_add_copy(&fds, fd, error, "vfio/dev/device");
    for (unsigned i = 0; i < vectors; i++) {
        int vector = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

        fdset_add_copy(&fds, vector, error, "vfio/dev/irq/%u", i);
        close(vector);
    }
    result = vfio_pci_adopt(&f->device, &device_config, &parents, &facts, &fds, error);
    fdset_clear(&fds);
    iommu_set_destroy(spaces);
    return result;
}

/* The device's identity check wants a character device, so the tests put the parts together. */
static int build(struct fixture *f, struct error *error)
{
    struct vfio_pci *device = xcalloc(1, sizeof(*device));
    int result;

    device->parents = (struct vfio_pci_parents){.mmio = f->mmio, .pio = f->pio, .pci = f->host};
    device->device.fd = dup(f->fd);
    device->kvm_fd = -1;
    strcpy(device->device.id, "dev");
    device->intx = (struct vfio_intx){.trigger = -1, .resample = -1};
    device->notifiers[VFIO_NOTIFIER_ERROR] = device->notifiers[VFIO_NOTIFIER_REQUEST] = -1;
    device->function = (struct pci_function){
        .name = device->device.id, .devfn = 8, .ops = &vfio_config_ops, .opaque = device};
    f->device = device;
    result = vfio_pci_examine(device, error);
    if (result == 0)
        result = vfio_vectors_create(device, error);
    if (result == 0)
        result = vfio_intx_create(device, error);
    if (result == 0)
        result = vfio_notifiers_create(device, error);
    if (result == 0)
        result = pci_host_add(f->host, &device->function, error);
    device->on_bus = result == 0;
    return result;
}

static int setup(void **state)
{
    struct fixture *f = xcalloc(1, sizeof(*f));
    struct error error = {0};

    memset(&record, 0, sizeof(record));
    pthread_mutex_init(&f->lock, NULL);
    f->mmio = bus_create(&f->lock, UINT64_MAX);
    f->pio = bus_create(&f->lock, 0x10000);
    assert_int_equal(pci_host_create(&f->host, f->mmio, f->pio, &error), 0);
    f->fd = make_device();
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    vfio_pci_destroy(f->device, false);
    assert_int_equal(record.slots, 0);
    pci_host_destroy(f->host);
    bus_destroy(f->mmio);
    bus_destroy(f->pio);
    close(f->fd);
    free(f);
    return 0;
}

static struct fixture *built(void **state)
{
    struct fixture *f = *state;
    struct error error = {0};

    assert_int_equal(build(f, &error), 0);
    forget();
    return f;
}

static uint32_t config_load(struct fixture *f, unsigned offset, unsigned size)
{
    uint64_t value = 0;

    bus_read(f->mmio, LAYOUT_ECAM_BASE + 0x8000 + offset, &value, size);
    return (uint32_t)value;
}

static void config_store(struct fixture *f, unsigned offset, unsigned size, uint32_t value)
{
    bus_write(f->mmio, LAYOUT_ECAM_BASE + 0x8000 + offset, &value, size);
}

static void table_store(struct fixture *f, unsigned vector, unsigned field, uint32_t value)
{
    bus_write(f->mmio, GUEST_BAR + TABLE_AT + vector * 16 + field, &value, 4);
}

/* Gives BAR 0 a place and lets the function decode. */
static void place(struct fixture *f)
{
    config_store(f, PCI_BASE_ADDRESS_0, 4, (uint32_t)GUEST_BAR);
    config_store(f, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

static void program(struct fixture *f, unsigned vector, uint32_t data)
{
    table_store(f, vector, 0, 0xfee00000);
    table_store(f, vector, 8, data);
    table_store(f, vector, 12, 0);
}

/* --- configuration space --- */

static void test_chains(void **state)
{
    struct fixture *f = built(state);

    assert_int_equal(config_load(f, PCI_VENDOR_ID, 4), 0x12345678);
    assert_int_equal(config_load(f, PCI_HEADER_TYPE, 1), 0);
    assert_int_equal(config_load(f, PCI_INTERRUPT_PIN, 1), 0);
    assert_int_equal(config_load(f, PCI_CAPABILITY_LIST, 1), 0x50);
    assert_int_equal(config_load(f, 0x50, 2), PCI_CAP_ID_PM | 0x60 << 8);
    assert_int_equal(config_load(f, 0x60, 4), PCI_CAP_ID_MSIX | 0x80 << 8 | (VECTORS - 1) << 16);
    assert_int_equal(config_load(f, 0x64, 4), TABLE_AT);
    assert_int_equal(config_load(f, 0x80, 4),
                     PCI_CAP_ID_EXP | 0xc0 << 8 | (2 | PCI_EXP_TYPE_RC_END << 4) << 16);
    assert_int_equal(config_load(f, 0x8c, 4), 0);
    assert_int_equal(config_load(f, 0xc0, 4), PCI_CAP_ID_MSI | (PCI_MSI_FLAGS_64BIT | 1u << 1)
                                                                   << 16);
    assert_int_equal(config_load(f, 0x40, 2), 0);
    assert_int_equal(config_load(f, 0x70, 2), 0);

    assert_int_equal(config_load(f, 0x100, 4), 0x140u << 20); /* null capability */
    assert_int_equal(config_load(f, 0x140, 4), PCI_EXT_CAP_ID_ERR | 2 << 16 | 0x1c0u << 20);
    assert_int_equal(config_load(f, 0x180, 4), 0);
    assert_int_equal(config_load(f, 0x1c0, 4), PCI_EXT_CAP_ID_DSN | 1 << 16);
    assert_int_equal(config_load(f, 0x200, 4), 0);
}

static void test_chain_loops(void **state)
{
    struct fixture *f = *state;
    struct error error = {0};

    put_cap(f->fd, 0x40, PCI_CAP_ID_VNDR, 0x40); /* a device that points at itself */
    put(f->fd, 0x100, 4, PCI_EXT_CAP_ID_VNDR | 1 << 16 | 0x100u << 20);
    assert_int_equal(build(f, &error), 0);
}

static void test_table_outside_bar(void **state)
{
    struct fixture *f = *state;
    struct error error = {0};

    put(f->fd, 0x64, 4, BAR0_SIZE - 16);
    assert_int_equal(build(f, &error), 0);
    assert_int_equal(f->device->config.msix, 0);
    assert_int_equal(config_load(f, 0x51, 1), 0x80); /* skipped in the chain */
    assert_int_equal(f->device->vector_count, 2);    /* MSI's */
}

static void test_legacy_endpoint_is_plain_pci(void **state)
{
    struct fixture *f = *state;
    struct error error = {0};

    put(f->fd, 0x82, 2, 2 | PCI_EXP_TYPE_LEG_END << 4);
    assert_int_equal(build(f, &error), 0);
    assert_int_equal(config_load(f, 0x61, 1), 0xc0);
    assert_int_equal(config_load(f, 0x100, 4), 0xffffffff);
    config_store(f, 0x140, 4, 1); /* goes nowhere */
}

/* The last capability lies where the device has nothing more to say. */
static void test_unreadable_space_is_refused(void **state)
{
    struct fixture *f = *state;
    struct error error = {0};

    assert_int_equal(ftruncate(f->fd, CONFIG_AT + 0x200), 0);
    assert_int_equal(build(f, &error), -EIO);
    assert_non_null(strstr(error.message, "'dev'"));
    assert_non_null(strstr(error.message, "configuration space"));
}

/* EINVAL is how VFIO says that there is no such interrupt; anything else is no answer. */
static void test_interrupts_that_cannot_be_asked_for(void **state)
{
    struct fixture *f = *state;

    for (unsigned i = 0; i < VFIO_PCI_NUM_IRQS; i++) {
        struct error error = {0};

        record.fail_irq_info[i] = ENOMEM;
        assert_int_equal(build(f, &error), -ENOMEM);
        record.fail_irq_info[i] = 0;
        vfio_pci_destroy(f->device, false);
    }
    record.intx = true;
    record.fail_irq_info[VFIO_PCI_ERR_IRQ_INDEX] = EINVAL;
    built(state);
    assert_false(f->device->device.has_error);
    assert_true(f->device->device.has_request && f->device->device.has_intx);
}

static void test_bridge_is_refused(void **state)
{
    struct fixture *f = *state;
    struct error error = {0};

    put(f->fd, PCI_HEADER_TYPE, 1, 1);
    assert_int_equal(build(f, &error), -ENOTSUP);
    assert_non_null(strstr(error.message, "dev"));
}

static void test_what_passes(void **state)
{
    struct fixture *f = built(state);

    config_store(f, PCI_CACHE_LINE_SIZE, 4, 0xffffff10); /* latency and line; not type and BIST */
    assert_int_equal(get(f->fd, PCI_CACHE_LINE_SIZE, 4), 0x0080ff10);
    config_store(f, PCI_INTERRUPT_LINE, 2, 0xff0b);
    assert_int_equal(config_load(f, PCI_INTERRUPT_LINE, 2), 0x000b);
    assert_int_equal(get(f->fd, PCI_INTERRUPT_LINE, 2), 0x0100);
    config_store(f, PCI_COMMAND, 2, PCI_COMMAND_MASTER);
    assert_int_equal(get(f->fd, PCI_COMMAND, 2), PCI_COMMAND_MASTER);
    config_store(f, PCI_BASE_ADDRESS_0, 4, 0xc0000000);
    assert_int_equal(get(f->fd, PCI_BASE_ADDRESS_0, 4), PCI_BASE_ADDRESS_MEM_TYPE_64);
    config_store(f, 0x62, 2, PCI_MSIX_FLAGS_MASKALL);
    assert_int_equal(get(f->fd, 0x62, 2), VECTORS - 1);
    assert_int_equal(config_load(f, 0x62, 2), PCI_MSIX_FLAGS_MASKALL | (VECTORS - 1));
}

/* --- BARs --- */

static void test_bar_areas(void **state)
{
    struct fixture *f = built(state);
    const struct vfio_region *region = &f->device->device.regions[0];

    assert_int_equal(region->area_count, 1); /* the table and the PBA have the last two pages */
    assert_int_equal(region->areas[0].size, TABLE_AT);
    config_store(f, PCI_BASE_ADDRESS_2, 4, 0xffffffff);
    config_store(f, PCI_BASE_ADDRESS_3, 4, 0xffffffff);
    assert_int_equal(config_load(f, PCI_BASE_ADDRESS_2, 4), 0xfffff000); /* shown as a page */
    assert_int_equal(config_load(f, PCI_BASE_ADDRESS_3, 4), 0xffffff00);
}

static void test_bar_mapping(void **state)
{
    struct fixture *f = built(state);
    uint64_t value = 0;

    place(f);
    assert_int_equal(record.slots, 1);
    value = 0x55667788;
    assert_int_equal(pwrite(f->fd, &value, 4, 0x1ffc), 4);
    value = 0;
    bus_read(f->mmio, GUEST_BAR + 0x1ffc, &value, 4);
    assert_int_equal(value, 0x55667788);
    config_store(f, 0x54, 2, 3); /* D3: gone */
    assert_int_equal(record.slots, 0);
    bus_read(f->mmio, GUEST_BAR + 0x1ffc, &value, 4);
    assert_int_equal(value, 0xffffffff);
    config_store(f, 0x54, 2, 0);
    assert_int_equal(record.slots, 1);
    assert_int_equal(f->device->state.mapped, 1 << 0);
    config_store(f, PCI_COMMAND, 2, 0);
    assert_int_equal(record.slots, 0);
    assert_int_equal(f->device->state.mapped, 0);
}

static void test_bar_collides(void **state)
{
    struct fixture *f = built(state);

    record.fail_map = EEXIST; /* RAM is there */
    place(f);
    assert_false(f->device->bars.bars[0].mapped);
    record.fail_map = ENOSPC; /* no slot left: trapped */
    config_store(f, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    assert_true(f->device->bars.bars[0].mapped);
    assert_int_equal(record.slots, 0);
}

/* The ROM is read as a whole, once, and not before the device gives something. The kernel is not
 * asked about it before the guest wants it, since that is no mere question. */
static void test_rom(void **state)
{
    struct fixture *f = built(state);
    static const uint8_t rom[8] = {0x55, 0xaa, 2, 3, 4, 5, 6, 7};

    assert_int_equal(record.rom_queries, 0);
    assert_int_equal(vfio_rom_read(f->device, 0, 4), 0xffffffff); /* beyond the end of the file */
    assert_int_equal(record.rom_queries, 1);
    assert_int_equal(pwrite(f->fd, rom, sizeof(rom), CONFIG_AT + 0x10000), sizeof(rom));
    assert_int_equal(vfio_rom_read(f->device, 0, 2), 0xaa55);
    assert_int_equal(pwrite(f->fd, "gone", 4, CONFIG_AT + 0x10000), 4);
    assert_int_equal(vfio_rom_read(f->device, 0, 8), 0x070605040302aa55);
    assert_int_equal(vfio_rom_read(f->device, 7, 1), 7);
    assert_int_equal(vfio_rom_read(f->device, 7, 2), 0xffff); /* the device gave eight bytes */
    assert_int_equal(vfio_rom_read(f->device, UINT64_MAX, 8), UINT64_MAX);
}

static void test_region_exclude(void **state)
{
    struct vfio_region region = {.size = 0x10000, .area_count = 1};

    region.areas[0].size = 0x10000;
    vfio_region_exclude(&region, 0x4800, 0x10); /* in the middle */
    assert_int_equal(region.area_count, 2);
    assert_int_equal(region.areas[0].size, 0x4000);
    assert_int_equal(region.areas[1].offset, 0x5000);
    assert_int_equal(region.areas[1].size, 0xb000);
    vfio_region_exclude(&region, 0, 0x1001); /* at the start */
    assert_int_equal(region.areas[0].offset, 0x2000);
    vfio_region_exclude(&region, 0x3fff, 0x1002); /* across the hole */
    assert_int_equal(region.areas[0].size, 0x1000);
    assert_int_equal(region.areas[1].offset, 0x6000);
    vfio_region_exclude(&region, 0, 0x10000);
    assert_int_equal(region.area_count, 0);
}

/* --- interrupts --- */

static void test_msix_one_by_one(void **state)
{
    struct fixture *f = built(state);

    place(f);
    config_store(f, 0x62, 2, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    assert_string_equal(record.log, "arm 0+1 none;");
    program(f, 3, 0x43);
    program(f, 1, 0x41);
    config_store(f, 0x62, 2, PCI_MSIX_FLAGS_ENABLE);
    assert_string_equal(record.log, "arm 0+1 none;unmask 41;arm 1+1;unmask 43;arm 3+1;");
    forget();
    table_store(f, 3, 12, 1);
    table_store(f, 3, 12, 0); /* stays armed */
    assert_string_equal(record.log, "mask 43;unmask 43;");
    assert_int_equal(f->device->state.armed[0], 1 << 1 | 1 << 3);
    forget();
    config_store(f, 0x62, 2, 0);
    assert_string_equal(record.log, "mask 41;mask 43;disarm;");
    assert_int_equal(f->device->state.armed[0], 0);
}

static void test_msix_all_at_once(void **state)
{
    struct fixture *f;

    record.noresize = true;
    f = built(state);
    place(f);
    program(f, 0, 0x40);
    config_store(f, 0x62, 2, PCI_MSIX_FLAGS_ENABLE);
    program(f, 4, 0x44);
    assert_string_equal(record.log, "arm 0+5;unmask 40;unmask 44;");
    assert_int_equal(f->device->state.armed[0], 0x1f);
}

static void test_msix_pending(void **state)
{
    struct fixture *f = built(state);
    uint64_t one = 1, bits = 0;

    place(f);
    program(f, 2, 0x42);
    config_store(f, 0x62, 2, PCI_MSIX_FLAGS_ENABLE);
    table_store(f, 2, 12, 1);
    assert_int_equal(write(f->device->vectors[2].eventfd, &one, sizeof(one)), sizeof(one));
    bus_read(f->mmio, GUEST_BAR + PBA_AT, &bits, 8);
    assert_int_equal(bits, 1 << 2);
    vfio_pci_reset(f->device); /* forgets it */
    assert_false(kvm_irq_pending(f->device->vectors[2].irq));
    assert_int_equal(config_load(f, PCI_COMMAND, 2), 0);
    assert_int_equal(f->device->state.armed_index, VFIO_ARMED_NONE);
}

static void test_both_kinds(void **state)
{
    struct fixture *f = built(state);

    place(f);
    program(f, 0, 0x40);
    config_store(f, 0x62, 2, PCI_MSIX_FLAGS_ENABLE);
    forget();
    config_store(f, 0xc2, 2, PCI_MSI_FLAGS_ENABLE); /* the guest must not */
    config_store(f, 0xcc, 2, 0x99);
    config_store(f, 0xc2, 2, 0);
    assert_string_equal(record.log, "");
    config_store(f, 0x62, 2, 0);
    assert_string_equal(record.log, "mask 40;disarm;");
}

static void test_msi(void **state)
{
    struct fixture *f = built(state);

    config_store(f, 0xcc, 2, 0x80);
    config_store(f, 0xc2, 2, PCI_MSI_FLAGS_ENABLE | 1 << 4);
    assert_string_equal(record.log, "arm 0+2;unmask 80;unmask 81;");
    config_store(f, 0xc2, 2, 0);
    assert_int_equal(f->device->state.armed_index, VFIO_ARMED_NONE);
}

static void test_arming_fails(void **state)
{
    struct fixture *f = built(state);

    place(f);
    record.fail_set_irqs = ENOSPC;
    program(f, 0, 0x40);
    config_store(f, 0x62, 2, PCI_MSIX_FLAGS_ENABLE);
    assert_int_equal(f->device->state.armed_index, VFIO_ARMED_NONE);
    config_store(f, 0x62, 2, 0);
    record.fail_set_irqs = 0;
    config_store(f, 0x62, 2, PCI_MSIX_FLAGS_ENABLE);
    assert_string_equal(record.log, "arm 0+1 none;unmask 40;arm 0+1;");
}

/* A function with INTx, as a guest's first reset leaves it. */
static struct fixture *built_with_intx(void **state)
{
    struct fixture *f;

    record.intx = true;
    f = built(state);
    vfio_pci_reset(f->device);
    return f;
}

static void test_intx(void **state)
{
    struct fixture *f = built_with_intx(state);

    assert_string_equal(record.log, "reset;open;intx on;intx resample;");
    assert_int_equal(f->device->state.armed_index, VFIO_ARMED_INTX);
    assert_int_equal(config_load(f, PCI_INTERRUPT_PIN, 1), 1);
    config_store(f, PCI_INTERRUPT_PIN, 1, 2);
    assert_int_equal(config_load(f, PCI_INTERRUPT_PIN, 1), 1);
    config_store(f, PCI_COMMAND, 2, PCI_COMMAND_INTX_DISABLE); /* VFIO's affair */
    assert_int_equal(get(f->fd, PCI_COMMAND, 2), PCI_COMMAND_INTX_DISABLE);
    assert_int_equal(config_load(f, PCI_COMMAND, 2), PCI_COMMAND_INTX_DISABLE);
    forget();
    vfio_pci_reset(f->device);
    assert_string_equal(record.log, "close;intx off;reset;open;intx on;intx resample;");
}

/* Nobody listens for the end of the interrupt: accesses unmask, before they are made. */
static void test_intx_unmasked_by_access(void **state)
{
    struct fixture *f;
    uint32_t value = 0;

    record.no_mmap = record.no_resample = true;
    f = built_with_intx(state);
    assert_string_equal(record.log, "reset;open;intx on;");
    assert_int_equal(f->device->state.armed_index, VFIO_ARMED_INTX);
    assert_true(f->device->state.unmask_by_access);
    assert_true(f->device->intx.irq->unheard);
    place(f);
    forget();
    bus_read(f->mmio, GUEST_BAR, &value, 4);
    bus_write(f->mmio, GUEST_BAR + 4, &value, 4);
    assert_string_equal(record.log, "intx unmask;intx unmask;");
    bus_read(f->mmio, GUEST_BAR + TABLE_AT, &value, 4); /* is not the device's */
    assert_string_equal(record.log, "intx unmask;intx unmask;");
    vfio_pci_reset(f->device);
    assert_string_equal(record.log, "intx unmask;intx unmask;close;intx off;reset;open;intx on;");
}

/* With registers that the guest reaches by itself, INTx would be masked for ever. */
static void test_intx_that_nobody_unmasks(void **state)
{
    struct fixture *f;

    record.no_resample = true;
    f = built_with_intx(state);
    assert_string_equal(record.log, "reset;open;intx on;intx off;close;");
    assert_int_equal(f->device->state.armed_index, VFIO_ARMED_NONE);
    assert_false(f->device->state.unmask_by_access);
}

/* The line's place on the bus and its pin decide which input it has. */
static void test_intx_input(void **state)
{
    struct fixture *f = *state;
    struct error error = {0};

    record.intx = true;
    put(f->fd, PCI_INTERRUPT_PIN, 1, 3);
    assert_int_equal(build(f, &error), 0); /* slot 1, INTC */
    assert_string_equal(record.log, "level 19;error on;request on;");
    assert_int_equal(layout_pci_gsi(1, 2), 19);
    assert_int_equal(layout_pci_gsi(31, 3), 18);
    assert_int_equal(layout_pci_gsi(2, 0), layout_pci_gsi(10, 0));
}

static void test_no_such_pin(void **state)
{
    struct fixture *f = *state;
    struct error error = {0};

    record.intx = true;
    put(f->fd, PCI_INTERRUPT_PIN, 1, 5);
    assert_int_equal(build(f, &error), 0);
    vfio_pci_reset(f->device);
    assert_null(strstr(record.log, "intx"));
    assert_int_equal(config_load(f, PCI_INTERRUPT_PIN, 1), 0);
}

/* INTx makes way for MSI and MSI-X and is back after them. */
static void test_intx_gives_way(void **state)
{
    struct fixture *f = built_with_intx(state);

    place(f);
    program(f, 0, 0x40);
    forget();
    config_store(f, 0x62, 2, PCI_MSIX_FLAGS_ENABLE);
    assert_string_equal(record.log, "close;intx off;arm 0+1 none;unmask 40;arm 0+1;");
    forget();
    config_store(f, 0xc2, 2, PCI_MSI_FLAGS_ENABLE); /* the guest must not: MSI-X is on */
    config_store(f, 0x62, 2, 0);                    /* nor is INTx wanted while MSI is on */
    assert_string_equal(record.log, "mask 40;disarm;");
    forget();
    config_store(f, 0xc2, 2, 0);
    assert_string_equal(record.log, "open;intx on;intx resample;");
}

static void test_intx_cannot_be_armed(void **state)
{
    struct fixture *f = built_with_intx(state);

    record.fail_set_irqs = EBUSY; /* a device without INTx disable, on a shared line */
    forget();
    vfio_pci_reset(f->device);
    assert_int_equal(f->device->state.armed_index, VFIO_ARMED_NONE);
    assert_string_equal(record.log, "close;reset;open;close;");
    record.fail_set_irqs = 0;
    vfio_pci_reset(f->device);
    assert_int_equal(f->device->state.armed_index, VFIO_ARMED_INTX);
}

/* --- hand-over --- */

/* State is applied without telling VFIO anything, and leaving goes without it, too. */
static void test_apply_intx(void **state)
{
    struct fixture *f = built_with_intx(state);
    static struct vfio_pci_state saved;
    struct error error = {0};

    saved = *(struct vfio_pci_state *)vfio_pci_state(f->device);
    assert_int_equal(vfio_pci_state_type.check(&saved, &error), 0);
    forget();
    vfio_pci_destroy(f->device, true);
    assert_string_equal(record.log, "");
    f->device = NULL;
    assert_int_equal(build(f, &error), 0);
    forget();
    memcpy(vfio_pci_state(f->device), &saved, sizeof(saved));
    assert_int_equal(vfio_pci_apply_state(f->device, &error), 0);
    assert_string_equal(record.log, "open;");
    assert_int_equal(record.ioctls, 0);
    assert_false(f->device->intx.irq->unheard);
    vfio_pci_destroy(f->device, false);
    assert_string_equal(record.log, "open;close;intx off;error off;request off;");
    record.intx = false; /* a device that has none */
    f->device = NULL;
    assert_int_equal(build(f, &error), 0);
    memcpy(vfio_pci_state(f->device), &saved, sizeof(saved));
    assert_int_equal(vfio_pci_apply_state(f->device, &error), -EINVAL);
    assert_non_null(strstr(error.message, "INTx"));
    f->device->state.armed_index = VFIO_ARMED_NONE;
}

static void test_apply(void **state)
{
    struct fixture *f = built(state);
    static struct vfio_pci_state saved;
    struct error error = {0};

    place(f);
    program(f, 2, 0x42);
    config_store(f, 0x62, 2, PCI_MSIX_FLAGS_ENABLE);
    saved = *(struct vfio_pci_state *)vfio_pci_state(f->device);
    assert_int_equal(vfio_pci_state_type.check(&saved, &error), 0);

    vfio_pci_destroy(f->device, true); /* another process, as far as this one can play it */
    assert_null(strstr(record.log, "disarm"));
    assert_int_equal(record.slots, 0);
    f->device = NULL;
    assert_int_equal(build(f, &error), 0);
    forget();
    memcpy(vfio_pci_state(f->device), &saved, sizeof(saved));
    assert_int_equal(vfio_pci_apply_state(f->device, &error), 0);
    assert_string_equal(record.log, "unmask 42;");
    assert_int_equal(record.slots, 1);
    assert_int_equal(record.ioctls, 0);
    forget();
    assert_int_equal(vfio_pci_apply_state(f->device, &error), 0); /* the same again: nothing */
    assert_string_equal(record.log, "");
    assert_int_equal(record.maps, 0);
}

static void test_apply_refuses(void **state)
{
    struct fixture *f = built(state);
    struct vfio_pci_state *live = vfio_pci_state(f->device);
    struct error error = {0};

    live->msix.count = 3;
    assert_int_equal(vfio_pci_apply_state(f->device, &error), -EINVAL);
    assert_non_null(strstr(error.message, "dev"));
    live->mapped = 1; /* the guest had BAR 0 in the other process, here it is nowhere */
    assert_int_equal(vfio_pci_apply_state(f->device, &error), -EBUSY);
}

static void test_state_check(void **state)
{
    static struct vfio_pci_state s;
    struct error error = {0};

    memset(&s, 0, sizeof(s));
    assert_int_equal(vfio_pci_state_type.check(&s, &error), 0);
    s.armed[0] = 1; /* armed, and yet off */
    assert_int_equal(vfio_pci_state_type.check(&s, &error), -EINVAL);
    s.armed_index = VFIO_ARMED_MSIX; /* MSI-X is off */
    assert_int_equal(vfio_pci_state_type.check(&s, &error), -EINVAL);
    s.msix.control = PCI_MSIX_FLAGS_ENABLE; /* no such vector */
    assert_int_equal(vfio_pci_state_type.check(&s, &error), -EINVAL);
    s.msix.count = 1;
    assert_int_equal(vfio_pci_state_type.check(&s, &error), 0);
    s.armed_index = VFIO_ARMED_MSI;
    assert_int_equal(vfio_pci_state_type.check(&s, &error), -EINVAL);
    s.armed_index = VFIO_ARMED_INTX; /* MSI-X is on, and a vector armed */
    assert_int_equal(vfio_pci_state_type.check(&s, &error), -EINVAL);
    s.msix.control = 0;
    assert_int_equal(vfio_pci_state_type.check(&s, &error), -EINVAL);
    s.armed[0] = 0;
    assert_int_equal(vfio_pci_state_type.check(&s, &error), 0);
}

/* The last vector that there is may be armed, the first that there is not may not. */
static void test_state_check_armed(void **state)
{
    static struct vfio_pci_state s;
    struct error error = {0};

    memset(&s, 0, sizeof(s));
    s.armed_index = VFIO_ARMED_MSIX;
    s.msix.control = PCI_MSIX_FLAGS_ENABLE;
    for (unsigned count = 1; count <= PCI_MSIX_VECTORS_MAX; count++) {
        unsigned last = count - 1;

        s.msix.count = count;
        s.armed[last / 8] |= (uint8_t)(1u << (last % 8));
        assert_int_equal(vfio_pci_state_type.check(&s, &error), 0);
        s.msix.count = last;
        assert_int_equal(vfio_pci_state_type.check(&s, &error), -EINVAL);
        if (count % 3 == 0) /* also with nothing before it */
            s.armed[last / 8] &= (uint8_t) ~(1u << (last % 8));
    }
}

/* Through bytes and back, with the largest table that there is. */
static void test_state_round_trip(void **state)
{
    static struct vfio_pci_state s, loaded, scratch;
    static uint8_t bytes[256 * 1024];
    struct state_target target = {
        .id = "vfio/dev", .type = &vfio_pci_state_type, .object = &loaded, .scratch = &scratch};
    struct state_writer writer;
    struct error error = {0};
    size_t length;

    memset(&s, 0, sizeof(s));
    memset(&loaded, 0, sizeof(loaded));
    s.command = 0x407;
    s.power = 3;
    s.mapped = 0x41;
    for (unsigned i = 0; i < PCI_BARS_ALL; i++)
        s.bars.registers[i] = 0xc0000000 + i;
    s.msi = (struct pci_msi_state){.address = 0xfee01000, .data = 0x55, .mask = 3};
    s.msix.control = PCI_MSIX_FLAGS_ENABLE;
    s.msix.count = PCI_MSIX_VECTORS_MAX;
    for (unsigned i = 0; i < PCI_MSIX_VECTORS_MAX; i++)
        s.msix.entries[i] = (struct pci_msix_entry){UINT64_MAX - 3 - 4 * i, UINT32_MAX - i, i & 1};
    s.armed_index = VFIO_ARMED_MSIX;
    memset(s.armed, 0xa5, sizeof(s.armed));
    state_writer_init(&writer, bytes, sizeof(bytes));
    state_write(&writer, "vfio/dev", &vfio_pci_state_type, &s, true);
    assert_int_equal(state_writer_finish(&writer, &length, &error), 0);
    assert_int_equal(state_load(bytes, length, &target, 1, &error), 0);
    assert_memory_equal(&loaded, &s, sizeof(s));
}

static void test_adopt_checks_descriptor(void **state)
{
    struct fixture *f = *state;
    struct error error = {0};

    assert_int_equal(adopt(f, f->fd, VECTORS, &error), -EINVAL); /* no character device */
    assert_non_null(strstr(error.message, "dev"));
    assert_int_equal(record.ioctls, 0);
    assert_null(f->device);
}

static void test_open_names_the_device(void **state)
{
    struct fixture *f = *state;
    struct vfio_pci_config legacy = device_config;
    struct vfio_pci_parents parents = {.mmio = f->mmio, .pio = f->pio, .pci = f->host};
    struct iommu_memory none = {0};
    struct error error = {0};

    legacy.space.iommufd = "";
    iommu_set_create(&parents.spaces, &none);
    assert_int_equal(vfio_pci_create(&f->device, &legacy, &parents, &error), -ENODEV);
    assert_non_null(strstr(error.message, "'dev'"));
    assert_non_null(strstr(error.message, "ffff:1f:1f.7"));
    assert_null(f->device);
    iommu_set_destroy(parents.spaces);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_chains),
        TEST(test_chain_loops),
        TEST(test_table_outside_bar),
        TEST(test_legacy_endpoint_is_plain_pci),
        TEST(test_unreadable_space_is_refused),
        TEST(test_interrupts_that_cannot_be_asked_for),
        TEST(test_bridge_is_refused),
        TEST(test_what_passes),
        TEST(test_bar_areas),
        TEST(test_bar_mapping),
        TEST(test_bar_collides),
        TEST(test_rom),
        TEST(test_region_exclude),
        TEST(test_msix_one_by_one),
        TEST(test_msix_all_at_once),
        TEST(test_msix_pending),
        TEST(test_both_kinds),
        TEST(test_msi),
        TEST(test_arming_fails),
        TEST(test_intx),
        TEST(test_intx_unmasked_by_access),
        TEST(test_intx_that_nobody_unmasks),
        TEST(test_intx_input),
        TEST(test_no_such_pin),
        TEST(test_intx_gives_way),
        TEST(test_intx_cannot_be_armed),
        TEST(test_apply_intx),
        TEST(test_apply),
        TEST(test_apply_refuses),
        TEST(test_state_check),
        TEST(test_state_check_armed),
        TEST(test_state_round_trip),
        TEST(test_adopt_checks_descriptor),
        TEST(test_open_names_the_device),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
