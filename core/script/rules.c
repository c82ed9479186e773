/* Versions are counted references: a set holds its versions, the tenant holds its current set and those it replaced in
 * the last minute, a request holds the set it began with. The sandbox of a tenant is one for all its versions; when it
 * broke (heap limit) it is made anew and a version is loaded into it again when it is next run.
 *
 * Published versions are handed over as a whole with their epoch, and are loaded when they are first run: a tenant
 * whose rules nobody asks for costs its sources and no state. Of TENANTS_MAX tenants the process keeps that much; one
 * more takes the place of the one that was asked for longest ago, and whose epoch then is that of nobody. */
#include "script/rules.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "crypto/crypto.h"
#include "runtime/clock.h"
#include "runtime/log.h"
#include "script/rules_internal.h"
#include "script/rules_watch.h"
#include "script/sandbox_cache.h"

#define TENANTS_MAX 10000
#define FORGET_MS 60000              /* who was not asked for so long may make room for another tenant */
#define KEEP_US UINT64_C(60000000)   /* a replaced set can still be found by version */
#define REST_US UINT64_C(2000000)    /* after that a tenant's sandbox gives back its garbage */
#define IDLE_US UINT64_C(600000000)  /* a tenant's sandbox that nobody used is dropped */
#define LOG_GAP_US UINT64_C(1000000) /* failures of one rule are logged once in it, with their number */
#define BREAKER_WINDOW_MS 60000
#define BREAKER_OPEN_MS 300000

static struct tenant *tenants;
/* The same by their keys, each in the chain of its place: a request asks by key. */
#define PLACES 4096
static struct tenant *by_key[PLACES];
static size_t ntenants;
static bool opened, files_watched;

/* ---- versions and sets ---- */

struct version *version_new(void) {
    struct version *v = calloc(1, sizeof *v);
    if (v) v->refs = 1;
    return v;
}

void version_release(struct version *v) {
    if (--v->refs) return;
    buf_free(&v->source);
    buf_free(&v->config);
    buf_free(&v->fallback);
    for (size_t i = 0; i < v->nlibs; i++) buf_free(&v->libs[i].source);
    free(v->libs);
    free(v);
}

static void hex(const unsigned char *raw, char out[65]) {
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < 32; i++) {
        out[2 * i] = digits[raw[i] >> 4];
        out[2 * i + 1] = digits[raw[i] & 15];
    }
    out[64] = '\0';
}

bool version_hash(struct version *v) {
    unsigned char raw[SHA256_BYTES];
    struct buf all = {0};
    bool ok = buf_add(&all, buf_str(&v->source)) && buf_byte(&all, '\0') && buf_add(&all, buf_str(&v->config)) &&
              buf_printf(&all, "%c%d", '\0', v->priority) &&
              (v->fallback.len == 0 || (buf_byte(&all, '\0') && buf_add(&all, buf_str(&v->fallback))));
    for (size_t i = 0; ok && i < v->nlibs; i++)
        ok = buf_printf(&all, "%c%s%c", '\0', v->libs[i].key, '\0') && buf_add(&all, buf_str(&v->libs[i].source));
    ok = ok && crypto_sha256(buf_str(&all), raw);
    buf_free(&all);
    if (ok) hex(raw, v->sha);
    return ok;
}

void version_drop(struct tenant *t, struct version *v) {
    if (v->refs == 1 && t && t->sandbox && v->handle && v->generation == t->generation)
        sandbox_unload(t->sandbox, v->handle);
    version_release(v);
}

bool version_list_add(struct version_list *list, struct version *v) {
    struct version **grown = realloc(list->at, (list->count + 1) * sizeof(void *));
    if (!grown) {
        version_release(v);
        return false;
    }
    list->at = grown;
    grown[list->count++] = v;
    return true;
}

void version_list_free(struct tenant *t, struct version_list *list) {
    for (size_t i = 0; i < list->count; i++) version_drop(t, list->at[i]);
    free(list->at);
    *list = (struct version_list){0};
}

static struct rule_set *set_new(size_t room, struct tenant *t) {
    struct rule_set *s = calloc(1, sizeof *s + room * sizeof(void *));
    if (!s) return NULL;
    s->refs = 1;
    s->tenant = t;
    t->sets++;
    return s;
}

static void set_unref(struct rule_set *s) {
    if (--s->refs) return;
    for (size_t i = 0; i < s->count; i++) version_drop(s->tenant, s->at[i]);
    if (s->tenant) s->tenant->sets--;
    free(s);
}

void rules_release(struct rule_set *s) {
    if (s) set_unref(s);
}

static void drop_replaced(struct tenant *t, uint64_t now) {
    struct rule_set **at = &t->current->older;
    while (*at) {
        struct rule_set *s = *at;
        if (now - s->replaced_us < KEEP_US || s->refs > 1) { /* whoever holds it may still run it */
            at = &s->older;
            continue;
        }
        *at = s->older;
        s->older = NULL;
        set_unref(s);
    }
}

/* ---- loading ---- */

struct sandbox *sandbox_for(struct tenant *t, struct error *err) {
    if (t->sandbox && sandbox_broken(t->sandbox)) {
        sandbox_free(t->sandbox);
        t->sandbox = NULL;
    }
    if (!t->sandbox) {
        t->sandbox = sandbox_new(err);
        t->generation++;
    }
    t->used_us = clock_mono_us();
    return t->sandbox;
}

bool version_into_sandbox(struct tenant *t, struct version *v, struct sandbox_report *report) {
    struct error err = {0};
    struct sandbox *sb = sandbox_for(t, &err);
    if (!sb) {
        *report = (struct sandbox_report){.outcome = OUTCOME_HEAP};
        memcpy(report->message, err.message, sizeof err.message);
        return false;
    }
    if (v->handle && v->generation == t->generation) return true;
    v->handle = version_load(sb, v, report);
    v->generation = t->generation;
    return v->handle != 0;
}

int version_load(struct sandbox *sb, struct version *v, struct sandbox_report *report) {
    struct sandbox_manifest manifest;
    struct sandbox_lib *libs = v->nlibs ? calloc(v->nlibs, sizeof *libs) : NULL;
    for (size_t i = 0; libs && i < v->nlibs; i++)
        libs[i] = (struct sandbox_lib){.key = v->libs[i].key, .source = buf_str(&v->libs[i].source)};
    /* Without memory for the list the rule does not load, and says that a library is not there. */
    int handle = sandbox_load_with(sb, *v->file ? v->file : v->id, buf_str(&v->source), libs, libs ? v->nlibs : 0,
                                   &manifest, report);
    free(libs);
    if (!handle) return 0;
    if (*v->file) {
        v->manifest = manifest;
    } else if (strcmp(v->manifest.hook, manifest.hook) != 0) { /* what was published beside it counts */
        *report = (struct sandbox_report){.outcome = OUTCOME_ERROR,
                                          .message = "manifest_field: the hook is not the one the rule was made for"};
        sandbox_unload(sb, handle);
        return 0;
    }
    if (v->config.len == 0 || sandbox_configure(sb, handle, buf_str(&v->config), report)) return handle;
    sandbox_unload(sb, handle);
    return 0;
}

static int by_priority(const void *a, const void *b) {
    const struct version *x = *(struct version *const *)a, *y = *(struct version *const *)b;
    if (x->priority != y->priority) return x->priority > y->priority ? -1 : 1;
    return strcmp(x->id, y->id);
}

/* Too many of one hook: those of the lowest priority are left out. */
static void keep_to_the_limit(struct tenant *t, struct rule_set *s) {
    size_t kept = 0;
    for (size_t i = 0; i < s->count; i++) {
        unsigned same = 0;
        for (size_t k = 0; k < kept; k++) same += strcmp(s->at[k]->manifest.hook, s->at[i]->manifest.hook) == 0;
        if (same < RULES_PER_HOOK) {
            s->at[kept++] = s->at[i];
        } else {
            rule_files_problem(t, *s->at[i]->file ? s->at[i]->file : s->at[i]->id, 0,
                               "not live: the hook has 25 rules already");
            version_release(s->at[i]);
        }
    }
    s->count = kept;
}

static bool same_versions(const struct rule_set *a, const struct rule_set *b) {
    if (a->count != b->count) return false;
    for (size_t i = 0; i < a->count; i++)
        if (a->at[i] != b->at[i]) return false;
    return true;
}

/* Whether the window of a version is open; narrows the time for which the answer holds. */
static bool is_open(const struct version *v, int64_t now, struct tenant *t) {
    const int64_t bounds[] = {v->starts_ms, v->ends_ms};
    for (size_t i = 0; i < 2; i++) {
        if (bounds[i] == 0) continue;
        if (bounds[i] > now && bounds[i] < t->current_until_ms) t->current_until_ms = bounds[i];
        if (bounds[i] <= now && bounds[i] > t->current_from_ms) t->current_from_ms = bounds[i];
    }
    return (v->starts_ms == 0 || v->starts_ms <= now) && (v->ends_ms == 0 || now < v->ends_ms);
}

static void add_open(struct rule_set *s, const struct version_list *list, int64_t now) {
    for (size_t i = 0; i < list->count; i++) {
        if (!is_open(list->at[i], now, s->tenant)) continue;
        list->at[i]->refs++;
        s->at[s->count++] = list->at[i];
    }
}

void tenant_rebuild(struct tenant *t) {
    struct rule_set *fresh = set_new(t->files.count + t->published.count, t);
    if (!fresh) return; /* what is live stays live */
    int64_t now = clock_now();
    t->current_from_ms = INT64_MIN;
    t->current_until_ms = INT64_MAX;
    add_open(fresh, &t->files, now);
    add_open(fresh, &t->published, now);
    qsort(fresh->at, fresh->count, sizeof(void *), by_priority);
    keep_to_the_limit(t, fresh);
    fresh->epoch = t->epoch;
    if (same_versions(t->current, fresh)) {
        t->current->epoch = t->epoch;
        set_unref(fresh);
        return;
    }
    struct rule_set *old = t->current;
    old->replaced_us = clock_mono_us();
    fresh->older = old;
    t->current = fresh;
    drop_replaced(t, old->replaced_us);
    log_line(LOG_DEBUG, "rules of tenant %s loaded: %zu live", t->key, fresh->count);
}

static void look(void) {
    uint64_t now = clock_mono_us();
    rules_wait_rest(now, false);
    if (now > IDLE_US) compiled_sweep(now - IDLE_US);
    for (struct tenant *t = tenants; t; t = t->next) {
        drop_replaced(t, now);
        if (files_watched && t->loaded && rule_files_changed(t)) rule_files_load(t);
        if (t->sandbox && now - t->used_us > IDLE_US) {
            sandbox_free(t->sandbox); /* versions stay; they are loaded again when they are run */
            t->sandbox = NULL;
        } else if (t->sandbox && now - t->used_us > REST_US) {
            sandbox_rest(t->sandbox);
        }
    }
}

static struct tenant **place_of(struct str key) {
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < key.len; i++) h = (h ^ (unsigned char)key.at[i]) * 16777619u;
    return &by_key[(h ^ h >> 15) % PLACES];
}

static struct tenant *find_tenant(struct str key) {
    for (struct tenant *t = *place_of(key); t; t = t->next_same)
        if (str_eq(str_n(t->key, t->key_len), key)) return t;
    return NULL;
}

/* What it has to itself; whoever still holds a set of it finds that the registry is closed. */
static void tenant_free(struct tenant *t) {
    rules_wait_forget(t);
    for (struct rule_set *s = t->current, *older; s; s = older) {
        older = s->older;
        s->older = NULL;
        s->tenant = NULL;
        set_unref(s);
    }
    version_list_free(t, &t->files);
    version_list_free(t, &t->published);
    sandbox_free(t->sandbox);
    free(t->watched);
    free(t->problems);
    free(t);
}

/* Gives up the tenant that was asked for longest ago and of which nobody holds a set: what it has is read again when it
 * is asked for. By the business clock, so that a test need not wait. False: all are at work. */
static bool forget_oldest(void) {
    struct tenant **oldest = NULL;
    int64_t before = clock_now() - FORGET_MS;
    for (struct tenant **at = &tenants; *at; at = &(*at)->next) {
        const struct tenant *t = *at;
        bool held = t->sets > 1 || t->current->refs > 1;
        if (!held && t->asked_ms < before && (!oldest || t->asked_ms <= (*oldest)->asked_ms)) oldest = at;
    }
    if (!oldest) return false;
    struct tenant *t = *oldest, **same = place_of(str_n(t->key, t->key_len));
    *oldest = t->next;
    while (*same != t) same = &(*same)->next_same;
    *same = t->next_same;
    ntenants--;
    tenant_free(t);
    return true;
}

static struct tenant *tenant_for(struct str key, struct error *err) {
    if (!str_is_tenant_key(key)) {
        error_set(err, ERR_INVALID, "not a tenant key");
        return NULL;
    }
    struct tenant *t = find_tenant(key);
    if (t) {
        t->asked_ms = clock_now();
        return t;
    }
    if (ntenants >= TENANTS_MAX && !forget_oldest()) {
        error_set(err, ERR_LIMIT, "too many tenants in one process");
        return NULL;
    }
    t = calloc(1, sizeof *t);
    if (t) t->current = set_new(0, t);
    if (!t || !t->current) {
        free(t);
        error_set(err, ERR_MEMORY, "no memory for a tenant's rules");
        return NULL;
    }
    memcpy(t->key, key.at, key.len);
    t->key_len = key.len;
    t->next_same = *place_of(key);
    *place_of(key) = t;
    t->epoch = -1;
    t->asked_ms = clock_now();
    t->current_from_ms = INT64_MIN;
    t->current_until_ms = INT64_MAX;
    t->current->epoch = -1;
    t->next = tenants;
    tenants = t;
    ntenants++;
    return t;
}

/* ---- the face ---- */

bool rules_open(lua_State *main, const char *dir, bool watching, struct error *err) {
    if (opened) return error_set(err, ERR_INVALID, "the rules are open already");
    if (!rule_files_open(main, dir))
        return error_set(err, ERR_INVALID, "no folder of rules at %s", dir && *dir ? dir : "rules");
    opened = true;
    files_watched = watching;
    watch_open(look, watching);
    return true;
}

bool rules_are_open(void) {
    return opened;
}

void rules_close(void) {
    if (!opened) return;
    watch_close();
    rules_wait_rest(0, true);
    while (tenants) {
        struct tenant *t = tenants;
        tenants = t->next;
        tenant_free(t);
    }
    ntenants = 0;
    memset(by_key, 0, sizeof by_key);
    opened = false;
}

void rules_reload(void) {
    for (struct tenant *t = tenants; t; t = t->next)
        if (t->loaded) rule_files_load(t);
}

struct rule_set *rules_acquire(struct str key, struct error *err) {
    if (!opened) {
        error_set(err, ERR_INTERNAL, "the rules are not open");
        return NULL;
    }
    struct tenant *t = tenant_for(key, err);
    if (!t) return NULL;
    if (!t->loaded) rule_files_load(t);
    int64_t now = clock_now();
    if (now < t->current_from_ms || now >= t->current_until_ms) tenant_rebuild(t);
    t->current->refs++;
    return t->current;
}

/* ---- what was published ---- */

static bool keep_text(struct buf *to, struct str text) {
    return text.len == 0 || buf_add(to, text);
}

/* NULL: no memory, or a field that does not fit. */
static struct version *version_of(const struct rule_spec *spec) {
    struct version *v = version_new();
    if (!v) return NULL;
    v->libs = spec->nlibs ? calloc(spec->nlibs, sizeof *v->libs) : NULL;
    bool ok = !spec->nlibs || v->libs;
    for (size_t i = 0; ok && i < spec->nlibs; i++) {
        struct lib_source *l = &v->libs[v->nlibs++];
        int n = snprintf(l->key, sizeof l->key, "%s", spec->libs[i].key);
        ok = n > 0 && (size_t)n < sizeof l->key && buf_add(&l->source, spec->libs[i].source);
    }
    v->number = spec->number;
    v->priority = spec->priority;
    v->starts_ms = spec->starts_ms;
    v->ends_ms = spec->ends_ms;
    v->breaker.open_until_ms = spec->open_until_ms;
    int a = snprintf(v->id, sizeof v->id, "%s", spec->id);
    int b = snprintf(v->rule_id, sizeof v->rule_id, "%s", spec->rule_id ? spec->rule_id : "");
    int c = snprintf(v->manifest.hook, sizeof v->manifest.hook, "%s", spec->hook);
    int d = snprintf(v->manifest.name, sizeof v->manifest.name, "%s", spec->name ? spec->name : spec->id);
    int e = snprintf(v->manifest.on_error, sizeof v->manifest.on_error, "%s", spec->on_error ? spec->on_error : "skip");
    ok = ok && a > 0 && (size_t)a < sizeof v->id && b >= 0 && (size_t)b < sizeof v->rule_id && c > 0 &&
         (size_t)c < sizeof v->manifest.hook && d > 0 && (size_t)d < sizeof v->manifest.name && e > 0 &&
         (size_t)e < sizeof v->manifest.on_error;
    ok = ok && keep_text(&v->source, spec->source) && keep_text(&v->config, spec->config) &&
         keep_text(&v->fallback, spec->fallback) && version_hash(v);
    if (ok) return v;
    version_release(v);
    return NULL;
}

/* The version that is live already when it is the same; with a reference for the caller. */
static struct version *same_version(const struct version_list *list, struct version *v) {
    for (size_t i = 0; i < list->count; i++) {
        struct version *old = list->at[i];
        if (strcmp(old->id, v->id) != 0 || strcmp(old->sha, v->sha) != 0 || old->number != v->number ||
            strcmp(old->manifest.on_error, v->manifest.on_error) != 0)
            continue;
        if (v->breaker.open_until_ms > old->breaker.open_until_ms)
            old->breaker.open_until_ms = v->breaker.open_until_ms;
        old->starts_ms = v->starts_ms;
        old->ends_ms = v->ends_ms;
        version_release(v);
        old->refs++;
        return old;
    }
    return v;
}

bool rules_publish(struct str key, int64_t epoch, const struct rule_spec *specs, size_t n, struct error *err) {
    struct tenant *t = opened ? tenant_for(key, err) : NULL;
    if (!t) return opened ? false : error_set(err, ERR_INTERNAL, "the rules are not open");
    if (!t->loaded) rule_files_load(t);
    if (epoch < t->epoch) return true; /* overtaken by a newer load */
    struct version_list fresh = {0};
    for (size_t i = 0; i < n; i++) {
        struct version *v = version_of(&specs[i]);
        if (!v || !version_list_add(&fresh, same_version(&t->published, v))) {
            version_list_free(t, &fresh);
            return error_set(err, ERR_MEMORY, "rule %s cannot be kept: no memory, or a field is too long", specs[i].id);
        }
    }
    struct version_list old = t->published;
    t->published = fresh;
    t->epoch = epoch;
    tenant_rebuild(t);
    version_list_free(t, &old);
    return true;
}

int64_t rules_epoch(struct str key) {
    const struct tenant *t = find_tenant(key);
    return t ? t->epoch : -1;
}

bool rules_holds(struct str key, const char *id, int64_t number) {
    const struct tenant *t = find_tenant(key);
    for (size_t i = 0; t && i < t->published.count; i++)
        if (t->published.at[i]->number == number && strcmp(t->published.at[i]->id, id) == 0) return true;
    return false;
}

struct rule_set *rules_overlay(struct rule_set *base, const struct rule_spec *spec, struct error *err) {
    struct rule_set *s = base->tenant ? set_new(base->count + 1, base->tenant) : NULL;
    struct version *v = s && spec ? version_of(spec) : NULL;
    if (!s || (spec && !v)) {
        if (s) set_unref(s);
        error_set(err, ERR_MEMORY, "the draft cannot be tried: no memory, or a field is too long");
        return NULL;
    }
    s->trial = true;
    s->epoch = base->epoch;
    for (size_t i = 0; i < base->count; i++) {
        if (v && strcmp(base->at[i]->id, v->id) == 0) continue;
        base->at[i]->refs++;
        s->at[s->count++] = base->at[i];
    }
    if (v) s->at[s->count++] = v;
    qsort(s->at, s->count, sizeof(void *), by_priority);
    return s;
}

struct rule_set *rules_without(struct rule_set *base, const char *id, struct error *err) {
    struct rule_set *s = rules_overlay(base, NULL, err);
    if (!s) return NULL;
    for (size_t i = 0, n = s->count, kept = 0; i < n; i++) {
        if (strcmp(s->at[i]->id, id) == 0) {
            version_release(s->at[i]); /* the base holds it too */
            s->count--;
        } else {
            s->at[kept++] = s->at[i];
        }
    }
    return s;
}

/* ---- reading and running ---- */

size_t rules_count(const struct rule_set *s) {
    return s->count;
}

int64_t rules_set_epoch(const struct rule_set *s) {
    return s->epoch;
}

struct rule_info rules_at(const struct rule_set *s, size_t i) {
    const struct version *v = s->at[i];
    return (struct rule_info){.id = v->id,
                              .rule_id = v->rule_id,
                              .name = v->manifest.name,
                              .hook = v->manifest.hook,
                              .on_error = v->manifest.on_error,
                              .version = v->sha,
                              .number = v->number,
                              .fallback = buf_str(&v->fallback),
                              .priority = v->priority};
}

int rules_find(const struct rule_set *s, const char *id, const char *version) {
    for (size_t i = 0; i < s->count; i++)
        if (strcmp(s->at[i]->id, id) == 0 && (!version || strcmp(s->at[i]->sha, version) == 0)) return (int)i;
    return -1;
}

const struct sandbox_limits *rules_limits(const char *hook) {
    static const char *const slow[] = {"cms.", "article.", "learning.", "course.", "mail.", "media."};
    for (size_t i = 0; i < sizeof slow / sizeof *slow; i++)
        if (strncmp(hook, slow[i], strlen(slow[i])) == 0) return &sandbox_slow;
    return strcmp(hook, "route") == 0 || strcmp(hook, "workflow") == 0 ? &sandbox_capable : &sandbox_pure;
}

/* A breaker whose time is over lets one try through, which decides. */
bool version_may_run(const struct rule_set *s, const struct version *v, struct sandbox_report *report) {
    if (s->trial || clock_now() >= v->breaker.open_until_ms) return true;
    *report = (struct sandbox_report){.outcome = OUTCOME_BREAKER,
                                      .message = "not run: it failed too often in the last minutes"};
    return false;
}

/* True: this failure opens the breaker. */
static bool count_failure(struct breaker *b, int64_t now) {
    bool tried = b->open_until_ms != 0;
    for (size_t i = BREAKER_FAILURES - 1; i > 0; i--) b->failed_ms[i] = b->failed_ms[i - 1];
    b->failed_ms[0] = now;
    int64_t oldest = b->failed_ms[BREAKER_FAILURES - 1];
    if (!tried && (oldest == 0 || now - oldest > BREAKER_WINDOW_MS)) return false;
    *b = (struct breaker){.open_until_ms = now + BREAKER_OPEN_MS};
    return true;
}

static void log_failure(const struct tenant *t, struct version *v, const struct sandbox_report *report) {
    uint64_t now = clock_mono_us();
    if (v->logged_us && now - v->logged_us < LOG_GAP_US) {
        v->unlogged++;
        return;
    }
    struct buf f = {0};
    bool ok = buf_printf(&f,
                         "\"tenant\":\"%s\",\"rule\":\"%s\",\"version\":\"%.12s\",\"code\":\"%s\",\"line\":%d,"
                         "\"instructions\":%llu,\"error\":",
                         t->key, v->id, v->sha, outcome_name(report->outcome), report->line,
                         (unsigned long long)report->instructions) &&
              buf_json_string(&f, str_of(report->message)) &&
              (v->unlogged == 0 || buf_printf(&f, ",\"also\":%u", v->unlogged));
    if (!ok) buf_clear(&f);
    log_event(LOG_WARN, STR("rule stopped"), buf_str(&f));
    buf_free(&f);
    v->logged_us = now;
    v->unlogged = 0;
}

void version_note_run(const struct rule_set *s, struct version *v, bool ok, bool counts,
                      struct sandbox_report *report) {
    if (s->trial || !s->tenant) return;
    if (!counts) {
        if (!ok) log_failure(s->tenant, v, report);
    } else if (ok) {
        v->breaker.tried_ms = v->breaker.open_until_ms;
        v->breaker.open_until_ms = 0;
    } else {
        report->tripped = count_failure(&v->breaker, clock_now());
        log_failure(s->tenant, v, report);
    }
}

bool rules_run(struct rule_set *s, size_t i, const struct sandbox_limits *limits,
               bool (*build)(lua_State *L, void *data, struct error *err),
               bool (*read)(lua_State *L, void *data, struct error *err), void *data, struct sandbox_report *report) {
    struct tenant *t = s->tenant;
    if (!t || i >= s->count) {
        *report = (struct sandbox_report){.outcome = OUTCOME_ERROR, .message = "the rule cannot be run any more"};
        return false;
    }
    struct version *v = s->at[i];
    if (!version_may_run(s, v, report)) return false;
    bool ok =
        version_into_sandbox(t, v, report) &&
        sandbox_run(t->sandbox, v->handle, limits ? limits : rules_limits(v->manifest.hook), build, read, data, report);
    version_note_run(s, v, ok, true, report);
    return ok;
}

bool rules_fault(struct rule_set *s, size_t i, const struct sandbox_report *report) {
    if (!s->tenant || i >= s->count || s->trial) return false;
    struct version *v = s->at[i];
    if (v->breaker.open_until_ms == 0)
        v->breaker.open_until_ms = v->breaker.tried_ms; /* the one try failed after all */
    bool tripped = count_failure(&v->breaker, clock_now());
    log_failure(s->tenant, v, report);
    return tripped;
}

bool rules_describe(struct rule_set *s, size_t i, bool (*read)(lua_State *L, void *data, struct error *err), void *data,
                    struct sandbox_report *report) {
    struct tenant *t = s->tenant;
    if (!t || i >= s->count) {
        *report = (struct sandbox_report){.outcome = OUTCOME_ERROR, .message = "the rule cannot be read any more"};
        return false;
    }
    return version_into_sandbox(t, s->at[i], report) &&
           sandbox_describe(t->sandbox, s->at[i]->handle, read, data, report);
}

bool rules_is_trial(const struct rule_set *s) {
    return s->trial;
}

size_t rules_memory(const struct rule_set *s) {
    return s->tenant && s->tenant->sandbox ? sandbox_bytes(s->tenant->sandbox) : 0;
}

struct str rules_log(const struct rule_set *s) {
    return s->tenant && s->tenant->sandbox ? sandbox_log(s->tenant->sandbox) : str_n("", 0);
}

size_t rules_tenants(void) {
    return ntenants;
}

const char *rules_tenant(size_t i) {
    struct tenant *t = tenants;
    while (t && i--) t = t->next;
    return t ? t->key : NULL;
}

size_t rules_problems(const char *key) {
    const struct tenant *t = find_tenant(str_of(key));
    return t ? t->nproblems : 0;
}

struct rule_problem rules_problem(const char *key, size_t i) {
    const struct tenant *t = find_tenant(str_of(key));
    const struct problem *p = &t->problems[i];
    return (struct rule_problem){.file = p->file, .message = p->message, .line = p->line};
}
