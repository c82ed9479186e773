// link: http
/* Against a small server on the same loop that knows a few paths and records what it was sent. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "http/client.h"
#include "redis_server.h" /* run_until */

/* ---- the server ---- */

struct peer {
    uv_tcp_t tcp;
    uv_write_t write;
    struct buf in, out;
    bool close_after;
};

static uv_tcp_t listener;
static int port, connections, requests;
static char last_request[4096];

static void on_peer_closed(uv_handle_t *handle) {
    struct peer *p = handle->data;
    buf_free(&p->in);
    buf_free(&p->out);
    free(p);
}
static void on_sent(uv_write_t *write, int status) {
    struct peer *p = write->data;
    (void)status;
    if (p->close_after && !uv_is_closing((uv_handle_t *)&p->tcp)) uv_close((uv_handle_t *)&p->tcp, on_peer_closed);
}
static void on_room(uv_handle_t *handle, size_t suggested, uv_buf_t *out) {
    static char room[65536];
    (void)handle;
    (void)suggested;
    *out = uv_buf_init(room, sizeof room);
}

static void respond(struct peer *p, const char *path) {
    buf_clear(&p->out);
    if (strcmp(path, "/silent") == 0) return;
    if (strcmp(path, "/redirect") == 0) {
        assert_true(
            buf_printf(&p->out, "HTTP/1.1 302 Found\r\nLocation: /hello\r\nX-Old: 1\r\nContent-Length: 0\r\n\r\n"));
    } else if (strcmp(path, "/loop") == 0) {
        assert_true(buf_printf(&p->out, "HTTP/1.1 302 Found\r\nLocation: /loop\r\nContent-Length: 0\r\n\r\n"));
    } else if (strcmp(path, "/file") == 0) {
        assert_true(
            buf_printf(&p->out, "HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n"));
    } else if (strcmp(path, "/endless") == 0) {
        assert_true(buf_printf(&p->out, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"));
        for (int i = 0; i < 10000; i++) assert_true(buf_add(&p->out, STR("0123456789")));
    } else if (strcmp(path, "/headers") == 0) {
        assert_true(buf_printf(&p->out, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"));
        for (int i = 0; i < 5000; i++) assert_true(buf_printf(&p->out, "X-Many-%d: some value\r\n", i));
        assert_true(buf_printf(&p->out, "\r\n"));
    } else if (strcmp(path, "/cut") == 0) {
        assert_true(buf_printf(&p->out, "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort"));
        p->close_after = true;
    } else if (strcmp(path, "/missing") == 0) {
        assert_true(buf_printf(&p->out, "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone"));
    } else {
        assert_true(buf_printf(&p->out, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Two: a\r\nX-Two: b\r\n"
                                        "Content-Length: 5\r\n\r\nhello"));
    }
    uv_buf_t bytes = uv_buf_init(p->out.data, (unsigned)p->out.len);
    p->write.data = p;
    assert_int_equal(uv_write(&p->write, (uv_stream_t *)&p->tcp, &bytes, 1, on_sent), 0);
}

static void on_bytes(uv_stream_t *stream, ssize_t got, const uv_buf_t *bytes) {
    struct peer *p = stream->data;
    if (got < 0) {
        if (!uv_is_closing((uv_handle_t *)stream)) uv_close((uv_handle_t *)stream, on_peer_closed);
        return;
    }
    assert_true(buf_add(&p->in, str_n(bytes->base, (size_t)got)) && buf_byte(&p->in, 0));
    p->in.len--;
    const char *end = strstr(p->in.data, "\r\n\r\n");
    if (!end) return;
    const char *length = strstr(p->in.data, "Content-Length: ");
    size_t body = length && length < end ? strtoul(length + 16, NULL, 10) : 0;
    if (p->in.len < (size_t)(end - p->in.data) + 4 + body) return;
    (void)snprintf(last_request, sizeof last_request, "%s", p->in.data);
    requests++;
    char method[16] = "", path[64] = "";
    (void)sscanf(p->in.data, "%15s %63s", method, path);
    buf_clear(&p->in);
    respond(p, path);
}

static void on_connection(uv_stream_t *server, int status) {
    assert_int_equal(status, 0);
    struct peer *p = calloc(1, sizeof *p);
    assert_non_null(p);
    assert_int_equal(uv_tcp_init(loop_get(), &p->tcp), 0);
    p->tcp.data = p;
    assert_int_equal(uv_accept(server, (uv_stream_t *)&p->tcp), 0);
    assert_int_equal(uv_read_start((uv_stream_t *)&p->tcp, on_room, on_bytes), 0);
    connections++;
}

/* ---- asking ---- */

struct answer {
    int count, status;
    struct error err;
    char body[64], type[64];
    size_t body_len, headers;
    bool old_header;
};

static void keep(void *data, const struct http_answer *answer, const struct error *err) {
    struct answer *a = data;
    a->count++;
    if (err) {
        a->err = *err;
        return;
    }
    a->status = answer->status;
    a->body_len = answer->body.len;
    a->headers = answer->header_count;
    (void)snprintf(a->body, sizeof a->body, "%.*s", STR_FMT(answer->body));
    for (size_t i = 0; i < answer->header_count; i++) {
        if (str_eq(answer->headers[i].name, STR("content-type")))
            (void)snprintf(a->type, sizeof a->type, "%.*s", STR_FMT(answer->headers[i].value));
        a->old_header = a->old_header || str_eq(answer->headers[i].name, STR("x-old"));
    }
}

static bool answered(void *data) {
    return ((struct answer *)data)->count > 0;
}

static char url_text[128];
static struct str url(const char *path) {
    (void)snprintf(url_text, sizeof url_text, "http://127.0.0.1:%d%s", port, path);
    return str_of(url_text);
}

static struct answer ask(struct http_ask what) {
    struct answer a = {0};
    if (!http_request(&what, keep, &a, &a.err)) return a;
    assert_int_equal(a.count, 0);
    assert_true(run_until(answered, &a, 20));
    return a;
}

static void an_answer_comes_back_and_its_connection_is_kept(void **state) {
    (void)state;
    int before = connections;
    for (int i = 0; i < 5; i++) {
        struct answer a = ask((struct http_ask){.url = url("/hello")});
        assert_int_equal(a.err.kind, ERR_NONE);
        assert_int_equal(a.status, 200);
        assert_string_equal(a.body, "hello");
        assert_string_equal(a.type, "text/plain");
        assert_int_equal(a.headers, 4);
    }
    assert_int_equal(connections - before, 1);
    assert_int_equal(ask((struct http_ask){.url = url("/missing")}).status, 404);
    assert_int_equal(http_calls(), 0);
}

static void what_is_sent_is_what_was_given(void **state) {
    (void)state;
    struct http_field headers[] = {{STR("X-Key"), STR("one two")}, {STR("Content-Type"), STR("application/json")}};
    struct answer a = ask((struct http_ask){.url = url("/post?a=1"),
                                            .method = STR("PUT"),
                                            .body = STR("{\"a\":1}"),
                                            .headers = headers,
                                            .header_count = 2});
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(last_request, "PUT /post?a=1 HTTP/1.1\r\n"));
    assert_non_null(strstr(last_request, "X-Key: one two\r\n"));
    assert_non_null(strstr(last_request, "Content-Type: application/json\r\n"));
    assert_null(strstr(last_request, "urlencoded"));
    assert_null(strstr(last_request, "Expect"));
    assert_non_null(strstr(last_request, "\r\n\r\n{\"a\":1}"));
    (void)ask((struct http_ask){.url = url("/post"), .method = STR("POST")});
    assert_non_null(strstr(last_request, "POST /post"));
    assert_non_null(strstr(last_request, "Content-Length: 0"));
    (void)ask((struct http_ask){.url = url("/x"), .method = STR("DELETE")});
    assert_non_null(strstr(last_request, "DELETE /x"));
}

static void injection_and_other_schemes_are_refused(void **state) {
    (void)state;
    struct http_field bad[] = {{STR("X-A"), STR("1\r\nX-B: 2")}, {STR("X A"), STR("1")}, {STR(""), STR("1")}};
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(ask((struct http_ask){.url = url("/"), .headers = &bad[i], .header_count = 1}).err.kind,
                         ERR_INVALID);
    assert_int_equal(ask((struct http_ask){.url = url("/"), .method = STR("GET /x")}).err.kind, ERR_INVALID);
    static const char *const urls[] = {"file:///etc/passwd", "gopher://x/", "ftp://x/", "", "http://",
                                       "http://a b/",        "//x"};
    for (size_t i = 0; i < sizeof urls / sizeof *urls; i++) {
        struct answer a = ask((struct http_ask){.url = str_of(urls[i])});
        assert_int_equal(a.err.kind, ERR_INVALID);
    }
}

static void redirects_are_followed_only_on_request(void **state) {
    (void)state;
    struct answer a = ask((struct http_ask){.url = url("/redirect")});
    assert_int_equal(a.status, 302);
    assert_true(a.old_header);
    a = ask((struct http_ask){.url = url("/redirect"), .redirects = 3});
    assert_int_equal(a.status, 200);
    assert_false(a.old_header);
    assert_int_equal(ask((struct http_ask){.url = url("/loop"), .redirects = 3}).err.kind, ERR_LIMIT);
    assert_int_equal(ask((struct http_ask){.url = url("/file"), .redirects = 3}).err.kind, ERR_INVALID);
}

static void answers_are_bounded(void **state) {
    (void)state;
    assert_int_equal(ask((struct http_ask){.url = url("/endless"), .max_bytes = 5000}).err.kind, ERR_LIMIT);
    assert_int_equal(ask((struct http_ask){.url = url("/endless"), .max_bytes = 100000}).body_len, 100000);
    assert_int_equal(ask((struct http_ask){.url = url("/headers")}).err.kind, ERR_LIMIT);
    struct answer cut = ask((struct http_ask){.url = url("/endless"), .max_bytes = 5000, .cut = true});
    assert_int_equal(cut.err.kind, ERR_NONE);
    assert_int_equal(cut.status, 200);
    assert_int_equal(cut.body_len, 5000);
}

static void silence_refusal_and_a_cut_answer_are_told_apart(void **state) {
    (void)state;
    assert_int_equal(ask((struct http_ask){.url = url("/silent"), .timeout_ms = 100}).err.kind, ERR_TIMEOUT);
    assert_int_equal(ask((struct http_ask){.url = url("/cut")}).err.kind, ERR_UNAVAILABLE);
    char nobody[64];
    (void)snprintf(nobody, sizeof nobody, "http://127.0.0.1:%d/", free_port());
    assert_int_equal(ask((struct http_ask){.url = str_of(nobody)}).err.kind, ERR_UNAVAILABLE);
}

struct pieces {
    char text[64];
    int count, status;
    bool refuse;
};

static struct pieces pieces;

static bool take_piece(void *data, int status, struct str bytes) {
    (void)data;
    pieces.count++;
    pieces.status = status;
    if (pieces.refuse) return false;
    size_t used = strlen(pieces.text);
    assert_true(used + bytes.len < sizeof pieces.text);
    memcpy(pieces.text + used, bytes.at, bytes.len);
    return true;
}

static void a_body_is_handed_out_as_it_comes(void **state) {
    (void)state;
    struct answer a = {0};
    struct error err;
    char url[64];
    (void)snprintf(url, sizeof url, "http://127.0.0.1:%d/hello", port);
    struct http_ask ask = {.url = str_of(url), .piece = take_piece};
    pieces = (struct pieces){0};
    assert_non_null(http_request(&ask, keep, &a, &err));
    assert_true(run_until(answered, &a, 20));
    assert_string_equal(pieces.text, "hello");
    assert_int_equal(pieces.status, 200);
    assert_int_equal(a.status, 200);
    assert_int_equal(a.body_len, 0);
    pieces = (struct pieces){.refuse = true};
    a = (struct answer){0};
    assert_non_null(http_request(&ask, keep, &a, &err));
    assert_true(run_until(answered, &a, 20));
    assert_int_equal(a.err.kind, ERR_LIMIT);
    assert_int_equal(pieces.count, 1);
}

static void a_cancelled_request_does_not_answer(void **state) {
    (void)state;
    struct answer a = {0};
    struct error err = {0};
    struct http_ask what = {.url = url("/silent")};
    struct http_call *call = http_request(&what, keep, &a, &err);
    assert_non_null(call);
    int before = requests;
    http_cancel(call);
    assert_int_equal(http_calls(), 0);
    assert_int_equal(ask((struct http_ask){.url = url("/hello")}).status, 200);
    assert_int_equal(a.count, 0);
    assert_true(requests - before <= 2);
}

static void too_many_at_once_are_busy(void **state) {
    (void)state;
    struct answer a = {0};
    struct error err = {0};
    struct http_call *all[256];
    struct http_ask what = {.url = url("/silent")};
    for (size_t i = 0; i < 256; i++) assert_non_null(all[i] = http_request(&what, keep, &a, &err));
    assert_null(http_request(&what, keep, &a, &err));
    assert_int_equal(err.kind, ERR_BUSY);
    for (size_t i = 0; i < 256; i++) http_cancel(all[i]);
    assert_int_equal(a.count, 0);
}

/* A kept connection to a closed address must not be lent to a request that may go to public ones only. */
static void a_request_for_public_addresses_never_reaches_this_machine(void **state) {
    (void)state;
    assert_int_equal(ask((struct http_ask){.url = url("/hello")}).status, 200);
    int before = requests;
    struct answer a = ask((struct http_ask){.url = url("/hello"), .public_only = true});
    assert_int_equal(a.err.kind, ERR_INVALID);
    char name[64];
    (void)snprintf(name, sizeof name, "http://localhost:%d/", port);
    assert_int_equal(ask((struct http_ask){.url = str_of(name), .public_only = true, .redirects = 3}).err.kind,
                     ERR_INVALID);
    assert_int_equal(requests, before);
}

static bool is_public(const char *text) {
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    if (inet_pton(AF_INET, text, &v4.sin_addr) == 1) return http_address_public((struct sockaddr *)&v4);
    assert_int_equal(inet_pton(AF_INET6, text, &v6.sin6_addr), 1);
    return http_address_public((struct sockaddr *)&v6);
}

static void public_addresses_are_told_from_the_rest(void **state) {
    (void)state;
    static const char *const open[] = {"1.1.1.1",         "8.8.8.8",         "100.63.255.255", "100.128.0.1",
                                       "172.15.0.1",      "172.32.0.1",      "192.167.1.1",    "198.17.0.1",
                                       "223.255.255.255", "2606:4700::1111", "::ffff:8.8.8.8"};
    static const char *const closed[] = {"0.0.0.0",
                                         "10.1.2.3",
                                         "100.64.0.1",
                                         "127.0.0.1",
                                         "127.255.255.255",
                                         "169.254.169.254",
                                         "172.16.0.1",
                                         "172.31.255.255",
                                         "192.168.0.1",
                                         "198.18.0.1",
                                         "224.0.0.1",
                                         "255.255.255.255",
                                         "::",
                                         "::1",
                                         "fe80::1",
                                         "fc00::1",
                                         "fd00:ec2::254",
                                         "ff02::1",
                                         "::ffff:127.0.0.1",
                                         "::ffff:10.0.0.1",
                                         "64:ff9b::a00:1",
                                         "2002:7f00:1::",
                                         "2001:db8::1",
                                         "2001::1",
                                         "2001:2::1",
                                         "2001:20::1",
                                         "3fff::1",
                                         "64:ff9b:1::1",
                                         "::7f00:1"};
    for (size_t i = 0; i < sizeof open / sizeof *open; i++) {
        if (!is_public(open[i])) fail_msg("%s must be public", open[i]);
    }
    for (size_t i = 0; i < sizeof closed / sizeof *closed; i++) {
        if (is_public(closed[i])) fail_msg("%s must not be public", closed[i]);
    }
}

static void an_address_is_known_in_all_forms_and_a_name_is_none(void **state) {
    (void)state;
    static const char *const closed[] = {"127.1",  "2130706433", "0x7f000001",       "0177.0.0.1", "0X7F.0.0.1",
                                         "10.256", "::1",        "::ffff:127.0.0.1", "fe80::1",    "000000177.0.0.1"};
    static const char *const names[] = {
        "",          "shop.vn", "1.2.3.4.5", "256.1.1.1", "4294967296", "1..2", "08.1.1.1",
        "8.8.8.8 x", "[::1]",   ":::",       "dead.beef", "0xg",        "-1"};
    bool open = false;
    for (size_t i = 0; i < sizeof closed / sizeof *closed; i++) {
        open = true;
        if (!http_host_address(str_of(closed[i]), &open) || open) fail_msg("%s is an address here", closed[i]);
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (http_host_address(str_of(names[i]), &open)) fail_msg("%s is no address", names[i]);
    }
    assert_true(http_host_address(STR("134744072"), &open) && open);
    assert_true(http_host_address(STR("2606:4700::1111"), &open) && open);
    assert_false(http_host_address(str_n("8.8.8.8\0x", 9), &open));
}

static int start(void **state) {
    (void)state;
    (void)signal(SIGPIPE, SIG_IGN);
    struct sockaddr_in at;
    int len = sizeof at;
    if (!loop_open() || uv_tcp_init(loop_get(), &listener) != 0 || uv_ip4_addr("127.0.0.1", 0, &at) != 0 ||
        uv_tcp_bind(&listener, (const struct sockaddr *)&at, 0) != 0 ||
        uv_listen((uv_stream_t *)&listener, 512, on_connection) != 0 ||
        uv_tcp_getsockname(&listener, (struct sockaddr *)&at, &len) != 0)
        return -1;
    port = ntohs(at.sin_port);
    return 0;
}

static void close_any(uv_handle_t *handle, void *data) {
    (void)data;
    if (handle->type == UV_TCP && !uv_is_closing(handle)) uv_close(handle, handle->data ? on_peer_closed : NULL);
}

static int stop(void **state) {
    (void)state;
    http_client_close();
    uv_walk(loop_get(), close_any, NULL);
    run_closed();
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_answer_comes_back_and_its_connection_is_kept),
        cmocka_unit_test(what_is_sent_is_what_was_given),
        cmocka_unit_test(injection_and_other_schemes_are_refused),
        cmocka_unit_test(redirects_are_followed_only_on_request),
        cmocka_unit_test(answers_are_bounded),
        cmocka_unit_test(silence_refusal_and_a_cut_answer_are_told_apart),
        cmocka_unit_test(a_body_is_handed_out_as_it_comes),
        cmocka_unit_test(a_cancelled_request_does_not_answer),
        cmocka_unit_test(too_many_at_once_are_busy),
        cmocka_unit_test(a_request_for_public_addresses_never_reaches_this_machine),
        cmocka_unit_test(public_addresses_are_told_from_the_rest),
        cmocka_unit_test(an_address_is_known_in_all_forms_and_a_name_is_none),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
