/* A timer wheel: time-outs of thousands of connections on one uv timer.
 *
 * Ticks are coarse (see wheel_open), which is what a time-out of seconds needs. Moving a deadline further away is a
 * plain store: the entry stays in its slot and finds its new one when that slot comes up. That is the common case,
 * since each request of a keep-alive connection only pushes the idle time-out on. */
#ifndef KASMA_HTTP_WHEEL_H
#define KASMA_HTTP_WHEEL_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#define WHEEL_SLOTS 256

/* The owner's memory. A zeroed entry is idle. */
struct wheel_entry {
    struct wheel_entry *next, **at;      /* at: the pointer that points here; NULL when in no slot */
    uint64_t slot_due;                   /* when its slot comes up */
    uint64_t due;                        /* loop milliseconds; 0: disarmed, though it may still lie in a slot */
    void (*fire)(struct wheel_entry *e); /* called disarmed and out of its slot; may set, clear or free any entry */
};

struct wheel {
    uv_timer_t timer;
    uint64_t tick_ms, now; /* now: start of the current tick */
    struct wheel_entry *slots[WHEEL_SLOTS];
    bool running;
    uint64_t armed; /* entries in slots */
};

bool wheel_open(struct wheel *w, uv_loop_t *loop, uint64_t tick_ms);
/* Closes the timer handle; `closed` is called from the loop. Entries are forgotten. */
void wheel_close(struct wheel *w, uv_close_cb closed);
/* Fires `ms` milliseconds from the loop's now, up to one tick late. */
void wheel_set(struct wheel *w, struct wheel_entry *e, uint64_t ms);
/* Will not fire; the entry may stay in its slot, so that its memory must not be freed: wheel_remove does that. */
static inline void wheel_disarm(struct wheel_entry *e) {
    e->due = 0;
}
void wheel_remove(struct wheel *w, struct wheel_entry *e);

#endif
