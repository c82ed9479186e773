/* kasma: one binary, sub-commands. What serves and works is C; the other commands are Lua files under lua/kasma/cli. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/config.h"
#include "runtime/log.h"
#include "runtime/supervisor.h"
#include "script/worker.h"

static const struct {
    const char *name, *help;
} commands[] = {
    {"serve", "answer HTTP, with a worker process per core"},
    {"work", "run jobs, the outbox relay and what falls due"},
    {"all", "serve and work"},
    {"migrate", "bring the database up to date (--plan, --check, --to N)"},
    {"seed", "make the demo tenant"},
    {"tenant", "tenant create KEY: make a tenant"},
    {"user", "user create-admin EMAIL: make a platform owner"},
    {"openapi", "print the API document"},
    {"config", "config print [--origins], config check"},
    {"healthcheck", "exit 0 when the server on HOST and PORT is ready"},
    {"lua", "lua FILE [ARG...]: run a Lua file with the core modules"},
    {"version", "print the version"},
};
#define COMMANDS (sizeof commands / sizeof *commands)

static int usage(FILE *to) {
    int ok = fprintf(to, "kasma %s: commerce, content and learning for many tenants.\n\nUsage: kasma COMMAND [--setting value ...]\n\n", KASMA_VERSION);
    for (size_t i = 0; i < COMMANDS && ok >= 0; i++) ok = fprintf(to, "  %-12s %s\n", commands[i].name, commands[i].help);
    if (ok >= 0)
        ok = fprintf(to, "\nEvery setting is a flag (--port 5000), an environment variable (PORT=5000), or a line of .env or\n"
                         "/etc/kasma/kasma.conf. `kasma config print` lists them. `kasma COMMAND --help` tells more.\n");
    return ok < 0 ? 1 : 0;
}

static int print_config(bool origins, bool help) {
    struct config_entry e;
    int ok = 0;
    for (size_t i = 0; config_entry(i, &e) && ok >= 0; i++) {
        if (help)
            ok = printf("  --%-26s %s%s%s\n", e.name, e.help, *e.shown ? "; now " : "", e.shown);
        else if (origins)
            ok = printf("%-26s %-40s %s%s\n", e.name, e.shown, e.origin, e.live ? ", changed by HUP" : "");
        else if (*e.shown)
            ok = printf("%s=%s\n", e.name, e.shown);
    }
    return ok < 0 ? 1 : 0;
}

static int run_worker(const char *role, int listen_fd, int ready_fd) {
    const struct worker_options o = {.role = role, .listen_fd = listen_fd, .ready_fd = ready_fd};
    return worker_run(&o);
}

static int supervise(const char *command, char **argv) {
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int64_t workers = config_int("WORKERS");
    if (workers == 0) workers = cores > 0 ? cores : 1;
    const struct supervisor_options o = {
        .serve = strcmp(command, "work") == 0 ? 0 : (unsigned)workers,
        .work = strcmp(command, "serve") == 0 ? 0 : 1,
        .host = config_str("HOST"),
        .port = (int)config_int("PORT"),
        .argv = argv,
        .worker = run_worker,
    };
    return supervisor_run(&o);
}

static bool wants_help(int argc, char **argv) {
    for (int i = 2; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0) return true;
    return false;
}

/* A copy of argv that flags are taken out of; the original goes to the next binary in an upgrade. */
static char **copy_words(int argc, char **argv) {
    char **copy = calloc((size_t)argc + 1, sizeof *copy);
    for (int i = 0; copy && i < argc; i++) copy[i] = argv[i];
    return copy;
}

static int run(int argc, char **words, char **argv) {
    const char *command = words[1];
    if (strcmp(command, "config") == 0) {
        bool origins = argc > 3 && strcmp(words[3], "--origins") == 0;
        return argc > 2 && strcmp(words[2], "check") == 0 ? 0 : print_config(origins, false);
    }
    bool supervised = strcmp(command, "serve") == 0 || strcmp(command, "work") == 0 || strcmp(command, "all") == 0;
    if (supervised && wants_help(argc, words)) {
        int ok = printf("kasma %s: runs in the foreground until TERM. HUP reads configuration and rules again, USR2 starts the binary on disk\n"
                        "with the same sockets and drains this one. Settings:\n\n", command);
        return ok < 0 ? 1 : print_config(false, true);
    }
    if (supervised) return supervise(command, argv);
    const char *const *args = (const char *const *)words + 2;
    if (strcmp(command, "lua") == 0) return worker_command("script", args);
    return worker_command("run", args - 1);
}

int main(int argc, char **argv) {
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) return usage(argc < 2 ? stderr : stdout) || argc < 2 ? 2 : 0;
    if (strcmp(argv[1], "version") == 0 || strcmp(argv[1], "--version") == 0) return printf("kasma %s\n", KASMA_VERSION) < 0 ? 1 : 0;
    char **words = copy_words(argc, argv);
    struct buf problems = {0};
    if (!words) return 70;
    int left = argc;
    if (!config_load(&left, words, &problems)) {
        int ok = fprintf(stderr, "kasma: the configuration has problems:\n%.*s", (int)problems.len, problems.data);
        buf_free(&problems);
        free(words);
        return ok < 0 ? 70 : 78;
    }
    int status = run(left, words, argv);
    buf_free(&problems);
    free(words);
    log_flush();
    return fflush(stdout) == 0 ? status : 1;
}
