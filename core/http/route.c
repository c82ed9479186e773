#include "http/route.h"

#include <stdlib.h>

#include "http/request.h"

/* One path segment. Children are hashed by their lower-case text in a table with open addressing, sized a power of two
 * and at most half full. */
struct node {
    char *text; /* lower case */
    size_t len;
    struct node **children;
    size_t slots, count;
    struct node *param;               /* child for a parameter segment */
    struct route *here[HTTP_METHODS]; /* the path ends here */
    struct route *rest[HTTP_METHODS]; /* the path goes on, and a rest parameter takes it */
};

struct owned {
    struct owned *next;
    void *memory;
};

struct routes {
    struct node *root;
    struct owned *owned;
    struct route *all; /* for freeing */
    struct route fallback;
};

static char lower(char c) {
    return c >= 'A' && c <= 'Z' ? (char)(c | 0x20) : c;
}

static uint32_t hash(struct str s) {
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < s.len; i++) h = (h ^ (unsigned char)lower(s.at[i])) * 16777619u;
    return h ^ h >> 15;
}

static struct node *child_of(const struct node *n, struct str segment) {
    if (n->count == 0) return NULL;
    for (size_t i = hash(segment) & (n->slots - 1);; i = (i + 1) & (n->slots - 1)) {
        struct node *c = n->children[i];
        if (!c) return NULL;
        if (c->len == segment.len && str_ieq(str_n(c->text, c->len), segment)) return c;
    }
}

static void place(struct node **slots, size_t count, struct node *c) {
    size_t i = hash(str_n(c->text, c->len)) & (count - 1);
    while (slots[i]) i = (i + 1) & (count - 1);
    slots[i] = c;
}

static struct node *child_add(struct node *n, struct str segment) {
    struct node *c = child_of(n, segment);
    if (c) return c;
    if ((n->count + 1) * 2 > n->slots) {
        size_t slots = n->slots ? n->slots * 2 : 4;
        struct node **table = calloc(slots, sizeof(void *));
        if (!table) return NULL;
        for (size_t i = 0; i < n->slots; i++)
            if (n->children[i]) place(table, slots, n->children[i]);
        free(n->children);
        n->children = table;
        n->slots = slots;
    }
    c = calloc(1, sizeof *c);
    if (!c) return NULL;
    c->text = malloc(segment.len + 1);
    if (!c->text) {
        free(c);
        return NULL;
    }
    for (size_t i = 0; i < segment.len; i++) c->text[i] = lower(segment.at[i]);
    c->text[segment.len] = '\0';
    c->len = segment.len;
    place(n->children, n->slots, c);
    n->count++;
    return c;
}

static void node_free(struct node *n) {
    if (!n) return;
    for (size_t i = 0; i < n->slots; i++) node_free(n->children[i]);
    node_free(n->param);
    free(n->children);
    free(n->text);
    free(n);
}

static void not_found(struct request *r, void *data) {
    (void)data;
    bool answered = request_refuse(r, 404, (struct str){0}, false);
    (void)answered; /* the client may be gone */
    request_done(r);
}

struct routes *routes_new(void) {
    struct routes *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    t->root = calloc(1, sizeof *t->root);
    if (!t->root) {
        free(t);
        return NULL;
    }
    t->fallback = (struct route){.pattern = STR(""), .handler = not_found};
    return t;
}

void routes_free(struct routes *t) {
    if (!t) return;
    node_free(t->root);
    while (t->all) {
        struct route *next = t->all->next;
        free(t->all->metrics);
        free(t->all);
        t->all = next;
    }
    while (t->owned) {
        struct owned *next = t->owned->next;
        free(t->owned->memory);
        free(t->owned);
        t->owned = next;
    }
    free(t->fallback.metrics);
    free(t);
}

bool routes_own(struct routes *t, void *memory) {
    struct owned *o = malloc(sizeof *o);
    if (!o) {
        free(memory);
        return false;
    }
    *o = (struct owned){.next = t->owned, .memory = memory};
    t->owned = o;
    return true;
}

void routes_fallback(struct routes *t, request_handler *handler, void *data) {
    t->fallback.handler = handler;
    t->fallback.data = data;
}

/* The next segment of a path whose first byte is '/'; *path moves past it. */
static struct str segment_of(struct str *path) {
    const char *from = path->at + 1;
    size_t left = path->len - 1;
    const char *end = left ? memchr(from, '/', left) : NULL;
    size_t n = end ? (size_t)(end - from) : left;
    *path = str_n(from + n, left - n);
    return str_n(from, n);
}

/* A trailing slash, and the slash of the root, are no segment. */
static bool at_end(struct str path) {
    return path.len == 0 || (path.len == 1 && path.at[0] == '/');
}

bool routes_add(struct routes *t, enum http_method method, struct str pattern, request_handler *handler, void *data,
                const struct route_options *options, struct error *err) {
    if (method >= HTTP_METHODS) return error_set(err, ERR_INVALID, "method cannot be routed");
    if (pattern.len == 0 || pattern.at[0] != '/' || pattern.len > 1000)
        return error_set(err, ERR_INVALID, "route pattern must begin with a slash: %.*s", STR_FMT(pattern));
    struct route *r = calloc(1, sizeof *r + pattern.len);
    if (!r) return error_set(err, ERR_MEMORY, "out of memory");
    char *copy = (char *)(r + 1);
    memcpy(copy, pattern.at, pattern.len);
    r->pattern = str_n(copy, pattern.len);
    r->handler = handler;
    r->data = data;
    if (options) r->options = *options;

    struct node *n = t->root;
    bool rest = false;
    struct str path = r->pattern;
    while (!at_end(path)) {
        struct str segment = segment_of(&path);
        bool named = segment.len && (segment.at[0] == ':' || segment.at[0] == '*');
        if (segment.len == (named ? 1 : 0) || (named && r->params == ROUTE_PARAMS_MAX) ||
            (named && segment.at[0] == '*' && !at_end(path))) {
            free(r);
            return error_set(err, ERR_INVALID, "bad route pattern: %.*s", STR_FMT(pattern));
        }
        if (named) r->names[r->params++] = str_n(segment.at + 1, segment.len - 1);
        rest = named && segment.at[0] == '*';
        if (rest) break;
        if (named && !n->param) n->param = calloc(1, sizeof *n->param);
        n = named ? n->param : child_add(n, segment);
        if (!n) {
            free(r);
            return error_set(err, ERR_MEMORY, "out of memory");
        }
    }
    struct route **slots = rest ? n->rest : n->here;
    slots[method] = r;
    r->next = t->all;
    t->all = r;
    return true;
}

static struct route *take(struct route *const *slots, enum http_method m) {
    if (m >= HTTP_METHODS) return NULL;
    if (slots[m]) return slots[m];
    return m == HTTP_M_HEAD ? slots[HTTP_M_GET] : NULL;
}

/* The depth is bounded by the depth of the patterns, so this recursion is too. */
static struct route *walk(const struct node *n, enum http_method m, struct str path, struct route_match *out,
                          unsigned params) {
    if (at_end(path)) {
        struct route *r = take(n->here, m);
        if (r) return r;
    } else {
        struct str left = path;
        struct str segment = segment_of(&left);
        if (segment.len) {
            const struct node *c = child_of(n, segment);
            struct route *r = c ? walk(c, m, left, out, params) : NULL;
            if (r) return r;
            if (n->param && params < ROUTE_PARAMS_MAX) {
                out->values[params] = segment;
                r = walk(n->param, m, left, out, params + 1);
                if (r) return r;
            }
        }
    }
    struct route *r = take(n->rest, m);
    if (r && params < ROUTE_PARAMS_MAX) {
        out->values[params] = path.len ? str_n(path.at + 1, path.len - 1) : STR("");
        return r;
    }
    return NULL;
}

bool routes_find(struct routes *t, enum http_method method, struct str path, struct route_match *out) {
    out->route = NULL;
    if (path.len && path.at[0] == '/') {
        out->route = walk(t->root, method, path, out, 0);
        if (!out->route && path.len >= 4 && str_ieq(str_n(path.at, 4), STR("/api")) &&
            (path.len == 4 || path.at[4] == '/'))
            out->route = walk(t->root, method, str_n(path.at + 4, path.len - 4), out, 0);
    }
    if (out->route) return true;
    out->route = &t->fallback;
    return false;
}

static const struct str names[] = {
    [HTTP_M_GET] = {"GET", 3},         [HTTP_M_HEAD] = {"HEAD", 4},   [HTTP_M_POST] = {"POST", 4},
    [HTTP_M_PUT] = {"PUT", 3},         [HTTP_M_PATCH] = {"PATCH", 5}, [HTTP_M_DELETE] = {"DELETE", 6},
    [HTTP_M_OPTIONS] = {"OPTIONS", 7}, [HTTP_M_OTHER] = {"OTHER", 5},
};

enum http_method http_method_of(struct str word) {
    for (int m = 0; m < HTTP_METHODS; m++)
        if (str_eq(word, names[m])) return (enum http_method)m;
    return HTTP_M_OTHER;
}

struct str http_method_name(enum http_method m) {
    return names[m];
}
