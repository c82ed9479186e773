// link: script
/* JSON text and Lua values, both ways, and against lua-cjson where that is installed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "script/bind.h"
#include "script/json.h"
#include "script/vm.h"

static struct vm *vm;
static lua_State *L;

static int setup(void **state) {
    (void)state;
    static const luaL_Reg modules[] = {{"core.json", luaopen_core_json}, {NULL, NULL}};
    struct error err = {0};
    vm = vm_new_with(modules, NULL, &err);
    assert_non_null(vm);
    L = vm_state(vm);
    assert_true(vm_run(vm, "json = require 'core.json'", "=setup", &err));
    return 0;
}

static int teardown(void **state) {
    (void)state;
    vm_free(vm);
    return 0;
}

/* decode and encode again. NULL: `err` has the message. */
static const char *again(const char *text, size_t len, struct error *err) {
    static struct buf out;
    buf_clear(&out);
    int top = lua_gettop(L);
    if (!json_decode(L, str_n(text, len), err)) {
        assert_int_equal(lua_gettop(L), top);
        return NULL;
    }
    assert_int_equal(lua_gettop(L), top + 1);
    assert_true(json_encode(L, -1, &out, err));
    assert_int_equal(lua_gettop(L), top + 1);
    lua_pop(L, 1);
    assert_true(buf_byte(&out, '\0'));
    static char kept[4096];
    assert_true(out.len <= sizeof kept);
    memcpy(kept, out.data, out.len);
    buf_free(&out);
    return kept;
}

static void same(const char *text, const char *expected) {
    struct error err = {0};
    const char *got = again(text, strlen(text), &err);
    if (!got) fail_msg("%s: %s", text, err.message);
    assert_string_equal(got, expected);
}

static void refused(const char *text, size_t len, const char *message) {
    struct error err = {0};
    const char *got = again(text, len, &err);
    if (got) fail_msg("%s was taken as %s", text, got);
    assert_string_equal(err.message, message);
}

static void check(const char *code) {
    struct error err = {0};
    if (!vm_run(vm, code, "=test", &err)) fail_msg("%s", err.message);
}

#define REFUSED(text, message) refused(text, sizeof(text) - 1, message)

static void values_come_back_as_they_went(void **state) {
    (void)state;
    same("{}", "{}");
    same("[]", "[]");
    same(" [ ] ", "[]");
    same("{\"a\":[]}", "{\"a\":[]}");
    same("[[],{},null,true,false]", "[[],{},null,true,false]");
    same("[null,null]", "[null,null]");
    same("null", "null");
    same("\"\"", "\"\"");
    same("[1,2,3]", "[1,2,3]");
    same("{\"a\":{\"b\":{\"c\":[{\"d\":1}]}}}", "{\"a\":{\"b\":{\"c\":[{\"d\":1}]}}}");
    same("\t\r\n [1 , 2 ]\n", "[1,2]");
    same("{\"a\":1,\"a\":2}", "{\"a\":2}");
}

static void numbers_are_exact_or_text(void **state) {
    (void)state;
    same("[0,-0,1,-1,10,123456789012345]", "[0,0,1,-1,10,123456789012345]");
    same("9007199254740992", "9007199254740992");
    same("-9007199254740992", "-9007199254740992");
    same("9007199254740993", "\"9007199254740993\"");
    same("123456789012345678901234567890", "\"123456789012345678901234567890\"");
    same("-9223372036854775808", "\"-9223372036854775808\"");
    same("0.1", "0.1");
    same("19.99", "19.99");
    same("1e3", "1000");
    same("1E+2", "100");
    same("1.5e-7", "1.5e-07");
    same("3.141592653589793", "3.141592653589793");
    same("2.2250738585072014e-308", "2.2250738585072014e-308");
    same("1.7976931348623157e308", "1.7976931348623157e+308");
    same("5e-324", "4.94065645841247e-324");
    same("1e-400", "0");
    same("100000000000000000000.0", "1e+20");
    same("19912474991246789.25", "19912474991246788.0");
    same("0.30000000000000004", "0.30000000000000004");
    same("123456789.123456789123456789", "123456789.12345679");
    REFUSED("1e999", "Number out of range in JSON at position 0");
    REFUSED("[1, 1e400]", "Number out of range in JSON at position 4");
}

static void strings_are_utf8(void **state) {
    (void)state;
    same("\"\\u0041\\u00e9\\u20ac\\ud83d\\ude00\"", "\"A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\"");
    same("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\\"\\\\/\\u0008\\u000c\\n\\r\\t\"");
    same("\"\\u0000x\"", "\"\\u0000x\"");
    same("\"ti\xE1\xBA\xBFng Vi\xE1\xBB\x87t\"", "\"ti\xE1\xBA\xBFng Vi\xE1\xBB\x87t\"");
    REFUSED("\"\xC0\x80\"", "Invalid UTF-8 in JSON at position 1");
    REFUSED("\"a\xED\xA0\x80\"", "Invalid UTF-8 in JSON at position 2");
    REFUSED("\"\xF5\x80\x80\x80\"", "Invalid UTF-8 in JSON at position 1");
    REFUSED("\"\xE2\x82\"", "Invalid UTF-8 in JSON at position 1");
    REFUSED("\"\\ud83d\"", "Half of a surrogate pair in JSON at position 1");
    REFUSED("\"\\ude00\"", "Half of a surrogate pair in JSON at position 1");
    REFUSED("\"\\ud83d\\u0041\"", "Half of a surrogate pair in JSON at position 1");
    REFUSED("\"\\u12g4\"", "Unexpected token g in JSON at position 5");
    REFUSED("\"a\nb\"", "Unexpected token \n in JSON at position 2");
    REFUSED("\"\\x\"", "Unexpected token x in JSON at position 2");
    REFUSED("\"abc", "Unexpected end of JSON input");
    REFUSED("\"abc\\", "Unexpected end of JSON input");
    REFUSED("\"\\u00", "Unexpected end of JSON input");
    char big[4000];
    for (size_t i = 0; i + 2 <= sizeof big - 4; i += 2) memcpy(big + 1 + i, "\\n", 2);
    big[0] = big[sizeof big - 3] = '"';
    struct error err = {0};
    const char *got = again(big, sizeof big - 2, &err);
    assert_non_null(got);
    assert_memory_equal(got, big, sizeof big - 2);
}

/* Strings are read and written several bytes at a time: each byte that needs a look is found wherever it lies. */
static void every_place_of_a_string_is_looked_at(void **state) {
    (void)state;
    static const struct {
        const char *raw, *text;
    } odd[] = {{"\x01", "\\u0001"}, {"\x1f", "\\u001f"}, {"\"", "\\\""},           {"\\", "\\\\"},
               {"\n", "\\n"},       {"\x7f", "\x7f"},    {"\xC3\xA9", "\xC3\xA9"}, {"!", "!"}};
    struct buf raw = {0}, text = {0}, out = {0};
    struct error err = {0};
    for (size_t len = 0; len < 50; len++) {
        for (size_t place = 0; place <= len; place++) {
            for (size_t k = 0; k < sizeof odd / sizeof odd[0]; k++) {
                buf_clear(&raw);
                buf_clear(&text);
                buf_clear(&out);
                assert_true(buf_byte(&text, '"'));
                for (size_t i = 0; i <= len; i++) {
                    char plain = (char)(' ' + (i * 7 + 3) % 94);
                    if (plain == '"' || plain == '\\') plain = '~';
                    struct str r = i == place ? str_of(odd[k].raw) : str_n(&plain, 1);
                    struct str t = i == place ? str_of(odd[k].text) : str_n(&plain, 1);
                    assert_true(buf_add(&raw, r) && buf_add(&text, t));
                }
                assert_true(buf_byte(&text, '"'));
                lua_pushlstring(L, raw.data, raw.len);
                assert_true(json_encode(L, -1, &out, &err));
                assert_int_equal(out.len, text.len);
                assert_memory_equal(out.data, text.data, text.len);
                assert_true(json_decode(L, buf_str(&out), &err));
                assert_true(lua_rawequal(L, -1, -2));
                lua_pop(L, 2);
                /* Unescaped, with nothing of ours behind it. */
                if ((unsigned char)odd[k].raw[0] >= 0x20) continue;
                buf_clear(&out);
                assert_true(buf_byte(&out, '"') && buf_add(&out, buf_str(&raw)) && buf_byte(&out, '"'));
                char *exact = malloc(out.len);
                assert_non_null(exact);
                memcpy(exact, out.data, out.len);
                assert_false(json_decode(L, str_n(exact, out.len), &err));
                assert_false(json_decode(L, str_n(exact, place + 1), &err));
                free(exact);
            }
        }
    }
    buf_free(&raw);
    buf_free(&text);
    buf_free(&out);
}

static void tables_of_any_size_follow_each_other(void **state) {
    (void)state;
    check(
        "local function object(n) local t = {} for i = 1, n do t['k' .. i] = i end return t end "
        "local function list(n) local t = json.array{} for i = 1, n do t[i] = i end return t end "
        "for _, n in ipairs{ 70, 1, 0, 3, 200, 5, 64, 65, 2 } do "
        "  local back = json.decode(json.encode{ a = object(n), b = list(n), c = { object(2), object(n) } }) "
        "  local count = 0 for k, v in pairs(back.a) do assert(k == 'k' .. v) count = count + 1 end assert(count == n) "
        "  assert(#back.b == n) for i = 1, n do assert(back.b[i] == i) end "
        "  assert(back.c[1].k2 == 2 and back.c[2].k1 == (n > 0 and 1 or nil)) end");
}

static void errors_name_the_token_and_its_place(void **state) {
    (void)state;
    REFUSED("", "Unexpected end of JSON input");
    REFUSED("   ", "Unexpected end of JSON input");
    REFUSED("{\"a\":1,}", "Unexpected token } in JSON at position 7");
    REFUSED("[1,]", "Unexpected token ] in JSON at position 3");
    REFUSED("[1 2]", "Unexpected number in JSON at position 3");
    REFUSED("{\"a\" \"b\"}", "Unexpected string in JSON at position 5");
    REFUSED("{a:1}", "Unexpected token a in JSON at position 1");
    REFUSED("{\"a\":1", "Unexpected end of JSON input");
    REFUSED("nul", "Unexpected end of JSON input");
    REFUSED("nulx", "Unexpected token x in JSON at position 3");
    REFUSED("true false", "Unexpected token f in JSON at position 5");
    REFUSED("01", "Unexpected number in JSON at position 1");
    REFUSED("1.", "Unexpected end of JSON input");
    REFUSED("1.x", "Unexpected token x in JSON at position 2");
    REFUSED("-", "Unexpected end of JSON input");
    REFUSED("+1", "Unexpected token + in JSON at position 0");
    REFUSED("\xEF\xBB\xBF{}", "Unexpected byte order mark in JSON at position 0");
    REFUSED("[\xEF\xBB\xBF]", "Unexpected byte order mark in JSON at position 1");
    REFUSED(".5", "Unexpected token . in JSON at position 0");
    REFUSED("NaN", "Unexpected token N in JSON at position 0");
    REFUSED("'a'", "Unexpected token ' in JSON at position 0");
    REFUSED("[\"\xF0\x9F\x98\x80\", x]", "Unexpected token x in JSON at position 7");
    REFUSED("\xE2\x82\xAC", "Unexpected token \xE2\x82\xAC in JSON at position 0");
    REFUSED("/* c */ 1", "Unexpected token / in JSON at position 0");
    refused("1\0", 2, "Unexpected token \\u0000 in JSON at position 1");
}

static void depth_is_bounded(void **state) {
    (void)state;
    char deep[300];
    memset(deep, '[', 65);
    memset(deep + 65, ']', 65);
    deep[130] = '\0';
    struct error err = {0};
    assert_false(json_decode(L, str_n(deep, 130), &err));
    assert_int_equal(err.kind, ERR_LIMIT);
    assert_true(json_decode(L, str_n(deep + 1, 128), &err));
    struct buf out = {0};
    assert_true(json_encode(L, -1, &out, &err));
    assert_int_equal(out.len, 128);
    lua_newtable(L);
    lua_insert(L, -2);
    lua_rawseti(L, -2, 1);
    buf_clear(&out);
    assert_false(json_encode(L, -1, &out, &err));
    assert_int_equal(err.kind, ERR_LIMIT);
    lua_pop(L, 1);
    buf_free(&out);
}

static void lua_sees_values_and_errors(void **state) {
    (void)state;
    check("local v = json.decode('{\"a\":[1,null,\"x\"],\"b\":null}') assert(#v.a == 3 and v.a[2] == json.null and v.b "
          "== json.null and v.a[3] == 'x')");
    check("local v, e = json.decode('{\"a\":1,}') assert(v == nil and e.kind == 'invalid' and e.message == 'Unexpected "
          "token } in JSON at position 7')");
    check("assert(json.encode{1, 2, {a = 'x'}} == '[1,2,{\"a\":\"x\"}]')");
    check("assert(json.encode{} == '{}' and json.encode(json.array{}) == '[]' and json.encode(json.empty_array) == "
          "'[]' and json.encode{a = json.empty_array} == '{\"a\":[]}')");
    check("assert(json.is_array(json.empty_array) and json.is_array(json.array{}) and json.is_array{1} and not "
          "json.is_array{} and not json.is_array{a = 1} and not json.is_array(1))");
    check("assert(not pcall(function() json.empty_array[1] = 1 end))");
    check("local t = json.decode('[]') assert(json.encode{t} == '[[]]') t[1] = 5 assert(json.encode(t) == '[5]')");
    check("assert(json.encode(json.object({'z', 'a', 'gone', 'm'}, {a = 1, z = 2, m = json.null})) == "
          "'{\"z\":2,\"a\":1,\"m\":null}')");
    check("local s = json.encode(json.object({'z'}, {a = 1, z = 2})) assert(s == '{\"z\":2,\"a\":1}')");
    check("assert(json.encode(json.object({'z', 'z'}, {z = 2})) == '{\"z\":2}')");
    check("assert(json.encode(123456789012LL) == '123456789012' and json.encode(18446744073709551615ULL) == "
          "'18446744073709551615' and json.encode(-5LL) == '-5')");
    check("local t = {} t[3] = 'c' t[2] = 'b' t[1] = 'a' assert(json.encode(t) == '[\"a\",\"b\",\"c\"]')");
}

static void sorted_members_come_in_the_order_of_their_names(void **state) {
    (void)state;
    struct error err = {0};
    struct buf out = {0};
    assert_true(json_decode(L, STR("{\"b\":{\"z\":1,\"a\":[{\"y\":1,\"x\":2}]},\"a\":1,\"ab\":[],\"B\":null}"), &err));
    int top = lua_gettop(L);
    assert_true(json_encode_sorted(L, -1, &out, &err));
    assert_int_equal(lua_gettop(L), top);
    assert_true(str_eq(buf_str(&out), STR("{\"B\":null,\"a\":1,\"ab\":[],\"b\":{\"a\":[{\"x\":2,\"y\":1}],\"z\":1}}")));
    buf_free(&out);
    lua_pop(L, 1);
}

/* Whatever the hashes of this process put first: more names than are sorted in place, most alike in their first bytes.
 */
static void many_sorted_members_and_those_beside_an_order_are_sorted_too(void **state) {
    (void)state;
    check("wide = {} for i = 1, 200 do wide['a name of a member ' .. i] = i end wide['a'] = 0 wide['a\\0'] = 0");
    check("beside = json.object({'z', 'm'}, {a = 1, m = 2, q = 3, z = 4, b = 5})");
    struct error err = {0};
    struct buf wide = {0}, beside = {0};
    lua_getglobal(L, "wide");
    assert_true(json_encode_sorted(L, -1, &wide, &err));
    lua_getglobal(L, "beside");
    assert_true(json_encode_sorted(L, -1, &beside, &err));
    assert_true(str_eq(buf_str(&beside), STR("{\"z\":4,\"m\":2,\"a\":1,\"b\":5,\"q\":3}")));
    lua_pushlstring(L, wide.data, wide.len);
    lua_setglobal(L, "text");
    check("local last, n = '', 0 for name in text:gmatch('\"([^\"]+)\":') do name = name:gsub('\\\\u0000', '\\0') "
          "assert(last < name, name) last, n = name, n + 1 end assert(n == 202, n)");
    buf_free(&wide);
    buf_free(&beside);
    lua_settop(L, 0);
}

static void what_cannot_be_json_is_refused_with_its_path(void **state) {
    (void)state;
    check("local ok, e = pcall(json.encode, {a = {{b = 0/0}}}) assert(not ok and e:find('not finite', 1, true) and "
          "e:find('.a[1].b', 1, true), e)");
    check("assert(not pcall(json.encode, {1/0}) and not pcall(json.encode, {[1] = 1, [3] = 3}) and not "
          "pcall(json.encode, {1, x = 2}) and not pcall(json.encode, {x = 2, 1}))");
    check("assert(not pcall(json.encode, print) and not pcall(json.encode, {print}) and not pcall(json.encode, {[true] "
          "= 1}) and not pcall(json.encode, {[1.5] = 1}) and not pcall(json.encode, {[0] = 1}))");
    check("assert(not pcall(json.encode, json.array{a = 1}))");
    check("local t = {} t.t = t assert(not pcall(json.encode, t))");
    check("assert(not pcall(json.encode, require('ffi').new('int[2]')))");
    check("assert(json.encode('a\\255b') == '\"a\\239\\191\\189b\"')");
}

static void decoding_agrees_with_cjson(void **state) {
    (void)state;
    check("local found, cjson = pcall(require, 'cjson') if not found then return end "
          "local function same(a, b) if a == cjson.null then return b == json.null end "
          "  if type(a) ~= 'table' then return a == b end "
          "  for k, v in pairs(a) do if not same(v, b[k]) then return false end end "
          "  for k in pairs(b) do if a[k] == nil then return false end end return true end "
          "local seed = 7 local function rnd(n) seed = (seed * 1103515245 + 12345) % 2147483648 return math.floor(seed "
          "/ 65536) % n end "
          "local function make(depth) local k = rnd(depth > 4 and 6 or 8) "
          "  if k == 0 then return cjson.null elseif k == 1 then return rnd(2) == 1 elseif k == 2 then return "
          "rnd(100000) - 50000 "
          "  elseif k == 3 then return (rnd(100000) - 50000) / 2 ^ rnd(4) elseif k < 6 then local s = {} for i = 1, "
          "rnd(20) do s[i] = string.char(rnd(127) + 1) end return table.concat(s) .. 'é€😀' "
          "  elseif k == 6 then local t = {} for i = 1, rnd(12) + 1 do t[i] = make(depth + 1) end return t "
          "  else local t = {} for i = 1, rnd(12) + 1 do t['k' .. rnd(1000)] = make(depth + 1) end return t end end "
          "for i = 1, 300 do local text = cjson.encode{make(0)} local mine = assert(json.decode(text)) "
          "  assert(same(cjson.decode(text), mine), text) local back = json.encode(mine) "
          "assert(same(cjson.decode(back), mine), back) end");
}

/* Known keys: whatever was decoded before, and whoever took whose place, a text gives its own keys. */
static void known_keys_never_mix(void **state) {
    (void)state;
    /* Many of these have the same length, first, middle and last byte, and so the same place. */
    check("math.randomseed(7)\n"
          "local function letter() return string.char(96 + math.random(3)) end\n"
          "for round = 1, 500 do\n"
          "  local want, parts, count = {}, {}, math.random(30)\n"
          "  for i = 1, count do\n"
          "    local key = ('k%s%sm%s%sz'):format(letter(), letter(), letter(), letter()):sub(1, math.random(7))\n"
          "    want[key] = i\n"
          "    parts[i] = ('\"%s\": {\"%s\":%d, \"n\":[{\"%s\":1}]}'):format(key, key, i, key)\n"
          "  end\n"
          "  if round % 50 == 0 then collectgarbage() end\n"
          "  local got = json.decode('{' .. table.concat(parts, ',') .. '}')\n"
          "  for key, i in pairs(want) do\n"
          "    assert(got[key][key] == i and got[key].n[1][key] == 1)\n"
          "    got[key][key], got[key].n = nil, nil\n"
          "    assert(next(got[key]) == nil)\n"
          "    got[key] = nil\n"
          "  end\n"
          "  assert(next(got) == nil)\n"
          "end");
    /* A key that only begins like the foreseen one, ends with the text, is long, or is written with an escape. */
    for (int i = 0; i < 2; i++) {
        same("{\"total\":1}", "{\"total\":1}");
        same("{\"totals\":1}", "{\"totals\":1}");
        same("{\"tota\":1}", "{\"tota\":1}");
        same("{\"\":1}", "{\"\":1}");
        same("{\"total\":{\"total\":[{\"total\":{\"total\":1}}]}}",
             "{\"total\":{\"total\":[{\"total\":{\"total\":1}}]}}");
        REFUSED("{\"total", "Unexpected end of JSON input");
        REFUSED("{\"total\"", "Unexpected end of JSON input");
        same("{\"t\\u006ftal\":1}", "{\"total\":1}");
        same("{\"a_key_of_thirty_one_characters_\":1}", "{\"a_key_of_thirty_one_characters_\":1}");
        same("{\"a_key_of_thirty_characters____\":1}", "{\"a_key_of_thirty_characters____\":1}");
    }
}

/* A second VM that keeps keys takes them over; the first decodes without. */
static void two_vms_do_not_share_keys(void **state) {
    (void)state;
    static const luaL_Reg modules[] = {{"core.json", luaopen_core_json}, {NULL, NULL}};
    struct error err = {0};
    same("{\"mine\":1}", "{\"mine\":1}");
    struct vm *other = vm_new_with(modules, NULL, &err);
    assert_non_null(other);
    assert_true(vm_run(other, "json = require 'core.json' assert(json.decode('{\"mine\":2}').mine == 2)", "=t", &err));
    same("{\"mine\":1}", "{\"mine\":1}");
    assert_true(vm_run(other, "assert(json.decode('{\"mine\":2}').mine == 2)", "=t", &err));
    vm_free(other);
    same("{\"mine\":1}", "{\"mine\":1}");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_come_back_as_they_went),
        cmocka_unit_test(numbers_are_exact_or_text),
        cmocka_unit_test(strings_are_utf8),
        cmocka_unit_test(every_place_of_a_string_is_looked_at),
        cmocka_unit_test(tables_of_any_size_follow_each_other),
        cmocka_unit_test(errors_name_the_token_and_its_place),
        cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(lua_sees_values_and_errors),
        cmocka_unit_test(sorted_members_come_in_the_order_of_their_names),
        cmocka_unit_test(many_sorted_members_and_those_beside_an_order_are_sorted_too),
        cmocka_unit_test(what_cannot_be_json_is_refused_with_its_path),
        cmocka_unit_test(known_keys_never_mix),
        cmocka_unit_test(two_vms_do_not_share_keys),
        cmocka_unit_test(decoding_agrees_with_cjson),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
