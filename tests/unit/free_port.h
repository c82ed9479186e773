/* A port of 127.0.0.1 for a server of a test's own.
 *
 * It lies below those that the kernel gives to outgoing connections (see stack/free-port): one of those may be the near
 * end of somebody's connection when the server takes it, or takes it again after a restart; and a client that knocks
 * again and again at such a port while nobody listens gets it as its own end once in a while, is connected to itself,
 * and keeps the port from its owner. Until this process ends the port is no other test's: a Unix socket whose name
 * holds the number says so, also while no server listens. */
#ifndef KASMA_TESTS_FREE_PORT_H
#define KASMA_TESTS_FREE_PORT_H

#include <arpa/inet.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static inline unsigned first_port_of_kernel(void) {
    unsigned first = 0;
    FILE *f = fopen("/proc/sys/net/ipv4/ip_local_port_range", "re");
    if (!f) return 32768;
    if (fscanf(f, "%u", &first) != 1) first = 32768;
    (void)fclose(f);
    return first;
}

static inline bool nobody_listens(unsigned port) {
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool free = fd >= 0 && bind(fd, (struct sockaddr *)&at, sizeof at) == 0;
    if (fd >= 0) (void)close(fd);
    return free;
}

/* -1: there is none. */
static inline int free_port(void) {
    enum { LOWEST = 10000, TRIES = 1000 };
    unsigned above = first_port_of_kernel(), random;
    if (above < LOWEST + TRIES) above = 65536; /* a machine that gives them all away */
    for (int i = 0; i < TRIES; i++) {
        if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random) return -1;
        unsigned port = LOWEST + random % (above - LOWEST);
        struct sockaddr_un name = {.sun_family = AF_UNIX};
        int n = snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "kasma-test-port-%u", port);
        socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
        int claim = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (claim >= 0 && bind(claim, (struct sockaddr *)&name, len) == 0 && nobody_listens(port)) return (int)port;
        if (claim >= 0) (void)close(claim);
    }
    return -1;
}

#endif
