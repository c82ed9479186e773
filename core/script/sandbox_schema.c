/* schema.*: what a rule lets the merchant fill in, and the check of what was filled in.
 *
 * A constructor gives a table {kind = ..., options}; where it needs no options it may stand bare: the function itself
 * is then called without any. All kinds take title, help and default. */
#include <math.h>
#include <stdio.h>

#include "runtime/uuid.h"
#include "script/calendar.h"
#include "script/sandbox_internal.h"

#define DEPTH_MAX 8
#define LIST_MAX 1000
#define TEXT_MAX 4096

/* Kinds whose options are one table (or nothing). */
static const char *const plain_kinds[] = {
    "string",   "integer", "money",          "bps",  "ppm",       "boolean",         "date",
    "datetime", "hours",   "weekdays",       "uuid", "product",   "variant",         "category",
    "tag",      "vendor",  "customer_group", "tier", "warehouse", "shipping_method", "course",
    "secret",
};

struct check {
    lua_State *L;
    char *message;
    size_t size;
    char path[160];
    size_t path_len;
    int depth;
};

/* Makes argument 1 (a table or nothing) the schema of the kind in upvalue 1. */
static int l_plain(lua_State *L) {
    lua_settop(L, 1);
    if (lua_isnil(L, 1)) {
        lua_newtable(L);
        lua_replace(L, 1);
    }
    luaL_checktype(L, 1, LUA_TTABLE);
    sandbox_check_writable(L, 1);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_setfield(L, 1, "kind");
    return 1;
}

bool sandbox_is_bare_schema(lua_State *L, int idx) {
    return lua_tocfunction(L, idx) == l_plain;
}

static void check_schema_arg(lua_State *L, int arg) {
    if (lua_iscfunction(L, arg)) return;
    luaL_checktype(L, arg, LUA_TTABLE);
    lua_getfield(L, arg, "kind");
    luaL_argcheck(L, lua_type(L, -1) == LUA_TSTRING, arg, "not a schema");
    lua_pop(L, 1);
}

/* list(x, options), map(x, options), optional(x) */
static int l_of_item(lua_State *L) {
    check_schema_arg(L, 1);
    lua_settop(L, 2);
    if (lua_isnil(L, 2)) {
        lua_newtable(L);
        lua_replace(L, 2);
    }
    luaL_checktype(L, 2, LUA_TTABLE);
    sandbox_check_writable(L, 2);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_setfield(L, 2, "kind");
    lua_pushvalue(L, 1);
    lua_setfield(L, 2, "item");
    return 1;
}

static int l_object(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    lua_createtable(L, 0, 2);
    lua_pushliteral(L, "object");
    lua_setfield(L, 2, "kind");
    lua_pushnil(L);
    while (lua_next(L, 1)) {
        if (lua_type(L, -2) != LUA_TSTRING) return luaL_error(L, "schema.object takes named fields");
        check_schema_arg(L, lua_gettop(L));
        lua_pop(L, 1);
    }
    lua_pushvalue(L, 1);
    lua_setfield(L, 2, "fields");
    return 1;
}

static int l_enum(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    luaL_argcheck(L, lua_objlen(L, 1) > 0, 1, "schema.enum takes a list of choices");
    lua_pushliteral(L, "enum");
    lua_setfield(L, 1, "kind");
    return 1;
}

static const char *const item_kinds[] = {"list", "map", "optional"};

static bool named_in(const char *const *list, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(list[i], name) == 0) return true;
    return false;
}

bool sandbox_push_schema(lua_State *L, const char *name) {
    lua_CFunction maker = NULL;
    if (named_in(plain_kinds, sizeof plain_kinds / sizeof *plain_kinds, name)) maker = l_plain;
    if (named_in(item_kinds, sizeof item_kinds / sizeof *item_kinds, name)) maker = l_of_item;
    if (maker) {
        lua_pushstring(L, name);
        lua_pushcclosure(L, maker, 1);
    } else if (strcmp(name, "object") == 0) {
        lua_pushcfunction(L, l_object);
    } else if (strcmp(name, "enum") == 0) {
        lua_pushcfunction(L, l_enum);
    } else {
        return false;
    }
    return true;
}

const char *sandbox_schema_name(size_t i) {
    size_t plain = sizeof plain_kinds / sizeof *plain_kinds, items = sizeof item_kinds / sizeof *item_kinds;
    if (i < plain) return plain_kinds[i];
    if (i < plain + items) return item_kinds[i - plain];
    return i == plain + items ? "object" : i == plain + items + 1 ? "enum" : NULL;
}

void sandbox_open_schema(lua_State *L) {
    lua_createtable(L, 0, 8);
}

/* ---- the check ---- */

static bool wrong(struct check *c, const char *what) {
    int n = snprintf(c->message, c->size, "%s: %s", c->path, what);
    if (n < 0) c->message[0] = '\0';
    return false;
}

static size_t go_in(struct check *c, const char *key, int index) {
    size_t before = c->path_len, room = sizeof c->path - before;
    int n = key ? snprintf(c->path + before, room, ".%.60s", key) : snprintf(c->path + before, room, "[%d]", index);
    if (n > 0) c->path_len += (size_t)n < room ? (size_t)n : room - 1;
    return before;
}

static void go_out(struct check *c, size_t before) {
    c->path_len = before;
    c->path[before] = '\0';
}

/* A bare constructor becomes its table. */
static void resolve(lua_State *L, int schema) {
    if (!lua_iscfunction(L, schema)) return;
    lua_pushvalue(L, schema);
    lua_call(L, 0, 1);
    lua_replace(L, schema);
}

/* The number option `name` of the schema, or `absent`. */
static double option(lua_State *L, int schema, const char *name, double absent) {
    lua_getfield(L, schema, name);
    double v = lua_type(L, -1) == LUA_TNUMBER ? lua_tonumber(L, -1) : absent;
    lua_pop(L, 1);
    return v;
}

static bool check_value(struct check *c, int schema);

static bool check_string(struct check *c, int schema, size_t most) {
    lua_State *L = c->L;
    size_t len;
    char text[96];
    if (lua_type(L, -1) != LUA_TSTRING) return wrong(c, "must be text");
    const char *s = lua_tolstring(L, -1, &len);
    size_t chars = 0;
    for (size_t i = 0; i < len; i++) chars += ((unsigned char)s[i] & 0xC0) != 0x80;
    double min = option(L, schema, "min", 0), max = option(L, schema, "max", (double)most);
    if ((double)chars < min) {
        int n = snprintf(text, sizeof text, "must have at least %.0f characters", min);
        return wrong(c, n > 0 ? text : "is too short");
    }
    if ((double)chars > max || chars > most) {
        int n = snprintf(text, sizeof text, "must have at most %.0f characters", max);
        return wrong(c, n > 0 ? text : "is too long");
    }
    lua_getfield(L, schema, "pattern");
    bool fits = true;
    if (lua_type(L, -1) == LUA_TSTRING) {
        lua_getfield(L, -2, "find"); /* the method of the string itself */
        lua_pushvalue(L, -3);
        lua_pushvalue(L, -3);
        lua_call(L, 2, 1);
        fits = lua_toboolean(L, -1);
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
    return fits || wrong(c, "does not have the form it needs");
}

static bool check_number(struct check *c, int schema, double least, double most) {
    lua_State *L = c->L;
    char text[96];
    double v = lua_type(L, -1) == LUA_TNUMBER ? lua_tonumber(L, -1) : NAN;
    double min = fmax(least, option(L, schema, "min", least)), max = fmin(most, option(L, schema, "max", most));
    if (isnan(v) || v != floor(v)) return wrong(c, "must be a whole number");
    if (v >= min && v <= max) return true;
    int n = snprintf(text, sizeof text, "must be from %.0f to %.0f", min, max);
    return wrong(c, n > 0 ? text : "is out of range");
}

static bool check_enum(struct check *c, int schema) {
    lua_State *L = c->L;
    size_t n = lua_objlen(L, schema);
    for (size_t i = 1; i <= n; i++) {
        lua_rawgeti(L, schema, (int)i);
        bool same = lua_rawequal(L, -1, -2);
        lua_pop(L, 1);
        if (same) return true;
    }
    return wrong(c, "is not one of the choices");
}

/* The elements of the value on top against `item`; `named`: the keys are names. */
static bool check_elements(struct check *c, int item, bool named) {
    lua_State *L = c->L;
    int table = lua_gettop(L);
    lua_pushnil(L);
    while (lua_next(L, table)) {
        if ((lua_type(L, -2) == LUA_TSTRING) != named)
            return wrong(c, named ? "must have names for keys" : "must be a list");
        size_t before = named ? go_in(c, lua_tostring(L, -2), 0) : go_in(c, NULL, (int)lua_tointeger(L, -2));
        if (!check_value(c, item)) return false;
        go_out(c, before);
        lua_pushvalue(L, -2);
        lua_insert(L, -2);
        lua_rawset(L, table); /* an existing key: lua_next goes on */
    }
    return true;
}

static bool check_list(struct check *c, int schema, bool named) {
    lua_State *L = c->L;
    if (!lua_istable(L, -1)) return wrong(c, named ? "must be an object" : "must be a list");
    double n = 0;
    if (named) {
        lua_pushnil(L);
        while (lua_next(L, -2)) {
            lua_pop(L, 1);
            n++;
        }
    } else {
        n = (double)lua_objlen(L, -1);
    }
    if (n < option(L, schema, "min", 0)) return wrong(c, "has too few elements");
    if (n > fmin(LIST_MAX, option(L, schema, "max", LIST_MAX))) return wrong(c, "has too many elements");
    lua_getfield(L, schema, "item");
    lua_insert(L, -2);
    bool ok = check_elements(c, lua_gettop(L) - 1, named);
    if (ok) lua_remove(L, -2);
    return ok;
}

static bool check_object(struct check *c, int schema) {
    lua_State *L = c->L;
    if (!lua_istable(L, -1)) return wrong(c, "must be an object");
    lua_getfield(L, schema, "fields");
    lua_insert(L, -2);
    int value = lua_gettop(L), fields = value - 1;
    lua_pushnil(L);
    while (lua_next(L, value)) {
        lua_pop(L, 1);
        lua_pushvalue(L, -1);
        lua_rawget(L, fields);
        bool known = lua_type(L, -2) == LUA_TSTRING && !lua_isnil(L, -1);
        lua_pop(L, 1);
        if (known) continue;
        if (lua_type(L, -1) == LUA_TSTRING) go_in(c, lua_tostring(L, -1), 0);
        return wrong(c, "is not a field of this config");
    }
    lua_pushnil(L);
    while (lua_next(L, fields)) { /* key, schema */
        int item = lua_gettop(L);
        size_t before = go_in(c, lua_tostring(L, item - 1), 0);
        lua_pushvalue(L, item - 1);
        lua_rawget(L, value);
        if (!check_value(c, item)) return false;
        go_out(c, before);
        lua_pushvalue(L, item - 1);
        lua_insert(L, -2);
        lua_rawset(L, value);
        lua_pop(L, 1);
    }
    lua_remove(L, fields);
    return true;
}

static bool clock_text(lua_State *L, int idx) {
    size_t len;
    const char *s = lua_type(L, idx) == LUA_TSTRING ? lua_tolstring(L, idx, &len) : NULL;
    if (!s || len != 5 || s[2] != ':') return false;
    for (int i = 0; i < 5; i++)
        if (i != 2 && (s[i] < '0' || s[i] > '9')) return false;
    return (s[0] - '0') * 10 + s[1] - '0' <= 24 && s[3] <= '5';
}

/* {from = "22:00", to = "06:00"} */
static bool check_hours(struct check *c) {
    lua_State *L = c->L;
    bool ok = lua_istable(L, -1);
    if (ok) {
        lua_getfield(L, -1, "from");
        lua_getfield(L, -2, "to");
        ok = clock_text(L, -1) && clock_text(L, -2);
        lua_pop(L, 2);
    }
    return ok || wrong(c, "must have from and to as HH:MM");
}

static bool check_weekdays(struct check *c) {
    lua_State *L = c->L;
    bool ok = lua_istable(L, -1) && lua_objlen(L, -1) <= 7;
    for (size_t i = 1; ok && i <= lua_objlen(L, -1); i++) {
        lua_rawgeti(L, -1, (int)i);
        double v = lua_type(L, -1) == LUA_TNUMBER ? lua_tonumber(L, -1) : 0;
        ok = v >= 1 && v <= 7 && v == floor(v);
        lua_pop(L, 1);
    }
    return ok || wrong(c, "must be a list of days, 1 = Monday to 7 = Sunday");
}

static bool check_text_form(struct check *c, const char *kind) {
    lua_State *L = c->L;
    struct str s = {.at = NULL, .len = 0};
    int64_t ms;
    if (lua_type(L, -1) == LUA_TSTRING) s.at = lua_tolstring(L, -1, &s.len);
    if (strcmp(kind, "uuid") == 0) return (s.at && uuid_valid(s)) || wrong(c, "must be a uuid");
    if (strcmp(kind, "date") == 0)
        return (s.at && s.len == 10 && calendar_parse(s, NULL, &ms)) || wrong(c, "must be a date, YYYY-MM-DD");
    return (s.at && s.len > 10 && calendar_parse(s, NULL, &ms)) || wrong(c, "must be a date and time");
}

static bool check_kind(struct check *c, int schema, const char *kind) {
    lua_State *L = c->L;
    if (strcmp(kind, "string") == 0) return check_string(c, schema, TEXT_MAX);
    if (strcmp(kind, "integer") == 0 || strcmp(kind, "money") == 0)
        return check_number(c, schema, kind[0] == 'm' ? 0 : -9e15, 9e15);
    if (strcmp(kind, "bps") == 0) return check_number(c, schema, 0, 10000);
    if (strcmp(kind, "ppm") == 0) return check_number(c, schema, 0, 1000000);
    if (strcmp(kind, "boolean") == 0) return lua_isboolean(L, -1) || wrong(c, "must be true or false");
    if (strcmp(kind, "enum") == 0) return check_enum(c, schema);
    if (strcmp(kind, "list") == 0) return check_list(c, schema, false);
    if (strcmp(kind, "map") == 0) return check_list(c, schema, true);
    if (strcmp(kind, "object") == 0) return check_object(c, schema);
    if (strcmp(kind, "hours") == 0) return check_hours(c);
    if (strcmp(kind, "weekdays") == 0) return check_weekdays(c);
    if (strcmp(kind, "uuid") == 0 || strcmp(kind, "date") == 0 || strcmp(kind, "datetime") == 0)
        return check_text_form(c, kind);
    /* The pickers: the id or key of a row; that it exists is for whoever has the store. */
    return check_string(c, schema, 128);
}

/* The value on top, nil when absent; `schema` is an index, whose slot may be resolved in place. */
static bool check_value(struct check *c, int schema) {
    lua_State *L = c->L;
    luaL_checkstack(L, 16, "the config is too deep");
    sandbox_charge(L, 5);
    if (++c->depth > DEPTH_MAX) return wrong(c, "is nested too deep");
    resolve(L, schema);
    lua_getfield(L, schema, "kind");
    const char *kind = lua_tostring(L, -1); /* the schema keeps it alive */
    lua_pop(L, 1);
    if (!kind) return wrong(c, "has no schema");
    bool ok;
    if (lua_isnil(L, -1)) {
        lua_getfield(L, schema, "default");
        lua_replace(L, -2);
    }
    if (strcmp(kind, "optional") == 0) {
        if (lua_isnil(L, -1) || (lua_islightuserdata(L, -1) && !lua_touserdata(L, -1))) {
            lua_pushnil(L);
            lua_replace(L, -2);
            ok = true;
        } else {
            lua_getfield(L, schema, "item");
            lua_insert(L, -2);
            ok = check_value(c, lua_gettop(L) - 1);
            if (ok) lua_remove(L, -2);
        }
    } else if (lua_isnil(L, -1)) {
        ok = wrong(c, "is required");
    } else {
        ok = check_kind(c, schema, kind);
    }
    c->depth--;
    return ok;
}

bool sandbox_schema_check(lua_State *L, int schema, char *message, size_t size) {
    if (schema < 0) schema = lua_gettop(L) + schema + 1;
    struct check c = {.L = L, .message = message, .size = size, .path = "config", .path_len = 6};
    message[0] = '\0';
    return check_value(&c, schema);
}
