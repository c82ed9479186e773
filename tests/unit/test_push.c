// link: http
/* WebSockets and event streams over real sockets: the handshake, messages and their answers, bounds, and every way to
 * end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "http/push.h"
#include "http_fixture.h"
#include "runtime/metrics.h"

#define FIN 0x80u
#define HANDSHAKE                                                                                                      \
    "GET /ws HTTP/1.1\r\nHost: t\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"                         \
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

/* What the server's side of the tests has. */
static struct push *sockets[8];
static unsigned opened, closed_count, closed_code, messages;
static struct buf got;
static bool pausing;
static struct push_settings set;

static void on_message(void *data, struct str payload, enum ws_opcode opcode) {
    struct push **p = data;
    assert_int_equal(opcode, WS_TEXT);
    messages++;
    assert_true(buf_add(&got, payload) && buf_byte(&got, '|'));
    if (str_eq(payload, STR("bye"))) {
        push_close(*p, 4000, STR("you said so"));
    } else if (pausing) {
        push_pause(*p);
    } else {
        struct push_message *m = push_message_new(payload, STR("echo"));
        assert_non_null(m);
        assert_true(push_send(*p, m, STR("7")));
        push_message_free(m);
    }
}

static void on_closed(void *data, unsigned code, struct str reason) {
    (void)reason;
    struct push **p = data;
    assert_non_null(*p);
    *p = NULL;
    closed_count++;
    closed_code = code;
}

static unsigned rooms;
static void on_room(void *data) {
    (void)data;
    rooms++;
}

static void on_upgrade(struct request *r, void *data) {
    (void)data;
    int status;
    struct push **p = &sockets[opened];
    struct push_handler handler = {.message = on_message, .closed = on_closed, .room = on_room, .data = p};
    bool events = str_eq(request_path(r), STR("/events"));
    struct header extra = {STR("X-Extra"), STR("yes")};
    *p = events ? push_events(r, &set, &handler, &extra, 1, &status)
                : push_websocket(r, &set, &handler, request_header(r, STR("Sec-WebSocket-Protocol")), &status);
    if (*p)
        opened++;
    else
        assert_true(request_refuse(r, status, STR("no"), false));
    request_done(r);
}

static struct request *waiting;
static void on_late(struct request *r, void *data) {
    (void)data;
    waiting = r;
}

static void begin(void) {
    push_settings_default(&set);
    start(NULL);
    route(HTTP_M_GET, "/ws", on_upgrade, NULL);
    route(HTTP_M_GET, "/events", on_upgrade, NULL);
    route(HTTP_M_GET, "/late", on_late, NULL);
    memset(sockets, 0, sizeof sockets);
    opened = closed_count = closed_code = messages = rooms = 0;
    pausing = false;
    buf_clear(&got);
}

static const char *got_text(void) {
    assert_true(buf_byte(&got, '\0'));
    got.len--;
    return got.data;
}

/* The client's side. */

static void frame(struct buf *b, unsigned first, struct str payload) {
    assert_true(buf_byte(b, (char)first));
    if (payload.len < 126) {
        assert_true(buf_byte(b, (char)(0x80 | payload.len)));
    } else {
        assert_true(buf_byte(b, (char)(0x80 | 126)) && buf_byte(b, (char)(payload.len >> 8)) &&
                    buf_byte(b, (char)payload.len));
    }
    static const char mask[] = {1, 2, 3, 4};
    assert_true(buf_add(b, str_n(mask, 4)));
    for (size_t i = 0; i < payload.len; i++) assert_true(buf_byte(b, (char)(payload.at[i] ^ mask[i & 3])));
}

static void says(struct client *c, unsigned first, struct str payload) {
    struct buf b = {0};
    frame(&b, first, payload);
    client_send(c, buf_str(&b));
    buf_free(&b);
}

static void drop_head(struct client *c) {
    const char *end = strstr(client_text(c), "\r\n\r\n");
    assert_non_null(end);
    size_t n = (size_t)(end - c->in.data) + 4;
    memmove(c->in.data, c->in.data + n, c->in.len - n);
    c->in.len -= n;
}

static void upgrade(struct client *c) {
    client_open(c);
    unsigned before = opened;
    client_says(c, HANDSHAKE);
    WAIT_UNTIL(((void)client_poll(c), opened == before + 1 && strstr(client_text(c), "\r\n\r\n")));
    assert_int_equal(strncmp(client_text(c), "HTTP/1.1 101 ", 13), 0);
    drop_head(c);
}

/* Waits until exactly these bytes have come, and forgets them. */
static void hears(struct client *c, struct str bytes) {
    WAIT_UNTIL(((void)client_poll(c), c->in.len >= bytes.len || c->eof));
    assert_true(c->in.len >= bytes.len);
    assert_memory_equal(c->in.data, bytes.at, bytes.len);
    memmove(c->in.data, c->in.data + bytes.len, c->in.len - bytes.len);
    c->in.len -= bytes.len;
}

/* ---- the handshake ---- */

static void test_handshake(void **state) {
    (void)state;
    begin();
    struct client c;
    client_open(&c);
    client_says(&c, HANDSHAKE);
    WAIT_UNTIL(((void)client_poll(&c), strstr(client_text(&c), "\r\n\r\n")));
    const char *head = client_text(&c);
    assert_int_equal(strncmp(head, "HTTP/1.1 101 Switching Protocols\r\n", 34), 0);
    assert_non_null(strstr(head, "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
    assert_non_null(strstr(head, "\r\nUpgrade: websocket\r\n"));
    assert_non_null(strstr(head, "\r\nConnection: Upgrade\r\n"));
    assert_null(strstr(head, "Sec-WebSocket-Protocol"));
    client_close(&c);
    WAIT_UNTIL(closed_count == 1);
    assert_int_equal(closed_code, WS_ABNORMAL);
}

static void test_refused_handshakes(void **state) {
    (void)state;
    begin();
#define WS(method, version, upgrade, connection, ws_version, key)                                                      \
    method " /ws HTTP/" version "\r\nHost: t\r\nUpgrade: " upgrade "\r\nConnection: " connection                       \
           "\r\nSec-WebSocket-Version: " ws_version "\r\nSec-WebSocket-Key: " key "\r\n\r\n"
#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
    expect(WS("GET", "1.1", "websocket", "Upgrade", "8", KEY), "HTTP/1.1 426 ", NULL);
    expect(WS("GET", "1.1", "websocket", "Upgrade", "13, 8", KEY), "HTTP/1.1 426 ", NULL);
    expect(WS("GET", "1.1", "websocket", "Upgrade", "13", "short"), "HTTP/1.1 400 ", NULL);
    expect(WS("GET", "1.1", "h2c", "Upgrade", "13", KEY), "HTTP/1.1 400 ", NULL);
    expect(WS("GET", "1.1", "websocket", "keep-alive", "13", KEY), "HTTP/1.1 400 ", NULL);
    expect(WS("GET", "1.0", "websocket", "Upgrade", "13", KEY), "HTTP/1.1 400 ", NULL);
    expect("GET /ws HTTP/1.1\r\n" HOST "\r\n", "HTTP/1.1 400 ", NULL);
    /* Another request behind it: its answer would stand in the middle of the frames. */
    struct client c;
    client_open(&c);
    client_says(&c, "GET /late HTTP/1.1\r\n" HOST "\r\n" HANDSHAKE);
    WAIT_UNTIL(waiting != NULL);
    answer_text(waiting, 200, "late");
    request_done(waiting);
    waiting = NULL;
    client_wait(&c, 2);
    assert_non_null(strstr(client_text(&c), "HTTP/1.1 400 "));
    client_close(&c);
    assert_int_equal(opened, 0);
}

static void test_after_other_requests(void **state) {
    (void)state;
    begin();
    struct client c;
    client_open(&c);
    client_says(&c, "GET /big HTTP/1.1\r\n" HOST "\r\n");
    client_wait(&c, 1);
    c.in.len = c.counted = 0;
    client_says(&c, HANDSHAKE);
    WAIT_UNTIL(((void)client_poll(&c), strstr(client_text(&c), "\r\n\r\n")));
    drop_head(&c);
    says(&c, FIN | WS_TEXT, STR("hi"));
    hears(&c, STR("\x81\x02hi"));
    client_close(&c);
    WAIT_UNTIL(closed_count == 1);
}

static void test_frames_sent_with_the_handshake(void **state) {
    (void)state;
    begin();
    struct buf b = {0};
    struct client c;
    client_open(&c);
    assert_true(buf_add(&b, STR(HANDSHAKE)));
    frame(&b, FIN | WS_TEXT, STR("early"));
    client_send(&c, buf_str(&b));
    buf_free(&b);
    WAIT_UNTIL(((void)client_poll(&c), c.in.len && memmem(c.in.data, c.in.len,
                                                          "\x81\x05"
                                                          "early",
                                                          7)));
    client_close(&c);
    WAIT_UNTIL(closed_count == 1);
}

/* ---- talking ---- */

static void test_messages(void **state) {
    (void)state;
    begin();
    struct client c;
    upgrade(&c);
    says(&c, FIN | WS_TEXT, STR("hello"));
    hears(&c, STR("\x81\x05hello"));
    says(&c, WS_TEXT, STR("one "));
    says(&c, FIN | WS_PING, STR("are you there"));
    says(&c, FIN | WS_CONTINUATION, STR("two"));
    hears(&c, STR("\x8a\x0d"
                  "are you there"
                  "\x81\x07"
                  "one two"));
    says(&c, FIN | WS_CLOSE, STR("\x03\xe8"));
    hears(&c, STR("\x88\x02\x03\xe8"));
    client_wait_close(&c);
    assert_int_equal(closed_count, 1);
    assert_int_equal(closed_code, 1000);
    client_close(&c);
}

static void test_close_without_code(void **state) {
    (void)state;
    begin();
    struct client c;
    upgrade(&c);
    says(&c, FIN | WS_CLOSE, STR(""));
    hears(&c, STR("\x88\x00"));
    client_wait_close(&c);
    assert_int_equal(closed_code, WS_NO_CODE);
    client_close(&c);
}

static void test_closed_by_us(void **state) {
    (void)state;
    begin();
    struct client c;
    upgrade(&c);
    says(&c, FIN | WS_TEXT, STR("bye"));
    says(&c, FIN | WS_TEXT, STR("not heard any more"));
    hears(&c, STR("\x88\x0d\x0f\xa0you said so"));
    client_wait_close(&c);
    assert_int_equal(messages, 1);
    assert_int_equal(closed_code, 4000);
    client_close(&c);
}

static void test_broken_frames(void **state) {
    (void)state;
    begin();
    static const struct {
        const char *bytes;
        size_t n;
        unsigned code;
    } cases[] = {
        {"\x81\x02hi", 4, WS_PROTOCOL_ERROR}, /* no mask */
        {"\x82\x80"
         "abcd",
         6, WS_UNSUPPORTED},                              /* binary */
        {"\x81\x81\x00\x00\x00\x00\xff", 7, WS_BAD_DATA}, /* not UTF-8 */
        {"\x81\xff\x00\x00\x00\x00\x00\x01\x00\x01"
         "abcd",
         14, WS_TOO_BIG}, /* 64 KiB and one */
        {"\xc1\x80"
         "abcd",
         6, WS_PROTOCOL_ERROR},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct client c;
        upgrade(&c);
        client_send(&c, str_n(cases[i].bytes, cases[i].n));
        client_wait_close(&c);
        assert_true(c.in.len >= 4);
        assert_int_equal((uint8_t)c.in.data[0], 0x88);
        assert_int_equal((unsigned)(uint8_t)c.in.data[2] << 8 | (uint8_t)c.in.data[3], cases[i].code);
        assert_int_equal(closed_count, i + 1);
        client_close(&c);
    }
    assert_int_equal(messages, 0);
}

/* While a handler is at work nothing else of that client is read, and nothing is lost. */
static void test_pause(void **state) {
    (void)state;
    begin();
    pausing = true;
    struct client c;
    upgrade(&c);
    struct buf b = {0};
    for (int i = 0; i < 5; i++) frame(&b, FIN | WS_TEXT, str_n("abcde" + i, 1));
    client_send(&c, buf_str(&b));
    WAIT_UNTIL(messages == 1);
    for (int i = 0; i < 20; i++) turn_loop();
    assert_int_equal(messages, 1);
    for (unsigned i = 2; i <= 5; i++) {
        push_resume(sockets[0]);
        WAIT_UNTIL(messages == i);
    }
    assert_string_equal(got_text(), "a|b|c|d|e|");
    buf_free(&b);
    client_close(&c);
    push_resume(sockets[0]);
    WAIT_UNTIL(closed_count == 1);
}

static void test_half_closed(void **state) {
    (void)state;
    begin();
    struct client c;
    upgrade(&c);
    says(&c, FIN | WS_TEXT, STR("last"));
    hears(&c, STR("\x81\x04last"));
    assert_int_equal(shutdown(c.fd, SHUT_WR), 0);
    client_wait_close(&c);
    assert_int_equal(closed_code, WS_ABNORMAL);
    client_close(&c);
}

/* ---- bounds ---- */

static void test_slow_reader(void **state) {
    (void)state;
    begin();
    struct client slow, well;
    upgrade(&slow);
    upgrade(&well);
    size_t n = 60000;
    char *text = malloc(n);
    assert_non_null(text);
    memset(text, 'x', n);
    struct push_message *m = push_message_new(str_n(text, n), STR("big"));
    assert_non_null(m);
    unsigned sent = 0, heard = 0;
    uint64_t from = clock_mono_us();
    while (sockets[0] && clock_mono_us() - from < LIMIT_US) {
        bool taken = push_send(sockets[0], m, (struct str){0});
        assert_true(taken || !sockets[0]);
        assert_true(push_send(sockets[1], m, (struct str){0}));
        sent++;
        size_t wanted = (size_t)sent * (n + 4);
        WAIT_UNTIL(((void)client_poll(&well), well.in.len == wanted));
        heard++;
    }
    push_message_free(m);
    free(text);
    assert_null(sockets[0]);
    assert_int_equal(closed_code, WS_TRY_LATER);
    assert_int_equal(closed_count, 1);
    assert_int_equal(sent, heard);
    assert_true((size_t)sent * n > set.queue_bytes);
    /* What it was sent is whole to the last frame, which says why. */
    WAIT_UNTIL(((void)client_poll(&slow), slow.eof));
    const char *end = slow.in.data + slow.in.len - 15;
    assert_memory_equal(end, "\x88\x0d\x03\xf5slow reader", 15);
    assert_int_equal((slow.in.len - 15) % (n + 4), 0);
    client_close(&slow);
    client_close(&well);
    WAIT_UNTIL(closed_count == 2);
}

static void test_pings(void **state) {
    (void)state;
    begin();
    set.ping_ms = 100;
    set.silence_ms = 3000;
    struct client deaf, well;
    upgrade(&deaf);
    upgrade(&well);
    unsigned pings = 0;
    uint64_t from = clock_mono_us();
    while (closed_count == 0 && clock_mono_us() - from < LIMIT_US) {
        turn_loop();
        (void)client_poll(&well);
        if (well.in.len < 2) continue;
        hears(&well, STR("\x89\x00"));
        says(&well, FIN | WS_PONG, STR(""));
        pings++;
    }
    assert_true(pings >= 2);
    assert_null(sockets[0]);
    assert_non_null(sockets[1]);
    client_close(&deaf);
    client_close(&well);
    WAIT_UNTIL(closed_count == 2);
}

static void test_too_many_pings(void **state) {
    (void)state;
    begin();
    set.pings = 20;
    struct client c;
    upgrade(&c);
    for (int i = 0; i < 21; i++) says(&c, FIN | WS_PING, STR("p"));
    for (int i = 0; i < 20; i++) hears(&c, STR("\x8a\x01p"));
    hears(&c, STR("\x88\x10\x03\xf0too many pings"));
    client_wait_close(&c);
    assert_int_equal(closed_code, WS_POLICY);
    client_close(&c);
}

/* A producer that would fill the queue waits for room instead. */
static void test_room(void **state) {
    (void)state;
    begin();
    struct client c;
    upgrade(&c);
    size_t n = 60000;
    char *text = malloc(n);
    assert_non_null(text);
    memset(text, 'x', n);
    struct push_message *m = push_message_new(str_n(text, n), (struct str){0});
    free(text);
    while (push_queued(sockets[0]) < set.queue_bytes / 2) {
        assert_true(push_send(sockets[0], m, (struct str){0}));
        turn_loop();
    }
    push_on_room(sockets[0], 1000);
    for (int i = 0; i < 5; i++) turn_loop();
    assert_int_equal(rooms, 0);
    WAIT_UNTIL(((void)client_poll(&c), rooms == 1));
    assert_true(push_queued(sockets[0]) <= 1000);
    push_message_free(m);
    client_close(&c);
    WAIT_UNTIL(closed_count == 1);
    assert_int_equal(rooms, 1);
}

/* ---- event streams ---- */

static void test_events(void **state) {
    (void)state;
    begin();
    struct client c;
    client_open(&c);
    client_says(&c, "GET /events HTTP/1.1\r\n" HOST "\r\n");
    WAIT_UNTIL(((void)client_poll(&c), strstr(client_text(&c), "retry: 3000\n\n")));
    const char *head = client_text(&c);
    assert_int_equal(strncmp(head, "HTTP/1.1 200 OK\r\n", 17), 0);
    assert_non_null(strstr(head, "\r\nContent-Type: text/event-stream; charset=utf-8\r\n"));
    assert_non_null(strstr(head, "\r\nX-Accel-Buffering: no\r\n"));
    assert_non_null(strstr(head, "\r\nConnection: close\r\n"));
    assert_non_null(strstr(head, "\r\nX-Extra: yes\r\n"));
    drop_head(&c);
    hears(&c, STR("retry: 3000\n\n"));
    struct push_message *m = push_message_new(STR("{\"a\":1}"), STR("notice.new"));
    assert_true(push_send(sockets[0], m, STR("1-0")));
    hears(&c, STR("id: 1-0\nevent: notice.new\ndata: {\"a\":1}\n\n"));
    push_message_free(m);
    /* No line of a text can pass for a line of the protocol. */
    m = push_message_new(STR("one\nid: 9\r\ntwo\rthree\n"), (struct str){0});
    assert_true(push_send(sockets[0], m, (struct str){0}));
    hears(&c, STR("data: one\ndata: id: 9\ndata: two\ndata: three\ndata: \n\n"));
    push_message_free(m);
    client_says(&c, "whatever a client says here is nothing to us");
    push_close(sockets[0], 1000, STR(""));
    client_wait_close(&c);
    assert_int_equal(closed_count, 1);
    client_close(&c);
}

static void test_event_heartbeat(void **state) {
    (void)state;
    begin();
    set.ping_ms = 100;
    struct client c;
    client_open(&c);
    client_says(&c, "GET /events HTTP/1.1\r\n" HOST "\r\n");
    WAIT_UNTIL(((void)client_poll(&c), strstr(client_text(&c), "\n\n:\n\n:\n\n")));
    client_close(&c);
    WAIT_UNTIL(closed_count == 1);
}

/* The kernel takes all that the client does not: only what is acknowledged tells. */
static void test_event_client_that_takes_nothing(void **state) {
    (void)state;
    begin();
    set.ping_ms = 100;
    set.silence_ms = 3000;
    struct client gone, well;
    client_open_narrow(&gone, 4096);
    client_says(&gone, "GET /events HTTP/1.1\r\n" HOST "\r\n");
    WAIT_UNTIL(sockets[0] != NULL);
    client_open(&well);
    client_says(&well, "GET /events HTTP/1.1\r\n" HOST "\r\n");
    WAIT_UNTIL(sockets[1] != NULL);
    static char text[65536];
    memset(text, 'x', sizeof text);
    struct push_message *m = push_message_new(str_n(text, sizeof text), STR("news"));
    assert_true(push_send(sockets[0], m, STR("")) && push_send(sockets[1], m, STR("")));
    push_message_free(m);
    WAIT_UNTIL(push_queued(sockets[0]) == 0);
    WAIT_UNTIL(((void)client_poll(&well), closed_count == 1));
    assert_null(sockets[0]);
    assert_int_equal(push_queued(sockets[1]), 0);
    /* Who takes its lines stays, however long nothing else is sent. */
    size_t before = well.in.len;
    WAIT_UNTIL(((void)client_poll(&well), well.in.len > before + (size_t)3 * 8));
    assert_int_equal(closed_count, 1);
    client_close(&gone);
    client_close(&well);
    WAIT_UNTIL(closed_count == 2);
}

static void test_stop(void **state) {
    (void)state;
    begin();
    struct client c, e;
    upgrade(&c);
    client_open(&e);
    client_says(&e, "GET /events HTTP/1.1\r\n" HOST "\r\n");
    WAIT_UNTIL(((void)client_poll(&e), strstr(client_text(&e), "retry: 3000\n\n")));
    server_stop_listening(server);
    client_wait_close(&c);
    client_wait_close(&e);
    assert_memory_equal(c.in.data, "\x88\x16\x03\xe9server is restarting", 24);
    assert_int_equal(closed_count, 2);
    client_close(&c);
    client_close(&e);
}

/* One message to many: it is held once, and what an idle connection costs is printed. */
static void test_many(void **state) {
    (void)state;
    begin();
    enum { MANY = 8 };
    struct client c[MANY];
    for (int i = 0; i < MANY; i++) upgrade(&c[i]);
    struct push_message *m = push_message_new(STR("to all"), (struct str){0});
    for (int i = 0; i < MANY; i++) assert_true(push_send(sockets[i], m, (struct str){0}));
    push_message_free(m); /* the queues hold what they need of it */
    for (int i = 0; i < MANY; i++) hears(&c[i], STR("\x81\x06to all"));
    for (int i = 0; i < MANY; i++) client_close(&c[i]);
    WAIT_UNTIL(closed_count == MANY);
}

static int end_all(void **state) {
    buf_free(&got);
    return teardown(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_handshake, setup, end_all),
        cmocka_unit_test_setup_teardown(test_refused_handshakes, setup, end_all),
        cmocka_unit_test_setup_teardown(test_after_other_requests, setup, end_all),
        cmocka_unit_test_setup_teardown(test_frames_sent_with_the_handshake, setup, end_all),
        cmocka_unit_test_setup_teardown(test_messages, setup, end_all),
        cmocka_unit_test_setup_teardown(test_close_without_code, setup, end_all),
        cmocka_unit_test_setup_teardown(test_closed_by_us, setup, end_all),
        cmocka_unit_test_setup_teardown(test_broken_frames, setup, end_all),
        cmocka_unit_test_setup_teardown(test_pause, setup, end_all),
        cmocka_unit_test_setup_teardown(test_half_closed, setup, end_all),
        cmocka_unit_test_setup_teardown(test_slow_reader, setup, end_all),
        cmocka_unit_test_setup_teardown(test_pings, setup, end_all),
        cmocka_unit_test_setup_teardown(test_too_many_pings, setup, end_all),
        cmocka_unit_test_setup_teardown(test_room, setup, end_all),
        cmocka_unit_test_setup_teardown(test_events, setup, end_all),
        cmocka_unit_test_setup_teardown(test_event_heartbeat, setup, end_all),
        cmocka_unit_test_setup_teardown(test_event_client_that_takes_nothing, setup, end_all),
        cmocka_unit_test_setup_teardown(test_stop, setup, end_all),
        cmocka_unit_test_setup_teardown(test_many, setup, end_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
