/* The Range header (RFC 9110 14.2). */
#ifndef KASMA_HTTP_RANGE_H
#define KASMA_HTTP_RANGE_H

#include "runtime/str.h"

#define RANGES_MAX 8

struct range {
    uint64_t from, length;
};

enum range_result {
    RANGE_NONE,          /* absent, malformed, of another unit, or too many: send the whole */
    RANGE_SOME,          /* send these */
    RANGE_UNSATISFIABLE, /* 416 */
};
/* Reads "bytes=0-99,-5" for a body of `size` bytes into out[0..*count). Ranges that overlap or repeat make it
 * RANGE_NONE: nobody needs them, and they would multiply the answer. */
enum range_result range_parse(struct str header, uint64_t size, struct range out[RANGES_MAX], unsigned *count);

#endif
