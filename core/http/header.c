#include "http/header.h"

static bool is(struct str name, const char *lower) {
    for (size_t i = 0; i < name.len; i++) {
        char c = name.at[i];
        if (c >= 'A' && c <= 'Z') c = (char)(c | 0x20);
        if (c != lower[i]) return false;
    }
    return true;
}

enum header_id header_id(struct str name) {
    char first = (char)(name.len ? name.at[0] | 0x20 : 0);
    switch (name.len) {
    case 4:
        return is(name, "host") ? HEADER_HOST : HEADER_OTHER;
    case 5:
        return is(name, "range") ? HEADER_RANGE : HEADER_OTHER;
    case 6:
        switch (first) {
        case 'a':
            return is(name, "accept") ? HEADER_ACCEPT : HEADER_OTHER;
        case 'c':
            return is(name, "cookie") ? HEADER_COOKIE : HEADER_OTHER;
        case 'e':
            return is(name, "expect") ? HEADER_EXPECT : HEADER_OTHER;
        case 'o':
            return is(name, "origin") ? HEADER_ORIGIN : HEADER_OTHER;
        default:
            return HEADER_OTHER;
        }
    case 7:
        return is(name, "referer") ? HEADER_REFERER : is(name, "upgrade") ? HEADER_UPGRADE : HEADER_OTHER;
    case 8:
        return is(name, "if-range") ? HEADER_IF_RANGE : HEADER_OTHER;
    case 9:
        return is(name, "x-user-id") ? HEADER_X_USER_ID : HEADER_OTHER;
    case 10:
        return is(name, "connection") ? HEADER_CONNECTION : is(name, "user-agent") ? HEADER_USER_AGENT : HEADER_OTHER;
    case 11:
        return is(name, "x-kasma-key") ? HEADER_X_KASMA_KEY : HEADER_OTHER;
    case 12:
        return is(name, "content-type")   ? HEADER_CONTENT_TYPE
               : is(name, "x-request-id") ? HEADER_X_REQUEST_ID
                                          : HEADER_OTHER;
    case 13:
        return is(name, "authorization")   ? HEADER_AUTHORIZATION
               : is(name, "if-none-match") ? HEADER_IF_NONE_MATCH
                                           : HEADER_OTHER;
    case 14:
        return is(name, "content-length")   ? HEADER_CONTENT_LENGTH
               : is(name, "x-app-kasma-id") ? HEADER_X_APP_KASMA_ID
                                            : HEADER_OTHER;
    case 15:
        switch (first) {
        case 'a':
            return is(name, "accept-encoding") ? HEADER_ACCEPT_ENCODING : HEADER_OTHER;
        case 'x':
            return is(name, "x-forwarded-for") ? HEADER_X_FORWARDED_FOR : HEADER_OTHER;
        default:
            return HEADER_OTHER;
        }
    case 16:
        return is(name, "content-encoding")   ? HEADER_CONTENT_ENCODING
               : is(name, "x-gateway-secret") ? HEADER_X_GATEWAY_SECRET
                                              : HEADER_OTHER;
    case 17:
        switch (first) {
        case 't':
            return is(name, "transfer-encoding") ? HEADER_TRANSFER_ENCODING : HEADER_OTHER;
        case 'i':
            return is(name, "if-modified-since") ? HEADER_IF_MODIFIED_SINCE : HEADER_OTHER;
        case 'x':
            return is(name, "x-forwarded-proto")   ? HEADER_X_FORWARDED_PROTO
                   : is(name, "x-idempotency-key") ? HEADER_X_IDEMPOTENCY_KEY
                   : is(name, "x-tenant-kasma-id") ? HEADER_X_TENANT_KASMA_ID
                                                   : HEADER_OTHER;
        default:
            return HEADER_OTHER;
        }
    default:
        return HEADER_OTHER;
    }
}

/* Cuts the next element off a list; elements are trimmed and may be empty. */
static bool list_next(struct str *rest, char separator, struct str *element) {
    if (!rest->at) return false;
    const char *end = rest->len ? memchr(rest->at, separator, rest->len) : NULL;
    if (end) {
        *element = str_trim(str_n(rest->at, (size_t)(end - rest->at)));
        size_t used = (size_t)(end - rest->at) + 1;
        *rest = str_n(rest->at + used, rest->len - used);
    } else {
        *element = str_trim(*rest);
        *rest = (struct str){0};
    }
    return true;
}

/* "q=0", "q=0.0", "q=0.000": not wanted at all. */
static bool is_zero_weight(struct str parameters) {
    struct str q = header_param(parameters, STR("q"));
    if (!q.at || q.len == 0 || q.at[0] != '0') return false;
    for (size_t i = 1; i < q.len; i++)
        if (q.at[i] != '0' && q.at[i] != '.') return false;
    return true;
}

bool header_list_has(struct str list, struct str token, bool star) {
    bool by_star = false;
    struct str rest = list, element;
    while (list_next(&rest, ',', &element)) {
        struct str parameters = element, word;
        if (!list_next(&parameters, ';', &word)) continue;
        if (str_ieq(word, token)) return !is_zero_weight(element);
        if (star && str_eq(word, STR("*"))) by_star = !is_zero_weight(element);
    }
    return by_star;
}

bool header_value_safe(struct str value) {
    for (size_t i = 0; i < value.len; i++) {
        unsigned char c = (unsigned char)value.at[i];
        if ((c < 0x20 && c != '\t') || c == 0x7f) return false;
    }
    return true;
}

bool header_name_safe(struct str name) {
    for (size_t i = 0; i < name.len; i++) {
        unsigned char c = (unsigned char)name.at[i];
        bool token = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                     (c != '\0' && strchr("!#$%&'*+-.^_`|~", c) != NULL);
        if (!token) return false;
    }
    return name.len > 0;
}

/* The type without its parameters. */
static struct str bare_type(struct str content_type) {
    struct str rest = content_type, type;
    return list_next(&rest, ';', &type) ? type : (struct str){0};
}

enum content_kind content_kind(struct str content_type) {
    struct str type = bare_type(content_type);
    if (type.len == 0 || str_ieq(type, STR("text/plain"))) return CONTENT_TEXT;
    if (str_ieq(type, STR("application/json"))) return CONTENT_JSON;
    if (str_ieq(type, STR("application/x-www-form-urlencoded"))) return CONTENT_FORM;
    if (str_ieq(type, STR("multipart/form-data"))) return CONTENT_MULTIPART;
    return CONTENT_OTHER;
}

const char *content_kind_name(enum content_kind k) {
    static const char *const names[] = {"none", "json", "form", "multipart", "text", "other"};
    return names[k];
}

struct str header_param(struct str value, struct str name) {
    if (value.len == 0) return (struct str){0};
    /* A separator inside quotes does not separate, so this walks by hand. */
    const char *p = value.at, *end = value.at + value.len;
    while (p < end && *p != ';') p++;
    while (p < end) {
        p++; /* the ';' */
        const char *from = p;
        while (p < end && *p != '=' && *p != ';') p++;
        struct str found = str_trim(str_n(from, (size_t)(p - from)));
        if (p >= end || *p == ';') continue;
        p++; /* the '=' */
        while (p < end && (*p == ' ' || *p == '\t')) p++;
        struct str v;
        if (p < end && *p == '"') {
            from = ++p;
            while (p < end && *p != '"') p += *p == '\\' && p + 1 < end ? 2 : 1;
            v = str_n(from, (size_t)(p - from));
            while (p < end && *p != ';') p++;
        } else {
            from = p;
            while (p < end && *p != ';') p++;
            v = str_trim(str_n(from, (size_t)(p - from)));
        }
        if (str_ieq(found, name)) return v;
    }
    return (struct str){0};
}

bool content_compressible(struct str content_type) {
    struct str type = bare_type(content_type);
    if (type.len >= 5 && str_ieq(str_n(type.at, 5), STR("text/"))) return !str_ieq(type, STR("text/event-stream"));
    static const struct str others[] = {
        {.at = "application/json", .len = 16},
        {.at = "application/javascript", .len = 22},
        {.at = "application/xml", .len = 15},
        {.at = "application/manifest+json", .len = 25},
        {.at = "image/svg+xml", .len = 13},
        {.at = "application/x-ndjson", .len = 20},
        {.at = "application/rss+xml", .len = 19},
        {.at = "application/atom+xml", .len = 20},
        {.at = "application/feed+json", .len = 21},
        {.at = "application/ld+json", .len = 19},
        {.at = "application/wasm", .len = 16},
        {.at = "font/ttf", .len = 8},
        {.at = "application/problem+json", .len = 24},
    };
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (str_ieq(type, others[i])) return true;
    return false;
}
