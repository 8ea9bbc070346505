/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of src/channel: real sockets in a directory of their own, real peers (threads or forked
 * processes), and hostile packets sent past channel_send().
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "base/util.h"
#include "channel/channel.h"

#define LONG_MS  20000 /* "does not end by the clock" */
#define SHORT_MS 50

struct world {
    char directory[64];
    char path[96];
    struct channel_listener *listener;
    struct channel *near, *far; /* two ends in this process */
    struct channel_message message, received;
    struct error error;
    int first_free; /* the lowest free descriptor: whoever leaks one moves it */
};

static int first_free(void)
{
    int fd = fcntl(0, F_DUPFD, 0);

    close(fd);
    return fd;
}

static int world_new(void **state)
{
    struct world *world = xcalloc(1, sizeof(*world));

    world->first_free = first_free();
    strcpy(world->directory, "/tmp/test_channel.XXXXXX");
    if (mkdtemp(world->directory) == NULL)
        return -1;
    snprintf(world->path, sizeof(world->path), "%s/socket", world->directory);
    *state = world;
    return 0;
}

static int world_free(void **state)
{
    struct world *world = *state;
    int leaked, removed;

    channel_close(world->near);
    channel_close(world->far);
    channel_listener_close(world->listener);
    leaked = first_free() != world->first_free;
    unlink(world->path);
    removed = rmdir(world->directory);
    if (leaked)
        print_message("a descriptor has leaked\n");
    free(world);
    return leaked || removed ? -1 : 0;
}

static void pair(struct world *world)
{
    int ends[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    assert_int_equal(channel_from_socket(&world->near, ends[0], &world->error), 0);
    assert_int_equal(channel_from_socket(&world->far, ends[1], &world->error), 0);
}

/* One end a channel, the other one a bare socket for hostile packets. */
static int half_pair(struct world *world)
{
    int ends[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    assert_int_equal(channel_from_socket(&world->near, ends[0], &world->error), 0);
    return ends[1];
}

static void expect(struct world *world, int ret, int code, const char *word)
{
    if (ret != -code)
        print_message("%d: %s\n", ret, world->error.message);
    assert_int_equal(ret, -code);
    if (code == 0)
        return;
    assert_int_equal(world->error.code, code);
    if (strstr(world->error.message, word) == NULL)
        fail_msg("'%s' is not in: %s", word, world->error.message);
}

static void set_message(struct channel_message *message, uint32_t type, uint32_t length)
{
    message->type = type;
    message->length = length;
    message->fd_count = 0;
    for (uint32_t i = 0; i < length; i++)
        message->payload[i] = (uint8_t)(i * 7 + type);
}

/* --- messages --- */

static void test_round_trip(void **state)
{
    static const uint32_t lengths[] = {0, 1, 4096, CHANNEL_PAYLOAD_MAX};
    struct world *world = *state;

    pair(world);
    for (uint32_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        set_message(&world->message, i + 1, lengths[i]);
        expect(world, channel_send(world->near, &world->message, 0, &world->error), 0, "");
        expect(world, channel_receive(world->far, &world->received, 0, &world->error), 0, "");
        assert_int_equal(world->received.type, i + 1);
        assert_int_equal(world->received.sequence, i);
        assert_int_equal(world->received.length, lengths[i]);
        assert_int_equal(world->received.fd_count, 0);
        assert_memory_equal(world->received.payload, world->message.payload, lengths[i]);
    }
}

static void test_descriptors(void **state)
{
    struct world *world = *state;
    struct stat sent, got;
    int fd = open("/dev/null", O_RDONLY);

    pair(world);
    set_message(&world->message, 1, 10);
    world->message.fd_count = CHANNEL_FDS_MAX;
    for (uint32_t i = 0; i < CHANNEL_FDS_MAX; i++)
        world->message.fds[i] = fd;
    expect(world, channel_send(world->near, &world->message, 0, &world->error), 0, "");
    expect(world, channel_receive(world->far, &world->received, 0, &world->error), 0, "");
    assert_int_equal(world->received.fd_count, CHANNEL_FDS_MAX);
    fstat(fd, &sent);
    for (uint32_t i = 0; i < CHANNEL_FDS_MAX; i++) {
        assert_int_equal(fstat(world->received.fds[i], &got), 0);
        assert_true(sent.st_rdev == got.st_rdev);
        assert_true(fcntl(world->received.fds[i], F_GETFD) & FD_CLOEXEC);
    }
    close(STEAL_FD(world->received.fds[3]));
    channel_message_close(&world->received);
    channel_message_close(&world->received);
    close(fd);
}

static void test_bad_descriptor_is_not_sent(void **state)
{
    struct world *world = *state;

    pair(world);
    set_message(&world->message, 1, 0);
    world->message.fd_count = 1;
    world->message.fds[0] = -1;
    expect(world, channel_send(world->near, &world->message, 0, &world->error), EBADF,
           "descriptor");
    world->message.fd_count = 0;
    expect(world, channel_send(world->near, &world->message, 0, &world->error), 0, "");
    /* The failed one has left no gap. */
    expect(world, channel_receive(world->far, &world->received, 0, &world->error), 0, "");
}

/* --- waits --- */

static void test_receive_timeout(void **state)
{
    struct world *world = *state;
    uint64_t start = clock_ns();

    pair(world);
    expect(world, channel_receive(world->far, &world->received, SHORT_MS, &world->error), ETIMEDOUT,
           "50 ms");
    assert_true(clock_ns() - start >= SHORT_MS * UINT64_C(1000000));
}

static void test_send_timeout(void **state)
{
    struct world *world = *state;
    uint32_t sent = 0;
    int ret;

    pair(world);
    set_message(&world->message, 1, CHANNEL_PAYLOAD_MAX);
    while ((ret = channel_send(world->near, &world->message, 0, &world->error)) == 0)
        assert_true(++sent < 10000);
    expect(world, ret, ETIMEDOUT, "no message in time");
    /* What was sent is all there, in sequence. */
    while (sent--)
        expect(world, channel_receive(world->far, &world->received, 0, &world->error), 0, "");
    expect(world, channel_receive(world->far, &world->received, 0, &world->error), ETIMEDOUT, "");
}

static void *cancel_soon(void *opaque)
{
    usleep(SHORT_MS * 1000);
    channel_cancel(opaque);
    return NULL;
}

static void test_cancel(void **state)
{
    struct world *world = *state;
    pthread_t thread;

    pair(world);
    assert_int_equal(pthread_create(&thread, NULL, cancel_soon, world->far), 0);
    expect(world, channel_receive(world->far, &world->received, LONG_MS, &world->error), ECANCELED,
           "cancelled");
    pthread_join(thread, NULL);
    set_message(&world->message, 1, 0);
    expect(world, channel_send(world->near, &world->message, 0, &world->error), 0, "");
    expect(world, channel_receive(world->far, &world->received, LONG_MS, &world->error), ECANCELED,
           "");
    expect(world, channel_send(world->far, &world->message, 0, &world->error), ECANCELED, "");
}

static void nothing(int signal)
{
}

static void *signal_soon(void *opaque)
{
    for (int i = 0; i < 5; i++) {
        usleep(SHORT_MS * 100);
        pthread_kill(*(pthread_t *)opaque, SIGUSR1);
    }
    return NULL;
}

static void test_signals_do_not_end_a_wait(void **state)
{
    struct sigaction action = {.sa_handler = nothing};
    struct world *world = *state;
    pthread_t self = pthread_self(), thread;

    pair(world);
    sigaction(SIGUSR1, &action, NULL);
    assert_int_equal(pthread_create(&thread, NULL, signal_soon, &self), 0);
    expect(world, channel_receive(world->far, &world->received, SHORT_MS, &world->error), ETIMEDOUT,
           "");
    pthread_join(thread, NULL);
}

/* --- the end of a peer --- */

static void test_peer_closes(void **state)
{
    struct world *world = *state;

    pair(world);
    set_message(&world->message, 5, 100);
    /* Something unread in the other direction makes the kernel report a reset first. */
    expect(world, channel_send(world->far, &world->message, 0, &world->error), 0, "");
    expect(world, channel_send(world->near, &world->message, 0, &world->error), 0, "");
    expect(world, channel_send(world->near, &world->message, 0, &world->error), 0, "");
    channel_close(STEAL_POINTER(world->near));
    expect(world, channel_receive(world->far, &world->received, LONG_MS, &world->error), 0, "");
    expect(world, channel_receive(world->far, &world->received, LONG_MS, &world->error), 0, "");
    assert_int_equal(world->received.sequence, 1);
    expect(world, channel_receive(world->far, &world->received, LONG_MS, &world->error), EPIPE,
           "has closed the channel");
    expect(world, channel_send(world->far, &world->message, LONG_MS, &world->error), EPIPE,
           "has closed the channel");
    assert_false(channel_peer_dies(world->far, 0));
}

/* A child that runs some code with a channel to us and stays a zombie, or lives, until reaped. */
static pid_t spawn(struct world *world, void (*run)(struct channel *channel))
{
    struct error error = {0};
    pid_t child;

    assert_int_equal(channel_listen(&world->listener, world->path, &world->error), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct channel *channel;

        if (channel_connect(&channel, world->path, LONG_MS, &error) < 0)
            _exit(1);
        run(channel);
        _exit(0);
    }
    assert_int_equal(channel_accept(world->listener, &world->near, LONG_MS, &world->error), 0);
    assert_int_equal(channel_peer_pid(world->near), child);
    assert_true(fcntl(channel_peer_pidfd(world->near), F_GETFD) & FD_CLOEXEC);
    return child;
}

static void reap(pid_t child)
{
    int status;

    assert_int_equal(waitpid(child, &status, 0), child);
}

static void send_three_and_die(struct channel *channel)
{
    struct channel_message *message = xcalloc(1, sizeof(*message));
    struct error error = {0};

    set_message(message, 9, 1000);
    for (int i = 0; i < 3; i++)
        channel_send(channel, message, LONG_MS, &error);
}

static void test_last_words_of_the_dead(void **state)
{
    struct world *world = *state;
    pid_t child = spawn(world, send_three_and_die);

    reap(child);
    assert_true(channel_peer_dies(world->near, 0));
    for (uint32_t i = 0; i < 3; i++)
        expect(world, channel_receive(world->near, &world->received, LONG_MS, &world->error), 0,
               "");
    assert_int_equal(world->received.sequence, 2);
    expect(world, channel_receive(world->near, &world->received, LONG_MS, &world->error), EPIPE,
           "has ended");
    set_message(&world->message, 1, 0);
    expect(world, channel_send(world->near, &world->message, LONG_MS, &world->error), EPIPE,
           "has ended");
}

static void sleep_for_ever(struct channel *channel)
{
    while (true)
        pause();
}

/* Another process still holds the dead peer's end of the socket: only the pidfd tells. */
static void leave_a_child_behind(struct channel *channel)
{
    if (fork() == 0) {
        close(STDOUT_FILENO); /* nobody shall wait for it */
        close(STDERR_FILENO);
        alarm(5);
        sleep_for_ever(channel);
    }
}

static void test_death_with_socket_open(void **state)
{
    struct world *world = *state;
    uint64_t start = clock_ns();
    pid_t child = spawn(world, leave_a_child_behind);

    expect(world, channel_receive(world->near, &world->received, LONG_MS, &world->error), EPIPE,
           "has ended");
    assert_true(clock_ns() - start < UINT64_C(4000000000));
    reap(child);
}

static void test_death_during_a_send(void **state)
{
    struct world *world = *state;
    pid_t child = spawn(world, sleep_for_ever);
    int ret;

    set_message(&world->message, 1, CHANNEL_PAYLOAD_MAX);
    do {
        ret = channel_send(world->near, &world->message, 0, &world->error);
    } while (ret == 0);
    assert_int_equal(ret, -ETIMEDOUT);
    assert_false(channel_peer_dies(world->near, 0));
    kill(child, SIGKILL);
    expect(world, channel_send(world->near, &world->message, LONG_MS, &world->error), EPIPE,
           "has ended");
    reap(child);
}

/* --- hostile packets --- */

struct raw {
    uint32_t magic, type, sequence, length, fd_count;
    uint8_t payload[CHANNEL_PAYLOAD_MAX + 64];
};

static void raw_send(int fd, const void *bytes, size_t length, const int *fds, size_t fd_count)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(253 * sizeof(int))];
    } control = {.align = {.cmsg_level = SOL_SOCKET,
                           .cmsg_type = SCM_RIGHTS,
                           .cmsg_len = CMSG_LEN(fd_count * sizeof(int))}};
    struct iovec part = {.iov_base = (void *)bytes, .iov_len = length};
    struct msghdr packet = {.msg_iov = &part, .msg_iovlen = 1};

    if (fd_count > 0) {
        packet.msg_control = &control;
        packet.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        memcpy(CMSG_DATA(&control.align), fds, fd_count * sizeof(int));
    }
    assert_int_equal(sendmsg(fd, &packet, MSG_NOSIGNAL), length);
}

static void test_hostile_headers(void **state)
{
    static const struct {
        struct raw raw;
        size_t size;
        const char *why;
    } cases[] = {
        {{0}, 1, "no message"},
        {{.magic = 0x4e544142, .type = 1}, 19, "no message"},
        {{.magic = 0x4e544143, .type = 1}, 20, "no message"},
        {{.magic = 0x4e544142, .type = 0}, 20, "no message"},
        {{.magic = 0x4e544142, .type = 1, .length = 1}, 20, "declares 1 bytes"},
        {{.magic = 0x4e544142, .type = 1, .length = 0}, 21, "declares 0 bytes"},
        {{.magic = 0x4e544142, .type = 1, .length = UINT32_MAX}, 20, "declares 4294967295"},
        {{.magic = 0x4e544142, .type = 1, .sequence = 1}, 20, "arrived where 0"},
        {{.magic = 0x4e544142, .type = 1, .fd_count = 1}, 20, "declares 1 descriptors"},
        {{.magic = 0x4e544142, .type = 1, .fd_count = 251}, 20, "declares 251"},
        {{.magic = 0x4e544142, .type = 1, .fd_count = UINT32_MAX}, 20, "declares 4294967295"},
        {{.magic = 0x4e544142, .type = 1, .length = CHANNEL_PAYLOAD_MAX + 1},
         20 + CHANNEL_PAYLOAD_MAX + 1,
         "too long"},
    };
    struct world *world = *state;
    CLEANUP_CLOSE int attacker = half_pair(world);

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        raw_send(attacker, &cases[i].raw, cases[i].size, NULL, 0);
        expect(world, channel_receive(world->near, &world->received, 0, &world->error), EPROTO,
               cases[i].why);
        assert_int_equal(world->received.fd_count, 0);
    }
}

/* Every packet that is refused comes with descriptors; the fixture finds those that leak. */
static void test_hostile_descriptors(void **state)
{
    static const struct {
        uint32_t declared;
        size_t sent, size;
        const char *why;
    } cases[] = {
        {0, 1, 20, "has 1"},   {2, 1, 20, "has 1"},       {1, 253, 20, "has 253"},
        {253, 253, 20, "253"}, {0, 3, 0, "empty"},        {7, 7, 5, "no message"},
        {1, 1, 24, "payload"}, {1, 1, 40000, "too long"},
    };
    struct world *world = *state;
    CLEANUP_CLOSE int attacker = half_pair(world);
    static uint8_t packet[40000];
    int fds[253];

    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        fds[i] = attacker;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct raw *raw = (struct raw *)packet;
        int before = first_free();

        raw->magic = 0x4e544142;
        raw->type = 1;
        raw->fd_count = cases[i].declared;
        raw_send(attacker, packet, cases[i].size, fds, cases[i].sent);
        expect(world, channel_receive(world->near, &world->received, 0, &world->error), EPROTO,
               cases[i].why);
        assert_int_equal(first_free(), before);
    }
}

static void test_empty_packet(void **state)
{
    struct world *world = *state;
    CLEANUP_CLOSE int attacker = half_pair(world);

    raw_send(attacker, "", 0, NULL, 0);
    expect(world, channel_receive(world->near, &world->received, 0, &world->error), EPROTO,
           "empty");
    shutdown(attacker, SHUT_WR);
    expect(world, channel_receive(world->near, &world->received, 0, &world->error), EPIPE,
           "closed");
}

/* --- limits --- */

static void test_no_room_for_descriptors(void **state)
{
    struct world *world = *state;
    struct rlimit limit, low;
    int free_before;

    pair(world);
    set_message(&world->message, 1, 0);
    world->message.fd_count = 20;
    for (int i = 0; i < 20; i++)
        world->message.fds[i] = 0;
    expect(world, channel_send(world->near, &world->message, 0, &world->error), 0, "");
    free_before = first_free();
    getrlimit(RLIMIT_NOFILE, &limit);
    low = (struct rlimit){.rlim_cur = (rlim_t)free_before + 5, .rlim_max = limit.rlim_max};
    setrlimit(RLIMIT_NOFILE, &low);
    expect(world, channel_receive(world->far, &world->received, 0, &world->error), EMFILE,
           "LimitNOFILE");
    setrlimit(RLIMIT_NOFILE, &limit);
    assert_non_null(strstr(world->error.message, " of 20 descriptors"));
    assert_int_equal(first_free(), free_before);
}

/* A user without privileges, descriptors that nobody receives, a low limit. */
static void fill_with_descriptors(struct channel *channel)
{
    struct rlimit low = {.rlim_cur = 64, .rlim_max = 64};
    struct channel_message *message = xcalloc(1, sizeof(*message));
    struct error error = {0};
    int ret = 0;

    setrlimit(RLIMIT_NOFILE, &low);
    if (setuid(65534) < 0)
        _exit(77);
    set_message(message, 1, 0);
    message->fd_count = 50;
    for (int i = 0; i < 50; i++)
        message->fds[i] = 0;
    for (int i = 0; i < 10 && ret == 0; i++)
        ret = channel_send(channel, message, SHORT_MS, &error);
    _exit(ret == -ETOOMANYREFS && strstr(error.message, "LimitNOFILE") ? 42 : 1);
}

static void test_too_many_on_their_way(void **state)
{
    struct world *world = *state;
    int status;
    pid_t child;

    if (geteuid() != 0)
        skip();
    child = spawn(world, fill_with_descriptors);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(WEXITSTATUS(status), 42);
}

/* --- setting up --- */

static void test_mode_whatever_the_umask(void **state)
{
    struct world *world = *state;
    mode_t old = umask(0);
    struct stat status;

    expect(world, channel_listen(&world->listener, world->path, &world->error), 0, "");
    umask(old);
    assert_int_equal(lstat(world->path, &status), 0);
    assert_true(S_ISSOCK(status.st_mode));
    assert_int_equal(status.st_mode & 07777, 0600);
    assert_true(fcntl(channel_listener_fd(world->listener), F_GETFD) & FD_CLOEXEC);
    channel_listener_close(STEAL_POINTER(world->listener));
    assert_int_equal(lstat(world->path, &status), -1);
}

/* Leaves a socket file behind that nobody has bound. */
static void leave_stale(const struct world *world, int type)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, type, 0);

    strcpy(address.sun_path, world->path);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    close(fd);
}

static void test_stale_socket_is_replaced(void **state)
{
    struct world *world = *state;

    leave_stale(world, SOCK_STREAM);
    expect(world, channel_listen(&world->listener, world->path, &world->error), 0, "");
}

static void test_live_socket_is_left_alone(void **state)
{
    struct world *world = *state;
    struct channel_listener *second;

    expect(world, channel_listen(&world->listener, world->path, &world->error), 0, "");
    expect(world, channel_listen(&second, world->path, &world->error), EADDRINUSE,
           "another process listens");
    /* And the one that listens has not noticed. */
    expect(world, channel_accept(world->listener, &world->near, 0, &world->error), ETIMEDOUT,
           "0 ms");
    expect(world, channel_connect(&world->far, world->path, 0, &world->error), 0, "");
    expect(world, channel_accept(world->listener, &world->near, 0, &world->error), 0, "");
}

static void test_other_files_are_left_alone(void **state)
{
    struct world *world = *state;
    int fd = open(world->path, O_CREAT | O_WRONLY, 0600);

    close(fd);
    expect(world, channel_listen(&world->listener, world->path, &world->error), EADDRINUSE,
           "no socket");
    assert_int_equal(unlink(world->path), 0);
    assert_int_equal(symlink("/nonexistent", world->path), 0);
    expect(world, channel_listen(&world->listener, world->path, &world->error), EADDRINUSE,
           "no socket");
}

static void test_close_removes_only_its_own(void **state)
{
    struct world *world = *state;
    struct stat status;

    expect(world, channel_listen(&world->listener, world->path, &world->error), 0, "");
    unlink(world->path);
    leave_stale(world, SOCK_STREAM);
    channel_listener_close(STEAL_POINTER(world->listener));
    assert_int_equal(lstat(world->path, &status), 0);
}

/* Many at once go for one stale path: one wins, and the winner's socket is the one there. */
struct contender {
    pthread_t thread;
    const char *path;
    pthread_barrier_t *start;
    struct channel_listener *listener;
    int ret;
};

static void *contend(void *opaque)
{
    struct contender *contender = opaque;
    struct error error = {0};

    pthread_barrier_wait(contender->start);
    contender->ret = channel_listen(&contender->listener, contender->path, &error);
    return NULL;
}

static void test_race_for_a_stale_socket(void **state)
{
    struct world *world = *state;
    struct contender contenders[6];
    pthread_barrier_t start;

    pthread_barrier_init(&start, NULL, ARRAY_SIZE(contenders));
    for (int round = 0; round < 50; round++) {
        struct channel_listener *winner = NULL;

        leave_stale(world, SOCK_SEQPACKET);
        for (size_t i = 0; i < ARRAY_SIZE(contenders); i++) {
            contenders[i] = (struct contender){.path = world->path, .start = &start};
            pthread_create(&contenders[i].thread, NULL, contend, &contenders[i]);
        }
        for (size_t i = 0; i < ARRAY_SIZE(contenders); i++) {
            pthread_join(contenders[i].thread, NULL);
            if (contenders[i].ret < 0) {
                assert_int_equal(contenders[i].ret, -EADDRINUSE);
                continue;
            }
            assert_null(winner);
            winner = contenders[i].listener;
        }
        assert_non_null(winner);
        expect(world, channel_connect(&world->far, world->path, 0, &world->error), 0, "");
        channel_close(STEAL_POINTER(world->far));
        channel_listener_close(winner);
    }
    pthread_barrier_destroy(&start);
}

static void *unlock_soon(void *opaque)
{
    usleep(SHORT_MS * 1000);
    flock(*(int *)opaque, LOCK_UN);
    return NULL;
}

/* Whoever replaces a stale socket waits for the one who is about to do so. */
static void test_replacing_takes_turns(void **state)
{
    struct world *world = *state;
    CLEANUP_CLOSE int directory = open(world->directory, O_RDONLY | O_DIRECTORY);
    uint64_t start = clock_ns();
    pthread_t thread;

    leave_stale(world, SOCK_SEQPACKET);
    assert_int_equal(flock(directory, LOCK_EX), 0);
    assert_int_equal(pthread_create(&thread, NULL, unlock_soon, &directory), 0);
    expect(world, channel_listen(&world->listener, world->path, &world->error), 0, "");
    assert_true(clock_ns() - start >= SHORT_MS * UINT64_C(1000000));
    pthread_join(thread, NULL);
}

static void test_paths(void **state)
{
    struct world *world = *state;
    char path[109];

    memset(path, 'p', sizeof(path));
    path[108] = '\0';
    expect(world, channel_listen(&world->listener, path, &world->error), ENAMETOOLONG, "107");
    expect(world, channel_connect(&world->near, path, 0, &world->error), ENAMETOOLONG, "107");
    expect(world, channel_listen(&world->listener, "", &world->error), EINVAL, "empty");
    expect(world, channel_connect(&world->near, "", 0, &world->error), EINVAL, "empty");
    expect(world, channel_listen(&world->listener, "/nonexistent/x", &world->error), ENOENT,
           "/nonexistent/x");
    expect(world, channel_connect(&world->near, world->path, 0, &world->error), ENOENT,
           "nobody listens");
    leave_stale(world, SOCK_SEQPACKET);
    expect(world, channel_connect(&world->near, world->path, 0, &world->error), ECONNREFUSED,
           "nobody listens");
}

static void test_connect_to_something_else(void **state)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct world *world = *state;
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    int ends[2];

    strcpy(address.sun_path, world->path);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(fd, 1), 0);
    expect(world, channel_connect(&world->near, world->path, 0, &world->error), EPROTOTYPE,
           "no channel of baton");
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    expect(world, channel_from_socket(&world->near, ends[0], &world->error), ENOTSOCK, "socket");
    close(ends[1]);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    expect(world, channel_from_socket(&world->near, ends[0], &world->error), EPROTOTYPE,
           "SEQPACKET");
    close(ends[1]);
}

/* A listener that never accepts: its queue fills up, then connecting ends by the clock. */
static void test_connect_timeout(void **state)
{
    struct world *world = *state;
    struct channel *channels[64];
    size_t count = 0;
    int ret;

    expect(world, channel_listen(&world->listener, world->path, &world->error), 0, "");
    while ((ret = channel_connect(&channels[count], world->path, SHORT_MS, &world->error)) == 0)
        assert_true(++count < ARRAY_SIZE(channels));
    expect(world, ret, ETIMEDOUT, "did not accept within 50 ms");
    while (count > 0)
        channel_close(channels[--count]);
}

static void test_abandoned_connection_is_skipped(void **state)
{
    struct world *world = *state;

    expect(world, channel_listen(&world->listener, world->path, &world->error), 0, "");
    expect(world, channel_connect(&world->far, world->path, 0, &world->error), 0, "");
    channel_close(STEAL_POINTER(world->far));
    expect(world, channel_accept(world->listener, &world->near, SHORT_MS, &world->error), ETIMEDOUT,
           "nobody connected");
}

static void be_another_user(struct world *world)
{
    struct error error = {0};
    struct channel *channel;

    if (setuid(65534) < 0)
        _exit(77);
    /* Our peer is root, which we accept; root does not accept us. */
    _exit(channel_connect(&channel, world->path, LONG_MS, &error) == 0 ? 42 : 1);
}

static void test_other_users_are_turned_away(void **state)
{
    struct world *world = *state;
    int status;
    pid_t child;

    if (geteuid() != 0)
        skip();
    expect(world, channel_listen(&world->listener, world->path, &world->error), 0, "");
    /* Undo what keeps other users out already, to see what does after that. */
    assert_int_equal(chmod(world->directory, 0711), 0);
    assert_int_equal(chmod(world->path, 0666), 0);
    child = fork();
    if (child == 0)
        be_another_user(world);
    expect(world, channel_accept(world->listener, &world->near, 500, &world->error), ETIMEDOUT,
           "nobody connected");
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(WEXITSTATUS(status), 42);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, world_new, world_free)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_round_trip),
        CASE(test_descriptors),
        CASE(test_bad_descriptor_is_not_sent),
        CASE(test_receive_timeout),
        CASE(test_send_timeout),
        CASE(test_cancel),
        CASE(test_signals_do_not_end_a_wait),
        CASE(test_peer_closes),
        CASE(test_last_words_of_the_dead),
        CASE(test_death_with_socket_open),
        CASE(test_death_during_a_send),
        CASE(test_hostile_headers),
        CASE(test_hostile_descriptors),
        CASE(test_empty_packet),
        CASE(test_no_room_for_descriptors),
        CASE(test_too_many_on_their_way),
        CASE(test_mode_whatever_the_umask),
        CASE(test_stale_socket_is_replaced),
        CASE(test_live_socket_is_left_alone),
        CASE(test_other_files_are_left_alone),
        CASE(test_close_removes_only_its_own),
        CASE(test_race_for_a_stale_socket),
        CASE(test_replacing_takes_turns),
        CASE(test_paths),
        CASE(test_connect_to_something_else),
        CASE(test_connect_timeout),
        CASE(test_abandoned_connection_is_skipped),
        CASE(test_other_users_are_turned_away),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
