/* A VM whose memory ends at the n-th allocation, for every n that a piece of work comes to. Include it after a header
 * that has run_until. */
#ifndef KASMA_TESTS_MEMORY_FIXTURE_H
#define KASMA_TESTS_MEMORY_FIXTURE_H

#include "runtime/log.h"
#include "script/vm.h"
#include "task_outcome.h"

static struct vm *vm;

/* The allocator of the state, and when it says no. */
static struct {
    lua_Alloc real;
    void *data;
    unsigned long left; /* allocations that still succeed; ULONG_MAX: all */
    bool lasting;       /* after that none, else one fails */
    unsigned long refused;
} memory = {.left = (unsigned long)-1};

static void *scarce(void *data, void *block, size_t old, size_t size) {
    (void)data;
    if (size > old && memory.left != (unsigned long)-1) {
        if (memory.left == 0) {
            memory.refused++;
            if (!memory.lasting) memory.left = (unsigned long)-1;
            return NULL;
        }
        memory.left--;
    }
    return memory.real(memory.data, block, old, size);
}

static void worked(void *data, lua_State *L, bool ok) {
    memory.left = (unsigned long)-1;
    task_outcome_note(data, L, ok);
}

static bool no_task(void *data) {
    const size_t *most = data;
    return task_count() <= *most;
}

/* Pushes the function that `text` is, with what all pieces of work begin with. */
static void load(const char *prelude, const char *text) {
    lua_State *L = vm_state(vm);
    struct buf b = {0};
    assert_true(buf_add(&b, str_of(prelude)) && buf_add(&b, str_of(text)));
    if (luaL_loadbuffer(L, b.data, b.len, "=work") != 0) fail_msg("%s", lua_tostring(L, -1));
    buf_free(&b);
}

static void work(const char *prelude, const char *text) {
    struct task_outcome w = {0};
    load(prelude, text);
    assert_true(task_start(vm_state(vm), 0, NULL, worked, &w, NULL));
    assert_true(run_until(task_outcome_over, &w, 30));
    if (!w.ok) fail_msg("%s", w.message);
}

/* Runs `text` once for each allocation that it makes, which then fails, alone or with all that follow. However it
 * ends, it ends; no task is left; and the next who asks for the same gets it. */
static void work_without_memory(const char *prelude, const char *text) {
    lua_State *L = vm_state(vm);
    size_t before = task_count();
    work(prelude, text);
    unsigned long most = 0;
    for (int lasting = 0; lasting < 2; lasting++) {
        for (unsigned long n = 0;; n++) {
            struct task_outcome w = {0};
            load(prelude, text);
            (void)lua_gc(L, LUA_GCCOLLECT, 0); /* or strings of the run before would be found instead of made */
            memory.lasting = lasting;
            memory.refused = 0;
            memory.left = n;
            bool started = task_start(L, 0, NULL, worked, &w, NULL);
            if (started && !run_until(task_outcome_over, &w, 30))
                fail_msg("allocation %lu failed, and it never ended", n);
            memory.left = (unsigned long)-1;
            if (!run_until(no_task, &before, 30)) fail_msg("allocation %lu failed, and a task is left", n);
            assert_int_equal(lua_gettop(L), 0);
            if (memory.refused == 0) {
                if (!w.ok) fail_msg("%s", w.message);
                most = n;
                break;
            }
        }
    }
    work(prelude, text);
    print_message("  %lu allocations\n", most);
}

static void scarce_vm(const luaL_Reg *modules) {
    struct error err = {0};
    vm = vm_new_with(modules, NULL, &err);
    if (!vm) fail_msg("%s", err.message);
    memory.real = lua_getallocf(vm_state(vm), &memory.data);
    lua_setallocf(vm_state(vm), scarce, NULL);
}

static void scarce_vm_free(void) {
    lua_setallocf(vm_state(vm), memory.real, memory.data);
    vm_free(vm);
}

static bool load_settings(void) {
    char name[] = "test", *argv[] = {name, NULL};
    int argc = 1;
    struct buf problems = {0};
    bool loaded = config_load(&argc, argv, &problems);
    if (!loaded) print_message("%.*s\n", (int)problems.len, problems.data);
    buf_free(&problems);
    return loaded;
}

#endif
