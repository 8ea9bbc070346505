/* SPDX-License-Identifier: Apache-2.0
 *
 * See ram.h. The memfd is sealed against shrinking and growing: a peer that holds it cannot make
 * an access of ours fault.
 */
#include "memory/ram.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/util.h"
#include "memory/layout.h"

#define RAM_SEALS       (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define STAT_BLOCK_SIZE 512u /* stat(3type) */

static unsigned memfd_flags(uint64_t hugetlb_size)
{
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;

    if (hugetlb_size)
        flags |= MFD_HUGETLB | ((unsigned)__builtin_ctzll(hugetlb_size) << MFD_HUGE_SHIFT);
    return flags;
}

/* Splits the memfd around the 32-bit hole. */
static void lay_out(struct ram *ram)
{
    uint64_t below = MIN(ram->size, (uint64_t)LAYOUT_RAM_BELOW_4G_MAX);

    ram->regions[0] = (struct ram_region){.gpa = 0, .size = below, .host = ram->host};
    ram->region_count = 1;
    if (ram->size > below) {
        ram->regions[1] = (struct ram_region){.gpa = LAYOUT_RAM_ABOVE_4G,
                                              .size = ram->size - below,
                                              .offset = below,
                                              .host = ram->host + below};
        ram->region_count = 2;
    }
}

/* Huge pages are reserved, so that a lack of them is an error here and not SIGBUS later. */
static int map(struct ram *ram, struct error *error)
{
    bool huge = ram->page_size != PAGE_SIZE;
    void *host = mmap(NULL, ram->size, PROT_READ | PROT_WRITE,
                      MAP_SHARED | (huge ? 0 : MAP_NORESERVE), ram->fd, 0);

    if (host == MAP_FAILED)
        return error_set_errno(error, errno, "cannot map %ju MiB of guest memory%s",
                               (uintmax_t)(ram->size / MIB),
                               huge ? " (are enough huge pages of that size free?)" : "");
    ram->host = host;
    /* A core dump of the monitor must not contain the guest. */
    madvise(host, ram->size, MADV_DONTDUMP);
    if (ram->page_size == PAGE_SIZE)
        madvise(host, ram->size, MADV_HUGEPAGE);
    lay_out(ram);
    return 0;
}

static int populate(struct ram *ram, struct error *error)
{
    if (madvise(ram->host, ram->size, MADV_POPULATE_WRITE) < 0)
        return error_set_errno(error, errno, "cannot allocate %ju MiB of guest memory",
                               (uintmax_t)(ram->size / MIB));
    return 0;
}

static void init(struct ram *ram, int fd, uint64_t size, uint64_t hugetlb_size)
{
    *ram =
        (struct ram){.fd = fd, .size = size, .page_size = hugetlb_size ? hugetlb_size : PAGE_SIZE};
}

int ram_create(struct ram *ram, const char *name, uint64_t size, uint64_t hugetlb_size,
               bool prealloc, struct error *error)
{
    int fd, ret;

    init(ram, -1, size, hugetlb_size);
    fd = memfd_create(name, memfd_flags(hugetlb_size));
    if (fd < 0)
        return error_set_errno(error, errno, "memory '%s': memfd_create failed%s", name,
                               hugetlb_size ? " (are huge pages of that size configured?)" : "");
    ram->fd = fd;
    if (ftruncate(fd, (off_t)size) < 0)
        ret = error_set_errno(error, errno, "memory '%s': cannot size it to %ju MiB", name,
                              (uintmax_t)(size / MIB));
    else if (fcntl(fd, F_ADD_SEALS, RAM_SEALS) < 0)
        ret = error_set_errno(error, errno, "memory '%s': cannot seal it", name);
    else
        ret = map(ram, error);
    if (ret == 0 && prealloc)
        ret = populate(ram, error);
    if (ret < 0)
        ram_destroy(ram);
    return ret;
}

/* A descriptor from another process is guest memory only if it cannot change its size. */
static int check_adopted(int fd, uint64_t size, struct error *error)
{
    struct stat status;
    int seals = fcntl(fd, F_GET_SEALS);

    if (seals < 0 || fstat(fd, &status) < 0)
        return error_set_errno(error, errno, "guest memory: the descriptor is not a memfd");
    if ((seals & RAM_SEALS) != RAM_SEALS)
        return error_set(error, EINVAL, "guest memory: the memfd is not sealed (seals 0x%x)",
                         (unsigned)seals);
    if ((uint64_t)status.st_size != size)
        return error_set(error, EINVAL, "guest memory: the memfd has %jd bytes, expected %ju",
                         (intmax_t)status.st_size, (uintmax_t)size);
    return 0;
}

int ram_adopt(struct ram *ram, int fd, uint64_t size, uint64_t hugetlb_size, struct error *error)
{
    int ret;

    init(ram, fd, size, hugetlb_size);
    ret = check_adopted(fd, size, error);
    if (ret == 0)
        ret = map(ram, error);
    if (ret < 0)
        ram_destroy(ram);
    return ret;
}

void ram_destroy(struct ram *ram)
{
    if (ram->host)
        munmap(ram->host, ram->size);
    close_fd(ram->fd);
    *ram = (struct ram){.fd = -1};
}

bool ram_is_allocated(const struct ram *ram)
{
    struct stat status;

    return fstat(ram->fd, &status) == 0 &&
           (uint64_t)status.st_blocks * STAT_BLOCK_SIZE >= ram->size;
}

void *ram_pointer(const struct ram *ram, uint64_t gpa, uint64_t size)
{
    for (unsigned i = 0; i < ram->region_count; i++) {
        const struct ram_region *region = &ram->regions[i];

        if (gpa >= region->gpa && range_fits(gpa - region->gpa, size, region->size))
            return region->host + (gpa - region->gpa);
    }
    return NULL;
}
