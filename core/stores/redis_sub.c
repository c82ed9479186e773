/* Topics are a hash table by name, each with the list of who listens to it here. A topic whose last listener has gone
 * is kept until every SUBSCRIBE that was sent for it is confirmed, so that a late confirmation is never taken for that
 * of a newer one. A listener that ends while its topic's list is walked is only marked, and swept after the walk.
 *
 * A silent connection is probed by PING, which in RESP2 is answered by a push of its own: a peer that died without a
 * word is found within two rounds. */
#include "stores/redis_sub.h"

#include <stdlib.h>

#include "runtime/log.h"
#include "runtime/loop.h"

enum { PROBE_MS = 5000, BUCKETS_MIN = 64 };

struct redis_channel {
    struct redis_channel *next;
    struct topic *topic;
    redis_message *message;
    redis_live *live;
    void *data;
    bool was_live; /* confirmed once: the next confirmation comes after a gap */
    bool ended;
};

struct topic {
    struct topic *next; /* in its bucket */
    struct redis_sub *sub;
    struct redis_channel *listeners;
    size_t due; /* SUBSCRIBEs sent on this connection that are not confirmed */
    bool live;
    bool walked, any_ended;
    uint32_t hash;
    size_t len;
    char name[];
};

struct redis_sub {
    struct redis_conn *conn;
    struct topic **buckets;
    size_t bucket_count, topics;
    uv_timer_t probe;
    bool heard, freed;
};

static uint32_t hash_of(struct str name) {
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < name.len; i++) h = (h ^ (uint8_t)name.at[i]) * 16777619u;
    return h;
}

static struct topic **slot(const struct redis_sub *s, struct str name, uint32_t hash) {
    struct topic **at = &s->buckets[hash & (s->bucket_count - 1)];
    while (*at && ((*at)->hash != hash || !str_eq(str_n((*at)->name, (*at)->len), name))) at = &(*at)->next;
    return at;
}

/* Out of memory only makes it slower. */
static void grow(struct redis_sub *s) {
    size_t count = s->bucket_count * 2;
    struct topic **buckets = calloc(count, sizeof(struct topic *));
    if (!buckets) return;
    for (size_t i = 0; i < s->bucket_count; i++) {
        for (struct topic *t = s->buckets[i], *next; t; t = next) {
            next = t->next;
            t->next = buckets[t->hash & (count - 1)];
            buckets[t->hash & (count - 1)] = t;
        }
    }
    free(s->buckets);
    s->buckets = buckets;
    s->bucket_count = count;
}

static bool post(struct redis_sub *s, struct str word, struct str channel) {
    struct str args[2] = {word, channel};
    struct redis_command command = {args, channel.at ? 2 : 1};
    return redis_conn_post(s->conn, &command);
}

static void subscribe(struct topic *t) {
    /* Not up: all topics are sent when it is. */
    if (post(t->sub, STR("SUBSCRIBE"), str_n(t->name, t->len))) t->due++;
}

static void forget(struct topic *t) {
    struct redis_sub *s = t->sub;
    if (t->listeners || t->due || t->walked) return;
    struct topic **at = slot(s, str_n(t->name, t->len), t->hash);
    *at = t->next;
    s->topics--;
    free(t);
}

/* Without its last listener a topic is of no more use. */
static void left(struct topic *t) {
    if (t->listeners) return;
    t->live = false;
    bool sent = post(t->sub, STR("UNSUBSCRIBE"), str_n(t->name, t->len));
    (void)sent; /* not up: it is not asked for again */
    forget(t);
}

static void sweep(struct topic *t) {
    if (!t->any_ended) return;
    t->any_ended = false;
    for (struct redis_channel **at = &t->listeners; *at;) {
        struct redis_channel *ch = *at;
        if (ch->ended) {
            *at = ch->next;
            free(ch);
        } else {
            at = &ch->next;
        }
    }
    left(t);
}

static void on_up(void *data) {
    struct redis_sub *s = data;
    s->heard = true;
    for (size_t i = 0; i < s->bucket_count; i++) {
        for (struct topic *t = s->buckets[i]; t; t = t->next)
            if (t->listeners) subscribe(t);
    }
}

static void on_down(void *data, const struct error *why) {
    (void)why;
    struct redis_sub *s = data;
    for (size_t i = 0; i < s->bucket_count; i++) {
        for (struct topic *t = s->buckets[i], *next; t; t = next) {
            next = t->next;
            t->live = false;
            t->due = 0;
            forget(t);
        }
    }
}

static void tell_live(struct redis_channel *ch) {
    bool again = ch->was_live;
    ch->was_live = true;
    if (ch->live) ch->live(ch->data, again);
}

static void on_push(void *data, const struct redis_reply *reply) {
    struct redis_sub *s = data;
    s->heard = true;
    if (reply->type == REDIS_ERROR) {
        log_line(LOG_WARN, "redis refused a subscription: %.*s", STR_FMT(reply->text));
        return;
    }
    if (reply->type != REDIS_ARRAY || reply->count < 3 || s->freed) return; /* the answer to the probe */
    struct str kind = reply->items[0].text, channel = reply->items[1].text;
    bool message = str_eq(kind, STR("message"));
    if (!message && !str_eq(kind, STR("subscribe"))) return;
    struct topic *t = *slot(s, channel, hash_of(channel));
    if (!t) return;
    if (!message) {
        if (t->due) t->due--;
        if (t->due) return; /* an earlier one's: between the two it was unsubscribed */
        if (!t->listeners) {
            forget(t);
            return;
        }
        if (t->live) return;
        t->live = true;
    }
    t->walked = true;
    for (struct redis_channel *ch = t->listeners; ch && !s->freed; ch = ch->next) {
        if (ch->ended) continue;
        if (message)
            ch->message(ch->data, channel, reply->items[2].text);
        else
            tell_live(ch);
    }
    t->walked = false;
    if (!s->freed) sweep(t);
}

static void on_probe(uv_timer_t *timer) {
    struct redis_sub *s = timer->data;
    if (!redis_conn_up(s->conn)) return;
    if (!s->heard) {
        redis_conn_reset(s->conn, "Redis pub/sub fell silent");
        return;
    }
    s->heard = false;
    bool sent = post(s, STR("PING"), (struct str){0});
    (void)sent; /* it went down just now */
}

static void on_probe_closed(uv_handle_t *handle) {
    struct redis_sub *s = handle->data;
    for (size_t i = 0; i < s->bucket_count; i++) {
        for (struct topic *t = s->buckets[i], *next; t; t = next) {
            next = t->next;
            for (struct redis_channel *ch = t->listeners, *after; ch; ch = after) {
                after = ch->next;
                free(ch);
            }
            free(t);
        }
    }
    free(s->buckets);
    free(s);
}

struct redis_sub *redis_sub_new(const struct redis_url *url, struct error *err) {
    struct redis_sub *s = calloc(1, sizeof *s);
    struct topic **buckets = calloc(BUCKETS_MIN, sizeof(struct topic *));
    if (!s || !buckets) {
        free(s);
        free(buckets);
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    s->buckets = buckets;
    s->bucket_count = BUCKETS_MIN;
    struct redis_conn_options options = {.name = "kasma-sub", .data = s, .up = on_up, .down = on_down, .push = on_push};
    s->conn = redis_conn_new(url, &options, err);
    if (!s->conn) {
        free(buckets);
        free(s);
        return NULL;
    }
    int made = uv_timer_init(loop_get(), &s->probe);
    s->probe.data = s;
    if (made == 0) made = uv_timer_start(&s->probe, on_probe, PROBE_MS, PROBE_MS);
    (void)made; /* neither can fail with a callback given */
    return s;
}

void redis_sub_free(struct redis_sub *s) {
    if (!s || s->freed) return;
    s->freed = true;
    redis_conn_close(s->conn);
    uv_close((uv_handle_t *)&s->probe, on_probe_closed);
}

struct redis_channel *redis_sub_listen(struct redis_sub *s, struct str channel, redis_message *message,
                                       redis_live *live, void *data, struct error *err) {
    uint32_t hash = hash_of(channel);
    struct topic **at = slot(s, channel, hash), *t = *at;
    struct redis_channel *ch = calloc(1, sizeof *ch);
    if (ch && !t) {
        t = calloc(1, sizeof *t + channel.len);
        if (t) {
            t->sub = s;
            t->hash = hash;
            t->len = channel.len;
            memcpy(t->name, channel.at, channel.len);
            *at = t;
            if (++s->topics > s->bucket_count) grow(s);
        }
    }
    if (!ch || !t) {
        free(ch);
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    *ch = (struct redis_channel){.topic = t, .message = message, .live = live, .data = data, .was_live = t->live};
    bool first = true;
    for (const struct redis_channel *other = t->listeners; other && first; other = other->next) first = other->ended;
    ch->next = t->listeners;
    t->listeners = ch;
    if (first && !t->live) subscribe(t);
    return ch;
}

void redis_channel_close(struct redis_channel *channel) {
    struct topic *t = channel->topic;
    if (channel->ended || t->sub->freed) return;
    channel->ended = true;
    t->any_ended = true;
    if (!t->walked) sweep(t);
}

bool redis_channel_live(const struct redis_channel *channel) {
    return channel->topic->live;
}
