/* The functions of the sandbox that Lua's own library has too, bounded: base, string, table. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "script/sandbox_internal.h"

/* Where text is put together before it becomes a Lua string. One for all: nothing here calls back into Lua while it
 * uses it, and sandboxes run on the loop's thread only. */
static char scratch[SANDBOX_TEXT_MAX];

const char *sandbox_text(lua_State *L, int idx, char number[32], size_t *len) {
    switch (lua_type(L, idx)) {
    case LUA_TSTRING:
        return lua_tolstring(L, idx, len);
    case LUA_TNUMBER: {
        double v = lua_tonumber(L, idx);
        int n;
        if (v == floor(v) && fabs(v) <= 9007199254740992.0) {
            n = snprintf(number, 32, "%lld", (long long)v);
        } else if (isnan(v)) {
            n = snprintf(number, 32, "nan"); /* the C library would print the sign of the one at hand */
        } else {
            n = snprintf(number, 32, "%.14g", v);
        }
        *len = n > 0 ? (size_t)n : 0;
        return number;
    }
    case LUA_TBOOLEAN:
        *len = lua_toboolean(L, idx) ? 4 : 5;
        return lua_toboolean(L, idx) ? "true" : "false";
    case LUA_TNIL:
        *len = 3;
        return "nil";
    case LUA_TTABLE:
        *len = 5;
        return "table";
    case LUA_TFUNCTION:
        *len = 8;
        return "function";
    case LUA_TUSERDATA: /* a secret */
        *len = 3;
        return "***";
    default:
        *len = 8;
        return "userdata";
    }
}

/* ---- base ---- */

static int call_counted(lua_State *L) {
    sandbox_call(L, lua_gettop(L) - 1, LUA_MULTRET);
    return lua_gettop(L);
}

static int l_pcall(lua_State *L) {
    struct sandbox *sb = sandbox_of(L);
    unsigned depth = sb->depth;
    luaL_checkany(L, 1);
    lua_pushcfunction(L, call_counted);
    lua_insert(L, 1);
    int rc = lua_pcall(L, lua_gettop(L) - 1, LUA_MULTRET, 0);
    sb->depth = depth;
    if (sb->stop != OUTCOME_OK) return lua_error(L);
    sandbox_charge(L, rc == 0 ? 5 : 60); /* throwing and catching costs that much */
    luaL_checkstack(L, 1, "too many results");
    lua_pushboolean(L, rc == 0);
    lua_insert(L, 1);
    return lua_gettop(L);
}

/* The two halves of pcall in a state whose runs may wait. The one of Lua itself stands between them: other than a call
 * from C, it lets a function wait. */
static int enter_pcall(lua_State *L) {
    lua_pushinteger(L, (lua_Integer)sandbox_of(L)->depth);
    return 1;
}

static int leave_pcall(lua_State *L) {
    struct sandbox *sb = sandbox_of(L);
    sb->depth = (unsigned)lua_tointeger(L, 1);
    bool ok = lua_toboolean(L, 2);
    if (sb->stop != OUTCOME_OK) return lua_error(L);
    sandbox_charge(L, ok ? 5 : 60);
    return lua_gettop(L) - 1;
}

static void open_waiting_pcall(lua_State *L) {
    sandbox_push_trusted(L, "local enter, leave, pcall = ...\n"
                            "return function(fn, ...) return leave(enter(), pcall(fn, ...)) end");
    lua_pushcfunction(L, enter_pcall);
    lua_pushcfunction(L, leave_pcall);
    lua_getfield(L, LUA_GLOBALSINDEX, "pcall");
    lua_call(L, 3, 1);
    lua_setfield(L, -2, "pcall");
}

static int l_tostring(lua_State *L) {
    char number[32];
    size_t len;
    luaL_checkany(L, 1);
    const char *text = sandbox_text(L, 1, number, &len);
    if (lua_type(L, 1) == LUA_TSTRING) {
        lua_settop(L, 1);
    } else {
        lua_pushlstring(L, text, len);
    }
    return 1;
}

static int l_tonumber(lua_State *L) {
    int base = (int)luaL_optinteger(L, 2, 10);
    luaL_checkany(L, 1);
    luaL_argcheck(L, base >= 2 && base <= 36, 2, "base out of range");
    if (lua_type(L, 1) == LUA_TNUMBER && base == 10) {
        lua_settop(L, 1);
        return 1;
    }
    size_t len = 0;
    const char *s = lua_type(L, 1) == LUA_TSTRING ? lua_tolstring(L, 1, &len) : NULL;
    if (!s || len > 64) {
        lua_pushnil(L);
    } else if (base == 10) {
        if (lua_isnumber(L, 1)) {
            lua_pushnumber(L, lua_tonumber(L, 1));
        } else {
            lua_pushnil(L);
        }
    } else {
        char *end;
        unsigned long long v = strtoull(s, &end, base);
        while (isspace((unsigned char)*end)) end++;
        if (end == s || end != s + len || strchr(s, '-')) {
            lua_pushnil(L);
        } else {
            lua_pushnumber(L, (lua_Number)v);
        }
    }
    return 1;
}

static int l_unpack(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_Integer first = luaL_optinteger(L, 2, 1);
    lua_Integer last = lua_isnoneornil(L, 3) ? (lua_Integer)lua_objlen(L, 1) : luaL_checkinteger(L, 3);
    if (first > last) return 0;
    if (first < -1000000 || last > 1000000 || last - first >= SANDBOX_VALUES_MAX)
        return luaL_error(L, "unpack gives at most %d values", SANDBOX_VALUES_MAX);
    int n = (int)(last - first + 1);
    luaL_checkstack(L, n, "too many values");
    sandbox_charge(L, (uint64_t)n);
    for (lua_Integer i = first; i <= last; i++) lua_rawgeti(L, 1, (int)i);
    return n;
}

/* Order of keys: numbers ascending, then strings by byte, then false, true. */
static int rank(int type) {
    return type == LUA_TNUMBER ? 0 : type == LUA_TSTRING ? 1 : 2;
}

static bool key_before(lua_State *L, int a, int b) {
    int ta = lua_type(L, a), tb = lua_type(L, b);
    if (ta != tb) return rank(ta) < rank(tb);
    if (ta == LUA_TNUMBER) return lua_tonumber(L, a) < lua_tonumber(L, b);
    if (ta == LUA_TSTRING) {
        size_t na, nb;
        const char *sa = lua_tolstring(L, a, &na), *sb = lua_tolstring(L, b, &nb);
        int c = memcmp(sa, sb, na < nb ? na : nb);
        return c != 0 ? c < 0 : na < nb;
    }
    return !lua_toboolean(L, a) && lua_toboolean(L, b);
}

/* Merge sort of the permutation at[0..n): items are list[at[i] + 1] of the table at `list`; `before` compares the two
 * values on top. Stable, and a comparator that lies only spoils the order. */
static void merge_sort(lua_State *L, int list, uint32_t *at, uint32_t *spare, size_t n, bool (*before)(lua_State *L)) {
    for (size_t width = 1; width < n; width *= 2) {
        sandbox_charge(L, n);
        for (size_t low = 0; low < n; low += 2 * width) {
            size_t mid = low + width < n ? low + width : n, high = mid + width < n ? mid + width : n;
            size_t i = low, j = mid, k = low;
            while (i < mid && j < high) {
                lua_rawgeti(L, list, (int)at[j] + 1);
                lua_rawgeti(L, list, (int)at[i] + 1);
                bool right = before(L);
                lua_pop(L, 2);
                spare[k++] = right ? at[j++] : at[i++];
            }
            while (i < mid) spare[k++] = at[i++];
            while (j < high) spare[k++] = at[j++];
        }
        memcpy(at, spare, n * sizeof *at);
    }
}

static bool top_key_before(lua_State *L) {
    int top = lua_gettop(L);
    return key_before(L, top - 1, top);
}

/* A permutation 0..n-1 and as much spare room, as userdata on the stack. */
static uint32_t *permutation(lua_State *L, size_t n) {
    uint32_t *at = lua_newuserdata(L, 2 * n * sizeof *at);
    for (size_t i = 0; i < n; i++) at[i] = (uint32_t)i;
    return at;
}

/* Upvalues: table, sorted keys (nil: the keys are 1..n), how many were given, how many there are. */
static int next_pair(lua_State *L) {
    int given = (int)lua_tointeger(L, lua_upvalueindex(3)), count = (int)lua_tointeger(L, lua_upvalueindex(4));
    bool listed = !lua_isnil(L, lua_upvalueindex(2));
    while (given < count) {
        given++;
        if (listed) {
            lua_rawgeti(L, lua_upvalueindex(2), given);
        } else {
            lua_pushinteger(L, given);
        }
        lua_pushvalue(L, -1);
        lua_rawget(L, lua_upvalueindex(1));
        if (!lua_isnil(L, -1)) {
            lua_pushinteger(L, given);
            lua_replace(L, lua_upvalueindex(3));
            return 2;
        }
        lua_pop(L, 2); /* taken out since the walk began */
    }
    lua_pushinteger(L, count);
    lua_replace(L, lua_upvalueindex(3));
    lua_pushnil(L);
    return 1;
}

static int l_pairs(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    sandbox_fill_view(L, 1);
    lua_newtable(L);
    int n = 0;
    bool in_order = true;
    lua_pushnil(L);
    while (lua_next(L, 1)) {
        lua_pop(L, 1);
        int type = lua_type(L, -1);
        if (type != LUA_TNUMBER && type != LUA_TSTRING && type != LUA_TBOOLEAN)
            return luaL_error(L, "pairs needs keys that are numbers, strings or booleans, not a %s",
                              luaL_typename(L, -1));
        if (++n > SANDBOX_KEYS_MAX) return luaL_error(L, "pairs walks at most %d keys", SANDBOX_KEYS_MAX);
        if (type != LUA_TNUMBER || lua_tonumber(L, -1) != n) in_order = false;
        lua_pushvalue(L, -1);
        lua_rawseti(L, 2, n);
    }
    sandbox_charge(L, (uint64_t)n + 1);
    lua_pushvalue(L, 1);
    if (in_order) {
        lua_pushnil(L);
    } else {
        uint32_t *at = permutation(L, (size_t)n);
        merge_sort(L, 2, at, at + n, (size_t)n, top_key_before);
        lua_createtable(L, n, 0);
        for (int i = 0; i < n; i++) {
            lua_rawgeti(L, 2, (int)at[i] + 1);
            lua_rawseti(L, -2, i + 1);
        }
        lua_remove(L, -2); /* the permutation */
    }
    lua_pushinteger(L, 0);
    lua_pushinteger(L, n);
    lua_pushcclosure(L, next_pair, 4);
    return 1;
}

int sandbox_log_call(lua_State *L) {
    struct sandbox *sb = sandbox_of(L);
    sandbox_charge(L, 10);
    if (++sb->log_lines > SANDBOX_LOG_LINES) return 0;
    char line[SANDBOX_LOG_LINE];
    size_t n = 0;
    int args = lua_gettop(L);
    for (int i = 1; i <= args; i++) {
        char number[32];
        size_t len;
        const char *text = sandbox_text(L, i, number, &len);
        if (i > 1 && n < sizeof line) line[n++] = ' ';
        if (len > sizeof line - n) len = sizeof line - n;
        for (size_t k = 0; k < len; k++) line[n++] = text[k] == '\n' ? ' ' : text[k];
    }
    if (!buf_add(&sb->log, str_n(line, n)) || !buf_byte(&sb->log, '\n')) return luaL_error(L, "no memory for the log");
    return 0;
}

void sandbox_open_base(lua_State *L) {
    static const luaL_Reg functions[] = {{"pcall", l_pcall},   {"tostring", l_tostring}, {"tonumber", l_tonumber},
                                         {"unpack", l_unpack}, {"pairs", l_pairs},       {NULL, NULL}};
    luaL_setfuncs(L, functions, 0);
    if (sandbox_of(L)->waits) open_waiting_pcall(L);
}

/* ---- string ---- */

static const char *check_text(lua_State *L, int arg, size_t *len) {
    const char *s = luaL_checklstring(L, arg, len);
    sandbox_charge(L, *len / 64);
    return s;
}

/* Lua's positions: from 1, negative from the end; clamped to [1, len + 1] and [0, len]. */
static void range(lua_Integer i, lua_Integer j, size_t len, size_t *from, size_t *count) {
    lua_Integer n = (lua_Integer)len;
    if (i < 0) i += n + 1;
    if (j < 0) j += n + 1;
    if (i < 1) i = 1;
    if (j > n) j = n;
    *from = (size_t)(i - 1);
    *count = i <= j ? (size_t)(j - i + 1) : 0;
}

static int l_len(lua_State *L) {
    size_t len;
    luaL_checklstring(L, 1, &len);
    lua_pushinteger(L, (lua_Integer)len);
    return 1;
}

static int l_sub(lua_State *L) {
    size_t len, from, count;
    const char *s = luaL_checklstring(L, 1, &len);
    range(luaL_checkinteger(L, 2), luaL_optinteger(L, 3, -1), len, &from, &count);
    sandbox_charge(L, count / 64);
    lua_pushlstring(L, count ? s + from : "", count);
    return 1;
}

static int l_byte(lua_State *L) {
    size_t len, from, count;
    const char *s = luaL_checklstring(L, 1, &len);
    lua_Integer i = luaL_optinteger(L, 2, 1);
    range(i, luaL_optinteger(L, 3, i), len, &from, &count);
    if (count > SANDBOX_VALUES_MAX) return luaL_error(L, "byte gives at most %d values", SANDBOX_VALUES_MAX);
    luaL_checkstack(L, (int)count, "too many values");
    for (size_t k = 0; k < count; k++) lua_pushinteger(L, (unsigned char)s[from + k]);
    return (int)count;
}

static int l_char(lua_State *L) {
    int n = lua_gettop(L);
    if (n > SANDBOX_VALUES_MAX) return luaL_error(L, "char takes at most %d values", SANDBOX_VALUES_MAX);
    for (int i = 1; i <= n; i++) {
        lua_Integer c = luaL_checkinteger(L, i);
        luaL_argcheck(L, c >= 0 && c <= 255, i, "not a byte");
        scratch[i - 1] = (char)c;
    }
    lua_pushlstring(L, scratch, (size_t)n);
    return 1;
}

/* Gives the string of argument 1 with each byte changed, at most SANDBOX_TEXT_MAX of them. */
static int mapped(lua_State *L, int (*map)(int)) {
    size_t len;
    const char *s = check_text(L, 1, &len);
    luaL_argcheck(L, len <= sizeof scratch, 1, "longer than 64 KiB");
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];
        scratch[i] = (char)(c < 128 ? map(c) : c);
    }
    lua_pushlstring(L, scratch, len);
    return 1;
}

static int l_lower(lua_State *L) {
    return mapped(L, tolower);
}

static int l_upper(lua_State *L) {
    return mapped(L, toupper);
}

static int l_reverse(lua_State *L) {
    size_t len;
    const char *s = check_text(L, 1, &len);
    luaL_argcheck(L, len <= sizeof scratch, 1, "longer than 64 KiB");
    for (size_t i = 0; i < len; i++) scratch[i] = s[len - 1 - i];
    lua_pushlstring(L, scratch, len);
    return 1;
}

static int l_rep(lua_State *L) {
    size_t len;
    const char *s = luaL_checklstring(L, 1, &len);
    lua_Number n = luaL_checknumber(L, 2);
    if (!(n >= 1) || len == 0) {
        lua_pushliteral(L, "");
        return 1;
    }
    if (n > (lua_Number)sizeof scratch || (size_t)n > sizeof scratch / len)
        return luaL_error(L, "the result is longer than 64 KiB");
    size_t total = len * (size_t)n;
    memcpy(scratch, s, len);
    for (size_t done = len; done < total; done *= 2)
        memcpy(scratch + done, scratch, done < total - done ? done : total - done);
    sandbox_charge(L, total / 64);
    lua_pushlstring(L, scratch, total);
    return 1;
}

static int too_long(lua_State *L) {
    return luaL_error(L, "the result is longer than 64 KiB");
}

/* One conversion "%<flags><width>.<precision>" in `spec` (without the letter), with room behind it. */
static size_t parse_spec(lua_State *L, const char *s, const char *end, char spec[16]) {
    size_t n = 0;
    const char *at = s;
    spec[n++] = '%';
    while (at < end && strchr("-+ #0", *at) && *at) {
        if (n >= 6) luaL_error(L, "invalid format (repeated flags)");
        spec[n++] = *at++;
    }
    for (int i = 0; i < 2 && at < end && isdigit((unsigned char)*at); i++) spec[n++] = *at++;
    if (at < end && *at == '.') {
        spec[n++] = *at++;
        for (int i = 0; i < 2 && at < end && isdigit((unsigned char)*at); i++) spec[n++] = *at++;
    }
    if (at < end && isdigit((unsigned char)*at)) luaL_error(L, "invalid format (width or precision above 99)");
    spec[n] = '\0';
    return (size_t)(at - s);
}

static int put_number(lua_State *L, char *out, size_t room, const char *spec, char letter, int arg) {
    char full[24];
    double v = luaL_checknumber(L, arg);
    if (letter == 'c') {
        luaL_argcheck(L, v >= 0 && v <= 255 && v == floor(v), arg, "not a byte");
        if (room < 1) too_long(L);
        *out = (char)(unsigned char)v;
        return 1;
    }
    bool whole = strchr("diuxXo", letter) != NULL;
    if (whole) luaL_argcheck(L, v >= -9.2e18 && v <= 9.2e18, arg, "not an integer in range");
    int n = snprintf(full, sizeof full, "%s%s%c", spec, whole ? "ll" : "", letter == 'i' ? 'd' : letter);
    if (n < 0 || (size_t)n >= sizeof full) return luaL_error(L, "invalid format");
        /* The format was put together from checked parts only. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    n = whole ? snprintf(out, room, full, (long long)v) : snprintf(out, room, full, v);
#pragma GCC diagnostic pop
    if (n < 0 || (size_t)n >= room) return too_long(L);
    if (!whole) sandbox_look(L); /* a hundred digits of a fraction take microseconds */
    return n;
}

static int put_text(lua_State *L, char *out, size_t room, const char *spec, int arg) {
    char number[32];
    size_t len = 0;
    luaL_checkany(L, arg);
    const char *text = sandbox_text(L, arg, number, &len);
    const char *at = spec + 1;
    bool left = false;
    size_t width = 0;
    while (*at && !isdigit((unsigned char)*at) && *at != '.') left |= *at++ == '-';
    if (*at == '0') at++;
    while (isdigit((unsigned char)*at)) width = width * 10 + (size_t)(*at++ - '0');
    if (*at == '.') {
        size_t precision = 0;
        for (at++; isdigit((unsigned char)*at); at++) precision = precision * 10 + (size_t)(*at - '0');
        if (precision < len) len = precision;
    }
    size_t pad = width > len ? width - len : 0;
    if (len + pad > room) return too_long(L);
    if (!left) memset(out, ' ', pad);
    memcpy(out + (left ? 0 : pad), text, len);
    if (left) memset(out + len, ' ', pad);
    return (int)(len + pad);
}

static int l_format(lua_State *L) {
    size_t len, total = 0;
    const char *s = check_text(L, 1, &len), *end = s + len;
    int arg = 1;
    while (s < end) {
        if (total >= sizeof scratch) return too_long(L);
        if (*s != '%') {
            scratch[total++] = *s++;
            continue;
        }
        s++;
        if (s < end && *s == '%') {
            scratch[total++] = *s++;
            continue;
        }
        char spec[16] = "";
        s += parse_spec(L, s, end, spec);
        char letter = s < end ? *s++ : '\0';
        size_t room = sizeof scratch - total;
        if (letter == 's') {
            total += (size_t)put_text(L, scratch + total, room, spec, ++arg);
        } else if (letter && strchr("cdiuxXoeEfgG", letter)) {
            total += (size_t)put_number(L, scratch + total, room, spec, letter, ++arg);
        } else if (letter) {
            return luaL_error(L, "format has no '%%%c'", letter);
        } else {
            return luaL_error(L, "the format ends inside a conversion");
        }
    }
    sandbox_charge(L, total / 64);
    lua_pushlstring(L, scratch, total);
    return 1;
}

void sandbox_open_string(lua_State *L) {
    static const luaL_Reg functions[] = {
        {"len", l_len},     {"sub", l_sub},         {"byte", l_byte}, {"char", l_char},     {"lower", l_lower},
        {"upper", l_upper}, {"reverse", l_reverse}, {"rep", l_rep},   {"format", l_format}, {NULL, NULL}};
    lua_newtable(L);
    luaL_setfuncs(L, functions, 0);
    sandbox_open_patterns(L);
}

/* ---- table ---- */

static int l_concat(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    size_t gap;
    const char *between = luaL_optlstring(L, 2, "", &gap);
    lua_Integer first = luaL_optinteger(L, 3, 1);
    lua_Integer last = lua_isnoneornil(L, 4) ? (lua_Integer)lua_objlen(L, 1) : luaL_checkinteger(L, 4);
    if (first <= last && (first < -1000000000 || last > 1000000000)) return luaL_error(L, "index out of range");
    size_t total = 0;
    for (lua_Integer i = first; i <= last; i++) {
        char number[32];
        size_t len;
        lua_rawgeti(L, 1, (int)i);
        if (lua_type(L, -1) != LUA_TSTRING && lua_type(L, -1) != LUA_TNUMBER)
            return luaL_error(L, "element %d of the table is a %s and cannot be joined", (int)i, luaL_typename(L, -1));
        const char *text = sandbox_text(L, -1, number, &len);
        size_t more = len + (i < last ? gap : 0);
        if (more > sizeof scratch - total) return too_long(L);
        memcpy(scratch + total, text, len);
        if (i < last) memcpy(scratch + total + len, between, gap);
        total += more;
        lua_pop(L, 1);
        sandbox_charge(L, 1);
    }
    lua_pushlstring(L, scratch, total);
    return 1;
}

static int l_insert(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    sandbox_check_writable(L, 1);
    int n = (int)lua_objlen(L, 1) + 1, at = n;
    int args = lua_gettop(L);
    if (args == 3) {
        lua_Integer where = luaL_checkinteger(L, 2);
        luaL_argcheck(L, where >= 1 && where <= n, 2, "position out of bounds");
        at = (int)where;
    } else if (args != 2) {
        return luaL_error(L, "table.insert takes a table, perhaps a position, and a value");
    }
    sandbox_charge(L, (uint64_t)(n - at));
    for (int i = n; i > at; i--) {
        lua_rawgeti(L, 1, i - 1);
        lua_rawseti(L, 1, i);
    }
    lua_settop(L, args);
    lua_rawseti(L, 1, at);
    return 0;
}

static int l_remove(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    sandbox_check_writable(L, 1);
    int n = (int)lua_objlen(L, 1);
    lua_Integer where = luaL_optinteger(L, 2, n);
    if (where < 1 || where > n) return 0;
    sandbox_charge(L, (uint64_t)(n - where));
    lua_rawgeti(L, 1, (int)where);
    for (int i = (int)where; i < n; i++) {
        lua_rawgeti(L, 1, i + 1);
        lua_rawseti(L, 1, i);
    }
    lua_pushnil(L);
    lua_rawseti(L, 1, n);
    return 1;
}

/* The function of argument 2 says whether the second from the top comes before the top. */
static bool asked_before(lua_State *L) {
    lua_pushvalue(L, 2);
    lua_pushvalue(L, -3);
    lua_pushvalue(L, -3);
    sandbox_call(L, 2, 1);
    bool yes = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return yes;
}

static bool plain_before(lua_State *L) {
    int ta = lua_type(L, -2), tb = lua_type(L, -1);
    if (ta != tb || (ta != LUA_TNUMBER && ta != LUA_TSTRING))
        luaL_error(L, "attempt to compare %s with %s", luaL_typename(L, -2), luaL_typename(L, -1));
    return lua_lessthan(L, -2, -1);
}

static int l_sort(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    if (!lua_isnoneornil(L, 2)) luaL_checktype(L, 2, LUA_TFUNCTION);
    sandbox_check_writable(L, 1);
    lua_settop(L, 2);
    size_t n = lua_objlen(L, 1);
    if (n > SANDBOX_SORT_MAX) return luaL_error(L, "table.sort takes at most %d items", SANDBOX_SORT_MAX);
    if (n < 2) return 0;
    sandbox_charge(L, 2 * n);
    /* A copy: what the comparator does to the table meanwhile cannot disturb the sort. */
    lua_createtable(L, (int)n, 0);
    for (int i = 1; i <= (int)n; i++) {
        lua_rawgeti(L, 1, i);
        lua_rawseti(L, 3, i);
    }
    uint32_t *at = permutation(L, n);
    merge_sort(L, 3, at, at + n, n, lua_isnil(L, 2) ? plain_before : asked_before);
    for (int i = 1; i <= (int)n; i++) {
        lua_rawgeti(L, 3, (int)at[i - 1] + 1);
        lua_rawseti(L, 1, i);
    }
    return 0;
}

void sandbox_open_table(lua_State *L) {
    static const luaL_Reg functions[] = {
        {"concat", l_concat}, {"insert", l_insert}, {"remove", l_remove}, {"sort", l_sort}, {NULL, NULL}};
    lua_newtable(L);
    luaL_setfuncs(L, functions, 0);
}
