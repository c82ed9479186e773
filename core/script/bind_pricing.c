/* core.pricing: the pricing pipeline of core/commerce, as Lua sees it.
 *
 *   pricing.quote(input [, rules]) -> quote | nil, err     never waits; err.kind invalid | limit | memory | internal,
 * and busy when its rules took too long. `rules` is a set of core.rules: those of its hooks take part.
 *
 * Amounts are integers in minor units of the cart's currency, weights grams, discounts basis points, taxes ppm, times
 * milliseconds or ISO text. Absent members are nil or json.null; unknown ones are passed over.
 *
 *   input = {
 *     currency, now_ms, weekday (1 = Monday), hour, priority_mode, max_coupons, rounding_step,
 *     lines = { {id, product_id, variant_id, purchase_type, bundle_id, bundle_key, sku, name, vendor_id, tax_class,
 *       warehouse_id, portions = {{warehouse_id, qty}} when it leaves from several warehouses, category_ids, tag_ids,
 * qty, price, sale_price, price_currency, prices = {{currency, customer_group, min_qty, price, sale_price, starts_ms,
 * ends_ms, of_variant}}, fixed_unit, subscriber_bps, weight_g, volume_cm3, requires_shipping, attributes, properties
 * (both for rules only)} }, gifts = lines that rules may give away, with stock (-1 = untracked) and no id or qty; see
 * quote.wanted, rates = { {from, legs = {rate = "25450.000000", inverse = bool} or two of them} }, bundles = { {id,
 * name, currency, pricing = fixed|percent_off, price, percent_off_bps, max_per_order, starts_ms, ends_ms, inactive,
 * auto_apply, items = {{product_id, variant_id, qty}}} }, promotions = { {id, code, label, currency, exclusion_group,
 * version, kind = discount|flash_sale|b1g1|free_shipping| script, value_type = percent|fixed|price, level =
 * line|order|shipping, value, targets = {kind = all|category| product|variant|tag|vendor|bundle, ids}, min_order,
 * min_qty, max_discount, buy_qty, get_qty, get_bps, pool, priority, stackable, exclusive, stop_after, include_bundled,
 * first_order_only, inactive, customer_groups, tier_ids, weekdays = {1..7}, hour_from, hour_to, usage_limit,
 * used_count, customer_limit, customer_used, budget, budget_used, max_units, units_used, max_units_customer,
 * units_customer, starts_ms, ends_ms} }, coupons = in the order of typing { {id, code, label, currency, kind =
 * percentage|fixed|free_shipping, version, value, min_order, max_discount, usage_limit, used_count, customer_limit,
 * customer_used, found (true), inactive, stackable, exclude_discounted, first_order_only, script_rejected, targets,
 * customer_ids, customer_groups, starts_ms, ends_ms} }, cards = { {id, code, currency, balance, expires_ms} }, wallet =
 * {id, currency, balance, most}, customer = {id, tier_id, groups, first_order, tier_free_shipping, tier_discount_bps,
 * multiplier_pct}, points = {requested, available, value, step, redeem_max_bps, currency, earn_unit, earn = {to,
 * legs}}, shipping = {place = {country, province, region, city, zip}, method_id, zones = {{id, countries, provinces,
 * regions, zips, priority, inactive}}, methods = {{id, name, zone_id, currency, base, per_kg, step_grams,
 * volumetric_divisor, min_weight_g, max_weight_g, free_over, estimated_days, inactive, bands = {{from_g, to_g,
 * price}}}}}, tax = {inclusive, keep_net, off, mode, level = line|unit|order, shipping = by_class|weighted|none,
 * shipping_class, place = {country, region, zip}, home_country, exempt = none|exempt|reverse_charge, rules = {{id,
 * name, country, region, zip, tax_class, stack_group, jurisdiction, ppm, calc_order, priority, from_ms, to_ms,
 * compound, inactive}}}, snapshot = {now, tenant, customer, cart}: what rules are told beside the figures (sheet
 * 02, 6.2),
 *   }
 *   quote = {currency, inclusive, subtotal, discount, merchandise, tax, cash_rounding, total, gift_card, wallet, due,
 *     points_used, points_amount, points_cap, points_reason, earn_points, lines, adjustments (one a source),
 *     adjustment_rows (one a source and line: line_id nil = shipping or order; portions = its amount on each portion of
 * the line), rejected, trace, shipping, groups,
 * taxes, tenders, wanted, promotion_uses, coupon_uses}; with rules also rule_runs = {{id, rule_id, name, hook, version,
 *     number, outcome, line, message, reason, instructions, micros, heap, result_bytes, operations, tripped, log}} and
 * blocked_by, the rule that failed and says that nothing may be sold without it
 */
#include "script/bind_pricing.h"

#include <lauxlib.h>
#include <stdlib.h>

#include "runtime/log.h"
#include "script/bind.h"
#include "script/bind_rules.h"

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

static void push_error(lua_State *L, const struct error *err) {
    lua_pushnil(L);
    lua_createtable(L, 0, 3);
    lua_pushstring(L, error_kind_name(err->kind));
    lua_setfield(L, -2, "kind");
    lua_pushstring(L, err->message);
    lua_setfield(L, -2, "message");
}

static int l_quote(lua_State *L) {
    struct bench *bench = lua_touserdata(L, lua_upvalueindex(1));
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 2);
    struct rule_set *set = lua_isnil(L, 2) ? NULL : bind_rule_set(L, 2);
    if (bench->busy) return luaL_error(L, "a quote may not be asked for inside a quote");
    if (!bench->arena) bench->arena = arena_new(ARENA_FIRST);
    if (!bench->arena) return luaL_error(L, "out of memory");
    arena_reset(bench->arena);
    arena_limit(bench->arena, ARENA_LIMIT);
    struct pricing_input in;
    struct error err = {0};
    pricing_read(L, 1, lua_touserdata(L, lua_upvalueindex(2)), bench->arena, &in);
    struct pricing_rules rules;
    pricing_rules_begin(&rules, L, 1, set, bench->arena);
    if (set) in.hooks = rules.hooks;
    bench->busy = true; /* rules run protected, so nothing leaps over the next two lines */
    const struct quote *q = pricing_quote(bench->arena, &in, &err);
    bench->busy = false;
    if (q && rules.late) {
        error_set(&err, ERR_BUSY, "the rules of this quote took too long");
        q = NULL;
    }
    if (!q) {
        push_error(L, &err);
        return 2;
    }
    pricing_push(L, lua_upvalueindex(3), q);
    if (!set) return 1;
    pricing_push_runs(L, lua_upvalueindex(4), &rules);
    lua_setfield(L, -2, "rule_runs");
    if (rules.blocked_by) {
        lua_pushstring(L, rules.blocked_by);
        lua_setfield(L, -2, "blocked_by");
    }
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
    pricing_push_run_keys(L);
    lua_pushcclosure(L, l_quote, 4);
    lua_setfield(L, -2, "quote");
    pricing_push_records(L);
    pricing_add_subject_records(L);
    lua_setfield(L, -2, "records");
    return 1;
}
