// link: http
/* X-Forwarded-For as anybody may send it, and lists of networks. */
#include <stdlib.h>

#include "http/forwarded.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    /* A copy of the exact size, so that reading one byte too far is seen. */
    char *copy = malloc(size ? size : 1), text[ADDRESS_TEXT_MAX];
    if (!copy) abort();
    if (size) memcpy(copy, data, size);
    struct networks proxies, read;
    if (!networks_parse(STR("10.0.0.0/8,::1,fd00::/9"), &proxies, NULL)) abort();
    size_t half = size / 2;
    struct str lines[2] = {str_n(copy, half), str_n(copy + half, size - half)};
    size_t len = forwarded_client(&proxies, STR("10.0.0.1"), lines, 2, text);
    /* Whoever is named has an address, which reads back as itself. */
    struct address a;
    char again[ADDRESS_TEXT_MAX];
    if (len == 0 || len >= sizeof text || !address_parse(str_n(text, len), &a)) abort();
    if (address_format(&a, again) != len || memcmp(text, again, len) != 0) abort();
    if (networks_parse(str_n(copy, size), &read, NULL))
        for (size_t i = 0; i < read.count; i++)
            if (read.list[i].bits > 128 || !networks_have(&read, &read.list[i].base)) abort();
    free(copy);
    return 0;
}
