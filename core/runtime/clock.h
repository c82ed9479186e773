/* Business time and technical time.
 *
 * clock_now is the time of business: expiries, windows, schedules, created_at, uuid v7. Outside production it can be
 * shifted, so that a test of a thirty-day rule takes a second. clock_real and clock_mono are never shifted: time-outs,
 * leases, metrics, log lines. All are read once per loop turn by callers that care (libuv caches its own). */
#ifndef KASMA_RUNTIME_CLOCK_H
#define KASMA_RUNTIME_CLOCK_H

#include <stdint.h>

int64_t clock_now(void);      /* epoch milliseconds, shifted */
int64_t clock_real(void);     /* epoch milliseconds */
uint64_t clock_mono_us(void); /* microseconds from some start, monotonic */
int64_t clock_shift(void);    /* milliseconds added by clock_now */
void clock_set_shift(int64_t ms);

/* "2026-11-29T03:00:01.204Z" and NUL into out[25]. */
void clock_iso(int64_t epoch_ms, char out[25]);

#endif
