/* NOTIFY of a pool. Internal to core/stores. */
#ifndef KASMA_STORES_PG_NOTIFY_H
#define KASMA_STORES_PG_NOTIFY_H

#include "stores/pg.h"

struct pg_notifier;

/* `s` must outlive it. NULL: out of memory. */
struct pg_notifier *pg_notifier_new(const struct pg_settings *s);
/* Channels beyond the eighth, and names that are none, are passed over. */
void pg_notifier_ask(struct pg_notifier *n, struct str channel);
/* Now and then: gives up on a server that does not answer. */
void pg_notifier_look(struct pg_notifier *n);
void pg_notifier_free(struct pg_notifier *n);

#endif
