/* Where a Redis server is: redis://[user[:password]@]host[:port][/db], or unix:///path/to.sock[?db=n]. */
#ifndef KASMA_STORES_REDIS_URL_H
#define KASMA_STORES_REDIS_URL_H

#include "runtime/error.h"
#include "runtime/str.h"

struct redis_url {
    char host[256];     /* name or address; empty for a unix socket */
    char port[6];       /* "6379" */
    char path[108];     /* of a unix socket; empty for TCP */
    char user[128];     /* empty: the default user */
    char password[512]; /* empty: no AUTH is sent */
    int db;
};

/* False: ERR_INVALID, with a text that never holds the password. TLS (rediss://) is refused, not ignored. */
bool redis_url_parse(struct str text, struct redis_url *out, struct error *err);

#endif
