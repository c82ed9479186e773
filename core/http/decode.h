/* Percent-encoding, query strings, form bodies, cookies. */
#ifndef KASMA_HTTP_DECODE_H
#define KASMA_HTTP_DECODE_H

#include "runtime/arena.h"

/* Percent-decodes into `a`; the view itself comes back when there is nothing to decode. Strict: a bad escape or a
 * result that is not UTF-8 gives at == NULL (so does running out of memory; *bad tells them apart). */
struct str percent_decode_strict(struct arena *a, struct str s, bool *bad);
/* As a browser's form decoder: '+' is a blank, a bad escape stands for itself, bytes that are not UTF-8 stay. at ==
 * NULL only when out of memory. */
struct str percent_decode_form(struct arena *a, struct str s);

struct pair {
    struct str name, value;
};
struct pairs {
    struct pair *at;
    size_t count;
};
/* "a=1&b=&c" into pairs in order, at most `max` of them. False: out of memory, or more than `max` (*many is then true).
 */
bool form_decode(struct arena *a, struct str text, size_t max, struct pairs *out, bool *many);

/* The value of the first cookie of that name in a Cookie header, without quotes; at == NULL when absent. */
struct str cookie_find(struct str header, struct str name);

#endif
