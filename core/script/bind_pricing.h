/* The parts of core.pricing; private to the bind_pricing*.c files and to the host of rules. */
#ifndef KASMA_SCRIPT_BIND_PRICING_H
#define KASMA_SCRIPT_BIND_PRICING_H

#include <lua.h>

#include "commerce/pricing.h"

struct pricing_names;

/* Reads the input table at `idx` (its form: head of bind_pricing.c) into `in`. Strings are borrowed from the table,
 * which must stay unchanged on the stack until the quote has been pushed; arrays are the arena's. Raises a Lua error
 * that names the member when the table is not of that form. */
void pricing_read(lua_State *L, int idx, const struct pricing_names *names, struct arena *a, struct pricing_input *in);
/* The index of member names that pricing_read needs, as a userdata that is pushed; made once a state. */
struct pricing_names *pricing_push_names(lua_State *L);
/* Pushes the quote as a table. */
void pricing_push(lua_State *L, int keys, const struct quote *q);
/* Pushes the table of member names that `keys` of pricing_push is the index of; made once a state. */
void pricing_push_keys(lua_State *L);

/* Pushes on `L` what a hook may know of a quote (sheet 02, 6.2): the computed figures of `view`, and what the caller
 * put into `snapshot`, `attributes` and `properties` of the input table at `source_idx` of `source`, copied when `L` is
 * another state. False: `err`. May raise Lua's out-of-memory error of `L`. */
bool pricing_push_snapshot(lua_State *L, const char *hook, const struct pricing_view *view, lua_State *source,
                           int source_idx, struct error *err);
/* The operations in the table on top of `L` ({operations = {...}} or nil), copied into the arena. Allocates nothing in
 * L. False: the first fault, also an unknown key or a number that is not an integer. */
bool pricing_read_operations(lua_State *L, struct arena *a, struct rule_result *out, struct error *err);
/* The list of {line, rate_ppm, name, jurisdiction, compound} on top of `L`; *answered false for nil. As above. */
bool pricing_read_taxes(lua_State *L, struct arena *a, const struct pricing_view *view,
                        const struct tax_answer **answers, size_t *n, bool *answered, struct error *err);

#endif
