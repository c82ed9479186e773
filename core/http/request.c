#include "http/request.h"

#include <arpa/inet.h>
#include <stdlib.h>

#include "http/conn.h"
#include "http/decode.h"
#include "http/forwarded.h"
#include "runtime/clock.h"
#include "runtime/log.h"
#include "runtime/uuid.h"

/* After a handler was told that its time is up, it has this long to answer before the server does. */
#define DEADLINE_GRACE_MS 1000

enum http_method request_method(const struct request *r) {
    return r->method;
}

struct str request_method_name(const struct request *r) {
    if (r->method != HTTP_M_OTHER) return http_method_name(r->method);
    return str_of(llhttp_method_name((llhttp_method_t)r->llhttp_method));
}

struct str request_path(const struct request *r) {
    return r->path;
}

struct str request_query(const struct request *r) {
    return r->query;
}

struct str request_target(const struct request *r) {
    return r->target;
}

const struct route *request_route(const struct request *r) {
    return r->route;
}

struct str request_param(const struct request *r, unsigned i) {
    return r->route && i < r->route->params ? r->params[i] : (struct str){0};
}

void request_header_at(const struct request *r, size_t i, struct str *name, struct str *value) {
    const struct header_ref *h = &r->headers[i];
    *name = str_n(r->base + h->name, h->name_len);
    /* llhttp keeps blanks at the end of a value. */
    *value = str_trim(str_n(r->base + h->value, h->value_len));
}

struct str request_known(const struct request *r, enum header_id id) {
    if (r->known[id] == 0) return (struct str){0};
    struct str name, value;
    request_header_at(r, (size_t)r->known[id] - 1, &name, &value);
    return value;
}

struct str request_header(const struct request *r, struct str name) {
    enum header_id id = header_id(name);
    if (id != HEADER_OTHER) return request_known(r, id);
    for (size_t i = 0; i < r->header_count; i++) {
        struct str found, value;
        request_header_at(r, i, &found, &value);
        if (str_ieq(found, name)) return value;
    }
    return (struct str){0};
}

size_t request_header_count(const struct request *r) {
    return r->header_count;
}

struct str request_cookie(const struct request *r, struct str name) {
    /* A client may send several Cookie headers. */
    if (!r->known[HEADER_COOKIE]) return (struct str){0};
    for (size_t i = (size_t)r->known[HEADER_COOKIE] - 1; i < r->header_count; i++) {
        struct str found, value;
        request_header_at(r, i, &found, &value);
        if (!str_ieq(found, STR("cookie"))) continue;
        struct str cookie = cookie_find(value, name);
        if (cookie.at) return cookie;
    }
    return (struct str){0};
}

struct str request_body(const struct request *r) {
    return r->streamed ? (struct str){0} : body_bytes(&r->body);
}

const char *request_body_path(const struct request *r) {
    return r->body.file ? r->body.file->path : NULL;
}

uint64_t request_body_size(const struct request *r) {
    return r->body.size;
}

enum content_kind request_content(const struct request *r) {
    if (r->body.received == 0 && !r->streamed) return CONTENT_NONE;
    return content_kind(request_known(r, HEADER_CONTENT_TYPE));
}

const struct multipart *request_multipart(struct request *r, struct error *err) {
    if (r->body.parts) return r->body.parts;
    if (r->streamed) {
        error_set(err, ERR_INVALID, "The body is read piece by piece");
        return NULL;
    }
    struct str type = request_known(r, HEADER_CONTENT_TYPE);
    if (content_kind(type) != CONTENT_MULTIPART) {
        error_set(err, ERR_INVALID, "Not a multipart body");
        return NULL;
    }
    struct multipart_parser *p = multipart_new(r->arena, header_param(type, STR("boundary")), NULL, err);
    if (!p || !multipart_feed(p, request_body(r), err)) return NULL;
    r->body.parts = multipart_finish(p, err);
    return r->body.parts;
}

bool request_streamed(const struct request *r) {
    return r->streamed;
}

static enum read_result read_some(struct request *r, struct buf *out, size_t max) {
    struct conn *c = r->conn;
    if (r->expects) {
        r->expects = false;
        if (c->first != r)
            r->wants_continue = true;
        else if (!r->streaming)
            response_interim(c);
    }
    switch (body_take(&r->body, out, max)) {
    case BODY_SOME:
        conn_touch(c); /* there may be room again */
        return READ_SOME;
    case BODY_END:
        return READ_END;
    case BODY_WAIT:
        conn_touch(c);
        return READ_WAIT;
    default:
        parse_abandon(r);
        return READ_FAILED;
    }
}

enum read_result request_read(struct request *r, struct buf *out, size_t max) {
    if (!r->streamed) return READ_END;
    if (!r->conn || r->answered) return READ_GONE;
    enum read_result result = read_some(r, out, max);
    if (r->timed_out || !r->deadline_ms) return result;
    if (result == READ_WAIT)
        wheel_disarm(&r->deadline);
    else
        wheel_set(&r->server->wheel, &r->deadline, r->deadline_ms);
    return result;
}

int request_read_failure(const struct request *r, struct str *why) {
    *why = str_of(r->body.why);
    return r->body.refusal;
}

void request_on_readable(struct request *r, void (*readable)(void *data), void *data) {
    r->readable = readable;
    r->readable_data = data;
}

void request_readable(struct request *r) {
    void (*readable)(void *) = r->readable;
    r->readable = NULL;
    if (readable) readable(r->readable_data);
}

struct arena *request_arena(const struct request *r) {
    return r->arena;
}

uint64_t request_started_us(const struct request *r) {
    return r->started_us;
}

/* An id that goes into logs and headers: printable, without blanks or quotes, not long. */
static bool id_usable(struct str id) {
    if (id.len == 0 || id.len > REQUEST_ID_MAX) return false;
    for (size_t i = 0; i < id.len; i++)
        if (id.at[i] <= 0x20 || id.at[i] >= 0x7f || id.at[i] == '"' || id.at[i] == '\\') return false;
    return true;
}

struct str request_id(struct request *r) {
    if (r->id_len) return str_n(r->id, r->id_len);
    struct str sent = r->target.at ? request_known(r, HEADER_X_REQUEST_ID) : (struct str){0};
    if (id_usable(sent)) {
        memcpy(r->id, sent.at, sent.len);
        r->id_len = (uint16_t)sent.len;
    } else {
        char id[37];
        uuid_v7(id);
        memcpy(r->id, id, 36);
        r->id_len = 36;
    }
    return str_n(r->id, r->id_len);
}

struct str request_remote(struct request *r) {
    struct conn *c = r->conn;
    if (!c) return STR("");
    if (c->remote_len == 0) {
        struct sockaddr_storage at;
        int len = sizeof at;
        const char *text = NULL;
        if (uv_tcp_getpeername(&c->uv.tcp, (struct sockaddr *)&at, &len) == 0) {
            const struct sockaddr_in *v4 = (const struct sockaddr_in *)&at;
            const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&at;
            if (at.ss_family == AF_INET)
                text = inet_ntop(AF_INET, &v4->sin_addr, c->remote, sizeof c->remote);
            else if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr))
                text = inet_ntop(AF_INET, &v6->sin6_addr.s6_addr[12], c->remote, sizeof c->remote);
            else
                text = inet_ntop(AF_INET6, &v6->sin6_addr, c->remote, sizeof c->remote);
        }
        if (!text) c->remote[0] = '\0';
        c->remote_len = (uint8_t)strlen(c->remote);
    }
    /* A copy: the connection may go before the request does. */
    char *copy = arena_strdup(r->arena, str_n(c->remote, c->remote_len));
    return str_of(copy ? copy : "");
}

struct str request_client(struct request *r) {
    if (r->client.at) return r->client;
    struct str peer = request_remote(r), lines[HEADERS_MAX];
    size_t count = 0;
    char text[ADDRESS_TEXT_MAX];
    if (r->server->set.proxies && r->target.at && request_known(r, HEADER_X_FORWARDED_FOR).at) {
        for (size_t i = 0; i < request_header_count(r); i++) {
            struct str name, value;
            request_header_at(r, i, &name, &value);
            if (header_id(name) == HEADER_X_FORWARDED_FOR) lines[count++] = value;
        }
    }
    size_t len = count > 0 ? forwarded_client(r->server->set.proxies, peer, lines, count, text) : 0;
    char *copy = len > 0 ? arena_strdup(r->arena, str_n(text, len)) : NULL;
    r->client = copy ? str_n(copy, len) : peer;
    return r->client;
}

bool request_gone(const struct request *r) {
    return !r->conn && !r->answered;
}

void request_on_cancel(struct request *r, void (*cancel)(void *data, enum error_kind why), void *data) {
    r->cancel = cancel;
    r->cancel_data = data;
}

void request_timeout(struct wheel_entry *e) {
    struct request *r = (struct request *)((char *)e - offsetof(struct request, deadline));
    if (!r->at_work) return;
    void (*cancel)(void *, enum error_kind) = r->cancel;
    if (cancel && !r->timed_out) {
        r->timed_out = true;
        r->cancel = NULL;
        wheel_set(&r->server->wheel, e, DEADLINE_GRACE_MS);
        cancel(r->cancel_data, ERR_DEADLINE); /* may release r */
        return;
    }
    if (!r->conn || r->answered) return;
    access_refused("deadline");
    if (r->streaming) {
        r->conn->torn = true;
        conn_touch(r->conn);
        return;
    }
    bool told = request_refuse(r, 503, (struct str){0}, true);
    (void)told; /* the client has gone */
}

void request_done(struct request *r) {
    struct conn *c = r->conn;
    r->server->in_flight--;
    access_in_flight(r->server);
    r->cancel = NULL;
    r->drain = NULL;
    r->readable = NULL;
    if (c && !r->answered) {
        if (r->streaming) {
            c->torn = true;
            conn_touch(c);
        } else {
            log_line(LOG_ERROR, "a handler ended without an answer");
            bool told = request_refuse(r, 500, (struct str){0}, false);
            (void)told; /* a torn connection is closed by its settling */
        }
    }
    r->at_work = false;
    wheel_disarm(&r->deadline);
    /* What the handler holds is given back now, not when the answers before this one have left. */
    arena_reset(r->arena);
    r->client = (struct str){0}; /* it lay there; the access log asks again */
    /* Else it waits for its turn in the queue, or for the rest of a body that nobody takes. */
    if (!r->at && !(r->conn && r->conn->reading == r)) request_release(r);
}
