#include "runtime/network.h"

#include <arpa/inet.h>

static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};

static bool is_v4(const struct address *a) {
    return memcmp(a->at, mapped, sizeof mapped) == 0;
}

/* Without brackets, port and zone. */
static struct str bare(struct str text) {
    const char *end;
    if (text.len > 0 && text.at[0] == '[') {
        end = memchr(text.at, ']', text.len);
        if (!end) return text;
        text = str_n(text.at + 1, (size_t)(end - text.at) - 1);
    } else if ((end = memchr(text.at, ':', text.len)) &&
               !memchr(end + 1, ':', text.len - (size_t)(end - text.at) - 1)) {
        /* One colon alone: a port. */
        int64_t port;
        if (!str_int64(str_n(end + 1, text.len - (size_t)(end - text.at) - 1), &port) || port < 0 || port > 65535)
            return text;
        text.len = (size_t)(end - text.at);
    }
    end = memchr(text.at, '%', text.len);
    if (end) text.len = (size_t)(end - text.at);
    return text;
}

bool address_parse(struct str text, struct address *out) {
    char copy[ADDRESS_TEXT_MAX];
    if (text.len == 0) return false;
    text = bare(text);
    if (text.len == 0 || text.len >= sizeof copy || memchr(text.at, '\0', text.len)) return false;
    memcpy(copy, text.at, text.len);
    copy[text.len] = '\0';
    if (inet_pton(AF_INET, copy, out->at + sizeof mapped) == 1) {
        memcpy(out->at, mapped, sizeof mapped);
        return true;
    }
    return inet_pton(AF_INET6, copy, out->at) == 1;
}

size_t address_format(const struct address *a, char out[ADDRESS_TEXT_MAX]) {
    const char *made = is_v4(a) ? inet_ntop(AF_INET, a->at + sizeof mapped, out, ADDRESS_TEXT_MAX)
                                : inet_ntop(AF_INET6, a->at, out, ADDRESS_TEXT_MAX);
    if (!made) out[0] = '\0';
    return strlen(out);
}

static bool network_parse(struct str text, struct networks *out) {
    const char *slash = memchr(text.at, '/', text.len);
    struct str base = slash ? str_n(text.at, (size_t)(slash - text.at)) : text;
    struct address a;
    if (memchr(base.at, '[', base.len) || !address_parse(base, &a)) return false;
    int64_t width = is_v4(&a) ? 32 : 128, bits = width;
    if (is_v4(&a) && memchr(base.at, ':', base.len)) width = bits = 128; /* ::ffff:10.0.0.0/104 */
    if (slash && (!str_int64(str_n(slash + 1, text.len - base.len - 1), &bits) || bits < 0 || bits > width))
        return false;
    out->list[out->count].base = a;
    out->list[out->count].bits = (uint8_t)(bits + 128 - width);
    out->count++;
    return true;
}

bool networks_parse(struct str text, struct networks *out, struct error *err) {
    size_t at = 0;
    out->count = 0;
    while (at < text.len) {
        size_t len = 0;
        while (at + len < text.len && !strchr(", \t\r\n", text.at[at + len])) len++;
        if (len > 0) {
            struct str one = str_n(text.at + at, len);
            if (out->count == NETWORKS_MAX) return error_set(err, ERR_LIMIT, "more than %d networks", NETWORKS_MAX);
            if (!network_parse(one, out))
                return error_set(err, ERR_INVALID, "%.*s is no address or network", STR_FMT(one));
        }
        at += len + 1;
    }
    return true;
}

bool networks_have(const struct networks *n, const struct address *a) {
    for (size_t i = 0; i < n->count; i++) {
        const uint8_t *base = n->list[i].base.at;
        size_t whole = n->list[i].bits / 8u, rest = n->list[i].bits % 8u;
        if (memcmp(base, a->at, whole) != 0) continue;
        if (rest == 0 || ((base[whole] ^ a->at[whole]) >> (8 - rest)) == 0) return true;
    }
    return false;
}
