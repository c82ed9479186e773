#include "script/worker.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "runtime/clock.h"
#include "runtime/config.h"
#include "runtime/log.h"
#include "runtime/loop.h"
#include "script/bind_server.h"
#include "script/sched.h"
#include "script/vm.h"

#define DRAIN_LOOK_MS 20

static struct {
    struct vm *vm;
    struct server *server; /* NULL: does not listen */
    uv_signal_t term, quit, interrupt, hup;
    uv_timer_t drain;
    uint64_t drain_until_ms;
    bool draining;
} w;

static void on_drain(uv_timer_t *timer) {
    size_t requests = w.server ? server_in_flight(w.server) : 0, tasks = task_count();
    bool late = uv_now(loop_get()) >= w.drain_until_ms;
    if (requests + tasks > 0 && !late) return;
    if (late) log_line(LOG_WARN, "the grace is over: %zu requests and %zu tasks are cut off", requests, tasks);
    uv_timer_stop(timer);
    loop_stop();
}

static void on_stop(uv_signal_t *handle, int number) {
    (void)handle;
    (void)number;
    if (w.draining) return;
    w.draining = true;
    w.drain_until_ms = uv_now(loop_get()) + (uint64_t)config_int("SHUTDOWN_GRACE") * 1000;
    if (w.server) server_stop_accepting(w.server);
    sched_stop(vm_state(w.vm));
    if (uv_timer_start(&w.drain, on_drain, DRAIN_LOOK_MS, DRAIN_LOOK_MS) != 0) loop_stop();
}

/* Keeps the loop alive and lets waiting log lines out. */
static void on_second(uv_timer_t *timer) {
    (void)timer;
    log_flush();
}

static void on_hup(uv_signal_t *handle, int number) {
    (void)handle;
    (void)number;
    struct buf problems = {0};
    int argc = 0;
    char *argv[] = {NULL};
    if (!config_load(&argc, argv, &problems)) log_event(LOG_ERROR, STR("the new configuration is refused"), str_n("", 0));
    buf_free(&problems);
    struct error err;
    if (!vm_run(w.vm, "local ok, rules = pcall(require, 'core.rules') if ok then rules.reload() end", "=reload", &err))
        log_line(LOG_ERROR, "reload: %s", err.message);
}

static bool watch_signal(uv_signal_t *handle, uv_signal_cb fn, int number) {
    if (uv_signal_init(loop_get(), handle) != 0 || uv_signal_start(handle, fn, number) != 0) return false;
    uv_unref((uv_handle_t *)handle);
    return true;
}

/* Lua files of another folder are found after the product's own. */
static bool add_folder(struct vm *vm, struct error *err) {
    const char *folder = config_str("KASMA_EXTRA_LUA_DIR");
    if (!folder || !*folder) return true;
    struct buf text = {0};
    bool ok = buf_printf(&text, "package.path = package.path .. ';' .. [==[%s/?.lua]==]", folder) && buf_byte(&text, '\0');
    ok = ok ? vm_run(vm, text.data, "=path", err) : error_set(err, ERR_MEMORY, "out of memory");
    buf_free(&text);
    return ok;
}

static void booted(void *data, lua_State *L, bool ok) {
    const struct worker_options *o = data;
    struct error err;
    if (!ok) {
        task_log_error(L, "boot");
        exit(70);
    }
    if (o->listen_fd >= 0) {
        w.server = bind_server_get();
        if (!w.server || !server_listen_fd(w.server, o->listen_fd, &err)) {
            log_line(LOG_ERROR, "cannot listen: %s", w.server ? err.message : "out of memory");
            exit(70);
        }
    }
    if (o->ready_fd >= 0) {
        if (write(o->ready_fd, "R", 1) != 1) log_line(LOG_WARN, "nobody waits for this worker");
        if (close(o->ready_fd) != 0) log_line(LOG_WARN, "the readiness pipe did not close");
    }
}

int worker_run(const struct worker_options *o) {
    struct error err;
    if (signal(SIGPIPE, SIG_IGN) == SIG_ERR || !loop_open() || uv_timer_init(loop_get(), &w.drain) != 0 ||
        !watch_signal(&w.term, on_stop, SIGTERM) || !watch_signal(&w.quit, on_stop, SIGQUIT) ||
        !watch_signal(&w.interrupt, on_stop, SIGINT) || !watch_signal(&w.hup, on_hup, SIGHUP)) {
        log_line(LOG_ERROR, "the event loop cannot start");
        return 70;
    }
    w.vm = vm_new(&err);
    const char *const args[] = {o->role, NULL};
    if (!w.vm || !add_folder(w.vm, &err) || !vm_start(w.vm, config_str("BOOT"), "start", args, booted, (void *)(uintptr_t)o, &err)) {
        log_line(LOG_ERROR, "%s", err.message);
        log_flush();
        return 70;
    }
    /* Work that waits for stores is done by tasks; between them the loop may have nothing to wait for. */
    uv_timer_t alive;
    if (uv_timer_init(loop_get(), &alive) != 0 || uv_timer_start(&alive, on_second, 1000, 1000) != 0) return 70;
    loop_run();
    log_flush();
    return 0;
}

static int command_status;

static void command_ended(void *data, lua_State *L, bool ok) {
    (void)data;
    command_status = 1;
    if (ok)
        command_status = lua_isnumber(L, -1) ? (int)lua_tointeger(L, -1) : 0;
    else
        task_log_error(L, "command");
    loop_stop();
}

int worker_command(const char *function, const char *const *args) {
    struct error err;
    if (signal(SIGPIPE, SIG_IGN) == SIG_ERR || !loop_open()) return 70;
    struct vm *vm = vm_new(&err);
    if (!vm || !add_folder(vm, &err)) {
        log_line(LOG_ERROR, "%s", err.message);
        log_flush();
        return 70;
    }
    uv_timer_t alive;
    if (uv_timer_init(loop_get(), &alive) != 0 || uv_timer_start(&alive, on_second, 1000, 1000) != 0) return 70;
    command_status = -1;
    if (!vm_start(vm, "kasma.cli", function, args, command_ended, NULL, &err)) {
        log_line(LOG_ERROR, "%s", err.message);
        log_flush();
        return 70;
    }
    /* It may have ended before the loop began. */
    if (command_status < 0) loop_run();
    log_flush();
    return command_status;
}
