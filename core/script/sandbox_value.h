/* The check that every result passes before anything outside reads it. */
#ifndef KASMA_SCRIPT_SANDBOX_VALUE_H
#define KASMA_SCRIPT_SANDBOX_VALUE_H

#include "script/sandbox.h"

/* Whether the value is plain data as sandbox_copy takes it, without copying. Allocates nothing in L; `err` is not NULL.
 * *used is what it takes of the bytes that it may have: all of them when it is larger. */
bool sandbox_check(lua_State *L, int idx, size_t bytes, size_t *used, struct error *err);

#endif
