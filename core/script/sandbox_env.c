/* The globals of rule code: read-only views all the way down. A view is an empty table whose metatable reads from the
 * real one and refuses writes; rule code has no raw functions to get round it, and the table functions ask
 * sandbox_check_writable. What is absent says so, with a hint.
 *
 * A library is made when it is first named, and those of schema one by one: most rules use three or four, and there are
 * thousands of states. */
#include <lauxlib.h>
#include <lualib.h>

#include "script/sandbox_internal.h"
#include "script/sandbox_wait.h"

static char frozen_key; /* metatable[&frozen_key] = true: one of our own tables */

void sandbox_check_writable(lua_State *L, int idx) {
    if (!lua_getmetatable(L, idx)) return;
    lua_pushlightuserdata(L, &frozen_key);
    lua_rawget(L, -2);
    if (lua_toboolean(L, -1)) luaL_error(L, "this table is read-only");
    lua_pop(L, 1);
    sandbox_note_write(L);
    lua_pop(L, 1);
}

static int refuse_write(lua_State *L) {
    return luaL_error(L, "%s", lua_tostring(L, lua_upvalueindex(1)));
}

static bool open_library(lua_State *L, const char *name);

/* __index of the real table (argument 1) of a view. */
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
    if (strcmp(library, "schema") == 0 && lua_type(L, 2) == LUA_TSTRING && sandbox_push_schema(L, name)) {
        lua_pushvalue(L, 2);
        lua_pushvalue(L, -2);
        lua_rawset(L, 1);
        return 1;
    }
    if (*library) return luaL_error(L, "'%s.%s' is not available in rules", library, name);
    if (lua_type(L, 2) == LUA_TSTRING && open_library(L, name)) return 1;
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
static void open_log(lua_State *L) {
    static const luaL_Reg functions[] = {{"warn", sandbox_log_call}, {NULL, NULL}};
    lua_newtable(L);
    luaL_setfuncs(L, functions, 0);
    sandbox_freeze(L, "log");
    int made = lua_getmetatable(L, -1);
    (void)made; /* freeze has just set it */
    lua_pushcfunction(L, sandbox_log_call);
    lua_pushcclosure(L, call_log, 1);
    lua_setfield(L, -2, "__call");
    lua_pop(L, 1);
}

/* Lua's own library is opened among globals of its own, to take the few functions that need no bound. */
static void open_math(lua_State *L) {
    static const char *const names[] = {"abs", "ceil", "floor", "fmod", "max", "min", "huge", NULL};
    lua_newtable(L);
    int to = lua_gettop(L);
    lua_pushvalue(L, LUA_GLOBALSINDEX);
    lua_newtable(L);
    lua_replace(L, LUA_GLOBALSINDEX);
    lua_pushcfunction(L, luaopen_math);
    lua_pushliteral(L, LUA_MATHLIBNAME);
    lua_call(L, 1, 0);
    lua_getfield(L, LUA_GLOBALSINDEX, LUA_MATHLIBNAME);
    take(L, to + 2, to, names);
    lua_pop(L, 1);
    lua_replace(L, LUA_GLOBALSINDEX);
    lua_getfield(L, LUA_REGISTRYINDEX, "_LOADED");
    lua_pushnil(L);
    lua_setfield(L, -2, LUA_MATHLIBNAME);
    lua_pop(L, 1);
}

/* Pushes the functions of strings, which are their methods too. */
static void push_string(lua_State *L) {
    lua_pushliteral(L, ""); /* one metatable is shared by all */
    int top = lua_gettop(L), has = lua_getmetatable(L, top);
    if (has) lua_getfield(L, -1, "__index");
    if (!has || !lua_istable(L, -1)) {
        lua_settop(L, top);
        sandbox_open_string(L);
        lua_createtable(L, 0, 1);
        lua_pushvalue(L, -2);
        lua_setfield(L, -2, "__index");
        lua_setmetatable(L, top);
    }
    lua_replace(L, top);
    lua_settop(L, top);
}

/* A method of a string before `string` was named. */
static int first_method(lua_State *L) {
    lua_getfield(L, LUA_GLOBALSINDEX, "string"); /* makes it */
    push_string(L);
    lua_pushvalue(L, 2);
    lua_gettable(L, -2);
    return 1;
}

/* Pushes the library of that name, which is then a member of the globals, whose real table is argument 1. */
static bool open_library(lua_State *L, const char *name) {
    static const struct {
        const char *name;
        void (*open)(lua_State *L);
    } libraries[] = {{"table", sandbox_open_table}, {"money", sandbox_open_money},
                     {"set", sandbox_open_set},     {"schema", sandbox_open_schema},
                     {"text", sandbox_open_text},   {"dt", sandbox_open_dt},
                     {"math", open_math},           {"string", push_string}};
    size_t i = 0;
    if (strcmp(name, "log") == 0) {
        open_log(L);
    } else if (strcmp(name, "time") == 0) {
        lua_getfield(L, 1, "dt");
    } else if (sandbox_open_capability(L, name)) {
        return true;
    } else {
        while (i < sizeof libraries / sizeof *libraries && strcmp(libraries[i].name, name) != 0) i++;
        if (i == sizeof libraries / sizeof *libraries) return false;
        libraries[i].open(L);
        sandbox_freeze(L, libraries[i].name);
    }
    lua_pushvalue(L, -1);
    lua_setfield(L, 1, name);
    return true;
}

void sandbox_push_globals(lua_State *L) {
    static const char *const names[] = {"assert", "error", "ipairs", "select", "type", NULL};
    lua_settop(L, 0);
    lua_createtable(L, 0, 24);
    /* Lua's own functions lie in the table that rule code never sees. */
    lua_pushcfunction(L, luaopen_base);
    lua_pushliteral(L, "");
    lua_call(L, 1, 0);
    take(L, LUA_GLOBALSINDEX, 1, names);
    sandbox_open_base(L);
    sandbox_open_lib(L);
    /* Before strings get their methods: Lua's own come along with this for a moment. */
    if (sandbox_of(L)->waits) sandbox_open_capabilities(L);
    lua_pushliteral(L, "");
    lua_createtable(L, 0, 1);
    lua_pushcfunction(L, first_method);
    lua_setfield(L, -2, "__index");
    lua_setmetatable(L, -2);
    lua_pop(L, 1);
    sandbox_freeze(L, "");
}

/* Makes all libraries, so that they can be listed. */
static int open_all(lua_State *L) {
    static const char *const all[] = {"table", "money", "set", "schema", "text", "dt", "math", "string", "log", "time"};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) lua_getfield(L, LUA_GLOBALSINDEX, all[i]);
    lua_getfield(L, LUA_GLOBALSINDEX, "schema");
    for (size_t i = 0; sandbox_schema_name(i); i++) {
        lua_getfield(L, -1, sandbox_schema_name(i));
        lua_pop(L, 1);
    }
    for (size_t i = 0; i < sandbox_declared(); i++) {
        lua_settop(L, 0);
        sandbox_push_capability_word(L, i);
        lua_gettable(L, LUA_GLOBALSINDEX);
    }
    return 0;
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
    if (lua_cpcall(L, open_all, NULL) != 0) {
        lua_settop(L, 0);
        return error_set(err, ERR_MEMORY, "out of memory");
    }
    lua_newtable(to);
    lua_pushvalue(L, LUA_GLOBALSINDEX);
    list_names(L, to, 0);
    lua_settop(L, 0);
    return true;
}
