// link: runtime
/* The supervisor with workers that are a few lines of C: they answer each connection with a word and close it. The test
 * program is its own binary for upgrades. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "free_port.h"
#include "runtime/clock.h"
#include "runtime/listen.h"
#include "runtime/log.h"
#include "runtime/metrics.h"
#include "runtime/probe.h"
#include "runtime/supervisor.h"

#define LIMIT_US UINT64_C(60000000)
#define WAIT_UNTIL(condition)                                                                                          \
    do {                                                                                                               \
        uint64_t until = clock_mono_us() + LIMIT_US;                                                                   \
        while (!(condition)) {                                                                                         \
            if (clock_mono_us() > until) fail_msg("waited in vain for " #condition);                                   \
            assert_int_equal(usleep(2000), 0);                                                                         \
        }                                                                                                              \
    } while (0)

static struct listen_set sockets;
static volatile sig_atomic_t asked_to_end;
static int port;
static pid_t server;

/* ---- the process under test ---- */

static void on_term(int number) {
    (void)number;
    asked_to_end = 1;
}

/* Answers "<pid>" as an HTTP answer. */
static void answer(int fd) {
    char text[256];
    ssize_t got = recv(fd, text, sizeof text - 1, 0);
    text[got > 0 ? got : 0] = '\0';
    if (strstr(text, "GET /die")) _exit(9);
    if (strstr(text, "GET /stuck")) {
        for (;;) pause();
    }
    int n = snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\n\r\n%d %d", (int)getpid(), (int)getppid());
    if (send(fd, text, (size_t)n, MSG_NOSIGNAL) != n || close(fd) != 0) _exit(8);
}

static int work(const struct supervisor_worker *w) {
    struct sigaction action = {.sa_handler = on_term, .sa_flags = SA_RESTART}; /* poll is interrupted all the same */
    if (sigaction(SIGTERM, &action, NULL) != 0 ||
        sigaction(SIGHUP, &(struct sigaction){.sa_handler = SIG_IGN}, NULL) != 0)
        return 7;
    const char *broken = getenv("TEST_BROKEN"), *slow = getenv("TEST_SLOW");
    if (getenv("TEST_NEVER_READY") || (broken && access(broken, F_OK) == 0)) return 6;
    if (slow && access(slow, F_OK) == 0) {
        for (;;) pause();
    }
    supervisor_tell_ready();
    while (!asked_to_end) {
        struct pollfd fds[8];
        for (size_t i = 0; i < w->socket_count; i++) fds[i] = (struct pollfd){.fd = w->sockets[i], .events = POLLIN};
        int n = poll(fds, w->socket_count, 50);
        supervisor_beat();
        for (size_t i = 0; n > 0 && i < w->socket_count; i++) {
            int fd = fds[i].revents ? accept(w->sockets[i], NULL, NULL) : -1;
            if (fd >= 0) answer(fd);
        }
    }
    return 0;
}

static bool reload(void) {
    return true;
}

static int serve(char **argv) {
    struct error err;
    char file[64];
    int wanted = (int)strtol(argv[2], NULL, 10);
    if (!listen_inherit(&sockets, &err) || !metrics_open(3) || !listen_open(&sockets, "127.0.0.1", wanted, 2, &err))
        return 70;
    int n = snprintf(file, sizeof file, "/tmp/kasma-supervisor-%s.pid", argv[3]);
    const struct supervisor_plan plan = {.servers = 2,
                                         .sockets = &sockets,
                                         .work_socket = -1,
                                         .grace_ms = 10000,
                                         .stuck_ms = getenv("TEST_STUCK_SOON") ? 2000 : 60000,
                                         .upgrade_ms = 60000,
                                         .binary = getenv("TEST_BINARY") ? getenv("TEST_BINARY") : "/proc/self/exe",
                                         .arguments = argv,
                                         .pid_file = n > 0 ? file : NULL,
                                         .reload = reload,
                                         .run = work};
    log_set_level(LOG_ERROR);
    return supervisor_run(&plan);
}

/* ---- the tests ---- */

/* Once, and again where a signal came between. */
static ssize_t receive(int fd, char *text, size_t size) {
    ssize_t got;
    do got = recv(fd, text, size, 0);
    while (got < 0 && errno == EINTR);
    return got;
}

/* "<worker> <supervisor>" of whoever answers; false when nobody does. */
static bool ask(const char *path, pid_t *worker, pid_t *parent) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval limit = {.tv_sec = 60};
    char text[256];
    bool ok = fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0 &&
              connect(fd, (struct sockaddr *)&to, sizeof to) == 0;
    int n = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\n\r\n", path);
    ok = ok && send(fd, text, (size_t)n, MSG_NOSIGNAL) == n;
    ssize_t got = ok ? receive(fd, text, sizeof text - 1) : -1;
    if (fd >= 0) assert_int_equal(close(fd), 0);
    if (got <= 0) return false;
    text[got] = '\0';
    const char *body = strstr(text, "\r\n\r\n");
    if (!body) return false;
    char *rest;
    *worker = (pid_t)strtol(body + 4, &rest, 10);
    *parent = (pid_t)strtol(rest, NULL, 10);
    return *worker > 0 && *parent > 0;
}

static bool answers(void) {
    pid_t a, b;
    return ask("/", &a, &b);
}

static void start(void) {
    port = free_port();
    assert_true(port > 0);
    char text[16];
    assert_true(snprintf(text, sizeof text, "%d", port) > 0);
    assert_int_equal(fflush(stdout), 0);
    pid_t parent = getpid();
    server = fork();
    assert_true(server >= 0);
    if (server == 0) {
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent) _exit(126);
        execl("/proc/self/exe", "test_supervisor", "serve", text, text, (char *)NULL);
        _exit(127);
    }
    WAIT_UNTIL(answers());
}

static pid_t pid_in_file(void) {
    char path[64], line[16] = "";
    assert_true(snprintf(path, sizeof path, "/tmp/kasma-supervisor-%d.pid", port) > 0);
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    bool got = fgets(line, sizeof line, f) != NULL;
    assert_int_equal(fclose(f), 0);
    return got ? (pid_t)strtol(line, NULL, 10) : 0;
}

static int ended(pid_t pid) {
    int status = -1;
    WAIT_UNTIL(waitpid(pid, &status, WNOHANG) == pid);
    if (pid == server) server = 0;
    return status;
}

/* A test that fails in the middle harms no other. */
static int clean_up(void **state) {
    static const char *const names[] = {"TEST_BROKEN", "TEST_SLOW", "TEST_STUCK_SOON", "TEST_BINARY",
                                        "TEST_NEVER_READY"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (unsetenv(names[i]) != 0) return -1;
    if (server > 0 && kill(server, SIGKILL) == 0 && waitpid(server, NULL, 0) != server) return -1;
    server = 0;
    return 0;
}

static void stop(void) {
    assert_int_equal(kill(server, SIGTERM), 0);
    assert_int_equal(ended(server), 0);
    assert_int_equal(pid_in_file(), 0);
    assert_false(answers());
}

static void test_term_ends_with_0(void **state) {
    (void)state;
    start();
    WAIT_UNTIL(pid_in_file() == server);
    assert_int_equal(kill(server, SIGHUP), 0);
    assert_true(answers());
    stop();
}

/* The slot's socket outlives its worker: what connects meanwhile is answered by the next one. */
static void test_a_dead_worker_is_replaced_and_no_connection_lost(void **state) {
    (void)state;
    start();
    WAIT_UNTIL(pid_in_file() == server);
    pid_t parent, worker;
    for (int i = 0; i < 3; i++) {
        assert_false(ask("/die", &worker, &parent));
        for (int k = 0; k < 20; k++) {
            assert_true(ask("/", &worker, &parent));
            assert_int_equal(parent, server);
        }
    }
    stop();
}

static void test_a_stuck_worker_is_killed(void **state) {
    (void)state;
    assert_int_equal(setenv("TEST_STUCK_SOON", "1", 1), 0);
    start();
    WAIT_UNTIL(pid_in_file() == server);
    pid_t parent, worker;
    assert_false(ask("/stuck", &worker, &parent));
    for (int k = 0; k < 10; k++) assert_true(answers());
    stop();
}

/* What whoever listens says to a request, as text; "" when it says nothing. */
static const char *said(void) {
    static char text[512];
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval limit = {.tv_sec = 60};
    assert_true(fd >= 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    assert_true(send(fd, "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL) == 18);
    size_t n = 0;
    for (ssize_t got; n < sizeof text - 1 && (got = receive(fd, text + n, sizeof text - 1 - n)) > 0;) n += (size_t)got;
    text[n] = '\0';
    assert_int_equal(close(fd), 0);
    return text;
}

static void kill_both_workers(void) {
    pid_t first, second, parent;
    assert_true(ask("/", &first, &parent));
    do assert_true(ask("/", &second, &parent));
    while (second == first);
    assert_int_equal(kill(first, SIGKILL), 0);
    assert_int_equal(kill(second, SIGKILL), 0);
    /* Gone, and not only asked to go: their supervisor has waited for them. */
    WAIT_UNTIL(kill(first, 0) != 0 && kill(second, 0) != 0);
}

static void test_clients_of_a_worker_that_does_not_load_are_told(void **state) {
    (void)state;
    char path[] = "/tmp/kasma-supervisor-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(close(fd), 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(setenv("TEST_BROKEN", path, 1), 0);
    start();
    WAIT_UNTIL(pid_in_file() == server);
    fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(close(fd), 0);
    kill_both_workers();
    for (int i = 0; i < 8; i++) {
        const char *text = said();
        assert_int_equal(strncmp(text, "HTTP/1.1 503 Service Unavailable\r\n", 34), 0);
        const char *body = strstr(text, "\r\n\r\n");
        assert_non_null(body);
        assert_int_equal(strlen(body + 4), strtol(strstr(text, "Content-Length: ") + 16, NULL, 10));
    }
    /* Mended: served again. */
    assert_int_equal(unlink(path), 0);
    WAIT_UNTIL(answers() && answers() && answers() && answers());
    stop();
}

/* One that hangs while it loads is killed like one that hangs later. */
static void test_a_worker_that_hangs_before_it_is_ready_is_killed(void **state) {
    (void)state;
    char path[] = "/tmp/kasma-supervisor-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(close(fd), 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(setenv("TEST_SLOW", path, 1), 0);
    assert_int_equal(setenv("TEST_STUCK_SOON", "1", 1), 0);
    start();
    WAIT_UNTIL(pid_in_file() == server);
    fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(close(fd), 0);
    kill_both_workers();
    WAIT_UNTIL(strncmp(said(), "HTTP/1.1 503", 12) == 0);
    assert_int_equal(unlink(path), 0);
    WAIT_UNTIL(answers() && answers() && answers() && answers());
    stop();
}

static void test_upgrade_hands_over(void **state) {
    (void)state;
    start();
    WAIT_UNTIL(pid_in_file() == server);
    pid_t parent = 0, worker;
    assert_int_equal(kill(server, SIGUSR2), 0);
    uint64_t until = clock_mono_us() + LIMIT_US;
    /* Every question is answered, by the old process or by the new one. */
    int status;
    pid_t older = server;
    while (waitpid(server, &status, WNOHANG) == 0) {
        assert_true(ask("/", &worker, &parent));
        assert_true(clock_mono_us() < until);
    }
    server = 0;
    assert_int_equal(status, 0);
    assert_true(ask("/", &worker, &parent));
    assert_int_not_equal(parent, older);
    assert_int_equal(pid_in_file(), parent);
    /* The new one is nobody's child here: it is asked to end and its port falls silent. */
    assert_int_equal(kill(parent, SIGTERM), 0);
    WAIT_UNTIL(!answers());
    WAIT_UNTIL(pid_in_file() == 0);
}

static void upgrade_fails(void) {
    start();
    WAIT_UNTIL(pid_in_file() == server);
    pid_t parent, worker;
    assert_int_equal(kill(server, SIGUSR2), 0);
    uint64_t until = clock_mono_us() + 300000;
    while (clock_mono_us() < until) {
        assert_true(ask("/", &worker, &parent));
        assert_int_equal(parent, server);
    }
    assert_int_equal(pid_in_file(), server);
    stop();
}

static void test_a_binary_that_is_absent_does_not_take_over(void **state) {
    (void)state;
    assert_int_equal(setenv("TEST_BINARY", "/nonexistent/kasma", 1), 0);
    upgrade_fails();
    assert_int_equal(setenv("TEST_BINARY", "/bin/false", 1), 0);
    upgrade_fails();
}

static void test_workers_that_never_start_end_the_command(void **state) {
    (void)state;
    assert_int_equal(setenv("TEST_NEVER_READY", "1", 1), 0);
    assert_int_equal(fflush(stdout), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        execl("/proc/self/exe", "test_supervisor", "serve", "0", "0", (char *)NULL);
        _exit(127);
    }
    int status = ended(pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 1);
}

/* Workers do not outlive a supervisor that is killed. */
static void test_workers_end_with_their_supervisor(void **state) {
    (void)state;
    start();
    WAIT_UNTIL(pid_in_file() == server);
    assert_int_equal(kill(server, SIGKILL), 0);
    assert_true(WIFSIGNALED(ended(server)));
    WAIT_UNTIL(!answers());
    char path[64];
    assert_true(snprintf(path, sizeof path, "/tmp/kasma-supervisor-%d.pid", port) > 0);
    assert_int_equal(unlink(path), 0);
}

static void test_sockets_are_shared_out(void **state) {
    (void)state;
    struct listen_set set = {.fd = {3, 4, 5}, .count = 3, .ready_fd = -1};
    int mine[LISTEN_MAX];
    assert_int_equal(listen_share(&set, 0, 2, mine), 2);
    assert_int_equal(mine[1], 5);
    assert_int_equal(listen_share(&set, 1, 2, mine), 1);
    assert_int_equal(mine[0], 4);
    assert_int_equal(listen_share(&set, 4, 5, mine), 1);
    assert_int_equal(mine[0], 4);
    char text[64], small[6];
    assert_true(listen_export(&set, 9, text, sizeof text));
    assert_string_equal(text, "3,4,5;9");
    assert_false(listen_export(&set, 9, small, sizeof small));
    static const char *const bad[] = {"x", "0", "3,,4", "99999999999", ";", "3;x"};
    struct error err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(setenv("KASMA_INHERIT", bad[i], 1), 0);
        assert_false(listen_inherit(&set, &err));
        assert_null(getenv("KASMA_INHERIT"));
    }
    assert_true(listen_inherit(&set, &err));
    assert_int_equal(set.count, 0);
    assert_true(listen_open(&set, "127.0.0.1", 0, 3, &err));
    assert_int_equal(set.count, 3);
    assert_true(set.port > 0);
    /* Nobody accepts: the probe gives up in its time. */
    assert_int_equal(probe_http("127.0.0.1", set.port, "/", 50, &err), -1);
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    for (size_t i = 0; i < set.count; i++) assert_int_equal(close(set.fd[i]), 0);
    assert_int_equal(probe_http("127.0.0.1", set.port, "/", 50, &err), -1);
}

#define TEST(name) cmocka_unit_test_teardown(name, clean_up)

int main(int argc, char **argv) {
    if (argc > 3 && strcmp(argv[1], "serve") == 0) return serve(argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sockets_are_shared_out),
        TEST(test_term_ends_with_0),
        TEST(test_a_dead_worker_is_replaced_and_no_connection_lost),
        TEST(test_a_stuck_worker_is_killed),
        TEST(test_clients_of_a_worker_that_does_not_load_are_told),
        TEST(test_a_worker_that_hangs_before_it_is_ready_is_killed),
        TEST(test_upgrade_hands_over),
        TEST(test_a_binary_that_is_absent_does_not_take_over),
        TEST(test_workers_that_never_start_end_the_command),
        TEST(test_workers_end_with_their_supervisor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
