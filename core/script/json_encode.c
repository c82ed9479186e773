/* The encoder. One pass over a table with lua_next tells whether it is an array (the keys come as 1, 2, 3, ...) while
 * it is written; only a list whose elements lie in the hash part is gone through twice. */
#include <lauxlib.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "script/json.h"
#include "script/json_scan.h"

#define EXACT_MAX 9007199254740992.0 /* 2^53 */
#define LUA_TCDATA 10                /* LuaJIT's type number, which its headers do not name */

static char array_key, order_key, orders_key;

struct encoder {
    lua_State *L;
    struct buf *out;
    struct error *err;
    const void *array_mt;
    unsigned depth;
    bool sorted;
    char path[120]; /* grows at the front while an error unwinds */
};

static void push_array_mt(lua_State *L) {
    lua_pushlightuserdata(L, &array_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    if (!lua_isnil(L, -1)) return;
    lua_pop(L, 1);
    lua_createtable(L, 0, 1);
    lua_pushlightuserdata(L, &array_key);
    lua_pushboolean(L, 1);
    lua_rawset(L, -3);
    lua_pushlightuserdata(L, &array_key);
    lua_pushvalue(L, -2);
    lua_rawset(L, LUA_REGISTRYINDEX);
}

void json_mark_array(lua_State *L, int idx) {
    if (idx < 0) idx = lua_gettop(L) + idx + 1;
    push_array_mt(L);
    lua_setmetatable(L, idx);
}

/* The metatable on top; the one of json.empty_array only names the mark. */
static bool is_array_mt(lua_State *L) {
    lua_pushlightuserdata(L, &array_key);
    lua_rawget(L, -2);
    bool yes = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return yes;
}

bool json_is_marked(lua_State *L, int idx) {
    if (!lua_getmetatable(L, idx)) return false;
    bool yes = is_array_mt(L);
    lua_pop(L, 1);
    return yes;
}

void json_push_array_mark(lua_State *L) {
    lua_pushlightuserdata(L, &array_key);
}

void json_push_order_mt(lua_State *L, int idx) {
    if (idx < 0) idx = lua_gettop(L) + idx + 1;
    /* registry[&orders_key]: list -> metatable, keys weak. */
    lua_pushlightuserdata(L, &orders_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    if (lua_isnil(L, -1)) {
        lua_pop(L, 1);
        lua_newtable(L);
        lua_createtable(L, 0, 1);
        lua_pushliteral(L, "k");
        lua_setfield(L, -2, "__mode");
        lua_setmetatable(L, -2);
        lua_pushlightuserdata(L, &orders_key);
        lua_pushvalue(L, -2);
        lua_rawset(L, LUA_REGISTRYINDEX);
    }
    lua_pushvalue(L, idx);
    lua_rawget(L, -2);
    if (lua_isnil(L, -1)) {
        lua_pop(L, 1);
        lua_createtable(L, 0, 1);
        lua_pushlightuserdata(L, &order_key);
        lua_pushvalue(L, idx);
        lua_rawset(L, -3);
        lua_pushvalue(L, idx);
        lua_pushvalue(L, -2);
        lua_rawset(L, -4);
    }
    lua_remove(L, -2);
}

static bool out_of_memory(struct encoder *e) {
    return error_set(e->err, ERR_MEMORY, "no memory for JSON text");
}

/* Appends " at <path>" to nothing yet: members put themselves in front while the error goes up. */
static bool in_member(struct encoder *e, const char *key) {
    char longer[sizeof e->path];
    int n = snprintf(longer, sizeof longer, ".%.40s%s", key, e->path);
    if (n > 0 && (size_t)n < sizeof longer) memcpy(e->path, longer, (size_t)n + 1);
    return false;
}

static bool in_element(struct encoder *e, int index) {
    char longer[sizeof e->path];
    int n = snprintf(longer, sizeof longer, "[%d]%s", index, e->path);
    if (n > 0 && (size_t)n < sizeof longer) memcpy(e->path, longer, (size_t)n + 1);
    return false;
}

static inline bool put_byte(struct encoder *e, char c) {
    struct buf *b = e->out;
    if (b->len == b->cap && !buf_reserve(b, 1)) return out_of_memory(e);
    b->data[b->len++] = c;
    return true;
}

/* The string in its quotes; `before` and `after` are left out when they are NUL. */
static inline bool put_string(struct encoder *e, char before, const char *s, size_t len, char after) {
    struct buf *b = e->out;
    if (b->cap - b->len < len + 4 && !buf_reserve(b, len + 4)) return out_of_memory(e);
    char *at = b->data + b->len;
    if (before) *at++ = before;
    if (!json_copy_plain(at + 1, s, len)) {
        b->len = (size_t)(at - b->data);
        if (!buf_json_string(b, str_n(s, len))) return out_of_memory(e);
        return !after || put_byte(e, after);
    }
    at[0] = '"';
    at[len + 1] = '"';
    at[len + 2] = after;
    b->len = (size_t)(at - b->data) + len + 2 + (after != '\0');
    return true;
}

static bool put_integer(struct encoder *e, int64_t value) {
    static const char pairs[] = "00010203040506070809101112131415161718192021222324252627282930313233343536373839"
                                "40414243444546474849505152535455565758596061626364656667686970717273747576777879"
                                "8081828384858687888990919293949596979899";
    char digits[24], *at = digits + sizeof digits;
    uint64_t rest = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    while (rest >= 100) {
        at -= 2;
        memcpy(at, pairs + rest % 100 * 2, 2);
        rest /= 100;
    }
    if (rest >= 10) {
        at -= 2;
        memcpy(at, pairs + rest * 2, 2);
    } else {
        *--at = (char)('0' + rest);
    }
    if (value < 0) *--at = '-';
    size_t len = (size_t)(digits + sizeof digits - at);
    struct buf *b = e->out;
    if (b->cap - b->len < len && !buf_reserve(b, len)) return out_of_memory(e);
    memcpy(b->data + b->len, at, len);
    b->len += len;
    return true;
}

static bool put_number(struct encoder *e, double value) {
    if (value >= -EXACT_MAX && value <= EXACT_MAX) {
        int64_t whole = (int64_t)value;
        if ((double)whole == value) return put_integer(e, whole);
    } else if (!isfinite(value)) {
        return error_set(e->err, ERR_INVALID, "a number that is not finite cannot be JSON");
    }
    /* The shortest text that reads back as the same double. */
    char text[40];
    int n = 0;
    for (int digits = 15; digits <= 17; digits++) {
        n = snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    /* A whole number this large would be read back as text: the point keeps it a number. */
    if (strspn(text, "-0123456789") == (size_t)n) n = snprintf(text, sizeof text, "%.17g.0", value);
    return buf_add(e->out, str_n(text, (size_t)n)) || out_of_memory(e);
}

/* 64-bit integers of the FFI print as 123LL or 123ULL. */
static bool put_cdata(struct encoder *e, int idx) {
    lua_State *L = e->L;
    size_t len = 0;
    const char *text = luaL_callmeta(L, idx, "__tostring") ? lua_tolstring(L, -1, &len) : NULL;
    bool ok = text && len > 2 && strcmp(text + len - 2, "LL") == 0;
    if (!ok) return error_set(e->err, ERR_INVALID, "cdata other than a 64-bit integer cannot be JSON");
    len -= text[len - 3] == 'U' ? 3 : 2;
    ok = buf_add(e->out, str_n(text, len)) || out_of_memory(e);
    lua_pop(L, 1);
    return ok;
}

static bool value(struct encoder *e, int idx);

/* `before`, then the value at key + 1 under the key at `key`; both are on top. */
static bool member(struct encoder *e, char before, int key) {
    size_t len;
    const char *name = lua_tolstring(e->L, key, &len);
    if (put_string(e, before, name, len, ':') && value(e, key + 1)) return true;
    return in_member(e, lua_tostring(e->L, key));
}

/* Elements 1..n of the table, which has no other keys. */
static bool elements(struct encoder *e, int idx, int n) {
    if (!put_byte(e, '[')) return false;
    for (int i = 1; i <= n; i++) {
        if (i > 1 && !put_byte(e, ',')) return false;
        lua_rawgeti(e->L, idx, i);
        if (!value(e, lua_gettop(e->L))) return in_element(e, i);
        lua_pop(e->L, 1);
    }
    return put_byte(e, ']');
}

/* A table with number keys that did not come in order: an array only if they are 1..n without a gap. */
static bool unordered_list(struct encoder *e, int idx) {
    lua_State *L = e->L;
    double largest = 0;
    int count = 0;
    lua_pushnil(L);
    while (lua_next(L, idx)) {
        lua_pop(L, 1);
        double key = lua_type(L, -1) == LUA_TNUMBER ? lua_tonumber(L, -1) : 0;
        if (!(key >= 1) || key != floor(key))
            return error_set(e->err, ERR_INVALID, "a table with both list elements and other members cannot be JSON");
        if (key > largest) largest = key;
        count++;
    }
    if (largest != count) return error_set(e->err, ERR_INVALID, "a list with gaps cannot be JSON");
    return elements(e, idx, count);
}

struct name {
    uint64_t head; /* the first eight bytes, which mostly decide */
    struct str text;
};

#define FEW_NAMES 32

static struct name name_at(lua_State *L, int idx) {
    struct name n = {0};
    n.text.at = lua_tolstring(L, idx, &n.text.len);
    for (size_t i = 0; i < 8; i++) n.head = n.head << 8 | (i < n.text.len ? (uint8_t)n.text.at[i] : 0);
    return n;
}

static int by_bytes(const void *a, const void *b) {
    const struct name *x = a, *y = b;
    if (x->head != y->head) return x->head < y->head ? -1 : 1;
    int c = memcmp(x->text.at, y->text.at, x->text.len < y->text.len ? x->text.len : y->text.len);
    return c != 0 ? c : (x->text.len > y->text.len) - (x->text.len < y->text.len);
}

static void sort_names(struct name *names, size_t n) {
    if (n > FEW_NAMES) {
        qsort(names, n, sizeof *names, by_bytes);
        return;
    }
    for (size_t i = 1; i < n; i++) {
        struct name one = names[i];
        size_t at = i;
        for (; at > 0 && by_bytes(&one, &names[at - 1]) < 0; at--) names[at] = names[at - 1];
        names[at] = one;
    }
}

/* The members in the order of their names, but those that the table at `seen` has (0: all); `before` the first. */
static bool sorted_members(struct encoder *e, int idx, int seen, char before) {
    lua_State *L = e->L;
    int top = lua_gettop(L);
    struct name few[FEW_NAMES], *names = few;
    size_t n = 0, room = FEW_NAMES;
    for (;;) {
        n = 0;
        lua_pushnil(L);
        while (lua_next(L, idx)) {
            lua_pop(L, 1);
            if (lua_type(L, -1) != LUA_TSTRING) return error_set(e->err, ERR_INVALID, "an object's keys must be text");
            if (n < room) names[n] = name_at(L, -1);
            n++;
        }
        if (n <= room) break;
        room = n;
        names = lua_newuserdata(L, room * sizeof *names); /* Lua's, as what follows may raise */
    }
    sort_names(names, n);
    for (size_t i = 0; i < n; i++) {
        lua_pushlstring(L, names[i].text.at, names[i].text.len);
        int key = lua_gettop(L);
        if (seen) {
            lua_pushvalue(L, key);
            lua_rawget(L, seen);
            bool done = lua_toboolean(L, -1);
            lua_settop(L, done ? key - 1 : key);
            if (done) continue;
        }
        lua_pushvalue(L, key);
        lua_rawget(L, idx);
        if (!member(e, before, key)) return false;
        before = ',';
        lua_settop(L, key - 1);
    }
    lua_settop(L, top);
    return true;
}

/* The table's members, those that `order` names first. */
static bool ordered_object(struct encoder *e, int idx, int order) {
    lua_State *L = e->L;
    bool first = true;
    if (!put_byte(e, '{')) return false;
    size_t n = lua_objlen(L, order);
    lua_createtable(L, 0, (int)n);
    int seen = lua_gettop(L);
    for (size_t i = 1; i <= n; i++) {
        lua_rawgeti(L, order, (int)i);
        if (lua_type(L, -1) != LUA_TSTRING)
            return error_set(e->err, ERR_INVALID, "an order of members is a list of names");
        lua_pushvalue(L, -1);
        lua_rawget(L, seen);
        bool twice = lua_toboolean(L, -1);
        lua_pop(L, 1);
        lua_pushvalue(L, -1);
        lua_rawget(L, idx);
        if (!twice && !lua_isnil(L, -1)) {
            if (!member(e, first ? '\0' : ',', lua_gettop(L) - 1)) return false;
            first = false;
        }
        lua_pop(L, 1);
        lua_pushboolean(L, 1);
        lua_rawset(L, seen);
    }
    if (!sorted_members(e, idx, seen, first ? '\0' : ',')) return false;
    lua_pop(L, 1);
    return put_byte(e, '}');
}

static bool plain_table(struct encoder *e, int idx, bool marked) {
    lua_State *L = e->L;
    struct buf *b = e->out;
    size_t start = b->len;
    int key = lua_gettop(L) + 1;
    lua_pushnil(L);
    if (!lua_next(L, idx)) return buf_add(b, marked ? STR("[]") : STR("{}")) || out_of_memory(e);
    if (lua_type(L, -2) == LUA_TSTRING && !marked && e->sorted) {
        lua_pop(L, 2);
        return sorted_members(e, idx, 0, '{') && put_byte(e, '}');
    }
    if (lua_type(L, key) == LUA_TSTRING && !marked) {
        char before = '{';
        do {
            if (lua_type(L, key) != LUA_TSTRING)
                return error_set(e->err, ERR_INVALID,
                                 "a table with both list elements and other members cannot be JSON");
            if (!member(e, before, key)) return false;
            before = ',';
            lua_pop(L, 1);
        } while (lua_next(L, idx));
        return put_byte(e, '}');
    }
    int n = 0;
    do {
        if (lua_type(L, key) != LUA_TNUMBER || lua_tonumber(L, key) != (double)(n + 1)) {
            lua_pop(L, 2);
            b->len = start;
            return unordered_list(e, idx);
        }
        n++;
        if (!put_byte(e, n == 1 ? '[' : ',')) return false;
        if (!value(e, key + 1)) return in_element(e, n);
        lua_pop(L, 1);
    } while (lua_next(L, idx));
    return put_byte(e, ']');
}

static bool table(struct encoder *e, int idx) {
    lua_State *L = e->L;
    if (++e->depth > JSON_DEPTH)
        return error_set(e->err, ERR_LIMIT, "a value nested deeper than %d, or in itself, cannot be JSON", JSON_DEPTH);
    if (e->out->len > JSON_BYTES) return error_set(e->err, ERR_LIMIT, "JSON is longer than %zu bytes", JSON_BYTES);
    if (!lua_checkstack(L, 12)) return error_set(e->err, ERR_MEMORY, "no memory for the Lua stack");
    bool ok, marked = false;
    if (lua_getmetatable(L, idx)) {
        if (lua_topointer(L, -1) == e->array_mt) {
            marked = true;
        } else {
            lua_pushlightuserdata(L, &order_key);
            lua_rawget(L, -2);
            if (lua_istable(L, -1)) {
                ok = ordered_object(e, idx, lua_gettop(L));
                if (ok) lua_pop(L, 2);
                e->depth--;
                return ok;
            }
            lua_pop(L, 1);
            marked = is_array_mt(L);
        }
        lua_pop(L, 1);
    }
    ok = plain_table(e, idx, marked);
    e->depth--;
    return ok;
}

static bool value(struct encoder *e, int idx) {
    lua_State *L = e->L;
    size_t len;
    const char *s;
    switch (lua_type(L, idx)) {
    case LUA_TSTRING:
        s = lua_tolstring(L, idx, &len);
        return put_string(e, '\0', s, len, '\0');
    case LUA_TNUMBER:
        return put_number(e, lua_tonumber(L, idx));
    case LUA_TBOOLEAN:
        return buf_add(e->out, lua_toboolean(L, idx) ? STR("true") : STR("false")) || out_of_memory(e);
    case LUA_TTABLE:
        return table(e, idx);
    case LUA_TNIL:
        return buf_add(e->out, STR("null")) || out_of_memory(e);
    case LUA_TLIGHTUSERDATA:
        if (lua_touserdata(L, idx) == NULL) return buf_add(e->out, STR("null")) || out_of_memory(e);
        break;
    case LUA_TCDATA:
        return put_cdata(e, idx);
    default:
        break;
    }
    return error_set(e->err, ERR_INVALID, "a %s cannot be JSON", lua_typename(L, lua_type(L, idx)));
}

static bool encode(lua_State *L, int idx, bool sorted, struct buf *out, struct error *err) {
    int top = lua_gettop(L);
    if (idx < 0) idx = top + idx + 1;
    if (!lua_checkstack(L, 8)) return error_set(err, ERR_MEMORY, "no memory for the Lua stack");
    struct error own;
    if (!err) err = &own;
    struct encoder e = {.L = L, .out = out, .err = err, .sorted = sorted};
    push_array_mt(L);
    e.array_mt = lua_topointer(L, -1);
    lua_pop(L, 1);
    if (value(&e, idx)) {
        if (out->len <= JSON_BYTES) return true;
        error_set(err, ERR_LIMIT, "JSON is longer than %zu bytes", JSON_BYTES);
    }
    lua_settop(L, top);
    if (*e.path) {
        size_t n = strlen(err->message);
        int put = snprintf(err->message + n, sizeof err->message - n, " (at %s)", e.path);
        if (put < 0) err->message[n] = '\0';
    }
    return false;
}

bool json_encode(lua_State *L, int idx, struct buf *out, struct error *err) {
    return encode(L, idx, false, out, err);
}

bool json_encode_sorted(lua_State *L, int idx, struct buf *out, struct error *err) {
    return encode(L, idx, true, out, err);
}
