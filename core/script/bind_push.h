/* What core.push and the methods of a request that end in it share. */
#ifndef KASMA_SCRIPT_BIND_PUSH_H
#define KASMA_SCRIPT_BIND_PUSH_H

#include <lua.h>

#include "http/request.h"

/* Turns the request into a WebSocket or an event stream with the options in the table at 2 (bind_push.c lists them).
 * Pushes the socket; or nil and {kind, code = the status to refuse with, message}, when nothing was answered. */
int bind_push_open(lua_State *L, struct request *r, bool websocket, const struct header *headers, size_t count);

#endif
