#include "http/range.h"

/* Digits only; false when there are none, or too many. */
static bool number(struct str s, uint64_t *out) {
    *out = 0;
    if (s.len == 0 || s.len > 18) return false;
    for (size_t i = 0; i < s.len; i++) {
        if (s.at[i] < '0' || s.at[i] > '9') return false;
        *out = *out * 10 + (uint64_t)(s.at[i] - '0');
    }
    return true;
}

/* One "a-b", "a-" or "-n". False: malformed. A range beyond the end has length 0. */
static bool one(struct str spec, uint64_t size, struct range *out) {
    const char *dash = spec.len ? memchr(spec.at, '-', spec.len) : NULL;
    if (!dash) return false;
    struct str left = str_trim(str_n(spec.at, (size_t)(dash - spec.at)));
    struct str right = str_trim(str_n(dash + 1, spec.len - (size_t)(dash - spec.at) - 1));
    uint64_t a = 0, b = 0;
    if (left.len == 0) {
        if (!number(right, &b)) return false;
        if (b > size) b = size;
        *out = (struct range){size - b, b};
        return true;
    }
    if (!number(left, &a) || (right.len && !number(right, &b)) || (right.len && b < a)) return false;
    if (right.len == 0 || b >= size) b = size ? size - 1 : 0;
    *out = a < size ? (struct range){a, b - a + 1} : (struct range){0, 0};
    return true;
}

enum range_result range_parse(struct str header, uint64_t size, struct range out[RANGES_MAX], unsigned *count) {
    *count = 0;
    struct str rest = str_trim(header);
    if (rest.len < 6 || !str_ieq(str_n(rest.at, 6), STR("bytes="))) return RANGE_NONE;
    rest = str_n(rest.at + 6, rest.len - 6);
    bool any = false;
    while (rest.len) {
        const char *comma = memchr(rest.at, ',', rest.len);
        size_t n = comma ? (size_t)(comma - rest.at) : rest.len;
        struct str spec = str_trim(str_n(rest.at, n));
        size_t used = n + (comma != NULL);
        rest = str_n(rest.at + used, rest.len - used);
        if (spec.len == 0) continue;
        struct range r;
        if (!one(spec, size, &r)) return RANGE_NONE;
        any = true;
        if (r.length == 0) continue;
        if (*count == RANGES_MAX) return RANGE_NONE;
        for (unsigned i = 0; i < *count; i++)
            if (r.from < out[i].from + out[i].length && out[i].from < r.from + r.length) return RANGE_NONE;
        out[(*count)++] = r;
    }
    if (!any) return RANGE_NONE;
    return *count ? RANGE_SOME : RANGE_UNSATISFIABLE;
}
