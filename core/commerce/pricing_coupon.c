/* Stage 4: coupons. Validity is judged once, on the nets after stage 3, in the order of typing; what is accepted is
 * then applied line-scoped before order-scoped, percentage before fixed, then by code. A coupon is always one amount on
 * its eligible lines together. */
#include "commerce/pricing_work.h"

#include <stdlib.h>

#include "commerce/place.h"

static bool eligible(const struct world *x, size_t i, const struct pricing_coupon *c) {
    const struct quote_line *line = &x->line[i];
    if (line->is_gift || !line_matches(line, &c->targets)) return false;
    return !c->exclude_discounted || !(line->on_sale || line->reduced);
}

static int64_t eligible_net(const struct world *x, const struct pricing_coupon *c, size_t *count) {
    int64_t net = 0;
    *count = 0;
    for (size_t i = 0; i < x->lines; i++) {
        if (!eligible(x, i, c)) continue;
        net += x->after_promotions[i];
        (*count)++;
    }
    return net;
}

static bool assigned(const struct work *w, const struct pricing_coupon *c) {
    if (c->customer_ids.n && !list_has(c->customer_ids, w->in->customer.id)) return false;
    return c->customer_groups.n == 0 || lists_meet(c->customer_groups, w->in->customer.groups);
}

/* The first reason that holds, in the order in which reasons are reported; NULL: valid by itself. */
static const char *coupon_refusal(const struct work *w, const struct world *x, const struct pricing_coupon *c) {
    int64_t now = w->in->now_ms;
    if (!c->found) return "not_found";
    if (c->inactive) return "inactive";
    if (c->starts_ms && now < c->starts_ms) return "not_started";
    if (c->ends_ms && now >= c->ends_ms) return "expired";
    if (c->usage_limit && c->used_count >= c->usage_limit) return "limit_reached";
    if (c->customer_limit && c->customer_used >= c->customer_limit) return "customer_limit_reached";
    size_t lines;
    int64_t net = eligible_net(x, c, &lines);
    if (c->min_order && amount_fits(w, c->min_order, c->currency) && net < c->min_order) return "min_order_not_met";
    if (lines == 0) return "no_eligible_items";
    if (!assigned(w, c)) return "not_assigned";
    if (c->first_order_only && !w->in->customer.first_order) return "first_order_only";
    int64_t fixed = c->kind == COUPON_FIXED ? c->value : 0;
    if (!amount_fits(w, fixed, c->currency) || !amount_fits(w, c->min_order, c->currency) ||
        !amount_fits(w, c->max_discount, c->currency))
        return "currency_mismatch";
    return NULL;
}

/* Accepted ones beside each other: within the limit, and all of them stackable. */
static bool combines(const struct work *w, const struct pricing_coupon *const *accepted, size_t n,
                     const struct pricing_coupon *c) {
    if (n == 0) return true;
    int64_t most = w->in->max_coupons > 0 ? w->in->max_coupons : 1;
    if ((int64_t)n >= most || !c->stackable) return false;
    for (size_t i = 0; i < n; i++)
        if (!accepted[i]->stackable) return false;
    return true;
}

static int apply_compare(const void *left, const void *right) {
    const struct pricing_coupon *a = *(const struct pricing_coupon *const *)left;
    const struct pricing_coupon *b = *(const struct pricing_coupon *const *)right;
    bool whole_a = a->targets.kind == TARGET_ALL, whole_b = b->targets.kind == TARGET_ALL;
    if (whole_a != whole_b) return whole_a ? 1 : -1;
    if (a->kind != b->kind) return a->kind < b->kind ? -1 : 1;
    return text_order(a->code, b->code);
}

static struct quote_source coupon_source(const struct pricing_coupon *c) {
    return (struct quote_source){.kind = SOURCE_COUPON,
                                 .level = c->kind == COUPON_FREE_SHIPPING ? LEVEL_SHIPPING
                                          : c->targets.kind == TARGET_ALL ? LEVEL_ORDER
                                                                          : LEVEL_LINE,
                                 .id = c->id,
                                 .code = c->code,
                                 .label = c->label,
                                 .version = c->version};
}

static int64_t capped(const struct pricing_coupon *c, int64_t amount) {
    return c->max_discount && amount > c->max_discount ? c->max_discount : amount;
}

static bool apply(struct work *w, struct world *x, const struct pricing_coupon *c) {
    int64_t *weight = arena_zalloc(w->arena, x->lines ? x->lines : 1, sizeof *weight);
    int64_t *share = arena_zalloc(w->arena, x->lines ? x->lines : 1, sizeof *share);
    uint32_t *rank = arena_zalloc(w->arena, x->lines ? x->lines : 1, sizeof *rank);
    if (!weight || !share || !rank) return work_memory(w);
    int64_t base = 0, before = world_net(x);
    for (size_t i = 0; i < x->lines; i++) {
        rank[i] = x->line[i].rank;
        if (!eligible(x, i, c)) continue;
        weight[i] = x->line[i].net;
        base += weight[i];
    }
    int64_t amount = c->kind == COUPON_PERCENT ? money_pct(base, c->value) : c->value < base ? c->value : base;
    amount = capped(c, amount);
    if (!money_alloc(w->arena, amount, weight, rank, x->lines, share)) return work_memory(w);
    struct quote_source source = coupon_source(c);
    for (size_t i = 0; i < x->lines; i++)
        if (share[i] && !world_reduce(w, x, &source, (int64_t)i, share[i])) return false;
    return world_note(w, x, 4, c->id, c->version, before, before - amount, amount ? "applied" : "no_saving");
}

static bool refuse(struct work *w, struct world *x, const struct pricing_coupon *c, const char *reason) {
    int64_t net = world_net(x);
    return world_reject(w, x, c->code, reason) &&
           world_note(w, x, 4, c->found ? c->id : c->code, c->version, net, net, reason);
}

/* Sets *accepted to the coupons that count, in the order of application. */
static bool accept(struct work *w, struct world *x, bool note, const struct pricing_coupon ***accepted, size_t *n) {
    const struct pricing_coupon **list =
        arena_zalloc(w->arena, w->in->coupons ? w->in->coupons : 1, sizeof(const struct pricing_coupon *));
    if (!list) return work_memory(w);
    size_t count = 0;
    for (size_t i = 0; i < w->in->coupons; i++) {
        const struct pricing_coupon *c = &w->in->coupon[i];
        const char *reason = x->only ? NULL : coupon_refusal(w, x, c);
        if (x->only && (!c->found || c->inactive)) reason = coupon_refusal(w, x, c);
        if (!reason && (x->only || !combines(w, list, count, c))) reason = "not_combinable";
        if (!reason && c->script_rejected) reason = "script_rejected";
        if (!reason) {
            list[count++] = c;
        } else if (note && !refuse(w, x, c, reason)) {
            return false;
        }
    }
    if (count > 1) qsort(list, count, sizeof(const struct pricing_coupon *), apply_compare);
    *accepted = list;
    *n = count;
    return true;
}

bool pricing_coupons(struct work *w, struct world *x) {
    const struct pricing_coupon **accepted = NULL;
    size_t n = 0;
    for (size_t i = 0; i < x->lines; i++) x->after_promotions[i] = x->line[i].net;
    if (!accept(w, x, true, &accepted, &n)) return false;
    for (size_t i = 0; i < n; i++)
        if (accepted[i]->kind != COUPON_FREE_SHIPPING && !apply(w, x, accepted[i])) return false;
    return true;
}

bool pricing_shipping_coupons(struct work *w, struct world *x) {
    const struct pricing_coupon **accepted = NULL;
    size_t n = 0;
    if (!accept(w, x, false, &accepted, &n)) return false;
    for (size_t i = 0; i < n; i++) {
        if (accepted[i]->kind != COUPON_FREE_SHIPPING) continue;
        int64_t before = x->shipping.net, amount = capped(accepted[i], before);
        struct quote_source source = coupon_source(accepted[i]);
        if (amount && !world_reduce(w, x, &source, -1, amount)) return false;
        if (!world_note(w, x, 6, accepted[i]->id, accepted[i]->version, before, before - amount,
                        amount ? "applied" : "no_saving"))
            return false;
    }
    return true;
}
