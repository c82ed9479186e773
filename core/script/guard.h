/* Work in a Lua state that begins on the loop, where nothing catches an error.
 *
 * A call-back of the loop that makes a string or a table may find no memory. Lua raises that as an error; where no
 * protected call surrounds it there is nothing to unwind to, and LuaJIT ends the process. So all that may take memory
 * is done through here. And never on a waiting coroutine's own stack: an error raised there would make it a dead one.
 * It is done on the VM's main state, and the results are moved over, which takes no memory. */
#ifndef KASMA_SCRIPT_GUARD_H
#define KASMA_SCRIPT_GUARD_H

#include <lua.h>

#include "runtime/buf.h"
#include "runtime/error.h"

/* Pushes results and returns their number; the arguments are 1, 2, ... of its frame. May raise. */
typedef int guarded(lua_State *L, void *data);

/* Prepares a VM, once, for guard_call. False: no memory. */
bool guard_open(lua_State *main);
/* Before the VM is closed. */
void guard_close(lua_State *main);
/* Calls fn(main, data) with the `nargs` values on top of main's stack, which are popped. Returns how many results lie
 * there instead; -1: it raised, nothing lies there and `err` is filled: ERR_MEMORY, after garbage was given back, or
 * ERR_INTERNAL with the text. Takes no memory itself. */
int guard_call(lua_State *main, int nargs, guarded *fn, void *data, struct error *err);
/* Gives garbage back, at most once a second: there was no memory. */
void guard_collect(lua_State *main);
/* Pushes {kind = "memory", message = ...}, the same table each time; takes no memory. */
void guard_push_no_memory(lua_State *L);
/* Pushes the bytes as a string and frees the buffer, also when there is no memory for the string: then it raises. */
void guard_push_buf(lua_State *L, struct buf *b);

#endif
