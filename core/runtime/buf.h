/* A growable byte buffer on the heap. A zeroed struct is an empty buffer. */
#ifndef KASMA_RUNTIME_BUF_H
#define KASMA_RUNTIME_BUF_H

#include "runtime/str.h"

struct buf {
    char *data;
    size_t len, cap;
};

/* Makes room for `more` bytes past len. False when out of memory; the buffer is then unchanged. */
bool buf_reserve(struct buf *b, size_t more);
bool buf_add(struct buf *b, struct str s);
bool buf_byte(struct buf *b, char c);
bool buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Adds `s` as a JSON string with its quotes; bytes that are not UTF-8 become U+FFFD. */
bool buf_json_string(struct buf *b, struct str s);
void buf_clear(struct buf *b); /* len = 0, memory kept */
void buf_free(struct buf *b);
static inline struct str buf_str(const struct buf *b) {
    return (struct str){.at = b->data, .len = b->len};
}

#endif
