#include "runtime/listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/str.h"

#define BACKLOG 4096 /* the kernel cuts it to net.core.somaxconn */
#define SYSTEMD_FIRST 3

static bool no_inherit(int fd) {
    int flags = fcntl(fd, F_GETFD);
    return flags >= 0 && fcntl(fd, F_SETFD, flags | FD_CLOEXEC) == 0;
}

static bool is_listening(int fd) {
    int yes = 0;
    socklen_t size = sizeof yes;
    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &yes, &size) == 0 && yes;
}

static bool keep(struct listen_set *set, int64_t fd, struct error *err) {
    if (set->count == LISTEN_MAX) return error_set(err, ERR_LIMIT, "more than %d sockets were handed over", LISTEN_MAX);
    if (fd < 0 || fd > INT32_MAX || !is_listening((int)fd) || !no_inherit((int)fd))
        return error_set(err, ERR_INVALID, "descriptor %lld that was handed over is no listening socket",
                         (long long)fd);
    set->fd[set->count++] = (int)fd;
    return true;
}

/* "3,4,5;9": sockets, then the descriptor for "ready". */
static bool take_list(struct listen_set *set, const char *text, struct error *err) {
    struct str rest = str_of(text);
    const char *semicolon = strchr(text, ';');
    int64_t n;
    if (semicolon) {
        struct str tail = str_of(semicolon + 1);
        if (!str_int64(tail, &n) || n < 0 || n > INT32_MAX || !no_inherit((int)n))
            return error_set(err, ERR_INVALID, "KASMA_INHERIT names no descriptor after the semicolon");
        set->ready_fd = (int)n;
        rest.len = (size_t)(semicolon - text);
    }
    while (rest.len) {
        const char *comma = memchr(rest.at, ',', rest.len);
        size_t len = comma ? (size_t)(comma - rest.at) : rest.len;
        if (!str_int64(str_n(rest.at, len), &n))
            return error_set(err, ERR_INVALID, "KASMA_INHERIT is no list of numbers");
        if (!keep(set, n, err)) return false;
        rest = comma ? str_n(comma + 1, rest.len - len - 1) : str_n("", 0);
    }
    return true;
}

static bool take_systemd(struct listen_set *set, struct error *err) {
    const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");
    int64_t mine, count;
    if (!pid || !fds || !str_int64(str_of(pid), &mine) || mine != getpid()) return true;
    if (!str_int64(str_of(fds), &count) || count < 0 || count > LISTEN_MAX)
        return error_set(err, ERR_INVALID, "LISTEN_FDS is no count of sockets");
    for (int64_t i = 0; i < count; i++)
        if (!keep(set, SYSTEMD_FIRST + i, err)) return false;
    return true;
}

bool listen_inherit(struct listen_set *set, struct error *err) {
    *set = (struct listen_set){.ready_fd = -1};
    const char *list = getenv("KASMA_INHERIT");
    bool ok = list ? take_list(set, list, err) : take_systemd(set, err);
    static const char *const names[] = {"KASMA_INHERIT", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (unsetenv(names[i]) != 0) return error_set(err, ERR_INTERNAL, "unsetenv %s failed", names[i]);
    return ok;
}

static int open_one(const struct sockaddr *addr, socklen_t len, struct error *err) {
    int fd = socket(addr->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1;
    bool ok = fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 &&
              setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0 && bind(fd, addr, len) == 0 &&
              listen(fd, BACKLOG) == 0;
    if (ok) return fd;
    error_set(err, ERR_UNAVAILABLE, "%s", strerror(errno));
    if (fd >= 0 && close(fd) != 0) return -1;
    return -1;
}

/* The address of the first socket, as text into `name` and as an address for more of them. */
static bool describe(struct listen_set *set, struct sockaddr_storage *addr, socklen_t *len) {
    char host[64], port[8];
    *addr = (struct sockaddr_storage){0};
    *len = sizeof *addr;
    if (getsockname(set->fd[0], (struct sockaddr *)addr, len) != 0) return false;
    if (addr->ss_family != AF_INET && addr->ss_family != AF_INET6) {
        int n = snprintf(set->name, sizeof set->name, "an inherited socket");
        return n > 0;
    }
    if (getnameinfo((struct sockaddr *)addr, *len, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return false;
    int64_t number;
    if (!str_int64(str_of(port), &number)) return false;
    set->port = (int)number;
    bool v6 = addr->ss_family == AF_INET6;
    int n = snprintf(set->name, sizeof set->name, "%s%s%s:%s", v6 ? "[" : "", host, v6 ? "]" : "", port);
    return n > 0 && (size_t)n < sizeof set->name;
}

static bool open_first(struct listen_set *set, const char *host, int port, struct error *err) {
    char service[8];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *found = NULL;
    int n = snprintf(service, sizeof service, "%d", port);
    int rc = n > 0 && (size_t)n < sizeof service ? getaddrinfo(host, service, &hints, &found) : EAI_NONAME;
    if (rc != 0) return error_set(err, ERR_INVALID, "cannot listen on %s: %s", host, gai_strerror(rc));
    struct error why = {0};
    int fd = open_one(found->ai_addr, found->ai_addrlen, &why);
    freeaddrinfo(found);
    if (fd < 0) return error_set(err, ERR_UNAVAILABLE, "cannot listen on %s port %d: %s", host, port, why.message);
    set->fd[set->count++] = fd;
    return true;
}

bool listen_open(struct listen_set *set, const char *host, int port, size_t count, struct error *err) {
    if (count > LISTEN_MAX) return error_set(err, ERR_LIMIT, "more than %d workers", LISTEN_MAX);
    bool inherited = set->count > 0;
    if (!inherited && !open_first(set, host, port, err)) return false;
    struct sockaddr_storage addr;
    socklen_t len;
    if (!describe(set, &addr, &len)) return error_set(err, ERR_INTERNAL, "the listening socket has no address");
    bool inet = addr.ss_family == AF_INET || addr.ss_family == AF_INET6;
    while (inet && set->count < count) {
        struct error why = {0};
        int fd = open_one((struct sockaddr *)&addr, len, &why);
        if (fd < 0 && inherited) break; /* shared then, see listen_share */
        if (fd < 0) return error_set(err, ERR_UNAVAILABLE, "cannot listen on %s: %s", set->name, why.message);
        set->fd[set->count++] = fd;
    }
    return true;
}

bool listen_export(const struct listen_set *set, int ready_fd, char *out, size_t size) {
    size_t at = 0;
    for (size_t i = 0; i < set->count; i++) {
        int n = snprintf(out + at, size - at, "%s%d", i ? "," : "", set->fd[i]);
        if (n < 0 || (size_t)n >= size - at) return false;
        at += (size_t)n;
    }
    int n = snprintf(out + at, size - at, ";%d", ready_fd);
    return n > 0 && (size_t)n < size - at;
}

size_t listen_share(const struct listen_set *set, size_t index, size_t workers, int *out) {
    if (set->count == 0 || workers == 0) return 0;
    if (index >= set->count) {
        out[0] = set->fd[index % set->count];
        return 1;
    }
    size_t n = 0;
    for (size_t i = index; i < set->count; i += workers) out[n++] = set->fd[i];
    return n;
}
