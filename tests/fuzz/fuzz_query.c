// link: http
/* Everything that is cut out of a request's text: query strings, paths, cookies, ranges, list and parameter headers. */
#include <stdlib.h>

#include "http/compress.h"
#include "http/decode.h"
#include "http/etag.h"
#include "http/header.h"
#include "http/range.h"
#include "runtime/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool ignore(void *data, struct str bytes) {
    size_t *sum = data;
    *sum += bytes.len;
    return *sum < 1024 * 1024;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct arena *a = arena_new(0);
    /* A copy of the exact size, so that reading one byte too far is seen. */
    char *copy = malloc(size ? size : 1);
    if (!a || !copy) abort();
    if (size) memcpy(copy, data, size);
    struct str s = str_n(copy, size);
    struct pairs pairs;
    struct range ranges[RANGES_MAX];
    unsigned count;
    bool bad;
    struct str decoded = percent_decode_strict(a, s, &bad);
    if (decoded.at && !utf8_valid(decoded)) abort();
    if (form_decode(a, s, 100, &pairs, &bad) && pairs.count > 100) abort();
    if (cookie_find(s, STR("a")).len > size || header_param(s, STR("q")).len > size) abort();
    if (range_parse(s, 1000, ranges, &count) == RANGE_SOME)
        for (unsigned i = 0; i < count; i++)
            if (ranges[i].length == 0 || ranges[i].from + ranges[i].length > 1000) abort();
    char etag[ETAG_MAX];
    struct str tag = str_n(etag, etag_of(s, etag));
    bool matches = etag_matches(s, tag), has = header_list_has(s, STR("gzip"), true);
    (void)matches;
    (void)has;
    (void)content_kind(s);
    (void)header_id(s);
    for (enum coding c = CODING_GZIP; c <= CODING_BR; c++) {
        struct decoder *d = decoder_new(c);
        size_t sum = 0;
        if (!d) abort();
        enum decode_result r = decoder_feed(d, str_n(copy, size / 2), ignore, &sum);
        if (r == DECODE_OK) r = decoder_feed(d, str_n(copy + size / 2, size - size / 2), ignore, &sum);
        if (sum >= 1024 * 1024 + 16 * 1024) abort();
        decoder_free(d);
    }
    free(copy);
    arena_free(a);
    return 0;
}
