// link: http
/* RFC 6455 as a list of cases: what a client sends, and what comes of it. Each case is fed whole, byte by byte, and in
 * threes: the events must be the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>

#include "http/websocket.h"

#define FIN 0x80u

static struct buf in;

/* Adds a masked frame; `length` is what its head says, in `form` (0: the shortest, 2, 8). */
static void add_head(unsigned first, uint64_t length, unsigned form, bool masked) {
    assert_true(buf_byte(&in, (char)first));
    unsigned bit = masked ? 0x80 : 0;
    if (form == 0) form = length <= 125 ? 1 : length <= 0xffff ? 2 : 8;
    assert_true(buf_byte(&in, (char)(bit | (form == 1 ? (unsigned)length : form == 2 ? 126u : 127u))));
    for (unsigned i = form == 1 ? 0 : form; i-- > 0;) assert_true(buf_byte(&in, (char)(length >> (8 * i))));
    if (masked) assert_true(buf_add(&in, STR("\x11\xa2\x33\xf4")));
}

static void add_payload(struct str payload) {
    static const unsigned char mask[] = {0x11, 0xa2, 0x33, 0xf4};
    for (size_t i = 0; i < payload.len; i++) assert_true(buf_byte(&in, (char)(payload.at[i] ^ mask[i & 3])));
}

static void add(unsigned first, struct str payload) {
    add_head(first, payload.len, 0, true);
    add_payload(payload);
}

static struct ws_limits limits = {.message = 1 << 20, .fragments = 100};

/* The events as text, long payloads as their length. */
static void run(struct buf *out, size_t step) {
    struct ws_parser p;
    ws_parser_init(&p, &limits);
    char *copy = malloc(in.len ? in.len : 1);
    assert_non_null(copy);
    if (in.len) memcpy(copy, in.data, in.len);
    for (size_t at = 0; at < in.len; at += step) {
        size_t n = in.len - at < step ? in.len - at : step, done = 0;
        while (true) {
            size_t used;
            enum ws_event event = ws_feed(&p, copy + at + done, n - done, &used);
            done += used;
            assert_true(done <= n);
            if (event == WS_MORE) break;
            struct str text = p.payload;
            static const char names[] = {[WS_MESSAGE] = 'M', [WS_PINGED] = 'P', [WS_PONGED] = 'O', [WS_CLOSED] = 'C'};
            if (event == WS_BAD)
                assert_true(buf_printf(out, "!%u ", p.code));
            else if (event == WS_CLOSED)
                assert_true(buf_printf(out, "C%u:%.*s ", p.code, STR_FMT(text)));
            else if (text.len > 100)
                assert_true(buf_printf(out, "%c#%zu ", names[event], text.len));
            else
                assert_true(buf_printf(out, "%c%s:%.*s ", names[event],
                                       event == WS_MESSAGE && p.opcode == WS_BINARY ? "b" : "", (int)text.len,
                                       text.at ? text.at : ""));
        }
        assert_int_equal(done, n);
    }
    ws_parser_free(&p);
    free(copy);
    if (out->len && out->data[out->len - 1] == ' ') out->len--;
    assert_true(buf_byte(out, '\0'));
}

static void expect(const char *wanted) {
    static const size_t steps[] = {SIZE_MAX / 2, 1, 3, 4096};
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        struct buf out = {0};
        if (steps[i] == 1 && in.len > 200000) continue;
        run(&out, steps[i]);
        assert_string_equal(out.data, wanted);
        buf_free(&out);
    }
    buf_clear(&in);
}

static int tidy(void **state) {
    (void)state;
    buf_free(&in);
    limits = (struct ws_limits){.message = 1 << 20, .fragments = 100};
    return 0;
}

static void test_accept(void **state) {
    (void)state;
    char out[WS_ACCEPT_LEN + 1] = "";
    assert_true(ws_accept(STR("dGhlIHNhbXBsZSBub25jZQ=="), out));
    assert_string_equal(out, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    static const char *const bad[] = {"",
                                      "dGhlIHNhbXBsZSBub25jZQ=",
                                      "dGhlIHNhbXBsZSBub25jZQ",
                                      "dGhlIHNhbXBsZSBub25jZQ===",
                                      "dGhlIHNhbXBsZSBub25j*Q==",
                                      "dGhlIHNhbXBsZSBub25jZSBhbmQgbW9yZQ=="};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) assert_false(ws_accept(str_of(bad[i]), out));
}

static void test_messages(void **state) {
    (void)state;
    add(FIN | WS_TEXT, STR("hello"));
    expect("M:hello");
    add(FIN | WS_TEXT, STR(""));
    add(FIN | WS_BINARY, STR("\x01\x02"));
    add(FIN | WS_TEXT, STR("b"));
    expect("M: Mb:\x01\x02 M:b");
    limits.text_only = true;
    add(FIN | WS_BINARY, STR("a"));
    add(FIN | WS_TEXT, STR("never seen"));
    expect("!1003");
}

static void test_lengths(void **state) {
    (void)state;
    static const struct {
        size_t n;
        const char *wanted;
    } cases[] = {{125, "M#125"},     {126, "M#126"},     {127, "M#127"},
                 {65535, "M#65535"}, {65536, "M#65536"}, {1 << 20, "M#1048576"}};
    char *text = malloc(1 << 20);
    assert_non_null(text);
    memset(text, 'x', 1 << 20);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        add(FIN | WS_TEXT, str_n(text, cases[i].n));
        expect(cases[i].wanted);
    }
    free(text);
    add_head(FIN | WS_TEXT, (1 << 20) + 1, 0, true); /* refused by its head alone */
    expect("!1009");
    add_head(FIN | WS_TEXT, UINT64_C(1) << 63, 8, true);
    expect("!1002");
    add_head(FIN | WS_TEXT, UINT64_MAX, 8, true);
    expect("!1002");
    add_head(FIN | WS_TEXT, INT64_MAX, 8, true);
    expect("!1009");
    add_head(FIN | WS_TEXT, 125, 2, true); /* longer forms than needed */
    expect("!1002");
    add_head(FIN | WS_TEXT, 65535, 8, true);
    expect("!1002");
    add_head(FIN | WS_TEXT, 0, 2, true);
    expect("!1002");
    limits.message = 10;
    add(WS_TEXT, STR("123456"));
    add_head(FIN | WS_CONTINUATION, 5, 0, true); /* over it only together */
    expect("!1009");
}

static void test_fragments(void **state) {
    (void)state;
    add(WS_TEXT, STR("one "));
    add(WS_CONTINUATION, STR("two "));
    add(FIN | WS_CONTINUATION, STR("three"));
    expect("M:one two three");
    add(WS_TEXT, STR(""));
    add(WS_CONTINUATION, STR(""));
    add(FIN | WS_CONTINUATION, STR(""));
    add(WS_TEXT, STR(""));
    add(FIN | WS_CONTINUATION, STR("late"));
    expect("M: M:late");
    /* Control frames stand between fragments. */
    add(WS_TEXT, STR("a"));
    add(FIN | WS_PING, STR("p"));
    add(WS_CONTINUATION, STR("b"));
    add(FIN | WS_PONG, STR(""));
    add(FIN | WS_CONTINUATION, STR("c"));
    expect("P:p O: M:abc");
    add(WS_TEXT, STR("a"));
    add(FIN | WS_CLOSE, STR("\x03\xe8"));
    add(FIN | WS_CONTINUATION, STR("c"));
    expect("C1000:");
    add(FIN | WS_CONTINUATION, STR("a"));
    expect("!1002");
    add(WS_CONTINUATION, STR("a"));
    expect("!1002");
    add(WS_TEXT, STR("a"));
    add(FIN | WS_TEXT, STR("b"));
    expect("!1002");
    add(WS_TEXT, STR("a"));
    add(FIN | WS_CONTINUATION, STR("b"));
    add(FIN | WS_CONTINUATION, STR("c"));
    expect("M:ab !1002");
    limits.fragments = 3;
    add(WS_TEXT, STR("a"));
    add(WS_CONTINUATION, STR("b"));
    add(FIN | WS_CONTINUATION, STR("c"));
    add(WS_TEXT, STR("a"));
    for (int i = 0; i < 3; i++) add(WS_CONTINUATION, STR("b"));
    expect("M:abc !1008");
}

static void test_framing(void **state) {
    (void)state;
    for (unsigned bit = 0x10; bit <= 0x40; bit <<= 1) {
        add(FIN | bit | WS_TEXT, STR("a"));
        expect("!1002");
        add(FIN | bit | WS_PING, STR(""));
        expect("!1002");
    }
    static const unsigned reserved[] = {3, 4, 5, 6, 7, 11, 12, 13, 14, 15};
    for (size_t i = 0; i < sizeof reserved / sizeof reserved[0]; i++) {
        add(FIN | reserved[i], STR(""));
        expect("!1002");
    }
    add_head(FIN | WS_TEXT, 1, 0, false); /* not masked */
    assert_true(buf_byte(&in, 'a'));
    expect("!1002");
    add(WS_PING, STR("")); /* fragmented control frames */
    expect("!1002");
    add(WS_CLOSE, STR(""));
    expect("!1002");
    char long_text[126];
    memset(long_text, 'p', sizeof long_text);
    add(FIN | WS_PING, str_n(long_text, 125));
    expect("P#125");
    add(FIN | WS_PING, str_n(long_text, 126));
    expect("!1002");
    add(FIN | WS_PONG, STR("unasked for"));
    expect("O:unasked for");
}

static void test_close(void **state) {
    (void)state;
    add(FIN | WS_CLOSE, STR(""));
    expect("C1005:");
    add(FIN | WS_CLOSE, STR("\x03\xe8"
                            "bye"));
    add(FIN | WS_TEXT, STR("after the end"));
    expect("C1000:bye");
    add(FIN | WS_CLOSE, STR("\x03"));
    expect("!1002");
    add(FIN | WS_CLOSE, STR("\x03\xe8"
                            "bad \xce"));
    expect("!1007");
    add(FIN | WS_CLOSE, STR("\x03\xe8\xed\xa0\x80"));
    expect("!1007");
    static const unsigned good[] = {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010,
                                    1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999};
    static const unsigned bad[] = {0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        char body[] = {(char)(good[i] >> 8), (char)good[i]}, wanted[16];
        add(FIN | WS_CLOSE, str_n(body, 2));
        (void)snprintf(wanted, sizeof wanted, "C%u:", good[i]);
        expect(wanted);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char body[] = {(char)(bad[i] >> 8), (char)bad[i]};
        add(FIN | WS_CLOSE, str_n(body, 2));
        expect("!1002");
    }
}

static void test_text(void **state) {
    (void)state;
    static const char *const good[] = {"\xce\xba\xcf\x8c\xcf\x83\xce\xbc\xce\xb5",
                                       "\xef\xbf\xbf",
                                       "\xf0\x90\x80\x80",
                                       "\xf4\x8f\xbf\xbf",
                                       "\xed\x9f\xbf",
                                       "\xee\x80\x80",
                                       "\xc2\x80",
                                       "\xe0\xa0\x80"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        char wanted[32];
        (void)snprintf(wanted, sizeof wanted, "M:%s", good[i]);
        add(FIN | WS_TEXT, str_of(good[i]));
        expect(wanted);
        /* One byte a frame. */
        struct str text = str_of(good[i]);
        for (size_t k = 0; k < text.len; k++)
            add((k + 1 == text.len ? FIN : 0) | (k == 0 ? WS_TEXT : WS_CONTINUATION), str_n(text.at + k, 1));
        expect(wanted);
    }
    static const char *const bad[] = {"\x80",
                                      "\xbf",
                                      "\xc0\x80",
                                      "\xc1\xbf",
                                      "\xe0\x9f\xbf",
                                      "\xed\xa0\x80",
                                      "\xed\xbf\xbf",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xf8\x88\x80\x80\x80",
                                      "\xfe",
                                      "\xff",
                                      "a\xce",
                                      "a\xe1\x80",
                                      "\xf0\x90\x80",
                                      "\xce\xce\xba",
                                      "long enough text\xff"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        add(FIN | WS_TEXT, str_of(bad[i]));
        expect("!1007");
    }
    /* Cut within a character, and the second half is wrong. */
    add(WS_TEXT, STR("ok \xf0\x90"));
    add(FIN | WS_CONTINUATION, STR("\x80 "));
    expect("!1007");
    /* Found before the frame is whole. */
    add_head(FIN | WS_TEXT, 1000, 0, true);
    add_payload(STR("\xff"));
    expect("!1007");
    /* Binary is not text. */
    add(FIN | WS_BINARY, STR("\xff\xfe"));
    expect("Mb:\xff\xfe");
}

static void test_heads(void **state) {
    (void)state;
    char head[WS_HEAD_MAX];
    assert_int_equal(ws_head(WS_TEXT, 125, head), 2);
    assert_memory_equal(head, "\x81\x7d", 2);
    assert_int_equal(ws_head(WS_TEXT, 126, head), 4);
    assert_memory_equal(head, "\x81\x7e\x00\x7e", 4);
    assert_int_equal(ws_head(WS_BINARY, 65535, head), 4);
    assert_memory_equal(head, "\x82\x7e\xff\xff", 4);
    assert_int_equal(ws_head(WS_TEXT, 65536, head), 10);
    assert_memory_equal(head, "\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00", 10);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accept),
        cmocka_unit_test_teardown(test_messages, tidy),
        cmocka_unit_test_teardown(test_lengths, tidy),
        cmocka_unit_test_teardown(test_fragments, tidy),
        cmocka_unit_test_teardown(test_framing, tidy),
        cmocka_unit_test_teardown(test_close, tidy),
        cmocka_unit_test_teardown(test_text, tidy),
        cmocka_unit_test(test_heads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
