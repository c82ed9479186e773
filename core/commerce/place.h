/* Places as people type them: "Đà Nẵng", " da nang " and "DA NANG" are one; zip patterns; and the order of texts by
 * which every tie in this folder ends. */
#ifndef KASMA_COMMERCE_PLACE_H
#define KASMA_COMMERCE_PLACE_H

#include "runtime/arena.h"

/* `text` trimmed, lower case, without the accents of Latin letters (Vietnamese whole), combining marks dropped. Other
 * characters stay as they are. The result lives in the arena; `at` is NULL when out of memory. */
struct str place_fold(struct arena *a, struct str text);

/* How a zip pattern covers a zip, the more exact the larger. */
enum zip_match { ZIP_MISS = -1, ZIP_ANY, ZIP_PREFIX, ZIP_RANGE, ZIP_EXACT };
/* Patterns: `70000`, `70*`, `70000-70999` (same length, digits), empty = any. An empty zip matches only the empty
 * pattern. *prefix is the length of a prefix that matched, else 0. Both must be trimmed. */
enum zip_match place_zip(struct str pattern, struct str zip, size_t *prefix);

/* Order of two texts by their bytes, a prefix first: < 0, 0, > 0. */
int text_order(struct str a, struct str b);

#endif
