// link: stores
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "redis_server.h"
#include "stores/redis.h"
#include "stores/redis_sub.h"

struct answer {
    int count;
    enum redis_type type;
    int64_t integer;
    char text[256];
    size_t items;
    struct error err;
};

static struct redis_server server;

static void keep(void *data, const struct redis_reply *reply, const struct error *err) {
    struct answer *a = data;
    a->count++;
    if (err) {
        a->err = *err;
        return;
    }
    a->err = (struct error){0};
    a->type = reply->type;
    a->integer = reply->integer;
    a->items = reply->count;
    if (reply->text.at) (void)snprintf(a->text, sizeof a->text, "%.*s", STR_FMT(reply->text));
}

static bool answered(void *data) {
    return ((struct answer *)data)->count > 0;
}
static bool is_up(void *data) {
    return redis_up(data);
}
static bool is_down(void *data) {
    return !redis_up(data);
}

/* Splits at blanks and sends. */
static struct redis_op *send_words(struct redis *r, const char *line, struct answer *a, struct error *err) {
    struct str args[16];
    size_t count = 0;
    for (const char *at = line; *at && count < 16;) {
        size_t len = strcspn(at, " ");
        args[count++] = str_n(at, len);
        at += len + (at[len] == ' ');
    }
    return redis_call(r, args, count, keep, a, err);
}

static struct answer ask(struct redis *r, const char *line) {
    struct answer a = {0};
    struct error err = {0};
    if (!send_words(r, line, &a, &err)) {
        a.err = err;
        return a;
    }
    assert_true(run_until(answered, &a, 60));
    return a;
}

static struct redis *open_with(const struct redis_options *options) {
    struct error err = {0};
    struct redis *r = redis_new(str_of(server.url), options, &err);
    assert_non_null(r);
    assert_true(run_until(is_up, r, 60));
    return r;
}

static struct redis *open_plain(void) {
    return open_with(&(struct redis_options){.timeout_ms = 60000});
}

static void shut(struct redis *r) {
    redis_free(r);
    run_closed();
}

static void commands_come_back(void **state) {
    (void)state;
    struct redis *r = open_plain();
    struct answer a = ask(r, "SET k hello");
    assert_int_equal(a.type, REDIS_STATUS);
    assert_string_equal(a.text, "OK");
    a = ask(r, "GET k");
    assert_int_equal(a.type, REDIS_STRING);
    assert_string_equal(a.text, "hello");
    assert_int_equal(ask(r, "GET none").type, REDIS_NIL);
    assert_int_equal(ask(r, "DEL n").err.kind, ERR_NONE);
    assert_int_equal(ask(r, "INCRBY n 9007199254740993").integer, 9007199254740993);
    a = ask(r, "LPUSH k 1");
    assert_int_equal(a.err.kind, ERR_QUERY);
    assert_string_equal(a.err.code, "WRONGTYPE");
    shut(r);
}

static void the_first_command_need_not_wait_for_the_connection(void **state) {
    (void)state;
    struct error err = {0};
    struct redis *r = redis_new(str_of(server.url), &(struct redis_options){.name = "early"}, &err);
    struct answer a = ask(r, "CLIENT GETNAME");
    assert_int_equal(a.err.kind, ERR_NONE);
    assert_string_equal(a.text, "early");
    shut(r);
}

static void binary_values_survive(void **state) {
    (void)state;
    struct redis *r = open_plain();
    char bytes[256];
    for (int i = 0; i < 256; i++) bytes[i] = (char)i;
    struct str set[3] = {STR("SET"), str_n("a\0b", 3), str_n(bytes, sizeof bytes)};
    struct answer a = {0};
    struct error err = {0};
    assert_non_null(redis_call(r, set, 3, keep, &a, &err));
    assert_true(run_until(answered, &a, 60));
    struct str length[2] = {STR("STRLEN"), str_n("a\0b", 3)};
    a = (struct answer){0};
    assert_non_null(redis_call(r, length, 2, keep, &a, &err));
    assert_true(run_until(answered, &a, 60));
    assert_int_equal(a.integer, 256);
    shut(r);
}

struct figure {
    int count;
    const char *name;
    long value;
};

static void keep_figure(void *data, const struct redis_reply *reply, const struct error *err) {
    struct figure *f = data;
    f->count++;
    const char *at = err ? NULL : strstr(reply->text.at, f->name);
    if (at) f->value = strtol(at + strlen(f->name) + 1, NULL, 10);
}

static bool figure_known(void *data) {
    return ((struct figure *)data)->count > 0;
}

static long info(struct redis *r, const char *name) {
    struct str args[1] = {STR("INFO")};
    struct figure f = {.name = name};
    struct error err = {0};
    assert_non_null(redis_call(r, args, 1, keep_figure, &f, &err));
    assert_true(run_until(figure_known, &f, 60));
    return f.value;
}

static bool all_of_200(void *data) {
    return ((struct answer *)data)->count == 200;
}

static void the_commands_of_a_turn_leave_in_one_write(void **state) {
    (void)state;
    struct redis *r = open_plain();
    long before = info(r, "total_reads_processed"), commands = info(r, "total_commands_processed");
    struct answer a = {0};
    struct error err = {0};
    for (int i = 0; i < 200; i++) assert_non_null(send_words(r, "GET k", &a, &err));
    assert_true(run_until(all_of_200, &a, 60));
    long reads = info(r, "total_reads_processed") - before;
    assert_int_equal(info(r, "total_commands_processed") - commands, 1 + 200 + 1);
    /* The two INFOs beside it are one read each. */
    assert_true(reads <= 3);
    shut(r);
}

static void a_pipeline_answers_each_command(void **state) {
    (void)state;
    struct redis *r = open_plain();
    struct str set[3] = {STR("SET"), STR("p"), STR("1")}, wrong[3] = {STR("HSET"), STR("p"), STR("1")};
    struct str get[2] = {STR("GET"), STR("p")};
    struct redis_command commands[3] = {{set, 3}, {wrong, 3}, {get, 2}};
    struct answer a = {0};
    struct error err = {0};
    assert_non_null(redis_pipeline(r, commands, 3, keep, &a, &err));
    assert_true(run_until(answered, &a, 60));
    assert_int_equal(a.type, REDIS_ARRAY);
    assert_int_equal(a.items, 3);
    shut(r);
}

static void a_script_is_loaded_when_the_server_lacks_it(void **state) {
    (void)state;
    struct redis *r = open_plain();
    struct redis_script script;
    redis_script_init(&script, STR("return KEYS[1] .. ':' .. ARGV[1] .. ':' .. #KEYS"));
    struct str args[2] = {STR("key"), STR("arg")};
    for (int round = 0; round < 3; round++) {
        if (round == 2) assert_string_equal(ask(r, "SCRIPT FLUSH").text, "OK");
        struct answer a = {0};
        struct error err = {0};
        assert_non_null(redis_eval(r, &script, 1, args, 2, keep, &a, &err));
        assert_true(run_until(answered, &a, 60));
        assert_int_equal(a.err.kind, ERR_NONE);
        assert_string_equal(a.text, "key:arg:1");
    }
    shut(r);
}

static void more_than_the_bound_in_flight_is_busy(void **state) {
    (void)state;
    struct redis *r = open_with(&(struct redis_options){.max_in_flight = 10});
    struct answer a = {0};
    struct error err = {0};
    for (int i = 0; i < 10; i++) assert_non_null(send_words(r, "PING", &a, &err));
    assert_null(send_words(r, "PING", &a, &err));
    assert_int_equal(err.kind, ERR_BUSY);
    assert_int_equal(a.count, 0);
    assert_string_equal(ask(r, "PING").err.message, err.message);
    assert_true(run_until(answered, &a, 60));
    assert_string_equal(ask(r, "PING").text, "PONG");
    shut(r);
}

static void a_cancelled_command_does_not_answer(void **state) {
    (void)state;
    struct redis *r = open_plain();
    struct answer a = {0};
    struct error err = {0};
    struct redis_op *op = send_words(r, "PING", &a, &err);
    assert_non_null(op);
    redis_op_cancel(op);
    assert_string_equal(ask(r, "ECHO after").text, "after");
    assert_int_equal(a.count, 0);
    shut(r);
}

static void a_reply_that_is_too_large_is_refused_and_the_connection_recovers(void **state) {
    (void)state;
    struct redis *r = open_plain();
    assert_string_equal(ask(r, "SET big x").text, "OK");
    assert_int_equal(ask(r, "SETRANGE big 17000000 x").integer, 17000001);
    struct answer a = ask(r, "GET big");
    assert_int_equal(a.err.kind, ERR_LIMIT);
    assert_true(run_until(is_up, r, 60));
    assert_string_equal(ask(r, "DEL big").err.message, "");
    shut(r);
}

static void a_command_past_its_limit_times_out_and_the_rest_is_unavailable(void **state) {
    (void)state;
    struct redis *r = open_with(&(struct redis_options){.timeout_ms = 2000});
    assert_true(freeze(server.pid));
    struct answer a = ask(r, "PING");
    assert_int_equal(a.err.kind, ERR_TIMEOUT);
    assert_int_equal(ask(r, "PING").err.kind, ERR_UNAVAILABLE);
    assert_true(thaw(server.pid));
    assert_true(run_until(is_up, r, 60));
    assert_string_equal(ask(r, "PING").text, "PONG");
    shut(r);
}

/* One question and its answer on a socket of the test's own, beside the loop. */
static void ask_beside(int fd) {
    char text[16];
    size_t got = 0;
    assert_int_equal(send(fd, "PING\r\n", 6, MSG_NOSIGNAL), 6);
    while (got < 7) {
        ssize_t n = recv(fd, text + got, sizeof text - got, 0);
        assert_true(n > 0 || (n < 0 && errno == EINTR));
        if (n > 0) got += (size_t)n;
    }
}

/* A process that has work of its own for longer than the limit takes the answer that came meanwhile. */
static void an_answer_that_waits_to_be_read_is_not_late(void **state) {
    (void)state;
    struct redis *r = open_with(&(struct redis_options){.timeout_ms = 500});
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)server.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    struct answer a = {0};
    struct error err = {0};
    for (int i = 0; i < 3; i++) assert_non_null(send_words(r, "PING", &a, &err));
    redis_flush(r);
    for (uint64_t from = uv_hrtime(); uv_hrtime() - from < UINT64_C(1000000000);) ask_beside(fd);
    assert_int_equal(a.count, 0);
    assert_true(run_until(answered, &a, 60));
    run_closed();
    assert_int_equal(a.count, 3);
    assert_int_equal(a.err.kind, ERR_NONE);
    assert_string_equal(a.text, "PONG");
    assert_int_equal(close(fd), 0);
    shut(r);
}

static void killed_in_flight_is_unavailable_and_a_restart_recovers(void **state) {
    (void)state;
    struct redis *r = open_plain();
    struct answer blocked = {0};
    struct error err = {0};
    assert_non_null(send_words(r, "BLPOP nothing 30", &blocked, &err));
    assert_non_null(send_words(r, "PING", &blocked, &err));
    run_closed();
    redis_server_kill(&server);
    assert_true(run_until(is_down, r, 60));
    assert_int_equal(blocked.count, 2);
    assert_int_equal(blocked.err.kind, ERR_UNAVAILABLE);
    /* Known away: the refusal is immediate, nothing is queued. */
    assert_null(send_words(r, "PING", &blocked, &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    assert_true(strlen(redis_why_down(r)) > 0);
    redis_server_start(&server);
    assert_true(run_until(is_up, r, 60));
    assert_string_equal(ask(r, "PING").text, "PONG");
    shut(r);
}

static void a_server_that_was_never_there_answers_unavailable(void **state) {
    (void)state;
    char url[64];
    (void)snprintf(url, sizeof url, "redis://localhost:%d", free_port());
    struct error err = {0};
    struct redis *r = redis_new(str_of(url), &(struct redis_options){0}, &err);
    assert_non_null(r);
    struct answer a = ask(r, "PING"); /* waits for the first attempt only */
    assert_int_equal(a.err.kind, ERR_UNAVAILABLE);
    assert_int_equal(ask(r, "PING").err.kind, ERR_UNAVAILABLE);
    shut(r);
}

static void a_wrong_password_is_away_and_the_right_one_is_not(void **state) {
    (void)state;
    struct redis_server guarded = {.password = "s3cret"};
    redis_server_start(&guarded);
    struct error err = {0};
    struct redis *good = redis_new(str_of(guarded.url), &(struct redis_options){0}, &err);
    assert_true(run_until(is_up, good, 60));
    assert_string_equal(ask(good, "SET k v").text, "OK");
    char url[64];
    (void)snprintf(url, sizeof url, "redis://:wrong@127.0.0.1:%d/3", guarded.port);
    struct redis *bad = redis_new(str_of(url), &(struct redis_options){0}, &err);
    struct answer a = ask(bad, "PING");
    assert_int_equal(a.err.kind, ERR_UNAVAILABLE);
    assert_non_null(strstr(a.err.message, "WRONGPASS"));
    redis_free(bad);
    shut(good);
    redis_server_kill(&guarded);
}

/* What a full server, a replica or a server without a disk refuses may be asked again; a wrong question may not. */
static void a_server_that_cannot_now_is_away_and_a_wrong_command_is_not(void **state) {
    (void)state;
    static const char *const now[] = {"OOM command not allowed when used memory > 'maxmemory'.",
                                      "READONLY You can't write against a read only replica.",
                                      "MISCONF no disk",
                                      "LOADING Redis is loading the dataset in memory",
                                      "BUSY Redis is busy",
                                      "NOREPLICAS no"};
    static const char *const never[] = {"ERR unknown command", "WRONGTYPE Operation against a key", "NOPERM no",
                                        "OOMPH"};
    struct error err = {0};
    for (size_t i = 0; i < sizeof now / sizeof *now; i++) {
        redis_reply_error(&(struct redis_reply){.type = REDIS_ERROR, .text = str_of(now[i])}, &err);
        assert_int_equal(err.kind, ERR_UNAVAILABLE);
    }
    for (size_t i = 0; i < sizeof never / sizeof *never; i++) {
        redis_reply_error(&(struct redis_reply){.type = REDIS_ERROR, .text = str_of(never[i])}, &err);
        assert_int_equal(err.kind, ERR_QUERY);
    }
    struct redis *r = open_plain();
    assert_string_equal(ask(r, "CONFIG SET maxmemory 1").text, "OK");
    assert_int_equal(ask(r, "SET full 1").err.kind, ERR_UNAVAILABLE);
    assert_string_equal(ask(r, "CONFIG SET maxmemory 0").text, "OK");
    assert_string_equal(ask(r, "SET full 1").text, "OK");
    shut(r);
}

/* Closing everything from inside a callback must leave nothing behind and touch nothing freed. */
static void close_inside(void *data, const struct redis_reply *reply, const struct error *err) {
    (void)reply;
    (void)err;
    struct redis **r = data;
    struct redis *mine = *r;
    *r = NULL; /* the other commands in flight are answered during redis_free */
    redis_free(mine);
}
static bool is_gone(void *data) {
    return !*(struct redis **)data;
}

static void the_client_may_be_closed_in_a_callback(void **state) {
    (void)state;
    struct redis *r = open_plain();
    struct str ping[1] = {STR("PING")};
    struct error err = {0};
    for (int i = 0; i < 5; i++) assert_non_null(redis_call(r, ping, 1, close_inside, &r, &err));
    assert_true(run_until(is_gone, &r, 60));
    run_closed();
}

struct heard {
    int messages, gaps, lives;
    char last[64];
    struct redis_channel *channel;
};
static void hear(void *data, struct str channel, struct str payload) {
    (void)channel;
    struct heard *h = data;
    h->messages++;
    (void)snprintf(h->last, sizeof h->last, "%.*s", STR_FMT(payload));
}
static void hear_gap(void *data, bool again) {
    struct heard *h = data;
    h->lives++;
    h->gaps += again;
}
static bool is_live(void *data) {
    return redis_channel_live(((struct heard *)data)->channel);
}
static bool heard_one(void *data) {
    return ((struct heard *)data)->messages > 0;
}
static bool heard_gap(void *data) {
    return ((struct heard *)data)->gaps > 0;
}

static void a_listener_listens_again_after_an_outage(void **state) {
    (void)state;
    struct redis *r = open_plain();
    struct error err = {0};
    struct redis_sub *s = redis_sub_new(redis_where(r), &err);
    struct heard one = {0}, two = {0}, other = {0};
    one.channel = redis_sub_listen(s, STR("news"), hear, hear_gap, &one, &err);
    two.channel = redis_sub_listen(s, STR("news"), hear, NULL, &two, &err);
    other.channel = redis_sub_listen(s, STR("else"), hear, hear_gap, &other, &err);
    assert_true(run_until(is_live, &one, 60));
    assert_true(run_until(is_live, &other, 60));
    assert_int_equal(ask(r, "PUBLISH news first").integer, 1);
    assert_true(run_until(heard_one, &one, 60));
    assert_true(run_until(heard_one, &two, 60));
    assert_string_equal(one.last, "first");
    assert_int_equal(one.gaps, 0);
    assert_int_equal(one.lives, 1);

    redis_server_kill(&server);
    assert_true(run_until(is_down, r, 60));
    redis_server_start(&server);
    assert_true(run_until(heard_gap, &one, 60));
    assert_true(run_until(is_up, r, 60));
    one.messages = 0;
    redis_channel_close(two.channel);
    assert_int_equal(ask(r, "PUBLISH news second").integer, 1);
    assert_true(run_until(heard_one, &one, 60));
    assert_string_equal(one.last, "second");
    assert_int_equal(two.messages, 1);
    assert_int_equal(other.messages, 0);
    redis_sub_free(s);
    shut(r);
}

/* What is closed and opened again at once is live only when the last SUBSCRIBE was confirmed: a message between would
 * be lost without a word. */
static void a_channel_opened_again_waits_for_its_own_confirmation(void **state) {
    (void)state;
    struct redis *r = open_plain();
    struct error err = {0};
    struct redis_sub *s = redis_sub_new(redis_where(r), &err);
    struct heard first = {0}, h = {0};
    first.channel = redis_sub_listen(s, STR("x"), hear, hear_gap, &first, &err);
    assert_true(run_until(is_live, &first, 60));
    for (int i = 0; i < 50; i++) {
        redis_channel_close(first.channel);
        first.channel = redis_sub_listen(s, STR("x"), hear, hear_gap, &first, &err);
    }
    assert_false(redis_channel_live(first.channel));
    h.channel = redis_sub_listen(s, STR("x"), hear, hear_gap, &h, &err);
    assert_true(run_until(is_live, &first, 60));
    assert_true(redis_channel_live(h.channel));
    assert_int_equal(first.lives, 2);
    assert_int_equal(h.lives, 1);
    assert_int_equal(ask(r, "PUBLISH x word").integer, 1);
    assert_true(run_until(heard_one, &first, 60));
    assert_int_equal(h.messages, 1);
    redis_sub_free(s);
    shut(r);
}

static struct heard *many;
/* They are asked for in the order of the table, so that none speaks for the others. */
static bool all_live(void *data) {
    for (int i = 0; i < *(int *)data; i++)
        if (!redis_channel_live(many[i].channel)) return false;
    return true;
}
static bool heard_all(void *data) {
    for (int i = 0; i < *(int *)data; i++)
        if (many[i].messages != 1) return false;
    return true;
}

static void thousands_of_channels_are_told_apart(void **state) {
    (void)state;
    struct redis *r = open_plain();
    struct error err = {0};
    struct redis_sub *s = redis_sub_new(redis_where(r), &err);
    int count = 3000;
    many = calloc((size_t)count, sizeof *many);
    assert_non_null(many);
    char text[64];
    for (int i = 0; i < count; i++) {
        int n = snprintf(text, sizeof text, "user:%d", i);
        many[i].channel = redis_sub_listen(s, str_n(text, (size_t)n), hear, hear_gap, &many[i], &err);
        assert_non_null(many[i].channel);
    }
    assert_true(run_until(all_live, &count, 60));
    for (int i = 0; i < count; i++) {
        (void)snprintf(text, sizeof text, "PUBLISH user:%d m%d", i, i);
        assert_int_equal(ask(r, text).integer, 1);
    }
    assert_true(run_until(heard_all, &count, 60));
    for (int i = 0; i < count; i++) {
        (void)snprintf(text, sizeof text, "m%d", i);
        assert_string_equal(many[i].last, text);
        redis_channel_close(many[i].channel);
    }
    redis_sub_free(s);
    free(many);
    shut(r);
}

static void urls_are_read_and_bad_ones_refused(void **state) {
    (void)state;
    struct redis_url u;
    struct error err = {0};
    assert_true(redis_url_parse(STR("redis://bob:p%40ss@[::1]:7000/4"), &u, &err));
    assert_string_equal(u.user, "bob");
    assert_string_equal(u.password, "p@ss");
    assert_string_equal(u.host, "::1");
    assert_string_equal(u.port, "7000");
    assert_int_equal(u.db, 4);
    assert_true(redis_url_parse(STR("redis://cache"), &u, &err));
    assert_string_equal(u.host, "cache");
    assert_string_equal(u.port, "6379");
    assert_true(redis_url_parse(STR("unix:///run/redis.sock?db=2"), &u, &err));
    assert_string_equal(u.path, "/run/redis.sock");
    assert_int_equal(u.db, 2);
    static const char *const bad[] = {"",
                                      "http://x",
                                      "rediss://x",
                                      "redis://x:0",
                                      "redis://x:70000",
                                      "redis://x/abc",
                                      "redis://[::1",
                                      "redis://a:%zz@x",
                                      "redis://bob@x",
                                      "unix://relative",
                                      "unix:///a?x=1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_false(redis_url_parse(str_of(bad[i]), &u, &err));
}

/* Every way of cutting the bytes into pieces must give the same replies. */
static void the_parser_takes_bytes_in_any_pieces(void **state) {
    (void)state;
    static const char bytes[] = "*3\r\n:-5\r\n$-1\r\n*2\r\n$3\r\nabc\r\n+OK\r\n-ERR no\r\n*-1\r\n*0\r\n$0\r\n\r\n";
    for (size_t cut = 1; cut < sizeof bytes - 1; cut++) {
        struct redis_parser *p = redis_parser_new(1024);
        struct redis_reply *replies[8] = {0};
        size_t count = 0;
        struct error err = {0};
        for (size_t at = 0; at < sizeof bytes - 1; at += cut) {
            size_t len = sizeof bytes - 1 - at < cut ? sizeof bytes - 1 - at : cut;
            assert_true(redis_parser_feed(p, bytes + at, len));
            while (redis_parser_next(p, &replies[count], &err) == REDIS_PARSED_REPLY) count++;
        }
        assert_int_equal(count, 5);
        assert_int_equal(replies[0]->items[0].integer, -5);
        assert_int_equal(replies[0]->items[1].type, REDIS_NIL);
        assert_string_equal(replies[0]->items[2].items[0].text.at, "abc");
        assert_int_equal(replies[1]->type, REDIS_ERROR);
        assert_int_equal(replies[2]->type, REDIS_NIL);
        assert_int_equal(replies[3]->count, 0);
        assert_int_equal(replies[4]->type, REDIS_STRING);
        for (size_t i = 0; i < count; i++) redis_reply_free(replies[i]);
        redis_parser_free(p);
    }
}

static void the_parser_bounds_what_a_reply_may_take(void **state) {
    (void)state;
    static const char *const hostile[] = {
        "*2147483647\r\n", "*1000000\r\n",        "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
        "!x\r\n",          "$99999999999999\r\n", "*99999999999999999999\r\n"};
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        struct redis_parser *p = redis_parser_new(4096);
        struct redis_reply *reply = NULL;
        struct error err = {0};
        assert_true(redis_parser_feed(p, hostile[i], strlen(hostile[i])));
        enum redis_parsed parsed = redis_parser_next(p, &reply, &err);
        static const char filler[8192];
        if (parsed == REDIS_PARSED_MORE) {
            assert_true(redis_parser_feed(p, filler, sizeof filler));
            parsed = redis_parser_next(p, &reply, &err);
        }
        assert_int_equal(parsed, REDIS_PARSED_FAILED);
        redis_parser_free(p);
    }
}

static int start(void **state) {
    (void)state;
    (void)signal(SIGPIPE, SIG_IGN);
    if (!loop_open()) return -1;
    redis_server_start(&server);
    return 0;
}

static int stop(void **state) {
    (void)state;
    redis_server_kill(&server);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(urls_are_read_and_bad_ones_refused),
        cmocka_unit_test(the_parser_takes_bytes_in_any_pieces),
        cmocka_unit_test(the_parser_bounds_what_a_reply_may_take),
        cmocka_unit_test(commands_come_back),
        cmocka_unit_test(the_first_command_need_not_wait_for_the_connection),
        cmocka_unit_test(binary_values_survive),
        cmocka_unit_test(the_commands_of_a_turn_leave_in_one_write),
        cmocka_unit_test(a_pipeline_answers_each_command),
        cmocka_unit_test(a_script_is_loaded_when_the_server_lacks_it),
        cmocka_unit_test(more_than_the_bound_in_flight_is_busy),
        cmocka_unit_test(a_cancelled_command_does_not_answer),
        cmocka_unit_test(a_reply_that_is_too_large_is_refused_and_the_connection_recovers),
        cmocka_unit_test(a_command_past_its_limit_times_out_and_the_rest_is_unavailable),
        cmocka_unit_test(an_answer_that_waits_to_be_read_is_not_late),
        cmocka_unit_test(killed_in_flight_is_unavailable_and_a_restart_recovers),
        cmocka_unit_test(a_server_that_was_never_there_answers_unavailable),
        cmocka_unit_test(a_wrong_password_is_away_and_the_right_one_is_not),
        cmocka_unit_test(a_server_that_cannot_now_is_away_and_a_wrong_command_is_not),
        cmocka_unit_test(the_client_may_be_closed_in_a_callback),
        cmocka_unit_test(a_listener_listens_again_after_an_outage),
        cmocka_unit_test(a_channel_opened_again_waits_for_its_own_confirmation),
        cmocka_unit_test(thousands_of_channels_are_told_apart),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
