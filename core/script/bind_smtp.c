/* core.smtp: send{host=, port=, tls="off"|"try"|"required"|"implicit", ca_file=, helo=, user=, pass=, from=, to=,
 * message=, timeout_ms=30000} -> {accepted=, code=, command=, reply=} | nil, err. A refusal of the server is an answer
 * too. */
#include <lauxlib.h>
#include <math.h>

#include "http/smtp.h"
#include "script/bind.h"
#include "script/task.h"

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

static lua_Number option_number(lua_State *L, const char *name, lua_Number most) {
    lua_getfield(L, 1, name);
    lua_Number n = lua_isnil(L, -1) ? 0 : lua_type(L, -1) == LUA_TNUMBER ? lua_tonumber(L, -1) : -1;
    lua_pop(L, 1);
    if (!(n >= 0 && n <= most && floor(n) == n)) luaL_error(L, "%s must be a whole number up to %f", name, most);
    return n;
}

static int push_answer(lua_State *L, void *data) {
    const struct smtp_answer *answer = data;
    lua_createtable(L, 0, 4);
    lua_pushboolean(L, answer->accepted);
    lua_setfield(L, -2, "accepted");
    lua_pushinteger(L, answer->code);
    lua_setfield(L, -2, "code");
    lua_pushstring(L, answer->command);
    lua_setfield(L, -2, "command");
    lua_pushlstring(L, answer->reply.at, answer->reply.len);
    lua_setfield(L, -2, "reply");
    return 1;
}

static void done(void *data, const struct smtp_answer *answer, const struct error *err) {
    if (err)
        task_resume_error(data, err);
    else
        task_answer(data, push_answer, (void *)answer);
}

static void cancel(void *op) {
    smtp_cancel(op);
}

static int l_send(lua_State *L) {
    static const char *const ways[] = {"off", "try", "required", "implicit", NULL};
    static const enum smtp_tls kinds[] = {SMTP_TLS_OFF, SMTP_TLS_TRY, SMTP_TLS_REQUIRED, SMTP_TLS_IMPLICIT};
    struct task *t = task_current(L);
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_getfield(L, 1, "tls");
    enum smtp_tls tls = kinds[luaL_checkoption(L, -1, "required", ways)];
    lua_pop(L, 1);
    struct smtp_ask ask = {.host = option_text(L, "host"),
                           .port = (uint16_t)option_number(L, "port", 65535),
                           .tls = tls,
                           .ca_file = option_text(L, "ca_file"),
                           .helo = option_text(L, "helo"),
                           .user = option_text(L, "user"),
                           .pass = option_text(L, "pass"),
                           .from = option_text(L, "from"),
                           .to = option_text(L, "to"),
                           .message = option_text(L, "message"),
                           .timeout_ms = (uint32_t)option_number(L, "timeout_ms", 3600000)};
    struct error err = {0};
    struct smtp_call *call = smtp_send(&ask, done, t, &err);
    if (!call) return task_fail(L, &err);
    return task_suspend(L, t, cancel, call);
}

static int l_address_ok(lua_State *L) {
    struct str s;
    s.at = luaL_checklstring(L, 1, &s.len);
    lua_pushboolean(L, smtp_address_ok(s));
    return 1;
}

int luaopen_core_smtp(lua_State *L) {
    static const luaL_Reg functions[] = {{"send", l_send}, {"address_ok", l_address_ok}, {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
