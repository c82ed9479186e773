// link: http
/* Bodies that a handler takes piece by piece. The handler of the fixture holds its request, and the test itself takes
 * from it, so that it decides when what is read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <zlib.h>

#include "http_fixture.h"

#define LIMIT ((size_t)32 * 1024 * 1024)

static unsigned woken;

static void on_readable(void *data) {
    (void)data;
    woken++;
}

/* Takes all that is there now, in reads of `max`; how the last read ended. */
static enum read_result take(struct request *r, struct buf *into, size_t max) {
    for (;;) {
        size_t before = into->len;
        enum read_result result = request_read(r, into, max);
        assert_true(into->len - before <= max);
        if (result != READ_SOME) {
            assert_int_equal(into->len, before);
            return result;
        }
        assert_true(into->len > before);
    }
}

/* Takes, and turns the loop, until the body has ended one way or another. */
static enum read_result take_all(struct request *r, struct buf *into, size_t max) {
    enum read_result result = READ_WAIT;
    WAIT_UNTIL((result = take(r, into, max)) != READ_WAIT);
    return result;
}

static int failure(struct request *r) {
    struct str why;
    return request_read_failure(r, &why);
}

static void begin(void (*change)(struct server_settings *s)) {
    struct route_options stream = {.stream = true, .body_limit = LIMIT}, small = {.stream = true, .body_limit = 1000};
    start(change);
    woken = 0;
    route(HTTP_M_POST, "/take", on_hold, &stream);
    route(HTTP_M_POST, "/small", on_hold, &small);
}

static void answer(unsigned i, int status, const char *text) {
    struct request *r = held[i];
    held[i] = NULL;
    answer_text(r, status, text);
    request_done(r);
}

static void test_pieces(void **state) {
    (void)state;
    begin(NULL);
    struct client c;
    struct buf got = {0};
    client_open(&c);
    client_says(&c, "POST /take HTTP/1.1\r\n" HOST "Content-Length: 11\r\n\r\n");
    WAIT_UNTIL(held_count == 1);
    assert_true(request_streamed(held[0]));
    assert_int_equal(request_read(held[0], &got, 100), READ_WAIT);
    request_on_readable(held[0], on_readable, NULL);
    client_says(&c, "hello ");
    WAIT_UNTIL(woken == 1);
    assert_int_equal(take(held[0], &got, 4), READ_WAIT);
    request_on_readable(held[0], on_readable, NULL);
    client_says(&c, "world");
    WAIT_UNTIL(woken == 2);
    assert_int_equal(take(held[0], &got, 4), READ_END);
    assert_int_equal(request_body_size(held[0]), 11);
    assert_int_equal(take(held[0], &got, 4), READ_END);
    assert_true(str_eq(buf_str(&got), STR("hello world")));
    answer(0, 200, "first");
    /* Chunks, with a trailer; the connection lives on. */
    client_wait(&c, 1);
    client_says(&c, "POST /take HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n");
    WAIT_UNTIL(held_count == 2);
    buf_clear(&got);
    WAIT_UNTIL(take(held[1], &got, 100) == READ_WAIT && got.len == 3);
    client_says(&c, "2\r\nde\r\n0\r\nX-T: 1\r\n");
    client_says(&c, "\r\n");
    assert_int_equal(take_all(held[1], &got, 100), READ_END);
    assert_true(str_eq(buf_str(&got), STR("abcde")));
    answer(1, 200, "second");
    client_wait(&c, 2);
    /* No body, and an empty one. */
    client_says(&c, "POST /take HTTP/1.1\r\n" HOST "\r\n");
    WAIT_UNTIL(held_count == 3);
    assert_false(request_streamed(held[2]));
    assert_int_equal(take_all(held[2], &got, 100), READ_END);
    answer(2, 200, "third");
    client_says(&c, "POST /take HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    WAIT_UNTIL(held_count == 4);
    assert_int_equal(take_all(held[3], &got, 100), READ_END);
    answer(3, 200, "fourth");
    client_wait(&c, 4);
    client_close(&c);
    buf_free(&got);
}

/* What is sent carries its place, so that a lost, doubled or swapped byte shows. */
static char byte_at(size_t i) {
    return (char)(i * 2654435761u >> 24);
}

static void test_the_sender_is_held_up_until_the_handler_reads(void **state) {
    (void)state;
    begin(NULL);
    struct client c;
    struct buf all = {0}, got = {0};
    assert_true(buf_reserve(&all, LIMIT));
    for (size_t i = 0; i < LIMIT; i++) all.data[i] = byte_at(i);
    client_open(&c);
    char head[200];
    int n = snprintf(head, sizeof head, "POST /take HTTP/1.1\r\n" HOST "Content-Length: %zu\r\n\r\n", LIMIT);
    client_send(&c, str_n(head, (size_t)n));
    WAIT_UNTIL(held_count == 1);
    /* Nobody reads: after what the sockets hold, and the window, nothing more is taken. */
    size_t sent = 0;
    unsigned idle = 0;
    while (sent < LIMIT && idle < 2000) {
        ssize_t now = send(c.fd, all.data + sent, LIMIT - sent, MSG_NOSIGNAL);
        idle = now > 0 ? 0 : idle + 1;
        if (now > 0) sent += (size_t)now;
        turn_loop();
    }
    assert_true(sent < LIMIT);
    enum read_result result = READ_WAIT;
    while (result == READ_WAIT) {
        ssize_t now = sent < LIMIT ? send(c.fd, all.data + sent, LIMIT - sent, MSG_NOSIGNAL) : 0;
        if (now > 0) sent += (size_t)now;
        turn_loop();
        result = take(held[0], &got, 50000);
    }
    assert_int_equal(result, READ_END);
    assert_int_equal(got.len, LIMIT);
    assert_memory_equal(got.data, all.data, LIMIT);
    answer(0, 200, "all");
    client_wait(&c, 1);
    client_close(&c);
    buf_free(&all);
    buf_free(&got);
}

static void quick_body(struct server_settings *s) {
    s->body_ms = 1000;
}

static void test_expect_is_answered_when_reading_begins(void **state) {
    (void)state;
    begin(quick_body);
    struct client c;
    struct buf got = {0};
    client_open(&c);
    client_says(&c, "POST /take HTTP/1.1\r\n" HOST "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    WAIT_UNTIL(held_count == 1);
    /* The client waits for us: that is not its slowness. */
    uint64_t from = clock_mono_us();
    WAIT_UNTIL(clock_mono_us() - from > 1500000);
    (void)client_poll(&c);
    assert_int_equal(c.in.len, 0);
    assert_int_equal(take(held[0], &got, 100), READ_WAIT);
    client_wait(&c, 1);
    assert_string_equal(client_text(&c), "HTTP/1.1 100 Continue\r\n\r\n");
    client_says(&c, "body");
    assert_int_equal(take_all(held[0], &got, 100), READ_END);
    assert_true(str_eq(buf_str(&got), STR("body")));
    answer(0, 200, "ok");
    client_wait(&c, 2);
    client_close(&c);
    /* Refused without being read: no 100, and the connection ends, since nobody knows what follows. */
    client_open(&c);
    client_says(&c, "POST /take HTTP/1.1\r\n" HOST "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    WAIT_UNTIL(held_count == 2);
    answer(1, 403, "no");
    client_wait_close(&c);
    assert_int_equal(strncmp(client_text(&c), "HTTP/1.1 403", 12), 0);
    assert_non_null(strstr(client_text(&c), "Connection: close\r\n"));
    client_close(&c);
    /* Behind another request: told to go on in its turn. */
    client_open(&c);
    client_says(&c, "GET /hold HTTP/1.1\r\n" HOST "\r\nPOST /take HTTP/1.1\r\n" HOST
                    "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    WAIT_UNTIL(held_count == 4);
    buf_clear(&got);
    assert_int_equal(take(held[3], &got, 100), READ_WAIT);
    release_held(2, "earlier");
    client_wait(&c, 2);
    assert_non_null(strstr(client_text(&c), "earlierHTTP/1.1 100 Continue\r\n\r\n"));
    client_says(&c, "late");
    assert_int_equal(take_all(held[3], &got, 100), READ_END);
    answer(3, 200, "later");
    client_wait(&c, 3);
    client_close(&c);
    buf_free(&got);
}

static void test_limits(void **state) {
    (void)state;
    begin(NULL);
    struct client c;
    struct buf got = {0};
    /* Announced too large: the handler is not called. */
    expect("POST /small HTTP/1.1\r\n" HOST "Content-Length: 1001\r\n\r\n", "HTTP/1.1 413", "request entity too large");
    assert_int_equal(held_count, 0);
    /* Found out on the way. */
    char *long_text = long_request("POST /small HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3E9\r\n", 'x',
                                   1001, "\r\n0\r\n\r\n");
    client_open(&c);
    client_says(&c, long_text);
    free(long_text);
    WAIT_UNTIL(held_count == 1);
    assert_int_equal(take_all(held[0], &got, 100), READ_FAILED);
    assert_int_equal(failure(held[0]), 413);
    assert_int_equal(take(held[0], &got, 100), READ_FAILED);
    answer(0, 413, "too much");
    client_wait_close(&c);
    assert_non_null(strstr(client_text(&c), "too much"));
    client_close(&c);
    /* Malformed. */
    client_open(&c);
    client_says(&c, "POST /take HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\nzz\r\n");
    WAIT_UNTIL(held_count == 2);
    assert_int_equal(take_all(held[1], &got, 100), READ_FAILED);
    assert_int_equal(failure(held[1]), 400);
    answer(1, 400, "bad");
    client_wait_close(&c);
    client_close(&c);
    buf_free(&got);
}

static void test_a_body_that_is_too_slow(void **state) {
    (void)state;
    begin(quick_body);
    struct client c;
    struct buf got = {0};
    client_open(&c);
    client_says(&c, "POST /take HTTP/1.1\r\n" HOST "Content-Length: 10\r\n\r\nab");
    WAIT_UNTIL(held_count == 1);
    assert_int_equal(take_all(held[0], &got, 100), READ_FAILED);
    assert_int_equal(failure(held[0]), 408);
    answer(0, 408, "slow");
    client_wait_close(&c);
    assert_non_null(strstr(client_text(&c), "slow"));
    client_close(&c);
    buf_free(&got);
}

static size_t deflated(char fill, size_t n, char **out) {
    z_stream z = {0};
    size_t room = n / 500 + 200;
    char *in = malloc(n);
    *out = malloc(room);
    assert_non_null(in);
    assert_non_null(*out);
    memset(in, fill, n);
    assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, 15 + 16, 9, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (Bytef *)in;
    z.avail_in = (uInt)n;
    z.next_out = (Bytef *)*out;
    z.avail_out = (uInt)room;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    size_t len = room - z.avail_out;
    assert_int_equal(deflateEnd(&z), Z_OK);
    free(in);
    return len;
}

static void open_gzip(struct client *c, const char *path, struct str body, size_t announced) {
    char head[200];
    int n =
        snprintf(head, sizeof head, "POST %s HTTP/1.1\r\n" HOST "Content-Encoding: gzip\r\nContent-Length: %zu\r\n\r\n",
                 path, announced);
    client_open(c);
    client_send(c, str_n(head, (size_t)n));
    client_send(c, body);
}

static void test_coded(void **state) {
    (void)state;
    begin(NULL);
    struct client c;
    struct buf got = {0};
    char *packed;
    /* 16 MiB in 16 KiB come out in the pieces that are asked for, never as one. */
    size_t n = deflated('g', LIMIT / 2, &packed);
    assert_true(n < 64 * 1024);
    open_gzip(&c, "/take", str_n(packed, n), n);
    WAIT_UNTIL(held_count == 1);
    assert_int_equal(take_all(held[0], &got, 1000), READ_END);
    assert_int_equal(got.len, LIMIT / 2);
    assert_int_equal(request_body_size(held[0]), LIMIT / 2);
    size_t same = 0;
    while (same < got.len && got.data[same] == 'g') same++;
    assert_int_equal(same, LIMIT / 2);
    answer(0, 200, "whole");
    client_wait(&c, 1);
    client_close(&c);
    /* Cut short, with the length that says so. */
    buf_clear(&got);
    open_gzip(&c, "/take", str_n(packed, n - 4), n - 4);
    WAIT_UNTIL(held_count == 2);
    assert_int_equal(take_all(held[1], &got, 60000), READ_FAILED);
    assert_int_equal(failure(held[1]), 400);
    answer(1, 400, "short");
    client_wait(&c, 1);
    client_close(&c);
    /* Damaged. */
    memset(packed + n / 2, 0xff, 20);
    open_gzip(&c, "/take", str_n(packed, n), n);
    WAIT_UNTIL(held_count == 3);
    assert_int_equal(take_all(held[2], &got, 60000), READ_FAILED);
    assert_int_equal(failure(held[2]), 400);
    answer(2, 400, "damaged");
    client_wait(&c, 1);
    client_close(&c);
    free(packed);
    /* Small as sent, above the limit as decoded. */
    n = deflated('g', 1001, &packed);
    open_gzip(&c, "/small", str_n(packed, n), n);
    WAIT_UNTIL(held_count == 4);
    assert_int_equal(take_all(held[3], &got, 300), READ_FAILED);
    assert_int_equal(failure(held[3]), 413);
    answer(3, 413, "large");
    client_wait(&c, 1);
    client_close(&c);
    free(packed);
    buf_free(&got);
}

static void test_answered_before_the_body_was_read(void **state) {
    (void)state;
    begin(NULL);
    struct client c;
    /* A small rest is dropped and the connection goes on, also when the handler lingers after its answer. */
    client_open(&c);
    client_says(&c, "POST /take HTTP/1.1\r\n" HOST "Content-Length: 8\r\n\r\nabc");
    WAIT_UNTIL(held_count == 1);
    struct buf got = {0};
    WAIT_UNTIL(take(held[0], &got, 10) == READ_WAIT && got.len == 3);
    answer_text(held[0], 200, "enough");
    assert_int_equal(request_read(held[0], &got, 10), READ_GONE);
    client_wait(&c, 1);
    client_says(&c, "defghGET /hello HTTP/1.1\r\n" HOST "\r\n");
    client_wait(&c, 2);
    assert_non_null(strstr(client_text(&c), "enoughHTTP/1.1 200"));
    request_done(held[0]);
    client_says(&c, "POST /take HTTP/1.1\r\n" HOST "Content-Length: 8\r\n\r\nab");
    WAIT_UNTIL(held_count == 2);
    answer(1, 200, "none");
    client_says(&c, "cdefghGET /hello HTTP/1.1\r\n" HOST "\r\n");
    client_wait(&c, 4);
    client_close(&c);
    /* A large rest is not waited for: the answer arrives, then the connection ends. */
    client_open(&c);
    client_says(&c, "POST /take HTTP/1.1\r\n" HOST "Content-Length: 1000000\r\n\r\nabc");
    WAIT_UNTIL(held_count == 3);
    answer(2, 409, "stop");
    char *rest = calloc(1, 300000);
    client_send(&c, str_n(rest, 300000));
    free(rest);
    client_wait_close(&c);
    assert_int_equal(strncmp(client_text(&c), "HTTP/1.1 409", 12), 0);
    assert_non_null(strstr(client_text(&c), "stop"));
    client_close(&c);
    /* So is one of unknown length. */
    client_open(&c);
    client_says(&c, "POST /take HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    WAIT_UNTIL(held_count == 4);
    answer(3, 409, "stop");
    client_wait_close(&c);
    assert_non_null(strstr(client_text(&c), "Connection: close\r\n"));
    client_close(&c);
    /* Without an answer: 500. */
    client_open(&c);
    client_says(&c, "POST /take HTTP/1.1\r\n" HOST "Content-Length: 5\r\n\r\nabc");
    WAIT_UNTIL(held_count == 5);
    request_done(held[4]);
    client_wait(&c, 1);
    assert_int_equal(strncmp(client_text(&c), "HTTP/1.1 500", 12), 0);
    /* The rest that never comes does not keep the connection. */
    client_close(&c);
    buf_free(&got);
}

static void test_a_client_that_leaves_or_only_listens(void **state) {
    (void)state;
    begin(NULL);
    struct client c;
    struct buf got = {0};
    /* Gone in the middle. */
    client_open(&c);
    client_says(&c, "POST /take HTTP/1.1\r\n" HOST "Content-Length: 10\r\n\r\nab");
    WAIT_UNTIL(held_count == 1);
    WAIT_UNTIL(take(held[0], &got, 10) == READ_WAIT && got.len == 2);
    request_on_readable(held[0], on_readable, NULL);
    client_close(&c);
    WAIT_UNTIL(cancelled == 1);
    assert_int_equal(cancelled_why, ERR_CANCELLED);
    assert_int_equal(woken, 0);
    /* All was sent and the sending side closed, while the handler holds the body up: nothing of it is lost. */
    char *large = long_request("POST /take HTTP/1.1\r\n" HOST "Content-Length: 200000\r\n\r\n", 'h', 200000, "");
    client_open(&c);
    client_says(&c, large);
    free(large);
    WAIT_UNTIL(held_count == 2);
    assert_int_equal(shutdown(c.fd, SHUT_WR), 0);
    for (int i = 0; i < 100; i++) turn_loop();
    buf_clear(&got);
    assert_int_equal(take_all(held[1], &got, 1000), READ_END);
    assert_int_equal(got.len, 200000);
    answer(1, 200, "all of it");
    client_wait_close(&c);
    assert_non_null(strstr(client_text(&c), "all of it"));
    client_close(&c);
    buf_free(&got);
}

static void quick_request(struct server_settings *s) {
    s->request_ms = 1000;
}

/* It stands still while it waits for bytes, and runs while it does not. */
static void test_the_time_of_a_handler(void **state) {
    (void)state;
    begin(quick_request);
    struct client c;
    struct buf got = {0};
    client_open(&c);
    client_says(&c, "POST /take HTTP/1.1\r\n" HOST "Content-Length: 10\r\n\r\n");
    WAIT_UNTIL(held_count == 1);
    assert_int_equal(request_read(held[0], &got, 10), READ_WAIT);
    uint64_t from = clock_mono_us();
    WAIT_UNTIL(clock_mono_us() - from > 1500000);
    assert_int_equal(cancelled, 0);
    client_says(&c, "0123456789");
    assert_int_equal(take_all(held[0], &got, 10), READ_END);
    WAIT_UNTIL(cancelled == 1);
    assert_int_equal(cancelled_why, ERR_DEADLINE);
    client_close(&c);
    buf_free(&got);
}

static void one_at_once(struct server_settings *s) {
    s->max_in_flight = 1;
}

static void test_counted_among_the_requests_in_flight(void **state) {
    (void)state;
    begin(one_at_once);
    struct client c, other;
    client_open(&c);
    client_says(&c, "POST /take HTTP/1.1\r\n" HOST "Content-Length: 10\r\n\r\n");
    WAIT_UNTIL(held_count == 1);
    client_open(&other);
    client_says(&other, "POST /take HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\nab");
    client_wait_close(&other);
    assert_int_equal(strncmp(client_text(&other), "HTTP/1.1 503", 12), 0);
    client_close(&other);
    client_close(&c);
    WAIT_UNTIL(cancelled == 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_pieces, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_sender_is_held_up_until_the_handler_reads, setup, teardown),
        cmocka_unit_test_setup_teardown(test_expect_is_answered_when_reading_begins, setup, teardown),
        cmocka_unit_test_setup_teardown(test_limits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_body_that_is_too_slow, setup, teardown),
        cmocka_unit_test_setup_teardown(test_coded, setup, teardown),
        cmocka_unit_test_setup_teardown(test_answered_before_the_body_was_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_client_that_leaves_or_only_listens, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_time_of_a_handler, setup, teardown),
        cmocka_unit_test_setup_teardown(test_counted_among_the_requests_in_flight, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
