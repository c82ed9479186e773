/* Outbound HTTP: libcurl's multi interface on the process's loop. Keep-alive connections are pooled per host.
 *
 * Every request is bounded: time, bytes of the answer, number at once. Only http and https are spoken, redirects are
 * not followed unless asked for, no proxy or netrc of the environment is used. With `public_only` a connection to an
 * address that is not public (loopback, private, link-local, multicast, ...) is refused when the socket is about to be
 * opened, after name resolution and after each redirect, so that no name can lead around it. */
#ifndef KASMA_HTTP_CLIENT_H
#define KASMA_HTTP_CLIENT_H

#include <sys/socket.h>

#include "runtime/buf.h"
#include "runtime/error.h"

struct http_call;

struct http_field {
    struct str name, value;
};

/* A piece of a body as it has come. Called from inside the client: no request may be begun or ended in it. False: the
 * request ends with ERR_LIMIT. */
typedef bool http_piece(void *data, int status, struct str bytes);

struct http_ask {
    struct str method; /* empty: GET, or POST with a body */
    struct str url;
    const struct http_field *headers;
    size_t header_count;
    struct str body;     /* at == NULL: none */
    uint32_t timeout_ms; /* of the whole request; 0: 10000 */
    size_t max_bytes;    /* of the answer's body; 0: 1 MiB */
    bool cut;            /* a longer body is cut off there and the answer counts, instead of ERR_LIMIT */
    unsigned redirects;  /* most to follow; 0: none */
    bool public_only;
    /* Not NULL: the body is handed out piece by piece, with the `data` of http_request, and the answer's own is empty.
     * Time and size of the whole have no bound then (timeout_ms and max_bytes are not looked at); a peer that is silent
     * for a minute is taken for gone. */
    http_piece *piece;
};

struct http_answer {
    int status;
    struct http_field *headers; /* of the last answer; names in lower case */
    size_t header_count;
    struct str body;
};

/* Exactly one of `answer` and `err` is given; the answer is valid during the call. Any status is an answer. Errors:
 * ERR_UNAVAILABLE (no connection), ERR_TIMEOUT, ERR_LIMIT (answer too large), ERR_INVALID (URL, address not public). */
typedef void http_done(void *data, const struct http_answer *answer, const struct error *err);

/* Everything in `ask` is copied. `done` is called once, from the loop, after this has returned. NULL: `err`
 * (ERR_INVALID, ERR_BUSY when 256 requests are under way, ERR_MEMORY). */
struct http_call *http_request(const struct http_ask *ask, http_done *done, void *data, struct error *err);
/* Ends the request; `done` will not be called. */
void http_cancel(struct http_call *call);
/* Requests under way. */
size_t http_calls(void);
/* Closes all idle connections and the client itself; no request may be under way. Used where a loop ends before its
 * process (tests, one-shot commands). */
void http_client_close(void);

/* True for an address that anybody may be sent to. */
bool http_address_public(const struct sockaddr *address);
/* True when `host` is an address and no name, in any form that a connection would take it in: IPv4 in decimal, octal or
 * hex and of one to four parts, IPv6 without its brackets. Sets *open: whether anybody may be sent there. */
bool http_host_address(struct str host, bool *open);

#endif
