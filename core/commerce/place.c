#include "commerce/place.h"

/* The ASCII letter under each accented one; '.' = no letter. U+00C0..U+017F and U+1EA0..U+1EF9. */
static const char latin[] =
    "aaaaaaaceeeeiiiidnooooo.ouuuuytsaaaaaaaceeeeiiiidnooooo.ouuuuytyaaaaaaccccccccddddeeeeeeeeeegggggg"
    "gghhhhiiiiiiiiiiiijjkkkllllll..llnnnnnnnnnoooooooorrrrrrssssssssttttttuuuuuuuuuuuuwwyyyzzzzzzs";
static const char vietnamese[] =
    "aaaaaaaaaaaaaaaaaaaaaaaaeeeeeeeeeeeeeeeeiiiioooooooooooooooooooooooouuuuuuuuuuuuuuyyyyyyyy";

/* The ASCII letter for a code point, 0 for a mark to drop, '.' for a character without one. */
static char letter_of(uint32_t c) {
    if (c >= 0xC0 && c <= 0x17F) return latin[c - 0xC0];
    if (c >= 0x1EA0 && c <= 0x1EF9) return vietnamese[c - 0x1EA0];
    if (c == 0x1A0 || c == 0x1A1) return 'o';
    if (c == 0x1AF || c == 0x1B0) return 'u';
    if (c >= 0x300 && c <= 0x36F) return 0;
    return '.';
}

static bool is_tail(unsigned char c) {
    return (c & 0xC0) == 0x80;
}

struct str place_fold(struct arena *a, struct str text) {
    text = str_trim(text);
    char *out = arena_alloc(a, text.len + 1);
    if (!out) return (struct str){0};
    size_t n = 0;
    for (size_t i = 0; i < text.len;) {
        const unsigned char *p = (const unsigned char *)text.at + i;
        size_t left = text.len - i, bytes = 1;
        uint32_t c = 0;
        if (left >= 2 && p[0] >= 0xC2 && p[0] <= 0xDF && is_tail(p[1])) {
            bytes = 2;
            c = (uint32_t)(p[0] & 0x1F) << 6 | (p[1] & 0x3Fu);
        } else if (left >= 3 && (p[0] & 0xF0) == 0xE0 && is_tail(p[1]) && is_tail(p[2])) {
            bytes = 3;
            c = (uint32_t)(p[0] & 0x0F) << 12 | (uint32_t)(p[1] & 0x3F) << 6 | (p[2] & 0x3Fu);
        }
        char letter = bytes == 1 ? '.' : letter_of(c);
        if (bytes == 1) {
            out[n++] = (char)(p[0] >= 'A' && p[0] <= 'Z' ? p[0] + ('a' - 'A') : p[0]);
        } else if (letter == '.') {
            memcpy(out + n, p, bytes);
            n += bytes;
        } else if (letter) {
            out[n++] = letter;
        }
        i += bytes;
    }
    out[n] = '\0';
    return str_n(out, n);
}

int text_order(struct str a, struct str b) {
    size_t shorter = a.len < b.len ? a.len : b.len;
    int order = shorter ? memcmp(a.at, b.at, shorter) : 0;
    if (order) return order;
    return a.len < b.len ? -1 : a.len > b.len;
}

static bool all_digits(struct str s) {
    for (size_t i = 0; i < s.len; i++)
        if (s.at[i] < '0' || s.at[i] > '9') return false;
    return s.len > 0;
}

enum zip_match place_zip(struct str pattern, struct str zip, size_t *prefix) {
    *prefix = 0;
    if (pattern.len == 0) return ZIP_ANY;
    if (zip.len == 0) return ZIP_MISS;
    if (pattern.at[pattern.len - 1] == '*') {
        *prefix = pattern.len - 1;
        return zip.len >= *prefix && str_ieq(str_n(zip.at, *prefix), str_n(pattern.at, *prefix)) ? ZIP_PREFIX
                                                                                                 : ZIP_MISS;
    }
    const char *dash = memchr(pattern.at, '-', pattern.len);
    if (dash) {
        struct str low = str_n(pattern.at, (size_t)(dash - pattern.at));
        struct str high = str_n(dash + 1, pattern.len - low.len - 1);
        if (low.len == high.len && all_digits(low) && all_digits(high))
            return zip.len == low.len && all_digits(zip) && text_order(low, zip) <= 0 && text_order(zip, high) <= 0
                       ? ZIP_RANGE
                       : ZIP_MISS;
    }
    return str_ieq(pattern, zip) ? ZIP_EXACT : ZIP_MISS;
}
