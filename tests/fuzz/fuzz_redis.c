// link: stores
/* Bytes of a Redis server in pieces of any size (the first byte says which), and Redis URLs. */
#include "stores/redis_reply.h"
#include "stores/redis_url.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    size_t piece = data[0] ? data[0] : 4096;
    struct str bytes = str_n((const char *)data + 1, size - 1);
    struct error err;
    struct redis_url url;
    if (redis_url_parse(bytes, &url, &err) && url.host[0] == 0 && url.path[0] == 0) __builtin_trap();

    struct redis_parser *p = redis_parser_new(65536);
    if (!p) return 0;
    enum redis_parsed parsed = REDIS_PARSED_MORE;
    for (size_t at = 0; at < bytes.len && parsed != REDIS_PARSED_FAILED; at += piece) {
        if (!redis_parser_feed(p, bytes.at + at, bytes.len - at < piece ? bytes.len - at : piece)) break;
        struct redis_reply *reply = NULL;
        while ((parsed = redis_parser_next(p, &reply, &err)) == REDIS_PARSED_REPLY) redis_reply_free(reply);
    }
    redis_parser_free(p);
    return 0;
}
