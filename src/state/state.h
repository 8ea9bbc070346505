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
 * A writer or reader belongs to one thread. Neither saving nor loading allocates.
 *
 * A stream is a sequence of CBOR items, all of definite length:
 *
 *     ["baton-state", format version]
 *     {"id", "type", "version", "min_reader" (only when above 1), "required", "fields": {...}}
 *     ... more sections
 *     number of sections
 *
 * "fields" is the last key of a section. A reader skips header keys that it does not know, unless
 * they begin with '!': those must be understood. Only unsigned integers, booleans, text, byte
 * strings, arrays and maps with text keys occur, nested at most STATE_DEPTH_MAX deep. Ids, type
 * names and keys are printable ASCII, so that they can go into messages as they are.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define STATE_FORMAT_VERSION 1u
#define STATE_DEPTH_MAX      16u  /**< arrays and maps within one another, the section included */
#define STATE_NAME_MAX       127u /**< bytes of an id, a type name or a key */
#define STATE_FIELDS_MAX     128u /**< in one table */

/** What a field holds; see the STATE_... macros, which are the only way to write a table. */
enum state_kind {
    STATE_KIND_BOOL,   /**< bool */
    STATE_KIND_UINT,   /**< uint8_t to uint64_t, by size */
    STATE_KIND_STRING, /**< char[N], zero-terminated */
    STATE_KIND_BYTES,  /**< fixed number of bytes, e.g. a kernel UAPI struct */
    STATE_KIND_BLOB, /**< plain[capacity], count in another field of type uint32_t: a byte string */
    STATE_KIND_ARRAY, /**< struct[capacity], count in another field of type uint32_t */
};

struct state_field {
    const char *name;
    enum state_kind kind;
    size_t offset;
    size_t size;                      /**< of one element; for BLOB and ARRAY of one element, too */
    size_t capacity;                  /**< BLOB and ARRAY: elements that fit */
    size_t length_offset;             /**< BLOB and ARRAY: where the uint32_t count is */
    const struct state_field *fields; /**< ARRAY: fields of one element; BLOB: see STATE_PACKED */
    uint64_t minimum, maximum;        /**< UINT: inclusive bounds; others: unused */
    uint32_t since;                   /**< version of the type that added this field */
    uint64_t fallback;                /**< UINT and BOOL: the value when it is missing */
};

/** A kind of object. Tables are constant and live as long as the program. */
struct state_type {
    const char *name;
    uint32_t version;                 /**< what this build writes */
    uint32_t min_version;             /**< the oldest it reads */
    size_t size;                      /**< of the struct that the offsets are in */
    const struct state_field *fields; /**< ends with STATE_END */
    /**
     * The oldest version of this type that may load what this build writes; 0 means 1. A reader
     * takes a section of a newer version than its own when all fields that it knows are there, and
     * skips the rest. Raise this when skipping would be wrong: older readers then refuse by name.
     */
    uint32_t min_reader;
    /** Rejects what no correct peer could send. May be NULL. @param object the scratch copy */
    int (*check)(const void *object, struct error *error);
};

/* Each macro: FIELD(struct type, member), then since-version. A section older than that lacks the
 * field, which then gets its fallback (zero unless given; no elements); in any other section a
 * missing field is an error. */
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
#define STATE_UINT(type, member, since_) STATE_UINT_RANGE(type, member, since_, 0, UINT64_MAX, 0)
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
#define STATE_ELEMENTS_(kind_, type, member, count_member, element_fields, since_)                 \
    {                                                                                              \
        .name = #member, .kind = (kind_), .offset = offsetof(type, member),                        \
        .size = sizeof(((type *)0)->member[0]),                                                    \
        .capacity = sizeof(((type *)0)->member) / sizeof(((type *)0)->member[0]),                  \
        .length_offset = offsetof(type, count_member), .fields = (element_fields),                 \
        .since = (since_)                                                                          \
    }
#define STATE_ARRAY(type, member, count_member, element_fields, since_)                            \
    STATE_ELEMENTS_(STATE_KIND_ARRAY, type, member, count_member, element_fields, since_)
/* An array of structs without padding, as one byte string: for those that are long, since every
 * field of every element takes time in a blackout. May take the place of a STATE_ARRAY in a newer
 * version of a type, with a min_reader of that version: streams of before are read by way of the
 * fields. Bounds are the type's check to mind. */
#define STATE_PACKED(type, member, count_member, element_fields, since_)                           \
    STATE_ELEMENTS_(STATE_KIND_BLOB, type, member, count_member, element_fields, since_)
#define STATE_END                                                                                  \
    {                                                                                              \
        .name = NULL                                                                               \
    }

/** Writes sections into memory that the caller owns. */
struct state_writer {
    uint8_t *bytes;
    size_t capacity;
    size_t used;
    uint32_t sections;
    bool overflow;                           /**< set once, sticky: something did not fit */
    const char *invalid_id;                  /**< sticky: a section id that no reader would take */
    const struct state_type *invalid_type;   /**< sticky: where a string was that is not UTF-8 */
    const struct state_field *invalid_field; /**< the same: which one */
};

/** Starts a stream: writes its header (magic, format version). */
void state_writer_init(struct state_writer *writer, void *bytes, size_t capacity);

/**
 * Writes one object as a section.
 * A length above its capacity is our own mistake, an assertion.
 * @param id       which object ("vcpu/0", "vfio/nvme0"); unique in a stream; lives until finish
 * @param required a reader that does not know the id or type must refuse the stream
 */
void state_write(struct state_writer *writer, const char *id, const struct state_type *type,
                 const void *object, bool required);

/**
 * Ends the stream.
 * @param length out: bytes written
 * @return 0; -ENOSPC when it did not fit; -EINVAL when an id is not printable ASCII or a string is
 *         not UTF-8 (both may come from the operator)
 */
int state_writer_finish(struct state_writer *writer, size_t *length, struct error *error);

/** One object that a stream may hold, and where to load it. */
struct state_target {
    const char *id;
    const struct state_type *type;
    void *object;
    void *scratch; /**< type->size bytes, the caller's; may be shared by nobody */
    bool optional; /**< may be absent from the stream: the object is left alone then */
    bool loaded;   /**< out: was in the stream */

    /** For an object that nothing but state_load() changes: memory of the caller's for its section
     * as it was the last time. One that comes again as it was, byte for byte and in the order of
     * the targets, is not decoded again. NULL: none. */
    void *former;
    size_t former_capacity; /**< what a section is longer than is decoded each time */
    size_t former_length;   /**< state_load()'s own; 0 in the beginning */
    bool decoded;           /**< state_load()'s own */
};

/**
 * Gives every target scratch memory, and memory for its former section where former_capacity says
 * how much.
 * @return one block that holds all of it; the caller frees it after the last state_load()
 */
void *state_make_scratch(struct state_target *targets, size_t count);

/**
 * Loads a stream into objects: decodes all of it into scratch, checks all of it, and only when
 * nothing is wrong copies each scratch over its object. All of the object: what no field describes
 * (padding, elements past the count) becomes zero. Sections and fields that nobody knows are
 * skipped; whether those occur twice is not looked at.
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
 * @return 0; -EINVAL or -ENOTSUP, as state_load(), when the bytes are no stream of ours (what was
 *         readable has been printed)
 */
int state_dump(const void *bytes, size_t length, void (*print)(void *opaque, const char *line),
               void *opaque, struct error *error);

/**
 * Finds mistakes in a table: names twice, bounds that do not fit the member, a fallback out of
 * bounds, a since above the version, members that overlap or lie outside the struct, too much
 * nesting. For tests; the other functions rely on it.
 * @return 0 or -EINVAL naming the type and the field
 */
int state_type_verify(const struct state_type *type, struct error *error);
