/* The fields of a query, of a form and of a multipart body as Lua values. */
#ifndef KASMA_SCRIPT_FORM_H
#define KASMA_SCRIPT_FORM_H

#include <lua.h>

#include "http/request.h"

/* Each pushes its table and returns 1, or nil, {kind, code, message} and returns 2; `code` is the status to answer. */

/* "a=1&a=2&b=": {a = {"1", "2"}, b = ""}. At most 1,000 fields. */
int form_push_pairs(lua_State *L, struct request *r, struct str text);
/* The parts in order: {name, filename, type, size, data or the path of the file it lies in}. */
int form_push_multipart(lua_State *L, struct request *r);

#endif
