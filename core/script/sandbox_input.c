/* How input is made for rule code.
 *
 * A record is a plain table whose metatable only answers for fields it does not hold: a field the record may have is
 * nil, any other name is an error with the nearest name. So # and ipairs work as on any table, which they would not on
 * a proxy.
 *
 * A source is a record that all rules of a shot (one hook call) read and none holds. What they hold is its view: an
 * empty table that reads through to it. A member of a source that is a number or text is put into it when it is first
 * asked for, and from then on at the beginning of each shot, for all sources of its kind: so what this shop's rules
 * look at costs one table access, and what they never look at costs nothing. A member that is itself a table is made
 * anew each time it is read, so that there is nothing shared that could be changed.
 *
 * Sources and views lie on the state's desk and are used again, by the next rule and by the next quote. What must hold
 * for that: a view is empty when a rule is given it. The first write to one (by assignment, by a function of `table`,
 * or by `pairs`, which fills it before it walks) marks the desk as soiled, and all views are made anew for the next
 * run. Rules cannot keep one (see sandbox.h), so nothing that one rule did is seen by another. */
#include "script/sandbox_internal.h"

static char view_key; /* metatable[&view_key] = the source's kind: the metatable of a view */

/* desk[3 * place + PART] */
enum { SOURCE, META, VIEW, PARTS };

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

/* What the source itself does not hold. Upvalues: kind, {name = field number}. The source's line lies at its index 0,
 * which no rule sees: keys of records are names. */
static int l_more(lua_State *L) {
    struct sandbox *sb = sandbox_of(L);
    const struct sandbox_source *kind = lua_touserdata(L, lua_upvalueindex(1));
    lua_settop(L, 2);
    lua_pushvalue(L, 2);
    lua_rawget(L, lua_upvalueindex(2));
    if (lua_isnil(L, -1)) return unknown_field(L, &kind->record);
    size_t field = (size_t)lua_tointeger(L, -1);
    if (!sb->context || !kind->more) return 0;
    lua_rawgeti(L, 1, 0);
    size_t line = (size_t)lua_tointeger(L, -1);
    if (!kind->more(L, field, line, sb->context)) return 0;
    if (kind->kept >> field & 1) {
        sb->wanted |= UINT64_C(1) << field;
        lua_pushvalue(L, 2);
        lua_pushvalue(L, -2);
        lua_rawset(L, 1);
    }
    return 1;
}

/* A rule writes to a view: table, key, value. */
static int l_write(lua_State *L) {
    sandbox_of(L)->soiled = true;
    lua_rawset(L, 1);
    return 0;
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
    lua_createtable(L, 0, (int)kind->record.count);
    for (size_t i = 0; i < kind->record.count; i++) {
        lua_pushinteger(L, (lua_Integer)i);
        lua_setfield(L, -2, kind->record.fields[i]);
    }
    lua_pushcclosure(L, l_more, 2);
    lua_setfield(L, -2, "__index");
    lua_pushlightuserdata(L, key);
    lua_pushvalue(L, -2);
    lua_rawset(L, LUA_REGISTRYINDEX);
}

/* Pushes the desk of the state. */
static void push_desk(lua_State *L, struct sandbox *sb) {
    if (sb->desk) {
        lua_rawgeti(L, LUA_REGISTRYINDEX, sb->desk);
        return;
    }
    lua_createtable(L, 64, 0);
    lua_pushvalue(L, -1);
    sb->desk = luaL_ref(L, LUA_REGISTRYINDEX);
    sb->places = 0;
    sb->serial = 0;
}

/* The desk is on top: replaces it by the part. */
static void take_part(lua_State *L, int place, int part) {
    lua_rawgeti(L, -1, PARTS * place + part);
    lua_replace(L, -2);
}

/* Puts source and metatable of a place on the desk at `desk`. */
static void lay_out(lua_State *L, struct sandbox *sb, int desk, const struct sandbox_source *kind, int place) {
    lua_createtable(L, 1, 8);
    push_source_mt(L, kind);
    lua_setmetatable(L, -2);
    lua_createtable(L, 0, 3);
    lua_pushvalue(L, -2);
    lua_setfield(L, -2, "__index");
    lua_pushcfunction(L, l_write);
    lua_setfield(L, -2, "__newindex");
    lua_pushlightuserdata(L, &view_key);
    lua_pushlightuserdata(L, (void *)kind);
    lua_rawset(L, -3);
    lua_rawseti(L, desk, PARTS * place + META);
    lua_rawseti(L, desk, PARTS * place + SOURCE);
    if (place > sb->places) sb->places = place;
}

bool sandbox_begin_shot(lua_State *L, uint64_t serial, void *context) {
    struct sandbox *sb = sandbox_of(L);
    sb->context = context;
    if (sb->serial == serial && !sb->soiled) return false;
    push_desk(L, sb);
    for (int i = 1; sb->soiled && i <= sb->places; i++) {
        lua_pushnil(L);
        lua_rawseti(L, -2, PARTS * i + VIEW);
    }
    lua_pop(L, 1);
    sb->soiled = false;
    sb->serial = serial;
    return true;
}

void sandbox_fill_source(lua_State *L, int place, const struct sandbox_source *kind, size_t line) {
    struct sandbox *sb = sandbox_of(L);
    push_desk(L, sb);
    int desk = lua_gettop(L);
    lua_rawgeti(L, desk, PARTS * place + SOURCE);
    if (lua_isnil(L, -1)) {
        lay_out(L, sb, desk, kind, place);
        lua_rawgeti(L, desk, PARTS * place + SOURCE);
        lua_replace(L, -2);
    }
    lua_pushinteger(L, (lua_Integer)line);
    lua_rawseti(L, -2, 0);
    uint64_t wanted = kind->kept & sb->wanted;
    for (size_t field = 0; wanted >> field; field++) {
        if (!(wanted >> field & 1)) continue;
        lua_pushstring(L, kind->record.fields[field]);
        if (!kind->more(L, field, line, sb->context)) lua_pushnil(L); /* it may hold another shot's */
        lua_rawset(L, -3);
    }
    lua_settop(L, desk - 1);
}

void sandbox_set_member(lua_State *L, int place, const char *name) {
    push_desk(L, sandbox_of(L));
    take_part(L, place, SOURCE);
    lua_pushvalue(L, -2);
    lua_setfield(L, -2, name);
    lua_pop(L, 2);
}

void sandbox_push_view(lua_State *L, int place) {
    push_desk(L, sandbox_of(L));
    lua_rawgeti(L, -1, PARTS * place + VIEW);
    if (lua_isnil(L, -1)) {
        lua_pop(L, 1);
        lua_createtable(L, 0, 0);
        lua_rawgeti(L, -2, PARTS * place + META);
        lua_setmetatable(L, -2);
        lua_pushvalue(L, -1);
        lua_rawseti(L, -3, PARTS * place + VIEW);
    }
    lua_replace(L, -2);
}

void sandbox_push_views(lua_State *L, int place, int count) {
    lua_createtable(L, count, 0);
    push_desk(L, sandbox_of(L));
    int desk = lua_gettop(L);
    for (int i = 1; i <= count; i++) {
        lua_rawgeti(L, desk, PARTS * (place + i - 1) + VIEW);
        if (lua_isnil(L, -1)) {
            lua_pop(L, 1);
            sandbox_push_view(L, place + i - 1);
        }
        lua_rawseti(L, desk - 1, i);
    }
    lua_settop(L, desk - 1);
}

void sandbox_clear_desk(struct sandbox *sb) {
    if (!sb->desk) return;
    luaL_unref(sb->L, LUA_REGISTRYINDEX, sb->desk);
    sb->desk = sb->places = 0;
    sb->serial = 0;
    sb->soiled = false;
}

void sandbox_note_write(lua_State *L) {
    lua_pushlightuserdata(L, &view_key);
    lua_rawget(L, -2);
    if (!lua_isnil(L, -1)) sandbox_of(L)->soiled = true;
    lua_pop(L, 1);
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
    sandbox_of(L)->soiled = true;
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
