/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads the definition of every guest in guests/ as an incoming process reads it, and compares what
 * comes of it with the values that were recorded when it was made; see README.md.
 *
 *     test_definitions [--write [NAME OPTION...]]    writes guests/NAME.definition
 *
 * Every option of "baton run -help" that travels, and every property of it, must be in one of them.
 * One thread.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "devices/chardev.h"
#include "golden_files.h"
#include "machine/handover.h"

#define WORDS_MAX 1024 /* of all guests */

/* --- a definition's values --- */

/* In the tables are the members that travel. */
static const struct state_field iommu_fields[] = {
    STATE_STRING(struct config_iommu, id, 1),
    STATE_UINT(struct config_iommu, fd, 1),
    STATE_END,
};

static const struct state_field device_fields[] = {
    STATE_STRING(struct config_vfio_pci, id, 1),
    STATE_STRING(struct config_vfio_pci, host, 1),
    STATE_STRING(struct config_vfio_pci, sysfsdev, 1),
    STATE_UINT(struct config_vfio_pci, fd, 1),
    STATE_STRING(struct config_vfio_pci, iommufd, 1),
    STATE_STRING(struct config_vfio_pci, ioas, 1),
    STATE_STRING(struct config_vfio_pci, container, 1),
    STATE_UINT(struct config_vfio_pci, hwpt, 1),
    STATE_BOOL(struct config_vfio_pci, p2p, 1),
    STATE_UINT(struct config_vfio_pci, devfn, 1),
    STATE_END,
};

struct socket_path {
    char path[CONFIG_PATH_SIZE];
};

static const struct state_field socket_fields[] = {
    STATE_STRING(struct socket_path, path, 1),
    STATE_END,
};

static const struct state_field config_fields[] = {
    STATE_STRING(struct config, name, 1),
    STATE_STRING(struct config, machine, 1),
    STATE_STRING(struct config, memory_backend, 1),
    STATE_UINT(struct config, memory_size, 1),
    STATE_UINT(struct config, hugetlb_size, 1),
    STATE_BOOL(struct config, prealloc, 1),
    STATE_UINT(struct config, cpus, 1),
    STATE_ARRAY(struct config, iommus, iommu_count, iommu_fields, 1),
    STATE_ARRAY(struct config, devices, device_count, device_fields, 1),
    STATE_STRING(struct config, kernel, 1),
    STATE_STRING(struct config, initrd, 1),
    STATE_STRING(struct config, append, 1),
    STATE_STRING(struct config, serial, 1),
    STATE_ARRAY(struct config, qmp, qmp_count, socket_fields, 1),
    STATE_STRING(struct config, pidfile, 1),
    STATE_END,
};

/* --- guests --- */

/* Definitions as this build writes them, of all guests: option, value, option, value... */
struct words {
    char *words[WORDS_MAX];
    size_t count;
};

static void add_words(struct words *words, const struct config *config)
{
    struct error error = {0};
    char **strings;
    size_t count;
    int result = config_to_options(config, &strings, &count, &error);

    assert(result == 0 && words->count + count <= WORDS_MAX);
    memcpy(words->words + words->count, strings, count * sizeof(*strings));
    words->count += count;
    free(strings);
}

static int check_guest(const char *path, bool write, struct words *words)
{
    CLEANUP_FREE uint8_t *bytes = xcalloc(1, GOLDEN_ROOM);
    struct golden_buffer buffer = {.bytes = bytes};
    struct config config;
    struct error error = {0};

    if (golden_read(path, &buffer, &error) < 0 ||
        machine_read_definition(&config, buffer.bytes, buffer.length, &error) < 0 ||
        chardev_check_spec(config.serial, &error) < 0) {
        printf("FAILED %s: %s\n", path, error.message);
        return 1;
    }
    if (golden_check_values(path, config_fields, &config, write) != 0)
        return 1;
    add_words(words, &config);
    printf("ok %s\n", path);
    return 0;
}

static int check_guests(bool write, struct words *words)
{
    DIR *dir = opendir(GUESTS_DIRECTORY);
    struct dirent *file;
    int failures = 0;

    if (dir == NULL) {
        printf("FAILED %s: %s\n", GUESTS_DIRECTORY, strerror(errno));
        return 1;
    }
    while ((file = readdir(dir))) {
        const char *suffix = strrchr(file->d_name, '.');
        char path[GOLDEN_PATH_SIZE];

        snprintf(path, sizeof(path), "%s/%s", GUESTS_DIRECTORY, file->d_name);
        if (suffix && strcmp(suffix, ".definition") == 0)
            failures += check_guest(path, write, words);
    }
    closedir(dir);
    return failures;
}

static int write_guest(const char *name, int argc, const char *const *argv)
{
    CLEANUP_FREE uint8_t *bytes = xcalloc(1, GOLDEN_ROOM);
    struct golden_buffer buffer = {.bytes = bytes};
    char path[GOLDEN_PATH_SIZE];
    struct config config;
    struct error error = {0};

    if (config_parse(&config, argc, argv, &error) < 0 ||
        machine_write_definition(&config, bytes, GOLDEN_ROOM, &buffer.length, &error) < 0) {
        printf("FAILED %s: %s\n", name, error.message);
        return 1;
    }
    snprintf(path, sizeof(path), "%s/%s.definition", GUESTS_DIRECTORY, name);
    return golden_write(path, &buffer);
}

/* --- whether nothing is left out --- */

/* Options that say how a process starts, or nothing at all. */
static bool never_travels(const char *option)
{
    static const char *const options[] = {
        "-accel",    "-enable-kvm", "-cpu", "-nographic", "-display", "-nodefaults", "-S",
        "-incoming", "-trace",      "-D",   "-sandbox",   "-version", "-help",
    };

    for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
        if (strcmp(options[i], option) == 0)
            return true;
    }
    return false;
}

/* @param key a property with its "=", or "" */
static bool has_property(const char *value, const char *key)
{
    const char *found = strstr(value, key);

    while (found && found != value && found[-1] != ',' && key[0])
        found = strstr(found + 1, key);
    return found != NULL;
}

static int check_property(const struct words *words, const char *option, const char *key)
{
    for (size_t i = 0; i + 1 < words->count; i += 2) {
        if (strcmp(words->words[i], option) == 0 && has_property(words->words[i + 1], key))
            return 0;
    }
    printf("FAILED option %s %s: no guest has it: test_definitions --write NAME OPTION...\n",
           option, key);
    return 1;
}

/* @param line of the help: "  -OPTION ARGUMENT", with KEY= in the argument */
static int check_option(const struct words *words, const char *line)
{
    char option[32], key[64];
    int failures, used;

    if (sscanf(line, " %31s%n", option, &used) != 1 || never_travels(option))
        return 0;
    failures = check_property(words, option, "");
    for (const char *at = line + used; *at;) {
        size_t length = strspn(at, "abcdefghijklmnopqrstuvwxyz0123456789-");

        snprintf(key, sizeof(key), "%.*s=", (int)length, at);
        if (length > 0 && at[length] == '=')
            failures += check_property(words, option, key);
        at += length + (at[length] != '\0');
    }
    return failures;
}

static int check_help(const struct words *words)
{
    int failures = 0;
    size_t size;
    char *help, *rest = NULL;
    FILE *out = open_memstream(&help, &size);

    assert(out);
    config_print_help(out);
    fclose(out);
    for (char *line = strtok_r(help, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        if (strncmp(line, "  -", 3) == 0)
            failures += check_option(words, line);
    }
    free(help);
    return failures;
}

int main(int argc, char **argv)
{
    bool write = argc > 1 && strcmp(argv[1], "--write") == 0;
    struct words words = {.count = 0};
    int failures = 0;

    if (argc > 2)
        failures += write_guest(argv[2], argc - 3, (const char *const *)argv + 3);
    failures += check_guests(write, &words);
    if (failures == 0)
        failures += check_help(&words);
    for (size_t i = 0; i < words.count; i++)
        free(words.words[i]);
    printf("%d failures\n", failures);
    return failures != 0;
}
