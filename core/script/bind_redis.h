/* The process's Redis, for bindings that build on it. */
#ifndef KASMA_SCRIPT_BIND_REDIS_H
#define KASMA_SCRIPT_BIND_REDIS_H

#include "stores/redis.h"

/* Made on first use from REDIS_URL, after the worker has forked; lives as long as the process. NULL: `err` is filled.
 */
struct redis *redis_shared(struct error *err);

#endif
