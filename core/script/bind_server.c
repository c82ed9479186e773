/* core.server: routes in Lua, one coroutine a request.
 *
 * What Lua holds of a request is a userdata with a slot and the slot's generation. The slot is recycled when the
 * request ends, which moves the generation on: a userdata that outlives its request (an upvalue, a spawned task) then
 * finds nothing, never another caller's request. */
#include "script/bind_server.h"

#include <lauxlib.h>
#include <stdlib.h>
#include <string.h>

#include "http/decode.h"
#include "http/file.h"
#include "http/request.h"
#include "script/bind.h"
#include "script/bind_json.h"
#include "script/bind_push.h"
#include "script/form.h"
#include "script/guard.h"
#include "script/json.h"
#include "script/server_settings.h"
#include "script/task.h"

#define RESPONSE_HEADERS_MAX 64
#define READ_DEFAULT 65536
#define READ_MAX 1048576

struct slot {
    struct slot *next; /* in the pool */
    uint64_t generation;
    struct request *r;
    struct task *task;   /* of the request, once it was suspended */
    struct task *writer; /* waits for the stream to drain */
    struct task *reader; /* waits for more of the body, at most read_max bytes of it */
    size_t read_max;
    struct file_send *file; /* being sent */
    struct task *file_waiter;
};

struct cell {
    struct slot *slot;
    uint64_t generation;
};

/* A Lua function as a handler. */
struct handler {
    lua_State *L;
    int function, metatable; /* registry references */
};

static struct server *server;
static struct slot *spare_slots;

struct server *bind_server_get(void) {
    if (!server) {
        struct server_settings set;
        server_settings_load(&set);
        server = server_new(&set);
    }
    return server;
}

void bind_server_set(struct server *s) {
    server = s;
}

static struct slot *slot_take(struct request *r) {
    struct slot *s = spare_slots;
    if (s) {
        spare_slots = s->next;
    } else {
        s = calloc(1, sizeof *s);
        if (!s) return NULL;
    }
    s->next = NULL;
    s->r = r;
    s->task = s->writer = s->reader = s->file_waiter = NULL;
    s->file = NULL;
    return s;
}

/* Slots are never freed: a userdata may look at the generation of one at any time. Their number is bounded by the most
 * requests that were ever in flight. */
static void slot_give(struct slot *s) {
    s->generation++;
    s->r = NULL;
    s->next = spare_slots;
    spare_slots = s;
}

/* The slot of the request that is argument 1; a Lua error when that is no request. NULL: the request has ended. Every
 * function that asks has the metatable of requests as its first upvalue. */
static struct slot *slot_of(lua_State *L) {
    struct cell *c = lua_touserdata(L, 1);
    if (c && lua_getmetatable(L, 1)) {
        bool same = lua_topointer(L, -1) == lua_topointer(L, lua_upvalueindex(1));
        lua_pop(L, 1);
        if (same) return c->slot->generation == c->generation ? c->slot : NULL;
    }
    luaL_argerror(L, 1, "request expected");
    return NULL;
}

static struct slot *live_slot(lua_State *L) {
    struct slot *s = slot_of(L);
    if (!s) luaL_error(L, "the request has ended");
    return s;
}

static void push_str(lua_State *L, struct str s) {
    if (s.at)
        lua_pushlstring(L, s.at, s.len);
    else
        lua_pushnil(L);
}

/* Running handlers. */

static void wake_writer(struct slot *s, struct error *err) {
    struct task *t = s->writer;
    s->writer = NULL;
    if (!t) return;
    if (err) {
        task_resume_error(t, err);
    } else {
        lua_pushboolean(task_lua(t), 1);
        task_resume(t, 1);
    }
}

static void finished(void *data, lua_State *L, bool ok) {
    struct slot *s = data;
    struct request *r = s->r;
    if (!ok) {
        if (!request_gone(r)) task_log_error(L, "request handler");
        bool told = request_refuse(r, 500, (struct str){0}, false);
        (void)told; /* answered already, or the client has gone */
    }
    /* Other tasks may still wait to write to this answer. */
    struct task *writer = s->writer, *reader = s->reader, *file_waiter = s->file_waiter;
    request_on_drain(r, NULL, NULL);
    request_on_readable(r, NULL, NULL);
    if (s->file) file_cancel(s->file);
    slot_give(s);
    request_done(r);
    if (!writer && !reader && !file_waiter) return;
    struct error err;
    error_set(&err, ERR_CANCELLED, "the request has ended");
    if (reader) task_resume_error(reader, &err);
    if (writer) task_resume_error(writer, &err);
    if (file_waiter) task_resume_error(file_waiter, &err);
}

static void gone(void *data, enum error_kind why) {
    struct slot *s = data;
    uint64_t generation = s->generation;
    struct task *task = s->task;
    if (s->writer && s->writer != task) {
        struct error err;
        error_set(&err, why, "the client has gone");
        request_on_drain(s->r, NULL, NULL);
        wake_writer(s, &err);
    }
    if (s->generation == generation && s->reader && s->reader != task) {
        struct task *reader = s->reader;
        struct error err;
        error_set(&err, why, "the client has gone");
        s->reader = NULL;
        request_on_readable(s->r, NULL, NULL);
        task_resume_error(reader, &err);
    }
    if (s->generation == generation) task_cancel(task, why);
}

struct arrival {
    const struct handler *handler;
    struct slot *slot;
};

static int push_request(lua_State *L, void *data) {
    const struct arrival *a = data;
    lua_rawgeti(L, LUA_REGISTRYINDEX, a->handler->function);
    struct cell *c = lua_newuserdata(L, sizeof *c);
    *c = (struct cell){.slot = a->slot, .generation = a->slot->generation};
    lua_rawgeti(L, LUA_REGISTRYINDEX, a->handler->metatable);
    lua_setmetatable(L, -2);
    return 2;
}

static void on_request(struct request *r, void *data) {
    const struct handler *h = data;
    struct slot *s = slot_take(r);
    struct task *task = NULL;
    if (!s) {
        bool told = request_refuse(r, 503, (struct str){0}, false);
        (void)told; /* the client may have gone */
        request_done(r);
        return;
    }
    uint64_t generation = s->generation;
    struct arrival arrival = {h, s};
    if (!task_begin(h->L, push_request, &arrival, request_arena(r), finished, s, &task)) {
        slot_give(s);
        bool told = request_refuse(r, 503, (struct str){0}, false);
        (void)told; /* the client may have gone */
        request_done(r);
        return;
    }
    if (s->generation != generation) return; /* it has ended already */
    s->task = task;
    request_on_cancel(r, gone, s);
}

/* Looking at a request. */

enum field {
    FIELD_METHOD = 1,
    FIELD_PATH,
    FIELD_TARGET,
    FIELD_ROUTE,
    FIELD_PARAMS,
    FIELD_QUERY,
    FIELD_REMOTE,
    FIELD_ID,
    FIELD_STARTED,
    FIELD_SECURE,
    FIELD_CONTENT,
    FIELD_BODY_SIZE,
    FIELD_BODY_PATH,
    FIELD_GONE,
    FIELD_CLIENT,
};
static const char *const fields[] = {
    [FIELD_METHOD] = "method",       [FIELD_PATH] = "path",       [FIELD_TARGET] = "target",
    [FIELD_ROUTE] = "route",         [FIELD_PARAMS] = "params",   [FIELD_QUERY] = "query",
    [FIELD_REMOTE] = "remote",       [FIELD_ID] = "id",           [FIELD_STARTED] = "started",
    [FIELD_SECURE] = "secure",       [FIELD_CONTENT] = "content", [FIELD_BODY_SIZE] = "body_size",
    [FIELD_BODY_PATH] = "body_path", [FIELD_GONE] = "gone",       [FIELD_CLIENT] = "client",
};

static void push_params(lua_State *L, const struct request *r) {
    const struct route *route = request_route(r);
    lua_createtable(L, 0, (int)route->params);
    for (unsigned i = 0; i < route->params; i++) {
        push_str(L, route->names[i]);
        push_str(L, request_param(r, i));
        lua_rawset(L, -3);
    }
}

/* Upvalue 2: name -> method (function) or number of the field. */
static int l_index(lua_State *L) {
    lua_pushvalue(L, 2);
    lua_rawget(L, lua_upvalueindex(2));
    if (lua_type(L, -1) != LUA_TNUMBER) return 1; /* a method, or nil for a name that is unknown */
    struct slot *s = live_slot(L);
    struct request *r = s->r;
    switch ((enum field)lua_tointeger(L, -1)) {
    case FIELD_METHOD:
        push_str(L, request_method_name(r));
        break;
    case FIELD_PATH:
        push_str(L, request_path(r));
        break;
    case FIELD_TARGET:
        push_str(L, request_target(r));
        break;
    case FIELD_ROUTE:
        push_str(L, request_route(r)->pattern);
        break;
    case FIELD_PARAMS:
        push_params(L, r);
        break;
    case FIELD_QUERY:
        push_str(L, request_query(r));
        break;
    case FIELD_REMOTE:
        push_str(L, request_remote(r));
        break;
    case FIELD_CLIENT:
        push_str(L, request_client(r));
        break;
    case FIELD_ID:
        push_str(L, request_id(r));
        break;
    case FIELD_STARTED:
        lua_pushnumber(L, (lua_Number)request_started_us(r));
        break;
    case FIELD_SECURE:
        lua_pushboolean(L, 0);
        break; /* TLS ends at a proxy, whose word is judged in Lua */
    case FIELD_CONTENT:
        lua_pushstring(L, content_kind_name(request_content(r)));
        break;
    case FIELD_BODY_SIZE:
        lua_pushnumber(L, (lua_Number)request_body_size(r));
        break;
    case FIELD_BODY_PATH:
        push_str(L, str_of(request_body_path(r)));
        break;
    case FIELD_GONE:
        lua_pushboolean(L, request_gone(r));
        break;
    default:
        lua_pushnil(L);
    }
    return 1;
}

static int l_header(lua_State *L) {
    struct str name;
    name.at = luaL_checklstring(L, 2, &name.len);
    push_str(L, request_header(live_slot(L)->r, name));
    return 1;
}

/* All headers by lower-case name; what was sent more than once is joined as lists are. */
static int l_headers(lua_State *L) {
    struct request *r = live_slot(L)->r;
    lua_newtable(L);
    for (size_t i = 0; i < request_header_count(r); i++) {
        struct str name, value;
        request_header_at(r, i, &name, &value);
        char lower[256];
        if (name.len > sizeof lower) continue;
        for (size_t k = 0; k < name.len; k++)
            lower[k] = name.at[k] >= 'A' && name.at[k] <= 'Z' ? (char)(name.at[k] | 0x20) : name.at[k];
        lua_pushlstring(L, lower, name.len);
        lua_pushvalue(L, -1);
        lua_rawget(L, -3);
        if (lua_isnil(L, -1)) {
            lua_pop(L, 1);
            lua_pushlstring(L, value.at, value.len);
        } else {
            lua_pushstring(L, header_id(name) == HEADER_COOKIE ? "; " : ", ");
            lua_pushlstring(L, value.at, value.len);
            lua_concat(L, 3);
        }
        lua_rawset(L, -3);
    }
    return 1;
}

static int l_cookie(lua_State *L) {
    struct str name;
    name.at = luaL_checklstring(L, 2, &name.len);
    push_str(L, request_cookie(live_slot(L)->r, name));
    return 1;
}

static const char in_pieces[] = "the body is read piece by piece";

static int l_body(lua_State *L) {
    struct request *r = live_slot(L)->r;
    if (request_streamed(r)) return task_refuse(L, ERR_INVALID, "stream", in_pieces);
    if (request_body_path(r)) return task_refuse(L, ERR_LIMIT, "spooled", "the body is in a file");
    struct str body = request_body(r);
    lua_pushlstring(L, body.at ? body.at : "", body.len);
    return 1;
}

/* The body decoded from where it lies: it does not become a Lua string. A byte order mark that an editor put before it
   is no part of it, as in Node's body-parser. */
static int l_json(lua_State *L) {
    struct request *r = live_slot(L)->r;
    if (request_streamed(r)) return task_refuse(L, ERR_INVALID, "stream", in_pieces);
    if (request_body_path(r)) return task_refuse(L, ERR_LIMIT, "spooled", "the body is in a file");
    struct str body = request_body(r);
    if (body.len >= 3 && memcmp(body.at, "\xEF\xBB\xBF", 3) == 0) {
        body.at += 3;
        body.len -= 3;
    }
    struct error err = {0};
    if (json_decode(L, body, &err)) return 1;
    return task_fail(L, &err);
}

static int l_query_table(lua_State *L) {
    struct request *r = live_slot(L)->r;
    return form_push_pairs(L, r, request_query(r));
}

static int l_form(lua_State *L) {
    struct request *r = live_slot(L)->r;
    if (request_streamed(r)) return task_refuse(L, ERR_INVALID, "stream", in_pieces);
    if (request_body_path(r)) return task_refuse(L, ERR_LIMIT, "413", "the form is too large");
    return form_push_pairs(L, r, request_body(r));
}

static int l_multipart(lua_State *L) {
    return form_push_multipart(L, live_slot(L)->r);
}

/* Taking a body piece by piece. */

struct reading {
    struct slot *slot;
    enum read_result result;
    struct buf bytes;
};

/* Pushes what there is to say about a read that need not wait. */
static int push_read(lua_State *L, void *data) {
    const struct reading *now = data;
    struct slot *s = now->slot;
    struct str why;
    char code[8];
    int status, n;
    switch (now->result) {
    case READ_SOME:
        lua_pushlstring(L, now->bytes.data, now->bytes.len);
        return 1;
    case READ_END:
        lua_pushnil(L);
        return 1;
    case READ_FAILED:
        status = request_read_failure(s->r, &why);
        n = snprintf(code, sizeof code, "%d", status);
        if (n < 0) code[0] = '\0';
        if (status == 413) return task_refuse(L, ERR_LIMIT, code, "request entity too large");
        if (status == 408) return task_refuse(L, ERR_DEADLINE, code, "the body came too slowly");
        return task_refuse(L, status == 503 ? ERR_MEMORY : ERR_INVALID, code, why.len ? why.at : "malformed body");
    default:
        return task_refuse(L, ERR_CANCELLED, "",
                           request_gone(s->r) ? "the client has gone" : "the request was answered already");
    }
}

static void readable(void *data) {
    struct slot *s = data;
    struct task *t = s->reader;
    struct reading now = {.slot = s};
    now.result = request_read(s->r, &now.bytes, s->read_max);
    if (now.result == READ_WAIT) { /* what came decodes to nothing yet */
        buf_free(&now.bytes);
        request_on_readable(s->r, readable, s);
        return;
    }
    s->reader = NULL;
    int pushed = task_put(t, push_read, &now);
    buf_free(&now.bytes);
    task_resume(t, pushed);
}

static void cancel_read(void *op) {
    struct slot *s = op;
    s->reader = NULL;
    if (s->r) request_on_readable(s->r, NULL, NULL);
}

/* req:read([max]): the next bytes of a streamed body, nil at its end; nil, err when it cannot be read to its end. */
static int l_read(lua_State *L) {
    struct slot *s = live_slot(L);
    lua_Integer max = luaL_optinteger(L, 2, READ_DEFAULT);
    luaL_argcheck(L, max >= 1 && max <= READ_MAX, 2, "1 to 1048576 bytes");
    if (!request_route(s->r)->options.stream) return luaL_error(L, "the route does not say that its body is streamed");
    if (s->reader) return task_refuse(L, ERR_BUSY, "", "another task is reading");
    struct task *t = task_current(L);
    struct reading now = {.slot = s};
    now.result = request_read(s->r, &now.bytes, (size_t)max);
    if (now.result != READ_WAIT) {
        struct error err;
        lua_State *main = task_main(L);
        int pushed = guard_call(main, 0, push_read, &now, &err);
        buf_free(&now.bytes);
        if (pushed < 0) return task_fail(L, &err);
        lua_xmove(main, L, pushed);
        return pushed;
    }
    buf_free(&now.bytes);
    s->reader = t;
    s->read_max = (size_t)max;
    request_on_readable(s->r, readable, s);
    return task_suspend(L, t, cancel_read, s);
}

/* Answering. */

/* One header from the key and value on top of the stack. Views into Lua strings: the table keeps them alive. */
static void add_header(lua_State *L, struct request *r, struct header *out, size_t *count, struct str name, int value) {
    if (*count == RESPONSE_HEADERS_MAX) luaL_error(L, "too many headers");
    struct str v;
    if (lua_type(L, value) == LUA_TNUMBER) {
        /* Not lua_tolstring: the text would belong to nobody. */
        v = str_of(arena_printf(request_arena(r), "%.14g", lua_tonumber(L, value)));
        if (!v.at) luaL_error(L, "out of memory");
    } else {
        if (lua_type(L, value) != LUA_TSTRING) luaL_error(L, "a header's value must be a string or a list of strings");
        v.at = lua_tolstring(L, value, &v.len);
    }
    out[(*count)++] = (struct header){.name = name, .value = v};
}

static size_t read_headers(lua_State *L, int index, struct request *r, struct header out[RESPONSE_HEADERS_MAX]) {
    size_t count = 0;
    if (lua_isnoneornil(L, index)) return 0;
    luaL_checktype(L, index, LUA_TTABLE);
    lua_pushnil(L);
    while (lua_next(L, index)) {
        if (lua_type(L, -2) != LUA_TSTRING) luaL_error(L, "a header's name must be a string");
        struct str name;
        name.at = lua_tolstring(L, -2, &name.len);
        if (lua_istable(L, -1)) {
            for (int i = 1, n = (int)lua_objlen(L, -1); i <= n; i++) {
                lua_rawgeti(L, -1, i);
                add_header(L, r, out, &count, name, -1);
                lua_pop(L, 1);
            }
        } else {
            add_header(L, r, out, &count, name, -1);
        }
        lua_pop(L, 1);
    }
    return count;
}

static int check_status(lua_State *L, int index) {
    lua_Integer status = luaL_checkinteger(L, index);
    luaL_argcheck(L, status >= 200 && status <= 599, index, "status must be 200 to 599");
    return (int)status;
}

static int l_respond(lua_State *L) {
    struct slot *s = live_slot(L);
    int status = check_status(L, 2);
    struct header headers[RESPONSE_HEADERS_MAX];
    size_t count = read_headers(L, 3, s->r, headers);
    struct str body = STR("");
    if (!lua_isnoneornil(L, 4)) body.at = luaL_checklstring(L, 4, &body.len);
    lua_pushboolean(L, request_respond(s->r, status, headers, count, body));
    return 1;
}

/* As respond, with the body encoded straight to where it is sent from. Without headers it is plain JSON. What may be
 * asked for again by its ETag, which is of the bytes, is the same text from every worker. */
static int l_respond_json(lua_State *L) {
    struct slot *s = live_slot(L);
    int status = check_status(L, 2);
    luaL_checkany(L, 4);
    struct header headers[RESPONSE_HEADERS_MAX];
    size_t count = read_headers(L, 3, s->r, headers);
    if (lua_isnil(L, 3))
        headers[count++] = (struct header){STR("Content-Type"), STR("application/json; charset=utf-8")};
    enum http_method method = request_method(s->r);
    struct str body = bind_json_text(L, 4, method == HTTP_M_GET || method == HTTP_M_HEAD);
    lua_pushboolean(L, request_respond(s->r, status, headers, count, body));
    return 1;
}

static int l_stream(lua_State *L) {
    struct slot *s = live_slot(L);
    int status = check_status(L, 2);
    struct header headers[RESPONSE_HEADERS_MAX];
    size_t count = read_headers(L, 3, s->r, headers);
    if (!request_stream(s->r, status, headers, count, -1))
        return task_refuse(L, ERR_CANCELLED, "",
                           request_gone(s->r) ? "the client has gone" : "the request was answered already");
    lua_settop(L, 1);
    return 1;
}

static void drained(void *data) {
    wake_writer(data, NULL);
}

static void cancel_write(void *op) {
    struct slot *s = op;
    s->writer = NULL;
    if (s->r) request_on_drain(s->r, NULL, NULL);
}

static int l_write(lua_State *L) {
    struct slot *s = slot_of(L);
    struct str bytes;
    bytes.at = luaL_checklstring(L, 2, &bytes.len);
    if (!s) return task_refuse(L, ERR_CANCELLED, "", "the request has ended");
    if (s->writer) return task_refuse(L, ERR_BUSY, "", "another task is writing");
    switch (request_stream_write(s->r, bytes)) {
    case STREAM_OK:
        lua_pushboolean(L, 1);
        return 1;
    case STREAM_FULL: {
        struct task *t = task_current(L);
        s->writer = t;
        request_on_drain(s->r, drained, s);
        return task_suspend(L, t, cancel_write, s);
    }
    default:
        return task_refuse(L, ERR_CANCELLED, "", "the client has gone");
    }
}

static int l_close(lua_State *L) {
    struct slot *s = slot_of(L);
    if (s) request_stream_end(s->r);
    lua_pushboolean(L, s != NULL);
    return 1;
}

static void file_finished(void *data, const struct error *err) {
    struct slot *s = data;
    struct task *t = s->file_waiter;
    s->file = NULL;
    s->file_waiter = NULL;
    if (err) {
        task_resume_error(t, err);
    } else {
        lua_pushboolean(task_lua(t), 1);
        task_resume(t, 1);
    }
}

static void cancel_file(void *op) {
    struct slot *s = op;
    struct file_send *f = s->file;
    s->file = NULL;
    s->file_waiter = NULL;
    if (f) file_cancel(f);
}

static int l_file(lua_State *L) {
    struct slot *s = live_slot(L);
    struct str path;
    path.at = luaL_checklstring(L, 2, &path.len);
    struct header headers[RESPONSE_HEADERS_MAX];
    size_t count = read_headers(L, 3, s->r, headers);
    struct task *t = task_current(L);
    struct error err;
    if (s->file) return task_refuse(L, ERR_BUSY, "", "a file is being sent");
    s->file = file_send(s->r, path, headers, count, file_finished, s, &err);
    if (!s->file) return task_fail(L, &err);
    s->file_waiter = t;
    return task_suspend(L, t, cancel_file, s);
}

/* Turning into a connection that stays (core.push): the request ends with its task as ever. */

static int l_websocket(lua_State *L) {
    luaL_checktype(L, 2, LUA_TTABLE);
    return bind_push_open(L, live_slot(L)->r, true, NULL, 0);
}

static int l_events(lua_State *L) {
    struct slot *s = live_slot(L);
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    lua_getfield(L, 2, "headers");
    struct header headers[RESPONSE_HEADERS_MAX];
    size_t count = read_headers(L, 3, s->r, headers);
    return bind_push_open(L, s->r, false, headers, count);
}

/* Registering. */

static struct server *need_server(lua_State *L) {
    struct server *s = bind_server_get();
    if (!s) luaL_error(L, "out of memory");
    return s;
}

static struct handler *handler_new(lua_State *L, struct routes *t, int function) {
    struct handler *h = malloc(sizeof *h);
    if (!h || !routes_own(t, h)) {
        luaL_error(L, "out of memory");
        return NULL;
    }
    lua_pushvalue(L, function);
    int kept = luaL_ref(L, LUA_REGISTRYINDEX);
    lua_pushvalue(L, lua_upvalueindex(1));
    *h = (struct handler){.L = task_main(L), .function = kept, .metatable = luaL_ref(L, LUA_REGISTRYINDEX)};
    return h;
}

static int l_route(lua_State *L) {
    struct str method, pattern;
    method.at = luaL_checklstring(L, 1, &method.len);
    pattern.at = luaL_checklstring(L, 2, &pattern.len);
    luaL_checktype(L, 3, LUA_TFUNCTION);
    struct route_options options = {0};
    if (!lua_isnoneornil(L, 4)) {
        luaL_checktype(L, 4, LUA_TTABLE);
        lua_getfield(L, 4, "body_limit");
        lua_getfield(L, 4, "timeout_ms");
        lua_getfield(L, 4, "spool");
        lua_getfield(L, 4, "stream");
        lua_Number limit = lua_tonumber(L, -4), ms = lua_tonumber(L, -3);
        luaL_argcheck(L, limit >= 0 && limit <= 1e12 && ms >= 0 && ms <= 1e9, 4,
                      "body_limit or timeout_ms out of range");
        options = (struct route_options){.body_limit = (size_t)limit,
                                         .timeout_ms = (uint64_t)ms,
                                         .spool = lua_toboolean(L, -2),
                                         .stream = lua_toboolean(L, -1)};
        luaL_argcheck(L, !options.spool || !options.stream, 4, "a body is spooled or streamed");
        lua_pop(L, 4);
    }
    struct routes *t = server_routes(need_server(L));
    struct error err;
    if (!routes_add(t, http_method_of(method), pattern, on_request, handler_new(L, t, 3), &options, &err))
        return luaL_error(L, "%s", err.message);
    return 0;
}

static int l_fallback(lua_State *L) {
    luaL_checktype(L, 1, LUA_TFUNCTION);
    struct routes *t = server_routes(need_server(L));
    routes_fallback(t, on_request, handler_new(L, t, 1));
    return 0;
}

static int l_static(lua_State *L) {
    struct str prefix;
    prefix.at = luaL_checklstring(L, 1, &prefix.len);
    struct error err;
    if (!file_routes(server_routes(need_server(L)), prefix, luaL_checkstring(L, 2), &err))
        return luaL_error(L, "%s", err.message);
    return 0;
}

int luaopen_core_server(lua_State *L) {
    static const luaL_Reg methods[] = {
        {"header", l_header},
        {"headers", l_headers},
        {"cookie", l_cookie},
        {"body", l_body},
        {"json", l_json},
        {"form", l_form},
        {"query_table", l_query_table},
        {"multipart", l_multipart},
        {"read", l_read},
        {"respond", l_respond},
        {"respond_json", l_respond_json},
        {"stream", l_stream},
        {"write", l_write},
        {"close", l_close},
        {"file", l_file},
        {"websocket", l_websocket},
        {"events", l_events},
        {NULL, NULL},
    };
    static const luaL_Reg functions[] = {
        {"route", l_route}, {"fallback", l_fallback}, {"static", l_static}, {NULL, NULL}};
    lua_newtable(L); /* the metatable of requests */
    lua_createtable(L, 0, 32);
    lua_pushvalue(L, -2);
    luaL_setfuncs(L, methods, 1);
    for (int i = 1; i < (int)(sizeof fields / sizeof fields[0]); i++) {
        lua_pushinteger(L, i);
        lua_setfield(L, -2, fields[i]);
    }
    lua_pushvalue(L, -2);
    lua_insert(L, -2);
    lua_pushcclosure(L, l_index, 2);
    lua_setfield(L, -2, "__index");
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");

    lua_createtable(L, 0, 3);
    lua_insert(L, -2);
    luaL_setfuncs(L, functions, 1);
    return 1;
}
