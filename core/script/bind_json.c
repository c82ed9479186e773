/* core.json: decode(text) -> value | nil, err; encode(value) -> text (raises on what cannot be JSON: that is a bug of
 * the code that built the value); null; array(t), empty_array, object(order, t). */
#include "script/bind_json.h"

#include <lauxlib.h>

#include "script/bind.h"
#include "script/json.h"
#include "script/task.h"

/* Kept between calls, so that a Lua error in the middle of encoding loses nothing. Encoding does not yield. */
static struct buf text;
#define KEEP ((size_t)1024 * 1024)

static int l_decode(lua_State *L) {
    struct str s;
    s.at = luaL_checklstring(L, 1, &s.len);
    struct error err = {0};
    if (json_decode(L, s, &err)) return 1;
    return task_fail(L, &err);
}

struct str bind_json_text(lua_State *L, int idx, bool sorted) {
    struct error err = {0};
    if (text.cap > KEEP) buf_free(&text);
    buf_clear(&text);
    bool ok = sorted ? json_encode_sorted(L, idx, &text, &err) : json_encode(L, idx, &text, &err);
    if (!ok) luaL_error(L, "json.encode: %s", err.message);
    return buf_str(&text);
}

static int l_encode(lua_State *L) {
    luaL_checkany(L, 1);
    struct str s = bind_json_text(L, 1, false);
    lua_pushlstring(L, s.at, s.len);
    if (text.cap > KEEP) buf_free(&text);
    return 1;
}

static int l_array(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    json_mark_array(L, 1);
    return 1;
}

static int l_object(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    json_push_order_mt(L, 1);
    lua_setmetatable(L, 2);
    return 1;
}

static int l_is_array(lua_State *L) {
    bool yes = lua_istable(L, 1) && (lua_objlen(L, 1) > 0 || json_is_marked(L, 1));
    lua_pushboolean(L, yes);
    return 1;
}

static int refuse_change(lua_State *L) {
    return luaL_error(L, "json.empty_array is shared: make your own with json.array{}");
}

int luaopen_core_json(lua_State *L) {
    static const luaL_Reg functions[] = {{"decode", l_decode}, {"encode", l_encode},     {"array", l_array},
                                         {"object", l_object}, {"is_array", l_is_array}, {NULL, NULL}};
    json_keep_keys(L);
    lua_newtable(L);
    luaL_setfuncs(L, functions, 0);
    lua_pushlightuserdata(L, NULL);
    lua_setfield(L, -2, "null");
    lua_newtable(L);
    lua_createtable(L, 0, 2);
    json_push_array_mark(L);
    lua_pushboolean(L, 1);
    lua_rawset(L, -3);
    lua_pushcfunction(L, refuse_change);
    lua_setfield(L, -2, "__newindex");
    lua_setmetatable(L, -2);
    lua_setfield(L, -2, "empty_array");
    return 1;
}
