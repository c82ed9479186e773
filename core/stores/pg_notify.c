/* NOTIFY takes a lock of the whole server at commit, so it never rides in a transaction of the business: what a turn
 * asks for is gathered and sent at most once in 20 ms a channel, on a connection of its own that is opened when it is
 * needed. It only spares the listener the wait for its next poll: while the server is away nothing is kept but the fact
 * that it was asked for. */
#include "stores/pg_notify.h"

#include <stdlib.h>

#include "runtime/loop.h"
#include "stores/pg_conn.h"

#define NOTIFY_MS 20
#define CHANNELS 8

struct pg_notifier {
    const struct pg_settings *settings;
    uv_timer_t timer;
    struct pg_conn *conn;
    bool ready, busy;
    struct channel {
        char name[64];
        bool asked;
    } channels[CHANNELS];
};

static void send_notices(struct pg_notifier *n) {
    if (!n->ready || n->busy) return;
    struct pg_statement list[CHANNELS];
    struct str value[CHANNELS];
    size_t count = 0;
    for (size_t i = 0; i < CHANNELS; i++) {
        if (!n->channels[i].asked) continue;
        n->channels[i].asked = false;
        value[count] = str_of(n->channels[i].name);
        list[count] =
            (struct pg_statement){.sql = STR("select pg_notify($1, '')"), .params = 1, .value = &value[count]};
        count++;
    }
    if (count == 0) return;
    struct pg_batch *b = pg_batch_new(list, count);
    struct error err; /* a connection that broke says so by itself, or is found broken at the next request */
    n->busy = b && pg_conn_send(n->conn, b, PG_PLAIN, "", &err);
    pg_batch_free(b);
}

static void drop(struct pg_notifier *n) {
    pg_conn_close(n->conn);
    n->conn = NULL;
    n->ready = n->busy = false;
}

static void on_ready(void *data, const struct pg_error *err) {
    struct pg_notifier *n = data;
    if (err) {
        drop(n);
        return;
    }
    n->ready = true;
    send_notices(n);
}

static void on_timer(uv_timer_t *timer);

static void soon(struct pg_notifier *n) {
    if (uv_is_active((uv_handle_t *)&n->timer)) return;
    int started = uv_timer_start(&n->timer, on_timer, NOTIFY_MS, 0);
    (void)started; /* an initialised timer that is not closing cannot fail */
}

static void on_done(void *data, PGresult *const *result, size_t count, const struct pg_error *err) {
    struct pg_notifier *n = data;
    (void)result;
    (void)count;
    (void)err;
    n->busy = false;
    if (pg_conn_broken(n->conn)) {
        drop(n);
        return;
    }
    for (size_t i = 0; i < CHANNELS; i++)
        if (n->channels[i].asked) soon(n); /* the timer found it busy */
}

static void on_lost(void *data) {
    drop(data);
}

static void on_timer(uv_timer_t *timer) {
    struct pg_notifier *n = timer->data;
    static const struct pg_conn_events events = {.ready = on_ready, .done = on_done, .lost = on_lost};
    struct error err; /* the pool itself finds out what is wrong */
    if (n->conn && pg_conn_broken(n->conn)) drop(n);
    if (!n->conn) n->conn = pg_conn_new(n->settings, true, &events, n, &err);
    send_notices(n);
}

struct pg_notifier *pg_notifier_new(const struct pg_settings *s) {
    struct pg_notifier *n = calloc(1, sizeof *n);
    if (!n) return NULL;
    n->settings = s;
    n->timer.data = n;
    int made = uv_timer_init(loop_get(), &n->timer);
    (void)made; /* cannot fail */
    uv_unref((uv_handle_t *)&n->timer);
    return n;
}

void pg_notifier_ask(struct pg_notifier *n, struct str channel) {
    if (channel.len == 0 || channel.len >= sizeof n->channels[0].name) return;
    for (size_t i = 0; i < CHANNELS; i++) {
        struct channel *slot = &n->channels[i];
        if (slot->name[0] && !str_eq(str_of(slot->name), channel)) continue;
        memcpy(slot->name, channel.at, channel.len);
        slot->name[channel.len] = '\0';
        slot->asked = true;
        soon(n);
        return;
    }
}

void pg_notifier_look(struct pg_notifier *n) {
    if (n->conn && pg_conn_waits_ms(n->conn) > n->settings->statement_ms)
        pg_conn_fail(n->conn, ERR_TIMEOUT, "the database did not answer in time");
}

static void free_notifier(uv_handle_t *h) {
    free(h->data);
}

void pg_notifier_free(struct pg_notifier *n) {
    if (n->conn) pg_conn_close(n->conn);
    uv_close((uv_handle_t *)&n->timer, free_notifier);
}
