// link: http
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <sys/resource.h>
#include <zlib.h>

#include "http_client.h"

static struct server *server;
static struct request *held[32];
static unsigned held_count, cancelled;
static enum error_kind cancelled_why;

static void answer_text(struct request *r, int status, const char *text) {
    struct header type = {STR("Content-Type"), STR("text/plain; charset=utf-8")};
    assert_true(request_respond(r, status, &type, 1, str_of(text)) || request_gone(r));
}

static void on_hello(struct request *r, void *data) {
    (void)data;
    answer_text(r, 200, "hello");
    request_done(r);
}

static void on_echo(struct request *r, void *data) {
    (void)data;
    struct header type = {STR("Content-Type"), STR("application/octet-stream")};
    assert_true(request_respond(r, 200, &type, 1, request_body(r)) || request_gone(r));
    request_done(r);
}

static void on_big(struct request *r, void *data) {
    (void)data;
    size_t n = 300 * 1024;
    char *text = arena_alloc(request_arena(r), n);
    assert_non_null(text);
    memset(text, 'x', n);
    struct header type = {STR("Content-Type"), STR("application/octet-stream")};
    assert_true(request_respond(r, 200, &type, 1, str_n(text, n)) || request_gone(r));
    request_done(r);
}

static void on_json(struct request *r, void *data) {
    (void)data;
    struct buf b = {0};
    assert_true(buf_byte(&b, '['));
    for (int i = 0; i < 500; i++) assert_true(buf_printf(&b, "%s{\"id\":%d}", i ? "," : "", i));
    assert_true(buf_byte(&b, ']'));
    struct header type = {STR("Content-Type"), STR("application/json; charset=utf-8")};
    assert_true(request_respond(r, 200, &type, 1, buf_str(&b)));
    buf_free(&b);
    request_done(r);
}

static void on_user(struct request *r, void *data) {
    (void)data;
    char *text = arena_strdup(request_arena(r), request_param(r, 0));
    answer_text(r, 200, text);
    request_done(r);
}

static void on_gone(void *data, enum error_kind why) {
    struct request *r = data;
    cancelled++;
    cancelled_why = why;
    for (unsigned i = 0; i < held_count; i++)
        if (held[i] == r) held[i] = NULL;
    request_done(r);
}

/* Holds the request until the test answers it. */
static void on_hold(struct request *r, void *data) {
    (void)data;
    held[held_count++] = r;
    request_on_cancel(r, on_gone, r);
}

static void release_held(unsigned i, const char *text) {
    struct request *r = held[i];
    held[i] = NULL;
    answer_text(r, 200, text);
    request_done(r);
}

static void on_silent(struct request *r, void *data) {
    (void)data;
    request_done(r);
}

/* A stream of a million bytes that honours back-pressure. */
struct flow {
    struct request *r;
    size_t left;
};

static void flow_on(void *data) {
    struct flow *f = data;
    char piece[10000];
    memset(piece, 's', sizeof piece);
    while (f->left) {
        enum stream_result got = request_stream_write(f->r, str_n(piece, sizeof piece));
        if (got == STREAM_GONE) break;
        f->left -= sizeof piece;
        if (got == STREAM_FULL && f->left) {
            request_on_drain(f->r, flow_on, f);
            return;
        }
    }
    request_stream_end(f->r);
    request_done(f->r);
}

static void on_stream(struct request *r, void *data) {
    (void)data;
    struct flow *f = arena_zalloc(request_arena(r), 1, sizeof *f);
    *f = (struct flow){.r = r, .left = 1000000};
    assert_true(request_stream(r, 200, NULL, 0, -1));
    flow_on(f);
}

static void on_parts(struct request *r, void *data) {
    (void)data;
    struct error err;
    const struct multipart *m = request_multipart(r, &err);
    if (!m) {
        answer_text(r, 400, err.message);
        request_done(r);
        return;
    }
    struct buf b = {0};
    for (size_t i = 0; i < m->count; i++) {
        const struct part *p = &m->parts[i];
        assert_true(buf_printf(&b, "%.*s|%.*s|%llu|%d|%.*s\n", STR_FMT(p->name), STR_FMT(p->filename),
                               (unsigned long long)p->size, p->path != NULL && access(p->path, R_OK) == 0,
                               p->data.len < 40 ? (int)p->data.len : 40, p->data.at ? p->data.at : ""));
    }
    answer_text(r, 200, arena_strdup(request_arena(r), buf_str(&b)));
    buf_free(&b);
    request_done(r);
}

static void on_large(struct request *r, void *data) {
    (void)data;
    char text[64];
    (void)snprintf(text, sizeof text, "%s %llu", request_body_path(r) ? "disk" : "memory",
                   (unsigned long long)request_body_size(r));
    answer_text(r, 200, text);
    request_done(r);
}

static void route(enum http_method m, const char *pattern, request_handler *fn, const struct route_options *o) {
    struct error err;
    assert_true(routes_add(server_routes(server), m, str_of(pattern), fn, NULL, o, &err));
}

static void start(void (*change)(struct server_settings *s)) {
    struct server_settings set;
    server_settings_default(&set);
    set.access_log = false;
    if (change) change(&set);
    server = server_new(&set);
    assert_non_null(server);
    held_count = cancelled = 0;
    cancelled_why = ERR_NONE;
    struct route_options spool = {.spool = true, .body_limit = 4 * 1024 * 1024}, quick = {.timeout_ms = 100};
    route(HTTP_M_GET, "/hello", on_hello, NULL);
    route(HTTP_M_POST, "/echo", on_echo, NULL);
    route(HTTP_M_GET, "/big", on_big, NULL);
    route(HTTP_M_GET, "/json", on_json, NULL);
    route(HTTP_M_GET, "/users/:id", on_user, NULL);
    route(HTTP_M_GET, "/hold", on_hold, NULL);
    route(HTTP_M_GET, "/quick", on_hold, &quick);
    route(HTTP_M_GET, "/silent", on_silent, NULL);
    route(HTTP_M_GET, "/stream", on_stream, NULL);
    route(HTTP_M_POST, "/parts", on_parts, NULL);
    route(HTTP_M_POST, "/upload", on_parts, &spool);
    route(HTTP_M_POST, "/large", on_large, &spool);
    test_listen(server);
}

static unsigned open_files(void) {
    DIR *d = opendir("/proc/self/fd");
    unsigned n = 0;
    while (readdir(d)) n++;
    assert_int_equal(closedir(d), 0);
    return n;
}

static unsigned files_before;

static int setup(void **state) {
    (void)state;
    assert_true(loop_open());
    if (files_before == 0) { /* libuv opens a spare file with the first listener and keeps it */
        start(NULL);
        server_close(server);
        for (int i = 0; i < 10; i++) turn_loop();
    }
    files_before = open_files();
    return 0;
}

/* Every test ends with nothing left: no connection, no request at work, no open file. */
static int teardown(void **state) {
    (void)state;
    WAIT_UNTIL(server_connections(server) == 0);
    assert_int_equal(server_in_flight(server), 0);
    server_close(server);
    for (int i = 0; i < 10; i++) turn_loop();
    assert_int_equal(open_files(), files_before);
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

/* The connection must be closed after it, with an empty body. */
static void expect_closed(const char *request, const char *start_with, const char *body) {
    struct client c;
    client_open(&c);
    client_says(&c, request);
    client_wait_close(&c);
    const char *text = client_text(&c);
    if (strncmp(text, start_with, strlen(start_with)) != 0) print_error("request:\n%.300s\nanswer:\n%.600s\n", request, text);
    assert_int_equal(strncmp(text, start_with, strlen(start_with)), 0);
    assert_non_null(strstr(text, "Connection: close\r\n"));
    assert_string_equal(strstr(text, "\r\n\r\n") + 4, body);
    client_close(&c);
}

#define HOST "Host: t\r\n"
#define NOT_JSON(status, message, word) "{\"message\":\"" message "\",\"error\":\"" word "\",\"statusCode\":" status "}"

static void test_answers(void **state) {
    (void)state;
    start(NULL);
    char *text = talk("GET /hello HTTP/1.1\r\n" HOST "X-Request-Id: abc-1\r\n\r\n");
    assert_int_equal(strncmp(text, "HTTP/1.1 200 OK\r\nDate: ", 23), 0);
    assert_non_null(strstr(text, "X-Content-Type-Options: nosniff\r\n"));
    assert_non_null(strstr(text, "Referrer-Policy: no-referrer\r\n"));
    assert_non_null(strstr(text, "X-Request-Id: abc-1\r\n"));
    assert_non_null(strstr(text, "Content-Length: 5\r\n"));
    assert_non_null(strstr(text, "\r\nETag: W/\""));
    assert_non_null(strstr(text, "\r\n\r\nhello"));
    assert_null(strstr(text, "X-Powered-By"));
    free(text);
    expect("GET /HELLO/ HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 200", "hello");
    expect("GET /api/hello?x=1 HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 200", "hello");
    expect("GET http://t/hello HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 200", "hello");
    expect("\r\n\r\nGET /hello HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 200", "hello");
    expect("GET /users/a%20b HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 200", "\r\n\r\na b");
    expect("GET /nope?x=1 HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 404", NOT_JSON("404", "Cannot GET /nope?x=1", "Not Found"));
    expect("PROPFIND /hello HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 404", "Cannot PROPFIND /hello");
    expect("DELETE /hello HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 404", "Cannot DELETE /hello");
    expect("GET /users/%zz HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 400",
           NOT_JSON("400", "Failed to decode param '%zz'", "Bad Request"));
    expect("GET /users/%ff HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 400", "Failed to decode param '%ff'");
    expect("GET /silent HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 500", "{\"statusCode\":500,\"message\":\"Internal server error\"}");
    expect("POST /echo HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 200", "Content-Length: 0\r\n");
    expect("GET /hello HTTP/1.0\r\n\r\n", "HTTP/1.1 200", "Connection: close\r\n");
    expect("GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "HTTP/1.1 200", "Connection: keep-alive\r\n");
    expect("GET /hello HTTP/1.1\r\n" HOST "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n", "HTTP/1.1 200", "hello");
}

static void test_head_and_etag(void **state) {
    (void)state;
    start(NULL);
    char *text = talk("HEAD /hello HTTP/1.1\r\n" HOST "\r\n");
    assert_non_null(strstr(text, "Content-Length: 5\r\n"));
    assert_string_equal(strstr(text, "\r\n\r\n"), "\r\n\r\n");
    char request[400], tag[64];
    assert_int_equal(sscanf(strstr(text, "ETag: "), "ETag: %63s", tag), 1);
    free(text);
    (void)snprintf(request, sizeof request, "GET /hello HTTP/1.1\r\n" HOST "If-None-Match: \"zz\", %s\r\n\r\n", tag);
    text = talk(request);
    assert_int_equal(strncmp(text, "HTTP/1.1 304 Not Modified\r\n", 27), 0);
    assert_null(strstr(text, "\r\nContent-Length"));
    assert_null(strstr(text, "\r\nContent-Type"));
    assert_non_null(strstr(text, tag));
    free(text);
    expect("GET /hello HTTP/1.1\r\n" HOST "If-None-Match: W/\"5-0\"\r\n\r\n", "HTTP/1.1 200", "hello");
}

static void test_malformed(void **state) {
    (void)state;
    start(NULL);
    static const char *const bad[] = {
        "NONSENSE\r\n\r\n",
        "GET /hello\r\n\r\n",
        "GET /hello HTTP/9.9\r\n" HOST "\r\n",
        "GET /hello HTTP/1.1\r\n\r\n",                                           /* no Host */
        "GET /hello HTTP/1.1\r\n" HOST HOST "\r\n",                              /* two */
        "GET /hello HTTP/1.1\n" HOST "\r\n",                                     /* bare LF */
        "GET /hello HTTP/1.1\r\nHost: t\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: t\r\nX: a\rb\r\n\r\n",                     /* bare CR */
        "GET /hello HTTP/1.1\r\nHost: t\rX: b\r\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: t\r\nX:\rContent-Length: 3\r\n\r\nabc",
        "GET /hello HTTP/1.1\r\nHost: t\r\nX: a\x01" "b\r\n\r\n",                /* control bytes */
        "GET /hello HTTP/1.1\r\nHost: t\r\nX: a\x7f\r\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: t\r\nX : a\r\n\r\n",                       /* blank before the colon */
        "GET /hello HTTP/1.1\r\nHost: t\r\nX: a\r\n b\r\n\r\n",                  /* folded */
        "GET /hello HTTP/1.1\r\nHost: t\r\n X: a\r\n\r\n",
        "GET /he llo HTTP/1.1\r\n" HOST "\r\n",
        "GET /hel\x80lo HTTP/1.1\r\n" HOST "\r\n",
        "CONNECT t:80 HTTP/1.1\r\n" HOST "\r\n",
        "GET hello HTTP/1.1\r\n" HOST "\r\n",
        "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 3, 3\r\n\r\nabc",
        "POST /echo HTTP/1.1\r\n" HOST "Content-Length: +3\r\n\r\nabc",
        "POST /echo HTTP/1.1\r\n" HOST "Content-Length: -3\r\n\r\nabc",
        "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 0x3\r\n\r\nabc",
        "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 99999999999999999999999\r\n\r\nabc",
        "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.0\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3\r\nabcde\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3;a\rb\r\nabc\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) expect_closed(bad[i], "HTTP/1.1 400 Bad Request\r\n", "");
    /* NUL cannot stand in a C string. */
    struct client c;
    client_open(&c);
    client_send(&c, STR("GET /hello HTTP/1.1\r\nHost: t\r\nX: a\0b\r\n\r\n"));
    client_wait_close(&c);
    assert_int_equal(strncmp(client_text(&c), "HTTP/1.1 400", 12), 0);
    client_close(&c);
    client_open(&c);
    client_send(&c, STR("GET /he\0llo HTTP/1.1\r\nHost: t\r\n\r\n"));
    client_wait_close(&c);
    assert_int_equal(strncmp(client_text(&c), "HTTP/1.1 400", 12), 0);
    client_close(&c);
}

static char *long_request(const char *before, char fill, size_t n, const char *after) {
    struct buf b = {0};
    assert_true(buf_add(&b, str_of(before)));
    for (size_t i = 0; i < n; i++) assert_true(buf_byte(&b, fill));
    assert_true(buf_add(&b, str_of(after)) && buf_byte(&b, '\0'));
    return b.data;
}

static void test_limits(void **state) {
    (void)state;
    start(NULL);
    char *text = long_request("GET /hello HTTP/1.1\r\n" HOST "X: ", 'a', 20 * 1024, "\r\n\r\n");
    expect_closed(text, "HTTP/1.1 431 Request Header Fields Too Large\r\n", "");
    free(text);
    text = long_request("GET /hello HTTP/1.1\r\n" HOST "X: ", 'a', 200 * 1024, "\r\n\r\n");
    expect_closed(text, "HTTP/1.1 431", "");
    free(text);
    text = long_request("GET /hello HTTP/1.1\r\n" HOST "X: ", 'a', 15 * 1024, "\r\n\r\n");
    expect(text, "HTTP/1.1 200", "hello");
    free(text);
    text = long_request("GET /", 'a', 9 * 1024, " HTTP/1.1\r\n" HOST "\r\n");
    expect_closed(text, "HTTP/1.1 414 URI Too Long\r\n", "");
    free(text);
    struct buf many = {0};
    assert_true(buf_add(&many, STR("GET /hello HTTP/1.1\r\n" HOST)));
    for (int i = 0; i < 120; i++) assert_true(buf_printf(&many, "X-%d: 1\r\n", i));
    assert_true(buf_add(&many, STR("\r\n")) && buf_byte(&many, '\0'));
    expect_closed(many.data, "HTTP/1.1 431", "");
    buf_free(&many);

    static const char too_large[] = "{\"statusCode\":413,\"message\":\"request entity too large\"}";
    expect_closed("POST /echo HTTP/1.1\r\n" HOST "Content-Length: 1048577\r\n\r\nabc", "HTTP/1.1 413", too_large);
    text = long_request("POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n200000\r\n", 'a', 2 * 1024 * 1024,
                        "\r\n0\r\n\r\n");
    expect_closed(text, "HTTP/1.1 413", too_large);
    free(text);
    text = long_request("POST /echo HTTP/1.1\r\n" HOST "Content-Length: 1048576\r\n\r\n", 'a', 1048576, "");
    expect(text, "HTTP/1.1 200", "Content-Length: 1048576\r\n");
    free(text);
    expect_closed("POST /echo HTTP/1.1\r\n" HOST "Content-Encoding: Foo\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 415",
                  "{\"statusCode\":415,\"message\":\"unsupported content encoding \\\"foo\\\"\"}");
    expect_closed("POST /echo HTTP/1.1\r\n" HOST "Content-Type: application/json; charset=foo\r\nContent-Length: 3\r\n\r\nabc",
                  "HTTP/1.1 415", "{\"statusCode\":415,\"message\":\"unsupported charset \\\"FOO\\\"\"}");
    expect("POST /echo HTTP/1.1\r\n" HOST "Content-Type: application/json; charset=\"UTF-8\"\r\nContent-Length: 3\r\n\r\nabc",
           "HTTP/1.1 200", "abc");
    /* Chunk extensions are not body, but they are bytes. */
    text = long_request("POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3;x=", 'a', 100 * 1024,
                        "\r\nabc\r\n0\r\n\r\n");
    expect_closed(text, "HTTP/1.1 400", "");
    free(text);
}

static void test_expect(void **state) {
    (void)state;
    start(NULL);
    struct client c;
    client_open(&c);
    client_says(&c, "POST /echo HTTP/1.1\r\n" HOST "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    client_wait(&c, 1);
    assert_string_equal(client_text(&c), "HTTP/1.1 100 Continue\r\n\r\n");
    client_says(&c, "12345");
    client_wait(&c, 2);
    assert_non_null(strstr(client_text(&c), "\r\n\r\n12345"));
    client_close(&c);
    expect_closed("POST /echo HTTP/1.1\r\n" HOST "Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n", "HTTP/1.1 413",
                  "{\"statusCode\":413,\"message\":\"request entity too large\"}");
    expect_closed("POST /echo HTTP/1.1\r\n" HOST "Expect: the-best\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 417",
                  NOT_JSON("417", "Expectation Failed", "Expectation Failed"));
    /* Its turn comes only after the answer before it. */
    client_open(&c);
    client_says(&c, "GET /hold HTTP/1.1\r\n" HOST "\r\nPOST /echo HTTP/1.1\r\n" HOST
                    "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    WAIT_UNTIL(held_count == 1);
    for (int i = 0; i < 5; i++) turn_loop();
    assert_false(client_poll(&c));
    release_held(0, "first");
    client_wait(&c, 2);
    assert_non_null(strstr(client_text(&c), "firstHTTP/1.1 100 Continue\r\n\r\n"));
    client_says(&c, "12345");
    client_wait(&c, 3);
    client_close(&c);
}

static void test_bodies(void **state) {
    (void)state;
    start(NULL);
    expect("POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5;x=y\r\ndefgh\r\n0\r\nT: v\r\n\r\n",
           "HTTP/1.1 200", "\r\n\r\nabcdefgh");
    /* A byte at a time, then a second request on the same connection. */
    struct client c;
    client_open(&c);
    const char *slow = "POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\nwxyzGET /hello HTTP/1.1\r\nHost: t\r\n\r\n";
    for (const char *p = slow; *p; p++) client_send(&c, str_n(p, 1));
    client_wait(&c, 2);
    assert_non_null(strstr(client_text(&c), "wxyzHTTP/1.1 200"));
    client_close(&c);

    /* gzip, and a bomb of 64 MiB in 64 KiB. */
    unsigned char packed[256], *bomb = malloc(1 << 20), *zeros = calloc(1, 1 << 20);
    z_stream z = {0};
    assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, 15 + 16, 9, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (Bytef *)"hello gzip";
    z.avail_in = 10;
    z.next_out = packed;
    z.avail_out = sizeof packed;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    size_t n = sizeof packed - z.avail_out;
    char head[200];
    int h = snprintf(head, sizeof head, "POST /echo HTTP/1.1\r\n" HOST "Content-Encoding: gzip\r\nContent-Length: %zu\r\n\r\n", n);
    client_open(&c);
    client_send(&c, str_n(head, (size_t)h));
    client_send(&c, str_n((char *)packed, n));
    client_wait(&c, 1);
    assert_non_null(strstr(client_text(&c), "\r\n\r\nhello gzip"));
    client_close(&c);
    /* Cut short. */
    h = snprintf(head, sizeof head, "POST /echo HTTP/1.1\r\n" HOST "Content-Encoding: gzip\r\nContent-Length: %zu\r\n\r\n", n - 4);
    client_open(&c);
    client_send(&c, str_n(head, (size_t)h));
    client_send(&c, str_n((char *)packed, n - 4));
    client_wait(&c, 1);
    assert_int_equal(strncmp(client_text(&c), "HTTP/1.1 400", 12), 0);
    client_close(&c);
    assert_int_equal(deflateReset(&z), Z_OK);
    z.next_out = bomb;
    z.avail_out = 1 << 20;
    for (int i = 0; i < 64; i++) {
        z.next_in = zeros;
        z.avail_in = 1 << 20;
        assert_int_equal(deflate(&z, i == 63 ? Z_FINISH : Z_NO_FLUSH), i == 63 ? Z_STREAM_END : Z_OK);
    }
    n = (1 << 20) - z.avail_out;
    assert_int_equal(deflateEnd(&z), Z_OK);
    h = snprintf(head, sizeof head, "POST /echo HTTP/1.1\r\n" HOST "Content-Encoding: gzip\r\nContent-Length: %zu\r\n\r\n", n);
    client_open(&c);
    client_send(&c, str_n(head, (size_t)h));
    client_send(&c, str_n((char *)bomb, n));
    client_wait_close(&c);
    assert_int_equal(strncmp(client_text(&c), "HTTP/1.1 413", 12), 0);
    client_close(&c);
    free(bomb);
    free(zeros);
}

static void test_compression(void **state) {
    (void)state;
    start(NULL);
    char *text = talk("GET /json HTTP/1.1\r\n" HOST "Accept-Encoding: gzip\r\n\r\n");
    assert_non_null(strstr(text, "Content-Encoding: gzip\r\n"));
    assert_non_null(strstr(text, "Vary: Accept-Encoding\r\n"));
    free(text);
    expect("GET /json HTTP/1.1\r\n" HOST "Accept-Encoding: gzip, br\r\n\r\n", "HTTP/1.1 200", "Content-Encoding: br\r\n");
    text = talk("GET /json HTTP/1.1\r\n" HOST "Accept-Encoding: br;q=0, gzip;q=0.0\r\n\r\n");
    assert_null(strstr(text, "Content-Encoding"));
    assert_non_null(strstr(text, "Vary: Accept-Encoding\r\n"));
    free(text);
    text = talk("GET /hello HTTP/1.1\r\n" HOST "Accept-Encoding: gzip, br\r\n\r\n");
    assert_null(strstr(text, "Content-Encoding"));
    free(text);
    text = talk("GET /big HTTP/1.1\r\n" HOST "Accept-Encoding: gzip, br\r\n\r\n");
    assert_null(strstr(text, "Content-Encoding"));
    free(text);
}

static void test_pipelining(void **state) {
    (void)state;
    start(NULL);
    struct client c;
    client_open(&c);
    client_says(&c, "GET /hold HTTP/1.1\r\n" HOST "\r\nGET /hold HTTP/1.1\r\n" HOST "\r\nGET /hello HTTP/1.1\r\n" HOST "\r\n");
    WAIT_UNTIL(held_count == 2);
    release_held(1, "two");
    for (int i = 0; i < 5; i++) turn_loop();
    assert_false(client_poll(&c));
    release_held(0, "one");
    client_wait(&c, 3);
    const char *one = strstr(client_text(&c), "\r\n\r\none"), *two = strstr(client_text(&c), "\r\n\r\ntwo"),
               *three = strstr(client_text(&c), "\r\n\r\nhello");
    assert_true(one && two && three && one < two && two < three);
    client_close(&c);
    /* Bounded: of forty, sixteen are taken on; the rest follow as room is made. */
    held_count = 0;
    client_open(&c);
    for (int i = 0; i < 20; i++) client_says(&c, "GET /hold HTTP/1.1\r\n" HOST "\r\n");
    WAIT_UNTIL(held_count == 16);
    for (int i = 0; i < 5; i++) turn_loop();
    assert_int_equal(held_count, 16);
    assert_int_equal(server_in_flight(server), 16);
    for (unsigned i = 0; i < 20; i++) {
        WAIT_UNTIL(held_count > i);
        release_held(i, "x");
    }
    client_wait(&c, 20);
    client_close(&c);
    /* Many in one go. */
    client_open(&c);
    struct buf b = {0};
    for (int i = 0; i < 2000; i++) assert_true(buf_add(&b, STR("GET /hello HTTP/1.1\r\nHost: t\r\n\r\n")));
    client_send(&c, buf_str(&b));
    buf_free(&b);
    client_wait(&c, 2000);
    client_close(&c);
}

/* Does not read while it asks for much: what waits for it is bounded. */
static void test_slow_reader_is_held_up(void **state) {
    (void)state;
    start(NULL);
    struct client c;
    client_open(&c);
    struct buf b = {0};
    for (int i = 0; i < 100; i++) assert_true(buf_add(&b, STR("GET /big HTTP/1.1\r\nHost: t\r\n\r\n")));
    assert_int_equal(send(c.fd, b.data, b.len, 0), (ssize_t)b.len);
    buf_free(&b);
    struct rusage before, after;
    assert_int_equal(getrusage(RUSAGE_SELF, &before), 0);
    for (int i = 0; i < 200; i++) turn_loop();
    assert_int_equal(getrusage(RUSAGE_SELF, &after), 0);
    assert_true(after.ru_maxrss - before.ru_maxrss < 20 * 1024); /* of the 30 MiB that were asked for */
    client_wait(&c, 100);
    client_close(&c);
}

static void test_streams(void **state) {
    (void)state;
    start(NULL);
    char *text = talk("GET /stream HTTP/1.1\r\n" HOST "\r\n");
    assert_non_null(strstr(text, "Transfer-Encoding: chunked\r\n"));
    size_t n = 0;
    for (const char *p = strstr(text, "\r\n\r\n"); *p; p++) n += *p == 's';
    assert_int_equal(n, 1000000);
    free(text);
    struct client c;
    client_open(&c);
    client_says(&c, "GET /stream HTTP/1.0\r\n\r\n");
    client_wait_close(&c);
    assert_null(strstr(client_text(&c), "chunked"));
    assert_true(c.in.len > 1000000);
    client_close(&c);
    expect("HEAD /stream HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 200", "Transfer-Encoding: chunked\r\n\r\n");
    /* The client goes away in the middle. */
    client_open(&c);
    client_says(&c, "GET /stream HTTP/1.1\r\n" HOST "\r\n");
    WAIT_UNTIL(client_poll(&c));
    client_close(&c);
    WAIT_UNTIL(server_in_flight(server) == 0);
}

static void test_multipart(void **state) {
    (void)state;
    start(NULL);
    static const char body[] = "preamble\r\n--XX\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nvalue\r\n"
                               "--XX\r\nContent-Disposition: form-data; name=\"f\"; filename=\"C:\\dir\\x.txt\"\r\n"
                               "Content-Type: text/plain\r\n\r\nline\r\n--X not the end\r\n--XX--\r\nepilogue";
    char request[1024];
    for (int spool = 0; spool < 2; spool++) {
        (void)snprintf(request, sizeof request,
                       "POST %s HTTP/1.1\r\n" HOST "Content-Type: multipart/form-data; boundary=XX\r\nContent-Length: %zu\r\n\r\n%s",
                       spool ? "/upload" : "/parts", sizeof body - 1, body);
        expect(request, "HTTP/1.1 200", spool ? "a||5|0|value\nf|x.txt|21|1|\n" : "a||5|0|value\nf|x.txt|21|0|line\r\n--X not the end\n");
    }
    expect("POST /upload HTTP/1.1\r\n" HOST "Content-Type: multipart/form-data; boundary=XX\r\nContent-Length: 6\r\n\r\n--XX\r\n",
           "HTTP/1.1 400", NOT_JSON("400", "Unexpected end of form", "Bad Request"));
    expect("POST /upload HTTP/1.1\r\n" HOST "Content-Type: multipart/form-data\r\nContent-Length: 6\r\n\r\n--XX\r\n",
           "HTTP/1.1 400", "Boundary not found");
    char *text = long_request("POST /large HTTP/1.1\r\n" HOST "Content-Length: 2000000\r\n\r\n", 'a', 2000000, "");
    expect(text, "HTTP/1.1 200", "disk 2000000");
    free(text);
    expect("POST /large HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\nab", "HTTP/1.1 200", "memory 2");
}

static void hurry(struct server_settings *s) {
    s->header_ms = s->body_ms = s->idle_ms = s->half_close_ms = s->linger_ms = 100;
    s->write_ms = 300;
}

static void test_timeouts(void **state) {
    (void)state;
    start(hurry);
    expect_closed("GET /hello HTTP/1.1\r\nHos", "HTTP/1.1 408 Request Timeout\r\n", "");
    expect_closed("POST /echo HTTP/1.1\r\n" HOST "Content-Length: 10\r\n\r\nabc", "HTTP/1.1 408", "");
    expect_closed("POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3\r\nab", "HTTP/1.1 408", "");
    /* A byte now and then does not help. */
    struct client c;
    client_open(&c);
    client_says(&c, "GET /hello HTTP/1.1\r\n" HOST "X: ");
    WAIT_UNTIL((client_send(&c, STR("a")), (void)client_poll(&c), c.eof));
    assert_int_equal(strncmp(client_text(&c), "HTTP/1.1 408", 12), 0);
    client_close(&c);
    /* Idle connections are closed without a word. */
    client_open(&c);
    client_wait_close(&c);
    assert_int_equal(c.in.len, 0);
    client_close(&c);
    client_open(&c);
    client_says(&c, "GET /hello HTTP/1.1\r\n" HOST "\r\n");
    client_wait_close(&c);
    assert_int_equal(answers_in(&c), 1);
    client_close(&c);
    /* A client that does not read its answer. */
    client_open(&c);
    int small = 4096;
    assert_int_equal(setsockopt(c.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small), 0);
    struct buf b = {0};
    for (int i = 0; i < 40; i++) assert_true(buf_add(&b, STR("GET /big HTTP/1.1\r\nHost: t\r\n\r\n")));
    assert_int_equal(send(c.fd, b.data, b.len, 0), (ssize_t)b.len);
    buf_free(&b);
    WAIT_UNTIL(server_connections(server) == 1);
    WAIT_UNTIL(server_connections(server) == 0);
    client_close(&c);
    /* A handler that takes too long is told, and may still answer. */
    held_count = cancelled = 0;
    client_open(&c);
    client_says(&c, "GET /quick HTTP/1.1\r\n" HOST "\r\n");
    WAIT_UNTIL(cancelled == 1);
    assert_int_equal(cancelled_why, ERR_DEADLINE);
    client_wait(&c, 1);
    assert_int_equal(strncmp(client_text(&c), "HTTP/1.1 500", 12), 0); /* it ended without an answer */
    client_close(&c);
}

static void test_client_goes_away(void **state) {
    (void)state;
    start(hurry);
    struct client c;
    client_open(&c);
    client_says(&c, "GET /hold HTTP/1.1\r\n" HOST "\r\nGET /hold HTTP/1.1\r\n" HOST "\r\n");
    WAIT_UNTIL(held_count == 2);
    client_close(&c);
    WAIT_UNTIL(cancelled == 2);
    assert_int_equal(cancelled_why, ERR_CANCELLED);
    assert_int_equal(server_in_flight(server), 0);
    /* Half-closed: it may still be answered. */
    client_open(&c);
    client_says(&c, "GET /hold HTTP/1.1\r\n" HOST "\r\n");
    WAIT_UNTIL(held_count == 3);
    assert_int_equal(shutdown(c.fd, SHUT_WR), 0);
    for (int i = 0; i < 5; i++) turn_loop();
    release_held(2, "late");
    client_wait_close(&c);
    assert_int_equal(strncmp(client_text(&c), "HTTP/1.1 200", 12), 0);
    client_close(&c);
    client_open(&c);
    client_says(&c, "GET /hello HTTP/1.1\r\n" HOST "\r\n");
    assert_int_equal(shutdown(c.fd, SHUT_WR), 0);
    client_wait_close(&c);
    assert_int_equal(answers_in(&c), 1);
    client_close(&c);
    /* In the middle of a head, of a body. */
    for (int i = 0; i < 2; i++) {
        client_open(&c);
        client_says(&c, i ? "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 9\r\n\r\nabc" : "GET /hel");
        assert_int_equal(shutdown(c.fd, SHUT_WR), 0);
        client_wait_close(&c);
        client_close(&c);
    }
}

static void few(struct server_settings *s) {
    s->max_connections = 4;
    s->max_in_flight = 2;
}

static void test_too_many(void **state) {
    (void)state;
    start(few);
    struct client c[5];
    for (int i = 0; i < 4; i++) client_open(&c[i]);
    WAIT_UNTIL(server_connections(server) == 4);
    client_open(&c[4]);
    client_says(&c[4], "GET /hello HTTP/1.1\r\n" HOST "\r\n");
    client_wait_close(&c[4]);
    assert_int_equal(strncmp(client_text(&c[4]), "HTTP/1.1 503 Service Unavailable\r\n", 34), 0);
    assert_non_null(strstr(client_text(&c[4]), "Retry-After: 1\r\n"));
    client_close(&c[4]);
    for (int i = 0; i < 3; i++) client_says(&c[i], "GET /hold HTTP/1.1\r\n" HOST "\r\n");
    client_wait(&c[2], 1);
    assert_int_equal(strncmp(client_text(&c[2]), "HTTP/1.1 503", 12), 0);
    assert_non_null(strstr(client_text(&c[2]), "Retry-After: 1\r\n"));
    client_says(&c[2], "GET /nope HTTP/1.1\r\n" HOST "\r\n"); /* and the connection lives on */
    client_wait(&c[2], 2);
    release_held(0, "x");
    release_held(1, "y");
    client_wait(&c[0], 1);
    for (int i = 0; i < 4; i++) client_close(&c[i]);
}

static void test_two_thousand_idle(void **state) {
    (void)state;
    start(NULL);
    struct rlimit files = {.rlim_cur = 8192, .rlim_max = 8192};
    struct rlimit had;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &had), 0);
    if (had.rlim_cur < 8192 && setrlimit(RLIMIT_NOFILE, &files) != 0) skip();
    enum { N = 2000 };
    struct client *c = calloc(N, sizeof *c);
    for (int i = 0; i < N; i++) {
        client_open(&c[i]);
        client_says(&c[i], "GET /hello HTTP/1.1\r\n" HOST "\r\n");
    }
    for (int i = 0; i < N; i++) client_wait(&c[i], 1);
    assert_int_equal(server_connections(server), N);
    expect("GET /hello HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 200", "hello");
    for (int i = 0; i < N; i++) client_close(&c[i]);
    free(c);
}

static void test_stop(void **state) {
    (void)state;
    start(NULL);
    struct client idle, busy;
    client_open(&idle);
    client_open(&busy);
    client_says(&idle, "GET /hello HTTP/1.1\r\n" HOST "\r\n");
    client_wait(&idle, 1);
    client_says(&busy, "GET /hold HTTP/1.1\r\n" HOST "\r\n");
    WAIT_UNTIL(held_count == 1);
    server_stop_accepting(server);
    client_wait_close(&idle);
    assert_int_equal(server_in_flight(server), 1);
    release_held(0, "last");
    client_wait_close(&busy);
    assert_non_null(strstr(client_text(&busy), "Connection: close\r\n"));
    assert_non_null(strstr(client_text(&busy), "\r\n\r\nlast"));
    client_close(&idle);
    client_close(&busy);
}

static void test_close_cancels(void **state) {
    (void)state;
    start(NULL);
    struct client c;
    client_open(&c);
    client_says(&c, "GET /hold HTTP/1.1\r\n" HOST "\r\n");
    WAIT_UNTIL(held_count == 1);
    struct server *old = server;
    server_close(old);
    assert_int_equal(cancelled, 1);
    client_wait_close(&c);
    client_close(&c);
    for (int i = 0; i < 10; i++) turn_loop();
    start(NULL); /* for the teardown */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_answers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_head_and_etag, setup, teardown),
        cmocka_unit_test_setup_teardown(test_malformed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_limits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_expect, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bodies, setup, teardown),
        cmocka_unit_test_setup_teardown(test_compression, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pipelining, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slow_reader_is_held_up, setup, teardown),
        cmocka_unit_test_setup_teardown(test_streams, setup, teardown),
        cmocka_unit_test_setup_teardown(test_multipart, setup, teardown),
        cmocka_unit_test_setup_teardown(test_timeouts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_client_goes_away, setup, teardown),
        cmocka_unit_test_setup_teardown(test_too_many, setup, teardown),
        cmocka_unit_test_setup_teardown(test_two_thousand_idle, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stop, setup, teardown),
        cmocka_unit_test_setup_teardown(test_close_cancels, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
