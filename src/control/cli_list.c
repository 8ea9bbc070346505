/* SPDX-License-Identifier: Apache-2.0
 *
 * "baton list": asks every guest of the runtime directory. A guest that does not answer in time is
 * shown as such; what a dead process left behind is not shown.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "control/cli.h"
#include "control/client.h"
#include "control/runtime.h"

#define GUEST_TIMEOUT_NS UINT64_C(2000000000)

static void print_guest(const char *name)
{
    char path[RUNTIME_PATH_SIZE], status[32] = "does not answer";
    uint64_t deadline = clock_ns() + GUEST_TIMEOUT_NS;
    struct error error = {0};
    struct client client;
    int ret = runtime_path(path, name, RUNTIME_QMP, &error);

    if (ret < 0)
        return;
    ret = client_open(&client, path, deadline, &error);
    if (ret == -ENOENT || ret == -ECONNREFUSED)
        return;
    if (ret < 0) {
        printf("%-20s %8d %-16s %s\n", name, (int)client.pid, status, "-");
        return;
    }
    client_query_status(&client, status, sizeof(status), deadline, &error);
    printf("%-20s %8d %-16s %s\n", name, (int)client.pid, status, client.version);
    client_close(&client);
}

static int is_guest(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

int cli_list(int argc, char **argv)
{
    char directory[RUNTIME_PATH_SIZE];
    struct dirent **entries = NULL;
    struct error error = {0};
    int count;

    if (argc > 0) {
        fprintf(stderr, "baton list: takes no argument, but was given '%s'\n", argv[0]);
        return EXIT_USAGE;
    }
    if (runtime_directory(directory, &error) < 0) {
        fprintf(stderr, "baton list: %s\n", error.message);
        return EXIT_FAILURE;
    }
    count = scandir(directory, &entries, is_guest, alphasort);
    if (count < 0 && errno != ENOENT) {
        fprintf(stderr, "baton list: cannot read '%s': %s\n", directory, strerror(errno));
        return EXIT_FAILURE;
    }
    printf("%-20s %8s %-16s %s\n", "NAME", "PID", "STATUS", "VERSION");
    for (int i = 0; i < count; i++) {
        print_guest(entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    return EXIT_SUCCESS;
}
