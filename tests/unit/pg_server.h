/* A PostgreSQL server of a test's own, a PgBouncer before it, and waiting for things to happen on the loop. */
#ifndef KASMA_TESTS_PG_SERVER_H
#define KASMA_TESTS_PG_SERVER_H

#include <arpa/inet.h>
#include <fcntl.h>
#include <glob.h>
#include <grp.h>
#include <libpq-fe.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "free_port.h"
#include "runtime/loop.h"

struct pg_server {
    char dir[64], bin[128];
    int port, bouncer_port;
    pid_t pid, bouncer; /* 0: not running */
    bool foreign;       /* TEST_DATABASE_URL: it is not ours to stop */
};

/* Executes it as the user postgres when we are root: the server refuses to run as root. It ends with this process. */
static inline pid_t pg_spawn(const char *dir, char *const *argv) {
    pid_t parent = getpid(), pid = fork();
    if (pid != 0) return pid;
    char log[80];
    (void)snprintf(log, sizeof log, "%s.log", dir);
    int quiet = open("/dev/null", O_RDONLY), out = open(log, O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (quiet < 0 || out < 0 || dup2(quiet, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0 || chdir("/") != 0)
        _exit(126);
    struct passwd *who = getuid() == 0 ? getpwnam("postgres") : NULL;
    if (who && (initgroups("postgres", who->pw_gid) != 0 || setgid(who->pw_gid) != 0 || setuid(who->pw_uid) != 0))
        _exit(126);
    if (prctl(PR_SET_PDEATHSIG, SIGQUIT) != 0 || getppid() != parent) _exit(126);
    execvp(argv[0], argv);
    _exit(127);
}

/* A blocking connection as superuser. */
static inline PGconn *pg_admin(const struct pg_server *s, const char *database) {
    char text[200];
    (void)snprintf(text, sizeof text, "host=127.0.0.1 port=%d user=postgres dbname=%s", s->port, database);
    return PQconnectdb(s->foreign ? getenv("TEST_DATABASE_URL") : text);
}

/* Runs a script as superuser; false when it failed. `out`, when given, takes the first value. */
static inline bool pg_admin_run(const struct pg_server *s, const char *sql, char *out, size_t size) {
    PGconn *c = pg_admin(s, "postgres");
    PGresult *r = PQexec(c, sql);
    ExecStatusType status = PQresultStatus(r);
    bool ok = status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK;
    if (!ok) (void)fprintf(stderr, "%s", PQerrorMessage(c));
    if (out && size) (void)snprintf(out, size, "%s", ok && PQntuples(r) > 0 ? PQgetvalue(r, 0, 0) : "");
    PQclear(r);
    PQfinish(c);
    return ok;
}

static inline bool pg_server_answers(const struct pg_server *s) {
    PGconn *c = pg_admin(s, "postgres");
    bool ok = PQstatus(c) == CONNECTION_OK;
    PQfinish(c);
    return ok;
}

static inline void pg_server_run(struct pg_server *s) {
    char exe[160], port[16], sockets[96];
    (void)snprintf(exe, sizeof exe, "%s/postgres", s->bin);
    (void)snprintf(port, sizeof port, "%d", s->port);
    (void)snprintf(sockets, sizeof sockets, "unix_socket_directories=%s", s->dir);
    s->pid = pg_spawn(s->dir, (char *[]){exe, "-D", s->dir, "-p", port, "-c", "listen_addresses=127.0.0.1", "-c",
                                         sockets, "-c", "fsync=off", "-c", "shared_buffers=32MB", "-c",
                                         "max_connections=60", "-c", "log_min_messages=fatal", NULL});
    for (int i = 0; i < 600 && !pg_server_answers(s); i++) (void)usleep(50000);
}

/* SIGINT: clients are cut off. */
static inline void pg_server_stop(struct pg_server *s) {
    if (!s->pid) return;
    (void)kill(s->pid, SIGINT);
    (void)waitpid(s->pid, NULL, 0);
    s->pid = 0;
}

/* False: the server's programs are not installed, or it does not start. */
static inline bool pg_server_start(struct pg_server *s) {
    if (getenv("TEST_DATABASE_URL")) {
        s->foreign = true;
        return pg_server_answers(s);
    }
    glob_t found;
    if (glob("/usr/lib/postgresql/*/bin", 0, NULL, &found) != 0) return false;
    (void)snprintf(s->bin, sizeof s->bin, "%s", found.gl_pathv[found.gl_pathc - 1]);
    globfree(&found);
    (void)snprintf(s->dir, sizeof s->dir, "/tmp/kasma-pg.XXXXXX");
    if (!mkdtemp(s->dir)) return false;
    struct passwd *who = getuid() == 0 ? getpwnam("postgres") : NULL;
    if (who && chown(s->dir, who->pw_uid, who->pw_gid) != 0) return false;
    char exe[160];
    (void)snprintf(exe, sizeof exe, "%s/initdb", s->bin);
    int status = -1;
    pid_t pid = pg_spawn(s->dir, (char *[]){exe, "-D", s->dir, "-U", "postgres", "-A", "trust", "-E", "UTF8",
                                            "--locale=C.UTF-8", "--no-sync", NULL});
    if (waitpid(pid, &status, 0) != pid || status != 0) return false;
    s->port = free_port();
    pg_server_run(s);
    return pg_server_answers(s);
}

/* One server connection for all clients of a database and user, lent by the transaction. */
static inline bool pg_bouncer_start(struct pg_server *s) {
    char path[80], users[80];
    (void)snprintf(path, sizeof path, "%s/bouncer.ini", s->dir);
    (void)snprintf(users, sizeof users, "%s/users.txt", s->dir);
    FILE *f = fopen(path, "w"), *u = fopen(users, "w");
    if (!f || !u) return false;
    s->bouncer_port = free_port();
    int n = fprintf(
        f,
        "[databases]\n* = host=127.0.0.1 port=%d\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = "
        "%d\nunix_socket_dir =\n"
        "auth_type = trust\nauth_file = %s\npool_mode = transaction\ndefault_pool_size = 1\nmax_client_conn = 100\n",
        s->port, s->bouncer_port, users);
    int m = fprintf(u, "\"postgres\" \"\"\n\"test_app\" \"\"\n");
    if (fclose(f) != 0 || fclose(u) != 0 || n < 0 || m < 0 || chmod(path, 0644) != 0 || chmod(users, 0644) != 0)
        return false;
    s->bouncer = pg_spawn(s->dir, (char *[]){"/usr/sbin/pgbouncer", path, NULL});
    struct pg_server through = {.port = s->bouncer_port};
    for (int i = 0; i < 200; i++) {
        int status;
        if (waitpid(s->bouncer, &status, WNOHANG) == s->bouncer) break;
        if (pg_server_answers(&through)) return true;
        (void)usleep(50000);
    }
    return false;
}

static inline void pg_bouncer_stop(struct pg_server *s) {
    if (!s->bouncer) return;
    (void)kill(s->bouncer, SIGKILL);
    (void)waitpid(s->bouncer, NULL, 0);
    s->bouncer = 0;
}

/* Stops it and removes its files. */
static inline void pg_server_end(struct pg_server *s) {
    pg_bouncer_stop(s);
    pg_server_stop(s);
    if (!s->dir[0]) return;
    char log[80];
    (void)snprintf(log, sizeof log, "%s.log", s->dir);
    (void)unlink(log);
    pid_t pid = fork();
    if (pid == 0) {
        execlp("rm", "rm", "-rf", s->dir, (char *)NULL);
        _exit(127);
    }
    (void)waitpid(pid, NULL, 0);
}

static inline void pg_wait_tick(uv_timer_t *timer) {
    (void)timer;
}

/* Runs the loop until `check(data)`; false when it did not come true within `seconds`. */
static inline bool run_until(bool (*check)(void *data), void *data, unsigned seconds) {
    static uv_timer_t tick;
    static bool made;
    if (!made) made = uv_timer_init(loop_get(), &tick) == 0;
    (void)uv_timer_start(&tick, pg_wait_tick, 5, 5);
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
