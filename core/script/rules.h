/* The rules that are live for each tenant: those that were published, handed over by rules_publish, and those from
 * files, where `active/<tenant_key>.lua` in the rules folder returns a list of {file = "promotions/x.lua", config =
 * {...}, priority = 100, startsAt = "2026-12-01T00:00:00Z", endsAt = ..}, itself run in the sandbox.
 *
 * Files of the hook `workflow` are checked and tested, and not live: a run keeps the version that it began with, maybe
 * for weeks, and files have no versions. The list's problems say so.
 *
 * A rule is live within its window, by the business clock: whoever acquires a set gets the rules whose windows are open
 * in that moment, whatever was published since, and whichever way the clock was moved.
 *
 * A tenant's file rules are loaded when it is first asked for and again when one of the files changes. Whoever holds a
 * set keeps the versions it was acquired with. A file that does not load keeps its last good version, and the log says
 * the line. A rule that fails is logged with its line and skipped: rules_run says so, the caller applies the built-in.
 */
#ifndef KASMA_SCRIPT_RULES_H
#define KASMA_SCRIPT_RULES_H

#include "script/sandbox.h"

#define RULES_PER_HOOK 25

struct rule_set;

struct rule_info {
    const char *id;      /* its key, or the file's path without ".lua": "promotions/third_unit_half_price" */
    const char *rule_id; /* uuid of its row; empty for a file */
    const char *name;    /* the manifest's */
    const char *hook;
    const char *on_error; /* skip, fallback or block */
    const char *version;  /* sha256 of source and config, 64 hex digits */
    int64_t number;       /* of the published version; 0 for a file */
    struct str fallback;  /* JSON list of operations that stand in when it fails; empty: none */
    int priority;         /* the active list's, else the manifest's */
};

/* A published version. Everything is copied. */
struct rule_spec {
    const char *id, *rule_id, *hook, *name, *on_error; /* rule_id, name, on_error may be NULL */
    int64_t number;
    int priority;
    int64_t open_until_ms;      /* its breaker is open until then (business time); 0: closed */
    int64_t starts_ms, ends_ms; /* it is live from the one to just before the other (business time); 0: no such bound */
    struct str source, config, fallback;
    const struct sandbox_lib *libs;
    size_t nlibs;
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
/* The folder of rule files; good until rules_close. */
const char *rules_folder(void);
/* How often files of some tenant were loaded in this process: a change says that something may be live, or broken, now.
 */
uint64_t rules_loads(void);
/* Looks at all files of all loaded tenants now. */
void rules_reload(void);

/* The tenant's rules as they are now, priority descending, then id. NULL: `err` (bad key, memory, ERR_LIMIT: ten
 * thousand others were asked for within a minute). Must be released. */
struct rule_set *rules_acquire(struct str tenant, struct error *err);
void rules_release(struct rule_set *set);
size_t rules_count(const struct rule_set *set);
struct rule_info rules_at(const struct rule_set *set, size_t i);
/* The index of a rule, by id and, unless NULL, version; -1 when the set has none such. */
int rules_find(const struct rule_set *set, const char *id, const char *version);
int64_t rules_set_epoch(const struct rule_set *set);

/* Makes these the tenant's published rules, as of an epoch; an older epoch than the present one changes nothing. What
 * is the same as before keeps its compiled state. False: `err`, and what was live stays live. */
bool rules_publish(struct str tenant, int64_t epoch, const struct rule_spec *specs, size_t n, struct error *err);
/* The epoch of the last rules_publish; -1: none yet. */
int64_t rules_epoch(struct str tenant);
/* Whether that version is among the published ones. */
bool rules_holds(struct str tenant, const char *id, int64_t number);

/* A set with one rule added, or put in the place of the one with its id: for trying a draft. It is nobody's live set:
 * its failures are not logged and open no breaker. `spec` NULL: the same rules. NULL: `err`. Must be released. */
struct rule_set *rules_overlay(struct rule_set *base, const struct rule_spec *spec, struct error *err);
/* The same, without the rule of that id. */
struct rule_set *rules_without(struct rule_set *base, const char *id, struct error *err);

/* As sandbox_run; `limits` NULL: the hook's own. Logs a failure. */
bool rules_run(struct rule_set *set, size_t i, const struct sandbox_limits *limits,
               bool (*build)(lua_State *L, void *data, struct error *err),
               bool (*read)(lua_State *L, void *data, struct error *err), void *data, struct sandbox_report *report);
/* The last run of the rule went well, but its caller finds that the answer is out of the hook's form: it counts as a
 * failure, which is logged. True: it opened the breaker. */
bool rules_fault(struct rule_set *set, size_t i, const struct sandbox_report *report);
/* Hands the manifest to `read` as plain data; see sandbox_describe. */
bool rules_describe(struct rule_set *set, size_t i, bool (*read)(lua_State *L, void *data, struct error *err),
                    void *data, struct sandbox_report *report);
/* The limits of a hook's class. */
const struct sandbox_limits *rules_limits(const char *hook);
/* Bytes that the state holds in which the set's rules run. */
size_t rules_memory(const struct rule_set *set);
/* Whether the set was made for trying (rules_overlay). */
bool rules_is_trial(const struct rule_set *set);
/* What the last run of the set's tenant logged. */
struct str rules_log(const struct rule_set *set);

/* For status pages: the loaded tenants, and what is wrong with their files. */
size_t rules_tenants(void);
const char *rules_tenant(size_t i);
size_t rules_problems(const char *tenant);
struct rule_problem rules_problem(const char *tenant, size_t i);

#endif
