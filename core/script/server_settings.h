/* The settings of the HTTP server out of the configuration of the process. */
#ifndef KASMA_SCRIPT_SERVER_SETTINGS_H
#define KASMA_SCRIPT_SERVER_SETTINGS_H

#include "http/server.h"

void server_settings_load(struct server_settings *s);

#endif
