// link: script
/* Civil time, ISO 8601 and time zones; the C library is the witness. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "runtime/clock.h"
#include "script/bind.h"
#include "script/calendar.h"
#include "script/vm.h"

static int64_t parsed(const char *text) {
    int64_t ms = -1;
    if (!calendar_parse(str_of(text), NULL, &ms)) fail_msg("%s was refused", text);
    return ms;
}

static void iso_texts_are_read(void **state) {
    (void)state;
    assert_int_equal(parsed("1970-01-01"), 0);
    assert_int_equal(parsed("2026-11-29T03:00:01.204Z"), 1795921201204);
    assert_int_equal(parsed("2026-11-29 03:00:01.204"), 1795921201204);
    assert_int_equal(parsed("2026-11-29T10:00:01.2049999+07:00"), 1795921201204);
    assert_int_equal(parsed("2026-11-29T10:00:01+0700"), 1795921201000);
    assert_int_equal(parsed("2026-11-28T22:30-04:30"), 1795921200000);
    assert_int_equal(parsed("2000-02-29"), 951782400000);
    assert_int_equal(parsed("1969-12-31T23:59:59.999Z"), -1);
    assert_int_equal(parsed("0000-01-01"), CALENDAR_MIN);
    assert_int_equal(parsed("9999-12-31T23:59:59.999Z"), CALENDAR_MAX);
    char back[25];
    clock_iso(1795921201204, back);
    assert_string_equal(back, "2026-11-29T03:00:01.204Z");
}

static void other_texts_are_refused(void **state) {
    (void)state;
    static const char *const bad[] = {
        "",
        "2026",
        "2026-13-01",
        "2026-00-10",
        "2026-02-29",
        "2026-04-31",
        "2026-1-1",
        "26-01-01",
        "2026-01-01T",
        "2026-01-01T24:00",
        "2026-01-01T10:60",
        "2026-01-01T10:00:60",
        "2026-01-01T10:00:00.",
        "2026-01-01T10:00:00Zx",
        "2026-01-01T10:00+19:00",
        "2026-01-01T10:00+7",
        "2026-01-01T10",
        "2026-01-01Z",
        " 2026-01-01",
        "2026-01-01 ",
        "2026-01-01T10:00:00.1234567890",
        "+2026-01-01",
        "2026/01/01",
        "2026-01-01T10:00:00+07:00:00",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int64_t ms;
        if (calendar_parse(str_of(bad[i]), NULL, &ms)) fail_msg("'%s' was taken", bad[i]);
    }
}

static void fields_agree_with_the_c_library(void **state) {
    (void)state;
    static const char *const zones[] = {"Asia/Ho_Chi_Minh",
                                        "Europe/Paris",
                                        "America/New_York",
                                        "America/Sao_Paulo",
                                        "Australia/Lord_Howe",
                                        "Asia/Kathmandu",
                                        "Africa/Casablanca",
                                        "America/St_Johns",
                                        "Europe/Dublin",
                                        "Pacific/Apia",
                                        "UTC",
                                        "Antarctica/Troll"};
    uint64_t seed = 20261129;
    for (size_t z = 0; z < sizeof zones / sizeof *zones; z++) {
        assert_int_equal(setenv("TZ", zones[z], 1), 0);
        tzset();
        for (int i = 0; i < 4000; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            int64_t s = (int64_t)(seed >> 31) % 5000000000 - 1000000000; /* 1938 to 2096 */
            time_t t = (time_t)s;
            struct tm tm;
            assert_non_null(localtime_r(&t, &tm));
            const struct zone *zone = zone_find(str_of(zones[z]));
            assert_non_null(zone);
            struct civil c;
            civil_from_epoch(s * 1000 + 7, zone, &c);
            if (c.year != tm.tm_year + 1900 || c.month != tm.tm_mon + 1 || c.day != tm.tm_mday ||
                c.hour != tm.tm_hour || c.min != tm.tm_min || c.sec != tm.tm_sec || c.yday != tm.tm_yday + 1 ||
                c.wday % 7 != tm.tm_wday || c.offset != tm.tm_gmtoff || c.ms != 7)
                fail_msg("%s at %lld: %d-%d-%d %d:%d offset %d, the C library has %ld", zones[z], (long long)s, c.year,
                         c.month, c.day, c.hour, c.min, c.offset, tm.tm_gmtoff);
            /* Back: the same instant, or the earlier one of a time that occurs twice. */
            int64_t back = civil_to_epoch(&c, zone);
            struct civil again;
            civil_from_epoch(back, zone, &again);
            assert_true(back == s * 1000 + 7 || (back < s * 1000 + 7 && again.hour == c.hour && again.min == c.min));
        }
    }
    assert_int_equal(unsetenv("TZ"), 0);
    tzset();
}

static int64_t local(const char *zone, int year, int month, int day, int hour, int min) {
    struct civil c = {.year = year, .month = month, .day = day, .hour = hour, .min = min};
    return civil_to_epoch(&c, zone_find(str_of(zone)));
}

static void changes_of_the_clocks_have_one_answer(void **state) {
    (void)state;
    /* 02:30 does not exist in Paris on 2026-03-29: the offset before it (+1) makes it 03:30 summer time. */
    assert_int_equal(local("Europe/Paris", 2026, 3, 29, 2, 30), parsed("2026-03-29T01:30:00Z"));
    /* 02:30 occurs twice on 2026-10-25: the first, in summer time. */
    assert_int_equal(local("Europe/Paris", 2026, 10, 25, 2, 30), parsed("2026-10-25T00:30:00Z"));
    assert_int_equal(local("Europe/Paris", 2026, 10, 25, 3, 0), parsed("2026-10-25T02:00:00Z"));
    assert_int_equal(local("America/New_York", 2060, 7, 1, 12, 0), parsed("2060-07-01T16:00:00Z"));
    assert_int_equal(local("Asia/Ho_Chi_Minh", 2026, 13, 0, 24, 60), parsed("2026-12-31T18:00:00Z"));
}

static void zone_names_are_checked(void **state) {
    (void)state;
    static const char *const bad[] = {
        "",
        "/etc/passwd",
        "../../../etc/passwd",
        "Europe/../../passwd",
        "Europe",
        "Nowhere/City",
        "Europe/Paris ",
        "zone.tab",
        "tzdata.zi",
        "-x",
        "Europe//..//Paris",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_null(zone_find(str_of(bad[i])));
    assert_null(zone_find(STR("Europe/Paris\0x")));
}

static void lua_has_it_all(void **state) {
    (void)state;
    static const luaL_Reg modules[] = {{"core.time", luaopen_core_time},
                                       {"core.uuid", luaopen_core_uuid},
                                       {"core.log", luaopen_core_log},
                                       {NULL, NULL}};
    struct error err = {0};
    struct vm *vm = vm_new_with(modules, NULL, &err);
    assert_non_null(vm);
    static const char *const code[] = {
        "t = require 'core.time' u = require 'core.uuid' log = require 'core.log'",
        "assert(t.iso(t.parse('2026-11-29')) == '2026-11-29T00:00:00.000Z' and t.parse('x') == nil and t.parse(nil) == "
        "nil and t.parse(5) == nil)",
        "local f = t.fields(t.parse('2026-11-29T03:00:01.204Z'), 'Asia/Ho_Chi_Minh') assert(f.year == 2026 and f.month "
        "== 11 and f.day == 29 and f.hour == 10 and f.wday == 7 and f.offset == 25200 and f.ms == 204 and f.yday == "
        "333)",
        "assert(t.epoch({year = 2026, month = 11, day = 29, hour = 10}, 'Asia/Ho_Chi_Minh') == "
        "t.parse('2026-11-29T03:00:00Z'))",
        "assert(t.parse('2026-11-29T10:00', 'Asia/Ho_Chi_Minh') == t.parse('2026-11-29T03:00:00Z'))",
        "assert(not pcall(t.fields, 0, 'No/Where') and t.zone_exists('UTC') and not t.zone_exists('../x'))",
        "local a = t.real() t.set_shift(86400000) assert(t.now() - a >= 86400000 and t.shift() == 86400000 and "
        "t.real() - a < 86400000) t.set_shift(0)",
        "local a, b = u.v7(), u.v7() assert(u.valid(a) and a < b and #u.v4() == 36 and not u.valid('x') and not "
        "u.valid(nil))",
        "assert(log.level() == 'info') log.level('error') log.info('not seen') log.warn('nor this') log.level('info') "
        "assert(not pcall(log.level, 'loud') and not pcall(log.info))",
    };
    for (size_t i = 0; i < sizeof code / sizeof *code; i++)
        if (!vm_run(vm, code[i], "=test", &err)) fail_msg("%s", err.message);
    vm_free(vm);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(iso_texts_are_read),
        cmocka_unit_test(other_texts_are_refused),
        cmocka_unit_test(fields_agree_with_the_c_library),
        cmocka_unit_test(changes_of_the_clocks_have_one_answer),
        cmocka_unit_test(zone_names_are_checked),
        cmocka_unit_test(lua_has_it_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
