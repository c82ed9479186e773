/* From bytes to requests. llhttp pauses at the end of each head and of each message; what must be decided there is
 * decided here, outside of its callbacks. llhttp runs strict. What it is lenient about all the same (a bare line feed,
 * a bare carriage return, folded lines, endless chunk extensions, a missing or second Host) is checked here and refused
 * with 400 and a closed connection: a server that reads a message otherwise than the proxy in front of it can be
 * smuggled through. */
#include <stdlib.h>

#include "http/conn.h"
#include "http/decode.h"
#include "runtime/clock.h"
#include "runtime/log.h"

static struct request *reading(llhttp_t *p) {
    return ((struct conn *)p->data)->reading;
}

static int on_url(llhttp_t *p, const char *at, size_t n) {
    struct request *r = reading(p);
    if (r->url_len == 0) r->url = (uint16_t)(at - r->base);
    r->url_len = (uint16_t)(r->url_len + n);
    return 0;
}

static int on_header_field(llhttp_t *p, const char *at, size_t n) {
    struct request *r = reading(p);
    if (r->head_complete) return 0; /* a trailer: nobody reads them */
    if (!r->in_name) {
        if (r->header_count == HEADERS_MAX) return HPE_USER;
        r->headers[r->header_count++] = (struct header_ref){.name = (uint16_t)(at - r->base)};
        r->in_name = true;
    }
    struct header_ref *h = &r->headers[r->header_count - 1];
    h->name_len = (uint16_t)(h->name_len + n);
    return 0;
}

static int on_header_value(llhttp_t *p, const char *at, size_t n) {
    struct request *r = reading(p);
    if (r->head_complete) return 0;
    struct header_ref *h = &r->headers[r->header_count - 1];
    if (h->value == 0) h->value = (uint16_t)(at - r->base);
    h->value_len = (uint16_t)(h->value_len + n);
    return 0;
}

static int on_header_value_complete(llhttp_t *p) {
    struct request *r = reading(p);
    if (r->head_complete) return 0;
    struct header_ref *h = &r->headers[r->header_count - 1];
    r->in_name = false;
    enum header_id id = header_id(str_n(r->base + h->name, h->name_len));
    if (id == HEADER_OTHER) return 0;
    if (r->known[id]) r->repeated |= (uint32_t)1 << id;
    /* The first counts; of X-Forwarded-For the last, which is the nearest proxy's: those before it may be the client's.
     */
    if (r->known[id] == 0 || id == HEADER_X_FORWARDED_FOR) r->known[id] = (uint8_t)r->header_count;
    return 0;
}

static int on_headers_complete(llhttp_t *p) {
    struct conn *c = p->data;
    /* An upgrade that nobody asked us for: the message is an ordinary one. CONNECT is refused. */
    p->upgrade = 0;
    c->event = EVENT_HEAD;
    return HPE_PAUSED;
}

static int on_body(llhttp_t *p, const char *at, size_t n) {
    struct conn *c = p->data;
    struct request *r = c->reading;
    c->framing -= n;
    if (r->answered) {
        r->body.received += n; /* dropped */
        return 0;
    }
    r->expects = false; /* it did not wait to be told */
    bool stays = !r->chunked && n == r->declared && c->chunk == r->chunk;
    return body_feed(&r->body, str_n(at, n), stays) ? 0 : HPE_USER;
}

/* The last chunk has no bytes; what follows is the trailer, whose line ends are checked like those of a head. */
static int on_chunk_header(llhttp_t *p) {
    struct conn *c = p->data;
    if (p->content_length > 0) return 0;
    c->event = EVENT_LAST_CHUNK;
    return HPE_PAUSED;
}

static int on_message_complete(llhttp_t *p) {
    struct conn *c = p->data;
    if (!llhttp_should_keep_alive(p)) c->reading->keep_alive = false;
    c->event = EVENT_MESSAGE;
    return HPE_PAUSED;
}

static const llhttp_settings_t callbacks = {
    .on_url = on_url,
    .on_header_field = on_header_field,
    .on_header_value = on_header_value,
    .on_header_value_complete = on_header_value_complete,
    .on_headers_complete = on_headers_complete,
    .on_body = on_body,
    .on_chunk_header = on_chunk_header,
    .on_message_complete = on_message_complete,
};

void parse_init(struct conn *c) {
    llhttp_init(&c->parser, HTTP_REQUEST, &callbacks);
    c->parser.data = c;
}

bool parse_held(const struct request *r) {
    return r->streamed && !r->answered && (r->expects || body_waiting(&r->body) > BODY_WINDOW);
}

bool parse_blocked(const struct conn *c) {
    if (c->no_more) return false; /* what comes is dropped, so reading it costs nothing */
    if (c->reading && c->reading->streamed && !c->reading->answered && body_waiting(&c->reading->body) > BODY_WINDOW)
        return true;
    return (!c->reading && c->queued >= c->server->set.max_pipelined) ||
           conn_backlog(c) > c->server->set.write_high_water;
}

static void enqueue(struct conn *c, struct request *r) {
    r->at = c->last ? c->last : &c->first;
    *r->at = r;
    c->last = &r->next;
    c->queued++;
    r->head_complete = true;
}

/* Refuses the request that is being read, in its turn, and takes no more from this connection. */
void parse_refuse(struct conn *c, int status, struct str detail, const char *reason) {
    struct request *r = c->reading;
    if (!r->head_complete) enqueue(c, r);
    c->reading = NULL;
    c->no_more = c->refused = true;
    access_refused(reason);
    if (r->answered) {
        /* Its answer is out already (an early refusal): nothing can be added to that. */
        r->keep_alive = false;
        if (r->at) return;
        c->last_answer = true;
        r->conn = NULL;
        if (!r->at_work) request_release(r);
        return;
    }
    if (r->streamed && r->at_work) {
        r->keep_alive = false;
        if (!r->body.refusal) body_fail(&r->body, status, detail);
        request_readable(r);
        return;
    }
    if (!request_refuse(r, status, detail, true)) c->torn = true;
}

void parse_abandon(struct request *r) {
    struct conn *c = r->conn;
    if (!c || c->reading != r) return;
    c->reading = NULL;
    c->no_more = c->refused = true;
    r->keep_alive = false;
    conn_touch(c);
}

/* Line ends are exactly CRLF, no line is folded, nothing else below a blank but tabs, no DEL. */
static bool head_is_clean(struct str head) {
    const unsigned char *p = (const unsigned char *)head.at;
    unsigned bad = 0;
    size_t ends = 0;
    for (size_t i = 0; i < head.len; i++) {
        unsigned char c = p[i];
        bad |= (unsigned)((c < 0x20) & (c != '\r') & (c != '\n') & (c != '\t')) | (unsigned)(c == 0x7f);
        ends += (c == '\r') | (c == '\n');
    }
    if (bad) return false;
    const char *at = head.at, *end = head.at + head.len;
    size_t seen = 0;
    while ((at = memchr(at, '\n', (size_t)(end - at)))) {
        if (at == head.at || at[-1] != '\r') return false;
        seen += 2;
        at++;
        if (at == end) break;
        if (*at == ' ' || *at == '\t') return false;
    }
    return seen == ends; /* else there is a carriage return that no line feed follows */
}

/* As head_is_clean, for the part of a trailer that has come; `*before` is the byte before it, '\n' at its start. */
static bool trailer_is_clean(struct str part, char *before) {
    for (size_t i = 0; i < part.len; i++) {
        char c = part.at[i];
        if ((*before == '\r') != (c == '\n')) return false;
        if (((unsigned char)c < 0x20 && c != '\r' && c != '\n' && c != '\t') || c == 0x7f) return false;
        if (*before == '\n' && (c == ' ' || c == '\t')) return false;
        *before = c;
    }
    return true;
}

/* Path and query out of the target: origin-form, absolute-form or "*". */
static bool split_target(struct request *r) {
    struct str t = str_n(r->base + r->url, r->url_len);
    if (t.len && t.at[0] != '/' && !str_eq(t, STR("*"))) {
        const char *scheme = memmem(t.at, t.len, "://", 3);
        if (!scheme) return false;
        struct str rest = str_n(scheme + 3, t.len - (size_t)(scheme + 3 - t.at));
        size_t authority = 0;
        while (authority < rest.len && rest.at[authority] != '/' && rest.at[authority] != '?') authority++;
        if (authority == 0) return false;
        t = str_n(rest.at + authority, rest.len - authority);
        if (t.len == 0) t = STR("/");
    }
    const char *fragment = t.len ? memchr(t.at, '#', t.len) : NULL;
    if (fragment) return false;
    r->target = t;
    const char *question = t.len ? memchr(t.at, '?', t.len) : NULL;
    size_t n = question ? (size_t)(question - t.at) : t.len;
    r->path = str_n(t.at, n);
    r->query = question ? str_n(question + 1, t.len - n - 1) : STR("");
    return t.len > 0;
}

static enum http_method method_of(uint8_t m) {
    switch (m) {
    case HTTP_GET:
        return HTTP_M_GET;
    case HTTP_HEAD:
        return HTTP_M_HEAD;
    case HTTP_POST:
        return HTTP_M_POST;
    case HTTP_PUT:
        return HTTP_M_PUT;
    case HTTP_PATCH:
        return HTTP_M_PATCH;
    case HTTP_DELETE:
        return HTTP_M_DELETE;
    case HTTP_OPTIONS:
        return HTTP_M_OPTIONS;
    default:
        return HTTP_M_OTHER;
    }
}

static unsigned count_of(const struct request *r, struct str name) {
    unsigned n = 0;
    for (size_t i = 0; i < r->header_count; i++)
        n += str_ieq(str_n(r->base + r->headers[i].name, r->headers[i].name_len), name);
    return n;
}

/* What decides how long the message is, and whom it is for, must be said once and clearly. */
static bool framing_is_clear(const struct conn *c, const struct request *r) {
    if (r->http_minor >= 1 && count_of(r, STR("host")) != 1) return false;
    if (r->known[HEADER_TRANSFER_ENCODING]) {
        struct str te = request_known(r, HEADER_TRANSFER_ENCODING);
        if (r->http_minor == 0 || r->known[HEADER_CONTENT_LENGTH] || !str_ieq(te, STR("chunked"))) return false;
        if (count_of(r, STR("transfer-encoding")) != 1 || !(c->parser.flags & F_CHUNKED)) return false;
    }
    return !r->known[HEADER_CONTENT_LENGTH] || count_of(r, STR("content-length")) == 1;
}

_Static_assert(HEADER_COUNT <= 32, "request.repeated has a bit for each header");

/* Who asks, for whom, and whether for the first time, must be said once: of two answers to that a gateway may have
 * written one and the client the other, and no order tells which. */
static bool identity_is_clear(const struct request *r) {
    const uint32_t once = (uint32_t)1 << HEADER_AUTHORIZATION | (uint32_t)1 << HEADER_X_TENANT_KASMA_ID |
                          (uint32_t)1 << HEADER_X_APP_KASMA_ID | (uint32_t)1 << HEADER_X_USER_ID |
                          (uint32_t)1 << HEADER_X_KASMA_KEY | (uint32_t)1 << HEADER_X_GATEWAY_SECRET |
                          (uint32_t)1 << HEADER_X_IDEMPOTENCY_KEY;
    return (r->repeated & once) == 0;
}

/* Percent-decodes what the route's parameters matched; a bad escape anywhere in the path is refused. `bad` is the raw
 * segment at fault. */
static bool decode_params(struct request *r, const struct route_match *m, struct str *bad_segment) {
    for (unsigned i = 0; i < r->route->params; i++) {
        bool bad;
        r->params[i] = percent_decode_strict(r->arena, m->values[i], &bad);
        if (bad) {
            *bad_segment = m->values[i];
            return false;
        }
        if (!r->params[i].at) r->params[i] = STR("");
    }
    if (r->route->params || !memchr(r->path.at, '%', r->path.len)) return true;
    for (struct str rest = r->path; rest.len;) {
        const char *slash = memchr(rest.at, '/', rest.len);
        struct str segment = str_n(rest.at, slash ? (size_t)(slash - rest.at) : rest.len);
        size_t used = segment.len + (slash != NULL);
        rest = str_n(rest.at + used, rest.len - used);
        bool bad;
        struct str decoded = percent_decode_strict(r->arena, segment, &bad);
        if (bad) {
            *bad_segment = segment;
            return false;
        }
        if (!decoded.at) return true; /* out of memory: the route will say so */
    }
    return true;
}

/* Decides about the body before it is read. False: the request was refused. */
static bool begin_body(struct conn *c, struct request *r, bool all_here) {
    const struct server_settings *set = &c->server->set;
    bool has_body = r->chunked || r->declared > 0;
    size_t limit = r->route->options.body_limit ? r->route->options.body_limit : set->body_limit;
    struct str expect = request_known(r, HEADER_EXPECT);
    if (expect.at && r->http_minor >= 1 && !str_ieq(expect, STR("100-continue"))) {
        parse_refuse(c, 417, (struct str){0}, "expect");
        return false;
    }
    if (!has_body) return true;
    if (r->declared > limit) {
        parse_refuse(c, 413, (struct str){0}, "body");
        return false;
    }
    struct str encoding = request_known(r, HEADER_CONTENT_ENCODING);
    enum coding coding = coding_of(encoding);
    if (coding == CODING_UNKNOWN) {
        char *lower = arena_strdup(r->arena, encoding);
        for (char *p = lower; p && *p; p++)
            if (*p >= 'A' && *p <= 'Z') *p = (char)(*p | 0x20);
        const char *text = lower ? arena_printf(r->arena, "unsupported content encoding \"%s\"", lower) : NULL;
        parse_refuse(c, 415, str_of(text), "encoding");
        return false;
    }
    struct str type = request_known(r, HEADER_CONTENT_TYPE);
    enum content_kind kind = content_kind(type);
    struct str charset =
        kind == CONTENT_JSON || kind == CONTENT_FORM ? header_param(type, STR("charset")) : (struct str){0};
    if (charset.len && !str_ieq(charset, STR("utf-8")) && !str_ieq(charset, STR("utf8"))) {
        char *upper = arena_strdup(r->arena, charset);
        for (char *p = upper; p && *p; p++)
            if (*p >= 'a' && *p <= 'z') *p = (char)(*p & ~0x20);
        const char *text = upper ? arena_printf(r->arena, "unsupported charset \"%s\"", upper) : NULL;
        parse_refuse(c, 415, str_of(text), "charset");
        return false;
    }
    if (r->route->options.stream) {
        r->streamed = true;
        if (!body_begin_stream(&r->body, limit, coding)) {
            parse_refuse(c, r->body.refusal, str_of(r->body.why), "body");
            return false;
        }
        r->expects = expect.at && r->http_minor >= 1 && !all_here;
        return true;
    }
    struct str boundary = kind == CONTENT_MULTIPART ? header_param(type, STR("boundary")) : (struct str){0};
    if (kind == CONTENT_MULTIPART && r->route->options.spool && !boundary.at) boundary = STR("");
    if (!body_begin(&r->body, r->arena, limit, coding, r->route->options.spool ? set->spool_dir : NULL, boundary)) {
        parse_refuse(c, r->body.refusal, str_of(r->body.why), "body");
        return false;
    }
    if (expect.at && r->http_minor >= 1 && !all_here) {
        if (c->first == r)
            response_interim(c);
        else
            r->wants_continue = true;
    }
    return true;
}

static void dispatch(struct conn *c, struct request *r) {
    struct server *s = c->server;
    s->in_flight++;
    access_in_flight(s);
    r->at_work = true;
    r->deadline_ms = r->route->options.timeout_ms ? r->route->options.timeout_ms : s->set.request_ms;
    struct request *outer = s->dispatching;
    s->dispatching = r;
    r->route->handler(r, r->route->data);
    if (s->dispatching == r && r->at_work && r->deadline.due == 0 && r->deadline_ms && !r->readable)
        wheel_set(&s->wheel, &r->deadline, r->deadline_ms);
    s->dispatching = outer;
}

static void on_head(struct conn *c) {
    struct server *s = c->server;
    struct request *r = c->reading;
    struct str head = str_n(r->base, c->parsed - (size_t)(r->base - c->chunk->data));
    /* Before anything is refused: an answer may wait for its turn, and its head is looked at once more for the log. */
    r->chunk = c->chunk;
    r->chunk->refs++;
    r->llhttp_method = c->parser.method;
    r->method = method_of(c->parser.method);
    r->http_minor = c->parser.http_minor;
    r->keep_alive = !s->leaving;
    if (head.len > s->set.header_limit) {
        parse_refuse(c, 431, (struct str){0}, "headers");
        return;
    }
    if (r->url_len > s->set.url_limit) {
        parse_refuse(c, 414, (struct str){0}, "url");
        return;
    }
    if (!head_is_clean(head) || c->parser.http_major != 1 || c->parser.method == HTTP_CONNECT || !split_target(r) ||
        !framing_is_clear(c, r) || !identity_is_clear(r)) {
        parse_refuse(c, 400, (struct str){0}, "malformed");
        return;
    }
    r->chunked = (c->parser.flags & F_CHUNKED) != 0;
    r->declared = r->chunked ? 0 : c->parser.content_length;
    r->started_us = clock_mono_us();
    r->began_ms = uv_now(loop_get());
    c->framing = 0;
    enqueue(c, r);
    if (c->over) {
        parse_refuse(c, 503, (struct str){0}, "connections");
        return;
    }
    struct route_match match;
    bool found = routes_find(s->routes, r->method, r->path, &match);
    (void)found; /* the fallback handles the rest */
    r->route = match.route;
    struct str bad;
    if (!decode_params(r, &match, &bad)) {
        const char *text = arena_printf(r->arena, "Failed to decode param '%.*s'", STR_FMT(bad));
        bool has_body = r->chunked || r->declared > 0;
        if (has_body) {
            parse_refuse(c, 400, str_of(text), "path");
        } else {
            access_refused("path");
            if (!request_refuse(r, 400, str_of(text), false)) c->torn = true;
        }
        return;
    }
    if (!begin_body(c, r, c->parsed < c->chunk->used) || !r->streamed) return; /* refused: the queue knows */
    if (s->in_flight >= s->set.max_in_flight)
        parse_refuse(c, 503, (struct str){0}, "in_flight");
    else
        dispatch(c, r);
}

static void on_message(struct conn *c) {
    struct server *s = c->server;
    struct request *r = c->reading;
    if (!body_end(&r->body)) {
        parse_refuse(c, r->body.refusal, str_of(r->body.why), "body");
        return;
    }
    c->reading = NULL;
    if (!r->keep_alive) c->no_more = true;
    if (r->answered) {
        /* Answered before its body had come: popped already, or waiting for its turn. */
        if (r->at) return;
        r->conn = NULL;
        if (!r->keep_alive) c->last_answer = true;
        if (!r->at_work) request_release(r);
        return;
    }
    if (r->streamed) {
        request_readable(r);
        return;
    }
    if (s->in_flight >= s->set.max_in_flight) {
        access_refused("in_flight");
        if (!request_refuse(r, 503, (struct str){0}, false)) c->torn = true;
        return;
    }
    dispatch(c, r);
}

static void on_error(struct conn *c, llhttp_errno_t e) {
    struct request *r = c->reading;
    if (e == HPE_USER && r->body.refusal) {
        parse_refuse(c, r->body.refusal, str_of(r->body.why), "body");
        return;
    }
    bool too_many = e == HPE_USER && r->header_count == HEADERS_MAX;
    parse_refuse(c, too_many ? 431 : 400, (struct str){0}, too_many ? "headers" : "malformed");
}

/* Between messages an empty line is ignored (RFC 9112 2.2); a request begins at the next byte. */
static bool begin_message(struct conn *c) {
    while (c->parsed < c->chunk->used && (c->chunk->data[c->parsed] == '\r' || c->chunk->data[c->parsed] == '\n'))
        c->parsed++;
    if (c->parsed == c->chunk->used) return false;
    struct request *r = request_take(c->server);
    if (!r) {
        c->torn = true;
        return false;
    }
    r->conn = c;
    r->base = c->chunk->data + c->parsed;
    r->began_ms = uv_now(loop_get());
    c->reading = r;
    return true;
}

void parse_run(struct conn *c) {
    /* After a head the parser must run once more even without new bytes: that is when it sees that there is no body. */
    bool after_head = false;
    while (!c->no_more && !c->torn && !c->closing && c->chunk && (c->parsed < c->chunk->used || after_head)) {
        if (!after_head && parse_blocked(c)) return;
        after_head = false;
        if (!c->reading && !begin_message(c)) return;
        struct request *r = c->reading;
        const char *from = c->chunk->data + c->parsed;
        size_t n = c->chunk->used - c->parsed;
        bool in_body = r->head_complete;
        /* Offsets are 16 bits wide: the parser is not shown more of a head than may be in one. */
        size_t head_room = c->server->set.header_limit + 1;
        size_t have = (size_t)(from - r->base);
        if (!in_body && have + n > head_room) n = have < head_room ? head_room - have : 0;
        if (n == 0 && !in_body) {
            parse_refuse(c, r->url_len > c->server->set.url_limit ? 414 : 431, (struct str){0}, "headers");
            return;
        }
        c->event = EVENT_NONE;
        llhttp_errno_t e = llhttp_execute(&c->parser, from, n);
        size_t used = e == HPE_OK ? n : (size_t)(llhttp_get_error_pos(&c->parser) - from);
        c->parsed += used;
        if (in_body && (e == HPE_OK || e == HPE_PAUSED)) {
            c->framing += used; /* on_body has taken the body's bytes off */
            if (c->framing > c->server->set.header_limit + r->body.received) {
                parse_refuse(c, 400, (struct str){0}, "chunks");
                return;
            }
            if (c->in_trailer && !trailer_is_clean(str_n(from, used), &c->trailer_before)) {
                parse_refuse(c, 400, (struct str){0}, "malformed");
                return;
            }
        }
        if (e == HPE_PAUSED) {
            llhttp_resume(&c->parser);
            after_head = c->event == EVENT_HEAD;
            c->in_trailer = c->event == EVENT_LAST_CHUNK;
            c->trailer_before = '\n';
            if (after_head)
                on_head(c);
            else if (c->event == EVENT_MESSAGE)
                on_message(c);
        } else if (e != HPE_OK) {
            on_error(c, e);
        }
        /* Outside of llhttp's callbacks: who takes the bytes may answer and so end all this. */
        if (in_body && c->reading == r && r->readable) request_readable(r);
    }
}
