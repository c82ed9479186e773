// link: stores
/* A server that closes connections behind our back, as servers and firewalls do with those that nobody used for some
 * minutes. It is a process of this test that speaks just enough of the protocol: it greets, and ends a connection after
 * each ping that it has answered, so that the next call always finds a closed one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <poll.h>

#include "redis_server.h" /* run_until, run_closed */
#include "runtime/log.h"
#include "stores/mongo.h"

enum { MOST = 64, MESSAGE_MAX = 65536, OP_REPLY = 1, OP_QUERY = 2004, OP_MSG = 2013 };

static char url[128];
static pid_t pid;

static bool send_all(int fd, const void *data, size_t len) {
    const char *at = data;
    while (len) {
        ssize_t n = send(fd, at, len, MSG_NOSIGNAL);
        if (n <= 0) return false;
        at += n;
        len -= (size_t)n;
    }
    return true;
}

static bool answer(int fd, const int32_t head[4]) {
    bson_t *doc = BCON_NEW("ok", BCON_DOUBLE(1), "ismaster", BCON_BOOL(true), "helloOk", BCON_BOOL(true), "readOnly",
                           BCON_BOOL(false), "minWireVersion", BCON_INT32(0), "maxWireVersion", BCON_INT32(17),
                           "maxBsonObjectSize", BCON_INT32(16777216), "maxMessageSizeBytes", BCON_INT32(48000000),
                           "maxWriteBatchSize", BCON_INT32(100000));
    char text[1024] = {0};
    /* The reply of the old form has flags, cursor, first and number before the document; the new one flags and a kind.
     */
    size_t before = 16 + (head[3] == OP_QUERY ? 20 : 5);
    bool fits = before + doc->len <= sizeof text;
    if (fits) {
        int32_t mine[4] = {(int32_t)(before + doc->len), 1, head[1], head[3] == OP_QUERY ? OP_REPLY : OP_MSG};
        int32_t one = 1;
        memcpy(text, mine, sizeof mine);
        if (head[3] == OP_QUERY) memcpy(text + 32, &one, sizeof one);
        memcpy(text + before, bson_get_data(doc), doc->len);
    }
    bool sent = fits && send_all(fd, text, before + doc->len);
    bson_destroy(doc);
    return sent;
}

/* False: the connection is over. */
static bool serve_one(int fd) {
    static const char ping[] = "\x10ping"; /* with its end: an int32 member of this name */
    int32_t head[4];
    char body[MESSAGE_MAX];
    if (recv(fd, head, sizeof head, MSG_WAITALL) != (ssize_t)sizeof head) return false;
    size_t len = (size_t)head[0] - sizeof head;
    if (head[0] < 16 || len > sizeof body || recv(fd, body, len, MSG_WAITALL) != (ssize_t)len) return false;
    return answer(fd, head) && !memmem(body, len, ping, sizeof ping);
}

static void serve(int listener) {
    struct pollfd fds[MOST] = {{.fd = listener, .events = POLLIN}};
    nfds_t count = 1;
    for (;;) {
        if (poll(fds, count, -1) < 0) _exit(1);
        for (nfds_t i = count - 1; i > 0; i--) {
            if (!fds[i].revents || serve_one(fds[i].fd)) continue;
            close(fds[i].fd);
            fds[i] = fds[--count];
        }
        if (fds[0].revents && count < MOST)
            fds[count++] = (struct pollfd){.fd = accept(listener, NULL, NULL), .events = POLLIN};
    }
}

struct seen {
    int count;
    struct error err;
};

static void keep(void *data, const struct mongo_result *result, const struct error *err) {
    (void)result;
    struct seen *seen = data;
    seen->count++;
    if (err) seen->err = *err;
}

static bool answered(void *data) {
    return ((struct seen *)data)->count > 0;
}

static void a_closed_connection_is_not_a_server_that_is_away(void **state) {
    (void)state;
    struct error err = {0};
    struct mongo *m =
        mongo_new(url, &(struct mongo_options){.threads = 1, .select_ms = 30000, .timeout_ms = 60000}, &err);
    assert_non_null(m);
    for (int i = 0; i < 4; i++) {
        struct seen seen = {0};
        assert_non_null(mongo_call(m, mongo_request_new(MONGO_PING, "ping", STR(""), 0), keep, &seen, &err));
        assert_true(run_until(answered, &seen, 60));
        assert_string_equal(seen.err.message, "");
        assert_true(mongo_up(m));
    }
    mongo_free(m);
    run_closed();
}

static int start(void **state) {
    (void)state;
    (void)signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_ERROR);
    if (!loop_open()) return -1;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    if (listener < 0 || bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, MOST) != 0 ||
        getsockname(listener, (struct sockaddr *)&at, &len) != 0)
        return -1;
    (void)snprintf(url, sizeof url, "mongodb://127.0.0.1:%d/kasma_test", ntohs(at.sin_port));
    pid = fork();
    if (pid == 0) serve(listener);
    close(listener);
    return pid > 0 ? 0 : -1;
}

static int stop(void **state) {
    (void)state;
    if (pid > 0 && kill(pid, SIGKILL) == 0) (void)waitpid(pid, NULL, 0);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_closed_connection_is_not_a_server_that_is_away)};
    return cmocka_run_group_tests(tests, start, stop);
}
