/* core.mongo: documents, raw. Arguments become BSON here, on the loop's thread; a thread of the pool does the rest.
 * Who may see which document is decided above (kasma.docs adds the tenant to every filter). */
#include <lauxlib.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "runtime/config.h"
#include "script/bind.h"
#include "script/bind_mongo_bson.h"
#include "script/json.h"
#include "script/task.h"
#include "stores/mongo.h"

enum { MAX_WRITES = 100000 };

static struct mongo *shared;

/* Made on first use, after the worker has forked; lives as long as the process. */
static struct mongo *mongo_shared(struct error *err) {
    if (shared) return shared;
    const char *url = config_str("MONGODB_URL");
    if (!url || !*url) {
        error_set(err, ERR_UNAVAILABLE, "MONGODB_URL is not set");
        return NULL;
    }
    struct mongo_options options = {.threads = (unsigned)config_int("MONGO_POOL"),
                                    .queue = (size_t)config_int("MONGO_QUEUE")};
    shared = mongo_new(url, &options, err);
    return shared;
}

/* ---- arguments; these raise on what is a bug of the caller, so they come before anything is allocated ---- */

static struct str check_collection(lua_State *L) {
    struct str s;
    s.at = luaL_checklstring(L, 1, &s.len);
    luaL_argcheck(L, s.len > 0 && s.len <= 120 && !memchr(s.at, 0, s.len) && !memchr(s.at, '$', s.len), 1,
                  "must be a collection's name");
    return s;
}

static void optional_table(lua_State *L, int idx) {
    if (lua_isnoneornil(L, idx)) {
        lua_settop(L, idx - 1);
        lua_newtable(L);
    }
    luaL_checktype(L, idx, LUA_TTABLE);
}

static bool option_bool(lua_State *L, int table, const char *name) {
    lua_getfield(L, table, name);
    bool on = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return on;
}

/* A count of at least `least`; 0 when it is not given. */
static size_t option_count(lua_State *L, int table, const char *name, lua_Number least) {
    lua_getfield(L, table, name);
    if (lua_isnil(L, -1)) {
        lua_pop(L, 1);
        return 0;
    }
    lua_Number n = lua_type(L, -1) == LUA_TNUMBER ? lua_tonumber(L, -1) : -1;
    lua_pop(L, 1);
    if (!(n >= least && n <= 1e9 && floor(n) == n))
        luaL_error(L, "%s must be a whole number, %d or more", name, (int)least);
    return (size_t)n;
}

/* ---- answers ---- */

static void set_count(lua_State *L, const char *name, int64_t n) {
    lua_pushnumber(L, (lua_Number)n);
    lua_setfield(L, -2, name);
}

/* Pushes the documents as a list, or only the first one (json.null when there is none). False: nothing is pushed. */
static bool push_docs(lua_State *L, const struct mongo_result *result, bool first, struct error *err) {
    if (!first) lua_createtable(L, (int)result->count, 0);
    size_t at = 0;
    for (int i = 1; at < result->docs.len; i++) {
        uint32_t len = 0;
        memcpy(&len, result->docs.data + at, sizeof len);
        len = BSON_UINT32_FROM_LE(len);
        bson_t doc;
        bool ok = bson_init_static(&doc, (const uint8_t *)result->docs.data + at, len)
                      ? bson_push(L, &doc, err)
                      : error_set(err, ERR_INTERNAL, "MongoDB sent a damaged document");
        if (!ok) {
            lua_pop(L, first ? 0 : 1);
            return false;
        }
        if (first) return true;
        lua_rawseti(L, -2, i);
        at += len;
    }
    if (first) {
        lua_pushlightuserdata(L, NULL);
    } else if (result->count == 0) {
        json_mark_array(L, lua_gettop(L));
    }
    return true;
}

/* What the server said, as `push` makes Lua values of it. */
static void answer(struct task *t, task_push *push, const struct mongo_result *result, const struct error *err) {
    if (err)
        task_resume_error(t, err);
    else
        task_answer(t, push, (void *)result);
}

static int push_list(lua_State *L, void *data) {
    struct error bad = {0};
    return push_docs(L, data, false, &bad) ? 1 : task_fail(L, &bad);
}

static void done_list(void *data, const struct mongo_result *result, const struct error *err) {
    answer(data, push_list, result, err);
}

static int push_first(lua_State *L, void *data) {
    struct error bad = {0};
    return push_docs(L, data, true, &bad) ? 1 : task_fail(L, &bad);
}

static void done_first(void *data, const struct mongo_result *result, const struct error *err) {
    answer(data, push_first, result, err);
}

static void done_inserted(void *data, const struct mongo_result *result, const struct error *err) {
    if (err) {
        task_resume_error(data, err);
        return;
    }
    lua_pushnumber(task_lua(data), (lua_Number)result->inserted);
    task_resume(data, 1);
}

static void done_deleted(void *data, const struct mongo_result *result, const struct error *err) {
    if (err) {
        task_resume_error(data, err);
        return;
    }
    lua_pushnumber(task_lua(data), (lua_Number)result->deleted);
    task_resume(data, 1);
}

static int push_changed(lua_State *L, void *data) {
    const struct mongo_result *result = data;
    lua_createtable(L, 0, 3);
    set_count(L, "matched", result->matched);
    set_count(L, "modified", result->modified);
    set_count(L, "upserted", result->upserted);
    return 1;
}

static void done_changed(void *data, const struct mongo_result *result, const struct error *err) {
    answer(data, push_changed, result, err);
}

static int push_bulk(lua_State *L, void *data) {
    const struct mongo_result *result = data;
    lua_createtable(L, 0, 6);
    set_count(L, "inserted", result->inserted);
    set_count(L, "matched", result->matched);
    set_count(L, "modified", result->modified);
    set_count(L, "upserted", result->upserted);
    set_count(L, "deleted", result->deleted);
    lua_createtable(L, (int)result->refused, 0);
    for (size_t i = 0; i < result->refused; i++) {
        const struct mongo_refusal *r = &result->refusals[i];
        lua_createtable(L, 0, 3);
        set_count(L, "index", (int64_t)r->index + 1);
        lua_pushfstring(L, "%d", r->code);
        lua_setfield(L, -2, "code");
        lua_pushstring(L, r->message);
        lua_setfield(L, -2, "message");
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_setfield(L, -2, "errors");
    return 1;
}

static void done_bulk(void *data, const struct mongo_result *result, const struct error *err) {
    answer(data, push_bulk, result, err);
}

static void done_true(void *data, const struct mongo_result *result, const struct error *err) {
    (void)result;
    if (err) {
        task_resume_error(data, err);
        return;
    }
    lua_pushboolean(task_lua(data), 1);
    task_resume(data, 1);
}

static void cancel(void *op) {
    mongo_cancel(op);
}

/* The request that is being filled: where that raises, for lack of memory, the next one finds it and frees it. */
static struct mongo_request *building;

/* Sends `r`, or gives it up when `ok` is false and `err` says why. */
static int send_request(lua_State *L, struct task *t, struct mongo_request *r, bool ok, mongo_done *done,
                        struct error *err) {
    struct mongo *m = ok ? mongo_shared(err) : NULL;
    building = NULL;
    if (!m) {
        mongo_request_free(r);
        return task_fail(L, err);
    }
    struct mongo_op *op = mongo_call(m, r, done, t, err);
    if (!op) return task_fail(L, err);
    return task_suspend(L, t, cancel, op);
}

static struct mongo_request *new_request(enum mongo_verb verb, const char *op, struct str collection, size_t writes,
                                         struct error *err) {
    mongo_request_free(building);
    building = mongo_request_new(verb, op, collection, writes);
    if (!building) error_set(err, ERR_MEMORY, "out of memory");
    return building;
}

/* ---- reading ---- */

/* Adds the document that `make` makes of opts[name] under that name; nothing when it is not given. */
static bool add_option(lua_State *L, int table, const char *name, bson_t *(*make)(lua_State *, int, struct error *),
                       bson_t *out, struct error *err) {
    lua_getfield(L, table, name);
    bool ok = true;
    if (lua_istable(L, -1)) {
        bson_t *value = make(L, -1, err);
        ok = value != NULL;
        if (ok && !bson_append_document(out, name, -1, value))
            ok = error_set(err, ERR_LIMIT, "the options are too large");
        if (value) bson_destroy(value);
    } else if (!lua_isnil(L, -1)) {
        ok = error_set(err, ERR_INVALID, "%s must be a table", name);
    }
    lua_pop(L, 1);
    return ok;
}

static int find(lua_State *L, bool first) {
    struct task *t = task_current(L);
    struct str collection = check_collection(L);
    luaL_checktype(L, 2, LUA_TTABLE);
    optional_table(L, 3);
    size_t limit = first ? 1 : option_count(L, 3, "limit", 1), skip = option_count(L, 3, "skip", 0);
    struct error err = {0};
    struct mongo_request *r = new_request(MONGO_FIND, first ? "find_one" : "find", collection, 0, &err);
    if (!r) return task_fail(L, &err);
    r->limit = limit;
    r->opts = bson_new();
    r->query = bson_from_table(L, 2, &err);
    bool ok = r->query && add_option(L, 3, "sort", bson_from_pairs, r->opts, &err) &&
              add_option(L, 3, "projection", bson_from_table, r->opts, &err);
    if (ok && skip) ok = BSON_APPEND_INT64(r->opts, "skip", (int64_t)skip);
    return send_request(L, t, r, ok, first ? done_first : done_list, &err);
}

/* mongo.find_one(collection, filter [, {sort=, projection=, skip=}]) -> document | json.null */
static int l_find_one(lua_State *L) {
    return find(L, true);
}

/* mongo.find(collection, filter [, {limit=, skip=, sort=, projection=}]) -> {documents} */
static int l_find(lua_State *L) {
    return find(L, false);
}

/* mongo.aggregate(collection, {stages} [, {limit=}]) -> {documents} */
static int l_aggregate(lua_State *L) {
    struct task *t = task_current(L);
    struct str collection = check_collection(L);
    luaL_checktype(L, 2, LUA_TTABLE);
    optional_table(L, 3);
    size_t limit = option_count(L, 3, "limit", 1);
    struct error err = {0};
    struct mongo_request *r = new_request(MONGO_AGGREGATE, "aggregate", collection, 0, &err);
    if (!r) return task_fail(L, &err);
    r->limit = limit;
    r->query = bson_from_list(L, 2, &err);
    return send_request(L, t, r, r->query != NULL, done_list, &err);
}

/* ---- writing ---- */

/* mongo.insert(collection, document | {documents}) -> how many */
static int l_insert(lua_State *L) {
    struct task *t = task_current(L);
    struct str collection = check_collection(L);
    luaL_checktype(L, 2, LUA_TTABLE);
    size_t n = lua_objlen(L, 2);
    luaL_argcheck(L, n <= MAX_WRITES, 2, "too many documents");
    struct error err = {0};
    struct mongo_request *r = new_request(MONGO_WRITE, "insert", collection, n ? n : 1, &err);
    if (!r) return task_fail(L, &err);
    bool ok = true;
    for (size_t i = 1; ok && i <= (n ? n : 1); i++) {
        if (n) {
            lua_rawgeti(L, 2, (int)i);
        } else {
            lua_pushvalue(L, 2);
        }
        bson_t *doc = lua_istable(L, -1) ? bson_from_table(L, -1, &err) : NULL;
        if (!lua_istable(L, -1)) error_set(&err, ERR_INVALID, "a document must be a table");
        lua_pop(L, 1);
        ok = doc != NULL;
        if (ok) r->writes[r->count++] = (struct mongo_write){.change = MONGO_INSERT, .doc = doc};
    }
    return send_request(L, t, r, ok, done_inserted, &err);
}

/* Adds one write from the tables at `filter` and `doc` (0: none). False: `err`. */
static bool add_write(lua_State *L, struct mongo_request *r, enum mongo_change change, int filter, int doc, bool upsert,
                      bool multi, struct error *err) {
    struct mongo_write *w = &r->writes[r->count++]; /* counted first: freed with the request whatever happens */
    *w = (struct mongo_write){.change = change, .upsert = upsert, .multi = multi};
    if (filter && !(w->filter = bson_from_table(L, filter, err))) return false;
    return !doc || (w->doc = bson_from_table(L, doc, err)) != NULL;
}

/* mongo.update(collection, filter, update [, {upsert=, multi=}]) and mongo.replace(collection, filter, document [,
 * {upsert=}])
 * -> {matched=, modified=, upserted=} */
static int change(lua_State *L, enum mongo_change how, const char *op) {
    struct task *t = task_current(L);
    struct str collection = check_collection(L);
    luaL_checktype(L, 2, LUA_TTABLE);
    luaL_checktype(L, 3, LUA_TTABLE);
    optional_table(L, 4);
    bool upsert = option_bool(L, 4, "upsert"), multi = how == MONGO_UPDATE && option_bool(L, 4, "multi");
    struct error err = {0};
    struct mongo_request *r = new_request(MONGO_WRITE, op, collection, 1, &err);
    if (!r) return task_fail(L, &err);
    bool ok = add_write(L, r, how, 2, 3, upsert, multi, &err);
    return send_request(L, t, r, ok, done_changed, &err);
}

static int l_update(lua_State *L) {
    return change(L, MONGO_UPDATE, "update");
}

static int l_replace(lua_State *L) {
    return change(L, MONGO_REPLACE, "replace");
}

/* mongo.delete(collection, filter [, {multi=}]) -> how many */
static int l_delete(lua_State *L) {
    struct task *t = task_current(L);
    struct str collection = check_collection(L);
    luaL_checktype(L, 2, LUA_TTABLE);
    optional_table(L, 3);
    bool multi = option_bool(L, 3, "multi");
    struct error err = {0};
    struct mongo_request *r = new_request(MONGO_WRITE, "delete", collection, 1, &err);
    if (!r) return task_fail(L, &err);
    bool ok = add_write(L, r, MONGO_DELETE, 2, 0, false, multi, &err);
    return send_request(L, t, r, ok, done_deleted, &err);
}

/* One entry of mongo.bulk, on top of the stack. */
static bool add_bulk(lua_State *L, struct mongo_request *r, struct error *err) {
    static const char *const names[] = {
        [MONGO_INSERT] = "insert", [MONGO_UPDATE] = "update", [MONGO_REPLACE] = "replace", [MONGO_DELETE] = "delete"};
    int entry = lua_gettop(L);
    if (!lua_istable(L, entry)) return error_set(err, ERR_INVALID, "write %zu is not a table", r->count + 1);
    lua_getfield(L, entry, "op");
    lua_getfield(L, entry, "filter");
    lua_getfield(L, entry, "doc");
    if (lua_isnil(L, -1)) {
        lua_pop(L, 1);
        lua_getfield(L, entry, "update");
    }
    const char *op = lua_type(L, entry + 1) == LUA_TSTRING ? lua_tostring(L, entry + 1) : "";
    for (enum mongo_change c = MONGO_INSERT; c <= MONGO_DELETE; c++) {
        if (strcmp(op, names[c]) != 0) continue;
        bool filter = c != MONGO_INSERT, doc = c != MONGO_DELETE;
        if ((filter && !lua_istable(L, entry + 2)) || (doc && !lua_istable(L, entry + 3)))
            return error_set(err, ERR_INVALID, "write %zu (%s) lacks its filter or its document", r->count + 1, op);
        return add_write(L, r, c, filter ? entry + 2 : 0, doc ? entry + 3 : 0, option_bool(L, entry, "upsert"),
                         option_bool(L, entry, "multi"), err);
    }
    return error_set(err, ERR_INVALID, "write %zu: op must be insert, update, replace or delete", r->count + 1);
}

/* mongo.bulk(collection, { {op=, filter=, doc= | update=, upsert=, multi=}, ... }), unordered
 * -> {inserted=, matched=, modified=, upserted=, deleted=, errors={{index= from 1, code=, message=}}} */
static int l_bulk(lua_State *L) {
    struct task *t = task_current(L);
    struct str collection = check_collection(L);
    luaL_checktype(L, 2, LUA_TTABLE);
    size_t n = lua_objlen(L, 2);
    luaL_argcheck(L, n > 0 && n <= MAX_WRITES, 2, "must hold 1 to 100000 writes");
    struct error err = {0};
    struct mongo_request *r = new_request(MONGO_BULK, "bulk", collection, n, &err);
    if (!r) return task_fail(L, &err);
    bool ok = true;
    for (size_t i = 1; ok && i <= n; i++) {
        int top = lua_gettop(L);
        lua_rawgeti(L, 2, (int)i);
        ok = add_bulk(L, r, &err);
        lua_settop(L, top);
    }
    return send_request(L, t, r, ok, done_bulk, &err);
}

/* ---- commands ---- */

/* Appends `"indexes": [{key, name, unique, expireAfterSeconds}]`. */
static bool add_index(bson_t *command, const bson_t *keys, const char *name, bool unique, int64_t ttl_s) {
    bson_t list, one;
    bool ok = BSON_APPEND_ARRAY_BEGIN(command, "indexes", &list) && BSON_APPEND_DOCUMENT_BEGIN(&list, "0", &one) &&
              BSON_APPEND_DOCUMENT(&one, "key", keys) && BSON_APPEND_UTF8(&one, "name", name);
    if (ok && unique) ok = BSON_APPEND_BOOL(&one, "unique", true);
    if (ok && ttl_s >= 0) ok = BSON_APPEND_INT64(&one, "expireAfterSeconds", ttl_s);
    return ok && bson_append_document_end(&list, &one) && bson_append_array_end(command, &list);
}

/* "tenant_key_1_day_-1": what the shell would call it. */
static bool index_name(const bson_t *keys, char *out, size_t cap) {
    bson_iter_t it;
    size_t at = 0;
    if (!bson_iter_init(&it, keys)) return false;
    while (bson_iter_next(&it)) {
        int n = BSON_ITER_HOLDS_UTF8(&it) ? snprintf(out + at, cap - at, "%s%s_%s", at ? "_" : "", bson_iter_key(&it),
                                                     bson_iter_utf8(&it, NULL))
                                          : snprintf(out + at, cap - at, "%s%s_%d", at ? "_" : "", bson_iter_key(&it),
                                                     (int)bson_iter_as_int64(&it));
        if (n < 0 || (size_t)n >= cap - at) return false;
        at += (size_t)n;
    }
    return at > 0;
}

/* mongo.index(collection, {{"a", 1}, {"b", -1}} [, {unique=, ttl_s=, name=}]) -> true; nothing happens when it is there
 */
static int l_index(lua_State *L) {
    struct task *t = task_current(L);
    struct str collection = check_collection(L);
    luaL_checktype(L, 2, LUA_TTABLE);
    optional_table(L, 3);
    bool unique = option_bool(L, 3, "unique");
    /* 0 is a life of its own: until the time that the field says. */
    lua_getfield(L, 3, "ttl_s");
    int64_t ttl_s = lua_isnil(L, -1) ? -1 : 0;
    lua_pop(L, 1);
    if (ttl_s == 0) ttl_s = (int64_t)option_count(L, 3, "ttl_s", 0);
    lua_getfield(L, 3, "name");
    const char *given = luaL_optstring(L, -1, NULL);
    struct error err = {0};
    struct mongo_request *r = new_request(MONGO_COMMAND, "index", collection, 0, &err);
    if (!r) return task_fail(L, &err);
    char name[256];
    bson_t *keys = bson_from_pairs(L, 2, &err);
    bool ok = keys != NULL;
    if (ok && !given && !index_name(keys, name, sizeof name))
        ok = error_set(&err, ERR_INVALID, "the index needs a name");
    if (ok) {
        r->query = bson_new();
        ok = BSON_APPEND_UTF8(r->query, "createIndexes", r->collection) &&
             add_index(r->query, keys, given ? given : name, unique, ttl_s);
        if (!ok) error_set(&err, ERR_LIMIT, "the index is too large");
    }
    if (keys) bson_destroy(keys);
    return send_request(L, t, r, ok, done_true, &err);
}

/* mongo.command{{"name", value}, ...} -> the server's document */
static int l_command(lua_State *L) {
    struct task *t = task_current(L);
    luaL_checktype(L, 1, LUA_TTABLE);
    struct error err = {0};
    struct mongo_request *r = new_request(MONGO_COMMAND, "command", STR(""), 0, &err);
    if (!r) return task_fail(L, &err);
    r->query = bson_from_pairs(L, 1, &err);
    return send_request(L, t, r, r->query != NULL, done_first, &err);
}

/* mongo.ping() -> true */
static int l_ping(lua_State *L) {
    struct task *t = task_current(L);
    struct error err = {0};
    struct mongo_request *r = new_request(MONGO_PING, "ping", STR(""), 0, &err);
    if (!r) return task_fail(L, &err);
    return send_request(L, t, r, true, done_true, &err);
}

/* mongo.status() -> true | false, why */
static int l_status(lua_State *L) {
    struct error err = {0};
    struct mongo *m = mongo_shared(&err);
    char why[128];
    if (m) mongo_why_down(m, why);
    lua_pushboolean(L, m && mongo_up(m));
    lua_pushstring(L, m ? why : err.message);
    return 2;
}

int luaopen_core_mongo(lua_State *L) {
    static const luaL_Reg functions[] = {{"find_one", l_find_one},
                                         {"find", l_find},
                                         {"aggregate", l_aggregate},
                                         {"insert", l_insert},
                                         {"update", l_update},
                                         {"replace", l_replace},
                                         {"delete", l_delete},
                                         {"bulk", l_bulk},
                                         {"index", l_index},
                                         {"command", l_command},
                                         {"ping", l_ping},
                                         {"status", l_status},
                                         {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    bson_open(L);
    return 1;
}
