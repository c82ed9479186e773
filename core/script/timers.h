/* Timers of the script side: deadlines, sleeps and schedules, all on one uv timer.
 *
 * A request arms a deadline and nearly always disarms it again, so arming must cost next to nothing: the timers are
 * nodes of an intrusive pairing heap (no memory is taken, arming cannot fail) and the uv timer is touched only when the
 * earliest one changes. */
#ifndef KASMA_SCRIPT_TIMERS_H
#define KASMA_SCRIPT_TIMERS_H

#include <stdbool.h>
#include <stdint.h>

/* The owner's memory; a zeroed struct is an idle timer. Must stay until it has fired or was stopped. */
struct timer {
    uint64_t due; /* loop milliseconds */
    void (*fn)(void *data);
    void *data;
    struct timer *child, *next; /* heap links */
    struct timer *before;       /* left sibling, or the parent for a first child */
    bool armed;
};

/* Calls fn(data) once, `ms` milliseconds from now (at least 1). An armed timer is moved. */
void timer_start(struct timer *t, uint64_t ms, void (*fn)(void *data), void *data);
/* Nothing happens when it is idle. */
void timer_stop(struct timer *t);

#endif
