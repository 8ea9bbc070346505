/* SPDX-License-Identifier: Apache-2.0
 *
 * The program: subcommands, and the life of a process that runs a guest. The only place that
 * decides about exit statuses: 0 done (for "run": the guest has ended, or runs elsewhere),
 * 1 failure, 2 usage.
 */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <systemd/sd-event.h>
#include <unistd.h>

#include "base/log.h"
#include "base/sandbox.h"
#include "base/trace.h"
#include "base/util.h"
#include "control/cli.h"
#include "control/control.h"
#include "devices/chardev.h"
#include "iommu/iommu.h"
#include "machine/config.h"
#include "machine/machine.h"

struct subcommand {
    const char *name;
    const char *arguments;
    const char *help;
    int (*run)(int argc, char **argv);
    void (*print_options)(FILE *out); /* NULL when there are none */
};

/* What ends a process that runs a guest. Blocked in all threads; the event loop takes them. */
static const int end_signals[] = {SIGINT, SIGTERM, SIGHUP};

static int on_signal(sd_event_source *source, const struct signalfd_siginfo *info, void *opaque)
{
    log_info("ending: signal %u from process %u", info->ssi_signo, info->ssi_pid);
    control_signal(opaque);
    return 0;
}

static int watch_signals(sd_event *loop, struct control *control, struct error *error)
{
    for (unsigned i = 0; i < ARRAY_SIZE(end_signals); i++) {
        sd_event_source *source;
        int ret = sd_event_add_signal(loop, &source, end_signals[i], on_signal, control);

        if (ret < 0)
            return error_set_errno(error, -ret, "cannot wait for signals");
        /* Ahead of a hand-over that knocks at the same moment: it would be for nothing. */
        sd_event_source_set_priority(source, SD_EVENT_PRIORITY_IMPORTANT);
        sd_event_source_set_floating(source, true);
        sd_event_source_unref(source);
    }
    return 0;
}

/* Signals and limits, before any thread exists. */
static void prepare_process(void)
{
    struct rlimit limit;
    sigset_t signals;

    sigemptyset(&signals);
    for (unsigned i = 0; i < ARRAY_SIZE(end_signals); i++)
        sigaddset(&signals, end_signals[i]);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    /* One descriptor per interrupt vector of every device adds up. */
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* Runs the event loop to its end. */
static int run_loop(sd_event *loop, struct error *error)
{
    int ret = sd_event_loop(loop);

    return ret < 0 ? error_set_errno(error, -ret, "the event loop failed") : 0;
}

/* A new guest, from its definition to its end. */
static int run_new(const struct config *config, sd_event *loop, struct control *control,
                   struct error *error)
{
    struct machine *machine;
    int ret = machine_create(&machine, config, loop, error);

    if (ret < 0)
        return ret;
    ret = control_attach(control, machine, error);
    if (ret == 0 && !config->start_paused)
        ret = machine_run(machine, error);
    if (ret == 0)
        ret = run_loop(loop, error);
    control_detach(control);
    machine_destroy(machine);
    return ret;
}

/* A guest that another process runs now. */
static int run_incoming(const struct config *given, sd_event *loop, struct control *control,
                        struct error *error)
{
    struct update_incoming *incoming;
    int ret = update_incoming_start(&incoming, given, loop, control_adopt, control_progress,
                                    control, error);

    if (ret < 0)
        return ret;
    ret = run_loop(loop, error);
    control_detach(control);
    /* Why the hand-over failed, if it did. */
    return update_incoming_finish(incoming, error) < 0 ? -error->code : ret;
}

static int run_guest(const struct config *config, struct error *error)
{
    struct control *control = NULL;
    sd_event *loop = NULL;
    int ret;

    prepare_process();
    ret = sd_event_new(&loop);
    if (ret < 0)
        return error_set_errno(error, -ret, "cannot make an event loop");
    ret = control_create(&control, config, loop, error);
    if (ret == 0)
        ret = watch_signals(loop, control, error);
    if (ret == 0)
        ret = (config->incoming ? run_incoming : run_new)(config, loop, control, error);
    control_destroy(control);
    sd_event_unref(loop);
    return ret;
}

/* And what it was built with. */
static int print_version(int argc, char **argv)
{
    static const enum iommu_backend backends[] = {IOMMU_BACKEND_IOMMUFD, IOMMU_BACKEND_TYPE1};
    const char *before = ": ";

    fputs("baton " BATON_VERSION "\nVFIO back ends", stdout);
    for (size_t i = 0; i < ARRAY_SIZE(backends); i++) {
        const char *name = iommu_built_in(backends[i]);

        if (name == NULL)
            continue;
        printf("%s%s", before, name);
        before = ", ";
    }
    puts(before[0] == ':' ? ": none" : "");
    printf("sandbox: %s\n",
           sandbox_is_built_in() ? "system call filters" : "none, because of sanitizers");
    return EXIT_SUCCESS;
}

static int print_help(int argc, char **argv);
static int print_subcommand_help(const char *name, FILE *out);

/* The definition, with paths that do not depend on where the next process is started. */
static int read_config(struct config *config, int argc, char **argv, struct error *error)
{
    char directory[PATH_MAX];
    int ret = config_parse(config, argc, (const char *const *)argv, error);

    if (ret == 0)
        ret = chardev_check_spec(config->serial, error);
    if (ret < 0)
        return ret;
    if (getcwd(directory, sizeof(directory)) == NULL)
        return error_set_errno(error, errno, "cannot find the working directory");
    ret = config_make_paths_absolute(config, directory, error);
    if (ret == 0 && !config->help && !config->version)
        ret = config_claim_descriptors(config, error);
    return ret;
}

static int print_trace_events(void)
{
    for (unsigned i = 0; i < TRACE_EVENT_COUNT; i++)
        puts(trace_name(i));
    return EXIT_SUCCESS;
}

/* -D and -trace, in that order whatever the command line's was. */
static int start_tracing(const struct config *config, struct error *error)
{
    int ret = config->log_file[0] ? trace_open_log(config->log_file, error) : 0;

    for (unsigned i = 0; ret == 0 && i < config->trace_count; i++) {
        bool on = config->traces[i][0] != '-';

        ret = trace_switch(config->traces[i] + !on, on, error);
    }
    return ret;
}

/* Before the first thread, and before anything that a guest or another process has sent is read. */
static int start_sandbox(const struct config *config, struct error *error)
{
    return config->no_sandbox ? 0 : sandbox_start(error);
}

static int run(int argc, char **argv)
{
    CLEANUP_FREE struct config *config = xcalloc(1, sizeof(*config));
    struct error error = {0};

    if (read_config(config, argc, argv, &error) < 0) {
        fprintf(stderr, "baton run: %s\n", error.message);
        return EXIT_USAGE;
    }
    if (config->help)
        return print_subcommand_help("run", stdout);
    if (config->version)
        return print_version(0, NULL);
    if (config->trace_help)
        return print_trace_events();
    log_configure(LOG_LEVEL_INFO, config->name[0] ? config->name : NULL);
    if (start_tracing(config, &error) < 0 || start_sandbox(config, &error) < 0 ||
        run_guest(config, &error) < 0) {
        log_error("%s", error.message);
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

static void print_update_options(FILE *out)
{
    fputs("  --dry-run\n        rehearse everything up to the commit, and say what would happen\n"
          "  --binary PATH\n        the baton to start; default: this one\n"
          "  --timeout SECONDS\n        after which the update is undone; default: 60\n"
          "  --trace PATTERN\n        events that the new process traces, as -trace of 'run'; "
          "again for more\n"
          "  --verbose\n        more about each stage\n",
          out);
}

static const struct subcommand subcommands[] = {
    {"run", "[OPTION]...", "run a guest, or take one over with -incoming", run, config_print_help},
    {"update", "NAME [OPTION]...", "replace the process under a running guest", cli_update,
     print_update_options},
    {"list", "", "show running guests", cli_list, NULL},
    {"version", "", "print the version, and what it was built with", print_version, NULL},
    {"help", "[COMMAND]", "print this, or the options of a command", print_help, NULL},
};

static const struct subcommand *find_subcommand(const char *name)
{
    for (unsigned i = 0; i < ARRAY_SIZE(subcommands); i++) {
        if (strcmp(subcommands[i].name, name) == 0)
            return &subcommands[i];
    }
    return NULL;
}

static int print_usage(FILE *out)
{
    fputs("usage: baton COMMAND [ARGUMENT]...\n\n"
          "A virtual machine monitor whose process can be replaced while the guest runs.\n\n",
          out);
    for (unsigned i = 0; i < ARRAY_SIZE(subcommands); i++)
        fprintf(out, "  %-8s %-20s %s\n", subcommands[i].name, subcommands[i].arguments,
                subcommands[i].help);
    return EXIT_SUCCESS;
}

static int print_subcommand_help(const char *name, FILE *out)
{
    const struct subcommand *subcommand = find_subcommand(name);

    if (subcommand == NULL) {
        fprintf(stderr, "baton: there is no command '%s' (see baton help)\n", name);
        return EXIT_USAGE;
    }
    fprintf(out, "usage: baton %s %s\n\n%s\n", subcommand->name, subcommand->arguments,
            subcommand->help);
    if (subcommand->print_options) {
        fputs("\n", out);
        subcommand->print_options(out);
    }
    return EXIT_SUCCESS;
}

static int print_help(int argc, char **argv)
{
    return argc > 0 ? print_subcommand_help(argv[0], stdout) : print_usage(stdout);
}

/* --help anywhere before a "--"; for "run" config.c knows which words are values of options. */
static bool asks_for_help(int argc, char **argv)
{
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return true;
    }
    return false;
}

int main(int argc, char **argv)
{
    const struct subcommand *subcommand;
    const char *name = argc > 1 ? argv[1] : "";

    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "-help") == 0)
        name = "help";
    if (strcmp(name, "--version") == 0 || strcmp(name, "-version") == 0)
        name = "version";
    subcommand = find_subcommand(name);
    if (subcommand == NULL) {
        if (argc > 1)
            fprintf(stderr, "baton: there is no command '%s'\n\n", name);
        print_usage(stderr);
        return EXIT_USAGE;
    }
    if (subcommand->run != run && asks_for_help(argc - 2, argv + 2))
        return print_subcommand_help(subcommand->name, stdout);
    return subcommand->run(argc - 2, argv + 2);
}
