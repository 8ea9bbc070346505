/* SPDX-License-Identifier: Apache-2.0
 *
 * See iommu_fixture.h.
 */
#include "iommu_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "iommu/uapi_compat.h"

/* --- the fake kernel --- */

struct record record;

/* @return 0, or -1 when the call is to fail */
static int note(const char *format, ...) __attribute__((format(printf, 1, 2)));
static int note(const char *format, ...)
{
    size_t used = strlen(record.log);
    char *start = record.log + used;
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(start, sizeof(record.log) - used, format, arguments);
    va_end(arguments);
    if (record.fail == NULL || strcmp(start, record.fail) != 0)
        return 0;
    if (record.skip > 0) {
        record.skip--;
        return 0;
    }
    if (record.times > 1)
        record.times--;
    else
        record.fail = NULL;
    errno = record.code;
    return -1;
}

int new_fd(void)
{
    return eventfd(0, EFD_CLOEXEC);
}

/* Overrides the C library's. */
int open(const char *path, int flags, ...)
{
    (void)flags;
    if (strncmp(path, "/dev/", strlen("/dev/")) != 0) {
        errno = ENOENT;
        return -1;
    }
    return note("open %s;", path + strlen("/dev/")) == 0 ? new_fd() : -1;
}

/* The region that lies at an address. */
static unsigned region_at(uint64_t iova)
{
    return iova == 0 ? 0 : 1;
}

static int fake_map(const struct vfio_iommu_type1_dma_map *map)
{
    enum whose *whose = &record.map[region_at(map->iova)];

    if (!(map->flags & VFIO_DMA_MAP_FLAG_VADDR)) {
        if (note("map %u;", region_at(map->iova)) < 0)
            return -1;
        assert_int_equal(*whose, UNMAPPED);
        *whose = OURS;
        return 0;
    }
    if (note("set %u;", region_at(map->iova)) < 0)
        return -1;
    assert_int_not_equal(map->vaddr, 0);
    errno = *whose == UNMAPPED ? ENOENT : EINVAL;
    if (*whose != NOBODY)
        return -1;
    *whose = OURS;
    return 0;
}

static int fake_unmap(const struct vfio_iommu_type1_dma_unmap *unmap)
{
    enum whose *whose = &record.map[region_at(unmap->iova)];

    assert_int_equal(unmap->flags, VFIO_DMA_UNMAP_FLAG_VADDR);
    if (note("give %u;", region_at(unmap->iova)) < 0)
        return -1;
    errno = EINVAL;
    if (*whose == UNMAPPED || *whose == NOBODY)
        return -1;
    *whose = NOBODY;
    return 0;
}

static int fake_extension(unsigned long extension)
{
    if (extension == VFIO_UPDATE_VADDR)
        return !record.no_update;
    if (extension == VFIO_UNMAP_ALL)
        return !record.no_unmap_all;
    return 1;
}

static int fake_iommufd(unsigned long request, void *argument)
{
    struct uapi_ioas_change_process *change = argument;
    struct uapi_ioas_map_file *map = argument;
    struct uapi_ioas_copy *copy = argument;
    struct uapi_ioas_alloc *alloc = argument;

    switch (request) {
    case UAPI_IOAS_ALLOC:
        alloc->out_ioas_id = ++record.ioases;
        return note("alloc;");
    case UAPI_IOAS_MAP_FILE:
        return note("file %u;", region_at(map->iova));
    case UAPI_IOAS_COPY:
        assert_int_equal(copy->src_ioas_id, 1); /* the first one's, and the third is it */
        assert_int_equal(copy->dst_ioas_id, 3);
        return note("copy %u;", region_at(copy->dst_iova));
    case UAPI_IOAS_CHANGE_PROCESS:
        if (!change->reserved)
            return note("own;");
        note("known;");
        errno = record.no_iommufd ? ENOTTY : EOPNOTSUPP;
        return -1;
    case UAPI_VFIO_BIND_IOMMUFD:
        return note("bind;");
    case UAPI_VFIO_ATTACH_IOMMUFD_PT:
        return note("attach;");
    default:
        return note("surprise %lx;", request);
    }
}

int ioctl(int fd, unsigned long request, ...)
{
    struct vfio_group_status *status;
    va_list arguments;
    void *argument;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    (void)fd;
    switch (request) {
    case VFIO_GET_API_VERSION:
        return VFIO_API_VERSION;
    case VFIO_CHECK_EXTENSION:
        return fake_extension((unsigned long)argument);
    case VFIO_GROUP_GET_STATUS:
        status = argument;
        status->flags = VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_CONTAINER_SET;
        return 0;
    case VFIO_GROUP_SET_CONTAINER:
        return note("join;");
    case VFIO_SET_IOMMU:
        return note("iommu;");
    case VFIO_GROUP_GET_DEVICE_FD:
        return note("device %s;", (const char *)argument) == 0 ? new_fd() : -1;
    case VFIO_IOMMU_MAP_DMA:
        return fake_map(argument);
    case VFIO_IOMMU_UNMAP_DMA:
        return fake_unmap(argument);
    case VFIO_DEVICE_GET_INFO:
        return 0;
    default:
        return fake_iommufd(request, argument);
    }
}

/* --- what the tests have --- */

static unsigned count_files(void)
{
    unsigned count = 0;

    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void add_device(const struct fixture *fixture, const char *name, const char *group)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/%s", fixture->directory, name);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(path, sizeof(path), "%s/%s/iommu_group", fixture->directory, name);
    assert_int_equal(symlink(group, path), 0);
}

static void remove_device(const struct fixture *fixture, const char *name)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/%s/iommu_group", fixture->directory, name);
    unlink(path);
    snprintf(path, sizeof(path), "%s/%s", fixture->directory, name);
    rmdir(path);
}

static const char *const devices[][2] = {
    {"a", "groups/7"}, {"b", "groups/7"}, {"c", "groups/8"}, {"d", "groups/odd"}};

int iommu_fixture_setup(void **state)
{
    struct fixture *fixture = xcalloc(1, sizeof(*fixture));

    memset(&record, 0, sizeof(record));
    fixture->files = count_files();
    strcpy(fixture->directory, "/tmp/test_iommu.XXXXXX");
    assert_non_null(mkdtemp(fixture->directory));
    for (size_t i = 0; i < ARRAY_SIZE(devices); i++)
        add_device(fixture, devices[i][0], devices[i][1]);
    fixture->memory.region_count = REGIONS;
    for (unsigned i = 0; i < REGIONS; i++) {
        fixture->memory.regions[i].mapping =
            (struct iommu_mapping){.iova = i * 0x10000, .size = 0x8000, .offset = i * 0x8000};
        fixture->memory.regions[i].host = (void *)(uintptr_t)(0x1000000 * (i + 1));
    }
    iommu_set_create(&fixture->set, &fixture->memory);
    *state = fixture;
    return 0;
}

int iommu_fixture_teardown(void **state)
{
    struct fixture *fixture = *state;

    iommu_set_destroy(fixture->set);
    for (size_t i = 0; i < ARRAY_SIZE(devices); i++)
        remove_device(fixture, devices[i][0]);
    rmdir(fixture->directory);
    assert_int_equal(count_files(), fixture->files);
    free(fixture);
    return 0;
}

int attach(struct fixture *fixture, const char *name, const struct iommu_choice *choice,
           struct error *error)
{
    struct iommu_device device = {.fd = -1};
    char sysfs[128];
    int result;

    snprintf(sysfs, sizeof(sysfs), "%s/%s", fixture->directory, name);
    device.sysfs = sysfs;
    result = iommu_set_attach(fixture->set, choice, &device, error);
    if (result == 0) {
        assert_true(device.fd >= 0);
        assert_true(device.kvm_fd >= 0);
        close(device.fd);
    } else {
        assert_int_equal(device.fd, -1);
        assert_int_equal(result, -error->code);
    }
    return result;
}

const struct iommu_choice common = {.iommufd = "", .ioas = "", .container = ""};
const struct iommu_choice other = {.iommufd = "", .ioas = "", .container = "other"};

void attach_ok(struct fixture *fixture, const char *name, const struct iommu_choice *choice)
{
    struct error error = {0};

    if (attach(fixture, name, choice, &error) != 0)
        fail_msg("%s", error.message);
}

void forget(void)
{
    record.log[0] = '\0';
}

int adopt(struct fixture *fixture, struct iommu_set **adopted, struct fdset *fds,
          const char *missing, struct error *error)
{
    struct iommu_facts *facts = xcalloc(IOMMU_SPACES_MAX, sizeof(*facts));
    uint32_t count;
    int result;

    assert_int_equal(iommu_set_describe(fixture->set, facts, &count, fds, error), 0);
    if (missing)
        close(fdset_take(fds, FDSET_ANY, error, "%s", missing));
    forget();
    result = iommu_set_adopt(adopted, &fixture->memory, facts, count, fds, error);
    free(facts);
    return result;
}
