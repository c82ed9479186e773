/* core.rules: the sandbox host for the platform's Lua.
 *
 *   rules.list(tenant [, hook]) -> { {id, name, hook, priority, version, on_error}, ... }, highest priority first
 *   rules.run(tenant, id, input [, version [, instructions]]) -> output, info | nil, {kind, outcome, message, line}
 *       `version` from rules.list pins what was listed for a minute after it was replaced; info = {instructions,
 * micros, heap, log}. The output may be nil, which is an answer: look at the second value. rules.reload()
 * rules.status() -> { {tenant, live, rules, problems}, ... } */
#include <lauxlib.h>

#include "runtime/config.h"
#include "script/bind.h"
#include "script/json.h"
#include "script/rules.h"
#include "script/task.h"

#define INPUT_MAX ((size_t)256 * 1024)
#define OUTPUT_MAX ((size_t)4 * 1024 * 1024) /* the hook's limit has been checked by then */

static struct str check_str(lua_State *L, int arg) {
    struct str s;
    s.at = luaL_checklstring(L, arg, &s.len);
    return s;
}

static void set_text(lua_State *L, const char *name, const char *value) {
    lua_pushstring(L, value);
    lua_setfield(L, -2, name);
}

static void set_number(lua_State *L, const char *name, double value) {
    lua_pushnumber(L, value);
    lua_setfield(L, -2, name);
}

static void push_info(lua_State *L, const struct rule_info *r) {
    lua_createtable(L, 0, 6);
    set_text(L, "id", r->id);
    set_text(L, "name", r->name);
    set_text(L, "hook", r->hook);
    set_text(L, "version", r->version);
    set_text(L, "on_error", r->on_error);
    set_number(L, "priority", r->priority);
}

static int l_list(lua_State *L) {
    struct str tenant = check_str(L, 1);
    const char *hook = luaL_optstring(L, 2, NULL);
    struct error err = {0};
    struct rule_set *set = rules_acquire(tenant, &err);
    if (!set) return task_fail(L, &err);
    lua_newtable(L);
    int n = 0;
    for (size_t i = 0; i < rules_count(set); i++) {
        struct rule_info r = rules_at(set, i);
        if (hook && strcmp(hook, r.hook) != 0) continue;
        push_info(L, &r);
        lua_rawseti(L, -2, ++n);
    }
    if (n == 0) json_mark_array(L, -1);
    rules_release(set);
    return 1;
}

struct call {
    lua_State *L;
};

/* Argument 3 of the platform's call, copied into the sandbox. */
static bool build(lua_State *sandbox, void *data, struct error *err) {
    struct call *c = data;
    return sandbox_copy(c->L, 3, sandbox, INPUT_MAX, err);
}

static bool read(lua_State *sandbox, void *data, struct error *err) {
    struct call *c = data;
    return sandbox_copy(sandbox, -1, c->L, OUTPUT_MAX, err);
}

static int push_failure(lua_State *L, const struct sandbox_report *report) {
    lua_pushnil(L);
    lua_createtable(L, 0, 6);
    set_text(L, "kind",
             report->outcome == OUTCOME_ERROR || report->outcome == OUTCOME_INVALID_RESULT ? "invalid" : "limit");
    set_text(L, "code", outcome_name(report->outcome));
    set_text(L, "outcome", outcome_name(report->outcome));
    set_text(L, "message", report->message);
    set_number(L, "instructions", (double)report->instructions);
    if (report->line) set_number(L, "line", report->line);
    return 2;
}

static int l_run(lua_State *L) {
    struct str tenant = check_str(L, 1);
    const char *id = luaL_checkstring(L, 2), *version = luaL_optstring(L, 4, NULL);
    luaL_checktype(L, 3, LUA_TTABLE);
    lua_Number budget = luaL_optnumber(L, 5, 0);
    luaL_argcheck(L, budget >= 0 && budget <= 1e9, 5, "out of range");
    struct error err = {0};
    struct rule_set *set = rules_acquire_version(tenant, id, version, &err);
    if (!set) return task_fail(L, &err);
    lua_settop(L, 5);
    struct sandbox_limits limits = sandbox_pure;
    limits.instructions = (uint64_t)budget;
    struct call c = {.L = L};
    struct sandbox_report report;
    bool ok =
        rules_run(set, (size_t)rules_find(set, id, version), budget > 0 ? &limits : NULL, build, read, &c, &report);
    struct str log = rules_log(set);
    if (!ok) {
        rules_release(set);
        return push_failure(L, &report);
    }
    lua_createtable(L, 0, 4);
    set_number(L, "instructions", (double)report.instructions);
    set_number(L, "micros", (double)report.micros);
    set_number(L, "heap", (double)report.heap_peak);
    lua_pushlstring(L, log.at ? log.at : "", log.len);
    lua_setfield(L, -2, "log");
    rules_release(set);
    return 2;
}

static int l_reload(lua_State *L) {
    (void)L;
    rules_reload();
    return 0;
}

static int l_status(lua_State *L) {
    lua_newtable(L);
    int n = 0;
    for (size_t i = 0; i < rules_tenants(); i++) {
        const char *key = rules_tenant(i);
        struct error err = {0};
        struct rule_set *set = rules_acquire(str_of(key), &err);
        if (!set) continue;
        lua_createtable(L, 0, 4);
        set_text(L, "tenant", key);
        set_number(L, "live", (double)rules_count(set));
        lua_createtable(L, (int)rules_count(set), 0);
        for (size_t k = 0; k < rules_count(set); k++) {
            struct rule_info r = rules_at(set, k);
            push_info(L, &r);
            lua_rawseti(L, -2, (int)k + 1);
        }
        json_mark_array(L, -1);
        lua_setfield(L, -2, "rules");
        rules_release(set);
        size_t problems = rules_problems(key);
        lua_createtable(L, (int)problems, 0);
        for (size_t k = 0; k < problems; k++) {
            struct rule_problem p = rules_problem(key, k);
            lua_createtable(L, 0, 3);
            set_text(L, "file", p.file);
            set_text(L, "message", p.message);
            if (p.line) set_number(L, "line", p.line);
            lua_rawseti(L, -2, (int)k + 1);
        }
        json_mark_array(L, -1);
        lua_setfield(L, -2, "problems");
        lua_rawseti(L, -2, ++n);
    }
    return 1;
}

/* The registry ends before the VM does, whose state it uses. */
static int l_close(lua_State *L) {
    (void)L;
    rules_close();
    return 0;
}

int luaopen_core_rules(lua_State *L) {
    static const luaL_Reg functions[] = {
        {"list", l_list}, {"run", l_run}, {"reload", l_reload}, {"status", l_status}, {NULL, NULL}};
    if (!rules_are_open()) {
        struct error err = {0};
        if (!rules_open(task_main(L), config_str("KASMA_RULES_DIR"), config_env() != ENV_PRODUCTION, &err))
            return luaL_error(L, "core.rules: %s", err.message);
        lua_newuserdata(L, 1);
        lua_createtable(L, 0, 1);
        lua_pushcfunction(L, l_close);
        lua_setfield(L, -2, "__gc");
        lua_setmetatable(L, -2);
        luaL_ref(L, LUA_REGISTRYINDEX);
    }
    lua_newtable(L);
    luaL_setfuncs(L, functions, 0);
    return 1;
}
