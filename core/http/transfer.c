/* libcurl says which sockets to watch (on_socket) and when it wants to be called again (on_timer); we say what happened
 * (curl_multi_socket_action) and then collect what has ended. It must not be called from inside its own callbacks, so
 * `ended` runs only from collect(), and transfers that `ended` starts are safe. */
#include "http/transfer.h"

#include <stdlib.h>

#include "runtime/loop.h"

struct watch {
    uv_poll_t poll;
    struct transfer_pool *pool;
    curl_socket_t fd;
};

static void collect(struct transfer_pool *pool) {
    CURLMsg *message;
    int left;
    while (pool->multi && (message = curl_multi_info_read(pool->multi, &left))) {
        if (message->msg != CURLMSG_DONE) continue;
        CURLcode code = message->data.result;
        struct transfer *transfer = NULL;
        CURLcode got = curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer);
        CURLMcode removed = curl_multi_remove_handle(pool->multi, message->easy_handle);
        (void)got, (void)removed; /* the handle is ours and was added */
        transfer->ended(transfer, code);
    }
}

static void act(struct transfer_pool *pool, curl_socket_t fd, int what) {
    int running;
    CURLMcode done = curl_multi_socket_action(pool->multi, fd, what, &running);
    (void)done; /* failures show as ended requests */
    collect(pool);
}

static void on_poll(uv_poll_t *poll, int status, int events) {
    const struct watch *w = poll->data;
    int what = status < 0 ? CURL_CSELECT_ERR : 0;
    if (events & UV_READABLE) what |= CURL_CSELECT_IN;
    if (events & UV_WRITABLE) what |= CURL_CSELECT_OUT;
    act(w->pool, w->fd, what);
}

static void on_uv_timer(uv_timer_t *timer) {
    act(timer->data, CURL_SOCKET_TIMEOUT, 0);
}

static void on_watch_closed(uv_handle_t *handle) {
    free(handle->data);
}

static int on_socket(CURL *easy, curl_socket_t fd, int what, void *data, void *socket_data) {
    (void)easy;
    struct transfer_pool *pool = data;
    struct watch *w = socket_data;
    if (what == CURL_POLL_REMOVE) {
        if (!w) return 0;
        uv_close((uv_handle_t *)&w->poll, on_watch_closed);
        return curl_multi_assign(pool->multi, fd, NULL) == CURLM_OK ? 0 : -1;
    }
    if (!w) {
        w = calloc(1, sizeof *w);
        if (!w) return -1;
        if (uv_poll_init_socket(loop_get(), &w->poll, fd) != 0) {
            free(w);
            return -1;
        }
        w->fd = fd;
        w->pool = pool;
        w->poll.data = w;
        if (curl_multi_assign(pool->multi, fd, w) != CURLM_OK) {
            uv_close((uv_handle_t *)&w->poll, on_watch_closed);
            return -1;
        }
    }
    int events = (what & CURL_POLL_IN ? UV_READABLE : 0) | (what & CURL_POLL_OUT ? UV_WRITABLE : 0);
    return uv_poll_start(&w->poll, events, on_poll) == 0 ? 0 : -1;
}

static int on_timer(CURLM *multi, long wait_ms, void *data) {
    (void)multi;
    struct transfer_pool *pool = data;
    if (wait_ms < 0) return uv_timer_stop(&pool->timer) == 0 ? 0 : -1;
    return uv_timer_start(&pool->timer, on_uv_timer, (uint64_t)wait_ms, 0) == 0 ? 0 : -1;
}

static bool open_pool(struct transfer_pool *pool, struct error *err) {
    static bool global;
    if (pool->multi) return true;
    if (!global && curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        return error_set(err, ERR_INTERNAL, "libcurl does not start");
    global = true;
    CURLM *m = curl_multi_init();
    if (!m) return error_set(err, ERR_MEMORY, "out of memory");
    if (curl_multi_setopt(m, CURLMOPT_SOCKETFUNCTION, on_socket) != CURLM_OK ||
        curl_multi_setopt(m, CURLMOPT_SOCKETDATA, pool) != CURLM_OK ||
        curl_multi_setopt(m, CURLMOPT_TIMERFUNCTION, on_timer) != CURLM_OK ||
        curl_multi_setopt(m, CURLMOPT_TIMERDATA, pool) != CURLM_OK ||
        curl_multi_setopt(m, CURLMOPT_MAXCONNECTS, pool->idle) != CURLM_OK ||
        uv_timer_init(loop_get(), &pool->timer) != 0) {
        CURLMcode cleaned = curl_multi_cleanup(m);
        (void)cleaned; /* nothing was added to it */
        return error_set(err, ERR_INTERNAL, "libcurl does not start");
    }
    pool->timer.data = pool;
    pool->multi = m;
    return true;
}

bool transfer_start(struct transfer *transfer, struct transfer_pool *pool, struct error *err) {
    if (!open_pool(pool, err)) return false;
    transfer->pool = pool;
    /* A name is looked up in a thread. Without QUICK_EXIT a transfer that ends before its look-up does, by its time
     * limit or by a cancel, waits for that thread: a name server that is silent would hold up the loop. */
    if (curl_easy_setopt(transfer->easy, CURLOPT_PRIVATE, transfer) != CURLE_OK ||
        curl_easy_setopt(transfer->easy, CURLOPT_QUICK_EXIT, 1L) != CURLE_OK ||
        curl_multi_add_handle(pool->multi, transfer->easy) != CURLM_OK)
        return error_set(err, ERR_MEMORY, "out of memory");
    return true;
}

void transfer_cancel(struct transfer *transfer) {
    CURLMcode removed = curl_multi_remove_handle(transfer->pool->multi, transfer->easy);
    (void)removed; /* it was added */
}

void transfer_pool_close(struct transfer_pool *pool) {
    if (!pool->multi) return;
    CURLMcode cleaned = curl_multi_cleanup(pool->multi); /* closes idle connections, which removes their watches */
    (void)cleaned;                                       /* fails only on a bad handle */
    pool->multi = NULL;
    uv_close((uv_handle_t *)&pool->timer, NULL);
}
