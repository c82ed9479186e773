/* multipart/form-data (RFC 7578), parsed as it arrives, in pieces of any size.
 *
 * Parts with a file name are written to spool files when there is a spool folder; all else is kept in memory. Bounded:
 * number of parts, bytes of a part's header, bytes kept in memory; the whole is bounded by the body limit of the
 * caller. */
#ifndef KASMA_HTTP_MULTIPART_H
#define KASMA_HTTP_MULTIPART_H

#include "runtime/arena.h"
#include "runtime/error.h"

#define MULTIPART_PARTS_MAX 256
#define MULTIPART_HEADER_MAX 4096
#define MULTIPART_MEMORY_MAX ((size_t)1024 * 1024) /* of all parts, when files are spooled */

struct part {
    struct str name;
    struct str filename; /* last path component; at == NULL when the part is no file */
    struct str type;     /* its Content-Type; at == NULL when absent */
    struct str data;     /* the bytes, when in memory */
    const char *path;    /* the spool file, else NULL */
    uint64_t size;
};

struct multipart {
    struct part *parts;
    size_t count;
};

struct multipart_parser;

/* `boundary` is 1 to 70 characters. `spool_dir` NULL: everything stays in memory. Everything that is made ends with the
 * arena. NULL: err is filled. */
struct multipart_parser *multipart_new(struct arena *a, struct str boundary, const char *spool_dir, struct error *err);
/* ERR_INVALID: malformed; ERR_LIMIT: a bound was passed; after false the parser takes no more. */
bool multipart_feed(struct multipart_parser *p, struct str bytes, struct error *err);
/* At the end of the body. NULL: the closing boundary is missing. */
const struct multipart *multipart_finish(struct multipart_parser *p, struct error *err);

#endif
