/* SPDX-License-Identifier: Apache-2.0
 *
 * See log.h. The configuration is set before threads start; the rate limiter is atomic.
 */
#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"

#define LINE_SIZE              1024
#define GUEST_LINES_PER_SECOND 10

static enum log_level log_threshold = LOG_LEVEL_INFO;
static char log_name[64];

static _Atomic uint64_t guest_second;
static _Atomic uint32_t guest_lines;
static _Atomic uint32_t guest_dropped;

void log_configure(enum log_level level, const char *name)
{
    log_threshold = level;
    snprintf(log_name, sizeof(log_name), "%s", name ? name : "");
}

static void write_line(const char *format, va_list args)
{
    char line[LINE_SIZE];
    size_t used;

    if (log_name[0])
        used = (size_t)snprintf(line, sizeof(line), "baton[%s]: ", log_name);
    else
        used = (size_t)snprintf(line, sizeof(line), "baton: ");
    vsnprintf(line + used, sizeof(line) - used - 1, format, args);
    used = strlen(line);
    line[used++] = '\n';
    /* One write, so that lines of two processes on one terminal do not mix. Nobody could be told
     * of a failure. */
    (void)!write(STDERR_FILENO, line, used);
}

void log_message(enum log_level level, const char *format, ...)
{
    va_list args;

    if (level > log_threshold)
        return;
    va_start(args, format);
    write_line(format, args);
    va_end(args);
}

void log_guest(const char *format, ...)
{
    uint64_t second = clock_ns() / 1000000000u;
    uint32_t dropped;
    va_list args;

    if (atomic_exchange(&guest_second, second) != second)
        atomic_store(&guest_lines, 0);
    if (atomic_fetch_add(&guest_lines, 1) >= GUEST_LINES_PER_SECOND) {
        atomic_fetch_add(&guest_dropped, 1);
        return;
    }
    dropped = atomic_exchange(&guest_dropped, 0);
    if (dropped)
        log_message(LOG_LEVEL_WARNING, "guest: %u similar lines were left out", dropped);
    va_start(args, format);
    write_line(format, args);
    va_end(args);
}
