/* What the stages of one quote share. Private to the pricing_*.c files; the public face is pricing.h.
 *
 * A `world` is one way to price the cart: all ordinary rules together, or one exclusive promotion alone. Worlds start
 * as copies of the state after stage 2 and the cheapest one goes on to stage 5. */
#ifndef KASMA_COMMERCE_PRICING_WORK_H
#define KASMA_COMMERCE_PRICING_WORK_H

#include "commerce/pricing.h"

#define GIFT_LINES_MAX 50 /* that rules may add to one quote */

struct world {
    struct quote_line *line; /* in worlds, with room for that many gifts */
    size_t lines;
    struct quote_source *source;
    size_t sources, sources_cap;
    struct quote_row *row;
    size_t rows, rows_cap;
    struct quote_trace *trace;
    size_t traces, traces_cap;
    struct quote_rejected *rejected;
    size_t rejections, rejections_cap;
    struct str *shut; /* exclusion groups of which one applied */
    size_t shuts, shuts_cap;
    bool *stopped; /* per line: a stopAfter promotion reduced it in this class */
    struct quote_group *group;
    size_t groups;
    struct quote_shipping shipping;
    int64_t *after_promotions;    /* nets after stage 3 */
    int64_t before_points;        /* merchandise net after stage 4 */
    const struct promotion *only; /* the exclusive promotion of this world; NULL: all ordinary rules */
};

struct class_rates {
    struct str tax_class;
    const struct tax_rate *rate;
    size_t rates;
    struct ratio restate; /* shelf price to what this buyer pays before reductions */
};

struct work {
    struct arena *arena;
    const struct pricing_input *in;
    const struct currency *currency;
    struct error *err;
    const struct rule_result *result; /* of the promotion hook; those that failed their check have no operations */
    size_t results;
    const struct operation **wanted;
    size_t wants, wants_cap;
    struct class_rates *class;
    size_t classes, classes_cap;
};

/* Errors, each returns false. */
static inline bool work_memory(struct work *w) {
    error_set(w->err, ERR_MEMORY, "out of memory");
    return false;
}
static inline bool work_range(struct work *w) {
    error_set(w->err, ERR_LIMIT, "an amount is out of range");
    return false;
}
/* Room for one more in an array of `n` items: the array, moved when it had to grow; NULL when out of memory. */
void *work_grow(struct work *w, void *at, size_t n, size_t *cap, size_t size);

/* The merchandise net of a world now. */
int64_t world_net(const struct world *x);
bool world_note(struct work *w, struct world *x, int stage, struct str rule, int64_t version, int64_t before,
                int64_t after, const char *note);
/* Takes `amount` (> 0, at most what is left) off a line, or off shipping (line -1), for a source, and records it;
 * source->units is added to the source's units. */
bool world_reduce(struct work *w, struct world *x, const struct quote_source *source, int64_t line, int64_t amount);
bool world_reject(struct work *w, struct world *x, struct str code, const char *reason);
/* Sets rank of every line from its key. */
bool world_rank(struct work *w, struct world *x);
bool world_copy(struct work *w, const struct world *from, struct world *to);

/* Sets `before` of every line; called when no line is added any more, before the others of these. */
void world_lay(struct world *x);
/* The warehouses that a line may leave from; at least one. */
size_t world_portions(const struct world *x, size_t line);
/* The units [from, to) of a line that leave by its portion k, and the warehouse; from == to when none do. */
struct str world_portion(const struct world *x, size_t line, size_t k, int64_t *from, int64_t *to);
/* What of `total`, an amount of a whole line, belongs to its units in one warehouse. */
int64_t world_there(const struct world *x, size_t line, struct str warehouse, int64_t total);
/* Free shipping is always of the shipping class, flash sales and buy-x-get-y of the line class, whatever was stored. */
enum price_level promotion_level(const struct promotion *p);
bool line_matches(const struct quote_line *line, const struct targets *targets);
bool list_has(struct str_list list, struct str s);
bool lists_meet(struct str_list a, struct str_list b);
/* Whether an amount in `currency` counts in the cart (R6): zero in any currency, others in the cart's own. */
bool amount_fits(const struct work *w, int64_t amount, struct str currency);
bool window_open(int64_t starts_ms, int64_t ends_ms, int64_t now_ms);
/* An amount of another currency in the cart's, at the frozen rate, half up. */
bool work_convert(struct work *w, int64_t amount, struct str currency, int64_t *out);

/* The state of a world as a hook sees it. */
struct pricing_view work_view(const struct work *w, const struct world *x);
/* What is stored as the price of a line. */
bool pricing_stored_price(struct work *w, const struct pricing_line *item, struct line_price *out);
/* Rules say under which class items are taxed. */
bool pricing_ask_classes(struct work *w, struct world *x);
/* Rules set units at their listed price, before the restatement. */
bool pricing_ask_prices(struct work *w, struct world *x);
/* What a rule says a bundle costs, as a copy of it with that price; the bundle itself when none answers. *answer is for
 * the trace, without a rule when none answered. `member` NULL: it is not looked for yet. */
const struct pricing_bundle *pricing_ask_bundle(struct work *w, const struct world *x,
                                                const struct pricing_bundle *bundle, const bool *member, int64_t count,
                                                struct bundle_answer *answer);

/* What a rule rounds a total to. *rounded is left alone when none answers. */
bool pricing_ask_rounding(struct work *w, struct world *x, int64_t total, int64_t *rounded, bool *answered);
/* What is offered for a parcel, after the rules: in *offers, in the order in which it is offered. */
bool pricing_ask_rates(struct work *w, struct world *x, size_t group, const struct shipping_offer **offers, size_t *n);

/* Stages, in the order of their call. */
bool pricing_base(struct work *w, struct world *x);                           /* 1 */
bool pricing_bundles(struct work *w, struct world *x);                        /* 2 */
bool pricing_promotions(struct work *w, struct world *x, enum price_level c); /* 3, and 6 for shipping */
bool pricing_gifts(struct work *w, struct world *x);                          /* end of 3 */
bool pricing_coupons(struct work *w, struct world *x);                        /* 4 */
bool pricing_shipping_charge(struct work *w, struct world *x);                /* 6 */
bool pricing_shipping_coupons(struct work *w, struct world *x);               /* 6 */
bool pricing_shipping_groups(struct work *w, struct world *x);                /* 6: nets per parcel */
bool pricing_tax_stage(struct work *w, struct world *x, struct quote *q);     /* 7 */
bool pricing_portions(struct work *w, struct world *x);                       /* after 7 */
/* The rates of a class at the place of this quote, and the restatement of its prices. NULL: error. */
const struct class_rates *pricing_class(struct work *w, struct str tax_class);
/* The class of the shipping charge. */
struct str pricing_shipping_class(const struct work *w);

#endif
