/* A request as its handler sees it.
 *
 * The life of one: the server calls the route's handler once the request is read whole (or its head, on a route that
 * takes the body piece by piece). The handler looks at it,
 * answers exactly once (request_respond, request_stream, request_file), now or from a later callback, and says
 * request_done exactly once when it will not touch the request again, which may be long after the answer was sent.
 * Views that these functions hand out, and everything in request_arena, live until request_done. A handler that says
 * request_done without having answered is answered for: 500.
 *
 * When the client goes away or the time is up, the cancel callback is called, once; the handler still owes request_done
 * (it may say it inside the callback). Answering a client that has gone does nothing. */
#ifndef KASMA_HTTP_REQUEST_H
#define KASMA_HTTP_REQUEST_H

#include "http/header.h"
#include "http/multipart.h"
#include "http/route.h"
#include "runtime/arena.h"
#include "runtime/buf.h"

struct request;

enum http_method request_method(const struct request *r);
struct str request_method_name(const struct request *r);    /* as sent, also for methods that cannot be routed */
struct str request_path(const struct request *r);           /* as sent, without the query */
struct str request_query(const struct request *r);          /* as sent, without '?' */
struct str request_target(const struct request *r);         /* path and query as sent */
const struct route *request_route(const struct request *r); /* the fallback's route has an empty pattern */
/* Percent-decoded value of the i-th parameter of the route. */
struct str request_param(const struct request *r, unsigned i);

/* The header's first value; at == NULL when absent. The name in any case. */
struct str request_header(const struct request *r, struct str name);
struct str request_known(const struct request *r, enum header_id id);
size_t request_header_count(const struct request *r);
void request_header_at(const struct request *r, size_t i, struct str *name, struct str *value);
/* A cookie's value without quotes; at == NULL when absent. */
struct str request_cookie(const struct request *r, struct str name);

/* The decoded body (gzip, deflate, br undone); empty when there was none or it was spooled. */
struct str request_body(const struct request *r);
/* The file of a body that was spooled because it was large; NULL else. Unlinked when the request ends. */
const char *request_body_path(const struct request *r);
uint64_t request_body_size(const struct request *r);
/* What the body is by its content type. CONTENT_NONE: there is no body. */
enum content_kind request_content(const struct request *r);
/* The parts of a multipart/form-data body. On a route without `spool` they are cut out of the body in memory. NULL:
 * err says why (ERR_INVALID: not multipart or malformed, ERR_LIMIT: too many parts). */
const struct multipart *request_multipart(struct request *r, struct error *err);

/* A streamed body: on a route with `stream` a request that has a body is handed over when its head is read. The server
 * reads on while a bounded window has room, and stops until the handler has taken some. A client that sent `Expect:
 * 100-continue` is told to go on by the first request_read. The handler's time (timeout_ms) begins anew with each
 * piece, and stands still while it waits for the client, whose time is the server's body_ms. An answer given before the
 * body was taken to its end is sent; a small rest is then dropped, else the connection is closed. */
enum read_result {
    READ_SOME,   /* at least one byte was appended */
    READ_END,    /* the body was taken whole (or there was none) */
    READ_WAIT,   /* nothing is there yet: see request_on_readable */
    READ_FAILED, /* request_read_failure says why; so does every later call */
    READ_GONE,   /* the client has gone, or the answer was given */
};
bool request_streamed(const struct request *r);
/* Appends at most `max` decoded bytes to `out`. */
enum read_result request_read(struct request *r, struct buf *out, size_t max);
/* The status that fits: 400 (damaged), 408 (too slow), 413 (above the route's limit, decoded), 503; `why` may be "". */
int request_read_failure(const struct request *r, struct str *why);
/* Calls readable(data) once when a request_read that said READ_WAIT is worth another try. When the client goes away
 * only the cancel callback is called. NULL takes it back. */
void request_on_readable(struct request *r, void (*readable)(void *data), void *data);

struct arena *request_arena(const struct request *r);
uint64_t request_started_us(const struct request *r); /* clock_mono_us when its head was complete */
struct str request_id(struct request *r);             /* the client's X-Request-Id, else made here */
struct str request_remote(struct request *r);         /* the peer's address without port; "unix" for unix sockets */
struct str request_client(struct request *r);         /* the same, or whom trusted proxies name; asked for once */
bool request_gone(const struct request *r);           /* the client has gone */

/* Calls cancel(data, ERR_CANCELLED | ERR_DEADLINE) at most once, and never after request_done. */
void request_on_cancel(struct request *r, void (*cancel)(void *data, enum error_kind why), void *data);

struct header {
    struct str name, value;
};

/* Answers. Adds Date, Content-Length, X-Request-Id and the security headers; a weak ETag (and 304 for a matching
 * If-None-Match) to GET 200; compresses what is worth it; sends no body to HEAD, 204 and 304. Headers whose name or
 * value holds a control byte are left out (and logged). `body` is copied or sent before this returns. False: already
 * answered, or the client has gone. */
bool request_respond(struct request *r, int status, const struct header *headers, size_t count, struct str body);
/* Answers with one of the bodies that the platform fixes: 400, 404, 408, 413, 415, 417, 431, 500, 503, ... `detail` is
 * the text of 400 and 415, else unused. Closes the connection afterwards when `close`. */
bool request_refuse(struct request *r, int status, struct str detail, bool close);

enum stream_result {
    STREAM_OK,
    STREAM_FULL, /* taken, but wait for the drain callback before writing more */
    STREAM_GONE, /* the client has gone, or the stream was ended */
};
/* Begins an answer whose length is not known: chunked, or until close for HTTP/1.0. `length` >= 0: it is known after
 * all, and exactly that many bytes must follow. False as request_respond. */
bool request_stream(struct request *r, int status, const struct header *headers, size_t count, int64_t length);
enum stream_result request_stream_write(struct request *r, struct str bytes);
/* Ends the answer. An answer that is not ended when request_done is called closes the connection without its end, so
 * that the client sees that it is torn. */
void request_stream_end(struct request *r);
/* Calls drain(data) once when a stream that was full can take more. When the client has gone it is called too, unless
 * there is a cancel callback, which is then called instead. */
void request_on_drain(struct request *r, void (*drain)(void *data), void *data);

/* The handler will not touch the request again. */
void request_done(struct request *r);

#endif
