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

#endif
