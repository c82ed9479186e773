/* libcurl's multi interface on the process's loop. Private to core/http.
 *
 * A pool keeps connections for reuse. Its owner prepares an easy handle, embeds a `struct transfer` in what it
 * remembers of the work, and is told once, from the loop, how it ended. */
#ifndef KASMA_HTTP_TRANSFER_H
#define KASMA_HTTP_TRANSFER_H

#include <curl/curl.h>
#include <uv.h>

#include "runtime/error.h"

struct transfer_pool {
    CURLM *multi; /* NULL: not open */
    uv_timer_t timer;
    long idle; /* most kept connections */
};

struct transfer {
    CURL *easy;
    struct transfer_pool *pool;
    void (*ended)(struct transfer *transfer, CURLcode code); /* the handle is out of the pool; it may be freed here */
};

/* Starts what transfer->easy was prepared for; opens the pool when it is not. `ended` runs after this has returned.
 * False: `err` (ERR_INTERNAL, ERR_MEMORY); the handle is the caller's as before. */
bool transfer_start(struct transfer *transfer, struct transfer_pool *pool, struct error *err);
/* Ends it; `ended` will not be called. */
void transfer_cancel(struct transfer *transfer);
/* Closes the idle connections and the pool; no transfer may be under way. */
void transfer_pool_close(struct transfer_pool *pool);

#endif
