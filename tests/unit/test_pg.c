// link: stores
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

static void keep(void *data, PGresult *const *result, size_t count, const struct pg_error *err) {
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

static void keep_tx(void *data, struct pg_tx *tx, const struct pg_error *err) {
    struct answer *a = data;
    a->count++;
    a->tx = tx;
    if (err) a->err = *err;
}

static void keep_session(void *data, struct pg_session *s, const struct pg_error *err) {
    struct answer *a = data;
    a->count++;
    a->session = s;
    if (err) a->err = *err;
}

static bool answered(void *data) {
    return ((struct answer *)data)->count > 0;
}
static bool is_idle(void *data) {
    return pg_pool_used(data) == 0;
}
static bool is_up(void *data) {
    return pg_pool_up(data);
}
static bool is_down(void *data) {
    return !pg_pool_up(data);
}

static void wait_answer(struct answer *a) {
    assert_true(run_until(answered, a, 20));
}

static struct pg_settings settings(unsigned connections) {
    static char url[256];
    const char *foreign = getenv("TEST_DATABASE_APP_URL");
    (void)snprintf(url, sizeof url, "postgresql://test_app@127.0.0.1:%d/postgres?sslmode=disable",
                   through_bouncer ? server.bouncer_port : server.port);
    return (struct pg_settings){.name = "app",
                                .url = server.foreign && foreign ? foreign : url,
                                .connections = connections,
                                .queue = 1000,
                                .prepare = !through_bouncer,
                                .wait_ms = 10000,
                                .statement_ms = 10000,
                                .connect_ms = 5000};
}

static void close_pool(struct pg_pool *p) {
    pg_pool_close(p);
    opened = NULL;
    run_closed();
}

static struct pg_pool *open_with(const struct pg_settings *s) {
    struct error err = {0};
    struct pg_pool *p = pg_pool_new(s, &err);
    assert_non_null(p);
    opened = p;
    return p;
}

static struct pg_pool *open_pool(unsigned connections) {
    struct pg_settings s = settings(connections);
    return open_with(&s);
}

static bool no_backends(void *data) {
    (void)data;
    char n[16];
    return pg_admin_run(&server, "select count(*) from pg_stat_activity where usename = 'test_app'", n, sizeof n) &&
           strcmp(n, "0") == 0;
}

/* Every test ends with this: nothing may be in use, and no backend may outlive the pool. */
static void shut(struct pg_pool *p) {
    assert_true(run_until(is_idle, p, 20));
    close_pool(p);
    if (!through_bouncer) assert_true(run_until(no_backends, NULL, 20));
}

#define ST(text, ...)                                                                                                  \
    ((struct pg_statement){.sql = STR(text),                                                                           \
                           .params = sizeof((struct str[]){{0}, __VA_ARGS__}) / sizeof(struct str) - 1,                \
                           .value = (struct str[]){{0}, __VA_ARGS__} + 1})
#define TENANT(t) ((t) ? str_of(t) : (struct str){0})

static struct answer run(struct pg_pool *p, const char *tenant, const struct pg_statement *s, size_t count) {
    struct answer a = {0};
    struct error err = {0};
    if (!pg_run(p, TENANT(tenant), s, count, keep, &a, &err))
        a.err.base = err;
    else
        wait_answer(&a);
    return a;
}

static struct answer one(struct pg_pool *p, const char *tenant, struct pg_statement s) {
    return run(p, tenant, &s, 1);
}

static struct answer get(struct pg_pool *p, const char *tenant, struct pg_statement s) {
    struct answer a = {0};
    struct error err = {0};
    if (!pg_read(p, TENANT(tenant), &s, keep, &a, &err))
        a.err.base = err;
    else
        wait_answer(&a);
    return a;
}

static struct pg_tx *begin(struct pg_pool *p, const char *tenant) {
    struct answer a = {0};
    struct error err = {0};
    assert_non_null(pg_begin(p, TENANT(tenant), keep_tx, &a, &err));
    wait_answer(&a);
    assert_non_null(a.tx);
    return a.tx;
}

static struct answer in_tx(struct pg_tx *tx, const struct pg_statement *s, size_t count, bool commit) {
    struct answer a = {0};
    struct error err = {0};
    if (!pg_tx_run(tx, s, count, commit, keep, &a, &err))
        a.err.base = err;
    else
        wait_answer(&a);
    return a;
}

static struct pg_session *open_session(struct pg_pool *p) {
    struct answer a = {0};
    struct error err = {0};
    assert_true(pg_session_open(p, keep_session, &a, &err));
    wait_answer(&a);
    assert_non_null(a.session);
    return a.session;
}

static struct answer script(struct pg_session *s, const char *sql) {
    struct answer a = {0};
    struct error err = {0};
    if (!pg_session_script(s, str_of(sql), keep, &a, &err))
        a.err.base = err;
    else
        wait_answer(&a);
    return a;
}

static struct answer in_session(struct pg_session *s, struct pg_statement st) {
    struct answer a = {0};
    struct error err = {0};
    if (!pg_session_run(s, &st, keep, &a, &err))
        a.err.base = err;
    else
        wait_answer(&a);
    return a;
}

static void admin(const char *sql) {
    assert_true(pg_admin_run(&server, sql, NULL, 0));
}

static void kill_backends(const char *which) {
    char sql[256], n[16];
    (void)snprintf(sql, sizeof sql,
                   "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'test_app' %s",
                   which);
    assert_true(pg_admin_run(&server, sql, n, sizeof n));
    assert_string_not_equal(n, "0");
}

static struct pg_statement by_key(const char *tenant, const char *id) {
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
static const struct pg_statement SLOW = {.sql = {.at = "select pg_sleep(30)", .len = 19}};

/* ---- statements ---- */

static void a_row_is_found_by_its_key(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(2);
    struct answer a = get(p, "acme", by_key("acme", "1"));
    assert_int_equal(a.err.base.kind, ERR_NONE);
    assert_string_equal(a.text, "acme one");
    assert_string_equal(one(p, "acme", by_key("acme", "1")).text, "acme one");
    assert_int_equal(get(p, "acme", by_key("acme", "9")).rows, 0);
    assert_string_equal(get(p, NULL, ST("select $1::int + $2::int", STR("40"), STR("2"))).text, "42");
    assert_string_equal(one(p, NULL, ST("select $1::text is null", (struct str){0})).text, "t");
    assert_string_equal(one(p, NULL, ST("show timezone")).text, "UTC");
    assert_true(pg_pool_up(p));
    shut(p);
}

static void a_pipeline_is_all_or_nothing_and_names_the_statement_at_fault(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    struct pg_statement good[] = {ST("insert into things values ($1, $2, 'new')", STR("acme"), STR("p1")),
                                  ST("insert into things values ($1, $2, 'new') returning id", STR("acme"), STR("p2")),
                                  ST("select count(*) from things where tenant_key = $1 and v = 'new'", STR("acme"))};
    struct answer a = run(p, "acme", good, 3);
    assert_int_equal(a.err.base.kind, ERR_NONE);
    assert_string_equal(a.text, "- p2 2");
    struct pg_statement bad[] = {ST("insert into things values ($1, $2, 'bad')", STR("acme"), STR("p3")),
                                 ST("insert into things values ($1, $2, 'bad')", STR("acme"), STR("p4")),
                                 ST("insert into things values ($1, $2, 'bad')", STR("acme"), STR("p1")),
                                 ST("insert into things values ($1, $2, 'bad')", STR("acme"), STR("p5"))};
    a = run(p, "acme", bad, 4);
    assert_int_equal(a.err.base.kind, ERR_QUERY);
    assert_string_equal(a.err.base.code, "23505");
    assert_string_equal(a.err.constraint, "things_pkey");
    assert_string_equal(a.err.table, "things");
    assert_int_equal(a.err.statement, 2);
    assert_string_equal(
        one(p, "acme", ST("select count(*) from things where tenant_key = $1 and v = 'bad'", STR("acme"))).text, "0");
    /* Without a tenant too. */
    struct pg_statement platform[] = {ST("insert into plain values (1)"), ST("insert into plain values (1)")};
    a = run(p, NULL, platform, 2);
    assert_string_equal(a.err.base.code, "23505");
    assert_int_equal(a.err.statement, 1);
    assert_string_equal(one(p, NULL, ST("select count(*) from plain")).text, "0");
    assert_string_equal(one(p, "acme", ST("delete from things where tenant_key = $1 and v = 'new'", STR("acme"))).text,
                        "-");
    shut(p);
}

static void the_number_of_a_shard_is_taken_off_a_constraint(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    struct answer a = one(
        p, NULL, ST("do $$ begin raise exception using errcode = '23505', constraint = 'things_pkey_102008'; end $$"));
    assert_string_equal(a.err.constraint, "things_pkey");
    a = one(p, NULL,
            ST("do $$ begin raise exception 'duplicate key violates unique constraint \"things_pkey_7\"' using errcode "
               "= '23505'; end $$"));
    assert_string_equal(a.err.constraint, "things_pkey");
    shut(p);
}

static void bad_input_is_refused_before_anything_is_sent(void **state) {
    (void)state;
    struct error err = {0};
    struct pg_settings s = settings(1);
    s.url = "postgresql://[nowhere";
    assert_null(pg_pool_new(&s, &err));
    assert_int_equal(err.kind, ERR_INVALID);
    struct pg_pool *p = open_pool(1);
    static const char *const keys[] = {
        "", "-a", "a'b", "a b", "_a", "a;b", "0123456789012345678901234567890123456789012345678901234567890123"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        assert_null(pg_read(p, str_of(keys[i]), &DIVIDE, keep, NULL, &err));
        assert_int_equal(err.kind, ERR_INVALID);
    }
    assert_int_equal(pg_pool_open(p), 0);
    shut(p);
}

/* ---- isolation ---- */

struct turn {
    struct answer a;
    const char *tenant;
    bool fails;
};

/* Two tenants in turn over one connection, every second call failing, in every form that a call has. */
static void isolation(unsigned connections) {
    struct pg_pool *p = open_pool(connections);
    static const char *const tenants[] = {"acme", "bolt"};
    for (int round = 0; round < 40; round++) {
        struct turn turns[16] = {0};
        for (size_t i = 0; i < 16; i++) {
            struct turn *t = &turns[i];
            struct error err;
            t->tenant = tenants[(i + (size_t)round) % 2];
            t->fails = i / 2 % 2 == 1;
            const struct pg_statement *s = t->fails ? (i % 3 ? &DIVIDE : &NO_TABLE) : &EVERYTHING;
            struct pg_statement pair[2] = {EVERYTHING, *s};
            if (i % 4 == 3)
                assert_non_null(pg_run(p, str_of(t->tenant), pair, t->fails ? 2 : 1, keep, &t->a, &err));
            else if (i % 4 == 2)
                assert_non_null(pg_run(p, str_of(t->tenant), s, 1, keep, &t->a, &err));
            else
                assert_non_null(pg_read(p, str_of(t->tenant), s, keep, &t->a, &err));
        }
        struct answer nobody = {0};
        struct error err;
        assert_non_null(pg_read(p, (struct str){0}, &EVERYTHING, keep, &nobody, &err));
        for (size_t i = 0; i < 16; i++) {
            wait_answer(&turns[i].a);
            if (turns[i].fails)
                assert_int_equal(turns[i].a.err.base.kind, ERR_QUERY);
            else
                assert_string_equal(turns[i].a.text, turns[i].tenant);
        }
        wait_answer(&nobody);
        assert_string_equal(nobody.text, "none");
        /* A transaction that fails, one that is dropped half-way, and one that is left without a statement. */
        struct pg_tx *tx = begin(p, tenants[round % 2]);
        assert_string_equal(in_tx(tx, &EVERYTHING, 1, false).text, tenants[round % 2]);
        if (round % 2) assert_int_equal(in_tx(tx, &DIVIDE, 1, round % 4 == 1).err.base.kind, ERR_QUERY);
        if (round % 4 != 1) pg_tx_rollback(tx);
        if (round % 3 == 0) pg_tx_rollback(begin(p, tenants[round % 2]));
        assert_string_equal(get(p, NULL, EVERYTHING).text, "none");
        assert_string_equal(get(p, tenants[(round + 1) % 2], EVERYTHING).text, tenants[(round + 1) % 2]);
        /* Not even a BEGIN that a statement left open reaches the next one. */
        assert_int_equal(one(p, NULL, ST("begin")).err.base.kind, ERR_NONE);
        assert_string_equal(get(p, NULL, EVERYTHING).text, "none");
    }
    assert_true(pg_pool_open(p) <= connections);
    shut(p);
}

static void one_connection_never_shows_a_tenant_the_rows_of_another(void **state) {
    (void)state;
    isolation(1);
}

static void a_row_of_another_tenant_can_not_be_written(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    struct answer a = one(p, "acme", ST("insert into things values ('bolt', 'x', 'x')"));
    assert_string_equal(a.err.base.code, "42501");
    assert_string_equal(one(p, "acme", ST("delete from things where tenant_key = 'bolt' returning id")).text, "-");
    assert_string_equal(get(p, "bolt", by_key("bolt", "1")).text, "bolt one");
    shut(p);
}

/* ---- shared reads ---- */

static void reads_of_one_turn_share_a_transaction(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(4);
    struct answer a[10] = {0};
    struct error err;
    struct pg_statement when = ST("select txid_current_snapshot()::text || now()::text");
    for (size_t i = 0; i < 10; i++)
        assert_non_null(pg_read(p, str_of(i % 2 ? "acme" : "bolt"), &when, keep, &a[i], &err));
    for (size_t i = 0; i < 10; i++) wait_answer(&a[i]);
    for (size_t i = 2; i < 10; i++) assert_string_equal(a[i].text, a[i % 2].text);
    assert_string_not_equal(a[0].text, a[1].text);
    shut(p);
}

static void a_shared_read_that_fails_harms_no_other(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(2);
    struct answer a[40] = {0};
    struct error err;
    for (size_t i = 0; i < 40; i++) {
        struct pg_statement s = i % 10 == 4 ? DIVIDE : by_key("acme", i % 2 ? "1" : "2");
        assert_non_null(pg_read(p, STR("acme"), &s, keep, &a[i], &err));
    }
    for (size_t i = 0; i < 40; i++) {
        wait_answer(&a[i]);
        if (i % 10 == 4) {
            assert_string_equal(a[i].err.base.code, "22012");
        } else {
            assert_int_equal(a[i].err.base.kind, ERR_NONE);
            assert_string_equal(a[i].text, i % 2 ? "acme one" : "acme two");
        }
    }
    for (size_t i = 0; i < 40; i++) assert_int_equal(a[i].count, 1);
    shut(p);
}

static void a_statement_timeout_of_the_role_drops_no_connection(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    char before[256];
    (void)snprintf(before, sizeof before, "%s", one(p, NULL, ST("select pg_backend_pid()")).text);
    struct pg_statement slow[] = {ST("set local statement_timeout = 20"), SLOW};
    struct answer a = run(p, "acme", slow, 2);
    assert_int_equal(a.err.base.kind, ERR_TIMEOUT);
    assert_string_equal(a.err.base.code, "57014");
    assert_string_equal(one(p, NULL, ST("select pg_backend_pid()")).text, before);
    shut(p);
}

/* ---- transactions ---- */

static const struct pg_statement ADD = {.sql = {.at = "insert into things values ('acme', 't1', 'tx')", .len = 46}};
static const struct pg_statement COUNT = {
    .sql = {.at = "select count(*) from things where tenant_key = 'acme' and v = 'tx'", .len = 66}};

static void a_transaction_commits_or_rolls_back(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(2);
    struct pg_tx *tx = begin(p, "acme");
    assert_int_equal(pg_pool_used(p), 1);
    assert_int_equal(in_tx(tx, &ADD, 1, false).err.base.kind, ERR_NONE);
    assert_string_equal(in_tx(tx, &COUNT, 1, false).text, "1");
    assert_string_equal(get(p, "acme", COUNT).text, "0");
    pg_tx_rollback(tx);
    assert_true(run_until(is_idle, p, 20));
    assert_string_equal(get(p, "acme", COUNT).text, "0");
    tx = begin(p, "acme");
    assert_int_equal(in_tx(tx, &ADD, 1, false).err.base.kind, ERR_NONE);
    struct answer a = in_tx(tx, &COUNT, 1, true);
    assert_string_equal(a.text, "1");
    assert_string_equal(get(p, "acme", COUNT).text, "1");
    tx = begin(p, "acme");
    assert_int_equal(
        in_tx(tx, (struct pg_statement[]){ST("delete from things where v = 'tx'")}, 1, false).err.base.kind, ERR_NONE);
    a = in_tx(tx, NULL, 0, true);
    assert_int_equal(a.err.base.kind, ERR_NONE);
    assert_int_equal(a.results, 0);
    assert_int_equal(in_tx(begin(p, "acme"), NULL, 0, true).err.base.kind, ERR_NONE);
    assert_string_equal(get(p, "acme", COUNT).text, "0");
    shut(p);
}

static void a_statement_that_rides_with_commit_and_fails_leaves_nothing(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    struct pg_tx *tx = begin(p, "acme");
    assert_int_equal(in_tx(tx, &ADD, 1, false).err.base.kind, ERR_NONE);
    struct answer a = in_tx(tx, (struct pg_statement[]){COUNT, DIVIDE}, 2, true);
    assert_string_equal(a.err.base.code, "22012");
    assert_int_equal(a.err.statement, 1);
    assert_string_equal(get(p, "acme", COUNT).text, "0");
    /* COMMIT itself fails. */
    a = run(p, NULL, (struct pg_statement[]){ST("insert into late values (1)"), ST("insert into late values (1)")}, 2);
    assert_string_equal(a.err.base.code, "23505");
    assert_string_equal(a.err.constraint, "late_once");
    assert_string_equal(get(p, NULL, ST("select count(*) from late")).text, "0");
    shut(p);
}

static void after_an_error_a_transaction_takes_only_rollback(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    struct pg_tx *tx = begin(p, "acme");
    assert_int_equal(in_tx(tx, &ADD, 1, false).err.base.kind, ERR_NONE);
    assert_int_equal(in_tx(tx, &DIVIDE, 1, false).err.base.kind, ERR_QUERY);
    assert_int_equal(in_tx(tx, NULL, 0, true).err.base.kind, ERR_INVALID);
    pg_tx_rollback(tx);
    assert_string_equal(get(p, "acme", COUNT).text, "0");
    shut(p);
}

static void a_rollback_while_a_statement_is_under_way_gives_the_connection_back(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    struct answer a = {0};
    struct error err;
    struct pg_tx *tx = begin(p, "acme");
    struct pg_statement some[] = {ADD, ST("select pg_sleep(0.05)")};
    assert_non_null(pg_tx_run(tx, some, 2, false, keep, &a, &err));
    assert_null(pg_tx_run(tx, some, 2, false, keep, &a, &err));
    pg_tx_rollback(tx);
    assert_string_equal(get(p, "acme", COUNT).text, "0");
    assert_int_equal(a.count, 0);
    /* A commit that nobody waits for any more still commits. */
    tx = begin(p, "acme");
    struct pg_call *call = pg_tx_run(tx, some, 2, true, keep, &a, &err);
    pg_forget(call);
    assert_string_equal(get(p, "acme", COUNT).text, "1");
    assert_int_equal(a.count, 0);
    assert_int_equal(one(p, "acme", ST("delete from things where v = 'tx'")).err.base.kind, ERR_NONE);
    shut(p);
}

static void a_forgotten_call_is_not_answered(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    struct answer waiting = {0}, running = {0};
    struct error err;
    struct pg_call *a = pg_run(p, STR("acme"), &EVERYTHING, 1, keep, &running, &err);
    assert_string_equal(get(p, "acme", EVERYTHING).text, "acme");
    a = pg_run(p, STR("acme"), (struct pg_statement[]){ST("select pg_sleep(0.05)")}, 1, keep, &running, &err);
    running.count = 0;
    (void)uv_run(loop_get(), UV_RUN_ONCE);
    pg_forget(a);
    pg_forget(pg_read(p, STR("acme"), &EVERYTHING, keep, &waiting, &err));
    struct answer begun = {0};
    pg_forget(pg_begin(p, STR("acme"), keep_tx, &begun, &err));
    assert_string_equal(get(p, "bolt", EVERYTHING).text, "bolt");
    assert_int_equal(running.count + waiting.count + begun.count, 0);
    shut(p);
}

/* ---- broken connections ---- */

static void a_connection_that_is_killed_while_idle_is_replaced(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    for (int i = 0; i < 3; i++) {
        assert_string_equal(get(p, "acme", EVERYTHING).text, "acme");
        kill_backends("");
        assert_string_equal(get(p, "acme", EVERYTHING).text, "acme");
        kill_backends("");
        struct answer a = one(p, "acme", EVERYTHING);
        if (a.err.base.kind) assert_int_equal(a.err.base.kind, ERR_UNAVAILABLE); /* sent before its end was seen */
    }
    shut(p);
}

static bool sleeping(void *data) {
    char n[16];
    return pg_admin_run(&server,
                        "select count(*) from pg_stat_activity where usename = 'test_app' and wait_event = 'PgSleep'",
                        n, sizeof n) &&
           atoi(n) == *(int *)data;
}

static void a_connection_that_is_killed_under_a_call(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    struct answer a = {0};
    struct error err;
    int wanted = 1;
    struct pg_statement some[] = {ADD, SLOW};
    assert_non_null(pg_run(p, STR("acme"), some, 2, keep, &a, &err));
    assert_true(run_until(sleeping, &wanted, 20));
    kill_backends("");
    wait_answer(&a);
    assert_int_equal(a.err.base.kind, ERR_UNAVAILABLE);
    assert_string_equal(get(p, "acme", COUNT).text, "0");
    /* A read is tried once more on another connection; reads that had their rows already are answered with them. */
    struct answer reads[4] = {0};
    struct pg_statement nap = ST("select pg_sleep(0.3)");
    for (size_t i = 0; i < 4; i++) {
        struct pg_statement s = i == 1 ? nap : EVERYTHING;
        assert_non_null(pg_read(p, STR("acme"), &s, keep, &reads[i], &err));
    }
    assert_true(run_until(sleeping, &wanted, 20));
    kill_backends("");
    for (size_t i = 0; i < 4; i++) {
        wait_answer(&reads[i]);
        assert_int_equal(reads[i].err.base.kind, ERR_NONE);
        assert_string_equal(reads[i].text, i == 1 ? "" : "acme");
    }
    shut(p);
}

static bool lost(void *data) {
    struct error err;
    struct answer ignored = {0};
    return pg_tx_run(data, &COUNT, 1, false, keep, &ignored, &err) == NULL;
}

static void a_connection_that_is_killed_inside_a_transaction(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    struct error err;
    /* Idle in the transaction. */
    struct pg_tx *tx = begin(p, "acme");
    assert_int_equal(in_tx(tx, &ADD, 1, false).err.base.kind, ERR_NONE);
    kill_backends("");
    struct answer a = in_tx(tx, &COUNT, 1, false);
    assert_int_equal(a.err.base.kind, ERR_UNAVAILABLE);
    assert_true(run_until(lost, tx, 20));
    assert_int_equal(pg_pool_used(p), 1);
    pg_tx_rollback(tx);
    assert_string_equal(get(p, "acme", COUNT).text, "0");
    /* With a statement under way; its holder rolls back from within the answer, or was quicker. */
    int wanted = 1;
    for (int i = 0; i < 3; i++) {
        struct answer under_way = {0};
        tx = begin(p, "acme");
        assert_non_null(pg_tx_run(tx, (struct pg_statement[]){ADD, SLOW}, 2, i == 2, keep, &under_way, &err));
        assert_true(run_until(sleeping, &wanted, 20));
        if (i == 1) pg_tx_rollback(tx);
        kill_backends("");
        if (i != 1) {
            wait_answer(&under_way);
            assert_int_equal(under_way.err.base.kind, ERR_UNAVAILABLE);
        }
        if (i == 0) pg_tx_rollback(tx);
        assert_string_equal(get(p, "acme", COUNT).text, "0");
    }
    shut(p);
}

static void a_server_that_is_away_is_told_at_once_and_found_again(void **state) {
    (void)state;
    if (server.foreign) skip();
    struct pg_pool *p = open_pool(3);
    struct pg_tx *tx = begin(p, "acme");
    assert_string_equal(in_tx(tx, &EVERYTHING, 1, false).text, "acme");
    struct answer a[20] = {0}, under_way = {0};
    struct error err;
    int wanted = 1;
    assert_non_null(pg_run(p, STR("acme"), &SLOW, 1, keep, &under_way, &err));
    assert_true(run_until(sleeping, &wanted, 20));
    pg_server_stop(&server);
    for (size_t i = 0; i < 20; i++)
        if (!pg_run(p, STR("acme"), &EVERYTHING, 1, keep, &a[i], &err))
            a[i] = (struct answer){.count = 1, .err.base = err};
    wait_answer(&under_way);
    assert_int_equal(under_way.err.base.kind, ERR_UNAVAILABLE);
    for (size_t i = 0; i < 20; i++) {
        wait_answer(&a[i]);
        assert_int_equal(a[i].err.base.kind, ERR_UNAVAILABLE);
    }
    pg_tx_rollback(tx);
    assert_true(run_until(is_down, p, 20));
    assert_int_equal(get(p, "acme", EVERYTHING).err.base.kind, ERR_UNAVAILABLE);
    assert_null(pg_begin(p, STR("acme"), keep_tx, &a[0], &err));
    assert_int_equal(pg_pool_used(p), 0);
    pg_server_run(&server);
    assert_true(run_until(is_up, p, 20));
    assert_string_equal(get(p, "acme", EVERYTHING).text, "acme");
    shut(p);
}

static void a_server_that_was_never_there(void **state) {
    (void)state;
    struct pg_settings s = settings(2);
    char url[100];
    (void)snprintf(url, sizeof url, "host=127.0.0.1 port=%d user=x dbname=x", pg_free_port());
    s.url = url;
    struct pg_pool *p = open_with(&s);
    assert_int_equal(get(p, NULL, DIVIDE).err.base.kind, ERR_UNAVAILABLE);
    assert_false(pg_pool_up(p));
    assert_int_equal(get(p, NULL, DIVIDE).err.base.kind, ERR_UNAVAILABLE);
    close_pool(p);
    s.url = "host=/nowhere user=x dbname=x";
    p = open_with(&s);
    assert_int_equal(get(p, NULL, DIVIDE).err.base.kind, ERR_UNAVAILABLE);
    struct answer a = {0};
    struct error err = {0};
    assert_false(pg_session_open(p, keep_session, &a, &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    close_pool(p);
}

/* A listener that accepts and never says a word. */
static void a_server_that_does_not_speak_is_given_up(void **state) {
    (void)state;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    assert_true(fd >= 0 && bind(fd, (struct sockaddr *)&at, sizeof at) == 0 && listen(fd, 8) == 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &len), 0);
    struct pg_settings s = settings(2);
    char url[100];
    (void)snprintf(url, sizeof url, "host=127.0.0.1 port=%d user=x dbname=x", ntohs(at.sin_port));
    s.url = url;
    s.connect_ms = 50;
    struct pg_pool *p = open_with(&s);
    struct answer a = {0};
    struct error err = {0};
    assert_true(pg_session_open(p, keep_session, &a, &err));
    assert_int_equal(get(p, NULL, DIVIDE).err.base.kind, ERR_UNAVAILABLE);
    wait_answer(&a);
    assert_int_equal(a.err.base.kind, ERR_UNAVAILABLE);
    assert_null(a.session);
    close_pool(p);
    (void)close(fd);
}

static void a_server_with_no_more_connections_leaves_those_that_stand(void **state) {
    (void)state;
    admin("alter role test_app connection limit 2");
    struct pg_pool *p = open_pool(8);
    struct answer a[30] = {0};
    struct error err;
    for (size_t i = 0; i < 30; i++) assert_non_null(pg_run(p, STR("acme"), &EVERYTHING, 1, keep, &a[i], &err));
    for (size_t i = 0; i < 30; i++) {
        wait_answer(&a[i]);
        assert_string_equal(a[i].text, "acme");
    }
    admin("alter role test_app connection limit -1");
    shut(p);
}

/* ---- limits ---- */

static void a_full_queue_is_busy(void **state) {
    (void)state;
    struct pg_settings s = settings(1);
    s.queue = 3;
    struct pg_pool *p = open_with(&s);
    struct answer a[4] = {0};
    struct error err = {0};
    for (size_t i = 0; i < 3; i++) assert_non_null(pg_run(p, STR("acme"), &EVERYTHING, 1, keep, &a[i], &err));
    assert_null(pg_run(p, STR("acme"), &EVERYTHING, 1, keep, &a[3], &err));
    assert_int_equal(err.kind, ERR_BUSY);
    for (size_t i = 0; i < 3; i++) wait_answer(&a[i]);
    assert_string_equal(get(p, "acme", EVERYTHING).text, "acme");
    shut(p);
}

static void waiting_for_a_connection_has_an_end(void **state) {
    (void)state;
    struct pg_settings s = settings(1);
    s.wait_ms = 100;
    struct pg_pool *p = open_with(&s);
    struct pg_tx *tx = begin(p, "acme");
    struct answer a = get(p, "acme", EVERYTHING);
    assert_int_equal(a.err.base.kind, ERR_UNAVAILABLE);
    assert_true(pg_pool_up(p));
    pg_tx_rollback(tx);
    assert_string_equal(get(p, "acme", EVERYTHING).text, "acme");
    shut(p);
}

static void a_statement_that_takes_too_long_costs_its_connection(void **state) {
    (void)state;
    struct pg_settings s = settings(1);
    s.statement_ms = 200;
    struct pg_pool *p = open_with(&s);
    char before[256];
    (void)snprintf(before, sizeof before, "%s", get(p, NULL, ST("select pg_backend_pid()")).text);
    assert_int_equal(one(p, "acme", SLOW).err.base.kind, ERR_TIMEOUT);
    assert_string_not_equal(get(p, NULL, ST("select pg_backend_pid()")).text, before);
    /* Among shared reads only the slow one pays. */
    struct answer a[3] = {0};
    struct error err;
    for (size_t i = 0; i < 3; i++) {
        struct pg_statement st = i == 1 ? SLOW : EVERYTHING;
        assert_non_null(pg_read(p, STR("acme"), &st, keep, &a[i], &err));
    }
    for (size_t i = 0; i < 3; i++) wait_answer(&a[i]);
    assert_string_equal(a[0].text, "acme");
    assert_int_equal(a[1].err.base.kind, ERR_TIMEOUT);
    assert_string_equal(a[2].text, "acme");
    struct pg_tx *tx = begin(p, "acme");
    assert_int_equal(in_tx(tx, &SLOW, 1, false).err.base.kind, ERR_TIMEOUT);
    pg_tx_rollback(tx);
    assert_string_equal(get(p, "acme", EVERYTHING).text, "acme");
    /* The server has been told: nothing sleeps on. */
    shut(p);
}

static void closing_a_pool_answers_everybody(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(2);
    struct pg_tx *tx = begin(p, "acme"), *busy = begin(p, "acme");
    struct answer a[3] = {0};
    struct error err;
    assert_non_null(pg_tx_run(busy, &SLOW, 1, false, keep, &a[0], &err));
    assert_non_null(pg_read(p, STR("acme"), &EVERYTHING, keep, &a[1], &err));
    assert_non_null(pg_run(p, STR("acme"), &EVERYTHING, 1, keep, &a[2], &err));
    close_pool(p);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(a[i].count, 1);
        assert_int_equal(a[i].err.base.kind, ERR_UNAVAILABLE);
    }
    pg_tx_rollback(tx);
    pg_tx_rollback(busy);
    run_closed();
    kill_backends("and wait_event = 'PgSleep'");
    assert_true(run_until(no_backends, NULL, 20));
}

/* ---- prepared statements ---- */

static void more_statements_than_the_cache_holds(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 900; i += 9) {
            char text[9][64], want[256] = "";
            struct pg_statement s[9];
            for (int n = 0; n < 9; n++) {
                (void)snprintf(text[n], sizeof text[n], "select %d", i + n);
                s[n] = (struct pg_statement){.sql = str_of(text[n])};
                size_t len = strlen(want);
                (void)snprintf(want + len, sizeof want - len, "%s%d", n ? " " : "", i + n);
            }
            assert_string_equal(run(p, "acme", s, 9).text, want);
        }
    char n[256];
    (void)snprintf(n, sizeof n, "%s", one(p, NULL, ST("select count(*) from pg_prepared_statements")).text);
    assert_true(atoi(n) > 100 && atoi(n) <= 512);
    shut(p);
}

static void an_error_among_statements_that_were_being_prepared(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    for (int i = 0; i < 300;
         i++) { /* clashes too: what was to be deallocated stays, under a name that is not used again */
        char text[8][64];
        struct pg_statement s[8];
        int bad = i % 8;
        for (int n = 0; n < 8; n++) {
            (void)snprintf(text[n], sizeof text[n],
                           n == bad ? (i % 2 ? "select %d from nowhere" : "select %d / 0") : "select %d", i * 8 + n);
            s[n] = (struct pg_statement){.sql = str_of(text[n])};
        }
        struct answer a = run(p, "acme", s, 8);
        assert_int_equal(a.err.base.kind, ERR_QUERY);
        assert_int_equal(a.err.statement, bad);
        s[bad] = EVERYTHING;
        a = run(p, "acme", s, 8);
        assert_int_equal(a.err.base.kind, ERR_NONE);
        assert_int_equal(a.results, 8);
    }
    char n[256];
    (void)snprintf(n, sizeof n, "%s", one(p, NULL, ST("select count(*) from pg_prepared_statements")).text);
    assert_true(atoi(n) <= 600);
    shut(p);
}

static void a_table_that_is_altered_between(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    struct pg_statement all = ST("select * from shifting"), again = ST("select * from shifting order by 1");
    for (int i = 0; i < 3; i++) {
        assert_int_equal(get(p, NULL, all).err.base.kind, ERR_NONE);
        assert_int_equal(one(p, NULL, again).err.base.kind, ERR_NONE);
        char sql[100];
        (void)snprintf(sql, sizeof sql, "alter table shifting add column c%d int", i);
        admin(sql);
        struct answer a[3] = {0};
        struct error err;
        for (size_t k = 0; k < 3; k++)
            assert_non_null(pg_read(p, (struct str){0}, k == 1 ? &again : &all, keep, &a[k], &err));
        for (size_t k = 0; k < 3; k++) {
            wait_answer(&a[k]);
            assert_int_equal(a[k].err.base.kind, ERR_NONE);
        }
        (void)snprintf(sql, sizeof sql, "alter table shifting add column d%d int", i);
        admin(sql);
        struct pg_statement pair[] = {all, again};
        assert_int_equal(run(p, NULL, pair, 2).err.base.kind, ERR_NONE);
    }
    /* In a transaction of its own it is the holder's to begin anew. */
    admin("alter table shifting add column e int");
    struct pg_tx *tx = begin(p, NULL);
    assert_string_equal(in_tx(tx, &all, 1, false).err.base.code, "0A000");
    pg_tx_rollback(tx);
    tx = begin(p, NULL);
    assert_int_equal(in_tx(tx, &all, 1, true).err.base.kind, ERR_NONE);
    shut(p);
}

static void without_prepared_statements(void **state) {
    (void)state;
    struct pg_settings s = settings(1);
    s.prepare = false;
    struct pg_pool *p = open_with(&s);
    for (int i = 0; i < 3; i++) assert_string_equal(get(p, "acme", by_key("acme", "1")).text, "acme one");
    assert_string_equal(one(p, NULL, ST("select count(*) from pg_prepared_statements")).text, "0");
    shut(p);
}

/* ---- sessions ---- */

static void a_session_runs_scripts_and_statements(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    struct pg_session *s = open_session(p);
    struct answer a =
        script(s, "create temp table own (n int); insert into own values (1), (2); select count(*) from own");
    assert_int_equal(a.err.base.kind, ERR_NONE);
    assert_string_equal(a.text, "2");
    a = script(s, "drop table if exists nothing_of_that_name; select 1; select 1 / 0; insert into own values (3)");
    assert_string_equal(a.err.base.code, "22012");
    assert_string_equal(in_session(s, ST("select count(*) from own where n < $1", STR("9"))).text, "2");
    assert_string_equal(script(s, "copy own from stdin").err.base.message, "COPY is not spoken here");
    assert_int_equal(script(s, "select 1").err.base.kind, ERR_UNAVAILABLE);
    pg_session_close(s);
    s = open_session(p);
    assert_string_equal(in_session(s, ST("select pg_try_advisory_lock(7)")).text, "t");
    struct pg_session *other = open_session(p);
    assert_string_equal(in_session(other, ST("select pg_try_advisory_lock(7)")).text, "f");
    pg_session_close(s);
    pg_session_close(other);
    assert_int_equal(one(p, NULL, ST("copy things to stdout")).err.base.kind, ERR_INVALID);
    assert_string_equal(get(p, "acme", EVERYTHING).text, "acme");
    shut(p);
}

static void a_session_may_be_closed_at_any_time(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    struct answer a = {0};
    struct error err;
    struct pg_session *s = open_session(p);
    assert_non_null(pg_session_run(s, &SLOW, keep, &a, &err));
    assert_null(pg_session_run(s, &SLOW, keep, &a, &err));
    pg_session_close(s);
    s = open_session(p);
    pg_forget(pg_session_run(s, &DIVIDE, keep, &a, &err));
    while (in_session(s, ST("select 1")).err.base.kind == ERR_INVALID) (void)uv_run(loop_get(), UV_RUN_ONCE);
    pg_session_close(s);
    assert_int_equal(a.count, 0);
    run_closed();
    kill_backends("and wait_event = 'PgSleep'");
    shut(p);
}

struct ear {
    int heard, lost;
    char channel[32], payload[32];
};

static void on_notice(void *data, struct str channel, struct str payload) {
    struct ear *e = data;
    e->heard++;
    (void)snprintf(e->channel, sizeof e->channel, "%.*s", STR_FMT(channel));
    (void)snprintf(e->payload, sizeof e->payload, "%.*s", STR_FMT(payload));
}
static void on_lost(void *data) {
    ((struct ear *)data)->lost++;
}
static bool has_heard(void *data) {
    return ((struct ear *)data)->heard > 0;
}
static bool has_lost(void *data) {
    return ((struct ear *)data)->lost > 0;
}

static void notices_are_gathered_and_heard(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    struct pg_session *s = open_session(p);
    struct ear ear = {0};
    pg_session_hear(s, on_notice, on_lost, &ear);
    assert_int_equal(in_session(s, ST("listen work")).err.base.kind, ERR_NONE);
    for (int i = 0; i < 100; i++) pg_notify(p, STR("work"));
    pg_notify(p, STR("play"));
    assert_true(run_until(has_heard, &ear, 20));
    assert_string_equal(ear.channel, "work");
    assert_string_equal(ear.payload, "");
    assert_int_equal(in_session(s, ST("select 1")).err.base.kind, ERR_NONE);
    assert_int_equal(ear.heard, 1);
    /* One more, and one while that is under way. */
    ear.heard = 0;
    pg_notify(p, STR("work"));
    assert_true(run_until(has_heard, &ear, 20));
    ear.heard = 0;
    pg_notify(p, STR("work"));
    assert_true(run_until(has_heard, &ear, 20));
    /* With a payload, by another's statement. */
    ear.heard = 0;
    assert_int_equal(one(p, NULL, ST("select pg_notify('work', 'load')")).err.base.kind, ERR_NONE);
    assert_true(run_until(has_heard, &ear, 20));
    assert_string_equal(ear.payload, "load");
    /* The listener is cut off, and so is the notifier: both come back. */
    kill_backends("");
    assert_true(run_until(has_lost, &ear, 20));
    assert_int_equal(ear.lost, 1);
    assert_int_equal(in_session(s, ST("select 1")).err.base.kind, ERR_UNAVAILABLE);
    pg_session_close(s);
    s = open_session(p);
    ear = (struct ear){0};
    pg_session_hear(s, on_notice, on_lost, &ear);
    assert_int_equal(in_session(s, ST("listen work")).err.base.kind, ERR_NONE);
    pg_notify(p, STR("work"));
    assert_true(run_until(has_heard, &ear, 20));
    pg_session_close(s);
    shut(p);
}

/* ---- through PgBouncer ---- */

static void behind_a_transaction_pooler_isolation_holds(void **state) {
    (void)state;
    if (server.foreign || access("/usr/sbin/pgbouncer", X_OK) != 0) skip();
    assert_true(pg_bouncer_start(&server));
    through_bouncer = true;
    isolation(1);
    isolation(4); /* four connections of ours over one of the server */
    struct pg_pool *p = open_pool(2);
    assert_string_equal(one(p, NULL, ST("show timezone")).text, "UTC");
    shut(p);
    through_bouncer = false;
    pg_bouncer_stop(&server);
}

static int start_server(void **state) {
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

static int stop_server(void **state) {
    (void)state;
    pg_server_end(&server);
    return 0;
}

static int clean_up(void **state) {
    (void)state;
    if (opened) close_pool(opened);
    return 0;
}

#define TEST(name) cmocka_unit_test_teardown(name, clean_up)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_row_is_found_by_its_key),
        TEST(a_pipeline_is_all_or_nothing_and_names_the_statement_at_fault),
        TEST(the_number_of_a_shard_is_taken_off_a_constraint),
        TEST(bad_input_is_refused_before_anything_is_sent),
        TEST(one_connection_never_shows_a_tenant_the_rows_of_another),
        TEST(a_row_of_another_tenant_can_not_be_written),
        TEST(reads_of_one_turn_share_a_transaction),
        TEST(a_shared_read_that_fails_harms_no_other),
        TEST(a_statement_timeout_of_the_role_drops_no_connection),
        TEST(a_transaction_commits_or_rolls_back),
        TEST(a_statement_that_rides_with_commit_and_fails_leaves_nothing),
        TEST(after_an_error_a_transaction_takes_only_rollback),
        TEST(a_rollback_while_a_statement_is_under_way_gives_the_connection_back),
        TEST(a_forgotten_call_is_not_answered),
        TEST(a_connection_that_is_killed_while_idle_is_replaced),
        TEST(a_connection_that_is_killed_under_a_call),
        TEST(a_connection_that_is_killed_inside_a_transaction),
        TEST(a_server_that_is_away_is_told_at_once_and_found_again),
        TEST(a_server_that_was_never_there),
        TEST(a_server_that_does_not_speak_is_given_up),
        TEST(a_server_with_no_more_connections_leaves_those_that_stand),
        TEST(a_full_queue_is_busy),
        TEST(waiting_for_a_connection_has_an_end),
        TEST(a_statement_that_takes_too_long_costs_its_connection),
        TEST(closing_a_pool_answers_everybody),
        TEST(more_statements_than_the_cache_holds),
        TEST(an_error_among_statements_that_were_being_prepared),
        TEST(a_table_that_is_altered_between),
        TEST(without_prepared_statements),
        TEST(a_session_runs_scripts_and_statements),
        TEST(a_session_may_be_closed_at_any_time),
        TEST(notices_are_gathered_and_heard),
        TEST(behind_a_transaction_pooler_isolation_holds),
    };
    return cmocka_run_group_tests(tests, start_server, stop_server);
}
