/* The parent of the worker processes: starts them, starts them again, stops them, hands over to a new binary.
 *
 * It has no event loop and no Lua: a poll over signals and one pipe, so that nothing a worker can break breaks it. The
 * workers are forked, not executed: they share the code pages and the shared mappings (metrics, heartbeats), and a
 * restart costs a millisecond. Workers end when their parent dies (PR_SET_PDEATHSIG), so that none is left behind.
 *
 *   TERM, QUIT, INT   not ready, wait DRAIN_WAIT, stop accepting, finish what runs (SHUTDOWN_GRACE), exit 0; a second
 * one ends at once HUP               plan->reload here, then HUP to every worker USR2              start the new binary
 * with the same listening sockets, wait until it is ready, then drain as above; when it does not become ready, it is
 * ended and this one goes on */
#ifndef KASMA_RUNTIME_SUPERVISOR_H
#define KASMA_RUNTIME_SUPERVISOR_H

#include <stdint.h>

#include "runtime/listen.h"

/* What one worker process is told. */
struct supervisor_worker {
    unsigned index;      /* its slot, 0 .. processes-1; stays the same when it is started again */
    const char *role;    /* "serve", "work" or "all" */
    const int *sockets;  /* listening sockets that are its own to serve */
    size_t socket_count; /* 0: it does not serve */
    bool upgrading;      /* an older binary still serves: do not take requests before the stores are reached */
};

struct supervisor_plan {
    unsigned servers, workers;  /* processes of role serve, of role work */
    struct listen_set *sockets; /* open; empty without servers */
    int work_socket;            /* a listening socket of the workers of role work, for their metrics; -1: none */
    uint64_t drain_ms, grace_ms;
    uint64_t stuck_ms;      /* a worker whose loop has not turned for so long is killed; 0: never */
    uint64_t upgrade_ms;    /* how long a new binary may take */
    const char *binary;     /* what USR2 executes */
    char *const *arguments; /* with these */
    const char *pid_file;   /* NULL: none */
    bool (*reload)(void);   /* reads the settings again; false: they are bad and the old ones stay */
    /* The worker's whole life, in the child; what it returns is its exit status. */
    int (*run)(const struct supervisor_worker *worker);
};

/* Returns the exit status of the command. metrics_open(servers + workers + 1) must have been called. */
int supervisor_run(const struct supervisor_plan *plan);

/* For a worker: it takes requests (or jobs) now. */
void supervisor_tell_ready(void);
/* For a worker: the pid of the process that worked in its place and died, whose traces (its heartbeat) are to be
 * cleared away by whoever has a connection to the stores; 0: none did. */
int64_t supervisor_predecessor(void);
/* For a worker, from its loop, about once a second: the loop turns. */
void supervisor_beat(void);

#endif
