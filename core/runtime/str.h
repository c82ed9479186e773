/* A borrowed view of bytes: never owns them, need not end in NUL, may hold NUL. */
#ifndef KASMA_RUNTIME_STR_H
#define KASMA_RUNTIME_STR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct str {
    const char *at;
    size_t len;
};

/* A view of a string literal. */
#define STR(literal) ((struct str){.at = (literal), .len = sizeof(literal) - 1})
/* For printf("%.*s"). The view must be shorter than INT_MAX, which every bounded input is. */
#define STR_FMT(s) (int)(s).len, (s).at

static inline struct str str_of(const char *text) {
    return (struct str){.at = text, .len = text ? strlen(text) : 0};
}
static inline struct str str_n(const char *at, size_t len) {
    return (struct str){.at = at, .len = len};
}
static inline bool str_eq(struct str a, struct str b) {
    return a.len == b.len && (a.len == 0 || memcmp(a.at, b.at, a.len) == 0);
}

/* ASCII case-insensitive equality; bytes above 127 compare as they are. */
bool str_ieq(struct str a, struct str b);
bool str_starts(struct str s, struct str prefix);
/* `s` without ASCII blanks at both ends. */
struct str str_trim(struct str s);
/* Whole-string decimal integer with optional '-'. False when anything else is in it or it does not fit. */
bool str_int64(struct str s, int64_t *out);
/* [A-Za-z0-9][A-Za-z0-9_-]{0,62}: what a tenant key may be. It stands in SQL, in names of files and of Redis keys. */
bool str_is_tenant_key(struct str s);

#endif
