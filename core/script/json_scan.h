/* What the decoder and the encoder share: how far a string needs no look at its bytes. */
#ifndef KASMA_SCRIPT_JSON_SCAN_H
#define KASMA_SCRIPT_JSON_SCAN_H

#include <stdint.h>
#include <string.h>

/* What a byte is inside a string: 0 plain, else it needs a look (control byte, quote, backslash, not ASCII). */
static const unsigned char json_special[256] = {
    [0 ... 0x1F] = 1,
    ['"'] = 1,
    ['\\'] = 1,
    [0x80 ... 0xFF] = 1,
};

/* Whether any of the eight bytes of `w` is special. A subtraction sets the top bit of a byte that is below its operand;
 * the borrow into the byte above may do so wrongly, but only where there is a special byte anyway. */
static inline uint64_t json_word_special(uint64_t w) {
    const uint64_t ones = UINT64_MAX / 255;
    uint64_t quote = w ^ (ones * '"'), backslash = w ^ (ones * '\\');
    return (w | (w - ones * 0x20) | (quote - ones) | (backslash - ones)) & (ones * 0x80);
}

/* The first byte from p on that is special, or `end`. */
static inline const unsigned char *json_skip_plain(const unsigned char *p, const unsigned char *end) {
    while (end - p >= 8) {
        uint64_t w;
        memcpy(&w, p, sizeof w);
        uint64_t hit = json_word_special(w);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        /* The lowest bit that is set is right: no borrow came from below it. */
        if (hit) return p + (__builtin_ctzll(hit) >> 3);
#else
        if (hit) break;
#endif
        p += 8;
    }
    while (p < end && !json_special[*p]) p++;
    return p;
}

#endif
