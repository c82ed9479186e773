/* PostgreSQL values and Lua values: parameters one way, rows the other. */
#ifndef KASMA_SCRIPT_BIND_PG_VALUE_H
#define KASMA_SCRIPT_BIND_PG_VALUE_H

#include <lua.h>

#include "stores/pg.h"

/* Fills `s` from a text at `sql` and the parameters after it, up to `last` (stack indexes); what has to be made is left
 * on the stack, and `s` is good as long as it lies there. Raises a Lua error: a nil parameter, a number of parameters
 * that is not that of the text, a value that cannot be one. */
void pg_value_statement(lua_State *L, int sql, int last, struct pg_statement *s);
/* The same from a table {sql, p1, ...} at `idx`; its parameters are left on the stack. */
void pg_value_statement_table(lua_State *L, int idx, struct pg_statement *s);
/* Pushes an array of rows with `affected`. False: `err` says which value Lua cannot hold; nothing was pushed. */
bool pg_value_rows(lua_State *L, const PGresult *r, struct error *err);
/* Pushes nil, {kind, code, message, constraint, table, column, detail, position, statement}; returns 2. */
int pg_value_error(lua_State *L, const struct pg_error *err);

/* pg.array, pg.json, pg.bytea */
int pg_value_array(lua_State *L);
int pg_value_json(lua_State *L);
int pg_value_bytea(lua_State *L);

#endif
