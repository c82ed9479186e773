/* What the pool lends to the session file. Internal to core/stores. */
#ifndef KASMA_STORES_PG_POOL_H
#define KASMA_STORES_PG_POOL_H

#include "stores/pg.h"

const struct pg_settings *pg_pool_settings(const struct pg_pool *p);
/* A call that waits in no pool. NULL: out of memory. */
struct pg_call *pg_call_new(pg_done *done, void *data);
/* Answers it, unless it was forgotten, and frees it. */
void pg_call_answer(struct pg_call *c, PGresult *const *result, size_t count, const struct pg_error *err);
/* Whether nobody waits for its answer any more. */
bool pg_call_forgotten(const struct pg_call *c);
/* Frees it without an answer. */
void pg_call_drop(struct pg_call *c);

#endif
