/* core.time: clocks, ISO 8601, civil fields in a zone. Times are milliseconds since 1970 unless said. */
#include <lauxlib.h>
#include <math.h>

#include "runtime/clock.h"
#include "script/bind.h"
#include "script/calendar.h"

static int l_now(lua_State *L) {
    lua_pushnumber(L, (lua_Number)clock_now());
    return 1;
}

static int l_real(lua_State *L) {
    lua_pushnumber(L, (lua_Number)clock_real());
    return 1;
}

static int l_mono(lua_State *L) {
    lua_pushnumber(L, (lua_Number)clock_mono_us());
    return 1;
}

static int64_t check_ms(lua_State *L, int arg) {
    lua_Number ms = luaL_checknumber(L, arg);
    luaL_argcheck(L, ms >= (lua_Number)CALENDAR_MIN && ms <= (lua_Number)CALENDAR_MAX, arg,
                  "milliseconds between the years 0 and 9999 are expected");
    return (int64_t)floor(ms);
}

static const struct zone *opt_zone(lua_State *L, int arg) {
    if (lua_isnoneornil(L, arg)) return NULL;
    struct str name;
    name.at = luaL_checklstring(L, arg, &name.len);
    const struct zone *z = zone_find(name);
    if (!z) luaL_error(L, "no time zone '%s'", name.at);
    return z;
}

static int l_iso(lua_State *L) {
    char text[25];
    clock_iso(check_ms(L, 1), text);
    lua_pushlstring(L, text, 24);
    return 1;
}

/* parse(text [, tz]): the zone is that of a text without an offset, UTC when absent. */
static int l_parse(lua_State *L) {
    struct str text;
    int64_t ms;
    if (lua_type(L, 1) != LUA_TSTRING) {
        lua_pushnil(L);
        return 1;
    }
    text.at = lua_tolstring(L, 1, &text.len);
    if (calendar_parse(text, opt_zone(L, 2), &ms)) {
        lua_pushnumber(L, (lua_Number)ms);
    } else {
        lua_pushnil(L);
    }
    return 1;
}

static void set_int(lua_State *L, const char *name, int value) {
    lua_pushinteger(L, value);
    lua_setfield(L, -2, name);
}

static int l_fields(lua_State *L) {
    struct civil c;
    int64_t ms = check_ms(L, 1);
    civil_from_epoch(ms, opt_zone(L, 2), &c);
    lua_createtable(L, 0, 10);
    set_int(L, "year", c.year);
    set_int(L, "month", c.month);
    set_int(L, "day", c.day);
    set_int(L, "hour", c.hour);
    set_int(L, "min", c.min);
    set_int(L, "sec", c.sec);
    set_int(L, "ms", c.ms);
    set_int(L, "wday", c.wday);
    set_int(L, "yday", c.yday);
    set_int(L, "offset", c.offset);
    return 1;
}

static int get_int(lua_State *L, const char *name, int absent) {
    lua_getfield(L, 1, name);
    lua_Number v = lua_isnil(L, -1) ? absent : luaL_checknumber(L, -1);
    lua_pop(L, 1);
    if (!(v >= -1e8 && v <= 1e8)) luaL_error(L, "field '%s' is out of range", name);
    return (int)v;
}

static int l_epoch(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    struct civil c = {
        .year = get_int(L, "year", 1970),
        .month = get_int(L, "month", 1),
        .day = get_int(L, "day", 1),
        .hour = get_int(L, "hour", 0),
        .min = get_int(L, "min", 0),
        .sec = get_int(L, "sec", 0),
        .ms = get_int(L, "ms", 0),
    };
    lua_pushnumber(L, (lua_Number)civil_to_epoch(&c, opt_zone(L, 2)));
    return 1;
}

static int l_shift(lua_State *L) {
    lua_pushnumber(L, (lua_Number)clock_shift());
    return 1;
}

static int l_set_shift(lua_State *L) {
    lua_Number ms = luaL_checknumber(L, 1);
    luaL_argcheck(L, ms >= -4e12 && ms <= 4e12, 1, "out of range");
    clock_set_shift((int64_t)ms);
    return 0;
}

static int l_zone_exists(lua_State *L) {
    struct str name;
    name.at = luaL_checklstring(L, 1, &name.len);
    lua_pushboolean(L, zone_find(name) != NULL);
    return 1;
}

int luaopen_core_time(lua_State *L) {
    static const luaL_Reg functions[] = {
        {"now", l_now},
        {"real", l_real},
        {"mono", l_mono},
        {"iso", l_iso},
        {"parse", l_parse},
        {"fields", l_fields},
        {"epoch", l_epoch},
        {"shift", l_shift},
        {"set_shift", l_set_shift},
        {"zone_exists", l_zone_exists},
        {NULL, NULL},
    };
    lua_newtable(L);
    luaL_setfuncs(L, functions, 0);
    return 1;
}
