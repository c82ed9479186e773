/* How a task that a test began has ended. */
#ifndef KASMA_TESTS_TASK_OUTCOME_H
#define KASMA_TESTS_TASK_OUTCOME_H

#include <lua.h>
#include <stdbool.h>
#include <stdio.h>

struct task_outcome {
    bool over, ok;
    char message[512]; /* of a failure */
};

/* A task_finished; `data` is the outcome. */
static void task_outcome_note(void *data, lua_State *L, bool ok) {
    struct task_outcome *o = data;
    o->over = true;
    o->ok = ok;
    const char *text = ok ? "" : lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "(a table was raised)";
    (void)snprintf(o->message, sizeof o->message, "%s", text);
}

/* For run_until. */
static bool task_outcome_over(void *data) {
    return ((struct task_outcome *)data)->over;
}

#endif
