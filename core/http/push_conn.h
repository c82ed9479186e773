/* What conn.c asks of a connection that has become a push (http/push.h). Inside of the server only. */
#ifndef KASMA_HTTP_PUSH_CONN_H
#define KASMA_HTTP_PUSH_CONN_H

#include <stdbool.h>
#include <stddef.h>

struct push;

/* Bytes came; they may be changed. conn_settle follows. */
void push_conn_read(struct push *p, char *bytes, size_t n);
/* True while it reads. */
bool push_conn_wants(const struct push *p);
/* Everything before it is written: write, read on, end. */
void push_conn_settle(struct push *p);
/* The connection's timer fired. */
void push_conn_timeout(struct push *p);
/* The connection is being closed: tells the owner. Its memory stays until push_conn_free, since libuv may still hold
 * bytes of it. */
void push_conn_gone(struct push *p);
void push_conn_free(struct push *p);

#endif
