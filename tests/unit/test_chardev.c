/* SPDX-License-Identifier: Apache-2.0
 *
 * Unit tests of devices/chardev*.c with real descriptors: files, sockets, pseudo-terminals, and
 * standard input and output replaced by pipes.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>

#include <cmocka.h>

#include "base/util.h"
#include "devices/chardev.h"

#define TURNS_MAX 200

struct fixture {
    char directory[32], path[64], spec[128];
    sd_event *loop;
    pthread_mutex_t lock;
    struct error error;
    struct chardev *chardev;
    char input[256];
    size_t input_count, input_room;
    unsigned writable;
};

static size_t can_receive(void *opaque)
{
    struct fixture *fixture = opaque;

    assert_int_equal(pthread_mutex_trylock(&fixture->lock), EBUSY);
    return fixture->input_room;
}

static void receive(void *opaque, const uint8_t *bytes, size_t count)
{
    struct fixture *fixture = opaque;

    assert_true(count <= fixture->input_room);
    assert_true(fixture->input_count + count < sizeof(fixture->input));
    memcpy(fixture->input + fixture->input_count, bytes, count);
    fixture->input_count += count;
    fixture->input_room -= count;
}

static void writable(void *opaque)
{
    ((struct fixture *)opaque)->writable++;
}

static const struct chardev_ops ops = {
    .can_receive = can_receive, .receive = receive, .writable = writable};

static int setup(void **state)
{
    struct fixture *fixture = xcalloc(1, sizeof(*fixture));

    strcpy(fixture->directory, "/tmp/baton-chardev-XXXXXX");
    if (mkdtemp(fixture->directory) == NULL || sd_event_new(&fixture->loop) < 0)
        return -1;
    snprintf(fixture->path, sizeof(fixture->path), "%s/console", fixture->directory);
    pthread_mutex_init(&fixture->lock, NULL);
    fixture->input_room = 200;
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;

    if (fixture->chardev != NULL)
        chardev_destroy(fixture->chardev, false);
    sd_event_unref(fixture->loop);
    unlink(fixture->path);
    assert_int_equal(rmdir(fixture->directory), 0);
    free(fixture);
    return 0;
}

/* Runs the event loop until it has nothing to do for a moment. */
static void turn(struct fixture *fixture)
{
    for (unsigned i = 0; sd_event_run(fixture->loop, 20000) > 0; i++)
        assert_true(i < TURNS_MAX); /* a loop that never rests */
}

static void lock_attach(struct fixture *fixture)
{
    pthread_mutex_lock(&fixture->lock);
    chardev_attach(fixture->chardev, &ops, fixture);
    pthread_mutex_unlock(&fixture->lock);
    turn(fixture);
}

static void create(struct fixture *fixture, const char *format)
{
    snprintf(fixture->spec, sizeof(fixture->spec), format, fixture->path);
    if (chardev_create(&fixture->chardev, "serial0", fixture->spec, fixture->loop, &fixture->lock,
                       &fixture->error) < 0)
        fail_msg("%s", fixture->error.message);
    lock_attach(fixture);
}

static size_t put(struct fixture *fixture, const char *text, size_t count)
{
    size_t taken;

    pthread_mutex_lock(&fixture->lock);
    taken = chardev_write(fixture->chardev, (const uint8_t *)text, count);
    pthread_mutex_unlock(&fixture->lock);
    return taken;
}

static int client(struct fixture *fixture)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", fixture->path);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static void assert_reads(int fd, const char *text)
{
    char bytes[64] = {0};
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

    assert_int_equal(poll(&poll_fd, 1, 1000), 1);
    assert_int_equal(read(fd, bytes, sizeof(bytes) - 1), strlen(text));
    assert_string_equal(bytes, text);
}

/* Gives the device to a "new process", which is a second object in this one. */
static void hand_over(struct fixture *fixture)
{
    uint8_t bytes[16384], *scratch = xcalloc(1, chardev_state_type.size);
    struct chardev *old = fixture->chardev;
    struct fdset fds = {0};
    struct state_writer writer;
    struct state_target target = {.id = "c", .type = &chardev_state_type, .scratch = scratch};
    size_t length;

    chardev_set_active(old, false);
    assert_int_equal(chardev_describe(old, &fds, &fixture->error), 0);
    state_writer_init(&writer, bytes, sizeof(bytes));
    state_write(&writer, "c", &chardev_state_type, chardev_state(old), true);
    assert_int_equal(state_writer_finish(&writer, &length, &fixture->error), 0);
    assert_int_equal(chardev_adopt(&fixture->chardev, "serial0", fixture->spec, fixture->loop,
                                   &fixture->lock, &fds, &fixture->error),
                     0);
    assert_int_equal(fds.count, 0);
    fdset_clear(&fds);
    lock_attach(fixture);
    target.object = chardev_state(fixture->chardev);
    assert_int_equal(state_load(bytes, length, &target, 1, &fixture->error), 0);
    chardev_set_active(fixture->chardev, true);
    chardev_destroy(old, true);
    turn(fixture);
    free(scratch);
}

/* ---- tests ---- */

static void test_bad_specs(void **state)
{
    static const char *const specs[] = {
        "",
        "tty",
        "file:",
        "unix:",
        "unix:/tmp/x",
        "unix:/tmp/x,server=off",
        "unix:,server=on",
        "unix:/tmp/x,server=on,wait=maybe",
        "unix:/tmp/x,server=on,telnet=on",
        "stdiox",
        "stdio,signal=perhaps",
        "stdio,mux=on",
        "pty,x",
        "unix:/tmp/x,server=onx",
        "file:/nonexistent/directory/file",
        ("unix:/tmp/"
         "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
         "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa,server=on"),
    };
    struct fixture *fixture = *state;
    struct chardev *chardev = NULL;

    for (size_t i = 0; i < ARRAY_SIZE(specs); i++) {
        memset(&fixture->error, 0, sizeof(fixture->error));
        assert_true(chardev_create(&chardev, "serial0", specs[i], fixture->loop, &fixture->lock,
                                   &fixture->error) < 0);
        assert_true(strncmp(fixture->error.message, "serial", 6) == 0);
    }
}

static void test_null(void **state)
{
    struct fixture *fixture = *state;

    create(fixture, "null");
    assert_int_equal(put(fixture, "lost", 4), 4);
    hand_over(fixture);
    assert_int_equal(put(fixture, "lost", 4), 4);
}

static void test_file(void **state)
{
    struct fixture *fixture = *state;
    char bytes[32] = {0};
    int fd = open(fixture->path, O_WRONLY | O_CREAT, 0600);

    assert_int_equal(write(fd, "from the last run", 17), 17);
    close(fd);
    create(fixture, "file:%s");
    assert_int_equal(put(fixture, "one ", 4), 4);
    hand_over(fixture);
    assert_int_equal(put(fixture, "two", 3), 3);
    fd = open(fixture->path, O_RDONLY);
    assert_int_equal(read(fd, bytes, sizeof(bytes)), 7);
    assert_string_equal(bytes, "one two");
    close(fd);
}

static void test_unix(void **state)
{
    struct fixture *fixture = *state;
    struct stat status;
    int fd, second;

    create(fixture, "unix:%s,server=on,wait=off");
    assert_int_equal(stat(fixture->path, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0600);
    assert_int_equal(put(fixture, "nobody", 6), 6);
    fd = client(fixture);
    turn(fixture);
    assert_int_equal(put(fixture, "hello", 5), 5);
    assert_reads(fd, "hello");
    assert_int_equal(write(fd, "input", 5), 5);
    turn(fixture);
    assert_string_equal(fixture->input, "input");

    second = client(fixture); /* waits until the first has gone */
    turn(fixture);
    assert_int_equal(put(fixture, "first", 5), 5);
    assert_reads(fd, "first");
    close(fd);
    turn(fixture);
    assert_int_equal(put(fixture, "second", 6), 6);
    assert_reads(second, "second");
    close(second);
    assert_int_equal(put(fixture, "into the void", 13), 13); /* no SIGPIPE */
    turn(fixture);
    chardev_destroy(fixture->chardev, false);
    fixture->chardev = NULL;
    assert_int_equal(access(fixture->path, F_OK), -1);
}

static void test_unix_stale_and_busy_path(void **state)
{
    struct fixture *fixture = *state;
    struct chardev *other = NULL;

    create(fixture, "unix:%s,server=on");
    assert_int_equal(chardev_create(&other, "serial1", fixture->spec, fixture->loop, &fixture->lock,
                                    &fixture->error),
                     -EADDRINUSE);
    assert_int_equal(access(fixture->path, F_OK), 0);
    chardev_destroy(fixture->chardev, true); /* leaves the path, as a crash does */
    turn(fixture);
    create(fixture, "unix:%s,server=on");
}

static void test_input_waits_for_room(void **state)
{
    struct fixture *fixture = *state;
    int fd;

    fixture->input_room = 3;
    create(fixture, "unix:%s,server=on");
    fd = client(fixture);
    turn(fixture);
    assert_int_equal(write(fd, "abcdef", 6), 6);
    turn(fixture);
    assert_string_equal(fixture->input, "abc");
    pthread_mutex_lock(&fixture->lock);
    fixture->input_room = 10;
    chardev_resume_input(fixture->chardev);
    pthread_mutex_unlock(&fixture->lock);
    turn(fixture);
    assert_string_equal(fixture->input, "abcdef");
    close(fd);
}

/* Writes numbered bytes until no more are taken. @return how many were */
static size_t fill(struct fixture *fixture)
{
    size_t total = 0, taken;

    do {
        char byte = (char)(total % 251);

        taken = put(fixture, &byte, 1);
        total += taken;
        assert_true(total < 16 * MIB);
    } while (taken == 1);
    return total;
}

/* Reads and checks what fill() wrote, letting the event loop run. */
static void empty(struct fixture *fixture, int fd, size_t total)
{
    uint8_t bytes[1000];

    for (size_t at = 0; at < total;) {
        ssize_t got = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);

        if (got < 0) {
            assert_int_equal(errno, EAGAIN);
            assert_true(sd_event_run(fixture->loop, 1000000) > 0);
            continue;
        }
        for (ssize_t i = 0; i < got; i++, at++)
            assert_int_equal(bytes[i], at % 251);
    }
    assert_int_equal(recv(fd, bytes, 1, MSG_DONTWAIT), -1);
}

static void test_slow_reader(void **state)
{
    struct fixture *fixture = *state;
    size_t total;
    int fd;

    create(fixture, "unix:%s,server=on");
    fd = client(fixture);
    turn(fixture);
    total = fill(fixture);
    turn(fixture);
    assert_int_equal(fixture->writable, 0);
    empty(fixture, fd, total);
    turn(fixture);
    assert_int_equal(fixture->writable, 1);

    /* A reader that leaves frees the writer, too. */
    fill(fixture);
    close(fd);
    turn(fixture);
    assert_int_equal(fixture->writable, 2);
    assert_int_equal(put(fixture, "x", 1), 1);
}

/* Nothing is lost or doubled when output waits for a slow reader and input for the guest. */
static void test_hand_over(void **state)
{
    struct fixture *fixture = *state;
    size_t total;
    int fd;

    create(fixture, "unix:%s,server=on");
    fd = client(fixture);
    turn(fixture);
    total = fill(fixture);
    chardev_set_active(fixture->chardev, false);
    assert_int_equal(write(fd, "typed in the blackout", 21), 21);
    turn(fixture);
    assert_int_equal(fixture->input_count, 0);
    hand_over(fixture);
    assert_string_equal(fixture->input, "typed in the blackout");
    empty(fixture, fd, total);
    close(fd);
    turn(fixture);
    fd = client(fixture); /* the listener came along */
    turn(fixture);
    put(fixture, "again", 5);
    assert_reads(fd, "again");
    close(fd);
}

static void test_inactive_keeps_output(void **state)
{
    struct fixture *fixture = *state;
    char byte;
    int fd;

    create(fixture, "unix:%s,server=on");
    fd = client(fixture);
    turn(fixture);
    chardev_set_active(fixture->chardev, false);
    assert_int_equal(put(fixture, "kept", 4), 4);
    turn(fixture);
    assert_int_equal(recv(fd, &byte, 1, MSG_DONTWAIT), -1);
    chardev_set_active(fixture->chardev, true); /* undone */
    turn(fixture);
    assert_reads(fd, "kept");
    close(fd);
}

static void test_adopt_incomplete(void **state)
{
    struct fixture *fixture = *state;
    struct fdset fds = {0};
    struct chardev *chardev = NULL;

    assert_int_equal(chardev_adopt(&chardev, "serial0", "unix:/x,server=on", fixture->loop,
                                   &fixture->lock, &fds, &fixture->error),
                     -ENOENT);
    assert_non_null(strstr(fixture->error.message, "chardev/serial0/listener"));
}

static void test_pty(void **state)
{
    struct fixture *fixture = *state;
    struct fdset fds = {0};
    struct error error = {0};
    struct termios mode;
    char path[64];
    int master, fd;

    create(fixture, "pty");
    assert_int_equal(chardev_describe(fixture->chardev, &fds, &error), 0);
    master = fdset_take(&fds, FDSET_ANY, &error, "chardev/serial0/pty");
    fdset_clear(&fds);
    assert_int_equal(ptsname_r(master, path, sizeof(path)), 0);
    close(master);
    for (unsigned i = 0; i < 3000; i++) /* nobody listens: dropped, without end */
        assert_int_equal(put(fixture, "0123456789012345678901234567890123456789", 40), 40);

    fd = open(path, O_RDWR | O_NOCTTY);
    assert_true(fd >= 0);
    assert_int_equal(tcgetattr(fd, &mode), 0);
    assert_int_equal(mode.c_lflag & (ICANON | ECHO | ISIG), 0);
    put(fixture, "login: ", 7);
    assert_reads(fd, "login: ");
    turn(fixture);
    assert_int_equal(write(fd, "root\r", 5), 5);
    turn(fixture);
    assert_string_equal(fixture->input, "root\r");
    hand_over(fixture);
    put(fixture, "hi", 2);
    assert_reads(fd, "hi");
    close(fd);
    turn(fixture); /* rests: a hung-up pty does not keep the loop busy */
    assert_int_equal(put(fixture, "x", 1), 1);
}

/* Standard input and output are replaced for one test. */
static void test_stdio(void **state)
{
    struct fixture *fixture = *state;
    int in[2], out[2], saved_in = dup(0), saved_out = dup(1), flags;

    assert_int_equal(pipe(in) | pipe(out), 0);
    fflush(stdout);
    dup2(in[0], 0);
    dup2(out[1], 1);
    create(fixture, "stdio");
    flags = fcntl(0, F_GETFL) | fcntl(1, F_GETFL);
    dup2(saved_in, 0);
    dup2(saved_out, 1);
    assert_int_equal(flags & O_NONBLOCK, 0); /* others use it, too */

    put(fixture, "out", 3);
    assert_reads(out[0], "out");
    assert_int_equal(write(in[1], "in", 2), 2);
    turn(fixture);
    assert_string_equal(fixture->input, "in");
    hand_over(fixture);
    fill(fixture); /* the pipe's end does not make us wait */
    close(in[1]);
    turn(fixture); /* end of input: rests */
    chardev_destroy(fixture->chardev, true);
    fixture->chardev = NULL;
    close(in[0]), close(out[0]), close(out[1]), close(saved_in), close(saved_out);
}

static bool is_raw(int terminal)
{
    struct termios mode;

    assert_int_equal(tcgetattr(terminal, &mode), 0);
    return (mode.c_lflag & ICANON) == 0;
}

/* A console that was opened for a guest which does not come: its terminal is put back, whatever the
 * state said of another one, and nothing of the guest's output appears there. */
static void test_discard(void **state)
{
    struct fixture *fixture = *state;
    int master = posix_openpt(O_RDWR | O_NOCTTY), saved_in = dup(0), saved_out = dup(1), terminal;
    char path[64], output[8];
    struct chardev *other;

    assert_int_equal(grantpt(master) | unlockpt(master) | ptsname_r(master, path, sizeof(path)), 0);
    terminal = open(path, O_RDWR | O_NOCTTY);
    assert_true(terminal >= 0);
    fflush(stdout);
    dup2(terminal, 0);
    dup2(terminal, 1);
    create(fixture, "stdio");
    dup2(saved_in, 0);
    dup2(saved_out, 1);
    assert_true(is_raw(terminal));
    chardev_set_active(fixture->chardev, false);
    assert_int_equal(
        chardev_create(&other, "other", "null", fixture->loop, &fixture->lock, &fixture->error), 0);
    memcpy(chardev_state(fixture->chardev), chardev_state(other), chardev_state_type.size);
    chardev_apply(fixture->chardev);
    put(fixture, "text", 4);
    chardev_discard(fixture->chardev);
    fixture->chardev = NULL;
    assert_false(is_raw(terminal));
    assert_int_equal(fcntl(master, F_SETFL, O_NONBLOCK), 0);
    assert_int_equal(read(master, output, sizeof(output)), -1);
    chardev_destroy(other, false);
    close(master), close(terminal), close(saved_in), close(saved_out);
}

static void test_drain(void **state)
{
    struct fixture *fixture = *state;
    bool done;
    int fd;

    create(fixture, "unix:%s,server=on");
    fd = client(fixture);
    turn(fixture);
    fill(fixture);
    pthread_mutex_lock(&fixture->lock);
    assert_false(chardev_drain(fixture->chardev, 10));
    pthread_mutex_unlock(&fixture->lock);
    while (recv(fd, (char[1000]){0}, 1000, MSG_DONTWAIT) > 0)
        ;
    pthread_mutex_lock(&fixture->lock);
    done = chardev_drain(fixture->chardev, 1000);
    pthread_mutex_unlock(&fixture->lock);
    assert_true(done);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_bad_specs, setup, teardown),
        cmocka_unit_test_setup_teardown(test_null, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unix, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unix_stale_and_busy_path, setup, teardown),
        cmocka_unit_test_setup_teardown(test_input_waits_for_room, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slow_reader, setup, teardown),
        cmocka_unit_test_setup_teardown(test_hand_over, setup, teardown),
        cmocka_unit_test_setup_teardown(test_inactive_keeps_output, setup, teardown),
        cmocka_unit_test_setup_teardown(test_adopt_incomplete, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pty, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stdio, setup, teardown),
        cmocka_unit_test_setup_teardown(test_discard, setup, teardown),
        cmocka_unit_test_setup_teardown(test_drain, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
