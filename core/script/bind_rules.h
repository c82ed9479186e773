/* What other bindings need of core.rules. */
#ifndef KASMA_SCRIPT_BIND_RULES_H
#define KASMA_SCRIPT_BIND_RULES_H

#include <lua.h>

#include "script/rules.h"
#include "script/sandbox_shape.h"

/* The set that the userdata at `arg` holds, which holds it on. Raises when it is something else. */
struct rule_set *bind_rule_set(lua_State *L, int arg);
/* The form at `arg`; NULL: nil stands there. Raises when it is something else. */
const struct shape *bind_rule_form(lua_State *L, int arg);
/* The index of a rule of the set, from 0. Raises when there is none such. */
size_t bind_rule_index(lua_State *L, const struct rule_set *set, int arg);
/* Takes the limits that the table at `arg`, which may be nil, names. */
void bind_rule_limits(lua_State *L, int arg, struct sandbox_limits *limits);
/* Pushes what a run came to. */
void bind_rule_report(lua_State *L, const struct sandbox_report *report, struct str log);

/* bind_rules_wait.c: adds its functions to the module on top, and its methods to those of sets at `methods`. */
void bind_rules_wait_open(lua_State *L, int methods);

#endif
