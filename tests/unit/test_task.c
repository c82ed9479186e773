// link: script
/* The scheduler and core.sched. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/log.h"
#include "runtime/loop.h"
#include "script/bind.h"
#include "script/sched.h"
#include "script/vm.h"

static struct vm *vm;
static lua_State *L;

/* test.wait() suspends until the test answers; test.arena_defer counts. */
static struct task *waiting;
static int cancels, deferred, finished_ok, finished_failed;
static char last_error[256];

static void on_cancel(void *op) {
    assert_ptr_equal(op, &waiting);
    waiting = NULL;
    cancels++;
}

static int l_wait(lua_State *l) {
    struct task *t = task_current(l);
    waiting = t;
    return task_suspend(l, t, on_cancel, &waiting);
}

static void on_deferred(void *data) {
    (void)data;
    deferred++;
}

static int l_hold(lua_State *l) {
    assert_non_null(arena_defer(task_arena(task_current(l)), on_deferred, NULL));
    return 0;
}

static int l_fail(lua_State *l) {
    struct error err;
    error_set(&err, ERR_BUSY, "the queue is full");
    return task_fail(l, &err);
}

/* Milliseconds of the clock that timers go by. */
static int l_clock(lua_State *l) {
    lua_pushnumber(l, (double)uv_hrtime() / 1e6);
    return 1;
}

static int open_test(lua_State *l) {
    static const luaL_Reg functions[] = {
        {"wait", l_wait}, {"hold", l_hold}, {"fail", l_fail}, {"clock", l_clock}, {NULL, NULL}};
    lua_newtable(l);
    luaL_setfuncs(l, functions, 0);
    return 1;
}

static const luaL_Reg modules[] = {
    {"core.sched", luaopen_core_sched}, {"core.log", luaopen_core_log}, {"test", open_test}, {NULL, NULL}};

static int open_vm(void **state) {
    (void)state;
    struct error err = {0};
    assert_true(loop_open());
    log_set_level(LOG_ERROR);
    vm = vm_new_with(modules, NULL, &err);
    assert_non_null(vm);
    L = vm_state(vm);
    assert_true(vm_run(vm, "sched = require 'core.sched' test = require 'test' log = {}", "=setup", &err));
    waiting = NULL;
    cancels = deferred = finished_ok = finished_failed = 0;
    last_error[0] = '\0';
    return 0;
}

static int close_vm(void **state) {
    (void)state;
    vm_free(vm);
    assert_int_equal(task_count(), 0);
    return 0;
}

static void on_finished(void *data, lua_State *l, bool ok) {
    (void)data;
    if (ok) {
        finished_ok++;
        return;
    }
    finished_failed++;
    const char *text = lua_tostring(l, -1);
    if (text) {
        strncpy(last_error, text, sizeof last_error - 1);
        last_error[sizeof last_error - 1] = '\0';
    }
}

static struct task *start(const char *code) {
    struct task *t = NULL;
    assert_int_equal(luaL_loadstring(L, code), 0);
    assert_true(task_start(L, 0, NULL, on_finished, NULL, &t));
    return t;
}

/* The global `name` as text. */
static const char *global(const char *name) {
    static char text[256];
    lua_getglobal(L, name);
    const char *s = lua_isboolean(L, -1) ? (lua_toboolean(L, -1) ? "true" : "false") : lua_tostring(L, -1);
    strncpy(text, s ? s : "nil", sizeof text - 1);
    lua_pop(L, 1);
    return text;
}

static void a_task_runs_to_its_end_at_once(void **state) {
    (void)state;
    start("x = 1 + 1");
    assert_string_equal(global("x"), "2");
    assert_int_equal(finished_ok, 1);
    assert_int_equal(task_count(), 0);
}

static void a_suspended_task_gets_its_answer(void **state) {
    (void)state;
    start("x = test.wait() .. '!'");
    assert_int_equal(task_count(), 1);
    assert_non_null(waiting);
    lua_pushstring(task_lua(waiting), "answer");
    task_resume(waiting, 1);
    assert_string_equal(global("x"), "answer!");
    assert_int_equal(finished_ok, 1);
}

static void a_task_may_wait_inside_pcall_and_iterators(void **state) {
    (void)state;
    start("local ok, v = pcall(function() for a in function(_, c) if not c then return test.wait() end end do x = a "
          "end end) y = ok");
    lua_pushinteger(task_lua(waiting), 7);
    task_resume(waiting, 1);
    assert_string_equal(global("x"), "7");
    assert_string_equal(global("y"), "true");
}

static void threads_are_used_again_after_a_clean_end_only(void **state) {
    (void)state;
    struct task *first = start("x = 1");
    struct task *second = start("x = 2");
    assert_ptr_equal(first, second);
    start("error('oops')");
    assert_int_equal(finished_failed, 1);
    start("x = 3");
    assert_string_equal(global("x"), "3");
    assert_int_equal(finished_ok, 3);
}

static void an_error_reaches_finished_with_its_place(void **state) {
    (void)state;
    start("local function f() error('broken') end f()");
    assert_int_equal(finished_failed, 1);
    assert_non_null(strstr(last_error, ":1: broken"));
}

static void an_error_value_of_a_binding_is_a_table(void **state) {
    (void)state;
    start("local v, e = test.fail() x = tostring(v) .. ' ' .. e.kind .. ' ' .. e.message");
    assert_string_equal(global("x"), "nil busy the queue is full");
}

static void cancelling_answers_the_wait_and_every_later_one(void **state) {
    (void)state;
    struct task *t =
        start("local _, e = test.wait() x = e.kind _, e = test.wait() y = e.kind _, e = sched.sleep(1e6) z = e.kind");
    task_cancel(t, ERR_CANCELLED);
    assert_int_equal(cancels, 2);
    assert_string_equal(global("x"), "cancelled");
    assert_string_equal(global("y"), "cancelled");
    assert_string_equal(global("z"), "cancelled");
    assert_int_equal(task_count(), 0);
}

static void a_task_that_ignores_its_cancellation_is_abandoned(void **state) {
    (void)state;
    struct task *t = start("test.hold() while true do pcall(test.wait) end");
    task_cancel(t, ERR_CANCELLED);
    assert_int_equal(finished_failed, 1);
    assert_int_equal(deferred, 1);
    assert_int_equal(task_count(), 0);
}

static void the_deadline_ends_a_wait(void **state) {
    (void)state;
    start("sched.deadline(1) local _, e = test.wait() x = e.kind");
    loop_run();
    assert_string_equal(global("x"), "deadline");
    assert_int_equal(cancels, 1);
}

static void what_a_task_holds_is_given_back_at_its_end(void **state) {
    (void)state;
    start("test.hold() sched.defer(function() table.insert(log, 'a') end) sched.defer(function() table.insert(log, "
          "'b') end) error('x')");
    assert_int_equal(deferred, 1);
    struct error err;
    assert_true(vm_run(vm, "order = table.concat(log)", "=t", &err));
    assert_string_equal(global("order"), "ba");
}

static void waiting_is_refused_where_it_cannot_be(void **state) {
    (void)state;
    start("local co = coroutine.wrap(function() return test.wait() end) local ok, e = pcall(co) x = e "
          "local ok, e = pcall(table.sort, {1, 2, 3}, function() test.wait() end) y = e");
    assert_non_null(strstr(global("x"), "coroutine of one's own"));
    assert_non_null(strstr(global("y"), "call from C"));
    assert_int_equal(cancels, 2);
    start("coroutine.yield(1)");
    assert_non_null(strstr(last_error, "coroutine.yield outside"));
    struct error err;
    assert_false(vm_run(vm, "test.wait()", "=main", &err));
    assert_non_null(strstr(err.message, "needs a task"));
}

static void coroutines_of_ones_own_work_inside_a_task(void **state) {
    (void)state;
    start("local s = 0 for v in coroutine.wrap(function() for i = 1, 4 do coroutine.yield(i) end end) do s = s + v end "
          "x = s test.wait() x = x + 1");
    assert_string_equal(global("x"), "10");
    task_resume(waiting, 0);
    assert_string_equal(global("x"), "11");
}

static void a_started_task_begins_at_once_and_a_spawned_one_at_the_end_of_the_turn(void **state) {
    (void)state;
    start("sched.spawn(function(v) table.insert(log, v) end, 'spawned')\n"
          "sched.start(function(v) table.insert(log, v) test.wait() table.insert(log, 'woken') end, 'started')\n"
          "sched.start(function() error('of the started one alone') end)\n"
          "table.insert(log, 'after') x = #log");
    assert_string_equal(global("x"), "2");
    loop_run();
    struct error err;
    assert_true(vm_run(vm, "order = table.concat(log, ' ')", "=t", &err));
    assert_string_equal(global("order"), "started after spawned");
    task_resume(waiting, 0);
    assert_true(vm_run(vm, "order = table.concat(log, ' ')", "=t", &err));
    assert_string_equal(global("order"), "started after spawned woken");
}

static void sleepers_wake_in_the_order_of_their_times(void **state) {
    (void)state;
    /* Each falls asleep between two looks at the clock, which may be long apart where the machine is busy. */
    start("local sleepers = {} for _, ms in ipairs{20, 4, 12, 8, 16, 80, 36, 28} do "
          "local s = { earliest = test.clock() + ms } sleepers[#sleepers + 1] = s "
          "sched.start(function() sched.sleep(ms) table.insert(log, ms) s.place = #log end) "
          "s.latest = test.clock() + ms + 1 end "
          "function judge() order, judged = true, 0 for _, a in ipairs(sleepers) do for _, b in ipairs(sleepers) do "
          "if a.latest < b.earliest - 1 then judged = judged + 1 order = order and a.place < b.place end end end end");
    loop_run();
    struct error err;
    assert_true(vm_run(vm, "judge() judged = judged > 0 or 'nothing'", "=t", &err));
    assert_string_equal(global("order"), "true");
    assert_string_equal(global("judged"), "true");
}

static void parallel_waits_for_all_and_keeps_their_places(void **state) {
    (void)state;
    start("local r = sched.parallel{function() sched.sleep(3) return 'a' end, function() return 'b' end, "
          "function() sched.sleep(1) return 'c' end, function() end} x = r[1] .. r[2] .. r[3] .. tostring(r[4])");
    loop_run();
    assert_string_equal(global("x"), "abcnil");
    start("x = #sched.parallel{} ");
    assert_string_equal(global("x"), "0");
    start("local r = sched.parallel{function() return 1 end, function() return 2 end} x = r[1] + r[2]");
    assert_string_equal(global("x"), "3");
}

static void parallel_raises_the_first_error_after_all_have_ended(void **state) {
    (void)state;
    start("local ok, e = pcall(sched.parallel, {function() sched.sleep(4) done = true end, function() sched.sleep(1) "
          "error({code = 42}) end}) "
          "x = tostring(ok) .. e.code .. tostring(done)");
    loop_run();
    assert_string_equal(global("x"), "false42true");
}

static void cancelling_a_parent_cancels_its_children(void **state) {
    (void)state;
    struct task *t =
        start("local function f() local _, e = sched.sleep(1e6) table.insert(log, e.kind) end "
              "local ok, e = pcall(sched.parallel, {f, function() return sched.parallel{f, f} end}) x = e.kind");
    assert_int_equal(task_count(), 5);
    task_cancel(t, ERR_DEADLINE);
    assert_int_equal(task_count(), 0);
    struct error err;
    assert_true(vm_run(vm, "order = table.concat(log, ' ')", "=t", &err));
    assert_string_equal(global("order"), "deadline deadline deadline");
    assert_string_equal(global("x"), "deadline");
}

static void nesting_without_end_does_not_eat_the_c_stack(void **state) {
    (void)state;
    start("local n = 0 local function f() n = n + 1 if n < 3000 then return sched.parallel{f}[1] end return n end x = "
          "f()");
    loop_run();
    assert_string_equal(global("x"), "3000");
    start("local function g(n) if n > 0 then sched.parallel{function() g(n - 1) end} else sched.sleep(1e9) end end "
          "g(500)");
    /* close_vm cancels the chain from the outermost in */
}

static void every_runs_until_stopped_and_never_overlaps(void **state) {
    (void)state;
    start("n = 0 local busy, timer timer = sched.every(1, function() assert(not busy) busy = true sched.sleep(2) busy "
          "= false "
          "n = n + 1 if n == 3 then timer:stop() end end)");
    loop_run();
    assert_string_equal(global("n"), "3");
}

static void a_semaphore_lets_n_in_and_serves_in_order(void **state) {
    (void)state;
    start("local s, now, most = sched.semaphore(2), 0, 0 for i = 1, 6 do sched.spawn(function() s:with(function() "
          "now = now + 1 most = math.max(most, now) sched.sleep(1) now = now - 1 table.insert(log, i) end) end) end "
          "sched.spawn(function() s:acquire() s:release() x = most end)");
    loop_run();
    struct error err;
    assert_true(vm_run(vm, "order = table.concat(log, ' ')", "=t", &err));
    assert_string_equal(global("order"), "1 2 3 4 5 6");
    assert_string_equal(global("x"), "2");
}

static void a_cancelled_waiter_leaves_the_semaphore(void **state) {
    (void)state;
    start("s = sched.semaphore(1) s:acquire()");
    struct task *t = start("local ok, e = s:acquire() x = e.kind");
    task_cancel(t, ERR_CANCELLED);
    start("y = s:waiting() s:release() z = s:acquire()");
    assert_string_equal(global("x"), "cancelled");
    assert_string_equal(global("y"), "0");
    assert_string_equal(global("z"), "true");
}

static void a_waiter_may_say_how_long(void **state) {
    (void)state;
    start("s = sched.semaphore(1) s:acquire() sched.spawn(function() local ok, e = s:acquire(5) x = e.kind y = "
          "s:waiting() "
          "s:release() z = s:acquire(60000) end)");
    loop_run();
    assert_string_equal(global("x"), "timeout");
    assert_string_equal(global("y"), "0");
    assert_string_equal(global("z"), "true");
    /* Served in time, the limit is no more. */
    start("s = sched.semaphore(1) s:acquire() sched.spawn(function() x = s:acquire(60000) end) s:release()");
    loop_run();
    assert_string_equal(global("x"), "true");
    struct task *t = start("local ok, e = s:acquire(60000) x = e.kind");
    task_cancel(t, ERR_CANCELLED);
    assert_string_equal(global("x"), "cancelled");
    loop_run();
}

/* Who logs is the module or the framework's file, seen through kasma.log. */
static void a_line_of_lua_names_its_part(void **state) {
    (void)state;
    struct error err;
    int ends[2], keep = dup(STDERR_FILENO);
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(dup2(ends[1], STDERR_FILENO), STDERR_FILENO);
    assert_true(log_set_levels("error,catalog=info,outbox=warn", true));
    static const struct {
        const char *code, *chunk;
    } runs[] = {
        {"core = require('core.log') log = { info = function(m) core.info(m) end, warn = function(m) core.warn(m) end "
         "}",
         "@/srv/lua/kasma/log.lua"},
        {"log.info('one') core.warn('two')", "@/srv/lua/modules/catalog/service.lua"},
        {"log.info('three') log.warn('four')", "@lua/kasma/outbox.lua"},
        {"log.warn('five')", "@/srv/lua/modules/mail/jobs.lua"},
        {"core.error('six')", "=(a chunk \"of text\")"},
    };
    bool ran = true;
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) ran = ran && vm_run(vm, runs[i].code, runs[i].chunk, &err);
    log_flush();
    assert_int_equal(dup2(keep, STDERR_FILENO), STDERR_FILENO);
    assert_true(log_set_levels("info", true));
    assert_true(ran);
    char text[2000];
    ssize_t n = read(ends[0], text, sizeof text - 1);
    assert_true(n > 0);
    text[n] = '\0';
    assert_int_equal(close(ends[0]) + close(ends[1]) + close(keep), 0);
    static const char *const there[] = {"\"part\":\"catalog\",\"msg\":\"one\"", "\"part\":\"catalog\",\"msg\":\"two\"",
                                        "\"part\":\"outbox\",\"msg\":\"four\"", "\"part\":\"lua\",\"msg\":\"six\""};
    for (size_t i = 0; i < sizeof there / sizeof *there; i++)
        if (!strstr(text, there[i])) fail_msg("no %s in %s", there[i], text);
    assert_null(strstr(text, "three"));
    assert_null(strstr(text, "five"));
}

static void stop_functions_run_once_and_timers_end(void **state) {
    (void)state;
    start("n = 0 sched.every(1, function() end) sched.on_stop(function() n = n + 1 x = sched.stopping() end)");
    sched_stop(L);
    sched_stop(L);
    loop_run();
    assert_string_equal(global("n"), "1");
    assert_string_equal(global("x"), "true");
}

static void closing_a_vm_ends_what_still_waits(void **state) {
    (void)state;
    start("test.hold() sched.sleep(1e9)");
    start("sched.spawn(function() test.hold() sched.sleep(1e9) end) sched.every(1e6, function() end)");
    start("sched.parallel{function() test.wait() end, function() sched.sleep(1e9) end}");
    /* close_vm checks that nothing is left */
}

static void many_tasks_in_random_order(void **state) {
    (void)state;
    start("total = 0 local seed = 42 local function rnd(n) seed = (seed * 1103515245 + 12345) % 2147483648 return seed "
          "% n end "
          "for i = 1, 3000 do local a, b = rnd(15), rnd(7) sched.spawn(function() sched.deadline(1e6) sched.sleep(a) "
          "sched.sleep(b) total = total + 1 end) end");
    loop_run();
    assert_string_equal(global("total"), "3000");
    assert_int_equal(task_count(), 0);
}

/* A sentinel counts the cycles of the collector. */
static void the_collector_waits_for_garbage_that_is_worth_a_walk(void **state) {
    (void)state;
    struct error err = {0};
    bool ran =
        vm_run(vm,
               "local cycles = 0 "
               "local function arm() getmetatable(newproxy(true)).__gc = function() cycles = cycles + 1 arm() end end "
               "arm() "
               "local function litter(mib) for i = 1, mib * 256 do last = ('x'):rep(4000) .. i end end "
               "collectgarbage() cycles = 0 litter(6) assert(cycles == 0, cycles) "
               "litter(60) assert(cycles > 0) "
               "kept = {} for i = 1, 40 * 256 do kept[i] = ('y'):rep(4000) .. i end "
               "collectgarbage() cycles = 0 litter(30) assert(cycles == 0, cycles) "
               "kept = nil collectgarbage() cycles = 0 litter(60) assert(cycles > 1, cycles)",
               "=test", &err);
    if (!ran) fail_msg("%s", err.message);
}

/* Small pieces, large ones, in compiled loops and in pcall: whatever asks for too much is ended, and what stands beside
 * it goes on. */
static void a_greedy_task_is_ended_alone(void **state) {
    (void)state;
    static const char *const greedy[] = {
        "local t = {} for i = 1, 1e9 do t[i] = i end",
        "local t = {} for i = 1, 1e9 do t[#t + 1] = 'some text ' .. i end",
        "local t = {} for i = 1, 1e9 do t = {next = t} end",
        "local t = {} for i = 1, 1e9 do t[#t + 1] = function() return i end end",
        "local s = 'xxxxxxxx' while true do s = s .. s end",
        "local t = {} for _ = 1, 5 do pcall(function() while 1 do t[#t + 1] = {} end end) end error'not enough memory'",
        "local co = coroutine.wrap(function() local t = {} for i = 1, 1e9 do t[#t + 1] = {i} end end) co()",
    };
    vm_limit(vm, (size_t)64 << 20);
    unsigned n = sizeof greedy / sizeof *greedy;
    for (unsigned i = 0; i < n; i++) {
        start("beside = 0 for _ = 1, 20 do sched.sleep(1) beside = beside + #{1} end");
        start(greedy[i]);
        assert_int_equal(finished_failed, (int)i + 1);
        assert_non_null(strstr(last_error, "not enough memory"));
        loop_run();
        assert_string_equal(global("beside"), "20");
        assert_in_range(vm_memory(vm), 1, (size_t)48 << 20);
    }
}

/* One gathers over many turns; the other only comes by, and must not pay for it. */
static void who_gathers_slowly_is_ended_and_not_who_comes_by(void **state) {
    (void)state;
    vm_limit(vm, (size_t)64 << 20);
    start("sched.spawn(function() local t = {} while true do for i = 1, 4000 do t[#t + 1] = {i} end sched.sleep(1) end "
          "end) "
          "beside = 0 for _ = 1, 1500 do sched.sleep(1) beside = beside + #{1} end");
    loop_run();
    assert_string_equal(global("beside"), "1500");
    assert_int_equal(task_count(), 0);
    assert_in_range(vm_memory(vm), 1, (size_t)48 << 20);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, open_vm, close_vm)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_task_runs_to_its_end_at_once),
        TEST(a_suspended_task_gets_its_answer),
        TEST(a_task_may_wait_inside_pcall_and_iterators),
        TEST(threads_are_used_again_after_a_clean_end_only),
        TEST(an_error_reaches_finished_with_its_place),
        TEST(an_error_value_of_a_binding_is_a_table),
        TEST(cancelling_answers_the_wait_and_every_later_one),
        TEST(a_task_that_ignores_its_cancellation_is_abandoned),
        TEST(the_deadline_ends_a_wait),
        TEST(what_a_task_holds_is_given_back_at_its_end),
        TEST(waiting_is_refused_where_it_cannot_be),
        TEST(coroutines_of_ones_own_work_inside_a_task),
        TEST(a_started_task_begins_at_once_and_a_spawned_one_at_the_end_of_the_turn),
        TEST(sleepers_wake_in_the_order_of_their_times),
        TEST(parallel_waits_for_all_and_keeps_their_places),
        TEST(parallel_raises_the_first_error_after_all_have_ended),
        TEST(cancelling_a_parent_cancels_its_children),
        TEST(nesting_without_end_does_not_eat_the_c_stack),
        TEST(every_runs_until_stopped_and_never_overlaps),
        TEST(a_semaphore_lets_n_in_and_serves_in_order),
        TEST(a_cancelled_waiter_leaves_the_semaphore),
        TEST(a_waiter_may_say_how_long),
        TEST(a_line_of_lua_names_its_part),
        TEST(stop_functions_run_once_and_timers_end),
        TEST(closing_a_vm_ends_what_still_waits),
        TEST(many_tasks_in_random_order),
        TEST(the_collector_waits_for_garbage_that_is_worth_a_walk),
        TEST(a_greedy_task_is_ended_alone),
        TEST(who_gathers_slowly_is_ended_and_not_who_comes_by),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
