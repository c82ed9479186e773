#include "stores/redis_metric.h"

#include "runtime/metrics.h"

enum { MAX_NAMES = 64, TABLE = 256, NAME = 24 };

static struct metric *seconds, *store_up;
static uint32_t up_slot, other_slot;

static struct entry {
    char name[NAME]; /* empty: free */
    uint32_t slot;
} table[TABLE];
static size_t names;

static void prepare(void) {
    if (seconds) return;
    static const double bounds[] = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2};
    seconds = metric_histogram("kasma_redis_seconds", "Time from a Redis command to its answer.", bounds,
                               sizeof bounds / sizeof *bounds, "cmd");
    store_up = metric_gauge("kasma_store_up", "1 while the store answers.", METRIC_MIN, "store");
    up_slot = metric_series(store_up, "redis");
    other_slot = metric_series(seconds, "other");
}

uint32_t redis_metric_slot(struct str command) {
    prepare();
    if (command.len >= NAME) return other_slot;
    char name[NAME] = {0};
    uint32_t hash = 2166136261U;
    for (size_t i = 0; i < command.len; i++) {
        char c = command.at[i];
        name[i] = (char)(c >= 'A' && c <= 'Z' ? c + 32 : c);
        hash = (hash ^ (unsigned char)name[i]) * 16777619U;
    }
    for (size_t i = hash % TABLE;; i = (i + 1) % TABLE) {
        struct entry *e = &table[i];
        if (e->name[0] && memcmp(e->name, name, NAME) == 0) return e->slot;
        if (e->name[0]) continue;
        if (names == MAX_NAMES || !name[0]) return other_slot;
        names++;
        memcpy(e->name, name, NAME);
        e->slot = metric_series(seconds, name);
        return e->slot;
    }
}

void redis_metric_observe(uint32_t slot, uint64_t us) {
    metric_observe(seconds, slot, (double)us / 1e6);
}

void redis_metric_up(bool up) {
    prepare();
    metric_set(up_slot, up ? 1 : 0);
}
