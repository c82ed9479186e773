#include "script/bind_mongo_bson.h"

#include <lauxlib.h>
#include <math.h>
#include <stdio.h>

#include "runtime/clock.h"
#include "runtime/str.h"
#include "script/json.h"

#define VALUE "core.mongo.value"
#define ORDERED "core.mongo.ordered"
#define MAX_EXACT 9007199254740992.0

/* A value that Lua has no type for: full userdata with the metatable VALUE. */
struct value {
    enum { OID, DATE, INT64 } kind;
    bson_oid_t oid;
    int64_t number;
};

/* ---- to BSON ---- */

static bool append_table(lua_State *L, int idx, bson_t *out, bool array, int depth, struct error *err);

static bool no_memory(struct error *err) {
    return error_set(err, ERR_MEMORY, "out of memory");
}

static bool added(bool ok, struct error *err) {
    return ok ? true : error_set(err, ERR_LIMIT, "a document is larger than BSON allows");
}

static bool has_metatable(lua_State *L, int idx, const char *name) {
    if (!lua_getmetatable(L, idx)) return false;
    luaL_getmetatable(L, name);
    bool same = lua_rawequal(L, -1, -2);
    lua_pop(L, 2);
    return same;
}

static bool is_array(lua_State *L, int idx) {
    return lua_objlen(L, idx) > 0 || json_is_marked(L, idx);
}

static bool append_number(bson_t *out, struct str key, double n) {
    bool whole = floor(n) == n && fabs(n) <= MAX_EXACT;
    if (!whole) return bson_append_double(out, key.at, (int)key.len, n);
    if (n >= INT32_MIN && n <= INT32_MAX) return bson_append_int32(out, key.at, (int)key.len, (int32_t)n);
    return bson_append_int64(out, key.at, (int)key.len, (int64_t)n);
}

static bool append_value(bson_t *out, struct str key, const struct value *v) {
    switch (v->kind) {
    case OID:
        return bson_append_oid(out, key.at, (int)key.len, &v->oid);
    case DATE:
        return bson_append_date_time(out, key.at, (int)key.len, v->number);
    case INT64:
        return bson_append_int64(out, key.at, (int)key.len, v->number);
    }
    return false;
}

static bool append_string(lua_State *L, int idx, bson_t *out, struct str key, struct error *err) {
    struct str s;
    s.at = lua_tolstring(L, idx, &s.len);
    if (s.len > BSON_BYTES) return error_set(err, ERR_LIMIT, "a document is larger than %zu bytes", BSON_BYTES);
    if (!bson_utf8_validate(s.at, s.len, true))
        return error_set(err, ERR_INVALID, "the text of %.*s is not UTF-8", (int)(key.len < 100 ? key.len : 100),
                         key.at);
    return added(bson_append_utf8(out, key.at, (int)key.len, s.at, (int)s.len), err);
}

/* Appends the value on top of the stack. */
static bool append_top(lua_State *L, bson_t *out, struct str key, int depth, struct error *err) {
    int idx = lua_gettop(L);
    if (out->len > BSON_BYTES) return error_set(err, ERR_LIMIT, "a document is larger than %zu bytes", BSON_BYTES);
    switch (lua_type(L, idx)) {
    case LUA_TSTRING:
        return append_string(L, idx, out, key, err);
    case LUA_TNUMBER:
        return added(append_number(out, key, lua_tonumber(L, idx)), err);
    case LUA_TBOOLEAN:
        return added(bson_append_bool(out, key.at, (int)key.len, lua_toboolean(L, idx)), err);
    case LUA_TLIGHTUSERDATA:
        if (lua_touserdata(L, idx)) break;
        return added(bson_append_null(out, key.at, (int)key.len), err);
    case LUA_TUSERDATA:
        if (!has_metatable(L, idx, VALUE)) break;
        return added(append_value(out, key, lua_touserdata(L, idx)), err);
    case LUA_TTABLE: {
        bson_t child;
        bool array = !has_metatable(L, idx, ORDERED) && is_array(L, idx);
        bool begun = array ? bson_append_array_begin(out, key.at, (int)key.len, &child)
                           : bson_append_document_begin(out, key.at, (int)key.len, &child);
        if (!begun) return added(false, err);
        bool ok = append_table(L, idx, &child, array, depth + 1, err);
        /* Also after a failure: it gives the buffer back to the parent, which is then destroyed whole. */
        bool ended = array ? bson_append_array_end(out, &child) : bson_append_document_end(out, &child);
        return ok && added(ended, err);
    }
    default:
        break;
    }
    return error_set(err, ERR_INVALID, "a %s cannot be put into a document (member %.*s)", luaL_typename(L, idx),
                     (int)(key.len < 100 ? key.len : 100), key.at);
}

/* The string at `idx` as a member's name. */
static bool member_name(lua_State *L, int idx, struct str *key, struct error *err) {
    if (lua_type(L, idx) != LUA_TSTRING)
        return error_set(err, ERR_INVALID, "a document's members need text names (found a %s)", luaL_typename(L, idx));
    key->at = lua_tolstring(L, idx, &key->len);
    if (key->len > 1024 || memchr(key->at, 0, key->len) || !bson_utf8_validate(key->at, key->len, false))
        return error_set(err, ERR_INVALID, "a document's member has a bad name");
    return true;
}

static bool append_array(lua_State *L, int idx, bson_t *out, int depth, struct error *err) {
    size_t n = lua_objlen(L, idx), members = 0;
    for (lua_pushnil(L); lua_next(L, idx); lua_pop(L, 1)) members++;
    if (members != n) return error_set(err, ERR_INVALID, "an array has holes or named members");
    for (size_t i = 1; i <= n; i++) {
        char number[16];
        const char *text;
        size_t len = bson_uint32_to_string((uint32_t)(i - 1), &text, number, sizeof number);
        lua_rawgeti(L, idx, (int)i);
        bool ok = append_top(L, out, str_n(text, len), depth, err);
        lua_pop(L, 1);
        if (!ok) return false;
    }
    return true;
}

static bool append_pairs(lua_State *L, int idx, bson_t *out, int depth, struct error *err) {
    size_t n = lua_objlen(L, idx);
    for (size_t i = 1; i <= n; i++) {
        int top = lua_gettop(L);
        lua_rawgeti(L, idx, (int)i);
        bool ok =
            lua_istable(L, -1) || error_set(err, ERR_INVALID, "an ordered document is a list of {name, value} pairs");
        if (ok) {
            struct str key = {0};
            lua_rawgeti(L, top + 1, 1);
            lua_rawgeti(L, top + 1, 2);
            ok = member_name(L, top + 2, &key, err) && append_top(L, out, key, depth, err);
        }
        lua_settop(L, top);
        if (!ok) return false;
    }
    return true;
}

static bool append_members(lua_State *L, int idx, bson_t *out, int depth, struct error *err) {
    for (lua_pushnil(L); lua_next(L, idx); lua_pop(L, 1)) {
        struct str key = {0};
        if (member_name(L, lua_gettop(L) - 1, &key, err) && append_top(L, out, key, depth, err)) continue;
        lua_pop(L, 2);
        return false;
    }
    return true;
}

static bool append_table(lua_State *L, int idx, bson_t *out, bool array, int depth, struct error *err) {
    if (depth > BSON_DEPTH) return error_set(err, ERR_LIMIT, "a document is nested deeper than %d", BSON_DEPTH);
    if (!lua_checkstack(L, 8)) return no_memory(err);
    if (array) return append_array(L, idx, out, depth, err);
    return has_metatable(L, idx, ORDERED) ? append_pairs(L, idx, out, depth, err)
                                          : append_members(L, idx, out, depth, err);
}

enum shape { TABLE, LIST, PAIRS };

static bson_t *from(lua_State *L, int idx, enum shape shape, struct error *err) {
    if (idx < 0) idx = lua_gettop(L) + idx + 1;
    bson_t *out = bson_new();
    bool ok = lua_checkstack(L, 8) ? true : no_memory(err);
    if (ok && shape == PAIRS && lua_objlen(L, idx) > 0) {
        ok = append_pairs(L, idx, out, 1, err);
    } else if (ok) {
        ok = append_table(L, idx, out, shape == LIST, 1, err);
    }
    if (ok && shape == PAIRS && lua_objlen(L, idx) == 0 && bson_count_keys(out) > 1)
        ok = error_set(err, ERR_INVALID, "the order matters here: write {{\"a\", 1}, {\"b\", -1}}");
    if (ok && out->len > BSON_BYTES) ok = error_set(err, ERR_LIMIT, "a document is larger than %zu bytes", BSON_BYTES);
    if (ok) return out;
    bson_destroy(out);
    return NULL;
}

bson_t *bson_from_table(lua_State *L, int idx, struct error *err) {
    return from(L, idx, TABLE, err);
}

bson_t *bson_from_list(lua_State *L, int idx, struct error *err) {
    return from(L, idx, LIST, err);
}

bson_t *bson_from_pairs(lua_State *L, int idx, struct error *err) {
    return from(L, idx, PAIRS, err);
}

/* ---- from BSON ---- */

static bool push_iter(lua_State *L, bson_iter_t *it, bool array, int depth, struct error *err);

static bool push_nested(lua_State *L, const bson_iter_t *it, bool array, int depth, struct error *err) {
    bson_iter_t child;
    if (!bson_iter_recurse(it, &child)) return error_set(err, ERR_INTERNAL, "MongoDB sent a damaged document");
    return push_iter(L, &child, array, depth + 1, err);
}

/* Pushes one value. False: nothing is pushed. */
static bool push_value(lua_State *L, const bson_iter_t *it, int depth, struct error *err) {
    uint32_t len = 0;
    char text[BSON_DECIMAL128_STRING > 32 ? BSON_DECIMAL128_STRING : 32];
    switch (bson_iter_type(it)) {
    case BSON_TYPE_UTF8: {
        const char *at = bson_iter_utf8(it, &len);
        lua_pushlstring(L, at, len);
        return true;
    }
    case BSON_TYPE_INT32:
    case BSON_TYPE_INT64:
        lua_pushnumber(L, (lua_Number)bson_iter_as_int64(it));
        return true;
    case BSON_TYPE_DOUBLE:
        lua_pushnumber(L, bson_iter_double(it));
        return true;
    case BSON_TYPE_BOOL:
        lua_pushboolean(L, bson_iter_bool(it));
        return true;
    case BSON_TYPE_OID:
        bson_oid_to_string(bson_iter_oid(it), text);
        lua_pushlstring(L, text, 24);
        return true;
    case BSON_TYPE_DATE_TIME:
        clock_iso(bson_iter_date_time(it), text);
        lua_pushstring(L, text);
        return true;
    case BSON_TYPE_DOCUMENT:
        return push_nested(L, it, false, depth, err);
    case BSON_TYPE_ARRAY:
        return push_nested(L, it, true, depth, err);
    case BSON_TYPE_BINARY: {
        const uint8_t *bytes;
        bson_subtype_t subtype;
        bson_iter_binary(it, &subtype, &len, &bytes);
        lua_pushlstring(L, (const char *)bytes, len);
        return true;
    }
    case BSON_TYPE_DECIMAL128: {
        bson_decimal128_t decimal;
        if (!bson_iter_decimal128(it, &decimal)) return error_set(err, ERR_INTERNAL, "MongoDB sent a damaged number");
        bson_decimal128_to_string(&decimal, text);
        lua_pushstring(L, text);
        return true;
    }
    case BSON_TYPE_TIMESTAMP: {
        uint32_t seconds = 0, order = 0;
        bson_iter_timestamp(it, &seconds, &order);
        lua_pushnumber(L, seconds);
        return true;
    }
    default: /* null, undefined, and what no document of ours holds */
        lua_pushlightuserdata(L, NULL);
        return true;
    }
}

static bool push_iter(lua_State *L, bson_iter_t *it, bool array, int depth, struct error *err) {
    if (depth > BSON_DEPTH) return error_set(err, ERR_LIMIT, "a document is nested deeper than %d", BSON_DEPTH);
    if (!lua_checkstack(L, 8)) return no_memory(err);
    int n = 0;
    lua_newtable(L);
    while (bson_iter_next(it)) {
        if (!array) lua_pushlstring(L, bson_iter_key(it), bson_iter_key_len(it));
        if (!push_value(L, it, depth, err)) {
            lua_pop(L, array ? 1 : 2);
            return false;
        }
        if (array) {
            lua_rawseti(L, -2, ++n);
        } else {
            lua_rawset(L, -3);
        }
    }
    if (array && n == 0) json_mark_array(L, lua_gettop(L));
    return true;
}

bool bson_push(lua_State *L, const bson_t *doc, struct error *err) {
    bson_iter_t it;
    if (!bson_iter_init(&it, doc)) return error_set(err, ERR_INTERNAL, "MongoDB sent a damaged document");
    return push_iter(L, &it, false, 1, err);
}

/* ---- values ---- */

static struct value *new_value(lua_State *L) {
    struct value *v = lua_newuserdata(L, sizeof *v);
    *v = (struct value){.kind = INT64};
    luaL_getmetatable(L, VALUE);
    lua_setmetatable(L, -2);
    return v;
}

static int l_oid(lua_State *L) {
    size_t len;
    const char *hex = luaL_checklstring(L, 1, &len);
    luaL_argcheck(L, bson_oid_is_valid(hex, len) && len == 24, 1, "must be 24 hex digits");
    struct value *v = new_value(L);
    v->kind = OID;
    bson_oid_init_from_string(&v->oid, hex);
    return 1;
}

static int l_new_oid(lua_State *L) {
    struct value *v = new_value(L);
    v->kind = OID;
    bson_oid_init(&v->oid, NULL);
    return 1;
}

static int l_date(lua_State *L) {
    lua_Number ms = luaL_checknumber(L, 1);
    luaL_argcheck(L, floor(ms) == ms && fabs(ms) <= 8.64e15, 1, "must be whole milliseconds");
    struct value *v = new_value(L);
    v->kind = DATE;
    v->number = (int64_t)ms;
    return 1;
}

static int l_int64(lua_State *L) {
    int64_t n = 0;
    if (lua_type(L, 1) == LUA_TSTRING) {
        struct str s;
        s.at = lua_tolstring(L, 1, &s.len);
        luaL_argcheck(L, str_int64(s, &n), 1, "must be a whole number");
    } else {
        lua_Number d = luaL_checknumber(L, 1);
        luaL_argcheck(L, floor(d) == d && fabs(d) <= MAX_EXACT, 1,
                      "must be a whole number up to 2^53; write larger ones as text");
        n = (int64_t)d;
    }
    new_value(L)->number = n;
    return 1;
}

static int l_ordered(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    luaL_getmetatable(L, ORDERED);
    lua_setmetatable(L, 1);
    return 1;
}

/* An ObjectId reads as its hex digits, a date as ISO text, an int64 in full. */
static int l_value_text(lua_State *L) {
    const struct value *v = luaL_checkudata(L, 1, VALUE);
    char text[32];
    int len = 24;
    if (v->kind == OID) {
        bson_oid_to_string(&v->oid, text);
    } else if (v->kind == DATE) {
        clock_iso(v->number, text);
    } else {
        len = snprintf(text, sizeof text, "%lld", (long long)v->number);
    }
    lua_pushlstring(L, text, (size_t)len);
    return 1;
}

void bson_open(lua_State *L) {
    static const luaL_Reg functions[] = {{"oid", l_oid},     {"new_oid", l_new_oid}, {"date", l_date},
                                         {"int64", l_int64}, {"ordered", l_ordered}, {NULL, NULL}};
    luaL_newmetatable(L, VALUE);
    lua_pushcfunction(L, l_value_text);
    lua_setfield(L, -2, "__tostring");
    luaL_newmetatable(L, ORDERED);
    lua_pop(L, 2);
    luaL_register(L, NULL, functions);
}
