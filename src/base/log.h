/* SPDX-License-Identifier: Apache-2.0
 *
 * Log lines on standard error. Mutable file-scope state of the program lives in log.c,
 * trace.c and sandbox.c only.
 */
#pragma once

#include <stdbool.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/**
 * Sets what is printed.
 * @param level everything up to this level is printed; the default is LOG_LEVEL_INFO
 * @param name  put in front of every line ("baton[NAME]: "); NULL for plain "baton: "; copied
 */
void log_configure(enum log_level level, const char *name);

/** Writes one line, atomically, to standard error. Any thread. */
void log_message(enum log_level level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/**
 * Writes one line about something that a guest can bring about, at most ten a second for the whole
 * process (the rest are counted and the count is reported with the next line), so that a guest
 * cannot fill a disk. Any thread.
 */
void log_guest(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define log_error(...)   log_message(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_message(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...)    log_message(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)   log_message(LOG_LEVEL_DEBUG, __VA_ARGS__)
