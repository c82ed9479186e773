/* What went wrong, owned by the caller, filled by the callee. A function that takes `struct error *err` as its last
 * parameter returns false (or NULL, or a negative enum) exactly when it has filled it. */
#ifndef KASMA_RUNTIME_ERROR_H
#define KASMA_RUNTIME_ERROR_H

#include <stdbool.h>

enum error_kind {
    ERR_NONE = 0,
    ERR_MEMORY,      /* out of memory */
    ERR_INVALID,     /* the input is at fault: bad argument, bad text, out of range */
    ERR_UNAVAILABLE, /* a store or peer is away: 503 with Retry-After */
    ERR_BUSY,        /* a bounded queue is full: 503 with Retry-After */
    ERR_TIMEOUT,     /* the operation's own time limit passed */
    ERR_CANCELLED,   /* the task was cancelled (client gone) */
    ERR_DEADLINE,    /* the task's deadline passed */
    ERR_QUERY,       /* the store understood and refused (SQLSTATE, Redis error, Mongo error) */
    ERR_LIMIT,       /* a limit was exceeded: size, depth, count, budget */
    ERR_INTERNAL,    /* a fault of ours */
};

struct error {
    enum error_kind kind;
    char code[32];     /* machine word of the source: SQLSTATE, mongo code, errno name; empty when it has none */
    char message[256]; /* plain English, for the log or, for ERR_INVALID, for the caller */
};

/* Fills `err` (which may be NULL) and returns false, so that callers can write `return error_set(...)`. */
bool error_set(struct error *err, enum error_kind kind, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* The kind as a lower-case word: "unavailable", "busy", ... */
const char *error_kind_name(enum error_kind kind);

#endif
