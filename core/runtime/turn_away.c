#include "runtime/turn_away.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/log.h"

/* A connection that is closed while bytes of its request are unread, or on their way, is reset, and the client may
 * never see the answer. So what has come is read, the sending side is closed, and the rest is waited for a little. */
#define LINGER_US 200000
#define PLACES 64

static const char answer[] =
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: 92\r\n"
    "Retry-After: 1\r\nConnection: close\r\n\r\n"
    "{\"message\":\"Service temporarily unavailable\",\"error\":\"Service Unavailable\",\"statusCode\":503}";

static struct {
    int fd;
    uint64_t until_us;
} told[PLACES];
static unsigned first, count; /* a ring: the oldest first */

static void drop_input(int fd) {
    char bytes[4096];
    for (int i = 0; i < 16 && recv(fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0; i++) continue;
}

static void close_first(void) {
    drop_input(told[first].fd);
    if (close(told[first].fd) != 0) log_line(LOG_WARN, "close: %s", strerror(errno));
    first = (first + 1) % PLACES;
    count--;
}

void turn_away(int listening, uint64_t now_us) {
    for (int i = 0; i < PLACES; i++) {
        int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) return;
        if (count == PLACES) close_first();
        drop_input(fd);
        ssize_t n = send(fd, answer, sizeof answer - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
        bool said = n == (ssize_t)sizeof answer - 1 && shutdown(fd, SHUT_WR) == 0;
        unsigned at = (first + count++) % PLACES;
        told[at].fd = fd;
        told[at].until_us = said ? now_us + LINGER_US : now_us;
    }
}

bool turn_away_close(uint64_t now_us) {
    while (count > 0 && told[first].until_us <= now_us) close_first();
    return count > 0;
}
