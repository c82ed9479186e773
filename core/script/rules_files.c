/* Rules from files: `active/<tenant_key>.lua` in the rules folder names them. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/log.h"
#include "script/calendar.h"
#include "script/json.h"
#include "script/rules_internal.h"
#include "script/rules_watch.h"
#include "script/vm.h"

#define FILE_MAX ((size_t)64 * 1024)
#define ENTRIES_MAX 1000

/* One entry of an active list while it is read. */
struct entry {
    char file[132];
    int priority;
    bool has_priority;
    int64_t starts_ms, ends_ms;
    struct buf config;
};

struct listing {
    struct entry *at;
    size_t count;
};

static char root[PATH_MAX];
static lua_State *platform;
static uint64_t loads;

uint64_t rules_loads(void) {
    return loads;
}

const char *rules_folder(void) {
    return root;
}

bool rule_files_open(lua_State *main, const char *dir) {
    platform = main;
    return vm_find_dir(dir, "rules", root);
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

void rule_files_problem(struct tenant *t, const char *file, int line, const char *message) {
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

static struct version *last_good(const struct tenant *t, const char *file) {
    for (size_t i = 0; i < t->files.count; i++)
        if (strcmp(t->files.at[i]->file, file) == 0) return t->files.at[i];
    return NULL;
}

/* The version an entry asks for, referenced: the one that is live when nothing changed or the new one is broken. */
static struct version *version_for(struct tenant *t, struct entry *e) {
    char why[512];
    bool absent;
    struct version *old = last_good(t, e->file), *v = version_new();
    struct sandbox_report *report = malloc(sizeof *report);
    bool ok = false;
    watch(t, e->file);
    if (!v || !report) {
        rule_files_problem(t, e->file, 0, "no memory");
    } else if (!read_file(e->file, &v->source, &absent, why, sizeof why)) {
        rule_files_problem(t, e->file, 0, why);
        if (absent) old = NULL; /* taken away, which is no mistake in it */
    } else {
        v->config = e->config;
        e->config = (struct buf){0};
        v->priority = e->has_priority ? e->priority : INT_MIN; /* INT_MIN: the manifest's, in the hash too */
        v->starts_ms = e->starts_ms;
        v->ends_ms = e->ends_ms;
        memcpy(v->file, e->file, sizeof v->file);
        memcpy(v->id, e->file, strlen(e->file) - 4);
        ok = version_hash(v);
        if (ok && old && strcmp(old->sha, v->sha) == 0) {
            ok = false; /* nothing changed: the old one goes on, with its counters */
        } else if (!ok) {
            rule_files_problem(t, e->file, 0, "no memory");
        } else if (!version_into_sandbox(t, v, report)) {
            rule_files_problem(t, e->file, report->line, report->message);
            ok = false;
        }
    }
    free(report);
    if (ok) {
        if (v->priority == INT_MIN) v->priority = v->manifest.priority;
        return v;
    }
    if (v) version_release(v);
    if (!old) return NULL;
    old->starts_ms = e->starts_ms; /* of the list, which is in order, whatever the file is */
    old->ends_ms = e->ends_ms;
    old->refs++;
    return old;
}

/* A bound of the window of the entry on top; 0 when absent. False: it is no time. */
static bool read_bound(lua_State *L, const char *name, int64_t *ms) {
    struct str text = {.at = NULL, .len = 0};
    lua_getfield(L, -1, name);
    bool ok = lua_isnil(L, -1);
    if (lua_type(L, -1) == LUA_TSTRING) {
        text.at = lua_tolstring(L, -1, &text.len);
        ok = calendar_parse(text, NULL, ms);
    }
    lua_pop(L, 1);
    return ok;
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
            if (!read_bound(L, "startsAt", &e->starts_ms)) wrong = "startsAt is no time";
            if (!read_bound(L, "endsAt", &e->ends_ms)) wrong = "endsAt is no time";
            if (e->starts_ms && e->ends_ms && e->ends_ms <= e->starts_ms) wrong = "endsAt must come after startsAt";
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
        if (!absent) rule_files_problem(t, file, 0, why);
        return absent;
    }
    struct error err = {0};
    struct sandbox *sb = sandbox_for(t, &err);
    struct sandbox_report *report = calloc(1, sizeof *report);
    bool ok = sb && report && sandbox_data(sb, file, buf_str(&source), take_data, NULL, report);
    if (!ok) {
        rule_files_problem(t, file, sb && report ? report->line : 0, sb && report ? report->message : "no memory");
    } else if (!read_listing(platform, list, why, sizeof why)) {
        rule_files_problem(t, file, 0, why);
        ok = false;
    }
    free(report);
    buf_free(&source);
    return ok;
}

void rule_files_load(struct tenant *t) {
    struct listing list = {0};
    struct version_list fresh = {0};
    t->nwatched = t->nproblems = 0;
    t->loaded = true;
    loads++;
    if (!load_listing(t, &list)) {
        /* What is live stays live; its files are looked at again when they or the list change. */
        for (size_t i = 0; i < t->files.count; i++) watch(t, t->files.at[i]->file);
        listing_free(&list);
        return;
    }
    for (size_t i = 0; i < list.count; i++) {
        bool twice = false;
        for (size_t k = 0; k < i; k++) twice = twice || strcmp(list.at[k].file, list.at[i].file) == 0;
        if (twice) {
            rule_files_problem(t, list.at[i].file, 0, "listed twice: the first entry counts");
            continue;
        }
        struct version *v = version_for(t, &list.at[i]);
        if (v && strcmp(v->manifest.hook, "workflow") == 0) {
            /* A run keeps the version that it began with for weeks; a file has no versions. */
            rule_files_problem(t, list.at[i].file, 0,
                               "not live: a workflow has to be published (kasma rules publish, or push)");
            version_drop(t, v);
            continue;
        }
        if (v && !version_list_add(&fresh, v)) rule_files_problem(t, list.at[i].file, 0, "no memory");
    }
    listing_free(&list);
    struct version_list old = t->files;
    t->files = fresh;
    tenant_rebuild(t);
    version_list_free(t, &old);
}

bool rule_files_changed(const struct tenant *t) {
    for (size_t i = 0; i < t->nwatched; i++)
        if (!same_stamp(t->watched[i].stamp, stamp_of(t->watched[i].file))) return true;
    return false;
}
