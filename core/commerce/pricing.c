#include "commerce/pricing_candidate.h"

#include <stdlib.h>

#include "commerce/place.h"

const char *source_kind_name(enum source_kind kind) {
    static const char *const names[] = {"bundle", "promotion", "coupon", "loyalty", "script", "cash_rounding"};
    return names[kind];
}

const char *price_level_name(enum price_level level) {
    static const char *const names[] = {"line", "order", "shipping"};
    return names[level];
}

static bool invalid(struct work *w, const char *what) {
    return error_set(w->err, ERR_INVALID, "%s", what);
}

static bool amount_ok(int64_t amount) {
    return amount >= 0 && amount <= MONEY_MAX;
}

static bool bps_ok(int64_t bps) {
    return bps >= 0 && bps <= BPS_WHOLE;
}

static bool check_item(struct work *w, const struct pricing_line *line) {
    if (line->qty < 1 || line->qty > PRICING_QTY_MAX) return invalid(w, "a quantity must lie in 1..9999");
    if (!amount_ok(line->price) || !amount_ok(line->sale_price) || !amount_ok(line->fixed_unit))
        return invalid(w, "a unit price is out of range");
    if (!bps_ok(line->subscriber_bps)) return invalid(w, "a subscriber saving must lie in 0..10000");
    if (line->weight_g < 0 || line->weight_g > PRICING_GRAMS_MAX || line->volume_cm3 < 0 ||
        line->volume_cm3 > PRICING_GRAMS_MAX)
        return invalid(w, "a weight or volume is out of range");
    if (line->portions > PRICING_PORTIONS_MAX) return invalid(w, "a line leaves from more than 50 warehouses");
    int64_t units = 0;
    for (size_t i = 0; i < line->portions; i++) {
        if (line->portion[i].qty < 1 || line->portion[i].qty > line->qty)
            return invalid(w, "a portion of a line is out of range");
        units += line->portion[i].qty;
        for (size_t k = 0; k < i; k++)
            if (str_eq(line->portion[i].warehouse_id, line->portion[k].warehouse_id))
                return invalid(w, "two portions of a line leave from one warehouse");
    }
    if (line->portions && units != line->qty) return invalid(w, "the portions of a line do not sum to its quantity");
    for (size_t i = 0; i < line->rows; i++)
        if (!amount_ok(line->row[i].price) || !amount_ok(line->row[i].sale_price))
            return invalid(w, "a price list entry is out of range");
    return true;
}

static int id_compare(const void *left, const void *right) {
    return text_order(*(const struct str *)left, *(const struct str *)right);
}

static bool check_lines(struct work *w) {
    const struct pricing_input *in = w->in;
    struct str *ids = arena_zalloc(w->arena, in->lines ? in->lines : 1, sizeof *ids);
    if (!ids) return work_memory(w);
    for (size_t i = 0; i < in->lines; i++) {
        const struct pricing_line *line = &in->line[i];
        if (line->id.len == 0) return invalid(w, "a line has no id");
        if (line->bundle_key.len && line->bundle_key.at[0] == '~')
            return invalid(w, "a bundle key may not start with ~");
        if (!check_item(w, line)) return false;
        ids[i] = line->id;
    }
    if (in->lines) qsort(ids, in->lines, sizeof *ids, id_compare);
    for (size_t i = 1; i < in->lines; i++)
        if (str_eq(ids[i - 1], ids[i])) return invalid(w, "two lines have the same id");
    for (size_t i = 0; i < in->gifts; i++) {
        struct pricing_line one = in->gift[i];
        one.qty = 1;
        if (!check_item(w, &one)) return false;
    }
    return true;
}

static bool check_promotion(struct work *w, const struct promotion *p) {
    bool percent = p->value_type == VALUE_PERCENT;
    if (p->kind == PROMOTION_SCRIPT) return true;
    if (percent && p->kind != PROMOTION_B1G1 && p->kind != PROMOTION_FREE_SHIPPING && !bps_ok(p->value))
        return invalid(w, "a promotion's percentage must lie in 0..10000 basis points");
    if (!amount_ok(p->value) || !amount_ok(p->min_order) || !amount_ok(p->max_discount) || !amount_ok(p->budget) ||
        !amount_ok(p->budget_used))
        return invalid(w, "an amount of a promotion is out of range");
    if (p->kind == PROMOTION_B1G1 && (p->buy_qty < 1 || p->get_qty < 1 || p->buy_qty > PRICING_QTY_MAX ||
                                      p->get_qty > PRICING_QTY_MAX || !bps_ok(p->get_bps)))
        return invalid(w, "buy-x-get-y needs quantities in 1..9999 and a share in 0..10000");
    if (p->max_units < 0 || p->max_units_customer < 0) return invalid(w, "a unit cap is negative");
    return true;
}

static bool check_coupon(struct work *w, const struct pricing_coupon *c) {
    if (!c->found) return true;
    if (c->kind == COUPON_PERCENT && !bps_ok(c->value))
        return invalid(w, "a coupon's percentage must lie in 0..10000 basis points");
    if (!amount_ok(c->value) || !amount_ok(c->min_order) || !amount_ok(c->max_discount))
        return invalid(w, "an amount of a coupon is out of range");
    return true;
}

static bool check_bundle(struct work *w, const struct pricing_bundle *b) {
    if (!amount_ok(b->price) || !bps_ok(b->percent_off_bps)) return invalid(w, "a bundle's price is out of range");
    if (b->max_per_order < 0) return invalid(w, "a bundle's maxPerOrder is negative");
    for (size_t i = 0; i < b->items; i++)
        if (b->item[i].qty < 1 || b->item[i].qty > PRICING_QTY_MAX)
            return invalid(w, "a bundle item's quantity must lie in 1..9999");
    return true;
}

static bool check_method(struct work *w, const struct shipping_method *m) {
    if (!amount_ok(m->base) || !amount_ok(m->per_kg) || m->free_over > MONEY_MAX || m->step_g < 0 || m->divisor < 0)
        return invalid(w, "a shipping method is out of range");
    for (size_t i = 0; i < m->bands; i++)
        if (!amount_ok(m->band[i].price)) return invalid(w, "a shipping band is out of range");
    return true;
}

static bool check_rest(struct work *w) {
    const struct pricing_input *in = w->in;
    for (size_t i = 0; i < in->cards; i++)
        if (!amount_ok(in->card[i].balance)) return invalid(w, "a gift card's balance is out of range");
    for (size_t i = 0; i < in->tax.rules; i++)
        if (in->tax.rule[i].ppm < 0 || in->tax.rule[i].ppm > PPM_WHOLE)
            return invalid(w, "a tax rate must lie in 0..1000000 ppm");
    if (in->wallet.balance > MONEY_MAX || in->wallet.most > MONEY_MAX)
        return invalid(w, "the wallet's balance is out of range");
    if (in->points.requested < 0 || in->points.requested > MONEY_MAX || !amount_ok(in->points.value) ||
        in->points.step < 0 || !bps_ok(in->points.redeem_max_bps) || !amount_ok(in->points.earn_unit))
        return invalid(w, "the point settings are out of range");
    if (!bps_ok(in->customer.tier_discount_bps) || in->customer.multiplier_pct < 0 ||
        in->customer.multiplier_pct > 1000)
        return invalid(w, "the tier's benefits are out of range");
    if (!amount_ok(in->rounding_step)) return invalid(w, "the rounding step is out of range");
    return true;
}

static bool check_input(struct work *w) {
    const struct pricing_input *in = w->in;
    if (in->lines > PRICING_LINES_MAX || in->gifts > PRICING_LINES_MAX) return invalid(w, "more than 200 lines");
    if (in->promotions > PRICING_PROMOTIONS_MAX) return invalid(w, "more than 500 promotions");
    if (in->coupons > PRICING_COUPONS_MAX) return invalid(w, "more than 20 coupons");
    if (in->bundles > PRICING_BUNDLES_MAX) return invalid(w, "more than 200 bundles");
    if (in->tax.rules > PRICING_TAX_RULES_MAX) return invalid(w, "more than 20000 tax rules");
    if (in->shipping.methods > PRICING_METHODS_MAX || in->shipping.zones > PRICING_METHODS_MAX)
        return invalid(w, "more than 500 shipping methods or zones");
    if (in->cards > PRICING_CARDS_MAX) return invalid(w, "more than 20 gift cards");
    if (!check_lines(w)) return false;
    for (size_t i = 0; i < in->promotions; i++)
        if (!check_promotion(w, &in->promotion[i])) return false;
    for (size_t i = 0; i < in->coupons; i++)
        if (!check_coupon(w, &in->coupon[i])) return false;
    for (size_t i = 0; i < in->bundles; i++)
        if (!check_bundle(w, &in->bundle[i])) return false;
    for (size_t i = 0; i < in->shipping.methods; i++)
        if (!check_method(w, &in->shipping.method[i])) return false;
    return check_rest(w);
}

/* Runs the promotion hook and keeps the results whose operations are all in order and whose stored conditions hold. */
static bool ask_rules(struct work *w, struct world *base) {
    const struct pricing_hooks *hooks = &w->in->hooks;
    if (!hooks->promotion) return true;
    struct pricing_view view = work_view(w, base);
    const struct rule_result *results = NULL;
    size_t n = 0;
    if (!hooks->promotion(hooks->data, &view, w->arena, &results, &n, w->err)) return false;
    if (n > PRICING_RULES_MAX) return error_set(w->err, ERR_LIMIT, "more than %d rules answered", PRICING_RULES_MAX);
    struct rule_result *kept = arena_zalloc(w->arena, n ? n : 1, sizeof *kept);
    if (!kept) return work_memory(w);
    for (size_t i = 0; i < n; i++) {
        const char *why;
        kept[i] = results[i];
        const struct promotion *row = script_row(w, results[i].rule_id);
        const char *refusal = row ? promotion_refusal(w, row) : NULL;
        if (results[i].invalid || !operations_check(&results[i], &view, &why)) refusal = "invalid_result";
        if (!refusal) continue;
        kept[i].operations = 0;
        if (!world_note(w, base, 3, results[i].rule_id, results[i].version, view.net, view.net, refusal)) return false;
    }
    w->result = kept;
    w->results = n;
    return true;
}

/* Stages 3, 4 and 6 of one world. */
static bool run_world(struct work *w, const struct world *base, const struct promotion *only, struct world *x) {
    if (!world_copy(w, base, x)) return false;
    x->only = only;
    if (!pricing_promotions(w, x, LEVEL_LINE) || !pricing_promotions(w, x, LEVEL_ORDER)) return false;
    if (!only && !pricing_gifts(w, x)) return false;
    if (!pricing_coupons(w, x)) return false;
    x->before_points = world_net(x);
    if (!pricing_shipping_charge(w, x) || !pricing_promotions(w, x, LEVEL_SHIPPING)) return false;
    if (!only && !pricing_shipping_coupons(w, x)) return false;
    if (!w->in->customer.tier_free_shipping || x->shipping.net == 0) return true;
    int64_t left = x->shipping.net;
    struct quote_source tier = {
        .kind = SOURCE_PROMOTION, .level = LEVEL_SHIPPING, .id = STR("tier"), .label = STR("tier")};
    return world_reduce(w, x, &tier, -1, left) && world_note(w, x, 6, tier.id, 0, left, 0, "applied");
}

static int64_t world_price(const struct world *x) {
    return x->before_points + x->shipping.net;
}

static int exclusive_compare(const void *left, const void *right) {
    const struct promotion *a = *(const struct promotion *const *)left, *b = *(const struct promotion *const *)right;
    if (a->priority != b->priority) return a->priority > b->priority ? -1 : 1;
    return text_order(a->id, b->id);
}

/* In a world of one exclusive promotion the ordinary rules that would have applied are listed as not combinable. */
static bool note_losers(struct work *w, struct world *winner, const struct world *loser) {
    for (size_t i = 0; i < loser->sources; i++) {
        const struct quote_source *source = &loser->source[i];
        if (source->kind == SOURCE_BUNDLE || source->kind == SOURCE_COUPON) continue;
        bool applied = false;
        for (size_t k = 0; k < winner->sources; k++)
            applied = applied || (winner->source[k].kind == source->kind && str_eq(winner->source[k].id, source->id));
        if (applied) continue;
        int64_t price = world_price(winner);
        int stage = source->level == LEVEL_SHIPPING ? 6 : 3;
        if (!world_note(w, winner, stage, source->id, source->version, price, price, "not_combinable")) return false;
    }
    return true;
}

/* Prices the ordinary world and one for each exclusive promotion; *out is the cheapest before points. A tie goes to the
 * ordinary world, then to the first exclusive one. */
static bool choose_world(struct work *w, const struct world *base, struct world *out) {
    const struct promotion **exclusive =
        arena_zalloc(w->arena, w->in->promotions + 1, sizeof(const struct promotion *));
    if (!exclusive) return work_memory(w);
    size_t n = 0;
    for (size_t i = 0; i < w->in->promotions; i++)
        if (w->in->promotion[i].exclusive && w->in->promotion[i].kind != PROMOTION_SCRIPT)
            exclusive[n++] = &w->in->promotion[i];
    if (n > 1) qsort(exclusive, n, sizeof(const struct promotion *), exclusive_compare);
    size_t priced = n > PRICING_EXCLUSIVE_MAX ? PRICING_EXCLUSIVE_MAX : n;
    struct world ordinary, *x = arena_zalloc(w->arena, priced + 1, sizeof *x);
    if (!x) return work_memory(w);
    if (!run_world(w, base, NULL, &ordinary)) return false;
    *out = ordinary;
    size_t winner = n;
    for (size_t i = 0; i < priced; i++) {
        if (!run_world(w, base, exclusive[i], &x[i])) return false;
        if (world_price(&x[i]) >= world_price(out)) continue;
        *out = x[i];
        winner = i;
    }
    for (size_t i = 0; i < n; i++) {
        if (i == winner) continue;
        /* Its own world knows why it did not apply; when it did, it was not cheap enough. */
        const char *note = "not_priced";
        int64_t after = world_price(out);
        for (size_t t = base->traces; i < priced && t < x[i].traces; t++)
            if (str_eq(x[i].trace[t].rule, exclusive[i]->id)) note = x[i].trace[t].note;
        if (i < priced) after = world_price(&x[i]);
        if (str_eq(str_of(note), STR("applied"))) note = "not_better";
        int stage = promotion_level(exclusive[i]) == LEVEL_SHIPPING ? 6 : 3;
        if (!world_note(w, out, stage, exclusive[i]->id, exclusive[i]->version, world_price(out), after, note))
            return false;
    }
    return winner == n || note_losers(w, out, &ordinary);
}

static const char *points_refusal(const struct work *w) {
    const struct pricing_points *p = &w->in->points;
    if (!amount_fits(w, p->value ? p->value : 1, p->currency)) return "currency_mismatch";
    if (p->step > 1 && p->requested % p->step) return "points_step";
    return p->requested > p->available ? "points_insufficient" : NULL;
}

/* Stage 5. */
static bool redeem_points(struct work *w, struct world *x, struct quote *q) {
    const struct pricing_points *p = &w->in->points;
    int64_t net = world_net(x);
    if (p->value > 0 && amount_fits(w, p->value, p->currency)) {
        int64_t most = (int64_t)((i128)net * p->redeem_max_bps / BPS_WHOLE);
        q->points_cap = (most < net ? most : net) / p->value;
        if (p->step > 1) q->points_cap -= q->points_cap % p->step;
    }
    if (p->requested == 0) return true;
    q->points_reason = points_refusal(w);
    if (q->points_reason) return world_note(w, x, 5, STR("points"), 0, net, net, q->points_reason);
    q->points_used = p->requested < q->points_cap ? p->requested : q->points_cap;
    q->points_amount = q->points_used * p->value;
    if (q->points_amount == 0) return world_note(w, x, 5, STR("points"), 0, net, net, "no_saving");
    int64_t *weight = arena_zalloc(w->arena, x->lines, sizeof *weight);
    int64_t *share = arena_zalloc(w->arena, x->lines, sizeof *share);
    uint32_t *rank = arena_zalloc(w->arena, x->lines, sizeof *rank);
    if (!weight || !share || !rank) return work_memory(w);
    for (size_t i = 0; i < x->lines; i++) {
        weight[i] = x->line[i].net;
        rank[i] = x->line[i].rank;
    }
    if (!money_alloc(w->arena, q->points_amount, weight, rank, x->lines, share)) return work_memory(w);
    struct quote_source source = {
        .kind = SOURCE_LOYALTY, .level = LEVEL_ORDER, .id = STR("points"), .label = STR("points")};
    for (size_t i = 0; i < x->lines; i++)
        if (share[i] && !world_reduce(w, x, &source, (int64_t)i, share[i])) return false;
    return world_note(w, x, 5, source.id, 0, net, net - q->points_amount, "applied");
}

/* The end of stage 7: totals, and the cash rounding as an adjustment of its own. */
static bool add_up(struct work *w, struct world *x, struct quote *q) {
    q->merchandise = world_net(x);
    for (size_t i = 0; i < x->lines; i++) {
        q->subtotal += x->line[i].gross;
        q->discount += x->line[i].discount;
    }
    if (!minor_add(q->merchandise, x->shipping.net, &q->total)) return work_range(w);
    if (!q->inclusive && !minor_add(q->total, q->tax_total, &q->total)) return work_range(w);
    int64_t step = w->in->rounding_step, steps, rounded = q->total;
    bool answered = false;
    if (!pricing_ask_rounding(w, x, q->total, &rounded, &answered)) return false;
    if (!answered && step > 1 &&
        (!mul_div_round(q->total, 1, step, ROUND_HALF_UP, &steps) || !minor_mul(steps, step, &rounded)))
        return work_range(w);
    q->cash_rounding = q->total - rounded;
    if (q->cash_rounding == 0) return true;
    struct quote_source *source = work_grow(w, x->source, x->sources, &x->sources_cap, sizeof *source);
    struct quote_row *row = work_grow(w, x->row, x->rows, &x->rows_cap, sizeof *row);
    if (!source || !row) return work_memory(w);
    x->source = source;
    x->row = row;
    x->row[x->rows++] = (struct quote_row){.source = x->sources, .line = -1, .amount = q->cash_rounding};
    x->source[x->sources++] = (struct quote_source){.kind = SOURCE_CASH_ROUNDING,
                                                    .level = LEVEL_ORDER,
                                                    .id = STR("cash_rounding"),
                                                    .label = STR("cash_rounding"),
                                                    .amount = q->cash_rounding};
    int64_t exact = q->total;
    q->total = rounded;
    return world_note(w, x, 7, STR("cash_rounding"), 0, exact, rounded, "applied");
}

static int card_compare(const void *left, const void *right) {
    const struct pricing_card *a = *(const struct pricing_card *const *)left;
    const struct pricing_card *b = *(const struct pricing_card *const *)right;
    int64_t end_a = a->expires_ms ? a->expires_ms : INT64_MAX, end_b = b->expires_ms ? b->expires_ms : INT64_MAX;
    if (end_a != end_b) return end_a < end_b ? -1 : 1;
    return text_order(a->code, b->code);
}

static void take_tender(struct quote *q, struct str id, struct str code, bool is_wallet, int64_t balance) {
    int64_t amount = balance < q->due ? balance : q->due;
    if (amount <= 0) return;
    q->tender[q->tenders++] = (struct quote_tender){.id = id, .code = code, .is_wallet = is_wallet, .amount = amount};
    *(is_wallet ? &q->wallet : &q->gift_card) += amount;
    q->due -= amount;
}

/* Stages 8 and 9. Tenders pay the total; they change no price and no tax. */
static bool pay(struct work *w, struct world *x, struct quote *q) {
    const struct pricing_input *in = w->in;
    const struct pricing_card **order = arena_zalloc(w->arena, in->cards + 1, sizeof(const struct pricing_card *));
    q->tender = arena_zalloc(w->arena, in->cards + 1, sizeof *q->tender);
    if (!order || !q->tender) return work_memory(w);
    q->due = q->total;
    for (size_t i = 0; i < in->cards; i++) order[i] = &in->card[i];
    if (in->cards) qsort(order, in->cards, sizeof(const struct pricing_card *), card_compare);
    for (size_t i = 0; i < in->cards; i++) {
        const struct pricing_card *card = order[i];
        int64_t before = q->due;
        const char *note = "applied";
        if (!amount_fits(w, card->balance, card->currency)) {
            note = "currency_mismatch";
        } else if (card->expires_ms && in->now_ms >= card->expires_ms) {
            note = "expired";
        } else {
            take_tender(q, card->id, card->code, false, card->balance);
            if (q->due == before) note = "not_needed";
        }
        if (!world_note(w, x, 8, card->id, 0, before, q->due, note)) return false;
    }
    int64_t balance =
        in->wallet.most >= 0 && in->wallet.most < in->wallet.balance ? in->wallet.most : in->wallet.balance;
    if (amount_fits(w, in->wallet.balance, in->wallet.currency))
        take_tender(q, in->wallet.id, STR("wallet"), true, balance);
    return true;
}

static bool earn_points(struct work *w, struct quote *q) {
    const struct pricing_points *p = &w->in->points;
    if (p->earn_unit == 0) return true;
    /* net * rate * multiplier / (unit * 100), floored once. */
    int64_t multiplier = w->in->customer.multiplier_pct ? w->in->customer.multiplier_pct : 100;
    struct ratio rate = p->earn_rate.den ? p->earn_rate : (struct ratio){.num = 1, .den = 1}, per;
    if (!ratio_make((u128)multiplier, (u128)p->earn_unit * 100, &per) || !ratio_mul(rate, per, &per) ||
        !ratio_apply(q->merchandise, per, ROUND_FLOOR, &q->earn_points))
        return work_range(w);
    return true;
}

/* Whether the portions of a line sum to it, and those of its reductions to them. */
static const char *portions_broken(const struct quote *q, size_t i) {
    const struct quote_line *line = &q->line[i];
    struct quote_portion sum = {0};
    for (size_t k = 0; k < line->portions; k++) {
        const struct quote_portion *p = &line->portion[k];
        int64_t reduced = 0;
        for (size_t r = 0; r < q->rows; r++) {
            if (q->row[r].line != (int64_t)i) continue;
            if (q->row[r].portion[k] < 0) return "a reduction of a portion is negative";
            reduced += q->row[r].portion[k];
        }
        if (reduced != p->discount) return "the reductions of a portion do not sum to its discount";
        if (p->qty < 1 || p->net < 0 || p->discount < 0 || p->tax < 0 || p->gross - p->discount != p->net)
            return "a portion does not add up";
        sum.qty += p->qty;
        sum.gross += p->gross;
        sum.net += p->net;
        sum.tax += p->tax;
    }
    if (line->portions &&
        (sum.qty != line->qty || sum.gross != line->gross || sum.net != line->net || sum.tax != line->tax))
        return "the portions of a line do not sum to it";
    for (size_t r = 0; line->portions && r < q->rows; r++) {
        int64_t whole = 0;
        if (q->row[r].line != (int64_t)i) continue;
        for (size_t k = 0; k < line->portions; k++) whole += q->row[r].portion[k];
        if (whole != q->row[r].amount) return "a reduction is not its portions";
    }
    return NULL;
}

/* What must hold of every quote; see the head of pricing.h. */
static const char *broken(struct work *w, const struct quote *q) {
    int64_t *reduced = arena_zalloc(w->arena, q->lines + 1, sizeof *reduced);
    if (!reduced) return "out of memory";
    int64_t line_tax = 0, taxes = 0, tenders = 0, all = 0, rows = 0, net = 0;
    for (size_t i = 0; i < q->rows; i++) {
        const struct quote_source *source = &q->source[q->row[i].source];
        if (source->kind == SOURCE_CASH_ROUNDING) continue;
        if (q->row[i].amount <= 0) return "a reduction is not positive";
        reduced[q->row[i].line < 0 ? q->lines : (size_t)q->row[i].line] += q->row[i].amount;
        rows += q->row[i].amount;
    }
    for (size_t i = 0; i < q->sources; i++) all += q->source[i].kind == SOURCE_CASH_ROUNDING ? 0 : q->source[i].amount;
    if (rows != all) return "rows do not sum to their sources";
    for (size_t i = 0; i < q->lines; i++) {
        const struct quote_line *line = &q->line[i];
        int64_t parts = 0;
        for (size_t k = 0; k < line->rates; k++) {
            if (line->part[k] < 0) return "a tax is negative";
            parts += line->part[k];
        }
        if (parts != line->tax) return "the taxes of a line do not sum to its tax";
        if (line->net < 0 || line->discount < 0 || line->gross - line->discount != line->net)
            return "a line does not add up";
        if (reduced[i] != line->discount) return "the reductions of a line do not sum to its discount";
        if (line->gross != line->unit * line->qty) return "a line is not its units";
        const char *fault = portions_broken(q, i);
        if (fault) return fault;
        line_tax += line->tax;
        net += line->net;
    }
    if (reduced[q->lines] != q->shipping.discount || q->shipping.charge - q->shipping.discount != q->shipping.net ||
        q->shipping.net < 0 || q->shipping.tax < 0)
        return "shipping does not add up";
    for (size_t i = 0; i < q->taxes; i++) taxes += q->tax[i].amount;
    if (line_tax + q->shipping.tax != q->tax_total || taxes != q->tax_total) return "the taxes do not sum to the tax";
    if (net != q->merchandise) return "the lines do not sum to the merchandise";
    int64_t total = q->subtotal - q->discount + q->shipping.net + (q->inclusive ? 0 : q->tax_total) - q->cash_rounding;
    if (total != q->total || q->total < 0) return "the total does not add up";
    if (q->inclusive && q->tax_total > q->merchandise + q->shipping.net) return "the tax exceeds what holds it";
    for (size_t i = 0; i < q->tenders; i++) tenders += q->tender[i].amount;
    if (tenders != q->gift_card + q->wallet || q->due < 0 || q->due + tenders != q->total)
        return "the tenders do not add up";
    return NULL;
}

static bool finish(struct work *w, struct world *x, struct quote *q) {
    if (!redeem_points(w, x, q) || !pricing_shipping_groups(w, x) || !pricing_tax_stage(w, x, q) ||
        !pricing_portions(w, x) || !add_up(w, x, q) || !earn_points(w, q) || !pay(w, x, q))
        return false;
    q->line = x->line;
    q->lines = x->lines;
    q->source = x->source;
    q->sources = x->sources;
    q->row = x->row;
    q->rows = x->rows;
    q->trace = x->trace;
    q->traces = x->traces;
    q->rejected = x->rejected;
    q->rejections = x->rejections;
    q->group = x->group;
    q->groups = x->groups;
    q->shipping = x->shipping;
    q->wanted = w->wanted;
    q->wants = w->wants;
    const char *fault = broken(w, q);
    return !fault || error_set(w->err, ERR_INTERNAL, "quote: %s", fault);
}

const struct quote *pricing_quote(struct arena *a, const struct pricing_input *in, struct error *err) {
    struct work w = {.arena = a, .in = in, .err = err, .currency = currency_find(in->currency)};
    if (!w.currency) {
        error_set(err, ERR_INVALID, "unknown currency %.*s", STR_FMT(in->currency));
        return NULL;
    }
    struct quote *q = arena_zalloc(a, 1, sizeof *q);
    struct world base = {0}, *chosen = arena_zalloc(a, 1, sizeof *chosen);
    if (!q || !chosen) {
        work_memory(&w);
        return NULL;
    }
    q->input = in;
    q->currency = w.currency;
    q->inclusive = in->tax.inclusive;
    if (!check_input(&w) || !pricing_base(&w, &base) || !pricing_bundles(&w, &base) || !ask_rules(&w, &base) ||
        !choose_world(&w, &base, chosen) || !finish(&w, chosen, q))
        return NULL;
    return q;
}
