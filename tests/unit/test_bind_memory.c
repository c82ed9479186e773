// link: script
/* Memory that ends while an answer of Redis, of a lock, of a password hash, of an HTTP peer or a request to the server
 * becomes Lua values: one task fails, the process serves on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <lauxlib.h>

#include "http/server.h"
#include "redis_server.h"
#include "runtime/config.h"
#include "script/bind.h"
#include "script/bind_server.h"
#include "script/task.h"

#include "memory_fixture.h"

static struct redis_server redis_of_ours;
static struct server *server;
static char prelude[1024];

static const luaL_Reg modules[] = {{"core.json", luaopen_core_json},
                                   {"core.sched", luaopen_core_sched},
                                   {"core.redis", luaopen_core_redis},
                                   {"core.redlock", luaopen_core_redlock},
                                   {"core.crypto", luaopen_core_crypto},
                                   {"core.server", luaopen_core_server},
                                   {"core.mongo", luaopen_core_mongo},
                                   {"core.http_client", luaopen_core_http_client},
                                   {NULL, NULL}};

static void replies_of_redis(void **state) {
    (void)state;
    work_without_memory(prelude, "assert(redis.call('SET', 'k', ('v'):rep(300)))\n"
                                 "assert(#assert(redis.call('GET', 'k')) == 300)\n"
                                 "local r = assert(redis.pipeline{{'SET', 'p', 1}, {'LPUSH', 'p', 1}, {'GET', 'p'}})\n"
                                 "assert(r[2].err and r[3] == '1')\n"
                                 "r = assert(redis.eval('return {1, {2, {\"three\", KEYS[1]}}}', {'some key'}, {}))\n"
                                 "assert(r[2][2][2] == 'some key')\n"
                                 "local none, err = redis.call('LPUSH', 'k', 1) assert(not none and err.code)\n");
}

static void a_connection_of_ones_own(void **state) {
    (void)state;
    work_without_memory(prelude, "local conn = assert(redis.dedicated('mine'))\n"
                                 "sched.defer(function() conn:close() end)\n"
                                 "assert(redis.call('DEL', 'queue')) assert(redis.call('RPUSH', 'queue', 'job'))\n"
                                 "assert(assert(conn:call('BLPOP', 'queue', 5))[2] == 'job')\n");
}

static void locks(void **state) {
    (void)state;
    work_without_memory(prelude, "local lock = assert(redlock.acquire(redlock.key('t', 'thing'), 1000))\n"
                                 "assert(lock:extend(2000)) assert(lock:release())\n");
}

static void passwords(void **state) {
    (void)state;
    work_without_memory(prelude, "local hash = assert(crypto.password_hash('secret', {m = 8, t = 1}))\n"
                                 "assert(crypto.password_verify('secret', hash))\n");
}

static void several_at_once(void **state) {
    (void)state;
    work_without_memory(prelude, "local list = {}\n"
                                 "for i = 1, 4 do list[i] = function()\n"
                                 "  sched.sleep(1) return assert(redis.call('ECHO', 'text ' .. i))\n"
                                 "end end\n"
                                 "local got = sched.parallel(list) assert(got[4] == 'text 4')\n"
                                 "local ok, err = pcall(sched.parallel, {function() error({code = 7}) end})\n"
                                 "assert(not ok and err.code == 7)\n");
}

static void a_request_and_its_answer(void **state) {
    (void)state;
    work_without_memory(prelude, "local res = assert(http.request{url = url .. '/json', timeout_ms = 5000})\n"
                                 "assert(res.status == 200 and #res.body > 100 and res.headers['x-of'] == 'ours')\n");
}

static void a_body_in_pieces(void **state) {
    (void)state;
    work_without_memory(prelude, "local res = assert(http.request{url = url .. '/pieces', method = 'POST',\n"
                                 "  body = ('b'):rep(200000), timeout_ms = 5000})\n"
                                 "assert(res.status == 200 and res.body == '200000', res.body)\n");
}

static void an_answer_in_pieces(void **state) {
    (void)state;
    work_without_memory(prelude, "local stream = assert(http.stream{url = url .. '/drip'})\n"
                                 "sched.defer(function() stream:close() end)\n"
                                 "sched.deadline(5000)\n"
                                 "local n = 0\n"
                                 "while true do\n"
                                 "  local piece, err = stream:read() if err then error(err) end\n"
                                 "  if not piece then break end n = n + #piece\n"
                                 "end\n"
                                 "assert(n == 3000, n)\n");
}

/* A message that meets no memory is missed, as one that comes while the connection is away. */
static void messages(void **state) {
    (void)state;
    work_without_memory(prelude, "sched.deadline(10000)\n"
                                 "local got\n"
                                 "local channel = assert(redis.subscribe('news', function(text) got = text end))\n"
                                 "sched.defer(function() channel:close() end)\n"
                                 "repeat assert(redis.call('PUBLISH', 'news', 'some text')) sched.sleep(1) until got\n"
                                 "assert(got == 'some text')\n");
}

static void documents(void **state) {
    (void)state;
    if (!getenv("TEST_MONGODB_URL")) skip();
    work_without_memory(prelude,
                        "local mongo = require('core.mongo')\n"
                        "assert(mongo.delete('memory', {}, {multi = true}))\n"
                        "assert(mongo.insert('memory', {{_id = 'a', list = {1, 'two', {three = 3}}}, {_id = 'b'}}))\n"
                        "assert(mongo.find_one('memory', {_id = 'a'}).list[3].three == 3)\n"
                        "assert(#assert(mongo.find('memory', {})) == 2)\n"
                        "assert(mongo.update('memory', {_id = 'a'}, {['$set'] = {x = 1}}).modified == 1)\n");
}

/* What ends it is told with its text, however little there is. */
static void an_endless_recursion_is_an_error_like_others(void **state) {
    (void)state;
    struct task_outcome w = {0};
    load(prelude, "local function f(n) return 1 + f(n + 1) end f(1)");
    assert_true(task_start(vm_state(vm), 0, NULL, task_log_finished, NULL, NULL));
    load(prelude, "local function f(n) return 1 + f(n + 1) end f(1)");
    assert_true(task_start(vm_state(vm), 0, NULL, worked, &w, NULL));
    assert_true(w.over && !w.ok && strstr(w.message, "stack overflow"));
    work(prelude, "assert(redis.call('PING') == 'PONG')");
}

static int open_all(void **state) {
    (void)state;
    (void)signal(SIGPIPE, SIG_IGN);
    redis_server_start(&redis_of_ours);
    const char *mongodb = getenv("TEST_MONGODB_URL");
    if (!loop_open() || setenv("MONGODB_URL", mongodb ? mongodb : "", 1) != 0 ||
        setenv("REDIS_URL", redis_of_ours.url, 1) != 0 || unsetenv("REDLOCK_NODES") != 0 ||
        setenv("KASMA_ENV", "test", 1) != 0 || !load_settings())
        return -1;
    struct server_settings set;
    server_settings_default(&set);
    set.access_log = false;
    server = server_new(&set);
    if (!server) return -1;
    bind_server_set(server);
    log_set_level((enum log_level)(LOG_ERROR + 1)); /* thousands of lines that are expected */
    scarce_vm(modules);
    struct error err = {0};
    if (!vm_run(vm,
                "local server, sched = require('core.server'), require('core.sched')\n"
                "server.route('GET', '/json', function(req)\n"
                "  req:respond(200, {['X-Of'] = 'ours'}, ('some text '):rep(20)) end)\n"
                "server.route('POST', '/pieces', function(req)\n"
                "  local n = 0\n"
                "  while true do\n"
                "    local piece, err = req:read() if err then return req:respond(500, nil, err.message) end\n"
                "    if not piece then break end n = n + #piece\n"
                "  end\n"
                "  req:respond(200, nil, tostring(n))\n"
                "end, {stream = true, body_limit = 1000000})\n"
                "server.route('GET', '/drip', function(req)\n"
                "  local out = assert(req:stream(200))\n"
                "  for _ = 1, 3 do assert(out:write(('d'):rep(1000))) sched.sleep(1) end\n"
                "  out:close()\n"
                "end)\n",
                "=routes", &err))
        fail_msg("%s", err.message);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    if (bind(fd, (struct sockaddr *)&at, sizeof at) != 0 || getsockname(fd, (struct sockaddr *)&at, &len) != 0 ||
        !server_listen_fd(server, fd, &err))
        return -1;
    (void)snprintf(prelude, sizeof prelude,
                   "local redis, redlock, http = require('core.redis'), require('core.redlock'), "
                   "require('core.http_client')\n"
                   "local crypto, sched = require('core.crypto'), require('core.sched')\n"
                   "local url = 'http://127.0.0.1:%d'\n",
                   ntohs(at.sin_port));
    work(prelude, "while not redis.status() do sched.sleep(5) end");
    return 0;
}

static int close_all(void **state) {
    (void)state;
    server_close(server);
    run_closed();
    bind_server_set(NULL);
    scarce_vm_free();
    run_closed();
    redis_server_kill(&redis_of_ours);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replies_of_redis),
        cmocka_unit_test(a_connection_of_ones_own),
        cmocka_unit_test(locks),
        cmocka_unit_test(passwords),
        cmocka_unit_test(several_at_once),
        cmocka_unit_test(a_request_and_its_answer),
        cmocka_unit_test(a_body_in_pieces),
        cmocka_unit_test(an_answer_in_pieces),
        cmocka_unit_test(messages),
        cmocka_unit_test(documents),
        cmocka_unit_test(an_endless_recursion_is_an_error_like_others),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
