/* A redis-server process of a test's own on a free port, and waiting for things to happen on the loop. */
#ifndef KASMA_TESTS_REDIS_SERVER_H
#define KASMA_TESTS_REDIS_SERVER_H

#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "free_port.h"
#include "runtime/loop.h"

struct redis_server {
    int port;
    pid_t pid; /* 0: not running */
    char url[64];
    const char *password; /* NULL: none */
    const char *clock;    /* how its clock differs: "<seconds ahead> <rate>"; NULL: it does not */
};

/* In the child: another wall clock from the next exec on (tests/unit/other_clock.c, which lies beside this program). */
static inline bool redis_server_clock(const char *clock) {
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 32);
    while (n > 0 && path[n - 1] != '/') n--;
    if (n <= 0) return false;
    (void)snprintf(path + n, 32, "libother_clock.so");
    return setenv("LD_PRELOAD", path, 1) == 0 && setenv("OTHER_CLOCK", clock, 1) == 0;
}

/* Starts it, on the port it had before if it had one. It ends with this process. */
static inline void redis_server_start(struct redis_server *s) {
    if (!s->port) s->port = free_port();
    (void)snprintf(s->url, sizeof s->url, "redis://%s%s%s127.0.0.1:%d", s->password ? ":" : "",
                   s->password ? s->password : "", s->password ? "@" : "", s->port);
    char port[16];
    (void)snprintf(port, sizeof port, "%d", s->port);
    pid_t parent = getpid();
    s->pid = fork();
    if (s->pid == 0) {
        int quiet = open("/dev/null", O_RDWR);
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent) _exit(124);
        if (s->clock && !redis_server_clock(s->clock)) _exit(125);
        if (quiet < 0 || dup2(quiet, 0) < 0 || dup2(quiet, 1) < 0 || dup2(quiet, 2) < 0) _exit(126);
        execlp("redis-server", "redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly",
               "no", "--dir", "/", "--requirepass", s->password ? s->password : "", (char *)NULL);
        _exit(127);
    }
}

static inline void redis_server_kill(struct redis_server *s) {
    if (!s->pid) return;
    (void)kill(s->pid, SIGKILL);
    (void)waitpid(s->pid, NULL, 0);
    s->pid = 0;
}

/* Stops a child. When this comes back, it does nothing more: a signal alone may find it in the middle of an answer. */
static inline bool freeze(pid_t pid) {
    int status;
    return kill(pid, SIGSTOP) == 0 && waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status);
}

static inline bool thaw(pid_t pid) {
    return kill(pid, SIGCONT) == 0;
}

static inline void wait_tick(uv_timer_t *timer) {
    (void)timer;
}

/* Runs the loop until `check(data)`; false when it did not come true within `seconds`. */
static inline bool run_until(bool (*check)(void *data), void *data, unsigned seconds) {
    static uv_timer_t tick;
    static bool made;
    if (!made) made = uv_timer_init(loop_get(), &tick) == 0;
    (void)uv_timer_start(&tick, wait_tick, 5, 5);
    uint64_t end = uv_hrtime() + (uint64_t)seconds * 1000000000U;
    bool met;
    while (!(met = check(data)) && uv_hrtime() < end) (void)uv_run(loop_get(), UV_RUN_ONCE);
    (void)uv_timer_stop(&tick);
    return met;
}

/* Lets closing handles finish, so that leak checkers see an empty house. */
static inline void run_closed(void) {
    for (int i = 0; i < 5; i++) (void)uv_run(loop_get(), UV_RUN_NOWAIT);
}

#endif
