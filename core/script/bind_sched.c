/* core.sched: tasks, time and order for Lua code. The Lua half at the end raises what the C half hands back, because a
 * C function that has yielded cannot raise any more. */
#include <lauxlib.h>
#include <math.h>
#include <stdlib.h>

#include "runtime/log.h"
#include "runtime/supervisor.h"
#include "script/bind.h"
#include "script/sched.h"
#include "script/task.h"
#include "script/timers.h"

#define MS_MAX 4.0e15 /* exact as a double, far beyond any schedule */

static bool stopping;
static char on_stop_key; /* registry[&on_stop_key] = list of functions */

/* ---- parallel ---- */

struct group {
    struct task *parent; /* NULL once it was cancelled */
    int results;         /* registry reference: the list of results; [0] is the first error */
    bool failed;
    size_t left;
    bool waiting; /* the parent is suspended on this group */
    struct member *members;
    size_t count;
};

struct member {
    struct group *group;
    struct task *task; /* NULL once it has ended */
    int index;
    bool ended;
};

static void group_free(lua_State *L, struct group *g) {
    luaL_unref(L, LUA_REGISTRYINDEX, g->results);
    free(g->members);
    free(g);
}

/* Pushes true, results or false, error. */
static int group_answer(lua_State *L, struct group *g) {
    lua_pushboolean(L, !g->failed);
    lua_rawgeti(L, LUA_REGISTRYINDEX, g->results);
    if (g->failed) {
        lua_rawgeti(L, -1, 0);
        lua_remove(L, -2);
    }
    return 2;
}

/* The value on top, which is popped. The list was made as long as it gets, so that this takes no memory: nothing would
 * catch an error here. */
static void group_keep(lua_State *L, struct group *g, int index) {
    lua_rawgeti(L, LUA_REGISTRYINDEX, g->results);
    lua_insert(L, -2);
    lua_rawseti(L, -2, index);
    lua_pop(L, 1);
}

static void member_finished(void *data, lua_State *L, bool ok) {
    struct member *m = data;
    struct group *g = m->group;
    m->task = NULL;
    m->ended = true;
    if (ok) {
        if (lua_gettop(L) > 0) {
            lua_pushvalue(L, 1);
        } else {
            lua_pushnil(L);
        }
        group_keep(L, g, m->index);
    } else if (!g->failed) {
        g->failed = true;
        lua_pushvalue(L, -1);
        group_keep(L, g, 0);
    } else {
        task_log_error(L, "task failed beside another failure of the same sched.parallel");
    }
    if (--g->left > 0) return;
    if (g->parent && g->waiting) {
        struct task *parent = g->parent;
        int n = group_answer(task_lua(parent), g);
        group_free(L, g);
        task_resume_later(parent, n);
    } else if (!g->parent) {
        group_free(L, g);
    }
}

static void group_cancel(void *op) {
    struct group *g = op;
    enum error_kind why = task_cancelled(g->parent);
    lua_State *L = task_lua(g->parent);
    g->parent = NULL;
    if (why == ERR_NONE) why = ERR_CANCELLED;
    /* The last member to end frees the group: keep it until the loop is through. */
    g->left++;
    for (size_t i = 0; i < g->count; i++)
        if (g->members[i].task) task_cancel(g->members[i].task, why);
    if (--g->left == 0) group_free(L, g);
}

/* parallel_raw({f1, ...}) -> true, results | false, error | nil, err */
static int l_parallel(lua_State *L) {
    struct task *t = task_current(L);
    luaL_checktype(L, 1, LUA_TTABLE);
    size_t count = lua_objlen(L, 1);
    luaL_argcheck(L, count <= 10000, 1, "at most 10000 functions");
    for (size_t i = 1; i <= count; i++) {
        lua_rawgeti(L, 1, (int)i);
        luaL_argcheck(L, lua_isfunction(L, -1), 1, "a list of functions is expected");
        lua_pop(L, 1);
    }
    lua_settop(L, 1);
    lua_pushliteral(L, "not enough memory for a task");
    lua_createtable(L, (int)count, 0);
    int results = luaL_ref(L, LUA_REGISTRYINDEX); /* from here on nothing raises while others know of the group */
    struct group *g = calloc(1, sizeof *g);
    struct member *members = calloc(count ? count : 1, sizeof *members);
    if (!g || !members) {
        free(g);
        free(members);
        luaL_unref(L, LUA_REGISTRYINDEX, results);
        return luaL_error(L, "not enough memory");
    }
    *g = (struct group){.parent = t, .results = results, .members = members, .count = count, .left = 1};
    for (size_t i = 0; i < count; i++) {
        members[i] = (struct member){.group = g, .index = (int)i + 1};
        lua_rawgeti(L, 1, (int)i + 1);
        g->left++;
        struct task *child = NULL;
        if (!task_start(L, 0, NULL, member_finished, &members[i], &child)) {
            g->left--;
            if (!g->failed) {
                g->failed = true;
                lua_pushvalue(L, 2);
                group_keep(L, g, 0);
            }
        } else if (!members[i].ended) { /* else `child` is gone already */
            members[i].task = child;
        }
    }
    g->left--;
    if (g->left == 0) {
        int n = group_answer(L, g);
        group_free(L, g);
        return n;
    }
    g->waiting = true;
    return task_suspend(L, t, group_cancel, g);
}

/* ---- spawn, sleep, deadline, defer ---- */

static int l_spawn(lua_State *L) {
    luaL_checktype(L, 1, LUA_TFUNCTION);
    if (!task_start_later(L, lua_gettop(L) - 1, NULL, task_log_finished, NULL, NULL))
        return luaL_error(L, "not enough memory for a task");
    return 0;
}

/* Begins at once, up to its first wait. */
static int l_start(lua_State *L) {
    luaL_checktype(L, 1, LUA_TFUNCTION);
    if (!task_start(L, lua_gettop(L) - 1, NULL, task_log_finished, NULL, NULL))
        return luaL_error(L, "not enough memory for a task");
    return 0;
}

static uint64_t check_ms(lua_State *L, int arg) {
    lua_Number ms = luaL_checknumber(L, arg);
    luaL_argcheck(L, ms >= 0 && ms <= MS_MAX, arg, "milliseconds, not negative, are expected");
    return (uint64_t)ceil(ms);
}

static int l_sleep(lua_State *L) {
    struct task *t = task_current(L);
    return task_sleep(L, t, check_ms(L, 1));
}

static int l_deadline(lua_State *L) {
    task_deadline(task_current(L), check_ms(L, 1));
    return 0;
}

struct deferred_call {
    lua_State *main;
    int fn;
};

static void run_deferred(void *data) {
    struct deferred_call *d = data;
    lua_State *L = d->main;
    lua_rawgeti(L, LUA_REGISTRYINDEX, d->fn);
    luaL_unref(L, LUA_REGISTRYINDEX, d->fn);
    if (!task_call_outside(L, 0)) {
        task_log_error(L, "deferred function failed");
        lua_pop(L, 1);
    }
}

static int l_defer(lua_State *L) {
    struct arena *a = task_arena(task_current(L));
    luaL_checktype(L, 1, LUA_TFUNCTION);
    struct deferred_call *d = arena_alloc(a, sizeof *d);
    if (!d) return luaL_error(L, "not enough memory");
    d->main = task_main(L);
    lua_pushvalue(L, 1);
    d->fn = luaL_ref(L, LUA_REGISTRYINDEX);
    if (arena_defer(a, run_deferred, d)) return 0;
    luaL_unref(L, LUA_REGISTRYINDEX, d->fn);
    return luaL_error(L, "not enough memory");
}

/* ---- every ---- */

#define TICKER "core.sched.timer"

struct ticker {
    struct timer timer;
    lua_State *main;
    uint64_t ms;
    int fn, self; /* references; `self` keeps the userdata while it runs */
    bool busy, stopped;
    struct ticker *next, *before;
};

static struct ticker *tickers;

static void ticker_release(struct ticker *k) {
    if (k->self == LUA_NOREF) return;
    if (k->next) k->next->before = k->before;
    if (k->before) k->before->next = k->next;
    if (tickers == k) tickers = k->next;
    luaL_unref(k->main, LUA_REGISTRYINDEX, k->fn);
    luaL_unref(k->main, LUA_REGISTRYINDEX, k->self);
    k->fn = k->self = LUA_NOREF;
}

static void ticker_stop(struct ticker *k) {
    k->stopped = true;
    timer_stop(&k->timer);
    if (!k->busy) ticker_release(k);
}

static void tick(void *data);

static void ticked(void *data, lua_State *L, bool ok) {
    struct ticker *k = data;
    if (!ok) task_log_error(L, "timer task failed");
    k->busy = false;
    if (k->stopped) {
        ticker_release(k);
    } else {
        timer_start(&k->timer, k->ms, tick, k);
    }
}

static void tick(void *data) {
    struct ticker *k = data;
    k->busy = true;
    lua_rawgeti(k->main, LUA_REGISTRYINDEX, k->fn);
    if (!task_start(k->main, 0, NULL, ticked, k, NULL)) {
        k->busy = false;
        timer_start(&k->timer, k->ms, tick, k);
    }
}

static int l_every(lua_State *L) {
    uint64_t ms = check_ms(L, 1);
    luaL_checktype(L, 2, LUA_TFUNCTION);
    struct ticker *k = lua_newuserdata(L, sizeof *k);
    *k = (struct ticker){.main = task_main(L), .ms = ms, .fn = LUA_NOREF, .self = LUA_NOREF};
    luaL_getmetatable(L, TICKER);
    lua_setmetatable(L, -2);
    if (stopping) {
        k->stopped = true;
        return 1;
    }
    lua_pushvalue(L, 2);
    k->fn = luaL_ref(L, LUA_REGISTRYINDEX);
    lua_pushvalue(L, -1);
    k->self = luaL_ref(L, LUA_REGISTRYINDEX);
    k->next = tickers;
    if (tickers) tickers->before = k;
    tickers = k;
    timer_start(&k->timer, ms, tick, k);
    return 1;
}

static int l_ticker_stop(lua_State *L) {
    struct ticker *k = luaL_checkudata(L, 1, TICKER);
    if (!k->stopped) ticker_stop(k);
    return 0;
}

/* The VM is being closed with the timer still running. */
static int l_ticker_gc(lua_State *L) {
    struct ticker *k = luaL_checkudata(L, 1, TICKER);
    timer_stop(&k->timer);
    if (k->self != LUA_NOREF) {
        if (k->next) k->next->before = k->before;
        if (k->before) k->before->next = k->next;
        if (tickers == k) tickers = k->next;
        k->self = LUA_NOREF;
    }
    return 0;
}

/* ---- semaphore ---- */

#define SEMAPHORE "core.sched.semaphore"

struct waiter {
    struct task *task;
    struct semaphore *sem;
    struct waiter *next, *before;
    struct timer limit;
};

struct semaphore {
    lua_Integer free;
    int waiters; /* how many wait */
    struct waiter *first, *last;
};

static void waiter_unlink(struct waiter *w) {
    struct semaphore *s = w->sem;
    if (w->next) {
        w->next->before = w->before;
    } else {
        s->last = w->before;
    }
    if (w->before) {
        w->before->next = w->next;
    } else {
        s->first = w->next;
    }
    s->waiters--;
}

static void waiter_cancel(void *op) {
    struct waiter *w = op;
    timer_stop(&w->limit);
    waiter_unlink(w);
    free(w);
}

static void waiter_late(void *data) {
    struct waiter *w = data;
    struct task *t = w->task;
    struct error err;
    error_set(&err, ERR_TIMEOUT, "waited too long");
    waiter_unlink(w);
    free(w);
    task_resume_error(t, &err);
}

static int l_semaphore(lua_State *L) {
    lua_Integer n = luaL_checkinteger(L, 1);
    luaL_argcheck(L, n >= 1, 1, "at least 1 is expected");
    struct semaphore *s = lua_newuserdata(L, sizeof *s);
    *s = (struct semaphore){.free = n};
    luaL_getmetatable(L, SEMAPHORE);
    lua_setmetatable(L, -2);
    return 1;
}

/* acquire([ms]) -> true | nil, err (kind "timeout" when it waited `ms` in vain) */
static int l_acquire(lua_State *L) {
    struct semaphore *s = luaL_checkudata(L, 1, SEMAPHORE);
    lua_Integer ms = luaL_optinteger(L, 2, 0);
    luaL_argcheck(L, ms >= 0, 2, "milliseconds are expected");
    struct task *t = task_current(L);
    if (s->free > 0) {
        s->free--;
        lua_pushboolean(L, 1);
        return 1;
    }
    struct waiter *w = malloc(sizeof *w);
    if (!w) return luaL_error(L, "not enough memory");
    *w = (struct waiter){.task = t, .sem = s, .before = s->last};
    if (s->last) {
        s->last->next = w;
    } else {
        s->first = w;
    }
    s->last = w;
    s->waiters++;
    if (ms > 0) timer_start(&w->limit, (uint64_t)ms, waiter_late, w);
    return task_suspend(L, t, waiter_cancel, w);
}

static int l_release(lua_State *L) {
    struct semaphore *s = luaL_checkudata(L, 1, SEMAPHORE);
    struct waiter *w = s->first;
    if (!w) {
        s->free++;
        return 0;
    }
    /* The permit goes straight to the one that has waited longest. */
    struct task *t = w->task;
    waiter_cancel(w);
    lua_pushboolean(task_lua(t), 1);
    task_resume_later(t, 1);
    return 0;
}

static int l_waiting(lua_State *L) {
    struct semaphore *s = luaL_checkudata(L, 1, SEMAPHORE);
    lua_pushinteger(L, s->waiters);
    return 1;
}

/* ---- stop ---- */

static int l_on_stop(lua_State *L) {
    luaL_checktype(L, 1, LUA_TFUNCTION);
    lua_pushlightuserdata(L, &on_stop_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    lua_pushvalue(L, 1);
    lua_rawseti(L, -2, (int)lua_objlen(L, -2) + 1);
    return 0;
}

/* sched.predecessor() -> pid of the worker that died in this one's place, or nil */
static int l_predecessor(lua_State *L) {
    int64_t pid = supervisor_predecessor();
    if (pid)
        lua_pushnumber(L, (lua_Number)pid);
    else
        lua_pushnil(L);
    return 1;
}

static int l_stopping(lua_State *L) {
    lua_pushboolean(L, stopping);
    return 1;
}

void sched_stop(lua_State *L) {
    if (stopping) return;
    stopping = true;
    for (struct ticker *k = tickers, *next; k; k = next) {
        next = k->next;
        ticker_stop(k);
    }
    lua_pushlightuserdata(L, &on_stop_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    int list = lua_gettop(L);
    size_t n = lua_istable(L, list) ? lua_objlen(L, list) : 0;
    for (size_t i = 1; i <= n; i++) {
        lua_rawgeti(L, list, (int)i);
        if (!task_start_later(L, 0, NULL, task_log_finished, NULL, NULL))
            log_line(LOG_ERROR, "no memory for a stop function");
    }
    lua_settop(L, list - 1);
}

static int l_count(lua_State *L) {
    lua_pushnumber(L, (lua_Number)task_count());
    return 1;
}

static const char lua_half[] =
    "local M = ...\n"
    "local raw, acquire, release, error, pcall, type = M.parallel, nil, nil, error, pcall, type\n"
    "function M.parallel(list)\n"
    "  local ok, value = raw(list)\n"
    "  if ok then return value end\n"
    "  error(value, type(value) == 'string' and 0 or nil)\n"
    "end\n"
    "local sem = M.semaphore_methods\n"
    "M.semaphore_methods = nil\n"
    "acquire, release = sem.acquire, sem.release\n"
    "local function after(self, ok, ...)\n"
    "  release(self)\n"
    "  if not ok then error((...), 0) end\n"
    "  return ...\n"
    "end\n"
    "function sem.with(self, fn, ...)\n"
    "  local ok, err = acquire(self)\n"
    "  if not ok then error(err, 0) end\n"
    "  return after(self, pcall(fn, ...))\n"
    "end\n";

static void class(lua_State *L, const char *name, const luaL_Reg *methods) {
    luaL_newmetatable(L, name);
    lua_newtable(L);
    luaL_setfuncs(L, methods, 0);
    lua_setfield(L, -2, "__index");
}

int luaopen_core_sched(lua_State *L) {
    static const luaL_Reg functions[] = {
        {"spawn", l_spawn},
        {"start", l_start},
        {"sleep", l_sleep},
        {"parallel", l_parallel},
        {"every", l_every},
        {"defer", l_defer},
        {"deadline", l_deadline},
        {"predecessor", l_predecessor},
        {"stopping", l_stopping},
        {"on_stop", l_on_stop},
        {"semaphore", l_semaphore},
        {"count", l_count},
        {NULL, NULL},
    };
    static const luaL_Reg ticker_methods[] = {{"stop", l_ticker_stop}, {NULL, NULL}};
    static const luaL_Reg semaphore_methods[] = {
        {"acquire", l_acquire}, {"release", l_release}, {"waiting", l_waiting}, {NULL, NULL}};
    lua_pushlightuserdata(L, &on_stop_key);
    lua_newtable(L);
    lua_rawset(L, LUA_REGISTRYINDEX);
    stopping = false;

    class(L, TICKER, ticker_methods);
    lua_pushcfunction(L, l_ticker_gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
    lua_newtable(L);
    luaL_setfuncs(L, functions, 0);
    class(L, SEMAPHORE, semaphore_methods);
    lua_getfield(L, -1, "__index");
    lua_setfield(L, -3, "semaphore_methods");
    lua_pop(L, 1);

    if (luaL_loadbuffer(L, lua_half, sizeof lua_half - 1, "=core.sched") != 0) return lua_error(L);
    lua_pushvalue(L, -2);
    lua_call(L, 1, 0);
    return 1;
}
