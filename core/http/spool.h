/* A file that takes what is too large for memory and goes away with the request.
 *
 * Writing goes to the page cache and is done on the loop: a body arrives at most as fast as the network brings it, in
 * pieces of at most 64 KiB, each of which costs some ten microseconds; a trip to the thread pool costs more. */
#ifndef KASMA_HTTP_SPOOL_H
#define KASMA_HTTP_SPOOL_H

#include "runtime/arena.h"
#include "runtime/error.h"

struct spool {
    int fd;
    char *path;
    uint64_t size;
};

/* A new file in `dir`, readable by this user alone; it is closed and unlinked when the arena ends (a handler that wants
 * to keep it renames it or links it elsewhere). NULL: err is filled. */
struct spool *spool_open(struct arena *a, const char *dir, struct error *err);
bool spool_write(struct spool *s, struct str bytes, struct error *err);
/* Removes what processes that are no more (a crash, a power cut) have left in `dir`: files of ours, of this user, whose
 * process is not running and which nobody has written to for `idle_s` seconds. How many. The folder must belong to this
 * machine (or container) alone: another one's processes are not seen. */
unsigned spool_sweep(const char *dir, unsigned idle_s);
/* No more will be written; the file stays until the arena ends. */
void spool_finish(struct spool *s);

#endif
