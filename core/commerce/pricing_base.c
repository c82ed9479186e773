/* Stage 1: what one unit costs before anything is taken off. A rule's or a locked price first; else the price list row
 * that fits best, else the product's own price, converted when it is in another currency; the sale price where there is
 * one; the subscriber's saving; last the restatement for buyers who do not pay the home rate of tax. */
#include "commerce/pricing_candidate.h"

/* Variant over product, group over none, largest quantity break reached, then the lowest price. */
static bool row_beats(const struct price_row *a, const struct price_row *b) {
    if (a->of_variant != b->of_variant) return a->of_variant;
    bool group_a = a->customer_group.len > 0, group_b = b->customer_group.len > 0;
    if (group_a != group_b) return group_a;
    if (a->min_qty != b->min_qty) return a->min_qty > b->min_qty;
    return a->price < b->price;
}

/* Whether the row is for this buyer, in this currency, now. */
static bool row_open(const struct work *w, const struct price_row *row) {
    return str_eq(row->currency, str_of(w->currency->code)) &&
           window_open(row->starts_ms, row->ends_ms, w->in->now_ms) &&
           (row->customer_group.len == 0 || list_has(w->in->customer.groups, row->customer_group));
}

static const struct price_row *best_row(const struct work *w, const struct pricing_line *item) {
    const struct price_row *best = NULL;
    for (size_t i = 0; i < item->rows; i++) {
        const struct price_row *row = &item->row[i];
        if (row->min_qty > item->qty || !row_open(w, row)) continue;
        if (!best || row_beats(row, best)) best = row;
    }
    return best;
}

static bool unit_price(struct work *w, const struct pricing_line *item, struct quote_line *line) {
    if (item->has_fixed_unit) {
        line->listed_unit = item->fixed_unit;
        return true;
    }
    const struct price_row *row = best_row(w, item);
    int64_t price = row ? row->price : item->price, sale = row ? row->sale_price : item->sale_price;
    struct str currency = row ? row->currency : item->price_currency;
    line->on_sale = sale > 0 && sale < price;
    if (!work_convert(w, line->on_sale ? sale : price, currency, &line->listed_unit)) return false;
    if (str_eq(item->purchase_type, STR("subscription")))
        line->listed_unit -= money_pct(line->listed_unit, item->subscriber_bps);
    return true;
}

bool pricing_stored_price(struct work *w, const struct pricing_line *item, struct line_price *out) {
    *out = (struct line_price){0};
    const struct price_row *row = best_row(w, item);
    int64_t price = row ? row->price : item->price, sale = row ? row->sale_price : item->sale_price;
    struct str currency = row ? row->currency : item->price_currency;
    if (!work_convert(w, price, currency, &out->list)) return false;
    if (sale > 0 && sale < price && !work_convert(w, sale, currency, &out->sale)) return false;
    struct price_break *at = arena_zalloc(w->arena, item->rows ? item->rows : 1, sizeof *at);
    if (!at) return work_memory(w);
    for (size_t i = 0; i < item->rows; i++) {
        if (!row_open(w, &item->row[i])) continue;
        at[out->breaks++] = (struct price_break){
            .min_qty = item->row[i].min_qty, .price = item->row[i].price, .sale = item->row[i].sale_price};
    }
    out->at = at;
    return true;
}

/* A line of the work at its listed price. */
static bool line_list(struct work *w, const struct pricing_line *item, struct quote_line *line) {
    *line = (struct quote_line){.item = item, .id = item->id, .qty = item->qty, .tax_class = item->tax_class};
    if (!unit_price(w, item, line)) return false;
    line->unit = line->listed_unit;
    if (!minor_mul(line->unit, line->qty, &line->gross)) return work_range(w);
    line->net = line->gross;
    return true;
}

/* What this buyer pays for it. */
static bool line_open(struct work *w, struct quote_line *line) {
    const struct class_rates *class = pricing_class(w, line->tax_class);
    if (!class) return false;
    line->rate = class->rate;
    line->rates = class->rates;
    if (!ratio_apply(line->listed_unit, class->restate, ROUND_HALF_UP, &line->unit)) return work_range(w);
    if (!minor_mul(line->unit, line->qty, &line->gross)) return work_range(w);
    line->net = line->gross;
    return true;
}

static bool sum_in_range(struct work *w, const struct world *x) {
    int64_t gross = 0, listed = 0;
    for (size_t i = 0; i < x->lines; i++) {
        int64_t at_list;
        if (!minor_mul(x->line[i].listed_unit, x->line[i].qty, &at_list) || !minor_add(listed, at_list, &listed) ||
            !minor_add(gross, x->line[i].gross, &gross))
            return work_range(w);
    }
    return true;
}

bool pricing_base(struct work *w, struct world *x) {
    x->lines = w->in->lines;
    x->line = arena_zalloc(w->arena, x->lines ? x->lines : 1, sizeof *x->line);
    if (!x->line) return work_memory(w);
    for (size_t i = 0; i < x->lines; i++) {
        if (!line_list(w, &w->in->line[i], &x->line[i])) return false;
        x->line[i].bundle_id = w->in->line[i].bundle_id;
        x->line[i].bundle_key = w->in->line[i].bundle_key;
    }
    if (!pricing_ask_classes(w, x) || !pricing_ask_prices(w, x)) return false;
    for (size_t i = 0; i < x->lines; i++)
        if (!line_open(w, &x->line[i])) return false;
    return sum_in_range(w, x) && world_rank(w, x);
}

static const struct pricing_line *gift_offer(const struct work *w, const struct operation *op) {
    for (size_t i = 0; i < w->in->gifts; i++) {
        const struct pricing_line *gift = &w->in->gift[i];
        if (str_eq(gift->product_id, op->product_id) && str_eq(gift->variant_id, op->variant_id)) return gift;
    }
    return NULL;
}

static bool want_gift(struct work *w, const struct operation *op) {
    for (size_t i = 0; i < w->wants; i++)
        if (str_eq(w->wanted[i]->product_id, op->product_id) && str_eq(w->wanted[i]->variant_id, op->variant_id))
            return true;
    const struct operation **grown = work_grow(w, w->wanted, w->wants, &w->wants_cap, sizeof(const struct operation *));
    if (!grown) return work_memory(w);
    w->wanted = grown;
    w->wanted[w->wants++] = op;
    return true;
}

static int64_t given_already(const struct world *x, const struct pricing_line *offer) {
    int64_t units = 0;
    for (size_t i = 0; i < x->lines; i++)
        if (str_eq(x->line[i].item->product_id, offer->product_id) &&
            str_eq(x->line[i].item->variant_id, offer->variant_id))
            units += x->line[i].qty;
    return units;
}

/* Why the gift is not given; NULL when it is. */
static const char *gift_refusal(const struct world *x, const struct pricing_line *offer, const struct operation *op,
                                const struct promotion *row, size_t gifts) {
    if (!offer) return "gift_unknown";
    if (gifts == GIFT_LINES_MAX) return "gift_limit";
    if (offer->stock >= 0 && offer->stock < given_already(x, offer) + op->qty) return "gift_out_of_stock";
    for (size_t i = 0; op->group.len && i < x->shuts; i++)
        if (str_eq(x->shut[i], op->group)) return "exclusion_group";
    if (row && world_net(x) < row->min_order) return "min_order_not_met";
    return NULL;
}

static bool add_gift(struct work *w, struct world *x, const struct rule_result *result, const struct operation *op,
                     size_t gifts) {
    const struct pricing_line *offer = gift_offer(w, op);
    int64_t net = world_net(x);
    const struct promotion *row = script_row(w, result->rule_id);
    const char *refusal = gift_refusal(x, offer, op, row, gifts);
    if (!offer && !want_gift(w, op)) return false;
    if (!offer || refusal) return world_note(w, x, 3, result->rule_id, result->version, net, net, refusal);
    struct pricing_line *item = arena_zalloc(w->arena, 1, sizeof *item);
    if (!item) return work_memory(w);
    *item = *offer;
    item->qty = op->qty;
    const char *id = arena_printf(w->arena, "gift~%.*s~%zu", STR_FMT(result->rule_id), gifts + 1);
    if (!id) return work_memory(w);
    item->id = str_of(id);
    struct quote_line *line = &x->line[x->lines];
    if (!line_list(w, item, line) || !line_open(w, line)) return false;
    line->is_gift = true;
    /* A gift is given whole or not at all. */
    if (row && line->gross > script_left(x, row))
        return world_note(w, x, 3, result->rule_id, result->version, net, net, "budget_exhausted");
    x->lines++;
    struct quote_source source = {.kind = SOURCE_SCRIPT,
                                  .level = LEVEL_LINE,
                                  .id = result->rule_id,
                                  .code = op->code,
                                  .label = op->label.len ? op->label : result->name,
                                  .version = result->version};
    if (line->gross > 0 && !world_reduce(w, x, &source, (int64_t)x->lines - 1, line->gross)) return false;
    return world_note(w, x, 3, result->rule_id, result->version, net, net, "applied");
}

bool pricing_gifts(struct work *w, struct world *x) {
    size_t before = x->lines;
    for (size_t r = 0; r < w->results; r++) {
        for (size_t i = 0; i < w->result[r].operations; i++) {
            const struct operation *op = &w->result[r].operation[i];
            if (op->kind == OP_GIFT_LINE && !add_gift(w, x, &w->result[r], op, x->lines - before)) return false;
        }
    }
    return sum_in_range(w, x) && world_rank(w, x);
}
