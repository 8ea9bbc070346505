/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: a passed-through function, with a hostile guest in front of it, any configuration
 * space behind it, and a hostile peer that hands over its state. The device is a memfd whose bytes
 * are its regions; ioctl() and the functions of kvm/ and iommu/ are fakes that refuse what the
 * kernel would.
 *
 * The input: a byte that says what kind of device, one with its vectors, one with the number of
 * patches, as many patches of its configuration space (offset 2 bytes, value 4), then steps of 14
 * bytes: what, log2 of the size, offset (4 bytes), value (8 bytes).
 *
 * What must hold: state is always such as a peer would take; VFIO is not asked for two kinds of
 * interrupt at once; BARs are where BARs may be; and in the end nothing is left mapped, armed or
 * open.
 */
#include <errno.h>
#include <linux/pci_regs.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/log.h"
#include "fuzz.h"
#include "kvm/vfio.h"
#include "memory/layout.h"
#include "twisted_state.h"
#include "vfio/function.h"

#define DEVICE_INTX        0x01u
#define DEVICE_NO_MMAP     0x02u /* as mediated devices */
#define DEVICE_NO_RESAMPLE 0x04u /* the same */
#define DEVICE_NO_RESIZE   0x08u
#define DEVICE_SCARCE      0x10u /* the host has but one vector */
#define DEVICE_P2P         0x20u
#define DEVICE_SPARSE      0x40u
#define DEVICE_SHORT       0x80u /* 256 bytes of configuration space */

#define PATCH_BYTES 6u
#define STEP_BYTES  14u
#define DEVFN       (3u << 3)
#define CONFIG_AT   0x100000u /* where regions are in the memfd */
#define DEVICE_SIZE (CONFIG_AT + PCI_CONFIG_SIZE)
#define SLOTS       16u
#define UNARMED     UINT32_MAX

struct kvm_irq {
    bool open;
    int eventfd;
};

/* What stands in for the kernel. */
static struct {
    unsigned kind, msi_vectors, msix_vectors;
    int device;
    bool lied_to;   /* by a peer: what is armed may not be what the state says */
    unsigned armed; /* index of interrupts */
    unsigned irqs;  /* of KVM */
    struct slot {
        uint64_t gpa, size;
    } slots[SLOTS];
} kernel;

/* --- VFIO ---------------------------------------------------------------------------------- */

struct fake_region {
    uint64_t offset, size;
    uint32_t flags;
};

#define ACCESS (VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE)

static const struct fake_region regions[VFIO_PCI_NUM_REGIONS] = {
    [0] = {0, 0x4000, ACCESS | VFIO_REGION_INFO_FLAG_MMAP},
    [2] = {0x10000, 256, ACCESS | VFIO_REGION_INFO_FLAG_MMAP},
    [3] = {0x20000, 256, ACCESS},
    [4] = {0x30000, 32, ACCESS},
    [5] = {0x40000, 0x1000, VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_MMAP},
    [VFIO_PCI_ROM_REGION_INDEX] = {0x50000, 0x1800, VFIO_REGION_INFO_FLAG_READ},
    [VFIO_PCI_CONFIG_REGION_INDEX] = {CONFIG_AT, PCI_CONFIG_SIZE, ACCESS},
};

/* All but the pages of the MSI-X table. */
static void put_sparse(struct vfio_region_info *info)
{
    struct vfio_region_info_cap_sparse_mmap *sparse = (void *)(info + 1);

    info->flags |= VFIO_REGION_INFO_FLAG_CAPS;
    info->cap_offset = sizeof(*info);
    sparse->header.id = VFIO_REGION_INFO_CAP_SPARSE_MMAP;
    sparse->nr_areas = 2;
    sparse->areas[0] = (struct vfio_region_sparse_mmap_area){.offset = 0, .size = 0x2000};
    sparse->areas[1] = (struct vfio_region_sparse_mmap_area){.offset = 0x3000, .size = 0x1000};
}

static int get_region(struct vfio_region_info *info)
{
    const struct fake_region *region = &regions[info->index];

    info->offset = region->offset;
    info->size = region->size;
    info->flags = region->flags;
    if (kernel.kind & DEVICE_NO_MMAP)
        info->flags &= ~(uint32_t)VFIO_REGION_INFO_FLAG_MMAP;
    if (info->index == VFIO_PCI_CONFIG_REGION_INDEX && (kernel.kind & DEVICE_SHORT))
        info->size = PCI_CFG_SPACE_SIZE;
    if (info->index == 0 && (kernel.kind & DEVICE_SPARSE))
        put_sparse(info);
    return 0;
}

static unsigned irq_count(unsigned index)
{
    switch (index) {
    case VFIO_PCI_MSI_IRQ_INDEX:
        return kernel.msi_vectors;
    case VFIO_PCI_MSIX_IRQ_INDEX:
        return kernel.msix_vectors;
    default:
        return (kernel.kind & DEVICE_INTX) ? 1 : 0;
    }
}

static int get_irq(struct vfio_irq_info *info)
{
    info->count = irq_count(info->index);
    info->flags = VFIO_IRQ_INFO_EVENTFD;
    if (info->index == VFIO_PCI_INTX_IRQ_INDEX)
        info->flags |= VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED;
    if (kernel.kind & DEVICE_NO_RESIZE)
        info->flags |= VFIO_IRQ_INFO_NORESIZE;
    return 0;
}

/* What the kernel refuses is a mistake of ours, unless a peer has lied about what is armed. */
static int refuse(int code)
{
    assert(kernel.lied_to);
    errno = code;
    return -1;
}

static int unmask_intx(const struct vfio_irq_set *set)
{
    if (set->index != VFIO_PCI_INTX_IRQ_INDEX || kernel.armed != set->index)
        return refuse(EINVAL);
    if ((kernel.kind & DEVICE_NO_RESAMPLE) && (set->flags & VFIO_IRQ_SET_DATA_EVENTFD)) {
        errno = ENOTTY;
        return -1;
    }
    return 0;
}

static int set_irqs(const struct vfio_irq_set *set)
{
    if (set->flags & VFIO_IRQ_SET_ACTION_UNMASK)
        return unmask_intx(set);
    if (set->index == VFIO_PCI_ERR_IRQ_INDEX || set->index == VFIO_PCI_REQ_IRQ_INDEX)
        return 0;
    if (kernel.armed != UNARMED && kernel.armed != set->index)
        return refuse(EINVAL);
    if (set->count == 0) {
        if (kernel.armed != set->index)
            return refuse(EINVAL);
        kernel.armed = UNARMED;
        return 0;
    }
    if (!range_fits(set->start, set->count, irq_count(set->index))) {
        errno = EINVAL; /* the device's capability promises more */
        return -1;
    }
    if ((kernel.kind & DEVICE_SCARCE) && set->start + set->count > 1)
        return 1;
    kernel.armed = set->index;
    return 0;
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    void *argument;

    (void)fd;
    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    switch (request) {
    case VFIO_DEVICE_GET_INFO:
        *(struct vfio_device_info *)argument =
            (struct vfio_device_info){.flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET,
                                      .num_regions = VFIO_PCI_NUM_REGIONS,
                                      .num_irqs = VFIO_PCI_NUM_IRQS};
        return 0;
    case VFIO_DEVICE_GET_REGION_INFO:
        return get_region(argument);
    case VFIO_DEVICE_GET_IRQ_INFO:
        return get_irq(argument);
    case VFIO_DEVICE_SET_IRQS:
        return set_irqs(argument);
    case VFIO_DEVICE_RESET:
        return 0;
    default:
        errno = ENOTTY;
        return -1;
    }
}

/* --- KVM and the address spaces ------------------------------------------------------------ */

int kvm_irq_create(struct kvm_vm *vm, int eventfd, struct kvm_irq **irq, struct error *error)
{
    (void)vm, (void)error;
    *irq = xcalloc(1, sizeof(**irq));
    (*irq)->eventfd = eventfd;
    kernel.irqs++;
    return 0;
}

int kvm_irq_create_level(struct kvm_vm *vm, unsigned gsi, int trigger, int resample,
                         struct kvm_irq **irq, struct error *error)
{
    (void)resample;
    assert(gsi >= 16 && gsi < 24);
    return kvm_irq_create(vm, trigger, irq, error);
}

void kvm_irq_set_unheard(struct kvm_irq *irq, bool unheard)
{
    (void)irq;
    (void)unheard;
}

void kvm_irq_destroy(struct kvm_irq *irq)
{
    kernel.irqs -= irq != NULL;
    free(irq);
}

int kvm_irq_unmask(struct kvm_irq *irq, const struct msi_message *message, struct error *error)
{
    (void)message, (void)error;
    irq->open = true;
    return 0;
}

void kvm_irq_mask(struct kvm_irq *irq)
{
    assert(irq->open);
    irq->open = false;
}

bool kvm_irq_pending(const struct kvm_irq *irq)
{
    uint64_t count;

    return read(irq->eventfd, &count, sizeof(count)) == sizeof(count) &&
           write(irq->eventfd, &count, sizeof(count)) == sizeof(count);
}

void kvm_irq_clear(struct kvm_irq *irq)
{
    uint64_t count;

    (void)!read(irq->eventfd, &count, sizeof(count));
}

int kvm_vm_map(struct kvm_vm *vm, uint64_t gpa, uint64_t size, void *host, bool readonly,
               unsigned *slot, struct error *error)
{
    (void)vm, (void)readonly;
    assert(is_aligned(gpa, PAGE_SIZE) && is_aligned(size, PAGE_SIZE) && size != 0 && host != NULL);
    assert(gpa >= 4 * GIB || gpa + size <= LAYOUT_ECAM_BASE || gpa >= LAYOUT_ECAM_BASE + MIB);
    assert(gpa >= 4 * GIB || gpa + size <= LAYOUT_IOAPIC_BASE);
    if (gpa < GIB)
        return error_set(error, EEXIST, "the guest's memory is there");
    for (unsigned i = 0; i < SLOTS; i++)
        assert(!ranges_overlap(gpa, size, kernel.slots[i].gpa, kernel.slots[i].size));
    for (*slot = 0; *slot < SLOTS; (*slot)++) {
        if (kernel.slots[*slot].size == 0) {
            kernel.slots[*slot] = (struct slot){gpa, size};
            return 0;
        }
    }
    return error_set(error, ENOSPC, "no slot is left");
}

void kvm_vm_unmap(struct kvm_vm *vm, unsigned slot)
{
    (void)vm;
    assert(kernel.slots[slot].size != 0);
    kernel.slots[slot].size = 0;
}

int kvm_vfio_add(struct kvm_vm *vm, int fd, struct error *error)
{
    (void)vm, (void)fd, (void)error;
    return 0;
}

void kvm_vfio_remove(struct kvm_vm *vm, int fd)
{
    (void)vm, (void)fd;
}

/* The device is put together here, so these are never called. */
int iommu_set_attach(struct iommu_set *set, const struct iommu_choice *choice,
                     struct iommu_device *device, struct error *error)
{
    (void)set, (void)choice, (void)device, (void)error;
    abort();
}

int iommu_set_adopt_device(struct iommu_set *set, const struct iommu_choice *choice,
                           struct iommu_device *device, struct error *error)
{
    return iommu_set_attach(set, choice, device, error);
}

void iommu_set_map_peer(struct iommu_set *set, const struct iommu_peer *peer)
{
    (void)set;
    assert(is_aligned(peer->iova, PAGE_SIZE) && is_aligned(peer->size, PAGE_SIZE));
    assert(range_fits(peer->offset, peer->size, regions[peer->region].size));
}

void iommu_set_unmap_peer(struct iommu_set *set, uint64_t iova, uint64_t size)
{
    (void)set, (void)iova, (void)size;
}

/* --- the device ---------------------------------------------------------------------------- */

struct fixture {
    pthread_mutex_t lock;
    struct bus *mmio, *pio;
    struct pci_host *host;
    struct vfio_pci *device;
};

struct config_dword {
    unsigned offset;
    uint32_t value;
};

/* A function with everything that baton knows of, and some things that it hides. */
static const struct config_dword sound_config[] = {
    {PCI_VENDOR_ID, 0x12345678},
    {PCI_COMMAND, PCI_STATUS_CAP_LIST << 16},
    {PCI_BASE_ADDRESS_0, PCI_BASE_ADDRESS_MEM_TYPE_64},
    {PCI_BASE_ADDRESS_4, PCI_BASE_ADDRESS_SPACE_IO},
    {PCI_CAPABILITY_LIST, 0x40},
    {PCI_INTERRUPT_LINE, 1 << 8},
    {0x40, PCI_CAP_ID_EA | 0x50 << 8},
    {0x50, PCI_CAP_ID_PM | 0x60 << 8},
    {0x60, PCI_CAP_ID_MSIX | 0x80 << 8},
    {0x64, 0x2000},
    {0x68, 0x3000},
    {0x80, PCI_CAP_ID_EXP | 0xc0 << 8 | 2 << 16},
    {0xc0, PCI_CAP_ID_MSI | (PCI_MSI_FLAGS_64BIT | PCI_MSI_FLAGS_MASKBIT | 2 << 1) << 16},
    {0x100, PCI_EXT_CAP_ID_SRIOV | 1 << 16 | 0x140u << 20},
    {0x140, PCI_EXT_CAP_ID_ERR | 2 << 16 | 0x1c0u << 20},
    {0x1c0, PCI_EXT_CAP_ID_DSN | 1 << 16},
};

static void put(unsigned offset, uint32_t value)
{
    ssize_t written = pwrite(kernel.device, &value, sizeof(value), CONFIG_AT + offset);

    assert(written == sizeof(value));
}

static size_t make_kernel(const uint8_t *data, size_t size)
{
    int device = kernel.device;
    size_t at = 3, patches;

    if (device <= 0) {
        device = memfd_create("device", MFD_CLOEXEC);
        assert(device >= 0);
    }
    memset(&kernel, 0, sizeof(kernel));
    kernel.device = device;
    kernel.armed = UNARMED;
    if (ftruncate(device, CONFIG_AT) < 0 || ftruncate(device, DEVICE_SIZE) < 0)
        abort();
    for (size_t i = 0; i < ARRAY_SIZE(sound_config); i++)
        put(sound_config[i].offset, sound_config[i].value);
    if (size < at)
        return size;
    kernel.kind = data[0];
    kernel.msi_vectors = (1u << data[1] / 32) % 64;
    kernel.msix_vectors = data[1] % 32 * 3;
    patches = data[2] % 32;
    for (; patches > 0 && size - at >= PATCH_BYTES; patches--, at += PATCH_BYTES) {
        uint16_t offset;
        uint32_t value;

        memcpy(&offset, data + at, sizeof(offset));
        memcpy(&value, data + at + 2, sizeof(value));
        put(offset % (PCI_CONFIG_SIZE - 3), value);
    }
    return at;
}

static int make_device(struct fixture *f, struct error *error)
{
    struct vfio_pci *device = xcalloc(1, sizeof(*device));
    int result;

    device->parents = (struct vfio_pci_parents){.mmio = f->mmio, .pio = f->pio, .pci = f->host};
    device->device.fd = dup(kernel.device);
    device->kvm_fd = -1;
    device->p2p = kernel.kind & DEVICE_P2P;
    snprintf(device->device.id, sizeof(device->device.id), "fuzz");
    device->intx = (struct vfio_intx){.trigger = -1, .resample = -1};
    device->notifiers[VFIO_NOTIFIER_ERROR] = device->notifiers[VFIO_NOTIFIER_REQUEST] = -1;
    device->function = (struct pci_function){
        .name = device->device.id, .devfn = DEVFN, .ops = &vfio_config_ops, .opaque = device};
    f->device = device;
    result = vfio_device_query_rom(&device->device, error);
    if (result == 0)
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
    if (result == 0)
        vfio_pci_reset(device);
    return result;
}

/* --- guest and peer ------------------------------------------------------------------------ */

struct step {
    uint8_t what;
    unsigned size; /* 1, 2, 4 or 8 */
    uint32_t offset;
    uint64_t value;
};

static void bus_access(struct bus *bus, const struct step *step, uint64_t address)
{
    uint64_t value = step->value;

    if (step->what & 0x80)
        bus_read(bus, address, &value, step->size);
    else
        bus_write(bus, address, &value, step->size);
}

/* An access to a BAR, if the guest has it anywhere, or just past its end. */
static void bar_access(struct fixture *f, const struct step *step)
{
    unsigned index = (step->what >> 4) % 8;
    const struct bus_range *range;

    if (index >= PCI_BARS_ALL || !f->device->bars.bars[index].mapped)
        return;
    range = &f->device->places[index].range;
    bus_access(f->device->bars.bars[index].kind == PCI_BAR_IO ? f->pio : f->mmio, step,
               range->base + step->offset % (range->size + 8));
}

static void signal_vector(struct fixture *f, const struct step *step)
{
    uint64_t one = 1;

    if (f->device->vector_count != 0)
        (void)!write(f->device->vectors[step->offset % f->device->vector_count].eventfd, &one,
                     sizeof(one));
}

/* State from a hostile peer. @return whether this process would go on with it */
static bool hand_over(struct fixture *f, const struct step *step)
{
    struct vfio_pci_state *state = vfio_pci_state(f->device);
    size_t count_at = offsetof(struct vfio_pci_state, msix.count);
    size_t offset = step->offset % sizeof(*state);
    struct error error = {0};

    if (ranges_overlap(offset, step->size, count_at, sizeof(state->msix.count)) ||
        !load_twisted(&vfio_pci_state_type, state, offset, &step->value, step->size))
        return true;
    kernel.lied_to = true;
    if (vfio_pci_apply_state(f->device, &error) == 0)
        return true;
    assert(error.code > 0 && error.message[0] != '\0');
    return false;
}

static bool carry_out(struct fixture *f, const struct step *step)
{
    switch (step->what % 8) {
    case 0:
    case 1:
        bus_access(f->mmio, step,
                   LAYOUT_ECAM_BASE + (DEVFN << 12) + step->offset % PCI_CONFIG_SIZE);
        break;
    case 2:
    case 3:
        bar_access(f, step);
        break;
    case 4:
        bus_access(f->pio, step, 0xcf0 + step->offset % 16);
        break;
    case 5:
        signal_vector(f, step);
        break;
    case 6:
        return hand_over(f, step);
    case 7:
        vfio_pci_reset(f->device);
        break;
    }
    return true;
}

static void run(struct fixture *f, const uint8_t *data, size_t size)
{
    for (; size >= STEP_BYTES; data += STEP_BYTES, size -= STEP_BYTES) {
        struct step step = {.what = data[0], .size = 1u << (data[1] % 4)};
        struct error error = {0};

        memcpy(&step.offset, data + 2, sizeof(step.offset));
        memcpy(&step.value, data + 6, sizeof(step.value));
        if (!carry_out(f, &step))
            break;
        assert(vfio_pci_state_type.check(vfio_pci_state(f->device), &error) == 0);
    }
}

static void check_end(bool lied_to)
{
    assert(kernel.irqs == 0);
    assert(lied_to || kernel.armed == UNARMED);
    for (unsigned i = 0; i < SLOTS; i++)
        assert(kernel.slots[i].size == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fixture f = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct error error = {0};
    size_t used = make_kernel(data, size);

    log_configure(LOG_LEVEL_ERROR, NULL);
    f.mmio = bus_create(&f.lock, UINT64_MAX);
    f.pio = bus_create(&f.lock, 0x10000);
    if (pci_host_create(&f.host, f.mmio, f.pio, &error) < 0)
        abort();
    if (make_device(&f, &error) == 0)
        run(&f, data + used, size - used);
    else
        assert(error.code > 0 && error.message[0] != '\0');
    vfio_pci_destroy(f.device, false);
    check_end(kernel.lied_to);
    pci_host_destroy(f.host);
    bus_destroy(f.mmio);
    bus_destroy(f.pio);
    return 0;
}
