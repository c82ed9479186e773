/* Plain values across the sandbox's wall: the check of what a rule returned, and the copy from one state to another. */
#include <math.h>
#include <stdio.h>

#include "script/sandbox_internal.h"
#include "script/sandbox_value.h"
#include "script/sandbox_wait.h"

#define DEPTH_MAX 32
#define TABLE_COST 16
#define VALUE_COST 8

struct walk {
    lua_State *from, *to; /* `to` NULL: only check */
    size_t left;
    bool secrets; /* they pass */
    unsigned depth;
    struct error *err;
    char path[120]; /* grows at the front while a fault goes up */
};

static bool fault(struct walk *w, enum error_kind kind, const char *text) {
    return error_set(w->err, kind, "%s", text);
}

static bool spend(struct walk *w, size_t bytes) {
    if (bytes > w->left) return fault(w, ERR_LIMIT, "larger than its limit");
    w->left -= bytes;
    return true;
}

static void put_in_front(struct walk *w, int key) {
    char longer[sizeof w->path];
    int n;
    if (lua_type(w->from, key) == LUA_TSTRING) {
        n = snprintf(longer, sizeof longer, ".%.40s%s", lua_tostring(w->from, key), w->path);
    } else {
        n = snprintf(longer, sizeof longer, "[%.14g]%s", lua_tonumber(w->from, key), w->path);
    }
    if (n > 0 && (size_t)n < sizeof longer) memcpy(w->path, longer, (size_t)n + 1);
}

static bool value(struct walk *w, int idx);

static bool key(struct walk *w, int idx) {
    size_t len;
    const char *s;
    double n;
    switch (lua_type(w->from, idx)) {
    case LUA_TSTRING:
        s = lua_tolstring(w->from, idx, &len);
        if (!spend(w, len)) return false;
        if (w->to) lua_pushlstring(w->to, s, len);
        return true;
    case LUA_TNUMBER:
        n = lua_tonumber(w->from, idx);
        if (n != floor(n)) return fault(w, ERR_INVALID, "a key that is neither text nor a whole number");
        if (w->to) lua_pushnumber(w->to, n);
        return true;
    default:
        return fault(w, ERR_INVALID, "a key that is neither text nor a whole number");
    }
}

static bool table(struct walk *w, int idx) {
    /* A table inside itself ends here too. */
    if (w->depth >= DEPTH_MAX) return fault(w, ERR_INVALID, "nested too deep, or in itself");
    if (!spend(w, TABLE_COST)) return false;
    if (!lua_checkstack(w->from, 4) || (w->to && !lua_checkstack(w->to, 4))) return fault(w, ERR_MEMORY, "no memory");
    w->depth++;
    if (w->to) lua_createtable(w->to, (int)(lua_objlen(w->from, idx) > 1000 ? 1000 : lua_objlen(w->from, idx)), 0);
    lua_pushnil(w->from);
    while (lua_next(w->from, idx)) {
        int at = lua_gettop(w->from);
        if (!key(w, at - 1)) return false;
        if (!value(w, at)) {
            put_in_front(w, at - 1);
            return false;
        }
        if (w->to) lua_rawset(w->to, -3);
        lua_pop(w->from, 1);
    }
    w->depth--;
    return true;
}

static bool value(struct walk *w, int idx) {
    size_t len;
    const char *s;
    double n;
    switch (lua_type(w->from, idx)) {
    case LUA_TNIL:
        if (w->to) lua_pushnil(w->to);
        return true;
    case LUA_TBOOLEAN:
        if (w->to) lua_pushboolean(w->to, lua_toboolean(w->from, idx));
        return spend(w, VALUE_COST);
    case LUA_TNUMBER:
        n = lua_tonumber(w->from, idx);
        if (!isfinite(n)) return fault(w, ERR_INVALID, "a number that is not finite");
        if (w->to) lua_pushnumber(w->to, n);
        return spend(w, VALUE_COST);
    case LUA_TSTRING:
        s = lua_tolstring(w->from, idx, &len);
        if (!spend(w, len + VALUE_COST)) return false;
        if (w->to) lua_pushlstring(w->to, s, len);
        return true;
    case LUA_TTABLE:
        return table(w, idx);
    case LUA_TLIGHTUSERDATA:
        if (lua_touserdata(w->from, idx)) break;
        if (w->to) lua_pushnil(w->to); /* JSON null: absent */
        return true;
    case LUA_TUSERDATA:
        if (!w->secrets || !sandbox_secret(w->from, idx)) break;
        if (w->to) {
            lua_createtable(w->to, 0, 1);
            lua_pushstring(w->to, sandbox_secret(w->from, idx));
            lua_setfield(w->to, -2, "$secret");
        }
        return spend(w, TABLE_COST);
    default:
        break;
    }
    return error_set(w->err, ERR_INVALID, "a %s is not plain data", lua_typename(w->from, lua_type(w->from, idx)));
}

static bool run(struct walk *w, int idx) {
    int from_top = lua_gettop(w->from), to_top = w->to ? lua_gettop(w->to) : 0;
    if (idx < 0) idx = from_top + idx + 1;
    if (value(w, idx)) return true;
    lua_settop(w->from, from_top);
    if (w->to) lua_settop(w->to, to_top);
    if (*w->path) {
        char text[sizeof w->err->message];
        int n = snprintf(text, sizeof text, "%s: %s", w->path + (*w->path == '.'), w->err->message);
        if (n > 0) memcpy(w->err->message, text, sizeof text);
    }
    return false;
}

bool sandbox_check(lua_State *L, int idx, size_t bytes, size_t *used, struct error *err) {
    struct walk w = {.from = L, .left = bytes, .err = err};
    bool ok = run(&w, idx);
    *used = !ok && err->kind == ERR_LIMIT ? bytes : bytes - w.left;
    return ok;
}

bool sandbox_check_some(lua_State *L, int idx, bool secrets, size_t *left, struct error *err) {
    struct walk w = {.from = L, .left = *left, .secrets = secrets, .err = err};
    bool ok = run(&w, idx);
    *left = w.left;
    return ok;
}

bool sandbox_copy_secrets(lua_State *from, int idx, lua_State *to, size_t bytes, struct error *err) {
    struct walk w = {.from = from, .to = to, .left = bytes, .secrets = true, .err = err};
    return run(&w, idx);
}

bool sandbox_copy_some(lua_State *from, int idx, lua_State *to, size_t *left, struct error *err) {
    struct walk w = {.from = from, .to = to, .left = *left, .err = err};
    bool ok = run(&w, idx);
    *left = w.left;
    return ok;
}

bool sandbox_copy(lua_State *from, int idx, lua_State *to, size_t bytes, struct error *err) {
    return sandbox_copy_some(from, idx, to, &bytes, err);
}
