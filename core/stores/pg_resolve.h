/* The host name of a connection string, looked up beside the loop: libpq would wait for the name server, and the whole
 * process with it. libpq is then given the addresses, tries them in their order, and still checks a certificate against
 * the name. */
#ifndef KASMA_STORES_PG_RESOLVE_H
#define KASMA_STORES_PG_RESOLVE_H

#include <stdbool.h>
#include <stddef.h>

struct pg_resolve;

/* Whether `url` names one host by a name, which is copied to `host`. A list of hosts, an address, a folder of sockets
 * or no host at all is libpq's own affair. */
bool pg_resolve_needed(const char *url, char *host, size_t size);

/* Called once, later: what to give to libpq as `host` and `hostaddr` (lists of one length), or why there is none. */
typedef void pg_resolved(void *data, const char *hosts, const char *addresses, const char *why);
/* NULL: it cannot be begun, and `resolved` is not called. */
struct pg_resolve *pg_resolve_start(const char *host, pg_resolved *resolved, void *data);
/* `resolved` is not called any more. */
void pg_resolve_cancel(struct pg_resolve *r);

#endif
