#include "http/spool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "runtime/log.h"

static void drop(void *data) {
    struct spool *s = data;
    spool_finish(s);
    /* ENOENT: the handler has moved it away, as it may. */
    if (unlink(s->path) != 0 && errno != ENOENT) log_line(LOG_WARN, "cannot unlink spool file: errno %d", errno);
}

struct spool *spool_open(struct arena *a, const char *dir, struct error *err) {
    struct spool *s = arena_alloc(a, sizeof *s);
    char *path = s ? arena_printf(a, "%s/kasma-spool-XXXXXX", dir) : NULL;
    if (!path) {
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    *s = (struct spool){.path = path, .fd = mkostemp(path, O_CLOEXEC)};
    if (s->fd < 0) {
        error_set(err, ERR_INTERNAL, "cannot make a spool file: errno %d", errno);
        return NULL;
    }
    if (!arena_defer(a, drop, s)) {
        drop(s);
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    return s;
}

bool spool_write(struct spool *s, struct str bytes, struct error *err) {
    while (bytes.len) {
        ssize_t n = write(s->fd, bytes.at, bytes.len);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return error_set(err, ERR_INTERNAL, "cannot write a spool file: errno %d", errno);
        bytes = str_n(bytes.at + n, bytes.len - (size_t)n);
        s->size += (uint64_t)n;
    }
    return true;
}

void spool_finish(struct spool *s) {
    if (s->fd < 0) return;
    if (close(s->fd) != 0) log_line(LOG_WARN, "cannot close spool file: errno %d", errno);
    s->fd = -1;
}
