/* Redlock: one lock over N independent Redis servers, held by whoever holds a majority of them.
 *
 * A lock names one or more keys; all of them or none. Its value is 16 random bytes, new for each attempt, so that a
 * command of an attempt that was given up, carried out late by a server that had slept, belongs to nobody.
 *
 * An attempt is decided as soon as the votes decide it: a slow server delays nobody while a majority answers. Elapsed
 * time is taken from before the first command to that moment, on the monotonic clock; the validity that is left is
 * ttl - elapsed - drift, and a holder must be done, or have extended, before it ends. The lock only spares work:
 * whatever must be correct is made so by PostgreSQL. A server that loses its data restarts empty-handed: such servers
 * must stay down for the longest ttl, or persist (fsync always). */
#ifndef KASMA_STORES_REDLOCK_H
#define KASMA_STORES_REDLOCK_H

#include "runtime/buf.h"
#include "runtime/error.h"

/* ---- the algebra ---- */

/* How many of `nodes` servers make a majority. */
size_t redlock_quorum(size_t nodes);
/* What clocks may differ over `ttl_ms`: 1 % rounded, and 2 ms. */
int64_t redlock_drift(int64_t ttl_ms);
/* Milliseconds a lock is good for after `elapsed_ms`; not above 0: not acquired. */
int64_t redlock_validity(int64_t ttl_ms, int64_t elapsed_ms);
/* The pause before the next attempt: delay +- jitter, never below 0; `random` is any 32 random bits. */
int64_t redlock_delay(int64_t delay_ms, int64_t jitter_ms, uint32_t random);

enum redlock_state { REDLOCK_OPEN, REDLOCK_HELD, REDLOCK_BUSY, REDLOCK_AWAY };
/* What `granted`, `refused` and `failed` answers of `nodes` servers decide so far. */
enum redlock_state redlock_decide(size_t nodes, size_t granted, size_t refused, size_t failed);

/* Appends `lock:{<tenant>}:<resource>`. False: ERR_INVALID when the tenant is missing or has not a tenant key's form,
 * or the resource is empty, longer than 512 bytes or holds control characters. */
bool redlock_key(struct buf *out, struct str tenant, struct str resource, struct error *err);

/* ---- the servers ---- */

struct redlock;         /* the servers */
struct redlock_hold;    /* one lock that is or was held */
struct redlock_attempt; /* one redlock_acquire under way */

struct redlock_policy {
    uint32_t ttl_ms;    /* 10 ms to 1 day */
    uint32_t retries;   /* after the first attempt */
    uint32_t delay_ms;  /* between attempts */
    uint32_t jitter_ms; /* at random, up or down */
};
#define REDLOCK_POLICY(ttl) ((struct redlock_policy){.ttl_ms = (ttl), .retries = 10, .delay_ms = 200, .jitter_ms = 200})

/* `urls`: Redis URLs with commas between (at most 15). Each server gets a connection of its own with a short time limit
 * (`node_timeout_ms`, 0: 250). NULL: ERR_INVALID or ERR_MEMORY. */
struct redlock *redlock_new(struct str urls, uint32_t node_timeout_ms, struct error *err);
/* Attempts and holds must have ended before. */
void redlock_free(struct redlock *r);
/* How many servers are reachable now. */
size_t redlock_nodes_up(const struct redlock *r);

/* `hold` becomes the callee's. Otherwise `err`: ERR_BUSY with code "locked" (somebody else has it, after all retries),
 * or ERR_UNAVAILABLE when no majority of servers answers: that is not tried again. */
typedef void redlock_acquired(void *data, struct redlock_hold *hold, const struct error *err);
/* Keys (1 to 64) are copied; take them in sorted order where several locks are taken one after another. `done` is
 * called once, from the loop, after this has returned. NULL: `err` (ERR_UNAVAILABLE when the servers are known to be
 * away). */
struct redlock_attempt *redlock_acquire(struct redlock *r, const struct str *keys, size_t count,
                                        const struct redlock_policy *policy, redlock_acquired *done, void *data,
                                        struct error *err);
/* Gives up: `done` will not be called, and what was granted is released. */
void redlock_cancel(struct redlock_attempt *attempt);

/* Milliseconds that the lock is still good for; 0 when it is over. */
int64_t redlock_validity_left(const struct redlock_hold *hold);

/* `err` NULL: done. ERR_QUERY with code "lost": the lock was not ours any more (extend and release alike);
 * ERR_UNAVAILABLE: no majority could be asked. */
typedef void redlock_changed(void *data, const struct error *err);
/* Makes the lock last `ttl_ms` from now; where that is the shorter time it counts at once, whatever becomes of the
 * call. One at a time: ERR_BUSY. False: `err` is filled and `done` will not be called. */
bool redlock_extend(struct redlock_hold *hold, uint32_t ttl_ms, redlock_changed *done, void *data, struct error *err);
/* Releases on all servers. The hold is gone when this returns; `done` (which may be NULL) is called once all servers
 * have answered or failed. An extension under way is not answered any more. False: nothing could be sent, `done` will
 * not be called, and the lock runs out by itself. */
bool redlock_release(struct redlock_hold *hold, redlock_changed *done, void *data, struct error *err);
/* Forgets who waits for an extend under way; the extension itself goes on. */
void redlock_detach(struct redlock_hold *hold);

#endif
