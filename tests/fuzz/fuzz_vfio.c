/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: a passed-through function, with a hostile guest in front of it, any configuration
 * space behind it, and a hostile peer that hands over its state. The device is that of
 * fake_device.h; the functions of kvm/ and iommu/ are fakes that refuse what the kernel would. How
 * a device is adopted is the target adopt's.
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
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/log.h"
#include "fake_device.h"
#include "fuzz.h"
#include "kvm/vfio.h"
#include "memory/layout.h"
#include "twisted_state.h"
#include "vfio/function.h"

#define PATCH_BYTES 6u
#define STEP_BYTES  14u
#define DEVFN       (3u << 3)
#define SLOTS       16u

struct kvm_irq {
    bool open;
    int eventfd;
};

/* What stands in for KVM. */
static struct {
    unsigned irqs;
    struct slot {
        uint64_t gpa, size;
    } slots[SLOTS];
} kernel;

int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    void *argument;

    (void)fd;
    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    return fake_device_ioctl(request, argument);
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

/* The device is put together here, without vfio_pci_create() and vfio_pci_adopt(), which call
 * these. */
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
    assert(range_fits(peer->offset, peer->size, fake_regions[peer->region].size));
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

/* @return how much of the input it has taken */
static size_t make_kernel(const uint8_t *data, size_t size)
{
    size_t at = 3, patches;

    memset(&kernel, 0, sizeof(kernel));
    if (size < at) {
        fake_device_make(0, 0, 0);
        return size;
    }
    fake_device_make(data[0], (1u << data[1] / 32) % 64, data[1] % 32 * 3);
    patches = data[2] % 32;
    for (; patches > 0 && size - at >= PATCH_BYTES; patches--, at += PATCH_BYTES) {
        uint16_t offset;
        uint32_t value;

        memcpy(&offset, data + at, sizeof(offset));
        memcpy(&value, data + at + 2, sizeof(value));
        fake_device_put(offset % (PCI_CONFIG_SIZE - 3), value);
    }
    return at;
}

static int make_device(struct fixture *f, struct error *error)
{
    struct vfio_pci *device = xcalloc(1, sizeof(*device));
    int result;

    device->parents = (struct vfio_pci_parents){.mmio = f->mmio, .pio = f->pio, .pci = f->host};
    device->device.fd = dup(fake_device.fd);
    device->kvm_fd = -1;
    device->p2p = fake_device.kind & DEVICE_P2P;
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
    fake_device.lied_to = true;
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
    assert(lied_to || fake_device.armed == FAKE_DEVICE_UNARMED);
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
    check_end(fake_device.lied_to);
    pci_host_destroy(f.host);
    bus_destroy(f.mmio);
    bus_destroy(f.pio);
    return 0;
}
