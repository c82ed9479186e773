/* TZif files of the system's tz database (RFC 8536): the 64-bit block, and the rule in the footer for times after the
 * last transition. Names come from tenants, so they are checked before they become a path, and files are bounded. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "script/calendar.h"

#define ZONE_DIR "/usr/share/zoneinfo/"
#define ZONE_FILE_MAX ((size_t)128 * 1024)
#define ZONE_NAME_MAX 64
#define CACHE_MAX 64

/* One end of daylight saving time in the footer: the n-th day of the year, or day d of week w of month m. */
struct change {
    enum { BY_MONTH, BY_JULIAN, BY_DAY } form;
    int month, week, day;
    int32_t time; /* seconds after local midnight, may be negative or beyond a day */
};

struct rule {
    bool present, has_dst;
    int32_t standard, dst; /* seconds east of UTC */
    struct change start, end;
};

struct zone {
    char name[ZONE_NAME_MAX + 1];
    struct zone *next; /* newest first */
    int64_t *times;    /* transitions, ascending */
    int32_t *offsets;  /* offset from times[i] on */
    size_t count;
    int32_t first; /* before the first transition */
    struct rule rule;
};

static struct zone *cache;
static size_t cached;

static bool name_ok(struct str name) {
    if (name.len == 0 || name.len > ZONE_NAME_MAX || name.at[0] == '/' || name.at[0] == '-') return false;
    for (size_t i = 0; i < name.len; i++) {
        char c = name.at[i];
        /* No dot at all: nothing climbs. */
        if (!((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '+' ||
              c == '-' || c == '/'))
            return false;
    }
    return true;
}

static int64_t be(const unsigned char *p, int n) {
    uint64_t v = n == 4 && (p[0] & 0x80) ? UINT64_MAX : 0;
    for (int i = 0; i < n; i++) v = v << 8 | p[i];
    return (int64_t)v;
}

/* ---- the footer: "EST5EDT,M3.2.0,M11.1.0" ---- */

static bool abbreviation(const char **p) {
    const char *at = *p;
    if (*at == '<') {
        while (*at && *at != '>') at++;
        if (*at++ != '>') return false;
    } else {
        while ((*at >= 'A' && *at <= 'Z') || (*at >= 'a' && *at <= 'z')) at++;
        if (at - *p < 3) return false;
    }
    *p = at;
    return true;
}

static bool small_number(const char **p, int most, int *out) {
    int v = 0, n = 0;
    for (; **p >= '0' && **p <= '9' && n < 4; ++*p, n++) v = v * 10 + (**p - '0');
    *out = v;
    return n > 0 && v <= most;
}

static bool clock_time(const char **p, int32_t *out) {
    int sign = 1, h = 0, m = 0, s = 0;
    if (**p == '-' || **p == '+') sign = *(*p)++ == '-' ? -1 : 1;
    if (!small_number(p, 167, &h)) return false;
    if (**p == ':') {
        ++*p;
        if (!small_number(p, 59, &m)) return false;
        if (**p == ':') {
            ++*p;
            if (!small_number(p, 59, &s)) return false;
        }
    }
    *out = sign * (h * 3600 + m * 60 + s);
    return true;
}

static bool one_change(const char **p, struct change *c) {
    if (*(*p)++ != ',') return false;
    *c = (struct change){.time = 7200};
    if (**p == 'M') {
        ++*p;
        if (!small_number(p, 12, &c->month) || c->month < 1 || *(*p)++ != '.' || !small_number(p, 5, &c->week) ||
            c->week < 1 || *(*p)++ != '.' || !small_number(p, 6, &c->day))
            return false;
        c->form = BY_MONTH;
    } else if (**p == 'J') {
        ++*p;
        c->form = BY_JULIAN;
        if (!small_number(p, 365, &c->day) || c->day < 1) return false;
    } else {
        c->form = BY_DAY;
        if (!small_number(p, 365, &c->day)) return false;
    }
    if (**p == '/') {
        ++*p;
        return clock_time(p, &c->time);
    }
    return true;
}

static bool footer(const char *p, struct rule *r) {
    int32_t west;
    if (!abbreviation(&p) || !clock_time(&p, &west)) return false;
    r->standard = -west;
    if (*p) {
        if (!abbreviation(&p)) return false;
        r->dst = r->standard + 3600;
        if (*p && *p != ',') {
            if (!clock_time(&p, &west)) return false;
            r->dst = -west;
        }
        if (!one_change(&p, &r->start) || !one_change(&p, &r->end) || *p) return false;
        r->has_dst = true;
    }
    r->present = true;
    return true;
}

/* Local seconds since 1970 at which the change happens in that year. */
static int64_t change_in(const struct change *c, int year) {
    int64_t day;
    bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if (c->form == BY_MONTH) {
        int64_t first = calendar_days(year, c->month, 1);
        int wday = (int)(((first + 4) % 7 + 7) % 7); /* 0 = Sunday */
        day = first + (c->day - wday + 7) % 7 + (int64_t)(c->week - 1) * 7;
        int64_t next = c->month == 12 ? calendar_days(year + 1, 1, 1) : calendar_days(year, c->month + 1, 1);
        while (day >= next) day -= 7;
    } else if (c->form == BY_JULIAN) {
        day = calendar_days(year, 1, 1) + c->day - 1 + (leap && c->day >= 60);
    } else {
        day = calendar_days(year, 1, 1) + c->day;
    }
    return day * 86400 + c->time;
}

static int32_t rule_offset(const struct rule *r, int64_t epoch_s) {
    if (!r->has_dst) return r->standard;
    struct civil c;
    civil_from_epoch((epoch_s + r->standard) * 1000, NULL, &c);
    int64_t start = change_in(&r->start, c.year) - r->standard;
    int64_t end = change_in(&r->end, c.year) - r->dst;
    bool dst = start < end ? epoch_s >= start && epoch_s < end : epoch_s >= start || epoch_s < end;
    return dst ? r->dst : r->standard;
}

/* ---- the file ---- */

static bool parse(const unsigned char *data, size_t len, struct zone *z) {
    const size_t head = 44;
    if (len < head || memcmp(data, "TZif", 4) != 0 || data[4] < '2') return false;
    size_t n[6]; /* isutcnt, isstdcnt, leapcnt, timecnt, typecnt, charcnt */
    for (size_t i = 0; i < 6; i++) n[i] = (size_t)be(data + 20 + 4 * i, 4);
    for (int i = 0; i < 6; i++)
        if (n[i] > ZONE_FILE_MAX) return false;
    size_t skip = head + n[3] * 5 + n[4] * 6 + n[5] + n[2] * 8 + n[1] + n[0];
    if (skip > len || len - skip < head) return false;
    data += skip;
    len -= skip;
    if (memcmp(data, "TZif", 4) != 0) return false;
    for (size_t i = 0; i < 6; i++) n[i] = (size_t)be(data + 20 + 4 * i, 4);
    for (int i = 0; i < 6; i++)
        if (n[i] > ZONE_FILE_MAX) return false;
    size_t count = n[3], types = n[4];
    size_t body = head + count * 9 + types * 6 + n[5] + n[2] * 12 + n[1] + n[0];
    if (types == 0 || body > len) return false;
    const unsigned char *times = data + head, *index = times + count * 8, *type = index + count;
    z->times = calloc(count + 1, sizeof *z->times);
    z->offsets = calloc(count + 1, sizeof *z->offsets);
    if (!z->times || !z->offsets) return false;
    z->count = count;
    for (size_t i = 0; i < count; i++) {
        z->times[i] = be(times + i * 8, 8);
        if (index[i] >= types || (i > 0 && z->times[i] <= z->times[i - 1])) return false;
        z->offsets[i] = (int32_t)be(type + (size_t)index[i] * 6, 4);
    }
    z->first = (int32_t)be(type, 4);
    for (size_t i = 0; i < types; i++) {
        int64_t offset = be(type + i * 6, 4);
        if (offset < -93600 || offset > 93600) return false; /* RFC 8536 allows no more than 25:59:59 */
    }
    if (len - body >= 3 && data[body] == '\n') {
        char text[128];
        size_t at = body + 1, size = 0;
        while (at < len && data[at] != '\n' && size < sizeof text - 1) text[size++] = (char)data[at++];
        text[size] = '\0';
        if (size && !footer(text, &z->rule)) z->rule = (struct rule){0};
    }
    return true;
}

static void zone_free(struct zone *z) {
    free(z->times);
    free(z->offsets);
    free(z);
}

static unsigned char *read_file(const char *path, size_t *len) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return NULL;
    struct stat st;
    unsigned char *data = NULL;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0 && (uint64_t)st.st_size <= ZONE_FILE_MAX) {
        data = malloc((size_t)st.st_size);
        size_t got = 0;
        while (data && got < (size_t)st.st_size) {
            ssize_t r = read(fd, data + got, (size_t)st.st_size - got);
            if (r < 0 && errno == EINTR) continue;
            if (r <= 0) break;
            got += (size_t)r;
        }
        *len = got;
    }
    if (close(fd) != 0) {
        free(data);
        return NULL;
    }
    return data;
}

static struct zone *load(struct str name) {
    struct zone *z = calloc(1, sizeof *z);
    if (!z) return NULL;
    memcpy(z->name, name.at, name.len);
    if (str_eq(name, STR("UTC"))) return z; /* needs no database */
    char path[sizeof ZONE_DIR + ZONE_NAME_MAX];
    int n = snprintf(path, sizeof path, "%s%s", ZONE_DIR, z->name);
    size_t len = 0;
    unsigned char *data = n > 0 && (size_t)n < sizeof path ? read_file(path, &len) : NULL;
    bool ok = data && parse(data, len, z);
    free(data);
    if (ok) return z;
    zone_free(z);
    return NULL;
}

const struct zone *zone_find(struct str name) {
    struct zone **at = &cache;
    for (; *at; at = &(*at)->next) {
        struct zone *z = *at;
        if (!str_eq(str_of(z->name), name)) continue;
        *at = z->next; /* to the front: what is asked for again stays */
        z->next = cache;
        cache = z;
        return z;
    }
    struct zone *z = name_ok(name) ? load(name) : NULL;
    if (!z) return NULL;
    z->next = cache;
    cache = z;
    if (cached < CACHE_MAX) {
        cached++;
        return z;
    }
    struct zone *before = cache;
    while (before->next->next) before = before->next;
    zone_free(before->next);
    before->next = NULL;
    return z;
}

int32_t zone_offset(const struct zone *z, int64_t epoch_s) {
    if (z->count == 0) return z->rule.present ? rule_offset(&z->rule, epoch_s) : z->first;
    if (epoch_s < z->times[0]) return z->first;
    if (epoch_s >= z->times[z->count - 1])
        return z->rule.present ? rule_offset(&z->rule, epoch_s) : z->offsets[z->count - 1];
    size_t low = 0, high = z->count - 1; /* times[low] <= t < times[high] */
    while (high - low > 1) {
        size_t mid = low + (high - low) / 2;
        if (z->times[mid] <= epoch_s) {
            low = mid;
        } else {
            high = mid;
        }
    }
    return z->offsets[low];
}
