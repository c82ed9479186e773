#include "commerce/money.h"

#include <stdio.h>
#include <stdlib.h>

#define RATIO_LIMIT ((u128)1 << 125)
#define TEXT_MAX 64

/* ISO 4217, sorted by code. Fixed here: what a tenant configures is display only. */
static const struct currency currencies[] = {
    {"AED", 2}, {"AFN", 2}, {"ALL", 2}, {"AMD", 2}, {"ANG", 2}, {"AOA", 2}, {"ARS", 2}, {"AUD", 2}, {"AWG", 2},
    {"AZN", 2}, {"BAM", 2}, {"BBD", 2}, {"BDT", 2}, {"BGN", 2}, {"BHD", 3}, {"BIF", 0}, {"BMD", 2}, {"BND", 2},
    {"BOB", 2}, {"BOV", 2}, {"BRL", 2}, {"BSD", 2}, {"BTN", 2}, {"BWP", 2}, {"BYN", 2}, {"BZD", 2}, {"CAD", 2},
    {"CDF", 2}, {"CHE", 2}, {"CHF", 2}, {"CHW", 2}, {"CLF", 4}, {"CLP", 0}, {"CNY", 2}, {"COP", 2}, {"COU", 2},
    {"CRC", 2}, {"CUP", 2}, {"CVE", 2}, {"CZK", 2}, {"DJF", 0}, {"DKK", 2}, {"DOP", 2}, {"DZD", 2}, {"EGP", 2},
    {"ERN", 2}, {"ETB", 2}, {"EUR", 2}, {"FJD", 2}, {"FKP", 2}, {"GBP", 2}, {"GEL", 2}, {"GHS", 2}, {"GIP", 2},
    {"GMD", 2}, {"GNF", 0}, {"GTQ", 2}, {"GYD", 2}, {"HKD", 2}, {"HNL", 2}, {"HTG", 2}, {"HUF", 2}, {"IDR", 2},
    {"ILS", 2}, {"INR", 2}, {"IQD", 3}, {"IRR", 2}, {"ISK", 0}, {"JMD", 2}, {"JOD", 3}, {"JPY", 0}, {"KES", 2},
    {"KGS", 2}, {"KHR", 2}, {"KMF", 0}, {"KPW", 2}, {"KRW", 0}, {"KWD", 3}, {"KYD", 2}, {"KZT", 2}, {"LAK", 2},
    {"LBP", 2}, {"LKR", 2}, {"LRD", 2}, {"LSL", 2}, {"LYD", 3}, {"MAD", 2}, {"MDL", 2}, {"MGA", 2}, {"MKD", 2},
    {"MMK", 2}, {"MNT", 2}, {"MOP", 2}, {"MRU", 2}, {"MUR", 2}, {"MVR", 2}, {"MWK", 2}, {"MXN", 2}, {"MXV", 2},
    {"MYR", 2}, {"MZN", 2}, {"NAD", 2}, {"NGN", 2}, {"NIO", 2}, {"NOK", 2}, {"NPR", 2}, {"NZD", 2}, {"OMR", 3},
    {"PAB", 2}, {"PEN", 2}, {"PGK", 2}, {"PHP", 2}, {"PKR", 2}, {"PLN", 2}, {"PYG", 0}, {"QAR", 2}, {"RON", 2},
    {"RSD", 2}, {"RUB", 2}, {"RWF", 0}, {"SAR", 2}, {"SBD", 2}, {"SCR", 2}, {"SDG", 2}, {"SEK", 2}, {"SGD", 2},
    {"SHP", 2}, {"SLE", 2}, {"SOS", 2}, {"SRD", 2}, {"SSP", 2}, {"STN", 2}, {"SVC", 2}, {"SYP", 2}, {"SZL", 2},
    {"THB", 2}, {"TJS", 2}, {"TMT", 2}, {"TND", 3}, {"TOP", 2}, {"TRY", 2}, {"TTD", 2}, {"TWD", 2}, {"TZS", 2},
    {"UAH", 2}, {"UGX", 0}, {"USD", 2}, {"USN", 2}, {"UYI", 0}, {"UYU", 2}, {"UYW", 4}, {"UZS", 2}, {"VED", 2},
    {"VES", 2}, {"VND", 0}, {"VUV", 0}, {"WST", 2}, {"XAF", 0}, {"XCD", 2}, {"XOF", 0}, {"XPF", 0}, {"YER", 2},
    {"ZAR", 2}, {"ZMW", 2},
};

static int currency_compare(const void *key, const void *entry) {
    return memcmp(key, ((const struct currency *)entry)->code, 3);
}

const struct currency *currency_find(struct str code) {
    if (code.len != 3) return NULL;
    return bsearch(code.at, currencies, sizeof currencies / sizeof *currencies, sizeof *currencies, currency_compare);
}

bool money_in_range(int64_t minor) {
    return minor >= -MONEY_MAX && minor <= MONEY_MAX;
}

bool minor_add(int64_t a, int64_t b, int64_t *out) {
    int64_t sum;
    if (__builtin_add_overflow(a, b, &sum) || !money_in_range(sum)) return false;
    *out = sum;
    return true;
}

bool minor_mul(int64_t a, int64_t n, int64_t *out) {
    int64_t product;
    if (__builtin_mul_overflow(a, n, &product) || !money_in_range(product)) return false;
    *out = product;
    return true;
}

bool money_add(struct money a, struct money b, struct money *out) {
    int64_t sum;
    if (a.currency != b.currency || !minor_add(a.minor, b.minor, &sum)) return false;
    *out = (struct money){.minor = sum, .currency = a.currency};
    return true;
}

bool money_sub(struct money a, struct money b, struct money *out) {
    if (b.minor == INT64_MIN) return false;
    return money_add(a, (struct money){.minor = -b.minor, .currency = b.currency}, out);
}

/* The parts of a decimal number: its digits without the point, and how many of them stand after it. */
struct decimal {
    char digits[TEXT_MAX];
    size_t count;
    int64_t scale;
    bool negative;
};

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static bool decimal_read(struct str text, struct decimal *d) {
    *d = (struct decimal){0};
    if (text.len == 0 || text.len > TEXT_MAX) return false;
    size_t i = 0;
    if (text.at[i] == '-') {
        d->negative = true;
        i++;
    }
    size_t start = i;
    while (i < text.len && is_digit(text.at[i])) d->digits[d->count++] = text.at[i++];
    if (i == start) return false;
    if (i < text.len && text.at[i] == '.') {
        start = ++i;
        while (i < text.len && is_digit(text.at[i])) d->digits[d->count++] = text.at[i++];
        if (i == start) return false;
        d->scale = (int64_t)(i - start);
    }
    if (i < text.len && (text.at[i] == 'e' || text.at[i] == 'E')) {
        i++;
        if (i < text.len && text.at[i] == '+') i++;
        int64_t power;
        if (text.len - i > 5 || !str_int64(str_n(text.at + i, text.len - i), &power)) return false;
        d->scale -= power;
        i = text.len;
    }
    return i == text.len;
}

enum money_text money_parse(struct str text, const struct currency *currency, int64_t *minor) {
    struct decimal d;
    if (!decimal_read(text, &d)) return MONEY_MALFORMED;
    /* Digit i stands for 10^(count-1-i-scale) major units; minor units shift that by the exponent. */
    int64_t value = 0;
    int64_t shift = (int64_t)currency->exponent - d.scale;
    int64_t kept = (int64_t)d.count + (shift < 0 ? shift : 0);
    for (int64_t i = 0; i < (int64_t)d.count; i++) {
        int digit = d.digits[i] - '0';
        if (i >= kept) {
            if (digit != 0) return MONEY_PRECISION;
            continue;
        }
        value = value * 10 + digit;
        if (value > MONEY_MAX) return MONEY_RANGE;
    }
    for (; shift > 0 && value != 0; shift--) {
        value *= 10;
        if (value > MONEY_MAX) return MONEY_RANGE;
    }
    *minor = d.negative ? -value : value;
    return MONEY_OK;
}

const char *money_text_code(enum money_text result) {
    switch (result) {
    case MONEY_MALFORMED:
        return "money_malformed";
    case MONEY_PRECISION:
        return "money_precision";
    case MONEY_RANGE:
        return "money_range";
    case MONEY_OK:
        break;
    }
    return "";
}

size_t money_format(struct money m, char out[32]) {
    uint64_t amount = m.minor < 0 ? (uint64_t)0 - (uint64_t)m.minor : (uint64_t)m.minor;
    unsigned exponent = m.currency->exponent;
    uint64_t unit = 1;
    for (unsigned i = 0; i < exponent; i++) unit *= 10;
    int n = exponent == 0
                ? snprintf(out, 32, "%s%llu.00", m.minor < 0 ? "-" : "", (unsigned long long)amount)
                : snprintf(out, 32, "%s%llu.%0*llu", m.minor < 0 ? "-" : "", (unsigned long long)(amount / unit),
                           (int)exponent, (unsigned long long)(amount % unit));
    return n > 0 ? (size_t)n : 0;
}

bool rounding_parse(struct str word, enum rounding *out) {
    static const char *const names[] = {"half_up", "half_down", "floor", "ceil", "half_even"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!str_eq(word, str_of(names[i]))) continue;
        *out = (enum rounding)i;
        return true;
    }
    return false;
}

/* Whether the magnitude q + r/c grows by one, given the sign of the whole. */
static bool rounds_away(u128 q, u128 r, u128 c, bool negative, enum rounding mode) {
    if (r == 0) return false;
    switch (mode) {
    case ROUND_FLOOR:
        return negative;
    case ROUND_CEIL:
        return !negative;
    case ROUND_HALF_UP:
        return r >= c - r;
    case ROUND_HALF_DOWN:
        return r > c - r;
    case ROUND_HALF_EVEN:
        return r > c - r || (r == c - r && (q & 1));
    }
    return false;
}

static u128 magnitude(i128 value) {
    return value < 0 ? (u128)0 - (u128)value : (u128)value;
}

bool mul_div_round(int64_t a, int64_t b, int64_t c, enum rounding mode, int64_t *out) {
    if (c <= 0) return false;
    i128 product = (i128)a * b;
    bool negative = product < 0;
    u128 whole = magnitude(product), q = whole / (u128)c, r = whole % (u128)c;
    if (rounds_away(q, r, (u128)c, negative, mode)) q++;
    if (q > (u128)INT64_MAX) return false;
    *out = negative ? -(int64_t)q : (int64_t)q;
    return true;
}

static u128 divisor(u128 a, u128 b) {
    while (b) {
        u128 rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

bool ratio_make(u128 num, u128 den, struct ratio *out) {
    if (den == 0) return false;
    u128 common = divisor(num, den);
    num /= common;
    den /= common;
    if (num >= RATIO_LIMIT || den >= RATIO_LIMIT) return false;
    *out = (struct ratio){.num = num, .den = den};
    return true;
}

bool ratio_mul(struct ratio a, struct ratio b, struct ratio *out) {
    struct ratio x, y;
    u128 num, den;
    if (!ratio_make(a.num, b.den, &x) || !ratio_make(b.num, a.den, &y)) return false;
    if (__builtin_mul_overflow(x.num, y.num, &num) || __builtin_mul_overflow(x.den, y.den, &den)) return false;
    return ratio_make(num, den, out);
}

/* a * b / c, exact, for b and c below 2^125: schoolbook over the bits of a, so that no product exceeds 128 bits. */
static u128 mul_div_wide(uint64_t a, u128 b, u128 c, u128 *rest) {
    if (b <= UINT64_MAX) {
        u128 product = (u128)a * b;
        *rest = product % c;
        return product / c;
    }
    u128 q = 0, r = 0, whole = b / c, part = b % c;
    for (int bit = 63; bit >= 0; bit--) {
        q = (q << 1) + ((a >> bit & 1) ? whole : 0);
        r = (r << 1) + ((a >> bit & 1) ? part : 0);
        while (r >= c) {
            r -= c;
            q++;
        }
    }
    *rest = r;
    return q;
}

bool ratio_apply(int64_t amount, struct ratio r, enum rounding mode, int64_t *out) {
    bool negative = amount < 0;
    uint64_t a = (uint64_t)magnitude(amount);
    /* Whatever passes this cannot overflow the 128 bits of the quotient. */
    if (a != 0 && r.num / r.den > (u128)MONEY_MAX / a) return false;
    u128 rest, q = mul_div_wide(a, r.num, r.den, &rest);
    if (rounds_away(q, rest, r.den, negative, mode)) q++;
    if (q > (u128)MONEY_MAX) return false;
    *out = negative ? -(int64_t)q : (int64_t)q;
    return true;
}

bool ratio_parse(struct str text, struct ratio *out) {
    struct decimal d;
    if (!decimal_read(text, &d) || d.negative) return false;
    while (d.count > 1 && d.scale > 0 && d.digits[d.count - 1] == '0') {
        d.count--;
        d.scale--;
    }
    if (d.scale < -18 || d.scale > 18) return false;
    u128 num = 0, den = 1;
    for (size_t i = 0; i < d.count; i++) {
        num = num * 10 + (u128)(d.digits[i] - '0');
        if (num > (u128)1000000000000000000u) return false;
    }
    for (; d.scale < 0; d.scale++) num *= 10;
    for (; d.scale > 0; d.scale--) den *= 10;
    return num != 0 && ratio_make(num, den, out);
}

int64_t money_pct(int64_t amount, int64_t bps) {
    return (int64_t)(((i128)amount * bps + BPS_WHOLE / 2) / BPS_WHOLE);
}

struct share {
    u128 rest, weight;
    uint32_t rank;
    size_t index;
};

static int share_compare(const void *left, const void *right) {
    const struct share *a = left, *b = right;
    if (a->rest != b->rest) return a->rest > b->rest ? -1 : 1;
    if (a->weight != b->weight) return a->weight > b->weight ? -1 : 1;
    return a->rank < b->rank ? -1 : a->rank > b->rank;
}

bool money_alloc_wide(struct arena *scratch, int64_t amount, const u128 *w, const uint32_t *rank, size_t n,
                      int64_t *out) {
    u128 sum = 0;
    for (size_t i = 0; i < n; i++) {
        if (w[i] >= RATIO_LIMIT - sum) return false;
        sum += w[i];
    }
    for (size_t i = 0; i < n; i++) out[i] = 0;
    if (amount == 0) return true;
    if (sum == 0 || !money_in_range(amount)) return false;
    struct share *shares = arena_zalloc(scratch, n, sizeof *shares);
    if (!shares) return false;
    bool negative = amount < 0;
    uint64_t whole = (uint64_t)magnitude(amount), left = whole;
    for (size_t i = 0; i < n; i++) {
        u128 rest, q = mul_div_wide(whole, w[i], sum, &rest);
        shares[i] = (struct share){.rest = rest, .weight = w[i], .rank = rank ? rank[i] : (uint32_t)i, .index = i};
        out[i] = (int64_t)q;
        left -= (uint64_t)q;
    }
    if (left) qsort(shares, n, sizeof *shares, share_compare);
    for (size_t i = 0; i < left; i++) out[shares[i].index]++;
    for (size_t i = 0; negative && i < n; i++) out[i] = -out[i];
    return true;
}

bool money_alloc(struct arena *scratch, int64_t amount, const int64_t *w, const uint32_t *rank, size_t n,
                 int64_t *out) {
    u128 *wide = arena_zalloc(scratch, n ? n : 1, sizeof *wide);
    if (!wide) return false;
    for (size_t i = 0; i < n; i++) {
        if (w[i] < 0) return false;
        wide[i] = (u128)w[i];
    }
    return money_alloc_wide(scratch, amount, wide, rank, n, out);
}

int64_t money_split(int64_t total, int64_t q, int64_t k) {
    i128 value = (2 * magnitude(total) * (u128)k + (u128)q) / (2 * (u128)q);
    return total < 0 ? -(int64_t)value : (int64_t)value;
}
