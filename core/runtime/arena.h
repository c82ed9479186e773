/* Memory and clean-up of one request (or one job, or one CLI run).
 *
 * Everything allocated from an arena lives until arena_free or arena_reset; nothing is freed singly. What must be given
 * back sooner or later (a leased connection, a lock, a spooled file) registers a deferred call; deferred calls run in
 * reverse order when the arena ends, unless they were cancelled because the thing was already given back. */
#ifndef KASMA_RUNTIME_ARENA_H
#define KASMA_RUNTIME_ARENA_H

#include "runtime/str.h"

struct arena;
struct deferred;

/* An arena whose first block holds `first` bytes (0: 4 KiB). NULL when out of memory. */
struct arena *arena_new(size_t first);
/* Runs the deferred calls, newest first, then frees all memory. NULL is allowed. */
void arena_free(struct arena *a);
/* As arena_free, but keeps the first block, so that the arena can serve the next request without malloc. */
void arena_reset(struct arena *a);
/* `size` bytes aligned for any type, not zeroed. NULL when out of memory or past the arena's limit. */
void *arena_alloc(struct arena *a, size_t size);
/* As arena_alloc, zeroed; NULL also when count*size overflows. */
void *arena_zalloc(struct arena *a, size_t count, size_t size);
/* A NUL-terminated copy of `s`. NULL when out of memory. */
char *arena_strdup(struct arena *a, struct str s);
/* printf into the arena. NULL when out of memory. */
char *arena_printf(struct arena *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Most bytes the arena may take in all (0: no limit, the default). */
void arena_limit(struct arena *a, size_t bytes);
size_t arena_used(const struct arena *a);

/* Calls fn(data) when the arena ends. NULL when out of memory (fn is then NOT called: the caller cleans up). */
struct deferred *arena_defer(struct arena *a, void (*fn)(void *data), void *data);
/* The thing was given back early: fn will not be called. `d` is not valid afterwards. */
void deferred_cancel(struct deferred *d);
/* Calls fn now and never again. `d` is not valid afterwards. */
void deferred_run(struct deferred *d);

#endif
