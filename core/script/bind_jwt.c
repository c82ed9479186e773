/* core.jwt: sign(claims, key, algorithm) -> token; verify(token, key, algorithm) -> claims | nil, err with code
 * expired, bad_signature or malformed. Expiry is compared with the business clock. */
#include <lauxlib.h>
#include <string.h>

#include "crypto/token.h"
#include "runtime/clock.h"
#include "script/bind.h"
#include "script/guard.h"
#include "script/json.h"
#include "script/task.h"

static int l_sign(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    struct str key;
    key.at = luaL_checklstring(L, 2, &key.len);
    const char *algorithm = luaL_optstring(L, 3, "HS256");
    struct buf claims = {0}, token = {0};
    struct error err;
    bool ok = json_encode(L, 1, &claims, &err) &&
              (buf_byte(&claims, '\0') || error_set(&err, ERR_MEMORY, "out of memory")) &&
              token_sign(claims.data, key, algorithm, &token, &err);
    buf_free(&claims);
    if (!ok) {
        buf_free(&token);
        return luaL_error(L, "jwt.sign: %s", err.message);
    }
    guard_push_buf(L, &token);
    return 1;
}

static int refuse(lua_State *L, struct error *err, const char *code, const char *message) {
    error_set(err, ERR_INVALID, "%s", message);
    memcpy(err->code, code, strlen(code) + 1);
    return task_fail(L, err);
}

static int l_verify(lua_State *L) {
    size_t len;
    const char *token = luaL_checklstring(L, 1, &len);
    struct str key;
    key.at = luaL_checklstring(L, 2, &key.len);
    const char *algorithm = luaL_optstring(L, 3, "HS256");
    struct error err;
    if (len > 8192 || strlen(token) != len) return refuse(L, &err, "malformed", "not a token");
    struct buf claims = {0};
    if (!token_verify(token, key, algorithm, &claims, &err)) {
        buf_free(&claims);
        return task_fail(L, &err);
    }
    guard_push_buf(L, &claims);
    struct str text;
    text.at = lua_tolstring(L, -1, &text.len);
    if (!json_decode(L, text, &err)) return refuse(L, &err, "malformed", "the claims are no JSON");
    if (!lua_istable(L, -1)) return refuse(L, &err, "malformed", "the claims are no object");
    lua_getfield(L, -1, "exp");
    bool expired = lua_isnumber(L, -1) && lua_tonumber(L, -1) * 1000 <= (lua_Number)clock_now();
    lua_pop(L, 1);
    if (expired) return refuse(L, &err, "expired", "the token has expired");
    return 1;
}

int luaopen_core_jwt(lua_State *L) {
    static const luaL_Reg functions[] = {{"sign", l_sign}, {"verify", l_verify}, {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
