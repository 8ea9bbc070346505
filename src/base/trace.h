/* SPDX-License-Identifier: Apache-2.0
 *
 * Trace points: named events that cost one predictable branch while they are off. QEMU's way of
 * switching them: -trace PATTERN, QMP's trace-event-set-state. docs/tracing.md is the table for
 * operators; tests/trace-events checks that it, the list below and the code agree.
 *
 * A trace point is one line in the code, trace(NAME, arguments...); arguments are not evaluated
 * while the event is off. To add one: a line in the list, the call, a row in docs/tracing.md.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

/* Every event: its name, and what it says as key=value. The one place that knows them all. */
/* clang-format off */
#define TRACE_EVENTS(EVENT)                                                                        \
    EVENT(update_stage_begin,    "side=%s stage=%s")                                               \
    EVENT(update_stage_end,      "side=%s stage=%s result=%d")                                     \
    EVENT(update_undo,           "stage=%s")                                                       \
    EVENT(update_go,             "side=%s")                                                        \
    EVENT(update_claim,          "side=%s won=%d")                                                 \
    EVENT(update_peer_death,     "side=%s pid=%d")                                                 \
    EVENT(update_peer_kill,      "pid=%d")                                                         \
    EVENT(update_conclude,       "side=%s status=%s")                                              \
    EVENT(update_blocked,        "reason=%s")                                                      \
    EVENT(update_warm_up,        "mapped=%ju time=%ju")                                            \
    EVENT(update_predict,        "save=%ju load=%ju trip=%ju blackout=%ju")                        \
    EVENT(vfio_open,             "device=%s host=%s fd=%d")                                        \
    EVENT(vfio_adopt,            "device=%s host=%s fd=%d")                                        \
    EVENT(vfio_bind,             "host=%s iommufd=%s devid=%u")                                    \
    EVENT(vfio_attach,           "host=%s iommufd=%s hwpt=%u")                                     \
    EVENT(vfio_add_group,        "group=%u container=%s")                                          \
    EVENT(vfio_reset,            "device=%s result=%d")                                            \
    EVENT(vfio_region_map,       "device=%s region=%u offset=0x%jx size=0x%jx")                    \
    EVENT(vfio_region_unmap,     "file-offset=0x%jx size=0x%jx")                                   \
    EVENT(vfio_set_irqs,         "device=%s index=%u start=%u count=%u result=%d")                 \
    EVENT(vfio_irq_arm,          "device=%s vector=%u")                                            \
    EVENT(vfio_irq_disarm,       "device=%s index=%u")                                             \
    EVENT(vfio_irq_mask,         "device=%s vector=%u")                                            \
    EVENT(vfio_irq_unmask,       "device=%s vector=%u")                                            \
    EVENT(vfio_intx_enable,      "device=%s result=%d")                                            \
    EVENT(vfio_intx_disable,     "device=%s result=%d")                                            \
    EVENT(vfio_error,            "device=%s")                                                      \
    EVENT(vfio_request,          "device=%s")                                                      \
    EVENT(iommu_map,             "iommu=%s iova=0x%jx size=0x%jx offset=0x%jx result=%d")          \
    EVENT(iommu_map_peer,        "iommu=%s iova=0x%jx size=0x%jx result=%d")                       \
    EVENT(iommu_take_peer,       "iommu=%s iova=0x%jx size=0x%jx result=%d")                       \
    EVENT(iommu_unmap_peer,      "iommu=%s iova=0x%jx size=0x%jx result=%d")                       \
    EVENT(iommu_hwpt_alloc,      "iommufd=%s hwpt=%u dirty-tracking=%d")                           \
    EVENT(iommu_hwpt_destroy,    "iommufd=%s hwpt=%u")                                             \
    EVENT(iommu_release_ownership, "iommu=%s result=%d")                                           \
    EVENT(iommu_take_ownership,  "iommu=%s result=%d")                                             \
    EVENT(iommu_take_back_ownership, "iommu=%s result=%d")                                         \
    EVENT(iommu_probe_ownership, "iommu=%s result=%d")                                             \
    EVENT(kvm_irqfd_assign,      "gsi=%u fd=%d")                                                   \
    EVENT(kvm_irqfd_deassign,    "gsi=%u fd=%d")                                                   \
    EVENT(kvm_irq_resample,      "gsi=%u")                                                         \
    EVENT(kvm_irq_delivery,      "mode=%d result=%d")
/* clang-format on */

#define TRACE_ID_(name, format) TRACE_##name,
enum trace_event { TRACE_EVENTS(TRACE_ID_) TRACE_EVENT_COUNT };
#undef TRACE_ID_

/* The formats as constants, so that the compiler checks the arguments of each trace point. */
#define TRACE_FORMAT_(name, format)                                                                \
    static const char trace_format_##name[] __attribute__((unused)) = format;
TRACE_EVENTS(TRACE_FORMAT_)
#undef TRACE_FORMAT_

/** What is on, by enum trace_event. Read through trace_is_on(), written by trace_switch(). */
extern uint8_t trace_on[TRACE_EVENT_COUNT];

/** @return whether an event is on. Any thread */
static inline bool trace_is_on(enum trace_event event)
{
    return __builtin_expect(__atomic_load_n(&trace_on[event], __ATOMIC_RELAXED), 0);
}

/** A trace point. Any thread, any lock held; errno stays. */
#define trace(name, ...)                                                                           \
    do {                                                                                           \
        if (trace_is_on(TRACE_##name))                                                             \
            trace_write(TRACE_##name, trace_format_##name, __VA_ARGS__);                           \
    } while (0)

/** Writes one line; see trace(). */
void trace_write(enum trace_event event, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/** @return an event's name */
const char *trace_name(enum trace_event event);

/** @return what an event says: keys and conversions */
const char *trace_format(enum trace_event event);

/** @return whether an event's name matches a pattern (a glob, case-sensitive) */
bool trace_matches(enum trace_event event, const char *pattern);

/**
 * Checks a pattern.
 * @return 0; -ENOENT when it has no wildcard and names no event
 */
int trace_check(const char *pattern, struct error *error);

/** Switches every event that matches on or off. Any thread. @return as trace_check() */
int trace_switch(const char *pattern, bool on, struct error *error);

/**
 * Sends lines to a file, which is appended to, and not to standard error. Before threads start.
 * @return 0, or a negative errno with an error that names the file
 */
int trace_open_log(const char *path, struct error *error);
