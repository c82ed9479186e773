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

static enum decode_result feed_br(struct decoder *d, struct str bytes, decode_sink *sink, void *data) {
    uint8_t out[PIECE];
    size_t left = bytes.len;
    const uint8_t *in = (const uint8_t *)bytes.at;
    for (;;) {
        uint8_t *to = out;
        size_t room = sizeof out;
        BrotliDecoderResult r = BrotliDecoderDecompressStream(d->br, &left, &in, &room, &to, NULL);
        size_t got = sizeof out - room;
        if (got && !sink(data, str_n((char *)out, got))) return DECODE_STOPPED;
        if (r == BROTLI_DECODER_RESULT_ERROR) return DECODE_BAD;
        if (r == BROTLI_DECODER_RESULT_SUCCESS) {
            d->complete = true;
            return left ? DECODE_BAD : DECODE_OK;
        }
        if (r == BROTLI_DECODER_RESULT_NEEDS_MORE_INPUT) return DECODE_OK;
    }
}

static enum decode_result feed_zlib(struct decoder *d, struct str bytes, decode_sink *sink, void *data) {
    if (!d->z_ready) {
        /* Some senders of "deflate" leave the zlib wrapping away; its first byte has 8 in the low half. */
        bool wrapped = ((unsigned char)bytes.at[0] & 0x0f) == 8;
        int bits = d->coding == CODING_GZIP ? 15 + 16 : wrapped ? 15 : -15;
        if (inflateInit2(&d->z, bits) != Z_OK) return DECODE_MEMORY;
        d->z_ready = true;
    }
    unsigned char out[PIECE];
    d->z.next_in = (const Bytef *)bytes.at;
    d->z.avail_in = (uInt)bytes.len;
    for (;;) {
        d->z.next_out = out;
        d->z.avail_out = sizeof out;
        int r = inflate(&d->z, Z_NO_FLUSH);
        size_t got = sizeof out - d->z.avail_out;
        if (got && !sink(data, str_n((char *)out, got))) return DECODE_STOPPED;
        if (r == Z_STREAM_END) {
            d->complete = true;
            if (d->z.avail_in == 0) return DECODE_OK;
            /* gzip files may be strung together; anything else behind the end is damage. */
            if (d->coding != CODING_GZIP || inflateReset(&d->z) != Z_OK) return DECODE_BAD;
            d->complete = false;
            continue;
        }
        if (r == Z_MEM_ERROR) return DECODE_MEMORY;
        if (r != Z_OK && r != Z_BUF_ERROR) return DECODE_BAD;
        if (d->z.avail_in == 0 && d->z.avail_out != 0) return DECODE_OK;
        if (r == Z_BUF_ERROR) return d->z.avail_in ? DECODE_BAD : DECODE_OK;
    }
}

enum decode_result decoder_feed(struct decoder *d, struct str bytes, decode_sink *sink, void *data) {
    if (bytes.len == 0) return DECODE_OK;
    if (bytes.len > UINT32_MAX) return DECODE_BAD;
    if (d->complete && d->coding != CODING_GZIP) return DECODE_BAD;
    if (d->complete) {
        if (inflateReset(&d->z) != Z_OK) return DECODE_BAD;
        d->complete = false;
    }
    return d->coding == CODING_BR ? feed_br(d, bytes, sink, data) : feed_zlib(d, bytes, sink, data);
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
