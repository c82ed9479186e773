// link: stores
#include "pg_fixture.h"
#include "stores/pg_resolve.h"
/* Tenants kept apart, connections and servers that break, limits, and a pooler between. */

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
        /* A BEGIN that would be left open is not even sent. */
        assert_int_equal(one(p, NULL, ST("begin")).err.base.kind, ERR_INVALID);
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

static bool waits_for_lock(void *data) {
    (void)data;
    char n[16];
    return pg_admin_run(&server, "select count(*) from pg_locks where locktype = 'advisory' and not granted", n,
                        sizeof n) &&
           number(n) == 1;
}

static void a_connection_that_is_killed_under_a_call(void **state) {
    (void)state;
    struct pg_pool *p = open_pool(1);
    struct answer a = {0};
    struct error err;
    int wanted = 1;
    struct pg_statement some[] = {ADD, SLOW};
    assert_non_null(pg_run(p, STR("acme"), some, 2, keep, &a, &err));
    assert_true(run_until(sleeping, &wanted, 60));
    kill_backends("");
    wait_answer(&a);
    assert_int_equal(a.err.base.kind, ERR_UNAVAILABLE);
    assert_string_equal(get(p, "acme", COUNT).text, "0");
    /* A read is tried once more on another connection; reads that had their rows already are answered with them. */
    struct answer reads[4] = {0};
    PGconn *holder = pg_admin(&server, "postgres"); /* the second of them waits for what it holds */
    PQclear(PQexec(holder, "select pg_advisory_lock(8)"));
    struct pg_statement held_up = ST("select pg_advisory_xact_lock(8)");
    for (size_t i = 0; i < 4; i++) {
        struct pg_statement s = i == 1 ? held_up : EVERYTHING;
        assert_non_null(pg_read(p, STR("acme"), &s, keep, &reads[i], &err));
    }
    assert_true(run_until(waits_for_lock, NULL, 60));
    kill_backends("");
    PQfinish(holder);
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
    assert_true(run_until(lost, tx, 60));
    assert_int_equal(pg_pool_used(p), 1);
    pg_tx_rollback(tx);
    assert_string_equal(get(p, "acme", COUNT).text, "0");
    /* With a statement under way; its holder rolls back from within the answer, or was quicker. */
    int wanted = 1;
    for (int i = 0; i < 3; i++) {
        struct answer under_way = {0};
        tx = begin(p, "acme");
        assert_non_null(pg_tx_run(tx, (struct pg_statement[]){ADD, SLOW}, 2, i == 2, keep, &under_way, &err));
        assert_true(run_until(sleeping, &wanted, 60));
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
    struct pg_settings s = settings(3);
    s.wait_ms = 3600000; /* also while the holder of a transaction keeps its broken connection, nobody waits */
    struct pg_pool *p = open_with(&s);
    struct pg_tx *tx = begin(p, "acme");
    assert_string_equal(in_tx(tx, &EVERYTHING, 1, false).text, "acme");
    struct answer a[20] = {0}, under_way = {0};
    struct error err;
    int wanted = 1;
    assert_non_null(pg_run(p, STR("acme"), &SLOW, 1, keep, &under_way, &err));
    assert_true(run_until(sleeping, &wanted, 60));
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
    assert_true(run_until(is_down, p, 60));
    assert_int_equal(get(p, "acme", EVERYTHING).err.base.kind, ERR_UNAVAILABLE);
    assert_null(pg_begin(p, STR("acme"), keep_tx, &a[0], &err));
    assert_int_equal(pg_pool_used(p), 0);
    pg_server_run(&server);
    assert_true(run_until(is_up, p, 60));
    assert_string_equal(get(p, "acme", EVERYTHING).text, "acme");
    shut(p);
}

static void a_server_that_was_never_there(void **state) {
    (void)state;
    struct pg_settings s = settings(2);
    char url[100];
    (void)snprintf(url, sizeof url, "host=127.0.0.1 port=%d user=x dbname=x", free_port());
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

/* By name: looked up beside the loop, and every address tried. */
static void a_host_name_is_looked_up(void **state) {
    (void)state;
    if (server.foreign) skip();
    struct pg_settings s = settings(2);
    char url[200];
    (void)snprintf(url, sizeof url, "postgresql://test_app@localhost:%d/postgres?sslmode=disable", server.port);
    s.url = url;
    struct pg_pool *p = open_with(&s);
    assert_string_equal(get(p, NULL, EVERYTHING).text, "none");
    shut(p);
    /* One that nobody knows is said, and the pool lives on. */
    s.url = "postgresql://test_app@no-such-host.invalid/postgres";
    p = open_with(&s);
    struct answer a = get(p, NULL, EVERYTHING);
    assert_int_equal(a.err.base.kind, ERR_UNAVAILABLE);
    assert_false(pg_pool_up(p));
    close_pool(p);
    /* Closed while it is looked up: nobody is called back. */
    p = open_with(&s);
    struct answer never = {0};
    struct error err = {0};
    if (pg_run(p, (struct str){0}, &EVERYTHING, 1, keep, &never, &err)) assert_true(never.count <= 1);
    close_pool(p);
    assert_true(never.count <= 1);
}

static void what_is_a_host_name(void **state) {
    (void)state;
    char host[64];
    static const char *const names[] = {"postgresql://u@db.example:5432/x", "host=db.example user=u",
                                        "postgresql://db.example",
                                        "postgresql://u:p%40ss@db.example/x?sslmode=verify-full"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        assert_true(pg_resolve_needed(names[i], host, sizeof host));
        assert_string_equal(host, "db.example");
    }
    static const char *const others[] = {"postgresql://u@127.0.0.1/x",
                                         "postgresql://u@[::1]:5432/x",
                                         "postgresql:///x?host=/run/postgresql",
                                         "postgresql:///x",
                                         "host=@abstract",
                                         "postgresql://a.example,b.example/x",
                                         "host=db.example hostaddr=127.0.0.1",
                                         "no connection string",
                                         ""};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_false(pg_resolve_needed(others[i], host, sizeof host));
    assert_false(pg_resolve_needed("host=a-name-that-is-longer-than-its-place.example", host, 8));
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
    s.wait_ms = 2000;
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
    s.statement_ms = 1000;
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
    int one_sleeps = 1;
    assert_true(run_until(sleeping, &one_sleeps, 60));
    close_pool(p);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(a[i].count, 1);
        assert_int_equal(a[i].err.base.kind, ERR_UNAVAILABLE);
    }
    pg_tx_rollback(tx);
    pg_tx_rollback(busy);
    run_closed();
    kill_backends("and wait_event = 'PgSleep'");
    assert_true(run_until(no_backends, NULL, 60));
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

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(one_connection_never_shows_a_tenant_the_rows_of_another),
        TEST(a_row_of_another_tenant_can_not_be_written),
        TEST(a_connection_that_is_killed_while_idle_is_replaced),
        TEST(a_connection_that_is_killed_under_a_call),
        TEST(a_connection_that_is_killed_inside_a_transaction),
        TEST(a_server_that_is_away_is_told_at_once_and_found_again),
        TEST(a_server_that_was_never_there),
        TEST(a_host_name_is_looked_up),
        TEST(what_is_a_host_name),
        TEST(a_server_that_does_not_speak_is_given_up),
        TEST(a_server_with_no_more_connections_leaves_those_that_stand),
        TEST(a_full_queue_is_busy),
        TEST(waiting_for_a_connection_has_an_end),
        TEST(a_statement_that_takes_too_long_costs_its_connection),
        TEST(closing_a_pool_answers_everybody),
        TEST(behind_a_transaction_pooler_isolation_holds),
    };
    return cmocka_run_group_tests(tests, start_server, stop_server);
}
