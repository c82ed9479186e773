/* libcurl speaks the dialogue; what it does not tell is which command a refusal answered, and that decides what a
 * refusal means (an unknown addressee is not a wrong password). So its trace is read: commands go by as
 * CURLINFO_HEADER_OUT, of which only the verb is looked at, and replies as header lines.
 *
 * Not on libcurl's multi interface, as HTTP is: behind the message's last line its SMTP waits for the server's word
 * where it stands, and a server that looks a mail through first would stop the loop. So threads take mails from a list,
 * each with a handle whose connection it keeps, and hand the finished ones back through another list and a uv_async. A
 * thread is started when a mail finds none idle. `lock` guards what both sides touch; a call belongs to the loop before
 * it is listed and after it is handed back, to one thread between; `done` and `data` stay the loop's, so that
 * cancelling needs no wait. */
#include "http/smtp.h"

#include <curl/curl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <uv.h>

#include "runtime/buf.h"
#include "runtime/loop.h"

enum {
    MAX_CALLS = 64,
    THREADS = 4, /* so many connections to the mail server at once; further mails wait for one */
    MAX_MESSAGE = 25 * 1024 * 1024,
    MAX_REPLY = 500,
    MAX_ADDRESS = 320,
    CONNECT_MS = 10000,
    IDLE_S = 60, /* a kept connection older than this is not used again: servers hang up on idle clients */
};

struct smtp_call {
    struct smtp_call *next;
    smtp_done *done; /* NULL: nobody wants the answer */
    void *data;
    atomic_bool stop;                                       /* the dialogue is to be broken off */
    struct buf url, ca_file, user, pass, from, to, message; /* texts end in NUL, but the message */
    long ssl;
    long timeout_ms;

    size_t sent; /* of the message */
    const char *command;
    bool over; /* QUIT was said */
    char reply[MAX_REPLY];
    size_t reply_len;
    struct smtp_answer answer;
    struct error err; /* kind ERR_NONE: there is an answer */
};

struct list {
    struct smtp_call *head, **tail;
};

static uv_async_t async;
static uv_thread_t threads[THREADS];
static unsigned started;
static bool opened;
static size_t count; /* calls whose end nobody was told yet; the loop's */

static uv_mutex_t lock; /* guards what follows */
static uv_cond_t work;  /* something waits, or stopping */
static struct list waiting, finished;
static unsigned idle;
static bool stopping;

static void push(struct list *l, struct smtp_call *call) {
    call->next = NULL;
    *l->tail = call;
    l->tail = &call->next;
}

static struct smtp_call *pop(struct list *l) {
    struct smtp_call *call = l->head;
    if (!call) return NULL;
    l->head = call->next;
    if (!l->head) l->tail = &l->head;
    return call;
}

static void call_free(struct smtp_call *call) {
    struct buf *all[] = {&call->url,  &call->ca_file, &call->user,    &call->pass,
                         &call->from, &call->to,      &call->message, NULL};
    for (struct buf **b = all; *b; b++) buf_free(*b);
    free(call);
}

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

/* Also called while nothing arrives, about once a second. */
static int on_progress(void *data, curl_off_t down_all, curl_off_t down, curl_off_t up_all, curl_off_t up) {
    struct smtp_call *call = data;
    (void)down_all, (void)down, (void)up_all, (void)up;
    return atomic_load(&call->stop);
}

/* ---- one dialogue, in a thread ---- */

static bool fail(CURLcode code, struct smtp_call *call) {
    if (code == CURLE_OPERATION_TIMEDOUT)
        return error_set(&call->err, ERR_TIMEOUT, "no answer of the mail server in time, after %s",
                         *call->command ? call->command : "connecting");
    if (code == CURLE_OUT_OF_MEMORY) return error_set(&call->err, ERR_MEMORY, "out of memory");
    if (code == CURLE_USE_SSL_FAILED) return error_set(&call->err, ERR_UNAVAILABLE, "the mail server offers no TLS");
    if (code == CURLE_ABORTED_BY_CALLBACK) return error_set(&call->err, ERR_CANCELLED, "the mail was called back");
    return error_set(&call->err, ERR_UNAVAILABLE, "mail server: %s", curl_easy_strerror(code));
}

static bool set_place(CURL *e, const struct smtp_call *call) {
    return curl_easy_setopt(e, CURLOPT_URL, call->url.data) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_USE_SSL, call->ssl) == CURLE_OK &&
           (!call->ca_file.data || curl_easy_setopt(e, CURLOPT_CAINFO, call->ca_file.data) == CURLE_OK) &&
           (!call->user.data || (curl_easy_setopt(e, CURLOPT_USERNAME, call->user.data) == CURLE_OK &&
                                 curl_easy_setopt(e, CURLOPT_PASSWORD, call->pass.data) == CURLE_OK)) &&
           curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, "smtp,smtps") == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_PROXY, "") == CURLE_OK;
}

static bool set_limits(CURL *e, const struct smtp_call *call) {
    long connect = call->timeout_ms < CONNECT_MS ? call->timeout_ms : CONNECT_MS;
    return curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_TIMEOUT_MS, call->timeout_ms) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_CONNECTTIMEOUT_MS, connect) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_SERVER_RESPONSE_TIMEOUT, (call->timeout_ms + 999) / 1000) ==
               CURLE_OK && /* also of a QUIT */
           curl_easy_setopt(e, CURLOPT_MAXAGE_CONN, (long)IDLE_S) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_NOPROGRESS, 0L) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_XFERINFOFUNCTION, on_progress) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_XFERINFODATA, call) == CURLE_OK;
}

static bool set_message(CURL *e, struct smtp_call *call, struct curl_slist *to) {
    return curl_easy_setopt(e, CURLOPT_MAIL_FROM, call->from.data) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_MAIL_RCPT, to) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_UPLOAD, 1L) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_READFUNCTION, on_read) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_READDATA, call) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_VERBOSE, 1L) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_DEBUGFUNCTION, on_trace) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_DEBUGDATA, call) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_HEADERFUNCTION, on_reply) == CURLE_OK &&
           curl_easy_setopt(e, CURLOPT_HEADERDATA, call) == CURLE_OK;
}

/* Fills the call's answer or its error. */
static bool speak(CURL *e, struct smtp_call *call) {
    struct curl_slist *to = curl_slist_append(NULL, call->to.data);
    bool ready = e && to && set_place(e, call) && set_limits(e, call) && set_message(e, call, to);
    CURLcode code = ready ? curl_easy_perform(e) : CURLE_OUT_OF_MEMORY;
    if (e) curl_easy_reset(e); /* its connection is kept; what it points at is not */
    curl_slist_free_all(to);
    int64_t reply = 0;
    bool known = call->reply_len >= 3 && str_int64(str_n(call->reply, 3), &reply);
    bool refused = known && reply >= 400 && code != CURLE_OPERATION_TIMEDOUT && code != CURLE_USE_SSL_FAILED &&
                   code != CURLE_ABORTED_BY_CALLBACK;
    if (code != CURLE_OK && !refused) return fail(code, call);
    call->answer = (struct smtp_answer){.code = (int)reply,
                                        .command = call->command,
                                        .reply = str_n(call->reply, call->reply_len),
                                        .accepted = code == CURLE_OK};
    return true;
}

static void thread_main(void *data) {
    CURL *easy = curl_easy_init();
    (void)data;
    uv_mutex_lock(&lock);
    for (;;) {
        struct smtp_call *call;
        while (!(call = pop(&waiting)) && !stopping) {
            idle++;
            uv_cond_wait(&work, &lock);
            idle--;
        }
        if (!call) break;
        uv_mutex_unlock(&lock);
        bool spoke = atomic_load(&call->stop) ? fail(CURLE_ABORTED_BY_CALLBACK, call) : speak(easy, call);
        (void)spoke; /* the call says which */
        uv_mutex_lock(&lock);
        push(&finished, call);
        int sent = uv_async_send(&async);
        (void)sent; /* fails only on a bad handle */
    }
    uv_mutex_unlock(&lock);
    if (easy) curl_easy_cleanup(easy);
}

/* ---- the loop's side ---- */

/* The loop goes on while somebody waits for an answer, and for no other reason. */
static void count_down(void) {
    if (--count == 0) uv_unref((uv_handle_t *)&async);
}

static void on_async(uv_async_t *handle) {
    (void)handle;
    for (;;) {
        if (!opened) return;
        uv_mutex_lock(&lock);
        struct smtp_call *call = pop(&finished);
        uv_mutex_unlock(&lock);
        if (!call) return;
        if (call->done) {
            count_down();
            bool ok = call->err.kind == ERR_NONE;
            call->done(call->data, ok ? &call->answer : NULL, ok ? NULL : &call->err);
        }
        call_free(call);
    }
}

/* The way back to the loop is opened once and stays: it holds nothing but its place. */
static bool open_threads(struct error *err) {
    static bool ready;
    if (opened) return true;
    if (!ready) {
        if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK || uv_mutex_init(&lock) != 0 ||
            uv_cond_init(&work) != 0 || uv_async_init(loop_get(), &async, on_async) != 0)
            return error_set(err, ERR_INTERNAL, "mail cannot start");
        uv_unref((uv_handle_t *)&async);
        ready = true;
    }
    waiting = (struct list){.tail = &waiting.head};
    finished = (struct list){.tail = &finished.head};
    stopping = false;
    opened = true;
    return true;
}

static void drop_all(struct list *l) {
    struct smtp_call *call;
    while ((call = pop(l))) {
        if (call->done) count_down();
        call_free(call);
    }
}

void smtp_close(void) {
    if (!opened) return;
    uv_mutex_lock(&lock);
    stopping = true;
    drop_all(&waiting);
    uv_cond_broadcast(&work);
    uv_mutex_unlock(&lock);
    for (unsigned i = 0; i < started; i++) {
        int joined = uv_thread_join(&threads[i]);
        (void)joined; /* it was started */
    }
    started = 0;
    drop_all(&finished);
    opened = false;
}

/* ---- the beginning ---- */

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

static bool keep_text(struct buf *b, struct str s) {
    return s.len == 0 || (buf_add(b, s) && buf_byte(b, 0));
}

static bool keep_ask(struct smtp_call *call, const struct smtp_ask *ask) {
    bool v6 = ask->host.at[0] != '[' && memchr(ask->host.at, ':', ask->host.len) != NULL;
    call->timeout_ms = ask->timeout_ms ? (long)ask->timeout_ms : 30000;
    call->ssl = ask->tls == SMTP_TLS_TRY        ? (long)CURLUSESSL_TRY
                : ask->tls == SMTP_TLS_REQUIRED ? (long)CURLUSESSL_ALL
                                                : (long)CURLUSESSL_NONE;
    return buf_printf(&call->url, "%s://%s%.*s%s:%u/%.*s", ask->tls == SMTP_TLS_IMPLICIT ? "smtps" : "smtp",
                      v6 ? "[" : "", STR_FMT(ask->host), v6 ? "]" : "", ask->port, STR_FMT(ask->helo)) &&
           buf_byte(&call->url, 0) && keep_text(&call->ca_file, ask->ca_file) && keep_text(&call->user, ask->user) &&
           (!ask->user.len || (buf_add(&call->pass, ask->pass) && buf_byte(&call->pass, 0))) &&
           keep_text(&call->from, ask->from) && keep_text(&call->to, ask->to) && buf_add(&call->message, ask->message);
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
    if (!check(ask, err) || !open_threads(err)) return NULL;
    struct smtp_call *call = calloc(1, sizeof *call);
    if (!call || !keep_ask(call, ask)) {
        if (call) call_free(call);
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    call->done = done;
    call->data = data;
    call->command = "";
    atomic_init(&call->stop, false);
    uv_mutex_lock(&lock);
    bool more = idle == 0 && started < THREADS;
    push(&waiting, call);
    uv_cond_signal(&work);
    uv_mutex_unlock(&lock);
    if (more && uv_thread_create(&threads[started], thread_main, NULL) == 0) started++;
    if (started == 0) { /* no thread at all: nobody will ever take it */
        uv_mutex_lock(&lock);
        struct smtp_call *back = pop(&waiting);
        uv_mutex_unlock(&lock);
        call_free(back);
        error_set(err, ERR_MEMORY, "no thread for mail");
        return NULL;
    }
    if (count++ == 0) uv_ref((uv_handle_t *)&async);
    return call;
}

/* True: it was in the list of those that wait, and is no more. */
static bool take_back(struct smtp_call *call) {
    uv_mutex_lock(&lock);
    struct smtp_call **at = &waiting.head;
    while (*at && *at != call) at = &(*at)->next;
    struct smtp_call *found = *at;
    if (found) {
        *at = found->next;
        if (!found->next) waiting.tail = at;
    }
    uv_mutex_unlock(&lock);
    return found != NULL;
}

void smtp_cancel(struct smtp_call *call) {
    count_down();
    /* What no thread has begun is forgotten with its message: it counts no more, so nothing else would bound the list
     * while all threads wait for a server that is silent. */
    if (take_back(call)) {
        call_free(call);
        return;
    }
    call->done = NULL;
    atomic_store(&call->stop, true);
}
