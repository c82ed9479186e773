/* Money: whole minor units of an ISO 4217 currency, and the only arithmetic that may touch it.
 *
 * Nothing here is a float. |amount| <= MONEY_MAX, which lies below 2^53, so that a Lua number carries every amount
 * exactly. Products go through 128 bits. What divides says how it rounds; what splits gives parts that sum to the
 * whole. */
#ifndef KASMA_COMMERCE_MONEY_H
#define KASMA_COMMERCE_MONEY_H

#include "runtime/arena.h"
#include "runtime/str.h"

#define MONEY_MAX INT64_C(9000000000000000)
#define BPS_WHOLE 10000   /* 100 percent in basis points */
#define PPM_WHOLE 1000000 /* 100 percent in parts per million */

typedef __int128 i128;
typedef unsigned __int128 u128;

struct currency {
    char code[4];
    uint8_t exponent; /* digits after the point of ISO 4217: 0 VND, 2 USD, 3 KWD */
};

struct money {
    int64_t minor;
    const struct currency *currency;
};

/* The half modes are symmetric about zero, so that a refund is the exact negative; floor and ceil are those of the
 * number line. */
enum rounding { ROUND_HALF_UP, ROUND_HALF_DOWN, ROUND_FLOOR, ROUND_CEIL, ROUND_HALF_EVEN };

/* A non-negative exact fraction; den > 0, both below 2^125 and without a common divisor when made by ratio_make. */
struct ratio {
    u128 num, den;
};

enum money_text { MONEY_OK, MONEY_MALFORMED, MONEY_PRECISION, MONEY_RANGE };

/* The currency with this code (three capitals), or NULL. Lives for ever. */
const struct currency *currency_find(struct str code);

bool money_in_range(int64_t minor);
/* False, `out` untouched, when the currencies differ or the result leaves the range. */
bool money_add(struct money a, struct money b, struct money *out);
bool money_sub(struct money a, struct money b, struct money *out);
/* a + b on bare minor units of one currency; false when the result leaves the range. */
bool minor_add(int64_t a, int64_t b, int64_t *out);
/* a * n; false when the result leaves the range. */
bool minor_mul(int64_t a, int64_t n, int64_t *out);

/* Major units as decimal text or as the text of a JSON number ("25000000.00", "19.9", "1.5e3"). Digits beyond the
 * currency's must be zeros (else MONEY_PRECISION). At most 64 characters. */
enum money_text money_parse(struct str text, const struct currency *currency, int64_t *minor);
/* "money_malformed", "money_precision", "money_range"; "" for MONEY_OK. */
const char *money_text_code(enum money_text result);
/* Decimal text with max(2, exponent) digits and NUL into out[32]: VND 25000000 is "25000000.00". Returns its length. */
size_t money_format(struct money m, char out[32]);

/* "half_up", "half_down", "floor", "ceil", "half_even"; false for another word. */
bool rounding_parse(struct str word, enum rounding *out);
/* a * b / c rounded, c > 0. False when the result does not fit 64 bits or c <= 0. */
bool mul_div_round(int64_t a, int64_t b, int64_t c, enum rounding mode, int64_t *out);
/* num/den without common divisors. False when den is 0 or either reaches 2^125. */
bool ratio_make(u128 num, u128 den, struct ratio *out);
/* a * b, reduced. False when it does not fit. */
bool ratio_mul(struct ratio a, struct ratio b, struct ratio *out);
/* amount * r rounded; exact however large the fraction is. False when the result leaves the range. */
bool ratio_apply(int64_t amount, struct ratio r, enum rounding mode, int64_t *out);
/* A positive decimal such as an exchange rate ("25450.000000") as a fraction. At most 18 significant digits. */
bool ratio_parse(struct str text, struct ratio *out);

/* A percentage in basis points of a non-negative amount, half up. bps 0..10000, so it cannot leave the range. */
int64_t money_pct(int64_t amount, int64_t bps);

/* Largest remainder: splits `amount` by the weights w[0..n). share_i = floor(amount*w_i/W); the units left over go one
 * each to the largest remainders, ties to the larger weight, then to the smaller rank[i]. Ranks stand for line keys and
 * must differ; NULL means that the caller's order is the order of the keys. Keeps the order of the input; no share
 * exceeds its weight when |amount| <= W. W = 0 requires amount = 0. False: out of memory or that. `scratch` is used
 * for temporary space only. */
bool money_alloc(struct arena *scratch, int64_t amount, const int64_t *w, const uint32_t *rank, size_t n, int64_t *out);
/* The same with weights of up to 2^120 each and 2^125 in sum, for weights that are exact fractions. */
bool money_alloc_wide(struct arena *scratch, int64_t amount, const u128 *w, const uint32_t *rank, size_t n,
                      int64_t *out);

/* What the first k of q equal units of `total` are worth together: floor((2*total*k + q) / (2*q)), 0 <= k <= q, q > 0.
 * Unit k is worth split(k) - split(k-1), so that all units give back exactly the whole. Symmetric about zero. */
int64_t money_split(int64_t total, int64_t q, int64_t k);

#endif
