/* How input is made for rule code.
 *
 * A record is a plain table whose metatable only answers for fields it does not hold: a field the record may have is
 * nil, any other name is an error with the nearest name. So # and ipairs work as on any table, which they would not on
 * a proxy.
 *
 * A view is how several rules are given the same record without building it again for each: an empty table that reads
 * through to the record (the source), which rule code never holds. What a rule writes stays in its own view; a member
 * that is itself a table is not held by the source but made anew each time it is read, so that there is nothing shared
 * that could be changed. `pairs` fills a view before it walks it. */
#include "script/sandbox_internal.h"

static char view_key; /* metatable[&view_key] = the source's kind: the metatable of a view */

static int unknown_field(lua_State *L, const struct sandbox_record *record) {
    if (lua_type(L, 2) != LUA_TSTRING) return 0;
    const char *name = lua_tostring(L, 2);
    for (size_t i = 0; i < record->count; i++)
        if (strcmp(record->fields[i], name) == 0) return 0;
    const char *near = sandbox_nearest(name, record->fields, record->count);
    return luaL_error(L, "unknown_field: %s has no field '%s'%s%s%s", record->path, name,
                      near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
}

static int l_absent(lua_State *L) {
    return unknown_field(L, lua_touserdata(L, lua_upvalueindex(1)));
}

void sandbox_mark_record(lua_State *L, const struct sandbox_record *record) {
    lua_pushlightuserdata(L, (void *)record);
    lua_rawget(L, LUA_REGISTRYINDEX);
    if (lua_isnil(L, -1)) {
        lua_pop(L, 1);
        lua_createtable(L, 0, 1);
        lua_pushlightuserdata(L, (void *)record);
        lua_pushcclosure(L, l_absent, 1);
        lua_setfield(L, -2, "__index");
        lua_pushlightuserdata(L, (void *)record);
        lua_pushvalue(L, -2);
        lua_rawset(L, LUA_REGISTRYINDEX);
    }
    lua_setmetatable(L, -2);
}

/* What the source itself does not hold. Its place lies at its index 0, which no rule sees: keys of records are names.
 */
static int l_more(lua_State *L) {
    const struct sandbox_source *kind = lua_touserdata(L, lua_upvalueindex(1));
    if (lua_type(L, 2) == LUA_TSTRING && kind->more) {
        void *context = sandbox_of(L)->context;
        lua_rawgeti(L, 1, 0);
        size_t place = (size_t)lua_tointeger(L, -1);
        lua_pop(L, 1);
        if (context && kind->more(L, lua_tostring(L, 2), place, context)) return 1;
    }
    return unknown_field(L, &kind->record);
}

/* Pushes the metatable that all sources of a kind share. */
static void push_source_mt(lua_State *L, const struct sandbox_source *kind) {
    /* Its record may be the key of another metatable, and begins where it does. */
    void *key = (char *)(void *)kind + 1;
    lua_pushlightuserdata(L, key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    if (!lua_isnil(L, -1)) return;
    lua_pop(L, 1);
    lua_createtable(L, 0, 1);
    lua_pushlightuserdata(L, (void *)kind);
    lua_pushcclosure(L, l_more, 1);
    lua_setfield(L, -2, "__index");
    lua_pushlightuserdata(L, key);
    lua_pushvalue(L, -2);
    lua_rawset(L, LUA_REGISTRYINDEX);
}

void sandbox_make_source(lua_State *L, const struct sandbox_source *kind, size_t place) {
    lua_pushinteger(L, (lua_Integer)place);
    lua_rawseti(L, -2, 0);
    push_source_mt(L, kind);
    lua_setmetatable(L, -2);
    lua_createtable(L, 0, 2); /* of its views */
    lua_insert(L, -2);
    lua_setfield(L, -2, "__index");
    lua_pushlightuserdata(L, &view_key);
    lua_pushlightuserdata(L, (void *)kind);
    lua_rawset(L, -3);
}

void sandbox_push_view(lua_State *L, int sources, int place) {
    lua_createtable(L, 0, 0);
    lua_rawgeti(L, sources, place);
    lua_setmetatable(L, -2);
}

void sandbox_set_context(lua_State *L, void *context) {
    sandbox_of(L)->context = context;
}

void sandbox_fill_view(lua_State *L, int idx) {
    if (!lua_getmetatable(L, idx)) return;
    int top = lua_gettop(L);
    lua_pushlightuserdata(L, &view_key);
    lua_rawget(L, top);
    const struct sandbox_source *kind = lua_touserdata(L, -1);
    if (!kind) {
        lua_settop(L, top - 1);
        return;
    }
    sandbox_charge(L, kind->record.count);
    for (size_t i = 0; i < kind->record.count; i++) {
        lua_pushstring(L, kind->record.fields[i]);
        lua_pushvalue(L, -1);
        lua_rawget(L, idx);
        if (lua_isnil(L, -1)) {
            lua_pop(L, 1);
            lua_pushvalue(L, -1);
            lua_gettable(L, idx);
            if (!lua_isnil(L, -1)) lua_rawset(L, idx);
        }
        lua_settop(L, top);
    }
    lua_settop(L, top - 1);
}
