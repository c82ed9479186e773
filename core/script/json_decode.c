/* The decoder: recursive descent, at most JSON_DEPTH deep, each value pushed as it is read. Errors read like those of
 * the JavaScript engine that the clients know. */
#include <lauxlib.h>
#include <math.h>

#include "runtime/utf8.h"
#include "script/json.h"
#include "script/json_scan.h"

#define EXACT_MAX 9007199254740992.0 /* 2^53 */
#define SCRATCH 512
#define GUESS_MAX 64

/* Known keys. Each knows which key came behind it last time, and which came first in the object under it, so that in
 * texts that are alike every key but the first of a new kind is right there: one comparison instead of a scan, a hash
 * and a search. A key's place follows from its bytes; a newcomer takes the place of who was there.
 *
 * What must hold: keys_table[i] is the Lua string of keys[i].text. It is an array with room for all, so that writing to
 * it cannot fail in between. Place 0 stands for "no key": for what is above the text, and for keys that are not kept
 * (long ones, and those with escapes or beyond ASCII). */
#define KEYS 1024
#define KEY_MAX 30
struct key {
    uint16_t next, first;   /* places */
    uint8_t len;            /* 0: nobody is here */
    char text[KEY_MAX + 1]; /* with its closing quote */
};
static struct key keys[KEYS];
static const void *keys_table; /* the Lua table of the VM that has them */
static char keys_key;          /* registry[&keys_key]: that table */

struct decoder {
    lua_State *L;
    int keys;         /* stack index of the table of known keys; 0: there is none */
    unsigned context; /* place of the key under which the value lies */
    const unsigned char *start, *at, *end;
    struct error *err;
    unsigned depth;
    /* How many members the last object, or elements the last array, of this depth had (0: there was none): lists of
     * alike things are the rule, and a table made in the right size is not rehashed. */
    unsigned char members[JSON_DEPTH + 1], elements[JSON_DEPTH + 1];
};

/* How large the first object and array of each depth were in the text before. What one worker reads is much alike. */
static unsigned char first_members[JSON_DEPTH + 1], first_elements[JSON_DEPTH + 1];

/* Positions count UTF-16 units, as JavaScript does. */
static size_t position(const struct decoder *d, const unsigned char *at) {
    size_t n = 0;
    for (const unsigned char *p = d->start; p < at; p++) n += (*p & 0xC0) == 0x80 ? 0 : *p >= 0xF0 ? 2 : 1;
    return n;
}

static bool unexpected(struct decoder *d, const unsigned char *at) {
    if (at >= d->end) return error_set(d->err, ERR_INVALID, "Unexpected end of JSON input");
    size_t pos = position(d, at);
    if (*at == '"') return error_set(d->err, ERR_INVALID, "Unexpected string in JSON at position %zu", pos);
    if ((*at >= '0' && *at <= '9') || *at == '-')
        return error_set(d->err, ERR_INVALID, "Unexpected number in JSON at position %zu", pos);
    size_t n = utf8_length(at, d->end);
    if (n == 0) return error_set(d->err, ERR_INVALID, "Invalid UTF-8 in JSON at position %zu", pos);
    if (n == 3 && memcmp(at, "\xEF\xBB\xBF", 3) == 0) /* which nobody sees */
        return error_set(d->err, ERR_INVALID, "Unexpected byte order mark in JSON at position %zu", pos);
    if (*at == 0) return error_set(d->err, ERR_INVALID, "Unexpected token \\u0000 in JSON at position %zu", pos);
    return error_set(d->err, ERR_INVALID, "Unexpected token %.*s in JSON at position %zu", (int)n, (const char *)at,
                     pos);
}

static void skip_blanks(struct decoder *d) {
    while (d->at < d->end && (*d->at == ' ' || *d->at == '\n' || *d->at == '\r' || *d->at == '\t')) d->at++;
}

static int hex4(const unsigned char *p) {
    int v = 0;
    for (int i = 0; i < 4; i++) {
        int c = p[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (digit < 0) return -1;
        v = v << 4 | digit;
    }
    return v;
}

static char *put_utf8(char *out, unsigned cp) {
    if (cp < 0x80) {
        *out++ = (char)cp;
    } else if (cp < 0x800) {
        *out++ = (char)(0xC0 | cp >> 6);
        *out++ = (char)(0x80 | (cp & 0x3F));
    } else if (cp < 0x10000) {
        *out++ = (char)(0xE0 | cp >> 12);
        *out++ = (char)(0x80 | (cp >> 6 & 0x3F));
        *out++ = (char)(0x80 | (cp & 0x3F));
    } else {
        *out++ = (char)(0xF0 | cp >> 18);
        *out++ = (char)(0x80 | (cp >> 12 & 0x3F));
        *out++ = (char)(0x80 | (cp >> 6 & 0x3F));
        *out++ = (char)(0x80 | (cp & 0x3F));
    }
    return out;
}

/* The \u escape whose 'u' is at p; *p is moved behind it. False: the error is set. */
static bool unicode_escape(struct decoder *d, const unsigned char **p, unsigned *cp) {
    const unsigned char *u = *p;
    for (int i = 1; i <= 4; i++)
        if (u + i >= d->end || !((u[i] >= '0' && u[i] <= '9') || ((u[i] | 32) >= 'a' && (u[i] | 32) <= 'f')))
            return unexpected(d, u + i);
    int high = hex4(u + 1);
    *p = u + 5;
    *cp = (unsigned)high;
    if (high < 0xD800 || high > 0xDFFF) return true;
    const unsigned char *next = u + 5;
    int low = high < 0xDC00 && d->end - next >= 6 && next[0] == '\\' && next[1] == 'u' ? hex4(next + 2) : -1;
    if (low < 0xDC00 || low > 0xDFFF)
        return error_set(d->err, ERR_INVALID, "Half of a surrogate pair in JSON at position %zu", position(d, u - 1));
    *cp = 0x10000 + ((*cp - 0xD800) << 10) + ((unsigned)low - 0xDC00);
    *p = next + 6;
    return true;
}

/* A string with escapes; d->at is behind the opening quote, `p` at the first byte that is not plain. */
static bool escaped_string(struct decoder *d, const unsigned char *p) {
    const unsigned char *close = p;
    while (close < d->end && *close != '"') close += *close == '\\' ? 2 : 1;
    if (close > d->end) close = d->end;
    size_t most = (size_t)(close - d->at); /* no escape is shorter than what it stands for */
    char local[SCRATCH];
    int top = lua_gettop(d->L);
    char *scratch = most <= sizeof local ? local : lua_newuserdata(d->L, most);
    char *out = scratch;
    p = d->at;
    for (;;) {
        const unsigned char *run = p;
        p = json_skip_plain(p, d->end);
        memcpy(out, run, (size_t)(p - run));
        out += p - run;
        if (p >= d->end) return unexpected(d, d->end);
        if (*p == '"') break;
        if (*p == '\\') {
            if (++p >= d->end) return unexpected(d, p);
            unsigned cp = 0;
            switch (*p) {
            case '"':
            case '\\':
            case '/':
                *out++ = (char)*p++;
                break;
            case 'b':
                *out++ = '\b', p++;
                break;
            case 'f':
                *out++ = '\f', p++;
                break;
            case 'n':
                *out++ = '\n', p++;
                break;
            case 'r':
                *out++ = '\r', p++;
                break;
            case 't':
                *out++ = '\t', p++;
                break;
            case 'u':
                if (!unicode_escape(d, &p, &cp)) return false;
                out = put_utf8(out, cp);
                break;
            default:
                return unexpected(d, p);
            }
        } else {
            size_t n = *p < 0x20 ? 0 : utf8_length(p, d->end);
            if (n == 0) return unexpected(d, p);
            memcpy(out, p, n);
            out += n;
            p += n;
        }
    }
    d->at = p + 1;
    lua_pushlstring(d->L, scratch, (size_t)(out - scratch));
    if (scratch != local) lua_replace(d->L, top + 1);
    return true;
}

/* d->at is at the opening quote. */
static bool string(struct decoder *d) {
    const unsigned char *p = ++d->at;
    for (;;) {
        p = json_skip_plain(p, d->end);
        if (p >= d->end) return unexpected(d, d->end);
        if (*p == '"') {
            lua_pushlstring(d->L, (const char *)d->at, (size_t)(p - d->at));
            d->at = p + 1;
            return true;
        }
        if (*p == '\\') return escaped_string(d, p);
        size_t n = *p < 0x20 ? 0 : utf8_length(p, d->end);
        if (n == 0) return unexpected(d, p);
        p += n;
    }
}

/* A key that was not foreseen: its place, after it was pushed; -1: the error is set. d->at is at the opening quote. */
static int find_key(struct decoder *d) {
    const unsigned char *p = d->at + 1, *close = json_skip_plain(p, d->end);
    size_t len = (size_t)(close - p);
    if (!d->keys || len == 0 || len > KEY_MAX || close == d->end || *close != '"') return string(d) ? 0 : -1;
    uint32_t mixed = p[0] | (uint32_t)p[len / 2] << 8 | (uint32_t)p[len - 1] << 16 | (uint32_t)len << 24;
    unsigned place = (mixed * 0x9E3779B1u) >> 22;
    if (place == 0) place = 1;
    struct key *k = &keys[place];
    if (k->len == len && memcmp(k->text, p, len) == 0) {
        lua_rawgeti(d->L, d->keys, (int)place);
    } else {
        lua_pushlstring(d->L, (const char *)p, len);
        lua_pushvalue(d->L, -1);
        lua_rawseti(d->L, d->keys, (int)place);
        k->len = (uint8_t)len;
        k->next = k->first = 0;
        memcpy(k->text, p, len + 1);
    }
    d->at = close + 1;
    return (int)place;
}

/* Pushes the key whose opening quote is at d->at; `foreseen` is the place of who came here last time. */
static inline int next_key(struct decoder *d, unsigned foreseen) {
    const struct key *k = &keys[foreseen];
    const unsigned char *p = d->at + 1;
    if (!d->keys || k->len == 0 || (size_t)(d->end - p) <= k->len || memcmp(p, k->text, (size_t)k->len + 1) != 0)
        return find_key(d);
    lua_rawgeti(d->L, d->keys, (int)foreseen);
    d->at = p + k->len + 1;
    return (int)foreseen;
}

void json_keep_keys(lua_State *L) {
    lua_pushlightuserdata(L, &keys_key);
    lua_createtable(L, KEYS, 0);
    memset(keys, 0, sizeof keys);
    keys_table = lua_topointer(L, -1);
    lua_rawset(L, LUA_REGISTRYINDEX);
}

/* Pushes this VM's table of known keys, if it has it; its stack index, or 0. */
static int push_keys(lua_State *L) {
    lua_pushlightuserdata(L, &keys_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    if (lua_istable(L, -1) && lua_topointer(L, -1) == keys_table) return lua_gettop(L);
    lua_pop(L, 1);
    return 0;
}

static const double tens[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                              1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

static inline bool digit(const struct decoder *d, const unsigned char *p) {
    return p < d->end && *p >= '0' && *p <= '9';
}

static bool number(struct decoder *d) {
    const unsigned char *first = d->at, *p = first;
    bool negative = *p == '-', whole = true;
    if (negative) p++;
    if (!digit(d, p)) return unexpected(d, p);
    uint64_t mantissa = 0;
    int digits = 0, scale = 0;
    if (*p == '0') {
        p++;
        if (digit(d, p)) return unexpected(d, p);
    } else {
        for (; digit(d, p); p++, digits++)
            if (digits < 18) mantissa = mantissa * 10 + (*p - '0');
    }
    if (p < d->end && *p == '.') {
        whole = false;
        p++;
        if (!digit(d, p)) return unexpected(d, p);
        for (; digit(d, p); p++, digits++) {
            if (digits < 18) mantissa = mantissa * 10 + (*p - '0');
            scale--;
        }
    }
    if (p < d->end && (*p | 32) == 'e') {
        whole = false;
        p++;
        bool down = p < d->end && *p == '-';
        if (p < d->end && (*p == '-' || *p == '+')) p++;
        if (!digit(d, p)) return unexpected(d, p);
        int exponent = 0;
        for (; digit(d, p); p++)
            if (exponent < 100000) exponent = exponent * 10 + (*p - '0');
        scale += down ? -exponent : exponent;
    }
    d->at = p;
    double value = 0;
    if (digits <= 18 && mantissa <= (uint64_t)EXACT_MAX && scale >= -22 && scale <= 22) {
        /* Both operands are exact doubles, so the one operation rounds right. */
        value = (double)mantissa;
        value = scale < 0 ? value / tens[-scale] : value * tens[scale];
        if (negative) value = -value;
    } else if (whole) {
        lua_pushlstring(d->L, (const char *)first, (size_t)(p - first));
        return true;
    } else {
        /* Lua's own reader rounds right and knows no locale. */
        lua_pushlstring(d->L, (const char *)first, (size_t)(p - first));
        value = lua_tonumber(d->L, -1);
        lua_pop(d->L, 1);
        if (!isfinite(value))
            return error_set(d->err, ERR_INVALID, "Number out of range in JSON at position %zu", position(d, first));
    }
    lua_pushnumber(d->L, value);
    return true;
}

static bool literal(struct decoder *d, const char *word, size_t len) {
    for (size_t i = 0; i < len; i++)
        if (d->at + i >= d->end || d->at[i] != (unsigned char)word[i]) return unexpected(d, d->at + i);
    d->at += len;
    return true;
}

static bool value(struct decoder *d);

static bool enter(struct decoder *d) {
    d->at++;
    if (++d->depth > JSON_DEPTH) return error_set(d->err, ERR_LIMIT, "JSON is nested deeper than %d", JSON_DEPTH);
    skip_blanks(d);
    return true;
}

static bool object(struct decoder *d) {
    if (!enter(d)) return false;
    if (d->at < d->end && *d->at == '}') {
        lua_createtable(d->L, 0, 0);
        d->at++;
        d->depth--;
        return true;
    }
    unsigned depth = d->depth, n = 0, context = d->context;
    uint16_t *foreseen = &keys[context].first;
    unsigned guess = d->members[depth] ? d->members[depth] : first_members[depth];
    lua_createtable(d->L, 0, (int)(guess ? guess : 4));
    for (;;) {
        skip_blanks(d);
        if (d->at >= d->end || *d->at != '"') return unexpected(d, d->at);
        int place = next_key(d, *foreseen);
        if (place < 0) return false;
        *foreseen = (uint16_t)place;
        foreseen = &keys[place].next;
        d->context = (unsigned)place;
        skip_blanks(d);
        if (d->at >= d->end || *d->at != ':') return unexpected(d, d->at);
        d->at++;
        if (!value(d)) return false;
        lua_rawset(d->L, -3);
        n++;
        skip_blanks(d);
        if (d->at >= d->end || (*d->at != ',' && *d->at != '}')) return unexpected(d, d->at);
        if (*d->at++ == '}') break;
    }
    n = n < GUESS_MAX ? n : GUESS_MAX;
    if (!d->members[depth]) first_members[depth] = (unsigned char)n;
    d->members[depth] = (unsigned char)n;
    d->context = context;
    d->depth--;
    return true;
}

static bool array(struct decoder *d) {
    if (!enter(d)) return false;
    if (d->at < d->end && *d->at == ']') {
        lua_createtable(d->L, 0, 0);
        json_mark_array(d->L, -1);
        d->at++;
        d->depth--;
        return true;
    }
    unsigned depth = d->depth;
    unsigned guess = d->elements[depth] ? d->elements[depth] : first_elements[depth];
    int n = 0;
    lua_createtable(d->L, (int)(guess > 4 ? guess : 4), 0);
    for (;;) {
        if (!value(d)) return false;
        lua_rawseti(d->L, -2, ++n);
        skip_blanks(d);
        if (d->at >= d->end || (*d->at != ',' && *d->at != ']')) return unexpected(d, d->at);
        if (*d->at++ == ']') break;
    }
    n = n < GUESS_MAX ? n : GUESS_MAX;
    if (!d->elements[depth]) first_elements[depth] = (unsigned char)n;
    d->elements[depth] = (unsigned char)n;
    d->depth--;
    return true;
}

static bool value(struct decoder *d) {
    skip_blanks(d);
    if (d->at >= d->end) return unexpected(d, d->at);
    switch (*d->at) {
    case '"':
        return string(d);
    case '{':
        return object(d);
    case '[':
        return array(d);
    case 't':
        if (!literal(d, "true", 4)) return false;
        lua_pushboolean(d->L, 1);
        return true;
    case 'f':
        if (!literal(d, "false", 5)) return false;
        lua_pushboolean(d->L, 0);
        return true;
    case 'n':
        if (!literal(d, "null", 4)) return false;
        lua_pushlightuserdata(d->L, NULL);
        return true;
    default:
        if (*d->at == '-' || (*d->at >= '0' && *d->at <= '9')) return number(d);
        return unexpected(d, d->at);
    }
}

bool json_decode(lua_State *L, struct str text, struct error *err) {
    if (text.len > JSON_BYTES) return error_set(err, ERR_LIMIT, "JSON is longer than %zu bytes", JSON_BYTES);
    /* A level holds its table and a key or value; a few more for the innermost. */
    if (!lua_checkstack(L, JSON_DEPTH * 2 + 16)) return error_set(err, ERR_MEMORY, "no memory for the Lua stack");
    int top = lua_gettop(L);
    const unsigned char *at = (const unsigned char *)text.at;
    struct decoder d = {
        .L = L, .keys = push_keys(L), .start = at, .at = at, .end = at ? at + text.len : at, .err = err};
    if (value(&d)) {
        skip_blanks(&d);
        if (d.at == d.end) {
            if (d.keys) lua_replace(L, d.keys);
            return true;
        }
        unexpected(&d, d.at);
    }
    lua_settop(L, top);
    return false;
}
