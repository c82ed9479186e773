/* What the files that run rules share: the state with its loaded rules, and one run from its reset to its report. */
#ifndef KASMA_SCRIPT_SANDBOX_RUN_H
#define KASMA_SCRIPT_SANDBOX_RUN_H

#include "script/sandbox_cache.h"
#include "script/sandbox_internal.h"
#include "script/sandbox_wait.h"

struct lib {
    char key[65];
    struct buf source;
};

/* A loaded rule, an element of the state's list. */
struct rule {
    int chunk; /* registry reference; 0: the place is free */
    struct lib *libs;
    size_t nlibs;
    struct compiled *compiled; /* what its text compiled to, held; NULL: not kept */
    bool looked;               /* sandbox_keep_run has been there */
    int run;  /* registry reference of a run function that keeps no state; 0: the chunk is run each time */
    int kept; /* registry reference of what its upvalues must hold: function, index, value, ... */
    int nkept;
    char name[128];
    struct buf config; /* JSON object, checked; empty: none */
};

struct rules {
    struct rule *at;
    int count;
};

struct sandbox_state {
    struct sandbox sb; /* first: what the allocator knows */
    struct rules rules;
    int handler;                     /* registry reference of the message handler */
    int env;                         /* registry reference of the rules' globals */
    int error_line;                  /* set by the handler */
    char error_stack[SANDBOX_STACK]; /* the same; empty: none */
    char stop_text[256];
    uint64_t began_us;
    size_t heap; /* what the run may take beyond `idle` */
    /* The run that waits or may wait (sandbox_wait.c). One at a time, and nothing else runs meanwhile. */
    lua_State *thread; /* NULL: none */
    int thread_ref;    /* registry reference that keeps it */
    int waiter;        /* handle of its rule */
    size_t called;     /* the capability it waits for */
    struct sandbox_limits limits;
};

enum task_kind { LOAD, CONFIGURE, RUN, DESCRIBE, DATA, START, ANSWER };

struct call {
    enum task_kind kind;
    struct sandbox_state *st;
    struct rule *rule;
    const char *name;
    struct str source;
    struct sandbox_manifest *manifest;
    const struct sandbox_limits *limits;
    const struct sandbox_entry *entry; /* NULL: the manifest's `run` */
    bool (*build)(lua_State *L, void *data, struct error *err);
    void *data;
    const char *refusal; /* ANSWER: what the call raises */
    struct buf config;
};

struct sandbox_state *sandbox_state_of(struct sandbox *sb);
/* The rule of a handle; NULL: none. */
struct rule *sandbox_rule_at(struct sandbox_state *st, int handle);
/* Budgets, log and stack as for a first run. False: `report` says why nothing can be run. */
bool sandbox_reset(struct sandbox_state *st, size_t heap, struct sandbox_report *report);
/* Starts counting. */
void sandbox_begin(lua_State *L, const struct sandbox_limits *limits);
/* Goes on counting, and stops counting. */
void sandbox_count(lua_State *L);
void sandbox_end(lua_State *L);
/* Runs the call's part that is in sandbox.c's `enter`, protected; its results are on the state's stack. */
int sandbox_protect(struct call *c, int results);
/* Fills the report from how it ended. When that was an error, its value is on top of L. True: it was none. */
bool sandbox_conclude(struct sandbox_state *st, const char *name, lua_State *L, int rc, struct sandbox_report *report);
/* Notes the line that L stands at; level 0 is the innermost function. */
void sandbox_note_place(lua_State *L, int level);
/* Of the two values on top the second is the reason when the first is nil; it is popped. */
void sandbox_take_reason(lua_State *L, struct sandbox_report *report);
/* Hands the checked value on top of L to `read`. */
bool sandbox_deliver(lua_State *L, size_t bytes, bool (*read)(lua_State *L, void *data, struct error *err), void *data,
                     struct sandbox_report *report);
/* Nothing stays on the stack; garbage of many runs is collected. */
void sandbox_tidy(struct sandbox *sb);
/* Pushes the function that is to be called, its input and its config. May raise. */
void sandbox_push_run(lua_State *L, struct call *c);

/* sandbox_keep.c: run functions that can be used again. The manifest is on top. */
void sandbox_keep_run(lua_State *L, struct rule *r);
void sandbox_forget_run(lua_State *L, struct rule *r);
/* After a run: forgets the function when its upvalues do not hold what they held. Allocates nothing. */
void sandbox_recheck_run(lua_State *L, struct rule *r);

/* sandbox_wait.c: the protected parts of START and ANSWER. */
int sandbox_wait_enter(lua_State *L, struct call *c);
int sandbox_wait_push(lua_State *L, struct call *c);

#endif
