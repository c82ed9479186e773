// link: http
/* Against a mail server on the same loop that says what it was told to. The whole of TLS, AUTH and MIME is tried with a
 * real server in tests/faults/test_mail. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "http/smtp.h"
#include "redis_server.h" /* run_until */
#include "runtime/buf.h"

/* ---- the server ---- */

struct peer {
    uv_tcp_t tcp;
    uv_write_t write;
    struct buf in, out, message;
    bool in_message, close_after;
};

static uv_tcp_t listener;
static uint16_t port;
static int connections;
static const char *to_rcpt, *to_end, *to_mail, *greeting; /* what it says; NULL: as it should */
static bool silent, hang_up;
static char last_message[4096], commands[4096];

static void on_peer_closed(uv_handle_t *handle) {
    struct peer *p = handle->data;
    buf_free(&p->in);
    buf_free(&p->out);
    buf_free(&p->message);
    free(p);
}

static void on_sent(uv_write_t *write, int status) {
    struct peer *p = write->data;
    (void)status;
    if (p->close_after && !uv_is_closing((uv_handle_t *)&p->tcp)) uv_close((uv_handle_t *)&p->tcp, on_peer_closed);
}

static void say(struct peer *p, const char *line) {
    buf_clear(&p->out);
    assert_true(buf_printf(&p->out, "%s\r\n", line));
    uv_buf_t bytes = uv_buf_init(p->out.data, (unsigned)p->out.len);
    p->write.data = p;
    assert_int_equal(uv_write(&p->write, (uv_stream_t *)&p->tcp, &bytes, 1, on_sent), 0);
}

static void on_room(uv_handle_t *handle, size_t suggested, uv_buf_t *out) {
    static char room[65536];
    (void)handle;
    (void)suggested;
    *out = uv_buf_init(room, sizeof room);
}

static void on_line(struct peer *p, const char *line) {
    if (p->in_message) {
        if (strcmp(line, ".") == 0) {
            p->in_message = false;
            (void)snprintf(last_message, sizeof last_message, "%.*s", STR_FMT(buf_str(&p->message)));
            if (hang_up) {
                p->close_after = true;
                say(p, "421 bye");
            } else {
                say(p, to_end ? to_end : "250 2.0.0 queued as 7");
            }
        } else {
            assert_true(buf_printf(&p->message, "%s\n", line));
        }
        return;
    }
    size_t used = strlen(commands);
    (void)snprintf(commands + used, sizeof commands - used, "%s\n", line);
    if (silent) return;
    if (strncmp(line, "EHLO", 4) == 0) {
        say(p, "250-here\r\n250 8BITMIME");
    } else if (strncmp(line, "MAIL", 4) == 0) {
        say(p, to_mail ? to_mail : "250 ok");
    } else if (strncmp(line, "RCPT", 4) == 0) {
        say(p, to_rcpt ? to_rcpt : "250 ok");
    } else if (strcmp(line, "DATA") == 0) {
        p->in_message = true;
        buf_clear(&p->message);
        say(p, "354 go on");
    } else if (strcmp(line, "QUIT") == 0) {
        p->close_after = true;
        say(p, "221 2.0.0 bye, bye");
    } else {
        say(p, "502 what");
    }
}

static void on_bytes(uv_stream_t *stream, ssize_t got, const uv_buf_t *bytes) {
    struct peer *p = stream->data;
    if (got < 0) {
        if (!uv_is_closing((uv_handle_t *)stream)) uv_close((uv_handle_t *)stream, on_peer_closed);
        return;
    }
    assert_true(buf_add(&p->in, str_n(bytes->base, (size_t)got)));
    char line[2048];
    const char *end;
    while (p->in.len && (end = memchr(p->in.data, '\n', p->in.len))) {
        size_t len = (size_t)(end - p->in.data), rest = p->in.len - len - 1;
        assert_true(len >= 1 && len < sizeof line && p->in.data[len - 1] == '\r');
        memcpy(line, p->in.data, len - 1);
        line[len - 1] = 0;
        memmove(p->in.data, end + 1, rest);
        p->in.len = rest;
        on_line(p, line);
    }
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
    say(p, greeting ? greeting : "220 here");
}

/* ---- asking ---- */

struct outcome {
    int count, code;
    bool accepted;
    char command[16], reply[128];
    struct error err;
};

static void keep(void *data, const struct smtp_answer *answer, const struct error *err) {
    struct outcome *o = data;
    o->count++;
    if (err) {
        o->err = *err;
        return;
    }
    o->code = answer->code;
    o->accepted = answer->accepted;
    (void)snprintf(o->command, sizeof o->command, "%s", answer->command);
    (void)snprintf(o->reply, sizeof o->reply, "%.*s", STR_FMT(answer->reply));
}

static bool told(void *data) {
    return ((struct outcome *)data)->count > 0;
}

static struct smtp_ask mail(void) {
    return (struct smtp_ask){.host = STR("127.0.0.1"),
                             .port = port,
                             .tls = SMTP_TLS_TRY,
                             .helo = STR("shop.test"),
                             .from = STR("shop@example.test"),
                             .to = STR("ann@example.test"),
                             .message = STR("Subject: x\r\n\r\n.\r\n..a\r\nend\r\n")};
}

static struct outcome send_mail(struct smtp_ask ask) {
    struct outcome o = {0};
    commands[0] = 0;
    if (!smtp_send(&ask, keep, &o, &o.err)) return o;
    assert_int_equal(o.count, 0);
    assert_true(run_until(told, &o, 20));
    return o;
}

static int peers_open;
static void count_peer(uv_handle_t *handle, void *data) {
    (void)data;
    if (handle->type == UV_TCP && handle->data) peers_open++;
}
static void close_peer(uv_handle_t *handle, void *data) {
    (void)data;
    if (handle->type == UV_TCP && handle->data && !uv_is_closing(handle)) uv_close(handle, on_peer_closed);
}
static bool parted(void *data) {
    (void)data;
    peers_open = 0;
    uv_walk(loop_get(), count_peer, NULL);
    return peers_open == 0;
}

/* Whoever mails next must connect and be greeted anew. The server leaves first: it lives on this loop and could not
 * answer a QUIT while the loop waits for the threads. */
static void part(void) {
    uv_walk(loop_get(), close_peer, NULL);
    assert_true(run_until(parted, NULL, 20));
    smtp_close();
}

static void a_mail_is_taken_over_kept_connections(void **state) {
    (void)state;
    int before = connections;
    for (int i = 0; i < 3; i++) {
        struct outcome o = send_mail(mail());
        if (o.err.kind) fail_msg("%s; said: %s", o.err.message, commands);
        assert_true(o.accepted);
        assert_int_equal(o.code, 250);
        assert_string_equal(o.command, ".");
        assert_string_equal(o.reply, "250 2.0.0 queued as 7");
        assert_string_equal(last_message, "Subject: x\n\n..\n...a\nend\n"); /* dots as they are on the wire */
        assert_non_null(strstr(commands, "RCPT TO:<ann@example.test>\n"));
    }
    assert_int_equal(connections - before, 1);
}

static void a_refusal_tells_which_command_it_answers(void **state) {
    (void)state;
    to_rcpt = "550 5.1.1 nobody of this name";
    struct outcome o = send_mail(mail());
    to_rcpt = NULL;
    assert_false(o.accepted);
    assert_int_equal(o.code, 550);
    assert_string_equal(o.command, "RCPT");
    assert_string_equal(o.reply, "550 5.1.1 nobody of this name"); /* not what was said to QUIT */
    to_mail = "452 4.3.1 full";
    o = send_mail(mail());
    to_mail = NULL;
    assert_int_equal(o.code, 452);
    assert_string_equal(o.command, "MAIL");
    to_end = "554 5.7.1 no";
    o = send_mail(mail());
    to_end = NULL;
    assert_false(o.accepted);
    assert_string_equal(o.command, ".");
    part();
    greeting = "554 go away";
    o = send_mail(mail());
    greeting = NULL;
    assert_false(o.accepted);
    assert_int_equal(o.code, 554);
    assert_string_equal(o.command, "");
}

static void silence_and_absence_are_errors(void **state) {
    (void)state;
    struct smtp_ask ask = mail();
    ask.timeout_ms = 200;
    ask.helo = STR("other.test");
    part();
    silent = true;
    struct outcome o = send_mail(ask);
    silent = false;
    assert_int_equal(o.err.kind, ERR_TIMEOUT);
    ask.timeout_ms = 0;
    ask.port = (uint16_t)free_port();
    o = send_mail(ask);
    assert_int_equal(o.err.kind, ERR_UNAVAILABLE);
    part();
    ask = mail();
    ask.tls = SMTP_TLS_REQUIRED; /* which this server does not offer */
    o = send_mail(ask);
    assert_int_equal(o.err.kind, ERR_UNAVAILABLE);
    assert_non_null(strstr(o.err.message, "TLS"));
    assert_null(strstr(commands, "MAIL"));
}

static void a_server_that_takes_leave_has_not_taken_the_mail(void **state) {
    (void)state;
    hang_up = true;
    struct outcome o = send_mail(mail());
    hang_up = false;
    assert_false(o.accepted);
    assert_int_equal(o.code, 421);
    assert_true(send_mail(mail()).accepted);
}

static void nothing_can_be_slipped_into_the_dialogue(void **state) {
    (void)state;
    static const char *const bad[] = {"",          "a",       "a@",     "@a",       "a b@c.d",     "a@b@c",
                                      "<a@b.c>",   "a@b.c\r", "a@b\nc", "a@b.c>,<", "\"a b\"@c.d", "a@b.c,d@e",
                                      "a@b.c;d@e", "a@(b)"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (smtp_address_ok(str_of(bad[i]))) fail_msg("taken: %s", bad[i]);
        struct smtp_ask ask = mail();
        ask.to = str_of(bad[i]);
        assert_int_equal(send_mail(ask).err.kind, ERR_INVALID);
        ask = mail();
        ask.from = str_of(bad[i]);
        assert_int_equal(send_mail(ask).err.kind, ERR_INVALID);
    }
    assert_false(smtp_address_ok(str_n("a\0@b.c", 6)));
    assert_true(smtp_address_ok(STR("o'neil+tag@sub.example.test")));
    char many[400];
    memset(many, 'a', sizeof many);
    many[200] = '@';
    assert_false(smtp_address_ok(str_n(many, sizeof many)));
    struct smtp_ask ask = mail();
    ask.host = STR("a/b");
    assert_int_equal(send_mail(ask).err.kind, ERR_INVALID);
    ask = mail();
    ask.helo = STR("a\r\nMAIL");
    assert_int_equal(send_mail(ask).err.kind, ERR_INVALID);
}

static void a_cancelled_mail_tells_nobody(void **state) {
    (void)state;
    struct outcome o = {0};
    struct error err = {0};
    struct smtp_ask ask = mail();
    struct smtp_call *call = smtp_send(&ask, keep, &o, &err);
    assert_non_null(call);
    smtp_cancel(call);
    struct smtp_call *all[64];
    for (size_t i = 0; i < 64; i++) assert_non_null(all[i] = smtp_send(&ask, keep, &o, &err));
    assert_null(smtp_send(&ask, keep, &o, &err));
    assert_int_equal(err.kind, ERR_BUSY);
    for (size_t i = 0; i < 64; i++) smtp_cancel(all[i]);
    assert_true(send_mail(mail()).accepted);
    assert_int_equal(o.count, 0);
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

static int stop(void **state) {
    (void)state;
    part();
    uv_close((uv_handle_t *)&listener, NULL);
    run_closed();
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_mail_is_taken_over_kept_connections),
        cmocka_unit_test(a_refusal_tells_which_command_it_answers),
        cmocka_unit_test(silence_and_absence_are_errors),
        cmocka_unit_test(a_server_that_takes_leave_has_not_taken_the_mail),
        cmocka_unit_test(nothing_can_be_slipped_into_the_dialogue),
        cmocka_unit_test(a_cancelled_mail_tells_nobody),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
