// link: stores
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "redis_server.h"
#include "runtime/log.h"
#include "stores/redis.h"
#include "stores/redlock.h"

enum { NODES = 5 };
static struct redis_server nodes[NODES];
static char urls[NODES * 64];

/* ---- the algebra ---- */

static void a_majority_is_more_than_half(void **state) {
    (void)state;
    static const size_t quorum[] = {0, 1, 2, 2, 3, 3, 4, 4};
    for (size_t n = 1; n < sizeof quorum / sizeof *quorum; n++) {
        assert_int_equal(redlock_quorum(n), quorum[n]);
        assert_true(2 * redlock_quorum(n) > n);
    }
}

static void validity_is_what_time_and_drift_leave(void **state) {
    (void)state;
    assert_int_equal(redlock_drift(5000), 52);
    assert_int_equal(redlock_validity(5000, 30), 4918);
    assert_int_equal(redlock_drift(149), 3);
    assert_int_equal(redlock_drift(150), 4);
    assert_true(redlock_validity(100, 97) <= 0);
}

static void pauses_stay_within_their_jitter(void **state) {
    (void)state;
    bool low = false, high = false;
    for (uint32_t i = 0; i < 2000; i++) {
        int64_t d = redlock_delay(200, 200, i * 2654435761U);
        assert_true(d >= 0 && d <= 400);
        low = low || d < 50;
        high = high || d > 350;
    }
    assert_true(low && high);
    assert_int_equal(redlock_delay(70, 0, 12345), 70);
    assert_int_equal(redlock_delay(10, 100, 0), 0);
}

/* Whatever the answers and their order: two askers are never both granted by a majority, and a decision never changes.
 */
static void decisions_are_final_and_exclusive(void **state) {
    (void)state;
    for (size_t n = 1; n <= 9; n++) {
        for (size_t g = 0; g <= n; g++) {
            for (size_t r = 0; g + r <= n; r++) {
                for (size_t f = 0; g + r + f <= n; f++) {
                    enum redlock_state now = redlock_decide(n, g, r, f);
                    if (g + r + f == n) assert_int_not_equal(now, REDLOCK_OPEN);
                    if (now == REDLOCK_HELD) assert_int_not_equal(redlock_decide(n, n - g, g, 0), REDLOCK_HELD);
                    if (now == REDLOCK_OPEN || g + r + f == n) continue;
                    bool held = now == REDLOCK_HELD;
                    assert_int_equal(held, redlock_decide(n, g + 1, r, f) == REDLOCK_HELD);
                    assert_int_equal(held, redlock_decide(n, g, r + 1, f) == REDLOCK_HELD);
                    assert_int_equal(held, redlock_decide(n, g, r, f + 1) == REDLOCK_HELD);
                }
            }
        }
    }
}

static void keys_need_a_tenant(void **state) {
    (void)state;
    struct buf b = {0};
    struct error err = {0};
    assert_true(redlock_key(&b, STR("acme"), STR("wallet:42"), &err));
    assert_int_equal(b.len, strlen("lock:{acme}:wallet:42"));
    assert_memory_equal(b.data, "lock:{acme}:wallet:42", b.len);
    buf_free(&b);
    static const char *const bad[] = {"", "-a", "a b", "a}b", "a:b", "{a}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_false(redlock_key(&b, str_of(bad[i]), STR("x"), &err));
        assert_int_equal(err.kind, ERR_INVALID);
    }
    assert_false(redlock_key(&b, (struct str){0}, STR("x"), &err));
    assert_false(redlock_key(&b, STR("acme"), STR(""), &err));
    assert_false(redlock_key(&b, STR("acme"), STR("a\nb"), &err));
    assert_int_equal(b.len, 0);
}

/* ---- five servers ---- */

struct asker {
    struct redlock *lock;
    struct redlock_hold *hold;
    int answers, changes;
    struct error err, change_err;
    size_t want_up;
};

static void on_acquired(void *data, struct redlock_hold *hold, const struct error *err) {
    struct asker *a = data;
    a->answers++;
    a->hold = hold;
    a->err = err ? *err : (struct error){0};
}
static void on_changed(void *data, const struct error *err) {
    struct asker *a = data;
    a->changes++;
    a->change_err = err ? *err : (struct error){0};
}
static bool has_answer(void *data) {
    return ((struct asker *)data)->answers > 0;
}
static bool has_change(void *data) {
    return ((struct asker *)data)->changes > 0;
}
static bool enough_up(void *data) {
    struct asker *a = data;
    return redlock_nodes_up(a->lock) == a->want_up;
}

static void join(struct asker *a) {
    *a = (struct asker){.want_up = NODES};
    struct error err = {0};
    a->lock = redlock_new(str_of(urls), 10000, &err);
    assert_non_null(a->lock);
    assert_true(run_until(enough_up, a, 60));
}

static void leave(struct asker *a) {
    run_closed();
    redlock_free(a->lock);
    run_closed();
}

static struct redlock_policy once(uint32_t ttl) {
    return (struct redlock_policy){.ttl_ms = ttl};
}

static void acquire(struct asker *a, const char *key, struct redlock_policy policy) {
    a->answers = 0;
    a->hold = NULL;
    struct str keys[1] = {str_of(key)};
    struct error err = {0};
    if (!redlock_acquire(a->lock, keys, 1, &policy, on_acquired, a, &err)) {
        a->err = err;
        return;
    }
    assert_int_equal(a->answers, 0);
    assert_true(run_until(has_answer, a, 60));
}

static void release(struct asker *a) {
    a->changes = 0;
    struct error err = {0};
    assert_true(redlock_release(a->hold, on_changed, a, &err));
    a->hold = NULL;
    assert_true(run_until(has_change, a, 60));
}

static void one_holds_and_the_other_waits(void **state) {
    (void)state;
    struct asker a, b;
    join(&a);
    join(&b);
    acquire(&a, "lock:{t}:one", once(10000));
    assert_non_null(a.hold);
    assert_true(redlock_validity_left(a.hold) > 0 && redlock_validity_left(a.hold) <= 10000 - 102);
    acquire(&b, "lock:{t}:one", once(10000));
    assert_null(b.hold);
    assert_int_equal(b.err.kind, ERR_BUSY);
    assert_string_equal(b.err.code, "locked");
    release(&a);
    assert_int_equal(a.change_err.kind, ERR_NONE);
    acquire(&b, "lock:{t}:one", REDLOCK_POLICY(10000));
    assert_non_null(b.hold);
    release(&b);
    leave(&a);
    leave(&b);
}

static void several_keys_are_all_or_none(void **state) {
    (void)state;
    struct asker a, b;
    join(&a);
    join(&b);
    acquire(&a, "lock:{t}:k2", once(10000));
    assert_non_null(a.hold);
    struct str keys[] = {STR("lock:{t}:k1"), STR("lock:{t}:k2"), STR("lock:{t}:k3")};
    struct redlock_policy policy = once(10000);
    struct error err = {0};
    assert_non_null(redlock_acquire(b.lock, keys, 3, &policy, on_acquired, &b, &err));
    assert_true(run_until(has_answer, &b, 60));
    assert_null(b.hold);
    release(&a);
    /* Nothing of the refused one may be left on k1 or k3. */
    acquire(&a, "lock:{t}:k1", once(10000));
    assert_non_null(a.hold);
    release(&a);
    b.answers = 0;
    assert_non_null(redlock_acquire(b.lock, keys, 3, &policy, on_acquired, &b, &err));
    assert_true(run_until(has_answer, &b, 60));
    assert_non_null(b.hold);
    acquire(&a, "lock:{t}:k3", once(10000));
    assert_int_equal(a.err.kind, ERR_BUSY);
    release(&b);
    leave(&a);
    leave(&b);
}

static void on_flushed(void *data, const struct redis_reply *reply, const struct error *err) {
    (void)reply;
    assert_null(err);
    *(bool *)data = true;
}
static bool is_flushed(void *data) {
    return *(bool *)data;
}

static void an_extended_lock_lasts_and_a_lost_one_says_so(void **state) {
    (void)state;
    struct asker a, b;
    join(&a);
    join(&b);
    acquire(&a, "lock:{t}:ext", once(20000));
    assert_non_null(a.hold);
    struct error err = {0};
    assert_true(redlock_extend(a.hold, 60000, on_changed, &a, &err));
    assert_false(redlock_extend(a.hold, 60000, on_changed, &a, &err));
    assert_int_equal(err.kind, ERR_BUSY);
    assert_true(run_until(has_change, &a, 60));
    assert_int_equal(a.change_err.kind, ERR_NONE);
    assert_true(redlock_validity_left(a.hold) > 20000);
    /* Someone wipes three of the five servers: the majority is gone, and it is noticed. */
    for (int i = 0; i < 3; i++) {
        struct redis *r = redis_new(str_of(nodes[i].url), &(struct redis_options){0}, &err);
        struct str flush[1] = {STR("FLUSHALL")};
        bool flushed = false;
        assert_non_null(redis_call(r, flush, 1, on_flushed, &flushed, &err));
        assert_true(run_until(is_flushed, &flushed, 60));
        redis_free(r);
    }
    a.changes = 0;
    assert_true(redlock_extend(a.hold, 60000, on_changed, &a, &err));
    assert_true(run_until(has_change, &a, 60));
    assert_string_equal(a.change_err.code, "lost");
    assert_int_equal(redlock_validity_left(a.hold), 0);
    release(&a);
    assert_string_equal(a.change_err.code, "lost");
    acquire(&b, "lock:{t}:ext", REDLOCK_POLICY(10000));
    assert_non_null(b.hold);
    release(&b);
    leave(&a);
    leave(&b);
}

/* Servers that do not answer may have done what they were asked to. */
static void a_lock_that_was_to_last_shorter_is_not_trusted_for_longer(void **state) {
    (void)state;
    struct asker a;
    join(&a);
    acquire(&a, "lock:{t}:shorter", once(600000));
    assert_non_null(a.hold);
    for (int i = 0; i < 3; i++) assert_int_equal(kill(nodes[i].pid, SIGSTOP), 0);
    a.changes = 0;
    struct error err = {0};
    bool sent = redlock_extend(a.hold, 1000, on_changed, &a, &err);
    assert_true(sent && redlock_validity_left(a.hold) <= 1000);
    assert_true(run_until(has_change, &a, 20));
    for (int i = 0; i < 3; i++) assert_int_equal(kill(nodes[i].pid, SIGCONT), 0);
    assert_int_equal(a.change_err.kind, ERR_UNAVAILABLE);
    assert_true(redlock_validity_left(a.hold) <= 1000);
    assert_true(run_until(enough_up, &a, 20));
    release(&a); /* held still, or run out by now */
    leave(&a);
}

static void a_lock_that_ran_out_is_lost_to_its_holder_and_free_for_others(void **state) {
    (void)state;
    struct asker a, b;
    join(&a);
    join(&b);
    acquire(&a, "lock:{t}:short", once(50));
    acquire(&b, "lock:{t}:short", REDLOCK_POLICY(10000)); /* its retries outlast the 50 ms */
    assert_non_null(b.hold);
    if (a.hold) {
        assert_int_equal(redlock_validity_left(a.hold), 0);
        struct error err = {0};
        assert_false(redlock_extend(a.hold, 1000, on_changed, &a, &err));
        assert_string_equal(err.code, "lost");
        release(&a); /* must not take b's lock away */
    }
    acquire(&a, "lock:{t}:short", once(50));
    assert_null(a.hold);
    release(&b);
    assert_int_equal(b.change_err.kind, ERR_NONE);
    leave(&a);
    leave(&b);
}

static void a_cancelled_attempt_leaves_no_lock(void **state) {
    (void)state;
    struct asker a, b;
    join(&a);
    join(&b);
    struct str keys[1] = {STR("lock:{t}:cancel")};
    struct redlock_policy policy = once(60000);
    struct error err = {0};
    for (int i = 0; i < 20; i++) {
        struct redlock_attempt *attempt = redlock_acquire(a.lock, keys, 1, &policy, on_acquired, &a, &err);
        assert_non_null(attempt);
        redlock_cancel(attempt);
    }
    acquire(&b, "lock:{t}:cancel", REDLOCK_POLICY(10000));
    assert_non_null(b.hold);
    assert_int_equal(a.answers, 0);
    release(&b);
    leave(&a);
    leave(&b);
}

/* ---- faults ---- */

/* Contenders take and give back one lock, over and over; `inside` counts who believes to hold it. */
struct contender {
    struct redlock *lock;
    struct redlock_hold *hold;
    struct scene *scene;
    uv_timer_t timer;
};
struct scene {
    int inside, most, rounds, failures;
    bool over;
    int running;
    struct contender contenders[4];
};

static void contend(struct contender *c);

static void work_done(uv_timer_t *timer) {
    struct contender *c = timer->data;
    /* Only while the validity lasts does a holder count as inside. */
    c->scene->inside--;
    c->scene->rounds++;
    struct error err = {0};
    (void)redlock_release(c->hold, NULL, NULL, &err);
    c->hold = NULL;
    contend(c);
}

static void got_it(void *data, struct redlock_hold *hold, const struct error *err) {
    struct contender *c = data;
    if (err) {
        c->scene->failures++;
        contend(c);
        return;
    }
    c->hold = hold;
    if (++c->scene->inside > c->scene->most) c->scene->most = c->scene->inside;
    (void)uv_timer_start(&c->timer, work_done, 2, 0);
}

static void try_later(uv_timer_t *timer) {
    contend(timer->data);
}

static void contend(struct contender *c) {
    if (c->scene->over) {
        c->scene->running--;
        return;
    }
    static const struct str keys[1] = {{"lock:{t}:fight", 14}};
    struct redlock_policy policy = {.ttl_ms = 5000, .retries = 50, .delay_ms = 5, .jitter_ms = 5};
    struct error err = {0};
    if (redlock_acquire(c->lock, keys, 1, &policy, got_it, c, &err)) return;
    c->scene->failures++;
    (void)uv_timer_start(&c->timer, try_later, 5, 0);
}

static bool scene_quiet(void *data) {
    return ((struct scene *)data)->running == 0;
}
static int goal;
static bool enough_rounds(void *data) {
    return ((struct scene *)data)->rounds >= goal;
}

static void play(struct scene *s, int more) {
    goal = s->rounds + more;
    assert_true(run_until(enough_rounds, s, 60));
}

static void nobody_shares_a_lock_while_servers_die_and_freeze(void **state) {
    (void)state;
    struct scene s = {0};
    struct error err = {0};
    for (size_t i = 0; i < 4; i++) {
        struct contender *c = &s.contenders[i];
        c->scene = &s;
        c->lock = redlock_new(str_of(urls), 1000, &err);
        assert_int_equal(uv_timer_init(loop_get(), &c->timer), 0);
        c->timer.data = c;
        s.running++;
        contend(c);
    }
    play(&s, 30);
    redis_server_kill(&nodes[0]);
    play(&s, 30);
    assert_true(freeze(nodes[1].pid));
    play(&s, 30); /* three of five: still a majority */
    redis_server_start(&nodes[0]);
    assert_true(thaw(nodes[1].pid));
    play(&s, 30);
    assert_true(freeze(nodes[2].pid));
    redis_server_kill(&nodes[3]);
    play(&s, 30);
    assert_true(thaw(nodes[2].pid));
    redis_server_start(&nodes[3]);
    play(&s, 30);
    s.over = true;
    assert_true(run_until(scene_quiet, &s, 60));
    print_message("rounds %d, failures %d, most at once %d\n", s.rounds, s.failures, s.most);
    assert_int_equal(s.most, 1);
    run_closed();
    for (size_t i = 0; i < 4; i++) {
        redlock_free(s.contenders[i].lock);
        uv_close((uv_handle_t *)&s.contenders[i].timer, NULL);
    }
    run_closed();
}

static void without_a_majority_it_is_unavailable_at_once(void **state) {
    (void)state;
    struct asker a;
    join(&a);
    for (int i = 0; i < 3; i++) redis_server_kill(&nodes[i]);
    a.want_up = NODES - 3;
    assert_true(run_until(enough_up, &a, 60));
    acquire(&a, "lock:{t}:away", REDLOCK_POLICY(10000));
    assert_int_equal(a.answers, 0); /* refused by the call itself: nothing was waited for */
    assert_int_equal(a.err.kind, ERR_UNAVAILABLE);
    for (int i = 0; i < 3; i++) redis_server_start(&nodes[i]);
    a.want_up = NODES;
    assert_true(run_until(enough_up, &a, 60));
    acquire(&a, "lock:{t}:away", REDLOCK_POLICY(10000));
    assert_non_null(a.hold);
    release(&a);
    leave(&a);
}

/* ---- clocks ---- */

static void with_clocks(const char *const clocks[NODES]) {
    for (size_t i = 0; i < NODES; i++) {
        redis_server_kill(&nodes[i]);
        nodes[i].clock = clocks ? clocks[i] : NULL;
        redis_server_start(&nodes[i]);
    }
}

static bool is_over(void *data) {
    return redlock_validity_left(((struct asker *)data)->hold) <= 0;
}

/* `b` asks until it has what `a` let run out, and never gets it while a's validity lasts. The end of the validity and
 * nothing else is what `a` goes by: it does not release. */
static void hand_over(struct asker *a, struct asker *b, uint32_t ttl) {
    acquire(a, "lock:{t}:clock", REDLOCK_POLICY(ttl));
    assert_non_null(a->hold);
    for (;;) {
        acquire(b, "lock:{t}:clock", once(ttl));
        bool mine_is_over = is_over(a);
        if (!b->hold) continue;
        assert_true(mine_is_over);
        break;
    }
    release(b);
    release(a);
}

static void clocks_that_differ_and_drift_share_no_lock(void **state) {
    (void)state;
    /* Hours and days apart, and running up to 0.8 % fast or slow: within the drift that the validity allows for. */
    static const char *const clocks[NODES] = {"86400 1.008", "-10800 1.008", "0 1.008", "-34560000 0.992",
                                              "2592000 0.992"};
    with_clocks(clocks);
    struct asker a, b;
    join(&a);
    join(&b);
    for (int i = 0; i < 5; i++) hand_over(i % 2 ? &a : &b, i % 2 ? &b : &a, 600);
    leave(&a);
    leave(&b);
    with_clocks(NULL);
}

static void clocks_that_run_away_break_the_lock_and_only_a_fence_holds(void **state) {
    (void)state;
    /* A majority five times too fast: what the lock cannot promise, so that nobody believes it does. It also shows that
     * the clocks of the test above are other clocks indeed. */
    static const char *const clocks[NODES] = {"0 5", "0 5", "0 5", NULL, NULL};
    with_clocks(clocks);
    struct asker a, b;
    join(&a);
    join(&b);
    bool both = false;
    for (int round = 0; round < 10 && !both; round++) {
        acquire(&a, "lock:{t}:fast", REDLOCK_POLICY(3000));
        assert_non_null(a.hold);
        while (!both && !is_over(&a)) {
            acquire(&b, "lock:{t}:fast", once(3000));
            both = b.hold && !is_over(&a);
            if (b.hold) release(&b);
        }
        release(&a);
    }
    assert_true(both);
    leave(&a);
    leave(&b);
    with_clocks(NULL);
}

static int start(void **state) {
    (void)state;
    (void)signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_ERROR);
    if (!loop_open()) return -1;
    size_t at = 0;
    for (size_t i = 0; i < NODES; i++) {
        redis_server_start(&nodes[i]);
        at += (size_t)snprintf(urls + at, sizeof urls - at, "%s%s", i ? "," : "", nodes[i].url);
    }
    return 0;
}

static int stop(void **state) {
    (void)state;
    for (size_t i = 0; i < NODES; i++) redis_server_kill(&nodes[i]);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_majority_is_more_than_half),
        cmocka_unit_test(validity_is_what_time_and_drift_leave),
        cmocka_unit_test(pauses_stay_within_their_jitter),
        cmocka_unit_test(decisions_are_final_and_exclusive),
        cmocka_unit_test(keys_need_a_tenant),
        cmocka_unit_test(one_holds_and_the_other_waits),
        cmocka_unit_test(several_keys_are_all_or_none),
        cmocka_unit_test(an_extended_lock_lasts_and_a_lost_one_says_so),
        cmocka_unit_test(a_lock_that_was_to_last_shorter_is_not_trusted_for_longer),
        cmocka_unit_test(a_lock_that_ran_out_is_lost_to_its_holder_and_free_for_others),
        cmocka_unit_test(a_cancelled_attempt_leaves_no_lock),
        cmocka_unit_test(nobody_shares_a_lock_while_servers_die_and_freeze),
        cmocka_unit_test(without_a_majority_it_is_unavailable_at_once),
        cmocka_unit_test(clocks_that_differ_and_drift_share_no_lock),
        cmocka_unit_test(clocks_that_run_away_break_the_lock_and_only_a_fence_holds),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
