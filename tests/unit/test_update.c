/* SPDX-License-Identifier: Apache-2.0
 *
 * Both sides of a hand-over with a machine of the test's own: the functions of machine/ that
 * update/ calls are defined here, write down that they were called, and fail when told to. The
 * other side is a child process that says what a script tells it to, and misbehaves at the point
 * that the script names.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/util.h"
#include "machine/handover.h"
#include "update/stages.h"
#include "update/update.h"
#include "update/wire.h"

#define LONG_MS    20000
#define STATE_ROOM 4096u

struct machine {
    struct config config;
    sd_event *loop;
    bool running;
    enum kvm_irq_delivery delivery;
};

struct fixture {
    struct machine machine;
    struct config given; /* incoming side: found again by it */
    char directory[64], path[96];
    sd_event *loop;
    pid_t child;

    pthread_mutex_t lock; /* keeps the hand-over's thread until update is set */
    struct update *update;
    char log[1024];          /* what was called */
    const char *fail;        /* the call that fails */
    const char *fail_quotes; /* what its message ends with, or NULL */
    const char *cancel;      /* the call in which the hand-over is cancelled */
    bool blocked;            /* the machine has a blocker */
    bool dry_run;
    unsigned more_fds;            /* descriptors that it has besides one */
    unsigned skip;                /* how many of those go well before */
    enum update_status cancel_at; /* cancelled in this status, when the peer hangs */
    struct update_report report;
};

static struct fixture *fixture_of(const struct machine *machine)
{
    return container_of((struct machine *)machine, struct fixture, machine);
}

/* One call. */
static int step(const struct machine *machine, const char *name, struct error *error)
{
    struct fixture *fixture = fixture_of(machine);
    struct error ignored;

    assert_true(strlen(fixture->log) + strlen(name) + 2 < sizeof(fixture->log));
    if (fixture->log[0])
        strcat(fixture->log, " ");
    strcat(fixture->log, name);
    if (fixture->cancel && strcmp(fixture->cancel, name) == 0 && fixture->skip-- == 0) {
        fixture->cancel = NULL;
        pthread_mutex_lock(&fixture->lock);
        assert_int_equal(update_cancel(fixture->update, &ignored), 0);
        pthread_mutex_unlock(&fixture->lock);
    }
    if (fixture->fail && strcmp(fixture->fail, name) == 0 && fixture->skip-- == 0) {
        fixture->fail = NULL;
        return error_set(error, EIO, "%s fails%s%s", name, fixture->fail_quotes ? ": " : "",
                         fixture->fail_quotes ?: "");
    }
    return 0;
}

static unsigned waits_with_batch; /* which batch of descriptors waits; 0: none. The hand-over's */

/* One batch of descriptors is not sent before the other side has left. */
ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct pollfd state = {.fd = fd};

    if (message->msg_controllen > CMSG_SPACE(sizeof(int)) && waits_with_batch > 0 &&
        --waits_with_batch == 0)
        poll(&state, 1, LONG_MS);
    return syscall(SYS_sendmsg, fd, message, flags);
}

/* --- the machine --------------------------------------------------------------------------- */

const struct config *machine_config(const struct machine *machine)
{
    return &machine->config;
}

sd_event *machine_loop(const struct machine *machine)
{
    return machine->loop;
}

void machine_blockers(struct machine *machine, struct blocker_list *list)
{
    if (fixture_of(machine)->blocked)
        blocker_add(list, "device 'a'", "it has no name", "give it an id");
}

int machine_describe(struct machine *machine, struct machine_facts *facts, struct fdset *fds,
                     struct error *error)
{
    int ret = fdset_add_copy(fds, STDERR_FILENO, error, "test/a");

    for (unsigned i = 0; ret == 0 && i < fixture_of(machine)->more_fds; i++)
        ret = fdset_add_copy(fds, STDERR_FILENO, error, "test/b/%u", i);
    return ret < 0 ? ret : step(machine, "describe", error);
}

int machine_write_definition(const struct config *config, void *bytes, size_t capacity,
                             size_t *length, struct error *error)
{
    memset(bytes, 'd', 10);
    *length = 10;
    return step(container_of(config, struct machine, config), "definition", error);
}

int machine_write_facts(const struct config *config, const struct machine_facts *facts, void *bytes,
                        size_t capacity, size_t *length, struct error *error)
{
    memset(bytes, 'f', 20);
    *length = 20;
    return 0;
}

int machine_read_definition(struct config *config, const void *bytes, size_t length,
                            struct error *error)
{
    assert_int_equal(length, 10);
    assert_int_equal(*(const char *)bytes, 'd');
    config->cpus = 2;
    return 0;
}

int machine_read_facts(const struct config *config, struct machine_facts *facts, const void *bytes,
                       size_t length, struct error *error)
{
    assert_int_equal(length, 20);
    assert_int_equal(*(const char *)bytes, 'f');
    return 0;
}

int config_compare(const struct config *running, const struct config *given, struct error *error)
{
    const struct fixture *fixture = container_of((struct config *)given, struct fixture, given);

    return step(&fixture->machine, "compare", error);
}

uint64_t machine_warm_up(struct machine *machine, unsigned limit_ms)
{
    assert_true(limit_ms > 0);
    return step(machine, "warm-up", NULL) == 0 ? MIB : 0;
}

int machine_adopt(struct machine **machine, const struct config *config, const struct config *given,
                  const struct machine_facts *facts, struct fdset *fds, sd_event *loop,
                  struct error *error)
{
    struct fixture *fixture = container_of((struct config *)given, struct fixture, given);
    int ret = step(&fixture->machine, "adopt", error);

    if (ret == 0)
        *machine = &fixture->machine;
    return ret;
}

size_t machine_state_capacity(const struct config *config)
{
    return STATE_ROOM;
}

int machine_save(struct machine *machine, void *bytes, size_t capacity, size_t *length,
                 struct error *error)
{
    assert_int_equal(capacity, STATE_ROOM);
    memset(bytes, 's', 30);
    *length = 30;
    return step(machine, "save", error);
}

int machine_load(struct machine *machine, const void *bytes, size_t length, struct error *error)
{
    assert_int_equal(length, 30);
    assert_int_equal(*(const char *)bytes, 's');
    return step(machine, "load", error);
}

int machine_pause_for_switch(struct machine *machine, unsigned limit_ms, struct error *error)
{
    int ret = step(machine, "pause", error);

    assert_true(limit_ms > 0 && limit_ms <= 2000);
    if (ret == 0)
        machine->running = false;
    return ret;
}

void machine_undo_pause(struct machine *machine)
{
    struct error ignored;

    machine->running = true;
    step(machine, "resume", &ignored);
}

void machine_handed_over(struct machine *machine)
{
    struct error ignored;

    step(machine, "gone", &ignored);
}

void machine_run_adopted(struct machine *machine, void (*enters)(void *opaque), void *opaque)
{
    struct error ignored;

    assert_false(machine->running);
    machine->running = true;
    enters(opaque);
    step(machine, "run", &ignored);
}

void machine_vcpu_times(const struct machine *machine, unsigned index, uint64_t *last_exit_ns,
                        uint64_t *first_entry_ns)
{
    *last_exit_ns = 1000 + index;
    *first_entry_ns = 3000 + index;
}

uint32_t machine_generation(const struct machine *machine)
{
    return 4;
}

bool machine_was_running(const struct machine *machine)
{
    return true;
}

int machine_set_delivery(struct machine *machine, enum kvm_irq_delivery delivery,
                         struct error *error)
{
    static const char *const names[] = {"held", "proxy", "kernel"};
    int ret = step(machine, names[delivery], error);

    if (ret == 0)
        machine->delivery = delivery;
    return ret;
}

int machine_take_ownership(struct machine *machine, struct error *error)
{
    return step(machine, "own", error);
}

int machine_release_ownership(struct machine *machine, struct error *error)
{
    return step(machine, "disown", error);
}

int machine_take_back_ownership(struct machine *machine, struct error *error)
{
    return step(machine, "reown", error);
}

int machine_probe_ownership(struct machine *machine, struct error *error)
{
    return step(machine, "probe", error);
}

void machine_settle_peers(struct machine *machine)
{
    struct error ignored;

    step(machine, "peers", &ignored);
}

void machine_set_console_active(struct machine *machine, bool active)
{
    struct error ignored;

    step(machine, active ? "console" : "mute", &ignored);
}

void machine_release(struct machine *machine, bool handed_over)
{
    struct error ignored;

    step(machine, handed_over ? "release" : "destroy", &ignored);
}

void machine_destroy(struct machine *machine)
{
    machine_release(machine, false);
}

/* --- fixture ------------------------------------------------------------------------------- */

static int setup(void **state)
{
    struct fixture *fixture = xcalloc(1, sizeof(*fixture));

    strcpy(fixture->directory, "/tmp/test_update.XXXXXX");
    if (mkdtemp(fixture->directory) == NULL || sd_event_new(&fixture->loop) < 0)
        return -1;
    snprintf(fixture->path, sizeof(fixture->path), "%s/cpr", fixture->directory);
    strcpy(fixture->given.incoming_cpr, fixture->path);
    pthread_mutex_init(&fixture->lock, NULL);
    fixture->machine.loop = fixture->loop;
    fixture->machine.config.cpus = 2;
    fixture->machine.delivery = KVM_IRQ_KERNEL;
    fixture->machine.running = true;
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;

    update_destroy(fixture->update);
    if (fixture->child > 0) {
        kill(fixture->child, SIGKILL);
        waitpid(fixture->child, NULL, 0);
    }
    sd_event_unref(fixture->loop);
    unlink(fixture->path);
    rmdir(fixture->directory);
    free(fixture);
    return 0;
}

/* --- the outgoing side --------------------------------------------------------------------- */

/* What the incoming process does instead of answering well. */
enum deed {
    REFUSE,      /* answers with an error */
    REFUSE_SOON, /* the same, before it has received all descriptors, and ends */
    DIE,         /* ends */
    LEAVE,       /* closes the channel and lives on */
    HANG,        /* answers nothing */
    BABBLE,      /* sends what is no answer */
    OUTDATED,    /* answers with another protocol */
    CLAIM_DIE,   /* the go: claims the guest, then ends */
    RUN_DIE,     /* the go: claims the guest and lets it run, then ends */
    CLAIM_LEAVE, /* the go: claims the guest, closes the channel and lives on */
    LIE,         /* the go: answers, but does not claim the guest */
};

struct deviation {
    const char *stage; /* or "go" */
    enum deed deed;
};

static _Noreturn void misbehave(struct wire *wire, const struct wire_memory *memory, enum deed deed)
{
    struct error error;

    if (deed == CLAIM_DIE || deed == RUN_DIE || deed == CLAIM_LEAVE)
        wire_claim(memory, WIRE_CLAIMED);
    if (deed == RUN_DIE)
        wire_runs(memory);
    if (deed == BABBLE) {
        wire->message.type = WIRE_DESCRIPTORS;
        wire->message.length = 3;
        wire->message.fd_count = 0;
        channel_send(wire->channel, &wire->message, LONG_MS, &error);
        pause();
    }
    if (deed == LEAVE || deed == CLAIM_LEAVE)
        channel_close(wire->channel);
    if (deed == LEAVE || deed == CLAIM_LEAVE || deed == HANG)
        pause();
    _exit(0);
}

/* The incoming process: everything goes well until the deviation. */
static _Noreturn void be_incoming(const char *path, const struct deviation *deviation)
{
    struct wire *wire = xcalloc(1, sizeof(*wire));
    struct wire_memory memory = {.fd = -1};
    struct channel_listener *listener;
    struct fdset fds = {0};
    struct error error;
    bool go = false;
    int fd;

    alarm(60);
    if (channel_listen(&listener, path, &error) < 0 ||
        channel_accept(listener, &wire->channel, LONG_MS, &error) < 0)
        _exit(2);
    while (wire_receive_request(wire, &go, &fd, LONG_MS, &error) == 0) {
        const char *stage = go ? "go" : wire->request.stage;
        bool deviates = deviation && strcmp(deviation->stage, stage) == 0;

        if (fd >= 0 && wire_memory_adopt(&memory, fd, &error) < 0)
            _exit(3);
        wire->reply = (struct wire_reply){
            .protocol = WIRE_PROTOCOL, .vcpu_count = 2, .vcpus = {{3000}, {3001}}};
        if (wire->request.dry_run && strcmp(stage, "rehearse") == 0)
            wire->reply.load_ns = 5000000;
        if (deviates && deviation->deed == REFUSE) {
            wire->reply.code = EINVAL;
            strcpy(wire->reply.message, "I would rather not");
        } else if (deviates && deviation->deed == REFUSE_SOON) {
            wire->reply.code = EMFILE;
            strcpy(wire->reply.message, "I cannot take any more");
            wire_send_reply(wire, LONG_MS, &error);
            _exit(0);
        } else if (deviates && deviation->deed == OUTDATED) {
            wire->reply.protocol = WIRE_PROTOCOL + 1;
        } else if (deviates && deviation->deed != LIE) {
            channel_listener_close(listener); /* tells how far it has come */
            misbehave(wire, &memory, deviation->deed);
        }
        if (strcmp(stage, "describe") == 0 &&
            (wire_receive_descriptors(wire, &fds, wire->request.fd_count, LONG_MS, &error) < 0 ||
             !fdset_contains(&fds, "test/a")))
            _exit(4);
        if (go && !deviates && !wire_claim(&memory, WIRE_CLAIMED))
            _exit(5);
        if (wire_send_reply(wire, LONG_MS, &error) < 0)
            _exit(6);
    }
    _exit(0);
}

static void on_progress(void *opaque, const struct update_report *report)
{
    struct fixture *fixture = opaque;
    struct error ignored;

    fixture->report = *report;
    if (fixture->cancel_at && report->status == fixture->cancel_at) {
        fixture->cancel_at = UPDATE_NONE;
        while (access(fixture->path, F_OK) == 0)
            poll(NULL, 0, 5);
        assert_int_equal(update_cancel(fixture->update, &ignored), 0);
    }
    if (report->status == UPDATE_COMPLETED || report->status == UPDATE_FAILED ||
        report->status == UPDATE_CANCELLED || report->status == UPDATE_REHEARSED)
        sd_event_exit(fixture->loop, 0);
}

/* Hands over to a process that misbehaves as told; until the end. */
static void hand_over(struct fixture *fixture, const struct deviation *deviation)
{
    const struct fdset none = {0};
    struct error error = {0};

    fixture->child = fork();
    assert_true(fixture->child >= 0);
    if (fixture->child == 0)
        be_incoming(fixture->path, deviation);
    pthread_mutex_lock(&fixture->lock);
    assert_int_equal(update_start(&fixture->update, &fixture->machine, fixture->path, &none,
                                  fixture->dry_run, on_progress, fixture, &error),
                     0);
    pthread_mutex_unlock(&fixture->lock);
    assert_true(sd_event_loop(fixture->loop) >= 0);
    update_destroy(STEAL_POINTER(fixture->update));
}

#define DESCRIBED "describe definition"
#define REHEARSED DESCRIBED " probe save"
#define QUIET     REHEARSED " proxy disown"
#define SAVED     QUIET " held mute pause save"
#define BACK      " reown kernel"
#define RESUMED   " reown kernel console resume"

/* The guest is here, as it was. */
static void assert_undone(struct fixture *fixture, const char *log, const char *message)
{
    assert_string_equal(fixture->log, log);
    assert_int_equal(fixture->report.status, UPDATE_FAILED);
    assert_non_null(strstr(fixture->report.error, message));
    assert_true(fixture->machine.running);
    assert_int_equal(fixture->machine.delivery, KVM_IRQ_KERNEL);
}

static void assert_gone(struct fixture *fixture)
{
    assert_string_equal(fixture->log, SAVED " gone");
    assert_int_equal(fixture->report.status, UPDATE_COMPLETED);
    assert_false(fixture->machine.running);
    assert_int_equal(fixture->machine.delivery, KVM_IRQ_HELD);
}

static void assert_killed(struct fixture *fixture, bool killed)
{
    int status;

    if (!killed)
        kill(fixture->child, SIGTERM);
    assert_int_equal(waitpid(fixture->child, &status, 0), fixture->child);
    fixture->child = 0;
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), killed ? SIGKILL : SIGTERM);
}

static void completed(void **state)
{
    struct fixture *fixture = *state;
    const struct update_report *report = &fixture->report;

    hand_over(fixture, NULL);
    assert_gone(fixture);
    assert_int_equal(report->stage_count, stage_count);
    for (unsigned i = 0; i < stage_count; i++) {
        assert_string_equal(report->stages[i].name, stages[i].name);
        assert_true(report->stages[i].end_ns >= report->stages[i].start_ns);
    }
    assert_int_equal(report->vcpu_count, 2);
    assert_int_equal(report->blackout_ns, 2001);
}

/* Everything up to the commit, and nothing of it stays. */
static void rehearsed(void **state)
{
    struct fixture *fixture = *state;
    const struct update_report *report = &fixture->report;
    int status;

    fixture->dry_run = true;
    hand_over(fixture, NULL);
    assert_string_equal(fixture->log, REHEARSED " save");
    assert_int_equal(report->status, UPDATE_REHEARSED);
    assert_true(report->dry_run);
    assert_int_equal(report->generation, 4); /* as many hand-overs as before */
    assert_int_equal(report->stage_count, 4);
    assert_string_equal(report->stages[3].name, "rehearse");
    assert_int_equal(report->blackout_ns, 0);
    assert_true(report->prediction.save_ns > 0 && report->prediction.trip_ns > 0);
    assert_int_equal(report->prediction.load_ns, 5000000);
    assert_int_equal(report->prediction.blackout_ns, report->prediction.save_ns +
                                                         report->prediction.load_ns +
                                                         2 * report->prediction.trip_ns);
    assert_true(fixture->machine.running);
    assert_int_equal(fixture->machine.delivery, KVM_IRQ_KERNEL);
    /* The other side was left alone. */
    assert_int_equal(waitpid(fixture->child, &status, 0), fixture->child);
    fixture->child = 0;
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void rehearsal_fails(void **state)
{
    const struct deviation deviation = {"prepare", REFUSE};
    struct fixture *fixture = *state;

    fixture->dry_run = true;
    hand_over(fixture, &deviation);
    assert_undone(fixture, DESCRIBED, "I would rather not");
}

static void rehearsal_cancelled(void **state)
{
    struct fixture *fixture = *state;

    fixture->dry_run = true;
    fixture->cancel = "save";
    fixture->skip = 1;
    hand_over(fixture, NULL);
    assert_int_equal(fixture->report.status, UPDATE_CANCELLED);
    assert_string_equal(fixture->log, REHEARSED " save");
}

/* What is known to stand in the way is said before anything is begun. */
static void blocked(void **state)
{
    const struct fdset none = {0};
    struct fixture *fixture = *state;
    struct blocker_list list = {0};
    struct error error = {0};

    fixture->blocked = true;
    assert_int_equal(update_start(&fixture->update, &fixture->machine, fixture->path, &none, false,
                                  on_progress, fixture, &error),
                     -ENOTSUP);
    assert_string_equal(error.message, "device 'a': it has no name: give it an id");
    assert_null(fixture->update);
    assert_string_equal(fixture->log, "");
    update_blockers(&fixture->machine, &fixture->report, &list);
    assert_int_equal(list.count, 1);
    assert_string_equal(list.blockers[0].object, "device 'a'");
    blocker_list_clear(&list);
}

/* One that is under way is the blocker, and the machine is not asked meanwhile. */
static void blocked_by_another(void **state)
{
    const struct fdset none = {0};
    struct fixture *fixture = *state;
    struct blocker_list list = {0};
    struct error error = {0};

    assert_int_equal(update_start(&fixture->update, &fixture->machine, fixture->path, &none,
                                  fixture->dry_run, on_progress, fixture, &error),
                     0);
    fixture->blocked = true;
    update_report(fixture->update, &fixture->report);
    update_blockers(&fixture->machine, &fixture->report, &list);
    assert_int_equal(list.count, 1);
    assert_non_null(strstr(list.blockers[0].reason, "under way"));
    assert_non_null(strstr(list.blockers[0].remedy, "migrate_cancel"));
    blocker_list_clear(&list);
    assert_int_equal(update_cancel(fixture->update, &error), 0);
    assert_true(sd_event_loop(fixture->loop) >= 0);
    update_blockers(&fixture->machine, &fixture->report, &list);
    assert_int_equal(list.count, 1);
    assert_string_equal(list.blockers[0].object, "device 'a'");
    blocker_list_clear(&list);
}

struct expected {
    const char *stage;
    const char *log;
};

/* Every stage in which the incoming side is asked for something, and what is undone. */
static const struct expected asked[] = {
    {"hello", ""},           {"describe", DESCRIBED}, {"prepare", DESCRIBED},
    {"rehearse", REHEARSED}, {"quiesce", QUIET BACK}, {"switch", SAVED RESUMED},
};

static void each_deviation(struct fixture *fixture, enum deed deed, const char *message)
{
    for (size_t i = 0; i < ARRAY_SIZE(asked); i++) {
        const struct deviation deviation = {asked[i].stage, deed};
        void *other;

        assert_int_equal(setup(&other), 0);
        hand_over(other, &deviation);
        assert_undone(other, asked[i].log, asked[i].stage);
        assert_undone(other, asked[i].log, message);
        if (deed == LEAVE || deed == BABBLE)
            assert_killed(other, i >= 4);
        teardown(&other);
    }
}

static void peer_refuses(void **state)
{
    each_deviation(*state, REFUSE, "I would rather not");
}

/* The reason is there already when the second batch of descriptors cannot be sent any more. */
static void peer_refuses_early(void **state)
{
    static const struct deviation deviation = {"describe", REFUSE_SOON};
    struct fixture *fixture = *state;

    fixture->more_fds = 300;
    waits_with_batch = 2;
    hand_over(fixture, &deviation);
    assert_undone(fixture, DESCRIBED, "the new process says: I cannot take any more");
}

static void peer_dies(void **state)
{
    each_deviation(*state, DIE, "has ended");
}

/* A peer that may be at something of ours still is dead before that is put back; one that is not
 * may write its own farewell. */
static void peer_leaves(void **state)
{
    each_deviation(*state, LEAVE, "closed the channel");
}

static void peer_babbles(void **state)
{
    each_deviation(*state, BABBLE, "unexpected message");
}

static void peer_outdated(void **state)
{
    const struct deviation deviation = {"hello", OUTDATED};

    hand_over(*state, &deviation);
    assert_undone(*state, "", "speaks protocol 2, not 1");
}

/* The guest is ours again after the go when the peer has not claimed it, or died before the guest
 * ran there, and only then. */
static void after_the_go(void **state)
{
    static const struct deviation died = {"go", DIE}, lied = {"go", LIE},
                                  claimed = {"go", CLAIM_DIE}, ran = {"go", RUN_DIE},
                                  left = {"go", CLAIM_LEAVE}, unfinished = {"finish", DIE};
    static const struct {
        const struct deviation *deviation;
        const char *message; /* NULL: the guest is gone */
    } table[] = {{&died, "has ended"}, {&lied, "does not"}, {&claimed, "has ended"},
                 {&ran, NULL},         {&left, NULL},       {&unfinished, NULL}};

    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        void *other;

        assert_int_equal(setup(&other), 0);
        hand_over(other, table[i].deviation);
        if (table[i].message)
            assert_undone(other, SAVED RESUMED, table[i].message);
        else
            assert_gone(other);
        teardown(&other);
    }
}

/* A peer that hangs with the go in its hands. */
static void go_hangs(void **state)
{
    const struct deviation deviation = {"go", HANG};
    uint64_t start = clock_ns();

    hand_over(*state, &deviation);
    assert_undone(*state, SAVED RESUMED, "run");
    assert_killed(*state, true);
    assert_true(clock_ns() - start < UINT64_C(10000000000));
}

static void own_parts_fail(void **state)
{
    static const struct {
        const char *call;
        unsigned skip;
        const char *log;
    } table[] = {
        {"describe", 0, "describe"},
        {"definition", 0, DESCRIBED},
        {"probe", 0, DESCRIBED " probe"},
        {"save", 0, REHEARSED},
        {"proxy", 0, REHEARSED " proxy" BACK},
        {"disown", 0, QUIET BACK},
        {"held", 0, QUIET " held" BACK " console"},
        {"pause", 0, QUIET " held mute pause" BACK " console"},
        {"save", 1, SAVED RESUMED},
    };

    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        struct fixture *fixture;
        void *other;

        assert_int_equal(setup(&other), 0);
        fixture = other;
        fixture->fail = table[i].call;
        fixture->skip = table[i].skip;
        hand_over(fixture, NULL);
        assert_undone(fixture, table[i].log, "fails");
        teardown(&other);
    }
}

/* What cannot be put back is reported, and the guest goes on all the same. */
static void undo_fails(void **state)
{
    const struct deviation deviation = {"switch", REFUSE};
    struct fixture *fixture = *state;

    fixture->fail = "kernel";
    hand_over(fixture, &deviation);
    assert_string_equal(fixture->log, SAVED " reown kernel proxy console resume");
    assert_true(fixture->machine.running);
    assert_int_equal(fixture->machine.delivery, KVM_IRQ_PROXY);
}

static void cancelled_at_each_call(void **state)
{
    static const struct {
        const char *call;
        unsigned skip;
        const char *log;
    } table[] = {
        {"describe", 0, DESCRIBED}, {"probe", 0, REHEARSED},     {"save", 0, REHEARSED},
        {"proxy", 0, QUIET BACK},   {"pause", 0, SAVED RESUMED}, {"save", 1, SAVED RESUMED},
    };

    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        struct fixture *fixture;
        void *other;

        assert_int_equal(setup(&other), 0);
        fixture = other;
        fixture->cancel = table[i].call;
        fixture->skip = table[i].skip;
        hand_over(fixture, NULL);
        assert_string_equal(fixture->log, table[i].log);
        assert_int_equal(fixture->report.status, UPDATE_CANCELLED);
        assert_true(fixture->machine.running);
        assert_int_equal(fixture->machine.delivery, KVM_IRQ_KERNEL);
        teardown(&other);
    }
}

/* Cancelled while the peer, which may be taking the mappings over, does not answer. */
static void cancelled_in_quiesce(void **state)
{
    const struct deviation deviation = {"quiesce", HANG};
    struct fixture *fixture = *state;

    fixture->cancel_at = UPDATE_ACTIVE;
    hand_over(fixture, &deviation);
    assert_int_equal(fixture->report.status, UPDATE_CANCELLED);
    assert_string_equal(fixture->log, QUIET BACK);
    assert_killed(fixture, true);
}

/* A cancel that comes too late leaves no trace. */
static void cancelled_too_late(void **state)
{
    const struct deviation deviation = {"prepare", REFUSE};
    const struct fdset none = {0};
    struct fixture *fixture = *state;
    struct update_report report;
    struct error error = {0};

    fixture->child = fork();
    assert_true(fixture->child >= 0);
    if (fixture->child == 0)
        be_incoming(fixture->path, &deviation);
    assert_int_equal(update_start(&fixture->update, &fixture->machine, fixture->path, &none,
                                  fixture->dry_run, on_progress, fixture, &error),
                     0);
    assert_true(sd_event_loop(fixture->loop) >= 0);
    assert_int_equal(update_cancel(fixture->update, &error), 0);
    update_report(fixture->update, &report);
    assert_int_equal(report.status, UPDATE_FAILED);
}

static void nobody_there_cancelled(void **state)
{
    const struct fdset none = {0};
    struct fixture *fixture = *state;
    struct error error = {0};

    assert_int_equal(update_start(&fixture->update, &fixture->machine, fixture->path, &none,
                                  fixture->dry_run, on_progress, fixture, &error),
                     0);
    assert_int_equal(update_cancel(fixture->update, &error), 0);
    assert_true(sd_event_loop(fixture->loop) >= 0);
    assert_int_equal(fixture->report.status, UPDATE_CANCELLED);
    assert_string_equal(fixture->log, "");
}

/* --- the incoming side --------------------------------------------------------------------- */

/* What the outgoing process says, one character each: the stages h d p r q s f in their order,
 * g the go, and
 *   D  describe without the shared memory     U  describe with memory that is not sealed
 *   N  describe with descriptors that do not come, then it ends
 *   L  describe with lengths that do not fit  H  hello of another protocol
 *   S  switch with more state than there is room for
 *   m  the memory again, with the next stage  x  a stage that there is not
 *   R  rehearse of a dry run                 P  prepare, for which to be refused in words is well
 *   t  takes the guest back                   T  the incoming process is sent SIGTERM
 *   e  waits for the other side to end the conversation
 */
static void fill_request(struct wire_request *request, char what)
{
    static const struct {
        char what;
        const char *stage;
    } table[] = {{'h', "hello"},    {'H', "hello"},    {'d', "describe"}, {'D', "describe"},
                 {'U', "describe"}, {'N', "describe"}, {'L', "describe"}, {'p', "prepare"},
                 {'P', "prepare"},  {'r', "rehearse"}, {'R', "rehearse"}, {'q', "quiesce"},
                 {'s', "switch"},   {'S', "switch"},   {'f', "finish"},   {'x', "dance"}};

    *request = (struct wire_request){.protocol = WIRE_PROTOCOL,
                                     .protocol_min = WIRE_PROTOCOL,
                                     .definition_length = 10,
                                     .facts_length = 20,
                                     .state_length = 30,
                                     .vcpu_count = 2,
                                     .vcpus = {{1000}, {1001}}};
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        if (table[i].what == what)
            strcpy(request->stage, table[i].stage);
    }
    if (what == 'H')
        request->protocol = request->protocol_min = WIRE_PROTOCOL + 1;
    if (what == 'L')
        request->definition_length = request->facts_length = WIRE_DESCRIPTION_SIZE;
    if (what == 'S')
        request->state_length = STATE_ROOM + 1;
    if (what == 'N')
        request->fd_count = 3;
    request->dry_run = what == 'R';
}

static void make_memory(struct wire_memory *memory, bool sealed)
{
    struct error error;

    if (wire_memory_create(memory, STATE_ROOM, &error) < 0)
        _exit(2);
    memset(wire_description(memory), 'd', 10);
    memset((char *)wire_description(memory) + 10, 'f', 20);
    memset(wire_state(memory), 's', 30);
    if (!sealed) {
        memory->fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (ftruncate(memory->fd, (off_t)memory->size) < 0)
            _exit(2);
    }
}

/* @return whether the other side has answered well */
static bool say(struct wire *wire, const struct wire_memory *memory, char what, int fd)
{
    struct error error;

    if (what == 'g') {
        if (wire_send_go(wire, LONG_MS, &error) < 0)
            return false;
    } else {
        fill_request(&wire->request, what);
        if (wire_send_request(wire, fd, LONG_MS, &error) < 0)
            return false;
        if (what == 'N')
            _exit(0);
    }
    return wire_receive_reply(wire, LONG_MS, &error) == 0 || (what == 'P' && wire->reply.code != 0);
}

/* The outgoing process. Its exit status is how much of the script went well. */
static _Noreturn void be_outgoing(const char *path, const char *script)
{
    struct wire *wire = xcalloc(1, sizeof(*wire));
    struct wire_memory memory = {.fd = -1};
    struct error error;
    bool again = false;
    int done = 0;

    alarm(60);
    make_memory(&memory, strchr(script, 'U') == NULL);
    while (channel_connect(&wire->channel, path, LONG_MS, &error) < 0)
        poll(NULL, 0, 5);
    for (; script[done]; done++) {
        char what = script[done];
        bool with_memory = what == 'd' || what == 'U' || what == 'N' || what == 'L' || again;

        if (what == 'T')
            kill(getppid(), SIGTERM);
        else if (what == 't')
            wire_claim(&memory, WIRE_TAKEN_BACK);
        else if (what == 'm')
            again = true;
        else if (what == 'e')
            wire_receive_reply(wire, LONG_MS, &error);
        else if (!say(wire, &memory, what, with_memory ? memory.fd : -1))
            break;
    }
    _exit(done);
}

static int adopt(void *opaque, struct machine *machine, struct fdset *extra, struct error *error)
{
    return step(machine, "control", error);
}

struct outcome {
    int result;
    int done; /* how much of the script went well */
    struct error error;
};

static struct outcome take_over(struct fixture *fixture, const char *script)
{
    struct update_incoming *incoming;
    struct outcome outcome = {0};
    int status;

    fixture->machine.running = false;
    fixture->child = fork();
    assert_true(fixture->child >= 0);
    if (fixture->child == 0)
        be_outgoing(fixture->path, script);
    assert_int_equal(update_incoming_start(&incoming, &fixture->given, fixture->loop, adopt,
                                           on_progress, fixture, &outcome.error),
                     0);
    assert_true(sd_event_loop(fixture->loop) >= 0);
    outcome.result = update_incoming_finish(incoming, &outcome.error);
    assert_int_equal(waitpid(fixture->child, &status, 0), fixture->child);
    fixture->child = 0;
    assert_true(WIFEXITED(status));
    outcome.done = WEXITSTATUS(status);
    return outcome;
}

#define ADOPTED "compare adopt control"
#define LOADED  ADOPTED " load probe warm-up own load"
#define SETTLED LOADED " run proxy kernel console peers"

static void incoming_completed(void **state)
{
    struct fixture *fixture = *state;
    struct outcome outcome = take_over(fixture, "hdprqsgf");

    assert_int_equal(outcome.result, 0);
    assert_int_equal(outcome.done, 8);
    assert_string_equal(fixture->log, SETTLED " destroy");
    assert_int_equal(fixture->report.status, UPDATE_COMPLETED);
    assert_int_equal(fixture->report.generation, 4);
    assert_int_equal(fixture->report.blackout_ns, 2001);
}

/* A dry run ends here, well, and nothing of the guest has been touched. */
static void incoming_rehearsed(void **state)
{
    struct fixture *fixture = *state;
    struct outcome outcome = take_over(fixture, "hdpR");
    int code = -1;

    assert_int_equal(outcome.result, 0);
    assert_int_equal(outcome.done, 4);
    assert_string_equal(fixture->log, ADOPTED " load probe load release");
    assert_int_equal(fixture->report.status, UPDATE_REHEARSED);
    assert_true(fixture->report.dry_run);
    assert_int_equal(sd_event_get_exit_code(fixture->loop, &code), 0);
    assert_int_equal(code, 0);
}

/* Nothing comes after it. */
static void incoming_rehearsed_only(void **state)
{
    struct outcome outcome = take_over(*state, "hdpRq");

    assert_int_equal(outcome.result, 0);
    assert_int_equal(outcome.done, 4);
}

/* The outgoing side ends early: before the go nothing runs here, after it the guest lives on. */
static void incoming_abandoned(void **state)
{
    static const struct {
        const char *script, *log;
        bool runs;
    } table[] = {
        {"h", "", false},
        {"hd", "compare", false},
        {"hdp", ADOPTED " release", false},
        {"hdprqs", LOADED " release", false},
        {"hdprqsg", SETTLED " destroy", true},
    };

    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        struct fixture *fixture;
        struct outcome outcome;
        void *other;

        assert_int_equal(setup(&other), 0);
        fixture = other;
        outcome = take_over(fixture, table[i].script);
        assert_int_equal(outcome.done, strlen(table[i].script));
        assert_string_equal(fixture->log, table[i].log);
        assert_int_equal(outcome.result, table[i].runs ? 0 : -EPIPE);
        assert_int_equal(fixture->report.status, table[i].runs ? UPDATE_COMPLETED : UPDATE_FAILED);
        teardown(&other);
    }
}

static void incoming_hostile(void **state)
{
    static const struct {
        const char *script; /* the last one is what is refused */
        const char *message;
    } table[] = {
        {"d", "not the turn of stage 'describe'"},
        {"f", "not the turn"},
        {"x", "knows no stage 'dance'"},
        {"hh", "not the turn of stage 'hello'"},
        {"hp", "not the turn"},
        {"hg", "turn of the go"},
        {"H", "speaks hand-over protocols"},
        {"hD", "shared memory is missing"},
        {"hU", "not as expected"},
        {"hL", "does not fit"},
        {"hN", "ended"},
        {"hdmp", "came twice"},
        {"hdd", "came twice"},
        {"hdr", "not the turn"},
        {"hdpp", "not the turn"},
        {"hdprqg", "turn of the go"},
        {"hdprqf", "not the turn"},
        {"hdprqS", "too long"},
        {"hdprqss", "not the turn"},
        {"hdprqsf", "finish came before the go"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        struct fixture *fixture;
        struct outcome outcome;
        void *other;

        assert_int_equal(setup(&other), 0);
        fixture = other;
        outcome = take_over(fixture, table[i].script);
        assert_true(outcome.result < 0);
        assert_non_null(strstr(outcome.error.message, table[i].message));
        assert_int_equal(fixture->report.status, UPDATE_FAILED);
        assert_null(strstr(fixture->log, "run"));
        teardown(&other);
    }
}

/* Two goes: the second is no reason to leave the guest, which runs. */
static void incoming_two_goes(void **state)
{
    struct fixture *fixture = *state;
    struct outcome outcome = take_over(fixture, "hdprqsgg");

    assert_int_equal(outcome.result, 0);
    assert_int_equal(outcome.done, 7);
    assert_string_equal(fixture->log, SETTLED " destroy");
}

static void incoming_too_late(void **state)
{
    struct fixture *fixture = *state;
    struct outcome outcome = take_over(fixture, "hdprqstg");

    assert_int_equal(outcome.result, -ECANCELED);
    assert_non_null(strstr(outcome.error.message, "taken back"));
    assert_string_equal(fixture->log, LOADED " release");
}

/* A signal that ends this process is about the hand-over as long as the guest is not here. */
static void incoming_told_to_end(void **state)
{
    static const char *const scripts[] = {"hTe", "hdprTe", "hdprqsTg"};
    sigset_t end;
    int signal;

    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    sigprocmask(SIG_BLOCK, &end, NULL);
    for (size_t i = 0; i < ARRAY_SIZE(scripts); i++) {
        struct fixture *fixture;
        struct outcome outcome;
        void *other;

        assert_int_equal(setup(&other), 0);
        fixture = other;
        outcome = take_over(fixture, scripts[i]);
        assert_int_equal(sigwait(&end, &signal), 0);
        assert_int_equal(outcome.result, -ECANCELED);
        assert_non_null(strstr(outcome.error.message, "told to end"));
        assert_null(strstr(fixture->log, "run"));
        teardown(&other);
    }
    sigprocmask(SIG_UNBLOCK, &end, NULL);
}

static void incoming_parts_fail(void **state)
{
    static const struct {
        const char *call;
        unsigned skip;
        const char *log;
        int done;
    } table[] = {
        {"compare", 0, "compare", 1},
        {"adopt", 0, "compare adopt", 2},
        {"control", 0, ADOPTED " release", 2},
        {"load", 0, ADOPTED " load release", 3},
        {"probe", 0, ADOPTED " load probe release", 3},
        {"own", 0, ADOPTED " load probe warm-up own release", 4},
        {"load", 1, LOADED " release", 5},
    };

    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        struct fixture *fixture;
        struct outcome outcome;
        void *other;

        assert_int_equal(setup(&other), 0);
        fixture = other;
        fixture->fail = table[i].call;
        fixture->skip = table[i].skip;
        outcome = take_over(fixture, "hdprqsgf");
        assert_int_equal(outcome.result, -EIO);
        assert_int_equal(outcome.done, table[i].done);
        assert_string_equal(fixture->log, table[i].log);
        teardown(&other);
    }
}

/* The other side learns the reason also when that quotes what is no text. */
static void incoming_fails_in_any_words(void **state)
{
    struct fixture *fixture = *state;
    struct outcome outcome;

    fixture->fail = "adopt";
    fixture->fail_quotes = "\xc3\xa4\xc3";
    outcome = take_over(fixture, "hdP");
    assert_int_equal(outcome.result, -EIO);
    assert_string_equal(outcome.error.message, "stage 'prepare': adopt fails: \xc3\xa4?");
    assert_int_equal(outcome.done, 3);
}

/* Once the guest is claimed nothing turns back. */
static void incoming_settles_badly(void **state)
{
    struct fixture *fixture = *state;
    struct outcome outcome;

    fixture->fail = "kernel";
    outcome = take_over(fixture, "hdprqsgf");
    assert_int_equal(outcome.result, 0);
    assert_int_equal(outcome.done, 8);
    assert_string_equal(fixture->log, SETTLED " destroy");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(completed),
        TEST(rehearsed),
        TEST(rehearsal_fails),
        TEST(rehearsal_cancelled),
        TEST(blocked),
        TEST(blocked_by_another),
        TEST(peer_refuses),
        TEST(peer_refuses_early),
        TEST(peer_dies),
        TEST(peer_leaves),
        TEST(peer_babbles),
        TEST(peer_outdated),
        TEST(after_the_go),
        TEST(go_hangs),
        TEST(own_parts_fail),
        TEST(undo_fails),
        TEST(cancelled_at_each_call),
        TEST(cancelled_in_quiesce),
        TEST(cancelled_too_late),
        TEST(nobody_there_cancelled),
        TEST(incoming_completed),
        TEST(incoming_rehearsed),
        TEST(incoming_rehearsed_only),
        TEST(incoming_abandoned),
        TEST(incoming_hostile),
        TEST(incoming_two_goes),
        TEST(incoming_too_late),
        TEST(incoming_told_to_end),
        TEST(incoming_parts_fail),
        TEST(incoming_fails_in_any_words),
        TEST(incoming_settles_badly),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
