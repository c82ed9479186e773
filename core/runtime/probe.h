/* One question to a running server, for `kasma healthcheck`: no loop, no libraries, an answer within its time. */
#ifndef KASMA_RUNTIME_PROBE_H
#define KASMA_RUNTIME_PROBE_H

#include "runtime/error.h"

/* GET `path`. Returns the HTTP status, or -1 with `err` when none came within `timeout_ms`. A wildcard host is asked on
 * loopback. */
int probe_http(const char *host, int port, const char *path, int timeout_ms, struct error *err);

#endif
