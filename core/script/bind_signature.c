/* core.signature: key(pem) -> key | nil, err; key:algorithm(), key:is_private(), key:sign(message), key:verify(message,
 * signature), key:jwk(). See crypto/signature.h. */
#include <lauxlib.h>

#include "crypto/signature.h"
#include "script/bind.h"
#include "script/guard.h"
#include "script/task.h"

static const char KEY[] = "core.signature.key";

static struct signature_key *check_key(lua_State *L) {
    struct signature_key **key = luaL_checkudata(L, 1, KEY);
    luaL_argcheck(L, *key, 1, "the key is gone");
    return *key;
}

static struct str check_str(lua_State *L, int idx) {
    struct str s;
    s.at = luaL_checklstring(L, idx, &s.len);
    return s;
}

static int l_key(lua_State *L) {
    struct str pem = check_str(L, 1);
    struct signature_key **slot = lua_newuserdata(L, sizeof(struct signature_key *));
    *slot = NULL;
    luaL_getmetatable(L, KEY);
    lua_setmetatable(L, -2);
    struct error err;
    *slot = signature_key_new(pem, &err);
    return *slot ? 1 : task_fail(L, &err);
}

static int l_gc(lua_State *L) {
    struct signature_key **key = luaL_checkudata(L, 1, KEY);
    signature_key_free(*key);
    *key = NULL;
    return 0;
}

static int l_algorithm(lua_State *L) {
    lua_pushstring(L, signature_algorithm(check_key(L)));
    return 1;
}

static int l_is_private(lua_State *L) {
    lua_pushboolean(L, signature_is_private(check_key(L)));
    return 1;
}

static int give(lua_State *L, bool ok, struct buf *b, struct error *err) {
    if (ok) {
        guard_push_buf(L, b);
        return 1;
    }
    buf_free(b);
    return task_fail(L, err);
}

static int l_sign(lua_State *L) {
    struct signature_key *key = check_key(L);
    struct str message = check_str(L, 2);
    struct buf out = {0};
    struct error err;
    bool ok = signature_make(key, message, &out, &err);
    return give(L, ok, &out, &err);
}

static int l_verify(lua_State *L) {
    struct signature_key *key = check_key(L);
    struct str message = check_str(L, 2), signature = check_str(L, 3);
    lua_pushboolean(L, signature_check(key, message, signature));
    return 1;
}

static int l_jwk(lua_State *L) {
    struct signature_key *key = check_key(L);
    struct buf out = {0};
    struct error err;
    bool ok = signature_jwk(key, &out, &err);
    return give(L, ok, &out, &err);
}

int luaopen_core_signature(lua_State *L) {
    static const luaL_Reg methods[] = {{"algorithm", l_algorithm},
                                       {"is_private", l_is_private},
                                       {"sign", l_sign},
                                       {"verify", l_verify},
                                       {"jwk", l_jwk},
                                       {"__gc", l_gc},
                                       {NULL, NULL}};
    static const luaL_Reg functions[] = {{"key", l_key}, {NULL, NULL}};
    luaL_newmetatable(L, KEY);
    luaL_register(L, NULL, methods);
    lua_pushvalue(L, -1);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
