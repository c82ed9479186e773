// link: commerce
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "commerce/money.h"
#include "commerce/place.h"

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

static const struct currency *currency(const char *code) {
    const struct currency *c = currency_find(str_of(code));
    assert_non_null(c);
    return c;
}

static void currencies_have_the_exponents_of_iso_4217(void **state) {
    (void)state;
    static const struct {
        const char *code;
        unsigned exponent;
    } known[] = {{"VND", 0}, {"JPY", 0}, {"KRW", 0}, {"CLP", 0}, {"USD", 2}, {"EUR", 2}, {"KWD", 3},
                 {"BHD", 3}, {"TND", 3}, {"JOD", 3}, {"OMR", 3}, {"CLF", 4}, {"AED", 2}, {"ZMW", 2}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        assert_int_equal(currency(known[i].code)->exponent, known[i].exponent);
    assert_null(currency_find(STR("vnd")));
    assert_null(currency_find(STR("XXX")));
    assert_null(currency_find(STR("VN")));
    assert_null(currency_find((struct str){0}));
}

static void addition_refuses_other_currencies_and_amounts_out_of_range(void **state) {
    (void)state;
    struct money a = {.minor = MONEY_MAX - 1, .currency = currency("VND")}, one = {.minor = 1, .currency = a.currency};
    struct money sum = {0}, dollar = {.minor = 1, .currency = currency("USD")};
    assert_true(money_add(a, one, &sum));
    assert_int_equal(sum.minor, MONEY_MAX);
    assert_false(money_add(sum, one, &sum));
    assert_int_equal(sum.minor, MONEY_MAX);
    assert_false(money_add(a, dollar, &sum));
    assert_true(money_sub(one, a, &sum));
    assert_int_equal(sum.minor, 2 - MONEY_MAX);
    int64_t product;
    assert_true(minor_mul(MONEY_MAX / 9999, 9999, &product));
    assert_false(minor_mul(MONEY_MAX, 2, &product));
    assert_false(minor_mul(INT64_MAX, INT64_MAX, &product));
}

static void parsing_is_exact_to_the_digits_of_the_currency(void **state) {
    (void)state;
    static const struct {
        const char *text, *code;
        enum money_text result;
        int64_t minor;
    } cases[] = {
        {"25000000.00", "VND", MONEY_OK, 25000000},
        {"390000.5", "VND", MONEY_PRECISION, 0},
        {"390000", "VND", MONEY_OK, 390000},
        {"19.99", "USD", MONEY_OK, 1999},
        {"19.990", "USD", MONEY_OK, 1999},
        {"19.999", "USD", MONEY_PRECISION, 0},
        {"-0.05", "USD", MONEY_OK, -5},
        {"0", "USD", MONEY_OK, 0},
        {"1.5e3", "USD", MONEY_OK, 150000},
        {"1e-2", "USD", MONEY_OK, 1},
        {"1e-3", "USD", MONEY_PRECISION, 0},
        {"0.001", "KWD", MONEY_OK, 1},
        {"9000000000000000", "VND", MONEY_OK, MONEY_MAX},
        {"9000000000000001", "VND", MONEY_RANGE, 0},
        {"1e300", "VND", MONEY_RANGE, 0},
        {"0e300", "VND", MONEY_OK, 0},
        {"1e99999", "VND", MONEY_RANGE, 0},
        {"1e999999", "VND", MONEY_MALFORMED, 0},
        {"99999999999999999999999999999999", "VND", MONEY_RANGE, 0},
        {"", "VND", MONEY_MALFORMED, 0},
        {"-", "VND", MONEY_MALFORMED, 0},
        {"1.", "VND", MONEY_MALFORMED, 0},
        {".5", "USD", MONEY_MALFORMED, 0},
        {"1,000", "VND", MONEY_MALFORMED, 0},
        {" 1", "VND", MONEY_MALFORMED, 0},
        {"0x10", "VND", MONEY_MALFORMED, 0},
        {"nan", "VND", MONEY_MALFORMED, 0},
        {"1e", "VND", MONEY_MALFORMED, 0},
        {"00000000000000000000000000000000000000000000000000000000000000001", "VND", MONEY_MALFORMED, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t minor = 0;
        assert_int_equal(money_parse(str_of(cases[i].text), currency(cases[i].code), &minor), cases[i].result);
        assert_int_equal(minor, cases[i].minor);
    }
    assert_string_equal(money_text_code(MONEY_PRECISION), "money_precision");
}

static void formatting_shows_two_digits_or_the_exponent(void **state) {
    (void)state;
    char out[32];
    assert_int_equal(money_format((struct money){25000000, currency("VND")}, out), 11);
    assert_string_equal(out, "25000000.00");
    money_format((struct money){-5, currency("USD")}, out);
    assert_string_equal(out, "-0.05");
    money_format((struct money){1234, currency("KWD")}, out);
    assert_string_equal(out, "1.234");
    money_format((struct money){-MONEY_MAX, currency("USD")}, out);
    assert_string_equal(out, "-90000000000000.00");
}

static void rounding_modes_agree_with_their_names(void **state) {
    (void)state;
    static const int64_t positive[] = {13, 12, 12, 13, 12}, negative[] = {-13, -12, -13, -12, -12};
    for (int mode = ROUND_HALF_UP; mode <= ROUND_HALF_EVEN; mode++) {
        int64_t out;
        assert_true(mul_div_round(25, 1, 2, (enum rounding)mode, &out));
        assert_int_equal(out, positive[mode]);
        assert_true(mul_div_round(-25, 1, 2, (enum rounding)mode, &out));
        assert_int_equal(out, negative[mode]);
        assert_true(mul_div_round(24, 1, 2, (enum rounding)mode, &out));
        assert_int_equal(out, 12);
    }
    int64_t out;
    assert_true(mul_div_round(27, 1, 2, ROUND_HALF_EVEN, &out));
    assert_int_equal(out, 14);
    assert_true(mul_div_round(MONEY_MAX, 1000000, 1000000, ROUND_HALF_UP, &out));
    assert_int_equal(out, MONEY_MAX);
    assert_false(mul_div_round(MONEY_MAX, MONEY_MAX, 1, ROUND_HALF_UP, &out));
    assert_false(mul_div_round(1, 1, 0, ROUND_HALF_UP, &out));
    enum rounding mode;
    assert_true(rounding_parse(STR("half_even"), &mode));
    assert_int_equal(mode, ROUND_HALF_EVEN);
    assert_false(rounding_parse(STR("up"), &mode));
}

static void percentages_round_half_up_once(void **state) {
    (void)state;
    assert_int_equal(money_pct(1999, 825), 165);
    assert_int_equal(money_pct(10, 500), 1);
    assert_int_equal(money_pct(9, 500), 0);
    assert_int_equal(money_pct(MONEY_MAX, 10000), MONEY_MAX);
    assert_int_equal(money_pct(25000000, 1000), 2500000);
}

static void assert_alloc(int64_t amount, const int64_t *w, size_t n, const int64_t *expected) {
    int64_t out[8];
    assert_true(money_alloc(arena, amount, w, NULL, n, out));
    for (size_t i = 0; i < n; i++) assert_int_equal(out[i], expected[i]);
}

static void largest_remainder_follows_the_worked_examples(void **state) {
    (void)state;
    assert_alloc(1000, (int64_t[]){1999, 501, 333}, 3, (int64_t[]){706, 177, 117});
    assert_alloc(100, (int64_t[]){333, 333, 333}, 3, (int64_t[]){34, 33, 33});
    assert_alloc(2, (int64_t[]){1, 1, 4}, 3, (int64_t[]){0, 0, 2});
    assert_alloc(500, (int64_t[]){1200, 980, 150}, 3, (int64_t[]){258, 210, 32});
    assert_alloc(-500, (int64_t[]){1200, 980, 150}, 3, (int64_t[]){-258, -210, -32});
    assert_alloc(0, (int64_t[]){0, 0}, 2, (int64_t[]){0, 0});
    int64_t out[2];
    assert_false(money_alloc(arena, 1, (int64_t[]){0, 0}, NULL, 2, out));
    assert_false(money_alloc(arena, 1, (int64_t[]){-1, 3}, NULL, 2, out));
    assert_true(money_alloc(arena, 100, (int64_t[]){333, 333}, (uint32_t[]){1, 0}, 2, out));
    assert_int_equal(out[0], 50);
    assert_true(money_alloc(arena, 1, (int64_t[]){5, 5}, (uint32_t[]){1, 0}, 2, out));
    assert_int_equal(out[0], 0);
    assert_int_equal(out[1], 1);
}

static void wide_weights_split_like_narrow_ones(void **state) {
    (void)state;
    int64_t narrow[3], wide[3];
    u128 scale = (u128)1000000000000000000u * 1000000000u;
    assert_true(money_alloc(arena, 1000, (int64_t[]){1999, 501, 333}, NULL, 3, narrow));
    assert_true(money_alloc_wide(arena, 1000, (u128[]){1999 * scale, 501 * scale, 333 * scale}, NULL, 3, wide));
    assert_memory_equal(narrow, wide, sizeof narrow);
    assert_true(money_alloc_wide(arena, MONEY_MAX, (u128[]){(u128)1 << 123, (u128)1 << 123, 1}, NULL, 3, wide));
    assert_int_equal(wide[0] + wide[1] + wide[2], MONEY_MAX);
    assert_false(money_alloc_wide(arena, 1, (u128[]){(u128)1 << 124, (u128)1 << 124}, NULL, 2, wide));
}

static void the_units_of_a_line_give_back_the_whole(void **state) {
    (void)state;
    int64_t units[3];
    for (int64_t k = 1; k <= 3; k++) units[k - 1] = money_split(2698409, 3, k) - money_split(2698409, 3, k - 1);
    assert_int_equal(units[0], 899470);
    assert_int_equal(units[1], 899469);
    assert_int_equal(units[2], 899470);
    assert_int_equal(money_split(-2698409, 3, 1), -899470);
    assert_int_equal(money_split(MONEY_MAX, 9999, 9999), MONEY_MAX);
    assert_int_equal(money_split(5, 7, 0), 0);
}

static void ratios_are_exact_however_large(void **state) {
    (void)state;
    struct ratio rate, inverse, r;
    int64_t out;
    assert_true(ratio_parse(STR("25450.000000"), &rate));
    assert_true(ratio_make(rate.num, rate.den * 100, &r)); /* cents to dong */
    assert_true(ratio_apply(10000, r, ROUND_HALF_UP, &out));
    assert_int_equal(out, 2545000);
    assert_true(ratio_make(r.den, r.num, &inverse));
    assert_true(ratio_apply(2545000, inverse, ROUND_HALF_UP, &out));
    assert_int_equal(out, 10000);
    assert_true(ratio_apply(254500000000, inverse, ROUND_HALF_UP, &out));
    assert_int_equal(out, 1000000000);
    assert_true(ratio_apply(1, inverse, ROUND_HALF_UP, &out));
    assert_int_equal(out, 0);
    u128 big = (u128)1 << 120;
    assert_true(ratio_make(big + 1, big, &r));
    assert_true(ratio_apply(MONEY_MAX, r, ROUND_FLOOR, &out));
    assert_int_equal(out, MONEY_MAX);
    assert_true(ratio_apply(MONEY_MAX - 1, r, ROUND_CEIL, &out));
    assert_int_equal(out, MONEY_MAX);
    assert_false(ratio_apply(MONEY_MAX, (struct ratio){.num = 2, .den = 1}, ROUND_FLOOR, &out));
    assert_false(ratio_make(1, 0, &r));
    assert_false(ratio_parse(STR("0"), &r));
    assert_false(ratio_parse(STR("-1"), &r));
    assert_false(ratio_parse(STR("1.2345678901234567891"), &r));
}

static void place_names_compare_without_case_and_accents(void **state) {
    (void)state;
    assert_true(str_eq(place_fold(arena, STR("  Đà Nẵng ")), STR("da nang")));
    assert_true(str_eq(place_fold(arena, STR("Thừa Thiên Huế")), STR("thua thien hue")));
    assert_true(str_eq(place_fold(arena, STR("Thu\xCC\x9B\xCC\x80"
                                             "a")),
                       STR("thua")));
    assert_true(str_eq(place_fold(arena, STR("ÎLE-DE-FRANCE")), STR("ile-de-france")));
    assert_true(str_eq(place_fold(arena, STR("東京")), STR("東京")));
    assert_true(str_eq(place_fold(arena, STR("\xFF\xC3")), STR("\xFF\xC3")));
    size_t prefix;
    assert_int_equal(place_zip(STR("70*"), STR("70123"), &prefix), ZIP_PREFIX);
    assert_int_equal(prefix, 2);
    assert_int_equal(place_zip(STR("70000-70999"), STR("70123"), &prefix), ZIP_RANGE);
    assert_int_equal(place_zip(STR("70000-70999"), STR("7012"), &prefix), ZIP_MISS);
    assert_int_equal(place_zip(STR("sw1a"), STR("SW1A"), &prefix), ZIP_EXACT);
    assert_int_equal(place_zip(STR("70*"), (struct str){0}, &prefix), ZIP_MISS);
    assert_int_equal(place_zip((struct str){0}, STR("1"), &prefix), ZIP_ANY);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(currencies_have_the_exponents_of_iso_4217),
        cmocka_unit_test(addition_refuses_other_currencies_and_amounts_out_of_range),
        cmocka_unit_test(parsing_is_exact_to_the_digits_of_the_currency),
        cmocka_unit_test(formatting_shows_two_digits_or_the_exponent),
        cmocka_unit_test(rounding_modes_agree_with_their_names),
        cmocka_unit_test(percentages_round_half_up_once),
        cmocka_unit_test(largest_remainder_follows_the_worked_examples),
        cmocka_unit_test(wide_weights_split_like_narrow_ones),
        cmocka_unit_test(the_units_of_a_line_give_back_the_whole),
        cmocka_unit_test(ratios_are_exact_however_large),
        cmocka_unit_test(place_names_compare_without_case_and_accents),
    };
    return cmocka_run_group_tests(tests, open_arena, close_arena);
}
