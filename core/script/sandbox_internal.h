/* Shared by the sandbox's own files. */
#ifndef KASMA_SCRIPT_SANDBOX_INTERNAL_H
#define KASMA_SCRIPT_SANDBOX_INTERNAL_H

#include <lauxlib.h>
#include <lua.h>
#include <string.h>

#include "script/sandbox.h"
#include "script/sandbox_heap.h"

#define SANDBOX_TEXT_MAX ((size_t)64 * 1024) /* a string that a function builds, a pattern's subject */
#define SANDBOX_VALUES_MAX 250               /* values that unpack, byte and char take or give */
#define SANDBOX_SORT_MAX 10000
#define SANDBOX_KEYS_MAX 10000
#define SANDBOX_LOG_LINES 20
#define SANDBOX_LOG_LINE 200

struct compiled;
struct rule;

struct sandbox {
    lua_State *L;
    struct heap memory;
    size_t live, peak;                 /* bytes of the state */
    size_t idle;                       /* live bytes when nothing runs */
    size_t heap_limit;                 /* live bytes may not pass this */
    size_t allocated, allocated_limit; /* bytes ever asked for in this run */
    uint64_t used, limit;              /* instructions */
    uint64_t half_us;                  /* wall clock: half of the time is over */
    uint64_t until_us;                 /* thread's clock: all of it is; 0 until half_us has passed */
    uint64_t wall_us;
    unsigned grain;    /* of the count hook now */
    unsigned depth;    /* calls from C back into Lua that are under way */
    size_t piece;      /* largest single allocation of this run */
    int line;          /* where the code was when it was last looked at */
    enum outcome stop; /* OUTCOME_OK while it may go on */
    bool running, broken, collecting;
    bool waits;              /* its runs may wait: pcall lets them */
    size_t piece_max;        /* largest single allocation */
    int runner;              /* registry reference of the protected entry */
    void *context;           /* of input that is made when it is asked for; NULL when nothing runs */
    int desk;                /* registry reference of sources and views, 0: none; see sandbox_input.c */
    int places;              /* that are laid out on it */
    uint64_t serial;         /* of the shot it holds */
    uint64_t wanted;         /* fields that rules have asked for, of the kind of source that keeps any */
    bool soiled;             /* a view is not empty any more */
    const struct rule *rule; /* whose chunk is being run: it says which libraries lib() may give; NULL otherwise */
    unsigned lib_depth;
    unsigned samples, hot[64]; /* how often the hook saw each line, lines that share a place together */
    int hot_line[64];
    struct buf log;
    int log_lines;
};

/* The sandbox of a state: it is the allocator's user data. */
struct sandbox *sandbox_of(lua_State *L);
/* Adds n instructions; raises the stop when they are used up. */
void sandbox_charge(lua_State *L, uint64_t n);
/* Raises the stop when the time is over: for what takes long by its content rather than its size. */
void sandbox_look(lua_State *L);
/* Ends the run with this outcome: raises, does not return. */
int sandbox_stop(lua_State *L, enum outcome why, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* lua_call for functions that call back into rule code. LuaJIT puts no limit on such nesting, and the C stack has one.
 */
void sandbox_call(lua_State *L, int nargs, int nresults);
/* Raises an error when the table at idx is one of ours, which rule code must not change. */
void sandbox_check_writable(lua_State *L, int idx);

/* The text of a value as rule code sees it: no addresses; integers in full. Into out[32] for numbers. */
const char *sandbox_text(lua_State *L, int idx, char number[32], size_t *len);

/* Compiles text (never bytecode) as a chunk that sees the rules' globals, and pushes it; gives what the cache knows of
 * it (sandbox_cache.h), or NULL. Raises what is wrong. */
struct compiled *sandbox_compile(lua_State *L, const char *name, struct str source);
/* Whether lines are noted, and the note of one, by the hook that has just been called for it. */
bool sandbox_is_covering(void);
void sandbox_cover_line(lua_State *L, lua_Debug *ar);
/* The source of a library that the rule whose chunk is being run may use. False: none of that name. */
bool sandbox_find_lib(const struct sandbox *sb, const char *key, struct str *source);
/* Replaces the table on top by plain data: bare schemas resolved, functions as true. May raise. */
void sandbox_make_plain(lua_State *L, int depth);
/* Takes sources and views off the desk; they are made again when they are needed. */
void sandbox_clear_desk(struct sandbox *sb);
/* A table whose metatable is on top is about to be changed by one of our functions. */
void sandbox_note_write(lua_State *L);
/* Fills the raw table at `idx` with what a view of it shows; other tables are left alone. May raise. */
void sandbox_fill_view(lua_State *L, int idx);
/* Whether the function at `idx` is a schema that stands bare, without options. */
bool sandbox_is_bare_schema(lua_State *L, int idx);
/* Checks the manifest on top and reads it; raises what is wrong. */
void sandbox_read_manifest(lua_State *L, struct sandbox_manifest *m);
/* The name of the list that is nearest to `name`, or NULL when none is near. */
const char *sandbox_nearest(const char *name, const char *const *list, size_t count);
/* Adds lib to the table on top. */
void sandbox_open_lib(lua_State *L);
/* Adds lower, upper and fold to the table on top. */
void sandbox_open_case(lua_State *L);

/* Adds the tables of capabilities to the globals at index 1. */
void sandbox_open_capabilities(lua_State *L);
/* Does so when the global name is one of theirs, and pushes it. For states whose runs never wait; others have them. */
bool sandbox_open_capability(lua_State *L, const char *name);
/* Pushes the global name of a capability: the group's, when it is in one. */
void sandbox_push_capability_word(lua_State *L, size_t i);
/* Pushes the function of this text, without lines, so that errors and counters name those of the rule. */
void sandbox_push_trusted(lua_State *L, const char *text);
/* Whether the value is what a capability gave as a secret; its name. */
const char *sandbox_secret(lua_State *L, int idx);
/* As sandbox_check, taking its cost off *left; secrets pass when they may. */
bool sandbox_check_some(lua_State *L, int idx, bool secrets, size_t *left, struct error *err);
/* Replaces the table on top by a read-only view of it. `library` is "" for the globals. */
void sandbox_freeze(lua_State *L, const char *library);

/* Clears the stack and pushes the globals of rule code. */
void sandbox_push_globals(lua_State *L);
/* Each pushes a table of functions. */
void sandbox_open_string(lua_State *L);
void sandbox_open_table(lua_State *L);
void sandbox_open_money(lua_State *L);
void sandbox_open_set(lua_State *L);
void sandbox_open_schema(lua_State *L); /* an empty one: its members are made when they are named */
/* Pushes a member of schema. False: there is none of that name. */
bool sandbox_push_schema(lua_State *L, const char *name);
/* Their names, from 0; NULL after the last. */
const char *sandbox_schema_name(size_t i);
void sandbox_open_text(lua_State *L);
void sandbox_open_dt(lua_State *L);
/* Adds pcall, pairs, tostring, tonumber, unpack to the table on top. */
void sandbox_open_base(lua_State *L);
/* log(...) */
int sandbox_log_call(lua_State *L);
/* find, match, gmatch, gsub, added to the table on top. */
void sandbox_open_patterns(lua_State *L);

/* Checks the value on top against the schema at `schema` (an index): the value is replaced by what the rule will see,
 * with defaults. False: `message` says which field and why; the value stays. May raise. */
bool sandbox_schema_check(lua_State *L, int schema, char *message, size_t size);

#endif
