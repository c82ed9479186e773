#include "http/server.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "http/conn.h"
#include "runtime/log.h"

#define TICK_MS 50
#define BACKLOG 1024

/* Kept in the pools; what is above goes back to malloc, so that a burst does not hold its memory for ever. */
#define SPARE_CONNS 256
#define SPARE_REQUESTS 256
#define SPARE_CHUNKS 64

void server_settings_default(struct server_settings *s) {
    *s = (struct server_settings){
        .header_limit = (size_t)16 * 1024,
        .url_limit = (size_t)8 * 1024,
        .body_limit = (size_t)1024 * 1024,
        .max_connections = 16384,
        .max_in_flight = 4096,
        .max_pipelined = 16,
        .write_high_water = (size_t)256 * 1024,
        .header_ms = 10000,
        .body_ms = 20000,
        .idle_ms = 65000,
        .request_ms = 30000,
        .write_ms = 30000,
        .half_close_ms = 1000,
        .linger_ms = 1000,
        .spool_dir = "/tmp",
        .hsts = false,
        .access_log = true,
        .access_sample = 1,
    };
}

static void wake(void *data) {
    struct server *s = data;
    /* Settling may dirty a connection again (its next request was answered at once): that is for the next turn. */
    struct conn *c = s->dirty;
    s->dirty = NULL;
    while (c) {
        struct conn *next = c->dirty_next;
        c->is_dirty = false;
        c->dirty_next = NULL;
        conn_settle(c);
        c = next;
    }
}

struct server *server_new(const struct server_settings *set) {
    /* A client that is gone when we write is an error code, not the end of the process. */
    if (signal(SIGPIPE, SIG_IGN) == SIG_ERR) return NULL;
    struct server *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->set = *set;
    if (s->set.header_limit > (size_t)60 * 1024) s->set.header_limit = (size_t)60 * 1024;
    if (s->set.max_pipelined == 0) s->set.max_pipelined = 1;
    s->chunk_size = s->set.header_limit + (size_t)16 * 1024;
    s->hook = (struct loop_hook){.fn = wake, .data = s};
    s->routes = routes_new();
    if (!s->routes || !wheel_open(&s->wheel, loop_get(), TICK_MS)) {
        routes_free(s->routes);
        free(s);
        return NULL;
    }
    return s;
}

struct routes *server_routes(struct server *s) {
    return s->routes;
}

size_t server_in_flight(const struct server *s) {
    return s->in_flight;
}

size_t server_connections(const struct server *s) {
    return s->connections;
}

/* Pools. */

struct chunk *chunk_take(struct server *s) {
    struct chunk *c = s->spare_chunks;
    if (c) {
        s->spare_chunks = c->next;
        s->spare_chunk_count--;
    } else {
        c = malloc(sizeof *c + s->chunk_size);
        if (!c) return NULL;
    }
    c->next = NULL;
    c->refs = 1;
    c->used = 0;
    return c;
}

void chunk_drop(struct server *s, struct chunk *c) {
    if (!c || --c->refs > 0) return;
    if (s->spare_chunk_count == SPARE_CHUNKS) {
        free(c);
        return;
    }
    c->next = s->spare_chunks;
    s->spare_chunks = c;
    s->spare_chunk_count++;
}

struct buf buf_take(struct server *s) {
    if (s->spare_buf_count) return s->spare_bufs[--s->spare_buf_count];
    struct buf b = {0};
    if (!buf_reserve(&b, 4096)) return (struct buf){0};
    return b;
}

void buf_give(struct server *s, struct buf *b) {
    if (!b->data) return;
    if (b->cap > (size_t)64 * 1024 || s->spare_buf_count == sizeof s->spare_bufs / sizeof s->spare_bufs[0]) {
        buf_free(b);
        return;
    }
    buf_clear(b);
    s->spare_bufs[s->spare_buf_count++] = *b;
    *b = (struct buf){0};
}

struct request *request_take(struct server *s) {
    struct request *r = s->spare_requests;
    if (r) {
        s->spare_requests = r->next;
        s->spare_request_count--;
    } else {
        r = malloc(sizeof *r);
        if (!r) return NULL;
        memset(r, 0, sizeof *r);
        r->arena = arena_new(4096);
        if (!r->arena) {
            free(r);
            return NULL;
        }
    }
    struct arena *arena = r->arena;
    struct buf copy = r->body.copy;
    /* Everything but the id and the header table, whose lengths are zeroed. */
    memset(r, 0, offsetof(struct request, id));
    r->arena = arena;
    r->body.copy = copy;
    r->server = s;
    r->left = -1;
    r->deadline.fire = request_timeout;
    s->alive++;
    return r;
}

void request_release(struct request *r) {
    struct server *s = r->server;
    if (s->dispatching == r) s->dispatching = NULL;
    wheel_remove(&s->wheel, &r->deadline);
    if (r->at) {
        *r->at = r->next;
        if (r->next) r->next->at = r->at;
        r->at = NULL;
    }
    arena_reset(r->arena); /* runs what was deferred: first, since it may look at the body */
    body_reset(&r->body);
    buf_give(s, &r->out);
    chunk_drop(s, r->chunk);
    r->chunk = NULL;
    s->alive--;
    if (s->spare_request_count == SPARE_REQUESTS || s->closing) {
        arena_free(r->arena);
        buf_free(&r->body.copy);
        free(r);
        server_maybe_free(s);
        return;
    }
    r->next = s->spare_requests;
    s->spare_requests = r;
    s->spare_request_count++;
}

/* Accepting. */

static bool is_unix(int fd) {
    int domain = 0;
    socklen_t len = sizeof domain;
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX;
}

static struct conn *conn_new(struct server *s, bool unix_socket) {
    struct conn *c = s->spare_conns;
    if (c) {
        s->spare_conns = c->next;
        s->spare_conn_count--;
    } else {
        c = malloc(sizeof *c);
        if (!c) return NULL;
    }
    memset(c, 0, sizeof *c);
    int failed = unix_socket ? uv_pipe_init(loop_get(), &c->uv.pipe, 0) : uv_tcp_init(loop_get(), &c->uv.tcp);
    if (failed) {
        free(c);
        return NULL;
    }
    c->uv.handle.data = c;
    c->server = s;
    c->unix_socket = unix_socket;
    c->timer.fire = conn_timeout;
    c->next = s->conns;
    if (c->next) c->next->at = &c->next;
    c->at = &s->conns;
    s->conns = c;
    s->connections++;
    c->over = s->connections > s->set.max_connections;
    access_connections(s);
    return c;
}

void server_forget(struct conn *c) {
    struct server *s = c->server;
    *c->at = c->next;
    if (c->next) c->next->at = c->at;
    s->connections--;
    access_connections(s);
    if (s->spare_conn_count == SPARE_CONNS || s->closing) {
        free(c);
        server_maybe_free(s);
        return;
    }
    c->next = s->spare_conns;
    s->spare_conns = c;
    s->spare_conn_count++;
}

/* Once in a second: a fault of the machine comes again with every connection. */
static void cannot_accept(struct server *s, const char *why) {
    uint64_t now = uv_now(loop_get());
    if (s->complained_ms && now - s->complained_ms < 1000) return;
    s->complained_ms = now;
    log_line(LOG_ERROR, "cannot accept connections: %s", why);
}

static void on_connection(uv_stream_t *stream, int status) {
    struct listener *l = stream->data;
    struct server *s = l->server;
    if (status < 0) {
        cannot_accept(s, uv_strerror(status));
        return;
    }
    struct conn *c = conn_new(s, l->unix_socket);
    if (!c) {
        /* libuv accepts no other before this one is taken: it is tried until there is memory. */
        cannot_accept(s, "out of memory");
        loop_at_turn_end(&l->again);
        return;
    }
    /* Some above the limit are let in to be told so (503); a flood beyond that is cut off. */
    bool flood = s->connections > s->set.max_connections + s->set.max_connections / 8 + 16;
    if (uv_accept(stream, &c->uv.stream) != 0 || flood || s->stopping) {
        if (flood) access_refused("connections");
        conn_close(c);
        return;
    }
    conn_open(c);
}

static void accept_again(void *data) {
    struct listener *l = data;
    if (!uv_is_closing(&l->uv.handle)) on_connection(&l->uv.stream, 0);
}

static void listener_closed(uv_handle_t *h) {
    struct listener *l = h->data;
    struct server *s = l->server;
    loop_forget(&l->again);
    struct listener **at = &s->listeners;
    while (*at != l) at = &(*at)->next;
    *at = l->next;
    free(l);
    server_maybe_free(s);
}

bool server_listen_fd(struct server *s, int fd, struct error *err) {
    struct listener *l = calloc(1, sizeof *l);
    if (!l) {
        close(fd);
        return error_set(err, ERR_MEMORY, "out of memory");
    }
    l->server = s;
    l->unix_socket = is_unix(fd);
    int failed = l->unix_socket ? uv_pipe_init(loop_get(), &l->uv.pipe, 0) : uv_tcp_init(loop_get(), &l->uv.tcp);
    if (failed) {
        close(fd);
        free(l);
        return error_set(err, ERR_INTERNAL, "cannot make a listener: %s", uv_strerror(failed));
    }
    l->uv.handle.data = l;
    l->again = (struct loop_hook){.fn = accept_again, .data = l};
    l->next = s->listeners;
    s->listeners = l;
    failed = l->unix_socket ? uv_pipe_open(&l->uv.pipe, fd) : uv_tcp_open(&l->uv.tcp, fd);
    if (failed) close(fd);
    if (!failed) failed = uv_listen(&l->uv.stream, BACKLOG, on_connection);
    if (!failed) return true;
    uv_close(&l->uv.handle, listener_closed);
    return error_set(err, ERR_INTERNAL, "cannot listen: %s", uv_strerror(failed));
}

bool server_adopt_fd(struct server *s, int fd, struct error *err) {
    struct conn *c = conn_new(s, is_unix(fd));
    if (!c) {
        close(fd);
        return error_set(err, ERR_MEMORY, "out of memory");
    }
    int failed = c->unix_socket ? uv_pipe_open(&c->uv.pipe, fd) : uv_tcp_open(&c->uv.tcp, fd);
    if (failed) {
        close(fd);
        conn_close(c);
        return error_set(err, ERR_INTERNAL, "cannot serve the socket: %s", uv_strerror(failed));
    }
    conn_open(c);
    return true;
}

/* Stopping. */

void server_stop_listening(struct server *s) {
    /* What would never end by itself is told to go (1001) at once. */
    for (struct conn *c = s->leaving ? NULL : s->conns; c; c = c->next)
        if (c->push) conn_touch(c);
    s->leaving = true;
    for (struct listener *l = s->listeners; l; l = l->next)
        if (!uv_is_closing(&l->uv.handle)) uv_close(&l->uv.handle, listener_closed);
}

void server_stop_accepting(struct server *s) {
    if (s->stopping) return;
    s->stopping = true;
    server_stop_listening(s);
    for (struct conn *c = s->conns; c; c = c->next) conn_touch(c);
}

static void wheel_closed(uv_handle_t *h) {
    struct server *s = (struct server *)((char *)h->data - offsetof(struct server, wheel));
    s->wheel_closed = true;
    server_maybe_free(s);
}

void server_close(struct server *s) {
    server_stop_accepting(s);
    s->closing = true;
    /* conn_close runs cancel callbacks, which may close others: start again after each. */
    struct conn *c = s->conns;
    while (c) {
        if (!c->closing) {
            conn_close(c);
            c = s->conns;
        } else {
            c = c->next;
        }
    }
    loop_forget(&s->hook);
    s->dirty = NULL;
    wheel_close(&s->wheel, wheel_closed);
}

void server_maybe_free(struct server *s) {
    if (!s->closing || !s->wheel_closed || s->listeners || s->connections || s->alive) return;
    while (s->spare_conns) {
        struct conn *next = s->spare_conns->next;
        free(s->spare_conns);
        s->spare_conns = next;
    }
    while (s->spare_requests) {
        struct request *r = s->spare_requests;
        s->spare_requests = r->next;
        arena_free(r->arena);
        buf_free(&r->body.copy);
        free(r);
    }
    while (s->spare_chunks) {
        struct chunk *next = s->spare_chunks->next;
        free(s->spare_chunks);
        s->spare_chunks = next;
    }
    while (s->spare_buf_count) buf_free(&s->spare_bufs[--s->spare_buf_count]);
    routes_free(s->routes);
    free(s);
}
