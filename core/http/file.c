#include "http/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

#include "http/compress.h"
#include "http/decode.h"
#include "http/etag.h"
#include "http/mime.h"
#include "http/range.h"
#include "runtime/log.h"
#include "runtime/loop.h"

#define PIECE ((size_t)128 * 1024)
/* Files up to this size are compressed on the way when their type and the client allow it. */
#define COMPRESS_WHOLE ((uint64_t)256 * 1024)
#define HEADERS_OWN 8

/* A stretch of the answer: `text` (of a multipart answer), then `length` bytes of the file. */
struct stretch {
    struct str text;
    uint64_t from, length;
};

struct file_send {
    uv_work_t work;
    struct request *r; /* NULL: cancelled, the work that still runs is the last to happen */
    void (*finished)(void *data, const struct error *err);
    void *data;
    char *path;
    struct header *headers; /* in the request's arena */
    size_t count;
    int fd;
    int failed; /* errno of the work */
    struct stat st;
    struct stretch stretches[RANGES_MAX + 1];
    unsigned stretch, stretch_count;
    bool whole;   /* read at once, answered by request_respond */
    bool working; /* on the thread pool */
    struct str content_type;
    char etag[ETAG_MAX], modified[40];
    char *buffer;
    size_t got; /* bytes of the last read */
};

static void drop(struct file_send *f) {
    if (f->fd >= 0 && close(f->fd) != 0) log_line(LOG_WARN, "cannot close a file: errno %d", errno);
    free(f->buffer);
    free(f->path);
    free(f);
}

static void finish(struct file_send *f, const struct error *err) {
    void (*finished)(void *, const struct error *) = f->finished;
    void *data = f->data;
    drop(f);
    finished(data, err);
}

void file_cancel(struct file_send *f) {
    if (f->working) {
        f->r = NULL;
        return;
    }
    request_on_drain(f->r, NULL, NULL);
    drop(f);
}

/* On the thread pool. */

static bool open_regular(struct file_send *f) {
    /* O_NONBLOCK: a FIFO that someone put there must not hold the thread. */
    f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (f->fd < 0 || fstat(f->fd, &f->st) != 0) {
        f->failed = errno;
        return false;
    }
    return true;
}

static void work_open(uv_work_t *w) {
    struct file_send *f = w->data;
    if (!open_regular(f)) return;
    if (S_ISDIR(f->st.st_mode)) {
        size_t n = strlen(f->path);
        char *index = malloc(n + sizeof "/index.html");
        if (!index) {
            f->failed = ENOMEM;
            return;
        }
        memcpy(index, f->path, n);
        memcpy(index + n, "/index.html", sizeof "/index.html");
        free(f->path);
        f->path = index;
        if (close(f->fd) != 0) log_line(LOG_WARN, "cannot close a folder: errno %d", errno);
        f->fd = -1;
        if (!open_regular(f)) return;
    }
    if (!S_ISREG(f->st.st_mode)) f->failed = ENOENT;
}

static void work_read(uv_work_t *w) {
    struct file_send *f = w->data;
    struct stretch *s = &f->stretches[f->stretch];
    size_t want = s->length < PIECE || f->whole ? (size_t)s->length : PIECE;
    f->got = 0;
    while (f->got < want) {
        ssize_t n = pread(f->fd, f->buffer + f->got, want - f->got, (off_t)(s->from + f->got));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) { /* 0: the file became shorter */
            f->failed = n < 0 ? errno : EIO;
            return;
        }
        f->got += (size_t)n;
    }
}

/* On the loop. */

static void after_open(uv_work_t *w, int status);
static void after_read(uv_work_t *w, int status);

static bool start_work(struct file_send *f, uv_work_cb work, uv_after_work_cb after) {
    f->work.data = f;
    f->working = uv_queue_work(loop_get(), &f->work, work, after) == 0;
    return f->working;
}

/* The answer has begun and cannot be completed: it is left torn, which closes the connection. */
static void give_up(struct file_send *f, const char *why) {
    log_line(LOG_WARN, "cannot send a file: %s", why);
    finish(f, NULL);
}

static void go_on(void *data) {
    struct file_send *f = data;
    while (f->stretch < f->stretch_count) {
        struct stretch *s = &f->stretches[f->stretch];
        if (request_gone(f->r)) break;
        if (s->text.len) {
            enum stream_result sent = request_stream_write(f->r, s->text);
            s->text.len = 0;
            if (sent == STREAM_GONE) break;
        }
        if (s->length) {
            if (!start_work(f, work_read, after_read)) give_up(f, "no work could be queued");
            return;
        }
        f->stretch++;
    }
    request_stream_end(f->r);
    finish(f, NULL);
}

static void after_read(uv_work_t *w, int status) {
    struct file_send *f = w->data;
    f->working = false;
    if (!f->r) {
        drop(f);
        return;
    }
    if (status != 0 || f->failed) {
        if (!f->whole) {
            give_up(f, "it cannot be read");
            return;
        }
        struct error err;
        error_set(&err, ERR_INTERNAL, "cannot read the file");
        finish(f, &err);
        return;
    }
    if (f->whole) {
        bool answered = request_respond(f->r, 200, f->headers, f->count, str_n(f->buffer, f->got));
        (void)answered; /* the client may have gone */
        finish(f, NULL);
        return;
    }
    struct stretch *s = &f->stretches[f->stretch];
    s->from += f->got;
    s->length -= f->got;
    if (request_stream_write(f->r, str_n(f->buffer, f->got)) == STREAM_FULL)
        request_on_drain(f->r, go_on, f);
    else
        go_on(f);
}

static void http_date(time_t at, char out[40]) {
    struct tm tm;
    if (!gmtime_r(&at, &tm) || strftime(out, 40, "%a, %d %b %Y %H:%M:%S GMT", &tm) == 0) out[0] = '\0';
}

static bool not_modified(struct file_send *f) {
    struct str match = request_known(f->r, HEADER_IF_NONE_MATCH);
    if (match.at) return etag_matches(match, str_of(f->etag));
    /* A client sends back the date that we sent; equality is all that is needed. */
    struct str since = request_known(f->r, HEADER_IF_MODIFIED_SINCE);
    return since.at && str_eq(since, str_of(f->modified));
}

static void add_header(struct file_send *f, struct str name, struct str value) {
    f->headers[f->count++] = (struct header){name, value};
}

/* Lays out the stretches of a 206. False: out of memory. */
static bool lay_out(struct file_send *f, const struct range *ranges, unsigned n, uint64_t *total) {
    struct arena *a = request_arena(f->r);
    unsigned long long size = (unsigned long long)f->st.st_size;
    *total = 0;
    for (unsigned i = 0; i < n; i++) {
        struct stretch *s = &f->stretches[f->stretch_count++];
        unsigned long long from = ranges[i].from, to = ranges[i].from + ranges[i].length - 1;
        s->from = ranges[i].from;
        s->length = ranges[i].length;
        char *text =
            n == 1
                ? arena_printf(a, "bytes %llu-%llu/%llu", from, to, size)
                : arena_printf(a,
                               "\r\n--kasma-range\r\nContent-Type: %.*s\r\nContent-Range: bytes %llu-%llu/%llu\r\n\r\n",
                               STR_FMT(f->content_type), from, to, size);
        if (!text) return false;
        if (n == 1)
            add_header(f, STR("Content-Range"), str_of(text));
        else
            s->text = str_of(text);
        *total += s->length + s->text.len;
    }
    if (n > 1) {
        struct stretch *last = &f->stretches[f->stretch_count++];
        last->text = STR("\r\n--kasma-range--\r\n");
        *total += last->text.len;
    }
    return true;
}

static void answer_plain(struct file_send *f, int status) {
    bool answered = request_respond(f->r, status, f->headers, f->count, STR(""));
    (void)answered; /* the client may have gone */
    finish(f, NULL);
}

static void out_of_memory(struct file_send *f) {
    struct error err;
    error_set(&err, ERR_MEMORY, "out of memory");
    finish(f, &err);
}

static void after_open(uv_work_t *w, int status) {
    struct file_send *f = w->data;
    struct error err;
    f->working = false;
    if (!f->r) {
        drop(f);
        return;
    }
    if (status != 0 || f->failed) {
        bool ours = f->failed == ENOMEM || f->failed == EMFILE || f->failed == ENFILE || f->failed == EIO;
        error_set(&err, ours ? ERR_INTERNAL : ERR_INVALID, "No such file");
        const char *name = uv_err_name(f->failed ? -f->failed : status);
        int n = snprintf(err.code, sizeof err.code, "%s", name);
        if (n < 0) err.code[0] = '\0';
        finish(f, &err);
        return;
    }
    uint64_t size = (uint64_t)f->st.st_size;
    int64_t mtime = (int64_t)f->st.st_mtim.tv_sec * 1000000000 + f->st.st_mtim.tv_nsec;
    f->etag[etag_of_file(size, mtime, f->etag)] = '\0';
    http_date(f->st.st_mtim.tv_sec, f->modified);
    for (size_t i = 0; i < f->count; i++)
        if (str_ieq(f->headers[i].name, STR("content-type"))) f->content_type = f->headers[i].value;
    if (!f->content_type.at) {
        f->content_type = mime_of(str_of(f->path));
        add_header(f, STR("Content-Type"), f->content_type);
    }
    add_header(f, STR("ETag"), str_of(f->etag));
    add_header(f, STR("Last-Modified"), str_of(f->modified));
    add_header(f, STR("Accept-Ranges"), STR("bytes"));

    bool get = request_method(f->r) == HTTP_M_GET;
    if ((get || request_method(f->r) == HTTP_M_HEAD) && not_modified(f)) {
        answer_plain(f, 304);
        return;
    }
    struct str if_range = request_known(f->r, HEADER_IF_RANGE);
    bool fresh = !if_range.at || str_eq(if_range, str_of(f->etag)) || str_eq(if_range, str_of(f->modified));
    struct range ranges[RANGES_MAX];
    unsigned n = 0;
    enum range_result range =
        get && fresh ? range_parse(request_known(f->r, HEADER_RANGE), size, ranges, &n) : RANGE_NONE;
    if (range == RANGE_UNSATISFIABLE) {
        char *text = arena_printf(request_arena(f->r), "bytes */%llu", (unsigned long long)size);
        add_header(f, STR("Content-Range"), str_of(text ? text : "bytes */*"));
        answer_plain(f, 416);
        return;
    }
    bool compress = content_compressible(f->content_type) && size <= COMPRESS_WHOLE &&
                    coding_accepted(request_known(f->r, HEADER_ACCEPT_ENCODING)) != CODING_IDENTITY;
    f->whole = range == RANGE_NONE && get && (compress || size <= 4096);
    f->buffer = malloc(f->whole && size > PIECE ? (size_t)size : PIECE);
    if (!f->buffer) {
        out_of_memory(f);
        return;
    }
    uint64_t total = size;
    if (range == RANGE_NONE) {
        f->stretches[0] = (struct stretch){.from = 0, .length = size};
        f->stretch_count = 1;
    } else if (!lay_out(f, ranges, n, &total)) {
        out_of_memory(f);
        return;
    }
    if (f->whole) {
        if (start_work(f, work_read, after_read)) return;
        out_of_memory(f);
        return;
    }
    if (n > 1)
        for (size_t i = 0; i < f->count; i++)
            if (str_ieq(f->headers[i].name, STR("content-type")))
                f->headers[i].value = STR("multipart/byteranges; boundary=kasma-range");
    if (!request_stream(f->r, range == RANGE_SOME ? 206 : 200, f->headers, f->count, (int64_t)total)) {
        finish(f, NULL);
        return;
    }
    if (!get) f->stretch_count = 0;
    go_on(f);
}

struct file_send *file_send(struct request *r, struct str path, const struct header *headers, size_t count,
                            void (*finished)(void *data, const struct error *err), void *data, struct error *err) {
    struct file_send *f = calloc(1, sizeof *f);
    struct arena *a = request_arena(r);
    if (f) {
        f->r = r;
        f->finished = finished;
        f->data = data;
        f->fd = -1;
        f->path = strndup(path.at, path.len);
        f->headers = arena_zalloc(a, count + HEADERS_OWN, sizeof *f->headers);
    }
    bool ok = f && f->path && f->headers;
    for (size_t i = 0; ok && i < count; i++) {
        char *name = arena_strdup(a, headers[i].name), *value = arena_strdup(a, headers[i].value);
        ok = name && value;
        if (ok) add_header(f, str_n(name, headers[i].name.len), str_n(value, headers[i].value.len));
    }
    if (ok && start_work(f, work_open, after_open)) return f;
    if (f) drop(f);
    error_set(err, ERR_MEMORY, "out of memory");
    return NULL;
}

/* Static files. */

/* Plain: segments that are neither empty nor begin with a dot, no backslash, no control byte. */
static bool path_is_plain(struct str path) {
    bool at_start = true;
    for (size_t i = 0; i < path.len; i++) {
        char c = path.at[i];
        if ((unsigned char)c < 0x20 || c == 0x7f || c == '\\') return false;
        if (at_start && (c == '.' || c == '/')) return false;
        at_start = c == '/';
    }
    return true;
}

static void static_finished(void *data, const struct error *err) {
    struct request *r = data;
    if (err) {
        bool answered = request_refuse(r, err->kind == ERR_INVALID ? 404 : 500, (struct str){0}, false);
        (void)answered; /* the client may have gone */
    }
    request_done(r);
}

static void on_static(struct request *r, void *data) {
    const char *directory = data;
    struct str rest = request_param(r, 0);
    if (rest.len && rest.at[rest.len - 1] == '/') rest.len--;
    struct error err;
    char *path = path_is_plain(rest) ? arena_printf(request_arena(r), "%s/%.*s", directory, STR_FMT(rest)) : NULL;
    struct header cache = {STR("Cache-Control"), STR("no-cache")};
    if (path && file_send(r, str_of(path), &cache, 1, static_finished, r, &err)) return;
    static const struct error missing = {.kind = ERR_INVALID};
    static_finished(r, &missing);
}

bool file_routes(struct routes *t, struct str prefix, const char *directory, struct error *err) {
    while (prefix.len && prefix.at[prefix.len - 1] == '/') prefix.len--;
    char pattern[512];
    int n = snprintf(pattern, sizeof pattern, "%.*s/*path", STR_FMT(prefix));
    if (n < 0 || (size_t)n >= sizeof pattern) return error_set(err, ERR_INVALID, "prefix too long");
    char *copy = strdup(directory);
    if (!copy || !routes_own(t, copy)) return error_set(err, ERR_MEMORY, "out of memory");
    return routes_add(t, HTTP_M_GET, str_n(pattern, (size_t)n), on_static, copy, NULL, err);
}
