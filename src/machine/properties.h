/* SPDX-License-Identifier: Apache-2.0
 *
 * The value of a command-line option that has parts: QEMU's "implied,key=value,flag" with commas
 * doubled inside values, or the same as a JSON object, whose nested members become dotted keys.
 *
 * Used by config.c alone, on one thread. The text is hostile: it can come from a peer process.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define PROPERTIES_MAX 24

struct property {
    const char *key;
    const char *value;
    bool used;
};

/** The parts of one option's value. Zero-initialised means none. */
struct properties {
    const char *option; /**< for messages: "-device" */
    char *text;         /**< owned: what keys and values point into */
    unsigned count;
    struct property items[PROPERTIES_MAX];
};

/**
 * Takes an option's value apart.
 * @param option  name for messages, borrowed
 * @param text    the value
 * @param implied key of a first part without "=", or NULL when there is no such short form
 * @return 0; -EINVAL; on failure nothing needs to be cleared
 */
int properties_parse(struct properties *properties, const char *option, const char *text,
                     const char *implied, struct error *error);

void properties_clear(struct properties *properties);

/** @return the value of a key, which counts as used from then on, or NULL */
const char *properties_get(struct properties *properties, const char *key);

/**
 * Copies a value that must not be empty. Leaves @p value alone when the key is absent.
 * @return 0; -EINVAL when it is empty or does not fit
 */
int properties_string(struct properties *properties, const char *key, char *value, size_t size,
                      struct error *error);

/** Reads on/off. Leaves @p value alone when the key is absent. */
int properties_bool(struct properties *properties, const char *key, bool *value,
                    struct error *error);

/**
 * Reads a size such as "512M". Leaves @p value alone when the key is absent.
 * @param unit what a number without suffix counts
 */
int properties_size(struct properties *properties, const char *key, uint64_t unit, uint64_t *value,
                    struct error *error);

/** Reads a decimal number. Leaves @p value alone when the key is absent. */
int properties_unsigned(struct properties *properties, const char *key, unsigned *value,
                        struct error *error);

/** @return 0, or -EINVAL with an error that names a property which nobody asked for */
int properties_finish(struct properties *properties, struct error *error);

/** Writes a value with its commas doubled. @return false when it does not fit */
bool properties_escape(char *out, size_t size, const char *value);
