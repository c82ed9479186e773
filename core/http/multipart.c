#include "http/multipart.h"

#include <stdlib.h>

#include "http/header.h"
#include "http/spool.h"
#include "runtime/buf.h"

/* Every delimiter is "\r\n--boundary". The body is fed as if it began with "\r\n", so that the first one is no
 * exception; what stands before it (the preamble) and after the last (the epilogue) is dropped. */
enum state {
    PREAMBLE,
    AFTER_DELIMITER, /* "--" ends the body; blanks and "\r\n" begin a part's header */
    PART_HEADER,
    PART_DATA,
    EPILOGUE,
    FAILED,
};

struct multipart_parser {
    struct arena *arena;
    const char *spool_dir;
    enum state state;
    char delimiter[4 + 70];
    size_t delimiter_len;
    struct buf pending; /* bytes that were fed and not yet understood */
    struct multipart result;
    size_t parts_cap;
    struct buf data;    /* of the current part, in memory */
    struct spool *file; /* of the current part, else NULL */
    size_t in_memory;   /* bytes of all parts */
};

static void drop(void *data) {
    struct multipart_parser *p = data;
    buf_free(&p->pending);
    buf_free(&p->data);
}

struct multipart_parser *multipart_new(struct arena *a, struct str boundary, const char *spool_dir, struct error *err) {
    if (boundary.len == 0 || boundary.len > 70) {
        error_set(err, ERR_INVALID, "Multipart: Boundary not found");
        return NULL;
    }
    struct multipart_parser *p = arena_zalloc(a, 1, sizeof *p);
    if (!p || !arena_defer(a, drop, p) || !buf_add(&p->pending, STR("\r\n"))) {
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    p->arena = a;
    p->spool_dir = spool_dir;
    memcpy(p->delimiter, "\r\n--", 4);
    memcpy(p->delimiter + 4, boundary.at, boundary.len);
    p->delimiter_len = boundary.len + 4;
    return p;
}

static bool fail(struct multipart_parser *p, struct error *err, enum error_kind kind, const char *text) {
    p->state = FAILED;
    return error_set(err, kind, "%s", text);
}

static struct part *current(struct multipart_parser *p) {
    return &p->result.parts[p->result.count - 1];
}

static struct part *add_part(struct multipart_parser *p) {
    if (p->result.count == p->parts_cap) {
        size_t cap = p->parts_cap ? p->parts_cap * 2 : 8;
        struct part *parts = arena_zalloc(p->arena, cap, sizeof *parts);
        if (!parts) return NULL;
        if (p->result.count) memcpy(parts, p->result.parts, p->result.count * sizeof *parts);
        p->result.parts = parts;
        p->parts_cap = cap;
    }
    struct part *part = &p->result.parts[p->result.count++];
    *part = (struct part){0};
    return part;
}

/* A copy in the arena; `at` stays NULL for an absent value. */
static bool keep(struct multipart_parser *p, struct str s, struct str *out) {
    *out = (struct str){0};
    if (!s.at) return true;
    char *copy = arena_strdup(p->arena, s);
    if (!copy) return false;
    *out = str_n(copy, s.len);
    return true;
}

/* Browsers send the name alone; old ones sent a path. A handler must never see a path of the client's. */
static struct str base_name(struct str path) {
    for (size_t i = path.len; i > 0; i--)
        if (path.at[i - 1] == '/' || path.at[i - 1] == '\\') return str_n(path.at + i, path.len - i);
    return path;
}

static bool begin_part(struct multipart_parser *p, struct str header, struct error *err) {
    if (p->result.count == MULTIPART_PARTS_MAX) return fail(p, err, ERR_LIMIT, "Too many parts");
    struct str disposition = {0}, type = {0};
    while (header.len) {
        const char *end = memmem(header.at, header.len, "\r\n", 2);
        struct str line = str_n(header.at, end ? (size_t)(end - header.at) : header.len);
        size_t used = line.len + (end ? 2 : 0);
        header = str_n(header.at + used, header.len - used);
        const char *colon = line.len ? memchr(line.at, ':', line.len) : NULL;
        if (!colon) return fail(p, err, ERR_INVALID, "Malformed part header");
        struct str name = str_n(line.at, (size_t)(colon - line.at));
        struct str value = str_trim(str_n(colon + 1, line.len - name.len - 1));
        if (!header_name_safe(name) || !header_value_safe(value))
            return fail(p, err, ERR_INVALID, "Malformed part header");
        if (str_ieq(name, STR("content-disposition"))) disposition = value;
        if (str_ieq(name, STR("content-type"))) type = value;
    }
    struct str name = header_param(disposition, STR("name")), filename = header_param(disposition, STR("filename"));
    if (!name.at) return fail(p, err, ERR_INVALID, "Part without a name");
    struct part *part = add_part(p);
    if (!part || !keep(p, name, &part->name) ||
        !keep(p, filename.at ? base_name(filename) : filename, &part->filename) || !keep(p, type, &part->type))
        return fail(p, err, ERR_MEMORY, "out of memory");
    if (part->filename.at && p->spool_dir) {
        p->file = spool_open(p->arena, p->spool_dir, err);
        if (!p->file) {
            p->state = FAILED;
            return false;
        }
        part->path = p->file->path;
    }
    p->state = PART_DATA;
    return true;
}

static bool add_data(struct multipart_parser *p, struct str bytes, struct error *err) {
    if (bytes.len == 0) return true;
    current(p)->size += bytes.len;
    if (p->file) {
        if (spool_write(p->file, bytes, err)) return true;
        p->state = FAILED;
        return false;
    }
    p->in_memory += bytes.len;
    if (p->spool_dir && p->in_memory > MULTIPART_MEMORY_MAX) return fail(p, err, ERR_LIMIT, "Field value too long");
    if (!buf_add(&p->data, bytes)) return fail(p, err, ERR_MEMORY, "out of memory");
    return true;
}

static bool end_part(struct multipart_parser *p, struct error *err) {
    if (p->file) {
        spool_finish(p->file);
        p->file = NULL;
        return true;
    }
    if (!keep(p, p->data.len ? buf_str(&p->data) : STR(""), &current(p)->data))
        return fail(p, err, ERR_MEMORY, "out of memory");
    buf_clear(&p->data);
    return true;
}

enum progress { MORE, AGAIN, BROKEN };

/* Looks for the delimiter; what surely stands before it is data. */
static enum progress to_delimiter(struct multipart_parser *p, struct str *in, struct error *err) {
    const char *at = in->len ? memmem(in->at, in->len, p->delimiter, p->delimiter_len) : NULL;
    size_t sure = at ? (size_t)(at - in->at) : in->len >= p->delimiter_len ? in->len - p->delimiter_len + 1 : 0;
    if (p->state == PART_DATA && !add_data(p, str_n(in->at, sure), err)) return BROKEN;
    size_t used = at ? sure + p->delimiter_len : sure;
    *in = str_n(in->at + used, in->len - used);
    if (!at) return MORE;
    if (p->state == PART_DATA && !end_part(p, err)) return BROKEN;
    p->state = AFTER_DELIMITER;
    return AGAIN;
}

static enum progress after_delimiter(struct multipart_parser *p, struct str *in, struct error *err) {
    size_t i = 0;
    if (in->len >= 2 && in->at[0] == '-' && in->at[1] == '-') {
        p->state = EPILOGUE;
        return AGAIN;
    }
    while (i < in->len && (in->at[i] == ' ' || in->at[i] == '\t')) i++;
    if (i > 64) return fail(p, err, ERR_INVALID, "Malformed boundary line"), BROKEN;
    if (in->len - i < 2) return MORE;
    if (in->at[i] != '\r' || in->at[i + 1] != '\n') return fail(p, err, ERR_INVALID, "Malformed boundary line"), BROKEN;
    *in = str_n(in->at + i + 2, in->len - i - 2);
    p->state = PART_HEADER;
    return AGAIN;
}

static enum progress part_header(struct multipart_parser *p, struct str *in, struct error *err) {
    const char *end = in->len ? memmem(in->at, in->len, "\r\n\r\n", 4) : NULL;
    size_t n = end ? (size_t)(end - in->at) : in->len;
    if (n > MULTIPART_HEADER_MAX) return fail(p, err, ERR_LIMIT, "Part header too long"), BROKEN;
    if (!end) return MORE;
    if (!begin_part(p, str_n(in->at, n), err)) return BROKEN;
    *in = str_n(in->at + n + 4, in->len - n - 4);
    return AGAIN;
}

bool multipart_feed(struct multipart_parser *p, struct str bytes, struct error *err) {
    if (p->state == FAILED) return error_set(err, ERR_INVALID, "Malformed multipart body");
    if (p->state == EPILOGUE) return true;
    if (!buf_add(&p->pending, bytes)) return fail(p, err, ERR_MEMORY, "out of memory");
    struct str in = buf_str(&p->pending);
    enum progress next = AGAIN;
    while (next == AGAIN) {
        switch (p->state) {
        case PREAMBLE:
        case PART_DATA:
            next = to_delimiter(p, &in, err);
            break;
        case AFTER_DELIMITER:
            next = after_delimiter(p, &in, err);
            break;
        case PART_HEADER:
            next = part_header(p, &in, err);
            break;
        default:
            in.len = 0;
            next = MORE;
        }
    }
    if (next == BROKEN) return false;
    if (in.len) memmove(p->pending.data, in.at, in.len);
    p->pending.len = in.len;
    return true;
}

const struct multipart *multipart_finish(struct multipart_parser *p, struct error *err) {
    if (p->state == EPILOGUE) return &p->result;
    error_set(err, ERR_INVALID, "Unexpected end of form");
    return NULL;
}
