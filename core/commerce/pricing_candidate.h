/* A promotion, a script's operation or a tier benefit about to compete in its class. Private to the pricing files. */
#ifndef KASMA_COMMERCE_PRICING_CANDIDATE_H
#define KASMA_COMMERCE_PRICING_CANDIDATE_H

#include "commerce/pricing_work.h"

enum candidate_way {
    WAY_PERCENT,    /* bps of the units' nets together */
    WAY_UNIT,       /* an amount off each unit, clamped to the unit */
    WAY_PRICE,      /* each unit down to a price */
    WAY_AMOUNT,     /* an amount off the line, the order or the shipping charge */
    WAY_B1G1,       /* the cheapest units of each group */
    WAY_EVERYTHING, /* free shipping */
};

struct candidate {
    const struct promotion *promotion; /* NULL for an operation or a tier benefit */
    const struct promotion *row;       /* of an operation: the stored conditions of its rule; NULL: none */
    int64_t own_cap;                   /* of an operation: its max, whatever its rule has left */
    struct quote_source source;
    size_t number; /* of the operation in its result: ends ties inside one rule */
    enum candidate_way way;
    enum price_level level;
    int64_t value;
    int64_t cap;         /* most it may save; INT64_MAX = no cap */
    int64_t max_units;   /* most units over all lines, cheapest first; -1 = all */
    int64_t first_units; /* the first n units of the line (operations); 0 = all */
    int64_t min_order, min_qty;
    int64_t buy, get, get_bps;
    bool pool;
    int64_t priority;
    bool stackable, stop_after;
    struct str group;
    bool *counted;                      /* per line: counts towards min_qty */
    bool *target;                       /* per line: may be reduced */
    int64_t *uncapped, *units, *saving; /* per line, of the last candidate_compute; order and shipping: total only */
    int64_t total, ranking;             /* now, and at class start */
    const char *out;                    /* why it is out of the race; NULL = in */
    bool applied;
};

/* Why a promotion does not even compete; NULL when it does. */
const char *promotion_refusal(const struct work *w, const struct promotion *p);
/* The stored promotion of a rule: its conditions, limits and budget. NULL: it has none. */
const struct promotion *script_row(const struct work *w, struct str rule_id);
/* What the rule of a stored promotion may still give in this world. */
int64_t script_left(const struct world *x, const struct promotion *row);
/* Sets the cap of an operation to what its rule has left now. */
void candidate_refresh(const struct world *x, struct candidate *c);
/* Every candidate of a class in this world whose conditions hold; the refused ones are noted in the trace. */
bool candidates_gather(struct work *w, struct world *x, enum price_level level, struct candidate **out, size_t *n);
/* What it would save on the nets as they stand, caps included: uncapped, units, saving and total. */
bool candidate_compute(struct work *w, const struct world *x, struct candidate *c);
/* Spreads the uncapped savings of the lines in `won` under the cap into c->saving and c->total. */
bool candidate_cap(struct work *w, const struct world *x, struct candidate *c, const bool *won);
/* Why its thresholds do not hold on the nets as they stand; NULL when they do. */
const char *candidate_threshold(const struct world *x, const struct candidate *c);

#endif
