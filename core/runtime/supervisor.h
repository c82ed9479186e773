/* The parent of the worker processes: opens the listening sockets, forks, restarts what dies, passes signals on, hands over to a new binary.
 *
 * TERM, QUIT, INT: workers finish what they have, then all ends. HUP: configuration and rules are read again. USR2: the binary on disk is
 * started with the same inherited sockets; when it says that it is ready the old workers drain, when it does not the old ones stay. */
#ifndef KASMA_RUNTIME_SUPERVISOR_H
#define KASMA_RUNTIME_SUPERVISOR_H

#include <stdbool.h>

struct supervisor_options {
    unsigned serve, work; /* worker processes of each role */
    const char *host;
    int port;
    char **argv; /* as main got it, for the new binary */
    /* What a worker does; runs in the forked child and gives its exit status. */
    int (*worker)(const char *role, int listen_fd, int ready_fd);
};

/* Returns the exit status of the process. */
int supervisor_run(const struct supervisor_options *o);

#endif
