/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs a fuzz target over files, and over the files in directories: corpora are replayed by the
 * ordinary test suite, without libFuzzer and with any compiler. One thread.
 */
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

#define INPUT_MAX (1u << 20)

static int replay_file(const char *path)
{
    FILE *file = fopen(path, "rbe");
    uint8_t *room, *exact;
    size_t length;

    if (file == NULL) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return 1;
    }
    room = malloc(INPUT_MAX);
    length = room ? fread(room, 1, INPUT_MAX, file) : 0;
    fclose(file);
    /* Of the exact size, so that a sanitizer sees a byte read past the end. */
    exact = malloc(length + !length);
    if (exact && room) {
        memcpy(exact, room, length);
        LLVMFuzzerTestOneInput(exact, length);
    }
    free(exact);
    free(room);
    return exact == NULL || room == NULL;
}

static int replay(const char *path, unsigned *count)
{
    DIR *dir = opendir(path);
    struct dirent *file;
    int failures = 0;

    if (dir == NULL) {
        (*count)++;
        return replay_file(path);
    }
    while ((file = readdir(dir))) {
        char name[4096];

        if (file->d_name[0] == '.')
            continue;
        snprintf(name, sizeof(name), "%s/%s", path, file->d_name);
        failures += replay(name, count);
    }
    closedir(dir);
    return failures;
}

int main(int argc, char **argv)
{
    unsigned count = 0;
    int failures = 0;

    for (int i = 1; i < argc; i++)
        failures += replay(argv[i], &count);
    printf("%u inputs\n", count);
    /* An empty corpus would test nothing and pass. */
    return failures || count == 0;
}
