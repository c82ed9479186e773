// link: http
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "http/multipart.h"
#include "http/spool.h"

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

static void path_of(char out[256], const char *dir, const char *name) {
    int n = snprintf(out, 256, "%s/%s", dir, name);
    assert_true(n > 0 && n < 256);
}

static void touch(const char *path) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fclose(f), 0);
}

static void test_spool_files_of_a_dead_process_are_swept(void **state) {
    (void)state;
    char dir[] = "/tmp/kasma-sweep-XXXXXX", mine[256], foreign[256], link[256], odd[256], dead_name[256];
    assert_non_null(mkdtemp(dir));
    struct error err;
    struct arena *a = arena_new(0);
    struct spool *live = spool_open(a, dir, &err);
    assert_non_null(live);
    (void)snprintf(mine, sizeof mine, "%s", live->path);
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) { /* dies with its file open, as by a crash */
        struct spool *s = spool_open(arena_new(0), dir, &err);
        bool ok = s && spool_write(s, STR("half a body"), &err) &&
                  write(ends[1], s->path, strlen(s->path)) == (ssize_t)strlen(s->path);
        _exit(ok ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    ssize_t n = read(ends[0], dead_name, sizeof dead_name - 1);
    assert_true(n > 0);
    dead_name[n] = '\0';
    assert_int_equal(close(ends[0]) + close(ends[1]), 0);
    char name[64];
    (void)snprintf(name, sizeof name, "kasma-spool-%d-link", (int)child);
    path_of(link, dir, name);
    assert_int_equal(symlink(mine, link), 0);
    (void)snprintf(name, sizeof name, "other-%d-XXXXXX", (int)child);
    path_of(foreign, dir, name);
    touch(foreign);
    path_of(odd, dir, "kasma-spool-12x-abcdef");
    touch(odd);
    assert_int_equal(spool_sweep(dir, 3600), 0); /* somebody may still move it away */
    assert_int_equal(access(dead_name, F_OK), 0);
    assert_int_equal(spool_sweep(dir, 0), 1);
    assert_int_equal(access(dead_name, F_OK), -1);
    assert_int_equal(access(mine, F_OK) + access(foreign, F_OK) + access(odd, F_OK) + access(link, F_OK), 0);
    assert_int_equal(spool_sweep("/nonexistent", 0), 0);
    arena_free(a);
    assert_int_equal(access(mine, F_OK), -1);
    assert_int_equal(unlink(foreign) + unlink(odd) + unlink(link) + rmdir(dir), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_boundary_that_goes_on_is_refused),      cmocka_unit_test(test_any_split_gives_the_same),
        cmocka_unit_test(test_files_are_spooled_and_go_away),           cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_spool_files_of_a_dead_process_are_swept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
