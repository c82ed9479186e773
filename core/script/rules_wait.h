/* Runs of rules that may wait (sandbox_wait.h), each in a state of its own: the tenant's shared state goes on serving
 * other rules meanwhile. A few idle states of each version are kept, so that a request need not compile. */
#ifndef KASMA_SCRIPT_RULES_WAIT_H
#define KASMA_SCRIPT_RULES_WAIT_H

#include "script/rules.h"
#include "script/sandbox_wait.h"

#define RULES_WAITS_MAX 256       /* runs that are under way in a process */
#define RULES_TENANT_WAITS_MAX 32 /* and of one tenant in it */

struct rule_run;

/* A run of the set's rule, not yet started; it holds the set. `counts` false: the breaker neither holds it back nor
 * hears of it, since whoever calls keeps one. NULL: `report` says why (breaker, does not load, too many
 * at once). */
struct rule_run *rules_wait_open(struct rule_set *set, size_t i, bool counts, struct sandbox_report *report);
/* As the functions of sandbox_wait.h. `limits` NULL: the hook's. A run that failed has been logged and counted. */
enum sandbox_wait rules_wait_start(struct rule_run *r, const struct sandbox_entry *entry,
                                   const struct sandbox_limits *limits,
                                   bool (*build)(lua_State *L, void *data, struct error *err), void *data,
                                   struct sandbox_report *report);
enum sandbox_wait rules_wait_answer(struct rule_run *r, bool (*give)(lua_State *L, void *data, struct error *err),
                                    void *data, struct sandbox_report *report);
enum sandbox_wait rules_wait_refuse(struct rule_run *r, const char *message, struct sandbox_report *report);
struct sandbox_call rules_wait_call(struct rule_run *r);
bool rules_wait_result(struct rule_run *r, bool (*read)(lua_State *L, void *data, struct error *err), void *data,
                       struct sandbox_report *report);
void rules_wait_stop(struct rule_run *r, enum outcome why, const char *message, struct sandbox_report *report);
struct str rules_wait_log(const struct rule_run *r);
/* Ends the run if it is under way, and gives its state back. NULL is allowed. */
void rules_wait_close(struct rule_run *r);

/* For tests and metrics: runs that are open, and idle states. */
size_t rules_waits_open(void);
size_t rules_waits_idle(void);

#endif
