/* A closed Lua state for what merchants write. Everything that rule code can reach is bounded: instructions, heap,
 * bytes ever allocated, wall time, pattern steps, string building, result size.
 *
 *  - The JIT is off, because compiled traces never look at hooks; a count hook counts instructions and reads the clock.
 *    C functions that do work in proportion to their input charge it to the same count.
 *  - Nothing in a rule can catch a stop: pcall is ours and raises it again, and there are no coroutines.
 *  - Rule code cannot leave anything behind: its globals are read-only, its chunk is run afresh for each run, input and
 *    config are private copies.
 *  - A state that hit its heap limit is broken (`sandbox_broken`) and is to be made anew.
 *
 * Same input, same version, same answer on every machine: the clock is only a net; no random numbers, no addresses,
 * `pairs` goes in order, sorting is stable. */
#ifndef KASMA_SCRIPT_SANDBOX_H
#define KASMA_SCRIPT_SANDBOX_H

#include <lua.h>

#include "runtime/buf.h"
#include "runtime/error.h"

struct sandbox;

enum outcome {
    OUTCOME_OK,
    OUTCOME_ERROR,
    OUTCOME_INSTRUCTIONS,
    OUTCOME_TIME,
    OUTCOME_HEAP,
    OUTCOME_PATTERN,
    OUTCOME_RESULT,
    OUTCOME_INVALID_RESULT,
};

/* "ok", "error", "limit_instructions", "limit_time", "limit_heap", "limit_pattern", "limit_result", "invalid_result".
 */
const char *outcome_name(enum outcome o);

struct sandbox_limits {
    uint64_t instructions;
    uint64_t wall_us; /* a net; time in which the process did not run counts only for the first half */
    size_t heap;      /* bytes of the state beyond what it holds when idle */
    size_t result;    /* bytes, counted as in sandbox_size */
};

/* The budgets of sheet 07, A7. */
extern const struct sandbox_limits sandbox_pure, sandbox_slow;

struct sandbox_report {
    enum outcome outcome;
    int line; /* 0: not known */
    uint64_t instructions, micros;
    size_t heap_peak; /* bytes of the state, all told */
    char message[2001];
};

/* What the manifest says. */
struct sandbox_manifest {
    char hook[64];
    char name[484]; /* 120 characters of UTF-8 */
    char on_error[12];
    int priority;
    int64_t version;
};

/* An empty state. NULL: out of memory. */
struct sandbox *sandbox_new(struct error *err);
void sandbox_free(struct sandbox *sb);
bool sandbox_broken(const struct sandbox *sb);
/* Bytes the state holds now. */
size_t sandbox_bytes(const struct sandbox *sb);

/* Compiles the text (bytecode is refused), runs it on a small budget of its own and checks its manifest. `name` is what
 * errors call it ("promotions/b2g1.lua"). Returns a handle > 0, or 0 with `report` telling what is wrong. */
int sandbox_load(struct sandbox *sb, const char *name, struct str source, struct sandbox_manifest *manifest,
                 struct sandbox_report *report);
void sandbox_unload(struct sandbox *sb, int rule);
/* Gives the rule its config, a JSON object: checked against the manifest's schema, defaults filled in. False: `report`
 * names the field; the rule keeps the config it had. A rule without a config runs with an empty one. */
bool sandbox_configure(struct sandbox *sb, int rule, struct str json, struct sandbox_report *report);

/* Runs a rule. `build` pushes exactly one value, the input, on L: it is called protected and may let Lua raise there;
 * it must keep nothing that such a raise would leak. False from it ends the run as an error with `err`'s message. When
 * the run was ok, `read` is called with the checked result on top of L: only plain values, tables without cycles,
 * finite numbers, string and number keys, within the limits. It must not make L allocate: raw gets, lua_next, and
 * lua_to* of the right types. False from it makes the outcome invalid_result with `err`'s message. Returns
 * report->outcome == OUTCOME_OK. */
bool sandbox_run(struct sandbox *sb, int rule, const struct sandbox_limits *limits,
                 bool (*build)(lua_State *L, void *data, struct error *err),
                 bool (*read)(lua_State *L, void *data, struct error *err), void *data, struct sandbox_report *report);

/* Runs a chunk that only returns data (no manifest), on the load budget; `read` as above. */
bool sandbox_data(struct sandbox *sb, const char *name, struct str source,
                  bool (*read)(lua_State *L, void *data, struct error *err), void *data, struct sandbox_report *report);

/* What the last run logged: lines, each ended by \n. Good until the next run. */
struct str sandbox_log(const struct sandbox *sb);

/* Copies the plain value at `idx` of `from` and pushes it on `to`, another VM's state or the same's. json.null becomes
 * nil. At most `bytes` (strings count their length, other values 8, tables 16) and 32 deep. False: `err` says what and
 * where; nothing was pushed. May raise Lua's out-of-memory error of `to`. */
bool sandbox_copy(lua_State *from, int idx, lua_State *to, size_t bytes, struct error *err);

#endif
