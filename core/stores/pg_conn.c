/* One connection in libpq's pipeline mode.
 *
 * A batch is sent as: [Prepare] BEGIN, SET LOCAL, [Prepare] statement.., COMMIT, Sync. The answers come in the order of
 * what was sent, so a list of expectations (what each message was) is all the state there is. The batch ends with its
 * Sync, never before: a connection is given on only when nothing of the last batch can still arrive. COMMIT counts only
 * when the server answers COMMIT: for a transaction that has failed it says ROLLBACK, without an error.
 *
 * Prepared statements are kept in a small direct-mapped table by hash of the text; a clash deallocates the old one in
 * the same pipeline. A name whose fate is unknown is never used again; when too many of those have gathered, or the
 * server says that a plan no longer fits its table, all are dropped and made anew as they are needed. SET LOCAL carries
 * a literal, so it is never prepared. */
#include "stores/pg_conn.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "runtime/log.h"
#include "runtime/loop.h"
#include "stores/pg_resolve.h"

#define SLOTS 512
#define ORPHANS_MAX 64

enum what { W_PREPARE, W_DROP, W_FRAME, W_STATEMENT, W_COMMIT, W_SYNC };

struct expect {
    enum what what;
    size_t statement;
    uint32_t slot; /* of a prepared statement; SLOTS = none */
};

struct slot {
    char *text; /* what is prepared there, NULL = nothing */
    uint64_t hash;
    uint32_t generation; /* part of the name: a name whose fate is unknown is never used again */
};

struct pg_conn {
    struct pg_conn_events events;
    void *data;
    PGconn *pg;                 /* NULL while the host's name is looked up */
    struct pg_resolve *resolve; /* that look-up */
    const char *url;
    uv_poll_t *poll;  /* a handle of its own memory: it is made anew while the connection is being made */
    uv_timer_t limit; /* of the time for connecting */
    int watching;     /* uv events asked for */
    bool pipeline, prepare, connected, closed, broken;
    uint64_t started_us; /* when the batch under way was sent */
    struct slot *slots;
    size_t orphans; /* prepared statements of the server that no slot knows */
    bool purge;     /* all prepared statements are dropped before the next batch */
    struct expect *expect;
    size_t expects, expect_cap, at;
    PGresult **result;
    size_t results, result_cap;
    bool busy, failed;
    int frame; /* of the batch under way */
    struct pg_error error;
    char name[32];
};

static uint64_t now_us(void) {
    return uv_hrtime() / 1000;
}

struct pg_batch *pg_batch_new(const struct pg_statement *s, size_t count) {
    size_t bytes = sizeof(struct pg_batch) + count * sizeof(struct pg_sql);
    for (size_t i = 0; i < count; i++) {
        bytes += s[i].params * sizeof(char *) + s[i].sql.len + 1;
        for (size_t n = 0; n < s[i].params; n++) bytes += s[i].value[n].at ? s[i].value[n].len + 1 : 0;
    }
    struct pg_batch *b = malloc(bytes);
    if (!b) return NULL;
    b->count = count;
    const char **values = (const char **)(void *)&b->sql[count];
    size_t params = 0;
    for (size_t i = 0; i < count; i++) params += s[i].params;
    char *text = (char *)(values + params);
    for (size_t i = 0; i < count; i++) {
        struct pg_sql *q = &b->sql[i];
        q->text = text;
        memcpy(text, s[i].sql.at, s[i].sql.len);
        text += s[i].sql.len;
        *text++ = '\0';
        q->hash = 1469598103934665603u; /* FNV-1a */
        for (const char *p = q->text; *p; p++) q->hash = (q->hash ^ (unsigned char)*p) * 1099511628211u;
        q->params = (int)s[i].params;
        q->value = values;
        for (size_t n = 0; n < s[i].params; n++) {
            struct str v = s[i].value[n];
            if (!v.at) {
                *values++ = NULL;
                continue;
            }
            *values++ = text;
            memcpy(text, v.at, v.len);
            text += v.len;
            *text++ = '\0';
        }
    }
    return b;
}

void pg_batch_free(struct pg_batch *b) {
    free(b);
}

static void copy_field(char *out, size_t size, const char *from) {
    size_t n = from ? strlen(from) : 0;
    if (n >= size) n = size - 1;
    if (n) memcpy(out, from, n);
    out[n] = '\0';
}

/* The constraint as the migration named it: the quoted name, without the number that a shard adds. */
static void find_constraint(struct pg_error *out, const PGresult *r) {
    const char *name = PQresultErrorField(r, PG_DIAG_CONSTRAINT_NAME);
    if (name && *name) {
        copy_field(out->constraint, sizeof out->constraint, name);
    } else {
        const char *message = PQresultErrorField(r, PG_DIAG_MESSAGE_PRIMARY);
        const char *from = message ? strstr(message, "constraint \"") : NULL;
        const char *to = from ? strchr(from + 12, '"') : NULL;
        if (to) {
            size_t n = (size_t)(to - from - 12);
            if (n >= sizeof out->constraint) n = sizeof out->constraint - 1;
            memcpy(out->constraint, from + 12, n);
            out->constraint[n] = '\0';
        }
    }
    size_t n = strlen(out->constraint), digits = n;
    while (digits > 0 && out->constraint[digits - 1] >= '0' && out->constraint[digits - 1] <= '9') digits--;
    if (digits < n && digits > 1 && out->constraint[digits - 1] == '_') out->constraint[digits - 1] = '\0';
}

/* From a failed result; NULL: the connection broke. */
static void fill_error(struct pg_error *out, const PGresult *r, size_t statement) {
    *out = (struct pg_error){.statement = statement};
    const char *state = r ? PQresultErrorField(r, PG_DIAG_SQLSTATE) : NULL;
    const char *message = r ? PQresultErrorField(r, PG_DIAG_MESSAGE_PRIMARY) : NULL;
    error_set(&out->base, ERR_QUERY, "%s", message ? message : "the server closed the connection");
    if (!state) {
        out->base.kind = ERR_UNAVAILABLE;
        return;
    }
    copy_field(out->base.code, sizeof out->base.code, state);
    /* The server shuts down, runs out of connections or is starting: away, not a refusal of this statement. */
    if (strncmp(state, "57P", 3) == 0 || strncmp(state, "08", 2) == 0 || strcmp(state, "53300") == 0)
        out->base.kind = ERR_UNAVAILABLE;
    if (strcmp(state, "57014") == 0) out->base.kind = ERR_TIMEOUT; /* statement_timeout of the role */
    find_constraint(out, r);
    copy_field(out->table, sizeof out->table, PQresultErrorField(r, PG_DIAG_TABLE_NAME));
    copy_field(out->column, sizeof out->column, PQresultErrorField(r, PG_DIAG_COLUMN_NAME));
    copy_field(out->detail, sizeof out->detail, PQresultErrorField(r, PG_DIAG_MESSAGE_DETAIL));
    const char *position = PQresultErrorField(r, PG_DIAG_STATEMENT_POSITION);
    int64_t at;
    if (position && str_int64(str_of(position), &at) && at > 0 && at < INT_MAX) out->position = (int)at;
}

bool pg_error_stale(const struct pg_error *e) {
    return strcmp(e->base.code, "0A000") == 0 || strcmp(e->base.code, "26000") == 0;
}

static void free_handle(uv_handle_t *h) {
    free(h);
}

static void stop_watching(struct pg_conn *c) {
    if (!c->poll) return;
    uv_close((uv_handle_t *)c->poll, free_handle);
    c->poll = NULL;
    c->watching = 0;
}

static void on_io(uv_poll_t *poll, int status, int events);

/* Watches the socket, which libpq may change while it connects (`fresh`). */
static bool watch(struct pg_conn *c, int events, bool fresh) {
    if (fresh) stop_watching(c);
    if (!c->poll) {
        int fd = PQsocket(c->pg);
        if (fd < 0) return false;
        c->poll = malloc(sizeof *c->poll);
        if (!c->poll) return false;
        if (uv_poll_init(loop_get(), c->poll, fd) != 0) {
            free(c->poll);
            c->poll = NULL;
            return false;
        }
        c->poll->data = c;
    }
    if (c->watching == events) return true;
    c->watching = events;
    return uv_poll_start(c->poll, events, on_io) == 0;
}

static void drop_results(struct pg_conn *c) {
    for (size_t i = 0; i < c->results; i++) PQclear(c->result[i]);
    c->results = 0;
}

/* The batch has ended. The owner may send the next one, or close, from within. */
static void finish(struct pg_conn *c) {
    PGresult **results = c->result;
    size_t count = c->results, cap = c->result_cap;
    bool failed = c->failed;
    struct pg_error error;
    if (failed) error = c->error;
    /* The connection is idle before the owner hears of it, and the results are his until he returns. */
    c->result = NULL;
    c->results = c->result_cap = 0;
    c->busy = false;
    c->expects = c->at = 0;
    c->events.done(c->data, results, count, failed ? &error : NULL);
    for (size_t i = 0; i < count; i++) PQclear(results[i]);
    if (c->result) { /* the next batch has begun a list of its own */
        free(results);
    } else {
        c->result = results; /* the struct outlives its close until the loop's next turn */
        c->result_cap = cap;
    }
}

static void cancel_work(uv_work_t *work) {
    char ignored[64];
    (void)PQcancel(work->data, ignored, sizeof ignored); /* it is a courtesy: the statement may have ended */
}

static void cancel_over(uv_work_t *work, int status) {
    (void)status;
    PQfreeCancel(work->data);
    free(work);
}

/* Asks the server to stop what is under way, which it would otherwise run to its end. libpq waits while it asks, hence
 * the thread. */
static void cancel(struct pg_conn *c) {
    uv_work_t *work = malloc(sizeof *work);
    if (!work) return;
    work->data = PQgetCancel(c->pg);
    if (!work->data || uv_queue_work(loop_get(), work, cancel_work, cancel_over) != 0) {
        PQfreeCancel(work->data);
        free(work);
    }
}

void pg_conn_fail(struct pg_conn *c, enum error_kind kind, const char *message) {
    if (c->broken) return;
    c->broken = true;
    if (kind == ERR_TIMEOUT && c->busy) cancel(c);
    stop_watching(c); /* a socket at its end is readable for ever */
    if (!c->failed) {
        c->failed = true;
        c->error = (struct pg_error){.statement = c->results};
        error_set(&c->error.base, kind, "%s", message);
        /* connection_failure; transaction_resolution_unknown where COMMIT was on its way */
        const char *code = c->busy && (c->frame & PG_COMMIT) ? "08007" : "08006";
        if (kind == ERR_UNAVAILABLE) memcpy(c->error.base.code, code, 6);
    }
    if (!c->connected) {
        struct pg_error error = c->error;
        c->events.ready(c->data, &error);
    } else if (c->busy) {
        finish(c);
    } else {
        c->events.lost(c->data);
    }
}

/* libpq's last word on the connection, in one line. */
static void last_word(const struct pg_conn *c, char *out, size_t size) {
    const char *said = c->pg ? PQerrorMessage(c->pg) : "out of memory\n";
    copy_field(out, size, *said ? said : "the server closed the connection");
    for (char *p = out; *p; p++)
        if (*p == '\n' || *p == '\t') *p = ' ';
    size_t n = strlen(out);
    while (n > 0 && out[n - 1] == ' ') out[--n] = '\0';
}

static void broken(struct pg_conn *c) {
    char message[200];
    last_word(c, message, sizeof message);
    pg_conn_fail(c, ERR_UNAVAILABLE, message);
}

static void connect_step(struct pg_conn *c) {
    switch (PQconnectPoll(c->pg)) {
    case PGRES_POLLING_READING:
        if (!watch(c, UV_READABLE, true)) broken(c);
        return;
    case PGRES_POLLING_WRITING:
        if (!watch(c, UV_WRITABLE, true)) broken(c);
        return;
    case PGRES_POLLING_OK:
        if (PQsetnonblocking(c->pg, 1) != 0 || (c->pipeline && PQenterPipelineMode(c->pg) != 1) ||
            !watch(c, UV_READABLE, true)) {
            broken(c);
            return;
        }
        c->connected = true;
        uv_timer_stop(&c->limit);
        c->events.ready(c->data, NULL);
        return;
    default:
        broken(c);
    }
}

static void on_limit(uv_timer_t *timer) {
    pg_conn_fail(timer->data, ERR_UNAVAILABLE, "the database did not accept the connection in time");
}

static bool keep_result(struct pg_conn *c, PGresult *r) {
    if (c->results == c->result_cap) {
        size_t cap = c->result_cap ? c->result_cap * 2 : 8;
        PGresult **more = realloc(c->result, cap * sizeof(PGresult *));
        if (!more) return false;
        c->result = more;
        c->result_cap = cap;
    }
    c->result[c->results++] = r;
    return true;
}

static bool is_good(ExecStatusType s) {
    return s == PGRES_TUPLES_OK || s == PGRES_COMMAND_OK || s == PGRES_EMPTY_QUERY;
}

static void refuse(struct pg_conn *c, size_t statement, enum error_kind kind, const char *message) {
    if (c->failed) return;
    c->failed = true;
    c->error = (struct pg_error){.statement = statement};
    error_set(&c->error.base, kind, "%s", message);
}

/* What an answer that is no success says about the prepared statements. */
static void note_prepared(struct pg_conn *c, const struct expect *e, bool first_error) {
    if (e->what == W_PREPARE) { /* not prepared after all */
        free(c->slots[e->slot].text);
        c->slots[e->slot].text = NULL;
    } else if (e->what == W_DROP) {
        if (++c->orphans > ORPHANS_MAX) c->purge = true;
    } else if (first_error && e->slot < SLOTS && pg_error_stale(&c->error)) {
        c->purge = true; /* the table has changed, and with it perhaps the plans of others */
    }
}

/* Takes one result of what is expected now. */
static void take(struct pg_conn *c, PGresult *r) {
    const struct expect *e = &c->expect[c->at];
    ExecStatusType status = PQresultStatus(r);
    if (is_good(status)) {
        if (e->what == W_STATEMENT && !c->failed) {
            if (!c->pipeline) drop_results(c); /* of a script only the last counts */
            if (keep_result(c, r)) return;
            refuse(c, e->statement, ERR_MEMORY, "out of memory");
        } else if (e->what == W_COMMIT && strcmp(PQcmdStatus(r), "COMMIT") != 0) {
            refuse(c, e->statement, ERR_INTERNAL, "the transaction was rolled back instead of committed");
        }
    } else {
        bool first = !c->failed && status != PGRES_PIPELINE_ABORTED;
        if (first) {
            c->failed = true;
            fill_error(&c->error, r, e->statement);
        }
        note_prepared(c, e, first);
    }
    PQclear(r);
}

/* Reads what has arrived. */
static void read_results(struct pg_conn *c) {
    if (PQconsumeInput(c->pg) != 1) {
        broken(c);
        return;
    }
    while (c->busy && !PQisBusy(c->pg)) {
        PGresult *r = PQgetResult(c->pg);
        if (!r) {
            c->at++; /* the end of one message's results */
            if (PQstatus(c->pg) == CONNECTION_BAD || c->at > c->expects) {
                broken(c);
                return;
            }
            if (!c->pipeline && c->at >= c->expects) {
                finish(c);
                break;
            }
            continue;
        }
        ExecStatusType status = PQresultStatus(r);
        if (status == PGRES_PIPELINE_SYNC) {
            PQclear(r);
            finish(c);
            return; /* the owner may have closed the connection or sent the next batch, whose answer comes later */
        }
        if (c->at >= c->expects || status == PGRES_COPY_IN || status == PGRES_COPY_OUT || status == PGRES_COPY_BOTH) {
            PQclear(r);
            pg_conn_fail(c, ERR_INVALID, "COPY is not spoken here");
            return;
        }
        take(c, r);
    }
    while (!c->closed && !c->pipeline) {
        PGnotify *n = PQnotifies(c->pg);
        if (!n) break;
        if (c->events.notice) c->events.notice(c->data, str_of(n->relname), str_of(n->extra));
        PQfreemem(n);
    }
    if (!c->busy && !c->closed && PQstatus(c->pg) == CONNECTION_BAD) broken(c);
}

static void flush(struct pg_conn *c) {
    int left = PQflush(c->pg);
    if (left < 0 || !watch(c, left > 0 ? UV_READABLE | UV_WRITABLE : UV_READABLE, false)) broken(c);
}

static void on_io(uv_poll_t *poll, int status, int events) {
    struct pg_conn *c = poll->data;
    if (!c->connected) { /* libpq finds out what went wrong, and says so */
        connect_step(c);
        return;
    }
    if (status < 0) {
        broken(c);
        return;
    }
    if (events & UV_WRITABLE) {
        flush(c);
        if (c->closed || c->broken) return;
    }
    if (events & UV_READABLE) read_results(c);
}

/* NOTICE and WARNING of the server. */
static void on_server_notice(void *data, const PGresult *r) {
    (void)data;
    const char *message = PQresultErrorField(r, PG_DIAG_MESSAGE_PRIMARY);
    if (message) log_line(LOG_DEBUG, "postgres: %s", message);
}

/* Hands over to libpq; `hosts` and `addresses` go before what the URL says, NULL leaves it to the URL. False: the
 * connection will not stand. */
static bool start(struct pg_conn *c, const char *hosts, const char *addresses) {
    /* Only what a transaction pooler lets pass; the limits of time stand on the roles. What precedes the URL are
     * defaults: a peer that vanished without a word is noticed in a minute, not in two hours. */
    const char *const keys[] = {"keepalives_idle", "keepalives_interval",       "keepalives_count", "dbname", "host",
                                "hostaddr",        "fallback_application_name", "client_encoding",  NULL};
    const char *const values[] = {"30", "10", "3", c->url, hosts, addresses, "kasma", "UTF8", NULL};
    c->pg = PQconnectStartParams(keys, values, 1);
    if (c->pg) PQsetNoticeReceiver(c->pg, on_server_notice, NULL);
    return c->pg && PQstatus(c->pg) != CONNECTION_BAD && watch(c, UV_WRITABLE, true);
}

static void on_resolved(void *data, const char *hosts, const char *addresses, const char *why) {
    struct pg_conn *c = data;
    c->resolve = NULL;
    if (c->broken) return; /* its time was up */
    if (why)
        pg_conn_fail(c, ERR_UNAVAILABLE, why);
    else if (!start(c, hosts, addresses))
        broken(c);
}

struct pg_conn *pg_conn_new(const struct pg_settings *s, bool pipeline, const struct pg_conn_events *events, void *data,
                            struct error *err) {
    struct pg_conn *c = calloc(1, sizeof *c);
    if (!c) {
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    c->events = *events;
    c->data = data;
    c->pipeline = pipeline;
    c->prepare = pipeline && s->prepare;
    c->url = s->url;
    char host[256];
    bool by_name = pg_resolve_needed(s->url, host, sizeof host);
    if (by_name) c->resolve = pg_resolve_start(host, on_resolved, c);
    if (by_name ? !c->resolve : !start(c, NULL, NULL)) {
        char message[200];
        last_word(c, message, sizeof message);
        error_set(err, ERR_UNAVAILABLE, "%s", message);
        stop_watching(c);
        if (c->pg) PQfinish(c->pg);
        free(c);
        return NULL;
    }
    uv_timer_init(loop_get(), &c->limit);
    c->limit.data = c;
    uv_timer_start(&c->limit, on_limit, s->connect_ms, 0);
    return c;
}

static void free_conn(uv_handle_t *h) {
    struct pg_conn *c = h->data;
    for (size_t i = 0; c->slots && i < SLOTS; i++) free(c->slots[i].text);
    free(c->slots);
    free(c->expect);
    free(c->result);
    free(c);
}

void pg_conn_close(struct pg_conn *c) {
    if (c->closed) return;
    c->closed = true;
    stop_watching(c);
    drop_results(c);
    if (c->resolve) pg_resolve_cancel(c->resolve);
    c->resolve = NULL;
    PQfinish(c->pg);
    c->pg = NULL;
    /* It may be closed from inside its own event: its memory goes in the loop's next turn. */
    uv_close((uv_handle_t *)&c->limit, free_conn);
}

static bool expect(struct pg_conn *c, enum what what, size_t statement, uint32_t slot) {
    if (c->expects == c->expect_cap) {
        size_t cap = c->expect_cap ? c->expect_cap * 2 : 16;
        struct expect *more = realloc(c->expect, cap * sizeof *more);
        if (!more) return false;
        c->expect = more;
        c->expect_cap = cap;
    }
    c->expect[c->expects++] = (struct expect){.what = what, .statement = statement, .slot = slot};
    return true;
}

static bool send_frame(struct pg_conn *c, enum what what, const char *sql, size_t statement) {
    return PQsendQueryParams(c->pg, sql, 0, NULL, NULL, NULL, NULL, 0) == 1 && expect(c, what, statement, SLOTS);
}

static const char *slot_name(struct pg_conn *c, uint32_t slot) {
    int n = snprintf(c->name, sizeof c->name, "k%u_%u", slot, c->slots[slot].generation);
    return n > 0 ? c->name : "";
}

static bool send_prepared(struct pg_conn *c, const struct pg_sql *q, size_t i) {
    if (!c->slots) {
        c->slots = calloc(SLOTS, sizeof *c->slots);
        if (!c->slots) return false;
    }
    uint32_t at = (uint32_t)(q->hash % SLOTS);
    struct slot *slot = &c->slots[at];
    bool there = slot->text && slot->hash == q->hash && strcmp(slot->text, q->text) == 0;
    if (!there) {
        if (slot->text) {
            char drop[64];
            int n = snprintf(drop, sizeof drop, "DEALLOCATE %s", slot_name(c, at));
            if (n <= 0 || !send_frame(c, W_DROP, drop, i)) return false;
            free(slot->text);
        }
        slot->text = strdup(q->text);
        slot->hash = q->hash;
        slot->generation++;
        if (!slot->text || PQsendPrepare(c->pg, slot_name(c, at), q->text, 0, NULL) != 1 ||
            !expect(c, W_PREPARE, i, at))
            return false;
    }
    return PQsendQueryPrepared(c->pg, slot_name(c, at), q->params, q->value, NULL, NULL, 0) == 1 &&
           expect(c, W_STATEMENT, i, at);
}

static bool send_statement(struct pg_conn *c, const struct pg_sql *q, size_t i) {
    if (c->prepare) return send_prepared(c, q, i);
    return PQsendQueryParams(c->pg, q->text, q->params, NULL, q->value, NULL, NULL, 0) == 1 &&
           expect(c, W_STATEMENT, i, SLOTS);
}

static void begin_batch(struct pg_conn *c, int frame) {
    c->busy = true;
    c->failed = false;
    c->frame = frame;
    c->expects = c->at = 0;
    c->started_us = now_us();
}

/* Names go on counting, so that none of them comes back. */
static bool send_purge(struct pg_conn *c) {
    for (size_t i = 0; c->slots && i < SLOTS; i++) {
        free(c->slots[i].text);
        c->slots[i].text = NULL;
    }
    c->purge = false;
    c->orphans = 0;
    return send_frame(c, W_DROP, "DEALLOCATE ALL", 0);
}

static bool send_all(struct pg_conn *c, const struct pg_batch *b, int frame, const char *tenant) {
    if (c->purge && !send_purge(c)) return false;
    if (frame & PG_BEGIN) {
        if (!send_frame(c, W_FRAME, frame & PG_READ_ONLY ? "BEGIN READ ONLY" : "BEGIN", 0)) return false;
        if (*tenant) {
            char set[128];
            int n = snprintf(set, sizeof set, "SET LOCAL kasma.tenant_key = '%s'", tenant);
            if (n <= 0 || (size_t)n >= sizeof set || !send_frame(c, W_FRAME, set, 0)) return false;
        }
    }
    size_t count = b ? b->count : 0;
    for (size_t i = 0; i < count; i++)
        if (!send_statement(c, &b->sql[i], i)) return false;
    if ((frame & PG_COMMIT) && !send_frame(c, W_COMMIT, "COMMIT", count ? count - 1 : 0)) return false;
    if (!c->pipeline) return true;
    return PQpipelineSync(c->pg) == 1 && expect(c, W_SYNC, 0, SLOTS);
}

static bool go(struct pg_conn *c, bool queued, struct error *err) {
    int left = queued ? PQflush(c->pg) : -1;
    if (left >= 0 && watch(c, left > 0 ? UV_READABLE | UV_WRITABLE : UV_READABLE, false)) return true;
    char message[200];
    last_word(c, message, sizeof message);
    c->busy = false;
    c->broken = true;
    stop_watching(c);
    return error_set(err, ERR_UNAVAILABLE, "%s", message);
}

bool pg_conn_send(struct pg_conn *c, const struct pg_batch *b, int frame, const char *tenant, struct error *err) {
    if (c->broken) return error_set(err, ERR_UNAVAILABLE, "the connection to the database broke");
    begin_batch(c, frame);
    return go(c, send_all(c, b, frame, tenant), err);
}

bool pg_conn_script(struct pg_conn *c, const char *sql, struct error *err) {
    if (c->broken) return error_set(err, ERR_UNAVAILABLE, "the connection to the database broke");
    begin_batch(c, PG_PLAIN);
    return go(c, PQsendQuery(c->pg, sql) == 1 && expect(c, W_STATEMENT, 0, SLOTS), err);
}

bool pg_conn_dirty(const struct pg_conn *c) {
    return PQtransactionStatus(c->pg) != PQTRANS_IDLE;
}

bool pg_conn_broken(const struct pg_conn *c) {
    return c->broken;
}

uint64_t pg_conn_waits_ms(const struct pg_conn *c) {
    return c->busy ? (now_us() - c->started_us) / 1000 : 0;
}

bool pg_prepare(void) {
    /* The only startup parameters beside the encoding that libpq can send and every pooler keeps: times come in UTC and
     * ISO form. */
    static const char *const wanted[][2] = {{"PGTZ", "UTC"}, {"PGDATESTYLE", "ISO"}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        const char *now = getenv(wanted[i][0]);
        if (now && strcmp(now, wanted[i][1]) == 0) continue;
        if (setenv(wanted[i][0], wanted[i][1], 1) != 0) return false;
    }
    return true;
}
