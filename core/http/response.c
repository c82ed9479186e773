/* Answers: the head is assembled by memcpy into the connection's output buffer, the body behind it. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "http/conn.h"
#include "http/etag.h"
#include "http/status.h"
#include "runtime/clock.h"
#include "runtime/log.h"

/* Smaller bodies do not gain enough to pay for the work; larger ones would hold up the loop. */
#define COMPRESS_MIN ((size_t)1024)
#define COMPRESS_MAX ((size_t)4 * 1024 * 1024)

/* The head block that all answers of a second share. */
static struct str head_block(struct server *s) {
    /* The loop's clock says when a second has passed; the wall clock is asked once a second. */
    uint64_t second = uv_now(loop_get()) / 1000 + 1;
    if (s->block_second == second) return str_n(s->block, s->block_len);
    time_t now = (time_t)(clock_real() / 1000);
    struct tm tm;
    char date[64] = "Thu, 01 Jan 1970 00:00:00 GMT";
    if (gmtime_r(&now, &tm) && strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", &tm) == 0)
        log_line(LOG_ERROR, "cannot print the date");
    int n = snprintf(s->block, sizeof s->block,
                     "Date: %s\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n%s", date,
                     s->set.hsts ? "Strict-Transport-Security: max-age=31536000; includeSubDomains\r\n" : "");
    s->block_len = n > 0 && (size_t)n < sizeof s->block ? (size_t)n : 0;
    s->block_second = second;
    return str_n(s->block, s->block_len);
}

static char *put(char *p, struct str s) {
    memcpy(p, s.at, s.len);
    return p + s.len;
}

static char *put_number(char *p, uint64_t n) {
    char digits[20];
    size_t i = sizeof digits;
    do digits[--i] = (char)('0' + n % 10);
    while ((n /= 10) != 0);
    return put(p, str_n(digits + i, sizeof digits - i));
}

static char *put_header(char *p, struct str name, struct str value) {
    p = put(p, name);
    p = put(p, STR(": "));
    p = put(p, value);
    return put(p, STR("\r\n"));
}

/* What the handler's headers say that matters here. */
struct given {
    struct str content_type, content_encoding, etag;
    bool own_id;
};

/* Headers that this file makes, whatever the handler says. */
static bool is_ours(struct str name) {
    switch (name.len) {
    case 4:
        return str_ieq(name, STR("date"));
    case 10:
        return str_ieq(name, STR("connection")) || str_ieq(name, STR("keep-alive"));
    case 14:
        return str_ieq(name, STR("content-length"));
    case 17:
        return str_ieq(name, STR("transfer-encoding"));
    default:
        return false;
    }
}

static struct given look(const struct header *headers, size_t count) {
    struct given g = {0};
    for (size_t i = 0; i < count; i++) {
        struct str name = headers[i].name;
        switch (name.len) {
        case 4:
            if (str_ieq(name, STR("etag"))) g.etag = headers[i].value;
            break;
        case 12:
            if (str_ieq(name, STR("content-type")))
                g.content_type = headers[i].value;
            else if (str_ieq(name, STR("x-request-id")))
                g.own_id = true;
            break;
        case 16:
            if (str_ieq(name, STR("content-encoding"))) g.content_encoding = headers[i].value;
            break;
        default:
            break;
        }
    }
    return g;
}

struct head {
    int status;
    const struct header *headers;
    size_t count;
    const struct given *given;
    struct str etag;     /* to add; at == NULL: none, or the handler gave one */
    struct str encoding; /* to add */
    bool vary, no_type;
    int64_t length; /* -1: none is said */
    bool chunked;
};

/* Appends the head to the request's target. */
static bool put_head(struct request *r, const struct head *h) {
    struct server *s = r->server;
    struct buf *b = conn_target(r);
    struct str block = head_block(s), id = request_id(r);
    size_t room = 400 + block.len + id.len + h->etag.len;
    for (size_t i = 0; i < h->count; i++) room += h->headers[i].name.len + h->headers[i].value.len + 4;
    if (!buf_reserve(b, room)) return false;
    char *p = b->data + b->len;
    if (h->status == 200) {
        p = put(p, STR("HTTP/1.1 200 OK\r\n"));
    } else {
        p = put(p, STR("HTTP/1.1 "));
        p = put_number(p, (uint64_t)h->status);
        *p++ = ' ';
        p = put(p, status_reason(h->status));
        p = put(p, STR("\r\n"));
    }
    p = put(p, block);
    for (size_t i = 0; i < h->count; i++) {
        const struct header *x = &h->headers[i];
        if (is_ours(x->name) || (h->no_type && str_ieq(x->name, STR("content-type")))) continue;
        if (!header_name_safe(x->name) || !header_value_safe(x->value)) {
            log_line(LOG_WARN, "left out a response header with a control byte");
            continue;
        }
        p = put_header(p, x->name, x->value);
    }
    if (!h->given->own_id) p = put_header(p, STR("X-Request-Id"), id);
    if (h->etag.at) p = put_header(p, STR("ETag"), h->etag);
    if (h->encoding.at) p = put_header(p, STR("Content-Encoding"), h->encoding);
    if (h->vary) p = put(p, STR("Vary: Accept-Encoding\r\n"));
    if (h->chunked) {
        p = put(p, STR("Transfer-Encoding: chunked\r\n"));
    } else if (h->length >= 0) {
        p = put(p, STR("Content-Length: "));
        p = put_number(p, (uint64_t)h->length);
        p = put(p, STR("\r\n"));
    }
    if (!r->keep_alive)
        p = put(p, STR("Connection: close\r\n"));
    else if (r->http_minor == 0)
        p = put(p, STR("Connection: keep-alive\r\n"));
    p = put(p, STR("\r\n"));
    b->len = (size_t)(p - b->data);
    return true;
}

/* The unread rest of a body up to this is read and dropped, so that the connection lives on. */
#define DROP_MAX ((uint64_t)64 * 1024)

/* A server that is stopping ends each connection with the last request that it has taken from it. So does an answer
 * given before a body has come, unless its rest is known to be small. */
static void settle_keep_alive(struct request *r) {
    if (r->server->leaving && !r->next) r->keep_alive = false;
    if (!r->streamed || r->conn->reading != r) return;
    if (r->chunked || r->expects || r->declared - r->body.received > DROP_MAX) r->keep_alive = false;
}

static bool can_answer(struct request *r) {
    return r->conn && !r->answered && !r->streaming;
}

static bool answered(struct request *r, bool ok, int status) {
    struct conn *c = r->conn;
    r->answered = true;
    r->status = status;
    if (!ok) c->torn = true;            /* half an answer may be out */
    if (c->first == r) conn_advance(c); /* may release r */
    return ok;
}

bool request_respond(struct request *r, int status, const struct header *headers, size_t count, struct str body) {
    if (!can_answer(r)) return false;
    settle_keep_alive(r);
    struct given given = look(headers, count);
    struct head h = {.status = status, .headers = headers, .count = count, .given = &given};
    bool head_only = r->method == HTTP_M_HEAD;
    bool get = r->method == HTTP_M_GET || head_only;
    char tag[ETAG_MAX];
    if (get && status == 200) {
        struct str etag = given.etag;
        if (!etag.at) h.etag = etag = str_n(tag, etag_of(body, tag));
        struct str match = request_known(r, HEADER_IF_NONE_MATCH);
        if (match.at && etag_matches(match, etag)) h.status = status = 304;
    }
    bool bodyless = status == 204 || status == 304 || status < 200;
    h.no_type = bodyless || body.len == 0;
    h.length = bodyless ? -1 : (int64_t)body.len;
    struct buf packed = {0};
    if (!bodyless && body.len >= COMPRESS_MIN && body.len <= COMPRESS_MAX && given.content_type.at &&
        !given.content_encoding.at && status != 206 && content_compressible(given.content_type)) {
        h.vary = true;
        enum coding coding = head_only ? CODING_IDENTITY : coding_accepted(request_known(r, HEADER_ACCEPT_ENCODING));
        if (coding != CODING_IDENTITY) {
            packed = buf_take(r->server);
            if (compress_body(coding, body, &packed)) {
                h.encoding = coding_name(coding);
                body = buf_str(&packed);
                h.length = (int64_t)body.len;
            }
        }
    }
    bool ok = put_head(r, &h);
    if (ok && !bodyless && !head_only && body.len) {
        r->sent = body.len;
        ok = conn_put(r, body);
    }
    buf_give(r->server, &packed);
    return answered(r, ok, status);
}

bool request_refuse(struct request *r, int status, struct str detail, bool close) {
    if (!can_answer(r)) return false;
    struct server *s = r->server; /* r may be released once it is answered */
    if (close) {
        r->keep_alive = false;
        r->conn->no_more = r->conn->refused = true;
    }
    if (status == 404 && detail.len == 0 && r->target.at) {
        struct str method = request_method_name(r);
        detail = str_of(arena_printf(r->arena, "Cannot %.*s %.*s", STR_FMT(method), STR_FMT(r->target)));
    }
    struct buf body = buf_take(s);
    bool ok = status_body(status, detail, &body);
    struct header headers[] = {
        {STR("Content-Type"), STR("application/json; charset=utf-8")},
        {STR("Retry-After"), STR("1")},
    };
    ok = request_respond(r, status, headers, status == 503 ? 2 : 1, ok ? buf_str(&body) : STR("")) && ok;
    buf_give(s, &body);
    return ok;
}

void response_interim(struct conn *c) {
    struct buf *b = &c->out;
    if (!b->data) *b = buf_take(c->server);
    if (!buf_add(b, STR("HTTP/1.1 100 Continue\r\n\r\n"))) c->torn = true;
    conn_touch(c);
}

bool response_head(struct request *r, int status, const struct header *headers, size_t count) {
    struct given given = look(headers, count);
    struct head h = {.status = status, .headers = headers, .count = count, .given = &given, .length = -1};
    return put_head(r, &h);
}

/* Streams. */

bool request_stream(struct request *r, int status, const struct header *headers, size_t count, int64_t length) {
    if (!can_answer(r)) return false;
    settle_keep_alive(r);
    struct given given = look(headers, count);
    struct head h = {.status = status, .headers = headers, .count = count, .given = &given, .length = length};
    bool bodyless = status == 204 || status == 304 || status < 200;
    if (bodyless) h.length = -1;
    if (length < 0 && !bodyless) {
        /* HTTP/1.0 knows no chunks: the end of the connection ends the body. */
        if (r->http_minor == 0)
            r->keep_alive = false;
        else
            h.chunked = true;
    }
    r->status = status;
    r->stream_chunked = h.chunked;
    r->left = bodyless || r->method == HTTP_M_HEAD ? 0 : length;
    if (!put_head(r, &h)) {
        r->conn->torn = true;
        conn_touch(r->conn);
        return false;
    }
    r->streaming = true;
    conn_touch(r->conn);
    return true;
}

static bool stream_full(const struct request *r) {
    const struct conn *c = r->conn;
    size_t waiting = c->first == r ? conn_backlog(c) : r->out.len;
    return waiting > r->server->set.write_high_water;
}

enum stream_result request_stream_write(struct request *r, struct str bytes) {
    struct conn *c = r->conn;
    if (!c || !r->streaming) return STREAM_GONE;
    if (r->left >= 0 && bytes.len > (uint64_t)r->left)
        bytes.len = (size_t)r->left; /* HEAD, or more than was announced */
    if (bytes.len == 0) return STREAM_OK;
    bool ok;
    if (r->stream_chunked) {
        char line[24];
        int n = snprintf(line, sizeof line, "%zx\r\n", bytes.len);
        ok = n > 0 && conn_put(r, str_n(line, (size_t)n)) && conn_put(r, bytes) && conn_put(r, STR("\r\n"));
    } else {
        ok = conn_put(r, bytes);
    }
    conn_touch(c);
    if (!ok) {
        c->torn = true;
        return STREAM_GONE;
    }
    r->sent += bytes.len;
    if (r->left >= 0) r->left -= (int64_t)bytes.len;
    return stream_full(r) ? STREAM_FULL : STREAM_OK;
}

void request_stream_end(struct request *r) {
    if (!r->streaming) return;
    r->streaming = false;
    if (!r->conn) return;
    bool ok = r->left <= 0; /* bytes that were announced and never came tear the connection */
    if (ok && r->stream_chunked && r->method != HTTP_M_HEAD) ok = conn_put(r, STR("0\r\n\r\n"));
    bool ended = answered(r, ok, r->status);
    (void)ended; /* a torn connection is closed by its settling */
}

void request_on_drain(struct request *r, void (*drain)(void *data), void *data) {
    r->drain = drain;
    r->drain_data = data;
}
