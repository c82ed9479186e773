/* One connection to one Redis server that keeps itself alive: it reconnects with back-off for as long as it exists.
 *
 * Commands are gathered and leave in one write at the end of the loop turn; answers come in order. The rules that
 * callers may rely on:
 *
 * - A command that was taken is answered exactly once, from the loop, never before redis_conn_send has returned.
 * - While the server is known to be away nothing is queued: sending fails at once with ERR_UNAVAILABLE. (Only before
 *   the very first attempt has ended, when nothing is known yet, commands wait for it, within their time limit.)
 * - A command not answered within its limit gets ERR_TIMEOUT and the connection is dropped, because what arrives later
 *   could not be told apart; the others in flight get ERR_UNAVAILABLE. Whether a command that failed so was carried
 *   out is not known.
 * - The number in flight is bounded: ERR_BUSY.
 *
 * This is hiredis's parser under a connection of our own, not hiredis's async layer: 0.14 writes when the socket is
 * next writable, re-arms the poll handle for each read, has no time limits and forbids freeing in callbacks. */
#ifndef KASMA_STORES_REDIS_CONN_H
#define KASMA_STORES_REDIS_CONN_H

#include "stores/redis_reply.h"
#include "stores/redis_url.h"

struct redis_conn;
struct redis_op;

struct redis_command {
    const struct str *args; /* args[0] is the command's name */
    size_t count;
};

/* A Lua script of the server. The text is borrowed and must outlive every call of the script. */
struct redis_script {
    struct str text;
    char sha[41];
};

/* Exactly one of `reply` and `err` is given. The reply is valid during the call. */
typedef void redis_done(void *data, const struct redis_reply *reply, const struct error *err);

struct redis_conn_options {
    const char *name;                                     /* CLIENT SETNAME; NULL: none */
    uint32_t timeout_ms;                                  /* of a command, default 2000; REDIS_NO_LIMIT: none */
    uint32_t connect_ms;                                  /* for each step until it is ready, default 2000 */
    size_t max_in_flight;                                 /* default 4096 */
    size_t max_reply;                                     /* bytes, default 16 MiB */
    void *data;                                           /* for the following, each of which may be NULL */
    void (*up)(void *data);                               /* ready for commands */
    void (*down)(void *data, const struct error *why);    /* an attempt failed or the connection was lost */
    void (*push)(void *data, const struct redis_reply *); /* a reply that nobody asked for (pub/sub) */
};

#define REDIS_NO_LIMIT UINT32_MAX

/* Begins to connect. NULL: ERR_MEMORY, or ERR_INVALID for a name with blanks in it. */
struct redis_conn *redis_conn_new(const struct redis_url *url, const struct redis_conn_options *options,
                                  struct error *err);
/* Ends it; what is in flight is answered with ERR_CANCELLED during the call. May be called from any callback of this
 * connection. Memory goes when the loop has closed the handles. NULL is allowed. */
void redis_conn_close(struct redis_conn *c);
/* Drops the present link and reconnects, as if the server had closed it; in flight: ERR_UNAVAILABLE. */
void redis_conn_reset(struct redis_conn *c, const char *why);

/* Sends `count` commands in a row. With `wrap` the answer is one ARRAY of `count` replies, in which a refused command
 * is an ERROR item; without it `count` must be 1, and a refusal arrives as `err`. Arguments are copied. `timeout_ms` 0:
 * that of the connection. NULL: `err` is filled (ERR_UNAVAILABLE, ERR_BUSY, ERR_LIMIT, ERR_INVALID, ERR_MEMORY) and
 * `done` will not be called. */
struct redis_op *redis_conn_send(struct redis_conn *c, const struct redis_command *commands, size_t count, bool wrap,
                                 uint32_t timeout_ms, redis_done *done, void *data, struct error *err);
/* EVALSHA; when the server does not know the script, EVAL with its text. `keys` are the first `nkeys` of `args`. */
struct redis_op *redis_conn_eval(struct redis_conn *c, const struct redis_script *script, size_t nkeys,
                                 const struct str *args, size_t count, redis_done *done, void *data, struct error *err);
/* Sends a command whose answer comes through `push` (SUBSCRIBE and its like). False: away or out of memory. */
bool redis_conn_post(struct redis_conn *c, const struct redis_command *command);
/* Writes now what this turn has gathered so far, as far as the socket takes it, so that the server works beside us.
 * Nobody is answered by it: a failure shows at the end of the turn. */
void redis_conn_flush(struct redis_conn *c);
/* The answer is not wanted any more: `done` will not be called. The command itself cannot be taken back. */
void redis_op_cancel(struct redis_op *op);

/* Computes the SHA of `text`, which is borrowed. */
void redis_script_init(struct redis_script *script, struct str text);

bool redis_conn_up(const struct redis_conn *c);
size_t redis_conn_in_flight(const struct redis_conn *c);
/* True while commands wait for the end of this turn. */
bool redis_conn_gathering(const struct redis_conn *c);
/* Why it is not up: "connection refused". Empty when it is. */
const char *redis_conn_why_down(const struct redis_conn *c);

#endif
