/* SPDX-License-Identifier: Apache-2.0
 *
 * The life of a machine: built, run, stopped, reset, powered off, taken down. See machine.h.
 *
 * vCPU threads never change the guest's life themselves: they leave a request and wake the main
 * thread. Whoever does change it (the main thread, or the thread of a hand-over for the switch)
 * holds machine->life. While a hand-over has the guest paused, its status refuses all else.
 */
#include "machine/machine.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/log.h"
#include "base/util.h"
#include "machine/internal.h"

const char *machine_status_name(enum machine_status status)
{
    static const char *const names[] = {
        [MACHINE_PRELAUNCH] = "prelaunch",
        [MACHINE_INMIGRATE] = "inmigrate",
        [MACHINE_RUNNING] = "running",
        [MACHINE_PAUSED] = "paused",
        [MACHINE_FINISH_MIGRATE] = "finish-migrate",
        [MACHINE_POSTMIGRATE] = "postmigrate",
        [MACHINE_SHUTDOWN] = "shutdown",
        [MACHINE_INTERNAL_ERROR] = "internal-error",
    };

    return names[status];
}

void machine_set_status(struct machine *machine, enum machine_status status)
{
    __atomic_store_n(&machine->status, status, __ATOMIC_SEQ_CST);
}

enum machine_status machine_status(const struct machine *machine)
{
    return __atomic_load_n(&machine->status, __ATOMIC_SEQ_CST);
}

const struct config *machine_config(const struct machine *machine)
{
    return &machine->config;
}

/* --- talking to the main thread ------------------------------------------------------------ */

static void wake_main(struct machine *machine)
{
    const uint64_t one = 1;

    (void)!write(machine->wake, &one, sizeof(one)); /* fails only when it is signalled already */
}

void machine_post_request(struct machine *machine, enum machine_request request)
{
    atomic_fetch_or(&machine->requests, (uint32_t)request);
    wake_main(machine);
}

/* More than MACHINE_EVENTS_MAX within one turn of the event loop: nobody could follow them. */
void machine_post_device_event(struct machine *machine, enum machine_event event, unsigned device)
{
    pthread_mutex_lock(&machine->events_lock);
    if (machine->event_count < MACHINE_EVENTS_MAX)
        machine->events[machine->event_count++] =
            (struct machine_queued_event){.event = event, .device = device};
    pthread_mutex_unlock(&machine->events_lock);
    wake_main(machine);
}

void machine_post_event(struct machine *machine, enum machine_event event)
{
    machine_post_device_event(machine, event, 0);
}

static void deliver_events(struct machine *machine)
{
    struct machine_queued_event events[MACHINE_EVENTS_MAX];
    unsigned count;

    pthread_mutex_lock(&machine->events_lock);
    count = machine->event_count;
    memcpy(events, machine->events, count * sizeof(events[0]));
    machine->event_count = 0;
    pthread_mutex_unlock(&machine->events_lock);
    for (unsigned i = 0; i < count && machine->event_handler; i++)
        machine->event_handler(machine->event_opaque, events[i].event, events[i].device);
}

void machine_set_event_handler(struct machine *machine, machine_event_fn *handler, void *opaque)
{
    machine->event_handler = handler;
    machine->event_opaque = opaque;
}

/* --- stop, run, reset ---------------------------------------------------------------------- */

static void pause_vcpus(struct machine *machine)
{
    kvm_vcpus_pause(machine->vcpus, machine->vcpu_count);
}

void machine_run_vcpus(struct machine *machine)
{
    if (atomic_load(&machine->requests) == 0)
        kvm_vcpus_run(machine->vcpus, machine->vcpu_count);
}

static int refuse(const struct machine *machine, const char *what, struct error *error)
{
    return error_set(error, EBUSY, "cannot %s a guest in state '%s'", what,
                     machine_status_name(machine_status(machine)));
}

static int start_locked(struct machine *machine, struct error *error)
{
    switch (machine->status) {
    case MACHINE_PRELAUNCH:
    case MACHINE_PAUSED:
        machine_run_vcpus(machine);
        machine_set_status(machine, MACHINE_RUNNING);
        machine_post_event(machine, MACHINE_EVENT_RESUME);
        return 0;
    case MACHINE_RUNNING:
        return 0;
    default:
        return refuse(machine, "continue", error);
    }
}

int machine_run(struct machine *machine, struct error *error)
{
    int ret;

    pthread_mutex_lock(&machine->life);
    ret = start_locked(machine, error);
    pthread_mutex_unlock(&machine->life);
    return ret;
}

static int stop_locked(struct machine *machine, struct error *error)
{
    switch (machine->status) {
    case MACHINE_RUNNING:
        pause_vcpus(machine);
        machine_set_status(machine, MACHINE_PAUSED);
        machine_post_event(machine, MACHINE_EVENT_STOP);
        return 0;
    case MACHINE_PRELAUNCH:
    case MACHINE_PAUSED:
        return 0;
    default:
        return refuse(machine, "stop", error);
    }
}

int machine_stop(struct machine *machine, struct error *error)
{
    int ret;

    pthread_mutex_lock(&machine->life);
    ret = stop_locked(machine, error);
    pthread_mutex_unlock(&machine->life);
    return ret;
}

static int reset_locked(struct machine *machine, struct error *error)
{
    switch (machine->status) {
    case MACHINE_PRELAUNCH:
    case MACHINE_RUNNING:
    case MACHINE_PAUSED:
        machine_post_request(machine, MACHINE_REQUEST_HOST_RESET);
        return 0;
    default:
        return refuse(machine, "reset", error);
    }
}

/* With life held, so that a hand-over that begins to pause the guest takes the request along. */
int machine_reset(struct machine *machine, struct error *error)
{
    int ret;

    pthread_mutex_lock(&machine->life);
    ret = reset_locked(machine, error);
    pthread_mutex_unlock(&machine->life);
    return ret;
}

static int powerdown_locked(struct machine *machine, struct error *error)
{
    if (machine->status != MACHINE_RUNNING)
        return refuse(machine, "power down", error);
    pthread_mutex_lock(&machine->lock);
    power_press_button(machine->power);
    pthread_mutex_unlock(&machine->lock);
    machine_post_event(machine, MACHINE_EVENT_POWERDOWN);
    return 0;
}

int machine_powerdown(struct machine *machine, struct error *error)
{
    int ret;

    pthread_mutex_lock(&machine->life);
    ret = powerdown_locked(machine, error);
    pthread_mutex_unlock(&machine->life);
    return ret;
}

void machine_quit(struct machine *machine)
{
    machine_post_event(machine, MACHINE_EVENT_SHUTDOWN_HOST);
    deliver_events(machine);
    sd_event_exit(machine->loop, 0);
}

/* Devices first and last to first, so that none writes to memory that is being filled anew. */
static int reset_parts(struct machine *machine, struct error *error)
{
    for (unsigned i = machine_part_count; i-- > 0;) {
        const struct machine_part *part = machine_parts[i];

        for (unsigned j = 0; part->reset && j < part->count(machine); j++) {
            int ret = part->reset(machine, j, error);

            if (ret < 0)
                return ret;
        }
    }
    return 0;
}

static int reset_stopped(struct machine *machine, struct error *error)
{
    int ret;

    pthread_mutex_lock(&machine->lock);
    ret = reset_parts(machine, error);
    pthread_mutex_unlock(&machine->lock);
    return ret < 0 ? ret : machine_boot(machine, error);
}

static void stop_for_good(struct machine *machine, enum machine_status status)
{
    pause_vcpus(machine);
    machine_set_status(machine, status);
    machine_post_event(machine, MACHINE_EVENT_STOP);
}

static void do_reset(struct machine *machine, bool by_host)
{
    bool running = machine->status == MACHINE_RUNNING;
    struct error error;

    pause_vcpus(machine);
    if (reset_stopped(machine, &error) < 0) {
        log_error("cannot reset the guest: %s; it is stopped", error.message);
        stop_for_good(machine, MACHINE_INTERNAL_ERROR);
        return;
    }
    if (running)
        machine_run_vcpus(machine);
    machine_post_event(machine, by_host ? MACHINE_EVENT_RESET_HOST : MACHINE_EVENT_RESET_GUEST);
}

static void do_shutdown(struct machine *machine)
{
    machine_post_event(machine, MACHINE_EVENT_SHUTDOWN_GUEST);
    stop_for_good(machine, MACHINE_SHUTDOWN);
    deliver_events(machine);
    sd_event_exit(machine->loop, 0);
}

/* Requests are the guest's; only one that is alive here can have any. A guest that is being handed
 * over takes its requests along. */
static void do_requests(struct machine *machine)
{
    uint32_t requests;

    if (!machine_is_alive(machine))
        return;
    requests = atomic_exchange(&machine->requests, 0);
    if (requests & MACHINE_REQUEST_FAIL)
        stop_for_good(machine, MACHINE_INTERNAL_ERROR);
    else if (requests & MACHINE_REQUEST_SHUTDOWN)
        do_shutdown(machine);
    else if (requests & (MACHINE_REQUEST_RESET | MACHINE_REQUEST_HOST_RESET))
        do_reset(machine, requests & MACHINE_REQUEST_HOST_RESET);
}

static int on_wake(sd_event_source *source, int fd, uint32_t revents, void *opaque)
{
    struct machine *machine = opaque;
    uint64_t count;

    (void)source;
    (void)revents;
    (void)!read(fd, &count, sizeof(count));
    pthread_mutex_lock(&machine->life);
    machine_read_notices(machine);
    do_requests(machine);
    pthread_mutex_unlock(&machine->life);
    deliver_events(machine);
    return 0;
}

/* --- building and taking down -------------------------------------------------------------- */

static int watch(struct machine *machine, struct error *error)
{
    int ret;

    machine->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (machine->wake < 0)
        return error_set_errno(error, errno, "cannot make an eventfd");
    ret = sd_event_add_io(machine->loop, &machine->wake_source, machine->wake, EPOLLIN, on_wake,
                          machine);
    if (ret < 0)
        return error_set_errno(error, -ret, "cannot watch an eventfd");
    return 0;
}

int machine_new(struct machine **result, const struct config *config, sd_event *loop,
                struct error *error)
{
    struct machine *machine = xcalloc(1, sizeof(*machine));
    int ret;

    machine->config = *config;
    machine->loop = sd_event_ref(loop);
    machine->kernel_fd = -1;
    machine->initrd_fd = -1;
    machine->wake = -1;
    machine->ram.fd = -1;
    machine->vm.fd = -1;
    machine->vm.kvm_fd = -1;
    machine->vm.vfio_fd = -1;
    machine->vcpus = xcalloc(config->cpus, sizeof(*machine->vcpus));
    pthread_mutex_init(&machine->lock, NULL);
    pthread_mutex_init(&machine->life, NULL);
    pthread_mutex_init(&machine->events_lock, NULL);
    kvm_rendezvous_init(&machine->rendezvous);
    machine->mmio = bus_create(&machine->lock, UINT64_MAX);
    machine->pio = bus_create(&machine->lock, 0x10000);
    ret = kvm_vcpu_init_signals(error);
    if (ret == 0)
        ret = watch(machine, error);
    if (ret < 0)
        machine_release(machine, false);
    else
        *result = machine;
    return ret;
}

/* A part is destroyed whether or not it was made: each row copes with what is not there. */
static void destroy_parts(struct machine *machine, bool handed_over)
{
    for (unsigned i = machine_part_count; i-- > 0;) {
        const struct machine_part *part = machine_parts[i];

        for (unsigned j = part->count(machine); part->destroy && j-- > 0;)
            part->destroy(machine, j, handed_over);
    }
}

static void take_apart(struct machine *machine, bool handed_over)
{
    if (machine->taken_apart)
        return;
    pause_vcpus(machine);
    destroy_parts(machine, handed_over);
    machine->taken_apart = true;
}

void machine_let_go(struct machine *machine)
{
    assert(machine_status(machine) == MACHINE_POSTMIGRATE);
    take_apart(machine, true);
}

void machine_release(struct machine *machine, bool handed_over)
{
    take_apart(machine, handed_over);
    sd_event_source_disable_unref(machine->wake_source);
    sd_event_unref(machine->loop);
    close_fd(machine->wake);
    bus_destroy(machine->mmio);
    bus_destroy(machine->pio);
    kvm_rendezvous_destroy(&machine->rendezvous);
    pthread_mutex_destroy(&machine->events_lock);
    pthread_mutex_destroy(&machine->life);
    pthread_mutex_destroy(&machine->lock);
    free(machine->targets);
    free(machine->target_ids);
    free(machine->target_scratch);
    free(machine->vcpus);
    free(machine);
}

void machine_destroy(struct machine *machine)
{
    if (machine)
        machine_release(machine, machine_status(machine) == MACHINE_POSTMIGRATE);
}

static int create_parts(struct machine *machine, struct error *error)
{
    for (unsigned i = 0; i < machine_part_count; i++) {
        const struct machine_part *part = machine_parts[i];

        for (unsigned j = 0; part->create && j < part->count(machine); j++) {
            int ret = part->create(machine, j, error);

            if (ret < 0)
                return ret;
        }
    }
    return 0;
}

int machine_create(struct machine **result, const struct config *config, sd_event *loop,
                   struct error *error)
{
    struct machine *machine;
    int ret = machine_new(&machine, config, loop, error);

    if (ret < 0)
        return ret;
    /* Nothing runs yet that the lock could keep out. */
    ret = create_parts(machine, error);
    if (ret == 0)
        ret = machine_set_delivery(machine, KVM_IRQ_KERNEL, error);
    if (ret == 0)
        ret = machine_boot(machine, error);
    if (ret < 0) {
        machine_release(machine, false);
        return ret;
    }
    machine_make_targets(machine);
    machine_set_status(machine, MACHINE_PRELAUNCH);
    *result = machine;
    return 0;
}
