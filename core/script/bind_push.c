/* core.push and the sockets that req:websocket{..} and req:events{..} answer.
 *
 *     local socket, err = req:websocket{
 *         message = function(state, text) end,  -- a task per message; a client's next one waits until it has ended
 *         closed = function(state, code) end,   -- once, when nothing more comes or goes, whoever ended it
 *         state = anything, protocol = "name", ping_ms =, silence_ms =, queue_bytes =, message_bytes = }
 *     socket:send(message [, id]) -> true, or false when it is closed (also when this send was one too many for a
 * client that does not read); never waits. `message`: a text or push.message(text, event) socket:room(bytes) -> waits
 * until no more than that is queued: true, or false when it was closed socket:close([code [, reason]]),
 * socket:queued(), socket:is_open()
 *
 * An idle socket costs this struct, two userdata and what the owner keeps as `state`: no coroutine. */
#include "script/bind_push.h"

#include <lauxlib.h>
#include <stdio.h>
#include <stdlib.h>

#include "http/push.h"
#include "script/bind.h"
#include "script/task.h"

#define SOCKET "core.push.socket"
#define MESSAGE "core.push.message"
#define MESSAGE_TASK_MS 30000
#define EVENTS_PING_MS 15000

/* Lives until it is closed and Lua has let go of it. */
struct socket {
    struct push *push;                /* NULL: closed */
    lua_State *main;                  /* NULL: the VM is gone, or about to be */
    int self, message, closed, state; /* registry references, held until `closed` has run */
    struct task *waiter;              /* waits for room */
    unsigned code;
    bool busy, close_waits; /* a message's task is at work; `closed` runs after it */
    bool held;              /* by a userdata */
};

static void free_if_done(struct socket *s) {
    if (!s->push && !s->held) free(s);
}

static void let_go(struct socket *s) {
    lua_State *L = s->main;
    if (!L) return;
    luaL_unref(L, LUA_REGISTRYINDEX, s->message);
    luaL_unref(L, LUA_REGISTRYINDEX, s->closed);
    luaL_unref(L, LUA_REGISTRYINDEX, s->state);
    luaL_unref(L, LUA_REGISTRYINDEX, s->self);
    s->self = s->message = s->closed = s->state = LUA_NOREF;
}

/* ---- what comes ---- */

static void closed_done(void *data, lua_State *L, bool ok) {
    if (!ok) task_log_error(L, "socket closed");
    let_go(data);
}

static void tell_closed(struct socket *s) {
    lua_State *L = s->main;
    s->close_waits = false;
    if (!L) return;
    if (s->closed == LUA_REFNIL || !lua_checkstack(L, 4)) {
        let_go(s);
        return;
    }
    lua_rawgeti(L, LUA_REGISTRYINDEX, s->closed);
    lua_rawgeti(L, LUA_REGISTRYINDEX, s->state);
    lua_pushinteger(L, (lua_Integer)s->code);
    /* Later: the socket may have been closed out of a task's code. */
    if (!task_start_later(L, 2, NULL, closed_done, s, NULL)) let_go(s);
}

static void wake(struct socket *s, bool room) {
    struct task *t = s->waiter;
    s->waiter = NULL;
    if (!t) return;
    lua_pushboolean(task_lua(t), room);
    task_resume_later(t, 1);
}

static void on_closed(void *data, unsigned code, struct str reason) {
    (void)reason;
    struct socket *s = data;
    s->push = NULL;
    s->code = code;
    if (!s->main) {
        free_if_done(s);
        return;
    }
    wake(s, false);
    if (s->busy)
        s->close_waits = true;
    else
        tell_closed(s);
}

static void on_room(void *data) {
    wake(data, true);
}

static void message_done(void *data, lua_State *L, bool ok) {
    struct socket *s = data;
    s->busy = false;
    if (!ok) {
        task_log_error(L, "socket message");
        if (s->push) push_close(s->push, WS_INTERNAL, STR("internal error"));
    }
    if (s->push) push_resume(s->push);
    if (s->close_waits) tell_closed(s);
}

struct message {
    const struct socket *socket;
    struct str payload;
};

static int push_payload(lua_State *L, void *data) {
    const struct message *m = data;
    lua_rawgeti(L, LUA_REGISTRYINDEX, m->socket->message);
    lua_rawgeti(L, LUA_REGISTRYINDEX, m->socket->state);
    lua_pushlstring(L, m->payload.at ? m->payload.at : "", m->payload.len);
    return 3;
}

static void on_message(void *data, struct str payload, enum ws_opcode opcode) {
    (void)opcode; /* text only */
    struct socket *s = data;
    if (!s->main) return;
    struct message m = {s, payload};
    s->busy = true;
    push_pause(s->push);
    struct task *t = NULL;
    if (!task_begin(s->main, push_payload, &m, NULL, message_done, s, &t)) {
        s->busy = false;
        push_close(s->push, WS_TRY_LATER, STR("out of memory"));
        return;
    }
    if (s->busy) task_deadline(t, MESSAGE_TASK_MS);
}

/* ---- sockets in Lua ---- */

static struct socket *socket_at(lua_State *L) {
    struct socket **cell = luaL_checkudata(L, 1, SOCKET);
    return *cell;
}

static int l_send(lua_State *L) {
    struct socket *s = socket_at(L);
    struct str id = {0};
    if (!lua_isnoneornil(L, 3)) id.at = luaL_checklstring(L, 3, &id.len);
    if (id.at && (memchr(id.at, '\n', id.len) || memchr(id.at, '\r', id.len))) return luaL_argerror(L, 3, "line break");
    bool sent = false;
    if (lua_type(L, 2) == LUA_TSTRING) {
        struct str text;
        text.at = lua_tolstring(L, 2, &text.len);
        struct push_message *m = s->push ? push_message_new(text, (struct str){0}) : NULL;
        sent = m && push_send(s->push, m, id);
        push_message_free(m);
    } else {
        struct push_message **m = luaL_checkudata(L, 2, MESSAGE);
        luaL_argcheck(L, *m, 2, "freed message");
        sent = s->push && push_send(s->push, *m, id);
    }
    lua_pushboolean(L, sent);
    return 1;
}

static int l_close(lua_State *L) {
    struct socket *s = socket_at(L);
    lua_Integer code = luaL_optinteger(L, 2, WS_NORMAL);
    struct str reason;
    reason.at = luaL_optlstring(L, 3, "", &reason.len);
    luaL_argcheck(L, code > 0 && ws_code_valid((unsigned)code), 2, "code");
    luaL_argcheck(L, reason.len <= WS_CONTROL_MAX - 2, 3, "long reason");
    if (s->push) push_close(s->push, (unsigned)code, reason);
    return 0;
}

static int l_queued(lua_State *L) {
    struct socket *s = socket_at(L);
    lua_pushnumber(L, s->push ? (lua_Number)push_queued(s->push) : 0);
    return 1;
}

static int l_is_open(lua_State *L) {
    lua_pushboolean(L, socket_at(L)->push != NULL);
    return 1;
}

static void cancel_room(void *op) {
    ((struct socket *)op)->waiter = NULL;
}

static int l_room(lua_State *L) {
    struct task *t = task_current(L);
    struct socket *s = socket_at(L);
    lua_Number bytes = luaL_checknumber(L, 2);
    if (!s->push || !(bytes > 0) || (lua_Number)push_queued(s->push) <= bytes) {
        lua_pushboolean(L, s->push != NULL);
        return 1;
    }
    if (s->waiter) return luaL_error(L, "another task waits for room");
    s->waiter = t;
    push_on_room(s->push, (size_t)bytes);
    return task_suspend(L, t, cancel_room, s);
}

static int l_socket_gc(lua_State *L) {
    struct socket *s = socket_at(L);
    if (!s) return 0;
    s->held = false;
    if (!s->push) let_go(s); /* it was never opened */
    /* An open one is referred to by the registry: the whole state is being closed. */
    s->main = NULL;
    free_if_done(s);
    return 0;
}

/* ---- opening ---- */

static void make_classes(lua_State *L);

static double option(lua_State *L, const char *name, double otherwise, double most) {
    lua_getfield(L, 2, name);
    double value = luaL_optnumber(L, -1, otherwise);
    lua_pop(L, 1);
    if (!(value >= 1 && value <= most)) luaL_error(L, "%s out of range", name);
    return value;
}

static int function_ref(lua_State *L, const char *name) {
    lua_getfield(L, 2, name);
    if (!lua_isnil(L, -1) && !lua_isfunction(L, -1)) luaL_error(L, "%s must be a function", name);
    return luaL_ref(L, LUA_REGISTRYINDEX);
}

int bind_push_open(lua_State *L, struct request *r, bool websocket, const struct header *headers, size_t count) {
    struct push_settings set;
    struct error err = {0};
    push_settings_default(&set);
    set.ping_ms = (uint64_t)option(L, "ping_ms", websocket ? (double)set.ping_ms : EVENTS_PING_MS, 1e7);
    set.silence_ms = (uint64_t)option(L, "silence_ms", (double)set.silence_ms, 1e8);
    set.queue_bytes = (size_t)option(L, "queue_bytes", (double)set.queue_bytes, 1e9);
    set.limits.message = (size_t)option(L, "message_bytes", (double)set.limits.message, 1e9);
    lua_getfield(L, 2, "protocol");
    struct str protocol = {0};
    if (!lua_isnil(L, -1)) protocol.at = luaL_checklstring(L, -1, &protocol.len);
    if (protocol.at && !header_name_safe(protocol)) return luaL_error(L, "protocol is no token");

    make_classes(L);
    struct socket **cell = lua_newuserdata(L, sizeof(struct socket *));
    *cell = NULL;
    luaL_getmetatable(L, SOCKET);
    lua_setmetatable(L, -2);
    int self = lua_gettop(L);
    struct socket *s = *cell = calloc(1, sizeof *s);
    if (!s) {
        error_set(&err, ERR_MEMORY, "out of memory");
        return task_fail(L, &err);
    }
    *s = (struct socket){.main = task_main(L),
                         .self = LUA_NOREF,
                         .message = LUA_NOREF,
                         .closed = LUA_NOREF,
                         .state = LUA_NOREF,
                         .held = true};
    s->message = function_ref(L, "message");
    s->closed = function_ref(L, "closed");
    lua_getfield(L, 2, "state");
    s->state = luaL_ref(L, LUA_REGISTRYINDEX);
    lua_pushvalue(L, self);
    s->self = luaL_ref(L, LUA_REGISTRYINDEX);

    int status;
    struct push_handler handler = {
        .message = s->message == LUA_REFNIL ? NULL : on_message, .closed = on_closed, .room = on_room, .data = s};
    s->push = websocket ? push_websocket(r, &set, &handler, protocol, &status)
                        : push_events(r, &set, &handler, headers, count, &status);
    lua_settop(L, self);
    if (s->push) return 1;
    let_go(s);
    error_set(&err, ERR_INVALID, "%s",
              status == 426   ? "WebSocket version 13 is needed"
              : status == 503 ? "Service temporarily unavailable"
              : websocket     ? "Not a WebSocket handshake"
                              : "Not a request for events");
    int n = snprintf(err.code, sizeof err.code, "%d", status);
    if (n < 0) err.code[0] = '\0';
    return task_fail(L, &err);
}

/* ---- messages ---- */

/* push.message(text [, event]): made once, sent to any number of sockets; `event` is its name on event streams. */
static int l_message(lua_State *L) {
    struct str text, event = {0};
    text.at = luaL_checklstring(L, 1, &text.len);
    if (!lua_isnoneornil(L, 2)) event.at = luaL_checklstring(L, 2, &event.len);
    if (event.at && (memchr(event.at, '\n', event.len) || memchr(event.at, '\r', event.len)))
        return luaL_argerror(L, 2, "line break");
    struct push_message **m = lua_newuserdata(L, sizeof(struct push_message *));
    *m = NULL;
    luaL_getmetatable(L, MESSAGE);
    lua_setmetatable(L, -2);
    *m = push_message_new(text, event);
    if (!*m) return luaL_error(L, "out of memory");
    return 1;
}

/* message:free(), for those who know that they are done: a message's bytes are not counted by the collector. */
static int l_message_free(lua_State *L) {
    struct push_message **m = luaL_checkudata(L, 1, MESSAGE);
    push_message_free(*m);
    *m = NULL;
    return 0;
}

static void make_class(lua_State *L, const char *name, const luaL_Reg *methods) {
    if (luaL_newmetatable(L, name)) {
        lua_pushvalue(L, -1);
        lua_setfield(L, -2, "__index");
        luaL_register(L, NULL, methods);
    }
    lua_pop(L, 1);
}

static void make_classes(lua_State *L) {
    static const luaL_Reg message[] = {{"free", l_message_free}, {"__gc", l_message_free}, {NULL, NULL}};
    static const luaL_Reg socket[] = {
        {"send", l_send}, {"close", l_close},    {"queued", l_queued}, {"is_open", l_is_open},
        {"room", l_room}, {"__gc", l_socket_gc}, {NULL, NULL}};
    make_class(L, SOCKET, socket);
    make_class(L, MESSAGE, message);
}

int luaopen_core_push(lua_State *L) {
    static const luaL_Reg functions[] = {{"message", l_message}, {NULL, NULL}};
    make_classes(L);
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
