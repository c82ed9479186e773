/* Weak entity tags of answers. */
#ifndef KASMA_HTTP_ETAG_H
#define KASMA_HTTP_ETAG_H

#include "runtime/str.h"

#define ETAG_MAX 40

/* W/"<length>-<hash>" into `out`; its length comes back. Equal bytes give equal tags on every machine. */
size_t etag_of(struct str body, char out[ETAG_MAX]);
/* The (strong) tag of a file from its size and time of change. */
size_t etag_of_file(uint64_t size, int64_t mtime_ns, char out[ETAG_MAX]);
/* True when If-None-Match names the tag (weak comparison) or is "*". */
bool etag_matches(struct str if_none_match, struct str etag);

#endif
