// link: script
/* What rule code may do: the functions that it is offered, its input, its manifest and its config. */
#include "sandbox_fixture.h"

static void case_and_accents_are_unicode(void **state) {
    (void)state;
    gives(
        "return {text.lower('ĐÀ LẠT'), text.upper('strasse đ'), text.fold('Đà Lạt Thịnh'), text.fold('ÆØÅ ﬁ Straße')}",
        "[\"đà lạt\",\"STRASSE Đ\",\"da lat thinh\",\"aeoa fi strasse\"]");
    gives("return {text.fold('\\255\\254a') == '\\255\\254a', text.fold(''), ('É'):lower()}", "[true,\"\",\"É\"]");
    fails("return text.fold(5, {}) .. text.fold({})", "string expected");
}

static void a_reason_is_told(void **state) {
    (void)state;
    gives("return nil, 'not today'", "null");
    assert_string_equal(report.reason, "not today");
    gives("return {1}, 'not a reason'", "[1]");
    assert_string_equal(report.reason, "");
}

static void values_print_without_addresses(void **state) {
    (void)state;
    gives("return {tostring(5), tostring(0.5), tostring(2^53), tostring(nil), tostring({}), tostring(pcall), "
          "tostring(true), tostring(-0.0)}",
          "[\"5\",\"0.5\",\"9007199254740992\",\"nil\",\"table\",\"function\",\"true\",\"0\"]");
    gives("return {string.format('%s|%5d|%-5s|%.2f|%x|%05d|%%|%c', {}, 42, 'ab', 1.005, 255, 7, 65)}",
          "[\"table|   42|ab   |1.00|ff|00007|%|A\"]");
    gives("return {tonumber('12'), tonumber('0x10'), tonumber('z', 36), tonumber(' 7 '), tonumber('7x') == nil, "
          "tonumber('') == nil, tonumber(('1'):rep(65)) == nil}",
          "[12,16,35,7,true,true,true]");
}

static void pairs_goes_in_order(void **state) {
    (void)state;
    gives("local t, out = {b = 1, a = 2, [3] = 3, [1] = 4, [-1] = 5, ['10'] = 6, [true] = 7}, {} for k in pairs(t) do "
          "out[#out + 1] = tostring(k) end return out",
          "[\"-1\",\"1\",\"3\",\"10\",\"a\",\"b\",\"true\"]");
    gives("local t, out = {x = 1, y = 2, z = 3}, {} for k in pairs(t) do t.y = nil out[#out + 1] = k end return out",
          "[\"x\",\"z\"]");
    gives("local n = 0 for i, v in pairs({10, 20, 30}) do n = n * 100 + i + v end return {n}", "[112233]");
    fails("for k in pairs({[{}] = 1}) do end", "keys");
}

static void sorting_is_stable(void **state) {
    (void)state;
    gives("local t = {} for i = 1, 200 do t[i] = {k = i % 7, i = i} end table.sort(t, function(a, b) return a.k < b.k "
          "end) "
          "for i = 2, 200 do assert(t[i - 1].k < t[i].k or (t[i - 1].k == t[i].k and t[i - 1].i < t[i].i)) end return "
          "{ok = true}",
          "{\"ok\":true}");
    gives("local t = {'b', 'a', 'C'} table.sort(t) return t", "[\"C\",\"a\",\"b\"]");
    gives("local t = {1, 2, 3} table.insert(t, 2, 9) local r = table.remove(t, 1) table.insert(t, 7) return {r, t[1], "
          "t[2], t[3], t[4], #t}",
          "[1,9,2,3,7,4]");
}

static void the_ends_of_strings(void **state) {
    (void)state;
    gives("return {('hello'):sub(2, 3), ('hello'):sub(-3), ('hello'):sub(0), ('hello'):sub(9), ('abc'):byte(-1), "
          "('aBc'):upper(), ('ABC'):lower(), ('abc'):reverse(), #('abc'), ('ab'):rep(3), string.char(72, 105)}",
          "[\"el\",\"llo\",\"hello\",\"\",99,\"ABC\",\"abc\",\"cba\",3,\"ababab\",\"Hi\"]");
}

/* Each pattern in the sandbox and in stock Lua. */
static void patterns_agree_with_stock_lua(void **state) {
    (void)state;
    static const char *const expressions[] = {
        "('hello world'):find('o w')",
        "('hello'):find('l+')",
        "('hello'):find('xyz')",
        "('a.b'):find('.', 1, true)",
        "('hello'):find('', 10)",
        "('hello'):find('', 6)",
        "('key = value'):match('^(%w+)%s*=%s*(%w+)$')",
        "('2026-11-29'):match('(%d+)-(%d+)-(%d+)')",
        "('  trim  '):match('^%s*(.-)%s*$')",
        "('abc'):match('()b()')",
        "('THE (quick) fox'):find('%((%a+)%)')",
        "('f(a(b)c)d'):match('%b()')",
        "('THE (quick) fox'):gsub('%f[%a]%a+', 'x')",
        "('hello'):gsub('l', {l = 'L'})",
        "('hello'):gsub('', '-')",
        "('abc'):gsub('%w', '%0%0')",
        "('abc'):gsub('(a)(b)', '%2%1')",
        "('hello world'):gsub('o', '0', 1)",
        "('abc'):gsub('b', function(c) return c:upper() end)",
        "('abc'):gsub('b', function() end)",
        "('abc abc'):gsub('^abc', 'x')",
        "('a,b,,c'):gsub(',', ';')",
        "('x = 1'):gsub('%s', '')",
        "('[]]'):find('[]]')",
        "('a-b'):find('[a%-]', 2)",
        "('a-z'):match('[%a-]+')",
        "('äö'):find('ö')",
        "('aaa'):match('a-')",
        "('aaab'):match('a-b')",
        "('aXb'):match('%u')",
        "('\\0a'):find('%z')",
        "('hello'):match('.-(l+)(.*)')",
        "('aa bb'):match('(%a)%1 (%a)%2')",
        "('hello'):match('h.-o$')",
        "('$5'):match('%$(%d)')",
        "('a$b'):match('a$b')",
        "('^a'):match('%^a')",
        "('abc'):find('b', -2)",
        "('abc'):find('b', -100)",
        "('a\\nb'):match('a.b')",
        "('1.5e10'):match('^[%d%.]+e%d+$')",
        "('x'):match('[^%a]')",
        "('x1'):match('[^%a]')",
        "('word'):match('%w*'):len()",
        "('AbC'):gsub('%l', '.')",
        "(' a b '):gsub('%s+', ' ')",
        "('abc'):match('')",
        "('abc'):gsub('.', {a = 1, b = true})",
    };
    lua_State *stock = luaL_newstate();
    assert_non_null(stock);
    luaL_openlibs(stock);
    for (size_t i = 0; i < sizeof expressions / sizeof *expressions; i++) {
        char code[400];
        assert_true(snprintf(code, sizeof code,
                             "local t = {pcall(function() return %s end)} local out = {} for i = 1, 12 do out[i] = "
                             "t[i] == nil and 'nil' or tostring(t[i]) end return %s",
                             expressions[i], "out") > 0);
        /* Errors carry another place: only that there was one is compared. */
        char compared[440];
        assert_true(snprintf(compared, sizeof compared, "%s", code) > 0);
        assert_int_equal(luaL_dostring(stock, compared), 0);
        struct buf expected = {0};
        struct error err;
        assert_true(json_encode(stock, -1, &expected, &err));
        assert_true(buf_byte(&expected, '\0'));
        lua_settop(stock, 0);
        if (!run_body(code)) fail_msg("%s: %s", expressions[i], report.message);
        bool both_failed = strncmp(result, "[\"false\"", 8) == 0 && strncmp(expected.data, "[\"false\"", 8) == 0;
        if (!both_failed && strcmp(result, expected.data) != 0)
            fail_msg("%s gave %s, stock Lua %s", expressions[i], result, expected.data);
        buf_free(&expected);
    }
    lua_close(stock);
    gives("local out = {} for k, v in ('a=1, b=2, c=3'):gmatch('(%w+)=(%w+)') do out[#out + 1] = k .. v end return out",
          "[\"a1\",\"b2\",\"c3\"]");
    gives("local out = {} for w in ('one two'):gmatch('%a*') do out[#out + 1] = w end return {#out}", "[4]");
    fails("return ('x'):find('%')", "malformed");
    fails("return ('x'):find('[a')", "malformed");
    fails("return ('x'):find('[%')", "malformed");
    fails("return ('x'):find('%b')", "malformed");
    fails("return ('x'):find('(')", "capture");
    fails("return ('x'):match(')')", "capture");
    fails("return ('x'):find('%1')", "capture");
    fails("return ('x'):gsub('x', '%2')", "capture");
}

/* A pattern is looked through for what makes it one, also where the subject is empty. */
static void a_long_pattern_costs_what_its_reading_takes(void **state) {
    (void)state;
    limits.instructions = 50000;
    stops("local p = string.rep('a', 60000) for i = 1, 100 do string.find('', p) end", OUTCOME_INSTRUCTIONS);
}

static void money_and_sets(void **state) {
    (void)state;
    gives("return {money.pct(1999, 825), money.ppm(110000, 100000), money.sum({1, 2, 3}), money.sum({{a = 5}, {a = "
          "6}}, 'a'), money.format(25000000, 'VND'), money.format(1999, 'USD')}",
          "[165,11000,6,11,\"25000000.00\",\"19.99\"]");
    gives("return money.alloc(1000, {1999, 501, 333})", "[706,177,117]");
    gives("return money.split(2698409, 3)", "[899470,899469,899470]");
    fails("return money.pct(10.5, 100)", "minor units");
    fails("return money.pct(10, 20000)", "basis points");
    fails("return money.alloc(1, {0, 0})", "sum to 0");
    fails("return money.alloc(1, {-1, 2})", "weight 1");
    gives("local s = set.of({'a', 'b', 'a'}) return {set.has({'x', 'y'}, 'y'), set.has(nil, 'y'), set.has(s, 'a'), "
          "set.has(s, 'c'), set.any({'a'}, {'c', 'a'}), set.all({'a'}, {'c', 'a'}), set.all(s, {'a', 'b'}), "
          "set.count({'a', 'b', 'a'}), set.count(s)}",
          "[true,false,true,false,true,false,true,2,2]");
}

static void words_and_times(void **state) {
    (void)state;
    gives("return {text.trim('  a '), text.starts('abc', 'ab'), text.ends('abc', 'bc'), text.contains('a.c', '.'), "
          "text.len('Việt'), text.cut('Việt Nam', 4), text.template('Buy {n} more, {x}', {n = 1}), "
          "#text.split('a,b,,c', ',')}",
          "[\"a\",true,true,true,4,\"Vi\xE1\xBB\x87t\",\"Buy 1 more, {x}\",4]");
    gives("local now = {epoch = 1795921200, year = 2026, month = 11, day = 29, hour = 10, min = 0, wday = 7, tz = "
          "'Asia/Ho_Chi_Minh'} "
          "return {dt.between(now, '09:00', '10:00'), dt.between(now, '22:00', '10:01'), dt.weekday(now), "
          "dt.add_days(now, 3).day, dt.add_days(now, 3).month, dt.format(now), dt.parse('2026-11-29T03:00:00Z'), "
          "dt.local_time(0, 'Asia/Ho_Chi_Minh').hour, time.days_between(now, {year = 2026, month = 12, day = 25})}",
          "[false,true,7,2,12,\"2026-11-29T10:00:00+07:00\",1795921200,8,26]");
}

static void input_is_a_private_copy(void **state) {
    (void)state;
    input = "{\"cart\":{\"lines\":[{\"id\":\"l1\",\"qty\":3,\"net\":3000}],\"coupon\":null},\"empty\":[]}";
    gives("local out = {} for i = 1, #input.cart.lines do local l = input.cart.lines[i] out[i] = {op = 'line_percent', "
          "line_id = l.id, units = math.floor(l.qty / 3)} end "
          "assert(input.cart.coupon == nil and #input.empty == 0) input.cart = nil return {n = #out, id = "
          "out[1].line_id}",
          "{\"id\":\"l1\",\"n\":1}");
    gives("return {#input.cart.lines}", "[1]");
}

static void lines_are_logged_up_to_a_limit(void **state) {
    (void)state;
    gives("log('a', 1, {}) log.warn('b\\nc') for i = 1, 30 do log(i) end log(('x'):rep(1000)) return {}", "{}");
    struct str log = sandbox_log(sb);
    assert_true(str_starts(log, STR("a 1 table\nb c\n1\n2\n")));
    int lines = 0;
    for (size_t i = 0; i < log.len; i++) lines += log.at[i] == '\n';
    assert_int_equal(lines, 20);
    fails("log('before') error('x')", "x");
    assert_true(str_eq(sandbox_log(sb), STR("before\n")));
}

static void errors_carry_their_line(void **state) {
    (void)state;
    assert_false(run_body("\n\nlocal x = nil\nreturn x.y"));
    assert_int_equal(report.outcome, OUTCOME_ERROR);
    assert_int_equal(report.line, 4);
    assert_string_equal(report.message, "attempt to index local 'x' (a nil value)");
    assert_string_equal(report.stack, "4:t.lua:\n");
    assert_false(run_body("local function inner(x)\nreturn x.y.z end\nlocal t = {['a\\n:\\200'] = function() local r = "
                          "inner({}) return r end}\nlocal r = t['a\\n:\\200']()\nreturn r"));
    assert_string_equal(report.stack, "2:t.lua:inner\n3:t.lua:a?:?\n4:t.lua:\n");
    assert_false(
        run_body("local function deep(n) if n == 0 then error('x') end local r = deep(n - 1) return r end deep(50)"));
    assert_true(strlen(report.stack) < 512 && report.stack[strlen(report.stack) - 1] == '\n');
    assert_true(run_body("return pcall(function() error('caught') end)"));
    assert_string_equal(report.stack, "");
    assert_false(run_body("\nerror('plain', 0)"));
    assert_int_equal(report.line, 2);
    assert_int_equal(load("return {\nhook = 'promotion', name = 't', run = function() end"), 0);
    assert_int_equal(report.line, 2);
    assert_non_null(strstr(report.message, "'}' expected"));
}

static void the_manifest_is_checked(void **state) {
    (void)state;
    static const struct {
        const char *source, *part;
    } bad[] = {
        {"return 5", "must return a table"},
        {"return {}", "hook"},
        {"return {hook = 'promotion', name = 't'}", "run must be"},
        {"return {hook = 'promotion', name = '', run = function() end}", "name"},
        {"return {hook = 'promotion', name = 't', run = function() end, prio = 1}", "'prio'"},
        {"return {hook = 'promotion', name = 't', run = function() end, priority = 5000}", "priority"},
        {"return {hook = 'promotion', name = 't', run = function() end, priority = 1.5}", "priority"},
        {"return {hook = 'promotion', name = 't', run = function() end, on_error = 'explode'}", "on_error"},
        {"return {hook = 'promotion', name = 't', run = function() end, config = 5}", "config"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(load(bad[i].source), 0);
        if (!strstr(report.message, bad[i].part)) fail_msg("%s: %s", bad[i].source, report.message);
    }
    struct sandbox_manifest m;
    assert_true(sandbox_load(sb, "x.lua",
                             STR("return {hook = 'tax.resolve', name = 'VAT', version = 3, priority = -5, on_error = "
                                 "'block', run = function() end}"),
                             &m, &report) > 0);
    assert_string_equal(m.hook, "tax.resolve");
    assert_string_equal(m.name, "VAT");
    assert_string_equal(m.on_error, "block");
    assert_int_equal(m.priority, -5);
    assert_int_equal(m.version, 3);
}

static void config_is_checked_and_filled_in(void **state) {
    (void)state;
    int rule = load("return {hook = 'promotion', name = 't', config = schema.object{ category = schema.uuid, label = "
                    "schema.string{max = 5, default = 'Tea'}, "
                    "buy = schema.integer{min = 1, max = 9, default = 2}, days = schema.optional(schema.weekdays), "
                    "mode = schema.enum{'a', 'b', default = 'a'}, "
                    "tags = schema.list(schema.string, {max = 2, default = {}}), off = schema.bps{default = 500}, code "
                    "= schema.optional(schema.string{pattern = '^%u+$'}) }, "
                    "run = function(input, config) return config end}");
    if (!rule) fail_msg("%s", report.message);
    static const struct {
        const char *json, *part;
    } bad[] = {
        {"{}", "config.category: is required"},
        {"{\"category\":\"x\"}", "config.category: must be a uuid"},
        {"{\"category\":\"0192f3a4-7c1e-7a10-9f00-3c5d7e9a1b2c\",\"label\":\"too long\"}",
         "config.label: must have at most 5"},
        {"{\"category\":\"0192f3a4-7c1e-7a10-9f00-3c5d7e9a1b2c\",\"buy\":0}", "config.buy: must be from 1 to 9"},
        {"{\"category\":\"0192f3a4-7c1e-7a10-9f00-3c5d7e9a1b2c\",\"buy\":1.5}", "config.buy: must be a whole number"},
        {"{\"category\":\"0192f3a4-7c1e-7a10-9f00-3c5d7e9a1b2c\",\"mode\":\"c\"}", "config.mode: is not one of"},
        {"{\"category\":\"0192f3a4-7c1e-7a10-9f00-3c5d7e9a1b2c\",\"days\":[8]}", "config.days"},
        {"{\"category\":\"0192f3a4-7c1e-7a10-9f00-3c5d7e9a1b2c\",\"tags\":[\"a\",5]}", "config.tags[2]: must be text"},
        {"{\"category\":\"0192f3a4-7c1e-7a10-9f00-3c5d7e9a1b2c\",\"tags\":[\"a\",\"b\",\"c\"]}",
         "config.tags: has too many"},
        {"{\"category\":\"0192f3a4-7c1e-7a10-9f00-3c5d7e9a1b2c\",\"extra\":1}", "config.extra: is not a field"},
        {"{\"category\":\"0192f3a4-7c1e-7a10-9f00-3c5d7e9a1b2c\",\"code\":\"ab\"}", "config.code"},
        {"[1]", "config"},
        {"{", "Unexpected end"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_false(sandbox_configure(sb, rule, str_of(bad[i].json), &report));
        if (!strstr(report.message, bad[i].part)) fail_msg("%s: %s", bad[i].json, report.message);
    }
    if (!sandbox_configure(
            sb, rule, STR("{\"category\":\"0192f3a4-7c1e-7a10-9f00-3c5d7e9a1b2c\",\"days\":[6,7],\"code\":\"AB\"}"),
            &report))
        fail_msg("%s", report.message);
    assert_true(run_rule(rule));
    static const char *const parts[] = {"\"label\":\"Tea\"", "\"buy\":2",       "\"days\":[6,7]", "\"mode\":\"a\"",
                                        "\"off\":500",       "\"code\":\"AB\"", "\"tags\":"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (!strstr(result, parts[i])) fail_msg("%s lacks %s", result, parts[i]);
    int bare = load("return {hook = 'promotion', name = 't', run = function(input, config) return config end}");
    assert_true(bare > 0);
    assert_true(sandbox_configure(sb, bare, STR("{}"), &report));
    assert_false(sandbox_configure(sb, bare, STR("{\"a\":1}"), &report));
}

static bool build_fails(lua_State *L, void *data, struct error *err) {
    (void)L;
    (void)data;
    return error_set(err, ERR_INVALID, "no such cart");
}

static void a_config_is_64_kib_at_most(void **state) {
    (void)state;
    static char json[100000];
    int rule =
        load("return { hook = 'promotion', name = 't', config = schema.object{ l = schema.list(schema.string) }, "
             "run = function(input, config) return {n = #config.l} end }");
    assert_true(rule > 0);
    for (int items = 15; items <= 17; items += 2) { /* of 4,000 characters each */
        size_t n = (size_t)snprintf(json, sizeof json, "{\"l\":[");
        for (int i = 0; i < items; i++) {
            json[n++] = '"';
            memset(json + n, 'x', 4000);
            n += 4000;
            json[n++] = '"';
            json[n++] = i + 1 < items ? ',' : ']';
        }
        json[n++] = '}';
        assert_int_equal(sandbox_configure(sb, rule, str_n(json, n), &report), items == 15);
    }
    assert_non_null(strstr(report.message, "larger than 64 KiB"));
    assert_true(run_rule(rule));
    assert_string_equal(result, "{\"n\":15}");
}

static void a_builder_may_refuse(void **state) {
    (void)state;
    int rule = load("return {hook = 'promotion', name = 't', run = function() return 1 end}");
    assert_false(sandbox_run(sb, rule, &limits, build_fails, read_json, NULL, &report));
    assert_non_null(strstr(report.message, "no such cart"));
    assert_false(sandbox_run(sb, 99, &limits, build, read_json, NULL, &report));
    assert_true(run_rule(rule));
}

static void data_chunks_give_their_value(void **state) {
    (void)state;
    assert_true(
        sandbox_data(sb, "list.lua", STR("return { {file = 'a.lua', priority = 5}, }"), read_json, NULL, &report));
    assert_true(strstr(result, "\"file\":\"a.lua\"") != NULL);
    assert_false(sandbox_data(sb, "list.lua", STR("return {"), read_json, NULL, &report));
    assert_int_equal(report.line, 1);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(case_and_accents_are_unicode),
        TEST(a_reason_is_told),
        TEST(values_print_without_addresses),
        TEST(pairs_goes_in_order),
        TEST(sorting_is_stable),
        TEST(the_ends_of_strings),
        TEST(patterns_agree_with_stock_lua),
        TEST(a_long_pattern_costs_what_its_reading_takes),
        TEST(money_and_sets),
        TEST(words_and_times),
        TEST(input_is_a_private_copy),
        TEST(lines_are_logged_up_to_a_limit),
        TEST(errors_carry_their_line),
        TEST(the_manifest_is_checked),
        TEST(config_is_checked_and_filled_in),
        TEST(a_config_is_64_kib_at_most),
        TEST(a_builder_may_refuse),
        TEST(data_chunks_give_their_value),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
