/* What the tests of core/stores/pg.h share: a server with two tenants' rows, pools that are closed whatever happens,
 * and calls that wait for their answers. Include it in one file of a program: its state is static. */
#ifndef KASMA_TESTS_PG_FIXTURE_H
#define KASMA_TESTS_PG_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "pg_server.h"
#include "stores/pg.h"

static struct pg_server server;
static bool through_bouncer;
static struct pg_pool *opened; /* the pool of the test that runs; one that fails leaves it to the tear-down */

struct answer {
    int count;
    size_t results;
    int rows;       /* of the last result */
    char text[256]; /* first value of each result, with blanks between */
    struct pg_error err;
    struct pg_tx *tx;
    struct pg_session *session;
};

static inline void keep(void *data, PGresult *const *result, size_t count, const struct pg_error *err) {
    struct answer *a = data;
    a->count++;
    if (err) {
        a->err = *err;
        return;
    }
    a->results = count;
    for (size_t i = 0; i < count; i++) {
        a->rows = PQntuples(result[i]);
        const char *value = a->rows > 0 && PQnfields(result[i]) > 0 ? PQgetvalue(result[i], 0, 0) : "-";
        size_t len = strlen(a->text);
        (void)snprintf(a->text + len, sizeof a->text - len, "%s%s", i ? " " : "", value);
    }
}

static inline void keep_tx(void *data, struct pg_tx *tx, const struct pg_error *err) {
    struct answer *a = data;
    a->count++;
    a->tx = tx;
    if (err) a->err = *err;
}

static inline void keep_session(void *data, struct pg_session *s, const struct pg_error *err) {
    struct answer *a = data;
    a->count++;
    a->session = s;
    if (err) a->err = *err;
}

static inline bool answered(void *data) {
    return ((struct answer *)data)->count > 0;
}
static inline bool is_idle(void *data) {
    return pg_pool_used(data) == 0;
}
static inline bool is_up(void *data) {
    return pg_pool_up(data);
}
static inline bool is_down(void *data) {
    return !pg_pool_up(data);
}

static inline void wait_answer(struct answer *a) {
    assert_true(run_until(answered, a, 60));
}

static inline struct pg_settings settings(unsigned connections) {
    static char url[256];
    const char *foreign = getenv("TEST_DATABASE_APP_URL");
    (void)snprintf(url, sizeof url, "postgresql://test_app@127.0.0.1:%d/postgres?sslmode=disable",
                   through_bouncer ? server.bouncer_port : server.port);
    return (struct pg_settings){.name = "app",
                                .url = server.foreign && foreign ? foreign : url,
                                .connections = connections,
                                .queue = 1000,
                                .prepare = !through_bouncer,
                                .wait_ms = 40000,
                                .statement_ms = 40000,
                                .connect_ms = 20000};
}

static inline void close_pool(struct pg_pool *p) {
    pg_pool_close(p);
    opened = NULL;
    run_closed();
}

static inline struct pg_pool *open_with(const struct pg_settings *s) {
    struct error err = {0};
    struct pg_pool *p = pg_pool_new(s, &err);
    assert_non_null(p);
    opened = p;
    return p;
}

static inline struct pg_pool *open_pool(unsigned connections) {
    struct pg_settings s = settings(connections);
    return open_with(&s);
}

static inline bool no_backends(void *data) {
    (void)data;
    char n[16];
    return pg_admin_run(&server, "select count(*) from pg_stat_activity where usename = 'test_app'", n, sizeof n) &&
           strcmp(n, "0") == 0;
}

/* Every test ends with this: nothing may be in use, and no backend may outlive the pool. */
static inline void shut(struct pg_pool *p) {
    assert_true(run_until(is_idle, p, 20));
    close_pool(p);
    if (!through_bouncer) assert_true(run_until(no_backends, NULL, 20));
}

#define ST(text, ...)                                                                                                  \
    ((struct pg_statement){.sql = STR(text),                                                                           \
                           .params = sizeof((struct str[]){{0}, __VA_ARGS__}) / sizeof(struct str) - 1,                \
                           .value = (struct str[]){{0}, __VA_ARGS__} + 1})
#define TENANT(t) ((t) ? str_of(t) : (struct str){0})

static inline struct answer run(struct pg_pool *p, const char *tenant, const struct pg_statement *s, size_t count) {
    struct answer a = {0};
    struct error err = {0};
    if (!pg_run(p, TENANT(tenant), s, count, keep, &a, &err))
        a.err.base = err;
    else
        wait_answer(&a);
    return a;
}

static inline struct answer one(struct pg_pool *p, const char *tenant, struct pg_statement s) {
    return run(p, tenant, &s, 1);
}

static inline struct answer get(struct pg_pool *p, const char *tenant, struct pg_statement s) {
    struct answer a = {0};
    struct error err = {0};
    if (!pg_read(p, TENANT(tenant), &s, keep, &a, &err))
        a.err.base = err;
    else
        wait_answer(&a);
    return a;
}

static inline struct pg_tx *begin(struct pg_pool *p, const char *tenant) {
    struct answer a = {0};
    struct error err = {0};
    assert_non_null(pg_begin(p, TENANT(tenant), keep_tx, &a, &err));
    wait_answer(&a);
    assert_non_null(a.tx);
    return a.tx;
}

static inline struct answer in_tx(struct pg_tx *tx, const struct pg_statement *s, size_t count, bool commit) {
    struct answer a = {0};
    struct error err = {0};
    if (!pg_tx_run(tx, s, count, commit, keep, &a, &err))
        a.err.base = err;
    else
        wait_answer(&a);
    return a;
}

static inline struct pg_session *open_session(struct pg_pool *p) {
    struct answer a = {0};
    struct error err = {0};
    assert_true(pg_session_open(p, keep_session, &a, &err));
    wait_answer(&a);
    assert_non_null(a.session);
    return a.session;
}

static inline struct answer script(struct pg_session *s, const char *sql) {
    struct answer a = {0};
    struct error err = {0};
    if (!pg_session_script(s, str_of(sql), keep, &a, &err))
        a.err.base = err;
    else
        wait_answer(&a);
    return a;
}

static inline struct answer in_session(struct pg_session *s, struct pg_statement st) {
    struct answer a = {0};
    struct error err = {0};
    if (!pg_session_run(s, &st, keep, &a, &err))
        a.err.base = err;
    else
        wait_answer(&a);
    return a;
}

static inline void admin(const char *sql) {
    assert_true(pg_admin_run(&server, sql, NULL, 0));
}

static inline void kill_backends(const char *which) {
    char sql[256], n[16];
    (void)snprintf(sql, sizeof sql,
                   "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'test_app' %s",
                   which);
    assert_true(pg_admin_run(&server, sql, n, sizeof n));
    assert_string_not_equal(n, "0");
}

static inline struct pg_statement by_key(const char *tenant, const char *id) {
    static struct str values[64][2];
    static size_t at;
    struct str *v = values[at++ % 64];
    v[0] = str_of(tenant);
    v[1] = str_of(id);
    return (struct pg_statement){
        .sql = STR("select v from things where tenant_key = $1 and id = $2"), .params = 2, .value = v};
}

static const struct pg_statement NO_TABLE = {.sql = {.at = "select 1 from no_such_table", .len = 27}};
static const struct pg_statement DIVIDE = {.sql = {.at = "select 1 / 0", .len = 12}};
static const struct pg_statement EVERYTHING = {
    .sql = {.at = "select coalesce(string_agg(distinct tenant_key, ','), 'none') from things",
            .len = sizeof "select coalesce(string_agg(distinct tenant_key, ','), 'none') from things" - 1}};
static const struct pg_statement SLOW = {.sql = {.at = "select pg_sleep(600)", .len = 20}};
static const struct pg_statement ADD = {.sql = {.at = "insert into things values ('acme', 't1', 'tx')", .len = 46}};
static const struct pg_statement COUNT = {
    .sql = {.at = "select count(*) from things where tenant_key = 'acme' and v = 'tx'", .len = 66}};

/* A count that the server answered with; -1 when it is none. */
static inline long number(const char *text) {
    char *end;
    long n = strtol(text, &end, 10);
    return end == text || *end ? -1 : n;
}

static inline bool sleeping(void *data) {
    char n[16];
    return pg_admin_run(&server,
                        "select count(*) from pg_stat_activity where usename = 'test_app' and wait_event = 'PgSleep'",
                        n, sizeof n) &&
           number(n) == *(int *)data;
}

static inline int start_server(void **state) {
    (void)state;
    if (!loop_open() || !pg_server_start(&server)) return -1;
    return pg_admin_run(&server,
                        "drop table if exists things, plain, late, shifting; drop role if exists test_app;"
                        "create role test_app login nosuperuser nobypassrls;"
                        "create table things (tenant_key text not null, id text not null, v text not null,"
                        " constraint things_pkey primary key (tenant_key, id));"
                        "alter table things enable row level security; alter table things force row level security;"
                        "create policy tenant on things using (tenant_key = current_setting('kasma.tenant_key', true))"
                        " with check (tenant_key = current_setting('kasma.tenant_key', true));"
                        "insert into things values ('acme', '1', 'acme one'), ('acme', '2', 'acme two'), ('bolt', '1', "
                        "'bolt one');"
                        "create table plain (n int constraint plain_pkey primary key);"
                        "create table late (n int constraint late_once unique deferrable initially deferred);"
                        "create table shifting (a int); insert into shifting values (1);"
                        "grant all on things, plain, late, shifting to test_app;"
                        "alter database postgres set timezone = 'Asia/Ho_Chi_Minh'",
                        NULL, 0)
               ? 0
               : -1;
}

static inline int stop_server(void **state) {
    (void)state;
    pg_server_end(&server);
    return 0;
}

static inline int clean_up(void **state) {
    (void)state;
    if (opened) close_pool(opened);
    return 0;
}

#define TEST(name) cmocka_unit_test_teardown(name, clean_up)

#endif
