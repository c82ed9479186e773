#include "script/form.h"

#include "http/decode.h"
#include "script/task.h"

#define PAIRS_MAX 1000 /* fields of a form or query */

static void push_str(lua_State *L, struct str s) {
    if (s.at)
        lua_pushlstring(L, s.at, s.len);
    else
        lua_pushnil(L);
}

int form_push_pairs(lua_State *L, struct request *r, struct str text) {
    struct pairs p;
    bool many;
    if (!form_decode(request_arena(r), text, PAIRS_MAX, &p, &many))
        return many ? task_refuse(L, ERR_LIMIT, "413", "too many parameters")
                    : task_refuse(L, ERR_MEMORY, "", "out of memory");
    lua_createtable(L, 0, (int)p.count);
    for (size_t i = 0; i < p.count; i++) {
        push_str(L, p.at[i].name);
        lua_pushvalue(L, -1);
        lua_rawget(L, -3);
        if (lua_isnil(L, -1)) {
            lua_pop(L, 1);
            push_str(L, p.at[i].value);
            lua_rawset(L, -3);
            continue;
        }
        if (!lua_istable(L, -1)) { /* the second value: name, value -> name, {value} */
            lua_createtable(L, 2, 0);
            lua_insert(L, -2);
            lua_rawseti(L, -2, 1);
            lua_pushvalue(L, -2);
            lua_pushvalue(L, -2);
            lua_rawset(L, -5);
        }
        push_str(L, p.at[i].value);
        lua_rawseti(L, -2, (int)lua_objlen(L, -2) + 1);
        lua_pop(L, 2);
    }
    return 1;
}

static void set_str(lua_State *L, const char *name, struct str value) {
    if (!value.at) return;
    lua_pushlstring(L, value.at, value.len);
    lua_setfield(L, -2, name);
}

int form_push_multipart(lua_State *L, struct request *r) {
    struct error err;
    const struct multipart *m = request_multipart(r, &err);
    if (!m) return task_refuse(L, err.kind, err.kind == ERR_LIMIT ? "413" : "400", err.message);
    lua_createtable(L, (int)m->count, 0);
    for (size_t i = 0; i < m->count; i++) {
        const struct part *p = &m->parts[i];
        lua_createtable(L, 0, 5);
        set_str(L, "name", p->name);
        set_str(L, "filename", p->filename);
        set_str(L, "type", p->type);
        lua_pushnumber(L, (lua_Number)p->size);
        lua_setfield(L, -2, "size");
        if (p->path)
            set_str(L, "path", str_of(p->path));
        else
            set_str(L, "data", p->data.at ? p->data : STR(""));
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}
