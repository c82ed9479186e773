#include "runtime/probe.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/clock.h"
#include "runtime/str.h"

static bool wait_for(int fd, short events, uint64_t until_us) {
    uint64_t now = clock_mono_us();
    if (now >= until_us) return false;
    struct pollfd p = {.fd = fd, .events = events};
    return poll(&p, 1, (int)((until_us - now + 999) / 1000)) == 1;
}

static int ask(int fd, const char *host, const char *path, uint64_t until_us, struct error *err) {
    int why = 0;
    socklen_t size = sizeof why;
    if (!wait_for(fd, POLLOUT, until_us) || getsockopt(fd, SOL_SOCKET, SO_ERROR, &why, &size) != 0 || why != 0) {
        error_set(err, ERR_UNAVAILABLE, "%s", why ? strerror(why) : "no connection in time");
        return -1;
    }
    char text[512];
    int n = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, host);
    if (n < 0 || (size_t)n >= sizeof text || send(fd, text, (size_t)n, MSG_NOSIGNAL) != n) {
        error_set(err, ERR_UNAVAILABLE, "the question could not be sent");
        return -1;
    }
    size_t got = 0;
    while (got < 12 && wait_for(fd, POLLIN, until_us)) {
        ssize_t r = recv(fd, text + got, sizeof text - got, 0);
        if (r <= 0) break;
        got += (size_t)r;
    }
    int64_t status;
    if (got < 12 || memcmp(text, "HTTP/1.", 7) != 0 || !str_int64(str_n(text + 9, 3), &status)) {
        error_set(err, ERR_UNAVAILABLE, "no answer in time");
        return -1;
    }
    return (int)status;
}

int probe_http(const char *host, int port, const char *path, int timeout_ms, struct error *err) {
    bool any4 = strcmp(host, "0.0.0.0") == 0, any6 = strcmp(host, "::") == 0;
    host = any4 ? "127.0.0.1" : any6 ? "::1" : host;
    char service[8];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *found = NULL;
    int n = snprintf(service, sizeof service, "%d", port);
    int rc = n > 0 && (size_t)n < sizeof service ? getaddrinfo(host, service, &hints, &found) : EAI_NONAME;
    if (rc != 0) {
        error_set(err, ERR_INVALID, "%s: %s", host, gai_strerror(rc));
        return -1;
    }
    uint64_t until = clock_mono_us() + (uint64_t)timeout_ms * 1000;
    int status = -1, fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || (connect(fd, found->ai_addr, found->ai_addrlen) != 0 && errno != EINPROGRESS))
        error_set(err, ERR_UNAVAILABLE, "%s port %d: %s", host, port, strerror(errno));
    else
        status = ask(fd, host, path, until, err);
    freeaddrinfo(found);
    if (fd >= 0 && close(fd) != 0) return -1;
    return status;
}
