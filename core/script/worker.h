/* One process with a loop and a VM: a worker that serves or works until it is told to end, or a command that runs once.
 */
#ifndef KASMA_SCRIPT_WORKER_H
#define KASMA_SCRIPT_WORKER_H

#include "runtime/supervisor.h"

/* Runs the boot module for the role, then serves (or works) until TERM, QUIT or INT and everything in flight has ended
 * or the grace is over. Returns the exit status. The body of supervisor_plan.run. */
int worker_run(const struct supervisor_worker *worker);

/* Runs require("kasma.cli")[function](args...) as one task and returns the number it answers: 0 without one, 1 when it
 * raised. For the commands that are written in Lua. `args` is NULL-terminated. */
int worker_command(const char *function, const char *const *args);

#endif
