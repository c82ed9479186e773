// link: script
/* Sockets in Lua: a WebSocket's messages are tasks in their order, what a socket holds is let go of, and a state that
 * is closed over open sockets leaves nothing behind (the sanitizers look). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "http_client.h"
#include "script/bind.h"
#include "script/bind_server.h"
#include "script/task.h"
#include "script/vm.h"

#include <lauxlib.h>

static struct vm *vm;
static struct server *server;

static const char program[] =
    "local server, sched, push = require('core.server'), require('core.sched'), require('core.push')\n"
    "log, sockets = {}, {}\n"
    "local function closed(state, code) log[#log + 1] = state.name .. ' closed ' .. code end\n"
    "server.route('GET', '/ws', function(req)\n"
    "  local state = { name = 'ws' }\n"
    "  local socket, err = req:websocket{ state = state, closed = closed, protocol = "
    "req:header('Sec-WebSocket-Protocol'),\n"
    "    message = function(s, text)\n"
    "      if text == 'slow' then sched.sleep(20) end\n"
    "      if text == 'raise' then error('on purpose') end\n"
    "      if text == 'close' then\n"
    "        s.socket:close(4000, 'bye')\n"
    "        return log:insert(tostring(s.socket:send('never')), tostring(s.socket:is_open()))\n"
    "      end\n"
    "      assert(s.socket:send(text))\n"
    "    end }\n"
    "  if not socket then return req:respond(tonumber(err.code), nil, err.message) end\n"
    "  state.socket = socket\n"
    "  sockets[#sockets + 1] = socket\n"
    "end)\n"
    "setmetatable(log, { __index = { insert = function(l, ...) for _, v in ipairs{...} do l[#l + 1] = v end end } })\n"
    "server.route('GET', '/events', function(req)\n"
    "  sockets[#sockets + 1] = assert(req:events{ state = { name = 'events' }, closed = closed, headers = { ['X-A'] = "
    "'b' } })\n"
    "end)\n"
    "server.route('GET', '/all', function(req)\n"
    "  local m = push.message('{\"to\":\"all\"}', 'news')\n"
    "  for i, socket in ipairs(sockets) do socket:send(m, tostring(i)) end\n"
    "  m:free()\n"
    "  assert(not pcall(sockets[1].send, sockets[1], m))\n"
    "  assert(not pcall(push.message, 'x', 'two\\nlines'))\n"
    "  assert(not pcall(sockets[1].close, sockets[1], 1005))\n"
    "  req:respond(200, nil, table.concat(log, ','))\n"
    "end)\n";

static int setup(void **state) {
    (void)state;
    static const luaL_Reg modules[] = {{"core.server", luaopen_core_server},
                                       {"core.sched", luaopen_core_sched},
                                       {"core.push", luaopen_core_push},
                                       {NULL, NULL}};
    struct error err;
    struct server_settings set;
    assert_true(loop_open());
    server_settings_default(&set);
    set.access_log = false;
    server = server_new(&set);
    assert_non_null(server);
    bind_server_set(server);
    vm = vm_new_with(modules, NULL, &err);
    assert_non_null(vm);
    lua_State *L = vm_state(vm);
    if (luaL_loadbuffer(L, program, sizeof program - 1, "=program") != 0 || lua_pcall(L, 0, 0, 0) != 0)
        fail_msg("%s", lua_tostring(L, -1));
    test_listen(server);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    server_close(server);
    for (int i = 0; i < 10; i++) turn_loop();
    bind_server_set(NULL);
    vm_free(vm);
    assert_int_equal(task_count(), 0);
    return 0;
}

static void upgrade(struct client *c) {
    client_open(c);
    client_says(
        c,
        "GET /ws HTTP/1.1\r\nHost: t\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: kasma\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n");
    WAIT_UNTIL(((void)client_poll(c), strstr(client_text(c), "\r\n\r\n")));
    assert_non_null(strstr(client_text(c), "\r\nSec-WebSocket-Protocol: kasma\r\n"));
    c->in.len = 0;
}

static void says(struct client *c, const char *text) {
    struct buf b = {0};
    assert_true(buf_byte(&b, (char)0x81) && buf_byte(&b, (char)(0x80 | strlen(text))) &&
                buf_add(&b, str_n("\0\0\0\0", 4)) && buf_add(&b, str_of(text)));
    client_send(c, buf_str(&b));
    buf_free(&b);
}

static void hears(struct client *c, struct str bytes) {
    WAIT_UNTIL(((void)client_poll(c), c->in.len >= bytes.len || c->eof));
    assert_int_equal(c->in.len, bytes.len);
    assert_memory_equal(c->in.data, bytes.at, bytes.len);
    c->in.len = 0;
}

static void expect_log(const char *wanted) {
    char *text = talk("GET /all HTTP/1.1\r\nHost: t\r\n\r\n");
    assert_string_equal(strstr(text, "\r\n\r\n") + 4, wanted);
    free(text);
}

static void messages_are_answered_in_their_order(void **state) {
    (void)state;
    struct client c;
    upgrade(&c);
    says(&c, "slow");
    says(&c, "a");
    says(&c, "b");
    hears(&c, STR("\x81\x04slow\x81\x01"
                  "a\x81\x01"
                  "b"));
    client_close(&c);
    WAIT_UNTIL(server_connections(server) == 0);
    for (int i = 0; i < 10; i++) turn_loop();
    expect_log("ws closed 1006");
    assert_int_equal(task_count(), 0);
}

static void a_handler_may_close_and_may_fail(void **state) {
    (void)state;
    struct client c, d;
    upgrade(&c);
    says(&c, "close");
    hears(&c, STR("\x88\x05\x0f\xa0"
                  "bye"));
    client_close(&c);
    upgrade(&d);
    says(&d, "raise");
    hears(&d, STR("\x88\x10\x03\xf3internal error"));
    client_close(&d);
    WAIT_UNTIL(server_connections(server) == 0);
    for (int i = 0; i < 10; i++) turn_loop();
    expect_log("false,false,ws closed 4000,ws closed 1011");
    assert_int_equal(task_count(), 0);
}

static void one_message_goes_to_all_and_open_sockets_end_with_the_state(void **state) {
    (void)state;
    struct client c, e;
    upgrade(&c);
    client_open(&e);
    client_says(&e, "GET /events HTTP/1.1\r\nHost: t\r\n\r\n");
    WAIT_UNTIL(((void)client_poll(&e), strstr(client_text(&e), "retry: 3000\n\n")));
    assert_non_null(strstr(client_text(&e), "\r\nX-A: b\r\n"));
    e.in.len = 0;
    expect_log("");
    hears(&c, STR("\x81\x0c{\"to\":\"all\"}"));
    hears(&e, STR("id: 2\nevent: news\ndata: {\"to\":\"all\"}\n\n"));
    says(&c, "slow"); /* at work when the state ends */
    for (int i = 0; i < 5; i++) turn_loop();
    client_close(&c);
    client_close(&e);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(messages_are_answered_in_their_order, setup, teardown),
        cmocka_unit_test_setup_teardown(a_handler_may_close_and_may_fail, setup, teardown),
        cmocka_unit_test_setup_teardown(one_message_goes_to_all_and_open_sockets_end_with_the_state, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
