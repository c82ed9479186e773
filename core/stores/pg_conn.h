/* One connection: connects, sends one batch at a time as a pipeline, and hands the results back. Internal to
 * core/stores. */
#ifndef KASMA_STORES_PG_CONN_H
#define KASMA_STORES_PG_CONN_H

#include <uv.h>

#include "stores/pg.h"

struct pg_conn;

/* Statements with their parameters in one block of memory. */
struct pg_batch {
    size_t count;
    struct pg_sql {
        char *text; /* NUL-terminated */
        int params;
        const char **value;
        uint64_t hash; /* of the text, for the prepared-statement cache */
    } sql[];
};

/* NULL: out of memory. */
struct pg_batch *pg_batch_new(const struct pg_statement *s, size_t count);
void pg_batch_free(struct pg_batch *b);

/* A prepared plan that no longer fits its table (0A000), or that is gone (26000): nothing has happened, and a second
 * try prepares anew. */
bool pg_error_stale(const struct pg_error *e);

struct pg_conn_events {
    /* The connection stands (err NULL) or will never stand. */
    void (*ready)(void *data, const struct pg_error *err);
    /* A batch has ended: one result a statement, or the error and the results of the statements before it. The
     * connection is idle again, or broken (pg_conn_broken). Results are cleared afterwards. */
    void (*done)(void *data, PGresult *const *result, size_t count, const struct pg_error *err);
    /* The connection broke while idle. */
    void (*lost)(void *data);
    void (*notice)(void *data, struct str channel, struct str payload); /* NULL: not wanted */
};

enum pg_frame {
    PG_PLAIN = 0,     /* the statements as they are */
    PG_BEGIN = 1,     /* BEGIN before them, and SET LOCAL when a tenant is given */
    PG_COMMIT = 2,    /* COMMIT after them */
    PG_READ_ONLY = 4, /* that BEGIN makes a transaction that cannot write */
};

/* Begins to connect; within connect_ms `ready` comes. NULL: `err` says why. A host name is looked up beside the loop
 * (stores/pg_resolve.h); only those of a list of hosts libpq looks up itself, and waits for. The settings' URL must
 * stay until then. */
struct pg_conn *pg_conn_new(const struct pg_settings *s, bool pipeline, const struct pg_conn_events *events, void *data,
                            struct error *err);
/* Closes now; no event follows. */
void pg_conn_close(struct pg_conn *c);
/* Sends. The connection must be idle. `tenant` "" = none. False: the connection is broken (closing it is the caller's
 * part). */
bool pg_conn_send(struct pg_conn *c, const struct pg_batch *b, int frame, const char *tenant, struct error *err);
/* Simple protocol; only without pipeline mode. */
bool pg_conn_script(struct pg_conn *c, const char *sql, struct error *err);
/* Whether it lies in a transaction that must be rolled back before it serves another. */
bool pg_conn_dirty(const struct pg_conn *c);
/* Whether nothing more can be done with it but closing it. */
bool pg_conn_broken(const struct pg_conn *c);
/* Milliseconds since the batch under way was sent; 0 when idle. */
uint64_t pg_conn_waits_ms(const struct pg_conn *c);
/* What is under way ends with this error, and the connection is broken. */
void pg_conn_fail(struct pg_conn *c, enum error_kind kind, const char *message);

#endif
