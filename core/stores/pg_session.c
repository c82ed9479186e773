/* A connection outside the pool, for what belongs to a session: advisory locks, LISTEN, scripts. No pipeline, one call
 * at a time. */
#include <stdlib.h>

#include "runtime/loop.h"
#include "stores/pg_conn.h"
#include "stores/pg_pool.h"

struct pg_session {
    struct pg_conn *conn;
    struct pg_call *call; /* under way */
    pg_session_ready *ready;
    void *data;
    pg_notice *notice;
    void (*lost)(void *data);
    void *hear_data;
    bool dead;
    struct loop_hook closed; /* answers the call that was under way when it was closed */
};

static void on_ready(void *data, const struct pg_error *err) {
    struct pg_session *s = data;
    pg_session_ready *ready = s->ready;
    if (err) {
        struct pg_error copy = *err;
        void *whose = s->data;
        pg_session_close(s);
        ready(whose, NULL, &copy);
        return;
    }
    ready(s->data, s, NULL);
}

static void on_done(void *data, PGresult *const *result, size_t count, const struct pg_error *err) {
    struct pg_session *s = data;
    struct pg_call *call = s->call;
    s->call = NULL;
    bool broke = pg_conn_broken(s->conn);
    if (broke) s->dead = true;
    void (*lost)(void *) = broke ? s->lost : NULL;
    void *hear_data = s->hear_data;
    if (broke) s->lost = NULL;
    if (call) pg_call_answer(call, result, count, err); /* may close the session */
    if (lost) lost(hear_data);
}

static void on_lost(void *data) {
    struct pg_session *s = data;
    s->dead = true;
    void (*lost)(void *) = s->lost;
    s->lost = NULL;
    if (lost) lost(s->hear_data);
}

static void on_notice(void *data, struct str channel, struct str payload) {
    struct pg_session *s = data;
    if (s->notice) s->notice(s->hear_data, channel, payload);
}

bool pg_session_open(struct pg_pool *p, pg_session_ready *ready, void *data, struct error *err) {
    static const struct pg_conn_events events = {
        .ready = on_ready, .done = on_done, .lost = on_lost, .notice = on_notice};
    struct pg_session *s = calloc(1, sizeof *s);
    if (!s) return error_set(err, ERR_MEMORY, "out of memory");
    s->ready = ready;
    s->data = data;
    s->conn = pg_conn_new(pg_pool_settings(p), false, &events, s, err);
    if (s->conn) return true;
    free(s);
    return false;
}

static bool usable(struct pg_session *s, struct error *err) {
    if (s->dead) return error_set(err, ERR_UNAVAILABLE, "the session with the database broke");
    if (s->call) return error_set(err, ERR_INVALID, "the session has a statement under way");
    return true;
}

struct pg_call *pg_session_run(struct pg_session *s, const struct pg_statement *st, pg_done *done, void *data,
                               struct error *err) {
    if (!usable(s, err)) return NULL;
    struct pg_batch *b = pg_batch_new(st, 1);
    struct pg_call *call = b ? pg_call_new(done, data) : NULL;
    if (!call) {
        pg_batch_free(b);
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    s->call = call;
    bool sent = pg_conn_send(s->conn, b, PG_PLAIN, "", err);
    pg_batch_free(b);
    if (sent) return call;
    s->call = NULL;
    s->dead = true;
    pg_call_drop(call);
    return NULL;
}

struct pg_call *pg_session_script(struct pg_session *s, struct str sql, pg_done *done, void *data, struct error *err) {
    if (!usable(s, err)) return NULL;
    char *text = strndup(sql.at, sql.len);
    struct pg_call *call = text ? pg_call_new(done, data) : NULL;
    if (!call) {
        free(text);
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    s->call = call;
    bool sent = pg_conn_script(s->conn, text, err);
    free(text);
    if (sent) return call;
    s->call = NULL;
    s->dead = true;
    pg_call_drop(call);
    return NULL;
}

void pg_session_hear(struct pg_session *s, pg_notice *notice, void (*lost)(void *data), void *data) {
    s->notice = notice;
    s->lost = lost;
    s->hear_data = data;
}

static void closed(void *data) {
    struct pg_session *s = data;
    struct pg_error error = {0};
    error_set(&error.base, ERR_UNAVAILABLE, "the session was closed");
    pg_call_answer(s->call, NULL, 0, &error);
    free(s);
}

void pg_session_close(struct pg_session *s) {
    pg_conn_close(s->conn);
    if (s->call && !pg_call_forgotten(s->call)) {
        /* Its caller is alive and would wait for ever; this runs inside other code, perhaps the collector's. */
        s->closed = (struct loop_hook){.fn = closed, .data = s};
        loop_at_turn_end(&s->closed);
        return;
    }
    if (s->call) pg_call_drop(s->call);
    free(s);
}
