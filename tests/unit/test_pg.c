// link: stores
#include "pg_fixture.h"
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

static void a_pool_takes_no_statement_that_outlives_its_call(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    static const char *const refused[] = {"begin",
                                          "COMMIT",
                                          " \n\trollback to savepoint a",
                                          "start transaction",
                                          "-- a remark\nend",
                                          "/* one /* within */ another */ abort",
                                          "; begin",
                                          "set timezone = 'UTC'",
                                          "set session kasma.tenant_key = 'bolt'",
                                          "set local kasma.tenant_key = 'bolt'",
                                          "SET LOCAL\n Kasma . tenant_key to 'bolt'",
                                          "set local \"kasma\".tenant_key = 'bolt'",
                                          "set local role test_app",
                                          "set/**/role test_app",
                                          "reset all",
                                          "discard all",
                                          "listen jobs",
                                          "unlisten *",
                                          "copy things to stdout",
                                          "prepare a as select 1",
                                          "execute a",
                                          "deallocate all",
                                          "savepoint a",
                                          "declare c cursor for select 1",
                                          "load 'auto_explain'",
                                          "select Set_Config('kasma.tenant_key', 'bolt', true)",
                                          "select pg_try_advisory_lock(7)"};
    struct pg_tx *tx = begin(p, "acme");
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct pg_statement s[] = {ST("select 1"), {.sql = str_of(refused[i])}};
        assert_int_equal(get(p, "acme", s[1]).err.base.kind, ERR_INVALID);
        assert_int_equal(run(p, "acme", s, 2).err.base.kind, ERR_INVALID);
        assert_int_equal(in_tx(tx, s, 2, false).err.base.kind, ERR_INVALID);
    }
    assert_string_equal(in_tx(tx, &EVERYTHING, 1, true).text, "acme");
    static const char *const taken[] = {"",
                                        "-- nothing",
                                        "/* never closed",
                                        "set local statement_timeout = 5000",
                                        "set constraints all deferred",
                                        "select pg_advisory_xact_lock(7)",
                                        "(select 1)",
                                        "select 'begin' as commit",
                                        "with ended as (select 1) select * from ended"};
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++)
        assert_int_not_equal(one(p, "acme", (struct pg_statement){.sql = str_of(taken[i])}).err.base.kind, ERR_INVALID);
    shut(p);
}

static void a_tenants_read_cannot_write(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    assert_string_equal(get(p, "acme", ADD).err.base.code, "25006");
    assert_string_equal(one(p, "acme", COUNT).text, "0");
    shut(p);
}

/* ---- shared reads ---- */

static void reads_of_one_turn_share_a_transaction(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(4);
    struct answer a[10] = {0};
    struct error err;
    struct pg_statement which = ST("select virtualtransaction from pg_locks "
                                   "where pid = pg_backend_pid() and locktype = 'virtualxid'");
    for (size_t i = 0; i < 10; i++)
        assert_non_null(pg_read(p, str_of(i % 2 ? "acme" : "bolt"), &which, keep, &a[i], &err));
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

static void a_transaction_commits_or_rolls_back(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(2);
    struct pg_tx *tx = begin(p, "acme");
    assert_int_equal(pg_pool_used(p), 1);
    assert_int_equal(in_tx(tx, &ADD, 1, false).err.base.kind, ERR_NONE);
    assert_string_equal(in_tx(tx, &COUNT, 1, false).text, "1");
    assert_string_equal(get(p, "acme", COUNT).text, "0");
    pg_tx_rollback(tx);
    assert_true(run_until(is_idle, p, 60));
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
    assert_non_null(pg_run(p, STR("acme"), &EVERYTHING, 1, keep, &running, &err));
    assert_string_equal(get(p, "acme", EVERYTHING).text, "acme");
    struct pg_call *a =
        pg_run(p, STR("acme"), (struct pg_statement[]){ST("select pg_sleep(0.05)")}, 1, keep, &running, &err);
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
    assert_true(number(n) > 100 && number(n) <= 512);
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
    assert_true(number(n) <= 600);
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
    int asleep = 1; /* each is waited for, so that none begins after all are killed below */
    assert_true(run_until(sleeping, &asleep, 60));
    pg_session_close(s);
    assert_int_equal(a.count, 0); /* not from within */
    wait_answer(&a);
    assert_int_equal(a.err.base.kind, ERR_UNAVAILABLE);
    s = open_session(p);
    struct pg_call *late = pg_session_run(s, &SLOW, keep, &a, &err);
    asleep++;
    assert_true(run_until(sleeping, &asleep, 60));
    pg_session_close(s);
    pg_forget(late); /* the call outlives its session */
    s = open_session(p);
    pg_forget(pg_session_run(s, &SLOW, keep, &a, &err));
    asleep++;
    assert_true(run_until(sleeping, &asleep, 60));
    pg_session_close(s);
    s = open_session(p);
    pg_forget(pg_session_run(s, &DIVIDE, keep, &a, &err));
    while (in_session(s, ST("select 1")).err.base.kind == ERR_INVALID) (void)uv_run(loop_get(), UV_RUN_ONCE);
    pg_session_close(s);
    run_closed();
    assert_int_equal(a.count, 1);
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

struct asking {
    struct pg_pool *pool;
    struct ear *ear;
};

/* What was asked for while the connection that tells it broke is lost: the next one who asks is heard. */
static bool asks_until_heard(void *data) {
    const struct asking *a = data;
    pg_notify(a->pool, STR("work"));
    return has_heard(a->ear);
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
    assert_true(run_until(has_heard, &ear, 60));
    assert_string_equal(ear.channel, "work");
    assert_string_equal(ear.payload, "");
    assert_int_equal(in_session(s, ST("select 1")).err.base.kind, ERR_NONE);
    assert_int_equal(ear.heard, 1);
    /* One more, and one while that is under way. */
    ear.heard = 0;
    pg_notify(p, STR("work"));
    assert_true(run_until(has_heard, &ear, 60));
    ear.heard = 0;
    pg_notify(p, STR("work"));
    assert_true(run_until(has_heard, &ear, 60));
    /* With a payload, by another's statement. */
    ear.heard = 0;
    assert_int_equal(one(p, NULL, ST("select pg_notify('work', 'load')")).err.base.kind, ERR_NONE);
    assert_true(run_until(has_heard, &ear, 60));
    assert_string_equal(ear.payload, "load");
    /* The listener is cut off, and so is the notifier: both come back. */
    kill_backends("");
    assert_true(run_until(has_lost, &ear, 60));
    assert_int_equal(ear.lost, 1);
    assert_int_equal(in_session(s, ST("select 1")).err.base.kind, ERR_UNAVAILABLE);
    pg_session_close(s);
    s = open_session(p);
    ear = (struct ear){0};
    pg_session_hear(s, on_notice, on_lost, &ear);
    assert_int_equal(in_session(s, ST("listen work")).err.base.kind, ERR_NONE);
    struct asking asking = {p, &ear};
    assert_true(run_until(asks_until_heard, &asking, 60));
    pg_session_close(s);
    shut(p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_row_is_found_by_its_key),
        TEST(a_pipeline_is_all_or_nothing_and_names_the_statement_at_fault),
        TEST(the_number_of_a_shard_is_taken_off_a_constraint),
        TEST(bad_input_is_refused_before_anything_is_sent),
        TEST(a_pool_takes_no_statement_that_outlives_its_call),
        TEST(a_tenants_read_cannot_write),
        TEST(reads_of_one_turn_share_a_transaction),
        TEST(a_shared_read_that_fails_harms_no_other),
        TEST(a_statement_timeout_of_the_role_drops_no_connection),
        TEST(a_transaction_commits_or_rolls_back),
        TEST(a_statement_that_rides_with_commit_and_fails_leaves_nothing),
        TEST(after_an_error_a_transaction_takes_only_rollback),
        TEST(a_rollback_while_a_statement_is_under_way_gives_the_connection_back),
        TEST(a_forgotten_call_is_not_answered),
        TEST(more_statements_than_the_cache_holds),
        TEST(an_error_among_statements_that_were_being_prepared),
        TEST(a_table_that_is_altered_between),
        TEST(without_prepared_statements),
        TEST(a_session_runs_scripts_and_statements),
        TEST(a_session_may_be_closed_at_any_time),
        TEST(notices_are_gathered_and_heard),
    };
    return cmocka_run_group_tests(tests, start_server, stop_server);
}
