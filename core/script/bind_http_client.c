/* core.http_client: request{url=, method=, headers={}, body=, form={}, timeout_ms=10000, max_bytes=1048576,
 * follow=false, public_only=false, cut=false} -> {status=, headers={[lower case] = text}, body=} | nil, err.
 *
 * stream{url=, method=, headers={}, body=, follow=, public_only=} -> stream | nil, err: an answer that is read as it
 * comes. stream:read() -> text | nil (it has ended) | nil, err; waits until there is some stream:status() -> the
 * answer's status; 0 until its first bytes were read stream:close() ends it. At most 4 MiB wait unread: who is slower
 * than that gets an error.
 *
 * is_public(host) -> whether anybody may be sent to this address, in whatever form it is written | nil: no address.
 *
 * `form` is sent urlencoded. A header that comes several times is joined with ", ", set-cookie with line breaks.
 * `follow` is true (5 redirects) or their number. `cut`: a body above max_bytes is cut off there and is no error. */
#include <lauxlib.h>
#include <math.h>
#include <string.h>

#include "http/client.h"
#include "runtime/loop.h"
#include "script/bind.h"
#include "script/task.h"

enum { MAX_FIELDS = 200 };

static struct str option_text(lua_State *L, const char *name) {
    struct str s = {0};
    lua_getfield(L, 1, name);
    if (!lua_isnil(L, -1)) {
        if (lua_type(L, -1) != LUA_TSTRING) luaL_error(L, "%s must be text", name);
        s.at = lua_tolstring(L, -1, &s.len);
    }
    lua_pop(L, 1); /* the table holds on to it */
    return s;
}

static size_t option_number(lua_State *L, const char *name, lua_Number most) {
    lua_getfield(L, 1, name);
    lua_Number n = lua_isnil(L, -1) ? 0 : lua_type(L, -1) == LUA_TNUMBER ? lua_tonumber(L, -1) : -1;
    lua_pop(L, 1);
    if (!(n >= 0 && n <= most && floor(n) == n)) luaL_error(L, "%s must be a whole number up to %f", name, most);
    return (size_t)n;
}

static bool option_bool(lua_State *L, const char *name) {
    lua_getfield(L, 1, name);
    bool on = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return on;
}

static unsigned option_follow(lua_State *L) {
    lua_getfield(L, 1, "follow");
    bool number = lua_type(L, -1) == LUA_TNUMBER;
    bool on = lua_toboolean(L, -1);
    lua_pop(L, 1);
    if (number) return (unsigned)option_number(L, "follow", 20);
    return on ? 5 : 0;
}

/* Text or a number at the top, turned into text that stays on the stack. */
static struct str text_at(lua_State *L, int idx, const char *what) {
    struct str s = {0};
    int type = lua_type(L, idx);
    if (type != LUA_TSTRING && type != LUA_TNUMBER) luaL_error(L, "%s must be text or numbers", what);
    s.at = lua_tolstring(L, idx, &s.len);
    return s;
}

/* Pushes the texts it refers to, so that they stay. */
static size_t take_headers(lua_State *L, struct http_field *out) {
    size_t count = 0;
    lua_getfield(L, 1, "headers");
    if (lua_isnil(L, -1)) return 0;
    int table = lua_gettop(L);
    luaL_argcheck(L, lua_istable(L, table), 1, "headers must be a table");
    luaL_checkstack(L, MAX_FIELDS + 8, "too many headers");
    lua_pushnil(L);
    while (lua_next(L, table)) {
        luaL_argcheck(L, count < MAX_FIELDS, 1, "too many headers");
        luaL_argcheck(L, lua_type(L, -2) == LUA_TSTRING, 1, "header names must be text");
        out[count].value = text_at(L, lua_gettop(L), "header values");
        out[count].name.at = lua_tolstring(L, -2, &out[count].name.len);
        count++;
        lua_insert(L, -2); /* the value stays below the key, which goes on to the next round */
    }
    return count;
}

static void add_encoded(luaL_Buffer *b, struct str s) {
    static const char hex[] = "0123456789ABCDEF";
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.at[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || strchr("-._~", c);
        if (plain && c) {
            luaL_addchar(b, (char)c);
        } else if (c == ' ') {
            luaL_addchar(b, '+');
        } else {
            luaL_addchar(b, '%');
            luaL_addchar(b, hex[c >> 4]);
            luaL_addchar(b, hex[c & 15]);
        }
    }
}

static void push_encoded(lua_State *L, struct str s) {
    luaL_Buffer b;
    luaL_buffinit(L, &b);
    add_encoded(&b, s);
    luaL_pushresult(&b);
}

/* Pushes the body made of the table `form`. False: there is none, and nothing is pushed. */
static bool take_form(lua_State *L, struct str *body) {
    lua_getfield(L, 1, "form");
    if (lua_isnil(L, -1)) {
        lua_pop(L, 1);
        return false;
    }
    int table = lua_gettop(L), parts = 0;
    luaL_argcheck(L, lua_istable(L, table), 1, "form must be a table");
    luaL_checkstack(L, 4 * MAX_FIELDS + 16, "too many form fields");
    lua_pushnil(L);
    while (lua_next(L, table)) {
        luaL_argcheck(L, ++parts <= MAX_FIELDS, 1, "too many form fields");
        luaL_argcheck(L, lua_type(L, -2) == LUA_TSTRING, 1, "form names must be text");
        int key = lua_gettop(L) - 1;
        struct str name, value = text_at(L, key + 1, "form values");
        name.at = lua_tolstring(L, key, &name.len);
        push_encoded(L, name);
        push_encoded(L, value);
        lua_pushfstring(L, "%s%s=%s", parts > 1 ? "&" : "", lua_tostring(L, -2), lua_tostring(L, -1));
        lua_replace(L, key + 1); /* the part takes the value's place, below the key */
        lua_settop(L, key + 1);
        lua_insert(L, key);
    }
    if (parts) {
        lua_concat(L, parts);
    } else {
        lua_pushliteral(L, "");
    }
    body->at = lua_tolstring(L, -1, &body->len);
    return true;
}

static void push_headers(lua_State *L, const struct http_answer *answer) {
    lua_createtable(L, 0, (int)answer->header_count);
    for (size_t i = 0; i < answer->header_count; i++) {
        const struct http_field *f = &answer->headers[i];
        lua_pushlstring(L, f->name.at, f->name.len);
        lua_pushvalue(L, -1);
        lua_rawget(L, -3);
        if (lua_isnil(L, -1)) {
            lua_pop(L, 1);
            lua_pushlstring(L, f->value.at, f->value.len);
        } else {
            lua_pushstring(L, str_eq(f->name, STR("set-cookie")) ? "\n" : ", ");
            lua_pushlstring(L, f->value.at, f->value.len);
            lua_concat(L, 3);
        }
        lua_rawset(L, -3);
    }
}

static int push_answer(lua_State *L, void *data) {
    const struct http_answer *answer = data;
    lua_createtable(L, 0, 3);
    lua_pushinteger(L, answer->status);
    lua_setfield(L, -2, "status");
    push_headers(L, answer);
    lua_setfield(L, -2, "headers");
    lua_pushlstring(L, answer->body.at, answer->body.len);
    lua_setfield(L, -2, "body");
    return 1;
}

static void done(void *data, const struct http_answer *answer, const struct error *err) {
    if (err)
        task_resume_error(data, err);
    else
        task_answer(data, push_answer, (void *)answer);
}

static void cancel(void *op) {
    http_cancel(op);
}

/* The options of the table at 1; texts stay where they lie, in the table or on the stack. */
static struct http_ask take_ask(lua_State *L, struct http_field headers[MAX_FIELDS + 1]) {
    luaL_checktype(L, 1, LUA_TTABLE);
    struct http_ask ask = {.url = option_text(L, "url"),
                           .method = option_text(L, "method"),
                           .body = option_text(L, "body"),
                           .timeout_ms = (uint32_t)option_number(L, "timeout_ms", 3600000),
                           .max_bytes = option_number(L, "max_bytes", 1e9),
                           .cut = option_bool(L, "cut"),
                           .redirects = option_follow(L),
                           .public_only = option_bool(L, "public_only"),
                           .headers = headers};
    luaL_argcheck(L, ask.url.len > 0, 1, "url is missing");
    ask.header_count = take_headers(L, headers);
    if (take_form(L, &ask.body))
        headers[ask.header_count++] =
            (struct http_field){STR("Content-Type"), STR("application/x-www-form-urlencoded")};
    return ask;
}

static int l_request(lua_State *L) {
    struct task *t = task_current(L);
    struct http_field headers[MAX_FIELDS + 1];
    struct http_ask ask = take_ask(L, headers);
    struct error err = {0};
    struct http_call *call = http_request(&ask, done, t, &err);
    if (!call) return task_fail(L, &err);
    return task_suspend(L, t, cancel, call);
}

/* ---- streams ---- */

#define STREAM "core.http_client.stream"
#define QUEUE_MAX ((size_t)4 * 1024 * 1024)

struct stream {
    struct http_call *call; /* NULL: it has ended, or was closed */
    struct buf queue;       /* come, and not read yet */
    struct task *waiter;    /* in read(); its stack keeps the userdata, and so this */
    struct loop_hook wake;  /* pieces come inside libcurl's callbacks, where Lua must not run */
    struct error err;
    int status;
};

/* What read() answers: text, nil, or nil and the error. */
static int push_next(lua_State *L, void *data) {
    struct stream *s = data;
    if (s->queue.len) {
        lua_pushlstring(L, s->queue.data, s->queue.len);
        buf_clear(&s->queue);
        return 1;
    }
    if (s->err.kind == ERR_NONE) {
        lua_pushnil(L);
        return 1;
    }
    return task_fail(L, &s->err);
}

static void wake(void *data) {
    struct stream *s = data;
    struct task *t = s->waiter;
    if (!t || (s->call && s->queue.len == 0)) return;
    s->waiter = NULL;
    task_answer(t, push_next, s);
}

static bool came(void *data, int status, struct str bytes) {
    struct stream *s = data;
    s->status = status;
    if (s->queue.len + bytes.len > QUEUE_MAX || !buf_add(&s->queue, bytes)) return false;
    loop_at_turn_end(&s->wake);
    return true;
}

static void stream_ended(void *data, const struct http_answer *answer, const struct error *err) {
    struct stream *s = data;
    s->call = NULL;
    if (answer) s->status = answer->status;
    if (err) s->err = *err;
    loop_at_turn_end(&s->wake);
}

static void stop_waiting(void *op) {
    struct stream *s = op;
    s->waiter = NULL;
}

static int l_read(lua_State *L) {
    struct stream *s = luaL_checkudata(L, 1, STREAM);
    struct task *t = task_current(L);
    if (s->waiter) return luaL_error(L, "another task reads this stream");
    if (!s->call || s->queue.len) return push_next(L, s);
    s->waiter = t;
    return task_suspend(L, t, stop_waiting, s);
}

static int l_status(lua_State *L) {
    const struct stream *s = luaL_checkudata(L, 1, STREAM);
    lua_pushinteger(L, s->status);
    return 1;
}

static int l_close(lua_State *L) {
    struct stream *s = luaL_checkudata(L, 1, STREAM);
    if (s->call) http_cancel(s->call);
    s->call = NULL;
    buf_clear(&s->queue);
    if (s->waiter) loop_at_turn_end(&s->wake);
    return 0;
}

static int l_stream_gc(lua_State *L) {
    struct stream *s = luaL_checkudata(L, 1, STREAM);
    if (s->call) http_cancel(s->call);
    s->call = NULL;
    loop_forget(&s->wake);
    buf_free(&s->queue);
    return 0;
}

static int l_stream(lua_State *L) {
    struct http_field headers[MAX_FIELDS + 1];
    struct http_ask ask = take_ask(L, headers);
    struct error err = {0};
    struct stream *s = lua_newuserdata(L, sizeof *s);
    *s = (struct stream){.wake = {.fn = wake, .data = s}};
    luaL_getmetatable(L, STREAM);
    lua_setmetatable(L, -2);
    ask.piece = came;
    s->call = http_request(&ask, stream_ended, s, &err);
    return s->call ? 1 : task_fail(L, &err);
}

static int l_is_public(lua_State *L) {
    struct str host;
    bool open;
    host.at = luaL_checklstring(L, 1, &host.len);
    if (http_host_address(host, &open)) {
        lua_pushboolean(L, open);
    } else {
        lua_pushnil(L);
    }
    return 1;
}

int luaopen_core_http_client(lua_State *L) {
    static const luaL_Reg functions[] = {
        {"request", l_request}, {"stream", l_stream}, {"is_public", l_is_public}, {NULL, NULL}};
    static const luaL_Reg methods[] = {
        {"read", l_read}, {"status", l_status}, {"close", l_close}, {"__gc", l_stream_gc}, {NULL, NULL}};
    if (luaL_newmetatable(L, STREAM)) {
        lua_pushvalue(L, -1);
        lua_setfield(L, -2, "__index");
        luaL_register(L, NULL, methods);
    }
    lua_pop(L, 1);
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
