/* Header names the server looks at often get a number, found by length and first letter, so that reading one later is
 * an array access. */
#ifndef KASMA_HTTP_HEADER_H
#define KASMA_HTTP_HEADER_H

#include "runtime/str.h"

enum header_id {
    HEADER_OTHER,
    HEADER_ACCEPT,
    HEADER_ACCEPT_ENCODING,
    HEADER_AUTHORIZATION,
    HEADER_CONNECTION,
    HEADER_CONTENT_ENCODING,
    HEADER_CONTENT_LENGTH,
    HEADER_CONTENT_TYPE,
    HEADER_COOKIE,
    HEADER_EXPECT,
    HEADER_HOST,
    HEADER_IF_MODIFIED_SINCE,
    HEADER_IF_NONE_MATCH,
    HEADER_IF_RANGE,
    HEADER_ORIGIN,
    HEADER_RANGE,
    HEADER_REFERER,
    HEADER_TRANSFER_ENCODING,
    HEADER_UPGRADE,
    HEADER_USER_AGENT,
    HEADER_X_FORWARDED_FOR,
    HEADER_X_FORWARDED_PROTO,
    HEADER_X_IDEMPOTENCY_KEY,
    HEADER_X_REQUEST_ID,
    HEADER_X_TENANT_KASMA_ID,
    HEADER_X_APP_KASMA_ID,
    HEADER_X_USER_ID,
    HEADER_X_KASMA_KEY,
    HEADER_X_GATEWAY_SECRET,
    HEADER_COUNT,
};

/* The number of a header name in any case; HEADER_OTHER when it has none. */
enum header_id header_id(struct str name);

/* True when the comma list `list` has the token, in any case, and not with q=0. `*` matches when `star`. */
bool header_list_has(struct str list, struct str token, bool star);

/* Bytes that may stand in the value of a header we send: no control bytes but tab. */
bool header_value_safe(struct str value);
/* Token characters only, at least one. */
bool header_name_safe(struct str name);

/* What a body is, by its content type (parameters aside). */
enum content_kind {
    CONTENT_NONE,      /* no body */
    CONTENT_JSON,      /* application/json */
    CONTENT_FORM,      /* application/x-www-form-urlencoded */
    CONTENT_MULTIPART, /* multipart/form-data */
    CONTENT_TEXT,      /* text/plain, or no content type at all */
    CONTENT_OTHER,
};
enum content_kind content_kind(struct str content_type);
const char *content_kind_name(enum content_kind k);
/* The value of a parameter of a header ("charset", "boundary"), without quotes; at == NULL when absent. */
struct str header_param(struct str value, struct str name);
/* True for types whose bytes shrink: text, JSON, XML, JavaScript, SVG, fonts that are not compressed yet. */
bool content_compressible(struct str content_type);

#endif
