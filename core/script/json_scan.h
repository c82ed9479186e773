/* What the decoder and the encoder share: how far a string needs no look at its bytes. */
#ifndef KASMA_SCRIPT_JSON_SCAN_H
#define KASMA_SCRIPT_JSON_SCAN_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

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

#ifdef __SSE2__
/* One bit a byte. Compared as signed numbers, what is not ASCII is below a blank too. */
static inline unsigned json_16_special(__m128i x) {
    __m128i low = _mm_cmplt_epi8(x, _mm_set1_epi8(0x20));
    __m128i quote = _mm_cmpeq_epi8(x, _mm_set1_epi8('"')), backslash = _mm_cmpeq_epi8(x, _mm_set1_epi8('\\'));
    return (unsigned)_mm_movemask_epi8(_mm_or_si128(low, _mm_or_si128(quote, backslash)));
}
#endif

/* The first byte from p on that is special, or `end`. */
static inline const unsigned char *json_skip_plain(const unsigned char *p, const unsigned char *end) {
#ifdef __SSE2__
    for (; end - p >= 16; p += 16) {
        unsigned hit = json_16_special(_mm_loadu_si128((const __m128i *)p));
        if (hit) return p + __builtin_ctz(hit);
    }
#else
    for (; end - p >= 8; p += 8) {
        uint64_t w;
        memcpy(&w, p, sizeof w);
        if (json_word_special(w)) break;
    }
#endif
    while (p < end && !json_special[*p]) p++;
    return p;
}

/* Copies `len` bytes. False: one of them is special, and what was copied is of no use. */
static inline bool json_copy_plain(char *to, const char *from, size_t len) {
    /* The last step may overlap the one before it. */
#ifdef __SSE2__
    if (len >= 16) {
        __m128i x;
        for (size_t n = 0; len - n > 16; n += 16) {
            x = _mm_loadu_si128((const __m128i *)(from + n));
            if (json_16_special(x)) return false;
            _mm_storeu_si128((__m128i *)(to + n), x);
        }
        x = _mm_loadu_si128((const __m128i *)(from + len - 16));
        if (json_16_special(x)) return false;
        _mm_storeu_si128((__m128i *)(to + len - 16), x);
        return true;
    }
    if (len >= 8) {
        __m128i a = _mm_loadl_epi64((const __m128i *)from), b = _mm_loadl_epi64((const __m128i *)(from + len - 8));
        if (json_16_special(_mm_unpacklo_epi64(a, b))) return false;
        _mm_storel_epi64((__m128i *)to, a);
        _mm_storel_epi64((__m128i *)(to + len - 8), b);
        return true;
    }
#else
    if (len >= 8) {
        uint64_t w;
        for (size_t n = 0; len - n > 8; n += 8) {
            memcpy(&w, from + n, 8);
            if (json_word_special(w)) return false;
            memcpy(to + n, &w, 8);
        }
        memcpy(&w, from + len - 8, 8);
        if (json_word_special(w)) return false;
        memcpy(to + len - 8, &w, 8);
        return true;
    }
#endif
    if (len >= 4) {
        uint32_t a, b;
        memcpy(&a, from, 4);
        memcpy(&b, from + len - 4, 4);
        if (json_word_special(a | (uint64_t)b << 32)) return false;
        memcpy(to, &a, 4);
        memcpy(to + len - 4, &b, 4);
        return true;
    }
    unsigned bad = 0;
    for (size_t n = 0; n < len; n++) {
        bad |= json_special[(unsigned char)from[n]];
        to[n] = from[n];
    }
    return !bad;
}

#endif
