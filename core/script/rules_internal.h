/* Shared by rules.c (what is live, what a request keeps) and rules_files.c (what comes from files). */
#ifndef KASMA_SCRIPT_RULES_INTERNAL_H
#define KASMA_SCRIPT_RULES_INTERNAL_H

#include "script/rules.h"

#define BREAKER_FAILURES 5

struct lib_source {
    char key[65];
    struct buf source;
};

/* Failures of a version that came close together open its breaker: it is not run for a while, then tried once. */
struct breaker {
    int64_t failed_ms[BREAKER_FAILURES]; /* business time, the newest first */
    int64_t open_until_ms;               /* 0: closed */
    int64_t tried_ms; /* what open_until_ms was before the last run that went well: should that turn out wrong */
};

struct version {
    unsigned refs;
    char id[128], file[132]; /* file: empty for one that was published */
    char rule_id[37];        /* of the rule's row; empty for a file */
    char sha[65];
    int64_t number; /* 0 for a file */
    int priority;
    int64_t starts_ms, ends_ms; /* its window, business time; 0: no such bound */
    struct sandbox_manifest manifest;
    struct buf source, config, fallback;
    struct lib_source *libs;
    size_t nlibs;
    int handle; /* in the tenant's sandbox of this generation */
    unsigned generation;
    struct breaker breaker;
    uint64_t logged_us;
    unsigned unlogged;
};

struct rule_set {
    unsigned refs;
    struct tenant *tenant; /* NULL once the registry is closed */
    struct rule_set *older;
    uint64_t replaced_us;
    int64_t epoch;
    bool trial; /* made by rules_overlay: failures are nobody's, and open no breaker */
    size_t count;
    struct version *at[];
};

struct stamp {
    int64_t mtime_ns, size;
    uint64_t inode;
};

struct watched {
    char file[160];
    struct stamp stamp;
};

struct problem {
    char file[160];
    int line;
    char message[512];
};

struct version_list {
    struct version **at;
    size_t count;
};

struct tenant {
    char key[64];
    size_t key_len;
    struct tenant *next, *next_same;
    struct sandbox *sandbox;
    unsigned generation;
    uint64_t used_us;                          /* its sandbox */
    int64_t asked_ms;                          /* business time at which anybody asked for its rules */
    size_t sets;                               /* that point here: `current`, those it replaced, and those on trial */
    struct rule_set *current;                  /* then those it replaced, by `older` */
    int64_t current_from_ms, current_until_ms; /* business time in which no window opens or closes: `current` holds */
    struct version_list files, published;      /* whatever their windows are */
    int64_t epoch;                             /* of what was published; -1: nothing has been handed over yet */
    struct watched *watched;
    size_t nwatched;
    struct problem *problems;
    size_t nproblems;
    bool loaded;
};

/* A zeroed version with one reference; NULL: no memory. */
struct version *version_new(void);
void version_release(struct version *v);
/* Gives a reference up; the last one takes the version out of the tenant's sandbox. `t` may be NULL. */
void version_drop(struct tenant *t, struct version *v);
/* Fills v->sha from source, config, priority and libraries. */
bool version_hash(struct version *v);
/* Puts the version into the tenant's sandbox unless it is there. */
bool version_into_sandbox(struct tenant *t, struct version *v, struct sandbox_report *report);
/* Loads the version into a state, with its config. 0: `report`. */
int version_load(struct sandbox *sb, struct version *v, struct sandbox_report *report);
/* False: the breaker is open, `report` says so. */
bool version_may_run(const struct rule_set *s, const struct version *v, struct sandbox_report *report);
/* What the run means for the breaker and the log; `counts` false: for the log alone. */
void version_note_run(const struct rule_set *s, struct version *v, bool ok, bool counts, struct sandbox_report *report);
/* rules_wait.c: gives back idle states that nobody needs any more, or all. */
void rules_wait_rest(uint64_t now_us, bool all);
/* The tenant is about to go: gives back its idle states. None of its runs may be open. */
void rules_wait_forget(const struct tenant *t);
/* The tenant's sandbox, made when there is none or it broke. NULL: `err`. */
struct sandbox *sandbox_for(struct tenant *t, struct error *err);
/* Appends, taking the reference over. False: no memory, the reference is released. */
bool version_list_add(struct version_list *list, struct version *v);
void version_list_free(struct tenant *t, struct version_list *list);
/* Makes the tenant's current set of its file versions and its published ones whose windows are open. */
void tenant_rebuild(struct tenant *t);

/* rules_files.c: finds the folder; false: there is none. */
bool rule_files_open(lua_State *main, const char *dir);
/* Notes and logs a file that cannot be used. */
void rule_files_problem(struct tenant *t, const char *file, int line, const char *message);
/* Reads the tenant's active list and its files into t->files. What is broken keeps its last good version. */
void rule_files_load(struct tenant *t);
/* Whether a file that the tenant uses has changed. */
bool rule_files_changed(const struct tenant *t);

#endif
