/* Routes: a trie over path segments.
 *
 * Patterns are "/users/:id/roles" (a parameter is a whole segment) and "/static/" + "*name" (the rest of the path, last
 * in the pattern). Literal segments match without regard to case and win over parameters, which win over the rest; one
 * trailing slash is ignored. HEAD falls back to GET. A route outside /api is also served under /api/<pattern>. A path
 * whose node lacks the method is searched on, so that POST /users/:id is found although GET /users/me exists. */
#ifndef KASMA_HTTP_ROUTE_H
#define KASMA_HTTP_ROUTE_H

#include "runtime/error.h"
#include "runtime/str.h"

#define ROUTE_PARAMS_MAX 12

struct request;
struct routes;

enum http_method {
    HTTP_M_GET,
    HTTP_M_HEAD,
    HTTP_M_POST,
    HTTP_M_PUT,
    HTTP_M_PATCH,
    HTTP_M_DELETE,
    HTTP_M_OPTIONS,
    HTTP_M_OTHER, /* known to llhttp but routed nowhere: the fallback answers */
};
#define HTTP_METHODS HTTP_M_OTHER /* methods that can be routed */

/* Handles a request: http/request.h says how it must end. */
typedef void request_handler(struct request *r, void *data);

/* What a route may set for itself; zero means the server's setting. */
struct route_options {
    size_t body_limit;   /* decoded bytes */
    uint64_t timeout_ms; /* for the handler */
    bool spool;          /* multipart parts and large bodies go to disk */
    bool stream;         /* the handler is called before the body has come, and takes it with request_read */
};

struct route {
    struct str pattern; /* as registered */
    request_handler *handler;
    void *data;
    struct route_options options;
    struct str names[ROUTE_PARAMS_MAX]; /* of the parameters, in the order of the path */
    unsigned params;
    void *metrics; /* on the heap, made by the access log on first use, freed with the routes */
    struct route *next;
};

struct route_match {
    struct route *route;                 /* NULL: nothing matched */
    struct str values[ROUTE_PARAMS_MAX]; /* raw, in the order of route->names */
};

struct routes *routes_new(void);
void routes_free(struct routes *t);

/* Registers; a second registration of the same method and pattern replaces the first. ERR_INVALID: pattern without a
 * leading slash, empty segment or name, too many parameters, text after a rest parameter. */
bool routes_add(struct routes *t, enum http_method method, struct str pattern, request_handler *handler, void *data,
                const struct route_options *options, struct error *err);
/* What answers when no route matches; one that says 404 in the platform's form unless set. */
void routes_fallback(struct routes *t, request_handler *handler, void *data);

/* Frees `memory` (from malloc) together with the routes. False: out of memory, and `memory` was freed already. */
bool routes_own(struct routes *t, void *memory);

/* Finds the route for a raw path (without query). Allocates nothing. False when nothing matches; out->route is then the
 * fallback. */
bool routes_find(struct routes *t, enum http_method method, struct str path, struct route_match *out);

/* "GET" ...; HTTP_M_OTHER for a word that cannot be routed. */
enum http_method http_method_of(struct str word);
struct str http_method_name(enum http_method m);

#endif
