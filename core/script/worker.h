/* One worker process: a loop, a VM, the Lua boot module of its role, and for `serve` a listening socket. */
#ifndef KASMA_SCRIPT_WORKER_H
#define KASMA_SCRIPT_WORKER_H

struct worker_options {
    const char *role;  /* "serve" or "work" */
    int listen_fd;     /* inherited; -1: listens nowhere */
    int ready_fd;      /* one byte is written here when the worker can do its work; -1: nobody waits */
};

/* Runs until TERM, QUIT or INT and everything in flight has ended, or the grace is over. Returns the exit status. */
int worker_run(const struct worker_options *o);

/* Runs require("kasma.cli")[function](args...) as one task and returns the integer it answers, 1 when it raised. For the sub-commands that
 * are written in Lua. `args` is NULL-terminated. */
int worker_command(const char *function, const char *const *args);

#endif
