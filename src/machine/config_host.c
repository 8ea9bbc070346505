/* SPDX-License-Identifier: Apache-2.0
 *
 * Options that only the host side sees: console, control, how the process starts. See
 * config_parser.h.
 */
#include <errno.h>
#include <string.h>
#include <sys/un.h>

#include "base/trace.h"
#include "base/util.h"
#include "machine/config_parser.h"
#include "machine/properties.h"

int option_serial(struct parser *parser, const char *value)
{
    struct config *config = parser->config;

    if (config->given[CONFIG_OPTION_SERIAL])
        return error_set(parser->error, EINVAL,
                         "-serial: baton has one serial port, and it was "
                         "given '%s' before '%s'",
                         config->serial, value);
    config->given[CONFIG_OPTION_SERIAL] = true;
    return config_copy(parser, "-serial", config->serial, sizeof(config->serial), value);
}

int option_nographic(struct parser *parser, const char *value)
{
    parser->nographic = true;
    return 0;
}

int option_display(struct parser *parser, const char *value)
{
    if (strcmp(value, "none") == 0)
        return 0;
    return error_set(parser->error, EINVAL, "-display: baton has no display '%s', only 'none'",
                     value);
}

int option_nodefaults(struct parser *parser, const char *value)
{
    return 0;
}

/* server=on, or "server"; wait=off, or "nowait", or nothing. */
static int read_qmp_flags(struct parser *parser, struct properties *p)
{
    bool server = false, wait = false, nowait = false;
    int ret = properties_bool(p, "server", &server, parser->error);

    if (ret == 0)
        ret = properties_bool(p, "wait", &wait, parser->error);
    if (ret == 0)
        ret = properties_bool(p, "nowait", &nowait, parser->error);
    if (ret == 0)
        ret = properties_finish(p, parser->error);
    if (ret < 0)
        return ret;
    if (!server)
        return error_set(parser->error, EINVAL,
                         "-qmp: add ',server=on': baton listens, it does "
                         "not connect");
    if (wait && !nowait)
        return error_set(parser->error, EINVAL,
                         "-qmp: wait=on is not available: use wait=off, and "
                         "-S to hold the guest until a client says cont");
    return 0;
}

int option_qmp(struct parser *parser, const char *value)
{
    struct config *config = parser->config;
    struct properties p;
    const char *address;
    int ret;

    if (config->qmp_count == CONFIG_QMP_MAX)
        return error_set(parser->error, EINVAL, "-qmp: more than %d sockets", CONFIG_QMP_MAX);
    ret = properties_parse(&p, "-qmp", value, "address", parser->error);
    if (ret < 0)
        return ret;
    address = properties_get(&p, "address");
    if (address == NULL || strncmp(address, "unix:", 5) != 0)
        ret = error_set(parser->error, EINVAL,
                        "-qmp: expected unix:PATH,server=on,wait=off, not "
                        "'%s'",
                        value);
    else
        ret = config_copy(parser, "-qmp", config->qmp[config->qmp_count++], CONFIG_PATH_SIZE,
                          address + 5);
    if (ret == 0)
        ret = read_qmp_flags(parser, &p);
    properties_clear(&p);
    config->given[CONFIG_OPTION_QMP] = true;
    return ret;
}

int option_pidfile(struct parser *parser, const char *value)
{
    parser->config->given[CONFIG_OPTION_PIDFILE] = true;
    return config_copy(parser, "-pidfile", parser->config->pidfile, CONFIG_PATH_SIZE, value);
}

int option_start_paused(struct parser *parser, const char *value)
{
    parser->config->start_paused = true;
    return 0;
}

static int expect(struct parser *parser, struct properties *p, const char *key, const char *value)
{
    const char *text = properties_get(p, key);

    if (text != NULL && strcmp(text, value) == 0)
        return 0;
    return error_set(parser->error, EINVAL, "-incoming: the cpr channel needs %s '%s'%s%s%s", key,
                     value, text ? ", not '" : "", text ? text : "", text ? "'" : "");
}

static int read_cpr_channel(struct parser *parser, struct properties *p)
{
    struct config *config = parser->config;
    int ret = expect(parser, p, "addr.transport", "socket");

    if (ret == 0)
        ret = expect(parser, p, "addr.type", "unix");
    if (ret < 0)
        return ret;
    if (config->incoming_cpr[0])
        return error_set(parser->error, EINVAL, "-incoming: a second cpr channel");
    if (properties_get(p, "addr.path") == NULL)
        return error_set(parser->error, EINVAL, "-incoming: the cpr channel needs addr.path");
    ret = properties_string(p, "addr.path", config->incoming_cpr,
                            sizeof(((struct sockaddr_un *)0)->sun_path), parser->error);
    return ret < 0 ? ret : properties_finish(p, parser->error);
}

/* The main channel carries QEMU's device state. baton needs one channel for everything. */
static int read_main_channel(struct parser *parser, const char *value)
{
    if (parser->main_channel)
        return error_set(parser->error, EINVAL, "-incoming: a second main channel '%s'", value);
    parser->main_channel = true;
    return 0;
}

static bool is_main_uri(const char *value)
{
    static const char *const prefixes[] = {"tcp:", "unix:", "fd:", "vsock:"};

    for (unsigned i = 0; i < ARRAY_SIZE(prefixes); i++) {
        if (strncmp(value, prefixes[i], strlen(prefixes[i])) == 0)
            return true;
    }
    return strcmp(value, "defer") == 0;
}

int option_incoming(struct parser *parser, const char *value)
{
    struct properties p;
    const char *type;
    int ret;

    parser->config->incoming = true;
    if (is_main_uri(value))
        return read_main_channel(parser, value);
    ret = properties_parse(&p, "-incoming", value, NULL, parser->error);
    if (ret < 0)
        return ret;
    type = properties_get(&p, "channel-type");
    if (type != NULL && strcmp(type, "cpr") == 0)
        ret = read_cpr_channel(parser, &p);
    else if (type != NULL && strcmp(type, "main") == 0)
        ret = read_main_channel(parser, value);
    else
        ret = error_set(parser->error, EINVAL,
                        "-incoming: expected a channel of type cpr or main, "
                        "or tcp:, unix: or defer for the main channel, not '%s'",
                        value);
    properties_clear(&p);
    return ret;
}

/* QEMU's syntax, less its files of events. A "-" in front of a pattern switches off. */
static int add_trace(struct parser *parser, struct properties *p)
{
    struct config *config = parser->config;
    const char *pattern = properties_get(p, "enable");
    struct error unknown;
    int ret;

    if (pattern == NULL)
        return error_set(parser->error, EINVAL,
                         "-trace: a pattern is missing: -trace help lists the events");
    if (strcmp(pattern, "help") == 0) {
        config->trace_help = true;
        return 0;
    }
    if (config->trace_count == CONFIG_TRACES_MAX)
        return error_set(parser->error, EINVAL, "-trace: more than %d patterns", CONFIG_TRACES_MAX);
    if (trace_check(pattern + (pattern[0] == '-'), &unknown) < 0)
        return error_set(parser->error, EINVAL, "-trace: %s: -trace help lists them",
                         unknown.message);
    ret = properties_string(p, "enable", config->traces[config->trace_count], CONFIG_ID_SIZE,
                            parser->error);
    if (ret == 0)
        config->trace_count++;
    return ret;
}

int option_trace(struct parser *parser, const char *value)
{
    struct properties p;
    int ret = properties_parse(&p, "-trace", value, "enable", parser->error);

    if (ret < 0)
        return ret;
    ret = add_trace(parser, &p);
    if (ret == 0)
        ret = properties_finish(&p, parser->error);
    properties_clear(&p);
    return ret;
}

int option_log_file(struct parser *parser, const char *value)
{
    return config_copy(parser, "-D", parser->config->log_file, CONFIG_PATH_SIZE, value);
}

/* QEMU's syntax, less its properties: what they switch off is not on the lists in the first place.
 */
int option_sandbox(struct parser *parser, const char *value)
{
    struct properties p;
    bool enable = true;
    int ret = properties_parse(&p, "-sandbox", value, "enable", parser->error);

    if (ret < 0)
        return ret;
    ret = properties_bool(&p, "enable", &enable, parser->error);
    if (ret == 0)
        ret = properties_finish(&p, parser->error);
    properties_clear(&p);
    parser->config->no_sandbox = !enable;
    return ret;
}

int option_help(struct parser *parser, const char *value)
{
    parser->config->help = true;
    return 0;
}

int option_version(struct parser *parser, const char *value)
{
    parser->config->version = true;
    return 0;
}
