/* Dates and time zones: civil fields from epoch milliseconds and back, ISO 8601, and the zones of the system's tz
 * database read directly. (The C library knows one zone a process, by an environment variable; a tenant has its own.)
 */
#ifndef KASMA_SCRIPT_CALENDAR_H
#define KASMA_SCRIPT_CALENDAR_H

#include "runtime/str.h"

/* Years 0 to 9999, what ISO 8601 prints in four digits. */
#define CALENDAR_MIN INT64_C(-62167219200000)
#define CALENDAR_MAX INT64_C(253402300799999)

struct civil {
    int year, month, day; /* month and day from 1 */
    int hour, min, sec, ms;
    int wday;       /* 1 = Monday .. 7 = Sunday */
    int yday;       /* from 1 */
    int32_t offset; /* seconds east of UTC */
};

struct zone;

/* The zone by its database name ("Asia/Ho_Chi_Minh", "UTC"), or NULL when there is none of that name. Cached; the
 * pointer is good until the next call. */
const struct zone *zone_find(struct str name);
/* Seconds east of UTC at that time. */
int32_t zone_offset(const struct zone *z, int64_t epoch_s);

/* Fields in a zone (NULL: UTC). The time is clamped to the calendar's range. */
void civil_from_epoch(int64_t epoch_ms, const struct zone *z, struct civil *out);
/* Epoch milliseconds of the fields in a zone (NULL: UTC); fields out of their ranges carry over (day 32 of January is
 * the 1st of February). A time that a change of the clocks skips is taken with the offset before it, one that occurs
 * twice is the first. wday, yday and offset are not read. The result is clamped to the calendar's range. */
int64_t civil_to_epoch(const struct civil *c, const struct zone *z);
/* Days since 1970-01-01 of a civil date of the proleptic Gregorian calendar. */
int64_t calendar_days(int64_t year, int month, int day);

/* ISO 8601 date or date-time: "2026-11-29", "2026-11-29T10:00", "...:05", "...:05.204", then nothing, "Z", "+07:00",
 * "+0700" or "+07". Without an offset it is in zone `z` (NULL: UTC). False when it is not that or no such day. */
bool calendar_parse(struct str text, const struct zone *z, int64_t *epoch_ms);

#endif
