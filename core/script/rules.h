/* The rules that are live for each tenant, from files: `active/<tenant_key>.lua` in the rules folder returns a list of
 * {file = "promotions/x.lua", config = {...}, priority = 100}, itself run in the sandbox.
 *
 * A tenant's rules are loaded when it is first asked for and again when one of the files changes. Whoever holds a set
 * keeps the versions it was acquired with. A file that does not load keeps its last good version, and the log says the
 * line. A rule that fails is logged with its line and skipped: rules_run says so, the caller applies the built-in. */
#ifndef KASMA_SCRIPT_RULES_H
#define KASMA_SCRIPT_RULES_H

#include "script/sandbox.h"

#define RULES_PER_HOOK 25

struct rule_set;

struct rule_info {
    const char *id;   /* the file's path without ".lua": "promotions/third_unit_half_price" */
    const char *name; /* the manifest's */
    const char *hook;
    const char *on_error; /* skip, fallback or block */
    const char *version;  /* sha256 of source and config, 64 hex digits */
    int priority;         /* the active list's, else the manifest's */
};

/* A file that did not load, or an active list that cannot be used. */
struct rule_problem {
    const char *file, *message;
    int line;
};

/* `main` is the platform VM's main state, `dir` the rules folder (NULL or empty: the product's own). `watch`: look for
 * changed files by inotify and, as a net, every second. False: `err` says why. */
bool rules_open(lua_State *main, const char *dir, bool watch, struct error *err);
/* Sets that are still held stay readable but cannot be run any more. */
void rules_close(void);
bool rules_are_open(void);
/* Looks at all files of all loaded tenants now. */
void rules_reload(void);

/* The tenant's rules as they are now, priority descending, then id. NULL: `err` (bad key, memory). Must be released. */
struct rule_set *rules_acquire(struct str tenant, struct error *err);
void rules_release(struct rule_set *set);
size_t rules_count(const struct rule_set *set);
struct rule_info rules_at(const struct rule_set *set, size_t i);
/* The index of a rule, by id and, unless NULL, version; -1 when the set has none such. */
int rules_find(const struct rule_set *set, const char *id, const char *version);
/* The set of that tenant, current or replaced less than a minute ago, that has this version. Must be released. */
struct rule_set *rules_acquire_version(struct str tenant, const char *id, const char *version, struct error *err);

/* As sandbox_run; `limits` NULL: the hook's own. Logs a failure. */
bool rules_run(struct rule_set *set, size_t i, const struct sandbox_limits *limits,
               bool (*build)(lua_State *L, void *data, struct error *err),
               bool (*read)(lua_State *L, void *data, struct error *err), void *data, struct sandbox_report *report);
/* What the last run of the set's tenant logged. */
struct str rules_log(const struct rule_set *set);

/* For status pages: the loaded tenants, and what is wrong with their files. */
size_t rules_tenants(void);
const char *rules_tenant(size_t i);
size_t rules_problems(const char *tenant);
struct rule_problem rules_problem(const char *tenant, size_t i);

#endif
