/* Tax: which rules apply to a place, a class and a day, and how much that is. Pure arithmetic on integers.
 *
 * Exact fractions are kept until the one rounding that the level names: per line, per unit, or per order. At level
 * `order` the exact taxes of all items are summed per (jurisdiction, rate), rounded once and pushed back by largest
 * remainder, so that the lines always add up to what the law sees. */
#ifndef KASMA_COMMERCE_TAX_H
#define KASMA_COMMERCE_TAX_H

#include "commerce/money.h"
#include "runtime/error.h"

#define TAX_RATES_MAX 16   /* taxes on one item */
#define TAX_COMPOUND_MAX 2 /* of them compound; three levels are exact within 10^18 */

enum tax_level { TAX_PER_LINE, TAX_PER_UNIT, TAX_PER_ORDER };

/* An empty string is "any". */
struct tax_rule {
    struct str id, name, country, region, zip, tax_class, stack_group, jurisdiction;
    int64_t ppm; /* 0..1000000 */
    int64_t calc_order, priority;
    int64_t valid_from, valid_to; /* epoch ms, half open; 0 = open */
    bool compound, inactive;
};

/* An empty string is "not known", which matches only rules that do not ask. */
struct tax_place {
    struct str country, region, zip;
};

/* One tax on one item. */
struct tax_rate {
    struct str id, name, jurisdiction, stack_group;
    int64_t ppm, calc_order;
    bool compound;
};

struct tax_item {
    int64_t base;                /* net of the line; the gross when prices include tax; >= 0 */
    int64_t qty;                 /* > 0; matters at level `unit` only */
    const struct tax_rate *rate; /* in order of calculation, as tax_match gives them */
    size_t rates;
    uint32_t rank;  /* of the line key: ends ties */
    int64_t tax;    /* out: sum of the parts */
    int64_t *parts; /* out: one per rate, in the arena */
};

/* The winners for one class at one place and time, in order of calculation, into out[TAX_RATES_MAX]; their number is
 * *count (0: nothing matches). Names and jurisdictions point into the rules or the arena. */
bool tax_match(struct arena *a, const struct tax_rule *rules, size_t n, const struct tax_place *place,
               struct str tax_class, int64_t at_ms, struct tax_rate *out, size_t *count, struct error *err);
/* Sorts rates into the order of calculation: calc_order, then stack group, then id. */
void tax_order(struct tax_rate *rates, size_t n);
/* 1 + the rates together, compound ones multiplied: gross = net * factor. */
bool tax_factor(const struct tax_rate *rates, size_t n, struct ratio *out);
/* The rates together in ppm, half up, as shown to people. */
int64_t tax_effective_ppm(const struct tax_rate *rates, size_t n);
/* Fills tax and parts of every item. */
bool tax_compute(struct arena *a, struct tax_item *items, size_t n, bool inclusive, enum rounding mode,
                 enum tax_level level, struct error *err);

#endif
