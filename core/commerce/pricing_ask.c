/* What rules say in place of what is stored: the tax class of an item, the price of a unit, of a bundle, of shipping.
 * What a rule answers is data; here it is judged, and what is out of form counts nothing. */
#include "commerce/pricing_work.h"

struct pricing_view work_view(const struct work *w, const struct world *x) {
    struct pricing_view view = {.input = w->in,
                                .currency = w->currency,
                                .line = x->line,
                                .lines = x->lines,
                                .net = world_net(x),
                                .source = x->source,
                                .row = x->row,
                                .rows = x->rows,
                                .group = x->group,
                                .groups = x->groups};
    for (size_t i = 0; i < x->lines; i++) view.gross += x->line[i].gross;
    return view;
}

static bool same_item(const struct pricing_line *a, const struct pricing_line *b) {
    return str_eq(a->product_id, b->product_id) && str_eq(a->variant_id, b->variant_id) &&
           str_eq(a->tax_class, b->tax_class);
}

/* One line of the trace for each rule, however many items it puts elsewhere. */
static bool note_class(struct work *w, struct world *x, const struct class_answer *answer) {
    for (size_t i = 0; i < x->traces; i++)
        if (x->trace[i].stage == 1 && str_eq(x->trace[i].rule, answer->rule_id)) return true;
    int64_t net = world_net(x);
    return world_note(w, x, 1, answer->rule_id, answer->version, net, net, "applied");
}

bool pricing_ask_classes(struct work *w, struct world *x) {
    const struct pricing_hooks *hooks = &w->in->hooks;
    if (!hooks->tax_class || w->in->tax.off || w->in->tax.exempt != TAX_NOT_EXEMPT) return true;
    struct pricing_view view = work_view(w, x);
    for (size_t i = 0; i < x->lines; i++) {
        struct quote_line *line = &x->line[i];
        size_t first = 0;
        while (!same_item(x->line[first].item, line->item)) first++;
        if (first < i) {
            line->tax_class = x->line[first].tax_class;
            continue;
        }
        struct class_answer answer = {0};
        bool answered = false;
        if (!hooks->tax_class(hooks->data, &view, i, &answer, &answered, w->err)) return false;
        if (!answered || answer.tax_class.len == 0 || str_eq(answer.tax_class, line->tax_class)) continue;
        line->tax_class = answer.tax_class;
        if (!note_class(w, x, &answer)) return false;
    }
    return true;
}

bool price_answer_check(const struct price_answer *answer, const struct pricing_view *view, const char **why) {
    for (size_t i = 0; i < view->lines; i++) {
        int64_t unit = answer->unit[i];
        if (unit == -1) continue;
        *why = unit < 0 ? "a price is below zero" : "a price is out of all proportion";
        if (unit < 0 || unit > PRICING_RULE_MOST / view->line[i].qty) return false;
    }
    return true;
}

/* One answer over the lines that no answer before it has named. */
static bool take_prices(struct work *w, struct world *x, const struct price_answer *answer, bool *named) {
    int64_t before = world_net(x);
    const char *note = "not_needed";
    for (size_t i = 0; i < x->lines; i++) {
        struct quote_line *line = &x->line[i];
        if (answer->unit[i] < 0 || named[i] || line->item->has_fixed_unit) continue;
        named[i] = true;
        note = "applied";
        line->listed_unit = line->unit = answer->unit[i];
        line->gross = line->net = line->unit * line->qty;
        line->on_sale = false;
        line->price_label = answer->label;
    }
    return world_note(w, x, 1, answer->rule_id, answer->version, before, world_net(x), note);
}

bool pricing_ask_prices(struct work *w, struct world *x) {
    const struct pricing_hooks *hooks = &w->in->hooks;
    if (!hooks->price_lines || x->lines == 0) return true;
    struct line_price *stored = arena_zalloc(w->arena, x->lines, sizeof *stored);
    bool *named = arena_zalloc(w->arena, x->lines, sizeof *named);
    if (!stored || !named) return work_memory(w);
    for (size_t i = 0; i < x->lines; i++)
        if (!pricing_stored_price(w, x->line[i].item, &stored[i])) return false;
    struct pricing_view view = work_view(w, x);
    const struct price_answer *answers = NULL;
    size_t n = 0;
    if (!hooks->price_lines(hooks->data, &view, stored, w->arena, &answers, &n, w->err)) return false;
    for (size_t a = 0; a < n; a++) {
        const char *why;
        bool ok = price_answer_check(&answers[a], &view, &why);
        if (ok ? !take_prices(w, x, &answers[a], named)
               : !world_note(w, x, 1, answers[a].rule_id, answers[a].version, view.net, view.net, "invalid_result"))
            return false;
    }
    return true;
}

const struct pricing_bundle *pricing_ask_bundle(struct work *w, const struct world *x,
                                                const struct pricing_bundle *bundle, const bool *member, int64_t count,
                                                struct bundle_answer *answer) {
    const struct pricing_hooks *hooks = &w->in->hooks;
    *answer = (struct bundle_answer){0};
    if (!hooks->bundle_price) return bundle;
    struct pricing_view view = work_view(w, x);
    const struct bundle_question question = {.bundle = bundle, .member = member, .qty = count};
    bool answered = false;
    if (!hooks->bundle_price(hooks->data, &view, &question, answer, &answered, w->err)) return NULL;
    if (!answered || answer->price < 0) {
        *answer = (struct bundle_answer){0};
        return bundle;
    }
    struct pricing_bundle *priced = arena_zalloc(w->arena, 1, sizeof *priced);
    if (!priced) {
        work_memory(w);
        return NULL;
    }
    *priced = *bundle;
    priced->pricing = BUNDLE_FIXED;
    priced->price = answer->price;
    return priced;
}

bool rates_answer_check(const struct rates_answer *answer, const struct shipping_offer *offers, size_t n,
                        const char **why) {
    for (size_t i = 0; i < answer->offers; i++) {
        const struct shipping_offer *offer = &answer->offer[i];
        size_t at = 0;
        while (at < n && offers[at].method != offer->method) at++;
        *why = "a method that was not offered";
        if (at == n) return false;
        *why = "a price below zero, or out of all proportion";
        if (offer->price < 0 || (offer->price > PRICING_RULE_MOST && offer->price != offers[at].price)) return false;
        *why = "a method twice";
        for (size_t k = 0; k < i; k++)
            if (answer->offer[k].method == offer->method) return false;
    }
    return true;
}

/* The lowest price of some offers; 0 when there are none. */
static int64_t lowest(const struct shipping_offer *offers, size_t n) {
    int64_t low = n ? offers[0].price : 0;
    for (size_t i = 1; i < n; i++)
        if (offers[i].price < low) low = offers[i].price;
    return low;
}

bool pricing_ask_rates(struct work *w, struct world *x, size_t group, const struct shipping_offer **offers, size_t *n) {
    const struct pricing_hooks *hooks = &w->in->hooks;
    struct pricing_view view = work_view(w, x);
    const struct rates_answer *answers = NULL;
    size_t count = 0;
    if (!hooks->shipping_rates(hooks->data, &view, group, *offers, *n, w->arena, &answers, &count, w->err))
        return false;
    for (size_t a = 0; a < count; a++) {
        const struct rates_answer *answer = &answers[a];
        const char *why, *note = "applied";
        int64_t before = lowest(*offers, *n);
        bool ok = rates_answer_check(answer, *offers, *n, &why);
        if (!ok) {
            note = "invalid_result";
        } else {
            *offers = answer->offer;
            *n = answer->offers;
            if (*n == 0) note = "nothing_offered";
        }
        if (!world_note(w, x, 6, answer->rule_id, answer->version, before, lowest(*offers, *n), note)) return false;
    }
    return true;
}

bool rounding_check(int64_t total, int64_t rounded, const struct currency *currency) {
    int64_t most = total / 20, unit = currency->exponent ? 1 : 1000;
    for (int i = 0; i < currency->exponent; i++) unit *= 10;
    if (unit > most) most = unit;
    int64_t by = rounded > total ? rounded - total : total - rounded;
    return rounded >= 0 && rounded <= MONEY_MAX && by <= most;
}

bool pricing_ask_rounding(struct work *w, struct world *x, int64_t total, int64_t *rounded, bool *answered) {
    const struct pricing_hooks *hooks = &w->in->hooks;
    *answered = false;
    if (!hooks->currency_round || total == 0) return true;
    struct pricing_view view = work_view(w, x);
    struct rounding_answer answer = {0};
    if (!hooks->currency_round(hooks->data, &view, total, &answer, answered, w->err)) return false;
    if (!*answered) return true;
    *answered = rounding_check(total, answer.amount, w->currency);
    if (*answered) *rounded = answer.amount;
    return world_note(w, x, 7, answer.rule_id, answer.version, total, *rounded,
                      *answered ? "applied" : "invalid_result");
}
