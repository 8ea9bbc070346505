/* SPDX-License-Identifier: Apache-2.0
 *
 * What QMP messages mean: the greeting, requests and their checks, answers. Called by the clients'
 * input on the main thread; whatever arrives gets exactly one answer.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "control/qmp_internal.h"

#define CLASS_GENERIC   "GenericError"
#define CLASS_NOT_FOUND "CommandNotFound"

/* A request under way. */
struct request {
    struct qmp_client *client;
    const char *name;
    json_t *arguments; /* owned, never NULL once parsed */
    const json_t *id;
    const char *error_class;
    struct error error;
    json_t *result;
};

json_t *qmp_greeting(void)
{
    int major = 0, minor = 0, micro = 0;

    sscanf(BATON_VERSION, "%d.%d.%d", &major, &minor, &micro);
    return json_pack("{s:{s:{s:{s:i,s:i,s:i},s:s},s:[]}}", "QMP", "version", "qemu", "micro", micro,
                     "minor", minor, "major", major, "package", "baton-" BATON_VERSION,
                     "capabilities");
}

static int reject(struct request *request, const char *error_class, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int reject(struct request *request, const char *error_class, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    error_set_list(&request->error, EINVAL, format, args);
    va_end(args);
    request->error_class = error_class;
    return -EINVAL;
}

/* Takes the request object apart. */
static int parse_request(struct request *request, json_t *object)
{
    const char *key;
    json_t *value;

    if (!json_is_object(object))
        return reject(request, CLASS_GENERIC, "QMP input must be a JSON object");
    request->id = json_object_get(object, "id");
    json_object_foreach(object, key, value)
    {
        if (strcmp(key, "execute") == 0 && json_is_string(value))
            request->name = json_string_value(value);
        else if (strcmp(key, "arguments") == 0 && json_is_object(value))
            request->arguments = json_incref(value);
        else if (strcmp(key, "execute") == 0)
            return reject(request, CLASS_GENERIC, "QMP input member '%s' must be a string", key);
        else if (strcmp(key, "arguments") == 0)
            return reject(request, CLASS_GENERIC, "QMP input member '%s' must be an object", key);
        else if (strcmp(key, "exec-oob") == 0)
            return reject(request, CLASS_GENERIC,
                          "'%s' is not available: no capability 'oob' was offered", key);
        else if (strcmp(key, "id") != 0)
            return reject(request, CLASS_GENERIC, "QMP input member '%.100s' is unexpected", key);
    }
    if (request->name == NULL)
        return reject(request, CLASS_GENERIC, "QMP input lacks member '%s'", "execute");
    if (request->arguments == NULL)
        request->arguments = json_object();
    return 0;
}

static bool has_type(const json_t *value, enum qmp_type type)
{
    switch (type) {
    case QMP_STRING:
        return json_is_string(value);
    case QMP_BOOL:
        return json_is_boolean(value);
    case QMP_INTEGER:
        return json_is_integer(value);
    case QMP_ARRAY:
        return json_is_array(value);
    case QMP_OBJECT:
        return json_is_object(value);
    }
    return false;
}

static const struct qmp_argument *find_argument(const struct qmp_argument *table, const char *name)
{
    for (; table->name; table++) {
        if (strcmp(table->name, name) == 0)
            return table;
    }
    return NULL;
}

static int check_arguments(struct request *request, const struct qmp_argument *table)
{
    static const char *const wrong_type[] = {
        [QMP_STRING] = "parameter '%s' must be a string",
        [QMP_BOOL] = "parameter '%s' must be true or false",
        [QMP_INTEGER] = "parameter '%s' must be a whole number",
        [QMP_ARRAY] = "parameter '%s' must be an array",
        [QMP_OBJECT] = "parameter '%s' must be an object",
    };
    const char *key;
    json_t *value;

    json_object_foreach(request->arguments, key, value)
    {
        const struct qmp_argument *argument = find_argument(table, key);

        if (argument == NULL)
            return reject(request, CLASS_GENERIC, "parameter '%.100s' is unexpected", key);
        if (!has_type(value, argument->type))
            return reject(request, CLASS_GENERIC, wrong_type[argument->type], key);
    }
    for (; table->name; table++) {
        if (table->required && json_object_get(request->arguments, table->name) == NULL)
            return reject(request, CLASS_GENERIC, "parameter '%s' is missing", table->name);
    }
    return 0;
}

static int execute_capabilities(struct request *request)
{
    static const struct qmp_argument table[] = {{"enable", QMP_ARRAY, false}, {NULL}};
    const json_t *enable;
    int ret = check_arguments(request, table);

    if (ret < 0)
        return ret;
    if (request->client->negotiated)
        return reject(request, CLASS_NOT_FOUND,
                      "capabilities negotiation is already complete, '%s' was ignored",
                      request->name);
    enable = json_object_get(request->arguments, "enable");
    if (json_array_size(enable) > 0) {
        const char *first = json_string_value(json_array_get(enable, 0));

        return reject(request, CLASS_GENERIC, "capability '%.100s' is not available",
                      first ? first : "(not a string)");
    }
    request->client->negotiated = true;
    return 0;
}

static int execute_query_commands(struct request *request)
{
    static const struct qmp_argument none[] = {{NULL}};
    const struct qmp_server *server = request->client->server;
    int ret = check_arguments(request, none);

    if (ret < 0)
        return ret;
    request->result =
        json_pack("[{s:s},{s:s}]", "name", "qmp_capabilities", "name", "query-commands");
    for (size_t i = 0; i < server->command_count; i++)
        json_array_append_new(request->result,
                              json_pack("{s:s}", "name", server->commands[i].name));
    return 0;
}

static int execute(struct request *request)
{
    const struct qmp_server *server = request->client->server;
    int ret;

    if (strcmp(request->name, "qmp_capabilities") == 0)
        return execute_capabilities(request);
    if (!request->client->negotiated)
        return reject(request, CLASS_NOT_FOUND,
                      "expecting capabilities negotiation with 'qmp_capabilities' before command "
                      "'%.100s'",
                      request->name);
    if (strcmp(request->name, "query-commands") == 0)
        return execute_query_commands(request);
    for (size_t i = 0; i < server->command_count; i++) {
        const struct qmp_command *command = &server->commands[i];

        if (strcmp(command->name, request->name) != 0)
            continue;
        ret = check_arguments(request, command->arguments);
        if (ret < 0)
            return ret;
        request->error_class = CLASS_GENERIC;
        return command->execute(server->opaque, request->arguments, &request->result,
                                &request->error);
    }
    return reject(request, CLASS_NOT_FOUND, "the command '%.100s' has not been found",
                  request->name);
}

static void answer(struct request *request, int ret)
{
    json_t *message;

    if (ret < 0)
        message = json_pack("{s:{s:s,s:s}}", "error", "class", request->error_class, "desc",
                            request->error.message);
    else
        message = json_pack("{s:o}", "return", request->result ?: json_object());
    assert(message != NULL);
    if (request->id)
        json_object_set(message, "id", (json_t *)request->id);
    qmp_client_send(request->client, message);
    json_decref(message);
}

void qmp_input(void *opaque, json_t *value, const char *problem)
{
    struct request request = {.client = opaque, .error_class = CLASS_GENERIC};
    int ret;

    if (request.client->dead)
        return;
    if (value == NULL)
        ret = error_set(&request.error, EINVAL, "%s", problem);
    else
        ret = parse_request(&request, value);
    if (ret == 0)
        ret = execute(&request);
    answer(&request, ret);
    json_decref(request.arguments);
}
