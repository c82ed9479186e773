/* The states of runs that may wait. An idle state belongs to one version, which it holds; it is taken by the next run
 * of that version, and given back to the system when it was idle for a minute or nobody else holds the version. */
#include "script/rules_wait.h"

#include <stdlib.h>

#include "runtime/clock.h"
#include "script/rules_internal.h"

#define IDLE_MAX 64
#define IDLE_OF_VERSION_MAX 4
#define IDLE_US UINT64_C(60000000)

struct rule_run {
    struct rule_set *set;
    struct version *version;
    struct sandbox *sb;
    int handle;
    size_t declared; /* capabilities that the state knows */
    bool under_way;
    bool counts;                    /* for the rule's breaker */
    struct rule_run *next, *before; /* list of the open ones */
};

struct idle {
    struct tenant *tenant;
    struct version *version;
    struct sandbox *sb;
    int handle;
    size_t declared;
    uint64_t since_us;
};

static struct idle idle[IDLE_MAX];
static size_t nidle;
static struct rule_run *open_runs;
static size_t nopen;

size_t rules_waits_open(void) {
    return nopen;
}

size_t rules_waits_idle(void) {
    return nidle;
}

static void drop_idle(size_t i) {
    sandbox_free(idle[i].sb);
    version_drop(idle[i].tenant, idle[i].version);
    idle[i] = idle[--nidle];
}

void rules_wait_rest(uint64_t now_us, bool all) {
    for (size_t i = nidle; i-- > 0;)
        if (all || idle[i].version->refs == 1 || now_us - idle[i].since_us > IDLE_US) drop_idle(i);
}

void rules_wait_forget(const struct tenant *t) {
    for (size_t i = nidle; i-- > 0;)
        if (idle[i].tenant == t) drop_idle(i);
}

/* An idle state of the version; false: there is none. */
static bool take_idle(struct rule_run *r) {
    for (size_t i = nidle; i-- > 0;) {
        if (idle[i].version != r->version) continue;
        if (idle[i].declared != sandbox_declared()) {
            drop_idle(i);
            continue;
        }
        r->sb = idle[i].sb;
        r->handle = idle[i].handle;
        r->declared = idle[i].declared;
        idle[i] = idle[--nidle];
        version_release(r->version); /* the run holds its set, which holds the version too */
        return true;
    }
    return false;
}

static bool worth_keeping(const struct rule_run *r) {
    if (!r->set->tenant || r->set->trial || sandbox_broken(r->sb) || r->declared != sandbox_declared()) return false;
    size_t same = 0;
    for (size_t i = 0; i < nidle; i++) same += idle[i].version == r->version;
    return same < IDLE_OF_VERSION_MAX;
}

static void give_state_back(struct rule_run *r) {
    if (!r->sb) return;
    sandbox_wait_end(r->sb);
    if (!worth_keeping(r)) {
        sandbox_free(r->sb);
        return;
    }
    if (nidle == IDLE_MAX) { /* the one that was not asked for longest makes room */
        size_t oldest = 0;
        for (size_t i = 1; i < nidle; i++)
            if (idle[i].since_us < idle[oldest].since_us) oldest = i;
        drop_idle(oldest);
    }
    r->version->refs++;
    idle[nidle++] = (struct idle){.tenant = r->set->tenant,
                                  .version = r->version,
                                  .sb = r->sb,
                                  .handle = r->handle,
                                  .declared = r->declared,
                                  .since_us = clock_mono_us()};
}

static bool too_many(const struct rule_set *set) {
    if (nopen >= RULES_WAITS_MAX) return true;
    size_t same = 0;
    for (const struct rule_run *r = open_runs; r; r = r->next) same += r->set->tenant == set->tenant;
    return same >= RULES_TENANT_WAITS_MAX;
}

static bool make_state(struct rule_run *r, struct sandbox_report *report) {
    struct error err = {0};
    r->declared = sandbox_declared();
    r->sb = sandbox_new_waiting(&err);
    if (!r->sb) {
        *report = (struct sandbox_report){.outcome = OUTCOME_HEAP};
        memcpy(report->message, err.message, sizeof err.message);
        return false;
    }
    r->handle = version_load(r->sb, r->version, report);
    if (r->handle) return true;
    sandbox_free(r->sb);
    return false;
}

struct rule_run *rules_wait_open(struct rule_set *set, size_t i, bool counts, struct sandbox_report *report) {
    if (!set->tenant || i >= set->count) {
        *report = (struct sandbox_report){.outcome = OUTCOME_ERROR, .message = "the rule cannot be run any more"};
        return NULL;
    }
    struct version *v = set->at[i];
    if (counts && !version_may_run(set, v, report)) return NULL;
    struct rule_run *r = too_many(set) ? NULL : calloc(1, sizeof *r);
    if (!r) {
        *report = (struct sandbox_report){.outcome = OUTCOME_BUDGET, .message = "too many rules wait at the same time"};
        return NULL;
    }
    r->set = set;
    r->version = v;
    r->counts = counts;
    if (!take_idle(r) && !make_state(r, report)) {
        version_note_run(set, v, false, counts, report);
        free(r);
        return NULL;
    }
    set->refs++;
    r->next = open_runs;
    if (open_runs) open_runs->before = r;
    open_runs = r;
    nopen++;
    return r;
}

/* What the run came to; a failure counts for the rule. */
static enum sandbox_wait noted(struct rule_run *r, enum sandbox_wait now, struct sandbox_report *report) {
    r->under_way = now != SANDBOX_FAILED;
    if (now == SANDBOX_FAILED) version_note_run(r->set, r->version, false, r->counts, report);
    return now;
}

enum sandbox_wait rules_wait_start(struct rule_run *r, const struct sandbox_entry *entry,
                                   const struct sandbox_limits *limits,
                                   bool (*build)(lua_State *L, void *data, struct error *err), void *data,
                                   struct sandbox_report *report) {
    if (!limits) limits = rules_limits(r->version->manifest.hook);
    return noted(r, sandbox_wait_start(r->sb, r->handle, entry, limits, build, data, report), report);
}

static bool is_over(const struct rule_run *r, struct sandbox_report *report) {
    if (r->under_way) return false;
    *report = (struct sandbox_report){.outcome = OUTCOME_ERROR, .message = "the run is over"};
    return true;
}

enum sandbox_wait rules_wait_answer(struct rule_run *r, bool (*give)(lua_State *L, void *data, struct error *err),
                                    void *data, struct sandbox_report *report) {
    if (is_over(r, report)) return SANDBOX_FAILED;
    return noted(r, sandbox_wait_answer(r->sb, give, data, report), report);
}

enum sandbox_wait rules_wait_refuse(struct rule_run *r, const char *message, struct sandbox_report *report) {
    if (is_over(r, report)) return SANDBOX_FAILED;
    return noted(r, sandbox_wait_refuse(r->sb, message, report), report);
}

struct sandbox_call rules_wait_call(struct rule_run *r) {
    return sandbox_wait_call(r->sb);
}

bool rules_wait_result(struct rule_run *r, bool (*read)(lua_State *L, void *data, struct error *err), void *data,
                       struct sandbox_report *report) {
    if (is_over(r, report)) return false;
    r->under_way = false;
    bool ok = sandbox_wait_result(r->sb, read, data, report);
    version_note_run(r->set, r->version, ok, r->counts, report);
    return ok;
}

void rules_wait_stop(struct rule_run *r, enum outcome why, const char *message, struct sandbox_report *report) {
    if (is_over(r, report)) return;
    sandbox_wait_stop(r->sb, why, message, report);
    noted(r, SANDBOX_FAILED, report);
}

struct str rules_wait_log(const struct rule_run *r) {
    return sandbox_log(r->sb);
}

void rules_wait_close(struct rule_run *r) {
    if (!r) return;
    if (r->next) r->next->before = r->before;
    if (r->before) {
        r->before->next = r->next;
    } else {
        open_runs = r->next;
    }
    nopen--;
    give_state_back(r);
    rules_release(r->set);
    free(r);
}
