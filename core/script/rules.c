/* Versions are counted references: a set holds its versions, the tenant holds its current set and those it replaced in
 * the last minute, a request holds the set it began with. The sandbox of a tenant is one for all its versions; when it
 * broke (heap limit) it is made anew and a version is loaded into it again when it is next run. */
#include "script/rules.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "crypto/crypto.h"
#include "runtime/clock.h"
#include "runtime/log.h"
#include "script/json.h"
#include "script/rules_watch.h"
#include "script/vm.h"

#define FILE_MAX ((size_t)64 * 1024)
#define ENTRIES_MAX 1000
#define TENANTS_MAX 10000
#define KEEP_US UINT64_C(60000000)   /* a replaced set can still be found by version */
#define IDLE_US UINT64_C(600000000)  /* a tenant's sandbox that nobody used is dropped */
#define LOG_GAP_US UINT64_C(1000000) /* failures of one rule are logged once in it, with their number */

struct tenant;

struct version {
    unsigned refs;
    char id[128], file[132];
    char sha[65];
    int priority;
    struct sandbox_manifest manifest;
    struct buf source, config;
    int handle; /* in the tenant's sandbox of this generation */
    unsigned generation;
    uint64_t logged_us;
    unsigned unlogged;
};

struct rule_set {
    unsigned refs;
    struct tenant *tenant; /* NULL once the registry is closed */
    struct rule_set *older;
    uint64_t replaced_us;
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

struct tenant {
    char key[64];
    struct tenant *next;
    struct sandbox *sandbox;
    unsigned generation;
    uint64_t used_us;
    struct rule_set *current; /* then those it replaced, by `older` */
    struct watched *watched;
    size_t nwatched;
    struct problem *problems;
    size_t nproblems;
    bool loaded;
};

/* One entry of an active list while it is read. */
struct entry {
    char file[132];
    int priority;
    bool has_priority;
    struct buf config;
};

struct listing {
    struct entry *at;
    size_t count;
};

static char root[PATH_MAX];
static lua_State *platform;
static struct tenant *tenants;
static size_t ntenants;

/* ---- versions and sets ---- */

static void version_release(struct version *v) {
    if (--v->refs) return;
    buf_free(&v->source);
    buf_free(&v->config);
    free(v);
}

static struct rule_set *set_new(size_t room, struct tenant *t) {
    struct rule_set *s = calloc(1, sizeof *s + room * sizeof(void *));
    if (!s) return NULL;
    s->refs = 1;
    s->tenant = t;
    return s;
}

static void set_unref(struct rule_set *s) {
    if (--s->refs) return;
    for (size_t i = 0; i < s->count; i++) {
        struct version *v = s->at[i];
        struct tenant *t = s->tenant;
        if (v->refs == 1 && t && t->sandbox && v->handle && v->generation == t->generation)
            sandbox_unload(t->sandbox, v->handle);
        version_release(v);
    }
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

/* ---- files ---- */

static bool key_ok(struct str key) {
    if (key.len == 0 || key.len > 63) return false;
    for (size_t i = 0; i < key.len; i++) {
        char c = key.at[i];
        bool word = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
        if (!word && (i == 0 || (c != '_' && c != '-'))) return false;
    }
    return true;
}

/* Lists are written by merchants' developers: nothing but a file below the folder may come of them. */
static bool file_ok(struct str file) {
    if (file.len < 5 || file.len > 120 || memcmp(file.at + file.len - 4, ".lua", 4) != 0) return false;
    for (size_t i = 0; i < file.len - 4; i++) {
        char c = file.at[i];
        bool word = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
        if (!word && (i == 0 || c != '/' || file.at[i - 1] == '/')) return false;
    }
    return true;
}

static bool path_of(const char *file, char out[PATH_MAX]) {
    int n = snprintf(out, PATH_MAX, "%s/%s", root, file);
    return n > 0 && n < PATH_MAX;
}

static struct stamp stamp_of(const char *file) {
    char path[PATH_MAX];
    struct stat st;
    if (!path_of(file, path) || stat(path, &st) != 0) return (struct stamp){.size = -1};
    return (struct stamp){.mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec,
                          .size = st.st_size,
                          .inode = st.st_ino};
}

static bool same_stamp(struct stamp a, struct stamp b) {
    return a.mtime_ns == b.mtime_ns && a.size == b.size && a.inode == b.inode;
}

/* False: `message` says why; `absent` when there is no such file. */
static bool read_file(const char *file, struct buf *out, bool *absent, char *message, size_t size) {
    char path[PATH_MAX];
    int fd = path_of(file, path) ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
    int why = errno;
    *absent = fd < 0 && why == ENOENT;
    struct stat st;
    bool ok = fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    if (ok && (uint64_t)st.st_size > FILE_MAX) ok = false, why = EFBIG;
    if (ok) ok = buf_reserve(out, FILE_MAX + 1);
    while (ok) {
        ssize_t n = read(fd, out->data + out->len, FILE_MAX + 1 - out->len);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            ok = n == 0;
            break;
        }
        out->len += (size_t)n;
        if (out->len > FILE_MAX) ok = false, why = EFBIG;
    }
    if (fd >= 0 && close(fd) != 0) ok = false;
    if (ok) return true;
    int put =
        snprintf(message, size, "cannot be read: %s", why == EFBIG ? "longer than 64 KiB" : strerror(why ? why : EIO));
    if (put < 0) message[0] = '\0';
    return false;
}

static void watch(struct tenant *t, const char *file) {
    char path[PATH_MAX];
    struct watched *grown = realloc(t->watched, (t->nwatched + 1) * sizeof *grown);
    if (!grown) return; /* the next reload sees it */
    t->watched = grown;
    struct watched *w = &grown[t->nwatched];
    int n = snprintf(w->file, sizeof w->file, "%s", file);
    if (n < 0 || (size_t)n >= sizeof w->file) return;
    w->stamp = stamp_of(file);
    t->nwatched++;
    if (!path_of(file, path)) return;
    char *slash = strrchr(path, '/');
    if (slash) *slash = '\0';
    watch_folder(path);
}

static void note_problem(struct tenant *t, const char *file, int line, const char *message) {
    struct buf fields = {0};
    bool ok = buf_printf(&fields, "\"tenant\":\"%s\",\"file\":", t->key) && buf_json_string(&fields, str_of(file)) &&
              buf_printf(&fields, ",\"line\":%d,\"error\":", line) && buf_json_string(&fields, str_of(message));
    if (!ok) buf_clear(&fields);
    log_event(LOG_WARN, STR("rule file not loaded"), buf_str(&fields));
    buf_free(&fields);
    struct problem *grown = realloc(t->problems, (t->nproblems + 1) * sizeof *grown);
    if (!grown) return; /* the log has it */
    t->problems = grown;
    struct problem *p = &grown[t->nproblems++];
    *p = (struct problem){.line = line};
    int n = snprintf(p->file, sizeof p->file, "%s", file);
    int m = snprintf(p->message, sizeof p->message, "%s", message);
    if (n < 0 || m < 0) t->nproblems--;
}

/* ---- loading ---- */

static struct sandbox *sandbox_for(struct tenant *t, struct error *err) {
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

/* Puts the version into the tenant's sandbox unless it is there. */
static bool into_sandbox(struct tenant *t, struct version *v, struct sandbox_report *report) {
    struct error err = {0};
    struct sandbox *sb = sandbox_for(t, &err);
    if (!sb) {
        *report = (struct sandbox_report){.outcome = OUTCOME_HEAP};
        memcpy(report->message, err.message, sizeof err.message);
        return false;
    }
    if (v->handle && v->generation == t->generation) return true;
    v->handle = sandbox_load(sb, v->file, buf_str(&v->source), &v->manifest, report);
    v->generation = t->generation;
    if (!v->handle) return false;
    if (sandbox_configure(sb, v->handle, buf_str(&v->config), report)) return true;
    sandbox_unload(sb, v->handle);
    v->handle = 0;
    return false;
}

static void hex(const unsigned char *raw, char out[65]) {
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < 32; i++) {
        out[2 * i] = digits[raw[i] >> 4];
        out[2 * i + 1] = digits[raw[i] & 15];
    }
    out[64] = '\0';
}

static bool sha_of(const struct version *v, char out[65]) {
    unsigned char raw[SHA256_BYTES];
    struct buf all = {0};
    bool ok = buf_add(&all, buf_str(&v->source)) && buf_byte(&all, '\0') && buf_add(&all, buf_str(&v->config)) &&
              buf_printf(&all, "%c%d", '\0', v->priority) && crypto_sha256(buf_str(&all), raw);
    buf_free(&all);
    if (ok) hex(raw, out);
    return ok;
}

static struct version *last_good(const struct tenant *t, const char *file) {
    if (!t->current) return NULL;
    for (size_t i = 0; i < t->current->count; i++)
        if (strcmp(t->current->at[i]->file, file) == 0) return t->current->at[i];
    return NULL;
}

/* The version an entry asks for, referenced: the one that is live when nothing changed or the new one is broken. */
static struct version *version_for(struct tenant *t, struct entry *e) {
    char why[512];
    bool absent;
    struct version *old = last_good(t, e->file), *v = calloc(1, sizeof *v);
    struct sandbox_report *report = malloc(sizeof *report);
    bool ok = false;
    watch(t, e->file);
    if (!v || !report) {
        note_problem(t, e->file, 0, "no memory");
    } else if (!read_file(e->file, &v->source, &absent, why, sizeof why)) {
        note_problem(t, e->file, 0, why);
    } else {
        v->refs = 1;
        v->config = e->config;
        e->config = (struct buf){0};
        v->priority = e->has_priority ? e->priority : INT_MIN; /* INT_MIN: the manifest's, in the hash too */
        memcpy(v->file, e->file, sizeof v->file);
        memcpy(v->id, e->file, strlen(e->file) - 4);
        ok = sha_of(v, v->sha);
        if (ok && old && strcmp(old->sha, v->sha) == 0) {
            ok = false; /* nothing changed: the old one goes on, with its counters */
        } else if (!ok) {
            note_problem(t, e->file, 0, "no memory");
        } else if (!into_sandbox(t, v, report)) {
            note_problem(t, e->file, report->line, report->message);
            ok = false;
        }
    }
    free(report);
    if (ok) {
        if (v->priority == INT_MIN) v->priority = v->manifest.priority;
        return v;
    }
    if (v) {
        buf_free(&v->source);
        buf_free(&v->config);
        free(v);
    }
    if (old) old->refs++;
    return old;
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
            note_problem(t, s->at[i]->file, 0, "not live: the hook has 25 rules already");
            version_release(s->at[i]);
        }
    }
    s->count = kept;
}

/* Reads the active list, which lies on top of the platform's stack as plain data; pops it. */
static bool read_listing(lua_State *L, struct listing *list, char *why, size_t size) {
    struct error err = {0};
    const char *wrong = NULL;
    size_t n = lua_istable(L, -1) ? lua_objlen(L, -1) : 0;
    if (!lua_istable(L, -1)) wrong = "the file must return a list";
    if (n > ENTRIES_MAX) wrong = "the list has more than 1000 entries";
    list->at = wrong ? NULL : calloc(n ? n : 1, sizeof *list->at);
    if (!wrong && !list->at) wrong = "no memory";
    for (size_t i = 0; i < n && !wrong; i++) {
        struct entry *e = &list->at[list->count];
        struct str file = {.at = NULL, .len = 0};
        lua_rawgeti(L, -1, (int)i + 1);
        if (lua_istable(L, -1)) {
            lua_getfield(L, -1, "file");
            if (lua_type(L, -1) == LUA_TSTRING) file.at = lua_tolstring(L, -1, &file.len);
            lua_pop(L, 1);
        }
        if (!file.at || !file_ok(file)) {
            wrong = "an entry has no file of the form folder/name.lua";
        } else {
            memcpy(e->file, file.at, file.len);
            list->count++;
            lua_getfield(L, -1, "priority");
            double p = lua_type(L, -1) == LUA_TNUMBER ? lua_tonumber(L, -1) : 0;
            e->has_priority = lua_type(L, -1) == LUA_TNUMBER;
            e->priority = (int)(p >= -1000 && p <= 1000 ? p : 0);
            if ((double)e->priority != p) wrong = "priority must be a whole number from -1000 to 1000";
            lua_pop(L, 1);
            lua_getfield(L, -1, "config");
            if (lua_isnil(L, -1)) {
                if (!buf_add(&e->config, STR("{}"))) wrong = "no memory";
            } else if (!json_encode_sorted(L, -1, &e->config, &err)) {
                wrong = err.message;
            }
            lua_pop(L, 1);
        }
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
    if (!wrong) return true;
    int put = snprintf(why, size, "%s", wrong);
    if (put < 0) why[0] = '\0';
    return false;
}

static void listing_free(struct listing *list) {
    for (size_t i = 0; i < list->count; i++) buf_free(&list->at[i].config);
    free(list->at);
    *list = (struct listing){0};
}

static bool take_data(lua_State *L, void *data, struct error *err) {
    (void)data;
    return sandbox_copy(L, -1, platform, (size_t)512 * 1024, err);
}

/* False: the list cannot be used (the problem is noted). An absent file is an empty list. */
static bool load_listing(struct tenant *t, struct listing *list) {
    char file[80], why[512];
    bool absent;
    int n = snprintf(file, sizeof file, "active/%s.lua", t->key);
    if (n < 0) return false;
    watch(t, file);
    struct buf source = {0};
    if (!read_file(file, &source, &absent, why, sizeof why)) {
        buf_free(&source);
        if (!absent) note_problem(t, file, 0, why);
        return absent;
    }
    struct error err = {0};
    struct sandbox *sb = sandbox_for(t, &err);
    struct sandbox_report *report = calloc(1, sizeof *report);
    bool ok = sb && report && sandbox_data(sb, file, buf_str(&source), take_data, NULL, report);
    if (!ok) {
        note_problem(t, file, sb && report ? report->line : 0, sb && report ? report->message : "no memory");
    } else if (!read_listing(platform, list, why, sizeof why)) {
        note_problem(t, file, 0, why);
        ok = false;
    }
    free(report);
    buf_free(&source);
    return ok;
}

static bool same_versions(const struct rule_set *a, const struct rule_set *b) {
    if (a->count != b->count) return false;
    for (size_t i = 0; i < a->count; i++)
        if (a->at[i] != b->at[i]) return false;
    return true;
}

static void load_tenant(struct tenant *t) {
    struct listing list = {0};
    t->nwatched = t->nproblems = 0;
    t->loaded = true;
    struct rule_set *fresh = load_listing(t, &list) ? set_new(list.count, t) : NULL;
    if (!fresh) {
        /* What is live stays live; its files are looked at again when they or the list change. */
        for (size_t i = 0; t->current && i < t->current->count; i++) watch(t, t->current->at[i]->file);
        listing_free(&list);
        return;
    }
    for (size_t i = 0; i < list.count; i++) {
        bool twice = false;
        for (size_t k = 0; k < i; k++) twice = twice || strcmp(list.at[k].file, list.at[i].file) == 0;
        if (twice) {
            note_problem(t, list.at[i].file, 0, "listed twice: the first entry counts");
            continue;
        }
        struct version *v = version_for(t, &list.at[i]);
        if (v) fresh->at[fresh->count++] = v;
    }
    listing_free(&list);
    qsort(fresh->at, fresh->count, sizeof(void *), by_priority);
    keep_to_the_limit(t, fresh);
    if (same_versions(t->current, fresh)) {
        set_unref(fresh);
        return;
    }
    struct rule_set *old = t->current;
    old->replaced_us = clock_mono_us();
    fresh->older = old;
    t->current = fresh;
    drop_replaced(t, old->replaced_us);
    log_line(LOG_INFO, "rules of tenant %s loaded: %zu live", t->key, fresh->count);
}

static bool changed(const struct tenant *t) {
    for (size_t i = 0; i < t->nwatched; i++)
        if (!same_stamp(t->watched[i].stamp, stamp_of(t->watched[i].file))) return true;
    return false;
}

static void look(void) {
    uint64_t now = clock_mono_us();
    for (struct tenant *t = tenants; t; t = t->next) {
        drop_replaced(t, now);
        if (changed(t)) load_tenant(t);
        if (t->sandbox && now - t->used_us > IDLE_US) {
            sandbox_free(t->sandbox); /* versions stay; they are loaded again when they are run */
            t->sandbox = NULL;
        }
    }
}

static struct tenant *find_tenant(struct str key) {
    for (struct tenant *t = tenants; t; t = t->next)
        if (str_eq(str_of(t->key), key)) return t;
    return NULL;
}

static struct tenant *tenant_for(struct str key, struct error *err) {
    if (!key_ok(key)) {
        error_set(err, ERR_INVALID, "not a tenant key");
        return NULL;
    }
    struct tenant *t = find_tenant(key);
    if (t) return t;
    if (ntenants >= TENANTS_MAX) {
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
    t->next = tenants;
    tenants = t;
    ntenants++;
    return t;
}

/* ---- the face ---- */

bool rules_open(lua_State *main, const char *dir, bool watching, struct error *err) {
    if (platform) return error_set(err, ERR_INVALID, "the rules are open already");
    if (!vm_find_dir(dir, "rules", root))
        return error_set(err, ERR_INVALID, "no folder of rules at %s", dir && *dir ? dir : KASMA_SOURCE_DIR "/rules");
    platform = main;
    if (watching) watch_open(look);
    return true;
}

bool rules_are_open(void) {
    return platform != NULL;
}

void rules_close(void) {
    if (!platform) return;
    watch_close();
    while (tenants) {
        struct tenant *t = tenants;
        tenants = t->next;
        for (struct rule_set *s = t->current, *older; s; s = older) {
            older = s->older;
            s->older = NULL;
            s->tenant = NULL;
            set_unref(s);
        }
        sandbox_free(t->sandbox);
        free(t->watched);
        free(t->problems);
        free(t);
    }
    ntenants = 0;
    platform = NULL;
}

void rules_reload(void) {
    for (struct tenant *t = tenants; t; t = t->next)
        if (t->loaded) load_tenant(t);
}

struct rule_set *rules_acquire(struct str key, struct error *err) {
    if (!platform) {
        error_set(err, ERR_INTERNAL, "the rules are not open");
        return NULL;
    }
    struct tenant *t = tenant_for(key, err);
    if (!t) return NULL;
    if (!t->loaded) load_tenant(t);
    t->current->refs++;
    return t->current;
}

struct rule_set *rules_acquire_version(struct str key, const char *id, const char *version, struct error *err) {
    struct rule_set *s = rules_acquire(key, err);
    if (!s || rules_find(s, id, version) >= 0) return s;
    for (struct rule_set *old = s->older; old; old = old->older) {
        if (rules_find(old, id, version) < 0) continue;
        old->refs++;
        set_unref(s);
        return old;
    }
    set_unref(s);
    error_set(err, ERR_INVALID, "the tenant has no rule %s%s", id, version ? " of that version" : "");
    return NULL;
}

size_t rules_count(const struct rule_set *s) {
    return s->count;
}

struct rule_info rules_at(const struct rule_set *s, size_t i) {
    const struct version *v = s->at[i];
    return (struct rule_info){.id = v->id,
                              .name = v->manifest.name,
                              .hook = v->manifest.hook,
                              .on_error = v->manifest.on_error,
                              .version = v->sha,
                              .priority = v->priority};
}

int rules_find(const struct rule_set *s, const char *id, const char *version) {
    for (size_t i = 0; i < s->count; i++)
        if (strcmp(s->at[i]->id, id) == 0 && (!version || strcmp(s->at[i]->sha, version) == 0)) return (int)i;
    return -1;
}

static const struct sandbox_limits *limits_of(const char *hook) {
    static const char *const slow[] = {"cms.", "article.", "learning.", "course.", "mail.", "media."};
    for (size_t i = 0; i < sizeof slow / sizeof *slow; i++)
        if (strncmp(hook, slow[i], strlen(slow[i])) == 0) return &sandbox_slow;
    return &sandbox_pure;
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

bool rules_run(struct rule_set *s, size_t i, const struct sandbox_limits *limits,
               bool (*build)(lua_State *L, void *data, struct error *err),
               bool (*read)(lua_State *L, void *data, struct error *err), void *data, struct sandbox_report *report) {
    struct tenant *t = s->tenant;
    if (!t || i >= s->count) {
        *report = (struct sandbox_report){.outcome = OUTCOME_ERROR, .message = "the rule cannot be run any more"};
        return false;
    }
    struct version *v = s->at[i];
    bool ok =
        into_sandbox(t, v, report) &&
        sandbox_run(t->sandbox, v->handle, limits ? limits : limits_of(v->manifest.hook), build, read, data, report);
    if (!ok) log_failure(t, v, report);
    return ok;
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
