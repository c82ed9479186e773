/* RFC 6455 without I/O: the arithmetic of the handshake, a parser of client frames, and the heads of server frames.
 * Unit tests and a fuzz target reach all of it; http/push.h is the connection around it.
 *
 * The parser takes bytes as they come and gives back one event at a time. It holds no more of a message than its limits
 * allow, checks text while it arrives, and refuses what the RFC forbids with the close code that the RFC names. A frame
 * that lies whole in the caller's bytes is handed out from there, unmasked in place; only what comes in pieces is
 * gathered. No extension is spoken: a reserved bit is an error. */
#ifndef KASMA_HTTP_WEBSOCKET_H
#define KASMA_HTTP_WEBSOCKET_H

#include "runtime/buf.h"
#include "runtime/utf8.h"

#define WS_ACCEPT_LEN 28
#define WS_HEAD_MAX 10 /* of a server's frame */
#define WS_CONTROL_MAX 125

enum ws_opcode { WS_CONTINUATION = 0, WS_TEXT = 1, WS_BINARY = 2, WS_CLOSE = 8, WS_PING = 9, WS_PONG = 10 };

enum ws_code {
    WS_NORMAL = 1000,
    WS_GOING_AWAY = 1001,
    WS_PROTOCOL_ERROR = 1002,
    WS_UNSUPPORTED = 1003,
    WS_NO_CODE = 1005,  /* never on the wire: a close frame without a code */
    WS_ABNORMAL = 1006, /* never on the wire: the connection ended without a close frame */
    WS_BAD_DATA = 1007,
    WS_POLICY = 1008,
    WS_TOO_BIG = 1009,
    WS_INTERNAL = 1011,
    WS_TRY_LATER = 1013,
};

/* The answer to a client's Sec-WebSocket-Key. False: the key is not the base64 of 16 bytes, or hashing failed. */
bool ws_accept(struct str key, char out[WS_ACCEPT_LEN]);
/* Codes that may stand in a close frame (7.4.1 and the registry). */
bool ws_code_valid(unsigned code);
/* Writes the head of an unmasked frame with FIN set; answers its length. */
size_t ws_head(enum ws_opcode opcode, uint64_t length, char out[WS_HEAD_MAX]);

struct ws_limits {
    size_t message;     /* payload bytes of a message over all its frames: 1009 beyond */
    unsigned fragments; /* frames of one message: 1008 beyond */
    bool text_only;     /* binary messages: 1003 */
};

enum ws_event {
    WS_MORE,    /* all bytes were taken; nothing is complete */
    WS_MESSAGE, /* payload: a whole message; opcode says text or binary */
    WS_PINGED,  /* payload: what the pong must carry */
    WS_PONGED,
    WS_CLOSED, /* code (WS_NO_CODE when there was none) and payload: the reason. Bytes after it are ignored */
    WS_BAD,    /* code: close with this; why says what was wrong. Bytes after it are ignored */
};

struct ws_parser {
    struct ws_limits limits;
    struct str payload; /* of the last event; valid until the next call, or as long as the caller's bytes */
    const char *why;    /* of WS_BAD */
    unsigned code;      /* of WS_CLOSED and WS_BAD */
    enum ws_opcode opcode;
    /* private */
    struct buf message; /* what has come of a message in pieces */
    struct utf8 text;
    uint64_t left; /* payload bytes of the frame to come */
    unsigned fragments;
    enum ws_opcode frame;
    bool fin, in_message, over;
    uint8_t mask_at, head_len, control_len;
    uint8_t head[14], mask[4];
    char control[WS_CONTROL_MAX];
};

void ws_parser_init(struct ws_parser *p, const struct ws_limits *limits);
void ws_parser_free(struct ws_parser *p);
/* Takes up to `n` bytes, which it may change, and answers what came of them; `*used` is how many it has taken. To be
 * called again with the rest until that answers WS_MORE. */
enum ws_event ws_feed(struct ws_parser *p, char *bytes, size_t n, size_t *used);

#endif
