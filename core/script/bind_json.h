/* What core.json shares with the bindings that answer in JSON. */
#ifndef KASMA_SCRIPT_BIND_JSON_H
#define KASMA_SCRIPT_BIND_JSON_H

#include <lua.h>
#include <stdbool.h>

#include "runtime/str.h"

/* The value at `idx` as JSON, `sorted`: with the members of every object in the order of their names, or in one that
 * differs from process to process. The view is good until the next call. Raises a Lua error on what cannot be JSON. */
struct str bind_json_text(lua_State *L, int idx, bool sorted);

#endif
