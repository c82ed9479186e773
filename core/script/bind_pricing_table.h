/* Members of the Lua table on top of the stack, for the inputs of rules; private to the bind_pricing*.c files. Each may
 * raise the out-of-memory error of Lua. */
#ifndef KASMA_SCRIPT_BIND_PRICING_TABLE_H
#define KASMA_SCRIPT_BIND_PRICING_TABLE_H

#include <lua.h>
#include <stdint.h>

#include "commerce/shipping.h"

/* An empty text is absent. */
static inline void table_set_str(lua_State *L, const char *name, struct str s) {
    if (s.len == 0) return;
    lua_pushlstring(L, s.at, s.len);
    lua_setfield(L, -2, name);
}

/* Exact up to 2^53. */
static inline void table_set_int(lua_State *L, const char *name, int64_t n) {
    lua_pushnumber(L, (lua_Number)n);
    lua_setfield(L, -2, name);
}

static inline void table_set_bool(lua_State *L, const char *name, bool value) {
    lua_pushboolean(L, value);
    lua_setfield(L, -2, name);
}

/* Pushes a list of the texts as a table of its own. */
static inline void table_push_list(lua_State *L, struct str_list list) {
    lua_createtable(L, (int)list.n, 0);
    for (size_t i = 0; i < list.n; i++) {
        lua_pushlstring(L, list.at[i].at, list.at[i].len);
        lua_rawseti(L, -2, (int)i + 1);
    }
}

static inline void table_set_list(lua_State *L, const char *name, struct str_list list) {
    table_push_list(L, list);
    lua_setfield(L, -2, name);
}

#endif
