#include "http/compress.h"

#include <brotli/decode.h>
#include <brotli/encode.h>
#include <stdlib.h>
#define ZLIB_CONST /* its input is const */
#include <zlib.h>

#include "http/header.h"

#define PIECE ((size_t)16 * 1024)

enum coding coding_of(struct str content_encoding) {
    struct str c = str_trim(content_encoding);
    if (c.len == 0 || str_ieq(c, STR("identity"))) return CODING_IDENTITY;
    if (str_ieq(c, STR("gzip")) || str_ieq(c, STR("x-gzip"))) return CODING_GZIP;
    if (str_ieq(c, STR("deflate"))) return CODING_DEFLATE;
    if (str_ieq(c, STR("br"))) return CODING_BR;
    return CODING_UNKNOWN;
}

struct str coding_name(enum coding c) {
    switch (c) {
    case CODING_GZIP:
        return STR("gzip");
    case CODING_DEFLATE:
        return STR("deflate");
    case CODING_BR:
        return STR("br");
    default:
        return STR("identity");
    }
}

enum coding coding_accepted(struct str accept_encoding) {
    if (accept_encoding.len == 0) return CODING_IDENTITY;
    if (header_list_has(accept_encoding, STR("br"), false)) return CODING_BR;
    if (header_list_has(accept_encoding, STR("gzip"), true)) return CODING_GZIP;
    return CODING_IDENTITY;
}

struct decoder {
    enum coding coding;
    z_stream z;
    bool z_ready, complete;
    BrotliDecoderState *br;
};

struct decoder *decoder_new(enum coding c) {
    struct decoder *d = calloc(1, sizeof *d);
    if (!d) return NULL;
    d->coding = c;
    if (c == CODING_BR) {
        d->br = BrotliDecoderCreateInstance(NULL, NULL, NULL);
        if (d->br) return d;
        free(d);
        return NULL;
    }
    return d; /* zlib starts with the first byte: "deflate" means two formats, which it tells apart */
}

void decoder_free(struct decoder *d) {
    if (!d) return;
    if (d->br) BrotliDecoderDestroyInstance(d->br);
    if (d->z_ready) {
        int ended = inflateEnd(&d->z);
        (void)ended; /* only says whether the stream was complete */
    }
    free(d);
}

static enum decode_result pull_br(struct decoder *d, struct str *in, char *out, size_t room, size_t *got) {
    if (d->complete) return in->len ? DECODE_BAD : DECODE_OK;
    const uint8_t *from = (const uint8_t *)in->at;
    size_t left = in->len, free_room = room;
    uint8_t *to = (uint8_t *)out;
    BrotliDecoderResult r = BrotliDecoderDecompressStream(d->br, &left, &from, &free_room, &to, NULL);
    *in = str_n(in->at + (in->len - left), left);
    *got = room - free_room;
    if (r == BROTLI_DECODER_RESULT_ERROR) return DECODE_BAD;
    d->complete = r == BROTLI_DECODER_RESULT_SUCCESS;
    return d->complete && left ? DECODE_BAD : DECODE_OK;
}

/* A body is one gzip file or several strung together; anything else behind the end is damage. */
static enum decode_result begin_zlib(struct decoder *d, struct str in) {
    if (d->z_ready) {
        if (d->coding != CODING_GZIP || inflateReset(&d->z) != Z_OK) return DECODE_BAD;
        d->complete = false;
        return DECODE_OK;
    }
    /* Some senders of "deflate" leave the zlib wrapping away; its first byte has 8 in the low half. */
    bool wrapped = ((unsigned char)in.at[0] & 0x0f) == 8;
    int bits = d->coding == CODING_GZIP ? 15 + 16 : wrapped ? 15 : -15;
    if (inflateInit2(&d->z, bits) != Z_OK) return DECODE_MEMORY;
    d->z_ready = true;
    return DECODE_OK;
}

static enum decode_result pull_zlib(struct decoder *d, struct str *in, char *out, size_t room, size_t *got) {
    for (;;) {
        if (!d->z_ready || d->complete) {
            if (in->len == 0) return DECODE_OK;
            enum decode_result begun = begin_zlib(d, *in);
            if (begun != DECODE_OK) return begun;
        }
        uInt give = in->len > UINT32_MAX ? UINT32_MAX : (uInt)in->len;
        d->z.next_in = (const Bytef *)in->at;
        d->z.avail_in = give;
        d->z.next_out = (Bytef *)out;
        d->z.avail_out = (uInt)room;
        int r = inflate(&d->z, Z_NO_FLUSH);
        size_t used = give - d->z.avail_in;
        *in = str_n(in->at + used, in->len - used);
        *got = room - d->z.avail_out;
        if (r == Z_MEM_ERROR) return DECODE_MEMORY;
        if (r == Z_STREAM_END)
            d->complete = true;
        else if (r != Z_OK && !(r == Z_BUF_ERROR && in->len == 0))
            return DECODE_BAD;
        if (*got || in->len == 0) return DECODE_OK;
    }
}

enum decode_result decoder_pull(struct decoder *d, struct str *in, char *out, size_t room, size_t *got) {
    *got = 0;
    if (room > UINT32_MAX) room = UINT32_MAX;
    return d->coding == CODING_BR ? pull_br(d, in, out, room, got) : pull_zlib(d, in, out, room, got);
}

enum decode_result decoder_feed(struct decoder *d, struct str bytes, decode_sink *sink, void *data) {
    char out[PIECE];
    for (size_t got;;) {
        enum decode_result result = decoder_pull(d, &bytes, out, sizeof out, &got);
        if (got && !sink(data, str_n(out, got))) return DECODE_STOPPED;
        if (result != DECODE_OK) return result;
        if (got == 0 && bytes.len == 0) return DECODE_OK;
    }
}

bool decoder_complete(const struct decoder *d) {
    return d->complete;
}

/* Made once: deflateInit takes a quarter of a megabyte, deflateReset nothing. */
static z_stream *shared_deflate(void) {
    static z_stream z;
    static bool ready;
    if (ready) return deflateReset(&z) == Z_OK ? &z : NULL;
    if (deflateInit2(&z, 4, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK) return NULL;
    ready = true;
    return &z;
}

bool compress_body(enum coding c, struct str body, struct buf *out) {
    /* Room for one byte less than the body: what does not shrink is not worth sending compressed. */
    if (body.len < 2 || body.len > UINT32_MAX || !buf_reserve(out, body.len - 1)) return false;
    if (c == CODING_BR) {
        size_t n = body.len - 1;
        if (!BrotliEncoderCompress(4, BROTLI_DEFAULT_WINDOW, BROTLI_MODE_TEXT, body.len, (const uint8_t *)body.at, &n,
                                   (uint8_t *)out->data + out->len))
            return false;
        out->len += n;
        return true;
    }
    z_stream *z = shared_deflate();
    if (!z) return false;
    z->next_in = (const Bytef *)body.at;
    z->avail_in = (uInt)body.len;
    z->next_out = (Bytef *)(out->data + out->len);
    z->avail_out = (uInt)(body.len - 1);
    if (deflate(z, Z_FINISH) != Z_STREAM_END) return false;
    out->len += body.len - 1 - z->avail_out;
    return true;
}
