/* core.uuid: v7() for rows, v4() for what must not tell its time, valid(text). */
#include <lauxlib.h>

#include "runtime/uuid.h"
#include "script/bind.h"

static int l_v7(lua_State *L) {
    char text[37];
    uuid_v7(text);
    lua_pushlstring(L, text, 36);
    return 1;
}

static int l_v4(lua_State *L) {
    char text[37];
    uuid_v4(text);
    lua_pushlstring(L, text, 36);
    return 1;
}

static int l_valid(lua_State *L) {
    struct str s = {.at = NULL, .len = 0};
    if (lua_type(L, 1) == LUA_TSTRING) s.at = lua_tolstring(L, 1, &s.len);
    lua_pushboolean(L, s.at && uuid_valid(s));
    return 1;
}

int luaopen_core_uuid(lua_State *L) {
    static const luaL_Reg functions[] = {{"v7", l_v7}, {"v4", l_v4}, {"valid", l_valid}, {NULL, NULL}};
    lua_newtable(L);
    luaL_setfuncs(L, functions, 0);
    return 1;
}
