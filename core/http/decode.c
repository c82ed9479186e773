#include "http/decode.h"

#include "runtime/utf8.h"

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* Byte of the escape at s[i], or -1. */
static int escape_at(struct str s, size_t i) {
    if (s.len - i < 3) return -1;
    int high = hex_digit(s.at[i + 1]), low = hex_digit(s.at[i + 2]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

struct str percent_decode_strict(struct arena *a, struct str s, bool *bad) {
    *bad = false;
    struct str out = s;
    if (s.len && memchr(s.at, '%', s.len)) {
        char *text = arena_alloc(a, s.len);
        if (!text) return (struct str){0};
        out = str_n(text, 0);
        for (size_t i = 0; i < s.len; i++) {
            if (s.at[i] != '%') {
                text[out.len++] = s.at[i];
                continue;
            }
            int byte = escape_at(s, i);
            if (byte < 0) {
                *bad = true;
                return (struct str){0};
            }
            text[out.len++] = (char)byte;
            i += 2;
        }
    }
    if (!utf8_valid(out)) {
        *bad = true;
        return (struct str){0};
    }
    return out;
}

struct str percent_decode_form(struct arena *a, struct str s) {
    if (s.len == 0) return STR("");
    if (!memchr(s.at, '%', s.len) && !memchr(s.at, '+', s.len)) return s;
    char *text = arena_alloc(a, s.len);
    if (!text) return (struct str){0};
    size_t n = 0;
    for (size_t i = 0; i < s.len; i++) {
        int byte = s.at[i] == '%' ? escape_at(s, i) : -1;
        if (byte >= 0) {
            text[n++] = (char)byte;
            i += 2;
        } else {
            text[n++] = s.at[i] == '+' ? ' ' : s.at[i];
        }
    }
    return str_n(text, n);
}

/* Calls with the raw text between separators; empty pieces are skipped. */
static bool next_piece(struct str *rest, char separator, struct str *piece) {
    while (rest->len) {
        const char *end = memchr(rest->at, separator, rest->len);
        size_t n = end ? (size_t)(end - rest->at) : rest->len;
        *piece = str_n(rest->at, n);
        size_t used = end ? n + 1 : n;
        *rest = str_n(rest->at + used, rest->len - used);
        if (n) return true;
    }
    return false;
}

bool form_decode(struct arena *a, struct str text, size_t max, struct pairs *out, bool *many) {
    *out = (struct pairs){0};
    *many = false;
    struct str rest = text, piece;
    size_t count = 0;
    while (next_piece(&rest, '&', &piece)) count++;
    if (count > max) {
        *many = true;
        return false;
    }
    if (count == 0) return true;
    out->at = arena_zalloc(a, count, sizeof *out->at);
    if (!out->at) return false;
    rest = text;
    while (next_piece(&rest, '&', &piece)) {
        const char *equals = memchr(piece.at, '=', piece.len);
        size_t n = equals ? (size_t)(equals - piece.at) : piece.len;
        struct pair *p = &out->at[out->count];
        p->name = percent_decode_form(a, str_n(piece.at, n));
        p->value = equals ? percent_decode_form(a, str_n(equals + 1, piece.len - n - 1)) : STR("");
        if (!p->name.at || !p->value.at) return false;
        out->count++;
    }
    return true;
}

struct str cookie_find(struct str header, struct str name) {
    struct str rest = header, piece;
    while (next_piece(&rest, ';', &piece)) {
        piece = str_trim(piece);
        const char *equals = piece.len ? memchr(piece.at, '=', piece.len) : NULL;
        if (!equals) continue;
        struct str key = str_trim(str_n(piece.at, (size_t)(equals - piece.at)));
        if (!str_eq(key, name)) continue;
        struct str value = str_trim(str_n(equals + 1, piece.len - (size_t)(equals - piece.at) - 1));
        if (value.len >= 2 && value.at[0] == '"' && value.at[value.len - 1] == '"')
            value = str_n(value.at + 1, value.len - 2);
        return value;
    }
    return (struct str){0};
}
