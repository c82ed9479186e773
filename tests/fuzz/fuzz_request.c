// link: http
/* Bytes from a client against the whole server, over a socket pair: the parser, bodies, routes, answers and closing.
 * The first byte says in what pieces the rest arrives. */
#include <assert.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "http/push.h"
#include "http/request.h"
#include "http/server.h"
#include "runtime/log.h"
#include "runtime/loop.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct server *server;

/* Reads everything a handler can read, and answers with the body. */
static void on_any(struct request *r, void *data) {
    (void)data;
    struct error err;
    size_t sum = request_path(r).len + request_query(r).len + request_id(r).len + request_remote(r).len;
    for (size_t i = 0; i < request_header_count(r); i++) {
        struct str name, value;
        request_header_at(r, i, &name, &value);
        sum += request_header(r, name).len + value.len;
    }
    sum += request_cookie(r, STR("a")).len + request_param(r, 0).len;
    const struct multipart *m = request_multipart(r, &err);
    if (m) sum += m->count;
    struct header type = {STR("Content-Type"), STR("text/plain")};
    bool ok = request_respond(r, sum % 2 ? 200 : 201, &type, 1, request_body(r));
    assert(ok || request_gone(r));
    request_done(r);
}

/* A body taken piece by piece, of the size that the path says. "/take/0" answers without reading. */
static void take(void *data) {
    struct request *r = data;
    size_t max = request_param(r, 0).len ? (size_t)(unsigned char)request_param(r, 0).at[0] - '0' : 0;
    struct buf b = {0};
    enum read_result result = READ_END;
    while (max > 0 && max < 100 && (result = request_read(r, &b, max * 100)) == READ_SOME)
        if (b.len > 64 * 1024) abort();
    size_t n = b.len;
    buf_free(&b);
    if (result == READ_WAIT) {
        request_on_readable(r, take, r);
        return;
    }
    struct str why;
    int status = result == READ_FAILED ? request_read_failure(r, &why) : n % 2 ? 200 : 201;
    assert(status >= 200 && status < 600);
    bool ok = request_respond(r, status, NULL, 0, STR("taken"));
    assert(ok || request_gone(r));
    request_done(r);
}

static void take_gone(void *data, enum error_kind why) {
    (void)why;
    request_done(data);
}

static void on_take(struct request *r, void *data) {
    (void)data;
    request_on_cancel(r, take_gone, r);
    take(r);
}

/* One connection a run, so that one of these is enough. Answers what it hears, holds some messages up until the turn's
 * end, and closes on others. */
static struct push *socket_now;

static void go_on(void *data) {
    (void)data;
    if (socket_now) push_resume(socket_now);
}

static struct loop_hook later = {.fn = go_on};

static void on_message(void *data, struct str payload, enum ws_opcode opcode) {
    (void)data;
    assert(opcode == WS_TEXT);
    struct push_message *m = push_message_new(payload, STR("echo"));
    if (m && payload.len % 7 != 6) {
        bool sent = push_send(socket_now, m, STR("1"));
        assert(sent || !socket_now);
    }
    push_message_free(m);
    if (socket_now && payload.len % 7 == 5) push_close(socket_now, 4000, payload);
    if (socket_now && payload.len % 3 == 2) {
        push_pause(socket_now);
        loop_at_turn_end(&later);
    }
}

static void on_closed(void *data, unsigned code, struct str reason) {
    (void)data;
    (void)reason;
    assert(socket_now && code);
    socket_now = NULL;
}

static void on_upgrade(struct request *r, void *data) {
    (void)data;
    int status;
    struct push_settings push;
    push_settings_default(&push);
    push.limits.message = 1000;
    push.queue_bytes = 4096;
    struct push_handler handler = {.message = on_message, .closed = on_closed};
    socket_now = str_eq(request_path(r), STR("/events")) ? push_events(r, &push, &handler, NULL, 0, &status)
                                                         : push_websocket(r, &push, &handler, STR("p"), &status);
    if (!socket_now) {
        bool told = request_refuse(r, status, STR("no"), false);
        assert(told || request_gone(r));
    }
    request_done(r);
}

static bool start(void) {
    struct server_settings set;
    struct error err;
    log_set_level(LOG_ERROR);
    if (!loop_open()) return false;
    server_settings_default(&set);
    set.access_log = false;
    set.body_limit = 64 * 1024;
    set.linger_ms = 1;
    server = server_new(&set);
    if (!server) return false;
    struct route_options spool = {.spool = true}, stream = {.stream = true};
    struct routes *t = server_routes(server);
    return routes_add(t, HTTP_M_GET, STR("/ws"), on_upgrade, NULL, NULL, &err) &&
           routes_add(t, HTTP_M_GET, STR("/events"), on_upgrade, NULL, NULL, &err) &&
           routes_add(t, HTTP_M_GET, STR("/:id"), on_any, NULL, NULL, &err) &&
           routes_add(t, HTTP_M_POST, STR("/"), on_any, NULL, NULL, &err) &&
           routes_add(t, HTTP_M_POST, STR("/up"), on_any, NULL, &spool, &err) &&
           routes_add(t, HTTP_M_POST, STR("/take/:size"), on_take, NULL, &stream, &err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!server && !start()) abort();
    if (size < 2) return 0;
    int pair[2];
    struct error err;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0) abort();
    if (!server_adopt_fd(server, pair[0], &err)) abort();
    size_t step = data[0] ? data[0] : size;
    for (size_t i = 1; i < size; i += step) {
        size_t n = size - i < step ? size - i : step;
        if (send(pair[1], data + i, n, MSG_NOSIGNAL) < 0) break;
        if (step > 8 || i % 8 == 0) (void)uv_run(loop_get(), UV_RUN_NOWAIT);
    }
    if (shutdown(pair[1], SHUT_WR) != 0) (void)uv_run(loop_get(), UV_RUN_NOWAIT);
    char answer[65536];
    uint64_t until = uv_hrtime() + UINT64_C(30000000000); /* by the clock that its timers go by, not by turns */
    while (server_connections(server) && uv_hrtime() < until) {
        (void)uv_run(loop_get(), UV_RUN_NOWAIT);
        while (recv(pair[1], answer, sizeof answer, 0) > 0) continue;
    }
    if (server_connections(server) != 0 || server_in_flight(server) != 0) abort();
    if (close(pair[1]) != 0) abort();
    return 0;
}
