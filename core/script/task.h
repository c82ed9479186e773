/* The yield contract, the same in every binding: once you know one you know all.
 *
 * A task is one Lua coroutine that does one piece of work (a request, a job, a timer, a CLI command). A binding that
 * must wait is written like this:
 *
 *     static int l_get(lua_State *L) {
 *         struct task *t = task_current(L);            // raises a Lua error outside a task
 *         struct op *op = start(..., done, t);         // begins; must NOT complete before it returns
 *         if (!op) return task_fail(L, &err);          // pushes nil, {kind=, code=, message=}
 *         return task_suspend(L, t, cancel, op);       // must be returned at once
 *     }
 *     static void done(void *data, ...) {              // from the loop, once
 *         struct task *t = ...;
 *         task_answer(t, push_answer, answer);         // runs Lua; `t` may be gone when it returns
 *     }
 *     static int push_answer(lua_State *L, void *data) // pushes the results of l_get; it may raise
 *         lua_pushstring(L, data);
 *         return 1;
 *     }
 *     static void cancel(void *op);                    // the task will not take the answer any more: free or detach
 *                                                      // the op; `done` must not touch the task after this
 *
 * Either `done` or `cancel` happens, never both. A task is cancelled when its client goes away or its deadline passes:
 * the suspended binding then answers `nil, {kind = "cancelled"|"deadline"}`, and so does every later suspension of that
 * task, so that code which swallows the error gets nowhere; what it holds is given back by its arena's deferred calls.
 * Errors are values at this level (nil, err); the Lua layer `kasma.*` raises them. */
#ifndef KASMA_SCRIPT_TASK_H
#define KASMA_SCRIPT_TASK_H

#include <lua.h>

#include "runtime/arena.h"
#include "runtime/error.h"

struct task;

/* The task whose coroutine is running. Raises a Lua error when L is no task's coroutine. */
struct task *task_current(lua_State *L);
/* Whether Lua code of a task is at work now, so that an error raised ends that task and nothing else. */
bool task_is_running(void);
/* Counts the times that a task began or went on: who compares knows whether the same stretch of work still runs. */
uint64_t task_turns(void);
/* The task's arena; ends with the task. */
struct arena *task_arena(struct task *t);
lua_State *task_lua(struct task *t);
/* The binding's first argument, as it lies at 1, is kept from the collector while the task waits, and no other. */
int task_suspend(lua_State *L, struct task *t, void (*cancel)(void *op), void *op);
/* Resumes the task with what `push` pushes onto the state that it is given; it returns the number of values (at most
 * 16). Where it raises, for lack of memory in most cases, the binding answers nil, {kind = "memory"} and a line is
 * logged; what `data` owns is then still its owner's. */
typedef int task_push(lua_State *L, void *data);
void task_answer(struct task *t, task_push *push, void *data);
/* The first half of task_answer, for those that have to look whether it took what it should own before the task runs:
 * puts the values onto the waiting task's stack and returns their number, for task_resume. */
int task_put(struct task *t, task_push *push, void *data);
/* `nresults` values lie on top of task_lua(t): from task_put, or nil, booleans and numbers, which take no memory. */
void task_resume(struct task *t, int nresults);
/* task_answer with nil, {kind, code, message}. */
void task_resume_error(struct task *t, const struct error *err);
/* Pushes nil, {kind, code, message}; returns 2. */
int task_fail(lua_State *L, const struct error *err);
/* The same of an error that is told on the spot. `code` may be NULL or empty: none. */
int task_refuse(lua_State *L, enum error_kind kind, const char *code, const char *message);
/* Cancels: the suspended binding's cancel is called and the coroutine resumed with the error, now when it is
 * suspended, else at its next suspension. */
void task_cancel(struct task *t, enum error_kind why);
/* Deadline in milliseconds from now; 0 = none. Passing it is task_cancel(t, ERR_DEADLINE). */
void task_deadline(struct task *t, uint64_t ms);

/* Starts a task. On top of the main state's stack lie a function and `nargs` arguments; they are popped. `arena` may be
 * NULL (the task makes one of its own); a given arena is the caller's and only borrowed: the caller resets it in or
 * after `finished`. `finished` is called once when the coroutine has ended: `ok` false = it raised, the error value is
 * on top of `L`; the task frees itself afterwards. It may be called before task_start returns.
 * False: out of memory, nothing was started. */
typedef void task_finished(void *data, lua_State *L, bool ok);
bool task_start(lua_State *main, int nargs, struct arena *arena, task_finished *finished, void *data,
                struct task **out);

/* As task_start, but the task begins at the end of this loop turn: for callers that are Lua code themselves. */
bool task_start_later(lua_State *main, int nargs, struct arena *arena, task_finished *finished, void *data,
                      struct task **out);
/* As task_start for those that are called by the loop: `push` pushes the function and its arguments, as for
 * task_answer. False: out of memory. */
bool task_begin(lua_State *main, task_push *push, void *what, struct arena *arena, task_finished *finished, void *data,
                struct task **out);
/* As task_resume, task_answer and task_resume_error, but at the end of this loop turn: for wake-ups that come out of
 * another task's code, where resuming at once would nest one C stack in the other. `cancel` is not called any more. */
void task_resume_later(struct task *t, int nresults);
void task_answer_later(struct task *t, task_push *push, void *data);
void task_resume_error_later(struct task *t, const struct error *err);
/* Suspends for `ms` milliseconds (at least 1); answers true. Must be returned at once, like task_suspend. */
int task_sleep(lua_State *L, struct task *t, uint64_t ms);

/* Why the task was cancelled; ERR_NONE when it was not. */
enum error_kind task_cancelled(const struct task *t);
/* A task_finished callback for tasks nobody waits for: logs the error with its traceback. `data` is not used. */
void task_log_finished(void *data, lua_State *L, bool ok);
/* Logs the error value on top of a failed coroutine's stack with its traceback. `what` names the work that failed. */
void task_log_error(lua_State *L, const char *what);
/* Calls the function with `nargs` arguments on top of L's stack outside of any task (waiting raises an error there).
 * False: the error value is on top. Otherwise nothing is left. */
bool task_call_outside(lua_State *L, int nargs);

/* The main state of L's VM: the one that outlives every task. */
lua_State *task_main(lua_State *L);
/* How many tasks are alive, for metrics and leak tests. */
size_t task_count(void);
/* Frees the idle coroutines of a VM that is about to be closed, and cancels what is still alive in it. */
void task_close(lua_State *main);

#endif
