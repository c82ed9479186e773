/* The price of a cart: nine stages, from unit prices to the amount due, as one pure function of its input.
 *
 * The caller gathers rows and hands them over; nothing here reads a store, a clock or a random number, so the same
 * input gives the same quote to the byte, on every machine and in whatever order the lines come (ties end at the line
 * key, never at a position). What a merchant scripts enters through callbacks that are given the state of their
 * stage and answer with data; their answers are checked and clamped here.
 *
 *   1 base price   2 bundle   3 promotion   4 coupon   5 points   6 shipping   7 tax, cash rounding
 *   8 gift cards, wallet   9 amount due
 *
 * Where units leave from changes the shipping and nothing else: a line that leaves several warehouses is priced and
 * taxed whole, and then every figure of it is divided over its portions.
 *
 * Invariants, checked on every quote (an error of kind internal, never an abort): the reductions of a line sum to its
 * discount, its portions to the line, nothing is negative, subtotal - discount + shipping (+ tax when exclusive) - cash
 * rounding = total, and the taxes by jurisdiction sum to the tax.
 *
 * Amounts are minor units of the cart's currency unless a field beside them names another; rates of tax are ppm,
 * discounts basis points. Strings are borrowed from the caller and must outlive the quote. An empty string, a zero date
 * and a zero cap mean "none". */
#ifndef KASMA_COMMERCE_PRICING_H
#define KASMA_COMMERCE_PRICING_H

#include "commerce/shipping.h"
#include "commerce/tax.h"

#define PRICING_LINES_MAX 200
#define PRICING_QTY_MAX 9999
#define PRICING_PROMOTIONS_MAX 500
#define PRICING_EXCLUSIVE_MAX 10
#define PRICING_COUPONS_MAX 20
#define PRICING_RULES_MAX 25
#define PRICING_OPERATIONS_MAX 200
#define PRICING_BUNDLES_MAX 200
#define PRICING_TAX_RULES_MAX 20000
#define PRICING_METHODS_MAX 500
#define PRICING_CARDS_MAX 20
#define PRICING_GRAMS_MAX INT64_C(1000000000)
#define PRICING_PORTIONS_MAX 50 /* warehouses that one line leaves from */

enum target_kind {
    TARGET_ALL,
    TARGET_CATEGORY,
    TARGET_PRODUCT,
    TARGET_VARIANT,
    TARGET_TAG,
    TARGET_VENDOR,
    TARGET_BUNDLE,
};

struct targets {
    enum target_kind kind;
    struct str_list ids;
};

/* A row of a price list in the cart's or another currency; rows of other currencies are passed over. */
struct price_row {
    struct str currency, customer_group;
    int64_t min_qty, price, sale_price;
    int64_t starts_ms, ends_ms;
    bool of_variant;
};

/* Units of a line that leave one warehouse. */
struct pricing_portion {
    struct str warehouse_id;
    int64_t qty;
};

struct pricing_line {
    struct str id, product_id, variant_id, purchase_type, bundle_id, bundle_key;
    struct str sku, name, vendor_id, tax_class, warehouse_id;
    struct str_list category_ids, tag_ids; /* categories with their ancestors */
    int64_t qty;
    int64_t price, sale_price; /* of the variant or product, in price_currency; sale_price 0 = none */
    struct str price_currency; /* empty: the cart's */
    const struct price_row *row;
    size_t rows;
    int64_t fixed_unit; /* when has_fixed_unit: the unit price, set by a rule or locked by a subscription */
    bool has_fixed_unit;
    int64_t subscriber_bps; /* saving per unit of subscription lines */
    int64_t weight_g, volume_cm3;
    int64_t stock;                         /* of a product offered as a gift: units left, -1 = untracked */
    const struct pricing_portion *portion; /* when the line leaves from several warehouses: all its units, each
                                              warehouse once; warehouse_id then says nothing */
    size_t portions;
    bool requires_shipping;
};

/* Minor units of `from` times `rate` are minor units of the cart's currency. Frozen by the caller. */
struct pricing_rate {
    struct str from;
    struct ratio rate;
};

enum bundle_pricing { BUNDLE_FIXED, BUNDLE_PERCENT_OFF };

struct bundle_item {
    struct str product_id, variant_id; /* empty variant: any */
    int64_t qty;
};

struct pricing_bundle {
    struct str id, name, currency;
    enum bundle_pricing pricing;
    int64_t price, percent_off_bps, max_per_order;
    int64_t starts_ms, ends_ms;
    const struct bundle_item *item;
    size_t items;
    bool inactive, auto_apply;
};

enum promotion_kind {
    PROMOTION_DISCOUNT,
    PROMOTION_FLASH_SALE,
    PROMOTION_B1G1,
    PROMOTION_FREE_SHIPPING,
    PROMOTION_SCRIPT
};
enum promotion_value { VALUE_PERCENT, VALUE_FIXED, VALUE_PRICE };
enum price_level { LEVEL_LINE, LEVEL_ORDER, LEVEL_SHIPPING };

struct promotion {
    struct str id, code, label, currency, exclusion_group;
    int64_t version;
    enum promotion_kind kind;
    enum promotion_value value_type;
    enum price_level level;
    int64_t value; /* bps or minor units */
    struct targets targets;
    int64_t min_order, min_qty, max_discount;
    int64_t buy_qty, get_qty, get_bps;
    bool pool; /* b1g1 across products */
    int64_t priority;
    bool stackable, exclusive, stop_after, include_bundled, first_order_only, inactive;
    struct str_list customer_groups, tier_ids;
    unsigned weekdays;          /* bit n = ISO weekday n; 0 = every day */
    int64_t hour_from, hour_to; /* half open in the tenant's zone, may pass midnight; equal = always */
    int64_t usage_limit, used_count, customer_limit, customer_used;
    int64_t budget, budget_used;
    int64_t max_units, units_used, max_units_customer, units_customer;
    int64_t starts_ms, ends_ms;
};

enum coupon_kind { COUPON_PERCENT, COUPON_FIXED, COUPON_FREE_SHIPPING };

/* In the order in which they were typed; a code that no coupon has comes with found = false. */
struct pricing_coupon {
    struct str id, code, label, currency;
    enum coupon_kind kind;
    int64_t version, value, min_order, max_discount;
    int64_t usage_limit, used_count, customer_limit, customer_used;
    bool found, inactive, stackable, exclude_discounted, first_order_only;
    bool script_rejected; /* the rule of coupon.eligibility said no */
    struct targets targets;
    struct str_list customer_ids, customer_groups;
    int64_t starts_ms, ends_ms;
};

struct pricing_customer {
    struct str id, tier_id;
    struct str_list groups;
    bool first_order;
    bool tier_free_shipping;
    int64_t tier_discount_bps, multiplier_pct; /* 0 multiplier: 100 */
};

struct pricing_points {
    int64_t requested, available;
    int64_t value; /* of one point, minor units of `currency` */
    int64_t step, redeem_max_bps;
    struct str currency;    /* empty: the cart's */
    int64_t earn_unit;      /* minor units of the base currency per point; 0 = nothing is earned */
    struct ratio earn_rate; /* cart to base currency; den 0 = the same currency */
};

struct pricing_shipping {
    struct shipping_place place;
    bool has_place;
    struct str method_id; /* empty: the cheapest */
    bool list;            /* all offers are wanted, not only the chosen one */
    const struct shipping_zone *zone;
    size_t zones;
    const struct shipping_method *method;
    size_t methods;
};

enum shipping_tax { SHIPPING_TAX_BY_CLASS, SHIPPING_TAX_WEIGHTED, SHIPPING_TAX_NONE };
enum tax_exempt { TAX_NOT_EXEMPT, TAX_EXEMPT, TAX_REVERSE_CHARGE };

/* Regional overrides are applied by the caller. */
struct pricing_tax {
    bool inclusive, keep_net, off; /* off: nothing is charged at this place */
    enum rounding mode;
    enum tax_level level;
    enum shipping_tax shipping;
    struct str shipping_class; /* empty: "shipping" */
    struct tax_place place;    /* without a country: home */
    struct str home_country;
    enum tax_exempt exempt;
    const struct tax_rule *rule;
    size_t rules;
};

struct pricing_card {
    struct str id, code, currency;
    int64_t balance, expires_ms;
};

struct pricing_wallet {
    int64_t balance, most; /* most: the shopper's limit, -1 = all */
    struct str id, currency;
};

enum operation_kind {
    OP_LINE_PERCENT,
    OP_LINE_AMOUNT,
    OP_UNIT_AMOUNT,
    OP_UNIT_PRICE,
    OP_ORDER_PERCENT,
    OP_ORDER_AMOUNT,
    OP_SHIPPING_PERCENT,
    OP_SHIPPING_AMOUNT,
    OP_GIFT_LINE,
};

/* What a promotion rule asks for. `amount` is the price of OP_UNIT_PRICE. */
struct operation {
    enum operation_kind kind;
    struct str line_id, method_id, product_id, variant_id, label, code, group;
    struct str_list line_ids, exclude_line_ids;
    int64_t bps, amount, max, qty, priority;
    int64_t units; /* 0 = all of the line */
    bool has_priority, stackable;
};

/* The answer of one rule; its operations count all or not at all. */
struct rule_result {
    struct str rule_id, name;
    int64_t version, priority;
    const struct operation *operation;
    size_t operations;
    bool invalid; /* the host could not read the answer: noted in the trace as invalid_result, counts nothing */
};

/* One tax of one line; `line_id` "shipping" is the shipping charge. The named lines get exactly what is listed. */
struct tax_answer {
    struct str line_id;
    struct tax_rate rate;
};

/* What a line of the price list, and what was stored, would make a unit cost: in the cart's currency, before any
 * restatement. */
struct price_break {
    int64_t min_qty, price, sale; /* sale 0: none */
};
struct line_price {
    int64_t list, sale; /* of the row that fits best, else of the product; sale 0: none */
    const struct price_break *at;
    size_t breaks; /* rows that this buyer may have now, whatever the quantity */
};

/* What one rule says that units cost; it counts all or not at all. */
struct price_answer {
    struct str rule_id, label;
    int64_t version;
    const int64_t *unit; /* one a line of the view; -1: the rule does not name the line */
};

/* A bundle of the cart that a rule may price. */
struct bundle_question {
    const struct pricing_bundle *bundle;
    const bool *member; /* one a line of the view; NULL: it applies by itself and has not been looked for yet */
    int64_t qty;        /* instances */
};
struct bundle_answer {
    struct str rule_id;
    int64_t version, price; /* of one instance */
};

/* The class under which an item is taxed. */
struct class_answer {
    struct str rule_id, tax_class;
    int64_t version;
};

/* A method that takes a parcel, as it is offered. */
struct shipping_offer {
    const struct shipping_method *method;
    struct str name;
    int64_t price; /* of the cart's currency, before any restatement */
    int64_t days;  /* -1: not known */
};
/* The offers of a parcel after one rule. */
struct rates_answer {
    struct str rule_id;
    int64_t version;
    const struct shipping_offer *offer;
    size_t offers;
};

/* What a total is rounded to. */
struct rounding_answer {
    struct str rule_id;
    int64_t version, amount;
};

struct pricing_view;

/* Called in the middle of a quote, synchronously. What they hand back must live until the quote has been read (the
 * arena is there for that). False with `err` filled ends the quote with that error. NULL: no such hook. */
struct pricing_hooks {
    void *data;
    /* Once for each product or variant, by the first of its lines; its answer holds for the others too. */
    bool (*tax_class)(void *data, const struct pricing_view *view, size_t line, struct class_answer *answer,
                      bool *answered, struct error *err);
    /* Once a quote; `prices` one a line. Of several answers the first that names a line decides it. */
    bool (*price_lines)(void *data, const struct pricing_view *view, const struct line_price *prices, struct arena *a,
                        const struct price_answer **answers, size_t *n, struct error *err);
    /* Once a bundle of the cart. */
    bool (*bundle_price)(void *data, const struct pricing_view *view, const struct bundle_question *question,
                         struct bundle_answer *answer, bool *answered, struct error *err);
    bool (*promotion)(void *data, const struct pricing_view *view, struct arena *a, const struct rule_result **results,
                      size_t *n, struct error *err);
    /* For each parcel that ships, the cheapest offer first. Each rule is given what the one before it left; the last
     * answer holds, in its order. */
    bool (*shipping_rates)(void *data, const struct pricing_view *view, size_t group,
                           const struct shipping_offer *offers, size_t n, struct arena *a,
                           const struct rates_answer **answers, size_t *count, struct error *err);
    /* *answered false: the built-in rates stand. */
    bool (*tax_resolve)(void *data, const struct pricing_view *view, struct arena *a, const struct tax_answer **answers,
                        size_t *n, bool *answered, struct error *err);
    /* Once, about a total above 0; *answered false: the step of the input rounds. */
    bool (*currency_round)(void *data, const struct pricing_view *view, int64_t total, struct rounding_answer *answer,
                           bool *answered, struct error *err);
};

struct pricing_input {
    struct str currency;
    int64_t now_ms;
    int64_t weekday, hour; /* of now in the tenant's zone: 1 = Monday .. 7, 0..23 */
    bool priority_mode;    /* promotionMode `priority`; else `best` */
    int64_t max_coupons;   /* per order, 1..5 */
    int64_t rounding_step; /* cash rounding; 0 = none */
    const struct pricing_line *line;
    size_t lines;
    const struct pricing_line *gift; /* products that rules may give away, asked for by quote.wanted */
    size_t gifts;
    const struct pricing_rate *rate;
    size_t rates;
    const struct pricing_bundle *bundle;
    size_t bundles;
    const struct promotion *promotion;
    size_t promotions;
    const struct pricing_coupon *coupon;
    size_t coupons;
    const struct pricing_card *card;
    size_t cards;
    struct pricing_wallet wallet;
    struct pricing_customer customer;
    struct pricing_points points;
    struct pricing_shipping shipping;
    struct pricing_tax tax;
    struct pricing_hooks hooks;
};

/* What of a line leaves one warehouse: its units and its share of every figure, by their order. */
struct quote_portion {
    struct str warehouse_id;
    int64_t qty, gross, discount, net, tax;
};

struct quote_line {
    const struct pricing_line *item; /* of the input, or of its gifts */
    struct str id, bundle_id, bundle_key;
    struct str tax_class;
    struct str price_label;         /* of the rule that set the unit price */
    int64_t qty, listed_unit, unit; /* listed: before an exempt buyer's or keep_net restatement */
    int64_t gross, discount, net;
    int64_t tax, rate_ppm;
    const struct tax_rate *rate;
    const int64_t *part; /* tax per rate */
    size_t rates;
    uint32_t rank;  /* of the line key */
    int64_t before; /* of an item with portions: its units in the lines whose ids come before this one's */
    const struct quote_portion *portion; /* of a line whose item has portions: at least one */
    size_t portions;
    bool on_sale, reduced, in_bundle, is_gift;
};

enum source_kind {
    SOURCE_BUNDLE,
    SOURCE_PROMOTION,
    SOURCE_COUPON,
    SOURCE_LOYALTY,
    SOURCE_SCRIPT,
    SOURCE_CASH_ROUNDING
};

/* What reduced the price. */
struct quote_source {
    enum source_kind kind;
    enum price_level level;
    struct str id, code, label;
    int64_t version, amount, units; /* units: that a unit cap counts */
};

/* One source on one line; line -1: the shipping charge (or the order, for cash rounding). */
struct quote_row {
    size_t source;
    int64_t line, amount;
    const int64_t *portion; /* the amount on each portion of its line, when that has some */
};

struct quote_trace {
    int stage; /* 1..9 */
    struct str rule;
    int64_t version, before, after;
    const char *note; /* "applied" or why not */
};

struct quote_rejected {
    struct str code;
    const char *reason;
};

struct quote_tax {
    struct str jurisdiction, name;
    int64_t ppm, amount;
};

struct quote_tender {
    struct str id, code;
    bool is_wallet;
    int64_t amount;
};

/* One parcel: the lines, and portions of lines, that leave one warehouse. */
struct quote_group {
    struct str warehouse_id;
    int64_t weight_g, volume_cm3, merchandise;
    int64_t charge, net, tax; /* of shipping, before and after reductions */
    bool ships;               /* something in it is sent */
};

struct quote_shipping {
    bool known;                           /* false: no address and no method yet, or rules offer nothing */
    const struct shipping_method *method; /* NULL: nothing matches or nothing to ship */
    const char *reason;                   /* why the method asked for, or any, was not taken, else NULL */
    struct str name;                      /* of the method, as it is offered */
    const struct shipping_offer *offer;   /* all that is offered, with what it would be charged */
    size_t offers;
    int64_t charge, discount, net, tax;
    const struct tax_rate *rate;
    size_t rates;
};

struct quote {
    const struct pricing_input *input;
    const struct currency *currency;
    struct quote_line *line;
    size_t lines;
    struct quote_source *source;
    size_t sources;
    struct quote_row *row;
    size_t rows;
    struct quote_trace *trace;
    size_t traces;
    struct quote_rejected *rejected;
    size_t rejections;
    struct quote_tax *tax;
    size_t taxes;
    struct quote_tender *tender;
    size_t tenders;
    struct quote_group *group;
    size_t groups;
    const struct operation *const *wanted; /* gift operations whose product the input lacks: price again with it */
    size_t wants;
    struct quote_shipping shipping;
    int64_t subtotal, discount, merchandise, tax_total, cash_rounding, total;
    int64_t gift_card, wallet, due;
    int64_t points_used, points_amount, points_cap, earn_points;
    const char *points_reason; /* why stored points count nothing, else NULL */
    bool inclusive;
};

/* Whether an answer of shipping_rates is in order: offers of what was offered, each once, at a price in proportion. */
bool rates_answer_check(const struct rates_answer *answer, const struct shipping_offer *offers, size_t n,
                        const char **why);

/* What a hook sees. For `tax_class` and `price_lines`: units and sums as they are listed, before a restatement. For
 * `bundle_price`: the state after stage 1 and the bundles before this one. For `promotion`: the state after stage 2.
 * For `shipping_rates`: the lines after their discounts. For `tax_resolve`: the lines with their final nets and the
 * built-in rates as candidates, and the shipping charge. */
struct pricing_view {
    const struct pricing_input *input;
    const struct currency *currency;
    const struct quote_line *line;
    size_t lines;
    int64_t gross, net;
    const struct quote_source *source; /* what reduced the lines so far */
    const struct quote_row *row;
    size_t rows;
    const struct quote_shipping *shipping; /* of `tax_resolve` only */
    const struct quote_group *group;
    size_t groups;
};

/* Prices the input; the quote and all it points to live in the arena. NULL: `err` says why (invalid: the input breaks a
 * limit; limit: an amount leaves the range; memory; internal: an invariant failed). */
const struct quote *pricing_quote(struct arena *a, const struct pricing_input *in, struct error *err);

/* Whether all operations of a result are in order against the state that the rule saw; *why names the first fault. */
bool operations_check(const struct rule_result *result, const struct pricing_view *view, const char **why);

/* Whether an answer of price_lines is in order: no price below zero, no line out of all proportion. */
bool price_answer_check(const struct price_answer *answer, const struct pricing_view *view, const char **why);
/* Whether a total may be rounded so far: a twentieth of it, or one unit of the currency (a thousand where it has no
 * smaller ones). */
bool rounding_check(int64_t total, int64_t rounded, const struct currency *currency);
/* The most that a rule may make a line, a bundle or a parcel cost: with 200 of them a total stays in range. */
#define PRICING_RULE_MOST (MONEY_MAX / 800)

/* The word of a source kind as stored: "bundle", "promotion", "coupon", "loyalty", "script", "cash_rounding". */
const char *source_kind_name(enum source_kind kind);
/* "line", "order", "shipping". */
const char *price_level_name(enum price_level level);

#endif
