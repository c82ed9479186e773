#include "http/spool.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "runtime/log.h"

#define SPOOL_HEAD "kasma-spool-"

static void drop(void *data) {
    struct spool *s = data;
    spool_finish(s);
    /* ENOENT: the handler has moved it away, as it may. */
    if (unlink(s->path) != 0 && errno != ENOENT) log_line(LOG_WARN, "cannot unlink spool file: errno %d", errno);
}

struct spool *spool_open(struct arena *a, const char *dir, struct error *err) {
    struct spool *s = arena_alloc(a, sizeof *s);
    char *path = s ? arena_printf(a, "%s/" SPOOL_HEAD "%d-XXXXXX", dir, (int)getpid()) : NULL;
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

/* The process whose spool file has this name; 0: it is none. */
static pid_t owner_of(const char *name) {
    struct str rest = str_of(name), head = STR(SPOOL_HEAD);
    if (!str_starts(rest, head)) return 0;
    rest = str_n(rest.at + head.len, rest.len - head.len);
    const char *dash = memchr(rest.at, '-', rest.len);
    int64_t pid;
    bool ok = dash && str_int64(str_n(rest.at, (size_t)(dash - rest.at)), &pid) && pid > 0 && pid <= INT_MAX;
    return ok ? (pid_t)pid : 0;
}

unsigned spool_sweep(const char *dir, unsigned idle_s) {
    DIR *d = opendir(dir);
    if (!d) {
        log_line(LOG_WARN, "cannot look for old spool files: errno %d", errno);
        return 0;
    }
    unsigned swept = 0;
    time_t now = time(NULL);
    for (const struct dirent *e; (e = readdir(d)) != NULL;) {
        pid_t pid = owner_of(e->d_name);
        struct stat st;
        if (pid == 0 || kill(pid, 0) == 0 || errno != ESRCH) continue;
        if (fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode)) continue;
        if (st.st_uid != geteuid() || now - st.st_mtime < (time_t)idle_s) continue;
        if (unlinkat(dirfd(d), e->d_name, 0) == 0) swept++;
    }
    if (closedir(d) != 0) log_line(LOG_WARN, "closedir: errno %d", errno);
    if (swept) log_line(LOG_INFO, "%u spool files of processes that are gone were removed", swept);
    return swept;
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
