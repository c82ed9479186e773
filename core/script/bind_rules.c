/* core.rules: the sandbox host for the platform's Lua.
 *
 *   rules.pin(tenant) -> set | nil, err       the tenant's rules as they are now; they stay so for whoever holds the
 * set set:list([hook]) -> { {index, id, rule_id, name, hook, priority, version, number, on_error, fallback}, ... },
 * highest priority first set:count(hook), set:epoch(), set:memory() (bytes of the tenant's state) set:run(index, input
 * [, form [, {instructions, bytes}]]) -> output, info | nil, {outcome, code, message, line, ...} `form` from
 * rules.form: what it does not name is left out of the input. The output may be nil, which is an answer: look at
 * info.outcome. info = {outcome, instructions, micros, heap, result_bytes, log, log_lines, reason, tripped}
 * set:fault(index, why) -> whether the breaker opened: the answer of its last run is out of form, which counts as a
 * failure set:describe(index)
 * -> manifest as plain data, schemas included | nil, failure set:with(spec) -> set                     one rule added
 * or replaced, for trying it: failures are nobody's set:without(id) -> set rules.publish(tenant, epoch, specs) -> true
 * | nil, err spec = {id, rule_id, hook, name, number, priority, on_error, source, config = JSON text, fallback = JSON
 * text, open_until_ms, starts_ms, ends_ms, libs = {{key, source}}} rules.epoch(tenant) -> integer or nil;
 * rules.holds(tenant, id, number)
 * -> bool rules.form(definition [, path]) -> form   {fields = {name = definition}}, {item = definition}, else plain
 * data rules.fair(source) -> true | nil, why, line   whether the parser may be given it rules.cover(id | nil),
 * rules.covered(line) -> bool   which lines of a rule ran between the two rules.globals() -> {name = true, or
 * {member = true} of a library} rules.limits(hook) -> {instructions, heap, wall_us, result} rules.folder() ->  path
 * of the rule files; rules.reload(), rules.status() -> { {tenant, live, rules, problems}, ... } */
#include "script/bind_rules.h"

#include <lauxlib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/config.h"
#include "script/bind.h"
#include "script/json.h"
#include "script/sandbox_shape.h"
#include "script/task.h"

#define INPUT_MAX ((size_t)256 * 1024)
#define OUTPUT_MAX ((size_t)4 * 1024 * 1024) /* the hook's limit has been checked by then */
#define SET_TYPE "kasma.rule_set"
#define FORM_TYPE "kasma.rule_form"
#define SPECS_MAX 1000
#define LIBS_MAX 20

struct set_box {
    struct rule_set *set;
};

struct form_box {
    const struct shape *shape;
};

/* All forms ever made: the catalogue of hooks makes one for each hook whenever it is loaded, once in a server. */
static struct shape **forms;
static size_t nforms, room_for_forms;

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

struct rule_set *bind_rule_set(lua_State *L, int arg) {
    struct set_box *box = luaL_checkudata(L, arg, SET_TYPE);
    luaL_argcheck(L, box->set, arg, "the rules are closed");
    return box->set;
}

/* Pushes a set, whose reference it takes over; makes room for it before `acquire` can fail. */
static struct set_box *new_box(lua_State *L) {
    struct set_box *box = lua_newuserdata(L, sizeof *box);
    box->set = NULL;
    luaL_getmetatable(L, SET_TYPE);
    lua_setmetatable(L, -2);
    return box;
}

static int l_pin(lua_State *L) {
    struct str tenant = check_str(L, 1);
    struct error err = {0};
    struct set_box *box = new_box(L);
    box->set = rules_acquire(tenant, &err);
    return box->set ? 1 : task_fail(L, &err);
}

static int set_gc(lua_State *L) {
    struct set_box *box = luaL_checkudata(L, 1, SET_TYPE);
    rules_release(box->set);
    box->set = NULL;
    return 0;
}

static void push_info(lua_State *L, const struct rule_info *r, size_t index) {
    lua_createtable(L, 0, 10);
    set_number(L, "index", (double)index + 1);
    set_text(L, "id", r->id);
    if (*r->rule_id) set_text(L, "rule_id", r->rule_id);
    set_text(L, "name", r->name);
    set_text(L, "hook", r->hook);
    set_text(L, "version", r->version);
    set_text(L, "on_error", r->on_error);
    set_number(L, "number", (double)r->number);
    set_number(L, "priority", r->priority);
    if (r->fallback.len) {
        lua_pushlstring(L, r->fallback.at, r->fallback.len);
        lua_setfield(L, -2, "fallback");
    }
}

static void push_list(lua_State *L, const struct rule_set *set, const char *hook) {
    lua_newtable(L);
    int n = 0;
    for (size_t i = 0; i < rules_count(set); i++) {
        struct rule_info r = rules_at(set, i);
        if (hook && strcmp(hook, r.hook) != 0) continue;
        push_info(L, &r, i);
        lua_rawseti(L, -2, ++n);
    }
    json_mark_array(L, -1);
}

static int l_set_list(lua_State *L) {
    push_list(L, bind_rule_set(L, 1), luaL_optstring(L, 2, NULL));
    return 1;
}

static int l_set_count(lua_State *L) {
    const struct rule_set *set = bind_rule_set(L, 1);
    const char *hook = luaL_checkstring(L, 2);
    int n = 0;
    for (size_t i = 0; i < rules_count(set); i++) n += strcmp(hook, rules_at(set, i).hook) == 0;
    lua_pushinteger(L, n);
    return 1;
}

static int l_set_epoch(lua_State *L) {
    lua_pushnumber(L, (lua_Number)rules_set_epoch(bind_rule_set(L, 1)));
    return 1;
}

static int l_set_memory(lua_State *L) {
    lua_pushnumber(L, (lua_Number)rules_memory(bind_rule_set(L, 1)));
    return 1;
}

/* ---- running ---- */

struct call {
    lua_State *L;
    const struct shape *form;
};

/* Argument 3 of the platform's call, copied into the sandbox. */
static bool build(lua_State *sandbox, void *data, struct error *err) {
    struct call *c = data;
    return c->form ? shape_copy(c->L, 3, sandbox, c->form, INPUT_MAX, err)
                   : sandbox_copy(c->L, 3, sandbox, INPUT_MAX, err);
}

static bool read(lua_State *sandbox, void *data, struct error *err) {
    struct call *c = data;
    return sandbox_copy(sandbox, -1, c->L, OUTPUT_MAX, err);
}

void bind_rule_report(lua_State *L, const struct sandbox_report *report, struct str log) {
    lua_createtable(L, 0, 13);
    set_text(L, "outcome", outcome_name(report->outcome));
    set_number(L, "instructions", (double)report->instructions);
    set_number(L, "micros", (double)report->micros);
    set_number(L, "heap", (double)report->heap_peak);
    set_number(L, "result_bytes", (double)report->result);
    set_number(L, "log_lines", report->log_lines);
    if (*report->reason) set_text(L, "reason", report->reason);
    lua_pushlstring(L, log.at ? log.at : "", log.len);
    lua_setfield(L, -2, "log");
    lua_pushboolean(L, report->tripped);
    lua_setfield(L, -2, "tripped");
    if (report->outcome == OUTCOME_OK) return;
    set_text(L, "kind",
             report->outcome == OUTCOME_ERROR || report->outcome == OUTCOME_INVALID_RESULT ? "invalid" : "limit");
    set_text(L, "code", outcome_name(report->outcome));
    set_text(L, "message", report->message);
    if (report->line) set_number(L, "line", report->line);
    if (*report->stack) set_text(L, "stack", report->stack);
}

size_t bind_rule_index(lua_State *L, const struct rule_set *set, int arg) {
    lua_Integer i = luaL_checkinteger(L, arg);
    luaL_argcheck(L, i >= 1 && (size_t)i <= rules_count(set), arg, "no such rule in the set");
    return (size_t)i - 1;
}

void bind_rule_limits(lua_State *L, int arg, struct sandbox_limits *limits) {
    if (lua_isnoneornil(L, arg)) return;
    luaL_checktype(L, arg, LUA_TTABLE);
    lua_getfield(L, arg, "instructions");
    lua_Number n = luaL_optnumber(L, -1, (lua_Number)limits->instructions);
    luaL_argcheck(L, n >= 1 && n <= 1e9, arg, "instructions out of range");
    limits->instructions = (uint64_t)n;
    lua_getfield(L, arg, "wall_us");
    n = luaL_optnumber(L, -1, (lua_Number)limits->wall_us);
    luaL_argcheck(L, n >= 1 && n <= 60e6, arg, "wall_us out of range");
    limits->wall_us = (uint64_t)n;
    lua_pop(L, 2);
}

const struct shape *bind_rule_form(lua_State *L, int arg) {
    if (lua_isnoneornil(L, arg)) return NULL;
    const struct form_box *form = luaL_checkudata(L, arg, FORM_TYPE);
    return form->shape;
}

static int l_set_run(lua_State *L) {
    struct rule_set *set = bind_rule_set(L, 1);
    size_t i = bind_rule_index(L, set, 2);
    luaL_checktype(L, 3, LUA_TTABLE);
    const struct shape *form = bind_rule_form(L, 4);
    struct sandbox_limits limits = *rules_limits(rules_at(set, i).hook);
    lua_settop(L, 5);
    bind_rule_limits(L, 5, &limits);
    struct call c = {.L = L, .form = form};
    struct sandbox_report report;
    bool ok = rules_run(set, i, &limits, build, read, &c, &report);
    if (!ok) {
        lua_settop(L, 5);
        lua_pushnil(L);
    }
    bind_rule_report(L, &report, report.log_lines ? rules_log(set) : (struct str){0});
    return 2;
}

static int l_set_fault(lua_State *L) {
    struct rule_set *set = bind_rule_set(L, 1);
    size_t i = bind_rule_index(L, set, 2);
    struct sandbox_report report = {.outcome = OUTCOME_INVALID_RESULT};
    int n = snprintf(report.message, sizeof report.message, "%s", luaL_checkstring(L, 3));
    lua_pushboolean(L, n >= 0 && rules_fault(set, i, &report));
    return 1;
}

static int l_set_describe(lua_State *L) {
    struct rule_set *set = bind_rule_set(L, 1);
    size_t i = bind_rule_index(L, set, 2);
    struct call c = {.L = L};
    struct sandbox_report report;
    if (rules_describe(set, i, read, &c, &report)) return 1;
    lua_settop(L, 2);
    lua_pushnil(L);
    bind_rule_report(L, &report, (struct str){0});
    return 2;
}

/* ---- publishing and trying ---- */

/* The member of the table at `idx`; "" when absent. The table keeps it alive. */
static struct str member(lua_State *L, int idx, const char *name, bool required) {
    struct str s = {.at = "", .len = 0};
    lua_getfield(L, idx, name);
    if (lua_type(L, -1) == LUA_TSTRING) {
        s.at = lua_tolstring(L, -1, &s.len);
    } else if (required || (!lua_isnil(L, -1) && !lua_islightuserdata(L, -1))) {
        luaL_error(L, "a rule's %s must be text", name);
    }
    lua_pop(L, 1);
    return s;
}

static lua_Number number_member(lua_State *L, int idx, const char *name) {
    lua_getfield(L, idx, name);
    lua_Number n = lua_type(L, -1) == LUA_TNUMBER ? lua_tonumber(L, -1) : 0;
    lua_pop(L, 1);
    return n;
}

/* The spec on top; `libs` has room for LIBS_MAX. */
static void read_spec(lua_State *L, struct rule_spec *spec, struct sandbox_lib *libs) {
    int idx = lua_gettop(L);
    luaL_checktype(L, idx, LUA_TTABLE);
    *spec = (struct rule_spec){.id = member(L, idx, "id", true).at,
                               .rule_id = member(L, idx, "rule_id", false).at,
                               .hook = member(L, idx, "hook", true).at,
                               .on_error = member(L, idx, "on_error", false).at,
                               .name = member(L, idx, "name", false).at,
                               .number = (int64_t)number_member(L, idx, "number"),
                               .priority = (int)number_member(L, idx, "priority"),
                               .open_until_ms = (int64_t)number_member(L, idx, "open_until_ms"),
                               .starts_ms = (int64_t)number_member(L, idx, "starts_ms"),
                               .ends_ms = (int64_t)number_member(L, idx, "ends_ms"),
                               .source = member(L, idx, "source", true),
                               .config = member(L, idx, "config", false),
                               .fallback = member(L, idx, "fallback", false),
                               .libs = libs};
    if (!*spec->name) spec->name = NULL;
    if (!*spec->on_error) spec->on_error = NULL;
    lua_getfield(L, idx, "libs");
    size_t n = lua_istable(L, -1) ? lua_objlen(L, -1) : 0;
    if (n > LIBS_MAX) luaL_error(L, "a rule uses at most %d libraries", LIBS_MAX);
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(L, -1, (int)i + 1);
        luaL_checktype(L, -1, LUA_TTABLE);
        libs[i].key = member(L, lua_gettop(L), "key", true).at;
        libs[i].source = member(L, lua_gettop(L), "source", true);
        lua_pop(L, 1);
    }
    spec->nlibs = n;
    lua_settop(L, idx);
}

static int l_publish(lua_State *L) {
    struct str tenant = check_str(L, 1);
    lua_Number epoch = luaL_checknumber(L, 2);
    luaL_checktype(L, 3, LUA_TTABLE);
    lua_settop(L, 3);
    size_t n = lua_objlen(L, 3);
    luaL_argcheck(L, n <= SPECS_MAX, 3, "too many rules");
    struct rule_spec *specs = lua_newuserdata(L, (n + 1) * sizeof *specs);
    struct sandbox_lib *libs = lua_newuserdata(L, (n + 1) * LIBS_MAX * sizeof *libs);
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(L, 3, (int)i + 1);
        read_spec(L, &specs[i], libs + i * LIBS_MAX);
        lua_pop(L, 1);
    }
    struct error err = {0};
    if (!rules_publish(tenant, (int64_t)epoch, specs, n, &err)) return task_fail(L, &err);
    lua_pushboolean(L, 1);
    return 1;
}

static int l_set_with(lua_State *L) {
    struct rule_set *base = bind_rule_set(L, 1);
    struct rule_spec spec;
    struct sandbox_lib libs[LIBS_MAX];
    struct error err = {0};
    lua_settop(L, 2);
    struct set_box *box = new_box(L);
    lua_pushvalue(L, 2);
    read_spec(L, &spec, libs);
    box->set = rules_overlay(base, &spec, &err);
    if (!box->set) return task_fail(L, &err);
    lua_settop(L, 3);
    return 1;
}

static int l_set_without(lua_State *L) {
    struct rule_set *base = bind_rule_set(L, 1);
    const char *id = luaL_checkstring(L, 2);
    struct error err = {0};
    struct set_box *box = new_box(L);
    box->set = rules_without(base, id, &err);
    return box->set ? 1 : task_fail(L, &err);
}

static int l_epoch(lua_State *L) {
    int64_t epoch = rules_epoch(check_str(L, 1));
    if (epoch < 0) return 0;
    lua_pushnumber(L, (lua_Number)epoch);
    return 1;
}

static int l_holds(lua_State *L) {
    lua_pushboolean(L, rules_holds(check_str(L, 1), luaL_checkstring(L, 2), (int64_t)luaL_checknumber(L, 3)));
    return 1;
}

/* ---- forms, globals, limits ---- */

static bool keep_form(struct shape *shape) {
    if (nforms == room_for_forms) {
        size_t room = room_for_forms ? room_for_forms * 2 : 128;
        struct shape **more = realloc(forms, room * sizeof(void *));
        if (!more) return false;
        forms = more;
        room_for_forms = room;
    }
    forms[nforms++] = shape;
    return true;
}

static int l_form(lua_State *L) {
    struct error err = {0};
    const char *path = luaL_optstring(L, 2, "input");
    struct form_box *box = lua_newuserdata(L, sizeof *box);
    box->shape = NULL;
    luaL_getmetatable(L, FORM_TYPE);
    lua_setmetatable(L, -2);
    struct shape *shape = shape_new(L, 1, path, &err);
    if (!shape) return luaL_error(L, "%s", err.message);
    if (!keep_form(shape)) {
        shape_free(shape);
        return luaL_error(L, "not enough memory");
    }
    box->shape = shape;
    return 1;
}

static int l_fair(lua_State *L) {
    int line = sandbox_jumps(check_str(L, 1), SANDBOX_JUMPS_MAX);
    if (line == 0) {
        lua_pushboolean(L, 1);
        return 1;
    }
    lua_pushnil(L);
    lua_pushfstring(L, SANDBOX_JUMPS_TEXT, SANDBOX_JUMPS_MAX);
    lua_pushinteger(L, line);
    return 3;
}

static int l_cover(lua_State *L) {
    sandbox_cover(luaL_optstring(L, 1, NULL));
    return 0;
}

static int l_covered(lua_State *L) {
    lua_pushboolean(L, sandbox_covered((int)luaL_checkinteger(L, 1)));
    return 1;
}

static int l_globals(lua_State *L) {
    struct error err = {0};
    struct sandbox *sb = sandbox_new(&err);
    if (!sb) return task_fail(L, &err);
    bool ok = sandbox_globals(sb, L, &err);
    sandbox_free(sb);
    return ok ? 1 : task_fail(L, &err);
}

static int l_limits(lua_State *L) {
    const struct sandbox_limits *limits = rules_limits(luaL_checkstring(L, 1));
    lua_createtable(L, 0, 4);
    set_number(L, "instructions", (double)limits->instructions);
    set_number(L, "heap", (double)limits->heap);
    set_number(L, "wall_us", (double)limits->wall_us);
    set_number(L, "result", (double)limits->result);
    return 1;
}

static int l_folder(lua_State *L) {
    lua_pushstring(L, rules_folder());
    return 1;
}

static int l_loads(lua_State *L) {
    lua_pushnumber(L, (lua_Number)rules_loads());
    return 1;
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
        push_list(L, set, NULL);
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

/* The registry ends before the VM does, and forms end with it: the metatables of sandboxes use them. */
static int l_close(lua_State *L) {
    (void)L;
    rules_close();
    while (nforms) shape_free(forms[--nforms]);
    free(forms);
    forms = NULL;
    room_for_forms = 0;
    return 0;
}

static void make_type(lua_State *L, const char *name, const luaL_Reg *methods, lua_CFunction gc) {
    luaL_newmetatable(L, name);
    if (gc) {
        lua_pushcfunction(L, gc);
        lua_setfield(L, -2, "__gc");
    }
    lua_newtable(L);
    if (methods) luaL_setfuncs(L, methods, 0);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);
}

int luaopen_core_rules(lua_State *L) {
    static const luaL_Reg functions[] = {{"pin", l_pin},       {"publish", l_publish}, {"epoch", l_epoch},
                                         {"holds", l_holds},   {"form", l_form},       {"globals", l_globals},
                                         {"fair", l_fair},     {"cover", l_cover},     {"covered", l_covered},
                                         {"limits", l_limits}, {"reload", l_reload},   {"folder", l_folder},
                                         {"loads", l_loads},   {"status", l_status},   {NULL, NULL}};
    static const luaL_Reg methods[] = {{"list", l_set_list},         {"count", l_set_count},
                                       {"epoch", l_set_epoch},       {"memory", l_set_memory},
                                       {"run", l_set_run},           {"fault", l_set_fault},
                                       {"describe", l_set_describe}, {"with", l_set_with},
                                       {"without", l_set_without},   {NULL, NULL}};
    make_type(L, SET_TYPE, methods, set_gc);
    make_type(L, FORM_TYPE, NULL, NULL);
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
    luaL_getmetatable(L, SET_TYPE);
    lua_getfield(L, -1, "__index");
    lua_replace(L, -2);
    lua_insert(L, -2);
    bind_rules_wait_open(L, lua_gettop(L) - 1);
    return 1;
}
