/* The HTTP server of this process, as the worker and core.server share it. */
#ifndef KASMA_SCRIPT_BIND_SERVER_H
#define KASMA_SCRIPT_BIND_SERVER_H

#include "http/server.h"

/* The server that core.server registers its routes with, made with the settings of the process on first use; it listens
 * nowhere until server_listen_fd. NULL: out of memory. */
struct server *bind_server_get(void);
/* Uses `s` instead, or none (NULL): for tests, and after server_close. The old one is the caller's to close. */
void bind_server_set(struct server *s);

#endif
