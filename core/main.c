/* kasma: one binary, sub-commands. What serves and works is C; the other commands are Lua files under lua/kasma/cli. */
#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sysexits.h>
#include <unistd.h>

#include "runtime/config.h"
#include "runtime/log.h"
#include "runtime/metrics.h"
#include "runtime/probe.h"
#include "runtime/supervisor.h"
#include "script/worker.h"

#define PROBE_MS 5000

struct words {
    int count;
    char **list;     /* without the flags that are settings; list[1] is the command */
    char **original; /* as given: an upgrade starts the next binary with them */
};

struct command {
    const char *name, *usage, *help;
    int (*run)(const struct words *words);
    const char *text; /* what --help adds */
};

static struct listen_set sockets;
static char binary[PATH_MAX];

/* ---- serve, work, all ---- */

static bool reload(void) {
    struct buf problems = {0};
    int argc = 0;
    char *argv[] = {NULL};
    bool ok = config_load(&argc, argv, &problems);
    if (ok)
        log_line(LOG_INFO, "settings read again");
    else
        log_line(LOG_ERROR, "settings not taken over: %.*s", (int)problems.len, problems.data);
    buf_free(&problems);
    return ok;
}

static int supervise(const struct words *words, bool serves, bool works) {
    (void)words;
    struct error err;
    struct buf problems = {0};
    if (!config_complete(&problems)) {
        int said = fprintf(stderr, "kasma: settings are missing:\n%.*s", (int)problems.len, problems.data);
        buf_free(&problems);
        return said < 0 ? EX_IOERR : EX_CONFIG;
    }
    buf_free(&problems);
    static struct listen_set own = {.ready_fd = -1};
    int metrics_port = works && !serves ? (int)config_int("WORK_METRICS_PORT") : 0;
    if (metrics_port && !listen_open(&own, config_str("WORK_METRICS_HOST"), metrics_port, 1, &err)) {
        log_line(LOG_ERROR, "WORK_METRICS_PORT: %s", err.message);
        return EX_UNAVAILABLE;
    }
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned servers = (unsigned)config_int("WORKERS");
    if (servers == 0) servers = cores > 0 ? (unsigned)cores : 1;
    const struct supervisor_plan plan = {
        .servers = serves ? servers : 0,
        .workers = works ? 1 : 0,
        .sockets = &sockets,
        .work_socket = own.count ? own.fd[0] : -1,
        .drain_ms = serves ? (uint64_t)config_int("DRAIN_WAIT") * 1000 : 0,
        .grace_ms = (uint64_t)config_int("SHUTDOWN_GRACE") * 1000,
        .stuck_ms = (uint64_t)config_int("WORKER_STUCK") * 1000,
        .upgrade_ms = (uint64_t)config_int("UPGRADE_TIMEOUT") * 1000,
        .binary = binary,
        .arguments = words->original,
        .pid_file = config_str("PID_FILE"),
        .reload = reload,
        .run = worker_run,
    };
    if (!metrics_open(plan.servers + plan.workers + 1)) log_line(LOG_WARN, "no memory for metrics");
    if (serves && !listen_open(&sockets, config_str("HOST"), (int)config_int("PORT"), plan.servers, &err)) {
        log_line(LOG_ERROR, "%s", err.message);
        return EX_UNAVAILABLE;
    }
    return supervisor_run(&plan);
}

static int run_serve(const struct words *words) {
    return supervise(words, true, false);
}

static int run_work(const struct words *words) {
    return supervise(words, false, true);
}

static int run_all(const struct words *words) {
    return supervise(words, true, true);
}

/* ---- small commands ---- */

static bool has_word(const struct words *words, const char *word) {
    for (int i = 2; i < words->count; i++)
        if (strcmp(words->list[i], word) == 0) return true;
    return false;
}

static bool print_entry(const struct config_entry *e, bool origins) {
    if (!origins) return printf("%s=%s\n", e->name, e->shown) >= 0;
    return printf("%-26s %-40s %s%s\n", e->name, e->shown, e->origin, e->live ? ", HUP changes it" : "") >= 0;
}

static bool is_setting(const char *name) {
    struct config_entry e;
    for (size_t i = 0; config_entry(i, &e); i++)
        if (strcmp(e.name, name) == 0) return true;
    return false;
}

static int check_config(void) {
    struct buf problems = {0};
    bool complete = config_complete(&problems);
    int said = complete ? 0 : fprintf(stderr, "%.*s", (int)problems.len, problems.data);
    buf_free(&problems);
    const char *none[] = {NULL};
    int status = worker_command("check", none); /* the files that settings name are read where they are used */
    if (status == 0 && !complete) status = EX_CONFIG;
    if (status == 0) said = printf("the settings are good\n");
    return said < 0 ? EX_IOERR : status;
}

static int run_config(const struct words *words) {
    const char *what = words->count > 2 ? words->list[2] : "print";
    if (strcmp(what, "check") == 0) return check_config();
    if (strcmp(what, "print") != 0) {
        int said = fprintf(stderr, "kasma config: print or check, not %s\n", what);
        return said < 0 ? EX_IOERR : 2;
    }
    bool origins = has_word(words, "--origins"), named = false, all_known = true;
    for (int i = 3; i < words->count; i++) {
        if (strcmp(words->list[i], "--origins") == 0) continue;
        named = true;
        if (is_setting(words->list[i])) continue;
        all_known = false;
        if (fprintf(stderr, "kasma config: there is no setting %s\n", words->list[i]) < 0) return EX_IOERR;
    }
    struct config_entry e;
    for (size_t i = 0; config_entry(i, &e); i++) {
        if (named ? !has_word(words, e.name) : !origins && strcmp(e.origin, "unset") == 0) continue;
        if (!print_entry(&e, origins)) return EX_IOERR;
    }
    return all_known ? 0 : 2;
}

static int run_healthcheck(const struct words *words) {
    struct error err;
    const char *path = words->count > 2 ? words->list[2] : "/readyz";
    int status = probe_http(config_str("HOST"), (int)config_int("PORT"), path, PROBE_MS, &err);
    int said = status < 0 ? fprintf(stderr, "%s\n", err.message) : printf("%s %d\n", path, status);
    return said < 0 ? EX_IOERR : status >= 200 && status < 300 ? 0 : 1;
}

static int run_upgrade(const struct words *words) {
    (void)words;
    const char *path = config_str("PID_FILE");
    FILE *f = path ? fopen(path, "re") : NULL;
    char line[32] = "";
    bool got = f && fgets(line, sizeof line, f);
    if (f && fclose(f) != 0) got = false;
    int64_t pid;
    if (!got || !str_int64(str_trim(str_of(line)), &pid) || pid <= 1 || pid > INT_MAX) {
        int said = fprintf(stderr, "kasma upgrade: PID_FILE names no file with the pid of a running server\n");
        return said < 0 ? EX_IOERR : 1;
    }
    if (kill((pid_t)pid, SIGUSR2) == 0) return 0;
    int said = fprintf(stderr, "kasma upgrade: cannot signal %lld: %s\n", (long long)pid, strerror(errno));
    return said < 0 ? EX_IOERR : 1;
}

static int run_lua(const struct words *words) {
    return worker_command("script", (const char *const *)words->list + 2);
}

static int run_version(const struct words *words) {
    (void)words;
    return printf("kasma %s\n", KASMA_VERSION) < 0 ? EX_IOERR : 0;
}

static const char daemon_text[] = "Runs in the foreground; logs are JSON lines on stderr. TERM ends it when what runs "
                                  "is finished (SHUTDOWN_GRACE), HUP\n"
                                  "reads the settings that may change and the rules again, USR2 starts the binary on "
                                  "disk with the same sockets and ends\n"
                                  "this process when the new one is ready.\n\n"
                                  "  kasma serve --port 8080 --workers 4\n  PORT=8080 kasma serve\n";

static const char work_text[] =
    "Runs in the foreground; logs are JSON lines on stderr. TERM ends it: what runs has SHUTDOWN_GRACE to end, the "
    "rest "
    "goes back\nto its queue. Before a setting's name KASMA_ need not be typed.\n\n"
    "With --handlers it serves a developer's own: the file returns a table of functions by job name, `*` takes any "
    "name,\nand --queues says where. Nothing of the product's own runs then.\n\n"
    "  return { [\"resize-image\"] = function(job) job:log(job.data.path) return { done = true } end }\n\n"
    "  kasma work --queues mail-queue,sales-queue\n"
    "  kasma work --queues images --handlers images.lua --worker-concurrency 4 --lock-ms 60000 --stalled-ms 30000\n";

static const struct command commands[] = {
    {"serve", "", "answer HTTP, with a worker process for each core", run_serve, daemon_text},
    {"work", "", "run jobs, the outbox relay and what falls due", run_work, work_text},
    {"all", "", "serve and work", run_all, daemon_text},
    {"config", "print [NAME ...] [--origins] | check", "show the settings, or find what is wrong with them", run_config,
     "Secrets are masked. --origins adds where each value came from and whether HUP changes it. `check` ends with 78 "
     "when\n"
     "something that `serve` needs is missing, or a file that a setting names cannot be taken.\n\n  kasma config print "
     "--origins\n  kasma config print REDIS_URL\n"},
    {"healthcheck", "[PATH]", "ask the server on HOST and PORT; 0 when it is ready", run_healthcheck,
     "PATH is /readyz unless given.\n\n  kasma healthcheck\n  kasma healthcheck /healthz --port 8080\n"},
    {"upgrade", "", "let the server that PID_FILE names start the binary on disk and hand over", run_upgrade,
     "The old process goes on when the new one is not ready within UPGRADE_TIMEOUT.\n\n  kasma upgrade --pid-file "
     "/run/kasma.pid\n"},
    {"lua", "FILE [ARG ...]", "run a Lua file with the core modules", run_lua,
     "The file runs as one task; a number that it returns is the exit status.\n\n  kasma lua tests/specs.lua "
     "tests/spec\n"},
    {"version", "", "print the version", run_version, ""},
};
#define COMMANDS (sizeof commands / sizeof *commands)

/* ---- help ---- */

static int usage(void) {
    int ok = printf(
        "kasma %s: commerce, content and learning for many tenants.\n\nUsage: kasma COMMAND [--setting value ...]\n\n",
        KASMA_VERSION);
    for (size_t i = 0; i < COMMANDS && ok >= 0; i++) ok = printf("  %-12s %s\n", commands[i].name, commands[i].help);
    if (ok < 0 || fflush(stdout) != 0) return EX_IOERR;
    const char *names[COMMANDS + 1] = {NULL};
    for (size_t i = 0; i < COMMANDS; i++) names[i] = commands[i].name;
    int listed = worker_command("list", names);
    ok = printf(
        "\nEvery setting is a flag (--port 5000), an environment variable (PORT=5000), or a line of .env or\n"
        "/etc/kasma/kasma.conf. `kasma config print --origins` shows them all; `kasma COMMAND --help` tells more.\n");
    return ok < 0 ? EX_IOERR : listed;
}

static int help_of(const struct command *c) {
    int ok = printf("kasma %s%s%s: %s\n\n%s", c->name, *c->usage ? " " : "", c->usage, c->help, c->text);
    bool all_settings = c->run == run_serve || c->run == run_work || c->run == run_all;
    if (ok < 0 || !all_settings) return ok < 0 ? EX_IOERR : 0;
    if (printf("\nSettings (in this process: value and where it came from):\n\n") < 0) return EX_IOERR;
    struct config_entry e;
    for (size_t i = 0; config_entry(i, &e); i++)
        if (printf("  %-26s %s%s%s%s%s\n", e.name, e.help, *e.shown ? " [" : "", e.shown, *e.shown ? "] " : " ",
                   e.origin) < 0)
            return EX_IOERR;
    return 0;
}

/* ---- main ---- */

static int run(const struct words *words) {
    const char *name = words->list[1];
    for (size_t i = 0; i < COMMANDS; i++) {
        const struct command *c = &commands[i];
        if (strcmp(c->name, name) != 0) continue;
        bool script = c->run == run_lua;
        if (words->count > 2 && strcmp(words->list[2], "--help") == 0) return help_of(c);
        for (int k = 2; k < words->count && !script; k++) {
            if (words->list[k][0] != '-' || strcmp(words->list[k], "--origins") == 0) continue;
            int said =
                fprintf(stderr, "kasma %s: %s is not known here; see kasma %s --help\n", name, words->list[k], name);
            return said < 0 ? EX_IOERR : 2;
        }
        return c->run(words);
    }
    return worker_command("run", (const char *const *)words->list + 1);
}

/* Where this binary lies, kept from the start: after an upgrade on disk the kernel's own link says "(deleted)". */
static bool find_binary(void) {
    ssize_t n = readlink("/proc/self/exe", binary, sizeof binary - 1);
    if (n <= 0) return false;
    binary[n] = '\0';
    return true;
}

int main(int argc, char **argv) {
    struct error err;
    struct buf problems = {0};
    struct words words = {.original = argv};
    bool help = argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0;
    if (argc == 2 && strcmp(argv[1], "--version") == 0) return run_version(&words);
    /* Threads that only hash or wait for a store need no malloc arena each. */
    if (mallopt(M_ARENA_MAX, 2) == 0) log_line(LOG_DEBUG, "malloc keeps its arenas");
    words.list = calloc((size_t)argc + 2, sizeof *words.list);
    if (!words.list || !find_binary() || !listen_inherit(&sockets, &err)) {
        log_line(LOG_ERROR, "kasma cannot start: %s", words.list ? err.message : "out of memory");
        log_flush();
        free(words.list);
        return EX_OSERR;
    }
    for (int i = 0; i < argc; i++) words.list[i] = argv[i];
    words.count = argc;
    int status;
    if (config_load(&words.count, words.list, &problems) || help)
        status = help ? usage() : words.count < 2 ? 2 : run(&words);
    else
        status = fprintf(stderr, "kasma: the settings have problems:\n%.*s", (int)problems.len, problems.data) < 0
                     ? EX_IOERR
                     : EX_CONFIG;
    if (argc < 2 && status == 0) status = 2;
    buf_free(&problems);
    free(words.list);
    log_flush();
    return fflush(stdout) == 0 ? status : EX_IOERR;
}
