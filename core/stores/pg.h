/* PostgreSQL: pools of non-blocking connections on the process's loop.
 *
 * A call is one pipeline: BEGIN, SET LOCAL kasma.tenant_key, the statements, COMMIT, each a message of its own, one
 * Sync, one round trip. The tenant lives in the transaction and nowhere else, so that neither the next call on the
 * connection nor the next client of a transaction pooler can meet it. A connection is given on only when the server
 * says that no transaction is open on it.
 *
 * All functions run on the loop's thread, none waits, and no callback comes before the function that was given it has
 * returned. Nothing here knows of Lua: results are PGresults. */
#ifndef KASMA_STORES_PG_H
#define KASMA_STORES_PG_H

#include <libpq-fe.h>

#include "runtime/error.h"
#include "runtime/str.h"

struct pg_pool;
struct pg_call;
struct pg_tx;
struct pg_session;

struct pg_settings {
    const char *name;     /* "app", "system", "owner": log lines and metrics; lives as long as the pool */
    const char *url;      /* connection URL or keyword string, copied */
    unsigned connections; /* at most so many */
    unsigned queue;       /* calls that may wait for a connection; one more is refused: ERR_BUSY */
    bool prepare;         /* false: no prepared statement at all, right behind any transaction pooler */
    unsigned wait_ms;     /* longest wait for a connection, then ERR_UNAVAILABLE */
    unsigned
        statement_ms;    /* longest wait for an answer of the server, then ERR_TIMEOUT and the connection is dropped */
    unsigned connect_ms; /* longest time for opening a connection */
};

/* One statement; its parameters are text, at == NULL is SQL NULL. No text may hold a NUL byte. */
struct pg_statement {
    struct str sql;
    size_t params; /* the highest $n */
    const struct str *value;
};

/* What went wrong. For ERR_QUERY base.code is the SQLSTATE. */
struct pg_error {
    struct error base;
    char constraint[64]; /* as the migration named it: the number that a shard adds is taken off */
    char table[64];
    char column[64];
    char detail[256];
    int position;     /* of the fault in the statement's text, in characters from 1; 0: the server gave none */
    size_t statement; /* index in the call */
};

/* Called once, with one result a statement, or with `err`. Results are cleared afterwards. */
typedef void pg_done(void *data, PGresult *const *result, size_t count, const struct pg_error *err);
typedef void pg_tx_ready(void *data, struct pg_tx *tx, const struct pg_error *err);
typedef void pg_session_ready(void *data, struct pg_session *s, const struct pg_error *err);
typedef void pg_notice(void *data, struct str channel, struct str payload);

/* Sets the variables of the environment that libpq reads. A process with threads calls it before the first of them: the
 * environment has no lock. Pools see to it themselves otherwise. False: out of memory. */
bool pg_prepare(void);
/* NULL: a URL that cannot be read, out of memory. Connections are opened when they are needed. */
struct pg_pool *pg_pool_new(const struct pg_settings *s, struct error *err);
/* Answers all that waits or runs with ERR_UNAVAILABLE and closes the connections. Memory goes in the loop's next turn.
 */
void pg_pool_close(struct pg_pool *p);
/* Whether the server has answered and is not known to be away. */
bool pg_pool_up(const struct pg_pool *p);
unsigned pg_pool_open(const struct pg_pool *p);
unsigned pg_pool_used(const struct pg_pool *p);

/* In all of these a tenant with at == NULL is the platform: no tenant is set. NULL is returned with `err`
 * (ERR_UNAVAILABLE: known to be away; ERR_BUSY: the queue is full; ERR_INVALID; ERR_MEMORY), and `done` never comes.
 * All input is copied. */

/* Nor is a statement taken that would change the session or the frame of its transaction, which another tenant would
 * meet (BEGIN, COMMIT, SET without LOCAL, SET LOCAL of the tenant or the role, COPY, LISTEN, advisory locks of the
 * session ...): ERR_INVALID. Those have a session of their own. */

/* A lone SELECT; those of one tenant share transactions that cannot write. One that fails harms no other. */
struct pg_call *pg_read(struct pg_pool *p, struct str tenant, const struct pg_statement *s, pg_done *done, void *data,
                        struct error *err);
/* All or nothing, one round trip. Success is told after the server has confirmed COMMIT. */
struct pg_call *pg_run(struct pg_pool *p, struct str tenant, const struct pg_statement *s, size_t count, pg_done *done,
                       void *data, struct error *err);
/* The callback will not come any more. Not after it has come. */
void pg_forget(struct pg_call *call);

/* A transaction over several round trips, on a connection of its own until it ends. BEGIN and the tenant ride with its
 * first statements. */
struct pg_call *pg_begin(struct pg_pool *p, struct str tenant, pg_tx_ready *ready, void *data, struct error *err);
/* One call at a time. commit: COMMIT rides behind the last statement (there may be none); the transaction is then over,
 * whatever the answer. After an error it takes only pg_tx_rollback. */
struct pg_call *pg_tx_run(struct pg_tx *tx, const struct pg_statement *s, size_t count, bool commit, pg_done *done,
                          void *data, struct error *err);
/* Ends it; a call under way is forgotten. The connection is free when the server has confirmed. */
void pg_tx_rollback(struct pg_tx *tx);

/* At most one NOTIFY in 20 ms a channel, on a connection of its own. Never waits; nothing is kept while the server is
 * away. */
void pg_notify(struct pg_pool *p, struct str channel);

/* A connection outside the pool, without pipeline and transactions: advisory locks, LISTEN, scripts. */
bool pg_session_open(struct pg_pool *p, pg_session_ready *ready, void *data, struct error *err);
struct pg_call *pg_session_run(struct pg_session *s, const struct pg_statement *st, pg_done *done, void *data,
                               struct error *err);
/* Several statements in one text, simple protocol, no limit of time; `done` gets the last result. */
struct pg_call *pg_session_script(struct pg_session *s, struct str sql, pg_done *done, void *data, struct error *err);
/* Notices of LISTEN; `lost` once when the connection broke. */
void pg_session_hear(struct pg_session *s, pg_notice *notice, void (*lost)(void *data), void *data);
/* A call under way is answered ERR_UNAVAILABLE in the loop's next turn. */
void pg_session_close(struct pg_session *s);

#endif
