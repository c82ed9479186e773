/* Connections that have left request and answer behind: a WebSocket, or an event stream that never ends.
 *
 * A handler turns its request into one; the request then ends like any other, and what stays is this small thing: no
 * coroutine, no arena, no read buffer while nothing arrives. Thousands may be open and idle.
 *
 * Sending never waits and never fails half way: bytes go into the connection's queue, which refers to them and copies
 * nothing, so that one message to ten thousand connections is encoded and held once. The queue is bounded. A client
 * that does not read until it is full is dropped (a WebSocket with 1013), counted, and holds up nobody else.
 *
 * Dead clients are found by pings: a WebSocket must answer, and the machine of either must take what it is sent, be it
 * one comment line. (A client that is only stopped takes comment lines for as long as its kernel has room for them.)
 *
 * `closed` is called exactly once, when the connection will deliver and take nothing more, whoever ended it; `p` must
 * not be used after that. It may be called from inside push_send and push_close. */
#ifndef KASMA_HTTP_PUSH_H
#define KASMA_HTTP_PUSH_H

#include "http/request.h"
#include "http/websocket.h"

struct push;
struct push_message;

struct push_settings {
    struct ws_limits limits;
    size_t queue_bytes;  /* waiting for one client before it is dropped */
    uint64_t ping_ms;    /* between pings, or comment lines of an event stream */
    unsigned pings;      /* of a client between two of ours: 1008 beyond */
    uint64_t silence_ms; /* without a byte from a WebSocket, or a byte taken of what waits, before it is dropped */
    uint64_t retry_ms;   /* what an event stream tells its client to wait before it comes again; 0: nothing */
};
/* The defaults of the product; every field is filled. */
void push_settings_default(struct push_settings *s);

struct push_handler {
    /* A whole message of a WebSocket; the bytes are only valid inside the call. NULL: messages are refused with 1008.
     */
    void (*message)(void *data, struct str payload, enum ws_opcode opcode);
    void (*closed)(void *data, unsigned code, struct str reason);
    /* The queue has fallen to what push_on_room asked for. */
    void (*room)(void *data);
    void *data;
};

/* Answers 101. NULL: nothing was answered, and *status says what to refuse with: 400 (not a WebSocket handshake, or
 * bytes were sent before its answer), 426 (another version: the answer must carry Sec-WebSocket-Version: 13), 503.
 * `protocol`: the subprotocol to name, at == NULL for none. */
struct push *push_websocket(struct request *r, const struct push_settings *set, const struct push_handler *handler,
                            struct str protocol, int *status);
/* Answers 200 text/event-stream with these headers added, and keeps the connection to itself (it ends with the stream:
 * no chunks, so that the bytes of an event are the same for everybody). NULL: as above. */
struct push *push_events(struct request *r, const struct push_settings *set, const struct push_handler *handler,
                         const struct header *headers, size_t count, int *status);

/* A text that can be sent to any number of connections. `event`: its name on event streams, at == NULL for none. NULL:
 * out of memory. One reference is the caller's. */
struct push_message *push_message_new(struct str text, struct str event);
void push_message_free(struct push_message *m);

/* Queues a message. `id`: the id line of this event on an event stream, at == NULL for none. False: the connection is
 * closed, or was closed just now because its queue is full. */
bool push_send(struct push *p, struct push_message *m, struct str id);
/* Bytes that wait. */
size_t push_queued(const struct push *p);
/* Calls handler.room once when no more than `bytes` wait; not when the connection closes before. */
void push_on_room(struct push *p, size_t bytes);
/* Ends the connection: a WebSocket by the closing handshake (`code` must be valid), an event stream by its end. What
 * was queued before is sent first, for a few seconds. */
void push_close(struct push *p, unsigned code, struct str reason);
/* No further message is handed over until push_resume; the client is held up by its own socket buffer. Between, a
 * client that goes away is noticed late. May be called from inside `message`. */
void push_pause(struct push *p);
void push_resume(struct push *p);

#endif
