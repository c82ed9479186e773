/* The queue is a ring of references to bytes. At the end of a loop turn what has gathered goes out in one writev; what
 * the socket does not take is left to libuv, which holds on to the first `writing` entries until it is done with them.
 *
 * States: OPEN -> ENDING (a close frame is queued, or the stream's end was asked for; nothing more is queued) -> SHUT
 * (all is written and our side is closed; what still comes is dropped until the client closes too) -> gone. `closed` is
 * called when OPEN is left.
 *
 * A message handler may close its own connection, and closing calls back: nothing here frees a push; conn.c does, when
 * libuv has let go of the socket. */
#include "http/push.h"

#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "http/conn.h"
#include "http/push_conn.h"
#include "runtime/log.h"
#include "runtime/metrics.h"

#define ENDING_MS 5000          /* for a client to take what is left and to close */
#define WRITE_MAX 16            /* entries of one writev */
#define ENTRY_COST ((size_t)64) /* of an entry beside its bytes, so that a flood of empty ones is bounded too */

struct bytes {
    unsigned refs;
    size_t len;
    char at[];
};

struct push_message {
    struct bytes *frame, *event; /* made when the first connection of that kind gets it */
    struct bytes *text;
    size_t name_len;
    char name[];
};

enum kind { WEBSOCKET, EVENTS };
enum state { OPEN, ENDING, SHUT };

struct push {
    struct conn *c; /* NULL once it is closed */
    struct push_settings set;
    struct push_handler handler;
    enum kind kind;
    enum state state;
    struct ws_parser parser;
    struct buf pending; /* came while paused */
    struct bytes **ring;
    unsigned pings;                      /* of the client since ours */
    unsigned cap, first, count, writing; /* cap is a power of two */
    size_t queued, offset;               /* offset: bytes of the first entry that are out */
    size_t room;                         /* SIZE_MAX: nobody waits for room */
    uint64_t given, taken;               /* bytes that the socket got; of these, what the client had at the last ping */
    uint64_t heard_ms, moved_ms;         /* moved: when it was last seen to have taken all, or more than before */
    uv_write_t write;
    bool write_active, paused, feeding, told;
};

/* ---- numbers ---- */

static struct metric *open_connections, *dropped, *sent, *received;
static uint32_t open_slots[2], sent_slots[2], received_slot;
static size_t open_count[2];

static void count_open(enum kind kind, int change) {
    if (!open_connections) {
        open_connections = metric_gauge("kasma_connections", "Open connections.", METRIC_SUM, "kind");
        open_slots[WEBSOCKET] = metric_series(open_connections, "websocket");
        open_slots[EVENTS] = metric_series(open_connections, "events");
        dropped = metric_counter("kasma_push_dropped_total",
                                 "Clients of WebSockets and event streams that were given up.", "reason");
        sent = metric_counter("kasma_push_sent_total", "Messages queued for clients.", "kind");
        sent_slots[WEBSOCKET] = metric_series(sent, "websocket");
        sent_slots[EVENTS] = metric_series(sent, "events");
        received = metric_counter("kasma_push_received_total", "Messages from WebSocket clients.", NULL);
        received_slot = metric_only(received);
    }
    open_count[kind] += (size_t)change;
    metric_set(open_slots[kind], (double)open_count[kind]);
}

static void count_dropped(const char *reason) {
    metric_add(metric_series(dropped, reason), 1);
}

/* ---- bytes ---- */

static struct bytes *bytes_new(size_t len) {
    struct bytes *b = len < SIZE_MAX - sizeof *b ? malloc(sizeof *b + len) : NULL;
    if (b) *b = (struct bytes){.refs = 1, .len = len};
    return b;
}

static void bytes_drop(struct bytes *b) {
    if (b && --b->refs == 0) free(b);
}

static struct bytes *frame_of(enum ws_opcode opcode, struct str payload) {
    char head[WS_HEAD_MAX];
    size_t n = ws_head(opcode, payload.len, head);
    struct bytes *b = bytes_new(n + payload.len);
    if (!b) return NULL;
    memcpy(b->at, head, n);
    if (payload.len) memcpy(b->at + n, payload.at, payload.len);
    return b;
}

/* Every line of the text is a data line of its own: whatever ends a line for the client (CR, LF, CRLF) must not end one
 * of ours. */
static struct bytes *event_of(struct str name, struct str text) {
    struct buf b = {0};
    bool ok = !name.len || (buf_add(&b, STR("event: ")) && buf_add(&b, name) && buf_byte(&b, '\n'));
    size_t from = 0;
    for (size_t i = 0; ok && i <= text.len; i++) {
        if (i < text.len && text.at[i] != '\n' && text.at[i] != '\r') continue;
        ok = buf_add(&b, STR("data: ")) && buf_add(&b, str_n(text.at + from, i - from)) && buf_byte(&b, '\n');
        if (i + 1 < text.len && text.at[i] == '\r' && text.at[i + 1] == '\n') i++;
        from = i + 1;
    }
    ok = ok && buf_byte(&b, '\n');
    struct bytes *out = ok ? bytes_new(b.len) : NULL;
    if (out) memcpy(out->at, b.data, b.len);
    buf_free(&b);
    return out;
}

struct push_message *push_message_new(struct str text, struct str event) {
    struct push_message *m = malloc(sizeof *m + event.len);
    struct bytes *copy = m ? bytes_new(text.len) : NULL;
    if (!copy) {
        free(m);
        return NULL;
    }
    *m = (struct push_message){.text = copy, .name_len = event.len};
    if (text.len) memcpy(copy->at, text.at, text.len);
    if (event.len) memcpy(m->name, event.at, event.len);
    return m;
}

void push_message_free(struct push_message *m) {
    if (!m) return;
    bytes_drop(m->frame);
    bytes_drop(m->event);
    bytes_drop(m->text);
    free(m);
}

static struct bytes *form_of(struct push_message *m, enum kind kind) {
    struct bytes **form = kind == WEBSOCKET ? &m->frame : &m->event;
    struct str text = str_n(m->text->at, m->text->len);
    if (!*form) *form = kind == WEBSOCKET ? frame_of(WS_TEXT, text) : event_of(str_n(m->name, m->name_len), text);
    return *form;
}

/* ---- the queue ---- */

static struct bytes **entry(const struct push *p, unsigned i) {
    return &p->ring[(p->first + i) & (p->cap - 1)];
}

/* Takes the caller's reference, also when it fails. */
static bool enqueue(struct push *p, struct bytes *b) {
    if (!b) return false;
    if (p->count == p->cap) {
        unsigned cap = p->cap ? p->cap * 2 : 8;
        struct bytes **ring = malloc(cap * sizeof(struct bytes *));
        if (!ring) {
            bytes_drop(b);
            return false;
        }
        for (unsigned i = 0; i < p->count; i++) ring[i] = *entry(p, i);
        free(p->ring);
        p->ring = ring;
        p->cap = cap;
        p->first = 0;
    }
    *entry(p, p->count++) = b;
    p->queued += b->len + ENTRY_COST;
    return true;
}

static void dequeue(struct push *p) {
    struct bytes *b = *entry(p, 0);
    p->first = (p->first + 1) & (p->cap - 1);
    p->count--;
    p->queued -= b->len + ENTRY_COST;
    p->offset = 0;
    bytes_drop(b);
    if (p->count) return;
    free(p->ring);
    p->ring = NULL;
    p->cap = p->first = 0;
}

/* What has not begun to leave is forgotten: it would only be in the way of the last word. */
static void forget_unsent(struct push *p) {
    unsigned keep = p->writing ? p->writing : p->offset ? 1 : 0;
    while (p->count > keep) {
        struct bytes *b = *entry(p, --p->count);
        p->queued -= b->len + ENTRY_COST;
        bytes_drop(b);
    }
}

size_t push_queued(const struct push *p) {
    return p->queued;
}

void push_on_room(struct push *p, size_t bytes) {
    p->room = bytes;
    if (p->c) conn_touch(p->c);
}

static void wrote(struct push *p, size_t n) {
    while (p->count && n >= (*entry(p, 0))->len - p->offset) {
        n -= (*entry(p, 0))->len - p->offset;
        dequeue(p);
    }
    p->offset += n;
}

static void on_written(uv_write_t *w, int status) {
    struct push *p = w->data;
    p->write_active = false;
    while (p->writing) {
        dequeue(p);
        p->writing--;
    }
    if (!p->c || p->c->closing) return;
    if (status < 0)
        conn_close(p->c);
    else
        conn_settle(p->c);
}

/* False: the connection is lost. */
static bool flush(struct push *p) {
    while (p->count && !p->write_active) {
        uv_buf_t bufs[WRITE_MAX];
        unsigned n = p->count < WRITE_MAX ? p->count : WRITE_MAX;
        size_t total = 0;
        for (unsigned i = 0; i < n; i++) {
            struct bytes *b = *entry(p, i);
            size_t skip = i == 0 ? p->offset : 0;
            bufs[i] = uv_buf_init(b->at + skip, (unsigned)(b->len - skip));
            total += b->len - skip;
        }
        int got = uv_try_write(&p->c->uv.stream, bufs, n);
        if (got == UV_EAGAIN) got = 0;
        if (got < 0) return false;
        p->given += (uint64_t)got;
        wrote(p, (size_t)got);
        if ((size_t)got == total) continue;
        n = p->count < WRITE_MAX ? p->count : WRITE_MAX;
        for (unsigned i = 0; i < n; i++) {
            struct bytes *b = *entry(p, i);
            size_t skip = i == 0 ? p->offset : 0;
            bufs[i] = uv_buf_init(b->at + skip, (unsigned)(b->len - skip));
        }
        p->write.data = p;
        if (uv_write(&p->write, &p->c->uv.stream, bufs, n, on_written) != 0) return false;
        p->given += total - (size_t)got;
        p->write_active = true;
        p->writing = n;
    }
    return true;
}

/* ---- the end ---- */

/* Once, and last: the callback's owner is gone after it. */
static void tell_closed(struct push *p, unsigned code, struct str reason) {
    if (p->told) return;
    p->told = true;
    p->room = SIZE_MAX;
    count_open(p->kind, -1);
    if (p->handler.closed) p->handler.closed(p->handler.data, code, reason);
}

static void end(struct push *p, unsigned code, struct str reason) {
    if (p->state != OPEN || !p->c) return;
    p->state = ENDING;
    p->paused = false;
    buf_free(&p->pending);
    if (p->kind == WEBSOCKET) {
        char body[WS_CONTROL_MAX];
        size_t n = 0;
        if (code != WS_NO_CODE) {
            body[n++] = (char)(code >> 8);
            body[n++] = (char)code;
            if (reason.len > sizeof body - n) reason.len = 0;
            if (reason.len) memcpy(body + n, reason.at, reason.len);
            n += reason.len;
        }
        if (!enqueue(p, frame_of(WS_CLOSE, str_n(body, n)))) p->c->torn = true;
    }
    wheel_set(&p->c->server->wheel, &p->c->timer, ENDING_MS);
    conn_touch(p->c);
    tell_closed(p, code, reason);
}

void push_close(struct push *p, unsigned code, struct str reason) {
    end(p, code, reason);
}

static void drop_slow(struct push *p) {
    count_dropped("slow_reader");
    forget_unsent(p);
    end(p, WS_TRY_LATER, STR("slow reader"));
}

/* Our side of the socket is closed; the client's bytes are read and dropped until it does so too, since closing on
 * unread bytes would take our last words from it. */
static void shut(struct push *p) {
    uv_os_fd_t fd;
    struct conn *c = p->c;
    if (c->eof || uv_fileno(&c->uv.handle, &fd) != 0 || shutdown(fd, SHUT_WR) != 0) {
        conn_close(c);
        return;
    }
    p->state = SHUT;
    wheel_set(&c->server->wheel, &c->timer, c->server->set.linger_ms);
}

/* ---- sending ---- */

bool push_send(struct push *p, struct push_message *m, struct str id) {
    if (p->state != OPEN || !p->c) return false;
    struct bytes *b = form_of(m, p->kind);
    bool ok = b != NULL;
    bool has_id = p->kind == EVENTS && id.at;
    if (ok && p->queued + b->len + id.len + 2 * ENTRY_COST > p->set.queue_bytes) {
        drop_slow(p);
        return false;
    }
    if (ok && has_id) {
        struct bytes *line = bytes_new(id.len + 5);
        if (line) {
            memcpy(line->at, "id: ", 4);
            memcpy(line->at + 4, id.at, id.len);
            line->at[4 + id.len] = '\n';
        }
        ok = enqueue(p, line);
    }
    if (ok) {
        b->refs++;
        ok = enqueue(p, b);
    }
    if (!ok) {
        log_line(LOG_ERROR, "a push connection is given up: out of memory");
        count_dropped("memory");
        forget_unsent(p);
        end(p, WS_TRY_LATER, STR("out of memory"));
        return false;
    }
    metric_add(sent_slots[p->kind], 1);
    conn_touch(p->c);
    return true;
}

static void send_control(struct push *p, struct bytes *b) {
    if (b && p->queued + b->len + ENTRY_COST > p->set.queue_bytes) {
        bytes_drop(b);
        drop_slow(p);
    } else if (!enqueue(p, b)) {
        p->c->torn = true;
    }
    conn_touch(p->c);
}

/* ---- receiving ---- */

static void on_event(struct push *p, enum ws_event event) {
    const struct ws_parser *w = &p->parser;
    switch (event) {
    case WS_MESSAGE:
        metric_add(received_slot, 1);
        if (p->handler.message)
            p->handler.message(p->handler.data, w->payload, w->opcode);
        else
            end(p, WS_POLICY, STR("messages are not expected"));
        break;
    case WS_PINGED:
        if (++p->pings > p->set.pings) {
            count_dropped("pings");
            end(p, WS_POLICY, STR("too many pings"));
            break;
        }
        send_control(p, frame_of(WS_PONG, w->payload));
        break;
    case WS_CLOSED:
        /* Answered with the same code; a client that gave none is told none. */
        end(p, w->code, STR(""));
        break;
    case WS_BAD:
        count_dropped(w->code == WS_TOO_BIG ? "too_big" : "protocol");
        end(p, w->code, str_of(w->why));
        break;
    default:
        break;
    }
}

/* Hands over what is complete. What comes behind a message whose handler is still at work waits in `pending`. */
static void feed(struct push *p, char *bytes, size_t n) {
    size_t at = 0;
    p->feeding = true;
    while (p->state == OPEN && p->c && !p->paused) {
        size_t used;
        enum ws_event event = ws_feed(&p->parser, bytes + at, n - at, &used);
        at += used;
        if (event == WS_MORE) break;
        on_event(p, event);
    }
    p->feeding = false;
    if (p->state != OPEN || !p->c || at == n) return;
    if (!buf_add(&p->pending, str_n(bytes + at, n - at))) {
        p->c->torn = true;
        conn_touch(p->c);
    }
}

static void feed_pending(struct push *p) {
    if (!p->pending.len || p->paused || p->state != OPEN) return;
    struct buf bytes = p->pending;
    p->pending = (struct buf){0};
    feed(p, bytes.data, bytes.len);
    buf_free(&bytes);
}

void push_pause(struct push *p) {
    p->paused = true;
}

void push_resume(struct push *p) {
    if (!p->paused) return;
    p->paused = false;
    /* Not fed here: the caller may stand deep in what the last message set off. */
    if (p->c && !p->feeding) conn_touch(p->c);
}

/* ---- called by conn.c ---- */

void push_conn_read(struct push *p, char *bytes, size_t n) {
    p->heard_ms = uv_now(loop_get());
    if (p->kind == WEBSOCKET && p->state == OPEN) feed(p, bytes, n);
}

bool push_conn_wants(const struct push *p) {
    return !p->paused;
}

void push_conn_settle(struct push *p) {
    struct conn *c = p->c;
    struct server *s = c->server;
    if (s->leaving && p->state == OPEN) end(p, WS_GOING_AWAY, STR("server is restarting"));
    feed_pending(p);
    if (c->closing) return;
    if (c->torn || !flush(p) || c->eof) {
        conn_close(c);
        return;
    }
    if (p->state == ENDING && !p->count) shut(p);
    if (c->closing || p->state != OPEN) return;
    if (p->room != SIZE_MAX && p->queued <= p->room) {
        p->room = SIZE_MAX;
        if (p->handler.room) p->handler.room(p->handler.data);
    }
}

/* Bytes that the socket got and the client's machine has not: in libuv's hands, in the kernel's, on the way. */
static uint64_t not_taken(const struct push *p) {
    uv_os_fd_t fd;
    int out = 0;
    if (uv_fileno(&p->c->uv.handle, &fd) != 0 || ioctl(fd, SIOCOUTQ, &out) != 0 || out < 0) out = 0;
    return p->c->uv.stream.write_queue_size + (uint64_t)out;
}

void push_conn_timeout(struct push *p) {
    struct conn *c = p->c;
    struct wheel *wheel = &c->server->wheel;
    if (p->state != OPEN) {
        conn_close(c);
        return;
    }
    /* A client that takes nothing, not even a comment line, is gone or as good as, also where the kernel still has room
     * to keep it all for fifteen minutes. */
    uint64_t now = uv_now(loop_get()), waiting = not_taken(p), taken = p->given - waiting;
    if (!waiting || taken != p->taken) p->moved_ms = now;
    p->taken = taken;
    uint64_t silent = now - p->heard_ms, still = now - p->moved_ms;
    bool must_speak = p->kind == WEBSOCKET && !p->paused;
    if (still >= p->set.silence_ms || (must_speak && silent >= p->set.silence_ms)) {
        count_dropped(still >= p->set.silence_ms ? "stalled" : "silent");
        conn_close(c);
        return;
    }
    p->pings = 0;
    uint64_t next = p->set.ping_ms;
    if (waiting && p->set.silence_ms - still < next) next = p->set.silence_ms - still;
    if (must_speak && p->set.silence_ms - silent < next) next = p->set.silence_ms - silent;
    wheel_set(wheel, &c->timer, next);
    if (p->kind == WEBSOCKET) {
        send_control(p, frame_of(WS_PING, STR("")));
    } else {
        struct bytes *b = bytes_new(3);
        if (b) memcpy(b->at, ":\n\n", 3);
        send_control(p, b);
    }
}

void push_conn_gone(struct push *p) {
    p->state = SHUT;
    p->c->push = NULL;
    p->c->push_dead = p;
    p->c = NULL;
    tell_closed(p, WS_ABNORMAL, STR(""));
}

void push_conn_free(struct push *p) {
    while (p->count) dequeue(p);
    ws_parser_free(&p->parser);
    buf_free(&p->pending);
    free(p);
}

/* ---- opening ---- */

void push_settings_default(struct push_settings *s) {
    *s = (struct push_settings){
        .limits = {.message = (size_t)64 * 1024, .fragments = 64, .text_only = true},
        .queue_bytes = (size_t)1024 * 1024,
        .ping_ms = 25000,
        .pings = 1000,
        .silence_ms = 60000,
        .retry_ms = 3000,
    };
}

static struct push *push_new(struct request *r, enum kind kind, const struct push_settings *set,
                             const struct push_handler *handler) {
    struct push *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->c = r->conn;
    p->set = *set;
    p->handler = *handler;
    p->kind = kind;
    p->room = SIZE_MAX;
    p->heard_ms = p->moved_ms = uv_now(loop_get());
    ws_parser_init(&p->parser, &set->limits);
    return p;
}

/* The connection is the request's alone: no other answer waits before or behind it. */
static bool is_alone(const struct request *r) {
    const struct conn *c = r->conn;
    return c && !r->answered && !r->streaming && c->first == r && c->queued == 1 && !c->reading && !c->over;
}

/* The head is in the connection's output; from here on the connection is the push's. */
static void take_over(struct push *p, struct request *r, int status) {
    struct conn *c = p->c;
    bool leftover = c->chunk && c->parsed < c->chunk->used;
    if (leftover && p->kind == WEBSOCKET &&
        !buf_add(&p->pending, str_n(c->chunk->data + c->parsed, c->chunk->used - c->parsed)))
        c->torn = true;
    c->no_more = true; /* nothing that still arrives is a request */
    c->push = p;
    r->keep_alive = true; /* as far as the queue of requests is concerned: its end is not the connection's */
    r->answered = true;
    r->status = status;
    /* Clients that came at once, as they do after a restart, are not all pinged at once for ever. */
    static uint32_t spread;
    spread = spread * 1664525u + 1013904223u;
    uint64_t half = p->set.ping_ms / 2;
    wheel_set(&c->server->wheel, &c->timer, p->set.ping_ms - (half ? (spread >> 8) % half : 0));
    count_open(p->kind, 1);
    conn_advance(c);
}

static bool has_upgrade(const struct request *r) {
    return request_method(r) == HTTP_M_GET && r->http_minor >= 1 && r->declared == 0 && !r->chunked &&
           header_list_has(request_known(r, HEADER_UPGRADE), STR("websocket"), false) &&
           header_list_has(request_known(r, HEADER_CONNECTION), STR("upgrade"), false);
}

struct push *push_websocket(struct request *r, const struct push_settings *set, const struct push_handler *handler,
                            struct str protocol, int *status) {
    char accept[WS_ACCEPT_LEN];
    *status = 400;
    if (!has_upgrade(r)) return NULL;
    struct str version = request_header(r, STR("Sec-WebSocket-Version"));
    if (!str_eq(version, STR("13"))) {
        *status = 426;
        return NULL;
    }
    if (!is_alone(r) || !ws_accept(request_header(r, STR("Sec-WebSocket-Key")), accept)) return NULL;
    *status = 503;
    struct push *p = r->server->leaving ? NULL : push_new(r, WEBSOCKET, set, handler);
    if (!p) return NULL;
    struct buf *b = conn_target(r);
    struct str id = request_id(r);
    size_t before = b->len;
    bool ok = buf_add(b, STR("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                             "Sec-WebSocket-Accept: ")) &&
              buf_add(b, str_n(accept, sizeof accept)) && buf_add(b, STR("\r\nX-Request-Id: ")) && buf_add(b, id);
    if (protocol.at) ok = ok && buf_add(b, STR("\r\nSec-WebSocket-Protocol: ")) && buf_add(b, protocol);
    ok = ok && buf_add(b, STR("\r\n\r\n"));
    if (!ok) {
        b->len = before;
        push_conn_free(p);
        return NULL;
    }
    take_over(p, r, 101);
    return p;
}

struct push *push_events(struct request *r, const struct push_settings *set, const struct push_handler *handler,
                         const struct header *headers, size_t count, int *status) {
    static const struct header fixed[] = {
        {STR("Content-Type"), STR("text/event-stream; charset=utf-8")},
        {STR("Cache-Control"), STR("no-store, no-transform")},
        {STR("X-Accel-Buffering"), STR("no")}, /* nginx in front hands each event on at once */
    };
    struct header all[32];
    size_t n = sizeof fixed / sizeof fixed[0];
    *status = 400;
    if (request_method(r) != HTTP_M_GET || !is_alone(r) || count > sizeof all / sizeof all[0] - n) return NULL;
    *status = 503;
    struct push *p = r->server->leaving ? NULL : push_new(r, EVENTS, set, handler);
    if (!p) return NULL;
    memcpy(all, fixed, sizeof fixed);
    if (count) memcpy(all + n, headers, count * sizeof *headers);
    r->keep_alive = false; /* says `Connection: close`: the end of the connection ends the stream */
    if (!response_head(r, 200, all, n + count)) {
        push_conn_free(p);
        return NULL;
    }
    if (set->retry_ms) {
        char line[40];
        int len = snprintf(line, sizeof line, "retry: %llu\n\n", (unsigned long long)set->retry_ms);
        if (len < 0 || !conn_put(r, str_n(line, (size_t)len))) p->c->torn = true;
    }
    take_over(p, r, 200);
    return p;
}
