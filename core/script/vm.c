#include "script/vm.h"

#include <limits.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "runtime/log.h"
#include "runtime/loop.h"

struct vm {
    lua_State *L;
    lua_Alloc alloc; /* LuaJIT's own, which does the work */
    void *alloc_data;
    size_t used, limit; /* bytes; limit 0: none */
    size_t ceiling;     /* limit, or more while what was refused is being cleared away */
    uint64_t turn;      /* of the task that asked last */
    size_t before;      /* what was held when its turn began */
    bool hooked;        /* the next instruction of Lua looks whether the task that is running must end */
    bool told;          /* a task was ended and what it held is not cleared away yet */
    struct loop_hook clear;
};

/* ---- memory ----
 * A greedy task must not take the machine's memory, and the process with it. So the state has a bound. Refusing in the
 * allocator is no way: LuaJIT does not survive it everywhere (where a trace is left, it ends the process). So what is
 * asked for is granted, and whoever crosses the bound is stopped by a hook at the next instruction. Compiled code looks
 * at no hook before the collector makes it leave its trace, so the collector is driven hard meanwhile. What is held may
 * so pass the bound by as much as one block, at most LuaJIT's own limits of a string and of a table.
 *
 * What the task held is garbage then and still counted: the bound is raised a little for whoever tells of the failure,
 * and the turn of the loop ends with a whole collection, after which the bound is what it was. Only a running task is
 * stopped: an error on the C side has nowhere to go. */
#define STEPS 16 /* the ceiling rises by limit / STEPS above what is held, but not beyond RAISED_MAX limits */
#define RAISED_MAX 4
#define INNOCENT 4096        /* who has added less than limit / INNOCENT in his turn is let go */
#define NEXT_LOOK 64         /* and looked at again when limit / NEXT_LOOK more is held */
#define STEP_MUL 200         /* LuaJIT's own */
#define STEP_MUL_HARD 100000 /* a megabyte of marking for each kilobyte that is asked for */

static char vm_key; /* registry[&vm_key] = the struct vm, for the hook */

static void note_bound(struct vm *vm) {
    if (!vm->told)
        log_line(LOG_ERROR, "the memory of Lua is at its bound of %zu MiB (LUA_MEMORY_MB): a task is ended",
                 vm->limit >> 20);
    vm->told = true;
    size_t next = (vm->used > vm->ceiling ? vm->used : vm->ceiling) + vm->limit / STEPS;
    vm->ceiling = next < RAISED_MAX * vm->limit ? next : RAISED_MAX * vm->limit;
    loop_at_turn_end(&vm->clear);
}

static void on_hook(lua_State *L, lua_Debug *ar) {
    (void)ar;
    lua_pushlightuserdata(L, &vm_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    struct vm *vm = lua_touserdata(L, -1);
    lua_pop(L, 1);
    if (!task_is_running()) return;
    lua_sethook(L, NULL, 0, 0);
    vm->hooked = false;
    if (vm->used <= vm->ceiling) return;
    size_t grown = vm->used > vm->before ? vm->used - vm->before : 0;
    /* Garbage is nobody's fault. Who lives so near the bound that each breath would be a collection is ended too. */
    (void)lua_gc(L, LUA_GCCOLLECT, 0);
    if (vm->used <= vm->limit / 8 * 7) return;
    /* Nor is a task at fault that only came by while another holds too much, as those that keep a queue going do. */
    if (grown < vm->limit / INNOCENT && vm->used < vm->limit / 4 * 5) {
        vm->ceiling = vm->used + vm->limit / NEXT_LOOK;
        loop_at_turn_end(&vm->clear);
        return;
    }
    note_bound(vm);
    lua_pushliteral(L, "not enough memory");
    lua_error(L);
}

static void *bounded(void *data, void *block, size_t old_size, size_t size) {
    struct vm *vm = data;
    uint64_t turn = task_turns();
    if (turn != vm->turn) {
        vm->turn = turn;
        vm->before = vm->used;
    }
    bool over = size > old_size && vm->limit && vm->used + (size - old_size) > vm->ceiling;
    if (over && !vm->hooked && task_is_running()) {
        vm->hooked = true;
        lua_sethook(vm->L, on_hook, LUA_MASKCOUNT, 1);
        /* Both only set a number. */
        (void)lua_gc(vm->L, LUA_GCSETSTEPMUL, STEP_MUL_HARD);
        (void)lua_gc(vm->L, LUA_GCRESTART, 0);
        loop_at_turn_end(&vm->clear);
    }
    void *got = vm->alloc(vm->alloc_data, block, old_size, size);
    if (got || size == 0) vm->used += size - old_size;
    return got;
}

static int collect(lua_State *L) {
    (void)lua_gc(L, LUA_GCCOLLECT, 0);
    return 0;
}

static void clear(void *data) {
    struct vm *vm = data;
    if (vm->hooked) lua_sethook(vm->L, NULL, 0, 0);
    vm->hooked = false;
    (void)lua_gc(vm->L, LUA_GCSETSTEPMUL, STEP_MUL);
    if (vm->told && lua_cpcall(vm->L, collect, NULL) != 0) lua_pop(vm->L, 1); /* a finaliser's error: nobody waits */
    /* Where others hold so much still, a look at each turn would be a collection each. */
    if (vm->told || vm->used < vm->limit) vm->ceiling = vm->limit;
    vm->told = false;
}

static void count_memory(struct vm *vm) {
    vm->alloc = lua_getallocf(vm->L, &vm->alloc_data);
    vm->used = (size_t)lua_gc(vm->L, LUA_GCCOUNT, 0) * 1024 + (size_t)lua_gc(vm->L, LUA_GCCOUNTB, 0);
    lua_pushlightuserdata(vm->L, &vm_key);
    lua_pushlightuserdata(vm->L, vm);
    lua_rawset(vm->L, LUA_REGISTRYINDEX);
    vm->clear = (struct loop_hook){.fn = clear, .data = vm};
    lua_setallocf(vm->L, bounded, vm);
}

void vm_limit(struct vm *vm, size_t bytes) {
    vm->limit = vm->ceiling = bytes;
}

size_t vm_memory(const struct vm *vm) {
    return vm->used;
}

/* Reached only when memory ends outside of every protected call: nothing can be unwound any more. */
static int panic(lua_State *L) {
    const char *text = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "(no message)";
    log_line(LOG_ERROR, "Lua panic: %s", text);
    log_flush();
    return 0; /* LuaJIT then calls exit */
}

static bool is_dir(const char *path) {
    return access(path, R_OK | X_OK) == 0;
}

bool vm_find_dir(const char *wanted, const char *name, char *out) {
    int n;
    if (wanted && *wanted) {
        n = snprintf(out, PATH_MAX, "%s", wanted);
        return n > 0 && n < PATH_MAX && is_dir(out);
    }
    char exe[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (len > 0) {
        exe[len] = '\0';
        char *slash = strrchr(exe, '/');
        if (slash) *slash = '\0';
        n = snprintf(out, PATH_MAX, "%s/../share/kasma/%s", exe, name);
        if (n > 0 && n < PATH_MAX && is_dir(out)) return true;
    }
    n = snprintf(out, PATH_MAX, "%s/%s", KASMA_SOURCE_DIR, name);
    return n > 0 && n < PATH_MAX && is_dir(out);
}

/* When the collector begins a new cycle. By its own rule it lets the heap double, which for a worker whose modules,
 * routes and schemas are a few megabytes means to walk over all of them again every thousand requests. So it may always
 * gather ROOM_KIB of garbage, and a larger heap as much again as it has. A userdata that nobody holds is finalised once
 * a cycle, at its end, when what is left is what lives: that is when the rule is applied, and the next one is left. */
#define ROOM_KIB 16384

static int pace(lua_State *L) {
    int live = lua_gc(L, LUA_GCCOUNT, 0) + 1;
    int room = live > ROOM_KIB ? live : ROOM_KIB;
    int percent = lua_gc(L, LUA_GCSETPAUSE, (int)(100 + 100 * (int64_t)room / live));
    (void)percent; /* what it was */
    lua_newuserdata(L, 1);
    if (lua_getmetatable(L, 1)) lua_setmetatable(L, -2);
    return 0;
}

static void keep_pace(lua_State *L) {
    lua_newuserdata(L, 1);
    lua_createtable(L, 0, 1);
    lua_pushcfunction(L, pace);
    lua_setfield(L, -2, "__gc");
    lua_setmetatable(L, -2);
    lua_pop(L, 1);
}

struct setup {
    const luaL_Reg *modules;
    const char *lua_dir;
};

static int set_up(lua_State *L) {
    const struct setup *s = lua_touserdata(L, 1);
    luaL_openlibs(L);
    keep_pace(L);
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "path");
    const char *stock = lua_tostring(L, -1);
    lua_pushfstring(L, "%s/?.lua;%s/?/init.lua;%s", s->lua_dir, s->lua_dir, stock ? stock : "");
    lua_setfield(L, -3, "path");
    lua_pop(L, 1);
    lua_getfield(L, -1, "preload");
    for (const luaL_Reg *m = s->modules; m->name; m++) {
        lua_pushcfunction(L, m->func);
        lua_setfield(L, -2, m->name);
    }
    return 0;
}

struct vm *vm_new_with(const luaL_Reg *modules, const char *lua_dir, struct error *err) {
    char dir[PATH_MAX];
    if (!vm_find_dir(lua_dir, "lua", dir)) {
        error_set(err, ERR_INVALID, "no folder of Lua files at %s",
                  lua_dir && *lua_dir ? lua_dir : KASMA_SOURCE_DIR "/lua");
        return NULL;
    }
    struct vm *vm = calloc(1, sizeof *vm);
    lua_State *L = vm ? luaL_newstate() : NULL;
    if (!L) {
        free(vm);
        error_set(err, ERR_MEMORY, "no memory for a Lua state");
        return NULL;
    }
    vm->L = L;
    count_memory(vm);
    lua_atpanic(L, panic);
    struct setup s = {.modules = modules, .lua_dir = dir};
    if (lua_cpcall(L, set_up, &s) != 0) {
        const char *text = lua_tostring(L, -1);
        error_set(err, ERR_INTERNAL, "the Lua state was not set up: %s", text ? text : "no message");
        vm_free(vm);
        return NULL;
    }
    return vm;
}

void vm_free(struct vm *vm) {
    if (!vm) return;
    task_close(vm->L);
    loop_forget(&vm->clear);
    lua_setallocf(vm->L, vm->alloc, vm->alloc_data); /* LuaJIT knows by it that the heap is its own to give back */
    lua_close(vm->L);
    free(vm);
}

lua_State *vm_state(struct vm *vm) {
    return vm->L;
}

/* Message handler: logs the traceback while the stack still stands, hands the error on. */
static int log_trace(lua_State *L) {
    task_log_error(L, "Lua error");
    return 1;
}

static bool fail(lua_State *L, struct error *err) {
    const char *text = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : NULL;
    error_set(err, ERR_INTERNAL, "%s", text ? text : "a Lua error that is no text");
    lua_pop(L, 1);
    return false;
}

/* Calls the function with nargs below the top, keeps one result. */
static bool call(lua_State *L, int nargs, struct error *err) {
    int handler = lua_gettop(L) - nargs;
    lua_pushcfunction(L, log_trace);
    lua_insert(L, handler);
    int rc = lua_pcall(L, nargs, 1, handler);
    lua_remove(L, handler);
    return rc == 0 || fail(L, err);
}

bool vm_require(struct vm *vm, const char *module, struct error *err) {
    lua_getglobal(vm->L, "require");
    lua_pushstring(vm->L, module);
    return call(vm->L, 1, err);
}

bool vm_run(struct vm *vm, const char *text, const char *name, struct error *err) {
    if (luaL_loadbuffer(vm->L, text, strlen(text), name) != 0) return fail(vm->L, err);
    if (!call(vm->L, 0, err)) return false;
    lua_pop(vm->L, 1);
    return true;
}

bool vm_start(struct vm *vm, const char *module, const char *function, const char *const *args, task_finished *finished,
              void *data, struct error *err) {
    lua_State *L = vm->L;
    if (!vm_require(vm, module, err)) return false;
    if (lua_istable(L, -1)) lua_getfield(L, -1, function);
    if (!lua_isfunction(L, -1)) {
        lua_settop(L, 0);
        return error_set(err, ERR_INVALID, "module %s has no function %s", module, function);
    }
    lua_remove(L, -2);
    int nargs = 0;
    for (; args && args[nargs]; nargs++) {
        if (!lua_checkstack(L, 2)) {
            lua_settop(L, 0);
            return error_set(err, ERR_LIMIT, "too many arguments");
        }
        lua_pushstring(L, args[nargs]);
    }
    if (!task_start(L, nargs, NULL, finished ? finished : task_log_finished, data, NULL))
        return error_set(err, ERR_MEMORY, "no memory for a task");
    return true;
}
