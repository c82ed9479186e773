/* core.money: amounts in minor units, which a Lua number carries exactly (they lie below 2^53). Nothing rounds unseen:
 * what multiplies or divides does it in C, on 128 bits, with a named rounding.
 *
 *   money.parse(text_or_number, currency)  -> minor | nil, "money_malformed" | "money_precision" | "money_range"
 *   money.format(minor, currency)          -> "25000000.00"        money.major(minor, currency) -> number
 *   money.exponent(currency)               -> digits | nil
 *   money.mul_div(a, b, c [, mode])        -> a * b / c rounded (half_up) | nil, "money_range"
 *   money.pct(amount, bps)                 -> half up
 *   money.alloc(amount, weights [, keys])  -> parts by largest remainder; ties by weight, then key as text
 *   money.split(total, q, k)               -> what the first k of q units are worth
 *   money.convert(minor, from, to, rate [, mode]) -> minor | nil, "money_range"; rate = {rate=, inverse=} or legs of it
 *   money.MAX                              -> the largest amount
 */
#include "script/bind_money.h"

#include <lauxlib.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "commerce/place.h"
#include "script/bind.h"

#define INTEGER_MAX 9007199254740992.0 /* 2^53 */
#define PARTS_MAX 10000

bool bind_integer(lua_State *L, int idx, int64_t *out) {
    if (lua_type(L, idx) != LUA_TNUMBER) return false;
    lua_Number n = lua_tonumber(L, idx);
    if (!(n >= -INTEGER_MAX && n <= INTEGER_MAX) || n != floor(n)) return false;
    *out = (int64_t)n;
    return true;
}

const struct currency *bind_currency(lua_State *L, int idx) {
    struct str code;
    if (lua_type(L, idx) != LUA_TSTRING) return NULL;
    code.at = lua_tolstring(L, idx, &code.len);
    return currency_find(code);
}

size_t bind_number_text(lua_Number n, char out[32]) {
    if (!isfinite(n)) return 0;
    for (int digits = 15; digits <= 17; digits++) {
        int length = snprintf(out, 32, "%.*g", digits, n);
        if (length <= 0 || length >= 32) return 0;
        if (strtod(out, NULL) == n || digits == 17) return (size_t)length;
    }
    return 0;
}

/* The decimal at `idx`, text or number; `number` is room for the latter. */
static bool decimal_text(lua_State *L, int idx, char number[32], struct str *out) {
    if (lua_type(L, idx) == LUA_TSTRING) {
        out->at = lua_tolstring(L, idx, &out->len);
        return true;
    }
    if (lua_type(L, idx) != LUA_TNUMBER) return false;
    *out = str_n(number, bind_number_text(lua_tonumber(L, idx), number));
    return out->len > 0;
}

/* One leg on top of the stack. */
static bool rate_leg(lua_State *L, struct ratio *out) {
    char number[32];
    struct str text;
    lua_getfield(L, -1, "rate");
    bool ok = decimal_text(L, -1, number, &text) && ratio_parse(text, out);
    lua_pop(L, 1);
    lua_getfield(L, -1, "inverse");
    if (ok && lua_toboolean(L, -1)) *out = (struct ratio){.num = out->den, .den = out->num};
    lua_pop(L, 1);
    return ok;
}

bool bind_rate(lua_State *L, int idx, const struct currency *from, const struct currency *to, struct ratio *out) {
    if (lua_type(L, idx) != LUA_TTABLE) return false;
    struct ratio whole = {.num = 1, .den = 1}, leg;
    for (int digits = from->exponent; digits > to->exponent; digits--) whole.den *= 10;
    for (int digits = to->exponent; digits > from->exponent; digits--) whole.num *= 10;
    size_t legs = lua_objlen(L, idx);
    if (legs > 2) return false;
    lua_pushvalue(L, idx);
    bool ok = true;
    if (legs == 0) {
        ok = rate_leg(L, &leg) && ratio_mul(whole, leg, &whole);
    }
    for (size_t i = 1; ok && i <= legs; i++) {
        lua_rawgeti(L, -1, (int)i);
        ok = lua_type(L, -1) == LUA_TTABLE && rate_leg(L, &leg) && ratio_mul(whole, leg, &whole);
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
    *out = whole;
    return ok;
}

static int64_t check_integer(lua_State *L, int arg) {
    int64_t n;
    if (!bind_integer(L, arg, &n)) return luaL_argerror(L, arg, "an integer within 2^53 is expected");
    return n;
}

static int64_t check_amount(lua_State *L, int arg) {
    int64_t n = check_integer(L, arg);
    luaL_argcheck(L, money_in_range(n), arg, "the amount is out of range");
    return n;
}

static const struct currency *check_currency(lua_State *L, int arg) {
    const struct currency *currency = bind_currency(L, arg);
    if (!currency) luaL_argerror(L, arg, "a currency code of ISO 4217 is expected");
    return currency;
}

static enum rounding opt_rounding(lua_State *L, int arg) {
    enum rounding mode = ROUND_HALF_UP;
    if (lua_isnoneornil(L, arg)) return mode;
    struct str word;
    word.at = luaL_checklstring(L, arg, &word.len);
    luaL_argcheck(L, rounding_parse(word, &mode), arg, "half_up, half_down, floor, ceil or half_even is expected");
    return mode;
}

static int answer(lua_State *L, bool ok, int64_t value) {
    if (ok && value >= -(int64_t)INTEGER_MAX && value <= (int64_t)INTEGER_MAX) {
        lua_pushnumber(L, (lua_Number)value);
        return 1;
    }
    lua_pushnil(L);
    lua_pushliteral(L, "money_range");
    return 2;
}

static int l_parse(lua_State *L) {
    const struct currency *currency = check_currency(L, 2);
    char number[32];
    struct str text;
    int64_t minor = 0;
    enum money_text result = MONEY_MALFORMED;
    if (decimal_text(L, 1, number, &text)) result = money_parse(text, currency, &minor);
    if (result == MONEY_OK) {
        lua_pushnumber(L, (lua_Number)minor);
        return 1;
    }
    lua_pushnil(L);
    lua_pushstring(L, money_text_code(result));
    return 2;
}

static int l_format(lua_State *L) {
    char out[32];
    struct money m = {.minor = check_amount(L, 1), .currency = check_currency(L, 2)};
    lua_pushlstring(L, out, money_format(m, out));
    return 1;
}

static int l_major(lua_State *L) {
    static const lua_Number unit[] = {1, 10, 100, 1000, 10000};
    int64_t minor = check_amount(L, 1);
    lua_pushnumber(L, (lua_Number)minor / unit[check_currency(L, 2)->exponent]);
    return 1;
}

static int l_exponent(lua_State *L) {
    const struct currency *currency = bind_currency(L, 1);
    if (currency) {
        lua_pushinteger(L, currency->exponent);
    } else {
        lua_pushnil(L);
    }
    return 1;
}

static int l_mul_div(lua_State *L) {
    int64_t a = check_integer(L, 1), b = check_integer(L, 2), c = check_integer(L, 3), out = 0;
    luaL_argcheck(L, c > 0, 3, "a positive divisor is expected");
    bool ok = mul_div_round(a, b, c, opt_rounding(L, 4), &out);
    return answer(L, ok, out);
}

static int l_pct(lua_State *L) {
    int64_t amount = check_amount(L, 1), bps = check_integer(L, 2);
    luaL_argcheck(L, amount >= 0, 1, "an amount >= 0 is expected");
    luaL_argcheck(L, bps >= 0 && bps <= BPS_WHOLE, 2, "0..10000 basis points are expected");
    return answer(L, true, money_pct(amount, bps));
}

static int l_split(lua_State *L) {
    int64_t total = check_amount(L, 1), q = check_integer(L, 2), k = check_integer(L, 3);
    luaL_argcheck(L, q > 0 && q <= MONEY_MAX, 2, "a positive number of units is expected");
    luaL_argcheck(L, k >= 0 && k <= q, 3, "0..q units are expected");
    return answer(L, true, money_split(total, q, k));
}

struct key {
    struct str text;
    uint32_t index;
};

static int key_compare(const void *left, const void *right) {
    const struct key *a = left, *b = right;
    int order = text_order(a->text, b->text);
    return order ? order : a->index < b->index ? -1 : a->index > b->index;
}

/* Ranks of the keys in the array at `idx`. */
static void read_ranks(lua_State *L, int idx, size_t n, uint32_t *rank) {
    struct key *keys = lua_newuserdata(L, (n ? n : 1) * sizeof *keys);
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(L, idx, (int)i + 1);
        luaL_argcheck(L, lua_type(L, -1) == LUA_TSTRING, idx, "one text per weight is expected");
        keys[i].text.at = lua_tolstring(L, -1, &keys[i].text.len);
        keys[i].index = (uint32_t)i;
        lua_pop(L, 1);
    }
    qsort(keys, n, sizeof *keys, key_compare);
    for (size_t i = 0; i < n; i++) rank[keys[i].index] = (uint32_t)i;
    lua_pop(L, 1);
}

static int l_alloc(lua_State *L) {
    int64_t amount = check_amount(L, 1);
    luaL_checktype(L, 2, LUA_TTABLE);
    size_t n = lua_objlen(L, 2);
    luaL_argcheck(L, n <= PARTS_MAX, 2, "too many weights");
    bool keyed = !lua_isnoneornil(L, 3);
    int64_t *weight = lua_newuserdata(L, (n + 1) * sizeof *weight);
    int64_t *part = lua_newuserdata(L, (n + 1) * sizeof *part);
    uint32_t *rank = lua_newuserdata(L, (n + 1) * sizeof *rank);
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(L, 2, (int)i + 1);
        if (!bind_integer(L, -1, &weight[i]) || weight[i] < 0) luaL_argerror(L, 2, "weights are integers >= 0");
        lua_pop(L, 1);
    }
    if (keyed) {
        luaL_checktype(L, 3, LUA_TTABLE);
        read_ranks(L, 3, n, rank);
    }
    struct arena *scratch = arena_new(0);
    bool ok = scratch && money_alloc(scratch, amount, weight, keyed ? rank : NULL, n, part);
    arena_free(scratch);
    if (!ok) return answer(L, false, 0);
    lua_createtable(L, (int)n, 0);
    for (size_t i = 0; i < n; i++) {
        lua_pushnumber(L, (lua_Number)part[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}

static int l_convert(lua_State *L) {
    int64_t amount = check_amount(L, 1), out = 0;
    const struct currency *from = check_currency(L, 2), *to = check_currency(L, 3);
    struct ratio rate = {.num = 1, .den = 1};
    if (from != to) luaL_argcheck(L, bind_rate(L, 4, from, to, &rate), 4, "a rate or up to two legs are expected");
    bool ok = ratio_apply(amount, rate, opt_rounding(L, 5), &out);
    return answer(L, ok, out);
}

int luaopen_core_money(lua_State *L) {
    static const luaL_Reg functions[] = {
        {"parse", l_parse}, {"format", l_format}, {"major", l_major}, {"exponent", l_exponent}, {"mul_div", l_mul_div},
        {"pct", l_pct},     {"split", l_split},   {"alloc", l_alloc}, {"convert", l_convert},   {NULL, NULL},
    };
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    lua_pushnumber(L, (lua_Number)MONEY_MAX);
    lua_setfield(L, -2, "MAX");
    return 1;
}
