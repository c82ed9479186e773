// link: script
/* Any text as rule code: it must come to an end within its budget and leave nothing broken outside of it. The same text
 * is run in a state whose runs may wait, each wait answered, refused or left. */
#include <stdlib.h>
#include <string.h>

#include "script/sandbox_wait.h"

static const char *const fields[] = {"text", "lines", "qty", "missing"};
static const struct sandbox_record record = {.path = "input", .fields = fields, .count = 4};

static bool more(lua_State *L, size_t field, size_t line, void *context) {
    (void)line;
    (void)context;
    switch (field) {
    case 0:
        lua_pushliteral(L, "some text to match");
        return true;
    case 1:
        lua_createtable(L, 1, 0);
        lua_pushliteral(L, "made when it is read");
        lua_rawseti(L, -2, 1);
        return true;
    case 2:
        lua_pushnumber(L, 3);
        return true;
    default:
        return false;
    }
}

static const struct sandbox_source lines = {
    .record = {.path = "input.line", .fields = fields, .count = 4}, .more = more, .kept = 1 | 4 | 8};

/* A record, and in it a list with views. Runs come in pairs that share a shot. */
static bool build(lua_State *L, void *data, struct error *err) {
    static char context;
    static uint64_t runs;
    (void)data;
    (void)err;
    if (sandbox_begin_shot(L, 1 + runs++ / 2, &context, 1))
        for (int place = 1; place <= 2; place++) sandbox_fill_source(L, place, &lines, (size_t)place);
    lua_createtable(L, 0, 2);
    lua_pushliteral(L, "some text to match");
    lua_setfield(L, -2, "text");
    sandbox_push_views(L, 1, &lines, 2);
    lua_setfield(L, -2, "lines");
    sandbox_mark_record(L, &record);
    return true;
}

/* What a rule did to its views is not there for the next. */
static const char views[] = "return { hook = 'x', name = 'x', run = function(input) local a, b = input.lines[1], "
                            "input.lines[2] assert(a.qty == 3 and a.text == 'some text to match' and a.lines[1] and "
                            "not a.missing and #a == 0 and b.qty == 3) return 1 end }";

static bool look(lua_State *L, void *data, struct error *err) {
    (void)L;
    (void)data;
    (void)err;
    return true;
}

static const char probe[] = "return { hook = 'x', name = 'x', run = function() return 1 end }";

static bool give(lua_State *L, void *data, struct error *err) {
    const int *n = data;
    (void)err;
    if (*n % 3 == 1) {
        lua_createtable(L, 1, 0);
        lua_pushliteral(L, "an answer");
        lua_rawseti(L, -2, 1);
    } else {
        lua_pushnumber(L, *n);
    }
    return true;
}

static void run_waiting(struct str source, const struct sandbox_limits *limits) {
    static struct sandbox *sb;
    static struct sandbox_report report;
    struct sandbox_manifest manifest;
    struct error err;
    if (!sandbox_declare("kv.get", false, false, &err) || !sandbox_declare("secret", false, true, &err)) abort();
    if (!sb) sb = sandbox_new_waiting(&err);
    if (!sb) abort();
    int rule = sandbox_load(sb, "fuzz.lua", source, &manifest, &report), n = 0;
    if (rule) {
        enum sandbox_wait now = sandbox_wait_start(sb, rule, NULL, limits, build, NULL, &report);
        for (; now == SANDBOX_CALL && n < 20; n++)
            now = n % 5 == 4 ? sandbox_wait_refuse(sb, "refused", &report) : sandbox_wait_answer(sb, give, &n, &report);
        if (now == SANDBOX_DONE) {
            bool ok = sandbox_wait_result(sb, look, NULL, &report);
            if (ok != (report.outcome == OUTCOME_OK)) abort();
        }
        if (now == SANDBOX_CALL && source.len % 2)
            sandbox_wait_end(sb); /* else it is unloaded, or freed, in the middle */
        sandbox_unload(sb, rule);
        if (now == SANDBOX_CALL && source.len % 3) sandbox_wait_end(sb);
    }
    if (!sandbox_broken(sb) && !(rule && n == 20)) return;
    sandbox_free(sb);
    sb = NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct sandbox *sb;
    static struct sandbox_report report;
    struct sandbox_manifest manifest;
    struct error err;
    if (!sb) sb = sandbox_new(&err);
    if (!sb) abort();
    char *source = malloc(size + sizeof "return { hook = 'x', name = 'x', run = function(input)  end }");
    if (!source) return 0;
    size_t n = 0;
    memcpy(source, "return { hook = 'x', name = 'x', run = function(input) ", 55);
    n = 55;
    if (size) memcpy(source + n, data, size);
    n += size;
    memcpy(source + n, " end }", 6);
    n += 6;
    struct sandbox_limits limits = sandbox_pure;
    limits.wall_us = 2000000;
    int rule = sandbox_load(sb, "fuzz.lua", str_n(source, n), &manifest, &report);
    if (rule) {
        bool told = sandbox_describe(sb, rule, look, NULL, &report);
        (void)told; /* whatever it says */
    }
    if (rule && !sandbox_broken(sb)) {
        bool ok = sandbox_run(sb, rule, &limits, build, look, NULL, &report);
        if (ok != (report.outcome == OUTCOME_OK)) abort();
    }
    run_waiting(str_n(source, n), &limits);
    free(source);
    if (rule) sandbox_unload(sb, rule);
    if (sandbox_broken(sb)) {
        sandbox_free(sb);
        sb = NULL;
        return 0;
    }
    /* What it was left with still works. */
    rule = sandbox_load(sb, "probe.lua", str_n(probe, sizeof probe - 1), &manifest, &report);
    if (!rule || !sandbox_run(sb, rule, &sandbox_pure, build, look, NULL, &report)) abort();
    sandbox_unload(sb, rule);
    rule = sandbox_load(sb, "views.lua", str_n(views, sizeof views - 1), &manifest, &report);
    if (!rule || !sandbox_run(sb, rule, &sandbox_pure, build, look, NULL, &report)) abort();
    sandbox_unload(sb, rule);
    return 0;
}
