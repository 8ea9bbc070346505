/* SPDX-License-Identifier: Apache-2.0
 *
 * See fdset.h. A few thousand entries at most (one per interrupt vector), so a linear search by
 * name would be quadratic: entries stay sorted by name.
 */
#include "base/fdset.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"

/* Finds a name, or the place where it belongs. */
static bool find(const struct fdset *set, const char *name, size_t *index)
{
    size_t low = 0, high = set->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(set->entries[middle].name, name);

        if (order == 0) {
            *index = middle;
            return true;
        }
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    *index = low;
    return false;
}

static int format_name(char name[FDSET_NAME_SIZE], struct error *error, const char *format,
                       va_list args)
{
    int length = vsnprintf(name, FDSET_NAME_SIZE, format, args);

    if (length < 0 || length >= FDSET_NAME_SIZE)
        return error_set(error, ENAMETOOLONG, "descriptor name '%s...' is too long", name);
    return 0;
}

int fdset_add(struct fdset *set, int fd, const char *name, struct error *error)
{
    size_t index;

    if (strlen(name) >= FDSET_NAME_SIZE) {
        close_fd(fd);
        return error_set(error, ENAMETOOLONG, "descriptor name '%s' is too long", name);
    }
    if (find(set, name, &index)) {
        close_fd(fd);
        return error_set(error, EEXIST, "descriptor '%s' is there twice", name);
    }
    if (set->count == set->capacity) {
        set->capacity = set->capacity ? 2 * set->capacity : 32;
        set->entries = reallocarray(set->entries, set->capacity, sizeof(*set->entries));
        assert(set->entries != NULL);
    }
    memmove(&set->entries[index + 1], &set->entries[index],
            (set->count - index) * sizeof(*set->entries));
    set->count++;
    snprintf(set->entries[index].name, FDSET_NAME_SIZE, "%s", name);
    set->entries[index].fd = fd;
    return 0;
}

int fdset_add_copy(struct fdset *set, int fd, struct error *error, const char *name_format, ...)
{
    char name[FDSET_NAME_SIZE];
    va_list args;
    int copy, ret;

    va_start(args, name_format);
    ret = format_name(name, error, name_format, args);
    va_end(args);
    if (ret < 0)
        return ret;
    copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (copy < 0)
        return error_set_errno(error, errno, "cannot duplicate descriptor '%s'", name);
    return fdset_add(set, copy, name, error);
}

static bool is_eventfd(int fd)
{
    static const char kind[] = "anon_inode:[eventfd]";
    char path[32], target[sizeof(kind)];
    ssize_t length;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    length = readlink(path, target, sizeof(target));
    return length < 0 ||
           ((size_t)length == strlen(kind) && memcmp(target, kind, strlen(kind)) == 0);
}

static bool is_file(int fd)
{
    struct stat status;

    return fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

static bool is_of_kind(int fd, enum fdset_kind kind)
{
    switch (kind) {
    case FDSET_EVENTFD:
        return is_eventfd(fd);
    case FDSET_FILE:
        return is_file(fd);
    default:
        return true;
    }
}

int fdset_take(struct fdset *set, enum fdset_kind kind, struct error *error,
               const char *name_format, ...)
{
    static const char *const kinds[] = {
        [FDSET_EVENTFD] = "an eventfd", [FDSET_FILE] = "a regular file"};
    char name[FDSET_NAME_SIZE];
    size_t index;
    va_list args;
    int fd, ret;

    va_start(args, name_format);
    ret = format_name(name, error, name_format, args);
    va_end(args);
    if (ret < 0)
        return ret;
    if (!find(set, name, &index))
        return error_set(error, ENOENT, "descriptor '%s' is missing from the hand-over", name);
    fd = set->entries[index].fd;
    memmove(&set->entries[index], &set->entries[index + 1],
            (set->count - index - 1) * sizeof(*set->entries));
    set->count--;
    if (is_of_kind(fd, kind))
        return fd;
    close_fd(fd);
    return error_set(error, EINVAL, "descriptor '%s' of the hand-over is not %s", name,
                     kinds[kind]);
}

bool fdset_contains(const struct fdset *set, const char *name)
{
    size_t index;

    return find(set, name, &index);
}

/* kcmp orders the kernel's objects: 0 same, 1 less, 2 greater. Where it fails, @p failed gets errno
 * (once one is there it stays), and descriptors stand in, which are never the same. */
static int compare_objects(const void *a, const void *b, void *failed)
{
    const struct fdset_entry *const *left = a, *const *right = b;
    long order = syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, (*left)->fd, (*right)->fd);

    if (order >= 0 && order <= 2)
        return order == 0 ? 0 : order == 1 ? -1 : 1;
    if (*(int *)failed == 0)
        *(int *)failed = errno;
    return ((*left)->fd > (*right)->fd) - ((*left)->fd < (*right)->fd);
}

int fdset_check_distinct(const struct fdset *set, const char *prefix, struct error *error)
{
    CLEANUP_FREE const struct fdset_entry **sorted = xcalloc(set->count + 1, sizeof(*sorted));
    size_t count = 0;
    int failed = 0;

    for (size_t i = 0; i < set->count; i++) {
        if (strncmp(set->entries[i].name, prefix, strlen(prefix)) == 0)
            sorted[count++] = &set->entries[i];
    }
    qsort_r(sorted, count, sizeof(*sorted), compare_objects, &failed);
    for (size_t i = 1; i < count; i++) {
        if (compare_objects(&sorted[i - 1], &sorted[i], &failed) == 0)
            return error_set(error, EEXIST, "descriptors '%s' and '%s' are the same object",
                             sorted[i - 1]->name, sorted[i]->name);
    }
    /* A kernel or a sandbox without kcmp is no reason against a hand-over. */
    if (failed != 0 && failed != ENOSYS && failed != EPERM)
        return error_set_errno(error, failed, "cannot compare descriptors");
    return 0;
}

void fdset_clear(struct fdset *set)
{
    for (size_t i = 0; i < set->count; i++)
        close_fd(set->entries[i].fd);
    free(set->entries);
    *set = (struct fdset){0};
}
