/* core.config: get(name), env(), all(), version. */
#include <lauxlib.h>

#include "runtime/config.h"
#include "script/bind.h"

static void push_value(lua_State *L, const char *name, enum config_type type) {
    const char *text;
    switch (type) {
    case CONFIG_INT:
        lua_pushnumber(L, (lua_Number)config_int(name));
        return;
    case CONFIG_BOOL:
        lua_pushboolean(L, config_bool(name));
        return;
    case CONFIG_TEXT:
        text = config_str(name);
        if (text)
            lua_pushstring(L, text);
        else
            lua_pushnil(L);
        return;
    }
}

static int l_get(lua_State *L) {
    const char *name = luaL_checkstring(L, 1);
    enum config_type type;
    if (!config_has(name, &type)) return luaL_error(L, "there is no setting %s", name);
    push_value(L, name, type);
    return 1;
}

static int l_env(lua_State *L) {
    static const char *const names[] = {
        [ENV_DEVELOPMENT] = "development", [ENV_TEST] = "test", [ENV_PRODUCTION] = "production"};
    lua_pushstring(L, names[config_env()]);
    return 1;
}

static int l_all(lua_State *L) {
    struct config_entry e;
    lua_newtable(L);
    for (size_t i = 0; config_entry(i, &e); i++) {
        lua_createtable(L, 0, 6);
        lua_pushstring(L, e.name);
        lua_setfield(L, -2, "name");
        lua_pushstring(L, e.shown);
        lua_setfield(L, -2, "value");
        lua_pushstring(L, e.origin);
        lua_setfield(L, -2, "origin");
        lua_pushstring(L, e.help);
        lua_setfield(L, -2, "help");
        lua_pushboolean(L, e.secret);
        lua_setfield(L, -2, "secret");
        lua_pushboolean(L, e.live);
        lua_setfield(L, -2, "live");
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}

int luaopen_core_config(lua_State *L) {
    static const luaL_Reg functions[] = {{"get", l_get}, {"env", l_env}, {"all", l_all}, {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    lua_pushstring(L, KASMA_VERSION);
    lua_setfield(L, -2, "version");
    return 1;
}
