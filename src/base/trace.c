/* SPDX-License-Identifier: Apache-2.0
 *
 * See trace.h. What is on is file-scope state, as the log's threshold is: it belongs to the
 * process and not to a guest. Flags may be switched by the main thread while any thread reads them.
 */
#include "base/trace.h"

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"

#define LINE_SIZE 1024

uint8_t trace_on[TRACE_EVENT_COUNT];

static int trace_fd = STDERR_FILENO;

static const struct {
    const char *name, *format;
} events[TRACE_EVENT_COUNT] = {
#define TRACE_ROW_(name, format) {#name, format},
    TRACE_EVENTS(TRACE_ROW_)
#undef TRACE_ROW_
};

const char *trace_name(enum trace_event event)
{
    return events[event].name;
}

const char *trace_format(enum trace_event event)
{
    return events[event].format;
}

bool trace_matches(enum trace_event event, const char *pattern)
{
    return fnmatch(pattern, events[event].name, 0) == 0;
}

/* "PID@SECONDS:NAME key=value ..."; the clock is that of every time stamp of a hand-over. One
 * write, so that lines of threads and of two processes do not mix. */
void trace_write(enum trace_event event, const char *format, ...)
{
    uint64_t now = clock_ns();
    int saved = errno;
    char line[LINE_SIZE];
    size_t used;
    va_list args;

    used = (size_t)snprintf(line, sizeof(line), "%d@%" PRIu64 ".%09" PRIu64 ":%s ", (int)getpid(),
                            now / 1000000000u, now % 1000000000u, events[event].name);
    va_start(args, format);
    vsnprintf(line + used, sizeof(line) - used - 1, format, args);
    va_end(args);
    used = strlen(line);
    line[used++] = '\n';
    (void)!write(trace_fd, line, used); /* nobody could be told of a failure */
    errno = saved;
}

int trace_check(const char *pattern, struct error *error)
{
    if (strpbrk(pattern, "*?[") != NULL)
        return 0;
    for (unsigned i = 0; i < TRACE_EVENT_COUNT; i++) {
        if (trace_matches(i, pattern))
            return 0;
    }
    return error_set(error, ENOENT, "unknown event \"%.64s\"", pattern);
}

int trace_switch(const char *pattern, bool on, struct error *error)
{
    int ret = trace_check(pattern, error);

    for (unsigned i = 0; ret == 0 && i < TRACE_EVENT_COUNT; i++) {
        if (trace_matches(i, pattern))
            __atomic_store_n(&trace_on[i], on, __ATOMIC_RELAXED);
    }
    return ret;
}

int trace_open_log(const char *path, struct error *error)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);

    if (fd < 0)
        return error_set_errno(error, errno, "-D: cannot open '%s'", path);
    trace_fd = fd;
    return 0;
}
