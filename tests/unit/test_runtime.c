// link: runtime
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/arena.h"
#include "runtime/buf.h"
#include "runtime/clock.h"
#include "runtime/log.h"
#include "runtime/loop.h"
#include "runtime/uuid.h"

static void test_str(void **state) {
    (void)state;
    int64_t n;
    assert_true(str_int64(STR("0"), &n) && n == 0);
    assert_true(str_int64(STR("-9223372036854775808"), &n) && n == INT64_MIN);
    assert_true(str_int64(STR("9223372036854775807"), &n) && n == INT64_MAX);
    static const char *const bad[] = {"",   "-",  "9223372036854775808", "-9223372036854775809", "1 ", " 1", "1.0",
                                      "+1", "0x1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_false(str_int64(str_of(bad[i]), &n));
    assert_true(str_ieq(STR("Content-LENGTH"), STR("content-length")));
    assert_false(str_ieq(STR("a"), STR("ab")));
    assert_true(str_eq(str_trim(STR(" \t a b \r\n")), STR("a b")));
    assert_int_equal(str_trim(STR("  ")).len, 0);
    assert_true(str_starts(STR("abc"), STR("")));
    assert_false(str_starts(STR("ab"), STR("abc")));
}

static void test_buf_json(void **state) {
    (void)state;
    struct buf b = {0};
    assert_true(buf_json_string(&b, STR("a\"\\\n\x01 \xC3\xA9 \xF0\x9F\x8D\xB5")));
    assert_true(str_eq(buf_str(&b), STR("\"a\\\"\\\\\\n\\u0001 \xC3\xA9 \xF0\x9F\x8D\xB5\"")));
    buf_clear(&b);
    /* Overlong, surrogate, cut, lone continuation: each bad byte becomes one U+FFFD. */
    assert_true(buf_json_string(&b, STR("\xC0\xAF|\xED\xA0\x80|\xE2\x82|\x80")));
    assert_true(str_eq(buf_str(&b), STR("\"\xEF\xBF\xBD\xEF\xBF\xBD|\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD|"
                                        "\xEF\xBF\xBD\xEF\xBF\xBD|\xEF\xBF\xBD\"")));
    buf_clear(&b);
    for (int i = 0; i < 1000; i++) assert_true(buf_printf(&b, "%d,", i));
    assert_memory_equal(b.data + b.len - 4, "999,", 4);
    buf_free(&b);
    assert_null(b.data);
}

static char calls[16];
static char letter_a[] = "a", letter_b[] = "b", letter_c[] = "c", letter_d[] = "d", letter_z[] = "z";

static void call(void *data) {
    size_t n = strlen(calls);
    calls[n] = *(const char *)data;
    calls[n + 1] = '\0';
}

static struct arena *again;

static void call_and_defer(void *data) {
    call(data);
    assert_non_null(arena_defer(again, call, letter_z));
}

static void test_arena(void **state) {
    (void)state;
    struct arena *a = again = arena_new(64);
    assert_non_null(a);
    for (size_t n = 1; n < 5000; n += 37) {
        char *p = arena_alloc(a, n);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % _Alignof(max_align_t), 0);
        memset(p, 'x', n);
    }
    assert_string_equal(arena_printf(a, "%s-%d", "order", 7), "order-7");
    assert_string_equal(arena_strdup(a, str_n("abcdef", 3)), "abc");
    assert_null(arena_zalloc(a, SIZE_MAX / 2, 4));
    /* Newest first; a cancelled one never; one that ran early not again; what is deferred meanwhile too. */
    assert_non_null(arena_defer(a, call, letter_a));
    struct deferred *cancelled = arena_defer(a, call, letter_b);
    struct deferred *early = arena_defer(a, call, letter_c);
    assert_non_null(arena_defer(a, call_and_defer, letter_d));
    deferred_cancel(cancelled);
    deferred_run(early);
    arena_reset(a);
    assert_string_equal(calls, "cdza");
    arena_limit(a, arena_used(a) + 1024);
    assert_null(arena_alloc(a, 4096));
    assert_non_null(arena_alloc(a, 512));
    arena_free(a);
    arena_free(NULL);
}

static void test_clock(void **state) {
    (void)state;
    char text[25];
    clock_iso(1795921201204, text);
    assert_string_equal(text, "2026-11-29T03:00:01.204Z");
    clock_iso(-1, text);
    assert_string_equal(text, "1969-12-31T23:59:59.999Z");
    int64_t before = clock_now();
    clock_set_shift((int64_t)30 * 86400 * 1000);
    assert_true(clock_now() >= before + (int64_t)30 * 86400 * 1000);
    assert_true(clock_real() < before + (int64_t)86400 * 1000);
    clock_set_shift(0);
    uint64_t mono = clock_mono_us();
    assert_true(clock_mono_us() >= mono);
}

static void test_uuid(void **state) {
    (void)state;
    char last[37] = "", id[37];
    for (int i = 0; i < 10000; i++) {
        uuid_v7(id);
        assert_true(uuid_valid(str_of(id)));
        assert_int_equal(id[14], '7');
        assert_true(strcmp(id, last) > 0);
        memcpy(last, id, sizeof id);
    }
    uuid_v4(id);
    assert_int_equal(id[14], '4');
    assert_non_null(strchr("89ab", id[19]));
    assert_true(uuid_valid(STR("018F3B2C-1111-7ABC-8DEF-0123456789AB")));
    assert_false(uuid_valid(STR("018f3b2c-1111-7abc-8def-0123456789a")));
    assert_false(uuid_valid(STR("018f3b2c-1111-7abc-8def-0123456789ag")));
    assert_false(uuid_valid(STR("018f3b2c01111-7abc-8def-0123456789ab")));
}

/* Two workers of one parent that has drawn ids already. */
static void test_forked_processes_make_different_ids(void **state) {
    (void)state;
    enum { EACH = 50, CHILDREN = 3 };
    char ids[CHILDREN][EACH][37];
    uuid_v4(ids[0][0]);
    for (int c = 0; c < CHILDREN; c++) {
        int ends[2], status;
        assert_int_equal(pipe(ends), 0);
        assert_int_equal(fflush(stdout), 0);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            for (int i = 0; i < EACH; i++) uuid_v4(ids[c][i]);
            ssize_t n = write(ends[1], ids[c], sizeof ids[c]);
            _exit(n == (ssize_t)sizeof ids[c] ? 0 : 1);
        }
        assert_int_equal(read(ends[0], ids[c], sizeof ids[c]), sizeof ids[c]);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(close(ends[0]) + close(ends[1]), 0);
    }
    for (int i = 0; i < CHILDREN * EACH; i++)
        for (int k = 0; k < i; k++) assert_string_not_equal(ids[i / EACH][i % EACH], ids[k / EACH][k % EACH]);
}

static int turns;
static struct loop_hook hook_a, hook_b;

static void on_turn_end(void *data) {
    (void)data;
    if (++turns < 3)
        loop_at_turn_end(&hook_a);
    else
        loop_stop();
}

static void never(void *data) {
    (void)data;
    fail_msg("a forgotten hook ran");
}

static struct loop_hook hook_c, hook_d;
static int last_calls;

/* Forgets one that is due in this very turn; the one behind it still comes. */
static void forgets_another(void *data) {
    (void)data;
    loop_forget(&hook_b);
}
static void comes_last(void *data) {
    (void)data;
    last_calls++;
    loop_stop();
}

static void test_loop_hooks(void **state) {
    (void)state;
    assert_true(loop_open());
    hook_a = (struct loop_hook){.fn = on_turn_end};
    hook_b = (struct loop_hook){.fn = never};
    loop_at_turn_end(&hook_b);
    loop_at_turn_end(&hook_a);
    loop_at_turn_end(&hook_a); /* once */
    loop_forget(&hook_b);
    loop_forget(&hook_b);
    loop_run();
    assert_int_equal(turns, 3);
    hook_c = (struct loop_hook){.fn = forgets_another};
    hook_d = (struct loop_hook){.fn = comes_last};
    loop_at_turn_end(&hook_c);
    loop_at_turn_end(&hook_b);
    loop_at_turn_end(&hook_d);
    loop_run();
    assert_int_equal(last_calls, 1);
    assert_false(hook_b.queued);
}

static void test_log_lines(void **state) {
    (void)state;
    int ends[2], keep = dup(STDERR_FILENO);
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(dup2(ends[1], STDERR_FILENO), STDERR_FILENO);
    log_set_level(LOG_INFO);
    log_line(LOG_DEBUG, "not shown");
    log_event(LOG_INFO, STR("say \"hi\"\n"), STR("\"tenant\":\"acme\""));
    log_line(LOG_WARN, "at once");
    assert_int_equal(dup2(keep, STDERR_FILENO), STDERR_FILENO);
    char text[1024];
    ssize_t n = read(ends[0], text, sizeof text - 1);
    assert_true(n > 0);
    text[n] = '\0';
    assert_null(strstr(text, "not shown"));
    assert_non_null(strstr(text, "\"level\":\"info\""));
    assert_non_null(strstr(text, "\"msg\":\"say \\\"hi\\\"\\n\",\"tenant\":\"acme\"}\n"));
    assert_non_null(strstr(text, "\"msg\":\"at once\"}\n"));
    assert_int_equal(close(ends[0]) + close(ends[1]) + close(keep), 0);
}

static void test_levels_of_parts(void **state) {
    (void)state;
    static const char *const bad[] = {"",
                                      "loud",
                                      "info,",
                                      "info,stores",
                                      "info,stores=",
                                      "info,=debug",
                                      "stores=debug",
                                      "info,Stores=debug",
                                      "info,a=loud",
                                      ",info",
                                      "info,a_name_that_is_much_too_long_for_it=debug"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_false(log_set_levels(bad[i], true));
    assert_true(log_set_levels("debug", false));
    assert_int_equal(log_get_level(), LOG_INFO);
    assert_true(log_set_levels("warn, stores=debug,mail=error", true));
    assert_true(log_wanted(LOG_DEBUG));
    assert_true(log_wanted_of(STR("stores"), LOG_DEBUG));
    assert_false(log_wanted_of(STR("store"), LOG_DEBUG));
    assert_false(log_wanted_of(STR("http"), LOG_INFO));
    assert_true(log_wanted_of(STR("http"), LOG_WARN));
    assert_false(log_wanted_of(STR("mail"), LOG_WARN));
    char many[400] = "info";
    for (int i = 0; i < 17; i++) {
        size_t n = strlen(many);
        assert_true(snprintf(many + n, sizeof many - n, ",p%d=debug", i) > 0);
    }
    assert_false(log_set_levels(many, true));
    struct str part = log_part_of("/home/core/src/core/stores/pg.c");
    assert_true(str_eq(part, STR("stores")));
    assert_true(str_eq(log_part_of("core/main.c"), STR("main")));
    assert_true(str_eq(log_part_of("main.c"), STR("main")));
    assert_true(log_set_levels("info", true));
    assert_false(log_wanted(LOG_DEBUG));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_levels_of_parts),
        cmocka_unit_test(test_str),
        cmocka_unit_test(test_buf_json),
        cmocka_unit_test(test_arena),
        cmocka_unit_test(test_clock),
        cmocka_unit_test(test_uuid),
        cmocka_unit_test(test_forked_processes_make_different_ids),
        cmocka_unit_test(test_loop_hooks),
        cmocka_unit_test(test_log_lines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
