// link: script
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

static struct vm *vm;
static struct server *server;

static const char program[] =
    "local server, sched = require('core.server'), require('core.sched')\n"
    "local text = { ['Content-Type'] = 'text/plain; charset=utf-8' }\n"
    "ended, kept = 0, nil\n"
    "server.route('GET', '/look/:id/of/:other', function(req)\n"
    "  local p, q = req.params, req:query_table()\n"
    "  local h = req:headers()\n"
    "  req:respond(200, text, table.concat({ req.method, req.path, req.route, p.id, p.other, req.query, q.a[1], "
    "q.a[2], q.b,\n"
    "    req:header('X-Thing'), h['x-thing'], req:cookie('c'), req.remote, req.id, req.content, type(req.started),\n"
    "    tostring(req.nothing), tostring(req:header('none')), req.target }, '|'))\n"
    "end)\n"
    "server.route('POST', '/echo', function(req) req:respond(201, { ['X-N'] = 5, ['Set-Cookie'] = { 'a=1', 'b=2' } }, "
    "req:body()) end)\n"
    "server.route('POST', '/json', function(req)\n"
    "  local value, err = req:json()\n"
    "  if value == nil then return req:respond(400, text, err.kind .. ' ' .. err.message) end\n"
    "  req:respond_json(201, req:header('X-Own') and { ['Content-Type'] = 'application/hal+json' } or nil, value)\n"
    "end, { spool = true })\n"
    "server.route('GET', '/json', function(req) req:respond_json(200, nil, { a = { 1, 2 } }) end)\n"
    "server.route('GET', '/no-json', function(req)\n"
    "  local ok, err = pcall(req.respond_json, req, 200, nil, { f = print })\n"
    "  local again = req:respond(200, text, tostring(ok) .. ' ' .. err .. ' ' .. tostring(pcall(req.json, {})))\n"
    "  assert(again and not req:respond_json(200, nil, 1))\n"
    "end)\n"
    "server.route('POST', '/form', function(req)\n"
    "  local f = req:form() req:respond(200, text, f.name .. '/' .. f.x[2] .. '/' .. req.content)\n"
    "end)\n"
    "server.route('POST', '/parts', function(req)\n"
    "  local m, err = req:multipart()\n"
    "  if not m then return req:respond(tonumber(err.code), text, err.message) end\n"
    "  req:respond(200, text, m[1].name .. '=' .. m[1].data .. ';' .. m[2].filename .. ':' .. m[2].size .. ':' .. "
    "tostring(m[2].path ~= nil))\n"
    "end, { spool = true, body_limit = 5000 })\n"
    "server.route('GET', '/sleep', function(req)\n"
    "  sched.defer(function() ended = ended + 1 end)\n"
    "  local ok, err = sched.sleep(20)\n"
    "  req:respond(200, text, 'slept')\n"
    "end)\n"
    "server.route('GET', '/long', function(req)\n"
    "  sched.defer(function() ended = ended + 1 end)\n"
    "  local ok, err = sched.sleep(60000)\n"
    "  if not ok then why = err.kind end\n"
    "  req:respond(503, text, 'too long')\n"
    "end, { timeout_ms = 100 })\n"
    "server.route('GET', '/forever', function(req)\n"
    "  sched.defer(function() ended = ended + 1 end)\n"
    "  local ok, err = sched.sleep(60000) why = err.kind\n"
    "end)\n"
    "server.route('GET', '/raise', function() error('secret detail') end)\n"
    "server.route('GET', '/nothing', function() end)\n"
    "server.route('GET', '/keep', function(req) kept = req req:respond(204) end)\n"
    "server.route('GET', '/use-kept', function(req)\n"
    "  local ok, err = pcall(function() return kept.path end)\n"
    "  req:respond(200, text, tostring(ok) .. tostring(err))\n"
    "end)\n"
    "server.route('GET', '/stream', function(req)\n"
    "  local w = req:stream(200, text)\n"
    "  local piece = string.rep('s', 50000)\n"
    "  for _ = 1, tonumber(req.query) do local ok, err = w:write(piece) if not ok then why = err.kind return end end\n"
    "  w:close() ended = ended + 1\n"
    "end)\n"
    "server.route('GET', '/file', function(req)\n"
    "  local ok, err = req:file('/proc/self/nope')\n"
    "  if not ok then req:respond(404, text, err.kind .. ' ' .. err.code) end\n"
    "end)\n"
    "server.route('GET', '/self', function(req) assert(req:file(arg_file, { ['X-A'] = 'b' })) ended = ended + 1 end)\n"
    "server.route('POST', '/pieces', function(req)\n"
    "  sched.defer(function() ended = ended + 1 end)\n"
    "  local whole, parts = req:body()\n"
    "  assert(whole == '' or not whole and parts.code == 'stream' and not req:json() and not req:form() and not "
    "req:multipart())\n"
    "  local n, bytes, all = 0, 0, {}\n"
    "  while true do\n"
    "    local piece, err = req:read(tonumber(req:header('X-Max')))\n"
    "    if err then\n"
    "      why = err.kind\n"
    "      return req:respond(tonumber(err.code) or 500, text, err.kind .. ' ' .. err.message)\n"
    "    end\n"
    "    if not piece then break end\n"
    "    n, bytes = n + 1, bytes + #piece\n"
    "    all[#all + 1] = piece:sub(1, 3)\n"
    "  end\n"
    "  req:respond(200, text, n .. ' ' .. bytes .. ' ' .. req.content .. ' ' .. table.concat(all, '|'))\n"
    "end, { stream = true, body_limit = 100000 })\n"
    "server.route('POST', '/two-readers', function(req)\n"
    "  sched.spawn(function() local _, err = req:read() why = err.kind .. ' ' .. err.message end)\n"
    "  req:respond(200, text, req:read())\n"
    "end, { stream = true })\n"
    "server.route('POST', '/other-reader', function(req)\n"
    "  sched.spawn(function() local _, err = req:read() why = err.kind .. ' ' .. err.message end)\n"
    "  sched.sleep(1)\n"
    "  req:respond(200, text, 'without it')\n"
    "end, { stream = true })\n"
    "server.route('POST', '/undeclared', function(req)\n"
    "  local ok, err = pcall(req.read, req) req:respond(200, text, err)\n"
    "end)\n"
    "server.fallback(function(req) req:respond(404, text, 'Cannot ' .. req.method .. ' ' .. req.target) end)\n";

static void run(const char *text) {
    struct error err;
    if (!vm_run(vm, text, "=test", &err)) fail_msg("%s", err.message);
}

static double number(const char *global) {
    lua_State *L = vm_state(vm);
    lua_getglobal(L, global);
    double n = lua_tonumber(L, -1);
    lua_pop(L, 1);
    return n;
}

static bool is_text(const char *global, const char *text) {
    lua_State *L = vm_state(vm);
    lua_getglobal(L, global);
    const char *s = lua_tostring(L, -1);
    bool same = s && strcmp(s, text) == 0;
    lua_pop(L, 1);
    return same;
}

static int setup(void **state) {
    (void)state;
    static const luaL_Reg modules[] = {
        {"core.server", luaopen_core_server}, {"core.sched", luaopen_core_sched}, {NULL, NULL}};
    struct server_settings set;
    struct error err;
    assert_true(loop_open());
    server_settings_default(&set);
    set.access_log = false;
    set.half_close_ms = 50;
    server = server_new(&set);
    assert_non_null(server);
    bind_server_set(server);
    vm = vm_new_with(modules, NULL, &err);
    if (!vm) fail_msg("%s", err.message);
    run("arg_file = '" KASMA_SOURCE_DIR "/CMakeLists.txt'");
    run(program);
    test_listen(server);
    return 0;
}

/* Nothing may be left: no connection, request or task. */
static int teardown(void **state) {
    (void)state;
    WAIT_UNTIL(server_connections(server) == 0);
    assert_int_equal(server_in_flight(server), 0);
    assert_int_equal(task_count(), 0);
    server_close(server);
    for (int i = 0; i < 10; i++) turn_loop();
    bind_server_set(NULL);
    vm_free(vm);
    return 0;
}

static void expect(const char *request, const char *start_with, const char *holds) {
    char *text = talk(request);
    if (strncmp(text, start_with, strlen(start_with)) != 0 || (holds && !strstr(text, holds)))
        print_error("request:\n%.300s\nanswer:\n%.600s\n", request, text);
    assert_int_equal(strncmp(text, start_with, strlen(start_with)), 0);
    if (holds) assert_non_null(strstr(text, holds));
    free(text);
}

#define HOST "Host: t\r\n"

static void test_what_a_handler_sees(void **state) {
    (void)state;
    expect("GET /api/Look/a%20b/of/C?a=1&a=2&b=x+y HTTP/1.1\r\n" HOST
           "X-Thing: one\r\nX-Thing: two\r\nCookie: c=cake\r\nX-Request-Id: rid-1\r\n\r\n",
           "HTTP/1.1 200",
           "\r\n\r\nGET|/api/Look/a%20b/of/C|/look/:id/of/:other|a b|C|a=1&a=2&b=x+y|1|2|x y|one|one, "
           "two|cake|127.0.0.1|rid-1|"
           "none|number|nil|nil|/api/Look/a%20b/of/C?a=1&a=2&b=x+y");
    expect("POST /echo HTTP/1.1\r\n" HOST "Content-Length: 4\r\n\r\nbody", "HTTP/1.1 201 Created", "\r\n\r\nbody");
    expect("POST /echo HTTP/1.1\r\n" HOST "Content-Length: 4\r\n\r\nbody", "HTTP/1.1 201",
           "Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n");
    expect("POST /echo HTTP/1.1\r\n" HOST "Content-Length: 4\r\n\r\nbody", "HTTP/1.1 201", "X-N: 5\r\n");
    expect("POST /form HTTP/1.1\r\n" HOST
           "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 19\r\n\r\nname=a%26b&x=1&x=2+",
           "HTTP/1.1 200", "a&b/2 /form");
    expect("GET /none?q HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 404", "Cannot GET /none?q");
    static const char body[] = "--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nv\r\n--B\r\n"
                               "Content-Disposition: form-data; name=f; filename=x\r\n\r\nfile\r\n--B--";
    char request[600];
    (void)snprintf(request, sizeof request,
                   "POST /parts HTTP/1.1\r\n" HOST
                   "Content-Type: multipart/form-data; boundary=B\r\nContent-Length: %zu\r\n\r\n%s",
                   sizeof body - 1, body);
    expect(request, "HTTP/1.1 200", "\r\n\r\na=v;x:4:true");
    expect("POST /parts HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\nabc", "HTTP/1.1 400", "Not a multipart body");
    expect("POST /parts HTTP/1.1\r\n" HOST "Content-Length: 5001\r\n\r\nabc", "HTTP/1.1 413",
           "request entity too large");
}

static void test_json_both_ways(void **state) {
    (void)state;
    expect("POST /json HTTP/1.1\r\n" HOST "Content-Length: 16\r\n\r\n {\"a\":[1,null]}\n", "HTTP/1.1 201",
           "Content-Type: application/json; charset=utf-8\r\n");
    expect("POST /json HTTP/1.1\r\n" HOST "X-Own: 1\r\nContent-Length: 14\r\n\r\n{\"a\":[1,null]}", "HTTP/1.1 201",
           "Content-Type: application/hal+json\r\n");
    expect("POST /json HTTP/1.1\r\n" HOST
           "Transfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\nb\r\n\":[1,null]}\r\n0\r\n\r\n",
           "HTTP/1.1 201", "\r\n\r\n{\"a\":[1,null]}");
    expect("POST /json HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\n[1", "HTTP/1.1 400",
           "\r\n\r\ninvalid Unexpected end of JSON input");
    expect("POST /json HTTP/1.1\r\n" HOST "Content-Length: 0\r\n\r\n", "HTTP/1.1 400",
           "\r\n\r\ninvalid Unexpected end of JSON input");
    size_t n = 200000;
    char *large = malloc(n + 200);
    assert_non_null(large);
    int head = snprintf(large, 200, "POST /json HTTP/1.1\r\n" HOST "Content-Length: %zu\r\n\r\n", n);
    assert_true(head > 0);
    memset(large + head, ' ', n);
    large[(size_t)head + n] = '\0';
    expect(large, "HTTP/1.1 400", "\r\n\r\nlimit the body is in a file");
    free(large);
    /* Tagged, compared and left out as any other answer. */
    char *first = talk("GET /json HTTP/1.1\r\n" HOST "\r\n");
    assert_non_null(strstr(first, "\r\n\r\n{\"a\":[1,2]}"));
    const char *tag = strstr(first, "ETag: ");
    assert_non_null(tag);
    char again[200];
    int put = snprintf(again, sizeof again, "GET /json HTTP/1.1\r\n" HOST "If-None-Match: %.*s\r\n\r\n",
                       (int)strcspn(tag + 6, "\r"), tag + 6);
    assert_true(put > 0);
    free(first);
    expect(again, "HTTP/1.1 304", NULL);
    expect("GET /no-json HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 200",
           "\r\n\r\nfalse json.encode: a function cannot be JSON (at .f) false");
}

static void test_waiting(void **state) {
    (void)state;
    expect("GET /sleep HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 200", "slept");
    assert_int_equal((int)number("ended"), 1);
    /* Many at once, on one connection. */
    struct client c;
    client_open(&c);
    for (int i = 0; i < 40; i++) client_says(&c, "GET /sleep HTTP/1.1\r\n" HOST "\r\n");
    client_wait(&c, 40);
    client_close(&c);
    assert_int_equal((int)number("ended"), 41);
}

static void test_errors(void **state) {
    (void)state;
    char *text = talk("GET /raise HTTP/1.1\r\n" HOST "\r\n");
    assert_non_null(strstr(text, "{\"statusCode\":500,\"message\":\"Internal server error\"}"));
    assert_null(strstr(text, "secret"));
    free(text);
    expect("GET /nothing HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 500", "Internal server error");
    /* A request that is kept beyond its end is dead, not another's. */
    expect("GET /keep HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 204", NULL);
    expect("GET /use-kept HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 200", "the request has ended");
}

static void test_deadline_and_cancel(void **state) {
    (void)state;
    expect("GET /long HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 503", "too long");
    assert_true(is_text("why", "deadline"));
    assert_int_equal((int)number("ended"), 1);
    struct client c;
    client_open(&c);
    client_says(&c, "GET /forever HTTP/1.1\r\n" HOST "\r\n");
    WAIT_UNTIL(task_count() == 1);
    client_close(&c);
    WAIT_UNTIL(task_count() == 0);
    assert_true(is_text("why", "cancelled"));
    assert_int_equal((int)number("ended"), 2);
}

static void test_streams_and_files(void **state) {
    (void)state;
    char *text = talk("GET /stream?40 HTTP/1.1\r\n" HOST "\r\n");
    size_t n = 0;
    for (const char *p = strstr(text, "\r\n\r\n"); *p; p++) n += *p == 's';
    assert_int_equal(n, 2000000);
    free(text);
    WAIT_UNTIL(task_count() == 0);
    assert_int_equal((int)number("ended"), 1);
    /* Gone while the writer waits. */
    struct client c;
    client_open(&c);
    client_says(&c, "GET /stream?1000 HTTP/1.1\r\n" HOST "\r\n");
    WAIT_UNTIL(task_count() == 1);
    client_close(&c);
    WAIT_UNTIL(task_count() == 0);
    assert_true(is_text("why", "cancelled"));
    expect("GET /file HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 404", "invalid ENOENT");
    expect("GET /self HTTP/1.1\r\n" HOST "Range: bytes=0-4\r\n\r\n", "HTTP/1.1 206", "\r\n\r\ncmake");
    expect("GET /self HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 200", "X-A: b\r\n");
    WAIT_UNTIL(task_count() == 0);
    assert_int_equal((int)number("ended"), 3);
}

static void test_bodies_in_pieces(void **state) {
    (void)state;
    expect("POST /pieces HTTP/1.1\r\n" HOST
           "Content-Type: application/json\r\nX-Max: 4\r\nContent-Length: 10\r\n\r\n0123456789",
           "HTTP/1.1 200", "\r\n\r\n3 10 json 012|456|89");
    expect("POST /pieces HTTP/1.1\r\n" HOST "Content-Length: 0\r\n\r\n", "HTTP/1.1 200", "\r\n\r\n0 0 none ");
    struct client c;
    client_open(&c);
    client_says(&c, "POST /pieces HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    WAIT_UNTIL(task_count() == 1);
    client_says(&c, "2\r\nde\r\n");
    client_says(&c, "0\r\n\r\n");
    client_wait(&c, 1);
    assert_non_null(strstr(client_text(&c), "\r\n\r\n2 5 text abc|de"));
    /* Too large, found out on the way. */
    char *large = malloc(200100);
    assert_non_null(large);
    int head = snprintf(large, 200, "POST /pieces HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n30D40\r\n");
    assert_true(head > 0);
    memset(large + head, 'x', 200000);
    large[head + 200000] = '\0';
    client_says(&c, large);
    free(large);
    client_wait_close(&c);
    assert_non_null(strstr(client_text(&c), "HTTP/1.1 413"));
    assert_non_null(strstr(client_text(&c), "limit request entity too large"));
    client_close(&c);
    expect("POST /undeclared HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\nab", "HTTP/1.1 200", "does not say");
    /* The body comes when both readers are there. */
    client_open(&c);
    client_says(&c, "POST /two-readers HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\n");
    WAIT_UNTIL(is_text("why", "busy another task is reading"));
    client_says(&c, "ab");
    client_wait(&c, 1);
    assert_non_null(strstr(client_text(&c), "\r\n\r\nab"));
    client_close(&c);
    /* A task that outlives the answer is told. */
    client_open(&c);
    client_says(&c, "POST /other-reader HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\n");
    client_wait(&c, 1);
    WAIT_UNTIL(task_count() == 0);
    assert_true(is_text("why", "cancelled the request has ended"));
    client_close(&c);
    /* A client that vanishes: the read fails, and what was deferred runs. */
    int before = (int)number("ended");
    client_open(&c);
    client_says(&c, "POST /pieces HTTP/1.1\r\n" HOST "Content-Length: 100\r\n\r\nabc");
    WAIT_UNTIL(task_count() == 1);
    client_close(&c);
    WAIT_UNTIL(task_count() == 0);
    assert_true(is_text("why", "cancelled"));
    assert_int_equal((int)number("ended"), before + 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_what_a_handler_sees, setup, teardown),
        cmocka_unit_test_setup_teardown(test_json_both_ways, setup, teardown),
        cmocka_unit_test_setup_teardown(test_waiting, setup, teardown),
        cmocka_unit_test_setup_teardown(test_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_deadline_and_cancel, setup, teardown),
        cmocka_unit_test_setup_teardown(test_streams_and_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bodies_in_pieces, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
