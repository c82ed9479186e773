/* money.* and set.* of rule code. The arithmetic is that of core/commerce; here are only checks and conversion. */
#include <math.h>

#include "commerce/money.h"
#include "script/sandbox_internal.h"

#define WEIGHTS_MAX 1000

static int64_t check_amount(lua_State *L, int arg) {
    double v = luaL_checknumber(L, arg);
    luaL_argcheck(L, v >= -(double)MONEY_MAX && v <= (double)MONEY_MAX && v == floor(v), arg,
                  "not an amount in minor units");
    return (int64_t)v;
}

static int64_t check_rate(lua_State *L, int arg, int64_t most, const char *what) {
    double v = luaL_checknumber(L, arg);
    luaL_argcheck(L, v >= 0 && v <= (double)most && v == floor(v), arg, what);
    return (int64_t)v;
}

static int share(lua_State *L, int64_t rate, int64_t whole) {
    int64_t out;
    if (!mul_div_round(check_amount(L, 1), rate, whole, ROUND_HALF_UP, &out)) return luaL_error(L, "out of range");
    lua_pushnumber(L, (lua_Number)out);
    return 1;
}

static int l_pct(lua_State *L) {
    return share(L, check_rate(L, 2, BPS_WHOLE, "basis points from 0 to 10000 are expected"), BPS_WHOLE);
}

static int l_ppm(lua_State *L) {
    return share(L, check_rate(L, 2, PPM_WHOLE, "parts per million from 0 to 1000000 are expected"), PPM_WHOLE);
}

/* alloc(amount, weights) -> list of shares that sum to the amount */
static int l_alloc(lua_State *L) {
    int64_t amount = check_amount(L, 1), weights[WEIGHTS_MAX], shares[WEIGHTS_MAX];
    luaL_checktype(L, 2, LUA_TTABLE);
    size_t n = lua_objlen(L, 2);
    luaL_argcheck(L, n >= 1 && n <= WEIGHTS_MAX, 2, "1 to 1000 weights are expected");
    sandbox_charge(L, n * 4);
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(L, 2, (int)i + 1);
        double w = lua_type(L, -1) == LUA_TNUMBER ? lua_tonumber(L, -1) : -1;
        if (!(w >= 0 && w <= (double)MONEY_MAX) || w != floor(w))
            return luaL_error(L, "weight %d is not a whole number that is not negative", (int)i + 1);
        weights[i] = (int64_t)w;
        lua_pop(L, 1);
    }
    struct arena *a = arena_new(0);
    bool ok = a && money_alloc(a, amount, weights, NULL, n, shares);
    arena_free(a);
    if (!ok) return luaL_error(L, "weights that sum to 0 share only 0");
    lua_createtable(L, (int)n, 0);
    for (size_t i = 0; i < n; i++) {
        lua_pushnumber(L, (lua_Number)shares[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}

/* split(total, q) -> list of q unit worths that sum to the total */
static int l_split(lua_State *L) {
    int64_t total = check_amount(L, 1);
    double units = luaL_checknumber(L, 2);
    luaL_argcheck(L, units >= 1 && units <= WEIGHTS_MAX && units == floor(units), 2, "1 to 1000 units are expected");
    int q = (int)units;
    sandbox_charge(L, (uint64_t)q);
    lua_createtable(L, q, 0);
    for (int k = 1; k <= q; k++) {
        lua_pushnumber(L, (lua_Number)(money_split(total, q, k) - money_split(total, q, k - 1)));
        lua_rawseti(L, -2, k);
    }
    return 1;
}

/* sum(list [, field]) */
static int l_sum(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    bool by_field = !lua_isnoneornil(L, 2);
    int64_t total = 0;
    size_t n = lua_objlen(L, 1);
    sandbox_charge(L, n);
    for (size_t i = 1; i <= n; i++) {
        lua_rawgeti(L, 1, (int)i);
        if (by_field) {
            if (!lua_istable(L, -1)) return luaL_error(L, "element %d is not a table", (int)i);
            lua_pushvalue(L, 2);
            lua_gettable(L, -2); /* a view reads through */
        }
        double v = lua_type(L, -1) == LUA_TNUMBER ? lua_tonumber(L, -1) : 0.5;
        if (v != floor(v) || fabs(v) > (double)MONEY_MAX || !minor_add(total, (int64_t)v, &total))
            return luaL_error(L, "element %d is not an amount in minor units, or the sum is out of range", (int)i);
        lua_settop(L, 2);
    }
    lua_pushnumber(L, (lua_Number)total);
    return 1;
}

static int l_format(lua_State *L) {
    char text[32];
    struct str code;
    struct money m = {.minor = check_amount(L, 1)};
    code.at = luaL_checklstring(L, 2, &code.len);
    m.currency = currency_find(code);
    luaL_argcheck(L, m.currency, 2, "not a currency");
    size_t n = money_format(m, text);
    lua_pushlstring(L, text, n);
    return 1;
}

void sandbox_open_money(lua_State *L) {
    static const luaL_Reg functions[] = {{"pct", l_pct}, {"ppm", l_ppm},       {"alloc", l_alloc}, {"split", l_split},
                                         {"sum", l_sum}, {"format", l_format}, {NULL, NULL}};
    lua_newtable(L);
    luaL_setfuncs(L, functions, 0);
}

/* ---- set ---- */

/* Whether the list or lookup at `set` has the value on top; pops it. A lookup is what set.of made: value = true. */
static bool holds(lua_State *L, int set) {
    size_t n = lua_objlen(L, set);
    if (n == 0) {
        lua_rawget(L, set);
        bool yes = lua_toboolean(L, -1);
        lua_pop(L, 1);
        return yes;
    }
    sandbox_charge(L, n / 8);
    for (size_t i = 1; i <= n; i++) {
        lua_rawgeti(L, set, (int)i);
        bool same = lua_rawequal(L, -1, -2);
        lua_pop(L, 1);
        if (same) {
            lua_pop(L, 1);
            return true;
        }
    }
    lua_pop(L, 1);
    return false;
}

/* has(set, value): an absent set has nothing. */
static int l_has(lua_State *L) {
    luaL_checkany(L, 2);
    bool yes = false;
    if (!lua_isnoneornil(L, 1)) {
        luaL_checktype(L, 1, LUA_TTABLE);
        lua_settop(L, 2);
        yes = !lua_isnil(L, 2) && holds(L, 1);
    }
    lua_pushboolean(L, yes);
    return 1;
}

static int quantified(lua_State *L, bool all) {
    luaL_checktype(L, 1, LUA_TTABLE);
    luaL_checktype(L, 2, LUA_TTABLE);
    size_t n = lua_objlen(L, 2);
    sandbox_charge(L, n);
    bool answer = all;
    for (size_t i = 1; i <= n && answer == all; i++) {
        lua_rawgeti(L, 2, (int)i);
        answer = holds(L, 1);
    }
    lua_pushboolean(L, answer);
    return 1;
}

/* any(set, values), all(set, values) */
static int l_any(lua_State *L) {
    return quantified(L, false);
}

static int l_all(lua_State *L) {
    return quantified(L, true);
}

/* of(list) -> lookup, for lists that are asked often */
static int l_of(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    size_t n = lua_objlen(L, 1);
    sandbox_charge(L, n);
    lua_createtable(L, 0, n < 1000 ? (int)n : 1000);
    for (size_t i = 1; i <= n; i++) {
        lua_rawgeti(L, 1, (int)i);
        /* A lookup that has numbers from 1 on would be taken for a list. */
        if (lua_type(L, -1) != LUA_TSTRING) return luaL_error(L, "set.of takes a list of texts");
        lua_pushboolean(L, 1);
        lua_rawset(L, -3);
    }
    return 1;
}

/* count(set): distinct members of a list, members of a lookup */
static int l_count(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    if (lua_objlen(L, 1) > 0) {
        lua_settop(L, 1);
        int made = l_of(L);
        (void)made; /* the lookup, on top */
    }
    int n = 0;
    int set = lua_gettop(L);
    lua_pushnil(L);
    while (lua_next(L, set)) {
        lua_pop(L, 1);
        n++;
    }
    sandbox_charge(L, (uint64_t)n);
    lua_pushinteger(L, n);
    return 1;
}

void sandbox_open_set(lua_State *L) {
    static const luaL_Reg functions[] = {{"has", l_has}, {"any", l_any},     {"all", l_all},
                                         {"of", l_of},   {"count", l_count}, {NULL, NULL}};
    lua_newtable(L);
    luaL_setfuncs(L, functions, 0);
}
