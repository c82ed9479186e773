/* The body of a request on its way in: undone from its coding, counted, and put where the route wants it: in memory, on
 * disk, cut into parts, or (`stream`) piece by piece to a handler that is at work already.
 *
 * A streamed body keeps the raw bytes that came and were not taken, and decodes when they are taken: what a small body
 * decodes to never has to be held, however large that is. The connection stops reading above BODY_WINDOW. */
#ifndef KASMA_HTTP_BODY_H
#define KASMA_HTTP_BODY_H

#include "http/compress.h"
#include "http/multipart.h"
#include "http/spool.h"

/* A spooled body goes to disk when it passes this. */
#define BODY_MEMORY_MAX ((size_t)64 * 1024)

/* Raw bytes of a streamed body that may wait for the handler; one read of the socket may come on top. */
#define BODY_WINDOW ((size_t)64 * 1024)

/* A zeroed struct is "no body". */
struct body {
    struct arena *arena;
    struct str view; /* the bytes, when they need no copy */
    struct buf copy; /* else */
    struct decoder *decoder;
    const char *spool_dir; /* NULL: memory only */
    struct spool *file;
    struct multipart_parser *parser; /* a multipart body that is cut while it arrives */
    const struct multipart *parts;
    bool stream;             /* `copy` from `taken` on holds raw bytes that wait to be taken */
    bool complete;           /* body_end was called */
    size_t taken;            /* of `copy` */
    size_t limit;            /* decoded bytes */
    uint64_t received, size; /* raw bytes, decoded bytes */
    int refusal;             /* status, once the body is refused */
    char why[128];           /* text of a 400 or 415 */
};

/* `boundary` is that of a multipart body to be cut while it arrives, else empty. False: refusal is set. */
bool body_begin(struct body *b, struct arena *a, size_t limit, enum coding coding, const char *spool_dir,
                struct str boundary);
/* `stays`: the bytes are the whole body and outlive the request, so that an uncoded body need not be copied. False:
 * refusal is set, and nothing more may be fed. */
bool body_feed(struct body *b, struct str bytes, bool stays);
/* The body is complete. False: refusal is set. */
bool body_end(struct body *b);

/* As body_begin, for a body that is taken with body_take. */
bool body_begin_stream(struct body *b, size_t limit, enum coding coding);
enum body_take { BODY_SOME, BODY_END, BODY_WAIT, BODY_REFUSED };
/* Appends at least one and at most `max` decoded bytes to `out` (BODY_SOME). BODY_WAIT: nothing is there yet.
 * BODY_REFUSED: refusal is set, and stays so. */
enum body_take body_take(struct body *b, struct buf *out, size_t max);
static inline size_t body_waiting(const struct body *b) {
    return b->copy.len - b->taken;
}
/* Ends a body that cannot become complete; what follows is BODY_REFUSED. */
void body_fail(struct body *b, int status, struct str why);
static inline struct str body_bytes(const struct body *b) {
    return b->view.at ? b->view : buf_str(&b->copy);
}
/* Frees what does not lie in the arena; the copy's memory is kept when it is small. */
void body_reset(struct body *b);

#endif
