#include "commerce/tax.h"

#include <stdlib.h>

#include "commerce/place.h"

/* Coefficients of a set of rates are integers over this; divisible by 10^6 three times, so that two compound levels
 * above the first stay exact. */
#define SCALE ((u128)1000000000000000000u)
/* Common denominators of an order's fractions beyond this would not leave room for the amounts in 128 bits. */
#define DENOMINATOR_MAX ((u128)1 << 61)

/* How specific a matching rule is; compared member by member, in this order. */
struct rank {
    const struct tax_rule *rule;
    struct str group;
    enum zip_match zip;
    size_t prefix;
};

static bool beats(const struct rank *a, const struct rank *b) {
    bool class_a = a->rule->tax_class.len > 0, class_b = b->rule->tax_class.len > 0;
    if (class_a != class_b) return class_a;
    if (a->zip != b->zip) return a->zip > b->zip;
    if (a->prefix != b->prefix) return a->prefix > b->prefix;
    bool region_a = a->rule->region.len > 0, region_b = b->rule->region.len > 0;
    if (region_a != region_b) return region_a;
    if (a->rule->priority != b->rule->priority) return a->rule->priority > b->rule->priority;
    if (a->rule->valid_from != b->rule->valid_from) return a->rule->valid_from > b->rule->valid_from;
    return text_order(a->rule->id, b->rule->id) < 0;
}

struct query {
    struct tax_place place; /* folded */
    struct str tax_class;
    int64_t at_ms;
};

/* 1 matches, 0 does not, -1 out of memory. */
static int rule_matches(struct arena *a, const struct tax_rule *rule, const struct query *query, struct rank *out) {
    if (rule->inactive || (rule->valid_from && query->at_ms < rule->valid_from) ||
        (rule->valid_to && query->at_ms >= rule->valid_to))
        return 0;
    if (rule->country.len && !str_ieq(str_trim(rule->country), query->place.country)) return 0;
    if (rule->tax_class.len && !str_eq(rule->tax_class, query->tax_class)) return 0;
    out->zip = place_zip(str_trim(rule->zip), query->place.zip, &out->prefix);
    if (out->zip == ZIP_MISS) return 0;
    if (rule->region.len) {
        if (query->place.region.len == 0) return 0;
        struct str region = place_fold(a, rule->region);
        if (!region.at) return -1;
        if (!str_eq(region, query->place.region)) return 0;
    }
    out->rule = rule;
    out->group = rule->stack_group.len ? rule->stack_group : STR("default");
    return 1;
}

/* The winner of each stack group among the rules that name a country (or among those that do not). */
static bool match_tier(struct arena *a, const struct tax_rule *rules, size_t n, const struct query *query,
                       bool with_country, struct rank *winners, size_t *count, struct error *err) {
    for (size_t i = 0; i < n; i++) {
        if ((rules[i].country.len > 0) != with_country) continue;
        struct rank found;
        int match = rule_matches(a, &rules[i], query, &found);
        if (match < 0) return error_set(err, ERR_MEMORY, "out of memory");
        if (match == 0) continue;
        size_t g = 0;
        while (g < *count && !str_eq(winners[g].group, found.group)) g++;
        if (g == TAX_RATES_MAX) return error_set(err, ERR_LIMIT, "more than %d taxes on one line", TAX_RATES_MAX);
        if (g == *count) {
            winners[(*count)++] = found;
        } else if (beats(&found, &winners[g])) {
            winners[g] = found;
        }
    }
    return true;
}

static int rate_compare(const void *left, const void *right) {
    const struct tax_rate *a = left, *b = right;
    if (a->calc_order != b->calc_order) return a->calc_order < b->calc_order ? -1 : 1;
    int order = text_order(a->stack_group, b->stack_group);
    return order ? order : text_order(a->id, b->id);
}

void tax_order(struct tax_rate *rates, size_t n) {
    if (n > 1) qsort(rates, n, sizeof *rates, rate_compare);
}

bool tax_match(struct arena *a, const struct tax_rule *rules, size_t n, const struct tax_place *place,
               struct str tax_class, int64_t at_ms, struct tax_rate *out, size_t *count, struct error *err) {
    struct query query = {.tax_class = tax_class, .at_ms = at_ms};
    query.place.country = str_trim(place->country);
    query.place.zip = str_trim(place->zip);
    query.place.region = place_fold(a, place->region);
    if (!query.place.region.at) return error_set(err, ERR_MEMORY, "out of memory");
    struct rank winners[TAX_RATES_MAX];
    *count = 0;
    if (query.place.country.len && !match_tier(a, rules, n, &query, true, winners, count, err)) return false;
    if (*count == 0 && !match_tier(a, rules, n, &query, false, winners, count, err)) return false;
    for (size_t i = 0; i < *count; i++) {
        const struct tax_rule *rule = winners[i].rule;
        struct str jurisdiction = rule->jurisdiction.len ? rule->jurisdiction : rule->country;
        if (rule->jurisdiction.len == 0 && rule->region.len) {
            const char *text = arena_printf(a, "%.*s-%.*s", STR_FMT(rule->country), STR_FMT(rule->region));
            if (!text) return error_set(err, ERR_MEMORY, "out of memory");
            jurisdiction = str_of(text);
        }
        out[i] = (struct tax_rate){.id = rule->id,
                                   .name = rule->name,
                                   .jurisdiction = jurisdiction,
                                   .stack_group = winners[i].group,
                                   .ppm = rule->ppm,
                                   .calc_order = rule->calc_order,
                                   .compound = rule->compound};
    }
    tax_order(out, *count);
    return true;
}

/* Each tax as a share of the net, over SCALE. False when it is not exact (too many compound levels). */
static bool coefficients(const struct tax_rate *rates, size_t n, u128 c[TAX_RATES_MAX], u128 *sum) {
    *sum = 0;
    if (n > TAX_RATES_MAX) return false;
    for (size_t k = 0; k < n; k++) {
        if (rates[k].ppm < 0 || rates[k].ppm > PPM_WHOLE) return false;
        u128 base = SCALE;
        for (size_t j = 0; rates[k].compound && j < k; j++)
            if (rates[j].calc_order < rates[k].calc_order) base += c[j];
        u128 product = base * (u128)rates[k].ppm;
        if (product % PPM_WHOLE) return false;
        c[k] = product / PPM_WHOLE;
        *sum += c[k];
    }
    return true;
}

bool tax_factor(const struct tax_rate *rates, size_t n, struct ratio *out) {
    u128 c[TAX_RATES_MAX], sum;
    return coefficients(rates, n, c, &sum) && ratio_make(SCALE + sum, SCALE, out);
}

int64_t tax_effective_ppm(const struct tax_rate *rates, size_t n) {
    u128 c[TAX_RATES_MAX], sum, unit = SCALE / PPM_WHOLE;
    if (!coefficients(rates, n, c, &sum)) return 0;
    return (int64_t)((sum + unit / 2) / unit);
}

static bool too_large(struct error *err) {
    error_set(err, ERR_LIMIT, "a tax is out of range, or compounds more than %d times", TAX_COMPOUND_MAX);
    return false;
}

/* The taxes of one amount, each rounded by itself. */
static bool exclusive_parts(int64_t net, const struct tax_rate *rates, size_t n, enum rounding mode, int64_t *parts) {
    for (size_t k = 0; k < n; k++) {
        int64_t base = net;
        for (size_t j = 0; rates[k].compound && j < k; j++)
            if (rates[j].calc_order < rates[k].calc_order && !minor_add(base, parts[j], &base)) return false;
        if (!mul_div_round(base, rates[k].ppm, PPM_WHOLE, mode, &parts[k])) return false;
    }
    return true;
}

/* The taxes inside one gross amount: one tax is rounded itself; of several the net is, and they share the rest. */
static bool inclusive_parts(struct arena *a, int64_t gross, const struct tax_rate *rates, size_t n, enum rounding mode,
                            int64_t *parts) {
    size_t positive = 0, only = 0;
    for (size_t k = 0; k < n; k++) {
        parts[k] = 0;
        if (rates[k].ppm == 0) continue;
        positive++;
        only = k;
    }
    if (positive == 0) return true;
    if (positive == 1) return mul_div_round(gross, rates[only].ppm, PPM_WHOLE + rates[only].ppm, mode, &parts[only]);
    u128 c[TAX_RATES_MAX], sum;
    struct ratio factor;
    int64_t net;
    if (!coefficients(rates, n, c, &sum) || !ratio_make(SCALE, SCALE + sum, &factor)) return false;
    return ratio_apply(gross, factor, mode, &net) && money_alloc_wide(a, gross - net, c, NULL, n, parts);
}

static bool amount_parts(struct arena *a, int64_t base, const struct tax_item *item, bool inclusive, enum rounding mode,
                         int64_t *parts) {
    return inclusive ? inclusive_parts(a, base, item->rate, item->rates, mode, parts)
                     : exclusive_parts(base, item->rate, item->rates, mode, parts);
}

/* Per unit: the units of a line are worth two neighbouring amounts, so two computations do for all of them. */
static bool unit_parts(struct arena *a, struct tax_item *item, bool inclusive, enum rounding mode) {
    int64_t low[TAX_RATES_MAX], high[TAX_RATES_MAX];
    int64_t base = item->base / item->qty, above = item->base % item->qty;
    if (!amount_parts(a, base, item, inclusive, mode, low)) return false;
    if (above && !amount_parts(a, base + 1, item, inclusive, mode, high)) return false;
    for (size_t k = 0; k < item->rates; k++) {
        int64_t some = 0;
        if (!minor_mul(low[k], item->qty - above, &item->parts[k])) return false;
        if (above && !minor_mul(high[k], above, &some)) return false;
        if (!minor_add(item->parts[k], some, &item->parts[k])) return false;
    }
    return true;
}

/* The exact tax of one item and rate: base * share, share = num/den. */
struct exact {
    struct tax_item *item;
    size_t k;
    struct ratio share;
    bool grouped;
};

static bool exact_list(struct arena *a, struct tax_item *items, size_t n, bool inclusive, struct exact **out,
                       size_t *count, struct error *err) {
    size_t total = 0;
    for (size_t i = 0; i < n; i++) total += items[i].rates;
    struct exact *list = arena_zalloc(a, total ? total : 1, sizeof *list);
    if (!list) return error_set(err, ERR_MEMORY, "out of memory");
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        u128 c[TAX_RATES_MAX] = {0}, sum;
        if (!coefficients(items[i].rate, items[i].rates, c, &sum)) return too_large(err);
        for (size_t k = 0; k < items[i].rates; k++, at++) {
            list[at].item = &items[i];
            list[at].k = k;
            if (!ratio_make(c[k], inclusive ? SCALE + sum : SCALE, &list[at].share)) return too_large(err);
        }
    }
    *out = list;
    *count = total;
    return true;
}

static bool same_tax(const struct exact *a, const struct exact *b) {
    const struct tax_rate *x = &a->item->rate[a->k], *y = &b->item->rate[b->k];
    return x->ppm == y->ppm && str_eq(x->jurisdiction, y->jurisdiction);
}

/* A denominator on which all fractions of the group are integers. Where there is none that leaves room for amounts
 * (many lines, each with another mix of inclusive compound taxes), SCALE: fractions are then cut at 10^-18 of a minor
 * unit, in the same way whatever the order of the lines. */
static u128 common_denominator(const struct exact *const *group, size_t n) {
    u128 common = 1;
    for (size_t i = 0; i < n; i++) {
        struct ratio step;
        if (!ratio_make(group[i]->share.den, common, &step)) return SCALE;
        if (step.num > DENOMINATOR_MAX / common) return SCALE;
        common *= step.num;
    }
    return common;
}

static bool round_group(struct arena *a, struct exact **group, size_t n, enum rounding mode, struct error *err) {
    u128 *weight = arena_zalloc(a, n, sizeof *weight);
    uint32_t *rank = arena_zalloc(a, n, sizeof *rank);
    int64_t *part = arena_zalloc(a, n, sizeof *part);
    if (!weight || !rank || !part) return error_set(err, ERR_MEMORY, "out of memory");
    u128 common = common_denominator((const struct exact *const *)group, n), sum = 0;
    for (size_t i = 0; i < n; i++) {
        struct ratio share = group[i]->share;
        weight[i] = (u128)group[i]->item->base * (share.num * common / share.den);
        rank[i] = group[i]->item->rank * TAX_RATES_MAX + (uint32_t)group[i]->k;
        sum += weight[i];
    }
    struct ratio exact;
    int64_t total = 0;
    if (!ratio_make(sum, common, &exact) || !ratio_apply(1, exact, mode, &total)) return too_large(err);
    if (sum && !money_alloc_wide(a, total, weight, rank, n, part)) return too_large(err);
    for (size_t i = 0; i < n; i++) group[i]->item->parts[group[i]->k] = part[i];
    return true;
}

static bool order_parts(struct arena *a, struct tax_item *items, size_t n, bool inclusive, enum rounding mode,
                        struct error *err) {
    struct exact *list = NULL;
    size_t count = 0;
    if (!exact_list(a, items, n, inclusive, &list, &count, err)) return false;
    struct exact **group = arena_zalloc(a, count ? count : 1, sizeof(struct exact *));
    if (!group) return error_set(err, ERR_MEMORY, "out of memory");
    for (size_t first = 0; first < count; first++) {
        if (list[first].grouped) continue;
        size_t members = 0;
        for (size_t i = first; i < count; i++) {
            if (list[i].grouped || !same_tax(&list[first], &list[i])) continue;
            list[i].grouped = true;
            group[members++] = &list[i];
        }
        if (!round_group(a, group, members, mode, err)) return false;
    }
    return true;
}

/* Several taxes that are each rounded up may exceed an amount of a few units that holds them: what is too much goes off
 * the last of them, by rank. */
static void hold_within(struct tax_item *items, size_t n) {
    int64_t excess = 0;
    for (size_t i = 0; i < n; i++) {
        excess -= items[i].base;
        for (size_t k = 0; k < items[i].rates; k++) excess += items[i].parts[k];
    }
    while (excess > 0) {
        struct tax_item *last = NULL;
        size_t which = 0;
        for (size_t i = 0; i < n; i++)
            for (size_t k = 0; k < items[i].rates; k++) {
                if (items[i].parts[k] == 0 || (last && items[i].rank < last->rank)) continue;
                last = &items[i];
                which = k;
            }
        if (!last) return;
        int64_t some = last->parts[which] < excess ? last->parts[which] : excess;
        last->parts[which] -= some;
        excess -= some;
    }
}

bool tax_compute(struct arena *a, struct tax_item *items, size_t n, bool inclusive, enum rounding mode,
                 enum tax_level level, struct error *err) {
    for (size_t i = 0; i < n; i++) {
        struct tax_item *item = &items[i];
        if (item->base < 0 || item->base > MONEY_MAX || item->qty <= 0 || item->rates > TAX_RATES_MAX)
            return error_set(err, ERR_INVALID, "a tax base is out of range");
        item->parts = arena_zalloc(a, item->rates ? item->rates : 1, sizeof *item->parts);
        if (!item->parts) return error_set(err, ERR_MEMORY, "out of memory");
        if (level == TAX_PER_LINE && !amount_parts(a, item->base, item, inclusive, mode, item->parts))
            return too_large(err);
        if (level == TAX_PER_UNIT && !unit_parts(a, item, inclusive, mode)) return too_large(err);
    }
    if (level == TAX_PER_ORDER && !order_parts(a, items, n, inclusive, mode, err)) return false;
    if (level == TAX_PER_ORDER && inclusive) hold_within(items, n);
    for (size_t i = 0; i < n; i++) {
        items[i].tax = 0;
        for (size_t k = 0; k < items[i].rates; k++)
            if (!minor_add(items[i].tax, items[i].parts[k], &items[i].tax)) return too_large(err);
    }
    return true;
}
