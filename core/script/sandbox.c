#include "script/sandbox.h"

#include <lauxlib.h>
#include <luajit.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "runtime/clock.h"
#include "script/json.h"
#include "script/sandbox_cache.h"
#include "script/sandbox_run.h"
#include "script/sandbox_value.h"

#define GRAIN 1000u
#define FINE_GRAIN 100u /* at first, so that short runs are told apart; and once strings take long to copy */
#define FINE_PIECE ((size_t)32 * 1024)
#define BULK 200
#define CALL_DEPTH_MAX 150
#define STACK_FRAMES 8                   /* of an error that are told */
#define GARBAGE_MAX ((size_t)512 * 1024) /* what runs may leave to the collector */
#define GROWN ((size_t)1024 * 1024)      /* a run that holds more than this has the collector at work beside it */
#define LOAD_INSTRUCTIONS 20000
#define LOAD_WALL_US 20000
#define SOURCE_MAX ((size_t)64 * 1024)
#define CONFIG_MAX ((size_t)64 * 1024)
#define DATA_MAX ((size_t)256 * 1024)
#define HEAP_MAX ((size_t)8 * 1024 * 1024)
/* No single string or table part is larger: one machine instruction of Lua can copy or compare a whole string, and the
 * hook looks only every GRAIN of them. (The largest Lua stack just fits.) */
#define PIECE_MAX ((size_t)640 * 1024)
/* An answer from outside may be one string of 1 MiB. */
#define WAITING_PIECE_MAX ((size_t)1088 * 1024)
/* Garbage is bounded by what is ever allocated, not only by what is alive. */
#define ALLOCATED_TIMES 4

/* The net is for what runs in shops; under sanitizers everything takes ten times as long. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define NET UINT64_C(10)
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define NET UINT64_C(10)
#endif
#ifndef NET
#define NET UINT64_C(1)
#endif

const struct sandbox_limits sandbox_pure = {
    .instructions = 200000, .wall_us = 5000 * NET, .heap = HEAP_MAX, .result = (size_t)64 * 1024};
const struct sandbox_limits sandbox_slow = {
    .instructions = 2000000, .wall_us = 20000 * NET, .heap = HEAP_MAX, .result = (size_t)256 * 1024};
const struct sandbox_limits sandbox_capable = {
    .instructions = 2000000, .wall_us = 2000000, .heap = 2 * HEAP_MAX, .result = (size_t)1024 * 1024};
static const struct sandbox_limits load_limits = {
    .instructions = LOAD_INSTRUCTIONS, .wall_us = LOAD_WALL_US, .heap = HEAP_MAX, .result = DATA_MAX};

struct sandbox_state *sandbox_state_of(struct sandbox *sb) {
    return (struct sandbox_state *)sb;
}

const char *outcome_name(enum outcome o) {
    static const char *const names[] = {"ok",         "error",         "limit_instructions", "limit_time",
                                        "limit_heap", "limit_pattern", "limit_result",       "invalid_result",
                                        "budget",     "breaker"};
    return names[o];
}

/* ---- the bounds ---- */

static void *allocate(void *data, void *old, size_t old_size, size_t size) {
    struct sandbox *sb = data;
    if (size == 0) {
        heap_release(&sb->memory, old, old_size);
        sb->live -= old_size;
        return NULL;
    }
    if (!old) old_size = 0;
    if (sb->running && size > old_size) {
        sb->allocated += size;
        if (size > sb->piece) sb->piece = size;
        if (size > sb->piece_max || sb->live - old_size + size > sb->heap_limit ||
            sb->allocated > sb->allocated_limit) {
            if (sb->stop == OUTCOME_OK) sb->stop = OUTCOME_HEAP;
            sb->broken = true;
            return NULL;
        }
    }
    void *p = heap_resize(&sb->memory, old, old_size, size);
    if (!p) return NULL;
    sb->live += size - old_size;
    if (sb->live > sb->peak) sb->peak = sb->live;
    return p;
}

struct sandbox *sandbox_of(lua_State *L) {
    void *data;
    lua_Alloc fn = lua_getallocf(L, &data);
    (void)fn; /* there is only one */
    return data;
}

static void on_count(lua_State *L, lua_Debug *ar);

static void set_grain(lua_State *L, struct sandbox *sb, unsigned grain) {
    sb->grain = grain;
    int done = lua_sethook(L, on_count, LUA_MASKCOUNT | (sandbox_is_covering() ? LUA_MASKLINE : 0), (int)grain);
    (void)done; /* always 1 */
}

int sandbox_stop(lua_State *L, enum outcome why, const char *fmt, ...) {
    struct sandbox *sb = sandbox_of(L);
    if (sb->stop == OUTCOME_OK) {
        sb->stop = why;
        va_list args;
        va_start(args, fmt);
        int n = vsnprintf(sandbox_state_of(sb)->stop_text, sizeof sandbox_state_of(sb)->stop_text, fmt, args);
        va_end(args);
        if (n < 0) sandbox_state_of(sb)->stop_text[0] = '\0';
    }
    /* Should anything swallow this error, the very next instruction raises it again. */
    set_grain(L, sb, 1);
    lua_pushliteral(L, "stopped");
    return lua_error(L);
}

static void check_instructions(lua_State *L, struct sandbox *sb) {
    if (sb->used >= sb->limit)
        sandbox_stop(L, OUTCOME_INSTRUCTIONS, "stopped after %llu instructions", (unsigned long long)sb->limit);
}

static uint64_t thread_us(void) {
    struct timespec ts;
    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts) != 0) return clock_mono_us();
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

/* Half of the time is wall time, which costs nothing to read. What is left is counted in time that this thread really
 * ran, so that a rule is not stopped because the machine was busy with something else. */
static void check_clock(lua_State *L, struct sandbox *sb) {
    if (clock_mono_us() <= sb->half_us) return;
    uint64_t now = thread_us();
    if (sb->until_us == 0) {
        sb->until_us = now + sb->wall_us / 2;
    } else if (now > sb->until_us) {
        sandbox_stop(L, OUTCOME_TIME, "stopped after %llu microseconds", (unsigned long long)sb->wall_us);
    }
}

static void note_line(struct sandbox *sb, int line) {
    unsigned place = (unsigned)line % 64;
    sb->line = line;
    sb->samples += sb->grain;
    if (sb->hot_line[place] != line && sb->hot[place] >= sb->grain) {
        sb->hot[place] -= sb->grain; /* the line that comes most often keeps the place */
    } else {
        sb->hot_line[place] = line;
        sb->hot[place] += sb->grain;
    }
}

static void on_count(lua_State *L, lua_Debug *ar) {
    struct sandbox *sb = sandbox_of(L);
    if (ar->event == LUA_HOOKLINE) {
        sandbox_cover_line(L, ar);
        return;
    }
    sb->used += sb->grain;
    if (lua_getinfo(L, "l", ar) && ar->currentline > 0) note_line(sb, ar->currentline);
    if (sb->stop != OUTCOME_OK) sandbox_stop(L, sb->stop, "stopped");
    if (!sb->collecting && sb->live > sb->idle + GROWN) {
        sb->collecting = true;
        lua_gc(L, LUA_GCRESTART, 0);
    }
    check_instructions(L, sb);
    check_clock(L, sb);
    uint64_t left = sb->limit - sb->used;
    /* Between two waits a part of a run may be short. */
    unsigned grain = sb->waits || sb->piece > FINE_PIECE || sb->used < GRAIN ? FINE_GRAIN : GRAIN;
    if (left < grain) grain = (unsigned)left;
    if (grain != sb->grain) set_grain(L, sb, grain);
}

void sandbox_charge(lua_State *L, uint64_t n) {
    struct sandbox *sb = sandbox_of(L);
    sb->used += n;
    if (!sb->running) return;
    check_instructions(L, sb);
    /* Work in bulk takes time between two looks of the hook. */
    if (n >= BULK && sb->wall_us) check_clock(L, sb);
}

void sandbox_look(lua_State *L) {
    struct sandbox *sb = sandbox_of(L);
    if (sb->running && sb->wall_us) check_clock(L, sb);
}

void sandbox_call(lua_State *L, int nargs, int nresults) {
    struct sandbox *sb = sandbox_of(L);
    if (++sb->depth > CALL_DEPTH_MAX) luaL_error(L, "calls nested too deep");
    lua_call(L, nargs, nresults);
    sb->depth--;
}

void sandbox_begin(lua_State *L, const struct sandbox_limits *limits) {
    struct sandbox *sb = sandbox_of(L);
    sb->used = 0;
    sb->limit = limits->instructions;
    sb->wall_us = limits->wall_us;
    sb->half_us = clock_mono_us() + limits->wall_us / 2;
    sb->until_us = 0;
    set_grain(L, sb, limits->instructions < FINE_GRAIN ? (unsigned)limits->instructions : FINE_GRAIN);
}

void sandbox_count(lua_State *L) {
    set_grain(L, sandbox_of(L), FINE_GRAIN);
}

void sandbox_end(lua_State *L) {
    int done = lua_sethook(L, NULL, 0, 0);
    (void)done; /* always 1 */
}

/* A frame of the rule behind those that are noted. False: there is no room. A function may be called by a name of any
 * bytes, and this goes into texts. */
static bool note_frame(struct sandbox_state *st, size_t *used, const lua_Debug *ar) {
    char *at = st->error_stack + *used;
    size_t room = sizeof st->error_stack - *used;
    int n = snprintf(at, room, "%d:%.40s:%.40s", ar->currentline, ar->short_src, ar->name ? ar->name : "");
    if (n < 0 || (size_t)n + 2 > room) {
        *at = '\0';
        return false;
    }
    for (int i = 0; i < n; i++)
        if (at[i] < ' ' || at[i] > '~') at[i] = '?';
    at[n] = '\n';
    at[n + 1] = '\0';
    *used += (size_t)n + 1;
    return true;
}

void sandbox_note_place(lua_State *L, int level) {
    struct sandbox_state *st = sandbox_state_of(sandbox_of(L));
    lua_Debug ar;
    size_t used = 0;
    st->error_line = 0;
    st->error_stack[0] = '\0';
    for (int frames = 0; frames < STACK_FRAMES && lua_getstack(L, level, &ar); level++) {
        if (!lua_getinfo(L, "Snl", &ar) || ar.currentline <= 0) continue;
        if (!st->error_line) st->error_line = ar.currentline;
        if (!note_frame(st, &used, &ar)) break;
        frames++;
    }
}

static int on_error(lua_State *L) {
    sandbox_note_place(L, 1);
    return 1;
}

static int enter(lua_State *L);

static int set_up(lua_State *L) {
    struct sandbox_state *st = sandbox_state_of(sandbox_of(L));
    lua_gc(L, LUA_GCSTOP, 0);
    if (luaJIT_setmode(L, 0, LUAJIT_MODE_ENGINE | LUAJIT_MODE_OFF) != 1) return luaL_error(L, "the JIT does not stop");
    lua_pushcfunction(L, enter);
    st->sb.runner = luaL_ref(L, LUA_REGISTRYINDEX);
    lua_pushcfunction(L, on_error);
    st->handler = luaL_ref(L, LUA_REGISTRYINDEX);
    sandbox_push_globals(L);
    lua_pushvalue(L, -1);
    lua_replace(L, LUA_GLOBALSINDEX);
    st->env = luaL_ref(L, LUA_REGISTRYINDEX);
    /* Not nil: a text with 64-bit literals makes the VM load its FFI by itself, and what that needs lives only here. No
     * rule sees the registry. */
    lua_newtable(L);
    lua_setfield(L, LUA_REGISTRYINDEX, "_LOADED");
    return 0;
}

static struct sandbox *make(bool waits, size_t piece_max, struct error *err) {
    struct sandbox_state *st = calloc(1, sizeof *st);
    if (!st) {
        error_set(err, ERR_MEMORY, "no memory for a sandbox");
        return NULL;
    }
    st->sb.heap_limit = st->sb.allocated_limit = SIZE_MAX;
    st->sb.waits = waits;
    st->sb.piece_max = piece_max;
    st->sb.L = lua_newstate(allocate, st);
    if (!st->sb.L || lua_cpcall(st->sb.L, set_up, NULL) != 0) {
        const char *text = st->sb.L ? lua_tostring(st->sb.L, -1) : NULL;
        error_set(err, ERR_MEMORY, "the sandbox was not made: %s", text ? text : "no memory");
        sandbox_free(&st->sb);
        return NULL;
    }
    /* Room for everything that is done on the stack outside of protected calls. */
    if (!lua_checkstack(st->sb.L, 200)) {
        error_set(err, ERR_MEMORY, "no memory for a sandbox");
        sandbox_free(&st->sb);
        return NULL;
    }
    lua_gc(st->sb.L, LUA_GCSETPAUSE, 120);
    lua_gc(st->sb.L, LUA_GCSETSTEPMUL, 400);
    st->sb.idle = st->sb.live;
    return &st->sb;
}

struct sandbox *sandbox_new(struct error *err) {
    return make(false, PIECE_MAX, err);
}

struct sandbox *sandbox_new_waiting(struct error *err) {
    return make(true, WAITING_PIECE_MAX, err);
}

/* What a rule has outside of the state. */
static void free_rule(struct rule *r) {
    buf_free(&r->config);
    compiled_release(r->compiled);
    r->compiled = NULL;
    for (size_t i = 0; i < r->nlibs; i++) buf_free(&r->libs[i].source);
    free(r->libs);
    r->libs = NULL;
    r->nlibs = 0;
}

void sandbox_free(struct sandbox *sb) {
    if (!sb) return;
    struct sandbox_state *st = sandbox_state_of(sb);
    if (sb->L) lua_close(sb->L);
    for (int i = 0; i < st->rules.count; i++) free_rule(&st->rules.at[i]);
    free(st->rules.at);
    buf_free(&sb->log);
    heap_close(&sb->memory);
    free(st);
}

bool sandbox_broken(const struct sandbox *sb) {
    return sb->broken;
}

size_t sandbox_bytes(const struct sandbox *sb) {
    return sb->live;
}

struct str sandbox_log(const struct sandbox *sb) {
    return buf_str(&sb->log);
}

/* ---- running ---- */

struct compiled *sandbox_compile(lua_State *L, const char *name, struct str source) {
    if (source.len > SOURCE_MAX) luaL_error(L, "the file is longer than 64 KiB");
    char chunk[140];
    int n = snprintf(chunk, sizeof chunk, "=%s", name);
    if (n < 0) luaL_error(L, "the file's name cannot be used");
    struct compiled *known = compiled_find(source);
    if (!known || !compiled_push(known, L, chunk)) {
        int line = sandbox_jumps(source, SANDBOX_JUMPS_MAX);
        if (line) luaL_error(L, "%s:%d: " SANDBOX_JUMPS_TEXT, name, line, SANDBOX_JUMPS_MAX);
        /* "t": text only; crafted bytecode can do anything. */
        if (luaL_loadbufferx(L, source.at, source.len, chunk, "t") != 0) lua_error(L);
        known = known ? known : compiled_keep(L, chunk, source);
    }
    lua_rawgeti(L, LUA_REGISTRYINDEX, sandbox_state_of(sandbox_of(L))->env);
    if (!lua_setfenv(L, -2)) luaL_error(L, "the chunk has no environment");
    return known;
}

bool sandbox_find_lib(const struct sandbox *sb, const char *key, struct str *source) {
    for (size_t i = 0; sb->rule && i < sb->rule->nlibs; i++) {
        if (strcmp(sb->rule->libs[i].key, key) != 0) continue;
        *source = buf_str(&sb->rule->libs[i].source);
        return true;
    }
    return false;
}

/* Runs the chunk on top; its one value replaces it. */
static void run_chunk(lua_State *L, const struct rule *r) {
    struct sandbox *sb = sandbox_of(L);
    sandbox_begin(L, &load_limits);
    sb->rule = r;
    sb->lib_depth = 0;
    lua_call(L, 0, 1);
    sb->rule = NULL;
    sandbox_end(L);
}

/* Pushes the manifest of a loaded rule. */
static void push_manifest(lua_State *L, const struct rule *r) {
    lua_rawgeti(L, LUA_REGISTRYINDEX, r->chunk);
    run_chunk(L, r);
}

static int load(lua_State *L, struct call *c) {
    struct rule *r = c->rule;
    struct compiled *known = sandbox_compile(L, c->name, c->source);
    if (known && r->nlibs == 0) { /* else what it means depends on others */
        compiled_hold(known);
        r->compiled = known;
    }
    const struct sandbox_manifest *manifest = compiled_manifest(r->compiled);
    if (manifest) {
        *c->manifest = *manifest;
    } else {
        lua_pushvalue(L, -1);
        run_chunk(L, r);
        sandbox_read_manifest(L, c->manifest);
        sandbox_keep_run(L, r);
        lua_pop(L, 1);
        compiled_set_manifest(r->compiled, c->manifest);
    }
    r->chunk = luaL_ref(L, LUA_REGISTRYINDEX);
    return 0;
}

static int configure(lua_State *L, struct call *c) {
    struct error err = {0};
    char message[256];
    struct str known = compiled_config(c->rule->compiled, c->source);
    if (known.len) return buf_add(&c->config, known) ? 0 : luaL_error(L, "no memory for the config");
    push_manifest(L, c->rule);
    lua_getfield(L, -1, "config");
    if (!json_decode(L, c->source, &err)) luaL_error(L, "config_invalid: %s", err.message);
    sandbox_begin(L, &load_limits);
    if (lua_isnil(L, -2)) {
        lua_pushnil(L);
        if (!lua_istable(L, -2) || lua_next(L, -2)) luaL_error(L, "config_invalid: this rule takes no config");
    } else if (!sandbox_schema_check(L, -2, message, sizeof message)) {
        luaL_error(L, "config_invalid: %s", message);
    }
    sandbox_end(L);
    if (!json_encode_sorted(L, -1, &c->config, &err)) luaL_error(L, "config_invalid: %s", err.message);
    /* Each run gets a copy of its own, before its budget begins. */
    if (c->config.len > CONFIG_MAX) luaL_error(L, "config_invalid: config: is larger than 64 KiB");
    compiled_set_config(c->rule->compiled, c->source, buf_str(&c->config));
    return 0;
}

/* Pushes the function of a step, which is never kept from run to run. */
static void push_step(lua_State *L, const struct call *c) {
    push_manifest(L, c->rule);
    lua_getfield(L, -1, "steps");
    if (lua_istable(L, -1)) {
        lua_rawgeti(L, -1, c->entry->step);
        if (lua_istable(L, -1)) lua_getfield(L, -1, c->entry->undo ? "undo" : "run");
    }
    if (!lua_isfunction(L, -1))
        luaL_error(L, "step %d has no %s function", c->entry->step, c->entry->undo ? "undo" : "run");
    lua_replace(L, 1);
    lua_settop(L, 1);
}

void sandbox_push_run(lua_State *L, struct call *c) {
    struct error err = {0};
    if (c->entry) {
        push_step(L, c);
    } else if (c->rule->run) {
        lua_rawgeti(L, LUA_REGISTRYINDEX, c->rule->run);
    } else {
        push_manifest(L, c->rule);
        if (!c->rule->looked) sandbox_keep_run(L, c->rule);
        lua_getfield(L, -1, "run");
        lua_remove(L, -2);
        if (!lua_isfunction(L, -1)) luaL_error(L, "this kind of rule has no run function");
    }
    if (!c->build(L, c->data, &err)) luaL_error(L, "input: %s", err.message);
    if (c->rule->config.len == 0) {
        lua_newtable(L);
    } else if (!json_decode(L, buf_str(&c->rule->config), &err)) {
        luaL_error(L, "config: %s", err.message);
    }
}

static int run(lua_State *L, struct call *c) {
    sandbox_push_run(L, c);
    sandbox_begin(L, c->limits);
    lua_call(L, 2, 2);
    sandbox_end(L);
    return 2;
}

static int describe(lua_State *L, struct call *c) {
    push_manifest(L, c->rule);
    sandbox_begin(L, &load_limits);
    sandbox_make_plain(L, 0);
    sandbox_end(L);
    return 1;
}

static int enter(lua_State *L) {
    struct call *c = lua_touserdata(L, 1);
    lua_settop(L, 0);
    switch (c->kind) {
    case LOAD:
        return load(L, c);
    case CONFIGURE:
        return configure(L, c);
    case RUN:
        return run(L, c);
    case DESCRIBE:
        return describe(L, c);
    case DATA:
        sandbox_compile(L, c->name, c->source);
        run_chunk(L, NULL);
        return 1;
    case START:
        return sandbox_wait_enter(L, c);
    case ANSWER:
        return sandbox_wait_push(L, c);
    }
    return 0;
}

/* The error value on top, told without the "name:line: " in front when it stands there. */
static void tell(lua_State *L, const char *name, struct sandbox_report *report) {
    const char *text = "an error object that is no text";
    if (lua_type(L, -1) == LUA_TSTRING) {
        text = lua_tostring(L, -1);
    } else if (lua_istable(L, -1)) {
        lua_pushliteral(L, "message");
        lua_rawget(L, -2);
        if (lua_type(L, -1) == LUA_TSTRING) text = lua_tostring(L, -1);
    }
    size_t n = strlen(name);
    if (strncmp(text, name, n) == 0 && text[n] == ':') {
        char *end;
        long line = strtol(text + n + 1, &end, 10);
        if (end != text + n + 1 && *end == ':' && line > 0 && line < 1000000) {
            report->line = (int)line;
            text = end + 1 + (end[1] == ' ');
        }
    }
    int put = snprintf(report->message, sizeof report->message, "%s", text);
    if (put < 0) report->message[0] = '\0';
}

/* Why the run was stopped, and for a budget the line on which most of it went. */
static void tell_stop(const struct sandbox_state *st, struct sandbox_report *report) {
    const struct sandbox *sb = &st->sb;
    unsigned most = 0;
    for (unsigned i = 1; i < 64; i++)
        if (sb->hot[i] > sb->hot[most]) most = i;
    unsigned share = sb->samples ? (unsigned)(100ull * sb->hot[most] / sb->samples) : 0;
    bool spent = (sb->stop == OUTCOME_INSTRUCTIONS || sb->stop == OUTCOME_TIME) && share >= 10;
    if (spent) report->line = sb->hot_line[most];
    int put = spent ? snprintf(report->message, sizeof report->message, "%s; %u%% of it at line %d", st->stop_text,
                               share, sb->hot_line[most])
                    : snprintf(report->message, sizeof report->message, "%s", st->stop_text);
    if (put < 0) report->message[0] = '\0';
}

void sandbox_take_reason(lua_State *L, struct sandbox_report *report) {
    if (lua_isnil(L, -2) && lua_type(L, -1) == LUA_TSTRING) {
        int put = snprintf(report->reason, sizeof report->reason, "%s", lua_tostring(L, -1));
        if (put < 0) report->reason[0] = '\0';
    }
    lua_pop(L, 1);
}

bool sandbox_reset(struct sandbox_state *st, size_t heap, struct sandbox_report *report) {
    struct sandbox *sb = &st->sb;
    lua_State *L = sb->L;
    *report = (struct sandbox_report){.outcome = OUTCOME_OK, .line = 0};
    if (sb->broken) {
        report->outcome = OUTCOME_HEAP;
        return false;
    }
    if (st->thread) {
        *report = (struct sandbox_report){.outcome = OUTCOME_ERROR, .message = "another run of this state waits"};
        return false;
    }
    st->heap = heap;
    sb->heap_limit = sb->live + heap;
    sb->allocated = 0;
    sb->allocated_limit = heap * ALLOCATED_TIMES;
    sb->peak = sb->live;
    sb->piece = 0;
    sb->depth = 0;
    sb->used = 0;
    sb->limit = LOAD_INSTRUCTIONS;
    sb->line = st->error_line = 0;
    st->error_stack[0] = '\0';
    sb->stop = OUTCOME_OK;
    sb->log_lines = 0;
    sb->context = NULL;
    sb->rule = NULL;
    sb->wall_us = 0; /* until it begins */
    sb->collecting = false;
    lua_gc(L, LUA_GCSTOP, 0); /* a short run leaves its garbage to tidy */
    sb->samples = 0;
    memset(sb->hot, 0, sizeof sb->hot);
    buf_clear(&sb->log);
    st->began_us = clock_mono_us();
    return true;
}

int sandbox_protect(struct call *c, int results) {
    struct sandbox *sb = &c->st->sb;
    lua_State *L = sb->L;
    lua_settop(L, 0);
    lua_rawgeti(L, LUA_REGISTRYINDEX, c->st->handler);
    lua_rawgeti(L, LUA_REGISTRYINDEX, sb->runner);
    lua_pushlightuserdata(L, c);
    sb->running = true;
    int rc = lua_pcall(L, 1, results, 1);
    sb->running = false;
    sandbox_end(L);
    return rc;
}

bool sandbox_conclude(struct sandbox_state *st, const char *name, lua_State *L, int rc, struct sandbox_report *report) {
    struct sandbox *sb = &st->sb;
    sb->context = NULL;
    sb->rule = NULL;
    report->instructions = sb->used < sb->limit ? sb->used : sb->limit;
    report->micros = clock_mono_us() - st->began_us;
    report->heap_peak = sb->peak;
    report->log_lines = sb->log_lines;
    if (rc == 0 && sb->stop == OUTCOME_OK) return true;
    sb->serial = 0; /* should its input have been left half filled */
    report->outcome = sb->stop != OUTCOME_OK ? sb->stop : rc == LUA_ERRMEM ? OUTCOME_HEAP : OUTCOME_ERROR;
    report->line = st->error_line ? st->error_line : sb->line;
    if (report->outcome == OUTCOME_HEAP) {
        sb->broken = true;
        int put = snprintf(report->message, sizeof report->message, "stopped at %zu KiB of memory", st->heap / 1024);
        if (put < 0) report->message[0] = '\0';
    } else if (sb->stop != OUTCOME_OK) {
        tell_stop(st, report);
    } else {
        tell(L, name, report);
        memcpy(report->stack, st->error_stack, sizeof report->stack);
    }
    return false;
}

/* True: the result is on top of the state's stack (for RUN, DESCRIBE and DATA). */
static bool perform(struct call *c, size_t heap, struct sandbox_report *report) {
    static const int results[] = {[LOAD] = 0, [CONFIGURE] = 0, [RUN] = 2, [DESCRIBE] = 1, [DATA] = 1};
    if (!sandbox_reset(c->st, heap, report)) return false;
    int rc = sandbox_protect(c, results[c->kind]);
    if (!sandbox_conclude(c->st, c->name, c->st->sb.L, rc, report)) return false;
    if (c->kind == RUN) sandbox_take_reason(c->st->sb.L, report);
    return true;
}

static void collect(struct sandbox *sb) {
    lua_gc(sb->L, LUA_GCCOLLECT, 0);
    sb->idle = sb->live;
}

/* Garbage of many runs is collected at once, never carried into another's budget. */
void sandbox_tidy(struct sandbox *sb) {
    lua_settop(sb->L, 0);
    if (!sb->broken && sb->live > sb->idle + GARBAGE_MAX && !sandbox_state_of(sb)->thread) collect(sb);
}

void sandbox_rest(struct sandbox *sb) {
    if (sb->broken || sb->live == sb->idle || sandbox_state_of(sb)->thread) return;
    sandbox_clear_desk(sb);
    collect(sb);
}

struct rule *sandbox_rule_at(struct sandbox_state *st, int handle) {
    return handle > 0 && handle <= st->rules.count && st->rules.at[handle - 1].chunk ? &st->rules.at[handle - 1] : NULL;
}

static bool no_rule(struct sandbox_report *report) {
    *report = (struct sandbox_report){.outcome = OUTCOME_ERROR, .message = "no such rule"};
    return false;
}

static bool copy_libs(struct rule *r, const struct sandbox_lib *libs, size_t n) {
    r->libs = n ? calloc(n, sizeof *r->libs) : NULL;
    if (n && !r->libs) return false;
    for (size_t i = 0; i < n; i++) {
        struct lib *l = &r->libs[r->nlibs++];
        int put = snprintf(l->key, sizeof l->key, "%s", libs[i].key);
        if (put < 0 || !buf_add(&l->source, libs[i].source)) return false;
    }
    return true;
}

int sandbox_load(struct sandbox *sb, const char *name, struct str source, struct sandbox_manifest *manifest,
                 struct sandbox_report *report) {
    return sandbox_load_with(sb, name, source, NULL, 0, manifest, report);
}

int sandbox_load_with(struct sandbox *sb, const char *name, struct str source, const struct sandbox_lib *libs,
                      size_t nlibs, struct sandbox_manifest *manifest, struct sandbox_report *report) {
    struct sandbox_state *st = sandbox_state_of(sb);
    int at = 0;
    while (at < st->rules.count && st->rules.at[at].chunk) at++;
    if (at == st->rules.count) {
        struct rule *grown = realloc(st->rules.at, ((size_t)at + 1) * sizeof *grown);
        if (!grown) {
            *report = (struct sandbox_report){.outcome = OUTCOME_HEAP, .message = "no memory for a rule"};
            return 0;
        }
        st->rules.at = grown;
        st->rules.count++;
    }
    struct rule *r = &st->rules.at[at];
    *r = (struct rule){.chunk = 0};
    int n = snprintf(r->name, sizeof r->name, "%s", name);
    *manifest = (struct sandbox_manifest){.priority = 0};
    struct call c = {.kind = LOAD, .st = st, .rule = r, .name = r->name, .source = source, .manifest = manifest};
    bool ok = copy_libs(r, libs, nlibs);
    if (!ok) *report = (struct sandbox_report){.outcome = OUTCOME_HEAP, .message = "no memory for a rule"};
    ok = ok && n > 0 && perform(&c, HEAP_MAX, report);
    sandbox_tidy(sb);
    if (!ok) free_rule(r);
    return ok ? at + 1 : 0;
}

void sandbox_unload(struct sandbox *sb, int rule) {
    struct rule *r = sandbox_rule_at(sandbox_state_of(sb), rule);
    if (!r) return;
    luaL_unref(sb->L, LUA_REGISTRYINDEX, r->chunk);
    sandbox_forget_run(sb->L, r);
    free_rule(r);
    r->chunk = 0;
}

bool sandbox_configure(struct sandbox *sb, int rule, struct str json, struct sandbox_report *report) {
    struct sandbox_state *st = sandbox_state_of(sb);
    struct rule *r = sandbox_rule_at(st, rule);
    if (!r) return no_rule(report);
    struct call c = {.kind = CONFIGURE, .st = st, .rule = r, .name = r->name, .source = json};
    bool ok = perform(&c, HEAP_MAX, report);
    sandbox_tidy(sb);
    if (ok) {
        buf_free(&r->config);
        r->config = c.config;
    } else {
        buf_free(&c.config);
    }
    return ok;
}

bool sandbox_deliver(lua_State *L, size_t bytes, bool (*read)(lua_State *L, void *data, struct error *err), void *data,
                     struct sandbox_report *report) {
    struct error err = {0};
    bool ok = sandbox_check(L, -1, bytes, &report->result, &err);
    if (!ok) {
        report->outcome = err.kind == ERR_LIMIT ? OUTCOME_RESULT : OUTCOME_INVALID_RESULT;
    } else if (!read(L, data, &err)) {
        report->outcome = OUTCOME_INVALID_RESULT;
        ok = false;
    }
    if (!ok) {
        int put = snprintf(report->message, sizeof report->message, "%s", err.message);
        if (put < 0) report->message[0] = '\0';
    }
    return ok;
}

bool sandbox_run(struct sandbox *sb, int rule, const struct sandbox_limits *limits,
                 bool (*build)(lua_State *L, void *data, struct error *err),
                 bool (*read)(lua_State *L, void *data, struct error *err), void *data, struct sandbox_report *report) {
    struct sandbox_state *st = sandbox_state_of(sb);
    struct rule *r = sandbox_rule_at(st, rule);
    if (!r) return no_rule(report);
    struct call c = {.kind = RUN, .st = st, .rule = r, .name = r->name, .limits = limits, .build = build, .data = data};
    bool ok = perform(&c, limits->heap, report);
    sandbox_recheck_run(sb->L, r);
    ok = ok && sandbox_deliver(sb->L, limits->result, read, data, report);
    sandbox_tidy(sb);
    return ok;
}

bool sandbox_describe(struct sandbox *sb, int rule, bool (*read)(lua_State *L, void *data, struct error *err),
                      void *data, struct sandbox_report *report) {
    struct rule *r = sandbox_rule_at(sandbox_state_of(sb), rule);
    if (!r) return no_rule(report);
    struct call c = {.kind = DESCRIBE, .st = sandbox_state_of(sb), .rule = r, .name = r->name};
    bool ok = perform(&c, HEAP_MAX, report) && sandbox_deliver(sb->L, DATA_MAX, read, data, report);
    sandbox_tidy(sb);
    return ok;
}

bool sandbox_data(struct sandbox *sb, const char *name, struct str source,
                  bool (*read)(lua_State *L, void *data, struct error *err), void *data,
                  struct sandbox_report *report) {
    struct call c = {.kind = DATA, .st = sandbox_state_of(sb), .name = name, .source = source};
    bool ok = perform(&c, HEAP_MAX, report) && sandbox_deliver(sb->L, DATA_MAX, read, data, report);
    sandbox_tidy(sb);
    return ok;
}
