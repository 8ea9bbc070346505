/* SPDX-License-Identifier: Apache-2.0
 *
 * See runtime.h.
 */
#include "control/runtime.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/unix_socket.h"
#include "base/util.h"

static int print_path(char path[RUNTIME_PATH_SIZE], const char *directory, const char *rest,
                      struct error *error)
{
    if (directory[0] != '/')
        return error_set(error, EINVAL, "the runtime directory '%s' must be an absolute path",
                         directory);
    if ((size_t)snprintf(path, RUNTIME_PATH_SIZE, "%s%s", directory, rest) >= RUNTIME_PATH_SIZE)
        return error_set(error, ENAMETOOLONG, "the runtime directory '%s' is too long", directory);
    return 0;
}

int runtime_directory(char path[RUNTIME_PATH_SIZE], struct error *error)
{
    const char *own = getenv("BATON_RUNTIME_DIR");
    const char *user = getenv("XDG_RUNTIME_DIR");

    if (own && own[0])
        return print_path(path, own, "", error);
    if (user && user[0])
        return print_path(path, user, "/baton", error);
    if (geteuid() == 0)
        return print_path(path, "/run/baton", "", error);
    return error_set(error, ENOENT,
                     "no directory for control sockets: set BATON_RUNTIME_DIR or "
                     "XDG_RUNTIME_DIR");
}

int runtime_path(char path[RUNTIME_PATH_SIZE], const char *name, const char *file,
                 struct error *error)
{
    int ret = runtime_directory(path, error);
    size_t used, room;

    if (ret < 0)
        return ret;
    if (name[0] == '\0' || name[0] == '.' || strchr(name, '/') != NULL)
        return error_set(error, EINVAL, "'%s' cannot be the name of a guest", name);
    used = strlen(path);
    room = RUNTIME_PATH_SIZE - used;
    if ((size_t)snprintf(path + used, room, "/%s%s%s", name, file ? "/" : "", file ? file : "") >=
        room)
        return error_set(error, ENAMETOOLONG, "the path of guest '%s' is too long", name);
    return 0;
}

/* Makes a directory that is ours alone, or checks that it is. */
static int make_private(const char *path, struct error *error)
{
    struct stat status;

    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return error_set_errno(error, errno, "cannot make the directory '%s'", path);
    if (lstat(path, &status) < 0)
        return error_set_errno(error, errno, "cannot look at the directory '%s'", path);
    if (!S_ISDIR(status.st_mode) || status.st_uid != geteuid() || (status.st_mode & 022) != 0)
        return error_set(error, EPERM,
                         "'%s' must be a directory of this user that nobody else can "
                         "write to: remove it, or set BATON_RUNTIME_DIR",
                         path);
    return 0;
}

int runtime_create(const char *name, struct error *error)
{
    char path[RUNTIME_PATH_SIZE];
    int ret = runtime_directory(path, error);

    if (ret == 0)
        ret = make_private(path, error);
    if (ret == 0)
        ret = runtime_path(path, name, NULL, error);
    return ret < 0 ? ret : make_private(path, error);
}

static int is_channel(const struct dirent *entry)
{
    return strncmp(entry->d_name, RUNTIME_CPR, strlen(RUNTIME_CPR)) == 0;
}

void runtime_remove(const char *name)
{
    char directory[RUNTIME_PATH_SIZE], path[RUNTIME_PATH_SIZE];
    struct dirent **entries = NULL;
    struct error error = {0};
    int count;

    if (runtime_path(directory, name, NULL, &error) < 0)
        return;
    count = scandir(directory, &entries, is_channel, NULL);
    for (int i = 0; i < count; i++) {
        if (runtime_path(path, name, entries[i]->d_name, &error) == 0)
            unix_remove_stale(path);
        free(entries[i]);
    }
    free(entries);
    rmdir(directory);
}

int runtime_write_pidfile(const char *path, struct error *error)
{
    char temporary[RUNTIME_PATH_SIZE + 16];
    CLEANUP_CLOSE int fd = -1;

    snprintf(temporary, sizeof(temporary), "%s.%d", path, (int)getpid());
    fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return error_set_errno(error, errno, "-pidfile: cannot write '%s'", path);
    if (dprintf(fd, "%d\n", (int)getpid()) < 0 || rename(temporary, path) < 0) {
        int code = errno;

        unlink(temporary);
        return error_set_errno(error, code, "-pidfile: cannot write '%s'", path);
    }
    return 0;
}

void runtime_remove_pidfile(const char *path)
{
    char text[32] = "";
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd >= 0 && read(fd, text, sizeof(text) - 1) > 0 && atoi(text) == (int)getpid())
        unlink(path);
}
