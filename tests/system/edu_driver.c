/* SPDX-License-Identifier: Apache-2.0
 *
 * A user-space driver for QEMU's edu device, over VFIO without an IOMMU. System tests put it into a
 * guest and run it there, as root:
 *
 *     edu-driver 0000:00:02.0 DIRECTORY msi|intx|steps [REST]
 *
 * msi, intx: raises interrupts through the device's register, as fast as they are handled (or after
 * a rest of so many microseconds each, which leaves the processor to others), until DIRECTORY/stop
 * exists, and writes "raised handled in-kernel spurious copies mistakes status" to
 * DIRECTORY/result. The protocol makes every loss and every duplicate show:
 *
 *  - the value that is raised is a new one each time, and the next is raised only when the last has
 *    been handled, so no two can merge;
 *  - an interrupt that does not come within LOST_MS is lost: the run ends there, raised exceeds
 *    handled, and status holds what the device's interrupt status register says then;
 *  - the eventfd counts: two interrupts for one raise, or one after the last, make handled exceed
 *    raised;
 *  - in-kernel is what the guest's kernel counted in the same time, of the whole line (a shared one
 *    has other devices' interrupts, too);
 *  - an INTx interrupt with the device's status at zero is spurious, which levels allow: it is
 *    counted apart.
 *
 * All the while the device copies a page to itself and back by DMA, which is compared.
 *
 * steps: INTx that is not ended or not let through while the test does something to the guest. At
 * each step it creates DIRECTORY/stepN and waits for DIRECTORY/goN; DIRECTORY/result then says how
 * many interrupts came where one must: "ok" or what was wrong.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE          4096u
#define LOST_MS       60000
#define FIRST_COPY_MS 20000

enum {
    STATUS = 0x24,
    RAISE = 0x60,
    ACKNOWLEDGE = 0x64,
    DMA_SOURCE = 0x80,
    DMA_TARGET = 0x88,
    DMA_COUNT = 0x90,
    DMA_COMMAND = 0x98,
    DMA_RUN = 1,
    DMA_FROM_DEVICE = 2,
    DEVICE_BUFFER = 0x40000,
};

static struct {
    int device, event;
    unsigned index; /* VFIO_PCI_..._IRQ_INDEX */
    volatile uint8_t *registers;
    uint8_t *page;
    uint64_t page_address;
    const char *address, *directory;
    useconds_t rest;

    uint32_t raised;
    uint64_t handled, spurious, copies, mistakes;
    int copying; /* 0 nothing, 1 to the device, 2 from it */
    uint8_t pattern;
} edu;

static void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
static void die(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, ": %s\n", strerror(errno));
    exit(1);
}

static uint32_t get(unsigned offset)
{
    return *(volatile uint32_t *)(edu.registers + offset);
}

static void set(unsigned offset, uint32_t value)
{
    *(volatile uint32_t *)(edu.registers + offset) = value;
}

static void set64(unsigned offset, uint64_t value)
{
    *(volatile uint64_t *)(edu.registers + offset) = value;
}

static void write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);

    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        die("%s", path);
    close(fd);
}

static void put_file(const char *name, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void put_file(const char *name, const char *format, ...)
{
    char path[256], path_new[260], text[256];
    va_list arguments;

    snprintf(path, sizeof(path), "%s/%s", edu.directory, name);
    snprintf(path_new, sizeof(path_new), "%s.new", path);
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    write_text(path_new, text); /* who reads meanwhile finds the former one, not a part of this */
    if (rename(path_new, path) != 0)
        die("%s", path);
}

static bool has_file(const char *name)
{
    char path[256];

    snprintf(path, sizeof(path), "%s/%s", edu.directory, name);
    return access(path, F_OK) == 0;
}

/* --- the device ----------------------------------------------------------------------------- */

static int open_group(const char *address)
{
    char path[512], link[256], *name;
    ssize_t length;
    int group;

    write_text("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "1");
    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/driver_override", address);
    write_text(path, "vfio-pci");
    write_text("/sys/bus/pci/drivers_probe", address);
    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", address);
    length = readlink(path, link, sizeof(link) - 1);
    if (length < 0)
        die("%s", path);
    link[length] = '\0';
    name = strrchr(link, '/');
    snprintf(path, sizeof(path), "/dev/vfio/noiommu-%s", name ? name + 1 : link);
    group = open(path, O_RDWR);
    if (group < 0)
        die("%s", path);
    return group;
}

static void open_device(const char *address)
{
    int group = open_group(address), container = open("/dev/vfio/vfio", O_RDWR);
    const uint16_t command = 0x0006; /* memory, bus master */

    if (container < 0 || ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) != 0 ||
        ioctl(container, VFIO_SET_IOMMU, VFIO_NOIOMMU_IOMMU) != 0)
        die("VFIO container");
    edu.device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address);
    if (edu.device < 0)
        die("%s", address);
    if (pwrite(edu.device, &command, sizeof(command),
               ((off_t)VFIO_PCI_CONFIG_REGION_INDEX << 40) + 4) != sizeof(command))
        die("command register");
    edu.registers = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, edu.device, 0);
    if (edu.registers == MAP_FAILED)
        die("registers");
    set(ACKNOWLEDGE,
        get(STATUS)); /* what a guest left that was killed: this device cannot be reset */
}

static int set_irqs(uint32_t flags, unsigned count)
{
    uint8_t buffer[sizeof(struct vfio_irq_set) + sizeof(int32_t)] __attribute__((aligned(8)));
    struct vfio_irq_set *irqs = (struct vfio_irq_set *)buffer;

    *irqs = (struct vfio_irq_set){
        .argsz = sizeof(buffer), .flags = flags, .index = edu.index, .count = count};
    memcpy(irqs->data, &edu.event, sizeof(edu.event));
    return ioctl(edu.device, VFIO_DEVICE_SET_IRQS, irqs);
}

static void enable_interrupts(void)
{
    edu.event = eventfd(0, EFD_NONBLOCK);
    if (edu.event < 0 || set_irqs(VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, 1) != 0)
        die("interrupts");
}

/* The guest's VFIO masks INTx, too, when it has signalled it. */
static void unmask(void)
{
    if (edu.index == VFIO_PCI_INTX_IRQ_INDEX &&
        set_irqs(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK, 1) != 0)
        die("unmask");
}

/* How many interrupts came, at least one unless time is up. */
static uint64_t wait_interrupt(int limit_ms)
{
    struct pollfd poll_fd = {.fd = edu.event, .events = POLLIN};
    uint64_t count = 0;

    if (poll(&poll_fd, 1, limit_ms) != 1 || read(edu.event, &count, sizeof(count)) < 0)
        return 0;
    return count;
}

/* Interrupts that the kernel has counted on the line or message that VFIO has for the device. */
static uint64_t in_kernel(void)
{
    FILE *file = fopen("/proc/interrupts", "re");
    char line[512];
    uint64_t total = 0;

    if (!file)
        die("/proc/interrupts");
    while (fgets(line, sizeof(line), file)) {
        char *at = strchr(line, ':');

        if (!strstr(line, "vfio-") || !strstr(line, edu.address) || !at)
            continue;
        for (at++; *(at += strspn(at, " ")) >= '0' && *at <= '9';)
            total += strtoull(at, &at, 10);
    }
    fclose(file);
    return total;
}

/* --- DMA ------------------------------------------------------------------------------------ */

/* Locked memory stays, but not where it is, unless compaction is told to leave it alone: there is
 * no IOMMU that would know. */
static void make_page(void)
{
    uint64_t entry = 0;
    int pagemap = open("/proc/self/pagemap", O_RDONLY);

    write_text("/proc/sys/vm/compact_unevictable_allowed", "0");
    edu.page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (edu.page == MAP_FAILED || mlock(edu.page, PAGE) != 0)
        die("DMA page");
    edu.page[0] = 1;
    if (pread(pagemap, &entry, sizeof(entry), (off_t)((uintptr_t)edu.page / PAGE * 8)) !=
        sizeof(entry))
        die("pagemap");
    edu.page_address = (entry & ((UINT64_C(1) << 55) - 1)) * PAGE;
    close(pagemap);
}

static void start_dma(uint64_t source, uint64_t target, uint32_t direction)
{
    set64(DMA_SOURCE, source);
    set64(DMA_TARGET, target);
    set64(DMA_COUNT, PAGE);
    set64(DMA_COMMAND, DMA_RUN | direction);
}

static bool page_is(uint8_t pattern)
{
    for (unsigned i = 0; i < PAGE; i++) {
        if (edu.page[i] != (uint8_t)(pattern + i))
            return false;
    }
    return true;
}

/* Goes on with copying when the device has done its part, which takes it 0.1 s. */
static void copy_on(void)
{
    if (edu.copying != 0 && (get(DMA_COMMAND) & DMA_RUN))
        return;
    switch (edu.copying) {
    case 0:
        edu.pattern++;
        for (unsigned i = 0; i < PAGE; i++)
            edu.page[i] = (uint8_t)(edu.pattern + i);
        start_dma(edu.page_address, DEVICE_BUFFER, 0);
        edu.copying = 1;
        break;
    case 1:
        memset(edu.page, 0, PAGE);
        start_dma(DEVICE_BUFFER, edu.page_address, DMA_FROM_DEVICE);
        edu.copying = 2;
        break;
    default:
        edu.copies++;
        edu.mistakes += !page_is(edu.pattern);
        edu.copying = 0;
    }
}

/* --- counting ------------------------------------------------------------------------------- */

/* @return false when the interrupt is lost */
static bool raise_and_handle(void)
{
    set(RAISE, ++edu.raised);
    for (;;) {
        uint64_t count = wait_interrupt(LOST_MS);
        uint32_t status = get(STATUS);

        if (count == 0)
            return false;
        if (status != 0 || edu.index != VFIO_PCI_INTX_IRQ_INDEX) {
            edu.handled += count;
            edu.mistakes += status != edu.raised;
            set(ACKNOWLEDGE, status);
            unmask();
            return true;
        }
        edu.spurious += count;
        unmask();
    }
}

static uint64_t milliseconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Told to, but not before something was copied, which a quick machine may not have had the time
 * for. */
static bool is_over(uint64_t start)
{
    return has_file("stop") && (edu.copies != 0 || milliseconds() - start > FIRST_COPY_MS);
}

static void count(void)
{
    uint64_t start = milliseconds(), last = start, before = in_kernel();

    while (raise_and_handle()) {
        if (edu.rest != 0)
            usleep(edu.rest);
        if (edu.raised % 16 == 0)
            copy_on();
        if (milliseconds() - last < 100)
            continue;
        last = milliseconds();
        put_file("progress", "%u\n", edu.raised);
        if (is_over(start))
            break;
    }
    /* One that comes now was raised by nobody. */
    if (edu.index == VFIO_PCI_INTX_IRQ_INDEX)
        edu.spurious += wait_interrupt(500);
    else
        edu.handled += wait_interrupt(500);
    put_file("result", "%u %ju %ju %ju %ju %ju %u\n", edu.raised, (uintmax_t)edu.handled,
             (uintmax_t)(in_kernel() - before), (uintmax_t)edu.spurious, (uintmax_t)edu.copies,
             (uintmax_t)edu.mistakes, get(STATUS));
}

/* --- steps ---------------------------------------------------------------------------------- */

static void step(unsigned number)
{
    char name[16];

    snprintf(name, sizeof(name), "step%u", number);
    put_file(name, "\n");
    snprintf(name, sizeof(name), "go%u", number);
    while (!has_file(name))
        usleep(20000);
}

static void expect(const char *what, uint64_t got, uint64_t least, uint64_t most)
{
    if (got >= least && got <= most)
        return;
    put_file("result", "%s: %ju interrupts\n", what, (uintmax_t)got);
    exit(1);
}

static void steps(void)
{
    set(RAISE, 1);
    expect("raised", wait_interrupt(LOST_MS), 1, 1);
    step(1); /* handled, not acknowledged: the device asserts, the guest has it masked */
    expect("masked", wait_interrupt(500), 0, 0);
    unmask();
    expect("unmasked while asserted", wait_interrupt(LOST_MS), 1, 1);
    set(ACKNOWLEDGE, 1);

    step(2); /* acknowledged, still masked: nothing asserts */
    unmask();
    if (wait_interrupt(500) != 0) /* one may: a level has no memory, the controller has */
        unmask();
    expect("silent", wait_interrupt(200), 0, 0);

    if (set_irqs(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_MASK, 1) != 0)
        die("mask");
    set(RAISE, 2);
    step(3); /* asserted after it was masked: nobody has ever been told */
    expect("masked by request", wait_interrupt(500), 0, 0);
    unmask();
    expect("unmasked after it was raised", wait_interrupt(LOST_MS), 1, 1);
    set(ACKNOWLEDGE, 2);
    unmask();

    step(4); /* idle */
    set(RAISE, 4);
    expect("raised after all", wait_interrupt(LOST_MS), 1, 1);
    set(ACKNOWLEDGE, 4);
    put_file("result", "ok\n");
}

int main(int argc, char **argv)
{
    if (argc < 4 || argc > 5) {
        fprintf(stderr, "usage: edu-driver ADDRESS DIRECTORY msi|intx|steps [REST]\n");
        return 2;
    }
    edu.address = argv[1];
    edu.directory = argv[2];
    edu.rest = argc > 4 ? (useconds_t)atoi(argv[4]) : 0;
    edu.index = strcmp(argv[3], "msi") == 0 ? VFIO_PCI_MSI_IRQ_INDEX : VFIO_PCI_INTX_IRQ_INDEX;
    open_device(edu.address);
    make_page();
    enable_interrupts();
    if (strcmp(argv[3], "steps") == 0)
        steps();
    else
        count();
    return 0;
}
