/* core.redis: call, pipeline, eval, subscribe, dedicated. The contract of answers: nil bulk = json.null, integers are
 * numbers, status and bulk are strings, arrays are tables, a refused command inside an array is {err = text}. */
#include "script/bind_redis.h"

#include <lauxlib.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "runtime/config.h"
#include "script/bind.h"
#include "script/task.h"
#include "stores/redis_sub.h"

enum {
    STACK_ARGS = 16,
    MAX_COMMANDS = 4096, /* of one pipeline */
    MAX_SCRIPTS = 512,
    NUMBER = 32, /* text of a double */
};

#define DEDICATED "core.redis.dedicated"
#define CHANNEL "core.redis.channel"
#define MAX_EXACT 9007199254740992.0

static struct redis *shared;
static struct redis_sub *listener;
static char scripts_key; /* registry[&scripts_key] = {[text] = script userdata} */
static bool from_lua;    /* a close or reset is under way in Lua code: who is answered by it resumes later */

struct redis *redis_shared(struct error *err) {
    if (shared) return shared;
    struct str url = str_of(config_str("REDIS_URL"));
    if (!url.len) {
        error_set(err, ERR_UNAVAILABLE, "REDIS_URL is not set");
        return NULL;
    }
    shared = redis_new(url, &(struct redis_options){.name = "kasma"}, err);
    return shared;
}

/* ---- answers ---- */

static void push_reply(lua_State *L, const struct redis_reply *r) {
    luaL_checkstack(L, 4, "a Redis reply");
    switch (r->type) {
    case REDIS_NIL:
        lua_pushlightuserdata(L, NULL);
        return;
    case REDIS_INTEGER:
        lua_pushnumber(L, (lua_Number)r->integer);
        return;
    case REDIS_STRING:
    case REDIS_STATUS:
        lua_pushlstring(L, r->text.at, r->text.len);
        return;
    case REDIS_ERROR:
        lua_createtable(L, 0, 1);
        lua_pushlstring(L, r->text.at, r->text.len);
        lua_setfield(L, -2, "err");
        return;
    case REDIS_ARRAY:
        lua_createtable(L, (int)r->count, 0);
        for (size_t i = 0; i < r->count; i++) {
            push_reply(L, &r->items[i]);
            lua_rawseti(L, -2, (int)i + 1);
        }
        return;
    }
}

struct outcome {
    const struct redis_reply *reply;
    const struct error *err;
};

static int push_outcome(lua_State *L, void *data) {
    const struct outcome *o = data;
    if (o->err) return task_fail(L, o->err);
    push_reply(L, o->reply);
    return 1;
}

static void answer(struct task *t, const struct redis_reply *reply, const struct error *err) {
    struct outcome o = {reply, err};
    if (from_lua) {
        task_answer_later(t, push_outcome, &o);
    } else {
        task_answer(t, push_outcome, &o);
    }
}

static void done(void *data, const struct redis_reply *reply, const struct error *err) {
    answer(data, reply, err);
}

static void cancel(void *op) {
    redis_op_cancel(op);
}

/* ---- arguments ---- */

/* A number as Redis wants it: integers in full, others so that they read back the same. */
static size_t number_text(lua_Number n, char *out) {
    bool whole = floor(n) == n && fabs(n) <= MAX_EXACT;
    int len = snprintf(out, NUMBER, whole ? "%.0f" : "%.17g", n);
    return len > 0 ? (size_t)len : 0;
}

/* The value at `index` as an argument. `number` is NUMBER bytes that live as long as the argument. Strings must stay
 * reachable for Lua meanwhile. Raises on anything else, naming the argument: a nil is a bug of the caller. */
static struct str take_arg(lua_State *L, int index, char *number, int position) {
    struct str s = {0};
    int type = lua_type(L, index);
    if (type == LUA_TSTRING) {
        s.at = lua_tolstring(L, index, &s.len);
    } else if (type == LUA_TNUMBER) {
        s = str_n(number, number_text(lua_tonumber(L, index), number));
    } else {
        luaL_error(L, "Redis argument %d is %s, not a string or a number", position, luaL_typename(L, index));
    }
    return s;
}

/* Room for `count` arguments, in memory that Lua owns: an error raised later loses nothing. Pushes one value. */
static struct str *args_room(lua_State *L, size_t count, char **numbers) {
    struct str *args = lua_newuserdata(L, count * (sizeof *args + NUMBER) + 1);
    *numbers = (char *)(args + count);
    return args;
}

/* Appends the elements of the array at `table` to args[*count...]. */
static void take_array(lua_State *L, int table, struct str *args, char *numbers, size_t *count) {
    size_t n = lua_objlen(L, table);
    for (size_t i = 1; i <= n; i++) {
        lua_rawgeti(L, table, (int)i);
        args[*count] = take_arg(L, -1, numbers + *count * NUMBER, (int)i);
        ++*count;
        lua_pop(L, 1); /* the table holds on to it */
    }
}

/* The arguments from `first` to the top. `small` and `small_numbers` serve short commands. */
static struct str *take_stack(lua_State *L, int first, struct str *small, char *small_numbers, size_t *count) {
    int n = lua_gettop(L) - first + 1;
    *count = n > 0 ? (size_t)n : 0;
    struct str *args = small;
    char *numbers = small_numbers;
    if (*count > STACK_ARGS) args = args_room(L, *count, &numbers);
    for (size_t i = 0; i < *count; i++) args[i] = take_arg(L, first + (int)i, numbers + i * NUMBER, (int)i + 1);
    return args;
}

/* ---- the shared connection ---- */

/* redis.call(name, ...) */
static int l_call(lua_State *L) {
    struct task *t = task_current(L);
    luaL_argcheck(L, lua_gettop(L) > 0, 1, "a command is missing");
    struct str small[STACK_ARGS];
    char numbers[STACK_ARGS * NUMBER];
    size_t count = 0;
    struct str *args = take_stack(L, 1, small, numbers, &count);
    struct error err = {0};
    struct redis *r = redis_shared(&err);
    struct redis_op *op = r ? redis_call(r, args, count, done, t, &err) : NULL;
    if (!op) return task_fail(L, &err);
    return task_suspend(L, t, cancel, op);
}

/* redis.pipeline{ {name, ...}, ... } */
static int l_pipeline(lua_State *L) {
    struct task *t = task_current(L);
    luaL_checktype(L, 1, LUA_TTABLE);
    size_t commands = lua_objlen(L, 1), total = 0;
    luaL_argcheck(L, commands > 0 && commands <= MAX_COMMANDS, 1, "must hold 1 to 4096 commands");
    for (size_t i = 1; i <= commands; i++) {
        lua_rawgeti(L, 1, (int)i);
        luaL_argcheck(L, lua_istable(L, -1) && lua_objlen(L, -1) > 0, 1,
                      "each command must be an array with its name first");
        total += lua_objlen(L, -1);
        lua_pop(L, 1);
    }
    struct redis_command *list = lua_newuserdata(L, commands * sizeof *list);
    char *numbers;
    struct str *args = args_room(L, total, &numbers);
    size_t at = 0;
    for (size_t i = 0; i < commands; i++) {
        size_t from = at;
        lua_rawgeti(L, 1, (int)i + 1);
        take_array(L, lua_gettop(L), args, numbers, &at);
        lua_pop(L, 1);
        list[i] = (struct redis_command){args + from, at - from};
    }
    struct error err = {0};
    struct redis *r = redis_shared(&err);
    struct redis_op *op = r ? redis_pipeline(r, list, commands, done, t, &err) : NULL;
    if (!op) return task_fail(L, &err);
    return task_suspend(L, t, cancel, op);
}

/* The script of the text at `index`, kept for ever: scripts are part of the program, not of its data. */
static struct redis_script *script_of(lua_State *L, int index) {
    lua_pushlightuserdata(L, &scripts_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    lua_pushvalue(L, index);
    lua_rawget(L, -2);
    struct redis_script *script = lua_touserdata(L, -1);
    lua_pop(L, 1);
    if (!script) {
        int known = (int)lua_objlen(L, -1);
        if (known >= MAX_SCRIPTS)
            luaL_error(L, "more than %d Redis scripts: is data built into a script's text?", MAX_SCRIPTS);
        script = lua_newuserdata(L, sizeof *script);
        struct str text;
        text.at = lua_tolstring(L, index, &text.len);
        redis_script_init(script, text);
        /* Also by number, so that the count is known; the text as a key is what keeps it alive. */
        lua_pushvalue(L, index);
        lua_pushvalue(L, -2);
        lua_rawset(L, -4);
        lua_rawseti(L, -2, known + 1);
    }
    lua_pop(L, 1);
    return script;
}

/* redis.eval(text, {keys}, {args} [, now]): with `now` it leaves at once and not at the end of the loop turn, so that
 * the server works while the rest of the turn goes on. */
static int l_eval(lua_State *L) {
    struct task *t = task_current(L);
    luaL_argcheck(L, lua_type(L, 1) == LUA_TSTRING, 1, "must be a script's text");
    lua_settop(L, 4);
    if (lua_isnil(L, 3)) {
        lua_newtable(L);
        lua_replace(L, 3);
    }
    luaL_checktype(L, 2, LUA_TTABLE);
    luaL_checktype(L, 3, LUA_TTABLE);
    bool now = lua_toboolean(L, 4);
    const struct redis_script *script = script_of(L, 1);
    size_t nkeys = lua_objlen(L, 2), count = 0;
    char *numbers;
    struct str *args = args_room(L, nkeys + lua_objlen(L, 3), &numbers);
    take_array(L, 2, args, numbers, &count);
    take_array(L, 3, args, numbers, &count);
    struct error err = {0};
    struct redis *r = redis_shared(&err);
    struct redis_op *op = r ? redis_eval(r, script, nkeys, args, count, done, t, &err) : NULL;
    if (!op) return task_fail(L, &err);
    if (now) redis_flush(r);
    return task_suspend(L, t, cancel, op);
}

/* redis.status() -> true | false, why */
static int l_status(lua_State *L) {
    struct error err = {0};
    struct redis *r = redis_shared(&err);
    lua_pushboolean(L, r && redis_up(r));
    lua_pushstring(L, r ? redis_why_down(r) : err.message);
    return 2;
}

/* ---- subscriptions ---- */

struct channel {
    struct redis_channel *channel; /* NULL: closed */
    lua_State *main;
    int fn, live, self; /* registry references; `self` keeps an open channel from the collector */
};

static void channel_release(lua_State *L, struct channel *c) {
    luaL_unref(L, LUA_REGISTRYINDEX, c->fn);
    luaL_unref(L, LUA_REGISTRYINDEX, c->live);
    luaL_unref(L, LUA_REGISTRYINDEX, c->self);
    c->fn = c->live = c->self = LUA_NOREF;
}

struct event {
    int fn;                    /* registry reference */
    const struct str *payload; /* NULL: nil */
    const bool *again;         /* in place of a payload */
};

static int push_event(lua_State *L, void *data) {
    const struct event *e = data;
    lua_rawgeti(L, LUA_REGISTRYINDEX, e->fn);
    if (e->payload)
        lua_pushlstring(L, e->payload->at, e->payload->len);
    else if (e->again)
        lua_pushboolean(L, *e->again);
    else
        lua_pushnil(L);
    return 2;
}

/* Each message is a task of its own, begun in the order of arrival. */
static void start_task(struct channel *c, struct event e) {
    bool started = task_begin(c->main, push_event, &e, NULL, task_log_finished, NULL, NULL);
    (void)started; /* out of memory: as if the message had been missed */
}

static void on_message(void *data, struct str channel, struct str payload) {
    (void)channel;
    struct channel *c = data;
    start_task(c, (struct event){.fn = c->fn, .payload = &payload});
}

static void on_live(void *data, bool again) {
    struct channel *c = data;
    if (c->live != LUA_NOREF) {
        start_task(c, (struct event){.fn = c->live, .again = &again});
    } else if (again) {
        start_task(c, (struct event){.fn = c->fn});
    }
}

/* redis.subscribe(channel, fn [, live]): fn(message); live(again) when the server has confirmed the channel, from when
 * on nothing is missed, `again` after a lost connection. Without `live` the latter is fn(nil). */
static int l_subscribe(lua_State *L) {
    struct str name;
    name.at = luaL_checklstring(L, 1, &name.len);
    luaL_checktype(L, 2, LUA_TFUNCTION);
    lua_settop(L, 3);
    if (!lua_isnil(L, 3)) luaL_checktype(L, 3, LUA_TFUNCTION);
    struct error err = {0};
    struct redis *r = redis_shared(&err);
    if (r && !listener) listener = redis_sub_new(redis_where(r), &err);
    if (!listener) return task_fail(L, &err);
    struct channel *c = lua_newuserdata(L, sizeof *c);
    *c = (struct channel){.main = task_main(L), .fn = LUA_NOREF, .live = LUA_NOREF, .self = LUA_NOREF};
    luaL_getmetatable(L, CHANNEL);
    lua_setmetatable(L, -2);
    /* First all that may raise: a channel that is heard must not be collected. */
    lua_pushvalue(L, 2);
    c->fn = luaL_ref(L, LUA_REGISTRYINDEX);
    if (!lua_isnil(L, 3)) {
        lua_pushvalue(L, 3);
        c->live = luaL_ref(L, LUA_REGISTRYINDEX);
    }
    lua_pushvalue(L, -1);
    c->self = luaL_ref(L, LUA_REGISTRYINDEX);
    c->channel = redis_sub_listen(listener, name, on_message, on_live, c, &err);
    if (c->channel) return 1;
    channel_release(L, c);
    return task_fail(L, &err);
}

static int l_channel_close(lua_State *L) {
    struct channel *c = luaL_checkudata(L, 1, CHANNEL);
    if (c->channel) redis_channel_close(c->channel);
    c->channel = NULL;
    channel_release(L, c);
    return 0;
}

/* ---- dedicated connections ---- */

struct dedicated {
    struct redis_conn *conn; /* NULL: closed */
};

struct wait {
    struct task *task;
    struct redis_op *op;
    struct redis_conn *conn;
    int self; /* registry reference: the connection is not collected while somebody waits on it */
};

static void wait_done(void *data, const struct redis_reply *reply, const struct error *err) {
    struct wait *w = data;
    struct task *t = w->task;
    luaL_unref(task_lua(t), LUA_REGISTRYINDEX, w->self);
    free(w);
    answer(t, reply, err);
}

/* A blocking command whose caller is gone might still take an item from a queue and hand it to nobody: the connection
 * is dropped, and the server then forgets the command. */
static void wait_cancel(void *op) {
    struct wait *w = op;
    luaL_unref(task_lua(w->task), LUA_REGISTRYINDEX, w->self);
    redis_op_cancel(w->op);
    bool outer = from_lua;
    from_lua = true;
    redis_conn_reset(w->conn, "the caller of a blocking command is gone");
    from_lua = outer;
    free(w);
}

static uint32_t option_ms(lua_State *L, int table, const char *name, uint32_t otherwise) {
    if (!lua_istable(L, table)) return otherwise;
    lua_getfield(L, table, name);
    lua_Number ms = luaL_optnumber(L, -1, otherwise);
    lua_pop(L, 1);
    if (!(ms >= 1 && ms <= 86400000)) luaL_error(L, "%s must be 1 to 86400000 milliseconds", name);
    return (uint32_t)ms;
}

/* Where a connection of its own goes: the option `url`, else the server of REDIS_URL. */
static bool option_where(lua_State *L, int table, struct redis_url *out, struct error *err) {
    size_t len = 0;
    const char *url = NULL;
    if (lua_istable(L, table)) {
        lua_getfield(L, table, "url");
        url = luaL_optlstring(L, -1, NULL, &len);
        lua_pop(L, 1);
    }
    if (url) return redis_url_parse((struct str){url, len}, out, err);
    struct redis *r = redis_shared(err);
    if (r) *out = *redis_where(r);
    return r != NULL;
}

/* redis.dedicated([name [, {timeout_ms = 30000, url = REDIS_URL}]]) */
static int l_dedicated(lua_State *L) {
    const char *name = luaL_optstring(L, 1, NULL);
    struct redis_conn_options options = {.name = name, .timeout_ms = option_ms(L, 2, "timeout_ms", 30000)};
    struct error err = {0};
    struct redis_url where;
    if (!option_where(L, 2, &where, &err)) return task_fail(L, &err);
    struct dedicated *d = lua_newuserdata(L, sizeof *d);
    d->conn = NULL;
    luaL_getmetatable(L, DEDICATED);
    lua_setmetatable(L, -2);
    d->conn = redis_conn_new(&where, &options, &err);
    if (!d->conn) return task_fail(L, &err);
    return 1;
}

/* conn:call(name, ...) */
static int l_dedicated_call(lua_State *L) {
    struct task *t = task_current(L);
    struct dedicated *d = luaL_checkudata(L, 1, DEDICATED);
    luaL_argcheck(L, lua_gettop(L) > 1, 2, "a command is missing");
    struct str small[STACK_ARGS];
    char numbers[STACK_ARGS * NUMBER];
    size_t count = 0;
    struct str *args = take_stack(L, 2, small, numbers, &count);
    struct redis_command command = {args, count};
    struct error err = {.kind = ERR_UNAVAILABLE, .message = "the connection was closed"};
    lua_pushvalue(L, 1);
    int self = luaL_ref(L, LUA_REGISTRYINDEX);
    struct wait *w = malloc(sizeof *w); /* not of the arena: a worker's loop is one task for ever */
    if (!w) {
        luaL_unref(L, LUA_REGISTRYINDEX, self);
        error_set(&err, ERR_MEMORY, "out of memory");
        return task_fail(L, &err);
    }
    *w = (struct wait){.task = t, .conn = d->conn, .self = self};
    w->op = d->conn ? redis_conn_send(d->conn, &command, 1, false, 0, wait_done, w, &err) : NULL;
    if (!w->op) {
        luaL_unref(L, LUA_REGISTRYINDEX, self);
        free(w);
        return task_fail(L, &err);
    }
    return task_suspend(L, t, wait_cancel, w);
}

/* conn:close(); who waits on it is answered with an error. Also the collector's call: nobody waits then. */
static int l_dedicated_close(lua_State *L) {
    struct dedicated *d = luaL_checkudata(L, 1, DEDICATED);
    struct redis_conn *conn = d->conn;
    d->conn = NULL;
    bool outer = from_lua;
    from_lua = true;
    redis_conn_close(conn);
    from_lua = outer;
    return 0;
}

static void make_class(lua_State *L, const char *name, const luaL_Reg *methods) {
    luaL_newmetatable(L, name);
    lua_pushvalue(L, -1);
    lua_setfield(L, -2, "__index");
    luaL_register(L, NULL, methods);
    lua_pop(L, 1);
}

int luaopen_core_redis(lua_State *L) {
    static const luaL_Reg functions[] = {
        {"call", l_call},           {"pipeline", l_pipeline}, {"eval", l_eval}, {"subscribe", l_subscribe},
        {"dedicated", l_dedicated}, {"status", l_status},     {NULL, NULL}};
    static const luaL_Reg dedicated[] = {
        {"call", l_dedicated_call}, {"close", l_dedicated_close}, {"__gc", l_dedicated_close}, {NULL, NULL}};
    static const luaL_Reg channel[] = {{"close", l_channel_close}, {NULL, NULL}};
    make_class(L, DEDICATED, dedicated);
    make_class(L, CHANNEL, channel);
    lua_pushlightuserdata(L, &scripts_key);
    lua_newtable(L);
    lua_rawset(L, LUA_REGISTRYINDEX);
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
