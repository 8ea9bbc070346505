/* SPDX-License-Identifier: Apache-2.0
 *
 * Character back ends: buffering, threads, the event loop. Descriptors are chardev_backend.c's.
 *
 * Who does what: everything in struct chardev is protected by the machine's lock, except for
 * "active", which is atomic. Only the main thread touches event sources (sd-event knows no
 * threads): whoever changes something that matters to them writes the eventfd, and service() on
 * the main thread brings the sources in line with the fields. Output is tried at once on the
 * thread that has it; what the host does not take waits in "pending".
 */
#include "devices/chardev.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "base/log.h"
#include "base/util.h"
#include "devices/chardev_backend.h"

#define PENDING_SIZE      4096u
#define READ_SIZE         256u
#define PTY_POLL_US       UINT64_C(500000) /* how soon a reader of a pty is noticed */
#define PTY_POLL_SLACK_US UINT64_C(100000)
#define CLOSE_DRAIN_MS    200u

/* What a hand-over carries apart from descriptors. */
struct chardev_saved {
    uint8_t pending[PENDING_SIZE]; /* taken from the front end, not yet by the host */
    uint32_t pending_count;
    bool terminal_changed; /* "terminal" is to be restored in the end */
    uint8_t terminal[sizeof(struct termios)];
};

struct chardev {
    struct chardev_saved saved;
    bool opened; /* here: its terminal is not the one that a state tells of */
    bool terminal_changed;
    struct termios terminal;
    struct backend backend;
    char name[FDSET_NAME_SIZE];
    sd_event *loop;
    pthread_mutex_t *lock;
    const struct chardev_ops *ops;
    void *opaque;
    atomic_bool active;
    bool connected;   /* somebody takes the output */
    bool hung_up;     /* a client went away; the main thread has yet to clear up */
    bool input_full;  /* the front end had no room */
    bool input_ended; /* nothing will come any more */
    bool refused;     /* the front end waits for writable() */
    bool failed;      /* a failure to write was logged */
    int wake;         /* eventfd: makes the main thread call service() */
    sd_event_source *wake_source, *listen_source, *input_source, *output_source, *timer;
};

static const struct state_field chardev_fields[] = {
    STATE_BLOB(struct chardev_saved, pending, pending_count, 1),
    STATE_BOOL(struct chardev_saved, terminal_changed, 1),
    STATE_BYTES(struct chardev_saved, terminal, 1),
    STATE_END,
};

const struct state_type chardev_state_type = {
    .name = "chardev",
    .version = 1,
    .min_version = 1,
    .size = sizeof(struct chardev_saved),
    .fields = chardev_fields,
};

static void wake(struct chardev *chardev)
{
    uint64_t one = 1;
    ssize_t done = write(chardev->wake, &one, sizeof(one));

    assert(done == sizeof(one) || errno == EAGAIN); /* EAGAIN: woken very often already */
}

/* ---- output ---- */

/* The host does not take output for good (or not now, a full disk): it is lost. */
static void output_failed(struct chardev *chardev, int code)
{
    chardev->saved.pending_count = 0;
    if (chardev->backend.kind == BACKEND_UNIX || chardev->backend.kind == BACKEND_PTY) {
        chardev->hung_up = true;
        chardev->connected = false;
    } else if (!chardev->failed) {
        log_warning("serial '%s': output is lost: %s", chardev->name, strerror(code));
        chardev->failed = true;
    }
    wake(chardev);
}

/* Writes as much as the host takes now. @return bytes done with: written, or lost */
static size_t write_now(struct chardev *chardev, const uint8_t *bytes, size_t count)
{
    size_t done = 0;

    while (done < count) {
        ssize_t result = backend_write(&chardev->backend, bytes + done, count - done);

        if (result == 0 || result == -EAGAIN)
            break;
        if (result < 0) {
            output_failed(chardev, (int)-result);
            return count;
        }
        done += (size_t)result;
        chardev->failed = false;
    }
    return done;
}

static void flush(struct chardev *chardev)
{
    struct chardev_saved *saved = &chardev->saved;
    size_t done = write_now(chardev, saved->pending, saved->pending_count);

    if (saved->pending_count == 0)
        return; /* nothing was there, or it was lost */
    saved->pending_count -= (uint32_t)done;
    memmove(saved->pending, saved->pending + done, saved->pending_count);
}

/* Whether output goes anywhere. A pty's reader may have come since the timer looked. */
static bool has_reader(struct chardev *chardev)
{
    if (!chardev->connected && chardev->backend.kind == BACKEND_PTY && !chardev->hung_up &&
        backend_pty_open(&chardev->backend)) {
        chardev->connected = true;
        wake(chardev);
    }
    return chardev->connected;
}

size_t chardev_write(struct chardev *chardev, const uint8_t *bytes, size_t count)
{
    struct chardev_saved *saved = &chardev->saved;
    size_t done = 0, kept;

    if (!has_reader(chardev))
        return count;
    if (atomic_load(&chardev->active) && saved->pending_count == 0)
        done = write_now(chardev, bytes, count);
    kept = MIN(count - done, (size_t)(PENDING_SIZE - saved->pending_count));
    if (kept > 0) {
        if (saved->pending_count == 0)
            wake(chardev); /* the main thread must wait for the host to take it */
        memcpy(saved->pending + saved->pending_count, bytes + done, kept);
        saved->pending_count += (uint32_t)kept;
    }
    if (done + kept < count)
        chardev->refused = true;
    return done + kept;
}

bool chardev_drain(struct chardev *chardev, unsigned timeout_ms)
{
    uint64_t end = clock_ns() + timeout_ms * UINT64_C(1000000);

    while (chardev->connected && chardev->saved.pending_count > 0) {
        struct pollfd poll_fd = {.fd = chardev->backend.out, .events = POLLOUT};
        uint64_t now;

        flush(chardev);
        now = clock_ns();
        if (chardev->saved.pending_count == 0 || now >= end)
            break;
        if (poll(&poll_fd, 1, (int)((end - now) / 1000000 + 1)) < 0 && errno != EINTR)
            break;
    }
    return !chardev->connected || chardev->saved.pending_count == 0;
}

/* ---- the main thread ---- */

static int on_input(sd_event_source *source, int fd, uint32_t events, void *opaque);
static int on_output(sd_event_source *source, int fd, uint32_t events, void *opaque);
static int on_listener(sd_event_source *source, int fd, uint32_t events, void *opaque);
static int on_timer(sd_event_source *source, uint64_t now, void *opaque);

/* Makes, enables or disables an event source. @return false when the loop cannot watch the fd */
static bool watch(struct chardev *chardev, sd_event_source **source, bool wanted, int fd,
                  uint32_t events, sd_event_io_handler_t handler)
{
    int result = 0;

    if (*source != NULL)
        result = sd_event_source_set_enabled(*source, wanted ? SD_EVENT_ON : SD_EVENT_OFF);
    else if (wanted)
        result = sd_event_add_io(chardev->loop, source, fd, events, handler, chardev);
    if (result < 0 && result != -EPERM) /* EPERM: a regular file, or /dev/null */
        log_warning("serial '%s': cannot watch a descriptor: %s", chardev->name, strerror(-result));
    return result >= 0;
}

static void watch_pty(struct chardev *chardev, bool wanted)
{
    uint64_t now;

    if (chardev->timer == NULL && wanted)
        sd_event_add_time_relative(chardev->loop, &chardev->timer, CLOCK_MONOTONIC, PTY_POLL_US,
                                   PTY_POLL_SLACK_US, on_timer, chardev);
    else if (wanted && sd_event_now(chardev->loop, CLOCK_MONOTONIC, &now) >= 0)
        sd_event_source_set_time(chardev->timer, now + PTY_POLL_US);
    if (chardev->timer != NULL)
        sd_event_source_set_enabled(chardev->timer, wanted ? SD_EVENT_ONESHOT : SD_EVENT_OFF);
}

static void forget_sources(struct chardev *chardev)
{
    chardev->input_source = sd_event_source_disable_unref(chardev->input_source);
    chardev->output_source = sd_event_source_disable_unref(chardev->output_source);
}

/* Brings the event sources in line with the fields. */
static void update_sources(struct chardev *chardev)
{
    const struct backend *backend = &chardev->backend;
    bool active = atomic_load(&chardev->active);
    bool is_pty = backend->kind == BACKEND_PTY;
    bool input = active && backend->in >= 0 && chardev->ops != NULL && !chardev->input_full &&
                 !chardev->input_ended && (!is_pty || chardev->connected);

    if (!watch(chardev, &chardev->input_source, input, backend->in, EPOLLIN, on_input))
        chardev->input_ended = true;
    if (!watch(chardev, &chardev->output_source,
               active && chardev->connected && chardev->saved.pending_count > 0, backend->out,
               EPOLLOUT, on_output))
        output_failed(chardev, EPERM);
    watch(chardev, &chardev->listen_source, active && backend->listener >= 0 && backend->in < 0,
          backend->listener, EPOLLIN, on_listener);
    watch_pty(chardev, active && is_pty && !chardev->connected);
}

/* A client or a pty's reader has gone: be ready for the next. */
static void clear_up(struct chardev *chardev)
{
    chardev->hung_up = false;
    chardev->connected = false;
    chardev->saved.pending_count = 0;
    if (chardev->backend.kind != BACKEND_UNIX)
        return;
    forget_sources(chardev);
    backend_disconnect(&chardev->backend);
    log_debug("serial '%s': client disconnected", chardev->name);
}

/* Does on the main thread, lock held, what follows from a change of any field. */
static void service(struct chardev *chardev)
{
    if (chardev->hung_up)
        clear_up(chardev);
    if (chardev->refused && chardev->saved.pending_count < PENDING_SIZE) {
        chardev->refused = false;
        if (chardev->ops != NULL)
            chardev->ops->writable(chardev->opaque);
    }
    update_sources(chardev);
}

/* Reads once. */
static void receive(struct chardev *chardev)
{
    uint8_t bytes[READ_SIZE];
    size_t room = chardev->ops->can_receive(chardev->opaque);
    ssize_t got;

    chardev->input_full = room == 0;
    if (room == 0)
        return;
    got = backend_read(&chardev->backend, bytes, MIN(room, sizeof(bytes)));
    if (got == -EAGAIN)
        return;
    if (got > 0) {
        chardev->ops->receive(chardev->opaque, bytes, (size_t)got);
        chardev->input_full = chardev->ops->can_receive(chardev->opaque) == 0;
    } else if (chardev->backend.kind == BACKEND_STDIO) {
        chardev->input_ended = true;
    } else {
        chardev->hung_up = true;
    }
}

static int on_input(sd_event_source *source, int fd, uint32_t events, void *opaque)
{
    struct chardev *chardev = opaque;

    (void)source, (void)fd, (void)events;
    pthread_mutex_lock(chardev->lock);
    if (atomic_load(&chardev->active) && chardev->ops != NULL && !chardev->hung_up)
        receive(chardev);
    service(chardev);
    pthread_mutex_unlock(chardev->lock);
    return 0;
}

static int on_output(sd_event_source *source, int fd, uint32_t events, void *opaque)
{
    struct chardev *chardev = opaque;

    (void)source, (void)fd;
    pthread_mutex_lock(chardev->lock);
    if (atomic_load(&chardev->active)) {
        if (chardev->backend.kind == BACKEND_PTY && (events & EPOLLHUP))
            chardev->hung_up = true; /* writing would go on to succeed until the buffer is full */
        else
            flush(chardev);
    }
    service(chardev);
    pthread_mutex_unlock(chardev->lock);
    return 0;
}

static int on_listener(sd_event_source *source, int fd, uint32_t events, void *opaque)
{
    struct chardev *chardev = opaque;
    struct error error = {0};

    (void)source, (void)fd, (void)events;
    pthread_mutex_lock(chardev->lock);
    if (atomic_load(&chardev->active) && chardev->backend.in < 0) {
        int result = backend_accept(&chardev->backend, &error);

        chardev->connected = result == 0;
        if (result < 0 && result != -EAGAIN)
            log_warning("serial '%s': %s", chardev->name, error.message);
    }
    service(chardev);
    pthread_mutex_unlock(chardev->lock);
    return 0;
}

static int on_timer(sd_event_source *source, uint64_t now, void *opaque)
{
    struct chardev *chardev = opaque;

    (void)source, (void)now;
    pthread_mutex_lock(chardev->lock);
    if (!chardev->hung_up)
        chardev->connected = backend_pty_open(&chardev->backend);
    service(chardev);
    pthread_mutex_unlock(chardev->lock);
    return 0;
}

static int on_wake(sd_event_source *source, int fd, uint32_t events, void *opaque)
{
    struct chardev *chardev = opaque;
    uint64_t count;

    (void)source, (void)events;
    pthread_mutex_lock(chardev->lock);
    if (read(fd, &count, sizeof(count)) == sizeof(count))
        service(chardev);
    pthread_mutex_unlock(chardev->lock);
    return 0;
}

/* ---- life ---- */

static struct chardev *allocate(const char *name, sd_event *loop, pthread_mutex_t *lock)
{
    struct chardev *chardev = xcalloc(1, sizeof(*chardev));

    snprintf(chardev->name, sizeof(chardev->name), "%s", name);
    chardev->loop = loop;
    chardev->lock = lock;
    chardev->wake = -1;
    return chardev;
}

/* What create and adopt have in common, once the descriptors are there. */
static int start(struct chardev *chardev, bool active, struct error *error)
{
    struct backend *backend = &chardev->backend;
    int result;

    atomic_store(&chardev->active, active);
    chardev->connected = backend->out >= 0;
    if (backend->kind == BACKEND_PTY)
        chardev->connected = backend_pty_open(backend);
    chardev->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (chardev->wake < 0)
        return error_set_errno(error, errno, "serial '%s': cannot make an eventfd", chardev->name);
    result = sd_event_add_io(chardev->loop, &chardev->wake_source, chardev->wake, EPOLLIN, on_wake,
                             chardev);
    if (result < 0)
        return error_set_errno(error, -result, "serial '%s': event loop", chardev->name);
    wake(chardev); /* the loop's first turn makes the other sources */
    return 0;
}

int chardev_check_spec(const char *spec, struct error *error)
{
    struct backend backend;

    return backend_parse(&backend, spec, error);
}

int chardev_create(struct chardev **result, const char *name, const char *spec, sd_event *loop,
                   pthread_mutex_t *lock, struct error *error)
{
    struct chardev *chardev = allocate(name, loop, lock);

    if (backend_parse(&chardev->backend, spec, error) < 0)
        goto fail;
    if (backend_open(&chardev->backend, name, &chardev->terminal, &chardev->terminal_changed,
                     error) < 0)
        goto fail;
    chardev->opened = true;
    chardev_apply(chardev);
    if (start(chardev, true, error) < 0)
        goto fail;
    *result = chardev;
    return 0;
fail:
    chardev_destroy(chardev, false);
    return -error->code;
}

int chardev_adopt(struct chardev **result, const char *name, const char *spec, sd_event *loop,
                  pthread_mutex_t *lock, struct fdset *fds, struct error *error)
{
    struct chardev *chardev = allocate(name, loop, lock);

    if (backend_parse(&chardev->backend, spec, error) < 0 ||
        backend_adopt(&chardev->backend, name, fds, error) < 0 ||
        start(chardev, false, error) < 0) {
        chardev_destroy(chardev, true);
        return -error->code;
    }
    *result = chardev;
    return 0;
}

int chardev_describe(const struct chardev *chardev, struct fdset *fds, struct error *error)
{
    return backend_describe(&chardev->backend, chardev->name, fds, error);
}

void chardev_attach(struct chardev *chardev, const struct chardev_ops *ops, void *opaque)
{
    chardev->ops = ops;
    chardev->opaque = opaque;
    wake(chardev);
}

void chardev_set_active(struct chardev *chardev, bool active)
{
    atomic_store(&chardev->active, active);
    wake(chardev);
}

void chardev_resume_input(struct chardev *chardev)
{
    if (!chardev->input_full)
        return;
    chardev->input_full = false;
    wake(chardev);
}

void *chardev_state(struct chardev *chardev)
{
    return &chardev->saved;
}

void chardev_apply(struct chardev *chardev)
{
    if (!chardev->opened)
        return;
    chardev->saved.terminal_changed = chardev->terminal_changed;
    memcpy(chardev->saved.terminal, &chardev->terminal, sizeof(chardev->terminal));
}

void chardev_discard(struct chardev *chardev)
{
    chardev->saved.pending_count = 0;
    chardev_destroy(chardev, !chardev->opened);
}

static void restore_terminal(const struct chardev *chardev)
{
    struct termios terminal;

    memcpy(&terminal, chardev->saved.terminal, sizeof(terminal));
    if (chardev->saved.terminal_changed && chardev->backend.in >= 0)
        tcsetattr(chardev->backend.in, TCSANOW, &terminal);
}

void chardev_destroy(struct chardev *chardev, bool handed_over)
{
    if (!handed_over) {
        pthread_mutex_lock(chardev->lock);
        chardev_drain(chardev, CLOSE_DRAIN_MS);
        pthread_mutex_unlock(chardev->lock);
        restore_terminal(chardev);
    }
    forget_sources(chardev);
    sd_event_source_disable_unref(chardev->listen_source);
    sd_event_source_disable_unref(chardev->timer);
    sd_event_source_disable_unref(chardev->wake_source);
    backend_close(&chardev->backend, !handed_over);
    close_fd(chardev->wake);
    free(chardev);
}
