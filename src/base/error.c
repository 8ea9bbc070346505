/* SPDX-License-Identifier: Apache-2.0
 *
 * See error.h. Any thread; an error object belongs to one caller.
 */
#include "base/error.h"

#include <stdio.h>
#include <string.h>

#include "base/utf8.h"
#include "base/util.h"

int error_set_list(struct error *error, int code, const char *format, va_list args)
{
    vsnprintf(error->message, sizeof(error->message), format, args);
    utf8_repair(error->message);
    error->code = code;
    error->remedy = 0;
    return -code;
}

int error_set(struct error *error, int code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    error_set_list(error, code, format, args);
    va_end(args);
    return -code;
}

int error_set_errno(struct error *error, int code, const char *format, ...)
{
    va_list args;
    size_t used;

    va_start(args, format);
    error_set_list(error, code, format, args);
    va_end(args);
    used = strlen(error->message);
    snprintf(error->message + used, sizeof(error->message) - used, ": %s", strerror(code));
    return -code;
}

int error_add_remedy(struct error *error, const char *format, ...)
{
    size_t used = strlen(error->message);
    va_list args;

    snprintf(error->message + used, sizeof(error->message) - used, ": ");
    used = strlen(error->message);
    va_start(args, format);
    vsnprintf(error->message + used, sizeof(error->message) - used, format, args);
    va_end(args);
    utf8_repair(error->message);
    error->remedy = (unsigned)used;
    return -error->code;
}

int error_prefix(struct error *error, const char *format, ...)
{
    char message[ERROR_MESSAGE_SIZE];
    va_list args;
    size_t used;

    va_start(args, format);
    vsnprintf(message, sizeof(message), format, args);
    va_end(args);
    used = strlen(message);
    snprintf(message + used, sizeof(message) - used, "%s", error->message);
    utf8_repair(message);
    memcpy(error->message, message, sizeof(message));
    if (error->remedy)
        error->remedy = (unsigned)MIN(error->remedy + used, strlen(message));
    return -error->code;
}
