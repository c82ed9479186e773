/* Listeners are a list; a listener that ends during a walk of the list is only marked and swept after it. A silent
 * connection is probed by PING, which in RESP2 is answered by a push of its own: a peer that died without a word is
 * found within two rounds. */
#include "stores/redis_sub.h"

#include <stdlib.h>

#include "runtime/log.h"
#include "runtime/loop.h"

enum { PROBE_MS = 5000 };

struct redis_channel {
    struct redis_channel *next;
    struct redis_sub *sub;
    redis_message *message;
    redis_gap *gap;
    void *data;
    bool live;  /* confirmed on this connection */
    bool fresh; /* was never confirmed: the first confirmation is no gap */
    bool ended;
    size_t len;
    char name[];
};

struct redis_sub {
    struct redis_conn *conn;
    struct redis_channel *channels;
    uv_timer_t probe;
    unsigned walking;
    bool heard, any_ended, freed;
};

static struct str name_of(const struct redis_channel *ch) {
    return str_n(ch->name, ch->len);
}

static void post(struct redis_sub *s, struct str word, struct str channel) {
    struct str args[2] = {word, channel};
    struct redis_command command = {args, channel.at ? 2 : 1};
    bool sent = redis_conn_post(s->conn, &command);
    (void)sent; /* not up: all channels are sent when it is */
}

static void sweep(struct redis_sub *s) {
    if (s->walking || !s->any_ended) return;
    s->any_ended = false;
    for (struct redis_channel **at = &s->channels; *at;) {
        struct redis_channel *ch = *at;
        if (ch->ended) {
            *at = ch->next;
            free(ch);
        } else {
            at = &ch->next;
        }
    }
}

static struct redis_channel *find(struct redis_sub *s, struct str name) {
    for (struct redis_channel *ch = s->channels; ch; ch = ch->next) {
        if (!ch->ended && str_eq(name_of(ch), name)) return ch;
    }
    return NULL;
}

static void on_up(void *data) {
    struct redis_sub *s = data;
    s->heard = true;
    for (struct redis_channel *ch = s->channels; ch; ch = ch->next) {
        if (!ch->ended && find(s, name_of(ch)) == ch) post(s, STR("SUBSCRIBE"), name_of(ch));
    }
}

static void on_down(void *data, const struct error *why) {
    (void)why;
    struct redis_sub *s = data;
    for (struct redis_channel *ch = s->channels; ch; ch = ch->next) ch->live = false;
}

static void confirmed(struct redis_channel *ch) {
    bool gap = !ch->fresh;
    if (ch->live) return;
    ch->live = true;
    ch->fresh = false;
    if (gap && ch->gap) ch->gap(ch->data);
}

static void on_push(void *data, const struct redis_reply *reply) {
    struct redis_sub *s = data;
    s->heard = true;
    if (reply->type == REDIS_ERROR) {
        log_line(LOG_WARN, "redis refused a subscription: %.*s", STR_FMT(reply->text));
        return;
    }
    if (reply->type != REDIS_ARRAY || reply->count < 3) return; /* the answer to the probe */
    struct str kind = reply->items[0].text, channel = reply->items[1].text;
    bool message = str_eq(kind, STR("message"));
    if (!message && !str_eq(kind, STR("subscribe"))) return;
    s->walking++;
    for (struct redis_channel *ch = s->channels; ch; ch = ch->next) {
        if (ch->ended || !str_eq(name_of(ch), channel)) continue;
        if (message) {
            ch->message(ch->data, channel, reply->items[2].text);
        } else {
            confirmed(ch);
        }
    }
    s->walking--;
    sweep(s);
}

static void on_probe(uv_timer_t *timer) {
    struct redis_sub *s = timer->data;
    if (!redis_conn_up(s->conn)) return;
    if (!s->heard) {
        redis_conn_reset(s->conn, "Redis pub/sub fell silent");
        return;
    }
    s->heard = false;
    post(s, STR("PING"), (struct str){0});
}

static void on_probe_closed(uv_handle_t *handle) {
    struct redis_sub *s = handle->data;
    while (s->channels) {
        struct redis_channel *next = s->channels->next;
        free(s->channels);
        s->channels = next;
    }
    free(s);
}

struct redis_sub *redis_sub_new(const struct redis_url *url, struct error *err) {
    struct redis_sub *s = calloc(1, sizeof *s);
    if (!s) {
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    struct redis_conn_options options = {.name = "kasma-sub", .data = s, .up = on_up, .down = on_down, .push = on_push};
    s->conn = redis_conn_new(url, &options, err);
    if (!s->conn) {
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
    for (struct redis_channel *ch = s->channels; ch; ch = ch->next) ch->ended = true;
    redis_conn_close(s->conn);
    uv_close((uv_handle_t *)&s->probe, on_probe_closed);
}

struct redis_channel *redis_sub_listen(struct redis_sub *s, struct str channel, redis_message *message, redis_gap *gap,
                                       void *data, struct error *err) {
    const struct redis_channel *same = find(s, channel);
    struct redis_channel *ch = calloc(1, sizeof *ch + channel.len + 1);
    if (!ch) {
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    ch->sub = s;
    ch->message = message;
    ch->gap = gap;
    ch->data = data;
    ch->fresh = true;
    ch->len = channel.len;
    memcpy(ch->name, channel.at, channel.len);
    if (same && same->live) {
        ch->live = true;
        ch->fresh = false;
    }
    ch->next = s->channels;
    s->channels = ch;
    if (!same) post(s, STR("SUBSCRIBE"), channel);
    return ch;
}

void redis_channel_close(struct redis_channel *channel) {
    struct redis_sub *s = channel->sub;
    if (channel->ended || s->freed) return;
    channel->ended = true;
    s->any_ended = true;
    if (!find(s, name_of(channel))) post(s, STR("UNSUBSCRIBE"), name_of(channel));
    sweep(s);
}

bool redis_channel_live(const struct redis_channel *channel) {
    return channel->live;
}
