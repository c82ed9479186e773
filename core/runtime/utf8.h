/* UTF-8 checked as it arrives: a text that comes in pieces is found bad at its first bad byte, wherever it was cut.
 * Exactly what Unicode allows (RFC 3629): no surrogates, nothing above U+10FFFF, no longer form than needed. */
#ifndef KASMA_RUNTIME_UTF8_H
#define KASMA_RUNTIME_UTF8_H

#include "runtime/str.h"

/* What the next byte must be. A zeroed struct is the start of a text. */
struct utf8 {
    uint8_t left;      /* continuation bytes still to come */
    uint8_t low, high; /* bounds of the next one, which the first byte may narrow */
};

/* False: the bytes so far cannot be the beginning of any text; `u` is then of no more use. */
bool utf8_feed(struct utf8 *u, struct str bytes);
/* True between two characters: where a text may end. */
static inline bool utf8_whole(const struct utf8 *u) {
    return u->left == 0;
}

/* True of a text that is UTF-8 all through. */
static inline bool utf8_valid(struct str text) {
    struct utf8 u = {0};
    return utf8_feed(&u, text) && utf8_whole(&u);
}
/* Length of the character that begins at `p`, before `end`: 1 to 4; 0: its bytes are no character, or it is cut. */
static inline size_t utf8_length(const unsigned char *p, const unsigned char *end) {
    if (p == end) return 0;
    if (p[0] < 0x80) return 1;
    size_t n = p[0] >= 0xC2 && p[0] <= 0xDF ? 2 : (p[0] & 0xF0) == 0xE0 ? 3 : p[0] >= 0xF0 && p[0] <= 0xF4 ? 4 : 0;
    if (n == 0 || (size_t)(end - p) < n) return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xC0) != 0x80) return 0;
    if ((p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xED && p[1] > 0x9F) || (p[0] == 0xF0 && p[1] < 0x90) ||
        (p[0] == 0xF4 && p[1] > 0x8F))
        return 0;
    return n;
}

#endif
