/* core.redlock: key(tenant, resource), acquire({keys}, ttl_ms [, {retries=, delay_ms=, jitter_ms=}]) -> lock | nil,
 * err; lock.validity_ms, lock:left(), lock:extend(ttl_ms), lock:release().
 *
 * A lock that its task does not release is released when the task ends, whatever the end. Keys must come from key(),
 * the one place that makes them: acquire refuses others. */
#include <lauxlib.h>
#include <math.h>
#include <stdlib.h>

#include "runtime/config.h"
#include "script/bind.h"
#include "script/guard.h"
#include "script/task.h"
#include "stores/redlock.h"

#define LOCK "core.redlock.lock"
enum { MAX_KEYS = 64 };

struct lock;

/* All locks of one task; lies in the task's arena, whose end releases them. One for each task and not one deferred call
 * for each lock: a task that runs for ever takes locks for ever. */
struct holder {
    struct holder *next;
    const struct arena *arena;
    struct lock *locks;
};

/* One acquisition or extension that a task waits for. */
struct wait {
    struct task *task;
    struct redlock_attempt *attempt;
    struct lock *lock;
    int self; /* registry reference to the lock's userdata: it stays while somebody waits */
};

/* Belongs to its userdata and, while it is held, to the holder's list as well; the last one frees it. */
struct lock {
    struct lock *next;         /* in holder->locks */
    struct holder *holder;     /* NULL: not in a list */
    struct redlock_hold *hold; /* NULL: not held (any more) */
    struct wait *extending;
    lua_Number validity_ms;
    bool forgotten; /* the userdata is gone */
};

static struct redlock *shared;
static struct holder *holders;

static struct redlock *redlock_shared(struct error *err) {
    if (shared) return shared;
    const char *nodes = config_str("REDLOCK_NODES");
    if (!nodes || !*nodes) nodes = config_str("REDIS_URL");
    if (!nodes || !*nodes) {
        error_set(err, ERR_UNAVAILABLE, "neither REDLOCK_NODES nor REDIS_URL is set");
        return NULL;
    }
    shared = redlock_new(str_of(nodes), 0, err);
    return shared;
}

/* redlock.key(tenant, resource) -> text; raises on a missing tenant */
static int l_key(lua_State *L) {
    struct str tenant, resource;
    tenant.at = luaL_checklstring(L, 1, &tenant.len);
    resource.at = luaL_checklstring(L, 2, &resource.len);
    struct buf key = {0};
    struct error err = {0};
    if (!redlock_key(&key, tenant, resource, &err)) {
        buf_free(&key);
        return luaL_error(L, "%s", err.message);
    }
    guard_push_buf(L, &key);
    return 1;
}

/* ---- acquire ---- */

/* Takes the hold out of the lock. Who waits for its extension hears that it is over. */
static struct redlock_hold *let_go(struct lock *lock) {
    struct redlock_hold *hold = lock->hold;
    struct wait *w = lock->extending;
    lock->hold = NULL;
    lock->extending = NULL;
    if (w) {
        struct error err = {.kind = ERR_QUERY, .code = "lost", .message = "the lock was released"};
        luaL_unref(task_lua(w->task), LUA_REGISTRYINDEX, w->self);
        task_resume_error_later(w->task, &err);
        free(w);
    }
    return hold;
}

static void unlist(struct lock *lock) {
    if (!lock->holder) return;
    struct lock **at = &lock->holder->locks;
    while (*at != lock) at = &(*at)->next;
    *at = lock->next;
    lock->holder = NULL;
    if (lock->forgotten) free(lock);
}

static void release_all(void *data) {
    struct holder *holder = data;
    while (holder->locks) {
        struct lock *lock = holder->locks;
        struct redlock_hold *hold = let_go(lock);
        struct error err = {0};
        bool sent = !hold || redlock_release(hold, NULL, NULL, &err);
        (void)sent; /* otherwise it runs out */
        unlist(lock);
    }
    struct holder **at = &holders;
    while (*at != holder) at = &(*at)->next;
    *at = holder->next;
}

/* The task's holder, made at its first lock. NULL: out of memory. */
static struct holder *holder_of(struct task *t) {
    struct arena *arena = task_arena(t);
    for (struct holder *h = holders; h; h = h->next) {
        if (h->arena == arena) return h;
    }
    struct holder *h = arena_zalloc(arena, 1, sizeof *h);
    if (!h || !arena_defer(arena, release_all, h)) return NULL;
    h->arena = arena;
    h->next = holders;
    holders = h;
    return h;
}

static struct lock *check_lock(lua_State *L) {
    return *(struct lock **)luaL_checkudata(L, 1, LOCK);
}

static int l_forget(lua_State *L) {
    struct lock *lock = check_lock(L);
    if (!lock) return 0;
    lock->forgotten = true;
    if (!lock->holder) free(lock); /* a held one stays until its task ends */
    return 0;
}

static void on_acquired(void *data, struct redlock_hold *hold, const struct error *err) {
    struct wait *w = data;
    struct task *t = w->task;
    struct lock *lock = w->lock;
    lua_State *L = task_lua(t);
    lock->hold = hold;
    lua_rawgeti(L, LUA_REGISTRYINDEX, w->self);
    luaL_unref(L, LUA_REGISTRYINDEX, w->self);
    free(w);
    if (err) {
        lua_pop(L, 1);
        unlist(lock);
        task_resume_error(t, err);
        return;
    }
    lock->validity_ms = (lua_Number)redlock_validity_left(hold);
    task_resume(t, 1);
}

static void cancel_acquire(void *op) {
    struct wait *w = op;
    redlock_cancel(w->attempt);
    unlist(w->lock);
    luaL_unref(task_lua(w->task), LUA_REGISTRYINDEX, w->self);
    free(w);
}

static uint32_t option(lua_State *L, int table, const char *name, uint32_t otherwise) {
    if (!lua_istable(L, table)) return otherwise;
    lua_getfield(L, table, name);
    lua_Number n = luaL_optnumber(L, -1, otherwise);
    lua_pop(L, 1);
    if (!(n >= 0 && n <= 86400000 && floor(n) == n))
        luaL_error(L, "%s must be a whole number from 0 to 86400000", name);
    return (uint32_t)n;
}

static uint32_t check_ttl(lua_State *L, int idx) {
    lua_Number ms = luaL_checknumber(L, idx);
    luaL_argcheck(L, ms >= 10 && ms <= 86400000 && floor(ms) == ms, idx, "must be 10 to 86400000 milliseconds");
    return (uint32_t)ms;
}

/* redlock.acquire(key | {keys}, ttl_ms [, {retries=, delay_ms=, jitter_ms=}]) */
static int l_acquire(lua_State *L) {
    struct task *t = task_current(L);
    if (lua_type(L, 1) == LUA_TSTRING) {
        lua_createtable(L, 1, 0);
        lua_pushvalue(L, 1);
        lua_rawseti(L, -2, 1);
        lua_replace(L, 1);
    }
    luaL_checktype(L, 1, LUA_TTABLE);
    struct redlock_policy policy = REDLOCK_POLICY(check_ttl(L, 2));
    policy.retries = option(L, 3, "retries", policy.retries);
    policy.delay_ms = option(L, 3, "delay_ms", policy.delay_ms);
    policy.jitter_ms = option(L, 3, "jitter_ms", policy.jitter_ms);
    struct str keys[MAX_KEYS];
    size_t count = lua_objlen(L, 1);
    luaL_argcheck(L, count > 0 && count <= MAX_KEYS, 1, "must hold 1 to 64 keys");
    for (size_t i = 0; i < count; i++) {
        lua_rawgeti(L, 1, (int)i + 1);
        luaL_argcheck(L, lua_type(L, -1) == LUA_TSTRING, 1, "keys must be text");
        keys[i].at = lua_tolstring(L, -1, &keys[i].len);
        luaL_argcheck(L, str_starts(keys[i], STR("lock:{")), 1, "keys are made by redlock.key");
        lua_pop(L, 1); /* the table holds on to it */
    }
    struct lock **handle = lua_newuserdata(L, sizeof(struct lock *));
    *handle = NULL;
    luaL_getmetatable(L, LOCK);
    lua_setmetatable(L, -2);
    struct error err = {0};
    struct redlock *r = redlock_shared(&err);
    if (!r) return task_fail(L, &err);
    lua_pushvalue(L, -1);
    int self = luaL_ref(L, LUA_REGISTRYINDEX); /* first: it may raise, and nothing is under way yet */
    struct lock *lock = *handle = calloc(1, sizeof *lock);
    struct wait *w = malloc(sizeof *w);
    struct holder *holder = holder_of(t);
    if (!lock || !w || !holder) {
        luaL_unref(L, LUA_REGISTRYINDEX, self);
        free(w);
        error_set(&err, ERR_MEMORY, "out of memory");
        return task_fail(L, &err);
    }
    *w = (struct wait){.task = t, .lock = lock, .self = self};
    w->attempt = redlock_acquire(r, keys, count, &policy, on_acquired, w, &err);
    if (!w->attempt) {
        luaL_unref(L, LUA_REGISTRYINDEX, self);
        free(w);
        return task_fail(L, &err);
    }
    /* In the list before it is held: there is no moment at which a lock belongs to nobody. */
    lock->holder = holder;
    lock->next = holder->locks;
    holder->locks = lock;
    return task_suspend(L, t, cancel_acquire, w);
}

/* ---- a lock ---- */

static int already_released(lua_State *L) {
    struct error err = {.kind = ERR_QUERY, .code = "lost", .message = "the lock was released"};
    return task_fail(L, &err);
}

static void on_extended(void *data, const struct error *err) {
    struct wait *w = data;
    struct task *t = w->task;
    lua_State *L = task_lua(t);
    luaL_unref(L, LUA_REGISTRYINDEX, w->self);
    w->lock->extending = NULL;
    if (err) {
        free(w);
        task_resume_error(t, err);
        return;
    }
    w->lock->validity_ms = (lua_Number)redlock_validity_left(w->lock->hold);
    lua_pushnumber(L, w->lock->validity_ms);
    free(w);
    task_resume(t, 1);
}

static void cancel_extend(void *op) {
    struct wait *w = op;
    redlock_detach(w->lock->hold);
    w->lock->extending = NULL;
    luaL_unref(task_lua(w->task), LUA_REGISTRYINDEX, w->self);
    free(w);
}

/* lock:extend(ttl_ms) -> validity_ms | nil, err (code "lost") */
static int l_extend(lua_State *L) {
    struct task *t = task_current(L);
    struct lock *lock = check_lock(L);
    uint32_t ttl = check_ttl(L, 2);
    if (!lock->hold) return already_released(L);
    struct error err = {0};
    lua_pushvalue(L, 1);
    int self = luaL_ref(L, LUA_REGISTRYINDEX);
    struct wait *w = malloc(sizeof *w);
    if (!w) {
        luaL_unref(L, LUA_REGISTRYINDEX, self);
        error_set(&err, ERR_MEMORY, "out of memory");
        return task_fail(L, &err);
    }
    *w = (struct wait){.task = t, .lock = lock, .self = self};
    if (!redlock_extend(lock->hold, ttl, on_extended, w, &err)) {
        luaL_unref(L, LUA_REGISTRYINDEX, self);
        free(w);
        return task_fail(L, &err);
    }
    lock->extending = w;
    return task_suspend(L, t, cancel_extend, w);
}

/* A release goes on without its task: nothing is to be detached but the answer. */
struct farewell {
    struct task *task; /* NULL: gone */
};

static void on_released(void *data, const struct error *err) {
    struct farewell *f = data;
    struct task *t = f->task;
    free(f);
    if (!t) return;
    if (err) {
        task_resume_error(t, err);
        return;
    }
    lua_pushboolean(task_lua(t), 1);
    task_resume(t, 1);
}

static void cancel_release(void *op) {
    ((struct farewell *)op)->task = NULL;
}

/* lock:release() -> true | nil, err (code "lost": it had run out; whatever was done under it may have met another) */
static int l_release(lua_State *L) {
    struct task *t = task_current(L);
    struct lock *lock = check_lock(L);
    if (!lock->hold) return already_released(L);
    struct error err = {0};
    struct farewell *f = malloc(sizeof *f);
    if (!f) {
        error_set(&err, ERR_MEMORY, "out of memory");
        return task_fail(L, &err);
    }
    f->task = t;
    struct redlock_hold *hold = let_go(lock);
    unlist(lock);
    if (!redlock_release(hold, on_released, f, &err)) {
        free(f);
        return task_fail(L, &err);
    }
    return task_suspend(L, t, cancel_release, f);
}

/* lock:left() -> milliseconds that the lock is still good for; 0 when it is over */
static int l_left(lua_State *L) {
    const struct lock *lock = check_lock(L);
    lua_pushnumber(L, lock->hold ? (lua_Number)redlock_validity_left(lock->hold) : 0);
    return 1;
}

/* lock.validity_ms: as of the acquisition or the last extension. Everything else is a method. */
static int l_index(lua_State *L) {
    const struct lock *lock = check_lock(L);
    if (lua_type(L, 2) == LUA_TSTRING && strcmp(lua_tostring(L, 2), "validity_ms") == 0) {
        lua_pushnumber(L, lock->validity_ms);
        return 1;
    }
    lua_pushvalue(L, 2);
    lua_rawget(L, lua_upvalueindex(1));
    return 1;
}

int luaopen_core_redlock(lua_State *L) {
    static const luaL_Reg methods[] = {{"extend", l_extend}, {"release", l_release}, {"left", l_left}, {NULL, NULL}};
    static const luaL_Reg functions[] = {{"key", l_key}, {"acquire", l_acquire}, {NULL, NULL}};
    luaL_newmetatable(L, LOCK);
    lua_newtable(L);
    luaL_register(L, NULL, methods);
    lua_pushcclosure(L, l_index, 1);
    lua_setfield(L, -2, "__index");
    lua_pushcfunction(L, l_forget);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
