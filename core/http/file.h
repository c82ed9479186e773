/* Files as answers: conditional requests, ranges, back-pressure. Opening and reading happen on the thread pool; at most
 * one piece of a file is in memory. */
#ifndef KASMA_HTTP_FILE_H
#define KASMA_HTTP_FILE_H

#include "http/request.h"

struct file_send;

/* Answers `r` with the regular file at `path` (a folder: its index.html). Content-Type comes from the name unless
 * `headers` has one; they are copied. finished(data, error) is called once, not before this returns: err == NULL when
 * the answer is complete or the client has gone; ERR_INVALID (code ENOENT, EACCES, ...) when there is no such file and
 * nothing was answered. NULL: out of memory (err filled), finished is not called. */
struct file_send *file_send(struct request *r, struct str path, const struct header *headers, size_t count,
                            void (*finished)(void *data, const struct error *err), void *data, struct error *err);
/* The request must not be touched any more; finished is not called. */
void file_cancel(struct file_send *f);

/* Serves the files below `directory` at `prefix`. A path that is not plain (empty segments, "..", hidden names, NUL) is
 * 404. Answers may be cached, but are checked with the server each time. */
bool file_routes(struct routes *t, struct str prefix, const char *directory, struct error *err);

#endif
