/* One listening socket per worker slot, all bound to the same port with SO_REUSEPORT: the kernel spreads connections, and a worker that is
 * started again takes over the very socket of the one that died, with what waits in its queue. Sockets are opened once and inherited, by
 * fork and by exec; closing one and binding it anew would reset what waits there.
 *
 * The supervisor itself does nothing but wait for signals and children: it has no loop, no threads and no Lua. */
#include "runtime/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/clock.h"
#include "runtime/config.h"
#include "runtime/log.h"
#include "runtime/metrics.h"

#define SLOTS_MAX 260
#define BACKOFF_MIN_MS 100
#define BACKOFF_MAX_MS 10000
#define STABLE_MS 10000 /* a worker that lived so long begins its back-off anew */
#define HANDOVER_MS 30000
#define HANDOVER "SUPERVISOR_HANDOVER" /* "<ready fd>:<socket>,<socket>,..." for the new binary */

struct slot {
    const char *role;
    int listen_fd, ready_fd;
    pid_t pid; /* 0: not running */
    uint64_t started_ms, start_at_ms;
    unsigned backoff_ms;
    bool ready;
};

static struct {
    const struct supervisor_options *o;
    struct slot slots[SLOTS_MAX];
    unsigned count;
    int port, signal_fd;
    int parent_fd;    /* whom to tell that all workers are ready; -1: nobody */
    pid_t successor;  /* the new binary, while it starts */
    int successor_fd; /* its readiness */
    uint64_t successor_until_ms, begun_ms;
    bool stopping, announced;
    char binary[PATH_MAX];
} s;

static uint64_t now_ms(void) {
    return clock_mono_us() / 1000;
}

static int open_socket(const char *host, int port, bool share) {
    char service[16];
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *list = NULL;
    int n = snprintf(service, sizeof service, "%d", port), one = 1, fd = -1;
    if (n <= 0 || getaddrinfo(host, service, &hints, &list) != 0) {
        log_line(LOG_ERROR, "HOST %s is no address", host);
        return -1;
    }
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0) continue;
        bool ok = setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0 &&
                  (!share || setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) == 0) &&
                  bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, 4096) == 0;
        if (ok) break;
        int why = errno;
        if (close(fd) != 0) log_line(LOG_WARN, "a socket did not close");
        fd = -1;
        log_line(LOG_ERROR, "cannot listen on %s port %d: %s", host, port, strerror(why));
    }
    freeaddrinfo(list);
    return fd;
}

static int port_of(int fd) {
    struct sockaddr_storage a;
    socklen_t len = sizeof a;
    char service[16];
    int64_t port = 0;
    if (getsockname(fd, (struct sockaddr *)&a, &len) != 0 ||
        getnameinfo((struct sockaddr *)&a, len, NULL, 0, service, sizeof service, NI_NUMERICSERV) != 0 ||
        !str_int64(str_of(service), &port))
        return 0;
    return (int)port;
}

/* Sockets that the old binary handed over, in the order of the slots. */
static unsigned take_over(int *fds, unsigned most) {
    const char *text = getenv(HANDOVER);
    s.parent_fd = -1;
    if (!text) return 0;
    unsigned count = 0;
    char *end = NULL;
    long ready = strtol(text, &end, 10);
    if (end && *end == ':' && ready > 2 && ready < 65536) {
        s.parent_fd = (int)ready;
        for (text = end + 1; *text && count < most; text = *end ? end + 1 : end) {
            long fd = strtol(text, &end, 10);
            if (end == text || fd < 3 || fd > 65535) break;
            fds[count++] = (int)fd;
        }
    }
    if (unsetenv(HANDOVER) != 0) log_line(LOG_WARN, "the hand-over stays in the environment");
    for (unsigned i = 0; i < count; i++)
        if (fcntl(fds[i], F_SETFD, FD_CLOEXEC) != 0) return i;
    return count;
}

static bool open_slots(void) {
    int given[SLOTS_MAX];
    unsigned inherited = take_over(given, SLOTS_MAX);
    s.port = s.o->port;
    for (unsigned i = 0; i < s.o->serve + s.o->work && i < SLOTS_MAX; i++) {
        struct slot *slot = &s.slots[s.count++];
        *slot = (struct slot){.role = i < s.o->serve ? "serve" : "work", .listen_fd = -1, .ready_fd = -1};
        if (i >= s.o->serve) continue;
        slot->listen_fd = i < inherited ? given[i] : open_socket(s.o->host, s.port, true);
        if (slot->listen_fd < 0) return false;
        if (s.port == 0 || i < inherited) s.port = port_of(slot->listen_fd);
    }
    /* Sockets of slots that are no more: connections in their queues are answered by nobody, so the last slot's worker count may only grow
     * in an upgrade. */
    for (unsigned i = s.o->serve; i < inherited; i++)
        if (close(given[i]) != 0) log_line(LOG_WARN, "an inherited socket did not close");
    return true;
}

static void start_worker(unsigned index) {
    struct slot *slot = &s.slots[index];
    int ends[2];
    slot->started_ms = now_ms();
    if (pipe2(ends, O_CLOEXEC) != 0) {
        slot->start_at_ms = now_ms() + BACKOFF_MAX_MS;
        return;
    }
    log_flush();
    pid_t supervisor = getpid(), pid = fork();
    if (pid == 0) {
        sigset_t none;
        bool ok = sigemptyset(&none) == 0 && sigprocmask(SIG_SETMASK, &none, NULL) == 0 && close(ends[0]) == 0 && close(s.signal_fd) == 0 &&
                  prctl(PR_SET_PDEATHSIG, SIGTERM) == 0;
        if (!ok || getppid() != supervisor) _exit(70);
        /* The sockets of the others are theirs: held here as well, a connection could wait in one that nobody accepts from. */
        for (unsigned i = 0; i < s.count; i++)
            if (i != index && s.slots[i].listen_fd >= 0 && close(s.slots[i].listen_fd) != 0) _exit(70);
        metrics_attach(index);
        int status = s.o->worker(slot->role, slot->listen_fd, ends[1]);
        log_flush();
        _exit(status);
    }
    if (close(ends[1]) != 0) log_line(LOG_WARN, "a pipe did not close");
    if (pid < 0) {
        log_line(LOG_ERROR, "fork: %s", strerror(errno));
        if (close(ends[0]) != 0) log_line(LOG_WARN, "a pipe did not close");
        slot->start_at_ms = now_ms() + BACKOFF_MAX_MS;
        return;
    }
    slot->pid = pid;
    slot->ready_fd = ends[0];
    slot->ready = false;
}

static void pass_on(int number) {
    for (unsigned i = 0; i < s.count; i++)
        if (s.slots[i].pid > 0 && kill(s.slots[i].pid, number) != 0) log_line(LOG_WARN, "worker %d is gone", (int)s.slots[i].pid);
}

static void begin_stop(void) {
    if (s.stopping) return;
    s.stopping = true;
    pass_on(SIGTERM);
}

static void close_ready(struct slot *slot) {
    if (slot->ready_fd >= 0 && close(slot->ready_fd) != 0) log_line(LOG_WARN, "a pipe did not close");
    slot->ready_fd = -1;
}

static void worker_died(struct slot *slot, int status) {
    uint64_t lived = now_ms() - slot->started_ms;
    close_ready(slot);
    slot->pid = 0;
    slot->ready = false;
    if (s.stopping) return;
    if (lived > STABLE_MS) slot->backoff_ms = 0;
    slot->backoff_ms = slot->backoff_ms ? slot->backoff_ms * 2 : BACKOFF_MIN_MS;
    if (slot->backoff_ms > BACKOFF_MAX_MS) slot->backoff_ms = BACKOFF_MAX_MS;
    slot->start_at_ms = now_ms() + slot->backoff_ms;
    if (WIFSIGNALED(status))
        log_line(LOG_ERROR, "a %s worker died of signal %d, again in %u ms", slot->role, WTERMSIG(status), slot->backoff_ms);
    else
        log_line(LOG_ERROR, "a %s worker ended with status %d, again in %u ms", slot->role, WEXITSTATUS(status), slot->backoff_ms);
}

static void drop_successor(void) {
    if (s.successor_fd >= 0 && close(s.successor_fd) != 0) log_line(LOG_WARN, "a pipe did not close");
    s.successor_fd = -1;
    s.successor = 0;
}

static void reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid == s.successor) {
            log_line(LOG_ERROR, "the new binary did not become ready: the old one stays");
            drop_successor();
            continue;
        }
        for (unsigned i = 0; i < s.count; i++)
            if (s.slots[i].pid == pid) worker_died(&s.slots[i], status);
    }
}

/* Starts the binary on disk with the same sockets. */
static void upgrade(void) {
    int ends[2];
    if (s.successor || s.stopping || pipe2(ends, O_CLOEXEC) != 0) return;
    log_line(LOG_INFO, "starting the new binary");
    log_flush();
    pid_t pid = fork();
    if (pid == 0) {
        char text[SLOTS_MAX * 7];
        int n = snprintf(text, sizeof text, "%d:", ends[1]);
        bool ok = n > 0 && fcntl(ends[1], F_SETFD, 0) == 0;
        for (unsigned i = 0; ok && i < s.count; i++) {
            int fd = s.slots[i].listen_fd;
            if (fd < 0) continue;
            int more = snprintf(text + n, sizeof text - (size_t)n, "%d,", fd);
            ok = more > 0 && (size_t)(n + more) < sizeof text && fcntl(fd, F_SETFD, 0) == 0;
            n += more;
        }
        sigset_t none;
        ok = ok && setenv(HANDOVER, text, 1) == 0 && sigemptyset(&none) == 0 && sigprocmask(SIG_SETMASK, &none, NULL) == 0;
        if (ok) execv(s.binary, s.o->argv);
        _exit(71);
    }
    if (close(ends[1]) != 0) log_line(LOG_WARN, "a pipe did not close");
    if (pid < 0) {
        if (close(ends[0]) != 0) log_line(LOG_WARN, "a pipe did not close");
        return;
    }
    s.successor = pid;
    s.successor_fd = ends[0];
    s.successor_until_ms = now_ms() + HANDOVER_MS;
}

static void on_signal(void) {
    struct signalfd_siginfo info;
    while (read(s.signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
        switch (info.ssi_signo) {
        case SIGCHLD:
            reap();
            break;
        case SIGHUP: {
            struct buf problems = {0};
            int argc = 0;
            char *argv[] = {NULL};
            if (!config_load(&argc, argv, &problems)) log_line(LOG_ERROR, "the new configuration is refused");
            buf_free(&problems);
            pass_on(SIGHUP);
            break;
        }
        case SIGUSR2:
            upgrade();
            break;
        default:
            begin_stop();
        }
    }
}

static void announce(void) {
    unsigned ready = 0;
    for (unsigned i = 0; i < s.count; i++) ready += s.slots[i].ready;
    if (ready < s.count || s.announced) return;
    s.announced = true;
    log_line(LOG_INFO, "kasma %s pid %d: %u serve and %u work processes on port %d, ready in %.2f s", KASMA_VERSION, (int)getpid(),
             s.o->serve, s.o->work, s.o->serve ? s.port : 0, (double)(now_ms() - s.begun_ms) / 1000);
    log_flush();
    if (s.parent_fd < 0) return;
    if (write(s.parent_fd, "R", 1) != 1 || close(s.parent_fd) != 0) log_line(LOG_WARN, "the old binary is gone");
    s.parent_fd = -1;
}

static void on_ready(struct slot *slot) {
    char byte;
    ssize_t n = read(slot->ready_fd, &byte, 1);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
    slot->ready = n == 1;
    close_ready(slot);
    announce();
}

static void on_successor(void) {
    char byte;
    ssize_t n = read(s.successor_fd, &byte, 1);
    if (n != 1) return; /* its end is reaped */
    log_line(LOG_INFO, "the new binary is ready: draining");
    drop_successor();
    begin_stop();
}

/* Milliseconds until something is due; -1: nothing is. */
static int due_in(void) {
    uint64_t now = now_ms(), next = 0;
    for (unsigned i = 0; i < s.count; i++) {
        const struct slot *slot = &s.slots[i];
        if (slot->pid == 0 && !s.stopping && (next == 0 || slot->start_at_ms < next)) next = slot->start_at_ms ? slot->start_at_ms : 1;
    }
    if (s.successor && (next == 0 || s.successor_until_ms < next)) next = s.successor_until_ms;
    if (next == 0) return -1;
    return next <= now ? 0 : (int)(next - now);
}

static bool all_gone(void) {
    for (unsigned i = 0; i < s.count; i++)
        if (s.slots[i].pid > 0) return false;
    return true;
}

static bool watch_signals(void) {
    sigset_t set;
    if (sigemptyset(&set) != 0) return false;
    static const int numbers[] = {SIGCHLD, SIGTERM, SIGQUIT, SIGINT, SIGHUP, SIGUSR2};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (sigaddset(&set, numbers[i]) != 0) return false;
    if (sigprocmask(SIG_BLOCK, &set, NULL) != 0) return false;
    s.signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return s.signal_fd >= 0;
}

int supervisor_run(const struct supervisor_options *o) {
    s.o = o;
    s.successor_fd = -1;
    s.begun_ms = now_ms();
    /* Resolved now: after an upgrade on disk the link would name a deleted file. */
    ssize_t n = readlink("/proc/self/exe", s.binary, sizeof s.binary - 1);
    if (n <= 0 || !watch_signals() || !open_slots()) {
        log_flush();
        return 71;
    }
    s.binary[n] = '\0';
    if (!metrics_open(s.count)) log_line(LOG_WARN, "no shared memory for metrics");
    for (unsigned i = 0; i < s.count; i++) start_worker(i);
    while (!(s.stopping && all_gone())) {
        struct pollfd fds[SLOTS_MAX + 2];
        unsigned whose[SLOTS_MAX + 2], used = 0;
        fds[used++] = (struct pollfd){.fd = s.signal_fd, .events = POLLIN};
        if (s.successor_fd >= 0) {
            whose[used] = SLOTS_MAX;
            fds[used++] = (struct pollfd){.fd = s.successor_fd, .events = POLLIN};
        }
        for (unsigned i = 0; i < s.count; i++) {
            if (s.slots[i].ready_fd < 0) continue;
            whose[used] = i;
            fds[used++] = (struct pollfd){.fd = s.slots[i].ready_fd, .events = POLLIN};
        }
        log_flush();
        if (poll(fds, used, due_in()) < 0 && errno != EINTR) return 71;
        for (unsigned i = 1; i < used; i++) {
            if (!fds[i].revents) continue;
            if (whose[i] == SLOTS_MAX)
                on_successor();
            else if (s.slots[whose[i]].ready_fd == fds[i].fd)
                on_ready(&s.slots[whose[i]]);
        }
        on_signal();
        uint64_t now = now_ms();
        if (s.successor && now >= s.successor_until_ms) {
            log_line(LOG_ERROR, "the new binary is not ready in time: the old one stays");
            if (kill(s.successor, SIGKILL) != 0) log_line(LOG_WARN, "the new binary is gone");
            s.successor_until_ms = now + HANDOVER_MS; /* reaped by then */
        }
        for (unsigned i = 0; i < s.count; i++)
            if (s.slots[i].pid == 0 && !s.stopping && s.slots[i].start_at_ms <= now) start_worker(i);
    }
    log_flush();
    return 0;
}
