/* SPDX-License-Identifier: Apache-2.0
 *
 * "baton update NAME": starts a new process, lets the guest's present one hand it over through
 * QMP, in the words of QEMU's documented procedure, and says what happened.
 *
 * Who may be killed when it goes wrong: the new process, as long as the guest certainly is not in
 * it. That is so before "migrate" was accepted, and when the present process says that the
 * hand-over failed or was cancelled. Nobody but this command asks for the guest to be sent there,
 * as the channel's path is its own. In any other case nothing is killed and the user is told; but
 * a new process that nobody has connected to, which happens if the present one was killed just
 * then, is told that nobody will.
 */
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>

#include "base/util.h"
#include "control/cli.h"
#include "control/cli_update.h"

#define TIMEOUT_DEFAULT 60
/* A cancel that came too late is refused; the stages from the go on may take 14 seconds. */
#define CANCEL_TIMEOUT_NS  (20 * SECOND_NS)
#define CONFIRM_TIMEOUT_NS (5 * SECOND_NS)

static double milliseconds(json_int_t ns)
{
    return (double)ns / 1e6;
}

static json_int_t integer(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

static void on_event(void *opaque, const char *event, const json_t *data)
{
    struct session *session = opaque;
    const char *status = json_string_value(json_object_get(data, "status"));

    /* Another client's hand-over, or its rehearsal. */
    if (!session->started || session->outcome != OUTCOME_NONE)
        return;
    if (strcmp(event, "BATON_UPDATE_STAGE") == 0) {
        const char *stage = json_string_value(json_object_get(data, "name"));

        printf("  %-10s %10.3f ms", stage ? stage : "?",
               milliseconds(integer(data, "end-ns")) - milliseconds(integer(data, "start-ns")));
        if (session->verbose)
            printf("   of that in the new process %10.3f ms",
                   milliseconds(integer(data, "incoming-ns")));
        putchar('\n');
        fflush(stdout);
    }
    if (strcmp(event, "MIGRATION") != 0 || status == NULL)
        return;
    if (session->verbose) {
        printf("  status: %s\n", status);
        fflush(stdout);
    }
    if (strcmp(status, session->dry_run ? "rehearsed" : "completed") == 0)
        session->outcome = OUTCOME_WELL;
    else if (strcmp(status, "failed") == 0)
        session->outcome = OUTCOME_FAILED;
    else if (strcmp(status, "cancelled") == 0)
        session->outcome = OUTCOME_CANCELLED;
}

static int command(struct session *session, const char *name, json_t *arguments, json_t **result,
                   struct error *error)
{
    /* An answer is always worth a moment, also when the time for the whole is over. */
    uint64_t deadline = MAX(session->deadline, clock_ns() + SECOND_NS);

    return client_execute(&session->client, name, arguments, result, on_event, session, deadline,
                          error);
}

/* The documented procedure, on the present process. */
static int start_hand_over(struct session *session, struct error *error)
{
    json_t *arguments;
    int ret =
        command(session, "migrate-set-capabilities",
                json_pack("{s:[{s:s,s:b}]}", "capabilities", "capability", "events", "state", 1),
                NULL, error);

    if (ret == 0)
        ret = command(session, "migrate-set-parameters", json_pack("{s:s}", "mode", "cpr-transfer"),
                      NULL, error);
    if (ret < 0)
        return ret;
    arguments = json_pack("{s:[{s:s,s:{s:s,s:s,s:s}}]}", "channels", "channel-type", "cpr", "addr",
                          "transport", "socket", "type", "unix", "path", session->cpr_path);
    if (session->dry_run)
        json_object_set_new(arguments, "dry-run", json_true());
    ret = command(session, "migrate", arguments, NULL, error);
    session->started = ret == 0;
    return ret;
}

/* Waits for the end of the hand-over, or until @p deadline. A signal is passed on as a wish to
 * cancel, once. */
static int wait_for_outcome(struct session *session, uint64_t deadline, struct error *error)
{
    struct pollfd fds[] = {{.fd = session->client.fd, .events = POLLIN},
                           {.fd = session->signal_fd, .events = POLLIN}};

    while (session->outcome == OUTCOME_NONE) {
        uint64_t now = clock_ns();
        int ret;

        if (now >= deadline)
            return error_set(error, ETIMEDOUT, "the hand-over took longer than allowed");
        if (poll(fds, ARRAY_SIZE(fds), (int)MIN((deadline - now) / 1000000 + 1, UINT64_C(1000))) <
                0 &&
            errno != EINTR)
            return error_set_errno(error, errno, "cannot wait");
        if (session_take_signal(session) && !session->interrupted) {
            session->interrupted = true;
            return error_set(error, EINTR, "interrupted");
        }
        ret = client_dispatch(&session->client, on_event, session, error);
        if (ret < 0 && session->outcome == OUTCOME_NONE)
            return ret;
    }
    return 0;
}

/* Says why a hand-over did not happen. The error may hold the reason already. */
static int explain_failure(struct session *session, struct error *error)
{
    json_t *result = NULL;
    struct error ignored = {0};
    const char *reason;

    if (session->outcome == OUTCOME_CANCELLED)
        return error->code ? -error->code : error_set(error, ECANCELED, "cancelled");
    if (command(session, "query-migrate", NULL, &result, &ignored) < 0)
        return error_set(error, EREMOTEIO, "%s", ignored.message);
    reason = json_string_value(json_object_get(result, "error-desc"));
    error_set(error, EREMOTEIO, "%s", reason ? reason : "no reason was given");
    json_decref(result);
    return -EREMOTEIO;
}

/* From "migrate" to the end. When time is up or a signal came, the hand-over is cancelled; if it
 * is past its commit point by then, it is followed to its end. */
static int follow(struct session *session, struct error *error)
{
    struct error ignored = {0};
    int ret = wait_for_outcome(session, session->deadline, error);

    if (ret == -ETIMEDOUT || ret == -EINTR) {
        command(session, "migrate_cancel", NULL, NULL, &ignored);
        if (wait_for_outcome(session, clock_ns() + CANCEL_TIMEOUT_NS, &ignored) < 0)
            return ret;
    } else if (ret < 0) {
        return ret;
    }
    return session->outcome == OUTCOME_WELL ? 0 : explain_failure(session, error);
}

/* Asks the guest's socket who serves it now. */
static int confirm(const struct session *session, struct client *present, struct error *error)
{
    uint64_t deadline = clock_ns() + CONFIRM_TIMEOUT_NS;
    int ret;

    for (;;) {
        const struct timespec pause = {.tv_nsec = 5000000};

        ret = client_open(present, session->qmp_path, deadline, error);
        if (ret == 0 && present->pid != session->client.pid)
            return 0;
        if (ret == 0)
            client_close(present);
        if (clock_ns() > deadline)
            return ret < 0 ? ret
                           : error_set(error, ETIMEDOUT,
                                       "process %d still serves the guest's "
                                       "control socket",
                                       (int)session->client.pid);
        nanosleep(&pause, NULL);
    }
}

static int print_summary(struct session *session)
{
    json_t *result = NULL, *details;
    struct error error = {0};
    struct client present;

    if (command(session, "query-migrate", NULL, &result, &error) == 0) {
        details = json_object_get(result, "baton");
        printf("blackout %.3f ms, total %.3f ms\n", milliseconds(integer(details, "blackout-ns")),
               milliseconds(integer(details, "total-ns")));
        json_decref(result);
    }
    if (confirm(session, &present, &error) < 0) {
        fprintf(stderr, "baton update: the hand-over was completed, but: %s\n", error.message);
        return EXIT_FAILURE;
    }
    printf("guest '%s' runs in process %d, baton %s\n", session->name, (int)present.pid,
           present.version);
    client_close(&present);
    return EXIT_SUCCESS;
}

static int print_rehearsal(struct session *session)
{
    json_t *result = NULL, *details;
    struct error error = {0};

    session_await_child(session);
    if (command(session, "query-migrate", NULL, &result, &error) < 0) {
        fprintf(stderr, "baton update: the rehearsal went well, but: %s\n", error.message);
        return EXIT_FAILURE;
    }
    details = json_object_get(result, "baton");
    printf("predicted blackout %.3f ms, rehearsal %.3f ms\n"
           "an update would work; guest '%s' runs on in process %d\n",
           milliseconds(integer(json_object_get(details, "prediction"), "blackout-ns")),
           milliseconds(integer(details, "total-ns")), session->name, (int)session->client.pid);
    json_decref(result);
    return EXIT_SUCCESS;
}

static void print_reason(const struct session *session, const char *reason)
{
    fprintf(stderr, "baton update: guest '%s' cannot be updated: %s\n", session->name,
            reason ? reason : "no reason was given");
}

/* A rehearsal that went badly: the new process never can have the guest. */
static int print_bad_rehearsal(struct session *session, const struct error *error)
{
    session_kill_child(session);
    if (strstr(error->message, "'dry-run'"))
        fprintf(stderr,
                "baton update: process %d, baton %s, is too old to rehearse an update of guest "
                "'%s'; the update itself may work all the same\n",
                (int)session->client.pid, session->client.version, session->name);
    else
        print_reason(session, error->message);
    return EXIT_FAILURE;
}

/* What is known to stand in the way already, a line each. @return whether there is anything */
static bool print_blockers(struct session *session)
{
    json_t *result = NULL, *reason;
    struct error ignored = {0};
    size_t i, count;

    /* Whatever goes wrong here goes wrong again when the hand-over is asked for. */
    if (command(session, "query-migrate", NULL, &result, &ignored) < 0)
        return false;
    count = json_array_size(json_object_get(result, "blocked-reasons"));
    json_array_foreach(json_object_get(result, "blocked-reasons"), i, reason)
        print_reason(session, json_string_value(reason));
    json_decref(result);
    return count > 0;
}

/* @param stayed the hand-over did not happen; otherwise nobody knows */
static void print_whereabouts(const struct session *session, bool stayed, const char *status)
{
    int pid = (int)session->client.pid;

    if (strcmp(status, "postmigrate") == 0)
        fprintf(stderr, "baton update: the guest has left process %d; see baton list\n", pid);
    else if (stayed)
        fprintf(stderr, "baton update: the guest is where it was, in process %d (status '%s')\n",
                pid, status);
    else
        fprintf(stderr,
                "baton update: process %d says of the guest '%s', the new process was left alone; "
                "see baton list\n",
                pid, status);
}

/* The hand-over did not happen, or nobody knows. */
static int print_failure(struct session *session, bool accepted, const struct error *error)
{
    bool known =
        !accepted || session->outcome == OUTCOME_FAILED || session->outcome == OUTCOME_CANCELLED;
    char status[32] = "";
    struct error ignored = {0};
    bool ended;

    if (known)
        session_kill_child(session);
    fprintf(stderr, "baton update: guest '%s' %s: %s\n", session->name,
            known ? "was not handed over" : "may have been handed over, or not", error->message);
    if (client_query_status(&session->client, status, sizeof(status),
                            clock_ns() + CONFIRM_TIMEOUT_NS, &ignored) == 0) {
        print_whereabouts(session, known, status);
        return EXIT_FAILURE;
    }
    ended = known || session_dismiss_child(session);
    fprintf(stderr,
            "baton update: process %d does not say what became of the guest (%s); see "
            "baton list%s\n",
            (int)session->client.pid, ignored.message,
            ended ? "; the new process has ended" : "; the new process was left alone");
    return EXIT_FAILURE;
}

static int run(struct session *session)
{
    struct error error = {0};
    bool accepted = false;
    int ret;

    printf("guest '%s' runs in process %d, baton %s; starting %s%s\n", session->name,
           (int)session->client.pid, session->client.version, session->binary,
           session->dry_run ? " for a rehearsal" : "");
    fflush(stdout);
    ret = session_start_child(session, &error);
    if (ret == 0)
        ret = session_wait_for_child(session, &error);
    if (ret == 0) {
        ret = start_hand_over(session, &error);
        /* Anything but a refusal may have been an acceptance whose answer was lost. */
        accepted = ret != -EREMOTEIO;
    }
    if (ret == 0)
        ret = follow(session, &error);
    if (session->dry_run)
        return ret == 0 ? print_rehearsal(session) : print_bad_rehearsal(session, &error);
    return ret == 0 ? print_summary(session) : print_failure(session, accepted, &error);
}

/* Connects to the guest's present process. */
static int open_session(struct session *session, struct error *error)
{
    char channel[32];
    sigset_t signals;
    int ret = runtime_path(session->qmp_path, session->name, RUNTIME_QMP, error);

    snprintf(channel, sizeof(channel), "%s%d", RUNTIME_CPR, (int)getpid());
    if (ret == 0)
        ret = runtime_path(session->cpr_path, session->name, channel, error);
    if (ret < 0)
        return ret;
    ret = client_open(&session->client, session->qmp_path, session->deadline, error);
    if (ret == -ENOENT || ret == -ECONNREFUSED)
        return error_set(error, ENOENT, "no guest '%s' is running (see baton list)", session->name);
    if (ret < 0)
        return ret;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    session->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    return 0;
}

static int usage(void)
{
    fputs("usage: baton update NAME [--dry-run] [--binary PATH] [--timeout SECONDS] [--trace "
          "PATTERN]... "
          "[--verbose]\n"
          "(baton update --help says more)\n",
          stderr);
    return EXIT_USAGE;
}

static bool parse_timeout(const char *text, uint64_t *deadline)
{
    char *end;
    unsigned long seconds = strtoul(text, &end, 10);

    if (text[0] < '0' || text[0] > '9' || *end != '\0' || seconds == 0 || seconds > 86400)
        return false;
    *deadline = clock_ns() + seconds * SECOND_NS;
    return true;
}

/* The program to start: the one given, else this one, by its path where that still is this one. */
static void find_binary(struct session *session, const char *given)
{
    ssize_t length;

    if (given) {
        snprintf(session->binary, sizeof(session->binary), "%s", given);
        return;
    }
    length = readlink("/proc/self/exe", session->binary, sizeof(session->binary) - 1);
    session->binary[MAX(length, (ssize_t)0)] = '\0';
    if (length <= 0 || access(session->binary, X_OK) < 0)
        strcpy(session->binary, "/proc/self/exe");
}

/* @return -1 to go on, else the exit status */
static int parse(struct session *session, int argc, char **argv)
{
    static const struct option options[] = {
        {"dry-run", no_argument, NULL, 'n'},      {"trace", required_argument, NULL, 'T'},
        {"binary", required_argument, NULL, 'b'}, {"timeout", required_argument, NULL, 't'},
        {"verbose", no_argument, NULL, 'v'},      {NULL, 0, NULL, 0}};
    const char *binary = NULL;
    int option;

    session->traces = xcalloc((size_t)argc + 1, sizeof(*session->traces));
    /* getopt looks at argv from 1 on; argv[-1] is the subcommand. */
    while ((option = getopt_long(argc + 1, argv - 1, "nT:b:t:v", options, NULL)) >= 0) {
        if (option == 'b')
            binary = optarg;
        else if (option == 'T')
            session->traces[session->trace_count++] = optarg;
        else if (option == 'n')
            session->dry_run = true;
        else if (option == 'v')
            session->verbose = true;
        else if (option != 't')
            return usage();
        else if (!parse_timeout(optarg, &session->deadline)) {
            fprintf(stderr, "baton update: --timeout: 1 to 86400 seconds, not '%s'\n", optarg);
            return EXIT_USAGE;
        }
    }
    if (optind != argc)
        return usage();
    session->name = (argv - 1)[optind];
    find_binary(session, binary);
    return -1;
}

static int update(struct session *session)
{
    struct error error = {0};
    int status;

    if (open_session(session, &error) < 0) {
        fprintf(stderr, "baton update: %s\n", error.message);
        return EXIT_FAILURE;
    }
    status = print_blockers(session) ? EXIT_FAILURE : run(session);
    client_close(&session->client);
    close_fd(session->signal_fd);
    return status;
}

int cli_update(int argc, char **argv)
{
    struct session session = {.deadline = clock_ns() + TIMEOUT_DEFAULT * SECOND_NS,
                              .signal_fd = -1};
    int status = parse(&session, argc, argv);

    if (status < 0)
        status = update(&session);
    free(session.traces);
    return status;
}
