/* What rules of the hooks `promotion` and `tax.resolve` are given, and how their answers are read: on the state of a
 * sandbox or on the platform's own. Answers are foreign, so they are read with lua_next and raw gets only, each key
 * must be known, each number an integer; the values are judged by operations_check. */
#include <lauxlib.h>
#include <math.h>

#include "script/bind_money.h"
#include "script/bind_pricing.h"

#define COPY_DEPTH 8
#define LIST_MAX ((size_t)4 * PRICING_LINES_MAX)
#define TAXES_MAX ((size_t)PRICING_LINES_MAX * TAX_RATES_MAX)

static void set_str(lua_State *L, const char *name, struct str s) {
    if (s.len == 0) return;
    lua_pushlstring(L, s.at, s.len);
    lua_setfield(L, -2, name);
}

static void set_int(lua_State *L, const char *name, int64_t n) {
    lua_pushnumber(L, (lua_Number)n);
    lua_setfield(L, -2, name);
}

static void set_bool(lua_State *L, const char *name, bool value) {
    lua_pushboolean(L, value);
    lua_setfield(L, -2, name);
}

static void set_list(lua_State *L, const char *name, struct str_list list) {
    lua_createtable(L, (int)list.n, 0);
    for (size_t i = 0; i < list.n; i++) {
        lua_pushlstring(L, list.at[i].at, list.at[i].len);
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_setfield(L, -2, name);
}

/* Pushes on `to` a copy of the plain value on top of `from` (tables of text and number keys, at most COPY_DEPTH deep;
 * whatever else there is becomes nil). */
static void copy_value(lua_State *from, lua_State *to, int depth) {
    size_t len;
    const char *text;
    luaL_checkstack(to, 4, "snapshot");
    luaL_checkstack(from, 4, "snapshot");
    switch (lua_type(from, -1)) {
    case LUA_TBOOLEAN:
        lua_pushboolean(to, lua_toboolean(from, -1));
        return;
    case LUA_TNUMBER:
        lua_pushnumber(to, lua_tonumber(from, -1));
        return;
    case LUA_TSTRING:
        text = lua_tolstring(from, -1, &len);
        lua_pushlstring(to, text, len);
        return;
    case LUA_TTABLE:
        break;
    default:
        lua_pushnil(to);
        return;
    }
    if (depth == COPY_DEPTH) {
        lua_pushnil(to);
        return;
    }
    lua_pushvalue(from, -1);
    int source = lua_gettop(from);
    lua_newtable(to);
    int copy = lua_gettop(to);
    lua_pushnil(from);
    while (lua_next(from, source)) {
        /* On one state both stacks are the same: the value is copied first, then its key is set below it. */
        copy_value(from, to, depth + 1);
        if (from == to) {
            lua_pushvalue(to, -3);
            lua_insert(to, -2);
            lua_settable(to, copy);
        } else if (lua_type(from, -2) == LUA_TSTRING) {
            text = lua_tolstring(from, -2, &len);
            lua_pushlstring(to, text, len);
            lua_insert(to, -2);
            lua_settable(to, copy);
        } else {
            lua_pushnumber(to, lua_tonumber(from, -2));
            lua_insert(to, -2);
            lua_settable(to, copy);
        }
        lua_pop(from, 1);
    }
    if (from == to) {
        lua_remove(to, source);
    } else {
        lua_pop(from, 1);
    }
}

/* Pushes a copy of source[idx].snapshot[name], or a new table when there is none. */
static void push_given(lua_State *L, lua_State *source, int idx, const char *name) {
    lua_getfield(source, idx, "snapshot");
    if (lua_type(source, -1) == LUA_TTABLE) {
        lua_getfield(source, -1, name);
    } else {
        lua_pushnil(source);
    }
    bool table = lua_type(source, -1) == LUA_TTABLE;
    if (table) {
        copy_value(source, L, 0);
    } else {
        lua_newtable(L);
    }
    /* The copy stays; what it was made from goes. */
    if (L == source) {
        lua_replace(L, -3);
        lua_pop(L, 1);
    } else {
        lua_pop(source, 2);
    }
}

/* Sets lines[n][name] of the input table, when it has one, on the table on top of L. */
static void set_line_extra(lua_State *L, lua_State *source, int idx, size_t n, const char *name) {
    int top = lua_gettop(source), target = lua_gettop(L);
    lua_getfield(source, idx, "lines");
    lua_rawgeti(source, -1, (int)n + 1);
    if (lua_type(source, -1) == LUA_TTABLE) {
        lua_getfield(source, -1, name);
        if (lua_type(source, -1) == LUA_TTABLE) {
            copy_value(source, L, 0);
        } else {
            lua_newtable(L);
        }
        lua_setfield(L, target, name);
    }
    lua_settop(source, top);
}

static void push_discounts(lua_State *L, const struct pricing_view *view, size_t line) {
    lua_newtable(L);
    int n = 0;
    for (size_t i = 0; i < view->rows; i++) {
        if (view->row[i].line != (int64_t)line) continue;
        const struct quote_source *from = &view->source[view->row[i].source];
        lua_createtable(L, 0, 3);
        lua_pushstring(L, source_kind_name(from->kind));
        lua_setfield(L, -2, "kind");
        set_str(L, "source_id", from->id);
        set_int(L, "amount", view->row[i].amount);
        lua_rawseti(L, -2, ++n);
    }
}

static void push_line(lua_State *L, const struct pricing_view *view, size_t i, lua_State *source, int idx) {
    const struct quote_line *line = &view->line[i];
    const struct pricing_line *item = line->item;
    lua_createtable(L, 0, 24);
    set_str(L, "id", line->id);
    set_str(L, "product_id", item->product_id);
    set_str(L, "variant_id", item->variant_id);
    set_str(L, "sku", item->sku);
    set_list(L, "category_ids", item->category_ids);
    set_list(L, "tag_ids", item->tag_ids);
    set_str(L, "vendor_id", item->vendor_id);
    set_str(L, "tax_class", item->tax_class);
    set_int(L, "qty", line->qty);
    set_int(L, "unit", line->unit);
    set_int(L, "gross", line->gross);
    set_int(L, "net", line->net);
    set_int(L, "weight_g", item->weight_g);
    set_str(L, "bundle_id", line->bundle_id);
    lua_pushlstring(L, item->purchase_type.len ? item->purchase_type.at : "one_time",
                    item->purchase_type.len ? item->purchase_type.len : sizeof "one_time" - 1);
    lua_setfield(L, -2, "purchase_type");
    set_bool(L, "is_gift", line->is_gift);
    if (item >= view->input->line && item < view->input->line + view->input->lines) {
        size_t at = (size_t)(item - view->input->line);
        set_line_extra(L, source, idx, at, "attributes");
        set_line_extra(L, source, idx, at, "properties");
    }
    push_discounts(L, view, i);
    lua_setfield(L, -2, "discounts");
}

static void push_lines(lua_State *L, const struct pricing_view *view, lua_State *source, int idx) {
    lua_createtable(L, (int)view->lines, 0);
    for (size_t i = 0; i < view->lines; i++) {
        push_line(L, view, i, source, idx);
        lua_rawseti(L, -2, (int)i + 1);
    }
}

static void push_cart(lua_State *L, const struct pricing_view *view, lua_State *source, int idx) {
    const struct pricing_input *in = view->input;
    int64_t items = 0;
    push_given(L, source, idx, "cart");
    for (size_t i = 0; i < view->lines; i++) items += view->line[i].qty;
    set_int(L, "gross", view->gross);
    set_int(L, "net", view->net);
    set_int(L, "item_count", items);
    lua_createtable(L, (int)in->coupons, 0);
    for (size_t i = 0; i < in->coupons; i++) {
        lua_pushlstring(L, in->coupon[i].code.at, in->coupon[i].code.len);
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_setfield(L, -2, "coupon_codes");
    push_lines(L, view, source, idx);
    lua_setfield(L, -2, "lines");
}

static void push_customer(lua_State *L, const struct pricing_view *view, lua_State *source, int idx) {
    const struct pricing_customer *customer = &view->input->customer;
    push_given(L, source, idx, "customer");
    set_str(L, "id", customer->id);
    set_bool(L, "guest", customer->id.len == 0);
    set_list(L, "groups", customer->groups);
    set_bool(L, "first_order", customer->first_order);
    set_int(L, "points_available", view->input->points.available);
}

/* The address without names, streets and phones. */
static void push_address(lua_State *L, const struct pricing_view *view) {
    const struct shipping_place *place = &view->input->shipping.place;
    struct str country = place->country.len ? place->country : view->input->tax.home_country;
    lua_createtable(L, 0, 5);
    set_str(L, "country", country);
    set_str(L, "province", place->province);
    set_str(L, "region", place->region);
    set_str(L, "city", place->city);
    set_str(L, "zip", place->zip);
}

static void push_shipping(lua_State *L, const struct pricing_view *view) {
    lua_createtable(L, 0, 4);
    push_address(L, view);
    lua_setfield(L, -2, "address");
    struct str method = view->input->shipping.method_id;
    if (view->shipping && view->shipping->method) method = view->shipping->method->id;
    set_str(L, "method_id", method);
    if (view->shipping) set_int(L, "net", view->shipping->net);
    lua_createtable(L, (int)view->groups, 0);
    for (size_t i = 0; i < view->groups; i++) {
        lua_createtable(L, 0, 3);
        set_str(L, "warehouse_id", view->group[i].warehouse_id);
        set_int(L, "weight_g", view->group[i].weight_g);
        set_int(L, "net", view->group[i].merchandise);
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_setfield(L, -2, "groups");
}

static void push_candidates(lua_State *L, const struct pricing_view *view) {
    lua_newtable(L);
    int n = 0;
    for (size_t i = 0; i < view->lines; i++) {
        for (size_t k = 0; k < view->line[i].rates; k++) {
            const struct tax_rate *rate = &view->line[i].rate[k];
            lua_createtable(L, 0, 5);
            set_str(L, "line", view->line[i].id);
            set_int(L, "rate_ppm", rate->ppm);
            set_str(L, "name", rate->name);
            set_str(L, "jurisdiction", rate->jurisdiction);
            set_bool(L, "compound", rate->compound);
            lua_rawseti(L, -2, ++n);
        }
    }
}

/* subject of tax.resolve: {lines, address, candidates, date}; the customer stands beside it in the input. */
static void push_tax_subject(lua_State *L, const struct pricing_view *view) {
    lua_createtable(L, 0, 4);
    lua_getfield(L, -2, "cart");
    lua_getfield(L, -1, "lines");
    lua_setfield(L, -3, "lines");
    lua_pop(L, 1);
    push_address(L, view);
    lua_setfield(L, -2, "address");
    push_candidates(L, view);
    lua_setfield(L, -2, "candidates");
    set_int(L, "date", view->input->now_ms / 1000);
}

bool pricing_push_snapshot(lua_State *L, const char *hook, const struct pricing_view *view, lua_State *source,
                           int source_idx, struct error *err) {
    if (!lua_checkstack(L, 24) || !lua_checkstack(source, 24)) return error_set(err, ERR_MEMORY, "out of memory");
    lua_createtable(L, 0, 9);
    lua_pushstring(L, hook);
    lua_setfield(L, -2, "hook");
    push_given(L, source, source_idx, "now");
    set_int(L, "epoch", view->input->now_ms / 1000);
    set_int(L, "wday", view->input->weekday);
    set_int(L, "hour", view->input->hour);
    lua_setfield(L, -2, "now");
    lua_createtable(L, 0, 2);
    lua_pushstring(L, view->currency->code);
    lua_setfield(L, -2, "code");
    set_int(L, "exponent", view->currency->exponent);
    lua_setfield(L, -2, "currency");
    push_given(L, source, source_idx, "tenant");
    lua_setfield(L, -2, "tenant");
    push_customer(L, view, source, source_idx);
    lua_setfield(L, -2, "customer");
    push_cart(L, view, source, source_idx);
    lua_setfield(L, -2, "cart");
    push_shipping(L, view);
    lua_setfield(L, -2, "shipping");
    if (view->shipping) {
        push_tax_subject(L, view);
    } else {
        lua_newtable(L);
    }
    lua_setfield(L, -2, "subject");
    return true;
}

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

static bool take_str(struct answer *a, struct str key, struct str *out) {
    if (lua_type(a->L, -1) != LUA_TSTRING) return fault(a, key, "a text is expected");
    size_t len;
    const char *at = lua_tolstring(a->L, -1, &len);
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
    if (IS("amount", M_AMOUNT)) return take_int(a, key, &op->amount);
    if (IS("price", M_PRICE)) return take_int(a, key, &op->amount);
    if (IS("units", M_UNITS))
        return take_int(a, key, &op->units) && (op->units > 0 || fault(a, key, "must be above 0"));
    if (IS("line_ids", M_LISTS)) return take_list(a, key, &op->line_ids);
    if (IS("exclude_line_ids", M_LISTS)) return take_list(a, key, &op->exclude_line_ids);
    if (IS("max", M_MAX)) return take_int(a, key, &op->max) && (op->max > 0 || fault(a, key, "must be above 0"));
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
