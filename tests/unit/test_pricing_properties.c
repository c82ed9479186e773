// link: commerce
/* What must hold of every cart, on random ones: KASMA_CARTS of them (2,000 unless set), the same on every run.
 *
 * Beyond what the core checks of itself: the order of the lines, promotions and bundles changes no figure of any line;
 * the same input gives the same bytes; nothing is negative or above the line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "commerce/pricing.h"

#define LINES 12
#define PROMOTIONS 6
#define OPERATIONS 4

struct cart {
    struct pricing_line line[LINES];
    struct pricing_portion portion[LINES][3];
    struct promotion promotion[PROMOTIONS];
    struct pricing_coupon coupon[3];
    struct pricing_bundle bundle[2];
    struct bundle_item item[4];
    struct tax_rule rule[6];
    struct shipping_method method[2];
    struct pricing_card card[2];
    struct operation operation[OPERATIONS];
    struct rule_result result;
    struct pricing_line gift;
    uint64_t salt; /* of what the hooks answer */
    struct pricing_input in;
};

static uint64_t seed;

/* splitmix64. */
static uint64_t next(void) {
    uint64_t z = seed += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

static int64_t below(int64_t n) {
    return (int64_t)(next() % (uint64_t)n);
}

static bool chance(int64_t percent) {
    return below(100) < percent;
}

static struct str pick(const char *const *names, int64_t n) {
    return str_of(names[below(n)]);
}

static const char *const line_ids[LINES] = {"l00", "l01", "l02", "l03", "l04", "l05",
                                            "l06", "l07", "l08", "l09", "l10", "l11"};
static const char *const products[] = {"pa", "pb", "pc", "pd", "pe"};
static const char *const promotion_ids[] = {"m0", "m1", "m2", "m3", "m4", "m5"};
static const char *const classes[] = {"", "food", "luxury"};
static const char *const warehouses[] = {"", "w1", "w2"};
static const struct str product_b[] = {{"pb", 2}}, product_ab[] = {{"pa", 2}, {"pb", 2}}, bundles[] = {{"auto", 4}};

static int64_t amount(void) {
    return chance(20) ? below(50) : chance(50) ? below(5000) : below(30000000);
}

static struct targets targets(void) {
    switch (below(4)) {
    case 0:
        return (struct targets){TARGET_PRODUCT, {product_b, 1}};
    case 1:
        return (struct targets){TARGET_PRODUCT, {product_ab, 2}};
    case 2:
        return chance(30) ? (struct targets){TARGET_BUNDLE, {bundles, 1}} : (struct targets){0};
    default:
        return (struct targets){0};
    }
}

static void make_line(struct cart *c, size_t i) {
    struct pricing_line *line = &c->line[i];
    *line = (struct pricing_line){.id = str_of(line_ids[i]),
                                  .product_id = pick(products, 5),
                                  .qty = chance(70) ? 1 + below(5) : 1 + below(200),
                                  .price = amount(),
                                  .tax_class = pick(classes, 3),
                                  .warehouse_id = pick(warehouses, 3),
                                  .weight_g = below(3000),
                                  .requires_shipping = chance(80)};
    if (chance(20)) line->sale_price = below(line->price + 1);
}

/* Some lines leave from two or three warehouses. */
static void make_portions(struct cart *c, size_t i) {
    struct pricing_line *line = &c->line[i];
    int64_t left = line->qty;
    if (left < 2 || chance(50)) return;
    for (size_t k = 0; k < 3 && left > 0; k++) {
        int64_t qty = k == 2 ? left : 1 + below(left);
        c->portion[i][k] = (struct pricing_portion){.warehouse_id = str_of(warehouses[k]), .qty = qty};
        line->portions++;
        left -= qty;
    }
    line->portion = c->portion[i];
}

static void make_promotion(struct cart *c, size_t i) {
    struct promotion *p = &c->promotion[i];
    *p = (struct promotion){.id = str_of(promotion_ids[i]),
                            .targets = targets(),
                            .priority = below(3),
                            .stackable = chance(50),
                            .exclusive = chance(15),
                            .stop_after = chance(15),
                            .include_bundled = chance(20)};
    if (chance(25)) p->exclusion_group = STR("g");
    if (chance(30)) p->max_discount = 1 + amount();
    if (chance(20)) p->min_order = amount();
    switch (below(5)) {
    case 0:
        p->kind = PROMOTION_B1G1;
        p->buy_qty = 1 + below(3);
        p->get_qty = 1 + below(2);
        p->get_bps = chance(50) ? 10000 : below(10001);
        p->pool = chance(50);
        break;
    case 1:
        p->kind = PROMOTION_FLASH_SALE;
        p->value_type = chance(50) ? VALUE_PRICE : VALUE_PERCENT;
        p->value = p->value_type == VALUE_PRICE ? amount() : below(10001);
        p->max_units = below(6);
        break;
    case 2:
        p->kind = PROMOTION_FREE_SHIPPING;
        p->level = LEVEL_SHIPPING;
        break;
    default:
        p->level = chance(50) ? LEVEL_LINE : LEVEL_ORDER;
        p->value_type = chance(50) ? VALUE_PERCENT : VALUE_FIXED;
        p->value = p->value_type == VALUE_PERCENT ? below(10001) : amount();
    }
}

static bool answer(void *data, const struct pricing_view *view, struct arena *a, const struct rule_result **results,
                   size_t *n, struct error *err) {
    (void)a;
    (void)err;
    (void)view;
    *results = &((struct cart *)data)->result;
    *n = 1;
    return true;
}

static void make_rule(struct cart *c) {
    for (size_t i = 0; i < OPERATIONS; i++) {
        struct operation *op = &c->operation[i];
        *op = (struct operation){.kind = (enum operation_kind)below(OP_GIFT_LINE + 1),
                                 .line_id = str_of(line_ids[below((int64_t)c->in.lines)]),
                                 .bps = 1 + below(10000),
                                 .amount = 1 + amount(),
                                 .units = below(4),
                                 .stackable = chance(50)};
        if (op->kind == OP_GIFT_LINE)
            *op = (struct operation){.kind = OP_GIFT_LINE, .product_id = STR("gift"), .qty = 1};
    }
    c->gift = (struct pricing_line){.product_id = STR("gift"), .price = 500, .stock = -1};
    c->result = (struct rule_result){
        .rule_id = STR("rule"), .name = STR("Rule"), .version = 1, .operation = c->operation, .operations = OPERATIONS};
    c->in.gift = &c->gift;
    c->in.gifts = 1;
    c->in.hooks.data = c;
    c->in.hooks.promotion = answer;
}

/* What hooks answer depends on ids alone, never on places; now and then it is out of form. */
static uint64_t told(const struct cart *c, struct str id, uint64_t what) {
    uint64_t h = c->salt ^ what * UINT64_C(0x9E3779B97F4A7C15);
    for (size_t i = 0; i < id.len; i++) h = (h ^ (uint8_t)id.at[i]) * UINT64_C(0x100000001B3);
    return h ^ h >> 29;
}

static int64_t told_amount(const struct cart *c, struct str id, uint64_t what) {
    uint64_t h = told(c, id, what);
    if (h % 61 == 0) return -2;
    if (h % 61 == 1) return MONEY_MAX;
    return (int64_t)(h >> 8) % (h % 3 ? 5000 : 30000000);
}

static bool prices(void *data, const struct pricing_view *view, const struct line_price *stored, struct arena *a,
                   const struct price_answer **answers, size_t *n, struct error *err) {
    const struct cart *c = data;
    (void)err;
    struct price_answer *list = arena_zalloc(a, 2, sizeof *list);
    assert_non_null(list);
    for (size_t r = 0; r < 2; r++) {
        int64_t *unit = arena_zalloc(a, view->lines + 1, sizeof *unit);
        assert_non_null(unit);
        for (size_t i = 0; i < view->lines; i++) {
            assert_true(stored[i].list >= 0 && view->line[i].gross == view->line[i].unit * view->line[i].qty);
            unit[i] = told(c, view->line[i].id, 10 + r) % 3 ? -1 : told_amount(c, view->line[i].id, 20 + r);
        }
        list[r] = (struct price_answer){.rule_id = r ? STR("p2") : STR("p1"), .version = 1, .unit = unit};
    }
    *answers = list;
    *n = 2;
    return true;
}

static bool bundle_price(void *data, const struct pricing_view *view, const struct bundle_question *question,
                         struct bundle_answer *answer, bool *answered, struct error *err) {
    (void)view;
    (void)err;
    *answer = (struct bundle_answer){
        .rule_id = STR("b1"), .version = 1, .price = told_amount(data, question->bundle->id, 30)};
    *answered = told(data, question->bundle->id, 31) % 2;
    return true;
}

static bool tax_class(void *data, const struct pricing_view *view, size_t line, struct class_answer *answer,
                      bool *answered, struct error *err) {
    uint64_t h = told(data, view->line[line].item->product_id, 40);
    (void)err;
    *answer = (struct class_answer){.rule_id = STR("c1"), .version = 1, .tax_class = str_of(classes[h % 3])};
    *answered = h % 2;
    return true;
}

static bool rates(void *data, const struct pricing_view *view, size_t group, const struct shipping_offer *offers,
                  size_t n, struct arena *a, const struct rates_answer **answers, size_t *count, struct error *err) {
    const struct cart *c = data;
    struct shipping_offer *list = arena_zalloc(a, n + 1, sizeof *list);
    struct rates_answer *answer = arena_zalloc(a, 1, sizeof *answer);
    (void)err;
    assert_true(list && answer);
    for (size_t i = n; i > 0; i--) {
        assert_true(offers[i - 1].price >= 0);
        uint64_t where = 50 + told(c, view->group[group].warehouse_id, 51) % 7;
        if (told(c, offers[i - 1].method->id, where) % 5 == 0) continue;
        list[answer->offers] = offers[i - 1];
        list[answer->offers++].price = told_amount(c, offers[i - 1].method->id, where);
    }
    *answer = (struct rates_answer){.rule_id = STR("s1"), .version = 1, .offer = list, .offers = answer->offers};
    *answers = answer;
    *count = 1;
    return true;
}

static bool rounding(void *data, const struct pricing_view *view, int64_t total, struct rounding_answer *answer,
                     bool *answered, struct error *err) {
    uint64_t h = told(data, STR("total"), 60);
    (void)view;
    (void)err;
    int64_t amount = h % 5 == 0 ? 0 : h % 5 == 1 ? total * 2 : total - total % 10 + (h % 2 ? 0 : 10);
    *answer = (struct rounding_answer){.rule_id = STR("r1"), .version = 1, .amount = amount};
    *answered = true;
    return true;
}

/* Each hook on its own, so that a cart has some of them. */
static void make_hooks(struct cart *c) {
    c->salt = next();
    c->in.hooks.data = c;
    if (chance(50)) c->in.hooks.price_lines = prices;
    if (chance(50)) c->in.hooks.bundle_price = bundle_price;
    if (chance(50)) c->in.hooks.tax_class = tax_class;
    if (chance(50)) c->in.hooks.shipping_rates = rates;
    if (chance(50)) c->in.hooks.currency_round = rounding;
    c->in.shipping.list = chance(50);
}

/* The stored promotion of the rule: what it may give. */
static void make_row(struct cart *c) {
    c->promotion[c->in.promotions - 1] = (struct promotion){.id = STR("rule"),
                                                            .kind = PROMOTION_SCRIPT,
                                                            .budget = 1 + amount(),
                                                            .max_discount = chance(30) ? 1 + amount() : 0,
                                                            .min_order = chance(20) ? amount() : 0};
}

static int64_t row_most(const struct cart *c) {
    int64_t most = INT64_MAX;
    for (size_t i = 0; i < c->in.promotions; i++) {
        const struct promotion *p = &c->promotion[i];
        if (p->kind != PROMOTION_SCRIPT) continue;
        most = p->max_discount && p->max_discount < p->budget ? p->max_discount : p->budget;
    }
    return most;
}

static int64_t row_given(const struct quote *q) {
    int64_t given = 0;
    for (size_t i = 0; i < q->sources; i++)
        if (q->source[i].kind == SOURCE_SCRIPT) given += q->source[i].amount;
    return given;
}

static void make_tax(struct cart *c) {
    c->rule[0] = (struct tax_rule){.id = STR("t0"), .country = STR("VN"), .ppm = 100000, .name = STR("VAT")};
    c->rule[1] = (struct tax_rule){
        .id = STR("t1"), .country = STR("VN"), .tax_class = STR("food"), .ppm = below(200001), .name = STR("food")};
    c->rule[2] = (struct tax_rule){.id = STR("t2"),
                                   .country = STR("VN"),
                                   .tax_class = STR("luxury"),
                                   .stack_group = STR("extra"),
                                   .ppm = below(300001),
                                   .calc_order = 1,
                                   .compound = chance(50),
                                   .name = STR("luxury")};
    c->rule[3] = (struct tax_rule){
        .id = STR("t3"), .country = STR("FR"), .stack_group = STR("x"), .ppm = 72500, .jurisdiction = STR("J")};
    c->rule[4] = (struct tax_rule){.id = STR("t4"), .country = STR("FR"), .ppm = 22500, .jurisdiction = STR("J")};
    static const char *const countries[] = {"VN", "FR", "DE"};
    c->in.tax = (struct pricing_tax){.rule = c->rule,
                                     .rules = 5,
                                     .inclusive = chance(50),
                                     .keep_net = chance(20),
                                     .exempt = chance(10) ? TAX_EXEMPT : TAX_NOT_EXEMPT,
                                     .mode = (enum rounding)below(5),
                                     .level = (enum tax_level)below(3),
                                     .shipping = (enum shipping_tax)below(3),
                                     .home_country = STR("VN")};
    c->in.tax.place.country = pick(countries, 3);
}

static void make_cart(struct cart *c) {
    memset(c, 0, sizeof *c);
    static const char *const currencies[] = {"VND", "USD", "JPY", "KWD"};
    c->in = (struct pricing_input){.currency = pick(currencies, 4),
                                   .now_ms = 1795500000000,
                                   .weekday = 2,
                                   .hour = 13,
                                   .priority_mode = chance(30),
                                   .max_coupons = 3,
                                   .line = c->line,
                                   .lines = (size_t)(1 + below(LINES)),
                                   .promotion = c->promotion,
                                   .promotions = (size_t)below(PROMOTIONS + 1),
                                   .coupon = c->coupon,
                                   .coupons = (size_t)below(4),
                                   .bundle = c->bundle,
                                   .bundles = (size_t)below(3),
                                   .card = c->card,
                                   .cards = (size_t)below(3)};
    for (size_t i = 0; i < c->in.lines; i++) make_line(c, i);
    for (size_t i = 0; i < c->in.promotions; i++) make_promotion(c, i);
    c->coupon[0] = (struct pricing_coupon){.id = STR("c0"),
                                           .code = STR("TEN"),
                                           .found = true,
                                           .kind = COUPON_PERCENT,
                                           .value = 1000,
                                           .stackable = chance(70),
                                           .exclude_discounted = chance(30)};
    c->coupon[1] = (struct pricing_coupon){.id = STR("c1"),
                                           .code = STR("FIX"),
                                           .found = true,
                                           .kind = COUPON_FIXED,
                                           .value = amount(),
                                           .stackable = true,
                                           .targets = targets()};
    c->coupon[2] = (struct pricing_coupon){.id = STR("c2"),
                                           .code = STR("SHIP"),
                                           .found = true,
                                           .kind = COUPON_FREE_SHIPPING,
                                           .stackable = true,
                                           .max_discount = below(3) * 10};
    c->item[0] = (struct bundle_item){.product_id = STR("pa"), .qty = 1 + below(2)};
    c->item[1] = (struct bundle_item){.product_id = STR("pb"), .qty = 1};
    c->item[2] = (struct bundle_item){.product_id = STR("pb"), .qty = 1 + below(3)};
    c->bundle[0] = (struct pricing_bundle){.id = STR("auto"),
                                           .pricing = BUNDLE_PERCENT_OFF,
                                           .percent_off_bps = below(10001),
                                           .item = c->item,
                                           .items = 2,
                                           .auto_apply = true,
                                           .max_per_order = below(4)};
    c->bundle[1] = (struct pricing_bundle){
        .id = STR("bulk"), .price = amount(), .item = c->item + 2, .items = 1, .auto_apply = true};
    c->card[0] = (struct pricing_card){.id = STR("g0"), .code = STR("G0"), .balance = amount()};
    c->card[1] =
        (struct pricing_card){.id = STR("g1"), .code = STR("G1"), .balance = amount(), .expires_ms = INT64_MAX};
    c->in.wallet = (struct pricing_wallet){.balance = amount(), .most = chance(50) ? -1 : amount()};
    c->in.points = (struct pricing_points){.requested = below(500),
                                           .available = 500,
                                           .value = below(100),
                                           .redeem_max_bps = below(10001),
                                           .earn_unit = below(2) * 10000};
    c->method[0] = (struct shipping_method){
        .id = STR("m0"), .base = amount(), .per_kg = below(5000), .free_over = chance(30) ? amount() : -1};
    c->method[1] = (struct shipping_method){.id = STR("m1"), .base = amount(), .max_g = 5000, .free_over = -1};
    c->in.shipping = (struct pricing_shipping){.has_place = chance(80), .method = c->method, .methods = 2};
    c->in.customer.tier_discount_bps = chance(20) ? below(10001) : 0;
    c->in.customer.tier_free_shipping = chance(10);
    if (chance(20)) c->in.rounding_step = 5;
    make_tax(c);
    if (chance(50)) make_rule(c);
    if (c->in.hooks.promotion && c->in.promotions && chance(50)) make_row(c);
    for (size_t i = 0; i < c->in.lines; i++) make_portions(c, i);
}

/* Every figure of a quote as text, lines sorted by id. */
static int by_id(const void *left, const void *right) {
    const struct quote_line *a = *(const struct quote_line *const *)left, *b = *(const struct quote_line *const *)right;
    size_t n = a->id.len < b->id.len ? a->id.len : b->id.len;
    int order = memcmp(a->id.at, b->id.at, n);
    return order ? order : a->id.len < b->id.len ? -1 : a->id.len > b->id.len;
}

static char *print(struct arena *a, const struct quote *q) {
    const struct quote_line **line = arena_zalloc(a, q->lines + 1, sizeof(const struct quote_line *));
    assert_non_null(line);
    for (size_t i = 0; i < q->lines; i++) line[i] = &q->line[i];
    if (q->lines) qsort(line, q->lines, sizeof(const struct quote_line *), by_id);
    char *text =
        arena_printf(a, "total %ld discount %ld merchandise %ld shipping %ld tax %ld due %ld points %ld earn %ld",
                     (long)q->total, (long)q->discount, (long)q->merchandise, (long)q->shipping.net, (long)q->tax_total,
                     (long)q->due, (long)q->points_used, (long)q->earn_points);
    for (size_t i = 0; text && i < q->lines; i++) {
        text = arena_printf(a, "%s\n%.*s x%ld gross %ld net %ld tax %ld", text, STR_FMT(line[i]->id),
                            (long)line[i]->qty, (long)line[i]->gross, (long)line[i]->net, (long)line[i]->tax);
        for (size_t k = 0; text && k < line[i]->portions; k++) {
            const struct quote_portion *p = &line[i]->portion[k];
            text = arena_printf(a, "%s\n  %.*s x%ld net %ld tax %ld", text, STR_FMT(p->warehouse_id), (long)p->qty,
                                (long)p->net, (long)p->tax);
        }
    }
    assert_non_null(text);
    return text;
}

static const struct quote *price(struct arena *a, const struct cart *c, int64_t number) {
    struct error err = {0};
    const struct quote *q = pricing_quote(a, &c->in, &err);
    if (!q) fail_msg("cart %ld: %s", (long)number, err.message);
    return q;
}

static void assert_sound(const struct quote *q) {
    assert_true(q->total >= 0 && q->due >= 0 && q->tax_total >= 0 && q->shipping.net >= 0 && q->merchandise >= 0);
    int64_t net = 0, tax = 0, gross = 0, discount = 0;
    for (size_t i = 0; i < q->lines; i++) {
        const struct quote_line *line = &q->line[i];
        assert_true(line->net >= 0 && line->discount >= 0 && line->discount <= line->gross && line->tax >= 0);
        assert_int_equal(line->net, line->gross - line->discount);
        net += line->net;
        tax += line->tax;
        gross += line->gross;
        discount += line->discount;
    }
    int64_t parcels = 0, shipping = 0, shipping_tax = 0;
    for (size_t g = 0; g < q->groups; g++) {
        parcels += q->group[g].merchandise;
        shipping += q->group[g].net;
        shipping_tax += q->group[g].tax;
    }
    assert_int_equal(parcels, q->merchandise);
    assert_int_equal(shipping, q->shipping.net);
    assert_int_equal(shipping_tax, q->shipping.tax);
    assert_int_equal(net, q->merchandise);
    assert_int_equal(gross, q->subtotal);
    assert_int_equal(discount, q->discount);
    assert_int_equal(tax + q->shipping.tax, q->tax_total);
    assert_int_equal(q->total,
                     gross - discount + q->shipping.net + (q->inclusive ? 0 : q->tax_total) - q->cash_rounding);
    assert_int_equal(q->due, q->total - q->gift_card - q->wallet);
    assert_true(q->wallet + q->gift_card <= q->total);
}

/* Where units leave from changes no price, discount or tax of the goods: without shipping nothing at all. */
static void assert_same_without_portions(struct arena *a, struct cart *c, int64_t n) {
    size_t methods = c->in.shipping.methods;
    c->in.shipping.methods = 0;
    const struct quote *spread = price(a, c, n);
    for (size_t i = 0; i < c->in.lines; i++) c->line[i].portions = 0;
    const struct quote *whole = price(a, c, n);
    assert_int_equal(spread->total, whole->total);
    assert_int_equal(spread->lines, whole->lines);
    for (size_t i = 0; i < whole->lines; i++) {
        assert_int_equal(spread->line[i].net, whole->line[i].net);
        assert_int_equal(spread->line[i].tax, whole->line[i].tax);
    }
    c->in.shipping.methods = methods;
}

#define SHUFFLE(array, n)                                                                                              \
    for (size_t shuffle_i = (n); shuffle_i > 1; shuffle_i--) {                                                         \
        size_t other = (size_t)below((int64_t)shuffle_i);                                                              \
        __typeof__((array)[0]) kept = (array)[shuffle_i - 1];                                                          \
        (array)[shuffle_i - 1] = (array)[other];                                                                       \
        (array)[other] = kept;                                                                                         \
    }

static void random_carts_are_sound_and_do_not_depend_on_order(void **state) {
    (void)state;
    const char *wish = getenv("KASMA_CARTS");
    int64_t carts = 2000, reduced = 0, split = 0, exclusive = 0, taxed = 0;
    if (wish) assert_true(str_int64(str_of(wish), &carts));
    struct arena *a = arena_new(1 << 16);
    assert_non_null(a);
    seed = 20261129;
    static struct cart cart;
    for (int64_t n = 0; n < carts; n++) {
        make_cart(&cart);
        const struct quote *q = price(a, &cart, n);
        assert_sound(q);
        char *first = print(a, q);
        assert_string_equal(first, print(a, price(a, &cart, n)));
        reduced += q->discount > 0;
        split += q->lines > cart.in.lines;
        taxed += q->tax_total > 0;
        for (size_t i = 0; i < q->traces; i++)
            if (str_eq(str_of(q->trace[i].note), STR("not_combinable"))) {
                exclusive++;
                break;
            }
        SHUFFLE(cart.line, cart.in.lines)
        SHUFFLE(cart.promotion, cart.in.promotions)
        SHUFFLE(cart.bundle, cart.in.bundles)
        SHUFFLE(cart.method, cart.in.shipping.methods)
        SHUFFLE(cart.card, cart.in.cards)
        SHUFFLE(cart.rule, cart.in.tax.rules)
        char *again = print(a, price(a, &cart, n));
        if (strcmp(first, again) != 0) fail_msg("cart %ld depends on order:\n%s\n---\n%s", (long)n, first, again);
        assert_same_without_portions(a, &cart, n);
        arena_reset(a);
    }
    print_message("%ld carts: %ld reduced, %ld with added lines, %ld with losers, %ld taxed\n", (long)carts,
                  (long)reduced, (long)split, (long)exclusive, (long)taxed);
    /* The carts must reach what they are meant to test. */
    assert_true(carts < 2000 ||
                (reduced > carts / 2 && split > carts / 10 && exclusive > carts / 50 && taxed > carts / 2));
    arena_free(a);
}

static void whatever_rules_answer_a_cart_is_sound(void **state) {
    (void)state;
    const char *wish = getenv("KASMA_CARTS");
    int64_t carts = 2000, priced = 0, refused = 0, hidden = 0, rounded = 0, capped = 0;
    if (wish) assert_true(str_int64(str_of(wish), &carts));
    struct arena *a = arena_new(1 << 16);
    assert_non_null(a);
    seed = 20261130;
    static struct cart cart;
    for (int64_t n = 0; n < carts; n++) {
        make_cart(&cart);
        make_hooks(&cart);
        const struct quote *q = price(a, &cart, n);
        assert_sound(q);
        assert_true(row_given(q) <= row_most(&cart));
        capped += row_given(q) > 0 && row_given(q) == row_most(&cart);
        for (size_t i = 0; i < q->shipping.offers; i++) assert_true(q->shipping.offer[i].price >= 0);
        hidden += q->shipping.reason != NULL;
        rounded += q->cash_rounding != 0;
        for (size_t i = 0; i < q->traces; i++) {
            priced += q->trace[i].stage == 1 && str_eq(str_of(q->trace[i].note), STR("applied"));
            refused += str_eq(str_of(q->trace[i].note), STR("invalid_result"));
        }
        char *first = print(a, q);
        assert_string_equal(first, print(a, price(a, &cart, n)));
        SHUFFLE(cart.line, cart.in.lines)
        SHUFFLE(cart.promotion, cart.in.promotions)
        SHUFFLE(cart.bundle, cart.in.bundles)
        SHUFFLE(cart.method, cart.in.shipping.methods)
        char *again = print(a, price(a, &cart, n));
        if (strcmp(first, again) != 0) fail_msg("cart %ld depends on order:\n%s\n---\n%s", (long)n, first, again);
        arena_reset(a);
    }
    print_message("%ld carts: %ld priced, %ld answers refused, %ld without shipping, %ld rounded, %ld at their cap\n",
                  (long)carts, (long)priced, (long)refused, (long)hidden, (long)rounded, (long)capped);
    assert_true(carts < 2000 || (priced > carts / 4 && refused > carts / 10 && hidden > 20 && rounded > carts / 10 &&
                                 capped > carts / 50));
    arena_free(a);
}

static void splitting_any_amount_keeps_the_whole(void **state) {
    (void)state;
    struct arena *a = arena_new(0);
    assert_non_null(a);
    seed = 7;
    for (int n = 0; n < 2000; n++) {
        int64_t weight[16], part[16], sum = 0, whole = 0;
        size_t count = (size_t)(1 + below(16));
        for (size_t i = 0; i < count; i++) sum += weight[i] = chance(10) ? 0 : below(chance(50) ? 10 : MONEY_MAX / 16);
        if (sum == 0) continue;
        int64_t split = below(sum + 1);
        assert_true(money_alloc(a, split, weight, NULL, count, part));
        for (size_t i = 0; i < count; i++) {
            assert_true(part[i] >= 0 && part[i] <= weight[i]);
            whole += part[i];
        }
        assert_int_equal(whole, split);
        int64_t q = 1 + below(9999), before = 0;
        for (int64_t k = 1; k <= q; k += 1 + q / 50) {
            int64_t now = money_split(split, q, k);
            assert_true(now >= before);
            before = now;
        }
        assert_int_equal(money_split(split, q, q), split);
        arena_reset(a);
    }
    arena_free(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_carts_are_sound_and_do_not_depend_on_order),
        cmocka_unit_test(whatever_rules_answer_a_cart_is_sound),
        cmocka_unit_test(splitting_any_amount_keeps_the_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
