// link: http
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <zlib.h>

#include "http_fixture.h"

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
    expect("GET /nope?x=1 HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 404",
           NOT_JSON("404", "Cannot GET /nope?x=1", "Not Found"));
    expect("PROPFIND /hello HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 404", "Cannot PROPFIND /hello");
    expect("DELETE /hello HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 404", "Cannot DELETE /hello");
    expect("GET /users/%zz HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 400",
           NOT_JSON("400", "Failed to decode param '%zz'", "Bad Request"));
    expect("GET /users/%ff HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 400", "Failed to decode param '%ff'");
    expect("GET /silent HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 500",
           "{\"statusCode\":500,\"message\":\"Internal server error\"}");
    expect("POST /echo HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 200", "Content-Length: 0\r\n");
    expect("GET /hello HTTP/1.0\r\n\r\n", "HTTP/1.1 200", "Connection: close\r\n");
    expect("GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "HTTP/1.1 200", "Connection: keep-alive\r\n");
    expect("GET /hello HTTP/1.1\r\n" HOST "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n", "HTTP/1.1 200",
           "hello");
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
    expect_closed("POST /echo HTTP/1.1\r\n" HOST "Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n",
                  "HTTP/1.1 413", "{\"statusCode\":413,\"message\":\"request entity too large\"}");
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
    expect("POST /echo HTTP/1.1\r\n" HOST
           "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5;x=y\r\ndefgh\r\n0\r\nT: v\r\n\r\n",
           "HTTP/1.1 200", "\r\n\r\nabcdefgh");
    /* A byte at a time, then a second request on the same connection. */
    struct client c;
    client_open(&c);
    const char *slow =
        "POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\nwxyzGET /hello HTTP/1.1\r\nHost: t\r\n\r\n";
    for (const char *p = slow; *p; p++) client_send(&c, str_n(p, 1));
    client_wait(&c, 2);
    assert_non_null(strstr(client_text(&c), "wxyzHTTP/1.1 200"));
    client_close(&c);

    client_open(&c);
    slow = "POST /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nyz\r\n0\r\nT: v\r\nU: w\r\n\r\n"
           "POST /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
           "GET /hello HTTP/1.1\r\nHost: t\r\n\r\n";
    for (const char *p = slow; *p; p++) client_send(&c, str_n(p, 1));
    client_wait(&c, 3);
    client_close(&c);
    client_open(&c);
    client_says(&c, slow);
    client_wait(&c, 3);
    assert_non_null(strstr(client_text(&c), "yzHTTP/1.1 200"));
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
    int h = snprintf(head, sizeof head,
                     "POST /echo HTTP/1.1\r\n" HOST "Content-Encoding: gzip\r\nContent-Length: %zu\r\n\r\n", n);
    client_open(&c);
    client_send(&c, str_n(head, (size_t)h));
    client_send(&c, str_n((char *)packed, n));
    client_wait(&c, 1);
    assert_non_null(strstr(client_text(&c), "\r\n\r\nhello gzip"));
    client_close(&c);
    /* Cut short. */
    h = snprintf(head, sizeof head,
                 "POST /echo HTTP/1.1\r\n" HOST "Content-Encoding: gzip\r\nContent-Length: %zu\r\n\r\n", n - 4);
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
    h = snprintf(head, sizeof head,
                 "POST /echo HTTP/1.1\r\n" HOST "Content-Encoding: gzip\r\nContent-Length: %zu\r\n\r\n", n);
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
    expect("GET /json HTTP/1.1\r\n" HOST "Accept-Encoding: gzip, br\r\n\r\n", "HTTP/1.1 200",
           "Content-Encoding: br\r\n");
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
                       "POST %s HTTP/1.1\r\n" HOST
                       "Content-Type: multipart/form-data; boundary=XX\r\nContent-Length: %zu\r\n\r\n%s",
                       spool ? "/upload" : "/parts", sizeof body - 1, body);
        expect(request, "HTTP/1.1 200",
               spool ? "a||5|0|value\nf|x.txt|21|1|\n" : "a||5|0|value\nf|x.txt|21|0|line\r\n--X not the end\n");
    }
    expect("POST /upload HTTP/1.1\r\n" HOST
           "Content-Type: multipart/form-data; boundary=XX\r\nContent-Length: 6\r\n\r\n--XX\r\n",
           "HTTP/1.1 400", NOT_JSON("400", "Unexpected end of form", "Bad Request"));
    expect("POST /upload HTTP/1.1\r\n" HOST "Content-Type: multipart/form-data\r\nContent-Length: 6\r\n\r\n--XX\r\n",
           "HTTP/1.1 400", "Boundary not found");
    char *text = long_request("POST /large HTTP/1.1\r\n" HOST "Content-Length: 2000000\r\n\r\n", 'a', 2000000, "");
    expect(text, "HTTP/1.1 200", "disk 2000000");
    free(text);
    expect("POST /large HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\nab", "HTTP/1.1 200", "memory 2");
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
        cmocka_unit_test_setup_teardown(test_expect, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bodies, setup, teardown),
        cmocka_unit_test_setup_teardown(test_compression, setup, teardown),
        cmocka_unit_test_setup_teardown(test_streams, setup, teardown),
        cmocka_unit_test_setup_teardown(test_multipart, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stop, setup, teardown),
        cmocka_unit_test_setup_teardown(test_close_cancels, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
