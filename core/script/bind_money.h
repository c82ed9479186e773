/* What core.money and core.pricing share: amounts, currencies and exchange rates as Lua hands them over. */
#ifndef KASMA_SCRIPT_BIND_MONEY_H
#define KASMA_SCRIPT_BIND_MONEY_H

#include <lua.h>

#include "commerce/money.h"

/* The integer at `idx`, |n| <= 2^53. False: not a number, or not integral, or beyond that. */
bool bind_integer(lua_State *L, int idx, int64_t *out);
/* The currency named at `idx`, or NULL. */
const struct currency *bind_currency(lua_State *L, int idx);
/* A frozen rate at `idx`, {rate = "25450.000000", inverse = bool} or an array of such legs, as the exact fraction from
 * minor units of `from` to those of `to`. `rate` is text, or a number. False: malformed or out of range. */
bool bind_rate(lua_State *L, int idx, const struct currency *from, const struct currency *to, struct ratio *out);
/* The shortest text that reads back as the number, and NUL into out[32]; its length. 0: not finite. */
size_t bind_number_text(lua_Number n, char out[32]);

#endif
