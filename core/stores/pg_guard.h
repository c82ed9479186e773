/* Which statements a pool takes. Internal to core/stores. */
#ifndef KASMA_STORES_PG_GUARD_H
#define KASMA_STORES_PG_GUARD_H

#include <stdbool.h>

/* Whether the statement leaves the session and the frame of its transaction (BEGIN, tenant, COMMIT) as they are. `sql`
 * ends with NUL. */
bool pg_guard_allows(const char *sql);

#endif
