/* core.pricing: the pricing pipeline of core/commerce, as Lua sees it.
 *
 *   pricing.quote(input [, hooks]) -> quote | nil, err     never waits; err.kind invalid | limit | memory | internal
 *
 * Amounts are integers in minor units of the cart's currency, weights grams, discounts basis points, taxes ppm, times
 * milliseconds or ISO text. Absent members are nil or json.null; unknown ones are passed over.
 *
 *   input = {
 *     currency, now_ms, weekday (1 = Monday), hour, priority_mode, max_coupons, rounding_step,
 *     lines = { {id, product_id, variant_id, purchase_type, bundle_id, bundle_key, sku, name, vendor_id, tax_class,
 *       warehouse_id, category_ids, tag_ids, qty, price, sale_price, price_currency, prices = {{currency,
 * customer_group, min_qty, price, sale_price, starts_ms, ends_ms, of_variant}}, fixed_unit, subscriber_bps, weight_g,
 * volume_cm3, requires_shipping, attributes, properties (both for rules only)} }, gifts = lines that rules may give
 * away, with stock (-1 = untracked) and no id or qty; see quote.wanted, rates = { {from, legs = {rate = "25450.000000",
 * inverse = bool} or two of them} }, bundles = { {id, name, currency, pricing = fixed|percent_off, price,
 * percent_off_bps, max_per_order, starts_ms, ends_ms, inactive, auto_apply, items = {{product_id, variant_id, qty}}} },
 *     promotions = { {id, code, label, currency, exclusion_group, version, kind =
 * discount|flash_sale|b1g1|free_shipping| script, value_type = percent|fixed|price, level = line|order|shipping, value,
 * targets = {kind = all|category| product|variant|tag|vendor|bundle, ids}, min_order, min_qty, max_discount, buy_qty,
 * get_qty, get_bps, pool, priority, stackable, exclusive, stop_after, include_bundled, first_order_only, inactive,
 * customer_groups, tier_ids, weekdays = {1..7}, hour_from, hour_to, usage_limit, used_count, customer_limit,
 * customer_used, budget, budget_used, max_units, units_used, max_units_customer, units_customer, starts_ms, ends_ms} },
 *     coupons = in the order of typing { {id, code, label, currency, kind = percentage|fixed|free_shipping, version,
 * value, min_order, max_discount, usage_limit, used_count, customer_limit, customer_used, found (true), inactive,
 * stackable, exclude_discounted, first_order_only, script_rejected, targets, customer_ids, customer_groups, starts_ms,
 * ends_ms} }, cards = { {id, code, currency, balance, expires_ms} }, wallet = {id, currency, balance, most}, customer =
 * {id, tier_id, groups, first_order, tier_free_shipping, tier_discount_bps, multiplier_pct}, points = {requested,
 * available, value, step, redeem_max_bps, currency, earn_unit, earn = {to, legs}}, shipping = {place = {country,
 * province, region, city, zip}, method_id, zones = {{id, countries, provinces, regions, zips, priority, inactive}},
 * methods = {{id, name, zone_id, currency, base, per_kg, step_grams, volumetric_divisor, min_weight_g, max_weight_g,
 * free_over, estimated_days, inactive, bands = {{from_g, to_g, price}}}}}, tax = {inclusive, keep_net, off, mode, level
 * = line|unit|order, shipping = by_class|weighted|none, shipping_class, place = {country, region, zip}, home_country,
 * exempt = none|exempt|reverse_charge, rules = {{id, name, country, region, zip, tax_class, stack_group, jurisdiction,
 * ppm, calc_order, priority, from_ms, to_ms, compound, inactive}}}, snapshot = {now, tenant, customer, cart}: what
 * rules are told beside the figures (sheet 02, 6.2),
 *   }
 *   hooks = {
 *     promotion = function(snapshot) -> { {rule_id, name, version, priority, operations = {...}} },
 *     tax_resolve = function(snapshot) -> list of {line, rate_ppm, name, jurisdiction, compound} or nil,
 *   }   called in the middle of the quote; they must not wait. An answer of theirs that is out of form counts as none.
 *
 *   quote = {currency, inclusive, subtotal, discount, merchandise, tax, cash_rounding, total, gift_card, wallet, due,
 *     points_used, points_amount, points_cap, points_reason, earn_points, lines, adjustments (one a source),
 *     adjustment_rows (one a source and line: line_id nil = shipping or order), rejected, trace, shipping, groups,
 * taxes, tenders, wanted, promotion_uses, coupon_uses}
 */
#include "script/bind_pricing.h"

#include <lauxlib.h>
#include <stdlib.h>

#include "runtime/log.h"
#include "script/bind.h"

#define ARENA_FIRST ((size_t)64 * 1024)
#define ARENA_LIMIT ((size_t)256 * 1024 * 1024)

/* The arena of quotes, kept from one to the next; `busy` while one is being priced, since hooks run Lua. */
struct bench {
    struct arena *arena;
    bool busy;
};

static int bench_gc(lua_State *L) {
    struct bench *bench = lua_touserdata(L, 1);
    arena_free(bench->arena);
    bench->arena = NULL;
    return 0;
}

struct call {
    lua_State *L;
    int input, hooks; /* stack indices; hooks 0 = none */
};

static void push_error(lua_State *L, const struct error *err) {
    lua_pushnil(L);
    lua_createtable(L, 0, 3);
    lua_pushstring(L, error_kind_name(err->kind));
    lua_setfield(L, -2, "kind");
    lua_pushstring(L, err->message);
    lua_setfield(L, -2, "message");
}

/* The protected part of a hook call: builds the snapshot and calls the function. */
struct shot {
    struct call *call;
    const char *hook;
    const struct pricing_view *view;
    struct error err;
};

/* Stack: the shot, the input, the function. */
static int run_hook(lua_State *L) {
    struct shot *shot = lua_touserdata(L, 1);
    lua_pushvalue(L, 3);
    if (!pricing_push_snapshot(L, shot->hook, shot->view, L, 2, &shot->err))
        return luaL_error(L, "%s", shot->err.message);
    lua_call(L, 1, 1);
    return 1;
}

/* Calls hooks[name](snapshot) and leaves its answer on the stack. False with `err`: it raised. *absent: no such hook.
 */
static bool call_hook(struct call *call, const char *name, const char *hook, const struct pricing_view *view,
                      bool *absent, struct error *err) {
    lua_State *L = call->L;
    lua_getfield(L, call->hooks, name);
    *absent = lua_isnil(L, -1);
    if (*absent) {
        lua_pop(L, 1);
        return true;
    }
    struct shot shot = {.call = call, .hook = hook, .view = view};
    lua_pushcfunction(L, run_hook);
    lua_insert(L, -2);
    lua_pushlightuserdata(L, &shot);
    lua_insert(L, -2);
    lua_pushvalue(L, call->input);
    lua_insert(L, -2);
    if (lua_pcall(L, 3, 1, 0) == 0) return true;
    const char *message = lua_tostring(L, -1);
    error_set(err, ERR_INTERNAL, "hook %s: %s", hook, message ? message : "raised something that is no text");
    lua_pop(L, 1);
    return false;
}

static struct str field_text(lua_State *L, struct arena *a, const char *name) {
    struct str text = {0};
    lua_getfield(L, -1, name);
    if (lua_type(L, -1) == LUA_TSTRING) {
        size_t len;
        const char *at = lua_tolstring(L, -1, &len);
        text = (struct str){.at = arena_strdup(a, str_n(at, len)), .len = len};
    }
    lua_pop(L, 1);
    return text.at ? text : (struct str){0};
}

static int64_t field_int(lua_State *L, const char *name) {
    lua_getfield(L, -1, name);
    int64_t n = lua_type(L, -1) == LUA_TNUMBER ? (int64_t)lua_tonumber(L, -1) : 0;
    lua_pop(L, 1);
    return n;
}

/* One answer on top of the stack: {rule_id, name, version, priority, operations}. */
static bool read_result(lua_State *L, struct arena *a, struct rule_result *out, struct error *err) {
    struct error fault = {.kind = ERR_NONE};
    out->rule_id = field_text(L, a, "rule_id");
    out->name = field_text(L, a, "name");
    out->version = field_int(L, "version");
    out->priority = field_int(L, "priority");
    if (out->rule_id.len == 0) return error_set(err, ERR_INVALID, "hook promotion: an answer without rule_id");
    lua_createtable(L, 0, 1);
    lua_getfield(L, -2, "operations");
    lua_setfield(L, -2, "operations");
    bool ok = pricing_read_operations(L, a, out, &fault);
    lua_pop(L, 1);
    if (!ok && fault.kind == ERR_MEMORY) return error_set(err, ERR_MEMORY, "out of memory");
    out->invalid = !ok;
    if (!ok) log_line(LOG_WARN, "rule %.*s: %s", STR_FMT(out->rule_id), fault.message);
    return true;
}

static bool hook_promotion(void *data, const struct pricing_view *view, struct arena *a,
                           const struct rule_result **results, size_t *n, struct error *err) {
    struct call *call = data;
    lua_State *L = call->L;
    bool absent;
    *n = 0;
    if (!lua_checkstack(L, 24)) return error_set(err, ERR_MEMORY, "out of memory");
    if (!call_hook(call, "promotion", "promotion", view, &absent, err)) return false;
    if (absent) return true;
    size_t count = lua_type(L, -1) == LUA_TTABLE ? lua_objlen(L, -1) : 0;
    struct rule_result *list = arena_zalloc(a, count ? count : 1, sizeof *list);
    bool ok = list != NULL;
    if (!list) error_set(err, ERR_MEMORY, "out of memory");
    for (size_t i = 0; ok && i < count; i++) {
        lua_rawgeti(L, -1, (int)i + 1);
        ok = lua_type(L, -1) == LUA_TTABLE ? read_result(L, a, &list[i], err)
                                           : error_set(err, ERR_INVALID, "hook promotion: an answer is no table");
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
    *results = list;
    *n = count;
    return ok;
}

static bool hook_tax(void *data, const struct pricing_view *view, struct arena *a, const struct tax_answer **answers,
                     size_t *n, bool *answered, struct error *err) {
    struct call *call = data;
    lua_State *L = call->L;
    struct error fault = {0};
    bool absent;
    *answered = false;
    if (!lua_checkstack(L, 24)) return error_set(err, ERR_MEMORY, "out of memory");
    if (!call_hook(call, "tax_resolve", "tax.resolve", view, &absent, err)) return false;
    if (absent) return true;
    bool ok = pricing_read_taxes(L, a, view, answers, n, answered, &fault);
    lua_pop(L, 1);
    if (ok) return true;
    if (fault.kind == ERR_MEMORY) return error_set(err, ERR_MEMORY, "out of memory");
    log_line(LOG_WARN, "tax.resolve: %s", fault.message);
    *answered = false;
    return true;
}

static int l_quote(lua_State *L) {
    struct bench *bench = lua_touserdata(L, lua_upvalueindex(1));
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 2);
    if (!lua_isnil(L, 2)) luaL_checktype(L, 2, LUA_TTABLE);
    if (bench->busy) return luaL_error(L, "a quote may not be asked for inside a quote");
    if (!bench->arena) bench->arena = arena_new(ARENA_FIRST);
    if (!bench->arena) return luaL_error(L, "out of memory");
    arena_reset(bench->arena);
    arena_limit(bench->arena, ARENA_LIMIT);
    struct pricing_input in;
    struct error err = {0};
    pricing_read(L, 1, lua_touserdata(L, lua_upvalueindex(2)), bench->arena, &in);
    struct call call = {.L = L, .input = 1, .hooks = 2};
    if (!lua_isnil(L, 2))
        in.hooks = (struct pricing_hooks){.data = &call, .promotion = hook_promotion, .tax_resolve = hook_tax};
    bench->busy = true; /* hooks are called protected, so nothing leaps over the next two lines */
    const struct quote *q = pricing_quote(bench->arena, &in, &err);
    bench->busy = false;
    if (!q) {
        push_error(L, &err);
        return 2;
    }
    pricing_push(L, lua_upvalueindex(3), q);
    return 1;
}

int luaopen_core_pricing(lua_State *L) {
    lua_createtable(L, 0, 1);
    struct bench *bench = lua_newuserdata(L, sizeof *bench);
    *bench = (struct bench){0};
    lua_createtable(L, 0, 1);
    lua_pushcfunction(L, bench_gc);
    lua_setfield(L, -2, "__gc");
    lua_setmetatable(L, -2);
    pricing_push_names(L);
    pricing_push_keys(L);
    lua_pushcclosure(L, l_quote, 3);
    lua_setfield(L, -2, "quote");
    return 1;
}
