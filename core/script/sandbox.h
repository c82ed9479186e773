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
    OUTCOME_BUDGET,  /* the rules of one quote have used up what they share */
    OUTCOME_BREAKER, /* not run: it failed too often just now */
};

/* "ok", "error", "limit_instructions", "limit_time", "limit_heap", "limit_pattern", "limit_result", "invalid_result",
 * "budget", "breaker". */
const char *outcome_name(enum outcome o);

struct sandbox_limits {
    uint64_t instructions;
    uint64_t wall_us; /* a net; time in which the process did not run counts only for the first half */
    size_t heap;      /* bytes of the state beyond what it holds when idle */
    size_t result;    /* bytes, counted as in sandbox_size */
};

/* The budgets of a class of hooks: pure (in the way of a shopper), slow (mail, a save in the editor), and for rules
 * that may wait on capabilities. */
extern const struct sandbox_limits sandbox_pure, sandbox_slow, sandbox_capable;

/* The fields that a table of the input may have. Reading any other name is an error that names the nearest of them; one
 * that is absent is nil. The struct must live as long as the sandbox. */
struct sandbox_record {
    const char *path; /* what errors call it: "input.cart" */
    const char *const *fields;
    size_t count;
};

/* A rule that others take functions from with lib("key"). */
struct sandbox_lib {
    const char *key;
    struct str source;
};

#define SANDBOX_STACK 512
struct sandbox_report {
    enum outcome outcome;
    int line; /* 0: not known */
    uint64_t instructions, micros;
    size_t heap_peak; /* bytes of the state, all told */
    size_t result;    /* bytes of what was returned, counted as in sandbox_size: all it may have when it was too much */
    int log_lines;    /* written, kept or not */
    bool tripped;     /* set by the registry: this failure opened the rule's breaker */
    char reason[201]; /* a run that returned nil and a text: why it did nothing */
    char message[2001];
    /* Of an error: the frames of the rule and its libraries, the innermost first, each "line:chunk:function\n" in
     * ASCII. The function is empty where it has no name. */
    char stack[SANDBOX_STACK];
};

/* What the manifest says. */
struct sandbox_manifest {
    char hook[64];
    char name[484]; /* 120 characters of UTF-8 */
    char on_error[12];
    int priority;
    int64_t version;
};

/* More of the words `and`, `or`, `elseif`, `break` and `goto` no source may have, or LuaJIT's parser is slow (see
 * sandbox_jumps.c). 0, or the line on which the one too many stands. */
#define SANDBOX_JUMPS_MAX 2000
#define SANDBOX_JUMPS_TEXT "more than %d of the words and, or, elseif, break and goto in one file"
int sandbox_jumps(struct str source, unsigned most);

/* From now on notes which lines of the chunk of that name run, in whichever sandbox; NULL: no more. Lines that were
 * noted stay until the next begins. One at a time. */
void sandbox_cover(const char *chunk);
bool sandbox_covered(int line);

/* An empty state. NULL: out of memory. */
struct sandbox *sandbox_new(struct error *err);
void sandbox_free(struct sandbox *sb);
bool sandbox_broken(const struct sandbox *sb);
/* Gives back what runs have left behind. Call it when nobody has used the state for a while. */
void sandbox_rest(struct sandbox *sb);
/* Bytes the state holds now. */
size_t sandbox_bytes(const struct sandbox *sb);

/* Compiles the text (bytecode is refused), runs it on a small budget of its own and checks its manifest. `name` is what
 * errors call it ("promotions/b2g1.lua"). Returns a handle > 0, or 0 with `report` telling what is wrong. */
int sandbox_load(struct sandbox *sb, const char *name, struct str source, struct sandbox_manifest *manifest,
                 struct sandbox_report *report);
/* The same, for a rule that takes from libraries: all it needs, also by others' need. They are copied. */
int sandbox_load_with(struct sandbox *sb, const char *name, struct str source, const struct sandbox_lib *libs,
                      size_t nlibs, struct sandbox_manifest *manifest, struct sandbox_report *report);
void sandbox_unload(struct sandbox *sb, int rule);
/* Hands the rule's manifest to `read` as plain data (see sandbox_run): schemas resolved, functions as `true`. */
bool sandbox_describe(struct sandbox *sb, int rule, bool (*read)(lua_State *L, void *data, struct error *err),
                      void *data, struct sandbox_report *report);
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

/* Pushes on `to` what rule code may name: {name = true, or {member = true} of a library}. False: `err`. */
bool sandbox_globals(struct sandbox *sb, lua_State *to, struct error *err);

/* What the last run logged: lines, each ended by \n. Good until the next run. */
struct str sandbox_log(const struct sandbox *sb);

/* For `build`: gives the new table on top of L the fields of a record (see above). */
void sandbox_mark_record(lua_State *L, const struct sandbox_record *record);
/* A record that several runs are given, as views (sandbox_input.c). */
struct sandbox_source {
    struct sandbox_record record;
    /* Pushes the value of a field (its number in the record), of the thing that sandbox_fill_source was told; false: it
     * is absent. It may raise. */
    bool (*more)(lua_State *L, size_t field, size_t line, void *context);
    /* Fields, as bits, that are numbers, texts or booleans and that the source may keep once somebody has asked for
     * one. At most one kind of a state has any. */
    uint64_t kept;
    uint64_t views; /* fields, as bits, whose value is a view that sandbox_push_view pushes: it stays the same */
};

/* For `build`: begins the input of a run. `serial` is another for each shot, which is what runs of one hook call share;
 * `context` is what `more` gets until the run ends. Places are numbered from 1 and always of one kind: those before
 * `first_line` are made when they are asked for, the others are filled for each shot. True: they are to be filled;
 * false: they are as this shot left them. */
bool sandbox_begin_shot(lua_State *L, uint64_t serial, void *context, int first_line);
/* For `build`: makes the source at a place, or fills the one that is there. `line` is what `more` is told. */
void sandbox_fill_source(lua_State *L, int place, const struct sandbox_source *kind, size_t line);
/* For `build`: pops a value and gives it to the source as a member, for this run. */
void sandbox_set_member(lua_State *L, int place, const struct sandbox_source *kind, const char *name);
/* For `build` and `more`: pushes the view of a source. */
void sandbox_push_view(lua_State *L, int place, const struct sandbox_source *kind);
/* For `build`: pushes a list, for this run alone, of the views of `count` places. */
void sandbox_push_views(lua_State *L, int place, const struct sandbox_source *kind, int count);

/* Copies the plain value at `idx` of `from` and pushes it on `to`, another VM's state or the same's. json.null becomes
 * nil. At most `bytes` (strings count their length, other values 8, tables 16) and 32 deep. False: `err` says what and
 * where; nothing was pushed. May raise Lua's out-of-memory error of `to`. */
bool sandbox_copy(lua_State *from, int idx, lua_State *to, size_t bytes, struct error *err);
/* The same, taking what it costs off *left. */
bool sandbox_copy_some(lua_State *from, int idx, lua_State *to, size_t *left, struct error *err);

#endif
