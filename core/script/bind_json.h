/* What core.json shares with the bindings that answer in JSON. */
#ifndef KASMA_SCRIPT_BIND_JSON_H
#define KASMA_SCRIPT_BIND_JSON_H

#include <lua.h>

#include "runtime/str.h"

/* The value at `idx` as JSON; the view is good until the next call. Raises a Lua error on what cannot be JSON. */
struct str bind_json_text(lua_State *L, int idx);

#endif
