/* Forms of hook inputs; see sandbox_shape.c. */
#ifndef KASMA_SCRIPT_SANDBOX_SHAPE_H
#define KASMA_SCRIPT_SANDBOX_SHAPE_H

#include "script/sandbox.h"

struct shape;

/* The form that the definition at `idx` tells: {fields = {name = definition, ...}} is a record, {item = definition} a
 * list, everything else plain data. `path` is what errors of rule code call the value ("input.subject"). NULL: `err`.
 * Must outlive every sandbox that it was used with. */
struct shape *shape_new(lua_State *L, int idx, const char *path, struct error *err);
void shape_free(struct shape *s);

/* Pushes on `to` a copy of the value at `idx` of `from` (another state) in that form: fields it does not name are left
 * out, reading an unknown one is an error. At most `bytes`, counted as in sandbox_copy. False: `err`, nothing was
 * pushed. May raise Lua's out-of-memory error of `to`. */
bool shape_copy(lua_State *from, int idx, lua_State *to, const struct shape *s, size_t bytes, struct error *err);

#endif
