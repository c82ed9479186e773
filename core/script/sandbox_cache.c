#include "script/sandbox_cache.h"

#include <lauxlib.h>
#include <stdlib.h>

#include "runtime/clock.h"

#define ENTRIES_MAX 512
#define BYTES_MAX ((size_t)8 * 1024 * 1024)
#define BUCKETS 256
#define CONFIGS 8 /* the newest of an entry */
#define CONFIG_MAX ((size_t)4 * 1024)

struct config {
    struct buf json, checked;
};

struct compiled {
    struct compiled *next; /* in its bucket */
    unsigned holders;
    uint64_t hash, used_us;
    struct buf source;
    struct buf head, code; /* the dump before and after the chunk's name and its length */
    bool has_manifest;
    struct sandbox_manifest manifest;
    struct config config[CONFIGS];
    unsigned next_config;
};

static struct compiled *buckets[BUCKETS];
static size_t entries, bytes;

static uint64_t hash_of(struct str s) {
    uint64_t h = s.len * UINT64_C(0x9E3779B97F4A7C15), word;
    size_t i = 0;
    for (; i + sizeof word <= s.len; i += sizeof word) {
        memcpy(&word, s.at + i, sizeof word);
        h = (h ^ word) * UINT64_C(0xD6E8FEB86659FD93);
        h ^= h >> 32;
    }
    for (; i < s.len; i++) h = (h ^ (unsigned char)s.at[i]) * UINT64_C(0x100000001B3);
    return h ^ h >> 29;
}

static size_t size_of(const struct compiled *c) {
    size_t n = sizeof *c + c->source.cap + c->head.cap + c->code.cap;
    for (size_t i = 0; i < CONFIGS; i++) n += c->config[i].json.cap + c->config[i].checked.cap;
    return n;
}

static void free_entry(struct compiled *c) {
    buf_free(&c->source);
    buf_free(&c->head);
    buf_free(&c->code);
    for (size_t i = 0; i < CONFIGS; i++) {
        buf_free(&c->config[i].json);
        buf_free(&c->config[i].checked);
    }
    free(c);
}

struct compiled *compiled_find(struct str source) {
    uint64_t hash = hash_of(source);
    for (struct compiled *c = buckets[hash % BUCKETS]; c; c = c->next) {
        if (c->hash != hash || !str_eq(buf_str(&c->source), source)) continue;
        c->used_us = clock_mono_us();
        return c;
    }
    return NULL;
}

static void drop(struct compiled **at) {
    struct compiled *c = *at;
    *at = c->next;
    entries--;
    bytes -= size_of(c);
    free_entry(c);
}

void compiled_sweep(uint64_t since_us) {
    for (size_t i = 0; entries && i < BUCKETS; i++) {
        for (struct compiled **at = &buckets[i]; *at;) {
            if ((*at)->holders == 0 && (*at)->used_us < since_us) {
                drop(at);
            } else {
                at = &(*at)->next;
            }
        }
    }
}

/* Drops the entry that was asked for longest ago and that no state holds. False: all are held. */
static bool drop_oldest(void) {
    struct compiled **oldest = NULL;
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct compiled **at = &buckets[i]; *at; at = &(*at)->next)
            if ((*at)->holders == 0 && (!oldest || (*at)->used_us < (*oldest)->used_us)) oldest = at;
    if (oldest) drop(oldest);
    return oldest != NULL;
}

static int add_dump(lua_State *L, const void *at, size_t len, void *data) {
    (void)L;
    return buf_add(data, str_n(at, len)) ? 0 : 1;
}

/* Takes the name out of a dump: "\x1BLJ", version, flags, the name's length (seven bits a byte, the lowest first), the
 * name. False when it does not begin like that. */
static bool split(struct compiled *c, struct str dump, struct str name) {
    size_t len = 0, at = 5;
    unsigned char byte = 0x80;
    if (dump.len < 7 || memcmp(dump.at, "\x1BLJ", 3) != 0 || (unsigned char)dump.at[4] >= 0x80) return false;
    for (unsigned shift = 0; (byte & 0x80) && shift < 28 && at < dump.len; shift += 7) {
        byte = (unsigned char)dump.at[at++];
        len |= (size_t)(byte & 0x7F) << shift;
    }
    if ((byte & 0x80) || len != name.len || dump.len - at < len || !str_eq(str_n(dump.at + at, len), name))
        return false;
    return buf_add(&c->head, str_n(dump.at, 5)) && buf_add(&c->code, str_n(dump.at + at + len, dump.len - at - len));
}

struct compiled *compiled_keep(lua_State *L, const char *name, struct str source) {
    while (entries >= ENTRIES_MAX || bytes >= BYTES_MAX)
        if (!drop_oldest()) return NULL;
    struct compiled *c = calloc(1, sizeof *c);
    struct buf dump = {0};
    bool ok =
        c && lua_dump(L, add_dump, &dump) == 0 && split(c, buf_str(&dump), str_of(name)) && buf_add(&c->source, source);
    buf_free(&dump);
    if (!ok) {
        if (c) free_entry(c);
        return NULL;
    }
    c->hash = hash_of(source);
    c->used_us = clock_mono_us();
    c->next = buckets[c->hash % BUCKETS];
    buckets[c->hash % BUCKETS] = c;
    entries++;
    bytes += size_of(c);
    return c;
}

void compiled_hold(struct compiled *c) {
    c->holders++;
}

void compiled_release(struct compiled *c) {
    if (!c) return;
    c->holders--;
    c->used_us = clock_mono_us();
}

bool compiled_push(const struct compiled *c, lua_State *L, const char *name) {
    static struct buf whole; /* used again; a load is over before the next begins */
    size_t len = strlen(name);
    char length[2] = {(char)(0x80 | (len & 0x7F)), (char)(len >> 7)};
    buf_clear(&whole);
    if (len >= 1u << 14 || !buf_add(&whole, buf_str(&c->head)) || !buf_add(&whole, str_n(length, sizeof length)) ||
        !buf_add(&whole, str_n(name, len)) || !buf_add(&whole, buf_str(&c->code)))
        return false;
    if (luaL_loadbufferx(L, whole.data, whole.len, "=rule", "b") == 0) return true;
    lua_pop(L, 1);
    return false;
}

const struct sandbox_manifest *compiled_manifest(const struct compiled *c) {
    return c && c->has_manifest ? &c->manifest : NULL;
}

void compiled_set_manifest(struct compiled *c, const struct sandbox_manifest *manifest) {
    if (!c) return;
    c->manifest = *manifest;
    c->has_manifest = true;
}

struct str compiled_config(const struct compiled *c, struct str json) {
    for (size_t i = 0; c && i < CONFIGS; i++)
        if (c->config[i].checked.len && str_eq(buf_str(&c->config[i].json), json))
            return buf_str(&c->config[i].checked);
    return (struct str){0};
}

void compiled_set_config(struct compiled *c, struct str json, struct str checked) {
    if (!c || json.len > CONFIG_MAX || checked.len > CONFIG_MAX) return;
    struct config *place = &c->config[c->next_config++ % CONFIGS];
    bytes -= size_of(c);
    buf_clear(&place->json);
    buf_clear(&place->checked);
    if (!buf_add(&place->json, json) || !buf_add(&place->checked, checked)) buf_clear(&place->checked);
    bytes += size_of(c);
}

size_t compiled_count(size_t *total) {
    *total = bytes;
    return entries;
}
