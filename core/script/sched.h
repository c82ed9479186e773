/* The end of the process, seen from Lua: core.sched's on_stop functions and `stopping()`. */
#ifndef KASMA_SCRIPT_SCHED_H
#define KASMA_SCRIPT_SCHED_H

#include <lua.h>

/* A graceful stop was asked for: starts each sched.on_stop function as a task, stops the sched.every timers. The second
 * call does nothing. `main` is the VM's main state. */
void sched_stop(lua_State *main);

#endif
