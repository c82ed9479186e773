/* The capabilities as rule code sees them: functions in read-only tables.
 *
 * In a state whose runs may wait, each is a Lua function of ours around two C functions, because a C function that has
 * yielded can do nothing more: `wait` checks the call and yields its arguments, `settle` gets what the host answered
 * and returns it or raises it, at the line of the rule. Those functions have no lines of their own, so that errors and
 * counters name the rule's. In all other states a capability is one C function that says why it is of no use there. */
#include <lualib.h>
#include <stdio.h>

#include "script/sandbox_run.h"

#define CALL_COST 100 /* instructions; the hook's count begins anew when a run goes on */
#define ARGS_MAX ((size_t)384 * 1024)
#define SECRET_NAME_MAX 64

static struct {
    char name[40];
    bool takes_secrets, gives_secret;
} known[SANDBOX_CAPABILITIES_MAX];
static size_t count;

static bool name_ok(const char *name) {
    size_t n = strlen(name), dots = 0;
    if (n == 0 || n >= sizeof known[0].name || name[0] == '.' || name[n - 1] == '.') return false;
    for (size_t i = 0; i < n; i++) {
        dots += name[i] == '.';
        if (name[i] != '.' && name[i] != '_' && (name[i] < 'a' || name[i] > 'z')) return false;
    }
    return dots <= 1;
}

bool sandbox_declare(const char *name, bool takes_secrets, bool gives_secret, struct error *err) {
    if (!name_ok(name)) return error_set(err, ERR_INVALID, "'%s' cannot be the name of a capability", name);
    size_t i = 0;
    while (i < count && strcmp(known[i].name, name) != 0) i++;
    if (i == SANDBOX_CAPABILITIES_MAX) return error_set(err, ERR_LIMIT, "too many capabilities");
    if (i == count) {
        memcpy(known[i].name, name, strlen(name) + 1);
        count++;
    }
    known[i].takes_secrets = takes_secrets;
    known[i].gives_secret = gives_secret;
    return true;
}

size_t sandbox_declared(void) {
    return count;
}

/* ---- secrets ---- */

struct secret {
    const void *tag; /* &tag: no other userdata is made in a sandbox, and this says so */
    char name[SECRET_NAME_MAX];
};

static const char tag;

const char *sandbox_secret(lua_State *L, int idx) {
    if (lua_type(L, idx) != LUA_TUSERDATA || lua_objlen(L, idx) != sizeof(struct secret)) return NULL;
    const struct secret *s = lua_touserdata(L, idx);
    return s->tag == &tag ? s->name : NULL;
}

static void push_secret(lua_State *L, const char *name, size_t len) {
    if (len >= SECRET_NAME_MAX || strlen(name) != len) luaL_error(L, "the secret's name is too long");
    struct secret *s = lua_newuserdata(L, sizeof *s);
    *s = (struct secret){.tag = &tag};
    memcpy(s->name, name, len + 1);
}

/* ---- a call ---- */

/* The call ends in an error, which `settle` raises: it knows the rule's line. `why` may lie on the stack, and stays
 * there while it is read: making a string may set the collector to work. */
static int refuse(lua_State *L, const char *name, const char *why) {
    lua_pushboolean(L, 0);
    lua_pushfstring(L, "%s %s", name, why);
    return 2;
}

static int l_wait(lua_State *L) {
    struct sandbox *sb = sandbox_of(L);
    struct sandbox_state *st = sandbox_state_of(sb);
    size_t i = (size_t)lua_tointeger(L, 1), left = ARGS_MAX;
    const char *name = known[i].name;
    sandbox_charge(L, CALL_COST);
    if (!st->thread) return refuse(L, name, "may be called in the functions of a rule, not while its file is loaded");
    if (!lua_isyieldable(L)) return refuse(L, name, "may wait, which is not possible inside table.sort or string.gsub");
    for (int arg = 2; arg <= lua_gettop(L); arg++) {
        struct error err = {0};
        if (sandbox_check_some(L, arg, known[i].takes_secrets, &left, &err)) continue;
        lua_pushfstring(L, "cannot take argument %d: %s", arg - 1, err.message);
        return refuse(L, name, lua_tostring(L, -1));
    }
    sandbox_note_place(L, 1);
    st->called = i;
    return lua_yield(L, lua_gettop(L) - 1);
}

/* settle(true, results...) or settle(false, message) */
static int l_settle(lua_State *L) {
    if (sandbox_of(L)->stop != OUTCOME_OK) return lua_error(L);
    if (!lua_toboolean(L, 1)) return luaL_error(L, "%s", lua_tostring(L, 2));
    return lua_gettop(L) - 1;
}

static int l_no_use(lua_State *L) {
    return luaL_error(L, "'%s' is only for route and workflow rules",
                      known[(size_t)lua_tointeger(L, lua_upvalueindex(1))].name);
}

/* What the host answers: its values on the stack of the protected call are moved to the run's thread. */
int sandbox_wait_push(lua_State *L, struct call *c) {
    struct sandbox_state *st = c->st;
    struct error err = {0};
    bool given = false;
    luaL_checkstack(L, 8, "no room");
    lua_pushboolean(L, 1);
    if (!c->refusal) given = c->build(L, c->data, &err);
    if (!given) {
        lua_settop(L, 0);
        lua_pushboolean(L, 0);
        if (c->refusal) {
            lua_pushstring(L, c->refusal);
        } else {
            lua_pushfstring(L, "%s: %s", known[st->called].name, err.message);
        }
    } else if (known[st->called].gives_secret && lua_type(L, 2) == LUA_TSTRING) {
        size_t len;
        const char *name = lua_tolstring(L, 2, &len);
        push_secret(L, name, len);
        lua_replace(L, 2);
    }
    int n = lua_gettop(L);
    lua_settop(st->thread, 0);
    if (!lua_checkstack(st->thread, n)) return luaL_error(L, "too many values");
    lua_xmove(L, st->thread, n);
    return 0;
}

struct sandbox_call sandbox_wait_call(struct sandbox *sb) {
    struct sandbox_state *st = sandbox_state_of(sb);
    return (struct sandbox_call){.name = known[st->called].name, .L = st->thread, .count = lua_gettop(st->thread)};
}

/* ---- the tables ---- */

/* string.dump with its second argument is what leaves the lines out. */
void sandbox_push_trusted(lua_State *L, const char *text) {
    int top = lua_gettop(L);
    lua_pushcfunction(L, luaopen_string);
    lua_call(L, 0, 1);
    lua_getfield(L, -1, "dump");
    if (luaL_loadbufferx(L, text, strlen(text), "=kasma", "t") != 0) lua_error(L);
    lua_pushboolean(L, 1);
    lua_call(L, 2, 1);
    size_t len;
    const char *bytes = lua_tolstring(L, -1, &len);
    if (luaL_loadbufferx(L, bytes, len, "=kasma", "b") != 0) lua_error(L);
    lua_replace(L, top + 1);
    lua_settop(L, top + 1);
}

static void push_function(lua_State *L, size_t i, int maker) {
    if (maker) {
        lua_pushvalue(L, maker);
        lua_pushinteger(L, (lua_Integer)i);
        lua_call(L, 1, 1);
    } else {
        lua_pushinteger(L, (lua_Integer)i);
        lua_pushcclosure(L, l_no_use, 1);
    }
}

/* The table that the name's first word names, in the globals at index 1; it is made when there is none. */
static void push_group(lua_State *L, const char *name, size_t len) {
    lua_pushlstring(L, name, len);
    lua_rawget(L, 1);
    if (!lua_isnil(L, -1)) return;
    lua_pop(L, 1);
    lua_newtable(L);
    lua_pushlstring(L, name, len);
    lua_pushvalue(L, -2);
    lua_rawset(L, 1);
}

static bool first_of_group(size_t i, size_t len) {
    for (size_t k = 0; k < i; k++)
        if (strncmp(known[k].name, known[i].name, len + 1) == 0) return false;
    return true;
}

void sandbox_open_capabilities(lua_State *L) {
    int top = lua_gettop(L), maker = 0;
    if (sandbox_of(L)->waits) {
        sandbox_push_trusted(L, "local wait, settle = ...\n"
                                "return function(i) return function(...) return settle(wait(i, ...)) end end");
        lua_pushcfunction(L, l_wait);
        lua_pushcfunction(L, l_settle);
        lua_call(L, 2, 1);
        maker = top + 1;
    }
    for (size_t i = 0; i < count; i++) {
        const char *dot = strchr(known[i].name, '.');
        size_t len = dot ? (size_t)(dot - known[i].name) : 0;
        if (dot) push_group(L, known[i].name, len);
        push_function(L, i, maker);
        lua_setfield(L, dot ? -2 : 1, dot ? dot + 1 : known[i].name);
        if (dot) lua_pop(L, 1);
    }
    for (size_t i = 0; i < count; i++) {
        const char *dot = strchr(known[i].name, '.');
        size_t len = dot ? (size_t)(dot - known[i].name) : 0;
        if (!dot || !first_of_group(i, len)) continue;
        char group[sizeof known[i].name];
        memcpy(group, known[i].name, len);
        group[len] = '\0';
        push_group(L, group, len);
        sandbox_freeze(L, group);
        lua_setfield(L, 1, group);
    }
    lua_settop(L, top);
}

void sandbox_push_capability_word(lua_State *L, size_t i) {
    lua_pushlstring(L, known[i].name, strcspn(known[i].name, "."));
}

bool sandbox_open_capability(lua_State *L, const char *name) {
    size_t i = 0, len = strlen(name);
    while (i < count && (strcspn(known[i].name, ".") != len || strncmp(known[i].name, name, len) != 0)) i++;
    if (i == count || sandbox_of(L)->waits) return false;
    sandbox_open_capabilities(L);
    lua_pushstring(L, name);
    lua_rawget(L, 1);
    return !lua_isnil(L, -1);
}
