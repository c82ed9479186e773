/* What a rule's file says about itself: the manifest table, checked field by field; and libraries, whose files say the
 * same of themselves and are run afresh by whoever takes from them. */
#include <stdio.h>
#include <stdlib.h>

#include "script/sandbox_internal.h"

#define LIB_DEPTH_MAX 3
#define PLAIN_DEPTH_MAX 16
#define NAME_MAX_LEN 40

/* Levenshtein's distance, for names; more than `most` is told as most + 1. */
static unsigned distance(const char *a, const char *b, unsigned most) {
    size_t na = strlen(a), nb = strlen(b);
    unsigned row[NAME_MAX_LEN + 1];
    if (na > NAME_MAX_LEN || nb > NAME_MAX_LEN) return most + 1;
    for (size_t j = 0; j <= nb; j++) row[j] = (unsigned)j;
    for (size_t i = 1; i <= na; i++) {
        unsigned corner = row[0];
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= nb; j++) {
            unsigned change = corner + (a[i - 1] != b[j - 1]);
            unsigned best = change < row[j] + 1 ? change : row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            corner = row[j];
            row[j] = best;
        }
    }
    return row[nb] > most ? most + 1 : row[nb];
}

const char *sandbox_nearest(const char *name, const char *const *list, size_t count) {
    const char *best = NULL;
    unsigned most = strlen(name) > 5 ? 3 : 2;
    for (size_t i = 0; i < count; i++) {
        unsigned d = distance(name, list[i], most);
        if (d > most || d >= strlen(list[i])) continue;
        best = list[i];
        most = d ? d - 1 : 0;
        if (d == 0) break;
    }
    return best;
}

static void copy_text(lua_State *L, const char *field, char *out, size_t room, bool required) {
    lua_pushstring(L, field);
    lua_rawget(L, -2);
    size_t len = 0;
    const char *s = lua_type(L, -1) == LUA_TSTRING ? lua_tolstring(L, -1, &len) : NULL;
    if (!s && (required || !lua_isnil(L, -1))) luaL_error(L, "manifest_field: %s must be text", field);
    if (s && (len == 0 || len >= room || strlen(s) != len))
        luaL_error(L, "manifest_field: %s is empty or too long", field);
    if (s) memcpy(out, s, len + 1);
    lua_pop(L, 1);
}

static int64_t whole(lua_State *L, const char *field, int64_t least, int64_t most, int64_t absent) {
    lua_pushstring(L, field);
    lua_rawget(L, -2);
    double v = lua_isnil(L, -1) ? (double)absent : lua_type(L, -1) == LUA_TNUMBER ? lua_tonumber(L, -1) : 0.5;
    lua_pop(L, 1);
    if (!(v >= (double)least && v <= (double)most) || (double)(int64_t)v != v)
        luaL_error(L, "manifest_field: %s must be a whole number from %d to %d", field, (int)least, (int)most);
    return (int64_t)v;
}

void sandbox_read_manifest(lua_State *L, struct sandbox_manifest *m) {
    static const char *const known[] = {"hook",     "name",     "run",    "steps",   "api",     "description",
                                        "version",  "priority", "config", "needs",   "path",    "method",
                                        "access",   "query",    "body",   "headers", "returns", "on",
                                        "on_error", "fallback", "exports"};
    if (!lua_istable(L, -1))
        luaL_error(L, "manifest_field: the file must return a table, not a %s", luaL_typename(L, -1));
    lua_pushnil(L);
    while (lua_next(L, -2)) {
        lua_pop(L, 1);
        char number[32];
        size_t len;
        const char *name = sandbox_text(L, -1, number, &len);
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++) found = found || strcmp(known[i], name) == 0;
        if (found) continue;
        const char *near = sandbox_nearest(name, known, sizeof known / sizeof *known);
        luaL_error(L, "manifest_field: '%s' is not a field of the manifest%s%s%s", name, near ? "; did you mean '" : "",
                   near ? near : "", near ? "'?" : "");
    }
    copy_text(L, "hook", m->hook, sizeof m->hook, true);
    copy_text(L, "name", m->name, sizeof m->name, true);
    memcpy(m->on_error, "skip", 5);
    copy_text(L, "on_error", m->on_error, sizeof m->on_error, false);
    if (strcmp(m->on_error, "skip") != 0 && strcmp(m->on_error, "fallback") != 0 && strcmp(m->on_error, "block") != 0)
        luaL_error(L, "manifest_field: on_error must be skip, fallback or block");
    m->priority = (int)whole(L, "priority", -1000, 1000, 0);
    m->version = whole(L, "version", 1, 1000000000, 1);
    bool library = strcmp(m->hook, "library") == 0, flow = strcmp(m->hook, "workflow") == 0;
    const char *body = library ? "exports" : flow ? "steps" : "run";
    lua_getfield(L, -1, body);
    if (library || flow ? !lua_istable(L, -1) : !lua_isfunction(L, -1))
        luaL_error(L, "manifest_field: %s must be a %s", body, library || flow ? "table" : "function");
    lua_pop(L, 1);
    lua_getfield(L, -1, "config");
    if (!lua_isnil(L, -1) && !lua_istable(L, -1)) luaL_error(L, "manifest_field: config must be schema.object{...}");
    lua_pop(L, 1);
}

void sandbox_make_plain(lua_State *L, int depth) {
    if (depth > PLAIN_DEPTH_MAX) luaL_error(L, "manifest_field: nested too deep");
    luaL_checkstack(L, 8, "manifest_field: nested too deep");
    sandbox_charge(L, 2);
    if (sandbox_is_bare_schema(L, -1)) lua_call(L, 0, 1);
    if (lua_isfunction(L, -1)) {
        lua_pushboolean(L, 1);
        lua_replace(L, -2);
        return;
    }
    if (!lua_istable(L, -1)) return;
    int from = lua_gettop(L);
    lua_newtable(L);
    lua_pushnil(L);
    while (lua_next(L, from)) {
        sandbox_make_plain(L, depth + 1);
        lua_pushvalue(L, -2);
        lua_insert(L, -2);
        lua_rawset(L, from + 1);
    }
    lua_remove(L, from);
}

/* lib("key"): what that library exports */
static int l_lib(lua_State *L) {
    struct sandbox *sb = sandbox_of(L);
    struct str source;
    const char *key = luaL_checkstring(L, 1);
    if (!sb->rule) return luaL_error(L, "lib() is for the top of the file, where nothing runs yet");
    if (!sandbox_find_lib(sb, key, &source)) return luaL_error(L, "there is no library '%s'", key);
    if (sb->lib_depth >= LIB_DEPTH_MAX)
        return luaL_error(L, "libraries use each other more than %d deep", LIB_DEPTH_MAX);
    sandbox_charge(L, 20 + source.len / 64);
    sb->lib_depth++;
    const struct compiled *known = sandbox_compile(L, key, source);
    (void)known; /* a library's text alone is of use */
    sandbox_call(L, 0, 1);
    sb->lib_depth--;
    if (!lua_istable(L, -1)) return luaL_error(L, "the library '%s' returns no table", key);
    lua_getfield(L, -1, "exports");
    if (!lua_istable(L, -1)) return luaL_error(L, "the library '%s' exports nothing", key);
    return 1;
}

void sandbox_open_lib(lua_State *L) {
    lua_pushcfunction(L, l_lib);
    lua_setfield(L, -2, "lib");
}
