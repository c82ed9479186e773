#include "stores/pg_metric.h"

#include "runtime/metrics.h"

static struct metric *pool, *wait, *query;
static uint32_t wait_slot, query_slot[PG_OP_COUNT], up_slot;
static unsigned pools_away;

static void prepare(void) {
    if (pool) return;
    static const double bounds[] = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2};
    const size_t count = sizeof bounds / sizeof *bounds;
    pool = metric_gauge("kasma_pg_pool", "Connections to PostgreSQL, and calls that wait for one.", METRIC_SUM,
                        "pool,state");
    wait = metric_histogram("kasma_pg_wait_seconds", "Time that a call waits for a connection to PostgreSQL.", bounds,
                            count, NULL);
    query = metric_histogram("kasma_pg_query_seconds", "Time from sending to PostgreSQL to its answer.", bounds, count,
                             "op");
    struct metric *up = metric_gauge("kasma_store_up", "1 while the store answers.", METRIC_MIN, "store");
    wait_slot = metric_only(wait);
    query_slot[PG_OP_READ] = metric_series(query, "read");
    query_slot[PG_OP_RUN] = metric_series(query, "run");
    query_slot[PG_OP_TX] = metric_series(query, "tx");
    up_slot = metric_series(up, "postgres");
}

struct pg_gauges pg_metric_gauges(const char *name) {
    prepare();
    return (struct pg_gauges){.open = metric_series(pool, name, "open"),
                              .used = metric_series(pool, name, "used"),
                              .waiting = metric_series(pool, name, "waiting")};
}

void pg_metric_pool(const struct pg_gauges *g, unsigned open, unsigned used, unsigned waiting) {
    metric_set(g->open, open);
    metric_set(g->used, used);
    metric_set(g->waiting, waiting);
}

void pg_metric_wait(uint64_t us) {
    metric_observe(wait, wait_slot, (double)us / 1e6);
}

void pg_metric_query(enum pg_op op, uint64_t us) {
    metric_observe(query, query_slot[op], (double)us / 1e6);
}

void pg_metric_up(void) {
    metric_set(up_slot, pools_away == 0);
}

void pg_metric_away(bool away) {
    if (away)
        pools_away++;
    else
        pools_away--;
    pg_metric_up();
}
