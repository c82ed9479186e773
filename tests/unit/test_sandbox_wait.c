// link: script
/* Runs that wait: their budgets count across the waits, a stop is final, and whatever is left behind in the middle is
 * given back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <lauxlib.h>
#include <lualib.h>

#include "runtime/clock.h"
#include "script/json.h"
#include "script/sandbox_wait.h"

static struct sandbox *sb;
static lua_State *P; /* stands for the platform's state */
static struct sandbox_report report;
static struct sandbox_limits limits;
static char result[70000], args[70000];
static const char *answers; /* a JSON list: the values that a call answers; NULL: the call's arguments come back */
static int calls, rule;
static char called[64];

static int setup(void **state) {
    (void)state;
    struct error err;
    assert_true(sandbox_declare("kv.get", false, false, &err) && sandbox_declare("kv.set", false, false, &err) &&
                sandbox_declare("http.fetch", true, false, &err) && sandbox_declare("secret", false, true, &err));
    P = luaL_newstate();
    assert_non_null(P);
    sb = sandbox_new_waiting(&err);
    assert_non_null(sb);
    limits = sandbox_capable;
    limits.wall_us = 100000000;
    answers = "[\"answer\"]";
    calls = 0;
    return 0;
}

static int teardown(void **state) {
    (void)state;
    sandbox_free(sb);
    lua_close(P);
    return 0;
}

static bool build(lua_State *L, void *data, struct error *err) {
    (void)data;
    (void)err;
    lua_createtable(L, 0, 1);
    lua_pushnumber(L, 7);
    lua_setfield(L, -2, "n");
    return true;
}

static void keep_json(char *out, int idx) {
    struct error err = {0};
    struct buf text = {0};
    assert_true(json_encode_sorted(P, idx, &text, &err));
    assert_true(text.len < sizeof result);
    memcpy(out, text.data, text.len);
    out[text.len] = '\0';
    buf_free(&text);
}

static bool read_json(lua_State *L, void *data, struct error *err) {
    (void)data;
    if (!sandbox_copy(L, -1, P, 4 * 1024 * 1024, err)) return false;
    keep_json(result, -1);
    lua_settop(P, 0);
    return true;
}

/* Argument 1 of the call, as the platform sees it, into `args`. */
static void take_call(void) {
    struct error err = {0};
    struct sandbox_call call = sandbox_wait_call(sb);
    calls++;
    int n = snprintf(called, sizeof called, "%s", call.name);
    assert_true(n > 0);
    args[0] = '\0';
    if (call.count == 0) return;
    assert_true(sandbox_copy_secrets(call.L, 1, P, 1024 * 1024, &err));
    if (lua_type(P, -1) != LUA_TSTRING || lua_objlen(P, -1) < 1000) keep_json(args, -1);
    lua_settop(P, 0);
}

static bool give(lua_State *L, void *data, struct error *err) {
    (void)data;
    assert_true(json_decode(P, str_of(answers), err));
    size_t n = lua_objlen(P, -1);
    bool ok = true;
    for (size_t i = 1; ok && i <= n; i++) {
        lua_rawgeti(P, 1, (int)i);
        ok = sandbox_copy(P, -1, L, 1024 * 1024, err);
    }
    lua_settop(P, 0);
    return ok;
}

static int load_text(const char *source) {
    struct sandbox_manifest m;
    rule = sandbox_load(sb, "t.lua", str_of(source), &m, &report);
    return rule;
}

static int load(const char *body) {
    char source[8000];
    int n = snprintf(source, sizeof source,
                     "return { hook = 'route', name = 'x', run = function(input, config)\n%s\nend }", body);
    assert_true(n > 0 && (size_t)n < sizeof source);
    if (!load_text(source)) fail_msg("%s: %s", body, report.message);
    return rule;
}

static enum sandbox_wait start(const char *body) {
    return sandbox_wait_start(sb, load(body), NULL, &limits, build, NULL, &report);
}

static enum sandbox_wait to_the_end(enum sandbox_wait now) {
    while (now == SANDBOX_CALL) {
        take_call();
        now = sandbox_wait_answer(sb, give, NULL, &report);
    }
    return now;
}

/* Runs it, each call answered; true: it is done, with its result in `result`. */
static bool run(const char *body) {
    enum sandbox_wait now = to_the_end(start(body));
    return now == SANDBOX_DONE && sandbox_wait_result(sb, read_json, NULL, &report);
}

static void expect(const char *body, const char *json) {
    if (!run(body)) fail_msg("%s: %s: %s", body, outcome_name(report.outcome), report.message);
    assert_string_equal(result, json);
}

static void stopped(const char *body, enum outcome why) {
    bool ok = run(body);
    if (ok || report.outcome != why) fail_msg("%s: %s: %s", body, outcome_name(report.outcome), report.message);
    assert_true(report.message[0] != '\0');
}

/* ---- what it can do ---- */

static void a_call_gets_its_arguments_out_and_its_answer_back(void **state) {
    (void)state;
    expect("local v = kv.get({ key = 'a', n = input.n }) return { v = v }", "{\"v\":\"answer\"}");
    assert_string_equal(called, "kv.get");
    assert_string_equal(args, "{\"key\":\"a\",\"n\":7}");
    answers = "[null, \"gone\"]";
    expect("local v, why = kv.get('a') return { absent = v == nil, why = why }", "{\"absent\":true,\"why\":\"gone\"}");
    answers = "[{\"list\":[1,2,{\"deep\":true}]}]";
    expect("return kv.get('a')", "{\"list\":[1,2,{\"deep\":true}]}");
    answers = "[]";
    expect("return { n = select('#', kv.get()) }", "{\"n\":0}");
}

static void a_run_that_never_waits_is_done_at_once(void **state) {
    (void)state;
    assert_int_equal(start("return { n = input.n }"), SANDBOX_DONE);
    assert_true(sandbox_wait_result(sb, read_json, NULL, &report));
    assert_string_equal(result, "{\"n\":7}");
    assert_int_equal(start("return nil, 'not today'"), SANDBOX_DONE);
    assert_string_equal(report.reason, "not today");
    sandbox_wait_end(sb);
}

static void the_function_of_a_step_is_run_with_its_undo(void **state) {
    (void)state;
    assert_true(
        load_text("return { hook = 'workflow', name = 'w', steps = { { name = 'a', run = function() return kv.get('x') "
                  "end, undo = function(input) return { undone = input.n } end }, { name = 'b' } } }") > 0);
    struct sandbox_entry entry = {.step = 1};
    assert_int_equal(to_the_end(sandbox_wait_start(sb, rule, &entry, &limits, build, NULL, &report)), SANDBOX_DONE);
    assert_true(sandbox_wait_result(sb, read_json, NULL, &report));
    assert_string_equal(result, "\"answer\"");
    entry.undo = true;
    assert_int_equal(sandbox_wait_start(sb, rule, &entry, &limits, build, NULL, &report), SANDBOX_DONE);
    assert_true(sandbox_wait_result(sb, read_json, NULL, &report));
    assert_string_equal(result, "{\"undone\":7}");
    entry.step = 2;
    assert_int_equal(sandbox_wait_start(sb, rule, &entry, &limits, build, NULL, &report), SANDBOX_FAILED);
    assert_non_null(strstr(report.message, "step 2 has no undo function"));
    entry.step = 9;
    assert_int_equal(sandbox_wait_start(sb, rule, &entry, &limits, build, NULL, &report), SANDBOX_FAILED);
}

static void pcall_lets_a_call_wait_and_catches_its_refusal(void **state) {
    (void)state;
    expect("local ok, v = pcall(kv.get, 'a') return { ok = ok, v = v }", "{\"ok\":true,\"v\":\"answer\"}");
    expect("local ok, v = pcall(pcall, function() return kv.get('a') .. kv.get('b') end) return { v }", "[true]");
    assert_int_equal(
        start("local ok, why = pcall(function()\nlocal v = kv.get('a') return v\nend) return { ok = ok, why = why }"),
        SANDBOX_CALL);
    assert_int_equal(report.line, 3);
    assert_int_equal(sandbox_wait_refuse(sb, "capability_denied: no", &report), SANDBOX_DONE);
    assert_true(sandbox_wait_result(sb, read_json, NULL, &report));
    assert_non_null(strstr(result, "capability_denied: no"));
}

static void a_refusal_that_nobody_catches_names_the_line(void **state) {
    (void)state;
    assert_int_equal(start("local x = 1\nlocal v = kv.get('a')\nreturn v"), SANDBOX_CALL);
    assert_int_equal(sandbox_wait_refuse(sb, "capability_denied: kv is not in needs", &report), SANDBOX_FAILED);
    assert_int_equal(report.outcome, OUTCOME_ERROR);
    assert_int_equal(report.line, 3);
    assert_string_equal(report.message, "capability_denied: kv is not in needs");
}

static void two_runs_wait_beside_each_other(void **state) {
    (void)state;
    struct error err;
    struct sandbox *one = sb, *two = sandbox_new_waiting(&err);
    assert_non_null(two);
    assert_int_equal(start("return { kv.get('one') }"), SANDBOX_CALL);
    sb = two;
    assert_int_equal(start("return { kv.get('two'), 2 }"), SANDBOX_CALL);
    sb = one;
    assert_int_equal(to_the_end(SANDBOX_CALL), SANDBOX_DONE);
    assert_true(sandbox_wait_result(sb, read_json, NULL, &report));
    assert_string_equal(result, "[\"answer\"]");
    sb = two;
    assert_int_equal(to_the_end(SANDBOX_CALL), SANDBOX_DONE);
    assert_true(sandbox_wait_result(sb, read_json, NULL, &report));
    assert_string_equal(result, "[\"answer\",2]");
    sb = one;
    sandbox_free(two);
}

static void nothing_else_runs_in_a_state_that_waits(void **state) {
    (void)state;
    assert_int_equal(start("return kv.get('a')"), SANDBOX_CALL);
    assert_false(sandbox_run(sb, rule, &limits, build, read_json, NULL, &report));
    assert_non_null(strstr(report.message, "waits"));
    assert_int_equal(sandbox_wait_start(sb, rule, NULL, &limits, build, NULL, &report), SANDBOX_FAILED);
    assert_int_equal(to_the_end(SANDBOX_CALL), SANDBOX_DONE);
    assert_true(sandbox_wait_result(sb, read_json, NULL, &report));
    assert_int_equal(sandbox_wait_answer(sb, give, NULL, &report), SANDBOX_FAILED);
}

static void locals_of_the_chunk_do_not_outlive_a_run(void **state) {
    (void)state;
    assert_true(
        load_text("local n = 0 return { hook = 'route', name = 'x', run = function() n = n + 1 kv.get('a') n = n + 1 "
                  "return { n } end }") > 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(to_the_end(sandbox_wait_start(sb, rule, NULL, &limits, build, NULL, &report)), SANDBOX_DONE);
        assert_true(sandbox_wait_result(sb, read_json, NULL, &report));
        assert_string_equal(result, "[2]");
    }
}

/* ---- where it may not be called ---- */

static void a_capability_is_no_use_outside_of_such_a_run(void **state) {
    (void)state;
    struct sandbox_manifest m;
    static const char at_load[] = "local v = kv.get('a') return { hook = 'route', name = 'x', run = function() end }";
    static const char kept[] =
        "local get = kv.get return { hook = 'route', name = 'x', run = function() return get('a') end }";
    assert_int_equal(sandbox_load(sb, "t.lua", str_of(at_load), &m, &report), 0);
    assert_non_null(strstr(report.message, "not while its file is loaded"));
    assert_true(load_text(kept) > 0);
    assert_int_equal(to_the_end(sandbox_wait_start(sb, rule, NULL, &limits, build, NULL, &report)), SANDBOX_DONE);
    sandbox_wait_end(sb);
    assert_false(sandbox_run(sb, rule, &limits, build, read_json, NULL, &report));
    assert_non_null(strstr(report.message, "not while its file is loaded"));

    struct error err;
    struct sandbox *pure = sandbox_new(&err);
    assert_non_null(pure);
    int at = sandbox_load(pure, "t.lua", str_of(kept), &m, &report);
    assert_true(at > 0);
    assert_false(sandbox_run(pure, at, &sandbox_pure, build, read_json, NULL, &report));
    assert_non_null(strstr(report.message, "'kv.get' is only for route and workflow rules"));
    assert_int_equal(sandbox_wait_start(pure, at, NULL, &limits, build, NULL, &report), SANDBOX_FAILED);
    sandbox_free(pure);
}

static void a_callback_from_c_cannot_wait(void **state) {
    (void)state;
    stopped("table.sort({ 2, 1 }, function(a, b) return kv.get('a') end)", OUTCOME_ERROR);
    assert_non_null(strstr(report.message, "kv.get may wait, which is not possible inside table.sort or string.gsub"));
    assert_int_equal(report.line, 2);
    stopped("return { (('x'):gsub('x', function() return kv.get('a') end)) }", OUTCOME_ERROR);
    assert_int_equal(calls, 0);
    expect("local ok = pcall(table.sort, { 2, 1 }, function() kv.get('a') end) return { ok, (kv.get('b')) }",
           "[false,\"answer\"]");
}

static void nothing_of_lua_comes_along(void **state) {
    (void)state;
    static const char *const names[] = {"coroutine",   "load",   "setmetatable", "rawget", "debug",
                                        "string.dump", "xpcall", "os",           "_G"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char body[100];
        int n = snprintf(body, sizeof body, "return { %s == nil }", names[i]);
        assert_true(n > 0);
        stopped(body, OUTCOME_ERROR);
    }
    stopped("return ('').dump(function() end)", OUTCOME_ERROR);
    stopped("kv.get = 1", OUTCOME_ERROR);
    stopped("kv.steal('a')", OUTCOME_ERROR);
    stopped("http.fetch = function() end", OUTCOME_ERROR);
}

/* ---- budgets ---- */

static void the_instructions_of_all_parts_count_together(void **state) {
    (void)state;
    limits.instructions = 100000;
    stopped("for i = 1, 1e9 do kv.get('a') for k = 1, 1000 do end end", OUTCOME_INSTRUCTIONS);
    assert_true(calls > 5 && calls < 200);
    assert_true(report.instructions <= limits.instructions);
    calls = 0;
    stopped("while true do kv.get('a') end", OUTCOME_INSTRUCTIONS);
    assert_true(calls > 100 && calls <= 1000);
}

static void a_loop_after_a_call_is_stopped(void **state) {
    (void)state;
    stopped("kv.get('a') while true do end", OUTCOME_INSTRUCTIONS);
    stopped("kv.get('a') while true do pcall(function() while true do end end) end", OUTCOME_INSTRUCTIONS);
    stopped("pcall(function() kv.get('a') while true do end end) return kv.get('b')", OUTCOME_INSTRUCTIONS);
    stopped("while true do pcall(kv.get, 'a') end", OUTCOME_INSTRUCTIONS);
    stopped("while true do pcall(pcall, pcall, kv.get) end", OUTCOME_INSTRUCTIONS);
    stopped("local function f() pcall(f) kv.get('a') end while true do f() end", OUTCOME_INSTRUCTIONS);
}

static void ten_thousand_calls_come_to_an_end(void **state) {
    (void)state;
    assert_false(run("for i = 1, 1e6 do pcall(kv.get, 'a') end"));
    assert_int_equal(report.outcome, OUTCOME_INSTRUCTIONS);
    assert_true(calls > 1000 && calls < 20000);
}

static void the_memory_of_all_parts_counts_together(void **state) {
    (void)state;
    limits.heap = (size_t)2 * 1024 * 1024;
    stopped("local t = {} for i = 1, 1e9 do t[i] = kv.get('a') .. (('x'):rep(60000)) .. i end", OUTCOME_HEAP);
    assert_true(sandbox_broken(sb));
    assert_int_equal(sandbox_wait_start(sb, rule, NULL, &limits, build, NULL, &report), SANDBOX_FAILED);
}

static char much[200000];

static bool give_much(lua_State *L, void *data, struct error *err) {
    (void)data;
    (void)err;
    memset(much, 'x', sizeof much);
    for (int i = 0; i < 10; i++) {
        much[0] = (char)('a' + i);
        lua_pushlstring(L, much, sizeof much);
    }
    return true;
}

static bool give_nothing(lua_State *L, void *data, struct error *err) {
    (void)L;
    (void)data;
    return error_set(err, ERR_LIMIT, "larger than its limit");
}

static void an_answer_that_does_not_fit_ends_the_run(void **state) {
    (void)state;
    assert_int_equal(start("local v = kv.get('a')\nreturn { #v }"), SANDBOX_CALL);
    assert_int_equal(sandbox_wait_answer(sb, give_much, NULL, &report), SANDBOX_DONE);
    sandbox_wait_end(sb);
    limits.heap = (size_t)1024 * 1024;
    assert_int_equal(start("local v = kv.get('a')\nreturn { #v }"), SANDBOX_CALL);
    assert_int_equal(sandbox_wait_answer(sb, give_much, NULL, &report), SANDBOX_FAILED);
    assert_int_equal(report.outcome, OUTCOME_HEAP);
    assert_int_equal(report.line, 2);
}

static void an_answer_that_cannot_be_given_is_an_error_at_the_call(void **state) {
    (void)state;
    assert_int_equal(start("local v = kv.get('a')\nreturn { #v }"), SANDBOX_CALL);
    assert_int_equal(sandbox_wait_answer(sb, give_nothing, NULL, &report), SANDBOX_FAILED);
    assert_int_equal(report.outcome, OUTCOME_ERROR);
    assert_int_equal(report.line, 2);
    assert_string_equal(report.message, "kv.get: larger than its limit");
}

static void waiting_counts_as_time(void **state) {
    (void)state;
    limits.wall_us = 1;
    /* Whatever the machine does, one microsecond is over when the answer comes. */
    assert_int_equal(start("local x = 1\nlocal v = kv.get('a')"), SANDBOX_CALL);
    for (uint64_t began = clock_mono_us(); clock_mono_us() - began < 2;) continue;
    assert_int_equal(sandbox_wait_answer(sb, give, NULL, &report), SANDBOX_FAILED);
    assert_int_equal(report.outcome, OUTCOME_TIME);
    assert_int_equal(report.line, 3);
    assert_non_null(strstr(report.message, "waiting included"));
}

/* ---- values ---- */

static void arguments_are_plain_and_bounded(void **state) {
    (void)state;
    stopped("kv.set('a', function() end)", OUTCOME_ERROR);
    assert_non_null(strstr(report.message, "kv.set cannot take argument 2: a function is not plain data"));
    stopped("local t = {} t.t = t kv.set(t)", OUTCOME_ERROR);
    assert_non_null(strstr(report.message, "nested too deep, or in itself"));
    stopped("kv.set(0/0)", OUTCOME_ERROR);
    stopped("kv.set('a', ('x'):rep(60000), ('x'):rep(60000), ('x'):rep(60000), ('x'):rep(60000), ('x'):rep(60000), "
            "('x'):rep(60000), ('x'):rep(60000))",
            OUTCOME_ERROR);
    assert_non_null(strstr(report.message, "larger than its limit"));
    stopped("local t = {} for i = 1, 60000 do t[i] = i end kv.set(t)", OUTCOME_ERROR);
    assert_int_equal(calls, 0);
    answers = "[true]";
    expect("local t = {} for i = 1, 200 do t[i] = i end return { kv.set(unpack(t)) }", "[true]");
}

static void a_result_is_plain_and_bounded(void **state) {
    (void)state;
    limits.result = 1000;
    stopped("return { body = kv.get('a') .. ('x'):rep(2000) }", OUTCOME_RESULT);
    stopped("return { body = kv.get }", OUTCOME_INVALID_RESULT);
    stopped("local t = { kv.get('a') } t.t = t return t", OUTCOME_INVALID_RESULT);
    expect("return { body = kv.get('a') }", "{\"body\":\"answer\"}");
}

static void a_secret_has_no_content_for_the_rule(void **state) {
    (void)state;
    answers = "[\"crm_token\"]";
    expect("local s = secret('crm_token') log(s, { s }) return { tostring(s), ('%s'):format(s), type(s) }",
           "[\"***\",\"***\",\"userdata\"]");
    assert_int_equal(sandbox_log(sb).len, 10);
    stopped("return { secret('crm_token') }", OUTCOME_INVALID_RESULT);
    stopped("kv.set('a', secret('crm_token'))", OUTCOME_ERROR);
    stopped("local s = secret('crm_token') return s .. 'x'", OUTCOME_ERROR);
    stopped("local s = secret('crm_token') return s.name", OUTCOME_ERROR);
    assert_int_equal(start("return http.fetch({ headers = { auth = secret('crm_token') } })"), SANDBOX_CALL);
    take_call();
    assert_int_equal(sandbox_wait_answer(sb, give, NULL, &report), SANDBOX_CALL);
    take_call();
    assert_string_equal(called, "http.fetch");
    assert_string_equal(args, "{\"headers\":{\"auth\":{\"$secret\":\"crm_token\"}}}");
    sandbox_wait_end(sb);
}

/* ---- ends in the middle ---- */

static void a_run_may_be_left_in_the_middle(void **state) {
    (void)state;
    for (int i = 0; i < 50; i++) {
        assert_int_equal(start("local t = { ('x'):rep(60000) } pcall(function() kv.get('a') end) return t"),
                         SANDBOX_CALL);
        sandbox_wait_end(sb);
        sandbox_unload(sb, rule);
    }
    sandbox_rest(sb);
    expect("return { kv.get('a') }", "[\"answer\"]");
}

static void a_state_may_be_freed_in_the_middle(void **state) {
    (void)state;
    assert_int_equal(start("pcall(function() kv.get('a') end)"), SANDBOX_CALL);
    sandbox_free(sb);
    struct error err;
    sb = sandbox_new_waiting(&err);
    assert_non_null(sb);
    assert_int_equal(start("kv.get('a')"), SANDBOX_CALL);
    sandbox_unload(sb, rule);
    assert_int_equal(to_the_end(SANDBOX_CALL), SANDBOX_DONE);
    sandbox_wait_end(sb);
}

static void a_stop_from_outside_tells_the_line(void **state) {
    (void)state;
    assert_int_equal(start("local a\n\nlocal v = kv.get('a')"), SANDBOX_CALL);
    sandbox_wait_stop(sb, OUTCOME_TIME, "stopped: kv.get took too long", &report);
    assert_int_equal(report.outcome, OUTCOME_TIME);
    assert_int_equal(report.line, 4);
    assert_string_equal(report.message, "stopped: kv.get took too long");
    expect("return { kv.get('a') }", "[\"answer\"]");
}

static void names_are_checked(void **state) {
    (void)state;
    struct error err;
    static const char *const bad[] = {
        "", ".", "a.b.c", "kv.", ".get", "Kv.get", "kv get", "a_name_that_is_far_too_long_for_any_capability_of_ours"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_false(sandbox_declare(bad[i], false, false, &err));
    size_t n = sandbox_declared();
    assert_true(sandbox_declare("kv.get", false, false, &err));
    assert_int_equal(sandbox_declared(), n);
}

int main(void) {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(a_call_gets_its_arguments_out_and_its_answer_back),
        T(a_run_that_never_waits_is_done_at_once),
        T(the_function_of_a_step_is_run_with_its_undo),
        T(pcall_lets_a_call_wait_and_catches_its_refusal),
        T(a_refusal_that_nobody_catches_names_the_line),
        T(two_runs_wait_beside_each_other),
        T(nothing_else_runs_in_a_state_that_waits),
        T(locals_of_the_chunk_do_not_outlive_a_run),
        T(a_capability_is_no_use_outside_of_such_a_run),
        T(a_callback_from_c_cannot_wait),
        T(nothing_of_lua_comes_along),
        T(the_instructions_of_all_parts_count_together),
        T(a_loop_after_a_call_is_stopped),
        T(ten_thousand_calls_come_to_an_end),
        T(the_memory_of_all_parts_counts_together),
        T(an_answer_that_does_not_fit_ends_the_run),
        T(an_answer_that_cannot_be_given_is_an_error_at_the_call),
        T(waiting_counts_as_time),
        T(arguments_are_plain_and_bounded),
        T(a_result_is_plain_and_bounded),
        T(a_secret_has_no_content_for_the_rule),
        T(a_run_may_be_left_in_the_middle),
        T(a_state_may_be_freed_in_the_middle),
        T(a_stop_from_outside_tells_the_line),
        T(names_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
