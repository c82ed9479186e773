/* Run functions that keep no state.
 *
 * Running the chunk for each run guarantees that nothing survives in its locals. A run function whose upvalues, and
 * those of the functions among them, are functions and plain values can be used again instead, as long as they still
 * hold the same after a run. (A table could be changed inside, so it is not looked into.) */
#include "script/sandbox_run.h"

#define KEPT_MAX 32

/* Adds the upvalues of the function on top to the list at `list` and pops it. False: it may keep state. */
static bool keep_upvalues(lua_State *L, int list, int *n) {
    int fn = lua_gettop(L);
    luaL_checkstack(L, 6, "functions nested too deep");
    for (int i = 1; lua_getupvalue(L, fn, i); i++) {
        int type = lua_type(L, -1);
        if (type == LUA_TTABLE || type == LUA_TUSERDATA || type == LUA_TTHREAD || *n >= KEPT_MAX) return false;
        bool seen = type != LUA_TFUNCTION || lua_iscfunction(L, -1);
        for (int k = 1; !seen && k <= *n; k++) {
            lua_rawgeti(L, list, 3 * k);
            seen = lua_rawequal(L, -1, -2);
            lua_pop(L, 1);
        }
        ++*n;
        lua_pushvalue(L, fn);
        lua_rawseti(L, list, 3 * *n - 2);
        lua_pushinteger(L, i);
        lua_rawseti(L, list, 3 * *n - 1);
        lua_pushvalue(L, -1);
        lua_rawseti(L, list, 3 * *n);
        if (seen) {
            lua_pop(L, 1);
        } else if (!keep_upvalues(L, list, n)) {
            return false;
        }
    }
    lua_pop(L, 1);
    return true;
}

void sandbox_keep_run(lua_State *L, struct rule *r) {
    int top = lua_gettop(L), n = 0;
    r->looked = true;
    lua_newtable(L);
    lua_getfield(L, top, "run");
    lua_pushvalue(L, -1);
    if (lua_isfunction(L, -1) && keep_upvalues(L, top + 1, &n)) {
        r->run = luaL_ref(L, LUA_REGISTRYINDEX);
        r->kept = luaL_ref(L, LUA_REGISTRYINDEX);
        r->nkept = n;
    }
    lua_settop(L, top);
}

void sandbox_forget_run(lua_State *L, struct rule *r) {
    if (!r->run) return;
    luaL_unref(L, LUA_REGISTRYINDEX, r->run);
    luaL_unref(L, LUA_REGISTRYINDEX, r->kept);
    r->run = r->kept = 0;
}

static bool still_kept(lua_State *L, const struct rule *r) {
    int top = lua_gettop(L);
    bool same = true;
    lua_rawgeti(L, LUA_REGISTRYINDEX, r->kept);
    for (int k = 1; same && k <= r->nkept; k++) {
        lua_rawgeti(L, top + 1, 3 * k - 2);
        lua_rawgeti(L, top + 1, 3 * k - 1);
        lua_rawgeti(L, top + 1, 3 * k);
        same = lua_getupvalue(L, top + 2, (int)lua_tointeger(L, top + 3)) && lua_rawequal(L, -1, top + 4);
        lua_settop(L, top + 1);
    }
    lua_settop(L, top);
    return same;
}

void sandbox_recheck_run(lua_State *L, struct rule *r) {
    if (r->run && !sandbox_of(L)->broken && !still_kept(L, r)) sandbox_forget_run(L, r);
}
