/* The globals of rule code: read-only views all the way down. A view is an empty table whose metatable reads from the
 * real one and refuses writes; rule code has no raw functions to get round it, and the table functions ask
 * sandbox_check_writable. What is absent says so, with a hint. */
#include <lauxlib.h>
#include <lualib.h>

#include "script/sandbox_internal.h"

static char frozen_key; /* metatable[&frozen_key] = true: one of our own tables */

void sandbox_check_writable(lua_State *L, int idx) {
    if (!lua_getmetatable(L, idx)) return;
    lua_pushlightuserdata(L, &frozen_key);
    lua_rawget(L, -2);
    if (lua_toboolean(L, -1)) luaL_error(L, "this table is read-only");
    lua_pop(L, 2);
}

static int refuse_write(lua_State *L) {
    return luaL_error(L, "%s", lua_tostring(L, lua_upvalueindex(1)));
}

static int refuse_read(lua_State *L) {
    static const char *const hints[][2] = {
        {"os", "for the time use input.now"},
        {"io", "rules read only their input"},
        {"print", "use log()"},
        {"require", "use lib()"},
        {"next", "use pairs"},
        {"coroutine", "rules run from end to end"},
        {"setmetatable", NULL},
        {"getmetatable", NULL},
        {"load", NULL},
        {"loadstring", NULL},
        {"rawset", NULL},
        {"rawget", NULL},
        {"debug", NULL},
        {"ffi", NULL},
        {"jit", NULL},
        {"package", NULL},
        {"bit", NULL},
        {"_G", "use local"},
        {"setfenv", NULL},
        {"getfenv", NULL},
        {"collectgarbage", NULL},
        {"newproxy", NULL},
        {"xpcall", "use pcall"},
        {"dofile", NULL},
    };
    const char *library = lua_tostring(L, lua_upvalueindex(1));
    char number[32];
    size_t len;
    const char *name = sandbox_text(L, 2, number, &len);
    if (*library) return luaL_error(L, "'%s.%s' is not available in rules", library, name);
    for (size_t i = 0; i < sizeof hints / sizeof *hints; i++) {
        if (strcmp(hints[i][0], name) != 0) continue;
        return hints[i][1] ? luaL_error(L, "'%s' is not available in rules; %s", name, hints[i][1])
                           : luaL_error(L, "'%s' is not available in rules", name);
    }
    return luaL_error(L, "'%s' is not defined", name);
}

void sandbox_freeze(lua_State *L, const char *library) {
    lua_newtable(L); /* metatable of the table: reading what it lacks */
    lua_pushstring(L, library);
    lua_pushcclosure(L, refuse_read, 1);
    lua_setfield(L, -2, "__index");
    lua_setmetatable(L, -2);
    lua_newtable(L); /* the view */
    lua_createtable(L, 0, 4);
    lua_pushvalue(L, -3);
    lua_setfield(L, -2, "__index");
    lua_pushstring(L, *library ? "libraries are read-only" : "globals are read-only in rules; use local");
    lua_pushcclosure(L, refuse_write, 1);
    lua_setfield(L, -2, "__newindex");
    lua_pushlightuserdata(L, &frozen_key);
    lua_pushboolean(L, 1);
    lua_rawset(L, -3);
    lua_setmetatable(L, -2);
    lua_remove(L, -2);
}

static void take(lua_State *L, int from, int to, const char *const *names) {
    for (; *names; names++) {
        lua_getfield(L, from, *names);
        lua_setfield(L, to, *names);
    }
}

static int call_log(lua_State *L) {
    lua_remove(L, 1);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_call(L, lua_gettop(L) - 1, 0);
    return 0;
}

/* `log` is called, and has `warn`. */
static void open_log(lua_State *L, int base) {
    lua_newtable(L);
    lua_getfield(L, base, "log");
    lua_setfield(L, -2, "warn");
    sandbox_freeze(L, "log");
    int made = lua_getmetatable(L, -1);
    (void)made; /* freeze has just set it */
    lua_getfield(L, base, "log");
    lua_pushcclosure(L, call_log, 1);
    lua_setfield(L, -2, "__call");
    lua_pop(L, 1);
    lua_setfield(L, base, "log");
}

void sandbox_push_globals(lua_State *L) {
    static const char *const base_names[] = {"assert", "error", "ipairs", "select", "type", NULL};
    static const char *const math_names[] = {"abs", "ceil", "floor", "fmod", "max", "min", "huge", NULL};
    static const struct {
        const char *name;
        void (*open)(lua_State *L);
    } libraries[] = {{"table", sandbox_open_table},   {"money", sandbox_open_money}, {"set", sandbox_open_set},
                     {"schema", sandbox_open_schema}, {"text", sandbox_open_text},   {"dt", sandbox_open_dt}};

    lua_settop(L, 0);
    /* Lua's own libraries are opened once, to take the few functions that need no bound, then dropped. */
    lua_pushcfunction(L, luaopen_base);
    lua_pushliteral(L, "");
    lua_call(L, 1, 0);
    lua_pushcfunction(L, luaopen_math);
    lua_pushliteral(L, LUA_MATHLIBNAME);
    lua_call(L, 1, 0);
    lua_newtable(L);
    take(L, LUA_GLOBALSINDEX, 1, base_names);
    sandbox_open_base(L);
    sandbox_open_lib(L);
    /* Before strings get their methods: Lua's own come along with this for a moment. */
    sandbox_open_capabilities(L);
    lua_newtable(L);
    lua_getfield(L, LUA_GLOBALSINDEX, "math");
    take(L, 3, 2, math_names);
    lua_settop(L, 2);
    sandbox_freeze(L, "math");
    lua_setfield(L, 1, "math");
    for (size_t i = 0; i < sizeof libraries / sizeof *libraries; i++) {
        libraries[i].open(L);
        sandbox_freeze(L, libraries[i].name);
        lua_setfield(L, 1, libraries[i].name);
    }
    lua_getfield(L, 1, "dt");
    lua_setfield(L, 1, "time");
    sandbox_open_string(L);
    lua_pushliteral(L, ""); /* the methods of strings; their metatable is shared by all */
    lua_createtable(L, 0, 1);
    lua_pushvalue(L, 2);
    lua_setfield(L, -2, "__index");
    lua_setmetatable(L, -2);
    lua_pop(L, 1);
    sandbox_freeze(L, "string");
    lua_setfield(L, 1, "string");
    open_log(L, 1);
    sandbox_freeze(L, "");
}

/* Walks a view of ours: `to` gets its names. */
static void list_names(lua_State *L, lua_State *to, int depth) {
    if (!lua_getmetatable(L, -1)) return;
    lua_getfield(L, -1, "__index"); /* the real table */
    lua_pushnil(L);
    while (lua_next(L, -2)) {
        const char *name = lua_tostring(L, -2);
        lua_pushstring(to, name);
        if (depth == 0 && lua_istable(L, -1)) {
            lua_newtable(to);
            list_names(L, to, 1);
        } else {
            lua_pushboolean(to, 1);
        }
        lua_rawset(to, -3);
        lua_pop(L, 1);
    }
    lua_pop(L, 2);
}

bool sandbox_globals(struct sandbox *sb, lua_State *to, struct error *err) {
    lua_State *L = sb->L;
    if (!lua_checkstack(L, 16) || !lua_checkstack(to, 8)) return error_set(err, ERR_MEMORY, "out of memory");
    lua_newtable(to);
    lua_pushvalue(L, LUA_GLOBALSINDEX);
    list_names(L, to, 0);
    lua_settop(L, 0);
    return true;
}
