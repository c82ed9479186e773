/* Runs that wait. A rule of a capability hook (a route, a step of a workflow) may call functions whose answer comes
 * from a store or from another server. Such a run is a coroutine of a state that does nothing else until the run is
 * over:
 *
 *     enum sandbox_wait now = sandbox_wait_start(sb, rule, NULL, &limits, build, data, &report);
 *     while (now == SANDBOX_CALL) {
 *         struct sandbox_call call = sandbox_wait_call(sb);     name and arguments, plain values
 *         ... get the answer, let other runs of other states go on meanwhile ...
 *         now = sandbox_wait_answer(sb, give, data, &report);
 *     }
 *     if (now == SANDBOX_DONE) ok = sandbox_wait_result(sb, read, data, &report);
 *
 * The budgets of the whole run count across all of its waits; the time that waiting takes is part of `wall_us`, looked
 * at when an answer comes: the host ends a wait that takes too long. A waiting run may be ended at any time, by
 * sandbox_wait_end or with its state. Rule code has no coroutines: what it calls looks like any function.
 *
 * Capabilities are named once for the process, before the first state is made. Every state knows the names, so that a
 * rule can be loaded and checked anywhere; calling one where no run may wait is an error that says so. */
#ifndef KASMA_SCRIPT_SANDBOX_WAIT_H
#define KASMA_SCRIPT_SANDBOX_WAIT_H

#include "script/sandbox.h"

#define SANDBOX_CAPABILITIES_MAX 64

enum sandbox_wait {
    SANDBOX_DONE,   /* it returned: sandbox_wait_result */
    SANDBOX_CALL,   /* it waits for an answer: sandbox_wait_call */
    SANDBOX_FAILED, /* it is over, the report says why */
};

/* A function of a step instead of `run`: steps[step].run, or .undo. */
struct sandbox_entry {
    int step; /* from 1 */
    bool undo;
};

struct sandbox_call {
    const char *name;
    lua_State *L; /* its arguments are all that lies on this stack: plain values, and secrets where they may be */
    int count;
};

/* Names a capability, "kv.get" or "secret": two words of a-z and _ at most. One that `takes_secrets` is handed what one
 * that `gives_secret` answered; for rule code that is a value without content. Naming it again changes nothing. False:
 * `err`. */
bool sandbox_declare(const char *name, bool takes_secrets, bool gives_secret, struct error *err);
/* How many are named; a state made when there were fewer lacks the rest. */
size_t sandbox_declared(void);

/* A state whose runs may wait. NULL: out of memory. */
struct sandbox *sandbox_new_waiting(struct error *err);

/* `limits->heap` and the rest as in sandbox_run, which this is but for the waiting. */
enum sandbox_wait sandbox_wait_start(struct sandbox *sb, int rule, const struct sandbox_entry *entry,
                                     const struct sandbox_limits *limits,
                                     bool (*build)(lua_State *L, void *data, struct error *err), void *data,
                                     struct sandbox_report *report);
/* What the run waits for; the arguments are there until it goes on. */
struct sandbox_call sandbox_wait_call(struct sandbox *sb);
/* Goes on. `give` pushes the values that the call answers, as `build` pushes an input; false from it makes the call
 * raise `err`'s message. */
enum sandbox_wait sandbox_wait_answer(struct sandbox *sb, bool (*give)(lua_State *L, void *data, struct error *err),
                                      void *data, struct sandbox_report *report);
/* Goes on: the call raises an error, which the rule may catch. */
enum sandbox_wait sandbox_wait_refuse(struct sandbox *sb, const char *message, struct sandbox_report *report);
/* After SANDBOX_DONE, once: as `read` of sandbox_run. The run is over then. */
bool sandbox_wait_result(struct sandbox *sb, bool (*read)(lua_State *L, void *data, struct error *err), void *data,
                         struct sandbox_report *report);
/* Ends a run that waits: `report` tells of it with this outcome and message, and the line that it waited at. */
void sandbox_wait_stop(struct sandbox *sb, enum outcome why, const char *message, struct sandbox_report *report);
/* Forgets the run, if any. */
void sandbox_wait_end(struct sandbox *sb);

/* As sandbox_copy, for arguments of a capability that takes secrets: a secret becomes {["$secret"] = name}. */
bool sandbox_copy_secrets(lua_State *from, int idx, lua_State *to, size_t bytes, struct error *err);

#endif
