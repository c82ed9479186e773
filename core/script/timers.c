#include "script/timers.h"

#include "runtime/loop.h"

static struct timer *root;
static uv_timer_t clock_timer;
static bool clock_ready;
static bool firing; /* the uv timer is set once, after all due timers have run */

static struct timer *meld(struct timer *a, struct timer *b) {
    if (!a) return b;
    if (!b) return a;
    if (b->due < a->due) {
        struct timer *swap = a;
        a = b;
        b = swap;
    }
    b->before = a;
    b->next = a->child;
    if (a->child) a->child->before = b;
    a->child = b;
    a->next = NULL;
    a->before = NULL;
    return a;
}

/* The usual two passes: pair from left to right, then meld the pairs from right to left. */
static struct timer *meld_siblings(struct timer *first) {
    struct timer *pairs = NULL;
    while (first) {
        struct timer *a = first, *b = a->next;
        first = b ? b->next : NULL;
        a->next = a->before = NULL;
        if (b) b->next = b->before = NULL;
        a = meld(a, b);
        a->next = pairs;
        pairs = a;
    }
    struct timer *all = NULL;
    while (pairs) {
        struct timer *next = pairs->next;
        pairs->next = NULL;
        all = meld(all, pairs);
        pairs = next;
    }
    return all;
}

static void take_out(struct timer *t) {
    struct timer *rest = meld_siblings(t->child);
    if (t == root) {
        root = rest;
    } else {
        if (t->before->child == t) {
            t->before->child = t->next;
        } else {
            t->before->next = t->next;
        }
        if (t->next) t->next->before = t->before;
        root = meld(root, rest);
    }
    t->child = t->next = t->before = NULL;
    t->armed = false;
}

static void fire(uv_timer_t *handle);

static void set_clock(void) {
    if (firing) return;
    uv_loop_t *loop = loop_get();
    if (!clock_ready) {
        int made = uv_timer_init(loop, &clock_timer);
        (void)made; /* cannot fail, says libuv's manual by giving no error */
        clock_ready = true;
    }
    int done;
    if (!root) {
        done = uv_timer_stop(&clock_timer);
    } else {
        uint64_t now = uv_now(loop);
        done = uv_timer_start(&clock_timer, fire, root->due > now ? root->due - now : 0, 0);
    }
    (void)done; /* fails only on a closing handle, and this one is never closed */
}

static void fire(uv_timer_t *handle) {
    uint64_t now = uv_now(handle->loop);
    firing = true;
    while (root && root->due <= now) {
        struct timer *t = root;
        take_out(t);
        t->fn(t->data);
    }
    firing = false;
    set_clock();
}

void timer_start(struct timer *t, uint64_t ms, void (*fn)(void *data), void *data) {
    uv_loop_t *loop = loop_get();
    struct timer *earliest = root;
    if (t->armed) take_out(t);
    uv_update_time(loop); /* Lua may have worked for long since the turn began */
    uint64_t now = uv_now(loop);
    if (ms == 0) ms = 1; /* a timer that is due at once again would keep `fire` from ending */
    t->due = ms > UINT64_MAX - now ? UINT64_MAX : now + ms;
    t->fn = fn;
    t->data = data;
    t->child = t->next = t->before = NULL;
    t->armed = true;
    root = meld(root, t);
    if (root != earliest || root == t) set_clock();
}

void timer_stop(struct timer *t) {
    if (!t->armed) return;
    bool was_earliest = t == root;
    take_out(t);
    if (was_earliest) set_clock();
}
