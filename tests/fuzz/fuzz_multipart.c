// link: http
/* A multipart body, fed whole and in pieces (of the size that the first byte says): both must give the same. */
#include <stdlib.h>

#include "http/multipart.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct multipart *parse(struct arena *a, struct str body, size_t step) {
    struct error err;
    struct multipart_parser *p = multipart_new(a, STR("B"), NULL, &err);
    if (!p) abort();
    for (size_t i = 0; i < body.len; i += step)
        if (!multipart_feed(p, str_n(body.at + i, body.len - i < step ? body.len - i : step), &err)) return NULL;
    return multipart_finish(p, &err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    struct arena *a = arena_new(0);
    if (!a) abort();
    struct str body = str_n((const char *)data + 1, size - 1);
    const struct multipart *whole = parse(a, body, body.len);
    const struct multipart *cut = parse(a, body, data[0] % 32 + 1u);
    if ((whole == NULL) != (cut == NULL)) abort();
    if (whole) {
        if (whole->count != cut->count || whole->count > MULTIPART_PARTS_MAX) abort();
        for (size_t i = 0; i < whole->count; i++)
            if (!str_eq(whole->parts[i].data, cut->parts[i].data) || !str_eq(whole->parts[i].name, cut->parts[i].name))
                abort();
    }
    arena_free(a);
    return 0;
}
