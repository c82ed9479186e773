/* Threads take calls from a queue, one libmongoc client each at a time, and hand the finished ones back through a list
 * and a uv_async. One more thread, the scout, pings while the server is away. `lock` guards everything both sides
 * touch; an operation belongs to the loop before it is queued and after it is handed back, and to one thread between.
 * Only `done`/`data` of an operation stay the loop's all the time, so that cancelling needs no lock. */
#include "stores/mongo.h"

#include <mongoc/mongoc.h>
#include <stdio.h>
#include <stdlib.h>

#include "runtime/clock.h"
#include "runtime/log.h"
#include "runtime/loop.h"
#include "runtime/metrics.h"
#include "stores/mongo_work.h"

enum { MAX_THREADS = 64, SCOUT_MS = 250 };

struct mongo_op {
    struct mongo_op *next;
    struct mongo_request *request;
    struct mongo_result result;
    struct error err; /* kind ERR_NONE: it succeeded */
    mongo_done *done; /* NULL: nobody wants the answer */
    void *data;
    uint64_t started_us;
};

struct queue {
    struct mongo_op *head, **tail;
    size_t count;
};

struct mongo {
    mongoc_client_pool_t *pool;
    char database[64];
    struct mongo_options opts;
    uv_thread_t threads[MAX_THREADS], scout;
    unsigned started; /* of `threads` */
    bool scouting;    /* `scout` runs */
    uv_async_t async;

    uv_mutex_t lock; /* guards what follows */
    uv_cond_t work;  /* something was queued, or stopping */
    uv_cond_t gone;  /* the server went away, or stopping */
    struct queue waiting, finished;
    bool away, unknown, stopping;
    char why[128];

    bool said_away, known; /* the loop's: what was last logged and put into the metrics */
};

static struct metric *seconds, *store_up;
static uint32_t up_slot;

static void push(struct queue *q, struct mongo_op *op) {
    op->next = NULL;
    *q->tail = op;
    q->tail = &op->next;
    q->count++;
}

static struct mongo_op *pop(struct queue *q) {
    struct mongo_op *op = q->head;
    if (!op) return NULL;
    q->head = op->next;
    if (!q->head) q->tail = &q->head;
    q->count--;
    return op;
}

static void op_free(struct mongo_op *op) {
    mongo_request_free(op->request);
    mongo_result_clear(&op->result);
    free(op);
}

/* ---- the threads ---- */

static void wake_loop(struct mongo *m) {
    int sent = uv_async_send(&m->async);
    (void)sent; /* fails only on a bad handle */
}

/* With `lock` held. */
static void went_away(struct mongo *m, const char *why) {
    int written = snprintf(m->why, sizeof m->why, "%.127s", why);
    (void)written; /* a long reason is cut */
    if (m->away) return;
    m->away = true;
    m->unknown = false;
    uv_cond_signal(&m->gone);
}

static void thread_main(void *data) {
    struct mongo *m = data;
    uv_mutex_lock(&m->lock);
    for (;;) {
        struct mongo_op *op;
        while (!(op = pop(&m->waiting)) && !m->stopping) uv_cond_wait(&m->work, &m->lock);
        if (!op) break;
        bool filled = true;
        if (m->stopping) {
            filled = error_set(&op->err, ERR_CANCELLED, "the process ends");
        } else if (m->away) {
            filled = error_set(&op->err, ERR_UNAVAILABLE, "MongoDB is away: %s", m->why);
        } else if (clock_mono_us() - op->started_us > (uint64_t)m->opts.timeout_ms * 1000) {
            filled = error_set(&op->err, ERR_TIMEOUT, "MongoDB was too busy to begin in time");
        }
        if (filled) {
            uv_mutex_unlock(&m->lock);
            mongoc_client_t *client = mongoc_client_pool_pop(m->pool);
            bool ok = mongo_work(client, m->database, m->opts.timeout_ms, op->request, &op->result, &op->err);
            mongoc_client_pool_push(m->pool, client);
            uv_mutex_lock(&m->lock);
            if (ok) {
                m->unknown = false;
            } else if (op->err.kind == ERR_UNAVAILABLE) {
                went_away(m, op->err.message);
            }
        }
        push(&m->finished, op);
        wake_loop(m);
    }
    uv_mutex_unlock(&m->lock);
}

static void scout_main(void *data) {
    struct mongo *m = data;
    uv_mutex_lock(&m->lock);
    bool first = true;
    while (!m->stopping) {
        if (!m->away && !first) {
            uv_cond_wait(&m->gone, &m->lock);
            continue;
        }
        first = false;
        uv_mutex_unlock(&m->lock);
        mongoc_client_t *client = mongoc_client_pool_pop(m->pool);
        struct error err = {0};
        bool here = mongo_ping(client, m->opts.timeout_ms, &err);
        mongoc_client_pool_push(m->pool, client);
        uv_mutex_lock(&m->lock);
        if (here) {
            m->away = m->unknown = false;
            m->why[0] = 0;
        } else {
            went_away(m, err.message);
        }
        wake_loop(m);
        if (!here && !m->stopping) {
            int waited = uv_cond_timedwait(&m->gone, &m->lock, (uint64_t)SCOUT_MS * 1000000);
            (void)waited; /* woken or timed out: both mean look again */
        }
    }
    uv_mutex_unlock(&m->lock);
}

/* ---- the loop's side ---- */

static void show_state(struct mongo *m, bool away, const char *why) {
    if (m->known && away == m->said_away) return;
    metric_set(up_slot, away ? 0 : 1);
    if (away) log_line(LOG_WARN, "mongodb is away: %s", why);
    if (!away && m->said_away) log_line(LOG_INFO, "mongodb is back");
    m->said_away = away;
    m->known = true;
}

static void on_async(uv_async_t *async) {
    struct mongo *m = async->data;
    char why[sizeof m->why];
    uv_mutex_lock(&m->lock);
    struct mongo_op *op = m->finished.head;
    m->finished = (struct queue){.tail = &m->finished.head};
    bool away = m->away, unknown = m->unknown;
    memcpy(why, m->why, sizeof why);
    uv_mutex_unlock(&m->lock);
    if (!unknown) show_state(m, away, why);
    while (op) {
        struct mongo_op *next = op->next;
        metric_observe(seconds, metric_series(seconds, op->request->op),
                       (double)(clock_mono_us() - op->started_us) / 1e6);
        bool failed = op->err.kind != ERR_NONE;
        if (op->done) op->done(op->data, failed ? NULL : &op->result, failed ? &op->err : NULL);
        op_free(op);
        op = next;
    }
}

struct mongo_op *mongo_call(struct mongo *m, struct mongo_request *request, mongo_done *done, void *data,
                            struct error *err) {
    struct mongo_op *op = calloc(1, sizeof *op);
    if (!op) {
        mongo_request_free(request);
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    op->request = request;
    op->done = done;
    op->data = data;
    op->started_us = clock_mono_us();
    uv_mutex_lock(&m->lock);
    bool taken = true;
    if (m->away) {
        taken = error_set(err, ERR_UNAVAILABLE, "MongoDB is away: %s", m->why);
    } else if (m->waiting.count >= m->opts.queue) {
        taken = error_set(err, ERR_BUSY, "%zu MongoDB calls are waiting", m->waiting.count);
    } else {
        push(&m->waiting, op);
        uv_cond_signal(&m->work);
    }
    uv_mutex_unlock(&m->lock);
    if (taken) return op;
    op_free(op);
    return NULL;
}

void mongo_cancel(struct mongo_op *op) {
    op->done = NULL;
}

bool mongo_up(struct mongo *m) {
    uv_mutex_lock(&m->lock);
    bool up = !m->away;
    uv_mutex_unlock(&m->lock);
    return up;
}

void mongo_why_down(struct mongo *m, char out[128]) {
    uv_mutex_lock(&m->lock);
    memcpy(out, m->away ? m->why : "", m->away ? sizeof m->why : 1);
    uv_mutex_unlock(&m->lock);
}

/* ---- making and ending ---- */

static void default_option(mongoc_uri_t *uri, const char *name, uint32_t value) {
    if (mongoc_uri_has_option(uri, name)) return;
    bool set = mongoc_uri_set_option_as_int32(uri, name, (int32_t)value);
    (void)set; /* the names are libmongoc's own constants */
}

static bool open_pool(struct mongo *m, const char *url, struct error *err) {
    bson_error_t why;
    mongoc_uri_t *uri = mongoc_uri_new_with_error(url, &why);
    if (!uri) return error_set(err, ERR_INVALID, "MongoDB URL: %s", why.message);
    default_option(uri, MONGOC_URI_SERVERSELECTIONTIMEOUTMS, m->opts.select_ms);
    default_option(uri, MONGOC_URI_CONNECTTIMEOUTMS, m->opts.select_ms);
    default_option(uri, MONGOC_URI_SOCKETTIMEOUTMS, m->opts.timeout_ms);
    bool sized = mongoc_uri_set_option_as_int32(uri, MONGOC_URI_MAXPOOLSIZE, (int32_t)m->opts.threads + 1);
    const char *database = mongoc_uri_get_database(uri);
    int len = snprintf(m->database, sizeof m->database, "%s", database && *database ? database : "kasma");
    m->pool =
        sized && len > 0 && (size_t)len < sizeof m->database ? mongoc_client_pool_new_with_error(uri, &why) : NULL;
    bool ok = m->pool && mongoc_client_pool_set_error_api(m->pool, MONGOC_ERROR_API_VERSION_2) &&
              mongoc_client_pool_set_appname(m->pool, "kasma");
    mongoc_uri_destroy(uri);
    return ok ? true : error_set(err, ERR_INVALID, "MongoDB URL: %s", m->pool ? "refused" : why.message);
}

static void on_async_closed(uv_handle_t *handle) {
    struct mongo *m = handle->data;
    uv_mutex_destroy(&m->lock);
    uv_cond_destroy(&m->work);
    uv_cond_destroy(&m->gone);
    if (m->pool) mongoc_client_pool_destroy(m->pool);
    free(m);
}

/* libmongoc writes to stderr, in a form of its own and from any thread, what comes back as errors anyway. It also
 * begins when it is loaded, before main could tell it to be silent, and then complains of a segment in /dev/shm that a
 * killed process with our pid left behind. The default handler is found by its name, and here is one that comes first.
 */
void mongoc_log_default_handler(mongoc_log_level_t level, const char *domain, const char *message, void *data) {
    (void)level;
    (void)domain;
    (void)message;
    (void)data;
}

static void prepare(void) {
    static bool ready;
    if (ready) return;
    ready = true;
    mongoc_init();
    mongoc_log_set_handler(NULL, NULL);
    seconds = metric_histogram("kasma_mongo_seconds", "Time from a MongoDB call to its answer, queue included.", NULL,
                               0, "op");
    store_up = metric_gauge("kasma_store_up", "1 while the store answers.", METRIC_MIN, "store");
    up_slot = metric_series(store_up, "mongo");
}

struct mongo *mongo_new(const char *url, const struct mongo_options *options, struct error *err) {
    prepare();
    struct mongo *m = calloc(1, sizeof *m);
    if (!m) {
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    m->opts = *options;
    if (!m->opts.threads) m->opts.threads = 8;
    if (m->opts.threads > MAX_THREADS) m->opts.threads = MAX_THREADS;
    if (!m->opts.queue) m->opts.queue = 256;
    if (!m->opts.select_ms) m->opts.select_ms = 2000;
    if (!m->opts.timeout_ms) m->opts.timeout_ms = 10000;
    m->unknown = true;
    m->waiting.tail = &m->waiting.head;
    m->finished.tail = &m->finished.head;
    if (!open_pool(m, url, err)) {
        if (m->pool) mongoc_client_pool_destroy(m->pool);
        free(m);
        return NULL;
    }
    if (uv_mutex_init(&m->lock) != 0 || uv_cond_init(&m->work) != 0 || uv_cond_init(&m->gone) != 0 ||
        uv_async_init(loop_get(), &m->async, on_async) != 0) {
        mongoc_client_pool_destroy(m->pool);
        free(m);
        error_set(err, ERR_MEMORY, "the system gives no lock or event for MongoDB's threads");
        return NULL;
    }
    m->async.data = m;
    m->scouting = uv_thread_create(&m->scout, scout_main, m) == 0;
    while (m->scouting && m->started < m->opts.threads &&
           uv_thread_create(&m->threads[m->started], thread_main, m) == 0)
        m->started++;
    if (m->started < m->opts.threads) {
        mongo_free(m);
        error_set(err, ERR_MEMORY, "the system gives no more threads for MongoDB");
        return NULL;
    }
    return m;
}

void mongo_free(struct mongo *m) {
    if (!m) return;
    uv_mutex_lock(&m->lock);
    m->stopping = true;
    uv_cond_broadcast(&m->work);
    uv_cond_broadcast(&m->gone);
    uv_mutex_unlock(&m->lock);
    for (unsigned i = 0; i < m->started; i++) {
        int joined = uv_thread_join(&m->threads[i]);
        (void)joined; /* each was created and is joined once */
    }
    if (m->scouting) {
        int joined = uv_thread_join(&m->scout);
        (void)joined;
    }
    on_async(&m->async);
    uv_close((uv_handle_t *)&m->async, on_async_closed);
}
