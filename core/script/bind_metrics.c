/* core.metrics: counter(name, help, labels), gauge(name, help, labels, merge), histogram(name, help, bounds, labels) ->
 * object with add / set / observe (value, label values...); render(). `merge` says how the processes' values become
 * one: "max" (the default: what each process sees of one thing, as a queue's length), "sum" (what is each process'
 * own), "min" ("is it up"). */
#include <lauxlib.h>

#include "runtime/metrics.h"
#include "script/bind.h"
#include "script/guard.h"

#define METRIC "core.metrics.metric"
#define LABELS_MAX 8

static struct metric *check_metric(lua_State *L) {
    return *(struct metric **)luaL_checkudata(L, 1, METRIC);
}

/* The series of the label values from `first` on. */
static uint32_t slot_of(lua_State *L, struct metric *m, int first) {
    struct str values[LABELS_MAX];
    size_t n = metric_label_count(m);
    if (n == 0) return metric_only(m);
    if (n > LABELS_MAX) luaL_error(L, "more than %d labels", LABELS_MAX);
    for (size_t i = 0; i < n; i++) values[i].at = luaL_checklstring(L, first + (int)i, &values[i].len);
    return metric_lookup(m, values, n);
}

static int l_add(lua_State *L) {
    struct metric *m = check_metric(L);
    metric_add(slot_of(L, m, 3), luaL_optnumber(L, 2, 1));
    return 0;
}

static int l_set(lua_State *L) {
    struct metric *m = check_metric(L);
    metric_set(slot_of(L, m, 3), luaL_checknumber(L, 2));
    return 0;
}

static int l_observe(lua_State *L) {
    struct metric *m = check_metric(L);
    metric_observe(m, slot_of(L, m, 3), luaL_checknumber(L, 2));
    return 0;
}

static int give(lua_State *L, struct metric *m) {
    struct metric **box = lua_newuserdata(L, sizeof(struct metric *));
    *box = m;
    luaL_getmetatable(L, METRIC);
    lua_setmetatable(L, -2);
    return 1;
}

/* Label names at `idx` as one text with commas, left on the stack; NULL without any. */
static const char *labels_at(lua_State *L, int idx) {
    if (!lua_istable(L, idx) || lua_objlen(L, idx) == 0) return NULL;
    luaL_Buffer b;
    luaL_buffinit(L, &b);
    size_t n = lua_objlen(L, idx);
    for (size_t i = 1; i <= n; i++) {
        if (i > 1) luaL_addchar(&b, ',');
        lua_rawgeti(L, idx, (int)i);
        luaL_addvalue(&b);
    }
    luaL_pushresult(&b);
    return lua_tostring(L, -1);
}

static int l_counter(lua_State *L) {
    const char *name = luaL_checkstring(L, 1), *help = luaL_checkstring(L, 2);
    return give(L, metric_counter(name, help, labels_at(L, 3)));
}

static int l_gauge(lua_State *L) {
    const char *name = luaL_checkstring(L, 1), *help = luaL_checkstring(L, 2);
    static const char *const words[] = {"max", "sum", "min", NULL};
    static const enum metric_merge merges[] = {METRIC_MAX, METRIC_SUM, METRIC_MIN};
    enum metric_merge merge = merges[luaL_checkoption(L, 4, "max", words)];
    return give(L, metric_gauge(name, help, merge, labels_at(L, 3)));
}

static int l_histogram(lua_State *L) {
    const char *name = luaL_checkstring(L, 1), *help = luaL_checkstring(L, 2);
    double bounds[24];
    size_t n = 0;
    if (lua_istable(L, 3)) {
        n = lua_objlen(L, 3);
        luaL_argcheck(L, n <= 24, 3, "at most 24 buckets");
        for (size_t i = 0; i < n; i++) {
            lua_rawgeti(L, 3, (int)i + 1);
            bounds[i] = luaL_checknumber(L, -1);
            lua_pop(L, 1);
        }
    }
    return give(L, metric_histogram(name, help, n ? bounds : NULL, n, labels_at(L, 4)));
}

static int l_render(lua_State *L) {
    struct buf b = {0};
    metrics_sample_process();
    if (!metrics_render(&b)) {
        buf_free(&b);
        return luaL_error(L, "out of memory");
    }
    guard_push_buf(L, &b);
    return 1;
}

int luaopen_core_metrics(lua_State *L) {
    static const luaL_Reg methods[] = {{"add", l_add}, {"set", l_set}, {"observe", l_observe}, {NULL, NULL}};
    static const luaL_Reg functions[] = {
        {"counter", l_counter}, {"gauge", l_gauge}, {"histogram", l_histogram}, {"render", l_render}, {NULL, NULL}};
    luaL_newmetatable(L, METRIC);
    lua_newtable(L);
    luaL_register(L, NULL, methods);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
