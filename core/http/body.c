#include "http/body.h"

#include <stdio.h>

static bool refuse(struct body *b, int status, const char *why) {
    b->refusal = status;
    int n = snprintf(b->why, sizeof b->why, "%s", why);
    if (n < 0) b->why[0] = '\0';
    return false;
}

static bool refuse_error(struct body *b, const struct error *err) {
    switch (err->kind) {
    case ERR_INVALID:
        return refuse(b, 400, err->message);
    case ERR_LIMIT:
        return refuse(b, 413, err->message);
    case ERR_MEMORY:
        return refuse(b, 503, err->message);
    default:
        return refuse(b, 500, err->message);
    }
}

bool body_begin(struct body *b, struct arena *a, size_t limit, enum coding coding, const char *spool_dir,
                struct str boundary) {
    b->arena = a;
    b->limit = limit;
    b->spool_dir = spool_dir;
    if (coding != CODING_IDENTITY) {
        b->decoder = decoder_new(coding);
        if (!b->decoder) return refuse(b, 503, "out of memory");
    }
    if (spool_dir && boundary.at) {
        struct error err;
        b->parser = multipart_new(a, boundary, spool_dir, &err);
        if (!b->parser) return refuse_error(b, &err);
    }
    return true;
}

/* Takes decoded bytes. */
static bool take(void *data, struct str bytes) {
    struct body *b = data;
    struct error err;
    b->size += bytes.len;
    if (b->size > b->limit) return refuse(b, 413, "");
    if (b->parser) return multipart_feed(b->parser, bytes, &err) || refuse_error(b, &err);
    if (!b->file && b->spool_dir && b->size > BODY_MEMORY_MAX) {
        b->file = spool_open(b->arena, b->spool_dir, &err);
        if (!b->file || !spool_write(b->file, buf_str(&b->copy), &err)) return refuse_error(b, &err);
        buf_clear(&b->copy);
    }
    if (b->file) return spool_write(b->file, bytes, &err) || refuse_error(b, &err);
    return buf_add(&b->copy, bytes) || refuse(b, 503, "out of memory");
}

bool body_begin_stream(struct body *b, size_t limit, enum coding coding) {
    b->stream = true;
    return body_begin(b, NULL, limit, coding, NULL, (struct str){0});
}

/* A coded body that is longer than what it may decode to is refused before it is decoded to nothing for ever. */
static bool too_long(const struct body *b) {
    return b->received > (uint64_t)b->limit + (b->decoder ? 1024 : 0);
}

static bool feed_stream(struct body *b, struct str bytes) {
    if (too_long(b)) return refuse(b, 413, "");
    if (b->taken) {
        size_t left = body_waiting(b);
        memmove(b->copy.data, b->copy.data + b->taken, left);
        b->copy.len = left;
        b->taken = 0;
    }
    return buf_add(&b->copy, bytes) || refuse(b, 503, "out of memory");
}

bool body_feed(struct body *b, struct str bytes, bool stays) {
    b->received += bytes.len;
    if (b->stream) return feed_stream(b, bytes);
    if (!b->decoder) {
        if (stays && !b->parser && b->size == 0 && (!b->spool_dir || bytes.len <= BODY_MEMORY_MAX)) {
            b->size = bytes.len;
            if (b->size > b->limit) return refuse(b, 413, "");
            b->view = bytes;
            return true;
        }
        return take(b, bytes);
    }
    if (too_long(b)) return refuse(b, 413, "");
    switch (decoder_feed(b->decoder, bytes, take, b)) {
    case DECODE_OK:
        return true;
    case DECODE_STOPPED:
        return false;
    case DECODE_MEMORY:
        return refuse(b, 503, "out of memory");
    default:
        return refuse(b, 400, "incorrect header check");
    }
}

bool body_end(struct body *b) {
    struct error err;
    b->complete = true;
    if (b->stream) return true; /* who takes the last of it finds out whether it was whole */
    if (b->decoder && b->received && !decoder_complete(b->decoder)) return refuse(b, 400, "unexpected end of file");
    if (b->file) spool_finish(b->file);
    if (b->parser) {
        b->parts = multipart_finish(b->parser, &err);
        if (!b->parts) return refuse_error(b, &err);
    }
    return true;
}

static enum body_take taken_some(struct body *b, struct buf *out, size_t n) {
    b->size += n;
    if (b->size > b->limit) {
        (void)refuse(b, 413, "");
        return BODY_REFUSED;
    }
    out->len += n;
    return BODY_SOME;
}

enum body_take body_take(struct body *b, struct buf *out, size_t max) {
    if (b->refusal) return BODY_REFUSED;
    struct str waiting = b->copy.data ? str_n(b->copy.data + b->taken, body_waiting(b)) : STR("");
    size_t got = waiting.len < max ? waiting.len : max;
    if (!b->decoder) {
        if (got == 0) return b->complete ? BODY_END : BODY_WAIT;
        if (!buf_add(out, str_n(waiting.at, got))) {
            (void)refuse(b, 503, "out of memory");
            return BODY_REFUSED;
        }
        out->len -= got; /* taken_some counts it */
        b->taken += got;
        return taken_some(b, out, got);
    }
    if (!buf_reserve(out, max)) {
        (void)refuse(b, 503, "out of memory");
        return BODY_REFUSED;
    }
    size_t before = waiting.len;
    enum decode_result result = decoder_pull(b->decoder, &waiting, out->data + out->len, max, &got);
    b->taken += before - waiting.len;
    if (got) return taken_some(b, out, got); /* damage behind it is found again by the next call */
    if (result == DECODE_OK && !b->complete) return BODY_WAIT;
    if (result == DECODE_OK && (!b->received || decoder_complete(b->decoder))) return BODY_END;
    if (result == DECODE_MEMORY)
        (void)refuse(b, 503, "out of memory");
    else
        (void)refuse(b, 400, result == DECODE_OK ? "unexpected end of file" : "incorrect header check");
    return BODY_REFUSED;
}

void body_fail(struct body *b, int status, struct str why) {
    b->refusal = status;
    int n = snprintf(b->why, sizeof b->why, "%.*s", STR_FMT(why));
    if (n < 0) b->why[0] = '\0';
}

void body_reset(struct body *b) {
    decoder_free(b->decoder);
    struct buf copy = b->copy;
    if (copy.cap > BODY_MEMORY_MAX) buf_free(&copy);
    buf_clear(&copy);
    /* The rest is cleared member by member: `why` alone is larger than all of it. */
    b->arena = NULL;
    b->view = (struct str){0};
    b->copy = copy;
    b->decoder = NULL;
    b->spool_dir = NULL;
    b->file = NULL;
    b->parser = NULL;
    b->parts = NULL;
    b->stream = b->complete = false;
    b->taken = 0;
    b->received = b->size = 0;
    b->refusal = 0;
}
