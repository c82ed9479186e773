// link: script
/* The registry of rule files: what is live, what happens when files change, what a request keeps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <sys/stat.h>
#include <unistd.h>

#include "crypto/crypto.h"
#include "runtime/clock.h"
#include "runtime/log.h"
#include "runtime/loop.h"
#include "script/bind.h"
#include "script/json.h"
#include "script/rules.h"
#include "script/vm.h"

static char dir[64];
static struct vm *vm;
static lua_State *L;
static struct sandbox_report report;
static char result[4096];

static void write_file(const char *name, const char *text) {
    char path[256], fresh[300];
    assert_true(snprintf(path, sizeof path, "%s/%s", dir, name) < (int)sizeof path);
    assert_true(snprintf(fresh, sizeof fresh, "%s.new", path) < (int)sizeof fresh);
    FILE *f = fopen(fresh, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(rename(fresh, path), 0); /* another inode: a change within one clock tick is seen too */
}

static void make_dir(const char *name) {
    char path[256];
    assert_true(snprintf(path, sizeof path, "%s/%s", dir, name) < (int)sizeof path);
    assert_int_equal(mkdir(path, 0700), 0);
}

static const char rule_one[] =
    "return { hook = 'promotion', name = 'One', run = function(input, config) return { n = 1, v = config.v } end, "
    "config = schema.object{ v = schema.integer{ default = 7 } } }";
static const char rule_two[] = "return { hook = 'promotion', name = 'Two', priority = 5, run = function(input) return "
                               "{ n = 2, got = input.x } end }";

static int setup(void **state) {
    (void)state;
    assert_true(loop_open());
    assert_true(crypto_open());
    log_set_level(LOG_ERROR);
    memcpy(dir, "/tmp/kasma-rules-XXXXXX", 24);
    assert_non_null(mkdtemp(dir));
    make_dir("active");
    make_dir("promotions");
    write_file("promotions/one.lua", rule_one);
    write_file("promotions/two.lua", rule_two);
    write_file("active/demo.lua", "return { { file = 'promotions/one.lua', config = { v = 3 } }, { file = "
                                  "'promotions/two.lua', priority = 50 } }");
    static const luaL_Reg modules[] = {{"core.json", luaopen_core_json}, {NULL, NULL}};
    struct error err;
    vm = vm_new_with(modules, NULL, &err);
    assert_non_null(vm);
    L = vm_state(vm);
    if (!rules_open(L, dir, true, &err)) fail_msg("%s", err.message);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    rules_close();
    vm_free(vm);
    /* Let closed handles be freed. */
    for (int i = 0; i < 3; i++) {
        int left = uv_run(loop_get(), UV_RUN_NOWAIT);
        (void)left;
    }
    static const char *const files[] = {"promotions/one.lua",
                                        "promotions/two.lua",
                                        "promotions/three.lua",
                                        "promotions",
                                        "active/demo.lua",
                                        "active/other.lua",
                                        "active",
                                        ""};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[256];
        assert_true(snprintf(path, sizeof path, "%s/%s", dir, files[i]) < (int)sizeof path);
        int gone = remove(path); /* not every test made every file */
        (void)gone;
    }
    return 0;
}

static bool build(lua_State *S, void *data, struct error *err) {
    struct error own = {0};
    bool ok = json_decode(L, str_of(data), &own) && sandbox_copy(L, -1, S, 256 * 1024, err);
    lua_settop(L, 0);
    return ok;
}

static bool read_json(lua_State *S, void *data, struct error *err) {
    (void)data;
    struct buf out = {0};
    bool ok = sandbox_copy(S, -1, L, 1024 * 1024, err) && json_encode_sorted(L, -1, &out, err);
    if (ok) {
        assert_true(out.len < sizeof result);
        memcpy(result, out.data, out.len);
        result[out.len] = '\0';
    }
    buf_free(&out);
    lua_settop(L, 0);
    return ok;
}

static struct rule_set *acquire(const char *tenant) {
    struct error err;
    struct rule_set *s = rules_acquire(str_of(tenant), &err);
    if (!s) fail_msg("%s", err.message);
    return s;
}

static const char *run_in(struct rule_set *s, const char *id) {
    static char input[] = "{\"x\":\"y\"}";
    int i = rules_find(s, id, NULL);
    assert_true(i >= 0);
    struct sandbox_limits limits = sandbox_pure;
    limits.wall_us = 10000000; /* the sanitizers are slow: instructions and bytes are what is tested */
    if (!rules_run(s, (size_t)i, &limits, build, read_json, input, &report)) return outcome_name(report.outcome);
    return result;
}

static const char *run_now(const char *id) {
    struct rule_set *s = acquire("demo");
    const char *got = run_in(s, id);
    rules_release(s);
    return got;
}

static void tick(uv_timer_t *t) {
    (void)t;
}

/* Turns the loop until `holds()`, at most a minute. */
static void await(bool (*holds)(void)) {
    uv_timer_t timer; /* the watch does not keep the loop waiting; this does */
    assert_int_equal(uv_timer_init(loop_get(), &timer), 0);
    assert_int_equal(uv_timer_start(&timer, tick, 5, 5), 0);
    uint64_t until = clock_mono_us() + 60000000;
    while (!holds()) {
        assert_true(clock_mono_us() < until);
        int left = uv_run(loop_get(), UV_RUN_ONCE);
        (void)left;
    }
    uv_close((uv_handle_t *)&timer, NULL);
    int left = uv_run(loop_get(), UV_RUN_NOWAIT);
    (void)left;
}

static void listed_rules_are_live_in_the_order_of_priority(void **state) {
    (void)state;
    struct rule_set *s = acquire("demo");
    assert_int_equal(rules_count(s), 2);
    struct rule_info first = rules_at(s, 0), second = rules_at(s, 1);
    assert_string_equal(first.id, "promotions/two");
    assert_int_equal(first.priority, 50);
    assert_string_equal(second.id, "promotions/one");
    assert_string_equal(second.name, "One");
    assert_string_equal(second.hook, "promotion");
    assert_int_equal(strlen(second.version), 64);
    rules_release(s);
    assert_string_equal(run_now("promotions/one"), "{\"n\":1,\"v\":3}");
    assert_string_equal(run_now("promotions/two"), "{\"got\":\"y\",\"n\":2}");
}

static void a_tenant_without_a_list_has_no_rules(void **state) {
    (void)state;
    struct rule_set *s = acquire("nobody");
    assert_int_equal(rules_count(s), 0);
    rules_release(s);
    assert_int_equal(rules_problems("nobody"), 0);
    struct error err;
    assert_null(rules_acquire(STR("../demo"), &err));
    assert_null(rules_acquire(STR(""), &err));
    assert_null(rules_acquire(STR("a/b"), &err));
}

static bool one_says_nine(void) {
    return strcmp(run_now("promotions/one"), "{\"n\":9}") == 0;
}

static void a_saved_file_is_live_and_a_request_keeps_its_version(void **state) {
    (void)state;
    struct rule_set *held = acquire("demo");
    write_file("promotions/one.lua", "return { hook = 'promotion', name = 'One', run = function() return { n = 9 } "
                                     "end, config = schema.object{ v = schema.integer } }");
    await(one_says_nine);
    assert_string_equal(run_in(held, "promotions/one"), "{\"n\":1,\"v\":3}");
    rules_release(held);
}

static struct rule_spec published(const char *id, int64_t number, const char *source) {
    return (struct rule_spec){.id = id,
                              .rule_id = "0192f0c0-0000-7000-8000-000000000001",
                              .hook = "promotion",
                              .number = number,
                              .source = str_of(source)};
}

static void publish(int64_t epoch, const struct rule_spec *specs, size_t n) {
    struct error err;
    if (!rules_publish(STR("demo"), epoch, specs, n, &err)) fail_msg("%s", err.message);
}

static void published_rules_stand_beside_files_and_a_request_keeps_its_set(void **state) {
    (void)state;
    struct rule_spec spec = published("b2g1", 1,
                                      "return { hook = 'promotion', name = 'B', run = function() return { n "
                                      "= 1 } end }");
    assert_int_equal(rules_epoch(STR("demo")), -1);
    publish(4, &spec, 1);
    assert_int_equal(rules_epoch(STR("demo")), 4);
    assert_true(rules_holds(STR("demo"), "b2g1", 1));
    assert_false(rules_holds(STR("demo"), "b2g1", 2));
    struct rule_set *held = acquire("demo");
    assert_int_equal(rules_count(held), 3);
    assert_int_equal(rules_set_epoch(held), 4);
    assert_string_equal(run_in(held, "b2g1"), "{\"n\":1}");
    spec = published("b2g1", 2, "return { hook = 'promotion', name = 'B', run = function() return { n = 2 } end }");
    publish(5, &spec, 1);
    assert_string_equal(run_in(held, "b2g1"), "{\"n\":1}");
    assert_string_equal(run_now("b2g1"), "{\"n\":2}");
    publish(3, NULL, 0); /* overtaken */
    assert_string_equal(run_now("b2g1"), "{\"n\":2}");
    rules_release(held);
    publish(6, NULL, 0);
    struct rule_set *now = acquire("demo");
    assert_int_equal(rules_find(now, "b2g1", NULL), -1);
    rules_release(now);
}

static void a_draft_is_tried_without_being_live(void **state) {
    (void)state;
    struct rule_spec live = published("x", 1,
                                      "return { hook = 'promotion', name = 'X', run = function() return { n = "
                                      "1 } end }");
    struct rule_spec draft = published("x", 0,
                                       "return { hook = 'promotion', name = 'X', run = function() error('no') "
                                       "end }");
    struct error err;
    publish(1, &live, 1);
    struct rule_set *base = acquire("demo"), *trial = rules_overlay(base, &draft, &err);
    assert_non_null(trial);
    assert_int_equal(rules_count(trial), rules_count(base));
    for (int i = 0; i < 10; i++) assert_string_equal(run_in(trial, "x"), "error");
    assert_string_equal(run_in(base, "x"), "{\"n\":1}");
    struct rule_set *without = rules_without(base, "x", &err);
    assert_non_null(without);
    assert_int_equal(rules_find(without, "x", NULL), -1);
    assert_int_equal(rules_count(without), 2);
    rules_release(without);
    rules_release(trial);
    rules_release(base);
}

static void five_failures_in_a_minute_open_the_breaker(void **state) {
    (void)state;
    struct rule_spec bad = published("bad", 1,
                                     "return { hook = 'promotion', name = 'X', run = function(input) if "
                                     "input.x then error('no') end return {} end }");
    publish(1, &bad, 1);
    for (int i = 0; i < 5; i++) {
        assert_string_equal(run_now("bad"), "error");
        assert_int_equal(report.tripped, i == 4);
    }
    assert_string_equal(run_now("bad"), "breaker");
    /* Half open: one try, which fails and opens it again at once. */
    clock_set_shift(301000);
    assert_string_equal(run_now("bad"), "error");
    assert_true(report.tripped);
    assert_string_equal(run_now("bad"), "breaker");
    /* Four in a minute do not open it. */
    clock_set_shift(0);
    struct rule_spec next = published("bad", 2,
                                      "return { hook = 'promotion', name = 'X', run = function(input) "
                                      "error('no') end }");
    publish(2, &next, 1);
    for (int i = 0; i < 9; i++) {
        assert_string_equal(run_now("bad"), "error");
        assert_false(report.tripped);
        clock_set_shift((int64_t)(i + 1) * 16000);
    }
    clock_set_shift(0);
}

static bool is_live(const char *id) {
    struct rule_set *s = acquire("demo");
    bool live = rules_find(s, id, NULL) >= 0;
    rules_release(s);
    return live;
}

static void a_published_rule_is_live_in_its_window_by_the_business_clock(void **state) {
    (void)state;
    const int64_t hour = 3600000, now = clock_now();
    struct rule_spec spec =
        published("week", 1, "return { hook = 'promotion', name = 'W', run = function() return { n = 1 } end }");
    spec.starts_ms = now + hour;
    spec.ends_ms = now + 2 * hour;
    publish(1, &spec, 1);
    /* The set that a request holds is as it was; nothing is published in between. */
    struct rule_set *before = acquire("demo");
    assert_false(is_live("week"));
    assert_true(rules_holds(STR("demo"), "week", 1)); /* loaded, though not live yet */
    clock_set_shift(hour - 60000);
    assert_false(is_live("week"));
    clock_set_shift(hour);
    assert_true(is_live("week"));
    assert_string_equal(run_now("week"), "{\"n\":1}");
    assert_int_equal(rules_find(before, "week", NULL), -1);
    rules_release(before);
    struct rule_set *within = acquire("demo");
    clock_set_shift(2 * hour - 60000);
    assert_true(is_live("week"));
    clock_set_shift(2 * hour);
    assert_false(is_live("week"));
    assert_string_equal(run_in(within, "week"), "{\"n\":1}");
    rules_release(within);
    /* A clock that is put back opens it again. */
    clock_set_shift(hour);
    assert_true(is_live("week"));
    /* The same version with another window. */
    spec.ends_ms = 0;
    publish(2, &spec, 1);
    clock_set_shift(9 * hour);
    assert_true(is_live("week"));
    clock_set_shift(0);
    assert_false(is_live("week"));
}

static bool two_is_gone(void) {
    return !is_live("promotions/two");
}

static bool list_is_broken(void) {
    struct rule_set *s = acquire("demo");
    rules_release(s);
    return rules_problems("demo") == 1;
}

static void a_listed_file_is_live_in_the_window_of_its_entry(void **state) {
    (void)state;
    const int64_t year = INT64_C(31536000000);
    clock_set_shift(60 * year); /* past the times below, whatever the machine's clock says */
    assert_true(is_live("promotions/two"));
    write_file("active/demo.lua", "return { { file = 'promotions/one.lua', startsAt = '2030-01-01' }, "
                                  "{ file = 'promotions/two.lua', endsAt = '2031-01-01T00:00:00+07:00' } }");
    await(two_is_gone);
    assert_true(is_live("promotions/one"));
    clock_set_shift(0);
    clock_set_shift(INT64_C(1900000000000) - clock_now()); /* a day of 2030 */
    assert_true(is_live("promotions/one"));
    assert_true(is_live("promotions/two"));
    clock_set_shift(0);
    write_file("active/demo.lua", "return { { file = 'promotions/one.lua', startsAt = 'soon' } }");
    await(list_is_broken);
    assert_non_null(strstr(rules_problem("demo", 0).message, "startsAt is no time"));
    write_file("active/demo.lua",
               "return { { file = 'promotions/one.lua', startsAt = '2030-01-02', endsAt = '2030-01-01' } }");
    rules_reload();
    assert_int_equal(rules_problems("demo"), 1);
    assert_non_null(strstr(rules_problem("demo", 0).message, "endsAt must come after startsAt"));
}

static void a_listed_workflow_is_not_live_and_the_problems_say_what_to_do(void **state) {
    (void)state;
    write_file("promotions/three.lua",
               "return { hook = 'workflow', name = 'Three', on = { 'order.placed' }, steps = { { name "
               "= 'a', run = function() end } } }");
    write_file("active/demo.lua", "return { { file = 'promotions/one.lua' }, { file = 'promotions/three.lua' } }");
    rules_reload();
    struct rule_set *s = acquire("demo");
    rules_release(s);
    rules_reload();
    assert_true(is_live("promotions/one"));
    assert_false(is_live("promotions/three"));
    assert_int_equal(rules_problems("demo"), 1);
    assert_string_equal(rules_problem("demo", 0).file, "promotions/three.lua");
    assert_non_null(strstr(rules_problem("demo", 0).message, "a workflow has to be published"));
}

static void libraries_are_pinned_with_the_version(void **state) {
    (void)state;
    struct sandbox_lib libs[] = {
        {.key = "money_words",
         .source =
             STR("local deep = lib('deep') return { hook = 'library', name = 'L', exports = { twice = function(n) "
                 "return deep.add(n, n) end } }")},
        {.key = "deep",
         .source =
             STR("return { hook = 'library', name = 'D', exports = { add = function(a, b) return a + b end } }")}};
    struct rule_spec spec = published("uses", 1,
                                      "local words = lib('money_words') return { hook = 'promotion', name = "
                                      "'U', run = function() return { n = words.twice(21) } end }");
    spec.libs = libs;
    spec.nlibs = 2;
    publish(1, &spec, 1);
    assert_string_equal(run_now("uses"), "{\"n\":42}");
    assert_string_equal(run_now("uses"), "{\"n\":42}");
    struct rule_spec late = published("late", 1,
                                      "return { hook = 'promotion', name = 'U', run = function() return { n "
                                      "= lib('deep') } end }");
    late.libs = libs;
    late.nlibs = 2;
    publish(2, &late, 1);
    assert_string_equal(run_now("late"), "error");
    assert_non_null(strstr(report.message, "top of the file"));
    struct sandbox_lib loop = {.key = "deep", .source = STR("return lib('deep')")};
    late =
        published("loop", 1, "local l = lib('deep') return { hook = 'promotion', name = 'U', run = function() end }");
    late.libs = &loop;
    late.nlibs = 1;
    publish(3, &late, 1);
    assert_string_equal(run_now("loop"), "error");
    assert_non_null(strstr(report.message, "more than 3 deep"));
}

static bool has_problem(void) {
    return rules_problems("demo") == 1;
}

static bool has_no_problem(void) {
    return rules_problems("demo") == 0;
}

static void a_broken_file_keeps_the_last_good_version(void **state) {
    (void)state;
    rules_release(acquire("demo"));
    write_file("promotions/one.lua", "return {\n hook = 'promotion',\n name = 'One', run = function() return 1 \n");
    await(has_problem);
    struct rule_problem p = rules_problem("demo", 0);
    assert_string_equal(p.file, "promotions/one.lua");
    assert_true(p.line >= 3);
    assert_string_equal(run_now("promotions/one"), "{\"n\":1,\"v\":3}");
    write_file("promotions/one.lua", rule_one);
    await(has_no_problem);
    assert_string_equal(run_now("promotions/one"), "{\"n\":1,\"v\":3}");
}

static void a_broken_list_keeps_what_is_live(void **state) {
    (void)state;
    rules_release(acquire("demo"));
    static const char *const bad[] = {
        "return {",
        "return 5",
        "return { { file = '../../etc/passwd' } }",
        "return { { file = '/etc/x.lua' } }",
        "return { { file = 'a/../b.lua' } }",
        "return { {} }",
        "return { { file = 'promotions/one.lua', priority = 1.5 } }",
        "while true do end",
        "local s = 'x' while true do s = s .. s end",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_file("active/demo.lua", bad[i]);
        rules_reload();
        assert_int_equal(rules_problems("demo"), 1);
        assert_string_equal(run_now("promotions/one"), "{\"n\":1,\"v\":3}");
    }
    write_file("active/demo.lua", "return { { file = 'promotions/two.lua' } }");
    rules_reload();
    assert_int_equal(rules_problems("demo"), 0);
    struct rule_set *s = acquire("demo");
    assert_int_equal(rules_count(s), 1);
    assert_int_equal(rules_at(s, 0).priority, 5);
    rules_release(s);
}

static void a_config_that_does_not_fit_is_a_problem(void **state) {
    (void)state;
    write_file("active/demo.lua", "return { { file = 'promotions/one.lua', config = { v = 'x' } }, { file = "
                                  "'promotions/two.lua' }, { file = 'promotions/none.lua' } }");
    struct rule_set *s = acquire("demo");
    assert_int_equal(rules_count(s), 1);
    rules_release(s);
    assert_int_equal(rules_problems("demo"), 2);
    assert_non_null(strstr(rules_problem("demo", 0).message, "config.v: must be a whole number"));
    assert_non_null(strstr(rules_problem("demo", 1).message, "No such file"));
}

static void a_failing_rule_says_where_and_the_next_runs(void **state) {
    (void)state;
    write_file("promotions/one.lua", "return { hook = 'promotion', name = 'One', run = function(input)\n local lines = "
                                     "input.cart.lines\n return {} end }");
    write_file("active/demo.lua", "return { { file = 'promotions/one.lua' }, { file = 'promotions/two.lua' } }");
    assert_string_equal(run_now("promotions/one"), "error");
    assert_int_equal(report.line, 2);
    assert_non_null(strstr(report.message, "field 'cart'"));
    assert_string_equal(run_now("promotions/two"), "{\"got\":\"y\",\"n\":2}");
}

static void a_memory_bomb_does_not_hurt_the_other_rules(void **state) {
    (void)state;
    write_file("promotions/one.lua", "return { hook = 'promotion', name = 'One', run = function(input) local s = 'x' "
                                     "while true do s = s .. s end end }");
    write_file("active/demo.lua", "return { { file = 'promotions/one.lua' }, { file = 'promotions/two.lua' } }");
    for (int i = 0; i < 3; i++) {
        assert_string_equal(run_now("promotions/one"), "limit_heap");
        assert_string_equal(run_now("promotions/two"), "{\"got\":\"y\",\"n\":2}");
    }
}

static void tenants_do_not_see_each_other(void **state) {
    (void)state;
    write_file("active/other.lua", "return { { file = 'promotions/one.lua', config = { v = 44 } } }");
    struct rule_set *a = acquire("demo"), *b = acquire("other");
    assert_string_equal(run_in(b, "promotions/one"), "{\"n\":1,\"v\":44}");
    assert_string_equal(run_in(a, "promotions/one"), "{\"n\":1,\"v\":3}");
    assert_string_not_equal(rules_at(a, 1).version, rules_at(b, 0).version);
    rules_release(a);
    rules_release(b);
    assert_int_equal(rules_tenants(), 2);
}

/* A worker lives for weeks, and there may be more tenants than it keeps at a time. */
static void a_tenant_too_many_takes_the_place_of_the_one_asked_for_longest_ago(void **state) {
    (void)state;
    enum { KEPT = 10000, MINUTE = 60000 };
    struct error err = {0};
    char key[32];
    int64_t shift = clock_shift(), began = clock_now();
    struct rule_set *held = rules_acquire(STR("demo"), &err);
    assert_non_null(held);
    assert_true(rules_publish(STR("t1"), 4, NULL, 0, &err));
    for (int i = 1; i < KEPT; i++) {
        assert_true(snprintf(key, sizeof key, "t%d", i) > 0);
        struct rule_set *s = rules_acquire(str_of(key), &err);
        if (!s) fail_msg("%s: %s", key, err.message);
        rules_release(s);
    }
    assert_int_equal(rules_tenants(), KEPT);
    clock_set_shift(shift - (clock_now() - began)); /* however long that took: all were asked for just now */
    assert_null(rules_acquire(STR("one-more"), &err));
    assert_int_equal(err.kind, ERR_LIMIT);
    clock_set_shift(shift + 10 * MINUTE);
    struct rule_set *again = rules_acquire(STR("t2"), &err);
    assert_non_null(again);
    rules_release(again);
    struct rule_set *late = rules_acquire(STR("one-more"), &err), *later = rules_acquire(STR("two-more"), &err);
    clock_set_shift(shift);
    assert_non_null(late);
    assert_non_null(later);
    assert_int_equal(rules_tenants(), KEPT);
    assert_int_equal(rules_epoch(STR("t1")), -1); /* gone: what was published is handed over anew */
    assert_true(rules_publish(STR("t2"), 5, NULL, 0, &err));
    assert_int_equal(rules_tenants(), KEPT);
    /* Who is held stays, and so does his set. */
    assert_int_equal(rules_count(held), 2);
    static char none[] = "{}";
    if (!rules_run(held, 0, NULL, build, read_json, none, &report)) fail_msg("%s", report.message);
    rules_release(late);
    rules_release(later);
    rules_release(held);
}

static void a_hook_has_at_most_25_rules(void **state) {
    (void)state;
    char list[4096] = "return { { file = 'promotions/two.lua', priority = -5 },", name[300];
    for (int i = 0; i < 25; i++) {
        assert_true(snprintf(name, sizeof name, "%s{ file = 'promotions/r%02d.lua' },", i ? "" : " ", i) > 0);
        strncat(list, name, sizeof list - strlen(list) - 1);
        assert_true(snprintf(name, sizeof name, "promotions/r%02d.lua", i) > 0);
        write_file(name, rule_one);
    }
    strncat(list, "}", sizeof list - strlen(list) - 1);
    write_file("active/demo.lua", list);
    struct rule_set *s = acquire("demo");
    assert_int_equal(rules_count(s), 25);
    assert_int_equal(rules_find(s, "promotions/two", NULL), -1);
    rules_release(s);
    assert_int_equal(rules_problems("demo"), 1);
    for (int i = 0; i < 25; i++) {
        assert_true(snprintf(name, sizeof name, "%s/promotions/r%02d.lua", dir, i) > 0);
        assert_int_equal(remove(name), 0);
    }
}

static void a_set_outlives_the_registry(void **state) {
    (void)state;
    struct rule_set *s = acquire("demo");
    rules_close();
    assert_int_equal(rules_count(s), 2);
    assert_false(rules_run(s, 0, NULL, build, read_json, NULL, &report));
    rules_release(s);
}

/* The rules the product ships load, and do what they say. */
static void the_shipped_rules_work(void **state) {
    (void)state;
    struct error err;
    rules_close();
    assert_true(rules_open(L, KASMA_SOURCE_DIR "/rules", false, &err));
    struct rule_set *s = acquire("demo");
    if (rules_problems("demo")) fail_msg("%s: %s", rules_problem("demo", 0).file, rules_problem("demo", 0).message);
    static char cart[] = "{\"cart\":{\"lines\":[{\"id\":\"l1\",\"sku\":\"DEMO-028\",\"qty\":7,\"category_ids\":[]},{"
                         "\"id\":\"l2\",\"sku\":\"DEMO-001\",\"qty\":9,\"category_ids\":[]}]}}";
    assert_true(rules_run(s, (size_t)rules_find(s, "promotions/third_unit_half_price", NULL), NULL, build, read_json,
                          cart, &report));
    assert_string_equal(result, "{\"operations\":[{\"bps\":5000,\"label\":\"Third herbal tea half "
                                "price\",\"line_id\":\"l1\",\"op\":\"line_percent\",\"units\":2}]}");
    static char vn[] = "{\"subject\":{\"address\":{\"country\":\"VN\"},\"date\":1795500000,\"lines\":[{\"id\":\"l1\","
                       "\"tax_class\":\"books\"},{\"id\":\"l2\"}]}}";
    int tax = rules_find(s, "tax/viet_nam", NULL);
    if (!rules_run(s, (size_t)tax, NULL, build, read_json, vn, &report)) fail_msg("%s", report.message);
    assert_string_equal(
        result,
        "[{\"compound\":false,\"jurisdiction\":\"VN\",\"line\":\"l1\",\"name\":\"VAT 5%\",\"rate_ppm\":50000},"
        "{\"compound\":false,\"jurisdiction\":\"VN\",\"line\":\"l2\",\"name\":\"VAT 10%\",\"rate_ppm\":100000}]");
    static char us[] =
        "{\"subject\":{\"address\":{\"country\":\"US\"},\"date\":1795500000,\"lines\":[{\"id\":\"l1\"}]}}";
    assert_true(rules_run(s, (size_t)tax, NULL, build, read_json, us, &report));
    assert_string_equal(result, "null");
    rules_release(s);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(listed_rules_are_live_in_the_order_of_priority),
        TEST(a_tenant_without_a_list_has_no_rules),
        TEST(a_saved_file_is_live_and_a_request_keeps_its_version),
        TEST(published_rules_stand_beside_files_and_a_request_keeps_its_set),
        TEST(a_draft_is_tried_without_being_live),
        TEST(five_failures_in_a_minute_open_the_breaker),
        TEST(a_published_rule_is_live_in_its_window_by_the_business_clock),
        TEST(a_listed_file_is_live_in_the_window_of_its_entry),
        TEST(a_listed_workflow_is_not_live_and_the_problems_say_what_to_do),
        TEST(libraries_are_pinned_with_the_version),
        TEST(a_broken_file_keeps_the_last_good_version),
        TEST(a_broken_list_keeps_what_is_live),
        TEST(a_config_that_does_not_fit_is_a_problem),
        TEST(a_failing_rule_says_where_and_the_next_runs),
        TEST(a_memory_bomb_does_not_hurt_the_other_rules),
        TEST(tenants_do_not_see_each_other),
        TEST(a_tenant_too_many_takes_the_place_of_the_one_asked_for_longest_ago),
        TEST(a_hook_has_at_most_25_rules),
        TEST(a_set_outlives_the_registry),
        TEST(the_shipped_rules_work),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
