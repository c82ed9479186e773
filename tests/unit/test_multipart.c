// link: http
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <unistd.h>

#include "http/multipart.h"

static const char two_parts[] = "ignored\r\n--B\r\n"
                                "Content-Disposition: form-data; name=\"first\"\r\n\r\n"
                                "one\r\n--B  \r\n"
                                "content-disposition: form-data; name=second; filename=\"../../etc/x.bin\"\r\n"
                                "Content-Type: image/png\r\n\r\n"
                                "\r\n--\r\n--Bx\r\n--B-\r\n"
                                "\r\n--B--\r\nepilogue --B\r\n";

#define assert_str(got, text)                                                                                          \
    do {                                                                                                               \
        assert_int_equal((got).len, sizeof(text) - 1);                                                                 \
        assert_memory_equal((got).at, text, sizeof(text) - 1);                                                         \
    } while (0)

/* "--Bx" and "--B-" are delimiters by RFC 2046 only when nothing but blanks follow; what we refuse, we refuse whole. */
static void test_a_boundary_that_goes_on_is_refused(void **state) {
    (void)state;
    struct arena *a = arena_new(0);
    struct error err;
    struct multipart_parser *p = multipart_new(a, STR("B"), NULL, &err);
    assert_false(multipart_feed(p, STR(two_parts), &err));
    assert_int_equal(err.kind, ERR_INVALID);
    assert_false(multipart_feed(p, STR("more"), &err));
    assert_null(multipart_finish(p, &err));
    arena_free(a);
}

static const char good[] = "ignored\r\n--B\r\n"
                           "Content-Disposition: form-data; name=\"first\"\r\n\r\n"
                           "one\r\n--B  \r\n"
                           "content-disposition: form-data; name=second; filename=\"../../etc/x.bin\"\r\n"
                           "Content-Type: image/png\r\n\r\n"
                           "\r\n--\r\n-B\r\n\r\n"
                           "\r\n--B\r\nContent-Disposition: form-data; name=\"\"\r\n\r\n\r\n--B--\r\nepilogue --B\r\n";

static void check(const struct multipart *m, bool spooled) {
    assert_non_null(m);
    assert_int_equal(m->count, 3);
    assert_str(m->parts[0].name, "first");
    assert_null(m->parts[0].filename.at);
    assert_str(m->parts[0].data, "one");
    assert_str(m->parts[1].name, "second");
    assert_str(m->parts[1].filename, "x.bin");
    assert_str(m->parts[1].type, "image/png");
    assert_int_equal(m->parts[1].size, 12);
    if (spooled)
        assert_int_equal(access(m->parts[1].path, R_OK), 0);
    else
        assert_str(m->parts[1].data, "\r\n--\r\n-B\r\n\r\n");
    assert_int_equal(m->parts[2].name.len, 0);
    assert_int_equal(m->parts[2].size, 0);
}

static void test_any_split_gives_the_same(void **state) {
    (void)state;
    for (size_t step = 1; step < sizeof good; step++) {
        struct arena *a = arena_new(0);
        struct error err;
        struct multipart_parser *p = multipart_new(a, STR("B"), NULL, &err);
        for (size_t i = 0; i < sizeof good - 1; i += step) {
            size_t n = sizeof good - 1 - i < step ? sizeof good - 1 - i : step;
            assert_true(multipart_feed(p, str_n(good + i, n), &err));
        }
        check(multipart_finish(p, &err), false);
        arena_free(a);
    }
}

static void test_files_are_spooled_and_go_away(void **state) {
    (void)state;
    struct arena *a = arena_new(0);
    struct error err;
    struct multipart_parser *p = multipart_new(a, STR("B"), "/tmp", &err);
    assert_true(multipart_feed(p, STR(good), &err));
    const struct multipart *m = multipart_finish(p, &err);
    check(m, true);
    char path[256];
    (void)snprintf(path, sizeof path, "%s", m->parts[1].path);
    arena_free(a);
    assert_int_equal(access(path, F_OK), -1);
}

static void test_bounds(void **state) {
    (void)state;
    struct error err;
    struct arena *a = arena_new(0);
    assert_null(multipart_new(a, STR(""), NULL, &err));
    char long_boundary[80];
    memset(long_boundary, 'b', sizeof long_boundary);
    assert_null(multipart_new(a, str_n(long_boundary, 71), NULL, &err));
    struct multipart_parser *p = multipart_new(a, STR("B"), NULL, &err);
    bool ok = multipart_feed(p, STR("--B"), &err);
    for (int i = 0; ok && i < MULTIPART_PARTS_MAX + 1; i++)
        ok = multipart_feed(p, STR("\r\nContent-Disposition: form-data; name=a\r\n\r\nv\r\n--B"), &err);
    assert_false(ok);
    assert_int_equal(err.kind, ERR_LIMIT);
    p = multipart_new(a, STR("B"), NULL, &err);
    assert_true(multipart_feed(p, STR("--B\r\n"), &err));
    for (ok = true; ok;) ok = multipart_feed(p, STR("X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n"), &err);
    assert_int_equal(err.kind, ERR_LIMIT);
    static const char *const bad[] = {"--B\r\nX: y\r\n\r\nv\r\n--B--", "--B\r\nno colon\r\n\r\n", "--B\r\n: v\r\n\r\n",
                                      "--B\r\nContent-Disposition: form-data; filename=x\r\n\r\n"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        p = multipart_new(a, STR("B"), NULL, &err);
        assert_false(multipart_feed(p, str_of(bad[i]), &err));
        assert_int_equal(err.kind, ERR_INVALID);
    }
    p = multipart_new(a, STR("B"), NULL, &err);
    assert_true(multipart_feed(p, STR("--B\r\nContent-Disposition: form-data; name=a\r\n\r\ncut off"), &err));
    assert_null(multipart_finish(p, &err));
    arena_free(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_boundary_that_goes_on_is_refused),
        cmocka_unit_test(test_any_split_gives_the_same),
        cmocka_unit_test(test_files_are_spooled_and_go_away),
        cmocka_unit_test(test_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
