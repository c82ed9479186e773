#include "script/calendar.h"

/* The algorithms count days from 0000-03-01, so that the leap day is the last of its year. */

int64_t calendar_days(int64_t year, int month, int day) {
    if (month <= 2) year--;
    int64_t era = (year >= 0 ? year : year - 399) / 400;
    int64_t yoe = year - era * 400;
    int64_t doy = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    int64_t doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    return era * 146097 + doe - 719468;
}

static int64_t floor_div(int64_t a, int64_t b) {
    return a / b - (a % b < 0);
}

static int64_t clamp(int64_t ms) {
    return ms < CALENDAR_MIN ? CALENDAR_MIN : ms > CALENDAR_MAX ? CALENDAR_MAX : ms;
}

void civil_from_epoch(int64_t epoch_ms, const struct zone *z, struct civil *out) {
    epoch_ms = clamp(epoch_ms);
    int64_t s = floor_div(epoch_ms, 1000);
    int32_t offset = z ? zone_offset(z, s) : 0;
    int64_t local = s + offset;
    int64_t days = floor_div(local, 86400);
    int rest = (int)(local - days * 86400);
    int64_t shifted = days + 719468;
    int64_t era = floor_div(shifted, 146097);
    int64_t doe = shifted - era * 146097;
    int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    int64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    int64_t mp = (5 * doy + 2) / 153;
    out->day = (int)(doy - (153 * mp + 2) / 5 + 1);
    out->month = (int)(mp < 10 ? mp + 3 : mp - 9);
    out->year = (int)(yoe + era * 400 + (out->month <= 2));
    out->hour = rest / 3600;
    out->min = rest / 60 % 60;
    out->sec = rest % 60;
    out->ms = (int)(epoch_ms - s * 1000);
    out->wday = (int)(((days + 3) % 7 + 7) % 7) + 1; /* 1970-01-01 was a Thursday */
    out->yday = (int)(days - calendar_days(out->year, 1, 1)) + 1;
    out->offset = offset;
}

int64_t civil_to_epoch(const struct civil *c, const struct zone *z) {
    int64_t month0 = (int64_t)c->month - 1;
    int64_t year = c->year + floor_div(month0, 12);
    int month = (int)(month0 - floor_div(month0, 12) * 12) + 1;
    int64_t days = calendar_days(year, month, 1) + c->day - 1;
    int64_t local = days * 86400 + (int64_t)c->hour * 3600 + (int64_t)c->min * 60 + c->sec;
    int64_t s = local;
    if (z) {
        /* The offsets a day before and after bracket any change; the larger one gives the earlier instant. */
        int32_t before = zone_offset(z, local - 86400), after = zone_offset(z, local + 86400);
        int32_t larger = before > after ? before : after, smaller = before > after ? after : before;
        if (zone_offset(z, local - larger) == larger) {
            s = local - larger;
        } else if (zone_offset(z, local - smaller) == smaller) {
            s = local - smaller;
        } else {
            s = local - before;
        }
    }
    return clamp(s * 1000 + c->ms);
}

static bool digits(const char **at, const char *end, int n, int *out) {
    int v = 0;
    if (end - *at < n) return false;
    for (int i = 0; i < n; i++) {
        char c = (*at)[i];
        if (c < '0' || c > '9') return false;
        v = v * 10 + (c - '0');
    }
    *at += n;
    *out = v;
    return true;
}

static bool accept(const char **at, const char *end, char c) {
    if (*at >= end || **at != c) return false;
    ++*at;
    return true;
}

static int month_days(int year, int month) {
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    return month == 2 && leap ? 29 : days[month - 1];
}

bool calendar_parse(struct str text, const struct zone *z, int64_t *epoch_ms) {
    if (text.len < 10 || text.len > 40) return false;
    const char *at = text.at, *end = text.at + text.len;
    struct civil c = {0};
    if (!digits(&at, end, 4, &c.year) || !accept(&at, end, '-') || !digits(&at, end, 2, &c.month) ||
        !accept(&at, end, '-') || !digits(&at, end, 2, &c.day))
        return false;
    if (c.month < 1 || c.month > 12 || c.day < 1 || c.day > month_days(c.year, c.month)) return false;
    bool has_offset = false;
    int sign = 0, oh = 0, om = 0;
    if (at < end) {
        if (!accept(&at, end, 'T') && !accept(&at, end, ' ')) return false;
        if (!digits(&at, end, 2, &c.hour) || !accept(&at, end, ':') || !digits(&at, end, 2, &c.min)) return false;
        if (accept(&at, end, ':')) {
            if (!digits(&at, end, 2, &c.sec)) return false;
            if (accept(&at, end, '.')) {
                int weight = 100, n = 0;
                for (; at < end && *at >= '0' && *at <= '9'; at++, n++) {
                    c.ms += (*at - '0') * weight;
                    weight /= 10;
                }
                if (n == 0 || n > 9) return false;
            }
        }
        if (c.hour > 23 || c.min > 59 || c.sec > 59) return false;
        if (accept(&at, end, 'Z')) {
            has_offset = true;
        } else if (at < end && (*at == '+' || *at == '-')) {
            has_offset = true;
            sign = *at++ == '-' ? -1 : 1;
            if (!digits(&at, end, 2, &oh)) return false;
            if (at < end) {
                bool colon = accept(&at, end, ':');
                (void)colon; /* both forms are ISO 8601 */
                if (!digits(&at, end, 2, &om)) return false;
            }
            if (oh > 18 || om > 59) return false;
        }
        if (at != end) return false;
    }
    int64_t ms = civil_to_epoch(&c, has_offset ? NULL : z);
    *epoch_ms = ms - sign * ((int64_t)oh * 3600 + (int64_t)om * 60) * 1000;
    return true;
}
