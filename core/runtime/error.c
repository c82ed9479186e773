#include "runtime/error.h"

#include <stdarg.h>
#include <stdio.h>

bool error_set(struct error *err, enum error_kind kind, const char *fmt, ...) {
    if (!err) return false;
    err->kind = kind;
    err->code[0] = '\0';
    va_list args;
    va_start(args, fmt);
    if (vsnprintf(err->message, sizeof err->message, fmt, args) < 0) err->message[0] = '\0';
    va_end(args);
    return false;
}

const char *error_kind_name(enum error_kind kind) {
    static const char *const names[] = {
        [ERR_NONE] = "none",           [ERR_MEMORY] = "memory",
        [ERR_INVALID] = "invalid",     [ERR_UNAVAILABLE] = "unavailable",
        [ERR_BUSY] = "busy",           [ERR_TIMEOUT] = "timeout",
        [ERR_CANCELLED] = "cancelled", [ERR_DEADLINE] = "deadline",
        [ERR_QUERY] = "query",         [ERR_LIMIT] = "limit",
        [ERR_INTERNAL] = "internal",
    };
    return names[kind];
}
