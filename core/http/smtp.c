/* libcurl speaks the dialogue; what it does not tell is which command a refusal answered, and that decides what a
 * refusal means (an unknown addressee is not a wrong password). So its trace is read: commands go by as
 * CURLINFO_HEADER_OUT, of which only the verb is looked at, and replies as header lines. */
#include "http/smtp.h"

#include <stdio.h>
#include <stdlib.h>

#include "http/transfer.h"
#include "runtime/buf.h"

enum {
    MAX_CALLS = 64,
    CONNECTIONS = 8, /* to the mail server at once; further mails wait for one */
    MAX_MESSAGE = 25 * 1024 * 1024,
    MAX_REPLY = 500,
    MAX_ADDRESS = 320,
    CONNECT_MS = 10000,
    IDLE_S = 60, /* a kept connection older than this is not used again: servers hang up on idle clients */
};

struct smtp_call {
    struct transfer transfer; /* first: what libcurl ends is a transfer */
    smtp_done *done;
    void *data;
    struct curl_slist *to;
    struct buf message;
    size_t sent;
    const char *command;
    bool over; /* QUIT was said */
    char reply[MAX_REPLY];
    size_t reply_len;
};

static struct transfer_pool pool = {.idle = CONNECTIONS, .per_host = CONNECTIONS};
static size_t count;

/* ---- what the dialogue says ---- */

static int on_trace(CURL *easy, curl_infotype type, char *at, size_t len, void *data) {
    static const char *const verbs[] = {"EHLO", "HELO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "RSET", "NOOP"};
    struct smtp_call *call = data;
    (void)easy;
    if (type != CURLINFO_HEADER_OUT || call->over) return 0;
    call->over = str_starts(str_n(at, len), STR("QUIT")); /* after a refusal: what counts was said before */
    for (size_t i = 0; !call->over && i < sizeof verbs / sizeof *verbs; i++) {
        struct str verb = str_of(verbs[i]);
        if (str_starts(str_n(at, len), verb) && len > verb.len && (at[verb.len] == ' ' || at[verb.len] == '\r'))
            call->command = verbs[i];
    }
    return 0;
}

static size_t on_reply(char *at, size_t size, size_t n, void *data) {
    struct smtp_call *call = data;
    size_t len = size * n;
    if (call->over) return len;
    struct str line = str_trim(str_n(at, len));
    call->reply_len = line.len < sizeof call->reply ? line.len : sizeof call->reply;
    memcpy(call->reply, line.at, call->reply_len);
    for (size_t i = 0; i < call->reply_len; i++) { /* it goes into logs and rows */
        if ((unsigned char)call->reply[i] < ' ' || (unsigned char)call->reply[i] > '~') call->reply[i] = '?';
    }
    if (str_starts(line, STR("354"))) call->command = "."; /* from here on the message's end is what is answered */
    return len;
}

static size_t on_read(char *room, size_t size, size_t n, void *data) {
    struct smtp_call *call = data;
    size_t left = call->message.len - call->sent, take = size * n < left ? size * n : left;
    if (take) memcpy(room, call->message.data + call->sent, take);
    call->sent += take;
    return take;
}

/* ---- its end ---- */

static void call_free(struct smtp_call *call) {
    if (call->transfer.easy) curl_easy_cleanup(call->transfer.easy);
    curl_slist_free_all(call->to);
    buf_free(&call->message);
    free(call);
}

static void explain(CURLcode code, const struct smtp_call *call, struct error *err) {
    bool filled;
    if (code == CURLE_OPERATION_TIMEDOUT) {
        filled = error_set(err, ERR_TIMEOUT, "no answer of the mail server in time, after %s",
                           *call->command ? call->command : "connecting");
    } else if (code == CURLE_OUT_OF_MEMORY) {
        filled = error_set(err, ERR_MEMORY, "out of memory");
    } else if (code == CURLE_USE_SSL_FAILED) {
        filled = error_set(err, ERR_UNAVAILABLE, "the mail server offers no TLS");
    } else {
        filled = error_set(err, ERR_UNAVAILABLE, "mail server: %s", curl_easy_strerror(code));
    }
    (void)filled; /* always false */
}

static void ended(struct transfer *transfer, CURLcode code) {
    struct smtp_call *call = (struct smtp_call *)transfer;
    struct error err = {0};
    int64_t reply = 0;
    count--;
    bool known = call->reply_len >= 3 && str_int64(str_n(call->reply, 3), &reply);
    bool refused = known && reply >= 400 && code != CURLE_OPERATION_TIMEDOUT && code != CURLE_USE_SSL_FAILED;
    if (code == CURLE_OK || refused) {
        struct smtp_answer answer = {.code = (int)reply,
                                     .command = call->command,
                                     .reply = str_n(call->reply, call->reply_len),
                                     .accepted = code == CURLE_OK};
        call->done(call->data, &answer, NULL);
    } else {
        explain(code, call, &err);
        call->done(call->data, NULL, &err);
    }
    call_free(call);
}

/* ---- its beginning ---- */

bool smtp_address_ok(struct str address) {
    size_t ats = 0;
    if (address.len < 3 || address.len > MAX_ADDRESS || address.at[0] == '@' || address.at[address.len - 1] == '@')
        return false;
    for (size_t i = 0; i < address.len; i++) {
        unsigned char c = (unsigned char)address.at[i];
        if (c <= ' ' || c == 127 || strchr("<>()[],;:\\\"", c)) return false;
        ats += c == '@';
    }
    return ats == 1;
}

static bool host_ok(struct str s) {
    if (s.len == 0 || s.len > 255) return false;
    for (size_t i = 0; i < s.len; i++) {
        char c = s.at[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!plain && !(c && strchr(".-_:[]", c))) return false;
    }
    return true;
}

static bool set_text(CURL *e, CURLoption option, struct str s) {
    struct buf text = {0};
    bool ok = buf_add(&text, s) && buf_byte(&text, 0) && curl_easy_setopt(e, option, text.data) == CURLE_OK;
    buf_free(&text);
    return ok;
}

static bool set_place(CURL *e, const struct smtp_ask *ask) {
    bool v6 = ask->host.at[0] != '[' && memchr(ask->host.at, ':', ask->host.len) != NULL;
    struct buf url = {0};
    bool ok = buf_printf(&url, "%s://%s%.*s%s:%u/%.*s", ask->tls == SMTP_TLS_IMPLICIT ? "smtps" : "smtp", v6 ? "[" : "",
                         STR_FMT(ask->host), v6 ? "]" : "", ask->port, STR_FMT(ask->helo)) &&
              buf_byte(&url, 0) && curl_easy_setopt(e, CURLOPT_URL, url.data) == CURLE_OK;
    buf_free(&url);
    long ssl = ask->tls == SMTP_TLS_TRY        ? (long)CURLUSESSL_TRY
               : ask->tls == SMTP_TLS_REQUIRED ? (long)CURLUSESSL_ALL
                                               : (long)CURLUSESSL_NONE;
    ok = ok && curl_easy_setopt(e, CURLOPT_USE_SSL, ssl) == CURLE_OK;
    if (ok && ask->ca_file.len) ok = set_text(e, CURLOPT_CAINFO, ask->ca_file);
    if (ok && ask->user.len) ok = set_text(e, CURLOPT_USERNAME, ask->user) && set_text(e, CURLOPT_PASSWORD, ask->pass);
    return ok;
}

static bool set_message(struct smtp_call *call, const struct smtp_ask *ask) {
    CURL *e = call->transfer.easy;
    struct buf to = {0};
    if (buf_add(&to, ask->to) && buf_byte(&to, 0)) call->to = curl_slist_append(NULL, to.data);
    buf_free(&to);
    return call->to && buf_add(&call->message, ask->message) && set_text(e, CURLOPT_MAIL_FROM, ask->from) &&
           curl_easy_setopt(e, CURLOPT_MAIL_RCPT, call->to) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_UPLOAD, 1L) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_INFILESIZE_LARGE, (curl_off_t)ask->message.len) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_READFUNCTION, on_read) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_READDATA, call) == CURLE_OK;
}

static bool set_rest(struct smtp_call *call, const struct smtp_ask *ask) {
    CURL *e = call->transfer.easy;
    long timeout = ask->timeout_ms ? (long)ask->timeout_ms : 30000;
    return curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_TIMEOUT_MS, timeout) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_CONNECTTIMEOUT_MS, timeout < CONNECT_MS ? timeout : CONNECT_MS) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_MAXAGE_CONN, (long)IDLE_S) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, "smtp,smtps") == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_PROXY, "") == CURLE_OK && curl_easy_setopt(e, CURLOPT_VERBOSE, 1L) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_DEBUGFUNCTION, on_trace) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_DEBUGDATA, call) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_HEADERFUNCTION, on_reply) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_HEADERDATA, call) == CURLE_OK;
}

static bool check(const struct smtp_ask *ask, struct error *err) {
    if (!host_ok(ask->host) || (ask->helo.len && !host_ok(ask->helo)))
        return error_set(err, ERR_INVALID, "not the name of a mail server");
    if (!smtp_address_ok(ask->from) || !smtp_address_ok(ask->to))
        return error_set(err, ERR_INVALID, "not a mail address");
    if (ask->message.len > MAX_MESSAGE) return error_set(err, ERR_LIMIT, "a mail has at most %d bytes", MAX_MESSAGE);
    if (count >= MAX_CALLS) return error_set(err, ERR_BUSY, "%zu mails are on their way", count);
    return true;
}

struct smtp_call *smtp_send(const struct smtp_ask *ask, smtp_done *done, void *data, struct error *err) {
    if (!check(ask, err)) return NULL;
    struct smtp_call *call = calloc(1, sizeof *call);
    if (call) call->transfer.easy = curl_easy_init();
    if (!call || !call->transfer.easy) {
        free(call);
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    call->done = done;
    call->data = data;
    call->command = "";
    call->transfer.ended = ended;
    bool ok = set_place(call->transfer.easy, ask) && set_message(call, ask) && set_rest(call, ask);
    if (!ok) error_set(err, ERR_MEMORY, "out of memory");
    if (!ok || !transfer_start(&call->transfer, &pool, err)) {
        call_free(call);
        return NULL;
    }
    count++;
    return call;
}

void smtp_cancel(struct smtp_call *call) {
    transfer_cancel(&call->transfer);
    count--;
    call_free(call);
}

void smtp_close(void) {
    transfer_pool_close(&pool);
}
