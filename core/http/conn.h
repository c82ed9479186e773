/* Inside of the server: connections, requests and the memory they share. Only the files of core/http that make up the
 * server include this; handlers see http/request.h.
 *
 *   server.c    listening, pools, settings, stop          request.c   what a handler may ask
 *   conn.c      bytes in and out, order, time-outs        response.c  answers
 *   parse.c     llhttp, limits, early refusals            access.c    access log and metrics
 *   push.c      WebSockets and event streams: a connection that has become one is its own (conn->push)
 *
 * Memory. Bytes are read into chunks from a pool. A request holds a reference to the chunk in which its head lies, and
 * its header table has offsets into it: nothing is copied, and an idle connection holds no chunk. Requests, with their
 * arena, are pooled and keep their memory.
 *
 * Order. A connection's queue holds its requests from the end of the head until the answer has left. Only the first may
 * write to conn->out; the others write to a buffer of their own, which is appended when their turn comes.
 *
 * Re-entrance. Handlers may answer from inside the parser's loop or from any other callback, so nothing that they can
 * call closes a connection or runs the parser: they leave marks, and conn_settle, called when the stack is flat, acts.
 */
#ifndef KASMA_HTTP_CONN_H
#define KASMA_HTTP_CONN_H

#include <llhttp.h>
#include <uv.h>

#include "http/body.h"
#include "http/request.h"
#include "http/server.h"
#include "http/wheel.h"
#include "runtime/loop.h"

#define HEADERS_MAX 100
#define REQUEST_ID_MAX 128

struct conn;

struct chunk {
    struct chunk *next; /* in the pool */
    unsigned refs;
    size_t used;
    char data[]; /* server->chunk_size bytes */
};

/* Offsets from request->base; a head is shorter than 64 KiB. */
struct header_ref {
    uint16_t name, name_len, value, value_len;
};

struct request {
    struct server *server;
    struct conn *conn;          /* NULL once the client has gone */
    struct request *next, **at; /* in the connection's queue (at != NULL), or in the pool */
    struct arena *arena;
    struct chunk *chunk; /* holds the head; NULL before the head is complete */
    const char *base;    /* where the head begins */
    struct str target, path, query;
    enum http_method method;
    uint8_t llhttp_method;
    uint8_t http_minor;
    uint16_t header_count;
    uint16_t url, url_len;
    uint8_t known[HEADER_COUNT]; /* 1 + index of the occurrence that counts; 0: absent */
    uint32_t repeated;           /* bit HEADER_x: it came more than once */
    struct route *route;
    struct str params[ROUTE_PARAMS_MAX];
    struct str client; /* address of the client, once asked for; in the arena */
    struct body body;
    uint64_t declared;             /* Content-Length */
    uint64_t started_us, began_ms; /* head complete; first byte (loop time) */
    struct wheel_entry deadline;
    uint64_t deadline_ms; /* what the deadline was set to; each piece of a streamed body renews it */
    uint64_t held_ms;     /* since when a streamed body waits for its handler (loop time); 0: it does not */
    void (*cancel)(void *data, enum error_kind why);
    void *cancel_data;
    void (*drain)(void *data);
    void *drain_data;
    void (*readable)(void *data);
    void *readable_data;
    struct buf out; /* the answer, while it waits for its turn */
    uint64_t sent;  /* body bytes of the answer */
    int64_t left;   /* of a stream of known length; -1: chunked or until close */
    int status;
    uint16_t id_len; /* 0: not yet asked for */
    bool in_name;    /* parser: between a header's name and its value */
    bool head_complete;
    bool chunked;        /* request body */
    bool wants_continue; /* 100 must be sent when its turn comes */
    bool streamed;       /* the handler takes the body piece by piece */
    bool expects;        /* ... and the client sends none of it before it is told to: it is when reading begins */
    bool keep_alive;
    bool at_work;   /* the handler was called and has not said request_done */
    bool streaming; /* answer begun, not ended */
    bool stream_chunked;
    bool answered; /* answer complete (in conn->out or in out) */
    bool timed_out;
    char id[REQUEST_ID_MAX];
    struct header_ref headers[HEADERS_MAX];
};

/* What the connection's timer waits for. */
enum phase { PHASE_IDLE, PHASE_HEAD, PHASE_BODY, PHASE_WORK, PHASE_SENDING, PHASE_HALF_CLOSED, PHASE_LINGER };

struct push;

struct conn {
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } uv;
    struct server *server;
    struct conn *next, **at; /* all connections of the server */
    struct conn *dirty_next;
    llhttp_t parser;
    enum { EVENT_NONE, EVENT_HEAD, EVENT_LAST_CHUNK, EVENT_MESSAGE } event; /* why the parser paused */
    struct push *push;      /* what the connection has become, when it speaks HTTP no more */
    struct push *push_dead; /* the same, from conn_close until the socket is gone */
    struct chunk *chunk;
    size_t parsed;           /* bytes of the chunk that the parser has had */
    uint64_t framing;        /* bytes of the body phase that were not body: chunk sizes, trailers */
    struct request *reading; /* whose head or body is arriving */
    struct request *first, **last;
    unsigned queued;
    struct buf out;     /* to be written at the end of this turn */
    struct buf sending; /* being written by uv_write */
    uv_write_t write;
    size_t write_left; /* bytes libuv still had when the write time-out last looked */
    struct wheel_entry timer;
    enum phase phase;
    bool in_trailer;     /* after the last chunk's size line */
    char trailer_before; /* the byte before the part of the trailer that comes next */
    bool is_dirty, write_active, read_active;
    bool over;        /* one connection too many: its request is refused */
    bool eof;         /* the client has closed its side */
    bool no_more;     /* nothing that still arrives is a request */
    bool last_answer; /* the answer that ends the connection is in `out` */
    bool refused;     /* ... and there may be unread bytes: linger */
    bool torn;        /* close without ceremony */
    bool closing;     /* uv_close was called */
    bool unix_socket;
    uint8_t remote_len;
    char remote[46];
};

struct listener {
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } uv;
    struct server *server;
    struct listener *next;
    struct loop_hook again; /* a connection that could not be taken for want of memory */
    bool unix_socket;
};

struct server {
    struct server_settings set;
    struct routes *routes;
    struct listener *listeners;
    struct wheel wheel;
    struct conn *conns;
    size_t connections, in_flight, alive; /* alive: requests that are not in the pool */
    struct conn *dirty;
    struct loop_hook hook;
    uint64_t complained_ms; /* when it last logged that it cannot accept */
    struct conn *spare_conns;
    struct request *spare_requests;
    struct chunk *spare_chunks;
    struct buf spare_bufs[64];
    unsigned spare_conn_count, spare_request_count, spare_chunk_count, spare_buf_count;
    size_t chunk_size;
    struct request *dispatching; /* NULL again when it was released by its own handler */
    uint64_t block_second;       /* of the cached head block */
    size_t block_len;
    char block[256]; /* "Date: ...\r\n" and the headers every answer has */
    bool leaving;    /* no new connections; each one ends with its next answer */
    bool stopping, closing, wheel_closed;
};

/* server.c */
struct chunk *chunk_take(struct server *s);
void chunk_drop(struct server *s, struct chunk *c);
struct request *request_take(struct server *s);
void request_release(struct request *r);
/* An empty buffer with some room; data == NULL when out of memory (it may then still be used: it grows on demand). */
struct buf buf_take(struct server *s);
void buf_give(struct server *s, struct buf *b);
void server_forget(struct conn *c); /* the connection's handle is closed */
void server_maybe_free(struct server *s);

/* conn.c */
void conn_open(struct conn *c); /* the handle is connected: start reading */
void conn_settle(struct conn *c);
void conn_touch(struct conn *c);            /* settle at the end of this turn */
void conn_close(struct conn *c);            /* now; what is in flight is cancelled */
struct buf *conn_target(struct request *r); /* where this request's answer is written */
/* As buf_add(conn_target(r), bytes), but hands long bytes straight to the socket when that is possible. */
bool conn_put(struct request *r, struct str bytes);
void conn_advance(struct conn *c); /* the first may be answered: let the next ones follow */
size_t conn_backlog(const struct conn *c);
void conn_timeout(struct wheel_entry *e);    /* of a connection */
void request_timeout(struct wheel_entry *e); /* of a handler */

/* parse.c */
void parse_init(struct conn *c);
void parse_run(struct conn *c);
bool parse_blocked(const struct conn *c); /* reading must wait */
/* Refuses the request that is being read, in its turn, and takes no more from this connection. A handler that is taking
 * its body is told so instead, and answers. `reason` is for metrics. */
void parse_refuse(struct conn *c, int status, struct str detail, const char *reason);
/* The rest of this request's body, if it still comes, is not read: its answer ends the connection. */
void parse_abandon(struct request *r);
/* A streamed body waits for its handler, not for the client. */
bool parse_held(const struct request *r);

/* request.c */
void request_readable(struct request *r); /* a streamed body has more, or has ended: tells who waits; may release r */

/* response.c */
void response_interim(struct conn *c); /* 100 Continue into conn->out */
/* The head of an answer whose body is whatever follows on the connection. False: out of memory, nothing was written. */
bool response_head(struct request *r, int status, const struct header *headers, size_t count);

/* access.c */
void access_record(struct request *r); /* its answer has left */
void access_refused(const char *reason);
void access_in_flight(const struct server *s);
void access_connections(const struct server *s);

#endif
