#include "http/forwarded.h"

static bool is_gap(char c) {
    return c == ',' || c == ' ' || c == '\t';
}

/* Goes back over one line. True: the client was found, or the list ends here. */
static bool walk(const struct networks *proxies, struct str line, struct address *client) {
    size_t end = line.len;
    for (;;) {
        while (end > 0 && is_gap(line.at[end - 1])) end--;
        if (end == 0) return false;
        size_t from = end;
        while (from > 0 && !is_gap(line.at[from - 1])) from--;
        struct address next;
        if (!address_parse(str_n(line.at + from, end - from), &next)) return true;
        *client = next;
        if (!networks_have(proxies, &next)) return true;
        end = from;
    }
}

size_t forwarded_client(const struct networks *proxies, struct str peer, const struct str *lines, size_t count,
                        char out[ADDRESS_TEXT_MAX]) {
    struct address client;
    if (!proxies || proxies->count == 0 || !address_parse(peer, &client) || !networks_have(proxies, &client)) return 0;
    for (size_t i = count; i > 0; i--)
        if (walk(proxies, lines[i - 1], &client)) break;
    return address_format(&client, out);
}
