/* core.pg: pool, read, query, pipeline, begin, session, listen, notify. Argument checks and conversion; the work is
 * core/stores/pg.h. */
#include <lauxlib.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/config.h"
#include "runtime/loop.h"
#include "script/bind.h"
#include "script/bind_pg_value.h"
#include "script/task.h"

#define POOL "core.pg.pool"
#define TX "core.pg.tx"
#define SESSION "core.pg.session"
#define STATEMENTS_MAX 10000
#define ON_STACK_MAX 2000 /* values of statements */

struct lua_tx {
    struct pg_tx *tx; /* NULL when it has ended */
    struct deferred *undo;
};

struct lua_session {
    struct pg_session *session; /* NULL when closed */
};

static const struct {
    const char *name, *url;
} known[] = {{"app", "DATABASE_URL"}, {"system", "DATABASE_SYSTEM_URL"}, {"owner", "DATABASE_OWNER_URL"}};

static struct pg_pool *pools[sizeof known / sizeof *known];

static struct pg_pool *pool_at(size_t i, struct error *err) {
    if (pools[i]) return pools[i];
    const char *url = config_str(known[i].url);
    if (!url || !*url) {
        error_set(err, ERR_UNAVAILABLE, "%s is not set", known[i].url);
        return NULL;
    }
    const struct pg_settings settings = {
        .name = known[i].name,
        .url = url,
        .connections = i == 0 ? (unsigned)config_int("DATABASE_POOL") : 4,
        .queue = (unsigned)config_int("DATABASE_QUEUE"),
        .prepare = config_bool("DATABASE_PREPARE"),
        .wait_ms = (unsigned)config_int("DATABASE_WAIT_MS"),
        .statement_ms = (unsigned)config_int("DATABASE_STATEMENT_MS"),
        .connect_ms = (unsigned)config_int("DATABASE_CONNECT_MS"),
    };
    pools[i] = pg_pool_new(&settings, err);
    return pools[i];
}

static struct pg_pool *check_pool(lua_State *L) {
    return *(struct pg_pool **)luaL_checkudata(L, 1, POOL);
}

static struct str check_tenant(lua_State *L, int idx) {
    struct str tenant = {0};
    if (!lua_isnoneornil(L, idx)) tenant.at = luaL_checklstring(L, idx, &tenant.len);
    return tenant;
}

/* ---- one statement ---- */

/* What the server said. The results are cleared by those who call back, also when they could not be handed on. */
struct outcome {
    PGresult *const *result;
    size_t count;
    const struct pg_error *err;
};

static int push_rows(lua_State *L, void *data) {
    const struct outcome *o = data;
    struct error bad;
    if (o->err) return pg_value_error(L, o->err);
    if (o->count > 0) return pg_value_rows(L, o->result[0], &bad) ? 1 : task_fail(L, &bad);
    lua_newtable(L);
    return 1;
}

static void rows_done(void *data, PGresult *const *result, size_t count, const struct pg_error *err) {
    task_answer(data, push_rows, &(struct outcome){result, count, err});
}

static int push_failure(lua_State *L, void *data) {
    return pg_value_error(L, data);
}

static void answer_failure(struct task *t, const struct pg_error *err) {
    struct pg_error copy = *err;
    task_answer(t, push_failure, &copy);
}

static void forget(void *op) {
    pg_forget(op);
}

static int wait_for(lua_State *L, struct task *t, struct pg_call *call, const struct error *err) {
    if (!call) return task_fail(L, err);
    return task_suspend(L, t, forget, call);
}

static int l_read(lua_State *L) {
    struct pg_pool *p = check_pool(L);
    struct task *t = task_current(L);
    struct pg_statement s;
    struct error err;
    pg_value_statement(L, 3, lua_gettop(L), &s);
    return wait_for(L, t, pg_read(p, check_tenant(L, 2), &s, rows_done, t, &err), &err);
}

static int l_query(lua_State *L) {
    struct pg_pool *p = check_pool(L);
    struct task *t = task_current(L);
    struct pg_statement s;
    struct error err;
    pg_value_statement(L, 3, lua_gettop(L), &s);
    return wait_for(L, t, pg_run(p, check_tenant(L, 2), &s, 1, rows_done, t, &err), &err);
}

/* ---- several statements ---- */

static int push_lists(lua_State *L, void *data) {
    const struct outcome *o = data;
    struct error bad;
    if (o->err) return pg_value_error(L, o->err);
    lua_createtable(L, (int)o->count, 0);
    for (size_t i = 0; i < o->count; i++) {
        if (!pg_value_rows(L, o->result[i], &bad)) return task_fail(L, &bad);
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}

static void lists_done(void *data, PGresult *const *result, size_t count, const struct pg_error *err) {
    task_answer(data, push_lists, &(struct outcome){result, count, err});
}

/* The statements of the list at `idx`; they and their texts stay alive on the stack, or in a table on it: a C function
 * has room for 8,000 values, which the order of a large cart exceeds. */
static struct pg_statement *statements(lua_State *L, int idx, size_t *count) {
    luaL_checktype(L, idx, LUA_TTABLE);
    *count = lua_objlen(L, idx);
    if (*count == 0 || *count > STATEMENTS_MAX) luaL_error(L, "a pipeline holds 1 to %d statements", STATEMENTS_MAX);
    struct pg_statement *list = lua_newuserdata(L, *count * sizeof *list);
    lua_newtable(L);
    int kept = lua_gettop(L), n = 0;
    for (size_t i = 0; i < *count; i++) {
        luaL_checkstack(L, 8, "a pipeline");
        lua_rawgeti(L, idx, (int)i + 1);
        pg_value_statement_table(L, lua_gettop(L), &list[i]);
        if (lua_gettop(L) - kept < ON_STACK_MAX) continue;
        while (lua_gettop(L) > kept) lua_rawseti(L, kept, ++n);
    }
    return list;
}

static int l_pipeline(lua_State *L) {
    struct pg_pool *p = check_pool(L);
    struct task *t = task_current(L);
    struct error err;
    size_t count;
    const struct pg_statement *list = statements(L, 3, &count);
    struct pg_call *call = pg_run(p, check_tenant(L, 2), list, count, lists_done, t, &err);
    lua_settop(L, 1);
    return wait_for(L, t, call, &err);
}

/* ---- transactions ---- */

static void undo(void *data) {
    struct lua_tx *tx = data;
    struct pg_tx *open = tx->tx;
    tx->tx = NULL;
    if (open) pg_tx_rollback(open);
}

struct new_tx {
    struct task *task;
    struct pg_tx *tx; /* NULL: the userdata has it */
};

/* Rolled back by the end of the task, or by the collector when a task that lives for ever has lost it. */
static int push_tx(lua_State *L, void *data) {
    struct new_tx *new = data;
    struct lua_tx *held = lua_newuserdata(L, sizeof *held);
    *held = (struct lua_tx){0};
    luaL_getmetatable(L, TX);
    lua_setmetatable(L, -2);
    held->undo = arena_defer(task_arena(new->task), undo, held);
    if (!held->undo) return luaL_error(L, "out of memory");
    held->tx = new->tx; /* from here on nothing raises */
    new->tx = NULL;
    return 1;
}

static void tx_ready(void *data, struct pg_tx *tx, const struct pg_error *err) {
    if (err) {
        answer_failure(data, err);
        return;
    }
    struct new_tx new = {.task = data, .tx = tx};
    int n = task_put(data, push_tx, &new);
    if (new.tx) pg_tx_rollback(new.tx);
    task_resume(data, n);
}

static int l_begin(lua_State *L) {
    struct pg_pool *p = check_pool(L);
    struct task *t = task_current(L);
    struct error err;
    return wait_for(L, t, pg_begin(p, check_tenant(L, 2), tx_ready, t, &err), &err);
}

static struct lua_tx *check_tx(lua_State *L) {
    struct lua_tx *tx = luaL_checkudata(L, 1, TX);
    if (!tx->tx) luaL_error(L, "the transaction has ended");
    return tx;
}

static int l_tx_query(lua_State *L) {
    struct lua_tx *tx = check_tx(L);
    struct task *t = task_current(L);
    struct pg_statement s;
    struct error err;
    pg_value_statement(L, 2, lua_gettop(L), &s);
    return wait_for(L, t, pg_tx_run(tx->tx, &s, 1, false, rows_done, t, &err), &err);
}

static int l_tx_pipeline(lua_State *L) {
    struct lua_tx *tx = check_tx(L);
    struct task *t = task_current(L);
    struct error err;
    size_t count;
    const struct pg_statement *list = statements(L, 2, &count);
    struct pg_call *call = pg_tx_run(tx->tx, list, count, false, lists_done, t, &err);
    lua_settop(L, 1);
    return wait_for(L, t, call, &err);
}

static int l_tx_commit(lua_State *L) {
    struct lua_tx *tx = check_tx(L);
    struct task *t = task_current(L);
    struct error err;
    size_t count = 0;
    const struct pg_statement *list = lua_isnoneornil(L, 2) ? NULL : statements(L, 2, &count);
    struct pg_call *call = pg_tx_run(tx->tx, list, count, true, lists_done, t, &err);
    if (call) {
        /* From now on it ends by itself, whatever becomes of the task. */
        deferred_cancel(tx->undo);
        tx->tx = NULL;
    }
    lua_settop(L, 1);
    return wait_for(L, t, call, &err);
}

static int l_tx_rollback(lua_State *L) {
    struct lua_tx *tx = luaL_checkudata(L, 1, TX);
    if (tx->tx) deferred_run(tx->undo);
    lua_pushboolean(L, true);
    return 1;
}

/* ---- sessions ---- */

struct new_session {
    struct pg_session *session; /* NULL: the userdata has it */
};

static int push_session(lua_State *L, void *data) {
    struct new_session *new = data;
    struct lua_session *box = lua_newuserdata(L, sizeof *box);
    box->session = NULL;
    luaL_getmetatable(L, SESSION);
    lua_setmetatable(L, -2);
    box->session = new->session;
    new->session = NULL;
    return 1;
}

static void session_ready(struct task *t, struct pg_session *s, const struct pg_error *err) {
    if (err) {
        answer_failure(t, err);
        return;
    }
    struct new_session new = {s};
    int n = task_put(t, push_session, &new);
    if (new.session) pg_session_close(new.session);
    task_resume(t, n);
}

/* A connection that is being made for a task that is gone closes itself when it stands. */
struct opening {
    struct task *task;
};

static void opening_ready(void *data, struct pg_session *s, const struct pg_error *err) {
    struct opening *o = data;
    struct task *t = o->task;
    free(o);
    if (t) {
        session_ready(t, s, err);
    } else if (s) {
        pg_session_close(s);
    }
}

static void opening_cancel(void *op) {
    struct opening *o = op;
    o->task = NULL;
}

static int l_session(lua_State *L) {
    struct pg_pool *p = check_pool(L);
    struct task *t = task_current(L);
    struct error err;
    struct opening *o = malloc(sizeof *o);
    if (!o) return luaL_error(L, "out of memory");
    o->task = t;
    if (!pg_session_open(p, opening_ready, o, &err)) {
        free(o);
        return task_fail(L, &err);
    }
    return task_suspend(L, t, opening_cancel, o);
}

static struct lua_session *check_session(lua_State *L) {
    struct lua_session *box = luaL_checkudata(L, 1, SESSION);
    if (!box->session) luaL_error(L, "the session is closed");
    return box;
}

static int l_session_query(lua_State *L) {
    struct lua_session *box = check_session(L);
    struct task *t = task_current(L);
    struct pg_statement s;
    struct error err;
    pg_value_statement(L, 2, lua_gettop(L), &s);
    return wait_for(L, t, pg_session_run(box->session, &s, rows_done, t, &err), &err);
}

static int l_session_script(lua_State *L) {
    struct lua_session *box = check_session(L);
    struct task *t = task_current(L);
    struct str sql;
    struct error err;
    sql.at = luaL_checklstring(L, 2, &sql.len);
    return wait_for(L, t, pg_session_script(box->session, sql, rows_done, t, &err), &err);
}

static int l_session_close(lua_State *L) {
    struct lua_session *box = luaL_checkudata(L, 1, SESSION);
    if (box->session) pg_session_close(box->session);
    box->session = NULL;
    return 0;
}

/* ---- LISTEN ---- */

#define LISTEN_AGAIN_MS 500

/* One channel heard for the life of the process; connects again by itself. */
struct listener {
    struct pg_pool *pool;
    lua_State *main;
    int fn;
    char channel[64];
    struct pg_session *session;
    uv_timer_t again;
};

static void listen_now(struct listener *l);

struct notice {
    const struct listener *listener;
    struct str payload;
};

static int push_notice(lua_State *L, void *data) {
    const struct notice *n = data;
    lua_rawgeti(L, LUA_REGISTRYINDEX, n->listener->fn);
    if (n->payload.at)
        lua_pushlstring(L, n->payload.at, n->payload.len);
    else
        lua_pushnil(L);
    return 2;
}

static void call_listener(struct listener *l, struct str payload) {
    struct notice n = {l, payload};
    bool started = task_begin(l->main, push_notice, &n, NULL, task_log_finished, NULL, NULL);
    (void)started; /* out of memory: the listener polls as well */
}

static void on_again(uv_timer_t *timer) {
    listen_now(timer->data);
}

static void listen_later(struct listener *l) {
    int started = uv_timer_start(&l->again, on_again, LISTEN_AGAIN_MS, 0);
    (void)started;
}

static void listen_lost(void *data) {
    struct listener *l = data;
    if (l->session) pg_session_close(l->session);
    l->session = NULL;
    listen_later(l);
}

static void listen_heard(void *data, struct str channel, struct str payload) {
    (void)channel;
    call_listener(data, payload);
}

static void listen_done(void *data, PGresult *const *result, size_t count, const struct pg_error *err) {
    (void)result;
    (void)count;
    if (err)
        listen_lost(data);
    else
        call_listener(data, (struct str){0}); /* what was missed while away is for the poll to find */
}

static void listen_ready(void *data, struct pg_session *s, const struct pg_error *err) {
    struct listener *l = data;
    if (err) {
        listen_later(l);
        return;
    }
    l->session = s;
    pg_session_hear(s, listen_heard, listen_lost, l);
    char sql[80] = "LISTEN ";
    memcpy(sql + 7, l->channel, strlen(l->channel) + 1);
    const struct pg_statement st = {.sql = str_of(sql)};
    struct error bad;
    if (!pg_session_run(s, &st, listen_done, l, &bad)) listen_lost(l);
}

static void listen_now(struct listener *l) {
    struct error err;
    if (!pg_session_open(l->pool, listen_ready, l, &err)) listen_later(l);
}

static bool plain_word(struct str s) {
    if (s.len == 0 || s.len > 60) return false;
    for (size_t i = 0; i < s.len; i++)
        if (!((s.at[i] >= 'a' && s.at[i] <= 'z') || s.at[i] == '_')) return false;
    return true;
}

static struct str check_channel(lua_State *L, int idx) {
    struct str channel;
    channel.at = luaL_checklstring(L, idx, &channel.len);
    luaL_argcheck(L, plain_word(channel), idx, "a channel is a lower-case word");
    return channel;
}

static int l_listen(lua_State *L) {
    struct pg_pool *p = check_pool(L);
    struct str channel = check_channel(L, 2);
    luaL_checktype(L, 3, LUA_TFUNCTION);
    lua_pushvalue(L, 3);
    int fn = luaL_ref(L, LUA_REGISTRYINDEX);
    struct listener *l = calloc(1, sizeof *l);
    if (!l) {
        luaL_unref(L, LUA_REGISTRYINDEX, fn);
        return luaL_error(L, "out of memory");
    }
    l->pool = p;
    l->main = task_main(L);
    l->fn = fn;
    memcpy(l->channel, channel.at, channel.len);
    l->again.data = l;
    int made = uv_timer_init(loop_get(), &l->again);
    (void)made; /* cannot fail */
    uv_unref((uv_handle_t *)&l->again);
    listen_now(l);
    return 0;
}

static int l_notify(lua_State *L) {
    pg_notify(check_pool(L), check_channel(L, 2));
    return 0;
}

static int l_up(lua_State *L) {
    lua_pushboolean(L, pg_pool_up(check_pool(L)));
    return 1;
}

static int l_stats(lua_State *L) {
    struct pg_pool *p = check_pool(L);
    lua_createtable(L, 0, 2);
    lua_pushinteger(L, (lua_Integer)pg_pool_open(p));
    lua_setfield(L, -2, "open");
    lua_pushinteger(L, (lua_Integer)pg_pool_used(p));
    lua_setfield(L, -2, "used");
    return 1;
}

static int l_pool(lua_State *L) {
    const char *name = luaL_checkstring(L, 1);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i].name, name) != 0) continue;
        struct error err;
        struct pg_pool *p = pool_at(i, &err);
        if (!p) return luaL_error(L, "pool %s: %s", name, err.message);
        struct pg_pool **box = lua_newuserdata(L, sizeof(struct pg_pool *));
        *box = p;
        luaL_getmetatable(L, POOL);
        lua_setmetatable(L, -2);
        return 1;
    }
    return luaL_error(L, "there is no pool %s", name);
}

static void make_class(lua_State *L, const char *name, const luaL_Reg *methods) {
    luaL_newmetatable(L, name);
    lua_newtable(L);
    luaL_register(L, NULL, methods);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);
}

int luaopen_core_pg(lua_State *L) {
    static const luaL_Reg pool[] = {{"read", l_read},     {"query", l_query},     {"pipeline", l_pipeline},
                                    {"begin", l_begin},   {"session", l_session}, {"listen", l_listen},
                                    {"notify", l_notify}, {"up", l_up},           {"stats", l_stats},
                                    {NULL, NULL}};
    static const luaL_Reg tx[] = {{"query", l_tx_query},
                                  {"pipeline", l_tx_pipeline},
                                  {"commit", l_tx_commit},
                                  {"rollback", l_tx_rollback},
                                  {NULL, NULL}};
    static const luaL_Reg session[] = {
        {"query", l_session_query}, {"script", l_session_script}, {"close", l_session_close}, {NULL, NULL}};
    static const luaL_Reg functions[] = {
        {"pool", l_pool}, {"array", pg_value_array}, {"json", pg_value_json}, {"bytea", pg_value_bytea}, {NULL, NULL}};
    make_class(L, POOL, pool);
    make_class(L, TX, tx);
    make_class(L, SESSION, session);
    luaL_getmetatable(L, SESSION);
    lua_pushcfunction(L, l_session_close);
    lua_setfield(L, -2, "__gc");
    luaL_getmetatable(L, TX);
    lua_pushcfunction(L, l_tx_rollback);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 2);
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
