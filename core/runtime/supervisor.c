#include "runtime/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/clock.h"
#include "runtime/log.h"
#include "runtime/metrics.h"
#include "runtime/notify.h"
#include "runtime/turn_away.h"

#define GIVE_UP_AFTER 3      /* starts that failed before any worker was ever ready */
#define GOOD_RUN_US 10000000 /* a worker that ran so long is started again at once */
#define BACKOFF_FIRST_US 100000
#define BACKOFF_MAX_US 5000000
#define TELL_US 50000         /* how often connections that were turned away are looked at */
#define KILL_AFTER_US 2000000 /* past the grace */

struct slot {
    pid_t pid;  /* 0: not running */
    pid_t died; /* the last one here that was ready and then ended by itself; 0: none */
    bool ready;
    bool broken;       /* it ended before it was ready: nobody knows whether the next one will load */
    unsigned failures; /* quick ends in a row */
    uint64_t started_us, start_at_us;
};

/* What workers and supervisor share, made before the first fork. */
struct shared {
    _Atomic uint64_t beat_us[LISTEN_MAX];
};

enum phase { SERVING, DRAINING };

static struct supervisor {
    const struct supervisor_plan *plan;
    struct slot *slots;
    unsigned count;
    struct shared *shared;
    int tell[2];    /* workers write their index when they are ready */
    int signals;    /* signalfd */
    int upgrade_fd; /* the new binary's word; -1: no upgrade under way */
    pid_t upgrade_pid;
    uint64_t upgrade_until_us, begun_us, kill_at_us, watchdog_next_us;
    enum phase phase;
    bool announced, failed;
    unsigned failed_starts;
    uint32_t restarts; /* metric slot */
} sup;

/* In a worker: its own slot. */
static int my_index = -1;

void supervisor_tell_ready(void) {
    if (my_index < 0) return;
    uint16_t index = (uint16_t)my_index;
    ssize_t n;
    do n = write(sup.tell[1], &index, sizeof index);
    while (n < 0 && errno == EINTR);
    /* A supervisor that is gone ends this process by its death signal. */
}

int64_t supervisor_predecessor(void) {
    return my_index < 0 ? 0 : sup.slots[my_index].died;
}

void supervisor_beat(void) {
    if (my_index >= 0) atomic_store_explicit(&sup.shared->beat_us[my_index], clock_mono_us(), memory_order_relaxed);
}

static const char *role_of(unsigned index) {
    return index < sup.plan->servers ? "serve" : "work";
}

static void shut(int *fd) {
    if (*fd >= 0 && close(*fd) != 0) log_line(LOG_WARN, "close: %s", strerror(errno));
    *fd = -1;
}

static bool block_signals(sigset_t *set) {
    static const int ours[] = {SIGTERM, SIGQUIT, SIGINT, SIGHUP, SIGUSR2, SIGCHLD};
    bool ok = sigemptyset(set) == 0;
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++) ok = ok && sigaddset(set, ours[i]) == 0;
    return ok && sigprocmask(SIG_BLOCK, set, NULL) == 0;
}

static void restore_signals(void) {
    sigset_t none;
    bool ok = sigemptyset(&none) == 0 && sigprocmask(SIG_SETMASK, &none, NULL) == 0;
    if (!ok) _exit(1);
}

/* The child's part of starting a worker. Never returns. */
static void become_worker(unsigned index, pid_t parent) {
    /* Asked first, so that a parent that dies from here on takes us along. */
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) != 0 || getppid() != parent) _exit(1);
    restore_signals();
    my_index = (int)index;
    shut(&sup.signals);
    shut(&sup.tell[0]);
    shut(&sup.upgrade_fd);
    (void)turn_away_close(UINT64_MAX); /* the parent's to wait for */
    int mine[LISTEN_MAX];
    bool serves = index < sup.plan->servers;
    struct listen_set *all = sup.plan->sockets;
    size_t n = serves ? listen_share(all, index, sup.plan->servers, mine) : 0;
    int work_socket = sup.plan->work_socket;
    if (serves)
        shut(&work_socket);
    else if (work_socket >= 0)
        mine[n++] = work_socket;
    bool upgrading = all->ready_fd >= 0;
    shut(&all->ready_fd);
    for (size_t i = 0; i < all->count; i++) {
        bool keep = false;
        for (size_t k = 0; k < n; k++) keep = keep || mine[k] == all->fd[i];
        if (!keep) shut(&all->fd[i]);
    }
    metrics_attach(index);
    supervisor_beat();
    struct supervisor_worker w = {
        .index = index, .role = role_of(index), .sockets = mine, .socket_count = n, .upgrading = upgrading};
    int status = sup.plan->run(&w);
    log_flush();
    exit(status);
}

static void start_worker(unsigned index) {
    struct slot *s = &sup.slots[index];
    pid_t parent = getpid();
    log_flush(); /* or the child would write our lines again */
    atomic_store_explicit(&sup.shared->beat_us[index], clock_mono_us(), memory_order_relaxed);
    pid_t pid = fork();
    if (pid == 0) become_worker(index, parent);
    s->started_us = clock_mono_us();
    s->ready = false;
    if (pid > 0) {
        s->pid = pid;
        s->start_at_us = 0;
    } else {
        log_line(LOG_ERROR, "cannot start a worker: %s", strerror(errno));
        s->start_at_us = s->started_us + BACKOFF_MAX_US;
    }
}

static void signal_workers(int number) {
    for (unsigned i = 0; i < sup.count; i++)
        if (sup.slots[i].pid > 0 && kill(sup.slots[i].pid, number) != 0 && errno != ESRCH)
            log_line(LOG_WARN, "cannot signal worker %u: %s", i, strerror(errno));
}

static void drain(const char *why) {
    if (sup.phase == DRAINING) {
        /* Asked twice: at once. */
        signal_workers(SIGKILL);
        return;
    }
    sup.phase = DRAINING;
    /* An upgrade that is not done yet ends with us: nobody would know of the new process. */
    if (sup.upgrade_fd >= 0) {
        shut(&sup.upgrade_fd);
        if (sup.upgrade_pid > 0 && kill(sup.upgrade_pid, SIGTERM) != 0) log_line(LOG_WARN, "kill: %s", strerror(errno));
        sup.upgrade_pid = 0;
    }
    sup.kill_at_us = clock_mono_us() + (sup.plan->drain_ms + sup.plan->grace_ms) * 1000 + KILL_AFTER_US;
    notify_send("STOPPING=1\nSTATUS=draining");
    log_line(LOG_INFO, "%s: finishing what runs", why);
    signal_workers(SIGTERM);
}

static bool all_ready(void) {
    for (unsigned i = 0; i < sup.count; i++)
        if (!sup.slots[i].ready) return false;
    return true;
}

static void write_pid_file(void) {
    if (!sup.plan->pid_file) return;
    FILE *f = fopen(sup.plan->pid_file, "we");
    bool ok = f && fprintf(f, "%d\n", (int)getpid()) > 0;
    if (f && fclose(f) != 0) ok = false;
    if (!ok) log_line(LOG_WARN, "cannot write %s: %s", sup.plan->pid_file, strerror(errno));
}

static void announce(void) {
    if (sup.announced || !all_ready()) return;
    sup.announced = true;
    double seconds = (double)(clock_mono_us() - sup.begun_us) / 1e6;
    const struct supervisor_plan *p = sup.plan;
    log_line(LOG_INFO, "kasma %s: %u to serve%s%s, %u to work, ready in %.2f s", KASMA_VERSION, p->servers,
             p->servers ? " on " : "", p->servers ? p->sockets->name : "", p->workers, seconds);
    write_pid_file();
    notify_send("READY=1\nMAINPID=%d\nSTATUS=%u workers", (int)getpid(), sup.count);
    if (p->sockets->ready_fd >= 0) {
        ssize_t n = write(p->sockets->ready_fd, "1", 1);
        if (n != 1) log_line(LOG_WARN, "the older process did not hear that this one is ready");
        shut(&p->sockets->ready_fd);
    }
}

static void hear_workers(void) {
    uint16_t index;
    ssize_t n;
    while ((n = read(sup.tell[0], &index, sizeof index)) == (ssize_t)sizeof index)
        if (index < sup.count && sup.slots[index].pid > 0) {
            sup.slots[index].ready = true;
            sup.slots[index].broken = false;
        }
    if (n < 0 && errno != EAGAIN && errno != EINTR) log_line(LOG_WARN, "the workers' pipe: %s", strerror(errno));
    announce();
}

/* ---- upgrade ---- */

/* The child's part: the sockets stay open across exec, everything else is as in the first start. Never returns. */
static void become_binary(int ready_fd) {
    restore_signals();
    const struct listen_set *set = sup.plan->sockets;
    bool ok = fcntl(ready_fd, F_SETFD, 0) == 0;
    for (size_t i = 0; i < set->count; i++) ok = ok && fcntl(set->fd[i], F_SETFD, 0) == 0;
    char list[LISTEN_MAX * 5 + 16], pid[16];
    ok = ok && listen_export(set, ready_fd, list, sizeof list) && setenv("KASMA_INHERIT", list, 1) == 0;
    int n = snprintf(pid, sizeof pid, "%d", (int)getpid());
    ok = ok && n > 0 && (!getenv("WATCHDOG_PID") || setenv("WATCHDOG_PID", pid, 1) == 0);
    if (ok) execv(sup.plan->binary, sup.plan->arguments);
    log_line(LOG_ERROR, "cannot run %s: %s", sup.plan->binary, strerror(errno));
    _exit(127);
}

static void begin_upgrade(void) {
    if (sup.upgrade_fd >= 0 || sup.phase == DRAINING) {
        log_line(LOG_WARN, "upgrade refused: %s", sup.phase == DRAINING ? "this process ends" : "one is under way");
        return;
    }
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) {
        log_line(LOG_ERROR, "upgrade: no pipe: %s", strerror(errno));
        return;
    }
    log_flush();
    pid_t pid = fork();
    if (pid == 0) {
        if (close(ends[0]) != 0) _exit(1);
        become_binary(ends[1]);
    }
    shut(&ends[1]);
    if (pid < 0) {
        log_line(LOG_ERROR, "upgrade: no process: %s", strerror(errno));
        shut(&ends[0]);
        return;
    }
    sup.upgrade_fd = ends[0];
    sup.upgrade_pid = pid;
    sup.upgrade_until_us = clock_mono_us() + sup.plan->upgrade_ms * 1000;
    log_line(LOG_INFO, "upgrade: started %s as %d", sup.plan->binary, (int)pid);
}

static void give_up_upgrade(const char *why) {
    log_line(LOG_ERROR, "upgrade failed, this process goes on: %s", why);
    if (sup.upgrade_pid > 0 && kill(sup.upgrade_pid, SIGTERM) != 0 && errno != ESRCH)
        log_line(LOG_WARN, "cannot end the new process: %s", strerror(errno));
    shut(&sup.upgrade_fd);
    notify_send("MAINPID=%d", (int)getpid());
    write_pid_file();
}

static void hear_upgrade(void) {
    char word = 0;
    ssize_t n = read(sup.upgrade_fd, &word, 1);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (n != 1 || word != '1') {
        give_up_upgrade("the new process ended or closed its pipe before it was ready");
        return;
    }
    shut(&sup.upgrade_fd);
    drain("the new process is ready");
}

/* ---- ends of children ---- */

static void describe_end(int status, char *out, size_t size) {
    int n = WIFSIGNALED(status) ? snprintf(out, size, "signal %d", WTERMSIG(status))
                                : snprintf(out, size, "status %d", WEXITSTATUS(status));
    if (n < 0) out[0] = '\0';
}

static void worker_ended(unsigned index, int status) {
    struct slot *s = &sup.slots[index];
    pid_t pid = s->pid;
    bool was_ready = s->ready;
    if (was_ready) s->died = pid;
    s->pid = 0;
    s->ready = false;
    char how[32];
    describe_end(status, how, sizeof how);
    if (sup.phase == DRAINING) {
        if (status != 0)
            log_line(LOG_WARN, "worker %u (%s, pid %d) ended with %s", index, role_of(index), (int)pid, how);
        return;
    }
    uint64_t now = clock_mono_us();
    metric_add(sup.restarts, 1);
    if (!was_ready && !sup.announced && (++sup.failed_starts >= GIVE_UP_AFTER || sup.plan->sockets->ready_fd >= 0)) {
        log_line(LOG_ERROR, "worker %u (%s) ended with %s before it was ready; giving up", index, role_of(index), how);
        sup.failed = true;
        drain("start failed");
        return;
    }
    s->broken = !was_ready;
    s->failures = now - s->started_us >= GOOD_RUN_US ? 0 : s->failures + 1;
    uint64_t wait = s->failures == 0 ? 0 : BACKOFF_FIRST_US << (s->failures > 6 ? 6 : s->failures - 1);
    if (wait > BACKOFF_MAX_US) wait = BACKOFF_MAX_US;
    s->start_at_us = now + wait;
    log_line(LOG_ERROR, "worker %u (%s, pid %d) ended with %s%s; started again in %llu ms", index, role_of(index),
             (int)pid, how,
             !s->broken                  ? ""
             : index < sup.plan->servers ? " before it was ready: until one is, its share of the clients is told 503"
                                         : " before it was ready",
             (unsigned long long)(wait / 1000));
}

static void reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid == sup.upgrade_pid) {
            sup.upgrade_pid = 0;
            char how[32];
            describe_end(status, how, sizeof how);
            if (sup.upgrade_fd >= 0) give_up_upgrade(how);
            continue;
        }
        for (unsigned i = 0; i < sup.count; i++)
            if (sup.slots[i].pid == pid) worker_ended(i, status);
    }
}

/* ---- the loop ---- */

static void hear_signals(void) {
    struct signalfd_siginfo info;
    while (read(sup.signals, &info, sizeof info) == (ssize_t)sizeof info) {
        switch (info.ssi_signo) {
        case SIGCHLD:
            break; /* reap() runs every turn */
        case SIGHUP:
            notify_send("RELOADING=1\nMONOTONIC_USEC=%llu", (unsigned long long)clock_mono_us());
            if (sup.plan->reload()) signal_workers(SIGHUP);
            notify_send("READY=1");
            break;
        case SIGUSR2:
            begin_upgrade();
            break;
        default:
            drain(info.ssi_signo == SIGINT ? "interrupted" : "asked to end");
        }
    }
}

/* True while a worker is left. Starts what is due, kills what is stuck. */
static bool tend(uint64_t now) {
    bool left = false;
    for (unsigned i = 0; i < sup.count; i++) {
        struct slot *s = &sup.slots[i];
        if (s->pid == 0 && sup.phase == SERVING && s->start_at_us <= now) start_worker(i);
        if (s->pid > 0 && sup.phase == SERVING && sup.plan->stuck_ms) {
            uint64_t beat = atomic_load_explicit(&sup.shared->beat_us[i], memory_order_relaxed);
            if (now > beat && now - beat > sup.plan->stuck_ms * 1000) {
                log_line(LOG_ERROR, "worker %u (pid %d) has not turned its loop for %llu ms: killed", i, (int)s->pid,
                         (unsigned long long)((now - beat) / 1000));
                if (kill(s->pid, SIGKILL) != 0) log_line(LOG_WARN, "kill: %s", strerror(errno));
                atomic_store_explicit(&sup.shared->beat_us[i], now, memory_order_relaxed); /* once is enough */
            }
        }
        left = left || s->pid > 0;
    }
    if (sup.phase == DRAINING && left && now >= sup.kill_at_us) {
        log_line(LOG_ERROR, "workers are left after the grace: killed");
        signal_workers(SIGKILL);
        sup.kill_at_us = now + KILL_AFTER_US;
    }
    if (sup.upgrade_fd >= 0 && now >= sup.upgrade_until_us) give_up_upgrade("it was not ready in time");
    uint64_t watchdog = notify_watchdog_ms() * 1000;
    if (watchdog && sup.phase == SERVING && sup.announced && now >= sup.watchdog_next_us) {
        notify_send("WATCHDOG=1");
        sup.watchdog_next_us = now + watchdog;
    }
    return left || sup.phase == SERVING;
}

/* Milliseconds until something is due; 1000 at most, which is how often stuck workers are looked for. */
static int patience(uint64_t now) {
    uint64_t wait = 1000000;
    for (unsigned i = 0; i < sup.count; i++) {
        const struct slot *s = &sup.slots[i];
        if (s->pid != 0 || sup.phase == DRAINING) continue;
        uint64_t due = s->start_at_us > now ? s->start_at_us - now : 0;
        if (due < wait) wait = due;
    }
    if (turn_away_close(now) && wait > TELL_US) wait = TELL_US;
    return (int)((wait + 999) / 1000);
}

/* Sockets whose worker is away and did not load the last time, and that no other worker serves. */
static size_t orphaned(int out[LISTEN_MAX]) {
    const struct listen_set *set = sup.plan->sockets;
    bool served[LISTEN_MAX] = {false}, any = false;
    int share[LISTEN_MAX];
    for (unsigned i = 0; i < sup.plan->servers; i++) {
        const struct slot *s = &sup.slots[i];
        bool away = s->pid == 0 && s->broken;
        any = any || away;
        size_t n = away ? 0 : listen_share(set, i, sup.plan->servers, share);
        for (size_t k = 0; k < n; k++)
            for (size_t at = 0; at < set->count; at++) served[at] = served[at] || set->fd[at] == share[k];
    }
    size_t found = 0;
    for (size_t at = 0; any && sup.phase == SERVING && at < set->count; at++)
        if (!served[at]) out[found++] = set->fd[at];
    return found;
}

/* The soft limit of open files is there for programs that use select(2); ours may have as many as it is allowed. */
static void raise_file_limit(void) {
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0 || files.rlim_cur >= files.rlim_max) return;
    files.rlim_cur = files.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &files) != 0)
        log_line(LOG_WARN, "the limit of open files stays as it is: %s", strerror(errno));
}

static bool prepare(const struct supervisor_plan *plan) {
    raise_file_limit();
    sup = (struct supervisor){
        .plan = plan, .count = plan->servers + plan->workers, .upgrade_fd = -1, .begun_us = clock_mono_us()};
    sup.slots = calloc(sup.count, sizeof *sup.slots);
    void *map = mmap(NULL, sizeof *sup.shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    sigset_t set;
    /* An older process that is gone when we say that we are ready, or a log nobody reads, is an error code. */
    bool deaf = signal(SIGPIPE, SIG_IGN) != SIG_ERR;
    if (!sup.slots || map == MAP_FAILED || !deaf || !block_signals(&set) ||
        pipe2(sup.tell, O_CLOEXEC | O_NONBLOCK) != 0)
        return false;
    sup.shared = map;
    sup.signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (sup.signals < 0) return false;
    metrics_attach(sup.count);
    sup.restarts =
        metric_only(metric_counter("kasma_worker_restarts_total", "Workers that ended and were started again", NULL));
    return true;
}

int supervisor_run(const struct supervisor_plan *plan) {
    if (plan->servers + plan->workers == 0 || plan->servers + plan->workers > LISTEN_MAX || !prepare(plan)) {
        log_line(LOG_ERROR, "the supervisor cannot start: %s", strerror(errno));
        return 1;
    }
    while (tend(clock_mono_us())) {
        static struct pollfd fds[3 + LISTEN_MAX];
        int orphans[LISTEN_MAX];
        size_t left = orphaned(orphans);
        fds[0] = (struct pollfd){.fd = sup.signals, .events = POLLIN};
        fds[1] = (struct pollfd){.fd = sup.tell[0], .events = POLLIN};
        fds[2] = (struct pollfd){.fd = sup.upgrade_fd, .events = POLLIN};
        for (size_t i = 0; i < left; i++) fds[3 + i] = (struct pollfd){.fd = orphans[i], .events = POLLIN};
        log_flush();
        int n = poll(fds, 3 + left, patience(clock_mono_us()));
        if (n < 0 && errno != EINTR) {
            log_line(LOG_ERROR, "poll: %s", strerror(errno));
            sup.failed = true;
            drain("cannot go on");
        }
        if (n > 0 && fds[0].revents) hear_signals();
        if (n > 0 && fds[1].revents) hear_workers();
        if (n > 0 && fds[2].revents && sup.upgrade_fd >= 0) hear_upgrade();
        for (size_t i = 0; n > 0 && i < left; i++)
            if (fds[3 + i].revents) turn_away(orphans[i], clock_mono_us());
        reap();
    }
    /* The file is ours when we have written it and no new process has since. */
    if (plan->pid_file && sup.announced && sup.upgrade_pid == 0 && unlink(plan->pid_file) != 0 && errno != ENOENT)
        log_line(LOG_WARN, "cannot remove %s: %s", plan->pid_file, strerror(errno));
    log_line(LOG_INFO, "ended");
    log_flush();
    free(sup.slots);
    sup.slots = NULL;
    return sup.failed ? 1 : 0;
}
