#include "stores/redis_reply.h"

#include <hiredis/read.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_ITEMS = 1 << 20 };

struct redis_parser {
    redisReader *reader;
    size_t max;
    size_t left;   /* of `max`, for the reply that is being built */
    bool over;     /* the budget was exceeded: tells a limit from a real lack of memory */
    bool unusable; /* failed once */
};

/* Frees what lies below it. */
static void clear(struct redis_reply *r) {
    for (size_t i = 0; i < r->count; i++) clear(&r->items[i]);
    free(r->items);
    free((char *)r->text.at);
    *r = (struct redis_reply){.type = REDIS_NIL};
}

void redis_reply_free(struct redis_reply *r) {
    if (!r) return;
    clear(r);
    free(r);
}

void redis_reply_error(const struct redis_reply *r, struct error *err) {
    /* The server is there and cannot do it now: it starts, changes roles, is full, cannot write its disk, runs a long
     * script. */
    static const struct str away[] = {{"LOADING", 7},     {"MASTERDOWN", 10}, {"CLUSTERDOWN", 11},
                                      {"READONLY", 8},    {"OOM", 3},         {"MISCONF", 7},
                                      {"NOREPLICAS", 10}, {"BUSY", 4},        {"TRYAGAIN", 8}};
    size_t word = 0;
    while (word < r->text.len && r->text.at[word] != ' ') word++;
    enum error_kind kind = ERR_QUERY;
    for (size_t i = 0; i < sizeof away / sizeof *away; i++) {
        if (str_eq(away[i], str_n(r->text.at, word))) kind = ERR_UNAVAILABLE;
    }
    bool filled = error_set(err, kind, "%.*s", STR_FMT(r->text));
    (void)filled; /* always false */
    int written = snprintf(err->code, sizeof err->code, "%.*s", (int)word, r->text.at);
    (void)written; /* a code longer than the field is cut */
}

static bool spend(const redisReadTask *task, size_t bytes) {
    struct redis_parser *p = task->privdata;
    if (bytes > p->left) {
        p->over = true;
        return false;
    }
    p->left -= bytes;
    return true;
}

/* Where the object of this task belongs: its place in the parent's block, or a block of its own at the top. */
static struct redis_reply *place(const redisReadTask *task) {
    if (task->parent) {
        struct redis_reply *parent = task->parent->obj;
        return &parent->items[task->idx];
    }
    return calloc(1, sizeof(struct redis_reply));
}

static void *make_string(const redisReadTask *task, char *at, size_t len) {
    if (!spend(task, sizeof(struct redis_reply) + len)) return NULL;
    char *copy = malloc(len + 1);
    if (!copy) return NULL;
    struct redis_reply *r = place(task);
    if (!r) {
        free(copy);
        return NULL;
    }
    if (len) memcpy(copy, at, len);
    copy[len] = 0;
    r->text = str_n(copy, len);
    r->type = task->type == REDIS_REPLY_ERROR    ? REDIS_ERROR
              : task->type == REDIS_REPLY_STATUS ? REDIS_STATUS
                                                 : REDIS_STRING;
    return r;
}

static void *make_array(const redisReadTask *task, int elements) {
    size_t count = elements > 0 ? (size_t)elements : 0;
    if (count > MAX_ITEMS) {
        ((struct redis_parser *)task->privdata)->over = true;
        return NULL;
    }
    if (!spend(task, count * sizeof(struct redis_reply))) return NULL;
    struct redis_reply *items = NULL;
    if (count && !(items = calloc(count, sizeof *items))) return NULL;
    struct redis_reply *r = place(task);
    if (!r) {
        free(items);
        return NULL;
    }
    r->type = REDIS_ARRAY;
    r->count = count;
    r->items = items;
    return r;
}

static void *make_integer(const redisReadTask *task, long long value) {
    if (!spend(task, sizeof(struct redis_reply))) return NULL;
    struct redis_reply *r = place(task);
    if (!r) return NULL;
    r->type = REDIS_INTEGER;
    r->integer = value;
    return r;
}

static void *make_nil(const redisReadTask *task) {
    if (!spend(task, sizeof(struct redis_reply))) return NULL;
    return place(task);
}

/* The reader frees whole replies only, never a part. */
static void free_object(void *reply) {
    redis_reply_free(reply);
}

static redisReplyObjectFunctions makers = {
    .createString = make_string,
    .createArray = make_array,
    .createInteger = make_integer,
    .createNil = make_nil,
    .freeObject = free_object,
};

struct redis_parser *redis_parser_new(size_t max_reply) {
    struct redis_parser *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->reader = redisReaderCreateWithFunctions(&makers);
    if (!p->reader) {
        free(p);
        return NULL;
    }
    p->reader->privdata = p;
    p->max = p->left = max_reply;
    return p;
}

void redis_parser_free(struct redis_parser *p) {
    if (!p) return;
    redisReaderFree(p->reader);
    free(p);
}

bool redis_parser_feed(struct redis_parser *p, const char *at, size_t len) {
    return redisReaderFeed(p->reader, at, len) == REDIS_OK;
}

enum redis_parsed redis_parser_next(struct redis_parser *p, struct redis_reply **out, struct error *err) {
    void *reply = NULL;
    bool ok = !p->unusable && redisReaderGetReply(p->reader, &reply) == REDIS_OK;
    /* A long bulk string lies in the reader's buffer until it is whole: that counts as well. */
    if (ok && !reply && p->reader->len - p->reader->pos > p->max) {
        p->over = true;
        ok = false;
    }
    if (!ok) {
        p->unusable = true;
        bool filled = p->over
                          ? error_set(err, ERR_LIMIT, "a reply of Redis is larger than %zu bytes", p->max)
                          : error_set(err, ERR_INTERNAL, "Redis: %s", p->reader->err ? p->reader->errstr : "bad reply");
        (void)filled; /* always false */
        return REDIS_PARSED_FAILED;
    }
    if (!reply) return REDIS_PARSED_MORE;
    p->left = p->max;
    *out = reply;
    return REDIS_PARSED_REPLY;
}
