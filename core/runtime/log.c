#include "runtime/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "runtime/buf.h"
#include "runtime/clock.h"

#define FLUSH_AT ((size_t)16 * 1024)

#define PARTS_MAX 16
#define PART_LEN 31

struct levels {
    enum log_level all, lowest;
    size_t count;
    struct {
        char name[PART_LEN + 1];
        enum log_level level;
    } part[PARTS_MAX];
};

static struct levels levels = {.all = LOG_INFO, .lowest = LOG_INFO};
static struct buf pending;
static const char *const names[] = {"debug", "info", "warn", "error"};

static void find_lowest(struct levels *l) {
    l->lowest = l->all;
    for (size_t i = 0; i < l->count; i++)
        if (l->part[i].level < l->lowest) l->lowest = l->part[i].level;
}

void log_set_level(enum log_level least) {
    levels.all = least;
    find_lowest(&levels);
}

enum log_level log_get_level(void) {
    return levels.all;
}

/* "stores=debug" */
static bool add_part(struct levels *l, struct str word) {
    const char *equals = memchr(word.at, '=', word.len);
    size_t n = equals ? (size_t)(equals - word.at) : 0;
    if (n == 0 || n > PART_LEN || l->count == PARTS_MAX) return false;
    for (size_t i = 0; i < n; i++)
        if (!((word.at[i] >= 'a' && word.at[i] <= 'z') || (word.at[i] >= '0' && word.at[i] <= '9') ||
              word.at[i] == '_'))
            return false;
    if (!log_level_parse(str_n(equals + 1, word.len - n - 1), &l->part[l->count].level)) return false;
    memcpy(l->part[l->count].name, word.at, n);
    l->part[l->count++].name[n] = '\0';
    return true;
}

bool log_set_levels(const char *text, bool set) {
    struct levels fresh = {0};
    bool ok = true, first = true;
    for (struct str rest = str_of(text); ok && (rest.len || first); first = false) {
        const char *comma = rest.len ? memchr(rest.at, ',', rest.len) : NULL;
        struct str word = str_trim(str_n(rest.at, comma ? (size_t)(comma - rest.at) : rest.len));
        ok = first ? log_level_parse(word, &fresh.all) : add_part(&fresh, word);
        size_t used = comma ? (size_t)(comma - rest.at) + 1 : rest.len;
        if (comma && used == rest.len) ok = false; /* nothing behind the last comma */
        rest = str_n(rest.at + used, rest.len - used);
    }
    if (ok && set) {
        find_lowest(&fresh);
        levels = fresh;
    }
    return ok;
}

bool log_wanted(enum log_level level) {
    return level >= levels.lowest;
}

bool log_wanted_of(struct str part, enum log_level level) {
    for (size_t i = 0; i < levels.count; i++)
        if (str_eq(part, str_of(levels.part[i].name))) return level >= levels.part[i].level;
    return level >= levels.all;
}

struct str log_part_of(const char *file) {
    const char *at = NULL;
    for (const char *p = file; (p = strstr(p, "core/")) != NULL; p += 5) at = p + 5;
    const char *slash = at ? strchr(at, '/') : NULL;
    return slash ? str_n(at, (size_t)(slash - at)) : STR("main");
}

bool log_level_parse(struct str word, enum log_level *out) {
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (str_eq(word, str_of(names[i]))) {
            *out = (enum log_level)i;
            return true;
        }
    return false;
}

void log_flush(void) {
    size_t at = 0;
    while (at < pending.len) {
        ssize_t n = write(STDERR_FILENO, pending.data + at, pending.len - at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break; /* nowhere left to tell it */
        at += (size_t)n;
    }
    buf_clear(&pending);
}

void log_event_of(struct str part, enum log_level level, struct str message, struct str fields) {
    if (!log_wanted(level) || !log_wanted_of(part, level)) return;
    char now[25];
    clock_iso(clock_real(), now);
    size_t start = pending.len;
    bool ok = buf_printf(&pending, "{\"t\":\"%s\",\"level\":\"%s\",\"pid\":%d,\"part\":\"%.*s\",\"msg\":", now,
                         names[level], (int)getpid(), STR_FMT(part)) &&
              buf_json_string(&pending, message) &&
              (fields.len == 0 || (buf_byte(&pending, ',') && buf_add(&pending, fields))) &&
              buf_add(&pending, STR("}\n"));
    if (!ok) pending.len = start;
    if (level >= LOG_WARN || pending.len >= FLUSH_AT) log_flush();
}

void log_line_in(const char *file, enum log_level level, const char *fmt, ...) {
    if (!log_wanted(level)) return;
    char text[1024];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (n < 0) return;
    log_event_of(log_part_of(file), level, str_n(text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1),
                 str_n("", 0));
}
