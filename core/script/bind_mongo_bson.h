/* Lua values to BSON and back, on the loop's thread, bounded in depth and size.
 *
 * To BSON: whole numbers become int32 or int64, others double; json.null null; a table with #t > 0 or the JSON array
 * mark an array, any other table a document, whose members have no order; `ordered` marks an array of {name, value}
 * pairs as a document with an order. Values made by mongo.oid, mongo.date and mongo.int64 become what they say.
 * From BSON: ObjectId is its 24 hex digits, a date its ISO 8601 text, binary its bytes, decimal128 its text, int64 a
 * number, null json.null. */
#ifndef KASMA_SCRIPT_BIND_MONGO_BSON_H
#define KASMA_SCRIPT_BIND_MONGO_BSON_H

#include <bson/bson.h>
#include <lua.h>

#include "runtime/error.h"

#define BSON_DEPTH 64
#define BSON_BYTES ((size_t)16 * 1024 * 1024)

/* These raise nothing: on failure `err` is filled (ERR_INVALID, ERR_LIMIT, ERR_MEMORY), NULL returned and the stack as
 * it was. What comes back is the caller's (bson_destroy). `idx` must be a table. */
bson_t *bson_from_table(lua_State *L, int idx, struct error *err);
/* As an array, whatever its marks. */
bson_t *bson_from_list(lua_State *L, int idx, struct error *err);
/* An array of {name, value} pairs, or a table of one member: where order matters a larger table without order is
 * refused. */
bson_t *bson_from_pairs(lua_State *L, int idx, struct error *err);

/* Pushes the document as a table. False: `err` (too deep, damaged), nothing is pushed. */
bool bson_push(lua_State *L, const bson_t *doc, struct error *err);

/* Registers what this needs in the VM and adds oid, new_oid, date, int64 and ordered to the table on top. */
void bson_open(lua_State *L);

#endif
