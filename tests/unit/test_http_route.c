// link: http
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>

#include "http/route.h"

static struct routes *t;

static void nothing(struct request *r, void *data) {
    (void)r;
    (void)data;
}

static void add(enum http_method m, const char *pattern) {
    struct error err;
    assert_true(routes_add(t, m, str_of(pattern), nothing, NULL, NULL, &err));
}

static void finds(enum http_method m, const char *path, const char *pattern, const char *first, const char *second) {
    struct route_match match;
    bool found = routes_find(t, m, str_of(path), &match);
    if (!pattern) {
        assert_false(found);
        return;
    }
    if (!found) print_error("not found: %s\n", path);
    assert_true(found);
    assert_int_equal(match.route->pattern.len, strlen(pattern));
    assert_memory_equal(match.route->pattern.at, pattern, strlen(pattern));
    const char *wanted[] = {first, second};
    for (int i = 0; i < 2 && wanted[i]; i++) {
        assert_int_equal(match.values[i].len, strlen(wanted[i]));
        assert_memory_equal(match.values[i].at, wanted[i], strlen(wanted[i]));
    }
}

static int setup(void **state) {
    (void)state;
    t = routes_new();
    assert_non_null(t);
    add(HTTP_M_GET, "/");
    add(HTTP_M_GET, "/users");
    add(HTTP_M_GET, "/users/me");
    add(HTTP_M_GET, "/users/:id");
    add(HTTP_M_POST, "/users/:user_id");
    add(HTTP_M_GET, "/users/:user_id/roles/:role");
    add(HTTP_M_GET, "/users/me/roles");
    add(HTTP_M_GET, "/static/*path");
    add(HTTP_M_GET, "/static/one");
    add(HTTP_M_GET, "/api/docs");
    add(HTTP_M_HEAD, "/special");
    add(HTTP_M_GET, "/special");
    return 0;
}

static int teardown(void **state) {
    (void)state;
    routes_free(t);
    return 0;
}

static void test_literals(void **state) {
    (void)state;
    finds(HTTP_M_GET, "/", "/", NULL, NULL);
    finds(HTTP_M_GET, "/users", "/users", NULL, NULL);
    finds(HTTP_M_GET, "/Users/", "/users", NULL, NULL);
    finds(HTTP_M_GET, "/users//", NULL, NULL, NULL);
    finds(HTTP_M_GET, "//users", NULL, NULL, NULL);
    finds(HTTP_M_GET, "/user", NULL, NULL, NULL);
    finds(HTTP_M_GET, "*", NULL, NULL, NULL);
    finds(HTTP_M_GET, "", NULL, NULL, NULL);
}

static void test_literals_win_over_parameters(void **state) {
    (void)state;
    finds(HTTP_M_GET, "/users/me", "/users/me", NULL, NULL);
    finds(HTTP_M_GET, "/users/ME", "/users/me", NULL, NULL);
    finds(HTTP_M_GET, "/users/mee", "/users/:id", "mee", NULL);
    finds(HTTP_M_GET, "/users/me/roles", "/users/me/roles", NULL, NULL);
}

static void test_goes_back_for_method_or_depth(void **state) {
    (void)state;
    finds(HTTP_M_POST, "/users/me", "/users/:user_id", "me", NULL);
    finds(HTTP_M_GET, "/users/me/roles/7", "/users/:user_id/roles/:role", "me", "7");
    finds(HTTP_M_DELETE, "/users/me", NULL, NULL, NULL);
}

static void test_case_of_parameters_is_kept(void **state) {
    (void)state;
    finds(HTTP_M_GET, "/USERS/AbC/ROLES/xY", "/users/:user_id/roles/:role", "AbC", "xY");
}

static void test_api_prefix(void **state) {
    (void)state;
    finds(HTTP_M_GET, "/api/users/5", "/users/:id", "5", NULL);
    finds(HTTP_M_GET, "/API/Users", "/users", NULL, NULL);
    finds(HTTP_M_GET, "/api", "/", NULL, NULL);
    finds(HTTP_M_GET, "/api/docs", "/api/docs", NULL, NULL);
    finds(HTTP_M_GET, "/docs", NULL, NULL, NULL);
    finds(HTTP_M_GET, "/apiusers", NULL, NULL, NULL);
    finds(HTTP_M_GET, "/api/api/users", NULL, NULL, NULL);
}

static void test_head_falls_back_to_get(void **state) {
    (void)state;
    struct route_match a, b;
    assert_true(routes_find(t, HTTP_M_HEAD, STR("/users"), &a));
    assert_true(routes_find(t, HTTP_M_HEAD, STR("/special"), &a));
    assert_true(routes_find(t, HTTP_M_GET, STR("/special"), &b));
    assert_ptr_not_equal(a.route, b.route);
}

static void test_rest(void **state) {
    (void)state;
    finds(HTTP_M_GET, "/static/a/b.css", "/static/*path", "a/b.css", NULL);
    finds(HTTP_M_GET, "/static/", "/static/*path", "", NULL);
    finds(HTTP_M_GET, "/static", "/static/*path", "", NULL);
    finds(HTTP_M_GET, "/static/one", "/static/one", NULL, NULL);
    finds(HTTP_M_GET, "/static/one/two", "/static/*path", "one/two", NULL);
}

static void test_bad_patterns(void **state) {
    (void)state;
    static const char *const bad[] = {
        "", "users", "/a//b", "/:", "/a/:/b", "/*rest/more", "/:a/:b/:c/:d/:e/:f/:g/:h/:i/:j/:k/:l/:m"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct error err;
        assert_false(routes_add(t, HTTP_M_GET, str_of(bad[i]), nothing, NULL, NULL, &err));
        assert_int_equal(err.kind, ERR_INVALID);
    }
    struct error err;
    assert_false(routes_add(t, HTTP_M_OTHER, STR("/x"), nothing, NULL, NULL, &err));
}

static void test_many(void **state) {
    (void)state;
    char pattern[64], path[64];
    for (int i = 0; i < 1000; i++) {
        (void)snprintf(pattern, sizeof pattern, "/Area-%d/:id/part-%d", i % 50, i);
        add(HTTP_M_GET, pattern);
    }
    for (int i = 0; i < 1000; i++) {
        (void)snprintf(pattern, sizeof pattern, "/Area-%d/:id/part-%d", i % 50, i);
        (void)snprintf(path, sizeof path, "/area-%d/x%d/PART-%d", i % 50, i, i);
        finds(HTTP_M_GET, path, pattern, NULL, NULL);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_literals, setup, teardown),
        cmocka_unit_test_setup_teardown(test_literals_win_over_parameters, setup, teardown),
        cmocka_unit_test_setup_teardown(test_goes_back_for_method_or_depth, setup, teardown),
        cmocka_unit_test_setup_teardown(test_case_of_parameters_is_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(test_api_prefix, setup, teardown),
        cmocka_unit_test_setup_teardown(test_head_falls_back_to_get, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rest, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_patterns, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
