#include "runtime/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "runtime/buf.h"
#include "runtime/clock.h"

#define FLUSH_AT ((size_t)16 * 1024)

static enum log_level least_level = LOG_INFO;
static struct buf pending;
static const char *const names[] = {"debug", "info", "warn", "error"};

void log_set_level(enum log_level least) {
    least_level = least;
}

enum log_level log_get_level(void) {
    return least_level;
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

void log_event(enum log_level level, struct str message, struct str fields) {
    if (level < least_level) return;
    char now[25];
    clock_iso(clock_real(), now);
    size_t start = pending.len;
    bool ok =
        buf_printf(&pending, "{\"t\":\"%s\",\"level\":\"%s\",\"pid\":%d,\"msg\":", now, names[level], (int)getpid()) &&
        buf_json_string(&pending, message) &&
        (fields.len == 0 || (buf_byte(&pending, ',') && buf_add(&pending, fields))) && buf_add(&pending, STR("}\n"));
    if (!ok) pending.len = start;
    if (level >= LOG_WARN || pending.len >= FLUSH_AT) log_flush();
}

void log_line(enum log_level level, const char *fmt, ...) {
    if (level < least_level) return;
    char text[1024];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (n < 0) return;
    log_event(level, str_n(text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1), str_n("", 0));
}
