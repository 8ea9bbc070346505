/* SPDX-License-Identifier: Apache-2.0
 *
 * See config.h. One table of options; one function per option that has parts (config_parser.h).
 * What concerns several options (ids that must exist, slots, the memory's size) is checked when all
 * are read. Called on the main thread, in a hand-over also for what a peer sent.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "machine/config_parser.h"

#define MEMORY_SIZE_DEFAULT (512 * MIB)

struct option {
    const char *name;
    const char *argument; /* for help; NULL when the option has none */
    int (*read)(struct parser *parser, const char *value);
    const char *help;
};

/* QEMU's rule for ids: a letter, then letters, digits and -._ */
int config_check_id(struct error *error, const char *option, const char *id)
{
    if (id[0] == '\0')
        return error_set(error, EINVAL, "%s: property 'id' is missing", option);
    for (const char *c = id; *c; c++) {
        if (!isalpha((unsigned char)*c) &&
            (c == id || (!isdigit((unsigned char)*c) && strchr("-._", *c) == NULL)))
            return error_set(error, EINVAL,
                             "%s: id '%s' must be a letter, followed by letters, "
                             "digits, '-', '.' or '_'",
                             option, id);
    }
    return 0;
}

/* Copies the value of an option without parts. */
int config_copy(struct parser *parser, const char *option, char *to, size_t size, const char *value)
{
    if (value[0] == '\0')
        return error_set(parser->error, EINVAL, "%s: the value is empty", option);
    if (strlen(value) >= size)
        return error_set(parser->error, EINVAL, "%s: longer than %zu characters", option, size - 1);
    strcpy(to, value);
    return 0;
}

static const struct option options[] = {
    {"name", "NAME", option_name, "name of the guest; 'baton update' and 'baton list' use it"},
    {"machine", "[type=]" CONFIG_MACHINE_VERSION "[,memory-backend=ID]", option_machine,
     "version of the machine that the guest sees, and its memory"},
    {"M", "TYPE", option_machine, NULL},
    {"accel", "kvm", option_accel, "accepted: there is no other"},
    {"enable-kvm", NULL, option_enable_kvm, "accepted: it always is"},
    {"cpu", "host", option_cpu, "accepted: there is no other"},
    {"m", "[size=]SIZE", option_memory, "memory, in MiB or with suffix K, M, G; default 512M"},
    {"smp", "[cpus=]N", option_smp, "virtual processors; default 1"},
    {"object", "memory-backend-memfd,id=ID,size=SIZE[,hugetlb=on[,hugetlbsize=2M]][,prealloc=on]",
     option_object, "memory, for -machine memory-backend=ID"},
    {"object", "iommufd,id=ID[,fd=N]", option_object,
     "an iommufd, for devices that name it; fd: a descriptor that baton inherits, of /dev/iommu"},
    {"device",
     "vfio-pci,host=ADDRESS|sysfsdev=DIR|fd=N[,id=ID][,iommufd=ID[,ioas=NAME]"
     "[,hwpt=shared|own|ioas]][,container=NAME][,p2p=on|off][,addr=SLOT]",
     option_device,
     "passes a PCI device of the host to the guest: by its address, its directory in sysfs (a "
     "mediated device), or a descriptor that baton inherits, of /dev/vfio/devices/vfioN; without "
     "iommufd=, through a legacy container"},
    {"kernel", "FILE", option_kernel, "bzImage or PVH ELF to boot; needed unless -incoming"},
    {"initrd", "FILE", option_initrd, "initial RAM disk"},
    {"append", "TEXT", option_append, "kernel command line"},
    {"serial", "SPEC", option_serial,
     "stdio, pty, file:PATH, unix:PATH,server=on, null or none (default)"},
    {"nographic", NULL, option_nographic, "-serial stdio, unless -serial is given"},
    {"display", "none", option_display, "accepted: there is no other"},
    {"nodefaults", NULL, option_nodefaults, "accepted: there are no defaults to leave out"},
    {"qmp", "unix:PATH,server=on,wait=off", option_qmp, "control socket; several are possible"},
    {"pidfile", "FILE", option_pidfile, "holds the id of the process that runs the guest"},
    {"S", NULL, option_start_paused, "do not start the guest before QMP says cont"},
    {"incoming",
     "'{\"channel-type\":\"cpr\",\"addr\":{\"transport\":\"socket\",\"type\":\"unix\","
     "\"path\":PATH}}'",
     option_incoming, "take a guest over from another process"},
    {"incoming", "tcp:HOST:PORT | unix:PATH | defer", option_incoming,
     "QEMU's main channel: accepted, not used"},
    {"trace", "[enable=]PATTERN | help", option_trace,
     "events to write a line about, such as 'update_*'; several are possible; 'help' lists them"},
    {"D", "FILE", option_log_file, "where the lines of -trace go; default: standard error"},
    {"sandbox", "[enable=]on|off", option_sandbox,
     "filter the system calls of each thread; default: on"},
    {"version", NULL, option_version, "print the version"},
    {"help", NULL, option_help, "print this"},
    {"h", NULL, option_help, NULL},
};

void config_print_help(FILE *out)
{
    for (unsigned i = 0; i < ARRAY_SIZE(options); i++) {
        if (options[i].help == NULL)
            continue;
        fprintf(out, "  -%s%s%s\n        %s\n", options[i].name, options[i].argument ? " " : "",
                options[i].argument ? options[i].argument : "", options[i].help);
    }
}

static const struct option *find_option(const char *argument)
{
    if (argument[0] != '-')
        return NULL;
    argument += argument[1] == '-' ? 2 : 1;
    for (unsigned i = 0; i < ARRAY_SIZE(options); i++) {
        if (strcmp(options[i].name, argument) == 0)
            return &options[i];
    }
    return NULL;
}

int config_parse(struct config *config, int argc, const char *const *argv, struct error *error)
{
    struct parser parser = {.config = config, .error = error};
    int ret;

    *config = (struct config){.memory_size = MEMORY_SIZE_DEFAULT, .cpus = 1};
    strcpy(config->machine, CONFIG_MACHINE_VERSION);
    strcpy(config->serial, "none");
    for (int i = 0; i < argc; i++) {
        const struct option *option = find_option(argv[i]);
        const char *value = NULL;

        if (option == NULL)
            return error_set(error, EINVAL, "baton has no option '%s' (see baton run -help)",
                             argv[i]);
        if (option->argument != NULL) {
            if (i + 1 == argc)
                return error_set(error, EINVAL, "-%s: the value is missing", option->name);
            value = argv[++i];
        }
        ret = option->read(&parser, value);
        if (ret < 0)
            return ret;
        if (config->help || config->version || config->trace_help)
            return 0;
    }
    return config_settle(&parser);
}
