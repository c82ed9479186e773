/* The worker's Redis: one or a few connections to one server, used by everybody, and a pub/sub connection beside them.
 * What holds for a command is said in redis_conn.h. Connections for blocking commands are redis_conn_new by themselves:
 * a command that blocks would hold up everybody's answers here. */
#ifndef KASMA_STORES_REDIS_H
#define KASMA_STORES_REDIS_H

#include "stores/redis_conn.h"

struct redis;

struct redis_options {
    const char *name;     /* CLIENT SETNAME; NULL: none */
    size_t connections;   /* 1 to 8, default 1. More only helps when large replies hold up small ones. */
    uint32_t timeout_ms;  /* of a command; default 2000 */
    size_t max_in_flight; /* of a connection; default 4096 */
};

/* NULL: ERR_INVALID (URL) or ERR_MEMORY. That the server is away is no failure: it is looked for as long as this lives.
 */
struct redis *redis_new(struct str url, const struct redis_options *options, struct error *err);
/* As redis_conn_close. */
void redis_free(struct redis *r);
const struct redis_url *redis_where(const struct redis *r);

/* As the functions of the same name in redis_conn.h, on a connection of the pool: those of one loop turn go out on the
 * same one, in one write. */
struct redis_op *redis_call(struct redis *r, const struct str *args, size_t count, redis_done *done, void *data,
                            struct error *err);
struct redis_op *redis_pipeline(struct redis *r, const struct redis_command *commands, size_t count, redis_done *done,
                                void *data, struct error *err);
struct redis_op *redis_eval(struct redis *r, const struct redis_script *script, size_t nkeys, const struct str *args,
                            size_t count, redis_done *done, void *data, struct error *err);

/* As redis_conn_flush, for every connection. */
void redis_flush(struct redis *r);

/* True when at least one connection is ready. */
bool redis_up(const struct redis *r);
/* Why not; empty when it is up. */
const char *redis_why_down(const struct redis *r);

#endif
