/* SPDX-License-Identifier: Apache-2.0
 *
 * The inside of the command-line parser: config.c has the table and the loop, config_guest.c the
 * options that describe what the guest sees (config_source.c: where a device comes from),
 * config_host.c the others, config_check.c what concerns several options. For these files and
 * config_text.c only.
 */
#pragma once

#include "machine/config.h"
#include "machine/properties.h"

#define DEVFN_UNASSIGNED 0 /* 00.0 is the host bridge */

/* fd= in a definition: a number would mean nothing to the process that reads it. */
#define CONFIG_FD_HANDED_OVER_TEXT "handed-over"

/** A command line while it is being read. */
struct parser {
    struct config *config;
    struct error *error;
    bool has_backend;
    char backend_id[CONFIG_ID_SIZE];
    uint64_t backend_size;
    bool nographic;
    bool main_channel;
};

/**
 * QEMU's rule for ids: a letter, then letters, digits and -._
 * @param option for the message
 */
int config_check_id(struct error *error, const char *option, const char *id);

/** Copies the value of an option without parts: not empty, and shorter than @p size. */
int config_copy(struct parser *parser, const char *option, char *to, size_t size,
                const char *value);

/** @return the -object iommufd of that id, or NULL */
const struct config_iommu *config_find_iommu(const struct config *config, const char *id);

/** Reads fd=, which need not be there. @param fd out: a number from 3, or enum config_fd */
int config_read_fd(struct parser *parser, struct properties *p, int *fd);

/** Reads host=, sysfsdev= and fd=, and fills in an id that was not given. */
int config_read_source(struct parser *parser, struct properties *p, struct config_vfio_pci *device);

/** @return the host's name of a device, "0000:01:00.0" or a UUID; "" when only fd= is known */
const char *config_source_name(const struct config_vfio_pci *device);

/** @return whether its id is the one that it has without id= */
bool config_has_implied_id(const struct config_vfio_pci *device);

/** After the last option: checks what concerns more than one, and assigns slots. */
int config_settle(struct parser *parser);

/* One function per option. @param value the argument, NULL when the option has none */
int option_name(struct parser *parser, const char *value);
int option_machine(struct parser *parser, const char *value);
int option_accel(struct parser *parser, const char *value);
int option_enable_kvm(struct parser *parser, const char *value);
int option_cpu(struct parser *parser, const char *value);
int option_memory(struct parser *parser, const char *value);
int option_smp(struct parser *parser, const char *value);
int option_object(struct parser *parser, const char *value);
int option_device(struct parser *parser, const char *value);
int option_kernel(struct parser *parser, const char *value);
int option_initrd(struct parser *parser, const char *value);
int option_append(struct parser *parser, const char *value);
int option_serial(struct parser *parser, const char *value);
int option_nographic(struct parser *parser, const char *value);
int option_display(struct parser *parser, const char *value);
int option_nodefaults(struct parser *parser, const char *value);
int option_qmp(struct parser *parser, const char *value);
int option_pidfile(struct parser *parser, const char *value);
int option_start_paused(struct parser *parser, const char *value);
int option_incoming(struct parser *parser, const char *value);
int option_trace(struct parser *parser, const char *value);
int option_log_file(struct parser *parser, const char *value);
int option_sandbox(struct parser *parser, const char *value);
int option_help(struct parser *parser, const char *value);
int option_version(struct parser *parser, const char *value);
