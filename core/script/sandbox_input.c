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
 * or by `pairs`, which fills it before it walks) marks the desk as soiled, and all views, and the sources that hold
 * views, are made anew for the next run. Rules cannot keep one (see sandbox.h), so nothing that one rule did is seen by
 * another.
 *
 * view -> {__index = source, __newindex} ; source -> {__index = l_more, [kind_key] = kind} */
#include "script/sandbox_internal.h"

static char kind_key; /* in the metatable of a source */

/* desk[3 * place + PART] */
enum { SOURCE, META, VIEW, PARTS };

/* The number of the field, or the record's count. */
static size_t field_number(const struct sandbox_record *record, const char *name) {
    size_t i = 0;
    while (i < record->count && (*record->fields[i] != *name || strcmp(record->fields[i], name) != 0)) i++;
    return i;
}

static int unknown_field(lua_State *L, const struct sandbox_record *record) {
    const char *name = lua_tostring(L, 2);
    const char *near = sandbox_nearest(name, record->fields, record->count);
    return luaL_error(L, "unknown_field: %s has no field '%s'%s%s%s", record->path, name,
                      near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
}

static int l_absent(lua_State *L) {
    const struct sandbox_record *record = lua_touserdata(L, lua_upvalueindex(1));
    if (lua_type(L, 2) != LUA_TSTRING || field_number(record, lua_tostring(L, 2)) < record->count) return 0;
    return unknown_field(L, record);
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

/* What the source itself does not hold. The line of one that has a line lies at its index 0, which no rule sees: keys
 * of records are names. */
static int l_more(lua_State *L) {
    struct sandbox *sb = sandbox_of(L);
    const struct sandbox_source *kind = lua_touserdata(L, lua_upvalueindex(1));
    if (lua_type(L, 2) != LUA_TSTRING) return 0;
    lua_settop(L, 2);
    size_t field = field_number(&kind->record, lua_tostring(L, 2));
    if (field == kind->record.count) return unknown_field(L, &kind->record);
    if (!sb->context || !kind->more) return 0;
    lua_rawgeti(L, 1, 0);
    size_t line = (size_t)lua_tointeger(L, -1);
    if (!kind->more(L, field, line, sb->context)) return 0;
    if ((kind->kept | kind->views) >> field & 1) {
        sb->wanted |= kind->kept & UINT64_C(1) << field;
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
    lua_createtable(L, 0, 2);
    lua_pushlightuserdata(L, (void *)kind);
    lua_pushcclosure(L, l_more, 1);
    lua_setfield(L, -2, "__index");
    lua_pushlightuserdata(L, &kind_key);
    lua_pushlightuserdata(L, (void *)kind);
    lua_rawset(L, -3);
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
    lua_createtable(L, 72, 0);
    lua_pushvalue(L, -1);
    sb->desk = luaL_ref(L, LUA_REGISTRYINDEX);
    sb->places = 0;
    sb->serial = 0;
}

/* Pushes the source of a place on the desk at `desk`; one that is not there is laid out with its metatable. */
static void push_source(lua_State *L, int desk, const struct sandbox_source *kind, int place) {
    struct sandbox *sb = sandbox_of(L);
    lua_rawgeti(L, desk, PARTS * place + SOURCE);
    if (!lua_isnil(L, -1)) return;
    lua_pop(L, 1);
    lua_createtable(L, kind->kept ? 1 : 0, kind->kept ? 4 : 0);
    push_source_mt(L, kind);
    lua_setmetatable(L, -2);
    lua_createtable(L, 0, 2);
    lua_pushvalue(L, -2);
    lua_setfield(L, -2, "__index");
    lua_pushcfunction(L, l_write);
    lua_setfield(L, -2, "__newindex");
    lua_rawseti(L, desk, PARTS * place + META);
    lua_pushvalue(L, -1);
    lua_rawseti(L, desk, PARTS * place + SOURCE);
    if (place > sb->places) sb->places = place;
}

static void push_view(lua_State *L, int desk, const struct sandbox_source *kind, int place) {
    lua_rawgeti(L, desk, PARTS * place + VIEW);
    if (!lua_isnil(L, -1)) return;
    lua_pop(L, 1);
    push_source(L, desk, kind, place);
    lua_createtable(L, 0, 0);
    lua_rawgeti(L, desk, PARTS * place + META);
    lua_setmetatable(L, -2);
    lua_replace(L, -2);
    lua_pushvalue(L, -1);
    lua_rawseti(L, desk, PARTS * place + VIEW);
}

bool sandbox_begin_shot(lua_State *L, uint64_t serial, void *context, int first_line) {
    struct sandbox *sb = sandbox_of(L);
    sb->context = context;
    if (sb->serial == serial && !sb->soiled) return false;
    push_desk(L, sb);
    for (int i = 1; sb->soiled && i <= sb->places; i++) {
        for (int part = i < first_line ? SOURCE : VIEW; part < PARTS; part++) {
            lua_pushnil(L);
            lua_rawseti(L, -2, PARTS * i + part);
        }
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
    push_source(L, desk, kind, place);
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

void sandbox_set_member(lua_State *L, int place, const struct sandbox_source *kind, const char *name) {
    int value = lua_gettop(L);
    push_desk(L, sandbox_of(L));
    push_source(L, value + 1, kind, place);
    lua_pushstring(L, name);
    lua_pushvalue(L, value);
    lua_rawset(L, -3);
    lua_settop(L, value - 1);
}

void sandbox_push_view(lua_State *L, int place, const struct sandbox_source *kind) {
    push_desk(L, sandbox_of(L));
    push_view(L, lua_gettop(L), kind, place);
    lua_replace(L, -2);
}

void sandbox_push_views(lua_State *L, int place, const struct sandbox_source *kind, int count) {
    lua_createtable(L, count, 0);
    push_desk(L, sandbox_of(L));
    int desk = lua_gettop(L);
    for (int i = 1; i <= count; i++) {
        push_view(L, desk, kind, place + i - 1);
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

/* The kind of source that a view with the metatable on top reads; NULL: it is no view. */
static const struct sandbox_source *kind_of_view(lua_State *L) {
    int top = lua_gettop(L);
    const struct sandbox_source *kind = NULL;
    lua_pushliteral(L, "__index");
    lua_rawget(L, top);
    if (lua_istable(L, -1) && lua_getmetatable(L, -1)) {
        lua_pushlightuserdata(L, &kind_key);
        lua_rawget(L, -2);
        kind = lua_touserdata(L, -1);
    }
    lua_settop(L, top);
    return kind;
}

void sandbox_note_write(lua_State *L) {
    if (kind_of_view(L)) sandbox_of(L)->soiled = true;
}

void sandbox_fill_view(lua_State *L, int idx) {
    if (!lua_getmetatable(L, idx)) return;
    int top = lua_gettop(L);
    const struct sandbox_source *kind = kind_of_view(L);
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
