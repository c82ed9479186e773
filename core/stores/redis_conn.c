/* A `struct redis_conn` is the lasting thing; a `struct link` is one TCP (or unix) connection of it. A link that is
 * dropped forgets its connection (`link->conn = NULL`) and frees itself, with its parser, when libuv has closed it; so
 * a callback may drop or close anything, and loops only have to look whether `link->conn` is still there. */
#include "stores/redis_conn.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#include "runtime/buf.h"
#include "runtime/clock.h"
#include "runtime/loop.h"
#include "stores/redis_metric.h"

enum {
    READ_BYTES = 64 * 1024,
    MAX_OUT = 64 * 1024 * 1024, /* most bytes that wait to be written */
    KEEP_OUT = 256 * 1024,      /* a write buffer larger than this is not kept */
    MAX_ARGS = 1024 * 1024,     /* of one command: the server's own limit */
    BACKOFF_MS = 50,
    BACKOFF_MAX_MS = 2000,
    KEEPALIVE_S = 15,
};

struct link {
    struct redis_conn *conn; /* NULL: dropped */
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } io;
    uv_getaddrinfo_t resolve;
    uv_connect_t connect;
    uv_write_t write;
    struct addrinfo *addresses; /* all of them; freed with the link */
    struct addrinfo *next;      /* to try when the present one does not connect */
    struct redis_parser *parser;
    struct buf writing; /* owned by libuv while `write` is under way */
    bool has_handle, resolving, connected, in_write;
};

struct redis_op {
    struct redis_op *next;
    redis_done *done; /* NULL: nobody wants the answer */
    void *data;
    uint64_t started_us;
    uint64_t deadline; /* uv_now; 0: none */
    uint32_t metric;
    bool wrap, handshake;
    size_t expect, got;
    struct redis_reply *many;          /* `wrap`: the array that is being filled */
    const struct redis_script *script; /* to load when the server lacks it; NULL: plain command */
    struct buf tail;                   /* `script`: the formatted arguments after the script itself */
    size_t argc;                       /* `script`: of the whole command */
};

struct redis_conn {
    struct redis_url url;
    struct redis_conn_options opts;
    char name[64];
    enum { CONNECTING, UP, DOWN, CLOSED } state;
    bool known_away; /* the last thing known of the server is a failure */
    char why[128];
    struct link *link;
    struct redis_op *head, **tail;
    size_t in_flight;
    struct buf out;
    struct loop_hook flush;
    uv_timer_t limit, retry;
    uint64_t limit_at;              /* when `limit` fires, by uv_now; 0: not running */
    const struct redis_op *overdue; /* past its limit when looked at last; compared, never followed */
    unsigned failures;
    unsigned open_handles; /* timers not closed yet, then memory goes */
};

static char read_buffer[READ_BYTES]; /* the parser copies, so one is enough for the loop's thread */

static void connect_now(struct redis_conn *c);
static void drop(struct redis_conn *c, const struct error *why);

/* ---- commands as bytes ---- */

static void add_number(struct buf *b, char mark, size_t n) {
    char text[24];
    size_t at = sizeof text;
    text[--at] = '\n';
    text[--at] = '\r';
    do {
        text[--at] = (char)('0' + n % 10);
        n /= 10;
    } while (n);
    text[--at] = mark;
    memcpy(b->data + b->len, text + at, sizeof text - at);
    b->len += sizeof text - at;
}

static void add_arg(struct buf *b, struct str arg) {
    add_number(b, '$', arg.len);
    if (arg.len) memcpy(b->data + b->len, arg.at, arg.len);
    memcpy(b->data + b->len + arg.len, "\r\n", 2);
    b->len += arg.len + 2;
}

/* Room for a command of these arguments, header included. */
static size_t room(const struct str *args, size_t count) {
    size_t bytes = 24;
    for (size_t i = 0; i < count; i++) bytes += args[i].len + 26;
    return bytes;
}

static bool add_command(struct buf *b, const struct str *args, size_t count) {
    if (!buf_reserve(b, room(args, count))) return false;
    add_number(b, '*', count);
    for (size_t i = 0; i < count; i++) add_arg(b, args[i]);
    return true;
}

void redis_script_init(struct redis_script *script, struct str text) {
    unsigned char digest[EVP_MAX_MD_SIZE] = {0};
    unsigned int len = 0;
    script->text = text;
    /* When SHA-1 is not to be had (FIPS) the digest stays zero, which no server knows: EVAL then, always. */
    int made = EVP_Digest(text.at, text.len, digest, &len, EVP_sha1(), NULL);
    (void)made;
    for (size_t i = 0; i < 20; i++) {
        int two = snprintf(script->sha + 2 * i, 3, "%02x", digest[i]);
        (void)two;
    }
}

/* ---- operations ---- */

static void op_free(struct redis_op *op) {
    redis_reply_free(op->many);
    buf_free(&op->tail);
    free(op);
}

static void op_finish(struct redis_op *op, const struct redis_reply *reply, const struct error *err) {
    redis_metric_observe(op->metric, clock_mono_us() - op->started_us);
    struct error refused;
    if (reply && reply->type == REDIS_ERROR) {
        redis_reply_error(reply, &refused);
        reply = NULL;
        err = &refused;
    }
    if (op->done) op->done(op->data, reply, err);
    op_free(op);
}

void redis_op_cancel(struct redis_op *op) {
    op->done = NULL;
}

static void arm_limit(struct redis_conn *c);

static void on_limit(uv_timer_t *timer) {
    struct redis_conn *c = timer->data;
    c->limit_at = 0;
    uint64_t now = uv_now(loop_get());
    bool late = c->head && c->head->deadline && c->head->deadline <= now;
    if (late && c->overdue != c->head) {
        /* It may be this process that stood still, and the answer lies in the socket: that is read before the next
         * look. */
        c->overdue = c->head;
        int again = uv_timer_start(&c->limit, on_limit, 1, 0);
        (void)again; /* fails only without a callback */
        c->limit_at = now + 1;
        return;
    }
    c->overdue = NULL;
    if (late) {
        struct error why = {0};
        bool filled = error_set(&why, ERR_UNAVAILABLE, "Redis did not answer in time");
        (void)filled; /* always false */
        drop(c, &why);
        return;
    }
    arm_limit(c);
}

/* One timer for all: answers come in order, so only the oldest command needs watching. It is left to fire and look
 * again, which costs a timer call each time limit and not one each command. */
static void arm_limit(struct redis_conn *c) {
    uint64_t now = uv_now(loop_get());
    /* One that is about to fire is never put off. */
    if (!c->head || !c->head->deadline || (c->limit_at && (c->limit_at <= c->head->deadline || c->limit_at <= now + 1)))
        return;
    uint64_t wait = c->head->deadline > now ? c->head->deadline - now : 1;
    int started = uv_timer_start(&c->limit, on_limit, wait, 0);
    (void)started; /* fails only without a callback */
    c->limit_at = now + wait;
}

static void enqueue(struct redis_conn *c, struct redis_op *op) {
    op->next = NULL;
    *c->tail = op;
    c->tail = &op->next;
    c->in_flight += op->expect;
    arm_limit(c);
    loop_at_turn_end(&c->flush);
}

static void dequeue(struct redis_conn *c) {
    struct redis_op *op = c->head;
    c->head = op->next;
    if (!c->head) c->tail = &c->head;
    c->in_flight -= op->expect;
}

static uint64_t deadline_in(uint32_t ms) {
    return ms == REDIS_NO_LIMIT ? 0 : uv_now(loop_get()) + ms;
}

static bool may_send(const struct redis_conn *c, size_t count, size_t bytes, struct error *err) {
    if (c->state != UP && (c->state != CONNECTING || c->known_away))
        return error_set(err, ERR_UNAVAILABLE, "Redis is away: %s", c->why);
    if (bytes > MAX_OUT) return error_set(err, ERR_LIMIT, "a Redis command of %zu bytes is too large", bytes);
    if (c->in_flight + count > c->opts.max_in_flight || c->out.len + bytes > MAX_OUT)
        return error_set(err, ERR_BUSY, "%zu Redis commands are in flight", c->in_flight);
    return true;
}

static struct redis_op *op_new(struct redis_conn *c, struct str command, size_t count, redis_done *done, void *data) {
    struct redis_op *op = calloc(1, sizeof *op);
    if (!op) return NULL;
    op->done = done;
    op->data = data;
    op->expect = count;
    op->metric = redis_metric_slot(count == 1 ? command : STR("pipeline"));
    op->started_us = clock_mono_us();
    op->deadline = deadline_in(c->opts.timeout_ms);
    return op;
}

static bool reply_array(struct redis_op *op) {
    op->wrap = true;
    op->many = calloc(1, sizeof *op->many);
    if (!op->many) return false;
    op->many->type = REDIS_ARRAY;
    op->many->items = calloc(op->expect, sizeof *op->many->items);
    if (!op->many->items) return false;
    op->many->count = op->expect;
    return true;
}

struct redis_op *redis_conn_send(struct redis_conn *c, const struct redis_command *commands, size_t count, bool wrap,
                                 uint32_t timeout_ms, redis_done *done, void *data, struct error *err) {
    size_t bytes = 0;
    if (count == 0 || (!wrap && count != 1)) {
        error_set(err, ERR_INVALID, "no Redis command given");
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        if (commands[i].count == 0 || commands[i].count > MAX_ARGS) {
            error_set(err, ERR_INVALID, "a Redis command needs 1 to %d arguments", MAX_ARGS);
            return NULL;
        }
        bytes += room(commands[i].args, commands[i].count);
    }
    if (!may_send(c, count, bytes, err)) return NULL;
    struct redis_op *op = op_new(c, commands[0].args[0], count, done, data);
    if (!op || (wrap && !reply_array(op)) || !buf_reserve(&c->out, bytes)) {
        if (op) op_free(op);
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    if (timeout_ms) op->deadline = deadline_in(timeout_ms);
    for (size_t i = 0; i < count; i++) {
        bool added = add_command(&c->out, commands[i].args, commands[i].count);
        (void)added; /* room was made above */
    }
    enqueue(c, op);
    return op;
}

static bool add_eval(struct buf *out, struct str name, struct str body, const struct redis_op *op) {
    struct str head[2] = {name, body};
    if (!buf_reserve(out, room(head, 2) + op->tail.len)) return false;
    add_number(out, '*', op->argc);
    add_arg(out, name);
    add_arg(out, body);
    return buf_add(out, buf_str(&op->tail));
}

struct redis_op *redis_conn_eval(struct redis_conn *c, const struct redis_script *script, size_t nkeys,
                                 const struct str *args, size_t count, redis_done *done, void *data,
                                 struct error *err) {
    if (nkeys > count || count > MAX_ARGS - 3) {
        error_set(err, ERR_INVALID, "a Redis script was given a bad number of keys");
        return NULL;
    }
    char number[24];
    int digits = snprintf(number, sizeof number, "%zu", nkeys);
    struct str nkeys_arg = str_n(number, (size_t)digits);
    size_t bytes = room(args, count) + room(&nkeys_arg, 1) + script->text.len + 128;
    if (!may_send(c, 1, bytes, err)) return NULL;
    struct redis_op *op = op_new(c, STR("EVALSHA"), 1, done, data);
    if (!op || !buf_reserve(&op->tail, bytes)) goto no_memory;
    op->script = script;
    op->argc = count + 3;
    add_arg(&op->tail, nkeys_arg);
    for (size_t i = 0; i < count; i++) add_arg(&op->tail, args[i]);
    if (!add_eval(&c->out, STR("EVALSHA"), str_n(script->sha, 40), op)) goto no_memory;
    enqueue(c, op);
    return op;
no_memory:
    if (op) op_free(op);
    error_set(err, ERR_MEMORY, "out of memory");
    return NULL;
}

bool redis_conn_post(struct redis_conn *c, const struct redis_command *command) {
    if (c->state != UP || c->out.len + room(command->args, command->count) > MAX_OUT) return false;
    if (!add_command(&c->out, command->args, command->count)) return false;
    loop_at_turn_end(&c->flush);
    return true;
}

/* ---- writing ---- */

static void drop_io(struct redis_conn *c, const char *what, int status) {
    struct error why = {0};
    bool filled = error_set(&why, ERR_UNAVAILABLE, "%s%s", what, uv_strerror(status));
    (void)filled; /* always false */
    drop(c, &why);
}

static void flush(void *data);

static void on_written(uv_write_t *write, int status) {
    struct link *l = write->data;
    l->in_write = false;
    buf_free(&l->writing);
    if (!l->conn) return;
    if (status < 0) {
        drop_io(l->conn, "", status);
    } else {
        flush(l->conn);
    }
}

static void flush(void *data) {
    struct redis_conn *c = data;
    struct link *l = c->link;
    if (!l || !l->connected || l->in_write || c->out.len == 0) return;
    uv_buf_t bytes = uv_buf_init(c->out.data, (unsigned)c->out.len);
    int sent = uv_try_write(&l->io.stream, &bytes, 1);
    if (sent == UV_EAGAIN) sent = 0;
    if (sent < 0) {
        drop_io(c, "", sent);
        return;
    }
    if ((size_t)sent == c->out.len) {
        buf_clear(&c->out);
        if (c->out.cap > KEEP_OUT) buf_free(&c->out);
        return;
    }
    l->writing = c->out;
    c->out = (struct buf){0};
    bytes = uv_buf_init(l->writing.data + sent, (unsigned)(l->writing.len - (size_t)sent));
    l->write.data = l;
    int status = uv_write(&l->write, &l->io.stream, &bytes, 1, on_written);
    if (status < 0) {
        drop_io(c, "", status);
        return;
    }
    l->in_write = true;
}

void redis_conn_flush(struct redis_conn *c) {
    struct link *l = c->link;
    if (!l || !l->connected || l->in_write || c->out.len == 0) return;
    uv_buf_t bytes = uv_buf_init(c->out.data, (unsigned)c->out.len);
    int sent = uv_try_write(&l->io.stream, &bytes, 1);
    if (sent <= 0) return;
    c->out.len -= (size_t)sent;
    memmove(c->out.data, c->out.data + sent, c->out.len);
    if (c->out.len == 0 && c->out.cap > KEEP_OUT) buf_free(&c->out);
}

/* ---- reading ---- */

/* True when the script must be sent again with its text; the operation has then gone to the end of the queue. */
static bool load_script(struct redis_conn *c, struct redis_op *op, const struct redis_reply *reply) {
    if (!op->script || reply->type != REDIS_ERROR || !str_starts(reply->text, STR("NOSCRIPT"))) return false;
    size_t before = c->out.len;
    if (!add_eval(&c->out, STR("EVAL"), op->script->text, op)) {
        c->out.len = before;
        return false;
    }
    op->script = NULL;
    dequeue(c);
    enqueue(c, op);
    return true;
}

static void deliver(struct link *l, struct redis_reply *reply) {
    struct redis_conn *c = l->conn;
    struct redis_op *op = c->head;
    if (!op) {
        if (c->opts.push) {
            c->opts.push(c->opts.data, reply);
        } else {
            struct error why = {0};
            bool filled = error_set(&why, ERR_UNAVAILABLE, "Redis sent a reply that nobody asked for");
            (void)filled; /* always false */
            drop(c, &why);
        }
        redis_reply_free(reply);
        return;
    }
    if (op->wrap) {
        op->many->items[op->got++] = *reply;
        free(reply);
        if (op->got < op->expect) return;
        reply = op->many;
        op->many = NULL;
    } else if (load_script(c, op, reply)) {
        redis_reply_free(reply);
        return;
    }
    dequeue(c);
    arm_limit(c);
    op_finish(op, reply, NULL);
    redis_reply_free(reply);
}

static void on_read(uv_stream_t *stream, ssize_t got, const uv_buf_t *bytes) {
    struct link *l = stream->data;
    if (!l->conn || got == 0) return;
    if (got < 0) {
        drop_io(l->conn, got == UV_EOF ? "Redis closed the connection: " : "", (int)got);
        return;
    }
    if (!redis_parser_feed(l->parser, bytes->base, (size_t)got)) {
        drop_io(l->conn, "", UV_ENOMEM);
        return;
    }
    while (l->conn) {
        struct redis_reply *reply = NULL;
        struct error why = {0};
        enum redis_parsed parsed = redis_parser_next(l->parser, &reply, &why);
        if (parsed == REDIS_PARSED_MORE) return;
        if (parsed == REDIS_PARSED_REPLY) {
            deliver(l, reply);
            continue;
        }
        /* Only the command whose reply it was is at fault; for the others the connection is lost. */
        struct redis_conn *c = l->conn;
        struct redis_op *op = c->head;
        if (op) dequeue(c);
        struct error lost = {0};
        bool filled = error_set(&lost, ERR_UNAVAILABLE, "%s", why.message);
        (void)filled; /* always false */
        drop(c, &lost);
        if (op) op_finish(op, NULL, &why);
        return;
    }
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *out) {
    (void)handle;
    (void)suggested;
    *out = uv_buf_init(read_buffer, sizeof read_buffer);
}

/* ---- the link's life ---- */

static void link_free(struct link *l) {
    if (l->addresses) uv_freeaddrinfo(l->addresses);
    redis_parser_free(l->parser);
    buf_free(&l->writing);
    free(l);
}

static void on_link_closed(uv_handle_t *handle) {
    link_free(handle->data);
}

static void link_drop(struct link *l) {
    l->conn = NULL;
    if (l->has_handle) {
        uv_close(&l->io.handle, on_link_closed);
    } else if (l->resolving) {
        int cancelled = uv_cancel((uv_req_t *)&l->resolve);
        (void)cancelled; /* too late to cancel: on_resolved frees it all the same */
    } else {
        link_free(l);
    }
}

static void on_handshake(void *data, const struct redis_reply *reply, const struct error *err) {
    struct redis_conn *c = data;
    if (err) return; /* the connection is being dropped, with that error */
    for (size_t i = 0; i < reply->count; i++) {
        if (reply->items[i].type != REDIS_ERROR) continue;
        struct error why = {0};
        redis_reply_error(&reply->items[i], &why);
        why.kind = ERR_UNAVAILABLE;
        drop(c, &why);
        return;
    }
    c->state = UP;
    c->known_away = false;
    c->failures = 0;
    c->why[0] = 0;
    if (c->opts.up) c->opts.up(c->opts.data);
}

static bool push_handshake(struct redis_conn *c) {
    struct str auth[3] = {STR("AUTH")}, select[2] = {STR("SELECT")}, setname[3] = {STR("CLIENT"), STR("SETNAME")};
    struct str ping[1] = {STR("PING")};
    struct redis_command commands[4];
    size_t count = 0, words = 1;
    char number[16];
    if (c->url.password[0]) {
        if (c->url.user[0]) auth[words++] = str_of(c->url.user);
        auth[words++] = str_of(c->url.password);
        commands[count++] = (struct redis_command){auth, words};
    }
    if (c->url.db) {
        int digits = snprintf(number, sizeof number, "%d", c->url.db);
        select[1] = str_n(number, (size_t)digits);
        commands[count++] = (struct redis_command){select, 2};
    }
    if (c->name[0]) {
        setname[2] = str_of(c->name);
        commands[count++] = (struct redis_command){setname, 3};
    }
    /* PING last: a server that still loads its data says so here. */
    commands[count++] = (struct redis_command){ping, 1};
    struct redis_op *op = op_new(c, STR("handshake"), count, on_handshake, c);
    if (!op) return false;
    op->handshake = true;
    op->deadline = deadline_in(c->opts.connect_ms);
    bool ok = reply_array(op);
    for (size_t i = 0; ok && i < count; i++) ok = add_command(&c->out, commands[i].args, commands[i].count);
    if (!ok) {
        buf_clear(&c->out);
        op_free(op);
        return false;
    }
    enqueue(c, op);
    return true;
}

static void on_connected(uv_connect_t *connect, int status);

/* Starts a connection to an address in a link of its own (a libuv handle that failed to connect cannot be used again).
 * 0 or a libuv error. */
static int start_tcp(struct link *l, const struct sockaddr *address) {
    int status = uv_tcp_init(loop_get(), &l->io.tcp);
    if (status < 0) return status;
    l->has_handle = true;
    l->io.handle.data = l;
    l->connect.data = l;
    status = uv_tcp_nodelay(&l->io.tcp, 1);
    if (status == 0) status = uv_tcp_keepalive(&l->io.tcp, 1, KEEPALIVE_S);
    if (status == 0) status = uv_tcp_connect(&l->connect, &l->io.tcp, address, on_connected);
    return status;
}

static struct link *link_new(struct redis_conn *c) {
    struct link *l = calloc(1, sizeof *l);
    if (!l) return NULL;
    l->parser = redis_parser_new(c->opts.max_reply);
    if (!l->parser) {
        free(l);
        return NULL;
    }
    l->conn = c;
    return l;
}

static void try_address(struct redis_conn *c) {
    struct link *l = c->link;
    const struct addrinfo *address = l->next;
    l->next = address->ai_next;
    int status = start_tcp(l, address->ai_addr);
    if (status < 0) drop_io(c, "", status);
}

/* Each step of a connection has the whole time: a process that is busy at its start has not begun the next one. */
static void step_done(struct redis_conn *c) {
    if (!c->head || !c->head->handshake) return;
    c->head->deadline = deadline_in(c->opts.connect_ms);
    c->overdue = NULL;
}

static void on_connected(uv_connect_t *connect, int status) {
    struct link *l = connect->data;
    struct redis_conn *c = l->conn;
    if (!c) return;
    step_done(c);
    if (status < 0 && l->next) {
        struct link *other = link_new(c);
        if (other) {
            other->addresses = l->addresses;
            other->next = l->next;
            l->addresses = NULL;
            c->link = other;
            link_drop(l);
            try_address(c);
            return;
        }
    }
    if (status == 0) status = uv_read_start(&l->io.stream, on_alloc, on_read);
    if (status < 0) {
        drop_io(c, "", status);
        return;
    }
    l->connected = true;
    flush(c);
}

static void on_resolved(uv_getaddrinfo_t *resolve, int status, struct addrinfo *addresses) {
    struct link *l = resolve->data;
    l->resolving = false;
    l->addresses = addresses;
    if (!l->conn) {
        link_free(l);
        return;
    }
    if (status < 0 || !addresses) {
        drop_io(l->conn, "host name: ", status < 0 ? status : UV_EAI_NONAME);
        return;
    }
    l->next = addresses;
    step_done(l->conn);
    try_address(l->conn);
}

static void connect_now(struct redis_conn *c) {
    c->state = CONNECTING;
    c->link = link_new(c);
    int status = 0;
    if (!c->link || !push_handshake(c)) {
        status = UV_ENOMEM;
    } else if (c->url.path[0]) {
        struct link *l = c->link;
        status = uv_pipe_init(loop_get(), &l->io.pipe, 0);
        if (status == 0) {
            l->has_handle = true;
            l->io.handle.data = l;
            l->connect.data = l;
            uv_pipe_connect(&l->connect, &l->io.pipe, c->url.path, on_connected);
        }
    } else {
        struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_protocol = IPPROTO_TCP};
        c->link->resolve.data = c->link;
        status = uv_getaddrinfo(loop_get(), &c->link->resolve, on_resolved, c->url.host, c->url.port, &hints);
        c->link->resolving = status == 0;
    }
    if (status < 0) drop_io(c, "", status);
}

static void on_retry(uv_timer_t *timer) {
    struct redis_conn *c = timer->data;
    if (c->state == DOWN) connect_now(c);
}

/* Doubles up to the cap; a random half keeps many workers from returning in step. */
static uint64_t backoff(unsigned failures) {
    uint64_t delay = BACKOFF_MAX_MS;
    if (failures < 6) delay = (uint64_t)BACKOFF_MS << failures;
    if (delay > BACKOFF_MAX_MS) delay = BACKOFF_MAX_MS;
    uint32_t random = 0;
    ssize_t got = getrandom(&random, sizeof random, GRND_NONBLOCK);
    (void)got; /* without it the delay is just not spread */
    return delay / 2 + random % (delay / 2 + 1);
}

/* Answers everything in flight. What was cut off by its own limit gets ERR_TIMEOUT, the rest `why`. */
static void fail_all(struct redis_conn *c, const struct error *why) {
    struct redis_op *op = c->head;
    c->head = NULL;
    c->tail = &c->head;
    c->in_flight = 0;
    uint64_t now = uv_now(loop_get());
    while (op) {
        struct redis_op *next = op->next;
        struct error late = {0};
        bool timed_out = why->kind == ERR_UNAVAILABLE && op->deadline && op->deadline <= now;
        if (timed_out) {
            bool filled = error_set(&late, ERR_TIMEOUT, "Redis did not answer in time");
            (void)filled; /* always false */
        }
        op_finish(op, NULL, timed_out ? &late : why);
        op = next;
    }
}

static void drop(struct redis_conn *c, const struct error *why) {
    if (c->state == CLOSED || c->state == DOWN) return;
    c->state = DOWN;
    c->known_away = true;
    int written = snprintf(c->why, sizeof c->why, "%.127s", why->message);
    (void)written; /* a long reason is cut */
    if (c->link) link_drop(c->link);
    c->link = NULL;
    buf_clear(&c->out);
    int started = uv_timer_start(&c->retry, on_retry, backoff(c->failures++), 0);
    (void)started; /* fails only without a callback */
    fail_all(c, why);
    if (c->state != CLOSED && c->opts.down) c->opts.down(c->opts.data, why);
}

void redis_conn_reset(struct redis_conn *c, const char *why) {
    struct error err = {0};
    bool filled = error_set(&err, ERR_UNAVAILABLE, "%s", why);
    (void)filled; /* always false */
    drop(c, &err);
}

/* ---- making and closing ---- */

static void on_timer_closed(uv_handle_t *handle) {
    struct redis_conn *c = handle->data;
    if (--c->open_handles > 0) return;
    buf_free(&c->out);
    free(c);
}

struct redis_conn *redis_conn_new(const struct redis_url *url, const struct redis_conn_options *options,
                                  struct error *err) {
    struct redis_conn *c = calloc(1, sizeof *c);
    if (!c) {
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    c->url = *url;
    c->opts = *options;
    if (options->name) {
        size_t len = strlen(options->name);
        if (len >= sizeof c->name || strpbrk(options->name, " \r\n\t")) {
            error_set(err, ERR_INVALID, "a Redis connection's name is shorter than %zu, without blanks",
                      sizeof c->name);
            free(c);
            return NULL;
        }
        memcpy(c->name, options->name, len);
    }
    if (!c->opts.timeout_ms) c->opts.timeout_ms = 2000;
    if (!c->opts.connect_ms) c->opts.connect_ms = 2000;
    if (!c->opts.max_in_flight) c->opts.max_in_flight = 4096;
    if (!c->opts.max_reply) c->opts.max_reply = (size_t)16 * 1024 * 1024;
    c->tail = &c->head;
    c->flush = (struct loop_hook){.fn = flush, .data = c};
    int limit = uv_timer_init(loop_get(), &c->limit), retry = uv_timer_init(loop_get(), &c->retry);
    (void)limit, (void)retry; /* cannot fail */
    c->limit.data = c->retry.data = c;
    c->open_handles = 2;
    connect_now(c);
    return c;
}

void redis_conn_close(struct redis_conn *c) {
    if (!c || c->state == CLOSED) return;
    c->state = CLOSED;
    if (c->link) link_drop(c->link);
    c->link = NULL;
    loop_forget(&c->flush);
    struct error why = {0};
    bool filled = error_set(&why, ERR_CANCELLED, "the Redis connection was closed");
    (void)filled; /* always false */
    fail_all(c, &why);
    uv_close((uv_handle_t *)&c->limit, on_timer_closed);
    uv_close((uv_handle_t *)&c->retry, on_timer_closed);
}

bool redis_conn_up(const struct redis_conn *c) {
    return c->state == UP;
}

size_t redis_conn_in_flight(const struct redis_conn *c) {
    return c->in_flight;
}

bool redis_conn_gathering(const struct redis_conn *c) {
    return c->flush.queued;
}

const char *redis_conn_why_down(const struct redis_conn *c) {
    if (c->state == UP) return "";
    return c->why[0] ? c->why : "not connected yet";
}
