#include "runtime/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "runtime/utf8.h"

bool buf_reserve(struct buf *b, size_t more) {
    if (b->cap - b->len >= more) return true;
    size_t need, cap = b->cap ? b->cap : 256;
    if (__builtin_add_overflow(b->len, more, &need) || need > SIZE_MAX / 2) return false;
    while (cap < need) cap *= 2;
    char *p = realloc(b->data, cap);
    if (!p) return false;
    b->data = p;
    b->cap = cap;
    return true;
}

bool buf_add(struct buf *b, struct str s) {
    if (!buf_reserve(b, s.len)) return false;
    if (s.len) memcpy(b->data + b->len, s.at, s.len);
    b->len += s.len;
    return true;
}

bool buf_byte(struct buf *b, char c) {
    return buf_add(b, str_n(&c, 1));
}

bool buf_printf(struct buf *b, const char *fmt, ...) {
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    bool ok = n >= 0 && buf_reserve(b, (size_t)n + 1) && vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again) == n;
    va_end(again);
    if (ok) b->len += (size_t)n;
    return ok;
}

bool buf_json_string(struct buf *b, struct str s) {
    /* Worst case six bytes for one; reserved once, so that the loop need not check. */
    if (s.len > (SIZE_MAX - 2) / 6 || !buf_reserve(b, s.len * 6 + 2)) return false;
    static const char hex[] = "0123456789abcdef";
    static const char replacement[3] = {'\xEF', '\xBF', '\xBD'}, control[4] = {'\\', 'u', '0', '0'};
    char *out = b->data + b->len;
    *out++ = '"';
    for (size_t i = 0; i < s.len;) {
        unsigned char c = (unsigned char)s.at[i];
        size_t n = utf8_length((const unsigned char *)s.at + i, (const unsigned char *)s.at + s.len);
        if (n == 0) {
            memcpy(out, replacement, sizeof replacement);
            out += 3;
            i++;
        } else if (n > 1) {
            memcpy(out, s.at + i, n);
            out += n;
            i += n;
        } else {
            i++;
            if (c == '"' || c == '\\') {
                *out++ = '\\';
                *out++ = (char)c;
            } else if (c >= 0x20) {
                *out++ = (char)c;
            } else if (c == '\n' || c == '\r' || c == '\t') {
                *out++ = '\\';
                *out++ = c == '\n' ? 'n' : c == '\r' ? 'r' : 't';
            } else {
                memcpy(out, control, sizeof control);
                out[4] = hex[c >> 4];
                out[5] = hex[c & 15];
                out += 6;
            }
        }
    }
    *out++ = '"';
    b->len = (size_t)(out - b->data);
    return true;
}

void buf_clear(struct buf *b) {
    b->len = 0;
}

void buf_free(struct buf *b) {
    free(b->data);
    *b = (struct buf){0};
}
