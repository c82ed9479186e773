// link: script
/* Rules that mean harm, a hundred and more: each ends by its budget with the right word, the state goes on or is made
 * anew, and the memory comes back. Prints how long past its wall limit the slowest of them ran. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include <lauxlib.h>

#include "script/sandbox_wait.h"

#define ANY ((enum outcome)(-1)) /* which of the bounds is met first is no matter; that one is */

static const struct {
    const char *body;
    enum outcome why;
} harm[] = {
    {"while true do end", OUTCOME_INSTRUCTIONS},
    {"repeat until false", OUTCOME_INSTRUCTIONS},
    {"for i = 1, 1e15 do end", OUTCOME_INSTRUCTIONS},
    {"::a:: goto a", OUTCOME_INSTRUCTIONS},
    {"local f f = function() return f() end return f()", OUTCOME_INSTRUCTIONS},
    {"while true do pcall(function() while true do end end) end", OUTCOME_INSTRUCTIONS},
    {"while true do pcall(error) end", OUTCOME_INSTRUCTIONS},
    {"pcall(pcall, function() while true do end end) while true do end", OUTCOME_INSTRUCTIONS},
    {"local function f() local ok = pcall(f) while true do end end f()", ANY},
    {"table.sort({1,2,3}, function() while true do end end)", OUTCOME_INSTRUCTIONS},
    {"(('x'):rep(100)):gsub('x', function() while true do end end)", OUTCOME_INSTRUCTIONS},
    {"for w in (('x '):rep(30000)):gmatch('%a') do while true do end end", OUTCOME_INSTRUCTIONS},
    {"local t = {} for i = 1, 10000 do t[i] = i % 7 end while true do table.sort(t) end", OUTCOME_INSTRUCTIONS},
    {"local t = {} for i = 1, 10000 do t[i] = i end while true do table.sort(t, function(a, b) return a > b end) end",
     OUTCOME_INSTRUCTIONS},
    {"while true do table.concat({'a','b'}) end", OUTCOME_INSTRUCTIONS},
    {"while true do ('x'):rep(65536) end", ANY},
    {"local s = ('x'):rep(65536) while true do s:upper() end", ANY},
    {"local s = ('x'):rep(65536) while true do s:lower() end", ANY},
    {"local s = ('x'):rep(65536) while true do s:reverse() end", ANY},
    {"local s = ('x'):rep(65536) while true do text.fold(s) end", ANY},
    {"local s = ('x'):rep(65536) while true do text.lower(s) end", ANY},
    {"local s = ('x'):rep(60000) while true do text.contains(s, 'y') end", OUTCOME_INSTRUCTIONS},
    {"local s = ('x,'):rep(999) while true do text.split(s, ',') end", ANY},
    {"while true do text.template('{a}', {a = 1}) end", OUTCOME_INSTRUCTIONS},
    {"while true do money.alloc(1000, {1,2,3}) end", OUTCOME_INSTRUCTIONS},
    {"local w = {} for i = 1, 1000 do w[i] = i end while true do money.alloc(1e9, w) end", ANY},
    {"while true do money.split(1000, 1000) end", ANY},
    {"while true do money.pct(1000, 100) end", OUTCOME_INSTRUCTIONS},
    {"while true do money.format(1000, 'VND') end", OUTCOME_INSTRUCTIONS},
    {"while true do dt.local_time(0, 'Asia/Ho_Chi_Minh') end", OUTCOME_INSTRUCTIONS},
    {"while true do dt.parse('2026-01-01') end", OUTCOME_INSTRUCTIONS},
    {"while true do dt.add_days(0, 1) end", OUTCOME_INSTRUCTIONS},
    {"while true do dt.format(0) end", OUTCOME_INSTRUCTIONS},
    {"local l = {} for i = 1, 1000 do l[i] = 'k' .. i end while true do set.of(l) end", ANY},
    {"local l = {} for i = 1, 9000 do l[i] = 'k' .. i end while true do set.has(l, 'z') end", OUTCOME_INSTRUCTIONS},
    {"while true do log('x') end", OUTCOME_INSTRUCTIONS},
    {"while true do tostring(1) end", OUTCOME_INSTRUCTIONS},
    {"while true do tonumber('12') end", OUTCOME_INSTRUCTIONS},
    {"while true do select('#', 1, 2) end", OUTCOME_INSTRUCTIONS},
    {"local t = {} for i = 1, 250 do t[i] = i end while true do unpack(t) end", OUTCOME_INSTRUCTIONS},
    {"while true do pairs({}) end", OUTCOME_INSTRUCTIONS},
    {"local t = {} for i = 1, 9000 do t[i] = i end while true do for k in pairs(t) do end end", ANY},
    {"while true do ipairs({}) end", OUTCOME_INSTRUCTIONS},
    {"while true do type(1) end", OUTCOME_INSTRUCTIONS},
    {"while true do assert(true) end", OUTCOME_INSTRUCTIONS},
    {"while true do ('x'):byte() end", OUTCOME_INSTRUCTIONS},
    {"while true do ('x'):find('x', 1, true) end", OUTCOME_INSTRUCTIONS},
    {"while true do ('%d'):format(1) end", OUTCOME_INSTRUCTIONS},
    {"local t = {} while true do table.insert(t, 1, 1) end", OUTCOME_INSTRUCTIONS},
    {"local t = {} while true do t[#t + 1] = {} end", ANY},
    {"local x = 0 while true do x = x + 1 end", OUTCOME_INSTRUCTIONS},
    {"local a, b = 1, 1 while true do a, b = b, (a + b) % 1000 end", OUTCOME_INSTRUCTIONS},
    {"local s = 'x' while true do s = s .. s end", OUTCOME_HEAP},
    {"local s = '' while true do s = s .. 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' end", ANY},
    {"local t = {} for i = 1, 1e7 do t[i] = {} end", ANY},
    {"local t = {} while true do t[#t + 1] = ('x'):rep(60000) .. #t end", OUTCOME_HEAP},
    {"local t = {} for i = 1, 1e8 do t[i] = i end", ANY},
    {"local t = {} for i = 1, 30 do t[2 ^ i] = ('x'):rep(65536) .. i end return 1", ANY},
    {"local t = {} while true do t = {t, t} end", ANY},
    {"local f = function() end while true do local g = f f = function() return g end end", ANY},
    {"local s = ('x'):rep(65536) while true do s = s:gsub('x', 'xx') end", OUTCOME_ERROR},
    {"local s = ('x'):rep(60000) local t = {} for i = 1, 1e6 do t[i] = s .. i end", OUTCOME_HEAP},
    {"return ('a?'):rep(28) .. ('a'):rep(28), (('a'):rep(28)):find(('a?'):rep(28) .. ('a'):rep(28))", OUTCOME_PATTERN},
    {"return (('a'):rep(50)):find(('a-'):rep(26) .. 'b')", OUTCOME_PATTERN},
    {"return (('a'):rep(60000)):find('.-.-.-b')", OUTCOME_PATTERN},
    {"return (('a'):rep(60000)):match('(.-)(.-)(.-)b')", OUTCOME_PATTERN},
    {"return (('a'):rep(30000)):find('a*a*a*a*b')", OUTCOME_PATTERN},
    {"while true do local x = (('a'):rep(2000)):find('.-b') end", ANY},
    {"return (('('):rep(30000)):find('%b()')", ANY},
    {"return (('a'):rep(40000)):gsub('a-b', '')", OUTCOME_PATTERN},
    {"while true do pcall(string.find, ('a'):rep(50), ('a-'):rep(26) .. 'b') end", OUTCOME_PATTERN},
    {"for x in (('a'):rep(40000)):gmatch('a*a*b') do end", OUTCOME_PATTERN},
    {"local function f(n) return 1 + f(n + 1) end return f(1)", OUTCOME_ERROR},
    {"local function f() return f() + 1 end pcall(f) while true do end", OUTCOME_INSTRUCTIONS},
    {"local t = {} t = setmetatable(t, {})", OUTCOME_ERROR},
    {"return getmetatable('').__index", OUTCOME_ERROR},
    {"return string.dump(function() end)", OUTCOME_ERROR},
    {"return ('').dump(function() end)", OUTCOME_ERROR},
    {"local function f(n) local ok, why = pcall(f, n + 1) return ok, why end f(1) while true do end",
     OUTCOME_INSTRUCTIONS},
    {"local s = 0 while true do pcall(pcall, pcall, pcall, function() s = s + 1 error('x') end) end",
     OUTCOME_INSTRUCTIONS},
    {"pcall(function() pcall(table.sort, {3, 2, 1}, function() while true do end end) end) while true do end",
     OUTCOME_INSTRUCTIONS},
    {"return os.time()", OUTCOME_ERROR},
    {"return io.open('/etc/passwd')", OUTCOME_ERROR},
    {"return require('ffi')", OUTCOME_ERROR},
    {"return load('return 1')", OUTCOME_ERROR},
    {"return loadstring('return 1')", OUTCOME_ERROR},
    {"return dofile('/etc/passwd')", OUTCOME_ERROR},
    {"x = 1", OUTCOME_ERROR},
    {"_G.x = 1", OUTCOME_ERROR},
    {"return debug.getinfo(1)", OUTCOME_ERROR},
    {"return collectgarbage('count')", OUTCOME_ERROR},
    {"return newproxy(true)", OUTCOME_ERROR},
    {"return coroutine.create(function() end)", OUTCOME_ERROR},
    {"return rawset({}, 1, 2)", OUTCOME_ERROR},
    {"return rawget(string, 'x')", OUTCOME_ERROR},
    {"return setfenv(1, {})", OUTCOME_ERROR},
    {"return getfenv()", OUTCOME_ERROR},
    {"return next({})", OUTCOME_ERROR},
    {"return print(1)", OUTCOME_ERROR},
    {"return math.random()", OUTCOME_ERROR},
    {"return jit.off()", OUTCOME_ERROR},
    {"return package.loaded", OUTCOME_ERROR},
    {"return bit.bor(1, 2)", OUTCOME_ERROR},
    {"string.rep = nil", OUTCOME_ERROR},
    {"table.insert(string, 'x')", OUTCOME_ERROR},
    {"return ('x'):rep(1e9)", OUTCOME_ERROR},
    {"return ('%99999d'):format(1)", OUTCOME_ERROR},
    {"return ('%s'):format()", OUTCOME_ERROR},
    {"return table.concat({{}})", OUTCOME_ERROR},
    {"return unpack({}, 1, 1e8)", OUTCOME_ERROR},
    {"return select(-1e9, 1)", OUTCOME_ERROR},
    {"return ('x'):byte(1, 1e9)", ANY},
    {"return string.char(256)", OUTCOME_ERROR},
    {"return tonumber('1', 99)", OUTCOME_ERROR},
    {"error(('x'):rep(100000))", OUTCOME_ERROR},
    {"error({})", OUTCOME_ERROR},
    {"error(nil)", OUTCOME_ERROR},
    {"error()", OUTCOME_ERROR},
    {"local t = {} t[0/0] = 1", OUTCOME_ERROR},
    {"local t = {} t[nil] = 1", OUTCOME_ERROR},
    {"return #nil", OUTCOME_ERROR},
    {"return nil .. 'x'", OUTCOME_ERROR},
    {"return {} < {}", OUTCOME_ERROR},
    {"return 1 < 'x'", OUTCOME_ERROR},
    {"return ('x'):rep(65536):find(('x'):rep(40000))", ANY},
    {"return money.pct(0.5, 100)", OUTCOME_ERROR},
    {"return money.pct(1, 20000)", OUTCOME_ERROR},
    {"return money.alloc(1, {})", OUTCOME_ERROR},
    {"return money.split(1, 1e9)", OUTCOME_ERROR},
    {"return dt.add_days(0, 1e18)", OUTCOME_ERROR},
    {"return dt.local_time(1e300)", OUTCOME_ERROR},
    {"return dt.local_time(0, '../../etc/passwd')", OUTCOME_ERROR},
    {"return set.of({1})", OUTCOME_ERROR},
    {"return schema.string(5)", OUTCOME_ERROR},
    {"return lib('x')", OUTCOME_ERROR},
    {"return text.split('x', '')", OUTCOME_ERROR},
    {"return text.cut('x', 0/0)", ANY},
    {"return -5, 1", ANY},
    {"return {x = 0/0}", OUTCOME_INVALID_RESULT},
    {"return {x = 2^1024}", OUTCOME_INVALID_RESULT},
    {"return {f = print and 1 or function() end}", ANY},
    {"local t = {} t[1] = t return t", OUTCOME_INVALID_RESULT},
    {"return function() end", OUTCOME_INVALID_RESULT},
    {"return {[{}] = 1}", OUTCOME_INVALID_RESULT},
    {"return {x = ('x'):rep(65537)}", ANY},
    {"local t = {} for i = 1, 20000 do t[i] = i end return t", OUTCOME_RESULT},
    {"return ('x'):rep(65536) .. 'xx'", OUTCOME_RESULT},
    {"local t = {} for i = 1, 200 do t[i] = ('x'):rep(1000) end return t", OUTCOME_RESULT},
};

static bool build(lua_State *L, void *data, struct error *err) {
    (void)data;
    (void)err;
    lua_newtable(L);
    return true;
}

static bool look(lua_State *L, void *data, struct error *err) {
    (void)L;
    (void)data;
    (void)err;
    return true;
}

/* Of this thread alone: the machine may be busy with something else. */
static uint64_t thread_us(void) {
    struct timespec ts;
    assert_int_equal(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts), 0);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static struct sandbox *fresh(bool waits) {
    struct error err;
    struct sandbox *sb = waits ? sandbox_new_waiting(&err) : sandbox_new(&err);
    assert_non_null(sb);
    return sb;
}

static const char probe[] = "return { hook = 'x', name = 'x', run = function() return { n = 1 } end }";

static void alive(struct sandbox *sb) {
    static struct sandbox_report report;
    struct sandbox_manifest m;
    struct sandbox_limits limits = sandbox_pure;
    limits.wall_us = 10000000;
    int rule = sandbox_load(sb, "probe.lua", str_n(probe, sizeof probe - 1), &m, &report);
    assert_true(rule > 0);
    assert_true(sandbox_run(sb, rule, &limits, build, look, NULL, &report));
    sandbox_unload(sb, rule);
}

static bool run_it(struct sandbox *sb, int rule, bool waits, const struct sandbox_limits *limits,
                   struct sandbox_report *report) {
    if (!waits) return sandbox_run(sb, rule, limits, build, look, NULL, report);
    enum sandbox_wait now = sandbox_wait_start(sb, rule, NULL, limits, build, NULL, report);
    assert_int_not_equal(now, SANDBOX_CALL);
    return now == SANDBOX_DONE && sandbox_wait_result(sb, look, NULL, report);
}

static void every_one_ends(bool waits) {
    static struct sandbox_report report;
    struct sandbox *sb = fresh(waits);
    size_t idle = sandbox_bytes(sb);
    uint64_t slowest = 0;
    const char *slow = "";
    for (size_t i = 0; i < sizeof harm / sizeof *harm; i++) {
        char source[1024];
        struct sandbox_manifest m;
        int n = snprintf(source, sizeof source,
                         "return { hook = 'x', name = 'x', run = function(input, config) %s end }", harm[i].body);
        assert_true(n > 0 && (size_t)n < sizeof source);
        int rule = sandbox_load(sb, "h.lua", str_n(source, (size_t)n), &m, &report);
        if (!rule) fail_msg("%s: %s", harm[i].body, report.message);
        struct sandbox_limits limits = sandbox_pure;
        limits.wall_us = 10000000; /* instructions and bytes decide; how long that takes is printed */
        uint64_t began = thread_us();
        bool ok = run_it(sb, rule, waits, &limits, &report);
        uint64_t took = thread_us() - began;
        if (took > slowest) slowest = took, slow = harm[i].body;
        assert_int_equal(ok, report.outcome == OUTCOME_OK);
        if (harm[i].why != ANY && report.outcome != harm[i].why)
            fail_msg("%s: %s: %s", harm[i].body, outcome_name(report.outcome), report.message);
        assert_true(report.instructions <= limits.instructions);
        if (!ok) assert_true(report.message[0] != '\0');
        sandbox_unload(sb, rule);
        if (sandbox_broken(sb)) {
            sandbox_free(sb);
            sb = fresh(waits);
        } else {
            assert_true(sandbox_bytes(sb) < idle + 1024 * 1024);
        }
        alive(sb);
    }
    sandbox_free(sb);
    print_message("%zu rules; the slowest took %.1f ms, %.1f ms past its 5 ms: %s\n", sizeof harm / sizeof *harm,
                  (double)slowest / 1000, slowest > 5000 ? (double)(slowest - 5000) / 1000 : 0.0, slow);
}

static void every_one_ends_and_the_state_goes_on(void **state) {
    (void)state;
    every_one_ends(false);
}

static void every_one_ends_in_a_state_whose_runs_may_wait(void **state) {
    (void)state;
    every_one_ends(true);
}

/* With the wall limit as it is in a shop: none runs on past it for long. */
static void the_wall_stops_what_instructions_do_not(void **state) {
    (void)state;
    static struct sandbox_report report;
    struct sandbox *sb = fresh(false);
    uint64_t worst = 0;
    const char *slow = "";
    for (size_t i = 0; i < sizeof harm / sizeof *harm; i++) {
        char source[1024];
        struct sandbox_manifest m;
        int n = snprintf(source, sizeof source,
                         "return { hook = 'x', name = 'x', run = function(input, config) %s end }", harm[i].body);
        assert_true(n > 0);
        int rule = sandbox_load(sb, "h.lua", str_n(source, (size_t)n), &m, &report);
        assert_true(rule > 0);
        uint64_t began = thread_us();
        bool ok = sandbox_run(sb, rule, &sandbox_pure, build, look, NULL, &report);
        uint64_t took = thread_us() - began;
        (void)ok; /* whichever bound is met first */
        if (took > sandbox_pure.wall_us && took - sandbox_pure.wall_us > worst) {
            worst = took - sandbox_pure.wall_us;
            slow = harm[i].body;
        }
        sandbox_unload(sb, rule);
        if (sandbox_broken(sb)) {
            sandbox_free(sb);
            sb = fresh(false);
        }
    }
    sandbox_free(sb);
    print_message("worst overrun of the wall limit: %.1f ms: %s\n", (double)worst / 1000, slow);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_one_ends_and_the_state_goes_on),
        cmocka_unit_test(every_one_ends_in_a_state_whose_runs_may_wait),
        cmocka_unit_test(the_wall_stops_what_instructions_do_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
