/* The function that is called in protected mode is a closure made beforehand (lua_cpcall makes one each time), and what
 * it shall do lies in `now`: nothing comes between its filling and its reading, so that calls may nest, as they do when
 * a step of the collector inside one runs a finaliser that leads to another. */
#include "script/guard.h"

#include <lauxlib.h>

#include "runtime/clock.h"
#include "script/task.h"

#define COLLECT_EVERY_US UINT64_C(1000000)

static char call_key, error_key; /* registry: the closure, the error */

static struct {
    guarded *fn;
    void *data;
} now;

/* The VM that was opened last, in nearly every process the only one, and its closure's reference: found faster so. */
static struct {
    lua_State *main;
    int closure;
} latest;

static int trampoline(lua_State *L) {
    return now.fn(L, now.data);
}

static int prepare(lua_State *L) {
    lua_pushlightuserdata(L, &call_key);
    lua_pushcfunction(L, trampoline);
    lua_pushvalue(L, -1);
    latest.closure = luaL_ref(L, LUA_REGISTRYINDEX);
    lua_rawset(L, LUA_REGISTRYINDEX);
    lua_pushlightuserdata(L, &error_key);
    lua_createtable(L, 0, 2);
    lua_pushstring(L, error_kind_name(ERR_MEMORY));
    lua_setfield(L, -2, "kind");
    lua_pushliteral(L, "out of memory");
    lua_setfield(L, -2, "message");
    lua_rawset(L, LUA_REGISTRYINDEX);
    /* The list of free references begins with the first one that is given back: from now on that takes no memory. */
    lua_newtable(L);
    luaL_unref(L, LUA_REGISTRYINDEX, luaL_ref(L, LUA_REGISTRYINDEX));
    return 0;
}

bool guard_open(lua_State *main) {
    latest.main = NULL;
    if (lua_cpcall(main, prepare, NULL) == 0) {
        latest.main = main;
        return true;
    }
    lua_pop(main, 1);
    return false;
}

void guard_close(lua_State *main) {
    if (latest.main == main) latest.main = NULL;
}

static int call(lua_State *main, int nargs, guarded *fn, void *data) {
    int base = lua_gettop(main) - nargs;
    if (main == latest.main) {
        lua_rawgeti(main, LUA_REGISTRYINDEX, latest.closure);
    } else {
        lua_pushlightuserdata(main, &call_key);
        lua_rawget(main, LUA_REGISTRYINDEX);
    }
    if (nargs) lua_insert(main, base + 1);
    now.fn = fn;
    now.data = data;
    int rc = lua_pcall(main, nargs, LUA_MULTRET, 0);
    return rc ? -rc : lua_gettop(main) - base;
}

static int collect(lua_State *L, void *data) {
    (void)data;
    return lua_gc(L, LUA_GCCOLLECT, 0);
}

void guard_collect(lua_State *main) {
    static uint64_t next_us;
    uint64_t at = clock_mono_us();
    if (at < next_us) return;
    next_us = at + COLLECT_EVERY_US;
    if (call(main, 0, collect, NULL) < 0) lua_pop(main, 1); /* a finaliser raised */
}

int guard_call(lua_State *main, int nargs, guarded *fn, void *data, struct error *err) {
    int n = call(main, nargs, fn, data);
    if (n >= 0) return n;
    if (n == -LUA_ERRMEM) {
        error_set(err, ERR_MEMORY, "out of memory");
    } else {
        const char *text = lua_type(main, -1) == LUA_TSTRING ? lua_tostring(main, -1) : "an error without a text";
        error_set(err, ERR_INTERNAL, "%s", text);
    }
    lua_pop(main, 1);
    if (n == -LUA_ERRMEM) guard_collect(main);
    return -1;
}

void guard_push_no_memory(lua_State *L) {
    lua_pushlightuserdata(L, &error_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
}

static int push_bytes(lua_State *L, void *data) {
    const struct buf *b = data;
    lua_pushlstring(L, b->data ? b->data : "", b->len);
    return 1;
}

void guard_push_buf(lua_State *L, struct buf *b) {
    lua_State *main = task_main(L);
    struct error err;
    int n = guard_call(main, 0, push_bytes, b, &err);
    buf_free(b);
    if (n < 0) luaL_error(L, "%s", err.message);
    lua_xmove(main, L, n);
}
