// link: http
/* Bytes of a WebSocket client. The first byte says in what pieces the rest arrives; whatever the pieces, the events
 * must be those of the whole. */
#include <stdlib.h>
#include <string.h>

#include "http/websocket.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A sum over the events: kinds, codes and payloads in their order. */
static uint64_t run(const uint8_t *data, size_t size, size_t step) {
    static const struct ws_limits limits = {.message = 4096, .fragments = 8};
    struct ws_parser p;
    ws_parser_init(&p, &limits);
    uint64_t sum = 1469598103934665603u;
    for (size_t at = 0; at < size; at += step) {
        size_t n = size - at < step ? size - at : step, done = 0;
        /* A copy of the exact size, so that ASan sees a read past the end. */
        char *piece = malloc(n);
        if (!piece) abort();
        memcpy(piece, data + at, n);
        enum ws_event event;
        do {
            size_t used;
            event = ws_feed(&p, piece + done, n - done, &used);
            done += used;
            if (done > n) abort();
            if (event == WS_MORE) break;
            if (p.payload.len > limits.message) abort();
            if (event == WS_CLOSED && p.code != WS_NO_CODE && !ws_code_valid(p.code)) abort();
            if (event == WS_BAD && !ws_code_valid(p.code)) abort();
            struct utf8 text = {0};
            if (event == WS_MESSAGE && p.opcode == WS_TEXT && (!utf8_feed(&text, p.payload) || !utf8_whole(&text)))
                abort();
            sum = (sum ^ (uint64_t)event ^ (uint64_t)p.code << 8) * 1099511628211u;
            for (size_t i = 0; i < p.payload.len; i++) sum = (sum ^ (uint8_t)p.payload.at[i]) * 1099511628211u;
        } while (true);
        if (done != n) abort();
        free(piece);
    }
    ws_parser_free(&p);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    if (run(data + 1, size - 1, size) != run(data + 1, size - 1, 1 + data[0] % 17)) abort();
    return 0;
}
