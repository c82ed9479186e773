#include "stores/redis.h"

#include <stdlib.h>

#include "runtime/log.h"
#include "stores/redis_metric.h"

enum { MAX_CONNECTIONS = 8 };

struct redis {
    struct redis_url url;
    struct redis_conn *conns[MAX_CONNECTIONS];
    size_t count;
    size_t turn; /* index of the connection that gathers in this turn */
    bool said_down;
};

static void on_up(void *data) {
    struct redis *r = data;
    redis_metric_up(true);
    if (r->said_down) log_line(LOG_INFO, "redis is back");
    r->said_down = false;
}

static void on_down(void *data, const struct error *why) {
    struct redis *r = data;
    if (redis_up(r)) return;
    redis_metric_up(false);
    /* Once an outage, not once an attempt. */
    if (!r->said_down) log_line(LOG_WARN, "redis is away: %s", why->message);
    r->said_down = true;
}

struct redis *redis_new(struct str url, const struct redis_options *options, struct error *err) {
    size_t connections = options->connections ? options->connections : 1;
    if (connections > MAX_CONNECTIONS) {
        error_set(err, ERR_INVALID, "at most %d Redis connections", MAX_CONNECTIONS);
        return NULL;
    }
    struct redis *r = calloc(1, sizeof *r);
    if (!r) {
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    if (!redis_url_parse(url, &r->url, err)) {
        free(r);
        return NULL;
    }
    struct redis_conn_options each = {.name = options->name,
                                      .timeout_ms = options->timeout_ms,
                                      .max_in_flight = options->max_in_flight,
                                      .data = r,
                                      .up = on_up,
                                      .down = on_down};
    for (size_t i = 0; i < connections; i++) {
        r->conns[i] = redis_conn_new(&r->url, &each, err);
        if (!r->conns[i]) {
            redis_free(r);
            return NULL;
        }
        r->count++;
    }
    return r;
}

void redis_free(struct redis *r) {
    if (!r) return;
    for (size_t i = 0; i < r->count; i++) redis_conn_close(r->conns[i]);
    free(r);
}

const struct redis_url *redis_where(const struct redis *r) {
    return &r->url;
}

/* The connection that already gathers in this turn, else the ready one with the least in flight. */
static struct redis_conn *choose(struct redis *r) {
    if (r->count == 1 || redis_conn_gathering(r->conns[r->turn])) return r->conns[r->turn];
    size_t best = r->turn;
    for (size_t i = 0; i < r->count; i++) {
        const struct redis_conn *c = r->conns[i], *b = r->conns[best];
        if (redis_conn_up(c) != redis_conn_up(b) ? redis_conn_up(c) : redis_conn_in_flight(c) < redis_conn_in_flight(b))
            best = i;
    }
    r->turn = best;
    return r->conns[best];
}

struct redis_op *redis_call(struct redis *r, const struct str *args, size_t count, redis_done *done, void *data,
                            struct error *err) {
    struct redis_command command = {args, count};
    return redis_conn_send(choose(r), &command, 1, false, 0, done, data, err);
}

struct redis_op *redis_pipeline(struct redis *r, const struct redis_command *commands, size_t count, redis_done *done,
                                void *data, struct error *err) {
    return redis_conn_send(choose(r), commands, count, true, 0, done, data, err);
}

struct redis_op *redis_eval(struct redis *r, const struct redis_script *script, size_t nkeys, const struct str *args,
                            size_t count, redis_done *done, void *data, struct error *err) {
    return redis_conn_eval(choose(r), script, nkeys, args, count, done, data, err);
}

void redis_flush(struct redis *r) {
    for (size_t i = 0; i < r->count; i++) redis_conn_flush(r->conns[i]);
}

bool redis_up(const struct redis *r) {
    for (size_t i = 0; i < r->count; i++) {
        if (redis_conn_up(r->conns[i])) return true;
    }
    return false;
}

const char *redis_why_down(const struct redis *r) {
    return redis_up(r) ? "" : redis_conn_why_down(r->conns[0]);
}
