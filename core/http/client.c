/* There are two pools of connections, because an address is looked at when its socket is opened: a request that may
 * only go to public addresses must never be given a kept connection that was opened without that look. */
#include "http/client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>

#include "http/transfer.h"

enum {
    MAX_CALLS = 256,
    MAX_HEADERS = 200,
    MAX_HEADER_BYTES = 64 * 1024, /* of an answer, all lines */
    MAX_URL = 8192,
    CONNECT_MS = 5000,
    SILENT_S = 60, /* of an answer that comes piece by piece */
    IDLE_CONNECTIONS = 64,
};

struct http_call {
    struct transfer transfer; /* first: what libcurl ends is a transfer */
    http_done *done;
    http_piece *piece;
    void *data;
    struct curl_slist *headers_out;
    struct buf body;  /* of the answer */
    struct buf lines; /* header bytes of the answer: name\0value\0 ... */
    size_t header_count;
    size_t max_bytes;
    bool public_only, too_large, not_public;
    bool cut; /* a longer body is cut off, and the answer counts */
    bool was_cut;
};

static struct transfer_pool pools[2] = {{.idle = IDLE_CONNECTIONS}, {.idle = IDLE_CONNECTIONS}}; /* [1]: public only */
static size_t count;

/* ---- addresses ---- */

static bool in_net(uint32_t address, uint32_t net, unsigned bits) {
    return (address ^ net) >> (32 - bits) == 0;
}

static bool public_v4(uint32_t a) {
    static const struct {
        uint32_t net;
        unsigned bits;
    } closed[] = {
        {0x00000000, 8},  /* this network */
        {0x0A000000, 8},  /* private */
        {0x64400000, 10}, /* carrier-grade NAT */
        {0x7F000000, 8},  /* loopback */
        {0xA9FE0000, 16}, /* link-local: also the clouds' metadata services */
        {0xAC100000, 12}, /* private */
        {0xC0000000, 24}, /* protocol assignments */
        {0xC0000200, 24}, /* documentation */
        {0xC0586300, 24}, /* 6to4 relays */
        {0xC0A80000, 16}, /* private */
        {0xC6120000, 15}, /* benchmarks */
        {0xC6336400, 24}, /* documentation */
        {0xCB007100, 24}, /* documentation */
        {0xE0000000, 3},  /* multicast, reserved, broadcast */
    };
    for (size_t i = 0; i < sizeof closed / sizeof *closed; i++) {
        if (in_net(a, closed[i].net, closed[i].bits)) return false;
    }
    return true;
}

static uint32_t word(const uint8_t *b) {
    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

static bool public_v6(const uint8_t *b) {
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF};
    static const uint8_t nat64[12] = {0, 0x64, 0xFF, 0x9B};
    if (memcmp(b, mapped, 12) == 0 || memcmp(b, nat64, 12) == 0) return public_v4(word(b + 12));
    if (b[0] == 0x20 && b[1] == 0x02) return public_v4(word(b + 2));     /* 6to4 carries an IPv4 address */
    if (b[0] == 0x20 && b[1] == 0x01 && b[2] < 2) return false;          /* 2001::/23: Teredo, benchmarks, ORCHID */
    if (word(b) == 0x20010DB8 || word(b) >> 12 == 0x3FFF0) return false; /* documentation */
    return (b[0] & 0xE0) == 0x20;                                        /* 2000::/3 is all that is given out */
}

bool http_address_public(const struct sockaddr *address) {
    if (address->sa_family == AF_INET) {
        struct sockaddr_in v4;
        memcpy(&v4, address, sizeof v4);
        return public_v4(ntohl(v4.sin_addr.s_addr));
    }
    if (address->sa_family != AF_INET6) return false;
    struct sockaddr_in6 v6;
    memcpy(&v6, address, sizeof v6);
    return public_v6(v6.sin6_addr.s6_addr);
}

bool http_host_address(struct str host, bool *open) {
    char text[256]; /* as long as a name may be: octal numbers may begin with any number of zeros */
    struct in_addr v4;
    struct in6_addr v6;
    if (!host.len || host.len >= sizeof text || memchr(host.at, 0, host.len)) return false;
    memcpy(text, host.at, host.len);
    text[host.len] = 0;
    if (inet_pton(AF_INET6, text, &v6) == 1) {
        *open = public_v6(v6.s6_addr);
        return true;
    }
    if (strpbrk(text, " \t\r\n\v\f") || inet_aton(text, &v4) == 0) return false; /* inet_aton stops at a blank */
    *open = public_v4(ntohl(v4.s_addr));
    return true;
}

/* ---- one request's callbacks ---- */

static curl_socket_t on_open(void *data, curlsocktype purpose, struct curl_sockaddr *address) {
    struct http_call *call = data;
    (void)purpose;
    if (call->public_only && !http_address_public(&address->addr)) {
        call->not_public = true;
        return CURL_SOCKET_BAD;
    }
    return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

static size_t on_body(char *at, size_t size, size_t n, void *data) {
    struct http_call *call = data;
    size_t len = size * n;
    if (call->piece) {
        long status = 0;
        if (curl_easy_getinfo(call->transfer.easy, CURLINFO_RESPONSE_CODE, &status) != CURLE_OK) return 0;
        if (call->piece(call->data, (int)status, str_n(at, len))) return len;
        call->too_large = true;
        return 0;
    }
    if (call->body.len + len > call->max_bytes) {
        if (call->cut) { /* by ending the transfer: nobody must be able to make us read on and on */
            call->was_cut = buf_add(&call->body, str_n(at, call->max_bytes - call->body.len));
            return 0;
        }
        call->too_large = true;
        return 0;
    }
    return buf_add(&call->body, str_n(at, len)) ? len : 0;
}

static size_t on_header(char *at, size_t size, size_t n, void *data) {
    struct http_call *call = data;
    size_t len = size * n;
    struct str line = str_trim(str_n(at, len));
    if (str_starts(line, STR("HTTP/"))) { /* a new answer: after a redirect, or after 100 Continue */
        buf_clear(&call->lines);
        call->header_count = 0;
        return len;
    }
    const char *colon = line.len ? memchr(line.at, ':', line.len) : NULL;
    if (!colon) return len;
    struct str name = str_n(line.at, (size_t)(colon - line.at));
    struct str value = str_trim(str_n(colon + 1, line.len - name.len - 1));
    if (call->header_count == MAX_HEADERS || call->lines.len + line.len + 2 > MAX_HEADER_BYTES) {
        call->too_large = true;
        return 0;
    }
    size_t from = call->lines.len;
    if (!buf_add(&call->lines, name) || !buf_byte(&call->lines, 0) || !buf_add(&call->lines, value) ||
        !buf_byte(&call->lines, 0))
        return 0;
    for (size_t i = from; i < from + name.len; i++) {
        char *c = &call->lines.data[i];
        if (*c >= 'A' && *c <= 'Z') *c = (char)(*c + 32);
    }
    call->header_count++;
    return len;
}

/* ---- the end of a request ---- */

static void call_free(struct http_call *call) {
    if (call->transfer.easy) curl_easy_cleanup(call->transfer.easy);
    curl_slist_free_all(call->headers_out);
    buf_free(&call->body);
    buf_free(&call->lines);
    free(call);
}

static void explain(const struct http_call *call, CURLcode code, struct error *err) {
    bool filled;
    if (call->not_public) {
        filled = error_set(err, ERR_INVALID, "the address is not a public one");
    } else if (call->too_large) {
        filled = error_set(err, ERR_LIMIT, "the answer is larger than allowed");
    } else if (code == CURLE_OPERATION_TIMEDOUT) {
        filled = error_set(err, ERR_TIMEOUT, "no answer in time");
    } else if (code == CURLE_UNSUPPORTED_PROTOCOL || code == CURLE_URL_MALFORMAT) {
        filled = error_set(err, ERR_INVALID, "not an http or https URL");
    } else if (code == CURLE_TOO_MANY_REDIRECTS) {
        filled = error_set(err, ERR_LIMIT, "too many redirects");
    } else if (code == CURLE_OUT_OF_MEMORY) {
        filled = error_set(err, ERR_MEMORY, "out of memory");
    } else {
        filled = error_set(err, ERR_UNAVAILABLE, "%s", curl_easy_strerror(code));
    }
    (void)filled; /* always false */
}

static void finish(struct http_call *call, CURLcode code) {
    http_done *done = call->done;
    void *data = call->data;
    struct error err = {0};
    struct http_answer answer = {.body = str_n(call->body.data ? call->body.data : "", call->body.len)};
    long status = 0;
    if (code == CURLE_OK || call->was_cut) {
        code = curl_easy_getinfo(call->transfer.easy, CURLINFO_RESPONSE_CODE, &status);
        answer.status = (int)status;
        answer.headers = calloc(call->header_count ? call->header_count : 1, sizeof *answer.headers);
        if (!answer.headers) code = CURLE_OUT_OF_MEMORY;
    }
    if (code == CURLE_OK) {
        const char *at = call->lines.data;
        for (size_t i = 0; i < call->header_count; i++) {
            struct http_field *f = &answer.headers[answer.header_count++];
            f->name = str_of(at);
            f->value = str_of(at + f->name.len + 1);
            at = f->value.at + f->value.len + 1;
        }
        done(data, &answer, NULL);
    } else {
        explain(call, code, &err);
        done(data, NULL, &err);
    }
    free(answer.headers);
    call_free(call);
}

static void ended(struct transfer *transfer, CURLcode code) {
    count--;
    finish((struct http_call *)transfer, code);
}

void http_client_close(void) {
    for (size_t i = 0; i < sizeof pools / sizeof *pools; i++) transfer_pool_close(&pools[i]);
}

/* ---- the beginning of a request ---- */

static bool token(struct str s) {
    if (s.len == 0) return false;
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.at[i];
        if (c <= ' ' || c >= 127 || strchr("()<>@,;:\\\"/[]?={}", c)) return false;
    }
    return true;
}

/* Header values go onto the wire as they are: a line break would smuggle in another header. */
static bool one_line(struct str s) {
    for (size_t i = 0; i < s.len; i++) {
        if ((unsigned char)s.at[i] < ' ' && s.at[i] != '\t') return false;
    }
    return true;
}

static bool add_line(struct http_call *call, const char *line) {
    struct curl_slist *longer = curl_slist_append(call->headers_out, line);
    if (!longer) return false;
    call->headers_out = longer;
    return true;
}

static bool set_headers(struct http_call *call, const struct http_ask *ask, struct error *err) {
    if (ask->header_count > MAX_HEADERS) return error_set(err, ERR_INVALID, "more than %d headers", MAX_HEADERS);
    struct buf line = {0};
    bool ok = add_line(call, "Expect:"), typed = false; /* no waiting for 100 Continue */
    for (size_t i = 0; ok && i < ask->header_count; i++) {
        const struct http_field *f = &ask->headers[i];
        if (!token(f->name) || !one_line(f->value)) {
            buf_free(&line);
            return error_set(err, ERR_INVALID, "header %zu has a bad name or value", i + 1);
        }
        typed = typed || str_ieq(f->name, STR("content-type"));
        buf_clear(&line);
        /* "Name;" is how libcurl sends a header without a value. */
        ok = buf_add(&line, f->name) && buf_add(&line, f->value.len ? STR(": ") : STR(";")) &&
             buf_add(&line, f->value) && buf_byte(&line, 0) && add_line(call, line.data);
    }
    buf_free(&line);
    if (ok && !typed) ok = add_line(call, "Content-Type:"); /* libcurl would say urlencoded for any body */
    return ok ? true : error_set(err, ERR_MEMORY, "out of memory");
}

static bool set_method(CURL *e, const struct http_ask *ask, struct error *err) {
    char method[32];
    if (ask->method.len >= sizeof method || (ask->method.len && !token(ask->method)))
        return error_set(err, ERR_INVALID, "bad method");
    bool post = ask->method.len ? str_eq(ask->method, STR("POST")) : ask->body.at != NULL;
    bool carries = post || str_eq(ask->method, STR("PUT")) || str_eq(ask->method, STR("PATCH"));
    bool ok = true;
    if (ask->body.at || carries) { /* also an empty one: servers want its length */
        ok = curl_easy_setopt(e, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)ask->body.len) == CURLE_OK &&
             curl_easy_setopt(e, CURLOPT_COPYPOSTFIELDS, ask->body.at ? ask->body.at : "") == CURLE_OK;
    }
    if (ok && str_eq(ask->method, STR("HEAD"))) {
        ok = curl_easy_setopt(e, CURLOPT_NOBODY, 1L) == CURLE_OK;
    } else if (ok && !post && ask->method.len && (ask->body.at || carries || !str_eq(ask->method, STR("GET")))) {
        /* Not for a plain GET or POST: a forced method would outlive a redirect that changes it. */
        memcpy(method, ask->method.at, ask->method.len);
        method[ask->method.len] = 0;
        ok = curl_easy_setopt(e, CURLOPT_CUSTOMREQUEST, method) == CURLE_OK;
    }
    return ok ? true : error_set(err, ERR_MEMORY, "out of memory");
}

static bool set_url(CURL *e, struct str url, struct error *err) {
    char text[MAX_URL];
    if (!str_starts(url, STR("http://")) && !str_starts(url, STR("https://")))
        return error_set(err, ERR_INVALID, "not an http or https URL");
    if (url.len >= sizeof text || memchr(url.at, 0, url.len) || !one_line(url))
        return error_set(err, ERR_INVALID, "bad URL");
    memcpy(text, url.at, url.len);
    text[url.len] = 0;
    return curl_easy_setopt(e, CURLOPT_URL, text) == CURLE_OK ? true : error_set(err, ERR_MEMORY, "out of memory");
}

static bool set_times(CURL *e, const struct http_ask *ask) {
    long timeout = ask->timeout_ms ? (long)ask->timeout_ms : 10000;
    if (ask->piece)
        return curl_easy_setopt(e, CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_MS) == CURLE_OK &&
               curl_easy_setopt(e, CURLOPT_LOW_SPEED_LIMIT, 1L) == CURLE_OK &&
               curl_easy_setopt(e, CURLOPT_LOW_SPEED_TIME, (long)SILENT_S) == CURLE_OK;
    return curl_easy_setopt(e, CURLOPT_TIMEOUT_MS, timeout) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_CONNECTTIMEOUT_MS, timeout < CONNECT_MS ? timeout : CONNECT_MS) == CURLE_OK;
}

static bool set_rest(struct http_call *call, const struct http_ask *ask) {
    CURL *e = call->transfer.easy;
    return curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_HTTPHEADER, call->headers_out) == CURLE_OK && set_times(e, ask) &&
           curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, "http,https") == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_REDIR_PROTOCOLS_STR, "http,https") == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_FOLLOWLOCATION, ask->redirects ? 1L : 0L) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_MAXREDIRS, (long)ask->redirects) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_PROXY, "") == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_OPENSOCKETFUNCTION, on_open) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_OPENSOCKETDATA, call) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, on_body) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_WRITEDATA, call) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_HEADERFUNCTION, on_header) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_HEADERDATA, call) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_USERAGENT, "kasma/" KASMA_VERSION) == CURLE_OK;
}

struct http_call *http_request(const struct http_ask *ask, http_done *done, void *data, struct error *err) {
    if (count >= MAX_CALLS) {
        error_set(err, ERR_BUSY, "%zu outbound requests are under way", count);
        return NULL;
    }
    struct http_call *call = calloc(1, sizeof *call);
    if (call) call->transfer.easy = curl_easy_init();
    if (!call || !call->transfer.easy) {
        free(call);
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    call->done = done;
    call->piece = ask->piece;
    call->data = data;
    call->transfer.ended = ended;
    call->max_bytes = ask->max_bytes ? ask->max_bytes : (size_t)1024 * 1024;
    call->public_only = ask->public_only;
    call->cut = ask->cut;
    bool ok = set_url(call->transfer.easy, ask->url, err) && set_method(call->transfer.easy, ask, err) &&
              set_headers(call, ask, err);
    if (ok && !set_rest(call, ask)) ok = error_set(err, ERR_MEMORY, "out of memory");
    ok = ok && transfer_start(&call->transfer, &pools[ask->public_only], err);
    if (!ok) {
        call_free(call);
        return NULL;
    }
    count++;
    return call;
}

void http_cancel(struct http_call *call) {
    transfer_cancel(&call->transfer);
    count--;
    call_free(call);
}

size_t http_calls(void) {
    return count;
}
