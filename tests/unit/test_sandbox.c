// link: script
/* What happens to rule code that means harm. */
#include "sandbox_fixture.h"
#include "script/sandbox_cache.h"

static void endless_loops_stop(void **state) {
    (void)state;
    stops("while true do end", OUTCOME_INSTRUCTIONS);
    stops("repeat until false", OUTCOME_INSTRUCTIONS);
    stops("for i = 1, math.huge do end", OUTCOME_INSTRUCTIONS);
    stops("local function f() return f() end return f()", OUTCOME_INSTRUCTIONS);
    stops("while true do pcall(function() while true do end end) end", OUTCOME_INSTRUCTIONS);
    stops("local function f() while true do pcall(f) end end f()", OUTCOME_INSTRUCTIONS);
    stops("pcall(pcall, pcall, function() while true do end end) while true do end", OUTCOME_INSTRUCTIONS);
    stops("local t = {} for i = 1, 100 do t[i] = i end while true do for k in pairs(t) do end end",
          OUTCOME_INSTRUCTIONS);
    stops("local t = {} while true do table.insert(t, 1, 1) end", OUTCOME_INSTRUCTIONS);
    stops("while true do string.rep('x', 60000) end", OUTCOME_INSTRUCTIONS);
    stops("while true do tostring(1) end", OUTCOME_INSTRUCTIONS);
    stops("while true do string.format('%d', 5) end", OUTCOME_INSTRUCTIONS);
}

static void the_stop_names_its_line(void **state) {
    (void)state;
    assert_false(run_body("\nlocal x = 0\nwhile true do\nx = x + 1\nend"));
    assert_int_equal(report.outcome, OUTCOME_INSTRUCTIONS);
    assert_true(report.line >= 3 && report.line <= 5);
    assert_int_equal(report.instructions, 200000);
    assert_non_null(strstr(report.message, "stopped after 200000 instructions; "));
}

static void loading_has_a_budget_too(void **state) {
    (void)state;
    assert_int_equal(load("while true do end"), 0);
    assert_int_equal(report.outcome, OUTCOME_INSTRUCTIONS);
    assert_int_equal(load("local s = 'x' while true do s = s .. s end"), 0);
    assert_int_equal(report.outcome, OUTCOME_HEAP);
}

static void the_clock_is_a_net(void **state) {
    (void)state;
    limits.wall_us = 1;
    assert_false(run_body("local x = 0 for i = 1, 60000 do x = x + i end"));
    assert_int_equal(report.outcome, OUTCOME_TIME);
}

static void memory_bombs_stop(void **state) {
    (void)state;
    stops("local s = 'x' while true do s = s .. s end", OUTCOME_HEAP);
    stops("local t = {} for i = 1, 1e9 do t[i] = {i, i, i, i, i, i, i, i} end", OUTCOME_INSTRUCTIONS);
    stops("local t = {} while true do t = {t, t, 'aaaaaaaaaaaaaaaaaaaaaaaa' .. #t} t[t] = {} end",
          OUTCOME_INSTRUCTIONS);
    stops("local s = string.rep('x', 60000) local t = {} for i = 1, 1e6 do t[i] = s .. i end", OUTCOME_HEAP);
    stops("while true do pcall(function() local s = 'x' while true do s = s .. s end end) end", OUTCOME_HEAP);
    stops("local s = string.rep('x', 60000) for i = 1, 1e9 do local u = s .. i end", OUTCOME_HEAP);
    stops("local f f = function(...) return f(1, ...) end f()", OUTCOME_HEAP);
}

static void long_texts_are_refused(void **state) {
    (void)state;
    fails("return string.rep('x', 1e9)", "64 KiB");
    fails("return ('x'):rep(1e300)", "64 KiB");
    fails("local t = {} for i = 1, 2000 do t[i] = ('x'):rep(100) end return table.concat(t)", "64 KiB");
    fails("return string.format('%s%s', ('x'):rep(40000), ('x'):rep(40000))", "64 KiB");
    fails("return string.format('%999d', 1)", "99");
    fails("return string.format('%p', {})", "%p");
    fails("return ('x'):rep(60000):gsub('x', '%0%0')", "64 KiB");
    fails("return table.concat({}, 'x', 1, 1e8)", "cannot be joined");
    fails("return string.byte(('x'):rep(1000), 1, -1)", "250");
    fails("return unpack({}, 1, 1e7)", "250");
    fails("return string.char(unpack({}, 1, 300))", "250");
}

static void pattern_bombs_stop(void **state) {
    (void)state;
    stops("return ('a'):rep(28):find(('a?'):rep(28) .. ('a'):rep(28))", OUTCOME_PATTERN);
    stops("return ('a'):rep(40):match(('a-'):rep(26) .. 'b')", OUTCOME_PATTERN);
    stops("return ('x'):rep(5000):find('.-.-.-.-b')", OUTCOME_PATTERN);
    stops("for w in ('a'):rep(30):gmatch(('a*'):rep(20) .. 'b') do end", OUTCOME_PATTERN);
    stops("return ('a'):rep(60000):gsub('.-b', 'x')", OUTCOME_PATTERN);
    stops("while true do pcall(string.find, ('a'):rep(40), ('a-'):rep(26) .. 'b') end", OUTCOME_PATTERN);
    stops("while true do ('a'):rep(3000):find('a-b') end", OUTCOME_PATTERN);
    stops("while true do ('a'):rep(300):find('a-b') end", OUTCOME_INSTRUCTIONS);
    fails("return ('a'):rep(300):find(('(a)'):rep(40))", "too many captures");
    fails("return ('a'):rep(1000):find(('a?'):rep(1000))", "too complex");
    fails("local s = ('x'):rep(60000) return (s .. s):find('y')", "64 KiB");
}

static void sort_survives_its_comparator(void **state) {
    (void)state;
    gives("local t = {5, 3, 1, 4, 2} table.sort(t, function() return true end) return {n = #t}", "{\"n\":5}");
    gives("local t = {3, 1, 2} table.sort(t, function(a, b) t[1] = nil t[9] = 1 return a < b end) return {t[1], t[2], "
          "t[3]}",
          "[1,2,3]");
    fails("local t = {3, 1, {}} table.sort(t) return t", "attempt to compare");
    fails("local t = {3, 1, 2} table.sort(t, function() error('mine') end)", "mine");
    fails("local t = {} for i = 1, 10001 do t[i] = i end table.sort(t)", "10000");
    stops("local t = {1, 2, 3} table.sort(t, function() while true do end end)", OUTCOME_INSTRUCTIONS);
    stops("local function s() table.sort({1, 2}, s) return true end while true do pcall(s) end", OUTCOME_INSTRUCTIONS);
}

static void recursion_ends(void **state) {
    (void)state;
    fails("local function f() return 1 + f() end return f()", "stack overflow");
    gives("local function f() return 1 + f() end local ok, e = pcall(f) return {ok = ok}", "{\"ok\":false}");
    fails("local t = ('a'):gsub('a', function() local function f() return (('a'):gsub('a', f)) end return f() end) "
          "return t",
          "too deep");
    fails("local function f() pcall(f) error('deep') end f()", "deep");
    gives("local n = 0 local function f() n = n + 1 pcall(f) end f() return {deep = n > 100 and n < 1000}",
          "{\"deep\":true}");
    fails("local function f() table.sort({1, 2}, f) end f()", "too deep");
}

static void error_objects_do_no_harm(void **state) {
    (void)state;
    fails("error({message = 'told'})", "told");
    fails("error({})", "no text");
    fails("error(string)", "no text");
    fails("error(function() end)", "no text");
    fails("error()", "no text");
    fails("error(('x'):rep(60000))", "xxx");
    assert_int_equal(strlen(report.message), 2000);
    gives("local ok, e = pcall(error, {code = 7}) return {code = e.code}", "{\"code\":7}");
}

static void what_is_absent_says_so(void **state) {
    (void)state;
    static const char *const names[] = {
        "io",     "os",           "ffi",          "debug",   "package",   "load",           "loadstring", "loadfile",
        "dofile", "require",      "setfenv",      "getfenv", "coroutine", "rawget",         "rawset",     "rawequal",
        "rawlen", "setmetatable", "getmetatable", "next",    "print",     "collectgarbage", "newproxy",   "module",
        "jit",    "bit",          "xpcall",       "gcinfo",  "_G",        "_VERSION",       "arg",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char body[64];
        assert_true(snprintf(body, sizeof body, "return %s", names[i]) > 0);
        fails(body, names[i]);
    }
    fails("return string.dump(function() end)", "string.dump");
    fails("return math.random()", "math.random");
    fails("return math.randomseed(1)", "math.randomseed");
    fails("return table.getn({})", "table.getn");
    fails("return ('x').dump", "");
    fails("return prnt", "'prnt' is not defined");
    fails("return os.time()", "input.now");
}

/* The parser of LuaJIT opens the FFI library by itself when it reads such a number. */
static void numbers_of_64_bits_open_no_door(void **state) {
    (void)state;
    gives("local x = 1LL + 2LL return {type(x), tostring(x), x == 3LL}", "[\"cdata\",\"userdata\",true]");
    stops("return 1LL", OUTCOME_INVALID_RESULT);
    stops("return {[1ULL] = 1}", OUTCOME_INVALID_RESULT);
    fails("local x = 1LL return ffi", "'ffi' is not available");
    fails("local x = 1i return x.new", "");
    fails("local x = 1LL return x.cdef('int system(const char *)')", "");
    fails("local x = 1LL x[0] = 5", "");
    fails("local x = 1LL for k in pairs(x) do end", "table expected");
    fails("local x = 1LL return ('x'):rep(x)", "number expected");
    stops("local x = 1LL while true do x = x * 3LL end", OUTCOME_INSTRUCTIONS);
}

static void bytecode_is_refused(void **state) {
    (void)state;
    lua_State *L = luaL_newstate();
    assert_non_null(L);
    luaL_openlibs(L);
    assert_int_equal(luaL_dostring(L, "return string.dump(function() return {} end)"), 0);
    size_t len;
    const char *code = lua_tolstring(L, -1, &len);
    struct sandbox_manifest m;
    assert_int_equal(sandbox_load(sb, "t.lua", str_n(code, len), &m, &report), 0);
    assert_int_equal(report.outcome, OUTCOME_ERROR);
    lua_close(L);
}

/* What the process has compiled once is used for every other state: it must act as its text does. */
static void a_text_that_is_known_acts_the_same(void **state) {
    (void)state;
    static const char text[] = "local t = {1, 2, 'x', k = {deep = true}}\n"
                               "local function bad() error('far down') end\n"
                               "return { hook = 'promotion', name = 'Known', priority = 7, config = schema.object{ n = "
                               "schema.integer{ default = 3 } },\n"
                               "  run = function(input, config)\n"
                               "    local ok, why = pcall(bad)\n"
                               "    t[#t + 1] = config.n\n"
                               "    if config.n == 9 then bad() end\n"
                               "    return { why = why, n = #t, pi = 3.25, big = 9007199254740991, k = t.k }\n"
                               "  end }";
    static char first[sizeof result];
    size_t bytes = 0, before = compiled_count(&bytes);
    for (int i = 0; i < 3; i++) {
        struct sandbox_manifest m;
        struct error err;
        struct sandbox *mine = sb;
        sb = sandbox_new(&err);
        assert_non_null(sb);
        const char *name = i == 1 ? "another.lua" : "t.lua";
        int rule = sandbox_load(sb, name, str_of(text), &m, &report);
        assert_int_not_equal(rule, 0);
        assert_string_equal(m.name, "Known");
        assert_int_equal(m.priority, 7);
        assert_false(sandbox_configure(sb, rule, STR("{\"m\":1}"), &report));
        assert_true(sandbox_configure(sb, rule, STR("{}"), &report));
        assert_true(run_rule(rule) && run_rule(rule)); /* the second sees nothing of the first */
        if (i == 0) memcpy(first, result, strlen(result) + 1);
        if (i != 1) assert_string_equal(result, first);
        if (i == 1) assert_non_null(strstr(result, "another.lua:2: far down"));
        assert_true(sandbox_configure(sb, rule, STR("{\"n\":9}"), &report));
        assert_false(run_rule(rule));
        assert_int_equal(report.line, 2);
        assert_string_equal(report.message, "far down");
        assert_int_equal(compiled_count(&bytes), before + 1);
        sandbox_free(sb);
        sb = mine;
    }
    compiled_sweep(UINT64_MAX);
    assert_int_equal(compiled_count(&bytes), 0);
    assert_int_equal(bytes, 0);
}

/* The VM loads its FFI for such literals, and must find it again after a collection. */
static void wide_literals_live_through_a_collection(void **state) {
    (void)state;
    int rule = load(
        "return { hook = 'x', name = 'x', run = function() local n, t = 1LL, {} for i = 1, 40 do n = n * 3LL + 1LL "
        "t[i] = { tostring(n) } end return { n = tostring(n), m = math.floor(2.5) } end }");
    assert_int_not_equal(rule, 0);
    for (int i = 0; i < 20; i++) {
        assert_true(run_rule(rule));
        sandbox_rest(sb);
    }
}

static void what_is_kept_of_texts_is_bounded(void **state) {
    (void)state;
    size_t bytes;
    for (int i = 0; i < 1500; i++) {
        char text[120];
        int n = snprintf(text, sizeof text, "return { hook = 'x', name = 'x', run = function() return %d end }", i);
        assert_true(n > 0);
        int rule = load(text);
        assert_int_not_equal(rule, 0);
        assert_true(run_rule(rule));
        n = snprintf(text, sizeof text, "%d", i);
        assert_true(n > 0);
        assert_string_equal(result, text);
        sandbox_unload(sb, rule);
    }
    assert_true(compiled_count(&bytes) <= 512);
    assert_true(bytes <= (size_t)9 * 1024 * 1024);
    compiled_sweep(UINT64_MAX);
    assert_int_equal(compiled_count(&bytes), 0);
}

static void nothing_survives_a_run(void **state) {
    (void)state;
    fails("x = 1", "read-only");
    fails("string.rep = nil", "read-only");
    fails("string.mine = 1", "read-only");
    fails("table.insert(string, 1)", "read-only");
    fails("table.sort(math)", "read-only");
    fails("table.remove(money)", "read-only");
    fails("log.x = 1", "read-only");
    fails("local s = 'x' s.y = 1", "");
    int rule = load("local n = 0 local seen = {} return { hook = 'promotion', name = 't', run = function(input) n = n "
                    "+ 1 seen[#seen + 1] = n input.x = 1 return {n = n, seen = #seen} end }");
    assert_true(rule > 0);
    for (int i = 0; i < 3; i++) {
        assert_true(run_rule(rule));
        assert_true(strstr(result, "\"n\":1") && strstr(result, "\"seen\":1"));
    }
}

static void run_functions_keep_no_state_however_they_try(void **state) {
    (void)state;
    static const char *const sources[] = {
        "local n = 0 return { hook = 'promotion', name = 't', run = function() n = n + 1 return {n} end }",
        "local n = 0 local function count() n = n + 1 return n end return { hook = 'promotion', name = 't', run = "
        "function() return {count()} end }",
        "local t = {n = 0} return { hook = 'promotion', name = 't', run = function() t.n = t.n + 1 return {t.n} end }",
        "local f = function() return 1 end return { hook = 'promotion', name = 't', run = function() local r = f() f = "
        "function() return 2 end return {r} end }",
        "local n = 0 return { hook = 'promotion', name = 't', run = function() n = n + 1 if n > 1 then error('kept') "
        "end pcall(error, 'x') return {n} end }",
        "local floor = math.floor local function half(x) return floor(x / 2) end return { hook = 'promotion', name = "
        "'t', run = function() return {half(3)} end }",
        "local function f(x) if x == 0 then return 1 end return f(x - 1) end return { hook = 'promotion', name = 't', "
        "run = function() return {f(9)} end }",
    };
    for (size_t i = 0; i < sizeof sources / sizeof *sources; i++) {
        int rule = load(sources[i]);
        assert_true(rule > 0);
        for (int k = 0; k < 4; k++) {
            if (!run_rule(rule)) fail_msg("%s: %s", sources[i], report.message);
            if (strcmp(result, "[1]") != 0) fail_msg("%s gave %s", sources[i], result);
        }
        sandbox_unload(sb, rule);
    }
    int rule =
        load("local n = 0 return { hook = 'promotion', name = 't', run = function() n = n + 1 error('n' .. n) end }");
    for (int k = 0; k < 3; k++) {
        assert_false(run_rule(rule));
        assert_string_equal(report.message, "n1");
    }
}

static void bad_results_are_refused(void **state) {
    (void)state;
    stops("local t = {} t.t = t return t", OUTCOME_INVALID_RESULT);
    stops("local t = {} local a = t for i = 1, 40 do a.a = {} a = a.a end return t", OUTCOME_INVALID_RESULT);
    stops("return {x = 0 / 0}", OUTCOME_INVALID_RESULT);
    stops("return {x = math.huge}", OUTCOME_INVALID_RESULT);
    stops("return {f = function() end}", OUTCOME_INVALID_RESULT);
    stops("return {[{}] = 1}", OUTCOME_INVALID_RESULT);
    stops("return {[1.5] = 1}", OUTCOME_INVALID_RESULT);
    stops("return function() end", OUTCOME_INVALID_RESULT);
}

static void large_results_are_refused(void **state) {
    (void)state;
    stops("return {x = ('x'):rep(65536)}", OUTCOME_RESULT);
    assert_false(run_body("return {x = ('x'):rep(65536)}"));
    assert_int_equal(report.result, limits.result);
    assert_true(run_body("return {x = ('x'):rep(1000)}"));
    assert_in_range(report.result, 1001, 1200);
    stops("local t = {} for i = 1, 9000 do t[i] = i end return t", OUTCOME_RESULT);
    stops("local t = {} for i = 1, 5 do t = {t, t, t, t, t, t, t, t} end return t", OUTCOME_RESULT);
    assert_false(run_body("return {a = {b = {0 / 0}}}"));
    assert_string_equal(report.message, "a.b[1]: a number that is not finite");
}

static void a_greedy_run_does_not_hurt_the_next(void **state) {
    (void)state;
    for (int i = 0; i < 12; i++)
        gives("local t = {} for i = 1, 9000 do t[i] = {i, i} end return {n = #t}", "{\"n\":9000}");
    assert_true(sandbox_bytes(sb) < 2 * 1024 * 1024);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(endless_loops_stop),
        TEST(the_stop_names_its_line),
        TEST(loading_has_a_budget_too),
        TEST(the_clock_is_a_net),
        TEST(memory_bombs_stop),
        TEST(long_texts_are_refused),
        TEST(pattern_bombs_stop),
        TEST(sort_survives_its_comparator),
        TEST(recursion_ends),
        TEST(error_objects_do_no_harm),
        TEST(what_is_absent_says_so),
        TEST(numbers_of_64_bits_open_no_door),
        TEST(bytecode_is_refused),
        TEST(a_text_that_is_known_acts_the_same),
        TEST(wide_literals_live_through_a_collection),
        TEST(what_is_kept_of_texts_is_bounded),
        TEST(nothing_survives_a_run),
        TEST(run_functions_keep_no_state_however_they_try),
        TEST(bad_results_are_refused),
        TEST(large_results_are_refused),
        TEST(a_greedy_run_does_not_hurt_the_next),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
