#include "http/conn.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "http/push_conn.h"
#include "runtime/log.h"

/* From this size on an answer goes to the socket from where it lies instead of through the output buffer. */
#define DIRECT_MIN ((size_t)8 * 1024)
/* Output is written before the turn's end when this much has gathered. */
#define CORK_MAX ((size_t)64 * 1024)

size_t conn_backlog(const struct conn *c) {
    return c->out.len + (c->write_active ? c->uv.stream.write_queue_size : 0);
}

void conn_touch(struct conn *c) {
    struct server *s = c->server;
    if (c->is_dirty || c->closing) return;
    c->is_dirty = true;
    c->dirty_next = s->dirty;
    s->dirty = c;
    loop_at_turn_end(&s->hook);
}

/* Closing. */

static void forget_dirty(struct conn *c) {
    if (!c->is_dirty) return;
    struct conn **at = &c->server->dirty;
    while (*at && *at != c) at = &(*at)->dirty_next;
    if (*at) *at = c->dirty_next;
    c->is_dirty = false;
}

static void closed(uv_handle_t *h) {
    struct conn *c = h->data;
    struct server *s = c->server;
    forget_dirty(c);
    wheel_remove(&s->wheel, &c->timer);
    if (c->push_dead) push_conn_free(c->push_dead);
    c->push_dead = NULL;
    chunk_drop(s, c->chunk);
    c->chunk = NULL;
    buf_give(s, &c->out);
    buf_give(s, &c->sending);
    server_forget(c);
}

void conn_close(struct conn *c) {
    if (c->closing) return;
    c->closing = true;
    forget_dirty(c);
    wheel_disarm(&c->timer);
    uv_close(&c->uv.handle, closed);
    if (c->push) push_conn_gone(c->push);

    /* The requests are moved to this frame: callbacks may let go of any of them, which unlinks it. */
    struct request *orphans = c->first;
    if (orphans) orphans->at = &orphans;
    for (struct request *r = orphans; r; r = r->next) r->conn = NULL;
    c->first = NULL;
    c->queued = 0;
    struct request *reading = c->reading;
    c->reading = NULL;
    if (reading && reading->conn) {
        reading->conn = NULL; /* head not complete, or answered already: it was not in the queue */
        if (!reading->at_work) request_release(reading);
    }
    while (orphans) {
        struct request *r = orphans;
        orphans = r->next;
        if (orphans) orphans->at = &orphans;
        r->next = NULL;
        r->at = NULL;
        if (!r->at_work) {
            request_release(r);
            continue;
        }
        void (*cancel)(void *, enum error_kind) = r->cancel;
        void (*drain)(void *) = r->drain;
        void *cancel_data = r->cancel_data, *drain_data = r->drain_data;
        r->cancel = NULL;
        r->drain = NULL;
        if (cancel)
            cancel(cancel_data, ERR_CANCELLED);
        else if (drain)
            drain(drain_data);
    }
}

/* Writing. */

static void on_written(uv_write_t *w, int status) {
    struct conn *c = w->data;
    c->write_active = false;
    buf_give(c->server, &c->sending);
    if (c->closing) return;
    if (status < 0) {
        conn_close(c);
        return;
    }
    conn_settle(c);
}

/* The rest of what try_write left is given to libuv; `sending` owns it. */
static bool write_rest(struct conn *c) {
    uv_buf_t b = uv_buf_init(c->sending.data, (unsigned)c->sending.len);
    c->write.data = c;
    if (uv_write(&c->write, &c->uv.stream, &b, 1, on_written) != 0) return false;
    c->write_active = true;
    c->write_left = SIZE_MAX;
    return true;
}

/* One system call for all that has gathered, and `more` behind it. False: the connection is lost. */
static bool flush_with(struct conn *c, struct str more) {
    if (c->write_active || c->out.len + more.len == 0) return true;
    uv_buf_t bufs[2] = {uv_buf_init(c->out.data, (unsigned)c->out.len),
                        uv_buf_init((char *)more.at, (unsigned)more.len)};
    bool only_more = c->out.len == 0;
    int n = uv_try_write(&c->uv.stream, only_more ? bufs + 1 : bufs, more.len && !only_more ? 2 : 1);
    if (n == UV_EAGAIN) n = 0;
    if (n < 0) return false;
    size_t wrote = (size_t)n;
    if (wrote == c->out.len + more.len) {
        buf_give(c->server, &c->out);
        return true;
    }
    /* The socket is full. What is left of `out` moves to `sending`, followed by what is left of `more`. */
    size_t from_out = wrote < c->out.len ? wrote : c->out.len;
    c->sending = c->out;
    c->out = (struct buf){0};
    if (from_out) {
        memmove(c->sending.data, c->sending.data + from_out, c->sending.len - from_out);
        c->sending.len -= from_out;
    }
    size_t from_more = wrote - from_out;
    if (!buf_add(&c->sending, str_n(more.at + from_more, more.len - from_more))) return false;
    return write_rest(c);
}

static bool flush(struct conn *c) {
    return flush_with(c, (struct str){0});
}

struct buf *conn_target(struct request *r) {
    struct conn *c = r->conn;
    struct buf *b = c->first == r ? &c->out : &r->out;
    if (!b->data) *b = buf_take(r->server);
    return b;
}

bool conn_put(struct request *r, struct str bytes) {
    struct conn *c = r->conn;
    struct buf *b = conn_target(r);
    if (b == &c->out && bytes.len >= DIRECT_MIN && !c->write_active) {
        if (flush_with(c, bytes)) return true;
        c->torn = true;
        return false;
    }
    if (!buf_add(b, bytes)) {
        c->torn = true;
        return false;
    }
    if (b == &c->out && b->len >= CORK_MAX && !flush(c)) {
        c->torn = true;
        return false;
    }
    return true;
}

/* Order. */

static void pop(struct conn *c) {
    struct request *r = c->first;
    c->first = r->next;
    if (c->first)
        c->first->at = &c->first;
    else
        c->last = NULL;
    r->next = NULL;
    r->at = NULL;
    c->queued--;
    access_record(r);
    if (!r->keep_alive) {
        c->last_answer = true;
        c->no_more = true;
    }
    if (c->reading == r && r->keep_alive) return; /* its body still arrives: the end of the body releases it */
    if (c->reading == r) {
        c->reading = NULL;
        c->refused |= r->streamed; /* what the client still sends must not cost it the answer */
    }
    r->conn = NULL;
    if (!r->at_work) request_release(r);
}

void conn_advance(struct conn *c) {
    while (c->first && c->first->answered && !c->last_answer) {
        pop(c);
        struct request *r = c->first;
        if (!r || c->last_answer) break;
        if (r->out.len && !conn_put(r, buf_str(&r->out))) break;
        buf_give(c->server, &r->out);
        if (r->wants_continue && !r->answered && !r->streaming) response_interim(c);
        r->wants_continue = false;
    }
    conn_touch(c);
}

/* Producers that were held up may go on. */
static void drain_first(struct conn *c) {
    struct request *r = c->first;
    if (!r || !r->drain || conn_backlog(c) > c->server->set.write_high_water / 2) return;
    void (*drain)(void *) = r->drain;
    r->drain = NULL;
    drain(r->drain_data);
}

/* Reading. */

/* libuv reads at once after it has asked for memory, so that all connections that are no longer HTTP share this: none
 * of them holds a buffer while nothing comes. */
static char shared[64 * 1024];

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *out) {
    (void)suggested;
    struct conn *c = h->data;
    struct server *s = c->server;
    if (c->push) {
        *out = uv_buf_init(shared, sizeof shared);
        return;
    }
    if (!c->chunk) {
        c->chunk = chunk_take(s);
        c->parsed = 0;
    }
    if (c->chunk && s->chunk_size - c->chunk->used < 4096) {
        /* Full: what is not yet understood (an unfinished head, or bytes that were held up) moves to a fresh chunk. */
        struct request *r = c->reading && !c->reading->head_complete ? c->reading : NULL;
        size_t keep_from = r ? (size_t)(r->base - c->chunk->data) : c->parsed;
        size_t keep = c->chunk->used - keep_from;
        struct chunk *fresh = keep < s->chunk_size - 4096 ? chunk_take(s) : NULL;
        if (fresh) {
            memcpy(fresh->data, c->chunk->data + keep_from, keep);
            fresh->used = keep;
            c->parsed -= keep_from;
            if (r) r->base = fresh->data;
        }
        chunk_drop(s, c->chunk);
        c->chunk = fresh;
        if (!fresh && r) c->torn = true; /* out of memory: the head is lost */
    }
    *out = c->chunk && !c->torn
               ? uv_buf_init(c->chunk->data + c->chunk->used, (unsigned)(s->chunk_size - c->chunk->used))
               : uv_buf_init(NULL, 0);
}

/* A chunk is only kept while it holds something that is not understood yet. */
static void release_chunk(struct conn *c) {
    if (!c->chunk) return;
    if (c->no_more) c->parsed = c->chunk->used;
    bool unfinished_head = c->reading && !c->reading->head_complete;
    if (c->parsed < c->chunk->used || unfinished_head) return;
    chunk_drop(c->server, c->chunk);
    c->chunk = NULL;
    c->parsed = 0;
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *b) {
    struct conn *c = stream->data;
    if (n == 0) {
        release_chunk(c);
        return;
    }
    if (n == UV_EOF) {
        c->eof = true;
        c->read_active = false;
        conn_settle(c);
        return;
    }
    if (n < 0) {
        conn_close(c);
        return;
    }
    if (c->push)
        push_conn_read(c->push, b->base, (size_t)n);
    else
        c->chunk->used += (size_t)n;
    conn_settle(c);
}

static void set_reading(struct conn *c) {
    bool want = !c->eof && !c->closing && (c->push ? push_conn_wants(c->push) : !parse_blocked(c));
    if (want == c->read_active) return;
    int failed = want ? uv_read_start(&c->uv.stream, on_alloc, on_read) : uv_read_stop(&c->uv.stream);
    c->read_active = want;
    if (failed) conn_close(c);
}

/* Time. */

static void set_timer(struct conn *c) {
    struct server *s = c->server;
    const struct server_settings *set = &s->set;
    struct request *r = c->reading;
    enum phase before = c->phase;
    uint64_t now = uv_now(loop_get()), ms = 0;
    if (before == PHASE_LINGER) return;
    /* The time in which the handler held the body up is not the client's. */
    bool held = r && parse_held(r);
    if (held && r->held_ms == 0) r->held_ms = now;
    if (r && !held && r->held_ms) {
        r->began_ms += now - r->held_ms;
        r->held_ms = 0;
    }
    if (c->write_active) {
        c->phase = PHASE_SENDING;
        ms = set->write_ms;
        /* Only a byte that the client took moves this on; new output does not. */
        if (before == PHASE_SENDING && c->uv.stream.write_queue_size >= c->write_left) return;
        c->write_left = c->uv.stream.write_queue_size;
    } else if (r && !r->head_complete) {
        c->phase = PHASE_HEAD;
        if (before == PHASE_HEAD && c->timer.due == r->began_ms + set->header_ms) return;
        ms = r->began_ms + set->header_ms > now ? r->began_ms + set->header_ms - now : 1;
    } else if (r && !c->no_more && !held) {
        c->phase = PHASE_BODY;
        uint64_t due = r->began_ms + set->body_ms + r->body.received / 16;
        if (due <= now && before == PHASE_BODY && c->timer.due) return; /* it fires at the next tick */
        ms = due > now ? due - now : 1;
    } else if (c->queued) {
        c->phase = c->eof ? PHASE_HALF_CLOSED : PHASE_WORK;
        if (before == c->phase) return;
        if (!c->eof) {
            wheel_disarm(&c->timer);
            return;
        }
        ms = set->half_close_ms;
    } else {
        c->phase = PHASE_IDLE;
        ms = set->idle_ms;
    }
    wheel_set(&s->wheel, &c->timer, ms);
}

void conn_timeout(struct wheel_entry *e) {
    struct conn *c = (struct conn *)((char *)e - offsetof(struct conn, timer));
    if (c->push) {
        push_conn_timeout(c->push);
        return;
    }
    switch (c->phase) {
    case PHASE_HEAD:
    case PHASE_BODY:
        if (!c->reading) break;
        parse_refuse(c, 408, (struct str){0}, "timeout");
        conn_settle(c);
        return;
    case PHASE_SENDING:
        if (c->uv.stream.write_queue_size < c->write_left) {
            c->write_left = c->uv.stream.write_queue_size;
            wheel_set(&c->server->wheel, &c->timer, c->server->set.write_ms);
            return;
        }
        access_refused("slow_reader");
        break;
    default:
        break;
    }
    conn_close(c);
}

/* An answer was sent while more bytes were, or may be, on their way: closing at once would reset the connection and
 * take the answer from the client. The sending side is closed, and what comes is read and dropped for a while. */
static void linger(struct conn *c) {
    uv_os_fd_t fd;
    if (uv_fileno(&c->uv.handle, &fd) != 0 || shutdown(fd, SHUT_WR) != 0 || c->eof) {
        conn_close(c);
        return;
    }
    c->phase = PHASE_LINGER;
    wheel_set(&c->server->wheel, &c->timer, c->server->set.linger_ms);
}

/* A connection that is no longer HTTP: first the rest of what HTTP had to say, then it decides by itself. */
static void settle_push(struct conn *c) {
    if (c->torn || !flush(c)) {
        conn_close(c);
        return;
    }
    release_chunk(c);
    if (c->eof || (!c->write_active && c->out.len == 0)) push_conn_settle(c->push);
    if (!c->closing) set_reading(c);
}

void conn_settle(struct conn *c) {
    struct server *s = c->server;
    if (c->closing) return;
    if (c->push) {
        settle_push(c);
        return;
    }
    /* Parsing may be held up by output that waits, and go on once that is written. */
    do {
        parse_run(c);
        if (c->torn || !flush(c)) {
            conn_close(c);
            return;
        }
    } while (c->chunk && c->parsed < c->chunk->used && !c->no_more && !parse_blocked(c));
    if (c->push) {
        settle_push(c);
        return;
    }
    /* Once a turn, so that a stream without end cannot keep the loop to itself. */
    drain_first(c);
    if (c->closing) return;
    if (c->torn) {
        conn_close(c);
        return;
    }
    if (c->out.len && !c->write_active) conn_touch(c);
    release_chunk(c);
    bool quiet = !c->write_active && c->out.len == 0;
    if (quiet && c->phase != PHASE_LINGER && c->last_answer && c->refused) {
        linger(c);
    } else if (quiet) {
        bool answered_last = c->phase != PHASE_LINGER && c->last_answer;
        /* The client has gone, or has left a request unfinished (the rest may be here, held up by its handler). */
        bool rest_here = c->chunk != NULL && !c->no_more;
        bool unfinished = c->reading && c->reading == c->first && !rest_here;
        bool left = c->eof && (c->queued == 0 || unfinished || c->phase == PHASE_LINGER);
        bool stopped = s->stopping && c->queued == 0 && !c->reading && c->phase != PHASE_LINGER;
        if (answered_last || left || stopped) conn_close(c);
    }
    if (c->closing) return;
    set_reading(c);
    if (!c->closing) set_timer(c);
}

void conn_open(struct conn *c) {
    if (c->unix_socket) {
        memcpy(c->remote, "unix", 5);
        c->remote_len = 4;
    } else {
        int failed = uv_tcp_nodelay(&c->uv.tcp, 1);
        if (failed) log_line(LOG_DEBUG, "no TCP_NODELAY: %s", uv_strerror(failed));
    }
    parse_init(c);
    set_reading(c);
    if (!c->closing) set_timer(c);
}
