/* What the tests of script/sandbox.h share: a state made anew for each test, an input, and short ways to run the body
 * of a rule. Include it in one file of a program: its state is static. */
#ifndef KASMA_TESTS_SANDBOX_FIXTURE_H
#define KASMA_TESTS_SANDBOX_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <lauxlib.h>
#include <lualib.h>

#include "script/json.h"
#include "script/sandbox.h"

static struct sandbox *sb;
static lua_State *P; /* stands for the platform's state */
static struct sandbox_report report;
static char result[70000];
static const char *input = "{}";
static struct sandbox_limits limits;

static inline int setup(void **state) {
    (void)state;
    struct error err;
    P = luaL_newstate();
    assert_non_null(P);
    sb = sandbox_new(&err);
    assert_non_null(sb);
    input = "{}";
    limits = sandbox_pure;
    limits.wall_us = 10000000; /* the sanitizers are slow, and instructions are what decides */
    return 0;
}

static inline int teardown(void **state) {
    (void)state;
    sandbox_free(sb);
    lua_close(P);
    return 0;
}

static inline bool build(lua_State *L, void *data, struct error *err) {
    (void)data;
    if (!json_decode(P, str_of(input), err)) return false;
    bool ok = sandbox_copy(P, -1, L, 256 * 1024, err);
    lua_settop(P, 0);
    return ok;
}

static inline bool read_json(lua_State *L, void *data, struct error *err) {
    (void)data;
    struct buf out = {0};
    bool ok = sandbox_copy(L, -1, P, 1024 * 1024, err) && json_encode_sorted(P, -1, &out, err);
    if (ok) {
        assert_true(out.len < sizeof result);
        memcpy(result, out.data, out.len);
        result[out.len] = '\0';
    }
    buf_free(&out);
    lua_settop(P, 0);
    return ok;
}

static inline int load(const char *source) {
    struct sandbox_manifest m;
    return sandbox_load(sb, "t.lua", str_of(source), &m, &report);
}

static inline bool run_rule(int rule) {
    return sandbox_run(sb, rule, &limits, build, read_json, NULL, &report);
}

/* A rule whose run has this body. */
static inline bool run_body(const char *body) {
    static char source[60000];
    int n = snprintf(source, sizeof source,
                     "return { hook = 'promotion', name = 't', run = function(input, config) %s end }", body);
    assert_true(n > 0 && (size_t)n < sizeof source);
    int rule = load(source);
    if (!rule) fail_msg("%s: %s", body, report.message);
    bool ok = run_rule(rule);
    sandbox_unload(sb, rule);
    return ok;
}

static inline void gives(const char *body, const char *expected) {
    if (!run_body(body)) fail_msg("%s: %s: %s", body, outcome_name(report.outcome), report.message);
    if (strcmp(result, expected) != 0) fail_msg("%s gave %s, not %s", body, result, expected);
}

static inline void stops(const char *body, enum outcome why) {
    bool ok = run_body(body);
    if (ok || report.outcome != why)
        fail_msg("%s: %s: %s", body, outcome_name(report.outcome), ok ? result : report.message);
    /* A state that ran out of heap is made anew by its owner; any other goes on. */
    if (why == OUTCOME_HEAP) {
        assert_true(sandbox_broken(sb));
        struct error err;
        sandbox_free(sb);
        sb = sandbox_new(&err);
        assert_non_null(sb);
    }
    gives("return {alive = true}", "{\"alive\":true}");
}

static inline void fails(const char *body, const char *part) {
    bool ok = run_body(body);
    if (ok || report.outcome != OUTCOME_ERROR || !strstr(report.message, part))
        fail_msg("%s: %s: %s", body, outcome_name(report.outcome), ok ? result : report.message);
}

#endif
