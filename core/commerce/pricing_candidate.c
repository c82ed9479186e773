/* Who may compete in a class of promotions, and what each would save. */
#include "commerce/pricing_candidate.h"

#include <stdlib.h>

static bool hour_open(const struct promotion *p, int64_t hour) {
    if (p->hour_from == p->hour_to) return true;
    if (p->hour_from < p->hour_to) return hour >= p->hour_from && hour < p->hour_to;
    return hour >= p->hour_from || hour < p->hour_to;
}

static bool currency_fits(const struct work *w, const struct promotion *p) {
    int64_t value = p->value_type == VALUE_PERCENT || p->kind == PROMOTION_B1G1 ? 0 : p->value;
    return amount_fits(w, value, p->currency) && amount_fits(w, p->max_discount, p->currency) &&
           amount_fits(w, p->min_order, p->currency) && amount_fits(w, p->budget, p->currency);
}

const char *promotion_refusal(const struct work *w, const struct promotion *p) {
    const struct pricing_input *in = w->in;
    if (p->inactive) return "inactive";
    if (p->starts_ms && in->now_ms < p->starts_ms) return "not_started";
    if (p->ends_ms && in->now_ms >= p->ends_ms) return "expired";
    if (p->usage_limit && p->used_count >= p->usage_limit) return "limit_reached";
    if (p->customer_limit && p->customer_used >= p->customer_limit) return "customer_limit_reached";
    if (p->budget && p->budget_used >= p->budget) return "budget_exhausted";
    if (p->max_units && p->units_used >= p->max_units) return "units_exhausted";
    if (p->max_units_customer && p->units_customer >= p->max_units_customer) return "customer_limit_reached";
    if (p->customer_groups.n && !lists_meet(p->customer_groups, in->customer.groups)) return "not_assigned";
    if (p->tier_ids.n && !list_has(p->tier_ids, in->customer.tier_id)) return "not_assigned";
    if (p->first_order_only && !in->customer.first_order) return "first_order_only";
    if (p->weekdays && !(p->weekdays >> in->weekday & 1)) return "wrong_day";
    if (!hour_open(p, in->hour)) return "wrong_hour";
    if (!currency_fits(w, p)) return "currency_mismatch";
    return NULL;
}

const struct promotion *script_row(const struct work *w, struct str rule_id) {
    for (size_t i = 0; i < w->in->promotions; i++)
        if (w->in->promotion[i].kind == PROMOTION_SCRIPT && str_eq(w->in->promotion[i].id, rule_id))
            return &w->in->promotion[i];
    return NULL;
}

int64_t script_left(const struct world *x, const struct promotion *row) {
    int64_t given = 0, left = INT64_MAX;
    for (size_t i = 0; i < x->sources; i++)
        if (x->source[i].kind == SOURCE_SCRIPT && str_eq(x->source[i].id, row->id)) given += x->source[i].amount;
    if (row->max_discount) left = row->max_discount - given;
    if (row->budget && row->budget - row->budget_used - given < left) left = row->budget - row->budget_used - given;
    return left > 0 ? left : 0;
}

void candidate_refresh(const struct world *x, struct candidate *c) {
    if (!c->row) return;
    int64_t left = script_left(x, c->row);
    c->cap = left < c->own_cap ? left : c->own_cap;
}

static bool candidate_open(struct work *w, const struct world *x, struct candidate *c) {
    size_t n = x->lines ? x->lines : 1;
    c->counted = arena_zalloc(w->arena, n, sizeof *c->counted);
    c->target = arena_zalloc(w->arena, n, sizeof *c->target);
    c->uncapped = arena_zalloc(w->arena, n, sizeof *c->uncapped);
    c->units = arena_zalloc(w->arena, n, sizeof *c->units);
    c->saving = arena_zalloc(w->arena, n, sizeof *c->saving);
    return (c->counted && c->target && c->uncapped && c->units && c->saving) || work_memory(w);
}

static enum candidate_way promotion_way(const struct promotion *p) {
    if (p->kind == PROMOTION_FREE_SHIPPING) return WAY_EVERYTHING;
    if (p->kind == PROMOTION_B1G1) return WAY_B1G1;
    if (p->value_type == VALUE_PERCENT) return WAY_PERCENT;
    if (promotion_level(p) != LEVEL_LINE) return WAY_AMOUNT;
    return p->value_type == VALUE_PRICE ? WAY_PRICE : WAY_UNIT;
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static bool from_promotion(struct work *w, const struct world *x, const struct promotion *p, struct candidate *c) {
    *c = (struct candidate){
        .promotion = p,
        .source = {.kind = SOURCE_PROMOTION,
                   .level = promotion_level(p),
                   .id = p->id,
                   .code = p->code,
                   .label = p->label,
                   .version = p->version},
        .way = promotion_way(p),
        .level = promotion_level(p),
        .value = p->value,
        .cap = p->max_discount ? p->max_discount : INT64_MAX,
        .max_units = -1,
        .min_order = p->min_order,
        .min_qty = p->min_qty,
        .buy = p->buy_qty,
        .get = p->get_qty,
        .get_bps = p->get_bps,
        .pool = p->pool,
        .priority = p->priority,
        .stackable = p->stackable,
        .stop_after = p->stop_after,
        .group = p->exclusion_group,
    };
    if (p->budget) c->cap = least(c->cap, p->budget - p->budget_used);
    if (p->max_units) c->max_units = p->max_units - p->units_used;
    if (p->max_units_customer) {
        int64_t left = p->max_units_customer - p->units_customer;
        c->max_units = c->max_units < 0 ? left : least(c->max_units, left);
    }
    if (!candidate_open(w, x, c)) return false;
    bool bundled = promotion_level(p) != LEVEL_LINE || p->include_bundled || p->targets.kind == TARGET_BUNDLE,
         any = false;
    for (size_t i = 0; i < x->lines; i++) {
        c->counted[i] = !x->line[i].is_gift && line_matches(&x->line[i], &p->targets);
        c->target[i] = c->counted[i] && (bundled || !x->line[i].in_bundle);
        any = any || c->target[i];
    }
    if (!any) c->out = "no_target";
    return true;
}

static enum price_level operation_level(enum operation_kind kind) {
    switch (kind) {
    case OP_ORDER_PERCENT:
    case OP_ORDER_AMOUNT:
        return LEVEL_ORDER;
    case OP_SHIPPING_PERCENT:
    case OP_SHIPPING_AMOUNT:
        return LEVEL_SHIPPING;
    default:
        return LEVEL_LINE;
    }
}

static enum candidate_way operation_way(enum operation_kind kind) {
    switch (kind) {
    case OP_LINE_PERCENT:
    case OP_ORDER_PERCENT:
    case OP_SHIPPING_PERCENT:
        return WAY_PERCENT;
    case OP_UNIT_AMOUNT:
        return WAY_UNIT;
    case OP_UNIT_PRICE:
        return WAY_PRICE;
    default:
        return WAY_AMOUNT;
    }
}

static bool from_operation(struct work *w, const struct world *x, const struct rule_result *result, size_t number,
                           struct candidate *c) {
    const struct operation *op = &result->operation[number];
    enum candidate_way way = operation_way(op->kind);
    *c = (struct candidate){
        .source = {.kind = SOURCE_SCRIPT,
                   .level = operation_level(op->kind),
                   .id = result->rule_id,
                   .code = op->code,
                   .label = op->label.len ? op->label : result->name,
                   .version = result->version},
        .number = number,
        .way = way,
        .level = operation_level(op->kind),
        .value = way == WAY_PERCENT ? op->bps : op->amount,
        .cap = op->max ? op->max : INT64_MAX,
        .max_units = -1,
        .first_units = op->units,
        .priority = op->has_priority ? op->priority : result->priority,
        .stackable = op->stackable,
        .group = op->group,
        .row = script_row(w, result->rule_id),
    };
    c->own_cap = c->cap;
    if (c->row) {
        c->min_order = c->row->min_order;
        c->min_qty = c->row->min_qty;
        candidate_refresh(x, c);
    }
    if (!candidate_open(w, x, c)) return false;
    for (size_t i = 0; i < x->lines; i++) {
        struct str id = x->line[i].id;
        bool hit = c->level != LEVEL_LINE || str_eq(id, op->line_id);
        if (op->line_ids.n) hit = list_has(op->line_ids, id);
        if (op->exclude_line_ids.n) hit = !list_has(op->exclude_line_ids, id);
        c->counted[i] = c->target[i] = hit && !x->line[i].is_gift;
    }
    if (op->method_id.len && !(x->shipping.method && str_eq(x->shipping.method->id, op->method_id)))
        c->out = "other_method";
    return true;
}

static bool from_tier(struct work *w, const struct world *x, struct candidate *c) {
    *c = (struct candidate){
        .source = {.kind = SOURCE_PROMOTION, .level = LEVEL_ORDER, .id = STR("tier"), .label = STR("tier")},
        .way = WAY_PERCENT,
        .level = LEVEL_ORDER,
        .value = w->in->customer.tier_discount_bps,
        .cap = INT64_MAX,
        .max_units = -1,
        .stackable = true,
    };
    if (!candidate_open(w, x, c)) return false;
    for (size_t i = 0; i < x->lines; i++) c->counted[i] = c->target[i] = !x->line[i].is_gift;
    return true;
}

/* Whether this world prices the promotion at all. */
static bool in_world(const struct world *x, const struct promotion *p) {
    return x->only ? p == x->only : !p->exclusive;
}

bool candidates_gather(struct work *w, struct world *x, enum price_level level, struct candidate **out, size_t *n) {
    size_t room = w->in->promotions + 1;
    for (size_t r = 0; r < w->results; r++) room += w->result[r].operations;
    struct candidate *list = arena_zalloc(w->arena, x->only ? 2 : room, sizeof *list);
    if (!list) return work_memory(w);
    size_t count = 0;
    int64_t net = level == LEVEL_SHIPPING ? x->shipping.net : world_net(x);
    for (size_t i = 0; i < w->in->promotions; i++) {
        const struct promotion *p = &w->in->promotion[i];
        if (promotion_level(p) != level || p->kind == PROMOTION_SCRIPT || !in_world(x, p)) continue;
        const char *refusal = promotion_refusal(w, p);
        if (refusal) {
            if (!world_note(w, x, level == LEVEL_SHIPPING ? 6 : 3, p->id, p->version, net, net, refusal)) return false;
            continue;
        }
        if (!from_promotion(w, x, p, &list[count++])) return false;
    }
    for (size_t r = 0; !x->only && r < w->results; r++) {
        const struct rule_result *result = &w->result[r];
        for (size_t i = 0; i < result->operations; i++) {
            enum operation_kind kind = result->operation[i].kind;
            if (kind == OP_GIFT_LINE || operation_level(kind) != level) continue;
            if (!from_operation(w, x, result, i, &list[count++])) return false;
        }
    }
    if (!x->only && level == LEVEL_ORDER && w->in->customer.tier_discount_bps > 0 && !from_tier(w, x, &list[count++]))
        return false;
    *out = list;
    *n = count;
    return true;
}

const char *candidate_threshold(const struct world *x, const struct candidate *c) {
    int64_t net = c->level == LEVEL_SHIPPING ? x->before_points : world_net(x), qty = 0;
    if (net < c->min_order) return "min_order_not_met";
    for (size_t i = 0; i < x->lines; i++)
        if (c->counted[i]) qty += x->line[i].qty;
    return qty < c->min_qty ? "min_quantity_not_met" : NULL;
}

/* What the n cheapest units of a line are worth: the shares of its units differ by one at most. */
static int64_t cheapest(const struct quote_line *line, int64_t n) {
    int64_t low = line->net / line->qty, dear = line->net % line->qty, cheap = line->qty - dear;
    return low * n + (n > cheap ? n - cheap : 0);
}

/* Units of equal worth on one line. */
struct unit_class {
    int64_t worth, count;
    uint32_t rank;
    size_t line;
};

static int unit_compare(const void *left, const void *right) {
    const struct unit_class *a = left, *b = right;
    if (a->worth != b->worth) return a->worth < b->worth ? -1 : 1;
    return a->rank < b->rank ? -1 : a->rank > b->rank;
}

/* Counts the n cheapest units of the lines `in`, ties by line key, into units[]. */
static bool pick_units(struct work *w, const struct world *x, const bool *in, int64_t n, int64_t *units) {
    struct unit_class *class = arena_zalloc(w->arena, 2 * x->lines, sizeof *class);
    if (!class) return work_memory(w);
    size_t count = 0;
    for (size_t i = 0; i < x->lines; i++) {
        if (!in[i]) continue;
        const struct quote_line *line = &x->line[i];
        int64_t low = line->net / line->qty, dear = line->net % line->qty;
        class[count++] = (struct unit_class){.worth = low, .count = line->qty - dear, .rank = line->rank, .line = i};
        if (dear) class[count++] = (struct unit_class){.worth = low + 1, .count = dear, .rank = line->rank, .line = i};
    }
    qsort(class, count, sizeof *class, unit_compare);
    for (size_t i = 0; i < count && n > 0; i++) {
        int64_t some = least(class[i].count, n);
        units[class[i].line] += some;
        n -= some;
    }
    return true;
}

/* The rewarded units of a buy-x-get-y over the lines `in` together. */
static bool reward_units(struct work *w, const struct world *x, struct candidate *c, const bool *in) {
    int64_t n = 0;
    for (size_t i = 0; i < x->lines; i++)
        if (in[i]) n += x->line[i].qty;
    int64_t rewarded = n / (c->buy + c->get) * c->get;
    return rewarded == 0 || pick_units(w, x, in, rewarded, c->units);
}

static bool reward_products(struct work *w, const struct world *x, struct candidate *c, const bool *in) {
    bool *done = arena_zalloc(w->arena, x->lines, sizeof *done);
    bool *same = arena_zalloc(w->arena, x->lines, sizeof *same);
    if (!done || !same) return work_memory(w);
    for (size_t i = 0; i < x->lines; i++) {
        if (!in[i] || done[i]) continue;
        for (size_t j = 0; j < x->lines; j++) {
            same[j] = in[j] && str_eq(x->line[j].item->product_id, x->line[i].item->product_id);
            done[j] = done[j] || same[j];
        }
        if (!reward_units(w, x, c, same)) return false;
    }
    return true;
}

static int64_t line_saving(const struct candidate *c, const struct quote_line *line, int64_t n) {
    int64_t worth = c->first_units ? money_split(line->net, line->qty, n) : cheapest(line, n);
    int64_t low = line->net / line->qty;
    switch (c->way) {
    case WAY_PERCENT:
        return money_pct(worth, c->value);
    case WAY_B1G1:
        return money_pct(worth, c->get_bps);
    case WAY_UNIT:
        return c->value <= low ? c->value * n : worth;
    case WAY_PRICE:
        return c->value <= low ? worth - c->value * n : 0;
    case WAY_AMOUNT:
        return least(c->value, line->net);
    case WAY_EVERYTHING:
        return line->net;
    }
    return 0;
}

bool candidate_cap(struct work *w, const struct world *x, struct candidate *c, const bool *won) {
    int64_t *weight = arena_zalloc(w->arena, x->lines ? x->lines : 1, sizeof *weight);
    uint32_t *rank = arena_zalloc(w->arena, x->lines ? x->lines : 1, sizeof *rank);
    if (!weight || !rank) return work_memory(w);
    c->total = 0;
    for (size_t i = 0; i < x->lines; i++) {
        weight[i] = !won || won[i] ? c->uncapped[i] : 0;
        rank[i] = x->line[i].rank;
        c->saving[i] = weight[i];
        c->total += weight[i];
    }
    if (c->total <= c->cap) return true;
    c->total = c->cap;
    return money_alloc(w->arena, c->cap, weight, rank, x->lines, c->saving) || work_memory(w);
}

static bool compute_lines(struct work *w, const struct world *x, struct candidate *c) {
    bool *in = arena_zalloc(w->arena, x->lines ? x->lines : 1, sizeof *in);
    if (!in) return work_memory(w);
    int64_t all = 0;
    for (size_t i = 0; i < x->lines; i++) {
        in[i] = c->target[i] && !x->stopped[i];
        c->units[i] = c->uncapped[i] = 0;
        if (in[i]) all += x->line[i].qty;
    }
    if (c->way == WAY_B1G1) {
        if (!(c->pool ? reward_units(w, x, c, in) : reward_products(w, x, c, in))) return false;
    } else if (c->max_units >= 0 && c->max_units < all) {
        if (!pick_units(w, x, in, c->max_units, c->units)) return false;
    } else {
        for (size_t i = 0; i < x->lines; i++)
            if (in[i]) c->units[i] = c->first_units ? least(c->first_units, x->line[i].qty) : x->line[i].qty;
    }
    for (size_t i = 0; i < x->lines; i++)
        if (c->units[i] > 0) c->uncapped[i] = line_saving(c, &x->line[i], c->units[i]);
    return candidate_cap(w, x, c, NULL);
}

static int64_t one_amount(const struct candidate *c, int64_t base) {
    int64_t amount = c->way == WAY_PERCENT      ? money_pct(base, c->value)
                     : c->way == WAY_EVERYTHING ? base
                                                : least(c->value, base);
    return least(amount, c->cap);
}

bool candidate_compute(struct work *w, const struct world *x, struct candidate *c) {
    if (c->level == LEVEL_LINE) return compute_lines(w, x, c);
    if (c->level == LEVEL_SHIPPING) {
        c->total = one_amount(c, x->shipping.net);
        return true;
    }
    int64_t *weight = arena_zalloc(w->arena, x->lines ? x->lines : 1, sizeof *weight), base = 0;
    uint32_t *rank = arena_zalloc(w->arena, x->lines ? x->lines : 1, sizeof *rank);
    if (!weight || !rank) return work_memory(w);
    for (size_t i = 0; i < x->lines; i++) {
        rank[i] = x->line[i].rank;
        weight[i] = c->target[i] ? x->line[i].net : 0;
        base += weight[i];
    }
    c->total = one_amount(c, base);
    return money_alloc(w->arena, c->total, weight, rank, x->lines, c->saving) || work_memory(w);
}
