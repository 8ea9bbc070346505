/* SPDX-License-Identifier: Apache-2.0
 *
 * What a virtual machine is made of: the definition that "baton run" reads from its command line
 * and that travels with a hand-over, where it is compared with what the incoming process was given.
 *
 * The words and the syntax are QEMU's. An option or property that baton does not have is an error
 * that names it. Used by control/ (command line) and update/ (definition of a hand-over).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"
#include "iommu/iommu.h"

#define CONFIG_ID_SIZE      64
#define CONFIG_PATH_SIZE    1024
#define CONFIG_CMDLINE_SIZE 2048
#define CONFIG_SYSFS_SIZE   256
#define CONFIG_CPUS_MAX     32
#define CONFIG_DEVICES_MAX  31 /* bus 0 less the host bridge */
#define CONFIG_IOMMUS_MAX   8
#define CONFIG_QMP_MAX      4
#define CONFIG_TRACES_MAX   16
#define CONFIG_OPTIONS_MAX  192 /* strings of a definition */

#define CONFIG_MACHINE_VERSION "baton-1.0"

/** What fd= is when it is no number of this process's: */
enum config_fd {
    CONFIG_FD_NONE = -1,        /**< not given: baton opens the object itself */
    CONFIG_FD_HANDED_OVER = -2, /**< of a running guest, which was given it: it comes by name */
};

/** -object iommufd,id=ID[,fd=N] */
struct config_iommu {
    char id[CONFIG_ID_SIZE];
    int fd; /**< an open /dev/iommu, or enum config_fd */
};

/** -device vfio-pci,host=ADDR|sysfsdev=DIR|fd=N[,id=ID][,iommufd=ID[,ioas=NAME]][,container=NAME]
 * [,hwpt=shared|own|ioas][,p2p=on|off][,addr=DEV.FN]. Exactly one of host, sysfsdev and fd is
 * given. */
struct config_vfio_pci {
    char id[CONFIG_ID_SIZE];          /**< given, or see config_implied_id() */
    char host[16];                    /**< full form, "0000:01:00.0"; or "" */
    char sysfsdev[CONFIG_SYSFS_SIZE]; /**< its directory in sysfs; or "" */
    int fd;                           /**< an open /dev/vfio/devices/vfioN, or enum config_fd */
    char iommufd[CONFIG_ID_SIZE];     /**< id of an -object iommufd; "": a legacy container */
    char ioas[CONFIG_ID_SIZE];        /**< name of an address space in it; "": its first */
    char container[CONFIG_ID_SIZE];   /**< name of a legacy container; "": the common one */
    enum iommu_hwpt_choice hwpt;      /**< iommufd: its hardware page table; shared unless said */
    bool p2p;                         /**< the other devices reach its BARs; on unless said */
    uint8_t devfn; /**< resolved: assigned in order from 01.0 when addr= is absent */
};

/** A machine's definition. Plain data. */
struct config {
    /* What the guest can see: compared at a hand-over. */
    char name[CONFIG_ID_SIZE];    /**< -name NAME or guest=NAME; "" when not given */
    char machine[CONFIG_ID_SIZE]; /**< -machine TYPE: "baton-1.0", alias "baton", "q35" refused */
    char memory_backend[CONFIG_ID_SIZE]; /**< -machine memory-backend=ID; "" for the implied one */
    uint64_t memory_size;                /**< -m, bytes; default 512 MiB */
    uint64_t hugetlb_size;               /**< of the backend; 0 ordinary pages */
    bool prealloc;
    unsigned cpus; /**< -smp */
    struct config_iommu iommus[CONFIG_IOMMUS_MAX];
    unsigned iommu_count;
    struct config_vfio_pci devices[CONFIG_DEVICES_MAX];
    unsigned device_count;
    char kernel[CONFIG_PATH_SIZE]; /**< -kernel */
    char initrd[CONFIG_PATH_SIZE]; /**< -initrd or "" */
    char append[CONFIG_CMDLINE_SIZE];

    /* What only the host sees: inherited at a hand-over unless given anew. */
    char serial[CONFIG_PATH_SIZE]; /**< -serial SPEC; "stdio" with -nographic; default "none" */
    char qmp[CONFIG_QMP_MAX][CONFIG_PATH_SIZE]; /**< PATH of -qmp unix:PATH,server=on,wait=off */
    unsigned qmp_count;
    char pidfile[CONFIG_PATH_SIZE];

    /* How this process starts: never travels. */
    bool start_paused;                              /**< -S */
    bool no_sandbox;                                /**< -sandbox off */
    char traces[CONFIG_TRACES_MAX][CONFIG_ID_SIZE]; /**< -trace: patterns; with "-" in front: off */
    unsigned trace_count;
    bool trace_help;                     /**< -trace help: nothing after it was read */
    char log_file[CONFIG_PATH_SIZE];     /**< -D */
    bool incoming;                       /**< any -incoming was given */
    char incoming_cpr[CONFIG_PATH_SIZE]; /**< unix path of the cpr channel */
    bool help;                           /**< -help: nothing after it was read */
    bool version;                        /**< -version: nothing after it was read */
    bool given[16]; /**< which options were on the command line, by enum config_option */
};

/** For config.given: the options whose presence matters to a hand-over. */
enum config_option {
    CONFIG_OPTION_NAME,
    CONFIG_OPTION_MACHINE,
    CONFIG_OPTION_MEMORY,
    CONFIG_OPTION_SMP,
    CONFIG_OPTION_OBJECT, /**< -object iommufd */
    CONFIG_OPTION_DEVICE,
    CONFIG_OPTION_KERNEL,
    CONFIG_OPTION_INITRD,
    CONFIG_OPTION_APPEND,
    CONFIG_OPTION_SERIAL,
    CONFIG_OPTION_QMP,
    CONFIG_OPTION_PIDFILE,
    CONFIG_OPTION_MEMORY_BACKEND, /**< -object memory-backend-memfd, -machine memory-backend= */
};

/**
 * Reads a command line. Without -incoming the result is a whole machine; with it, only what was
 * given is there, to be compared with what arrives.
 * @param argv options only (no program or subcommand name); one option or value each
 * @return 0; -EINVAL with an error that names the option or property and what was expected
 */
int config_parse(struct config *config, int argc, const char *const *argv, struct error *error);

/** @return "shared", "own" or "ioas" */
const char *config_hwpt_name(enum iommu_hwpt_choice hwpt);

/**
 * Name of a device without id=: its host address, or the last part of its sysfs directory, the same
 * in every process; or "fd:N" for a descriptor, which means something in this process only. "" when
 * there is nothing that would do. What has a colon is no id that can be given.
 */
void config_implied_id(const struct config_vfio_pci *device, char id[CONFIG_ID_SIZE]);

/** @return whether a device has a name that another process can find it by */
bool config_is_named(const struct config_vfio_pci *device);

/**
 * Makes the descriptors of fd= this process's own: they must be open, and are not passed on to
 * what it executes. An incoming process closes them: it gets the guest's.
 * Before anything else is opened.
 * @return 0; -EBADF with an error that names the option
 */
int config_claim_descriptors(const struct config *config, struct error *error);

/** Writes the options and their meanings, one a line, from the table that config_parse() uses. */
void config_print_help(FILE *out);

/**
 * Makes the paths that outlive a change of process independent of its working directory: kernel,
 * initrd, QMP sockets, pid file and the serial port's file or socket.
 * @param directory absolute
 * @return 0; -ENAMETOOLONG
 */
int config_make_paths_absolute(struct config *config, const char *directory, struct error *error);

/**
 * Writes a definition as options that config_parse() reads back to the same definition (for what
 * the guest sees and what the host side inherits; not -incoming, -S).
 * @param strings out: @p count strings, to be freed with config_free_options()
 */
int config_to_options(const struct config *config, char ***strings, size_t *count,
                      struct error *error);
void config_free_options(char **strings, size_t count);

/**
 * Compares the definition of a running guest with what this process was given on its command line;
 * only options that were given count.
 * @return 0; -EINVAL with an error that names the first option that differs, and both values
 */
int config_compare(const struct config *running, const struct config *given, struct error *error);
