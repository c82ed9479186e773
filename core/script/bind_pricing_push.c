/* From a quote to a Lua table. */
#include <lauxlib.h>

#include "script/bind_pricing.h"

struct pusher {
    lua_State *L;
    int keys; /* index of the table of interned names */
};

/* The names of all members; hashed once a state, not once a member. */
// clang-format off
#define NAMES(X) \
    X(adjustment_rows) X(adjustments) X(after) X(amount) X(amount_minor) X(before) X(bundle_id) X(bundle_key) \
    X(cash_rounding) X(charge) X(code) X(coupon_id) X(coupon_uses) X(currency) X(days) X(discount) X(due) X(earn_points) \
    X(gift_card) X(gross) X(groups) X(id) X(in_bundle) X(inclusive) X(is_gift) X(jurisdiction) X(kind) X(known) \
    X(label) X(level) X(line_id) X(lines) X(merchandise) X(method_id) X(method_name) X(name) X(net) X(note) X(offers) \
    X(points_amount) X(points_cap) X(points_reason) X(points_used) X(portions) X(ppm) X(price_label) X(product_id) X(promotion_id) \
    X(promotion_uses) X(purchase_type) X(qty) X(rate_ppm) X(reason) X(rejected) X(requires_shipping) X(rule) \
    X(shipping) X(sku) X(source_id) X(stage) X(subtotal) X(tax) X(tax_class) X(taxes) X(tenders) X(total) X(trace) X(unit) \
    X(units) X(variant_id) X(vendor_id) X(version) X(wallet) X(wanted) X(warehouse_id) X(weight_g)
// clang-format on

#define X(name) K_##name,
enum key { K_NONE, NAMES(X) };
#undef X

void pricing_push_keys(lua_State *L) {
#define X(name) #name,
    static const char *const names[] = {NAMES(X)};
#undef X
    lua_createtable(L, sizeof names / sizeof *names, 0);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        lua_pushstring(L, names[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
}

/* Each takes the table of a quote (or of a part of it) from the top of the stack but for the value. */
static void set_top(struct pusher *p, enum key key) {
    lua_rawgeti(p->L, p->keys, (int)key);
    lua_insert(p->L, -2);
    lua_rawset(p->L, -3);
}

static void set_str(struct pusher *p, enum key key, struct str s) {
    if (s.len == 0) return;
    lua_rawgeti(p->L, p->keys, (int)key);
    lua_pushlstring(p->L, s.at, s.len);
    lua_rawset(p->L, -3);
}

static void set_text(struct pusher *p, enum key key, const char *text) {
    set_str(p, key, str_of(text));
}

static void set_int(struct pusher *p, enum key key, int64_t n) {
    lua_rawgeti(p->L, p->keys, (int)key);
    lua_pushnumber(p->L, (lua_Number)n);
    lua_rawset(p->L, -3);
}

static void set_bool(struct pusher *p, enum key key, bool value) {
    lua_rawgeti(p->L, p->keys, (int)key);
    lua_pushboolean(p->L, value);
    lua_rawset(p->L, -3);
}

/* The id of the line of the input that a line came from: what a bundle split off carries "<line>~<bundle>". */
static void set_source(struct pusher *p, const struct quote_line *line) {
    set_str(p, K_source_id, line->item->id);
}

static void push_taxes(struct pusher *p, const struct quote_line *line) {
    lua_createtable(p->L, (int)line->rates, 0);
    for (size_t k = 0; k < line->rates; k++) {
        lua_createtable(p->L, 0, 5);
        set_str(p, K_id, line->rate[k].id);
        set_str(p, K_name, line->rate[k].name);
        set_str(p, K_jurisdiction, line->rate[k].jurisdiction);
        set_int(p, K_ppm, line->rate[k].ppm);
        set_int(p, K_amount, line->part[k]);
        lua_rawseti(p->L, -2, (int)k + 1);
    }
}

static void push_portions(struct pusher *p, const struct quote_line *line) {
    lua_createtable(p->L, (int)line->portions, 0);
    for (size_t k = 0; k < line->portions; k++) {
        const struct quote_portion *portion = &line->portion[k];
        lua_createtable(p->L, 0, 6);
        set_str(p, K_warehouse_id, portion->warehouse_id);
        set_int(p, K_qty, portion->qty);
        set_int(p, K_gross, portion->gross);
        set_int(p, K_discount, portion->discount);
        set_int(p, K_net, portion->net);
        set_int(p, K_tax, portion->tax);
        lua_rawseti(p->L, -2, (int)k + 1);
    }
}

static void push_lines(struct pusher *p, const struct quote *q) {
    lua_createtable(p->L, (int)q->lines, 0);
    for (size_t i = 0; i < q->lines; i++) {
        const struct quote_line *line = &q->line[i];
        lua_createtable(p->L, 0, 24);
        set_str(p, K_id, line->id);
        set_source(p, line);
        set_str(p, K_product_id, line->item->product_id);
        set_str(p, K_variant_id, line->item->variant_id);
        set_str(p, K_sku, line->item->sku);
        set_str(p, K_name, line->item->name);
        set_str(p, K_purchase_type, line->item->purchase_type);
        set_str(p, K_warehouse_id, line->item->warehouse_id);
        set_str(p, K_vendor_id, line->item->vendor_id);
        set_str(p, K_bundle_id, line->bundle_id);
        set_str(p, K_price_label, line->price_label);
        set_str(p, K_tax_class, line->tax_class);
        set_str(p, K_bundle_key, line->bundle_key);
        set_bool(p, K_is_gift, line->is_gift);
        set_bool(p, K_in_bundle, line->in_bundle);
        set_bool(p, K_requires_shipping, line->item->requires_shipping);
        set_int(p, K_qty, line->qty);
        set_int(p, K_unit, line->unit);
        set_int(p, K_gross, line->gross);
        set_int(p, K_discount, line->discount);
        set_int(p, K_net, line->net);
        set_int(p, K_tax, line->tax);
        set_int(p, K_rate_ppm, line->rate_ppm);
        set_int(p, K_weight_g, line->item->weight_g);
        push_taxes(p, line);
        set_top(p, K_taxes);
        if (line->portions) {
            push_portions(p, line);
            set_top(p, K_portions);
        }
        lua_rawseti(p->L, -2, (int)i + 1);
    }
}

static void push_source(struct pusher *p, const struct quote_source *source, int64_t amount) {
    lua_createtable(p->L, 0, 9);
    set_text(p, K_kind, source_kind_name(source->kind));
    set_text(p, K_level, price_level_name(source->level));
    set_str(p, K_source_id, source->id);
    set_str(p, K_code, source->code);
    set_str(p, K_label, source->label);
    if (source->version) set_int(p, K_version, source->version);
    set_int(p, K_amount, amount);
}

static void push_sources(struct pusher *p, const struct quote *q) {
    lua_createtable(p->L, (int)q->sources, 0);
    for (size_t i = 0; i < q->sources; i++) {
        push_source(p, &q->source[i], q->source[i].amount);
        lua_rawseti(p->L, -2, (int)i + 1);
    }
    set_top(p, K_adjustments);
    lua_createtable(p->L, (int)q->rows, 0);
    for (size_t i = 0; i < q->rows; i++) {
        push_source(p, &q->source[q->row[i].source], q->row[i].amount);
        if (q->row[i].line >= 0) set_str(p, K_line_id, q->line[q->row[i].line].id);
        if (q->row[i].portion) {
            size_t n = q->line[q->row[i].line].portions;
            lua_createtable(p->L, (int)n, 0);
            for (size_t k = 0; k < n; k++) {
                lua_pushnumber(p->L, (lua_Number)q->row[i].portion[k]);
                lua_rawseti(p->L, -2, (int)k + 1);
            }
            set_top(p, K_portions);
        }
        lua_rawseti(p->L, -2, (int)i + 1);
    }
    set_top(p, K_adjustment_rows);
}

/* Whether checkout counts what a source gave: stored promotions and coupons, and rules that have a stored promotion. */
static bool counts(const struct quote *q, const struct quote_source *source, enum source_kind kind) {
    if (source->kind == kind) return !str_eq(source->id, STR("tier"));
    if (kind != SOURCE_PROMOTION || source->kind != SOURCE_SCRIPT) return false;
    for (size_t i = 0; i < q->input->promotions; i++)
        if (q->input->promotion[i].kind == PROMOTION_SCRIPT && str_eq(q->input->promotion[i].id, source->id))
            return true;
    return false;
}

/* What checkout counts: each that applied, once; a rule gives by several sources. */
static void push_uses(struct pusher *p, const struct quote *q, enum source_kind kind, enum key id) {
    lua_newtable(p->L);
    int n = 0;
    for (size_t i = 0; i < q->sources; i++) {
        const struct quote_source *source = &q->source[i];
        if (!counts(q, source, kind)) continue;
        bool seen = false;
        int64_t amount = 0, units = 0;
        for (size_t k = 0; k < q->sources; k++) {
            if (q->source[k].kind != source->kind || !str_eq(q->source[k].id, source->id)) continue;
            seen = seen || k < i;
            amount += q->source[k].amount;
            units += q->source[k].units;
        }
        if (seen || amount == 0) continue;
        lua_createtable(p->L, 0, 4);
        set_str(p, id, source->id);
        set_str(p, K_code, source->code);
        set_int(p, K_amount_minor, amount);
        set_int(p, K_units, source->kind == SOURCE_SCRIPT ? 0 : units);
        lua_rawseti(p->L, -2, ++n);
    }
}

static void push_trace(struct pusher *p, const struct quote *q) {
    lua_createtable(p->L, (int)q->traces, 0);
    for (size_t i = 0; i < q->traces; i++) {
        const struct quote_trace *trace = &q->trace[i];
        lua_createtable(p->L, 0, 6);
        set_int(p, K_stage, trace->stage);
        set_str(p, K_rule, trace->rule);
        if (trace->version) set_int(p, K_version, trace->version);
        set_int(p, K_before, trace->before);
        set_int(p, K_after, trace->after);
        set_text(p, K_note, trace->note);
        lua_rawseti(p->L, -2, (int)i + 1);
    }
}

static void push_rejected(struct pusher *p, const struct quote *q) {
    lua_createtable(p->L, (int)q->rejections, 0);
    for (size_t i = 0; i < q->rejections; i++) {
        lua_createtable(p->L, 0, 2);
        set_str(p, K_code, q->rejected[i].code);
        set_text(p, K_reason, q->rejected[i].reason);
        lua_rawseti(p->L, -2, (int)i + 1);
    }
}

static void push_shipping(struct pusher *p, const struct quote_shipping *s) {
    lua_createtable(p->L, 0, 8);
    set_bool(p, K_known, s->known);
    if (s->method) {
        set_str(p, K_method_id, s->method->id);
        set_str(p, K_method_name, s->name);
    }
    lua_createtable(p->L, (int)s->offers, 0);
    for (size_t i = 0; i < s->offers; i++) {
        lua_createtable(p->L, 0, 4);
        set_str(p, K_id, s->offer[i].method->id);
        set_str(p, K_name, s->offer[i].name);
        set_int(p, K_amount, s->offer[i].price);
        if (s->offer[i].days >= 0) set_int(p, K_days, s->offer[i].days);
        lua_rawseti(p->L, -2, (int)i + 1);
    }
    set_top(p, K_offers);
    set_text(p, K_reason, s->reason);
    set_int(p, K_charge, s->charge);
    set_int(p, K_discount, s->discount);
    set_int(p, K_net, s->net);
    set_int(p, K_tax, s->tax);
}

static void push_groups(struct pusher *p, const struct quote *q) {
    lua_createtable(p->L, (int)q->groups, 0);
    for (size_t i = 0; i < q->groups; i++) {
        const struct quote_group *group = &q->group[i];
        lua_createtable(p->L, 0, 6);
        set_str(p, K_warehouse_id, group->warehouse_id);
        set_int(p, K_weight_g, group->weight_g);
        set_int(p, K_merchandise, group->merchandise);
        set_int(p, K_charge, group->charge);
        set_int(p, K_net, group->net);
        set_int(p, K_tax, group->tax);
        lua_rawseti(p->L, -2, (int)i + 1);
    }
}

static void push_tax_sums(struct pusher *p, const struct quote *q) {
    lua_createtable(p->L, (int)q->taxes, 0);
    for (size_t i = 0; i < q->taxes; i++) {
        lua_createtable(p->L, 0, 4);
        set_str(p, K_jurisdiction, q->tax[i].jurisdiction);
        set_str(p, K_name, q->tax[i].name);
        set_int(p, K_ppm, q->tax[i].ppm);
        set_int(p, K_amount, q->tax[i].amount);
        lua_rawseti(p->L, -2, (int)i + 1);
    }
}

static void push_tenders(struct pusher *p, const struct quote *q) {
    lua_createtable(p->L, (int)q->tenders, 0);
    for (size_t i = 0; i < q->tenders; i++) {
        lua_createtable(p->L, 0, 4);
        set_text(p, K_kind, q->tender[i].is_wallet ? "wallet" : "gift_card");
        set_str(p, K_id, q->tender[i].id);
        set_str(p, K_code, q->tender[i].code);
        set_int(p, K_amount, q->tender[i].amount);
        lua_rawseti(p->L, -2, (int)i + 1);
    }
}

static void push_wanted(struct pusher *p, const struct quote *q) {
    lua_createtable(p->L, (int)q->wants, 0);
    for (size_t i = 0; i < q->wants; i++) {
        lua_createtable(p->L, 0, 3);
        set_str(p, K_product_id, q->wanted[i]->product_id);
        set_str(p, K_variant_id, q->wanted[i]->variant_id);
        set_int(p, K_qty, q->wanted[i]->qty);
        lua_rawseti(p->L, -2, (int)i + 1);
    }
}

void pricing_push(lua_State *L, int keys, const struct quote *q) {
    struct pusher pusher = {.L = L, .keys = keys}, *p = &pusher;
    luaL_checkstack(L, 12, "quote");
    lua_createtable(p->L, 0, 32);
    set_text(p, K_currency, q->currency->code);
    set_bool(p, K_inclusive, q->inclusive);
    set_int(p, K_subtotal, q->subtotal);
    set_int(p, K_discount, q->discount);
    set_int(p, K_merchandise, q->merchandise);
    set_int(p, K_tax, q->tax_total);
    set_int(p, K_cash_rounding, q->cash_rounding);
    set_int(p, K_total, q->total);
    set_int(p, K_gift_card, q->gift_card);
    set_int(p, K_wallet, q->wallet);
    set_int(p, K_due, q->due);
    set_int(p, K_points_used, q->points_used);
    set_int(p, K_points_amount, q->points_amount);
    set_int(p, K_points_cap, q->points_cap);
    set_text(p, K_points_reason, q->points_reason);
    set_int(p, K_earn_points, q->earn_points);
    push_sources(p, q);
    push_lines(p, q);
    set_top(p, K_lines);
    push_trace(p, q);
    set_top(p, K_trace);
    push_rejected(p, q);
    set_top(p, K_rejected);
    push_shipping(p, &q->shipping);
    set_top(p, K_shipping);
    push_groups(p, q);
    set_top(p, K_groups);
    push_tax_sums(p, q);
    set_top(p, K_taxes);
    push_tenders(p, q);
    set_top(p, K_tenders);
    push_wanted(p, q);
    set_top(p, K_wanted);
    push_uses(p, q, SOURCE_PROMOTION, K_promotion_id);
    set_top(p, K_promotion_uses);
    push_uses(p, q, SOURCE_COUPON, K_coupon_id);
    set_top(p, K_coupon_uses);
}
