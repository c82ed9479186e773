/* Values go both ways in text form, by the type's OID: what Lua can hold exactly becomes a number, a boolean or a
 * table, all else a string; a timestamp becomes the ISO form that clients see. An integer that a double cannot carry is
 * an error, never rounded. */
#include "script/bind_pg_value.h"

#include <lauxlib.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "script/guard.h"
#include "script/json.h"
#include "script/task.h"

#define PARAMS_MAX 1000
#define ARRAY_MAX 100000
#define COUNTS_MAX 4096 /* texts that are known; those put together at run time could go on for ever */
#define EXACT 9007199254740992.0

static char param_mt;   /* registry[&param_mt]: metatable of what pg.array and its like make: {text} */
static char counts_key; /* registry[&counts_key]: text of a statement -> highest $n; [1]: how many texts */

/* ---- parameters ---- */

static void push_param(lua_State *L, int text) {
    text = text < 0 ? lua_gettop(L) + 1 + text : text;
    lua_createtable(L, 1, 0);
    lua_pushvalue(L, text);
    lua_rawseti(L, -2, 1);
    lua_pushlightuserdata(L, &param_mt);
    lua_rawget(L, LUA_REGISTRYINDEX);
    if (lua_isnil(L, -1)) {
        lua_pop(L, 1);
        lua_newtable(L);
        lua_pushlightuserdata(L, &param_mt);
        lua_pushvalue(L, -2);
        lua_rawset(L, LUA_REGISTRYINDEX);
    }
    lua_setmetatable(L, -2);
}

static bool is_param(lua_State *L, int idx) {
    if (!lua_getmetatable(L, idx)) return false;
    lua_pushlightuserdata(L, &param_mt);
    lua_rawget(L, LUA_REGISTRYINDEX);
    bool same = lua_rawequal(L, -1, -2);
    lua_pop(L, 2);
    return same;
}

static void push_number_text(lua_State *L, lua_Number n) {
    char text[40];
    int len = n == floor(n) && fabs(n) <= EXACT ? snprintf(text, sizeof text, "%.0f", n)
                                                : snprintf(text, sizeof text, "%.17g", n);
    lua_pushlstring(L, text, (size_t)len);
}

static int out_of_memory(lua_State *L, struct buf *b) {
    buf_free(b);
    return luaL_error(L, "out of memory");
}

static bool add_quoted(struct buf *b, struct str s) {
    if (!buf_byte(b, '"')) return false;
    for (size_t i = 0; i < s.len; i++) {
        if ((s.at[i] == '"' || s.at[i] == '\\') && !buf_byte(b, '\\')) return false;
        if (!buf_byte(b, s.at[i])) return false;
    }
    return buf_byte(b, '"');
}

int pg_value_array(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    size_t n = lua_objlen(L, 1);
    luaL_argcheck(L, n <= ARRAY_MAX, 1, "too many elements");
    for (size_t i = 1; i <= n; i++) { /* checked first, so that nothing raises while the buffer is held */
        lua_rawgeti(L, 1, (int)i);
        int type = lua_type(L, -1);
        bool null = type == LUA_TLIGHTUSERDATA && !lua_touserdata(L, -1);
        if (!null && type != LUA_TSTRING && type != LUA_TNUMBER && type != LUA_TBOOLEAN)
            return luaL_error(L, "pg.array: element %d is a %s", (int)i, luaL_typename(L, -1));
        lua_pop(L, 1);
    }
    struct buf b = {0};
    if (!buf_byte(&b, '{')) return out_of_memory(L, &b);
    for (size_t i = 1; i <= n; i++) {
        lua_rawgeti(L, 1, (int)i);
        bool ok = i == 1 || buf_byte(&b, ',');
        int type = lua_type(L, -1);
        if (type == LUA_TSTRING) {
            struct str s;
            s.at = lua_tolstring(L, -1, &s.len);
            ok = ok && add_quoted(&b, s);
        } else if (type == LUA_TNUMBER) {
            lua_Number v = lua_tonumber(L, -1);
            ok = ok && (v == floor(v) && fabs(v) <= EXACT ? buf_printf(&b, "%.0f", v) : buf_printf(&b, "%.17g", v));
        } else if (type == LUA_TBOOLEAN) {
            ok = ok && buf_byte(&b, lua_toboolean(L, -1) ? 't' : 'f');
        } else {
            ok = ok && buf_add(&b, STR("NULL"));
        }
        if (!ok) return out_of_memory(L, &b);
        lua_pop(L, 1);
    }
    if (!buf_byte(&b, '}')) return out_of_memory(L, &b);
    guard_push_buf(L, &b);
    push_param(L, -1);
    return 1;
}

int pg_value_json(lua_State *L) {
    luaL_checkany(L, 1);
    lua_settop(L, 1);
    struct buf b = {0};
    struct error err;
    if (!json_encode(L, 1, &b, &err)) {
        buf_free(&b);
        return luaL_error(L, "pg.json: %s", err.message);
    }
    guard_push_buf(L, &b);
    push_param(L, -1);
    return 1;
}

int pg_value_bytea(lua_State *L) {
    static const char hex[] = "0123456789abcdef";
    size_t len;
    const char *raw = luaL_checklstring(L, 1, &len);
    luaL_argcheck(L, len <= (size_t)64 * 1024 * 1024, 1, "too long");
    char *text = lua_newuserdata(L, len * 2 + 2);
    text[0] = '\\';
    text[1] = 'x';
    for (size_t i = 0; i < len; i++) {
        text[2 + i * 2] = hex[(unsigned char)raw[i] >> 4];
        text[3 + i * 2] = hex[(unsigned char)raw[i] & 15];
    }
    lua_pushlstring(L, text, len * 2 + 2);
    push_param(L, -1);
    return 1;
}

/* Past what begins at `p` and may hold anything: a quoted text or name, a comment, a dollar-quoted text. `p` itself
 * when none begins. */
static const char *past_quoted(const char *p, bool escapes) {
    if (*p == '\'' || *p == '"') {
        char quote = *p++;
        while (*p && *p != quote) p += escapes && *p == '\\' && p[1] ? 2 : 1;
        return *p ? p + 1 : p;
    }
    if (p[0] == '-' && p[1] == '-') return p + strcspn(p, "\n");
    if (p[0] == '/' && p[1] == '*') {
        const char *end = strstr(p + 2, "*/");
        return end ? end + 2 : p + strlen(p);
    }
    if (*p != '$') return p;
    size_t tag = 1 + strspn(p + 1, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_");
    if (p[tag] != '$') return p;
    for (const char *end = strchr(p + tag + 1, '$'); end; end = strchr(end + 1, '$'))
        if (strncmp(end, p, tag + 1) == 0) return end + tag + 1;
    return p + strlen(p);
}

/* The highest $n of a statement. */
static int highest_parameter(const char *sql) {
    int most = 0;
    for (const char *p = sql; *p;) {
        const char *past = past_quoted(p, p > sql && (p[-1] | 32) == 'e');
        if (past != p) {
            p = past;
            continue;
        }
        if (*p++ != '$') continue;
        int n = 0;
        while (*p >= '0' && *p <= '9' && n < 100000) n = n * 10 + (*p++ - '0');
        if (n > most) most = n;
    }
    return most;
}

static void push_counts(lua_State *L, bool anew) {
    lua_pushlightuserdata(L, &counts_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    if (!anew && !lua_isnil(L, -1)) return;
    lua_pop(L, 1);
    lua_newtable(L);
    lua_pushlightuserdata(L, &counts_key);
    lua_pushvalue(L, -2);
    lua_rawset(L, LUA_REGISTRYINDEX);
}

static int parameters_of(lua_State *L, int sql) {
    push_counts(L, false);
    lua_pushvalue(L, sql);
    lua_rawget(L, -2);
    if (!lua_isnil(L, -1)) {
        int n = (int)lua_tointeger(L, -1);
        lua_pop(L, 2);
        return n;
    }
    lua_rawgeti(L, -2, 1);
    lua_Integer known = lua_tointeger(L, -1) + 1;
    lua_pop(L, 3);
    bool full = known > COUNTS_MAX;
    push_counts(L, full);
    lua_pushinteger(L, full ? 1 : known);
    lua_rawseti(L, -2, 1);
    int n = highest_parameter(lua_tostring(L, sql));
    lua_pushvalue(L, sql);
    lua_pushinteger(L, n);
    lua_rawset(L, -3);
    lua_pop(L, 1);
    return n;
}

/* The parameter at `idx` as text; a text that has to be made replaces it on the stack. */
static struct str parameter(lua_State *L, int idx, int number) {
    struct str s = {0};
    switch (lua_type(L, idx)) {
    case LUA_TSTRING:
        break;
    case LUA_TNUMBER:
        push_number_text(L, lua_tonumber(L, idx));
        lua_replace(L, idx);
        break;
    case LUA_TBOOLEAN:
        lua_pushstring(L, lua_toboolean(L, idx) ? "t" : "f");
        lua_replace(L, idx);
        break;
    case LUA_TLIGHTUSERDATA:
        if (!lua_touserdata(L, idx)) return s; /* NULL */
        luaL_error(L, "parameter $%d is a userdata", number);
        break;
    case LUA_TTABLE:
        if (!is_param(L, idx)) luaL_error(L, "parameter $%d is a plain table: pg.array or pg.json?", number);
        lua_rawgeti(L, idx, 1);
        lua_replace(L, idx);
        break;
    case LUA_TNIL:
        luaL_error(L, "parameter $%d is nil: NULL is json.null", number);
        break;
    default:
        luaL_error(L, "parameter $%d is a %s", number, luaL_typename(L, idx));
    }
    s.at = lua_tolstring(L, idx, &s.len);
    if (memchr(s.at, '\0', s.len)) luaL_error(L, "parameter $%d holds a NUL byte", number);
    return s;
}

void pg_value_statement(lua_State *L, int sql, int last, struct pg_statement *s) {
    s->sql.at = luaL_checklstring(L, sql, &s->sql.len);
    int count = last - sql;
    int want = parameters_of(L, sql);
    if (count != want) luaL_error(L, "the statement has %d parameters, %d were given (a nil at the end?)", want, count);
    if (count > PARAMS_MAX) luaL_error(L, "more than %d parameters", PARAMS_MAX);
    struct str *values = lua_newuserdata(L, sizeof *values * (size_t)(count ? count : 1));
    for (int i = 0; i < count; i++) values[i] = parameter(L, sql + 1 + i, i + 1);
    s->params = (size_t)count;
    s->value = values;
}

void pg_value_statement_table(lua_State *L, int idx, struct pg_statement *s) {
    luaL_checktype(L, idx, LUA_TTABLE);
    lua_rawgeti(L, idx, 1);
    if (!lua_isstring(L, -1)) luaL_error(L, "a statement begins with its text");
    int want = parameters_of(L, lua_gettop(L));
    luaL_checkstack(L, want + 8, "a statement's parameters");
    int sql = lua_gettop(L);
    for (int i = 1; i <= want; i++) lua_rawgeti(L, idx, i + 1);
    lua_rawgeti(L, idx, want + 2);
    if (!lua_isnil(L, -1)) luaL_error(L, "the statement has %d parameters, more were given", want);
    lua_pop(L, 1);
    pg_value_statement(L, sql, lua_gettop(L), s);
}

/* ---- rows ---- */

enum oid {
    OID_BOOL = 16,
    OID_BYTEA = 17,
    OID_INT8 = 20,
    OID_INT2 = 21,
    OID_INT4 = 23,
    OID_TEXT = 25,
    OID_OID = 26,
    OID_JSON = 114,
    OID_FLOAT4 = 700,
    OID_FLOAT8 = 701,
    OID_TIMESTAMPTZ = 1184,
    OID_JSONB = 3802,
};

static bool push_integer(lua_State *L, struct str s, struct error *err) {
    int64_t n;
    if (!str_int64(s, &n) || n > INT64_C(9007199254740992) || n < -INT64_C(9007199254740992))
        return error_set(err, ERR_LIMIT, "the integer %.*s is larger than a number can carry", STR_FMT(s));
    lua_pushnumber(L, (lua_Number)n);
    return true;
}

/* "2026-11-29 03:00:01.2+00" to "2026-11-29T03:00:01.200Z"; anything else (infinity, another zone) stays as it is. */
static void push_timestamp(lua_State *L, struct str s) {
    char out[25];
    bool plain = s.len >= 22 && s.at[4] == '-' && s.at[7] == '-' && s.at[10] == ' ' && s.at[13] == ':' &&
                 s.at[16] == ':' && memcmp(s.at + s.len - 3, "+00", 3) == 0;
    if (!plain) {
        lua_pushlstring(L, s.at, s.len);
        return;
    }
    memcpy(out, s.at, 19);
    out[10] = 'T';
    memcpy(out + 19, ".000Z", sizeof ".000Z");
    if (s.at[19] == '.')
        for (size_t i = 0; i < 3 && 20 + i < s.len - 3; i++) out[20 + i] = s.at[20 + i];
    lua_pushlstring(L, out, 24);
}

static int digit(char c) {
    return c <= '9' ? c - '0' : (c | 32) - 'a' + 10;
}

static void push_bytea(lua_State *L, struct str s) {
    if (s.len < 2 || s.at[0] != '\\' || s.at[1] != 'x') {
        lua_pushlstring(L, s.at, s.len);
        return;
    }
    size_t n = (s.len - 2) / 2;
    char *raw = lua_newuserdata(L, n ? n : 1);
    for (size_t i = 0; i < n; i++) raw[i] = (char)(digit(s.at[2 + i * 2]) << 4 | digit(s.at[3 + i * 2]));
    lua_pushlstring(L, raw, n);
    lua_remove(L, -2);
}

static bool push_scalar(lua_State *L, unsigned type, struct str s, struct error *err);

/* The type of an array's elements (text stands for all that stay strings); 0: not an array that we know. */
static unsigned element_of(unsigned type) {
    static const unsigned short known[][2] = {
        {1000, OID_BOOL}, {1001, OID_BYTEA},  {1005, OID_INT2},        {1007, OID_INT4}, {1016, OID_INT8},
        {1028, OID_OID},  {1021, OID_FLOAT4}, {1022, OID_FLOAT8},      {199, OID_JSON},  {3807, OID_JSONB},
        {1009, OID_TEXT}, {1015, OID_TEXT},   {1185, OID_TIMESTAMPTZ}, {2951, OID_TEXT}, {1231, OID_TEXT},
        {1182, OID_TEXT}, {1014, OID_TEXT},   {1003, OID_TEXT},        {1115, OID_TEXT}, {1041, OID_TEXT},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i][0] == type) return known[i][1];
    return 0;
}

/* One dimension: {a,"b \"c\"",NULL}. */
static bool push_array(lua_State *L, unsigned element, struct str s, struct error *err) {
    lua_newtable(L);
    json_mark_array(L, -1);
    int n = 0;
    size_t i = 1;
    if (s.len < 2 || s.at[0] != '{' || s.at[1] == '{')
        return error_set(err, ERR_LIMIT, "only arrays of one dimension are understood");
    while (i < s.len && s.at[i] != '}') {
        bool quoted = s.at[i] == '"';
        luaL_Buffer b;
        luaL_buffinit(L, &b);
        if (quoted) {
            for (i++; i < s.len && s.at[i] != '"'; i++) {
                if (s.at[i] == '\\' && i + 1 < s.len) i++;
                luaL_addchar(&b, s.at[i]);
            }
            i++;
        } else {
            for (; i < s.len && s.at[i] != ',' && s.at[i] != '}'; i++) luaL_addchar(&b, s.at[i]);
        }
        luaL_pushresult(&b);
        struct str item;
        item.at = lua_tolstring(L, -1, &item.len);
        if (!quoted && str_eq(item, STR("NULL"))) {
            lua_pushlightuserdata(L, NULL);
            lua_replace(L, -2);
        } else if (element != OID_TEXT) {
            if (!push_scalar(L, element, item, err)) return false;
            lua_remove(L, -2);
        }
        lua_rawseti(L, -2, ++n);
        if (i < s.len && s.at[i] == ',') i++;
    }
    return true;
}

static bool push_scalar(lua_State *L, unsigned type, struct str s, struct error *err) {
    switch (type) {
    case OID_BOOL:
        lua_pushboolean(L, s.at[0] == 't');
        return true;
    case OID_INT2:
    case OID_INT4:
    case OID_INT8:
    case OID_OID:
        return push_integer(L, s, err);
    case OID_FLOAT4:
    case OID_FLOAT8:
        lua_pushnumber(L, strtod(s.at, NULL));
        return true;
    case OID_TIMESTAMPTZ:
        push_timestamp(L, s);
        return true;
    case OID_JSON:
    case OID_JSONB:
        return json_decode(L, s, err);
    case OID_BYTEA:
        push_bytea(L, s);
        return true;
    case OID_TEXT:
        lua_pushlstring(L, s.at, s.len);
        return true;
    default: {
        unsigned element = element_of(type);
        if (element) return push_array(L, element, s, err);
        lua_pushlstring(L, s.at, s.len);
        return true;
    }
    }
}

bool pg_value_rows(lua_State *L, const PGresult *r, struct error *err) {
    int rows = PQntuples(r), columns = PQnfields(r), top = lua_gettop(L);
    if (!lua_checkstack(L, columns + 12)) return error_set(err, ERR_LIMIT, "the result has too many columns");
    for (int c = 0; c < columns; c++) lua_pushstring(L, PQfname(r, c));
    lua_createtable(L, rows, 1);
    int list = lua_gettop(L);
    for (int i = 0; i < rows; i++) {
        lua_createtable(L, 0, columns);
        for (int c = 0; c < columns; c++) {
            if (PQgetisnull(r, i, c)) continue;
            lua_pushvalue(L, top + 1 + c);
            if (!push_scalar(L, PQftype(r, c), str_n(PQgetvalue(r, i, c), (size_t)PQgetlength(r, i, c)), err)) {
                lua_settop(L, top);
                return false;
            }
            lua_rawset(L, -3);
        }
        lua_rawseti(L, list, i + 1);
    }
    int64_t affected = 0;
    /* PQcmdTuples takes no const, and changes nothing. */
    const char *text = PQcmdTuples((PGresult *)r);
    if (!str_int64(str_of(text), &affected)) affected = 0;
    lua_pushnumber(L, (lua_Number)affected);
    lua_setfield(L, list, "affected");
    if (columns > 0) lua_replace(L, top + 1); /* over the first name; without columns the list lies there already */
    lua_settop(L, top + 1);
    return true;
}

static void set_text(lua_State *L, const char *name, const char *text) {
    if (!*text) return;
    lua_pushstring(L, text);
    lua_setfield(L, -2, name);
}

int pg_value_error(lua_State *L, const struct pg_error *err) {
    int n = task_fail(L, &err->base);
    set_text(L, "constraint", err->constraint);
    set_text(L, "table", err->table);
    set_text(L, "column", err->column);
    set_text(L, "detail", err->detail);
    if (err->position) {
        lua_pushinteger(L, err->position);
        lua_setfield(L, -2, "position");
    }
    lua_pushinteger(L, (lua_Integer)err->statement + 1);
    lua_setfield(L, -2, "statement");
    return n;
}
