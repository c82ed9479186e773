/* kasma_pg_pool{pool,state}, kasma_pg_wait_seconds, kasma_pg_query_seconds{op} and kasma_store_up{store="postgres"}. */
#ifndef KASMA_STORES_PG_METRIC_H
#define KASMA_STORES_PG_METRIC_H

#include <stdbool.h>
#include <stdint.h>

enum pg_op { PG_OP_READ, PG_OP_RUN, PG_OP_TX, PG_OP_COUNT };

struct pg_gauges {
    uint32_t open, used, waiting; /* slots */
};

/* The gauges of a pool; names are the program's own. */
struct pg_gauges pg_metric_gauges(const char *pool);
void pg_metric_pool(const struct pg_gauges *g, unsigned open, unsigned used, unsigned waiting);
/* From the call until it is sent. */
void pg_metric_wait(uint64_t us);
/* From sending to the answer. */
void pg_metric_query(enum pg_op op, uint64_t us);
/* A pool that was not known to be away is (`away`), or one that was is back. */
void pg_metric_up(void);
void pg_metric_away(bool away);

#endif
