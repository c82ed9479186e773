/* A pooled connection belongs to nobody: what one call leaves on it, the next tenant's call would meet, and a COMMIT
 * inside a call would end the transaction that carries the tenant. Row security stands on kasma.tenant_key alone, so
 * no statement may set it but the frame that pg_conn.c sends.
 *
 * Only the first word is looked at (the server takes one statement a message, so nothing can hide behind a semicolon),
 * and the two functions that do the same inside a SELECT are sought in the text. This is a guard against mistakes in
 * our own code, not against an attacker who writes SQL: DO with a text put together at run time passes. It costs less
 * than the hash that the text gets anyway. */
#include "stores/pg_guard.h"

#include <stddef.h>
#include <string.h>
#include <strings.h>

static const char *past_block(const char *p) {
    unsigned depth = 0;
    do {
        if (p[0] == '/' && p[1] == '*') {
            depth++;
            p += 2;
        } else if (p[0] == '*' && p[1] == '/') {
            depth--;
            p += 2;
        } else {
            p++;
        }
    } while (depth > 0 && *p);
    return p;
}

/* Past white space and comments. */
static const char *past_blank(const char *p) {
    for (;;) {
        p += strspn(p, " \t\r\n\f\v;");
        if (p[0] == '-' && p[1] == '-')
            p += strcspn(p, "\n");
        else if (p[0] == '/' && p[1] == '*')
            p = past_block(p);
        else
            return p;
    }
}

static size_t word_at(const char *p) {
    return strspn(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_");
}

static bool is_one_of(const char *p, size_t len, const char *const *words) {
    for (; *words; words++)
        if (strlen(*words) == len && strncasecmp(p, *words, len) == 0) return true;
    return false;
}

/* SET LOCAL of a plain setting, and what holds for the transaction only. `p` lies behind SET. */
static bool set_is_local(const char *p) {
    static const char *const harmless[] = {"constraints", "transaction", NULL}, *const local[] = {"local", NULL};
    static const char *const frame[] = {"kasma", "role", "session", NULL};
    p = past_blank(p);
    size_t n = word_at(p);
    if (is_one_of(p, n, harmless)) return true;
    if (!is_one_of(p, n, local)) return false;
    p = past_blank(p + n);
    n = word_at(p);
    return n > 0 && !is_one_of(p, n, frame); /* a quoted name is none of ours */
}

/* Calls of functions that change the session. `_xact_` locks end with the transaction. */
static bool calls_session_function(const char *sql) {
    static const char *const names[] = {"set_config", "advisory_lock", "advisory_unlock", NULL};
    for (const char *p = strchr(sql, '_'); p; p = strchr(p + 1, '_')) {
        if ((p[1] | 32) != 'c' && (p[1] | 32) != 'l' && (p[1] | 32) != 'u') continue;
        for (size_t i = 0; names[i]; i++) {
            size_t before = i == 0 ? 3 : 8; /* what lies before the underscore */
            if ((size_t)(p - sql) >= before && strncasecmp(p - before, names[i], strlen(names[i])) == 0) return true;
        }
    }
    return false;
}

bool pg_guard_allows(const char *sql) {
    static const char *const refused[] = {"abort",     "begin",   "close",    "commit",  "copy",  "deallocate",
                                          "declare",   "discard", "end",      "execute", "fetch", "listen",
                                          "load",      "move",    "prepare",  "release", "reset", "rollback",
                                          "savepoint", "start",   "unlisten", NULL};
    static const char *const set[] = {"set", NULL};
    const char *p = past_blank(sql);
    size_t n = word_at(p);
    if (is_one_of(p, n, refused)) return false;
    if (is_one_of(p, n, set) && !set_is_local(p + n)) return false;
    return !calls_session_function(sql);
}
