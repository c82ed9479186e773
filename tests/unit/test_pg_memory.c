// link: script
/* Memory that ends while rows of PostgreSQL become Lua values: one task fails, results are cleared, transactions are
 * rolled back, connections go back to the pool, the process serves on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <lauxlib.h>

#include "pg_server.h"
#include "runtime/config.h"
#include "script/bind.h"
#include "script/task.h"

#include "memory_fixture.h"

static struct pg_server server;

static const luaL_Reg modules[] = {
    {"core.json", luaopen_core_json}, {"core.sched", luaopen_core_sched}, {"core.pg", luaopen_core_pg}, {NULL, NULL}};

static const char prelude[] =
    "local pg, json, sched = require('core.pg'), require('core.json'), require('core.sched')\n"
    "local pool = pg.pool('app')\n";

/* Nobody holds a connection, and no transaction is open at the server. */
static void all_is_given_back(void) {
    work(prelude, "sched.deadline(20000)\n"
                  "while pool:stats().used > 0 do sched.sleep(2) end\n"
                  "local rows\n"
                  "repeat rows = assert(pool:query(nil, [[SELECT count(*)::int AS n FROM pg_stat_activity\n"
                  "  WHERE state LIKE 'idle in%' OR (state IS NOT NULL AND application_name = 'left')]]))\n"
                  "until rows[1].n == 0\n");
}

#define EVERY_TYPE                                                                                                     \
    "SELECT $1::text AS name, 7::bigint AS n, 1.5::float8 AS f, true AS b, now() AS t,\n"                              \
    "  '{\"a\":[1,\"two\",{\"c\":null}]}'::jsonb AS j, ARRAY['x','y','z with more text in it'] AS list,\n"             \
    "  '\\x00ff'::bytea AS raw, ARRAY[1,2,3] AS ints FROM generate_series(1, 5)"

static void rows(void **state) {
    (void)state;
    work_without_memory(prelude, "local r = assert(pool:read('acme', [[" EVERY_TYPE "]], 'some name'))\n"
                                 "assert(#r == 5 and r[5].j.a[2] == 'two' and r[1].name == 'some name')\n");
    all_is_given_back();
}

static void results_of_a_pipeline(void **state) {
    (void)state;
    work_without_memory(prelude,
                        "local r = assert(pool:pipeline('acme', {{[[" EVERY_TYPE "]], 'one'}, {'SELECT 2 AS x'}}))\n"
                        "assert(#r == 2 and r[2][1].x == 2)\n");
    all_is_given_back();
}

static void refusals(void **state) {
    (void)state;
    work_without_memory(prelude, "local none, err = pool:query('acme', 'SELECT 1/0')\n"
                                 "assert(not none and err.code == '22012' and err.statement == 1)\n");
    all_is_given_back();
}

static void transactions(void **state) {
    (void)state;
    work_without_memory(prelude, "local tx = assert(pool:begin('acme'))\n"
                                 "assert(#assert(tx:query([[" EVERY_TYPE "]], 'x')) == 5)\n"
                                 "assert(#assert(tx:commit({{'SELECT 1 AS one'}, {'SELECT 2 AS two'}})) == 2)\n");
    all_is_given_back();
}

/* Nothing but the call itself holds the transaction, and the collector runs meanwhile. */
static void what_a_call_waits_on_is_not_collected(void **state) {
    (void)state;
    work(prelude,
         "local function query(tx) return tx:query('SELECT pg_sleep(0.05), 7 AS n') end\n"
         "local function pipeline(tx) return tx:pipeline{{'SELECT 1'}, {'SELECT pg_sleep(0.05), 7 AS n'}} end\n"
         "local function begin(last)\n"
         "  local rows, err, over\n"
         "  sched.spawn(function() rows, err = last(assert(pool:begin('acme'))) over = true end)\n"
         "  while not over do sched.sleep(1) collectgarbage() end\n"
         "  return assert(rows, err and err.message)\n"
         "end\n"
         "assert(begin(query)[1].n == 7)\n"
         "assert(begin(pipeline)[2][1].n == 7)\n");
    all_is_given_back();
}

static void sessions(void **state) {
    (void)state;
    work_without_memory(prelude, "local s = assert(pool:session())\n"
                                 "sched.defer(function() s:close() end)\n"
                                 "assert(s:query([[SET application_name = 'left']]))\n"
                                 "assert(assert(s:query('SELECT $1::text AS t', 'text'))[1].t == 'text')\n");
    work(prelude, "collectgarbage() collectgarbage()");
    all_is_given_back();
}

static int open_all(void **state) {
    (void)state;
    if (!pg_server_start(&server)) {
        print_message("test_pg_memory: skipped, there is no PostgreSQL server to start\n");
        exit(0);
    }
    (void)signal(SIGPIPE, SIG_IGN);
    char url[128];
    (void)snprintf(url, sizeof url, "postgresql://postgres@127.0.0.1:%d/postgres?sslmode=disable", server.port);
    const char *foreign = getenv("TEST_DATABASE_URL");
    if (!loop_open() || setenv("DATABASE_URL", server.foreign && foreign ? foreign : url, 1) != 0 ||
        setenv("DATABASE_POOL", "2", 1) != 0 || setenv("KASMA_ENV", "test", 1) != 0 || !load_settings())
        return -1;
    log_set_level((enum log_level)(LOG_ERROR + 1)); /* thousands of lines that are expected */
    scarce_vm(modules);
    return 0;
}

static int close_all(void **state) {
    (void)state;
    scarce_vm_free();
    run_closed();
    pg_server_end(&server);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows),     cmocka_unit_test(results_of_a_pipeline),
        cmocka_unit_test(refusals), cmocka_unit_test(transactions),
        cmocka_unit_test(sessions), cmocka_unit_test(what_a_call_waits_on_is_not_collected),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
