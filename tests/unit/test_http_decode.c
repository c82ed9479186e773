// link: http
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "http/compress.h"
#include "http/decode.h"
#include "http/etag.h"
#include "http/header.h"
#include "http/mime.h"
#include "http/range.h"

static struct arena *a;

static int setup(void **state) {
    (void)state;
    a = arena_new(0);
    return a ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    arena_free(a);
    return 0;
}

#define assert_str(got, text)                                                                                          \
    do {                                                                                                               \
        struct str got_ = (got);                                                                                       \
        assert_non_null(got_.at);                                                                                      \
        assert_int_equal(got_.len, sizeof(text) - 1);                                                                  \
        assert_memory_equal(got_.at, text, sizeof(text) - 1);                                                          \
    } while (0)

static void test_percent_strict(void **state) {
    (void)state;
    bool bad;
    assert_str(percent_decode_strict(a, STR("plain"), &bad), "plain");
    assert_str(percent_decode_strict(a, STR("a%20b+c%2F"), &bad), "a b+c/");
    assert_str(percent_decode_strict(a, STR("%E1%BA%A1"), &bad), "ạ");
    static const char *const bad_ones[] = {"%", "%1", "%zz", "a%2", "%ff", "%c0%80", "%ed%a0%80", "%e1%ba", "\xff"};
    for (size_t i = 0; i < sizeof bad_ones / sizeof bad_ones[0]; i++) {
        bad = false;
        assert_null(percent_decode_strict(a, str_of(bad_ones[i]), &bad).at);
        assert_true(bad);
    }
}

static void test_forms(void **state) {
    (void)state;
    struct pairs p;
    bool many;
    assert_true(form_decode(a, STR("a=1&b=two+words&c&=d&&e=%C3%A9%zz&a=2"), 100, &p, &many));
    assert_int_equal(p.count, 6);
    assert_str(p.at[0].name, "a");
    assert_str(p.at[1].value, "two words");
    assert_str(p.at[2].name, "c");
    assert_str(p.at[2].value, "");
    assert_str(p.at[3].name, "");
    assert_str(p.at[3].value, "d");
    assert_str(p.at[4].value, "é%zz");
    assert_str(p.at[5].value, "2");
    assert_true(form_decode(a, STR(""), 0, &p, &many));
    assert_int_equal(p.count, 0);
    assert_false(form_decode(a, STR("a&b&c"), 2, &p, &many));
    assert_true(many);
}

static void test_cookies(void **state) {
    (void)state;
    struct str c = STR("a=1; access_token=abc;b=\"q v\" ;; empty=; =x; a=2");
    assert_str(cookie_find(c, STR("a")), "1");
    assert_str(cookie_find(c, STR("access_token")), "abc");
    assert_str(cookie_find(c, STR("b")), "q v");
    assert_str(cookie_find(c, STR("empty")), "");
    assert_null(cookie_find(c, STR("A")).at);
    assert_null(cookie_find(c, STR("token")).at);
}

static void test_header_ids(void **state) {
    (void)state;
    static const struct {
        const char *name;
        enum header_id id;
    } all[] = {{"Accept", HEADER_ACCEPT},
               {"ACCEPT-ENCODING", HEADER_ACCEPT_ENCODING},
               {"authorization", HEADER_AUTHORIZATION},
               {"Connection", HEADER_CONNECTION},
               {"Content-Encoding", HEADER_CONTENT_ENCODING},
               {"Content-Length", HEADER_CONTENT_LENGTH},
               {"Content-Type", HEADER_CONTENT_TYPE},
               {"Cookie", HEADER_COOKIE},
               {"Expect", HEADER_EXPECT},
               {"Host", HEADER_HOST},
               {"If-Modified-Since", HEADER_IF_MODIFIED_SINCE},
               {"If-None-Match", HEADER_IF_NONE_MATCH},
               {"If-Range", HEADER_IF_RANGE},
               {"Origin", HEADER_ORIGIN},
               {"Range", HEADER_RANGE},
               {"Referer", HEADER_REFERER},
               {"Transfer-Encoding", HEADER_TRANSFER_ENCODING},
               {"Upgrade", HEADER_UPGRADE},
               {"User-Agent", HEADER_USER_AGENT},
               {"X-Forwarded-For", HEADER_X_FORWARDED_FOR},
               {"X-Forwarded-Proto", HEADER_X_FORWARDED_PROTO},
               {"X-Idempotency-Key", HEADER_X_IDEMPOTENCY_KEY},
               {"X-Request-Id", HEADER_X_REQUEST_ID},
               {"X-Tenant-Kasma-Id", HEADER_X_TENANT_KASMA_ID},
               {"X-App-Kasma-Id", HEADER_X_APP_KASMA_ID},
               {"X-User-Id", HEADER_X_USER_ID},
               {"X-Kasma-Key", HEADER_X_KASMA_KEY},
               {"X-Gateway-Secret", HEADER_X_GATEWAY_SECRET}};
    assert_int_equal(sizeof all / sizeof all[0], HEADER_COUNT - 1);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) assert_int_equal(header_id(str_of(all[i].name)), all[i].id);
    assert_int_equal(header_id(STR("Hosts")), HEADER_OTHER);
    assert_int_equal(header_id(STR("Hosu")), HEADER_OTHER);
    assert_int_equal(header_id(STR("")), HEADER_OTHER);
}

static void test_lists(void **state) {
    (void)state;
    assert_true(header_list_has(STR("gzip, br;q=0.5"), STR("br"), false));
    assert_false(header_list_has(STR("gzip, br;q=0"), STR("br"), false));
    assert_false(header_list_has(STR("gzip, br; q=0.000"), STR("br"), false));
    assert_true(header_list_has(STR("*"), STR("gzip"), true));
    assert_false(header_list_has(STR("*, gzip;q=0"), STR("gzip"), true));
    assert_false(header_list_has(STR(""), STR("gzip"), true));
    assert_int_equal(coding_accepted(STR("gzip, deflate, br")), CODING_BR);
    assert_int_equal(coding_accepted(STR("gzip;q=1.0, *;q=0")), CODING_GZIP);
    assert_int_equal(coding_accepted(STR("identity")), CODING_IDENTITY);
}

static void test_content(void **state) {
    (void)state;
    assert_int_equal(content_kind(STR("application/json; charset=utf-8")), CONTENT_JSON);
    assert_int_equal(content_kind(STR("Application/JSON")), CONTENT_JSON);
    assert_int_equal(content_kind(STR("application/x-www-form-urlencoded")), CONTENT_FORM);
    assert_int_equal(content_kind(STR("multipart/form-data; boundary=x")), CONTENT_MULTIPART);
    assert_int_equal(content_kind(STR("text/plain")), CONTENT_TEXT);
    assert_int_equal(content_kind((struct str){0}), CONTENT_TEXT);
    assert_int_equal(content_kind(STR("application/jsonp")), CONTENT_OTHER);
    assert_str(header_param(STR("a/b; x=1; charset=\"U;T\" ; y"), STR("charset")), "U;T");
    assert_str(header_param(STR("a/b;BOUNDARY= q "), STR("boundary")), "q");
    assert_null(header_param(STR("charset=1"), STR("charset")).at);
    assert_true(content_compressible(STR("text/html; charset=utf-8")));
    assert_true(content_compressible(STR("image/svg+xml")));
    assert_false(content_compressible(STR("image/png")));
    assert_false(content_compressible(STR("text/event-stream")));
    assert_str(mime_of(STR("/a.b/x.CSS")), "text/css; charset=utf-8");
    assert_str(mime_of(STR("/a.css/x")), "application/octet-stream");
}

static void test_ranges(void **state) {
    (void)state;
    struct range r[RANGES_MAX];
    unsigned n;
    assert_int_equal(range_parse(STR("bytes=0-0"), 10, r, &n), RANGE_SOME);
    assert_true(n == 1 && r[0].from == 0 && r[0].length == 1);
    assert_int_equal(range_parse(STR("bytes=5-"), 10, r, &n), RANGE_SOME);
    assert_true(n == 1 && r[0].from == 5 && r[0].length == 5);
    assert_int_equal(range_parse(STR("bytes=-3"), 10, r, &n), RANGE_SOME);
    assert_true(n == 1 && r[0].from == 7 && r[0].length == 3);
    assert_int_equal(range_parse(STR("bytes=-300"), 10, r, &n), RANGE_SOME);
    assert_true(n == 1 && r[0].from == 0 && r[0].length == 10);
    assert_int_equal(range_parse(STR("bytes=0-1, 4-99"), 10, r, &n), RANGE_SOME);
    assert_true(n == 2 && r[1].from == 4 && r[1].length == 6);
    assert_int_equal(range_parse(STR("bytes=10-"), 10, r, &n), RANGE_UNSATISFIABLE);
    assert_int_equal(range_parse(STR("bytes=-0"), 10, r, &n), RANGE_UNSATISFIABLE);
    assert_int_equal(range_parse(STR("bytes=0-"), 0, r, &n), RANGE_UNSATISFIABLE);
    static const char *const none[] = {"",
                                       "bytes=",
                                       "bytes=a-b",
                                       "bytes=5-4",
                                       "lines=1-2",
                                       "bytes=1",
                                       "bytes=0-5,3-9",
                                       "bytes=99999999999999999999-",
                                       "bytes=0-0,1-1,2-2,3-3,4-4,5-5,6-6,7-7,8-8"};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++)
        assert_int_equal(range_parse(str_of(none[i]), 10, r, &n), RANGE_NONE);
}

static void test_etags(void **state) {
    (void)state;
    char x[ETAG_MAX], y[ETAG_MAX];
    struct str first = str_n(x, etag_of(STR("hello"), x));
    struct str again = str_n(y, etag_of(STR("hello"), y));
    assert_true(str_eq(first, again));
    again = str_n(y, etag_of(STR("hellp"), y));
    assert_false(str_eq(first, again));
    assert_true(etag_matches(first, first));
    assert_true(etag_matches(STR("*"), first));
    assert_true(etag_matches(str_n(first.at + 2, first.len - 2), first));
    assert_false(etag_matches(STR("\"a\", W/\"b\""), first));
    char text[4096] = {0};
    for (size_t i = 0; i < sizeof text; i++) { /* every byte and every length counts */
        struct str before = str_n(x, etag_of(str_n(text, sizeof text), x));
        text[i] = 1;
        struct str after = str_n(y, etag_of(str_n(text, sizeof text), y));
        assert_false(str_eq(before, after));
        text[i] = 0;
        after = str_n(y, etag_of(str_n(text, i), y));
        assert_false(str_eq(before, after));
    }
}

static bool collect(void *data, struct str bytes) {
    return buf_add(data, bytes);
}

static void test_codings_round(void **state) {
    (void)state;
    struct buf text = {0};
    for (int i = 0; i < 3000; i++) assert_true(buf_printf(&text, "{\"n\":%d},", i));
    for (enum coding c = CODING_GZIP; c <= CODING_BR; c++) {
        if (c == CODING_DEFLATE) continue;
        struct buf packed = {0}, out = {0};
        assert_true(compress_body(c, buf_str(&text), &packed));
        assert_true(packed.len < text.len / 3);
        struct decoder *d = decoder_new(c);
        for (size_t i = 0; i < packed.len; i += 7) {
            size_t n = packed.len - i < 7 ? packed.len - i : 7;
            assert_false(decoder_complete(d));
            assert_int_equal(decoder_feed(d, str_n(packed.data + i, n), collect, &out), DECODE_OK);
        }
        assert_true(decoder_complete(d));
        assert_true(str_eq(buf_str(&out), buf_str(&text)));
        assert_int_equal(decoder_feed(d, STR("junk"), collect, &out), DECODE_BAD);
        decoder_free(d);
        buf_free(&packed);
        buf_free(&out);
    }
    buf_free(&text);
    struct buf none = {0};
    assert_false(compress_body(CODING_GZIP, STR("ab"), &none));
    buf_free(&none);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_percent_strict, setup, teardown),
        cmocka_unit_test_setup_teardown(test_forms, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cookies, setup, teardown),
        cmocka_unit_test(test_header_ids),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_content),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_etags),
        cmocka_unit_test(test_codings_round),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
