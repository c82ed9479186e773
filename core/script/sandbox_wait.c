/* A run that waits, from its start to its result; see sandbox_wait.h.
 *
 * The coroutine (`thread`) is made, and given its function, input and config, in the state's protected call; between
 * the resumes nothing runs, and nothing is allocated but in a protected call again, so that running out of memory ends
 * the run and not the process. */
#include "script/sandbox_wait.h"

#include <stdio.h>

#include "runtime/clock.h"
#include "script/sandbox_run.h"

int sandbox_wait_enter(lua_State *L, struct call *c) {
    struct sandbox_state *st = c->st;
    luaL_checkstack(L, 8, "no room");
    sandbox_push_run(L, c); /* function, input, config */
    lua_State *thread = lua_newthread(L);
    lua_insert(L, 1);
    lua_xmove(L, thread, 3);
    st->thread_ref = luaL_ref(L, LUA_REGISTRYINDEX);
    st->thread = thread;
    return 0;
}

void sandbox_wait_end(struct sandbox *sb) {
    struct sandbox_state *st = sandbox_state_of(sb);
    if (!st->thread) return;
    luaL_unref(sb->L, LUA_REGISTRYINDEX, st->thread_ref);
    st->thread = NULL;
    struct rule *r = sandbox_rule_at(st, st->waiter);
    if (r) sandbox_recheck_run(sb->L, r);
    sandbox_tidy(sb);
}

static enum sandbox_wait failed(struct sandbox *sb) {
    sandbox_wait_end(sb);
    return SANDBOX_FAILED;
}

static const char *rule_name(struct sandbox_state *st) {
    const struct rule *r = sandbox_rule_at(st, st->waiter);
    return r ? r->name : "";
}

/* Runs on with the values on top of the thread. */
static enum sandbox_wait go_on(struct sandbox_state *st, int nargs, struct sandbox_report *report) {
    struct sandbox *sb = &st->sb;
    st->error_line = 0;
    st->error_stack[0] = '\0';
    sb->running = true;
    int rc = lua_resume(st->thread, nargs);
    sb->running = false;
    sandbox_end(sb->L);
    if (rc == LUA_YIELD && sb->stop == OUTCOME_OK) {
        *report = (struct sandbox_report){.outcome = OUTCOME_OK, .line = st->error_line, .log_lines = sb->log_lines};
        return SANDBOX_CALL;
    }
    if (rc != 0 && rc != LUA_YIELD) sandbox_note_place(st->thread, 0);
    if (!sandbox_conclude(st, rule_name(st), st->thread, rc, report)) return failed(sb);
    lua_settop(st->thread, 2);
    sandbox_take_reason(st->thread, report);
    return SANDBOX_DONE;
}

enum sandbox_wait sandbox_wait_start(struct sandbox *sb, int rule, const struct sandbox_entry *entry,
                                     const struct sandbox_limits *limits,
                                     bool (*build)(lua_State *L, void *data, struct error *err), void *data,
                                     struct sandbox_report *report) {
    struct sandbox_state *st = sandbox_state_of(sb);
    struct rule *r = sandbox_rule_at(st, rule);
    if (!r || !sb->waits) {
        *report = (struct sandbox_report){.outcome = OUTCOME_ERROR, .message = "no such rule in a state that may wait"};
        return SANDBOX_FAILED;
    }
    if (!sandbox_reset(st, limits->heap, report)) return SANDBOX_FAILED;
    struct call c = {.kind = START, .st = st, .rule = r, .name = r->name, .entry = entry, .build = build, .data = data};
    int rc = sandbox_protect(&c, 0);
    st->waiter = rule;
    if (rc != 0 || sb->stop != OUTCOME_OK) {
        bool ok = sandbox_conclude(st, r->name, sb->L, rc, report);
        (void)ok; /* it is false */
        sandbox_wait_end(sb);
        sandbox_tidy(sb);
        return SANDBOX_FAILED;
    }
    st->limits = *limits;
    sandbox_begin(sb->L, &st->limits);
    return go_on(st, 2, report);
}

static enum sandbox_wait answer(struct sandbox *sb, struct call *c, struct sandbox_report *report) {
    struct sandbox_state *st = sandbox_state_of(sb);
    if (!st->thread) {
        *report = (struct sandbox_report){.outcome = OUTCOME_ERROR, .message = "no run waits"};
        return SANDBOX_FAILED;
    }
    int line = st->error_line;
    *report = (struct sandbox_report){.outcome = OUTCOME_OK, .line = line};
    if (clock_mono_us() - st->began_us > st->limits.wall_us) {
        sandbox_wait_stop(sb, OUTCOME_TIME, "stopped: it took too long, waiting included", report);
        return SANDBOX_FAILED;
    }
    c->st = st;
    int rc = sandbox_protect(c, 0);
    if (rc != 0 || sb->stop != OUTCOME_OK) {
        bool ok = sandbox_conclude(st, rule_name(st), sb->L, rc, report);
        (void)ok; /* it is false */
        report->line = line;
        return failed(sb);
    }
    sb->until_us = 0; /* other work of this thread is not the run's */
    sandbox_count(sb->L);
    return go_on(st, lua_gettop(st->thread), report);
}

enum sandbox_wait sandbox_wait_answer(struct sandbox *sb, bool (*give)(lua_State *L, void *data, struct error *err),
                                      void *data, struct sandbox_report *report) {
    struct call c = {.kind = ANSWER, .build = give, .data = data};
    return answer(sb, &c, report);
}

enum sandbox_wait sandbox_wait_refuse(struct sandbox *sb, const char *message, struct sandbox_report *report) {
    struct call c = {.kind = ANSWER, .refusal = message};
    return answer(sb, &c, report);
}

bool sandbox_wait_result(struct sandbox *sb, bool (*read)(lua_State *L, void *data, struct error *err), void *data,
                         struct sandbox_report *report) {
    struct sandbox_state *st = sandbox_state_of(sb);
    bool ok = sandbox_deliver(st->thread, st->limits.result, read, data, report);
    sandbox_wait_end(sb);
    return ok;
}

void sandbox_wait_stop(struct sandbox *sb, enum outcome why, const char *message, struct sandbox_report *report) {
    struct sandbox_state *st = sandbox_state_of(sb);
    *report = (struct sandbox_report){.outcome = why,
                                      .line = st->error_line,
                                      .instructions = sb->used,
                                      .micros = clock_mono_us() - st->began_us,
                                      .heap_peak = sb->peak,
                                      .log_lines = sb->log_lines};
    int put = snprintf(report->message, sizeof report->message, "%s", message);
    if (put < 0) report->message[0] = '\0';
    sandbox_wait_end(sb);
}
