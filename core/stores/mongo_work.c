#include "stores/mongo_work.h"

#include <stdio.h>
#include <stdlib.h>

#include "runtime/clock.h"

struct mongo_request *mongo_request_new(enum mongo_verb verb, const char *op, struct str collection, size_t writes) {
    struct mongo_request *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->verb = verb;
    r->op = op;
    r->collection = strndup(collection.at ? collection.at : "", collection.len);
    r->writes = calloc(writes ? writes : 1, sizeof *r->writes);
    if (r->collection && r->writes) return r;
    mongo_request_free(r);
    return NULL;
}

static void bson_drop(bson_t *b) {
    if (b) bson_destroy(b);
}

void mongo_request_free(struct mongo_request *r) {
    if (!r) return;
    for (size_t i = 0; i < r->count; i++) {
        bson_drop(r->writes[i].filter);
        bson_drop(r->writes[i].doc);
    }
    bson_drop(r->query);
    bson_drop(r->opts);
    free(r->writes);
    free(r->collection);
    free(r);
}

void mongo_result_clear(struct mongo_result *result) {
    buf_free(&result->docs);
    free(result->refusals);
    *result = (struct mongo_result){0};
}

/* ---- errors ---- */

/* Numbers by which a server says that it cannot serve now: not primary, shutting down, recovering, host unreachable. */
static bool means_away(uint32_t code) {
    static const uint32_t away[] = {6, 7, 89, 91, 189, 9001, 10058, 10107, 11600, 11602, 13435, 13436};
    for (size_t i = 0; i < sizeof away / sizeof *away; i++) {
        if (away[i] == code) return true;
    }
    return false;
}

static enum error_kind kind_of(const bson_error_t *e) {
    switch (e->domain) {
    case MONGOC_ERROR_SERVER_SELECTION:
    case MONGOC_ERROR_STREAM:
    case MONGOC_ERROR_CLIENT: /* could not connect, authenticate or agree on a protocol */
    case MONGOC_ERROR_SCRAM:
    case MONGOC_ERROR_SASL:
        return ERR_UNAVAILABLE;
    case MONGOC_ERROR_BSON:
    case MONGOC_ERROR_NAMESPACE:
    case MONGOC_ERROR_COMMAND: /* with error API 2 only the client's own complaints */
        return ERR_INVALID;
    case MONGOC_ERROR_PROTOCOL:
        return ERR_UNAVAILABLE;
    default:
        if (e->code == 50) return ERR_TIMEOUT; /* MaxTimeMSExpired */
        return means_away(e->code) ? ERR_UNAVAILABLE : ERR_QUERY;
    }
}

static bool fail(struct error *err, const bson_error_t *e) {
    bool filled = error_set(err, kind_of(e), "%s", e->message);
    if (err->kind == ERR_QUERY) {
        int written = snprintf(err->code, sizeof err->code, "%u", e->code);
        (void)written; /* a number fits */
    }
    return filled;
}

static bool no_memory(struct error *err) {
    return error_set(err, ERR_MEMORY, "out of memory");
}

/* ---- reading ---- */

static bool keep_doc(struct mongo_result *result, const bson_t *doc, struct error *err) {
    if (result->docs.len + doc->len > MONGO_MAX_RESULT)
        return error_set(err, ERR_LIMIT, "the answer of MongoDB is larger than %zu bytes", MONGO_MAX_RESULT);
    if (!buf_add(&result->docs, str_n((const char *)bson_get_data(doc), doc->len))) return no_memory(err);
    result->count++;
    return true;
}

static bool drain(mongoc_cursor_t *cursor, size_t limit, struct mongo_result *result, struct error *err) {
    const bson_t *doc;
    bool ok = true;
    size_t most = limit ? limit : MONGO_MAX_DOCS;
    while (ok && (!limit || result->count < limit) && mongoc_cursor_next(cursor, &doc)) {
        ok = result->count < most ? keep_doc(result, doc, err)
                                  : error_set(err, ERR_LIMIT, "more than %d documents: say a limit", MONGO_MAX_DOCS);
    }
    bson_error_t why;
    if (ok && mongoc_cursor_error(cursor, &why)) ok = fail(err, &why);
    return ok;
}

static bool find(mongoc_collection_t *collection, uint32_t timeout_ms, const struct mongo_request *request,
                 struct mongo_result *result, struct error *err) {
    bson_t *opts = request->opts ? bson_copy(request->opts) : bson_new();
    /* The server gives up by itself, so that a query nobody waits for any more does not go on. */
    bool ok = BSON_APPEND_INT64(opts, "maxTimeMS", timeout_ms);
    if (ok && request->limit) ok = BSON_APPEND_INT64(opts, "limit", (int64_t)request->limit);
    mongoc_cursor_t *cursor = ok ? mongoc_collection_find_with_opts(collection, request->query, opts, NULL) : NULL;
    ok = cursor ? drain(cursor, request->limit, result, err) : no_memory(err);
    if (cursor) mongoc_cursor_destroy(cursor);
    bson_destroy(opts);
    return ok;
}

static bool aggregate(mongoc_collection_t *collection, uint32_t timeout_ms, const struct mongo_request *request,
                      struct mongo_result *result, struct error *err) {
    bson_t opts = BSON_INITIALIZER;
    bool ok = BSON_APPEND_INT64(&opts, "maxTimeMS", timeout_ms);
    mongoc_cursor_t *cursor =
        ok ? mongoc_collection_aggregate(collection, MONGOC_QUERY_NONE, request->query, &opts, NULL) : NULL;
    ok = cursor ? drain(cursor, request->limit, result, err) : no_memory(err);
    if (cursor) mongoc_cursor_destroy(cursor);
    bson_destroy(&opts);
    return ok;
}

/* ---- writing ---- */

static int64_t figure(const bson_t *reply, const char *name) {
    bson_iter_t it;
    return bson_iter_init_find(&it, reply, name) ? bson_iter_as_int64(&it) : 0;
}

static bool keep_refusal(struct mongo_result *result, bson_iter_t *one) {
    struct mongo_refusal *r = &result->refusals[result->refused++];
    while (bson_iter_next(one)) {
        const char *key = bson_iter_key(one);
        if (strcmp(key, "index") == 0) r->index = (size_t)bson_iter_as_int64(one);
        if (strcmp(key, "code") == 0) r->code = (int)bson_iter_as_int64(one);
        if (strcmp(key, "errmsg") == 0 && BSON_ITER_HOLDS_UTF8(one)) {
            int written = snprintf(r->message, sizeof r->message, "%.159s", bson_iter_utf8(one, NULL));
            (void)written; /* a long text is cut */
        }
    }
    return true;
}

static bool keep_refusals(struct mongo_result *result, const bson_t *reply) {
    bson_iter_t it, list, one;
    if (!bson_iter_init_find(&it, reply, "writeErrors") || !bson_iter_recurse(&it, &list)) return true;
    size_t count = 0;
    for (bson_iter_t each = list; bson_iter_next(&each);) count++;
    if (count > MONGO_MAX_ERRORS) count = MONGO_MAX_ERRORS;
    result->refusals = calloc(count ? count : 1, sizeof *result->refusals);
    if (!result->refusals) return false;
    while (result->refused < count && bson_iter_next(&list)) {
        if (!bson_iter_recurse(&list, &one) || !keep_refusal(result, &one)) return false;
    }
    return true;
}

static bool add_write(mongoc_bulk_operation_t *bulk, const struct mongo_write *w, bson_error_t *why) {
    static const bson_t none = BSON_INITIALIZER;
    bson_t upsert = BSON_INITIALIZER;
    bool ok = !w->upsert || BSON_APPEND_BOOL(&upsert, "upsert", true);
    if (ok && w->change == MONGO_INSERT) {
        ok = mongoc_bulk_operation_insert_with_opts(bulk, w->doc, &none, why);
    } else if (ok && w->change == MONGO_REPLACE) {
        ok = mongoc_bulk_operation_replace_one_with_opts(bulk, w->filter, w->doc, &upsert, why);
    } else if (ok && w->change == MONGO_DELETE) {
        ok = w->multi ? mongoc_bulk_operation_remove_many_with_opts(bulk, w->filter, &none, why)
                      : mongoc_bulk_operation_remove_one_with_opts(bulk, w->filter, &none, why);
    } else if (ok) {
        ok = w->multi ? mongoc_bulk_operation_update_many_with_opts(bulk, w->filter, w->doc, &upsert, why)
                      : mongoc_bulk_operation_update_one_with_opts(bulk, w->filter, w->doc, &upsert, why);
    }
    bson_destroy(&upsert);
    return ok;
}

/* All writes go the same way: libmongoc sends a bulk of one as the plain command, and splits a large one. */
static bool write_all(mongoc_collection_t *collection, const struct mongo_request *request, struct mongo_result *result,
                      struct error *err) {
    bson_t opts = BSON_INITIALIZER, reply = BSON_INITIALIZER;
    if (!BSON_APPEND_BOOL(&opts, "ordered", false)) return no_memory(err);
    mongoc_bulk_operation_t *bulk = mongoc_collection_create_bulk_operation_with_opts(collection, &opts);
    bson_destroy(&opts);
    if (!bulk) return no_memory(err);
    bson_error_t why = {0};
    for (size_t i = 0; i < request->count; i++) {
        if (add_write(bulk, &request->writes[i], &why)) continue;
        mongoc_bulk_operation_destroy(bulk);
        bson_destroy(&reply);
        return error_set(err, ERR_INVALID, "write %zu: %s", i + 1, why.message);
    }
    bson_destroy(&reply);
    bool ok = mongoc_bulk_operation_execute(bulk, &reply, &why) != 0;
    result->inserted = figure(&reply, "nInserted");
    result->matched = figure(&reply, "nMatched");
    result->modified = figure(&reply, "nModified");
    result->upserted = figure(&reply, "nUpserted");
    result->deleted = figure(&reply, "nRemoved");
    if (!ok) {
        bool listed = keep_refusals(result, &reply);
        bool refused_only = listed && result->refused > 0 && kind_of(&why) == ERR_QUERY;
        ok = request->verb == MONGO_BULK && refused_only ? true : listed ? fail(err, &why) : no_memory(err);
        if (!ok && refused_only) {
            /* Of several refused the first one counts. */
            int written = snprintf(err->code, sizeof err->code, "%d", result->refusals[0].code);
            (void)written; /* a number fits */
        }
    }
    bson_destroy(&reply);
    mongoc_bulk_operation_destroy(bulk);
    return ok;
}

/* ---- commands ---- */

static bool command(mongoc_client_t *client, const char *database, const bson_t *query, struct mongo_result *result,
                    struct error *err) {
    bson_t reply;
    bson_error_t why = {0};
    bool ok = mongoc_client_command_simple(client, database, query, NULL, &reply, &why);
    ok = ok ? keep_doc(result, &reply, err) : fail(err, &why);
    bson_destroy(&reply);
    return ok;
}

static bool ping(mongoc_client_t *client, bson_error_t *why) {
    bson_t command = BSON_INITIALIZER;
    bool ok = BSON_APPEND_INT32(&command, "ping", 1) &&
              mongoc_client_command_simple(client, "admin", &command, NULL, NULL, why);
    bson_destroy(&command);
    return ok;
}

/* A connection that the server, or something between, closed while nobody used it breaks at once when it is used.
 * libmongoc tries reads and most writes again by itself, but no command: a server that is well was called away. */
bool mongo_ping(mongoc_client_t *client, uint32_t timeout_ms, struct error *err) {
    bson_error_t why = {0};
    uint64_t began = clock_mono_us();
    bool ok = ping(client, &why);
    bool at_once = clock_mono_us() - began < (uint64_t)timeout_ms * 1000 / 2; /* else it is a server that is silent */
    if (!ok && why.domain == MONGOC_ERROR_STREAM && at_once) ok = ping(client, &why);
    return ok ? true : error_set(err, ERR_UNAVAILABLE, "%s", why.message);
}

bool mongo_work(mongoc_client_t *client, const char *database, uint32_t timeout_ms, const struct mongo_request *request,
                struct mongo_result *result, struct error *err) {
    if (request->verb == MONGO_PING) return mongo_ping(client, timeout_ms, err);
    if (request->verb == MONGO_COMMAND) return command(client, database, request->query, result, err);
    mongoc_collection_t *collection = mongoc_client_get_collection(client, database, request->collection);
    if (!collection) return no_memory(err);
    bool ok;
    if (request->verb == MONGO_FIND) {
        ok = find(collection, timeout_ms, request, result, err);
    } else if (request->verb == MONGO_AGGREGATE) {
        ok = aggregate(collection, timeout_ms, request, result, err);
    } else {
        ok = write_all(collection, request, result, err);
    }
    mongoc_collection_destroy(collection);
    return ok;
}
