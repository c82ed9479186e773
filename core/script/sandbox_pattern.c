/* Lua 5.1 patterns on a step budget. The stock matcher backtracks inside C, where no hook fires: a pattern of 28 bytes
 * ran 15 seconds there. This one counts a step for every element it tries at a place of the subject; a call that needs
 * more than STEPS_MAX ends the run, and what it used is charged as instructions. */
#include <ctype.h>

#include "script/sandbox_internal.h"

#define STEPS_MAX (1u << 18)
#define CAPTURES_MAX 32
#define DEPTH_MAX 200

#define OPEN (-1)     /* a capture that is not closed yet */
#define POSITION (-2) /* `()`: the place, not the text */

struct matcher {
    lua_State *L;
    const char *subject, *end;
    const char *pattern, *pattern_end;
    unsigned steps;
    int depth;
    int captures;
    struct {
        const char *at;
        ptrdiff_t len;
    } capture[CAPTURES_MAX];
};

static const char *match(struct matcher *m, const char *s, const char *p);

static void step(struct matcher *m) {
    if (++m->steps > STEPS_MAX)
        sandbox_stop(m->L, OUTCOME_PATTERN, "'%.40s' on %zu bytes needed more than %u steps; use text.contains",
                     m->pattern, (size_t)(m->end - m->subject), STEPS_MAX);
}

static bool in_class(unsigned char c, unsigned char letter) {
    bool yes;
    switch (tolower(letter)) {
    case 'a':
        yes = isalpha(c);
        break;
    case 'c':
        yes = iscntrl(c);
        break;
    case 'd':
        yes = isdigit(c);
        break;
    case 'g':
        yes = isgraph(c);
        break;
    case 'l':
        yes = islower(c);
        break;
    case 'p':
        yes = ispunct(c);
        break;
    case 's':
        yes = isspace(c);
        break;
    case 'u':
        yes = isupper(c);
        break;
    case 'w':
        yes = isalnum(c);
        break;
    case 'x':
        yes = isxdigit(c);
        break;
    case 'z':
        yes = c == 0;
        break;
    default:
        return letter == c;
    }
    return isupper(letter) ? !yes : yes;
}

/* Behind the element (a character, a class, a set) that begins at p. */
static const char *element_end(struct matcher *m, const char *p) {
    char first = *p++;
    if (first == '%') {
        if (p >= m->pattern_end) luaL_error(m->L, "malformed pattern (ends with '%%')");
        return p + 1;
    }
    if (first != '[') return p;
    if (p < m->pattern_end && *p == '^') p++;
    do { /* a ']' in first place is a character of the set */
        if (p >= m->pattern_end) luaL_error(m->L, "malformed pattern (missing ']')");
        if (*p++ == '%') p++;
    } while (p >= m->pattern_end || *p != ']');
    return p + 1;
}

/* Whether c is in the set that begins with the '[' at p and ends with the ']' at close. */
static bool in_set(unsigned char c, const char *p, const char *close) {
    bool wanted = true;
    p++;
    if (*p == '^') {
        wanted = false;
        p++;
    }
    while (p < close) {
        if (*p == '%') {
            if (in_class(c, (unsigned char)p[1])) return wanted;
            p += 2;
        } else if (p[1] == '-' && p + 2 < close) {
            if ((unsigned char)p[0] <= c && c <= (unsigned char)p[2]) return wanted;
            p += 3;
        } else {
            if ((unsigned char)*p == c) return wanted;
            p++;
        }
    }
    return !wanted;
}

/* Whether the byte at s fits the element [p, after). */
static bool fits(struct matcher *m, const char *s, const char *p, const char *after) {
    step(m);
    if (s >= m->end) return false;
    unsigned char c = (unsigned char)*s;
    switch (*p) {
    case '.':
        return true;
    case '%':
        return in_class(c, (unsigned char)p[1]);
    case '[':
        return in_set(c, p, after - 1);
    default:
        return (unsigned char)*p == c;
    }
}

static const char *most_first(struct matcher *m, const char *s, const char *p, const char *after) {
    const char *at = s;
    while (fits(m, at, p, after)) at++;
    for (; at >= s; at--) {
        const char *r = match(m, at, after + 1);
        if (r) return r;
    }
    return NULL;
}

static const char *least_first(struct matcher *m, const char *s, const char *p, const char *after) {
    for (;;) {
        const char *r = match(m, s, after + 1);
        if (r) return r;
        if (!fits(m, s, p, after)) return NULL;
        s++;
    }
}

static const char *open_capture(struct matcher *m, const char *s, const char *p, ptrdiff_t what) {
    if (m->captures >= CAPTURES_MAX) luaL_error(m->L, "too many captures");
    m->capture[m->captures].at = s;
    m->capture[m->captures].len = what;
    m->captures++;
    const char *r = match(m, s, p);
    if (!r) m->captures--;
    return r;
}

static const char *close_capture(struct matcher *m, const char *s, const char *p) {
    int i = m->captures - 1;
    while (i >= 0 && m->capture[i].len != OPEN) i--;
    if (i < 0) luaL_error(m->L, "invalid pattern capture");
    m->capture[i].len = s - m->capture[i].at;
    const char *r = match(m, s, p);
    if (!r) m->capture[i].len = OPEN;
    return r;
}

/* %bxy at s; p is behind the 'b'. */
static const char *balanced(struct matcher *m, const char *s, const char *p) {
    if (p + 1 >= m->pattern_end) luaL_error(m->L, "malformed pattern (missing arguments to '%%b')");
    if (s >= m->end || *s != p[0]) return NULL;
    int open = 1;
    while (++s < m->end) {
        step(m);
        if (*s == p[1]) {
            if (--open == 0) return s + 1;
        } else if (*s == p[0]) {
            open++;
        }
    }
    return NULL;
}

/* The text of capture %1..%9 again at s. */
static const char *back_reference(struct matcher *m, const char *s, char digit) {
    int i = digit - '1';
    if (i < 0 || i >= m->captures || m->capture[i].len == OPEN) luaL_error(m->L, "invalid capture index");
    size_t len = m->capture[i].len == POSITION ? 0 : (size_t)m->capture[i].len;
    m->steps += (unsigned)(len / 16);
    step(m);
    if ((size_t)(m->end - s) < len || memcmp(m->capture[i].at, s, len) != 0) return NULL;
    return s + len;
}

static bool frontier(struct matcher *m, const char *s, const char *p, const char *after) {
    unsigned char before = s == m->subject ? 0 : (unsigned char)s[-1];
    unsigned char here = s < m->end ? (unsigned char)*s : 0;
    step(m);
    return !in_set(before, p, after - 1) && in_set(here, p, after - 1);
}

/* Behind the match of [p, pattern_end) at s, or NULL. */
static const char *match(struct matcher *m, const char *s, const char *p) {
    if (++m->depth > DEPTH_MAX) luaL_error(m->L, "pattern too complex");
    const char *result = NULL;
    for (;;) {
        step(m);
        if (p >= m->pattern_end) {
            result = s;
            break;
        }
        if (*p == '(') {
            bool place = p + 1 < m->pattern_end && p[1] == ')';
            result = open_capture(m, s, p + (place ? 2 : 1), place ? POSITION : OPEN);
            break;
        }
        if (*p == ')') {
            result = close_capture(m, s, p + 1);
            break;
        }
        if (*p == '$' && p + 1 == m->pattern_end) {
            result = s == m->end ? s : NULL;
            break;
        }
        if (*p == '%' && p + 1 < m->pattern_end) {
            if (p[1] == 'b') {
                s = balanced(m, s, p + 2);
                if (!s) break;
                p += 4;
                continue;
            }
            if (p[1] == 'f') {
                p += 2;
                if (p >= m->pattern_end || *p != '[') luaL_error(m->L, "missing '[' after '%%f' in pattern");
                const char *after = element_end(m, p);
                if (!frontier(m, s, p, after)) break;
                p = after;
                continue;
            }
            if (p[1] >= '0' && p[1] <= '9') {
                s = back_reference(m, s, p[1]);
                if (!s) break;
                p += 2;
                continue;
            }
        }
        const char *after = element_end(m, p);
        char how = after < m->pattern_end ? *after : '\0';
        if (how == '*') {
            result = most_first(m, s, p, after);
            break;
        }
        if (how == '+') {
            result = fits(m, s, p, after) ? most_first(m, s + 1, p, after) : NULL;
            break;
        }
        if (how == '-') {
            result = least_first(m, s, p, after);
            break;
        }
        bool here = fits(m, s, p, after);
        if (how == '?') {
            if (here) {
                result = match(m, s + 1, after + 1);
                if (result) break;
            }
            p = after + 1;
            continue;
        }
        if (!here) break;
        s++;
        p = after;
    }
    m->depth--;
    return result;
}

static void push_capture(struct matcher *m, int i, const char *s, const char *e) {
    if (i >= m->captures) {
        if (i != 0) luaL_error(m->L, "invalid capture index");
        lua_pushlstring(m->L, s, (size_t)(e - s)); /* no captures: the whole match */
    } else if (m->capture[i].len == POSITION) {
        lua_pushinteger(m->L, m->capture[i].at - m->subject + 1);
    } else {
        if (m->capture[i].len == OPEN) luaL_error(m->L, "unfinished capture");
        lua_pushlstring(m->L, m->capture[i].at, (size_t)m->capture[i].len);
    }
}

static int push_captures(struct matcher *m, const char *s, const char *e, bool whole_if_none) {
    int n = m->captures == 0 && whole_if_none ? 1 : m->captures;
    luaL_checkstack(m->L, n, "too many captures");
    for (int i = 0; i < n; i++) push_capture(m, i, s, e);
    return n;
}

/* Subject and pattern of the arguments 1 and 2. */
static void prepare(lua_State *L, struct matcher *m) {
    size_t ns, np;
    m->L = L;
    m->subject = luaL_checklstring(L, 1, &ns);
    m->pattern = luaL_checklstring(L, 2, &np);
    luaL_argcheck(L, ns <= SANDBOX_TEXT_MAX, 1, "longer than 64 KiB");
    luaL_argcheck(L, np <= SANDBOX_TEXT_MAX, 2, "longer than 64 KiB");
    m->end = m->subject + ns;
    m->pattern_end = m->pattern + np;
    m->steps = 0;
    m->depth = 0;
    m->captures = 0;
}

static bool has_specials(const struct matcher *m) {
    for (const char *p = m->pattern; p < m->pattern_end; p++)
        if (*p && strchr("^$*+?.([%-", *p)) return true;
    return false;
}

static int find(lua_State *L, bool want_place) {
    struct matcher m;
    prepare(L, &m);
    size_t len = (size_t)(m.end - m.subject);
    lua_Integer init = luaL_optinteger(L, 3, 1);
    if (init < 0) init += (lua_Integer)len + 1;
    if (init < 1) init = 1;
    if ((size_t)init > len + 1) init = (lua_Integer)len + 1;
    const char *s = m.subject + init - 1;
    if (want_place) sandbox_charge(L, (size_t)(m.pattern_end - m.pattern) / 16); /* it is looked through */
    if (want_place && (lua_toboolean(L, 4) || !has_specials(&m))) {
        size_t np = (size_t)(m.pattern_end - m.pattern);
        sandbox_charge(L, 1 + (size_t)(m.end - s) / 8);
        const char *at = np == 0 ? s : memmem(s, (size_t)(m.end - s), m.pattern, np);
        if (!at) {
            lua_pushnil(L);
            return 1;
        }
        lua_pushinteger(L, at - m.subject + 1);
        lua_pushinteger(L, at - m.subject + (ptrdiff_t)np);
        return 2;
    }
    const char *p = m.pattern;
    bool anchored = p < m.pattern_end && *p == '^';
    if (anchored) p++;
    do {
        m.captures = 0;
        const char *e = match(&m, s, p);
        if (e) {
            sandbox_charge(L, m.steps);
            if (!want_place) return push_captures(&m, s, e, true);
            lua_pushinteger(L, s - m.subject + 1);
            lua_pushinteger(L, e - m.subject);
            return 2 + push_captures(&m, s, e, false);
        }
    } while (s++ < m.end && !anchored);
    sandbox_charge(L, m.steps);
    lua_pushnil(L);
    return 1;
}

static int l_find(lua_State *L) {
    return find(L, true);
}

static int l_match(lua_State *L) {
    return find(L, false);
}

/* Upvalues: subject, pattern, offset of the next try. */
static int next_match(lua_State *L) {
    lua_settop(L, 0);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_pushvalue(L, lua_upvalueindex(2));
    struct matcher m;
    prepare(L, &m);
    for (const char *s = m.subject + lua_tointeger(L, lua_upvalueindex(3)); s <= m.end; s++) {
        m.captures = 0;
        const char *e = match(&m, s, m.pattern);
        if (!e) continue;
        sandbox_charge(L, m.steps);
        lua_pushinteger(L, e - m.subject + (e == s)); /* an empty match moves on by one */
        lua_replace(L, lua_upvalueindex(3));
        return push_captures(&m, s, e, true);
    }
    sandbox_charge(L, m.steps);
    return 0;
}

static int l_gmatch(lua_State *L) {
    luaL_checkstring(L, 1);
    luaL_checkstring(L, 2);
    lua_settop(L, 2);
    lua_pushinteger(L, 0);
    lua_pushcclosure(L, next_match, 3);
    return 1;
}

struct output {
    luaL_Buffer b;
    size_t len;
};

static void put(lua_State *L, struct output *out, const char *s, size_t len) {
    out->len += len;
    if (out->len > SANDBOX_TEXT_MAX) luaL_error(L, "the result is longer than 64 KiB");
    luaL_addlstring(&out->b, s, len);
}

/* The replacement text with %0..%9 in it. */
static void put_template(struct matcher *m, struct output *out, const char *s, const char *e) {
    size_t len;
    const char *r = lua_tolstring(m->L, 3, &len);
    m->steps += (unsigned)(len / 8);
    for (size_t i = 0; i < len; i++) {
        if (r[i] != '%' || i + 1 == len) {
            put(m->L, out, r + i, 1);
            continue;
        }
        char c = r[++i];
        if (c < '0' || c > '9') {
            put(m->L, out, r + i, 1);
        } else if (c == '0') {
            put(m->L, out, s, (size_t)(e - s));
        } else {
            size_t n;
            push_capture(m, c - '1', s, e);
            const char *text = lua_tolstring(m->L, -1, &n);
            /* The value lies above the buffer's pieces: add it as luaL_addvalue does, after it was measured. */
            out->len += n;
            if (!text || out->len > SANDBOX_TEXT_MAX) luaL_error(m->L, "the result is longer than 64 KiB");
            luaL_addvalue(&out->b);
        }
    }
}

/* What a table or function says instead of the match; the match itself when it says nil or false. */
static void put_answer(struct matcher *m, struct output *out, const char *s, const char *e) {
    lua_State *L = m->L;
    if (lua_type(L, 3) == LUA_TTABLE) {
        push_capture(m, 0, s, e);
        lua_rawget(L, 3);
    } else {
        lua_pushvalue(L, 3);
        int n = push_captures(m, s, e, true);
        sandbox_call(L, n, 1);
    }
    if (!lua_toboolean(L, -1)) {
        lua_pop(L, 1);
        put(L, out, s, (size_t)(e - s));
        return;
    }
    if (!lua_isstring(L, -1)) luaL_error(L, "invalid replacement value (a %s)", luaL_typename(L, -1));
    size_t n;
    const char *text = lua_tolstring(L, -1, &n);
    out->len += n;
    if (!text || out->len > SANDBOX_TEXT_MAX) luaL_error(L, "the result is longer than 64 KiB");
    luaL_addvalue(&out->b);
}

static int l_gsub(lua_State *L) {
    struct matcher m;
    prepare(L, &m);
    int kind = lua_type(L, 3);
    luaL_argcheck(L, kind == LUA_TSTRING || kind == LUA_TNUMBER || kind == LUA_TTABLE || kind == LUA_TFUNCTION, 3,
                  "string/function/table expected");
    size_t most = (size_t)(m.end - m.subject) + 1;
    lua_Number limit = luaL_optnumber(L, 4, (lua_Number)most);
    lua_settop(L, 3);
    const char *p = m.pattern, *s = m.subject;
    bool anchored = p < m.pattern_end && *p == '^';
    if (anchored) p++;
    struct output out; /* not zeroed: the buffer in it is 8 KiB */
    out.len = 0;
    luaL_buffinit(L, &out.b);
    size_t n = 0;
    while ((lua_Number)n < limit) {
        m.captures = 0;
        const char *e = match(&m, s, p);
        if (e) {
            n++;
            if (kind == LUA_TTABLE || kind == LUA_TFUNCTION) {
                put_answer(&m, &out, s, e);
            } else {
                put_template(&m, &out, s, e);
            }
        }
        if (e && e > s) {
            s = e;
        } else if (s < m.end) {
            put(L, &out, s++, 1);
        } else {
            break;
        }
        if (anchored) break;
    }
    if (s < m.end) put(L, &out, s, (size_t)(m.end - s));
    sandbox_charge(L, m.steps);
    luaL_pushresult(&out.b);
    lua_pushnumber(L, (lua_Number)n);
    return 2;
}

void sandbox_open_patterns(lua_State *L) {
    static const luaL_Reg functions[] = {
        {"find", l_find}, {"match", l_match}, {"gmatch", l_gmatch}, {"gsub", l_gsub}, {NULL, NULL}};
    luaL_setfuncs(L, functions, 0);
}
