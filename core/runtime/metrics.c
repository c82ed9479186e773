#include "runtime/metrics.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "runtime/clock.h"
#include "runtime/log.h"

/* Sizes of the shared mapping. It is virtual memory: pages are taken when a series first lies on them. */
#define FAMILIES 256
#define SERIES 16384     /* all families together */
#define SERIES_EACH 4096 /* one family; further label values share its `other` series */
#define SLOTS 32768      /* a histogram takes one for each bound, and three */
#define TEXT_BYTES ((size_t)2 * 1024 * 1024)
#define BOUNDS 24
#define LABELS 6
#define HASH 4096 /* of this process's look-up table; a power of two */

enum kind { COUNTER, GAUGE, HISTOGRAM };

/* The directory's two tables. `text` fields are offsets, so that they mean the same in every process. */
struct family {
    uint32_t name, help, labels; /* text */
    uint32_t first, count;       /* its series, newest first; number of them */
    uint16_t label_count, bound_count;
    uint8_t kind, merge;
    double bounds[BOUNDS];
};

struct series {
    uint32_t family, next; /* next of the same family + 1, 0 = end */
    uint32_t slot;         /* histogram: buckets, then +Inf, sum */
    uint32_t text, len;    /* rendered labels, `method="GET",code="200"` */
};

struct directory {
    pthread_mutex_t lock; /* robust: a worker may be killed at any instruction */
    uint32_t families, series, slots, text_used;
    uint32_t processes;
    struct family family[FAMILIES];
    struct series list[SERIES];
    char text[TEXT_BYTES];
};

struct metric {
    uint32_t family; /* index in the directory, or NOWHERE */
    uint32_t labels;
    uint32_t only; /* slot of the family without labels, 0 = not looked up yet */
    uint8_t kind;
    size_t bound_count;
    double bounds[BOUNDS]; /* copied: the hot path reads no shared page but its own slots */
    struct metric *next;
};

#define NOWHERE UINT32_MAX

/* This process's look-up table: what the directory has said before. */
struct known {
    struct known *next;
    uint32_t family, slot;
    uint32_t len;
    char text[];
};

static struct directory *dir;
static _Atomic double *values; /* processes * SLOTS */
static _Atomic double *mine;
static struct metric *families;
static struct known *known[HASH];
/* Where numbers go when there is no mapping. */
static _Atomic double nowhere[BOUNDS + 3];
static struct metric lost = {.family = NOWHERE};

static double unset_value(void) {
    return (double)NAN;
}

bool metrics_open(unsigned processes) {
    if (dir) return true;
    if (processes == 0) processes = 1;
    size_t head = (sizeof *dir + 4095) / 4096 * 4096;
    size_t bytes = head + (size_t)processes * SLOTS * sizeof *values;
    char *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return false;
    struct directory *d = (struct directory *)(void *)map;
    pthread_mutexattr_t attr;
    bool ok = pthread_mutexattr_init(&attr) == 0 && pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED) == 0 &&
              pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST) == 0 && pthread_mutex_init(&d->lock, &attr) == 0;
    if (!ok) {
        munmap(map, bytes);
        return false;
    }
    /* Slot 0 and the histogram's worth behind it are the bin: a full directory hands them out. Text 0 is "". */
    d->slots = BOUNDS + 3;
    d->text_used = 1;
    d->processes = processes;
    dir = d;
    values = (_Atomic double *)(void *)(map + head);
    mine = values;
    return true;
}

void metrics_attach(unsigned index) {
    if (!dir || index >= dir->processes) return;
    mine = values + (size_t)index * SLOTS;
    for (uint32_t i = 0; i < dir->series; i++)
        if (dir->family[dir->list[i].family].kind == GAUGE)
            atomic_store_explicit(&mine[dir->list[i].slot], unset_value(), memory_order_relaxed);
}

static bool lock(void) {
    int rc = pthread_mutex_lock(&dir->lock);
    /* The holder died. Whatever it was appending is not counted yet (counts are written last), so it is whole. */
    if (rc == EOWNERDEAD) rc = pthread_mutex_consistent(&dir->lock);
    return rc == 0;
}

static void unlock(void) {
    int rc = pthread_mutex_unlock(&dir->lock);
    (void)rc; /* held by this thread: cannot fail */
}

/* Offset of a copy of `s` with a NUL, or 0 when the text is full. */
static uint32_t text_add(struct str s) {
    if (s.len + 1 > TEXT_BYTES - dir->text_used) return 0;
    uint32_t at = dir->text_used;
    memcpy(dir->text + at, s.at, s.len);
    dir->text[at + s.len] = '\0';
    dir->text_used += (uint32_t)s.len + 1;
    return at;
}

static uint32_t family_find(const char *name) {
    for (uint32_t i = 0; i < dir->families; i++)
        if (strcmp(dir->text + dir->family[i].name, name) == 0) return i;
    return NOWHERE;
}

static uint32_t count_labels(const char *labels) {
    if (!labels || !*labels) return 0;
    uint32_t n = 1;
    for (const char *p = labels; *p; p++) n += *p == ',';
    return n;
}

static struct metric *family_make(const char *name, const char *help, enum kind kind, enum metric_merge merge,
                                  const double *bounds, size_t count, const char *labels) {
    if (!dir && !metrics_open(1)) return &lost;
    for (struct metric *m = families; m; m = m->next)
        if (strcmp(dir->text + dir->family[m->family].name, name) == 0) return m;
    struct metric *m = calloc(1, sizeof *m);
    if (!m || count_labels(labels) > LABELS || count > BOUNDS || !lock()) {
        free(m);
        return &lost;
    }
    uint32_t at = family_find(name);
    if (at == NOWHERE && dir->families < FAMILIES) {
        struct family *f = &dir->family[dir->families];
        *f = (struct family){.kind = (uint8_t)kind,
                             .merge = (uint8_t)merge,
                             .label_count = (uint16_t)count_labels(labels),
                             .bound_count = (uint16_t)count};
        f->name = text_add(str_of(name));
        f->help = text_add(str_of(help));
        f->labels = labels ? text_add(str_of(labels)) : 0;
        if (count) memcpy(f->bounds, bounds, count * sizeof *bounds);
        if (f->name) at = dir->families++;
    }
    /* The same name as another kind would put numbers where they mean something else. */
    if (at != NOWHERE && (dir->family[at].kind != kind || dir->family[at].label_count != count_labels(labels)))
        at = NOWHERE;
    if (at == NOWHERE) {
        unlock();
        free(m);
        log_line(LOG_WARN, "metric %s cannot be made: the directory is full or the name is used otherwise", name);
        return &lost;
    }
    const struct family *f = &dir->family[at];
    m->family = at;
    m->labels = f->label_count;
    m->kind = f->kind;
    m->bound_count = f->bound_count;
    memcpy(m->bounds, f->bounds, sizeof m->bounds);
    m->next = families;
    families = m;
    unlock();
    return m;
}

struct metric *metric_counter(const char *name, const char *help, const char *labels) {
    return family_make(name, help, COUNTER, METRIC_SUM, NULL, 0, labels);
}

struct metric *metric_gauge(const char *name, const char *help, enum metric_merge merge, const char *labels) {
    return family_make(name, help, GAUGE, merge, NULL, 0, labels);
}

struct metric *metric_histogram(const char *name, const char *help, const double *bounds, size_t count,
                                const char *labels) {
    static const double usual[] = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10};
    if (!bounds) {
        bounds = usual;
        count = sizeof usual / sizeof *usual;
    }
    return family_make(name, help, HISTOGRAM, METRIC_SUM, bounds, count, labels);
}

size_t metric_label_count(const struct metric *m) {
    return m->labels;
}

/* Renders `method="GET",code="200"`; values are cut at 128 bytes and made to be text. */
static bool labels_text(struct buf *out, const char *names, const struct str *list, size_t count) {
    for (size_t i = 0; i < count; i++) {
        size_t n = strcspn(names, ",");
        struct str v = list[i];
        if (v.len > 128) v.len = 128;
        if (i && !buf_byte(out, ',')) return false;
        if (!buf_add(out, str_n(names, n)) || !buf_add(out, STR("=\""))) return false;
        for (size_t k = 0; k < v.len; k++) {
            char c = v.at[k];
            bool ok = c == '\\' || c == '"'                                ? buf_byte(out, '\\') && buf_byte(out, c)
                      : c == '\n'                                          ? buf_add(out, STR("\\n"))
                      : (unsigned char)c < 0x20 || (unsigned char)c > 0x7E ? buf_byte(out, '?')
                                                                           : buf_byte(out, c);
            if (!ok) return false;
        }
        if (!buf_byte(out, '"')) return false;
        names += n + (names[n] == ',');
    }
    return true;
}

static uint32_t hash_of(uint32_t family, struct str s) {
    uint32_t h = 2166136261u ^ family;
    for (size_t i = 0; i < s.len; i++) h = (h ^ (unsigned char)s.at[i]) * 16777619u;
    return h & (HASH - 1);
}

/* The series of that text, appended when the family lacks it; 0 when there is no room. The lock is held. */
static uint32_t series_find(uint32_t family, struct str text) {
    struct family *f = &dir->family[family];
    for (uint32_t i = f->first; i; i = dir->list[i - 1].next) {
        const struct series *s = &dir->list[i - 1];
        if (str_eq(str_n(dir->text + s->text, s->len), text)) return s->slot;
    }
    uint32_t need = f->kind == HISTOGRAM ? f->bound_count + 2u : 1u;
    if (dir->series == SERIES || SLOTS - dir->slots < need) return 0;
    uint32_t at = text.len ? text_add(text) : 0;
    if (text.len && !at) return 0;
    uint32_t slot = dir->slots;
    if (f->kind == GAUGE)
        for (uint32_t p = 0; p < dir->processes; p++)
            atomic_store_explicit(&values[(size_t)p * SLOTS + slot], unset_value(), memory_order_relaxed);
    dir->slots += need;
    dir->list[dir->series] =
        (struct series){.family = family, .next = f->first, .slot = slot, .text = at, .len = (uint32_t)text.len};
    f->first = ++dir->series;
    f->count++;
    return slot;
}

uint32_t metric_lookup(struct metric *m, const struct str *list, size_t count) {
    if (m->family == NOWHERE || count != m->labels) return 0;
    struct buf text = {0};
    const char *names = dir->text + dir->family[m->family].labels;
    if (!labels_text(&text, names, list, count)) {
        buf_free(&text);
        return 0;
    }
    uint32_t bucket = hash_of(m->family, buf_str(&text)), slot = 0;
    const struct known *seen = known[bucket];
    while (seen && (seen->family != m->family || !str_eq(str_n(seen->text, seen->len), buf_str(&text))))
        seen = seen->next;
    if (seen) {
        slot = seen->slot; /* 0 where there was no room: there is none later either */
    } else if (lock()) {
        struct str wanted = buf_str(&text);
        struct buf other = {0};
        if (dir->family[m->family].count >= SERIES_EACH) {
            struct str words[LABELS];
            for (size_t i = 0; i < count; i++) words[i] = STR("other");
            if (labels_text(&other, names, words, count)) wanted = buf_str(&other);
        }
        slot = series_find(m->family, wanted);
        unlock();
        buf_free(&other);
        struct known *k = malloc(sizeof *k + text.len);
        if (k) {
            *k = (struct known){.next = known[bucket], .family = m->family, .slot = slot, .len = (uint32_t)text.len};
            if (text.len) memcpy(k->text, text.data, text.len);
            known[bucket] = k;
        }
    }
    buf_free(&text);
    return slot;
}

uint32_t metric_series_of(struct metric *m, const char *const *list) {
    struct str views[LABELS];
    size_t n = 0;
    while (list[n] && n < LABELS) {
        views[n] = str_of(list[n]);
        n++;
    }
    return metric_lookup(m, views, n);
}

uint32_t metric_only(struct metric *m) {
    if (m->only == 0) m->only = metric_lookup(m, NULL, 0);
    return m->only;
}

static void bump(_Atomic double *slot, double n) {
    /* One writer: load and store, no locked instruction. */
    double was = atomic_load_explicit(slot, memory_order_relaxed);
    if (isnan(was)) was = 0;
    atomic_store_explicit(slot, was + n, memory_order_relaxed);
}

static _Atomic double *at_slot(uint32_t slot) {
    return mine ? &mine[slot] : nowhere;
}

void metric_add(uint32_t slot, double n) {
    bump(at_slot(slot), n);
}

void metric_set(uint32_t slot, double value) {
    atomic_store_explicit(at_slot(slot), value, memory_order_relaxed);
}

void metric_observe(struct metric *m, uint32_t slot, double value) {
    _Atomic double *base = at_slot(slot);
    size_t i = 0;
    while (i < m->bound_count && value > m->bounds[i]) i++;
    bump(&base[i], 1);
    bump(&base[m->bound_count + 1], value);
}

static double merged(uint32_t slot, enum metric_merge merge) {
    double all = merge == METRIC_SUM ? 0 : unset_value();
    for (uint32_t p = 0; p < dir->processes; p++) {
        double v = atomic_load_explicit(&values[(size_t)p * SLOTS + slot], memory_order_relaxed);
        if (isnan(v)) continue;
        if (merge == METRIC_SUM)
            all += v;
        else if (isnan(all) || (merge == METRIC_MAX ? v > all : v < all))
            all = v;
    }
    return all;
}

double metric_value(struct metric *m, uint32_t slot) {
    if (m->family == NOWHERE || slot == 0) return 0;
    if (m->kind == HISTOGRAM) {
        double count = 0;
        for (uint32_t i = 0; i <= m->bound_count; i++) count += merged(slot + i, METRIC_SUM);
        return count;
    }
    double v = merged(slot, (enum metric_merge)dir->family[m->family].merge);
    return isnan(v) ? 0 : v;
}

/* Integers without a fraction, everything else with what a double needs. */
static bool put_number(struct buf *out, double v) {
    if (isinf(v)) return buf_add(out, v > 0 ? STR("+Inf") : STR("-Inf"));
    return fabs(v) < 9e15 && v == floor(v) ? buf_printf(out, "%.0f", v) : buf_printf(out, "%.12g", v);
}

static bool put_line(struct buf *out, const char *name, const char *suffix, struct str labels, const char *le,
                     double v) {
    bool braces = labels.len || le;
    return buf_printf(out, "%s%s", name, suffix) && (!braces || buf_byte(out, '{')) && buf_add(out, labels) &&
           (!le || buf_printf(out, "%sle=\"%s\"", labels.len ? "," : "", le)) && (!braces || buf_byte(out, '}')) &&
           buf_byte(out, ' ') && put_number(out, v) && buf_byte(out, '\n');
}

static bool put_histogram(struct buf *out, const struct family *f, const struct series *s) {
    const char *name = dir->text + f->name;
    struct str labels = str_n(dir->text + s->text, s->len);
    double count = 0;
    for (uint32_t i = 0; i <= f->bound_count; i++) {
        char le[32] = "+Inf";
        if (i < f->bound_count && snprintf(le, sizeof le, "%.12g", f->bounds[i]) < 0) return false;
        count += merged(s->slot + i, METRIC_SUM);
        if (!put_line(out, name, "_bucket", labels, le, count)) return false;
    }
    return put_line(out, name, "_sum", labels, NULL, merged(s->slot + f->bound_count + 1u, METRIC_SUM)) &&
           put_line(out, name, "_count", labels, NULL, count);
}

bool metrics_render(struct buf *out) {
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    if (!dir) return true;
    if (!lock()) return false;
    bool ok = true;
    for (uint32_t i = 0; ok && i < dir->families; i++) {
        const struct family *f = &dir->family[i];
        const char *name = dir->text + f->name;
        if (f->first == 0) continue;
        ok = buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, dir->text + f->help, name, kinds[f->kind]);
        for (uint32_t at = f->first; ok && at; at = dir->list[at - 1].next) {
            const struct series *s = &dir->list[at - 1];
            if (f->kind == HISTOGRAM) {
                ok = put_histogram(out, f, s);
                continue;
            }
            double v = merged(s->slot, (enum metric_merge)f->merge);
            if (!isnan(v)) ok = put_line(out, name, "", str_n(dir->text + s->text, s->len), NULL, v);
        }
    }
    unlock();
    return ok;
}

/* Numbers of the kernel about this process. A file that cannot be read leaves its gauge as it was. */
static int64_t resident_bytes(void) {
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f) return -1;
    char line[128];
    bool got = fgets(line, sizeof line, f) != NULL;
    int closed = fclose(f);
    if (!got || closed != 0) return -1;
    struct str text = str_of(line);
    size_t space = strcspn(text.at, " ");
    if (space >= text.len) return -1;
    struct str rest = str_n(text.at + space + 1, text.len - space - 1);
    rest.len = strcspn(rest.at, " ");
    int64_t pages;
    return str_int64(rest, &pages) ? pages * sysconf(_SC_PAGESIZE) : -1;
}

void metrics_sample_process(void) {
    static struct metric *cpu, *resident, *started;
    static double cpu_before;
    if (!cpu) {
        cpu = metric_counter("process_cpu_seconds_total", "User and system CPU time, all processes", NULL);
        resident = metric_gauge("process_resident_memory_bytes", "Resident memory, all processes", METRIC_SUM, NULL);
        started = metric_gauge("process_start_time_seconds", "Start of the oldest process", METRIC_MIN, NULL);
        metric_set(metric_only(started), (double)clock_real() / 1000);
    }
    struct rusage use;
    if (getrusage(RUSAGE_SELF, &use) == 0) {
        double now = (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
                     (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6;
        metric_add(metric_only(cpu), now - cpu_before);
        cpu_before = now;
    }
    int64_t bytes = resident_bytes();
    if (bytes >= 0) metric_set(metric_only(resident), (double)bytes);
}
