/* The form of a hook's input, told by the platform's catalogue of hooks, and the copy of a value in that form: what the
 * form does not name is left out, so that a caller cannot hand out more than the hook says. */
#include "script/sandbox_shape.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 12
#define FIELDS_MAX 100
#define LIST_MAX 1000

struct shape {
    enum { ANY, RECORD, LIST } kind;
    char path[120];
    struct sandbox_record record; /* its fields are `name` */
    char **name;
    struct shape **of;
    size_t fields;
    struct shape *item;
};

void shape_free(struct shape *s) {
    if (!s) return;
    for (size_t i = 0; i < s->fields; i++) {
        free(s->name[i]);
        shape_free(s->of[i]);
    }
    free(s->name);
    free(s->of);
    shape_free(s->item);
    free(s);
}

static struct shape *read_shape(lua_State *L, const char *path, int depth, struct error *err);

static bool read_fields(lua_State *L, struct shape *s, int depth, struct error *err) {
    s->name = calloc(FIELDS_MAX, sizeof(void *));
    s->of = calloc(FIELDS_MAX, sizeof(void *));
    if (!s->name || !s->of) return error_set(err, ERR_MEMORY, "out of memory");
    lua_pushnil(L);
    while (lua_next(L, -2)) {
        char path[sizeof s->path];
        const char *name = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : NULL;
        int n = name ? snprintf(path, sizeof path, "%s.%s", s->path, name) : -1;
        bool ok = n > 0 && (size_t)n < sizeof path && s->fields < FIELDS_MAX;
        if (!ok) error_set(err, ERR_INVALID, "%s: a field's name cannot be used, or there are too many", s->path);
        if (ok) {
            s->name[s->fields] = strdup(name);
            s->of[s->fields] = read_shape(L, path, depth + 1, err);
            ok = s->name[s->fields] && s->of[s->fields];
            s->fields++;
        }
        lua_pop(L, 1);
        if (!ok) {
            lua_pop(L, 1);
            return false;
        }
    }
    s->record =
        (struct sandbox_record){.path = s->path, .fields = (const char *const *)(void *)s->name, .count = s->fields};
    return true;
}

/* The definition on top: {fields = {name = definition}}, {item = definition}, or anything else for plain data. */
static struct shape *read_shape(lua_State *L, const char *path, int depth, struct error *err) {
    struct shape *s = depth <= DEPTH_MAX && lua_checkstack(L, 8) ? calloc(1, sizeof *s) : NULL;
    if (!s) {
        error_set(err, ERR_INVALID, "%s: nested too deep, or no memory", path);
        return NULL;
    }
    int n = snprintf(s->path, sizeof s->path, "%s", path), top = lua_gettop(L);
    bool ok = n > 0;
    if (lua_istable(L, -1)) {
        lua_getfield(L, -1, "fields");
        lua_getfield(L, -2, "item");
        if (lua_istable(L, -2)) {
            s->kind = RECORD;
            lua_pop(L, 1);
            ok = read_fields(L, s, depth, err);
        } else if (!lua_isnil(L, -1)) {
            s->kind = LIST;
            char inner[sizeof s->path];
            n = snprintf(inner, sizeof inner, "%s[]", path);
            s->item = n > 0 && (size_t)n < sizeof inner ? read_shape(L, inner, depth + 1, err) : NULL;
            ok = s->item != NULL;
        }
    }
    lua_settop(L, top);
    if (ok) return s;
    shape_free(s);
    return NULL;
}

struct shape *shape_new(lua_State *L, int idx, const char *path, struct error *err) {
    lua_pushvalue(L, idx);
    struct shape *s = read_shape(L, path, 0, err);
    lua_pop(L, 1);
    return s;
}

static bool absent(lua_State *L, int idx) {
    return lua_isnil(L, idx) || (lua_islightuserdata(L, idx) && !lua_touserdata(L, idx));
}

/* The value on top of `from`. */
static bool copy(lua_State *from, lua_State *to, const struct shape *s, size_t *left, struct error *err) {
    if (s->kind == ANY) return sandbox_copy_some(from, -1, to, left, err);
    if (!lua_istable(from, -1)) return error_set(err, ERR_INVALID, "%s: a table is expected", s->path);
    if (!lua_checkstack(from, 4) || !lua_checkstack(to, 6)) return error_set(err, ERR_MEMORY, "out of memory");
    if (*left < 16) return error_set(err, ERR_LIMIT, "%s: larger than its limit", s->path);
    *left -= 16;
    if (s->kind == LIST) {
        size_t n = lua_objlen(from, -1);
        if (n > LIST_MAX) return error_set(err, ERR_LIMIT, "%s: more than %d elements", s->path, LIST_MAX);
        lua_createtable(to, (int)n, 0);
        for (size_t i = 1; i <= n; i++) {
            lua_rawgeti(from, -1, (int)i);
            bool ok = absent(from, -1) || copy(from, to, s->item, left, err);
            bool none = absent(from, -1);
            lua_pop(from, 1);
            if (!ok) return false;
            if (!none) lua_rawseti(to, -2, (int)i);
        }
        return true;
    }
    lua_createtable(to, 0, (int)s->fields);
    for (size_t i = 0; i < s->fields; i++) {
        lua_getfield(from, -1, s->name[i]);
        bool ok = absent(from, -1) || copy(from, to, s->of[i], left, err);
        bool none = absent(from, -1);
        lua_pop(from, 1);
        if (!ok) return false;
        if (!none) lua_setfield(to, -2, s->name[i]);
    }
    sandbox_mark_record(to, &s->record);
    return true;
}

bool shape_copy(lua_State *from, int idx, lua_State *to, const struct shape *s, size_t bytes, struct error *err) {
    int top = lua_gettop(from), base = lua_gettop(to);
    lua_pushvalue(from, idx);
    bool ok = copy(from, to, s, &bytes, err);
    lua_settop(from, top);
    if (!ok) lua_settop(to, base);
    return ok;
}
