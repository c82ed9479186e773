/* Listening sockets that outlive worker processes.
 *
 * The supervisor opens one SO_REUSEPORT socket for each worker and keeps it open: what waits in a socket's accept queue
 * while its worker is started again, or while a new binary takes over, is not lost. (Closing a SO_REUSEPORT listener
 * resets what waits in its queue.) Sockets reach a new binary through the environment variable KASMA_INHERIT, and the
 * first binary through LISTEN_FDS when systemd opened them. */
#ifndef KASMA_RUNTIME_LISTEN_H
#define KASMA_RUNTIME_LISTEN_H

#include <stddef.h>

#include "runtime/error.h"

#define LISTEN_MAX 1024

struct listen_set {
    int fd[LISTEN_MAX];
    size_t count;
    int ready_fd;  /* where an upgraded process says that it is ready; -1: nobody waits */
    char name[80]; /* "127.0.0.1:5000", for people */
    int port;
};

/* Takes what KASMA_INHERIT and LISTEN_FDS say, and removes them from the environment: call before config_load, which
 * knows no such settings. False: they are there and wrong. */
bool listen_inherit(struct listen_set *set, struct error *err);
/* Opens sockets on host:port until there are `count`; those already there stay and fix the address. Port 0 takes a
 * free one. Sockets that were handed in without SO_REUSEPORT cannot be multiplied: the set then stays smaller. */
bool listen_open(struct listen_set *set, const char *host, int port, size_t count, struct error *err);
/* The value of KASMA_INHERIT for a new binary. False when it does not fit. */
bool listen_export(const struct listen_set *set, int ready_fd, char *out, size_t size);
/* Which sockets worker `index` of `workers` serves, into out[LISTEN_MAX]: every socket has a worker, every worker a
 * socket. */
size_t listen_share(const struct listen_set *set, size_t index, size_t workers, int *out);

#endif
