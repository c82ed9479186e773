/* MongoDB on a bounded pool of threads of our own, because libmongoc waits where it stands.
 *
 * - A call is answered exactly once, on the loop's thread, after mongo_call has returned.
 * - The queue is bounded: ERR_BUSY. A call that waited in it past the time limit is not carried out: ERR_TIMEOUT.
 * - After a call has failed because the server is away, all others fail at once with ERR_UNAVAILABLE, queued ones too,
 *   until a ping from the background has succeeded. Nothing hangs longer than the time limit.
 * - Whether a write that failed with ERR_UNAVAILABLE or ERR_TIMEOUT was carried out is not known.
 *
 * Make it after the process has forked: libmongoc's own threads do not survive a fork. */
#ifndef KASMA_STORES_MONGO_H
#define KASMA_STORES_MONGO_H

#include <bson/bson.h>

#include "runtime/buf.h"
#include "runtime/error.h"

struct mongo;
struct mongo_op;

struct mongo_options {
    unsigned threads;    /* default 8, at most 64 */
    size_t queue;        /* calls that may wait, default 256 */
    uint32_t select_ms;  /* to find a server, default 2000 */
    uint32_t timeout_ms; /* of a call, default 10000 */
};

enum mongo_verb {
    MONGO_WRITE,     /* `writes`; a refused one is the call's error */
    MONGO_BULK,      /* `writes`; refused ones are listed in the result */
    MONGO_FIND,      /* `query` = filter, `opts` = {sort, projection, skip}, `limit` */
    MONGO_AGGREGATE, /* `query` = the pipeline as a BSON array, `limit` */
    MONGO_COMMAND,   /* `query` = the command, to the database; one document comes back */
    MONGO_PING,
};

enum mongo_change { MONGO_INSERT, MONGO_UPDATE, MONGO_REPLACE, MONGO_DELETE };

struct mongo_write {
    enum mongo_change change;
    bson_t *filter; /* NULL for INSERT */
    bson_t *doc;    /* document or update; NULL for DELETE */
    bool upsert, multi;
};

/* What is asked. Owns all BSON in it. */
struct mongo_request {
    enum mongo_verb verb;
    const char *op; /* name for the metrics: a string literal */
    char *collection;
    bson_t *query, *opts;
    struct mongo_write *writes;
    size_t count;
    size_t limit; /* most documents; 0: MONGO_MAX_DOCS, beyond which the call fails with ERR_LIMIT */
};

#define MONGO_MAX_DOCS 10000
#define MONGO_MAX_RESULT ((size_t)64 * 1024 * 1024) /* bytes of all documents of one answer */
#define MONGO_MAX_ERRORS 1000                       /* refused writes that are listed */

struct mongo_refusal {
    size_t index; /* in `writes` */
    int code;
    char message[160];
};

struct mongo_result {
    struct buf docs; /* BSON documents, one after the other */
    size_t count;    /* of them */
    int64_t inserted, matched, modified, upserted, deleted;
    struct mongo_refusal *refusals;
    size_t refused;
};

/* Exactly one of `result` and `err` is given; the result is valid during the call. An error of the server is ERR_QUERY
 * with its number as code ("11000" = duplicate key). */
typedef void mongo_done(void *data, const struct mongo_result *result, const struct error *err);

/* A request with room for `writes` writes. NULL when out of memory. */
struct mongo_request *mongo_request_new(enum mongo_verb verb, const char *op, struct str collection, size_t writes);
void mongo_request_free(struct mongo_request *r);

/* `url` is a mongodb:// string; its path names the database (default "kasma"). Looks for the server from the
 * background. NULL: ERR_INVALID or ERR_MEMORY. */
struct mongo *mongo_new(const char *url, const struct mongo_options *options, struct error *err);
/* Waits for calls under way (at most the time limit); those that are queued get ERR_CANCELLED. NULL is allowed. */
void mongo_free(struct mongo *m);

/* `request` becomes the callee's in any case. NULL: `err` (ERR_UNAVAILABLE, ERR_BUSY, ERR_MEMORY) and `done` will not
 * be called. */
struct mongo_op *mongo_call(struct mongo *m, struct mongo_request *request, mongo_done *done, void *data,
                            struct error *err);
/* The answer is not wanted any more; the call itself may still be carried out. */
void mongo_cancel(struct mongo_op *op);

/* False after a failure and until a ping has succeeded; before the first contact it is true. */
bool mongo_up(struct mongo *m);
/* Copies why it is down (empty when it is not). */
void mongo_why_down(struct mongo *m, char out[128]);

#endif
