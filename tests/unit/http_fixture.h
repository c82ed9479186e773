/* The server under test: routes that answer at once, later, in pieces or never, and a teardown that insists that
 * nothing is left. Each test calls start() and then talks to the server with http_client.h. */
#ifndef KASMA_TESTS_HTTP_FIXTURE_H
#define KASMA_TESTS_HTTP_FIXTURE_H

#include <dirent.h>

#include "http_client.h"

static struct server *server;
static struct request *held[32];
static unsigned held_count, cancelled;
static enum error_kind cancelled_why;

static inline void answer_text(struct request *r, int status, const char *text) {
    struct header type = {STR("Content-Type"), STR("text/plain; charset=utf-8")};
    assert_true(request_respond(r, status, &type, 1, str_of(text)) || request_gone(r));
}

static inline void on_hello(struct request *r, void *data) {
    (void)data;
    answer_text(r, 200, "hello");
    request_done(r);
}

static inline void on_echo(struct request *r, void *data) {
    (void)data;
    struct header type = {STR("Content-Type"), STR("application/octet-stream")};
    assert_true(request_respond(r, 200, &type, 1, request_body(r)) || request_gone(r));
    request_done(r);
}

static inline void on_big(struct request *r, void *data) {
    (void)data;
    size_t n = 300 * 1024;
    char *text = arena_alloc(request_arena(r), n);
    assert_non_null(text);
    memset(text, 'x', n);
    struct header type = {STR("Content-Type"), STR("application/octet-stream")};
    assert_true(request_respond(r, 200, &type, 1, str_n(text, n)) || request_gone(r));
    request_done(r);
}

static inline void on_json(struct request *r, void *data) {
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

static inline void on_user(struct request *r, void *data) {
    (void)data;
    char *text = arena_strdup(request_arena(r), request_param(r, 0));
    answer_text(r, 200, text);
    request_done(r);
}

static inline void on_gone(void *data, enum error_kind why) {
    struct request *r = data;
    cancelled++;
    cancelled_why = why;
    for (unsigned i = 0; i < held_count; i++)
        if (held[i] == r) held[i] = NULL;
    request_done(r);
}

/* Holds the request until the test answers it. */
static inline void on_hold(struct request *r, void *data) {
    (void)data;
    held[held_count++] = r;
    request_on_cancel(r, on_gone, r);
}

static inline void release_held(unsigned i, const char *text) {
    struct request *r = held[i];
    held[i] = NULL;
    answer_text(r, 200, text);
    request_done(r);
}

static inline void on_silent(struct request *r, void *data) {
    (void)data;
    request_done(r);
}

/* A stream of a million bytes that honours back-pressure. */
struct flow {
    struct request *r;
    size_t left;
};

static inline void flow_on(void *data) {
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

static inline void on_stream(struct request *r, void *data) {
    (void)data;
    struct flow *f = arena_zalloc(request_arena(r), 1, sizeof *f);
    *f = (struct flow){.r = r, .left = 1000000};
    assert_true(request_stream(r, 200, NULL, 0, -1));
    flow_on(f);
}

static inline void on_parts(struct request *r, void *data) {
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

static inline void on_large(struct request *r, void *data) {
    (void)data;
    char text[64];
    (void)snprintf(text, sizeof text, "%s %llu", request_body_path(r) ? "disk" : "memory",
                   (unsigned long long)request_body_size(r));
    answer_text(r, 200, text);
    request_done(r);
}

static inline void route(enum http_method m, const char *pattern, request_handler *fn, const struct route_options *o) {
    struct error err;
    assert_true(routes_add(server_routes(server), m, str_of(pattern), fn, NULL, o, &err));
}

static inline void start(void (*change)(struct server_settings *s)) {
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

static inline unsigned open_files(void) {
    DIR *d = opendir("/proc/self/fd");
    unsigned n = 0;
    while (readdir(d)) n++;
    assert_int_equal(closedir(d), 0);
    return n;
}

static unsigned files_before;

static inline int setup(void **state) {
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
static inline int teardown(void **state) {
    (void)state;
    WAIT_UNTIL(server_connections(server) == 0);
    assert_int_equal(server_in_flight(server), 0);
    server_close(server);
    WAIT_UNTIL(open_files() == files_before);
    for (int i = 0; i < 10; i++) turn_loop();
    return 0;
}

static inline void expect(const char *request, const char *start_with, const char *holds) {
    char *text = talk(request);
    if (strncmp(text, start_with, strlen(start_with)) != 0 || (holds && !strstr(text, holds)))
        print_error("request:\n%.300s\nanswer:\n%.600s\n", request, text);
    assert_int_equal(strncmp(text, start_with, strlen(start_with)), 0);
    if (holds) assert_non_null(strstr(text, holds));
    free(text);
}

/* The connection must be closed after it, with an empty body. */
static inline void expect_closed(const char *request, const char *start_with, const char *body) {
    struct client c;
    client_open(&c);
    client_says(&c, request);
    client_wait_close(&c);
    const char *text = client_text(&c);
    if (strncmp(text, start_with, strlen(start_with)) != 0)
        print_error("request:\n%.300s\nanswer:\n%.600s\n", request, text);
    assert_int_equal(strncmp(text, start_with, strlen(start_with)), 0);
    assert_non_null(strstr(text, "Connection: close\r\n"));
    assert_string_equal(strstr(text, "\r\n\r\n") + 4, body);
    client_close(&c);
}

#define HOST "Host: t\r\n"
#define NOT_JSON(status, message, word) "{\"message\":\"" message "\",\"error\":\"" word "\",\"statusCode\":" status "}"

static inline char *long_request(const char *before, char fill, size_t n, const char *after) {
    struct buf b = {0};
    assert_true(buf_add(&b, str_of(before)));
    for (size_t i = 0; i < n; i++) assert_true(buf_byte(&b, fill));
    assert_true(buf_add(&b, str_of(after)) && buf_byte(&b, '\0'));
    return b.data;
}

#endif
