/* text.* and dt.* of rule code: plain text without patterns, and times that are given, never asked for. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>

#include "script/calendar.h"
#include "script/sandbox_internal.h"

static struct str check_text(lua_State *L, int arg) {
    struct str s;
    s.at = luaL_checklstring(L, arg, &s.len);
    luaL_argcheck(L, s.len <= SANDBOX_TEXT_MAX, arg, "longer than 64 KiB");
    sandbox_charge(L, s.len / 64);
    return s;
}

static int l_trim(lua_State *L) {
    struct str s = str_trim(check_text(L, 1));
    lua_pushlstring(L, s.at, s.len);
    return 1;
}

static int l_starts(lua_State *L) {
    struct str s = check_text(L, 1);
    lua_pushboolean(L, str_starts(s, check_text(L, 2)));
    return 1;
}

static int l_ends(lua_State *L) {
    struct str s = check_text(L, 1), tail = check_text(L, 2);
    lua_pushboolean(L, s.len >= tail.len && str_eq(str_n(s.at + s.len - tail.len, tail.len), tail));
    return 1;
}

static int l_contains(lua_State *L) {
    struct str s = check_text(L, 1), part = check_text(L, 2);
    lua_pushboolean(L, part.len == 0 || memmem(s.at, s.len, part.at, part.len) != NULL);
    return 1;
}

/* split(text, separator) -> list; at most 1,000 parts */
static int l_split(lua_State *L) {
    struct str s = check_text(L, 1), gap = check_text(L, 2);
    luaL_argcheck(L, gap.len > 0, 2, "the separator is empty");
    lua_newtable(L);
    int n = 0;
    for (;;) {
        const char *at = memmem(s.at, s.len, gap.at, gap.len);
        if (++n > 1000) return luaL_error(L, "text.split gives at most 1000 parts");
        lua_pushlstring(L, s.at, at ? (size_t)(at - s.at) : s.len);
        lua_rawseti(L, -2, n);
        if (!at) break;
        s = str_n(at + gap.len, s.len - (size_t)(at - s.at) - gap.len);
    }
    sandbox_charge(L, (uint64_t)n);
    return 1;
}

static bool begins_character(char c) {
    return ((unsigned char)c & 0xC0) != 0x80;
}

/* len(text): characters, not bytes */
static int l_len(lua_State *L) {
    struct str s = check_text(L, 1);
    int n = 0;
    for (size_t i = 0; i < s.len; i++) n += begins_character(s.at[i]);
    lua_pushinteger(L, n);
    return 1;
}

/* cut(text, n): the first n characters */
static int l_cut(lua_State *L) {
    struct str s = check_text(L, 1);
    lua_Number most = luaL_checknumber(L, 2);
    size_t i = 0;
    for (lua_Number n = 0; i < s.len; i++) {
        if (!begins_character(s.at[i])) continue;
        if (!(++n <= most)) break;
    }
    lua_pushlstring(L, s.at, i);
    return 1;
}

/* template("Buy {n} more", {n = 1}): a name the table lacks stays as it stands */
static int l_template(lua_State *L) {
    struct str s = check_text(L, 1);
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    sandbox_fill_view(L, 2);
    size_t total = 0;
    luaL_Buffer b;
    luaL_buffinit(L, &b);
    const char *at = s.at, *end = s.at + s.len;
    while (at < end) {
        const char *open = memchr(at, '{', (size_t)(end - at));
        const char *close = open ? memchr(open, '}', (size_t)(end - open)) : NULL;
        const char *plain_end = close ? open : end;
        total += (size_t)(plain_end - at);
        if (total > SANDBOX_TEXT_MAX) return luaL_error(L, "the result is longer than 64 KiB");
        luaL_addlstring(&b, at, (size_t)(plain_end - at));
        if (!close) break;
        char number[32];
        size_t len;
        lua_pushlstring(L, open + 1, (size_t)(close - open - 1));
        lua_rawget(L, 2);
        if (lua_isnil(L, -1)) {
            lua_pop(L, 1);
            lua_pushlstring(L, open, (size_t)(close + 1 - open));
        }
        const char *text = sandbox_text(L, -1, number, &len);
        total += len;
        if (total > SANDBOX_TEXT_MAX) return luaL_error(L, "the result is longer than 64 KiB");
        if (lua_type(L, -1) != LUA_TSTRING) {
            lua_pushlstring(L, text, len);
            lua_replace(L, -2);
        }
        luaL_addvalue(&b);
        sandbox_charge(L, 1);
        at = close + 1;
    }
    luaL_pushresult(&b);
    return 1;
}

void sandbox_open_text(lua_State *L) {
    static const luaL_Reg functions[] = {{"trim", l_trim},         {"starts", l_starts},     {"ends", l_ends},
                                         {"contains", l_contains}, {"split", l_split},       {"len", l_len},
                                         {"cut", l_cut},           {"template", l_template}, {NULL, NULL}};
    lua_newtable(L);
    luaL_setfuncs(L, functions, 0);
    sandbox_open_case(L);
}

/* ---- dt: times are tables with epoch in seconds, like input.now, or plain epoch seconds ---- */

static int clock_minutes(lua_State *L, int arg) {
    size_t len;
    const char *s = luaL_checklstring(L, arg, &len);
    bool ok = len == 5 && s[2] == ':' && isdigit((unsigned char)s[0]) && isdigit((unsigned char)s[1]) &&
              isdigit((unsigned char)s[3]) && isdigit((unsigned char)s[4]);
    int minutes = ok ? ((s[0] - '0') * 10 + s[1] - '0') * 60 + (s[3] - '0') * 10 + s[4] - '0' : -1;
    luaL_argcheck(L, ok && minutes <= 24 * 60 && s[3] <= '5', arg, "a time of day as HH:MM is expected");
    return minutes;
}

static int field(lua_State *L, int idx, const char *name) {
    lua_getfield(L, idx, name);
    double v = lua_type(L, -1) == LUA_TNUMBER ? lua_tonumber(L, -1) : NAN;
    lua_pop(L, 1);
    if (!(v >= -1e6 && v <= 1e6) || v != floor(v)) luaL_error(L, "the time's field '%s' is not a whole number", name);
    return (int)v;
}

/* between(now, "22:00", "06:00"): the end is not in it; over midnight when the end comes before the start */
static int l_between(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    int from = clock_minutes(L, 2), to = clock_minutes(L, 3);
    int at = field(L, 1, "hour") * 60 + field(L, 1, "min");
    lua_pushboolean(L, from <= to ? at >= from && at < to : at >= from || at < to);
    return 1;
}

static int64_t check_epoch(lua_State *L, int arg) {
    double v;
    if (lua_istable(L, arg)) {
        lua_getfield(L, arg, "epoch");
        v = lua_type(L, -1) == LUA_TNUMBER ? lua_tonumber(L, -1) : NAN;
        lua_pop(L, 1);
    } else {
        v = luaL_checknumber(L, arg);
    }
    luaL_argcheck(L, v >= -62167219200.0 && v <= 253402300799.0, arg,
                  "a time between the years 0 and 9999 is expected");
    return (int64_t)floor(v);
}

static const struct zone *check_zone(lua_State *L, int arg) {
    if (lua_isnoneornil(L, arg)) return NULL;
    struct str name;
    name.at = luaL_checklstring(L, arg, &name.len);
    const struct zone *z = zone_find(name);
    luaL_argcheck(L, z, arg, "no such time zone");
    return z;
}

static void set_int(lua_State *L, const char *name, int value) {
    lua_pushinteger(L, value);
    lua_setfield(L, -2, name);
}

/* local_time(epoch or time [, tz]) -> a table like input.now */
static int l_local_time(lua_State *L) {
    struct civil c;
    int64_t s = check_epoch(L, 1);
    const struct zone *z = check_zone(L, 2);
    sandbox_charge(L, 20);
    civil_from_epoch(s * 1000, z, &c);
    lua_createtable(L, 0, 9);
    lua_pushnumber(L, (lua_Number)s);
    lua_setfield(L, -2, "epoch");
    set_int(L, "year", c.year);
    set_int(L, "month", c.month);
    set_int(L, "day", c.day);
    set_int(L, "hour", c.hour);
    set_int(L, "min", c.min);
    set_int(L, "sec", c.sec);
    set_int(L, "wday", c.wday);
    if (z) {
        lua_pushvalue(L, 2);
    } else {
        lua_pushliteral(L, "UTC");
    }
    lua_setfield(L, -2, "tz");
    return 1;
}

/* weekday(time): 1 = Monday */
static int l_weekday(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    int64_t days = calendar_days(field(L, 1, "year"), field(L, 1, "month"), field(L, 1, "day"));
    lua_pushinteger(L, (lua_Integer)(((days + 3) % 7 + 7) % 7) + 1);
    return 1;
}

/* The civil day of a time: by its fields when it has them, else in UTC. */
static int64_t day_of(lua_State *L, int arg) {
    if (lua_istable(L, arg)) return calendar_days(field(L, arg, "year"), field(L, arg, "month"), field(L, arg, "day"));
    int64_t s = check_epoch(L, arg);
    return (s - ((s % 86400) + 86400) % 86400) / 86400;
}

static int l_days_between(lua_State *L) {
    lua_pushnumber(L, (lua_Number)(day_of(L, 2) - day_of(L, 1)));
    return 1;
}

/* add_days(time, n [, tz]): the same time of day n days later, in the zone given, else the time's own, else UTC */
static int l_add_days(lua_State *L) {
    int64_t s = check_epoch(L, 1);
    lua_Number n = luaL_checknumber(L, 2);
    luaL_argcheck(L, fabs(n) <= 1e6 && n == floor(n), 2, "a whole number of days is expected");
    lua_settop(L, 3);
    if (lua_isnil(L, 3) && lua_istable(L, 1)) {
        lua_getfield(L, 1, "tz");
        lua_replace(L, 3);
    }
    struct civil c;
    sandbox_charge(L, 20);
    civil_from_epoch(s * 1000, check_zone(L, 3), &c);
    c.day += (int)n;
    int64_t then = civil_to_epoch(&c, check_zone(L, 3)) / 1000;
    lua_pushnumber(L, (lua_Number)then);
    lua_replace(L, 1);
    lua_pushvalue(L, 3);
    lua_replace(L, 2);
    return l_local_time(L);
}

/* parse(iso [, tz]) -> epoch seconds or nil */
static int l_parse(lua_State *L) {
    int64_t ms;
    if (calendar_parse(check_text(L, 1), check_zone(L, 2), &ms)) {
        lua_pushnumber(L, (lua_Number)(ms >= 0 ? ms / 1000 : -((999 - ms) / 1000)));
    } else {
        lua_pushnil(L);
    }
    return 1;
}

/* format(time [, tz]) -> "2026-11-29T10:00:00+07:00" */
static int l_format(lua_State *L) {
    struct civil c;
    char text[48];
    int64_t s = check_epoch(L, 1);
    lua_settop(L, 2);
    if (lua_isnil(L, 2) && lua_istable(L, 1)) {
        lua_getfield(L, 1, "tz");
        lua_replace(L, 2);
    }
    sandbox_charge(L, 20);
    civil_from_epoch(s * 1000, check_zone(L, 2), &c);
    int off = c.offset < 0 ? -c.offset : c.offset;
    int n = snprintf(text, sizeof text, "%04d-%02d-%02dT%02d:%02d:%02d%c%02d:%02d", c.year, c.month, c.day, c.hour,
                     c.min, c.sec, c.offset < 0 ? '-' : '+', off / 3600, off / 60 % 60);
    lua_pushlstring(L, text, n > 0 ? (size_t)n : 0);
    return 1;
}

void sandbox_open_dt(lua_State *L) {
    static const luaL_Reg functions[] = {
        {"between", l_between}, {"weekday", l_weekday}, {"days_between", l_days_between}, {"add_days", l_add_days},
        {"parse", l_parse},     {"format", l_format},   {"local_time", l_local_time},     {NULL, NULL}};
    lua_newtable(L);
    luaL_setfuncs(L, functions, 0);
}
