/* The HTTP/1.1 server of one worker process: llhttp over libuv, with no word about Lua in it.
 *
 * A server has settings and a table of routes (http/route.h). A request is read whole (its body in memory, or spooled
 * to disk where the route says so; or only its head, where the handler takes the body in pieces), then handed to its
 * route's handler, which answers through http/request.h, at once or later. Answers of one connection leave in the order
 * of its requests, however the handlers finish.
 *
 * Everything is bounded: head and body bytes, connections, requests in flight, pipelined requests of a connection,
 * bytes waiting to be written, and the time for each step. What is over a limit gets its status (408, 413, 414, 415,
 * 417, 431, 503), never silence and never an unbounded queue. */
#ifndef KASMA_HTTP_SERVER_H
#define KASMA_HTTP_SERVER_H

#include "http/route.h"
#include "runtime/error.h"
#include "runtime/network.h"

struct server;

struct server_settings {
    size_t header_limit;            /* bytes of request line and headers, at most 60 KiB: 431 */
    size_t url_limit;               /* bytes of the request target: 414 */
    size_t body_limit;              /* decoded bytes of a body, unless the route has its own: 413 */
    size_t max_connections;         /* 503 beyond */
    size_t max_in_flight;           /* requests with a handler at work: 503 beyond */
    unsigned max_pipelined;         /* of one connection; reading waits beyond */
    size_t write_high_water;        /* bytes waiting on one connection before its producers are held up */
    uint64_t header_ms;             /* from the first byte of a head to its end: 408 */
    uint64_t body_ms;               /* for a body, plus a millisecond per 16 bytes received: 408 */
    uint64_t idle_ms;               /* keep-alive */
    uint64_t request_ms;            /* for the handler, unless the route has its own; then its cancel is called: 503 */
    uint64_t write_ms;              /* without one byte taken by the client: closed */
    uint64_t half_close_ms;         /* handlers of a client that has closed its sending side get this long to answer */
    uint64_t linger_ms;             /* reading on after a refusal, so that the client can read the answer */
    const char *spool_dir;          /* spooled bodies and parts, made with O_TMPFILE-like privacy (0600) */
    const struct networks *proxies; /* whose X-Forwarded-For is believed; NULL: nobody's */
    bool hsts;                      /* add Strict-Transport-Security */
    bool access_log;                /* one JSON line per request */
    unsigned access_sample;         /* of the answers below 400 every n-th has a line; 0: none, 1: all */
};

/* The defaults of the product; every field is filled. */
void server_settings_default(struct server_settings *s);

/* A server with its own route table; `s` is copied, the strings in it must stay. loop_open must have been called.
 * NULL: out of memory. */
struct server *server_new(const struct server_settings *s);
/* Where to register routes before listening (and after, between requests). */
struct routes *server_routes(struct server *s);

/* Accepts on `fd`, a bound (listening or not) TCP or unix stream socket, which the server owns from now on, also when
 * this fails. May be called for several sockets. */
bool server_listen_fd(struct server *s, int fd, struct error *err);
/* Serves one accepted or paired stream socket, which is the server's from now on. For tests and inherited sockets. */
bool server_adopt_fd(struct server *s, int fd, struct error *err);

/* Closes the listening sockets. Connections stay, and each is ended by its next answer (`Connection: close`): a client
 * that is just sending its next request on an idle connection is answered, where closing would lose it. */
void server_stop_listening(struct server *s);
/* Closes the listening sockets and idle connections; what is in flight is answered with `Connection: close`. */
void server_stop_accepting(struct server *s);
/* Requests with a handler at work. A graceful stop waits until this is 0. */
size_t server_in_flight(const struct server *s);
/* Open connections, those that only linger included. 0 after a graceful stop. */
size_t server_connections(const struct server *s);
/* Cancels what is in flight and closes everything. The server frees itself when the loop has run the close callbacks
 * and the last handler has let go of its request; do not use it afterwards. */
void server_close(struct server *s);

#endif
