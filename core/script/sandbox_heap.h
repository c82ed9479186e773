/* Memory of a state: small blocks come out of one slab, by size, without a header of their own and without a walk
 * through the system's allocator; the rest, and what the slab has no room for, is the system's. */
#ifndef KASMA_SCRIPT_SANDBOX_HEAP_H
#define KASMA_SCRIPT_SANDBOX_HEAP_H

#include <stddef.h>

#define HEAP_SLAB ((size_t)48 * 1024)
#define HEAP_STEP ((size_t)16)
#define HEAP_SMALL ((size_t)256) /* the largest block of a slab */

/* A zeroed struct is an empty heap. */
struct heap {
    char *slab;
    size_t used;                        /* of the slab, from its begin */
    void *free[HEAP_SMALL / HEAP_STEP]; /* blocks of each size that were given back */
};

/* Makes `old` (of old_size bytes; NULL: a new block) as large as `size`, which is not 0. NULL: no memory, `old` stays.
 */
void *heap_resize(struct heap *h, void *old, size_t old_size, size_t size);
void heap_release(struct heap *h, void *old, size_t old_size);
/* Frees the slab; all blocks must have been released. */
void heap_close(struct heap *h);

#endif
