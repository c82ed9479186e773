#include "runtime/clock.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static int64_t shift_ms;

int64_t clock_real(void) {
    struct timespec ts;
    if (clock_gettime(CLOCK_REALTIME, &ts) != 0) return 0;
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

int64_t clock_now(void) {
    return clock_real() + shift_ms;
}

uint64_t clock_mono_us(void) {
    struct timespec ts;
    if (clock_gettime(CLOCK_MONOTONIC, &ts) != 0) return 0;
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

int64_t clock_shift(void) {
    return shift_ms;
}

void clock_set_shift(int64_t ms) {
    shift_ms = ms;
}

void clock_iso(int64_t epoch_ms, char out[25]) {
    int64_t s = epoch_ms / 1000, ms = epoch_ms % 1000;
    if (ms < 0) {
        ms += 1000;
        s--;
    }
    time_t t = (time_t)s;
    struct tm tm;
    if (!gmtime_r(&t, &tm) || tm.tm_year + 1900 < 0 || tm.tm_year + 1900 > 9999) {
        memcpy(out, "1970-01-01T00:00:00.000Z", 25);
        return;
    }
    char text[64];
    int n = snprintf(text, sizeof text, "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ", tm.tm_year + 1900, tm.tm_mon + 1,
                     tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, (int)ms);
    memcpy(out, n == 24 ? text : "1970-01-01T00:00:00.000Z", 25);
}
