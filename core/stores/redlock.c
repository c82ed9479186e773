/* Every command to the N servers is a `struct round`: it sends the same thing to all, counts the answers, tells its
 * owner once when they decide, and frees itself when the last of them has come. So owners may go away at any time, and
 * nothing ever waits for a slow server.
 *
 * A release may be sent while an acquisition is still unanswered: on one connection commands are carried out in order,
 * so it follows the acquisition it undoes. */
#include "stores/redlock.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#include "runtime/loop.h"
#include "runtime/metrics.h"
#include "stores/redis_conn.h"

enum { MAX_NODES = 15, MAX_KEYS = 64, MAX_KEY = 600, VALUE = 32, DAY_MS = 86400000 };

/* ---- the algebra ---- */

size_t redlock_quorum(size_t nodes) {
    return nodes / 2 + 1;
}

int64_t redlock_drift(int64_t ttl_ms) {
    return (ttl_ms + 50) / 100 + 2;
}

int64_t redlock_validity(int64_t ttl_ms, int64_t elapsed_ms) {
    return ttl_ms - elapsed_ms - redlock_drift(ttl_ms);
}

int64_t redlock_delay(int64_t delay_ms, int64_t jitter_ms, uint32_t random) {
    int64_t spread = jitter_ms > 0 ? (int64_t)(random % (uint64_t)(2 * jitter_ms + 1)) - jitter_ms : 0;
    return delay_ms + spread > 0 ? delay_ms + spread : 0;
}

enum redlock_state redlock_decide(size_t nodes, size_t granted, size_t refused, size_t failed) {
    size_t quorum = redlock_quorum(nodes);
    if (granted >= quorum) return REDLOCK_HELD;
    /* Away outranks busy: asking again in a moment would not help. */
    if (failed > nodes - quorum) return REDLOCK_AWAY;
    if (refused + failed > nodes - quorum) return REDLOCK_BUSY;
    return REDLOCK_OPEN;
}

bool redlock_key(struct buf *out, struct str tenant, struct str resource, struct error *err) {
    if (!str_is_tenant_key(tenant)) return error_set(err, ERR_INVALID, "a lock needs the tenant it belongs to");
    if (resource.len == 0 || resource.len > 512)
        return error_set(err, ERR_INVALID, "a lock needs a resource of 1 to 512 bytes");
    for (size_t i = 0; i < resource.len; i++) {
        if ((unsigned char)resource.at[i] < 0x20)
            return error_set(err, ERR_INVALID, "a lock's resource holds a control character");
    }
    if (!buf_add(out, STR("lock:{")) || !buf_add(out, tenant) || !buf_add(out, STR("}:")) || !buf_add(out, resource))
        return error_set(err, ERR_MEMORY, "out of memory");
    return true;
}

/* ---- servers, scripts, names ---- */

struct redlock {
    struct redis_conn *nodes[MAX_NODES];
    size_t count;
};

/* The keys and the value of one lock; several rounds may refer to it. */
struct name {
    size_t refs;
    char value[VALUE + 1];
    size_t count;
    struct str keys[]; /* their bytes follow */
};

/* ARGV[1] the value, ARGV[2] the ttl. */
static const char acquire_text[] = "for i = 1, #KEYS do if redis.call('EXISTS', KEYS[i]) == 1 then return 0 end end\n"
                                   "for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2]) end\n"
                                   "return 1";
static const char extend_text[] = "for i = 1, #KEYS do if redis.call('GET', KEYS[i]) ~= ARGV[1] then return 0 end end\n"
                                  "for i = 1, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[2]) end\n"
                                  "return 1";
static const char release_text[] = "local mine = 0\n"
                                   "for i = 1, #KEYS do if redis.call('GET', KEYS[i]) == ARGV[1] then\n"
                                   "  redis.call('DEL', KEYS[i]); mine = mine + 1 end end\n"
                                   "return mine == #KEYS and 1 or 0";
static struct redis_script acquire_script, extend_script, release_script;
static struct metric *lock_seconds, *lock_failures;
static uint32_t seconds_slot, failures_slot;

static void prepare(void) {
    if (acquire_script.text.at) return;
    redis_script_init(&acquire_script, STR(acquire_text));
    redis_script_init(&extend_script, STR(extend_text));
    redis_script_init(&release_script, STR(release_text));
    lock_seconds = metric_histogram("kasma_lock_seconds", "Time to get a lock, retries included.", NULL, 0, NULL);
    lock_failures = metric_counter("kasma_lock_failures_total", "Locks that were not got.", NULL);
    seconds_slot = metric_only(lock_seconds);
    failures_slot = metric_only(lock_failures);
}

static bool renew_value(struct name *n) {
    unsigned char bytes[VALUE / 2];
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes) return false;
    for (size_t i = 0; i < sizeof bytes; i++) {
        int two = snprintf(n->value + 2 * i, 3, "%02x", bytes[i]);
        (void)two;
    }
    return true;
}

static struct name *name_new(const struct str *keys, size_t count) {
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++) bytes += keys[i].len;
    struct name *n = malloc(sizeof *n + count * sizeof *keys + bytes);
    if (!n) return NULL;
    n->refs = 1;
    n->count = count;
    char *at = (char *)(n->keys + count);
    for (size_t i = 0; i < count; i++) {
        n->keys[i] = str_n(at, keys[i].len);
        memcpy(at, keys[i].at, keys[i].len);
        at += keys[i].len;
    }
    return n;
}

static void name_drop(struct name *n) {
    if (--n->refs == 0) free(n);
}

/* ---- rounds ---- */

struct round {
    void (*decided)(void *owner, enum redlock_state state, uint64_t started_ns); /* NULL: nobody listens (any more) */
    void *owner;
    struct name *name;
    uint64_t started_ns;
    size_t nodes, granted, refused, failed;
    bool all; /* decided only when every server has answered (release) */
};

static void round_check(struct round *r) {
    size_t answers = r->granted + r->refused + r->failed;
    enum redlock_state state = redlock_decide(r->nodes, r->granted, r->refused, r->failed);
    bool ripe = r->all ? answers == r->nodes : state != REDLOCK_OPEN;
    if (ripe && r->decided) {
        void (*decided)(void *, enum redlock_state, uint64_t) = r->decided;
        r->decided = NULL;
        decided(r->owner, state, r->started_ns);
    }
    if (answers < r->nodes) return;
    name_drop(r->name);
    free(r);
}

static void on_answer(void *data, const struct redis_reply *reply, const struct error *err) {
    struct round *r = data;
    if (err) {
        r->failed++;
    } else if ((reply->type == REDIS_INTEGER && reply->integer == 1) || reply->type == REDIS_STATUS) {
        r->granted++;
    } else {
        r->refused++;
    }
    round_check(r);
}

enum act { ACQUIRE, EXTEND, RELEASE };

static struct redis_op *send_to(struct redis_conn *node, enum act act, const struct name *n, uint32_t ttl_ms,
                                struct round *r, struct error *err) {
    char ttl[16];
    int digits = snprintf(ttl, sizeof ttl, "%u", ttl_ms);
    struct str value = str_n(n->value, VALUE), ttl_arg = str_n(ttl, (size_t)digits);
    if (act == ACQUIRE && n->count == 1) {
        /* Half the server's work of a script. */
        struct str args[] = {STR("SET"), n->keys[0], value, STR("NX"), STR("PX"), ttl_arg};
        struct redis_command command = {args, sizeof args / sizeof *args};
        return redis_conn_send(node, &command, 1, false, 0, on_answer, r, err);
    }
    struct str args[MAX_KEYS + 2];
    memcpy(args, n->keys, n->count * sizeof *args);
    args[n->count] = value;
    args[n->count + 1] = ttl_arg;
    const struct redis_script *script = act == ACQUIRE  ? &acquire_script
                                        : act == EXTEND ? &extend_script
                                                        : &release_script;
    return redis_conn_eval(node, script, n->count, args, n->count + (act == RELEASE ? 1 : 2), on_answer, r, err);
}

/* Sends to all servers. NULL: nothing was sent (out of memory). A round in which every server is known to be away is
 * over before it began: then `*away` is set and NULL returned. */
static struct round *round_start(struct redlock *lock, enum act act, struct name *n, uint32_t ttl_ms, bool *away) {
    *away = false;
    struct round *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->nodes = lock->count;
    r->name = n;
    r->all = act == RELEASE;
    r->started_ns = uv_hrtime();
    for (size_t i = 0; i < lock->count; i++) {
        struct error err = {0};
        if (!send_to(lock->nodes[i], act, n, ttl_ms, r, &err)) r->failed++;
    }
    if (r->failed == r->nodes) {
        *away = true;
        free(r);
        return NULL;
    }
    n->refs++;
    return r;
}

/* Releases without anybody waiting. */
static void release_quietly(struct redlock *lock, struct name *n) {
    bool away;
    struct round *r = round_start(lock, RELEASE, n, 0, &away);
    (void)r; /* not sent: the keys run out by themselves */
}

/* ---- acquire ---- */

struct redlock_hold {
    struct redlock *lock;
    struct name *name;
    uint64_t good_until_ns;
    uint32_t ttl_ms; /* of the extension under way */
    struct round *extending;
    redlock_changed *done;
    void *data;
};

struct redlock_attempt {
    struct redlock *lock;
    struct name *name;
    struct redlock_policy policy;
    redlock_acquired *done; /* NULL: over, the memory waits for the timer to close */
    void *data;
    uint64_t began_ns;
    uint32_t tries;
    struct round *round; /* under way; NULL between attempts */
    uv_timer_t timer;
};

static bool try_now(struct redlock_attempt *a, struct error *err);

static void on_attempt_closed(uv_handle_t *handle) {
    free(handle->data);
}

static void attempt_end(struct redlock_attempt *a, struct redlock_hold *hold, const struct error *err) {
    redlock_acquired *done = a->done;
    a->done = NULL;
    name_drop(a->name);
    a->name = NULL;
    uv_close((uv_handle_t *)&a->timer, on_attempt_closed);
    if (hold) {
        metric_observe(lock_seconds, seconds_slot, (double)(uv_hrtime() - a->began_ns) / 1e9);
    } else {
        metric_add(failures_slot, 1);
    }
    done(a->data, hold, err);
}

/* Fills `err` and returns false. */
static bool say(struct error *err, enum error_kind kind, const char *code, const char *message) {
    bool filled = error_set(err, kind, "%s", message);
    int written = err ? snprintf(err->code, sizeof err->code, "%s", code) : 0;
    (void)written; /* codes are short */
    return filled;
}

static bool say_away(struct error *err) {
    return say(err, ERR_UNAVAILABLE, "", "no majority of the lock servers is reachable");
}

static bool say_lost(struct error *err) {
    return say(err, ERR_QUERY, "lost", "the lock was lost");
}

static void on_timer(uv_timer_t *timer) {
    struct redlock_attempt *a = timer->data;
    struct error err = {0};
    if (a->done && !try_now(a, &err)) attempt_end(a, NULL, &err);
}

static void attempt_again(struct redlock_attempt *a) {
    if (a->tries > a->policy.retries) {
        struct error err = {0};
        bool filled = say(&err, ERR_BUSY, "locked", "the resource is locked by another");
        (void)filled; /* always false */
        attempt_end(a, NULL, &err);
        return;
    }
    uint32_t random = 0;
    ssize_t got = getrandom(&random, sizeof random, GRND_NONBLOCK);
    (void)got; /* without it the pause is just not spread */
    int64_t wait = redlock_delay(a->policy.delay_ms, a->policy.jitter_ms, random);
    int started = uv_timer_start(&a->timer, on_timer, (uint64_t)wait, 0);
    (void)started; /* fails only without a callback */
}

static int64_t elapsed_ms(uint64_t since_ns) {
    return (int64_t)((uv_hrtime() - since_ns + 999999) / 1000000); /* rounded up: against us */
}

static void on_acquire_decided(void *owner, enum redlock_state state, uint64_t started_ns) {
    struct redlock_attempt *a = owner;
    a->round = NULL;
    struct error err = {0};
    bool filled = say_away(&err);
    int64_t validity = redlock_validity(a->policy.ttl_ms, elapsed_ms(started_ns));
    if (state == REDLOCK_HELD && validity > 0) {
        struct redlock_hold *hold = calloc(1, sizeof *hold);
        if (hold) {
            hold->lock = a->lock;
            hold->name = a->name;
            hold->name->refs++;
            hold->good_until_ns = uv_hrtime() + (uint64_t)validity * 1000000;
            attempt_end(a, hold, NULL);
            return;
        }
        filled = error_set(&err, ERR_MEMORY, "out of memory");
    }
    (void)filled; /* always false */
    release_quietly(a->lock, a->name);
    if (state == REDLOCK_AWAY || err.kind == ERR_MEMORY) {
        attempt_end(a, NULL, &err);
    } else {
        attempt_again(a);
    }
}

/* False: it cannot even begin. */
static bool try_now(struct redlock_attempt *a, struct error *err) {
    /* A value of its own for each attempt: see the head of redlock.h. Earlier rounds may still hold the old name. */
    if (a->tries++ > 0) {
        struct name *fresh = name_new(a->name->keys, a->name->count);
        if (!fresh || !renew_value(fresh)) {
            free(fresh);
            return error_set(err, ERR_MEMORY, "out of memory");
        }
        name_drop(a->name);
        a->name = fresh;
    }
    bool away;
    struct round *r = round_start(a->lock, ACQUIRE, a->name, a->policy.ttl_ms, &away);
    if (!r) return away ? say_away(err) : error_set(err, ERR_MEMORY, "out of memory");
    /* Servers known to be away count at once; with a majority of them there is nothing to wait for. */
    if (redlock_decide(r->nodes, 0, 0, r->failed) == REDLOCK_AWAY) {
        release_quietly(a->lock, a->name);
        return say_away(err);
    }
    r->decided = on_acquire_decided;
    r->owner = a;
    a->round = r;
    return true;
}

struct redlock_attempt *redlock_acquire(struct redlock *r, const struct str *keys, size_t count,
                                        const struct redlock_policy *policy, redlock_acquired *done, void *data,
                                        struct error *err) {
    if (count == 0 || count > MAX_KEYS || policy->ttl_ms < 10 || policy->ttl_ms > DAY_MS || policy->delay_ms > DAY_MS ||
        policy->jitter_ms > DAY_MS) {
        error_set(err, ERR_INVALID, "a lock has 1 to %d keys and lasts 10 ms to one day", MAX_KEYS);
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        if (keys[i].len == 0 || keys[i].len > MAX_KEY) {
            error_set(err, ERR_INVALID, "a lock's key has 1 to %d bytes", MAX_KEY);
            return NULL;
        }
    }
    struct redlock_attempt *a = calloc(1, sizeof *a);
    struct name *name = name_new(keys, count);
    if (!a || !name || !renew_value(name)) {
        free(a);
        free(name);
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    *a = (struct redlock_attempt){
        .lock = r, .name = name, .policy = *policy, .done = done, .data = data, .began_ns = uv_hrtime()};
    int made = uv_timer_init(loop_get(), &a->timer);
    (void)made; /* cannot fail */
    a->timer.data = a;
    if (try_now(a, err)) return a;
    name_drop(a->name);
    a->done = NULL;
    uv_close((uv_handle_t *)&a->timer, on_attempt_closed);
    metric_add(failures_slot, 1);
    return NULL;
}

void redlock_cancel(struct redlock_attempt *a) {
    if (!a->done) return;
    a->done = NULL;
    if (a->round) a->round->decided = NULL;
    release_quietly(a->lock, a->name);
    name_drop(a->name);
    uv_close((uv_handle_t *)&a->timer, on_attempt_closed);
}

/* ---- a lock that is held ---- */

int64_t redlock_validity_left(const struct redlock_hold *hold) {
    uint64_t now = uv_hrtime();
    return now < hold->good_until_ns ? (int64_t)((hold->good_until_ns - now) / 1000000) : 0;
}

static void on_extend_decided(void *owner, enum redlock_state state, uint64_t started_ns) {
    struct redlock_hold *hold = owner;
    redlock_changed *done = hold->done;
    hold->extending = NULL;
    hold->done = NULL;
    struct error err = {0};
    int64_t validity = redlock_validity(hold->ttl_ms, elapsed_ms(started_ns));
    if (state == REDLOCK_HELD && validity > 0) {
        hold->good_until_ns = uv_hrtime() + (uint64_t)validity * 1000000;
    } else {
        /* What is left of the time still counts when servers were merely away, and not when they said no. */
        if (state == REDLOCK_BUSY) hold->good_until_ns = 0;
        bool filled = state == REDLOCK_AWAY ? say_away(&err) : say_lost(&err);
        (void)filled; /* always false */
    }
    if (done) done(hold->data, err.kind == ERR_NONE ? NULL : &err);
}

bool redlock_extend(struct redlock_hold *hold, uint32_t ttl_ms, redlock_changed *done, void *data, struct error *err) {
    if (ttl_ms < 10 || ttl_ms > DAY_MS) return error_set(err, ERR_INVALID, "a lock lasts 10 ms to one day");
    if (hold->extending) return error_set(err, ERR_BUSY, "the lock is being extended");
    if (redlock_validity_left(hold) == 0) return say_lost(err);
    bool away;
    struct round *r = round_start(hold->lock, EXTEND, hold->name, ttl_ms, &away);
    if (!r) return away ? say_away(err) : error_set(err, ERR_MEMORY, "out of memory");
    /* From here on a server may have set the new time, whatever comes back of it: the shorter of the two counts. */
    uint64_t new_until_ns = r->started_ns + (uint64_t)redlock_validity(ttl_ms, 0) * 1000000;
    if (new_until_ns < hold->good_until_ns) hold->good_until_ns = new_until_ns;
    if (redlock_decide(r->nodes, 0, 0, r->failed) == REDLOCK_AWAY) return say_away(err);
    r->decided = on_extend_decided;
    r->owner = hold;
    hold->extending = r;
    hold->ttl_ms = ttl_ms;
    hold->done = done;
    hold->data = data;
    return true;
}

void redlock_detach(struct redlock_hold *hold) {
    hold->done = NULL;
}

struct leaving {
    redlock_changed *done;
    void *data;
};

static void on_release_decided(void *owner, enum redlock_state state, uint64_t started_ns) {
    (void)started_ns;
    struct leaving *l = owner;
    struct error err = {0};
    bool filled = state == REDLOCK_HELD || (state == REDLOCK_AWAY ? say_away(&err) : say_lost(&err));
    (void)filled; /* `err` tells */
    l->done(l->data, err.kind == ERR_NONE ? NULL : &err);
    free(l);
}

bool redlock_release(struct redlock_hold *hold, redlock_changed *done, void *data, struct error *err) {
    struct redlock *lock = hold->lock;
    struct name *n = hold->name;
    if (hold->extending) hold->extending->decided = NULL;
    free(hold);
    struct leaving *l = done ? malloc(sizeof *l) : NULL;
    bool away;
    struct round *r = round_start(lock, RELEASE, n, 0, &away);
    name_drop(n);
    if (r && !done) return true;
    if (!r || !l) {
        free(l);
        return away ? say_away(err) : error_set(err, ERR_MEMORY, "out of memory");
    }
    *l = (struct leaving){done, data};
    r->decided = on_release_decided;
    r->owner = l;
    return true;
}

/* ---- making ---- */

struct redlock *redlock_new(struct str urls, uint32_t node_timeout_ms, struct error *err) {
    prepare();
    struct redlock *r = calloc(1, sizeof *r);
    if (!r) {
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    uint32_t limit = node_timeout_ms ? node_timeout_ms : 250;
    struct redis_conn_options options = {.name = "kasma-lock", .timeout_ms = limit, .connect_ms = limit};
    for (struct str rest = urls;;) {
        const char *comma = rest.len ? memchr(rest.at, ',', rest.len) : NULL;
        struct str one = comma ? str_n(rest.at, (size_t)(comma - rest.at)) : rest;
        struct redis_url url;
        if (r->count == MAX_NODES) {
            error_set(err, ERR_INVALID, "at most %d lock servers", MAX_NODES);
            break;
        }
        if (!redis_url_parse(one, &url, err) || !(r->nodes[r->count] = redis_conn_new(&url, &options, err))) break;
        r->count++;
        if (!comma) return r;
        rest = str_n(comma + 1, rest.len - one.len - 1);
    }
    redlock_free(r);
    return NULL;
}

void redlock_free(struct redlock *r) {
    if (!r) return;
    for (size_t i = 0; i < r->count; i++) redis_conn_close(r->nodes[i]);
    free(r);
}

size_t redlock_nodes_up(const struct redlock *r) {
    size_t up = 0;
    for (size_t i = 0; i < r->count; i++) up += redis_conn_up(r->nodes[i]);
    return up;
}
