#include "script/worker.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sysexits.h>

#include "http/spool.h"
#include "runtime/clock.h"
#include "runtime/config.h"
#include "runtime/log.h"
#include "runtime/loop.h"
#include "runtime/metrics.h"
#include "script/bind_server.h"
#include "script/sched.h"
#include "script/vm.h"
#include "stores/pg.h"

#define DRAIN_LOOK_MS 20
#define LAST_WORD_MS 1000 /* how long idle connections may still bring a request once nothing new is accepted */
#define WELL_LOOK_MS 100
#define SECOND_MS UINT64_C(1000)
#define SWEEP_EVERY_S 300 /* spool files of dead processes */
#define SWEEP_IDLE_S 60

static struct {
    const struct supervisor_worker *told;
    struct vm *vm;
    struct server *server; /* NULL: does not listen */
    uv_signal_t term, quit, interrupt, hup;
    uv_timer_t second, look; /* look: at a drain's progress, or at the stores during an upgrade */
    uint64_t second_due_us, accept_until_ms, drain_until_ms;
    uint32_t lag, lua_bytes, tasks; /* metric slots */
    unsigned seconds;
    bool draining, asked, failed;
} w;

/* ---- a loop and a VM, for workers and commands ---- */

static void fail(const char *what, const struct error *err) {
    log_line(LOG_ERROR, "%s%s%s", what, *what ? ": " : "", err->message);
    log_flush();
    w.failed = true;
}

/* Lua files of another folder are found after the product's own. */
static bool add_folder(struct error *err) {
    const char *folder = config_str("KASMA_EXTRA_LUA_DIR");
    if (!folder || !*folder) return true;
    lua_State *L = vm_state(w.vm);
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "path");
    lua_pushfstring(L, "%s;%s/?.lua", lua_tostring(L, -1), folder);
    lua_setfield(L, -3, "path");
    lua_pop(L, 2);
    return lua_gettop(L) == 0 || error_set(err, ERR_INTERNAL, "package.path was not set");
}

static void on_second(uv_timer_t *timer) {
    uint64_t now = clock_mono_us();
    supervisor_beat();
    double late = now > w.second_due_us ? (double)(now - w.second_due_us) / 1e6 : 0;
    w.second_due_us = now + SECOND_MS * 1000;
    metric_set(w.lag, late);
    metric_set(w.tasks, (double)task_count());
    metric_set(w.lua_bytes, (double)lua_gc(vm_state(w.vm), LUA_GCCOUNT, 0) * 1024);
    metrics_sample_process();
    if (w.server && w.told->index == 0 && ++w.seconds % SWEEP_EVERY_S == 0)
        (void)spool_sweep(config_str("SPOOL_DIR"), SWEEP_IDLE_S);
    (void)timer;
}

static bool begin(struct error *err) {
    w.failed = false;
    if (signal(SIGPIPE, SIG_IGN) == SIG_ERR || !pg_prepare() || !loop_open() ||
        uv_timer_init(loop_get(), &w.second) != 0 || uv_timer_init(loop_get(), &w.look) != 0)
        return error_set(err, ERR_INTERNAL, "the event loop cannot start");
    w.vm = vm_new(err);
    if (!w.vm || !add_folder(err)) return false;
    vm_limit(w.vm, (size_t)config_int("LUA_MEMORY_MB") << 20);
    w.lag = metric_only(metric_gauge("kasma_loop_lag_seconds", "How late the loop came to its timer in the last second",
                                     METRIC_MAX, NULL));
    w.tasks = metric_only(metric_gauge("kasma_tasks", "Coroutines at work", METRIC_SUM, NULL));
    w.lua_bytes =
        metric_only(metric_gauge("kasma_lua_bytes", "Memory of the platform VMs by Lua's count", METRIC_SUM, NULL));
    struct metric *build = metric_gauge("kasma_build_info", "The version that runs", METRIC_MAX, "version");
    metric_set(metric_series(build, KASMA_VERSION), 1);
    w.second_due_us = clock_mono_us() + SECOND_MS * 1000;
    if (uv_timer_start(&w.second, on_second, SECOND_MS, SECOND_MS) != 0)
        return error_set(err, ERR_INTERNAL, "the event loop has no timer");
    return true;
}

static int end(int status) {
    if (w.server) {
        server_close(w.server);
        bind_server_set(NULL);
        w.server = NULL;
        /* Its close callbacks; what else is open does not keep us. */
        int left = uv_run(loop_get(), UV_RUN_NOWAIT);
        (void)left;
    }
    vm_free(w.vm);
    w.vm = NULL;
    log_flush();
    return status;
}

/* ---- graceful end ---- */

static void on_drain(uv_timer_t *timer) {
    uint64_t now = uv_now(loop_get());
    bool late = now >= w.drain_until_ms, talks = false;
    if (w.server && now >= w.accept_until_ms) {
        server_stop_listening(w.server);
        talks = server_connections(w.server) > 0 && now < w.accept_until_ms + LAST_WORD_MS;
        if (!talks) server_stop_accepting(w.server);
    }
    size_t requests = w.server ? server_in_flight(w.server) : 0, tasks = task_count();
    if (!late && (talks || requests + tasks > 0 || now < w.accept_until_ms)) return;
    if (requests + tasks > 0)
        log_line(LOG_WARN, "the grace is over: %zu requests and %zu tasks are cut off", requests, tasks);
    int stopped = uv_timer_stop(timer);
    (void)stopped; /* an initialised timer: cannot fail */
    loop_stop();
}

static void on_stop(uv_signal_t *handle, int number) {
    (void)handle;
    (void)number;
    if (w.draining) return;
    w.draining = true;
    bool serves = w.server && strcmp(w.told->role, "work") != 0;
    uint64_t wait = serves ? (uint64_t)config_int("DRAIN_WAIT") * 1000 : 0;
    w.accept_until_ms = uv_now(loop_get()) + wait;
    w.drain_until_ms = w.accept_until_ms + (uint64_t)config_int("SHUTDOWN_GRACE") * 1000;
    sched_stop(vm_state(w.vm));
    if (uv_timer_start(&w.look, on_drain, 0, DRAIN_LOOK_MS) != 0) loop_stop();
}

/* ---- reload ---- */

/* Calls boot[name]() as a task when the boot module is a table that has it. False: it has not. */
static bool call_boot(const char *name, task_finished *finished) {
    struct error err;
    lua_State *L = vm_state(w.vm);
    if (!vm_require(w.vm, config_str("BOOT"), &err)) return false;
    bool there = lua_istable(L, -1);
    if (there) {
        lua_getfield(L, -1, name);
        lua_remove(L, -2);
        there = lua_isfunction(L, -1);
    }
    if (!there) {
        lua_pop(L, 1);
        return false;
    }
    return task_start(L, 0, NULL, finished, NULL, NULL);
}

static void on_hup(uv_signal_t *handle, int number) {
    (void)handle;
    (void)number;
    struct buf problems = {0};
    int argc = 0;
    char *argv[] = {NULL};
    /* The supervisor has read the same sources and found them good, or we would not have been told. */
    if (!config_load(&argc, argv, &problems)) log_line(LOG_ERROR, "the new settings are refused");
    buf_free(&problems);
    if (!call_boot("reload", task_log_finished)) log_line(LOG_DEBUG, "the boot module has nothing to reload");
}

/* ---- start ---- */

static void serve(void) {
    struct error err = {0};
    if (w.told->socket_count > 0) {
        w.server = bind_server_get();
        if (!w.server) error_set(&err, ERR_MEMORY, "out of memory");
        bool ok = w.server != NULL;
        for (size_t i = 0; ok && i < w.told->socket_count; i++)
            ok = server_listen_fd(w.server, w.told->sockets[i], &err);
        if (!ok) {
            fail("cannot listen", &err);
            loop_stop();
            return;
        }
    }
    if (w.server && w.told->index == 0) (void)spool_sweep(config_str("SPOOL_DIR"), SWEEP_IDLE_S);
    supervisor_tell_ready();
}

static void is_well(void *data, lua_State *L, bool ok) {
    (void)data;
    w.asked = false;
    if (w.draining || !uv_is_active((uv_handle_t *)&w.look)) return;
    if (!ok || !lua_toboolean(L, -1)) return; /* asked again by the timer; the supervisor limits the time */
    int stopped = uv_timer_stop(&w.look);
    (void)stopped;
    serve();
}

static void ask_if_well(uv_timer_t *timer) {
    (void)timer;
    if (w.asked) return;
    w.asked = true;
    if (call_boot("ready", is_well)) return;
    int stopped = uv_timer_stop(&w.look);
    (void)stopped;
    serve();
}

static void booted(void *data, lua_State *L, bool ok) {
    (void)data;
    if (!ok) {
        task_log_error(L, "boot");
        w.failed = true;
        loop_stop();
    } else if (!w.told->upgrading) {
        serve();
    } else if (uv_timer_start(&w.look, ask_if_well, 0, WELL_LOOK_MS) != 0) {
        w.failed = true;
        loop_stop();
    }
}

static bool watch_signal(uv_signal_t *handle, uv_signal_cb fn, int number) {
    if (uv_signal_init(loop_get(), handle) != 0 || uv_signal_start(handle, fn, number) != 0) return false;
    uv_unref((uv_handle_t *)handle);
    return true;
}

/* The boot module is a function of the role, or a table with `start`. */
static bool boot(struct error *err) {
    lua_State *L = vm_state(w.vm);
    if (!vm_require(w.vm, config_str("BOOT"), err)) return false;
    if (lua_istable(L, -1)) {
        lua_getfield(L, -1, "start");
        lua_remove(L, -2);
    }
    if (!lua_isfunction(L, -1))
        return error_set(err, ERR_INVALID, "the boot module %s cannot be started", config_str("BOOT"));
    lua_pushstring(L, w.told->role);
    return task_start(L, 1, NULL, booted, NULL, NULL) || error_set(err, ERR_MEMORY, "out of memory");
}

/* Nobody waits for a job as they wait for an answer. */
static void stand_back(void) {
    if (setpriority(PRIO_PROCESS, 0, (int)config_int("WORK_NICE")) != 0)
        log_line(LOG_WARN, "job workers have the priority of the server: %s", strerror(errno));
}

int worker_run(const struct supervisor_worker *worker) {
    struct error err = {0};
    w.told = worker;
    bool ok =
        begin(&err) && (watch_signal(&w.term, on_stop, SIGTERM) && watch_signal(&w.quit, on_stop, SIGQUIT) &&
                                watch_signal(&w.interrupt, on_stop, SIGINT) && watch_signal(&w.hup, on_hup, SIGHUP)
                            ? true
                            : error_set(&err, ERR_INTERNAL, "the event loop takes no signals"));
    if (ok && strcmp(worker->role, "work") == 0) stand_back();
    if (!ok || !boot(&err)) {
        fail("the worker cannot start", &err);
        return end(EX_SOFTWARE);
    }
    if (!w.failed) loop_run();
    return end(w.failed ? EX_SOFTWARE : 0);
}

/* ---- commands ---- */

static struct {
    int status;
    bool ended;
} command;

static void command_ended(void *data, lua_State *L, bool ok) {
    (void)data;
    command.ended = true;
    command.status = !ok ? 1 : lua_isnumber(L, -1) ? (int)lua_tointeger(L, -1) : 0;
    if (!ok) task_log_error(L, "command");
    loop_stop();
}

int worker_command(const char *function, const char *const *args) {
    struct error err = {0};
    if (!begin(&err) || !vm_start(w.vm, "kasma.cli", function, args, command_ended, NULL, &err)) {
        fail("", &err);
        return end(EX_SOFTWARE);
    }
    /* It may have ended before the loop began. */
    if (!command.ended) loop_run();
    return end(command.status);
}
