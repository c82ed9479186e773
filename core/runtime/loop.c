#include "runtime/loop.h"

#include "runtime/log.h"

static uv_loop_t loop;
static uv_check_t turn_end;  /* runs after the poll phase */
static uv_idle_t keep_going; /* keeps poll from blocking while a hook waits that was queued outside of it */
static struct loop_hook *first, *last;
static bool opened;

uv_loop_t *loop_get(void) {
    return &loop;
}

static void run_hooks(uv_check_t *check) {
    (void)check;
    struct loop_hook *hook = first;
    first = last = NULL;
    int stopped = uv_idle_stop(&keep_going);
    (void)stopped; /* stopping an idle handle cannot fail */
    while (hook) {
        struct loop_hook *next = hook->next;
        hook->queued = false;
        hook->next = NULL;
        hook->fn(hook->data);
        hook = next;
    }
    log_flush();
}

static void nothing(uv_idle_t *idle) {
    (void)idle;
}

bool loop_open(void) {
    if (opened) return true;
    if (uv_loop_init(&loop) != 0) return false;
    if (uv_check_init(&loop, &turn_end) != 0 || uv_idle_init(&loop, &keep_going) != 0 ||
        uv_check_start(&turn_end, run_hooks) != 0)
        return false;
    uv_unref((uv_handle_t *)&turn_end);
    opened = true;
    return true;
}

void loop_run(void) {
    int left = uv_run(&loop, UV_RUN_DEFAULT);
    (void)left; /* handles still open after uv_stop: the process is about to end */
}

void loop_stop(void) {
    uv_stop(&loop);
}

void loop_at_turn_end(struct loop_hook *hook) {
    if (hook->queued) return;
    hook->queued = true;
    hook->next = NULL;
    if (last) {
        last->next = hook;
    } else {
        first = hook;
        int started = uv_idle_start(&keep_going, nothing);
        (void)started; /* starting an initialised idle handle cannot fail */
    }
    last = hook;
}

void loop_forget(struct loop_hook *hook) {
    if (!hook->queued) return;
    struct loop_hook **at = &first, *before = NULL;
    while (*at && *at != hook) {
        before = *at;
        at = &(*at)->next;
    }
    if (*at) {
        *at = hook->next;
        if (last == hook) last = before;
    }
    hook->queued = false;
    hook->next = NULL;
}
