/* Content codings: undoing those of request bodies piece by piece, making those of answers in one go. */
#ifndef KASMA_HTTP_COMPRESS_H
#define KASMA_HTTP_COMPRESS_H

#include "runtime/buf.h"

enum coding { CODING_IDENTITY, CODING_GZIP, CODING_DEFLATE, CODING_BR, CODING_UNKNOWN };

/* The coding named by a Content-Encoding header; empty and "identity" are CODING_IDENTITY, a list is unknown. */
enum coding coding_of(struct str content_encoding);
struct str coding_name(enum coding c);
/* The best coding for an answer that Accept-Encoding allows: br, else gzip, else identity. */
enum coding coding_accepted(struct str accept_encoding);

struct decoder;
enum decode_result {
    DECODE_OK,
    DECODE_BAD,     /* not that format, or damaged */
    DECODE_STOPPED, /* the sink refused */
    DECODE_MEMORY,
};
/* Takes decoded bytes, at most 16 KiB at a time, so that a limit it keeps is never passed by more. False stops. */
typedef bool decode_sink(void *data, struct str bytes);

/* For CODING_GZIP, _DEFLATE or _BR. NULL: out of memory. */
struct decoder *decoder_new(enum coding c);
void decoder_free(struct decoder *d);
enum decode_result decoder_feed(struct decoder *d, struct str bytes, decode_sink *sink, void *data);
/* The same the other way round, for who takes the bytes when it wants them: decodes from `in`, which moves on, into
 * out[0..room), *got bytes of it (also with DECODE_BAD: what was good before the damage). None and DECODE_OK: all of
 * `in` is used and nothing waits inside; `in` may be empty, to get what does. */
enum decode_result decoder_pull(struct decoder *d, struct str *in, char *out, size_t room, size_t *got);
/* The stream's own end was seen: false for a body that is cut short. */
bool decoder_complete(const struct decoder *d);

/* Appends `body` compressed (CODING_GZIP or CODING_BR) to `out`. False: out of memory, or it did not shrink; `out` is
 * then as before. Fast settings: this runs on the loop. */
bool compress_body(enum coding c, struct str body, struct buf *out);

#endif
