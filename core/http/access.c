/* What the server tells about its requests: one JSON line each when the access log is on, and metrics. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "http/conn.h"
#include "runtime/clock.h"
#include "runtime/log.h"
#include "runtime/metrics.h"

/* Slots of one route, looked up once: a request then only adds to them. */
struct route_metrics {
    uint32_t seconds;
    unsigned count;
    struct {
        int key; /* of method and status */
        uint32_t slot;
    } codes[16]; /* more than that share the last */
};

static struct metric *requests, *seconds, *refused, *connections;
static uint32_t connections_slot, in_flight_slot;

static void open_families(void) {
    if (requests) return;
    requests = metric_counter("kasma_http_requests_total", "Requests answered.", "method,route,code");
    seconds = metric_histogram("kasma_http_request_duration_seconds",
                               "From the end of the head to the end of the answer.", NULL, 0, "route");
    refused =
        metric_counter("kasma_http_refused_total", "Requests and connections refused by the server itself.", "reason");
    connections = metric_gauge("kasma_connections", "Open connections.", METRIC_SUM, "kind");
    connections_slot = metric_series(connections, "http");
    in_flight_slot =
        metric_only(metric_gauge("kasma_http_in_flight", "Requests whose handler is at work.", METRIC_SUM, NULL));
}

static uint32_t code_slot(struct request *r, struct route_metrics *m) {
    unsigned i = 0;
    int key = r->status * 8 + (int)r->method;
    while (i < m->count && m->codes[i].key != key) i++;
    if (i < m->count) return m->codes[i].slot;
    if (m->count == sizeof m->codes / sizeof m->codes[0]) return m->codes[m->count - 1].slot;
    char code[8];
    int n = snprintf(code, sizeof code, "%d", r->status);
    struct str pattern = r->route->pattern.len ? r->route->pattern : STR("unmatched");
    struct str values[] = {http_method_name(r->method), pattern, str_n(code, n > 0 ? (size_t)n : 0)};
    m->codes[m->count].key = key;
    return m->codes[m->count++].slot = metric_lookup(requests, values, 3);
}

static void count(struct request *r, uint64_t us) {
    open_families();
    struct route_metrics *m = r->route->metrics;
    if (!m) {
        m = calloc(1, sizeof *m);
        if (!m) return;
        struct str pattern = r->route->pattern.len ? r->route->pattern : STR("unmatched");
        m->seconds = metric_lookup(seconds, &pattern, 1);
        r->route->metrics = m;
    }
    metric_add(code_slot(r, m), 1);
    metric_observe(seconds, m->seconds, (double)us / 1e6);
}

/* A member of the path that is a token opens what it names to whoever reads it: the route's pattern stands for such a
 * path. Members are named by the declaration (`:token`, `:link_token`). */
static bool holds_token(const struct request *r) {
    static const char word[] = "token";
    const size_t n = sizeof word - 1;
    struct str p = r->route ? r->route->pattern : (struct str){0};
    for (size_t i = 0; i + n <= p.len; i++) {
        if (memcmp(p.at + i, word, n) != 0 || (i + n < p.len && p.at[i + n] != '/')) continue;
        size_t start = i;
        while (start > 0 && p.at[start - 1] != '/') start--;
        if (p.at[start] == ':') return true;
    }
    return false;
}

static void log_request(struct request *r, uint64_t us) {
    struct buf b = buf_take(r->server);
    struct str path = holds_token(r) ? r->route->pattern : r->path.at ? r->path : STR("");
    struct str agent = r->target.at ? request_known(r, HEADER_USER_AGENT) : (struct str){0};
    bool ok = buf_add(&b, STR("\"req\":")) && buf_json_string(&b, request_id(r)) && buf_add(&b, STR(",\"method\":")) &&
              buf_json_string(&b, r->target.at ? request_method_name(r) : STR("")) && buf_add(&b, STR(",\"path\":")) &&
              buf_json_string(&b, path) && buf_add(&b, STR(",\"route\":")) &&
              buf_json_string(&b, r->route ? r->route->pattern : STR("")) && buf_add(&b, STR(",\"remote\":")) &&
              buf_json_string(&b, request_client(r)) && buf_add(&b, STR(",\"agent\":")) &&
              buf_json_string(&b, agent.at ? agent : STR("")) &&
              buf_printf(&b, ",\"status\":%d,\"bytes\":%llu,\"us\":%llu", r->status, (unsigned long long)r->sent,
                         (unsigned long long)us);
    if (ok) log_event(LOG_INFO, STR("request"), buf_str(&b));
    buf_give(r->server, &b);
}

static bool wants_line(const struct request *r) {
    static unsigned seen;
    const struct server_settings *set = &r->server->set;
    if (!set->access_log || r->status >= 400) return set->access_log;
    return set->access_sample > 0 && seen++ % set->access_sample == 0;
}

void access_record(struct request *r) {
    uint64_t us = r->started_us ? clock_mono_us() - r->started_us : 0;
    if (r->route) count(r, us);
    /* The query is left out: it may carry tokens. */
    if (wants_line(r)) log_request(r, us);
}

void access_refused(const char *reason) {
    open_families();
    metric_add(metric_series(refused, reason), 1);
}

void access_in_flight(const struct server *s) {
    open_families();
    metric_set(in_flight_slot, (double)s->in_flight);
}

void access_connections(const struct server *s) {
    open_families();
    metric_set(connections_slot, (double)s->connections);
}
