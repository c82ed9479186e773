#include "runtime/loop.h"

#include "runtime/log.h"

static uv_loop_t loop;
static uv_check_t turn_end;  /* runs after the poll phase */
static uv_idle_t keep_going; /* keeps poll from blocking while a hook waits that was queued outside of it */
static struct loop_hook *first, *last;
static struct loop_hook *due; /* those of this turn that have not run yet */
static bool opened;

uv_loop_t *loop_get(void) {
    return &loop;
}

static void run_hooks(uv_check_t *check) {
    (void)check;
    due = first;
    first = last = NULL;
    int stopped = uv_idle_stop(&keep_going);
    (void)stopped; /* stopping an idle handle cannot fail */
    while (due) {
        struct loop_hook *hook = due;
        due = hook->next;
        hook->queued = false;
        hook->next = NULL;
        hook->fn(hook->data);
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

/* False: it is not in the list that begins at `at`. */
static bool take_out(struct loop_hook **at, struct loop_hook *hook) {
    struct loop_hook *before = NULL;
    while (*at && *at != hook) {
        before = *at;
        at = &(*at)->next;
    }
    if (!*at) return false;
    *at = hook->next;
    if (last == hook) last = before;
    return true;
}

void loop_forget(struct loop_hook *hook) {
    if (!hook->queued) return;
    /* What one hook forgets may be due in this very turn: it must not be called any more, its memory may be gone. */
    bool found = take_out(&due, hook) || take_out(&first, hook);
    (void)found; /* queued: it is in one of them */
    hook->queued = false;
    hook->next = NULL;
}
