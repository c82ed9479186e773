/* A raw-socket HTTP client for tests that run the server in the same process and on the same loop: everything that
 * waits turns the loop, until a condition holds or a minute has passed. */
#ifndef KASMA_TESTS_HTTP_CLIENT_H
#define KASMA_TESTS_HTTP_CLIENT_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "http/request.h"
#include "http/server.h"
#include "runtime/buf.h"
#include "runtime/clock.h"
#include "runtime/loop.h"

#define LIMIT_US 60000000u

struct client {
    int fd;
    struct buf in;    /* all that came, NUL-terminated by client_text */
    size_t counted;   /* bytes of it that are whole answers */
    unsigned answers; /* how many */
    bool eof;
};

static int test_port;

static inline void turn_loop(void) {
    (void)uv_run(loop_get(), UV_RUN_NOWAIT);
}

#define WAIT_UNTIL(condition)                                                                                          \
    do {                                                                                                               \
        uint64_t wait_from = clock_mono_us();                                                                          \
        while (!(condition) && clock_mono_us() - wait_from < LIMIT_US) turn_loop();                                    \
        assert_true(condition);                                                                                        \
    } while (0)

static inline int test_listen(struct server *s) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    struct error err;
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &len), 0);
    assert_true(server_listen_fd(s, fd, &err));
    return test_port = ntohs(at.sin_port);
}

/* `room`: bytes that the kernel keeps for it; 0: as many as it likes. */
static inline void client_open_narrow(struct client *c, int room) {
    *c = (struct client){.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    if (room) assert_int_equal(setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room), 0);
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)test_port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_true(c->fd >= 0);
    assert_int_equal(connect(c->fd, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(fcntl(c->fd, F_SETFL, O_NONBLOCK), 0);
    int on = 1;
    assert_int_equal(setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on), 0);
}

static inline void client_open(struct client *c) {
    client_open_narrow(c, 0);
}

static inline void client_close(struct client *c) {
    assert_int_equal(close(c->fd), 0);
    buf_free(&c->in);
    c->fd = -1;
}

/* Takes what has come. True: something changed. */
static inline bool client_poll(struct client *c) {
    char piece[65536];
    ssize_t n = c->eof ? -1 : recv(c->fd, piece, sizeof piece, 0);
    if (n == 0 || (n < 0 && !c->eof && errno != EAGAIN)) c->eof = true;
    if (n > 0) assert_true(buf_add(&c->in, str_n(piece, (size_t)n)));
    return n >= 0;
}

static inline const char *client_text(struct client *c) {
    assert_true(buf_reserve(&c->in, 1));
    c->in.data[c->in.len] = '\0';
    return c->in.data;
}

static inline void client_send(struct client *c, struct str bytes) {
    uint64_t from = clock_mono_us();
    while (bytes.len && clock_mono_us() - from < LIMIT_US) {
        ssize_t n = send(c->fd, bytes.at, bytes.len, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN) return; /* the server has closed: the test looks at what it said */
        if (n > 0) bytes = str_n(bytes.at + n, bytes.len - (size_t)n);
        turn_loop();
        (void)client_poll(c);
    }
}

static inline void client_says(struct client *c, const char *text) {
    client_send(c, str_of(text));
}

/* Length of the next answer that was not counted, 0 when it is not complete. 100 Continue is an answer of its own.
 * `head`: the request was HEAD. */
static inline size_t answer_length(struct client *c, bool head) {
    const char *at = client_text(c) + c->counted;
    size_t left = c->in.len - c->counted;
    const char *end = strstr(at, "\r\n\r\n");
    if (!end) return 0;
    size_t head_len = (size_t)(end - at) + 4;
    if (head || strncmp(at, "HTTP/1.1 100", 12) == 0 || strncmp(at, "HTTP/1.1 204", 12) == 0 ||
        strncmp(at, "HTTP/1.1 304", 12) == 0)
        return head_len;
    const char *chunked = strstr(at, "Transfer-Encoding: chunked\r\n");
    if (chunked && chunked < end) {
        const char *last = strstr(end, "\r\n0\r\n\r\n");
        return last ? (size_t)(last - at) + 7 : 0;
    }
    const char *length = strstr(at, "Content-Length: ");
    if (!length || length > end) return 0;
    size_t body = strtoul(length + 16, NULL, 10);
    return left >= head_len + body ? head_len + body : 0;
}

static inline unsigned answers_in(struct client *c) {
    for (size_t len; (len = answer_length(c, false)) != 0; c->answers++) c->counted += len;
    return c->answers;
}

static inline void client_wait(struct client *c, unsigned answers) {
    WAIT_UNTIL(((void)client_poll(c), answers_in(c) >= answers));
}

static inline void client_wait_close(struct client *c) {
    WAIT_UNTIL(((void)client_poll(c), c->eof));
}

/* One request on a connection of its own; what came back until the answer was complete or the connection was closed. */
static inline char *talk(const char *request) {
    struct client c;
    client_open(&c);
    client_says(&c, request);
    bool head = strncmp(request, "HEAD", 4) == 0;
    WAIT_UNTIL(((void)client_poll(&c), c.eof || answer_length(&c, head)));
    char *text = strdup(client_text(&c));
    client_close(&c);
    return text;
}

#endif
