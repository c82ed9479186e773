/* The pool: who waits, who is served by which connection, what shares a transaction.
 *
 * A call waits in one list, in order of arrival. At the end of a loop turn the list is served: the lone reads of one
 * tenant are gathered into one transaction; every other call takes a connection for itself. When no connection is idle
 * and fewer than allowed are open, another is opened.
 *
 * A transaction never takes the last of three connections or more. Its holder may ask for something beside it (what a
 * cache has just forgotten), and as many holders as there are connections would each wait for another's: for good, and
 * everybody else with them. Where it may not begin, those behind it in the list are served.
 *
 * Second tries. Of reads that shared a transaction which failed, those before the failing one have their rows, the
 * failing one has its error, and those after it are run again, each alone. A read whose connection broke (or that
 * shared it with one that took too long), and a call whose prepared plan no longer fits its table, are run again once:
 * nothing of them has happened. Anything else that was under way on a broken connection is answered unavailable; code
 * 08007 says that its COMMIT was on its way.
 *
 * Away: when a connection cannot be made and none stands, all that waits is answered unavailable, later calls are
 * refused at once, and one connection is tried again with growing pauses until the server is back. One that broke under
 * a transaction whose holder has not rolled back yet is kept for the holder, and does not stand. */
#include <stdio.h>
#include <stdlib.h>

#include "runtime/log.h"
#include "runtime/loop.h"
#include "stores/pg_conn.h"
#include "stores/pg_guard.h"
#include "stores/pg_metric.h"
#include "stores/pg_notify.h"
#include "stores/pg_pool.h"

#define SHARE_MAX 32    /* reads in one transaction */
#define LOOK_MAX 256    /* how far into the list those are sought */
#define TICK_MS 50      /* how often waits and answers are looked at */
#define PROBE_MS 50     /* a connection that stood so long, or has sent, shows that the server takes connections */
#define REFUSED_MS 1000 /* pause after a connection that was refused while others stand */
#define BACKOFF_MAX_MS 2000

enum call_kind { CALL_READ, CALL_RUN, CALL_BEGIN };

struct pg_call {
    struct pg_call *next;
    enum call_kind kind;
    char tenant[64];
    struct pg_batch *batch;
    pg_done *done;
    pg_tx_ready *ready;
    void *data;
    uint64_t since_us;
    PGresult *const *own;  /* a read's rows among those of its transaction */
    bool forgotten, again; /* again: it is on its second try, and shares no transaction */
};

struct member {
    struct member *next;
    struct pg_pool *pool;
    struct pg_conn *conn;
    struct pg_call *calls; /* under way: one, or several reads */
    struct pg_tx *tx;      /* leased */
    bool ready, cleaning;
    uint64_t since_us, sent_us; /* when it stood, and when it last sent; 0: never */
};

struct pg_tx {
    struct member *member;
    char tenant[64];
    bool begun, failed, ending;
    struct pg_call *call; /* under way */
};

struct pg_pool {
    struct pg_settings settings;
    char *url;
    struct member *members;
    unsigned open, waiting;
    struct pg_call *first, *last;
    struct loop_hook hook;
    uv_timer_t tick, retry;
    int handles;
    bool down, closing, ever_up;
    unsigned backoff_ms;
    uint64_t open_after_us;       /* no further connection is tried before */
    char why[200];                /* the last reason for being down */
    struct pg_notifier *notifier; /* made at the first NOTIFY */
    struct pg_gauges gauges;
};

static void serve(struct pg_pool *p);
static void open_member(struct pg_pool *p);

static uint64_t now_us(void) {
    return uv_hrtime() / 1000;
}

static void free_call(struct pg_call *c) {
    pg_batch_free(c->batch);
    free(c);
}

/* The answer of a call; frees it. */
static void answer(struct pg_call *c, PGresult *const *result, size_t count, const struct pg_error *err) {
    if (!c->forgotten) {
        if (c->kind == CALL_BEGIN)
            c->ready(c->data, NULL, err);
        else
            c->done(c->data, result, count, err);
    }
    free_call(c);
}

static void answer_all(struct pg_call *list, enum error_kind kind, const char *message) {
    struct pg_error error = {0};
    error_set(&error.base, kind, "%s", message);
    while (list) {
        struct pg_call *next = list->next;
        answer(list, NULL, 0, &error);
        list = next;
    }
}

static void set_down(struct pg_pool *p, bool down) {
    if (p->down != down) {
        p->down = down;
        pg_metric_away(down);
    }
}

static struct pg_call *take_waiting(struct pg_pool *p) {
    struct pg_call *list = p->first;
    p->first = p->last = NULL;
    p->waiting = 0;
    return list;
}

static void serve_later(void *data) {
    serve(data);
}

static void wait_in_line(struct pg_pool *p, struct pg_call *c) {
    c->next = NULL;
    if (p->last)
        p->last->next = c;
    else
        p->first = c;
    p->last = c;
    p->waiting++;
    loop_at_turn_end(&p->hook);
}

/* Runs it once more, before those that came later. */
static void try_once_more(struct pg_pool *p, struct pg_call *c) {
    c->again = true;
    c->next = p->first;
    p->first = c;
    if (!p->last) p->last = c;
    p->waiting++;
    loop_at_turn_end(&p->hook);
}

static void remove_member(struct member *m) {
    struct pg_pool *p = m->pool;
    for (struct member **at = &p->members; *at; at = &(*at)->next)
        if (*at == m) {
            *at = m->next;
            break;
        }
    p->open--;
    pg_conn_close(m->conn);
    free(m);
}

static void went_down(struct pg_pool *p, const char *why) {
    if (!p->down) log_line(LOG_WARN, "postgres pool %s: %s", p->settings.name, why);
    set_down(p, true);
    p->backoff_ms = p->backoff_ms ? p->backoff_ms * 2 : 100;
    if (p->backoff_ms > BACKOFF_MAX_MS) p->backoff_ms = BACKOFF_MAX_MS;
    int n = snprintf(p->why, sizeof p->why, "%.199s", why);
    (void)n; /* cut where it is too long */
    /* Who waits is answered at the end of the turn: this may run inside a call of one of them. */
    loop_at_turn_end(&p->hook);
}

/* Whether there is a connection that may serve, or may come to. */
static bool any_stands(const struct pg_pool *p) {
    for (const struct member *m = p->members; m; m = m->next)
        if (!m->tx || !pg_conn_broken(m->conn)) return true;
    return false;
}

static void try_again(uv_timer_t *timer) {
    struct pg_pool *p = timer->data;
    if (p->down && !any_stands(p)) open_member(p);
}

static void schedule_retry(struct pg_pool *p) {
    if (p->closing || !p->down || any_stands(p)) return;
    int started = uv_timer_start(&p->retry, try_again, p->backoff_ms, 0);
    (void)started; /* an initialised timer that is not closing cannot fail */
}

static void member_ready(void *data, const struct pg_error *err) {
    struct member *m = data;
    struct pg_pool *p = m->pool;
    if (err) {
        char why[200];
        struct error copy = err->base;
        remove_member(m);
        int n = snprintf(why, sizeof why, "%.199s", copy.message);
        (void)n; /* cut where it is too long */
        if (!any_stands(p)) {
            went_down(p, why);
            schedule_retry(p);
        } else {
            /* Those that stand serve on; the server, or a pooler before it, has no more to give. */
            p->open_after_us = now_us() + REFUSED_MS * UINT64_C(1000);
        }
        return;
    }
    m->ready = true;
    m->since_us = now_us();
    if (p->down) log_line(LOG_INFO, "postgres pool %s is back", p->settings.name);
    set_down(p, false);
    p->ever_up = true;
    pg_metric_up();
    p->backoff_ms = 0;
    loop_at_turn_end(&p->hook);
}

static void discard(struct member *m) {
    struct pg_pool *p = m->pool;
    bool useful = m->ready && (m->sent_us || now_us() - m->since_us > PROBE_MS * UINT64_C(1000));
    remove_member(m);
    loop_at_turn_end(&p->hook);
    if (p->closing || any_stands(p)) return;
    /* The first sign that the server is away: a probe finds out, and calls wait for it. */
    if (useful) {
        open_member(p);
    } else {
        went_down(p, "the server closes connections");
        schedule_retry(p);
    }
}

/* The connection is free: cleaned first when it still lies in a transaction. */
static void give_back(struct member *m) {
    m->tx = NULL;
    if (pg_conn_dirty(m->conn)) {
        struct error err;
        static const struct pg_statement rollback = {.sql = {.at = "ROLLBACK", .len = 8}};
        struct pg_batch *b = pg_batch_new(&rollback, 1);
        m->cleaning = true;
        bool sent = b && pg_conn_send(m->conn, b, PG_PLAIN, "", &err);
        pg_batch_free(b);
        if (!sent) discard(m);
        return;
    }
    loop_at_turn_end(&m->pool->hook);
}

/* An answer to a leased connection. The lease outlives a broken connection until its holder rolls back. */
static void tx_done(struct member *m, PGresult *const *result, size_t count, const struct pg_error *err) {
    struct pg_tx *tx = m->tx;
    struct pg_call *call = tx->call;
    tx->call = NULL;
    if (err) tx->failed = true;
    if (tx->ending) {
        /* Committed, failed at the commit, or abandoned: the connection is free before the caller hears, so that it can
         * be used. */
        free(tx);
        m->tx = NULL;
        if (pg_conn_broken(m->conn))
            discard(m);
        else
            give_back(m);
    }
    if (call) answer(call, result, err ? 0 : count, err);
}

/* Whether a call that has no rows is run again. The server keeps answers back until the Sync: of a transaction that
 * took too long nobody knows which read was to blame. */
static bool deserves_another(const struct pg_call *call, size_t index, bool shared, const struct pg_error *err,
                             bool dead) {
    if (!err || call->again || call->forgotten) return false;
    if (pg_error_stale(err)) return true;
    if (call->kind != CALL_READ) return false;
    return dead ? shared || err->base.kind == ERR_UNAVAILABLE : index != err->statement;
}

/* Puts those that are run again back into the line, the earliest first, and returns the others with their results
 * noted. */
static struct pg_call *sort_out(struct pg_pool *p, struct pg_call *list, PGresult *const *result, size_t count,
                                const struct pg_error *err, bool dead) {
    struct pg_call *over = NULL, **end = &over, *again = NULL;
    bool shared = list->next;
    for (size_t i = 0; list; i++) {
        struct pg_call *call = list;
        list = list->next;
        call->next = NULL;
        bool has_rows = call->kind == CALL_READ && i < count;
        if (!has_rows && !p->closing && deserves_another(call, i, shared, err, dead)) {
            call->next = again;
            again = call;
            continue;
        }
        call->own = has_rows ? &result[i] : NULL;
        *end = call;
        end = &call->next;
    }
    while (again) {
        struct pg_call *call = again;
        again = again->next;
        try_once_more(p, call);
    }
    return over;
}

static void member_done(void *data, PGresult *const *result, size_t count, const struct pg_error *err) {
    struct member *m = data;
    struct pg_pool *p = m->pool;
    bool dead = pg_conn_broken(m->conn);
    if (m->cleaning) {
        m->cleaning = false;
        if (dead || pg_conn_dirty(m->conn))
            discard(m);
        else
            loop_at_turn_end(&p->hook);
        return;
    }
    uint64_t took = now_us() - m->sent_us;
    if (m->tx) {
        pg_metric_query(PG_OP_TX, took);
        tx_done(m, result, count, err);
        return;
    }
    pg_metric_query(m->calls->kind == CALL_READ ? PG_OP_READ : PG_OP_RUN, took);
    struct pg_call *list = sort_out(p, m->calls, result, count, err, dead);
    m->calls = NULL;
    /* The connection is free before the callers hear, so that they can use it. */
    if (dead)
        discard(m);
    else
        give_back(m);
    while (list) {
        struct pg_call *call = list;
        list = list->next;
        if (call->own)
            answer(call, call->own, 1, NULL);
        else
            answer(call, result, err ? 0 : count, err);
    }
}

static void member_lost(void *data) {
    struct member *m = data;
    if (m->tx)
        m->tx->failed = true; /* the lease outlives the connection until its holder rolls back */
    else
        discard(m);
}

static void open_member(struct pg_pool *p) {
    static const struct pg_conn_events events = {.ready = member_ready, .done = member_done, .lost = member_lost};
    struct error err = {.message = "out of memory"};
    struct member *m = calloc(1, sizeof *m);
    if (m) {
        m->pool = p;
        m->conn = pg_conn_new(&p->settings, true, &events, m, &err);
    }
    if (!m || !m->conn) {
        free(m);
        p->open_after_us = now_us() + REFUSED_MS * UINT64_C(1000);
        if (!any_stands(p)) {
            went_down(p, err.message);
            schedule_retry(p);
        }
        return;
    }
    m->next = p->members;
    p->members = m;
    p->open++;
}

static struct member *idle_member(struct pg_pool *p) {
    for (struct member *m = p->members; m; m = m->next)
        if (m->ready && !m->calls && !m->tx && !m->cleaning && !pg_conn_broken(m->conn)) return m;
    return NULL;
}

static bool same_tenant(const struct pg_call *a, const struct pg_call *b) {
    return strcmp(a->tenant, b->tenant) == 0;
}

/* Unlinks the first waiting call and, when it is a read, those that may share its transaction. */
static struct pg_call *next_work(struct pg_pool *p) {
    struct pg_call *head = p->first, *tail = head, *before = NULL;
    p->first = head->next;
    p->waiting--;
    size_t found = 1, looked = 0;
    bool shares = head->kind == CALL_READ && !head->again;
    for (struct pg_call *c = p->first; c && shares && found < SHARE_MAX && looked < LOOK_MAX; looked++) {
        struct pg_call *next = c->next;
        if (c->kind == CALL_READ && !c->again && !c->forgotten && same_tenant(c, head)) {
            if (before)
                before->next = next;
            else
                p->first = next;
            if (p->last == c) p->last = before;
            p->waiting--;
            tail->next = c;
            tail = c;
            found++;
        } else {
            before = c;
        }
        c = next;
    }
    if (!p->first) p->last = NULL;
    tail->next = NULL;
    return head;
}

/* The statements of several reads as one batch, without copying them. */
static struct pg_batch *joined(struct pg_call *list) {
    size_t n = 0;
    for (struct pg_call *c = list; c; c = c->next) n++;
    struct pg_batch *b = malloc(sizeof *b + n * sizeof b->sql[0]);
    if (!b) return NULL;
    b->count = n;
    n = 0;
    for (struct pg_call *c = list; c; c = c->next) b->sql[n++] = c->batch->sql[0];
    return b;
}

static bool start(struct member *m, struct pg_call *list) {
    struct error err;
    m->sent_us = now_us();
    for (const struct pg_call *c = list; c; c = c->next) pg_metric_wait(m->sent_us - c->since_us);
    if (list->kind == CALL_BEGIN) {
        struct pg_tx *tx = calloc(1, sizeof *tx);
        if (!tx) return false;
        tx->member = m;
        memcpy(tx->tenant, list->tenant, sizeof tx->tenant);
        m->tx = tx;
        if (list->forgotten)
            pg_tx_rollback(tx);
        else
            list->ready(list->data, tx, NULL);
        free_call(list);
        return true;
    }
    struct pg_batch *b = list->next ? joined(list) : list->batch;
    if (!b) return false;
    /* One statement without a tenant is a transaction by itself: its Sync commits it. */
    int frame = list->tenant[0] || (list->kind == CALL_RUN && b->count > 1) ? PG_BEGIN | PG_COMMIT : PG_PLAIN;
    if (frame && list->kind == CALL_READ) frame |= PG_READ_ONLY;
    m->calls = list;
    bool sent = pg_conn_send(m->conn, b, frame, list->tenant, &err);
    if (list->next) pg_batch_free(b);
    if (!sent) m->calls = NULL;
    return sent;
}

static struct pg_call *unlink_first(struct pg_pool *p) {
    struct pg_call *c = p->first;
    p->first = c->next;
    if (!p->first) p->last = NULL;
    p->waiting--;
    c->next = NULL;
    return c;
}

/* Puts calls back that came before all that wait. */
static void put_first(struct pg_pool *p, struct pg_call *list, struct pg_call *last) {
    for (const struct pg_call *c = list; c; c = c->next) p->waiting++;
    last->next = p->first;
    if (!p->first) p->last = last;
    p->first = list;
}

static bool may_begin(const struct pg_pool *p) {
    if (p->settings.connections < 3) return true;
    unsigned leased = 0;
    for (const struct member *m = p->members; m; m = m->next)
        if (m->tx) leased++;
    return leased + 1 < p->settings.connections;
}

/* Serves what waits, as far as connections go. */
static void serve(struct pg_pool *p) {
    if (p->down) {
        answer_all(take_waiting(p), ERR_UNAVAILABLE, p->why);
        return;
    }
    struct pg_call *held = NULL, *last_held = NULL; /* transactions that wait until another ends */
    while (p->first) {
        if (p->first->forgotten) {
            free_call(unlink_first(p));
            continue;
        }
        if (p->first->kind == CALL_BEGIN && !may_begin(p)) {
            struct pg_call *c = unlink_first(p);
            if (last_held)
                last_held->next = c;
            else
                held = c;
            last_held = c;
            continue;
        }
        struct member *m = idle_member(p);
        if (!m) break;
        struct pg_call *list = next_work(p);
        if (!start(m, list)) {
            discard(m);
            answer_all(list, ERR_UNAVAILABLE, "the connection to the database broke");
        }
    }
    if (held) put_first(p, held, last_held);
    if (p->closing) answer_all(take_waiting(p), ERR_UNAVAILABLE, "the server is stopping");
    if (!p->first || p->closing || (p->open > 0 && now_us() < p->open_after_us)) return;
    unsigned opening = 0;
    for (struct member *m = p->members; m; m = m->next)
        if (!m->ready) opening++;
    while (p->open < p->settings.connections && opening < p->waiting && opening < 2) {
        unsigned before = p->open;
        open_member(p);
        if (p->open == before) return;
        opening++;
    }
}

static void expire_waiting(struct pg_pool *p) {
    uint64_t now = now_us(), most = (uint64_t)p->settings.wait_ms * 1000;
    while (p->first && now - p->first->since_us > most)
        answer_all(unlink_first(p), ERR_UNAVAILABLE, "no connection to the database came free in time");
}

static void on_tick(uv_timer_t *timer) {
    struct pg_pool *p = timer->data;
    pg_metric_pool(&p->gauges, p->open, pg_pool_used(p), p->waiting);
    expire_waiting(p);
    if (p->first) loop_at_turn_end(&p->hook); /* a refused connection may be tried again by now */
    if (p->notifier) pg_notifier_look(p->notifier);
    for (struct member *m = p->members; m; m = m->next) {
        if (pg_conn_waits_ms(m->conn) <= p->settings.statement_ms) continue;
        pg_conn_fail(m->conn, ERR_TIMEOUT, "the database did not answer in time");
        return; /* the list may have changed: the rest at the next tick */
    }
}

struct pg_pool *pg_pool_new(const struct pg_settings *s, struct error *err) {
    char *fault = NULL;
    PQconninfoOption *options = PQconninfoParse(s->url, &fault);
    if (!options) {
        error_set(err, ERR_INVALID, "%.200s", fault ? fault : "out of memory");
        PQfreemem(fault);
        return NULL;
    }
    PQconninfoFree(options);
    struct pg_pool *p = pg_prepare() ? calloc(1, sizeof *p) : NULL;
    if (p) p->url = strdup(s->url);
    if (!p || !p->url) {
        free(p);
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    p->settings = *s;
    p->settings.url = p->url;
    p->gauges = pg_metric_gauges(s->name);
    p->hook = (struct loop_hook){.fn = serve_later, .data = p};
    uv_timer_t *const timers[] = {&p->tick, &p->retry};
    for (size_t i = 0; i < 2; i++) {
        int made = uv_timer_init(loop_get(), timers[i]);
        (void)made; /* cannot fail */
        timers[i]->data = p;
        uv_unref((uv_handle_t *)timers[i]);
        p->handles++;
    }
    int started = uv_timer_start(&p->tick, on_tick, TICK_MS, TICK_MS);
    (void)started;
    return p;
}

static void handle_closed(uv_handle_t *h) {
    struct pg_pool *p = h->data;
    if (--p->handles > 0) return;
    free(p->url);
    free(p);
}

void pg_pool_close(struct pg_pool *p) {
    p->closing = true;
    loop_forget(&p->hook);
    answer_all(take_waiting(p), ERR_UNAVAILABLE, "the server is stopping");
    for (struct member *m = p->members, *next; m; m = next) {
        next = m->next;
        struct pg_call *list = m->calls;
        m->calls = NULL;
        if (m->tx) {
            m->tx->failed = true;
            m->tx->member = NULL;
            if (m->tx->call) {
                struct pg_call *call = m->tx->call;
                m->tx->call = NULL;
                call->next = list;
                list = call;
            }
            if (m->tx->ending) free(m->tx);
        }
        pg_conn_close(m->conn);
        free(m);
        answer_all(list, ERR_UNAVAILABLE, "the server is stopping");
    }
    p->members = NULL;
    p->open = 0;
    set_down(p, false);
    pg_metric_pool(&p->gauges, 0, 0, 0);
    loop_forget(&p->hook); /* an answer may have asked for it again */
    if (p->notifier) pg_notifier_free(p->notifier);
    uv_close((uv_handle_t *)&p->tick, handle_closed);
    uv_close((uv_handle_t *)&p->retry, handle_closed);
}

bool pg_pool_up(const struct pg_pool *p) {
    return p->ever_up && !p->down;
}

unsigned pg_pool_open(const struct pg_pool *p) {
    return p->open;
}

unsigned pg_pool_used(const struct pg_pool *p) {
    unsigned n = 0;
    for (struct member *m = p->members; m; m = m->next)
        if (m->calls || m->tx || m->cleaning) n++;
    return n;
}

const struct pg_settings *pg_pool_settings(const struct pg_pool *p) {
    return &p->settings;
}

struct pg_call *pg_call_new(pg_done *done, void *data) {
    struct pg_call *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    c->kind = CALL_RUN;
    c->done = done;
    c->data = data;
    return c;
}

void pg_call_answer(struct pg_call *c, PGresult *const *result, size_t count, const struct pg_error *err) {
    answer(c, result, count, err);
}

bool pg_call_forgotten(const struct pg_call *c) {
    return c->forgotten;
}

void pg_call_drop(struct pg_call *c) {
    free_call(c);
}

/* Its statements, if a pooled connection may run them. NULL: `err` says why not. */
static struct pg_batch *checked_batch(const struct pg_statement *s, size_t count, struct error *err) {
    struct pg_batch *b = pg_batch_new(s, count);
    if (!b) error_set(err, ERR_MEMORY, "out of memory");
    for (size_t i = 0; b && i < count; i++) {
        if (pg_guard_allows(b->sql[i].text)) continue;
        pg_batch_free(b);
        error_set(err, ERR_INVALID, "a statement that changes the session or its transaction needs a session");
        return NULL;
    }
    return b;
}

static struct pg_call *new_call(struct pg_pool *p, enum call_kind kind, struct str tenant, const struct pg_statement *s,
                                size_t count, struct error *err) {
    if (p->closing) {
        error_set(err, ERR_UNAVAILABLE, "the server is stopping");
        return NULL;
    }
    if (p->down) {
        error_set(err, ERR_UNAVAILABLE, "the database is away");
        return NULL;
    }
    if (p->waiting >= p->settings.queue) {
        error_set(err, ERR_BUSY, "too many calls wait for the database");
        return NULL;
    }
    if (tenant.at && !str_is_tenant_key(tenant)) {
        error_set(err, ERR_INVALID, "not a tenant key");
        return NULL;
    }
    struct pg_batch *batch = count ? checked_batch(s, count, err) : NULL;
    if (count && !batch) return NULL;
    struct pg_call *c = calloc(1, sizeof *c);
    if (!c) {
        pg_batch_free(batch);
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    c->batch = batch;
    c->kind = kind;
    c->since_us = now_us();
    if (tenant.at) memcpy(c->tenant, tenant.at, tenant.len);
    return c;
}

struct pg_call *pg_read(struct pg_pool *p, struct str tenant, const struct pg_statement *s, pg_done *done, void *data,
                        struct error *err) {
    struct pg_call *c = new_call(p, CALL_READ, tenant, s, 1, err);
    if (!c) return NULL;
    c->done = done;
    c->data = data;
    wait_in_line(p, c);
    return c;
}

struct pg_call *pg_run(struct pg_pool *p, struct str tenant, const struct pg_statement *s, size_t count, pg_done *done,
                       void *data, struct error *err) {
    struct pg_call *c = new_call(p, CALL_RUN, tenant, s, count, err);
    if (!c) return NULL;
    c->done = done;
    c->data = data;
    wait_in_line(p, c);
    return c;
}

void pg_forget(struct pg_call *call) {
    call->forgotten = true;
}

struct pg_call *pg_begin(struct pg_pool *p, struct str tenant, pg_tx_ready *ready, void *data, struct error *err) {
    struct pg_call *c = new_call(p, CALL_BEGIN, tenant, NULL, 0, err);
    if (!c) return NULL;
    c->ready = ready;
    c->data = data;
    wait_in_line(p, c);
    return c;
}

struct pg_call *pg_tx_run(struct pg_tx *tx, const struct pg_statement *s, size_t count, bool commit, pg_done *done,
                          void *data, struct error *err) {
    if (!tx->member || pg_conn_broken(tx->member->conn)) {
        error_set(err, ERR_UNAVAILABLE, "the connection to the database broke");
        return NULL;
    }
    if (tx->failed || tx->call) {
        error_set(err, ERR_INVALID,
                  tx->call ? "the transaction has a statement under way" : "the transaction has failed");
        return NULL;
    }
    struct pg_batch *batch = checked_batch(s, count, err);
    if (!batch) return NULL;
    struct pg_call *c = pg_call_new(done, data);
    if (!c) {
        pg_batch_free(batch);
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    c->batch = batch;
    int frame = (tx->begun ? 0 : PG_BEGIN) | (commit ? PG_COMMIT : 0);
    if (!pg_conn_send(tx->member->conn, c->batch, frame, tx->tenant, err)) {
        tx->failed = true;
        free_call(c);
        return NULL;
    }
    tx->member->sent_us = now_us();
    tx->begun = true;
    tx->ending = commit;
    tx->call = c;
    return c;
}

void pg_tx_rollback(struct pg_tx *tx) {
    struct member *m = tx->member;
    if (!m) { /* the pool was closed under it */
        free(tx);
        return;
    }
    if (tx->call) {
        /* Its answer is still to come: then the connection is given back, and the transaction is freed. */
        tx->call->forgotten = true;
        tx->ending = true;
        return;
    }
    m->tx = NULL;
    free(tx);
    if (pg_conn_broken(m->conn)) {
        discard(m);
        return;
    }
    give_back(m);
}

void pg_notify(struct pg_pool *p, struct str channel) {
    if (p->closing) return;
    if (!p->notifier) p->notifier = pg_notifier_new(&p->settings);
    if (p->notifier) pg_notifier_ask(p->notifier, channel);
}
