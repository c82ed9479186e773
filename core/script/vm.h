/* The platform VM: one LuaJIT state a process, JIT on, with every core.* module ready for `require`.
 *
 * Which modules it knows is given as a table, so that a test opens just what it needs and links just that. */
#ifndef KASMA_SCRIPT_VM_H
#define KASMA_SCRIPT_VM_H

#include <lauxlib.h>
#include <lua.h>

#include "runtime/error.h"
#include "script/task.h"

struct vm;

/* The VM of the server: all modules of bind.c, Lua files from the setting KASMA_LUA_DIR. NULL: `err` says why.
 * (Defined in bind.c, which pulls in every binding.) */
struct vm *vm_new(struct error *err);
/* A VM that preloads `modules` ({"core.json", luaopen_core_json}, ..., {NULL, NULL}). Lua files come from `lua_dir`,
 * or, when that is NULL or empty, from share/kasma/lua beside the installed binary, else from the source tree. */
struct vm *vm_new_with(const luaL_Reg *modules, const char *lua_dir, struct error *err);
/* Cancels the tasks that are left and closes the state. NULL is allowed. */
void vm_free(struct vm *vm);
lua_State *vm_state(struct vm *vm);
/* Bounds the memory of the state: a task that wants more than `bytes` in all gets "not enough memory", which ends it
 * and nobody else. 0: no bound, as at first. */
void vm_limit(struct vm *vm, size_t bytes);
/* Bytes that the state holds. */
size_t vm_memory(const struct vm *vm);

/* Where a folder of the product is: `wanted` when that is set, else share/kasma/<name> beside the installed binary,
 * else <name> in the source tree; into out[PATH_MAX]. False: it is not there or cannot be read. */
bool vm_find_dir(const char *wanted, const char *name, char *out);
/* require(module) outside of any task. True: its value is on top of the state's stack. False: the error was logged with
 * its traceback and is in `err`; nothing was pushed. */
bool vm_require(struct vm *vm, const char *module, struct error *err);
/* require(module)[function](args...) as a task; `args` is NULL-terminated (NULL: none). `finished` as in task_start;
 * NULL logs a failure. False: nothing was started. */
bool vm_start(struct vm *vm, const char *module, const char *function, const char *const *args, task_finished *finished,
              void *data, struct error *err);
/* Runs Lua text outside of any task; for tests and one-liners. False: `err` holds the message, nothing was pushed. */
bool vm_run(struct vm *vm, const char *text, const char *name, struct error *err);

#endif
