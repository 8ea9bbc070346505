/* SPDX-License-Identifier: Apache-2.0
 *
 * The command line of a machine: every option, every error, the way to text and back, and the
 * comparison at a hand-over.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "machine/config.h"

#define WORDS_MAX 96

/* Splits at blanks; a word in single quotes may hold blanks. Returns the count. */
static int split(char *line, const char **words)
{
    int count = 0;

    while (*line) {
        char end = ' ';

        if (*line == ' ') {
            line++;
            continue;
        }
        if (*line == '\'') {
            end = '\'';
            line++;
        }
        assert_true(count < WORDS_MAX);
        words[count++] = line;
        line += strcspn(line, (char[]){end, '\0'});
        if (*line)
            *line++ = '\0';
    }
    return count;
}

static int parse(struct config *config, const char *line, struct error *error)
{
    const char *words[WORDS_MAX];
    char *copy = strdup(line);
    int ret = config_parse(config, split(copy, words), words, error);

    free(copy);
    return ret;
}

static void parse_ok(struct config *config, const char *line)
{
    struct error error = {0};

    if (parse(config, line, &error) < 0)
        fail_msg("'%s': %s", line, error.message);
    assert_int_equal(error.code, 0);
}

/* Every word of @expected, separated by '|', must occur in the message. */
static void parse_fails(const char *line, const char *expected)
{
    char *words = strdup(expected), *rest = words, *word;
    struct error error = {0};
    struct config config;

    if (parse(&config, line, &error) != -EINVAL)
        fail_msg("'%s' was accepted", line);
    assert_int_equal(error.code, EINVAL);
    while ((word = strsep(&rest, "|")) != NULL) {
        if (strstr(error.message, word) == NULL)
            fail_msg("'%s': message '%s' lacks '%s'", line, error.message, word);
    }
    free(words);
}

static void defaults(void **state)
{
    struct config config;

    parse_ok(&config, "-kernel /k");
    assert_string_equal(config.machine, "baton-1.0");
    assert_string_equal(config.kernel, "/k");
    assert_string_equal(config.serial, "none");
    assert_string_equal(config.name, "");
    assert_string_equal(config.memory_backend, "");
    assert_int_equal(config.memory_size, 512 * MIB);
    assert_int_equal(config.cpus, 1);
    assert_false(config.incoming || config.start_paused || config.help);
    assert_true(config.given[CONFIG_OPTION_KERNEL]);
    assert_false(config.given[CONFIG_OPTION_MEMORY]);
    assert_false(config.given[CONFIG_OPTION_SMP]);
}

static void everything(void **state)
{
    struct config config;

    parse_ok(&config,
             "-name guest=web1 -machine baton-1.0,memory-backend=ram0,aux-ram-share=on,accel=kvm "
             "-object memory-backend-memfd,id=ram0,size=4G,share=on,hugetlb=on,hugetlbsize=1G,"
             "prealloc=on,seal=on -m 4G -smp cpus=8 -cpu host -accel kvm -enable-kvm "
             "-object iommufd,id=iommufd0 -object iommufd,id=other "
             "-device vfio-pci,id=nvme0,host=0000:01:00.0,iommufd=iommufd0,addr=05.0 "
             "-device vfio-pci,id=nic0,host=02:1f.7,iommufd=other "
             "-device vfio-pci,id=nic1,host=AB:00.1,iommufd=other,addr=1 "
             "-kernel /boot/k -initrd /boot/i -append 'root=/dev/nvme0n1 quiet' "
             "-serial unix:/tmp/s,server=on,wait=off -nographic -display none -nodefaults "
             "-qmp unix:/tmp/a,,b,server=on,wait=off -qmp unix:/tmp/c,server,nowait "
             "-pidfile /tmp/pid -S");
    assert_string_equal(config.name, "web1");
    assert_string_equal(config.memory_backend, "ram0");
    assert_int_equal(config.memory_size, 4 * GIB);
    assert_int_equal(config.hugetlb_size, GIB);
    assert_true(config.prealloc);
    assert_int_equal(config.cpus, 8);
    assert_int_equal(config.iommu_count, 2);
    assert_string_equal(config.iommus[1].id, "other");
    assert_int_equal(config.device_count, 3);
    assert_string_equal(config.devices[0].host, "0000:01:00.0");
    assert_int_equal(config.devices[0].devfn, 5 << 3);
    assert_string_equal(config.devices[1].host, "0000:02:1f.7");
    assert_int_equal(config.devices[1].devfn, 2 << 3); /* slot 1 is taken by name */
    assert_string_equal(config.devices[2].host, "0000:ab:00.1");
    assert_int_equal(config.devices[2].devfn, 1 << 3);
    assert_string_equal(config.append, "root=/dev/nvme0n1 quiet");
    assert_string_equal(config.serial, "unix:/tmp/s,server=on,wait=off");
    assert_int_equal(config.qmp_count, 2);
    assert_string_equal(config.qmp[0], "/tmp/a,b");
    assert_string_equal(config.qmp[1], "/tmp/c");
    assert_string_equal(config.pidfile, "/tmp/pid");
    assert_true(config.start_paused);
}

static void tracing(void **state)
{
    struct config config;

    parse_ok(&config,
             "-kernel k -trace vfio_* -trace enable=update_undo -trace -vfio_open -D /tmp/t");
    assert_int_equal(config.trace_count, 3);
    assert_string_equal(config.traces[0], "vfio_*");
    assert_string_equal(config.traces[1], "update_undo");
    assert_string_equal(config.traces[2], "-vfio_open");
    assert_string_equal(config.log_file, "/tmp/t");
    assert_false(config.trace_help);
    parse_ok(&config, "-trace help -nonsense");
    assert_true(config.trace_help);
    parse_fails("-kernel k -trace no_such_event", "-trace|no_such_event|help");
    parse_fails("-kernel k -trace vfio_open,file=/tmp/x", "-trace|file");
    parse_fails("-kernel k -trace events=/tmp/x", "-trace|pattern");
    parse_fails("-kernel k -trace", "-trace|missing");
    parse_fails("-kernel k -D ''", "-D|empty");
    parse_fails(
        "-kernel k -trace *aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "enable");
    parse_fails("-trace a* -trace a* -trace a* -trace a* -trace a* -trace a* -trace a* -trace a* "
                "-trace a* -trace a* -trace a* -trace a* -trace a* -trace a* -trace a* -trace a* "
                "-trace a*",
                "more than 16");
}

static void sandbox(void **state)
{
    struct config config;

    parse_ok(&config, "-kernel k");
    assert_false(config.no_sandbox);
    parse_ok(&config, "-kernel k -sandbox off");
    assert_true(config.no_sandbox);
    parse_ok(&config, "-kernel k -sandbox off -sandbox enable=on");
    assert_false(config.no_sandbox);
    parse_fails("-kernel k -sandbox maybe", "-sandbox|maybe");
    parse_fails("-kernel k -sandbox on,spawn=deny", "-sandbox|spawn");
    parse_fails("-kernel k -sandbox", "-sandbox|missing");
}

static void spellings(void **state)
{
    struct config config;

    parse_ok(&config, "--kernel k -m 2G");
    assert_int_equal(config.memory_size, 2 * GIB);
    parse_ok(&config, "-kernel k -m size=2048");
    assert_int_equal(config.memory_size, 2 * GIB);
    parse_ok(&config, "-kernel k -m 1048576k -smp 4 -name x -M baton");
    assert_int_equal(config.memory_size, GIB);
    assert_int_equal(config.cpus, 4);
    assert_string_equal(config.name, "x");
    assert_string_equal(config.machine, "baton-1.0");
    parse_ok(&config, "-kernel k -nographic");
    assert_string_equal(config.serial, "stdio");
    parse_ok(&config, "-kernel k -nographic -serial pty");
    assert_string_equal(config.serial, "pty");
    parse_ok(&config, "-kernel k -smp 1 -smp 3 -m 1G -m 2G");
    assert_int_equal(config.cpus, 3);
    assert_int_equal(config.memory_size, 2 * GIB);
    /* A value is a value, whatever it looks like. */
    parse_ok(&config, "-kernel k -append -help");
    assert_false(config.help);
    assert_string_equal(config.append, "-help");
    parse_ok(&config, "-machine memory-backend=m -object memory-backend-memfd,id=m,size=64M "
                      "-kernel k");
    assert_int_equal(config.memory_size, 64 * MIB);
}

static void json(void **state)
{
    struct config config;

    parse_ok(&config,
             "-kernel k -object '{\"qom-type\":\"iommufd\",\"id\":\"i\"}' -device "
             "'{\"driver\":\"vfio-pci\",\"id\":\"d\",\"host\":\"01:00.0\",\"iommufd\":\"i\"}' "
             "-object '{\"qom-type\":\"memory-backend-memfd\",\"id\":\"m\",\"size\":1073741824,"
             "\"share\":true}' -machine memory-backend=m");
    assert_int_equal(config.device_count, 1);
    assert_string_equal(config.devices[0].iommufd, "i");
    assert_int_equal(config.memory_size, GIB);
    parse_fails("-kernel k -device '{'", "-device|malformed JSON");
    parse_fails("-kernel k -object '{\"id\":\"i\"}'", "-object|type");
    parse_fails("-kernel k -object '{\"qom-type\":\"iommufd\",\"id\":[1]}'", "id|string");
    parse_fails("-kernel k -object '{\"qom-type\":\"iommufd\",\"id\":\"i\",\"x\":{\"y\":1}}'",
                "no property 'x.y'");
    parse_fails("-kernel k -object '{\"a=b\":\"i\"}'", "a=b");
    parse_fails("-kernel k -object '{\"qom-type\":\"iommufd\",\"id\":\"i,share=on\"}'", "i,share");
    parse_fails("-kernel k -object '{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":1}}}}}}'", "nested");
    parse_fails("-kernel k -object '{\"id\":\"a\",\"id\":\"b\"}'", "-object|JSON");
}

static void incoming(void **state)
{
    struct config config;

    /* QEMU's documentation, word for word. */
    parse_ok(&config, "-incoming tcp:0:44444 -incoming '{\"channel-type\": \"cpr\", \"addr\": { "
                      "\"transport\": \"socket\", \"type\": \"unix\", \"path\": \"cpr.sock\"}}'");
    assert_true(config.incoming);
    assert_string_equal(config.incoming_cpr, "cpr.sock");
    parse_ok(&config, "-incoming defer -incoming channel-type=cpr,addr.transport=socket,"
                      "addr.type=unix,addr.path=/a,,b");
    assert_string_equal(config.incoming_cpr, "/a,b");
    for (unsigned i = 0; i < ARRAY_SIZE(config.given); i++)
        assert_false(config.given[i]);
    parse_ok(&config, "-incoming unix:x -incoming channel-type=cpr,addr.transport=socket,"
                      "addr.type=unix,addr.path=a -m 1G");
    assert_true(config.given[CONFIG_OPTION_MEMORY]);

    parse_fails("-incoming tcp:0:44444", "-incoming|cpr channel is needed");
    parse_fails("-incoming exec:cat", "-incoming");
    parse_fails("-incoming tcp:0:1 -incoming defer", "second main channel 'defer'");
    parse_fails("-incoming channel-type=cpr,addr.transport=socket,addr.type=unix", "addr.path");
    parse_fails("-incoming channel-type=cpr,addr.transport=exec,addr.path=a", "socket|exec");
    parse_fails("-incoming channel-type=cpr,addr.transport=socket,addr.type=inet,addr.path=a",
                "unix|inet");
    parse_fails("-incoming channel-type=data,addr.path=a", "channel-type=data");
    parse_fails("-incoming channel-type=cpr,addr.transport=socket,addr.type=unix,addr.path=a,x=y",
                "'x'");
    parse_fails("-incoming channel-type=cpr,addr.transport=socket,addr.type=unix,addr.path=a "
                "-incoming channel-type=cpr,addr.transport=socket,addr.type=unix,addr.path=b",
                "second cpr channel");
    parse_fails("-incoming channel-type=cpr,addr.transport=socket,addr.type=unix,addr.path="
                "/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                "addr.path|107");
}

static void unknown(void **state)
{
    parse_fails("-kernel k -drive file=x", "no option '-drive'");
    parse_fails("-kernel k stray", "no option 'stray'");
    parse_fails("-kernel k -", "no option '-'");
    parse_fails("-kernel k --", "no option '--'");
    parse_fails("-kernel k ---m 1G", "no option '---m'");
    parse_fails("-kernel", "-kernel|value is missing");
    parse_fails("-kernel k -name x,debug-threads=on", "-name|debug-threads");
    parse_fails("-kernel k -machine q35", "q35|baton-1.0");
    parse_fails("-kernel k -machine accel=tcg", "tcg|kvm");
    parse_fails("-kernel k -accel tcg", "tcg|kvm");
    parse_fails("-kernel k -machine baton-1.0,nvdimm=on", "-machine|nvdimm");
    parse_fails("-kernel k -cpu max", "-cpu|max|host");
    parse_fails("-kernel k -cpu host,+x2apic", "-cpu|+x2apic");
    parse_fails("-kernel k -m 1G,slots=2", "-m|slots");
    parse_fails("-kernel k -smp 4,threads=2", "-smp|threads");
    parse_fails("-kernel k -object rng-random,id=r", "rng-random");
    parse_fails("-kernel k -object memory-backend-memfd,id=m,size=1G,merge=on", "merge");
    parse_fails("-kernel k -object iommufd,id=i,x=3", "-object|x");
    parse_fails("-kernel k -device virtio-net-pci,id=n", "virtio-net-pci|vfio-pci");
    parse_fails("-kernel k -display gtk", "-display|gtk");
    parse_fails("-kernel k -qmp stdio", "-qmp|unix:PATH");
    parse_fails("-kernel k -qmp unix:x,server=on,reconnect=1", "-qmp|reconnect");
    parse_fails("-kernel k -name ''", "-name|empty");
}

static void missing_and_wrong(void **state)
{
    parse_fails("-m 1G", "-kernel is missing");
    parse_fails("", "-kernel is missing");
    parse_fails("-kernel k -m 0", "-m|multiple");
    parse_fails("-kernel k -m 3K", "-m|3072|multiple");
    parse_fails("-kernel k -m 4g4", "-m|4g4");
    parse_fails("-kernel k -m -1", "-m|-1");
    parse_fails("-kernel k -m +1", "-m|+1");
    parse_fails("-kernel k -m 1.5G", "-m|1.5G");
    parse_fails("-kernel k -m 99999999999999999999", "too large");
    parse_fails("-kernel k -m 18446744073709551615", "too large");
    parse_fails("-kernel k -m 17T", "16 TiB");
    parse_fails("-kernel k -m size=", "-m");
    parse_fails("-kernel k -m ,", "-m");
    parse_fails("-kernel k -m =1", "-m|without a name");
    parse_fails("-kernel k -m size=1G,size=1G", "-m|twice");
    parse_fails("-kernel k -smp 0", "-smp|0");
    parse_fails("-kernel k -smp 33", "-smp|33");
    parse_fails("-kernel k -smp 4294967297", "-smp|4294967297");
    parse_fails("-kernel k -smp two", "-smp|two");
    parse_fails("-kernel k -name a/b", "-name|a/b");
    parse_fails("-kernel k -name ..", "-name|..");
    parse_fails("-kernel k -name 0123456789012345678901234567890123456789012345678901234567890123",
                "-name|63");
    parse_fails("-kernel k -qmp unix:x", "-qmp|server=on");
    parse_fails("-kernel k -qmp unix:,server=on", "-qmp|empty");
    parse_fails("-kernel k -qmp unix:x,server=on,wait=on", "-qmp|wait=on");
    parse_fails("-kernel k -qmp unix:x,server=maybe", "server|maybe");
    parse_fails("-kernel k -qmp unix:x,server=on -qmp unix:x,server=on", "-qmp|'x'|twice");
    parse_fails("-kernel k -qmp unix:1,server -qmp unix:2,server -qmp unix:3,server "
                "-qmp unix:4,server -qmp unix:5,server",
                "-qmp|more than 4");
    parse_fails("-kernel k -serial stdio -serial pty", "-serial|stdio|pty");
}

static void memory_backends(void **state)
{
    parse_fails("-kernel k -object memory-backend-memfd,id=m", "'m'|size=");
    parse_fails("-kernel k -object memory-backend-memfd,size=1G", "-object|id");
    parse_fails("-kernel k -object memory-backend-memfd,id=m,size=1G", "'m'|not used|"
                                                                       "memory-backend=m");
    parse_fails("-kernel k -machine memory-backend=m", "memory-backend=m|-object");
    parse_fails("-kernel k -machine memory-backend=m -m 2G "
                "-object memory-backend-memfd,id=m,size=1G",
                "2147483648|'m'|1073741824");
    parse_fails("-kernel k -machine memory-backend=m -object memory-backend-memfd,id=m,size=1G "
                "-object memory-backend-memfd,id=n,size=1G",
                "'n'|'m'|has one");
    parse_fails("-kernel k -object memory-backend-memfd,id=m,size=1G,share=off", "share=off");
    parse_fails("-kernel k -object memory-backend-memfd,id=m,size=1G,seal=off", "seal=off");
    parse_fails("-kernel k -object memory-backend-memfd,id=m,size=1G,hugetlbsize=2M", "hugetlb=on");
    parse_fails("-kernel k -object memory-backend-memfd,id=m,size=1G,hugetlb=on,hugetlbsize=4M",
                "2M or 1G");
    parse_fails("-kernel k -machine memory-backend=m "
                "-object memory-backend-memfd,id=m,size=3M,hugetlb=on",
                "-object|3145728|2097152");
}

static void devices(void **state)
{
#define IOMMU "-kernel k -object iommufd,id=i "
    parse_fails(IOMMU "-object iommufd,id=i", "-object|'i'");
    parse_fails(IOMMU "-object iommufd", "-object|id");
    parse_fails(IOMMU "-object iommufd,id=1x", "-object|1x");
    parse_fails(IOMMU "-object iommufd,id=a/b", "-object|a/b");
    parse_fails(IOMMU "-device vfio-pci,id=1d,host=01:00.0,iommufd=i", "-device|'1d'");
    parse_fails(IOMMU "-device vfio-pci,id=d,iommufd=i", "'d'|host=|sysfsdev=|fd=");
    parse_fails(IOMMU "-device vfio-pci,id=d,host=01:00.0,ioas=x", "'d'|ioas=|iommufd=");
    parse_fails(IOMMU "-device vfio-pci,id=d,host=01:00.0,iommufd=i,container=c",
                "'d'|container=|iommufd=|exclude");
    parse_fails(IOMMU "-device vfio-pci,id=d,host=01:00.0,container=1x", "container=|1x");
    parse_fails("-kernel k -device vfio-pci,id=d,host=01:00.0,hwpt=own", "'d'|hwpt=|iommufd=");
    parse_fails(IOMMU "-device vfio-pci,id=d,host=01:00.0,iommufd=i,hwpt=x", "'d'|hwpt=|own|'x'");
    parse_fails(IOMMU "-device vfio-pci,id=d,host=01:00.0,p2p=maybe", "p2p|maybe");
    parse_fails(IOMMU "-device vfio-pci,id=d,host=01:00.0,iommufd=i,ioas=a/b", "ioas=|a/b");
    parse_fails(IOMMU "-device vfio-pci,id=d,host=01:00.0,iommufd=", "iommufd");
    parse_fails(IOMMU "-device vfio-pci,id=d,host=01:00.0,iommufd=j", "'d'|'j'|-object iommufd");
    parse_fails(IOMMU "-device vfio-pci,id=d,host=01:00.0,iommufd=i,x-no-kvm=on", "x-no-kvm");
    parse_fails(IOMMU "-device vfio-pci,id=d,host=01:00.0,iommufd=i "
                      "-device vfio-pci,id=d,host=02:00.0,iommufd=i",
                "two devices|'d'");
    parse_fails(IOMMU "-device vfio-pci,id=d,host=01:00.0,iommufd=i "
                      "-device vfio-pci,id=e,host=0000:01:00.0,iommufd=i",
                "'d'|'e'|0000:01:00.0");
    parse_fails(IOMMU "-device vfio-pci,id=d,host=01:00.0,iommufd=i,addr=1f "
                      "-device vfio-pci,id=e,host=02:00.0,iommufd=i,addr=1f.0",
                "'d'|'e'|slot 1f");
    for (const char **bad = (const char *[]){"1:2", "01:00.8", "01:20.0", "zz:00.0", "01:00.0x",
                                             "00000:01:00.0", "-1:00.0", "0x1:00.0", "", NULL};
         *bad; bad++) {
        char line[256];

        snprintf(line, sizeof(line), IOMMU "-device vfio-pci,id=d,iommufd=i,host=%s", *bad);
        parse_fails(line, "'d'|host=");
    }
    for (const char **bad = (const char *[]){"0", "20", "x", "1.8", "1.1", "1.", "-1", "0.0", "",
                                             "100000001", "1.0.0", NULL};
         *bad; bad++) {
        char line[256];

        snprintf(line, sizeof(line), IOMMU "-device vfio-pci,id=d,iommufd=i,host=01:00.0,addr=%s",
                 *bad);
        parse_fails(line, "'d'|addr=");
    }
}

#define UUID "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
#define MDEV "-device vfio-pci,sysfsdev=/sys/bus/mdev/devices/" UUID ",iommufd=i"

static void device_sources(void **state)
{
    struct config config;

    parse_ok(&config, IOMMU MDEV ",id=tty0 -device vfio-pci,fd=7,id=nic0,iommufd=i "
                                 "-object iommufd,id=j,fd=8 -device vfio-pci,host=01:00.0");
    assert_string_equal(config.devices[0].sysfsdev, "/sys/bus/mdev/devices/" UUID);
    assert_string_equal(config.devices[0].host, "");
    assert_int_equal(config.devices[0].fd, CONFIG_FD_NONE);
    assert_int_equal(config.devices[1].fd, 7);
    assert_int_equal(config.devices[2].fd, CONFIG_FD_NONE);
    assert_int_equal(config.iommus[0].fd, CONFIG_FD_NONE);
    assert_int_equal(config.iommus[1].fd, 8);
    parse_ok(&config, IOMMU "-device vfio-pci,sysfsdev=/sys/devices/x//,iommufd=i");
    assert_string_equal(config.devices[0].sysfsdev, "/sys/devices/x");

    parse_fails(IOMMU MDEV ",host=01:00.0", "host=|sysfsdev=|exclude");
    parse_fails(IOMMU MDEV ",id=d,fd=3", "'d'|sysfsdev=|fd=|exclude");
    parse_fails(IOMMU "-device vfio-pci,id=d,host=01:00.0,fd=3,iommufd=i", "'d'|host=|fd=");
    parse_fails(IOMMU "-device vfio-pci,id=d,sysfsdev=relative,iommufd=i", "'d'|sysfsdev=");
    parse_fails(IOMMU "-device vfio-pci,id=d,sysfsdev=,iommufd=i", "sysfsdev");
    parse_fails(IOMMU "-device vfio-pci,id=d,sysfsdev=/,iommufd=i", "'d'|sysfsdev=");
    parse_fails(IOMMU "-device vfio-pci,id=d,fd=3", "'d'|fd=|iommufd=");
    parse_fails(IOMMU MDEV ",id=d " MDEV ",id=e", "'d'|'e'|" UUID);
    parse_fails(IOMMU "-device vfio-pci,id=d,fd=3,iommufd=i -device vfio-pci,id=e,fd=3,iommufd=i",
                "fd=3");
    parse_fails("-kernel k -object iommufd,id=i,fd=3 -device vfio-pci,id=d,fd=3,iommufd=i", "fd=3");
    for (const char **bad = (const char *[]){"0", "2", "-1", "x", "", "4294967296", "3x", NULL};
         *bad; bad++) {
        char line[128];

        snprintf(line, sizeof(line), IOMMU "-device vfio-pci,id=d,iommufd=i,fd=%s", *bad);
        parse_fails(line, "fd");
        snprintf(line, sizeof(line), "-kernel k -object iommufd,id=i,fd=%s", *bad);
        parse_fails(line, "fd");
    }
}

static void device_names(void **state)
{
    struct config config;

    parse_ok(&config, IOMMU MDEV " -device vfio-pci,fd=7,iommufd=i -device vfio-pci,fd=8,id=nic0,"
                                 "iommufd=i -device vfio-pci,host=AB:00.0");
    assert_string_equal(config.devices[0].id, UUID);
    assert_true(config_is_named(&config.devices[0]));
    assert_string_equal(config.devices[1].id, "fd:7");
    assert_false(config_is_named(&config.devices[1]));
    assert_string_equal(config.devices[2].id, "nic0");
    assert_true(config_is_named(&config.devices[2]));
    assert_string_equal(config.devices[3].id, "0000:ab:00.0");
    assert_true(config_is_named(&config.devices[3]));

    /* a name that somebody else was given, and directories that are no names */
    parse_fails(IOMMU "-device vfio-pci,sysfsdev=/sys/x,iommufd=i "
                      "-device vfio-pci,host=01:00.0,id=x,iommufd=i",
                "two devices|'x'");
    parse_fails(IOMMU "-device vfio-pci,sysfsdev=/sys/a=b,iommufd=i", "id");
    parse_fails(IOMMU "-device vfio-pci,sysfsdev=/sys/"
                      "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa,iommufd=i",
                "id");
    parse_fails(IOMMU "-device vfio-pci,fd=handed-over,iommufd=i", "id");
}

/* What an inherited descriptor is, is for the kernel to say; that it is one, is not. */
static void inherited_descriptors(void **state)
{
    int fd = dup(STDIN_FILENO);
    struct error error = {0};
    struct config config;
    char line[256];

    snprintf(line, sizeof(line), "-kernel k -object iommufd,id=i,fd=%d", fd);
    parse_ok(&config, line);
    assert_int_equal(config_claim_descriptors(&config, &error), 0);
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);

    config.incoming = true; /* has the guest's, and no use for another one */
    assert_int_equal(config_claim_descriptors(&config, &error), 0);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
    assert_int_equal(config_claim_descriptors(&config, &error), 0);

    config.incoming = false;
    assert_int_equal(config_claim_descriptors(&config, &error), -EBADF);
    assert_non_null(strstr(error.message, "iommufd 'i'"));
    parse_ok(&config,
             "-kernel k -object iommufd,id=i -device vfio-pci,id=d,fd=handed-over,iommufd=i");
    assert_int_equal(config_claim_descriptors(&config, &error), -EBADF);
    assert_non_null(strstr(error.message, "vfio-pci 'd'"));
}

/* All slots in use, and one device too many. */
static void full_bus(void **state)
{
    char words[CONFIG_DEVICES_MAX + 1][64];
    const char *argv[4 + 2 * (CONFIG_DEVICES_MAX + 1)] = {"-kernel", "k", "-object",
                                                          "iommufd,id=i"};
    struct error error = {0};
    struct config config;

    for (int i = 0; i <= CONFIG_DEVICES_MAX; i++) {
        snprintf(words[i], sizeof(words[i]), "vfio-pci,id=d%d,host=%02x:00.0,iommufd=i", i, i);
        argv[4 + 2 * i] = "-device";
        argv[5 + 2 * i] = words[i];
    }
    assert_int_equal(config_parse(&config, 4 + 2 * CONFIG_DEVICES_MAX, argv, &error), 0);
    assert_int_equal(config.devices[30].devfn, 31 << 3);
    assert_int_equal(config_parse(&config, 6 + 2 * CONFIG_DEVICES_MAX, argv, &error), -EINVAL);
    assert_non_null(strstr(error.message, "more than 31"));
}

static void long_values(void **state)
{
    char value[CONFIG_CMDLINE_SIZE + 1];
    const char *argv[] = {"-kernel", "k", "-append", value};
    struct error error = {0};
    struct config config;

    memset(value, 'x', sizeof(value));
    value[CONFIG_CMDLINE_SIZE - 1] = '\0';
    assert_int_equal(config_parse(&config, 4, argv, &error), 0);
    assert_string_equal(config.append, value);
    value[CONFIG_CMDLINE_SIZE - 1] = 'x';
    value[CONFIG_CMDLINE_SIZE] = '\0';
    assert_int_equal(config_parse(&config, 4, argv, &error), -EINVAL);
    assert_non_null(strstr(error.message, "-append"));
}

static void help(void **state)
{
    struct config config;
    char *text = NULL;
    size_t size;
    FILE *out;

    parse_ok(&config, "-help");
    assert_true(config.help);
    parse_ok(&config, "-m 1G --help -nonsense");
    assert_true(config.help);
    parse_ok(&config, "-h");
    assert_true(config.help);
    parse_ok(&config, "-version");
    assert_true(config.version);
    out = open_memstream(&text, &size);
    config_print_help(out);
    fclose(out);
    assert_non_null(strstr(text, "  -incoming "));
    assert_non_null(strstr(text, "  -S\n"));
    free(text);
}

/* What config_to_options() writes reads back to the same, except what never travels. */
static void round_trip_of(const char *line)
{
    struct config first, second;
    struct error error = {0};
    char **strings;
    size_t count;

    parse_ok(&first, line);
    assert_int_equal(config_to_options(&first, &strings, &count, &error), 0);
    assert_int_equal(config_parse(&second, (int)count, (const char *const *)strings, &error), 0);
    config_free_options(strings, count);
    first.start_paused = false;
    memset(first.given, 0, sizeof(first.given));
    memset(second.given, 0, sizeof(second.given));
    assert_memory_equal(&first, &second, sizeof(first));
}

#define WEB1                                                                                       \
    "-name web1 -machine memory-backend=ram0 -object "                                             \
    "memory-backend-memfd,id=ram0,size=4G,hugetlb=on,prealloc=on -smp 8 "                          \
    "-object iommufd,id=i -object iommufd,id=j -device vfio-pci,id=d,host=01:00.0,iommufd=i "      \
    "-device vfio-pci,id=e,host=02:00.0,iommufd=j,addr=7 -kernel /k,x -initrd /i -append 'a, "     \
    "b,c' "                                                                                        \
    "-serial unix:/s,server=on -qmp unix:/q,,r,server=on -pidfile /p -S"

/* A device in each kind of address space. */
#define SPACES                                                                                     \
    "-kernel k -object iommufd,id=i -device vfio-pci,id=d,host=01:00.0,iommufd=i,ioas=second "     \
    "-device vfio-pci,id=e,host=02:00.0,iommufd=i -device vfio-pci,id=f,host=03:00.0 "             \
    "-device vfio-pci,id=g,host=04:00.0,container=other,p2p=off "                                  \
    "-device vfio-pci,id=h,host=05:00.0,iommufd=i,hwpt=own "                                       \
    "-device vfio-pci,id=l,host=06:00.0,iommufd=i,hwpt=ioas,p2p=on "

/* Devices that are named after what they are on the host. */
#define NAMELESS                                                                                   \
    IOMMU MDEV " -device vfio-pci,host=01:00.0 -device vfio-pci,fd=57,iommufd=i "                  \
               "-device vfio-pci,sysfsdev=/sys/a,,b/c "

#define DESCRIPTORS "-kernel k -object iommufd,id=i,fd=57 -device vfio-pci,id=d,fd=577,iommufd=i "

static void address_spaces(void **state)
{
    struct config config;

    parse_ok(&config, SPACES);
    assert_string_equal(config.devices[0].iommufd, "i");
    assert_string_equal(config.devices[0].ioas, "second");
    assert_string_equal(config.devices[1].ioas, "");
    assert_string_equal(config.devices[2].iommufd, "");
    assert_string_equal(config.devices[2].container, "");
    assert_string_equal(config.devices[3].container, "other");
    assert_int_equal(config.devices[0].hwpt, IOMMU_HWPT_SHARED);
    assert_int_equal(config.devices[4].hwpt, IOMMU_HWPT_OWN);
    assert_int_equal(config.devices[5].hwpt, IOMMU_HWPT_IOAS);
    assert_true(config.devices[0].p2p && config.devices[5].p2p && !config.devices[3].p2p);
}

/* What leaves a process says that there is a descriptor, never which. */
static void definition_of_descriptors(void **state)
{
    struct error error = {0};
    struct config config;
    char **strings;
    size_t count;
    unsigned found = 0;

    parse_ok(&config, DESCRIPTORS);
    assert_int_equal(config_to_options(&config, &strings, &count, &error), 0);
    for (size_t i = 0; i < count; i++) {
        found += strcmp(strings[i], "iommufd,id=i,fd=handed-over") == 0;
        found += strcmp(strings[i], "vfio-pci,id=d,fd=handed-over,iommufd=i,addr=01.0") == 0;
        assert_null(strstr(strings[i], "57"));
    }
    assert_int_equal(found, 2);
    assert_int_equal(config_parse(&config, (int)count, (const char *const *)strings, &error), 0);
    assert_int_equal(config.iommus[0].fd, CONFIG_FD_HANDED_OVER);
    assert_int_equal(config.devices[0].fd, CONFIG_FD_HANDED_OVER);
    assert_true(config_is_named(&config.devices[0]));
    config_free_options(strings, count);
}

static void round_trip(void **state)
{
    round_trip_of("-kernel k");
    round_trip_of("-kernel k -m 20K -machine baton");
    round_trip_of(WEB1);
    round_trip_of(SPACES);
    round_trip_of(NAMELESS);
}

static void compare(const char *running_line, const char *given_line, const char *expected)
{
    struct config running, given;
    struct error error = {0};
    char line[4096];
    int ret;

    parse_ok(&running, running_line);
    snprintf(line, sizeof(line),
             "-incoming defer -incoming channel-type=cpr,addr.transport=socket,"
             "addr.type=unix,addr.path=a %s",
             given_line);
    parse_ok(&given, line);
    ret = config_compare(&running, &given, &error);
    if (expected == NULL) {
        if (ret != 0)
            fail_msg("'%s': %s", given_line, error.message);
        return;
    }
    assert_int_equal(ret, -EINVAL);
    if (strstr(error.message, expected) == NULL)
        fail_msg("'%s': message '%s' lacks '%s'", given_line, error.message, expected);
}

static void comparison(void **state)
{
    compare(WEB1, "", NULL);
    compare(WEB1, WEB1, NULL);
    compare(WEB1, "-name web1 -smp 8 -m 4G", NULL);
    compare(WEB1, "-serial pty -qmp unix:/other,server=on -pidfile /other", NULL);
    compare(WEB1, "-name web2", "-name differs");
    compare(WEB1, "-smp 4", "-smp differs: the running guest has 8, this process was given 4");
    compare(WEB1, "-m 2G", "-m (bytes) differs");
    compare(WEB1, "-kernel /other", "-kernel differs");
    compare(WEB1, "-initrd /other", "-initrd differs");
    compare(WEB1, "-append other", "-append differs");
    compare(WEB1, "-machine memory-backend=r -object memory-backend-memfd,id=r,size=4G",
            "memory-backend=");
    compare(WEB1, "-machine memory-backend=ram0 -object memory-backend-memfd,id=ram0,size=4G",
            "hugetlbsize=");
    compare(WEB1,
            "-machine memory-backend=ram0 -object "
            "memory-backend-memfd,id=ram0,size=4G,hugetlb=on",
            "prealloc=");
    compare(WEB1, "-object iommufd,id=i", "iommufd,id=j is missing");
    compare(WEB1, "-object iommufd,id=i -object iommufd,id=j -object iommufd,id=k", "id=k");
#define IOMMU_FD "-object iommufd,id=i,fd=3 "
#define OBJECTS  "-object iommufd,id=j -object iommufd,id=i "
#define D        "-device vfio-pci,id=d,host=01:00.0,iommufd=i "
#define E        "-device vfio-pci,id=e,host=02:00.0,iommufd=j,addr=7 "
    compare(WEB1, OBJECTS E D, NULL); /* another order, the same slots */
    compare(WEB1, OBJECTS D, "id=e is missing");
    compare(WEB1, OBJECTS D E "-device vfio-pci,id=f,host=03:00.0,iommufd=j", "id=f");
    compare(WEB1, OBJECTS D "-device vfio-pci,id=e,host=02:00.0,iommufd=j", "id=e: addr= differs");
    compare(WEB1, OBJECTS E "-device vfio-pci,id=d,host=03:00.0,iommufd=i", "id=d: host= differs");
    compare(WEB1, OBJECTS E "-device vfio-pci,id=d,host=01:00.0,iommufd=j", "id=d: iommufd=");
    compare(WEB1, OBJECTS E "-device vfio-pci,id=d,host=01:00.0", "id=d: iommufd=");
    compare(WEB1, OBJECTS E "-device vfio-pci,id=d,host=01:00.0,iommufd=i,ioas=x", "id=d: ioas=");
    compare(WEB1, OBJECTS E "-device vfio-pci,id=d,host=01:00.0,iommufd=i,hwpt=own", "id=d: hwpt=");
    compare(WEB1, OBJECTS E "-device vfio-pci,id=d,host=01:00.0,iommufd=i,p2p=off", "id=d: p2p=");
    compare("-kernel k -device vfio-pci,id=d,host=01:00.0",
            "-device vfio-pci,id=d,host=01:00.0,container=c", "id=d: container=");
    compare(NAMELESS, NAMELESS, NULL);
    compare(DESCRIPTORS, DESCRIPTORS, NULL);
    compare(DESCRIPTORS, "-object iommufd,id=i,fd=3 -device vfio-pci,id=d,fd=4,iommufd=i", NULL);
    compare(DESCRIPTORS,
            "-object iommufd,id=i,fd=handed-over -device vfio-pci,id=d,fd=handed-over,iommufd=i",
            NULL);
    compare(DESCRIPTORS, "-object iommufd,id=i", "id=i: fd= differs");
    compare(DESCRIPTORS, IOMMU_FD "-device vfio-pci,id=d,host=01:00.0,iommufd=i",
            "id=d: fd= differs");
    compare(DESCRIPTORS, IOMMU_FD "-device vfio-pci,fd=4,iommufd=i", "id=d is missing");
    compare("-kernel k -device vfio-pci,id=d,host=01:00.0", "-device vfio-pci,host=01:00.0", NULL);
    compare("-kernel k -device vfio-pci,host=01:00.0", "-device vfio-pci,host=02:00.0",
            "id=0000:01:00.0 is missing");
    compare("-kernel k -device vfio-pci,id=d,host=01:00.0",
            "-device vfio-pci,id=d,sysfsdev=/sys/bus/pci/devices/0000:01:00.0",
            "id=d: host= differs");
}

static void absolute_paths(void **state)
{
    struct error error = {0};
    struct config config;

    parse_ok(&config, "-kernel k -initrd /i -qmp unix:q,server -pidfile p -serial file:log");
    assert_int_equal(config_make_paths_absolute(&config, "/dir", &error), 0);
    assert_string_equal(config.kernel, "/dir/k");
    assert_string_equal(config.initrd, "/i");
    assert_string_equal(config.qmp[0], "/dir/q");
    assert_string_equal(config.pidfile, "/dir/p");
    assert_string_equal(config.serial, "file:/dir/log");
    parse_ok(&config, "-kernel k");
    assert_int_equal(config_make_paths_absolute(&config, "/dir", &error), 0);
    assert_string_equal(config.initrd, "");
    assert_string_equal(config.serial, "none");
    memset(config.initrd, 'x', CONFIG_PATH_SIZE - 3);
    config.initrd[CONFIG_PATH_SIZE - 3] = '\0';
    assert_int_equal(config_make_paths_absolute(&config, "/dir", &error), -ENAMETOOLONG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),
        cmocka_unit_test(everything),
        cmocka_unit_test(tracing),
        cmocka_unit_test(sandbox),
        cmocka_unit_test(spellings),
        cmocka_unit_test(json),
        cmocka_unit_test(device_sources),
        cmocka_unit_test(device_names),
        cmocka_unit_test(inherited_descriptors),
        cmocka_unit_test(definition_of_descriptors),
        cmocka_unit_test(incoming),
        cmocka_unit_test(unknown),
        cmocka_unit_test(missing_and_wrong),
        cmocka_unit_test(memory_backends),
        cmocka_unit_test(devices),
        cmocka_unit_test(full_bus),
        cmocka_unit_test(long_values),
        cmocka_unit_test(help),
        cmocka_unit_test(address_spaces),
        cmocka_unit_test(round_trip),
        cmocka_unit_test(comparison),
        cmocka_unit_test(absolute_paths),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
