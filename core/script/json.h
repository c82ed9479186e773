/* JSON straight between text and Lua values, strict (RFC 8259) and bounded.
 *
 * null is the light userdata NULL. Arrays are tables 1..n; a table that is to be an array even when it is empty carries
 * the array metatable, and a decoded empty array does. Numbers are doubles; an integer beyond 2^53, which a double does
 * not carry exactly, is decoded to its text. Any string, key or value, is valid UTF-8. */
#ifndef KASMA_SCRIPT_JSON_H
#define KASMA_SCRIPT_JSON_H

#include <lua.h>

#include "runtime/buf.h"
#include "runtime/error.h"

#define JSON_DEPTH 64
#define JSON_BYTES ((size_t)64 * 1024 * 1024)

/* Keeps the keys of what is decoded in this VM from now on (one VM of a process; a later call moves to its VM): what
 * one worker reads is much alike, and a key that is known is found, not made again. May raise Lua's out-of-memory
 * error. */
void json_keep_keys(lua_State *L);

/* Pushes the value of `text`. False: `err` (ERR_INVALID, or ERR_LIMIT for depth and size) says what is wrong and where,
 * nothing was pushed. May raise Lua's out-of-memory error, so call it in a protected context. */
bool json_decode(lua_State *L, struct str text, struct error *err);
/* Appends the value at `idx`. False: `err` says what cannot be encoded and where; `out` may hold a part of it. May
 * raise Lua's out-of-memory error: keep `out` where it is not lost then. */
bool json_encode(lua_State *L, int idx, struct buf *out, struct error *err);

/* As json_encode, with the members of every object in the order of their names by byte: for texts that are hashed. */
bool json_encode_sorted(lua_State *L, int idx, struct buf *out, struct error *err);

/* Sets the array metatable on the table at `idx`. */
void json_mark_array(lua_State *L, int idx);
/* Whether the table at `idx` carries the mark. */
bool json_is_marked(lua_State *L, int idx);
/* Pushes the key that any metatable of ours sets to true to mark an array. */
void json_push_array_mark(lua_State *L);
/* Pushes the metatable that prints members in the order of the list at `idx` first (the same list: the same one). */
void json_push_order_mt(lua_State *L, int idx);

#endif
