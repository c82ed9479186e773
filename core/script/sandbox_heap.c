/* The slab is taken once and never grows, so a run that was greedy leaves nothing behind that a quiet state would keep.
 * A page of it that was never reached is not resident. Under AddressSanitizer there is none: it could not see into it.
 */
#include "script/sandbox_heap.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define NO_SLAB 1
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define NO_SLAB 1
#endif
#ifndef NO_SLAB
#define NO_SLAB 0
#endif

static size_t place_of(size_t size) {
    return (size - 1) / HEAP_STEP;
}

static bool in_slab(const struct heap *h, const void *p) {
    return (uintptr_t)p - (uintptr_t)h->slab < HEAP_SLAB && h->slab;
}

static void *take(struct heap *h, size_t size) {
    if (NO_SLAB || size > HEAP_SMALL) return malloc(size);
    size_t place = place_of(size), whole = (place + 1) * HEAP_STEP;
    void *block = h->free[place];
    if (block) {
        memcpy(&h->free[place], block, sizeof(void *));
        return block;
    }
    if (!h->slab) h->slab = malloc(HEAP_SLAB);
    if (!h->slab || HEAP_SLAB - h->used < whole) return malloc(size);
    block = h->slab + h->used;
    h->used += whole;
    return block;
}

void heap_release(struct heap *h, void *old, size_t old_size) {
    if (!old) return;
    if (!in_slab(h, old)) {
        free(old);
        return;
    }
    size_t place = place_of(old_size);
    memcpy(old, &h->free[place], sizeof(void *));
    h->free[place] = old;
}

void *heap_resize(struct heap *h, void *old, size_t old_size, size_t size) {
    if (!old) return take(h, size);
    if (!in_slab(h, old)) return realloc(old, size);
    if (size <= HEAP_SMALL && place_of(size) == place_of(old_size)) return old;
    void *block = take(h, size);
    if (!block) return NULL;
    memcpy(block, old, old_size < size ? old_size : size);
    heap_release(h, old, old_size);
    return block;
}

void heap_close(struct heap *h) {
    free(h->slab);
    *h = (struct heap){0};
}
