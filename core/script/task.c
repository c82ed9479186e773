/* The scheduler: which coroutine runs, which waits, and how each ends.
 *
 * A task and its Lua thread are one pooled object: after a clean end the thread is kept and given the next function, so
 * that a request costs no new thread, no registry reference and no arena. A thread that ended with an error is dropped
 * (Lua 5.1 cannot restart it).
 *
 * `running` is the task whose code runs now. Tasks may nest on the C stack (one task's binding starts or resumes
 * another); run() keeps the outer one in a local. A task is in exactly one state:
 *
 *     READY      waits in the ready queue to be begun or resumed at the end of the loop turn
 *     RUNNING    its code is on the C stack
 *     SUSPENDED  a binding waits; `cancel` and `op` are that binding's
 *     DONE       has ended; `finished` runs
 *
 * A cancelled task goes on running: each suspension is answered with the error at once, and its code is expected to
 * unwind. Code that swallows that error in a loop would spin for ever, so after IGNORED_MAX such answers its coroutine
 * is abandoned where it stands. */
#include "script/task.h"

#include <lauxlib.h>
#include <stdlib.h>

#include "runtime/buf.h"
#include "runtime/log.h"
#include "runtime/loop.h"
#include "script/guard.h"
#include "script/timers.h"

#define IDLE_MAX 1024   /* pooled threads a VM keeps */
#define DEPTH_MAX 64    /* tasks that run one inside the other on the C stack */
#define IGNORED_MAX 100 /* suspensions a cancelled task may still try */
#define FRESH_SLOTS 16  /* values that a coroutine has room for before it runs: Lua promises 20 */

enum state { READY, RUNNING, SUSPENDED, DONE };

struct pool {
    lua_State *main;
    struct task *idle;
    size_t nidle;
    struct task *alive; /* newest first */
};

struct task {
    lua_State *L;
    int anchor; /* registry reference that keeps L from the collector */
    struct pool *pool;
    struct arena *own;   /* kept with the pooled task; used when the caller lends none */
    struct arena *arena; /* own, or the caller's */
    task_finished *finished;
    void *data;
    void (*cancel)(void *op);
    void *op;
    struct timer deadline, sleep;
    struct task *next;          /* idle list or ready queue */
    struct task *newer, *older; /* list of living tasks */
    int nargs;                  /* READY: values to resume with */
    enum state state;
    enum error_kind doomed; /* ERR_NONE until cancelled */
    unsigned ignored;
};

static struct task *running;
static size_t alive;
static unsigned depth;
static uint64_t turns;
static struct task *ready_first, *ready_last;

static void run_ready(void *data);
static struct loop_hook ready_hook = {.fn = run_ready};

static char pool_key;       /* registry[&pool_key] = the VM's pool */
static struct pool *latest; /* the one that was asked for last: found faster so */

static int enter_pool(lua_State *L) {
    lua_pushlightuserdata(L, &pool_key);
    lua_insert(L, 1);
    lua_rawset(L, LUA_REGISTRYINDEX);
    return 0;
}

/* NULL: out of memory, or L is a coroutine of a VM that has never had a task. */
static struct pool *pool_of(lua_State *L) {
    if (running) return running->pool;
    if (latest && latest->main == L) return latest;
    int top = lua_gettop(L);
    lua_pushlightuserdata(L, &pool_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    struct pool *p = lua_touserdata(L, -1);
    lua_pop(L, 1);
    if (p) {
        if (p->main == L) latest = p;
        return p;
    }
    bool is_main = lua_pushthread(L);
    lua_pop(L, 1);
    p = is_main ? calloc(1, sizeof *p) : NULL;
    if (!p) return NULL;
    p->main = L;
    if (!guard_open(L) || lua_cpcall(L, enter_pool, p) != 0) {
        lua_settop(L, top);
        free(p);
        return NULL;
    }
    return p;
}

static void destroy(struct task *t) {
    luaL_unref(t->pool->main, LUA_REGISTRYINDEX, t->anchor);
    arena_free(t->own);
    free(t);
}

static int make_thread(lua_State *main, void *data) {
    struct task *t = data;
    t->L = lua_newthread(main);
    t->anchor = luaL_ref(main, LUA_REGISTRYINDEX);
    return 0;
}

static struct task *acquire(struct pool *p) {
    struct task *t = p->idle;
    if (t) {
        p->idle = t->next;
        p->nidle--;
        return t;
    }
    t = calloc(1, sizeof *t);
    if (!t) return NULL;
    t->own = arena_new(0);
    t->pool = p;
    struct error err;
    if (t->own && guard_call(p->main, 0, make_thread, t, &err) == 0) return t;
    if (t->own) arena_free(t->own);
    free(t);
    return NULL;
}

static void recycle(struct task *t, bool clean) {
    struct pool *p = t->pool;
    if (!clean || p->nidle >= IDLE_MAX) {
        destroy(t);
        return;
    }
    lua_settop(t->L, 0);
    t->next = p->idle;
    p->idle = t;
    p->nidle++;
}

int task_refuse(lua_State *L, enum error_kind kind, const char *code, const char *message) {
    lua_pushnil(L);
    lua_createtable(L, 0, 3);
    lua_pushstring(L, error_kind_name(kind));
    lua_setfield(L, -2, "kind");
    if (code && *code) {
        lua_pushstring(L, code);
        lua_setfield(L, -2, "code");
    }
    lua_pushstring(L, message);
    lua_setfield(L, -2, "message");
    return 2;
}

int task_fail(lua_State *L, const struct error *err) {
    return task_refuse(L, err->kind, err->code, err->message);
}

static int fail(lua_State *L, void *data) {
    return task_fail(L, data);
}

static int push_text(lua_State *L, void *data) {
    lua_pushstring(L, data);
    return 1;
}

int task_put(struct task *t, task_push *make, void *data) {
    lua_State *main = t->pool->main;
    struct error err;
    int n = guard_call(main, 0, make, data, &err);
    if (n < 0) {
        log_line(LOG_ERROR, "an answer could not be handed to the task that waits for it: %s", err.message);
        n = guard_call(main, 0, fail, &err, &err);
    }
    if (n < 0) {
        lua_pushnil(t->L);
        guard_push_no_memory(t->L);
        return 2;
    }
    lua_xmove(main, t->L, n);
    return n;
}

static void finish(struct task *t, bool ok, bool clean) {
    t->state = DONE;
    timer_stop(&t->deadline);
    struct task *outer = running;
    running = NULL; /* what `finished` and the deferred calls run is not this task's code any more */
    if (t->finished) t->finished(t->data, t->L, ok);
    if (t->arena == t->own) arena_reset(t->own);
    running = outer;
    if (t->newer) t->newer->older = t->older;
    if (t->older) t->older->newer = t->newer;
    if (t->pool->alive == t) t->pool->alive = t->older;
    alive--;
    recycle(t, clean);
}

static void run(struct task *t, int nargs) {
    struct task *outer = running;
    running = t;
    t->state = RUNNING;
    turns++;
    depth++;
    int rc = lua_resume(t->L, nargs);
    depth--;
    running = outer;
    if (rc == LUA_YIELD) {
        if (t->state == SUSPENDED) return;
        (void)task_put(t, push_text,
                       t->ignored > IGNORED_MAX
                           ? "the task went on after it was cancelled and was abandoned"
                           : "coroutine.yield outside a coroutine of one's own; to wait use core.sched");
        finish(t, false, false);
        return;
    }
    if (rc == LUA_ERRMEM) guard_collect(t->pool->main);
    finish(t, rc == 0, rc == 0);
}

static void queue(struct task *t, int nargs) {
    t->state = READY;
    t->nargs = nargs;
    t->next = NULL;
    if (ready_last) {
        ready_last->next = t;
    } else {
        ready_first = t;
    }
    ready_last = t;
    loop_at_turn_end(&ready_hook);
}

/* Now, unless tasks already nest so deep that the C stack might end: then at the end of the loop turn. */
static void run_now(struct task *t, int nargs) {
    if (depth < DEPTH_MAX) {
        run(t, nargs);
    } else {
        queue(t, nargs);
    }
}

static void run_ready(void *data) {
    (void)data;
    /* Only those that wait now: what they queue comes in the next turn, so that I/O gets its share. */
    struct task *t = ready_first;
    ready_first = ready_last = NULL;
    while (t) {
        struct task *next = t->next;
        run(t, t->nargs);
        t = next;
    }
}

static void forget_ready(struct task *t) {
    struct task *before = NULL;
    for (struct task *at = ready_first; at; before = at, at = at->next) {
        if (at != t) continue;
        if (before) {
            before->next = at->next;
        } else {
            ready_first = at->next;
        }
        if (ready_last == at) ready_last = before;
        return;
    }
}

/* The stack stays as large as it has been made once. */
static int make_room(lua_State *L) {
    const int *nargs = lua_touserdata(L, 1);
    luaL_checkstack(L, *nargs + 1, "the arguments of a task");
    return 0;
}

static struct task *create(lua_State *L, int nargs, struct arena *arena, task_finished *finished, void *data) {
    struct pool *p = pool_of(L);
    struct task *t = p ? acquire(p) : NULL;
    if (!t || (nargs >= FRESH_SLOTS && lua_cpcall(t->L, make_room, &nargs) != 0)) {
        if (t) recycle(t, true);
        lua_pop(L, nargs + 1);
        return NULL;
    }
    lua_xmove(L, t->L, nargs + 1);
    t->arena = arena ? arena : t->own;
    t->finished = finished;
    t->data = data;
    t->cancel = NULL;
    t->op = NULL;
    t->doomed = ERR_NONE;
    t->ignored = 0;
    t->next = NULL;
    t->newer = NULL;
    t->older = p->alive;
    if (p->alive) p->alive->newer = t;
    p->alive = t;
    alive++;
    return t;
}

bool task_start(lua_State *L, int nargs, struct arena *arena, task_finished *finished, void *data, struct task **out) {
    struct task *t = create(L, nargs, arena, finished, data);
    if (!t) return false;
    if (out) *out = t;
    run_now(t, nargs);
    return true;
}

bool task_start_later(lua_State *L, int nargs, struct arena *arena, task_finished *finished, void *data,
                      struct task **out) {
    struct task *t = create(L, nargs, arena, finished, data);
    if (!t) return false;
    if (out) *out = t;
    queue(t, nargs);
    return true;
}

bool task_begin(lua_State *main, task_push *make, void *what, struct arena *arena, task_finished *finished, void *data,
                struct task **out) {
    struct error err;
    struct pool *p = pool_of(main);
    int n = p ? guard_call(p->main, 0, make, what, &err) : -1;
    if (n < 0) return false;
    return task_start(p->main, n - 1, arena, finished, data, out);
}

struct task *task_current(lua_State *L) {
    if (!running) luaL_error(L, "this call may wait, and waiting needs a task: use sched.spawn");
    return running;
}

bool task_is_running(void) {
    return running != NULL;
}

uint64_t task_turns(void) {
    return turns;
}

struct arena *task_arena(struct task *t) {
    return t->arena;
}

lua_State *task_lua(struct task *t) {
    return t->L;
}

enum error_kind task_cancelled(const struct task *t) {
    return t->doomed;
}

lua_State *task_main(lua_State *L) {
    struct pool *p = pool_of(L);
    return p ? p->main : L;
}

size_t task_count(void) {
    return alive;
}

static int push_doom(lua_State *L, void *data) {
    const enum error_kind *why = data;
    return task_refuse(L, *why, NULL, *why == ERR_DEADLINE ? "the deadline has passed" : "the task was cancelled");
}

int task_suspend(lua_State *L, struct task *t, void (*cancel)(void *op), void *op) {
    if (L != t->L || !lua_isyieldable(L)) {
        if (cancel) cancel(op);
        return luaL_error(
            L, L != t->L ? "waiting inside a coroutine of one's own is not possible; use sched.spawn or sched.parallel"
                         : "waiting is not possible inside a call from C (require, table.sort, string.gsub)");
    }
    if (t->doomed != ERR_NONE) {
        if (cancel) cancel(op);
        if (++t->ignored > IGNORED_MAX) return lua_yield(L, 0); /* run() sees that it is not SUSPENDED */
        return push_doom(L, &t->doomed);
    }
    t->state = SUSPENDED;
    t->cancel = cancel;
    t->op = op;
    /* The first argument stays on the stack: what is waited on is often a userdata that nobody else holds, as in
     * `return tx:query(sql)`, and it must not be collected meanwhile. The others go, which leaves room for answers. */
    lua_settop(L, 1);
    return lua_yield(L, 1);
}

void task_resume(struct task *t, int nresults) {
    t->cancel = NULL;
    t->op = NULL;
    run_now(t, nresults);
}

void task_resume_later(struct task *t, int nresults) {
    t->cancel = NULL;
    t->op = NULL;
    queue(t, nresults);
}

void task_answer(struct task *t, task_push *make, void *data) {
    task_resume(t, task_put(t, make, data));
}

void task_answer_later(struct task *t, task_push *make, void *data) {
    task_resume_later(t, task_put(t, make, data));
}

void task_resume_error(struct task *t, const struct error *err) {
    struct error copy = *err;
    task_resume(t, task_put(t, fail, &copy));
}

void task_resume_error_later(struct task *t, const struct error *err) {
    struct error copy = *err;
    task_resume_later(t, task_put(t, fail, &copy));
}

void task_cancel(struct task *t, enum error_kind why) {
    if (t->state == DONE || t->doomed != ERR_NONE) return;
    t->doomed = why;
    if (t->state != SUSPENDED) return;
    void (*cancel)(void *) = t->cancel;
    void *op = t->op;
    t->cancel = NULL;
    t->op = NULL;
    t->state = READY; /* whatever `cancel` does, this task is resumed here and nowhere else */
    if (cancel) cancel(op);
    run_now(t, task_put(t, push_doom, &why));
}

static void deadline_passed(void *data) {
    task_cancel(data, ERR_DEADLINE);
}

void task_deadline(struct task *t, uint64_t ms) {
    if (ms == 0) {
        timer_stop(&t->deadline);
    } else {
        timer_start(&t->deadline, ms, deadline_passed, t);
    }
}

static void slept(void *data) {
    struct task *t = data;
    lua_pushboolean(t->L, 1);
    task_resume(t, 1);
}

static void wake(void *data) {
    struct task *t = data;
    timer_stop(&t->sleep);
}

int task_sleep(lua_State *L, struct task *t, uint64_t ms) {
    timer_start(&t->sleep, ms, slept, t);
    return task_suspend(L, t, wake, t);
}

bool task_call_outside(lua_State *L, int nargs) {
    struct task *outer = running;
    running = NULL;
    bool ok = lua_pcall(L, nargs, 0, 0) == 0;
    running = outer;
    return ok;
}

/* The text of the error at 1. An error table carries it in `message`; rawget, as its metamethods are not ours to run.
 */
static int note_error(lua_State *L, void *data) {
    struct buf *fields = data;
    if (lua_istable(L, 1)) {
        lua_pushliteral(L, "message");
        lua_rawget(L, 1);
        if (lua_type(L, -1) != LUA_TSTRING) lua_pushliteral(L, "(error object without a message)");
    } else if (lua_type(L, 1) != LUA_TSTRING) {
        lua_pushstring(L, luaL_typename(L, 1));
    }
    if (!buf_add(fields, STR("\"error\":")) || !buf_json_string(fields, str_of(lua_tostring(L, -1))))
        return luaL_error(L, "out of memory");
    return 0;
}

/* Called on the stack that is to be described, of which it is level 0 itself. */
static int note_traceback(lua_State *L) {
    struct buf *fields = lua_touserdata(L, 1);
    luaL_traceback(L, L, NULL, 1);
    if (!buf_add(fields, STR(",\"traceback\":")) || !buf_json_string(fields, str_of(lua_tostring(L, -1))))
        return luaL_error(L, "out of memory");
    return 0;
}

void task_log_error(lua_State *L, const char *what) {
    lua_State *main = task_main(L);
    struct buf fields = {0};
    struct error err;
    lua_pushvalue(L, -1);
    lua_xmove(L, main, 1);
    if (guard_call(main, 1, note_error, &fields, &err) < 0) {
        buf_clear(&fields);
    } else if (lua_cpcall(L, note_traceback, &fields) != 0) {
        lua_pop(L, 1);
        buf_clear(&fields);
    }
    log_event(LOG_ERROR, str_of(what), buf_str(&fields));
    buf_free(&fields);
}

void task_log_finished(void *data, lua_State *L, bool ok) {
    (void)data;
    if (!ok) task_log_error(L, "task failed");
}

/* A living task that is not RUNNING. (That one would be below us on the C stack: closing a VM from inside itself is a
 * bug of the caller.) */
static struct task *endable(struct pool *p) {
    struct task *t = p->alive;
    while (t && t->state != SUSPENDED && t->state != READY) t = t->older;
    return t;
}

void task_close(lua_State *main) {
    struct pool *p = pool_of(main);
    if (!p) return;
    /* A cancelled task never suspends again, so each of these ends; what one of them starts meanwhile is found too. */
    for (struct task *t; (t = endable(p)) != NULL;) {
        if (t->state == SUSPENDED) {
            task_cancel(t, ERR_CANCELLED);
        } else {
            t->doomed = ERR_CANCELLED;
            forget_ready(t);
            run(t, t->nargs);
        }
    }
    while (p->idle) {
        struct task *t = p->idle;
        p->idle = t->next;
        destroy(t);
    }
    lua_pushlightuserdata(main, &pool_key);
    lua_pushnil(main);
    lua_rawset(main, LUA_REGISTRYINDEX);
    guard_close(main);
    if (latest == p) latest = NULL;
    free(p);
}
