// link: stores
/* Runs on a server of its own (SecantusDB from $TEST_VENV, var/venv or the PATH). Without one it uses the server of
 * TEST_MONGODB_URL and leaves out the tests that kill it; without either it is skipped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <ftw.h>

#include "redis_server.h" /* free_port, run_until */
#include "runtime/log.h"
#include "stores/mongo.h"

static char url[256], folder[64], program[512];
static int port;
static pid_t pid;
static struct mongo *m;

static bool find_program(void) {
    const char *venv = getenv("TEST_VENV");
    if (venv) {
        (void)snprintf(program, sizeof program, "%s/bin/secantusd-py", venv);
        if (access(program, X_OK) == 0) return true;
    }
    (void)snprintf(program, sizeof program, "%s", KASMA_SOURCE_DIR "/var/venv/bin/secantusd-py");
    if (access(program, X_OK) == 0) return true;
    const char *path = getenv("PATH");
    for (const char *at = path ? path : ""; *at;) {
        size_t len = strcspn(at, ":");
        (void)snprintf(program, sizeof program, "%.*s/secantusd-py", (int)len, at);
        if (access(program, X_OK) == 0) return true;
        at += len + (at[len] == ':');
    }
    program[0] = 0;
    return false;
}

static void server_start(void) {
    char text[16];
    (void)snprintf(text, sizeof text, "%d", port);
    pid = fork();
    if (pid == 0) {
        int quiet = open("/dev/null", O_RDWR);
        if (quiet < 0 || dup2(quiet, 0) < 0 || dup2(quiet, 1) < 0 || dup2(quiet, 2) < 0) _exit(126);
        (void)unsetenv("LD_PRELOAD");
        execl(program, program, "--host", "127.0.0.1", "--port", text, "--storage-path", folder, "--sync-on-commit",
              (char *)NULL);
        _exit(127);
    }
}

static void server_kill(void) {
    if (!pid) return;
    (void)kill(pid, SIGKILL);
    (void)waitpid(pid, NULL, 0);
    pid = 0;
}

/* ---- asking ---- */

struct answer {
    int count;
    struct error err;
    size_t docs;
    int64_t inserted, matched, modified, upserted, deleted;
    size_t refused;
    struct mongo_refusal first;
    int64_t n; /* the field "n" of the last document */
    char v[64];
};

static void keep(void *data, const struct mongo_result *result, const struct error *err) {
    struct answer *a = data;
    a->count++;
    if (err) {
        a->err = *err;
        return;
    }
    a->docs = result->count;
    a->inserted = result->inserted;
    a->matched = result->matched;
    a->modified = result->modified;
    a->upserted = result->upserted;
    a->deleted = result->deleted;
    a->refused = result->refused;
    if (result->refused) a->first = result->refusals[0];
    if (!result->count) return;
    bson_reader_t *reader = bson_reader_new_from_data((const uint8_t *)result->docs.data, result->docs.len);
    const bson_t *doc;
    bson_iter_t it;
    while ((doc = bson_reader_read(reader, NULL))) {
        if (bson_iter_init_find(&it, doc, "n")) a->n = bson_iter_as_int64(&it);
        if (bson_iter_init_find(&it, doc, "v") && BSON_ITER_HOLDS_UTF8(&it))
            (void)snprintf(a->v, sizeof a->v, "%s", bson_iter_utf8(&it, NULL));
    }
    bson_reader_destroy(reader);
}

static bool answered(void *data) {
    return ((struct answer *)data)->count > 0;
}

static bson_t *json(const char *text) {
    bson_error_t why;
    bson_t *b = bson_new_from_json((const uint8_t *)text, -1, &why);
    if (!b) fail_msg("%s: %s", text, why.message);
    return b;
}

static struct answer ask(struct mongo_request *r) {
    struct answer a = {0};
    if (!mongo_call(m, r, keep, &a, &a.err)) return a;
    assert_true(run_until(answered, &a, 60));
    return a;
}

static struct answer find(const char *collection, const char *filter, const char *opts, size_t limit) {
    struct mongo_request *r = mongo_request_new(MONGO_FIND, "find", str_of(collection), 0);
    r->query = json(filter);
    if (opts) r->opts = json(opts);
    r->limit = limit;
    return ask(r);
}

static void add(struct mongo_request *r, enum mongo_change change, const char *filter, const char *doc, bool upsert,
                bool multi) {
    r->writes[r->count++] = (struct mongo_write){.change = change,
                                                 .filter = filter ? json(filter) : NULL,
                                                 .doc = doc ? json(doc) : NULL,
                                                 .upsert = upsert,
                                                 .multi = multi};
}

static struct answer change(const char *collection, enum mongo_change how, const char *filter, const char *doc,
                            bool upsert, bool multi) {
    struct mongo_request *r = mongo_request_new(MONGO_WRITE, "write", str_of(collection), 1);
    add(r, how, filter, doc, upsert, multi);
    return ask(r);
}

static struct answer command(const char *text) {
    struct mongo_request *r = mongo_request_new(MONGO_COMMAND, "command", STR(""), 0);
    r->query = json(text);
    return ask(r);
}

static void documents_come_back(void **state) {
    (void)state;
    assert_int_equal(change("c", MONGO_INSERT, NULL, "{\"_id\":\"a\",\"n\":1,\"v\":\"one\"}", false, false).inserted,
                     1);
    struct answer a = find("c", "{\"_id\":\"a\"}", NULL, 1);
    assert_int_equal(a.err.kind, ERR_NONE);
    assert_int_equal(a.docs, 1);
    assert_int_equal(a.n, 1);
    assert_string_equal(a.v, "one");
    a = change("c", MONGO_UPDATE, "{\"_id\":\"a\"}", "{\"$inc\":{\"n\":4}}", false, false);
    assert_int_equal(a.matched, 1);
    assert_int_equal(a.modified, 1);
    assert_int_equal(find("c", "{\"_id\":\"a\"}", NULL, 1).n, 5);
    a = change("c", MONGO_UPDATE, "{\"_id\":\"b\"}", "{\"$set\":{\"n\":7}}", true, false);
    assert_int_equal(a.upserted, 1);
    a = change("c", MONGO_REPLACE, "{\"_id\":\"b\"}", "{\"n\":8}", false, false);
    assert_int_equal(a.modified, 1);
    a = change("c", MONGO_UPDATE, "{\"n\":{\"$gt\":0}}", "{\"$set\":{\"v\":\"all\"}}", false, true);
    assert_int_equal(a.matched, 2);
    assert_int_equal(find("c", "{}", "{\"sort\":{\"n\":-1},\"skip\":1}", 5).n, 5);
    assert_int_equal(find("c", "{}", NULL, 1).docs, 1);
    assert_int_equal(change("c", MONGO_DELETE, "{\"n\":{\"$gt\":0}}", NULL, false, true).deleted, 2);
    assert_int_equal(find("c", "{}", NULL, 0).docs, 0);
}

static void a_duplicate_key_is_11000(void **state) {
    (void)state;
    assert_int_equal(change("d", MONGO_INSERT, NULL, "{\"_id\":1}", false, false).inserted, 1);
    struct answer a = change("d", MONGO_INSERT, NULL, "{\"_id\":1}", false, false);
    assert_int_equal(a.err.kind, ERR_QUERY);
    assert_string_equal(a.err.code, "11000");
}

static void a_bulk_goes_on_after_a_refused_write(void **state) {
    (void)state;
    struct mongo_request *r = mongo_request_new(MONGO_BULK, "bulk", STR("bulk"), 6);
    add(r, MONGO_INSERT, NULL, "{\"_id\":1,\"n\":1}", false, false);
    add(r, MONGO_INSERT, NULL, "{\"_id\":1,\"n\":2}", false, false);
    add(r, MONGO_INSERT, NULL, "{\"_id\":2,\"n\":3}", false, false);
    add(r, MONGO_REPLACE, "{\"_id\":3}", "{\"n\":9}", true, false);
    add(r, MONGO_UPDATE, "{\"_id\":2}", "{\"$inc\":{\"n\":10}}", false, false);
    add(r, MONGO_DELETE, "{\"_id\":1}", NULL, false, false);
    struct answer a = ask(r);
    assert_int_equal(a.err.kind, ERR_NONE);
    assert_int_equal(a.inserted, 2);
    assert_int_equal(a.upserted, 1);
    assert_int_equal(a.modified, 1);
    assert_int_equal(a.deleted, 1);
    assert_int_equal(a.refused, 1);
    assert_int_equal(a.first.index, 1);
    assert_int_equal(a.first.code, 11000);
    assert_int_equal(find("bulk", "{\"_id\":2}", NULL, 1).n, 13);
}

static void a_bad_request_is_the_callers_fault(void **state) {
    (void)state;
    struct answer a = change("c", MONGO_REPLACE, "{\"_id\":1}", "{\"$set\":{\"n\":1}}", false, false);
    assert_int_equal(a.err.kind, ERR_INVALID);
    a = find("c", "{\"n\":{\"$nonsense\":1}}", NULL, 1);
    assert_int_equal(a.err.kind, ERR_QUERY);
    assert_true(a.err.code[0] != 0);
    assert_true(mongo_up(m)); /* neither says anything about the server */
}

static void indexes_and_aggregates_work(void **state) {
    (void)state;
    struct answer a =
        command("{\"createIndexes\":\"i\",\"indexes\":[{\"key\":{\"t\":1,\"k\":1},\"name\":\"t_k\",\"unique\":true}]}");
    assert_int_equal(a.err.kind, ERR_NONE);
    assert_int_equal(change("i", MONGO_INSERT, NULL, "{\"t\":1,\"k\":1,\"x\":2}", false, false).inserted, 1);
    assert_int_equal(change("i", MONGO_INSERT, NULL, "{\"t\":1,\"k\":2,\"x\":3}", false, false).inserted, 1);
    assert_string_equal(change("i", MONGO_INSERT, NULL, "{\"t\":1,\"k\":1}", false, false).err.code, "11000");
    struct mongo_request *r = mongo_request_new(MONGO_AGGREGATE, "aggregate", STR("i"), 0);
    r->query = json("{\"0\":{\"$match\":{\"t\":1}},\"1\":{\"$group\":{\"_id\":null,\"n\":{\"$sum\":\"$x\"}}}}");
    a = ask(r);
    assert_int_equal(a.docs, 1);
    assert_int_equal(a.n, 5);
}

static bool fifty_answered(void *data) {
    return ((struct answer *)data)->count >= 50;
}

static void many_at_once_are_all_answered_and_too_many_are_busy(void **state) {
    (void)state;
    struct error err = {0};
    struct mongo *small = mongo_new(url, &(struct mongo_options){.threads = 2, .queue = 50}, &err);
    assert_non_null(small);
    struct answer a = {0};
    size_t taken = 0;
    while (taken < 100000) { /* the threads begin with some of them meanwhile */
        struct mongo_request *r = mongo_request_new(MONGO_PING, "ping", STR(""), 0);
        if (!mongo_call(small, r, keep, &a, &err)) break;
        taken++;
    }
    assert_true(taken >= 50 && taken < 100000);
    assert_int_equal(err.kind, ERR_BUSY);
    assert_true(run_until(fifty_answered, &a, 60));
    mongo_free(small);
    assert_int_equal(a.count, taken);
    assert_int_equal(a.err.kind == ERR_NONE || a.err.kind == ERR_CANCELLED, true);
    run_closed();
}

static void a_cancelled_call_does_not_answer(void **state) {
    (void)state;
    struct answer a = {0};
    struct error err = {0};
    struct mongo_op *op = mongo_call(m, mongo_request_new(MONGO_PING, "ping", STR(""), 0), keep, &a, &err);
    assert_non_null(op);
    mongo_cancel(op);
    for (int i = 0; i < 20; i++)
        assert_int_equal(ask(mongo_request_new(MONGO_PING, "ping", STR(""), 0)).err.kind, ERR_NONE);
    assert_int_equal(a.count, 0);
}

static bool is_up(void *data) {
    (void)data;
    return mongo_up(m);
}

static void away_is_said_at_once_and_back_is_found_out(void **state) {
    (void)state;
    if (!pid) skip();
    assert_int_equal(change("away", MONGO_INSERT, NULL, "{\"_id\":1,\"v\":\"kept\"}", false, false).inserted, 1);
    server_kill();
    struct answer a = find("away", "{\"_id\":1}", NULL, 1); /* the one that finds out */
    assert_int_equal(a.err.kind, ERR_UNAVAILABLE);
    a = find("away", "{\"_id\":1}", NULL, 1);
    assert_int_equal(a.count, 0); /* refused by the call itself */
    assert_int_equal(a.err.kind, ERR_UNAVAILABLE);
    char why[128];
    mongo_why_down(m, why);
    assert_true(why[0] != 0);
    server_start();
    assert_true(run_until(is_up, NULL, 60));
    assert_string_equal(find("away", "{\"_id\":1}", NULL, 1).v, "kept");
}

static void a_frozen_server_does_not_hang_its_callers(void **state) {
    (void)state;
    if (!pid) skip();
    struct error err = {0};
    struct mongo *usual = m;
    m = mongo_new(url, &(struct mongo_options){.threads = 2, .timeout_ms = 3000, .select_ms = 3000}, &err);
    assert_non_null(m);
    assert_int_equal(find("away", "{}", NULL, 1).err.kind, ERR_NONE);
    assert_true(freeze(pid));
    struct answer a = {0};
    for (int i = 0; i < 50; i++) {
        struct mongo_request *r = mongo_request_new(MONGO_FIND, "find", STR("away"), 0);
        r->query = json("{}");
        assert_non_null(mongo_call(m, r, keep, &a, &err));
    }
    assert_true(run_until(fifty_answered, &a, 60));
    assert_true(a.err.kind == ERR_UNAVAILABLE || a.err.kind == ERR_TIMEOUT);
    assert_true(thaw(pid));
    assert_true(run_until(is_up, NULL, 60));
    assert_int_equal(find("away", "{}", NULL, 1).err.kind, ERR_NONE);
    mongo_free(m);
    m = usual;
    run_closed();
    assert_true(run_until(is_up, NULL, 60));
}

static void a_bad_url_is_refused(void **state) {
    (void)state;
    struct error err = {0};
    assert_null(mongo_new("postgres://x", &(struct mongo_options){0}, &err));
    assert_int_equal(err.kind, ERR_INVALID);
}

static int start(void **state) {
    (void)state;
    (void)signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_ERROR);
    if (!loop_open()) return -1;
    if (find_program()) {
        port = free_port();
        (void)snprintf(folder, sizeof folder, "/tmp/kasma-test-mongo-XXXXXX");
        if (!mkdtemp(folder)) return -1;
        (void)snprintf(url, sizeof url, "mongodb://127.0.0.1:%d/kasma_test", port);
        server_start();
    } else {
        (void)snprintf(url, sizeof url, "%s", getenv("TEST_MONGODB_URL"));
    }
    struct error err = {0};
    m = mongo_new(url, &(struct mongo_options){0}, &err);
    if (!m) return -1;
    /* The scout's first look may come before the server listens; then it looks again. */
    for (int i = 0; i < 60; i++) {
        if (ask(mongo_request_new(MONGO_PING, "ping", STR(""), 0)).err.kind == ERR_NONE) break;
        (void)run_until(is_up, NULL, 1);
    }
    return command("{\"dropDatabase\":1}").err.kind == ERR_NONE ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at) {
    (void)st;
    (void)type;
    (void)at;
    return remove(path);
}

static int stop(void **state) {
    (void)state;
    mongo_free(m);
    run_closed();
    server_kill();
    return folder[0] ? nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS) : 0;
}

int main(void) {
    if (!getenv("TEST_MONGODB_URL") && !find_program()) {
        print_message(
            "test_mongo: skipped: neither TEST_MONGODB_URL nor a document server (stack/install --document-server)\n");
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(documents_come_back),
        cmocka_unit_test(a_duplicate_key_is_11000),
        cmocka_unit_test(a_bulk_goes_on_after_a_refused_write),
        cmocka_unit_test(a_bad_request_is_the_callers_fault),
        cmocka_unit_test(indexes_and_aggregates_work),
        cmocka_unit_test(many_at_once_are_all_answered_and_too_many_are_busy),
        cmocka_unit_test(a_cancelled_call_does_not_answer),
        cmocka_unit_test(away_is_said_at_once_and_back_is_found_out),
        cmocka_unit_test(a_frozen_server_does_not_hang_its_callers),
        cmocka_unit_test(a_bad_url_is_refused),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
