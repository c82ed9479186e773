// link: commerce
/* The pipeline on the worked examples: each test is one cart whose numbers the specification gives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "commerce/pricing.h"

#define S(text)                                                                                                        \
    { (text), sizeof(text) - 1 }
#define LIST(...)                                                                                                      \
    { (const struct str[]){__VA_ARGS__}, sizeof((const struct str[]){__VA_ARGS__}) / sizeof(struct str) }

static struct arena *arena;

static int open_arena(void **state) {
    (void)state;
    arena = arena_new(0);
    return arena ? 0 : -1;
}

static int close_arena(void **state) {
    (void)state;
    arena_free(arena);
    return 0;
}

static const struct quote *price(const struct pricing_input *in) {
    struct error err = {0};
    const struct quote *q = pricing_quote(arena, in, &err);
    if (!q) fail_msg("quote failed: %s", err.message);
    return q;
}

static const char *note_of(const struct quote *q, const char *rule) {
    const char *note = "";
    for (size_t i = 0; i < q->traces; i++)
        if (str_eq(q->trace[i].rule, str_of(rule))) note = q->trace[i].note;
    return note;
}

static int64_t amount_of(const struct quote *q, const char *id) {
    int64_t sum = 0;
    for (size_t i = 0; i < q->sources; i++)
        if (str_eq(q->source[i].id, str_of(id))) sum += q->source[i].amount;
    return sum;
}

/* The cart of the worked example: phone, three earbuds, and a bundle of case and charger. */
static const struct pricing_line gamer_lines[] = {
    {.id = S("l1"),
     .product_id = S("phone"),
     .category_ids = LIST(S("phones")),
     .qty = 1,
     .price = 25000000,
     .weight_g = 1000,
     .requires_shipping = true},
    {.id = S("l2"), .product_id = S("earbuds"), .qty = 3, .price = 1290000, .weight_g = 100, .requires_shipping = true},
    {.id = S("l3"),
     .product_id = S("case"),
     .bundle_id = S("pack"),
     .bundle_key = S("k"),
     .qty = 1,
     .price = 390000,
     .weight_g = 300,
     .requires_shipping = true},
    {.id = S("l4"),
     .product_id = S("charger"),
     .bundle_id = S("pack"),
     .bundle_key = S("k"),
     .qty = 1,
     .price = 590000,
     .weight_g = 400,
     .requires_shipping = true},
};
static const struct bundle_item pack_items[] = {{.product_id = S("case"), .qty = 1},
                                                {.product_id = S("charger"), .qty = 1}};
static const struct pricing_bundle pack = {
    .id = S("pack"), .name = S("Gamer Pack"), .price = 850000, .item = pack_items, .items = 2};
static const struct promotion phones_off = {.id = S("p1"),
                                            .value_type = VALUE_PERCENT,
                                            .value = 1000,
                                            .level = LEVEL_LINE,
                                            .targets = {TARGET_CATEGORY, LIST(S("phones"))},
                                            .max_discount = 2000000};
static const struct promotion earbuds_free = {.id = S("p2"),
                                              .kind = PROMOTION_B1G1,
                                              .level = LEVEL_LINE,
                                              .targets = {TARGET_PRODUCT, LIST(S("earbuds"))},
                                              .buy_qty = 1,
                                              .get_qty = 1,
                                              .get_bps = 10000};
static const struct pricing_coupon kasma5 = {.id = S("c1"),
                                             .code = S("KASMA5"),
                                             .found = true,
                                             .kind = COUPON_PERCENT,
                                             .value = 500,
                                             .max_discount = 1000000,
                                             .min_order = 500000};
static const struct tax_rule vn10 = {.id = S("vn"), .name = S("VAT"), .country = S("VN"), .ppm = 100000};
static const struct shipping_zone vn_zone = {.id = S("z"), .countries = LIST(S("VN"))};
static const struct shipping_method by_weight = {
    .id = S("m"), .name = S("Standard"), .zone_id = S("z"), .base = 35000, .per_kg = 5000, .free_over = -1, .days = -1};

static struct pricing_input gamer(void) {
    static struct promotion promotions[2];
    promotions[0] = phones_off;
    promotions[1] = earbuds_free;
    return (struct pricing_input){
        .currency = STR("VND"),
        .now_ms = 1795500000000,
        .weekday = 2,
        .hour = 13,
        .line = gamer_lines,
        .lines = 4,
        .bundle = &pack,
        .bundles = 1,
        .promotion = promotions,
        .promotions = 2,
        .tax = {.rule = &vn10, .rules = 1, .home_country = STR("VN")},
        .shipping = {.zone = &vn_zone, .zones = 1, .method = &by_weight, .methods = 1},
        .wallet = {.most = -1},
    };
}

static void with_address(struct pricing_input *in) {
    in->shipping.has_place = true;
    in->shipping.place.country = STR("VN");
    in->tax.place.country = STR("VN");
}

static void assert_nets(const struct quote *q, int64_t a, int64_t b, int64_t c, int64_t d) {
    assert_int_equal(q->lines, 4);
    assert_int_equal(q->line[0].net, a);
    assert_int_equal(q->line[1].net, b);
    assert_int_equal(q->line[2].net, c);
    assert_int_equal(q->line[3].net, d);
}

static void the_worked_example_holds_after_every_stage(void **state) {
    (void)state;
    struct pricing_input in = gamer();
    in.promotions = 0;
    in.bundles = 0;
    const struct quote *q = price(&in);
    assert_nets(q, 25000000, 3870000, 390000, 590000);
    assert_int_equal(q->subtotal, 29850000);
    assert_string_equal(note_of(q, "pack"), "bundle_inactive");
    in.bundles = 1;
    q = price(&in);
    assert_nets(q, 25000000, 3870000, 338265, 511735);
    assert_int_equal(q->merchandise, 29720000);
    in.promotions = 2;
    q = price(&in);
    assert_nets(q, 23000000, 2580000, 338265, 511735);
    assert_int_equal(q->merchandise, 26430000);
    in.coupon = &kasma5;
    in.coupons = 1;
    q = price(&in);
    assert_nets(q, 22129777, 2482384, 325466, 492373);
    assert_int_equal(q->merchandise, 25430000);
    in.points = (struct pricing_points){
        .requested = 300, .available = 500, .value = 1000, .step = 10, .redeem_max_bps = 5000, .earn_unit = 10000};
    in.customer.multiplier_pct = 120;
    with_address(&in);
    const struct pricing_card card = {.id = STR("g"), .code = STR("GC-500"), .balance = 500000};
    in.card = &card;
    in.cards = 1;
    in.wallet = (struct pricing_wallet){.balance = 1000000, .most = -1, .id = STR("w")};
    q = price(&in);
    assert_nets(q, 21868710, 2453099, 321627, 486564);
    assert_int_equal(q->merchandise, 25130000);
    assert_int_equal(q->line[0].tax, 2186871);
    assert_int_equal(q->line[1].tax, 245310);
    assert_int_equal(q->line[2].tax, 32163);
    assert_int_equal(q->line[3].tax, 48656);
    assert_int_equal(q->shipping.net, 45000);
    assert_int_equal(q->shipping.tax, 4500);
    assert_int_equal(q->tax_total, 2517500);
    assert_int_equal(q->discount, 4720000);
    assert_int_equal(q->total, 27692500);
    assert_int_equal(q->gift_card, 500000);
    assert_int_equal(q->wallet, 1000000);
    assert_int_equal(q->due, 26192500);
    assert_int_equal(q->points_cap, 12710);
    assert_int_equal(q->points_used, 300);
    assert_int_equal(q->earn_points, 3015);
    assert_int_equal(amount_of(q, "p1"), 2000000);
    assert_int_equal(amount_of(q, "p2"), 1290000);
    assert_int_equal(amount_of(q, "c1"), 1000000);
    assert_int_equal(amount_of(q, "points"), 300000);
    assert_int_equal(amount_of(q, "pack"), 130000);
}

static void the_cart_summary_of_the_walk_adds_up(void **state) {
    (void)state;
    struct pricing_input in = gamer();
    const struct quote *q = price(&in);
    assert_int_equal(q->subtotal, 29850000);
    assert_int_equal(q->discount, 3420000);
    assert_false(q->shipping.known);
    assert_int_equal(q->tax_total, 2643001);
    assert_int_equal(q->total, 29073001);
}

static void the_simple_checkout_adds_up(void **state) {
    (void)state;
    struct pricing_input in = gamer();
    with_address(&in);
    const struct quote *q = price(&in);
    assert_int_equal(q->subtotal, 29850000);
    assert_int_equal(q->discount, 3420000);
    assert_int_equal(q->shipping.net, 45000);
    assert_int_equal(q->tax_total, 2647501);
    assert_int_equal(q->total, 29122501);
    assert_int_equal(q->due, 29122501);
    in.shipping.has_place = false;
    in.shipping.method_id = STR("m");
    assert_int_equal(price(&in)->total, 29122501);
    in.shipping.method_id = STR("other");
    q = price(&in);
    assert_int_equal(q->shipping.net, 0);
    assert_string_equal(q->shipping.reason, "method_not_available");
}

static void an_exclusive_promotion_wins_only_when_it_is_cheaper(void **state) {
    (void)state;
    struct pricing_input in = gamer();
    with_address(&in);
    in.coupon = &kasma5;
    in.coupons = 1;
    struct promotion promotions[3] = {
        phones_off,
        earbuds_free,
        {.id = S("x"), .value_type = VALUE_PERCENT, .value = 1200, .level = LEVEL_ORDER, .exclusive = true}};
    in.promotion = promotions;
    in.promotions = 3;
    const struct quote *q = price(&in);
    assert_int_equal(q->merchandise, 25430000);
    assert_int_equal(q->rejections, 0);
    assert_string_equal(note_of(q, "x"), "not_better");
    promotions[2].value = 1500;
    q = price(&in);
    assert_int_equal(q->merchandise, 25262000);
    assert_int_equal(q->rejections, 1);
    assert_string_equal(q->rejected[0].reason, "not_combinable");
    assert_string_equal(note_of(q, "x"), "applied");
    assert_string_equal(note_of(q, "p1"), "not_combinable");
    assert_int_equal(amount_of(q, "pack"), 130000);
    /* An exclusive free shipping can win where nothing else applies. */
    promotions[0] = (struct promotion){
        .id = S("free"), .kind = PROMOTION_FREE_SHIPPING, .level = LEVEL_SHIPPING, .exclusive = true};
    in.promotions = 1;
    in.coupons = 0;
    q = price(&in);
    assert_int_equal(q->shipping.net, 0);
    assert_int_equal(amount_of(q, "free"), 45000);
}

static void bundles_that_apply_by_themselves_split_lines(void **state) {
    (void)state;
    const struct pricing_line lines[] = {
        {.id = S("a"), .product_id = S("case"), .qty = 3, .price = 390000},
        {.id = S("b"), .product_id = S("charger"), .qty = 2, .price = 590000},
        {.id = S("c"), .product_id = S("phone"), .qty = 1, .price = 1000},
    };
    struct pricing_bundle bundle = pack;
    bundle.auto_apply = true;
    struct pricing_input in = {
        .currency = STR("VND"), .line = lines, .lines = 3, .bundle = &bundle, .bundles = 1, .wallet = {.most = -1}};
    const struct quote *q = price(&in);
    assert_int_equal(q->lines, 4);
    assert_true(str_eq(q->line[0].id, STR("a")));
    assert_int_equal(q->line[0].qty, 1);
    assert_int_equal(q->line[0].net, 390000);
    assert_true(str_eq(q->line[1].id, STR("a~pack")));
    assert_int_equal(q->line[1].qty, 2);
    assert_true(str_eq(q->line[2].id, STR("b")));
    assert_true(q->line[2].in_bundle);
    assert_int_equal(q->discount, 260000);
    assert_int_equal(q->line[1].net + q->line[2].net, 1700000);
    bundle.max_per_order = 1;
    q = price(&in);
    assert_int_equal(q->discount, 130000);
    assert_int_equal(q->lines, 5);
    /* The larger saving takes the units first, whatever the order of the bundles. */
    const struct bundle_item phone_case[] = {{.product_id = S("case"), .qty = 1}, {.product_id = S("phone"), .qty = 1}};
    struct pricing_bundle both[] = {
        pack, {.id = S("better"), .price = 1, .item = phone_case, .items = 2, .auto_apply = true}};
    both[0].auto_apply = true;
    in.bundle = both;
    in.bundles = 2;
    q = price(&in);
    assert_int_equal(amount_of(q, "better"), 390999);
    assert_int_equal(amount_of(q, "pack"), 260000);
}

static void a_bundle_dearer_than_its_parts_never_surcharges(void **state) {
    (void)state;
    struct pricing_input in = gamer();
    struct pricing_bundle dear = pack;
    dear.price = 2000000;
    in.bundle = &dear;
    in.promotions = 0;
    assert_int_equal(price(&in)->merchandise, 29850000);
}

static void buy_one_get_one_rewards_the_cheapest_units(void **state) {
    (void)state;
    const struct pricing_line pool[] = {
        {.id = S("a"), .product_id = S("a"), .qty = 1, .price = 100},
        {.id = S("b"), .product_id = S("b"), .qty = 1, .price = 90},
        {.id = S("c"), .product_id = S("c"), .qty = 1, .price = 20},
        {.id = S("d"), .product_id = S("d"), .qty = 1, .price = 10},
    };
    struct promotion p = {.id = S("p"),
                          .kind = PROMOTION_B1G1,
                          .level = LEVEL_LINE,
                          .buy_qty = 1,
                          .get_qty = 1,
                          .get_bps = 10000,
                          .pool = true};
    struct pricing_input in = {
        .currency = STR("USD"), .line = pool, .lines = 4, .promotion = &p, .promotions = 1, .wallet = {.most = -1}};
    const struct quote *q = price(&in);
    assert_nets(q, 100, 90, 0, 0);
    p.level = LEVEL_ORDER; /* it is a line promotion whatever was stored */
    assert_nets(price(&in), 100, 90, 0, 0);
    p.pool = false;
    q = price(&in);
    assert_int_equal(q->discount, 0);
    p.pool = true;
    p.get_bps = 5000;
    assert_nets(price(&in), 100, 90, 10, 5);
}

static void the_line_order_does_not_move_the_odd_unit(void **state) {
    (void)state;
    const struct tax_rule rules[] = {{.id = S("r"), .ppm = 100000, .tax_class = S("taxed")}};
    struct promotion p = {.id = S("p"), .value_type = VALUE_FIXED, .value = 1, .level = LEVEL_ORDER};
    struct pricing_line lines[2];
    struct pricing_input in = {.currency = STR("JPY"),
                               .line = lines,
                               .lines = 2,
                               .promotion = &p,
                               .promotions = 1,
                               .tax = {.rule = rules, .rules = 1},
                               .wallet = {.most = -1}};
    for (int taxed_first = 0; taxed_first < 2; taxed_first++) {
        for (int swapped = 0; swapped < 2; swapped++) {
            lines[swapped] = (struct pricing_line){.id = STR("l1"), .product_id = STR("a"), .qty = 1, .price = 1005};
            lines[!swapped] = (struct pricing_line){.id = STR("l2"), .product_id = STR("b"), .qty = 1, .price = 1005};
            lines[taxed_first ? swapped : !swapped].tax_class = STR("taxed");
            assert_int_equal(price(&in)->total, taxed_first ? 2109 : 2110);
        }
    }
}

static void one_line_promotion_wins_each_line_and_stackable_ones_follow(void **state) {
    (void)state;
    const struct pricing_line lines[] = {{.id = S("a"), .product_id = S("a"), .qty = 1, .price = 1000},
                                         {.id = S("b"), .product_id = S("b"), .qty = 1, .price = 1000}};
    struct promotion p[] = {
        {.id = S("all10"), .value_type = VALUE_PERCENT, .value = 1000, .level = LEVEL_LINE},
        {.id = S("a20"),
         .value_type = VALUE_PERCENT,
         .value = 2000,
         .level = LEVEL_LINE,
         .targets = {TARGET_PRODUCT, LIST(S("a"))}},
        {.id = S("stack"), .value_type = VALUE_PERCENT, .value = 1000, .level = LEVEL_LINE, .stackable = true},
        {.id = S("order"), .value_type = VALUE_FIXED, .value = 100, .level = LEVEL_ORDER},
        {.id = S("order2"), .value_type = VALUE_FIXED, .value = 90, .level = LEVEL_ORDER},
    };
    struct pricing_input in = {
        .currency = STR("USD"), .line = lines, .lines = 2, .promotion = p, .promotions = 5, .wallet = {.most = -1}};
    const struct quote *q = price(&in);
    assert_int_equal(amount_of(q, "a20"), 200);
    assert_int_equal(amount_of(q, "all10"), 100);
    assert_int_equal(amount_of(q, "stack"), 80 + 90);
    assert_int_equal(amount_of(q, "order"), 100);
    assert_string_equal(note_of(q, "order2"), "beaten");
    /* Priority mode: the higher priority takes the line though it saves less. */
    in.priority_mode = true;
    p[0].priority = 5;
    q = price(&in);
    assert_int_equal(amount_of(q, "a20"), 0);
    assert_int_equal(amount_of(q, "all10"), 200);
    /* One of an exclusion group for the whole order: the line class shuts it for the order class. */
    p[0].exclusion_group = p[3].exclusion_group = STR("g");
    q = price(&in);
    assert_string_equal(note_of(q, "order"), "exclusion_group");
    assert_int_equal(amount_of(q, "order2"), 90);
    /* stopAfter keeps the stackable one off the lines it reduced. */
    p[0].stop_after = true;
    p[0].targets = (struct targets){TARGET_PRODUCT, LIST(S("a"))};
    q = price(&in);
    assert_int_equal(amount_of(q, "stack"), 100);
}

static void caps_and_limits_hold(void **state) {
    (void)state;
    const struct pricing_line lines[] = {{.id = S("a"), .product_id = S("a"), .qty = 3, .price = 1000},
                                         {.id = S("b"), .product_id = S("b"), .qty = 2, .price = 500}};
    struct promotion p = {.id = S("p"),
                          .kind = PROMOTION_FLASH_SALE,
                          .value_type = VALUE_PRICE,
                          .value = 400,
                          .level = LEVEL_LINE,
                          .max_units = 10,
                          .units_used = 7};
    struct pricing_input in = {.currency = STR("USD"),
                               .line = lines,
                               .lines = 2,
                               .promotion = &p,
                               .promotions = 1,
                               .weekday = 1,
                               .wallet = {.most = -1}};
    const struct quote *q = price(&in);
    assert_int_equal(q->discount, 2 * 100 + 600); /* both cheap units and one dear one */
    assert_int_equal(q->source[0].units, 3);
    p.budget = 1000;
    p.budget_used = 500;
    assert_int_equal(price(&in)->discount, 500);
    p.budget_used = 1000;
    assert_string_equal(note_of(price(&in), "p"), "budget_exhausted");
    p = (struct promotion){.id = STR("p"), .value_type = VALUE_FIXED, .value = 700, .level = LEVEL_LINE};
    assert_int_equal(price(&in)->discount, 3 * 700 + 2 * 500);
    p.min_order = 4001;
    assert_string_equal(note_of(price(&in), "p"), "min_order_not_met");
    p.min_order = 4000;
    p.currency = STR("EUR");
    assert_string_equal(note_of(price(&in), "p"), "currency_mismatch");
    p = (struct promotion){.id = STR("p"),
                           .value_type = VALUE_PERCENT,
                           .value = 1000,
                           .level = LEVEL_ORDER,
                           .currency = STR("EUR"),
                           .hour_from = 22,
                           .hour_to = 2};
    in.hour = 1;
    assert_int_equal(price(&in)->discount, 400);
    in.hour = 2;
    assert_string_equal(note_of(price(&in), "p"), "wrong_hour");
    p.hour_from = p.hour_to = 0;
    p.weekdays = 1u << 6;
    assert_string_equal(note_of(price(&in), "p"), "wrong_day");
    p.weekdays = 0;
    p.starts_ms = 10;
    p.ends_ms = 20;
    in.now_ms = 20;
    assert_string_equal(note_of(price(&in), "p"), "expired");
    in.now_ms = 9;
    assert_string_equal(note_of(price(&in), "p"), "not_started");
}

static void coupons_are_judged_and_applied_in_their_order(void **state) {
    (void)state;
    const struct pricing_line line = {.id = S("a"), .product_id = S("a"), .qty = 1, .price = 10000};
    struct pricing_coupon c[] = {
        {.id = S("c1"), .code = S("FIVE"), .found = true, .kind = COUPON_FIXED, .value = 500, .stackable = true},
        {.id = S("c2"), .code = S("TEN"), .found = true, .kind = COUPON_PERCENT, .value = 1000, .stackable = true},
        {.code = S("NOPE")},
        {.id = S("c3"), .code = S("ALONE"), .found = true, .kind = COUPON_FIXED, .value = 1},
    };
    struct pricing_input in = {.currency = STR("USD"),
                               .line = &line,
                               .lines = 1,
                               .coupon = c,
                               .coupons = 4,
                               .max_coupons = 5,
                               .now_ms = 100,
                               .wallet = {.most = -1}};
    const struct quote *q = price(&in);
    assert_int_equal(q->merchandise, 8500); /* 100.00, then 90.00, then 85.00 */
    assert_int_equal(q->rejections, 2);
    assert_string_equal(q->rejected[0].reason, "not_found");
    assert_string_equal(q->rejected[1].reason, "not_combinable");
    in.max_coupons = 1;
    assert_int_equal(price(&in)->merchandise, 9500);
    in.coupons = 1;
    c[0].ends_ms = 100;
    assert_string_equal(price(&in)->rejected[0].reason, "expired");
    c[0].ends_ms = 0;
    c[0].min_order = 10001;
    assert_string_equal(price(&in)->rejected[0].reason, "min_order_not_met");
    c[0].currency = STR("EUR");
    assert_string_equal(price(&in)->rejected[0].reason, "currency_mismatch");
    c[0] = (struct pricing_coupon){
        .id = STR("c"), .code = STR("C"), .found = true, .value = 500, .kind = COUPON_FIXED, .first_order_only = true};
    assert_string_equal(price(&in)->rejected[0].reason, "first_order_only");
    in.customer.first_order = true;
    assert_int_equal(price(&in)->merchandise, 9500);
    c[0].targets = (struct targets){TARGET_TAG, LIST(S("t"))};
    assert_string_equal(price(&in)->rejected[0].reason, "no_eligible_items");
}

static void points_are_capped_and_checked(void **state) {
    (void)state;
    struct pricing_input in = gamer();
    in.points =
        (struct pricing_points){.requested = 305, .available = 500, .value = 1000, .step = 10, .redeem_max_bps = 5000};
    assert_string_equal(price(&in)->points_reason, "points_step");
    in.points.requested = 510;
    assert_string_equal(price(&in)->points_reason, "points_insufficient");
    in.points.currency = STR("USD");
    assert_string_equal(price(&in)->points_reason, "currency_mismatch");
    in.points.currency = (struct str){0};
    in.points.available = in.points.requested = 100000;
    const struct quote *q = price(&in);
    assert_int_equal(q->points_used, 13210); /* half of 26,430,000, down to the step */
    assert_null(q->points_reason);
}

static void inclusive_prices_hold_the_tax_and_exempt_buyers_pay_the_net(void **state) {
    (void)state;
    const struct pricing_line line = {.id = S("a"), .product_id = S("a"), .qty = 2, .price = 110000};
    const struct tax_rule rules[] = {{.id = S("vn"), .country = S("VN"), .ppm = 100000},
                                     {.id = S("fr"), .country = S("FR"), .ppm = 200000}};
    struct pricing_input in = {.currency = STR("VND"),
                               .line = &line,
                               .lines = 1,
                               .tax = {.inclusive = true, .rule = rules, .rules = 2, .home_country = STR("VN")},
                               .wallet = {.most = -1}};
    const struct quote *q = price(&in);
    assert_int_equal(q->total, 220000);
    assert_int_equal(q->tax_total, 20000);
    in.tax.place.country = STR("FR");
    q = price(&in);
    assert_int_equal(q->total, 220000); /* keep_gross: the shelf price */
    assert_int_equal(q->tax_total, 36667);
    in.tax.keep_net = true;
    q = price(&in);
    assert_int_equal(q->total, 240000);
    assert_int_equal(q->tax_total, 40000);
    in.tax.exempt = TAX_EXEMPT;
    q = price(&in);
    assert_int_equal(q->subtotal, 200000);
    assert_int_equal(q->total, 200000);
    assert_int_equal(q->tax_total, 0);
}

static void cash_rounding_is_an_adjustment_of_its_own(void **state) {
    (void)state;
    const struct pricing_line line = {.id = S("a"), .product_id = S("a"), .qty = 1, .price = 1002};
    struct pricing_input in = {
        .currency = STR("CHF"), .line = &line, .lines = 1, .rounding_step = 5, .wallet = {.most = -1}};
    const struct quote *q = price(&in);
    assert_int_equal(q->total, 1000);
    assert_int_equal(q->cash_rounding, 2);
    assert_int_equal(q->discount, 0);
    assert_int_equal(amount_of(q, "cash_rounding"), 2);
}

static void shipping_takes_the_cheapest_that_fits(void **state) {
    (void)state;
    struct pricing_line line = {
        .id = S("a"), .product_id = S("a"), .qty = 1, .price = 1000000, .weight_g = 1200, .requires_shipping = true};
    const struct shipping_band bands[] = {{.from_g = 0, .to_g = 1000, .price = 1}};
    struct shipping_method m[] = {
        {.id = S("step"), .zone_id = S("z"), .base = 35000, .per_kg = 5000, .step_g = 500, .free_over = -1, .days = -1},
        {.id = S("light"), .zone_id = S("z"), .max_g = 1000, .free_over = -1, .days = -1},
        {.id = S("banded"), .zone_id = S("z"), .base = 42500, .free_over = -1, .days = 2, .band = bands, .bands = 1},
    };
    const struct shipping_zone zones[] = {{.id = S("world")},
                                          {.id = S("z"), .countries = LIST(S("VN")), .provinces = LIST(S("Hà Nội"))}};
    struct pricing_input in = {.currency = STR("VND"),
                               .line = &line,
                               .lines = 1,
                               .shipping = {.zone = zones,
                                            .zones = 2,
                                            .method = m,
                                            .methods = 3,
                                            .has_place = true,
                                            .place = {.country = STR("VN"), .city = STR("ha noi")}},
                               .wallet = {.most = -1}};
    const struct quote *q = price(&in);
    assert_int_equal(q->shipping.net, 42500);                   /* 1.2 kg by started half kilos */
    assert_true(str_eq(q->shipping.method->id, STR("banded"))); /* the same price in fewer days */
    m[0].free_over = 1000000;
    assert_int_equal(price(&in)->shipping.net, 0);
    in.shipping.place.city = STR("Hue");
    q = price(&in);
    assert_null(q->shipping.method); /* the rest of the world has no method */
    line.requires_shipping = false;
    assert_null(price(&in)->shipping.method);
}

static void weighted_shipping_tax_follows_the_lines(void **state) {
    (void)state;
    struct pricing_line lines[] = {
        {.id = S("a"),
         .product_id = S("a"),
         .qty = 1,
         .price = 30000,
         .requires_shipping = true,
         .weight_g = 1,
         .tax_class = S("food")},
        {.id = S("b"), .product_id = S("b"), .qty = 1, .price = 10000, .requires_shipping = true, .weight_g = 1}};
    const struct tax_rule rules[] = {{.id = S("f"), .tax_class = S("food"), .ppm = 50000},
                                     {.id = S("s"), .ppm = 200000}};
    const struct shipping_method m = {.id = S("m"), .base = 4000, .free_over = -1};
    struct pricing_input in = {.currency = STR("USD"),
                               .line = lines,
                               .lines = 2,
                               .shipping = {.method = &m, .methods = 1, .method_id = STR("m")},
                               .tax = {.rule = rules, .rules = 2, .shipping = SHIPPING_TAX_WEIGHTED},
                               .wallet = {.most = -1}};
    assert_int_equal(price(&in)->shipping.tax, 150 + 200);
    in.tax.shipping = SHIPPING_TAX_BY_CLASS;
    assert_int_equal(price(&in)->shipping.tax, 800);
    in.tax.shipping = SHIPPING_TAX_NONE;
    assert_int_equal(price(&in)->shipping.tax, 0);
}

static void prices_come_from_the_best_row_converted_once(void **state) {
    (void)state;
    const struct price_row rows[] = {
        {.currency = S("USD"), .min_qty = 1, .price = 1000},
        {.currency = S("USD"), .min_qty = 10, .price = 900},
        {.currency = S("USD"), .min_qty = 1, .price = 950, .customer_group = S("vip")},
        {.currency = S("EUR"), .min_qty = 1, .price = 1},
    };
    struct pricing_line line = {.id = S("a"),
                                .product_id = S("a"),
                                .qty = 1,
                                .price = 25450000,
                                .price_currency = S("VND"),
                                .row = rows,
                                .rows = 4};
    struct pricing_rate rate = {.from = S("VND")};
    assert_true(ratio_make(100, 25450, &rate.rate));
    const struct str vip[] = {S("vip")};
    struct pricing_input in = {
        .currency = STR("USD"), .line = &line, .lines = 1, .rate = &rate, .rates = 1, .wallet = {.most = -1}};
    assert_int_equal(price(&in)->subtotal, 1000);
    line.qty = 10;
    assert_int_equal(price(&in)->subtotal, 9000);
    in.customer.groups = (struct str_list){vip, 1};
    assert_int_equal(price(&in)->subtotal, 9500);
    line.rows = 0;
    assert_int_equal(price(&in)->subtotal, 1000000);
    line.sale_price = 25450;
    line.purchase_type = STR("subscription");
    line.subscriber_bps = 1000;
    assert_int_equal(price(&in)->subtotal, 900);
    in.rates = 0;
    struct error err = {0};
    assert_null(pricing_quote(arena, &in, &err));
    assert_int_equal(err.kind, ERR_INVALID);
}

/* Rules, as the sandbox would answer them. */
struct script {
    struct rule_result result;
    int64_t seen_net;
};

static bool answer(void *data, const struct pricing_view *view, struct arena *a, const struct rule_result **results,
                   size_t *n, struct error *err) {
    (void)a;
    (void)err;
    struct script *script = data;
    script->seen_net = view->net;
    *results = &script->result;
    *n = 1;
    return true;
}

static void script_operations_count_all_or_not_at_all(void **state) {
    (void)state;
    struct pricing_input in = gamer();
    in.promotions = 0;
    with_address(&in);
    struct operation ops[] = {
        {.kind = OP_LINE_PERCENT, .line_id = S("l2"), .bps = 5000, .units = 1},
        {.kind = OP_ORDER_AMOUNT, .amount = 100000, .exclude_line_ids = LIST(S("l1"))},
        {.kind = OP_SHIPPING_PERCENT, .bps = 5000},
        {.kind = OP_GIFT_LINE, .product_id = S("cable"), .qty = 1},
    };
    struct script script = {
        .result = {.rule_id = STR("r"), .name = STR("Rule"), .version = 7, .operation = ops, .operations = 4}};
    in.hooks = (struct pricing_hooks){.data = &script, .promotion = answer};
    const struct quote *q = price(&in);
    assert_int_equal(script.seen_net, 29720000);
    assert_int_equal(q->line[1].discount, 645000 + 79141);
    assert_int_equal(amount_of(q, "r"), 645000 + 100000 + 22500);
    assert_int_equal(q->line[0].discount, 0);
    assert_int_equal(q->shipping.net, 22500);
    assert_int_equal(q->wants, 1);
    const struct pricing_line cable = {.product_id = S("cable"), .price = 50000, .stock = 1};
    in.gift = &cable;
    in.gifts = 1;
    q = price(&in);
    assert_int_equal(q->wants, 0);
    assert_int_equal(q->lines, 5);
    assert_true(q->line[4].is_gift);
    assert_int_equal(q->line[4].net, 0);
    assert_int_equal(q->subtotal, 29850000 + 50000);
    ops[0].line_id = STR("nowhere");
    q = price(&in);
    assert_int_equal(amount_of(q, "r"), 0);
    assert_string_equal(note_of(q, "r"), "invalid_result");
    ops[0].line_id = STR("l2");
    ops[0].bps = 10001;
    assert_int_equal(amount_of(price(&in), "r"), 0);
    ops[0] = (struct operation){.kind = OP_LINE_AMOUNT, .line_id = STR("l2"), .amount = MONEY_MAX};
    q = price(&in); /* too large is clamped to the line */
    assert_int_equal(q->line[1].net, 0);
}

static bool resolve(void *data, const struct pricing_view *view, struct arena *a, const struct tax_answer **answers,
                    size_t *n, bool *answered, struct error *err) {
    (void)a;
    (void)err;
    assert_non_null(view->shipping);
    assert_int_equal(view->line[0].rates, 1);
    *answers = data;
    *n = 1;
    *answered = true;
    return true;
}

static void a_tax_rule_overrides_the_lines_it_names(void **state) {
    (void)state;
    struct pricing_input in = gamer();
    in.promotions = 0;
    const struct tax_answer answers = {.line_id = STR("l1"), .rate = {.name = STR("Luxury"), .ppm = 200000}};
    in.hooks = (struct pricing_hooks){.data = (void *)&answers, .tax_resolve = resolve};
    const struct quote *q = price(&in);
    assert_int_equal(q->line[0].tax, 5000000);
    assert_int_equal(q->line[1].tax, 387000);
}

static void broken_input_is_an_error_and_never_a_crash(void **state) {
    (void)state;
    struct error err = {0};
    struct pricing_line lines[2] = {{.id = S("a"), .qty = 1, .price = MONEY_MAX}, {.id = S("b"), .qty = 1, .price = 1}};
    struct pricing_input in = {.currency = STR("VND"), .line = lines, .lines = 2, .wallet = {.most = -1}};
    assert_null(pricing_quote(arena, &in, &err));
    assert_int_equal(err.kind, ERR_LIMIT);
    lines[1].id = STR("a");
    assert_null(pricing_quote(arena, &in, &err));
    assert_int_equal(err.kind, ERR_INVALID);
    in.lines = 1;
    lines[0].qty = 0;
    assert_null(pricing_quote(arena, &in, &err));
    in.lines = PRICING_LINES_MAX + 1;
    assert_null(pricing_quote(arena, &in, &err));
    in.currency = STR("XXX");
    assert_null(pricing_quote(arena, &in, &err));
    in = (struct pricing_input){.currency = STR("VND"), .wallet = {.most = -1}};
    assert_int_equal(price(&in)->total, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_worked_example_holds_after_every_stage),
        cmocka_unit_test(the_cart_summary_of_the_walk_adds_up),
        cmocka_unit_test(the_simple_checkout_adds_up),
        cmocka_unit_test(an_exclusive_promotion_wins_only_when_it_is_cheaper),
        cmocka_unit_test(bundles_that_apply_by_themselves_split_lines),
        cmocka_unit_test(a_bundle_dearer_than_its_parts_never_surcharges),
        cmocka_unit_test(buy_one_get_one_rewards_the_cheapest_units),
        cmocka_unit_test(the_line_order_does_not_move_the_odd_unit),
        cmocka_unit_test(one_line_promotion_wins_each_line_and_stackable_ones_follow),
        cmocka_unit_test(caps_and_limits_hold),
        cmocka_unit_test(coupons_are_judged_and_applied_in_their_order),
        cmocka_unit_test(points_are_capped_and_checked),
        cmocka_unit_test(inclusive_prices_hold_the_tax_and_exempt_buyers_pay_the_net),
        cmocka_unit_test(cash_rounding_is_an_adjustment_of_its_own),
        cmocka_unit_test(shipping_takes_the_cheapest_that_fits),
        cmocka_unit_test(weighted_shipping_tax_follows_the_lines),
        cmocka_unit_test(prices_come_from_the_best_row_converted_once),
        cmocka_unit_test(script_operations_count_all_or_not_at_all),
        cmocka_unit_test(a_tax_rule_overrides_the_lines_it_names),
        cmocka_unit_test(broken_input_is_an_error_and_never_a_crash),
    };
    return cmocka_run_group_tests(tests, open_arena, close_arena);
}
