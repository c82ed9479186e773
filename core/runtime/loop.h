/* The event loop of this process: one libuv loop, made once, used by every subsystem. All core code runs on its thread
 * but what says otherwise (thread-pool work of crypto and mongo). */
#ifndef KASMA_RUNTIME_LOOP_H
#define KASMA_RUNTIME_LOOP_H

#include <stdbool.h>
#include <uv.h>

/* The process's loop. Valid after loop_open. */
uv_loop_t *loop_get(void);
bool loop_open(void);
/* Runs until loop_stop. Closes nothing by itself. */
void loop_run(void);
void loop_stop(void);

/* Calls fn(data) once at the end of this loop turn, after all I/O callbacks that were ready have run: this is where a
 * pool sends what a turn has gathered. A hook that is registered again while it runs is called in the next turn. */
struct loop_hook {
    void (*fn)(void *data);
    void *data;
    struct loop_hook *next;
    bool queued;
};
/* Queues the hook unless it already is. The hook is the caller's memory and must stay until it has run. */
void loop_at_turn_end(struct loop_hook *hook);
/* Takes a queued hook out again; nothing happens when it is not queued. */
void loop_forget(struct loop_hook *hook);

#endif
