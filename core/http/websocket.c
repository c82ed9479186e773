#include "http/websocket.h"

#include <openssl/evp.h>

static bool is_base64(char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '+' || c == '/';
}

bool ws_accept(struct str key, char out[WS_ACCEPT_LEN]) {
    static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    if (key.len != 24 || key.at[22] != '=' || key.at[23] != '=') return false;
    for (size_t i = 0; i < 22; i++)
        if (!is_base64(key.at[i])) return false;
    char text[24 + sizeof guid - 1];
    memcpy(text, key.at, 24);
    memcpy(text + 24, guid, sizeof guid - 1);
    unsigned char digest[EVP_MAX_MD_SIZE], base64[WS_ACCEPT_LEN + 1];
    unsigned n = 0;
    if (EVP_Digest(text, sizeof text, digest, &n, EVP_sha1(), NULL) != 1 || n != 20) return false;
    if (EVP_EncodeBlock(base64, digest, 20) != WS_ACCEPT_LEN) return false;
    memcpy(out, base64, WS_ACCEPT_LEN);
    return true;
}

bool ws_code_valid(unsigned code) {
    if (code >= 3000 && code <= 4999) return true;
    return code >= 1000 && code <= 1014 && code != 1004 && code != WS_NO_CODE && code != WS_ABNORMAL;
}

size_t ws_head(enum ws_opcode opcode, uint64_t length, char out[WS_HEAD_MAX]) {
    out[0] = (char)(0x80 | opcode);
    if (length <= 125) {
        out[1] = (char)length;
        return 2;
    }
    unsigned bytes = length <= 0xffff ? 2 : 8;
    out[1] = (char)(bytes == 2 ? 126 : 127);
    for (unsigned i = 0; i < bytes; i++) out[2 + i] = (char)(length >> (8 * (bytes - 1 - i)));
    return 2 + bytes;
}

void ws_parser_init(struct ws_parser *p, const struct ws_limits *limits) {
    *p = (struct ws_parser){.limits = *limits};
}

void ws_parser_free(struct ws_parser *p) {
    buf_free(&p->message);
}

static enum ws_event bad(struct ws_parser *p, unsigned code, const char *why) {
    p->over = true;
    p->code = code;
    p->why = why;
    p->payload = (struct str){0};
    return WS_BAD;
}

static bool is_control(enum ws_opcode opcode) {
    return opcode >= WS_CLOSE;
}

/* How long the head is, as far as its first two bytes say; 2 before those are there. */
static size_t head_size(const struct ws_parser *p) {
    if (p->head_len < 2) return 2;
    unsigned length = p->head[1] & 0x7f;
    return 2 + (length == 126 ? 2u : length == 127 ? 8u : 0u) + 4;
}

/* What the first two bytes show to be wrong is refused before more is read. */
static enum ws_event check_start(struct ws_parser *p) {
    unsigned opcode = p->head[0] & 0x0f, length = p->head[1] & 0x7f;
    bool fin = (p->head[0] & 0x80) != 0;
    if (p->head[0] & 0x70) return bad(p, WS_PROTOCOL_ERROR, "reserved bit");
    if ((opcode > WS_BINARY && opcode < WS_CLOSE) || opcode > WS_PONG)
        return bad(p, WS_PROTOCOL_ERROR, "reserved opcode");
    if (!(p->head[1] & 0x80)) return bad(p, WS_PROTOCOL_ERROR, "frame without a mask");
    p->frame = (enum ws_opcode)opcode;
    p->fin = fin;
    if (is_control(p->frame)) {
        if (!fin) return bad(p, WS_PROTOCOL_ERROR, "fragmented control frame");
        if (length > WS_CONTROL_MAX) return bad(p, WS_PROTOCOL_ERROR, "long control frame");
        return WS_MORE;
    }
    if (p->frame == WS_CONTINUATION && !p->in_message) return bad(p, WS_PROTOCOL_ERROR, "nothing to continue");
    if (p->frame != WS_CONTINUATION && p->in_message) return bad(p, WS_PROTOCOL_ERROR, "message within a message");
    if (p->frame == WS_BINARY && p->limits.text_only) return bad(p, WS_UNSUPPORTED, "binary message");
    return WS_MORE;
}

static enum ws_event head_done(struct ws_parser *p) {
    unsigned length = p->head[1] & 0x7f;
    const uint8_t *at = p->head + 2;
    uint64_t n = length;
    if (length >= 126) {
        unsigned bytes = length == 126 ? 2 : 8;
        n = 0;
        for (unsigned i = 0; i < bytes; i++) n = n << 8 | *at++;
        if (n >> 63) return bad(p, WS_PROTOCOL_ERROR, "length above 2^63");
        if (n <= (bytes == 2 ? 125u : 0xffffu)) return bad(p, WS_PROTOCOL_ERROR, "length in a longer form than needed");
    }
    memcpy(p->mask, at, 4);
    p->mask_at = 0;
    p->left = n;
    if (is_control(p->frame)) {
        p->control_len = 0;
        return WS_MORE;
    }
    if (p->frame != WS_CONTINUATION) {
        p->opcode = p->frame;
        p->in_message = true;
        p->fragments = 0;
        p->text = (struct utf8){0};
        buf_clear(&p->message);
    }
    if (++p->fragments > p->limits.fragments) return bad(p, WS_POLICY, "too many fragments");
    if (n > p->limits.message || p->message.len > p->limits.message - n) return bad(p, WS_TOO_BIG, "message too big");
    return WS_MORE;
}

static void unmask(struct ws_parser *p, char *at, size_t n) {
    size_t i = 0;
    for (; i < n && p->mask_at; i++) {
        at[i] = (char)(at[i] ^ p->mask[p->mask_at]);
        p->mask_at = (p->mask_at + 1) & 3;
    }
    uint32_t four;
    memcpy(&four, p->mask, 4);
    uint64_t eight = (uint64_t)four << 32 | four, word;
    for (; n - i >= 8; i += 8) {
        memcpy(&word, at + i, 8);
        word ^= eight;
        memcpy(at + i, &word, 8);
    }
    for (; i < n; i++) {
        at[i] = (char)(at[i] ^ p->mask[p->mask_at]);
        p->mask_at = (p->mask_at + 1) & 3;
    }
}

static enum ws_event closed(struct ws_parser *p) {
    struct str body = str_n(p->control, p->control_len);
    p->code = WS_NO_CODE;
    p->payload = STR("");
    if (body.len) {
        if (body.len == 1) return bad(p, WS_PROTOCOL_ERROR, "half a close code");
        unsigned code = (unsigned)(uint8_t)body.at[0] << 8 | (uint8_t)body.at[1];
        if (!ws_code_valid(code)) return bad(p, WS_PROTOCOL_ERROR, "close code that may not be sent");
        struct utf8 text = {0};
        struct str reason = str_n(body.at + 2, body.len - 2);
        if (!utf8_feed(&text, reason) || !utf8_whole(&text)) return bad(p, WS_BAD_DATA, "close reason is not UTF-8");
        p->code = code;
        p->payload = reason;
    }
    p->over = true;
    return WS_CLOSED;
}

static enum ws_event control_done(struct ws_parser *p) {
    p->head_len = 0;
    if (p->frame == WS_CLOSE) return closed(p);
    p->payload = str_n(p->control, p->control_len);
    return p->frame == WS_PING ? WS_PINGED : WS_PONGED;
}

/* `piece` is what has just come of the frame's payload. */
static enum ws_event take(struct ws_parser *p, struct str piece) {
    if (p->opcode == WS_TEXT && !utf8_feed(&p->text, piece)) return bad(p, WS_BAD_DATA, "text is not UTF-8");
    bool frame_done = p->left == 0, whole = frame_done && p->fin;
    if (frame_done) p->head_len = 0;
    if (whole && p->message.len == 0) {
        p->payload = piece;
    } else {
        if (!buf_add(&p->message, piece)) return bad(p, WS_INTERNAL, "out of memory");
        if (!whole) return WS_MORE;
        p->payload = buf_str(&p->message);
    }
    p->in_message = false;
    if (p->opcode == WS_TEXT && !utf8_whole(&p->text)) return bad(p, WS_BAD_DATA, "text ends within a character");
    return WS_MESSAGE;
}

enum ws_event ws_feed(struct ws_parser *p, char *bytes, size_t n, size_t *used) {
    size_t at = 0;
    enum ws_event event = WS_MORE;
    /* The last message was handed out from it; an idle connection holds nothing. */
    if (!p->in_message) buf_free(&p->message);
    while (event == WS_MORE && !p->over) {
        size_t want = head_size(p);
        if (p->head_len < want) {
            if (at == n) break;
            p->head[p->head_len++] = (uint8_t)bytes[at++];
            if (p->head_len == 2) event = check_start(p);
            if (event == WS_MORE && p->head_len > 2 && p->head_len == head_size(p)) event = head_done(p);
            if (event != WS_MORE || p->head_len <= 2 || p->head_len < head_size(p) || p->left > 0) continue;
            /* A frame without payload is complete with its head. */
            event = is_control(p->frame) ? control_done(p) : take(p, STR(""));
            continue;
        }
        if (at == n) break;
        size_t piece = n - at < p->left ? n - at : (size_t)p->left;
        unmask(p, bytes + at, piece);
        p->left -= piece;
        if (is_control(p->frame)) {
            memcpy(p->control + p->control_len, bytes + at, piece);
            p->control_len = (uint8_t)(p->control_len + piece);
            if (p->left == 0) event = control_done(p);
        } else {
            event = take(p, str_n(bytes + at, piece));
        }
        at += piece;
    }
    *used = p->over && event == WS_MORE ? n : at;
    return event;
}
