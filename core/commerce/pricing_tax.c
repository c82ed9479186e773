/* Stage 7: which rates meet which line and the shipping charge, and the tax of each.
 *
 * The rates of a class are matched once per quote. Under inclusive prices a buyer who does not pay the home rate has
 * shelf prices restated at stage 1: an exempt one pays the net of the home rate, `keep_net` pays that net and the tax
 * of the destination; each as one exact fraction. */
#include "commerce/pricing_work.h"

static bool match(struct work *w, const struct tax_place *place, struct str tax_class, const struct tax_rate **out,
                  size_t *n) {
    struct tax_rate *rates = arena_zalloc(w->arena, TAX_RATES_MAX, sizeof *rates);
    if (!rates) return work_memory(w);
    *out = rates;
    return tax_match(w->arena, w->in->tax.rule, w->in->tax.rules, place, tax_class, w->in->now_ms, rates, n, w->err);
}

static struct tax_place home_of(const struct work *w) {
    return (struct tax_place){.country = w->in->tax.home_country};
}

static struct tax_place destination(const struct work *w) {
    return w->in->tax.place.country.len ? w->in->tax.place : home_of(w);
}

/* Shelf price to what this buyer pays. */
static bool restatement(struct work *w, struct class_rates *class) {
    const struct pricing_tax *tax = &w->in->tax;
    class->restate = (struct ratio){.num = 1, .den = 1};
    bool exempt = tax->exempt != TAX_NOT_EXEMPT;
    if (!tax->inclusive || tax->off || !(exempt || tax->keep_net)) return true;
    const struct tax_rate *home = NULL;
    size_t n = 0;
    struct tax_place place = home_of(w);
    struct ratio there = {.num = 1, .den = 1}, here;
    if (!match(w, &place, class->tax_class, &home, &n)) return false;
    if (!tax_factor(home, n, &here) || (!exempt && !tax_factor(class->rate, class->rates, &there)) ||
        !ratio_mul(there, (struct ratio){.num = here.den, .den = here.num}, &class->restate))
        return error_set(w->err, ERR_LIMIT, "the taxes of a line compound too often");
    return true;
}

const struct class_rates *pricing_class(struct work *w, struct str tax_class) {
    for (size_t i = 0; i < w->classes; i++)
        if (str_eq(w->class[i].tax_class, tax_class)) return &w->class[i];
    struct class_rates found = {.tax_class = tax_class};
    const struct pricing_tax *tax = &w->in->tax;
    if (!tax->off && tax->exempt == TAX_NOT_EXEMPT) {
        struct tax_place place = destination(w);
        if (!match(w, &place, tax_class, &found.rate, &found.rates)) return NULL;
    }
    if (!restatement(w, &found)) return NULL;
    struct class_rates *grown = work_grow(w, w->class, w->classes, &w->classes_cap, sizeof *grown);
    if (!grown) {
        work_memory(w);
        return NULL;
    }
    w->class = grown;
    w->class[w->classes] = found;
    return &w->class[w->classes++];
}

struct str pricing_shipping_class(const struct work *w) {
    return w->in->tax.shipping_class.len ? w->in->tax.shipping_class : STR("shipping");
}

/* The rates that the hook named for one line; false when it named none. */
static bool answered_rates(struct work *w, const struct tax_answer *answers, size_t n, struct str id,
                           const struct tax_rate **out, size_t *count, bool *found) {
    struct tax_rate *rates = arena_zalloc(w->arena, TAX_RATES_MAX, sizeof *rates);
    if (!rates) return work_memory(w);
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        if (!str_eq(answers[i].line_id, id)) continue;
        if (at == TAX_RATES_MAX) return error_set(w->err, ERR_LIMIT, "more than %d taxes on one line", TAX_RATES_MAX);
        rates[at] = answers[i].rate;
        /* Answers have no calculation order of their own: a compound tax follows the plain ones. */
        if (rates[at].calc_order == 0 && rates[at].compound) rates[at].calc_order = (int64_t)at + 1;
        at++;
    }
    tax_order(rates, at);
    *found = at > 0;
    if (!*found) return true;
    *out = rates;
    *count = at;
    return true;
}

static bool ask_hook(struct work *w, struct world *x) {
    const struct pricing_hooks *hooks = &w->in->hooks;
    if (!hooks->tax_resolve || w->in->tax.off || w->in->tax.exempt != TAX_NOT_EXEMPT) return true;
    struct pricing_view view = work_view(w, x);
    view.shipping = &x->shipping;
    const struct tax_answer *answers = NULL;
    size_t n = 0;
    bool answered = false, found;
    if (!hooks->tax_resolve(hooks->data, &view, w->arena, &answers, &n, &answered, w->err)) return false;
    for (size_t i = 0; answered && i < x->lines; i++) {
        struct quote_line *line = &x->line[i];
        if (!answered_rates(w, answers, n, line->id, &line->rate, &line->rates, &found)) return false;
    }
    return !answered || answered_rates(w, answers, n, STR("shipping"), &x->shipping.rate, &x->shipping.rates, &found);
}

struct bill {
    struct tax_item *item;
    size_t items;
};

static bool merchandise_bill(struct work *w, const struct world *x, struct bill *bill) {
    bill->item = arena_zalloc(w->arena, x->lines ? x->lines : 1, sizeof *bill->item);
    if (!bill->item) return work_memory(w);
    bill->items = x->lines;
    for (size_t i = 0; i < x->lines; i++)
        bill->item[i] = (struct tax_item){.base = x->line[i].net,
                                          .qty = x->line[i].qty,
                                          .rate = x->line[i].rate,
                                          .rates = x->line[i].rates,
                                          .rank = x->line[i].rank};
    return true;
}

/* The charge of each parcel over its lines by net value, each part under the rates of its line. */
static bool weighted_bill(struct work *w, const struct world *x, const struct class_rates *plain, struct bill *bill) {
    size_t most = x->groups + 1; /* a part of the charge for each line of each parcel */
    for (size_t i = 0; i < x->lines; i++) most += world_portions(x, i);
    bill->item = arena_zalloc(w->arena, most, sizeof *bill->item);
    int64_t *weight = arena_zalloc(w->arena, x->lines + 1, sizeof *weight);
    int64_t *share = arena_zalloc(w->arena, x->lines + 1, sizeof *share);
    uint32_t *rank = arena_zalloc(w->arena, x->lines + 1, sizeof *rank);
    if (!bill->item || !weight || !share || !rank) return work_memory(w);
    for (size_t g = 0; g < x->groups; g++) {
        if (x->group[g].net == 0) continue;
        if (x->group[g].merchandise == 0) {
            bill->item[bill->items++] = (struct tax_item){.base = x->group[g].net,
                                                          .qty = 1,
                                                          .rate = plain->rate,
                                                          .rates = plain->rates,
                                                          .rank = (uint32_t)(x->lines + g)};
            continue;
        }
        for (size_t i = 0; i < x->lines; i++) {
            weight[i] = world_there(x, i, x->group[g].warehouse_id, x->line[i].net);
            rank[i] = x->line[i].rank;
        }
        if (!money_alloc(w->arena, x->group[g].net, weight, rank, x->lines, share)) return work_memory(w);
        for (size_t i = 0; i < x->lines; i++)
            if (share[i])
                bill->item[bill->items++] = (struct tax_item){.base = share[i],
                                                              .qty = 1,
                                                              .rate = x->line[i].rate,
                                                              .rates = x->line[i].rates,
                                                              .rank = x->line[i].rank};
    }
    return true;
}

static bool shipping_bill(struct work *w, struct world *x, struct bill *bill) {
    const struct pricing_tax *tax = &w->in->tax;
    *bill = (struct bill){0};
    if (x->shipping.net == 0 || tax->shipping == SHIPPING_TAX_NONE) return true;
    if (tax->shipping == SHIPPING_TAX_WEIGHTED) {
        const struct class_rates *plain = pricing_class(w, STR(""));
        return plain && weighted_bill(w, x, plain, bill);
    }
    bill->item = arena_zalloc(w->arena, 1, sizeof *bill->item);
    if (!bill->item) return work_memory(w);
    bill->item[0] =
        (struct tax_item){.base = x->shipping.net, .qty = 1, .rate = x->shipping.rate, .rates = x->shipping.rates};
    bill->items = 1;
    return true;
}

static bool book_taxes(struct work *w, struct quote *q, size_t *cap, const struct bill *bill) {
    for (size_t i = 0; i < bill->items; i++) {
        const struct tax_item *item = &bill->item[i];
        for (size_t k = 0; k < item->rates; k++) {
            const struct tax_rate *rate = &item->rate[k];
            size_t at = 0;
            while (at < q->taxes && !(q->tax[at].ppm == rate->ppm && str_eq(q->tax[at].name, rate->name) &&
                                      str_eq(q->tax[at].jurisdiction, rate->jurisdiction)))
                at++;
            if (at == q->taxes) {
                struct quote_tax *grown = work_grow(w, q->tax, q->taxes, cap, sizeof *grown);
                if (!grown) return work_memory(w);
                q->tax = grown;
                q->tax[q->taxes++] =
                    (struct quote_tax){.jurisdiction = rate->jurisdiction, .name = rate->name, .ppm = rate->ppm};
            }
            if (!minor_add(q->tax[at].amount, item->parts[k], &q->tax[at].amount)) return work_range(w);
        }
    }
    return true;
}

/* The tax of shipping over the parcels, by what each pays. */
static bool group_taxes(struct work *w, struct world *x) {
    if (x->groups == 0) return true;
    int64_t *weight = arena_zalloc(w->arena, x->groups, sizeof *weight);
    int64_t *share = arena_zalloc(w->arena, x->groups, sizeof *share);
    if (!weight || !share) return work_memory(w);
    for (size_t g = 0; g < x->groups; g++) weight[g] = x->group[g].net;
    if (!money_alloc(w->arena, x->shipping.tax, weight, NULL, x->groups, share)) return work_memory(w);
    for (size_t g = 0; g < x->groups; g++) x->group[g].tax = share[g];
    return true;
}

bool pricing_tax_stage(struct work *w, struct world *x, struct quote *q) {
    const struct pricing_tax *tax = &w->in->tax;
    const struct class_rates *class = pricing_class(w, pricing_shipping_class(w));
    if (!class) return false;
    x->shipping.rate = class->rate;
    x->shipping.rates = class->rates;
    struct bill goods = {0}, shipping = {0};
    if (!ask_hook(w, x) || !merchandise_bill(w, x, &goods) || !shipping_bill(w, x, &shipping)) return false;
    if (!tax_compute(w->arena, goods.item, goods.items, tax->inclusive, tax->mode, tax->level, w->err)) return false;
    if (!tax_compute(w->arena, shipping.item, shipping.items, tax->inclusive, tax->mode, tax->level, w->err))
        return false;
    for (size_t i = 0; i < x->lines; i++) {
        x->line[i].tax = goods.item[i].tax;
        x->line[i].part = goods.item[i].parts;
        x->line[i].rate_ppm = tax_effective_ppm(x->line[i].rate, x->line[i].rates);
        if (!minor_add(q->tax_total, goods.item[i].tax, &q->tax_total)) return work_range(w);
    }
    for (size_t i = 0; i < shipping.items; i++)
        if (!minor_add(x->shipping.tax, shipping.item[i].tax, &x->shipping.tax)) return work_range(w);
    if (!minor_add(q->tax_total, x->shipping.tax, &q->tax_total)) return work_range(w);
    size_t cap = 0;
    return book_taxes(w, q, &cap, &goods) && book_taxes(w, q, &cap, &shipping) && group_taxes(w, x);
}
