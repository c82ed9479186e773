/* How the answers of rules are read. They are foreign, so they are read with lua_next and raw gets only, each key must
 * be known, each number an integer; the values are judged by operations_check. */
#include <lauxlib.h>
#include <math.h>

#include "runtime/utf8.h"
#include "script/bind_money.h"
#include "script/bind_pricing.h"

#define LIST_MAX ((size_t)4 * PRICING_LINES_MAX)
#define TAXES_MAX ((size_t)PRICING_LINES_MAX * TAX_RATES_MAX)

/* Reading of answers. `where` names the place for messages. */
struct answer {
    lua_State *L;
    struct arena *arena;
    struct error *err;
    const char *list;
    size_t index;
};

static bool fault(struct answer *a, struct str key, const char *what) {
    return error_set(a->err, ERR_INVALID, "%s[%zu].%.*s: %s", a->list, a->index, STR_FMT(key), what);
}

static bool take_int(struct answer *a, struct str key, int64_t *out) {
    if (bind_integer(a->L, -1, out)) return true;
    if (lua_type(a->L, -1) != LUA_TNUMBER) return fault(a, key, "a number is expected");
    char text[32];
    if (bind_number_text(lua_tonumber(a->L, -1), text) == 0) return fault(a, key, "is not finite");
    return error_set(a->err, ERR_INVALID, "%s[%zu].%.*s: %s is not an integer; use money.pct or math.floor", a->list,
                     a->index, STR_FMT(key), text);
}

/* An amount that is merely too large is no fault: it is clamped, as it will be to what it is taken off. (Above 2^53 a
 * number of Lua may be another than was meant.) */
static bool take_amount(struct answer *a, struct str key, int64_t *out) {
    if (!take_int(a, key, out)) return false;
    if (*out > INT64_C(1) << 53) return fault(a, key, "is above 2^53");
    if (*out > MONEY_MAX) *out = MONEY_MAX;
    return true;
}

/* What is no text for the database either would refuse the order that the answer priced. */
static bool take_str(struct answer *a, struct str key, struct str *out) {
    if (lua_type(a->L, -1) != LUA_TSTRING) return fault(a, key, "a text is expected");
    size_t len;
    const char *at = lua_tolstring(a->L, -1, &len);
    struct utf8 u = {0};
    if (memchr(at, 0, len) || !utf8_feed(&u, str_n(at, len)) || !utf8_whole(&u))
        return fault(a, key, "is no UTF-8; text.cut keeps characters whole");
    *out = (struct str){.at = arena_strdup(a->arena, str_n(at, len)), .len = len};
    return out->at || error_set(a->err, ERR_MEMORY, "out of memory");
}

static bool take_bool(struct answer *a, struct str key, bool *out) {
    if (lua_type(a->L, -1) != LUA_TBOOLEAN) return fault(a, key, "true or false is expected");
    *out = lua_toboolean(a->L, -1);
    return true;
}

static bool take_list(struct answer *a, struct str key, struct str_list *out) {
    if (lua_type(a->L, -1) != LUA_TTABLE) return fault(a, key, "a list of line ids is expected");
    size_t n = lua_objlen(a->L, -1);
    if (n == 0 || n > LIST_MAX) return fault(a, key, "1 to 800 line ids are expected");
    struct str *list = arena_zalloc(a->arena, n, sizeof *list);
    if (!list) return error_set(a->err, ERR_MEMORY, "out of memory");
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(a->L, -1, (int)i + 1);
        bool ok = take_str(a, key, &list[i]);
        lua_pop(a->L, 1);
        if (!ok) return false;
    }
    *out = (struct str_list){.at = list, .n = n};
    return true;
}

/* The key of the pair that lua_next left, when it is a text. */
static bool take_key(struct answer *a, struct str *key) {
    if (lua_type(a->L, -2) != LUA_TSTRING)
        return error_set(a->err, ERR_INVALID, "%s[%zu]: an unknown key", a->list, a->index);
    key->at = lua_tolstring(a->L, -2, &key->len);
    return true;
}

static const char *const operation_words[] = {"line_percent",     "line_amount",     "unit_amount",
                                              "unit_price",       "order_percent",   "order_amount",
                                              "shipping_percent", "shipping_amount", "gift_line"};

static bool take_kind(struct answer *a, struct str key, enum operation_kind *out) {
    struct str word = {0};
    if (!take_str(a, key, &word)) return false;
    for (size_t i = 0; i < sizeof operation_words / sizeof *operation_words; i++) {
        if (!str_eq(word, str_of(operation_words[i]))) continue;
        *out = (enum operation_kind)i;
        return true;
    }
    return fault(a, key, "an unknown operation");
}

enum member {
    M_OP = 1 << 0,
    M_LINE = 1 << 1,
    M_BPS = 1 << 2,
    M_AMOUNT = 1 << 3,
    M_PRICE = 1 << 4,
    M_UNITS = 1 << 5,
    M_LISTS = 1 << 6,
    M_MAX = 1 << 7,
    M_METHOD = 1 << 8,
    M_PRODUCT = 1 << 9,
    M_VARIANT = 1 << 10,
    M_QTY = 1 << 11,
    M_COMMON = 1 << 12,
};

/* What an operation must and may have, in the order of enum operation_kind; M_COMMON and M_OP always may. */
static const struct {
    unsigned must, may;
} operation_members[] = {
    {M_LINE | M_BPS, M_UNITS},   {M_LINE | M_AMOUNT, 0},   {M_LINE | M_AMOUNT, M_UNITS},
    {M_LINE | M_PRICE, M_UNITS}, {M_BPS, M_LISTS | M_MAX}, {M_AMOUNT, M_LISTS | M_MAX},
    {M_BPS, M_METHOD},           {M_AMOUNT, M_METHOD},     {M_PRODUCT, M_VARIANT | M_QTY},
};

static bool take_member(struct answer *a, struct str key, struct operation *op, unsigned *seen) {
#define IS(name, bit) (str_eq(key, STR(name)) && (*seen |= (bit)))
    if (IS("op", M_OP)) return take_kind(a, key, &op->kind);
    if (IS("line_id", M_LINE)) return take_str(a, key, &op->line_id);
    if (IS("bps", M_BPS)) return take_int(a, key, &op->bps);
    if (IS("amount", M_AMOUNT)) return take_amount(a, key, &op->amount);
    if (IS("price", M_PRICE)) return take_amount(a, key, &op->amount);
    if (IS("units", M_UNITS))
        return take_int(a, key, &op->units) && (op->units > 0 || fault(a, key, "must be above 0"));
    if (IS("line_ids", M_LISTS)) return take_list(a, key, &op->line_ids);
    if (IS("exclude_line_ids", M_LISTS)) return take_list(a, key, &op->exclude_line_ids);
    if (IS("max", M_MAX)) return take_amount(a, key, &op->max) && (op->max > 0 || fault(a, key, "must be above 0"));
    if (IS("method_id", M_METHOD)) return take_str(a, key, &op->method_id);
    if (IS("product_id", M_PRODUCT)) return take_str(a, key, &op->product_id);
    if (IS("variant_id", M_VARIANT)) return take_str(a, key, &op->variant_id);
    if (IS("qty", M_QTY)) return take_int(a, key, &op->qty);
    if (IS("label", M_COMMON)) return take_str(a, key, &op->label);
    if (IS("code", M_COMMON)) return take_str(a, key, &op->code);
    if (IS("group", M_COMMON)) return take_str(a, key, &op->group);
    if (IS("stackable", M_COMMON)) return take_bool(a, key, &op->stackable);
    if (IS("priority", M_COMMON)) {
        op->has_priority = true;
        return take_int(a, key, &op->priority);
    }
#undef IS
    return fault(a, key, "an unknown key");
}

/* The operation on top of the stack. */
static bool take_operation(struct answer *a, struct operation *op) {
    unsigned seen = 0;
    *op = (struct operation){.qty = 1};
    if (lua_type(a->L, -1) != LUA_TTABLE)
        return error_set(a->err, ERR_INVALID, "%s[%zu]: a table is expected", a->list, a->index);
    lua_pushnil(a->L);
    while (lua_next(a->L, -2)) {
        struct str key = {0};
        if (!take_key(a, &key) || !take_member(a, key, op, &seen)) {
            lua_pop(a->L, 2);
            return false;
        }
        lua_pop(a->L, 1);
    }
    if (!(seen & M_OP)) return error_set(a->err, ERR_INVALID, "%s[%zu].op: is missing", a->list, a->index);
    unsigned must = operation_members[op->kind].must, may = operation_members[op->kind].may | must | M_OP | M_COMMON;
    if ((seen & must) != must || (seen & ~may))
        return error_set(a->err, ERR_INVALID, "%s[%zu]: %s has the wrong members", a->list, a->index,
                         operation_words[op->kind]);
    return true;
}

bool pricing_read_operations(lua_State *L, struct arena *arena, struct rule_result *out, struct error *err) {
    out->operation = NULL;
    out->operations = 0;
    if (lua_isnil(L, -1)) return true;
    if (lua_type(L, -1) != LUA_TTABLE) return error_set(err, ERR_INVALID, "the result: a table is expected");
    if (!lua_checkstack(L, 10)) return error_set(err, ERR_MEMORY, "out of memory");
    int top = lua_gettop(L);
    struct answer a = {.L = L, .arena = arena, .err = err, .list = "operations"};
    bool ok = true;
    lua_pushnil(L);
    while (ok && lua_next(L, top)) {
        struct str key = {0};
        if (lua_type(L, -2) == LUA_TSTRING) key.at = lua_tolstring(L, -2, &key.len);
        if (str_eq(key, STR("operations")) && lua_type(L, -1) == LUA_TTABLE) {
            size_t n = lua_objlen(L, -1);
            if (n > PRICING_OPERATIONS_MAX) ok = error_set(err, ERR_INVALID, "operations: more than 200");
            struct operation *list = ok ? arena_zalloc(arena, n ? n : 1, sizeof *list) : NULL;
            if (ok && !list) ok = error_set(err, ERR_MEMORY, "out of memory");
            for (size_t i = 0; ok && i < n; i++) {
                a.index = i + 1;
                lua_rawgeti(L, -1, (int)i + 1);
                ok = take_operation(&a, &list[i]);
                lua_pop(L, 1);
            }
            out->operation = list;
            out->operations = ok ? n : 0;
        } else if (!str_eq(key, STR("messages"))) {
            ok = error_set(err, ERR_INVALID, "the result: an unknown key, or operations that are no list");
        }
        lua_pop(L, 1);
    }
    lua_settop(L, top);
    return ok;
}

/* units = {line id = price}. */
static bool take_units(struct answer *a, const struct pricing_view *view, int64_t *unit, size_t *named) {
    if (lua_type(a->L, -1) != LUA_TTABLE) return error_set(a->err, ERR_INVALID, "units: a table is expected");
    lua_pushnil(a->L);
    while (lua_next(a->L, -2)) {
        struct str key = {0};
        size_t i = 0;
        bool ok = take_key(a, &key);
        while (ok && i < view->lines && !str_eq(view->line[i].id, key)) i++;
        if (ok && i == view->lines) ok = fault(a, key, "is not in the cart");
        if (ok) ok = take_int(a, key, &unit[i]) && (unit[i] >= 0 || fault(a, key, "must not be below 0"));
        lua_pop(a->L, ok ? 1 : 2);
        if (!ok) return false;
        ++*named;
    }
    return true;
}

bool pricing_read_prices(lua_State *L, struct arena *arena, const struct pricing_view *view, struct price_answer *out,
                         size_t *named, struct error *err) {
    *named = 0;
    if (lua_isnil(L, -1)) return true;
    if (lua_type(L, -1) != LUA_TTABLE) return error_set(err, ERR_INVALID, "the result: a table is expected");
    if (!lua_checkstack(L, 10)) return error_set(err, ERR_MEMORY, "out of memory");
    int64_t *unit = arena_zalloc(arena, view->lines ? view->lines : 1, sizeof *unit);
    if (!unit) return error_set(err, ERR_MEMORY, "out of memory");
    for (size_t i = 0; i < view->lines; i++) unit[i] = -1;
    struct answer a = {.L = L, .arena = arena, .err = err, .list = "units"};
    int top = lua_gettop(L);
    bool ok = true;
    lua_pushnil(L);
    while (ok && lua_next(L, top)) {
        struct str key = {0};
        if (lua_type(L, -2) == LUA_TSTRING) key.at = lua_tolstring(L, -2, &key.len);
        if (str_eq(key, STR("units"))) {
            ok = take_units(&a, view, unit, named);
        } else if (str_eq(key, STR("label"))) {
            ok = take_str(&a, key, &out->label) && (out->label.len <= 80 || fault(&a, key, "longer than 80 bytes"));
        } else {
            ok = error_set(err, ERR_INVALID, "the result: units and label are known here, nothing else");
        }
        lua_pop(L, 1);
    }
    lua_settop(L, top);
    out->unit = unit;
    return ok;
}

bool pricing_read_bundle(lua_State *L, const struct bundle_question *question, int64_t *price, bool *answered,
                         struct error *err) {
    *answered = false;
    if (lua_isnil(L, -1)) return true;
    if (lua_type(L, -1) != LUA_TTABLE) return error_set(err, ERR_INVALID, "the result: a table is expected");
    if (!lua_checkstack(L, 10)) return error_set(err, ERR_MEMORY, "out of memory");
    struct answer a = {.L = L, .err = err, .list = "bundle", .index = 1};
    int top = lua_gettop(L);
    bool ok = true;
    lua_pushnil(L);
    while (ok && lua_next(L, top)) {
        struct str key = {0};
        ok = take_key(&a, &key) && (str_eq(key, STR("price")) || fault(&a, key, "an unknown key")) &&
             take_int(&a, key, price);
        if (ok && (*price < 0 || *price > PRICING_RULE_MOST / question->qty))
            ok = fault(&a, key, "is below zero, or out of all proportion");
        *answered = *answered || ok;
        lua_pop(L, 1);
    }
    lua_settop(L, top);
    if (ok && !*answered) return error_set(err, ERR_INVALID, "bundle[1].price: is missing");
    return ok;
}

bool pricing_read_class(lua_State *L, struct arena *arena, struct str *tax_class, bool *answered, struct error *err) {
    *answered = false;
    if (lua_isnil(L, -1)) return true;
    struct answer a = {.L = L, .arena = arena, .err = err, .list = "class", .index = 1};
    if (!take_str(&a, STR("text"), tax_class)) return false;
    *answered = tax_class->len > 0 && tax_class->len <= 64;
    return *answered || fault(&a, STR("text"), "1 to 64 bytes are expected");
}

bool pricing_read_rounding(lua_State *L, int64_t total, const struct currency *currency, int64_t *amount,
                           bool *answered, struct error *err) {
    *answered = false;
    if (lua_isnil(L, -1)) return true;
    struct answer a = {.L = L, .err = err, .list = "amount", .index = 1};
    if (!take_int(&a, STR("amount"), amount)) return false;
    *answered = rounding_check(total, *amount, currency);
    return *answered || error_set(err, ERR_INVALID, "the result: too far from the amount, or below zero");
}

static bool take_offer_member(struct answer *a, struct str key, struct str *id, struct shipping_offer *out,
                              unsigned *seen, bool *hidden) {
    if (str_eq(key, STR("id"))) return take_str(a, key, id);
    if (str_eq(key, STR("hidden"))) return take_bool(a, key, hidden);
    if (str_eq(key, STR("name")))
        return take_str(a, key, &out->name) && (out->name.len <= 120 || fault(a, key, "longer than 120 bytes"));
    if (str_eq(key, STR("price"))) {
        *seen |= M_PRICE;
        return take_int(a, key, &out->price);
    }
    if (!str_eq(key, STR("estimated_days"))) return fault(a, key, "an unknown key");
    *seen |= M_UNITS;
    return take_int(a, key, &out->days) && ((out->days >= 0 && out->days <= 3650) || fault(a, key, "0 to 3650"));
}

/* The offer on top: what it does not name stays as it was. */
static bool take_offer(struct answer *a, const struct shipping_offer *offers, size_t n, struct shipping_offer *out,
                       bool *hidden) {
    struct str id = {0};
    unsigned seen = 0;
    if (lua_type(a->L, -1) != LUA_TTABLE)
        return error_set(a->err, ERR_INVALID, "%s[%zu]: a table is expected", a->list, a->index);
    lua_pushnil(a->L);
    while (lua_next(a->L, -2)) {
        struct str key = {0};
        bool ok = take_key(a, &key) && take_offer_member(a, key, &id, out, &seen, hidden);
        lua_pop(a->L, ok ? 1 : 2);
        if (!ok) return false;
    }
    for (size_t i = 0; i < n; i++) {
        if (!str_eq(offers[i].method->id, id)) continue;
        out->method = offers[i].method;
        if (out->name.len == 0) out->name = offers[i].name;
        if (!(seen & M_PRICE)) out->price = offers[i].price;
        if (!(seen & M_UNITS)) out->days = offers[i].days;
        return true;
    }
    return fault(a, STR("id"), "is not among the methods");
}

bool pricing_read_rates(lua_State *L, struct arena *arena, const struct shipping_offer *offers, size_t n,
                        struct rates_answer *out, bool *answered, struct error *err) {
    *answered = false;
    if (lua_isnil(L, -1)) return true;
    if (lua_type(L, -1) != LUA_TTABLE) return error_set(err, ERR_INVALID, "the result: a list is expected");
    if (!lua_checkstack(L, 10)) return error_set(err, ERR_MEMORY, "out of memory");
    size_t count = lua_objlen(L, -1), keys = 0;
    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) keys++;
    if (keys != count) return error_set(err, ERR_INVALID, "the result: a list is expected");
    if (count > n) return error_set(err, ERR_INVALID, "methods: more than were offered");
    struct shipping_offer *list = arena_zalloc(arena, count ? count : 1, sizeof *list);
    if (!list) return error_set(err, ERR_MEMORY, "out of memory");
    struct answer a = {.L = L, .arena = arena, .err = err, .list = "methods"};
    size_t shown = 0;
    for (size_t i = 0; i < count; i++) {
        bool hidden = false;
        list[shown] = (struct shipping_offer){0};
        a.index = i + 1;
        lua_rawgeti(L, -1, (int)i + 1);
        bool ok = take_offer(&a, offers, n, &list[shown], &hidden);
        lua_pop(L, 1);
        if (!ok) return false;
        if (!hidden) shown++;
    }
    out->offer = list;
    out->offers = shown;
    *answered = true;
    return true;
}

static bool take_tax_member(struct answer *a, struct str key, struct tax_answer *out, bool *rated) {
    if (str_eq(key, STR("line"))) return take_str(a, key, &out->line_id);
    if (str_eq(key, STR("name"))) return take_str(a, key, &out->rate.name);
    if (str_eq(key, STR("jurisdiction"))) return take_str(a, key, &out->rate.jurisdiction);
    if (str_eq(key, STR("compound"))) return take_bool(a, key, &out->rate.compound);
    if (!str_eq(key, STR("rate_ppm"))) return fault(a, key, "an unknown key");
    *rated = true;
    if (!take_int(a, key, &out->rate.ppm)) return false;
    return (out->rate.ppm >= 0 && out->rate.ppm <= PPM_WHOLE) || fault(a, key, "must lie in 0..1000000");
}

static bool take_tax(struct answer *a, const struct pricing_view *view, struct tax_answer *out) {
    bool rated = false;
    if (lua_type(a->L, -1) != LUA_TTABLE)
        return error_set(a->err, ERR_INVALID, "%s[%zu]: a table is expected", a->list, a->index);
    lua_pushnil(a->L);
    while (lua_next(a->L, -2)) {
        struct str key = {0};
        bool ok = take_key(a, &key) && take_tax_member(a, key, out, &rated);
        lua_pop(a->L, ok ? 1 : 2);
        if (!ok) return false;
    }
    if (!rated) return error_set(a->err, ERR_INVALID, "%s[%zu].rate_ppm: is missing", a->list, a->index);
    for (size_t i = 0; i < view->lines; i++)
        if (str_eq(view->line[i].id, out->line_id)) return true;
    return str_eq(out->line_id, STR("shipping")) || fault(a, STR("line"), "is not in the cart");
}

bool pricing_read_taxes(lua_State *L, struct arena *arena, const struct pricing_view *view,
                        const struct tax_answer **answers, size_t *n, bool *answered, struct error *err) {
    *answers = NULL;
    *n = 0;
    *answered = false;
    if (lua_isnil(L, -1)) return true;
    if (lua_type(L, -1) != LUA_TTABLE) return error_set(err, ERR_INVALID, "the result: a list is expected");
    if (!lua_checkstack(L, 10)) return error_set(err, ERR_MEMORY, "out of memory");
    size_t count = lua_objlen(L, -1);
    if (count > TAXES_MAX) return error_set(err, ERR_INVALID, "the result: too many taxes");
    struct tax_answer *list = arena_zalloc(arena, count ? count : 1, sizeof *list);
    if (!list) return error_set(err, ERR_MEMORY, "out of memory");
    struct answer a = {.L = L, .arena = arena, .err = err, .list = "taxes"};
    for (size_t i = 0; i < count; i++) {
        a.index = i + 1;
        lua_rawgeti(L, -1, (int)i + 1);
        bool ok = take_tax(&a, view, &list[i]);
        lua_pop(L, 1);
        if (!ok) return false;
    }
    *answers = list;
    *n = count;
    *answered = count > 0;
    return true;
}
