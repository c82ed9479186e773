// link: commerce
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "commerce/tax.h"

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

static const struct tax_rule worked[] = {
    {.id = {"r0", 2}, .ppm = 50000},
    {.id = {"r1", 2}, .country = {"VN", 2}, .ppm = 100000},
    {.id = {"r2", 2}, .country = {"VN", 2}, .region = {"Hanoi", 5}, .ppm = 80000},
    {.id = {"r3", 2}, .country = {"VN", 2}, .region = {"Hanoi", 5}, .zip = {"10000", 5}, .ppm = 0},
    {.id = {"r4", 2}, .country = {"VN", 2}, .zip = {"70*", 3}, .ppm = 90000},
    {.id = {"r5", 2}, .country = {"VN", 2}, .tax_class = {"food", 4}, .ppm = 50000},
    {.id = {"r6", 2}, .country = {"US", 2}, .region = {"CA", 2}, .ppm = 72500, .stack_group = {"state", 5}},
    {.id = {"r7", 2},
     .country = {"US", 2},
     .region = {"CA", 2},
     .zip = {"90001-90899", 11},
     .ppm = 22500,
     .stack_group = {"county", 6}},
};
#define WORKED (sizeof worked / sizeof *worked)

static void matching_follows_the_worked_table(void **state) {
    (void)state;
    static const struct {
        const char *country, *region, *zip, *class, *winners;
        int64_t ppm;
    } rows[] = {
        {"VN", "", "", "", "r1", 100000},         {"VN", "Hanoi", "", "", "r2", 80000},
        {"vn", " hÀnoi ", "", "", "r2", 80000},   {"VN", "Da Nang", "", "", "r1", 100000},
        {"VN", "Hanoi", "10000", "", "r3", 0},    {"VN", "Da Nang", "70123", "", "r4", 90000},
        {"VN", "Hanoi", "", "food", "r5", 50000}, {"US", "CA", "90012", "", "r7+r6", 95000},
        {"US", "NY", "", "", "r0", 50000},        {"", "", "", "", "r0", 50000},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct tax_place place = {str_of(rows[i].country), str_of(rows[i].region), str_of(rows[i].zip)};
        struct tax_rate rates[TAX_RATES_MAX];
        size_t n;
        struct error err;
        assert_true(tax_match(arena, worked, WORKED, &place, str_of(rows[i].class), 1, rates, &n, &err));
        char names[64] = "";
        size_t at = 0;
        for (size_t k = 0; k < n; k++) {
            if (k) names[at++] = '+';
            memcpy(names + at, rates[k].id.at, rates[k].id.len);
            at += rates[k].id.len;
        }
        assert_string_equal(names, rows[i].winners);
        assert_int_equal(tax_effective_ppm(rates, n), rows[i].ppm);
    }
    struct tax_place nowhere = {STR("FR"), {0}, {0}};
    struct tax_rate rates[TAX_RATES_MAX];
    size_t n = 9;
    struct error err;
    assert_true(tax_match(arena, worked + 1, WORKED - 1, &nowhere, (struct str){0}, 1, rates, &n, &err));
    assert_int_equal(n, 0);
}

static void rules_hold_within_their_half_open_window_and_newest_wins(void **state) {
    (void)state;
    const struct tax_rule rules[] = {
        {.id = STR("old"), .country = STR("VN"), .ppm = 100000, .valid_from = 100},
        {.id = STR("new"), .country = STR("VN"), .ppm = 80000, .valid_from = 200, .valid_to = 300},
        {.id = STR("off"), .country = STR("VN"), .ppm = 1, .valid_from = 250, .inactive = true},
    };
    static const struct {
        int64_t at, ppm;
    } cases[] = {{99, 0}, {100, 100000}, {199, 100000}, {200, 80000}, {299, 80000}, {300, 100000}};
    struct tax_place place = {.country = STR("VN")};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tax_rate rates[TAX_RATES_MAX];
        size_t n;
        struct error err;
        assert_true(tax_match(arena, rules, 3, &place, (struct str){0}, cases[i].at, rates, &n, &err));
        assert_int_equal(tax_effective_ppm(rates, n), cases[i].ppm);
    }
}

static int64_t one(int64_t base, const struct tax_rate *rate, size_t n, bool inclusive, enum rounding mode,
                   int64_t *parts) {
    struct tax_item item = {.base = base, .qty = 1, .rate = rate, .rates = n};
    struct error err;
    assert_true(tax_compute(arena, &item, 1, inclusive, mode, TAX_PER_LINE, &err));
    for (size_t k = 0; parts && k < n; k++) parts[k] = item.parts[k];
    return item.tax;
}

static void formulas_give_the_worked_amounts(void **state) {
    (void)state;
    int64_t parts[2];
    const struct tax_rate vn[] = {{.id = STR("vn"), .ppm = 100000}};
    assert_int_equal(one(1000, vn, 1, false, ROUND_HALF_UP, NULL), 100);
    assert_int_equal(one(1100, vn, 1, true, ROUND_HALF_UP, NULL), 100);
    assert_int_equal(one(110000, vn, 1, true, ROUND_HALF_UP, NULL), 10000);
    const struct tax_rate sales[] = {{.id = STR("s"), .ppm = 82500}};
    assert_int_equal(one(1999, sales, 1, true, ROUND_HALF_UP, NULL), 152);
    const struct tax_rate ca[] = {{.id = STR("a"), .ppm = 72500}, {.id = STR("b"), .ppm = 22500}};
    assert_int_equal(one(3998, ca, 2, false, ROUND_HALF_UP, parts), 380);
    assert_int_equal(parts[0], 290);
    assert_int_equal(parts[1], 90);
    const struct tax_rate compound[] = {{.id = STR("gst"), .ppm = 50000},
                                        {.id = STR("qst"), .ppm = 95000, .calc_order = 1, .compound = true}};
    assert_int_equal(one(10000, compound, 2, false, ROUND_HALF_UP, parts), 1498);
    assert_int_equal(parts[0], 500);
    assert_int_equal(parts[1], 998);
    assert_int_equal(one(11498, compound, 2, true, ROUND_HALF_UP, parts), 1498);
    assert_int_equal(parts[0], 500);
    assert_int_equal(parts[1], 998);
    assert_int_equal(tax_effective_ppm(compound, 2), 149750);
}

static void rounding_modes_apply_to_tax(void **state) {
    (void)state;
    static const int64_t expected[] = {13, 12, 12, 13, 12};
    const struct tax_rate rate[] = {{.id = STR("r"), .ppm = 100000}};
    for (int mode = ROUND_HALF_UP; mode <= ROUND_HALF_EVEN; mode++)
        assert_int_equal(one(125, rate, 1, false, (enum rounding)mode, NULL), expected[mode]);
}

static void rounding_levels_differ_as_worked(void **state) {
    (void)state;
    const struct tax_rate rate[] = {{.id = STR("ca"), .ppm = 72500, .jurisdiction = STR("US-CA")}};
    struct tax_item items[3];
    struct error err;
    for (uint32_t i = 0; i < 3; i++)
        items[i] = (struct tax_item){.base = 1010, .qty = 1, .rate = rate, .rates = 1, .rank = i};
    assert_true(tax_compute(arena, items, 3, false, ROUND_HALF_UP, TAX_PER_LINE, &err));
    assert_int_equal(items[0].tax + items[1].tax + items[2].tax, 219);
    assert_true(tax_compute(arena, items, 3, false, ROUND_HALF_UP, TAX_PER_ORDER, &err));
    assert_int_equal(items[0].tax, 74);
    assert_int_equal(items[1].tax, 73);
    assert_int_equal(items[2].tax, 73);
    items[0].rank = 2;
    items[2].rank = 0;
    assert_true(tax_compute(arena, items, 3, false, ROUND_HALF_UP, TAX_PER_ORDER, &err));
    assert_int_equal(items[0].tax, 73);
    assert_int_equal(items[2].tax, 74);
    /* Three units of 10.10 each round by themselves, the line of 30.30 does not. */
    struct tax_item line = {.base = 3030, .qty = 3, .rate = rate, .rates = 1};
    assert_true(tax_compute(arena, &line, 1, false, ROUND_HALF_UP, TAX_PER_UNIT, &err));
    assert_int_equal(line.tax, 219);
    assert_true(tax_compute(arena, &line, 1, false, ROUND_HALF_UP, TAX_PER_LINE, &err));
    assert_int_equal(line.tax, 220);
}

static void inclusive_order_level_is_exact_at_the_half(void **state) {
    (void)state;
    /* 20 percent inside 1 is exactly 1/6; three of them are one half, which rounds up. */
    const struct tax_rate rate[] = {{.id = STR("r"), .ppm = 200000, .jurisdiction = STR("X")}};
    struct tax_item items[3];
    struct error err;
    for (uint32_t i = 0; i < 3; i++)
        items[i] = (struct tax_item){.base = 1, .qty = 1, .rate = rate, .rates = 1, .rank = i};
    assert_true(tax_compute(arena, items, 3, true, ROUND_HALF_UP, TAX_PER_ORDER, &err));
    assert_int_equal(items[0].tax + items[1].tax + items[2].tax, 1);
    assert_true(tax_compute(arena, items, 3, true, ROUND_HALF_DOWN, TAX_PER_ORDER, &err));
    assert_int_equal(items[0].tax + items[1].tax + items[2].tax, 0);
}

static void impossible_taxes_are_errors(void **state) {
    (void)state;
    struct error err = {0};
    const struct tax_rate big[] = {{.id = STR("r"), .ppm = 1000000}, {.id = STR("s"), .ppm = 1000000}};
    struct tax_item item = {.base = MONEY_MAX, .qty = 1, .rate = big, .rates = 2};
    assert_false(tax_compute(arena, &item, 1, false, ROUND_HALF_UP, TAX_PER_LINE, &err));
    assert_int_equal(err.kind, ERR_LIMIT);
    item = (struct tax_item){.base = -1, .qty = 1};
    assert_false(tax_compute(arena, &item, 1, false, ROUND_HALF_UP, TAX_PER_LINE, &err));
    assert_int_equal(err.kind, ERR_INVALID);
}

static void inclusive_taxes_never_exceed_what_holds_them(void **state) {
    (void)state;
    const struct tax_rate rates[] = {{.ppm = 72500, .jurisdiction = STR("state")},
                                     {.ppm = 22500, .jurisdiction = STR("county"), .calc_order = 1}};
    struct tax_item items[] = {{.base = 0, .qty = 1, .rate = rates, .rates = 2, .rank = 1},
                               {.base = 1, .qty = 1, .rate = rates, .rates = 2, .rank = 2}};
    struct error err = {0};
    assert_true(tax_compute(arena, items, 2, true, ROUND_CEIL, TAX_PER_ORDER, &err));
    assert_int_equal(items[0].tax + items[1].tax, 1);
    assert_int_equal(items[1].parts[0], 1);
    assert_int_equal(items[1].parts[1], 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matching_follows_the_worked_table),
        cmocka_unit_test(rules_hold_within_their_half_open_window_and_newest_wins),
        cmocka_unit_test(formulas_give_the_worked_amounts),
        cmocka_unit_test(rounding_modes_apply_to_tax),
        cmocka_unit_test(rounding_levels_differ_as_worked),
        cmocka_unit_test(inclusive_order_level_is_exact_at_the_half),
        cmocka_unit_test(inclusive_taxes_never_exceed_what_holds_them),
        cmocka_unit_test(impossible_taxes_are_errors),
    };
    return cmocka_run_group_tests(tests, open_arena, close_arena);
}
