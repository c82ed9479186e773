#include "http/wheel.h"

#include <string.h>

static void put(struct wheel *w, struct wheel_entry *e) {
    uint64_t ticks = e->due > w->now ? (e->due - w->now + w->tick_ms - 1) / w->tick_ms : 1;
    /* Further than the wheel reaches: looked at again in the last slot. */
    if (ticks >= WHEEL_SLOTS) ticks = WHEEL_SLOTS - 1;
    if (ticks == 0) ticks = 1;
    e->slot_due = w->now + ticks * w->tick_ms;
    struct wheel_entry **slot = &w->slots[e->slot_due / w->tick_ms % WHEEL_SLOTS];
    e->next = *slot;
    if (e->next) e->next->at = &e->next;
    e->at = slot;
    *slot = e;
    w->armed++;
}

void wheel_remove(struct wheel *w, struct wheel_entry *e) {
    e->due = 0;
    if (!e->at) return;
    *e->at = e->next;
    if (e->next) e->next->at = e->at;
    e->next = NULL;
    e->at = NULL;
    w->armed--;
}

static void turn(uv_timer_t *timer) {
    struct wheel *w = timer->data;
    uint64_t now = uv_now(timer->loop);
    while (w->now + w->tick_ms <= now) {
        w->now += w->tick_ms;
        struct wheel_entry **slot = &w->slots[w->now / w->tick_ms % WHEEL_SLOTS];
        /* The list is moved to this frame, so that an entry that is set again by `fire` cannot be met twice. */
        struct wheel_entry *due = *slot;
        *slot = NULL;
        if (due) due->at = &due;
        while (due) {
            struct wheel_entry *e = due;
            uint64_t when = e->due;
            wheel_remove(w, e);
            if (when == 0) continue;
            if (when > w->now) {
                e->due = when;
                put(w, e);
            } else {
                e->fire(e);
            }
        }
    }
    if (w->armed == 0) {
        int stopped = uv_timer_stop(timer);
        (void)stopped; /* stopping an initialised timer cannot fail */
        w->running = false;
    }
}

bool wheel_open(struct wheel *w, uv_loop_t *loop, uint64_t tick_ms) {
    memset(w, 0, sizeof *w);
    if (uv_timer_init(loop, &w->timer) != 0) return false;
    w->timer.data = w;
    w->tick_ms = tick_ms;
    return true;
}

void wheel_close(struct wheel *w, uv_close_cb closed) {
    for (size_t i = 0; i < WHEEL_SLOTS; i++)
        while (w->slots[i]) wheel_remove(w, w->slots[i]);
    uv_close((uv_handle_t *)&w->timer, closed);
}

void wheel_set(struct wheel *w, struct wheel_entry *e, uint64_t ms) {
    uint64_t now = uv_now(w->timer.loop);
    if (!w->running) {
        w->now = now / w->tick_ms * w->tick_ms;
        int started = uv_timer_start(&w->timer, turn, w->tick_ms, w->tick_ms);
        (void)started; /* starting an initialised timer with a callback cannot fail */
        w->running = true;
    }
    e->due = now + ms + (ms == 0);
    if (e->at && e->slot_due <= e->due) return;
    if (e->at) {
        uint64_t due = e->due;
        wheel_remove(w, e);
        e->due = due;
    }
    put(w, e);
}
