/* SPDX-License-Identifier: Apache-2.0
 *
 * Errors that come from the operator or the host.
 *
 * A function that can fail for such a reason returns 0 or a negative errno and fills in an error
 * object that its caller owns. The message names the object and, where there is one, the remedy;
 * it is printed once, at the top (standard error or QMP's "desc"). Guest misbehaviour is never an
 * error, and our own mistakes are assertions.
 *
 * A message is UTF-8 whatever it quotes and wherever it was cut, so that it can be sent anywhere:
 * what is no character becomes question marks.
 */
#pragma once

#include <stdarg.h>
#include <stddef.h>

#define ERROR_MESSAGE_SIZE 512

/** A failure and its explanation. Zero-initialised means "no error". */
struct error {
    int code; /**< positive errno, 0 when nothing failed */
    char message[ERROR_MESSAGE_SIZE];
    unsigned remedy; /**< where in the message the remedy begins; 0: it is not told apart */
};

/**
 * Records a failure.
 * @param error  where to record it; must not be NULL
 * @param code   positive errno
 * @param format printf format of the message: names the object and the remedy, no full stop
 * @return -code, so that callers can write `return error_set(error, ENOENT, ...)`
 */
int error_set(struct error *error, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/** The same with a list of arguments. */
int error_set_list(struct error *error, int code, const char *format, va_list args)
    __attribute__((format(printf, 3, 0)));

/**
 * Records a failed system call: the message, then ": " and the text of @p code.
 * @param code positive errno, usually errno itself
 * @return -code
 */
int error_set_errno(struct error *error, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/**
 * Adds what to do about a failure that is set already: ": ", then the remedy, which a list of
 * blockers (base/blocker.h) shows apart from the reason.
 * @return -error->code
 */
int error_add_remedy(struct error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/**
 * Puts context in front of an error that is already set ("device 'nvme0': " + what happened).
 * @return -error->code
 */
int error_prefix(struct error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
