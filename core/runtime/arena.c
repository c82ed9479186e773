#include "runtime/arena.h"

#include <stdalign.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* Blocks double up to this size; larger requests get a block of their own. */
#define BLOCK_MAX ((size_t)256 * 1024)

struct block {
    struct block *next;
    size_t size, used;
    alignas(max_align_t) char data[];
};

/* A node that has run or was cancelled is taken out and used for the next call, so that a task that lives for ever and
 * leases and gives back all the while does not grow. */
struct deferred {
    struct deferred *next, *before;
    struct arena *arena; /* NULL: spare */
    void (*fn)(void *data);
    void *data;
};

struct arena {
    struct block *first, *current;
    struct deferred *deferred; /* newest first */
    struct deferred *spare;
    size_t taken; /* bytes of all blocks */
    size_t limit; /* 0: none */
};

static struct block *block_new(size_t size) {
    struct block *b = malloc(sizeof *b + size);
    if (!b) return NULL;
    b->next = NULL;
    b->size = size;
    b->used = 0;
    return b;
}

struct arena *arena_new(size_t first) {
    if (first == 0) first = 4096;
    struct arena *a = malloc(sizeof *a);
    if (!a) return NULL;
    struct block *b = block_new(first);
    if (!b) {
        free(a);
        return NULL;
    }
    *a = (struct arena){.first = b, .current = b, .taken = first};
    return a;
}

static void run_deferred(struct arena *a) {
    /* A deferred call may defer another; both run. */
    while (a->deferred) deferred_run(a->deferred);
}

static void drop_blocks(struct block *b) {
    while (b) {
        struct block *next = b->next;
        free(b);
        b = next;
    }
}

void arena_free(struct arena *a) {
    if (!a) return;
    run_deferred(a);
    drop_blocks(a->first);
    free(a);
}

void arena_reset(struct arena *a) {
    run_deferred(a);
    drop_blocks(a->first->next);
    a->first->next = NULL;
    a->first->used = 0;
    a->current = a->first;
    a->taken = a->first->size;
    a->spare = NULL;
}

void *arena_alloc(struct arena *a, size_t size) {
    const size_t align = alignof(max_align_t);
    if (size > SIZE_MAX / 2) return NULL;
    size = size ? (size + align - 1) / align * align : align;
    struct block *b = a->current;
    if (b->size - b->used < size) {
        size_t want = b->size * 2 > BLOCK_MAX ? BLOCK_MAX : b->size * 2;
        if (want < size) want = size;
        if (a->limit && a->taken + want > a->limit) {
            want = size;
            if (a->taken + want > a->limit) return NULL;
        }
        struct block *fresh = block_new(want);
        if (!fresh) return NULL;
        a->taken += want;
        b->next = fresh;
        a->current = b = fresh;
    }
    void *p = b->data + b->used;
    b->used += size;
    return p;
}

void *arena_zalloc(struct arena *a, size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) return NULL;
    void *p = arena_alloc(a, bytes);
    if (p) memset(p, 0, bytes);
    return p;
}

char *arena_strdup(struct arena *a, struct str s) {
    char *p = arena_alloc(a, s.len + 1);
    if (!p) return NULL;
    if (s.len) memcpy(p, s.at, s.len);
    p[s.len] = '\0';
    return p;
}

char *arena_printf(struct arena *a, const char *fmt, ...) {
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    char *p = n < 0 ? NULL : arena_alloc(a, (size_t)n + 1);
    if (p && vsnprintf(p, (size_t)n + 1, fmt, again) != n) p = NULL;
    va_end(again);
    return p;
}

void arena_limit(struct arena *a, size_t bytes) {
    a->limit = bytes;
}

size_t arena_used(const struct arena *a) {
    return a->taken;
}

struct deferred *arena_defer(struct arena *a, void (*fn)(void *data), void *data) {
    struct deferred *d = a->spare;
    if (d)
        a->spare = d->next;
    else
        d = arena_alloc(a, sizeof *d);
    if (!d) return NULL;
    *d = (struct deferred){.next = a->deferred, .arena = a, .fn = fn, .data = data};
    if (a->deferred) a->deferred->before = d;
    a->deferred = d;
    return d;
}

void deferred_cancel(struct deferred *d) {
    struct arena *a = d->arena;
    if (!a) return;
    if (d->before)
        d->before->next = d->next;
    else
        a->deferred = d->next;
    if (d->next) d->next->before = d->before;
    d->arena = NULL;
    d->next = a->spare;
    a->spare = d;
}

void deferred_run(struct deferred *d) {
    if (!d->arena) return;
    void (*fn)(void *) = d->fn;
    void *data = d->data;
    deferred_cancel(d);
    fn(data);
}
