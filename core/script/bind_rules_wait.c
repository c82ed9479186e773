/* core.rules: runs of rules that may wait.
 *
 *   rules.capability(name [, {takes_secrets, gives_secret}])   names a function of rule code: "kv.get"
 *   set:open(index [, uncounted]) -> run | nil, failure       uncounted: without the rule's breaker
 *   run:start(input [, form [, step [, undo [, limits]]]]) -> "done", answer, info
 *                                                           | "call", name, arguments...
 *                                                           | "failed", nil, info
 *   run:answer(...), run:refuse(message)                       as start; the latter: the call raises
 *   run:stop(message [, mistake])                              the run is over: of time, or by a mistake of the rule
 *   run:line() -> the line that it waits at, 0 when not known
 *   run:close()                                                at the end in every case; a run is not left to the
 *                                                              collector, as it holds a state
 *
 * Nothing here waits: the caller gets what the call asks for, and comes back with it. A secret among the arguments is
 * {["$secret"] = name}. */
#include <lauxlib.h>

#include "script/bind_rules.h"
#include "script/rules_wait.h"
#include "script/task.h"

#define RUN_TYPE "kasma.rule_run"
#define INPUT_MAX ((size_t)1536 * 1024) /* a route takes bodies of 1 MiB */
#define ARGS_MAX ((size_t)512 * 1024)
#define ANSWER_MAX ((size_t)2 * 1024 * 1024)
#define OUTPUT_MAX ((size_t)4 * 1024 * 1024) /* the hook's limit has been checked by then */

struct run_box {
    struct rule_run *run;
    int line;
};

static struct run_box *check_run(lua_State *L) {
    struct run_box *box = luaL_checkudata(L, 1, RUN_TYPE);
    luaL_argcheck(L, box->run, 1, "the run is closed");
    return box;
}

static int l_open(lua_State *L) {
    struct rule_set *set = bind_rule_set(L, 1);
    size_t i = bind_rule_index(L, set, 2);
    lua_settop(L, 3);
    struct sandbox_report report;
    struct run_box *box = lua_newuserdata(L, sizeof *box);
    *box = (struct run_box){.run = NULL};
    luaL_getmetatable(L, RUN_TYPE);
    lua_setmetatable(L, -2);
    box->run = rules_wait_open(set, i, !lua_toboolean(L, 3), &report);
    if (box->run) return 1;
    lua_pushnil(L);
    bind_rule_report(L, &report, (struct str){0});
    return 2;
}

static int run_close(lua_State *L) {
    struct run_box *box = luaL_checkudata(L, 1, RUN_TYPE);
    rules_wait_close(box->run);
    box->run = NULL;
    return 0;
}

static bool read(lua_State *sandbox, void *data, struct error *err) {
    return sandbox_copy(sandbox, -1, data, OUTPUT_MAX, err);
}

static int push_call(lua_State *L, struct rule_run *run, struct sandbox_report *report);

static int push_failed(lua_State *L, const struct rule_run *run, const struct sandbox_report *report) {
    lua_settop(L, 1); /* the run stays: it must not be collected meanwhile */
    lua_pushliteral(L, "failed");
    lua_pushnil(L);
    bind_rule_report(L, report, report->log_lines ? rules_wait_log(run) : (struct str){0});
    return 3;
}

static int push_state(lua_State *L, struct run_box *box, enum sandbox_wait now, struct sandbox_report *report) {
    struct rule_run *run = box->run;
    box->line = report->line;
    if (now == SANDBOX_CALL) return push_call(L, run, report);
    if (now == SANDBOX_FAILED) return push_failed(L, run, report);
    lua_settop(L, 1);
    lua_pushliteral(L, "done");
    if (!rules_wait_result(run, read, L, report)) return push_failed(L, run, report);
    bind_rule_report(L, report, report->log_lines ? rules_wait_log(run) : (struct str){0});
    return 3;
}

/* What cannot be handed over is refused, and the run goes on with that. */
static int push_call(lua_State *L, struct rule_run *run, struct sandbox_report *report) {
    for (;;) {
        struct error err = {0};
        struct sandbox_call call = rules_wait_call(run);
        lua_settop(L, 1);
        luaL_checkstack(L, call.count + 4, "too many arguments");
        lua_pushliteral(L, "call");
        lua_pushstring(L, call.name);
        bool ok = true;
        for (int i = 1; ok && i <= call.count; i++) ok = sandbox_copy_secrets(call.L, i, L, ARGS_MAX, &err);
        if (ok) return 2 + call.count;
        enum sandbox_wait now = rules_wait_refuse(run, err.message, report);
        if (now != SANDBOX_CALL) return push_state(L, lua_touserdata(L, 1), now, report);
    }
}

struct giving {
    lua_State *L;
    const struct shape *form;
};

static bool build(lua_State *sandbox, void *data, struct error *err) {
    struct giving *g = data;
    return g->form ? shape_copy(g->L, 2, sandbox, g->form, INPUT_MAX, err)
                   : sandbox_copy(g->L, 2, sandbox, INPUT_MAX, err);
}

static bool give(lua_State *sandbox, void *data, struct error *err) {
    struct giving *g = data;
    size_t left = ANSWER_MAX;
    for (int i = 2; i <= lua_gettop(g->L); i++) {
        if (!lua_checkstack(sandbox, 4)) return error_set(err, ERR_MEMORY, "out of memory");
        if (!sandbox_copy_some(g->L, i, sandbox, &left, err)) return false;
    }
    return true;
}

static int l_start(lua_State *L) {
    struct run_box *box = check_run(L);
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 6);
    struct giving g = {.L = L, .form = bind_rule_form(L, 3)};
    struct sandbox_entry entry = {.step = (int)luaL_optinteger(L, 4, 0), .undo = lua_toboolean(L, 5)};
    struct sandbox_limits limits = sandbox_capable;
    bind_rule_limits(L, 6, &limits);
    struct sandbox_report report;
    enum sandbox_wait now = rules_wait_start(box->run, entry.step > 0 ? &entry : NULL,
                                             lua_isnoneornil(L, 6) ? NULL : &limits, build, &g, &report);
    return push_state(L, box, now, &report);
}

static int l_answer(lua_State *L) {
    struct run_box *box = check_run(L);
    struct giving g = {.L = L};
    struct sandbox_report report;
    return push_state(L, box, rules_wait_answer(box->run, give, &g, &report), &report);
}

static int l_refuse(lua_State *L) {
    struct run_box *box = check_run(L);
    struct sandbox_report report;
    return push_state(L, box, rules_wait_refuse(box->run, luaL_checkstring(L, 2), &report), &report);
}

static int l_stop(lua_State *L) {
    struct run_box *box = check_run(L);
    struct sandbox_report report;
    enum outcome why = lua_toboolean(L, 3) ? OUTCOME_ERROR : OUTCOME_TIME;
    rules_wait_stop(box->run, why, luaL_checkstring(L, 2), &report);
    return push_state(L, box, SANDBOX_FAILED, &report);
}

static int l_line(lua_State *L) {
    lua_pushinteger(L, check_run(L)->line);
    return 1;
}

static bool flag(lua_State *L, int idx, const char *name) {
    if (!lua_istable(L, idx)) return false;
    lua_getfield(L, idx, name);
    bool set = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return set;
}

static int l_capability(lua_State *L) {
    struct error err = {0};
    const char *name = luaL_checkstring(L, 1);
    if (!sandbox_declare(name, flag(L, 2, "takes_secrets"), flag(L, 2, "gives_secret"), &err))
        return task_fail(L, &err);
    lua_pushboolean(L, 1);
    return 1;
}

static int l_waits(lua_State *L) {
    lua_pushinteger(L, (lua_Integer)rules_waits_open());
    lua_pushinteger(L, (lua_Integer)rules_waits_idle());
    return 2;
}

void bind_rules_wait_open(lua_State *L, int methods) {
    static const luaL_Reg functions[] = {{"capability", l_capability}, {"waits", l_waits}, {NULL, NULL}};
    static const luaL_Reg of_run[] = {{"start", l_start}, {"answer", l_answer}, {"refuse", l_refuse}, {"stop", l_stop},
                                      {"line", l_line},   {"close", run_close}, {NULL, NULL}};
    luaL_setfuncs(L, functions, 0);
    lua_pushcfunction(L, l_open);
    lua_setfield(L, methods, "open");
    luaL_newmetatable(L, RUN_TYPE);
    lua_pushcfunction(L, run_close);
    lua_setfield(L, -2, "__gc");
    lua_newtable(L);
    luaL_setfuncs(L, of_run, 0);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);
}
