/* SPDX-License-Identifier: Apache-2.0
 *
 * Declarative state: tables of fields turned into self-describing bytes (CBOR), and back.
 *
 * Every object that survives a hand-over keeps what must survive in a plain struct without
 * pointers, described by a table of fields. Bytes carry field names, so a reader of another
 * version skips what it does not know and defaults what is missing. Loading is atomic: bytes are
 * decoded into scratch memory and checked, and only then copied over the object.
 *
 * The bytes come from another process: everything in them is treated as hostile.
 * A writer or reader belongs to one thread. Saving allocates nothing.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/** What a field holds; see the STATE_... macros, which are the only way to write a table. */
enum state_kind {
    STATE_KIND_BOOL,   /**< bool */
    STATE_KIND_UINT,   /**< uint8_t to uint64_t, by size */
    STATE_KIND_STRING, /**< char[N], zero-terminated */
    STATE_KIND_BYTES,  /**< fixed number of bytes, e.g. a kernel UAPI struct */
    STATE_KIND_BLOB,   /**< uint8_t[capacity], length in another field of type uint32_t */
    STATE_KIND_ARRAY,  /**< struct[capacity], count in another field of type uint32_t */
};

struct state_field {
    const char *name;
    enum state_kind kind;
    size_t offset;
    size_t size;     /**< of one element; for BLOB and ARRAY of one element, too */
    size_t capacity; /**< BLOB and ARRAY: elements that fit */
    size_t length_offset;             /**< BLOB and ARRAY: where the uint32_t count is */
    const struct state_field *fields; /**< ARRAY: fields of one element */
    uint64_t minimum, maximum;        /**< UINT: inclusive bounds; others: unused */
    uint32_t since;                   /**< version of the type that added this field */
    uint64_t fallback;                /**< UINT and BOOL: the value when it is missing */
};

/** A kind of object. Tables are constant and live as long as the program. */
struct state_type {
    const char *name;
    uint32_t version;     /**< what this build writes */
    uint32_t min_version; /**< the oldest it reads */
    size_t size;          /**< of the struct that the offsets are in */
    const struct state_field *fields; /**< ends with STATE_END */
    /** Rejects what no correct peer could send. May be NULL. @param object the scratch copy */
    int (*check)(const void *object, struct error *error);
};

/* Each macro: FIELD(struct type, member), then since-version. A field that is newer than
 * min_version is optional on load and gets its fallback (zero unless given). */
#define STATE_BOOL(type, member, since_)                                                           \
    {                                                                                              \
        .name = #member, .kind = STATE_KIND_BOOL, .offset = offsetof(type, member),                \
        .size = sizeof(((type *)0)->member), .since = (since_)                                     \
    }
#define STATE_UINT_RANGE(type, member, since_, minimum_, maximum_, fallback_)                      \
    {                                                                                              \
        .name = #member, .kind = STATE_KIND_UINT, .offset = offsetof(type, member),                \
        .size = sizeof(((type *)0)->member), .minimum = (minimum_), .maximum = (maximum_),         \
        .since = (since_), .fallback = (fallback_)                                                 \
    }
#define STATE_UINT(type, member, since_)                                                           \
    STATE_UINT_RANGE(type, member, since_, 0, UINT64_MAX, 0)
#define STATE_STRING(type, member, since_)                                                         \
    {                                                                                              \
        .name = #member, .kind = STATE_KIND_STRING, .offset = offsetof(type, member),              \
        .size = sizeof(((type *)0)->member), .since = (since_)                                     \
    }
#define STATE_BYTES(type, member, since_)                                                          \
    {                                                                                              \
        .name = #member, .kind = STATE_KIND_BYTES, .offset = offsetof(type, member),               \
        .size = sizeof(((type *)0)->member), .since = (since_)                                     \
    }
#define STATE_BLOB(type, member, length_member, since_)                                            \
    {                                                                                              \
        .name = #member, .kind = STATE_KIND_BLOB, .offset = offsetof(type, member), .size = 1,     \
        .capacity = sizeof(((type *)0)->member), .length_offset = offsetof(type, length_member),   \
        .since = (since_)                                                                          \
    }
#define STATE_ARRAY(type, member, count_member, element_fields, since_)                            \
    {                                                                                              \
        .name = #member, .kind = STATE_KIND_ARRAY, .offset = offsetof(type, member),               \
        .size = sizeof(((type *)0)->member[0]),                                                    \
        .capacity = sizeof(((type *)0)->member) / sizeof(((type *)0)->member[0]),                  \
        .length_offset = offsetof(type, count_member), .fields = (element_fields),                 \
        .since = (since_)                                                                          \
    }
#define STATE_END                                                                                  \
    {                                                                                              \
        .name = NULL                                                                               \
    }

/** Writes sections into memory that the caller owns. */
struct state_writer {
    uint8_t *bytes;
    size_t capacity;
    size_t used;
    bool overflow; /**< set once, sticky: something did not fit */
};

/** Starts a stream: writes its header (magic, format version). */
void state_writer_init(struct state_writer *writer, void *bytes, size_t capacity);

/**
 * Writes one object as a section.
 * @param id       which object ("vcpu/0", "vfio/nvme0"); unique in a stream
 * @param required a reader that does not know the id or type must refuse the stream
 */
void state_write(struct state_writer *writer, const char *id, const struct state_type *type,
                 const void *object, bool required);

/** Ends the stream. @return its length in bytes, or -ENOSPC with an error when it did not fit. */
int state_writer_finish(struct state_writer *writer, size_t *length, struct error *error);

/** One object that a stream may hold, and where to load it. */
struct state_target {
    const char *id;
    const struct state_type *type;
    void *object;
    void *scratch;  /**< type->size bytes, the caller's; may be shared by nobody */
    bool optional;  /**< may be absent from the stream: the object is left alone then */
    bool loaded;    /**< out: was in the stream */
};

/**
 * Loads a stream into objects: decodes all of it into scratch, checks all of it, and only when
 * nothing is wrong copies each scratch over its object.
 * @param targets every object of this process; a required section without a target is an error,
 *                an unrequired one is skipped; a target that is not optional must be present
 * @return 0; -EINVAL malformed; -ENOTSUP a version or section from the future, named;
 *         -ENOENT a missing section, named. On failure no object has changed.
 */
int state_load(const void *bytes, size_t length, struct state_target *targets, size_t count,
               struct error *error);

/**
 * Prints a stream for people, one field a line ("vcpu/0 (vcpu v1) / regs: 144 bytes ...").
 * Needs no table. @param print receives each line without its end
 * @return 0 or -EINVAL when the bytes are no stream (what was readable has been printed)
 */
int state_dump(const void *bytes, size_t length, void (*print)(void *opaque, const char *line),
               void *opaque, struct error *error);
