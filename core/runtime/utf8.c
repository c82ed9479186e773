#include "runtime/utf8.h"

/* The first byte says how many follow and, for four of them, what the second may be: 0x80 would begin a longer form
 * than needed after E0 and F0, 0xA0 a surrogate after ED, 0x90 a number past the last after F4. */
static bool begin(struct utf8 *u, uint8_t c) {
    u->low = 0x80;
    u->high = 0xbf;
    if (c >= 0xc2 && c <= 0xdf) {
        u->left = 1;
    } else if (c >= 0xe0 && c <= 0xef) {
        u->left = 2;
        if (c == 0xe0) u->low = 0xa0;
        if (c == 0xed) u->high = 0x9f;
    } else if (c >= 0xf0 && c <= 0xf4) {
        u->left = 3;
        if (c == 0xf0) u->low = 0x90;
        if (c == 0xf4) u->high = 0x8f;
    } else {
        return false;
    }
    return true;
}

bool utf8_feed(struct utf8 *u, struct str bytes) {
    const uint8_t *p = (const uint8_t *)bytes.at, *end = p + bytes.len;
    while (p != end) {
        if (u->left) {
            if (*p < u->low || *p > u->high) return false;
            u->low = 0x80;
            u->high = 0xbf;
            u->left--;
            p++;
            continue;
        }
        /* Plain ASCII eight bytes at a time, which is most of what comes. */
        uint64_t word;
        while ((size_t)(end - p) >= sizeof word) {
            memcpy(&word, p, sizeof word);
            if (word & UINT64_C(0x8080808080808080)) break;
            p += sizeof word;
        }
        if (p == end) break;
        if (*p >= 0x80 && !begin(u, *p)) return false;
        p++;
    }
    return true;
}
