// link: http
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sys/resource.h>

#include "http_fixture.h"
#include "runtime/log.h"
#include "runtime/metrics.h"

static void test_malformed(void **state) {
    (void)state;
    start(NULL);
    static const char *const bad[] = {
        "NONSENSE\r\n\r\n",
        "GET /hello\r\n\r\n",
        "GET /hello HTTP/9.9\r\n" HOST "\r\n",
        "GET /hello HTTP/1.1\r\n\r\n",                                                 /* no Host */
        "GET /hello HTTP/1.1\r\n" HOST HOST "\r\n",                                    /* two */
        "GET /hello HTTP/1.1\r\n" HOST "Authorization: a\r\nauthorization: b\r\n\r\n", /* who asks, said twice */
        "GET /hello HTTP/1.1\r\n" HOST "X-Tenant-Kasma-Id: a\r\nX-TENANT-Kasma-Id: a\r\n\r\n",
        "GET /hello HTTP/1.1\r\n" HOST "X-App-Kasma-Id: a\r\nX-App-Kasma-Id: b\r\n\r\n",
        "GET /hello HTTP/1.1\r\n" HOST "X-User-Id: a\r\nX: 1\r\nX-User-Id: b\r\n\r\n",
        "GET /hello HTTP/1.1\r\n" HOST "X-Kasma-Key: a\r\nX-Kasma-Key: b\r\n\r\n",
        "GET /hello HTTP/1.1\r\n" HOST "X-Gateway-Secret: a\r\nX-Gateway-Secret: b\r\n\r\n",
        "GET /hello HTTP/1.1\n" HOST "\r\n", /* bare LF */
        "GET /hello HTTP/1.1\r\nHost: t\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: t\r\nX: a\rb\r\n\r\n", /* bare CR */
        "GET /hello HTTP/1.1\r\nHost: t\rX: b\r\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: t\r\nX:\rContent-Length: 3\r\n\r\nabc",
        "GET /hello HTTP/1.1\r\nHost: t\r\nX: a\x01"
        "b\r\n\r\n", /* control bytes */
        "GET /hello HTTP/1.1\r\nHost: t\r\nX: a\x7f\r\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: t\r\nX : a\r\n\r\n",      /* blank before the colon */
        "GET /hello HTTP/1.1\r\nHost: t\r\nX: a\r\n b\r\n\r\n", /* folded */
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
        "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n0\r\n\n", /* in the trailer */
        "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n0\r\nT: a\n\r\n",
        "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n0\r\nT: a\rU: b\r\n\r\n",
        "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n0\r\nT: a\r\n b\r\n\r\n",
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
    text = long_request("POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n200000\r\n", 'a',
                        2 * 1024 * 1024, "\r\n0\r\n\r\n");
    expect_closed(text, "HTTP/1.1 413", too_large);
    free(text);
    text = long_request("POST /echo HTTP/1.1\r\n" HOST "Content-Length: 1048576\r\n\r\n", 'a', 1048576, "");
    expect(text, "HTTP/1.1 200", "Content-Length: 1048576\r\n");
    free(text);
    expect_closed("POST /echo HTTP/1.1\r\n" HOST "Content-Encoding: Foo\r\nContent-Length: 3\r\n\r\nabc",
                  "HTTP/1.1 415", "{\"statusCode\":415,\"message\":\"unsupported content encoding \\\"foo\\\"\"}");
    expect_closed("POST /echo HTTP/1.1\r\n" HOST
                  "Content-Type: application/json; charset=foo\r\nContent-Length: 3\r\n\r\nabc",
                  "HTTP/1.1 415", "{\"statusCode\":415,\"message\":\"unsupported charset \\\"FOO\\\"\"}");
    expect("POST /echo HTTP/1.1\r\n" HOST
           "Content-Type: application/json; charset=\"UTF-8\"\r\nContent-Length: 3\r\n\r\nabc",
           "HTTP/1.1 200", "abc");
    /* Chunk extensions are not body, but they are bytes. */
    text = long_request("POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3;x=", 'a', 100 * 1024,
                        "\r\nabc\r\n0\r\n\r\n");
    expect_closed(text, "HTTP/1.1 400", "");
    free(text);
}

static void test_pipelining(void **state) {
    (void)state;
    start(NULL);
    struct client c;
    client_open(&c);
    client_says(&c, "GET /hold HTTP/1.1\r\n" HOST "\r\nGET /hold HTTP/1.1\r\n" HOST "\r\nGET /hello HTTP/1.1\r\n" HOST
                    "\r\n");
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

/* Sends a byte where the last one is some milliseconds old: a fast machine must not send more than a head may be. */
static void drip(struct client *c, uint64_t *last_us) {
    if (clock_mono_us() - *last_us < 5000) return;
    *last_us = clock_mono_us();
    client_send(c, STR("a"));
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

static void hurry(struct server_settings *s) {
    s->header_ms = s->body_ms = s->idle_ms = s->half_close_ms = s->linger_ms = 500;
    s->write_ms = 1000;
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
    uint64_t last_us = 0;
    WAIT_UNTIL((drip(&c, &last_us), (void)client_poll(&c), c.eof));
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
    start(NULL);
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
    for (unsigned i = 0; i < 2; i++) { /* one after another: what is sent on two connections may come in any order */
        client_says(&c[i], "GET /hold HTTP/1.1\r\n" HOST "\r\n");
        WAIT_UNTIL(held_count == i + 1);
    }
    client_says(&c[2], "GET /hold HTTP/1.1\r\n" HOST "\r\n");
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

static void patient(struct server_settings *s) {
    s->idle_ms = 3600000;
}

static void test_two_thousand_idle(void **state) {
    (void)state;
    start(patient);
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

static void with_a_proxy(struct server_settings *set) {
    static struct networks proxies;
    assert_true(networks_parse(STR("127.0.0.0/8"), &proxies, NULL));
    set->proxies = &proxies;
    set->access_log = true;
}

static void without_a_proxy(struct server_settings *set) {
    set->access_log = true;
}

/* What is logged between the two goes to a file, whose text the second gives. */
static FILE *log_file;
static int log_kept;

static void capture_log(void) {
    log_file = tmpfile();
    log_kept = dup(STDERR_FILENO);
    assert_non_null(log_file);
    log_flush();
    assert_int_equal(dup2(fileno(log_file), STDERR_FILENO), STDERR_FILENO);
}

static const char *captured_log(void) {
    static char text[4096];
    log_flush();
    assert_int_equal(dup2(log_kept, STDERR_FILENO), STDERR_FILENO);
    assert_int_equal(close(log_kept), 0);
    rewind(log_file);
    text[fread(text, 1, sizeof text - 1, log_file)] = '\0';
    assert_int_equal(fclose(log_file), 0);
    return text;
}

/* What a request leaves in the log. */
static const char *logged(const char *request) {
    capture_log();
    free(talk(request));
    return captured_log();
}

static void test_the_access_log_names_the_client_behind_proxies(void **state) {
    (void)state;
    start(with_a_proxy);
    assert_non_null(
        strstr(logged("GET /hello HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n"), "\"remote\":\"127.0.0.1\""));
    /* Also where no handler asked for it. */
    static const char *const paths[] = {"/hello", "/nowhere"};
    for (size_t i = 0; i < 2; i++) {
        char request[256];
        (void)snprintf(request, sizeof request,
                       "GET %s HTTP/1.1\r\n" HOST
                       "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 203.0.113.9:70, 127.0.0.2\r\n"
                       "Connection: close\r\n\r\n",
                       paths[i]);
        assert_non_null(strstr(logged(request), "\"remote\":\"203.0.113.9\""));
    }
}

static void test_the_access_log_believes_no_stranger(void **state) {
    (void)state;
    start(without_a_proxy);
    assert_non_null(
        strstr(logged("GET /hello HTTP/1.1\r\n" HOST "X-Forwarded-For: 1.2.3.4\r\nConnection: close\r\n\r\n"),
               "\"remote\":\"127.0.0.1\""));
}

static double refused_malformed(void) {
    struct metric *refused = metric_counter("kasma_http_refused_total", "", "reason");
    return metric_value(refused, metric_series(refused, "malformed"));
}

/* The bytes of its head must not be another connection's by the time that its line is written. */
static void test_a_refused_request_that_waits_is_logged_with_its_own_path(void **state) {
    (void)state;
    start(without_a_proxy);
    struct client c;
    client_open(&c);
    client_says(&c, "GET /hold HTTP/1.1\r\n" HOST "\r\n");
    WAIT_UNTIL(held_count == 1);
    double before = refused_malformed();
    client_says(&c, "GET /without-host HTTP/1.1\r\nUser-Agent: mine\r\n\r\n");
    WAIT_UNTIL(refused_malformed() > before);
    free(talk("GET /hello?a-secret-of-another-client HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n"));
    capture_log();
    release_held(0, "first");
    client_wait(&c, 2);
    const char *text = captured_log();
    assert_non_null(strstr(text, "\"path\":\"/without-host\""));
    assert_non_null(strstr(text, "\"agent\":\"mine\",\"status\":400"));
    client_close(&c);
}

static void on_who(struct request *r, void *data) {
    bool *answered = data;
    assert_non_null(arena_alloc(request_arena(r), 8192)); /* what comes now lies in a block that goes with the work */
    struct str client = request_client(r);
    assert_true(client.len > 0);
    answer_text(r, 200, "you");
    request_done(r);
    *answered = true;
}

static void test_the_client_of_an_answer_that_waits_is_logged(void **state) {
    (void)state;
    start(with_a_proxy);
    bool answered = false;
    struct error err;
    assert_true(routes_add(server_routes(server), HTTP_M_GET, STR("/who"), on_who, &answered, NULL, &err));
    struct client c;
    client_open(&c);
    client_says(&c,
                "GET /hold HTTP/1.1\r\n" HOST "\r\nGET /who HTTP/1.1\r\n" HOST "X-Forwarded-For: 203.0.113.9\r\n\r\n");
    WAIT_UNTIL(answered);
    capture_log();
    release_held(0, "first");
    client_wait(&c, 2);
    assert_non_null(strstr(captured_log(), "\"path\":\"/who\",\"route\":\"/who\",\"remote\":\"203.0.113.9\""));
    client_close(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_refused_request_that_waits_is_logged_with_its_own_path, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_client_of_an_answer_that_waits_is_logged, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_access_log_names_the_client_behind_proxies, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_access_log_believes_no_stranger, setup, teardown),
        cmocka_unit_test_setup_teardown(test_malformed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_limits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pipelining, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slow_reader_is_held_up, setup, teardown),
        cmocka_unit_test_setup_teardown(test_timeouts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_client_goes_away, setup, teardown),
        cmocka_unit_test_setup_teardown(test_too_many, setup, teardown),
        cmocka_unit_test_setup_teardown(test_two_thousand_idle, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
