/* What other bindings need of core.rules. */
#ifndef KASMA_SCRIPT_BIND_RULES_H
#define KASMA_SCRIPT_BIND_RULES_H

#include <lua.h>

#include "script/rules.h"

/* The set that the userdata at `arg` holds, which holds it on. Raises when it is something else. */
struct rule_set *bind_rule_set(lua_State *L, int arg);

#endif
