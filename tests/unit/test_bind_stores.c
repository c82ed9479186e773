// link: script
/* The Lua faces of Redis, Redlock, MongoDB and the HTTP client, on real servers. Each case is a piece of Lua run as a
 * task; it passes by returning. MongoDB's cases are skipped when TEST_MONGODB_URL is not set. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "redis_server.h"
#include "runtime/config.h"
#include "runtime/log.h"
#include "script/bind.h"
#include "script/vm.h"
#include "task_outcome.h"

static struct redis_server server;
static struct vm *vm;

static const luaL_Reg modules[] = {{"core.json", luaopen_core_json},
                                   {"core.sched", luaopen_core_sched},
                                   {"core.redis", luaopen_core_redis},
                                   {"core.redlock", luaopen_core_redlock},
                                   {"core.mongo", luaopen_core_mongo},
                                   {"core.http_client", luaopen_core_http_client},
                                   {NULL, NULL}};

static void start(struct task_outcome *r, const char *text) {
    lua_State *L = vm_state(vm);
    *r = (struct task_outcome){0};
    if (luaL_loadstring(L, text) != 0) fail_msg("%s", lua_tostring(L, -1));
    assert_true(task_start(L, 0, NULL, task_outcome_note, r, NULL));
}

static void lua(const char *text) {
    struct task_outcome r;
    start(&r, text);
    assert_true(run_until(task_outcome_over, &r, 30));
    if (!r.ok) fail_msg("%s", r.message);
}

#define PRELUDE                                                                                                        \
    "local redis, redlock, mongo, http = require('core.redis'), require('core.redlock'), require('core.mongo'), "      \
    "require('core.http_client')\n"                                                                                    \
    "local json, sched = require('core.json'), require('core.sched')\n"                                                \
    "local function eq(a, b) if a ~= b then error(('%s is not %s'):format(tostring(a), tostring(b)), 2) end end\n"

static void redis_values_become_lua_values(void **state) {
    (void)state;
    lua(PRELUDE "eq(redis.call('SET', 'k', 'v'), 'OK')\n"
                "eq(redis.call('GET', 'k'), 'v')\n"
                "eq(redis.call('GET', 'none'), json.null)\n"
                "eq(redis.call('SET', 'n', 9007199254740991), 'OK')\n"
                "eq(redis.call('GET', 'n'), '9007199254740991')\n"
                "eq(redis.call('SET', 'f', 0.1), 'OK')\n"
                "eq(tonumber(redis.call('GET', 'f')), 0.1)\n"
                "eq(redis.call('RPUSH', 'l', 'a', 'b', 'c'), 3)\n"
                "local l = redis.call('LRANGE', 'l', 0, -1) eq(#l, 3) eq(l[2], 'b')\n"
                "local v, err = redis.call('INCR', 'l') eq(v, nil) eq(err.kind, 'query') eq(err.code, 'WRONGTYPE')\n"
                "local many = {'DEL'} for i = 1, 100 do many[#many + 1] = 'x' .. i end\n"
                "eq(redis.call(unpack(many)), 0)\n"
                "eq(pcall(redis.call, 'SET', 'k', nil), false)\n"
                "eq(pcall(redis.call, 'SET', 'k', {}), false)\n"
                "eq(pcall(redis.call), false)\n");
}

static void a_redis_pipeline_answers_in_places(void **state) {
    (void)state;
    lua(PRELUDE "local r = redis.pipeline{ {'SET', 'p', 1}, {'LPUSH', 'p', 1}, {'INCR', 'p'}, {'GET', 'nope'} }\n"
                "eq(#r, 4) eq(r[1], 'OK') eq(r[2].err:match('^%S+'), 'WRONGTYPE') eq(r[3], 2) eq(r[4], json.null)\n"
                "eq(pcall(redis.pipeline, {}), false) eq(pcall(redis.pipeline, {{}}), false)\n");
}

static void a_redis_script_runs_also_after_a_flush(void **state) {
    (void)state;
    lua(PRELUDE
        "local text = 'return {KEYS[1], ARGV[1], ARGV[2]}'\n"
        "for i = 1, 3 do\n"
        "  local r = redis.eval(text, {'k'}, {'a', 7}) eq(r[1], 'k') eq(r[2], 'a') eq(r[3], '7')\n"
        "  redis.call('SCRIPT', 'FLUSH')\n"
        "end\n"
        "eq(redis.eval('return 1', {}), 1)\n"
        "local v, err = redis.eval('return redis.error_reply(\"MINE no\")', {}, {}) eq(v, nil) eq(err.code, 'MINE')\n");
}

static void a_redis_script_that_leaves_at_once_keeps_its_place(void **state) {
    (void)state;
    lua(PRELUDE "local log, calls, text = {}, {}, 'return redis.call(\"INCRBY\", KEYS[1], ARGV[1])'\n"
                "redis.eval(text, {'turn'}, {0})\n" /* known from here on */
                "for i = 1, 40 do\n"
                "  calls[i] = function()\n"
                "    local filler = ('x'):rep(i == 20 and 3000000 or 10)\n" /* more than a socket takes in one write */
                "    local v = redis.eval(text, {'turn'}, {1, filler}, i % 3 == 0) log[#log + 1] = v\n"
                "  end\n"
                "end\n"
                "sched.parallel(calls)\n"
                "for i = 1, 40 do eq(log[i], i) end\n");
}

static void messages_reach_a_subscriber(void **state) {
    (void)state;
    lua(PRELUDE "local got = {}\n"
                "local sub = redis.subscribe('ch', function(m) sched.sleep(1) got[#got + 1] = m end)\n"
                "local function publish(m) while redis.call('PUBLISH', 'ch', m) == 0 do sched.sleep(2) end end\n"
                "publish('one') publish('two')\n"
                "while #got < 2 do sched.sleep(2) end\n"
                "eq(got[1], 'one') eq(got[2], 'two')\n"
                "sub:close()\n"
                "while redis.call('PUBLISH', 'ch', 'three') > 0 do sched.sleep(2) end\n");
}

static void a_blocking_command_waits_on_a_connection_of_its_own(void **state) {
    (void)state;
    lua(PRELUDE "local conn = redis.dedicated('mine')\n"
                "eq(conn:call('CLIENT', 'GETNAME'), 'mine')\n"
                "local got sched.spawn(function() got = conn:call('BLPOP', 'queue', 10) end)\n"
                "sched.sleep(5) eq(got, nil) eq(redis.call('PING'), 'PONG')\n"
                "redis.call('RPUSH', 'queue', 'job')\n"
                "while not got do sched.sleep(2) end eq(got[2], 'job')\n"
                "local err sched.spawn(function() local _ _, err = conn:call('BLPOP', 'queue', 10) end)\n"
                "sched.sleep(5) conn:close() sched.sleep(5) eq(err.kind, 'cancelled')\n"
                "local v v, err = conn:call('PING') eq(v, nil) eq(err.kind, 'unavailable')\n");
}

/* The item must stay in the queue when the one who waited for it is gone. */
static void a_cancelled_blocking_command_takes_nothing(void **state) {
    (void)state;
    lua(PRELUDE "local conn = redis.dedicated('gone')\n"
                "sched.spawn(function() sched.deadline(20) conn:call('BLPOP', 'jobs', 10) end)\n"
                "sched.sleep(60)\n"
                "local function blocked() return redis.call('INFO', 'clients'):match('blocked_clients:(%d+)') end\n"
                "while blocked() ~= '0' do sched.sleep(2) end\n"
                "redis.call('RPUSH', 'jobs', 'precious') eq(redis.call('LLEN', 'jobs'), 1)\n"
                "local answer repeat answer = conn:call('PING') sched.sleep(2) until answer eq(answer, 'PONG')\n"
                "conn:close()\n");
}

static void a_lock_is_exclusive_and_released(void **state) {
    (void)state;
    lua(PRELUDE "local key = redlock.key('acme', 'wallet:1')\n"
                "eq(key, 'lock:{acme}:wallet:1') eq(pcall(redlock.key, '', 'x'), false) eq(pcall(redlock.key, nil, "
                "'x'), false)\n"
                "eq(pcall(redlock.acquire, 'mykey', 1000), false)\n"
                "local lock = assert(redlock.acquire({key}, 5000))\n"
                "assert(lock.validity_ms > 0 and lock.validity_ms <= 4948) assert(lock:left() > 0)\n"
                "local none, err = redlock.acquire(key, 5000, {retries = 0}) eq(none, nil) eq(err.kind, 'busy') "
                "eq(err.code, 'locked')\n"
                "assert(lock:extend(20000) > 5000) assert(lock.validity_ms > 5000)\n"
                "eq(lock:release(), true)\n"
                "local ok ok, err = lock:release() eq(ok, nil) eq(err.code, 'lost') eq(lock:left(), 0)\n"
                "lock = assert(redlock.acquire({redlock.key('acme', 'b'), key}, 5000, {retries = 0})) "
                "eq(lock:release(), true)\n");
}

static void a_task_that_ends_gives_its_locks_back(void **state) {
    (void)state;
    lua(PRELUDE
        "local a, b = redlock.key('t', 'a'), redlock.key('t', 'b')\n"
        "sched.spawn(function() redlock.acquire(a, 60000) redlock.acquire(b, 60000) collectgarbage() end)\n"
        "local lock = assert(redlock.acquire({a, b}, 1000, {retries = 500, delay_ms = 2, jitter_ms = 1}))\n"
        "lock:release() lock = nil collectgarbage()\n"
        "for i = 1, 50 do local l = assert(redlock.acquire(a, 1000, {retries = 50, delay_ms = 2, jitter_ms = 1}))\n"
        "  if i % 2 == 0 then l:release() else l:release() l = nil collectgarbage() end end\n"
        "-- cancelled while it waits for a lock that another holds\n"
        "local held = assert(redlock.acquire(a, 60000))\n"
        "sched.spawn(function() sched.deadline(30) redlock.acquire(a, 60000, {retries = 1000, delay_ms = 5, jitter_ms "
        "= 0}) end)\n"
        "sched.sleep(60) held:release()\n"
        "assert(redlock.acquire(a, 1000, {retries = 100, delay_ms = 2, jitter_ms = 0})):release()\n");
}

static void documents_keep_their_shape(void **state) {
    (void)state;
    if (!getenv("TEST_MONGODB_URL")) skip();
    lua(PRELUDE
        "mongo.delete('shape', {}, {multi = true})\n"
        "eq(mongo.ping(), true)\n"
        "local doc = {_id = 'x', n = 1, big = 9007199254740991, f = 1.5, t = true, z = json.null, s = 'h\\195\\169',\n"
        "  list = {1, 'two', {three = 3}}, empty = json.array{}, obj = {}, at = mongo.date(1764385201204),\n"
        "  oid = mongo.oid('0123456789abcdef01234567'), long = mongo.int64('1152921504606846976')}\n"
        "eq(mongo.insert('shape', doc), 1)\n"
        "local d = mongo.find_one('shape', {_id = 'x'})\n"
        "eq(d.n, 1) eq(d.big, 9007199254740991) eq(d.f, 1.5) eq(d.t, true) eq(d.z, json.null) eq(d.s, 'h\\195\\169')\n"
        "eq(#d.list, 3) eq(d.list[3].three, 3) eq(json.encode(d.empty), '[]') eq(json.encode(d.obj), '{}')\n"
        "eq(d.at, '2025-11-29T03:00:01.204Z') eq(d.oid, '0123456789abcdef01234567') eq(d.long, 2^60)\n"
        "eq(mongo.find_one('shape', {_id = 'none'}), json.null)\n"
        "eq(mongo.find_one('shape', {long = mongo.int64('1152921504606846976')})._id, 'x')\n"
        "local n, err = mongo.insert('shape', {_id = 'x'}) eq(n, nil) eq(err.kind, 'query') eq(err.code, '11000')\n");
}

static void documents_are_changed_and_listed(void **state) {
    (void)state;
    if (!getenv("TEST_MONGODB_URL")) skip();
    lua(PRELUDE
        "mongo.delete('list', {}, {multi = true})\n"
        "eq(mongo.insert('list', {{_id = 1, n = 3}, {_id = 2, n = 1}, {_id = 3, n = 2}}), 3)\n"
        "local d = mongo.find('list', {}, {sort = {{'n', -1}}, limit = 2, projection = {n = 1}}) eq(#d, 2) "
        "eq(d[1]._id, 1) eq(d[2]._id, 3)\n"
        "d = mongo.find('list', {}, {sort = {n = 1}, skip = 1, limit = 1}) eq(d[1]._id, 3)\n"
        "local none, err = mongo.find('list', {}, {sort = {n = 1, _id = 1}}) eq(none, nil) eq(err.kind, 'invalid')\n"
        "eq(json.encode(mongo.find('list', {_id = 99})), '[]')\n"
        "local r = mongo.update('list', {_id = 1}, {['$inc'] = {n = 10}}) eq(r.matched, 1) eq(r.modified, 1) "
        "eq(r.upserted, 0)\n"
        "r = mongo.update('list', {_id = 4}, {['$set'] = {n = 4}}, {upsert = true}) eq(r.upserted, 1)\n"
        "r = mongo.update('list', {}, {['$set'] = {all = true}}, {multi = true}) eq(r.matched, 4)\n"
        "r = mongo.replace('list', {_id = 4}, {n = 5}) eq(r.modified, 1)\n"
        "r = mongo.bulk('list', {{op = 'insert', doc = {_id = 1}}, {op = 'insert', doc = {_id = 5}},\n"
        "  {op = 'update', filter = {_id = 2}, update = {['$set'] = {n = 7}}}, {op = 'replace', filter = {_id = 6}, "
        "doc = {n = 6}, upsert = true},\n"
        "  {op = 'delete', filter = {_id = 3}}})\n"
        "eq(r.inserted, 1) eq(r.modified, 1) eq(r.upserted, 1) eq(r.deleted, 1) eq(#r.errors, 1) eq(r.errors[1].index, "
        "1) eq(r.errors[1].code, '11000')\n"
        "none, err = mongo.bulk('list', {{op = 'nonsense'}}) eq(none, nil) eq(err.kind, 'invalid')\n"
        "d = mongo.aggregate('list', {{['$match'] = {_id = 2}}, {['$project'] = {n = 1}}}) eq(#d, 1) eq(d[1].n, 7)\n"
        "eq(mongo.index('list', {{'n', 1}, {'_id', -1}}, {name = 'n_id', unique = true}), true)\n"
        "eq(mongo.index('list', {{'at', 1}}, {ttl_s = 60}), true)\n"
        "eq(mongo.command{{'count', 'list'}}.n, 5)\n"
        "eq(mongo.delete('list', {n = 7}), 1) eq(mongo.delete('list', {}, {multi = true}), 4)\n"
        "eq(mongo.status(), true)\n");
}

static void what_cannot_be_a_document_is_refused(void **state) {
    (void)state;
    if (!getenv("TEST_MONGODB_URL")) skip();
    lua(PRELUDE
        "local function refused(doc, kind) local n, err = mongo.insert('bad', doc) eq(n, nil) eq(err.kind, kind) end\n"
        "refused({f = print}, 'invalid') refused({a = {1, 2, x = 3}}, 'invalid') refused({[1.5] = 1}, 'invalid')\n"
        "refused({s = '\\255'}, 'invalid') refused({['a\\0b'] = 1}, 'invalid') refused({a = {1, nil, 3}}, 'invalid')\n"
        "local deep = {} local at = deep for _ = 1, 70 do at.x = {} at = at.x end refused(deep, 'limit')\n"
        "local round = {} round.x = round refused(round, 'limit')\n"
        "refused({s = ('x'):rep(17 * 1024 * 1024)}, 'limit')\n"
        "local wide = {} for i = 1, 20 do wide['k' .. i] = ('x'):rep(1024 * 1024) end refused(wide, 'limit')\n"
        "eq(pcall(mongo.find, 'bad', nil), false) eq(pcall(mongo.find, '', {}), false)\n"
        "local none, err = mongo.replace('bad', {_id = 1}, {['$set'] = {a = 1}}) eq(none, nil) eq(err.kind, "
        "'invalid')\n");
}

static void a_request_that_cannot_be_made_answers_an_error(void **state) {
    (void)state;
    lua(PRELUDE
        "local res, err = http.request{url = 'file:///etc/passwd'} eq(res, nil) eq(err.kind, 'invalid')\n"
        "res, err = http.request{url = 'http://127.0.0.1:1/', timeout_ms = 2000} eq(res, nil) eq(err.kind, "
        "'unavailable')\n"
        "res, err = http.request{url = 'http://127.0.0.1:1/', public_only = true} eq(res, nil) eq(err.kind, "
        "'invalid')\n"
        "res, err = http.request{url = 'http://127.0.0.1:1/', headers = {a = '1', b = 2}, form = {['a b'] = 'c&d', e = "
        "5}}\n"
        "eq(res, nil) eq(err.kind, 'unavailable')\n"
        "eq(pcall(http.request, {}), false) eq(pcall(http.request, {url = 'http://x', timeout_ms = 'y'}), false)\n");
}

static void redis_away_is_an_error_and_not_a_wait(void **state) {
    (void)state;
    redis_server_kill(&server);
    lua(PRELUDE "local v, err repeat v, err = redis.call('PING') sched.sleep(1) until not v\n"
                "v, err = redis.call('PING') eq(v, nil) eq(err.kind, 'unavailable') eq(redis.status(), false)\n"
                "local lock lock, err = redlock.acquire(redlock.key('t', 'x'), 1000) eq(lock, nil) eq(err.kind, "
                "'unavailable')\n");
    redis_server_start(&server);
    lua(PRELUDE "while not redis.status() do sched.sleep(5) end eq(redis.call('PING'), 'PONG')\n");
}

static int set_up(void **state) {
    (void)state;
    (void)signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_ERROR);
    redis_server_start(&server);
    const char *mongodb = getenv("TEST_MONGODB_URL");
    if (!mongodb) print_message("test_bind_stores: MongoDB's cases are skipped: TEST_MONGODB_URL is not set\n");
    if (!loop_open() || setenv("REDIS_URL", server.url, 1) != 0 ||
        setenv("MONGODB_URL", mongodb ? mongodb : "", 1) != 0 || unsetenv("REDLOCK_NODES") != 0 ||
        setenv("KASMA_ENV", "test", 1) != 0)
        return -1;
    char name[] = "test", *argv[] = {name, NULL};
    int argc = 1;
    struct buf problems = {0};
    bool loaded = config_load(&argc, argv, &problems);
    if (!loaded) print_message("%.*s\n", (int)problems.len, problems.data);
    buf_free(&problems);
    struct error err = {0};
    vm = loaded ? vm_new_with(modules, NULL, &err) : NULL;
    if (!vm) return -1;
    lua(PRELUDE "while not redis.status() do sched.sleep(5) end");
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    vm_free(vm);
    run_closed();
    redis_server_kill(&server);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(redis_values_become_lua_values),
        cmocka_unit_test(a_redis_pipeline_answers_in_places),
        cmocka_unit_test(a_redis_script_runs_also_after_a_flush),
        cmocka_unit_test(a_redis_script_that_leaves_at_once_keeps_its_place),
        cmocka_unit_test(messages_reach_a_subscriber),
        cmocka_unit_test(a_blocking_command_waits_on_a_connection_of_its_own),
        cmocka_unit_test(a_cancelled_blocking_command_takes_nothing),
        cmocka_unit_test(a_lock_is_exclusive_and_released),
        cmocka_unit_test(a_task_that_ends_gives_its_locks_back),
        cmocka_unit_test(documents_keep_their_shape),
        cmocka_unit_test(documents_are_changed_and_listed),
        cmocka_unit_test(what_cannot_be_a_document_is_refused),
        cmocka_unit_test(a_request_that_cannot_be_made_answers_an_error),
        cmocka_unit_test(redis_away_is_an_error_and_not_a_wait),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
